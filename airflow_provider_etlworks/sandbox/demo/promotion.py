"""The promotion demo: a real Airflow moves flows from one sandbox to another, asks for approval, and rolls back."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from typing import TYPE_CHECKING

from rich.markdown import Markdown
from rich.panel import Panel
from rich.table import Column, Table

from airflow_provider_etlworks.sandbox.demo.examples import (
    COLORS,
    LOG_TAIL_LINES,
    RUNS_LIMIT,
    Reporter,
    dag_run_url,
    example_dags_folder,
    keep_running,
    run_demo,
    running,
)
from airflow_provider_etlworks.sandbox.demo.local_airflow import LocalAirflow
from airflow_provider_etlworks.sandbox.flows import SandboxFlow
from airflow_provider_etlworks.sandbox.server import Sandbox

if TYPE_CHECKING:
    from collections.abc import Mapping

DAG_ID = "etlworks_promotion"
GROUP_ID = "promote_flows"
APPROVAL = f"{GROUP_ID}.approve_import"
SMOKE_FLOW = 12346
NEW_FLOW = SandboxFlow(
    12352,
    "Returns to warehouse",
    description="What customers of the web shop send back",
    tags=("production", "warehouse"),
    connections=("shop-db", "warehouse"),
    running=1,
    records=212,
)
GOOD_RELEASE = "Rebuilds the reporting tables of the warehouse, returns included"
BROKEN_RELEASE = "Rebuilds the reporting tables of the warehouse in one pass"


class PromotionDemo:
    """
    Two environments, and an Airflow that promotes flows from one to the other.

    :param reporter: Prints the progress.
    :param staging: The source sandbox.
    :param production: The target sandbox.
    :param airflow: The running Airflow, connected to both.
    """

    def __init__(self, reporter: Reporter, staging: Sandbox, production: Sandbox, airflow: LocalAirflow) -> None:
        self.reporter = reporter
        self.staging = staging
        self.production = production
        self.airflow = airflow

    @property
    def can_ask_people(self) -> bool:
        """Whether this Airflow can ask people."""
        return self.airflow.version >= (3, 1)

    def run(self) -> bool:
        """
        Promote a release that works, then one that fails.

        :return: Whether production has the first release at the end, and its schedules are enabled.
        :raises LocalAirflowError: if Airflow cannot run it.
        """
        self.release(GOOD_RELEASE)
        promoted = self._promote("a release that works", "success")
        self.release(BROKEN_RELEASE, ends="error", exception="Cannot rebuild fact_sales: column 'region' is missing")
        rolled_back = self._promote("a release that fails", "failed")
        is_intact = self._production_is(GOOD_RELEASE)
        return promoted and rolled_back and is_intact

    def release(self, description: str, **behaviour: object) -> None:
        """
        Change the flows in staging, as developers do.

        :param description: The new description of the flow.
        :param behaviour: The new behaviour of its runs.
        """
        flow = self.staging.flows[SMOKE_FLOW]
        self.staging.add_flow(replace(flow, description=description, **behaviour))  # type: ignore[arg-type]
        self.staging.add_flow(NEW_FLOW)

    def wait_for_approval(self) -> str:
        """
        Start a promotion, and wait until it needs an approval.

        :return: The URL of the page to approve it.
        """
        run_id = self.airflow.trigger_dag(DAG_ID)
        self.airflow.wait_for_question(DAG_ID, run_id, APPROVAL)
        return f"{dag_run_url(self.airflow, DAG_ID, run_id)}/tasks/{APPROVAL}/required_actions"

    def _promote(self, what: str, expected: str) -> bool:
        run_id = self.airflow.trigger_dag(DAG_ID)
        self.reporter.info(f"Promoting {what}: {dag_run_url(self.airflow, DAG_ID, run_id)}")
        if self.can_ask_people:
            question = self.airflow.wait_for_question(DAG_ID, run_id, APPROVAL)
            self.reporter.console.print(Panel(Markdown(question["body"]), title=question["subject"]))
            self.reporter.info("Approving it, as a person does in the UI")
            self.airflow.answer(DAG_ID, run_id, APPROVAL, "Approve")
        ended = self.airflow.wait_for_dag_run(DAG_ID, run_id, RUNS_LIMIT)
        self._show(run_id)
        if ended != expected:
            self.reporter.error(f"It ended with {ended}; expected {expected}.{self._logs(run_id)}")
        return ended == expected

    def _show(self, run_id: str) -> None:
        table = Table(Column("Task", no_wrap=True), Column("State", no_wrap=True))
        for task in sorted(self.airflow.task_instances(DAG_ID, run_id), key=lambda each: each.end_date or "~"):
            state = task.state or "none"
            table.add_row(task.task_id, f"[{COLORS.get(state, 'default')}]{state}")
        self.reporter.console.print(table)

    def _logs(self, run_id: str) -> str:
        failed = [task.task_id for task in self.airflow.task_instances(DAG_ID, run_id) if task.state == "failed"]
        logs = {task_id: self.airflow.task_log(DAG_ID, run_id, task_id).splitlines() for task_id in failed}
        return "".join("\n".join(["", f"{name}:", *log[-LOG_TAIL_LINES:]]) for name, log in logs.items())

    def _production_is(self, description: str) -> bool:
        flow = self.production.flows[SMOKE_FLOW]
        self.reporter.info(f"Production's flow {flow.id} now says: {flow.description}")
        off = [schedule["name"] for schedule in self.production.schedules.values() if not schedule["enabled"]]
        if off:
            self.reporter.error(f"These schedules of production are off: {', '.join(off)}")
        return flow.description == description and not off


def main(keep: bool = False) -> int:
    """
    Promote flows between two sandboxes with a real Airflow, and report what happened.

    :param keep: Keep all three running afterwards, until Ctrl-C, with one promotion that waits for an approval.
        Default ``False``.
    :return: The exit code: 0 if everything ended as expected, 1 if not, 130 after Ctrl-C.
    """
    return run_demo(lambda reporter: _promote_releases(reporter, keep))


def _promote_releases(reporter: Reporter, keep: bool) -> bool:
    with Sandbox() as staging, Sandbox() as production, tempfile.TemporaryDirectory(prefix="bundles-") as bundles:
        airflow = LocalAirflow(example_dags_folder(), airflow_environment(staging, production, bundles))
        reporter.info(f"Staging at {staging.url}, production at {production.url}")
        with running(airflow, reporter):
            demo = PromotionDemo(reporter, staging, production, airflow)
            good = demo.run()
            if keep:
                if demo.can_ask_people:
                    reporter.info(f"This one is for you to approve or reject: {demo.wait_for_approval()}")
                keep_running(reporter)
    return good


def airflow_environment(staging: Sandbox, production: Sandbox, bundles: str) -> Mapping[str, str]:
    """
    Return the environment that the example DAG needs.

    :param staging: The source sandbox.
    :param production: The target sandbox.
    :param bundles: A folder for the bundles.
    :return: Environment variables.
    """
    return {
        "AIRFLOW_CONN_ETLWORKS_STAGING": staging.airflow_connection,
        "AIRFLOW_CONN_ETLWORKS_PRODUCTION": production.airflow_connection,
        "AIRFLOW_VAR_ETLWORKS_BUNDLES": bundles,
    }
