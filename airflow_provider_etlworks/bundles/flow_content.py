"""What a flow does, as far as a bundle and the target show it: the proof that the target has the bundle's content."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

from airflow_provider_etlworks.bundles.report import names_in

# The parts of a flow that Etlworks documents. Without any of the first four, nothing shows what the flow does.
_CONTENT = ("properties", "transformations", "mappings", "nestedFlows")
_ABOUT = ("name", "description", "flowType", "tags", "connections")


def definitions_in(bundle: bytes) -> dict[str, Mapping[str, Any]]:
    """
    Return the definitions of the flows in a bundle of the newer format, by the flows' names.

    :param bundle: the bundle. The shape of its content is not documented: empty if it is not a JSON object with
        ``flows``. A name that two flows have is left out.
    """
    try:
        document = json.loads(bundle)
    except (ValueError, RecursionError):
        return {}
    flows = document.get("flows") if isinstance(document, Mapping) else None
    entries = list(flows.values()) if isinstance(flows, Mapping) else flows if isinstance(flows, list) else []
    named = [each for each in entries if isinstance(each, Mapping) and isinstance(each.get("name"), str)]
    counts = Counter(each["name"] for each in named)
    return {each["name"]: each for each in named if counts[each["name"]] == 1}


def shows_definition(flow: Mapping[str, Any], definition: Mapping[str, Any]) -> bool:
    """
    Whether a flow of the target has a bundle's content.

    :param flow: the whole flow, as the target returns it.
    :param definition: the flow as the bundle has it. Each documented part of it must be in the target, and equal; ids
        and times of change belong to the instance and are not compared.
    """
    return any(part in definition for part in _CONTENT) and all(
        part in flow and _comparable(part, flow[part]) == _comparable(part, definition[part])
        for part in (*_CONTENT, *_ABOUT)
        if part in definition
    )


def _comparable(part: str, value: Any) -> Any:
    if part == "connections":
        return sorted(names_in(value))
    return sorted(map(str, value)) if part == "tags" and isinstance(value, list) else value
