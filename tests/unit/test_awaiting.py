"""Which run is waited for, and what a look means, without a network."""

from __future__ import annotations

import logging
from dataclasses import replace
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import pytest
from support.task import BEGINNING, FLOW, FastClock, carry_out

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


def look(awaited: RunSelector, server: Any, at: float = 100, **options: Any) -> Any:
    clock = FastClock()
    clock.now += at
    lookout = RunWaiter(awaited, clock=clock, log=logging.getLogger("test"), **options)
    return carry_out(lookout.poll(), clock, server)


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
def test_the_newest_run_that_started_since_counts(runs: list[Execution], counts: int | None) -> None:
    seen = look(NEWEST, Server(*runs))

    assert (seen and seen.execution.audit_id) == counts


def test_a_run_in_the_queue_is_waited_for() -> None:
    assert look(NEWEST, Server(run(1), run(2, "queued", started=None))).audit_id == 2


def test_a_run_that_ended_without_a_start_cannot_be_judged() -> None:
    trouble = ReadOutage()

    assert look(NEWEST, Server(run(1, started=None)), trouble=trouble) is None
    assert trouble.unreadable_since == BEGINNING + 100
    given_up = look(NEWEST, Server(run(1, started=None)), at=5000, trouble=trouble)
    assert given_up.ending is Ending.LOST_TOUCH
    assert "does not say when run 1 of flow 7 started" in given_up.detail


def test_of_a_message_only_its_own_run_counts() -> None:
    awaited = RunSelector(FLOW, message_uuid="ABC")

    assert look(awaited, Server(run(1))) is None
    assert look(awaited, Server(run(1, message_uuid="other"))) is None
    assert look(awaited, Server(run(1, message_uuid="abc"))).execution.audit_id == 1


# --- Repetitions ----------------------------------------------------------------------------------------------------

FAILED = run(1, "error", event_id="9")


@pytest.mark.parametrize("parents", [(1, 2), (1, 1)], ids=["each names the last", "all name the first"])
def test_a_repetition_is_followed_to_the_last(parents: tuple[int, int]) -> None:
    server = Server(
        FAILED,
        run(2, "error", started=30, event_id="9", parent_audit_id=parents[0]),
        run(3, "running", started=60, event_id="9", parent_audit_id=parents[1]),
    )

    assert look(RunSelector(FLOW, audit_id=1), server).audit_id == 3


@pytest.mark.parametrize(
    ("failed", "at", "is_over"),
    [
        (FAILED, 20, False),
        (FAILED, 15 + 60, True),
        (replace(FAILED, event_id=None), 20, True),
        (replace(FAILED, ended_at=None), 20, True),
        # A clock that is an hour off says nothing.
        (FAILED, -3600, True),
    ],
)
def test_how_long_a_repetition_may_take_to_appear(failed: Execution, at: float, is_over: bool) -> None:
    seen = look(RunSelector(FLOW, audit_id=1), Server(failed), at=at, repetition_grace=60)

    assert isinstance(seen, FollowResult) == is_over


def test_only_a_run_that_failed_is_looked_for_in_the_history() -> None:
    server = Server(run(1, "warning"))
    look(RunSelector(FLOW, audit_id=1), server)

    assert len(server.asked) == 1


@pytest.mark.parametrize("fault", [EtlworksNotFound("no", status=404), EtlworksForbidden("no", status=403)])
def test_a_history_that_is_refused_hides_no_failure(fault: Any, caplog: pytest.LogCaptureFixture) -> None:
    seen = look(RunSelector(FLOW, audit_id=1), Server(FAILED, history=fault))

    assert seen.execution.status == "error"
    assert "cannot be told" in caplog.text


def test_a_history_that_cannot_be_read_just_now_is_read_later() -> None:
    trouble = ReadOutage()
    server = Server(FAILED, history=EtlworksUnreachable("dropped"))

    assert look(RunSelector(FLOW, audit_id=1), server, trouble=trouble) is None
    assert trouble.unreadable_since is not None


# --- Trouble --------------------------------------------------------------------------------------------------------


def test_trouble_is_forgotten_when_the_run_can_be_read() -> None:
    trouble = ReadOutage(unreadable_since=BEGINNING, missing_since=BEGINNING)

    assert look(RunSelector(FLOW, audit_id=1), Server(run(1, "running")), at=90, trouble=trouble).audit_id == 1
    assert trouble == ReadOutage()


def test_a_status_that_is_not_known_is_trouble_and_never_an_end() -> None:
    trouble = ReadOutage()
    odd = replace(run(1, "running"), status="archiving")

    assert look(RunSelector(FLOW, audit_id=1), Server(odd), trouble=trouble) == odd
    given_up = look(RunSelector(FLOW, audit_id=1), Server(odd), at=5000, trouble=trouble)
    assert given_up.ending is Ending.LOST_TOUCH
    assert "archiving" in given_up.detail


@pytest.mark.parametrize(
    ("awaited", "text"),
    [
        (RunSelector(7, audit_id=8), "Run 8 of flow 7"),
        (RunSelector(7, message_uuid="abc"), "The run of flow 7 for message abc"),
        (NEWEST, "The newest run of flow 7 since 2027-01-15T08:00:00+00:00"),
    ],
)
def test_what_is_waited_for_has_a_name(awaited: RunSelector, text: str) -> None:
    assert str(awaited) == text


def test_errors_of_reading_are_errors() -> None:
    with pytest.raises(EtlworksReplyError):
        carry_out(NEWEST.find(), FastClock(), Server(run(1, started=None)))
