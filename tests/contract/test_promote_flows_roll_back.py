"""The group's own tasks at work: what a roll-back restores, and which schedules are paused."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from support.promotion import IMPORT, Promotion, Task

from airflow_provider_etlworks.compat import AirflowSkipException
from airflow_provider_etlworks.promotion import promote_flows
from airflow_provider_etlworks.sandbox import SandboxFlow, broken_body, hang_up, status

try:
    from airflow.sdk import DAG
except ImportError:  # Airflow 2
    from airflow import DAG

if TYPE_CHECKING:
    from collections.abc import Iterator

    from airflow_provider_etlworks.sandbox import Fault


class Group:
    """The group's tasks, whose XComs and states are passed on as Airflow does."""

    def __init__(self, promotion: Promotion) -> None:
        self.promotion = promotion
        self.states: dict[str, str] = {}
        self.xcoms: dict[tuple[str, str], Any] = {}
        with DAG("promotion", schedule=None, start_date=datetime(2024, 1, 1, tzinfo=timezone.utc)) as self.dag:
            promote_flows(
                source_conn_id="staging",
                target_conn_id="production",
                path=promotion.path,
                flow_ids=[1, 2],
                smoke_flow_name="Orders",
                pause_schedules=True,
                approval=False,
            )

    def run(self, name: str, **rendered: Any) -> Any:
        """Run a task; its templates are rendered to ``rendered``."""
        task_id = f"promote_flows.{name}"
        operator: Any = self.dag.get_task(task_id)
        for field, value in rendered.items():
            setattr(operator, field, value)
        task: Task = self.promotion.task(operator)
        ti = task.context["ti"]
        ti.dag_id, ti.run_id = "promotion", "run"
        ti.xcom_pull = lambda task_ids, key="return_value": self.xcoms.get((task_ids, key))
        ti.get_task_states = lambda **_: {"run": self.states}
        went = task.run()
        self.states[task_id] = "success" if went.colour == "success" else "failed"
        self.xcoms |= {(task_id, key): value for key, value in {**ti.xcoms, "return_value": went.result}.items()}
        return went

    def promote(self, fault: Fault | None = None) -> Any:
        """Export, and import."""
        exported = self.run("export_flows").result
        if fault is not None:
            self.promotion.production.fault("POST", IMPORT, fault)
        return self.run("import_flows", path=exported["path"], expected_sha256=exported["sha256"])

    def in_production(self, flow_id: int) -> SandboxFlow:
        return self.promotion.production.flows[flow_id]


@pytest.fixture
def group(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path) -> Iterator[Group]:
    with Promotion(monkeypatch, caplog, tmp_path) as promotion:
        promotion.staging.add_flow(SandboxFlow(1, "Orders", description="new", connections=("orders-db",)))
        promotion.production.add_flow(SandboxFlow(11, "Orders", description="old", schedule="0 0 4 * * ?"))
        promotion.production.add_flow(SandboxFlow(12, "Reports", schedule="0 0 5 * * ?"))
        yield Group(promotion)


def test_the_backup_brings_back_what_was_overwritten(group: Group) -> None:
    assert group.promote().colour == "success"
    assert group.in_production(11).description == "new"

    result = group.run("roll_back").result

    assert result == {"path": f"{group.promotion.path}.backup", "restored": ["Orders"], "left": ["Customers"]}
    assert group.in_production(11).description == "old"


@pytest.mark.parametrize(
    "answer",
    [
        {"success": False, "message": "stopped half-way"},
        {"success": True, "results": [{"flowId": 1, "flowName": "Orders", "success": False, "error": "locked"}]},
    ],
)
def test_partly_applied_import_is_rolled_back(group: Group, answer: dict[str, Any]) -> None:
    assert group.promote(broken_body(json.dumps(answer))).colour == "failed for good"
    assert group.in_production(11).description == "new"

    result = group.run("roll_back").result

    assert result["restored"] == ["Orders"]
    assert group.in_production(11).description == "old"


def test_refused_import_is_not_rolled_back(group: Group) -> None:
    assert group.promote(status(400)).colour == "failed"
    assert isinstance(group.run("roll_back").error, AirflowSkipException)
    assert group.promotion.imports() == 1


def test_import_in_doubt_is_left_alone(group: Group) -> None:
    assert group.promote(hang_up(carried_out=False)).colour == "failed for good"
    assert isinstance(group.run("roll_back").error, AirflowSkipException)
    assert group.promotion.imports() == 1


def test_a_backup_that_changed_is_not_imported(group: Group) -> None:
    group.promote()
    backup = Path(f"{group.promotion.path}.backup")
    backup.write_bytes(backup.read_bytes() + b" ")

    went = group.run("roll_back")

    assert went.colour == "failed for good"
    assert "SHA-256" in went.said
    assert group.promotion.imports() == 1


def test_backup_has_no_connections_if_the_import_has_none(group: Group) -> None:
    group.promote()
    assert json.loads(Path(f"{group.promotion.path}.backup").read_bytes())["connections"] == []


def test_only_schedules_of_promoted_flows_are_paused(group: Group) -> None:
    group.run("export_flows")

    paused = group.run("pause_schedules").result

    on = {schedule_id: each["enabled"] for schedule_id, each in group.promotion.production.schedules.items()}
    assert [group.promotion.production.schedules[schedule_id]["flowId"] for schedule_id in paused] == [11]
    assert sorted(on.values()) == [False, True]

    assert group.run("resume_schedules", schedule_ids=paused).result == paused
    assert all(each["enabled"] for each in group.promotion.production.schedules.values())
