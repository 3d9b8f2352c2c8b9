"""A running sandbox can be used from its pages and from a second terminal: start runs, arm faults, list both."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import requests

from airflow_provider_etlworks import __version__
from airflow_provider_etlworks.sandbox import Sandbox
from airflow_provider_etlworks.sandbox.__main__ import main as command
from airflow_provider_etlworks.sandbox.control import KINDS

if TYPE_CHECKING:
    from collections.abc import Iterator

FLOW = 12346


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(requests_per_minute=None) as sandbox:
        yield sandbox


def read_flows(sandbox: Sandbox) -> requests.Response:
    headers = {"Authorization": f"Bearer {sandbox.api_key}"}
    return requests.get(f"{sandbox.url}/rest/v1/flows", headers=headers, timeout=30)


def test_version_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        command(["--version"])

    assert end.value.code == 0
    assert capsys.readouterr().out == f"etlworks-sandbox {__version__}\n"


def test_second_terminal_starts_runs_and_lists_them(sandbox: Sandbox, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(["start", str(FLOW), "--url", sandbox.url]) == 0
    assert command(["start", "12347", "--by", "maria", "--url", sandbox.url]) == 0
    capsys.readouterr()

    assert command(["runs", "--url", sandbox.url]) == 0

    newest, oldest = capsys.readouterr().out.splitlines()
    assert "flowId=12347" in newest
    assert "startedBy=maria" in newest
    assert "flow=Daily warehouse refresh" in oldest
    assert "startedBy=Schedule of Daily warehouse refresh" in oldest
    assert [run.event_id is not None for run in sandbox.runs()] == [True, False]


def test_list_that_nobody_reads_to_its_end_is_no_error(sandbox: Sandbox) -> None:
    sandbox.run_by_user(FLOW)
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as pipe:
        ended = subprocess.run(
            [sys.executable, "-m", "airflow_provider_etlworks.sandbox", "runs", "--url", sandbox.url],
            stdout=pipe,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert (ended.returncode, ended.stderr) == (0, "")


def test_second_terminal_arms_and_clears_faults(sandbox: Sandbox, capsys: pytest.CaptureFixture[str]) -> None:
    fault = ["fault", "GET", "/rest/v1/*", "status", "--code", "502", "--after", "1", "--times", "all"]
    assert command([*fault, "--url", sandbox.url]) == 0
    assert [read_flows(sandbox).status_code for _ in range(3)] == [200, 502, 502]

    assert command(["faults", "--url", sandbox.url]) == 0
    assert "path=/rest/v1/*" in capsys.readouterr().out
    assert command(["faults", "--clear", "--url", sandbox.url]) == 0
    assert read_flows(sandbox).status_code == 200
    capsys.readouterr()
    assert command(["faults", "--url", sandbox.url]) == 0
    assert capsys.readouterr().out == "None.\n"


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_fault_can_be_armed(sandbox: Sandbox, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(["fault", "GET", "*", kind, "--url", sandbox.url]) == 0

    assert "method=GET" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["start", "1"], "Flow 1 does not exist"),
        (["fault", "GET", "rest", "drop"], "expected a path from the root"),
        (["fault", "GET", "*", "delay", "--seconds", "nan"], "seconds: expected a number from 0 to 3600"),
        (["fault", "GET", "*", "status", "--code", "999"], "expected an HTTP status"),
        (["fault", "GET", "*", "drop", "--times", "some"], "Parameter 'times' must be a number"),
    ],
)
def test_refusal_reaches_the_second_terminal(
    sandbox: Sandbox, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command([*words, "--url", sandbox.url]) == 1

    assert message in capsys.readouterr().err
    assert sandbox.runs() == []


def test_missing_sandbox_is_reported(closed_port: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(["runs", "--url", f"http://127.0.0.1:{closed_port}"]) == 1

    assert "Is `etlworks-sandbox serve` running?" in capsys.readouterr().err


def submit(sandbox: Sandbox, path: str, fields: dict[str, str], **headers: str) -> requests.Response:
    """Send a form as a browser does."""
    sent = {"Accept": "text/html", "Origin": sandbox.url, **headers}
    return requests.post(sandbox.url + path, data=fields, headers=sent, timeout=30)


def test_page_starts_a_run_by_schedule(sandbox: Sandbox) -> None:
    front = requests.get(sandbox.url, timeout=30).text
    assert f"<form method='post' action='/sandbox/runs'><input type='hidden' name='flow' value='{FLOW}'>" in front

    shown = submit(sandbox, "/sandbox/runs", {"flow": str(FLOW)})

    assert shown.url == f"{sandbox.url}/"
    assert "Schedule of Daily warehouse refresh" in shown.text
    assert sandbox.runs_started(FLOW) == 1


def test_page_arms_and_clears_faults(sandbox: Sandbox) -> None:
    fields = {"method": "GET", "path": "/rest/*", "kind": "status", "code": "500", "seconds": "0", "times": "1"}
    assert submit(sandbox, "/sandbox/faults", fields).ok
    page = requests.get(f"{sandbox.url}/ui/faults", timeout=30).text
    assert "<td>/rest/*</td><td>does nothing, answers 500</td>" in page
    assert "http-equiv='refresh'" not in page

    assert submit(sandbox, "/sandbox/faults/clear", {}).ok

    assert read_flows(sandbox).status_code == 200


def test_form_of_another_site_is_refused(sandbox: Sandbox) -> None:
    refused = submit(sandbox, "/sandbox/runs", {"flow": str(FLOW)}, Origin="https://elsewhere.example.com")

    assert refused.status_code == 403
    assert sandbox.runs() == []


def test_controls_are_no_part_of_etlworks(sandbox: Sandbox) -> None:
    submit(sandbox, "/sandbox/faults", {"path": "*", "kind": "drop", "times": "all"}, Accept="*/*")

    assert requests.get(f"{sandbox.url}/sandbox/faults", timeout=30).ok
    assert requests.get(f"{sandbox.url}/sandbox/other", timeout=30).status_code == 404
    assert [request.path for request in sandbox.requests if "sandbox" in request.path] == []
