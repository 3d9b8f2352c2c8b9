"""A task is killed between any two lines of its execution: its run is stopped once, and none is left behind."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from support.effort import effort
from support.task import RUN_PATH, STOP_PATH

from airflow_provider_etlworks import runs, worker
from airflow_provider_etlworks.client.errors import EtlworksError
from airflow_provider_etlworks.sandbox import hang_up

if TYPE_CHECKING:
    from types import FrameType

    from support.etlworks import Etlworks

# The modules that an execution is made of; HTTP itself is not.
FOLDERS = (str(Path(worker.__file__).parent), str(Path(runs.__file__).parent))
# So many lines lie between two kills. With a kill before every line, each case takes a minute.
EVERY = effort(5, 1)


class Killed(BaseException):
    """What Airflow 2 raises in the middle of whatever a killed task does."""


class KillAtLine:
    """
    Calls ``on_kill`` before the n-th line that is executed in our modules, as a signal does.

    :ivar happened: whether so many lines were executed.
    """

    def __init__(self, operator: Any, line: int, *, goes_on: bool) -> None:
        self.happened = False
        self._operator = operator
        self._left = line
        self._goes_on = goes_on

    def __enter__(self) -> KillAtLine:
        self._before = sys.gettrace()
        sys.settrace(self._trace)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._before)

    def _trace(self, frame: FrameType, event: str, _: Any) -> Any:
        if not frame.f_code.co_filename.startswith(FOLDERS):
            return None
        if event == "line" and not self.happened:
            self._left -= 1
            if self._left <= 0:
                self.happened = True
                sys.settrace(None)
                self._operator.on_kill()
                if not self._goes_on:
                    raise Killed
        return self._trace


def try_and_kill(etlworks: Etlworks, line: int, *, goes_on: bool, lost: bool) -> bool:
    """Make a try that is killed, and check what is left of it. Return whether there was such a line."""
    etlworks.sandbox.clear_faults()
    before, stops = etlworks.sandbox.runs_started(), etlworks.asked("POST", STOP_PATH)
    etlworks.flow(running=3600)
    if lost:
        etlworks.sandbox.fault("POST", RUN_PATH, hang_up())
    task = etlworks.task(timeout=600, poll_interval=300)
    operator = task.operator()
    with KillAtLine(operator, line, goes_on=goes_on) as kill:
        try:
            operator.execute(task.next_try())
        except (Killed, EtlworksError) as error:
            went = error
        else:
            raise AssertionError("a run of an hour does not end well within ten minutes")
    started = etlworks.sandbox.runs()[before:]
    where = f"line {line}: {went!r}"
    assert len(started) <= 1, where
    assert [run.stop_requested for run in started] == [True] * len(started), where
    # A kill in the middle of a stop sends it once more.
    assert len(started) <= etlworks.asked("POST", STOP_PATH) - stops <= 2 * len(started), where
    etlworks.clock.sleep(60)

    etlworks.sandbox.clear_faults()
    etlworks.flow(running=5)
    retry = task.run()
    assert retry.colour == "success", f"{where}; then {retry.error!r}"
    assert etlworks.sandbox.runs_started() == before + len(started) + 1, where
    return kill.happened


@pytest.mark.fuzzing
@pytest.mark.parametrize("goes_on", [False, True], ids=["Airflow 2", "Airflow 3"])
@pytest.mark.parametrize("lost", [False, True], ids=["answered", "answer lost"])
def test_kill_at_any_line_leaves_no_run(etlworks: Etlworks, goes_on: bool, lost: bool) -> None:
    etlworks.logged.set_level("WARNING")
    line = 1
    while try_and_kill(etlworks, line, goes_on=goes_on, lost=lost):
        line += EVERY
    assert line > 100
