"""What the schedule operator does on a worker: pause or resume schedules, and undo a pause that failed."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from airflow_provider_etlworks.client import endpoints
from airflow_provider_etlworks.client.errors import (
    EtlworksBadRequest,
    EtlworksConfigError,
    EtlworksError,
    EtlworksForbidden,
    EtlworksNotFound,
    EtlworksReplyError,
)
from airflow_provider_etlworks.client.procedure import read_all
from airflow_provider_etlworks.compat import task_state_store
from airflow_provider_etlworks.runs.outage import OutageWait, perform, wait_out
from airflow_provider_etlworks.runs.types import PollPolicy
from airflow_provider_etlworks.worker.arguments import fail_without_retry_on_config_error, parse_ids

if TYPE_CHECKING:
    from collections.abc import Iterable

    from airflow.sdk import Context

    from airflow_provider_etlworks.client.models import Schedule
    from airflow_provider_etlworks.client.procedure import Log
    from airflow_provider_etlworks.hooks.etlworks import EtlworksHook

_STATE_KEY = "etlworks_schedules"
# Answers of a server that does not list schedules, or not for this user.
_CALL_MISSING = (EtlworksNotFound, EtlworksBadRequest, EtlworksForbidden, EtlworksReplyError)


class SchedulesToSwitch(Protocol):
    """The operator's arguments, as its docstring describes them."""

    action: str
    schedule_ids: Any
    flow_ids: Any

    @property
    def hook(self) -> EtlworksHook:
        """The hook of the task's connection."""

    @property
    def log(self) -> Log:
        """The task's log."""


class SwitchSchedulesTask:
    """
    One execution of the schedule operator.

    :param arguments: the operator.
    :param context: the task's context.
    """

    def __init__(self, arguments: SchedulesToSwitch, context: Context) -> None:
        self._arguments = arguments
        self._action = arguments.action
        self._hook = arguments.hook
        self._log = arguments.log
        self._ti = context["ti"]
        self._store = task_state_store(context)

    def run(self) -> list[int]:
        """
        Pause or resume the schedules.

        :return: the ids of the schedules that were changed.
        :raises AirflowFailException: another try would not help.
        :raises EtlworksError: not all schedules could be paused or resumed.
        """
        with fail_without_retry_on_config_error():
            states = self._selected()
        by_earlier_try = self._changed_by_earlier_try()
        wanted = self._action == "resume"
        to_change = [each for each, is_on in states.items() if is_on is not wanted or each in by_earlier_try]
        if self._store is not None:
            self._store.set(_STATE_KEY, {"ids": to_change, "max_tries": self._ti.max_tries})
        kept = [each for each in states if each not in to_change]
        if kept:
            self._log.info("Already %sd, and left as they are: %s.", self._action, _listed(kept))
        self._change(to_change)
        self._log.info("%sd: %s.", self._action.capitalize(), _listed(to_change))
        return to_change

    # --- Which schedules ------------------------------------------------------------------------------------------

    def _selected(self) -> dict[int, bool | None]:
        """Return the selected schedules, and whether each is on; ``None`` if the server does not say."""
        if self._arguments.flow_ids is not None:
            return self._states_by_flow(parse_ids("flow_ids", self._arguments.flow_ids))
        return self._states_by_id(parse_ids("schedule_ids", self._arguments.schedule_ids))

    def _states_by_flow(self, flow_ids: list[int]) -> dict[int, bool | None]:
        if not flow_ids:
            return {}
        try:
            listed = self._list(is_needed=True)
        except _CALL_MISSING as error:
            raise EtlworksConfigError(
                f"The schedules of flow {_listed(flow_ids)} cannot be listed. {error} Listing schedules takes the role "
                "Editor. If the user has it, this server may not have the call: give schedule_ids instead of flow_ids."
            ) from error
        if any(each.flow_id is None for each in listed):
            raise EtlworksConfigError(
                "The list of schedules does not say which flow each of them starts, and nothing is changed on a guess: "
                "give schedule_ids instead of flow_ids."
            )
        return {
            schedule_id: is_on
            for flow_id in flow_ids
            for schedule_id, is_on in _states(each for each in listed if each.flow_id == flow_id).items()
        }

    def _states_by_id(self, schedule_ids: list[int]) -> dict[int, bool | None]:
        if not schedule_ids:
            return {}
        # A resume needs the states only for its result, so it neither waits for them nor fails without them.
        tolerable = (EtlworksError,) if self._action == "resume" else _CALL_MISSING
        try:
            known = _states(self._list(is_needed=self._action == "pause"))
        except tolerable as error:
            self._log.warning(
                "Cannot find out which schedules are on, so all of them count as %sd now. %s", self._action, error
            )
            known = {}
        return {each: known.get(each) for each in schedule_ids}

    def _list(self, *, is_needed: bool) -> list[Schedule]:
        outage = self._outage("No schedule is changed yet") if is_needed else None
        return self._hook.client.run(wait_out(lambda: read_all(endpoints.list_schedules()), outage))

    def _outage(self, goal: str, *, idempotent: bool = True) -> OutageWait:
        return OutageWait(PollPolicy(), clock=self._hook.client.clock, log=self._log, goal=goal, idempotent=idempotent)

    def _changed_by_earlier_try(self) -> set[int]:
        if self._store is None:
            if self._ti.try_number > 1:
                self._log.warning(
                    "An earlier try of this task may have %sd some of the schedules. They do not count as changed: "
                    "before Airflow 3.3, a task cannot store them.",
                    self._action,
                )
            return set()
        stored = self._store.get(_STATE_KEY)
        # Clearing a task changes max_tries, a retry does not: before the clear, others may have changed them back.
        is_retry = isinstance(stored, dict) and stored.get("max_tries") == self._ti.max_tries
        return set(stored["ids"]) if is_retry else set()

    # --- The change -----------------------------------------------------------------------------------------------

    def _change(self, schedule_ids: list[int]) -> None:
        touched: list[int] = []
        try:
            failed = self._send(schedule_ids, self._action, touched)
        except BaseException:  # a time-out of Airflow's, or a fault of our own
            self._undo(touched)
            raise
        if failed:
            still_off = self._undo(touched)
            raise EtlworksError(
                f"{len(failed)} of {len(schedule_ids)} schedules could not be {self._action}d: {_reasons(failed)}"
                + (
                    f" These were paused, could not be resumed, and may be off: {_reasons(still_off)}"
                    if still_off
                    else ""
                )
            )

    def _undo(self, touched: list[int]) -> dict[int, str]:
        """Resume what a failed pause has paused. Returns the schedules that may stay off, and why."""
        if self._action == "resume" or not touched:
            return {}
        self._log.warning("The pause has failed: resuming what it may have paused, %s.", _listed(touched))
        return self._send(touched, "resume", [])

    def _send(self, schedule_ids: list[int], action: str, touched: list[int]) -> dict[int, str]:
        """
        Pause or resume each schedule, also after one has failed.

        :param touched: receives the schedules that are, or may be, changed.
        :return: the schedules that failed, and why.
        """
        switch = self._hook.pause_schedule if action == "pause" else self._hook.resume_schedule
        failed: dict[int, str] = {}
        for each in schedule_ids:
            touched.append(each)
            outage = self._outage(f"Schedule {each} is not {action}d yet", idempotent=False)
            try:
                self._hook.client.run(wait_out(partial(perform, partial(switch, each)), outage))
            except EtlworksError as error:
                self._log.warning("Schedule %s could not be %sd: %s", each, action, error)
                failed[each] = str(error)
                if error.not_processed:
                    touched.remove(each)
        return failed


def _states(schedules: Iterable[Schedule]) -> dict[int, bool | None]:
    return {each.id: each.enabled for each in schedules if each.id is not None}


def _listed(schedule_ids: list[int]) -> str:
    return ", ".join(map(str, schedule_ids)) or "none"


def _reasons(failed: dict[int, str]) -> str:
    return " ".join(f"[{schedule_id}] {reason}" for schedule_id, reason in failed.items())
