from __future__ import annotations

import importlib
import importlib.metadata
import importlib.resources
import json
import re
import runpy
from pathlib import Path
from types import SimpleNamespace
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


@pytest.mark.parametrize("path", list(modules_and_classes(get_provider_info())))
def test_provider_info_names_exist(path: str) -> None:
    try:
        importlib.import_module(path)
    except ModuleNotFoundError:
        module, _, name = path.rpartition(".")
        assert callable(getattr(importlib.import_module(module), name))


def test_provider_info_names_every_module_that_airflow_can_import() -> None:
    package = Path(airflow_provider_etlworks.__file__).parent
    named = set(modules_and_classes(get_provider_info()))
    for group in ("hooks", "operators", "sensors", "triggers"):
        for file in (package / group).glob("*.py"):
            path = f"{package.name}.{group}.{file.stem}"
            if file.stem in ("__init__", "base") or path in named or group == "hooks":
                continue
            with pytest.raises(ImportError):
                importlib.import_module(path)


def test_airflow_discovers_the_provider() -> None:
    manager = ProvidersManager()
    assert manager.providers[PACKAGE_NAME].version == VERSION
    hook = manager.hooks[CONNECTION_TYPE]
    assert hook is not None
    assert hook.hook_class_name == "airflow_provider_etlworks.hooks.etlworks.EtlworksHook"
    assert hook.hook_name == "Etlworks"
    assert hook.connection_id_attribute_name == "etlworks_conn_id"
    assert "airflow_provider_etlworks.links.EtlworksExecutionLink" in manager.extra_links_class_names


ROOT = Path(__file__).parents[2]
check_release = SimpleNamespace(**runpy.run_path(str(ROOT / ".ci" / "check_release.py")))

READY = b"""Metadata-Version: 2.4
Name: airflow-provider-etlworks
Version: 1.2.3
Project-URL: Homepage, https://code.example.com/etlworks
Project-URL: Source, https://code.example.com/etlworks
Project-URL: Issues, https://code.example.com/etlworks/issues
Project-URL: Changelog, https://code.example.com/etlworks/blob/main/CHANGELOG.md
Project-URL: Documentation, https://etlworks.example.com

[The connection](https://code.example.com/etlworks/blob/main/docs/connection.md)
"""
DATED = "# Changelog\n\n## Unreleased\n\n## 1.2.3 - 2026-12-01\n\nMore.\n"


def test_release_that_is_ready_passes() -> None:
    assert list(check_release.problems("v1.2.3", READY, DATED)) == []


@pytest.mark.parametrize(
    ("tag", "metadata", "changelog", "problem"),
    [
        ("v1.2.4", READY, DATED, "The tag is v1.2.4, but the package's version is 1.2.3."),
        ("v1.2.3rc1", READY.replace(b"1.2.3", b"1.2.3rc1"), DATED, "1.2.3rc1 is not a final version."),
        ("v1.2.3", READY.replace(b"Project-URL: Issues", b"X-Issues"), DATED, "The link Issues is missing"),
        (
            "v1.2.3",
            READY.replace(b"https://etlworks.example.com", b"http://localhost"),
            DATED,
            "Documentation is missing",
        ),
        (
            "v1.2.3",
            READY.replace(b"(https://code.example.com/etlworks/blob/main/", b"("),
            DATED,
            "docs/connection.md does not",
        ),
        ("v1.2.3", READY + b"It is not yet on PyPI.", DATED, "says that the package is not yet on PyPI"),
        ("v1.2.3", READY, DATED.replace(" - 2026-12-01", ""), "CHANGELOG.md has no section '## 1.2.3 - YYYY-MM-DD'."),
        ("v1.2.3", READY, DATED.replace("Unreleased\n", "Unreleased\n\n- A change.\n"), "changes under Unreleased"),
    ],
)
def test_release_that_is_not_ready_is_refused(tag: str, metadata: bytes, changelog: str, problem: str) -> None:
    assert any(problem in each for each in check_release.problems(tag, metadata, changelog))


def addresses_hook(**addresses: str) -> dict[str, Any]:
    """Return what hatch_build.py adds to the package's metadata."""
    hook = runpy.run_path(str(ROOT / "hatch_build.py"))["AddressesHook"]
    metadata: dict[str, Any] = {}
    hook(str(ROOT), {"repository": "", "documentation": "", **addresses}).update(metadata)
    return metadata


def test_project_without_a_home_has_no_links() -> None:
    metadata = addresses_hook()
    assert metadata["urls"] == {}
    assert metadata["readme"]["text"] == (ROOT / "README.md").read_text()


def test_links_follow_from_two_addresses() -> None:
    home, site = "https://code.example.com/etlworks", "https://etlworks.example.com"
    metadata = addresses_hook(repository=home, documentation=site)
    assert set(metadata["urls"]) == set(check_release.LINKS)
    assert metadata["urls"]["Documentation"] == site
    targets = re.findall(r"\]\(([^)]+)\)", metadata["readme"]["text"])
    assert f"{home}/blob/main/docs/connection.md" in targets
    assert [target for target in targets if not target.startswith(("https://", "#"))] == []


def test_package_is_marked_as_typed() -> None:
    assert importlib.resources.files(airflow_provider_etlworks).joinpath("py.typed").is_file()
