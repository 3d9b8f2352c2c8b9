"""Which runs of a flow are done: what is stored between two starts of a triggerer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable


def reported_key(flow_id: int) -> str:
    """
    Return the key in an asset's state store under which the webhook lists the runs that it has reported.

    :param flow_id: the flow.
    """
    return f"etlworks_webhook.{flow_id}"


@dataclass(frozen=True)
class Checkpoint:
    """
    Which runs of a flow are done: they have ended, and their end was reported if anybody wanted it.

    Runs end in another order than they began, so one number is not enough. The size is bounded: some of the newest
    runs, and those that are going.

    :ivar low_watermark: runs up to this audit id are done, except those that are ``pending``.
    :ivar done: done runs above the watermark.
    :ivar pending: runs that were known to be going when the checkpoint was taken: all of those up to the watermark, and
        perhaps some above it.
    """

    low_watermark: int = 0
    done: frozenset[int] = frozenset()
    pending: frozenset[int] = frozenset()

    @property
    def newest_known(self) -> int:
        """The newest run that it knows of; it also knows of all older ones. 0 if there was none."""
        return max((self.low_watermark, *self.done, *self.pending))

    def is_done(self, audit_id: int) -> bool:
        """Whether a run is done."""
        return audit_id in self.done or (audit_id <= self.low_watermark and audit_id not in self.pending)

    def mark_done(self, audit_id: int) -> Checkpoint:
        """Return this checkpoint with one more run done."""
        done = self.done | {audit_id} if audit_id > self.low_watermark else self.done
        return replace(self, done=done, pending=self.pending - {audit_id})

    def mark_pending(self, audit_id: int) -> Checkpoint:
        """Return this checkpoint with one more run that is going."""
        return self if audit_id in self.pending else replace(self, pending=self.pending | {audit_id})

    def raise_watermark(self, low_watermark: int, known: Iterable[int]) -> Checkpoint:
        """
        Return this checkpoint with a higher watermark.

        :param known: all runs between the two watermarks.
        """
        if low_watermark <= self.low_watermark:
            return self
        left = {each for each in known if self.low_watermark < each <= low_watermark and each not in self.done}
        done = frozenset(each for each in self.done if each > low_watermark)
        return Checkpoint(low_watermark, done, self.pending | left)

    def to_json(self) -> dict[str, Any]:
        """Return the checkpoint as plain JSON."""
        return {"low_watermark": self.low_watermark, "done": sorted(self.done), "pending": sorted(self.pending)}

    @classmethod
    def from_json(cls, value: Any) -> Checkpoint:
        """
        Read back what ``to_json`` wrote.

        :raises ValueError: it is something else.
        """
        try:
            low_watermark, done, pending = (value[name] for name in ("low_watermark", "done", "pending"))
            return cls(int(low_watermark), frozenset(map(int, done)), frozenset(map(int, pending)))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"Cannot read the checkpoint {value!r}") from error
