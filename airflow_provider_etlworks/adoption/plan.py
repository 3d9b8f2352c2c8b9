"""Which DAGs and tasks become of schedules, and what they are called."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from airflow_provider_etlworks.adoption.translation import CronSchedule

if TYPE_CHECKING:
    from collections.abc import Iterable

    from airflow_provider_etlworks.adoption.translation import AirflowSchedule, Translation
    from airflow_provider_etlworks.client.models import Schedule

# Airflow allows 250. A suffix fits in, too.
_LONGEST_ID = 200


@dataclass(frozen=True)
class Adoption:
    """
    A schedule that is taken over.

    :ivar source: the schedule in Etlworks. Its ``id`` and ``flow_id`` are known.
    :ivar flow_name: the name of its flow; ``None`` if the flow is not visible.
    :ivar translation: what becomes of its times.
    :ivar accepted: whether differences at changes of the clocks are accepted.
    """

    source: Schedule
    flow_name: str | None
    translation: Translation
    accepted: bool = False

    @property
    def schedule(self) -> AirflowSchedule | None:
        """The schedule of the DAG; ``None`` if it starts nothing by itself."""
        return None if self.translation.differences and not self.accepted else self.translation.schedule

    @property
    def title(self) -> str:
        """What a person calls it."""
        return self.source.name or self.flow_name or f"Schedule {self.source.id}"


@dataclass(frozen=True)
class PlannedTask:
    """
    A task that runs a flow.

    :ivar task_id: its id.
    :ivar adoption: the schedule that it stands for.
    :ivar waits: whether it waits for another run of the flow, as the flow has several schedules.
    """

    task_id: str
    adoption: Adoption
    waits: bool


@dataclass(frozen=True)
class PlannedDag:
    """
    A DAG of the file.

    :ivar dag_id: its id.
    :ivar tasks: its tasks; they have the same times.
    """

    dag_id: str
    tasks: tuple[PlannedTask, ...]

    @property
    def schedule(self) -> AirflowSchedule | None:
        """Its schedule; ``None`` if it starts nothing by itself."""
        return self.tasks[0].adoption.schedule


def plan_dags(adoptions: Iterable[Adoption], *, grouped: bool = False) -> list[PlannedDag]:
    """
    Make DAGs of schedules, in the order of the schedules' ids.

    An id that a smaller schedule's id has already is followed by the schedule's own id, so that ids stay as they are
    when more schedules are taken over later.

    :param adoptions: the schedules.
    :param grouped: one DAG for all schedules with the same times, instead of one for each.
    """
    ordered = sorted(adoptions, key=lambda each: each.source.id or 0)
    groups: dict[object, list[Adoption]] = {}
    for each in ordered:
        key = (each.schedule, None if grouped and each.schedule else each.source.id)
        groups.setdefault(key, []).append(each)
    starts = Counter(each.source.flow_id for each in ordered)
    dags: list[PlannedDag] = []
    dag_ids: set[str] = set()
    for members in groups.values():
        first = members[0]
        name = _name_of_times(first.schedule) if len(members) > 1 and first.schedule else first.title
        task_ids: set[str] = set()
        tasks = tuple(
            PlannedTask(
                _new_id(each.flow_name or f"flow {each.source.flow_id}", each.source.id, task_ids),
                each,
                waits=starts[each.source.flow_id] > 1,
            )
            for each in members
        )
        # Airflow has other DAGs, whose ids are not known here.
        dags.append(PlannedDag(_new_id(f"etlworks {name}", first.source.id, dag_ids), tasks))
    return dags


def _name_of_times(schedule: AirflowSchedule) -> str:
    if not isinstance(schedule, CronSchedule):
        return f"every {schedule.minutes} minutes"
    words = [
        field.replace("*/", "every ")
        .replace("*", "any")
        .replace("-", " to ")
        .replace("/", " by ")
        .replace(",", " and ")
        for field in schedule.cron.split()
    ]
    return f"at {' '.join(words)}"


def _new_id(name: str, schedule_id: int | None, taken: set[str]) -> str:
    """Return an id that Airflow takes and that is not taken, and take it."""
    # "Ä" becomes "A" and a mark of its own, which is dropped.
    letters = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    plain = re.sub("[^a-z0-9]+", "_", letters.lower()).strip("_")[:_LONGEST_ID].rstrip("_")
    new = plain if plain not in ("", "etlworks") else "_".join(filter(None, (plain, f"schedule_{schedule_id}")))
    while new in taken:
        new = f"{new}_{schedule_id}"
    taken.add(new)
    return new
