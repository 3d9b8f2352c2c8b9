"""
Text and numbers from outside become harmless here, in one place.

A server's text ends up in Airflow's database, in pipes between its processes, in logs and in emails. PostgreSQL refuses
a NUL, a pipe refuses half a surrogate pair, a line feed forges a log line, and a text of megabytes fills all of them.
"""

from __future__ import annotations

import math
import re
import unicodedata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

LONGEST_NAME = 255
"""Characters of a word that a run's record carries at most: its status, a user, a name, an id."""

LONGEST_TEXT = 1_000
"""Characters of any other text of one line at most, such as the name of a flow."""

LONGEST_DESCRIPTION = 10_000
"""Characters of a text of several lines at most: an error, a description."""

MOST_ITEMS = 1_000
"""Items that are kept of a list inside a record, such as the tags of a flow."""

DEEPEST_NESTING = 64
"""Levels of JSON that are kept. What lies deeper breaks recursive readers and writers elsewhere."""

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
# What colors a terminal, and moves its cursor.
_STEERING = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")
_UNSTORABLE = re.compile("[\0\ud800-\udfff]")
_TRACE = re.compile(r"^[ \t]*(?:at[ \t]+\S+\(|Caused by:)", re.MULTILINE)
_TRACE_CAUSE = re.compile(r"\s*Caused by:")
# Enough for any real chain of causes. A longer chain keeps its last causes, with the root cause.
_MOST_CAUSES = 8


def storable(text: str) -> str:
    """Return a text that databases and pipes take: U+FFFD replaces each NUL and each half of a surrogate pair."""
    return text if text.isprintable() else _UNSTORABLE.sub(_REPLACEMENT, text)


def visible(text: str, keep: str = "") -> str:
    r"""
    Return a text that neither breaks a line nor steers a terminal, so that all of it is seen.

    :param text: any text.
    :param keep: control characters that may stay, such as ``"\n\t"``.
    :return: the text, with a space instead of each other control character, and nothing instead of a terminal's color.
    """
    if text.isprintable():
        return text
    text = _STEERING.sub("", text)
    return "".join(
        each if each.isprintable() or each in keep or unicodedata.category(each) == "Zs" else " "
        for each in _UNSTORABLE.sub(_REPLACEMENT, text)
    )


def cut(text: str, limit: int) -> str:
    """Return a text of ``limit`` characters at most. An ellipsis marks what is missing."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def clean(text: str, limit: int, keep: str = "") -> str:
    """
    Return somebody else's text, bounded and harmless. Remove secrets first: a part of a secret is not recognized.

    :param text: any text.
    :param limit: the most characters of the result.
    :param keep: control characters that may stay.
    """
    # Most texts need nothing, and a record is read thousands of times.
    if len(text) <= limit and text.isprintable():
        return text
    return cut(visible(text[: limit + 1], keep), limit)


def is_trace(text: str) -> bool:
    """Whether a text has frames or causes of a Java stack trace."""
    return _TRACE.search(text) is not None


def shorten_trace(text: str, limit: int) -> str:
    """
    Bound an error text so that its reason stays: the first line and every ``Caused by`` of a Java stack trace.

    :param text: an error text. A text that is short enough stays as it is.
    :param limit: the most characters of the result.
    :return: the text. An ellipsis marks each place at which something is missing.
    """
    if len(text) <= limit or not is_trace(text):
        return cut(text, limit)
    first, *others = text.strip().splitlines()
    kept = [first, *(line.strip() for line in others if _TRACE_CAUSE.match(line))]
    if len(kept) > _MOST_CAUSES:
        kept = [kept[0], *kept[1 - _MOST_CAUSES :]]
    width = limit // len(kept) - len(" …\n")
    return "\n".join(f"{cut(line, width)} …" for line in kept)


def as_int(value: Any) -> int | None:
    """Read a whole number of 64 bits, also from text; anything else is ``None``."""
    if value is None:
        return None
    if type(value) is int:
        return value if -0x8000_0000_0000_0000 <= value <= 0x7FFF_FFFF_FFFF_FFFF else None
    if isinstance(value, bool):
        return None
    try:
        return as_int(int(value))
    except (TypeError, ValueError, OverflowError):
        return None


def as_str(value: Any, limit: int = LONGEST_TEXT, keep: str = "") -> str | None:
    """
    Read a text, clean and bounded; a number becomes its digits; empty, missing and nested values are ``None``.

    :param limit: the most characters.
    :param keep: control characters that may stay.
    """
    if type(value) is not str:
        if value is None or isinstance(value, bool) or not isinstance(value, (str, int, float)):
            return None
        try:
            value = str(value)
        except ValueError:  # Python writes no number of more than 4,300 digits
            return None
    if len(value) <= limit and value.isprintable():
        return value or None
    return clean(value, limit, keep)


def as_error(value: Any) -> str | None:
    """Read an error text of several lines: bounded as :func:`shorten_trace` does, else as :func:`as_str` does."""
    if value is None:
        return None
    if isinstance(value, str):
        value = shorten_trace(value.strip().replace("\r\n", "\n"), LONGEST_DESCRIPTION)
    # Once more, since a control character may have become a space. So reading a text twice changes nothing.
    return (as_str(value, LONGEST_DESCRIPTION, "\n\t") or "").strip() or None


def harmless(value: Any) -> Any:
    """
    Return decoded JSON that every process of Airflow can store and pass on.

    Its texts and names are :func:`storable`, its numbers finite and of 64 bits (others become ``None``), and what is
    nested deeper than :data:`DEEPEST_NESTING` becomes an ellipsis.
    """
    return map_json(value, storable)


def map_json(value: Any, change: Callable[[str], str], levels: int = DEEPEST_NESTING) -> Any:
    """Return :func:`harmless` JSON, with ``change`` applied to each of its texts and names."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        if not levels:
            return "…"
        return {change(name): map_json(each, change, levels - 1) for name, each in value.items()}
    if isinstance(value, list):
        return [map_json(each, change, levels - 1) for each in value] if levels else "…"
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool) else as_int(value)
