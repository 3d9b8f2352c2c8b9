"""Links from a task to Etlworks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow_provider_etlworks.compat import BaseOperatorLink, get_xcom

if TYPE_CHECKING:
    from airflow.sdk import BaseOperator

AUDIT_ID_KEY = "audit_id"
"""XCom key of the run's audit id, set as soon as it is known."""

EXECUTION_LINK_KEY = "_link_EtlworksExecutionLink"
"""XCom key under which a task keeps the address of its run. Airflow 3 shows the link from there."""


class EtlworksExecutionLink(BaseOperatorLink):
    """Opens the run in Etlworks; there from the moment that Etlworks accepted it."""

    name = "Open in Etlworks"

    @property
    def xcom_key(self) -> str:
        """The XCom key that holds the address."""
        return EXECUTION_LINK_KEY

    def get_link(self, operator: BaseOperator, *, ti_key: Any) -> str:  # Airflow passes it
        """
        Return the address of the task's run; empty before there is one.

        :param operator: the task.
        :param ti_key: which of its instances.
        """
        return get_xcom(ti_key, EXECUTION_LINK_KEY) or ""
