"""The settings of a client for one Etlworks instance, checked before anything is sent."""

from __future__ import annotations

import ipaddress
import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from airflow_provider_etlworks.client.errors import EtlworksConfigError
from airflow_provider_etlworks.client.redaction import redact

if TYPE_CHECKING:
    from collections.abc import Sequence

DEFAULT_CONNECT_TIMEOUT = 10.0
DEFAULT_READ_TIMEOUT = 30.0
DEFAULT_REQUESTS_PER_MINUTE = 300

DEFAULT_STOP_PATH = "/v1/flows/{flow_id}/stop?auditId={audit_id}"
"""The path of a stop. Etlworks documents that a stop exists, but not its path: an assumption, and a setting."""

DEFAULT_PORTS = {"http": 80, "https": 443}
_HOST_EXAMPLE = "Write it like 'app.etlworks.com' or 'https://etlworks.example.com:8443'."


def root_url(host: str | None, port: int | None = None, scheme: str | None = None) -> str:
    """
    Return the bare address of an instance, from any spelling of its host.

    :param host: host name, IP address or URL, with or without scheme, port, ``/rest``, ``/rest/v1`` and trailing
        slashes.
    :param port: the port, if ``host`` has none.
    :param scheme: ``http`` or ``https``, if ``host`` has none; ``https`` by default.
    :return: such as ``https://app.etlworks.com``; a path that is not ``/rest`` stays, for instances below a path.
    :raises EtlworksConfigError: this is not an address.
    """
    written = (host or "").strip()
    if not written:
        raise EtlworksConfigError(f"The connection has no Host. {_HOST_EXAMPLE}")
    # Before anything else, so that no other message repeats them.
    if "@" in written:
        raise EtlworksConfigError("Host contains credentials. Put them into Login and Password.")
    if "://" not in written:
        scheme = (scheme or "").strip().lower() or "https"
        if scheme not in DEFAULT_PORTS:
            raise EtlworksConfigError(f"Schema is {scheme!r}; it must be http or https, or empty.")
        written = f"{scheme}://{written}"
    written = _with_brackets(written)
    try:
        parts = urlsplit(written)
        own_port = parts.port
    except ValueError as error:
        raise EtlworksConfigError(f"Host {redact(written)!r} is not an address: {error}. {_HOST_EXAMPLE}") from None
    if parts.scheme not in DEFAULT_PORTS:
        raise EtlworksConfigError(f"Host begins with '{parts.scheme}://'; it must be http or https.")
    hostname = parts.hostname or ""
    # "https:/example.com" names a host called "https".
    names_no_host = not hostname or hostname in DEFAULT_PORTS or any(map(str.isspace, parts.netloc))
    if names_no_host or own_port == 0 or parts.query or parts.fragment:
        raise EtlworksConfigError(f"Host {redact(written)!r} is not an address. {_HOST_EXAMPLE}")
    if own_port is None and port is not None and not 0 < port < 65_536:
        raise EtlworksConfigError(f"Port is {port!r}; it must be a number from 1 to 65535, or empty.")
    name = f"[{hostname}]" if ":" in hostname else hostname
    port = own_port if own_port is not None else port
    path = [segment for segment in parts.path.split("/") if segment]
    if path[-1:] == ["v1"]:
        path.pop()
    if path[-1:] == ["rest"]:
        path.pop()
    address = f"{parts.scheme}://{name}"
    if port is not None and port != DEFAULT_PORTS[parts.scheme]:
        address += f":{port}"
    return "/".join([address, *path])


def _with_brackets(url: str) -> str:
    """Return a URL whose host may be an IPv6 address without its brackets, with them."""
    scheme, separator, rest = url.partition("://")
    host, slash, path = rest.partition("/")
    try:
        ipaddress.IPv6Address(host)
    except ValueError:
        return url
    return f"{scheme}{separator}[{host}]{slash}{path}"


def proxy_url(written: str, field_name: str = "proxy") -> str:
    """
    Return the URL of a proxy, which may be written without its scheme.

    :param written: such as ``http://proxy.example.com:3128``.
    :param field_name: the setting, for the message.
    :raises EtlworksConfigError: this is not the address of an HTTP proxy. The message does not repeat it, since it may
        hold a password.
    """
    url = written if "://" in written else f"http://{written}"
    try:
        parts = urlsplit(url)
        usable = parts.scheme in DEFAULT_PORTS and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise EtlworksConfigError(
            f"{field_name} is not the address of an HTTP proxy. Write it like 'http://proxy.example.com:3128'."
        )
    return url


@dataclass(frozen=True)
class ClientSettings:
    """
    One Etlworks instance, and how to reach it.

    :ivar root_url: the bare address, as :func:`root_url` returns it.
    :ivar login: the user's name; ``None`` if ``password`` is an API key.
    :ivar password: the user's password, or an API key.
    :ivar tenant_id: the tenant that a super admin switches to after log-in.
    :ivar verify: whether to check the server's certificate, or the path of a CA bundle: a file, or a directory of
        certificates under hashed names.
    :ivar proxy: URL of a proxy; ``None`` uses the environment's (``HTTPS_PROXY``, ``NO_PROXY``).
    :ivar connect_timeout: seconds to wait for a connection.
    :ivar read_timeout: seconds to wait for the next part of an answer.
    :ivar max_overtime: seconds beyond ``read_timeout`` that a whole response may take at most, if a call allows more.
    :ivar requests_per_minute: the most requests that this client sends in a minute; 0 means no limit.
    :ivar stop_path: the path of a stop, with ``{flow_id}`` and ``{audit_id}``.
    :ivar ui_url: what "Open in Etlworks" opens, with ``{flow_id}`` and ``{audit_id}``; ``None`` is the bare address.
    :ivar run_key_parameter: the flow parameter that every start fills with a unique key, as proof of whose run it is;
        ``None`` is none.
    :ivar name: what messages call this connection; ``None`` leaves it out.
    :raises EtlworksConfigError: credentials are missing, or a value cannot work.
    """

    root_url: str
    password: str = field(repr=False)
    login: str | None = None
    tenant_id: str | None = None
    verify: bool | str = True
    proxy: str | None = field(default=None, repr=False)
    connect_timeout: float = DEFAULT_CONNECT_TIMEOUT
    read_timeout: float = DEFAULT_READ_TIMEOUT
    max_overtime: float = math.inf
    requests_per_minute: int = DEFAULT_REQUESTS_PER_MINUTE
    stop_path: str = DEFAULT_STOP_PATH
    ui_url: str | None = None
    run_key_parameter: str | None = None
    name: str | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        """Check what would otherwise fail late, or quote a secret while failing."""
        if not self.password:
            what = "a Password for its Login" if self.login else "an API key in Password, or Login and Password"
            raise EtlworksConfigError(f"The connection has no credentials. It needs {what}.")
        if self.login is None and not (self.password.isascii() and self.password.isprintable()):
            raise EtlworksConfigError(
                "Password, used as an API key since Login is empty, has characters that no key has. "
                "Was a line break copied with it?"
            )
        for name in ("connect_timeout", "read_timeout"):
            if not 0 < getattr(self, name) < math.inf:
                raise EtlworksConfigError(
                    f"{name} is {getattr(self, name)!r}; it is a number of seconds greater than 0."
                )
        if not 0 <= self.requests_per_minute < math.inf:
            raise EtlworksConfigError(
                f"requests_per_minute is {self.requests_per_minute!r}; it is a whole number, and 0 means no limit."
            )
        if self.proxy is not None:
            proxy_url(self.proxy)
        self._check_template("stop_path", self.stop_path, begins_with=("/",), example=DEFAULT_STOP_PATH)
        if self.ui_url is not None:
            example = "https://etlworks.example.com/runs/{audit_id}"
            self._check_template("ui_url", self.ui_url, begins_with=("http://", "https://"), example=example)

    @staticmethod
    def _check_template(name: str, template: str, *, begins_with: tuple[str, ...], example: str) -> None:
        try:
            filled = template.format(flow_id=1, audit_id=1)
        except (KeyError, IndexError, ValueError, AttributeError):
            filled = ""
        if not filled.startswith(begins_with):
            raise EtlworksConfigError(
                f"{name} is {template!r}; it begins with {' or '.join(begins_with)}, and may hold {{flow_id}} and "
                f"{{audit_id}}, like {example!r}."
            )

    def with_timeouts(self, *, connect: float, read: float, max_overtime: float = math.inf) -> ClientSettings:
        """Return the same settings with other time-outs, in seconds."""
        return replace(self, connect_timeout=connect, read_timeout=read, max_overtime=max_overtime)

    @property
    def base_url(self) -> str:
        """The URL of the API: the bare address and ``/rest``."""
        return f"{self.root_url}/rest"

    @property
    def secrets(self) -> Sequence[str]:
        """Texts that must never appear in a log, a message or a result."""
        proxy_password = urlsplit(proxy_url(self.proxy)).password if self.proxy else None
        # A password that is the login's own name is not a secret: records name the user.
        secrets = () if self.password == self.login else (self.password,)
        return (*secrets, proxy_password) if proxy_password else secrets

    def execution_url(self, flow_id: int, audit_id: int) -> str:
        """Return the address of a run for people."""
        return (self.ui_url or self.root_url).format(flow_id=flow_id, audit_id=audit_id)
