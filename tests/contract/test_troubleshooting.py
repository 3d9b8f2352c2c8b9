"""Each message of the troubleshooting table, word for word, as the real code logs it."""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from airflow import __version__ as airflow_version
from support.sensor import Waiting
from support.task import CONN_VARIABLE, RECORD_PATH, RUN_PATH, STOP_PATH

from airflow_provider_etlworks.sandbox import hang_up, status

if TYPE_CHECKING:
    from collections.abc import Callable

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
    if entry["id"] == "connection-missing" and airflow_version.startswith("3.1."):
        pytest.skip("outside of a worker, Airflow 3.1 does not say that a connection is missing")
    said = SCENARIOS[entry["id"]](etlworks, monkeypatch)

    lines = said.splitlines()
    assert len(lines) == len(set(lines))
    logged = [each.getMessage() for each in etlworks.logged.records if each.levelname == "ERROR"]
    assert logged[-len(lines) :] == lines
    for own, example in (
        (re.escape(etlworks.sandbox.url), "https://etlworks.example.com"),
        (re.escape(etlworks.sandbox.url.replace("127.0.0.1", "localhost")), "https://new.example.com"),
        (r"etlworks\.example\.com/ui/flows", "etlworks.example.com/#/flows"),
    ):
        said = re.sub(own, example, said)
    assert said == entry["message"]


def failed(etlworks: Etlworks, **arguments: Any) -> str:
    return etlworks.task(**arguments).run().report


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
