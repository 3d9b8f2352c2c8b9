# /// script
# requires-python = ">=3.10"
# dependencies = ["airflow-provider-etlworks", "matplotlib>=3.9"]
# [tool.uv.sources]
# airflow-provider-etlworks = { path = "..", editable = true }
# ///
"""
What many processes get that share one rate limit and know nothing of one another.

120 processes, each of which starts a run of its own flow and follows it to its end, against a sandbox that allows 180
requests a minute. Exits with code 1 if a figure is above its limit. Run: ``uv run benchmarks/sharing.py``.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import random
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from airflow_provider_etlworks.client.clock import SYSTEM_CLOCK
from airflow_provider_etlworks.client.errors import EtlworksError
from airflow_provider_etlworks.client.rate_limit import Priority
from airflow_provider_etlworks.client.settings import ClientSettings
from airflow_provider_etlworks.client.sync import EtlworksClient
from airflow_provider_etlworks.runs.follow import follow
from airflow_provider_etlworks.runs.start import RunStarter
from airflow_provider_etlworks.runs.types import PollPolicy, RunRef
from airflow_provider_etlworks.sandbox import Sandbox, SandboxFlow

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from airflow_provider_etlworks.runs.start import Started

PROCESSES = 120
LIMIT = 180
RUN_SECONDS = 20.0
POLL_INTERVAL = 10.0
PATIENCE = 1800.0
WITHIN = 30.0
FIGURE = Path(__file__).parent.parent / "docs" / "sharing.svg"


@dataclass(frozen=True)
class Process:
    """What became of a process: its run's status or its error, and when it began and ended (monotonic clock)."""

    result: str
    begun: float
    ended: float


def serve(pipe: Connection, running: float) -> None:
    """Run the sandbox, and report what it has received once asked."""
    flows = [SandboxFlow(number, f"Flow {number}", running=running) for number in range(1, PROCESSES + 1)]
    with Sandbox(flows, requests_per_minute=LIMIT) as sandbox:
        pipe.send((sandbox.url, sandbox.api_key))
        pipe.recv()
        requests = [(request.at, request.status == 429) for request in sandbox.requests]
        pipe.send((requests, sum(sandbox.runs_started(flow.id) for flow in flows)))


def work(flow_id: int, url: str, key: str, options: argparse.Namespace, results: Any) -> None:
    """Do what a task does on a worker, some time after the others have begun."""
    logging.disable(logging.CRITICAL)
    log = logging.getLogger()
    time.sleep(random.uniform(0, options.within))  # noqa: S311
    begun = time.monotonic()
    try:
        with EtlworksClient(ClientSettings(url, key)) as client:
            # ``None`` only if a start is to be skipped.
            start = RunStarter(flow_id, SYSTEM_CLOCK, log).start()
            started = cast("Started", client.run(start, priority=Priority.START))
            policy = PollPolicy(poll_interval=options.poll_interval, patience=PATIENCE)
            followed = client.run(follow(RunRef(flow_id, started.audit_id), policy, clock=SYSTEM_CLOCK, log=log))
            result = followed.execution.status if followed.execution else followed.ending.value
    except EtlworksError as error:
        result = str(error)
    results.put(Process(result, begun, time.monotonic()))


def plot(requests: list[tuple[float, bool]], processes: list[Process], begun: float) -> None:
    """Draw the requests of each five seconds, and the runs that were reported."""
    import matplotlib as mpl
    from matplotlib import pyplot as plt

    mpl.rcParams["svg.hashsalt"] = "sharing"
    figure, (rate, done) = plt.subplots(2, 1, figsize=(8, 6), sharex=True, layout="constrained")
    moments = [[at - begun for at, is_refused in requests if is_refused is refused] for refused in (False, True)]
    bins = range(0, int(max(map(max, filter(None, moments)))) + 6, 5)
    rate.hist(
        moments,
        bins=bins,
        stacked=True,
        label=["answered", "refused (429), sent again later"],
        color=["tab:blue", "tab:red"],
    )
    rate.axhline(LIMIT / 12, color="grey", linestyle=":", label="the organization's limit, spread evenly")
    rate.set(title="Requests of all processes together", ylabel="requests in 5 s")
    rate.legend(fontsize="small")
    ends = sorted(each.ended - begun for each in processes)
    done.step([0, *ends], range(len(ends) + 1), where="post", label="are done: their run was started and has ended")
    begins = sorted(each.begun - begun for each in processes)
    done.step([0, *begins], range(len(begins) + 1), where="post", color="grey", label="have begun")
    done.set(
        title="Processes that have begun, and that are done",
        xlabel="seconds since the first process began",
        ylabel="processes",
    )
    done.legend(fontsize="small")
    figure.suptitle(
        f"{PROCESSES} processes share one limit of {LIMIT} requests a minute, and do not know of one another"
    )
    for axes in (rate, done):
        axes.grid(alpha=0.3)
    figure.savefig(FIGURE, metadata={"Date": None})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0].strip())
    parser.add_argument("--within", type=float, default=WITHIN, help="seconds within which all begin; default 30")
    parser.add_argument("--running", type=float, default=RUN_SECONDS, help="seconds that a run takes; default 20")
    parser.add_argument("--poll-interval", type=float, default=POLL_INTERVAL, help="seconds; default 10")
    options = parser.parse_args()
    multiprocessing.set_forkserver_preload([__name__, "airflow_provider_etlworks.client.sync"])
    forking, spawning = multiprocessing.get_context("forkserver"), multiprocessing.get_context("spawn")
    pipe, theirs = spawning.Pipe()
    server = spawning.Process(target=serve, args=(theirs, options.running), daemon=True)
    server.start()
    url, key = pipe.recv()
    results = forking.Queue()
    workers = [
        forking.Process(target=work, args=(flow, url, key, options, results)) for flow in range(1, PROCESSES + 1)
    ]
    for worker in workers:
        worker.start()
    processes = [results.get() for _ in workers]
    for worker in workers:
        worker.join()
    pipe.send("report")
    requests, runs = pipe.recv()
    server.join()

    begun = min(each.begun for each in processes)
    seconds = max(each.ended for each in processes) - begun
    refused = sum(is_refused for _, is_refused in requests)
    answered = len(requests) - refused
    most = max(Counter(result.result for result in processes).items(), key=lambda item: item[1])
    in_time = 60 * answered / LIMIT
    green = sum(each.result == "success" for each in processes)
    table: list[tuple[str, float, float | None, bool]] = [
        ("processes that report success", green, PROCESSES, green == PROCESSES),
        ("runs", runs, PROCESSES, runs == PROCESSES),
        ("requests", len(requests), None, True),
        ("… refused (429), in %", share := 100 * refused / len(requests), 10.0, share <= 10),
        ("seconds until all are done, over requests ÷ limit", seconds / in_time, 2.0, seconds <= 2 * in_time),
    ]
    print(
        f"\nThe processes begin within {options.within:g} s. Their runs take {options.running:g} s, with a poll every "
        f"{options.poll_interval:g} s."
    )
    print(f"{seconds:.0f} s; the most frequent result is {most[0]!r}.\n")
    print("| what | value | limit | |\n|---|---|---|---|")
    for what, value, limit, is_kept in table:
        print(f"| {what} | {value:.4g} | {'' if limit is None else f'{limit:g}'} | {'' if is_kept else '**missed**'} |")
    print(f"\n{refused / PROCESSES:.2f} refusals for each process.")
    if options == parser.parse_args([]):
        plot(requests, processes, begun)
    return 0 if all(is_kept for *_, is_kept in table) else 1


if __name__ == "__main__":
    sys.exit(main())
