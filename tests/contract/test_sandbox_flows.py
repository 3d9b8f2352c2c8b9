"""Flows from YAML files, and the errors for invalid ones."""

from __future__ import annotations

import pytest

from airflow_provider_etlworks.sandbox import Sandbox, SandboxFlow, built_in_flows, load_flows
from airflow_provider_etlworks.sandbox.flows import behaviour, flow_from_mapping


@pytest.fixture
def load(tmp_path):
    def read(text: str):
        path = tmp_path / "mine.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return load_flows(path)

    return read


def test_every_field_is_read(load):
    flows = load(
        """
flows:
  - {id: 1, name: One}
  - id: 2
    name: Two
    description: All fields
    flow_type: stream
    tags: [a, b]
    queued: 1
    running: forever
    ends: error
    records: 5
    log: [first, second]
    exception: |-
      it broke
      badly
    visible_after: 0.5
    streaming: true
    owner: bob@example.com
    listener: orders/new
    schedule: 0 0 4 * * ?
    connections: [db]
"""
    )
    assert flows == [
        SandboxFlow(1, "One"),
        SandboxFlow(
            2,
            "Two",
            description="All fields",
            flow_type="stream",
            tags=("a", "b"),
            queued=1.0,
            running=float("inf"),
            ends="error",
            records=5,
            log=("first", "second"),
            exception="it broke\nbadly",
            visible_after=0.5,
            streaming=True,
            owner="bob@example.com",
            listener="orders/new",
            schedule="0 0 4 * * ?",
            connections=("db",),
        ),
    ]
    documented = {"id": 2, "name": "Two", "flow_type": "stream", "description": "All fields", "tags": ["a", "b"]}
    used = {"schedule": "0 0 4 * * ?", "connections": ["db"]}
    assert flow_from_mapping({**documented, **used, **behaviour(flows[1])}) == flows[1]


@pytest.mark.parametrize(
    ("flow", "complaint"),
    [
        ("{name: One}", r"flow 1 \('One'\): id: missing"),
        ("{id: 1}", "flow 1: name: missing"),
        ("{id: 1, name: One, colour: red}", r"flow 1 \('One'\): colour: unknown field"),
        ("{id: one, name: One}", "id: expected a whole number above 0, got 'one'"),
        ("{id: 0, name: One}", "id: expected"),
        ("{id: true, name: One}", "id: expected"),
        ("{id: 1, name: 1}", "name: expected text"),
        ("{id: 1, name: ' '}", "name: expected text that is not empty"),
        ("{id: 1, name: One, ends: well}", "ends: expected one of success, warning, error, canceled, got 'well'"),
        ("{id: 1, name: One, running: long}", "running: expected a number of seconds, 0 or more, got 'long'"),
        ("{id: 1, name: One, queued: forever}", "queued: expected a number"),
        ("{id: 1, name: One, queued: -1}", "queued: expected a number"),
        ("{id: 1, name: One, queued: .nan}", "queued: expected a number"),
        ("{id: 1, name: One, tags: nightly}", "tags: expected a list of texts, got 'nightly'"),
        ("{id: 1, name: One, log: [1]}", "log: expected a list of texts"),
        ("{id: 1, name: One, records: 1.5}", "records: expected a whole number"),
        ("{id: 1, name: One, streaming: 'yes'}", "streaming: expected true or false"),
        ("{id: 1, name: One, listener: 5}", "listener: expected text"),
        ("just text", "flow 1: expected a mapping of fields, got 'just text'"),
    ],
)
def test_invalid_flow_names_file_and_field(load, flow, complaint):
    with pytest.raises(ValueError, match=rf"mine\.yaml: .*{complaint}"):
        load(f"flows:\n  - {flow}\n")


@pytest.mark.parametrize(
    "text", ["", "[]", "flows:", "flows: {}", "other: []", "flows: []\nother: []", "flows: [", b"\xff\xfe\x00flows"]
)
def test_file_without_flows_is_named(load, text):
    with pytest.raises(ValueError, match=r"mine\.yaml: "):
        load(text)


@pytest.mark.parametrize(
    ("second", "field"),
    [("id: 1, name: Two", "id"), ("id: 2, name: One", "name"), ("id: 2, name: Two, listener: a", "listener")],
)
def test_duplicate_flows_are_refused(load, second, field):
    with pytest.raises(ValueError, match=rf"mine\.yaml: {field}: .* two flows, 1 and"):
        load(f"flows:\n  - {{id: 1, name: One, listener: a}}\n  - {{{second}}}\n")


def test_sandbox_refuses_duplicate_flows():
    with pytest.raises(ValueError, match="name"):
        Sandbox([SandboxFlow(1, "One"), SandboxFlow(2, "One")])
    with pytest.raises(ValueError, match="id"):
        Sandbox([SandboxFlow(1, "One"), SandboxFlow(1, "Two")])
    sandbox = Sandbox([SandboxFlow(1, "One")])
    with pytest.raises(ValueError, match="name"):
        sandbox.add_flow(SandboxFlow(2, "One"))
    sandbox.add_flow(SandboxFlow(1, "One", ends="error"))
    assert sandbox.flows[1].ends == "error"


def test_built_in_flows_load():
    assert len(built_in_flows()) >= 4
