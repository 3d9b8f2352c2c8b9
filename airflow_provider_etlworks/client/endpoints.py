"""
Every call to Etlworks, defined once, as a value.

A function here returns a :class:`Call`: the whole request, how to read its answer, and whether the server may safely
receive it twice. Nothing is sent; ``EtlworksClient.send(call)`` and ``await AsyncEtlworksClient.send(call)`` do that.

Paths are below ``/rest`` unless ``below_root`` is set. Sources: Etlworks's REST quickstart and code examples
(https://app.etlworks.com/rest is the cloud's base), and the older "Integrations and APIs" page for the legacy paths.
"""

from __future__ import annotations

import json as json_module
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Generic, TypeVar
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

from airflow_provider_etlworks.client.errors import (
    EtlworksApiError,
    EtlworksConfigError,
    EtlworksRefused,
    EtlworksReplyError,
    api_error,
    error_message,
    excerpt,
    redact,
)
from airflow_provider_etlworks.client.models import (
    AuditEvent,
    Connection,
    Execution,
    Flow,
    FlowStart,
    FlowTask,
    MetricsSummary,
    Schedule,
    StartStatus,
    Webhook,
    mapping,
)
from airflow_provider_etlworks.client.retry import retry_after_seconds

if TYPE_CHECKING:
    from airflow_provider_etlworks.client.streaming import Body

T = TypeVar("T")
ItemT = TypeVar("ItemT")

JSON_TYPE = "application/json"
PAGE_SIZE = 200
"""The most items Etlworks returns in one answer of a list."""

_LONGEST_REFUSAL = 65_536

Query = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Answer:
    """What came back for a request: status, headers (a mapping that ignores case) and the whole body."""

    status: int
    headers: Mapping[str, str]
    body: bytes = field(repr=False)

    @cached_property
    def json(self) -> Any:
        """
        The body as JSON; an empty body is ``None``.

        :raises EtlworksReplyError: it is not JSON, such as a proxy's page.
        """
        if not self.body.strip():
            return None
        try:
            return json_module.loads(self.body)
        except (ValueError, RecursionError) as error:
            kind = self.headers.get("Content-Type", "no content type")
            raise EtlworksReplyError(
                f"Expected JSON, got {kind}, {len(self.body)} bytes: {excerpt(self.body)!r}. "
                "Is Host the address of an Etlworks instance, with nothing in between (a proxy, a log-in page)?"
            ) from error

    @property
    def refusal(self) -> str | None:
        """Why Etlworks refused, where the body says ``"success": false``; ``None`` where it does not."""
        head = self.body[:_LONGEST_REFUSAL].lstrip()
        if not (head.startswith(b"{") and b'"success"' in head):
            return None
        try:
            body = self.json
        except EtlworksReplyError:
            return None
        if body.get("success") is not False:
            return None
        return error_message(body) or "no reason given"

    @property
    def retry_after(self) -> float | None:
        """Seconds that the server asks to wait, if it does."""
        return retry_after_seconds(self.headers.get("Retry-After"))


@dataclass(frozen=True, eq=False)
class Call(Generic[T]):
    """
    One Etlworks request, described but not sent. Equal to itself only, so that a client can keep what it made of it.

    :ivar method: the HTTP method.
    :ivar path: percent-encoded path, below ``/rest``.
    :ivar read: turns a good answer into the value that the caller gets.
    :ivar query: parameters of the URL, in order.
    :ivar body: what is sent; a ``Body`` where it is too long to hold.
    :ivar content_type: its type; ``None`` where nothing is sent.
    :ivar repeatable: whether the server may safely receive it twice.
    :ivar below_root: the path is below the bare host, not below ``/rest``.
    :ivar missing_is_none: a 404 is no error but the answer "there is none".
    :ivar authorized: whether the call carries credentials.
    """

    method: str
    path: str
    read: Callable[[Answer], T] = field(repr=False)
    query: Query = field(default=(), repr=False)
    body: bytes | Body | None = field(default=None, repr=False)
    content_type: str | None = None
    repeatable: bool = False
    below_root: bool = False
    missing_is_none: bool = False
    authorized: bool = True

    def __str__(self) -> str:
        """Method and path, for logs and messages. The query may hold what others should not read."""
        return f"{self.method} {self.path}"

    def url(self, base_url: str, root_url: str) -> str:
        """Return the whole URL, percent-encoded."""
        query = f"?{urlencode(self.query)}" if self.query else ""
        return (root_url if self.below_root else base_url) + self.path + query

    def result(self, answer: Answer, secrets: Sequence[str] = ()) -> T:
        """
        Turn an answer into the call's value.

        :param answer: what came back.
        :param secrets: texts that no message may contain.
        :raises EtlworksApiError: the answer is an error.
        :raises EtlworksReplyError: the answer cannot be read.
        """
        try:
            if answer.status == 404 and self.missing_is_none:
                return self.read(replace(answer, status=200, body=b""))
            if not 200 <= answer.status < 300:
                raise self.error(answer, secrets)
            if answer.refusal is not None:
                said = excerpt(answer.refusal, secrets)
                raise EtlworksRefused(f"Etlworks refused {self}: {said}", status=answer.status, answer=answer.json)
            return self.read(answer)
        except EtlworksReplyError as error:
            # Not ``from error``: its text may still hold a secret.
            raise EtlworksReplyError(redact(f"Cannot read the answer to {self}: {error}", secrets)) from None

    def error(self, answer: Answer, secrets: Sequence[str] = ()) -> EtlworksApiError:
        """Return the error that an answer stands for, with what the server says in plain text."""
        try:
            said = error_message(answer.json)
        except EtlworksReplyError:
            said = ""
        return api_error(
            str(self),
            answer.status,
            excerpt(said or answer.body, secrets),
            retry_after=answer.retry_after,
        )


def _json(read: Callable[[Any], T]) -> Callable[[Answer], T]:
    return lambda answer: read(answer.json)


def _optional(read: Callable[[Any], T]) -> Callable[[Any], T | None]:
    return lambda value: None if value is None else read(value)


def _list_of(read: Callable[[Any], ItemT]) -> Callable[[Any], list[ItemT]]:
    def read_list(value: Any) -> list[ItemT]:
        if not isinstance(value, list):
            raise EtlworksReplyError(f"Expected a list, the answer is {type(value).__name__}.")
        return [read(item) for item in value]

    return read_list


def _text(answer: Answer) -> str:
    return answer.body.decode("utf-8", "replace")


def _nothing(_: Answer) -> None:
    return None


def _anything(answer: Answer) -> Any:
    try:
        return answer.json
    except EtlworksReplyError:
        return _text(answer)


def _query(**parameters: Any) -> Query:
    """Make URL parameters: ``None`` is left out, a list repeats its name, booleans are written in lower case."""
    return [
        (name, str(item).lower() if isinstance(item, bool) else str(item))
        for name, value in parameters.items()
        for item in (value if isinstance(value, (list, tuple)) else [value])
        if item is not None
    ]


def _body(value: Any) -> dict[str, Any]:
    return {"body": json_module.dumps(value, ensure_ascii=False).encode(), "content_type": JSON_TYPE}


def _segment(name: str) -> str:
    """Encode a name as one segment of a path: a ``/`` inside it is encoded too."""
    return quote(name, safe="")


# --- Lists in pages -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Page(Generic[ItemT]):
    """A part of a list: its items, and the length of the whole list where the server tells it."""

    items: list[ItemT]
    total: int | None

    def repeats(self, previous: Page[ItemT] | None) -> bool:
        """Whether this is the page before it once more: a server that ignores ``offset`` gives the same for ever."""
        return previous is not None and self.items == previous.items


@dataclass(frozen=True)
class PagedCall(Generic[ItemT]):
    """A list that is read page by page. ``first`` is the first page's call; ``following`` gives the next, or none."""

    path: str
    read_item: Callable[[Any], ItemT] = field(repr=False)
    query: Query = ()
    limit: int = PAGE_SIZE
    below_root: bool = False

    def first(self) -> Call[Page[ItemT]]:
        """Return the call for the first page."""
        return self._call(0)

    def following(self, offset: int, page: Page[ItemT]) -> Call[Page[ItemT]] | None:
        """
        Return the call for the page after ``page``, or ``None`` at the list's end.

        :param offset: how many items have been read, ``page`` included.
        :param page: the page just read.
        """
        if not page.items or len(page.items) > self.limit:
            return None
        is_last = len(page.items) < self.limit if page.total is None else offset >= page.total
        return None if is_last else self._call(offset)

    def _call(self, offset: int) -> Call[Page[ItemT]]:
        return Call(
            "GET",
            self.path,
            self._read,
            query=[*self.query, ("limit", str(self.limit)), ("offset", str(offset))],
            repeatable=True,
            below_root=self.below_root,
        )

    def _read(self, answer: Answer) -> Page[ItemT]:
        total = answer.headers.get("X-Total-Count", "")
        return Page(_list_of(self.read_item)(answer.json), int(total) if total.isdecimal() else None)


# --- Authentication -------------------------------------------------------------------------------------------------


def _token(answer: Answer) -> str:
    token = mapping(answer.json, "a token").get("token")
    # What no header can hold is none.
    if not isinstance(token, str) or not token or not token.isascii() or not token.isprintable():
        raise EtlworksReplyError("The answer to a log-in has no token.")
    return token


def log_in(login: str, password: str) -> Call[str]:
    """Exchange login and password for a token (a JWT)."""
    return _log_in("/v1/token-auth", login, password)


def log_in_older(login: str, password: str) -> Call[str]:
    """Exchange login and password for a token, on servers that only have the older path."""
    return _log_in("/v1/token-auth/issue", login, password)


def _log_in(path: str, login: str, password: str) -> Call[str]:
    return Call(
        "POST", path, _token, **_body({"login": login, "password": password}), repeatable=True, authorized=False
    )


def refresh_token() -> Call[str]:
    """Exchange a token that is still valid for a new one."""
    return Call("POST", "/v1/token-auth/refresh", _token, repeatable=True)


def switch_tenant(tenant_id: str) -> Call[str]:
    """Get a token with another tenant in context. For super admins."""
    return Call("POST", f"/v1/token-auth/tenants/{_segment(tenant_id)}", _token, repeatable=True)


# --- Flows ----------------------------------------------------------------------------------------------------------


def list_flows(
    *, q: str | None = None, tags: Sequence[str] = (), sort: str | None = None, since: str | None = None
) -> PagedCall[Flow]:
    """
    List flows. Etlworks returns all of them in one answer today; a server that pages is read to its end.

    :param q: only flows with this text in their name.
    :param tags: only flows with these tags.
    :param sort: field to sort by, ``-`` before it for descending.
    :param since: ISO 8601; only flows changed after it.
    """
    return PagedCall("/v1/flows", Flow.from_json, query=_query(q=q, tag=list(tags), sort=sort, since=since))


def get_flow(flow_id: int) -> Call[Flow]:
    """Read one whole flow."""
    return Call("GET", f"/v1/flows/{flow_id}", _json(Flow.from_json), repeatable=True)


def replace_flow(flow_id: int, flow: Mapping[str, Any]) -> Call[Flow]:
    """
    Replace a flow. What ``flow`` lacks is wiped: send what :func:`get_flow` returned in ``raw``, changed.

    An answer without a body is taken as "done as sent".
    """
    return Call(
        "PUT",
        f"/v1/flows/{flow_id}",
        lambda answer: Flow.from_json({**flow, "id": flow_id} if (value := answer.json) is None else value),
        **_body(dict(flow)),
        repeatable=True,
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
        _json(FlowStart.from_json),
        query=_query(**(options or {})),
        **_body(dict(parameters or {})),
    )


def run_flow_by_name(name: str, parameters: Mapping[str, str] | None = None) -> Call[FlowStart]:
    """Start a flow by name. Its parameters travel in the URL, where logs can see them: prefer :func:`run_flow`."""
    return Call(
        "POST",
        f"/v1/flows/flow-name/{_segment(name)}/run",
        _json(FlowStart.from_json),
        query=_query(**(parameters or {})),
    )


def run_flow_by_name_legacy(name: str, parameters: Mapping[str, str] | None = None) -> Call[FlowStart]:
    """
    Run a flow by name and wait for it, by the legacy path.

    Its ``status`` means something else than elsewhere: 0 is success, 1 is error. Here it is read as
    ``StartStatus.SUCCEEDED`` and ``StartStatus.FAILED``.
    """

    def read(answer: Answer) -> FlowStart:
        start = FlowStart.from_json(answer.json)
        ended = {0: "SUCCEEDED", 1: "FAILED"}.get(start.status_code if start.status_code is not None else -1)
        return replace(start, status=StartStatus[ended] if ended else None)

    return Call(
        "POST",
        f"/plugins/flows/rest/v1/flows/flow-name/{_segment(name)}/run/",
        read,
        query=_query(**(parameters or {})),
        below_root=True,
    )


DEFAULT_STOP_PATH = "/v1/flows/{flow_id}/stop?auditId={audit_id}"
"""Where a stop is sent. Etlworks documents that it exists, not where: an assumption, and a setting."""


def stop_flow(flow_id: int, audit_id: int, stop_path: str = DEFAULT_STOP_PATH) -> Call[None]:
    """
    Ask Etlworks to stop a run. The run may go on for minutes before it really stops.

    :param stop_path: the path, with ``{flow_id}`` and ``{audit_id}`` in it.
    """
    parts = urlsplit(stop_path.format(flow_id=flow_id, audit_id=audit_id))
    return Call("POST", parts.path, _nothing, query=parse_qsl(parts.query, keep_blank_values=True), repeatable=True)


# --- Executions -----------------------------------------------------------------------------------------------------


def get_execution(flow_id: int, audit_id: int) -> Call[Execution]:
    """Read the record of one run."""
    return Call(
        "GET",
        f"/v1/executions/{flow_id}",
        _json(lambda value: Execution.from_json(value, flow_id=flow_id, audit_id=audit_id)),
        query=_query(auditId=audit_id),
        repeatable=True,
    )


def latest_execution(
    flow_id: int, *, status: str | None = None, message_uuid: str | None = None
) -> Call[Execution | None]:
    """
    Read the record of a flow's newest run; ``None`` where it never ran.

    :param status: the newest with this status.
    :param message_uuid: the one that this message started.
    """
    return Call(
        "GET",
        f"/v1/executions/{flow_id}",
        _json(_optional(lambda value: Execution.from_json(value, flow_id=flow_id))),
        query=_query(status=status, messageId=message_uuid),
        repeatable=True,
        missing_is_none=True,
    )


def execution_history(flow_id: int, *, since: str | None = None, limit: int = PAGE_SIZE) -> PagedCall[Execution]:
    """
    List a flow's runs, newest first.

    :param since: ISO 8601; only runs after it, where the server knows the filter.
    :param limit: how many to ask for at a time, 200 at most.
    """
    return PagedCall(
        f"/v1/executions/{flow_id}/history",
        lambda value: Execution.from_json(value, flow_id=flow_id),
        query=_query(since=since),
        limit=limit,
    )


def execution_log(flow_id: int, audit_id: int) -> Call[str]:
    """Read the log of a run. It may be long: ``stream`` it where only its end matters."""
    return Call(
        "GET",
        "/v1/executions/console/download",
        _text,
        query=_query(flowId=flow_id, auditId=audit_id),
        repeatable=True,
    )


def executions_of_day(days_ago: int = 0) -> Call[list[Execution]]:
    """
    List all runs of all flows of one day. For administrators.

    :param days_ago: 0 is today, 1 is yesterday.
    """
    flows_of = _list_of(lambda item: mapping(item, "a flow's runs"))
    runs_of = _list_of(lambda item: mapping(item, "a run's record"))

    def read(value: Any) -> list[Execution]:
        return [
            Execution.from_json({"flowId": flow.get("flowId"), "flowName": flow.get("name"), **run})
            for flow in flows_of(value)
            for run in runs_of(flow.get("executions") or [])
        ]

    return Call("GET", "/v1/metrics/executions", _json(read), query=_query(offset=days_ago), repeatable=True)


def execution_tasks(audit_id: int, *, type: str | None = None) -> Call[list[FlowTask]]:  # noqa: A002  # Etlworks's name
    """
    List the tasks inside a run. For administrators.

    :param type: only ``stream``, ``extract``, ``load``, ``task`` or ``hwm``.
    """
    return Call(
        "GET",
        f"/etl/rest/v1/tasks/{audit_id}/",
        _json(_list_of(FlowTask.from_json)),
        query=_query(type=type),
        repeatable=True,
        below_root=True,
    )


def metrics_summary(window_hours: int = 24) -> Call[MetricsSummary]:
    """Read how many runs the last ``window_hours`` hours had, and how they ended."""
    return Call(
        "GET",
        "/v1/metrics/executions/summary",
        _json(MetricsSummary.from_json),
        query=_query(windowHours=window_hours),
        repeatable=True,
    )


# --- Promotion between environments ---------------------------------------------------------------------------------


def export_flows(flow_ids: Sequence[int], *, include_connections: bool = True) -> Call[bytes]:
    """Export flows, and the connections they use, as one bundle. Sensitive: never log it."""
    return Call(
        "POST",
        "/v1/io/export",
        lambda answer: answer.body,
        **_body({"flowIds": list(flow_ids), "includeConnections": include_connections}),
        repeatable=True,
    )


def preview_import(bundle: bytes | Body) -> Call[Any]:
    """Ask what importing ``bundle`` would change. The answer's shape is not documented."""
    return Call(
        "POST",
        "/v1/io/import/preview",
        _import_answer,
        body=bundle,
        content_type=JSON_TYPE,
        repeatable=True,
    )


def import_bundle(bundle: bytes | Body) -> Call[Any]:
    """Import ``bundle``. Never repeated: it may have been applied. The answer's shape is not documented."""
    return Call("POST", "/v1/io/import", _import_answer, body=bundle, content_type=JSON_TYPE)


def _import_answer(answer: Answer) -> Any:
    """Read the answer to an import or its preview. An empty one says nothing, unless its status is 204."""
    if answer.status != 204 and not answer.body.strip():
        raise EtlworksReplyError("The answer is empty.")
    try:
        return answer.json
    except EtlworksReplyError:
        # Only a page may be quoted: what else comes back may be a part of the bundle.
        said = f": {excerpt(answer.body)!r}" if answer.body.lstrip().startswith(b"<") else ""
        raise EtlworksReplyError(f"Expected JSON, got {len(answer.body)} bytes that are none{said}.") from None


def export_flows_older(flow_ids: Sequence[int] | None = None) -> Call[str]:
    """Export flows (``None``: all) as an encrypted dump, by the older path."""
    flows = "all" if flow_ids is None else ",".join(str(each) for each in flow_ids)
    return Call("GET", "/v1/flows/export", _text, query=_query(flows=flows), repeatable=True)


def preview_import_older(dump: str | Body) -> Call[Any]:
    """
    Ask what importing a dump would change: ``graph``, ``flows``, ``connections``, ``formats``, ``schedules``.

    :param dump: the dump, or a whole body ``{"dump": "…"}``.
    """
    return Call("POST", "/v1/flows/import/preview", _json(lambda value: value), **_dump_body(dump), repeatable=True)


def import_bundle_older(dump: str | Body) -> Call[Any]:
    """
    Import a dump, by the older path. Path and body are an assumption of ours.

    :param dump: the dump, or a whole body ``{"dump": "…"}``.
    """
    return Call("POST", "/v1/flows/import", _import_answer, **_dump_body(dump))


def _dump_body(dump: str | Body) -> dict[str, Any]:
    return _body({"dump": dump}) if isinstance(dump, str) else {"body": dump, "content_type": JSON_TYPE}


# --- Connections, schedules, audit, webhooks ------------------------------------------------------------------------


def create_connection(connection: Mapping[str, Any]) -> Call[Connection]:
    """Create a connection: ``name description connectionType properties tags``."""
    return Call("POST", "/v1/connections", _json(Connection.from_json), **_body(dict(connection)))


def test_connection(connection: Mapping[str, Any]) -> Call[Any]:
    """Test a connection without saving it. The answer's shape is not documented."""
    return Call("POST", "/v1/connections/test", _anything, **_body(dict(connection)), repeatable=True)


def get_connection(connection_id: int) -> Call[Connection]:
    """Read a connection."""
    return Call("GET", f"/v1/connections/{connection_id}", _json(Connection.from_json), repeatable=True)


def create_schedule(schedule: Mapping[str, Any]) -> Call[Schedule]:
    """Create a schedule: ``name description flowId schedule enabled tags``."""
    return Call("POST", "/v1/schedules", _json(Schedule.from_json), **_body(dict(schedule)))


def list_schedules(flow_id: int | None = None) -> PagedCall[Schedule]:
    """
    List schedules. The path is an assumption of ours.

    :param flow_id: only those of this flow; a server that does not know the filter lists all.
    """
    return PagedCall("/v1/schedules", Schedule.from_json, query=_query(flowId=flow_id))


def pause_schedule(schedule_id: int) -> Call[None]:
    """Turn a schedule off."""
    return Call("PUT", f"/v1/schedules/{schedule_id}/disable", _nothing, repeatable=True)


def resume_schedule(schedule_id: int) -> Call[None]:
    """Turn a schedule on."""
    return Call("PUT", f"/v1/schedules/{schedule_id}/enable", _nothing, repeatable=True)


def audit_events(
    *, resource_type: str | None = None, since: str | None = None, limit: int = PAGE_SIZE
) -> PagedCall[AuditEvent]:
    """
    List the audit log. For administrators.

    :param resource_type: only events of this kind of thing, such as ``flow``.
    :param since: ISO 8601; only events after it.
    :param limit: how many to ask for at a time, 200 at most.
    """
    return PagedCall(
        "/v1/audit", AuditEvent.from_json, query=_query(resourceType=resource_type, since=since), limit=limit
    )


def audit_events_legacy() -> Call[list[AuditEvent]]:
    """List the last 1,000 audit events, by the legacy path. For administrators."""
    return Call(
        "GET",
        "/plugins/audit/rest/v1/audit",
        _json(_list_of(AuditEvent.from_json)),
        repeatable=True,
        below_root=True,
    )


def create_webhook(webhook: Mapping[str, Any]) -> Call[Webhook]:
    """Create a webhook: ``name description events url method secret flowIncludes flowExcludes enabled``."""
    return Call("POST", "/v1/webhooks", _json(Webhook.from_json), **_body(dict(webhook)))


# --- HTTP listener, and everything else -----------------------------------------------------------------------------


def send_to_listener(path: str, payload: bytes | Body | None = None, content_type: str = JSON_TYPE) -> Call[Any]:
    """
    Send a payload to a user-defined endpoint of Etlworks.

    Sent once: again only where it certainly did not reach Etlworks.

    :param path: the path that the flow's author chose, such as ``orders/new``.
    :param payload: what is sent; ``None`` is a request without a body.
    :param content_type: its type, any that the author expects.
    :return: the author's own answer: JSON where it is JSON, else text.
    """
    return _listener("/v1/httplistener", path, payload, content_type, below_root=False)


def send_to_listener_legacy(path: str, payload: bytes | Body | None = None, content_type: str = JSON_TYPE) -> Call[Any]:
    """Send a payload to a user-defined endpoint, by the legacy path."""
    return _listener("/plugins/schedules/rest/v1/httplistener", path, payload, content_type, below_root=True)


# As much as a header may hold.
_CONTENT_TYPE = re.compile(r"[!-~]+/[ -~]+")


def _listener(
    prefix: str, path: str, payload: bytes | Body | None, content_type: str, *, below_root: bool
) -> Call[Any]:
    segments = path.strip("/").split("/")
    if not all(segments) or not {".", ".."}.isdisjoint(segments):
        raise EtlworksConfigError(f"A listener's path looks like 'orders/new'; this is {path!r}.")
    if not _CONTENT_TYPE.fullmatch(content_type):
        raise EtlworksConfigError(f"A content type looks like 'application/json'; this is {content_type!r}.")
    return Call(
        "POST",
        "/".join([prefix, *map(_segment, segments)]),
        _anything,
        body=payload,
        content_type=None if payload is None else content_type,
        below_root=below_root,
    )


_UNSAFE_IN_PATH = re.compile(r"[^!-~]|[#?\\]")


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
    :param path: percent-encoded path below ``/rest``, or an absolute URL of the same host.
    :param query: parameters of the URL; a list repeats its name.
    :param json: body, sent as JSON; ``None`` sends no body.
    :param root_url: the connection's bare host, which an absolute URL must share.
    :return: the answer as JSON where it is JSON, else text; ``None`` where it is empty.
    :raises EtlworksConfigError: the path is none, or the URL belongs to another host.
    """
    method = method.upper()
    parts = urlsplit(path)
    below_root = bool(parts.scheme or parts.netloc)
    if below_root:
        if not f"{path}/".startswith(f"{root_url}/"):
            raise EtlworksConfigError(
                f"{parts.scheme}://{parts.netloc} is another host than the connection's {root_url}: "
                "credentials are sent to the connection's host only."
            )
        path = path[len(root_url) :] or "/"
    path, _, inline_query = path.partition("?")
    if not path.startswith("/") or _UNSAFE_IN_PATH.search(path):
        raise EtlworksConfigError(
            f"The path of a request begins with '/' and is percent-encoded; this is {path!r}. Parameters go into query."
        )
    return Call(
        method,
        path,
        _anything,
        query=[*parse_qsl(inline_query, keep_blank_values=True), *_query(**(query or {}))],
        **(_body(json) if json is not None else {}),
        repeatable=method in ("GET", "HEAD", "PUT", "DELETE"),
        below_root=below_root,
    )
