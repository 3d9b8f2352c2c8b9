"""What an import would change in its target, worked out for people."""

from __future__ import annotations

import html
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from airflow_provider_etlworks.bundles.report import Item, ItemAction, parse_items, parse_remarks
from airflow_provider_etlworks.client.redaction import redact

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

LONGEST_MARKDOWN = 8_000
"""Characters of a preview's Markdown at most."""

MOST_LISTED = 50
"""Things of one fate that a summary lists at most."""

_LONGEST_NAME = 120
_MOST_REMARKS = 10
# What is kept back of the Markdown for the line that counts the rest.
_ROOM_FOR_COUNT = 80

_MARKUP = re.compile(r"([\\`*_\[\]()#!|~])")
# Invisible, and enough for no Markdown reader to make a link of the text.
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
_SAID = {
    ItemAction.MISSING: "**missing** in the target",
    ItemAction.FAILED: "**cannot be imported**",
    ItemAction.REPLACED: "replaced",
    ItemAction.NEW: "new",
    ItemAction.UNCLEAR: "not told; please check",
    ItemAction.KEPT: "kept as it is",
}


@dataclass(frozen=True)
class Preview:
    """
    What an import would change.

    :ivar items: the things that are touched or needed, and what would happen to each.
    :ivar remarks: what the target says besides.
    :ivar shape_known: whether anything could be read of its answer.
    """

    items: tuple[Item, ...]
    remarks: tuple[str, ...]
    shape_known: bool

    def of(self, fate: ItemAction) -> list[Item]:
        """Return the things that this would happen to."""
        return [item for item in self.items if item.fate is fate]

    @property
    def missing_connections(self) -> list[Item]:
        """The connections that the target lacks. What is missing and says not what it is counts as one."""
        return [item for item in self.of(ItemAction.MISSING) if item.kind in ("connection", "object")]

    def summary(self) -> dict[str, Any]:
        """Return it as a dict of JSON, of bounded size: what is listed, and how much there is of each."""
        listed: dict[str, list[Item]] = {
            "new": self.of(ItemAction.NEW),
            "replaced": self.of(ItemAction.REPLACED),
            "kept": self.of(ItemAction.KEPT),
            "failed": self.of(ItemAction.FAILED),
            "unclear": self.of(ItemAction.UNCLEAR),
            "missing_others": [item for item in self.of(ItemAction.MISSING) if item not in self.missing_connections],
        }
        missing = self.missing_connections
        return {
            **{
                name: [{"kind": item.kind, "name": _short(item.name or str(item.id))} for item in items[:MOST_LISTED]]
                for name, items in listed.items()
            },
            "missing_connections": [_short(item.name or str(item.id)) for item in missing[:MOST_LISTED]],
            "counts": {**{name: len(items) for name, items in listed.items()}, "missing_connections": len(missing)},
            "shape_known": self.shape_known,
        }

    def markdown(self, introduction: str, preview_path: str) -> str:
        """
        Return it for people, :data:`LONGEST_MARKDOWN` characters at most. Every name is escaped.

        :param introduction: what is imported, and where; Markdown of ours.
        :param preview_path: where the raw answer is.
        """
        lines = [introduction, ""]
        if not self.shape_known:
            unknown = "**What would change is not known:** the shape of the target's answer is not known."
            lines += [f"{unknown} See the raw answer: {escaped(preview_path)}.", ""]
        if missing := self.missing_connections:
            count = f"{len(missing)} connections are" if len(missing) > 1 else "1 connection is"
            lines += [f"**{count} missing in the target.** Flows that use what is missing will not run.", ""]
        if any(item.kind == "connection" for item in self.of(ItemAction.REPLACED)):
            lines += ["Connections that are replaced take their settings from the bundle.", ""]
        if self.remarks:
            lines += ["Etlworks remarks:", ""]
            lines += [f"- “{escaped(redact(remark))}”" for remark in self.remarks[:_MOST_REMARKS]]
            lines += [f"- and {len(self.remarks) - _MOST_REMARKS} more"] if len(self.remarks) > _MOST_REMARKS else []
            lines += [""]
        counts = [f"{len(found)} {_SAID[fate]}" for fate in _IN_ORDER if (found := self.of(fate))]
        lines += [f"In all: {', '.join(counts)}." if counts else "The answer names no flow and no connection."]
        rows = [_row(item) for fate in _IN_ORDER for item in self.of(fate)]
        return _fitted(lines, rows)


def preview_of(
    answer: Any,
    *,
    flow_names: Sequence[str],
    target_flows: Iterable[str],
    target_connections: Iterable[str],
) -> Preview:
    """
    Work out what an import would change, from the target's answer and from what the target has.

    Where the answer does not say whether a flow is new, the target's list of flows does. Connections are listed by no
    documented call: those that the target's flows of the same names use are known to be there, of others the answer
    must tell.

    :param answer: the answer to the preview, read as JSON; ``None`` where it could not be read.
    :param flow_names: the flows that the bundle is known to have.
    :param target_flows: the names of the target's flows.
    :param target_connections: the names of connections that the target is known to have.
    """
    flows_there, connections_there = set(target_flows), set(target_connections)
    told = parse_items(answer)
    names = {item.name for item in told if item.kind == "flow"}
    items = told + [Item("flow", each) for each in flow_names if each not in names]
    listed = {item.name for item in told if item.kind == "connection"}
    needed = list(dict.fromkeys(name for item in told for name in item.uses if name not in listed))
    # Needed, and not in the bundle: the target must have it.
    items += [
        Item("connection", each, fate=ItemAction.KEPT if each in connections_there else ItemAction.MISSING)
        for each in needed
    ]
    return Preview(
        tuple(_compared(item, flows_there, connections_there) for item in items),
        tuple(parse_remarks(answer)),
        shape_known=bool(told),
    )


def escaped(text: str) -> str:
    """Return somebody else's text as Markdown that shows just that text: no markup, no HTML, no link, one line."""
    plain = _short(" ".join("".join(each if each.isprintable() else " " for each in text).split()))
    return _MARKUP.sub(r"\\\1", html.escape(_LINKS.sub(_NO_LINK, plain), quote=False))


def _compared(item: Item, flows_there: set[str], connections_there: set[str]) -> Item:
    """Fill in what an answer leaves open."""
    if item.fate not in (ItemAction.UNCLEAR, ItemAction.DONE):
        return item
    if item.kind == "flow" and item.name:
        return replace(item, fate=ItemAction.REPLACED if item.name in flows_there else ItemAction.NEW)
    known = item.kind == "connection" and item.name in connections_there
    return replace(item, fate=ItemAction.REPLACED if known else ItemAction.UNCLEAR)


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST_NAME else text[: _LONGEST_NAME - 1] + "…"


def _row(item: Item) -> str:
    return f"| {escaped(item.kind)} | {escaped(item.name or str(item.id))} | {_SAID[item.fate]} |"


def _fitted(lines: list[str], rows: list[str]) -> str:
    """Put a table below some lines, with as many rows as there is room for."""
    if not rows:
        return "\n".join(lines)
    text = "\n".join([*lines, "", "| what | name | what happens |", "|---|---|---|"])
    for number, row in enumerate(rows):
        if len(text) + 1 + len(row) > LONGEST_MARKDOWN - _ROOM_FOR_COUNT:
            return f"{text}\n\n… and {len(rows) - number} more; they are counted above."
        text += f"\n{row}"
    return text
