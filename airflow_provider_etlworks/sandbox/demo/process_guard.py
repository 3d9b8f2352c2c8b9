"""
Kills the processes of a local Airflow when the process that started it no longer needs them, or has died.

Airflow's processes start further processes, some in sessions of their own, so neither a process group nor a process
tree contains all of them. But each inherits the environment variable :data:`MARKER`.

``LocalAirflow`` starts this file as a separate process and holds a pipe to its standard input. The pipe closes when the
``with`` block ends, and also when the process of ``LocalAirflow`` is killed. So one rule covers both cases.
"""

import shutil
import sys
import time
from collections.abc import Iterable
from contextlib import suppress

import psutil

MARKER = "ETLWORKS_SANDBOX_AIRFLOW"
"""Environment variable whose value identifies the local Airflow that a process belongs to."""


def alive(process: psutil.Process) -> bool:
    """
    Return whether a process is running. A zombie, which only waits for its parent, is not.

    :param process: The process.
    :return: ``True`` if it is running.
    """
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def tree(pid: int) -> list[psutil.Process]:
    """
    Find a process and its descendants.

    :param pid: Process id.
    :return: The process first, then its descendants; empty if the process has ended.
    """
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def marked(marker: str) -> set[psutil.Process]:
    """
    Find the running processes of one local Airflow.

    :param marker: Value of :data:`MARKER` in their environment.
    :return: These processes and all their descendants.
    """
    found: set[psutil.Process] = set()
    for process in psutil.process_iter():
        # Processes of other users cannot be read, and some processes end in the meantime.
        with suppress(psutil.AccessDenied, psutil.NoSuchProcess, OSError):
            if process.environ().get(MARKER) == marker:
                found.update(tree(process.pid))
    return {process for process in found if alive(process)}


def kill(processes: Iterable[psutil.Process]) -> None:
    """
    Kill processes at once (SIGKILL).

    :param processes: The processes; those that have already ended are skipped.
    """
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def end_all(marker: str) -> None:
    """
    Kill every process of one local Airflow, and return when none is left.

    :param marker: Value of :data:`MARKER` in their environment.
    """
    empty_scans = 0
    # A scan can miss a process that is just being started.
    while empty_scans < 2:
        processes = marked(marker)
        kill(processes)
        empty_scans = 0 if processes else empty_scans + 1
        time.sleep(0.1)


def main(marker: str, home_to_remove: str = "") -> None:
    """
    Wait until standard input closes, then kill the Airflow and remove its directory.

    :param marker: Value of :data:`MARKER` in the environment of its processes.
    :param home_to_remove: Directory to remove afterwards; empty for none.
    """
    sys.stdin.read()
    end_all(marker)
    if home_to_remove:
        shutil.rmtree(home_to_remove)


if __name__ == "__main__":
    main(*sys.argv[1:])
