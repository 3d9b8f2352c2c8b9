"""The trigger of an asset's watcher: its arguments are a public contract, and Airflow compares them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.task import stored_and_loaded

sdk = pytest.importorskip("airflow.sdk", reason="Airflow 2 has no watchers of assets")

from airflow_provider_etlworks.assets import flow_asset  # noqa: E402  # what needs Airflow 3 comes after the skip
from airflow_provider_etlworks.triggers.asset import EtlworksFlowFinishedTrigger  # noqa: E402  # so does this

GOLDEN = Path(__file__).parents[1] / "golden" / "asset-trigger-0.1.0.json"
ARGUMENTS: dict[str, Any] = {
    "flow_id": 7,
    "statuses": ["success", "error"],
    "etlworks_conn_id": "etlworks_eu",
    "poll_interval": 2.5,
}


def test_a_trigger_is_stored_and_loaded_whole() -> None:
    loaded = stored_and_loaded(EtlworksFlowFinishedTrigger(**ARGUMENTS))

    assert {name: getattr(loaded, name) for name in ARGUMENTS} == ARGUMENTS


def test_what_this_release_stores_is_what_it_promised() -> None:
    assert json.loads(GOLDEN.read_text()) == list(EtlworksFlowFinishedTrigger(**ARGUMENTS).serialize())


def test_a_trigger_that_a_newer_release_stored_loads() -> None:
    path, kwargs = json.loads(GOLDEN.read_text())

    loaded = EtlworksFlowFinishedTrigger(**{**kwargs, "of_a_later_release": True})

    assert loaded.serialize() == (path, kwargs)


def test_the_same_watcher_is_the_same_trigger_however_it_is_written() -> None:
    ways: list[dict[str, Any]] = [
        {},
        {"statuses": ("warning", "success"), "poll_interval": 30},
        {"statuses": {"success", "warning"}, "etlworks_conn_id": "etlworks_default"},
    ]
    triggers = [EtlworksFlowFinishedTrigger(7, **way) for way in ways]

    assert len({EtlworksFlowFinishedTrigger.hash(*each.serialize()) for each in triggers}) == 1
    kwargs = triggers[0].serialize()[1]
    assert json.loads(json.dumps(kwargs)) == kwargs


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"flow_id": 0}, "flow_id is 0; it must be a whole number above 0"),
        ({"flow_id": "7"}, "flow_id is '7'"),
        ({"flow_id": True}, "flow_id is True"),
        ({"statuses": ()}, "statuses is \\(\\); it must be some of success, warning, error, canceled"),
        ({"statuses": ["done"]}, "statuses is \\['done'\\]"),
        ({"poll_interval": 0}, "poll_interval is 0; it must be a number of seconds above 0"),
    ],
)
def test_what_cannot_work_is_said_where_the_dag_file_is_read(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        EtlworksFlowFinishedTrigger(**{"flow_id": 7, **arguments})


def test_one_status_may_be_given_by_itself() -> None:
    assert EtlworksFlowFinishedTrigger(7, statuses="error").statuses == ["error"]


def test_it_is_a_watcher_of_an_asset() -> None:
    watcher = sdk.AssetWatcher(name="ends", trigger=EtlworksFlowFinishedTrigger(7))

    assert flow_asset(7, name="seven", watchers=[watcher]).watchers == [watcher]


def test_watchers_of_one_connection_share_a_stream_and_others_do_not() -> None:
    keys = [
        EtlworksFlowFinishedTrigger(flow_id, statuses, conn_id, interval).shared_stream_key()
        for flow_id, statuses, conn_id, interval in (
            (7, ("success",), "one", 5),
            (8, ("error",), "one", 60),
            (7, ("success",), "another", 5),
        )
    ]

    assert keys[0] == keys[1] != keys[2]
