"""Does Etlworks also schedule the flow that a task is about to start?"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from airflow_provider_etlworks.client.endpoints import list_schedules
from airflow_provider_etlworks.client.errors import EtlworksConfigError, EtlworksError, EtlworksUnauthorized
from airflow_provider_etlworks.client.rate_limit import Priority
from airflow_provider_etlworks.compat import dag_schedule

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_provider_etlworks.client.models import Schedule
    from airflow_provider_etlworks.client.procedure import Log
    from airflow_provider_etlworks.hooks.etlworks import EtlworksHook

# Etlworks lists all schedules in one answer. A server that pages would cap this.
_MOST_IN_ONE_REQUEST = 10_000
_NAMED = 5


def check_etlworks_schedule(policy: str, flow_id: int, hook: EtlworksHook, context: Context, log: Log) -> None:
    """
    Warn or fail if a flow also has a schedule in Etlworks that is on.

    It takes one request per start. Nothing is kept for the next one: in Airflow, each task has a process of its own.

    :param policy: ``"warn"``, ``"fail"`` or ``"ignore"``; the last sends nothing.
    :param flow_id: the flow.
    :param hook: the hook of the connection.
    :param context: the task's context.
    :param log: the task's log.
    :raises EtlworksConfigError: it has one, and the policy is ``"fail"``.
    :raises EtlworksUnauthorized: the credentials are refused.
    :raises EtlworksError: the schedules cannot be read, and the policy is ``"fail"``.
    """
    if policy == "ignore":
        return
    try:
        listed = _list(hook, thoroughly=policy == "fail")
    except EtlworksUnauthorized:
        # The start would be refused, too, and a second wrong password may lock the account.
        raise
    except EtlworksError as error:
        if policy == "fail":
            raise
        log.info(
            "Whether Etlworks also schedules flow %s is not known, as its schedules cannot be read: %s "
            "on_etlworks_schedule='ignore' does not ask.",
            flow_id,
            error,
        )
        return
    enabled = [each for each in listed if each.flow_id == flow_id and each.enabled]
    if not enabled:
        return
    message = (
        f"Flow {flow_id} is also scheduled in Etlworks: {_named(enabled)}. The schedule of this DAG is "
        f"{dag_schedule(context)}. While a run of Airflow is going, Etlworks does not start the runs of its own "
        "schedule. Turn one of the two off, for example with `airflow etlworks adopt`, or set "
        "on_etlworks_schedule='ignore'."
    )
    if policy == "fail":
        raise EtlworksConfigError(message)
    log.warning(message)


def _list(hook: EtlworksHook, *, thoroughly: bool) -> list[Schedule]:
    if thoroughly:
        return list(hook.list_schedules())
    # A warning is not worth a retry.
    page = replace(list_schedules(), limit=_MOST_IN_ONE_REQUEST).first()
    return list(hook.client.send(page, attempts=1, priority=Priority.START).items)


def _named(schedules: list[Schedule]) -> str:
    named = [f"{each.name or each.id!r} ({each.schedule or 'no times'})" for each in schedules[:_NAMED]]
    more = len(schedules) - len(named)
    return ", ".join(named) + (f" and {more} more" if more else "")
