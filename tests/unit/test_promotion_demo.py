"""The demo of promotions says by its exit code whether they ended as they should. The real one is run by hand."""

from __future__ import annotations

import re
import types
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from airflow_provider_etlworks.sandbox.__main__ import main as sandbox_command
from airflow_provider_etlworks.sandbox.demo import examples, promotion

if TYPE_CHECKING:
    from airflow_provider_etlworks.sandbox import Sandbox


class StandInAirflow:
    """
    An Airflow whose promotions end at once.

    :cvar does: what it really does: rolls back or not, leaves schedules off or not.
    """

    base_url = "http://airflow"
    components = ("api-server", "scheduler")
    version: ClassVar[tuple[int, ...]] = (3, 3, 2)
    does: ClassVar[set[str]] = set()
    answers: ClassVar[list[str]] = []
    sandboxes: ClassVar[list[Sandbox]] = []

    def __init__(self, *_: object) -> None:
        self.states: list[str] = []

    def __enter__(self) -> StandInAirflow:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def trigger_dag(self, dag_id: str) -> str:
        assert dag_id == "etlworks_promotion"
        staging, production = self.sandboxes
        flow = staging.flows[promotion.SMOKE_FLOW]
        works = flow.ends != "error"
        if works or "keeps what is broken" in self.does:
            production.add_flow(flow)
        if "leaves a schedule off" in self.does:
            next(iter(production._organization.schedules.values()))["enabled"] = False
        self.states.append("success" if works != ("fails" in self.does) else "failed")
        return f"run-{len(self.states)}"

    def wait_for_question(self, dag_id: str, run_id: str, task_id: str, timeout: float) -> dict[str, Any]:
        assert self.version >= (3, 1)
        return {"subject": "Import?", "body": "| what | name |\n|---|---|\n| flow | Orders |"}

    def answer(self, dag_id: str, run_id: str, task_id: str, option: str) -> None:
        self.answers.append(f"{task_id}: {option}")

    def wait_for_dag_run(self, dag_id: str, run_id: str, timeout: float) -> str:
        return self.states[-1]

    def task_instances(self, dag_id: str, run_id: str) -> list[Any]:
        return [types.SimpleNamespace(task_id="promote_flows.smoke_test", state=self.states[-1], end_date="2026")]

    def task_log(self, dag_id: str, run_id: str, task_id: str) -> str:
        return f"the log of {task_id} in {run_id}"


@pytest.fixture(autouse=True)
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    real = examples.Sandbox
    made: list[Sandbox] = []

    def sandbox() -> Sandbox:
        made.append(real())
        return made[-1]

    monkeypatch.setattr(examples, "Sandbox", sandbox)
    monkeypatch.setattr(promotion, "LocalAirflow", StandInAirflow)
    monkeypatch.setattr(StandInAirflow, "sandboxes", made)
    monkeypatch.setattr(StandInAirflow, "answers", [])


def test_demo_succeeds(capsys: pytest.CaptureFixture[str]) -> None:
    assert sandbox_command(["demo", "--promotion"]) == 0
    reported = capsys.readouterr().out
    assert "Import?" in reported
    assert "Orders" in reported
    assert "Everything ended as it should" in reported
    assert f"has brought back the release before: {promotion.GOOD_RELEASE!r}" in reported
    assert re.search(r"Waiting until Airflow asks for an approval: \d+ s at most", reported)
    assert "http://" not in reported  # nothing answers there any more
    assert StandInAirflow.answers == ["promote_flows.approve_import: Approve"] * 2


@pytest.mark.parametrize(
    ("does", "reported"),
    [
        ("fails", "the log of promote_flows.smoke_test in run-1"),
        ("keeps what is broken", "of the warehouse in one pass"),
        ("keeps what is broken", "The release before should be back"),
        ("leaves a schedule off", "These schedules of production are off: Schedule of Daily warehouse refresh"),
    ],
)
def test_demo_reports_what_went_wrong(
    does: str, reported: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(StandInAirflow, "does", {does})
    assert sandbox_command(["demo", "--promotion"]) == 1
    output = capsys.readouterr().out
    assert reported in output
    assert "Everything ended as it should" not in output


def test_demo_without_approvals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StandInAirflow, "version", (2, 11, 0))
    assert sandbox_command(["demo", "--promotion"]) == 0
    assert StandInAirflow.answers == []
