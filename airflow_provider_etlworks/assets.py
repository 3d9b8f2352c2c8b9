"""
Flows as Airflow assets (datasets in Airflow 2): ``etlworks://<host>/flows/<id>``.

A DAG that is scheduled on such an asset runs after the flow. To update the asset, name it in the ``outlets`` of the
task that runs the flow, or watch the flow with ``EtlworksFlowFinishedTrigger`` (Airflow 3).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from airflow_provider_etlworks import client
from airflow_provider_etlworks.compat import Asset

if TYPE_CHECKING:
    from urllib.parse import SplitResult

SCHEME = "etlworks"

_PATH = re.compile(r"/flows/0*([1-9][0-9]*)/?")


def flow_uri(flow_id: int | str, host: str = "app.etlworks.com") -> str:
    """
    Return the URI of a flow.

    :param flow_id: the flow.
    :param host: the instance, written as in the connection's field Host. (A DAG file should not read the connection.)
    :return: such as ``etlworks://app.etlworks.com/flows/12345``.
    :raises ValueError: the flow or the host is not valid; the message says which.
    """
    netloc = urlsplit(client.root_url(host)).netloc
    return normalized(urlsplit(f"{SCHEME}://{netloc}/flows/{flow_id}")).geturl()


def flow_asset(flow_id: int | str, host: str = "app.etlworks.com", **more: Any) -> Asset:
    """
    Return a flow as an asset; in Airflow 2, as a dataset. Airflow uses this function as the scheme's factory.

    :param flow_id: the flow.
    :param host: the instance, as in :func:`flow_uri`.
    :param more: other arguments of Airflow's class, such as ``name``, ``group``, ``extra`` and ``watchers``.
    :raises ValueError: the flow or the host is not valid.
    """
    return Asset(uri=flow_uri(flow_id, host), **more)


def normalized(parts: SplitResult) -> SplitResult:
    """
    Check a URI, and return its normal form. Airflow calls this for each asset with our scheme.

    :param parts: the URI.
    :return: the URI with the host in lower case, and without leading zeros in the id.
    :raises ValueError: it is not a flow's URI.
    """
    path = _PATH.fullmatch(parts.path)
    wrong = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path} is not a flow's URI: "
    if "@" in parts.netloc:
        raise ValueError(f"{wrong}it contains credentials.")
    if not parts.hostname or (parts.port == 0):
        raise ValueError(f"{wrong}it has no host. Write it like {SCHEME}://app.etlworks.com/flows/12345.")
    if path is None or parts.query or parts.fragment:
        raise ValueError(f"{wrong}what follows the host must be /flows/ and the flow's id, such as /flows/12345.")
    return parts._replace(netloc=parts.netloc.lower(), path=f"/flows/{path[1]}")
