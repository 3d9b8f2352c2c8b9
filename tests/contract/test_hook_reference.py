"""The hook's reference: each of its examples is run against the sandbox, in order, as a reader would."""

from __future__ import annotations

import asyncio
import inspect
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from airflow_provider_etlworks.client.models import Execution, Flow
from airflow_provider_etlworks.hooks.etlworks import EtlworksHook
from airflow_provider_etlworks.sandbox import built_in_flows

if TYPE_CHECKING:
    from support.etlworks import Etlworks

REFERENCE = (Path(__file__).parents[2] / "docs" / "hook.md").read_text()
EXAMPLES = re.findall(r"^```python\n(.*?)^```$", REFERENCE, re.MULTILINE | re.DOTALL)
METHODS = set(re.findall(r"`(\w+)`", REFERENCE.partition("| to | methods |")[2].partition("\n\n")[0]))


@pytest.fixture
def known(etlworks: Etlworks) -> dict[str, Any]:
    """Run all examples, and return the names that they have made."""
    for flow in built_in_flows():
        etlworks.sandbox.add_flow(flow)
    etlworks.is_ours = lambda _: False  # type: ignore[method-assign]  # these runs belong to no task
    names: dict[str, Any] = {}
    for example in EXAMPLES:
        exec(compile(example, "<docs/hook.md>", "exec"), names)  # noqa: S102  # ours
    assert {each.status for each in etlworks.sandbox.requests if each.status != 404} <= {200, 201}
    return names


def test_every_method_has_an_example() -> None:
    code = "\n".join(EXAMPLES)
    assert {name for name in METHODS if f"hook.{name}(" not in code} == set()


@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_method_documents_parameters_return_and_source(name: str) -> None:
    method = getattr(EtlworksHook, name)
    told = inspect.getdoc(method) or ""
    parameters = [each for each in inspect.signature(method).parameters if each != "self"]

    assert [each for each in parameters if f":param {each}:" not in told] == []
    assert (":return:" in told) == (inspect.signature(method).return_annotation != "None")
    assert ":source:" in told


def test_examples_do_what_they_say(etlworks: Etlworks, known: dict[str, Any]) -> None:
    sandbox = etlworks.sandbox
    assert set(known["nightly"]) == {12346, 12348, 12349, 12350}
    assert known["billing"] == ["Stripe to Snowflake — daily"]
    assert isinstance(known["flow"], Flow)
    assert known["same"].id == 12345
    assert known["hook"].get_flow(12345).description == "Charges, every night"
    assert known["hook"].get_flow(12347).description == "Orders of the web shop"
    assert [set(flow.tags) for flow in known["flows"]] == [
        {"production", "reviewed"}, {"production", "warehouse", "nightly", "reviewed"},
    ]  # fmt: skip
    assert (known["ended"].status, known["ended"].records) == ("success", 18204)
    assert known["stop"].accepted
    assert sandbox.runs(12346)[0].stop_requested
    assert known["this_run"] == known["newest"] == known["last_good"] == known["ended"]
    assert known["never_ran"] is None
    assert [run.audit_id for run in known["newest_ten"]] == [known["ended"].audit_id]
    assert known["failed_today"] == []
    assert "ended: success" in known["tail"]
    assert [task.type for task in known["loads"]] == ["load"]
    assert str(known["started"].audit_id) in known["url"]
    assert known["summary"].total >= 1
    assert isinstance(known["bundle"], bytes)
    assert known["read_again"].connection_type == "connection.db.postgres"
    assert known["schedule"].id in known["all_on"]
    assert isinstance(known["run"], Execution)
    assert known["run"].message_uuid == known["answer"]["messageUuid"]
    assert [each["id"] for each in known["etl_flows"]] == [12346]
    assert len(known["last_events"]) > 10
    assert known["by_name"].audit_id in {run.audit_id for run in sandbox.runs(12347)}
    assert known["message"]["messageUuid"]
    assert len(asyncio.run(known["flow_names"]())) == len(sandbox.flows)


def test_concurrently_added_tags_are_kept(etlworks: Etlworks, monkeypatch: pytest.MonkeyPatch) -> None:
    hook = EtlworksHook()
    flow_id = 7
    read = EtlworksHook.get_flow
    others = iter([{"theirs"}])

    def read_while_somebody_tags(self: EtlworksHook, wanted: int) -> Flow:
        flow = read(self, wanted)
        for tags in others:
            read_again = read(self, wanted)
            self.replace_flow(wanted, {**read_again.raw, "tags": sorted(tags)})
        return flow

    monkeypatch.setattr(EtlworksHook, "get_flow", read_while_somebody_tags)

    (tagged,) = hook.tag_flows([flow_id], add=["ours"])

    assert set(tagged.tags) == {"theirs", "ours"}
    assert [each.status for each in etlworks.sandbox.requests if each.method == "PUT"] == [200, 409, 200]
