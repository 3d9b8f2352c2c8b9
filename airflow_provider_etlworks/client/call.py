"""One request, and how its answer is read, as a value. Nothing is sent here."""

from __future__ import annotations

import json as json_module
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Generic, TypeVar
from urllib.parse import quote, urlencode

from airflow_provider_etlworks.client.errors import (
    EtlworksApiError,
    EtlworksRefused,
    EtlworksReplyError,
    api_error,
    error_message,
)
from airflow_provider_etlworks.client.redaction import excerpt, redact
from airflow_provider_etlworks.client.retry import retry_after_seconds

if TYPE_CHECKING:
    from airflow_provider_etlworks.client.streaming import Body

T = TypeVar("T")


ItemT = TypeVar("ItemT")


JSON_TYPE = "application/json"


PAGE_SIZE = 200
"""The most items Etlworks returns in one answer of a list."""


_LONGEST_REFUSAL = 65_536


MAX_RECORD_BYTES = 8 * 1024 * 1024
"""The longest response that is read, decompressed, if it is not a list, a whole flow, a bundle or a log."""


MAX_LIST_BYTES = 64 * 1024 * 1024
"""The longest list, whole flow, or response of unknown kind that is read, decompressed."""


Query = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Response:
    """What came back for a request: status, headers (a mapping that ignores case) and the whole body."""

    status: int
    headers: Mapping[str, str]
    body: bytes = field(repr=False)

    @cached_property
    def json(self) -> Any:
        """
        The body as JSON; an empty body is ``None``.

        :raises EtlworksReplyError: it is not JSON, such as a proxy's page.
        """
        if not self.body.strip():
            return None
        try:
            return json_module.loads(self.body)
        except (ValueError, RecursionError) as error:
            kind = self.headers.get("Content-Type", "no content type")
            raise EtlworksReplyError(
                f"Expected JSON, got {kind}, {len(self.body)} bytes: {excerpt(self.body)!r}. "
                "Is Host the address of an Etlworks instance, with nothing in between (a proxy, a log-in page)?"
            ) from error

    @property
    def refusal(self) -> str | None:
        """Why Etlworks refused, where the body says ``"success": false``; ``None`` where it does not."""
        head = self.body[:_LONGEST_REFUSAL].lstrip()
        if not (head.startswith(b"{") and b'"success"' in head):
            return None
        try:
            body = self.json
        except EtlworksReplyError:
            return None
        if body.get("success") is not False:
            return None
        return error_message(body) or "no reason given"

    @property
    def retry_after(self) -> float | None:
        """Seconds that the server asks to wait, if it does."""
        return retry_after_seconds(self.headers.get("Retry-After"))


@dataclass(frozen=True, eq=False)
class Call(Generic[T]):
    """
    One Etlworks request, described but not sent. Equal to itself only, so that a client can keep what it made of it.

    :ivar method: the HTTP method.
    :ivar path: percent-encoded path, below ``/rest``.
    :ivar read: turns a good answer into the value that the caller gets.
    :ivar query: parameters of the URL, in order.
    :ivar body: what is sent; a ``Body`` where it is too long to hold.
    :ivar content_type: its type; ``None`` where nothing is sent.
    :ivar repeatable: whether the server may safely receive it twice.
    :ivar below_root: the path is below the bare host, not below ``/rest``.
    :ivar missing_is_none: a 404 is no error but the answer "there is none".
    :ivar authorized: whether the call carries credentials.
    :ivar max_bytes: the longest response that is read, decompressed. A longer one is an ``EtlworksReplyError``.
    :ivar overtime: seconds beyond the read time-out that the whole response may take, however little arrives at a time.
        A slower one is an ``EtlworksReplyError``.
    """

    method: str
    path: str
    read: Callable[[Response], T] = field(repr=False)
    query: Query = field(default=(), repr=False)
    body: bytes | Body | None = field(default=None, repr=False)
    content_type: str | None = None
    idempotent: bool = False
    from_root: bool = False
    none_on_404: bool = False
    authenticated: bool = True
    max_bytes: int = MAX_RECORD_BYTES
    overtime: float = 30.0

    def __str__(self) -> str:
        """Method and path, for logs and messages. The query may hold what others should not read."""
        return f"{self.method} {self.path}"

    def url(self, base_url: str, root_url: str) -> str:
        """Return the whole URL, percent-encoded."""
        query = f"?{urlencode(self.query)}" if self.query else ""
        return (root_url if self.from_root else base_url) + self.path + query

    def result(self, answer: Response, secrets: Sequence[str] = ()) -> T:
        """
        Turn an answer into the call's value.

        :param answer: what came back.
        :param secrets: texts that no message may contain.
        :raises EtlworksApiError: the answer is an error.
        :raises EtlworksReplyError: the answer cannot be read.
        """
        try:
            if answer.status == 404 and self.none_on_404:
                return self.read(replace(answer, status=200, body=b""))
            if not 200 <= answer.status < 300:
                raise self.error(answer, secrets)
            if answer.refusal is not None:
                said = excerpt(answer.refusal, secrets)
                raise EtlworksRefused(f"Etlworks refused {self}: {said}", status=answer.status, answer=answer.json)
            return self.read(answer)
        except EtlworksReplyError as error:
            # Not ``from error``: its text may still hold a secret.
            raise EtlworksReplyError(redact(f"Cannot read the answer to {self}: {error}", secrets)) from None

    def error(self, answer: Response, secrets: Sequence[str] = ()) -> EtlworksApiError:
        """Return the error that an answer stands for, with what the server says in plain text."""
        try:
            said = error_message(answer.json)
        except EtlworksReplyError:
            said = ""
        return api_error(
            str(self),
            answer.status,
            excerpt(said or answer.body, secrets),
            retry_after=answer.retry_after,
        )


def read_json(read: Callable[[Any], T]) -> Callable[[Response], T]:
    """Read the body as JSON, and that with ``read``."""
    return lambda answer: read(answer.json)


def optional(read: Callable[[Any], T]) -> Callable[[Any], T | None]:
    """Read a value that may be absent: ``None`` stays ``None``."""
    return lambda value: None if value is None else read(value)


def list_of(read: Callable[[Any], ItemT]) -> Callable[[Any], list[ItemT]]:
    """Read a JSON array, and each of its items with ``read``."""

    def read_list(value: Any) -> list[ItemT]:
        if not isinstance(value, list):
            raise EtlworksReplyError(f"Expected a list, the answer is {type(value).__name__}.")
        return [read(item) for item in value]

    return read_list


def read_text(answer: Response) -> str:
    """Read the body as text."""
    return answer.body.decode("utf-8", "replace")


def read_nothing(_: Response) -> None:
    """Read nothing: the status says all."""


def read_anything(answer: Response) -> Any:
    """Read the body as JSON, else as text."""
    try:
        return answer.json
    except EtlworksReplyError:
        return read_text(answer)


def url_query(**parameters: Any) -> Query:
    """Make URL parameters: ``None`` is left out, a list repeats its name, booleans are written in lower case."""
    return [
        (name, str(item).lower() if isinstance(item, bool) else str(item))
        for name, value in parameters.items()
        for item in (value if isinstance(value, (list, tuple)) else [value])
        if item is not None
    ]


def json_body(value: Any) -> dict[str, Any]:
    """Return the arguments of a :class:`Call` whose body is JSON."""
    return {"body": json_module.dumps(value, ensure_ascii=False).encode(), "content_type": JSON_TYPE}


def path_segment(name: str) -> str:
    """Encode a name as one segment of a path: a ``/`` inside it is encoded too."""
    return quote(name, safe="")


@dataclass(frozen=True)
class Page(Generic[ItemT]):
    """A part of a list: its items, and the length of the whole list where the server tells it."""

    items: list[ItemT]
    total: int | None

    def repeats(self, previous: Page[ItemT] | None) -> bool:
        """Whether this is the page before it once more: a server that ignores ``offset`` gives the same for ever."""
        return previous is not None and self.items == previous.items


@dataclass(frozen=True)
class PagedCall(Generic[ItemT]):
    """A list that is read page by page. ``first`` is the first page's call; ``following`` gives the next, or none."""

    path: str
    read_item: Callable[[Any], ItemT] = field(repr=False)
    query: Query = ()
    limit: int = PAGE_SIZE
    from_root: bool = False

    def first(self) -> Call[Page[ItemT]]:
        """Return the call for the first page."""
        return self._call(0)

    def following(self, offset: int, page: Page[ItemT]) -> Call[Page[ItemT]] | None:
        """
        Return the call for the page after ``page``, or ``None`` at the list's end.

        :param offset: how many items have been read, ``page`` included.
        :param page: the page just read.
        """
        if not page.items or len(page.items) > self.limit:
            return None
        is_last = len(page.items) < self.limit if page.total is None else offset >= page.total
        return None if is_last else self._call(offset)

    def _call(self, offset: int) -> Call[Page[ItemT]]:
        return Call(
            "GET",
            self.path,
            self._read,
            query=[*self.query, ("limit", str(self.limit)), ("offset", str(offset))],
            idempotent=True,
            from_root=self.from_root,
            max_bytes=MAX_LIST_BYTES,
        )

    def _read(self, answer: Response) -> Page[ItemT]:
        total = answer.headers.get("X-Total-Count", "")
        return Page(list_of(self.read_item)(answer.json), int(total) if total.isdecimal() else None)
