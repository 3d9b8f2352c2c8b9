"""A run starts exactly once, whatever happens to the start; and a start that cannot work says so before anything."""

from __future__ import annotations

import asyncio
import json
import random
from typing import TYPE_CHECKING, Any

import pytest
from airflow.exceptions import TaskDeferred
from support.clock import BEGINNING
from support.every_nth import EveryNth
from support.proxy import Break, Proxy
from support.task import FLOW, FLOW_NAME, HISTORY_PATH, RUN_PATH, STOP_PATH, Task, only_event, stored_and_loaded

from airflow_provider_etlworks.client.errors import (
    EtlworksAlreadyRunning,
    EtlworksBadRequest,
    EtlworksConflict,
    EtlworksError,
    EtlworksExecutionFailed,
    EtlworksExecutionTimeout,
    EtlworksForbidden,
    EtlworksNotFound,
    EtlworksRefused,
    EtlworksStartRefused,
    EtlworksStartUnknown,
    EtlworksUnauthorized,
    EtlworksUnreachable,
)
from airflow_provider_etlworks.sandbox import (
    Fault,
    SandboxFlow,
    broken_body,
    delay,
    hang_up,
    status,
    truncated,
)

if TYPE_CHECKING:
    from support.etlworks import Etlworks

JSON = "application/json"
# Longer than the read time-out of these tests.
TOO_LATE = 1.5
READ_TIMEOUT = 0.5

LOST_BUT_CARRIED_OUT = {
    "connection dropped": hang_up(),
    "read time-out": delay(TOO_LATE),
    "502 from a proxy": broken_body(code=502),
    "503 from a proxy": broken_body(code=503),
    "504 from a proxy": broken_body(code=504),
    "500": broken_body(b'{"message":"Out of memory"}', content_type=JSON, code=500),
    "408": broken_body(code=408),
    "HTML": broken_body(),
    "empty body": broken_body(b"", content_type=JSON),
    "half a body": truncated(),
    "half a document": broken_body(b'{"flowId": 7, "aud', content_type=JSON),
    "a list": broken_body(b"[]", content_type=JSON),
    "no audit id": broken_body(b'{"flowId": 7, "status": 0}', content_type=JSON),
    "audit id null": broken_body(b'{"flowId": 7, "auditId": null, "status": 0}', content_type=JSON),
    "audit id 0": broken_body(b'{"flowId": 7, "auditId": 0, "status": 0}', content_type=JSON),
}
LOST_AND_NOT_CARRIED_OUT = {
    "connection dropped": hang_up(carried_out=False),
    "read time-out": hang_up(carried_out=False, delay=TOO_LATE),
    "502": status(502),
    "503": status(503),
    "504": status(504),
    "500": status(500),
    "408": status(408),
    "HTML": status(200, body="<html>Please log in</html>"),
    "empty body": status(200, body=""),
}
REFUSALS: dict[str, tuple[Fault, type[Exception]]] = {
    "400": (status(400), EtlworksBadRequest),
    "401": (status(401), EtlworksUnauthorized),
    "403": (status(403), EtlworksForbidden),
    "404": (status(404), EtlworksNotFound),
    "405": (status(405), EtlworksBadRequest),
    "409": (status(409), EtlworksConflict),
    "415": (status(415), EtlworksBadRequest),
    "canceled": (
        status(200, body='{"status": 2, "exception": "An armed fault"}', headers={"Content-Type": JSON}),
        EtlworksStartRefused,
    ),
    "not executed": (
        status(200, body='{"status": 3, "exception": "An armed fault"}', headers={"Content-Type": JSON}),
        EtlworksStartRefused,
    ),
}

both_modes = pytest.mark.parametrize("deferrable", [False, True], ids=["sync", "deferrable"])


# --- The answer to the start is lost --------------------------------------------------------------------------------


@pytest.mark.parametrize("running", [300, 0], ids=["still going", "ended before the look"])
@pytest.mark.parametrize("fault", LOST_BUT_CARRIED_OUT)
def test_lost_start_that_was_processed_is_found(etlworks: Etlworks, fault: str, running: int) -> None:
    etlworks.connect(read_timeout=READ_TIMEOUT)
    etlworks.flow(running=running)
    etlworks.task().run()
    etlworks.sandbox.fault("POST", RUN_PATH, LOST_BUT_CARRIED_OUT[fault])

    went = etlworks.task().run()

    assert went.colour == "success"
    assert len(went.accepted) == 1
    assert went.result is not None
    assert went.result["audit_id"] == went.accepted[0]
    assert etlworks.asked("POST", RUN_PATH) == 2  # one per task
    assert "Found the run" in etlworks.log_text


@pytest.mark.parametrize("fault", LOST_AND_NOT_CARRIED_OUT)
def test_lost_start_that_was_not_processed_is_sent_once_more(etlworks: Etlworks, fault: str) -> None:
    etlworks.connect(read_timeout=READ_TIMEOUT)
    etlworks.sandbox.fault("POST", RUN_PATH, LOST_AND_NOT_CARRIED_OUT[fault])

    went = etlworks.task().run()

    assert went.colour == "success"
    assert len(went.accepted) == 1
    assert etlworks.asked("POST", RUN_PATH) == 2
    assert etlworks.warnings("The start is in doubt")
    assert sum(etlworks.clock.slept) >= 60  # the record may only be late


@pytest.mark.parametrize("where", [Break.AFTER_RESPONSE, Break.INSIDE_RESPONSE, Break.BEFORE_FORWARDING])
def test_start_dropped_by_a_proxy_makes_one_run(etlworks: Etlworks, where: Break) -> None:
    task = etlworks.task()
    assert task.store is not None
    with Proxy() as proxy:
        etlworks.connect(proxy=proxy.url)
        task.store.before_the_start = lambda: proxy.break_connections(where, times=1)
        went = task.run()

    assert went.colour == "success"
    assert len(went.accepted) == 1
    assert etlworks.sandbox.runs_started() == 1


def test_late_run_is_waited_for(etlworks: Etlworks) -> None:
    etlworks.flow(running=300, visible_after=40)
    etlworks.sandbox.fault("POST", RUN_PATH, hang_up())

    went = etlworks.task().run()

    assert went.colour == "success"
    assert etlworks.asked("POST", RUN_PATH) == 1


def test_response_without_audit_id_or_run_fails(etlworks: Etlworks) -> None:
    answer = status(200, body='{"flowId": 7, "status": 0}', headers={"Content-Type": JSON})
    etlworks.sandbox.fault("POST", RUN_PATH, answer)

    went = etlworks.task().run()

    assert isinstance(went.error, EtlworksStartUnknown)
    assert "accepted the start of flow 7, but gave no audit id" in went.report
    assert etlworks.asked("POST", RUN_PATH) == 1


def test_start_lost_twice_is_not_sent_again(etlworks: Etlworks) -> None:
    etlworks.sandbox.fault("POST", RUN_PATH, hang_up(carried_out=False), times=None)

    went = etlworks.task().run()

    assert isinstance(went.error, EtlworksStartUnknown)
    assert "asked to start twice" in went.report
    assert etlworks.asked("POST", RUN_PATH) == 2


def test_log_shows_the_broken_response(etlworks: Etlworks) -> None:
    etlworks.sandbox.fault("POST", RUN_PATH, broken_body())

    etlworks.task().run()

    assert etlworks.warnings("The start is in doubt", "text/html", "The proxy has no answer")


@pytest.mark.parametrize("login", [None, "sandbox"], ids=["API key", "login"])
def test_two_candidates_are_not_guessed(etlworks: Etlworks, login: str | None) -> None:
    if login:
        etlworks.connect(login=login, password="sandbox")
    etlworks.flow(running=0)
    task = etlworks.task()
    etlworks.sandbox.fault("POST", RUN_PATH, hang_up())
    other: list[int] = []
    assert task.store is not None
    task.store.before_the_start = lambda: other.append(etlworks.run_of_somebody_else())

    went = task.run()

    assert isinstance(went.error, EtlworksStartUnknown)
    assert went.error.candidates == (went.accepted[0], other[0])
    assert all(str(each) in went.report for each in went.error.candidates)
    assert etlworks.asked("POST", RUN_PATH) == 1


@pytest.mark.parametrize("whose", ["schedule", "another user"])
@pytest.mark.parametrize("carried_out", [False, True])
def test_run_of_another_starter_forbids_a_second_start(etlworks: Etlworks, whose: str, carried_out: bool) -> None:
    etlworks.connect(login="sandbox", password="sandbox")
    etlworks.flow(running=0)
    task = etlworks.task()
    etlworks.sandbox.fault("POST", RUN_PATH, hang_up(carried_out=carried_out))
    start = {"schedule": lambda: etlworks.sandbox.run_by_schedule(FLOW), "another user": etlworks.run_of_somebody_else}
    assert task.store is not None
    task.store.before_the_start = start[whose]

    went = task.run()

    assert isinstance(went.error, EtlworksStartUnknown)
    assert went.error.candidates[-1] == etlworks.sandbox.runs()[0].audit_id
    assert len(went.error.candidates) == 1 + carried_out
    assert etlworks.asked("POST", RUN_PATH) == 1


@pytest.mark.parametrize("carried_out", [False, True])
@pytest.mark.parametrize(
    ("code", "body", "kind"),
    [
        (200, b'{"success": false, "message": "An armed fault"}', EtlworksRefused),
        (302, b"An armed fault", EtlworksError),
        (303, b"An armed fault", EtlworksError),
        (304, b"", EtlworksError),
        (402, b"An armed fault", EtlworksError),
        (418, b"An armed fault", EtlworksError),
    ],
)
def test_answer_that_is_no_certain_refusal_is_reconciled(
    etlworks: Etlworks, code: int, body: bytes, kind: type[Exception], carried_out: bool
) -> None:
    answer = broken_body(body, content_type=JSON, code=code)
    fault = answer if carried_out else status(code, body=body, headers={"Content-Type": JSON})
    etlworks.sandbox.fault("POST", RUN_PATH, fault)

    went = etlworks.task().run()

    assert etlworks.asked("POST", RUN_PATH) == 1
    assert etlworks.warnings("The start is in doubt")
    if carried_out:
        assert went.colour == "success"
    else:
        assert isinstance(went.error, kind)
        assert body.rpartition(b"An armed")[1].decode() in went.report


def test_lost_start_is_reconciled_through_an_outage(etlworks: Etlworks) -> None:
    etlworks.flow(running=3600)
    etlworks.sandbox.fault("POST", RUN_PATH, hang_up())
    task = etlworks.task()
    assert task.store is not None
    task.store.before_the_start = lambda: etlworks.sandbox.fault("GET", HISTORY_PATH, status(503), times=20)

    went = task.run()

    assert went.colour == "success"
    assert etlworks.asked("POST", RUN_PATH) == 1


# --- Whose run is it? -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("carried_out", [False, True])
@pytest.mark.parametrize(
    "shared",
    [{"on_already_running": "wait"}, {"on_already_running": "attach"}, {"run_options": {"parallel": True}}, "mapped"],
    ids=str,
)
def test_run_of_shared_flow_is_not_adopted_without_proof(etlworks: Etlworks, shared: Any, carried_out: bool) -> None:
    etlworks.flow(running=0)
    task = etlworks.task(**({} if shared == "mapped" else shared))
    task.map_index = 3 if shared == "mapped" else -1
    other: list[int] = []
    assert task.store is not None
    # Another task with the same login: nothing in its run's record tells it from ours.
    task.store.before_the_start = lambda: other.append(etlworks.run_of_somebody_else(etlworks.sandbox.login))
    etlworks.sandbox.fault("POST", RUN_PATH, hang_up(carried_out=carried_out))

    went = task.run()

    assert isinstance(went.error, EtlworksStartUnknown)
    assert other[0] in went.error.candidates
    assert "run_key_parameter" in went.report
    assert etlworks.asked("POST", RUN_PATH) == 1


@pytest.mark.parametrize("carried_out", [False, True])
@pytest.mark.parametrize("place", ["record", "log"])
def test_key_tells_runs_of_mapped_tasks_apart(etlworks: Etlworks, place: str, carried_out: bool) -> None:
    etlworks.connect(run_key_parameter="airflowRun")
    etlworks.echo_parameters(place)
    etlworks.flow(running=0)
    tasks = [etlworks.task(parameters={"part": str(number)}) for number in range(2)]
    results: list[Any] = []
    for number, task in enumerate(tasks):
        task.map_index = number
    assert tasks[0].store is not None
    tasks[0].store.before_the_start = lambda: results.append(tasks[1].run())
    # The second task's start is the first to arrive.
    etlworks.sandbox.fault("POST", RUN_PATH, hang_up(carried_out=carried_out), after=1)

    results.append(tasks[0].run())

    runs = {run.audit_id: run.parameters for run in etlworks.sandbox.runs()}
    assert [runs[went.result["audit_id"]]["part"] for went in results] == ["1", "0"]
    assert len(runs) == 2
    assert len({parameters["airflowRun"] for parameters in runs.values()}) == 2
    assert runs[results[1].result["audit_id"]]["airflowRun"].startswith("nightly/run_flow/scheduled__2026-05-09/0/1/")
    etlworks.tries.clear()  # one try was made within the other


def test_parameter_of_the_key_cannot_be_set_by_the_task(etlworks: Etlworks) -> None:
    etlworks.connect(run_key_parameter="airflowRun")

    went = etlworks.task(parameters={"airflowRun": "mine"}).run()

    assert went.colour == "failed for good"
    assert "run_key_parameter" in went.report
    assert etlworks.asked("POST", RUN_PATH) == 0


def test_long_log_is_read_to_a_bound(etlworks: Etlworks) -> None:
    etlworks.connect(run_key_parameter="airflowRun")
    etlworks.echo_parameters("log")
    etlworks.flow(running=0, log=tuple("x" * 1_000_000 for _ in range(20)))
    etlworks.sandbox.fault("POST", RUN_PATH, hang_up())

    assert etlworks.task(on_already_running="wait").run().colour == "success"


# --- The start certainly was not carried out ------------------------------------------------------------------------


def test_unsent_start_is_repeated(etlworks: Etlworks) -> None:
    task = etlworks.task()
    assert task.store is not None
    task.store.before_the_start = lambda: (etlworks.sandbox.stop(), etlworks.clock.at(0.1, etlworks.sandbox.start))

    went = task.run()

    assert went.colour == "success"
    assert etlworks.asked("POST", RUN_PATH) == 1
    assert etlworks.warnings("It did not reach the server.", "Trying again")
    assert etlworks.asked("GET", HISTORY_PATH) == 1  # for the watermark; afterwards there is nothing to look for


def test_unreachable_server_is_named(etlworks: Etlworks) -> None:
    etlworks.sandbox.stop()

    went = etlworks.task().run()

    assert isinstance(went.error, EtlworksUnreachable)
    assert etlworks.sandbox.url in went.report
    assert len(etlworks.warnings("Trying again")) == 3


def test_rate_limited_start_waits(etlworks: Etlworks) -> None:
    etlworks.sandbox.fault("POST", RUN_PATH, status(429, headers={"Retry-After": "30"}))

    went = etlworks.task(wait_for_completion=False).run()

    assert went.colour == "success"
    assert etlworks.asked("POST", RUN_PATH) == 2
    assert etlworks.clock.time() - BEGINNING >= 30


@both_modes
@pytest.mark.parametrize("refusal", REFUSALS)
def test_refused_start_fails_with_the_servers_words(etlworks: Etlworks, refusal: str, deferrable: bool) -> None:
    fault, kind = REFUSALS[refusal]
    etlworks.sandbox.fault("POST", RUN_PATH, fault)

    went = etlworks.task(deferrable=deferrable).run()

    # A retry would have the same credentials and the same role.
    assert went.colour == ("failed for good" if refusal in ("401", "403") else "failed")
    assert isinstance(went.error, kind)
    assert "An armed fault" in went.report
    assert etlworks.asked("POST", RUN_PATH) == 1
    assert etlworks.clock.slept == []


@pytest.mark.parametrize(("code", "colour"), [(4, "success"), (5, "failed")])
def test_start_that_ended_at_once_is_known_by_its_record(etlworks: Etlworks, code: int, colour: str) -> None:
    etlworks.flow(running=0, ends="success" if code == 4 else "error")
    answer = json.dumps({"flowId": FLOW, "auditId": 8721934, "status": code})
    etlworks.sandbox.fault("POST", RUN_PATH, broken_body(answer, content_type=JSON))

    assert etlworks.task().run().colour == colour


def test_failed_start_without_a_run_has_the_reason(etlworks: Etlworks) -> None:
    answer = status(200, body='{"status": 5, "exception": "No such connection"}', headers={"Content-Type": JSON})
    etlworks.sandbox.fault("POST", RUN_PATH, answer)

    went = etlworks.task().run()

    assert isinstance(went.error, EtlworksStartRefused)
    assert "No such connection" in went.report


# --- Another run is going -------------------------------------------------------------------------------------------


@pytest.fixture(params=[False, True], ids=["id not reported", "id reported"])
def busy(etlworks: Etlworks, request: pytest.FixtureRequest) -> int:
    """Let another run be in the way for five minutes; return its audit id."""
    if request.param:
        etlworks.tell_running_audit_id()
    etlworks.flow(running=300)
    return etlworks.run_of_somebody_else()


@both_modes
def test_already_running_fails_by_default_and_names_the_run(etlworks: Etlworks, busy: int, deferrable: bool) -> None:
    went = etlworks.task(deferrable=deferrable).run()

    assert isinstance(went.error, EtlworksAlreadyRunning)
    assert went.error.audit_id == busy
    assert f"run {busy}" in went.report
    assert "alice@example.com" in went.report
    assert "on_already_running" in went.report
    assert etlworks.sandbox.runs_started() == 1


@both_modes
def test_already_running_may_wait_and_then_starts_ours(etlworks: Etlworks, busy: int, deferrable: bool) -> None:
    went = etlworks.task(on_already_running="wait", deferrable=deferrable).run()

    assert went.colour == "success"
    (ours,) = went.accepted
    by_id = {run.audit_id: run for run in etlworks.sandbox.runs()}
    assert by_id[busy].ended is not None
    assert by_id[busy].ended <= by_id[ours].accepted
    assert ("Waiting for its end in the triggerer" in etlworks.log_text) == deferrable


def test_deferrable_task_waits_in_the_triggerer(etlworks: Etlworks, busy: int) -> None:
    task = etlworks.task(on_already_running="wait", deferrable=True, timeout=5000)

    with pytest.raises(TaskDeferred) as deferred:
        task.operator().execute(task.next_try())  # type: ignore[arg-type]

    assert deferred.value.method_name == "execute_when_free"
    assert deferred.value.kwargs == {}
    _, stored = deferred.value.trigger.serialize()
    assert (stored["audit_id"], stored["cancel_on_kill"]) == (busy, False)
    assert stored["deadline"] == BEGINNING + 5000
    assert stored["root_url"] == etlworks.sandbox.url
    assert task.store is not None
    assert task.store.kept == {}
    assert etlworks.sandbox.runs_started() == 1


def test_flow_that_is_taken_again_is_waited_for_again(etlworks: Etlworks, busy: int) -> None:
    task = etlworks.task(on_already_running="wait", deferrable=True)
    with pytest.raises(TaskDeferred) as deferred:
        task.operator().execute(task.next_try())  # type: ignore[arg-type]
    etlworks.sandbox.finish(busy)
    event = asyncio.run(only_event(stored_and_loaded(deferred.value.trigger)))
    other = etlworks.run_of_somebody_else()

    with pytest.raises(TaskDeferred) as again:
        task.operator().execute_when_free(task.context(), event=event)  # type: ignore[arg-type]

    _, stored = again.value.trigger.serialize()
    assert stored["audit_id"] == other
    assert etlworks.sandbox.runs_started() == 2


def test_killed_wait_in_the_triggerer_stops_nothing(etlworks: Etlworks, busy: int) -> None:
    task = etlworks.task(on_already_running="wait", deferrable=True)
    with pytest.raises(TaskDeferred) as deferred:
        task.operator().execute(task.next_try())  # type: ignore[arg-type]

    asyncio.run(stored_and_loaded(deferred.value.trigger).on_kill())

    assert etlworks.asked("POST", STOP_PATH) == 0
    etlworks.sandbox.finish(busy)
    assert task.run().colour == "success"


@pytest.mark.parametrize("store", [True, False])
def test_retry_of_a_waiting_task_starts_one_run(etlworks: Etlworks, busy: int, store: bool) -> None:
    task = etlworks.task(on_already_running="wait", deferrable=True, store=store)
    with pytest.raises(TaskDeferred):
        task.operator().execute(task.next_try())  # type: ignore[arg-type]
    etlworks.sandbox.finish(busy)

    went = task.run()

    assert went.colour == "success"
    assert len(went.accepted) == 1
    assert etlworks.sandbox.runs_started() == 2


@both_modes
def test_wait_for_another_run_ends_at_the_timeout(etlworks: Etlworks, busy: int, deferrable: bool) -> None:
    went = etlworks.task(on_already_running="wait", timeout=120, deferrable=deferrable).run()

    assert isinstance(went.error, EtlworksExecutionTimeout)
    assert f"Run {busy}, in its way" in went.report
    assert [run.audit_id for run in etlworks.sandbox.runs()] == [busy]
    assert etlworks.asked("POST", STOP_PATH) == 0


@both_modes
def test_already_running_may_attach(etlworks: Etlworks, busy: int, deferrable: bool) -> None:
    went = etlworks.task(on_already_running="attach", deferrable=deferrable).run()

    assert went.colour == "success"
    assert went.result is not None
    assert went.result["audit_id"] == busy
    assert etlworks.sandbox.runs_started() == 1
    assert "it is not ours" in etlworks.log_text


@both_modes
def test_attached_run_is_never_stopped(etlworks: Etlworks, busy: int, deferrable: bool) -> None:
    went = etlworks.task(on_already_running="attach", deferrable=deferrable, timeout=60).run()

    assert isinstance(went.error, EtlworksExecutionTimeout)
    assert "left going" in went.report
    assert str(busy) in went.report
    assert etlworks.asked("POST", STOP_PATH) == 0


def test_older_active_run_is_found_behind_a_newer_run(etlworks: Etlworks) -> None:
    # Runs of schedules may overlap.
    older, newer = (etlworks.sandbox.run_by_schedule(FLOW) for _ in range(2))
    etlworks.sandbox.finish(newer)

    went = etlworks.task(on_already_running="attach").run()

    assert went.result is not None
    assert went.result["audit_id"] == older


def test_already_running_may_skip(etlworks: Etlworks, busy: int) -> None:
    went = etlworks.task(on_already_running="skip").run()

    assert went.colour == "skipped"
    assert [run.audit_id for run in etlworks.sandbox.runs()] == [busy]


@pytest.mark.parametrize("policy", ["fail", "wait", "attach"])
def test_stopping_run_is_not_in_the_way(etlworks: Etlworks, busy: int, policy: str) -> None:
    etlworks.sandbox._organization.runs.find(busy).stopped_at = etlworks.clock.time()  # type: ignore[union-attr]
    etlworks.sandbox._organization.runs.find(busy).stop_takes = 90  # type: ignore[union-attr]

    went = etlworks.task(on_already_running=policy).run()

    assert went.colour == "success"
    assert went.result is not None
    assert [went.result["audit_id"]] == went.accepted
    assert "is being stopped; waiting for its end" in etlworks.log_text


@pytest.mark.parametrize("policy", ["fail", "attach"])
def test_hidden_run_is_not_waited_for_without_limit(etlworks: Etlworks, policy: str) -> None:
    etlworks.flow(running=86_400, visible_after=86_400)
    etlworks.run_of_somebody_else()
    etlworks.flow(running=86_400)
    etlworks.sandbox.finish(etlworks.run_of_somebody_else())  # the newest has ended, a hidden one goes on

    went = etlworks.task(on_already_running=policy).run()

    assert isinstance(went.error, EtlworksAlreadyRunning)
    assert etlworks.clock.time() - BEGINNING < 600
    assert went.accepted == []


def test_run_that_just_ended_is_not_in_the_way(etlworks: Etlworks, busy: int) -> None:
    etlworks.sandbox.finish(busy)
    answer = status(200, body='{"flowId": 7, "status": 1}', headers={"Content-Type": JSON})
    etlworks.sandbox.fault("POST", RUN_PATH, answer)

    went = etlworks.task().run()

    assert went.colour == "success"
    assert etlworks.asked("POST", RUN_PATH) == 2


def test_already_running_after_a_lost_start_is_our_own_run(etlworks: Etlworks) -> None:
    etlworks.flow(running=600, visible_after=100)  # not seen within the grace
    etlworks.sandbox.fault("POST", RUN_PATH, hang_up())

    went = etlworks.task().run()

    assert went.colour == "success"
    assert etlworks.asked("POST", RUN_PATH) == 2
    assert len(went.accepted) == 1


# --- Parameters and names -------------------------------------------------------------------------------------------


def test_parameters_arrive_as_flat_texts(etlworks: Etlworks) -> None:
    task = etlworks.task(
        parameters={"runDate": "{{ ds }}", "rows": 3, "factor": 1.5, "full": True, "city": "Zürich — 東京", "empty": ""}
    )
    operator = task.operator()
    operator.render_template_fields({"ds": "2026-05-09"})
    operator.execute(task.next_try())

    (run,) = etlworks.sandbox.runs()
    assert run.parameters == {
        "runDate": "2026-05-09",
        "rows": "3",
        "factor": "1.5",
        "full": "true",
        "city": "Zürich — 東京",
        "empty": "",
    }


def test_run_options_travel_in_the_url_and_parameters_do_not(etlworks: Etlworks) -> None:
    etlworks.task(run_options={"parallel": True}, parameters={"secretWord": "swordfish"}, flow_name=FLOW_NAME).run()

    (start,) = [each for each in etlworks.sandbox.requests if each.path == RUN_PATH]
    assert start.query == {"parallel": ["true"]}
    assert json.loads(start.body) == {"secretWord": "swordfish"}
    assert "swordfish" not in etlworks.log_text
    assert "secretWord" in etlworks.log_text


# --- Every tenth request fails --------------------------------------------------------------------------------------


class EveryTenthFails:
    """Lets every tenth request fail in a random, reproducible way. Takes the place of the sandbox's faults."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)  # noqa: S311  # no secret
        self._fails = EveryNth(10)
        self._faults = {
            **{f"{code} instead": status(code) for code in (408, 500, 502, 503, 504)},
            "429": status(429, headers={"Retry-After": "5"}),
            "too late": delay(TOO_LATE),
            "carried out by nobody, and too late": hang_up(carried_out=False, delay=TOO_LATE),
            "slow": delay(0.01),
            "dropped": hang_up(),
            "dropped before": hang_up(carried_out=False),
            "cut off": truncated(),
            **{f"HTML with {code}": broken_body(code=code) for code in (200, 502, 503)},
            "half a document": broken_body(b'{"flowId": 7, "aud', content_type=JSON),
        }
        self.untried = list(self._faults)

    def take(self, method: str, path: str) -> Fault | None:
        if not self._fails.picks(method, path):
            return None
        kind = self._random.choice(list(self._faults))
        if kind in self.untried:
            self.untried.remove(kind)
        return self._faults[kind]


def test_300_runs_with_a_fault_on_every_tenth_request(etlworks: Etlworks) -> None:
    etlworks.connect(login="sandbox", password="sandbox", read_timeout=0.5)
    etlworks.logged.set_level("INFO")
    endings = ("success", "warning", "error", "canceled")
    for number, ends in enumerate(endings, start=1):
        etlworks.sandbox.add_flow(SandboxFlow(number, f"Ends in {ends}", queued=1, running=25, ends=ends))
    faults = EveryTenthFails(seed=20260509)
    etlworks.sandbox._faults = faults  # type: ignore[assignment]
    colours = {"success": "success", "warning": "success", "error": "failed", "canceled": "failed for good"}

    for number in range(300):
        ends = endings[number % 4]
        named: dict[str, Any] = (
            {"flow_name": f"Ends in {ends}"} if number % 3 == 0 else {"flow_id": endings.index(ends) + 1}
        )
        task = etlworks.task(**named, deferrable=number % 2 == 0, log_lines=3)
        before = etlworks.sandbox.runs_started()

        went = _with_retries(task)

        assert etlworks.sandbox.runs_started() == before + 1, f"run {number} ({ends}): {went.error}"
        assert went.colour == colours[ends], f"run {number} ({ends}): {went.error}"
        assert task.xcoms["audit_id"] == etlworks.sandbox.runs()[-1].audit_id

    assert etlworks.sandbox.runs_started() == 300
    assert faults.untried == [], "not every kind of fault was met"


def _with_retries(task: Task) -> Any:
    """Retry as Airflow does, but for a run that has ended badly."""
    for _ in range(3):
        went = task.run()
        if went.colour != "failed" or isinstance(went.error, EtlworksExecutionFailed):
            break
    return went
