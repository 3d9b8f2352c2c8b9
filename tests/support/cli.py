"""The commands ``airflow etlworks …`` as Airflow reads them, on any Airflow."""

from __future__ import annotations

import argparse

from airflow.cli.cli_config import GroupCommand

from airflow_provider_etlworks.cli.definition import get_etlworks_cli_commands


def parser_of_commands() -> argparse.ArgumentParser:
    """Return what reads the words after ``airflow etlworks``."""
    (group,) = get_etlworks_cli_commands()
    return _with_commands(argparse.ArgumentParser(), group)


def _with_commands(parser: argparse.ArgumentParser, group: GroupCommand) -> argparse.ArgumentParser:
    commands = parser.add_subparsers(required=True)
    for each in group.subcommands:
        subparser = commands.add_parser(each.name)
        if isinstance(each, GroupCommand):
            _with_commands(subparser, each)
            continue
        subparser.set_defaults(func=each.func)
        for argument in each.args:
            argument.add_to_parser(subparser)
    return parser
