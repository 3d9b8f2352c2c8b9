"""A start in doubt: which run is adopted, what forbids it, and what proves whose run it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from support.clock import BEGINNING, FastClock
from support.etlworks import carry_out
from support.starts import GONE, LOG, ScriptedStarts, response, run

from airflow_provider_etlworks.client.errors import EtlworksServerError, EtlworksStartUnknown, EtlworksUnreachable
from airflow_provider_etlworks.runs.follow import VISIBILITY_GRACE
from airflow_provider_etlworks.runs.reconcile import RunKey, is_candidate, read_accepted_run
from airflow_provider_etlworks.runs.start import Started
from airflow_provider_etlworks.runs.types import PollPolicy, RunRef

if TYPE_CHECKING:
    from airflow_provider_etlworks.client.models import Execution

LOST = EtlworksUnreachable("Connection reset.")
DOWN = EtlworksServerError("Bad gateway.", status=502)
KEY = RunKey.unique("runKey", "dag/task/run 1/-1/1", "a" * 32)
OTHER_KEY = RunKey.unique("runKey", "dag/task/run 1/-1/1", "b" * 32)
KEYED = {"run_key_parameter": "runKey", "run_key": "dag/task/run 1/-1/1", "token": "a" * 32}


def carrying(key: RunKey, audit_id: int, **fields: Any) -> Execution:
    """Return the record of a run that shows the parameters of its start."""
    return run(audit_id, raw={"auditId": audit_id, "parameters": {key.parameter: key.value}}, **fields)


# --- Without proof --------------------------------------------------------------------------------------------------


def test_unreadable_runs_are_unknown_after_patience() -> None:
    server = ScriptedStarts([LOST], newest=run(40), history=DOWN)

    with pytest.raises(EtlworksStartUnknown, match="may or may not have been started"):
        server.start(policy=PollPolicy(patience=600))
    assert 600 <= server.clock.now - BEGINNING < 700
    assert server.starts_sent == 1


@pytest.mark.parametrize(
    ("newest_after", "starts", "ending"),
    [
        (run(40), [LOST, response(0, 41)], Started(41)),
        (run(41), [LOST], EtlworksStartUnknown),
    ],
)
@pytest.mark.parametrize("history", [GONE, [run(39), run(40)]], ids=["none", "oldest first"])
def test_nothing_is_guessed_without_history(
    history: Any, newest_after: Execution, starts: list[Any], ending: Any
) -> None:
    server = ScriptedStarts(starts, newest=run(40), history=history)
    server.after_the_start = lambda: setattr(server, "newest", newest_after)
    if isinstance(ending, Started):
        assert server.start() == ending
    else:
        with pytest.raises(ending, match="history may not have every run") as unknown:
            server.start()
        assert unknown.value.candidates == (41,)
        assert server.starts_sent == 1


@pytest.mark.parametrize(
    ("user", "found", "ours"),
    [
        (None, run(41), True),
        (None, run(41, user="maria"), True),
        (None, run(41, user="Scheduler"), False),
        ("maria", run(41, user="MARIA"), True),
        ("maria", run(41), True),
        ("maria", run(41, user="juan"), False),
        ("maria", run(41, user="maria@example.com"), False),
        ("maria", run(41, user="scheduler"), False),
        (None, run(41, event_id="3"), False),
        ("maria", run(41, user="maria", event_id="3"), False),
        ("maria", run(41, message_uuid="5c5f"), False),
        ("maria", run(41, parent_audit_id=39), False),
    ],
)
def test_sign_of_another_starter_forbids_adoption(user: str | None, found: Execution, ours: bool) -> None:
    assert ScriptedStarts().starter(user=user).is_candidate(found) is is_candidate(found, user) is ours


@pytest.mark.parametrize(
    "found",
    [run(41, user="juan"), run(41, user="maria@example.com"), run(41, event_id="3"), run(41, user="scheduler")],
)
def test_sign_of_another_starter_never_justifies_second_start(found: Execution) -> None:
    server = ScriptedStarts([LOST], newest=run(40), history=[found, run(40)])

    with pytest.raises(EtlworksStartUnknown, match=r"Nothing was sent again.* run 41 \(running") as unknown:
        server.start(user="maria")
    assert unknown.value.candidates == (41,)
    assert server.starts_sent == 1
    assert server.saved == [40]


def test_run_is_not_adopted_if_others_may_start_the_flow() -> None:
    server = ScriptedStarts([LOST], newest=run(40), history=[run(41), run(40)])

    with pytest.raises(EtlworksStartUnknown, match="run 41"):
        server.start(is_only_starter=False)
    assert server.starts_sent == 1


@pytest.mark.parametrize(("ours", "others"), [(2, 0), (1, 1)])
def test_of_several_runs_none_is_adopted(ours: int, others: int) -> None:
    runs = [*(run(41 + number) for number in range(ours)), *(run(51, event_id="3") for _ in range(others))]
    server = ScriptedStarts([LOST], newest=run(40), history=runs)

    with pytest.raises(EtlworksStartUnknown) as unknown:
        server.start()
    assert unknown.value.candidates == tuple(each.audit_id for each in runs)
    assert server.starts_sent == 1


# --- With proof -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shown", "is_ours"),
    [
        ({"parameters": {"runKey": KEY.value}}, True),
        ({"parameters": [{"name": "runKey", "value": KEY.value}]}, True),
        ({"parameters": f'{{"runKey":"{KEY.value}"}}'}, True),
        (f"10:00 Parameter runKey = '{KEY.value}'\n", True),
        (f"10:00 started with {KEY.value}", True),
        (f"?runDate=1&runKey={KEY.value.replace('/', '%2F')}&a=b", True),
        (f"runKey={OTHER_KEY.value}, runKey={KEY.value}", True),
        ({"parameters": {"runKey": OTHER_KEY.value}}, False),
        ({"parameters": [{"name": "runKey", "value": "by hand"}]}, False),
        ({"parameters": '{"runKey":"by hand"}'}, False),
        (f"10:00 Parameter runKey: {OTHER_KEY.value}", False),
        ({"parameters": {"runKey": ""}}, None),
        ({"parameters": {"runKey": "***"}}, None),
        ({"parameters": {"runKey": f"{KEY.value[:20]}…"}}, None),
        ({"parameters": {"runDate": "2026-05-09"}}, None),
        ("10:00 myrunKey=5, runKeys: 6, other.runKey=7", None),
        ({"auditId": 41}, None),
        (None, None),
        ("", None),
    ],
)
def test_key_is_recognized(shown: Any, is_ours: bool | None) -> None:
    assert KEY.is_shown_by(shown) is is_ours


def test_deeply_nested_record_is_searched() -> None:
    nested: Any = {"runKey": KEY.value}
    for _ in range(100_000):
        nested = [nested]
    assert KEY.is_shown_by(nested) is True
    while isinstance(nested, list):  # freed level by level, as Python would otherwise recurse
        nested = nested.pop()


@pytest.mark.parametrize("place", ["history", "log"])
def test_run_with_our_key_is_adopted_among_others(place: str) -> None:
    if place == "history":
        runs = [carrying(OTHER_KEY, 43), carrying(KEY, 42, user="juan", event_id="3"), carrying(OTHER_KEY, 41)]
    else:
        runs = [run(43), run(42), run(41)]
    server = ScriptedStarts([LOST], newest=run(40), history=[*runs, run(40)])
    server.logs = {42: f"Parameter runKey = {KEY.value}", 41: f"Parameter runKey = {OTHER_KEY.value}"}

    assert server.start(is_only_starter=False, **KEYED) == Started(42)
    assert server.starts_sent == 1


def test_run_with_another_key_is_not_ours() -> None:
    server = ScriptedStarts([LOST, response(0, 42)], newest=run(40), history=[carrying(OTHER_KEY, 41), run(40)])

    assert server.start(**KEYED) == Started(42)
    assert server.starts_sent == 2
    assert server.clock.now - BEGINNING >= VISIBILITY_GRACE


def test_key_may_show_late() -> None:
    server = ScriptedStarts([LOST], newest=run(40), history=[run(41), run(40)])
    server.clock.at(30, lambda: server.logs.update({41: f"runKey={KEY.value}"}))

    assert server.start(is_only_starter=False, **KEYED) == Started(41)
    assert 30 <= server.clock.now - BEGINNING < VISIBILITY_GRACE


@pytest.mark.parametrize("is_only_starter", [True, False])
def test_run_that_shows_no_key_is_adopted_by_declaration_only(is_only_starter: bool) -> None:
    server = ScriptedStarts([LOST], newest=run(40), history=[run(41), run(40)])
    if is_only_starter:
        assert server.start(**KEYED) == Started(41)
    else:
        with pytest.raises(EtlworksStartUnknown, match="run 41"):
            server.start(is_only_starter=False, **KEYED)
    assert server.clock.now - BEGINNING >= VISIBILITY_GRACE
    assert server.starts_sent == 1


def test_another_starters_run_disproves_the_declaration() -> None:
    server = ScriptedStarts([LOST], newest=run(40), history=[run(42), carrying(OTHER_KEY, 41), run(40)])

    with pytest.raises(EtlworksStartUnknown):
        server.start(**KEYED)
    assert server.starts_sent == 1


def test_full_page_of_other_runs_may_hide_ours() -> None:
    server = ScriptedStarts([LOST], newest=run(40), history=[carrying(OTHER_KEY, 41 + number) for number in range(50)])

    with pytest.raises(EtlworksStartUnknown, match="may not have every run"):
        server.start(**KEYED)
    assert server.starts_sent == 1


def test_two_runs_with_our_key_are_unknown() -> None:
    server = ScriptedStarts([LOST], newest=run(40), history=[carrying(KEY, 42), carrying(KEY, 41), run(40)])

    with pytest.raises(EtlworksStartUnknown, match="several runs carry its key") as unknown:
        server.start(**KEYED)
    assert unknown.value.candidates == (42, 41)


def test_new_key_does_not_judge_an_earlier_start() -> None:
    server = ScriptedStarts(newest=run(41), history=[carrying(OTHER_KEY, 41), run(40)])
    starter = server.starter(is_only_starter=False, **KEYED)

    with pytest.raises(EtlworksStartUnknown):
        server.carry_out(starter.reconcile(40, None))
    assert server.carry_out(starter.reconcile(40, OTHER_KEY)) == 41


# --- The record of an accepted run ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "ending"), [(0, "success"), (VISIBILITY_GRACE - 10, "success"), (10 * VISIBILITY_GRACE, None)]
)
def test_missing_record_is_late_before_it_is_gone(seconds: float, ending: str | None) -> None:
    clock = FastClock()

    found = carry_out(
        read_accepted_run(RunRef(7, 41), clock=clock, log=LOG),
        clock,
        lambda _: GONE if clock.now - BEGINNING < seconds else run(41, status="success"),
    )

    assert (found.status if found else None) == ending
    assert clock.now - BEGINNING < 2 * VISIBILITY_GRACE


def test_unreadable_record_is_an_error() -> None:
    clock = FastClock()

    with pytest.raises(EtlworksServerError):
        carry_out(read_accepted_run(RunRef(7, 41), clock=clock, log=LOG), clock, lambda _: DOWN)
