"""An Etlworks without a network: the histories of some flows, single records, and the list of today."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from airflow_provider_etlworks.client.call import Page
from airflow_provider_etlworks.client.errors import EtlworksBadRequest, EtlworksNotFound
from airflow_provider_etlworks.client.models import Execution
from airflow_provider_etlworks.runs.listings import _ListedFlow, _ListedRun
from support.clock import FastClock
from support.etlworks import carry_out

if TYPE_CHECKING:
    from airflow_provider_etlworks.client.call import Call
    from airflow_provider_etlworks.runs.completions import CompletionTracker

FLOW = 7
MOMENT = datetime(2026, 5, 9, tzinfo=timezone.utc)
LOG = logging.getLogger("completions")


@dataclass
class FlowHistories:
    """
    The runs of some flows, and the requests that came.

    The list of a day takes no dates, as that of an older server, and begins with a run of a flow that nobody watches.

    :ivar day: what today's list reports: by flow and audit id, whether the run is going. Default: the truth.
    """

    runs: dict[int, Execution] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    day: dict[tuple[int, int], bool] | Exception | None = None
    broken: Exception | None = None

    def start(self, audit_id: int, flow_id: int = FLOW) -> None:
        self.runs[audit_id] = Execution(flow_id, audit_id, status="running", started_at=MOMENT)

    def end(self, audit_id: int, status: str = "success") -> None:
        self.runs[audit_id] = replace(self.runs[audit_id], status=status, ended_at=MOMENT)

    def run(self, *audit_ids: int, flow_id: int = FLOW) -> None:
        for audit_id in audit_ids:
            self.start(audit_id, flow_id)
            self.end(audit_id)

    def answer(self, call: Call[Any]) -> Any:
        flow_id = int(call.path.split("/")[3]) if "metrics" not in call.path else 0
        query = dict(call.query)
        if self.broken is not None:
            return self.broken
        if call.path.endswith("/history"):
            self.asked.append(f"history {flow_id} from {query['offset']}")
            newest_first = sorted((run for run in self.runs.values() if run.flow_id == flow_id), key=_newest_first)
            begin = int(query["offset"])
            return Page(newest_first[begin : begin + int(query["limit"])], None)
        if not flow_id:
            return self.list_of_day(query)
        audit_id = int(query["auditId"])
        self.asked.append(f"run {audit_id}")
        return self.runs.get(audit_id) or EtlworksNotFound("No such run", status=404)

    def list_of_day(self, query: dict[str, str]) -> Any:
        if "date" in query and not isinstance(self.day, Exception):
            return EtlworksBadRequest("Unknown parameter: date", status=400)
        self.asked.append("yesterday" if query.get("offset") == "1" else "day")
        if isinstance(self.day, Exception):
            return self.day
        if query["offset"] != "0":
            return []
        return _listed({(999, 999_999): False, **self.honest()} if self.day is None else self.day)

    def honest(self) -> dict[tuple[int, int], bool]:
        return {(run.flow_id, run.audit_id): not run.is_terminal for run in self.runs.values()}

    def poll(self, tracker: CompletionTracker) -> list[int]:
        """Let a tracker poll, and return the runs whose ends it reports."""
        completions = carry_out(tracker.poll(), FastClock(), self.answer)
        return [each.execution.audit_id for each in completions]


def _newest_first(run: Execution) -> int:
    return -run.audit_id


def _listed(runs: dict[tuple[int, int], bool]) -> list[_ListedFlow]:
    return [
        _ListedFlow(
            flow_id, [_ListedRun(audit_id, status="running" if going else "success", ended=None if going else 1)]
        )
        for (flow_id, audit_id), going in runs.items()
    ]
