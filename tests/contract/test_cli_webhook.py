"""``airflow etlworks webhook …``."""

from __future__ import annotations

import io
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import airflow
import pytest
from support.cli import parser_of_commands

from airflow_provider_etlworks.sandbox import Sandbox, SandboxFlow, status

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SECRET = "shared-secret-0815-0815"
HOOK_PATH = "/rest/v1/webhooks"

pytestmark = pytest.mark.skipif(
    "cli" not in json.loads((Path(airflow.__file__).parent / "provider_info.schema.json").read_text())["properties"],
    reason="Airflow before 3.2 has no commands of providers",
)


@dataclass
class Done:
    """How a command ended, and what it wrote."""

    code: int
    out: str
    err: str


@pytest.fixture
def etlworks(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sandbox]:
    # A command sets it for its process, and this process goes on.
    monkeypatch.setenv("_AIRFLOW_PROCESS_CONTEXT", "")
    with Sandbox([SandboxFlow(1, "Orders")], requests_per_minute=None) as sandbox:
        connection = json.loads(sandbox.airflow_connection)
        connection["extra"] = {**connection["extra"], "verify": False}
        monkeypatch.setenv("AIRFLOW_CONN_ETLWORKS_DEFAULT", json.dumps(connection))
        configure(monkeypatch)
        yield sandbox


def configure(monkeypatch: pytest.MonkeyPatch, **fields: Any) -> None:
    written = {"conn_type": "generic", "password": SECRET, **fields}
    monkeypatch.setenv("AIRFLOW_CONN_ETLWORKS_WEBHOOK", json.dumps(written))


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """Run a command below ``webhook``; it never shows a secret."""
    parser = parser_of_commands()

    def run(*words: str) -> Done:
        code: Any = 0
        try:
            args = parser.parse_args(("webhook", *words))
            args.func(args)
        except SystemExit as end:
            code = end.code
        written = capsys.readouterr()
        assert not {SECRET, "sandbox-key", "Traceback"} & {
            each for each in (SECRET, "sandbox-key", "Traceback") if each in written.out + written.err
        }
        return Done(code, written.out, written.err)

    return run


def sent(sandbox: Sandbox) -> dict[str, Any]:
    (request,) = [each for each in sandbox.requests if (each.method, each.path) == ("POST", HOOK_PATH)]
    body: dict[str, Any] = json.loads(request.body)
    return body


def create(command: Callable[..., Done], *words: str) -> Done:
    return command("create", "--url", "https://airflow.example.com/", *words, "-o", "json")


def test_webhook_is_created_listed_and_removed(etlworks: Sandbox, command: Callable[..., Done]) -> None:
    done = create(command, "--flow", "1", "--flow", "2")
    made = {
        "id": 1,
        "name": "Airflow",
        "url": "https://airflow.example.com/etlworks/webhook",
        "events": ["Flow.Executed"],
        "enabled": True,
        "flows": [1, 2],
        "headers": ["X-Etlworks-Webhook-Secret"],
    }
    assert (done.code, json.loads(done.out)) == (0, made)
    body = sent(etlworks)
    assert body["headers"] == [{"key": "X-Etlworks-Webhook-Secret", "value": SECRET}]
    assert body.keys().isdisjoint({"secret", "basicUser", "basicPass"})
    assert json.loads(command("list", "-o", "json").out) == [made]
    assert "airflow.example.com" in command("list").out

    removed = command("remove", "1", "--yes")
    assert (removed.code, removed.out) == (0, "")
    assert "Removed webhook 1" in removed.err
    assert json.loads(command("list", "-o", "json").out) == []


@pytest.mark.parametrize(
    ("fields", "proof"),
    [
        ({"login": "etl"}, {"basicUser": "etl", "basicPass": SECRET}),
        ({"extra": {"signature_header": "X-Sign"}}, {"secret": SECRET}),
        ({"extra": {"header": "X-Ours"}}, {"headers": [{"key": "X-Ours", "value": SECRET}]}),
    ],
)
def test_webhook_sends_what_the_connection_asks_for(
    etlworks: Sandbox,
    command: Callable[..., Done],
    monkeypatch: pytest.MonkeyPatch,
    fields: dict[str, Any],
    proof: dict[str, Any],
) -> None:
    configure(monkeypatch, **fields)
    assert create(command, "--event", "FLOW_SUCCESS", "--event", "FLOW_FAILED", "--name", "Ours").code == 0
    body = sent(etlworks)
    assert proof.items() <= body.items()
    assert (body["events"], body["name"], "flowIncludes" in body) == (["FLOW_SUCCESS", "FLOW_FAILED"], "Ours", False)


def test_nothing_is_created_without_a_secret_or_an_address(
    etlworks: Sandbox, command: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = command("create", "--url", "airflow.example.com")
    assert (wrong.code, wrong.err.count("\n")) == (1, 1)
    configure(monkeypatch, password="short")
    assert "Password" in create(command).err
    monkeypatch.delenv("AIRFLOW_CONN_ETLWORKS_WEBHOOK")
    missing = create(command)
    assert (missing.code, "etlworks_webhook" in missing.err) == (1, True)
    # Listing takes only the connection to Etlworks.
    assert command("list", "--conn-id", "etlworks_default", "-o", "json").out == "[]\n"
    assert [each.method for each in etlworks.requests if each.method == "POST"] == []


def test_nothing_is_removed_without_a_yes(
    etlworks: Sandbox, command: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    create(command)
    assert command("remove", "1").code == 2
    assert command("remove", "5", "--yes").code == 1
    terminal = io.StringIO("no\n")
    terminal.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stdin", terminal)
    asked = command("remove", "1")
    assert asked.code == 1
    assert "https://airflow.example.com/etlworks/webhook" in asked.err
    assert len(json.loads(command("list", "-o", "json").out)) == 1


def test_release_without_these_calls_is_explained(etlworks: Sandbox, command: Callable[..., Done]) -> None:
    etlworks.fault("GET", HOOK_PATH, status(404), times=None)
    for words in (("list",), ("remove", "1", "--yes")):
        done = command(*words)
        assert (done.code, done.err.count("\n")) == (1, 1)
        assert "its page Webhooks" in done.err


def test_refused_webhook_is_one_line(etlworks: Sandbox, command: Callable[..., Done]) -> None:
    refusal = status(403, body=json.dumps({"message": f"not for you, {SECRET}"}))
    etlworks.fault("POST", HOOK_PATH, refusal, times=None)
    done = create(command)
    assert (done.code, done.out, done.err.count("\n")) == (1, "", 1)
