"""
How much an operator's import adds to what every DAG file imports anyway.

Each figure comes from fresh interpreters: ``from airflow.sdk import DAG, BaseOperator`` first (``airflow.models`` on
Airflow 2), then, on the clock, the operator's module. Run: ``uv run python benchmarks/import_time.py``.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import subprocess
import sys

OURS = "airflow_provider_etlworks.operators.flow"
OTHERS = (
    "airflow.providers.standard.operators.bash",
    "airflow.providers.smtp.operators.smtp",
    "airflow.providers.http.operators.http",
    "airflow.providers.common.sql.operators.sql",
)
LIMIT_MS = 20.0

SCRIPT = """
import time, warnings
warnings.simplefilter("ignore")
try:
    from airflow.sdk import DAG, BaseOperator
except ImportError:
    from airflow.models import DAG, BaseOperator
began = time.perf_counter()
import {module}
print((time.perf_counter() - began) * 1000)
"""


def added_ms(module: str) -> float:
    """Import a module once, in a fresh interpreter."""
    script = SCRIPT.format(module=module)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return float(done.stdout.splitlines()[-1])


def is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure what an operator's import adds to Airflow's own.")
    parser.add_argument("--repeat", type=int, default=7, help="interpreters for each figure (default: %(default)s)")
    repeat = parser.parse_args().repeat
    modules = [OURS, *filter(is_installed, OTHERS)]
    # In turns, so that whatever else the machine does meanwhile falls on all of them.
    rounds = [{module: added_ms(module) for module in modules} for _ in range(repeat)]
    medians = {module: statistics.median(each[module] for each in rounds) for module in modules}
    print(f"{'module':<46}{'median ms':>10}{'fastest':>10}{'x ours':>8}")
    for module, median in medians.items():
        fastest = min(each[module] for each in rounds)
        print(f"{module:<46}{median:>10.1f}{fastest:>10.1f}{median / medians[OURS]:>8.1f}")
    kept = medians[OURS] <= LIMIT_MS
    print(f"Ours may add {LIMIT_MS:.0f} ms: {'kept' if kept else 'NOT kept'}.")
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
