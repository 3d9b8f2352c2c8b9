"""
What Etlworks's answers say, as typed values.

Answers are read tolerantly: a field that is missing or oddly typed is ``None``, and a field that this package does not
know is kept in ``raw``. Times arrive as Unix milliseconds and leave as aware datetimes in UTC.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from datetime import datetime, timezone
from enum import Enum
from typing import TYPE_CHECKING, Any, TypeVar

from airflow_provider_etlworks.client.errors import EtlworksReplyError

if TYPE_CHECKING:
    from collections.abc import Mapping

ModelT = TypeVar("ModelT", bound="Model")


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


class StartStatus(int, Enum):
    """The outcome of a start, as the integer ``status`` of a FlowExecutionResponse. Not the run's progress."""

    STARTED = 0
    ALREADY_RUNNING = 1
    CANCELED = 2
    NOT_EXECUTED = 3
    SUCCEEDED = 4
    FAILED = 5


def as_int(value: Any) -> int | None:
    """Read a whole number, also from text; anything else is ``None``."""
    # Most fields of a record are what they should be, or are missing: such a record is read thousands of times.
    if value is None or type(value) is int:
        return value
    if isinstance(value, bool):
        return None
    try:
        return int(value)
    except (TypeError, ValueError, OverflowError):
        return None


def as_str(value: Any) -> str | None:
    """Read a text; a number becomes its digits; empty, missing and nested values are ``None``."""
    if value is None or type(value) is str:
        return value or None
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        return None
    return str(value) or None


def as_datetime(value: Any) -> datetime | None:
    """Read a Unix time in milliseconds; anything else, and 0, is ``None``."""
    milliseconds = as_int(value)
    if not milliseconds:
        return None
    try:
        return datetime.fromtimestamp(milliseconds / 1000, tz=timezone.utc)
    except (OverflowError, OSError, ValueError):
        return None


def as_str_tuple(value: Any) -> tuple[str, ...]:
    """Read a list of texts, without the items that are none; anything else is empty."""
    return tuple(item for each in value if (item := as_str(each)) is not None) if isinstance(value, list) else ()


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


@dataclass(frozen=True, slots=True)
class Model:
    """
    One thing that Etlworks told us.

    :ivar raw: the answer as it came, with the fields that have no attribute here.
    """

    raw: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False, kw_only=True)

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
    :ivar parent_audit_id: set where Etlworks itself repeated a run: the run it repeats.
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
        :raises EtlworksReplyError: it is no record, or one of another run.
        """
        record = as_object(value, "a run's record")
        run, flow = as_int(record.get("auditId")), as_int(record.get("flowId"))
        for name, asked, got in (("auditId", audit_id, run), ("flowId", flow_id, flow)):
            if asked is not None and got is not None and asked != got:
                raise EtlworksReplyError(f"Asked for the run with {name} {asked}, the answer is about {got}.")
        run, flow = run if run is not None else audit_id, flow if flow is not None else flow_id
        if run is None or flow is None:
            raise EtlworksReplyError("The answer is no run's record: it has no auditId.")
        return cls(
            flow_id=flow,
            audit_id=run,
            status=(as_str(record.get("status")) or "").strip().lower() or None,
            started_at=as_datetime(record.get("started")),
            ended_at=as_datetime(record.get("ended")),
            user=as_str(record.get("user")),
            records=as_int(record.get("records")),
            exception=as_str(record.get("exception")),
            flow_name=as_str(record.get("flowName")) or as_str(record.get("name")),
            # 0 and -1 stand for "none" in records of this kind.
            event_id=None if (event := as_str(record.get("eventId"))) in ("0", "-1") else event,
            message_uuid=as_str(record.get("messageId")) or as_str(record.get("messageUuid")),
            parent_audit_id=parent if (parent := as_int(record.get("parentAuditId")) or 0) > 0 else None,
            raw=record,
        )

    @classmethod
    def from_dict(cls, value: Any) -> Execution:
        """
        Read back what ``to_dict`` wrote, also where another release of this package wrote it.

        :raises EtlworksReplyError: it is no such dict.
        """
        record = as_object(value, "a run")
        known = {each.name for each in fields(cls)}
        values = {name: item for name, item in record.items() if name in known}
        try:
            for name in ("started_at", "ended_at"):
                if values.get(name) is not None:
                    values[name] = datetime.fromisoformat(values[name])
            return cls(**values)
        except (TypeError, ValueError) as error:
            raise EtlworksReplyError(f"Cannot read the run {record!r}: {error}") from error

    @property
    def known_status(self) -> ExecutionStatus | None:
        """The status, where it is one that this package knows."""
        try:
            return ExecutionStatus(self.status)
        except ValueError:
            return None

    @property
    def is_terminal(self) -> bool:
        """Whether the run is over: its status is final, or is unknown and the record has an end."""
        known = self.known_status
        return known.is_final if known is not None else self.ended_at is not None

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
        """Seconds from start to end, where both are known."""
        if self.started_at is None or self.ended_at is None:
            return None
        return (self.ended_at - self.started_at).total_seconds()


@dataclass(frozen=True)
class FlowStart(Model):
    """
    The answer to a start: Etlworks's FlowExecutionResponse.

    :ivar flow_id: the flow's id, where the answer has it.
    :ivar audit_id: the run's id, where the answer has it.
    :ivar status: the outcome of the start, not the run's progress; ``None`` where unknown.
    :ivar status_code: the same as it came.
    :ivar message_uuid: the message's id, for a run that a payload started.
    :ivar exception: the server's error text.
    """

    flow_id: int | None
    audit_id: int | None
    status: StartStatus | None
    status_code: int | None
    message_uuid: str | None = None
    exception: str | None = None

    @classmethod
    def from_json(cls, value: Any) -> FlowStart:
        """Read a FlowExecutionResponse, also the legacy one that has only ``status`` and ``exception``."""
        record = as_object(value, "the answer to a start")
        code = as_int(record.get("status"))
        return cls(
            flow_id=as_int(record.get("flowId")),
            audit_id=as_int(record.get("auditId")) or None,
            status=StartStatus(code) if code in {each.value for each in StartStatus} else None,
            status_code=code,
            message_uuid=as_str(record.get("messageUuid")),
            exception=as_str(record.get("exception")),
            raw=record,
        )


@dataclass(frozen=True)
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

    id: int
    name: str
    description: str | None = None
    flow_type: str | None = None
    tags: tuple[str, ...] = ()
    enabled_schedules: int | None = None
    disabled_schedules: int | None = None
    latest_finished_status: str | None = None
    created_at: datetime | None = None
    modified_at: datetime | None = None

    @classmethod
    def from_json(cls, value: Any) -> Flow:
        """Read a flow. ``raw`` is what a later replacement must send back whole."""
        record = as_object(value, "a flow")
        flow_id = as_int(record.get("id"))
        if flow_id is None:
            raise EtlworksReplyError("The answer is no flow: it has no id.")
        return cls(
            id=flow_id,
            name=as_str(record.get("name")) or "",
            description=as_str(record.get("description")),
            flow_type=as_str(record.get("flowType")),
            tags=as_str_tuple(record.get("tags")),
            enabled_schedules=as_int(record.get("enabledSchedules")),
            disabled_schedules=as_int(record.get("disabledSchedules")),
            latest_finished_status=as_str(record.get("latestFinishedStatus")),
            created_at=as_datetime(record.get("created")),
            modified_at=as_datetime(record.get("modified")),
            raw=record,
        )


@dataclass(frozen=True)
class Connection(Model):
    """
    A connection inside Etlworks (not one of Airflow's).

    :ivar id: its id; ``None`` before it is saved.
    :ivar name: its name.
    :ivar connection_type: such as ``connection.db.postgres``.
    :ivar description: its description.
    :ivar tags: its tags.
    """

    id: int | None
    name: str | None = None
    connection_type: str | None = None
    description: str | None = None
    tags: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, value: Any) -> Connection:
        """Read a connection. Its properties, which may hold secrets, stay in ``raw``."""
        record = as_object(value, "a connection")
        return cls(
            id=as_int(record.get("id")),
            name=as_str(record.get("name")),
            connection_type=as_str(record.get("connectionType")),
            description=as_str(record.get("description")),
            tags=as_str_tuple(record.get("tags")),
            raw=record,
        )


@dataclass(frozen=True)
class Schedule(Model):
    """
    A schedule of a flow.

    :ivar id: its id.
    :ivar flow_id: the flow it starts.
    :ivar name: its name.
    :ivar schedule: Etlworks's scheduling expression, such as ``0 0 4 * * ?``.
    :ivar enabled: whether it is on; ``None`` where the answer does not say.
    """

    id: int | None
    flow_id: int | None = None
    name: str | None = None
    schedule: str | None = None
    enabled: bool | None = None

    @classmethod
    def from_json(cls, value: Any) -> Schedule:
        """Read a FlowSchedule."""
        record = as_object(value, "a schedule")
        enabled = record.get("enabled")
        return cls(
            id=as_int(record.get("id")),
            flow_id=as_int(record.get("flowId")),
            name=as_str(record.get("name")),
            schedule=as_str(record.get("schedule")),
            enabled=enabled if isinstance(enabled, bool) else None,
            raw=record,
        )


@dataclass(frozen=True)
class Webhook(Model):
    """
    A webhook: Etlworks calls its URL when events happen. Its secret stays in ``raw``.

    :ivar id: its id.
    :ivar name: its name.
    :ivar url: what is called.
    :ivar events: the events it is called for.
    :ivar enabled: whether it is on; ``None`` where the answer does not say.
    """

    id: int | None
    name: str | None = None
    url: str | None = None
    events: tuple[str, ...] = ()
    enabled: bool | None = None

    @classmethod
    def from_json(cls, value: Any) -> Webhook:
        """Read a webhook."""
        record = as_object(value, "a webhook")
        enabled = record.get("enabled")
        return cls(
            id=as_int(record.get("id")),
            name=as_str(record.get("name")),
            url=as_str(record.get("url")),
            events=as_str_tuple(record.get("events")),
            enabled=enabled if isinstance(enabled, bool) else None,
            raw=record,
        )


@dataclass(frozen=True)
class AuditEvent(Model):
    """
    One line of the audit log: who changed what, and when.

    :ivar at: when; ``None`` where the answer's time is not in milliseconds (``raw`` has it).
    :ivar user: who.
    :ivar action: what was done.
    :ivar resource_id: to what.
    """

    at: datetime | None = None
    user: str | None = None
    action: str | None = None
    resource_id: str | None = None

    @classmethod
    def from_json(cls, value: Any) -> AuditEvent:
        """Read a line of the audit log."""
        record = as_object(value, "an audit event")
        return cls(
            at=as_datetime(record.get("timestamp")),
            user=as_str(record.get("user")),
            action=as_str(record.get("action")),
            resource_id=as_str(record.get("resourceId")),
            raw=record,
        )


@dataclass(frozen=True)
class MetricsSummary(Model):
    """
    How the runs of the last hours went.

    :ivar total: how many there were.
    :ivar succeeded: how many ended well.
    :ivar failed: how many did not.
    :ivar average_duration_ms: their mean duration, in milliseconds.
    :ivar p95_duration_ms: the duration that 95 % of them stay below, in milliseconds.
    """

    total: int | None = None
    succeeded: int | None = None
    failed: int | None = None
    average_duration_ms: int | None = None
    p95_duration_ms: int | None = None

    @classmethod
    def from_json(cls, value: Any) -> MetricsSummary:
        """Read the summary of the metrics."""
        record = as_object(value, "a summary")
        return cls(
            total=as_int(record.get("total")),
            succeeded=as_int(record.get("succeeded")),
            failed=as_int(record.get("failed")),
            average_duration_ms=as_int(record.get("avgDurationMs")),
            p95_duration_ms=as_int(record.get("p95DurationMs")),
            raw=record,
        )


@dataclass(frozen=True)
class FlowTask(Model):
    """
    One task inside a run.

    :ivar name: its name.
    :ivar type: ``stream``, ``extract``, ``load``, ``task`` or ``hwm``.
    :ivar started_at: when it started.
    :ivar duration_ms: how long it took, in milliseconds.
    :ivar records: how many records it processed.
    """

    name: str | None = None
    type: str | None = None
    started_at: datetime | None = None
    duration_ms: int | None = None
    records: int | None = None

    @classmethod
    def from_json(cls, value: Any) -> FlowTask:
        """Read a task of a run."""
        record = as_object(value, "a task of a run")
        return cls(
            name=as_str(record.get("name")),
            type=as_str(record.get("type")),
            started_at=as_datetime(record.get("started")),
            duration_ms=as_int(record.get("duration")),
            records=as_int(record.get("recordsProcessed")),
            raw=record,
        )
