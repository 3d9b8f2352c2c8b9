"""Which request of an event loop is sent next."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING

import pytest
from support.clock import LoopClock, in_virtual_time

from airflow_provider_etlworks.client.dispatcher import Dispatcher, dispatcher_for
from airflow_provider_etlworks.client.rate_limit import Priority, RateLimiter
from airflow_provider_etlworks.client.settings import ClientSettings
from airflow_provider_etlworks.client.transport import POOL_SIZE

if TYPE_CHECKING:
    from collections.abc import Iterable


def dispatcher_with(requests_per_minute: int) -> Dispatcher:
    return Dispatcher(RateLimiter(requests_per_minute, LoopClock(), jitter=lambda: 0.5), asyncio.sleep)


class Senders:
    """Tasks that send one request each, whose answers take some seconds."""

    def __init__(self, dispatcher: Dispatcher, takes: float = 0.0) -> None:
        self.dispatcher = dispatcher
        self.takes = takes
        self.sent: list[tuple[str, float]] = []
        self.most_at_once = 0
        self._at_once = 0

    def send(self, name: str, priority: Priority = Priority.POLL) -> asyncio.Task[None]:
        async def send() -> None:
            async with self.dispatcher.turn(priority) as turn:
                self.sent.append((name, asyncio.get_running_loop().time()))
                self._at_once += 1
                self.most_at_once = max(self.most_at_once, self._at_once)
                await asyncio.sleep(self.takes)
                self._at_once -= 1
                turn.release(sent=True)

        return asyncio.create_task(send())

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.sent]


async def use_up(dispatcher: Dispatcher) -> None:
    """Send until a poll must wait."""
    while dispatcher.rate_limiter.begin(Priority.POLL) == 0:
        dispatcher.rate_limiter.end()


async def everybody_waits() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


async def cancel(tasks: Iterable[asyncio.Task[None]]) -> None:
    tasks = list(tasks)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def test_most_urgent_goes_first_and_equals_in_their_order() -> None:
    async def main() -> None:
        senders = Senders(dispatcher_with(60))
        senders.dispatcher.rate_limiter.refuse(1)
        waiting = [
            senders.send(f"{priority.name} {number}", priority) for number in (1, 2) for priority in reversed(Priority)
        ]
        await asyncio.gather(*waiting)
        assert senders.names == [f"{priority.name} {number}" for priority in Priority for number in (1, 2)]

    in_virtual_time(main())


def test_no_more_requests_at_once_than_connections() -> None:
    async def main() -> None:
        senders = Senders(dispatcher_with(0), takes=1.0)
        await asyncio.gather(*[senders.send(str(number), Priority.STOP) for number in range(35)])
        assert senders.most_at_once == POOL_SIZE
        assert senders.sent[-1][1] == pytest.approx(3.0)

    in_virtual_time(main())


@pytest.mark.parametrize("urgent", [Priority.STOP, Priority.LAST_POLL])
def test_connection_is_left_for_what_is_urgent(urgent: Priority) -> None:
    async def main() -> None:
        senders = Senders(dispatcher_with(0), takes=60.0)
        polls = [senders.send("poll", priority) for priority in Priority if priority > Priority.LAST_POLL] * 3
        polls += [senders.send("poll") for _ in range(POOL_SIZE)]
        await everybody_waits()
        senders.send("urgent", urgent)
        await asyncio.gather(*polls)
        assert senders.names[: POOL_SIZE + 1] == ["poll"] * (POOL_SIZE - 1) + ["urgent", "poll"]
        assert senders.sent[POOL_SIZE - 1][1] == pytest.approx(0.0)

    in_virtual_time(main())


def test_waiting_turn_may_become_more_urgent() -> None:
    async def main() -> None:
        senders = Senders(dispatcher_with(60))
        await use_up(senders.dispatcher)
        tasks = [senders.send(name) for name in ("first", "second")]
        turn = senders.dispatcher.turn(Priority.FIRST_POLL)

        async def take() -> None:
            async with turn:
                senders.sent.append(("raised", 0.0))

        tasks.append(asyncio.create_task(take()))
        await everybody_waits()
        turn.raise_to(Priority.LISTING)
        turn.raise_to(Priority.REPORTED_DONE)
        turn.raise_to(Priority.SEARCH)
        assert turn.priority is Priority.REPORTED_DONE
        await asyncio.gather(*tasks)
        assert senders.names == ["raised", "first", "second"]

    in_virtual_time(main())


def test_stop_overtakes_a_timer_that_waits_for_polls() -> None:
    async def main() -> None:
        dispatcher = dispatcher_with(60)
        senders = Senders(dispatcher)
        dispatcher.rate_limiter.refuse(100)
        tasks = [senders.send("poll"), senders.send("last poll", Priority.LAST_POLL)]
        await everybody_waits()
        tasks.append(senders.send("stop", Priority.STOP))
        await asyncio.gather(*tasks)
        assert senders.names == ["stop", "last poll", "poll"]
        (_, stop), (_, last_poll), _ = senders.sent
        assert stop == 0
        assert last_poll == pytest.approx(130)

    in_virtual_time(main())


@pytest.mark.parametrize("limit", [60, 300])
def test_cancelled_waiters_leave_no_hole(limit: int) -> None:
    async def main() -> None:
        senders = Senders(dispatcher_with(limit))
        tasks = [senders.send(str(number), list(Priority)[1 + number % 7]) for number in range(1000)]
        await everybody_waits()
        # Those that had their turn before the others were cancelled have used a part of the limit.
        assert 0 < len(senders.sent) < limit
        await cancel(tasks)
        begun = asyncio.get_running_loop().time()
        await senders.send("next")
        assert senders.sent[-1][1] - begun <= 60 / (0.95 * limit)

    in_virtual_time(main())


def test_waiter_cancelled_with_its_turn_granted_gives_it_to_the_next() -> None:
    async def main() -> None:
        senders = Senders(dispatcher_with(0), takes=1.0)
        going = [senders.send(f"going {number}", Priority.STOP) for number in range(POOL_SIZE)]
        waiting = [senders.send(f"waiting {number}", Priority.STOP) for number in range(3)]
        await everybody_waits()
        # The answers grant the turns of those that wait, and two are cancelled before they have run again.
        await asyncio.sleep(1.0)
        await cancel(waiting[:2])
        await asyncio.gather(*going, waiting[2])
        after = [senders.send("after", Priority.STOP) for _ in range(POOL_SIZE)]
        await asyncio.gather(*after)
        assert senders.names.count("after") == POOL_SIZE
        assert senders.most_at_once == POOL_SIZE

    in_virtual_time(main())


def test_unused_turn_goes_to_the_next() -> None:
    async def main() -> None:
        dispatcher = dispatcher_with(1)
        for _ in range(5):
            async with dispatcher.turn():
                pass
        assert asyncio.get_running_loop().time() == 0

    in_virtual_time(main())


def test_dispatcher_is_shared_by_the_same_credentials_in_one_loop() -> None:
    async def dispatcher_of(**settings: str) -> Dispatcher:
        return dispatcher_for(ClientSettings(**settings), clock, asyncio.sleep)  # type: ignore[arg-type]

    async def main() -> None:
        url = "https://etlworks.invalid"
        one = await dispatcher_of(root_url=url, password="one")
        assert await dispatcher_of(root_url=url, password="one") is one
        assert await dispatcher_of(root_url=url, password="two") is not one
        assert await dispatcher_of(root_url=f"{url}/other", password="one") is not one
        assert await dispatcher_of(root_url=url, password="one", login="me") is not one
        elsewhere: list[Dispatcher] = []
        thread = threading.Thread(
            target=lambda: elsewhere.append(asyncio.run(dispatcher_of(root_url=url, password="one")))
        )
        thread.start()
        thread.join()
        assert elsewhere[0] is not one
        assert elsewhere[0].rate_limiter is one.rate_limiter

    clock = LoopClock()
    asyncio.run(main())


def test_loops_share_the_limit() -> None:
    async def main() -> None:
        dispatcher = dispatcher_with(60)
        other = Dispatcher(dispatcher.rate_limiter, asyncio.sleep)
        senders = [Senders(dispatcher), Senders(other)]
        await asyncio.gather(*[each.send("stop", Priority.STOP) for _ in range(40) for each in senders])
        moments = [moment for each in senders for _, moment in each.sent]
        assert sum(moment < 60 for moment in moments) == 60

    in_virtual_time(main())
