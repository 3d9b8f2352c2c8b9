"""
Whatever the responses to its starts are, a task has one run at most, and is green for its own run only.

A small Etlworks in memory carries out the calls; hypothesis chooses the faults, the responses and the order.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from support.clock import FastClock
from support.effort import effort

from airflow_provider_etlworks.client.call import Call, Response
from airflow_provider_etlworks.client.errors import EtlworksError, EtlworksStartUnknown, EtlworksUnreachable
from airflow_provider_etlworks.client.procedure import Procedure, Sleep
from airflow_provider_etlworks.client.retry import ATTEMPTS, is_retryable
from airflow_provider_etlworks.runs.reconcile import RunKey, read_accepted_run
from airflow_provider_etlworks.runs.start import OnAlreadyRunning, RunStarter, Started
from airflow_provider_etlworks.runs.types import RunRef

LOG = logging.getLogger("start.properties")
LOG.disabled = True
FLOW = 7
OLD_RUN = 5
CERTAIN_REFUSALS = (400, 401, 403, 404, 405, 409, 413, 415, 422, 429)
KEYED = {"run_key_parameter": "runKey", "run_key": "dag/task"}
TRUE_ID = OLD_RUN + 1


@dataclass(frozen=True)
class Fault:
    """
    What happens to one start.

    :ivar carried_out: whether Etlworks carries it out.
    :ivar response: what comes back instead of the usual response: status, headers, body; ``None`` for nothing.
    """

    carried_out: bool
    response: tuple[int, dict[str, str], bytes] | None = None


@dataclass
class Memory:
    """
    An Etlworks in memory, with one flow.

    :ivar visible_after: seconds until a run shows.
    :ivar echo_after: seconds until a run shows its parameters, in ``echo`` (``record``, ``log`` or nothing).
    :ivar runs_take: seconds that a run takes.
    :ivar is_parallel: whether runs may overlap.
    """

    clock: FastClock = field(default_factory=FastClock)
    visible_after: float = 0.0
    echo: str | None = None
    echo_after: float = 0.0
    runs_take: float = 0.0
    is_parallel: bool = False
    runs: list[dict[str, Any]] = field(default_factory=list)

    def of(self, starter: str) -> list[int]:
        """Return the audit ids of the runs that a starter's requests began."""
        return [run["auditId"] for run in self.runs if run["starter"] == starter]

    def begin(self, starter: str, parameters: dict[str, str], **fields: Any) -> int:
        audit_id = OLD_RUN + 1 + len(self.runs)
        self.runs.append(
            {"auditId": audit_id, "starter": starter, "at": self.clock.now, "parameters": parameters, **fields}
        )
        return audit_id

    def send(self, call: Call[Any], starter: str, faults: list[Fault], *, attempts: int = ATTEMPTS) -> Any:
        """Send a call as a client does, with its retries."""
        for attempt in range(attempts):
            try:
                return call.result(self._respond(call, starter, faults))
            except EtlworksError as error:
                if attempt == attempts - 1 or not is_retryable(error, idempotent=call.idempotent):
                    raise
        raise AssertionError

    def _respond(self, call: Call[Any], starter: str, faults: list[Fault]) -> Response:
        if call.method == "POST":
            fault = faults.pop(0) if faults else Fault(carried_out=True, response=(0, {}, b""))
            said = self._start(call, starter) if fault.carried_out else {}
            if fault.response is None:
                raise EtlworksUnreachable("Connection reset.")
            return _json(said) if fault.response[0] == 0 else Response(*fault.response)
        records = [self._record(run) for run in reversed(self.runs) if self._age(run) >= self.visible_after]
        records.append({"auditId": OLD_RUN, "status": "success", "ended": 1})
        if call.path.endswith("/history"):
            return _json(records)
        query = dict(call.query)
        chosen = [each for each in records if str(each["auditId"]) == query.get("auditId", str(records[0]["auditId"]))]
        if not chosen:
            return Response(404, {}, b"")
        if call.path.endswith("/download"):
            return Response(200, {}, chosen[0].pop("log", "").encode())
        return _json({name: value for name, value in chosen[0].items() if name != "log"})

    def _start(self, call: Call[Any], starter: str) -> dict[str, Any]:
        if not self.is_parallel and any(self._age(run) < self.runs_take for run in self.runs):
            return {"flowId": FLOW, "status": 1}
        return {"flowId": FLOW, "status": 0, "auditId": self.begin(starter, json.loads(call.body))}  # type: ignore[arg-type]

    def _record(self, run: dict[str, Any]) -> dict[str, Any]:
        is_over = self._age(run) >= self.runs_take
        record = {
            "auditId": run["auditId"],
            "flowId": FLOW,
            "user": "airflow",
            "started": run["at"] * 1000,
            "status": "success" if is_over else "running",
            "ended": (run["at"] + self.runs_take) * 1000 if is_over else None,
        }
        if self._age(run) >= self.echo_after and self.echo == "record":
            record["parameters"] = run["parameters"]
        elif self._age(run) >= self.echo_after and self.echo == "log":
            record["log"] = "".join(f"{name}={value}\n" for name, value in run["parameters"].items())
        return {**record, **{name: run[name] for name in ("eventId",) if name in run}}

    def _age(self, run: dict[str, Any]) -> float:
        return self.clock.now - float(run["at"])


def _json(value: Any) -> Response:
    return Response(200, {"Content-Type": "application/json"}, json.dumps(value).encode())


class Task:
    """A task instance that keeps its intent across tries, as the run operator does."""

    def __init__(self, name: str, etlworks: Memory, faults: list[Fault], **options: Any) -> None:
        self.name, self.etlworks, self.faults, self.options = name, etlworks, list(faults), options
        self.intent: tuple[int, RunKey | None] | None = None
        self.accepted: int | None = None
        self.audit_id: int | None = None

    def try_once(self) -> Procedure[None]:
        """Reconcile what the earlier try left, start, and read the run's end."""
        starter = RunStarter(FLOW, self.etlworks.clock, LOG, save_intent=self._save, **self.options)
        self._key = starter.key
        if self.accepted is None and self.intent is not None:
            self.accepted = yield from starter.reconcile(*self.intent)
        if self.accepted is None:
            started = yield from starter.start()
            assert isinstance(started, Started)
            self.accepted = started.audit_id
        record = yield from read_accepted_run(RunRef(FLOW, self.accepted), clock=self.etlworks.clock, log=LOG)
        audit_id, self.accepted, self.intent = self.accepted, None, None
        if record is None:
            raise EtlworksError("The run's record is gone.")
        self.audit_id = audit_id

    def _save(self, watermark: int | None) -> None:
        self.intent = None if watermark is None else (watermark, self._key)


@dataclass
class _Going:
    task: Task
    procedure: Procedure[None]
    value: Any = None
    wake_at: float = 0.0


def run_together(etlworks: Memory, tasks: list[Task], choose: Any, *, most_tries: int) -> None:
    """Run tries of tasks at once, step by step, in any order; a try that fails is made again."""
    tries = {task.name: 1 for task in tasks}
    going = [_Going(task, task.try_once()) for task in tasks]
    while going:
        ready = [each for each in going if each.wake_at <= etlworks.clock.now]
        if not ready:
            etlworks.clock.now = min(each.wake_at for each in going)
            continue
        one = choose(ready)
        try:
            step = (
                one.procedure.throw(one.value)
                if isinstance(one.value, EtlworksError)
                else one.procedure.send(one.value)
            )
        except StopIteration:
            going.remove(one)
        except EtlworksError as error:
            going.remove(one)
            if tries[one.task.name] < most_tries and not isinstance(error, EtlworksStartUnknown):
                tries[one.task.name] += 1
                going.append(_Going(one.task, one.task.try_once(), wake_at=etlworks.clock.now + 300))
        else:
            one.value = None
            if isinstance(step, Sleep):
                one.wake_at = etlworks.clock.now + step.seconds
                continue
            call, attempts = (step, ATTEMPTS) if isinstance(step, Call) else (step.call, 1)
            try:
                one.value = etlworks.send(call, one.task.name, one.task.faults, attempts=attempts)
            except EtlworksError as error:
                one.value = error


def assert_own_run_only(etlworks: Memory, task: Task) -> None:
    own = etlworks.of(task.name)
    assert len(own) <= 1
    assert task.audit_id is None or [task.audit_id] == own


# --- Any response ---------------------------------------------------------------------------------------------------

audit_ids = st.sampled_from([None, 0, OLD_RUN, TRUE_ID, str(TRUE_ID), 99, -1, True, "x"])
start_responses = st.fixed_dictionaries(
    {},
    optional={
        "flowId": st.sampled_from([FLOW, 8, None, "7"]),
        "auditId": audit_ids,
        "status": st.sampled_from([0, 1, 2, 3, 4, 5, 6, -1, None, "0", "running", True]),
        "success": st.booleans(),
        "exception": st.text(max_size=5),
        "message": st.text(max_size=5),
    },
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
bodies = st.one_of(
    start_responses.map(lambda value: json.dumps(value).encode()),
    json_values.map(lambda value: json.dumps(value).encode()),
    st.binary(max_size=30),
)
headers = st.dictionaries(
    st.sampled_from(["Content-Type", "Retry-After", "Location", "Server"]), st.text(max_size=10), max_size=3
)
statuses = st.just(200) | st.sampled_from(CERTAIN_REFUSALS) | st.integers(200, 599)
faults_of_any_kind = st.builds(
    Fault, carried_out=st.booleans(), response=st.none() | st.tuples(statuses, headers, bodies)
)


def is_a_lie(fault: Fault) -> bool:
    """Whether a response denies the run that its request began, or names another one for it, as no server does."""
    if not fault.carried_out or fault.response is None:
        return False
    code, _, body = fault.response
    try:
        value = json.loads(body)
    except ValueError:
        value = None
    if code in CERTAIN_REFUSALS:
        return True
    if not 200 <= code < 300 or not isinstance(value, dict) or value.get("success") is False:
        return False
    names_a_run = value.get("auditId") in (OLD_RUN, TRUE_ID, str(TRUE_ID), 99, -1) and value["auditId"] is not True
    said = value.get("status")
    if said == 1 and said is not True:
        return True
    return said in (2, 3) if not names_a_run else value["auditId"] not in (OLD_RUN, TRUE_ID, str(TRUE_ID))


@example([Fault(True, (200, {}, b'{"auditId": 5, "status": 0}'))], 0.0, 0.0, True)
@example([Fault(True, (302, {}, b""))], 5.0, 0.0, True)
@example([Fault(True), Fault(False, (403, {}, b""))], 0.0, 20.0, False)
@pytest.mark.fuzzing
@settings(max_examples=effort(250, 4_000), deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
@given(
    faults=st.lists(faults_of_any_kind, max_size=3),
    visible_after=st.sampled_from([0.0, 5.0, 40.0]),
    runs_take=st.sampled_from([0.0, 20.0]),
    is_only_starter=st.booleans(),
)
def test_any_response_leads_to_one_run_at_most(
    faults: list[Fault], visible_after: float, runs_take: float, is_only_starter: bool
) -> None:
    assume(not any(map(is_a_lie, faults)))
    etlworks = Memory(visible_after=visible_after, runs_take=runs_take)
    task = Task("only", etlworks, faults, is_only_starter=is_only_starter)

    run_together(etlworks, [task], lambda ready: ready[0], most_tries=3)

    assert_own_run_only(etlworks, task)


# --- Several starters -----------------------------------------------------------------------------------------------

lost_starts = st.builds(
    Fault, carried_out=st.booleans(), response=st.sampled_from([None, (502, {}, b""), (302, {}, b""), (200, {}, b"{}")])
)


class Schedule(Task):
    """Starts a run as a schedule does, after some seconds."""

    def try_once(self) -> Procedure[None]:
        yield Sleep(self.options["after"])
        self.etlworks.begin(self.name, {}, eventId=3)


@pytest.mark.fuzzing
@settings(max_examples=effort(120, 2_000), deadline=None)
@given(
    faults=st.lists(st.lists(lost_starts, max_size=2), min_size=2, max_size=3),
    keyed=st.booleans(),
    echo=st.sampled_from([None, "record", "log"]),
    echo_after=st.sampled_from([0.0, 10.0, 30.0]),
    visible_after=st.sampled_from([0.0, 10.0]),
    runs_take=st.sampled_from([0.0, 15.0]),
    is_parallel=st.booleans(),
    schedule_after=st.none() | st.sampled_from([0.0, 0.5, 30.0]),
    data=st.data(),
)
def test_run_of_another_starter_is_never_adopted(
    faults: list[list[Fault]],
    keyed: bool,
    echo: str | None,
    echo_after: float,
    visible_after: float,
    runs_take: float,
    is_parallel: bool,
    schedule_after: float | None,
    data: st.DataObject,
) -> None:
    etlworks = Memory(
        visible_after=visible_after, echo=echo, echo_after=echo_after, runs_take=runs_take, is_parallel=is_parallel
    )
    options = {"on_already_running": OnAlreadyRunning.WAIT, **(KEYED if keyed else {})}
    tasks = [Task(f"task {number}", etlworks, own, **options) for number, own in enumerate(faults)]
    others = [] if schedule_after is None else [Schedule("schedule", etlworks, [], after=schedule_after)]

    run_together(etlworks, [*tasks, *others], lambda ready: data.draw(st.sampled_from(ready)), most_tries=3)

    for task in tasks:
        assert_own_run_only(etlworks, task)
