"""Every difference between the supported Airflow versions, and nothing else. No other module checks a version."""

from __future__ import annotations

import importlib
import os
from inspect import signature
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datetime import timedelta

    from airflow.dag_processing.dagbag import DagBag
    from airflow.observability.stats import Stats as ComponentStats
    from airflow.sdk import (
        Asset,
        BaseHook,
        BaseOperator,
        BaseOperatorLink,
        BaseSensorOperator,
        Context,
        ObjectStoragePath,
        PokeReturnValue,
        TaskGroup,
    )
    from airflow.sdk.configuration import conf
    from airflow.sdk.exceptions import (
        AirflowFailException,
        AirflowNotFoundException,
        AirflowSensorTimeout,
        AirflowSkipException,
        AirflowTaskTimeout,
    )
    from airflow.sdk.observability.stats import Stats as TaskStats
    from airflow.triggers.base import BaseTrigger
else:
    try:
        from airflow.sdk import BaseOperator, BaseOperatorLink
    except ImportError:  # Airflow 2
        from airflow.models.baseoperator import BaseOperator
        from airflow.models.baseoperatorlink import BaseOperatorLink

    try:
        from airflow.sdk.configuration import conf
    except ImportError:  # before Airflow 3.2
        from airflow.configuration import conf

    try:
        from airflow.sdk.exceptions import (
            AirflowFailException,
            AirflowNotFoundException,
            AirflowSensorTimeout,
            AirflowSkipException,
            AirflowTaskTimeout,
        )
    except ImportError:  # before Airflow 3.2
        from airflow.exceptions import (
            AirflowFailException,
            AirflowNotFoundException,
            AirflowSensorTimeout,
            AirflowSkipException,
            AirflowTaskTimeout,
        )

REJECTED_BY_KEY = "rejected_by"
"""XCom key of an approval task: who rejected."""

__all__ = [
    "REJECTED_BY_KEY",
    "AirflowFailException",
    "AirflowNotFoundException",
    "AirflowSensorTimeout",
    "AirflowSkipException",
    "AirflowTaskTimeout",
    "Asset",
    "BaseHook",
    "BaseOperator",
    "BaseOperatorLink",
    "BaseSensorOperator",
    "ComponentStats",
    "DagBag",
    "ObjectStoragePath",
    "PokeReturnValue",
    "TaskGroup",
    "TaskStats",
    "approval_task",
    "conf",
    "dag_schedule",
    "get_xcom",
    "is_in_mapped_task",
    "let_commands_read_connections",
    "read_asset_states",
    "read_checkpoint",
    "task_state_store",
    "task_states",
    "write_checkpoint",
]


_IMPORTED_LATE = {
    "Asset": ("airflow.sdk:Asset", "airflow.datasets:Dataset"),
    "BaseHook": ("airflow.sdk.bases.hook:BaseHook", "airflow.hooks.base:BaseHook"),
    "BaseSensorOperator": ("airflow.sdk.bases.sensor:BaseSensorOperator", "airflow.sensors.base:BaseSensorOperator"),
    # From Airflow 3.2 on, each of the two is set up in its own processes only.
    "ComponentStats": ("airflow.observability.stats:Stats", "airflow.stats:Stats"),
    "DagBag": ("airflow.dag_processing.dagbag:DagBag", "airflow.models.dagbag:DagBag"),
    "ObjectStoragePath": ("airflow.sdk:ObjectStoragePath", "airflow.io.path:ObjectStoragePath"),
    "PokeReturnValue": ("airflow.sdk.bases.sensor:PokeReturnValue", "airflow.sensors.base:PokeReturnValue"),
    "TaskGroup": ("airflow.sdk:TaskGroup", "airflow.utils.task_group:TaskGroup"),
    "TaskStats": ("airflow.sdk.observability.stats:Stats", "airflow.stats:Stats"),
    "XCom": ("airflow.sdk.execution_time.xcom:XCom", "airflow.models.xcom:XCom"),
    "Variable": ("airflow.sdk:Variable", "airflow.models:Variable"),
    "get_current_context": ("airflow.sdk:get_current_context", "airflow.operators.python:get_current_context"),
}
"""What not every DAG file needs: where the newest Airflow has it, and where an older one does."""


def _import_late(name: str) -> Any:
    newest, older = _IMPORTED_LATE[name]
    for place in (newest, older):
        module, _, attribute = place.partition(":")
        try:
            return getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError):
            if place is older:
                raise
    raise AssertionError("the loop returns or raises")


if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """Import what not every DAG file needs, when it is first used."""
        if name not in _IMPORTED_LATE:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return _import_late(name)


def is_in_mapped_task() -> bool:
    """Return whether this process runs a mapped task instance."""
    get_current_context = _import_late("get_current_context")
    try:
        map_index = getattr(get_current_context()["ti"], "map_index", -1)
    except Exception:  # noqa: BLE001  # outside of a task, each Airflow raises another error
        return False
    return isinstance(map_index, int) and map_index >= 0


def task_state_store(context: Context) -> Any | None:
    """Return the store that keeps a task's state across its tries; ``None`` before Airflow 3.3, which has none."""
    return context.get("task_state_store")


async def read_checkpoint(trigger: BaseTrigger, key: str) -> Any | None:
    """
    Return the checkpoint of an asset trigger; ``None`` if it has stored none yet.

    :param trigger: the trigger, while Airflow runs it.
    :param key: names the checkpoint.
    """
    if not hasattr(trigger, "asset_state_store"):  # before Airflow 3.3
        return await _in_thread(_import_late("Variable").get, key, default=None, deserialize_json=True)
    for store in _asset_stores(trigger):
        checkpoint = await store.aget(key)
        if checkpoint is not None:
            return checkpoint
    return None


async def read_asset_states(trigger: BaseTrigger, key: str) -> list[Any | None]:
    """
    Return what each asset that a trigger watches has stored under a key; before Airflow 3.3, nothing.

    :param trigger: the trigger, while Airflow runs it.
    :param key: the key.
    """
    if not hasattr(trigger, "asset_state_store"):  # before Airflow 3.3
        return []
    return [await store.aget(key) for store in _asset_stores(trigger)]


async def write_checkpoint(trigger: BaseTrigger, key: str, checkpoint: Any) -> None:
    """
    Store the checkpoint of an asset trigger: with its assets, or before Airflow 3.3 as a variable.

    :param trigger: the trigger, while Airflow runs it.
    :param key: names the checkpoint.
    :param checkpoint: JSON, not ``None``.
    """
    if not hasattr(trigger, "asset_state_store"):  # before Airflow 3.3
        await _in_thread(_import_late("Variable").set, key, checkpoint, serialize_json=True)
        return
    for store in _asset_stores(trigger):
        await store.aset(key, checkpoint)


def _asset_stores(trigger: Any) -> list[Any]:
    """Return the state stores of all assets that a trigger watches."""
    # Airflow has no public way to list them.
    return [] if trigger.asset_state_store is None else list(trigger.asset_state_store._by_name.values())  # noqa: SLF001


async def _in_thread(function: Any, *args: Any, **kwargs: Any) -> Any:
    # Airflow's own requests to its API server find the event loop by what this function leaves in the thread.
    from asgiref.sync import sync_to_async

    return await sync_to_async(function)(*args, **kwargs)


async def task_state(task_instance: Any) -> str | None:
    """
    Return the present state of a trigger's task; ``None`` if it has none. Needs Airflow 3.3.

    :param task_instance: the trigger's ``task_instance``.
    """
    from airflow.sdk.execution_time import comms, task_runner

    question = comms.GetTaskStates(
        dag_id=task_instance.dag_id,
        run_ids=[task_instance.run_id],
        task_ids=[task_instance.task_id],
        map_index=task_instance.map_index,
    )
    response: Any = await task_runner.SUPERVISOR_COMMS.asend(question)
    # Airflow adds the map index to the task's id.
    states = list(response.task_states.get(task_instance.run_id, {}).values())
    return states[0] if states else None


def task_states(context: Context, task_ids: list[str]) -> dict[str, str | None]:
    """Return the present states of tasks of this DAG run, by their ids."""
    ti = context["ti"]
    if hasattr(ti, "get_task_states"):
        states = ti.get_task_states(dag_id=ti.dag_id, task_ids=task_ids, run_ids=[ti.run_id]).get(ti.run_id, {})
    else:  # Airflow 2
        dag_run: Any = context["dag_run"]
        states = {each.task_id: each.state for each in dag_run.get_task_instances()}
    return {task_id: states.get(task_id) for task_id in task_ids}


def approval_task(*, timeout: timedelta | None, **arguments: Any) -> BaseOperator:
    """
    Return a task that waits until a person approves or rejects.

    :param timeout: how long it waits; ``None`` is without limit.
    :param arguments: other arguments of Airflow's ``ApprovalOperator``.
    :raises ImportError: this is Airflow before 3.1, or apache-airflow-providers-standard is not installed.
    """
    import airflow.sdk.execution_time.hitl  # noqa: F401  # the provider raises an error of its own kind before 3.1
    from airflow.providers.standard.operators.hitl import ApprovalOperator, HITLOperator

    if "response_timeout" in signature(HITLOperator.__init__).parameters:
        # Without the DAG's own execution_timeout, which would limit the person's time, too.
        timeouts: dict[str, Any] = {"response_timeout": timeout, "execution_timeout": None}
    else:  # with the provider of Airflow 3.1's days
        timeouts = {"execution_timeout": timeout}

    class PromotionApprovalOperator(ApprovalOperator):
        """Waits for an answer, and says who rejected."""

        def execute_complete(self, context: Context, event: dict[str, Any]) -> Any:
            """Go on after the answer."""
            if self.REJECT in (event.get("chosen_options") or []):
                user = event.get("responded_by_user")
                who = (user.get("name") if isinstance(user, dict) else None) or "somebody"
                context["ti"].xcom_push(key=REJECTED_BY_KEY, value=who)
                self.log.warning("Rejected by %s, nothing was imported.", who)
            return super().execute_complete(context, event)

    return PromotionApprovalOperator(**timeouts, **arguments)


def let_commands_read_connections() -> None:
    """
    Let this process read connections from Airflow's database, too, as Airflow's own commands do.

    Without it, Airflow 3.2 and later (which have our commands) search only the environment and the secrets backends.
    """
    os.environ["_AIRFLOW_PROCESS_CONTEXT"] = "server"


def dag_schedule(context: Context) -> str:
    """Return the schedule of a task's DAG, for people."""
    timetable = getattr(context.get("dag"), "timetable", None)
    if timetable is None or not getattr(timetable, "can_be_scheduled", True):
        return "none"
    # On Airflow 3, the timetables of the Task SDK have no summary.
    return str(getattr(timetable, "summary", None) or getattr(timetable, "expression", None) or timetable)[:200]


def get_xcom(ti_key: Any, key: str) -> Any:
    """Return a task instance's XCom value; ``None`` if there is none."""
    return _import_late("XCom").get_value(ti_key=ti_key, key=key)
