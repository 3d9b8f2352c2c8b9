"""What triggers share in a triggerer, over HTTP, in virtual time: stops, sensors, and what the connection says."""

from __future__ import annotations

import asyncio
import logging
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web
from support.clock import NOON, LoopClock
from support.etlworks import BusyEtlworks
from support.watcher import Hanging, asked_per_path, refuse_lists, virtual

from airflow_provider_etlworks.client.aio import AsyncEtlworksClient
from airflow_provider_etlworks.hooks.etlworks import EtlworksHook
from airflow_provider_etlworks.runs.follow import Ending, FollowResult
from airflow_provider_etlworks.runs.types import PollPolicy, RunRef
from airflow_provider_etlworks.triggerer import follow_run, shared_watcher, wait_for_run

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from support.etlworks import ServedRun

    from airflow_provider_etlworks.client.settings import ClientSettings

OTHER_HOST = "https://other.example.com"
TASK_LOG = logging.getLogger("task")


class Connection:
    """
    The one Airflow connection, as the hook reads it.

    :ivar settings: what it says.
    :ivar faults: raised by the next readings, one each.
    :ivar readings: how many times it was read.
    :ivar takes: seconds that a reading takes.
    """

    def __init__(self, settings: ClientSettings) -> None:
        self.settings = settings
        self.faults: list[Exception] = []
        self.readings = 0
        self.takes = 0.1

    async def read(self) -> ClientSettings:
        self.readings += 1
        await asyncio.sleep(self.takes)
        if self.faults:
            raise self.faults.pop()
        return self.settings


@pytest.fixture
def in_triggerer(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a context manager: the triggers of a triggerer use an Etlworks."""

    @asynccontextmanager
    async def make(etlworks: BusyEtlworks, **settings: Any) -> AsyncIterator[Connection]:
        connection = Connection(etlworks.settings(**settings))
        clock = LoopClock()
        monkeypatch.setattr(shared_watcher, "AsyncEtlworksClient", partial(AsyncEtlworksClient, clock=clock))
        monkeypatch.setattr(shared_watcher, "time", clock)

        async def read_settings(_: EtlworksHook) -> ClientSettings:
            return await connection.read()

        monkeypatch.setattr(EtlworksHook, "read_settings", read_settings)
        yield connection
        await asyncio.sleep(700)
        # Nothing is left behind.
        assert shared_watcher._BY_LOOP.get(asyncio.get_running_loop(), {}) == {}
        assert follow_run._Stopping._in_background == set()

    return make


async def kill(run: ServedRun, root_url: str | None = None) -> float:
    """Do what Airflow does to the trigger of a killed task, and return when it is done."""
    stopping = follow_run.stop_run(
        RunRef(run.flow_id, run.audit_id), conn_id="etlworks_default", root_url=root_url, log=TASK_LOG
    )
    await asyncio.wait_for(stopping, 30)
    return asyncio.get_running_loop().time()


async def follow(run: ServedRun, *, root_url: str | None = None, **policy: Any) -> FollowResult:
    event = await follow_run.follow_run(
        RunRef(run.flow_id, run.audit_id),
        PollPolicy(**policy),
        conn_id="etlworks_default",
        root_url=root_url,
        cancel_on_kill=True,
        log=TASK_LOG,
    )
    return event.followed


async def wait(run: ServedRun, *, by: str = "audit_id", root_url: str | None = None, **policy: Any) -> FollowResult:
    event = await wait_for_run.wait_for_run(
        run.flow_id,
        audit_id=run.audit_id if by == "audit_id" else None,
        message_uuid=None,
        since="2020-01-01T00:00:00+00:00" if by == "since" else None,
        policy=PollPolicy(**policy),
        repetition_grace=10.0,
        pause=0.0,
        conn_id="etlworks_default",
        root_url=root_url,
        log=TASK_LOG,
    )
    return event.followed


async def end(tasks: list[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


# --- Stops ----------------------------------------------------------------------------------------------------------


@virtual
async def test_every_stop_is_sent_if_many_tasks_are_killed_at_once(
    in_triggerer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with BusyEtlworks(answer=refuse_lists) as etlworks, in_triggerer(etlworks):
        runs = [etlworks.run(audit_id) for audit_id in range(1, 401)]
        others = [asyncio.ensure_future(follow(etlworks.run(audit_id))) for audit_id in range(1001, 1101)]
        await asyncio.sleep(60)
        killed_at = asyncio.get_running_loop().time()
        done_at = await asyncio.gather(*map(kill, runs))
        assert max(done_at) < killed_at + 30
        await asyncio.sleep(150)
        await end(others)

        assert sorted(audit_id for _, audit_id in etlworks.stopped) == list(range(1, 401))
        # A minute's requests were spent before, so the first stops wait for the reserve.
        assert etlworks.stopped[-1][0] - killed_at <= 150
        assert etlworks.most_in_a_minute() <= 300
    lines = [record.getMessage() for record in caplog.records if record.name == "task"]
    waiting = [line for line in lines if "is not sent yet" in line]
    assert len(waiting) + len([line for line in lines if "accepted the stop" in line]) == 400
    later = [record for record in caplog.records if record.name == follow_run.log.name]
    assert len([each for each in later if "accepted the stop" in each.getMessage()]) == len(waiting) > 100
    assert "No answer" not in caplog.text


@virtual
async def test_stop_is_sent_during_retry_after(in_triggerer: Any) -> None:
    async with BusyEtlworks() as etlworks, in_triggerer(etlworks):
        others = [asyncio.ensure_future(follow(etlworks.run(audit_id))) for audit_id in range(1, 6)]
        await asyncio.sleep(30)
        etlworks.answer = lambda request: (
            web.Response(status=429, headers={"Retry-After": "60"}) if request.method == "GET" else None
        )
        await asyncio.sleep(15)
        killed_at = asyncio.get_running_loop().time()
        await kill(etlworks.run(7))
        await end(others)

        ((stopped_at, audit_id),) = etlworks.stopped
        assert audit_id == 7
        assert stopped_at < killed_at + 2


@virtual
async def test_stop_that_is_refused_for_now_is_repeated(in_triggerer: Any, caplog: pytest.LogCaptureFixture) -> None:
    async with BusyEtlworks() as etlworks, in_triggerer(etlworks):
        etlworks.answer = lambda _: web.Response(status=429, headers={"Retry-After": "60"})
        await kill(etlworks.run(7))
        assert "has not accepted it yet" in caplog.text
        etlworks.answer = None
        await asyncio.sleep(300)

        assert [audit_id for _, audit_id in etlworks.stopped] == [7]


@virtual
async def test_stop_on_another_host_is_not_sent(in_triggerer: Any, caplog: pytest.LogCaptureFixture) -> None:
    async with BusyEtlworks() as etlworks, in_triggerer(etlworks) as connection:
        await kill(etlworks.run(7), root_url=OTHER_HOST)

        assert etlworks.asked == []
        assert "was NOT stopped" in caplog.text
        assert OTHER_HOST in caplog.text
        assert connection.settings.root_url in caplog.text


@virtual
async def test_deadline_without_an_answer_still_gives_an_event_in_time(in_triggerer: Any) -> None:
    async with BusyEtlworks() as etlworks, in_triggerer(etlworks):
        etlworks.answer = lambda _: Hanging()
        results = await asyncio.gather(*(follow(etlworks.run(each), deadline=NOON + 100) for each in range(1, 31)))

        assert {result.ending for result in results} == {Ending.DEADLINE}
        assert all("it may go on" in result.detail for result in results)
        assert asyncio.get_running_loop().time() <= 100 + 120 - 5
        etlworks.answer = None


# --- Sensors --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["audit_id", "since"])
@virtual
async def test_sensor_learns_of_an_end_before_its_deadline_among_many(in_triggerer: Any, by: str) -> None:
    async with (
        BusyEtlworks(answer=refuse_lists) as etlworks,
        in_triggerer(etlworks, requests_per_minute=100),
    ):
        others = [
            asyncio.ensure_future(wait(etlworks.run(audit_id), by=by, poll_interval=60)) for audit_id in range(1, 300)
        ]
        hurried = etlworks.run(1000, ends=980)
        result = await wait(hurried, by=by, poll_interval=60, deadline=NOON + 1000)
        await end(others)

        assert result.ending is Ending.FINISHED
        assert asyncio.get_running_loop().time() < 1000 + 90
        assert etlworks.most_in_a_minute() <= 100


@virtual
async def test_sensors_of_a_flow_share_searches_and_polls(in_triggerer: Any) -> None:
    async with BusyEtlworks(answer=refuse_lists) as etlworks, in_triggerer(etlworks) as connection:
        run = etlworks.run(7, ends=600)
        waits = [asyncio.ensure_future(wait(run, by="since", poll_interval=10)) for _ in range(100)]
        results = await asyncio.gather(*waits)

        assert {result.ending for result in results} == {Ending.FINISHED}
        assert connection.readings == 1
        assert sum(asked_per_path(etlworks).values()) < 80


@virtual
async def test_cancelled_sensors_delay_nobody(in_triggerer: Any) -> None:
    async with BusyEtlworks() as etlworks, in_triggerer(etlworks):
        waits = [
            asyncio.ensure_future(wait(etlworks.run(each), by="since", poll_interval=60)) for each in range(1, 1001)
        ]
        await asyncio.sleep(90)
        await end(waits)
        left_at = asyncio.get_running_loop().time()
        await kill(etlworks.run(5000))
        result = await follow(etlworks.run(5001, ends=0))

        assert result.ending is Ending.FINISHED
        assert etlworks.stopped[0][0] < left_at + 1
        assert asyncio.get_running_loop().time() < left_at + 2


# --- What the connection says ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("trigger", [follow, wait])
@virtual
async def test_run_of_another_host_is_not_followed(in_triggerer: Any, trigger: Any) -> None:
    async with BusyEtlworks() as etlworks, in_triggerer(etlworks) as connection:
        result = await trigger(etlworks.run(7, ends=0), root_url=OTHER_HOST)

        assert result.ending is Ending.DENIED
        assert OTHER_HOST in result.detail
        assert connection.settings.root_url in result.detail
        assert etlworks.asked == []


@virtual
async def test_changed_connection_counts_for_later_triggers_only(in_triggerer: Any) -> None:
    async with BusyEtlworks() as before, BusyEtlworks() as after, in_triggerer(before) as connection:
        earlier = asyncio.ensure_future(follow(before.run(7, ends=300), root_url=before.settings().root_url))
        await asyncio.sleep(30)
        connection.settings = after.settings()
        later = await follow(after.run(7, ends=100, status="error"), root_url=after.settings().root_url)
        result = await earlier

        assert result.execution is not None
        assert later.execution is not None
        assert (result.execution.status, later.execution.status) == ("success", "error")


@virtual
async def test_reading_of_a_connection_is_repeated_once_for_all(in_triggerer: Any) -> None:
    async with BusyEtlworks() as etlworks, in_triggerer(etlworks) as connection:
        connection.faults = [RuntimeError("The API server answers 503.") for _ in range(3)]
        results = await asyncio.gather(*(follow(etlworks.run(each, ends=0)) for each in range(1, 201)))

        assert {result.ending for result in results} == {Ending.FINISHED}
        assert connection.readings == 4


@virtual
async def test_unreadable_connection_is_one_failure_for_all(in_triggerer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_watcher, "_READ_WITHIN", 0.0)
    async with BusyEtlworks() as etlworks, in_triggerer(etlworks) as connection:
        connection.faults = [RuntimeError("The API server answers 503.")]
        results = await asyncio.gather(*(follow(etlworks.run(each, ends=0)) for each in range(1, 201)))

        assert {result.ending for result in results} == {Ending.LOST_TOUCH}
        assert "503" in results[0].detail
        assert connection.readings == 1


@virtual
async def test_deadline_is_kept_while_the_connection_is_read(in_triggerer: Any) -> None:
    async with BusyEtlworks() as etlworks, in_triggerer(etlworks) as connection:
        connection.takes = 500.0
        result = await follow(etlworks.run(1), deadline=NOON + 10)

        assert result.ending is Ending.DEADLINE
        assert asyncio.get_running_loop().time() <= 10 + 120 - 5


@virtual
async def test_connections_that_say_the_same_share_a_watcher(in_triggerer: Any) -> None:
    async with (
        BusyEtlworks() as etlworks,
        in_triggerer(etlworks),
        shared_watcher.shared_watcher("etlworks_default") as first,
        shared_watcher.shared_watcher("etlworks_eu") as second,
    ):
        assert first is second
