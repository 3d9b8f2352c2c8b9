"""A start that is run by hand, without a network: Etlworks answers its calls from a script."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from airflow_provider_etlworks.client.call import Call, Page
from airflow_provider_etlworks.client.errors import EtlworksError, EtlworksNotFound
from airflow_provider_etlworks.client.models import Execution, FlowStart
from airflow_provider_etlworks.runs.start import RunStarter
from support.clock import FastClock
from support.etlworks import carry_out

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

LOG = logging.getLogger("start")
FLOW = 7
GONE = EtlworksNotFound("There is none.", status=404)


def run(audit_id: int, **fields: Any) -> Execution:
    """Return the record of a run."""
    return Execution(flow_id=FLOW, audit_id=audit_id, **{"status": "running", **fields})


def response(code: int | None, audit_id: int | None = None, **fields: Any) -> FlowStart:
    """Return the response to a start."""
    return FlowStart.from_json({"status": code, "auditId": audit_id, **fields})


class ScriptedStarts:
    """
    Answers the calls of a start from a script.

    :param starts: the responses to the starts, one after the other.
    :param newest: the response to each poll of the newest run.
    :param history: the response to each poll of the history.
    :ivar logs: the logs of runs, by audit id; a run without one answers 404.
    :ivar saved: the watermarks that were saved as intents, ``None`` for a cleared one.
    :ivar order: what happened, in order.
    """

    def __init__(self, starts: Iterable[Any] = (), newest: Any = None, history: Any = ()) -> None:
        self.clock = FastClock()
        self.saved: list[int | None] = []
        self.order: list[str] = []
        self.sent: list[dict[str, str]] = []
        self.after_the_start: Callable[[], None] = lambda: None
        self.newest, self.history = newest, history
        self.logs: dict[int, str] = {}
        self._starts = iter(starts)

    @property
    def starts_sent(self) -> int:
        return self.order.count("POST run")

    def answer(self, call: Call[Any]) -> Any:
        self.order.append(str(call).replace("/v1/flows/7/", "").replace("/v1/executions/7", "executions"))
        if call.method == "POST":
            self.after_the_start()
            return next(self._starts)
        if call.path.endswith("/history"):
            return self.history if isinstance(self.history, EtlworksError) else Page(list(self.history), None)
        audit_id = int(dict(call.query).get("auditId", 0))
        if call.path.endswith("/download"):
            return self.logs.get(audit_id, GONE)
        if audit_id:
            listed = [] if isinstance(self.history, EtlworksError) else [*self.history, self.newest]
            return next((each for each in listed if each is not None and each.audit_id == audit_id), GONE)
        return self.newest

    def save_intent(self, watermark: int | None) -> None:
        self.saved.append(watermark)
        self.order.append("save")

    def starter(self, **options: Any) -> RunStarter:
        """Return a starter that nobody else shares its flow with, unless ``options`` say otherwise."""
        return RunStarter(FLOW, self.clock, LOG, save_intent=self.save_intent, **{"is_only_starter": True, **options})

    def start(self, **options: Any) -> Any:
        return self.carry_out(self.starter(**options).start())

    def reconcile(self, watermark: int, **options: Any) -> Any:
        """Reconcile a start in doubt, with the starter's own key."""
        starter = self.starter(**options)
        return self.carry_out(starter.reconcile(watermark, starter.key))

    def carry_out(self, procedure: Any) -> Any:
        return carry_out(procedure, self.clock, self.answer)


def ended(execution: Execution) -> Execution:
    """Return the record of the same run after its end."""
    return replace(execution, status="success")
