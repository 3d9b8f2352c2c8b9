"""Flows as assets: one URI for one flow, however it is written, and an error for anything else."""

from __future__ import annotations

import warnings
from typing import Any
from urllib.parse import urlsplit

import pytest
from airflow.providers_manager import ProvidersManager

from airflow_provider_etlworks.assets import flow_asset, flow_uri, normalized
from airflow_provider_etlworks.client.errors import EtlworksConfigError
from airflow_provider_etlworks.compat import Asset

URI = "etlworks://etl.example.com/flows/12345"


@pytest.mark.parametrize(
    ("flow_id", "host"),
    [
        (12345, "etl.example.com"),
        ("12345", "https://etl.example.com/rest/v1/"),
        ("0012345", "ETL.example.com:443"),
    ],
)
def test_flow_has_one_uri(flow_id: Any, host: str) -> None:
    assert flow_uri(flow_id, host) == URI
    assert flow_asset(flow_id, host).uri == URI


def test_default_host_is_the_cloud() -> None:
    assert flow_uri(7) == "etlworks://app.etlworks.com/flows/7"


def test_port_stays_in_the_uri() -> None:
    assert flow_uri(7, "http://localhost:8085") == "etlworks://localhost:8085/flows/7"


@pytest.mark.parametrize("written", [URI, f"{URI}/", "ETLWORKS://ETL.Example.com/flows/012345"])
def test_airflow_normalizes_our_uris(written: str) -> None:
    assert Asset(uri=written).uri == URI


def test_other_arguments_reach_airflows_class() -> None:
    assert flow_asset(7, extra={"owner": "alice"}).extra == {"owner": "alice"}


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("etlworks://etl.example.com/flows/nightly", "/flows/ and the flow's id"),
        ("etlworks://etl.example.com/flows/0", "/flows/ and the flow's id"),
        ("etlworks://etl.example.com/flows/1/runs/2", "/flows/ and the flow's id"),
        ("etlworks://etl.example.com/schedules/1", "/flows/ and the flow's id"),
        ("etlworks://etl.example.com/flows/1?x=1", "/flows/ and the flow's id"),
        ("etlworks:///flows/1", "has no host"),
        ("etlworks://alice:secret@etl.example.com/flows/1", "contains credentials"),
    ],
)
def test_invalid_uri_is_refused(uri: str, said: str) -> None:
    with pytest.raises(ValueError, match=said) as refused:
        normalized(urlsplit(uri))
    assert "secret" not in str(refused.value)


def test_airflow_refuses_an_invalid_uri() -> None:
    # Airflow 2 only warns, unless it is strict.
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        with pytest.raises((ValueError, UserWarning), match="not a flow's URI"):
            Asset(uri="etlworks://etl.example.com/flows/nightly")


@pytest.mark.parametrize(("flow_id", "host"), [("nightly", "etl.example.com"), (-1, "etl.example.com"), (7, "")])
def test_invalid_flow_or_host_is_refused(flow_id: Any, host: str) -> None:
    with pytest.raises((ValueError, EtlworksConfigError)):
        flow_asset(flow_id, host)


def test_airflow_knows_the_scheme() -> None:
    manager = ProvidersManager()
    kind = "asset" if hasattr(manager, "asset_uri_handlers") else "dataset"
    assert getattr(manager, f"{kind}_uri_handlers")["etlworks"] is normalized
    assert getattr(manager, f"{kind}_factories")["etlworks"] is flow_asset
