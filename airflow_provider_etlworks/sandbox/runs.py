"""The runs of a sandbox's flows. Their state is computed from the time, so nothing runs in the background."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from airflow_provider_etlworks.sandbox.messages import milliseconds

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    from airflow_provider_etlworks.sandbox.flows import SandboxFlow

FIRST_AUDIT_ID = 8721934


@dataclass(frozen=True)
class SandboxRun:
    """
    The state of a run at one moment.

    ``accepted``, ``started`` and ``ended`` are Unix times in seconds by the sandbox's clock. ``started`` is None
    while the run is queued, and ``ended`` while it is going. ``stop_requested`` is true after a stop request.
    """

    flow_id: int
    audit_id: int
    status: str
    accepted: float
    started: float | None
    ended: float | None
    parameters: Mapping[str, str]
    user: str
    event_id: int | None
    message_id: str | None
    stop_requested: bool


@dataclass
class Run:
    """
    One run. ``time_scale`` multiplies the flow's seconds; ``stop_takes`` is in seconds; ``echo`` says what shows the
    parameters: ``record``, ``log``.
    """

    flow: SandboxFlow
    audit_id: int
    accepted: float
    user: str
    time_scale: float = 1.0
    stop_takes: float = 0.0
    parameters: Mapping[str, str] = field(default_factory=dict)
    event_id: int | None = None
    event_name: str | None = None
    message_id: str | None = None
    stopped_at: float | None = None
    stopped_by: str | None = None
    finished: tuple[float, str] | None = None
    echo: Collection[str] = ()

    @property
    def begins(self) -> float:
        """When it starts running."""
        return self.accepted + self.flow.queued * self.time_scale

    @property
    def ends(self) -> float:
        """When it ends, unless somebody stops it."""
        return self._end()[0]

    def status(self, now: float) -> str:
        """Return the status at that time."""
        ends, final = self._end()
        if now >= ends:
            return final
        if self.stopped_at is not None:
            return "canceled"
        return "running" if now >= self.begins else "queued"

    def started(self, now: float) -> float | None:
        """Return when it started running, or None before that."""
        return self.begins if self.begins <= min(now, self.ends) else None

    def ended(self, now: float) -> float | None:
        """Return when it ended, or None before that."""
        return self.ends if now >= self.ends else None

    def visible(self, now: float) -> bool:
        """Return whether its record is readable yet."""
        return now >= self.accepted + self.flow.visible_after * self.time_scale

    def records(self, now: float) -> int:
        """Return the number of records processed by then."""
        return int(self.flow.records * self._progress(now))

    def exception(self, now: float) -> str | None:
        """Return the error text of a run that ended in ``error``."""
        if now < self.ends or self.status(now) != "error":
            return None
        if self.stopped_by is not None and self.finished is None:
            return f"The flow was stopped by {self.stopped_by}"
        return self.flow.exception or f"Flow '{self.flow.name}' failed"

    def log(self, now: float) -> list[str]:
        """Return the lines of its log by then."""
        lines = [(self.accepted, f"Flow '{self.flow.name}' queued")]
        if "log" in self.echo:
            lines += [(self.accepted, f"Parameter {name} = '{value}'") for name, value in self.parameters.items()]
        started = self.started(now)
        if started is not None:
            written = round(len(self.flow.log) * self._progress(now))
            step = (self.ends - started) / len(self.flow.log) if written and self.ends != float("inf") else 0.0
            lines.append((started, f"Flow '{self.flow.name}' started"))
            lines += [(started + step * position, line) for position, line in enumerate(self.flow.log[:written])]
        if self.stopped_at is not None:
            lines.append((self.stopped_at, f"Stop requested by {self.stopped_by}"))
        exception = self.exception(now)
        if exception is not None:
            lines += [(self.ends, f"ERROR {line}") for line in exception.splitlines()]
        if now >= self.ends:
            lines.append((self.ends, f"Flow '{self.flow.name}' ended: {self.status(now)}"))
        return [f"{_timestamp(at)} {line}" for at, line in lines]

    def record(self, now: float) -> dict[str, Any]:
        """Return the run's FlowAuditRecord."""
        return {
            "auditId": self.audit_id,
            "parentAuditId": None,
            "retries": 0,
            "flowId": self.flow.id,
            "flowName": self.flow.name,
            "eventId": self.event_id,
            "eventName": self.event_name,
            "messageId": self.message_id,
            "exception": self.exception(now),
            **({"parameters": dict(self.parameters)} if "record" in self.echo else {}),
            **self.report_entry(now),
        }

    def report_entry(self, now: float, *, with_metrics: bool = False) -> dict[str, Any]:
        """Return the run's entry in the daily report, perhaps with metrics and the text of its error."""
        ended = self.ended(now)
        metrics = {"exception": self.exception(now), "metrics": {"records": self.records(now), "ended": bool(ended)}}
        return {
            **(metrics if with_metrics else {}),
            "flowId": self.flow.id,
            "auditId": self.audit_id,
            "status": self.status(now),
            "user": self.user,
            "started": milliseconds(self.started(now)),
            "ended": milliseconds(self.ended(now)),
            "records": self.records(now),
        }

    def tasks(self, now: float) -> list[dict[str, Any]]:
        """Return the steps inside the run: it extracts in the first half of its time, and loads in the second."""
        started = self.started(now)
        if started is None:
            return []
        middle = started + (self.ends - started) / 2
        spans = [("extract", started, middle), ("load", middle, self.ends)]
        return [
            {
                "name": f"{kind.capitalize()} of '{self.flow.name}'",
                "type": kind,
                "started": milliseconds(begin),
                "duration": milliseconds(min(now, end) - begin),
                "recordsProcessed": self.records(min(now, end)),
            }
            for kind, begin, end in spans
            if begin <= now
        ]

    def snapshot(self, now: float) -> SandboxRun:
        """Return the state of the run at that time."""
        return SandboxRun(
            flow_id=self.flow.id,
            audit_id=self.audit_id,
            status=self.status(now),
            accepted=self.accepted,
            started=self.started(now),
            ended=self.ended(now),
            parameters=self.parameters,
            user=self.user,
            event_id=self.event_id,
            message_id=self.message_id,
            stop_requested=self.stopped_at is not None,
        )

    def _end(self) -> tuple[float, str]:
        if self.finished is not None:
            return self.finished
        if self.stopped_at is not None:
            return self.stopped_at + self.stop_takes, "success" if self.flow.streaming else "error"
        return self.begins + self.flow.running * self.time_scale, self.flow.ends

    def _progress(self, now: float) -> float:
        if now >= self.ends and self.stopped_at is None:
            return 1.0
        started = self.started(now)
        length = self.flow.running * self.time_scale
        if started is None or length == 0:
            return 0.0
        return min(1.0, (min(now, self.ends) - started) / length)


class RunStore:
    """
    Every run of the organization, indexed by audit id, flow and message.

    :param clock: Returns the time in seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._all: list[Run] = []
        self._by_audit_id: dict[int, Run] = {}
        self._by_flow: dict[int, list[Run]] = defaultdict(list)
        self._by_message: dict[str, Run] = {}
        self._unfinished: dict[int, list[Run]] = defaultdict(list)
        self._forgotten: set[int] = set()

    def start(self, flow: SandboxFlow, user: str, **details: Any) -> Run:
        """Start a run with the next audit id."""
        run = Run(flow, FIRST_AUDIT_ID + len(self._all), self._clock(), user, **details)
        self._all.append(run)
        self._by_audit_id[run.audit_id] = run
        self._by_flow[flow.id].append(run)
        self._unfinished[flow.id].append(run)
        if run.message_id is not None:
            self._by_message[run.message_id] = run
        return run

    def all_runs(self) -> Sequence[Run]:
        """Return all runs, oldest first, including hidden ones."""
        return self._all

    def of_flow(self, flow_id: int) -> Sequence[Run]:
        """Return all runs of one flow, oldest first, including hidden ones."""
        return self._by_flow[flow_id]

    def newest(self, flow_id: int) -> Run | None:
        """Return the newest run of a flow, hidden or not."""
        runs = self._by_flow[flow_id]
        return runs[-1] if runs else None

    def find(self, audit_id: int) -> Run | None:
        """Return a run, hidden or not."""
        return self._by_audit_id.get(audit_id)

    def unfinished(self, flow_id: int) -> list[Run]:
        """Return the runs of a flow that have not ended, oldest first."""
        now = self._clock()
        going = [run for run in self._unfinished[flow_id] if run.ended(now) is None]
        self._unfinished[flow_id] = going
        return going

    def readable(self, flow_id: int, audit_id: int) -> Run | None:
        """Return the run of a flow, if its record is readable."""
        run = self._by_audit_id.get(audit_id)
        return run if run is not None and run.flow.id == flow_id and self._is_visible(run) else None

    def by_message(self, flow_id: int, message_id: str) -> Run | None:
        """Return the run of a flow that a message started, if its record is readable."""
        run = self._by_message.get(message_id)
        return run if run is not None and run.flow.id == flow_id and self._is_visible(run) else None

    def newest_first(self, flow_id: int) -> Iterator[Run]:
        """Iterate over the readable runs of a flow, newest first."""
        return (run for run in reversed(self._by_flow[flow_id]) if self._is_visible(run))

    def between(self, begin: float, end: float) -> list[Run]:
        """Return the readable runs accepted in that time, oldest first; ``end`` is excluded."""
        first = bisect_left(self._all, begin, key=lambda run: run.accepted)
        last = bisect_left(self._all, end, key=lambda run: run.accepted)
        return [run for run in self._all[first:last] if self._is_visible(run)]

    def forget(self, run: Run) -> None:
        """Hide the run's record permanently."""
        self._forgotten.add(run.audit_id)

    def _is_visible(self, run: Run) -> bool:
        return run.audit_id not in self._forgotten and run.visible(self._clock())


def _timestamp(at: float) -> str:
    return datetime.fromtimestamp(at, timezone.utc).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]
