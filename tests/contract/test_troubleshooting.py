"""Each message of the troubleshooting table, word for word, as the real code logs it."""

from __future__ import annotations

import json
import logging
import re
import tempfile
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from airflow import __version__ as airflow_version
from support import task as task_module
from support.clock import BEGINNING
from support.promotion import EXPORT, IMPORT, Promotion
from support.sensor import Waiting
from support.task import CONN_VARIABLE, FLOW, FLOW_NAME, RECORD_PATH, RUN_PATH, STOP_PATH, Task, only_event

from airflow_provider_etlworks.promotion import PromotionReportOperator, PromotionRollBackOperator, promote_flows
from airflow_provider_etlworks.sandbox import broken_body, hang_up, redirect, status

try:
    from airflow.sdk import DAG
except ImportError:  # Airflow 2
    from airflow import DAG

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from support.etlworks import Etlworks

TABLE: list[dict[str, str]] = yaml.safe_load(
    (Path(__file__).parents[2] / "docs/troubleshooting.yaml").read_text(encoding="utf-8")
)
TRACE = (
    "com.toolsverse.etl.core.engine.EtlException: cannot load the orders\n"
    "\tat com.toolsverse.etl.Loader.load(Loader.java:412)\n"
    "Caused by: java.sql.SQLException: ORA-00942: table or view does not exist\n"
    "\tat oracle.jdbc.Driver.execute(Driver.java:99)"
)

SCENARIOS: dict[str, Any] = {}


def scenario(name: str) -> Callable[[Any], Any]:
    """Register how the message with this id comes about."""

    def register(produce: Any) -> Any:
        SCENARIOS[name] = produce
        return produce

    return register


def test_every_message_has_a_scenario() -> None:
    assert [each["id"] for each in TABLE] == list(SCENARIOS)
    for each in TABLE:
        assert set(each) == {"id", "message", "why", "what_to_do"}
        assert all(isinstance(text, str) and text.strip() == text for text in each.values())


@pytest.mark.parametrize("entry", TABLE, ids=[each["id"] for each in TABLE])
def test_message_is_word_for_word(etlworks: Etlworks, entry: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    if entry["id"] in ("connection-missing", "connection-deleted") and airflow_version.startswith("3.1."):
        pytest.skip("outside of a worker, Airflow 3.1 does not say that a connection is missing")
    said = SCENARIOS[entry["id"]](etlworks, monkeypatch)

    lines = said.splitlines()
    assert len(lines) == len(set(lines))
    logged = [each.getMessage() for each in etlworks.logged.records if each.levelname == "ERROR"]
    assert logged[-len(lines) :] == lines
    for own, example in (
        (re.escape(etlworks.sandbox.url.replace("http:", "https:")), "https://plain.example.com"),
        (r"http://127\.0\.0\.1:\d+", "https://etlworks.example.com"),
        (re.escape(etlworks.sandbox.url.replace("127.0.0.1", "localhost")), "https://new.example.com"),
        (r"etlworks\.example\.com/ui/flows", "etlworks.example.com/#/flows"),
        (r"/\S+/bundle\.json", "/bundles/release.json"),
    ):
        said = re.sub(own, example, said)
    assert said == entry["message"]


def failed(etlworks: Etlworks, **arguments: Any) -> str:
    return etlworks.task(**arguments).run().report


def while_deferred(monkeypatch: pytest.MonkeyPatch, change: Callable[[], Any]) -> None:
    """Let something change once a task is deferred, before its trigger runs."""

    async def changed(trigger: Any) -> Any:
        change()
        return await only_event(trigger)

    monkeypatch.setattr(task_module, "only_event", changed)


def refused(code: int, message: str = "") -> Any:
    """Answer as Etlworks does when it refuses."""
    body = json.dumps({"message": message} if message else {})
    return status(code, body=body, headers={"Content-Type": "application/json"})


@contextmanager
def promotion(etlworks: Etlworks, monkeypatch: pytest.MonkeyPatch) -> Iterator[Promotion]:
    """Run staging and production, and a folder for bundles."""
    with tempfile.TemporaryDirectory() as folder, Promotion(monkeypatch, etlworks.logged, Path(folder)) as environments:
        monkeypatch.setattr(PromotionReportOperator, "log", logging.getLogger("seen.report"))
        monkeypatch.setattr(PromotionRollBackOperator, "log", logging.getLogger("seen.roll_back"))
        yield environments


def of_promotion(name: str, environments: Promotion, states: dict[str, str], **results: Any) -> str:
    """Run a task of the group after the others have ended so, and return what it says last."""
    with DAG("release", schedule=None, start_date=datetime(2024, 1, 1, tzinfo=timezone.utc)) as dag:
        promote_flows(
            source_conn_id="staging",
            target_conn_id="production",
            path=environments.path,
            flow_ids=[1],
            smoke_flow_name="Orders",
            approval=False,
        )
    operator: Any = dag.get_task(f"promote_flows.{name}")
    # Airflow before 3.1 has no approval.
    operator.approval_task_id = "promote_flows.approve_import"
    task = environments.task(operator)
    ti = task.context["ti"]
    ti.dag_id, ti.run_id = "release", "run"
    ti.get_task_states = lambda **_: {"run": {f"promote_flows.{each}": state for each, state in states.items()}}
    ti.xcom_pull = lambda task_ids, key="return_value": results.get(
        task_ids.rpartition(".")[2] + ("" if key == "return_value" else f"_{key}")
    )
    return str(getattr(task.run().error, "report", ""))


@scenario("run-failed")
def _run_failed(etlworks: Etlworks, _: Any) -> str:
    etlworks.flow(ends="error", exception=TRACE)
    return failed(etlworks)


@scenario("run-canceled")
def _run_canceled(etlworks: Etlworks, _: Any) -> str:
    etlworks.flow(ends="canceled")
    return failed(etlworks)


@scenario("run-warning")
def _run_warning(etlworks: Etlworks, _: Any) -> str:
    etlworks.flow(ends="warning", exception="12 rows were rejected")
    return failed(etlworks, fail_on_warning=True)


@scenario("time-out")
def _time_out(etlworks: Etlworks, _: Any) -> str:
    etlworks.flow(running=7200)
    return failed(etlworks, timeout=3600)


@scenario("stop-refused")
def _stop_refused(etlworks: Etlworks, _: Any) -> str:
    etlworks.flow(running=7200)
    etlworks.sandbox.fault("POST", STOP_PATH, status(403, body="{}"), times=None)
    return failed(etlworks, execution_timeout=timedelta(hours=1))


@scenario("lost-touch")
def _lost_touch(etlworks: Etlworks, _: Any) -> str:
    etlworks.flow(running=7200)
    etlworks.sandbox.fault("GET", RECORD_PATH, status(503, body="{}"), times=None, after=3)
    return failed(etlworks, patience=900)


@scenario("denied-while-following")
def _denied(etlworks: Etlworks, _: Any) -> str:
    etlworks.flow(running=7200)
    etlworks.sandbox.fault("GET", RECORD_PATH, status(401, body="{}"), times=None, after=3)
    return failed(etlworks)


@scenario("earlier-run-unreadable")
def _earlier_run_unreadable(etlworks: Etlworks, _: Any) -> str:
    etlworks.flow(running=72_000)
    task = etlworks.task(patience=900)
    etlworks.sandbox.fault("GET", RECORD_PATH, status(503, body="{}"), times=None, after=3)
    task.run()
    return task.run().report


@scenario("host-changed")
def _host_changed(etlworks: Etlworks, _: Any) -> str:
    task = etlworks.task()
    etlworks.flow(running=72_000)
    task.arguments["wait_for_completion"] = False
    task.run()
    etlworks.connect(host=etlworks.sandbox.url.replace("127.0.0.1", "localhost"))
    return task.run().report


@scenario("already-running")
def _already_running(etlworks: Etlworks, _: Any) -> str:
    etlworks.flow(running=7200)
    etlworks.run_of_somebody_else()
    return failed(etlworks)


@scenario("not-free-in-time")
def _not_free_in_time(etlworks: Etlworks, _: Any) -> str:
    etlworks.flow(running=7200)
    etlworks.run_of_somebody_else()
    return failed(etlworks, on_already_running="wait", timeout=3600)


@scenario("start-in-doubt")
def _start_in_doubt(etlworks: Etlworks, _: Any) -> str:
    task = etlworks.task()
    etlworks.flow(running=0)
    etlworks.sandbox.fault("POST", RUN_PATH, hang_up())
    assert task.store is not None
    task.store.before_the_start = lambda: etlworks.run_of_somebody_else()
    return task.run().report


@scenario("key-rejected")
def _key_rejected(etlworks: Etlworks, _: Any) -> str:
    etlworks.sandbox.fault("*", "/rest/*", status(401, body="{}"), times=None)
    return failed(etlworks)


@scenario("role-missing")
def _role_missing(etlworks: Etlworks, _: Any) -> str:
    etlworks.sandbox.fault("POST", RUN_PATH, status(403, body="{}"), times=None)
    return failed(etlworks)


@scenario("connection-missing")
def _connection_missing(etlworks: Etlworks, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.delenv(CONN_VARIABLE)
    return failed(etlworks)


@scenario("connection-wrong")
def _connection_wrong(etlworks: Etlworks, _: Any) -> str:
    etlworks.connect(requests_per_minut=60)
    return failed(etlworks)


@scenario("flow-unknown")
def _flow_unknown(etlworks: Etlworks, _: Any) -> str:
    return failed(etlworks, flow_name="Nightly lod")


@scenario("start-refused")
def _start_refused(etlworks: Etlworks, _: Any) -> str:
    etlworks.sandbox.fault(
        "POST", RUN_PATH, status(200, body='{"status": 3}', headers={"Content-Type": "application/json"})
    )
    return failed(etlworks)


@scenario("rate-limited")
def _rate_limited(etlworks: Etlworks, _: Any) -> str:
    etlworks.sandbox.fault("POST", RUN_PATH, status(429, body="{}"), times=None)
    return failed(etlworks, patience=900)


@scenario("unreachable")
def _unreachable(etlworks: Etlworks, _: Any) -> str:
    etlworks.sandbox.stop()
    return failed(etlworks, patience=900)


@scenario("host-unknown")
def _host_unknown(etlworks: Etlworks, _: Any) -> str:
    etlworks.connect(host="https://etlwoks.invalid")
    return failed(etlworks, patience=900)


@scenario("sensor-saw-nothing")
def _sensor_saw_nothing(etlworks: Etlworks, monkeypatch: pytest.MonkeyPatch) -> str:
    return Waiting(etlworks, monkeypatch).run("poke", timeout=3600, since="2027-01-15T08:00:00+00:00").report


@scenario("sensor-not-ended")
def _sensor_not_ended(etlworks: Etlworks, monkeypatch: pytest.MonkeyPatch) -> str:
    etlworks.flow(running=72_000)
    etlworks.run_of_somebody_else()
    return Waiting(etlworks, monkeypatch).run("deferrable", timeout=3600).report


@scenario("sensor-run-failed")
def _sensor_run_failed(etlworks: Etlworks, monkeypatch: pytest.MonkeyPatch) -> str:
    etlworks.flow(running=0, ends="error", exception="Disk full")
    etlworks.run_of_somebody_else()
    return Waiting(etlworks, monkeypatch).run("poke").report


@scenario("run-unknown-status")
def _run_unknown_status(etlworks: Etlworks, _: Any) -> str:
    etlworks.flow(running=7200)
    record = {"auditId": 8721934, "flowId": FLOW, "flowName": FLOW_NAME, "status": "hibernated", "ended": 1800000000000}
    fault = broken_body(json.dumps(record), content_type="application/json")
    etlworks.sandbox.fault("GET", RECORD_PATH, fault, times=None, after=3)
    return failed(etlworks)


@scenario("last-try")
def _last_try(etlworks: Etlworks, _: Any) -> str:
    etlworks.flow(ends="error", exception="Disk full")
    task = etlworks.task()
    task.max_tries = 1
    task.run()
    return task.run().report


def killed(etlworks: Etlworks, monkeypatch: pytest.MonkeyPatch, after: float, **arguments: Any) -> str:
    """Kill a task as Airflow 3 does: it calls on_kill, and lets the task go on."""
    operators: list[Any] = []
    new_operator = Task.operator
    monkeypatch.setattr(Task, "operator", lambda task: operators.append(new_operator(task)) or operators[-1])
    etlworks.clock.at(etlworks.clock.time() - BEGINNING + after, lambda: operators[-1].on_kill())
    return failed(etlworks, **arguments)


@scenario("killed")
def _killed(etlworks: Etlworks, monkeypatch: pytest.MonkeyPatch) -> str:
    etlworks.flow(running=7200)
    return killed(etlworks, monkeypatch, 100)


@scenario("killed-before-the-start")
def _killed_before_the_start(etlworks: Etlworks, monkeypatch: pytest.MonkeyPatch) -> str:
    etlworks.flow(running=7200)
    etlworks.run_of_somebody_else()
    return killed(etlworks, monkeypatch, 100, on_already_running="wait")


@scenario("record-gone")
def _record_gone(etlworks: Etlworks, _: Any) -> str:
    etlworks.flow(running=7200)
    etlworks.sandbox.fault("GET", RECORD_PATH, refused(404, "Flow 7 not found"), times=None, after=3)
    return failed(etlworks, deferrable=True)


@scenario("connection-deleted")
def _connection_deleted(etlworks: Etlworks, monkeypatch: pytest.MonkeyPatch) -> str:
    etlworks.flow(running=7200)
    while_deferred(monkeypatch, lambda: monkeypatch.delenv(CONN_VARIABLE))
    return failed(etlworks, deferrable=True)


@scenario("proxy-page")
def _proxy_page(etlworks: Etlworks, _: Any) -> str:
    etlworks.flow(running=7200)
    etlworks.sandbox.fault("GET", RECORD_PATH, broken_body(), times=None, after=3)
    return failed(etlworks)


@scenario("redirected")
def _redirected(etlworks: Etlworks, _: Any) -> str:
    etlworks.sandbox.fault("*", "/rest/*", redirect("https://sso.example.com/login"), times=None)
    return failed(etlworks)


@scenario("no-tls")
def _no_tls(etlworks: Etlworks, _: Any) -> str:
    etlworks.connect(host=etlworks.sandbox.url.replace("http:", "https:"))
    return failed(etlworks)


@scenario("call-refused")
def _call_refused(etlworks: Etlworks, _: Any) -> str:
    etlworks.sandbox.fault("POST", RUN_PATH, refused(400, "Parameter runDate is not declared"), times=None)
    return failed(etlworks, parameters={"runDate": "2027-01-15"})


@scenario("flow-not-found")
def _flow_not_found(etlworks: Etlworks, _: Any) -> str:
    return failed(etlworks, flow_id=99)


@scenario("sensor-cannot-read")
def _sensor_cannot_read(etlworks: Etlworks, monkeypatch: pytest.MonkeyPatch) -> str:
    etlworks.sandbox.fault("GET", RECORD_PATH, refused(403), times=None)
    return Waiting(etlworks, monkeypatch).run("poke").report


@scenario("export-refused")
def _export_refused(etlworks: Etlworks, monkeypatch: pytest.MonkeyPatch) -> str:
    with promotion(etlworks, monkeypatch) as environments:
        environments.staging.fault("POST", EXPORT, refused(403), times=None)
        return str(environments.exporting(flow_ids=[1]).run().error.report)  # type: ignore[union-attr]


@scenario("import-refused")
def _import_refused(etlworks: Etlworks, monkeypatch: pytest.MonkeyPatch) -> str:
    with promotion(etlworks, monkeypatch) as environments:
        environments.exported(flow_ids=[1])
        environments.production.fault("POST", IMPORT, refused(400, "Flow 'Orders' is locked"))
        return str(environments.importing().run().error.report)  # type: ignore[union-attr]


@scenario("import-in-doubt")
def _import_in_doubt(etlworks: Etlworks, monkeypatch: pytest.MonkeyPatch) -> str:
    with promotion(etlworks, monkeypatch) as environments:
        environments.exported(flow_ids=[1])
        environments.production.fault("POST", IMPORT, hang_up(carried_out=False))
        return str(environments.importing().run().error.report)  # type: ignore[union-attr]


@scenario("bundle-changed")
def _bundle_changed(etlworks: Etlworks, monkeypatch: pytest.MonkeyPatch) -> str:
    with promotion(etlworks, monkeypatch) as environments:
        environments.exported(flow_ids=[1])
        Path(environments.path).write_bytes(b"{}")
        return str(environments.importing().run().error.report)  # type: ignore[union-attr]


@scenario("promotion-rejected")
def _promotion_rejected(etlworks: Etlworks, monkeypatch: pytest.MonkeyPatch) -> str:
    with promotion(etlworks, monkeypatch) as environments:
        return of_promotion("report_result", environments, {}, approve_import_rejected_by="Alice")


@scenario("promotion-rolled-back")
def _promotion_rolled_back(etlworks: Etlworks, monkeypatch: pytest.MonkeyPatch) -> str:
    rolled_back = {"path": "/bundles/release.json.backup", "restored": ["Orders"], "left": ["Returns"]}
    states = {"import_flows": "success", "smoke_test": "failed", "roll_back": "success"}
    with promotion(etlworks, monkeypatch) as environments:
        return of_promotion("report_result", environments, states, roll_back=rolled_back)


@scenario("roll-back-failed")
def _roll_back_failed(etlworks: Etlworks, monkeypatch: pytest.MonkeyPatch) -> str:
    states = {"import_flows": "success", "smoke_test": "failed", "roll_back": "failed"}
    imported = {"backup_path": "/bundles/release.json.backup", "flow_names": ["Orders"]}
    with promotion(etlworks, monkeypatch) as environments:
        return of_promotion("report_result", environments, states, import_flows=imported)
