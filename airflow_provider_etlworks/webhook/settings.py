"""The connection that turns the webhook on, and how a request proves that it comes from Etlworks."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from airflow_provider_etlworks.client.errors import EtlworksConfigError
from airflow_provider_etlworks.hooks.connection import read_extra
from airflow_provider_etlworks.provider_info import DEFAULT_CONN_ID

if TYPE_CHECKING:
    from collections.abc import Mapping

    from airflow_provider_etlworks.hooks.connection import AirflowConnection

WEBHOOK_CONN_ID = "etlworks_webhook"
"""The Airflow connection whose password is the shared secret. Without it, the webhook is off."""

URL_PREFIX = "/etlworks"
PATH = "/webhook"
"""Where the API server receives Etlworks's posts: ``/etlworks/webhook``."""

DEFAULT_HEADER = "X-Etlworks-Webhook-Secret"
DEFAULT_AIRFLOW_CONN_ID = "etlworks_webhook_airflow"
DEFAULT_STATUSES = ("success", "warning")

_STATUSES = ("success", "warning", "error", "canceled")
_SHORTEST_SECRET = 16
_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")


@dataclass(frozen=True)
class WebhookSettings:
    """
    What the connection of the webhook says.

    :ivar secret: what Etlworks and Airflow share.
    :ivar login: the user of Basic authentication, whose password the secret is; ``None`` if a header has the secret.
    :ivar header: the header that has the secret.
    :ivar signature_header: the header with the HMAC-SHA256 of the body, which replaces both; ``None`` is none.
    :ivar etlworks_conn_id: the connection with which a run's own record is read.
    :ivar airflow_conn_id: the connection with the address and the credentials of Airflow's own API.
    :ivar statuses: the final statuses that update the asset.
    :raises EtlworksConfigError: a value cannot work. No message repeats the secret.
    """

    secret: str = field(repr=False)
    login: str | None = None
    header: str = DEFAULT_HEADER
    signature_header: str | None = None
    etlworks_conn_id: str = DEFAULT_CONN_ID
    airflow_conn_id: str = DEFAULT_AIRFLOW_CONN_ID
    statuses: tuple[str, ...] = DEFAULT_STATUSES

    def __post_init__(self) -> None:
        if len(self.secret) < _SHORTEST_SECRET:
            raise EtlworksConfigError(f"Password, the shared secret, needs at least {_SHORTEST_SECRET} characters.")
        if not (self.secret.isascii() and self.secret.isprintable()) or self.secret != self.secret.strip():
            raise EtlworksConfigError(
                "Password, the shared secret, must have only ASCII letters, digits and punctuation, as headers have."
            )
        if self.login is not None and ":" in self.login:
            raise EtlworksConfigError("Login has a colon, which Basic authentication cannot send.")
        for name in ("header", "signature_header"):
            value = getattr(self, name)
            if value is not None and not _HEADER_NAME.fullmatch(value):
                raise EtlworksConfigError(f"Extra field {name!r} is not the name of a header.")
        if self.login is None and self.header.lower() == "authorization":
            raise EtlworksConfigError("Extra field 'header' is Authorization. For Basic, fill in Login instead.")
        if not self.statuses or not set(self.statuses) <= set(_STATUSES):
            raise EtlworksConfigError(f"Extra field 'statuses' must be a list of some of {', '.join(_STATUSES)}.")

    def is_credential(self, headers: Mapping[str, str]) -> bool:
        """
        Return whether a request's headers have the secret, in constant time; ``True`` if the body is signed instead.

        :param headers: the headers, whose names are found in any case.
        """
        if self.signature_header is not None:
            return True
        if self.login is None:
            return hmac.compare_digest(headers.get(self.header, "").encode(), self.secret.encode())
        scheme, _, encoded = headers.get("Authorization", "").partition(" ")
        try:
            given = base64.b64decode(encoded.strip(), validate=True)
        except (binascii.Error, ValueError):
            given = b""
        is_ours = hmac.compare_digest(given, f"{self.login}:{self.secret}".encode())
        return is_ours and scheme.lower() == "basic"

    def is_signed(self, headers: Mapping[str, str], body: bytes) -> bool:
        """
        Return whether the body has our signature, in constant time; ``True`` if no signature is asked for.

        Its form is not documented: hexadecimal or Base64, with or without ``sha256=`` before it.

        :param headers: the headers, whose names are found in any case.
        :param body: the body, as it came.
        """
        if self.signature_header is None:
            return True
        given = headers.get(self.signature_header, "").strip()
        if given[:7].lower() == "sha256=":
            given = given[7:]
        digest = hmac.new(self.secret.encode(), body, hashlib.sha256).digest()
        in_hex = hmac.compare_digest(given.lower().encode(), digest.hex().encode())
        in_base64 = hmac.compare_digest(given.encode(), base64.b64encode(digest))
        return in_hex or in_base64

    def webhook_fields(self) -> dict[str, Any]:
        """Return the fields of a webhook in Etlworks that make its posts pass, by Etlworks's names."""
        if self.signature_header is not None:
            return {"secret": self.secret}
        if self.login is not None:
            return {"basicUser": self.login, "basicPass": self.secret}
        return {"headers": [{"key": self.header, "value": self.secret}]}


def webhook_settings(connection: AirflowConnection) -> WebhookSettings:
    """
    Check the connection of the webhook, and return what it says.

    :param connection: the connection.
    :raises EtlworksConfigError: it cannot work; the message names the field, and does not repeat the secret.
    """
    try:
        return WebhookSettings(
            secret=connection.password or "",
            login=(connection.login or "").strip() or None,
            **_read_extra(connection.extra),
        )
    except EtlworksConfigError as error:
        raise EtlworksConfigError(f"Connection {connection.conn_id!r} cannot work. {error}") from None


def _read_extra(text: str | None) -> dict[str, Any]:
    known = ("header", "signature_header", "etlworks_conn_id", "airflow_conn_id", "statuses")
    given = read_extra(text, known, '{"header": "X-Etlworks"}')
    if given.get("statuses") == []:
        del given["statuses"]
    for name, value in given.items():
        texts = value if name == "statuses" and isinstance(value, list) else [value]
        if not all(isinstance(each, str) for each in texts):
            raise EtlworksConfigError(f"Extra field {name!r} must be text, and 'statuses' a list of texts.")
        if name == "statuses":
            given[name] = tuple(texts)
    return given


def webhook_url(airflow_url: str) -> str:
    """
    Return the address to which Etlworks posts.

    :param airflow_url: the address of Airflow's UI, as Etlworks reaches it, such as ``https://airflow.example.com``.
    :raises EtlworksConfigError: it is not an address.
    """
    parts = urlsplit(airflow_url.strip())
    if (
        parts.scheme not in ("http", "https")
        or not parts.hostname
        or parts.query
        or parts.fragment
        or "@" in airflow_url
    ):
        raise EtlworksConfigError(
            "The address of Airflow must be a URL without credentials, such as https://airflow.example.com."
        )
    return airflow_url.strip().rstrip("/").removesuffix(URL_PREFIX + PATH) + URL_PREFIX + PATH
