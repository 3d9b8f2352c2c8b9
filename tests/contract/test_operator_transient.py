"""Faults while a run is followed: none of them is the run's failure, and none starts a second run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from support.clock import BEGINNING
from support.task import FLOW, RECORD_PATH, RUN_PATH, STOP_PATH

from airflow_provider_etlworks.client.errors import EtlworksLostTouch
from airflow_provider_etlworks.sandbox import Fault, broken_body, delay, hang_up, redirect, status, truncated
from airflow_provider_etlworks.sandbox import tokens as sandbox_tokens

if TYPE_CHECKING:
    from support.etlworks import Etlworks

both_modes = pytest.mark.parametrize("deferrable", [False, True], ids=["sync", "deferrable"])

# Looks at the run's record that come before the first one to be hit: the watermark's, the one before deferring, one.
LOOKS_BEFORE = 3
PASSING: dict[str, Fault] = {
    "500": status(500),
    "502 with HTML": broken_body(code=502),
    "503": status(503),
    "504": status(504),
    "408": status(408),
    "425": status(425),
    "429": status(429, headers={"Retry-After": "7"}),
    "dropped": hang_up(),
    "read time-out": delay(1.5),
    "cut off": truncated(),
    "HTML": broken_body(),
    "half a document": broken_body(b'{"auditId": 87', content_type="application/json"),
    "a list": broken_body(b"[]", content_type="application/json"),
    "another run's record": broken_body(
        b'{"auditId": 1, "flowId": 7, "status": "error"}', content_type="application/json"
    ),
    "200 that says no": status(
        200, body='{"success": false, "message": "Not for you"}', headers={"Content-Type": "application/json"}
    ),
    "a redirect to another host": redirect("http://other.example.com/rest/v1/executions/7"),
    "an empty body": broken_body(b"", content_type="application/json"),
}
REFUSALS: dict[str, Fault] = {"400": status(400), "401": status(401), "403": status(403)}


@both_modes
@pytest.mark.parametrize("fault", PASSING)
def test_transient_fault_is_survived(etlworks: Etlworks, fault: str, deferrable: bool) -> None:
    etlworks.connect(read_timeout=0.5)
    etlworks.flow(running=300)
    etlworks.sandbox.fault("GET", RECORD_PATH, PASSING[fault], times=2, after=LOOKS_BEFORE)

    went = etlworks.task(deferrable=deferrable).run()

    assert went.colour == "success"
    assert etlworks.sandbox.runs_started() == 1
    assert etlworks.warnings("Cannot read the status", "polling continues")
    assert "can be read again" in etlworks.log_text


@both_modes
def test_repeated_faults_are_survived(etlworks: Etlworks, deferrable: bool) -> None:
    etlworks.connect(read_timeout=0.5)
    etlworks.flow(running=3000)
    for fault in PASSING.values():
        etlworks.sandbox.fault("GET", RECORD_PATH, fault, after=LOOKS_BEFORE)

    assert etlworks.task(deferrable=deferrable).run().colour == "success"
    assert etlworks.sandbox.runs_started() == 1


@both_modes
def test_long_outage_is_survived_quietly(etlworks: Etlworks, deferrable: bool) -> None:
    etlworks.flow(running=3600)
    etlworks.clock.at(60, etlworks.sandbox.stop)
    etlworks.clock.at(60 + 1200, etlworks.sandbox.start)

    went = etlworks.task(deferrable=deferrable).run()

    assert went.colour == "success"
    assert 1 <= len(etlworks.warnings("Cannot read the status")) <= 21
    assert etlworks.sandbox.runs_started() == 1


@both_modes
def test_too_long_outage_fails_and_a_retry_resumes(etlworks: Etlworks, deferrable: bool) -> None:
    etlworks.flow(running=7200)
    etlworks.clock.at(60, etlworks.sandbox.stop)
    task = etlworks.task(deferrable=deferrable, patience=900)

    lost = task.run()
    etlworks.sandbox.start()
    followed = task.run()

    (run,) = etlworks.sandbox.runs()
    assert isinstance(lost.error, EtlworksLostTouch)
    for part in (str(run.audit_id), "may still be going", f"/ui/flows/{FLOW}/runs/{run.audit_id}", "No answer from"):
        assert part in lost.report
    assert followed.colour == "success"
    assert etlworks.asked("POST", STOP_PATH) == 0


@both_modes
@pytest.mark.parametrize("refusal", REFUSALS)
def test_refusal_fails_at_once(etlworks: Etlworks, refusal: str, deferrable: bool) -> None:
    etlworks.flow(running=3600)
    etlworks.sandbox.fault("GET", RECORD_PATH, REFUSALS[refusal], times=None, after=LOOKS_BEFORE)

    went = etlworks.task(deferrable=deferrable).run()

    assert went.colour == "failed"
    assert isinstance(went.error, EtlworksLostTouch)
    assert "may still be going" in went.report
    assert etlworks.clock.time() - BEGINNING < 60
    assert etlworks.asked("POST", STOP_PATH) == 0


@both_modes
@pytest.mark.parametrize("late", [3, 45])
def test_late_record_is_waited_for(etlworks: Etlworks, late: float, deferrable: bool) -> None:
    etlworks.flow(running=120, visible_after=late)

    assert etlworks.task(deferrable=deferrable).run().colour == "success"
    assert etlworks.asked("POST", RUN_PATH) == 1


@both_modes
def test_vanished_record_is_not_green_nor_restarted(etlworks: Etlworks, deferrable: bool) -> None:
    etlworks.flow(running=3600)
    etlworks.clock.at(100, lambda: etlworks.sandbox.forget(etlworks.sandbox.runs()[0].audit_id))

    went = etlworks.task(deferrable=deferrable).run()

    assert isinstance(went.error, EtlworksLostTouch)
    assert "The run's record is gone" in went.report
    assert etlworks.asked("POST", RUN_PATH) == 1
    assert 160 <= etlworks.clock.time() - BEGINNING < 600


@both_modes
def test_short_token_lasts_for_a_long_run(etlworks: Etlworks, deferrable: bool) -> None:
    etlworks.connect(login="sandbox", password="sandbox")
    etlworks.sandbox._tokens._lifetime = 600.0
    etlworks.flow(running=3 * 3600)

    went = etlworks.task(deferrable=deferrable).run()

    assert went.colour == "success"
    assert [each.status for each in etlworks.sandbox.requests if each.status == 401] == []
    assert etlworks.sandbox.log_ins <= 3
    assert 15 <= etlworks.sandbox.refreshes <= 25


@both_modes
def test_revoked_token_costs_one_log_in(etlworks: Etlworks, deferrable: bool) -> None:
    etlworks.connect(login="sandbox", password="sandbox")
    etlworks.flow(running=300)
    etlworks.clock.at(100, etlworks.sandbox.revoke_tokens)
    log_ins: list[int] = []
    etlworks.clock.at(99, lambda: log_ins.append(etlworks.sandbox.log_ins))
    etlworks.clock.at(200, lambda: log_ins.append(etlworks.sandbox.log_ins))

    went = etlworks.task(deferrable=deferrable).run()

    assert went.colour == "success"
    assert log_ins[1] - log_ins[0] == 1
    assert len([each for each in etlworks.sandbox.requests if each.status == 401]) <= 2


@both_modes
def test_log_in_outage_is_transient(etlworks: Etlworks, deferrable: bool) -> None:
    etlworks.connect(login="sandbox", password="sandbox")
    etlworks.flow(running=3600)
    etlworks.clock.at(100, etlworks.sandbox.revoke_tokens)
    etlworks.clock.at(100, lambda: etlworks.sandbox.fault("POST", "/rest/v1/token-auth*", status(503), times=None))
    etlworks.clock.at(700, etlworks.sandbox.clear_faults)

    assert etlworks.task(deferrable=deferrable).run().colour == "success"


@both_modes
def test_expired_api_key_fails_at_once(etlworks: Etlworks, deferrable: bool) -> None:
    etlworks.flow(running=3600)
    etlworks.clock.at(100, lambda: etlworks.sandbox.fault("*", "/rest/*", status(401), times=None))

    went = etlworks.task(deferrable=deferrable).run()

    assert isinstance(went.error, EtlworksLostTouch)
    assert "401" in went.report
    assert "sandbox-key" not in went.report
    assert etlworks.clock.time() - BEGINNING < 200


@both_modes
def test_rotated_password_does_not_end_the_run(
    etlworks: Etlworks, deferrable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    etlworks.connect(login="sandbox", password="sandbox")
    etlworks.flow(running=300)

    def rotate() -> None:
        monkeypatch.setattr(sandbox_tokens, "PASSWORD", "rotated")
        etlworks.sandbox.revoke_tokens()
        etlworks.connect(login="sandbox", password="rotated")

    etlworks.clock.at(100, rotate)

    went = etlworks.task(deferrable=deferrable).run()

    assert went.colour == "success"
    assert etlworks.warnings("Reading the connection again")


@both_modes
def test_poll_interval_of_the_connection_is_kept(etlworks: Etlworks, deferrable: bool) -> None:
    etlworks.connect(requests_per_minute=6)
    etlworks.flow(running=3600)

    went = etlworks.task(deferrable=deferrable, poll_interval=0.5).run()

    assert went.colour == "success"
    assert len(etlworks.sandbox.requests) <= 6 * 61
