"""
One try of a promotion task in a process of its own, which can be measured and killed.

It reads what to do from standard input, as JSON, and prints the result and its memory as the last line.
"""

from __future__ import annotations

import json
import sys
from datetime import datetime, timezone
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from support.state import FileStore


def peak() -> int:
    """Return the most memory that this process has had, in bytes. (What getrusage tells begins with its parent's.)"""
    (line,) = (each for each in Path("/proc/self/status").read_text().splitlines() if each.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def carry_out(asked: dict[str, Any]) -> dict[str, Any]:
    """
    Run tasks, one after the other.

    :param asked: ``tasks``, each the name of an operator and its arguments; ``try_number``; ``started``, a Unix time;
        and ``store``, the file of the state store, where there is one.
    """
    from airflow_provider_etlworks.operators import promotion

    results, peaks = [], [peak()]
    for each in asked["tasks"]:
        operator = getattr(promotion, each["operator"])(task_id="task", **each["arguments"])
        started = datetime.fromtimestamp(asked["started"], tz=timezone.utc)
        context = {
            "ti": SimpleNamespace(start_date=started, try_number=asked["try_number"], max_tries=3),
            "dag_run": SimpleNamespace(start_date=started),
        }
        if asked.get("store"):
            context["task_state_store"] = FileStore(asked["store"])
        results.append(operator.execute(context))
        peaks.append(peak())
    return {"results": results, "peaks": peaks}


if __name__ == "__main__":
    print(json.dumps(carry_out(json.load(sys.stdin))))  # noqa: T201  # what the test reads
