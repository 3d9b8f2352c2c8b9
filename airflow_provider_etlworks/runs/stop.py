"""Stops one run on request. A stop that did not work is reported, not hidden."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from airflow_provider_etlworks.client import endpoints
from airflow_provider_etlworks.client.clock import SYSTEM_CLOCK, growing_delays
from airflow_provider_etlworks.client.errors import (
    EtlworksBadRequest,
    EtlworksError,
    EtlworksForbidden,
    EtlworksNotFound,
)
from airflow_provider_etlworks.client.procedure import SendOnce, Sleep

if TYPE_CHECKING:
    from airflow_provider_etlworks.client.call import Call
    from airflow_provider_etlworks.client.clock import Clock
    from airflow_provider_etlworks.client.models import Execution
    from airflow_provider_etlworks.client.procedure import Procedure
    from airflow_provider_etlworks.runs.types import RunRef

T = TypeVar("T")

_PAUSE = 0.5
_LONGEST_PAUSE = 15.0


@dataclass(frozen=True)
class StopResult:
    """
    The result of a request to stop a run.

    :ivar accepted: whether Etlworks accepted the request. The run may go on for minutes even then.
    :ivar detail: a sentence for a person.
    """

    accepted: bool
    detail: str


def not_stopped(run: RunRef) -> str:
    """Return the beginning of a sentence about a run that was certainly not stopped."""
    return f"R{str(run)[1:]} was NOT stopped and goes on"


def stop_run(
    run: RunRef, stop_path: str, *, clock: Clock = SYSTEM_CLOCK, patience: float = 0.0
) -> Procedure[StopResult]:
    """
    Ask Etlworks to stop one run. Errors of Etlworks are not raised: the result says what happened.

    :param run: the run.
    :param stop_path: the path of the stop call. Without ``{audit_id}`` in it, Etlworks stops the flow's newest run, so
        the call is sent only if ``run`` is the newest.
    :param clock: gives the time.
    :param patience: seconds for which a call is repeated after retryable faults. 0 repeats it once, at once: a killed
        task has little time for more.
    :return: whether Etlworks accepted the request, and a sentence for a person.
    """
    goes_on = not_stopped(run)
    until = clock.monotonic() + patience
    try:
        if "{audit_id}" not in stop_path:
            newest: Execution | None = yield from _send_until(until, clock, endpoints.latest_execution(run.flow_id))
            if newest is None or newest.audit_id != run.audit_id:
                return StopResult(
                    accepted=False,
                    detail=f"{goes_on}: the connection's stop_path {stop_path!r} has no {{audit_id}}, so it would "
                    f"stop the newest run, which is {newest.audit_id if newest else 'not known'}.",
                )
        yield from _send_until(until, clock, endpoints.stop_flow(run.flow_id, run.audit_id, stop_path))
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


def _send_until(until: float, clock: Clock, call: Call[T]) -> Procedure[T]:
    """Send a call, and again after each retryable fault: once, and then until a moment of the monotonic clock."""
    delays = growing_delays(_PAUSE, _LONGEST_PAUSE)
    is_first = True
    while True:
        try:
            value: T = yield SendOnce(call)
        except EtlworksError as error:
            if not error.retryable or not (is_first or clock.monotonic() < until):
                raise
            # A caller without time does not wait as long as Etlworks asks.
            retry_after = (getattr(error, "retry_after", None) or 0.0) if clock.monotonic() < until else 0.0
            yield Sleep(max(next(delays), retry_after))
            is_first = False
        else:
            return value
