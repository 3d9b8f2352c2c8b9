"""What a network fault means, in plain words instead of a library's."""

from __future__ import annotations

import socket
import ssl
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterator

    from airflow_provider_etlworks.client.settings import ClientSettings

_MOST_CAUSES = 20
# Each by the names that requests, urllib3 and aiohttp give it: this module imports none of them.
_PROXY = frozenset({"ProxyError", "ClientHttpProxyError", "ClientProxyConnectionError"})
_CONNECT_TIMEOUT = frozenset({"ConnectTimeout", "ConnectTimeoutError", "ConnectionTimeoutError"})
_READ_TIMEOUT = frozenset(
    {"ReadTimeout", "ReadTimeoutError", "SocketTimeoutError", "ServerTimeoutError", "TimeoutError"}
)
_UNKNOWN_NAME = frozenset({"NameResolutionError", "ClientConnectorDNSError"})
_NOT_HTTP = frozenset({"BadStatusLine", "InvalidHeader", "BadHttpMessage", "ResponseError", "ClientResponseError"})
_DROPPED = frozenset(
    {"RemoteDisconnected", "ServerDisconnectedError", "IncompleteRead", "ClientPayloadError", "ChunkedEncodingError"}
)
_EXPIRED = 10
_SELF_SIGNED = (18, 19, 20, 21)
_OTHER_HOST = (62, 64)


def plain_words(error: BaseException, settings: ClientSettings) -> str | None:
    """
    Say in plain words why no answer came.

    :param error: what the library raised.
    :param settings: the connection.
    :return: part of a sentence; ``None`` if it is another fault.
    """
    causes = list(_causes(error))
    names = {type(each).__name__ for each in causes}
    address = urlsplit(settings.root_url)
    host = address.hostname or ""
    if names & _PROXY:
        return f"the proxy does not connect ({causes[-1]})"
    if tls := [each for each in causes if isinstance(each, ssl.SSLError)]:
        # The libraries' own errors are of the same types, without the attributes of Python's.
        return _tls_words(next((each for each in tls if hasattr(each, "reason")), tls[0]), host)
    if names & _UNKNOWN_NAME or any(isinstance(each, socket.gaierror) for each in causes):
        return f"the host name {host!r} is not known"
    if any(isinstance(each, ConnectionRefusedError) for each in causes):
        return "the connection was refused, so nothing listens at that host and port"
    if names & _CONNECT_TIMEOUT:
        return f"no connection within {settings.connect_timeout:g} s"
    if names & _READ_TIMEOUT:
        return f"nothing came for {settings.read_timeout:g} s"
    if names & _NOT_HTTP:
        hint = " Perhaps it speaks TLS: let Host begin with https://" if address.scheme == "http" else ""
        return f"what answers is not a web server.{hint}"
    if names & _DROPPED or any(isinstance(each, ConnectionError) for each in causes):
        return "the connection was dropped"
    return None


def _tls_words(error: ssl.SSLError, host: str) -> str:
    if isinstance(error, ssl.SSLCertVerificationError) and hasattr(error, "verify_code"):
        if error.verify_code == _EXPIRED:
            return "the server's certificate has expired"
        if error.verify_code in _OTHER_HOST:
            return f"the server's certificate is not for the host {host!r}"
        if error.verify_code in _SELF_SIGNED:
            return (
                "the server's certificate is not trusted here. If its authority is your own, let verify in the "
                "connection's extra name the CA bundle"
            )
        return f"the server's certificate cannot be trusted ({error.verify_message})"
    reason: str | None = getattr(error, "reason", None)
    if reason in ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "UNKNOWN_PROTOCOL"):
        return "the port does not speak TLS. If that is meant, let Host begin with http://"
    return f"TLS failed ({reason or error})"


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and what it was made of: libraries wrap their causes in many ways."""
    pending, seen = [error], set[int]()
    while pending and len(seen) < _MOST_CAUSES:
        each = pending.pop(0)
        if id(each) in seen:
            continue
        seen.add(id(each))
        yield each
        inside = (each.__cause__, each.__context__, getattr(each, "reason", None), getattr(each, "os_error", None))
        pending += [cause for cause in (*inside, *each.args) if isinstance(cause, BaseException)]
