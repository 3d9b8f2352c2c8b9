"""
Turns schedules of Etlworks off, remembers which, and turns exactly those on again.

The record is a file beside the DAG file, so it goes where the DAG file goes, it can be read without Airflow's database,
and a person can read it, too. It is written before each change. So after a crash, at most one schedule is in doubt, and
Etlworks is asked about that one.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from airflow_provider_etlworks.client.errors import EtlworksConfigError, EtlworksError
from airflow_provider_etlworks.client.text import as_int

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from airflow_provider_etlworks.client.models import Schedule
    from airflow_provider_etlworks.client.procedure import Log

RECORD_ENDING = ".paused.json"
"""What the path of the record has after the path of the DAG file."""


class Schedules(Protocol):
    """What turns schedules on and off: a hook."""

    def list_schedules(self) -> Iterator[Schedule]:
        """List all schedules."""

    def pause_schedule(self, schedule_id: int) -> None:
        """Turn a schedule off."""

    def resume_schedule(self, schedule_id: int) -> None:
        """Turn a schedule on."""


class File(Protocol):
    """Where the record is."""

    @property
    def path(self) -> str:
        """Its path."""

    def read(self) -> bytes | None:
        """Return all of it; ``None`` if it does not exist."""

    def write(self, content: bytes) -> None:
        """Replace it, atomically."""


@dataclass
class PausedSchedule:
    """
    A schedule that we paused, or were about to pause when the command was interrupted.

    :ivar id: its id.
    :ivar flow_id: its flow, for people.
    :ivar name: its name, for people.
    """

    id: int
    flow_id: int | None
    name: str | None


@dataclass
class PauseRecord:
    """
    Which schedules we paused.

    :ivar file: where it is kept.
    :ivar etlworks: the address of the Etlworks that has them.
    :ivar conn_id: the Airflow connection that was used.
    :ivar schedules: the schedules, by id.
    """

    file: File
    etlworks: str
    conn_id: str
    schedules: dict[int, PausedSchedule] = field(default_factory=dict)

    @classmethod
    def load(cls, file: File) -> PauseRecord | None:
        """
        Read the record; ``None`` if there is none.

        :raises EtlworksConfigError: the file is not such a record.
        """
        content = file.read()
        if content is None:
            return None
        try:
            value: Any = json.loads(content)
            paused = [
                PausedSchedule(int(each["id"]), as_int(each["flow_id"]), each["name"]) for each in value["schedules"]
            ]
            return cls(file, str(value["etlworks"]), str(value["conn_id"]), {each.id: each for each in paused})
        except (ValueError, KeyError, TypeError) as error:
            raise EtlworksConfigError(f"{file.path} does not say which schedules were paused: {error}.") from error

    def save(self) -> None:
        """Write the record."""
        content = {
            "about": "Schedules of Etlworks that `airflow etlworks adopt` has paused. "
            "`airflow etlworks release` turns them on again.",
            "etlworks": self.etlworks,
            "conn_id": self.conn_id,
            "schedules": [asdict(each) for each in self.schedules.values()],
        }
        self.file.write((json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())


@dataclass
class Switched:
    """
    What a change of schedules has done.

    :ivar done: the schedules that were changed.
    :ivar failed: those that were not, and why.
    :ivar in_doubt: those of which it is not known, and why.
    """

    done: list[int] = field(default_factory=list)
    failed: dict[int, str] = field(default_factory=dict)
    in_doubt: dict[int, str] = field(default_factory=dict)


def pause(schedules: Schedules, adopted: Iterable[Schedule], record: PauseRecord, log: Log) -> Switched:
    """
    Turn schedules off, and record those that were on.

    :param schedules: the hook.
    :param adopted: the schedules, as they were translated. One that was changed since then is left as it is.
    :param record: receives them. Those that it has already stay in it.
    :param log: receives a line about each schedule that is left as it is.
    """
    known = _read(schedules)
    switched = Switched()
    sent: dict[int, str | None] = {}
    for translated in adopted:
        each = translated.id or 0
        schedule = known.get(each)
        if schedule is None:
            switched.failed[each] = "it does not exist any more"
        elif (schedule.schedule, schedule.flow_id) != (translated.schedule, translated.flow_id):
            switched.failed[each] = "it was changed meanwhile, so the DAG file is out of date"
        elif schedule.enabled is None:
            switched.failed[each] = "Etlworks does not say whether it is on"
        elif schedule.enabled:
            record.schedules[each] = PausedSchedule(each, schedule.flow_id, schedule.name)
            record.save()
            sent[each] = _send(schedules.pause_schedule, each)
        elif each not in record.schedules:
            log.info("Schedule %s is off already. It is not recorded, so a release leaves it off.", each)
    for each, error, is_on in _read_again(schedules, sent):
        if is_on is False or (is_on is None and error is None):
            switched.done.append(each)
        elif is_on and error is not None:
            del record.schedules[each]
            switched.failed[each] = error
        else:
            switched.in_doubt[each] = error or "Etlworks has confirmed the change, and reports the schedule as on"
    if sent:
        record.save()
    return switched


def release(schedules: Schedules, record: PauseRecord, log: Log) -> Switched:
    """
    Turn on the schedules that we paused, and remove them from the record.

    :param schedules: the hook.
    :param record: the record. What is not known to be on stays in it, so that this can be repeated.
    :param log: receives a line about each schedule that is left as it is.
    """
    known = _read(schedules)
    switched = Switched()
    sent: dict[int, str | None] = {}
    for each in list(record.schedules):
        schedule = known.get(each)
        if schedule is None or schedule.enabled:
            state = "does not exist any more" if schedule is None else "is on already"
            log.info("Schedule %s %s. It is left as it is.", each, state)
            del record.schedules[each]
        else:
            sent[each] = _send(schedules.resume_schedule, each)
    for each, error, is_on in _read_again(schedules, sent):
        if is_on or (is_on is None and error is None):
            del record.schedules[each]
            switched.done.append(each)
        elif is_on is False and error is not None:
            switched.failed[each] = error
        else:
            switched.in_doubt[each] = error or "Etlworks has confirmed the change, and reports the schedule as off"
    record.save()
    return switched


def _read(schedules: Schedules) -> dict[int, Schedule]:
    return {each.id: each for each in schedules.list_schedules() if each.id is not None}


def _send(change: Callable[[int], None], schedule_id: int) -> str | None:
    """Send a change. Return why it failed; ``None`` if Etlworks has confirmed it."""
    try:
        change(schedule_id)
    except EtlworksError as error:
        return str(error)
    return None


def _read_again(schedules: Schedules, sent: dict[int, str | None]) -> Iterator[tuple[int, str | None, bool | None]]:
    """
    Read what has become of schedules.

    :param sent: by their ids, why the change failed; ``None`` if Etlworks has confirmed it.
    :return: the id, that reason, and whether the schedule is on; ``None`` if that cannot be read.
    """
    known: dict[int, Schedule] = {}
    if sent:
        # What was confirmed needs no second proof, and the rest stays in doubt.
        with suppress(EtlworksError):
            known = _read(schedules)
    for each, error in sent.items():
        yield each, error, known[each].enabled if each in known else None
