"""
What takes more than one call, written once for both transports.

A conversation is a generator. It yields a :class:`~airflow_provider_etlworks.client.endpoints.Call` and is sent the
call's value (or is thrown its error), or yields a :class:`Sleep` and is resumed after it. What it returns is the
result. ``EtlworksClient.run`` and ``AsyncEtlworksClient.run`` carry it out; a test can do so by hand, without
a network and without waiting.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from airflow_provider_etlworks.client.call import Call, Page, PagedCall

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


class Log(Protocol):
    """Where a conversation tells what happens: a logger of Python's or of Airflow's."""

    def info(self, msg: str, /, *args: Any) -> Any:
        """Tell what a reader of the log expects to see."""

    def warning(self, msg: str, /, *args: Any) -> Any:
        """Tell what a reader of the log should notice."""


@dataclass(frozen=True)
class Sleep:
    """Wait before the next step. ``seconds`` may be 0."""

    seconds: float


@dataclass(frozen=True)
class SendOnce:
    """Send a call a single time: the conversation itself decides what to do about a failure."""

    call: Call[Any]


@dataclass(frozen=True)
class RequestToken:
    """Send a call that gets a token, a single time, as the given bearer or as nobody."""

    call: Call[str]
    bearer: str | None = None


@dataclass(frozen=True)
class ReadHead:
    """Send a call for a text that may be long, a single time, and read no more than its first ``size`` bytes."""

    call: Call[str]
    size: int


Step = Call[Any] | SendOnce | Sleep | RequestToken | ReadHead
Procedure = Generator[Step, Any, ResultT]


def read_all(paged: PagedCall[ItemT]) -> Procedure[list[ItemT]]:
    """Read a list to its end, page by page."""
    items: list[ItemT] = []
    previous: Page[ItemT] | None = None
    call: Call[Page[ItemT]] | None = paged.first()
    while call is not None:
        page: Page[ItemT] = yield call
        if page.repeats(previous):
            break
        items += page.items
        call, previous = paged.following(len(items), page), page
    return items
