"""``airflow etlworks adopt`` and ``release``, against the sandbox."""

from __future__ import annotations

import json
import re
import stat
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import airflow
import pytest
from support.cli import parser_of_commands
from support.clock import VirtualClock, moment

from airflow_provider_etlworks.adoption.dag_file import without_dates
from airflow_provider_etlworks.adoption.pausing import RECORD_ENDING
from airflow_provider_etlworks.cli import commands
from airflow_provider_etlworks.client import endpoints, sync
from airflow_provider_etlworks.client.sync import EtlworksClient
from airflow_provider_etlworks.hooks.etlworks import EtlworksHook
from airflow_provider_etlworks.sandbox import Sandbox, SandboxFlow, broken_body, hang_up, status

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.skipif(
    "cli" not in json.loads((Path(airflow.__file__).parent / "provider_info.schema.json").read_text())["properties"],
    reason="Airflow before 3.2 has no commands of providers",
)

FLOWS = [
    SandboxFlow(1, "Orders", tags=("nightly",), schedule="0 0 4 * * ?"),
    SandboxFlow(2, "Customers", tags=("nightly", "crm"), schedule="0 30 5 ? * MON-FRI"),
    SandboxFlow(3, "Bills", schedule="0 0 4 L * ?"),
    SandboxFlow(4, "Idle"),
]
LIST = "/rest/v1/schedules"


@dataclass
class Done:
    """How a command ended, and what it wrote."""

    code: int
    out: str
    err: str


@pytest.fixture
def etlworks(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sandbox]:
    # A command sets it for its process, and this process goes on.
    monkeypatch.setenv("_AIRFLOW_PROCESS_CONTEXT", "")
    monkeypatch.setattr(sync, "EtlworksClient", partial(sync.EtlworksClient, sleep=lambda _: None))
    with Sandbox(FLOWS, requests_per_minute=None) as sandbox:
        connection = json.loads(sandbox.airflow_connection)
        connection["extra"] = {**connection["extra"], "verify": False}
        monkeypatch.setenv("AIRFLOW_CONN_ETLWORKS_DEFAULT", json.dumps(connection))
        yield sandbox


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """Run a command as Airflow does: ``command("adopt", "--all")``."""
    parser = parser_of_commands()

    def run(*words: str | Path) -> Done:
        code: Any = 0
        try:
            args = parser.parse_args([str(each) for each in words])
            args.func(args)
        except SystemExit as end:
            code = end.code
        written = capsys.readouterr()
        assert "sandbox-key" not in written.out + written.err
        assert "Traceback" not in written.err
        return Done(code, written.out, written.err)

    return run


@pytest.fixture
def unparsed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not start a process that parses the DAG file."""
    monkeypatch.setattr(commands, "check_dag_file", lambda text, _: compile(text, "adopted.py", "exec"))


def add_schedule(**body: Any) -> int:
    with EtlworksClient(EtlworksHook().settings) as client:
        created = client.send(endpoints.create_schedule({"name": "Another", **body}))
    assert created.id is not None
    return created.id


def switch(schedule_id: int, *, on: bool) -> None:
    """Turn a schedule on or off, as a person does in Etlworks."""
    change = endpoints.resume_schedule if on else endpoints.pause_schedule
    with EtlworksClient(EtlworksHook().settings) as client:
        client.send(change(schedule_id))


def are_on(etlworks: Sandbox) -> list[int]:
    return [number for number, each in etlworks.schedules.items() if each["enabled"]]


def recorded(file: Path) -> list[int]:
    record = Path(f"{file}{RECORD_ENDING}")
    return [each["id"] for each in json.loads(record.read_text())["schedules"]] if record.exists() else []


# --- What is written ------------------------------------------------------------------------------------------------


def test_all_schedules_become_a_dag_file_that_airflow_parses(etlworks: Sandbox, command: Callable[..., Done]) -> None:
    done = command("adopt", "--all")
    assert done.code == 0
    assert 'schedule=CronTriggerTimetable("0 4 * * *", timezone="UTC")' in done.out
    assert 'schedule=CronTriggerTimetable("30 5 * * 1-5", timezone="UTC")' in done.out
    assert "schedule=None" in done.out
    assert "NOT SCHEDULED. This schedule has L as day of month (L), which cron does not know." in done.out
    assert "has L as day of month" in done.err
    assert "Here, it is UTC." in done.err
    assert are_on(etlworks) == [1, 2, 3]


@pytest.mark.usefixtures("unparsed")
@pytest.mark.parametrize(
    ("words", "flow_ids"),
    [
        (["--flow", "1"], [1]),
        (["--flow", "1", "--flow", "3"], [1, 3]),
        (["--tag", "nightly"], [1, 2]),
        (["--tag", "crm", "--flow", "3"], [2, 3]),
    ],
)
def test_schedules_are_selected_by_flow_and_tag(
    etlworks: Sandbox, command: Callable[..., Done], words: list[str], flow_ids: list[int]
) -> None:
    done = command("adopt", *words)
    assert done.code == 0
    assert [each for each in range(1, 5) if f"flow_id={each}," in done.out] == flow_ids


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--all", "--flow", "1"],
        ["--all", "--pause"],
        ["--all", "--output", "dags.txt"],
        ["--all", "--timezone", "Mars/Olympus"],
        ["--all", "--timezone", "../etc/passwd"],
        ["--all", "--timezone", "America"],
        ["--flow", "Orders"],
    ],
)
def test_wrong_usage_asks_nothing(etlworks: Sandbox, command: Callable[..., Done], words: list[str]) -> None:
    assert command("adopt", *words).code == 2
    assert etlworks.requests == []


@pytest.mark.usefixtures("unparsed")
def test_unknown_flow_is_an_error(etlworks: Sandbox, command: Callable[..., Done]) -> None:
    done = command("adopt", "--flow", "77")
    assert (done.code, done.out) == (1, "")
    assert "No flow has the id 77" in done.err


@pytest.mark.usefixtures("unparsed")
def test_flow_without_schedules_writes_nothing(etlworks: Sandbox, command: Callable[..., Done], tmp_path: Path) -> None:
    done = command("adopt", "--flow", "4", "--output", tmp_path / "dags.py")
    assert done.code == 1
    assert "nothing was written" in done.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("unparsed")
def test_schedule_that_is_off_is_left_out(etlworks: Sandbox, command: Callable[..., Done]) -> None:
    switch(1, on=False)
    done = command("adopt", "--all")
    assert "flow_id=1," not in done.out
    assert "off in Etlworks" in done.err


@pytest.mark.usefixtures("unparsed")
def test_clock_changes_are_accepted_only_if_asked(etlworks: Sandbox, command: Callable[..., Done]) -> None:
    add_schedule(flowId=4, schedule="0 30 2 * * ?")
    words = ["adopt", "--flow", "4", "--timezone", "Europe/Berlin"]
    strict = command(*words)
    assert "schedule=None" in strict.out
    assert "only Airflow starts it at 03:30+02:00" in strict.err
    assert "--accept-clock-changes" in strict.err
    accepting = command(*words, "--accept-clock-changes")
    assert 'schedule=CronTriggerTimetable("30 2 * * *", timezone="Europe/Berlin")' in accepting.out
    assert "# When clocks change, it is not the same" in accepting.out


@pytest.mark.usefixtures("unparsed")
def test_schedules_with_the_same_times_share_a_dag(etlworks: Sandbox, command: Callable[..., Done]) -> None:
    add_schedule(flowId=4, schedule="0 0 4 ? * *")
    done = command("adopt", "--flow", "1", "--flow", "4", "--one-dag-per-time")
    assert done.out.count("with DAG(") == 1
    assert done.out.count("EtlworksRunFlowOperator(") == 2


@pytest.mark.usefixtures("unparsed")
def test_file_is_written_for_all_and_never_overwritten_unasked(
    etlworks: Sandbox, command: Callable[..., Done], tmp_path: Path
) -> None:
    file = tmp_path / "dags" / "etlworks.py"
    done = command("adopt", "--tag", "crm", "--output", file)
    assert (done.code, done.out.count("Customers"), list(file.parent.iterdir())) == (0, 1, [file])
    assert stat.S_IMODE(file.stat().st_mode) & 0o600 == 0o600
    first = without_dates(file.read_text())
    file.write_text("# mine\n")
    refused = command("adopt", "--tag", "crm", "--output", file)
    assert (refused.code, file.read_text()) == (1, "# mine\n")
    assert "give --force" in refused.err
    assert command("adopt", "--tag", "crm", "--output", file, "--force").code == 0
    assert without_dates(file.read_text()) == first


def test_file_that_airflow_does_not_accept_is_not_written(
    etlworks: Sandbox, command: Callable[..., Done], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands, "dag_file", lambda *_, **__: "import nothing_of_that_name  # airflow dag\n")
    file = tmp_path / "dags.py"
    done = command("adopt", "--all", "--output", file, "--pause")
    assert done.code == 1
    assert "nothing_of_that_name" in done.err
    assert not file.exists()
    assert are_on(etlworks) == [1, 2, 3]


def test_dags_of_forty_schedules_run(
    etlworks: Sandbox, command: Callable[..., Done], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(36):
        times = ["45", "120", "0 0 4 ? * 6#3", f"0 {number} 4 ? * FRI-MON"][number % 4]
        add_schedule(flowId=number % 4 + 1, name=f"Night {number % 9}", schedule=times, retries=number % 3)
    add_schedule(flowId=4, schedule="0 0/15 * * * ?", emailFailure=True, emails="a@example.com b@example.com")
    home = tmp_path / "home"
    file = home / "dags" / "adopted.py"
    done = command("adopt", "--all", "--output", file)
    assert done.code == 0
    assert "40 DAGs" in done.err
    monkeypatch.setenv("AIRFLOW_HOME", str(home))
    monkeypatch.setenv("AIRFLOW__CORE__LOAD_EXAMPLES", "False")
    # The DAGs begin in the next minute; before that, a run of theirs has no tasks.
    script = f"""
from inspect import signature
from airflow_provider_etlworks.compat import DagBag
bag = DagBag({str(file)!r})
assert len(bag.dags) == 40, bag.import_errors
dag = bag.dags["etlworks_schedule_of_orders"]
date = "logical_date" if "logical_date" in signature(dag.test).parameters else "execution_date"
assert dag.test(**{{date: dag.start_date}}).state == "success"
"""
    for words in (["-m", "airflow", "db", "migrate"], ["-c", script]):
        ended = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stdout[-3_000:] + ended.stderr[-3_000:]
    assert [each.status for each in etlworks.runs(1)] == ["success"]


# --- Pause and release ----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("unparsed")
def test_release_turns_on_what_pause_turned_off(
    etlworks: Sandbox, command: Callable[..., Done], tmp_path: Path
) -> None:
    file = tmp_path / "dags.py"
    done = command("adopt", "--all", "--output", file, "--pause")
    assert done.code == 0
    # The third has no schedule in Airflow.
    assert are_on(etlworks) == [3]
    assert recorded(file) == [1, 2]
    again = command("release", file)
    assert (again.code, are_on(etlworks), recorded(file)) == (0, [1, 2, 3], [])
    assert list(tmp_path.iterdir()) == [file]
    assert command("release", file).code == 0


@pytest.mark.usefixtures("unparsed")
def test_release_leaves_off_what_others_turned_off(
    etlworks: Sandbox, command: Callable[..., Done], tmp_path: Path
) -> None:
    switch(2, on=False)
    file = tmp_path / "dags.py"
    command("adopt", "--all", "--output", file, "--pause")
    assert recorded(file) == [1]
    command("release", file)
    assert are_on(etlworks) == [1, 3]


@pytest.mark.usefixtures("unparsed")
def test_release_leaves_alone_what_others_turned_on(
    etlworks: Sandbox, command: Callable[..., Done], tmp_path: Path
) -> None:
    file = tmp_path / "dags.py"
    command("adopt", "--all", "--output", file, "--pause")
    switch(1, on=True)
    done = command("release", file)
    assert "Schedule 1 is on already." in done.err
    assert [each.path for each in etlworks.requests if each.path.endswith("/enable")][-1] == f"{LIST}/2/enable"
    assert are_on(etlworks) == [1, 2, 3]


@pytest.mark.usefixtures("unparsed")
def test_adopting_again_keeps_what_is_paused(etlworks: Sandbox, command: Callable[..., Done], tmp_path: Path) -> None:
    file = tmp_path / "dags.py"
    command("adopt", "--flow", "1", "--output", file, "--pause")
    assert command("adopt", "--tag", "nightly", "--output", file, "--pause", "--force").code == 0
    assert "flow_id=1," in file.read_text()
    assert recorded(file) == [1, 2]
    assert command("adopt", "--tag", "nightly", "--output", file, "--pause").code == 0, "the same file needs no --force"
    command("release", file)
    assert are_on(etlworks) == [1, 2, 3]


@pytest.mark.usefixtures("unparsed")
def test_lost_response_is_read_again(etlworks: Sandbox, command: Callable[..., Done], tmp_path: Path) -> None:
    file = tmp_path / "dags.py"
    # Each attempt is carried out, and its response is lost.
    etlworks.fault("PUT", f"{LIST}/1/disable", hang_up(), times=None)
    done = command("adopt", "--all", "--output", file, "--pause")
    assert (done.code, are_on(etlworks), recorded(file)) == (0, [3], [1, 2])


@pytest.mark.usefixtures("unparsed")
def test_refused_pause_is_not_recorded(etlworks: Sandbox, command: Callable[..., Done], tmp_path: Path) -> None:
    file = tmp_path / "dags.py"
    etlworks.fault("PUT", f"{LIST}/1/disable", status(403), times=None)
    done = command("adopt", "--all", "--output", file, "--pause")
    assert (done.code, are_on(etlworks), recorded(file)) == (1, [1, 3], [2])
    assert "Schedule 1 was not changed" in done.err


@pytest.mark.usefixtures("unparsed")
def test_pause_in_doubt_stays_recorded_and_is_released(
    etlworks: Sandbox, command: Callable[..., Done], tmp_path: Path
) -> None:
    file = tmp_path / "dags.py"
    etlworks.fault("PUT", f"{LIST}/1/disable", hang_up(), times=None)
    # The command reads the list twice before the change, and once after. Each takes two requests.
    etlworks.fault("GET", LIST, status(500), times=None, after=4)
    done = command("adopt", "--all", "--output", file, "--pause")
    assert (done.code, recorded(file)) == (4, [1, 2])
    assert "It is not known whether schedule 1 was changed" in done.err
    etlworks.clear_faults()
    assert command("release", file).code == 0
    assert (are_on(etlworks), recorded(file)) == ([1, 2, 3], [])


@pytest.mark.usefixtures("unparsed")
def test_release_that_fails_can_be_repeated(etlworks: Sandbox, command: Callable[..., Done], tmp_path: Path) -> None:
    file = tmp_path / "dags.py"
    command("adopt", "--all", "--output", file, "--pause")
    etlworks.fault("PUT", f"{LIST}/2/enable", status(403))
    done = command("release", file)
    assert (done.code, are_on(etlworks), recorded(file)) == (1, [1, 3], [2])
    assert command("release", file).code == 0
    assert (are_on(etlworks), recorded(file)) == ([1, 2, 3], [])


@pytest.mark.usefixtures("unparsed")
@pytest.mark.parametrize("calls_before_the_crash", [0, 1])
@pytest.mark.parametrize("reaches_etlworks", [True, False])
def test_crash_while_pausing_is_repaired_by_a_release(
    etlworks: Sandbox,
    command: Callable[..., Done],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    calls_before_the_crash: int,
    reaches_etlworks: bool,
) -> None:
    file = tmp_path / "dags.py"
    pause_schedule, calls = EtlworksHook.pause_schedule, []

    def crash(hook: EtlworksHook, schedule_id: int) -> None:
        calls.append(schedule_id)
        if len(calls) <= calls_before_the_crash or reaches_etlworks:
            pause_schedule(hook, schedule_id)
        if len(calls) > calls_before_the_crash:
            raise SystemError("killed")

    with monkeypatch.context() as crashing:
        crashing.setattr(EtlworksHook, "pause_schedule", crash)
        with pytest.raises(SystemError):
            command("adopt", "--all", "--output", file, "--pause")
    assert set(recorded(file)) >= {1, 2, 3} - set(are_on(etlworks)) - {3}
    assert command("release", file).code == 0
    assert (are_on(etlworks), recorded(file)) == ([1, 2, 3], [])


@pytest.mark.usefixtures("unparsed")
def test_crash_while_pausing_is_completed_by_repeating_it(
    etlworks: Sandbox, command: Callable[..., Done], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "dags.py"
    with monkeypatch.context() as crashing:
        crashing.setattr(EtlworksHook, "pause_schedule", lambda *_: (_ for _ in ()).throw(SystemError("killed")))
        with pytest.raises(SystemError):
            command("adopt", "--all", "--output", file, "--pause")
    assert are_on(etlworks) == [1, 2, 3]
    assert command("adopt", "--all", "--output", file, "--pause").code == 0
    assert (are_on(etlworks), recorded(file)) == ([3], [1, 2])


@pytest.mark.usefixtures("unparsed")
def test_schedule_that_is_changed_meanwhile_is_not_paused(
    etlworks: Sandbox, command: Callable[..., Done], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def change(*_: Any) -> None:
        with etlworks._lock:
            etlworks._organization.schedules[1]["schedule"] = "0 0 5 * * ?"
            del etlworks._organization.schedules[2]

    monkeypatch.setattr(commands, "check_dag_file", change)
    done = command("adopt", "--all", "--output", tmp_path / "dags.py", "--pause")
    assert done.code == 1
    assert "Schedule 1 was not changed: it was changed meanwhile" in done.err
    assert "Schedule 2 was not changed: it does not exist any more" in done.err
    assert are_on(etlworks) == [1, 3]


def test_schedule_that_comes_due_meanwhile_is_named(
    etlworks: Sandbox, command: Callable[..., Done], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = VirtualClock()
    clock.sleep(moment(clock.time()).replace(hour=3, minute=59).timestamp() + 86_400 - clock.time())
    monkeypatch.setattr(sync, "EtlworksClient", partial(sync.EtlworksClient, clock=clock))
    monkeypatch.setattr(commands, "check_dag_file", lambda *_: clock.sleep(90))
    done = command("adopt", "--all", "--output", tmp_path / "dags.py", "--pause")
    assert done.code == 0
    assert re.findall(r"Schedule (\d) came due at \S+T04:00\+00:00, before it was turned off", done.err) == ["1"]


@pytest.mark.usefixtures("unparsed")
def test_interrupt_while_pausing_says_how_to_go_back(
    etlworks: Sandbox, command: Callable[..., Done], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    file = tmp_path / "dags.py"
    monkeypatch.setattr(EtlworksHook, "pause_schedule", interrupt)
    done = command("adopt", "--all", "--output", file, "--pause")
    assert done.code == 130
    assert "airflow etlworks release" in done.err
    assert file.exists()


@pytest.mark.usefixtures("unparsed")
def test_record_of_another_etlworks_is_refused(etlworks: Sandbox, command: Callable[..., Done], tmp_path: Path) -> None:
    file = tmp_path / "dags.py"
    command("adopt", "--all", "--output", file, "--pause")
    record = Path(f"{file}{RECORD_ENDING}")
    record.write_text(record.read_text().replace(etlworks.url, "https://other.example.com"))
    for words in (["release", file], ["adopt", "--all", "--output", file, "--pause", "--force"]):
        done = command(*words)
        assert done.code == 1
        assert "https://other.example.com" in done.err
    assert are_on(etlworks) == [3]


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"schedules": [{}]}', "\0"])
def test_record_that_cannot_be_read_changes_nothing(
    etlworks: Sandbox, command: Callable[..., Done], tmp_path: Path, content: str
) -> None:
    file = tmp_path / "dags.py"
    Path(f"{file}{RECORD_ENDING}").write_text(content)
    done = command("release", file)
    assert done.code == 1
    assert "does not say which schedules were paused" in done.err
    assert etlworks.requests == []


def test_release_of_a_file_that_does_not_exist_fails(
    etlworks: Sandbox, command: Callable[..., Done], tmp_path: Path
) -> None:
    assert command("release", tmp_path / "nothing.py").code == 1


@pytest.mark.usefixtures("unparsed")
@pytest.mark.parametrize("fault", [status(403), broken_body()])
def test_schedules_that_cannot_be_read_write_nothing(
    etlworks: Sandbox, command: Callable[..., Done], tmp_path: Path, fault: Any
) -> None:
    etlworks.fault("GET", LIST, fault, times=None)
    assert command("adopt", "--all", "--output", tmp_path / "dags.py").code == 1
    assert list(tmp_path.iterdir()) == []
