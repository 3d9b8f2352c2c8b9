"""What a person reads in Airflow's UI without scrolling."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from airflow_provider_etlworks.sandbox.demo.examples import dag_run_url
from airflow_provider_etlworks.sandbox.demo.promotion import APPROVAL, DAG_ID, GROUP_ID

if TYPE_CHECKING:
    from collections.abc import Callable

    from browser.conftest import Screen

    from airflow_provider_etlworks.sandbox import Sandbox
    from airflow_provider_etlworks.sandbox.demo.local_airflow import LocalAirflow

pytestmark = pytest.mark.timeout(900)


def fill_in_connection(airflow: LocalAirflow, screen: Screen, conn_id: str, sandbox: Sandbox, key: str) -> None:
    """Fill in the form of a new connection, up to the button that saves it."""
    page, (address, _, port) = screen.page, sandbox.url.rpartition(":")
    page.goto(f"{airflow.base_url}/connections")
    page.get_by_role("button", name="Add Connection").click()
    page.locator("input[name=connection_id]").fill(conn_id)
    page.get_by_role("combobox").first.click()
    page.keyboard.type("Etlworks")
    page.get_by_role("option", name="etlworks").click()
    page.locator("input[name=host]").fill(address)
    page.locator("input[name=password]").fill(key)
    page.locator("input[name=port]").fill(port)


def save_and_test(screen: Screen, conn_id: str) -> None:
    screen.page.get_by_role("button", name="Save").click()
    screen.wait_for("successfully created", conn_id)
    screen.page.get_by_role("row", name=conn_id).get_by_role("button", name="Test Connection").click()


def test_form_says_what_to_fill_in_and_its_test_succeeds(
    airflow: LocalAirflow, production: Sandbox, screen: Screen
) -> None:
    fill_in_connection(airflow, screen, "etlworks_form", production, production.api_key)

    screen.wait_for("Host", "Login (empty: API key)", "Password or API key", "Port", "Scheme", "Extra Fields")
    placeholder = screen.page.locator("input[name=login]").get_attribute("placeholder")
    assert placeholder == "leave empty to use an API key"
    screen.save("connection-form")
    save_and_test(screen, "etlworks_form")
    screen.wait_for("Test Connection Successful", f"Connected to {production.url} with an API key", "flows are visible")


def test_failed_connection_test_says_what_to_do(airflow: LocalAirflow, production: Sandbox, screen: Screen) -> None:
    fill_in_connection(airflow, screen, "etlworks_wrong_key", production, "a-wrong-key")
    save_and_test(screen, "etlworks_wrong_key")

    screen.wait_for("Test Connection Failed", "is wrong or has expired")


def test_finished_run_shows_its_result_and_leads_to_etlworks(
    airflow: LocalAirflow, production: Sandbox, open_task: Callable[..., Screen]
) -> None:
    run_id = airflow.trigger_dag("etlworks_run_flow")
    assert airflow.wait_for_dag_run("etlworks_run_flow", run_id) == "success"
    (run,) = production.runs(12345)

    screen = open_task("etlworks_run_flow", run_id, "stripe_to_snowflake")
    screen.wait_for("stripe_to_snowflake", "Success", f"Run {run.audit_id} of flow 12345 ended: success, 18204 records")
    screen.save("finished-run")

    open_task("etlworks_run_flow", run_id, "stripe_to_snowflake", "/details")
    screen.wait_for("Extra Links", "Open in Etlworks")
    address = screen.page.get_by_role("link", name="Open in Etlworks").get_attribute("href")
    assert address == f"{production.url}/ui/flows/12345/runs/{run.audit_id}"
    screen.page.goto(address)
    screen.wait_for("Stripe to Snowflake", "Status success", f"Audit id {run.audit_id}", "18204 rows merged")


def test_log_of_a_failed_run_opens_at_the_reason(
    airflow: LocalAirflow, production: Sandbox, open_task: Callable[..., Screen]
) -> None:
    run_id = airflow.trigger_dag("ledger")
    assert airflow.wait_for_dag_run("ledger", run_id) == "failed"
    (run,) = production.runs(12350)

    screen = open_task("ledger", run_id, "export_ledger")

    reason = (production.flows[12350].exception or "").splitlines()[0]
    address = f"See: {production.url}/ui/flows/12350/runs/{run.audit_id}"
    what = f"Flow 'Ledger export to finance' (12350), run {run.audit_id} ended: error"
    screen.wait_for("export_ledger Failed", what, f"Why: {reason}", address, "Airflow does not try again", "To do:")
    # Below are frames with paths of this machine.
    screen.save("failed-run", above="Task failed with exception")


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


def test_rejection_imports_nothing_and_says_so(
    airflow: LocalAirflow, production: Sandbox, screen: Screen, open_task: Callable[..., Screen]
) -> None:
    run_id = start_promotion(airflow, screen)
    before = len([request for request in production.requests if request.path == "/rest/v1/io/import"])

    screen.wait_for("Reject")
    screen.page.get_by_role("button", name="Reject").click()

    assert airflow.wait_for_dag_run(DAG_ID, run_id) == "failed"
    open_task(DAG_ID, run_id, f"{GROUP_ID}.report_result")
    screen.wait_for("Rejected by", "nothing was imported")
    assert len([request for request in production.requests if request.path == "/rest/v1/io/import"]) == before
