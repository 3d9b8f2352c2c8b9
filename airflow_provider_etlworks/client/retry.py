"""Which failure is worth another try, when, and how many times. Both transports obey these rules through tenacity."""

from __future__ import annotations

import logging
import time
from datetime import timezone
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from airflow_provider_etlworks.client.errors import EtlworksError

if TYPE_CHECKING:
    from collections.abc import Callable

    from tenacity import RetryCallState

log = logging.getLogger(__name__)

ATTEMPTS = 4
"""How many times a call is sent at most, where it may be repeated."""

LONGEST_BACKOFF = 30.0
"""Seconds between two tries at most, where the server names none."""

LONGEST_RETRY_AFTER = 300.0
"""Seconds that a server's ``Retry-After`` is obeyed at most."""


def retry_after_seconds(header: str | None, now: Callable[[], float] = time.time) -> float | None:
    """
    Read a ``Retry-After`` header: seconds, or an HTTP date.

    :return: seconds to wait, at most :data:`LONGEST_RETRY_AFTER`; ``None`` for a header that makes no sense.
    """
    header = (header or "").strip()
    if not header:
        return None
    if header.isdecimal():
        seconds = float(header)
    else:
        try:
            date = parsedate_to_datetime(header)
        except (TypeError, ValueError):
            return None
        # A date without a zone is meant in GMT, says RFC 9110.
        date = date if date.tzinfo else date.replace(tzinfo=timezone.utc)
        seconds = max(0.0, date.timestamp() - now())
    if seconds > LONGEST_RETRY_AFTER:
        log.warning("Etlworks asks to wait %.0f s; waiting %.0f s.", seconds, LONGEST_RETRY_AFTER)
    return min(seconds, LONGEST_RETRY_AFTER)


def is_retryable(error: BaseException, *, idempotent: bool) -> bool:
    """
    Whether a failed call may be sent again as it is.

    :param repeatable: whether the server may safely receive the call twice. If not, only a call that the server
        certainly did not act on is repeated.
    """
    return isinstance(error, EtlworksError) and error.retryable and (idempotent or error.not_processed)


def tenacity_options(*, idempotent: bool, attempts: int = ATTEMPTS) -> dict[str, Any]:
    """Return the arguments for tenacity's ``Retrying`` and ``AsyncRetrying`` alike."""
    # A DAG file's import must not load tenacity.
    from tenacity import retry_if_exception, stop_after_attempt, wait_random_exponential

    backoff = wait_random_exponential(min=1, max=LONGEST_BACKOFF)

    def wait(state: RetryCallState) -> float:
        asked = getattr(state.outcome.exception() if state.outcome else None, "retry_after", None)
        # A little more than asked for, and not the same for everybody who was told the same.
        return float(backoff(state)) if asked is None else asked + float(backoff(state)) / 10

    def say(state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        pause = state.next_action.sleep if state.next_action else 0.0
        log.warning("%s Trying again in %.0f s.", error, pause)

    return {
        "retry": retry_if_exception(lambda error: is_retryable(error, idempotent=idempotent)),
        "stop": stop_after_attempt(attempts),
        "wait": wait,
        "before_sleep": say,
        "reraise": True,
    }
