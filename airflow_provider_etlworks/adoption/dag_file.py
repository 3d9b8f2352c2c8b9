"""
The text of a DAG file, as a person would write it and ``ruff format`` would leave it.

It parses on Airflow 2.11 and on Airflow 3. Names come from Etlworks, so each is written as a literal, or as a comment
of one line.
"""

from __future__ import annotations

import re
import textwrap
from datetime import timedelta
from typing import TYPE_CHECKING

from airflow_provider_etlworks.adoption.translation import CronSchedule, IntervalSchedule
from airflow_provider_etlworks.client.text import clean, storable, visible
from airflow_provider_etlworks.provider_info import DEFAULT_CONN_ID

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from datetime import datetime

    from airflow_provider_etlworks.adoption.plan import PlannedDag, PlannedTask
    from airflow_provider_etlworks.client.models import Schedule

# What is before, between and after some brackets.
_Nested = tuple[str, list[str], str]

# The default of ruff and black.
_WIDTH = 88
_INDENT = "    "
_TWICE = _INDENT * 2
_LONGEST_COMMENT = 300
# Airflow's own limit.
_LONGEST_TAG = 100
_MOST_RETRIES = 100
_LONGEST_DELAY = 24 * 60

_SEND_EMAIL = '''\
def send_email(to, what):
    """
    Return a callback that reports by e-mail how a task ended.

    Etlworks sent these e-mails itself, for its own schedules only. This takes the package
    apache-airflow-providers-smtp, and the connection smtp_default with a from_email.
    """

    def callback(context):
        from airflow.providers.smtp.notifications.smtp import SmtpNotifier

        subject = f"{{{{ dag.dag_id }}}}: {{{{ ti.task_id }}}} {what}"
        SmtpNotifier(to=to, subject=subject)(context)

    return callback
'''


def dag_file(dags: Sequence[PlannedDag], *, source: str, conn_id: str, zone: str, now: datetime) -> str:
    """
    Return the text of a DAG file.

    :param dags: its DAGs.
    :param source: the address of the Etlworks that the schedules come from.
    :param conn_id: the Airflow connection of the tasks.
    :param zone: the name of the time zone in which Etlworks reads its schedules.
    :param now: the present time, in that zone: the DAGs start in the minute after it.
    """
    sources = [task.adoption.source for dag in dags for task in dag.tasks]
    crons = any(isinstance(dag.schedule, CronSchedule) for dag in dags)
    intervals = any(isinstance(dag.schedule, IntervalSchedule) for dag in dags)
    emails = any(_emails(each) for each in sources)
    delays = any(_delay(each) is not None for each in sources)
    timetables = ["CronTriggerTimetable"] * crons + ["DeltaTriggerTimetable"] * intervals
    introduction = [
        f"Etlworks flows of {visible(source)}, scheduled by Airflow.",
        f"Written by `airflow etlworks adopt` on {now:%Y-%m-%d}. This file is yours: change it as you like.",
        f"Etlworks does not say in which time zone it reads its schedules. Here, it is {zone}.",
        "Parameters that a schedule passes to its flow are not known either: add them as parameters={…}.",
    ]
    lines = [
        '"""',
        *(line for each in introduction for line in [*textwrap.wrap(_in_docstring(each), _WIDTH), ""]),
    ]
    lines[-1] = '"""'
    lines.append("")
    if intervals or delays:
        lines += ["from datetime import timedelta", ""]
    lines += ["import pendulum", "from airflow import DAG"]
    if timetables:
        lines.append(f"from airflow.timetables.trigger import {', '.join(timetables)}")
    lines += ["from airflow_provider_etlworks.operators.flow import EtlworksRunFlowOperator", ""]
    # From an earlier moment on, Airflow would repeat what Etlworks has started already.
    start = now + timedelta(minutes=1)
    moment = f"{start.year}, {start.month}, {start.day}, {start.hour}, {start.minute}"
    lines += [f"START_DATE = pendulum.datetime({moment}, tz={literal(zone)})"]
    if emails:
        lines += ["", "", *_SEND_EMAIL.rstrip("\n").split("\n")]
    for dag in dags:
        lines += ["", "", *_dag(dag, conn_id)]
    return "\n".join(lines) + "\n"


def without_dates(text: str) -> str:
    """Return the text of a DAG file without when it was written."""
    return re.sub(r"START_DATE = .*|on \d{4}-\d\d-\d\d\.", "", text)


def literal(text: str) -> str:
    """Return a text as a literal, with the quotes that ``ruff format`` prefers."""
    text = storable(text)
    quote = "'" if text.count('"') > text.count("'") else '"'
    # repr() of a text without quotes escapes what cannot be printed, and nothing else.
    inside = "".join("\\" + each if each == quote else each if each in "'\"" else repr(each)[1:-1] for each in text)
    return f"{quote}{inside}{quote}"


def _in_docstring(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"""', "'''")


def _dag(dag: PlannedDag, conn_id: str) -> Iterator[str]:
    sources = [task.adoption.source for task in dag.tasks]
    for task in dag.tasks:
        yield from _comments(_origin(task))
    if dag.schedule is None:
        yield from _comments(_why_unscheduled(dag.tasks[0]))
    elif isinstance(dag.schedule, IntervalSchedule) or (sources[0].schedule or "").strip().isdigit():
        yield from _comments(
            ["Etlworks counts these minutes from a moment that it does not say, so only the distance is the same."]
        )
    differences = dict.fromkeys(each for task in dag.tasks for each in task.adoption.translation.differences)
    if dag.schedule is not None and differences:
        yield from _comments([f"When clocks change, it is not the same: {'; '.join(differences)}."])
    tags = dict.fromkeys(
        ["etlworks", *(clean(tag, _LONGEST_TAG).strip() for each in sources for tag in each.tags if tag.strip())]
    )
    description = next((each.description for each in sources if each.description), None) if len(sources) == 1 else None
    yield "with DAG("
    yield f"{_INDENT}dag_id={literal(dag.dag_id)},"
    if description:
        yield f"{_INDENT}description={literal(clean(description, _LONGEST_COMMENT))},"
    yield from _call(*_schedule(dag))
    yield f"{_INDENT}start_date=START_DATE,"
    yield f"{_INDENT}catchup=False,"
    yield f"{_INDENT}# Etlworks refuses to start a flow that is running."
    yield f"{_INDENT}max_active_runs=1,"
    yield from _call("tags=[", [literal(each) for each in tags], "]")
    yield "):"
    for number, task in enumerate(dag.tasks):
        if number:
            yield ""
        yield f"{_INDENT}EtlworksRunFlowOperator("
        yield from _arguments_of(task, conn_id)
        yield f"{_INDENT})"


def _origin(task: PlannedTask) -> list[str]:
    """Say where a task comes from, and what of its schedule has no place in Airflow."""
    source = task.adoption.source
    name = f" {literal(clean(source.name, _LONGEST_COMMENT))}" if source.name else ""
    flow = task.adoption.flow_name
    starts = f"flow {source.flow_id}" + (f" {literal(clean(flow, _LONGEST_COMMENT))}" if flow else "")
    comments = [f"Etlworks's schedule {source.id}{name} starts {starts}: {_expression(source)}"]
    if source.expected_time:
        comments.append(f"Etlworks reported a run of more than {source.expected_time} minutes by e-mail.")
    settings = {
        "debug": source.debug,
        "logStep": source.log_step,
        "keepMessage": source.keep_message,
        "keepEmptyAudit": source.keep_empty_audit,
    }
    given = ", ".join(f"{setting}={str(value).lower()}" for setting, value in settings.items() if value)
    if given:
        comments.append(f"Only Etlworks's own schedule has these settings: {given}.")
    return comments


def _expression(source: Schedule) -> str:
    text = clean((source.schedule or "").strip(), _LONGEST_COMMENT)
    return f"every {text} minutes" if text.isdigit() else text or "no times"


def _why_unscheduled(task: PlannedTask) -> list[str]:
    translation = task.adoption.translation
    if translation.schedule is None:
        reason = f"This schedule {'; it '.join(translation.reasons)}."
    else:
        reason = (
            f"When clocks change, {translation.schedule} is not the same: {'; '.join(translation.differences)}. "
            "With --accept-clock-changes, it is used nevertheless."
        )
    return [f"NOT SCHEDULED. {reason} Etlworks's own schedule stays as it is."]


def _schedule(dag: PlannedDag) -> _Nested:
    schedule = dag.schedule
    if isinstance(schedule, CronSchedule):
        arguments = [literal(schedule.cron), f"timezone={literal(schedule.zone)}"]
        return "schedule=CronTriggerTimetable(", arguments, ")"
    if isinstance(schedule, IntervalSchedule):
        return "schedule=DeltaTriggerTimetable(", [f"timedelta(minutes={schedule.minutes})"], ")"
    return "schedule=None", [], ""


def _arguments_of(task: PlannedTask, conn_id: str) -> Iterator[str]:
    source = task.adoption.source
    yield f"{_TWICE}task_id={literal(task.task_id)},"
    yield f"{_TWICE}flow_id={source.flow_id},"
    if conn_id != DEFAULT_CONN_ID:
        yield f"{_TWICE}etlworks_conn_id={literal(conn_id)},"
    yield f"{_TWICE}deferrable=True,"
    if task.waits:
        yield f"{_TWICE}# Other schedules start this flow, too, and it runs once at a time."
        yield f'{_TWICE}on_already_running="wait",'
    yield f"{_TWICE}retries={_retries(source)},"
    delay = _delay(source)
    if delay is not None:
        yield f"{_TWICE}retry_delay=timedelta(minutes={delay}),"
    emails = _emails(source)
    for argument, wanted, what in (
        ("on_failure_callback", source.email_failure, "failed"),
        ("on_success_callback", source.email_success, "succeeded"),
    ):
        if emails and wanted:
            to: _Nested = ("to=[", [literal(each) for each in emails], "]")
            yield from _call(f"{argument}=send_email(", [to, f"what={literal(what)}"], ")", depth=2)


def _retries(source: Schedule) -> int:
    return min(max(source.retries or 0, 0), _MOST_RETRIES)


def _delay(source: Schedule) -> int | None:
    """Return the minutes between two tries; ``None`` if there are none, or if Airflow decides."""
    if not _retries(source) or source.delay_between_retries is None or source.delay_between_retries < 0:
        return None
    return min(source.delay_between_retries, _LONGEST_DELAY)


def _emails(source: Schedule) -> tuple[str, ...]:
    return source.emails if source.email_failure or source.email_success else ()


def _call(opening: str, items: Sequence[str | _Nested], closing: str, depth: int = 1) -> Iterator[str]:
    """Write an argument on one line if it fits, and each of its items on its own line otherwise."""
    indent = _INDENT * depth
    line = f"{indent}{_in_one_line(opening, items, closing)},"
    if len(line) <= _WIDTH or not items:
        yield line
        return
    yield f"{indent}{opening}"
    for each in items:
        yield from _call(each, (), "", depth + 1) if isinstance(each, str) else _call(*each, depth + 1)
    yield f"{indent}{closing},"


def _in_one_line(opening: str, items: Sequence[str | _Nested], closing: str) -> str:
    written = ", ".join(each if isinstance(each, str) else _in_one_line(*each) for each in items)
    return f"{opening}{written}{closing}"


def _comments(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        # Ruff's format leaves comments as they are.
        yield from textwrap.wrap(
            visible(text), _WIDTH, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False
        )
