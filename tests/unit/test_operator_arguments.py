"""The operator's arguments: what is refused before anything is sent, and that none is forgotten on the way."""

from __future__ import annotations

import inspect
import re
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum
from pathlib import PurePosixPath
from typing import Any
from uuid import UUID

import pytest

from airflow_provider_etlworks.client.errors import EtlworksConfigError
from airflow_provider_etlworks.client.values import parse_id, parse_seconds
from airflow_provider_etlworks.operators.flow import EtlworksRunFlowOperator
from airflow_provider_etlworks.runs.defaults import DEFAULT_PATIENCE, DEFAULT_POLL_INTERVAL
from airflow_provider_etlworks.runs.start import OnAlreadyRunning
from airflow_provider_etlworks.triggers.flow import EtlworksFlowExecutionTrigger
from airflow_provider_etlworks.worker.arguments import (
    flat_parameters,
    parameter_text,
    parse_datetime,
    parse_ids,
    parse_names,
    parse_text,
)

# What the operator does with an option that no trigger needs to know.
USED_ON_THE_WORKER = {
    "flow_name": "looked up before the start",
    "parameters": "part of the start",
    "parameter_names": "checked before the start",
    "run_options": "part of the start",
    "on_already_running": "part of the start",
    "on_etlworks_schedule": "asked before the start",
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
def test_invalid_arguments_are_refused_at_parse_time(arguments: dict[str, Any], message: str) -> None:
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
def test_parameters_become_text(given: Any, sent: dict[str, str]) -> None:
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
def test_nested_parameters_are_refused_by_name(given: Any, message: str) -> None:
    with pytest.raises(EtlworksConfigError) as refused:
        flat_parameters(given)

    assert message in str(refused.value)
    assert "swordfish" not in str(refused.value)


HUGE = pytest.param(10**5_000, id="5,000 digits")


class Size(str, Enum):
    LARGE = "large"


class NaT(datetime):
    """Not a time, as pandas has it: a datetime that differs from itself."""

    def __eq__(self, other: object) -> bool:
        return False

    def __ne__(self, other: object) -> bool:
        return True

    __hash__ = None  # type: ignore[assignment]


class Undecided:
    """A value that refuses to be compared, as an array or ``pandas.NA``."""

    def __ne__(self, other: object) -> Any:
        raise TypeError("ambiguous")

    __hash__ = None  # type: ignore[assignment]


def numpy_values() -> list[tuple[Any, str]]:
    numpy = pytest.importorskip("numpy")
    return [
        (numpy.int64(7), "7"),
        (numpy.float64(0.5), "0.5"),
        (numpy.float32(0.1), "0.1"),
        (numpy.bool_(True), "true"),
    ]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (Decimal("1E+3"), "1000"),
        (Decimal("1.10"), "1.10"),
        (Decimal("-0.00000001"), "-0.00000001"),
        (1e22, "10000000000000000000000"),
        (1e-7, "0.0000001"),
        (1.0, "1.0"),
        (UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (PurePosixPath("/data/in"), "/data/in"),
        (Size.LARGE, "large"),
        (True, "true"),
    ],
)
def test_value_of_a_parameter(value: Any, text: str) -> None:
    assert parameter_text("p", value) == text


def test_value_of_a_parameter_from_numpy() -> None:
    for value, text in numpy_values():
        assert parameter_text("p", value) == text


@pytest.mark.parametrize(
    ("value", "what"),
    [
        (None, "None; leave it out"),
        (float("nan"), "nan; leave it out"),
        (Decimal("nan"), "NaN; leave it out"),
        (Decimal("sNaN"), "a Decimal"),
        (NaT(2026, 5, 9), "leave it out"),
        (Undecided(), "a Undecided"),
        (float("inf"), "a float"),
        (Decimal("Infinity"), "a Decimal"),
        (Decimal("1E+999999"), "a Decimal"),
        pytest.param(10**5_000, "a int", id="5,000 digits"),
        (timedelta(1), "a timedelta"),
        ({1}, "a set"),
    ],
)
def test_invalid_parameter_value(value: Any, what: str) -> None:
    with pytest.raises(EtlworksConfigError, match=re.escape("Parameter 'p' is ")) as refused:
        parameter_text("p", value)
    assert what in str(refused.value)


@pytest.mark.parametrize(("value", "text"), [("Orders", "Orders"), (12345, "12345"), (1.5, "1.5"), (Decimal(2), "2")])
def test_number_like_text(value: Any, text: str) -> None:
    assert parse_text("flow_name", value) == text
    assert parse_names("flow_names", value) == [text]
    assert parse_names("flow_names", [value, value]) == [text]


@pytest.mark.parametrize("value", [None, "", "  ", "None", True, float("nan"), [], {}, b"x", HUGE])
def test_invalid_text(value: Any) -> None:
    with pytest.raises(EtlworksConfigError, match="flow_name is"):
        parse_text("flow_name", value)


@pytest.mark.parametrize("value", [7, "7", " 7\n"])
def test_id(value: Any) -> None:
    assert parse_id("flow_id", value) == 7
    assert parse_ids("flow_ids", value) == [7]


def test_id_from_numpy() -> None:
    numpy = pytest.importorskip("numpy")
    assert parse_ids("flow_ids", numpy.int64(7)) == parse_ids("flow_ids", numpy.array([7])) == [7]


@pytest.mark.parametrize("value", [None, True, -1, 1.5, "x", "²", 2**63, "9" * 5_000, HUGE, float("nan"), b"7"])
def test_invalid_id(value: Any) -> None:
    with pytest.raises(EtlworksConfigError, match=r"flow_id is .*whole number") as refused:
        parse_id("flow_id", value)
    assert len(str(refused.value)) < 500


@pytest.mark.parametrize(
    ("value", "seconds"), [(5, 5), (0.5, 0.5), (Decimal("1.5"), 1.5), (timedelta(minutes=2), 120.0)]
)
def test_seconds(value: Any, seconds: float) -> None:
    assert parse_seconds("timeout", value) == seconds


@pytest.mark.parametrize(
    "value",
    [None, True, "60", 0, -1, timedelta(0), timedelta(-1), float("nan"), float("inf"), Decimal("nan"), Decimal("sNaN"),
     10**400, HUGE, [1]],
)  # fmt: skip
def test_invalid_seconds(value: Any) -> None:
    with pytest.raises(ValueError, match=r"timeout is .*; it is a number of seconds greater than 0"):
        parse_seconds("timeout", value)


def test_zero_seconds() -> None:
    assert parse_seconds("timeout", 0, allow_zero=True) == 0
    with pytest.raises(EtlworksConfigError, match="0 or more"):
        parse_seconds("timeout", -1, allow_zero=True)


def test_not_a_time_is_not_a_datetime() -> None:
    with pytest.raises(EtlworksConfigError, match="since is"):
        parse_datetime("since", NaT(2026, 5, 9))


@pytest.mark.parametrize("name", ["poll_interval", "timeout", "patience"])
def test_times_may_be_timedelta(name: str) -> None:
    operator = EtlworksRunFlowOperator(task_id="load", flow_id=7, **{name: timedelta(minutes=2)})  # type: ignore[arg-type]

    assert getattr(operator, name) == 120.0


def test_documented_options_are_the_real_ones() -> None:
    for kind in (EtlworksRunFlowOperator, EtlworksFlowExecutionTrigger):
        documented = set(re.findall(r":param (\w+):", kind.__doc__ or ""))
        assert documented == options_of(kind), kind


def test_every_option_reaches_trigger_or_worker() -> None:
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


def test_arguments_are_templated() -> None:
    assert set(EtlworksRunFlowOperator.template_fields) == {
        "flow_id",
        "flow_name",
        "parameters",
        "run_options",
        "etlworks_conn_id",
    }
    assert set(EtlworksRunFlowOperator.template_fields_renderers) < set(EtlworksRunFlowOperator.template_fields)
