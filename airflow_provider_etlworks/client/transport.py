"""
What both transports share: the headers of a request, where a redirect may lead, what a failed request means.

A transport adds only how it sends bytes, waits and locks.
"""

from __future__ import annotations

import os
import re
import ssl
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, urljoin, urlsplit

import certifi
from requests.utils import get_environ_proxies, select_proxy

from airflow_provider_etlworks import __version__
from airflow_provider_etlworks.client.call import basic_token
from airflow_provider_etlworks.client.errors import (
    EtlworksConfigError,
    EtlworksError,
    EtlworksRateLimited,
    EtlworksRedirected,
    EtlworksReplyError,
    EtlworksUnreachable,
)
from airflow_provider_etlworks.client.network_faults import plain_words
from airflow_provider_etlworks.client.rate_limit import Priority
from airflow_provider_etlworks.client.redaction import redact
from airflow_provider_etlworks.client.settings import DEFAULT_PORTS, proxy_url

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from airflow_provider_etlworks.client.call import Call
    from airflow_provider_etlworks.client.settings import ClientSettings

COMMON_HEADERS = {
    "Accept": "application/json, */*;q=0.5",
    # What ResponseBody can decompress.
    "Accept-Encoding": "gzip, deflate",
    "User-Agent": f"airflow-provider-etlworks/{__version__}",
}
"""Headers of every request."""

POOL_SIZE = 10
"""The most connections that a client, or all clients with the same credentials in one event loop, use at a time."""

MAX_HEADER_BYTES = 65_536
"""The longest header line that is read. It is the limit of Python's own ``http.client``."""

MAX_HEADERS = 100
"""Header lines of a response, with the empty one at the end. It is the limit of ``http.client``, too."""

_REDIRECTS = (301, 302, 303, 307, 308)
_LONGEST_REDIRECT_CHAIN = 5
# The name of a certificate in a directory: the hash of its subject, and a number.
_HASHED_NAME = re.compile(r"[0-9a-f]{8}\.\d+")
_URL_QUERY = re.compile(r"\?[^\s'\")]+")


class SendingPaused(Exception):
    """The request was not sent: Etlworks asked for a pause after the request had got its turn."""


def default_priority(call: Call[Any]) -> Priority:
    """Return the priority of a call for which its caller names none: what must not be repeated starts something."""
    return Priority.POLL if call.idempotent else Priority.START


def priority_after(error: EtlworksError, priority: Priority | None) -> Priority | None:
    """Return the priority for the time after an error: a stop ignores a pause only once."""
    is_refused = isinstance(error, EtlworksRateLimited) and priority is Priority.STOP
    return Priority.LAST_POLL if is_refused else priority


def request_headers(call: Call[Any], bearer: str | None) -> dict[str, str]:
    """Return the headers that a call has besides :data:`COMMON_HEADERS`."""
    headers = {} if bearer is None else {"Authorization": f"Bearer {bearer}"}
    if call.basic is not None:
        headers["Authorization"] = f"Basic {basic_token(*call.basic)}"
    if call.content_type is not None:
        headers["Content-Type"] = call.content_type
    return headers


def redirect_target(
    call: Call[Any], url: object, status: int, headers: Mapping[str, str], redirects: int = 0
) -> str | None:
    """
    Return the URL that a response redirects to; ``None`` if it is not a redirect.

    Credentials stay with the connection's host, and never go from https to plain http. A redirect that would turn a
    POST into a GET is refused as well: the POST would silently not happen.

    :param call: the call.
    :param url: the URL that sent the response; its text is read only if it redirects.
    :param status: the response's status.
    :param headers: the response's headers.
    :param redirects: how many redirects led there.
    :raises EtlworksRedirected: the redirect must not be followed.
    """
    if status not in _REDIRECTS or not (location := headers.get("Location")):
        return None
    try:
        if not (location.isascii() and location.isprintable()) or " " in location:
            raise ValueError(location)  # noqa: TRY301  # as urlsplit does
        target = urljoin(str(url), location)
        here, there = urlsplit(str(url)), urlsplit(target)
        same_host = _is_same_host(here, there)
    except ValueError:
        raise EtlworksRedirected(f"Etlworks redirects {call} to an invalid address.", status=status) from None
    keeps_method = status in (307, 308) or call.method in ("GET", "HEAD")
    if not same_host:
        reason = "Credentials are not sent there. If that address is right, make it the connection's Host."
    elif not keeps_method:
        reason = f"A {call.method} does not survive it. Make that address the connection's Host."
    elif redirects >= _LONGEST_REDIRECT_CHAIN:
        reason = "Too many redirects."
    else:
        return target
    address = f"{there.scheme}://{there.netloc.rpartition('@')[2]}"
    raise EtlworksRedirected(f"Etlworks redirects {call} to {address}. {reason}", status=status)


def _is_same_host(here: SplitResult, there: SplitResult) -> bool:
    """Return whether credentials for ``here`` may go to ``there``. From http, any https port of the host will do."""
    if there.username is not None or here.hostname != there.hostname:
        return False
    if here.scheme != there.scheme:
        return (here.scheme, there.scheme) == ("http", "https")
    default = DEFAULT_PORTS.get(here.scheme)
    return (here.port or default) == (there.port or default)


class Exchange:
    """
    One request on the wire, and what we observed of it. It decides what a failure means, for both transports.

    :param call: the call.
    :param settings: the connection.
    :ivar sent: whether a byte of the request was handed to an established connection, or to a tunnel. Only a request
        that was not sent is certainly not processed; the names of a library's exceptions are no evidence.
    :ivar needs_fresh_connection: whether it must not use a kept-alive connection, which a server may drop any time.
    :ivar read_timeout: seconds to wait for the next bytes.
    :ivar time_limit: seconds that the whole response may take.
    :ivar deadline: until when bytes may be received, by the monotonic clock of the machine.
    :ivar is_paused: returns whether Etlworks has asked for a pause, so that nothing must be sent now.
    """

    __slots__ = ("deadline", "is_paused", "needs_fresh_connection", "read_timeout", "sent", "time_limit")

    def __init__(self, call: Call[Any], settings: ClientSettings, is_paused: Callable[[], bool]) -> None:
        self.sent = False
        self.is_paused = is_paused
        self.needs_fresh_connection = not call.idempotent
        self.read_timeout = settings.read_timeout
        self.time_limit = settings.read_timeout + min(call.overtime, settings.max_overtime)
        # A tunnel through a proxy has a response of its own.
        self.deadline = time.monotonic() + settings.connect_timeout + settings.read_timeout

    def expect_response(self) -> None:
        """Begin the time limit of the response."""
        self.deadline = time.monotonic() + self.time_limit

    def failure(self, call: Call[Any], settings: ClientSettings, error: BaseException) -> EtlworksError:
        """
        Return the error for a request without a (whole) response.

        Its message is that of ``error`` without secrets: raise it ``from None``, so that no traceback shows the
        original.

        :param call: the call.
        :param settings: the connection.
        :param error: what the library raised.
        """
        if self.sent and time.monotonic() >= self.deadline:
            return EtlworksReplyError(
                f"The response to {call} was not complete after {self.time_limit:g} s. "
                "The server may have processed the request."
            )
        words = plain_words(error, settings) or f"{type(error).__name__}: {str(error) or 'no details'}"
        cause = redact(_URL_QUERY.sub("", words), (*settings.secrets, *call.secrets))
        conclusion = "The server may have received it." if self.sent else "It did not reach the server."
        return EtlworksUnreachable(
            f"No answer from {settings.root_url} to {call}: {cause}. {conclusion}",
            not_processed=not self.sent,
        )


def proxy_for(settings: ClientSettings) -> str | None:
    """
    Return the proxy to use: the connection's, else the environment's, unless ``NO_PROXY`` names the host.

    :raises EtlworksConfigError: the environment's is not the address of an HTTP proxy.
    """
    if settings.proxy:
        return proxy_url(settings.proxy)
    # requests reads more forms of NO_PROXY than Python itself: ports, networks.
    found: str | None = select_proxy(settings.root_url, get_environ_proxies(settings.root_url))
    return found and proxy_url(found, "The proxy in the environment (HTTPS_PROXY, HTTP_PROXY, ALL_PROXY)")


def ca_bundle(settings: ClientSettings) -> bool | str:
    """
    Return what both transports check certificates with: the path of a CA bundle, or ``False`` for nothing.

    :return: a file of certificates, or a directory of them as ``openssl rehash`` prepares it.
    :raises EtlworksConfigError: the path does not exist, or contains no certificates.
    """
    if settings.verify is False:
        return False
    bundles = {"verify": settings.verify} if isinstance(settings.verify, str) else _bundles_of_environment()
    for name, path in bundles.items():
        if Path(path).is_dir():
            if not any(_HASHED_NAME.fullmatch(file.name) for file in Path(path).iterdir()):
                raise EtlworksConfigError(
                    f"{name} names the directory {path!r}, which has no certificates under hashed names. "
                    f"Run `openssl rehash` on it, or name a file."
                )
            return path
        if not Path(path).is_file():
            raise EtlworksConfigError(f"{name} names the CA bundle {path!r}, which does not exist on this machine.")
        try:
            tls_context(path)
        except ssl.SSLError as error:
            raise EtlworksConfigError(f"{name} names {path!r}, which is not a CA bundle: {error}") from error
        return path
    return certifi.where()


def tls_context(ca_bundle: str) -> ssl.SSLContext:
    """Return a context that trusts the certificates of a file, or of a directory."""
    if Path(ca_bundle).is_dir():
        return ssl.create_default_context(capath=ca_bundle)
    return ssl.create_default_context(cafile=ca_bundle)


def _bundles_of_environment() -> dict[str, str]:
    names = ("REQUESTS_CA_BUNDLE", "SSL_CERT_FILE")
    return {name: path for name in names if (path := os.environ.get(name))}
