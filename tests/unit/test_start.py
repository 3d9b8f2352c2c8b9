"""A start, run by hand: what its response means, the order of its calls, and the intent that is saved."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from support.starts import GONE, ScriptedStarts, ended, response, run

from airflow_provider_etlworks.client.errors import (
    EtlworksAlreadyRunning,
    EtlworksConfigError,
    EtlworksError,
    EtlworksForbidden,
    EtlworksRefused,
    EtlworksReplyError,
    EtlworksServerError,
    EtlworksStartRefused,
    EtlworksStartUnknown,
    EtlworksUnreachable,
)
from airflow_provider_etlworks.runs.follow import VISIBILITY_GRACE
from airflow_provider_etlworks.runs.start import OnAlreadyRunning, Started, StartVerdict, classify

if TYPE_CHECKING:
    from airflow_provider_etlworks.client.call import Call

LOST = EtlworksUnreachable("Connection reset.")
NOT_SENT = EtlworksUnreachable("Connection refused.", not_processed=True)
DOWN = EtlworksServerError("Bad gateway.", status=502)
FORBIDDEN = EtlworksForbidden("The role does not allow it.", status=403)
UNSUCCESSFUL = EtlworksRefused("Not today.", status=200)
REDIRECTED = EtlworksError("Redirected.")  # as every error that says neither that it passes nor that nothing happened


# --- What a response means ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "verdict"),
    [
        (response(0, 41), StartVerdict.ACCEPTED),
        (response(0), StartVerdict.IN_DOUBT),
        (response(1, 40), StartVerdict.BUSY),
        (response(1), StartVerdict.BUSY),
        (response(2, 41), StartVerdict.IN_DOUBT),
        (response(2), StartVerdict.REFUSED),
        (response(3, 41), StartVerdict.IN_DOUBT),
        (response(3), StartVerdict.REFUSED),
        (response(4, 41), StartVerdict.ACCEPTED),
        (response(4), StartVerdict.IN_DOUBT),
        (response(5, 41), StartVerdict.ACCEPTED),
        (response(5), StartVerdict.IN_DOUBT),
        (response(None, 41), StartVerdict.ACCEPTED),
        (response(None), StartVerdict.IN_DOUBT),
        (response(6, 41), StartVerdict.IN_DOUBT),
        (response(-1), StartVerdict.IN_DOUBT),
        (response(0, 40), StartVerdict.IN_DOUBT),  # older than the start
        (response(0, 41, flowId=8), StartVerdict.IN_DOUBT),  # about another flow
        (NOT_SENT, StartVerdict.REFUSED),
        (FORBIDDEN, StartVerdict.REFUSED),
        (LOST, StartVerdict.IN_DOUBT),
        (DOWN, StartVerdict.IN_DOUBT),
        (EtlworksReplyError("Half a document."), StartVerdict.IN_DOUBT),
        (UNSUCCESSFUL, StartVerdict.IN_DOUBT),
        (REDIRECTED, StartVerdict.IN_DOUBT),
    ],
)
def test_response_is_classified(said: Any, verdict: StartVerdict) -> None:
    assert classify(said, flow_id=7, watermark=40) is verdict


# --- The intent -----------------------------------------------------------------------------------------------------


def test_intent_is_saved_before_start_is_sent() -> None:
    server = ScriptedStarts([response(0, 41)], newest=run(40))

    assert server.start() == Started(41)
    assert server.order == ["GET executions", "save", "POST run"]
    assert server.saved == [40]


@pytest.mark.parametrize(("before", "watermark"), [([], 0), (GONE, 0), ([run(40)], 40)])
def test_watermark_comes_from_history_without_newest_run(before: Any, watermark: int) -> None:
    server = ScriptedStarts([LOST], newest=None, history=before)
    server.after_the_start = lambda: setattr(server, "history", [run(41), run(40)] if watermark else [run(41)])

    assert server.start() == Started(41)
    assert server.saved == [watermark]


@pytest.mark.parametrize("refused", [NOT_SENT, GONE, response(2), response(3)])
def test_certain_refusal_clears_intent(refused: Any) -> None:
    server = ScriptedStarts([refused], newest=run(40))

    with pytest.raises(EtlworksError):
        server.start()
    assert server.saved == [40, None]


@pytest.mark.parametrize("starts", [[LOST, LOST], [response(0)], [response(None)]])
def test_start_in_doubt_keeps_intent(starts: list[Any]) -> None:
    server = ScriptedStarts(starts, newest=run(40), history=[run(40)])

    with pytest.raises(EtlworksStartUnknown, match="newer than 40"):
        server.start()
    assert server.saved == [40]


@pytest.mark.parametrize("second", [FORBIDDEN, NOT_SENT, response(2), response(3), UNSUCCESSFUL, REDIRECTED])
def test_refusal_of_second_start_keeps_intent_of_first(second: Any) -> None:
    server = ScriptedStarts([LOST, second], newest=run(40), history=[run(40)])

    with pytest.raises(EtlworksError) as failure:
        server.start()
    assert failure.value is second or isinstance(failure.value, EtlworksStartRefused)
    assert server.saved == [40]
    assert server.starts_sent == 2


def test_busy_after_start_in_doubt_keeps_intent_and_watermark() -> None:
    busy = ScriptedStarts([LOST, response(1)], newest=run(40), history=[run(40)])
    with pytest.raises(EtlworksAlreadyRunning):
        busy.start()
    assert busy.saved == [40]

    # The run in the way ends, and what the first start began shows only now.
    late = ScriptedStarts([LOST, response(1, 40)], newest=run(40), history=[run(40)])
    late.clock.at(140, lambda: setattr(late, "newest", ended(run(40))))
    late.clock.at(140, lambda: setattr(late, "history", [run(41), ended(run(40))]))
    assert late.start(on_already_running=OnAlreadyRunning.WAIT) == Started(41)
    assert late.saved == [40]
    assert late.starts_sent == 2


@pytest.mark.parametrize("said", [UNSUCCESSFUL, REDIRECTED, response(5), response(2, 41), response(0, 39)])
def test_answer_that_may_hide_a_run_is_reconciled(said: Any) -> None:
    dropped = ScriptedStarts([said], newest=run(40), history=[run(40)])
    with pytest.raises(EtlworksError):
        dropped.start()
    assert dropped.saved == [40]
    assert dropped.starts_sent == 1

    carried_out = ScriptedStarts([said], newest=run(40), history=[run(40)])
    carried_out.after_the_start = lambda: setattr(carried_out, "history", [run(41), run(40)])
    assert carried_out.start() == Started(41)
    assert carried_out.starts_sent == 1


def test_refusal_is_raised_with_servers_words() -> None:
    for said, kind in ((UNSUCCESSFUL, EtlworksRefused), (response(5, exception="No table"), EtlworksStartRefused)):
        server = ScriptedStarts([said], newest=run(40), history=[run(40)])
        with pytest.raises(kind, match=r"Not today|No table"):
            server.start()


def test_nothing_is_sent_while_watermark_cannot_be_read() -> None:
    server = ScriptedStarts([], newest=DOWN)

    with pytest.raises(EtlworksServerError):
        server.start()
    assert server.order == ["GET executions"]


def test_start_without_run_is_sent_again_after_grace() -> None:
    server = ScriptedStarts([LOST, response(0, 41)], newest=run(40), history=[run(40), run(39), run(38)])
    began = server.clock.now

    assert server.start() == Started(41)
    assert server.starts_sent == 2
    assert server.clock.now - began >= VISIBILITY_GRACE


# --- The key --------------------------------------------------------------------------------------------------------


def test_each_start_carries_a_key_of_its_own() -> None:
    server = ScriptedStarts()
    starter = server.starter(run_key_parameter="runKey", run_key="dag/task/2026-05-09 00:00/-1/1")
    other = server.starter(run_key_parameter="runKey", run_key="dag/task/2026-05-09 00:00/-1/1")

    assert starter.key is not None
    assert other.key is not None
    assert starter.key.value.startswith("dag/task/2026-05-09_00:00/-1/1/")
    assert starter.key != other.key
    assert server.starter().key is None


def test_key_is_sent_as_parameter() -> None:
    server = ScriptedStarts([response(0, 41)], newest=run(40))
    bodies: list[Any] = []
    answer = server.answer

    def keep(call: Call[Any]) -> Any:
        bodies.append(call.body)
        return answer(call)

    server.answer = keep  # type: ignore[method-assign]
    starter = server.starter(parameters={"runDate": "2026-05-09"}, run_key_parameter="runKey", run_key="dag")
    server.carry_out(starter.start())

    assert starter.key is not None
    assert f'"runKey": "{starter.key.value}"'.encode() in bodies[-1].replace(b'":"', b'": "')
    assert starter.parameters == {"runDate": "2026-05-09"}


def test_parameter_of_key_is_not_for_anything_else() -> None:
    with pytest.raises(EtlworksConfigError, match="run_key_parameter"):
        ScriptedStarts().starter(parameters={"runKey": "mine"}, run_key_parameter="runKey")


# --- Another run is in the way --------------------------------------------------------------------------------------


def test_waiting_for_run_in_the_way_clears_intent() -> None:
    server = ScriptedStarts([response(1, 40), response(0, 41)], newest=run(40))
    server_answer, polls = server.answer, iter([run(40)] * 3 + [ended(run(40))] * 3)

    def answer(call: Call[Any]) -> Any:
        return server_answer(call) if call.method == "POST" else next(polls)

    server.answer = answer  # type: ignore[method-assign]

    assert server.start(on_already_running=OnAlreadyRunning.WAIT) == Started(41)
    assert server.saved == [40, None, 40]


def test_hidden_run_in_the_way_is_waited_for_only_if_asked() -> None:
    busy = [response(1)] * 500
    server = ScriptedStarts([*busy, response(0, 41)], newest=ended(run(40)))

    assert server.start(on_already_running=OnAlreadyRunning.WAIT) == Started(41)

    server = ScriptedStarts(busy, newest=ended(run(40)))
    with pytest.raises(EtlworksAlreadyRunning, match="shows no run that is going"):
        server.start()


def test_run_in_the_way_without_record_is_hidden() -> None:
    server = ScriptedStarts([response(1, 41)] * 500, newest=ended(run(40)))

    with pytest.raises(EtlworksAlreadyRunning, match="shows no run that is going") as busy:
        server.start()
    assert busy.value.audit_id == 41
