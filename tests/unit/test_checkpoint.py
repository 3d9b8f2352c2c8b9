"""What is stored between two starts of a triggerer."""

from __future__ import annotations

import json
from typing import Any

import pytest

from airflow_provider_etlworks.runs.checkpoint import Checkpoint


def test_stored_checkpoint_is_read_back() -> None:
    checkpoint = Checkpoint(10, frozenset({12, 15}), frozenset({3, 14}))

    assert Checkpoint.from_json(json.loads(json.dumps(checkpoint.to_json()))) == checkpoint
    assert checkpoint.to_json() == {"low_watermark": 10, "done": [12, 15], "pending": [3, 14]}


@pytest.mark.parametrize(
    "stored", [[], {"low_watermark": 1}, {"low_watermark": "x", "done": [], "pending": []}, "checkpoint", 7]
)
def test_checkpoint_that_cannot_be_read_is_refused(stored: Any) -> None:
    with pytest.raises(ValueError, match="Cannot read the checkpoint"):
        Checkpoint.from_json(stored)


def test_runs_up_to_the_watermark_are_done_except_pending_ones() -> None:
    checkpoint = Checkpoint(10, frozenset({12}), frozenset({3, 14}))

    assert [each for each in range(1, 16) if checkpoint.is_done(each)] == [1, 2, 4, 5, 6, 7, 8, 9, 10, 12]
    assert checkpoint.newest_known == 14


@pytest.mark.parametrize("audit_id", [3, 13, 14])
def test_run_is_done_once_it_is_marked(audit_id: int) -> None:
    marked = Checkpoint(10, frozenset({12}), frozenset({3, 14})).mark_done(audit_id)

    assert marked.is_done(audit_id)
    assert audit_id not in marked.pending


def test_raised_watermark_keeps_what_is_not_done() -> None:
    raised = Checkpoint(10, frozenset({12, 15}), frozenset({3})).raise_watermark(14, [11, 12, 13, 14, 15])

    assert raised == Checkpoint(14, frozenset({15}), frozenset({3, 11, 13, 14}))
    assert raised.raise_watermark(9, []) is raised
