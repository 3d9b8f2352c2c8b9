"""What a command shows to people. Results go to the standard output, everything else to the standard error."""

from __future__ import annotations

import json
import logging
import sys
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import yaml
from airflow.cli.simple_table import AirflowConsole
from rich.console import Console
from rich.markdown import Markdown
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from airflow_provider_etlworks.client.text import visible

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

log = logging.getLogger("airflow_provider_etlworks")
"""The logger above all of this package's. Inside :func:`quiet_logging`, each of its records is shown as a line."""

# The spinner and the log lines share it, so that neither overwrites the other.
_stderr = Console(stderr=True, markup=False, highlight=False, emoji=False)


def plain(text: str) -> str:
    """Return somebody else's text without characters that control a terminal."""
    return visible(text, keep="\t\n")


def print_status(text: str) -> None:
    """Write a line to the standard error."""
    sys.stderr.write(plain(text) + "\n")
    sys.stderr.flush()


def confirmed(question: str) -> bool:
    """
    Ask the person at the terminal. Any answer but "y" or "yes" is a no.

    :param question: the question.
    """
    sys.stderr.write(f"{plain(question)} [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")


@contextmanager
def quiet_logging() -> Iterator[None]:
    """Show what this package logs as lines, and only errors of other packages; nothing on the standard output."""
    handler = _Lines()
    level, propagate = log.level, log.propagate
    others = [(each, each.level) for each in logging.getLogger().handlers]
    streams = [each for each, _ in others if isinstance(each, logging.StreamHandler) and each.stream is sys.stdout]
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
    for each, _ in others:
        each.setLevel(logging.ERROR)
    for stream in streams:
        stream.setStream(sys.stderr)
    try:
        with warnings.catch_warnings():
            # Airflow writes warnings to the standard output, whatever the loggers say.
            warnings.simplefilter("ignore")
            yield
    finally:
        for stream in streams:
            stream.setStream(sys.stdout)
        for each, before in others:
            each.setLevel(before)
        log.propagate = propagate
        log.setLevel(level)
        log.removeHandler(handler)


class _Lines(logging.Handler):
    """Shows each log record as a line."""

    def emit(self, record: logging.LogRecord) -> None:
        """Show a line."""
        _stderr.print(plain(record.getMessage()), soft_wrap=True)


@contextmanager
def spinner(doing: str) -> Iterator[Callable[[str], None]]:
    """
    Show on a terminal what is being done, and for how long; show nothing elsewhere.

    :param doing: what is being done.
    :return: a function that changes that text.
    """
    if not _stderr.is_terminal:
        yield lambda _: None
        return
    progress = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        TimeElapsedColumn(),
        console=_stderr,
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
    )
    task = progress.add_task(plain(doing), total=None)
    with progress:
        yield lambda text: progress.update(task, description=plain(text))


def show_markdown(text: str) -> None:
    """Write Markdown to the standard output: rendered on a terminal, as text elsewhere."""
    console = Console()
    if console.is_terminal:
        console.print(Markdown(text, hyperlinks=False))
    else:
        sys.stdout.write(f"{text}\n")


def show_rows(rows: Sequence[dict[str, Any]], output: str, *, as_status: bool = False) -> None:
    """
    Write rows to the standard output.

    :param rows: their values by column, as JSON.
    :param output: ``table``, ``plain``, ``json`` or ``yaml``.
    :param as_status: write a table to the standard error instead, since the result is something else.
    """
    if output in ("json", "yaml"):
        _show_data(list(rows), output)
    else:
        console = AirflowConsole(markup=False, highlight=False, emoji=False, stderr=as_status)
        console.print_as([{name: _cell(value) for name, value in row.items()} for row in rows], output)


def show_record(record: dict[str, Any], output: str) -> None:
    """
    Write one record to the standard output: as data, or with a row for each field.

    :param record: the record, as JSON.
    :param output: ``table``, ``plain``, ``json`` or ``yaml``.
    """
    if output in ("json", "yaml"):
        _show_data(record, output)
    else:
        show_rows([{"property": name, "value": value} for name, value in record.items()], output)


def _show_data(data: Any, output: str) -> None:
    # Not Airflow's own console, which turns numbers into text.
    if output == "json":
        sys.stdout.write(json.dumps(data, indent=2) + "\n")
    else:
        yaml.safe_dump(data, sys.stdout, sort_keys=False, allow_unicode=True)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return plain(", ".join(map(str, value)) if isinstance(value, list) else str(value)).replace("\n", " ")
