"""The promotion demo: a real Airflow moves flows from one sandbox to another, asks for approval, and rolls back."""

from __future__ import annotations

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
    environments,
    example_dags_folder,
    keep_running,
    run_demo,
    running,
)
from airflow_provider_etlworks.sandbox.demo.local_airflow import LocalAirflow
from airflow_provider_etlworks.sandbox.flows import SandboxFlow

if TYPE_CHECKING:
    from airflow_provider_etlworks.sandbox.server import Sandbox

DAG_ID = "etlworks_promotion"
GROUP_ID = "promote_flows"
APPROVAL = f"{GROUP_ID}.approve_import"
SMOKE_FLOW = 12346
QUESTION_LIMIT = 120.0
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
        self._report_production()
        self.release(BROKEN_RELEASE, ends="error", exception="Cannot rebuild fact_sales: column 'region' is missing")
        rolled_back = self._promote("a release that fails", "failed")
        flow = self._report_production()
        is_back = flow.description == GOOD_RELEASE
        if is_back:
            self.reporter.info(f"The roll-back has brought back the release before: {GOOD_RELEASE!r}")
        else:
            self.reporter.error(f"The release before should be back: {GOOD_RELEASE!r}")
        return promoted and rolled_back and is_back and self._schedules_are_on()

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
        self.reporter.info(f"Promoting {what}{self.reporter.at(dag_run_url(self.airflow, DAG_ID, run_id))}")
        if self.can_ask_people:
            self.reporter.info(f"Waiting until Airflow asks for an approval: {QUESTION_LIMIT:.0f} s at most")
            question = self.airflow.wait_for_question(DAG_ID, run_id, APPROVAL, QUESTION_LIMIT)
            self.reporter.console.print(Panel(Markdown(question["body"]), title=question["subject"]))
            self.reporter.info("Approving it, as a person does in the UI")
            self.airflow.answer(DAG_ID, run_id, APPROVAL, "Approve")
        self.reporter.info(f"Waiting until the promotion has ended: {RUNS_LIMIT:.0f} s at most")
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

    def _report_production(self) -> SandboxFlow:
        flow = self.production.flows[SMOKE_FLOW]
        self.reporter.info(f"Production's flow {flow.id} ({flow.name}) now says: {flow.description}")
        return flow

    def _schedules_are_on(self) -> bool:
        off = [schedule["name"] for schedule in self.production.schedules.values() if not schedule["enabled"]]
        if off:
            self.reporter.error(f"These schedules of production are off: {', '.join(off)}")
        return not off


def main(keep: bool = False) -> int:
    """
    Promote flows between two sandboxes with a real Airflow, and report what happened.

    :param keep: Keep all three running afterwards, until Ctrl-C, with one promotion that waits for an approval.
        Default ``False``.
    :return: The exit code: 0 if everything ended as expected, 1 if not, 130 after Ctrl-C.
    """
    return run_demo(_promote_releases, keep)


def _promote_releases(reporter: Reporter) -> bool:
    with environments() as (staging, production, variables):
        airflow = LocalAirflow(example_dags_folder(), variables)
        reporter.info(f"Staging is running{reporter.at(staging.url)}")
        reporter.info(f"Production is running{reporter.at(production.url)}")
        with running(airflow, reporter):
            demo = PromotionDemo(reporter, staging, production, airflow)
            good = demo.run()
            if reporter.keep:
                if demo.can_ask_people:
                    reporter.info(f"This one is for you to approve or reject: {demo.wait_for_approval()}")
                keep_running(
                    reporter, {"Airflow": airflow.base_url, "staging": staging.url, "production": production.url}
                )
    return good
