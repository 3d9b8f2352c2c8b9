"""
What a triggerer does when much happens at once: a shared deadline, a mass kill, cancelled sensors, a small budget.

Each scenario drives the public triggers in real time, in one event loop, against a sandbox in a process of its own.
They run beside each other, on connections of their own. Run: ``uv run benchmarks/busy_moments.py``; three minutes.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from etlworks import EtlworksProcess

if TYPE_CHECKING:
    from collections.abc import Iterable

REQUESTS_PER_MINUTE = 300
WARM_UP = 20.0


@dataclass(frozen=True)
class Row:
    """A line of the table: a figure, and what it must be: at least ``least`` and at most ``most``."""

    what: str
    value: float
    least: float = -math.inf
    most: float = math.inf

    @property
    def kept(self) -> bool:
        return self.least <= self.value <= self.most

    def __str__(self) -> str:
        bounds = f"{self.least:g}" if self.most == math.inf else f"at most {self.most:g}"
        return f"| {self.what} | {self.value:.3g} | {bounds} | {'' if self.kept else '**not kept**'} |"


class Scenario:
    """An Etlworks, and the connection to it. A context manager."""

    def __init__(self, name: str, seconds: list[float], requests_per_minute: int = REQUESTS_PER_MINUTE) -> None:
        self.conn_id = name
        self._requests_per_minute = requests_per_minute
        self._etlworks = EtlworksProcess(seconds, administrator=False)

    def __enter__(self) -> Scenario:
        self._etlworks.__enter__()
        connection = json.loads(self._etlworks.connections["key"])
        connection["extra"]["requests_per_minute"] = self._requests_per_minute
        os.environ[f"AIRFLOW_CONN_{self.conn_id.upper()}"] = json.dumps(connection)
        return self

    def __exit__(self, *_: object) -> None:
        self._etlworks.__exit__(None, None, None)

    def start_runs(self) -> list[tuple[int, int]]:
        return self._etlworks.start_runs()

    async def most_in_a_minute(self) -> int:
        traffic = await asyncio.to_thread(self._etlworks.traffic, 0.0, time.monotonic())
        return int(traffic.most_in_a_minute)

    async def stops(self, since: float) -> int:
        """Return how many requests came that are neither polls nor lists."""
        traffic = await asyncio.to_thread(self._etlworks.traffic, since, time.monotonic())
        return int(traffic.kinds["other"])


async def event_of(trigger: Any) -> Any:
    async for event in trigger.run():
        return event.payload
    return None


async def leave(tasks: Iterable[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def shared_deadline(etlworks: Scenario) -> list[Row]:
    """Let 200 tasks share a deadline, 3 s after their runs have ended."""
    from airflow_provider_etlworks.triggers.flow import EtlworksFlowExecutionTrigger

    deadline = time.time() + 63
    runs = etlworks.start_runs()
    triggers = [EtlworksFlowExecutionTrigger(*run, etlworks.conn_id, 30.0, deadline) for run in runs]
    events = await asyncio.gather(*map(event_of, triggers))
    finished = sum(event["ending"] == "finished" for event in events)
    most = await etlworks.most_in_a_minute()
    return [
        Row("200 tasks share a deadline: reported as finished", finished, least=200),
        Row("… the last one, seconds after the deadline", time.time() - deadline, most=90),
        Row("… most requests in any minute", most, most=REQUESTS_PER_MINUTE),
    ]


async def mass_kill(etlworks: Scenario) -> list[Row]:
    """Kill 400 deferred tasks at once, as Airflow 3.3 does."""
    from airflow_provider_etlworks.triggers.flow import EtlworksFlowExecutionTrigger

    triggers = [EtlworksFlowExecutionTrigger(*run, etlworks.conn_id) for run in etlworks.start_runs()]
    tasks = [asyncio.ensure_future(event_of(trigger)) for trigger in triggers]
    await asyncio.sleep(WARM_UP)
    killed_at = time.monotonic()
    await leave(tasks)
    await asyncio.gather(*(trigger.on_kill() for trigger in triggers))
    answered_after = time.monotonic() - killed_at
    stops = 0
    while stops < len(triggers) and time.monotonic() < killed_at + 150:
        await asyncio.sleep(2)
        stops = await etlworks.stops(killed_at)
    return [
        Row("400 tasks are killed at once: stops sent", stops, least=400),
        Row("… the last one, seconds after the kill", time.monotonic() - killed_at, most=150),
        Row("… on_kill has returned, seconds after the kill", answered_after, most=30),
        Row("… most requests in any minute", await etlworks.most_in_a_minute(), most=REQUESTS_PER_MINUTE),
    ]


async def cancelled_sensors(etlworks: Scenario) -> list[Row]:
    """Cancel 1,000 sensors that wait, and kill a task then."""
    from airflow_provider_etlworks.triggers.flow import EtlworksFlowExecutionTrigger
    from airflow_provider_etlworks.triggers.sensor import EtlworksFlowSensorTrigger

    runs = etlworks.start_runs()
    sensors = [
        EtlworksFlowSensorTrigger(flow_id, since="2020-01-01T00:00:00+00:00", etlworks_conn_id=etlworks.conn_id)
        for flow_id, _ in runs
    ]
    tasks = [asyncio.ensure_future(event_of(sensor)) for sensor in sensors]
    await asyncio.sleep(90)
    await leave(tasks)
    left_at = time.monotonic()
    await EtlworksFlowExecutionTrigger(*runs[0], etlworks.conn_id).on_kill()
    return [Row("1,000 sensors are cancelled: the next stop, in seconds", time.monotonic() - left_at, most=1)]


async def sensors_near_a_deadline(etlworks: Scenario) -> list[Row]:
    """Let 300 sensors wait on a budget of 100 requests a minute; one run ends 20 s before its sensor's deadline."""
    from airflow_provider_etlworks.triggers.sensor import EtlworksFlowSensorTrigger

    runs = etlworks.start_runs()
    deadline = time.time() + 120
    others = [
        asyncio.ensure_future(event_of(EtlworksFlowSensorTrigger(*run, etlworks_conn_id=etlworks.conn_id)))
        for run in runs[1:]
    ]
    hurried = EtlworksFlowSensorTrigger(*runs[0], etlworks_conn_id=etlworks.conn_id, deadline=deadline)
    event = await event_of(hurried)
    await leave(others)
    return [Row("300 sensors, 100 requests a minute: the hurried one is finished", event["ending"] == "finished", 1)]


async def measured(scenarios: list[tuple[Any, Scenario]]) -> list[Row]:
    rows = await asyncio.gather(*(measure(etlworks) for measure, etlworks in scenarios))
    return [row for each in rows for row in each]


def main() -> int:
    with tempfile.TemporaryDirectory() as home, ExitStack() as stack:
        os.environ |= {"AIRFLOW_HOME": home, "AIRFLOW__LOGGING__LOGGING_LEVEL": "CRITICAL"}
        going = math.inf
        scenarios = [
            (shared_deadline, Scenario("deadline", [60.0] * 200)),
            (mass_kill, Scenario("kill", [going] * 400)),
            (cancelled_sensors, Scenario("cancelled", [going] * 1_000)),
            (sensors_near_a_deadline, Scenario("near", [100.0] + [going] * 299, requests_per_minute=100)),
        ]
        for _, etlworks in scenarios:
            stack.enter_context(etlworks)
        rows = asyncio.run(measured(scenarios))
    print("| what | value | promised | |\n|---|---|---|---|")
    print(*rows, sep="\n")
    return 0 if all(row.kept for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
