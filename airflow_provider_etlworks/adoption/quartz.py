"""
Quartz cron expressions, as Etlworks's schedules have them: what they mean, and when they fire.

Written from Quartz's documentation and checked against Quartz's own ``CronExpression``. It shares nothing with the cron
library of Airflow, since the two are compared with each other.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import date, datetime, timedelta, timezone
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from zoneinfo import ZoneInfo

_MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
_WEEKDAYS = ("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT")
_LONGEST_QUOTE = 40
# February 29th comes once in eight years at the turn of most centuries.
_LONGEST_GAP = timedelta(days=8 * 366 + 1)
_ITEM = re.compile(r"(?:\*|(?P<first>[0-9]{1,3}|[A-Z]+)(?:-(?P<last>[0-9]{1,3}|[A-Z]+))?)?(?:/(?P<step>[0-9]{1,3}))?")


class NotTranslatable(ValueError):
    """
    A schedule that Airflow cannot keep exactly.

    :ivar reasons: all reasons; each completes "This schedule …".
    """

    def __init__(self, *reasons: str) -> None:
        super().__init__("; ".join(reasons))
        self.reasons = reasons


@dataclass(frozen=True)
class _Field:
    """What a field of an expression can hold."""

    name: str
    lowest: int
    highest: int
    names: tuple[str, ...] = ()

    @property
    def all_values(self) -> frozenset[int]:
        return frozenset(range(self.lowest, self.highest + 1))

    def parse(self, text: str) -> frozenset[int]:
        """
        Return the values that a field's text stands for.

        :raises NotTranslatable: Quartz refuses the text, or does not document what it means.
        """
        values: set[int] = set()
        for item in text.split(","):
            values |= self._parse_item(item)
        return frozenset(values)

    def _parse_item(self, item: str) -> set[int]:
        found = _ITEM.fullmatch(item)
        if not item or found is None:
            raise NotTranslatable(f"has {item[:_LONGEST_QUOTE]!r} as {self.name}, which is not valid")
        step = found["step"]
        if step is not None and not 0 < int(step) <= self.highest:
            raise NotTranslatable(f"has the step {step} in the field {self.name}, which is not valid")
        if found["first"] is None:
            first, last = self.lowest, self.highest
        else:
            if step is not None and not found["first"].isdigit():
                # Quartz ignores the step there.
                raise NotTranslatable(f"has {item!r} as {self.name}: Quartz documents no step after a name")
            first = self._parse_value(found["first"])
            # "5/15" goes on to the field's highest value, and "5" does not.
            last = self._parse_value(found["last"]) if found["last"] else first if step is None else self.highest
        size = self.highest - self.lowest + 1
        # A range may go across the end of a week, a day or a year: FRI-MON.
        distance = last - first if last >= first else last - first + size
        every = int(step) if step else 1
        return {self.lowest + (first + each - self.lowest) % size for each in range(0, distance + 1, every)}

    def _parse_value(self, text: str) -> int:
        if text in self.names:
            return self.names.index(text) + 1
        if not text.isdigit() or not self.lowest <= int(text) <= self.highest:
            raise NotTranslatable(f"has {text[:_LONGEST_QUOTE]!r} as {self.name}, which is not valid")
        return int(text)


_SECOND = _Field("second", 0, 59)
_MINUTE = _Field("minute", 0, 59)
_HOUR = _Field("hour", 0, 23)
_DAY = _Field("day of month", 1, 31)
_MONTH = _Field("month", 1, 12, _MONTHS)
_WEEKDAY = _Field("day of week", 1, 7, _WEEKDAYS)
_FIELDS = (_SECOND, _MINUTE, _HOUR, _DAY, _MONTH, _WEEKDAY)


@dataclass(frozen=True)
class QuartzCron:
    """
    An expression that starts a flow at whole minutes, on days that standard cron can name, too.

    :ivar minutes: the minutes.
    :ivar hours: the hours.
    :ivar days: the days of the month.
    :ivar months: the months.
    :ivar weekdays: the days of the week; 1 is Sunday.
    """

    minutes: frozenset[int]
    hours: frozenset[int]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]

    @classmethod
    def parse(cls, text: str) -> QuartzCron:
        """
        Read an expression of 6 fields, or 7 with the year.

        :raises NotTranslatable: it is not valid, or standard cron cannot say the same: seconds, ``L``, ``W``, ``#``,
            years, or a day of the month together with a day of the week.
        """
        fields = text.upper().split()
        if len(fields) not in (6, 7):
            count = "1 field" if len(fields) == 1 else f"{len(fields)} fields"
            raise NotTranslatable(f"has {count}; a Quartz cron expression has 6 or 7")
        day, weekday = fields[3], fields[5]
        reasons = [*_beyond_cron(day, _DAY), *_beyond_cron(weekday, _WEEKDAY)]
        if len(fields) == 7 and fields[6] != "*":
            reasons.append(f"is limited to the years {fields[6]}")
        if day == weekday == "?":
            reasons.append("has ? both as day of month and as day of week, which is not valid")
        # Whoever accepts a * beside a restricted field means "any day" with it, so this can be only one thing.
        elif not {day, weekday} & {"?", "*"}:
            reasons.append("has both a day of month and a day of week")
        values: list[frozenset[int]] = []
        for field, each in zip(_FIELDS, fields, strict=False):
            try:
                is_read_above = field in (_DAY, _WEEKDAY) and (each == "?" or _beyond_cron(each, field))
                values.append(field.all_values if is_read_above else field.parse(each))
            except NotTranslatable as problem:
                reasons.extend(problem.reasons)
                values.append(frozenset())
        seconds = values[0]
        if seconds and seconds != {0}:
            reasons.append(f"fires at seconds other than 0 ({fields[0]})")
        if reasons:
            raise NotTranslatable(*reasons)
        return cls(*values[1:])

    def times_after(self, start: datetime, zone: ZoneInfo) -> Iterator[datetime]:
        """
        Return when it fires, in UTC, without an end; the iterator ends if it never fires.

        As Quartz does, it skips a time that does not exist, since clocks are turned forward, and fires once, at the
        second occurrence, if a time exists twice, since they are turned back.

        :param start: the times after this one.
        :param zone: the time zone of the expression.
        """
        last = start.astimezone(timezone.utc)
        day = last.astimezone(zone).date()
        give_up = day + _LONGEST_GAP
        while day < give_up and day.year < 9999:
            if self._fires_on(day):
                for each in self._times_of(day, zone):
                    if each > last:
                        last, give_up = each, day + _LONGEST_GAP
                        yield each
            day += timedelta(days=1)

    def _fires_on(self, day: date) -> bool:
        return day.month in self.months and day.day in self.days and day.isoweekday() % 7 + 1 in self.weekdays

    def _times_of(self, day: date, zone: ZoneInfo) -> Iterator[datetime]:
        for hour in sorted(self.hours):
            for minute in sorted(self.minutes):
                # fold=1 is the second of two occurrences.
                local = datetime(day.year, day.month, day.day, hour, minute, tzinfo=zone, fold=1)
                time = local.astimezone(timezone.utc)
                if time.astimezone(zone).replace(tzinfo=None, fold=0) == local.replace(tzinfo=None, fold=0):
                    yield time


def _beyond_cron(text: str, field: _Field) -> list[str]:
    """Return why a day cannot be said in standard cron."""
    # Names of days hold these letters, too: WED.
    rest = re.sub("|".join(_WEEKDAYS), "", text)
    found = [each for each in "LW#" if each in rest]
    return [f"has {' and '.join(found)} as {field.name} ({text}), which cron does not know"] if found else []
