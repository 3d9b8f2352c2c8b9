"""What a person or a second terminal can do with a running sandbox, below ``/sandbox``: start runs, and arm faults."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

from airflow_provider_etlworks.sandbox import faults
from airflow_provider_etlworks.sandbox.messages import Answer, ApiError, Request, parse_number

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from airflow_provider_etlworks.sandbox.faults import Fault, Faults
    from airflow_provider_etlworks.sandbox.organization import Organization
    from airflow_provider_etlworks.sandbox.runs import Run

PREFIX = "/sandbox/"
RUNS_PATH = "/sandbox/runs"
FAULTS_PATH = "/sandbox/faults"
CLEAR_FAULTS_PATH = "/sandbox/faults/clear"
SCHEDULE = "schedule"
RUNS_SHOWN = 50

KINDS: Mapping[str, tuple[str, Callable[[int, float], Fault]]] = {
    "status": ("answers with an error status, and does nothing", lambda code, wait: faults.status(code, delay=wait)),
    "delay": ("answers late", lambda code, wait: faults.delay(wait)),
    "hang-up": ("does what is asked, and drops the connection", lambda code, wait: faults.hang_up(delay=wait)),
    "drop": (
        "drops the connection, and does nothing",
        lambda code, wait: faults.hang_up(carried_out=False, delay=wait),
    ),
    "html": ("does what is asked, and answers with a page", lambda code, wait: faults.broken_body()),
    "truncated": ("does what is asked, and sends half of the answer", lambda code, wait: faults.truncated()),
}
"""The faults that can be armed by name: what each does, and how it is made from a status and seconds."""


def answer(request: Request, organization: Organization, armed: Faults) -> Answer:
    """
    Process a request below ``/sandbox``. Forms send fields as browsers do, and return to the front page.

    :param request: The request.
    :param organization: The sandbox's flows and runs.
    :param armed: The sandbox's faults.
    """
    try:
        return _answer(request, organization, armed)
    except ApiError as error:
        return Answer.error(error, request.path)
    except ValueError as error:
        return Answer.error(ApiError(400, str(error)), request.path)


def _answer(request: Request, organization: Organization, armed: Faults) -> Answer:
    now = organization.clock()
    if request.method == "GET":
        if request.path == RUNS_PATH:
            newest = reversed(organization.runs.all_runs()[-RUNS_SHOWN:])
            return Answer.json([_described(run, now) for run in newest])
        if request.path == FAULTS_PATH:
            return Answer.json(armed.described())
    elif request.method == "POST":
        _refuse_other_sites(request)
        form = {name: values[0].strip() for name, values in parse_qs(request.body.decode(errors="replace")).items()}
        if request.path == RUNS_PATH:
            return _done(request, _described(_start(form, organization), now))
        if request.path == FAULTS_PATH:
            _arm(form, armed)
            return _done(request, armed.described())
        if request.path == CLEAR_FAULTS_PATH:
            armed.clear()
            return _done(request, [])
    raise ApiError(404, f"No such control: {request.method} {request.path}")


def _refuse_other_sites(request: Request) -> None:
    """Refuse forms of other web sites: a browser on this machine would send them too."""
    origin = request.headers.get("Origin")
    if origin is not None and urlsplit(origin).netloc != request.headers.get("Host"):
        raise ApiError(403, "This form belongs to another site")


def _start(form: Mapping[str, str], organization: Organization) -> Run:
    plan = organization.plans().get(flow_id := parse_number(form.get("flow", ""), "flow"))
    if plan is None:
        raise ApiError(404, f"Flow {flow_id} does not exist")
    by = form.get("by", SCHEDULE)
    return organization.run_by_schedule(plan) if by == SCHEDULE else organization.begin_run(plan, by)


def _arm(form: Mapping[str, str], armed: Faults) -> None:
    kind = form.get("kind", "")
    if kind not in KINDS:
        raise ApiError(400, f"kind: expected one of {', '.join(KINDS)}, got {kind!r}")
    try:
        seconds = float(form.get("seconds", 0))
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= 3600:  # NaN is refused too
        raise ApiError(400, "seconds: expected a number from 0 to 3600")
    code = parse_number(form.get("code", "503"), "code")
    if not 100 <= code <= 599:
        raise ApiError(400, "code: expected an HTTP status, from 100 to 599")
    times = None if form.get("times") == "all" else parse_number(form.get("times", "1"), "times")
    fault = KINDS[kind][1](code, seconds)
    armed.arm(
        form.get("method", "*"), form.get("path", "*"), fault, times, parse_number(form.get("after", "0"), "after")
    )


def _done(request: Request, result: Any) -> Answer:
    if "text/html" in request.headers.get("Accept", ""):
        return Answer(303, headers={"Location": "/"})
    return Answer.json(result)


def _described(run: Run, now: float) -> dict[str, Any]:
    return {
        "auditId": run.audit_id,
        "flowId": run.flow.id,
        "flow": run.flow.name,
        "status": run.status(now),
        "startedBy": run.event_name or run.user,
        "started": _time(run.started(now)),
        "ended": _time(run.ended(now)),
    }


def _time(at: float | None) -> str | None:
    return None if at is None else datetime.fromtimestamp(at, timezone.utc).isoformat(timespec="seconds")
