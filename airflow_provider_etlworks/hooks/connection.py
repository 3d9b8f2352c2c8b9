"""Reads an Airflow connection, checks it, and returns the client's settings."""

from __future__ import annotations

import difflib
import json
import re
from typing import TYPE_CHECKING, Any, Protocol

from airflow_provider_etlworks.client.errors import EtlworksConfigError
from airflow_provider_etlworks.client.settings import ClientSettings, root_url
from airflow_provider_etlworks.client.text import as_int
from airflow_provider_etlworks.client.values import quoted
from airflow_provider_etlworks.provider_info import CONNECTION_FIELDS

if TYPE_CHECKING:
    from collections.abc import Callable


class AirflowConnection(Protocol):
    """The fields of an Airflow connection that are read."""

    conn_id: str
    host: str | None
    port: int | None
    schema: str | None
    login: str | None
    password: str | None
    extra: str | None


def settings_from(connection: AirflowConnection) -> ClientSettings:
    """
    Check a connection, and return the client's settings.

    :raises EtlworksConfigError: it cannot work; the message names the field and what to put there.
    """
    try:
        login, password = (connection.login or "").strip() or None, connection.password or ""
        return ClientSettings(
            root_url=root_url(connection.host, connection.port, connection.schema),
            login=login,
            password=password if login else password.strip(),
            **_extra(connection.extra),
        )
    except EtlworksConfigError as error:
        raise EtlworksConfigError(f"Connection {connection.conn_id!r} cannot work. {error}") from None


def basic_credentials(connection: AirflowConnection) -> tuple[str, str]:
    """
    Return login and password of a connection for a listener's Basic authentication. Nothing else of it is read.

    :raises EtlworksConfigError: it has no login or no password.
    """
    login, password = (connection.login or "").strip(), connection.password or ""
    missing = "Login" if not login else "Password" if not password else None
    if missing or ":" in login:
        problem = f"has no {missing}" if missing else "has a Login with a colon, which Basic authentication cannot send"
        raise EtlworksConfigError(
            f"Connection {connection.conn_id!r} {problem}. Login and Password are sent to the listener as Basic."
        )
    return login, password


def _extra(text: str | None) -> dict[str, Any]:
    """Read Extra; fields that are left empty keep their defaults."""
    try:
        extra = json.loads(text or "{}")
    except ValueError:
        extra = None
    if not isinstance(extra, dict):
        # Its text is not repeated: it may hold secrets.
        raise EtlworksConfigError('Extra is not a JSON object. Write it like {"read_timeout": 60}.')
    given = {name: value for name, value in extra.items() if value is not None and value != ""}
    if unknown := [name for name in given if name not in CONNECTION_FIELDS]:
        close = difflib.get_close_matches(unknown[0], CONNECTION_FIELDS, n=1)
        meant = f" Did you mean {close[0]!r}?" if close else ""
        raise EtlworksConfigError(
            f"Extra has the unknown field {unknown[0]!r}.{meant} Known are: {', '.join(CONNECTION_FIELDS)}."
        )
    values: dict[str, Any] = {}
    for name, value in given.items():
        read = _READERS.get(name, _read_text)
        values[name] = read(name, value)
    return values


def _read_text(name: str, value: Any) -> str:
    if isinstance(value, (str, int)) and not isinstance(value, bool):
        return str(value).strip()
    raise EtlworksConfigError(f"Extra field {name!r} is a {type(value).__name__}; it must be text.")


def _read_seconds(name: str, value: Any) -> float:
    try:
        return float(value if not isinstance(value, bool) else "")
    except (TypeError, ValueError, OverflowError):
        raise EtlworksConfigError(f"Extra field {name!r} is {quoted(value)}; it must be a number of seconds.") from None


def _read_count(name: str, value: Any) -> int:
    # A form may save 300 as 300.0.
    number = as_int(float(value) if isinstance(value, str) and re.fullmatch(r"\s*\d+\.0*\s*", value) else value)
    if number is None or (isinstance(value, float) and number != value):
        raise EtlworksConfigError(f"Extra field {name!r} is {quoted(value)}; it must be a whole number.")
    return number


def _read_verify(name: str, value: Any) -> bool | str:
    if isinstance(value, bool):
        return value
    word = _read_text(name, value)
    return {"true": True, "false": False}.get(word.lower(), word)


_READERS: dict[str, Callable[[str, Any], bool | int | float | str]] = {
    "verify": _read_verify,
    "connect_timeout": _read_seconds,
    "read_timeout": _read_seconds,
    "requests_per_minute": _read_count,
}
