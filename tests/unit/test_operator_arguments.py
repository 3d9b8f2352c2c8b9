"""The operator's arguments: what is refused before anything is sent, and that none is forgotten on the way."""

from __future__ import annotations

import inspect
import re
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest

from airflow_provider_etlworks.client.errors import EtlworksConfigError
from airflow_provider_etlworks.operators.flow import EtlworksRunFlowOperator
from airflow_provider_etlworks.runs.defaults import DEFAULT_PATIENCE, DEFAULT_POLL_INTERVAL
from airflow_provider_etlworks.runs.start import OnAlreadyRunning
from airflow_provider_etlworks.triggers.flow import EtlworksFlowExecutionTrigger
from airflow_provider_etlworks.worker.arguments import flat_parameters

# What the operator does with an option that no trigger needs to know.
USED_ON_THE_WORKER = {
    "flow_name": "looked up before the start",
    "parameters": "part of the start",
    "run_options": "part of the start",
    "on_already_running": "part of the start",
    "durable": "decides about the start",
    "wait_for_completion": "without it nothing is deferred",
    "deferrable": "has been decided then",
    "timeout": "becomes the trigger's deadline",
    "fail_on_warning": "judges the event",
    "log_lines": "used after the event",
}


def options_of(kind: type) -> set[str]:
    parameters = inspect.signature(kind.__init__).parameters.values()
    named = {each.name for each in parameters if each.kind not in (each.VAR_KEYWORD, each.VAR_POSITIONAL)}
    return named - {"self"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "exactly one of flow_id and flow_name; neither is given"),
        ({"flow_id": 7, "flow_name": "Nightly"}, "exactly one of flow_id and flow_name; both are given"),
        ({"flow_id": 7, "on_already_running": "ignore"}, "on_already_running is 'ignore'; it is 'fail', 'wait'"),
        ({"flow_id": 7, "on_already_running": None}, "on_already_running is None"),
        *(
            ({"flow_id": 7, name: value}, f"{name} is {value!r}; it is a number of seconds greater than 0")
            for name in ("poll_interval", "timeout", "patience")
            for value in (0, -1, True, "60", float("nan"), float("inf"), timedelta(0), timedelta(seconds=-1))
        ),
        ({"flow_id": 7, "poll_interval": None}, "poll_interval is None"),
        ({"flow_id": 7, "patience": None}, "patience is None"),
        *(({"flow_id": 7, "log_lines": value}, f"log_lines is {value!r}") for value in (-1, 1.5, True, None, "20")),
    ],
)
def test_what_cannot_work_is_refused_when_the_dag_is_parsed(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=r"^load: ") as refused:
        EtlworksRunFlowOperator(task_id="load", **arguments)

    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        (None, {}),
        ({}, {}),
        (
            {"text": "a b", "whole": 3, "float": 0.5, "decimal": Decimal("1.10"), "big": 10**30},
            {"text": "a b", "whole": "3", "float": "0.5", "decimal": "1.10", "big": "1" + 30 * "0"},
        ),
        ({"yes": True, "no": False}, {"yes": "true", "no": "false"}),
        (
            {"day": date(2026, 5, 9), "at": datetime(2026, 5, 9, 4, tzinfo=timezone.utc), "hour": time(4, 30)},
            {"day": "2026-05-09", "at": "2026-05-09T04:00:00+00:00", "hour": "04:30:00"},
        ),
        ({"ключ": "значение", "empty": ""}, {"ключ": "значение", "empty": ""}),
    ],
)
def test_parameters_become_texts(given: Any, sent: dict[str, str]) -> None:
    assert flat_parameters(given) == sent


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"where": {"city": "swordfish"}}, "Parameter 'where' is a dict"),
        ({"cities": ["swordfish"]}, "Parameter 'cities' is a list"),
        ({"cities": ("swordfish",)}, "Parameter 'cities' is a tuple"),
        ({"raw": b"swordfish"}, "Parameter 'raw' is a bytes"),
        ({"none": None}, "Parameter 'none' is None; leave it out"),
        ({1: "swordfish"}, "The parameter name 1 must be text"),
        ({"": "swordfish"}, "The parameter name '' must be text"),
        ("swordfish", "parameters is a str; it must be a mapping"),
        (["swordfish"], "parameters is a list; it must be a mapping"),
    ],
)
def test_parameters_that_are_no_flat_map_are_refused_by_name_not_by_value(given: Any, message: str) -> None:
    with pytest.raises(EtlworksConfigError) as refused:
        flat_parameters(given)

    assert message in str(refused.value)
    assert "swordfish" not in str(refused.value)


@pytest.mark.parametrize("name", ["poll_interval", "timeout", "patience"])
def test_times_may_be_timedelta(name: str) -> None:
    operator = EtlworksRunFlowOperator(task_id="load", flow_id=7, **{name: timedelta(minutes=2)})  # type: ignore[arg-type]

    assert getattr(operator, name) == 120.0


def test_every_option_is_documented_and_no_other() -> None:
    for kind in (EtlworksRunFlowOperator, EtlworksFlowExecutionTrigger):
        documented = set(re.findall(r":param (\w+):", kind.__doc__ or ""))
        assert documented == options_of(kind), kind


def test_every_option_of_the_operator_reaches_the_trigger_or_is_used_on_the_worker() -> None:
    shared = options_of(EtlworksRunFlowOperator) & options_of(EtlworksFlowExecutionTrigger)

    assert shared == {"flow_id", "etlworks_conn_id", "poll_interval", "patience", "cancel_on_kill"}
    assert options_of(EtlworksRunFlowOperator) - shared == set(USED_ON_THE_WORKER)


def test_defaults_are_the_clients_own() -> None:
    operator = EtlworksRunFlowOperator(task_id="load", flow_id=7)

    assert (operator.poll_interval, operator.patience) == (DEFAULT_POLL_INTERVAL, DEFAULT_PATIENCE)
    assert operator.on_already_running == OnAlreadyRunning.FAIL.value
    assert operator.etlworks_conn_id == "etlworks_default"
    assert operator.deferrable is False
    assert operator.timeout is None


@pytest.mark.parametrize("policy", [each.value for each in OnAlreadyRunning])
def test_every_policy_of_the_client_can_be_chosen(policy: str) -> None:
    assert EtlworksRunFlowOperator(task_id="load", flow_id=7, on_already_running=policy).on_already_running == policy


def test_what_may_change_from_run_to_run_is_templated() -> None:
    assert set(EtlworksRunFlowOperator.template_fields) == {
        "flow_id",
        "flow_name",
        "parameters",
        "run_options",
        "etlworks_conn_id",
    }
    assert set(EtlworksRunFlowOperator.template_fields_renderers) < set(EtlworksRunFlowOperator.template_fields)
