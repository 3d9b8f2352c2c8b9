"""What a task remembers from one try to the next."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import pytest
from support.state import StateStore

from airflow_provider_etlworks.worker.launch_record import LaunchRecord, LaunchRecordStore

START = LaunchRecord(flow_id=7, watermark=40, asked_at=1_800_000_000.5, max_tries=2)


def test_next_try_recalls_the_record() -> None:
    store = StateStore()
    LaunchRecordStore(store).save(START)
    LaunchRecordStore(store).update(audit_id=41, stop_asked=True)

    recalled = LaunchRecordStore(store).load()

    assert recalled is not None
    assert asdict(recalled) == {**asdict(START), "audit_id": 41, "stop_asked": True}


def test_forgotten_record_is_gone() -> None:
    store = StateStore()
    memory = LaunchRecordStore(store)
    memory.save(START)
    memory.clear()
    memory.update(audit_id=41)

    assert memory.load() is None
    assert store.kept == {}


def test_nothing_is_kept_without_a_store() -> None:
    memory = LaunchRecordStore(None)
    memory.save(START)
    memory.update(audit_id=41)
    memory.clear()

    assert not memory.is_durable
    assert memory.load() is None


@pytest.mark.parametrize("kept", [None, "text", 7, [], {}, {"flow_id": 7}, {"flow_id": 7, "watermark": 40}])
def test_unreadable_record_is_not_a_start(kept: Any) -> None:
    store = StateStore()
    store.set("etlworks_start", kept)

    assert LaunchRecordStore(store).load() is None


def test_record_of_another_release_is_read() -> None:
    store = StateStore()
    older = {name: value for name, value in asdict(START).items() if name not in ("is_ours", "stop_asked")}
    store.set("etlworks_start", {**older, "from_a_later_release": [1]})

    assert LaunchRecordStore(store).load() == START


def test_record_is_small() -> None:
    store = StateStore()
    LaunchRecordStore(store).save(START)

    assert len(json.dumps(store.kept)) < 1_000
