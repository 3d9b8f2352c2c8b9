"""Stops one run on request. A stop that did not work is reported, not hidden."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from airflow_provider_etlworks.client import endpoints
from airflow_provider_etlworks.client.errors import (
    EtlworksBadRequest,
    EtlworksError,
    EtlworksForbidden,
    EtlworksNotFound,
)
from airflow_provider_etlworks.client.procedure import SendOnce, Sleep

if TYPE_CHECKING:
    from airflow_provider_etlworks.client.call import Call
    from airflow_provider_etlworks.client.models import Execution
    from airflow_provider_etlworks.client.procedure import Procedure
    from airflow_provider_etlworks.runs.types import RunRef

T = TypeVar("T")

_PAUSE = 0.5


@dataclass(frozen=True)
class StopResult:
    """
    The result of a request to stop a run.

    :ivar accepted: whether Etlworks accepted the request. The run may go on for minutes even then.
    :ivar detail: a sentence for a person.
    """

    accepted: bool
    detail: str


def stop_run(run: RunRef, stop_path: str) -> Procedure[StopResult]:
    """
    Ask Etlworks to stop one run. Raises nothing that Etlworks causes: the result says what happened.

    :param run: the run.
    :param stop_path: the path of the stop call. Without ``{audit_id}`` in it, Etlworks stops the flow's newest run, so
        the call is sent only if ``run`` is the newest.
    :return: whether Etlworks accepted the request, and a sentence for a person.
    """
    goes_on = f"R{str(run)[1:]} was NOT stopped and goes on"
    try:
        if "{audit_id}" not in stop_path:
            newest: Execution | None = yield from _send_twice(endpoints.latest_execution(run.flow_id))
            if newest is None or newest.audit_id != run.audit_id:
                return StopResult(
                    accepted=False,
                    detail=f"{goes_on}: the connection's stop_path {stop_path!r} has no {{audit_id}}, so it would "
                    f"stop the newest run, which is {newest.audit_id if newest else 'not known'}.",
                )
        yield from _send_twice(endpoints.stop_flow(run.flow_id, run.audit_id, stop_path))
    except EtlworksForbidden as error:
        return StopResult(False, f"{goes_on}: the user's role may not stop runs (it takes Editor). {error}")
    except (EtlworksNotFound, EtlworksBadRequest) as error:
        return StopResult(
            False,
            f"{goes_on}: this server does not know the stop call. Etlworks documents that it exists, not its path; set "
            f"stop_path in the connection's extra to the one your server has (now {stop_path!r}). {error}",
        )
    except EtlworksError as error:
        return StopResult(False, f"Not certain whether {run} was stopped; it may go on. {error}")
    return StopResult(True, f"Etlworks accepted the stop of {run}. It may take some minutes.")


def _send_twice(call: Call[T]) -> Procedure[T]:
    """Send a call, and once more after a retryable fault. A killed task has little time for more."""
    try:
        value: T = yield SendOnce(call)
    except EtlworksError as error:
        if not error.retryable:
            raise
        yield Sleep(_PAUSE)
        value = yield SendOnce(call)
    return value
