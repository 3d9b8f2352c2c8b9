"""The operator that pauses and resumes Etlworks's own schedules."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow_provider_etlworks.compat import BaseOperator, task_state_store
from airflow_provider_etlworks.operators.base import HookMixin
from airflow_provider_etlworks.provider_info import DEFAULT_CONN_ID

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from airflow.sdk import Context, XComArg

    from airflow_provider_etlworks.client.models import Schedule

_ACTIONS = ("pause", "resume")
_MEMORY_KEY = "etlworks_schedules"


class EtlworksScheduleOperator(HookMixin, BaseOperator):
    """
    Pause or resume schedules of Etlworks.

    Around an import, as setup and teardown, it keeps flows from starting half-way, and turns on again exactly what it
    turned off, also when a task in between fails::

        pause = EtlworksScheduleOperator(task_id="pause", action="pause", flow_ids=[12346])
        resume = EtlworksScheduleOperator(task_id="resume", action="resume", schedule_ids=pause.output)
        pause.as_setup() >> import_flows >> resume.as_teardown(setups=pause, on_failure_fail_dagrun=True)

    All schedules are tried, also after one has failed. A pause that fails turns on again what it had turned off, since
    Airflow skips the teardown of a setup that failed; a resume that fails leaves on what it could turn on.

    Exactly one of ``schedule_ids`` and ``flow_ids`` is given. Each takes a list, one id, or a list's text. Whether a
    schedule was on before is read from ``GET /v1/schedules``, which Etlworks does not document publicly. Where a server
    does not have it, ``flow_ids`` cannot be used; with ``schedule_ids``, all given ones count as changed.

    :param action: ``"pause"`` or ``"resume"``.
    :param schedule_ids: ids of the schedules. (templated)
    :param flow_ids: ids of flows; all their schedules are meant. (templated)
    :param etlworks_conn_id: the Airflow connection. (templated)
    :return: the ids of the schedules that it turned off, or on: without those that already were. From Airflow 3.3 on,
        what an earlier try turned off or on counts too; before, the log warns that it cannot be told.
    :raises AirflowFailException: an argument or the connection cannot work, or the server does not list schedules:
        another try would not help.
    :raises EtlworksError: not all schedules could be paused or resumed; the message names each of them.
    """

    template_fields: Sequence[str] = ("schedule_ids", "flow_ids", "etlworks_conn_id")
    ui_color = "#f7ecd7"
    ui_fgcolor = "#5b430b"

    def __init__(
        self,
        *,
        action: str,
        schedule_ids: Sequence[int | str] | str | int | XComArg | None = None,
        flow_ids: Sequence[int | str] | str | int | XComArg | None = None,
        etlworks_conn_id: str = DEFAULT_CONN_ID,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.action = action
        self.schedule_ids = schedule_ids
        self.flow_ids = flow_ids
        self.etlworks_conn_id = etlworks_conn_id
        if action not in _ACTIONS:
            raise ValueError(f"{self.task_id}: action is {action!r}; it is {' or '.join(map(repr, _ACTIONS))}.")
        if (schedule_ids is None) == (flow_ids is None):
            given = "both are" if flow_ids is not None else "neither is"
            raise ValueError(f"{self.task_id}: give exactly one of schedule_ids and flow_ids; {given} given.")

    def execute(self, context: Context) -> list[int]:
        """Turn the schedules off or on."""
        from airflow_provider_etlworks.worker.arguments import fail_without_retry_on_config_error

        with fail_without_retry_on_config_error():
            was_on = self._selected(context)
        to_change = self._to_change(context, was_on)
        kept = [each for each in was_on if each not in to_change]
        if kept:
            self.log.info("Already %sd, and left as they are: %s.", self.action, _listed(kept))
        self._change(to_change)
        self.log.info("%sd: %s.", self.action.capitalize(), _listed(to_change))
        return to_change

    # --- Which schedules ------------------------------------------------------------------------------------------

    def _selected(self, context: Context) -> dict[int, bool | None]:
        """Return the selected schedules, and whether each is on; ``None`` where that cannot be told."""
        from airflow_provider_etlworks.worker.arguments import parse_ids

        if self.flow_ids is not None:
            flow_ids = parse_ids("flow_ids", self.flow_ids)
            return {id_: on for flow_id in flow_ids for id_, on in self._schedules_of(flow_id).items()}
        return self._states_of(parse_ids("schedule_ids", self.schedule_ids))

    def _schedules_of(self, flow_id: int) -> dict[int, bool | None]:
        from airflow_provider_etlworks.client.errors import EtlworksConfigError

        try:
            listed = self._list(flow_id)
        except _signs_of_no_such_call() as error:
            raise EtlworksConfigError(
                f"The schedules of flow {flow_id} cannot be listed. {error} Is {flow_id} a flow this user can see? "
                "If so, this server may not have the call, which Etlworks does not document publicly: "
                "give schedule_ids instead of flow_ids."
            ) from error
        if any(each.flow_id is None for each in listed):
            raise EtlworksConfigError(
                f"The list of the schedules of flow {flow_id} does not say which flow each of them starts, and nothing "
                "is changed on a guess: give schedule_ids instead of flow_ids."
            )
        # A server that does not know the filter lists the schedules of all flows.
        return _states(each for each in listed if each.flow_id == flow_id)

    def _states_of(self, schedule_ids: list[int]) -> dict[int, bool | None]:
        from airflow_provider_etlworks.client.errors import EtlworksError

        if not schedule_ids:
            return {}
        # A resume is not held up by what it needs for its result only.
        tolerable = (EtlworksError,) if self.action == "resume" else _signs_of_no_such_call()
        try:
            known = _states(self._list())
        except tolerable as error:
            self.log.warning(
                "It cannot be told which schedules are on: all are taken to be %sd. %s", self.action, error
            )
            known = {}
        return {each: known.get(each) for each in schedule_ids}

    def _list(self, flow_id: int | None = None) -> list[Schedule]:
        from airflow_provider_etlworks.client import endpoints

        return list(self.hook.client.iterate(endpoints.list_schedules(flow_id)))

    def _to_change(self, context: Context, was_on: dict[int, bool | None]) -> list[int]:
        """Return the schedules that are not yet as they should be, and those that an earlier try has changed."""
        turns_on = self.action == "resume"
        by_earlier_try = self._recall(context)
        to_change = [each for each, on in was_on.items() if on is not turns_on or each in by_earlier_try]
        self._save_intent(context, to_change)
        return to_change

    def _recall(self, context: Context) -> set[int]:
        store, ti = task_state_store(context), context["ti"]
        if store is None:
            if ti.try_number > 1:
                self.log.warning(
                    "An earlier try of this task may have %sd some of the schedules. They do not count as changed: "
                    "before Airflow 3.3, a task cannot remember them.",
                    self.action,
                )
            return set()
        kept = store.get(_MEMORY_KEY)
        # Clearing a task changes max_tries, a retry does not: what was changed then may have been changed back since.
        return set(kept["ids"]) if isinstance(kept, dict) and kept.get("max_tries") == ti.max_tries else set()

    def _save_intent(self, context: Context, to_change: list[int]) -> None:
        store = task_state_store(context)
        if store is not None:
            store.set(_MEMORY_KEY, {"ids": to_change, "max_tries": context["ti"].max_tries})

    # --- The change -----------------------------------------------------------------------------------------------

    def _change(self, schedule_ids: list[int]) -> None:
        from airflow_provider_etlworks.client.errors import EtlworksError

        touched: list[int] = []
        try:
            failed = self._send(schedule_ids, self.action, touched)
        except BaseException:  # a time-out of Airflow's, or a fault of our own
            self._undo(touched)
            raise
        if failed:
            still_off = self._undo(touched)
            raise EtlworksError(
                f"{len(failed)} of {len(schedule_ids)} schedules could not be {self.action}d: {_told(failed)}"
                + (f" These were paused, could not be resumed, and may be off: {_told(still_off)}" if still_off else "")
            )

    def _undo(self, touched: list[int]) -> dict[int, str]:
        """Turn on again what a pause turned off that has failed as a whole. Returns what may stay off, and why."""
        if self.action == "resume" or not touched:
            return {}
        self.log.warning("The pause has failed: resuming what it may have paused, %s.", _listed(touched))
        return self._send(touched, "resume", [])

    def _send(self, schedule_ids: list[int], action: str, touched: list[int]) -> dict[int, str]:
        """
        Pause or resume each schedule, also after one has failed.

        :param touched: is filled with those that are, or may be, changed.
        :return: why some failed.
        """
        from airflow_provider_etlworks.client.errors import EtlworksError

        send = self.hook.pause_schedule if action == "pause" else self.hook.resume_schedule
        failed: dict[int, str] = {}
        for each in schedule_ids:
            touched.append(each)
            try:
                send(each)
            except EtlworksError as error:
                self.log.warning("Schedule %s could not be %sd: %s", each, action, error)
                failed[each] = str(error)
                if error.not_processed:
                    touched.remove(each)
        return failed


def _states(schedules: Iterable[Schedule]) -> dict[int, bool | None]:
    return {each.id: each.enabled for each in schedules if each.id is not None}


def _listed(schedule_ids: list[int]) -> str:
    return ", ".join(map(str, schedule_ids)) or "none"


def _told(failed: dict[int, str]) -> str:
    return " ".join(f"[{schedule_id}] {reason}" for schedule_id, reason in failed.items())


def _signs_of_no_such_call() -> tuple[type[Exception], ...]:
    from airflow_provider_etlworks.client import errors

    return errors.EtlworksNotFound, errors.EtlworksBadRequest, errors.EtlworksForbidden, errors.EtlworksReplyError
