"""
The definition of ``airflow etlworks`` for Airflow's command line.

On Airflow 3.2 and later, every ``airflow`` command imports this, so it imports only what Airflow has imported already.
"""

from __future__ import annotations

from argparse import ArgumentTypeError, BooleanOptionalAction
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

from airflow.cli.cli_config import ARG_OUTPUT, ARG_YES, ActionCommand, Arg, GroupCommand, lazy_load_command

from airflow_provider_etlworks.provider_info import DEFAULT_CONN_ID
from airflow_provider_etlworks.runs.defaults import DEFAULT_POLL_INTERVAL

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_DEFAULT_LINES = 200


def _parameter(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        # The text is not repeated: it may be a secret.
        raise ArgumentTypeError("write it as name=value")
    return name, value


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise ArgumentTypeError(f"{text!r} is not a number of seconds greater than 0")
    return seconds


def _whole_number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise ArgumentTypeError(f"{text!r} is not a whole number greater than 0")
    return int(text)


def _time_zone(text: str) -> str:
    try:
        return ZoneInfo(text).key
    except (KeyError, ValueError, OSError):  # not known, not the name of a file below the zones, a directory there
        raise ArgumentTypeError(f"{text!r} is not a time zone, such as Europe/Berlin") from None


def _command(name: str) -> Callable[..., Any]:
    return lazy_load_command(f"airflow_provider_etlworks.cli.commands.{name}")


def _list_of(flag: str, dest: str, text: str, metavar: str, read: Callable[[str], Any] = str) -> Arg:
    return Arg((flag,), help=text, metavar=metavar, dest=dest, type=read, action="append", default=[])


_CONN_ID = Arg(
    ("--conn-id",), help=f"The Airflow connection. Default: {DEFAULT_CONN_ID}", metavar="ID", default=DEFAULT_CONN_ID
)
_OF_WEBHOOK = Arg(
    ("--conn-id",), help="The Airflow connection to Etlworks. Default: that of the webhook's connection", metavar="ID"
)
_FLOW = Arg(("flow",), help="The flow's id, or its exact name", metavar="FLOW")

_FLOWS = ActionCommand(
    name="flows",
    help="List flows",
    func=_command("flows"),
    args=(
        Arg(("--query",), help="Only flows with this text in their name", metavar="TEXT"),
        _list_of("--tag", "tags", "Only flows with this tag; given several times, with all of them", "TAG"),
        ARG_OUTPUT,
        _CONN_ID,
    ),
)
_RUN = ActionCommand(
    name="run",
    help="Start a flow, and wait for its run to end",
    description="Start a flow exactly once, and wait for its run to end. The result goes to the standard output, "
    "progress to the standard error.",
    epilog="Exit codes: 0 success; 1 the run failed, or something else did; 2 wrong usage; 3 the run was canceled; "
    "4 the run's end is not known, and it may still be going; 130 interrupted.",
    func=_command("run"),
    args=(
        _FLOW,
        _list_of("--param", "params", "A parameter of the flow; can be given several times", "NAME=VALUE", _parameter),
        Arg(
            ("--wait",),
            help="Wait for the run to end. Default: yes",
            action=BooleanOptionalAction,
            default=True,
        ),
        Arg(
            ("--timeout",),
            help="Seconds to wait for the end. The run goes on after that. Default: no limit",
            metavar="SECONDS",
            type=_seconds,
        ),
        Arg(
            ("--poll-interval",),
            help=f"Seconds between two polls of a young run. Default: {DEFAULT_POLL_INTERVAL:g}",
            metavar="SECONDS",
            type=_seconds,
            default=DEFAULT_POLL_INTERVAL,
        ),
        Arg(("--fail-on-warning",), help="Exit with 1 if the run ends with a warning", action="store_true"),
        Arg(("--stop-on-interrupt",), help="Stop the run on Ctrl-C. By default it goes on", action="store_true"),
        ARG_OUTPUT,
        _CONN_ID,
    ),
)
_LOG = ActionCommand(
    name="log",
    help="Show the end of a run's log",
    func=_command("log_of_run"),
    args=(
        _FLOW,
        Arg(("audit_id",), help="The run's audit id", metavar="AUDIT_ID", type=_whole_number),
        Arg(
            ("--lines",),
            help=f"How many lines. Default: {_DEFAULT_LINES}",
            metavar="N",
            type=_whole_number,
            default=_DEFAULT_LINES,
        ),
        _CONN_ID,
    ),
)
_PROMOTE = ActionCommand(
    name="promote",
    help="Move flows from one Etlworks to another",
    description="Export flows from one Etlworks, show what importing them into another would change, ask, and import "
    "them, once. What the import overwrites is exported first. Several selections of flows add up.",
    epilog="Exit codes: 0 imported; 1 it failed, or was not wanted; 2 wrong usage; 4 it is not known whether the "
    "flows were imported; 130 interrupted.",
    func=_command("promote"),
    args=(
        Arg(("--source-conn-id",), help="The Airflow connection to export from", metavar="ID", required=True),
        Arg(("--target-conn-id",), help="The Airflow connection to import into", metavar="ID", required=True),
        Arg(
            ("--path",),
            help="The path of the bundle: local, or a URL of an object store. It is sensitive, and stays there",
            metavar="PATH",
            required=True,
        ),
        Arg(("--backup-path",), help="The path of the backup. Default: the path with .backup added", metavar="PATH"),
        _list_of(
            "--flow-id",
            "flow_ids",
            "A flow to promote, by its id in the source; can be given several times",
            "ID",
            _whole_number,
        ),
        _list_of(
            "--flow-name", "flow_names", "A flow to promote, by its exact name; can be given several times", "NAME"
        ),
        _list_of("--tag", "tags", "All flows with this tag; can be given several times", "TAG"),
        Arg(
            ("--include-connections",),
            help="Also promote the connections that the flows use, which overwrites those of the target, credentials "
            "included",
            action="store_true",
        ),
        ARG_YES,
    ),
)
_ADOPT = ActionCommand(
    name="adopt",
    help="Write a DAG file that takes over Etlworks's schedules",
    description="Write a DAG file that starts flows when Etlworks's schedules start them today. A schedule that "
    "Airflow cannot keep exactly becomes a DAG without a schedule, and the table says why.",
    epilog="Exit codes: 0 done; 1 it failed; 2 wrong usage; 4 it is not known whether a schedule was paused; 130 "
    "interrupted.",
    func=_command("adopt"),
    args=(
        _list_of(
            "--flow",
            "flow_ids",
            "The schedules of this flow, by its id; can be given several times",
            "ID",
            _whole_number,
        ),
        _list_of("--tag", "tags", "The schedules of all flows with this tag; can be given several times", "TAG"),
        Arg(("--all",), help="All schedules", action="store_true"),
        Arg(
            ("--timezone",),
            help="The time zone in which Etlworks reads its schedules, which it does not say. Default: UTC",
            metavar="ZONE",
            type=_time_zone,
            default="UTC",
        ),
        Arg(
            ("--accept-clock-changes",),
            help="Also schedule what differs from Etlworks in the hours in which clocks are turned forward or back",
            action="store_true",
        ),
        Arg(
            ("--one-dag-per-time",),
            help="One DAG for all schedules with the same times. Default: one DAG for each schedule",
            action="store_true",
        ),
        Arg(("--output",), help="The DAG file to write. Default: the standard output", metavar="FILE"),
        Arg(("--force",), help="Overwrite the file", action="store_true"),
        Arg(
            ("--pause",),
            help="Turn the schedules off in Etlworks, once the DAG file is written and Airflow accepts it",
            action="store_true",
        ),
        _CONN_ID,
    ),
)
_RELEASE = ActionCommand(
    name="release",
    help="Turn the schedules on again that adopt --pause has turned off",
    description="Turn exactly the schedules on again that `adopt --pause` has turned off for this DAG file. It can be "
    "repeated. The DAG file stays: remove it, or pause its DAGs.",
    epilog="Exit codes: 0 done; 1 it failed; 2 wrong usage; 4 it is not known whether a schedule is on; 130 "
    "interrupted.",
    func=_command("release"),
    args=(
        Arg(("file",), help="The DAG file", metavar="FILE"),
        Arg(("--conn-id",), help="The Airflow connection. Default: that of adopt", metavar="ID"),
    ),
)
_WEBHOOK = GroupCommand(
    name="webhook",
    help="Let Etlworks report completed runs to Airflow, instead of polling",
    subcommands=(
        ActionCommand(
            name="create",
            help="Create a webhook in Etlworks that posts completed runs to this Airflow",
            description="Create a webhook in Etlworks that posts completed runs to this Airflow. What it proves "
            "itself with is read from the connection of the webhook, and is not shown. For administrators of Etlworks.",
            func=_command("create_webhook"),
            args=(
                Arg(
                    ("--url",),
                    help="The address of Airflow, as Etlworks reaches it. Default: base_url in Airflow's section api",
                    metavar="URL",
                ),
                Arg(("--name",), help="The webhook's name. Default: Airflow", metavar="NAME", default="Airflow"),
                _list_of(
                    "--event",
                    "events",
                    "An event, as this release of Etlworks names it; can be given several times. "
                    "Default: Flow.Executed",
                    "EVENT",
                ),
                _list_of(
                    "--flow",
                    "flow_ids",
                    "Only runs of this flow, by its id; can be given several times. Default: all flows",
                    "ID",
                    _whole_number,
                ),
                ARG_OUTPUT,
                _OF_WEBHOOK,
            ),
        ),
        ActionCommand(
            name="list",
            help="List the webhooks in Etlworks",
            func=_command("list_webhooks"),
            args=(ARG_OUTPUT, _OF_WEBHOOK),
        ),
        ActionCommand(
            name="remove",
            help="Remove a webhook from Etlworks",
            func=_command("remove_webhook"),
            args=(
                Arg(("webhook_id",), help="The webhook's id", metavar="ID", type=_whole_number),
                ARG_YES,
                _OF_WEBHOOK,
            ),
        ),
    ),
)


def get_etlworks_cli_commands() -> list[GroupCommand]:
    """Return the commands. Airflow 3.2 and later finds this function in the provider info."""
    return [
        GroupCommand(
            name="etlworks",
            help="Run, watch and promote Etlworks flows",
            subcommands=(_FLOWS, _RUN, _LOG, _PROMOTE, _ADOPT, _RELEASE, _WEBHOOK),
        )
    ]
