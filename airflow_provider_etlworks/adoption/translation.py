"""
A schedule of Etlworks becomes a schedule of Airflow, if both start the flow at the same times.

A translation is not trusted: the next times of both are computed, each by its own code, and compared.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from functools import lru_cache
from itertools import islice, pairwise, takewhile
from typing import TYPE_CHECKING

from airflow_provider_etlworks.adoption.quartz import NotTranslatable, QuartzCron

if TYPE_CHECKING:
    from zoneinfo import ZoneInfo

TIMES_COMPARED = 5
"""How many of the next times of both schedules must agree."""

_MOST_MINUTES = 366 * 24 * 60
_CLOCK_CHANGES_WITHIN = timedelta(days=400)
# Before and after clocks change. Longer than any change, and than any time that one moves.
_AROUND_CLOCK_CHANGE = timedelta(hours=6)
_DIFFERENCES_NAMED = 2


@dataclass(frozen=True)
class CronSchedule:
    """
    Times by a standard cron expression.

    :ivar cron: five fields.
    :ivar zone: the name of their time zone.
    """

    cron: str
    zone: str

    def __str__(self) -> str:
        return self.cron


@dataclass(frozen=True)
class IntervalSchedule:
    """
    Times at a distance.

    :ivar minutes: the distance.
    """

    minutes: int

    def __str__(self) -> str:
        return f"every {self.minutes} min"


AirflowSchedule = CronSchedule | IntervalSchedule
AirflowTimes = Callable[[AirflowSchedule, datetime], Iterator[datetime]]
"""Returns when Airflow starts runs of a schedule after a time, in UTC."""


@dataclass(frozen=True)
class Translation:
    """
    What becomes of a schedule.

    :ivar schedule: the schedule of Airflow; ``None`` if there is none that starts the flow at the same times.
    :ivar reasons: why there is none; each completes "This schedule …".
    :ivar differences: what differs if clocks are turned forward or back, although all other times agree.
    :ivar next_times: the next times at which Etlworks starts the flow, in UTC.
    """

    schedule: AirflowSchedule | None
    reasons: tuple[str, ...] = ()
    differences: tuple[str, ...] = ()
    next_times: tuple[datetime, ...] = ()


def translate(text: str | None, zone: ZoneInfo, now: datetime, airflow_times: AirflowTimes) -> Translation:
    """
    Translate a schedule.

    :param text: Etlworks's schedule: a Quartz cron expression, or minutes.
    :param zone: the time zone in which Etlworks reads it.
    :param now: the present time.
    :param airflow_times: computes the times of the translation.
    """
    words = (text or "").strip()
    if not words:
        return Translation(None, ("has no times",))
    if re.fullmatch("[0-9]+", words):
        return _translate_minutes(words, zone, now, airflow_times)
    try:
        quartz = QuartzCron.parse(words)
    except NotTranslatable as problem:
        return Translation(None, problem.reasons)
    expected = tuple(islice(quartz.times_after(now, zone), TIMES_COMPARED))
    if not expected:
        return Translation(None, ("never fires",))
    schedule = CronSchedule(_cron(quartz), zone.key)
    if expected != tuple(islice(airflow_times(schedule, now), len(expected))):
        return Translation(None, (f"does not fire at the same times as cron's {schedule.cron!r}",), next_times=expected)
    differences = tuple(
        difference
        for change in _clock_changes(zone, _hour(now))
        if (difference := _difference_around(change, quartz, schedule, zone, airflow_times))
    )
    return Translation(schedule, differences=differences, next_times=expected)


def _translate_minutes(text: str, zone: ZoneInfo, now: datetime, airflow_times: AirflowTimes) -> Translation:
    minutes = int(text) if len(text) <= len(str(_MOST_MINUTES)) else 0
    if not 0 < minutes <= _MOST_MINUTES:
        return Translation(None, (f"has {text[:20]} minutes between two starts",))
    candidates: list[AirflowSchedule] = [IntervalSchedule(minutes)]
    if cron := _cron_of_minutes(minutes):
        candidates.insert(0, CronSchedule(cron, zone.key))
    return next(
        (
            Translation(schedule)
            for schedule in candidates
            if all(
                _has_distance(minutes, airflow_times(schedule, start))
                for start in [
                    now,
                    *(change - timedelta(minutes=2 * minutes) for change in _clock_changes(zone, _hour(now))),
                ]
            )
        ),
        Translation(None, (f"starts every {minutes} minutes, and Airflow does not",)),
    )


def _has_distance(minutes: int, times: Iterator[datetime]) -> bool:
    """Return whether times are that far from each other. When Etlworks began to count them is not known."""
    # Enough to get across a change of the clocks by an hour.
    seen = list(islice(times, TIMES_COMPARED + 120 // minutes))
    return all(later - earlier == timedelta(minutes=minutes) for earlier, later in pairwise(seen))


def _cron_of_minutes(minutes: int) -> str | None:
    """Return the cron expression of a distance; ``None`` if hours or days are not a multiple of it."""
    if 60 % minutes == 0:
        return "0 * * * *" if minutes == 60 else "* * * * *" if minutes == 1 else f"*/{minutes} * * * *"
    hours, rest = divmod(minutes, 60)
    if rest or 24 % hours:
        return None
    return "0 0 * * *" if hours == 24 else f"0 */{hours} * * *"


# --- Cron -----------------------------------------------------------------------------------------------------------


def _cron(quartz: QuartzCron) -> str:
    # Quartz counts the days of the week from 1, and cron from 0; both begin with Sunday.
    weekdays = frozenset(each - 1 for each in quartz.weekdays)
    return " ".join(
        (
            _cron_field(quartz.minutes, 0, 59),
            _cron_field(quartz.hours, 0, 23),
            _cron_field(quartz.days, 1, 31),
            _cron_field(quartz.months, 1, 12),
            _cron_field(weekdays, 0, 6),
        )
    )


def _cron_field(values: frozenset[int], lowest: int, highest: int) -> str:
    """Write values as a person would: ``*``, ``*/15``, ``8-18/2``, or ranges and single values."""
    ordered = sorted(values)
    if len(ordered) == highest - lowest + 1:
        return "*"
    first, last = ordered[0], ordered[-1]
    steps = {later - earlier for earlier, later in pairwise(ordered)}
    if len(ordered) > 2 and len(steps) == 1 and steps != {1}:
        (step,) = steps
        to_the_end = last + step > highest
        if to_the_end and first == lowest:
            return f"*/{step}"
        return f"{first}-{highest if to_the_end else last}/{step}"
    return ",".join(_ranges(ordered))


def _ranges(ordered: list[int]) -> Iterator[str]:
    start = end = ordered[0]
    for each in [*ordered[1:], None]:
        if each == end + 1:
            end = each
            continue
        if end - start < 2:
            yield from map(str, range(start, end + 1))
        else:
            yield f"{start}-{end}"
        if each is not None:
            start = end = each


# --- Summer time ----------------------------------------------------------------------------------------------------


def _hour(moment: datetime) -> datetime:
    return moment.astimezone(timezone.utc).replace(minute=0, second=0, microsecond=0)


@lru_cache(maxsize=16)
def _clock_changes(zone: ZoneInfo, start: datetime) -> tuple[datetime, ...]:
    """Return when clocks are turned forward or back in the next 400 days, in UTC, to the hour."""
    hours = [start + timedelta(hours=each) for each in range(_CLOCK_CHANGES_WITHIN // timedelta(hours=1))]
    offsets = [each.astimezone(zone).utcoffset() for each in hours]
    return tuple(hour for hour, before, after in zip(hours[1:], offsets, offsets[1:], strict=False) if before != after)


def _difference_around(
    change: datetime, quartz: QuartzCron, schedule: AirflowSchedule, zone: ZoneInfo, airflow_times: AirflowTimes
) -> str | None:
    start, end = change - _AROUND_CLOCK_CHANGE, change + _AROUND_CLOCK_CHANGE
    in_etlworks = list(takewhile(lambda each: each < end, quartz.times_after(start, zone)))
    # Airflow may do the same hour again and again.
    most = 2 * len(in_etlworks) + 60
    in_airflow = list(islice(takewhile(lambda each: each < end, airflow_times(schedule, start)), most))
    if in_etlworks == in_airflow:
        return None
    only = [
        f"only {name} starts it at {_named(sorted(set(times) - set(others)), zone)}"
        for name, times, others in (("Etlworks", in_etlworks, in_airflow), ("Airflow", in_airflow, in_etlworks))
        if set(times) - set(others)
    ]
    return f"on {change.astimezone(zone):%Y-%m-%d}, {' and '.join(only) or 'the times come in another order'}"


def _named(times: list[datetime], zone: ZoneInfo) -> str:
    named = [each.astimezone(zone).isoformat(timespec="minutes")[11:] for each in times[:_DIFFERENCES_NAMED]]
    more = len(times) - len(named)
    return ", ".join(named) + (f" and {more} more times" if more else "")
