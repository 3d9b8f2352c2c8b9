"""What a task remembers of its start from one try to the next, where Airflow keeps it (3.3 and later)."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import Any

_KEY = "etlworks_start"


@dataclass(frozen=True)
class RememberedStart:
    """
    A start that this task made, or was about to make.

    :ivar flow_id: the flow.
    :ivar watermark: the flow's newest audit id before the start.
    :ivar asked_at: Unix time of the start.
    :ivar max_tries: Airflow's number for the task instance then: clearing a task changes it, a retry does not.
    :ivar audit_id: the run, once it is known.
    :ivar is_ours: whether we started it; a run that is only followed is never stopped.
    :ivar stop_asked: whether we asked Etlworks to stop it.
    :ivar message_uuid: the message that started it, once it is known, where it was a payload's.
    """

    flow_id: int
    watermark: int
    asked_at: float
    max_tries: int
    audit_id: int | None = None
    is_ours: bool = True
    stop_asked: bool = False
    message_uuid: str | None = None


class Memory:
    """
    Keeps the start in the task's state store.

    :param store: Airflow's store; ``None`` keeps nothing, as before Airflow 3.3 or with ``durable=False``.
    """

    def __init__(self, store: Any | None) -> None:
        self._store = store

    @property
    def is_durable(self) -> bool:
        """Whether anything is kept."""
        return self._store is not None

    def recall(self) -> RememberedStart | None:
        """Return the start that is kept; ``None`` where there is none that this release can read."""
        kept = self._store.get(_KEY) if self._store is not None else None
        if not isinstance(kept, dict):
            return None
        try:
            return RememberedStart(
                **{each.name: kept[each.name] for each in fields(RememberedStart) if each.name in kept}
            )
        except TypeError:
            return None

    def keep(self, start: RememberedStart) -> None:
        """Keep a start, instead of the one before."""
        if self._store is not None:
            self._store.set(_KEY, asdict(start))

    def add(self, **changes: Any) -> None:
        """Add to the start that is kept."""
        start = self.recall()
        if start is not None:
            self.keep(replace(start, **changes))

    def forget(self) -> None:
        """Forget the start: it is certain that nothing came of it."""
        if self._store is not None:
            self._store.delete(_KEY)
