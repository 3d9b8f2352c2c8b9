"""Ids and times that callers pass, read strictly. Light to import: a DAG file uses it while it is parsed."""

from __future__ import annotations

import math
from contextlib import suppress
from datetime import timedelta
from decimal import Decimal
from numbers import Real
from typing import Any

_LONGEST_ID = 19
_LARGEST_ID = 2**63 - 1
_LONGEST_QUOTE = 200


def parse_id(name: str, value: Any, hint: str = "") -> int:
    """
    Read an id.

    :param name: the argument, for the message.
    :param value: a whole number, or its digits, as templates return them.
    :param hint: what else to write, for the message.
    :raises EtlworksConfigError: it is not a whole number of 64 bits.
    """
    if type(value) is int and 0 <= value <= _LARGEST_ID:
        return value
    try:
        digits = str(value).strip() if not isinstance(value, bool) else ""
    except ValueError:  # Python writes no number of more than 4,300 digits
        digits = ""
    is_number = digits.isascii() and digits.isdigit() and len(digits) <= _LONGEST_ID
    if not is_number or int(digits) > _LARGEST_ID:
        raise _refused(f"{name} is {quoted(value)}; it must be a whole number, such as 12345.{hint}")
    return int(digits)


def parse_seconds(name: str, value: Any, *, allow_zero: bool = False) -> float:
    """
    Read a time.

    :param name: the argument, for the message.
    :param value: a number of seconds, or a ``timedelta``.
    :param allow_zero: whether 0 is allowed.
    :return: the seconds.
    :raises EtlworksConfigError: it is something else, such as text or a boolean, or it is NaN, infinite or negative.
    """
    seconds = math.nan
    if isinstance(value, timedelta):
        seconds = value.total_seconds()
    elif type(value) is not bool and isinstance(value, (Real, Decimal)):
        with suppress(ValueError, OverflowError):
            seconds = float(value)
    if not 0 <= seconds < math.inf or (seconds == 0 and not allow_zero):
        least = ", 0 or more" if allow_zero else " greater than 0"
        raise _refused(f"{name} is {quoted(value)}; it is a number of seconds{least}.")
    # A whole number stays a whole number, since messages show it.
    return value if type(value) is int else seconds


def quoted(value: Any) -> str:
    """Return a value for a message: its ``repr``, which may be long, or more digits than Python writes."""
    try:
        text = repr(value)
    except ValueError:
        return f"{type(value).__name__} of too many digits"
    return text if len(text) <= _LONGEST_QUOTE else text[: _LONGEST_QUOTE - 1] + "…"


def _refused(message: str) -> ValueError:
    from airflow_provider_etlworks.client.errors import EtlworksConfigError

    return EtlworksConfigError(message)
