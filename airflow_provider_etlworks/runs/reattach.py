"""What a new try of a task does about the run that an earlier try started."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

from airflow_provider_etlworks.runs.outcome import Outcome, outcome_of

if TYPE_CHECKING:
    from airflow_provider_etlworks.client.models import Execution


class ReattachDecision(Enum):
    """What a new try does about the run of an earlier one."""

    FOLLOW = "follow"
    DONE = "done"
    START = "start"
    REPLACE = "replace"


def decide_reattach(
    execution: Execution | None,
    *,
    stop_asked: bool = False,
    cleared: bool = False,
    cancel_on_kill: bool = True,
    fail_on_warning: bool = False,
) -> ReattachDecision:
    """
    Say what to do about the run that an earlier try of the same task started.

    :param execution: that run's record; ``None`` if it is gone.
    :param stop_asked: whether we asked Etlworks to stop it: then it counts as ended badly, whatever its status says
        later, since a stopped streaming flow ends as ``success``.
    :param cleared: whether somebody cleared the task since, and so wants a new run.
    :param cancel_on_kill: whether a run is stopped when its task is cleared.
    :param fail_on_warning: whether ``warning`` is a failure.
    :return: follow it; it is done; start a new one; or stop it and start a new one.
    """
    if execution is None or stop_asked:
        return ReattachDecision.START
    outcome = outcome_of(execution, fail_on_warning=fail_on_warning)
    if outcome is Outcome.GOING:
        return ReattachDecision.REPLACE if cleared and cancel_on_kill else ReattachDecision.FOLLOW
    return ReattachDecision.DONE if outcome is Outcome.SUCCESS and not cleared else ReattachDecision.START
