"""The demo: the example DAGs, run by a real Airflow against the sandbox."""

from __future__ import annotations

import tempfile
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.live import Live
from rich.table import Column, Table

from airflow_provider_etlworks.sandbox.demo.local_airflow import (
    START_LIMIT,
    LocalAirflow,
    LocalAirflowError,
    TaskInstance,
)
from airflow_provider_etlworks.sandbox.pages import RUN_PATH
from airflow_provider_etlworks.sandbox.server import Sandbox

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from airflow_provider_etlworks.sandbox.runs import SandboxRun

RUNS_LIMIT = 240.0
WIDTH_WITHOUT_TERMINAL = 160
LOG_TAIL_LINES = 20
# The flow whose run of last night an example DAG waits for.
SCHEDULED_FLOW = 12346

# Each example DAG, and how many of its tasks fail because their flow is meant to end with an error.
EXAMPLES = {"etlworks_run_flow": 0, "etlworks_fan_out": 1}

COLORS = {"success": "green", "failed": "red", "running": "cyan", "deferred": "magenta"}
_FAILED_STATUSES = ("error", "canceled")


@dataclass(frozen=True)
class Outcome:
    """
    The state of a task of an example DAG.

    :param dag_id: The DAG.
    :param run_id: The DAG run.
    :param task: The task instance in Airflow.
    :param flow_run: The run in Etlworks that it started, if any.
    """

    dag_id: str
    run_id: str
    task: TaskInstance
    flow_run: SandboxRun | None

    @property
    def label(self) -> str:
        """The name of the task for people."""
        index = f" #{self.task.map_index}" if self.task.map_index >= 0 else ""
        return f"{self.dag_id} / {self.task.task_id}{index}"

    @property
    def state(self) -> str:
        """Its state in Airflow, or ``waiting``."""
        return self.task.state or "waiting"

    @property
    def duration(self) -> str:
        """The time from its start to its end; empty before the end."""
        if self.task.start_date is None or self.task.end_date is None:
            return ""
        taken = datetime.fromisoformat(self.task.end_date) - datetime.fromisoformat(self.task.start_date)
        return f"{taken.total_seconds():.1f} s"

    @property
    def flow_run_failed(self) -> bool:
        """Whether its run in Etlworks ended with an error or was stopped."""
        return self.flow_run is not None and self.flow_run.status in _FAILED_STATUSES

    @property
    def is_expected(self) -> bool:
        """Whether its state matches the status of its run in Etlworks."""
        return self.state == ("failed" if self.flow_run_failed else "success")


class Reporter:
    """
    Prints the progress of a demo, with the time since its start.

    :param keep: Whether Airflow and the sandbox keep running afterwards. If not, no addresses are printed: nothing
        would answer there by the time they are read. Default ``False``.
    :ivar console: Where it prints.
    """

    def __init__(self, keep: bool = False) -> None:
        self.keep = keep
        self._began = time.monotonic()
        self.console = Console()
        if not self.console.is_terminal:
            self.console = Console(width=WIDTH_WITHOUT_TERMINAL)

    def info(self, text: str) -> None:
        """
        Print a line with the time since the start.

        :param text: The line.
        """
        self.console.print(f"{time.monotonic() - self._began:5.1f} s  {text}", highlight=False, markup=False)

    def at(self, url: str) -> str:
        """
        Return the end of a line that names an address; empty if nothing will answer there.

        :param url: The address.
        """
        return f": {url}" if self.keep else ""

    def error(self, text: str) -> None:
        """
        Print an error.

        :param text: The text.
        """
        self.console.print(text, style="red", highlight=False, markup=False)


class Demo:
    """
    The example DAGs in a running Airflow.

    :param reporter: Prints the progress.
    :param sandbox: The running sandbox.
    :param airflow: The running Airflow, connected to the sandbox.
    """

    def __init__(self, reporter: Reporter, sandbox: Sandbox, airflow: LocalAirflow) -> None:
        self.reporter = reporter
        self.console = reporter.console
        self.sandbox = sandbox
        self.airflow = airflow
        self.runs: Mapping[str, str] = {}

    def run(self) -> bool:
        """
        Run the example DAGs until they end, and report how each task ended.

        :return: Whether every task ended as documented.
        :raises LocalAirflowError: if Airflow cannot run them.
        """
        self.runs = {dag_id: self.airflow.trigger_dag(dag_id) for dag_id in EXAMPLES}
        flows = f"each flow takes a few seconds, and the wait ends after {RUNS_LIMIT:.0f} s at most"
        self.reporter.info(f"Waiting until {' and '.join(self.runs)} have ended: {flows}")
        self._follow()
        outcomes = self._outcomes()
        self.console.print(self._table(outcomes))
        self._print_links()
        self._explain_intended_failures(outcomes)
        problems = list(self._problems(outcomes))
        for problem in problems:
            self.reporter.error(problem)
        return not problems

    def _outcomes(self) -> list[Outcome]:
        flow_runs = {run.audit_id: run for run in self.sandbox.runs()}
        return [
            Outcome(dag_id, run_id, task, flow_runs.get(self._audit_id(dag_id, run_id, task)))
            for dag_id, run_id in self.runs.items()
            for task in self.airflow.task_instances(dag_id, run_id)
        ]

    def _audit_id(self, dag_id: str, run_id: str, task: TaskInstance) -> int:
        return int(self.airflow.xcom(dag_id, run_id, task.task_id, task.map_index, key="audit_id") or 0)

    def _follow(self) -> None:
        """Show the progress until all DAG runs have ended: as a live table, or as a line per change."""
        if not self.console.is_terminal:
            shown: dict[str, str] = {}
            self.airflow.wait_until("the example DAGs have ended", lambda: self._print_changes(shown), RUNS_LIMIT)
            return
        with Live(console=self.console, transient=True) as live:
            self.airflow.wait_until("the example DAGs have ended", lambda: self._update(live), RUNS_LIMIT)

    def _ended(self) -> bool:
        states = (self.airflow.dag_run_state(dag_id, run_id) for dag_id, run_id in self.runs.items())
        return all(state in ("success", "failed") for state in states)

    def _update(self, live: Live) -> bool:
        ended = self._ended()
        live.update(self._table(self._outcomes()))
        return ended

    def _print_changes(self, shown: dict[str, str]) -> bool:
        ended = self._ended()
        for outcome in self._outcomes():
            if shown.get(outcome.label) != outcome.state:
                shown[outcome.label] = outcome.state
                self.reporter.info(f"{outcome.label}: {outcome.state}")
        return ended

    def _table(self, outcomes: list[Outcome]) -> Table:
        table = Table(
            Column("DAG / task", overflow="fold"),
            Column("State", no_wrap=True),
            Column("Took", no_wrap=True),
            Column("Run in Etlworks"),
            *([Column("Its page", overflow="fold")] if self.reporter.keep else []),
        )
        for outcome in outcomes:
            run = outcome.flow_run
            table.add_row(
                outcome.label,
                f"[{COLORS.get(outcome.state, 'default')}]{outcome.state}",
                outcome.duration,
                f"{run.audit_id} of flow {run.flow_id}: {run.status}" if run else "",
                *([self._page(run) if run else ""] if self.reporter.keep else []),
            )
        return table

    def _page(self, run: SandboxRun) -> str:
        url = self.sandbox.url + RUN_PATH.format(flow_id=run.flow_id, audit_id=run.audit_id)
        return f"[link={url}]{url}[/link]"

    def _print_links(self) -> None:
        if not self.reporter.keep:
            return
        self.console.print("In the Airflow UI:")
        for dag_id, run_id in self.runs.items():
            self.console.print(f"  {dag_run_url(self.airflow, dag_id, run_id)}", soft_wrap=True)

    def _explain_intended_failures(self, outcomes: list[Outcome]) -> None:
        for outcome in outcomes:
            if outcome.flow_run and outcome.flow_run_failed and outcome.is_expected:
                name = self.sandbox.flows[outcome.flow_run.flow_id].name
                self.console.print(
                    f"{outcome.label} fails, and that is intended: the sandbox's flow {outcome.flow_run.flow_id}"
                    f" ({name}) is meant to end with an error. Only its own task fails.",
                    highlight=False,
                    markup=False,
                )

    def _problems(self, outcomes: list[Outcome]) -> Iterator[str]:
        for dag_id, intended_failures in EXAMPLES.items():
            of_this_dag = [outcome for outcome in outcomes if outcome.dag_id == dag_id]
            failures = sum(outcome.state == "failed" for outcome in of_this_dag)
            if failures != intended_failures:
                yield f"{dag_id}: expected {intended_failures} failed tasks, got {failures}."
            if not any(outcome.flow_run for outcome in of_this_dag):
                yield f"{dag_id}: no task has started a run in Etlworks."
            for outcome in of_this_dag:
                if not outcome.is_expected:
                    yield self._unexpected(outcome)

    def _unexpected(self, outcome: Outcome) -> str:
        task = outcome.task
        log = self.airflow.task_log(outcome.dag_id, outcome.run_id, task.task_id, task.map_index).splitlines()
        return "\n".join(
            [f"{outcome.label} should not be {outcome.state}. The end of its log:", *log[-LOG_TAIL_LINES:]]
        )


def main(keep: bool = False) -> int:
    """
    Run the example DAGs in a real Airflow against the sandbox, and report what happened.

    :param keep: Keep both running afterwards, until Ctrl-C. Default ``False``.
    :return: The exit code: 0 if every task ended as documented, 1 if not, 130 after Ctrl-C.
    """
    return run_demo(_run_examples, keep)


def _run_examples(reporter: Reporter) -> bool:
    with environments() as (staging, sandbox, variables):
        airflow = LocalAirflow(example_dags_folder(), variables)
        reporter.info(f"Etlworks sandbox is running{reporter.at(sandbox.url)}")
        with running(airflow, reporter):
            good = Demo(reporter, sandbox, airflow).run()
            if reporter.keep:
                keep_running(reporter, {"Airflow": airflow.base_url, "Etlworks": sandbox.url, "staging": staging.url})
    return good


@contextmanager
def environments() -> Iterator[tuple[Sandbox, Sandbox, Mapping[str, str]]]:
    """
    Run all that the example DAGs need, so that each of them works: staging, production, and a folder for bundles.

    :return: The source of promotions, the Etlworks of all other DAGs and target of promotions, and the environment
        variables for Airflow.
    """
    with Sandbox() as staging, Sandbox() as production, tempfile.TemporaryDirectory(prefix="bundles-") as bundles:
        # Last night's run, for the DAG that waits for it.
        production.run_by_schedule(SCHEDULED_FLOW)
        yield (
            staging,
            production,
            {
                "AIRFLOW_CONN_ETLWORKS_DEFAULT": production.airflow_connection,
                "AIRFLOW_CONN_ETLWORKS_STAGING": staging.airflow_connection,
                "AIRFLOW_CONN_ETLWORKS_PRODUCTION": production.airflow_connection,
                "AIRFLOW_VAR_ETLWORKS_BUNDLES": bundles,
            },
        )


@contextmanager
def running(airflow: LocalAirflow, reporter: Reporter) -> Iterator[None]:
    """
    Run an Airflow during a ``with`` block, and report its start.

    :param airflow: The Airflow.
    :param reporter: Prints the progress.
    """
    version = ".".join(map(str, airflow.version))
    expected = f"a minute or so, and {START_LIMIT * len(airflow.components):.0f} s at most"
    reporter.info(f"Starting Airflow {version}{reporter.at(airflow.base_url)}")
    reporter.info(f"Waiting until {', '.join(airflow.components)} have started: {expected}")
    with airflow:
        reporter.info("Airflow has started")
        yield


def dag_run_url(airflow: LocalAirflow, dag_id: str, run_id: str) -> str:
    """
    Return the URL of a DAG run in Airflow's UI.

    :param airflow: The Airflow.
    :param dag_id: The DAG.
    :param run_id: The DAG run.
    """
    page = f"grid?dag_run_id={run_id}" if airflow.version < (3,) else f"runs/{run_id}"
    return f"{airflow.base_url}/dags/{dag_id}/{page}"


def keep_running(reporter: Reporter, addresses: Mapping[str, str]) -> None:
    """
    Wait until Ctrl-C.

    :param reporter: Prints the progress.
    :param addresses: What keeps running, and its URL.
    :raises KeyboardInterrupt: always.
    """
    for name, url in addresses.items():
        reporter.console.print(f"  {name}: {url}", soft_wrap=True)
    reporter.console.print("Every DAG there works, so start one; one task of etlworks_fan_out fails on purpose.")
    reporter.console.print("Etlworks's pages start runs and arm faults. Ctrl-C stops and removes everything.")
    threading.Event().wait()


def run_demo(demo: Callable[[Reporter], bool], keep: bool) -> int:
    """
    Run a demo, and report its result.

    :param demo: The demo; it returns whether everything ended as expected.
    :param keep: Whether Airflow and the sandbox keep running afterwards.
    :return: The exit code: 0 if so, 1 if not, 130 after Ctrl-C.
    """
    reporter = Reporter(keep)
    try:
        good = demo(reporter)
    except KeyboardInterrupt:
        reporter.console.print("Interrupted. Everything is stopped and removed.")
        return 130
    except (LocalAirflowError, FileNotFoundError) as error:
        reporter.error(f"The demo failed: {error}")
        return 1
    if good:
        reporter.info("Everything ended as it should. Run the demo with --keep to look around in the UI.")
    return 0 if good else 1


def example_dags_folder() -> Path:
    """
    Find the example DAGs: inside the installed package, or next to it in a checkout.

    :return: Their folder.
    :raises FileNotFoundError: if they are in neither folder.
    """
    package = Path(__file__).parents[2]
    candidates = (package / "example_dags", package.parent / "example_dags")
    for folder in candidates:
        if any(folder.glob("*.py")):
            return folder
    raise FileNotFoundError(f"No example DAGs in {' or '.join(map(str, candidates))}")
