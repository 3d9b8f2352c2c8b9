"""
Every failure a user of this package can meet, in one tree.

EtlworksError
├── EtlworksConfigError          a setting or an argument is wrong; nothing was sent
├── EtlworksUnreachable          no answer: connection refused, dropped, timed out
├── EtlworksReplyError           an answer that cannot be read: not JSON, cut off, a field missing
├── EtlworksApiError             an answer that says no                      .status .message .retry_after
│   ├── EtlworksBadRequest           400, 405, 415, and other statuses below 500
│   ├── EtlworksUnauthorized         401, after one renewed log-in
│   ├── EtlworksForbidden            403: the role does not allow it
│   ├── EtlworksNotFound             404: no such thing, or not visible to this user
│   ├── EtlworksConflict             409: somebody else changed it first
│   ├── EtlworksRateLimited          429: over the organization's limit
│   ├── EtlworksServerError          5xx, 408, 425
│   ├── EtlworksRedirected           3xx to where credentials must not go
│   └── EtlworksRefused              200, but the body says ``"success": false``  .answer
├── EtlworksStartRefused         Etlworks answered the start, and started nothing
│   └── EtlworksAlreadyRunning       because another run of the flow is going    .audit_id
├── EtlworksStartUnknown         the start was sent, and no run could be matched to it  .candidates
├── EtlworksImportFailed         Etlworks refused an import, or imported only a part of it
├── EtlworksImportUnknown        an import was sent, and whether it was applied is not known
├── EtlworksExecutionFailed      the run ended badly                         .execution
├── EtlworksExecutionTimeout     the run was still going at the deadline
└── EtlworksLostTouch            the run's status could not be read for too long

Two attributes matter to whoever catches one. ``retryable``: could the same request succeed later? ``not_processed``: is
it certain that the server did not act on it? "The run failed" and "we could not ask" are never the same type.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from typing_extensions import Self

from airflow_provider_etlworks.client.text import visible

if TYPE_CHECKING:
    from collections.abc import Iterable

ErrorT = TypeVar("ErrorT", bound="EtlworksError")

CERTAIN_REFUSALS = frozenset({400, 401, 403, 404, 405, 409, 413, 415, 422, 429})
"""The HTTP statuses that prove that Etlworks did not act on a request. Any other but 2xx leaves it in doubt."""


class EtlworksError(Exception):
    """
    Something went wrong between this package and Etlworks, or in an Etlworks run.

    :param message: what happened, with what is known about the remote side, and what to do. It becomes one line:
        spaces replace its control characters.
    :param retryable: whether the same request could succeed later.
    :param not_processed: whether it is certain that the server did not act on the request.
    :ivar connection: the connection that the error is about, if it has a name.
    """

    def __init__(self, message: str, *, retryable: bool = False, not_processed: bool = False) -> None:
        super().__init__(visible(message))
        self.connection: str | None = None
        self.retryable = retryable
        self.not_processed = not_processed

    def of(self, connection: str | None) -> Self:
        """
        Name the connection that the error is about in its message, once, and return the error.

        :param connection: what people call it, such as the id of the Airflow connection; ``None`` changes nothing.
        """
        if connection is not None and self.connection is None:
            self.connection = connection
            self.args = (f"Connection {connection!r}: {self}", *self.args[1:])
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy and pickle without ``__init__``, whose keyword arguments an exception does not keep."""
        return _restored, (type(self), self.args, self.__dict__)


def _restored(kind: type[EtlworksError], args: tuple[Any, ...], attributes: dict[str, Any]) -> EtlworksError:
    error = kind.__new__(kind, *args)
    error.__dict__.update(attributes)
    return error


class EtlworksConfigError(EtlworksError, ValueError):
    """A setting of the connection, or an argument, cannot work. Nothing was sent."""

    def __init__(self, message: str) -> None:
        super().__init__(message, not_processed=True)


class EtlworksUnreachable(EtlworksError):
    """No answer came: the connection was refused, was dropped, or timed out."""

    def __init__(self, message: str, *, not_processed: bool = False) -> None:
        super().__init__(message, retryable=True, not_processed=not_processed)


class EtlworksReplyError(EtlworksError):
    """An answer came that cannot be read. Whether the server acted on the request is not known."""

    def __init__(self, message: str) -> None:
        super().__init__(message, retryable=True)


class EtlworksApiError(EtlworksError):
    """
    Etlworks, or a proxy in front of it, answered with an error.

    :param message: what happened, and what to do.
    :param status: the HTTP status code.
    :param retry_after: seconds that the server asks to wait, if it does.
    :param status_is_certain: whether a status of :data:`CERTAIN_REFUSALS` proves that the server did not act on the
        request.
    :ivar status: the HTTP status code.
    :ivar retry_after: seconds that the server asks to wait, if it does.
    """

    retryable_by_nature = False

    def __init__(
        self, message: str, *, status: int, retry_after: float | None = None, status_is_certain: bool = True
    ) -> None:
        is_refusal = status_is_certain and status in CERTAIN_REFUSALS
        super().__init__(message, retryable=self.retryable_by_nature, not_processed=is_refusal)
        self.status = status
        self.retry_after = retry_after


class EtlworksBadRequest(EtlworksApiError):
    """The server refuses the request as it is (400, 405, 415, …), or gives a status below 500 that it should not."""


class EtlworksUnauthorized(EtlworksApiError):
    """The credentials are missing, wrong or expired (401), also after one renewed log-in."""


class EtlworksForbidden(EtlworksApiError):
    """The user's role does not allow the call (403)."""


class EtlworksNotFound(EtlworksApiError):
    """What was asked for does not exist, or this user cannot see it (404)."""


class EtlworksConflict(EtlworksApiError):
    """A duplicate name, or a concurrent change (409)."""


class EtlworksRateLimited(EtlworksApiError):
    """Over the organization's limit of requests (429)."""

    retryable_by_nature = True


class EtlworksServerError(EtlworksApiError):
    """A passing fault of the server or of a proxy before it (5xx, 408, 425). The server may have acted on it."""

    retryable_by_nature = True


class EtlworksRedirected(EtlworksApiError):
    """The server redirects to where credentials must not go (3xx). It may have acted on the request before."""


class EtlworksRefused(EtlworksApiError):
    """
    The answer's status is 200, and its body says ``"success": false``.

    The server may have done a part of the work first.

    :ivar answer: the body, read as JSON. It may hold what must not be shown.
    """

    def __init__(self, message: str, *, status: int, answer: Any = None) -> None:
        super().__init__(message, status=status)
        self.answer = answer


class EtlworksStartRefused(EtlworksError):
    """Etlworks answered the start of a flow, and started nothing."""

    def __init__(self, message: str) -> None:
        super().__init__(message, not_processed=True)


class EtlworksAlreadyRunning(EtlworksStartRefused):
    """
    Another run of the flow is going, and only one is allowed at a time.

    :ivar audit_id: that run's audit id; ``None`` if it could not be found.
    """

    def __init__(self, message: str, *, audit_id: int | None = None) -> None:
        super().__init__(message)
        self.audit_id = audit_id


class EtlworksStartUnknown(EtlworksError):
    """
    A start was sent, its answer was lost, and no single run can be matched to it. A run may be going.

    :ivar candidates: audit ids of the runs that may be the one.
    """

    def __init__(self, message: str, *, candidates: Iterable[int] = ()) -> None:
        super().__init__(message)
        self.candidates = tuple(candidates)


class EtlworksImportFailed(EtlworksError):
    """Etlworks refused an import, or imported only a part of it. The message says what is done, as far as known."""


class EtlworksImportUnknown(EtlworksError):
    """An import was sent, its answer was lost, and the target does not show whether it was applied."""


class EtlworksExecutionFailed(EtlworksError):
    """
    A run ended badly: with ``error``, ``canceled``, an unknown status, or ``warning`` if that counts as bad.

    :ivar execution: the run's last record, a :class:`~airflow_provider_etlworks.client.models.Execution`.
    """

    # An Execution; its type would make models and errors import each other.
    def __init__(self, message: str, *, execution: Any) -> None:
        super().__init__(message)
        self.execution = execution


class EtlworksExecutionTimeout(EtlworksError):
    """A run was still going when the time to wait for it was over."""


class EtlworksLostTouch(EtlworksError):
    """The status of a run could not be read for longer than the patience. The run may still be going."""


_BY_STATUS: dict[int, type[EtlworksApiError]] = {
    401: EtlworksUnauthorized,
    403: EtlworksForbidden,
    404: EtlworksNotFound,
    408: EtlworksServerError,
    409: EtlworksConflict,
    425: EtlworksServerError,
    429: EtlworksRateLimited,
}

_ADVICE: dict[type[EtlworksApiError], str] = {
    EtlworksUnauthorized: "The API key, or login and password, is wrong or has expired.",
    EtlworksForbidden: "The user's role does not allow this.",
    EtlworksNotFound: "It does not exist, or this user cannot see it.",
    EtlworksConflict: "It was changed by somebody else, or the name is taken.",
    EtlworksRateLimited: "The organization is over its limit of requests.",
}


def api_error(
    request: str,
    status: int,
    message: str,
    *,
    retry_after: float | None = None,
    status_is_certain: bool = True,
) -> EtlworksApiError:
    """
    Make the error that belongs to an HTTP status.

    :param request: method and path, for the reader.
    :param status: the HTTP status.
    :param message: what the server said, already redacted.
    :param retry_after: seconds that the server asks to wait.
    :param status_is_certain: as for :class:`EtlworksApiError`.
    """
    kind = _BY_STATUS.get(status, EtlworksServerError if status >= 500 else EtlworksBadRequest)
    said = f": {message}" if message else ""
    advice = _ADVICE.get(kind)
    return kind(
        f"Etlworks answered {status} to {request}{said}" + (f" ({advice})" if advice else ""),
        status=status,
        retry_after=retry_after,
        status_is_certain=status_is_certain,
    )


def error_message(body: Any) -> str:
    """Take the human part out of an error body: ``message``, else ``error``, else ``exception``."""
    if not isinstance(body, dict):
        return ""
    said = (body.get(field) for field in ("message", "error", "exception"))
    return next((each for each in said if isinstance(each, str) and each), "")
