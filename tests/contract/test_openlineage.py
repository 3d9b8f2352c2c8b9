"""What OpenLineage is told of a run, by its own provider's extractor where that is installed."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from support.etlworks import Etlworks
from support.task import FLOW

from airflow_provider_etlworks.operators.flow import EtlworksRunFlowOperator
from airflow_provider_etlworks.operators.listener import EtlworksHttpListenerOperator
from airflow_provider_etlworks.sandbox import hang_up
from airflow_provider_etlworks.worker.openlineage import lineage_of

if TYPE_CHECKING:
    from collections.abc import Iterator

RUN = {"flow_id": FLOW, "audit_id": 2, "status": "success", "records": None, "url": "https://app.etlworks.com"}


@pytest.fixture
def etlworks(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Iterator[Etlworks]:
    with Etlworks(monkeypatch, caplog) as started:
        yield started


def told_by(operator: Any, *, failed: bool = False) -> dict[str, dict[str, Any]]:
    """Take the facets on the way that the provider's listener takes them, and write them as it sends them."""
    extractors = pytest.importorskip("airflow.providers.openlineage.extractors.base")
    serde = pytest.importorskip("openlineage.client.serde").Serde
    extractor = extractors.DefaultExtractor(operator)
    ti = SimpleNamespace(task=operator)
    lineage = extractor.extract_on_failure(ti) if failed else extractor.extract_on_complete(ti)
    facets = {**lineage.run_facets, **lineage.job_facets}
    written = {name: json.loads(serde.to_json(facet)) for name, facet in facets.items()}
    return {name: {key: each[key] for key in each if not key.startswith("_")} for name, each in written.items()}


@pytest.mark.parametrize("deferrable", [False, True])
def test_run_facet_has_ids_status_and_records(etlworks: Etlworks, deferrable: bool) -> None:
    etlworks.flow(running=30, records=4711)
    operators: list[EtlworksRunFlowOperator] = []
    task = etlworks.task(deferrable=deferrable)
    make = task.operator
    task.operator = lambda: operators.append(make()) or operators[-1]  # type: ignore[method-assign, func-returns-value]
    result = task.run().result
    assert result is not None
    # The task that goes on after the triggerer is not the one that started the run.
    assert len(operators) == 1 + deferrable

    told = told_by(operators[-1])
    assert told["etlworks_run"] == {
        "flowId": FLOW,
        "auditId": result["audit_id"],
        "status": "success",
        "startedAt": result["started_at"],
        "endedAt": result["ended_at"],
        "durationSeconds": 30.0,
        "records": 4711,
        "url": result["url"],
    }
    assert told["externalQuery"] == {"externalQueryId": str(result["audit_id"]), "source": "etlworks"}
    assert told["etlworks_flow"] == {"flowId": FLOW}


def test_failed_run_has_a_facet(etlworks: Etlworks) -> None:
    etlworks.flow(ends="error")
    operator = EtlworksRunFlowOperator(task_id="run_flow", flow_id=FLOW)
    task = etlworks.task()
    task.operator = lambda: operator  # type: ignore[method-assign]
    assert task.run().colour == "failed"
    assert told_by(operator, failed=True)["etlworks_run"]["status"] == "error"


def test_facet_without_a_run_has_no_id(etlworks: Etlworks) -> None:
    etlworks.sandbox.fault("GET", f"/rest/v1/executions/{FLOW}", hang_up(), times=None)
    operator = EtlworksRunFlowOperator(task_id="run_flow", flow_id=str(FLOW))
    task = etlworks.task()
    task.operator = lambda: operator  # type: ignore[method-assign]
    assert task.run().colour == "failed"
    told = told_by(operator, failed=True)
    assert told == {"etlworks_run": {"flowId": FLOW}, "etlworks_flow": {"flowId": FLOW}}


def test_unknown_flow_is_not_an_error() -> None:
    by_name = EtlworksRunFlowOperator(task_id="run_flow", flow_name="{{ params.flow }}")
    listener = EtlworksHttpListenerOperator(task_id="send", path="orders/new")
    assert told_by(by_name) == told_by(listener, failed=True) == {"etlworks_run": {}, "etlworks_flow": {}}


@pytest.mark.parametrize("missing", ["openlineage", "airflow.providers.openlineage"])
def test_nothing_is_reported_without_openlineage(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [name for name in sys.modules if name.startswith(f"{missing}.")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, missing, None)
    operator = EtlworksRunFlowOperator(task_id="run_flow", flow_id=FLOW)
    assert operator.get_openlineage_facets_on_complete(None) is None
    assert lineage_of(FLOW, RUN) is None
