"""One request, and how its answer is read, as a value. Nothing is sent here."""

from __future__ import annotations

import codecs
import json as json_module
import logging
import math
import re
from base64 import b64encode
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, Generic, TypeVar
from urllib.parse import quote, urlencode

from airflow_provider_etlworks.client.errors import (
    EtlworksApiError,
    EtlworksRefused,
    EtlworksReplyError,
    api_error,
    error_message,
)
from airflow_provider_etlworks.client.redaction import excerpt, may_need_redaction, redact, redact_data, redact_json
from airflow_provider_etlworks.client.retry import retry_after_seconds
from airflow_provider_etlworks.client.text import as_int, harmless, storable

if TYPE_CHECKING:
    from airflow_provider_etlworks.client.streaming import Body

log = logging.getLogger(__name__)

T = TypeVar("T")
ItemT = TypeVar("ItemT")

JSON_TYPE = "application/json"

PAGE_SIZE = 200
"""The most items that Etlworks returns in one answer of a list."""

_LONGEST_REFUSAL = 65_536
_LONGEST_TYPE = 100
_CHARSET = re.compile(r"charset\s*=\s*[\"']?([\w.:-]+)", re.IGNORECASE)
# Python knows encodings that are not charsets of the web. Some are slow, or raise errors of their own.
_NO_CHARSETS = ("idna", "punycode", "undefined", "unicode_escape", "raw_unicode_escape", "utf-7")
# Digits that certainly make a number of 64 bits.
_SAFE_DIGITS = 18

MAX_RECORD_BYTES = 8 * 1024 * 1024
"""The longest response that is read, decompressed, if it is not a list, a whole flow, a bundle or a log."""


MAX_LIST_BYTES = 64 * 1024 * 1024
"""The longest list, whole flow, or response of unknown kind that is read, decompressed."""


Query = Sequence[tuple[str, str]]


def _parse_float(digits: str) -> float | None:
    return number if math.isfinite(number := float(digits)) else None


def _parse_int(digits: str) -> int | None:
    return int(digits) if len(digits) <= _SAFE_DIGITS else as_int(digits)


_DECODER = json_module.JSONDecoder(parse_float=_parse_float, parse_int=_parse_int, parse_constant=lambda _: None)


@dataclass(frozen=True)
class Response:
    """
    The answer to a request.

    :ivar status: the HTTP status.
    :ivar headers: a mapping that ignores case.
    :ivar body: the whole body.
    :ivar secrets: texts that are removed from what is read of the body.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes = field(repr=False)
    secrets: Sequence[str] = field(default=(), repr=False)

    @cached_property
    def json(self) -> Any:
        """
        The body as JSON, redacted and harmless; an empty body is ``None``.

        :raises EtlworksReplyError: it is not JSON, such as a proxy's page.
        """
        source = self._source()
        decoded = self._decoded(source)
        if may_need_redaction(source, self.secrets):
            try:
                return redact_json(decoded, self.secrets)
            except RecursionError:
                raise EtlworksReplyError("The answer is JSON that is nested too deeply.") from None
        return decoded

    @cached_property
    def unredacted_json(self) -> Any:
        """
        The body as JSON, harmless, for what must be read as it is: a token, or a flow that is written back.

        :raises EtlworksReplyError: it is not JSON.
        """
        source = self._source()
        decoded = self._decoded(source)
        try:
            return harmless(decoded) if "\\" in source else decoded
        except RecursionError:
            raise EtlworksReplyError("The answer is JSON that is nested too deeply.") from None

    @cached_property
    def text(self) -> str:
        """The body as text, redacted and harmless."""
        return storable(redact_data(self._source(), self.secrets))

    def _source(self) -> str:
        """The body in its declared charset, else in UTF-8. U+FFFD replaces what is not valid in it."""
        charset = _charset(self.headers.get("Content-Type"))
        if charset is None and self.body.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            charset = "utf-16"
        return self.body.decode(charset or "utf-8", "replace").removeprefix("\ufeff")

    def _decoded(self, source: str) -> Any:
        try:
            return _DECODER.decode(source) if source.strip() else None
        except (ValueError, RecursionError) as error:
            kind = excerpt(self.headers.get("Content-Type", "no content type"), self.secrets, _LONGEST_TYPE)
            raise EtlworksReplyError(
                f"Expected JSON, got {kind}, {len(self.body)} bytes: {excerpt(source, self.secrets)!r}. "
                "Is Host the address of an Etlworks instance, with nothing in between (a proxy, a log-in page)?"
            ) from error

    @property
    def refusal(self) -> str | None:
        """The reason why Etlworks refused, if the body says ``"success": false``; else ``None``."""
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


@lru_cache(maxsize=32)
def _charset(content_type: str | None) -> str | None:
    """Return the charset that a ``Content-Type`` declares; ``None`` if that is UTF-8, or not one."""
    declared = _CHARSET.search(content_type or "")
    try:
        name = codecs.lookup(declared[1]).name if declared else "utf-8"
        # Also refuses what decodes to bytes, such as "zip".
        b" ".decode(name, "replace")
    except (LookupError, UnicodeError):
        return None
    return None if name == "utf-8" or name in _NO_CHARSETS else name


@dataclass(frozen=True, eq=False)
class Call(Generic[T]):
    """
    One Etlworks request, described but not sent. It equals only itself: a client can keep what it derived from it.

    :ivar method: the HTTP method.
    :ivar path: percent-encoded path, below ``/rest``.
    :ivar read: turns a good answer into the value that the caller gets.
    :ivar query: parameters of the URL, in order.
    :ivar body: what is sent; a ``Body`` if it is too long to hold.
    :ivar content_type: its type; ``None`` if nothing is sent.
    :ivar idempotent: whether the server may safely receive it twice.
    :ivar is_polled: whether it is sent again and again, and has an immutable value. A client may return the last value
        again for the same response.
    :ivar from_root: whether the path is below the bare host, not below ``/rest``.
    :ivar none_on_404: whether a 404 means "there is none" and is not an error.
    :ivar authenticated: whether the call carries the client's token or API key.
    :ivar basic: login and password that it carries instead, as HTTP Basic.
    :ivar status_is_certain: whether the status is Etlworks's own, so that some prove that nothing was done. The author
        of a listener's flow chooses any status, also after the flow has run.
    :ivar secrets: texts of the request that must not appear in anything read from the answer.
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
    is_polled: bool = False
    from_root: bool = False
    none_on_404: bool = False
    authenticated: bool = True
    basic: tuple[str, str] | None = field(default=None, repr=False)
    status_is_certain: bool = True
    secrets: Sequence[str] = field(default=(), repr=False)
    max_bytes: int = MAX_RECORD_BYTES
    overtime: float = 30.0

    def __str__(self) -> str:
        """Method and path, for logs and messages. The query may hold what others should not read."""
        return f"{self.method} {self.path}"

    def url(self, base_url: str, root_url: str) -> str:
        """Return the whole URL, percent-encoded."""
        query = f"?{urlencode(self.query)}" if self.query else ""
        return (root_url if self.from_root else base_url) + self.path + query

    def result(self, response: Response, secrets: Sequence[str] = ()) -> T:
        """
        Turn an answer into the call's value.

        :param response: the response.
        :param secrets: texts that no message may contain.
        :raises EtlworksApiError: the answer is an error.
        :raises EtlworksReplyError: the answer cannot be read.
        """
        secrets = (*secrets, *self.secrets)
        response = Response(response.status, response.headers, response.body, secrets)
        try:
            if response.status == 404 and self.none_on_404:
                return self.read(replace(response, status=200, body=b""))
            if not 200 <= response.status < 300:
                raise self.error(response, secrets)
            if (reason := response.refusal) is not None:
                said = excerpt(reason, secrets)
                raise EtlworksRefused(f"Etlworks refused {self}: {said}", status=response.status, answer=response.json)
            return self.read(response)
        except EtlworksReplyError as error:
            # Not ``from error``: its text may still hold a secret.
            raise EtlworksReplyError(redact(f"Cannot read the answer to {self}: {error}", secrets)) from None

    def error(self, response: Response, secrets: Sequence[str] = ()) -> EtlworksApiError:
        """
        Return the error that an answer stands for, with what the server says in plain text.

        :param response: the response.
        :param secrets: texts that no message may contain.
        """
        secrets = (*secrets, *self.secrets)
        response = replace(response, secrets=secrets)
        try:
            body = response.json
            said = error_message(body) or (json_module.dumps(body, ensure_ascii=False) if body is not None else "")
        except EtlworksReplyError:
            said = response.text
        return api_error(
            str(self),
            response.status,
            excerpt(said, secrets),
            retry_after=response.retry_after,
            status_is_certain=self.status_is_certain,
        )


def read_json(read: Callable[[Any], T]) -> Callable[[Response], T]:
    """Read the body as JSON, and the JSON with ``read``."""
    return lambda response: read(response.json)


def optional(read: Callable[[Any], T]) -> Callable[[Any], T | None]:
    """Read a value that may be absent: ``None`` stays ``None``."""
    return lambda value: None if value is None else read(value)


def list_of(read: Callable[[Any], ItemT]) -> Callable[[Any], list[ItemT]]:
    """
    Read a JSON array, and each of its items with ``read``.

    An item that cannot be read is left out with a warning. If no item can be read, the array is not this list.
    """

    def read_list(value: Any) -> list[ItemT]:
        if not isinstance(value, list):
            raise EtlworksReplyError(f"Expected a list, the answer is {type(value).__name__}.")
        items: list[ItemT] = []
        fault: EtlworksReplyError | None = None
        for item in value:
            try:
                items.append(read(item))
            except EtlworksReplyError as error:
                fault = error
        if fault is not None:
            if not items:
                raise fault
            log.warning(
                "%s of %s items of a list cannot be read and are left out. %s",
                len(value) - len(items),
                len(value),
                fault,
            )
        return items

    return read_list


def read_text(response: Response) -> str:
    """Read the body as text."""
    return response.text


def read_nothing(_: Response) -> None:
    """Read nothing: the status is the whole answer."""


def read_anything(response: Response) -> Any:
    """Read the body as JSON, else as text; any value of it can be stored."""
    try:
        return harmless(response.json)
    except EtlworksReplyError:
        return response.text


def url_query(**parameters: Any) -> Query:
    """Return URL parameters: ``None`` is left out, a list repeats its name, booleans are written in lower case."""
    return [
        (name, str(item).lower() if isinstance(item, bool) else str(item))
        for name, value in parameters.items()
        for item in ([value] if isinstance(value, (str, bytes)) or not isinstance(value, Iterable) else value)
        if item is not None
    ]


def json_body(value: Any) -> dict[str, Any]:
    """Return the arguments of a :class:`Call` whose body is JSON."""
    try:
        body = json_module.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        # Half a surrogate pair, which only an escape can write.
        body = json_module.dumps(value).encode()
    return {"body": body, "content_type": JSON_TYPE}


def basic_token(login: str, password: str) -> str:
    """Return what follows ``Basic`` in a header."""
    return b64encode(f"{login}:{password}".encode()).decode()


def path_segment(name: str) -> str:
    """Encode a name as one segment of a path: a ``/`` inside it is encoded too."""
    return quote(name, safe="")


@dataclass(frozen=True)
class Page(Generic[ItemT]):
    """
    A part of a list.

    :ivar items: its items.
    :ivar total: the length of the whole list, if the server says it.
    :ivar skipped: how many items could not be read, on this page and on those before it.
    """

    items: list[ItemT]
    total: int | None
    skipped: int = 0

    def repeats(self, previous: Page[ItemT] | None) -> bool:
        """
        Whether this page is the previous one again: a server that ignores ``offset`` returns the same page without end.

        Between two requests a run may end or a new one may start, so most of the items count, by their ids.
        """
        if previous is None or not self.items:
            return False
        known = {_identity(item) for item in previous.items}
        return 2 * sum(_identity(item) in known for item in self.items) > len(self.items)


def _identity(item: Any) -> Any:
    """Return what makes an item of a list the same on another page: its ids, else all that the server says of it."""
    ids = tuple(getattr(item, name, None) for name in ("id", "flow_id", "audit_id"))
    return ids if any(each is not None for each in ids) else repr(getattr(item, "raw", item))


@dataclass(frozen=True)
class PagedCall(Generic[ItemT]):
    """
    A list that is read page by page. ``first`` returns the first page's call; ``following`` the next, if there is one.

    :ivar path: percent-encoded path, below ``/rest``.
    :ivar read_item: reads an item.
    :ivar query: parameters of the URL besides the page.
    :ivar limit: how many items to ask for at a time.
    :ivar from_root: whether the path is below the bare host.
    """

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

        A short page is not an end: a server may have a smaller limit than we ask for. An empty page is, and the total
        that the server says, unless it says nothing but the length of the page.

        :param offset: how many items have been read, ``page`` included.
        :param page: the page just read.
        """
        offset += page.skipped
        length = len(page.items)
        if not length or length > self.limit:
            return None
        is_last = page.total is not None and offset >= page.total > length
        return None if is_last else self._call(offset, page.skipped)

    def page_at(self, offset: int) -> Call[Page[ItemT]]:
        """Return the call for the page that begins at an item, counted from 0."""
        return self._call(offset)

    def _call(self, offset: int, skipped: int = 0) -> Call[Page[ItemT]]:
        def read(response: Response) -> Page[ItemT]:
            value = response.json
            items = list_of(self.read_item)(value)
            total = as_int(response.headers.get("X-Total-Count"))
            if total is not None and total < len(items):
                total = None
            return Page(items, total, skipped + len(value) - len(items))

        return Call(
            "GET",
            self.path,
            read,
            query=[*self.query, ("limit", str(self.limit)), ("offset", str(offset))],
            idempotent=True,
            from_root=self.from_root,
            max_bytes=MAX_LIST_BYTES,
        )
