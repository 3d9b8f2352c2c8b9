"""Pausing and resuming schedules, against the sandbox."""

from __future__ import annotations

import logging
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import pytest
from support.state import StateStore
from support.task import TaskInstance

from airflow_provider_etlworks.client.errors import EtlworksError, EtlworksServerError
from airflow_provider_etlworks.compat import AirflowFailException
from airflow_provider_etlworks.hooks.etlworks import EtlworksHook
from airflow_provider_etlworks.operators.schedule import EtlworksScheduleOperator
from airflow_provider_etlworks.sandbox import SandboxFlow, broken_body, hang_up, status

if TYPE_CHECKING:
    from support.etlworks import Etlworks

NIGHTLY, HOURLY, OTHER = 7, 8, 9


@pytest.fixture(autouse=True)
def schedules(etlworks: Etlworks, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give three flows a schedule each: schedule 1 of flow 7, 2 of flow 8, 3 of flow 9."""
    monkeypatch.setattr(EtlworksScheduleOperator, "log", logging.getLogger("seen.EtlworksScheduleOperator"))
    for flow_id in (NIGHTLY, HOURLY, OTHER):
        etlworks.sandbox.add_flow(SandboxFlow(flow_id, f"Flow {flow_id}", schedule="0 0 4 * * ?"))


def enabled(etlworks: Etlworks) -> list[int]:
    return [schedule_id for schedule_id, each in etlworks.sandbox.schedules.items() if each["enabled"]]


def switch(etlworks: Etlworks, schedule_id: int, on: bool) -> None:
    """Turn a schedule on or off as another person does."""
    etlworks.sandbox._organization.enable_schedule(schedule_id, on, "alice@example.com")


def sent(etlworks: Etlworks) -> list[str]:
    """Return which schedules were switched how, in order."""
    paths = [each.path for each in etlworks.sandbox.requests if each.method == "PUT"]
    return ["/".join(path.split("/")[-2:]) for path in paths]


class Switch:
    """A task of the operator, with its tries."""

    def __init__(self, store: StateStore | None = None, **arguments: Any) -> None:
        self.arguments = arguments
        self.store = store
        self.try_number, self.max_tries = 0, 2

    def run(self) -> list[int]:
        self.try_number += 1
        now = datetime.now(timezone.utc)
        ti = TaskInstance(start_date=now, try_number=self.try_number, max_tries=self.max_tries, xcoms={})
        context: Any = {"ti": ti, **({} if self.store is None else {"task_state_store": self.store})}
        return EtlworksScheduleOperator(task_id="switch", **self.arguments).execute(context)


def test_pause_by_flow_pauses_all_its_schedules_and_no_others(etlworks: Etlworks) -> None:
    EtlworksHook().create_schedule({"name": "Also", "flowId": NIGHTLY, "schedule": "30", "enabled": True})

    assert Switch(action="pause", flow_ids=[HOURLY, NIGHTLY]).run() == [2, 1, 4]

    assert enabled(etlworks) == [3]
    assert "flowId" not in str([each.query for each in etlworks.sandbox.requests])


def test_resume_leaves_off_what_was_off_before_the_pause(etlworks: Etlworks) -> None:
    switch(etlworks, 2, False)
    paused = Switch(action="pause", flow_ids=[NIGHTLY, HOURLY, OTHER]).run()
    assert paused == [1, 3]
    assert enabled(etlworks) == []

    assert Switch(action="resume", schedule_ids=paused).run() == [1, 3]

    assert enabled(etlworks) == [1, 3]


def test_nothing_is_sent_for_schedules_in_the_wanted_state(etlworks: Etlworks) -> None:
    switch(etlworks, 1, False)
    assert Switch(action="pause", schedule_ids=[1]).run() == []
    assert Switch(action="resume", schedule_ids=[3]).run() == []
    assert Switch(action="resume", schedule_ids=[]).run() == []
    assert sent(etlworks) == []


@pytest.mark.parametrize("written", [[1, 2], (1, 2), ["1", "2"], "[1, 2]", "['1', '2']", "1, 2", [2, 1, 2], {1, 2}])
def test_ids_are_read_from_lists_and_texts(etlworks: Etlworks, written: Any) -> None:
    assert sorted(Switch(action="pause", schedule_ids=written).run()) == [1, 2]
    assert enabled(etlworks) == [3]


@pytest.mark.parametrize("written", [2, "2", "[2]"])
def test_single_id_is_read(etlworks: Etlworks, written: Any) -> None:
    assert Switch(action="pause", schedule_ids=written).run() == [2]
    assert enabled(etlworks) == [1, 3]


@pytest.mark.parametrize(
    "written", ["None", "", "1;2", ["1", None], True, [True], -1, 1.0, {"id": 1}, b"12", "[1] [2]"]
)
@pytest.mark.parametrize("selection", ["schedule_ids", "flow_ids"])
def test_invalid_ids_are_refused_before_a_request(etlworks: Etlworks, selection: str, written: Any) -> None:
    with pytest.raises(AirflowFailException, match=f"^{selection} is "):
        Switch(action="pause", **{selection: written}).run()
    assert etlworks.sandbox.requests == []


def test_missing_xcom_is_not_an_empty_list(etlworks: Etlworks) -> None:
    task = EtlworksScheduleOperator(task_id="resume", action="resume", schedule_ids="{{ nothing }}")
    task.schedule_ids = None  # what an XCom that is not there is rendered to
    with pytest.raises(AirflowFailException, match=r"^schedule_ids is None"):
        task.execute({"ti": TaskInstance(try_number=1, max_tries=0)})  # type: ignore[typeddict-item]
    assert etlworks.sandbox.requests == []


# --- If schedules cannot be listed ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [status(404), status(405), status(400), status(403), broken_body("<html>Sign in</html>", content_type="text/html")],
    ids=["404", "405", "400", "403", "a page"],
)
def test_missing_list_is_reported_with_the_remedy(etlworks: Etlworks, answer: Any) -> None:
    etlworks.sandbox.fault("GET", "/rest/v1/schedules", answer, times=None)

    with pytest.raises(AirflowFailException, match=r"schedules of flow 7 cannot be listed.* schedule_ids instead"):
        Switch(action="pause", flow_ids=[NIGHTLY]).run()

    assert Switch(action="pause", schedule_ids=[1, 2]).run() == [1, 2]
    assert etlworks.warnings("Cannot find out which schedules are on")
    assert enabled(etlworks) == [3]


def test_schedules_without_a_flow_are_not_paused(etlworks: Etlworks) -> None:
    etlworks.sandbox.fault("GET", "/rest/v1/schedules", broken_body('[{"id": 1, "enabled": true}, {"id": 3}]'))

    with pytest.raises(AirflowFailException, match=r"does not say which flow.* schedule_ids instead"):
        Switch(action="pause", flow_ids=[NIGHTLY]).run()

    assert sent(etlworks) == []


def test_unreadable_list_pauses_nothing(etlworks: Etlworks) -> None:
    etlworks.sandbox.fault("GET", "/rest/v1/schedules", status(503), times=None)

    with pytest.raises(EtlworksServerError):
        Switch(action="pause", schedule_ids=[1]).run()

    assert sent(etlworks) == []


def test_unreadable_list_does_not_prevent_a_resume(etlworks: Etlworks) -> None:
    Switch(action="pause", schedule_ids=[1, 2]).run()
    etlworks.sandbox.fault("GET", "/rest/v1/schedules", status(503), times=None)

    assert Switch(action="resume", schedule_ids=[1, 2]).run() == [1, 2]

    assert enabled(etlworks) == [1, 2, 3]


# --- If one schedule fails ------------------------------------------------------------------------------------------


def test_other_schedules_are_resumed_after_one_fails(etlworks: Etlworks) -> None:
    paused = Switch(action="pause", flow_ids=[NIGHTLY, HOURLY, OTHER]).run()
    etlworks.sandbox.fault("PUT", "/rest/v1/schedules/1/enable", status(403), times=None)

    with pytest.raises(EtlworksError, match=r"1 of 3 schedules could not be resumed: \[1\] .*403"):
        Switch(action="resume", schedule_ids=paused).run()

    assert enabled(etlworks) == [2, 3]


def test_missing_schedule_is_named(etlworks: Etlworks) -> None:
    with pytest.raises(EtlworksError, match=r"1 of 1 schedules could not be resumed: \[99\] .*404"):
        Switch(action="resume", schedule_ids=[99, 1]).run()


def test_failed_pause_is_undone(etlworks: Etlworks) -> None:
    switch(etlworks, 1, False)
    etlworks.sandbox.fault("PUT", "/rest/v1/schedules/2/disable", status(403), times=None)

    with pytest.raises(EtlworksError, match=r"1 of 2 schedules could not be paused: \[2\] .*403"):
        Switch(action="pause", flow_ids=[NIGHTLY, HOURLY, OTHER]).run()

    assert enabled(etlworks) == [2, 3]
    assert sent(etlworks) == ["2/disable", "3/disable", "3/enable"]


def test_pause_in_doubt_is_undone(etlworks: Etlworks) -> None:
    etlworks.sandbox.fault("PUT", "/rest/v1/schedules/2/disable", hang_up(), times=None)

    with pytest.raises(EtlworksError, match="could not be paused"):
        Switch(action="pause", flow_ids=[HOURLY]).run()

    assert enabled(etlworks) == [1, 2, 3]


def test_schedules_that_may_stay_off_are_named(etlworks: Etlworks) -> None:
    etlworks.sandbox.fault("PUT", "/rest/v1/schedules/2/disable", status(403), times=None)
    etlworks.sandbox.fault("PUT", "/rest/v1/schedules/1/enable", status(500), times=None)

    with pytest.raises(EtlworksError, match=r"may be off: \[1\] .*500"):
        Switch(action="pause", flow_ids=[NIGHTLY, HOURLY]).run()

    assert enabled(etlworks) == [2, 3]


def test_interrupted_pause_is_undone(etlworks: Etlworks, monkeypatch: pytest.MonkeyPatch) -> None:
    class TimeOut(BaseException):
        """Airflow's time-out is not an Exception either."""

    pause = EtlworksScheduleOperator(task_id="pause", action="pause", schedule_ids=[1, 2, 3])
    carry_out = pause.hook.pause_schedule

    def cut_off(schedule_id: int) -> None:
        carry_out(schedule_id)
        if schedule_id == 2:
            raise TimeOut

    monkeypatch.setattr(pause.hook, "pause_schedule", cut_off)
    with pytest.raises(TimeOut):
        pause.execute({"ti": TaskInstance(try_number=1, max_tries=0)})  # type: ignore[typeddict-item]

    assert enabled(etlworks) == [1, 2, 3]


def test_transient_fault_is_retried(etlworks: Etlworks) -> None:
    etlworks.sandbox.fault("PUT", "/rest/v1/schedules/1/disable", hang_up())
    etlworks.sandbox.fault("GET", "/rest/v1/schedules", status(503))

    assert Switch(action="pause", flow_ids=[NIGHTLY]).run() == [1]

    assert sent(etlworks) == ["1/disable", "1/disable"]


# --- Tries ----------------------------------------------------------------------------------------------------------


def test_schedules_of_a_lost_try_count_on_airflow_3_3(etlworks: Etlworks) -> None:
    task = Switch(StateStore(), action="pause", flow_ids=[NIGHTLY, HOURLY])
    assert task.run() == [1, 2]  # and then the worker is lost, with this result

    assert task.run() == [1, 2]

    assert enabled(etlworks) == [3]


def test_schedules_of_a_cleared_try_do_not_count(etlworks: Etlworks) -> None:
    task = Switch(StateStore(), action="pause", flow_ids=[NIGHTLY, HOURLY])
    Switch(action="resume", schedule_ids=task.run()).run()
    switch(etlworks, 1, False)  # a person turned it off meanwhile
    task.max_tries += 3

    assert task.run() == [2]


def test_later_try_warns_before_airflow_3_3(etlworks: Etlworks) -> None:
    task = Switch(action="pause", flow_ids=[NIGHTLY, HOURLY])
    switch(etlworks, 1, False)
    assert task.run() == [2]
    assert etlworks.warnings("An earlier try") == []

    assert task.run() == []

    assert etlworks.warnings("An earlier try of this task may have paused")
