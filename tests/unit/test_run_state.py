"""The phases of one execution, and what a kill may stop in each."""

from __future__ import annotations

import pytest

from airflow_provider_etlworks.runs.types import RunRef
from airflow_provider_etlworks.worker.state import Phase, RunState

RUN = RunRef(flow_id=7, audit_id=41)


def test_execution_goes_from_idle_to_done() -> None:
    state = RunState()
    seen = [(state.phase, state.watermark, state.own_run)]
    state.starting(40)
    seen.append((state.phase, state.watermark, state.own_run))
    state.running(RUN)
    seen.append((state.phase, state.watermark, state.own_run))
    state.done()
    seen.append((state.phase, state.watermark, state.own_run))

    assert seen == [
        (Phase.IDLE, 0, None),
        (Phase.STARTING, 40, None),
        (Phase.RUNNING, 0, RUN),
        (Phase.DONE, 0, None),
    ]


def test_refused_start_leaves_nothing_to_stop() -> None:
    state = RunState()
    state.starting(40)
    state.idle()

    assert (state.phase, state.own_run) == (Phase.IDLE, None)


def test_foreign_run_is_not_stopped() -> None:
    state = RunState()
    state.running(RUN, is_ours=False)

    assert (state.phase, state.own_run) == (Phase.RUNNING, None)


def test_no_start_while_a_run_is_known() -> None:
    state = RunState()
    state.running(RUN)

    with pytest.raises(RuntimeError, match="from running to starting"):
        state.starting(41)
    assert state.own_run == RUN


@pytest.mark.parametrize("transition", ["idle", "done"])
def test_done_is_final(transition: str) -> None:
    state = RunState()
    state.done()

    with pytest.raises(RuntimeError, match=f"from done to {transition}"):
        getattr(state, transition)()
