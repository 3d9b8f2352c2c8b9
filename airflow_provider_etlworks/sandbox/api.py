"""The documented REST API, as functions from a request to an answer. It uses no sockets."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, time, timedelta, timezone, tzinfo
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from airflow_provider_etlworks.sandbox import export_import, pages
from airflow_provider_etlworks.sandbox.messages import (
    Answer,
    ApiError,
    Later,
    Request,
    json_type,
    milliseconds,
    parse_number,
    required,
)
from airflow_provider_etlworks.sandbox.organization import Organization, connection_body

if TYPE_CHECKING:
    from airflow_provider_etlworks.sandbox.limits import RateLimit
    from airflow_provider_etlworks.sandbox.runs import Run
    from airflow_provider_etlworks.sandbox.tokens import Identity, Tokens

API_ROOTS = ("/rest/", "/plugins/", "/etl/")

# The integer of a FlowExecutionResponse, which is the outcome of the start or stop, not the run's status.
STARTED, ALREADY_RUNNING, CANCELED, NOT_RUNNING = 0, 1, 2, 3
LEGACY_SUCCESS, LEGACY_ERROR = 0, 1
LEGACY_AUDIT_EVENTS = 1000
TASK_TYPES = ("stream", "extract", "load", "task", "hwm")

Outcome = Answer | Later


@dataclass(frozen=True)
class Settings:
    """
    How this Etlworks differs from others.

    :param administrator: Whether the sandbox's user is an administrator and super admin.
    :param issue_path_only: Whether only the older log-in path exists.
    :param tells_running_audit_id: Whether "already running" contains the audit id of the run that is going.
    :param time_zone: The tenant's time zone, in which days begin.
    :param api_user: Whether the sandbox's user has the role API User, which may call listeners only.
    :param api_keys: Whether API keys work for the user's role.
    :param audit_keys: The shape of the audit log: ``long``, or ``short`` as another release has it.
    :param takes_dates: Whether the report of a day takes a date; an older one ignores it.
    """

    administrator: bool = True
    issue_path_only: bool = False
    tells_running_audit_id: bool = False
    time_zone: tzinfo = timezone.utc
    takes_dates: bool = True
    api_user: bool = False
    api_keys: bool = True
    audit_keys: str = "long"


@dataclass(frozen=True)
class Route:
    """One method of one path. A ``public`` route needs no token; ``administrator`` requires that role."""

    method: str
    path: re.Pattern[str]
    handler: Callable[..., Outcome]
    administrator: bool
    public: bool


ROUTES: list[Route] = []

Handler = Callable[..., Outcome]


def route(method: str, *paths: str, administrator: bool = False, public: bool = False) -> Callable[[Handler], Handler]:
    """Register a handler. ``{name}`` is one path segment, ``{name*}`` the rest of the path."""

    def register(handler: Handler) -> Handler:
        ROUTES.extend(Route(method, _compiled(path), handler, administrator, public) for path in paths)
        return handler

    return register


def _compiled(path: str) -> re.Pattern[str]:
    pattern = re.sub(r"\{(\w+)\*\}", r"(?P<\1>.+)", path)
    pattern = re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", pattern)
    # The examples of the older API have paths with and without a slash at the end.
    return re.compile(pattern if path.startswith("/rest/") else pattern.rstrip("/") + "/?")


class Api:
    """
    Answers requests.

    :param organization: The state behind the answers.
    :param tokens: Issues and checks tokens.
    :param limit: The rate limit.
    :param settings: How this Etlworks differs from others.
    """

    def __init__(self, organization: Organization, tokens: Tokens, limit: RateLimit, settings: Settings) -> None:
        self.organization = organization
        self.tokens = tokens
        self.settings = settings
        self._limit = limit

    def answer(self, request: Request) -> Outcome:
        """Process one request."""
        try:
            if request.path.startswith(API_ROOTS):
                self._limit.admit()
            found, values = self._find(request)
            return found.handler(self, request, **values)
        except ApiError as error:
            return Answer.error(error, request.path)

    def identify(self, request: Request) -> Identity:
        """Identify the user, and record user and tenant on the request; 401 without valid credentials."""
        identity = self.tokens.identify(request.headers.get("Authorization", ""))
        if identity.by_key and not self.settings.api_keys:
            raise ApiError(401, "API keys are disabled for this role")
        request.user, request.tenant = identity.user, identity.tenant
        return identity

    def _find(self, request: Request) -> tuple[Route, dict[str, str]]:
        """Find the handler and check permission. Without a token, unknown paths answer 401, as known ones do."""
        matches = [(known, match) for known in ROUTES if (match := known.path.fullmatch(request.path))]
        found = next(((known, match) for known, match in matches if known.method == request.method), None)
        if request.path.startswith(API_ROOTS) and not (found and found[0].public):
            self.identify(request)
            if self.settings.api_user:
                raise ApiError(403, "The role API User cannot call the built-in API")
        if found and found[0].administrator and not self.settings.administrator:
            raise ApiError(403, "This needs the Administrator role")
        if found:
            return found[0], {name: unquote(value) for name, value in found[1].groupdict().items()}
        if matches:
            allowed = sorted({known.method for known, _ in matches})
            raise ApiError(405, f"{request.method} is not allowed here", {"Allow": ", ".join(allowed)})
        raise ApiError(404, "No such path")


# Authentication


@route("POST", "/rest/v1/token-auth", public=True)
def log_in(api: Api, request: Request) -> Answer:
    """Exchange login and password for a token."""
    if api.settings.issue_path_only:
        raise ApiError(404, "No such path")
    return _token(api, request)


@route("POST", "/rest/v1/token-auth/issue", public=True)
def log_in_legacy(api: Api, request: Request) -> Answer:
    """Exchange login and password for a token, on the older path."""
    return _token(api, request)


def _token(api: Api, request: Request) -> Answer:
    body = request.json_object()
    token = api.tokens.log_in(required(body, "login", str), required(body, "password", str))
    api.organization.record_event("login", "user", None, body["login"])
    return Answer.json({"token": token})


@route("POST", "/rest/v1/token-auth/refresh")
def refresh_token(api: Api, request: Request) -> Answer:
    """Exchange a valid token for a new one."""
    return Answer.json({"token": api.tokens.refresh(api.identify(request))})


@route("POST", "/rest/v1/token-auth/tenants/{tenant_id}", administrator=True)
def switch_tenant(api: Api, request: Request, tenant_id: str) -> Answer:
    """Return a token for that tenant."""
    identity = replace(api.identify(request), tenant=tenant_id, by_key=False)
    return Answer.json({"token": api.tokens.issue(identity)})


# Flows


@route("GET", "/rest/v1/flows")
def list_flows(api: Api, request: Request) -> Answer:
    """List all flows. This list is not paged."""
    return Answer.json(filtered(api.organization.summaries(), request))


@route("GET", "/rest/v1/flows/export")
def export_flows_legacy(api: Api, request: Request) -> Answer:
    """Export flows as text."""
    wanted = request.text("flows")
    if not wanted:
        raise ApiError(400, "Parameter 'flows' is required: 'all', or flow ids with commas between them")
    if wanted == "all":
        flow_ids = list(api.organization.plans())
    else:
        flow_ids = [parse_number(flow_id, "flows") for flow_id in wanted.split(",")]
    dump = export_import.dump(export_import.export(api.organization, flow_ids, include_connections=True))
    return Answer.text(dump)


@route("POST", "/rest/v1/flows/import/preview")
def preview_import_legacy(api: Api, request: Request) -> Answer:
    """Report what importing such a text would change."""
    bundle = export_import.load_dump(required(request.json_object(), "dump", str))
    return Answer.json(export_import.preview(api.organization, bundle))


@route("POST", "/rest/v1/flows/import")
def import_bundle_legacy(api: Api, request: Request) -> Answer:
    """Import such a text."""
    bundle = export_import.load_dump(required(request.json_object(), "dump", str))
    return Answer.json(export_import.apply(api.organization, bundle, request.user))


@route("GET", "/rest/v1/flows/{flow_id}")
def read_flow(api: Api, request: Request, flow_id: str) -> Answer:
    """Return the whole flow."""
    return Answer.json(api.organization.document(parse_number(flow_id, "flowId")))


@route("PUT", "/rest/v1/flows/{flow_id}")
def replace_flow(api: Api, request: Request, flow_id: str) -> Answer:
    """Replace the whole flow."""
    return Answer.json(
        api.organization.replace_flow(parse_number(flow_id, "flowId"), request.json_object(), request.user)
    )


@route("POST", "/rest/v1/flows/{flow_id}/run")
def run_flow(api: Api, request: Request, flow_id: str) -> Answer:
    """Start a run by the flow's id."""
    flow = api.organization.flow(parse_number(flow_id, "flowId"))
    return _start(api, flow.id, run_parameters(request.json_object()), request.user)


@route("POST", "/rest/v1/flows/flow-name/{name}/run")
def run_flow_by_name(api: Api, request: Request, name: str) -> Answer:
    """Start a run by the flow's name."""
    return _start(api, api.organization.flow_by_name(name).id, _query_parameters(request), request.user)


@route("POST", "/plugins/flows/rest/v1/flows/flow-name/{name}/run")
def run_flow_and_wait(api: Api, request: Request, name: str) -> Outcome:
    """Run a flow by its name, and answer when the run ends, as the older API does."""
    flow = api.organization.flow_by_name(name)
    run = api.organization.start_run(flow, request.user, _query_parameters(request))
    if run is None:
        return Answer.json({"status": LEGACY_ERROR, "exception": f"Flow '{name}' is already running"})

    def ended() -> Answer | None:
        now = api.organization.clock()
        if run.ended(now) is None:
            return None
        if run.status(now) in {"success", "warning"}:
            return Answer.json({"status": LEGACY_SUCCESS})
        return Answer.json({"status": LEGACY_ERROR, "exception": run.exception(now) or f"Flow '{name}' was canceled"})

    return ended


@route("POST", "/rest/v1/flows/{flow_id}/stop")
def stop_flow(api: Api, request: Request, flow_id: str) -> Answer:
    """Ask a run to stop: the one with the audit id, else the newest."""
    organization = api.organization
    flow = organization.flow(parse_number(flow_id, "flowId"))
    run = organization.run_to_stop(flow.id, request.integer("auditId"))
    outcome = CANCELED if organization.stop_run(run, request.user) else NOT_RUNNING
    return Answer.json({"flowId": flow.id, "auditId": run.audit_id, "status": outcome})


def run_parameters(body: Mapping[str, Any]) -> dict[str, str]:
    """Check that a run's body is a flat map of strings; 400 names the field that is not."""
    for name, value in body.items():
        if not isinstance(value, str):
            hint = "; the body itself is the map of parameters" if isinstance(value, dict) else ""
            raise ApiError(400, f"Parameter '{name}' must be a string, not {json_type(value)}{hint}")
    return dict(body)


def _query_parameters(request: Request) -> dict[str, str]:
    if request.body:
        raise ApiError(400, "A run by name takes its parameters from the URL and has no body")
    return {name: values[0] for name, values in request.query.items()}


def _start(api: Api, flow_id: int, parameters: Mapping[str, str], user: str) -> Answer:
    run = api.organization.start_run(api.organization.flow(flow_id), user, parameters)
    if run is not None:
        return Answer.json({"flowId": flow_id, "auditId": run.audit_id, "status": STARTED})
    answer = {"flowId": flow_id, "status": ALREADY_RUNNING}
    if api.settings.tells_running_audit_id:
        answer["auditId"] = api.organization.runs.unfinished(flow_id)[-1].audit_id
    return Answer.json(answer)


# Executions


@route("GET", "/rest/v1/executions/console/download", "/plugins/dashboard/rest/v1/flows/console/download")
def download_log(api: Api, request: Request) -> Answer:
    """Return a run's log as an attachment."""
    flow_id, audit_id = request.integer("flowId"), request.integer("auditId")
    if flow_id is None or audit_id is None:
        raise ApiError(400, "Parameters 'flowId' and 'auditId' are required")
    run = api.organization.run(flow_id, audit_id)
    text = "".join(f"{line}\n" for line in run.log(api.organization.clock()))
    attachment = {"Content-Disposition": f'attachment; filename="flow-{flow_id}-{audit_id}.log"'}
    return Answer.text(text, headers=attachment)


@route("GET", "/rest/v1/executions/{flow_id}", "/plugins/dashboard/rest/v1/flows/{flow_id}")
def read_execution(api: Api, request: Request, flow_id: str) -> Answer:
    """Return one run's record: by audit id, by message, or the newest."""
    organization, number_of_flow = api.organization, parse_number(flow_id, "flowId")
    audit_id, message_id = request.integer("auditId"), request.text("messageId")
    if audit_id is not None:
        run = organization.run(number_of_flow, audit_id)
    elif message_id is not None:
        run = organization.run_by_message(number_of_flow, message_id)
    else:
        run = organization.newest_run(number_of_flow, request.text("status"))
    return Answer.json(run.record(organization.clock()))


@route("GET", "/rest/v1/executions/{flow_id}/history")
def read_history(api: Api, request: Request, flow_id: str) -> Answer:
    """List a flow's runs, newest first."""
    flow = api.organization.flow(parse_number(flow_id, "flowId"))
    since, now = request.timestamp("since"), api.organization.clock()
    runs = [run for run in api.organization.runs.newest_first(flow.id) if since is None or run.accepted > since]
    return paged(runs, request, lambda run: run.record(now))


@route("GET", "/rest/v1/metrics/executions", administrator=True)
def report_day(api: Api, request: Request) -> Answer:
    """List all runs of a day of the tenant's time zone, by flow."""
    now, zone = api.organization.clock(), api.settings.time_zone
    written, offset = request.text("date"), request.integer("offset")
    if written is not None and offset is not None and api.settings.takes_dates:
        raise ApiError(400, "Give either 'date' or 'offset'")
    day = datetime.fromtimestamp(now, zone).date() - timedelta(days=offset or 0)
    if written is not None and api.settings.takes_dates:
        try:
            day = datetime.strptime(written, "%Y-%m-%d").date()  # only its date is read
        except ValueError:
            raise ApiError(400, f"Parameter 'date' must be YYYY-MM-DD, not '{written}'") from None
    with_metrics = request.text("includeMetrics") == "true"
    begin, end = (datetime.combine(each, time(), zone).timestamp() for each in (day, day + timedelta(days=1)))
    by_flow: dict[int, list[Run]] = {}
    for run in api.organization.runs.between(begin, end):
        by_flow.setdefault(run.flow.id, []).append(run)
    return Answer.json(
        [
            {
                "flowId": flow_id,
                "name": runs[-1].flow.name,
                "icon": "flow",
                "executions": [run.report_entry(now, with_metrics=with_metrics) for run in runs],
            }
            for flow_id, runs in by_flow.items()
        ]
    )


@route("GET", "/rest/v1/metrics/executions/summary", administrator=True)
def summarize_executions(api: Api, request: Request) -> Answer:
    """Count the runs of the last hours that have ended, and summarize their durations."""
    now = api.organization.clock()
    hours = request.integer("windowHours")
    begin = now - (24 if hours is None else hours) * 3600
    ended = [run for run in api.organization.runs.between(begin, now + 1) if run.ended(now) is not None]
    succeeded = sum(run.status(now) in {"success", "warning"} for run in ended)
    durations = sorted(round((run.ends - run.begins) * 1000) for run in ended if run.started(now) is not None)
    return Answer.json(
        {
            "total": len(ended),
            "succeeded": succeeded,
            "failed": len(ended) - succeeded,
            "avgDurationMs": round(sum(durations) / len(durations)) if durations else 0,
            "p95DurationMs": durations[(len(durations) * 95 - 1) // 100] if durations else 0,
        }
    )


@route("GET", "/etl/rest/v1/tasks/{audit_id}", administrator=True)
def list_tasks(api: Api, request: Request, audit_id: str) -> Answer:
    """List the steps inside a run."""
    run = api.organization.runs.find(parse_number(audit_id, "auditId"))
    if run is None:
        raise ApiError(404, f"No execution {audit_id}")
    kind = request.text("type")
    if kind is not None and kind not in TASK_TYPES:
        raise ApiError(400, f"Parameter 'type' must be one of {', '.join(TASK_TYPES)}")
    tasks = api.organization.run(run.flow.id, run.audit_id).tasks(api.organization.clock())
    return Answer.json([task for task in tasks if kind in {None, task["type"]}])


# Promotion between environments


@route("POST", "/rest/v1/io/export")
def export_flows(api: Api, request: Request) -> Answer:
    """Export flows as a bundle."""
    body = request.json_object()
    flow_ids = required(body, "flowIds", list)
    if not flow_ids or not all(type(flow_id) is int for flow_id in flow_ids):
        raise ApiError(400, "Field 'flowIds' must be a list of flow ids, one at least")
    include_connections = body.get("includeConnections", True)
    if not isinstance(include_connections, bool):
        raise ApiError(400, "Field 'includeConnections' must be true or false")
    return Answer(200, export_import.encode(export_import.export(api.organization, flow_ids, include_connections)))


@route("POST", "/rest/v1/io/import/preview")
def preview_import(api: Api, request: Request) -> Answer:
    """Report what importing a bundle would change."""
    return Answer.json(export_import.preview(api.organization, request.json_object()))


@route("POST", "/rest/v1/io/import")
def import_bundle(api: Api, request: Request) -> Answer:
    """Import a bundle."""
    return Answer.json(export_import.apply(api.organization, request.json_object(), request.user))


# Connections, schedules, webhooks, audit, listeners


@route("POST", "/rest/v1/connections")
def create_connection(api: Api, request: Request) -> Answer:
    """Create a connection."""
    return Answer.json(api.organization.create_connection(request.json_object(), request.user), 201)


@route("POST", "/rest/v1/connections/test")
def test_connection(api: Api, request: Request) -> Answer:
    """Test a connection without saving it. A host that ends with ``.invalid`` cannot be reached."""
    connection = connection_body(request.json_object())
    unreachable = [value for value in connection["properties"].values() if str(value).endswith(".invalid")]
    if unreachable:
        return Answer.json({"success": False, "message": f"Cannot reach host '{unreachable[0]}'"})
    return Answer.json({"success": True})


@route("GET", "/rest/v1/connections/{connection_id}")
def read_connection(api: Api, request: Request, connection_id: str) -> Answer:
    """Return one connection."""
    return Answer.json(api.organization.connection(parse_number(connection_id, "connectionId")))


@route("POST", "/rest/v1/schedules")
def create_schedule(api: Api, request: Request) -> Answer:
    """Create a schedule."""
    return Answer.json(api.organization.create_schedule(request.json_object(), request.user), 201)


@route("GET", "/rest/v1/schedules")
def list_schedules(api: Api, request: Request) -> Answer:
    """List all schedules. This list is neither paged nor filtered."""
    return Answer.json(list(api.organization.schedules.values()))


@route("PUT", "/rest/v1/schedules/{schedule_id}/enable")
def enable_schedule(api: Api, request: Request, schedule_id: str) -> Answer:
    """Resume a schedule."""
    return Answer.json(api.organization.enable_schedule(parse_number(schedule_id, "scheduleId"), True, request.user))


@route("PUT", "/rest/v1/schedules/{schedule_id}/disable")
def disable_schedule(api: Api, request: Request, schedule_id: str) -> Answer:
    """Pause a schedule."""
    return Answer.json(api.organization.enable_schedule(parse_number(schedule_id, "scheduleId"), False, request.user))


@route("POST", "/rest/v1/webhooks", administrator=True)
def create_webhook(api: Api, request: Request) -> Answer:
    """Create a webhook. It never delivers anything."""
    return Answer.json(api.organization.create_webhook(request.json_object(), request.user), 201)


@route("GET", "/rest/v1/webhooks", administrator=True)
def list_webhooks(api: Api, request: Request) -> Answer:
    """List all webhooks. Etlworks does not document this call."""
    return Answer.json(list(api.organization.webhooks.values()))


@route("DELETE", "/rest/v1/webhooks/{webhook_id}", administrator=True)
def delete_webhook(api: Api, request: Request, webhook_id: str) -> Answer:
    """Delete a webhook. Etlworks does not document this call."""
    api.organization.delete_webhook(parse_number(webhook_id, "webhookId"), request.user)
    return Answer.json({})


@route("GET", "/health", public=True)
def read_health(api: Api, request: Request) -> Answer:
    """Report that the server works."""
    now = api.organization.clock()
    going = sum(run.ended(now) is None for run in api.organization.runs.between(0, now + 1))
    node = {"status": "UP", "db": {"status": "UP", "version": "13.0", "running.flows": going}}
    return Answer.json({**node, "nodes": [node]} if request.text("allNodes") == "true" else node)


@route("GET", "/rest/v1/audit", administrator=True)
def read_audit(api: Api, request: Request) -> Outcome:
    """List the audit events, newest first."""
    kind, since = request.text("resourceType"), milliseconds(request.timestamp("since"))
    events = [
        event
        for event in api.organization.audit
        if kind in {None, event["resourceType"]} and (since is None or event["timestamp"] > since)
    ]
    return paged(events, request) if api.settings.audit_keys == "long" else read_audit_legacy(api, request)


@route("GET", "/plugins/audit/rest/v1/audit", administrator=True)
def read_audit_legacy(api: Api, request: Request) -> Answer:
    """List the last events, in the shape of this release."""
    last = list(api.organization.audit)[:LEGACY_AUDIT_EVENTS]
    if api.settings.audit_keys == "long":
        return Answer.json(last)
    with_exception = {"ex": ""} if request.text("exception") == "true" else {}
    return Answer.json([{**_in_short_keys(position, event), **with_exception} for position, event in enumerate(last)])


def _in_short_keys(position: int, event: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "id": LEGACY_AUDIT_EVENTS - position,
        "an": "etl",
        "md": event["action"],
        "ur": event["user"],
        "tn": "sandbox",
        "rt": True,
        "in": False,
        "hip": "127.0.0.1",
        "cip": "127.0.0.1",
        "dn": 0,
        "dt": str(event["timestamp"]),
    }


def receive_message(api: Api, request: Request, path: str) -> Answer:
    """Start a run of the flow that listens at the path, for the user of its kind of authentication."""
    flow = api.organization.listening(path)
    if flow is not None and flow.listener_auth == "basic":
        identity = api.tokens.identify_basic(request.headers.get("Authorization", ""))
        request.user, request.tenant = identity.user, identity.tenant
    else:
        api.identify(request)
    if flow is None:
        raise ApiError(404, f"No flow listens at '{path}'")
    if request.method not in flow.listener_methods:
        allowed = {"Allow": ", ".join(flow.listener_methods)}
        raise ApiError(405, f"{request.method} is not allowed here", allowed)
    run = api.organization.receive(flow, request.user)
    receipts = {"auditId": run.audit_id, "messageUuid": run.message_id}
    return Answer.json(
        {name: value for name, value in receipts.items() if name == flow.receipt} | {"status": "accepted"}
    )


for _method in ("GET", "POST", "PUT", "DELETE"):
    _paths = ("/rest/v1/httplistener/{path*}", "/plugins/schedules/rest/v1/httplistener/{path*}")
    # It authenticates its caller itself.
    route(_method, *_paths, public=True)(receive_message)


# Pages for people


@route("GET", "/", public=True)
def show_flows(api: Api, request: Request) -> Answer:
    """Show the front page."""
    return pages.flows(api.organization)


@route("GET", "/ui/flows/{flow_id}/runs/{audit_id}", public=True)
def show_run(api: Api, request: Request, flow_id: str, audit_id: str) -> Answer:
    """Show the page of one run."""
    return pages.run(api.organization, parse_number(flow_id, "flowId"), parse_number(audit_id, "auditId"))


# Lists


def filtered(items: Iterable[Mapping[str, Any]], request: Request) -> list[Mapping[str, Any]]:
    """Apply the filters of most lists: ``q``, ``tag``, ``since`` and ``sort``."""
    part, tags, since = request.text("q"), set(request.query.get("tag", ())), milliseconds(request.timestamp("since"))
    found = [
        item
        for item in items
        if (part is None or part.lower() in item["name"].lower())
        and tags <= set(item["tags"])
        and (since is None or item["modified"] > since)
    ]
    order = request.text("sort")
    if order:
        field = order.removeprefix("-")
        if any(isinstance(item.get(field, []), (list, dict)) for item in found):
            raise ApiError(400, f"Parameter 'sort' must be a field to sort by, not '{order}'")
        found.sort(key=lambda item: (item[field] is not None, item[field]), reverse=order.startswith("-"))
    return found


def paged(items: list[Any], request: Request, written: Callable[[Any], Any] = lambda item: item) -> Answer:
    """Return the page that ``limit`` and ``offset`` select, and the length of the whole list."""
    part = [written(item) for item in items[request.page()]]
    return Answer.json(part, headers={"X-Total-Count": str(len(items))})
