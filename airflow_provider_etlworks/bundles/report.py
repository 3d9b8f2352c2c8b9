"""
What Etlworks says of the things in a bundle, before an import and after it.

The answers' shapes are not documented, but for the older preview (``graph``, ``flows``, ``connections``, ``formats``,
``schedules``). So they are read tolerantly: whatever is listed by kind, by what happens to it, or with a field that
says either. What cannot be read is never taken for "nothing".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

_DEEPEST = 6

_KINDS = ("flow", "connection", "format", "schedule", "listener", "user", "macro", "credential", "secret")
_NAME_FIELDS = ("name", "flowName", "connectionName", "objectName", "title", "label")
_ID_FIELDS = ("id", "flowId", "connectionId", "objectId", "targetId")
_KIND_FIELDS = ("kind", "objectType", "resourceType", "entityType", "category", "type")
_FATE_FIELDS = ("action", "status", "state", "result", "outcome", "change", "operation", "resolution")
_MESSAGE_FIELDS = ("message", "error", "exception", "reason")


class ItemAction(str, Enum):
    """What happens, or has happened, to a thing."""

    NEW = "new"
    REPLACED = "replaced"
    KEPT = "kept"
    MISSING = "missing"
    FAILED = "failed"
    DONE = "done"
    UNCLEAR = "unclear"


# The first that matches: "not found" before "found", "unchanged" before "changed".
_WORDS: tuple[tuple[ItemAction, re.Pattern[str]], ...] = (
    (ItemAction.FAILED, re.compile(r"\b(fail\w*|error\w*|invalid|reject\w*|refus\w*|not imported|unsuccess\w*)\b")),
    (ItemAction.MISSING, re.compile(r"\b(missing|not found|unresolved|absent|unmapped|not exist\w*)\b")),
    (
        ItemAction.KEPT,
        re.compile(
            r"\b(keep\w*|kept|skip\w*|unchanged|not changed|ignor\w*|same|identical|no change\w*|none|no op|noop)\b"
        ),
    ),
    (ItemAction.NEW, re.compile(r"\b(new|add|adds|added|creat\w*|insert\w*)\b")),
    (
        ItemAction.REPLACED,
        re.compile(
            r"\b(replac\w*|differ\w*|updat\w*|overwr\w*|modif\w*|chang\w*|exist\w*|conflict\w*|merg\w*|collision\w*)\b"
        ),
    ),
    (ItemAction.DONE, re.compile(r"\b(success\w*|ok|done|imported|appl\w*)\b")),
)
_EXISTS = re.compile(r"\b(exist\w*|found|resolved|available|present)\b")
_WENT_WELL = re.compile(r"\b(success\w*|ok|imported|applied)\b")
_DIFFERS = re.compile(r"\b(chang\w*|differ\w*|modif\w*)\b")
_REMARKS = re.compile(r"\b(warning|error|message|issue|problem|remark|note)s\b")


@dataclass(frozen=True)
class Item:
    """
    One thing that an answer tells of.

    :ivar kind: such as ``flow`` or ``connection``; ``object`` where the answer does not say.
    :ivar name: its name; empty where the answer only has an id.
    :ivar id: its id, where the answer has one. Whether it is the source's or the target's is not documented.
    :ivar fate: what happens to it, as far as it can be read.
    :ivar status: the same as the answer writes it.
    :ivar message: what the answer says of it besides.
    :ivar uses: the names of connections that it needs, where the answer tells.
    """

    kind: str
    name: str
    id: int | None = None
    fate: ItemAction = ItemAction.UNCLEAR
    status: str = ""
    message: str = ""
    uses: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """Its kind, and its name or id."""
        return f"{self.kind} {self.name or self.id}"


def parse_items(answer: Any) -> list[Item]:
    """
    Read everything that an answer tells of, each thing once.

    :param answer: the answer to a preview or an import, read as JSON.
    :return: the things, in the answer's order; none where nothing could be read.
    """
    items: dict[tuple[str, str, int | None], Item] = {}
    used = _graph(answer)
    for item in _items(answer, kind="", fate=ItemAction.UNCLEAR, depth=0):
        uses = tuple(dict.fromkeys([*item.uses, *used.get(str(item.id), ()), *used.get(item.name, ())]))
        key = (item.kind, item.name, None if item.name else item.id)
        before = items.get(key)
        # Listed twice: once by kind, once by what happens to it.
        if before is None or before.fate is ItemAction.UNCLEAR:
            known_id = before.id if before is not None and item.id is None else item.id
            items[key] = replace(item, uses=uses, id=known_id)
    return list(items.values())


def parse_remarks(answer: Any, depth: int = 0) -> list[str]:
    """Return the sentences that an answer has under ``warnings``, ``errors``, ``messages`` and the like."""
    if not isinstance(answer, Mapping) or depth > _DEEPEST:
        return []
    remarks: list[str] = []
    for name, value in answer.items():
        if _REMARKS.search(_words(name)):
            said = value if isinstance(value, list) else [value]
            texts = (
                next((each[field] for field in _MESSAGE_FIELDS if field in each), "")
                if isinstance(each, Mapping)
                else each
                for each in said
            )
            remarks += [each for each in texts if isinstance(each, str) and each]
        elif isinstance(value, Mapping):
            remarks += parse_remarks(value, depth + 1)
    return remarks


def _items(value: Any, *, kind: str, fate: ItemAction, depth: int, key: str = "") -> Iterator[Item]:
    """Yield the things below a value. ``kind`` and ``fate`` are what the names above it say."""
    if depth > _DEEPEST:
        return
    if isinstance(value, list):
        for each in value:
            yield from _items(each, kind=kind, fate=fate, depth=depth + 1)
    elif isinstance(value, Mapping):
        if depth and (kind or fate is not ItemAction.UNCLEAR or _kind_of(value)) and _is_thing(value):
            yield _item(value, kind, fate, key)
            return
        for name, each in value.items():
            if name == "graph":
                continue
            inside = kind or _kind_in(name)
            if depth and kind and inside == kind and not isinstance(each, (Mapping, list)):
                # {"Orders": "replace"}: a name, and what happens to it.
                yield from _named(str(name), each, kind, fate)
            elif isinstance(each, (Mapping, list)):
                below = _fate_in(name)
                yield from _items(
                    each,
                    kind=inside,
                    fate=below if below is not ItemAction.UNCLEAR else fate,
                    depth=depth + 1,
                    key=str(name),
                )
    elif kind or fate is not ItemAction.UNCLEAR:
        if isinstance(value, str) and value.strip():
            yield Item(kind or "object", value, fate=fate)
        elif isinstance(value, int) and not isinstance(value, bool):
            yield Item(kind or "object", "", id=value, fate=fate)


def _is_thing(value: Mapping[str, Any]) -> bool:
    return any(isinstance(value.get(name), str) for name in _NAME_FIELDS) or any(
        _number(value.get(name)) is not None for name in _ID_FIELDS
    )


def _item(value: Mapping[str, Any], kind: str, fate: ItemAction, key: str) -> Item:
    name = next((said for field in _NAME_FIELDS if isinstance(said := value.get(field), str) and said), "")
    identity = next((number for field in _ID_FIELDS if (number := _number(value.get(field))) is not None), None)
    status = next((said for field in _FATE_FIELDS if isinstance(said := value.get(field), str) and said), "")
    message = next((said for field in _MESSAGE_FIELDS if isinstance(said := value.get(field), str) and said), "")
    own = _fate_in(status)
    kind = kind or _kind_of(value) or "object"
    if own in (ItemAction.UNCLEAR, ItemAction.DONE):
        own = next(_flagged(value, kind), own)
    return Item(
        kind=kind,
        name=name,
        id=identity if identity is not None else _number(key),
        fate=own if own is not ItemAction.UNCLEAR else fate,
        status=status,
        message=message,
        uses=tuple(names_in(value.get("connections"))) if kind != "connection" else (),
    )


def _flagged(value: Mapping[str, Any], kind: str) -> Iterator[ItemAction]:
    """Yield what a thing's fields that are true or false say of it."""
    for name, said in value.items():
        if said is True and (fate := _fate_in(name)) is not ItemAction.UNCLEAR:
            yield fate
        elif said is False:
            words = _words(name)
            if _EXISTS.search(words):
                yield ItemAction.MISSING if kind == "connection" else ItemAction.NEW
            elif _WENT_WELL.search(words):
                yield ItemAction.FAILED
            elif _DIFFERS.search(words):
                yield ItemAction.KEPT


def _named(name: str, value: Any, kind: str, fate: ItemAction) -> Iterator[Item]:
    """Read one entry of a map of names (or ids) to what happens."""
    if isinstance(value, str) and (own := _fate_in(value)) is not ItemAction.UNCLEAR:
        yield Item(kind, name, fate=own, status=value)
    elif isinstance(value, str) and _number(name) is not None:
        yield Item(kind, value, id=_number(name), fate=fate)


def _graph(answer: Any) -> dict[str, list[str]]:
    """Return what the answer's graph says that things use, by id or name. Ids among them tell nothing here."""
    graph = answer.get("graph") if isinstance(answer, Mapping) else None
    if not isinstance(graph, Mapping):
        return {}
    return {str(name): [each for each in names_in(uses) if _number(each) is None] for name, uses in graph.items()}


def names_in(value: Any) -> list[str]:
    """Return the names in a list or a map of names, or of things that have one."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if not isinstance(value, list):
        return []
    named = (each.get("name") if isinstance(each, Mapping) else each for each in value)
    return [each for each in named if isinstance(each, str) and each]


def _kind_of(value: Mapping[str, Any]) -> str:
    said = next((kind for field in _KIND_FIELDS if (kind := _kind_in(value.get(field)))), "")
    return said or next(
        (kind for field in (*_NAME_FIELDS, *_ID_FIELDS) if field in value and (kind := _kind_in(field))), ""
    )


def _kind_in(name: Any) -> str:
    words = _words(name)
    return next((kind for kind in _KINDS if re.search(rf"\b{kind}s?\b", words)), "")


def _fate_in(text: Any) -> ItemAction:
    words = _words(text)
    return next((fate for fate, pattern in _WORDS if pattern.search(words)), ItemAction.UNCLEAR)


def _words(text: Any) -> str:
    """Take a name of a program's apart: ``missingConnections`` and ``MISSING_CONNECTIONS`` are two words each."""
    if not isinstance(text, str) or len(text) > 200:
        return ""
    return re.sub(r"[\W_]+", " ", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", text)).lower()


def _number(value: Any) -> int | None:
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        return None
    return int(value) if isinstance(value, int) or (value.isascii() and value.isdigit() and len(value) < 19) else None
