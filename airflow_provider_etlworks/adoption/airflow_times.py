"""When Airflow starts the runs of a schedule, by Airflow's own timetables."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

from airflow.timetables.base import DataInterval, TimeRestriction
from airflow.timetables.trigger import CronTriggerTimetable, DeltaTriggerTimetable
from pendulum import instance

from airflow_provider_etlworks.adoption.translation import CronSchedule

if TYPE_CHECKING:
    from collections.abc import Iterator

    from airflow_provider_etlworks.adoption.translation import AirflowSchedule

_WITHOUT_LIMITS = TimeRestriction(earliest=None, latest=None, catchup=True)


def airflow_times(schedule: AirflowSchedule, start: datetime) -> Iterator[datetime]:
    """
    Return when Airflow starts the runs of a schedule.

    :param schedule: the schedule.
    :param start: the times after this one, as if a run had started then.
    :return: an iterator of times in UTC, without an end.
    """
    if isinstance(schedule, CronSchedule):
        timetable: Any = CronTriggerTimetable(schedule.cron, timezone=schedule.zone)
    else:
        timetable = DeltaTriggerTimetable(timedelta(minutes=schedule.minutes))
    last = instance(start.astimezone(timezone.utc))
    while info := timetable.next_dagrun_info(
        last_automated_data_interval=DataInterval.exact(last), restriction=_WITHOUT_LIMITS
    ):
        last = info.run_after
        yield datetime.fromtimestamp(last.timestamp(), tz=timezone.utc)
