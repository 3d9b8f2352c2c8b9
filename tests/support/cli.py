"""The commands ``airflow etlworks …`` as Airflow reads them, on any Airflow."""

from __future__ import annotations

import argparse

from airflow_provider_etlworks.cli.definition import get_etlworks_cli_commands


def parser_of_commands() -> argparse.ArgumentParser:
    """Return what reads the words after ``airflow etlworks``."""
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(required=True)
    (group,) = get_etlworks_cli_commands()
    for each in group.subcommands:
        subparser = commands.add_parser(each.name)
        subparser.set_defaults(func=each.func)
        for argument in each.args:
            argument.add_to_parser(subparser)
    return parser
