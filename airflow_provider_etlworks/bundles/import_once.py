"""
An import happens once.

An import that certainly did not reach Etlworks is sent again. One that may have is never: the target's flows are looked
at instead, and compared with what they were before. Where they do not show that it was applied, that is said, with both
possibilities.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from airflow_provider_etlworks.bundles.report import Item, ItemAction, parse_items
from airflow_provider_etlworks.client import endpoints
from airflow_provider_etlworks.client.errors import (
    EtlworksError,
    EtlworksImportFailed,
    EtlworksImportUnknown,
    EtlworksRefused,
)
from airflow_provider_etlworks.client.procedure import Sleep, read_all

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from airflow_provider_etlworks.client.call import Call
    from airflow_provider_etlworks.client.clock import Clock
    from airflow_provider_etlworks.client.models import Flow
    from airflow_provider_etlworks.client.procedure import Log, Procedure

IMPORT_GRACE = 120.0
"""Seconds for which the target may take to show an import whose answer was lost."""

_FIRST_LOOK_PAUSE = 1.0
_LONGEST_LOOK_PAUSE = 15.0
_MOST_NAMED = 20

FlowVersions = dict[str, list[list[int]]]
"""Flows by name, each as its id and the Unix milliseconds of its last change (0: not told). JSON."""


@dataclass(frozen=True)
class Imported:
    """
    An import that was applied.

    :ivar items: what the server said of each thing; empty where it said nothing that can be read, or no answer came.
    :ivar by_answer: whether the server's answer says so. Otherwise the target shows it.
    """

    items: tuple[Item, ...] = ()
    by_answer: bool = True


@dataclass(frozen=True)
class BundleImport:
    """
    An import that is to happen, and all that is needed to do it once.

    :ivar call: the import itself.
    :ivar flow_names: the names of the flows in the bundle; empty where they are not known.
    :ivar clock: tells the time.
    :ivar log: is told what happens.
    :ivar user: whom we log in as, where known: another user's change is not ours.
    :ivar remember: is called with ``True`` before the import is sent, and with ``False`` once it is certain that it did
        nothing.
    """

    call: Call[Any]
    flow_names: Sequence[str]
    clock: Clock
    log: Log
    user: str | None = None
    save_intent: Callable[[bool], None] = lambda _: None

    def import_once(self, before: FlowVersions) -> Procedure[Imported]:
        """
        Import the bundle.

        :param before: what the target has, as :func:`flow_versions` tells.
        :raises EtlworksImportFailed: Etlworks refused it, or imported only a part.
        :raises EtlworksImportUnknown: it was sent, and it cannot be told whether it was applied.
        :raises EtlworksError: nothing was imported.
        """
        self.save_intent(True)
        try:
            answer = yield self.call
        except EtlworksRefused as error:
            raise EtlworksImportFailed((yield from self._refused(error, before))) from None
        except EtlworksError as error:
            if error.not_processed:
                self.save_intent(False)
                raise
            self.log.warning("The answer to the import was lost: %s Looking in the target; nothing is repeated.", error)
            return (yield from self.reconcile(before, f"its answer was lost ({error})"))
        items = parse_items(answer)
        if any(item.fate is ItemAction.FAILED for item in items):
            raise EtlworksImportFailed(f"Etlworks imported only a part of the bundle. {_done_and_not(items)}")
        return Imported(tuple(items))

    def reconcile(self, before: FlowVersions, why: str, grace: float = IMPORT_GRACE) -> Procedure[Imported]:
        """
        Look in the target for what an import has done whose answer is not known.

        :param before: what the target had before it.
        :param why: why its answer is not known, for the message.
        :param grace: seconds for which the target may take to show it.
        :raises EtlworksImportUnknown: the target does not show that it was applied.
        """
        began = self.clock.monotonic()
        pause = _FIRST_LOOK_PAUSE
        sent = f"The import was sent, and {why}. "
        if not self.flow_names:
            raise EtlworksImportUnknown(
                f"{sent}It may have been applied, or not: which flows are in the bundle is not known, so the target "
                "cannot tell. Nothing was sent again. Look at its flows in Etlworks."
            )
        while True:
            waited = self.clock.monotonic() - began
            try:
                changed, unchanged = self._changes(before, (yield from read_all(endpoints.list_flows())))
            except EtlworksError as error:
                if not error.retryable or waited >= grace:
                    raise EtlworksImportUnknown(
                        f"{sent}It may have been applied, or not: the target's flows cannot be read ({error}). "
                        "Nothing was sent again. Look at the bundle's flows in Etlworks: "
                        f"{named(self.flow_names)}."
                    ) from error
                self.log.warning("Cannot look into the target yet: %s", error)
            else:
                if not unchanged:
                    self.log.info("All %s flows of the bundle changed in the target: it was applied.", len(changed))
                    return Imported(by_answer=False)
                if waited >= grace:
                    raise EtlworksImportUnknown(
                        f"{sent}{_both_possibilities(changed, unchanged)} Nothing was sent again. "
                        "Look at these flows in Etlworks."
                    )
            yield Sleep(pause)
            pause = min(pause * 1.5, _LONGEST_LOOK_PAUSE)

    def _changes(self, before: FlowVersions, flows: Iterable[Flow]) -> tuple[list[str], list[str]]:
        """Return which of the bundle's flows we may have changed since, and which not."""
        ours = [flow for flow in flows if not _is_of_another(flow, self.user)]
        now = flow_versions(ours, self.flow_names)
        changed = [name for name in now if any(mark not in before.get(name, []) for mark in now[name])]
        return changed, [name for name in dict.fromkeys(self.flow_names) if name not in changed]

    def _refused(self, error: EtlworksRefused, before: FlowVersions) -> Procedure[str]:
        """Say what is done of an import that the server refused, in part or as a whole."""
        if items := parse_items(error.answer):
            return f"{error} {_done_and_not(items)}"
        try:
            changed, unchanged = self._changes(before, (yield from read_all(endpoints.list_flows())))
        except EtlworksError as unread:
            return f"{error} Whether a part of it was imported is not known: {unread}"
        if not changed:
            return f"{error} None of the bundle's flows has changed in the target."
        return f"{error} In the target, changed: {named(changed)}. Not changed: {named(unchanged)}."


def flow_versions(flows: Iterable[Flow], names: Iterable[str]) -> FlowVersions:
    """
    Return what tells later whether flows were changed.

    :param flows: all flows of the target.
    :param names: the flows that matter; those that are not there are left out.
    """
    wanted = set(names)
    marks: FlowVersions = {}
    for flow in flows:
        if flow.name in wanted:
            changed_at = int(flow.modified_at.timestamp() * 1000) if flow.modified_at else 0
            marks.setdefault(flow.name, []).append([flow.id, changed_at])
    return marks


def named(names: Sequence[str]) -> str:
    """Return names for a message: some of them, and how many more there are."""
    shown = ", ".join(repr(name) for name in names[:_MOST_NAMED]) or "none"
    return shown if len(names) <= _MOST_NAMED else f"{shown} and {len(names) - _MOST_NAMED} more"


def _is_of_another(flow: Flow, user: str | None) -> bool:
    by = flow.raw.get("modifiedBy")
    return user is not None and isinstance(by, str) and by.lower() != user.lower()


def _both_possibilities(changed: Sequence[str], unchanged: Sequence[str]) -> str:
    if changed:
        return (
            "It was applied in part, or is still being applied. In the target, changed: "
            f"{named(changed)}. Not changed: {named(unchanged)}."
        )
    return (
        "Either it was applied and the target does not show it, or it was not applied: none of the bundle's flows "
        f"has changed in the target: {named(unchanged)}."
    )


def _done_and_not(items: Sequence[Item]) -> str:
    """Say what an answer tells of each thing."""
    failed = [f"{item.label}{f' ({item.message[:200]})' if item.message else ''}" for item in items if _failed(item)]
    done = [item.label for item in items if not _failed(item) and item.fate is not ItemAction.UNCLEAR]
    not_told = [item.label for item in items if item.fate is ItemAction.UNCLEAR]
    said = f"Not done: {named(failed)}. Done: {named(done)}."
    return f"{said} Not told: {named(not_told)}." if not_told else said


def _failed(item: Item) -> bool:
    return item.fate in (ItemAction.FAILED, ItemAction.MISSING)
