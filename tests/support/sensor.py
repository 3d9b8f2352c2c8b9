"""The sensor, taken through its modes as Airflow would, without an Airflow."""

from __future__ import annotations

import asyncio
import json
import logging
from dataclasses import dataclass, field
from importlib import import_module
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from airflow.exceptions import AirflowException, AirflowRescheduleException, TaskDeferred

from airflow_provider_etlworks.client.errors import EtlworksError
from airflow_provider_etlworks.compat import (
    AirflowFailException,
    AirflowSensorTimeout,
    AirflowSkipException,
    AirflowTaskTimeout,
    BaseSensorOperator,
)
from airflow_provider_etlworks.sensors.flow import EtlworksFlowExecutionSensor
from airflow_provider_etlworks.triggers import sensor as trigger_module
from support.clock import moment
from support.task import FLOW, RECORD_PATH, TaskInstance, only_event, stored_and_loaded

if TYPE_CHECKING:
    from datetime import datetime

    import pytest

    from support.etlworks import Etlworks
    from support.state import StateStore

MODES = ("poke", "reschedule", "deferrable")
POKE_INTERVAL = 5.0


class SensorTaskInstance(TaskInstance):
    """A task instance that was rescheduled, as Airflow gives it to a sensor."""

    def get_first_reschedule_date(self, _: Any) -> datetime | None:
        return self.first_start


@dataclass
class Wait:
    """
    The result of a sensor's task.

    :ivar colour: ``success``, ``failed``, ``failed for good`` (no retry), ``timed out`` or ``skipped``.
    """

    colour: str
    result: Any = None
    error: BaseException | None = None
    event: dict[str, Any] | None = None
    deferred: TaskDeferred | None = None
    xcoms: dict[str, Any] = field(default_factory=dict)
    reads: int = 0

    @property
    def report(self) -> str:
        """What the log of the failed task says last."""
        return str(getattr(self.error, "report", self.error))


class Waiting:
    """Runs sensors against an Etlworks, on a clock that both share."""

    def __init__(self, etlworks: Etlworks, monkeypatch: pytest.MonkeyPatch) -> None:
        self.etlworks = etlworks
        self.store: StateStore | None = None
        self.dag_run_started_at = etlworks.clock.time()
        self.context_extras: dict[str, Any] = {}
        for each in (EtlworksFlowExecutionSensor, trigger_module.EtlworksFlowSensorTrigger):
            monkeypatch.setattr(each, "log", logging.getLogger(f"seen.{each.__name__}"))
        base = import_module(BaseSensorOperator.__module__)
        monkeypatch.setattr(base, "time", etlworks.clock)
        clock_of_airflow = SimpleNamespace(utcnow=lambda: moment(etlworks.clock.time()))
        monkeypatch.setattr(base, "timezone", clock_of_airflow)
        if hasattr(base, "_orig_start_date"):  # Airflow 2 reads its database, and these tests have none
            monkeypatch.setattr(base, "_orig_start_date", lambda **_: self._first_start)
        self._first_start: datetime | None = None

    def run(self, mode: str, **arguments: Any) -> Wait:
        """Run one try of a task, with its reschedules or through the triggerer."""
        chosen = {"flow_id": FLOW, "poke_interval": POKE_INTERVAL, **arguments}
        chosen |= {"deferrable": True} if mode == "deferrable" else {"deferrable": False, "mode": mode}
        wait = Wait("success")
        reads = self.reads
        self._first_start = None
        began = moment(self.etlworks.clock.time())
        try:
            wait.result = self._result(chosen, wait, began)
        except AirflowSkipException as error:
            wait.colour, wait.error = "skipped", error
        except AirflowFailException as error:
            wait.colour, wait.error = "failed for good", error
        except (AirflowSensorTimeout, AirflowTaskTimeout) as error:
            wait.colour, wait.error = "timed out", error
        except (EtlworksError, AirflowException) as error:
            wait.colour, wait.error = "failed", error
        json.dumps([wait.result, wait.event])
        wait.reads = self.reads - reads
        return wait

    def _result(self, arguments: dict[str, Any], wait: Wait, began: datetime) -> Any:
        while True:
            # A new sensor each time, as Airflow starts a new process each time.
            sensor = EtlworksFlowExecutionSensor(task_id="wait", **arguments)
            context = self.context(wait, began)
            try:
                return sensor.execute(context)
            except AirflowRescheduleException:
                self._first_start = self._first_start or began
                self.etlworks.clock.sleep(arguments["poke_interval"])
            except TaskDeferred as deferred:
                wait.deferred = deferred
                wait.event = asyncio.run(only_event(stored_and_loaded(deferred.trigger)))
                resumed = EtlworksFlowExecutionSensor(task_id="wait", **arguments)
                return resumed.resume_execution(deferred.method_name, {"event": wait.event}, self.context(wait, began))

    def context(self, wait: Wait, began: datetime) -> dict[str, Any]:
        return {
            "ti": SensorTaskInstance(
                start_date=began,
                first_start=self._first_start,
                xcoms=wait.xcoms,
                dag_id="dag",
                task_id="wait",
                run_id="run",
                map_index=-1,
                try_number=1,
                max_tries=0,
            ),
            "dag_run": SimpleNamespace(start_date=moment(self.dag_run_started_at)),
            **({} if self.store is None else {"task_state_store": self.store}),
            **self.context_extras,
        }

    @property
    def reads(self) -> int:
        """How many times a run's record was read."""
        return self.etlworks.asked("GET", RECORD_PATH)
