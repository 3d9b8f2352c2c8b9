"""The schedule operator's arguments, when a DAG file is parsed."""

from __future__ import annotations

from typing import Any

import pytest

from airflow_provider_etlworks.operators.schedule import EtlworksScheduleOperator


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"action": "stop", "flow_ids": [7]}, "action is 'stop'; it is 'pause' or 'resume'"),
        ({"action": None, "flow_ids": [7]}, "action is None"),
        ({"action": "pause"}, "exactly one of schedule_ids and flow_ids; neither is given"),
        ({"action": "pause", "flow_ids": [7], "schedule_ids": []}, "exactly one .* both are given"),
    ],
)
def test_invalid_arguments_are_refused_at_parse_time(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^switch: .*{message}"):
        EtlworksScheduleOperator(task_id="switch", **arguments)


def test_selections_and_connection_are_templated() -> None:
    assert set(EtlworksScheduleOperator.template_fields) == {"schedule_ids", "flow_ids", "etlworks_conn_id"}
