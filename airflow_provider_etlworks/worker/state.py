"""
Where one execution of a task stands.

A signal handler reads it at any moment, so each transition is one assignment.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from airflow_provider_etlworks.runs.types import RunRef


class Phase(Enum):
    """
    The phases of one execution.

    ``IDLE``: nothing was sent, or certainly nothing was started. ``STARTING``: a start is being sent or is in doubt.
    ``RUNNING``: the run is known. ``DONE``: nothing is left to stop.
    """

    IDLE = "idle"
    STARTING = "starting"
    RUNNING = "running"
    DONE = "done"


_NEXT = {
    Phase.IDLE: {Phase.IDLE, Phase.STARTING, Phase.RUNNING, Phase.DONE},
    Phase.STARTING: {Phase.IDLE, Phase.STARTING, Phase.RUNNING, Phase.DONE},
    # Back to IDLE: the run of an earlier try is not followed, and a new run is started.
    Phase.RUNNING: {Phase.IDLE, Phase.RUNNING, Phase.DONE},
    Phase.DONE: set[Phase](),
}


@dataclass(frozen=True)
class _Position:
    phase: Phase = Phase.IDLE
    watermark: int = 0
    run: RunRef | None = None
    is_ours: bool = True


class RunState:
    """
    The phase of one execution, and what is known in it.

    :ivar killed: whether Airflow killed the task. Airflow 3 lets it go on after that.
    :ivar stop_requested: the run that this execution asked Etlworks to stop.
    """

    def __init__(self) -> None:
        self._position = _Position()
        self.killed = False
        self.stop_requested: RunRef | None = None

    @property
    def phase(self) -> Phase:
        """The present phase."""
        return self._position.phase

    @property
    def watermark(self) -> int:
        """The flow's newest audit id before the start, while it is ``STARTING``."""
        return self._position.watermark

    @property
    def own_run(self) -> RunRef | None:
        """The run, while it is ``RUNNING`` and this task started it. Another run is never stopped."""
        return self._position.run if self._position.is_ours else None

    def idle(self) -> None:
        """Nothing is under way."""
        self._move(_Position())

    def starting(self, watermark: int) -> None:
        """Record that a start is about to be sent, or is in doubt."""
        self._move(_Position(Phase.STARTING, watermark))

    def running(self, run: RunRef, *, is_ours: bool = True) -> None:
        """Record the run."""
        self._move(_Position(Phase.RUNNING, run=run, is_ours=is_ours))

    def done(self) -> None:
        """Record that nothing is left to stop."""
        self._move(_Position(Phase.DONE))

    def _move(self, to: _Position) -> None:
        if to.phase not in _NEXT[self.phase]:
            raise RuntimeError(f"A task cannot go from {self.phase.value} to {to.phase.value}.")
        self._position = to
