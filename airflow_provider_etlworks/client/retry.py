"""Which failed call is sent again, when, and how many times. Both transports follow these rules through tenacity."""

from __future__ import annotations

import logging
import time
from datetime import timezone
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from tenacity import retry_if_exception, stop_after_attempt, wait_random_exponential

from airflow_provider_etlworks.client.errors import EtlworksError, EtlworksRateLimited

if TYPE_CHECKING:
    from collections.abc import Callable

    from tenacity import RetryCallState

log = logging.getLogger(__name__)

ATTEMPTS = 4
"""The most times that a call is sent, if it may be repeated."""

LONGEST_BACKOFF = 30.0
"""The most seconds between two attempts, if the server names none."""

LONGEST_RETRY_AFTER = 300.0
"""The most seconds of a ``Retry-After`` that are obeyed."""


def retry_after_seconds(header: str | None, now: Callable[[], float] = time.time) -> float | None:
    """
    Read a ``Retry-After`` header: seconds, or an HTTP date.

    :param header: the header's value.
    :param now: reads the time in seconds since the epoch.
    :return: seconds to wait, at most :data:`LONGEST_RETRY_AFTER`; ``None`` if the header makes no sense.
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
        # RFC 9110: a date without a zone is GMT.
        date = date if date.tzinfo else date.replace(tzinfo=timezone.utc)
        seconds = max(0.0, date.timestamp() - now())
    if seconds > LONGEST_RETRY_AFTER:
        log.warning("Etlworks asks to wait %.0f s; waiting %.0f s.", seconds, LONGEST_RETRY_AFTER)
    return min(seconds, LONGEST_RETRY_AFTER)


def is_retryable(error: BaseException, *, idempotent: bool) -> bool:
    """
    Return whether a failed call may be sent again as it is.

    :param error: the failure.
    :param idempotent: whether the server may safely receive the call twice. If not, only a call that the server
        certainly did not process is repeated.
    """
    return isinstance(error, EtlworksError) and error.retryable and (idempotent or error.not_processed)


def tenacity_options(*, idempotent: bool, attempts: int = ATTEMPTS) -> dict[str, Any]:
    """
    Return the arguments for tenacity's ``Retrying`` and ``AsyncRetrying`` alike.

    :param idempotent: whether the server may safely receive the call twice.
    :param attempts: the most times that it is sent.
    """
    backoff = wait_random_exponential(min=1, max=LONGEST_BACKOFF)

    def wait(state: RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        if isinstance(error, EtlworksRateLimited):
            # The rate limiter pauses all requests.
            return 0.0
        retry_after = getattr(error, "retry_after", None)
        # A little longer than asked for, so that clients with the same Retry-After do not return together.
        return float(backoff(state)) if retry_after is None else retry_after + float(backoff(state)) / 10

    def log_retry(state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        if isinstance(error, EtlworksRateLimited):
            log.warning("%s Trying again when its turn comes, at a random moment of the minute after that.", error)
            return
        delay = state.next_action.sleep if state.next_action else 0.0
        log.warning("%s Trying again in %.0f s.", error, delay)

    return {
        "retry": retry_if_exception(lambda error: is_retryable(error, idempotent=idempotent)),
        "stop": stop_after_attempt(attempts),
        "wait": wait,
        "before_sleep": log_retry,
        "reraise": True,
    }
