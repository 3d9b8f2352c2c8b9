"""The asset trigger's arguments: they are a public contract, and Airflow compares them."""

from __future__ import annotations

import json
from datetime import timedelta
from fractions import Fraction
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


def test_all_arguments_are_stored() -> None:
    loaded = stored_and_loaded(EtlworksFlowFinishedTrigger(**ARGUMENTS))

    assert {name: getattr(loaded, name) for name in ARGUMENTS} == ARGUMENTS


def test_stored_form_is_the_promised_one() -> None:
    assert json.loads(GOLDEN.read_text()) == list(EtlworksFlowFinishedTrigger(**ARGUMENTS).serialize())


def test_trigger_of_a_newer_release_loads() -> None:
    path, kwargs = json.loads(GOLDEN.read_text())

    loaded = EtlworksFlowFinishedTrigger(**{**kwargs, "of_a_later_release": True})

    assert loaded.serialize() == (path, kwargs)


def test_equal_watchers_have_equal_triggers() -> None:
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
    ("arguments", "message"),
    [
        ({"flow_id": 0}, "flow_id is 0; it must be a whole number above 0"),
        ({"flow_id": "7"}, "flow_id is '7'"),
        ({"flow_id": True}, "flow_id is True"),
        ({"statuses": ()}, "statuses is \\(\\); it must be some of success, warning, error, canceled"),
        ({"statuses": ["done"]}, "statuses is \\['done'\\]"),
        ({"poll_interval": 0}, "poll_interval is 0; it is a number of seconds greater than 0"),
        ({"poll_interval": float("nan")}, "poll_interval is nan"),
        ({"poll_interval": float("inf")}, "poll_interval is inf"),
        ({"poll_interval": "5"}, "poll_interval is '5'"),
        ({"poll_interval": True}, "poll_interval is True"),
        ({"poll_interval": timedelta(0)}, "poll_interval is datetime.timedelta"),
        ({"flow_id": 7.0}, "flow_id is 7.0"),
    ],
)
def test_invalid_arguments_are_refused_at_parse_time(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EtlworksFlowFinishedTrigger(**{"flow_id": 7, **arguments})


def test_poll_interval_may_be_a_timedelta() -> None:
    assert EtlworksFlowFinishedTrigger(7, poll_interval=timedelta(minutes=1)).poll_interval == 60.0


class Int64:
    """A whole number that is not an ``int``, such as numpy's."""

    def __index__(self) -> int:
        return 7


def test_foreign_numbers_are_stored_as_plain_ones() -> None:
    trigger: Any = EtlworksFlowFinishedTrigger(Int64(), poll_interval=Fraction(60, 2))  # type: ignore[arg-type]

    assert json.loads(json.dumps(trigger.serialize())) == list(EtlworksFlowFinishedTrigger(7).serialize())


def test_single_status_needs_no_list() -> None:
    assert EtlworksFlowFinishedTrigger(7, statuses="error").statuses == ["error"]


def test_asset_takes_the_watcher() -> None:
    watcher = sdk.AssetWatcher(name="ends", trigger=EtlworksFlowFinishedTrigger(7))

    assert flow_asset(7, name="seven", watchers=[watcher]).watchers == [watcher]


def test_watchers_of_one_connection_share_a_stream() -> None:
    keys = [
        EtlworksFlowFinishedTrigger(flow_id, statuses, conn_id, interval).shared_stream_key()
        for flow_id, statuses, conn_id, interval in (
            (7, ("success",), "one", 5),
            (8, ("error",), "one", 60),
            (7, ("success",), "another", 5),
        )
    ]

    assert keys[0] == keys[1] != keys[2]
