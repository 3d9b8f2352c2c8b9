# /// script
# requires-python = ">=3.10"
# dependencies = ["airflow-provider-etlworks", "matplotlib>=3.9"]
# [tool.uv.sources]
# airflow-provider-etlworks = { path = "..", editable = true }
# ///
"""
What it costs to watch runs: CPU, requests, memory, and how late an end is reported.

Drives the public trigger class as a triggerer does, in a process of its own, against a sandbox in another; beside it,
in the same run, a bare aiohttp session that reads the same records. Run: ``uv run benchmarks/watching.py``.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from etlworks import DAY, EtlworksProcess
from triggerer import Lateness, TriggererProcess, Watching

if TYPE_CHECKING:
    from collections.abc import Iterator

    from etlworks import Traffic

POLL_INTERVAL = 10.0
REQUESTS_PER_MINUTE = 300
HEAD_START = 6.0
GENEROUS = 15.0
FIGURES = Path(__file__).parent.parent / "docs" / "watching.svg"


@dataclass(frozen=True)
class Plan:
    """
    How much is measured.

    :ivar sizes: numbers of runs for the plot; 1,000 is one of them.
    :ivar crowd: triggers in one process.
    :ivar polled: runs that are polled one by one to measure CPU.
    :ivar stretches: how often CPU is measured.
    :ivar seconds: for how long, each time.
    :ivar scale: how many times faster than real time requests, budgets and lags are measured.
    :ivar rounds_watched: for how many polls of each run, at least.
    """

    sizes: tuple[int, ...] = (10, 30, 100, 300, 1_000, 5_000)
    crowd: int = 5_000
    polled: int = 1_000
    stretches: int = 20
    seconds: float = 3.0
    scale: float = 10.0
    rounds_watched: float = 2.3


QUICK = Plan(sizes=(10, 100, 1_000), stretches=10, rounds_watched=2.2)


@dataclass(frozen=True)
class Row:
    """
    A line of the table.

    :ivar limit: the most that the value may be; ``None`` if nothing is promised.
    """

    what: str
    value: float
    limit: float | None = None
    unit: str = ""
    note: str = ""

    @property
    def kept(self) -> bool:
        return self.limit is None or self.value <= self.limit

    def __str__(self) -> str:
        limit = "" if self.limit is None else f"{self.limit:.4g}"
        share = "" if self.limit is None else f"{self.value / self.limit:.2f}" + ("" if self.kept else " **over**")
        what = f"{self.what} ({self.unit})" if self.unit else self.what
        return f"| {what} | {self.value:.3g} | {limit} | {share} | {self.note} |"


# --- CPU of a poll --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PollCosts:
    """Microseconds of CPU per poll, and the ratio of both; each the median of many short stretches."""

    bare: float
    ours: float
    ratio: float


def poll_costs(plan: Plan) -> PollCosts:
    """
    Watch runs one by one, with triggers in one process and with a bare session in another.

    Both at the same time, so that whatever else the machine does falls on both.
    """
    with ExitStack() as stack:
        servers = [stack.enter_context(EtlworksProcess([math.inf] * plan.polled, administrator=False)) for _ in "12"]
        processes = [
            stack.enter_context(TriggererProcess(Watching(each.url, each.connections["key"], 2.0, 0)))
            for each in servers
        ]
        for server, process, means in zip(servers, processes, ("bare", "trigger"), strict=True):
            process.watch(means, server.start_runs())
        time.sleep(HEAD_START)
        costs: list[list[float]] = []
        with ThreadPoolExecutor(2) as at_once:
            for _ in range(plan.stretches):
                stretches = at_once.map(lambda process: process.measure(plan.seconds), processes)
                costs.append(
                    [
                        each.cpu_seconds / server.traffic(each.since, each.until).requests * 1e6
                        for server, each in zip(servers, stretches, strict=True)
                    ]
                )
    bare, ours = (statistics.median(each) for each in zip(*costs, strict=True))
    return PollCosts(bare, ours, statistics.median(ours / bare for bare, ours in costs))


# --- A crowd --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Crowd:
    """What many triggers do to one process."""

    starting: Lateness
    watching: Lateness
    bytes_per_run: float
    connections: int


def crowd(plan: Plan) -> Crowd:
    """Start many triggers at once, in real time, and watch the event loop and the memory."""
    with EtlworksProcess([math.inf] * plan.crowd, administrator=True) as etlworks:
        how = Watching(etlworks.url, etlworks.connections["key"], POLL_INTERVAL, REQUESTS_PER_MINUTE)
        with TriggererProcess(how) as process, TriggererProcess(how) as idle:
            begun, runs = time.monotonic(), etlworks.start_runs()
            process.watch("trigger", runs[:1])
            time.sleep(1.5 * HEAD_START)
            before, idle_before = process.memory(), idle.memory()
            process.watch("trigger", runs[1:])
            idle.watch("idle", runs[1:])
            starting = process.lateness(HEAD_START + POLL_INTERVAL)
            watching = process.lateness(3 * POLL_INTERVAL)
            more = (process.memory() - before) - (idle.memory() - idle_before)
        traffic = etlworks.traffic(begun, time.monotonic())
    return Crowd(starting, watching, more / (plan.crowd - 1), traffic.connections)


# --- Requests and lag -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Watched:
    """How some runs were watched for a while, in real time."""

    runs: int
    with_list: bool
    minutes: float
    traffic: Traffic
    most_in_a_minute: float
    lags: list[float]
    ends: int
    cpu_per_interval: float
    scale: float

    @property
    def requests_per_minute(self) -> float:
        return self.traffic.requests / self.minutes

    @property
    def ends_per_minute(self) -> float:
        return self.ends / self.minutes

    def lag(self, percent: int) -> float:
        """Return the lag that so many per cent of the ends stay below; an end without a report counts as endless."""
        lags = sorted(self.lags) + [math.inf] * (self.ends - len(self.lags))
        return lags[math.ceil(percent / 100 * len(lags)) - 1]

    @property
    def longest_wait_over_mean(self) -> float:
        waits = [wait for each in self.traffic.waits for wait in each]
        return max(waits) / statistics.mean(waits)


def watched(plan: Plan, runs: int, *, with_list: bool) -> Watched:
    """Watch some runs while a tenth of them ends, one after the other; time passes ``scale`` times faster."""
    interval, per_second = POLL_INTERVAL / plan.scale, REQUESTS_PER_MINUTE * plan.scale / 60
    one_round = max(interval, runs / per_second)
    warm_up = HEAD_START + 1.1 * one_round
    # A minute at least, since that is what the budget is for.
    lasting = max(60.0, 0 if with_list else plan.rounds_watched * one_round)
    ends = max(5, runs // 10)
    last_end = lasting - (3 * interval if with_list else 1.3 * one_round)
    seconds = [warm_up + last_end * number / ends for number in range(ends)] + [math.inf] * (runs - ends)
    with EtlworksProcess(seconds, administrator=with_list) as etlworks:
        how = Watching(etlworks.url, etlworks.connections["key"], interval, round(60 * per_second))
        with TriggererProcess(how) as process:
            begun = time.monotonic()
            process.watch("trigger", etlworks.start_runs())
            process.measure(warm_up - (time.monotonic() - begun))
            stretch = process.measure(lasting)
            ended = process.ended()
        traffic = etlworks.traffic(stretch.since, stretch.until)
        ever = etlworks.traffic(begun, stretch.until)
    return Watched(
        runs=runs,
        with_list=with_list,
        minutes=(stretch.until - stretch.since) * plan.scale / 60,
        traffic=traffic,
        most_in_a_minute=ever.most_in_a_minute / plan.scale,
        lags=[each.lag * plan.scale for each in ended if each.ending == "finished"],
        ends=ends,
        cpu_per_interval=stretch.cpu_seconds / runs / ((stretch.until - stretch.since) / interval) * 1e6,
        scale=plan.scale,
    )


# --- A token that ends ----------------------------------------------------------------------------------------------


def log_ins_after_revocation(plan: Plan) -> int:
    """Let many triggers wait, revoke their token, and count the log-ins that follow."""
    runs = 1_000
    with EtlworksProcess([math.inf] * runs, administrator=False) as etlworks:
        how = Watching(etlworks.url, etlworks.connections["login"], 1.0, 0)
        with TriggererProcess(how) as process:
            process.watch("trigger", etlworks.start_runs())
            process.measure(HEAD_START)
            before = etlworks.log_ins()
            etlworks.revoke_tokens()
            stretch = process.measure(HEAD_START)
        polled_runs = etlworks.traffic(stretch.since, stretch.until).polled
        assert polled_runs == runs, f"Only {polled_runs} of {runs} runs were polled after the token's end."
        return etlworks.log_ins() - before


# --- What is printed ------------------------------------------------------------------------------------------------


def rows(costs: PollCosts, many: Crowd, points: list[Watched], log_ins: int, plan: Plan) -> Iterator[Row]:
    """Yield the lines of the table."""
    by_kind = {(each.runs, each.with_list): each for each in points}
    listed, alone = by_kind[1_000, True], by_kind[1_000, False]
    yield Row(
        "CPU of a poll, trigger included, over a bare aiohttp session's",
        costs.ratio,
        1.25,
        note=f"{costs.ours:.0f} and {costs.bare:.0f} µs; {plan.polled:,} runs",
    )
    yield Row(
        "CPU of a watched run and interval with a list, over a bare poll's",
        listed.cpu_per_interval / costs.bare,
        0.1,
        note=f"{listed.cpu_per_interval:.1f} µs; 1,000 runs",
    )
    yield Row(
        "requests a minute, 1,000 runs, with the administrator's list",
        listed.requests_per_minute,
        60 + 2 * listed.ends_per_minute,
        note=f"60, and 2 for each of the {listed.ends_per_minute:.0f} runs that end; "
        f"{listed.traffic.kinds[DAY] / listed.minutes:.1f} are lists",
    )
    for percent, limit in ((50, None), (95, 15.0), (100, None)):
        yield Row(f"… detection lag, {_percentile(percent)}", listed.lag(percent), limit, unit="s")
    yield Row(
        "most requests in any minute, 1,000 runs of 1,000 flows, no list",
        alone.most_in_a_minute,
        REQUESTS_PER_MINUTE,
        note="from the first one on",
    )
    for percent in (50, 95, 100):
        yield Row(f"… detection lag, {_percentile(percent)}", alone.lag(percent), unit="s")
    yield Row(
        "… longest wait between two polls of a run, over the mean",
        alone.longest_wait_over_mean,
        1.5,
        note=f"{alone.traffic.polled:,} runs were polled",
    )
    for when, lateness in (("", many.watching), (" while they all start", many.starting)):
        crowd_of = f"lateness of the event loop with {plan.crowd:,} triggers{when}"
        yield Row(f"{crowd_of}, p99", lateness.p99 * 1e3, 10, unit="ms")
        note = f"{lateness.longest_without_gc * 1e3:.0f} without Python's garbage collector"
        yield Row("… longest", lateness.longest * 1e3, 50, unit="ms", note=note)
    yield Row("resident memory of a watched run, over an idle task's", many.bytes_per_run / 1024, 10, unit="KiB")
    yield Row("TCP connections", max(many.connections, *(each.traffic.connections for each in points)), 10)
    yield Row("log-ins after a token is revoked while 1,000 wait", log_ins, 1)


def _percentile(percent: int) -> str:
    return "longest" if percent == 100 else f"p{percent}"


def plot(points: list[Watched], path: Path) -> None:
    """Draw requests per minute and detection lag over the number of runs."""
    # Not above: every process of the benchmark imports this module.
    import matplotlib as mpl
    from matplotlib import pyplot as plt

    # The same figures make the same file.
    mpl.rcParams["svg.hashsalt"] = "watching"
    figure, (requests, lag) = plt.subplots(1, 2, figsize=(11, 5), layout="constrained")
    for with_list, label, colour in (
        (True, "administrator: one list of the day's runs", "tab:blue"),
        (False, "other roles: one request for each run", "tab:orange"),
    ):
        line = sorted((each for each in points if each.with_list is with_list), key=lambda each: each.runs)
        sizes = [each.runs for each in line]
        requests.plot(sizes, [each.requests_per_minute for each in line], "o-", color=colour, label=label)
        lag.plot(sizes, [each.lag(50) for each in line], "o-", color=colour, label=f"{label}, median")
        lag.plot(sizes, [each.lag(95) for each in line], "o--", color=colour, label=f"{label}, 95 of 100 runs")
    requests.axhline(
        REQUESTS_PER_MINUTE,
        color="grey",
        linestyle=":",
        label=f"the connection's limit ({REQUESTS_PER_MINUTE} requests a minute)",
    )
    few = range(10, 100, 10)
    requests.plot(
        few,
        [60 / POLL_INTERVAL * each for each in few],
        color="grey",
        label=f"a poll of each run every {POLL_INTERVAL:g} s, without a limit",
    )
    requests.set(xscale="log", ylim=(0, 1.6 * REQUESTS_PER_MINUTE))
    lag.set(xscale="log", yscale="log")
    figure.suptitle(f"One triggerer process waits for runs in Etlworks (poll_interval {POLL_INTERVAL:g} s)")
    requests.set(title="Requests that it sends", ylabel="requests a minute")
    lag.set(title="How late it reports the end of a run", ylabel="seconds from a run's end to its event")
    for axes, corner in ((requests, "upper right"), (lag, "upper left")):
        axes.set(xlabel="runs that it waits for at the same time")
        axes.legend(fontsize="small", loc=corner)
        axes.grid(alpha=0.3)
    figure.savefig(path, metadata={"Date": None})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0].strip())
    parser.add_argument("--quick", action="store_true", help="about three minutes: fewer sizes, shorter, no plot")
    plan = QUICK if (quick := parser.parse_args().quick) else Plan()
    begun = time.monotonic()
    print(
        f"Requests and lags are measured {plan.scale:g} times faster than real time: intervals are {plan.scale:g} "
        "times shorter, the budget is as many times larger, and the figures are given as they would be in real time. "
        "All else is real time."
    )
    with tempfile.TemporaryDirectory() as home:
        # For the processes to come: an Airflow of their own, that says nothing but errors.
        os.environ |= {"AIRFLOW_HOME": home, "AIRFLOW__LOGGING__LOGGING_LEVEL": "ERROR"}
        costs = poll_costs(plan)
        many = crowd(plan)
        log_ins = log_ins_after_revocation(plan)
        # These send next to nothing each, so they do not disturb one another.
        kinds = [(size, with_list) for size in plan.sizes for with_list in (True, False)]
        with ThreadPoolExecutor(len(kinds)) as pool:
            points = list(pool.map(lambda kind: watched(plan, kind[0], with_list=kind[1]), kinds))
    print("\n| what | value | at most | of it | |\n|---|---|---|---|---|")
    table = list(rows(costs, many, points, log_ins, plan))
    print(*table, sep="\n")
    print(f"\n{(time.monotonic() - begun) / 60:.1f} minutes.")
    print("\n| runs | list | requests a minute | lag p50 (s) | p95 | longest |\n|---|---|---|---|---|---|")
    for each in points:
        lags = " | ".join(f"{each.lag(percent):.0f}" for percent in (50, 95, 100))
        print(f"| {each.runs:,} | {'yes' if each.with_list else 'no'} | {each.requests_per_minute:.0f} | {lags} |")
    if not quick:
        plot(points, FIGURES)
        print(f"\nThe plot is in {FIGURES.relative_to(Path.cwd())}.")
    return 0 if all(row.kept for row in table) else 1


if __name__ == "__main__":
    sys.exit(main())
