"""
What an import costs and causes. Each test has a fresh interpreter, since this one has imported everything already.

Each also does what must not happen, last, and looks whether that is seen.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

# What every DAG file imports anyway.
DAG_FILE_IMPORT = """
import warnings
warnings.simplefilter("ignore")
try:
    from airflow.sdk import DAG, BaseOperator
except ImportError:  # Airflow 2
    from airflow.models import DAG, BaseOperator
"""


def printed_by(script: str) -> Any:
    """Run a script in an interpreter of its own, and read the JSON in its last line."""
    done = subprocess.run([sys.executable, "-c", DAG_FILE_IMPORT + script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_operator_loads_nothing_heavy() -> None:
    loaded, by_hook = printed_by("""
import json, sys
already = set(sys.modules)
from airflow_provider_etlworks.operators.flow import EtlworksRunFlowOperator
loaded = set(sys.modules) - already
from airflow_provider_etlworks.hooks.etlworks import EtlworksHook
by_hook = set(sys.modules) - already - loaded
print(json.dumps([sorted(loaded), sorted(by_hook)]))
""")
    assert "airflow_provider_etlworks.operators.flow" in loaded
    heavy = {"requests", "aiohttp", "tenacity", "jwt", "asgiref", "yaml"}
    assert {module for module in loaded if module.split(".")[0] in heavy} == set()
    own = {module.partition(".")[2] for module in loaded if module.startswith("airflow_provider_etlworks.")}
    assert own <= {
        "client", "client.values", "compat", "links", "operators", "operators.base", "operators.flow",
        "operators.listener", "provider_info", "runs", "runs.defaults",
    }  # fmt: skip
    assert "airflow_provider_etlworks.client.endpoints" in by_hook


def test_promotion_operators_load_nothing_heavy() -> None:
    (loaded,) = printed_by("""
import json, sys
already = set(sys.modules)
from airflow_provider_etlworks.operators.promotion import EtlworksExportOperator, EtlworksImportOperator
print(json.dumps([sorted(set(sys.modules) - already)]))
""")
    own = {module.partition(".")[2] for module in loaded if module.startswith("airflow_provider_etlworks.")}
    assert "operators.promotion" in own
    assert own <= {
        "client", "client.values", "compat", "links", "operators", "operators.base", "operators.promotion",
        "provider_info",
    }  # fmt: skip
    assert not {"requests", "tenacity", "fsspec", "upath"} & set(loaded)


@pytest.mark.parametrize("trigger", ["triggers.asset", "triggers.flow", "triggers.sensor"])
def test_trigger_loads_nothing_before_it_runs(trigger: str) -> None:
    if trigger == "triggers.asset":
        pytest.importorskip("airflow.sdk", reason="Airflow 2 has no watchers of assets")
    (loaded,) = printed_by(f"""
import json, sys
import airflow.triggers.base
already = set(sys.modules)
import airflow_provider_etlworks.{trigger}
print(json.dumps([sorted(set(sys.modules) - already)]))
""")
    assert f"airflow_provider_etlworks.{trigger}" in loaded
    own = {"airflow_provider_etlworks", *(f"airflow_provider_etlworks.{each}" for each in (
        "client", "client.values", "provider_info", "runs", "runs.defaults", "runs.types", "triggerer",
        "triggerer.startup", "triggers", trigger,
    ))}  # fmt: skip
    assert set(loaded) <= own


def test_sensor_and_assets_load_nothing_heavy() -> None:
    loaded, by_hook = printed_by("""
import json, sys
try:
    from airflow.sdk import Asset, BaseSensorOperator
except ImportError:  # Airflow 2
    from airflow.datasets import Dataset
    from airflow.sensors.base import BaseSensorOperator
already = set(sys.modules)
from airflow_provider_etlworks.assets import flow_asset
from airflow_provider_etlworks.sensors.flow import EtlworksFlowExecutionSensor
loaded = set(sys.modules) - already
from airflow_provider_etlworks.hooks.etlworks import EtlworksHook
by_hook = set(sys.modules) - already - loaded
print(json.dumps([sorted(loaded), sorted(by_hook)]))
""")
    own = {module.partition(".")[2] for module in loaded if module.startswith("airflow_provider_etlworks.")}
    assert {"assets", "sensors.flow"} <= own <= {
        "assets", "client", "client.values", "compat", "links", "operators", "operators.base", "provider_info", "runs",
        "runs.defaults", "sensors", "sensors.flow",
    }  # fmt: skip
    heavy = {"requests", "aiohttp", "tenacity", "jwt", "asgiref", "yaml"}
    assert {module for module in loaded if module.split(".")[0] in heavy} == set()
    assert "airflow_provider_etlworks.runs.follow" in by_hook


def test_parsing_300_operators_sends_nothing() -> None:
    parsed, asked = printed_by("""
import json, socket, sys

try:
    from airflow.sdk.bases.hook import BaseHook
except ImportError:  # before Airflow 3.1
    from airflow.hooks.base import BaseHook

network, connections = [], []

def refuse(_, conn_id):
    connections.append(conn_id)
    raise LookupError(conn_id)

def refuse_network(event, _):
    if event.startswith("socket."):
        network.append(event)
        raise OSError("no network here")

BaseHook.get_connection = classmethod(refuse)
sys.addaudithook(refuse_network)

from airflow_provider_etlworks.operators.flow import EtlworksRunFlowOperator

with DAG("many", schedule=None) as dag:
    for number in range(300):
        EtlworksRunFlowOperator(task_id=f"run_{number}", flow_id=number, parameters={"day": "{{ ds }}"})
parsed = {"tasks": len(dag.tasks), "network": [*network], "connections": [*connections]}

try:
    socket.socket()
except OSError:
    pass
try:
    dag.tasks[0].hook.settings
except LookupError:
    pass
print(json.dumps([parsed, {"network": network, "connections": connections}]))
""")
    assert parsed == {"tasks": 300, "network": [], "connections": []}
    assert asked == {"network": ["socket.__new__"], "connections": ["etlworks_default"]}


def test_no_module_imports_deprecated_names() -> None:
    imported, ours, seen = printed_by("""
import importlib, importlib.util, json, pkgutil
import airflow_provider_etlworks

# A warning names the file whose line caused it. What Airflow's own lines cause is Airflow's.
def of(caught, place):
    kinds = (DeprecationWarning, PendingDeprecationWarning, FutureWarning)
    kept = (each for each in caught if issubclass(each.category, kinds) and each.filename.startswith(place))
    return [str(each.message) for each in kept]

# What Airflow must have brought.
needs = {
    "airflow_provider_etlworks.triggers.asset": "airflow.sdk",
    "airflow_provider_etlworks.triggerer.shared_stream": "airflow.triggers.shared_stream",
    "airflow_provider_etlworks.webhook.app": "fastapi",
}
imported = []
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for module in pkgutil.walk_packages(airflow_provider_etlworks.__path__, "airflow_provider_etlworks."):
        if importlib.util.find_spec(needs.get(module.name, "airflow")):
            importlib.import_module(module.name)
            imported.append(module.name)
ours = of(caught, airflow_provider_etlworks.__path__[0])

with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    try:
        from airflow.operators.dummy import DummyOperator
    except ImportError:  # Airflow 3
        from airflow.operators.bash import BashOperator
print(json.dumps([imported, ours, of(caught, "<string>")]))
""")
    examples = "airflow_provider_etlworks.sandbox.demo.examples"
    assert {"airflow_provider_etlworks.triggers.flow", examples} <= set(imported)
    assert ours == []
    assert len(seen) == 1
