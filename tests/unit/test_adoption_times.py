"""Quartz cron expressions and minutes: when they fire, and which schedule of Airflow fires at the same times."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from itertools import islice
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.effort import effort

from airflow_provider_etlworks.adoption.airflow_times import airflow_times
from airflow_provider_etlworks.adoption.quartz import NotTranslatable, QuartzCron
from airflow_provider_etlworks.adoption.translation import CronSchedule, IntervalSchedule, translate

UTC = ZoneInfo("UTC")
BERLIN = ZoneInfo("Europe/Berlin")
NOW = datetime(2026, 11, 27, 21, 30, tzinfo=timezone.utc)
GOLDEN = Path(__file__).parents[1] / "golden" / "quartz_times.txt"
BY_QUARTZ = [line.split("|") for line in GOLDEN.read_text().splitlines() if not line.startswith("#")]


def moment(text: str) -> datetime:
    # Before Python 3.11, fromisoformat does not know Z.
    return datetime.fromisoformat(text.replace("Z", "+00:00")).astimezone(timezone.utc)


def next_times(expression: str, zone: ZoneInfo = UTC, start: datetime = NOW, count: int = 5) -> list[datetime]:
    return list(islice(QuartzCron.parse(expression).times_after(start, zone), count))


# --- Quartz ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("expression", "zone", "start", "times"), BY_QUARTZ)
def test_times_are_those_of_quartz(expression: str, zone: str, start: str, times: str) -> None:
    assert next_times(expression, ZoneInfo(zone), moment(start)) == [moment(each) for each in times.split()]


@pytest.mark.parametrize(("expression", "zone", "start", "times"), BY_QUARTZ)
def test_translation_fires_when_quartz_does_or_is_not_made(expression: str, zone: str, start: str, times: str) -> None:
    translation = translate(expression, ZoneInfo(zone), moment(start), airflow_times)
    assert translation.reasons == () or zone != "UTC"
    if translation.schedule is not None:
        in_airflow = list(islice(airflow_times(translation.schedule, moment(start)), 5))
        assert in_airflow == [moment(each) for each in times.split()]


@pytest.mark.parametrize(
    ("expression", "reason"),
    [
        ("5 0 4 * * ?", "fires at seconds other than 0 (5)"),
        ("* * * * * ?", "fires at seconds other than 0 (*)"),
        ("0/30 0 4 * * ?", "fires at seconds other than 0 (0/30)"),
        ("0,30 0 4 * * ?", "fires at seconds other than 0 (0,30)"),
        ("0 0 4 L * ?", "has L as day of month (L), which cron does not know"),
        ("0 0 4 L-3 * ?", "has L as day of month (L-3), which cron does not know"),
        ("0 0 4 LW * ?", "has L and W as day of month (LW), which cron does not know"),
        ("0 0 4 15W * ?", "has W as day of month (15W), which cron does not know"),
        ("0 0 4 1,L * ?", "has L as day of month (1,L), which cron does not know"),
        ("0 0 4 ? * L", "has L as day of week (L), which cron does not know"),
        ("0 0 4 ? * 6L", "has L as day of week (6L), which cron does not know"),
        ("0 0 4 ? * FRIL", "has L as day of week (FRIL), which cron does not know"),
        ("0 0 4 ? * 6#3", "has # as day of week (6#3), which cron does not know"),
        ("0 0 4 ? * MON#1", "has # as day of week (MON#1), which cron does not know"),
        ("0 0 4 * * ? 2027", "is limited to the years 2027"),
        ("0 0 4 * * ? 2027-2030", "is limited to the years 2027-2030"),
        ("0 0 4 1 * MON", "has both a day of month and a day of week"),
        ("0 0 4 1/2 * 2-6", "has both a day of month and a day of week"),
        ("0 0 4 ? * ?", "has ? both as day of month and as day of week, which is not valid"),
        ("0 4 * * *", "has 5 fields; a Quartz cron expression has 6 or 7"),
        ("0 0 4 * * ? * *", "has 8 fields; a Quartz cron expression has 6 or 7"),
        ("@daily", "has 1 field; a Quartz cron expression has 6 or 7"),
        ("0 60 4 * * ?", "has '60' as minute, which is not valid"),
        ("0 0 24 * * ?", "has '24' as hour, which is not valid"),
        ("0 0 4 0 * ?", "has '0' as day of month, which is not valid"),
        ("0 0 4 32 * ?", "has '32' as day of month, which is not valid"),
        ("0 0 4 1 13 ?", "has '13' as month, which is not valid"),
        ("0 0 4 ? * 0", "has '0' as day of week, which is not valid"),
        ("0 0 4 ? * 8", "has '8' as day of week, which is not valid"),
        ("0 0 4 ? * MONDAY", "has 'MONDAY' as day of week, which is not valid"),
        ("0 0 4 ? MON *", "has 'MON' as month, which is not valid"),
        ("0 0/0 4 * * ?", "has the step 0 in the field minute, which is not valid"),
        ("0 0/60 4 * * ?", "has the step 60 in the field minute, which is not valid"),
        ("0 0 0/24 * * ?", "has the step 24 in the field hour, which is not valid"),
        ("0 0 4 ? * MON-FRI/2", "has 'MON-FRI/2' as day of week: Quartz documents no step after a name"),
        ("0 0 4 1 JAN/3 ?", "has 'JAN/3' as month: Quartz documents no step after a name"),
        ("0 ? 4 * * ?", "has '?' as minute, which is not valid"),
        ("0 0 4,, * * ?", "has '' as hour, which is not valid"),
        ("0 0 4- * * ?", "has '4-' as hour, which is not valid"),
        ("0 -5 4 * * ?", "has '-5' as minute, which is not valid"),
        ("0 ٣ 4 * * ?", "has '٣' as minute, which is not valid"),
        ("0 0 4 30 2 ?", "never fires"),
        ("", "has no times"),
        ("0", "has 0 minutes between two starts"),
        ("99999999999999999999999", "has 99999999999999999999 minutes between two starts"),
    ],
)
def test_what_airflow_cannot_keep_is_not_translated(expression: str, reason: str) -> None:
    translation = translate(expression, UTC, NOW, airflow_times)
    assert (translation.schedule, translation.reasons) == (None, (reason,))


def test_all_reasons_are_named() -> None:
    assert translate("0/5 0 4 L * ? 2027", UTC, NOW, airflow_times).reasons == (
        "has L as day of month (L), which cron does not know",
        "is limited to the years 2027",
        "fires at seconds other than 0 (0/5)",
    )


def test_no_text_is_too_strange() -> None:
    for text in (
        "0 " * 100_000,
        "0 " + "9" * 10_000 + " 4 * * ?",
        "0 0 4 " + "1," * 5_000 + "1 * ?",
        "\0",
        "0 0 4 ? * \N{ROMAN NUMERAL ONE THOUSAND}",
    ):
        assert translate(text, UTC, NOW, airflow_times) is not None


@st.composite
def fields(draw: st.DrawFn, lowest: int, highest: int) -> tuple[str, set[int]]:
    """Return a field's text, and its values by the plainest possible reading."""
    texts, values = [], set()
    size = highest - lowest + 1
    for _ in range(draw(st.integers(1, 3))):
        first, last = draw(st.integers(lowest, highest)), draw(st.integers(lowest, highest))
        step = draw(st.integers(1, highest))
        kind = draw(st.sampled_from(["*", "*/", "a", "a/", "a-b", "a-b/"]))
        texts.append(kind.replace("a", str(first)).replace("b", str(last)) + (str(step) if kind.endswith("/") else ""))
        start, end = (
            (lowest, highest) if "*" in kind else (first, highest if kind == "a/" else last if "-" in kind else first)
        )
        value, left = start, (end - start) % size if end != start else 0
        every = step if kind.endswith("/") else 1
        while left >= 0:
            values.add(lowest + (value - lowest) % size)
            value, left = value + every, left - every
    return ",".join(texts), values


@pytest.mark.fuzzing
@settings(max_examples=effort(60, 600), deadline=None)
@given(
    minutes=fields(0, 59),
    hours=fields(0, 23),
    days=fields(1, 31),
    months=fields(1, 12),
    weekdays=fields(1, 7),
    by_weekday=st.booleans(),
    zone=st.sampled_from(["UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata"]),
    start=st.datetimes(datetime(2026, 1, 1), datetime(2029, 1, 1)),  # it becomes UTC below
)
def test_times_are_those_of_brute_force(
    minutes: tuple[str, set[int]],
    hours: tuple[str, set[int]],
    days: tuple[str, set[int]],
    months: tuple[str, set[int]],
    weekdays: tuple[str, set[int]],
    by_weekday: bool,
    zone: str,
    start: datetime,
) -> None:
    day_fields = f"? {months[0]} {weekdays[0]}" if by_weekday else f"{days[0]} {months[0]} ?"
    begin = start.replace(tzinfo=timezone.utc)
    first = begin.replace(second=0, microsecond=0)
    expected = []
    for number in range(1, 3 * 24 * 60):
        time = first + timedelta(minutes=number)
        local = time.astimezone(ZoneInfo(zone))
        day_fits = (local.isoweekday() % 7 + 1 in weekdays[1]) if by_weekday else (local.day in days[1])
        # Of a time that clocks show twice, the second counts.
        later = local.replace(fold=1).astimezone(timezone.utc)
        if (
            day_fits
            and local.month in months[1]
            and local.hour in hours[1]
            and local.minute in minutes[1]
            and later == time
        ):
            expected.append(time)
    end = first + timedelta(days=3)
    quartz = QuartzCron.parse(f"0 {minutes[0]} {hours[0]} {day_fields}")
    found = []
    for time in quartz.times_after(begin, ZoneInfo(zone)):
        if time >= end:
            break
        found.append(time)
    assert found == expected


# --- The translation ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expression", "cron"),
    [
        ("0 0 4 * * ?", "0 4 * * *"),
        ("0 0/15 * * * ?", "*/15 * * * *"),
        ("0 5/15 8-18 ? * 2-6", "5-59/15 8-18 * * 1-5"),
        ("0 0 4 ? * FRI-MON", "0 4 * * 0,1,5,6"),
        ("0 0 4 ? * MON-SAT", "0 4 * * 1-6"),
        ("0 0 22-2 * * ?", "0 0-2,22,23 * * *"),
        ("0 0 6 1 */3 ?", "0 6 1 */3 *"),
        ("0 0 6 1 NOV-FEB ?", "0 6 1 1,2,11,12 *"),
        ("0 0 4 ? * *", "0 4 * * *"),
        ("0 0 4 * * *", "0 4 * * *"),
        ("0 0 4 * * MON", "0 4 * * 1"),
        ("0 0 4 1 * *", "0 4 1 * *"),
        ("0 0 4 ? * 1-7", "0 4 * * *"),
        (" 0  0 4\t* * ?  *", "0 4 * * *"),
    ],
)
def test_cron_is_written_as_a_person_would(expression: str, cron: str) -> None:
    assert translate(expression, UTC, NOW, airflow_times).schedule == CronSchedule(cron, "UTC")


@pytest.mark.parametrize(
    ("minutes", "zone", "schedule"),
    [
        ("1", "UTC", CronSchedule("* * * * *", "UTC")),
        ("15", "UTC", CronSchedule("*/15 * * * *", "UTC")),
        ("60", "UTC", CronSchedule("0 * * * *", "UTC")),
        ("120", "UTC", CronSchedule("0 */2 * * *", "UTC")),
        ("1440", "UTC", CronSchedule("0 0 * * *", "UTC")),
        ("7", "UTC", IntervalSchedule(7)),
        ("45", "UTC", IntervalSchedule(45)),
        ("90", "UTC", IntervalSchedule(90)),
        ("2880", "UTC", IntervalSchedule(2880)),
        ("15", "Europe/Berlin", CronSchedule("*/15 * * * *", "Europe/Berlin")),
        # Between two and four o'clock, there are not two hours when clocks change.
        ("120", "Europe/Berlin", IntervalSchedule(120)),
        ("60", "Australia/Lord_Howe", IntervalSchedule(60)),
    ],
)
def test_minutes_keep_their_distance(minutes: str, zone: str, schedule: CronSchedule | IntervalSchedule) -> None:
    assert translate(f" {minutes} ", ZoneInfo(zone), NOW, airflow_times).schedule == schedule


@pytest.mark.parametrize(
    ("expression", "difference"),
    [
        ("0 30 2 * * ?", "on 2027-03-28, only Airflow starts it at 03:30+02:00"),
        ("0 0 * * * ?", "on 2027-10-31, only Airflow starts it at 02:00+02:00"),
        ("0 0/15 * * * ?", "on 2027-10-31, only Airflow starts it at 02:00+02:00, 02:15+02:00 and 2 more times"),
    ],
)
def test_differences_when_clocks_change_are_named(expression: str, difference: str) -> None:
    translation = translate(expression, BERLIN, NOW, airflow_times)
    assert translation.differences == (difference,)
    assert translation.schedule is not None
    assert translate(expression, UTC, NOW, airflow_times).differences == ()


def test_times_far_from_clock_changes_do_not_differ() -> None:
    for expression in ("0 0 4 * * ?", "0 0/15 4-23 * * ?", "0 30 1 ? * MON"):
        assert translate(expression, BERLIN, NOW, airflow_times).differences == ()


def test_translation_that_fires_at_other_times_is_not_used() -> None:
    def an_hour_late(schedule: CronSchedule | IntervalSchedule, start: datetime):  # type: ignore[no-untyped-def]
        return (each + timedelta(hours=1) for each in airflow_times(schedule, start))

    translation = translate("0 0 4 * * ?", UTC, NOW, an_hour_late)
    assert translation.schedule is None
    assert "does not fire at the same times" in translation.reasons[0]


def test_minutes_that_airflow_does_not_keep_are_not_used() -> None:
    def every_hour(_: object, start: datetime):  # type: ignore[no-untyped-def]
        return (start + timedelta(hours=each) for each in range(1, 1_000))

    assert translate("15", UTC, NOW, every_hour).schedule is None


def test_expression_that_is_not_translatable_says_why() -> None:
    with pytest.raises(NotTranslatable, match="seconds other than 0"):
        QuartzCron.parse("7 0 4 * * ?")
