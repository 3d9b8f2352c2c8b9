"""Selects flows from the list of all flows: by id, by name, by tag."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

from airflow_provider_etlworks.client.errors import EtlworksConfigError
from airflow_provider_etlworks.client.models import as_name, as_word

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from airflow_provider_etlworks.client.models import Flow


def find_by_name(name: str, flows: Sequence[Flow]) -> Flow:
    """
    Return the one flow with exactly this name.

    :param flows: all flows.
    :raises EtlworksConfigError: none, or more than one, has it; the message lists candidates.
    """
    # As a flow's name is read, so that one with a line break is found as well.
    wanted = as_name(name)
    found = [flow for flow in flows if flow.name == wanted]
    if len(found) == 1:
        return found[0]
    if found:
        ids = ", ".join(str(flow.id) for flow in found)
        raise EtlworksConfigError(f"{len(found)} flows are called {name!r}: {ids}. Use flow_id instead.")
    close = difflib.get_close_matches(name, [flow.name for flow in flows], n=3, cutoff=0.4)
    hint = f"Did you mean {' or '.join(map(repr, close))}?" if close else "Names match exactly, case included."
    raise EtlworksConfigError(f"No flow is called {name!r} among the {len(flows)} that this user can see. {hint}")


def find_by_id(flow_id: int, flows: Sequence[Flow]) -> Flow:
    """
    Return the flow with this id.

    :param flows: all flows.
    :raises EtlworksConfigError: there is none.
    """
    for flow in flows:
        if flow.id == flow_id:
            return flow
    raise EtlworksConfigError(f"No flow has the id {flow_id} among the {len(flows)} that this user can see.")


def select_flows(
    flows: Sequence[Flow], *, ids: Iterable[int] = (), names: Iterable[str] = (), tags: Iterable[str] = ()
) -> list[Flow]:
    """
    Return the flows that any of these selects, ordered by their ids, each once.

    :param flows: all flows.
    :param ids: their ids.
    :param names: their names, exactly.
    :param tags: tags; a flow with any of them is selected.
    :raises EtlworksConfigError: an id or a name has not exactly one flow, or no flow is selected at all.
    """
    wanted = {as_word(tag) or "" for tag in tags}
    found = [find_by_id(each, flows) for each in ids]
    found += [find_by_name(each, flows) for each in names]
    found += [flow for flow in flows if wanted.intersection(flow.tags)]
    if not found:
        known = sorted({tag for flow in flows for tag in flow.tags})
        by_tag = f" with the tags {', '.join(map(repr, sorted(wanted)))}" if wanted else ""
        there_are = f" The tags that there are: {', '.join(known[:20]) or 'none'}." if wanted else ""
        raise EtlworksConfigError(
            f"No flow{by_tag} is selected, among the {len(flows)} that this user can see.{there_are}"
        )
    by_id = {flow.id: flow for flow in found}
    return [by_id[each] for each in sorted(by_id)]
