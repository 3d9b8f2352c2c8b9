"""What an import would change in its target, for people."""

from __future__ import annotations

import html
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from airflow_provider_etlworks.bundles.report import Item, ItemAction, parse_items, parse_remarks, unread_parts
from airflow_provider_etlworks.client.redaction import redact

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

LONGEST_MARKDOWN = 8_000
"""The most characters of a preview's Markdown."""

MOST_LISTED = 50
"""The most items of one action that a summary lists."""

_LONGEST_NAME = 120
_LONGEST_STATUS = 40
_MOST_REMARKS = 10
# Characters of the Markdown that are reserved for the line that counts the rest.
_ROOM_FOR_COUNT = 80

_MARKUP = re.compile(r"([\\`*_\[\]()#!|~])")
# Invisible, and enough to keep any Markdown reader from making a link of the text.
_LINKS = re.compile(r"(?<=:)(?=//)|(?<=www)(?=\.)|(?=@)", re.IGNORECASE)
_NO_LINK = "\u2060"

_IN_ORDER = (
    ItemAction.MISSING,
    ItemAction.FAILED,
    ItemAction.REPLACED,
    ItemAction.NEW,
    ItemAction.UNCLEAR,
    ItemAction.KEPT,
)
_WORDING = {
    ItemAction.MISSING: "**missing** in the target",
    ItemAction.FAILED: "**cannot be imported**",
    ItemAction.REPLACED: "replaced",
    ItemAction.NEW: "new",
    ItemAction.UNCLEAR: "not known; please check",
    ItemAction.KEPT: "kept as it is",
}


@dataclass(frozen=True)
class Preview:
    """
    What an import would change.

    :ivar items: what is touched or needed, and what happens to each.
    :ivar remarks: sentences of the target's answer.
    :ivar unread: the names of the answer's parts that are not documented.
    :ivar shape_known: whether all of the answer is documented, and it lists anything.
    """

    items: tuple[Item, ...]
    remarks: tuple[str, ...]
    unread: tuple[str, ...]
    shape_known: bool

    def of(self, action: ItemAction) -> list[Item]:
        """Return the items with this action."""
        return [item for item in self.items if item.action is action]

    @property
    def missing_connections(self) -> list[Item]:
        """The connections that the flows need, that the bundle does not bring, and that no flow of the target uses."""
        return self.of(ItemAction.MISSING)

    def summary(self) -> dict[str, Any]:
        """Return it as JSON of bounded size: lists of items by action, and how long each list really is."""
        listed: dict[str, list[Item]] = {
            "new": self.of(ItemAction.NEW),
            "replaced": self.of(ItemAction.REPLACED),
            "kept": self.of(ItemAction.KEPT),
            "failed": self.of(ItemAction.FAILED),
            "unclear": self.of(ItemAction.UNCLEAR),
            # No documented answer reports that anything but a connection is missing.
            "missing_others": [],
        }
        missing = self.missing_connections
        return {
            **{
                name: [{"kind": item.kind, "name": one_line(item.name or str(item.id))} for item in items[:MOST_LISTED]]
                for name, items in listed.items()
            },
            "missing_connections": [one_line(item.name or str(item.id)) for item in missing[:MOST_LISTED]],
            "counts": {**{name: len(items) for name, items in listed.items()}, "missing_connections": len(missing)},
            "shape_known": self.shape_known,
        }

    def markdown(self, introduction: str, preview_path: str, closing: Sequence[str] = ()) -> str:
        """
        Return it for people, with at most :data:`LONGEST_MARKDOWN` characters. Every name is escaped.

        What changes comes first; what stays as it is, is only counted.

        :param introduction: what is imported, and into which instance; Markdown of ours.
        :param preview_path: where the raw answer is.
        :param closing: paragraphs for the end; Markdown of ours.
        """
        lines = [introduction, ""]
        if not self.shape_known:
            unknown = "**What would change is not known:** the shape of the target's answer is not known."
            if self.unread:
                parts = ", ".join(escaped(each) for each in self.unread[:_MOST_REMARKS])
                unknown += f" It has parts that Etlworks does not document, and that are not read: {parts}."
            lines += [f"{unknown} See the raw answer: {escaped(preview_path)}.", ""]
        if missing := self.missing_connections:
            count = f"{len(missing)} connections are" if len(missing) > 1 else "1 connection is"
            meaning = "The bundle does not bring what is missing, and no flow of the target uses it."
            lines += [f"**{count} missing in the target.** {meaning} Flows that need it will not run.", ""]
        if any(item.kind == "connection" for item in self.of(ItemAction.REPLACED)):
            lines += ["Connections that are replaced take their settings from the bundle.", ""]
        if self.remarks:
            lines += ["Etlworks remarks:", ""]
            lines += [f"- “{escaped(redact(remark))}”" for remark in self.remarks[:_MOST_REMARKS]]
            lines += [f"- and {len(self.remarks) - _MOST_REMARKS} more"] if len(self.remarks) > _MOST_REMARKS else []
            lines += [""]
        counts = [f"{len(found)} {_WORDING[action]}" for action in _IN_ORDER if (found := self.of(action))]
        lines += [f"In all: {', '.join(counts)}." if counts else "The answer names no flow and no connection."]
        rows = [_row(item) for action in _IN_ORDER if action is not ItemAction.KEPT for item in self.of(action)]
        end = "".join(f"\n\n{each}" for each in closing)
        return _fitted(lines, rows, LONGEST_MARKDOWN - len(end)) + end


def preview_of(
    answer: Any,
    *,
    flow_names: Sequence[str],
    target_flows: Collection[str],
    target_connections: Collection[str] = (),
    all_connections_known: bool = False,
) -> Preview:
    """
    Work out what an import would change, from the target's answer and from what the target has.

    Whether a flow is new is decided by the target's list of flows. No documented call lists connections: those that
    flows of the target use are there. A connection that is needed and not brought is missing only if all flows of the
    target are known, and none uses it.

    :param answer: the answer to the preview, read as JSON; ``None`` if it could not be read.
    :param flow_names: the names of the flows in the bundle, as far as they are known.
    :param target_flows: the names of the target's flows.
    :param target_connections: the names of the connections that the target is known to have.
    :param all_connections_known: whether these are the connections of all of the target's flows.
    """
    reported = parse_items(answer)
    names = {item.name for item in reported if item.kind == "flow"}
    items = [
        _compared(item, target_flows, target_connections)
        for item in [*reported, *(Item("flow", each) for each in flow_names if each not in names)]
    ]
    brought = {item.name for item in reported if item.kind == "connection"}
    otherwise = ItemAction.MISSING if all_connections_known else ItemAction.UNCLEAR
    items += [
        Item("connection", each, action=ItemAction.KEPT if each in target_connections else otherwise)
        for each in dict.fromkeys(name for item in reported for name in item.uses)
        if each not in brought
    ]
    unread = tuple(unread_parts(answer))
    return Preview(tuple(items), tuple(parse_remarks(answer)), unread, shape_known=bool(reported) and not unread)


def one_line(text: str, length: int = _LONGEST_NAME) -> str:
    """Return somebody else's text as one line of visible characters, cut after ``length`` characters."""
    plain = " ".join("".join(each if each.isprintable() else " " for each in text).split())
    return plain if len(plain) <= length else plain[: length - 1] + "…"


def escaped(text: str) -> str:
    """Return somebody else's text as Markdown that shows just that text: no markup, no HTML, no link, one line."""
    return _MARKUP.sub(r"\\\1", html.escape(_LINKS.sub(_NO_LINK, one_line(text)), quote=False))


def _compared(item: Item, target_flows: Collection[str], target_connections: Collection[str]) -> Item:
    """Fill in what the target shows of an item."""
    if item.action is not ItemAction.UNCLEAR:
        return item
    if item.kind == "flow" and item.name:
        return replace(item, action=ItemAction.REPLACED if item.name in target_flows else ItemAction.NEW)
    is_there = item.kind == "connection" and item.name in target_connections
    return replace(item, action=ItemAction.REPLACED if is_there else ItemAction.UNCLEAR)


def _row(item: Item) -> str:
    quoted = f" (the target answers “{escaped(one_line(item.status, _LONGEST_STATUS))}”)" if item.status else ""
    return f"| {escaped(item.kind)} | {escaped(item.name or str(item.id))} | {_WORDING[item.action]}{quoted} |"


def _fitted(lines: list[str], rows: list[str], limit: int) -> str:
    """Put a table below some lines, with as many rows as fit."""
    if not rows:
        return "\n".join(lines)
    text = "\n".join([*lines, "", "| what | name | what happens |", "|---|---|---|"])
    for number, row in enumerate(rows):
        if len(text) + 1 + len(row) > limit - _ROOM_FOR_COUNT:
            return f"{text}\n\n… and {len(rows) - number} more; they are counted above."
        text += f"\n{row}"
    return text
