"""A start in doubt, over both transports: its run is found by the key, and nothing is sent twice."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import pytest
from support.clock import VirtualClock

from airflow_provider_etlworks.client import endpoints
from airflow_provider_etlworks.client.errors import EtlworksStartUnknown
from airflow_provider_etlworks.client.procedure import ReadHead
from airflow_provider_etlworks.runs.start import RunStarter, Started
from airflow_provider_etlworks.sandbox import Sandbox, SandboxFlow, broken_body, hang_up, truncated

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.client import Drive

RUN_PATH = "/rest/v1/flows/7/run"
IN_DOUBT = {
    "dropped": hang_up(),
    "cut off": truncated(),
    "502": broken_body(code=502),
    "303": broken_body(code=303),
    "410": broken_body(code=410),
    "success is false": broken_body(b'{"success": false}', content_type="application/json"),
    "unknown status": broken_body(b'{"flowId": 7, "auditId": 8721934, "status": 9}', content_type="application/json"),
    "another flow": broken_body(b'{"flowId": 8, "auditId": 8721935, "status": 0}', content_type="application/json"),
}


def starter(clock: VirtualClock, **options: Any) -> RunStarter:
    return RunStarter(7, clock, logging.getLogger("start"), **options)


@pytest.mark.parametrize("place", ["record", "log"])
@pytest.mark.parametrize("fault", IN_DOUBT)
def test_run_of_start_in_doubt_is_found_by_its_key(connect: Callable[..., Drive], fault: str, place: str) -> None:
    clock = VirtualClock()
    with Sandbox([SandboxFlow(7, "Nightly load", running=0)], echo_parameters=(place,)) as sandbox:
        drive = connect(sandbox.url, clock=clock)
        drive.run(starter(clock).start())
        keyed = starter(clock, run_key_parameter="airflowRun", run_key="nightly/load")
        sandbox.fault("POST", RUN_PATH, IN_DOUBT[fault])

        started = drive.run(keyed.start())

        assert keyed.key is not None
        assert started == Started(sandbox.runs()[-1].audit_id)
        assert sandbox.runs()[-1].parameters == {"airflowRun": keyed.key.value}
        assert sandbox.runs_started() == 2


@pytest.mark.parametrize("fault", IN_DOUBT)
def test_run_of_start_in_doubt_is_not_adopted_without_proof(connect: Callable[..., Drive], fault: str) -> None:
    clock = VirtualClock()
    with Sandbox([SandboxFlow(7, "Nightly load", running=0)]) as sandbox:
        sandbox.fault("POST", RUN_PATH, IN_DOUBT[fault])

        with pytest.raises(EtlworksStartUnknown) as unknown:
            connect(sandbox.url, clock=clock).run(starter(clock).start())

        assert unknown.value.candidates == (sandbox.runs()[0].audit_id,)
        assert sandbox.runs_started() == 1


def test_only_the_head_of_a_long_text_is_read(connect: Callable[..., Drive]) -> None:
    flow = SandboxFlow(7, "Nightly load", running=0, log=tuple("x" * 100_000 for _ in range(10)))
    with Sandbox([flow]) as sandbox:
        audit_id = sandbox.run_by_user(7)

        def head() -> Any:
            return (yield ReadHead(endpoints.execution_log(7, audit_id), 65_536))

        text = connect(sandbox.url).run(head())

    assert text.count("Flow 'Nightly load' queued") == 1
    assert 65_536 <= len(text) <= 2 * 65_536


def test_log_that_cannot_be_read_is_no_proof(connect: Callable[..., Drive]) -> None:
    clock = VirtualClock()
    with Sandbox([SandboxFlow(7, "Nightly load", running=0)], echo_parameters=("log",)) as sandbox:
        sandbox.fault("POST", RUN_PATH, hang_up())
        sandbox.fault("GET", "/rest/v1/executions/console/download", hang_up(), times=None)

        with pytest.raises(EtlworksStartUnknown):
            connect(sandbox.url, clock=clock).run(starter(clock, run_key_parameter="airflowRun").start())

        assert sandbox.runs_started() == 1
