"""What Airflow's provider discovery reads. Nothing heavy is imported here: every Airflow process loads it."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from airflow_provider_etlworks import __version__

PACKAGE_NAME = "airflow-provider-etlworks"
CONNECTION_TYPE = "etlworks"
DEFAULT_CONN_ID = "etlworks_default"

CONNECTION_FIELDS: dict[str, dict[str, Any]] = {
    "tenant_id": {
        "label": "Tenant",
        "description": "For super admins: switch to this tenant after log-in.",
        "schema": {"type": ["string", "null"]},
    },
    "verify": {
        "label": "Verify certificate",
        "description": "true, false, or the path of a CA bundle on the Airflow machines. Default: true.",
        "schema": {"type": ["string", "null"], "examples": ["true", "false", "/etc/ssl/certs/our-ca.pem"]},
    },
    "proxy": {
        "label": "Proxy",
        "description": "URL of an HTTP proxy. Default: the environment's (HTTPS_PROXY, NO_PROXY).",
        "schema": {"type": ["string", "null"]},
    },
    "connect_timeout": {
        "label": "Connect timeout (s)",
        "description": "Seconds to wait for a connection. Default: 10.",
        "schema": {"type": ["number", "null"], "minimum": 0.1},
    },
    "read_timeout": {
        "label": "Read timeout (s)",
        "description": "Seconds to wait for the next part of an answer. Default: 30.",
        "schema": {"type": ["number", "null"], "minimum": 0.1},
    },
    "requests_per_minute": {
        "label": "Requests per minute",
        "description": "This process's share of the organization's limit; 0 means no limit. Default: 300.",
        "schema": {"type": ["integer", "null"], "minimum": 0},
    },
    "stop_path": {
        "label": "Stop path",
        "description": "Path of the stop call, which Etlworks does not document publicly. "
        "Default: /v1/flows/{flow_id}/stop?auditId={audit_id}",
        "schema": {"type": ["string", "null"], "examples": ["/v1/flows/{flow_id}/stop?auditId={audit_id}"]},
    },
    "ui_url": {
        "label": "Link to a run",
        "description": "What 'Open in Etlworks' opens: https://…, with {flow_id} and {audit_id}. "
        "Default: Etlworks's start page, since it documents no address of a run.",
        "schema": {"type": ["string", "null"]},
    },
    "run_key_parameter": {
        "label": "Run key parameter",
        "description": "Name of a flow parameter that every start fills with a unique key, to recognize its run. "
        "Default: none.",
        "schema": {"type": ["string", "null"]},
    },
}
"""The fields in the connection's Extra: name, label, help, and type. The form, the checks and the README follow it."""

FIELD_BEHAVIOUR: dict[str, Any] = {
    "hidden-fields": [],
    "relabeling": {"password": "Password or API key", "schema": "Scheme", "login": "Login (empty: API key)"},
    "placeholders": {
        "host": "app.etlworks.com",
        "schema": "https",
        "login": "leave empty to use an API key",
        "password": "the login's password, or an API key",
        "port": "443. Without a port, Airflow 3.3.2 cannot test the connection",
        # Only Airflow 2 shows those of the other fields; Airflow 3 offers the examples above.
        "verify": "true",
        "proxy": "http://proxy.example.com:3128",
        "connect_timeout": "10",
        "read_timeout": "30",
        "requests_per_minute": "300",
        "stop_path": "/v1/flows/{flow_id}/stop?auditId={audit_id}",
    },
}
"""How the form shows the fields: labels of those that every connection has, and what is shown while one is empty."""


def get_provider_info() -> dict[str, Any]:
    """
    Describe this provider to Airflow.

    :return: a dict that validates against Airflow's ``provider_info.schema.json``.
    """
    package = "airflow_provider_etlworks"
    name = "Etlworks"
    # Airflow 2 has no watchers of assets. compat.py would import too much here.
    triggers = ("asset", "flow", "sensor") if find_spec("airflow.sdk") else ("flow", "sensor")
    assets = [
        {
            "schemes": ["etlworks"],
            "handler": f"{package}.assets.normalized",
            "factory": f"{package}.assets.flow_asset",
        }
    ]
    return {
        "package-name": PACKAGE_NAME,
        "name": name,
        "description": "`Etlworks <https://etlworks.com/>`__ flows in Airflow: run them, follow them, depend on them.",
        "versions": [__version__],
        "integrations": [
            {"integration-name": name, "external-doc-url": "https://etlworks.com/", "tags": ["service"]},
        ],
        "hooks": [{"integration-name": name, "python-modules": [f"{package}.hooks.etlworks"]}],
        "operators": [
            {
                "integration-name": name,
                "python-modules": [
                    f"{package}.operators.{module}" for module in ("flow", "listener", "promotion", "schedule")
                ],
            }
        ],
        "sensors": [{"integration-name": name, "python-modules": [f"{package}.sensors.flow"]}],
        "triggers": [
            {
                "integration-name": name,
                "python-modules": [f"{package}.triggers.{module}" for module in triggers],
            }
        ],
        "connection-types": [
            {
                "connection-type": CONNECTION_TYPE,
                "hook-class-name": f"{package}.hooks.etlworks.EtlworksHook",
                "hook-name": name,
                "conn-fields": CONNECTION_FIELDS,
                "ui-field-behaviour": FIELD_BEHAVIOUR,
            }
        ],
        "asset-uris": assets,
        # As Airflow 2 calls them.
        "dataset-uris": assets,
        "extra-links": [f"{package}.links.EtlworksExecutionLink"],
        # Airflow before 3.2 has no commands of providers, and takes no notice.
        "cli": [f"{package}.cli.definition.get_etlworks_cli_commands"],
    }
