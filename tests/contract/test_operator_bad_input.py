"""What a user gets wrong is said at once, by name, and before any run is started."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from support.task import CONN_VARIABLE, FLOW, FLOW_NAME

from airflow_provider_etlworks.compat import AirflowNotFoundException
from airflow_provider_etlworks.hooks.etlworks import EtlworksHook
from airflow_provider_etlworks.operators.flow import EtlworksRunFlowOperator
from airflow_provider_etlworks.sandbox import SandboxFlow, broken_body

if TYPE_CHECKING:
    from support.etlworks import Etlworks

both_modes = pytest.mark.parametrize("deferrable", [False, True], ids=["sync", "deferrable"])
NAMED: dict[str, dict[str, Any]] = {"by id": {"flow_id": FLOW}, "by name": {"flow_name": FLOW_NAME}}


@both_modes
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"flow_id": "nightly"}, "flow_id is 'nightly'; it must be a whole number, such as 12345"),
        ({"flow_id": ""}, "flow_id is ''"),
        ({"flow_id": "None"}, "flow_id is 'None'"),
        ({"flow_id": 12.5}, "flow_id is 12.5"),
        ({"flow_id": -7}, "flow_id is -7"),
        ({"flow_id": True}, "flow_id is True"),
        ({"flow_id": "\uff11"}, "flow_id is '\uff11'"),
        ({"flow_id": "7/run"}, "For a name, use flow_name"),
        ({"flow_name": ""}, "flow_name is ''; it must be the name of a flow"),
        ({"flow_name": "  "}, "flow_name is '  '"),
        ({"flow_name": 12345}, "flow_name is 12345"),
        ({"parameters": {"where": {"city": "x"}}}, "Parameter 'where' is a dict"),
        ({"parameters": {"cities": ["x"]}}, "Parameter 'cities' is a list"),
        ({"parameters": {"city": None}}, "Parameter 'city' is None"),
        ({"parameters": "city=x"}, "parameters is a str"),
        ({"run_options": ["parallel"]}, "run_options is a list; it must be a mapping"),
    ],
)
def test_invalid_argument_fails_before_any_request(
    etlworks: Etlworks, arguments: dict[str, Any], message: str, deferrable: bool
) -> None:
    went = etlworks.task(**arguments, deferrable=deferrable).run()

    assert went.colour == "failed for good"
    assert message in went.report
    assert etlworks.sandbox.requests == []


@pytest.mark.parametrize("names", [["city"], ("city", "day"), {"city"}, "city"])
def test_allowed_parameters_are_sent(etlworks: Etlworks, names: Any) -> None:
    assert etlworks.task(flow_id=FLOW, parameters={"city": "x"}, parameter_names=names).run().colour == "success"
    assert [run.parameters for run in etlworks.sandbox.runs()] == [{"city": "x"}]


@pytest.mark.parametrize("names", [[], ["day"], ["City"]])
def test_forbidden_parameter_is_refused_before_any_request(etlworks: Etlworks, names: list[str]) -> None:
    went = etlworks.task(flow_id=FLOW, parameters={"city": "x"}, parameter_names=names).run()

    assert went.colour == "failed for good"
    assert "'city', which parameter_names does not allow" in str(went.error)
    assert etlworks.sandbox.requests == []


@pytest.mark.parametrize("names", [["", "a"], [5], {"a": 1}, 5, b"city"])
def test_invalid_parameter_names_are_refused_at_parse_time(names: Any) -> None:
    with pytest.raises(ValueError, match="parameter_names is"):
        EtlworksRunFlowOperator(task_id="run", flow_id=FLOW, parameter_names=names)


@pytest.mark.parametrize("flow_id", [FLOW, "7", " 7 ", "007"])
def test_flow_id_may_be_digits(etlworks: Etlworks, flow_id: Any) -> None:
    assert etlworks.task(flow_id=flow_id).run().colour == "success"


@pytest.mark.parametrize("named", NAMED)
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"password": None}, "has no credentials"),
        ({"host": None}, "has no Host"),
        ({"host": "etl works"}, "Host"),
        ({"tenant_id": ["x"]}, "'tenant_id'"),
        ({"verify": "/no/such/bundle.pem"}, "'/no/such/bundle.pem', which does not exist"),
        ({"proxy": 1.5}, "'proxy'"),
        ({"connect_timeout": "soon"}, "'connect_timeout'"),
        ({"read_timeout": 0}, "read_timeout"),
        ({"requests_per_minute": "many"}, "'requests_per_minute'"),
        ({"stop_path": "stop"}, "stop_path"),
        ({"ui_url": "ftp://x"}, "ui_url"),
        ({"timeout": 5}, "unknown field 'timeout'"),
    ],
)
def test_invalid_connection_fails_for_good(
    etlworks: Etlworks, changes: dict[str, Any], message: str, named: str
) -> None:
    etlworks.connect(**changes)

    went = etlworks.task(**NAMED[named]).run()

    assert went.colour == "failed for good"
    assert message in went.report
    assert "sandbox-key" not in went.report
    assert etlworks.sandbox.requests == []


@pytest.mark.parametrize("named", NAMED)
def test_unknown_connection_is_named(etlworks: Etlworks, named: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def get_connection(conn_id: str) -> None:
        # What Airflow says; Airflow 3.1 can say it inside of a task process only.
        raise AirflowNotFoundException(f"The conn_id `{conn_id}` isn't defined")

    monkeypatch.setattr(EtlworksHook, "get_connection", staticmethod(get_connection))
    went = etlworks.task(**NAMED[named], etlworks_conn_id="etlworks_typo").run()

    assert isinstance(went.error, AirflowNotFoundException)
    assert "etlworks_typo" in went.report


@pytest.mark.parametrize("named", NAMED)
@pytest.mark.parametrize(
    ("connection", "message"),
    [
        ({"password": "wrong-key"}, "401"),
        ({"login": "sandbox", "password": "wrong-password"}, "401"),
        ({"login": "nobody", "password": "sandbox"}, "401"),
    ],
)
def test_wrong_credentials_fail_after_one_request(
    etlworks: Etlworks, connection: dict[str, str], message: str, named: str
) -> None:
    etlworks.connect(**connection)

    went = etlworks.task(**NAMED[named]).run()

    assert went.colour == "failed for good"
    assert message in went.report
    assert len(etlworks.sandbox.requests) == 1
    assert connection["password"] not in went.report.split() or connection["password"] == "sandbox"


@pytest.mark.parametrize("named", NAMED)
def test_foreign_host_is_recognized(etlworks: Etlworks, named: str) -> None:
    page = "<html><head><script>track()</script></head><body>Welcome to our shop</body></html>"
    etlworks.sandbox.fault("*", "*", broken_body(page), times=None)

    went = etlworks.task(**NAMED[named]).run()

    assert went.colour == "failed"
    assert "text/html" in went.report
    assert "Welcome to our shop" in went.report
    assert "track()" not in went.report
    assert "Is Host the address of an Etlworks instance" in went.report


def test_unknown_flow_id_is_named(etlworks: Etlworks) -> None:
    went = etlworks.task(flow_id=404404).run()

    assert went.colour == "failed"
    assert "404404" in went.report


@both_modes
def test_unknown_flow_name_lists_similar_ones(etlworks: Etlworks, deferrable: bool) -> None:
    etlworks.sandbox.add_flow(SandboxFlow(8, "Nightly export"))

    close = etlworks.task(flow_name="Nightly Load", deferrable=deferrable).run()
    far = etlworks.task(flow_name="zzz", deferrable=deferrable).run()

    assert close.colour == far.colour == "failed for good"
    assert "No flow is called 'Nightly Load' among the 2" in close.report
    assert "'Nightly load' or 'Nightly export'" in close.report
    assert "Names match exactly" in far.report
    assert etlworks.sandbox.runs_started() == 0


def test_ambiguous_flow_name_lists_both_ids(etlworks: Etlworks) -> None:
    flows = json.dumps([{"id": FLOW, "name": FLOW_NAME}, {"id": 8, "name": FLOW_NAME}])
    etlworks.sandbox.fault("GET", "/rest/v1/flows", broken_body(flows, content_type="application/json"))

    went = etlworks.task(flow_name=FLOW_NAME).run()

    assert went.colour == "failed for good"
    assert f"2 flows are called '{FLOW_NAME}': 7, 8." in went.report
    assert "Use flow_id instead." in went.report
    assert etlworks.sandbox.runs_started() == 0


def test_connection_is_templated(etlworks: Etlworks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_ETL_EU", etlworks.sandbox.airflow_connection)
    monkeypatch.delenv(CONN_VARIABLE)
    task = etlworks.task(
        flow_id="{{ params.flow }}", etlworks_conn_id="etl_{{ params.region }}", run_options={"x": "{{ params.flow }}"}
    )
    operator = task.operator()
    operator.render_template_fields({"params": {"flow": 7, "region": "eu"}})

    assert operator.execute(task.next_try())["status"] == "success"
