"""
What an answer to a preview or an import reports.

Etlworks documents the older preview (``graph``, ``flows``, ``connections``, ``formats``, ``schedules``) and the fields
of a failure (``"success": false``, ``"status": "error"``, ``error``, ``exception``). Only these are read. Everything
else is unclear: it is quoted or left to the raw answer, and never interpreted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING, Any

from airflow_provider_etlworks.client.errors import error_message
from airflow_provider_etlworks.client.text import as_int, as_str

if TYPE_CHECKING:
    from collections.abc import Iterator

_KINDS = {"flows": "flow", "connections": "connection", "formats": "format", "schedules": "schedule"}
_REMARKS = ("message", "error", "warnings", "errors")
_DEEPEST = 6


class ItemAction(str, Enum):
    """What happens to an item, as far as the answer or the target shows it."""

    NEW = "new"
    REPLACED = "replaced"
    KEPT = "kept"
    MISSING = "missing"
    FAILED = "failed"
    UNCLEAR = "unclear"


@dataclass(frozen=True)
class Item:
    """
    A flow, a connection or another object that an answer names.

    :ivar kind: ``flow``, ``connection``, ``format`` or ``schedule``; ``object`` if the answer does not say.
    :ivar name: its name; empty if the answer only has an id.
    :ivar id: its id, if the answer has one. Whether it is the source's or the target's is not documented.
    :ivar action: what happens to it. An answer alone only shows ``FAILED``.
    :ivar status: the answer's own word for that, not interpreted.
    :ivar message: the answer's error text.
    :ivar uses: the names of the connections that it needs, as far as the answer has them.
    """

    kind: str
    name: str
    id: int | None = None
    action: ItemAction = ItemAction.UNCLEAR
    status: str = ""
    message: str = ""
    uses: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """Its kind, and its name or id."""
        return f"{self.kind} {self.name or self.id}"


def parse_items(answer: Any) -> list[Item]:
    """
    Read the items that an answer lists, and whatever else it reports as failed.

    :param answer: the answer to a preview or an import, read as JSON.
    :return: the items, in the answer's order; empty if the answer's shape is not documented.
    """
    if not isinstance(answer, Mapping):
        return []
    items = [item for part, kind in _KINDS.items() for item in _listed(answer.get(part), kind)]
    graph = answer.get("graph")
    if isinstance(graph, Mapping):
        # The graph names what each flow needs; what the answer lists as another kind is not a connection.
        others = {item.name for item in items if item.kind != "connection"}
        needs = {str(key): [each for each in names_in(names) if each not in others] for key, names in graph.items()}
        items = [replace(item, uses=tuple(dict.fromkeys([*item.uses, *needs.get(str(item.id), ())]))) for item in items]
    return items + list(_failures({name: value for name, value in answer.items() if name not in _KINDS}))


def parse_remarks(answer: Any) -> list[str]:
    """Return the sentences of ``message``, ``error``, ``warnings`` and ``errors``: quoted, never interpreted."""
    if not isinstance(answer, Mapping):
        return []
    values = [answer.get(name) for name in _REMARKS]
    texts = [each for value in values for each in (value if isinstance(value, list) else [value])]
    return [text for each in texts if (text := error_message(each) or (each if isinstance(each, str) else ""))]


def unread_parts(answer: Any) -> list[str]:
    """Return the names of an answer's parts that hold something and are not documented, so nobody has read them."""
    if not isinstance(answer, Mapping):
        return []
    return [str(name) for name, value in answer.items() if value and not _is_documented(str(name), value)]


def is_failure(value: Any) -> bool:
    """Whether an object reports a failure, by the fields that Etlworks documents for that."""
    return isinstance(value, Mapping) and (
        value.get("success") is False
        or value.get("status") == "error"
        or any(isinstance(value.get(field), str) and bool(value[field]) for field in ("error", "exception"))
    )


def names_in(value: Any) -> list[str]:
    """Return the names in a list or a map of names, or of objects with a name. Ids are left out."""
    named = (each.get("name") if isinstance(each, Mapping) else each for _, each in _entries(value))
    return [each for each in named if isinstance(each, str) and each and not each.isdigit()]


def _listed(value: Any, kind: str) -> Iterator[Item]:
    for key, entry in _entries(value):
        if (item := _item(entry, kind, key)) is not None:
            yield item


def _failures(value: Any, depth: int = 0) -> Iterator[Item]:
    """Yield the objects below a value that report a failure."""
    for key, entry in _entries(value) if depth < _DEEPEST else ():
        if is_failure(entry):
            kind = "flow" if "flowId" in entry or "flowName" in entry else "object"
            yield _item(entry, kind, key) or Item(kind, key, action=ItemAction.FAILED, message=error_message(entry))
        else:
            yield from _failures(entry, depth + 1)


def _item(entry: Any, kind: str, key: str) -> Item | None:
    if not isinstance(entry, Mapping):
        return None
    name = as_str(entry.get("name")) or as_str(entry.get("flowName")) or ""
    ids = (as_int(each) for each in (entry.get("id"), entry.get("flowId"), key))
    identity = next((each for each in ids if each is not None), None)
    if not name and identity is None:
        return None
    return Item(
        kind=kind,
        name=name,
        id=identity,
        action=ItemAction.FAILED if is_failure(entry) else ItemAction.UNCLEAR,
        status=as_str(entry.get("action")) or as_str(entry.get("status")) or "",
        message=error_message(entry),
        uses=tuple(names_in(entry.get("connections"))) if kind == "flow" else (),
    )


def _entries(value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, Mapping):
        return [(str(key), each) for key, each in value.items()]
    return [("", each) for each in value] if isinstance(value, list) else []


def _is_documented(part: str, value: Any) -> bool:
    if part in _KINDS:
        entries = _entries(value)
        return bool(entries) and len(list(_listed(value, part))) == len(entries)
    return part in ("graph", "success", *_REMARKS)
