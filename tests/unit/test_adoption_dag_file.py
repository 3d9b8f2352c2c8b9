"""The DAG file that takes over schedules: what is in it, how it is laid out, and that Airflow parses it."""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import sys
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pendulum
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_provider_etlworks.adoption.airflow_times import airflow_times
from airflow_provider_etlworks.adoption.dag_file import dag_file, literal
from airflow_provider_etlworks.adoption.parse_check import check_dag_file
from airflow_provider_etlworks.adoption.plan import Adoption, PlannedDag, plan_dags
from airflow_provider_etlworks.adoption.translation import CronSchedule, Translation, translate
from airflow_provider_etlworks.client.errors import EtlworksError
from airflow_provider_etlworks.client.models import Schedule

ZONE = ZoneInfo("America/New_York")
NOW = datetime(2026, 11, 27, 21, 30, tzinfo=timezone.utc)
GOLDEN = Path(__file__).parents[1] / "golden"
DAILY = Translation(CronSchedule("0 4 * * *", "UTC"))

SCHEDULES: list[dict[str, Any]] = [
    {
        "id": 1, "flowId": 10, "name": 'Nightly "load"', "schedule": "0 0 4 * * ?", "tags": ["prod", "warehouse"],
        "retries": 3, "delayBetweenRetries": 5, "emailFailure": True, "emailSuccess": True, "expectedTime": 30,
        "emails": "ops@example.com data-platform@example.com third@example.com", "debug": True, "logStep": 100,
        "description": "It's \\ the \"load\" {{ x }}",
    },
    {"id": 2, "flowId": 11, "name": "Ärger & co", "schedule": "0 30 5 ? * MON-FRI", "retries": 2},
    {"id": 3, "flowId": 11, "name": "nightly load", "schedule": "0 0/15 * * * ?"},
    {"id": 4, "flowId": 12, "name": "日本", "schedule": "45", "emailFailure": True, "emails": "ops@example.com"},
    {"id": 5, "flowId": 13, "name": 'x\ny"""; import os', "schedule": "0/5 0 4 L * ? 2027", "tags": ["a'b", "x" * 200]},
    {"id": 6, "flowId": 14, "schedule": "0 1,3,7,8,20,33,47,59 1,3,7,13,14,20,22 1,5,9-11,20 * ?"},
]  # fmt: skip

write = partial(dag_file, source="https://app.etlworks.com", conn_id="etlworks_default", zone=ZONE.key, now=NOW)


def adopted(raw: dict[str, Any], *, accepted: bool = False) -> Adoption:
    source = Schedule.from_json(raw)
    translation = translate(source.schedule, ZONE, NOW, airflow_times)
    return Adoption(source, f"Flow {source.flow_id}", translation, accepted)


def named(*names: str | None, flow_names: tuple[str | None, ...] = ()) -> list[PlannedDag]:
    return plan_dags(
        Adoption(
            Schedule.from_json({"id": number, "flowId": number + 100, "name": name}),
            flow_names[number - 1] if flow_names else f"Flow {number}",
            DAILY,
        )
        for number, name in enumerate(names, 1)
    )


def test_file_is_as_expected() -> None:
    dags = plan_dags(adopted(each) for each in SCHEDULES)
    text = write(dags)
    assert text == (GOLDEN / "adopted_dags.txt").read_text(encoding="utf-8")
    check_dag_file(text, [each.dag_id for each in dags])


@pytest.mark.skipif(importlib.util.find_spec("ruff") is None, reason="ruff is not installed")
@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("line_length", [88, 120])
def test_file_is_formatted_as_ruff_does(grouped: bool, line_length: int) -> None:
    text = write(plan_dags((adopted(each, accepted=True) for each in SCHEDULES), grouped=grouped))
    words = ["ruff", "format", "--isolated", "--line-length", str(line_length), "-"]
    done = subprocess.run([sys.executable, "-m", *words], input=text, capture_output=True, text=True, check=True)
    assert done.stdout == text


def test_file_with_nothing_but_crons_imports_nothing_else() -> None:
    text = write(named("Orders"))
    assert "DeltaTriggerTimetable" not in text
    assert "timedelta" not in text
    assert "send_email" not in text
    assert "etlworks_conn_id" not in text
    assert "etlworks_conn_id='a\"b'," in write(named("Orders"), conn_id='a"b')


def test_first_run_is_not_one_that_etlworks_has_started() -> None:
    """Airflow computes the first run of a new DAG from its start date."""
    from airflow.timetables.base import TimeRestriction
    from airflow.timetables.trigger import CronTriggerTimetable

    just_after_four = datetime(2026, 11, 27, 4, 0, 20, tzinfo=timezone.utc)
    text = write(named("Orders"), now=just_after_four.astimezone(ZONE))
    (moment,) = re.findall(r"pendulum\.datetime\((.*), tz=", text)
    start = pendulum.datetime(*map(int, moment.split(", ")), tz=ZONE.key)
    info = CronTriggerTimetable("0 4 * * *", timezone="UTC").next_dagrun_info(
        last_automated_data_interval=None, restriction=TimeRestriction(earliest=start, latest=None, catchup=True)
    )
    assert info is not None
    assert info.run_after == datetime(2026, 11, 28, 4, tzinfo=timezone.utc)


def test_differences_when_clocks_change_take_an_acceptance() -> None:
    strict, accepting = (plan_dags([adopted(SCHEDULES[2], accepted=each)]) for each in (False, True))
    assert "schedule=None" in write(strict)
    assert "# NOT SCHEDULED. When clocks change" in write(strict)
    assert "schedule=CronTriggerTimetable(" in write(accepting)
    assert "# When clocks change, it is not the same: on 2027-11-07, only Airflow starts" in write(accepting)


@settings(max_examples=200, deadline=None)
@given(text=st.text())
def test_literal_is_the_text(text: str) -> None:
    value = ast.literal_eval(literal(text))
    assert value == text.encode("utf-8", "replace").decode().replace("\0", "\N{REPLACEMENT CHARACTER}")


@settings(max_examples=100, deadline=None)
@given(name=st.text(), flow=st.text(), expression=st.text(), tag=st.text(), description=st.text(), email=st.text())
def test_no_text_of_etlworks_becomes_code(
    name: str, flow: str, expression: str, tag: str, description: str, email: str
) -> None:
    raw = {
        "id": 1, "flowId": 2, "name": name, "schedule": expression, "tags": [tag], "description": description,
        "emails": email, "emailFailure": True,
    }  # fmt: skip
    text = write(plan_dags([Adoption(Schedule.from_json(raw), flow, DAILY)]), source=name or "x")
    names = {each.id for each in ast.walk(ast.parse(text)) if isinstance(each, ast.Name)}
    assert names <= {
        "START_DATE", "DAG", "CronTriggerTimetable", "EtlworksRunFlowOperator", "send_email", "pendulum",
        "SmtpNotifier", "to", "subject", "what", "context", "callback",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("retries", "delay", "written"),
    [
        (None, None, "retries=0,"),
        (0, 5, "retries=0,"),
        (-1, 5, "retries=0,"),
        (2, None, "retries=2,"),
        (2, 5, "retries=2,\n        retry_delay=timedelta(minutes=5),"),
        (2, 0, "retries=2,\n        retry_delay=timedelta(minutes=0),"),
        (10**9, 10**12, "retries=100,\n        retry_delay=timedelta(minutes=1440),"),
    ],
)
def test_retries_are_those_of_the_schedule(retries: int | None, delay: int | None, written: str) -> None:
    raw = {"id": 1, "flowId": 2, "retries": retries, "delayBetweenRetries": delay}
    text = write(plan_dags([Adoption(Schedule.from_json(raw), "Orders", DAILY)]))
    assert f"        {written}\n    )\n" in text


# --- Ids ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "dag_ids"),
    [
        (["Orders"], ["etlworks_orders"]),
        (["Orders", "orders", "ORDERS!"], ["etlworks_orders", "etlworks_orders_2", "etlworks_orders_3"]),
        (["Orders", "Orders 3", "orders"], ["etlworks_orders", "etlworks_orders_3", "etlworks_orders_3_3"]),
        (["Größe / Ångström"], ["etlworks_groe_angstrom"]),
        (["日本", "***"], ["etlworks_schedule_1", "etlworks_schedule_2"]),
        ([None], ["etlworks_flow_1"]),
        (["x" * 1000, "x" * 1000], ["etlworks_" + "x" * 191, "etlworks_" + "x" * 191 + "_2"]),
    ],
)
def test_names_become_ids_without_collisions(names: list[str | None], dag_ids: list[str]) -> None:
    assert [each.dag_id for each in named(*names)] == dag_ids


def test_more_schedules_leave_ids_as_they_are() -> None:
    few = [each.dag_id for each in named("Orders", "orders")]
    assert [each.dag_id for each in named("Orders", "orders", "Orders")][:2] == few


def test_flow_that_is_not_visible_has_an_id_of_its_number() -> None:
    (dag,) = named("Orders", flow_names=(None,))
    assert dag.tasks[0].task_id == "flow_101"


def test_same_times_are_grouped_only_if_asked() -> None:
    adoptions = [
        Adoption(Schedule.from_json({"id": each, "flowId": each}), "Orders", translation)
        for each, translation in enumerate([DAILY, DAILY, Translation(None, ("x",)), Translation(None, ("x",))], 1)
    ]
    assert [len(each.tasks) for each in plan_dags(adoptions)] == [1, 1, 1, 1]
    grouped = plan_dags(adoptions, grouped=True)
    assert [len(each.tasks) for each in grouped] == [2, 1, 1]
    assert grouped[0].dag_id == "etlworks_at_0_4_any_any_any"
    assert [each.task_id for each in grouped[0].tasks] == ["orders", "orders_2"]


def test_flow_with_several_schedules_waits_for_its_other_runs() -> None:
    adoptions = [Adoption(Schedule.from_json({"id": each, "flowId": 7}), "Orders", DAILY) for each in (1, 2)]
    assert write(plan_dags(adoptions)).count('on_already_running="wait"') == 2
    assert 'on_already_running="wait"' not in write(plan_dags(adoptions[:1]))


# --- What Airflow says ----------------------------------------------------------------------------------------------


def test_error_of_airflow_is_one_line() -> None:
    with pytest.raises(EtlworksError, match=r"ModuleNotFoundError: No module named 'nothing_of_that_name'$"):
        check_dag_file("import nothing_of_that_name  # airflow dag\n", ["x"])
