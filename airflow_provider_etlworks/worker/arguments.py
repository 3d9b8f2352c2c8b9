"""Arguments of tasks, after their templates are rendered."""

from __future__ import annotations

import math
import re
from ast import literal_eval
from collections.abc import Iterable, Mapping
from contextlib import contextmanager, suppress
from datetime import date, datetime, time, timezone
from decimal import Decimal
from fractions import Fraction
from numbers import Integral, Real
from os import PathLike
from typing import TYPE_CHECKING, Any
from uuid import UUID

from airflow_provider_etlworks.client.errors import EtlworksConfigError
from airflow_provider_etlworks.client.values import parse_id as parse_id
from airflow_provider_etlworks.client.values import quoted
from airflow_provider_etlworks.compat import AirflowFailException

if TYPE_CHECKING:
    from collections.abc import Iterator

_MOST_DIGITS = 1_000
_MOST_BITS = 3_000
# Python's boolean type, and NumPy's.
_BOOLEANS = ("bool", "bool_")


@contextmanager
def fail_without_retry_on_config_error() -> Iterator[None]:
    """Fail without a retry if an argument or the connection cannot work: the next try would meet the same one."""
    try:
        yield
    except EtlworksConfigError as error:
        raise AirflowFailException(str(error)) from error


def flat_parameters(parameters: Any, allowed: Iterable[str] | None = None) -> dict[str, str]:
    """
    Turn parameters into the flat map of texts that Etlworks takes.

    :param parameters: a mapping, or ``None`` for none. :func:`parameter_text` reads its values.
    :param allowed: the only names that it may have; ``None`` allows all.
    :raises EtlworksConfigError: it is not a mapping, a name is not allowed, or a value cannot be a text; the message
        names the parameter.
    """
    if parameters is None:
        return {}
    if not isinstance(parameters, Mapping):
        raise EtlworksConfigError(
            f"parameters is a {type(parameters).__name__}; it must be a mapping, such as {{'runDate': '2026-05-09'}}."
        )
    for name in parameters:
        if not isinstance(name, str) or not name:
            raise EtlworksConfigError(f"The parameter name {name!r} must be text.")
    if allowed is not None and (others := [name for name in parameters if name not in set(allowed)]):
        raise EtlworksConfigError(
            f"parameters has {quoted(others[0])}, which parameter_names does not allow. Nothing was sent. "
            f"Allowed are: {', '.join(map(repr, allowed)) or 'none'}."
        )
    return {name: parameter_text(name, value) for name, value in parameters.items()}


def parse_ids(name: str, value: Any) -> list[int]:
    """
    Read ids; each is returned once, in the order given.

    :param name: the argument, for the message.
    :param value: a list of whole numbers or of their digits, one of them by itself, or the text of a list, as a
        template returns it: ``"[1, 2]"`` or ``"1, 2"``.
    :raises EtlworksConfigError: it is something else.
    """
    if isinstance(value, str):
        inside = value.strip()
        if inside.startswith("[") and inside.endswith("]"):
            inside = inside[1:-1].strip()
            if not inside:
                return []
        value = [part.strip().strip("'\"") for part in inside.split(",")]
    elif isinstance(value, Integral):
        value = [value]
    if not isinstance(value, Iterable) or isinstance(value, (bytes, Mapping)):
        raise EtlworksConfigError(
            f"{name} is {quoted(value)}; it must be a list of whole numbers, such as [12345, 12346]."
        )
    return list(dict.fromkeys(parse_id(name, each) for each in value))


def parse_text(name: str, value: Any) -> str:
    """
    Read a text that must not be empty, such as a flow's name or a tag.

    :param name: the argument, for the message.
    :param value: the text. If Airflow renders templates as native objects, a text that looks like a number arrives as
        one; it is read as its digits.
    :raises EtlworksConfigError: it is empty, or something else, such as ``None``.
    """
    text = _digits(value) if _is_number(value) else value
    if not isinstance(text, str) or not text.strip() or text == "None":
        raise EtlworksConfigError(f"{name} is {quoted(value)}; it must be a text, such as 'Orders'.")
    return text


def parse_names(name: str, value: Any) -> list[str]:
    """
    Read names; each is returned once, in the order given.

    :param name: the argument, for the message.
    :param value: a list of texts, one text by itself, or the text of a list, as a template returns it:
        ``"['a', 'b']"``. Numbers are read as by :func:`parse_text`.
    :raises EtlworksConfigError: it is something else.
    """
    read = value
    if isinstance(value, str) or _is_number(value):
        read = [value]
        if isinstance(value, str) and value.strip().startswith("[") and value.strip().endswith("]"):
            with suppress(ValueError, SyntaxError, RecursionError, MemoryError):
                read = literal_eval(value.strip())
    given: list[Any] = list(read) if isinstance(read, Iterable) and not isinstance(read, (bytes, Mapping)) else [None]
    try:
        return list(dict.fromkeys(parse_text(name, each) for each in given))
    except EtlworksConfigError:
        raise EtlworksConfigError(
            f"{name} is {quoted(value)}; it must be a list of texts, such as ['Orders', 'Customers']."
        ) from None


def parameter_text(name: str, value: Any) -> str:
    """
    Read the value of a flow's parameter: Etlworks takes texts only.

    :param name: the parameter, for the message. The value is not repeated: it may be a secret.
    :param value: a text, a number (its plain digits), a boolean (``true`` or ``false``), a date or a time (ISO 8601), a
        UUID or a path.
    :raises EtlworksConfigError: it is nested, or missing: ``None``, NaN or NaT.
    """
    if isinstance(value, str):
        # Not str(): that of an enum is its name.
        return str.__str__(value)
    if type(value).__name__ in _BOOLEANS:
        return "true" if value else "false"
    what = f"a {type(value).__name__}"
    if value is None or _is_not_itself(value):
        what = f"{value}; leave it out, or write ''"
    elif _is_number(value):
        return _digits(value)
    elif isinstance(value, (date, time)):
        return value.isoformat()
    elif isinstance(value, (UUID, PathLike)):
        return str(value)
    raise EtlworksConfigError(
        f"Parameter {name!r} is {what}. Etlworks takes flat texts only; json.dumps() makes a text of anything."
    )


def _is_not_itself(value: Any) -> bool:
    """Whether a value is NaN or NaT, of any library: nothing else differs from itself."""
    try:
        return bool(value != value)
    except (TypeError, ValueError, ArithmeticError):  # pandas.NA, an array, a signaling NaN
        return False


def _is_number(value: Any) -> bool:
    """Whether a value is a finite number that can be written as plain digits, not too many of them."""
    if type(value) is bool:
        return False
    if isinstance(value, Integral):
        return int(value).bit_length() < _MOST_BITS
    if isinstance(value, Decimal):
        return value.is_finite() and abs(value.adjusted()) < _MOST_DIGITS
    return isinstance(value, Real) and not isinstance(value, Fraction) and math.isfinite(value)


def _digits(value: Any) -> str:
    """Return a number as plain digits, never as a power of ten."""
    if isinstance(value, Integral):
        return str(int(value))
    # The text of a float is its shortest one, also of NumPy's.
    return f"{value if isinstance(value, Decimal) else Decimal(str(value)):f}"


def parse_sha256(name: str, value: Any) -> str | None:
    """
    Read a SHA-256.

    :param name: the argument, for the message.
    :param value: its 64 hexadecimal digits; ``None`` for none. The text "None", which a template makes of a task that
        returned nothing, is refused: without the hash, nothing would be checked.
    :return: the digits, in lower case.
    :raises EtlworksConfigError: it is not a SHA-256.
    """
    if value is None:
        return None
    digits = value.strip().lower() if isinstance(value, str) else ""
    if not re.fullmatch("[0-9a-f]{64}", digits):
        raise EtlworksConfigError(f"{name} is {quoted(value)}; it must be the 64 hexadecimal digits of a SHA-256.")
    return digits


def parse_datetime(name: str, value: Any) -> datetime:
    """
    Read a date and time.

    :param name: the argument, for the message.
    :param value: a datetime, or ISO 8601 text, as templates return it; without a zone it is UTC.
    :return: the time, in UTC.
    :raises EtlworksConfigError: it is something else, or NaT.
    """
    read = value
    if isinstance(value, str):
        # Before Python 3.11, fromisoformat does not know Z.
        text = re.sub("[zZ]$", "+00:00", value.strip())
        try:
            read = datetime.fromisoformat(text)
        except ValueError:
            read = None
    if not isinstance(read, datetime) or _is_not_itself(read):
        raise EtlworksConfigError(
            f"{name} is {quoted(value)}; it must be a time in ISO 8601, such as '2026-05-09T00:00:00+00:00'."
        )
    return read.replace(tzinfo=timezone.utc) if read.tzinfo is None else read.astimezone(timezone.utc)
