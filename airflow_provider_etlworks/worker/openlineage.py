"""The OpenLineage facets of a task's run, if the OpenLineage provider is installed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attrs import make_class

if TYPE_CHECKING:
    from collections.abc import Mapping

    from airflow.providers.openlineage.extractors import OperatorLineage

RUN_FACET = "etlworks_run"
JOB_FACET = "etlworks_flow"

_RUN_FIELDS = {
    "flowId": "flow_id",
    "auditId": "audit_id",
    "status": "status",
    "startedAt": "started_at",
    "endedAt": "ended_at",
    "durationSeconds": "duration_seconds",
    "records": "records",
    "url": "url",
}


def lineage_of(flow_id: Any, run: Mapping[str, Any] | None) -> OperatorLineage[Any, Any] | None:
    """
    Return the facets of a run: ``etlworks_run`` and ``externalQuery`` of the run, ``etlworks_flow`` of the job.

    :param flow_id: the flow, as the task was given it; it counts if no run is known.
    :param run: the operator's dict; ``None`` if no run is known. Fields that it lacks are left out.
    :return: ``None`` if OpenLineage, or its provider, is not installed.
    """
    try:
        from airflow.providers.openlineage.extractors import OperatorLineage
        from openlineage.client.facet_v2 import JobFacet, RunFacet, external_query_run
    except ImportError:
        return None
    digits = str(flow_id)
    known_run = run or {"flow_id": int(digits) if digits.isascii() and digits.isdigit() else None}
    known = {name: known_run[ours] for name, ours in _RUN_FIELDS.items() if known_run.get(ours) is not None}
    flow = {"flowId": known["flowId"]} if "flowId" in known else {}
    # OpenLineage's facets are attrs classes, which are made here since what they derive from may not be installed.
    run_facet = make_class("EtlworksRunFacet", list(known), bases=(RunFacet,))(**known)
    job_facet = make_class("EtlworksFlowFacet", list(flow), bases=(JobFacet,))(**flow)
    run_facets: dict[str, Any] = {RUN_FACET: run_facet}
    if "auditId" in known:
        run_facets["externalQuery"] = external_query_run.ExternalQueryRunFacet(
            externalQueryId=str(known["auditId"]), source="etlworks"
        )
    return OperatorLineage(run_facets=run_facets, job_facets={JOB_FACET: job_facet})
