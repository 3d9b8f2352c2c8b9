"""
Finds the run of a start that is in doubt: it was sent, and its response does not say whether it started a run.

The candidates are the flow's runs that are newer than the watermark, the newest audit id before the start. One of them
is adopted only with proof, or if nobody else starts the flow. A candidate that is not adopted forbids a second start.
"""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from airflow_provider_etlworks.client import endpoints
from airflow_provider_etlworks.client.clock import growing_delays
from airflow_provider_etlworks.client.errors import EtlworksError, EtlworksNotFound, EtlworksStartUnknown
from airflow_provider_etlworks.client.procedure import ReadHead, SendOnce, Sleep
from airflow_provider_etlworks.runs.defaults import DEFAULT_PATIENCE
from airflow_provider_etlworks.runs.follow import VISIBILITY_GRACE

if TYPE_CHECKING:
    from airflow_provider_etlworks.client.clock import Clock
    from airflow_provider_etlworks.client.models import Execution
    from airflow_provider_etlworks.client.procedure import Log, Procedure
    from airflow_provider_etlworks.runs.types import RunRef

_FIRST_DELAY = 1.0
_LONGEST_DELAY = 10.0
_HISTORY_PAGE = 50
# Parameters are logged when a run starts, so the beginning of its log is enough, however long the log is.
_LONGEST_LOG_HEAD = 1_048_576
_LONGEST_KEY_PREFIX = 200
_SCHEDULER = "scheduler"


@dataclass(frozen=True)
class RunKey:
    """
    The proof of whose run it is: a flow parameter that a start filled with a unique value.

    :ivar parameter: the name of the flow parameter.
    :ivar value: the unique value.
    """

    parameter: str
    value: str

    @classmethod
    def unique(cls, parameter: str, prefix: str, token: str) -> RunKey:
        """
        Make the key of one start.

        :param parameter: the name of the flow parameter.
        :param prefix: what a person reads in Etlworks, such as DAG, task, run, map index and try.
        :param token: what makes the key unique, as :func:`new_token` returns it.
        """
        # Only characters that stay as they are in a URL, a log line or a quoted text.
        readable = re.sub(r"[^A-Za-z0-9._:+/-]", "_", prefix)[:_LONGEST_KEY_PREFIX]
        return cls(parameter, f"{readable}/{token}" if readable else token)

    def is_shown_by(self, shown: Any) -> bool | None:
        """
        Return whether a run's record or log shows this key.

        :param shown: the record as JSON, or the log as text.
        :return: ``True`` for this key, ``False`` for the same parameter with another value, ``None`` for neither.
        """
        name = re.escape(self.parameter)
        assignment = re.compile(rf"""(?<![\w.]){name}["']?\s*[:=]\s*["']?([^\s"',;&}}\]]+)""")
        token = self.value.rpartition("/")[2]
        shows_another = False
        pending = [shown]
        while pending:
            item = pending.pop()
            if isinstance(item, str):
                if token in item:
                    return True
                # A value that is masked or cut may be this one.
                values = (each.rstrip("*.…") for each in assignment.findall(item))
                shows_another = shows_another or not all(map(self.value.startswith, values))
            elif isinstance(item, list):
                pending += item
            elif isinstance(item, dict):
                pending += item.values()
                named = item.get("value") if item.get("name") == self.parameter else item.get(self.parameter)
                if isinstance(named, str):
                    pending.append(f"{self.parameter}={named}")
        return False if shows_another else None


def new_token() -> str:
    """Return a text that no other start has."""
    return uuid.uuid4().hex


@dataclass(frozen=True)
class SentStart:
    """
    A start that was sent and may or may not have started a run.

    :ivar flow_id: the flow.
    :ivar watermark: the flow's newest audit id before the start.
    :ivar user: the login that sent it; ``None`` if it is not known (API key).
    :ivar is_only_starter: whether nobody else starts this flow, so that the only new run is this start's.
    :ivar key: the key that the start carried; ``None`` if it carried none.
    """

    flow_id: int
    watermark: int
    user: str | None = None
    is_only_starter: bool = False
    key: RunKey | None = None

    def unknown(self, why: str, runs: list[Execution]) -> EtlworksStartUnknown:
        """Return the error that names the candidates and what to check."""
        if runs:
            advice = (
                f"Check in Etlworks whether the start time, user and parameters of {_listed(runs)} are this start's. "
                "The connection's run_key_parameter makes such runs recognizable."
            )
        else:
            advice = f"Check in Etlworks for a run newer than {self.watermark}."
        return EtlworksStartUnknown(
            f"Flow {self.flow_id} may or may not have been started: {why} Nothing was sent again. {advice}",
            candidates=[run.audit_id for run in runs],
        )


def reconcile(
    start: SentStart,
    *,
    clock: Clock,
    log: Log,
    grace: float = VISIBILITY_GRACE,
    patience: float = DEFAULT_PATIENCE,
) -> Procedure[int | None]:
    """
    Find the run of a start that is in doubt.

    :param start: the start.
    :param clock: reads the time.
    :param log: receives what happens.
    :param grace: seconds for which a run that Etlworks does not show may still appear; 0 decides after one poll.
    :param patience: seconds for which Etlworks may be unreachable.
    :return: the run's audit id; ``None`` if the start started no run.
    :raises EtlworksStartUnknown: there are runs that may or may not be the start's, or they cannot be read.
    """
    began = clock.monotonic()
    known: dict[int, bool] = {}
    for delay in growing_delays(_FIRST_DELAY, _LONGEST_DELAY):
        waited = clock.monotonic() - began
        try:
            newer, is_complete = yield from _newer_runs(start)
            if start.key is not None:
                yield from _identify(newer, start.key, known)
        except EtlworksError as error:
            if not error.retryable or waited > patience:
                raise start.unknown(f"the flow's runs cannot be read ({error}).", []) from error
            log.warning("The start stays in doubt; the flow's runs cannot be read, polling again: %s", error)
        else:
            found = _decide(start, newer, known, is_complete=is_complete, is_last_poll=waited >= grace)
            if found is not None:
                log.info("Found the run of the start in doubt: its audit id is %s.", found)
                return found
            if waited >= grace:
                return None
        yield Sleep(delay)
    raise AssertionError("growing_delays never ends")


def _decide(
    start: SentStart, newer: list[Execution], known: dict[int, bool], *, is_complete: bool, is_last_poll: bool
) -> int | None:
    """
    Return the audit id of the run that is the start's; ``None`` for none so far.

    :param newer: the runs above the watermark.
    :param known: for each run that showed a key, whether that was the start's key.
    :param is_complete: whether ``newer`` has all of them.
    :param is_last_poll: whether this is the last poll, so that nothing more will show.
    :raises EtlworksStartUnknown: runs remain that may be the start's.
    """
    ours = [run for run in newer if known.get(run.audit_id) is True]
    if len(ours) == 1:
        return ours[0].audit_id
    undecided = [run for run in newer if run.audit_id not in known]
    # A key may show later than the run, and so may the rest of a history.
    if not is_last_poll and not ours and (start.key is not None or not is_complete):
        return None
    if ours or not is_complete:
        why = "several runs carry its key." if ours else "the history may not have every run."
        raise start.unknown(why, ours or newer)
    if not undecided:
        return None
    if start.is_only_starter and len(newer) == 1 and is_candidate(newer[0], start.user):
        return newer[0].audit_id
    raise start.unknown("it is not certain which run, if any, is this start's.", newer)


def is_candidate(run: Execution, user: str | None) -> bool:
    """
    Return whether a run shows no sign of another starter: a schedule, a message, Etlworks's own retry, another user.

    :param run: the run's record.
    :param user: the login that sent the start; ``None`` if it is not known.
    """
    if run.event_id is not None or run.message_uuid is not None or run.parent_audit_id is not None:
        return False
    started_by = (run.user or "").lower()
    return not started_by or (started_by != _SCHEDULER if user is None else started_by == user.lower())


def newest_audit_id(flow_id: int) -> Procedure[int]:
    """Return the audit id of a flow's newest run; 0 if the flow never ran."""
    latest: Execution | None = yield endpoints.latest_execution(flow_id)
    if latest is not None:
        return latest.audit_id
    # How Etlworks reports that a flow never ran is not documented, so the history is read as well.
    return max((run.audit_id for run in (yield from _history(flow_id))), default=0)


def _newer_runs(start: SentStart) -> Procedure[tuple[list[Execution], bool]]:
    """Return the runs above the watermark, and whether these are all."""
    latest: Execution | None = yield endpoints.latest_execution(start.flow_id)
    newer = [run for run in (yield from _history(start.flow_id)) if run.audit_id > start.watermark]
    # It is not documented that the history begins with the newest run, and it may lag.
    if latest is None or latest.audit_id <= start.watermark or latest.audit_id in {run.audit_id for run in newer}:
        return newer, len(newer) < _HISTORY_PAGE
    return [latest, *newer], False


def _history(flow_id: int) -> Procedure[list[Execution]]:
    try:
        page = yield endpoints.execution_history(flow_id, limit=_HISTORY_PAGE).first()
    except EtlworksNotFound:
        return []
    items: list[Execution] = page.items
    return items


def _identify(runs: list[Execution], key: RunKey, known: dict[int, bool]) -> Procedure[None]:
    """Record which runs show this key or another key: in the history, in their record or in their log."""
    for run in runs:
        if run.audit_id in known:
            continue
        is_shown = key.is_shown_by(run.raw)
        for more in (
            SendOnce(endpoints.get_execution(run.flow_id, run.audit_id)),
            ReadHead(endpoints.execution_log(run.flow_id, run.audit_id), _LONGEST_LOG_HEAD),
        ):
            if is_shown is not None:
                break
            try:
                read = yield more
            except EtlworksError:
                # A log that cannot be read proves nothing. The next poll tries again.
                continue
            is_shown = key.is_shown_by(read if isinstance(read, str) else read.raw)
        if is_shown is not None:
            known[run.audit_id] = is_shown


def _listed(runs: list[Execution]) -> str:
    def named(run: Execution) -> str:
        details = [run.status, run.user and f"user {run.user}", run.event_id and f"event {run.event_id}"]
        return f"run {run.audit_id} ({', '.join(each for each in details if each) or 'no details'})"

    return ", ".join(map(named, runs))


def read_accepted_run(run: RunRef, *, clock: Clock, log: Log) -> Procedure[Execution | None]:
    """
    Read the record of a run that is known to have been accepted.

    :param run: the run.
    :param clock: reads the time.
    :param log: receives what happens.
    :return: the record; ``None`` if it is gone, and not only late.
    :raises EtlworksError: the record cannot be read.
    """
    began = clock.monotonic()
    for delay in growing_delays(_FIRST_DELAY, _LONGEST_DELAY):
        try:
            execution: Execution = yield endpoints.get_execution(run.flow_id, run.audit_id)
        except EtlworksNotFound as error:
            if clock.monotonic() - began >= VISIBILITY_GRACE:
                return None
            log.warning("%s The record may only be late; polling again.", error)
        else:
            return execution
        yield Sleep(delay)
    raise AssertionError("growing_delays never ends")
