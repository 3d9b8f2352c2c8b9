"""
Ends the processes of a local Airflow as soon as the process that started it is done with them, or is gone.

Airflow's processes start further processes, some in sessions of their own, so neither a process group nor a process
tree holds them together. Their environment does: each inherits the variable :data:`MARKER`.

``LocalAirflow`` starts this file as a process of its own and holds the other end of its standard input. That end closes
when ``LocalAirflow`` is left, and also when its process is killed, so there is one way out for every case.
"""

import shutil
import sys
import time
from collections.abc import Iterable
from contextlib import suppress

import psutil

MARKER = "ETLWORKS_SANDBOX_AIRFLOW"
"""Environment variable whose value tells which local Airflow a process belongs to."""


def alive(process: psutil.Process) -> bool:
    """
    Tell whether a process is still there and not only waiting to be collected by its parent.

    :param process: The process.
    :return: ``True`` while it can still do something.
    """
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def tree(pid: int) -> list[psutil.Process]:
    """
    Find a process and everything it started.

    :param pid: Process id.
    :return: The process first, then its descendants; nothing if it is gone.
    """
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def marked(marker: str) -> set[psutil.Process]:
    """
    Find the living processes of one local Airflow.

    :param marker: Value of :data:`MARKER` in their environment.
    :return: Those processes and all their descendants.
    """
    found: set[psutil.Process] = set()
    for process in psutil.process_iter():
        # Processes of other users cannot be read, and those that end meanwhile need no ending.
        with suppress(psutil.AccessDenied, psutil.NoSuchProcess, OSError):
            if process.environ().get(MARKER) == marker:
                found.update(tree(process.pid))
    return {process for process in found if alive(process)}


def kill(processes: Iterable[psutil.Process]) -> None:
    """
    Kill processes at once (SIGKILL).

    :param processes: Which ones; those that are gone already are passed over.
    """
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def end_all(marker: str) -> None:
    """
    Kill every process of one local Airflow; returns when none is left.

    :param marker: Value of :data:`MARKER` in their environment.
    """
    empty_looks = 0
    # One look can miss a process that is just being started.
    while empty_looks < 2:
        processes = marked(marker)
        kill(processes)
        empty_looks = 0 if processes else empty_looks + 1
        time.sleep(0.1)


def main(marker: str, home_to_remove: str = "") -> None:
    """
    Wait for the end of standard input, then end the Airflow and remove its directory.

    :param marker: Value of :data:`MARKER` in the environment of its processes.
    :param home_to_remove: Directory to remove afterwards; empty leaves it.
    """
    sys.stdin.read()
    end_all(marker)
    if home_to_remove:
        shutil.rmtree(home_to_remove)


if __name__ == "__main__":
    main(*sys.argv[1:])
