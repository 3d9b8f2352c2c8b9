"""What a person reads in Airflow's UI without scrolling."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from airflow_provider_etlworks.sandbox.demo.examples import dag_run_url
from airflow_provider_etlworks.sandbox.demo.promotion import APPROVAL, DAG_ID

if TYPE_CHECKING:
    from collections.abc import Callable

    from browser.conftest import Screen

    from airflow_provider_etlworks.sandbox import Sandbox
    from airflow_provider_etlworks.sandbox.demo.local_airflow import LocalAirflow

pytestmark = [pytest.mark.browser, pytest.mark.timeout(900)]


def test_finished_run_shows_its_state_and_the_link(
    airflow: LocalAirflow, production: Sandbox, open_task: Callable[..., Screen]
) -> None:
    run_id = airflow.trigger_dag("etlworks_run_flow")
    assert airflow.wait_for_dag_run("etlworks_run_flow", run_id) == "success"
    (run,) = production.runs(12345)

    screen = open_task("etlworks_run_flow", run_id, "stripe_to_snowflake")

    screen.wait_for("stripe_to_snowflake", "Success", "Open in Etlworks", f"Run {run.audit_id} ended: success")
    screen.save("finished-run")
    with screen.page.expect_popup() as popup:
        screen.page.get_by_text("Open in Etlworks").click()
    assert popup.value.url == f"{production.url}/ui/flows/12345/runs/{run.audit_id}"


def test_log_of_a_failed_run_opens_at_the_reason(
    airflow: LocalAirflow, production: Sandbox, open_task: Callable[..., Screen]
) -> None:
    run_id = airflow.trigger_dag("ledger")
    assert airflow.wait_for_dag_run("ledger", run_id) == "failed"
    (run,) = production.runs(12350)

    screen = open_task("ledger", run_id, "export_ledger")

    screen.wait_for(str(run.audit_id), "Open in Etlworks", production.flows[12350].exception or "")
    screen.save("failed-run")


def start_promotion(airflow: LocalAirflow, screen: Screen) -> str:
    run_id = airflow.trigger_dag(DAG_ID)
    airflow.wait_for_question(DAG_ID, run_id, APPROVAL)
    screen.page.goto(f"{dag_run_url(airflow, DAG_ID, run_id)}/tasks/{APPROVAL}/required_actions")
    return run_id


def test_approval_shows_the_changes_and_both_buttons(
    airflow: LocalAirflow, production: Sandbox, screen: Screen
) -> None:
    run_id = start_promotion(airflow, screen)

    screen.wait_for("Daily warehouse refresh", "Approve", "Reject")
    screen.save("approval")
    screen.page.get_by_role("button", name="Approve").click()

    assert airflow.wait_for_dag_run(DAG_ID, run_id) == "success"
    assert any("/rest/v1/io/import" in request.path for request in production.requests)


def test_rejection_imports_nothing(airflow: LocalAirflow, production: Sandbox, screen: Screen) -> None:
    run_id = start_promotion(airflow, screen)
    before = len([request for request in production.requests if request.path == "/rest/v1/io/import"])

    screen.wait_for("Reject")
    screen.page.get_by_role("button", name="Reject").click()

    airflow.wait_for_dag_run(DAG_ID, run_id)
    assert len([request for request in production.requests if request.path == "/rest/v1/io/import"]) == before
