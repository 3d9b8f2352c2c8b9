"""The connection: its form, its fields, and what is said of a field that cannot work."""

from __future__ import annotations

import importlib
import json
from dataclasses import MISSING, fields
from types import SimpleNamespace
from typing import Any

import pytest

from airflow_provider_etlworks.client.errors import EtlworksConfigError
from airflow_provider_etlworks.client.settings import ClientSettings
from airflow_provider_etlworks.hooks.connection import check_extra_field, settings_from
from airflow_provider_etlworks.hooks.etlworks import EtlworksHook
from airflow_provider_etlworks.provider_info import CONNECTION_FIELDS, FIELD_BEHAVIOUR, get_provider_info

FROM_THE_COMMON_FIELDS = {"root_url", "login", "password"}
SET_BY_THE_HOOK = {"max_overtime", "name"}


def connection(extra: Any = None, **changes: Any) -> Any:
    common = {
        "conn_id": "etl",
        "host": "etlworks.example.com",
        "port": None,
        "schema": None,
        "login": None,
        "password": "swordfish",
    }
    text = json.dumps(extra) if isinstance(extra, (dict, list)) else extra
    return SimpleNamespace(**{**common, **changes}, extra=text)


def test_form_checks_and_client_have_the_same_fields() -> None:
    settings = {each.name for each in fields(ClientSettings)}
    (declared,) = get_provider_info()["connection-types"]

    assert set(CONNECTION_FIELDS) == settings - FROM_THE_COMMON_FIELDS - SET_BY_THE_HOOK
    assert declared["conn-fields"] == CONNECTION_FIELDS
    assert declared["ui-field-behaviour"] == FIELD_BEHAVIOUR
    assert declared["connection-type"] == EtlworksHook.conn_type
    assert declared["hook-name"] == EtlworksHook.hook_name


def test_form_defaults_match_the_client() -> None:
    defaults = {each.name: each.default for each in fields(ClientSettings) if each.default is not MISSING}

    for name in ("connect_timeout", "read_timeout", "requests_per_minute", "stop_path"):
        said = CONNECTION_FIELDS[name]["description"].rpartition("Default: ")[2].rstrip(".")
        assert said == f"{defaults[name]:g}" if name != "stop_path" else said == defaults[name]


@pytest.mark.parametrize("name", CONNECTION_FIELDS)
def test_form_offers_and_allows_what_the_client_accepts(name: str) -> None:
    schema = CONNECTION_FIELDS[name]["schema"]
    placeholder = [FIELD_BEHAVIOUR["placeholders"][name]] if name in FIELD_BEHAVIOUR["placeholders"] else []

    for value in [*schema.get("examples", []), *placeholder]:
        check_extra_field(name, value)
    if "number" in schema["type"] or "integer" in schema["type"]:
        check_extra_field(name, str(schema["minimum"]))
        with pytest.raises(EtlworksConfigError, match=name):
            check_extra_field(name, str(schema["minimum"] - 1))


def test_airflow_2_refuses_what_would_fail_later() -> None:
    wtforms = pytest.importorskip("wtforms")
    pytest.importorskip("flask_appbuilder")
    # The names that Airflow 2 gives the fields.
    widgets = {f"extra__etlworks__{name}": field for name, field in EtlworksHook.get_connection_form_widgets().items()}
    form_class = type("ConnectionForm", (wtforms.Form,), widgets)

    def submitted(**fields: str) -> Any:
        data = {f"extra__etlworks__{name}": value for name, value in fields.items()}
        return form_class(importlib.import_module("werkzeug.datastructures").MultiDict(data))

    assert submitted().validate()
    assert submitted(read_timeout="60", verify="false", proxy="").validate()
    wrong = {"read_timeout": "soon", "requests_per_minute": "1.5", "stop_path": "v1/stop", "ui_url": "example.com"}
    form = submitted(**wrong)
    assert not form.validate()
    assert set(form.errors) == {f"extra__etlworks__{name}" for name in wrong}
    assert all(wrong[name.rpartition("__")[2]] in errors[0] for name, errors in form.errors.items())


def test_airflow_2_gets_the_same_form() -> None:
    pytest.importorskip("wtforms")
    pytest.importorskip("flask_appbuilder")

    widgets = EtlworksHook.get_connection_form_widgets()

    assert list(widgets) == list(CONNECTION_FIELDS)
    for name, unbound in widgets.items():
        assert unbound.args == (CONNECTION_FIELDS[name]["label"],)
        assert unbound.kwargs["description"] == CONNECTION_FIELDS[name]["description"]


def test_airflow_2_gets_the_same_field_behaviour() -> None:
    behaviour = EtlworksHook.get_ui_field_behaviour()

    assert behaviour == {
        "hidden_fields": FIELD_BEHAVIOUR["hidden-fields"],
        "relabeling": FIELD_BEHAVIOUR["relabeling"],
        "placeholders": FIELD_BEHAVIOUR["placeholders"],
    }


@pytest.mark.parametrize(
    ("given", "settings"),
    [
        (connection(), {"password": "swordfish", "login": None, "root_url": "https://etlworks.example.com"}),
        (connection(password=" swordfish\n"), {"password": "swordfish"}),
        (connection(login=" maria ", password=" with blanks "), {"login": "maria", "password": " with blanks "}),
        (connection(login="  "), {"login": None}),
        (connection(host="http://etl:8080/rest/"), {"root_url": "http://etl:8080"}),
        (connection(port=8443, schema="https"), {"root_url": "https://etlworks.example.com:8443"}),
        (
            connection(dict.fromkeys(CONNECTION_FIELDS, "")),
            {"verify": True, "read_timeout": 30.0, "connect_timeout": 10.0, "requests_per_minute": 300},
        ),
        (connection(dict.fromkeys(CONNECTION_FIELDS)), {"stop_path": "/v1/flows/{flow_id}/stop?auditId={audit_id}"}),
        (
            # As the form of Airflow 2 stores them: all texts.
            connection({"verify": "False", "read_timeout": "60", "connect_timeout": "2.5", "requests_per_minute": "0"}),
            {"verify": False, "read_timeout": 60.0, "connect_timeout": 2.5, "requests_per_minute": 0},
        ),
        *(
            (connection({"requests_per_minute": value}), {"requests_per_minute": 300})
            for value in (300, "300", 300.0, "300.0", " 300. ")
        ),
        (connection(host="2001:db8::5", port=8443), {"root_url": "https://[2001:db8::5]:8443"}),
        (connection({"verify": False}), {"verify": False}),
        (connection({"verify": "true"}), {"verify": True}),
        (connection({"verify": "/etc/ca.pem"}), {"verify": "/etc/ca.pem"}),
        (connection({"tenant_id": 12}), {"tenant_id": "12"}),
        (connection({"ui_url": "https://e/{flow_id}/{audit_id}"}), {"ui_url": "https://e/{flow_id}/{audit_id}"}),
        (connection({"stop_path": "/v1/stop/{audit_id}"}), {"stop_path": "/v1/stop/{audit_id}"}),
        (connection({"proxy": "http://proxy:3128"}), {"proxy": "http://proxy:3128"}),
    ],
)
def test_fields_become_settings(given: Any, settings: dict[str, Any]) -> None:
    read = settings_from(given)

    assert {name: getattr(read, name) for name in settings} == settings


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (connection(host=None), "has no Host. Write it like 'app.etlworks.com'"),
        (connection(host="  "), "has no Host"),
        (connection(password=None), "no credentials. It needs an API key in Password, or Login and Password"),
        (connection(password="  "), "no credentials"),
        (connection(login="maria", password=""), "no credentials. It needs a Password for its Login"),
        (connection(password="sword\nfish"), "Was a line break copied with it?"),
        (connection("no JSON: swordfish"), "Extra is not a JSON object"),
        (connection(["swordfish"]), "Extra is not a JSON object"),
        (connection({"read_timout": 5}), "unknown field 'read_timout'. Did you mean 'read_timeout'?"),
        (connection({"api_key": "swordfish"}), "unknown field 'api_key'"),
        (connection({"tenant_id": {"id": "swordfish"}}), "'tenant_id' is a dict; it must be text"),
        (connection({"verify": ["swordfish"]}), "'verify' is a list; it must be text"),
        (connection({"proxy": True}), "'proxy' is a bool; it must be text"),
        (connection({"connect_timeout": "soon"}), "'connect_timeout' is 'soon'; it must be a number of seconds"),
        (connection({"connect_timeout": 0}), "connect_timeout is 0.0; it is a number of seconds greater than 0"),
        (connection({"read_timeout": -1}), "read_timeout is -1.0; it is a number of seconds greater than 0"),
        (connection({"read_timeout": True}), "'read_timeout' is True; it must be a number of seconds"),
        (connection({"read_timeout": [1]}), "'read_timeout' is [1]; it must be a number of seconds"),
        (connection({"requests_per_minute": 1.5}), "'requests_per_minute' is 1.5; it must be a whole number"),
        (connection({"requests_per_minute": "many"}), "'requests_per_minute' is 'many'; it must be a whole number"),
        *(
            (connection({name: value}), f"{name}")
            for name in ("connect_timeout", "read_timeout", "requests_per_minute")
            for value in (float("nan"), float("inf"), "nan", "1e999", 10**400, "9" * 5_000, [float("nan")])
        ),
        (connection({"requests_per_minute": "1.5"}), "'requests_per_minute' is '1.5'; it must be a whole number"),
        (connection({"requests_per_minute": True}), "'requests_per_minute' is True; it must be a whole number"),
        (
            connection({"requests_per_minute": -1}),
            "requests_per_minute is -1; it is a whole number, and 0 means no limit",
        ),
        (connection({"stop_path": "v1/stop"}), "stop_path is 'v1/stop'; it begins with /"),
        (connection({"stop_path": "/v1/{run}"}), "may hold {flow_id} and {audit_id}"),
        (connection({"ui_url": "etlworks.example.com"}), "ui_url is 'etlworks.example.com'; it begins with http://"),
        (connection({"ui_url": "https://e/{"}), "ui_url is 'https://e/{'"),
    ],
)
def test_invalid_field_is_named_with_its_remedy(given: Any, message: str) -> None:
    with pytest.raises(EtlworksConfigError, match=r"^Connection 'etl' cannot work\. ") as refused:
        settings_from(given)

    assert message in str(refused.value)
    assert "swordfish" not in str(refused.value)
    assert refused.value.__cause__ is None
