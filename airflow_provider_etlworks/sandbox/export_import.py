"""Export and import of flows as a JSON bundle. Equal content gives equal bytes."""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from airflow_provider_etlworks.sandbox.flows import SandboxFlow, behaviour, flow_from_mapping
from airflow_provider_etlworks.sandbox.messages import ApiError, optional, required, string_list
from airflow_provider_etlworks.sandbox.organization import Organization, connection_body, references

if TYPE_CHECKING:
    from collections.abc import Mapping

FORMAT = "etlworks-sandbox-bundle/1"

# The bundle contains the behaviour of the runs, so that an imported flow can run.
BEHAVIOUR = "sandbox"
_DETAILS = ("properties", "transformations", "mappings", "nestedFlows")
_FLOW_FIELDS = ("id", "name", "description", "flowType", "tags", *_DETAILS)
_CONNECTION_FIELDS = ("id", "name", "description", "connectionType", "properties", "tags")

_Flow = tuple[dict[str, Any], SandboxFlow]
_Connection = tuple[dict[str, Any], dict[str, Any] | None]


def export(organization: Organization, flow_ids: list[int], include_connections: bool) -> dict[str, Any]:
    """Return a bundle with these flows; 404 if one does not exist."""
    documents = [organization.document(flow_id) for flow_id in sorted(set(flow_ids))]
    used = {entry["id"] for document in documents for entry in document["connections"]}
    connections = [organization.connection(connection_id) for connection_id in sorted(used)]
    return {
        "format": FORMAT,
        "flows": [
            {
                **_only(document, _FLOW_FIELDS),
                "connections": sorted(entry["name"] for entry in document["connections"]),
                BEHAVIOUR: behaviour(organization.flow(document["id"])),
            }
            for document in documents
        ],
        "connections": [_only(one, _CONNECTION_FIELDS) for one in connections] if include_connections else [],
    }


def encode(bundle: Mapping[str, Any]) -> bytes:
    """Encode a bundle; equal bundles give equal bytes."""
    return json.dumps(bundle, sort_keys=True, indent=1).encode()


def dump(bundle: Mapping[str, Any]) -> str:
    """Encode a bundle as the older API does: as Base64 text."""
    return base64.b64encode(encode(bundle)).decode()


def load_dump(text: str) -> dict[str, Any]:
    """Decode the result of ``dump``; 400 for anything else."""
    try:
        bundle = json.loads(base64.b64decode(text, validate=True))
    except (binascii.Error, ValueError):
        raise ApiError(400, "Field 'dump' is not an export") from None
    return _checked(bundle)


def preview(organization: Organization, bundle: Mapping[str, Any]) -> dict[str, Any]:
    """
    Report what an import would change, by the ids in the bundle, in the only documented shape: the older preview's.

    A bundle that the import would refuse is refused here too. Nothing is changed.
    """
    flows, connections = _checked_items(organization, bundle)
    return {
        "graph": {str(entry["id"]): list(plan.connections) for entry, plan in flows},
        "flows": {
            str(entry["id"]): {
                "id": entry["id"],
                "name": plan.name,
                "type": plan.flow_type,
                "icon": "flow",
                "listener": plan.listener is not None,
            }
            for entry, plan in flows
        },
        "connections": {
            str(entry["id"]): {"id": entry["id"], "name": entry["name"], "type": entry["connectionType"]}
            for entry, _ in connections
        },
        "formats": {},
        "schedules": {},
    }


def apply(organization: Organization, bundle: Mapping[str, Any], user: str) -> dict[str, Any]:
    """
    Import a bundle. A flow or connection of the same name and type is replaced and keeps its id; others get a new id.

    Everything is checked before anything is changed.
    """
    flows, connections = _checked_items(organization, bundle)
    known = organization.plans()
    result: dict[str, Any] = {"success": True, "flows": [], "connections": []}
    for entry, existing in connections:
        if existing is not None:
            organization.replace_connection(existing, entry, user)
        connection = existing or organization.create_connection(entry, user)
        result["connections"].append(_result(connection["id"], connection["name"], existing is not None))
    for entry, plan in flows:
        used = references(organization.connection_by_name(name) for name in plan.connections)
        organization.put_flow(plan, {**_only(entry, _DETAILS), "connections": used}, user)
        result["flows"].append(_result(plan.id, plan.name, plan.id in known))
    return result


def _checked_items(organization: Organization, bundle: Mapping[str, Any]) -> tuple[list[_Flow], list[_Connection]]:
    """Check a bundle. Return its flows with their ids here, and its connections with those that they replace."""
    _checked(bundle)
    connections: list[_Connection] = []
    for entry in bundle["connections"]:
        required(entry, "id", int)
        body = connection_body(entry)
        connections.append((entry, organization.connection_to_replace(body["name"], body["connectionType"])))
    if len({entry["name"] for entry, _ in connections}) < len(connections):
        raise ApiError(400, "Field 'connections' has two connections with the same name")
    flows: list[_Flow] = []
    next_id = organization.new_flow_id()
    for entry in bundle["flows"]:
        plan = _plan(entry)
        existing = organization.flow_to_replace(plan.name, plan.flow_type)
        flows.append((entry, replace(plan, id=existing.id if existing else next_id)))
        next_id += existing is None
    try:
        organization.check_unique([plan for _, plan in flows])
    except ValueError as error:
        raise ApiError(409, str(error)) from None
    return flows, connections


def _plan(entry: Mapping[str, Any]) -> SandboxFlow:
    try:
        return flow_from_mapping(
            {
                "id": required(entry, "id", int),
                "name": required(entry, "name", str),
                "description": optional(entry, "description", str, ""),
                "flow_type": optional(entry, "flowType", str, ""),
                "tags": string_list(entry, "tags"),
                "connections": string_list(entry, "connections"),
                **optional(entry, BEHAVIOUR, dict, {}),
            }
        )
    except ValueError as error:
        raise ApiError(400, f"The bundle has an invalid flow: {error}") from None


def _checked(bundle: object) -> dict[str, Any]:
    if not isinstance(bundle, dict) or bundle.get("format") != FORMAT:
        raise ApiError(400, f"The body is not a bundle: field 'format' must be '{FORMAT}'")
    for name in ("flows", "connections"):
        members = bundle.get(name)
        if not isinstance(members, list) or not all(isinstance(member, dict) for member in members):
            raise ApiError(400, f"Field '{name}' must be a list of objects")
    return bundle


def _only(entry: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: entry[name] for name in names if name in entry}


def _result(identifier: int, name: str, replaced: bool) -> dict[str, Any]:
    return {"id": identifier, "name": name, "action": "replaced" if replaced else "created"}
