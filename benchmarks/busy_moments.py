"""
What a triggerer does when much happens at once: a shared deadline, a mass kill, cancelled sensors, a small budget, an
event loop that is held, a server that hangs and then refuses.

Each scenario drives the public triggers in real time, against a sandbox in a process of its own, on a connection of its
own. They run beside each other; those that hold the event loop or keep it busy have a process of their own.
Run: ``uv run benchmarks/busy_moments.py``; about three minutes.
"""

from __future__ import annotations

import asyncio
import json
import math
import multiprocessing
import os
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from etlworks import OTHER, EtlworksProcess

from airflow_provider_etlworks.sandbox import delay, status

if TYPE_CHECKING:
    from collections.abc import Iterable

    from etlworks import Received

    from airflow_provider_etlworks.sandbox import Fault

REQUESTS_PER_MINUTE = 300
WARM_UP = 20.0
GOING = math.inf
HELD = 30.0
HANGS = 25.0
RETRY_AFTER = 30


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
        return sum(each.kind == OTHER for each in await self.received(since))

    async def received(self, since: float) -> list[Received]:
        return await asyncio.to_thread(self._etlworks.received, since)

    async def fault(self, fault: Fault, times: int) -> None:
        await asyncio.to_thread(self._etlworks.fault, fault, times)


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


async def held_loop(etlworks: Scenario) -> list[Row]:
    """Hold the event loop for half a minute, while far more is due than the limit allows."""
    from airflow_provider_etlworks.triggers.flow import EtlworksFlowExecutionTrigger

    triggers = [EtlworksFlowExecutionTrigger(*run, etlworks.conn_id, 2.0) for run in etlworks.start_runs()]
    tasks = [asyncio.ensure_future(event_of(trigger)) for trigger in triggers]
    await asyncio.sleep(WARM_UP + 20)
    time.sleep(HELD)  # noqa: ASYNC251  # this is what is measured
    await asyncio.sleep(70)
    await leave(tasks)
    most = await etlworks.most_in_a_minute()
    return [Row("the event loop is held for 30 s: most requests in any minute", most, most=REQUESTS_PER_MINUTE)]


async def hanging_server(etlworks: Scenario) -> list[Row]:
    """Let every connection hang, then refuse a request with a ``Retry-After``, and kill a task inside it."""
    from airflow_provider_etlworks.triggers.flow import EtlworksFlowExecutionTrigger

    triggers = [EtlworksFlowExecutionTrigger(*run, etlworks.conn_id, 2.0) for run in etlworks.start_runs()]
    tasks = [asyncio.ensure_future(event_of(trigger)) for trigger in triggers]
    await asyncio.sleep(WARM_UP + 20)
    await etlworks.fault(delay(HANGS), 10)
    await asyncio.sleep(HANGS + 20)
    since = time.monotonic()
    await etlworks.fault(status(429, headers={"Retry-After": str(RETRY_AFTER)}, body=""), 1)
    await asyncio.sleep(5)
    refused_at = next(each.at for each in await etlworks.received(since) if each.status == 429)
    # Those that were under way when the refusal came do not count.
    begins = refused_at + 1
    await leave(tasks[:1])
    await triggers[0].on_kill()
    await asyncio.sleep(max(0.0, begins + RETRY_AFTER - 1 - time.monotonic()))
    inside = [each.kind for each in await etlworks.received(begins) if each.at < refused_at + RETRY_AFTER]
    await asyncio.sleep(45)
    await leave(tasks)
    return [
        Row(
            "all connections hang for 25 s: most requests in any minute",
            await etlworks.most_in_a_minute(),
            most=REQUESTS_PER_MINUTE,
        ),
        Row("a 429 with Retry-After: 30: requests inside it, but stops", len(inside) - inside.count(OTHER), most=0),
        Row("… stops inside it, of one killed task", inside.count(OTHER), least=1, most=1),
    ]


# What shares a process, and so an event loop: a scenario, how long its runs take, and its connection's budget.
PROCESSES: list[list[tuple[Any, list[float], int]]] = [
    [
        (shared_deadline, [60.0] * 200, REQUESTS_PER_MINUTE),
        (mass_kill, [GOING] * 400, REQUESTS_PER_MINUTE),
        (cancelled_sensors, [GOING] * 1_000, REQUESTS_PER_MINUTE),
        (sensors_near_a_deadline, [100.0] + [GOING] * 299, 100),
    ],
    [(held_loop, [GOING] * 400, REQUESTS_PER_MINUTE)],
    [(hanging_server, [GOING] * 400, REQUESTS_PER_MINUTE)],
]


async def measured(scenarios: list[tuple[Any, Scenario]]) -> list[Row]:
    rows = await asyncio.gather(*(measure(etlworks) for measure, etlworks in scenarios))
    return [row for each in rows for row in each]


def run_process(number: int) -> list[Row]:
    """Run the scenarios of a process, in this one."""
    with tempfile.TemporaryDirectory() as home, ExitStack() as stack:
        os.environ |= {"AIRFLOW_HOME": home, "AIRFLOW__LOGGING__LOGGING_LEVEL": "CRITICAL"}
        scenarios = [
            (measure, stack.enter_context(Scenario(measure.__name__, seconds, requests_per_minute)))
            for measure, seconds, requests_per_minute in PROCESSES[number]
        ]
        return asyncio.run(measured(scenarios))


def main() -> int:
    with ProcessPoolExecutor(len(PROCESSES), multiprocessing.get_context("spawn")) as processes:
        rows = [row for each in processes.map(run_process, range(len(PROCESSES))) for row in each]
    print("| what | value | promised | |\n|---|---|---|---|")
    print(*rows, sep="\n")
    return 0 if all(row.kept for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
