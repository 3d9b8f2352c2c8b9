"""The task group of a promotion: its tasks, their order, and their arguments."""

from __future__ import annotations

import sys
from datetime import datetime, timedelta, timezone
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from airflow import __version__ as airflow_version
from test_imports import printed_by

from airflow_provider_etlworks.compat import AirflowFailException, AirflowSkipException, BaseOperator
from airflow_provider_etlworks.promotion import promote_flows

try:
    from airflow.sdk import DAG
except ImportError:  # Airflow 2
    from airflow import DAG

if TYPE_CHECKING:
    from collections.abc import Mapping

    from airflow_provider_etlworks.compat import TaskGroup

ASKS = not airflow_version.startswith(("2.", "3.0."))
asking = pytest.mark.skipif(not ASKS, reason="Airflow asks people since 3.1")

EVERYTHING = {"smoke_flow_name": "Orders", "pause_schedules": True}


def make(**arguments: Any) -> tuple[DAG, TaskGroup]:
    chosen = {
        "source_conn_id": "staging",
        "target_conn_id": "production",
        "path": "/bundles/{{ run_id }}.json",
        "tags": ["release"],
        "approval": False,
        **arguments,
    }
    with DAG("promotion", schedule=None, start_date=datetime(2024, 1, 1, tzinfo=timezone.utc)) as dag:
        before, after = BaseOperator(task_id="before"), BaseOperator(task_id="after")
        group = promote_flows(**chosen)
        before >> group >> after
    return dag, group


def edges(dag: DAG) -> dict[str, set[str]]:
    """Return what follows each task, without the group's name."""

    def short(task_id: str) -> str:
        return task_id.removeprefix("promote_flows.")

    return {short(task.task_id): set(map(short, task.downstream_task_ids)) for task in dag.tasks}


def task_of(dag: DAG, name: str) -> Any:
    return dag.get_task(f"promote_flows.{name}")


def test_minimal_group() -> None:
    dag, _ = make()
    assert edges(dag) == {
        "before": {"export_flows"},
        "export_flows": {"preview_import"},
        "preview_import": {"import_flows"},
        "import_flows": {"roll_back", "report_result"},
        "roll_back": {"report_result"},
        "report_result": {"after"},
        "after": set(),
    }


@asking
def test_everything_together() -> None:
    dag, _ = make(approval=True, **EVERYTHING)
    assert edges(dag) == {
        "before": {"export_flows"},
        "export_flows": {"preview_import"},
        "preview_import": {"approve_import"},
        "approve_import": {"pause_schedules"},
        "pause_schedules": {"import_flows", "resume_schedules"},
        "import_flows": {"smoke_test", "roll_back"},
        "smoke_test": {"report_result", "roll_back", "resume_schedules"},
        "roll_back": {"report_result", "resume_schedules"},
        "report_result": {"after"},
        "resume_schedules": set(),
        "after": set(),
    }


def test_schedules_are_paused_and_resumed_around_the_import() -> None:
    dag, _ = make(pause_schedules=True)
    pause, resume = task_of(dag, "pause_schedules"), task_of(dag, "resume_schedules")
    assert (pause.action, resume.action) == ("pause", "resume")
    assert pause.is_setup
    assert resume.is_teardown
    assert resume.on_failure_fail_dagrun
    assert resume.schedule_ids.operator is pause
    assert edges(dag)["import_flows"] == {"roll_back", "report_result", "resume_schedules"}


def test_schedules_to_pause_may_be_named() -> None:
    dag, _ = make(pause_schedules=[4, 5])
    pause = task_of(dag, "pause_schedules")
    assert pause.schedule_ids == [4, 5]
    assert pause.flow_ids is None


def test_approved_bundle_is_imported() -> None:
    dag, _ = make()
    export, preview, import_flows = (task_of(dag, name) for name in ("export_flows", "preview_import", "import_flows"))
    assert export.path == "/bundles/{{ run_id }}.json"
    assert preview.expected_sha256 == "{{ ti.xcom_pull(task_ids='promote_flows.export_flows')['sha256'] }}"
    assert import_flows.expected_sha256 == "{{ ti.xcom_pull(task_ids='promote_flows.preview_import')['sha256'] }}"
    assert import_flows.backup_path == "/bundles/{{ run_id }}.json.backup"
    assert not import_flows.allow_same_instance
    assert task_of(dag, "roll_back").path == import_flows.backup_path
    assert task_of(dag, "roll_back").allow_same_instance


def test_each_task_uses_the_right_connection() -> None:
    dag, _ = make(**EVERYTHING)
    connections = {task.task_id: task.etlworks_conn_id for task in dag.tasks if hasattr(task, "etlworks_conn_id")}
    assert connections.pop("promote_flows.export_flows") == "staging"
    assert set(connections.values()) == {"production"}
    # The report of a failure names the target.
    assert connections.keys() >= {"promote_flows.report_result"}
    assert len(connections) == 7


def test_target_connections_are_kept_by_default() -> None:
    assert task_of(make()[0], "export_flows").include_connections is False
    assert task_of(make(include_connections=True)[0], "export_flows").include_connections is True


def test_arguments_reach_their_tasks() -> None:
    dag, _ = make(
        tags=None,
        flow_ids=[1],
        flow_names=["Orders"],
        backup_path="/backups/{{ ds }}.json",
        smoke_flow_name="Check",
        smoke_parameters={"day": "{{ ds }}"},
        smoke_timeout=60,
        default_args={"retries": 2},
    )
    export, smoke = task_of(dag, "export_flows"), task_of(dag, "smoke_test")
    assert (export.flow_ids, export.flow_names, export.tags) == ([1], ["Orders"], None)
    assert task_of(dag, "import_flows").backup_path == "/backups/{{ ds }}.json"
    assert (smoke.flow_name, smoke.parameters, smoke.timeout) == ("Check", {"day": "{{ ds }}"}, 60)
    assert smoke.on_already_running == "wait"
    assert export.retries == smoke.retries == 2


def test_group_may_have_another_name() -> None:
    dag, group = make(group_id="release", smoke_flow_name="Orders")
    assert group.group_id == "release"
    report = dag.get_task("release.report_result")
    assert report.import_task_id == "release.import_flows"
    assert report.smoke_task_id == "release.smoke_test"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"smoke_parameters": {}}, "smoke_parameters need a smoke_flow_name"),
        ({"target_conn_id": "staging"}, "source_conn_id and target_conn_id are both 'staging'"),
        ({"tags": None}, "at least one of flow_ids, flow_names and tags"),
    ],
)
def test_invalid_arguments_are_refused_at_parse_time(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**arguments)


# --- The approval ---------------------------------------------------------------------------------------------------


@pytest.mark.skipif(ASKS, reason="this Airflow asks people")
def test_approval_needs_airflow_3_1() -> None:
    with pytest.raises(ValueError, match=r"Airflow 3\.1 or later.*Set approval=False"):
        make(approval=True)


@asking
def test_approval_needs_the_standard_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "airflow.providers.standard.operators.hitl", None)
    with pytest.raises(ValueError, match=r"apache-airflow-providers-standard.*Set approval=False"):
        make(approval=True)


@asking
def test_approver_sees_the_preview_once() -> None:
    users = [{"id": "1", "name": "Ada"}]
    dag, _ = make(
        approval=True,
        approval_assigned_users=users,
        approval_timeout=timedelta(hours=8),
        approval_fail_on_reject=True,
        default_args={"retries": 3, "execution_timeout": timedelta(minutes=5)},
    )
    approve = task_of(dag, "approve_import")
    assert approve.subject == "Import flows from staging into production?"
    assert approve.body == "{{ ti.xcom_pull(task_ids='promote_flows.preview_import')['markdown'] }}"
    assert {"subject", "body"} <= set(approve.template_fields)
    assert approve.assigned_users == users
    assert approve.fail_on_reject
    assert approve.retries == 0
    # The provider of Airflow 3.1's days has no time-out but this.
    assert getattr(approve, "response_timeout", approve.execution_timeout) == timedelta(hours=8)
    assert task_of(dag, "export_flows").execution_timeout == timedelta(minutes=5)


@asking
def test_default_execution_timeout_does_not_end_the_approval() -> None:
    dag, _ = make(approval=True, default_args={"execution_timeout": timedelta(minutes=5)})
    approve = task_of(dag, "approve_import")
    assert approve.execution_timeout is None
    assert getattr(approve, "response_timeout", None) is None


@asking
def test_custom_approval_subject() -> None:
    dag, _ = make(approval=True, approval_subject="Release {{ ds }}?")
    assert task_of(dag, "approve_import").subject == "Release {{ ds }}?"


# --- The end --------------------------------------------------------------------------------------------------------

IMPORTED = {
    "path": "/b.json",
    "sha256": "ab",
    "backup_path": "/b.json.backup",
    "backup_sha256": "cd",
    "flow_names": ["Orders", "New"],
}


def context(states: Mapping[str, str], **xcoms: Any) -> Any:
    """Return what Airflow gives a task: the states of the others, and what they returned, now or long ago."""

    def get_task_states(*, dag_id: str, task_ids: list[str], run_ids: list[str]) -> dict[str, dict[str, str]]:
        assert (dag_id, run_ids) == ("promotion", ["run"])
        asked = {task_id: states.get(task_id.removeprefix("promote_flows.")) for task_id in task_ids}
        return {"run": {task_id: state for task_id, state in asked.items() if state is not None}}

    ti = SimpleNamespace(
        dag_id="promotion",
        run_id="run",
        get_task_states=get_task_states,
        xcom_pull=lambda task_ids, key="return_value": xcoms.get(
            f"{task_ids.removeprefix('promote_flows.')}{'' if key == 'return_value' else f'_{key}'}"
        ),
    )
    return {"ti": ti}


@pytest.mark.parametrize("state", ["upstream_failed", "skipped", "removed", None])
def test_roll_back_is_skipped_without_an_import(state: str | None) -> None:
    roll_back = task_of(make(smoke_flow_name="Orders")[0], "roll_back")
    states = {} if state is None else {"import_flows": state}
    with pytest.raises(AirflowSkipException, match="nothing to roll back"):
        # The XComs are those of an earlier promotion, in a DAG run that was cleared.
        roll_back.execute(context(states, import_flows=IMPORTED, import_flows_import_failed=IMPORTED))


def test_import_in_doubt_is_not_rolled_back() -> None:
    roll_back = task_of(make(smoke_flow_name="Orders")[0], "roll_back")
    with pytest.raises(AirflowSkipException, match="nothing to roll back"):
        roll_back.execute(context({"import_flows": "failed"}, import_flows=IMPORTED))


def test_roll_back_of_new_flows_names_them() -> None:
    roll_back = task_of(make()[0], "roll_back")
    failed = {"backup_path": None, "backup_sha256": None, "flow_names": ["New"]}
    result = roll_back.execute(context({"import_flows": "failed"}, import_flows_import_failed=failed))
    assert result == {"path": None, "restored": [], "left": ["New"]}


def test_import_marked_as_success_cannot_be_rolled_back() -> None:
    roll_back = task_of(make(smoke_flow_name="Orders")[0], "roll_back")
    with pytest.raises(
        AirflowFailException, match=r"marked as success.*backup at /bundles/\{\{ run_id \}\}.json.backup"
    ):
        roll_back.execute(context({"import_flows": "success"}))
    report = task_of(make(smoke_flow_name="Orders")[0], "report_result")
    assert report.execute(context({"smoke_test": "success"}, smoke_test={"audit_id": 7}))["flow_names"] is None


def test_roll_back_without_a_backup_names_new_flows() -> None:
    roll_back = task_of(make(smoke_flow_name="Orders")[0], "roll_back")
    result = roll_back.execute(context({"import_flows": "success"}, import_flows={**IMPORTED, "backup_path": None}))
    assert result == {"path": None, "restored": [], "left": ["Orders", "New"]}


def test_report_of_a_promotion() -> None:
    report = task_of(make(smoke_flow_name="Orders")[0], "report_result")
    # Without an answer yet from the roll-back: the report does not wait for it to be skipped.
    result = report.execute(context({"smoke_test": "success"}, import_flows=IMPORTED, smoke_test={"audit_id": 7}))
    assert result == {
        "flow_names": ["Orders", "New"],
        "sha256": "ab",
        "path": "/b.json",
        "backup_path": "/b.json.backup",
        "approved_by": None,
        "smoke_run": {"audit_id": 7},
    }


@asking
@pytest.mark.parametrize(
    ("answer", "name"),
    [
        ({"chosen_options": ["Approve"], "responded_by_user": {"id": "1", "name": "Ada"}}, "Ada"),
        ({"chosen_options": ["Approve"], "responded_by_user": None}, None),
        (None, None),
    ],
)
def test_report_names_the_approver(answer: Any, name: str | None) -> None:
    report = task_of(make(approval=True)[0], "report_result")
    result = report.execute(context({"import_flows": "success"}, import_flows=IMPORTED, approve_import=answer))
    assert result["approved_by"] == name
    assert result["smoke_run"] is None


def test_report_fails_after_a_roll_back() -> None:
    report = task_of(make(smoke_flow_name="Orders")[0], "report_result")
    rolled_back = {"path": "/b.json.backup", "restored": ["Orders"], "left": ["New"]}
    # A run's XCom of an earlier promotion does not make it green.
    stale = {"import_flows": IMPORTED, "smoke_test": {"audit_id": 7}}
    with pytest.raises(AirflowFailException) as failed:
        report.execute(context({"roll_back": "success"}, roll_back=rolled_back, **stale))
    text = str(failed.value)
    assert "promote_flows.smoke_test failed" in text
    assert "Rolled back from /b.json.backup: Orders." in text
    assert "perhaps still there, as Etlworks documents no call that deletes a flow: New." in text


def test_report_names_the_import_that_failed_in_part() -> None:
    report = task_of(make(smoke_flow_name="Orders")[0], "report_result")
    rolled_back = {"path": "/b.json.backup", "restored": ["Orders"], "left": []}
    states = {"roll_back": "success", "import_flows": "failed", "smoke_test": "upstream_failed"}
    with pytest.raises(AirflowFailException, match=r"promote_flows\.import_flows failed"):
        report.execute(context(states, roll_back=rolled_back))


@asking
@pytest.mark.parametrize(("fail_on_reject", "ends"), [(True, AirflowFailException), (False, AirflowSkipException)])
def test_report_names_who_rejected(fail_on_reject: bool, ends: type[Exception]) -> None:
    dag, _ = make(approval=True, approval_fail_on_reject=fail_on_reject, smoke_flow_name="Orders")
    states = {"approve_import": "failed" if fail_on_reject else "success", "import_flows": "skipped"}
    with pytest.raises(ends, match=r"^Rejected by Ada, nothing was imported\.$"):
        task_of(dag, "report_result").execute(context(states, approve_import_rejected_by="Ada"))


@asking
def test_rejection_is_red_unless_asked_otherwise() -> None:
    dag, _ = make(approval=True)
    assert task_of(dag, "approve_import").fail_on_reject
    assert task_of(dag, "report_result").fail_on_reject


@asking
@pytest.mark.parametrize(("user", "name"), [({"id": "1", "name": "Ada"}, "Ada"), (None, "somebody")])
def test_approval_names_who_rejected(user: Any, name: str, caplog: pytest.LogCaptureFixture) -> None:
    dag, _ = make(approval=True)
    approve, pushed = task_of(dag, "approve_import"), {}
    ti = SimpleNamespace(xcom_push=lambda key, value: pushed.update({key: value}))
    event = {"chosen_options": ["Reject"], "params_input": {}, "responded_by_user": user}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(approve).__mro__[1], "execute_complete", lambda *_: "skipped")
        assert approve.execute_complete({"ti": ti}, event) == "skipped"
    assert pushed == {"rejected_by": name}


def test_report_of_a_failed_roll_back_names_the_backup() -> None:
    report = task_of(make(smoke_flow_name="Orders")[0], "report_result")
    states = {"import_flows": "success", "smoke_test": "failed", "roll_back": "failed"}
    with pytest.raises(AirflowFailException, match=r"smoke_test failed, and so did .*roll_back.*/b\.json\.backup"):
        report.execute(context(states, import_flows=IMPORTED))


@pytest.mark.parametrize("state", ["upstream_failed", "failed"])
def test_report_of_a_promotion_that_did_not_import_is_red(state: str) -> None:
    report = task_of(make()[0], "report_result")
    states = {"import_flows": state, "roll_back": "skipped"}
    with pytest.raises(AirflowFailException, match=r"Nothing was imported|import_flows failed; its log says why"):
        report.execute(context(states, import_flows=IMPORTED))


def test_report_ignores_an_earlier_roll_back() -> None:
    report = task_of(make(smoke_flow_name="Orders")[0], "report_result")
    stale = {"roll_back": {"path": "/b.json.backup", "restored": ["Orders"], "left": []}}
    result = report.execute(context({"smoke_test": "success", "roll_back": "skipped"}, import_flows=IMPORTED, **stale))
    assert result["sha256"] == "ab"


def test_group_loads_nothing_heavy() -> None:
    loaded, own, tasks = printed_by("""
import json, sys
import airflow.models, airflow.utils.task_group
already = set(sys.modules)
from airflow_provider_etlworks.promotion import promote_flows
loaded = set(sys.modules) - already
with DAG("promotion", schedule=None) as dag:
    promote_flows(source_conn_id="a", target_conn_id="b", path="/c", tags=["d"], approval=False, smoke_flow_name="e")
own = [module for module in sys.modules if module.startswith("airflow_provider_etlworks.")]
print(json.dumps([sorted(loaded), own, len(dag.tasks)]))
""")
    assert tasks == 6
    assert "airflow_provider_etlworks.promotion" in loaded
    heavy = {"requests", "aiohttp", "tenacity", "jwt", "asgiref", "yaml"}
    assert {module for module in loaded if module.split(".")[0] in heavy} == set()
    assert not {each for each in own if ".hooks" in each or ".client.endpoints" in each or ".sandbox" in each}
