"""The connection's host is edited while a run is going: an equal id at the new host is another run."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest
from airflow.exceptions import TaskDeferred
from support.clock import BEGINNING
from support.state import StateStore
from support.task import STOP_PATH, only_event, stored_and_loaded

from airflow_provider_etlworks.client.errors import EtlworksExecutionFailed

if TYPE_CHECKING:
    from support.etlworks import Etlworks
    from support.task import Task


class WorkerLost(BaseException):
    """The worker is killed: nothing of the operator runs any more."""


def lose_the_worker(etlworks: Etlworks, task: Task) -> None:
    """Start a run, and lose its worker."""

    def die() -> None:
        raise WorkerLost

    etlworks.clock.at(etlworks.clock.time() - BEGINNING + 100, die)
    with pytest.raises(WorkerLost):
        task.operator().execute(task.next_try())  # type: ignore[arg-type]


def move(etlworks: Etlworks) -> tuple[str, str]:
    """Edit the connection's host; return the old address and the new one."""
    there = etlworks.sandbox.url.replace("127.0.0.1", "localhost")
    etlworks.connect(host=there)
    return etlworks.sandbox.url, there


def test_retry_at_another_host_starts_and_follows_nothing(etlworks: Etlworks) -> None:
    etlworks.flow(running=3600)
    task = etlworks.task()
    lose_the_worker(etlworks, task)
    old, new = move(etlworks)
    asked = len(etlworks.sandbox.requests)

    went = task.run()

    assert went.colour == "failed for good"
    assert all(each in went.report for each in (old, new, str(etlworks.sandbox.runs()[0].audit_id)))
    assert len(etlworks.sandbox.requests) == asked


def test_start_in_doubt_is_not_searched_at_another_host(etlworks: Etlworks) -> None:
    etlworks.flow(running=3600)
    task = etlworks.task()
    lose_the_worker(etlworks, task)
    assert task.store is not None
    task.store.set("etlworks_start", {**task.store.get("etlworks_start"), "audit_id": None})
    old, new = move(etlworks)

    went = task.run()

    assert went.colour == "failed for good"
    assert f"The start of an earlier try is at {old}" in went.report
    assert new in went.report
    assert etlworks.sandbox.runs_started() == 1


def test_cleared_task_starts_at_the_new_host(etlworks: Etlworks) -> None:
    etlworks.flow(running=3600)
    task = etlworks.task(on_already_running="wait")
    lose_the_worker(etlworks, task)
    old, new = move(etlworks)
    task.clear()

    went = task.run()

    assert went.colour == "success"
    assert etlworks.warnings(old, new, "It is left alone", "started at the new address")
    assert etlworks.sandbox.runs_started() == 2
    assert etlworks.asked("POST", STOP_PATH) == 0


def test_record_without_a_host_is_followed(etlworks: Etlworks) -> None:
    etlworks.flow(running=600)
    task = etlworks.task()
    lose_the_worker(etlworks, task)
    assert isinstance(task.store, StateStore)
    record = task.store.get("etlworks_start")
    assert record.pop("root_url") == etlworks.sandbox.url
    task.store.set("etlworks_start", record)
    move(etlworks)

    assert task.run().colour == "success"
    assert etlworks.sandbox.runs_started() == 1


def test_log_of_a_run_is_not_read_at_another_host(etlworks: Etlworks) -> None:
    etlworks.flow(ends="error", exception="Disk full")
    task = etlworks.task(deferrable=True)
    with pytest.raises(TaskDeferred) as deferred:
        task.operator().execute(task.next_try())  # type: ignore[arg-type]
    event = asyncio.run(only_event(stored_and_loaded(deferred.value.trigger)))
    old, _ = move(etlworks)
    kwargs: dict[str, Any] = json.loads(json.dumps(deferred.value.kwargs))

    with pytest.raises(EtlworksExecutionFailed) as failed:
        task.operator().execute_complete(task.context(), event=event, **kwargs)  # type: ignore[arg-type]

    assert old in failed.value.report
    assert etlworks.warnings("names another instance by now", "log is not read")
    assert etlworks.asked("GET", "/rest/v1/executions/console/download") == 0


def test_completion_of_an_older_release_has_no_host(etlworks: Etlworks) -> None:
    task = etlworks.task(deferrable=True)
    with pytest.raises(TaskDeferred) as deferred:
        task.operator().execute(task.next_try())  # type: ignore[arg-type]
    event = asyncio.run(only_event(stored_and_loaded(deferred.value.trigger)))

    result = task.operator().execute_complete(task.context(), event=event, is_ours=True)  # type: ignore[arg-type]

    assert result["url"].startswith(etlworks.sandbox.url)
