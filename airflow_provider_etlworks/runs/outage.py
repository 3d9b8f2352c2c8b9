"""
How long a task that has started nothing yet waits for a busy or unreachable Etlworks: one rule for all requests.

No task fails because others are busy: a 429, an unreachable server and a server's fault that may pass (5xx, 408, 425)
are waited out, for as long as the status of a run may be unreadable later. Any other failure is raised: a refusal, or
an answer that cannot be read, such as that of a host that is not an Etlworks.
"""

from __future__ import annotations

import random
from datetime import datetime, timezone
from typing import TYPE_CHECKING, TypeVar

from airflow_provider_etlworks.client.clock import growing_delays
from airflow_provider_etlworks.client.errors import (
    EtlworksError,
    EtlworksExecutionTimeout,
    EtlworksRateLimited,
    EtlworksServerError,
    EtlworksUnreachable,
)
from airflow_provider_etlworks.client.procedure import RunOnce, Sleep
from airflow_provider_etlworks.client.retry import is_retryable

if TYPE_CHECKING:
    from collections.abc import Callable

    from airflow_provider_etlworks.client.call import Call
    from airflow_provider_etlworks.client.clock import Clock
    from airflow_provider_etlworks.client.procedure import Log, Procedure
    from airflow_provider_etlworks.runs.types import PollPolicy

T = TypeVar("T")

_OUTAGES = (EtlworksRateLimited, EtlworksServerError, EtlworksUnreachable)
_FIRST_DELAY = 1.0
_LONGEST_DELAY = 60.0
# A little longer than a Retry-After asks for, so that many tasks do not return together.
_SPREAD = 0.1
_FIRST_LINE_AFTER = 60.0
_LONGEST_BETWEEN_LINES = 600.0


class OutageWait:
    """
    Decides how long to wait before a request that certainly did nothing is sent again.

    :param policy: ``patience`` limits one outage, and ``deadline`` the whole wait.
    :param clock: reads the time.
    :param log: receives a line when an outage begins and ends, and now and then in between.
    :param goal: what is not done yet, for messages, such as ``Flow 7 is not started yet``.
    :param idempotent: whether a request may be sent again that Etlworks may have processed.
    :param check: is called before and after each wait; raises if the task must not go on.
    """

    def __init__(
        self,
        policy: PollPolicy,
        *,
        clock: Clock,
        log: Log,
        goal: str,
        idempotent: bool = True,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self.check = check
        self._idempotent = idempotent
        self._policy = policy
        self._clock = clock
        self._log = log
        self._goal = goal
        self._since: float | None = None
        self._delays = growing_delays(_FIRST_DELAY, _LONGEST_DELAY, 2.0)
        self._next_line = self._line_interval = 0.0

    @property
    def is_going(self) -> bool:
        """Whether the last request failed."""
        return self._since is not None

    def delay(self, error: EtlworksError) -> float:
        """
        Return the seconds to wait after a failure.

        :param error: the failure. It may be another one than the last time.
        :raises EtlworksExecutionTimeout: the deadline has come.
        :raises EtlworksError: ``error`` itself, if it will not pass, or if the patience is over.
        """
        self.check()
        if not (isinstance(error, _OUTAGES) and is_retryable(error, idempotent=self._idempotent)):
            raise error
        now = self._clock.monotonic()
        if self._since is None:
            self._since, self._next_line, self._line_interval = now, now, _FIRST_LINE_AFTER
            self._delays = growing_delays(_FIRST_DELAY, _LONGEST_DELAY, 2.0)
        left = self._since + self._policy.patience - now
        if left <= 0:
            self._log.warning("Etlworks could not be used for %.0f s. The patience is over.", now - self._since)
            raise error
        if self._policy.deadline is not None:
            until_deadline = self._policy.deadline - self._clock.time()
            if until_deadline <= 0:
                raise EtlworksExecutionTimeout(f"{self._goal}, and the time is over. {error}") from None
            left = min(left, until_deadline)
        if now >= self._next_line:
            self._next_line = now + self._line_interval
            self._line_interval = min(2 * self._line_interval, _LONGEST_BETWEEN_LINES)
            until = datetime.fromtimestamp(self._clock.time() + left, tz=timezone.utc)
            self._log.warning(
                "%s. %s Waiting for Etlworks until %s.", self._goal, error, f"{until:%Y-%m-%d %H:%M:%S} UTC"
            )
        asked: float = getattr(error, "retry_after", None) or 0.0
        delay = max(next(self._delays), asked) * (1 + random.uniform(0, _SPREAD))  # noqa: S311  # no secret
        return min(delay, left)

    def over(self) -> None:
        """Record that a request succeeded: the next outage has the whole patience again."""
        if self._since is not None:
            self._log.info("Etlworks can be used again, after %.0f s.", self._clock.monotonic() - self._since)
            self._since = None


def wait_out(procedure: Callable[[], Procedure[T]], outage: OutageWait | None) -> Procedure[T]:
    """
    Run a procedure, and run it again while Etlworks is busy or unreachable.

    :param procedure: makes the procedure. One that fails with such an error has done nothing, or may be repeated.
    :param outage: how long to wait; ``None`` waits for nothing.
    :raises EtlworksError: the failure, if it will not pass, or not soon enough.
    """
    is_first = outage is None or not outage.is_going
    while True:
        try:
            # Between two attempts the outage decides how long to wait, not the client.
            if outage is not None and outage.is_going:
                value: T = yield RunOnce(procedure())
            else:
                value = yield from procedure()
        except EtlworksError as error:
            if outage is None:
                raise
            yield Sleep(outage.delay(error))
            outage.check()
        else:
            # An outage that began with another request is over when that one succeeds.
            if outage is not None and is_first:
                outage.over()
            return value


def send(call: Call[T]) -> Procedure[T]:
    """Send one call, as a procedure."""
    value: T = yield call
    return value


def perform(action: Callable[[], T]) -> Procedure[T]:
    """Run an action that sends its requests itself, such as an export into a file, as a procedure."""
    yield from ()
    return action()
