"""Links from a task to Etlworks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow_provider_etlworks.compat import BaseOperatorLink, get_xcom

if TYPE_CHECKING:
    from airflow.sdk import BaseOperator

AUDIT_ID_KEY = "audit_id"
"""XCom key of the run's audit id, set as soon as it is known."""

EXECUTION_LINK_KEY = "_link_EtlworksExecutionLink"
"""XCom key of the address of a task's run. Airflow 3 reads the link from it."""


LEADS_TO_START_PAGE = (
    "'Open in Etlworks' leads to Etlworks's start page, not to run %s: "
    "set the connection's ui_url to the address of a run."
)
"""What the log says if the connection has no ``ui_url``, since Etlworks documents no address of a run."""


class EtlworksExecutionLink(BaseOperatorLink):
    """Opens the run in Etlworks. The link appears once Etlworks has accepted the run."""

    name = "Open in Etlworks"

    @property
    def xcom_key(self) -> str:
        """The XCom key that holds the address."""
        return EXECUTION_LINK_KEY

    def get_link(self, operator: BaseOperator, *, ti_key: Any) -> str:  # Airflow passes ti_key
        """
        Return the address of the task's run; empty before there is a run.

        :param operator: the task.
        :param ti_key: the key of the task instance.
        """
        return get_xcom(ti_key, EXECUTION_LINK_KEY) or ""
