"""The demo of promotions: a real Airflow moves flows from one sandbox to another, asks a person, and rolls back."""

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
    Narrator,
    carry_out,
    example_dags_folder,
    keep_running,
    page_of,
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

    :param narrator: Tells what happens.
    :param staging: The sandbox that flows come from.
    :param production: The sandbox that they go to.
    :param airflow: The running Airflow, connected to both.
    """

    def __init__(self, narrator: Narrator, staging: Sandbox, production: Sandbox, airflow: LocalAirflow) -> None:
        self.narrator = narrator
        self.staging = staging
        self.production = production
        self.airflow = airflow

    @property
    def asks(self) -> bool:
        """Whether this Airflow can ask people."""
        return self.airflow.version >= (3, 1)

    def run(self) -> bool:
        """
        Promote a release that works, then one that does not.

        :return: Whether production has the first at the end, and its schedules are on.
        :raises LocalAirflowError: if Airflow cannot carry it out.
        """
        self.release(GOOD_RELEASE)
        promoted = self._promote("a release that works", "success")
        self.release(BROKEN_RELEASE, ends="error", exception="Cannot rebuild fact_sales: column 'region' is missing")
        rolled_back = self._promote("a release that does not", "failed")
        is_intact = self._production_is(GOOD_RELEASE)
        return promoted and rolled_back and is_intact

    def release(self, description: str, **behaviour: object) -> None:
        """
        Change the flows in staging, as developers do.

        :param description: What the changed flow says of itself.
        :param behaviour: How its runs go from now on.
        """
        flow = self.staging.flows[SMOKE_FLOW]
        self.staging.add_flow(replace(flow, description=description, **behaviour))  # type: ignore[arg-type]
        self.staging.add_flow(NEW_FLOW)

    def wait_for_approval(self) -> str:
        """
        Start a promotion, and leave it to somebody else to approve.

        :return: The page where that is done.
        """
        run_id = self.airflow.trigger_dag(DAG_ID)
        self.airflow.wait_for_question(DAG_ID, run_id, APPROVAL)
        return f"{page_of(self.airflow, DAG_ID, run_id)}/tasks/{APPROVAL}/required_actions"

    def _promote(self, what: str, expected: str) -> bool:
        run_id = self.airflow.trigger_dag(DAG_ID)
        self.narrator.say(f"Promoting {what}: {page_of(self.airflow, DAG_ID, run_id)}")
        if self.asks:
            question = self.airflow.wait_for_question(DAG_ID, run_id, APPROVAL)
            self.narrator.console.print(Panel(Markdown(question["body"]), title=question["subject"]))
            self.narrator.say("Approving it, as a person does in the UI")
            self.airflow.answer(DAG_ID, run_id, APPROVAL, "Approve")
        ended = self.airflow.wait_for_dag_run(DAG_ID, run_id, RUNS_LIMIT)
        self._show(run_id)
        if ended != expected:
            self.narrator.complain(f"It ended in {ended} and should have ended in {expected}.{self._logs(run_id)}")
        return ended == expected

    def _show(self, run_id: str) -> None:
        table = Table(Column("Task", no_wrap=True), Column("State", no_wrap=True))
        for task in sorted(self.airflow.task_instances(DAG_ID, run_id), key=lambda each: each.end_date or "~"):
            state = task.state or "none"
            table.add_row(task.task_id, f"[{COLORS.get(state, 'default')}]{state}")
        self.narrator.console.print(table)

    def _logs(self, run_id: str) -> str:
        failed = [task.task_id for task in self.airflow.task_instances(DAG_ID, run_id) if task.state == "failed"]
        logs = {task_id: self.airflow.task_log(DAG_ID, run_id, task_id).splitlines() for task_id in failed}
        return "".join("\n".join(["", f"{name}:", *log[-LOG_TAIL_LINES:]]) for name, log in logs.items())

    def _production_is(self, description: str) -> bool:
        flow = self.production.flows[SMOKE_FLOW]
        self.narrator.say(f"Production's flow {flow.id} now says: {flow.description}")
        off = [schedule["name"] for schedule in self.production.schedules.values() if not schedule["enabled"]]
        if off:
            self.narrator.complain(f"These schedules of production are off: {', '.join(off)}")
        return flow.description == description and not off


def main(keep: bool = False) -> int:
    """
    Promote flows between two sandboxes through a real Airflow, and tell what happened.

    :param keep: Leave all three running afterwards, until Ctrl-C, with one promotion that waits for an approval.
        Default ``False``.
    :return: The exit code: 0 if everything ended as it should, 1 if not, 130 after Ctrl-C.
    """
    return carry_out(lambda narrator: _promote_releases(narrator, keep))


def _promote_releases(narrator: Narrator, keep: bool) -> bool:
    with Sandbox() as staging, Sandbox() as production, tempfile.TemporaryDirectory(prefix="bundles-") as bundles:
        airflow = LocalAirflow(example_dags_folder(), environment_of(staging, production, bundles))
        narrator.say(f"Staging at {staging.url}, production at {production.url}")
        with running(airflow, narrator):
            demo = PromotionDemo(narrator, staging, production, airflow)
            good = demo.run()
            if keep:
                if demo.asks:
                    narrator.say(f"This one is for you to approve or reject: {demo.wait_for_approval()}")
                keep_running(narrator)
    return good


def environment_of(staging: Sandbox, production: Sandbox, bundles: str) -> Mapping[str, str]:
    """
    Return what the example DAG needs of Airflow.

    :param staging: The sandbox that flows come from.
    :param production: The sandbox that they go to.
    :param bundles: A folder for the bundles.
    :return: Environment variables.
    """
    return {
        "AIRFLOW_CONN_ETLWORKS_STAGING": staging.airflow_connection,
        "AIRFLOW_CONN_ETLWORKS_PRODUCTION": production.airflow_connection,
        "AIRFLOW_VAR_ETLWORKS_BUNDLES": bundles,
    }
