"""The record of what a task sent, from one try to the next, if Airflow keeps one (3.3 and later)."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

RecordT = TypeVar("RecordT", bound="DataclassInstance")


@dataclass(frozen=True)
class LaunchRecord:
    """
    A start that this task made, or was about to make.

    :ivar flow_id: the flow; 0 if a payload was sent to one that the task does not know.
    :ivar watermark: the flow's newest audit id before the start.
    :ivar asked_at: Unix time of the start.
    :ivar max_tries: Airflow's number for the task instance then: clearing a task changes it, a retry does not.
    :ivar audit_id: the run, once it is known.
    :ivar is_ours: whether we started it; a run that is only followed is never stopped.
    :ivar stop_asked: whether we asked Etlworks to stop it.
    :ivar run_key: the value of the connection's ``run_key_parameter`` in that start; ``None`` if it carried none.
    :ivar root_url: the address of the instance that the start was sent to; ``None`` in records of older releases.
    :ivar message_result: ``{"message_uuid", "audit_id", "answer"}``, if a payload started it, once that is answered.
    """

    flow_id: int
    watermark: int
    asked_at: float
    max_tries: int
    audit_id: int | None = None
    is_ours: bool = True
    stop_asked: bool = False
    message_result: dict[str, Any] | None = None
    run_key: str | None = None
    root_url: str | None = None


@dataclass(frozen=True)
class ImportRecord:
    """
    An import that this task sent, or was about to send.

    :ivar sha256: the bundle's hash.
    :ivar before: the target's flows before it, from ``bundles.import_once.flow_versions``.
    :ivar max_tries: as above.
    :ivar backup_path: the path of the backup that was made before it.
    :ivar backup_sha256: the backup's hash.
    :ivar told_by: how it is known that it was applied: by its ``"answer"``, or by the ``"target"``; ``None`` while it
        is in doubt.
    :ivar failure: why it failed, if Etlworks answered that it did.
    """

    sha256: str
    before: dict[str, list[list[int]]]
    max_tries: int
    backup_path: str | None = None
    backup_sha256: str | None = None
    told_by: str | None = None
    failure: str | None = None


class _RecordStore(Generic[RecordT]):
    """
    Keeps one record in the task's state store.

    :param store: Airflow's store; ``None`` keeps nothing, as before Airflow 3.3 or with ``durable=False``.
    """

    _key: ClassVar[str]
    _kind: type[RecordT]

    def __init__(self, store: Any | None) -> None:
        self._store = store

    @property
    def is_durable(self) -> bool:
        """Whether anything is kept."""
        return self._store is not None

    def load(self) -> RecordT | None:
        """Return the record that is kept; ``None`` if there is none that this release can read."""
        kept = self._store.get(self._key) if self._store is not None else None
        if not isinstance(kept, dict):
            return None
        try:
            return self._kind(**{each.name: kept[each.name] for each in fields(self._kind) if each.name in kept})
        except TypeError:
            return None

    def save(self, record: RecordT) -> None:
        """Keep a record, instead of the one before."""
        if self._store is not None:
            self._store.set(self._key, asdict(record))

    def update(self, **changes: Any) -> None:
        """Change fields of the record that is kept, if there is one."""
        kept = self.load()
        if kept is not None and (changed := replace(kept, **changes)) != kept:
            self.save(changed)

    def clear(self) -> None:
        """Delete the record: it is certain that nothing was started or imported."""
        if self._store is not None:
            self._store.delete(self._key)


class LaunchRecordStore(_RecordStore[LaunchRecord]):
    """Keeps the start of a run."""

    _key = "etlworks_start"
    _kind = LaunchRecord


class ImportRecordStore(_RecordStore[ImportRecord]):
    """Keeps the sending of an import."""

    _key = "etlworks_import"
    _kind = ImportRecord
