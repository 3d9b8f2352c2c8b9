"""What a person reads in Airflow's UI without scrolling."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from airflow_provider_etlworks.sandbox.demo.examples import dag_run_url
from airflow_provider_etlworks.sandbox.demo.promotion import APPROVAL, DAG_ID, GROUP_ID

if TYPE_CHECKING:
    from browser.conftest import Pages, Screen

    from airflow_provider_etlworks.sandbox import Sandbox
    from airflow_provider_etlworks.sandbox.demo.local_airflow import LocalAirflow

pytestmark = pytest.mark.timeout(900)


def fill_in_connection(pages: Pages, conn_id: str, sandbox: Sandbox, key: str) -> None:
    """Fill in the form of a new connection, up to the button that saves it."""
    address, _, port = sandbox.url.rpartition(":")
    pages.open_new_connection(conn_id)
    pages.field("host").fill(address)
    pages.field("password").fill(key)
    pages.field("port").fill(port)


def test_form_says_what_to_fill_in_and_its_test_succeeds(pages: Pages, production: Sandbox) -> None:
    fill_in_connection(pages, "etlworks_form", production, production.api_key)

    pages.screen.wait_for("Host", "Login (empty: API key)", "Password or API key", "Port", "Scheme", pages.extra_fields)
    assert pages.field("login").get_attribute("placeholder") == "leave empty to use an API key"
    pages.save("connection-form")
    pages.test_connection("etlworks_form")
    pages.screen.wait_for(pages.test_succeeded, f"Connected to {production.url} with an API key", "flows are visible")


def test_failed_connection_test_says_what_to_do(pages: Pages, production: Sandbox) -> None:
    fill_in_connection(pages, "etlworks_wrong_key", production, "a-wrong-key")
    pages.test_connection("etlworks_wrong_key")

    pages.screen.wait_for(pages.test_failed, "is wrong or has expired")


def test_finished_run_shows_its_result_and_leads_to_etlworks(
    airflow: LocalAirflow, production: Sandbox, pages: Pages
) -> None:
    run_id = airflow.trigger_dag("etlworks_run_flow")
    assert airflow.wait_for_dag_run("etlworks_run_flow", run_id) == "success"
    (run,) = production.runs(12345)

    pages.open_task("etlworks_run_flow", run_id, "stripe_to_snowflake")
    ended = f"Run {run.audit_id} of flow 12345 ended: success, 18204 records"
    pages.screen.wait_for("stripe_to_snowflake", pages.states[0], ended)
    pages.save("finished-run")

    pages.open_task_details("etlworks_run_flow", run_id, "stripe_to_snowflake")
    pages.screen.wait_for("Extra Links", "Open in Etlworks")
    address = pages.page.get_by_role("link", name="Open in Etlworks").get_attribute("href")
    assert address == f"{production.url}/ui/flows/12345/runs/{run.audit_id}"
    pages.page.goto(address)
    pages.screen.wait_for("Stripe to Snowflake", "Status success", f"Audit id {run.audit_id}", "18204 rows merged")


def test_log_of_a_failed_run_opens_at_the_reason(airflow: LocalAirflow, production: Sandbox, pages: Pages) -> None:
    run_id = airflow.trigger_dag("ledger")
    assert airflow.wait_for_dag_run("ledger", run_id) == "failed"
    (run,) = production.runs(12350)

    pages.open_task("ledger", run_id, "export_ledger")

    reason = (production.flows[12350].exception or "").splitlines()[0]
    address = f"See: {production.url}/ui/flows/12350/runs/{run.audit_id}"
    what = f"Flow 'Ledger export to finance' (12350), run {run.audit_id} ended: error"
    pages.screen.wait_for(
        f"export_ledger {pages.states[1]}".strip(),
        what,
        f"Why: {reason}",
        address,
        "Airflow does not try again",
        "To do:",
    )
    # Below are frames with paths of this machine.
    pages.save("failed-run", above="Task failed with exception")


def start_promotion(airflow: LocalAirflow, screen: Screen) -> str:
    """Start a promotion, and open the page that asks a person."""
    if airflow.version < (3,):
        pytest.skip("Airflow 2 cannot ask people")
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
    airflow: LocalAirflow, production: Sandbox, screen: Screen, pages: Pages
) -> None:
    run_id = start_promotion(airflow, screen)
    before = len([request for request in production.requests if request.path == "/rest/v1/io/import"])

    screen.wait_for("Reject")
    screen.page.get_by_role("button", name="Reject").click()

    assert airflow.wait_for_dag_run(DAG_ID, run_id) == "failed"
    pages.open_task(DAG_ID, run_id, f"{GROUP_ID}.report_result")
    screen.wait_for("Rejected by", "nothing was imported")
    assert len([request for request in production.requests if request.path == "/rest/v1/io/import"]) == before
