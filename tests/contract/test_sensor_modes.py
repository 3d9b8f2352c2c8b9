"""The sensor: the same state, the same result and the same requests in each of its modes."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import pytest
from airflow.exceptions import AirflowException
from support.clock import BEGINNING
from support.sensor import MODES, POKE_INTERVAL, Waiting
from support.state import StateStore
from support.task import FLOW, RECORD_PATH

from airflow_provider_etlworks.client.errors import EtlworksExecutionFailed, EtlworksLostTouch
from airflow_provider_etlworks.compat import AirflowFailException, AirflowSensorTimeout, AirflowTaskTimeout
from airflow_provider_etlworks.sandbox import broken_body, hang_up, status
from airflow_provider_etlworks.sensors.flow import EtlworksFlowExecutionSensor

if TYPE_CHECKING:
    from support.etlworks import Etlworks

NIGHTLY = "0 0 4 * * ?"

modes = pytest.mark.parametrize("mode", MODES)


@pytest.fixture
def waiting(etlworks: Etlworks, monkeypatch: pytest.MonkeyPatch) -> Waiting:
    return Waiting(etlworks, monkeypatch)


def iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, tz=timezone.utc).isoformat()


# --- Colours and results --------------------------------------------------------------------------------------------

ENDINGS = [
    ("success", False, "success"),
    ("warning", False, "success"),
    ("warning", True, "failed"),
    ("error", False, "failed"),
    ("canceled", False, "failed for good"),
]


@pytest.mark.parametrize("running", [0, 62])
@pytest.mark.parametrize("by", ["audit_id", "since"])
@pytest.mark.parametrize(("ends", "fail_on_warning", "colour"), ENDINGS)
def test_every_mode_ends_like_the_run(
    etlworks: Etlworks, waiting: Waiting, ends: str, fail_on_warning: bool, colour: str, by: str, running: int
) -> None:
    etlworks.flow(running=running, ends=ends, records=7, exception="it broke")
    went = {}
    for mode in MODES:
        began = etlworks.clock.time()
        audit_id = etlworks.sandbox.run_by_user(FLOW)
        which = {"audit_id": str(audit_id)} if by == "audit_id" else {"since": iso(began)}
        went[mode] = wait = waiting.run(mode, fail_on_warning=fail_on_warning, **which)

        assert wait.colour == colour, mode
        assert (wait.event is not None) == (mode == "deferrable" and running > 0)
        assert wait.xcoms["audit_id"] == audit_id
        assert str(audit_id) in wait.xcoms["_link_EtlworksExecutionLink"]
        if colour == "success":
            assert wait.result == {
                "flow_id": FLOW,
                "audit_id": audit_id,
                "status": ends,
                "started_at": iso(began),
                "ended_at": iso(began + running),
                "duration_seconds": float(running),
                "records": 7,
                "url": f"{etlworks.sandbox.url}/ui/flows/{FLOW}/runs/{audit_id}",
            }
        else:
            failed = wait.error
            assert isinstance(failed, EtlworksExecutionFailed)
            assert f"ended: {ends}" in str(failed)
        etlworks.clock.sleep(1)
    reads = [wait.reads for wait in went.values()]
    assert max(reads) - min(reads) <= 1
    assert min(reads) == 1 + -(-running // POKE_INTERVAL)


@modes
def test_later_run_is_waited_for(etlworks: Etlworks, waiting: Waiting, mode: str) -> None:
    etlworks.flow(running=20)
    etlworks.clock.at(300, lambda: etlworks.sandbox.run_by_schedule(FLOW))

    wait = waiting.run(mode, since=iso(BEGINNING))

    (run,) = etlworks.sandbox.runs()
    assert (wait.colour, wait.result["audit_id"]) == ("success", run.audit_id)
    assert abs(wait.reads - (1 + 325 // POKE_INTERVAL)) <= 1


@modes
def test_run_before_since_never_counts(etlworks: Etlworks, waiting: Waiting, mode: str) -> None:
    etlworks.flow(running=600)
    etlworks.sandbox.run_by_user(FLOW)
    etlworks.clock.sleep(100)
    since = etlworks.clock.time()
    etlworks.clock.at(1000, lambda: etlworks.sandbox.run_by_user(FLOW))

    wait = waiting.run(mode, since=iso(since))

    assert wait.result["audit_id"] == etlworks.sandbox.runs()[-1].audit_id
    assert wait.result["started_at"] >= iso(since)


@modes
def test_newest_run_counts(etlworks: Etlworks, waiting: Waiting, mode: str) -> None:
    etlworks.flow(running=30, ends="error")
    etlworks.sandbox.run_by_user(FLOW)

    def another() -> None:
        etlworks.flow(running=300)
        etlworks.sandbox.run_by_user(FLOW)

    etlworks.clock.at(20, another)

    wait = waiting.run(mode, since=iso(BEGINNING))

    assert (wait.colour, wait.result["audit_id"]) == ("success", etlworks.sandbox.runs()[-1].audit_id)


@modes
def test_run_canceled_in_the_queue_does_not_count(etlworks: Etlworks, waiting: Waiting, mode: str) -> None:
    good = etlworks.sandbox.run_by_user(FLOW)
    etlworks.clock.sleep(60)
    etlworks.flow(queued=3600)
    etlworks.sandbox.finish(etlworks.sandbox.run_by_user(FLOW), "canceled")

    wait = waiting.run(mode, since=iso(BEGINNING))

    assert (wait.colour, wait.result["audit_id"]) == ("success", good)


@modes
def test_run_of_a_message_is_waited_for(etlworks: Etlworks, waiting: Waiting, mode: str) -> None:
    etlworks.flow(running=30, listener="orders/new")
    waiting_for = post(etlworks)
    etlworks.flow(running=30, listener="orders/new", ends="error")
    post(etlworks)

    wait = waiting.run(mode, message_uuid=waiting_for["messageUuid"])

    assert wait.result["audit_id"] == etlworks.sandbox.runs()[0].audit_id


def post(etlworks: Etlworks) -> Any:
    from airflow_provider_etlworks.hooks.etlworks import EtlworksHook

    return EtlworksHook().send_to_listener("orders/new", b"{}")


# --- Since -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("extras", "since"),
    [
        ({"data_interval_start": BEGINNING + 10, "logical_date": BEGINNING + 20}, BEGINNING + 10),
        ({"data_interval_start": None, "logical_date": BEGINNING + 20}, BEGINNING + 20),
        ({"logical_date": None}, BEGINNING),
        ({}, BEGINNING),
    ],
)
def test_default_since_is_the_data_start(
    etlworks: Etlworks, waiting: Waiting, extras: dict[str, float | None], since: float
) -> None:
    moments = {name: value and datetime.fromtimestamp(value, timezone.utc) for name, value in extras.items()}
    waiting.context_extras = moments

    wait = waiting.run("deferrable", timeout=60)

    assert wait.deferred is not None
    assert wait.deferred.trigger.since == iso(since)


@pytest.mark.parametrize(
    "since",
    [
        "2027-01-15T08:00:00Z",
        "2027-01-15 08:00:00+00:00",
        "2027-01-15T09:00:00+01:00",
        "2027-01-15T08:00:00",
        datetime(2027, 1, 15, 8, tzinfo=timezone.utc),
        datetime(2027, 1, 15, 8),
    ],
)
def test_since_is_read_in_every_form(etlworks: Etlworks, waiting: Waiting, since: Any) -> None:
    assert datetime(2027, 1, 15, 8, tzinfo=timezone.utc).timestamp() == BEGINNING
    wait = waiting.run("deferrable", since=since, timeout=60)

    assert wait.deferred is not None
    assert wait.deferred.trigger.since == "2027-01-15T08:00:00+00:00"


# --- Repetitions by Etlworks ----------------------------------------------------------------------------------------


@modes
@pytest.mark.parametrize("by", ["audit_id", "since"])
@pytest.mark.parametrize("again", ["success", "error"])
def test_last_repetition_counts(etlworks: Etlworks, waiting: Waiting, mode: str, by: str, again: str) -> None:
    etlworks.flow(running=30, ends="error", schedule=NIGHTLY)
    first = etlworks.sandbox.run_by_schedule(FLOW)
    repeats(etlworks, at=100, of=first, ends="error")
    repeats(etlworks, at=200, of=first + 1, ends=again)
    which = {"audit_id": first} if by == "audit_id" else {"since": iso(BEGINNING)}

    wait = waiting.run(mode, repetition_grace=120, **which)

    assert wait.colour == {"success": "success", "error": "failed"}[again]
    reported = wait.result["audit_id"] if again == "success" else wait.error.execution.audit_id
    assert reported == first + 2


@modes
def test_error_fails_at_once_if_no_schedule_repeats_it(etlworks: Etlworks, waiting: Waiting, mode: str) -> None:
    etlworks.flow(running=30, ends="error")
    run = etlworks.sandbox.run_by_user(FLOW)

    wait = waiting.run(mode, audit_id=run, repetition_grace=3600)

    assert wait.colour == "failed"
    assert etlworks.clock.time() <= BEGINNING + 30 + 2 * POKE_INTERVAL


@modes
def test_error_of_a_schedules_run_fails_after_the_grace(etlworks: Etlworks, waiting: Waiting, mode: str) -> None:
    etlworks.flow(running=30, ends="error", schedule=NIGHTLY)
    run = etlworks.sandbox.run_by_schedule(FLOW)

    wait = waiting.run(mode, audit_id=run, repetition_grace=60)

    assert wait.colour == "failed"
    assert BEGINNING + 90 <= etlworks.clock.time() <= BEGINNING + 90 + 2 * POKE_INTERVAL


def repeats(etlworks: Etlworks, *, at: float, of: int, ends: str) -> None:
    """Let Etlworks repeat a run at a certain time: the new run's record names the run that it repeats."""

    def repeat() -> None:
        etlworks.flow(running=30, ends=ends, schedule=NIGHTLY)
        audit_id = etlworks.sandbox.run_by_schedule(FLOW)
        run = etlworks.sandbox._run(audit_id)
        record, report_entry = run.record, run.report_entry
        run.record = lambda now: {**record(now), "parentAuditId": of}
        run.report_entry = report_entry

    etlworks.clock.at(at, repeat)


# --- Faults ---------------------------------------------------------------------------------------------------------


@modes
@pytest.mark.parametrize("fault", [status(500), hang_up(), broken_body(), status(429), status(408)], ids=str)
def test_transient_fault_never_fails_the_task(etlworks: Etlworks, waiting: Waiting, mode: str, fault: Any) -> None:
    etlworks.flow(running=60)
    run = etlworks.sandbox.run_by_user(FLOW)
    etlworks.sandbox.fault("GET", RECORD_PATH, fault, times=3, after=1)

    wait = waiting.run(mode, audit_id=run)

    assert (wait.colour, wait.result["audit_id"]) == ("success", run)
    assert etlworks.warnings("polling continues")


@modes
@pytest.mark.parametrize("code", [401, 403, 400])
def test_refusal_fails_at_once(etlworks: Etlworks, waiting: Waiting, mode: str, code: int) -> None:
    etlworks.flow(running=600)
    run = etlworks.sandbox.run_by_user(FLOW)
    etlworks.sandbox.fault("GET", RECORD_PATH, status(code), times=None, after=1)

    wait = waiting.run(mode, audit_id=run, soft_fail=True)

    assert wait.colour == "failed"
    assert isinstance(wait.error, EtlworksLostTouch)
    assert str(code) in wait.report
    assert etlworks.clock.time() <= BEGINNING + 2 * POKE_INTERVAL


@pytest.mark.parametrize(("mode", "store"), [("poke", False), ("reschedule", True), ("deferrable", False)])
def test_permanent_fault_ends_the_wait_after_the_patience(
    etlworks: Etlworks, waiting: Waiting, mode: str, store: bool
) -> None:
    waiting.store = StateStore() if store else None
    etlworks.flow(running=86_400)
    run = etlworks.sandbox.run_by_user(FLOW)
    etlworks.sandbox.fault("GET", RECORD_PATH, status(503), times=20, after=1)
    etlworks.sandbox.fault("GET", RECORD_PATH, status(503), times=None, after=3)

    wait = waiting.run(mode, audit_id=run, patience=300)

    assert isinstance(wait.error, EtlworksLostTouch)
    assert "503" in wait.report
    assert 300 <= etlworks.clock.time() - BEGINNING <= 1200


def test_rescheduled_task_without_store_waits_to_its_timeout(etlworks: Etlworks, waiting: Waiting) -> None:
    etlworks.sandbox.run_by_user(FLOW)
    etlworks.sandbox.fault("GET", RECORD_PATH, status(503), times=None)

    wait = waiting.run("reschedule", patience=30, timeout=600)

    assert isinstance(wait.error, AirflowSensorTimeout)


@pytest.mark.parametrize(("mode", "store"), [("poke", False), ("reschedule", True), ("deferrable", False)])
def test_unknown_run_fails_after_the_grace(etlworks: Etlworks, waiting: Waiting, mode: str, store: bool) -> None:
    waiting.store = StateStore() if store else None

    wait = waiting.run(mode, audit_id=4711)

    assert isinstance(wait.error, EtlworksLostTouch)
    assert "4711" in wait.report
    assert 60 <= etlworks.clock.time() - BEGINNING < 120


@modes
def test_rotated_password_is_read_again(
    etlworks: Etlworks, waiting: Waiting, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from airflow_provider_etlworks.sandbox import tokens

    etlworks.connect(login="sandbox", password="sandbox")
    etlworks.flow(running=100)
    run = etlworks.sandbox.run_by_user(FLOW)

    def rotate() -> None:
        monkeypatch.setattr(tokens, "PASSWORD", "rotated")
        etlworks.sandbox.revoke_tokens()
        etlworks.connect(login="sandbox", password="rotated")

    etlworks.clock.at(50, rotate)

    assert waiting.run(mode, audit_id=run).colour == "success"


@modes
@pytest.mark.parametrize("running", [0, 30])
def test_secret_in_a_runs_error_is_redacted(etlworks: Etlworks, waiting: Waiting, mode: str, running: int) -> None:
    etlworks.flow(running=running, ends="error", exception="Cannot log in to warehouse with key sandbox-key")
    run = etlworks.sandbox.run_by_user(FLOW)

    wait = waiting.run(mode, audit_id=run)

    assert "Cannot log in to warehouse with key ***" in wait.report
    visible = [wait.report, str(wait.event), str(wait.xcoms), etlworks.log_text]
    assert [text for text in visible if "sandbox-key" in text] == []


# --- Time-outs, skipping --------------------------------------------------------------------------------------------


@modes
@pytest.mark.parametrize("found", [True, False])
@pytest.mark.parametrize("soft_fail", [True, False])
def test_timeout_ends_the_wait_and_stops_nothing(
    etlworks: Etlworks, waiting: Waiting, mode: str, found: bool, soft_fail: bool
) -> None:
    etlworks.flow(running=86_400)
    if found:
        etlworks.sandbox.run_by_user(FLOW)

    wait = waiting.run(mode, since=iso(BEGINNING), timeout=600, soft_fail=soft_fail)

    assert wait.colour == ("skipped" if soft_fail else "timed out")
    assert soft_fail or isinstance(wait.error, AirflowSensorTimeout)
    assert 600 <= etlworks.clock.time() - BEGINNING <= 600 + 2 * POKE_INTERVAL
    assert not any(run.stop_requested for run in etlworks.sandbox.runs())


def test_execution_timeout_holds_while_deferred(etlworks: Etlworks, waiting: Waiting) -> None:
    wait = waiting.run("deferrable", execution_timeout=timedelta(seconds=120))

    assert isinstance(wait.error, AirflowTaskTimeout)
    assert "execution_timeout (120 s)" in wait.report


def test_airflow_ends_a_trigger_after_its_deadline(etlworks: Etlworks, waiting: Waiting) -> None:
    etlworks.clock.sleep(0)
    wait = waiting.run("deferrable", timeout=600)

    assert wait.deferred is not None
    assert wait.deferred.timeout is not None
    assert wait.deferred.trigger.deadline == BEGINNING + 600
    assert wait.deferred.timeout.total_seconds() == 720


@modes
@pytest.mark.parametrize("running", [0, 30])
@pytest.mark.parametrize("skipping", ["soft_fail", "never_fail"])
@pytest.mark.parametrize("ends", ["error", "canceled"])
def test_bad_end_skips_if_asked(
    etlworks: Etlworks, waiting: Waiting, mode: str, running: int, skipping: str, ends: str
) -> None:
    etlworks.flow(running=running, ends=ends)
    run = etlworks.sandbox.run_by_user(FLOW)

    wait = waiting.run(mode, audit_id=run, **{skipping: True})

    assert wait.colour == "skipped"


@modes
@pytest.mark.parametrize("code", [403])
def test_never_fail_skips_after_a_refusal(etlworks: Etlworks, waiting: Waiting, mode: str, code: int) -> None:
    etlworks.flow(running=600)
    run = etlworks.sandbox.run_by_user(FLOW)
    etlworks.sandbox.fault("GET", RECORD_PATH, status(code), times=None, after=1)

    assert waiting.run(mode, audit_id=run, never_fail=True).colour == "skipped"


@modes
def test_silent_fail_does_not_hide_a_bad_end(etlworks: Etlworks, waiting: Waiting, mode: str) -> None:
    etlworks.flow(running=30, ends="error")
    run = etlworks.sandbox.run_by_user(FLOW)

    wait = waiting.run(mode, audit_id=run, silent_fail=True)

    assert wait.colour == "failed for good"
    assert etlworks.clock.time() < BEGINNING + 60


# --- Arguments ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"audit_id": 1, "since": "2026-05-09"}, "give one of"),
        ({"audit_id": 1, "message_uuid": "x"}, "give one of"),
        ({"poke_interval": 0}, "poke_interval is 0"),
        ({"patience": float("inf")}, "patience is inf"),
        ({"patience": float("nan")}, "patience is nan"),
        ({"patience": timedelta(0)}, "greater than 0"),
        ({"patience": "300"}, "patience is '300'"),
        ({"patience": True}, "patience is True"),
        ({"repetition_grace": float("nan")}, "repetition_grace is nan"),
        ({"repetition_grace": -1}, "0 or more"),
        ({"repetition_grace": timedelta(seconds=-1)}, "0 or more"),
    ],
)
def test_invalid_arguments_are_refused_at_parse_time(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EtlworksFlowExecutionSensor(task_id="wait", flow_id=FLOW, **arguments)


@pytest.mark.parametrize("name", ["poke_interval", "timeout"])
def test_nan_is_refused_at_parse_time_by_airflow(name: str) -> None:
    with pytest.raises((ValueError, AirflowException), match=name):  # the latter with Airflow 2
        EtlworksFlowExecutionSensor(task_id="wait", flow_id=FLOW, **{name: float("nan")})


@modes
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"flow_id": "nightly"}, "flow_id is 'nightly'"),
        ({"audit_id": "None"}, "audit_id is 'None'"),
        ({"message_uuid": " "}, "message_uuid is ' '"),
        ({"message_uuid": "a\0b"}, "message_uuid is 'a\\x00b'"),
        ({"message_uuid": "a\ud800"}, "message_uuid is 'a\\ud800'"),
        ({"message_uuid": 7}, "message_uuid is 7"),
        ({"since": "yesterday"}, "since is 'yesterday'"),
    ],
)
def test_invalid_template_results_are_refused_before_sending(
    etlworks: Etlworks, waiting: Waiting, mode: str, arguments: Any, message: str
) -> None:
    wait = waiting.run(mode, **arguments)

    assert wait.colour == "failed for good"
    assert message in wait.report
    assert etlworks.sandbox.requests == []


def test_audit_id_that_renders_to_none_is_refused(etlworks: Etlworks) -> None:
    sensor = EtlworksFlowExecutionSensor(task_id="wait", flow_id=FLOW, audit_id="{{ none }}")
    sensor.audit_id = None  # what native rendering makes of it

    with pytest.raises(AirflowFailException, match="audit_id is None"):
        sensor.poke({})  # type: ignore[typeddict-item]
    assert etlworks.sandbox.requests == []


@modes
def test_durations_may_be_timedeltas(etlworks: Etlworks, waiting: Waiting, mode: str) -> None:
    etlworks.flow(running=30, ends="error", schedule=NIGHTLY)
    run = etlworks.sandbox.run_by_schedule(FLOW)

    wait = waiting.run(
        mode,
        audit_id=run,
        timeout=timedelta(minutes=10),
        patience=timedelta(minutes=5),
        repetition_grace=timedelta(minutes=1),
    )

    assert wait.colour == "failed"
    assert BEGINNING + 90 <= etlworks.clock.time() <= BEGINNING + 90 + 2 * POKE_INTERVAL
    if wait.deferred is not None:
        assert (wait.deferred.trigger.patience, wait.deferred.trigger.repetition_grace) == (300, 60)
