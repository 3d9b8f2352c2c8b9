"""The watcher, over HTTP, with hours of virtual time: how often it polls, how late it reports, what lists change."""

from __future__ import annotations

import asyncio
import contextvars
import logging
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web
from support.clock import MIDNIGHT, NOON
from support.etlworks import BusyEtlworks
from support.watcher import Following, Hanging, asked_per_path, longest_waits, refuse_lists, virtual

from airflow_provider_etlworks.runs.follow import Ending
from airflow_provider_etlworks.runs.poll_queue import LAST_POLL_WITHIN

if TYPE_CHECKING:
    from collections.abc import Callable

WATCHER_LOG = "airflow_provider_etlworks.runs"


# --- One run --------------------------------------------------------------------------------------------------------


@virtual
async def test_single_run_is_reported_in_time() -> None:
    async with BusyEtlworks() as etlworks, Following(etlworks) as following:
        run = etlworks.run(1, ends=3333)
        await following.follow(run, poll_interval=10)

        assert following.done[0].result.ending is Ending.FINISHED
        polls = etlworks.polls(1)
        assert asked_per_path(etlworks).keys() == {f"/rest/v1/executions/{run.flow_id}"}
        for before, after in pairwise(polls):
            assert after - before <= max(10, 0.05 * after)
            assert after - before <= 60
        assert len(polls) < 150


@virtual
async def test_subscribers_of_a_run_share_its_polls() -> None:
    async with BusyEtlworks() as etlworks, Following(etlworks) as following:
        run = etlworks.run(1, ends=60)
        following.follow(run, poll_interval=10)
        await asyncio.sleep(5)
        following.follow(run, poll_interval=10)
        await following.all_done()

        assert [each.result.ending for each in following.done] == [Ending.FINISHED] * 2
        assert len(etlworks.polls(1)) <= 10


@virtual
async def test_cancelled_subscriber_is_dropped() -> None:
    async with BusyEtlworks() as etlworks, Following(etlworks) as following:
        run, left = etlworks.run(1, ends=100), etlworks.run(2)
        first, second, third = following.follow(run), following.follow(run), following.follow(left)
        await asyncio.sleep(20)
        first.cancel()
        third.cancel()
        await second

        assert [each.result.ending for each in following.done] == [Ending.FINISHED]
        assert max(etlworks.polls(2)) < 25


@virtual
async def test_subscriber_logs_in_its_own_context() -> None:
    task_name: contextvars.ContextVar[str] = contextvars.ContextVar("task_name", default="nobody")
    logged_in: dict[str, set[str]] = {}

    class TaskLog:
        def __init__(self, name: str) -> None:
            self.name = name

        def info(self, *_: Any) -> None:
            logged_in.setdefault(self.name, set()).add(task_name.get())

        warning = info

    async with BusyEtlworks() as etlworks, Following(etlworks) as following:
        for name in ("one", "two"):
            context = contextvars.copy_context()
            context.run(task_name.set, name)
            context.run(following.follow, etlworks.run(1, ends=30), log=TaskLog(name))
        await following.all_done()

    assert logged_in == {"one": {"one"}, "two": {"two"}}


# --- Time-outs and faults -------------------------------------------------------------------------------------------


@virtual
async def test_run_is_polled_a_last_time_at_its_deadline() -> None:
    async with BusyEtlworks() as etlworks, Following(etlworks) as following:
        going, ended = etlworks.run(1), etlworks.run(2, ends=99.5)
        for run in (going, ended):
            following.follow(run, poll_interval=60, deadline=NOON + 100)
        await following.all_done()

        endings = {each.audit_id: each.result.ending for each in following.done}
        assert endings == {1: Ending.DEADLINE, 2: Ending.FINISHED}
        assert 100 <= etlworks.polls(1)[-1] < 101


@virtual
async def test_deadline_is_met_although_the_last_poll_gets_no_answer() -> None:
    async with BusyEtlworks() as etlworks, Following(etlworks) as following:

        def say_wait(request: web.Request) -> web.Response | None:
            return web.Response(status=429, headers={"Retry-After": "300"}) if len(etlworks.asked) > 3 else None

        etlworks.answer = say_wait
        await following.follow(etlworks.run(1), poll_interval=10, deadline=NOON + 100)

        assert following.done[0].result.ending is Ending.DEADLINE
        assert following.done[0].at < 130


@virtual
async def test_deadline_comes_before_a_long_queue() -> None:
    async with BusyEtlworks(answer=refuse_lists) as etlworks, Following(etlworks) as following:
        for audit_id in range(1, 401):
            following.follow(etlworks.run(audit_id), poll_interval=10)
        hurried = following.follow(etlworks.run(5000), poll_interval=10, deadline=NOON + 150)
        await hurried

        assert 150 <= following.done[0].at < 160
        assert etlworks.polls(5000)[-1] >= 150


@pytest.mark.parametrize("lists", [True, False])
@virtual
async def test_tasks_that_share_a_deadline_all_learn_of_their_ends(lists: bool) -> None:
    async with (
        BusyEtlworks(answer=None if lists else refuse_lists) as etlworks,
        Following(etlworks) as following,
    ):
        for audit_id in range(1, 201):
            following.follow(etlworks.run(audit_id, ends=597), poll_interval=60, deadline=NOON + 600)
        for audit_id in range(201, 301):
            following.follow(etlworks.run(audit_id), poll_interval=10)
        await asyncio.sleep(600 + LAST_POLL_WITHIN)

        assert [each.result.ending for each in following.done] == [Ending.FINISHED] * 200
        assert etlworks.most_in_a_minute() <= 300
        since = [each for each in etlworks.asked if each.at >= 600.1 and each.audit_id is not None]
        if not lists:
            # Whatever was in flight aside, all last polls come before any ordinary poll.
            assert [each for each in since[10:150] if each.audit_id > 200] == []


@virtual
async def test_deadlines_are_kept_while_the_server_hangs() -> None:
    async with BusyEtlworks() as etlworks, Following(etlworks) as following:
        etlworks.answer = lambda _: Hanging() if len(etlworks.asked) > 30 else None
        for audit_id in range(1, 51):
            following.follow(etlworks.run(audit_id), poll_interval=10, deadline=NOON + 100)
        await following.all_done()

        assert [each.result.ending for each in following.done] == [Ending.DEADLINE] * 50
        assert max(each.at for each in following.done) <= 100 + LAST_POLL_WITHIN + 1


@virtual
async def test_end_is_reported_if_the_server_hangs_at_the_deadline() -> None:
    async with BusyEtlworks() as etlworks, Following(etlworks) as following:
        etlworks.answer = lambda _: Hanging() if 90 < asyncio.get_running_loop().time() < 125 else None
        for audit_id in range(1, 51):
            following.follow(etlworks.run(audit_id, ends=97), poll_interval=10, deadline=NOON + 100)
        await following.all_done()

        assert [each.result.ending for each in following.done] == [Ending.FINISHED] * 50


@virtual
async def test_subscribers_who_leave_delay_nobody() -> None:
    async with BusyEtlworks(answer=refuse_lists) as etlworks, Following(etlworks) as following:
        waiting = [following.follow(etlworks.run(audit_id), poll_interval=10) for audit_id in range(1, 1001)]
        await asyncio.sleep(100)
        for task in waiting:
            task.cancel()
        left_at = asyncio.get_running_loop().time()
        await following.follow(etlworks.run(2000, ends=0), poll_interval=10)

        assert following.done[0].at < left_at + 1


@virtual
async def test_run_polled_rarely_is_not_lost_by_one_failed_poll() -> None:
    """With lists, a run's own record is read less often than the patience lasts."""
    async with BusyEtlworks() as etlworks, Following(etlworks, requests_per_minute=60) as following:
        for audit_id in range(1, 101):
            following.follow(etlworks.run(audit_id), poll_interval=10, patience=300)
        await asyncio.sleep(1200)
        begun = len(etlworks.asked)

        def fail_once(request: web.Request) -> web.Response | None:
            failing = "auditId" in request.query and len(etlworks.asked) < begun + 40
            return web.Response(status=500) if failing else None

        etlworks.answer = fail_once
        await asyncio.sleep(300)

        assert following.done == []


@virtual
async def test_refused_credentials_end_all_after_one_refusal() -> None:
    def refuse(_: web.Request) -> web.Response:
        return web.json_response({"message": "Key expired"}, status=401)

    async with BusyEtlworks() as etlworks, Following(etlworks) as following:
        for audit_id in range(1, 101):
            following.follow(etlworks.run(audit_id), poll_interval=10)
        await asyncio.sleep(100)
        etlworks.answer, before = refuse, len(etlworks.asked)
        await following.all_done()

        assert {each.result.ending for each in following.done} == {Ending.DENIED}
        assert len(etlworks.asked) - before <= 10


@virtual
async def test_bug_reaches_its_subscribers_only(monkeypatch: pytest.MonkeyPatch) -> None:
    async with BusyEtlworks() as etlworks, Following(etlworks) as following:
        send = following.client.send

        async def broken_for_one(call: Any, **options: Any) -> Any:
            if ("auditId", "1") in call.query:
                raise ZeroDivisionError
            return await send(call, **options)

        monkeypatch.setattr(following.client, "send", broken_for_one)
        harmed, other = following.follow(etlworks.run(1)), following.follow(etlworks.run(2, ends=30))
        await other

        with pytest.raises(ZeroDivisionError):
            await harmed


# --- The budget -----------------------------------------------------------------------------------------------------


@virtual
async def test_thousand_runs_without_lists_are_polled_evenly(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, WATCHER_LOG)
    async with BusyEtlworks(answer=refuse_lists) as etlworks, Following(etlworks) as following:
        for audit_id in range(1, 1001):
            following.follow(etlworks.run(audit_id), poll_interval=10)
        await asyncio.sleep(700)

        assert etlworks.most_in_a_minute() <= 300
        longest, mean = longest_waits(etlworks, 225, 700)
        assert longest <= 1.5 * mean
        assert mean < 230
        assert len(etlworks.connections) <= 10
    stretched = [record for record in caplog.records if "1000 runs are watched" in record.getMessage()]
    assert len(stretched) == 1
    without_list = [record for record in caplog.records if "are followed without" in record.getMessage()]
    assert len(without_list) == 1


@virtual
async def test_retry_after_stops_all_polls_and_they_resume_gradually() -> None:
    async with BusyEtlworks() as etlworks, Following(etlworks, requests_per_minute=0) as following:
        for audit_id in range(1, 201):
            following.follow(etlworks.run(audit_id), poll_interval=10)
        await asyncio.sleep(100)
        etlworks.answer = lambda _: web.Response(status=429, headers={"Retry-After": "30"})
        await asyncio.sleep(20)
        etlworks.answer = None
        refused_at = etlworks.asked[-1].at
        await asyncio.sleep(120)

        after = [each.at for each in etlworks.asked if each.at > refused_at]
        assert after[0] >= refused_at + 29.9
        assert all(sum(at <= each < at + 1 for each in after) <= 11 for at in after if at < refused_at + 60)


# --- Lists ----------------------------------------------------------------------------------------------------------


@virtual
async def test_thousand_runs_take_few_requests_with_the_day_list() -> None:
    async with BusyEtlworks() as etlworks, Following(etlworks) as following:
        for audit_id in range(1, 1001):
            ends = 450 + audit_id * 5.0 if audit_id <= 60 else float("inf")
            following.follow(etlworks.run(audit_id, ends=ends), poll_interval=10)
        await asyncio.sleep(800)

        assert len(following.done) == 60
        assert etlworks.most_in_a_minute() <= 300
        ended_per_minute = 12
        assert etlworks.most_in_a_minute(since=450) <= 60 + 2 * ended_per_minute
        lags = following.lags()
        assert lags[int(0.95 * len(lags))] <= 15
        assert all(etlworks.polls(audit_id) for audit_id in range(1, 1001))


@virtual
async def test_ends_come_before_first_polls_after_a_restart() -> None:
    async with BusyEtlworks() as etlworks, Following(etlworks) as following:
        for audit_id in range(1, 1001):
            ended = audit_id % 20 == 0
            run = etlworks.run(audit_id, started=-7200, ends=-10 if ended else float("inf"))
            following.follow(run, poll_interval=10)
        await asyncio.sleep(30)

        assert len(following.done) == 50


@virtual
async def test_runs_of_one_flow_are_followed_by_its_history() -> None:
    def no_administrator(request: web.Request) -> web.Response | None:
        return web.Response(status=403) if "metrics" in request.path else None

    async with BusyEtlworks(answer=no_administrator) as etlworks, Following(etlworks) as following:
        for audit_id in range(1, 41):
            following.follow(etlworks.run(audit_id, flow_id=7, ends=600 + audit_id), poll_interval=10)
        single = following.follow(etlworks.run(90, flow_id=8, ends=500), poll_interval=10)
        await following.all_done()

        assert single.done()
        per_path = asked_per_path(etlworks)
        assert per_path["/rest/v1/executions/8/history"] == 0
        assert 30 <= per_path["/rest/v1/executions/7/history"] <= 80
        assert len([each for each in etlworks.asked if each.path.endswith("/7")]) < 40 * 12
        assert following.longest_delay() <= 1


@virtual
async def test_thousand_runs_of_one_flow_are_polled_by_history() -> None:
    def no_administrator(request: web.Request) -> web.Response | None:
        return web.Response(status=403) if "metrics" in request.path else None

    async with BusyEtlworks(answer=no_administrator) as etlworks, Following(etlworks) as following:
        for audit_id in range(1, 1001):
            ends = 450 + audit_id * 5.0 if audit_id <= 60 else float("inf")
            following.follow(etlworks.run(audit_id, flow_id=7, ends=ends), poll_interval=10)
        await asyncio.sleep(800)

        assert len(following.done) == 60
        assert following.longest_delay() <= 5
        assert etlworks.most_in_a_minute() <= 300
        # Five pages, three to six times a minute; the resync; an end now and then.
        assert etlworks.most_in_a_minute(since=450) <= 5 * 7 + 30 + 2 * 12


def cut_short(etlworks: BusyEtlworks, offset: int) -> Any:
    return web.Response(text='[{"flowId": 100001, "executions": [{"auditId": 1, "sta', content_type="application/json")


LIST_FAULTS: dict[str, Callable[[BusyEtlworks, int], Any]] = {
    "refused": lambda *_: web.Response(status=403),
    "missing": lambda *_: web.Response(status=404),
    "broken": lambda *_: web.Response(status=500),
    "a page instead": lambda *_: web.Response(text="<html>Log in</html>", content_type="text/html"),
    "cut short": cut_short,
    "an object": lambda *_: {"executions": []},
    "numbers": lambda *_: [1, 2, 3],
    "null": lambda *_: None,
    "success: false": lambda *_: {"success": False, "message": "Not today"},
    "empty": lambda *_: [],
    "without executions": lambda etlworks, _: [{"flowId": 100_000 + each} for each in etlworks.runs],
    "everything still going": lambda etlworks, offset: etlworks.honest_day(offset, at=0.0),
    "everything ended": lambda etlworks, offset: etlworks.honest_day(offset, at=1e9),
    "half of it": lambda etlworks, offset: etlworks.honest_day(offset, without=range(1, 11)),
    "ids as text": lambda etlworks, offset: [
        {"executions": [{**run, "auditId": str(run["auditId"]), "flowId": str(run["flowId"])}]}
        for flow in etlworks.honest_day(offset)
        for run in flow["executions"]
    ],
}


@pytest.mark.parametrize("fault", LIST_FAULTS)
@virtual
async def test_no_list_makes_an_end_lost_invented_or_late(fault: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, WATCHER_LOG)
    async with BusyEtlworks() as etlworks, Following(etlworks) as following:
        etlworks.day = lambda offset: LIST_FAULTS[fault](etlworks, offset)
        for audit_id in range(1, 21):
            following.follow(etlworks.run(audit_id, ends=100 + 5 * audit_id), poll_interval=10)
        await following.all_done()

        assert {each.result.ending for each in following.done} == {Ending.FINISHED}
        lags = following.lags()
        assert lags[0] >= 0
        # While a stale list is used, the resync finds the first end.
        assert following.longest_delay() <= (70 if fault == "everything still going" else 2)
        assert etlworks.most_in_a_minute() <= 300
    about_lists = [record.getMessage() for record in caplog.records if "without" in record.getMessage()]
    assert len(about_lists) <= 1, about_lists
    if fault not in ("empty", "without executions", "everything ended", "half of it", "ids as text"):
        assert len(about_lists) == 1


@virtual
async def test_stale_status_of_one_run_is_found_by_the_resync() -> None:
    async with BusyEtlworks() as etlworks, Following(etlworks) as following:

        def stale_for_one(offset: int) -> Any:
            read_all = etlworks.honest_day(offset)
            for flow in read_all:
                if flow["flowId"] == 100_007:
                    flow["executions"] = [etlworks.runs[7].record(0)]
            return read_all

        etlworks.day = stale_for_one
        for audit_id in range(1, 61):
            following.follow(etlworks.run(audit_id, ends=100 if audit_id == 7 else 2000), poll_interval=10)
        await asyncio.sleep(400)

        assert [each.audit_id for each in following.done] == [7]
        # Sixty runs at thirty polls a minute.
        assert following.lags()[0] <= 130


@pytest.mark.parametrize("started", [0.0, -20 * 3600.0], ids=["today", "yesterday by UTC"])
@virtual
async def test_midnight_costs_nothing(started: float) -> None:
    """The server's midnight is where it is: runs go from the list of today to that of yesterday."""
    async with BusyEtlworks() as etlworks, Following(etlworks) as following:
        midnight = 400.0

        def day(offset: int) -> Any:
            now = asyncio.get_running_loop().time()
            there = etlworks.runs.values() if offset == (now >= midnight) else ()
            return [{"flowId": run.flow_id, "executions": [run.record(now)]} for run in there]

        etlworks.day = day
        for audit_id in range(1, 201):
            following.follow(etlworks.run(audit_id, started=started, ends=600 + audit_id), poll_interval=10)
        await following.all_done()

        assert following.lags()[-1] <= 15
        around_midnight = [each for each in etlworks.asked if midnight - 60 <= each.at < midnight + 120]
        assert len(around_midnight) <= 3 * 60
        assert {each.path for each in etlworks.lists()} == {"/rest/v1/metrics/executions"}


@virtual
async def test_list_of_forty_thousand_runs_is_read_in_moments(caplog: pytest.LogCaptureFixture) -> None:
    async with BusyEtlworks() as etlworks, Following(etlworks) as following:
        others = [
            {"flowId": 1, "executions": [{"auditId": 10**6 + each, "flowId": 1, "status": "success", "ended": 1}]}
            for each in range(40_000)
        ]
        etlworks.day = lambda offset: others + etlworks.honest_day(offset)
        for audit_id in range(1, 101):
            following.follow(etlworks.run(audit_id, ends=60 + audit_id), poll_interval=10)
        await following.all_done()

        assert following.lags()[-1] <= 15
        assert len(etlworks.asked) < 450


@virtual
async def test_slow_list_is_not_waited_for() -> None:
    async with BusyEtlworks() as etlworks, Following(etlworks) as following:
        etlworks.list_takes = 55
        for audit_id in range(1, 21):
            following.follow(etlworks.run(audit_id, ends=300 + audit_id * 10), poll_interval=10)
        await following.all_done()

        assert following.longest_delay() <= 2
        assert len(etlworks.lists()) <= 10


@virtual
async def test_run_that_starts_after_midnight_is_in_the_new_days_list() -> None:
    async with BusyEtlworks() as etlworks, Following(etlworks) as following:
        to_midnight = MIDNIGHT - NOON
        await asyncio.sleep(to_midnight - 100)
        for audit_id in range(1, 101):
            run = etlworks.run(audit_id, started=to_midnight - 100, ends=to_midnight + 400 + audit_id)
            following.follow(run, poll_interval=10)
        await asyncio.sleep(200)
        for audit_id in range(101, 201):
            run = etlworks.run(audit_id, started=to_midnight + 100, ends=to_midnight + 400 + audit_id)
            following.follow(run, poll_interval=10)
        await following.all_done()

        assert following.longest_delay() <= 2
        assert etlworks.most_in_a_minute(since=to_midnight + 150) <= 300


@virtual
async def test_one_transient_fault_of_a_list_costs_nothing() -> None:
    async with BusyEtlworks() as etlworks, Following(etlworks) as following:
        etlworks.day = lambda offset: (
            web.Response(status=503) if len(etlworks.lists()) == 20 else etlworks.honest_day(offset)
        )
        for audit_id in range(1, 101):
            following.follow(etlworks.run(audit_id, ends=600), poll_interval=10)
        await asyncio.sleep(500)

        faulty = etlworks.lists()[19].at
        assert len([each for each in etlworks.asked if faulty <= each.at < faulty + 60]) <= 60


@virtual
async def test_list_that_changes_its_mind_does_not_cause_many_polls() -> None:
    async with BusyEtlworks() as etlworks, Following(etlworks) as following:
        etlworks.day = lambda offset: etlworks.honest_day(offset, at=1e9 if len(etlworks.lists()) % 2 else 0.0)
        for audit_id in range(1, 21):
            following.follow(etlworks.run(audit_id, ends=300), poll_interval=10)
        await following.all_done()

        assert {each.result.ending for each in following.done} == {Ending.FINISHED}
        assert following.lags()[0] >= 0
        assert max(len(etlworks.polls(audit_id)) for audit_id in etlworks.runs) <= 40


@virtual
async def test_bug_between_two_polls_leaves_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    async with BusyEtlworks() as etlworks, Following(etlworks) as following:
        waiting = [following.follow(etlworks.run(audit_id)) for audit_id in (1, 2)]
        await asyncio.sleep(5)
        choose = following.watcher._queue.pick

        def broken_once(_: float) -> None:
            monkeypatch.setattr(following.watcher._queue, "pick", choose)
            raise ZeroDivisionError

        monkeypatch.setattr(following.watcher._queue, "pick", broken_once)
        for each in waiting:
            with pytest.raises(ZeroDivisionError):
                await each
        following._tasks.clear()
        await following.follow(etlworks.run(3, ends=60))

        assert [each.result.ending for each in following.done] == [Ending.FINISHED]


@virtual
async def test_run_past_its_deadline_does_not_make_the_list_stale(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, WATCHER_LOG)
    async with BusyEtlworks() as etlworks, Following(etlworks) as following:
        for audit_id in range(1, 21):
            deadline = NOON + 100 if audit_id == 1 else None
            following.follow(etlworks.run(audit_id), poll_interval=10, deadline=deadline)
        await asyncio.sleep(200)

        assert [each.result.ending for each in following.done] == [Ending.DEADLINE]
        assert etlworks.lists()[-1].at > 185
    assert [record for record in caplog.records if "are followed without" in record.getMessage()] == []
