"""The README and the guides agree with the code, and their code blocks run."""

from __future__ import annotations

import importlib
import inspect
import itertools
import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import fields
from importlib.metadata import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from airflow import __version__ as airflow_version
from support.cli import parser_of_commands

import airflow_provider_etlworks
from airflow_provider_etlworks.cli.definition import get_etlworks_cli_commands
from airflow_provider_etlworks.client.settings import ClientSettings
from airflow_provider_etlworks.hooks import metrics
from airflow_provider_etlworks.hooks.connection import settings_from
from airflow_provider_etlworks.hooks.etlworks import EtlworksHook
from airflow_provider_etlworks.operators.flow import EtlworksRunFlowOperator
from airflow_provider_etlworks.operators.listener import EtlworksHttpListenerOperator
from airflow_provider_etlworks.operators.promotion import (
    EtlworksExportOperator,
    EtlworksImportOperator,
    EtlworksImportPreviewOperator,
)
from airflow_provider_etlworks.operators.schedule import EtlworksScheduleOperator
from airflow_provider_etlworks.promotion import promote_flows
from airflow_provider_etlworks.provider_info import CONNECTION_FIELDS
from airflow_provider_etlworks.sandbox import Sandbox
from airflow_provider_etlworks.sandbox.__main__ import main as sandbox_command
from airflow_provider_etlworks.sensors.flow import EtlworksFlowExecutionSensor
from airflow_provider_etlworks.triggers.flow import EtlworksFlowExecutionTrigger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
CI = (ROOT / ".ci" / "run").read_text()
GUIDES = {
    path.name: path.read_text() for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/*.md")]
}
# The code of these guides belongs in functions and tests, not in DAG files, and runs against the sandbox.
PYTHON_GUIDES = [name for name in GUIDES if name not in ("sandbox.md", "hook.md", "testing.md")]
AIRFLOW_3 = not airflow_version.startswith("2.")
# As the guides explain.
ON_AIRFLOW_2 = {
    "from airflow.sdk import DAG": "from airflow import DAG",
    "from airflow.sdk import DAG, task": "from airflow import DAG\nfrom airflow.decorators import task",
}


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def for_this_airflow(block: str) -> str:
    """Return a DAG file as the guides explain it for the installed Airflow."""
    first, rest = block.split("\n", 1)
    return f"{first if AIRFLOW_3 else ON_AIRFLOW_2[first]}\n{rest}"


def python_blocks() -> Iterator[Any]:
    for name in PYTHON_GUIDES:
        for number, block in enumerate(blocks(GUIDES[name], "python")):
            yield pytest.param(block, id=f"{name}-{number}")


def commands(program: str | None = None) -> list[list[str]]:
    """Return the guides' commands, or those of one program, split into words and without ``uv run``."""
    lines = (line for text in GUIDES.values() for block in blocks(text, "console") for line in block.splitlines())
    found = [
        shlex.split(re.sub(r"^uv run (--group \w+ )?", "", line[2:]), comments=True)
        for line in lines
        if line.startswith("$ ")
    ]
    return [words for words in found if program in (None, words[0])]


def table(text: str, *header: str) -> list[list[str]]:
    """Return the rows of the first table with this header."""
    _, found, rest = text.partition(f"| {' | '.join(header)} |\n")
    assert found
    rows = itertools.takewhile(lambda line: line.startswith("|"), rest.splitlines()[1:])
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def parameters_of(text: str, heading: str) -> dict[str, str]:
    """Return the defaults in a guide's table of parameters, by name."""
    section = text.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    rows = table(section, "parameter", "default", "meaning")
    return {name: default for names, default, _ in rows for name in re.findall(r"`(\w+)`", names)}


def defaults_of(function: Callable[..., Any]) -> dict[str, str]:
    named = [each for each in inspect.signature(function).parameters.values() if each.kind is not each.VAR_KEYWORD]
    return {each.name: "" if each.default is each.empty else f"`{each.default!r}`" for each in named[1:]}


def test_first_dag_takes_twelve_lines() -> None:
    assert len(blocks(README, "python")[0].splitlines()) == 12


@pytest.mark.parametrize("block", list(python_blocks()))
def test_python_block_is_a_dag_file(block: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if "AssetWatcher" in block and not AIRFLOW_3:
        pytest.skip("Airflow 2 has no watchers of assets")
    dag_class = importlib.import_module("airflow.sdk" if AIRFLOW_3 else "airflow").DAG
    made, enter = [], dag_class.__enter__
    monkeypatch.setattr(dag_class, "__enter__", lambda dag: made.append(dag) or enter(dag))
    code = compile(for_this_airflow(block), "<guide>", "exec")
    if "promote_flows(" in block and airflow_version.startswith(("2.", "3.0.")):
        # As its guide explains.
        with pytest.raises(ValueError, match="approval=False"):
            exec(code, {})  # noqa: S102  # ours
        return
    exec(code, {})  # noqa: S102  # ours
    (dag,) = made
    assert dag.tasks


def test_sandbox_guide_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    plugin, in_a_test, faults = blocks(GUIDES["sandbox.md"], "python")
    names: dict[str, Any] = {}
    exec(compile(plugin, "<guide>", "exec"), names)  # noqa: S102  # ours
    assert [importlib.import_module(name).etlworks_sandbox for name in names["pytest_plugins"]]
    exec(compile(in_a_test, "<guide>", "exec"), names)  # noqa: S102  # ours
    with Sandbox(requests_per_minute=None) as sandbox:
        names["test_flow_is_started_once"](sandbox, monkeypatch)
        exec(compile(faults, "<guide>", "exec"), {"sandbox": sandbox})  # noqa: S102  # ours


@pytest.mark.skipif(airflow_version.startswith("3.1."), reason="its dag.test() takes only DAGs in its database")
@pytest.mark.timeout(900)  # it creates a database
def test_testing_guide_is_a_test_suite_that_passes(tmp_path: Path) -> None:
    dag_file, conftest, tests = blocks(GUIDES["testing.md"], "python")
    (tmp_path / "dags").mkdir()
    (tmp_path / "dags" / "nightly_billing.py").write_text(for_this_airflow(dag_file))
    (tmp_path / "conftest.py").write_text(conftest)
    (tmp_path / "test_nightly_billing.py").write_text(tests)
    assert ["pytest"] in commands("pytest")

    environment = {name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "PYTEST"))}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--rootdir", str(tmp_path)],
        cwd=tmp_path,
        env={**environment, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{tests.count('def test_')} passed" in done.stdout


def test_commands_are_known() -> None:
    ours = {"etlworks-sandbox", "pytest", "ruff", "mypy", "lint-imports", "mkdocs", ".ci/run"}
    ours |= {f"benchmarks/{name}.py" for name in ("watching", "sharing", "busy_moments")}
    assert {command[0] for command in commands()} == ours | {"pip", "uv", "uvx", "export", "airflow"}


def test_sandbox_commands_exist(capsys: pytest.CaptureFixture[str]) -> None:
    for _, subcommand, *arguments in commands("etlworks-sandbox"):
        if subcommand == "--version":
            continue
        with pytest.raises(SystemExit) as end:
            sandbox_command([subcommand, "--help"])
        assert end.value.code == 0
        help_text = capsys.readouterr().out
        assert [word for word in arguments if word.startswith("--") and word not in help_text] == []


def test_airflow_commands_parse() -> None:
    for _, group, *words in commands("airflow"):
        assert group == "etlworks"
        parser_of_commands().parse_args(words)


def test_every_command_option_is_documented() -> None:
    (group,) = get_etlworks_cli_commands()
    commands = [each for command in group.subcommands for each in getattr(command, "subcommands", [command])]
    flags = {flag for command in commands for argument in command.args for flag in argument.flags}
    shown = set(re.findall(r"--[a-z][a-z-]+", GUIDES["cli.md"] + GUIDES["adopt.md"]))
    assert shown - {"--no-wait"} == {flag for flag in flags if flag.startswith("--")}


def test_connections_are_valid() -> None:
    for _, assignment in commands("export"):
        name, _, value = assignment.partition("=")
        assert name.startswith("AIRFLOW_CONN_ETLWORKS_")
        connection = json.loads(value)
        assert connection["conn_type"] == EtlworksHook.conn_type
        assert settings_from(connection_of(connection)).password.startswith("YOUR-")


def test_ci_runs_every_documented_check() -> None:
    for tool in ("ruff", "mypy", "lint-imports"):
        for command in commands(tool):
            assert f"uv run --quiet {' '.join(command)}" in CI
    assert ["pytest"] in commands("pytest")
    assert re.search(r"^ *uv run pytest \|", CI, re.MULTILINE)


def connection_of(written: dict[str, Any]) -> Any:
    empty = {"conn_id": "etl", "port": None, "schema": None, "login": None, "password": None}
    return SimpleNamespace(**{**empty, **written, "extra": json.dumps(written.get("extra", {}))})


def test_host_spellings_are_one_instance() -> None:
    (spellings,) = blocks(GUIDES["connection.md"], "text")
    hosts = spellings.splitlines()
    assert len(hosts) > 3
    assert {settings_from(connection_of({"host": host, "password": "key"})).root_url for host in hosts} == {
        "https://etlworks.example.com"
    }


def test_connection_extras_are_documented() -> None:
    rows = [row for row in table(GUIDES["connection.md"], "field", "default", "meaning") if row[0].startswith("extra ")]
    assert [row[0] for row in rows] == [f"extra `{name}`" for name in CONNECTION_FIELDS]
    defaults = {each.name: each.default for each in fields(ClientSettings)}
    for field, said, _ in rows:
        default = defaults[field.split("`")[1]]
        if default is None:
            assert "`" not in said
        else:
            shown = default if isinstance(default, str) else f"{default:g}" if default is not True else "true"
            assert said == f"`{shown}`"


def test_compatibility_table_is_the_ci_grid() -> None:
    grid = re.search(r"^# Airflow \| Python .*?\n(.*?)^END$", CI, re.MULTILINE | re.DOTALL)
    assert grid is not None
    proven = []
    for line in grid[1].splitlines():
        airflow, python, day, versions, tests = [cell.strip() for cell in line.split("|")]
        proven.append([airflow, python, f"{versions} of {day}" if day else versions, tests])
    assert table(README, "Airflow", "Python", "packages", "tests") == proven
    promised = re.findall(
        r"Python :: (3\.\d+)", " ".join(metadata("airflow-provider-etlworks").get_all("Classifier", []))
    )
    assert {row[1] for row in proven} == set(promised)


@pytest.mark.parametrize(
    "documented",
    [
        EtlworksRunFlowOperator,
        EtlworksHttpListenerOperator,
        EtlworksFlowExecutionSensor,
        EtlworksExportOperator,
        EtlworksImportPreviewOperator,
        EtlworksImportOperator,
        EtlworksScheduleOperator,
        EtlworksFlowExecutionTrigger,
    ],
)
def test_reference_has_every_parameter_and_default(documented: type) -> None:
    shown = parameters_of(GUIDES["operators.md"], documented.__name__)
    real = defaults_of(vars(documented)["__init__"])
    if "deferrable" in real:
        # The default is a setting of Airflow, not a value.
        real["deferrable"] = shown["deferrable"]
    assert shown == real


def test_promotion_guide_has_every_parameter_and_default() -> None:
    real = inspect.signature(promote_flows).parameters.values()
    named = {each.name: each.default for each in real if each.kind is not each.VAR_KEYWORD}
    written = {name: "" if default is inspect.Parameter.empty else f"`{default!r}`" for name, default in named.items()}
    assert parameters_of(GUIDES["promotion.md"], "Parameters") == written


def test_promotion_guide_has_every_task() -> None:
    shown = {row[0].strip("`") for row in table(GUIDES["promotion.md"], "task", "does", "is there")}
    documented = set(re.findall(r"^``(\w+)`` ", inspect.getdoc(promote_flows) or "", re.MULTILINE))
    assert shown == documented
    assert len(shown) == 9


def test_hook_reference_has_every_method() -> None:
    rows = table(GUIDES["hook.md"], "to", "methods")
    named = {name for _, methods in rows for name in re.findall(r"`(\w+)", methods)}
    public = {name for name, value in vars(EtlworksHook).items() if inspect.isfunction(value) and name[0] != "_"}
    not_for_dag_authors = {"get_conn", "test_connection", "async_client", "read_settings"}
    assert named == public - not_for_dag_authors


def test_navigation_has_every_page() -> None:
    pages = {path.relative_to(ROOT / "docs").as_posix() for path in ROOT.glob("docs/**/*.md")}
    from_elsewhere = {"changelog.md", "contributing.md", "security.md", "benchmarks.md"}
    nav = (ROOT / "mkdocs.yml").read_text().partition("\nnav:\n")[2]
    assert set(re.findall(r": (\S+\.md)$", nav, re.MULTILINE)) == pages | from_elsewhere


@pytest.mark.parametrize("name", GUIDES)
def test_links_between_guides_resolve(name: str) -> None:
    folder = ROOT if name in ("README.md", "CONTRIBUTING.md") else ROOT / "docs"
    targets = [target for target in re.findall(r"\]\(([^)#]+)", GUIDES[name]) if "://" not in target]
    assert [target for target in targets if not (folder / target).exists()] == []


def test_architecture_answers_each_question_with_existing_files() -> None:
    rows = table(GUIDES["architecture.md"], "question", "file")
    assert len(rows) >= 25
    files = [re.findall(r"`([^`]+)`", cell) for _, cell in rows]
    assert all(files)
    package = Path(airflow_provider_etlworks.__file__).parent
    assert [path for paths in files for path in paths if not (package / path).is_file()] == []


def test_deployment_names_every_metric() -> None:
    rows = table(GUIDES["deployment.md"], "name", "kind", "what it counts", "look at it")
    names = [value for value in vars(metrics).values() if isinstance(value, str) and value.startswith("etlworks.")]
    assert [row[0] for row in rows] == [f"`{name}`" for name in names]


def test_architecture_names_every_layer_in_order() -> None:
    (arrows,) = blocks(GUIDES["architecture.md"], "text")
    layers = re.search(r"^layers = \[\n(.*?)^\]", (ROOT / "pyproject.toml").read_text(), re.MULTILINE | re.DOTALL)
    assert layers is not None
    shown = [layer.replace("airflow_provider_etlworks.", "") for layer in re.findall(r'"(.+)"', layers[1])]
    assert [part.strip() for part in arrows.split(">")] == shown
