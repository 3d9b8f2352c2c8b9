"""
What a trigger reports to its task: one shape, typed on our side.

An event goes through pipes and Airflow's database, and the two sides may be different releases of this package. So it
is plain JSON that PostgreSQL can store, smaller than 64 KiB, and read back with a clear error if it cannot be read.
"""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from airflow_provider_etlworks.client.errors import EtlworksReplyError
from airflow_provider_etlworks.client.models import Execution
from airflow_provider_etlworks.client.text import cut, shorten_trace, storable
from airflow_provider_etlworks.runs.follow import Ending, FollowResult

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# Bytes of each text as JSON. With their names and the numbers, all of them together are smaller than 64 KiB.
_LONGEST_EXCEPTION = 36_000
_LONGEST_DETAIL = 10_000
_LONGEST_WORD = 1_500

# Bytes that one character takes as JSON at most.
_LARGEST_CHARACTER = 12


@dataclass(frozen=True)
class ExecutionEvent:
    """
    The result of following one run.

    :ivar flow_id: the flow.
    :ivar audit_id: the run.
    :ivar followed: why the following ended, and the run's last record.
    """

    flow_id: int
    audit_id: int
    followed: FollowResult

    def to_payload(self) -> dict[str, Any]:
        """
        Return ``{"ending", "flow_id", "audit_id", "status", "detail", "execution"}``: JSON of less than 64 KiB.

        No text in it contains a NUL or a lone surrogate; texts that are too long are cut, with an ellipsis at the cut.
        """
        return _payload(self.flow_id, self.audit_id, self.followed)

    @classmethod
    def from_payload(cls, payload: Any) -> ExecutionEvent:
        """
        Read an event back.

        :raises EtlworksReplyError: it is not an event; the message has what could be read of it.
        """
        with _explained(payload):
            return cls(int(payload["flow_id"]), int(payload["audit_id"]), _followed(payload))


@dataclass(frozen=True)
class WaitEvent:
    """
    The result of waiting for a run that may never have been there.

    :ivar flow_id: the flow.
    :ivar followed: why the wait ended, and the run's last record, if there was one.
    """

    flow_id: int
    followed: FollowResult

    def to_payload(self) -> dict[str, Any]:
        """Return what :class:`ExecutionEvent` returns; ``audit_id`` is ``None`` if no run was found."""
        execution = self.followed.execution
        return _payload(self.flow_id, execution.audit_id if execution else None, self.followed)

    @classmethod
    def from_payload(cls, payload: Any) -> WaitEvent:
        """
        Read an event back.

        :raises EtlworksReplyError: it is not an event; the message has what could be read of it.
        """
        with _explained(payload):
            return cls(int(payload["flow_id"]), _followed(payload))


def _payload(flow_id: int, audit_id: int | None, followed: FollowResult) -> dict[str, Any]:
    execution = followed.execution
    record = execution.to_dict() if execution else None
    if record is not None:
        for name, value in record.items():
            if name == "exception" and value is not None:
                record[name] = _bounded(value, _LONGEST_EXCEPTION, shorten_trace)
            elif isinstance(value, str):
                record[name] = _bounded(value, _LONGEST_WORD)
    return {
        "ending": followed.ending.value,
        "flow_id": flow_id,
        "audit_id": audit_id,
        "status": record["status"] if record is not None else None,
        "detail": _bounded(followed.detail, _LONGEST_DETAIL),
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
    """Explain what is wrong with an event that cannot be read."""
    try:
        yield
    except (AttributeError, KeyError, TypeError, ValueError, EtlworksReplyError) as error:
        audit_id = payload.get("audit_id") if isinstance(payload, dict) else None
        known = f"run {audit_id}" if audit_id is not None else "a run"
        raise EtlworksReplyError(
            f"Cannot read the trigger's event about {known}: {repr(error)[:500]} is wrong with {str(payload)[:500]}. "
            "Do the triggerer and the workers have the same release of airflow-provider-etlworks? "
            "The run may still be going in Etlworks."
        ) from error


def _bounded(text: str, limit: int, shorten: Callable[[str, int], str] = cut) -> str:
    """Return a text that Airflow can store, and that takes ``limit`` bytes as JSON at most."""
    text = storable(text)
    # As ASCII, in which Airflow writes it. In UTF-8 it is never larger.
    fits = len(text) <= limit and len(json.dumps(text)) <= limit
    return text if fits else shorten(text, limit // _LARGEST_CHARACTER)
