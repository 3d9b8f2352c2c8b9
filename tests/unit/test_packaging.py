from __future__ import annotations

import importlib
import importlib.metadata
import importlib.resources
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import airflow
import jsonschema
import pytest
from airflow.providers_manager import ProvidersManager

import airflow_provider_etlworks
from airflow_provider_etlworks.hooks.etlworks import EtlworksHook
from airflow_provider_etlworks.provider_info import CONNECTION_TYPE, PACKAGE_NAME, get_provider_info

if TYPE_CHECKING:
    from collections.abc import Iterator

VERSION = airflow_provider_etlworks.__version__


def schema_of_airflow(name: str) -> dict[str, Any]:
    schema: dict[str, Any] = json.loads((Path(airflow.__file__).parent / name).read_text())
    return schema


def modules_and_classes(info: dict[str, Any]) -> Iterator[str]:
    """Yield the dotted path of everything importable that the provider info names."""
    for group in ("hooks", "operators", "sensors", "triggers"):
        for integration in info.get(group, []):
            yield from integration["python-modules"]
    for connection_type in info["connection-types"]:
        yield connection_type["hook-class-name"]
    for assets in info["asset-uris"]:
        yield from (assets["handler"], assets["factory"])
    yield from info["extra-links"]
    yield from info["cli"]


def test_entry_point_is_the_provider_info() -> None:
    (entry_point,) = [
        entry_point
        for entry_point in importlib.metadata.entry_points(group="apache_airflow_provider")
        if entry_point.dist is not None and entry_point.dist.name == PACKAGE_NAME
    ]
    assert entry_point.load() is get_provider_info


def test_versions_agree() -> None:
    assert importlib.metadata.version(PACKAGE_NAME) == VERSION
    assert get_provider_info()["versions"] == [VERSION]


def test_provider_info_fits_airflows_schema() -> None:
    jsonschema.validate(get_provider_info(), schema_of_airflow("provider_info.schema.json"))


def test_provider_info_fits_apaches_schema() -> None:
    schema = schema_of_airflow("provider.yaml.schema.json")
    assert schema["additionalProperties"] is False
    # Only Apache's own providers have some of the required fields, such as the state of a release.
    del schema["required"]
    info = get_provider_info()
    if "asset-uris" not in schema["properties"]:  # Airflow 2
        del info["asset-uris"]
    if "cli" not in schema["properties"]:  # before Airflow 3.2
        del info["cli"]
    jsonschema.validate(info, schema)


def test_connection_form_fits_airflows_schema() -> None:
    jsonschema.validate(
        EtlworksHook.get_ui_field_behaviour(), schema_of_airflow("customized_form_field_behaviours.schema.json")
    )


# Modules that need a newer Airflow, and what they import from it.
NEEDS = {"airflow_provider_etlworks.triggers.asset": "airflow.sdk"}


@pytest.mark.parametrize("path", list(modules_and_classes(get_provider_info())))
def test_provider_info_names_exist(path: str) -> None:
    pytest.importorskip(NEEDS.get(path, "airflow"))
    try:
        importlib.import_module(path)
    except ModuleNotFoundError:
        module, _, name = path.rpartition(".")
        assert callable(getattr(importlib.import_module(module), name))


def test_airflow_discovers_the_provider() -> None:
    manager = ProvidersManager()
    assert manager.providers[PACKAGE_NAME].version == VERSION
    hook = manager.hooks[CONNECTION_TYPE]
    assert hook is not None
    assert hook.hook_class_name == "airflow_provider_etlworks.hooks.etlworks.EtlworksHook"
    assert hook.hook_name == "Etlworks"
    assert hook.connection_id_attribute_name == "etlworks_conn_id"
    assert "airflow_provider_etlworks.links.EtlworksExecutionLink" in manager.extra_links_class_names


def test_package_is_marked_as_typed() -> None:
    assert importlib.resources.files(airflow_provider_etlworks).joinpath("py.typed").is_file()
