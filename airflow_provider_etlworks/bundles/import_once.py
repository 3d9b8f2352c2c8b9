"""
An import happens once.

An import that Etlworks certainly did not process is sent again. An import in doubt never is: the target's flows are
compared with what they were before. A changed flow proves the import only if it shows our user or has the bundle's
content. Without proof for each flow the import stays in doubt, and the error names both possibilities.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from airflow_provider_etlworks.bundles.flow_content import shows_definition
from airflow_provider_etlworks.bundles.preview import one_line
from airflow_provider_etlworks.bundles.report import Item, ItemAction, is_failure, parse_items, parse_remarks
from airflow_provider_etlworks.client import endpoints
from airflow_provider_etlworks.client.clock import growing_delays
from airflow_provider_etlworks.client.errors import (
    EtlworksError,
    EtlworksImportFailed,
    EtlworksImportUnknown,
    EtlworksRefused,
)
from airflow_provider_etlworks.client.procedure import Sleep, read_all
from airflow_provider_etlworks.client.redaction import redact

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from airflow_provider_etlworks.client.call import Call
    from airflow_provider_etlworks.client.clock import Clock
    from airflow_provider_etlworks.client.models import Flow
    from airflow_provider_etlworks.client.procedure import Log, Procedure

IMPORT_GRACE = 120.0
"""Seconds for which the target may take to show an import that is in doubt."""

_FIRST_DELAY = 1.0
_LONGEST_DELAY = 15.0
_MOST_NAMED = 20
_LONGEST_TEXT = 300

FlowVersions = dict[str, list[list[int]]]
"""Flows by name, each as its id and the Unix milliseconds of its last change (0: not known). JSON."""


@dataclass(frozen=True)
class Imported:
    """
    An import that was applied.

    :ivar items: what the answer reports of each item; empty if it reports nothing that is documented, or was lost.
    :ivar remarks: sentences of the answer.
    :ivar by_answer: whether the answer says that it was applied. Otherwise the target shows it.
    """

    items: tuple[Item, ...] = ()
    remarks: tuple[str, ...] = ()
    by_answer: bool = True


@dataclass
class _Evidence:
    """
    What the target shows of an import in doubt.

    :ivar changed: the names of the bundle's flows that changed since the import was sent.
    :ivar proven: those of them that show that the import changed them.
    :ivar compared: id and time of change of the flows whose content was compared.
    """

    changed: list[str] = field(default_factory=list)
    proven: set[str] = field(default_factory=set)
    compared: set[tuple[int, int]] = field(default_factory=set)


@dataclass(frozen=True)
class BundleImport:
    """
    An import that is to happen, and all that is needed to do it once.

    :ivar call: the import itself.
    :ivar flow_names: the names of the flows in the bundle; empty if they are not known.
    :ivar clock: the clock that bounds the reconciliation.
    :ivar log: receives what happens.
    :ivar user: the login that our changes show; ``None`` with an API key, whose user is not known.
    :ivar definitions: returns the bundle's flows by name, as far as they can be read.
    :ivar save_intent: is called with ``True`` before the import is sent, and with ``False`` if it is certain that this
        import was not processed.
    :ivar secrets: texts that no message may contain.
    """

    call: Call[Any]
    flow_names: Sequence[str]
    clock: Clock
    log: Log
    user: str | None = None
    definitions: Callable[[], Mapping[str, Mapping[str, Any]]] = dict
    save_intent: Callable[[bool], None] = lambda _: None
    secrets: Sequence[str] = ()

    def import_once(self, before: FlowVersions) -> Procedure[Imported]:
        """
        Import the bundle.

        :param before: the target's flows before the import, from :func:`flow_versions`.
        :raises EtlworksImportFailed: Etlworks refused it, or imported only a part.
        :raises EtlworksImportUnknown: it was sent, and nothing proves whether it was applied.
        :raises EtlworksError: nothing was imported.
        """
        self.save_intent(True)
        try:
            answer = yield self.call
        except EtlworksRefused as error:
            raise EtlworksImportFailed((yield from self._describe(str(error), error.answer, before))) from None
        except EtlworksError as error:
            if error.not_processed:
                self.save_intent(False)
                raise
            self.log.warning("The import is in doubt: %s Reconciling with the target; nothing is sent again.", error)
            return (yield from self.reconcile(before, f"its answer was lost ({error})"))
        items = parse_items(answer)
        if is_failure(answer) or any(item.action is ItemAction.FAILED for item in items):
            failed = "Etlworks answered that the import failed, or imported only a part of the bundle."
            raise EtlworksImportFailed((yield from self._describe(failed, answer, before)))
        return Imported(tuple(items), tuple(self._safe(each) for each in parse_remarks(answer)))

    def reconcile(self, before: FlowVersions, why: str, grace: float = IMPORT_GRACE) -> Procedure[Imported]:
        """
        Find out from the target whether an import in doubt was applied.

        :param before: the target's flows before the import.
        :param why: why its answer is not known, for the message.
        :param grace: seconds for which the target may take to show it.
        :raises EtlworksImportUnknown: the target does not prove that it was applied.
        """
        sent = f"The import was sent, and {why}. "
        if not self.flow_names:
            raise EtlworksImportUnknown(
                f"{sent}It may have been applied, or not: which flows are in the bundle is not known, so there is "
                "nothing to compare. Nothing was sent again. Check the target's flows in Etlworks."
            )
        began, seen = self.clock.monotonic(), _Evidence()
        for delay in growing_delays(_FIRST_DELAY, _LONGEST_DELAY):
            is_last = self.clock.monotonic() - began >= grace
            try:
                yield from self._read_evidence(before, seen)
            except EtlworksError as error:
                if not error.retryable or is_last:
                    raise EtlworksImportUnknown(
                        f"{sent}It may have been applied, or not: the target's flows cannot be read ({error}). "
                        f"Nothing was sent again. Check the bundle's flows in Etlworks: {named(self.flow_names)}."
                    ) from error
                self.log.warning("The target's flows cannot be read yet; trying again in %.0f s: %s", delay, error)
            else:
                if seen.proven.issuperset(self.flow_names):
                    self.log.info("The import was applied: all %s flows of the bundle show it.", len(seen.proven))
                    return Imported(by_answer=False)
                if is_last:
                    raise EtlworksImportUnknown(
                        f"{sent}{self._both_possibilities(seen)} Nothing was sent again. Check these flows in Etlworks."
                    )
            yield Sleep(delay)
        raise AssertionError("the delays do not end")

    def _read_evidence(self, before: FlowVersions, seen: _Evidence) -> Procedure[None]:
        changed = self._changed_flows(before, (yield from read_all(endpoints.list_flows())))
        seen.changed = list(dict.fromkeys(flow.name for flow in changed))
        for flow in changed:
            if flow.name not in seen.proven and (yield from self._is_ours(flow, seen)):
                seen.proven.add(flow.name)

    def _is_ours(self, flow: Flow, seen: _Evidence) -> Procedure[bool]:
        """Return whether a changed flow proves that the import changed it."""
        by = flow.raw.get("modifiedBy")
        if self.user is not None and isinstance(by, str) and by.lower() == self.user.lower():
            return True
        definition, version = self.definitions().get(flow.name), (flow.id, _changed_at(flow))
        if definition is None or version in seen.compared:
            return False
        whole = yield endpoints.get_flow(flow.id)
        seen.compared.add(version)
        return shows_definition(whole.raw, definition)

    def _changed_flows(self, before: FlowVersions, flows: Iterable[Flow]) -> list[Flow]:
        names = set(self.flow_names)
        ours = (flow for flow in flows if flow.name in names)
        return [flow for flow in ours if [flow.id, _changed_at(flow)] not in before.get(flow.name, [])]

    def _both_possibilities(self, seen: _Evidence) -> str:
        unchanged = [name for name in self.flow_names if name not in seen.changed]
        if not seen.changed:
            return (
                "Either it was applied and the target does not show it, or it was not applied: none of the bundle's "
                f"flows has changed in the target: {named(unchanged)}."
            )
        unproven = [name for name in seen.changed if name not in seen.proven]
        return (
            "Either it was applied, at least in part, or it was not applied and somebody else changed flows. In the "
            f"target, changed: {named(seen.changed)}. Not changed: {named(unchanged)}. Changed, but neither by our "
            f"user nor to the bundle's content, as far as known: {named(unproven)}."
        )

    def _describe(self, failure: str, answer: Any, before: FlowVersions) -> Procedure[str]:
        """Describe a failed import: what the answer reports, and what has changed in the target."""
        failed = [self._safe(_failed_label(item)) for item in parse_items(answer) if item.action is ItemAction.FAILED]
        remarks = [self._safe(each) for each in parse_remarks(answer)]
        remarks = [each for each in remarks if each not in failure]
        parts = [failure]
        parts += [f"Etlworks remarks: {named(remarks)}."] if remarks else []
        parts += [f"Not done: {named(failed)}."] if failed else []
        try:
            changed = {flow.name for flow in self._changed_flows(before, (yield from read_all(endpoints.list_flows())))}
        except EtlworksError as unread:
            return " ".join([*parts, f"Whether a part of it was imported is not known: {unread}"])
        if not changed:
            return " ".join([*parts, "None of the bundle's flows has changed in the target."])
        shown = [name for name in self.flow_names if name in changed]
        unchanged = [name for name in self.flow_names if name not in changed]
        return " ".join([*parts, f"In the target, changed: {named(shown)}. Not changed: {named(unchanged)}."])

    def _safe(self, text: str) -> str:
        """Return a text of the answer that may be shown: without secrets, in one line, and short."""
        return one_line(redact(text, self.secrets), _LONGEST_TEXT)


def flow_versions(flows: Iterable[Flow], names: Iterable[str]) -> FlowVersions:
    """
    Return the versions by which a later change of flows shows.

    :param flows: all flows of the target.
    :param names: the names of the flows that matter; those that the target does not have are left out.
    """
    wanted = set(names)
    versions: FlowVersions = {}
    for flow in flows:
        if flow.name in wanted:
            versions.setdefault(flow.name, []).append([flow.id, _changed_at(flow)])
    return versions


def named(names: Sequence[str]) -> str:
    """Return names for a message: some of them, and how many more there are."""
    shown = ", ".join(repr(one_line(name, _LONGEST_TEXT)) for name in names[:_MOST_NAMED]) or "none"
    return shown if len(names) <= _MOST_NAMED else f"{shown} and {len(names) - _MOST_NAMED} more"


def _changed_at(flow: Flow) -> int:
    return int(flow.modified_at.timestamp() * 1000) if flow.modified_at else 0


def _failed_label(item: Item) -> str:
    return f"{item.label} ({item.message})" if item.message else item.label
