"""Promotions through a real Airflow, from one sandbox to another. A person answers through Airflow's API."""

from __future__ import annotations

import os
import shutil
import signal
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from airflow import __version__ as airflow_version

from airflow_provider_etlworks.sandbox import SandboxFlow, delay

if TYPE_CHECKING:
    from collections.abc import Callable

    from airflow_provider_etlworks.sandbox import Recorded, Sandbox
    from airflow_provider_etlworks.sandbox.demo.local_airflow import LocalAirflow

pytestmark = pytest.mark.airflow

ASKS = not airflow_version.startswith(("2.", "3.0."))
asking = pytest.mark.skipif(not ASKS, reason="Airflow asks people since 3.1")

APPROVAL = "promote_flows.approve_import"
# Part of every bundle, and of nothing else.
CONTENT = "only-a-bundle-has-this"

PROMOTION = """
with DAG({dag_id!r}, schedule=None, start_date=START):
    promote_flows(
        source_conn_id="etlworks_staging", target_conn_id="etlworks_production", tags=[{dag_id!r}],
        path="{{{{ var.value.etlworks_bundles }}}}/{{{{ run_id }}}}.json",
        smoke_flow_name={flow_name!r}, pause_schedules=True, {arguments}
    )
"""
EXAMPLE = Path(__file__).parents[2] / "example_dags" / "etlworks_promotion.py"
ARGUMENTS = {
    "broken": "approval=False",
    "killed": "approval=False, default_args={'retries': 1, 'retry_delay': timedelta(seconds=1)}",
}
ARGUMENTS_WHERE_ASKED = {
    "rejected": "",
    "unanswered": "approval_timeout=timedelta(seconds=1)",
    "changed": "",
}


@dataclass
class Promotion:
    """One promotion: its flow in both environments, and the DAG run that promotes it."""

    airflow: LocalAirflow
    staging: Sandbox
    production: Sandbox
    dag_id: str
    flow_id: int
    flow_name: str
    run_id: str = ""

    @property
    def bundle(self) -> Path:
        return Path(self.airflow.env["AIRFLOW_VAR_ETLWORKS_BUNDLES"], f"{self.run_id}.json")

    def prepare(self, **newer: Any) -> None:
        """Give production the flow, with a schedule that is on, and staging a newer one."""
        flow = SandboxFlow(self.flow_id, self.flow_name, tags=(self.dag_id, "warehouse"), connections=("warehouse",))
        self.production.add_flow(replace(flow, running=0.3, description="old", schedule="0 0 4 * * ?"))
        self.staging.add_flow(replace(flow, running=0.3, description="new", owner=CONTENT, **newer))

    def start(self) -> None:
        self.run_id = self.airflow.trigger_dag(self.dag_id)

    def ask(self) -> dict[str, Any]:
        return self.airflow.wait_for_question(self.dag_id, self.run_id, APPROVAL)

    def answer(self, option: str) -> None:
        self.ask()
        self.airflow.answer(self.dag_id, self.run_id, APPROVAL, option)

    def ends(self, expected: str) -> bool:
        """Wait for the DAG run's end; where it is another one than expected, the logs of what failed are told."""
        ended = self.airflow.wait_for_dag_run(self.dag_id, self.run_id)
        if ended != expected:
            failed = [name for name, state in self.states().items() if state == "failed"]
            pytest.fail("\n".join([f"It ended in {ended}.", *(f"--- {name}\n{self.log(name)}" for name in failed)]))
        return True

    def states(self) -> dict[str, str | None]:
        states = self.airflow.task_states(self.dag_id, self.run_id)
        return {task_id.removeprefix("promote_flows."): state for (task_id, _), state in states.items()}

    def result(self, task: str) -> Any:
        return self.airflow.xcom(self.dag_id, self.run_id, f"promote_flows.{task}")

    def log(self, task: str) -> str:
        return self.airflow.task_log(self.dag_id, self.run_id, f"promote_flows.{task}")

    def imports(self) -> list[Recorded]:
        """Return the imports of its flow that production was sent."""
        name = self.flow_name.encode()
        return [each for each in self.production.requests if each.path == "/rest/v1/io/import" and name in each.body]

    def schedule_is_on(self) -> bool:
        (schedule,) = [each for each in self.production.schedules.values() if each["flowId"] == self.flow_id]
        return bool(schedule["enabled"])

    def in_production(self) -> str:
        return self.production.flows[self.flow_id].description


@pytest.fixture(scope="module")
def promotions(
    local_airflow: LocalAirflow, sandbox: Sandbox, production: Sandbox, write_dag: Callable[[str, str], str]
) -> dict[str, Promotion]:
    """Prepare all promotions, and start those that can go on side by side: they take little longer than one."""
    made: dict[str, Promotion] = {}
    text = "from airflow_provider_etlworks.promotion import promote_flows\n"
    for name, arguments in {**ARGUMENTS, **(ARGUMENTS_WHERE_ASKED if ASKS else {})}.items():
        flow_id = 60_000 + len(made)
        each = Promotion(local_airflow, sandbox, production, f"promotion_{name}", flow_id, f"Flow {flow_id}")
        # The same flow has another id elsewhere.
        each.prepare(id=flow_id + 500, tags=(each.dag_id,), ends="error" if name == "broken" else "success")
        text += PROMOTION.format(dag_id=each.dag_id, flow_name=each.flow_name, arguments=arguments)
        made[name] = each
    sandbox.add_flow(SandboxFlow(60_400, "Brand-new", tags=("promotion_broken",)))
    if ASKS:
        made["example"] = Promotion(
            local_airflow, sandbox, production, "etlworks_promotion", 12346, "Daily warehouse refresh"
        )
        made["example"].prepare()
        shutil.copy(EXAMPLE, local_airflow.dags_folder)
    write_dag(made["broken"].dag_id, text)  # one file with all of them is parsed once
    for name, each in made.items():
        if name != "killed":
            each.start()
    return made


@asking
def test_approved_example_is_imported_and_works(promotions: dict[str, Promotion]) -> None:
    approved = promotions["example"]
    question = approved.ask()
    assert question["subject"] == "Import flows from etlworks_staging into etlworks_production?"
    assert approved.flow_name in question["body"]
    assert "replaced" in question["body"]
    assert (approved.imports(), approved.in_production()) == ([], "old")

    approved.answer("Approve")

    assert approved.ends("success")
    states = approved.states()
    assert states.pop("roll_back") == "skipped"
    assert set(states.values()) == {"success"}
    assert approved.in_production() == "new"
    assert approved.schedule_is_on()
    (sent,) = approved.imports()
    assert sent.body == approved.bundle.read_bytes()
    told = approved.result("report_result")
    assert approved.flow_name in told["flow_names"]
    assert told["approved_by"]
    (run,) = approved.production.runs(approved.flow_id)
    assert (told["smoke_run"]["audit_id"], run.status) == (run.audit_id, "success")
    assert approved.result("pause_schedules") == approved.result("resume_schedules")
    assert {approved.production.schedules[each]["flowId"] for each in approved.result("pause_schedules")} == {
        12346,
        12348,
    }


def test_broken_flow_is_rolled_back(promotions: dict[str, Promotion]) -> None:
    broken = promotions["broken"]

    assert broken.ends("failed")

    states = broken.states()
    assert {name for name, state in states.items() if state == "failed"} == {"smoke_test", "report_result"}
    assert {name for name, state in states.items() if state != "failed" and state != "success"} == set()
    assert broken.in_production() == "old"
    assert broken.schedule_is_on()
    assert len(broken.imports()) == 2
    assert broken.result("roll_back")["restored"] == [broken.flow_name]
    text = broken.log("report_result")
    assert "The flows are not promoted: promote_flows.smoke_test failed" in text
    assert f".json.backup: {broken.flow_name}." in text
    assert "no call that deletes a flow: Brand-new." in text


@asking
def test_rejection_is_red_and_imports_nothing(promotions: dict[str, Promotion]) -> None:
    rejected = promotions["rejected"]
    rejected.answer("Reject")

    assert rejected.ends("failed")

    states = rejected.states()
    assert [states.pop(name) for name in ("export_flows", "preview_import")] == ["success"] * 2
    assert [states.pop(name) for name in ("approve_import", "report_result")] == ["failed"] * 2
    assert set(states.values()) <= {"skipped", "upstream_failed"}
    assert "Rejected by" in rejected.log("report_result")
    assert_nothing_happened(rejected)


@asking
def test_nothing_is_imported_without_an_approval(promotions: dict[str, Promotion]) -> None:
    unanswered = promotions["unanswered"]

    assert unanswered.ends("failed")

    states = unanswered.states()
    assert states["approve_import"] == "failed"
    assert states["import_flows"] == "upstream_failed"
    assert_nothing_happened(unanswered)


@asking
def test_bundle_changed_after_the_preview_is_not_imported(promotions: dict[str, Promotion]) -> None:
    changed = promotions["changed"]
    changed.ask()
    content = changed.bundle.read_bytes()
    assert b"new" in content
    changed.bundle.write_bytes(content.replace(b"new", b"neW"))
    changed.answer("Approve")

    assert changed.ends("failed")

    states = changed.states()
    assert states["import_flows"] == "failed"
    assert states["roll_back"] == "skipped"
    assert states["resume_schedules"] == "success"
    # It reports the failure, and is red.
    assert states["report_result"] == "failed"
    assert_nothing_happened(changed)


def assert_nothing_happened(promotion: Promotion) -> None:
    assert promotion.imports() == []
    assert promotion.in_production() == "old"
    assert promotion.schedule_is_on()
    assert promotion.production.runs(promotion.flow_id) == []


@asking
def test_worker_killed_during_an_import_imports_once(promotions: dict[str, Promotion]) -> None:
    killed = promotions["killed"]
    for each in promotions.values():
        if each is not killed:
            each.airflow.wait_for_dag_run(each.dag_id, each.run_id)  # the fault would hit its import
    killed.production.fault("POST", "/rest/v1/io/import", delay(60.0))
    killed.start()
    killed.airflow.wait_until("production has the import", lambda: killed.in_production() == "new", 120.0)
    tasks = killed.airflow.task_instances(killed.dag_id, killed.run_id)
    (importing,) = [each for each in tasks if each.task_id == "promote_flows.import_flows"]
    assert importing.pid is not None
    os.kill(importing.pid, signal.SIGKILL)

    remembers = killed.airflow.version >= (3, 3)
    assert killed.ends("success" if remembers else "failed")

    assert len(killed.imports()) == 1
    assert killed.schedule_is_on()
    assert killed.in_production() == "new"
    if remembers:
        assert killed.result("import_flows")["told_by"] == "target"
    else:  # with a second try or without, as Airflow has it
        assert killed.states()["roll_back"] == "skipped"


def test_no_bundle_is_in_logs_or_xcoms(promotions: dict[str, Promotion]) -> None:
    for name, each in promotions.items():
        if name != "killed":
            each.airflow.wait_for_dag_run(each.dag_id, each.run_id)
            assert CONTENT.encode() in each.bundle.read_bytes()
    home = next(iter(promotions.values())).airflow.home
    files = [file for file in home.rglob("*") if file.is_file() and "tmp" not in file.relative_to(home).parts]
    assert any(file.name == "airflow.db" for file in files)
    assert [file for file in files if CONTENT.encode() in _content_of(file)] == []


def _content_of(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except FileNotFoundError:  # sqlite's log, which has just become part of the database
        return b""
