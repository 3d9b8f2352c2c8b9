"""What a server says of a run, a start or a stop harms neither the task nor what Airflow stores of it."""

from __future__ import annotations

import base64
import html
import json
import re
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, quote_plus

import pytest
from support.task import FLOW, RECORD_PATH, RUN_PATH, STOP_PATH

from airflow_provider_etlworks.client import endpoints
from airflow_provider_etlworks.hooks.etlworks import EtlworksHook
from airflow_provider_etlworks.sandbox import broken_body, hang_up, status, tokens, truncated

if TYPE_CHECKING:
    from support.etlworks import Etlworks
    from support.task import Try

JSON = "application/json"
LOG_PATH = "/rest/v1/executions/console/download"
both_modes = pytest.mark.parametrize("deferrable", [False, True], ids=["sync", "deferrable"])

HOSTILE = {
    "NUL": "a\0b",
    "half a surrogate pair": "a\ud83db",
    "forged line": "a\r\n[2026-05-09] ERROR forged",
    "ANSI": "a\x1b[2Jb\x9b31m",
    "right to left": "a\u202eb\u2028c",
    "megabytes": "x" * 1_000_000,
}


def unsafe(text: str, keep: str = "") -> list[str]:
    """Return the characters of a text that steer a terminal, break a line, or that a database or a pipe refuses."""
    return [each for each in text if not (each.isprintable() or each in keep)]


def assert_harmless(etlworks: Etlworks, went: Try, xcoms: dict[str, Any]) -> None:
    """Check all that Airflow stores or shows of a try."""
    for record in etlworks.logged.records:
        message = record.getMessage()
        assert unsafe(message, "\t") == [], record.name
        assert len(message) < 20_000
    if went.error is not None:
        assert unsafe(str(went.error)) == []
        assert unsafe(went.report, "\n") == []
        assert len(went.report) < 12_000
    for stored in (went.event, went.result, xcoms):
        text = json.dumps(stored, ensure_ascii=False)
        text.encode()
        assert "\\u0000" not in text
        assert len(json.dumps(stored)) < 65_536


def hostile_record(etlworks: Etlworks, text: str, **fields: Any) -> bytes:
    """Return the record of the flow's latest run, with a text everywhere."""
    names = ("user", "flowName", "exception", "eventId", "messageUuid", "unknown")
    ids = {"auditId": etlworks.sandbox.runs()[-1].audit_id, "flowId": FLOW}
    return json.dumps({**ids, **dict.fromkeys(names, text), **fields}).encode()


@both_modes
@pytest.mark.parametrize("state", ["error", "success", "running", ""])
@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_texts_of_a_run_are_harmless(etlworks: Etlworks, kind: str, state: str, deferrable: bool) -> None:
    text = HOSTILE[kind]
    etlworks.flow(running=600)

    def become_hostile() -> None:
        record = hostile_record(etlworks, text, status=state or text, ended=1 if state != "running" else None)
        etlworks.sandbox.fault("GET", f"{RECORD_PATH}*", broken_body(record, content_type=JSON), times=None)

    etlworks.clock.at(20, become_hostile)
    log = text.encode(errors="surrogatepass") * 10 + b"\nlast line"
    etlworks.sandbox.fault("GET", LOG_PATH, broken_body(log, content_type="text/plain"), times=None)
    task = etlworks.task(deferrable=deferrable, timeout=600)

    went = task.run()

    assert_harmless(etlworks, went, task.xcoms)
    assert went.colour == ("success" if state == "success" else "failed")
    if state == "error":
        assert "| last line" in etlworks.log_text


@both_modes
def test_log_beyond_its_limit_does_not_hide_the_failure(
    etlworks: Etlworks, deferrable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoints, "_MAX_LOG_BYTES", 100_000)
    etlworks.flow(running=0, ends="error", exception="No space left", log=("x" * 200_000,))

    went = etlworks.task(deferrable=deferrable).run()

    assert "No space left" in went.report
    assert etlworks.warnings("The log of run", "cannot be read", "longer than 100000 bytes")


@both_modes
@pytest.mark.parametrize("size", [9_000, 2_000_000])
def test_root_cause_of_a_java_trace_is_reported(etlworks: Etlworks, size: int, deferrable: bool) -> None:
    frames = "\n".join(f"\tat com.etlworks.Flow.step{number}(Flow.java:{number})" for number in range(size // 50))
    trace = f"Flow failed\n{frames}\nCaused by: java.sql.SQLException: first\n{frames}\nCaused by: the root cause\n"
    etlworks.flow(ends="error", exception=trace)

    went = etlworks.task(deferrable=deferrable).run()

    assert "Flow failed" in went.report
    assert "Caused by: the root cause" in went.report


JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJzYW5kYm94LXVzZXIifQ.c2lnbmF0dXJlLXNpZ25hdHVyZQ"
SECRETS = {
    # What a server may repeat, and the parts of it of which none may be seen.
    "API key": ("sandbox-key", ["sandbox-k", "ndbox-key"]),
    "token": (JWT, [JWT[:12], JWT[-12:]]),
    "bearer": ("Bearer ab12cd34ef56ab12cd34", ["ab12cd34"]),
    "password of a URL": ("https://maria:5ecret-w0rd-5ecret@warehouse/", ["5ecret"]),
}


@both_modes
@pytest.mark.parametrize("cut_at", [0, 255, 1_000, 1_500, 4_000, 8_000, 10_000])
@pytest.mark.parametrize("kind", SECRETS)
def test_secret_in_a_runs_record_is_removed_before_a_cut(
    etlworks: Etlworks, kind: str, cut_at: int, deferrable: bool
) -> None:
    secret, parts = SECRETS[kind]
    etlworks.flow(running=600)
    text = "x" * max(0, cut_at - len(secret) // 2) + " " + secret + " y" * 6_000

    def become_hostile() -> None:
        # Only an error is for people: elsewhere, what looks like a password may be a name.
        record = hostile_record(etlworks, text if kind != "password of a URL" else "", exception=text, ended=1)
        etlworks.sandbox.fault("GET", RECORD_PATH, broken_body(record, content_type=JSON), times=None)

    etlworks.clock.at(20, become_hostile)
    task = etlworks.task(deferrable=deferrable)

    went = task.run()

    assert went.colour == "failed"
    shown = "".join([etlworks.log_text, went.report, json.dumps([went.event, task.xcoms])])
    assert [part for part in parts if part in shown] == []


# As people choose them, and as JSON, a URL, HTML and a header write them.
PASSWORDS = ['a"b\\c-5ecret', "ä ö+/&<5ecret", "pa'ss\\\"5ecret"]
SPELLINGS: dict[str, Any] = {
    "plain": str,
    "JSON": lambda secret: json.dumps(secret)[1:-1],
    "JSON in UTF-8": lambda secret: json.dumps(secret, ensure_ascii=False)[1:-1],
    "JSON in JSON": lambda secret: json.dumps(json.dumps(secret)),
    "URL": lambda secret: quote(secret, safe=""),
    "URL's path": quote,
    "form": quote_plus,
    "URL in lower case": lambda secret: re.sub("%..", lambda code: code[0].lower(), quote(secret, safe="")),
    "HTML": html.escape,
    "log-in header": lambda secret: "Basic " + base64.b64encode(f"sandbox:{secret}".encode()).decode(),
}


@both_modes
@pytest.mark.parametrize("password", PASSWORDS)
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_password_is_recognized_in_any_spelling(
    etlworks: Etlworks, spelling: str, password: str, deferrable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens, "PASSWORD", password)
    etlworks.connect(login="sandbox", password=password)
    secret = SPELLINGS[spelling](password)
    etlworks.flow(running=0, ends="error", exception=f"bad {secret} end", log=(f"log {secret} end",))
    body = json.dumps({"success": False, "message": f"bad {secret} end"})
    answer = status(200, body=body, headers={"Content-Type": JSON})

    ended = etlworks.task(deferrable=deferrable).run()
    etlworks.sandbox.fault("POST", RUN_PATH, answer, times=None)
    refused = etlworks.task().run()

    assert "bad" in ended.report
    assert "bad" in refused.report
    shown = etlworks.log_text + ended.report + refused.report + json.dumps(ended.event)
    assert secret not in shown
    assert "5ecret" not in shown


# --- Stopping and testing -------------------------------------------------------------------------------------------

HOSTILE_TEXT = b'x\0\x1b[2J\r\n"pass": "sandbox-key" \xed\xa0\xbd y'
HOSTILE_ANSWERS = {
    "redirect": status(302, headers={"Location": "https://maria:sandbox-key@evil.example.com/" + "a" * 5_000}, body=""),
    "log-in page": broken_body(b"<html><body>Please log in</body></html>"),
    "error": status(500, body=HOSTILE_TEXT),
    "not found": status(404, body=HOSTILE_TEXT * 20_000),
    "refusal": status(
        200, body=json.dumps({"success": False, "message": HOSTILE_TEXT.decode(errors="replace")}).encode()
    ),
    "truncated": truncated(),
    "nothing": hang_up(),
}


@pytest.mark.parametrize("answer", HOSTILE_ANSWERS)
def test_hostile_answer_to_a_stop_is_reported(etlworks: Etlworks, answer: str) -> None:
    etlworks.flow(running=600)
    (run,) = etlworks.task(wait_for_completion=False).run().accepted
    etlworks.sandbox.fault("POST", STOP_PATH, HOSTILE_ANSWERS[answer], times=None)

    stopped = EtlworksHook().stop_flow(FLOW, run)

    assert not stopped.accepted
    assert unsafe(stopped.detail) == []
    assert "sandbox-key" not in stopped.detail
    assert len(stopped.detail) < 2_000


@pytest.mark.parametrize("answer", HOSTILE_ANSWERS)
def test_hostile_answer_to_a_connection_test_is_reported(etlworks: Etlworks, answer: str) -> None:
    etlworks.sandbox.fault("*", "*", HOSTILE_ANSWERS[answer], times=None)

    works, message = EtlworksHook().test_connection()

    assert not works
    assert unsafe(message) == []
    assert "sandbox-key" not in message
    assert len(message) < 2_000
