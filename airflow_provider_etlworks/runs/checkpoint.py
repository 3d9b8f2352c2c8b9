"""Which runs of a flow are done: what is stored between two starts of a triggerer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(frozen=True)
class Checkpoint:
    """
    Which runs of a flow are settled: they have ended, and whoever wants to know was told.

    Runs end in another order than they began, so one number is not enough. The size is bounded: some of the newest
    runs, and those that have been going for longer.

    :ivar floor: runs up to this audit id are settled, those that are still ``going`` excepted.
    :ivar settled: settled runs above the floor.
    :ivar going: runs up to the floor that have not ended.
    """

    floor: int = 0
    settled: frozenset[int] = frozenset()
    going: frozenset[int] = frozenset()

    def has(self, audit_id: int) -> bool:
        """Whether a run is settled."""
        return audit_id in self.settled or (audit_id <= self.floor and audit_id not in self.going)

    def settle(self, audit_id: int) -> Checkpoint:
        """Return these notes with one more run settled."""
        if audit_id <= self.floor:
            return Checkpoint(self.floor, self.settled, self.going - {audit_id})
        return Checkpoint(self.floor, self.settled | {audit_id}, self.going)

    def raise_floor(self, floor: int, known: Iterable[int]) -> Checkpoint:
        """
        Return these notes with a higher floor.

        :param known: all runs between the two floors.
        """
        if floor <= self.floor:
            return self
        left = {audit_id for audit_id in known if self.floor < audit_id <= floor and audit_id not in self.settled}
        return Checkpoint(floor, frozenset(each for each in self.settled if each > floor), self.going | left)

    def to_json(self) -> dict[str, Any]:
        """Return the notes as plain JSON."""
        return {"floor": self.floor, "settled": sorted(self.settled), "going": sorted(self.going)}

    @classmethod
    def from_json(cls, value: Any) -> Checkpoint:
        """
        Read back what ``to_json`` wrote.

        :raises ValueError: it is no such thing.
        """
        try:
            floor, settled, going = (value[name] for name in ("floor", "settled", "going"))
            return cls(int(floor), frozenset(map(int, settled)), frozenset(map(int, going)))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"Cannot read the notes {value!r}") from error
