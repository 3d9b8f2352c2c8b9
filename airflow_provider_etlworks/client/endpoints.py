"""
Every call to Etlworks, defined once, as a value.

A function here returns a :class:`Call`: the whole request, how to read its answer, and whether the server may safely
receive it twice. Nothing is sent; ``EtlworksClient.send(call)`` and ``await AsyncEtlworksClient.send(call)`` do that.

Paths are below ``/rest`` unless ``from_root`` is set. Sources: Etlworks's REST quickstart and code examples
(https://app.etlworks.com/rest is the cloud's base), and the older "Integrations and APIs" page for the legacy paths.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit

from airflow_provider_etlworks.client.call import (
    JSON_TYPE,
    MAX_LIST_BYTES,
    PAGE_SIZE,
    Call,
    PagedCall,
    Response,
    basic_token,
    json_body,
    list_of,
    optional,
    path_segment,
    read_anything,
    read_json,
    read_nothing,
    read_text,
    url_query,
)
from airflow_provider_etlworks.client.errors import (
    EtlworksConfigError,
    EtlworksReplyError,
)
from airflow_provider_etlworks.client.models import (
    AuditEvent,
    Connection,
    Execution,
    Flow,
    FlowStart,
    FlowTask,
    Health,
    MetricsSummary,
    Schedule,
    StartStatus,
    Webhook,
    as_object,
)
from airflow_provider_etlworks.client.redaction import excerpt
from airflow_provider_etlworks.client.settings import DEFAULT_PORTS, DEFAULT_STOP_PATH
from airflow_provider_etlworks.client.text import harmless

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Iterable, Sequence

    from airflow_provider_etlworks.client.streaming import Body

_MAX_LOG_BYTES = 256 * 1024 * 1024
_MAX_BUNDLE_BYTES = 2 * 1024 * 1024 * 1024
# Seconds beyond the read time-out.
_LOG_OVERTIME = 60.0
_BUNDLE_OVERTIME = 3_600.0

# --- Authentication -------------------------------------------------------------------------------------------------


def _token(response: Response) -> str:
    token = as_object(response.unredacted_json, "a token").get("token")
    # A header can hold no other.
    if not isinstance(token, str) or not token or not token.isascii() or not token.isprintable():
        raise EtlworksReplyError("The answer to a log-in has no token.")
    return token


def log_in(login: str, password: str) -> Call[str]:
    """Exchange login and password for a token (a JWT)."""
    return _log_in("/v1/token-auth", login, password)


def log_in_legacy(login: str, password: str) -> Call[str]:
    """Exchange login and password for a token, on servers that only have the older path."""
    return _log_in("/v1/token-auth/issue", login, password)


def _log_in(path: str, login: str, password: str) -> Call[str]:
    return Call(
        "POST", path, _token, **json_body({"login": login, "password": password}), idempotent=True, authenticated=False
    )


def refresh_token() -> Call[str]:
    """Exchange a token that is still valid for a new one."""
    return Call("POST", "/v1/token-auth/refresh", _token, idempotent=True)


def switch_tenant(tenant_id: str) -> Call[str]:
    """Get a token with another tenant in context. For super admins."""
    return Call("POST", f"/v1/token-auth/tenants/{path_segment(tenant_id)}", _token, idempotent=True)


# --- Flows ----------------------------------------------------------------------------------------------------------


def list_flows(
    *, q: str | None = None, tags: str | Iterable[str] = (), sort: str | None = None, since: str | None = None
) -> PagedCall[Flow]:
    """
    List flows. Etlworks returns all of them in one answer today; a server that pages is read to its end.

    :param q: only flows with this text in their name.
    :param tags: only flows with these tags; a text is one tag.
    :param sort: field to sort by, ``-`` before it for descending.
    :param since: ISO 8601; only flows changed after it.
    """
    return PagedCall("/v1/flows", Flow.from_json, query=url_query(q=q, tag=tags, sort=sort, since=since))


def get_flow(flow_id: int) -> Call[Flow]:
    """Read one whole flow. ``raw`` is not redacted, so that it can be changed and sent back."""
    return Call(
        "GET",
        f"/v1/flows/{flow_id}",
        lambda response: replace(Flow.from_json(response.json), raw=response.unredacted_json),
        idempotent=True,
        max_bytes=MAX_LIST_BYTES,
    )


def replace_flow(flow_id: int, flow: Mapping[str, Any]) -> Call[Flow]:
    """
    Replace a flow. What ``flow`` lacks is wiped: send what :func:`get_flow` returned in ``raw``, changed.

    An answer without a body means "done as sent".
    """
    return Call(
        "PUT",
        f"/v1/flows/{flow_id}",
        lambda response: Flow.from_json({**flow, "id": flow_id} if (value := response.json) is None else value),
        **json_body(dict(flow)),
        idempotent=True,
        max_bytes=MAX_LIST_BYTES,
    )


def run_flow(
    flow_id: int, parameters: Mapping[str, str] | None = None, options: Mapping[str, Any] | None = None
) -> Call[FlowStart]:
    """
    Start a flow. The body is the flat map of parameters itself.

    :param parameters: the flow's parameters.
    :param options: parameters of the URL, such as the one that allows parallel runs.
    """
    return Call(
        "POST",
        f"/v1/flows/{flow_id}/run",
        read_json(FlowStart.from_json),
        query=url_query(**(options or {})),
        **json_body(dict(parameters or {})),
    )


def run_flow_by_name(name: str, parameters: Mapping[str, str] | None = None) -> Call[FlowStart]:
    """Start a flow by name. Its parameters travel in the URL, where logs can see them: prefer :func:`run_flow`."""
    return Call(
        "POST",
        f"/v1/flows/flow-name/{path_segment(name)}/run",
        read_json(FlowStart.from_json),
        query=url_query(**(parameters or {})),
    )


def run_flow_by_name_legacy(name: str, parameters: Mapping[str, str] | None = None) -> Call[FlowStart]:
    """
    Run a flow by name and wait for it, by the legacy path.

    Its ``status`` has its own meaning: 0 is success and 1 is error, read as ``StartStatus.SUCCEEDED`` and
    ``StartStatus.FAILED``.
    """

    def read(response: Response) -> FlowStart:
        start = FlowStart.from_json(response.json)
        ended = {0: "SUCCEEDED", 1: "FAILED"}.get(start.status_code if start.status_code is not None else -1)
        return replace(start, status=StartStatus[ended] if ended else None)

    return Call(
        "POST",
        f"/plugins/flows/rest/v1/flows/flow-name/{path_segment(name)}/run/",
        read,
        query=url_query(**(parameters or {})),
        from_root=True,
    )


def stop_flow(flow_id: int, audit_id: int, stop_path: str = DEFAULT_STOP_PATH) -> Call[None]:
    """
    Ask Etlworks to stop a run. The run may go on for minutes before it really stops.

    :param stop_path: the path, with ``{flow_id}`` and ``{audit_id}`` in it.
    """
    parts = urlsplit(stop_path.format(flow_id=flow_id, audit_id=audit_id))
    return Call(
        "POST", parts.path, _read_no_page, query=parse_qsl(parts.query, keep_blank_values=True), idempotent=True
    )


def _read_no_page(response: Response) -> None:
    # What Etlworks answers is not documented. A page comes from a proxy or a log-in in between.
    if response.text.lstrip()[:1] == "<":
        _ = response.json


# --- Executions -----------------------------------------------------------------------------------------------------


def get_execution(flow_id: int, audit_id: int) -> Call[Execution]:
    """Read the record of one run."""
    return Call(
        "GET",
        f"/v1/executions/{flow_id}",
        # Not with read_json(): a watcher keeps thousands of these calls.
        lambda response: Execution.from_json(response.json, flow_id=flow_id, audit_id=audit_id),
        query=(("auditId", str(audit_id)),),
        idempotent=True,
        is_polled=True,
    )


def latest_execution(
    flow_id: int, *, status: str | None = None, message_uuid: str | None = None
) -> Call[Execution | None]:
    """
    Read the record of a flow's newest run; ``None`` if it never ran.

    :param status: the newest with this status.
    :param message_uuid: the one that this message started.
    """
    return Call(
        "GET",
        f"/v1/executions/{flow_id}",
        read_json(optional(lambda value: Execution.from_json(value, flow_id=flow_id))),
        query=url_query(status=status, messageId=message_uuid),
        idempotent=True,
        none_on_404=True,
    )


def execution_history(flow_id: int, *, since: str | None = None, limit: int = PAGE_SIZE) -> PagedCall[Execution]:
    """
    List a flow's runs, newest first.

    :param since: ISO 8601; only runs after it, if the server knows the filter.
    :param limit: how many to ask for at a time, 200 at most.
    """
    return PagedCall(
        f"/v1/executions/{flow_id}/history",
        lambda value: Execution.from_json(value, flow_id=flow_id),
        query=url_query(since=since),
        limit=limit,
    )


def execution_log(flow_id: int, audit_id: int) -> Call[str]:
    """Read the log of a run. It may be long: ``stream`` it if only its end matters."""
    return Call(
        "GET",
        "/v1/executions/console/download",
        read_text,
        query=url_query(flowId=flow_id, auditId=audit_id),
        idempotent=True,
        max_bytes=_MAX_LOG_BYTES,
        overtime=_LOG_OVERTIME,
    )


def get_execution_legacy(flow_id: int, audit_id: int) -> Call[Execution]:
    """Read the record of one run, by the legacy path."""
    return replace(get_execution(flow_id, audit_id), path=f"/plugins/dashboard/rest/v1/flows/{flow_id}", from_root=True)


def execution_log_legacy(flow_id: int, audit_id: int) -> Call[str]:
    """Read the log of a run, by the legacy path."""
    path = "/plugins/dashboard/rest/v1/flows/console/download"
    return replace(execution_log(flow_id, audit_id), path=path, from_root=True)


def executions_of_day(
    days_ago: int = 0,
    *,
    date: dt.date | None = None,
    include_metrics: bool = False,
    tenant_id: str | None = None,
) -> Call[list[Execution]]:
    """
    List all runs of all flows of one day of the tenant's time zone. For administrators.

    :param days_ago: 0 is today, 1 is yesterday.
    :param date: the day, instead of ``days_ago``. Older servers do not take it.
    :param include_metrics: whether the records have metrics, in ``raw``, and the exception message.
    :param tenant_id: another tenant, for super admins.
    :raises EtlworksConfigError: there are two days.
    """
    if date is not None and days_ago:
        raise EtlworksConfigError("Give either date or days_ago.")

    def runs_of_flow(value: Any) -> list[Execution]:
        flow = as_object(value, "a flow's runs")
        known = {"flowId": flow.get("flowId"), "flowName": flow.get("name")}
        read_runs = list_of(lambda run: Execution.from_json({**known, **as_object(run, "a run's record")}))
        return read_runs(flow.get("executions") or [])

    def read(value: Any) -> list[Execution]:
        return [run for runs in list_of(runs_of_flow)(value) for run in runs]

    return Call(
        "GET",
        "/v1/metrics/executions",
        read_json(read),
        query=url_query(
            date=date,
            offset=days_ago if date is None else None,
            includeMetrics=include_metrics or None,
            tenantId=tenant_id,
        ),
        idempotent=True,
        max_bytes=MAX_LIST_BYTES,
    )


def execution_tasks(audit_id: int, *, type: str | None = None) -> Call[list[FlowTask]]:  # noqa: A002  # Etlworks's name
    """
    List the tasks inside a run. For administrators.

    :param type: only ``stream``, ``extract``, ``load``, ``task`` or ``hwm``.
    """
    return Call(
        "GET",
        f"/etl/rest/v1/tasks/{audit_id}/",
        read_json(list_of(FlowTask.from_json)),
        max_bytes=MAX_LIST_BYTES,
        query=url_query(type=type),
        idempotent=True,
        from_root=True,
    )


def metrics_summary(window_hours: int = 24) -> Call[MetricsSummary]:
    """Read how many runs the last ``window_hours`` hours had, and how they ended."""
    return Call(
        "GET",
        "/v1/metrics/executions/summary",
        read_json(MetricsSummary.from_json),
        query=url_query(windowHours=window_hours),
        idempotent=True,
    )


def health(*, all_nodes: bool = False) -> Call[Health]:
    """
    Read how the instance is, without credentials. A proxy or an administrator may hide it.

    :param all_nodes: whether all nodes of a cluster are asked.
    """

    def read(value: Any) -> Health:
        found = Health.from_json(value)
        if found.status is None:
            raise EtlworksReplyError("The answer is not a health report: it has no status.")
        return found

    return Call(
        "GET",
        "/health",
        read_json(read),
        query=url_query(allNodes=all_nodes or None),
        idempotent=True,
        from_root=True,
        authenticated=False,
    )


# --- Promotion between environments ---------------------------------------------------------------------------------


def export_flows(flow_ids: Sequence[int], *, include_connections: bool = True) -> Call[bytes]:
    """Export flows, and the connections they use, as one bundle. Sensitive: never log it."""
    return Call(
        "POST",
        "/v1/io/export",
        lambda response: response.body,
        **json_body({"flowIds": list(flow_ids), "includeConnections": include_connections}),
        idempotent=True,
        max_bytes=_MAX_BUNDLE_BYTES,
        overtime=_BUNDLE_OVERTIME,
    )


def preview_import(bundle: bytes | Body) -> Call[Any]:
    """Ask what importing ``bundle`` would change. The answer's shape is not documented."""
    return Call(
        "POST",
        "/v1/io/import/preview",
        _import_answer,
        body=bundle,
        content_type=JSON_TYPE,
        idempotent=True,
        max_bytes=MAX_LIST_BYTES,
    )


def import_bundle(bundle: bytes | Body) -> Call[Any]:
    """Import ``bundle``. Never repeated: it may have been applied. The answer's shape is not documented."""
    return Call("POST", "/v1/io/import", _import_answer, body=bundle, content_type=JSON_TYPE, max_bytes=MAX_LIST_BYTES)


def _import_answer(response: Response) -> Any:
    """Read the answer to an import or its preview. An empty one is not an answer, unless its status is 204."""
    if response.status != 204 and not response.body.strip():
        raise EtlworksReplyError("The answer is empty.")
    try:
        return harmless(response.json)
    except EtlworksReplyError:
        # Only a page may be quoted: what else comes back may be a part of the bundle.
        said = f": {excerpt(response.text)!r}" if response.body.lstrip().startswith(b"<") else ""
        raise EtlworksReplyError(f"Expected JSON, got {len(response.body)} bytes that are not JSON{said}.") from None


def export_flows_legacy(flow_ids: Sequence[int] | None = None) -> Call[str]:
    """Export flows (``None``: all) as an encrypted dump, by the older path."""
    flows = "all" if flow_ids is None else ",".join(str(each) for each in flow_ids)
    # A dump is imported as it is.
    return Call(
        "GET",
        "/v1/flows/export",
        lambda response: response.body.decode("utf-8", "replace"),
        query=url_query(flows=flows),
        idempotent=True,
        max_bytes=_MAX_BUNDLE_BYTES,
        overtime=_BUNDLE_OVERTIME,
    )


def preview_import_legacy(dump: str | Body) -> Call[Any]:
    """
    Ask what importing a dump would change: ``graph``, ``flows``, ``connections``, ``formats``, ``schedules``.

    :param dump: the dump, or a whole body ``{"dump": "…"}``.
    """
    return Call(
        "POST",
        "/v1/flows/import/preview",
        read_json(lambda value: value),
        **_dump_body(dump),
        idempotent=True,
        max_bytes=MAX_LIST_BYTES,
    )


def import_bundle_legacy(dump: str | Body) -> Call[Any]:
    """
    Import a dump, by the older path. Path and body are an assumption of ours.

    :param dump: the dump, or a whole body ``{"dump": "…"}``.
    """
    return Call("POST", "/v1/flows/import", _import_answer, **_dump_body(dump), max_bytes=MAX_LIST_BYTES)


def _dump_body(dump: str | Body) -> dict[str, Any]:
    return json_body({"dump": dump}) if isinstance(dump, str) else {"body": dump, "content_type": JSON_TYPE}


# --- Connections, schedules, audit, webhooks ------------------------------------------------------------------------


def create_connection(connection: Mapping[str, Any]) -> Call[Connection]:
    """Create a connection: ``name description connectionType properties tags``."""
    return Call("POST", "/v1/connections", read_json(Connection.from_json), **json_body(dict(connection)))


def test_connection(connection: Mapping[str, Any]) -> Call[Any]:
    """Test a connection without saving it. The answer's shape is not documented."""
    return Call("POST", "/v1/connections/test", read_anything, **json_body(dict(connection)), idempotent=True)


def get_connection(connection_id: int) -> Call[Connection]:
    """Read a connection."""
    return Call("GET", f"/v1/connections/{connection_id}", read_json(Connection.from_json), idempotent=True)


def create_schedule(schedule: Mapping[str, Any]) -> Call[Schedule]:
    """Create a schedule: ``name description flowId schedule enabled tags``."""
    return Call("POST", "/v1/schedules", read_json(Schedule.from_json), **json_body(dict(schedule)))


def list_schedules() -> PagedCall[Schedule]:
    """List the schedules of all flows: Etlworks has no filter. For editors."""

    def read(value: Any) -> Schedule:
        schedule = Schedule.from_json(value)
        if schedule.id is None:
            raise EtlworksReplyError("The answer is not a schedule: it has no id.")
        return schedule

    return PagedCall("/v1/schedules", read)


def pause_schedule(schedule_id: int) -> Call[None]:
    """Turn a schedule off."""
    return Call("PUT", f"/v1/schedules/{schedule_id}/disable", read_nothing, idempotent=True)


def resume_schedule(schedule_id: int) -> Call[None]:
    """Turn a schedule on."""
    return Call("PUT", f"/v1/schedules/{schedule_id}/enable", read_nothing, idempotent=True)


def audit_events(
    *,
    resource_type: str | None = None,
    since: str | None = None,
    limit: int = PAGE_SIZE,
    with_exceptions: bool = False,
) -> PagedCall[AuditEvent]:
    """
    List the audit log. For administrators. Some releases always return the last 1,000 events.

    :param resource_type: only events of this kind of thing, such as ``flow``.
    :param since: ISO 8601; only events after it.
    :param limit: how many to ask for at a time, 200 at most.
    :param with_exceptions: whether failed events have the text of their error.
    """
    query = url_query(resourceType=resource_type, since=since, exception=with_exceptions or None)
    return PagedCall("/v1/audit", AuditEvent.from_json, query=query, limit=limit)


def audit_events_legacy(*, with_exceptions: bool = False) -> Call[list[AuditEvent]]:
    """List the last 1,000 audit events, by the legacy path. For administrators."""
    return Call(
        "GET",
        "/plugins/audit/rest/v1/audit",
        read_json(list_of(AuditEvent.from_json)),
        query=url_query(exception=with_exceptions or None),
        max_bytes=MAX_LIST_BYTES,
        idempotent=True,
        from_root=True,
    )


def create_webhook(webhook: Mapping[str, Any]) -> Call[Webhook]:
    """
    Create a webhook, by Etlworks's names of its fields.

    ``name description events url method contentType includeEntity headers secret basicUser basicPass flowIncludes
    flowExcludes enabled``; ``headers`` is a list of ``{"key": …, "value": …}``. The names of events are passed on
    unchecked, since they differ between releases. For administrators.
    """
    headers = webhook.get("headers")
    values = [each.get("value") for each in headers if isinstance(each, Mapping)] if isinstance(headers, list) else []
    # A header may repeat what is not secret, such as the content type.
    public = {text for text in webhook.values() if isinstance(text, str)}
    secrets = {webhook.get("secret"), webhook.get("basicPass"), *(each for each in values if each not in public)}
    return Call(
        "POST",
        "/v1/webhooks",
        read_json(Webhook.from_json),
        **json_body(dict(webhook)),
        secrets=tuple(each for each in secrets if isinstance(each, str) and each),
    )


def list_webhooks() -> PagedCall[Webhook]:
    """List all webhooks. For administrators. Etlworks does not document this call: an assumption."""
    return PagedCall("/v1/webhooks", Webhook.from_json)


def delete_webhook(webhook_id: int) -> Call[None]:
    """Delete a webhook. For administrators. Etlworks does not document this call: an assumption."""
    return Call("DELETE", f"/v1/webhooks/{webhook_id}", read_nothing, idempotent=True)


# --- HTTP listener, and everything else -----------------------------------------------------------------------------


# As much as a header may hold.
_CONTENT_TYPE = re.compile(r"[!-~]+/[ -~]+")
_LISTENER_METHODS = ("GET", "POST", "PUT", "DELETE")


def send_to_listener(
    path: str,
    payload: bytes | Body | None = None,
    content_type: str = JSON_TYPE,
    *,
    method: str = "POST",
    query: Mapping[str, Any] | None = None,
    basic: tuple[str, str] | None = None,
) -> Call[Any]:
    """
    Send a payload to a user-defined endpoint of Etlworks.

    Sent once: again only if no connection was made, since each method may start the flow. Any status may be the flow
    author's own, so none proves a refusal.

    :param path: the path that the flow's author chose, such as ``orders/new``.
    :param payload: what is sent; ``None`` is a request without a body. ``GET`` has none.
    :param content_type: its type, any that the author expects.
    :param method: the listener's method: ``GET``, ``POST``, ``PUT`` or ``DELETE``.
    :param query: parameters of the URL.
    :param basic: login and password, for a listener whose "Auth Type" is Basic. Without it, the client's token or API
        key is sent.
    :return: the author's own answer, or a receipt that may have the run's ``auditId`` or a ``messageUuid``: JSON if it
        is JSON, else text.
    """
    segments = path.strip("/").split("/")
    if not all(segments) or not {".", ".."}.isdisjoint(segments):
        raise EtlworksConfigError(f"A listener's path looks like 'orders/new'; this is {path!r}.")
    if not _CONTENT_TYPE.fullmatch(content_type):
        raise EtlworksConfigError(f"A content type looks like 'application/json'; this is {content_type!r}.")
    if method not in _LISTENER_METHODS:
        raise EtlworksConfigError(f"method is {method!r}; a listener's is {', '.join(_LISTENER_METHODS)}.")
    if payload is not None and method == "GET":
        raise EtlworksConfigError("A listener's GET has no payload: give none, or another method.")
    if basic is not None and (not all(basic) or ":" in basic[0]):
        raise EtlworksConfigError("Basic authentication takes a login without a colon, and a password.")
    return Call(
        method,
        "/".join(["/v1/httplistener", *map(path_segment, segments)]),
        read_anything,
        query=url_query(**(query or {})),
        body=payload,
        content_type=None if payload is None else content_type,
        authenticated=basic is None,
        basic=basic,
        secrets=() if basic is None else (basic_token(*basic), basic[1]),
        status_is_certain=False,
    )


def send_to_listener_legacy(
    path: str,
    payload: bytes | Body | None = None,
    content_type: str = JSON_TYPE,
    *,
    method: str = "POST",
    query: Mapping[str, Any] | None = None,
    basic: tuple[str, str] | None = None,
) -> Call[Any]:
    """Send a payload to a user-defined endpoint, by the legacy path."""
    call = send_to_listener(path, payload, content_type, method=method, query=query, basic=basic)
    return replace(call, path=f"/plugins/schedules/rest{call.path}", from_root=True)


_UNSAFE_IN_PATH = re.compile(r"[^!-~]|[#\\]")
_ABSOLUTE = re.compile(r"[a-z][a-z0-9+.-]*:|//", re.IGNORECASE)


def _below(root_url: str, url: str) -> str:
    """
    Return the path and the query of an absolute URL below the bare address of the connection's instance.

    :raises EtlworksConfigError: it belongs to another host.
    """
    root = urlsplit(root_url)
    try:
        parts = urlsplit(url)
        port = parts.port or DEFAULT_PORTS.get(parts.scheme)
        is_ours = (parts.scheme, parts.hostname, parts.username) == (root.scheme, root.hostname, None)
        is_ours &= port == (root.port or DEFAULT_PORTS[root.scheme])
    except ValueError:
        is_ours = False
    if not is_ours or not f"{parts.path}/".startswith(f"{root.path}/"):
        raise EtlworksConfigError(
            f"The URL of a request belongs to another host than the connection's {root_url}: "
            "credentials are sent to the connection's host only."
        )
    path = parts.path[len(root.path) :] or "/"
    return f"{path}?{parts.query}" if parts.query else path


def request(
    method: str,
    path: str,
    *,
    query: Mapping[str, Any] | None = None,
    json: Any = None,
    root_url: str,
) -> Call[Any]:
    """
    Describe any other call.

    :param method: the HTTP method.
    :param path: percent-encoded path below ``/rest``, which it may begin with, or an absolute URL of the same host.
    :param query: parameters of the URL; a list repeats its name.
    :param json: body, sent as JSON; ``None`` sends no body.
    :param root_url: the connection's bare host, which an absolute URL must share.
    :return: the answer as JSON if it is JSON, else text; ``None`` if it is empty.
    :raises EtlworksConfigError: it is not a path, or the URL belongs to another host.
    """
    method = method.upper()
    is_safe = not _UNSAFE_IN_PATH.search(path.partition("?")[0])
    from_root = bool(_ABSOLUTE.match(path))
    if from_root:
        path = _below(root_url, path)
    path, _, inline_query = path.partition("?")
    if not path or not is_safe:
        raise EtlworksConfigError(
            f"The path of a request is percent-encoded, and looks like '/v1/flows'; this is {path!r}. "
            "Parameters go into query."
        )
    if not from_root:
        path = f"/{path.removeprefix('/').removeprefix('rest/')}"
    return Call(
        method,
        path,
        read_anything,
        query=[*parse_qsl(inline_query, keep_blank_values=True), *url_query(**(query or {}))],
        **(json_body(json) if json is not None else {}),
        idempotent=method in ("GET", "HEAD", "PUT", "DELETE"),
        from_root=from_root,
        status_is_certain="/httplistener/" not in path,
        max_bytes=MAX_LIST_BYTES,
    )
