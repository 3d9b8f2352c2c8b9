"""Faults between a client and the server, armed per method and path."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

from airflow_provider_etlworks.sandbox.messages import Answer, ApiError

if TYPE_CHECKING:
    from collections.abc import Mapping

HTML_ERROR = b"<html><head><title>Bad gateway</title></head><body>The proxy has no answer.</body></html>"


class Carried(Enum):
    """When the server processes the request."""

    NOT_AT_ALL = "not at all"
    BEFORE_DELAY = "before the delay"
    AFTER_DELAY = "after the delay"


class Reply(Enum):
    """What the client receives."""

    AS_USUAL = "as usual"
    REPLACED = "replaced"
    TRUNCATED = "truncated"
    HANG_UP = "hang up"


@dataclass(frozen=True)
class Fault:
    """
    One fault. The functions of this module create them.

    :param carried: Whether and when the request is processed.
    :param reply: What the client receives.
    :param answer: The answer that replaces the usual one.
    :param error: The error whose documented body replaces the usual answer.
    :param delay: Seconds until the client receives it.
    """

    carried: Carried
    reply: Reply
    answer: Answer | None = None
    error: ApiError | None = None
    delay: float = 0.0

    def __str__(self) -> str:
        """Say what it does, in words."""
        done = {
            Carried.NOT_AT_ALL: "does nothing",
            Carried.BEFORE_DELAY: "does what is asked",
            Carried.AFTER_DELAY: "does what is asked afterwards",
        }[self.carried]
        code = self.error.status if self.error else self.answer.status if self.answer else 200
        reply = {
            Reply.AS_USUAL: "answers as usual",
            Reply.REPLACED: f"answers {code}",
            Reply.TRUNCATED: "sends half of the answer",
            Reply.HANG_UP: "drops the connection",
        }[self.reply]
        return f"{done}, {reply}{f' after {self.delay:g} s' if self.delay else ''}"

    def replacement(self, path: str) -> Answer | None:
        """Return the answer that replaces the usual one, if the fault has one."""
        return Answer.error(self.error, path) if self.error is not None else self.answer


def status(
    code: int, *, headers: Mapping[str, str] | None = None, body: bytes | str | None = None, delay: float = 0.0
) -> Fault:
    """
    Answer with an HTTP status, without processing the request.

    :param code: The status, such as 503.
    :param headers: Headers of the answer, such as ``{"Retry-After": "30"}``.
    :param body: The body; default the documented error body. Its content type is HTML unless ``headers`` has another.
    :param delay: Seconds to wait before the answer. Default 0.
    """
    if body is None:
        error = ApiError(code, "An armed fault of the sandbox", headers)
        return Fault(Carried.NOT_AT_ALL, Reply.REPLACED, error=error, delay=delay)
    rest = dict(headers or {})
    content_type = next((rest.pop(name) for name in list(rest) if name.lower() == "content-type"), "text/html")
    answer = Answer(code, _bytes(body), content_type, rest)
    return Fault(Carried.NOT_AT_ALL, Reply.REPLACED, answer, delay=delay)


def delay(seconds: float, *, carried_out_last: bool = False) -> Fault:
    """
    Answer as usual, but late. Other requests are not delayed.

    :param seconds: The delay.
    :param carried_out_last: False: the request is processed at once, and only the answer is late. True: the request is
        processed after the delay, even if the client has disconnected by then. Default False.
    """
    carried = Carried.AFTER_DELAY if carried_out_last else Carried.BEFORE_DELAY
    return Fault(carried, Reply.AS_USUAL, delay=seconds)


def hang_up(*, carried_out: bool = True, delay: float = 0.0) -> Fault:
    """
    Drop the connection without an answer.

    :param carried_out: Whether the request is processed before. Default True.
    :param delay: Seconds until the connection is dropped. If the client's time-out is shorter, it sees a time-out.
        Default 0.
    """
    return Fault(Carried.BEFORE_DELAY if carried_out else Carried.NOT_AT_ALL, Reply.HANG_UP, delay=delay)


def broken_body(body: bytes | str = HTML_ERROR, *, content_type: str = "text/html", code: int = 200) -> Fault:
    """
    Process the request, then send another answer.

    :param body: The body, such as half a JSON document or nothing. Default an HTML page.
    :param content_type: Its content type.
    :param code: The HTTP status. Default 200.
    """
    return Fault(Carried.BEFORE_DELAY, Reply.REPLACED, Answer(code, _bytes(body), content_type))


def truncated() -> Fault:
    """Process the request, announce the whole answer, send half of it and drop the connection."""
    return Fault(Carried.BEFORE_DELAY, Reply.TRUNCATED)


def redirect(url: str, code: int = 302) -> Fault:
    """
    Redirect to a URL, without processing the request.

    :param url: The ``Location``.
    :param code: The HTTP status. Default 302.
    """
    return Fault(Carried.NOT_AT_ALL, Reply.REPLACED, Answer(code, headers={"Location": url}))


@dataclass
class _Armed:
    method: str
    path: str
    pattern: re.Pattern[str]
    fault: Fault
    times: int | None
    after: int


class Faults:
    """The armed faults, in the order of arming."""

    def __init__(self) -> None:
        self._armed: list[_Armed] = []

    def arm(self, method: str, path: str, fault: Fault, times: int | None, after: int) -> None:
        """
        Arm a fault. See ``Sandbox.fault`` for the parameters.

        :raises ValueError: no request can match, or a number is invalid.
        """
        if not path.startswith(("/", "*")):
            raise ValueError(f"path: expected a path from the root, such as '/rest/v1/flows', got {path!r}")
        if (times is not None and times < 1) or after < 0:
            raise ValueError(f"times: expected 1 or more or None, and after: 0 or more; got {times!r}, {after!r}")
        pattern = re.compile(".*".join(re.escape(part) for part in path.split("*")))
        self._armed.append(_Armed(method.upper(), path, pattern, fault, times, after))

    def clear(self) -> None:
        """Disarm all faults."""
        self._armed.clear()

    def described(self) -> list[dict[str, Any]]:
        """Describe the armed faults, for people and as JSON: ``method``, ``path``, ``does``, ``times``, ``after``."""
        return [
            {
                "method": armed.method,
                "path": armed.path,
                "does": str(armed.fault),
                "times": armed.times,
                "after": armed.after,
            }
            for armed in self._armed
        ]

    def take(self, method: str, path: str) -> Fault | None:
        """Return the fault that applies to a request, and count the request."""
        for armed in self._armed:
            if armed.method not in {method, "*"} or not armed.pattern.fullmatch(path):
                continue
            if armed.after > 0:
                armed.after -= 1
                continue
            if armed.times is not None:
                armed.times -= 1
                if armed.times == 0:
                    self._armed.remove(armed)
            return armed.fault
        return None


def _bytes(body: bytes | str) -> bytes:
    return body.encode() if isinstance(body, str) else body
