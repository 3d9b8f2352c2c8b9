"""
Etlworks's answers as typed values.

Answers are read tolerantly: a field that is missing or of another type is ``None``, and a field that this package does
not know is kept in ``raw``. Times arrive as Unix milliseconds and leave as aware datetimes in UTC. Every text and every
number passes through :mod:`airflow_provider_etlworks.client.text`.
"""

from __future__ import annotations

import re
from dataclasses import MISSING, dataclass, field, fields
from datetime import datetime, timezone
from enum import Enum
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

from airflow_provider_etlworks.client.errors import EtlworksReplyError
from airflow_provider_etlworks.client.text import (
    LONGEST_DESCRIPTION,
    LONGEST_NAME,
    LONGEST_TEXT,
    MOST_ITEMS,
    as_error,
    as_int,
    as_str,
    cut,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from typing_extensions import Self


class ExecutionStatus(str, Enum):
    """The status of a run, as Etlworks spells it (``FlowStatus`` in its quickstart)."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCESS = "success"
    WARNING = "warning"
    ERROR = "error"
    CANCELED = "canceled"

    @property
    def is_final(self) -> bool:
        """Whether a run with this status has ended."""
        return self not in (ExecutionStatus.QUEUED, ExecutionStatus.RUNNING)


_STATUSES: dict[str | None, ExecutionStatus] = {each.value: each for each in ExecutionStatus}


class StartStatus(int, Enum):
    """The outcome of a start, as the integer ``status`` of a FlowExecutionResponse. Not the run's progress."""

    STARTED = 0
    ALREADY_RUNNING = 1
    CANCELED = 2
    NOT_EXECUTED = 3
    SUCCEEDED = 4
    FAILED = 5


def as_name(value: Any) -> str:
    """Read a name; anything that is not a text is empty."""
    return as_str(value) or ""


def as_word(value: Any) -> str | None:
    """Read a text that a run's record carries."""
    # A record is read thousands of times, and most of its texts are missing, or need nothing.
    if value is None or (type(value) is str and len(value) <= LONGEST_NAME and value.isprintable()):
        return value or None
    return as_str(value, LONGEST_NAME)


def as_description(value: Any) -> str | None:
    """Read a text of several lines."""
    return as_str(value, LONGEST_DESCRIPTION, "\n\t")


def as_status(value: Any) -> str | None:
    """Read a status, in lower case."""
    return as_word(value.strip().lower() if isinstance(value, str) else value)


def as_id(value: Any) -> int | None:
    """Read an id; 0 and -1 stand for "none"."""
    return number if (number := as_int(value)) is not None and number > 0 else None


def as_event_id(value: Any) -> str | None:
    """Read the id of a scheduling event; 0 and -1 stand for "none"."""
    return None if value in (None, 0, -1, "0", "-1") else as_word(value)


def as_start_status(value: Any) -> StartStatus | None:
    """Read the outcome of a start."""
    code = as_int(value)
    return StartStatus(code) if code in _START_STATUSES else None


_START_STATUSES = frozenset(each.value for each in StartStatus)


def as_bool(value: Any) -> bool | None:
    """Read a boolean; anything else is ``None``: on or off is not guessed."""
    return value if isinstance(value, bool) else None


def as_datetime(value: Any) -> datetime | None:
    """Read a Unix time in milliseconds; anything else, and 0, is ``None``."""
    if value is None or not (milliseconds := as_int(value)):
        return None
    try:
        return datetime.fromtimestamp(milliseconds / 1000, timezone.utc)
    except (OverflowError, OSError, ValueError):
        return None


def as_str_tuple(value: Any) -> tuple[str, ...]:
    """Read a list of texts, without the items that are not texts; anything else is empty."""
    items = value[:MOST_ITEMS] if isinstance(value, list) else ()
    return tuple(item for each in items if (item := as_word(each)) is not None)


def as_ids(value: Any) -> tuple[int, ...]:
    """Read a list of ids; anything else is empty."""
    items = value[:MOST_ITEMS] if isinstance(value, list) else ()
    return tuple(item for each in items if (item := as_id(each)) is not None)


def as_address(value: Any) -> str | None:
    """Read a URL, without credentials in it."""
    return as_str(_CREDENTIALS.sub("***@", value) if isinstance(value, str) else value)


def as_header_names(value: Any) -> tuple[str, ...]:
    """Read the names of a webhook's headers: their values may be secrets."""
    headers = value[:_MOST_HEADERS] if isinstance(value, list) else ()
    return tuple(name for each in headers if isinstance(each, dict) and (name := as_word(each.get("key"))))


_CREDENTIALS = re.compile(r"(?<=://)[^/?#]*@")
_MOST_HEADERS = 100
_MOST_ADDRESSES = 100


def as_addresses(value: Any) -> tuple[str, ...]:
    """Read the first hundred e-mail addresses: a text with spaces between them, as Etlworks writes them, or a list."""
    return as_str_tuple(value.split() if isinstance(value, str) else value)[:_MOST_ADDRESSES]


def as_running_flows(value: Any) -> int | None:
    """Read how many flows are going from what a health report says of the database."""
    return as_int(value.get("running.flows")) if isinstance(value, dict) else None


def as_object(value: Any, what: str) -> Mapping[str, Any]:
    """Return a JSON object, or say what came instead of it."""
    if not isinstance(value, dict):
        raise EtlworksReplyError(f"Expected {what} as a JSON object, but the answer is {type(value).__name__}.")
    return value


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value


def _json(
    key: str | tuple[str, ...], read: Callable[[Any], Any] = as_str, *, default: Any = None, required: bool = False
) -> Any:
    """
    Declare a field of a model: the name of its JSON field, what reads it, and whether it is required.

    Of several names, the first that the JSON has is read.
    """
    keys = (key,) if isinstance(key, str) else key
    return field(default=default, metadata={"keys": keys, "read": read, "required": required})


@cache
def _readers(model: type) -> tuple[tuple[str, tuple[str, ...], Callable[[Any], Any], bool], ...]:
    return tuple(
        (each.name, each.metadata["keys"], each.metadata["read"], each.metadata["required"])
        for each in fields(model)
        if each.metadata
    )


@dataclass(frozen=True, slots=True)
class Model:
    """
    One thing in an answer of Etlworks.

    :ivar raw: the JSON object that was read, with the fields that have no attribute here, of any size.
    """

    title: ClassVar[str]

    raw: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False, kw_only=True)

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """
        Read a JSON object. A field that is missing or of another type is ``None``.

        :raises EtlworksReplyError: it is not an object, or a field that is required cannot be read.
        """
        record = cls._masked(as_object(value, cls.title))
        values: dict[str, Any] = {"raw": record}
        model: type = cls
        for name, keys, read, required in _readers(model):
            values[name] = read(next((record[key] for key in keys if key in record), None))
            if required and values[name] is None:
                raise EtlworksReplyError(f"The answer is not {cls.title}: it has no {keys[0]}.")
        return cls(**values)

    @staticmethod
    def _masked(record: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the record without what not even ``raw`` may keep."""
        return record

    def to_dict(self) -> dict[str, Any]:
        """Return the attributes as JSON-safe values: times as ISO 8601 in UTC, without ``raw``."""
        return {each.name: _plain(getattr(self, each.name)) for each in fields(self) if each.name != "raw"}


@dataclass(frozen=True, slots=True)
class Execution(Model):
    """
    One run of a flow: Etlworks's FlowAuditRecord.

    :ivar flow_id: the flow's id.
    :ivar audit_id: the run's id.
    :ivar status: the status in lower case, comparable with ExecutionStatus; may be one that this package does not know.
    :ivar started_at: when the run started.
    :ivar ended_at: when the run ended.
    :ivar user: who started it.
    :ivar records: how many records it processed.
    :ivar exception: the server's error text.
    :ivar flow_name: the flow's name.
    :ivar event_id: set for a run that a schedule started.
    :ivar message_uuid: set for a run that a payload started.
    :ivar parent_audit_id: the run that this one repeats, if Etlworks itself repeated it.
    """

    flow_id: int
    audit_id: int
    status: str | None = None
    started_at: datetime | None = None
    ended_at: datetime | None = None
    user: str | None = None
    records: int | None = None
    exception: str | None = None
    flow_name: str | None = None
    event_id: str | None = None
    message_uuid: str | None = None
    parent_audit_id: int | None = None

    @classmethod
    def from_json(cls, value: Any, *, flow_id: int | None = None, audit_id: int | None = None) -> Execution:
        """
        Read a FlowAuditRecord.

        :param flow_id: the flow that was asked for, for records that do not repeat it.
        :param audit_id: the run that was asked for; a record of another run is refused.
        :raises EtlworksReplyError: it is not a record, or it is the record of another run.
        """
        record = as_object(value, "a run's record")
        get = record.get
        run, flow = as_int(get("auditId")), as_int(get("flowId"))
        if run is None:
            run = audit_id
        elif audit_id is not None and run != audit_id:
            raise EtlworksReplyError(f"Asked for the run with auditId {audit_id}, the answer is about {run}.")
        if flow is None:
            flow = flow_id
        elif flow_id is not None and flow != flow_id:
            raise EtlworksReplyError(f"Asked for the run with flowId {flow_id}, the answer is about {flow}.")
        if run is None or flow is None:
            raise EtlworksReplyError("The answer is not a run's record: it has no auditId or no flowId.")
        # Without names and loops: the record of a run is read thousands of times.
        return cls(
            flow,
            run,
            as_status(get("status")),
            as_datetime(get("started")),
            as_datetime(get("ended")),
            as_word(get("user")),
            as_int(get("records")),
            as_error(get("exception")),
            as_word(get("flowName")) or as_word(get("name")),
            as_event_id(get("eventId")),
            as_word(get("messageId")) or as_word(get("messageUuid")),
            as_id(get("parentAuditId")),
            raw=record,
        )

    @classmethod
    def from_dict(cls, value: Any) -> Execution:
        """
        Read back what ``to_dict`` wrote, also in another release of this package.

        :raises EtlworksReplyError: it is not such a dict.
        """
        record = as_object(value, "a run")
        try:
            values: dict[str, Any] = {name: read(record[name]) for name, read in _FROM_DICT.items() if name in record}
        except (TypeError, ValueError) as error:
            raise EtlworksReplyError(f"Cannot read the run {cut(repr(record), LONGEST_TEXT)}: {error}") from error
        if values.get("flow_id") is None or values.get("audit_id") is None:
            raise EtlworksReplyError(f"Cannot read the run {cut(repr(record), LONGEST_TEXT)}: it has no id.")
        return cls(**values)

    @property
    def known_status(self) -> ExecutionStatus | None:
        """The status, if this package knows it; else ``None``."""
        return _STATUSES.get(self.status)

    @property
    def is_terminal(self) -> bool:
        """Whether the run is over: its status is final, or is unknown and the record has an end."""
        known = self.known_status
        return known.is_final if known is not None else self.ended_at is not None

    @property
    def is_scheduled(self) -> bool:
        """Whether Etlworks's scheduler started the run: it names the event, or the scheduler as the user."""
        return self.event_id is not None or (self.user or "").lower() == "scheduler"

    @property
    def never_started(self) -> bool:
        """Whether the run was canceled while it was queued: a canceled run without a start."""
        return self.known_status is ExecutionStatus.CANCELED and self.started_at is None

    @property
    def is_stopping(self) -> bool:
        """Whether the run was asked to stop and is not stopped yet: ``canceled`` without an end."""
        return self.known_status is ExecutionStatus.CANCELED and self.ended_at is None

    @property
    def occupies_flow(self) -> bool:
        """Whether the run still keeps its flow from starting: it is going, or is being stopped after it started."""
        return not self.is_terminal or (self.is_stopping and not self.never_started)

    @property
    def duration_seconds(self) -> float | None:
        """Seconds from start to end, if both are known; else ``None``."""
        if self.started_at is None or self.ended_at is None:
            return None
        return (self.ended_at - self.started_at).total_seconds()


def _from_iso(value: Any) -> datetime | None:
    return None if value is None else datetime.fromisoformat(value)


_FROM_DICT: dict[str, Callable[[Any], Any]] = {
    **dict.fromkeys(("flow_id", "audit_id", "records", "parent_audit_id"), as_int),
    **dict.fromkeys(("status", "user", "flow_name", "event_id", "message_uuid"), as_word),
    **dict.fromkeys(("started_at", "ended_at"), _from_iso),
    "exception": as_error,
}


@dataclass(frozen=True, slots=True)
class FlowStart(Model):
    """
    The answer to a start: Etlworks's FlowExecutionResponse.

    :ivar flow_id: the flow's id, if the answer has it.
    :ivar audit_id: the run's id, if the answer has it.
    :ivar status: the outcome of the start, not the run's progress; ``None`` if unknown.
    :ivar status_code: the same as it came.
    :ivar message_uuid: the message's id, for a run that a payload started.
    :ivar exception: the server's error text.
    """

    title = "the answer to a start"

    flow_id: int | None = _json("flowId", as_int)
    audit_id: int | None = _json("auditId", as_id)
    status: StartStatus | None = _json("status", as_start_status)
    status_code: int | None = _json("status", as_int)
    message_uuid: str | None = _json("messageUuid", as_word)
    exception: str | None = _json("exception", as_error)


@dataclass(frozen=True, slots=True)
class Flow(Model):
    """
    A flow, from the list of flows or whole.

    :ivar id: the flow's id.
    :ivar name: its name.
    :ivar description: its description.
    :ivar flow_type: Etlworks's type of flow, such as ``ETL.database.event``.
    :ivar tags: its tags.
    :ivar enabled_schedules: how many of its schedules are on.
    :ivar disabled_schedules: how many of its schedules are off.
    :ivar latest_finished_status: how its latest finished run ended.
    :ivar created_at: when it was made.
    :ivar modified_at: when it was last changed.
    """

    title = "a flow"

    id: int = _json("id", as_int, default=MISSING, required=True)
    name: str = _json("name", as_name, default="")
    description: str | None = _json("description", as_description)
    flow_type: str | None = _json("flowType")
    tags: tuple[str, ...] = _json("tags", as_str_tuple, default=())
    enabled_schedules: int | None = _json("enabledSchedules", as_int)
    disabled_schedules: int | None = _json("disabledSchedules", as_int)
    latest_finished_status: str | None = _json("latestFinishedStatus")
    created_at: datetime | None = _json("created", as_datetime)
    modified_at: datetime | None = _json("modified", as_datetime)


@dataclass(frozen=True, slots=True)
class Connection(Model):
    """
    A connection inside Etlworks (not one of Airflow's).

    :ivar id: its id; ``None`` before it is saved.
    :ivar name: its name.
    :ivar connection_type: such as ``connection.db.postgres``.
    :ivar description: its description.
    :ivar tags: its tags.
    """

    title = "a connection"

    id: int | None = _json("id", as_int)
    name: str | None = _json("name")
    connection_type: str | None = _json("connectionType")
    description: str | None = _json("description", as_description)
    tags: tuple[str, ...] = _json("tags", as_str_tuple, default=())


@dataclass(frozen=True, slots=True)
class Schedule(Model):
    """
    A schedule of a flow.

    A setting that the answer does not have is ``None``; ``emails`` and ``tags`` are empty then.

    :ivar id: its id.
    :ivar flow_id: the flow it starts.
    :ivar name: its name.
    :ivar schedule: when it starts the flow: a Quartz cron expression such as ``0 0 4 * * ?``, or minutes between two
        starts.
    :ivar enabled: whether it is on; ``None`` if the answer does not say.
    :ivar description: its description.
    :ivar tags: its tags.
    :ivar email_success: whether Etlworks reports each success by e-mail.
    :ivar email_failure: whether it reports each failure.
    :ivar emails: the addresses that it reports to.
    :ivar retries: how often Etlworks itself repeats a failed run.
    :ivar delay_between_retries: minutes before each repetition.
    :ivar expected_time: minutes after which a run that is still going is reported by e-mail.
    :ivar debug: whether a run writes a log of all its steps.
    :ivar log_step: after how many records a run writes a line to its log.
    :ivar keep_message: whether Etlworks keeps what a listener received.
    :ivar keep_empty_audit: whether Etlworks keeps the record of a run that processed nothing.
    """

    title = "a schedule"

    id: int | None = _json("id", as_int)
    flow_id: int | None = _json("flowId", as_int)
    name: str | None = _json("name")
    schedule: str | None = _json("schedule")
    enabled: bool | None = _json("enabled", as_bool)
    description: str | None = _json("description", as_description)
    tags: tuple[str, ...] = _json("tags", as_str_tuple, default=())
    email_success: bool | None = _json("emailSuccess", as_bool)
    email_failure: bool | None = _json("emailFailure", as_bool)
    emails: tuple[str, ...] = _json("emails", as_addresses, default=())
    retries: int | None = _json("retries", as_int)
    delay_between_retries: int | None = _json("delayBetweenRetries", as_int)
    expected_time: int | None = _json("expectedTime", as_int)
    debug: bool | None = _json("debug", as_bool)
    log_step: int | None = _json("logStep", as_int)
    keep_message: bool | None = _json("keepMessage", as_bool)
    keep_empty_audit: bool | None = _json("keepEmptyAudit", as_bool)


@dataclass(frozen=True, slots=True)
class Webhook(Model):
    """
    A webhook: Etlworks calls its URL when events happen.

    Etlworks's answer repeats its secret, its password and the values of its headers. Not even ``raw`` has them.

    :ivar id: its id.
    :ivar name: its name.
    :ivar url: what is called, without credentials in it; ``None`` for a webhook that only sends e-mails.
    :ivar events: the events it is called for, as this release of Etlworks names them.
    :ivar enabled: whether it is on; ``None`` if the answer does not say.
    :ivar description: its description.
    :ivar method: ``POST`` or ``GET``.
    :ivar content_type: the type of what is sent.
    :ivar include_entity: whether what is sent has the changed thing, too.
    :ivar header_names: the names of the headers that are sent.
    :ivar basic_user: the user of the call's Basic authentication.
    :ivar flow_includes: the only flows whose events count.
    :ivar flow_excludes: the flows whose events do not count.
    """

    title = "a webhook"

    id: int | None = _json("id", as_int)
    name: str | None = _json("name")
    url: str | None = _json("url", as_address)
    events: tuple[str, ...] = _json("events", as_str_tuple, default=())
    enabled: bool | None = _json("enabled", as_bool)
    description: str | None = _json("description", as_description)
    method: str | None = _json("method")
    content_type: str | None = _json("contentType")
    include_entity: bool | None = _json("includeEntity", as_bool)
    header_names: tuple[str, ...] = _json("headers", as_header_names, default=())
    basic_user: str | None = _json("basicUser")
    flow_includes: tuple[int, ...] = _json("flowIncludes", as_ids, default=())
    flow_excludes: tuple[int, ...] = _json("flowExcludes", as_ids, default=())

    @staticmethod
    def _masked(record: Mapping[str, Any]) -> Mapping[str, Any]:
        masked = {**record, **{name: "***" for name in ("secret", "basicPass") if record.get(name)}}
        if headers := record.get("headers"):
            names = as_header_names(headers)
            masked["headers"] = [{"key": name, "value": "***"} for name in names]
        if isinstance(url := record.get("url"), str):
            masked["url"] = _CREDENTIALS.sub("***@", url)
        return masked


@dataclass(frozen=True, slots=True)
class AuditEvent(Model):
    """
    One line of the audit log: who did what, and when.

    Etlworks documents two shapes, of different releases; what a shape lacks is ``None``.

    :ivar at: when; ``None`` if the answer's time is not in milliseconds (``raw`` has it).
    :ivar user: who.
    :ivar action: what was done.
    :ivar resource_id: to what.
    :ivar id: the event's id.
    :ivar application: the part of Etlworks in which it happened.
    :ivar tenant: the tenant.
    :ivar succeeded: whether it succeeded.
    :ivar has_details: whether Etlworks knows more about it.
    :ivar exception: the error's text, if it was asked for.
    :ivar host_ip: the address of the server.
    :ivar client_ip: the address of the caller.
    :ivar duration_ms: how long it took, in milliseconds.
    """

    title = "an audit event"

    at: datetime | None = _json(("timestamp", "dt"), as_datetime)
    user: str | None = _json(("user", "ur"))
    action: str | None = _json(("action", "md"))
    resource_id: str | None = _json("resourceId")
    id: int | None = _json("id", as_int)
    application: str | None = _json("an")
    tenant: str | None = _json("tn")
    succeeded: bool | None = _json("rt", as_bool)
    has_details: bool | None = _json("in", as_bool)
    exception: str | None = _json("ex", as_error)
    host_ip: str | None = _json("hip")
    client_ip: str | None = _json("cip")
    duration_ms: int | None = _json("dn", as_int)


@dataclass(frozen=True, slots=True)
class Health(Model):
    """
    How an instance is.

    :ivar status: ``UP`` if all is well.
    :ivar running_flows: how many flows are going; ``None`` if the answer does not say.
    """

    title = "a health report"

    status: str | None = _json("status")
    running_flows: int | None = _json("db", as_running_flows)


@dataclass(frozen=True, slots=True)
class MetricsSummary(Model):
    """
    How the runs of the last hours went.

    :ivar total: how many there were.
    :ivar succeeded: how many ended well.
    :ivar failed: how many did not.
    :ivar average_duration_ms: their mean duration, in milliseconds.
    :ivar p95_duration_ms: the duration that 95 % of them stay below, in milliseconds.
    """

    title = "a summary"

    total: int | None = _json("total", as_int)
    succeeded: int | None = _json("succeeded", as_int)
    failed: int | None = _json("failed", as_int)
    average_duration_ms: int | None = _json("avgDurationMs", as_int)
    p95_duration_ms: int | None = _json("p95DurationMs", as_int)


@dataclass(frozen=True, slots=True)
class FlowTask(Model):
    """
    One task inside a run.

    :ivar name: its name.
    :ivar type: ``stream``, ``extract``, ``load``, ``task`` or ``hwm``.
    :ivar started_at: when it started.
    :ivar duration_ms: how long it took, in milliseconds.
    :ivar records: how many records it processed.
    """

    title = "a task of a run"

    name: str | None = _json("name")
    type: str | None = _json("type")
    started_at: datetime | None = _json("started", as_datetime)
    duration_ms: int | None = _json("duration", as_int)
    records: int | None = _json("recordsProcessed", as_int)
