"""What must not be seen is nowhere, and the way to the run in Etlworks is where it should be."""

from __future__ import annotations

import json
import traceback
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from support.task import FLOW, RECORD_PATH, RUN_PATH, secrets_in

from airflow_provider_etlworks import links
from airflow_provider_etlworks.operators.flow import EtlworksRunFlowOperator
from airflow_provider_etlworks.sandbox import broken_body, hang_up, status
from airflow_provider_etlworks.sandbox import tokens as sandbox_tokens

if TYPE_CHECKING:
    from support.etlworks import Etlworks
    from support.task import Try

both_modes = pytest.mark.parametrize("deferrable", [False, True], ids=["sync", "deferrable"])
KEY, PASSWORD, PROXY_PASSWORD = "key-5up3r5ecret", "pa55-w0rd-5ecret", "pr0xy-5ecret"

# What goes wrong in a try, so that as much as possible is logged and raised.
TROUBLES: dict[str, Any] = {
    "nothing": lambda _: None,
    "wrong credentials": lambda sandbox: sandbox.revoke_tokens(),
    "lost start": lambda sandbox: sandbox.fault("POST", RUN_PATH, hang_up()),
    "refused start": lambda sandbox: sandbox.fault("POST", RUN_PATH, status(403)),
    "HTML": lambda sandbox: sandbox.fault("*", "*", broken_body(), times=None),
    "away": lambda sandbox: sandbox.stop(),
    "a server that repeats what it was sent": lambda sandbox: sandbox.fault(
        "*",
        "*",
        status(500, body=json.dumps({"message": f"Bad header Bearer {KEY}, {PASSWORD}"})),
        times=None,
    ),
    "a record that cannot be read": lambda sandbox: sandbox.fault(
        "GET", RECORD_PATH, broken_body(f"token={KEY} password={PASSWORD}"), times=None, after=2
    ),
}


def everything_told(etlworks: Etlworks, went: Try, xcoms: dict[str, Any]) -> list[str]:
    """Return every text that Airflow stores or shows of a try."""
    deferred = went.deferred
    told = [record.getMessage() for record in etlworks.logged.records]
    told += [str(record.args) + str(record.exc_text) for record in etlworks.logged.records]
    told += [json.dumps(each) for each in (went.result, went.event, xcoms)]
    told += [repr(went.error), "".join(traceback.format_exception(went.error)) if went.error else ""]
    if deferred is not None:
        told += [repr(deferred.trigger.serialize()), repr(deferred.kwargs), repr(deferred)]
    return told


@both_modes
@pytest.mark.parametrize("trouble", TROUBLES)
@pytest.mark.parametrize("with_login", [False, True], ids=["API key", "login"])
def test_no_secret_is_shown(
    etlworks: Etlworks, with_login: bool, trouble: str, deferrable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sandbox_tokens, "PASSWORD", PASSWORD)
    monkeypatch.setattr(sandbox_tokens, "API_KEY", KEY)
    etlworks.connect(**({"login": "sandbox", "password": PASSWORD} if with_login else {"password": KEY}))
    etlworks.flow(running=60, ends="error", exception=f"Login with {PASSWORD} and {KEY} failed", log=(f"Bearer {KEY}",))
    TROUBLES[trouble](etlworks.sandbox)
    task = etlworks.task(deferrable=deferrable, parameters={"word": "{{ var.value.word }}"}, patience=60)

    went = task.run()

    sent = [each.headers.get("Authorization", "") for each in etlworks.sandbox.requests]
    tokens = {f"token {number}": text.removeprefix("Bearer ") for number, text in enumerate(set(sent)) if text}
    assert tokens or trouble in ("away", "HTML", "a server that repeats what it was sent")
    told = everything_told(etlworks, went, task.xcoms)
    secrets = {"password": PASSWORD} if with_login else {"API key": KEY}
    assert secrets_in(told, {**secrets, **tokens}) == []


def test_wrong_key_and_proxy_password_are_not_shown(etlworks: Etlworks) -> None:
    etlworks.connect(password=KEY, proxy=f"http://maria:{PROXY_PASSWORD}@127.0.0.1:9")

    went = etlworks.task().run()

    assert went.colour == "failed"
    told = everything_told(etlworks, went, {})
    assert secrets_in(told, {"API key": KEY, "proxy password": PROXY_PASSWORD}) == []


def test_rendered_operator_has_no_secret(etlworks: Etlworks) -> None:
    etlworks.connect(password=KEY)
    operator = etlworks.task().operator()

    assert operator.hook.settings.password == KEY
    shown = [repr(getattr(operator, name)) for name in operator.template_fields] + [repr(operator), repr(operator.hook)]
    assert secrets_in([*shown, repr(operator.hook.settings), repr(operator.hook.client)], {"API key": KEY}) == []


# --- The link -------------------------------------------------------------------------------------------------------


@both_modes
def test_link_exists_once_the_run_is_accepted(
    etlworks: Etlworks, deferrable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    etlworks.flow(running=300, ends="error")
    task = etlworks.task(deferrable=deferrable)
    operator = task.operator()
    (link,) = operator.operator_extra_links
    context = task.next_try()
    monkeypatch.setattr(links, "get_xcom", lambda _, key: task.xcoms.get(key))
    seen: list[str] = []

    def look() -> None:
        seen.append(link.get_link(operator, ti_key=SimpleNamespace()))

    assert task.store is not None
    task.store.before_the_start = look
    etlworks.clock.at(1, look)
    task.run()
    look()

    (run,) = etlworks.sandbox.runs()
    url = f"{etlworks.sandbox.url}/ui/flows/{FLOW}/runs/{run.audit_id}"
    assert seen == ["", url, url]
    assert task.xcoms[link.xcom_key] == url
    assert link.name == "Open in Etlworks"
    assert url in etlworks.log_text
    assert context["ti"].xcoms is task.xcoms


def test_link_follows_the_connection(etlworks: Etlworks) -> None:
    key = EtlworksRunFlowOperator.operator_extra_links[0].xcom_key
    etlworks.connect(ui_url="https://etl.example.com/#/runs/{audit_id}")
    first = etlworks.task()
    first.run()
    etlworks.connect(ui_url="")
    second = etlworks.task()
    second.run()

    assert first.xcoms[key] == f"https://etl.example.com/#/runs/{first.xcoms['audit_id']}"
    assert second.xcoms[key] == etlworks.sandbox.url


@pytest.mark.parametrize("found", [None, "", "https://e/1"])
def test_link_is_empty_without_a_run(monkeypatch: pytest.MonkeyPatch, found: str | None) -> None:
    monkeypatch.setattr(links, "get_xcom", lambda *_: found)
    (link,) = EtlworksRunFlowOperator.operator_extra_links

    operator = EtlworksRunFlowOperator(task_id="load", flow_id=7)
    assert link.get_link(operator, ti_key=SimpleNamespace()) == (found or "")
