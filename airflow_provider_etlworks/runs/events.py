"""
What a trigger tells its task: one shape, typed on our side.

An event goes through Airflow's database, and the two sides may be different releases of this package. So it is plain
JSON, bounded in size, and read back with a clear error where it is not what it should be.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from airflow_provider_etlworks.client.errors import EtlworksReplyError
from airflow_provider_etlworks.client.models import Execution
from airflow_provider_etlworks.runs.follow import Ending, FollowResult

if TYPE_CHECKING:
    from collections.abc import Iterator

LONGEST_TEXT = 7_500
"""Bytes of a server's text that an event carries at most. As JSON they may be three times as many."""


@dataclass(frozen=True)
class ExecutionEvent:
    """
    The end of a watch over one run.

    :ivar flow_id: the flow.
    :ivar audit_id: the run.
    :ivar followed: why the watch ended, and the run's last record.
    """

    flow_id: int
    audit_id: int
    followed: FollowResult

    def to_payload(self) -> dict[str, Any]:
        """Return ``{"ending", "flow_id", "audit_id", "status", "detail", "execution"}``, JSON-safe."""
        return _payload(self.flow_id, self.audit_id, self.followed)

    @classmethod
    def from_payload(cls, payload: Any) -> ExecutionEvent:
        """
        Read an event back.

        :raises EtlworksReplyError: it is none; the message has what could be read of it.
        """
        with _explained(payload):
            return cls(int(payload["flow_id"]), int(payload["audit_id"]), _followed(payload))


@dataclass(frozen=True)
class WaitEvent:
    """
    The end of a wait for a run that may never have been there.

    :ivar flow_id: the flow.
    :ivar followed: why the wait ended, and the run's last record, if there was one.
    """

    flow_id: int
    followed: FollowResult

    def to_payload(self) -> dict[str, Any]:
        """Return what an :class:`ExecutionEvent` does; ``audit_id`` is ``None`` where no run was found."""
        execution = self.followed.execution
        return _payload(self.flow_id, execution.audit_id if execution else None, self.followed)

    @classmethod
    def from_payload(cls, payload: Any) -> WaitEvent:
        """
        Read an event back.

        :raises EtlworksReplyError: it is none; the message has what could be read of it.
        """
        with _explained(payload):
            return cls(int(payload["flow_id"]), _followed(payload))


def _payload(flow_id: int, audit_id: int | None, followed: FollowResult) -> dict[str, Any]:
    execution = followed.execution
    record = execution.to_dict() if execution else None
    if record and record["exception"]:
        record["exception"] = _bounded(record["exception"])
    return {
        "ending": followed.ending.value,
        "flow_id": flow_id,
        "audit_id": audit_id,
        "status": execution.status if execution else None,
        "detail": _bounded(followed.detail),
        "execution": record,
    }


def _followed(payload: Any) -> FollowResult:
    record = payload.get("execution")
    return FollowResult(
        Ending(payload["ending"]),
        Execution.from_dict(record) if record is not None else None,
        str(payload.get("detail") or ""),
    )


@contextmanager
def _explained(payload: Any) -> Iterator[None]:
    """Say what is wrong with an event that cannot be read."""
    try:
        yield
    except (AttributeError, KeyError, TypeError, ValueError, EtlworksReplyError) as error:
        audit_id = payload.get("audit_id") if isinstance(payload, dict) else None
        known = f"run {audit_id}" if audit_id is not None else "a run"
        raise EtlworksReplyError(
            f"Cannot read the trigger's event about {known}: {error!r} is wrong with {str(payload)[:500]}. "
            "Do the triggerer and the workers have the same release of airflow-provider-etlworks? "
            "The run may still be going in Etlworks."
        ) from error


def _bounded(text: str) -> str:
    return text[:LONGEST_TEXT].encode(errors="replace")[:LONGEST_TEXT].decode(errors="ignore")
