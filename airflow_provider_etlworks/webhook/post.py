"""What a webhook's post says: which run has ended. Nothing else of it is used."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, urlsplit

from airflow_provider_etlworks.client.errors import EtlworksConfigError
from airflow_provider_etlworks.client.values import parse_id

_FLOW_PATH = re.compile(r"/flows/([0-9]{1,19})/?")
_LONGEST_EVENT_ID = 200


@dataclass(frozen=True)
class Post:
    """
    A post that names a run.

    :ivar event_id: by which repetitions are recognized.
    :ivar flow_id: the flow.
    :ivar audit_id: the run.
    """

    event_id: str
    flow_id: int
    audit_id: int


def read_post(body: bytes) -> Post | None:
    """
    Return the run that a post names; ``None`` if it is about something else, such as a flow that was created.

    :param body: JSON, as Etlworks sends it for ``Flow.Executed``: ``entityUrl`` ends with
        ``/flows/<flow id>?auditId=<audit id>``.
    :raises ValueError: it is not a JSON object.
    """
    try:
        value = json.loads(body)
    except RecursionError:
        raise ValueError("It is nested too deeply.") from None
    if not isinstance(value, dict):
        raise ValueError("It is not a JSON object.")  # noqa: TRY004  # the caller answers 400 to either
    try:
        parts = urlsplit(value["entityUrl"])
        path = _FLOW_PATH.search(parts.path)
        flow_id = _positive("flow_id", path[1] if path else None)
        (digits,) = parse_qs(parts.query, max_num_fields=20)["auditId"]
        audit_id = _positive("audit_id", digits)
    except (AttributeError, EtlworksConfigError, KeyError, TypeError, ValueError):
        return None
    event_id = value.get("eventId")
    if not isinstance(event_id, str) or not 0 < len(event_id) <= _LONGEST_EVENT_ID:
        event_id = f"{flow_id}/{audit_id}"
    return Post(event_id, flow_id, audit_id)


def _positive(name: str, value: Any) -> int:
    number = parse_id(name, value)
    if number < 1:
        raise ValueError(name)
    return number
