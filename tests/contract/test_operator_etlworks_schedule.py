"""A flow that Etlworks also schedules: ``on_etlworks_schedule``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from support.clock import moment
from support.task import FLOW, RUN_PATH

from airflow_provider_etlworks.operators.flow import EtlworksRunFlowOperator
from airflow_provider_etlworks.sandbox import SandboxFlow, broken_body, hang_up, status
from airflow_provider_etlworks.worker.etlworks_schedule import check_etlworks_schedule

if TYPE_CHECKING:
    from support.etlworks import Etlworks

LIST = "/rest/v1/schedules"


def schedule(etlworks: Etlworks, flow_id: int = FLOW, *, enabled: bool = True, name: str = "Each night") -> None:
    body = {"name": name, "flowId": flow_id, "schedule": "0 0 4 * * ?", "enabled": enabled}
    with etlworks.sandbox._lock:
        etlworks.sandbox._organization.create_schedule(body, "alice@example.com")


def paths(etlworks: Etlworks) -> list[str]:
    return [each.path for each in etlworks.sandbox.requests]


def warnings(etlworks: Etlworks) -> list[str]:
    return etlworks.warnings("schedule")


def test_one_warning_names_both_schedules(etlworks: Etlworks) -> None:
    schedule(etlworks)
    task = etlworks.task()
    assert task.run().colour == "success"
    (warning,) = warnings(etlworks)
    assert "Flow 7 is also scheduled in Etlworks: 'Each night' (0 0 4 * * ?)." in warning
    assert "The schedule of this DAG is none." in warning
    assert paths(etlworks).count(LIST) == 1
    assert paths(etlworks).index(LIST) < paths(etlworks).index(RUN_PATH)


def test_fail_starts_nothing(etlworks: Etlworks) -> None:
    schedule(etlworks)
    went = etlworks.task(on_etlworks_schedule="fail").run()
    assert went.colour == "failed for good"
    assert "is also scheduled in Etlworks" in str(went.error)
    assert RUN_PATH not in paths(etlworks)


def test_ignore_asks_nothing(etlworks: Etlworks) -> None:
    schedule(etlworks)
    assert etlworks.task(on_etlworks_schedule="ignore").run().colour == "success"
    assert LIST not in paths(etlworks)
    assert warnings(etlworks) == []


@pytest.mark.parametrize("policy", ["warn", "fail"])
def test_schedules_off_or_of_other_flows_do_not_count(etlworks: Etlworks, policy: str) -> None:
    etlworks.sandbox.add_flow(SandboxFlow(FLOW + 1, "Another", schedule="0 0 4 * * ?"))
    schedule(etlworks, enabled=False)
    assert etlworks.task(on_etlworks_schedule=policy).run().colour == "success"
    assert warnings(etlworks) == []


@pytest.mark.parametrize(
    "fault", [status(403), status(404), status(500), broken_body(), hang_up(), status(200, body="{}")]
)
def test_schedules_that_cannot_be_read_fail_only_if_asked(etlworks: Etlworks, fault: Any) -> None:
    etlworks.sandbox.fault("GET", LIST, fault, times=None)
    assert etlworks.task().run().colour == "success"
    assert paths(etlworks).count(LIST) == 1
    assert "Whether Etlworks also schedules flow 7 is not known" in etlworks.logged.text
    assert warnings(etlworks) == []
    started = etlworks.sandbox.runs_started()
    assert etlworks.task(on_etlworks_schedule="fail").run().colour.startswith("failed")
    assert etlworks.sandbox.runs_started() == started


def test_retry_that_follows_an_earlier_run_does_not_ask(etlworks: Etlworks) -> None:
    task = etlworks.task(wait_for_completion=False)
    task.run()
    task.arguments["wait_for_completion"] = True
    task.run()
    assert paths(etlworks).count(LIST) == 1


def test_many_schedules_are_named_in_part(etlworks: Etlworks) -> None:
    for number in range(8):
        schedule(etlworks, name=f"Schedule {number}")
    etlworks.task().run()
    assert "'Schedule 4' (0 0 4 * * ?) and 3 more." in warnings(etlworks)[0]


def test_unknown_policy_is_refused_when_the_dag_is_parsed() -> None:
    with pytest.raises(ValueError, match="on_etlworks_schedule is 'stop'; it is 'warn', 'fail', 'ignore'"):
        EtlworksRunFlowOperator(task_id="x", flow_id=1, on_etlworks_schedule="stop")


def test_schedule_of_the_dag_is_named(etlworks: Etlworks) -> None:
    from airflow import DAG
    from airflow.timetables.trigger import CronTriggerTimetable

    schedule(etlworks)
    operator = etlworks.task().operator()
    for given, named in (
        ("0 6 * * *", "0 6 * * *"),
        (CronTriggerTimetable("5 6 * * *", timezone="UTC"), "5 6 * * *"),
        (None, "none"),
    ):
        dag = DAG("nightly", schedule=given, start_date=moment(0))  # noqa: AIR311  # as in the file of `airflow etlworks adopt`
        context: Any = {"dag": dag}
        check_etlworks_schedule("warn", FLOW, operator.hook, context, operator.log)
        assert f"The schedule of this DAG is {named}." in warnings(etlworks)[-1]
