"""The sensor's trigger: its arguments are a public contract, its event is plain JSON."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from support.task import stored_and_loaded

from airflow_provider_etlworks.client.errors import EtlworksReplyError
from airflow_provider_etlworks.client.models import Execution
from airflow_provider_etlworks.runs.events import WaitEvent
from airflow_provider_etlworks.runs.follow import Ending, FollowResult
from airflow_provider_etlworks.triggers.sensor import EtlworksFlowSensorTrigger

GOLDEN = Path(__file__).parents[1] / "golden" / "sensor-trigger-0.1.0.json"
ARGUMENTS: dict[str, Any] = {
    "flow_id": 7,
    "audit_id": 8,
    "message_uuid": "abc",
    "since": "2026-05-09T00:00:00+00:00",
    "etlworks_conn_id": "etlworks_eu",
    "poll_interval": 2.5,
    "deadline": 1_800_000_600.0,
    "patience": 77.0,
    "repetition_grace": 600.0,
    "root_url": "https://etlworks.example.com",
}
OF_0_1_0 = {name: value for name, value in ARGUMENTS.items() if name != "root_url"}


def test_all_arguments_are_stored() -> None:
    loaded = stored_and_loaded(EtlworksFlowSensorTrigger(**ARGUMENTS))

    assert {name: getattr(loaded, name) for name in ARGUMENTS} == ARGUMENTS


def test_stored_form_is_the_promised_one() -> None:
    assert json.loads(GOLDEN.read_text()) == list(EtlworksFlowSensorTrigger(**OF_0_1_0).serialize())


def test_trigger_of_a_newer_release_loads() -> None:
    path, kwargs = json.loads(GOLDEN.read_text())

    loaded = EtlworksFlowSensorTrigger(**{**kwargs, "of_a_later_release": True})

    assert loaded.serialize() == (path, kwargs)


RUN = Execution(7, 8, status="success", started_at=datetime(2026, 5, 9, tzinfo=timezone.utc), records=3)


@pytest.mark.parametrize(
    "followed",
    [
        FollowResult(Ending.FINISHED, RUN),
        FollowResult(Ending.DEADLINE, detail="late"),
        FollowResult(Ending.DENIED, RUN, "403"),
    ],
)
def test_event_is_read_back(followed: FollowResult) -> None:
    payload = json.loads(json.dumps(WaitEvent(7, followed).to_payload()))

    assert set(payload) == {"ending", "flow_id", "audit_id", "status", "detail", "execution"}
    assert payload["audit_id"] == (8 if followed.execution else None)
    assert WaitEvent.from_payload(payload) == WaitEvent(7, followed)


@pytest.mark.parametrize("payload", [None, {}, {"ending": "over", "flow_id": 7}, {"ending": "finished"}, "finished"])
def test_invalid_event_is_refused(payload: Any) -> None:
    with pytest.raises(EtlworksReplyError, match="Cannot read the trigger's event"):
        WaitEvent.from_payload(payload)
