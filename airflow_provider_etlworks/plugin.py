"""
The plugin that Airflow's API server loads for Etlworks's webhook. Airflow 3 only; on Airflow 2 it has no app.

Every Airflow process imports this, so it imports only what Airflow has imported already.
"""

from __future__ import annotations

import logging
from functools import cached_property
from importlib.util import find_spec
from typing import Any

from airflow.plugins_manager import AirflowPlugin

log = logging.getLogger(__name__)


class EtlworksWebhookPlugin(AirflowPlugin):
    """Receives what Etlworks posts when runs end, if the connection ``etlworks_webhook`` has a shared secret."""

    name = "etlworks_webhook"

    @cached_property
    def fastapi_apps(self) -> list[dict[str, Any]]:  # type: ignore[override]  # Airflow declares a variable
        """The app, once: the connection is read when the API server starts; without it, the list is empty."""
        if not find_spec("fastapi"):  # Airflow 2
            return []
        from airflow_provider_etlworks.compat import AirflowNotFoundException, BaseHook
        from airflow_provider_etlworks.webhook.settings import URL_PREFIX, WEBHOOK_CONN_ID, webhook_settings

        try:
            settings = webhook_settings(BaseHook.get_connection(WEBHOOK_CONN_ID))
        except (AirflowNotFoundException, ImportError):  # outside of tasks, Airflow 3.1 raises the latter
            return []
        except Exception as error:  # noqa: BLE001  # whatever it is, the API server must start
            log.error("Etlworks's webhook is off: %s", error)  # noqa: TRY400  # a traceback might show the connection
            return []
        from airflow_provider_etlworks.webhook.app import create_app

        return [{"app": create_app(settings), "url_prefix": URL_PREFIX, "name": "Etlworks webhook"}]
