"""Which run is waited for, and what a poll means, without a network."""

from __future__ import annotations

import logging
from dataclasses import replace
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import pytest
from support.clock import BEGINNING, FastClock
from support.etlworks import carry_out
from support.task import FLOW

from airflow_provider_etlworks.client.call import Page
from airflow_provider_etlworks.client.errors import (
    EtlworksForbidden,
    EtlworksNotFound,
    EtlworksReplyError,
    EtlworksUnreachable,
)
from airflow_provider_etlworks.client.models import Execution
from airflow_provider_etlworks.runs.find import ReadOutage, RunSelector, RunWaiter
from airflow_provider_etlworks.runs.follow import Ending, FollowResult
from airflow_provider_etlworks.runs.types import PollPolicy

if TYPE_CHECKING:
    from airflow_provider_etlworks.client.call import Call


def moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(BEGINNING + seconds, tz=timezone.utc)


def run(audit_id: int, status: str = "success", started: float | None = 10, **more: Any) -> Execution:
    ended = None if status in ("queued", "running") else moment((started or 0) + 5)
    values = {"started_at": None if started is None else moment(started), "ended_at": ended, **more}
    return Execution(FLOW, audit_id, status=status, **values)


NEWEST = RunSelector(FLOW, since=moment(0))


class Server:
    """Answers from a list of runs, the newest last. ``history`` replaces what the history says."""

    def __init__(self, *runs: Execution, history: Any = None) -> None:
        self.runs = list(runs)
        self.history = history
        self.asked: list[str] = []

    def __call__(self, call: Call[Any]) -> Any:
        self.asked.append(str(call))
        if call.path.endswith("/history"):
            return self.history if self.history is not None else Page(self.runs[::-1], len(self.runs))
        wanted = dict(call.query).get("auditId")
        if wanted is None:
            return self.runs[-1] if self.runs else None
        found = [each for each in self.runs if str(each.audit_id) == wanted]
        return found[0] if found else EtlworksNotFound("no such run", status=404)


def poll(selector: RunSelector, server: Any, at: float = 100, **options: Any) -> Any:
    clock = FastClock()
    clock.now += at
    waiter = RunWaiter(selector, PollPolicy(), clock=clock, log=logging.getLogger("test"), **options)
    return carry_out(waiter.poll(), clock, server)


# --- Which run counts -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("runs", "counts"),
    [
        ([], None),
        ([run(1, started=-1)], None),
        ([run(1, "running", started=-1)], None),
        ([run(1, started=0)], 1),
        ([run(1), run(2, started=20)], 2),
        ([run(1), run(2, "canceled", started=None)], 1),
        ([run(1, started=-1), run(2, "canceled", started=None)], None),
    ],
)
def test_newest_run_since_counts(runs: list[Execution], counts: int | None) -> None:
    polled = poll(NEWEST, Server(*runs))

    assert (polled and polled.execution.audit_id) == counts


def test_queued_run_is_waited_for() -> None:
    assert poll(NEWEST, Server(run(1), run(2, "queued", started=None))).audit_id == 2


def test_ended_run_without_a_start_is_an_outage() -> None:
    outage = ReadOutage()

    assert poll(NEWEST, Server(run(1, started=None)), outage=outage) is None
    assert outage.unreadable_since == BEGINNING + 100
    given_up = poll(NEWEST, Server(run(1, started=None)), at=5000, outage=outage)
    assert given_up.ending is Ending.LOST_TOUCH
    assert "does not say when run 1 of flow 7 started" in given_up.detail


def test_only_the_run_of_the_message_counts() -> None:
    selector = RunSelector(FLOW, message_uuid="ABC")

    assert poll(selector, Server(run(1))) is None
    assert poll(selector, Server(run(1, message_uuid="other"))) is None
    assert poll(selector, Server(run(1, message_uuid="abc"))).execution.audit_id == 1


# --- Repetitions ----------------------------------------------------------------------------------------------------

FAILED = run(1, "error", event_id="9")


@pytest.mark.parametrize("parents", [(1, 2), (1, 1)], ids=["each names the last", "all name the first"])
def test_last_repetition_is_followed(parents: tuple[int, int]) -> None:
    server = Server(
        FAILED,
        run(2, "error", started=30, event_id="9", parent_audit_id=parents[0]),
        run(3, "running", started=60, event_id="9", parent_audit_id=parents[1]),
    )

    assert poll(RunSelector(FLOW, audit_id=1), server).audit_id == 3


@pytest.mark.parametrize(
    ("failed", "at", "is_over"),
    [
        (FAILED, 20, False),
        (FAILED, 15 + 60, True),
        (replace(FAILED, event_id=None), 20, True),
        (replace(FAILED, ended_at=None), 20, True),
        # A clock that differs by an hour says nothing.
        (FAILED, -3600, True),
    ],
)
def test_repetition_may_appear_within_the_grace(failed: Execution, at: float, is_over: bool) -> None:
    polled = poll(RunSelector(FLOW, audit_id=1), Server(failed), at=at, repetition_grace=60)

    assert isinstance(polled, FollowResult) == is_over


def test_history_is_read_only_for_a_failed_run() -> None:
    server = Server(run(1, "warning"))
    poll(RunSelector(FLOW, audit_id=1), server)

    assert len(server.asked) == 1


@pytest.mark.parametrize("fault", [EtlworksNotFound("no", status=404), EtlworksForbidden("no", status=403)])
def test_refused_history_hides_no_failure(fault: Any, caplog: pytest.LogCaptureFixture) -> None:
    polled = poll(RunSelector(FLOW, audit_id=1), Server(FAILED, history=fault))

    assert polled.execution.status == "error"
    assert "Cannot find out whether Etlworks repeated run 1" in caplog.text


def test_unreadable_history_is_read_later() -> None:
    outage = ReadOutage()
    server = Server(FAILED, history=EtlworksUnreachable("dropped"))

    assert poll(RunSelector(FLOW, audit_id=1), server, outage=outage) is None
    assert outage.unreadable_since is not None


# --- Outages --------------------------------------------------------------------------------------------------------


def test_outage_ends_when_the_run_can_be_read() -> None:
    outage = ReadOutage(unreadable_since=BEGINNING, missing_since=BEGINNING)

    assert poll(RunSelector(FLOW, audit_id=1), Server(run(1, "running")), at=90, outage=outage).audit_id == 1
    assert outage == ReadOutage()


def test_unknown_status_is_an_outage_and_never_an_end() -> None:
    outage = ReadOutage()
    odd = replace(run(1, "running"), status="archiving")

    assert poll(RunSelector(FLOW, audit_id=1), Server(odd), outage=outage) == odd
    given_up = poll(RunSelector(FLOW, audit_id=1), Server(odd), at=5000, outage=outage)
    assert given_up.ending is Ending.LOST_TOUCH
    assert "archiving" in given_up.detail


@pytest.mark.parametrize(
    ("selector", "text"),
    [
        (RunSelector(7, audit_id=8), "Run 8 of flow 7"),
        (RunSelector(7, message_uuid="abc"), "The run of flow 7 for message abc"),
        (NEWEST, "The newest run of flow 7 since 2027-01-15T08:00:00+00:00"),
    ],
)
def test_selector_names_its_run(selector: RunSelector, text: str) -> None:
    assert str(selector) == text


def test_find_raises_what_cannot_be_read() -> None:
    with pytest.raises(EtlworksReplyError):
        carry_out(NEWEST.find(), FastClock(), Server(run(1, started=None)))
