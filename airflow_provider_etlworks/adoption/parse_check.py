"""
Does Airflow accept a DAG file? It is parsed as Airflow's DAG processor parses it, in a process of its own.

``python -m airflow_provider_etlworks.adoption.parse_check FILE`` prints a line of JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from airflow_provider_etlworks import compat
from airflow_provider_etlworks.client.errors import EtlworksError

_LONGEST_WAIT = 300.0
_MARK = "etlworks-parse-check: "


def check_dag_file(text: str, dag_ids: list[str]) -> None:
    """
    Let Airflow parse the text of a DAG file.

    :param text: the text.
    :param dag_ids: the ids of its DAGs.
    :raises EtlworksError: Airflow does not find exactly these DAGs; the message has Airflow's reason.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "adopted.py"
        file.write_text(text, encoding="utf-8")
        try:
            done = subprocess.run(  # noqa: S603  # our own module
                [sys.executable, "-m", __name__, str(file)],
                env={**os.environ, "AIRFLOW__CORE__LOAD_EXAMPLES": "False"},
                capture_output=True,
                text=True,
                errors="replace",
                timeout=_LONGEST_WAIT,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise EtlworksError(f"The DAG file was not parsed within {_LONGEST_WAIT:g} s.") from None
    result = next((line for line in done.stdout.splitlines() if line.startswith(_MARK)), None)
    found = json.loads(result.removeprefix(_MARK)) if result else {"dag_ids": [], "errors": [done.stderr]}
    if found["errors"] or found["dag_ids"] != sorted(dag_ids):
        # The last line of a traceback names the error.
        reason = (
            "; ".join(each.strip().rpartition("\n")[2] for each in found["errors"])
            or f"it finds the DAGs {', '.join(found['dag_ids']) or 'none'}"
        )
        raise EtlworksError(f"Airflow does not accept the DAG file: {reason}")


def _parse(path: str) -> dict[str, Any]:
    bag = compat.DagBag(path)
    return {"dag_ids": sorted(bag.dags), "errors": list(bag.import_errors.values())}


if __name__ == "__main__":
    parsed = _parse(sys.argv[1])
    sys.stdout.write(f"\n{_MARK}{json.dumps(parsed)}\n")
