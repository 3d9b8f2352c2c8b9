"""Arguments of tasks, once they are rendered."""

from __future__ import annotations

import re
from ast import literal_eval
from collections.abc import Iterable, Mapping
from contextlib import contextmanager, suppress
from datetime import date, datetime, time, timezone
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from airflow_provider_etlworks.client.errors import EtlworksConfigError
from airflow_provider_etlworks.compat import AirflowFailException

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def fail_without_retry_on_config_error() -> Iterator[None]:
    """Fail without a retry where an argument or the connection cannot work: the next try would have the same."""
    try:
        yield
    except EtlworksConfigError as error:
        raise AirflowFailException(str(error)) from error


def flat_parameters(parameters: Any) -> dict[str, str]:
    """
    Turn parameters into the flat map of texts that Etlworks takes.

    :param parameters: a mapping, or ``None`` for none. Numbers become their digits, booleans ``true`` or ``false``,
        dates and times ISO 8601.
    :raises EtlworksConfigError: it is no mapping, or a value is nested or ``None``; the message names the parameter.
    """
    if parameters is None:
        return {}
    if not isinstance(parameters, Mapping):
        raise EtlworksConfigError(
            f"parameters is a {type(parameters).__name__}; it must be a mapping, such as {{'runDate': '2026-05-09'}}."
        )
    flat: dict[str, str] = {}
    for name, value in parameters.items():
        if not isinstance(name, str) or not name:
            raise EtlworksConfigError(f"The parameter name {name!r} must be text.")
        if isinstance(value, bool):
            flat[name] = "true" if value else "false"
        elif isinstance(value, (str, int, float, Decimal)):
            flat[name] = str(value)
        elif isinstance(value, (date, time)):
            flat[name] = value.isoformat()
        else:
            # The value is not repeated: it may be a secret.
            what = "None; leave it out, or write ''" if value is None else f"a {type(value).__name__}"
            raise EtlworksConfigError(
                f"Parameter {name!r} is {what}. Etlworks takes flat texts only; json.dumps() makes a text of anything."
            )
    return flat


def parse_id(name: str, value: Any, hint: str = "") -> int:
    """
    Read an id.

    :param name: the argument, for the message.
    :param value: a whole number, or its digits, as templates give them.
    :param hint: what else to write, for the message.
    :raises EtlworksConfigError: it is none.
    """
    digits = str(value).strip()
    if isinstance(value, bool) or not (digits.isascii() and digits.isdigit()):
        raise EtlworksConfigError(f"{name} is {value!r}; it must be a whole number, such as 12345.{hint}")
    return int(digits)


def parse_ids(name: str, value: Any) -> list[int]:
    """
    Read ids; each is returned once, in the order given.

    :param name: the argument, for the message.
    :param value: a list of whole numbers or of their digits, one of them by itself, or the text of a list, as a
        template gives it: ``"[1, 2]"`` or ``"1, 2"``.
    :raises EtlworksConfigError: it is nothing of that.
    """
    if isinstance(value, str):
        inside = value.strip()
        if inside.startswith("[") and inside.endswith("]"):
            inside = inside[1:-1].strip()
            if not inside:
                return []
        value = [part.strip().strip("'\"") for part in inside.split(",")]
    elif isinstance(value, int):
        value = [value]
    if not isinstance(value, Iterable) or isinstance(value, (bytes, Mapping)):
        raise EtlworksConfigError(f"{name} is {value!r}; it must be a list of whole numbers, such as [12345, 12346].")
    return list(dict.fromkeys(parse_id(name, each) for each in value))


def parse_names(name: str, value: Any) -> list[str]:
    """
    Read names; each is returned once, in the order given.

    :param name: the argument, for the message.
    :param value: a list of texts, one text by itself, or the text of a list, as a template gives it: ``"['a', 'b']"``.
    :raises EtlworksConfigError: it is nothing of that.
    """
    read = value
    if isinstance(value, str):
        read = [value]
        if value.strip().startswith("[") and value.strip().endswith("]"):
            with suppress(ValueError, SyntaxError):
                read = literal_eval(value.strip())
    given: list[Any] = list(read) if isinstance(read, Iterable) and not isinstance(read, (bytes, Mapping)) else [None]
    if not all(isinstance(each, str) and each.strip() and each != "None" for each in given):
        raise EtlworksConfigError(f"{name} is {value!r}; it must be a list of texts, such as ['Orders', 'Customers'].")
    return list(dict.fromkeys(given))


def parse_sha256(name: str, value: Any) -> str | None:
    """
    Read a SHA-256.

    :param name: the argument, for the message.
    :param value: its 64 hexadecimal digits; ``None`` for none. What a template makes of a task that returned nothing
        is refused: the check that it stands for would silently not happen.
    :return: it, in lower case.
    :raises EtlworksConfigError: it is none.
    """
    if value is None:
        return None
    digits = value.strip().lower() if isinstance(value, str) else ""
    if not re.fullmatch("[0-9a-f]{64}", digits):
        raise EtlworksConfigError(f"{name} is {value!r}; it must be the 64 hexadecimal digits of a SHA-256.")
    return digits


def parse_datetime(name: str, value: Any) -> datetime:
    """
    Read a moment.

    :param name: the argument, for the message.
    :param value: a datetime, or ISO 8601 text, as templates give it; without a zone it is UTC.
    :return: the moment, in UTC.
    :raises EtlworksConfigError: it is none.
    """
    read = value
    if isinstance(value, str):
        # Before Python 3.11, fromisoformat does not know Z.
        text = re.sub("[zZ]$", "+00:00", value.strip())
        try:
            read = datetime.fromisoformat(text)
        except ValueError:
            read = None
    if not isinstance(read, datetime):
        raise EtlworksConfigError(
            f"{name} is {value!r}; it must be a moment in ISO 8601, such as '2026-05-09T00:00:00+00:00'."
        )
    return read.replace(tzinfo=timezone.utc) if read.tzinfo is None else read.astimezone(timezone.utc)
