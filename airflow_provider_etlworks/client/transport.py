"""
What both transports share: the headers of a request, where a redirect may lead, what a failed request means.

A transport adds only how it sends bytes, waits and locks.
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
"""Headers of every request."""

POOL_SIZE = 10
"""The most connections that one client opens at a time."""

_REDIRECTS = (301, 302, 303, 307, 308)
_LONGEST_REDIRECT_CHAIN = 5
_URL_QUERY = re.compile(r"\?[^\s'\")]+")


def request_headers(call: Call[Any], bearer: str | None) -> dict[str, str]:
    """Return the headers that a call has besides :data:`COMMON_HEADERS`."""
    headers = {} if bearer is None else {"Authorization": f"Bearer {bearer}"}
    if call.content_type is not None:
        headers["Content-Type"] = call.content_type
    return headers


def redirect_target(call: Call[Any], url: str, response: Response, redirects: int = 0) -> str | None:
    """
    Return the URL that a response redirects to; ``None`` if it is not a redirect.

    Credentials stay with the connection's host, and never go from https to plain http. A redirect that would turn a
    POST into a GET is refused as well: the POST would silently not happen.

    :param call: the call.
    :param url: the URL that sent the response.
    :param response: the response.
    :param redirects: how many redirects led there.
    :raises EtlworksRedirected: the redirect must not be followed.
    """
    if response.status not in _REDIRECTS or not (location := response.headers.get("Location")):
        return None
    try:
        target = urljoin(url, location)
        here, there = urlsplit(url), urlsplit(target)
        same_host = _is_same_host(here, there)
    except ValueError:
        raise EtlworksRedirected(f"Etlworks redirects {call} to an invalid address.", status=response.status) from None
    keeps_method = response.status in (307, 308) or call.method in ("GET", "HEAD")
    if not same_host:
        reason = "Credentials are not sent there. If that address is right, make it the connection's Host."
    elif not keeps_method:
        reason = f"A {call.method} does not survive it. Make that address the connection's Host."
    elif redirects >= _LONGEST_REDIRECT_CHAIN:
        reason = "Too many redirects."
    else:
        return target
    address = f"{there.scheme}://{there.netloc.rpartition('@')[2]}"
    raise EtlworksRedirected(f"Etlworks redirects {call} to {address}. {reason}", status=response.status)


def _is_same_host(here: SplitResult, there: SplitResult) -> bool:
    """Return whether credentials for ``here`` may go to ``there``. From http, any https port of the host will do."""
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
    Return the error for a request without a (whole) response.

    Its message is that of ``error`` without secrets: raise it ``from None``, so that no traceback shows the original.

    :param call: the call.
    :param settings: the connection.
    :param error: what the library raised.
    :param not_processed: whether the server certainly did not act on the request.
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

    :raises EtlworksConfigError: the environment's is not the address of an HTTP proxy.
    """
    if settings.proxy:
        return proxy_url(settings.proxy)
    # A DAG file's import must not load requests. It reads more forms of NO_PROXY than Python itself: ports, networks.
    from requests.utils import get_environ_proxies, select_proxy

    found: str | None = select_proxy(settings.root_url, get_environ_proxies(settings.root_url))
    return found and proxy_url(found, "The proxy in the environment (HTTPS_PROXY, HTTP_PROXY, ALL_PROXY)")


def ca_bundle(settings: ClientSettings) -> bool | str:
    """
    Return what both transports check certificates with: the path of a CA bundle, or ``False`` for nothing.

    :raises EtlworksConfigError: there is no such file, or it contains no certificates.
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
            raise EtlworksConfigError(f"{name} names {path!r}, which is not a CA bundle: {error}") from error
        return path
    import certifi

    return certifi.where()


def _bundles_of_environment() -> dict[str, str]:
    names = ("REQUESTS_CA_BUNDLE", "SSL_CERT_FILE")
    return {name: path for name in names if (path := os.environ.get(name))}
