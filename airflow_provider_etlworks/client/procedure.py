"""
What takes more than one call, written once for both transports.

A procedure is a generator. It yields a :class:`~airflow_provider_etlworks.client.call.Call` and receives the call's
value (or its error is raised in it), or yields a :class:`Sleep` and continues after it. Its return value is the result.
``EtlworksClient.run`` and ``AsyncEtlworksClient.run`` run it; a test can do so by hand, without a network and without
waiting.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from airflow_provider_etlworks.client.call import Call, Page, PagedCall

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


class Log(Protocol):
    """Where a procedure reports what happens: a logger of Python or of Airflow."""

    def info(self, msg: str, /, *args: Any) -> Any:
        """Log what a reader expects to see."""

    def warning(self, msg: str, /, *args: Any) -> Any:
        """Log what a reader should notice."""


@dataclass(frozen=True)
class Sleep:
    """Wait before the next step. ``seconds`` may be 0."""

    seconds: float


@dataclass(frozen=True)
class SendOnce:
    """Send a call once, without retries: the procedure decides what to do about a failure."""

    call: Call[Any]


@dataclass(frozen=True)
class RequestToken:
    """Send a call for a token once, with the given bearer or without credentials."""

    call: Call[str]
    bearer: str | None = None


@dataclass(frozen=True)
class ReadHead:
    """Send a call for a text once, and read no more than its first ``size`` bytes."""

    call: Call[str]
    size: int


@dataclass(frozen=True)
class RunOnce:
    """Run a procedure that sends each of its calls once, without retries. Its result is the step's value."""

    procedure: Generator[Any, Any, Any]


Step = Call[Any] | SendOnce | Sleep | RequestToken | ReadHead | RunOnce
Procedure = Generator[Step, Any, ResultT]


class PageCursor(Generic[ItemT]):
    """
    The position in a list that is read page by page.

    :param paged: the list.
    :ivar call: the call for the next page; ``None`` at the end of the list.
    """

    def __init__(self, paged: PagedCall[ItemT]) -> None:
        self.call: Call[Page[ItemT]] | None = paged.first()
        self._paged = paged
        self._previous: Page[ItemT] | None = None
        self._offset = 0

    def advance(self, page: Page[ItemT]) -> list[ItemT]:
        """Move past the page that ``call`` returned, and return its items. A server may repeat a page without end."""
        if page.repeats(self._previous):
            self.call = None
            return []
        self._previous = page
        self._offset += len(page.items)
        self.call = self._paged.following(self._offset, page)
        return page.items


def read_all(paged: PagedCall[ItemT]) -> Procedure[list[ItemT]]:
    """Read a whole list, page by page."""
    items: list[ItemT] = []
    cursor = PageCursor(paged)
    while cursor.call is not None:
        items += cursor.advance((yield cursor.call))
    return items
