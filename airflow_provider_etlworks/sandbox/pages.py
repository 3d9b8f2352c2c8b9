"""Pages for people, instead of Etlworks's own: all flows, and one run."""

from __future__ import annotations

from datetime import datetime, timezone
from html import escape
from typing import TYPE_CHECKING

from airflow_provider_etlworks.sandbox.control import CLEAR_FAULTS_PATH, FAULTS_PATH, KINDS, RUNS_PATH, RUNS_SHOWN
from airflow_provider_etlworks.sandbox.messages import Answer, ApiError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from airflow_provider_etlworks.sandbox.faults import Faults
    from airflow_provider_etlworks.sandbox.organization import Organization
    from airflow_provider_etlworks.sandbox.runs import Run

RUN_PATH = "/ui/flows/{flow_id}/runs/{audit_id}"
FAULTS_PAGE = "/ui/faults"

_STYLE = (
    "body{font:15px system-ui,sans-serif;margin:2rem auto;max-width:60rem;padding:0 1rem;color:#222}"
    "table{border-collapse:collapse;width:100%}th,td{text-align:left;padding:.3rem .8rem .3rem 0;"
    "border-bottom:1px solid #ddd;vertical-align:top}form{margin:0}pre{background:#f4f4f4;padding:1rem;overflow:auto}"
    ".success{color:#17692c}.warning{color:#8a5a00}.error{color:#a11}.canceled{color:#666}"
)


def flows(organization: Organization) -> Answer:
    """Show every flow, and the newest runs."""
    now = organization.clock()
    listed = _table(
        ("Id", "Flow", "Tags", ""),
        (
            (escape(str(plan.id)), escape(plan.name), escape(", ".join(plan.tags)), _start_button(plan.id))
            for plan in organization.plans().values()
        ),
    )
    newest = reversed(organization.runs.all_runs()[-RUNS_SHOWN:])
    runs = _table(("Run", "Flow", "Status", "Started by", "Started", "Ended"), (_row(one, now) for one in newest))
    content = f"<p><a href='{FAULTS_PAGE}'>Faults</a></p><h2>Flows</h2>{listed}<h2>Newest runs</h2>{runs}"
    return _page("Etlworks sandbox", content, refresh=True)


def faults(armed: Faults) -> Answer:
    """Show the armed faults, and a form that arms one. The page does not reload itself, since people type into it."""
    shown = _table(
        ("Method", "Path", "The sandbox", "Times", "After"),
        (
            (
                escape(each["method"]),
                escape(each["path"]),
                escape(each["does"]),
                "all" if each["times"] is None else str(each["times"]),
                str(each["after"]),
            )
            for each in armed.described()
        ),
    )
    kinds = "".join(f"<option value='{kind}'>{kind}: {escape(does)}</option>" for kind, (does, _) in KINDS.items())
    fields = "".join(
        f"<p><label>{label} <input name='{name}' value='{value}'></label></p>"
        for name, label, value in (
            ("method", "Method, or * for all", "*"),
            ("path", "Path from the root; * matches any characters", "/rest/v1/executions/*"),
            ("code", "Status, for “status”", "503"),
            ("seconds", "Seconds until the answer", "0"),
            ("times", "To how many requests it applies; “all” until it is cleared", "1"),
            ("after", "How many matching requests pass first", "0"),
        )
    )
    arm = f"<p><label>Fault <select name='kind'>{kinds}</select></label></p>{fields}<button>Arm it</button>"
    content = (
        f"{shown}{_form(CLEAR_FAULTS_PATH, '<button>Clear all</button>')}"
        f"<h2>Arm a fault</h2>{_form(FAULTS_PATH, arm)}<p><a href='/'>All flows</a></p>"
    )
    return _page("Faults", content, refresh=False)


def _start_button(flow_id: int) -> str:
    button = "<button title='as its own schedule does'>Start by schedule</button>"
    return _form(RUNS_PATH, f"<input type='hidden' name='flow' value='{flow_id}'>{button}")


def _form(path: str, content: str) -> str:
    return f"<form method='post' action='{path}'>{content}</form>"


def run(organization: Organization, flow_id: int, audit_id: int) -> Answer:
    """Show one run and its log. The page reloads itself until the run has ended."""
    found = organization.runs.find(audit_id)
    if found is None or found.flow.id != flow_id:
        raise ApiError(404, f"Flow {flow_id} has no execution {audit_id}")
    now = organization.clock()
    facts = _table(
        (),
        [
            ("Status", _status(found, now)),
            ("Flow", f"{flow_id}"),
            ("Audit id", f"{audit_id}"),
            ("Started by", escape(found.event_name or found.user)),
            ("Started", _time(found.started(now))),
            ("Ended", _time(found.ended(now))),
            ("Records", f"{found.records(now):,}"),
        ],
    )
    log = escape("\n".join(found.log(now)))
    content = f"{facts}<h2>Log</h2><pre>{log}</pre><p><a href='/'>All flows</a></p>"
    return _page(found.flow.name, content, refresh=found.ended(now) is None)


def _row(one: Run, now: float) -> tuple[str, ...]:
    path = RUN_PATH.format(flow_id=one.flow.id, audit_id=one.audit_id)
    link = f"<a href='{path}'>{one.audit_id}</a>"
    by = escape(one.event_name or one.user)
    return link, escape(one.flow.name), _status(one, now), by, _time(one.started(now)), _time(one.ended(now))


def _status(one: Run, now: float) -> str:
    status = escape(one.status(now))
    return f"<span class='{status}'>{status}</span>"


def _time(at: float | None) -> str:
    return "" if at is None else datetime.fromtimestamp(at, timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    titles = "".join(f"<th>{title}</th>" for title in head)
    top = f"<tr>{titles}</tr>" if titles else ""
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table>{top}{body}</table>"


def _page(title: str, content: str, *, refresh: bool) -> Answer:
    again = "<meta http-equiv='refresh' content='2'>" if refresh else ""
    head = f"<meta charset='utf-8'>{again}<title>{escape(title)}</title><style>{_STYLE}</style>"
    html = f"<!doctype html><html><head>{head}</head><body><h1>{escape(title)}</h1>{content}</body></html>"
    return Answer.text(html, "html")
