"""How a run ends is how its task ends: on every path, by id and by name, with the same result."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import pytest
from support.clock import BEGINNING
from support.task import FLOW, FLOW_NAME, RECORD_PATH, record_of

from airflow_provider_etlworks.client.errors import EtlworksExecutionFailed, EtlworksLostTouch
from airflow_provider_etlworks.sandbox import broken_body

if TYPE_CHECKING:
    from support.etlworks import Etlworks

# status of the run, fail_on_warning, colour of the task
ENDINGS = [
    ("success", False, "success"),
    ("success", True, "success"),
    ("warning", False, "success"),
    ("warning", True, "failed"),
    ("error", False, "failed"),
    ("canceled", False, "failed for good"),
]
# What the server writes, and the colour; a record that has an end has ended, whatever its status says.
ODD_ENDINGS = [
    ("SUCCESS", "success"),
    (" Warning ", "success"),
    ("Error", "failed"),
    ("archived", "failed"),
    (None, "failed"),
    (4, "failed"),
    ({"code": "success"}, "failed"),
]
# Every way a task comes to know how its run ended.
PATHS = {
    "sync": {"running": 30, "deferrable": False},
    "deferrable": {"running": 30, "deferrable": True},
    "ended before it is deferred": {"running": 0, "deferrable": True},
    "ended at the first look": {"running": 0, "deferrable": False},
}
NAMED = {"by id": {"flow_id": FLOW}, "by name": {"flow_name": FLOW_NAME}}

paths = pytest.mark.parametrize("path", PATHS)


@pytest.mark.parametrize("named", NAMED)
@paths
@pytest.mark.parametrize(("ends", "fail_on_warning", "colour"), ENDINGS)
def test_task_ends_as_its_run(
    etlworks: Etlworks, ends: str, fail_on_warning: bool, colour: str, path: str, named: str
) -> None:
    running, deferrable = PATHS[path]["running"], bool(PATHS[path]["deferrable"])
    etlworks.flow(running=running, ends=ends, records=1532, exception="ORA-00942: no such table")
    began = etlworks.clock.time()

    went = etlworks.task(**NAMED[named], deferrable=deferrable, fail_on_warning=fail_on_warning).run()

    assert went.colour == colour
    assert (went.event is not None) == (deferrable and running > 0)
    (run,) = etlworks.sandbox.runs()
    url = f"{etlworks.sandbox.url}/ui/flows/{FLOW}/runs/{run.audit_id}"
    if colour == "success":
        assert went.result == {
            "flow_id": FLOW,
            "audit_id": run.audit_id,
            "status": ends,
            "started_at": datetime.fromtimestamp(began, tz=timezone.utc).isoformat(),
            "ended_at": datetime.fromtimestamp(began + running, tz=timezone.utc).isoformat(),
            "duration_seconds": float(running),
            "records": 1532,
            "url": url,
        }
        assert bool(etlworks.warnings("ended with a warning")) == (ends == "warning")
    else:
        assert f"ended: {ends}" in went.report
        assert url in went.report
        assert isinstance(went.error, EtlworksExecutionFailed)
        assert (went.error.execution.status, went.error.execution.audit_id) == (ends, run.audit_id)
    if ends == "error":
        assert "ORA-00942: no such table" in went.report


@paths
@pytest.mark.parametrize(("status", "colour"), ODD_ENDINGS)
def test_only_success_is_green(etlworks: Etlworks, status: Any, colour: str, path: str) -> None:
    running, deferrable = PATHS[path]["running"], bool(PATHS[path]["deferrable"])
    etlworks.flow(running=running)
    first = 8721934
    record = record_of(first, status=status, started=1_800_000_000_000, ended=1_800_000_030_000)
    looks_before = 1 + (2 if running else 0)  # the look for the watermark, then those at a run that still goes
    etlworks.sandbox.fault(
        "GET",
        RECORD_PATH,
        broken_body(json.dumps(record), content_type="application/json"),
        times=None,
        after=looks_before,
    )

    went = etlworks.task(deferrable=deferrable).run()

    assert went.colour == colour
    assert etlworks.sandbox.runs()[0].audit_id == first


@pytest.mark.parametrize("deferrable", [False, True])
@pytest.mark.parametrize("status", ["archiving", None, 17, []])
def test_unknown_status_is_never_green(etlworks: Etlworks, status: Any, deferrable: bool) -> None:
    etlworks.flow(running=1)
    record = record_of(8721934, status=status, started=1_800_000_000_000)
    etlworks.sandbox.fault(
        "GET", RECORD_PATH, broken_body(json.dumps(record), content_type="application/json"), times=None, after=1
    )

    went = etlworks.task(deferrable=deferrable, patience=300).run()

    assert went.colour == "failed"
    assert isinstance(went.error, EtlworksLostTouch)
    assert "a status that is not known here" in went.report
    assert "8721934" in went.report
    assert 300 <= etlworks.clock.time() - BEGINNING < 600


@pytest.mark.parametrize("deferrable", [False, True])
@pytest.mark.parametrize("ends", ["success", "error", "canceled"])
def test_task_that_does_not_wait_is_green_at_once(etlworks: Etlworks, deferrable: bool, ends: str) -> None:
    etlworks.flow(running=3600, ends=ends)

    task = etlworks.task(wait_for_completion=False, deferrable=deferrable)
    went = task.run()

    (run,) = etlworks.sandbox.runs()
    assert went.colour == "success"
    assert went.deferred is None
    assert went.result == {
        "flow_id": FLOW,
        "audit_id": run.audit_id,
        "status": None,
        "started_at": None,
        "ended_at": None,
        "duration_seconds": None,
        "records": None,
        "url": f"{etlworks.sandbox.url}/ui/flows/{FLOW}/runs/{run.audit_id}",
    }
    assert task.xcoms["audit_id"] == run.audit_id
    assert etlworks.clock.time() == BEGINNING


@paths
def test_bad_end_shows_the_end_of_the_flow_log(etlworks: Etlworks, path: str) -> None:
    lines = tuple(f"step {number}" for number in range(1, 31))
    etlworks.flow(running=PATHS[path]["running"], ends="error", log=lines, exception="Disk full")

    etlworks.task(deferrable=bool(PATHS[path]["deferrable"]), log_lines=5).run()

    told = [line for line in etlworks.log_text.splitlines() if line.startswith("  | ")]
    assert len(told) == 5
    assert "step 30" in "\n".join(told)
    assert "Disk full" in "\n".join(told)


def test_no_log_is_read_unless_wanted_and_failed(etlworks: Etlworks) -> None:
    etlworks.flow(running=0, ends="error")
    etlworks.task(log_lines=0).run()
    etlworks.flow(running=0, ends="success")
    etlworks.task().run()

    assert etlworks.asked("GET", "/rest/v1/executions/console/download") == 0


@pytest.mark.parametrize("deferrable", [False, True])
def test_unreadable_log_hides_nothing(etlworks: Etlworks, deferrable: bool) -> None:
    etlworks.flow(ends="error", exception="Disk full")
    etlworks.sandbox.fault("GET", "/rest/v1/executions/console/download", broken_body(code=500), times=None)

    went = etlworks.task(deferrable=deferrable).run()

    assert isinstance(went.error, EtlworksExecutionFailed)
    assert "Disk full" in went.report
    assert etlworks.warnings("The log of run", "cannot be read")


def test_trigger_gets_every_option(etlworks: Etlworks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_ETLWORKS_EU", etlworks.sandbox.airflow_connection)
    options: dict[str, Any] = {
        "flow_id": FLOW,
        "etlworks_conn_id": "etlworks_eu",
        "poll_interval": 2.5,
        "patience": 77.0,
        "cancel_on_kill": False,
    }

    went = etlworks.task(**options, timeout=600, deferrable=True).run()

    assert went.deferred is not None
    _, stored = went.deferred.trigger.serialize()
    (run,) = etlworks.sandbox.runs()
    assert stored == {
        **options,
        "audit_id": run.audit_id,
        "deadline": BEGINNING + 600,
        "root_url": etlworks.sandbox.url,
        "started_at": BEGINNING,
    }
