"""A start, carried out by hand: what is asked in which order, what is noted before, and who a found run belongs to."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from support.task import BEGINNING, FastClock, carry_out

from airflow_provider_etlworks.client.call import Call, Page
from airflow_provider_etlworks.client.errors import (
    EtlworksAlreadyRunning,
    EtlworksError,
    EtlworksNotFound,
    EtlworksServerError,
    EtlworksStartUnknown,
    EtlworksUnreachable,
)
from airflow_provider_etlworks.client.models import Execution, FlowStart
from airflow_provider_etlworks.runs.follow import VISIBILITY_GRACE
from airflow_provider_etlworks.runs.start import OnAlreadyRunning, RunStarter, Started, read_accepted_run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

LOG = logging.getLogger("start")
LOST = EtlworksUnreachable("Connection reset.")
NOT_SENT = EtlworksUnreachable("Connection refused.", not_processed=True)
GONE = EtlworksNotFound("There is none.", status=404)
DOWN = EtlworksServerError("Bad gateway.", status=502)


def run(audit_id: int, **fields: Any) -> Execution:
    return Execution(flow_id=7, audit_id=audit_id, **{"status": "running", **fields})


def answer_of(code: int | None, audit_id: int | None = None) -> FlowStart:
    return FlowStart.from_json({"status": code, "auditId": audit_id})


class Server:
    """
    Answers a start's calls from a script.

    :param starts: the answers to the starts, one after the other.
    :param newest: the answer to each look at the newest run.
    :param history: the answer to each look at the runs.
    """

    def __init__(self, starts: Iterable[Any], newest: Any = None, history: Any = ()) -> None:
        self.clock = FastClock()
        self.noted: list[int | None] = []
        self.order: list[str] = []
        self.after_the_start: Callable[[], None] = lambda: None
        self._starts, self._newest, self._history = iter(starts), newest, history

    def answer(self, call: Call[Any]) -> Any:
        self.order.append(str(call).replace("/v1/flows/7/", "").replace("/v1/executions/7", "executions"))
        if call.method == "POST":
            self.after_the_start()
            return next(self._starts)
        if call.path.endswith("/history"):
            return self._history if isinstance(self._history, EtlworksError) else Page(list(self._history), None)
        return self._newest

    def note(self, watermark: int | None) -> None:
        self.noted.append(watermark)
        self.order.append("note")

    def start(self, **options: Any) -> Any:
        start = RunStarter(7, self.clock, LOG, save_intent=self.note, **options)
        return carry_out(start.start(), self.clock, self.answer)


def test_the_newest_run_is_noted_before_anything_is_sent() -> None:
    server = Server([answer_of(0, 41)], newest=run(40))

    assert server.start() == Started(41)
    assert server.order == ["GET executions", "note", "POST run"]
    assert server.noted == [40]


@pytest.mark.parametrize(("before", "watermark"), [([], 0), (GONE, 0), ([run(40)], 40)])
def test_a_flow_without_a_newest_run_has_the_watermark_of_its_history(before: Any, watermark: int) -> None:
    server = Server([LOST], newest=None, history=before)
    server.after_the_start = lambda: setattr(server, "_history", [run(41), run(40)] if watermark else [run(41)])

    assert server.start() == Started(41)
    assert server.noted == [watermark]


@pytest.mark.parametrize("refused", [NOT_SENT, GONE, answer_of(2), answer_of(3)])
def test_what_certainly_did_nothing_is_forgotten(refused: Any) -> None:
    server = Server([refused], newest=run(40))

    with pytest.raises(EtlworksError):
        server.start()
    assert server.noted == [40, None]


@pytest.mark.parametrize("starts", [[LOST, LOST], [answer_of(0)], [answer_of(None)]])
def test_what_may_have_started_a_run_stays_noted(starts: list[Any]) -> None:
    server = Server(starts, newest=run(40), history=[run(40)])

    with pytest.raises(EtlworksStartUnknown, match="newer than 40"):
        server.start()
    assert server.noted == [40]


def test_nothing_is_sent_while_the_newest_run_cannot_be_read() -> None:
    server = Server([], newest=DOWN)

    with pytest.raises(EtlworksServerError):
        server.start()
    assert server.order == ["GET executions"]


def test_a_lost_start_is_looked_for_above_the_watermark_only() -> None:
    server = Server([LOST, answer_of(0, 41)], newest=run(40), history=[run(40), run(39), run(38)])

    assert server.start() == Started(41)
    assert server.order.count("POST run") == 2
    assert server.clock.now - BEGINNING >= VISIBILITY_GRACE


def test_a_lost_start_whose_runs_cannot_be_read_is_unknown_after_the_patience() -> None:
    server = Server([LOST], newest=run(40), history=DOWN)

    with pytest.raises(EtlworksStartUnknown, match="may or may not have been started"):
        server.start(patience=600)
    assert 600 <= server.clock.now - BEGINNING < 700
    assert server.order.count("POST run") == 1


@pytest.mark.parametrize(
    ("newest_after", "starts", "ending"),
    [
        (run(40), [LOST, answer_of(0, 41)], Started(41)),
        (run(41), [LOST], EtlworksStartUnknown),
    ],
)
@pytest.mark.parametrize("history", [GONE, [run(39), run(40)]], ids=["none", "oldest first"])
def test_without_a_history_nothing_is_guessed(
    history: Any, newest_after: Execution, starts: list[Any], ending: Any
) -> None:
    server = Server(starts, newest=run(40), history=history)
    server.after_the_start = lambda: setattr(server, "_newest", newest_after)
    if isinstance(ending, Started):
        assert server.start() == ending
    else:
        with pytest.raises(ending, match="history does not tell whether run 41 came of it"):
            server.start()
        assert server.order.count("POST run") == 1


@pytest.mark.parametrize(
    ("user", "found", "ours"),
    [
        (None, run(41), True),
        (None, run(41, user="maria"), True),
        ("maria", run(41, user="MARIA"), True),
        ("maria", run(41), True),
        ("maria", run(41, user="juan"), False),
        (None, run(41, event_id="3"), False),
        ("maria", run(41, user="maria", event_id="3"), False),
    ],
)
def test_whose_run_it_is(user: str | None, found: Execution, ours: bool) -> None:
    assert RunStarter(7, FastClock(), LOG, user=user).is_candidate(found) is ours


@pytest.mark.parametrize(("ours", "others"), [(2, 0), (1, 1)])
def test_of_several_runs_none_is_taken_and_nothing_is_sent_again(ours: int, others: int) -> None:
    runs = [*(run(41 + number) for number in range(ours)), *(run(51, event_id="3") for _ in range(others))]
    server = Server([LOST], newest=run(40), history=runs)

    with pytest.raises(EtlworksStartUnknown) as unknown:
        server.start()
    assert unknown.value.candidates == tuple(each.audit_id for each in runs)
    assert server.order.count("POST run") == 1


def test_waiting_for_a_run_in_the_way_forgets_the_start_that_did_nothing() -> None:
    ended = replace(run(40), status="success")
    server = Server([answer_of(1, 40), answer_of(0, 41)], newest=run(40))
    server_answer, looks = server.answer, iter([run(40), run(40), run(40), ended, ended, ended])

    def answer(call: Call[Any]) -> Any:
        return server_answer(call) if call.method == "POST" else next(looks)

    server.answer = answer  # type: ignore[method-assign]

    assert server.start(on_already_running=OnAlreadyRunning.WAIT) == Started(41)
    assert server.noted == [40, None, 40]


def test_waiting_goes_on_for_a_run_that_etlworks_does_not_show() -> None:
    busy = [answer_of(1)] * 500
    server = Server([*busy, answer_of(0, 41)], newest=replace(run(40), status="success"))

    assert server.start(on_already_running=OnAlreadyRunning.WAIT) == Started(41)

    server = Server(busy, newest=replace(run(40), status="success"))
    with pytest.raises(EtlworksAlreadyRunning, match="shows no run that is going"):
        server.start()


@pytest.mark.parametrize(
    ("seconds", "ending"), [(0, "success"), (VISIBILITY_GRACE - 10, "success"), (10 * VISIBILITY_GRACE, None)]
)
def test_a_record_is_late_before_it_is_gone(seconds: float, ending: str | None) -> None:
    clock = FastClock()

    found = carry_out(
        read_accepted_run(7, 41, clock=clock, log=LOG),
        clock,
        lambda _: GONE if clock.now - BEGINNING < seconds else run(41, status="success"),
    )

    assert (found.status if found else None) == ending
    assert clock.now - BEGINNING < 2 * VISIBILITY_GRACE


def test_a_record_that_cannot_be_read_is_no_answer() -> None:
    clock = FastClock()

    with pytest.raises(EtlworksServerError):
        carry_out(read_accepted_run(7, 41, clock=clock, log=LOG), clock, lambda _: DOWN)
