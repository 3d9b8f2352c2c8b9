"""
What both transports share: how a request looks on the wire, where a redirect may lead, what a broken one means.

A transport adds only how bytes are sent, how one waits, and how one locks.
"""

from __future__ import annotations

import os
import re
import ssl
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, urljoin, urlsplit

from airflow_provider_etlworks import __version__
from airflow_provider_etlworks.client.errors import EtlworksConfigError, EtlworksRedirected, EtlworksUnreachable
from airflow_provider_etlworks.client.redaction import redact
from airflow_provider_etlworks.client.settings import DEFAULT_PORTS, proxy_url

if TYPE_CHECKING:
    from airflow_provider_etlworks.client.call import Call, Response
    from airflow_provider_etlworks.client.settings import ClientSettings

COMMON_HEADERS = {
    "Accept": "application/json, */*;q=0.5",
    "User-Agent": f"airflow-provider-etlworks/{__version__}",
}
"""What every request says."""

POOL_SIZE = 10
"""Connections that one client keeps open at most."""

_REDIRECTS = (301, 302, 303, 307, 308)
_LONGEST_REDIRECT_CHAIN = 5
_URL_QUERY = re.compile(r"\?[^\s'\")]+")


def request_headers(call: Call[Any], bearer: str | None) -> dict[str, str]:
    """Return the headers that a call has besides :data:`COMMON_HEADERS`."""
    headers = {} if bearer is None else {"Authorization": f"Bearer {bearer}"}
    if call.content_type is not None:
        headers["Content-Type"] = call.content_type
    return headers


def redirect_target(call: Call[Any], url: str, answer: Response, redirects: int = 0) -> str | None:
    """
    Return the URL that an answer redirects to; ``None`` for an answer that redirects nowhere.

    Credentials stay with the host they are meant for, and never go from https to plain http. A redirect that would
    turn a POST into a GET is refused as well: what was asked for would silently not happen.

    :param url: what answered.
    :param redirects: how many redirects led there.
    :raises EtlworksRedirected: the redirect must not be followed.
    """
    if answer.status not in _REDIRECTS or not (location := answer.headers.get("Location")):
        return None
    try:
        target = urljoin(url, location)
        here, there = urlsplit(url), urlsplit(target)
        same_host = _is_same_host(here, there)
    except ValueError:
        raise EtlworksRedirected(f"Etlworks redirects {call} to what is no address.", status=answer.status) from None
    keeps_method = answer.status in (307, 308) or call.method in ("GET", "HEAD")
    if not same_host:
        reason = "Credentials are not sent there. If that is the right address, make it the connection's Host."
    elif not keeps_method:
        reason = f"A {call.method} does not survive it. Make that address the connection's Host."
    elif redirects >= _LONGEST_REDIRECT_CHAIN:
        reason = "Too many redirects."
    else:
        return target
    address = f"{there.scheme}://{there.netloc.rpartition('@')[2]}"
    raise EtlworksRedirected(f"Etlworks redirects {call} to {address}. {reason}", status=answer.status)


def _is_same_host(here: SplitResult, there: SplitResult) -> bool:
    """Whether credentials for ``here`` may go to ``there``. A secure port of the same host is as good."""
    if there.username is not None or here.hostname != there.hostname:
        return False
    if here.scheme != there.scheme:
        return (here.scheme, there.scheme) == ("http", "https")
    default = DEFAULT_PORTS.get(here.scheme)
    return (here.port or default) == (there.port or default)


def unreachable(
    call: Call[Any], settings: ClientSettings, error: BaseException, *, not_processed: bool
) -> EtlworksUnreachable:
    """
    Return the error for a request that got no (whole) answer.

    It tells all that ``error`` says but secrets: raise it ``from None``, so that no traceback repeats the original.
    """
    cause = redact(_URL_QUERY.sub("", str(error)) or "no details", settings.secrets)
    sent = "It did not reach the server." if not_processed else "The server may have received it."
    return EtlworksUnreachable(
        f"No answer from {settings.root_url} to {call}: {type(error).__name__}: {cause}. {sent}",
        not_processed=not_processed,
    )


def proxy_for(settings: ClientSettings) -> str | None:
    """
    Return the proxy to use: the connection's, else the environment's, unless ``NO_PROXY`` names the host.

    :raises EtlworksConfigError: the environment's is no address of an HTTP proxy.
    """
    if settings.proxy:
        return proxy_url(settings.proxy)
    # A DAG file's import must not load requests. It knows more forms of NO_PROXY than Python itself: ports, networks.
    from requests.utils import get_environ_proxies, select_proxy

    found: str | None = select_proxy(settings.root_url, get_environ_proxies(settings.root_url))
    return found and proxy_url(found, "The proxy in the environment (HTTPS_PROXY, HTTP_PROXY, ALL_PROXY)")


def ca_bundle(settings: ClientSettings) -> bool | str:
    """
    Return what to check certificates with: ``False``, or the path of a CA bundle; the same for both transports.

    :raises EtlworksConfigError: there is no such file, or it holds no certificates.
    """
    if settings.verify is False:
        return False
    bundles = {"verify": settings.verify} if isinstance(settings.verify, str) else _bundles_of_environment()
    for name, path in bundles.items():
        if not Path(path).is_file():
            raise EtlworksConfigError(f"{name} names the CA bundle {path!r}; there is no such file on this machine.")
        try:
            ssl.create_default_context(cafile=path)
        except ssl.SSLError as error:
            raise EtlworksConfigError(f"{name} names {path!r}, which is no CA bundle: {error}") from error
        return path
    import certifi

    return certifi.where()


def _bundles_of_environment() -> dict[str, str]:
    names = ("REQUESTS_CA_BUNDLE", "SSL_CERT_FILE")
    return {name: path for name in names if (path := os.environ.get(name))}
