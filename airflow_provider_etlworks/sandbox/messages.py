"""Requests, answers and the documented error, without a socket."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from http import HTTPStatus
from typing import Any

MAX_PAGE = 200
DEFAULT_PAGE = 50
MAX_DIGITS = 18
JSON_WHITESPACE = " \t\n\r"
IGNORED_SHOWN = 40

log = logging.getLogger(__name__)


class ApiError(Exception):
    """
    A refusal, which the client receives as the documented error body.

    :param status: The HTTP status.
    :param message: What is wrong, for people.
    :param headers: Headers sent with it, such as ``Retry-After``.
    """

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.headers = dict(headers or {})


@dataclass
class Request:
    """A request as it was received; ``path`` is still percent-encoded, ``query`` is decoded."""

    method: str
    path: str
    query: Mapping[str, Sequence[str]]
    headers: Mapping[str, str]
    body: bytes
    user: str = ""
    tenant: str | None = None

    def text(self, name: str) -> str | None:
        """Return a query parameter, or None if it is missing."""
        values = self.query.get(name)
        return values[0] if values else None

    def integer(self, name: str) -> int | None:
        """Return a query parameter as a number; 400 if it is not one."""
        value = self.text(name)
        return None if value is None else parse_number(value, name)

    def timestamp(self, name: str) -> float | None:
        """Return an ISO 8601 query parameter as a Unix time in seconds; 400 if it is not one."""
        value = self.text(name)
        if value is None:
            return None
        try:
            moment = datetime.fromisoformat(value.replace("Z", "+00:00"))
        except ValueError:
            raise ApiError(400, f"Parameter '{name}' must be an ISO 8601 timestamp, not '{value}'") from None
        return (moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)).timestamp()

    def page(self) -> slice:
        """Return the page that ``limit`` and ``offset`` select."""
        limit, offset = self.integer("limit"), self.integer("offset") or 0
        size = DEFAULT_PAGE if limit is None else min(limit, MAX_PAGE)
        if size < 1:
            raise ApiError(400, "Parameter 'limit' must be 1 or more")
        return slice(offset, offset + size)

    def json(self) -> Any:
        """
        Return the JSON body; 415 for another content type, 400 for malformed JSON.

        Text after the value is ignored with a warning: Etlworks's server stops reading where the value ends, and one
        of its own examples sends a brace too many.
        """
        media_type = self.headers.get("Content-Type", "").partition(";")[0].strip()
        if media_type.lower() != "application/json":
            raise ApiError(415, f"Content type '{media_type}' is not supported; send application/json")
        try:
            text = self.body.decode(json.detect_encoding(self.body), "surrogatepass").strip(JSON_WHITESPACE)
            value, end = json.JSONDecoder().raw_decode(text)
        except (ValueError, RecursionError) as error:
            raise ApiError(400, f"Malformed JSON: {error}") from None
        if end < len(text):
            ignored = text[end:]
            excerpt = f"{ignored[:IGNORED_SHOWN]!r}{'…' if len(ignored) > IGNORED_SHOWN else ''}"
            log.warning(
                "%s %s: ignored %d characters after the JSON value: %s", self.method, self.path, len(ignored), excerpt
            )
        return value

    def json_object(self) -> dict[str, Any]:
        """Return the JSON body, which must be an object; 400 otherwise."""
        value = self.json()
        if not isinstance(value, dict):
            raise ApiError(400, f"The body must be a JSON object, not {json_type(value)}")
        return value


@dataclass
class Answer:
    """What the server sends back."""

    status: int = 200
    body: bytes = b""
    content_type: str = "application/json"
    headers: dict[str, str] = field(default_factory=dict)

    @classmethod
    def json(cls, value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Answer:
        """Answer with a value as JSON."""
        return cls(status, _utf8(json.dumps(value, ensure_ascii=False)), headers=dict(headers or {}))

    @classmethod
    def text(cls, text: str, kind: str = "plain", headers: Mapping[str, str] | None = None) -> Answer:
        """Answer with a text."""
        return cls(200, _utf8(text), f"text/{kind}; charset=utf-8", dict(headers or {}))

    @classmethod
    def error(cls, error: ApiError, path: str) -> Answer:
        """Answer with the documented error body."""
        phrase = HTTPStatus(error.status).phrase
        body = {"status": error.status, "error": phrase, "message": str(error), "path": path}
        return cls.json(body, error.status, error.headers)


Later = Callable[[], Answer | None]
"""Called repeatedly until it returns an answer."""


def parse_number(text: str, name: str) -> int:
    """Parse a number of 0 or more from a path or query; 400 if it is not one."""
    if not (text.isascii() and text.isdigit() and len(text) <= MAX_DIGITS):
        raise ApiError(400, f"Parameter '{name}' must be a number, not '{text}'")
    return int(text)


def required(body: Mapping[str, Any], name: str, kind: type | tuple[type, ...]) -> Any:
    """Return a field of a JSON body; 400 if it is missing, empty or of another type."""
    value = body.get(name)
    if value is None or (isinstance(value, str) and not value.strip()):
        raise ApiError(400, f"Field '{name}' is required")
    return _checked_type(name, value, kind)


def optional(body: Mapping[str, Any], name: str, kind: type | tuple[type, ...], default: Any) -> Any:
    """Return a field of a JSON body, or the default if it is missing or null; 400 for another type."""
    value = body.get(name)
    return default if value is None else _checked_type(name, value, kind)


def string_list(body: Mapping[str, Any], name: str) -> list[str]:
    """Return a field that is a list of strings, empty if it is missing; 400 for anything else."""
    values: list[Any] = optional(body, name, list, [])
    if not all(isinstance(value, str) for value in values):
        raise ApiError(400, f"Field '{name}' must be a list of strings")
    return values


def json_type(value: object) -> str:
    """Return the name of a JSON value's type, with its article."""
    if value is None:
        return "null"
    names = {bool: "a boolean", int: "a number", float: "a number", str: "a string", list: "an array"}
    return names.get(type(value), "an object")


def milliseconds(seconds: float | None) -> int | None:
    """Return a Unix time in milliseconds, as the API writes it."""
    return None if seconds is None else int(seconds * 1000)


def _utf8(text: str) -> bytes:
    # JSON may contain half a surrogate pair, which UTF-8 cannot encode; its escape is valid JSON.
    return text.encode("utf-8", "backslashreplace")


def _checked_type(name: str, value: Any, kind: type | tuple[type, ...]) -> Any:
    # In Python, a boolean is a number; in JSON, it is not.
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is int):
        raise ApiError(400, f"Field '{name}' must not be {json_type(value)}")
    return value
