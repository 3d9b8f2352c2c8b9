"""Pause and release, with an Etlworks and a command that fail at any point."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_provider_etlworks.adoption.pausing import PauseRecord, pause, release
from airflow_provider_etlworks.client.errors import EtlworksConfigError, EtlworksError
from airflow_provider_etlworks.client.models import Schedule

if TYPE_CHECKING:
    from collections.abc import Iterator

LOG = logging.getLogger(__name__)
ROOT = "https://app.etlworks.com"


class Crash(BaseException):
    """The command is killed."""


@dataclass
class MemoryFile:
    """A file that writes atomically, and counts as a step at which a command can be killed."""

    etlworks: FakeEtlworks
    path: str = "dags.py.paused.json"
    content: bytes | None = None

    def read(self) -> bytes | None:
        return self.content

    def write(self, content: bytes) -> None:
        if self.etlworks.step() == "before":
            raise Crash
        self.content = content


@dataclass
class FakeEtlworks:
    """
    Schedules that are on or off.

    :ivar on: whether each is on, by id.
    :ivar faults: what happens in each step: ``""``, ``"before"``, ``"after"`` (killed), ``"refused"``, ``"lost"``.
    """

    on: dict[int, bool | None]
    faults: list[str] = field(default_factory=list)
    changes: list[tuple[int, bool]] = field(default_factory=list)

    def step(self) -> str:
        return self.faults.pop(0) if self.faults else ""

    def schedules(self) -> list[Schedule]:
        return [Schedule(id=each, flow_id=each, schedule="15", enabled=is_on) for each, is_on in self.on.items()]

    def list_schedules(self) -> Iterator[Schedule]:
        fault = self.step()
        if fault in ("before", "after"):
            raise Crash
        if fault:
            raise EtlworksError("Etlworks does not answer.")
        return iter(self.schedules())

    def pause_schedule(self, schedule_id: int) -> None:
        self._change(schedule_id, on=False)

    def resume_schedule(self, schedule_id: int) -> None:
        self._change(schedule_id, on=True)

    def _change(self, schedule_id: int, *, on: bool) -> None:
        fault = self.step()
        if fault == "before":
            raise Crash
        if fault == "refused":
            raise EtlworksError("Etlworks refuses.")
        self.on[schedule_id] = on
        self.changes.append((schedule_id, on))
        if fault == "after":
            raise Crash
        if fault == "lost":
            raise EtlworksError("The response is lost.")


def attempt(etlworks: FakeEtlworks, file: MemoryFile, *, off: bool) -> None:
    """Run a command, which may be killed or fail."""
    try:
        record = PauseRecord.load(file) or PauseRecord(file, ROOT, "etlworks_default")
        if off:
            pause(etlworks, etlworks.schedules(), record, LOG)
        else:
            release(etlworks, record, LOG)
    except (Crash, EtlworksError):
        pass


STEPS = st.lists(st.sampled_from(["", "", "", "before", "after", "refused", "lost"]), max_size=14)


@settings(max_examples=200, deadline=None)
@given(
    states=st.lists(st.booleans(), min_size=1, max_size=4),
    commands=st.lists(st.tuples(st.booleans(), STEPS), min_size=1, max_size=4),
)
def test_release_gives_back_exactly_what_was_on(states: list[bool], commands: list[tuple[bool, list[str]]]) -> None:
    before = dict(enumerate(states, 1))
    etlworks = FakeEtlworks(dict(before))
    file = MemoryFile(etlworks)
    for off, faults in commands:
        etlworks.faults = list(faults)
        attempt(etlworks, file, off=off)
        # What is off now and was on is in the file, whatever happened.
        missing = {each for each, is_on in before.items() if is_on and not etlworks.on[each]}
        recorded = {each["id"] for each in json.loads(file.content)["schedules"]} if file.content else set()
        assert missing <= recorded
        assert all(before[each] for each, _ in etlworks.changes)
    etlworks.faults = []
    attempt(etlworks, file, off=False)
    assert etlworks.on == before
    attempt(etlworks, file, off=False)
    assert etlworks.on == before


def test_schedule_without_a_state_is_left_as_it_is() -> None:
    etlworks = FakeEtlworks({1: None})
    record = PauseRecord(MemoryFile(etlworks), ROOT, "etlworks_default")
    switched = pause(etlworks, etlworks.schedules(), record, LOG)
    assert switched.failed == {1: "Etlworks does not say whether it is on"}
    assert etlworks.changes == []


def test_record_survives_what_names_hold() -> None:
    etlworks = FakeEtlworks({})
    file = MemoryFile(etlworks)
    record = PauseRecord(file, ROOT, "etlworks_default")
    etlworks.on = {1: True}
    schedule = Schedule(id=1, flow_id=1, name='"\\日本\u2028', schedule="15", enabled=True)
    etlworks.schedules = lambda: [schedule]  # type: ignore[method-assign]
    pause(etlworks, [schedule], record, LOG)
    loaded = PauseRecord.load(file)
    assert loaded is not None
    assert loaded.schedules == record.schedules


def test_record_that_is_not_one_is_refused() -> None:
    with pytest.raises(EtlworksConfigError, match="does not say which schedules were paused"):
        PauseRecord.load(MemoryFile(FakeEtlworks({}), content=b'{"schedules": "x"}'))
