"""Reads an Airflow connection, checks it, and returns the client's settings."""

from __future__ import annotations

import difflib
import json
import re
from typing import TYPE_CHECKING, Any, Protocol

from airflow_provider_etlworks.client.errors import (
    EtlworksConfigError,
    EtlworksForbidden,
    EtlworksNotFound,
    EtlworksUnauthorized,
    EtlworksUnreachable,
)
from airflow_provider_etlworks.client.settings import ClientSettings, root_url
from airflow_provider_etlworks.client.text import as_int
from airflow_provider_etlworks.client.values import quoted
from airflow_provider_etlworks.provider_info import CONNECTION_FIELDS

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from airflow_provider_etlworks.client.errors import EtlworksError
    from airflow_provider_etlworks.client.models import Health


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
            name=connection.conn_id,
            **_settings_in_extra(connection.extra),
        )
    except EtlworksConfigError as error:
        raise EtlworksConfigError(f"Connection {connection.conn_id!r} cannot work. {error}") from None


def check_extra_field(name: str, value: str) -> None:
    """
    Check one field of Extra by itself, as a form does before it saves the connection.

    :param name: the field.
    :param value: what a person wrote.
    :raises EtlworksConfigError: it cannot work; the message says what to put there.
    """
    # The other fields do not matter here.
    ClientSettings(root_url="https://etlworks", password="-", **_settings_in_extra(json.dumps({name: value})))  # noqa: S106


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


_WRONG_HOST = "Is Host the address of an Etlworks instance?"
_KEYS_DISABLED = re.compile(r"(?=.*\bkeys?\b).*(?:disabled|not enabled|not allowed)", re.IGNORECASE | re.DOTALL)
_API_USER = re.compile(r"api[\s_-]?user", re.IGNORECASE)


def explain_failure(error: EtlworksError, settings: ClientSettings, health: Health | None) -> str:
    """
    Say why a connection does not work, and which of its fields to correct.

    :param error: why the flows could not be listed.
    :param settings: the connection.
    :param health: what ``/health`` reports; ``None`` if it could not be read, which proves nothing.
    """
    if health is None:
        found = ""
    else:
        found = f" {settings.root_url} is an Etlworks instance: its /health reports {health.status}."
    text = str(error)
    if isinstance(error, EtlworksUnreachable):
        return f"{text}{found} Correct Host, Port or Scheme, or in Extra proxy or verify."
    if isinstance(error, EtlworksNotFound):
        return f"{text}{found or f' {_WRONG_HOST}'}"
    if isinstance(error, (EtlworksUnauthorized, EtlworksForbidden)):
        return f"{text}{found} {_credentials_to_correct(text, settings, is_known=isinstance(error, EtlworksForbidden))}"
    return f"{text}{found}"


def _credentials_to_correct(text: str, settings: ClientSettings, *, is_known: bool) -> str:
    """Say which credentials to correct; ``is_known`` if the server knows the user and refuses the call."""
    by_key = settings.login is None
    if by_key and _KEYS_DISABLED.search(text):
        return (
            "API keys are disabled for this user's role: let an administrator enable them, or put the user's name and "
            "password into Login and Password."
        )
    if _API_USER.search(text):
        return (
            "The role API User can call listeners only, not the API: put the key, or the login, of a user with the "
            "role Operator or above into the connection."
        )
    if is_known:
        return (
            "The credentials in Password are accepted, but the user's role may not list flows: it takes Operator or "
            "above. The role API User can call listeners only."
        )
    if by_key:
        return (
            "The API key in Password is wrong or has expired, or API keys are disabled for this user's role. "
            "To use a password, fill in Login, too."
        )
    return "Login or Password is wrong. For an API key, leave Login empty."


def read_extra(text: str | None, known: Collection[str], example: str) -> dict[str, Any]:
    """
    Read the fields of Extra that are filled in.

    :param text: the JSON in Extra.
    :param known: the names that a field may have.
    :param example: what Extra may look like, for the message.
    :raises EtlworksConfigError: it is not a JSON object, or has another field.
    """
    try:
        extra = json.loads(text or "{}")
    except ValueError:
        extra = None
    if not isinstance(extra, dict):
        # Its text is not repeated: it may hold secrets.
        raise EtlworksConfigError(f"Extra is not a JSON object. Write it like {example}.")
    given = {name: value for name, value in extra.items() if value is not None and value != ""}
    if unknown := [name for name in given if name not in known]:
        close = difflib.get_close_matches(unknown[0], known, n=1)
        meant = f" Did you mean {close[0]!r}?" if close else ""
        raise EtlworksConfigError(f"Extra has the unknown field {unknown[0]!r}.{meant} Known are: {', '.join(known)}.")
    return given


def _settings_in_extra(text: str | None) -> dict[str, Any]:
    """Read Extra; fields that are left empty keep their defaults."""
    values: dict[str, Any] = {}
    for name, value in read_extra(text, CONNECTION_FIELDS, '{"read_timeout": 60}').items():
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
