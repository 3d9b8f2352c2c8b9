"""Imports: exactly what was approved, once; and what is reported about an import in doubt."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from support.promotion import EXPORT, FLOWS, IMPORT, NEWER, SECRET_IN_BUNDLE, Promotion, sha256_of
from support.proxy import Break, Proxy

from airflow_provider_etlworks.client import streaming
from airflow_provider_etlworks.sandbox import (
    SandboxFlow,
    broken_body,
    hang_up,
    redirect,
    status,
    truncated,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

JSON = "application/json"
OLDER_IMPORT = "/rest/v1/flows/import"


@pytest.fixture
def promotion(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path) -> Iterator[Promotion]:
    with Promotion(monkeypatch, caplog, tmp_path) as promotion:
        yield promotion
    assert SECRET_IN_BUNDLE not in promotion.log_text()


def says(body: Any) -> Any:
    """Answer with a body, without carrying the import out."""
    return status(200, body=json.dumps(body), headers={"Content-Type": JSON})


# --- What is imported -----------------------------------------------------------------------------------------------


def test_bundle_is_imported_byte_for_byte(promotion: Promotion) -> None:
    exported = promotion.exported()
    went = promotion.importing(expected_sha256=exported["sha256"].upper()).run()
    sent = [each.body for each in promotion.production.requests if each.method == "POST"]
    assert sent[-1] == Path(promotion.path).read_bytes()
    assert went.result == {
        "path": promotion.path,
        "sha256": exported["sha256"],
        "bytes": exported["bytes"],
        "format": "io",
        "flow_ids": [11, 13, 14],
        "flow_names": ["Orders", "Customers", "Invoices | €"],
        "items": [
            {"kind": "flow", "id": 11, "name": "Orders", "status": "replaced"},
            {"kind": "flow", "id": 13, "name": "Customers", "status": "created"},
            {"kind": "flow", "id": 14, "name": "Invoices | €", "status": "created"},
            {"kind": "connection", "id": 1, "name": "orders-db", "status": "replaced"},
        ],
        "told_by": "answer",
        "backup_path": None,
        "backup_sha256": None,
    }


@pytest.mark.parametrize("position", [0, 100, -1])
def test_bundle_changed_by_one_byte_is_refused(promotion: Promotion, position: int) -> None:
    exported = promotion.exported()
    content = bytearray(Path(promotion.path).read_bytes())
    content[position] ^= 1
    Path(promotion.path).write_bytes(content)
    for arguments, said in (
        ({"expected_sha256": exported["sha256"]}, "not the expected one"),
        ({}, "not the one that its .meta.json describes"),
    ):
        went = promotion.importing(**arguments).run()
        assert went.colour == "failed for good"
        assert said in went.said
        assert promotion.previewing(**arguments).run().colour == "failed for good"
    assert promotion.production.requests == []


@pytest.mark.parametrize("size", [100, streaming.CHUNK_SIZE, 3 * streaming.CHUNK_SIZE, 3 * streaming.CHUNK_SIZE + 100])
@pytest.mark.parametrize("change", ["first byte", "last byte", "shorter", "longer", "empty"])
def test_bundle_changed_while_sending_does_not_take_effect(
    promotion: Promotion, monkeypatch: pytest.MonkeyPatch, size: int, change: str
) -> None:
    script = "x" * (size - len('{"flows":[""]}'))
    body = json.dumps({"flows": [script]}, separators=(",", ":")).encode()
    promotion.staging.fault("POST", EXPORT, broken_body(body, content_type=JSON))
    promotion.exported(flow_ids=[1])
    changed = {
        "first byte": b"[" + body[1:],
        "last byte": body[:-1] + b"]",
        "shorter": body[: size // 2],
        "longer": body + b" ",
        "empty": b"",
    }[change]
    list_flows = promotion.importing().operator.hook.__class__.list_flows

    def changing(*arguments: Any, **named: Any) -> Any:
        # After the check, and before the import. In place: the same file, so the open one changes too.
        with Path(promotion.path).open("r+b") as file:
            file.write(changed)
            file.truncate()
        return list_flows(*arguments, **named)

    monkeypatch.setattr(promotion.importing().operator.hook.__class__, "list_flows", changing)
    went = promotion.importing().run()
    assert went.colour == "failed for good"
    assert "The bundle changed while it was being sent" in went.said
    assert promotion.names(promotion.production) == ["Orders", "Reports"]
    assert all(each.body != changed for each in promotion.production.requests if each.path == IMPORT)


def test_bundle_replaced_while_sending_is_sent_as_approved(
    promotion: Promotion, monkeypatch: pytest.MonkeyPatch
) -> None:
    exported = promotion.exported(flow_ids=[1])
    approved = Path(promotion.path).read_bytes()
    hook = promotion.importing().operator.hook.__class__
    list_flows = hook.list_flows

    def replacing(self: Any, **named: Any) -> Any:
        if self.etlworks_conn_id == "production":
            promotion.exported(flow_ids=[2])
        return list_flows(self, **named)

    monkeypatch.setattr(hook, "list_flows", replacing)
    assert promotion.importing(expected_sha256=exported["sha256"]).run().colour == "success"
    (imported,) = (each for each in promotion.production.requests if each.path == IMPORT)
    assert imported.body == approved


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"expected_sha256": "abc"}, "expected_sha256 is 'abc'"),
        ({"expected_sha256": "None"}, "expected_sha256 is 'None'"),
        ({"expected_sha256": ""}, "expected_sha256 is ''"),
        ({"path": "/no/such/bundle.json"}, "The bundle '/no/such/bundle.json' does not exist"),
        ({"backup_path": ""}, "backup_path is ''"),
        ({"backup_path": "None"}, "backup_path is 'None'"),
    ],
)
def test_arguments_that_cannot_work_fail_for_good(promotion: Promotion, arguments: dict[str, Any], said: str) -> None:
    promotion.exported()
    went = promotion.importing(**arguments).run()
    assert went.colour == "failed for good"
    assert said in went.said
    assert promotion.production.requests == []


@pytest.mark.parametrize("name", ["expected_sha256", "backup_path"])
def test_argument_rendered_to_none_is_refused(promotion: Promotion, name: str) -> None:
    promotion.exported()
    task = promotion.importing(**{name: "{{ ti.xcom_pull('review')['sha256'] }}"})
    setattr(task.operator, name, None)
    went = task.run()
    assert went.colour == "failed for good"
    assert f"{name} was given, and is None" in went.said
    assert promotion.production.requests == []


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"format": "io"}', '{"format": "other", "instance": {}}', '{"instance": 1}', "null"]
)
def test_unreadable_manifest_is_reported(promotion: Promotion, text: str) -> None:
    promotion.exported()
    Path(promotion.path + ".meta.json").write_text(text)
    went = promotion.importing().run()
    assert went.colour == "failed for good"
    assert ".meta.json' cannot be used" in went.said


def test_unknown_manifest_field_is_ignored(promotion: Promotion) -> None:
    promotion.exported()
    manifest = Path(promotion.path + ".meta.json")
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "signature": "later"}))
    assert promotion.importing().run().colour == "success"


# --- Where it comes from --------------------------------------------------------------------------------------------


def test_import_into_the_source_is_refused(promotion: Promotion) -> None:
    promotion.exported()
    before = len(promotion.staging.requests)
    went = promotion.importing(etlworks_conn_id="staging").run()
    assert went.colour == "failed for good"
    assert "the very instance that it is to be imported into" in went.said
    assert len(promotion.staging.requests) == before
    allowed = promotion.importing(etlworks_conn_id="staging", allow_same_instance=True).run()
    assert allowed.colour == "success"


@pytest.mark.parametrize(
    ("source", "target", "is_same"),
    [("1", "2", False), ("1", "1", True), (None, "1", True), ("1", None, True), (None, None, True)],
)
def test_tenants_differ_only_if_both_are_named(
    promotion: Promotion, source: str | None, target: str | None, is_same: bool
) -> None:
    url = promotion.staging.url
    for conn_id, tenant in (("staging", source), ("production", target)):
        promotion.connect(conn_id, url.replace("http", "HTTP"), extra={"tenant_id": tenant} if tenant else {})
    promotion.exported()
    went = promotion.importing().run()
    assert went.colour == ("failed for good" if is_same else "success")


def test_bundle_without_manifest_needs_allow_same_instance(promotion: Promotion) -> None:
    promotion.exported()
    Path(promotion.path + ".meta.json").unlink()
    went = promotion.importing().run()
    assert went.colour == "failed for good"
    assert "Nothing next to" in went.said
    result = promotion.importing(allow_same_instance=True).run()
    assert result.result is not None
    assert (result.result["format"], result.result["flow_names"]) == ("io", [])
    assert promotion.names(promotion.production) == ["Customers", "Invoices | €", "Orders", "Reports"]
    backup = promotion.importing(allow_same_instance=True, backup_path=f"{promotion.directory}/backup.json").run()
    assert backup.colour == "failed for good"
    assert "cannot be backed up" in backup.said


# --- The backup -----------------------------------------------------------------------------------------------------


def test_what_is_overwritten_is_backed_up_first(promotion: Promotion) -> None:
    promotion.exported()
    backup = f"{promotion.directory}/backup.json"
    went = promotion.importing(backup_path=backup).run()
    assert went.result is not None
    assert (went.result["backup_path"], went.result["backup_sha256"]) == (backup, sha256_of(backup))
    order = [each.path for each in promotion.production.requests if each.method == "POST"]
    assert order == [EXPORT, IMPORT]
    manifest = json.loads(Path(backup + ".meta.json").read_text())
    assert (manifest["flow_ids"], manifest["flow_names"]) == ([11], ["Orders"])
    assert manifest["include_connections"] is True


def test_a_backup_rolls_back(promotion: Promotion) -> None:
    promotion.production.add_flow(SandboxFlow(11, "Orders", description="as it was", connections=("orders-db",)))
    promotion.exported()
    backup = f"{promotion.directory}/backup.json"
    went = promotion.importing(backup_path=backup).run()
    assert went.result is not None
    assert promotion.production.flows[11].description == ""
    rolled_back = promotion.importing(
        path=backup, expected_sha256=went.result["backup_sha256"], allow_same_instance=True
    ).run()
    assert rolled_back.colour == "success"
    assert promotion.production.flows[11].description == "as it was"


def test_backup_of_nothing(promotion: Promotion) -> None:
    promotion.exported(flow_names=["Customers"])
    backup = Path(promotion.directory) / "backup.json"
    went = promotion.importing(backup_path=str(backup)).run()
    assert went.result is not None
    assert (went.result["backup_path"], went.result["backup_sha256"]) == (None, None)
    assert not backup.exists()


@pytest.mark.parametrize(
    ("fault", "colour"),
    [(status(500), "failed"), (broken_body(), "failed"), (truncated(), "failed"), (status(403), "failed for good")],
)
def test_without_its_backup_nothing_is_imported(promotion: Promotion, fault: Any, colour: str) -> None:
    promotion.exported()
    promotion.production.fault("POST", EXPORT, fault, times=None)
    task = promotion.importing(backup_path=f"{promotion.directory}/backup.json")
    assert task.run().colour == colour
    assert promotion.imports() == 0
    promotion.production.clear_faults()
    assert task.run().colour == "success"


def test_backup_path_must_differ_from_the_bundles(promotion: Promotion) -> None:
    exported = promotion.exported()
    went = promotion.importing(backup_path=promotion.path).run()
    assert went.colour == "failed for good"
    assert "the bundle's own path" in went.said
    assert sha256_of(promotion.path) == exported["sha256"]


# --- What the server says -------------------------------------------------------------------------------------------


def test_a_refusal_in_a_200_fails_with_the_servers_reason(promotion: Promotion) -> None:
    promotion.exported()
    promotion.production.fault("POST", IMPORT, says({"success": False, "message": "Connection orders-db is locked"}))
    task = promotion.importing()
    went = task.run()
    assert went.colour == "failed for good"
    assert "Connection orders-db is locked" in went.said
    assert "None of the bundle's flows has changed in the target" in went.said
    assert promotion.imports() == 1


def test_refusal_names_the_failed_items(promotion: Promotion) -> None:
    promotion.exported()
    body = {
        "success": False,
        "message": "2 of 3 imported",
        "flows": [
            {"id": 11, "name": "Orders", "status": "replaced"},
            {"id": 13, "name": "Customers", "status": "created"},
            {"name": "Invoices | €", "status": "error", "message": "no such format"},
        ],
    }
    promotion.production.fault("POST", IMPORT, says(body))
    went = promotion.importing().run()
    assert went.colour == "failed for good"
    assert "2 of 3 imported" in went.said
    assert "Not done: 'flow Invoices | € (no such format)'. None of the bundle's flows has changed" in went.said


def test_refusal_reports_what_changed_in_the_target(promotion: Promotion) -> None:
    promotion.exported()
    promotion.production.fault("POST", IMPORT, says({"success": False, "message": "stopped half-way"}))
    orders = promotion.production.flows[11]
    task = promotion.importing()
    task.context["task_state_store"].before_the_start = lambda: promotion.production.add_flow(orders)
    went = task.run()
    assert "stopped half-way" in went.said
    assert "In the target, changed: 'Orders'. Not changed: 'Customers', 'Invoices | €'." in went.said


def test_failed_item_fails_the_import(promotion: Promotion) -> None:
    promotion.exported()
    body = {"success": True, "results": [{"flowId": 1, "flowName": "Orders", "success": False, "error": "locked"}]}
    promotion.production.fault("POST", IMPORT, says(body))
    went = promotion.importing().run()
    assert went.colour == "failed for good"
    assert "only a part" in went.said
    assert "'flow Orders (locked)'" in went.said


@pytest.mark.parametrize(("code", "said"), [(400, "400 to POST"), (403, "role does not allow"), (409, "409 to POST")])
def test_refusal_by_status_may_be_retried(promotion: Promotion, code: int, said: str) -> None:
    promotion.exported()
    promotion.production.fault("POST", IMPORT, status(code))
    task = promotion.importing()
    went = task.run()
    # A retry would have the same role.
    assert went.colour == ("failed for good" if code == 403 else "failed")
    assert said in went.said
    assert task.run().colour == "success"
    assert promotion.imports() == 2


@pytest.mark.parametrize("answer", [{"status": "ok"}, [], "done", {"imported": 3}])
def test_an_answer_of_an_unknown_shape_is_a_success(promotion: Promotion, answer: Any) -> None:
    promotion.exported()
    promotion.production.fault("POST", IMPORT, broken_body(json.dumps(answer), content_type=JSON))
    went = promotion.importing().run()
    assert went.result is not None
    assert (went.result["items"], went.result["told_by"]) == ([], "answer")
    assert went.result["flow_ids"] == [11, 13, 14]


def test_no_content_is_a_success(promotion: Promotion) -> None:
    promotion.exported()
    promotion.production.fault("POST", IMPORT, broken_body(b"", code=204))
    assert promotion.importing().run().colour == "success"


def test_remarks_of_the_target_are_logged(promotion: Promotion) -> None:
    promotion.exported()
    body = {"success": True, "warnings": ["orders-db is missing\n\x1b[31m", {"message": "password=hunter2"}]}
    promotion.production.fault("POST", IMPORT, broken_body(json.dumps(body), content_type=JSON))
    assert promotion.importing().run().colour == "success"
    assert "and remarks: orders-db is missing [31m" in promotion.log_text()
    assert "and remarks: password=***" in promotion.log_text()


def test_flows_that_did_not_arrive_are_logged(promotion: Promotion) -> None:
    promotion.exported()
    promotion.production.fault("POST", IMPORT, says({"success": True}))
    assert promotion.importing().run().colour == "success"
    assert "does not list these flows: 'Customers', 'Invoices | €'" in promotion.log_text()


# --- Where the answer is lost ---------------------------------------------------------------------------------------

LOST = {
    "dropped": hang_up(),
    "cut off": truncated(),
    "a page": broken_body(),
    "nothing": broken_body(b"", content_type=JSON),
    "half of it": broken_body(b'{"success":', content_type=JSON),
    "a bundle's part": broken_body(SECRET_IN_BUNDLE, content_type=JSON),
    "502": broken_body(code=502),
    "504": broken_body(code=504),
    "500": broken_body(b'{"status":500,"message":"out of memory"}', content_type=JSON, code=500),
}


@pytest.mark.parametrize("fault", LOST)
def test_import_with_a_lost_answer_is_found_in_the_target(promotion: Promotion, fault: str) -> None:
    promotion.exported()
    promotion.production.fault("POST", IMPORT, LOST[fault])
    went = promotion.importing().run()
    assert went.result is not None, went.said
    assert went.result["told_by"] == "target"
    assert went.result["flow_ids"] == [11, 13, 14]
    assert promotion.imports() == 1


@pytest.mark.parametrize("fault", [hang_up(carried_out=False), status(503), status(500, body="<p>oops</p>")])
def test_unproven_import_names_both_possibilities(promotion: Promotion, fault: Any) -> None:
    promotion.exported()
    promotion.production.fault("POST", IMPORT, fault)
    task = promotion.importing()
    for _ in range(2):
        went = task.run()
        assert went.colour == "failed for good"
        assert "Either it was applied and the target does not show it, or it was not applied" in went.said
        assert "'Orders', 'Customers', 'Invoices | €'" in went.said
        assert "mark this task as success" in went.said
    assert promotion.imports() == 1
    task.clear()
    assert task.run().colour == "success"
    assert promotion.imports() == 2


def test_late_import_is_found(promotion: Promotion) -> None:
    promotion.exported()
    content = Path(promotion.path).read_bytes()
    promotion.production.fault("POST", IMPORT, hang_up(carried_out=False))

    def late() -> None:
        import requests

        headers = {"Authorization": f"Bearer {promotion.production.api_key}", "Content-Type": JSON}
        requests.post(promotion.production.url + IMPORT, data=content, headers=headers, timeout=30).raise_for_status()

    promotion.clock.at(1060, late)
    went = promotion.importing().run()
    assert went.result is not None, went.said
    assert went.result["told_by"] == "target"


def test_partly_applied_import_names_what_changed(promotion: Promotion) -> None:
    promotion.exported()
    promotion.production.fault("POST", IMPORT, hang_up(carried_out=False))
    orders = promotion.production.flows[11]
    promotion.clock.at(1010, lambda: promotion.production.add_flow(orders))
    went = promotion.importing().run()
    assert went.colour == "failed for good"
    assert "changed: 'Orders'. Not changed: 'Customers', 'Invoices | €'." in went.said


def test_change_by_another_user_is_not_proof(promotion: Promotion) -> None:
    promotion.connect("production", promotion.production.url, login="sandbox", password="sandbox")
    promotion.exported(flow_ids=[1])
    promotion.production.fault("POST", IMPORT, hang_up(carried_out=False))
    theirs = SandboxFlow(11, "Orders", owner="alice@example.com", connections=("orders-db",))
    promotion.clock.at(1010, lambda: promotion.production.add_flow(theirs))
    went = promotion.importing().run()
    assert went.colour == "failed for good"
    assert "Either it was applied" in went.said


def log_in_to_production(promotion: Promotion) -> None:
    promotion.connect("production", promotion.production.url, login="sandbox", password="sandbox")


@pytest.mark.parametrize("edit", ["description", "nothing"])
def test_edit_is_not_proof_with_an_api_key(promotion: Promotion, edit: str) -> None:
    promotion.exported(flow_ids=[1])
    promotion.production.fault("POST", IMPORT, hang_up(carried_out=False))
    edited = SandboxFlow(
        11, "Orders", description="edited" if edit == "description" else "", connections=("orders-db",)
    )
    promotion.clock.at(1010, lambda: promotion.production.add_flow(edited))
    went = promotion.importing().run()
    assert went.colour == "failed for good"
    assert "In the target, changed: 'Orders'. Not changed: none." in went.said
    assert "neither by our user nor to the bundle's content, as far as known: 'Orders'" in went.said
    assert promotion.imports() == 1


def test_change_by_our_user_is_proof(promotion: Promotion, monkeypatch: pytest.MonkeyPatch) -> None:
    log_in_to_production(promotion)
    monkeypatch.setattr("airflow_provider_etlworks.bundles.transfer._LONGEST_PARSED", 0)
    promotion.exported()
    promotion.production.fault("POST", IMPORT, hang_up())
    went = promotion.importing().run()
    assert went.result is not None, went.said
    assert went.result["told_by"] == "target"


def test_without_user_and_content_an_import_stays_in_doubt(
    promotion: Promotion, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("airflow_provider_etlworks.bundles.transfer._LONGEST_PARSED", 0)
    promotion.exported()
    promotion.production.fault("POST", IMPORT, hang_up())
    went = promotion.importing().run()
    assert went.colour == "failed for good"
    assert "Either it was applied" in went.said
    assert promotion.imports() == 1


def test_dump_cannot_prove_its_content(promotion: Promotion) -> None:
    for sandbox in (promotion.staging, promotion.production):
        sandbox.fault("*", NEWER, status(404), times=None)
    promotion.exported()
    promotion.production.fault("POST", OLDER_IMPORT, hang_up())
    assert promotion.importing().run().colour == "failed for good"
    log_in_to_production(promotion)
    promotion.production.fault("POST", OLDER_IMPORT, hang_up())
    went = promotion.importing().run()
    assert went.result is not None, went.said
    assert went.result["told_by"] == "target"


def test_incomparable_flow_leaves_the_import_in_doubt(promotion: Promotion) -> None:
    promotion.exported()
    promotion.production.fault("POST", IMPORT, hang_up())
    promotion.production.fault("GET", f"{FLOWS}/11", status(403), times=None)
    went = promotion.importing().run()
    assert went.colour == "failed for good"
    assert "It may have been applied, or not" in went.said


def test_unreadable_target_leaves_the_import_in_doubt(promotion: Promotion) -> None:
    promotion.exported()
    promotion.production.fault("POST", IMPORT, hang_up())
    promotion.production.fault("GET", FLOWS, status(503), times=None, after=2)
    went = promotion.importing().run()
    assert went.colour == "failed for good"
    assert "It may have been applied, or not: the target's flows cannot be read" in went.said
    assert promotion.imports() == 1


def test_transient_fault_during_reconciliation_is_retried(promotion: Promotion) -> None:
    promotion.exported()
    promotion.production.fault("POST", IMPORT, hang_up())
    promotion.production.fault("GET", FLOWS, status(503), times=5, after=2)
    went = promotion.importing().run()
    assert went.result is not None, went.said
    assert went.result["told_by"] == "target"


def test_import_of_unknown_flows_stays_in_doubt(promotion: Promotion) -> None:
    promotion.exported()
    Path(promotion.path + ".meta.json").unlink()
    promotion.production.fault("POST", IMPORT, hang_up())
    went = promotion.importing(allow_same_instance=True).run()
    assert went.colour == "failed for good"
    assert "which flows are in the bundle is not known" in went.said


@pytest.mark.parametrize("fault", [status(429, headers={"Retry-After": "9"})])
def test_import_not_processed_is_sent_again(promotion: Promotion, fault: Any) -> None:
    promotion.exported()
    promotion.production.fault("POST", IMPORT, fault)
    went = promotion.importing().run()
    assert went.result is not None, went.said
    assert went.result["told_by"] == "answer"
    assert promotion.imports() == 2


def test_refused_connection_is_not_an_import(promotion: Promotion, closed_port: int) -> None:
    promotion.exported()
    promotion.connect("production", f"http://127.0.0.1:{closed_port}")
    task = promotion.importing()
    assert task.run().colour == "failed"
    promotion.connect("production", promotion.production.url)
    del task.operator.hook
    assert task.run().colour == "success"
    assert promotion.imports() == 1


def test_a_body_is_sent_again_from_its_start_after_a_401(promotion: Promotion) -> None:
    promotion.connect("production", promotion.production.url, login="sandbox", password="sandbox")
    promotion.exported()
    promotion.production.fault("POST", IMPORT, status(401))
    assert promotion.importing().run().colour == "success"
    sent = [each.body for each in promotion.production.requests if each.path == IMPORT]
    assert sent == [Path(promotion.path).read_bytes()] * 2
    assert promotion.production.log_ins >= 2


def test_a_body_is_sent_again_from_its_start_after_a_redirect(promotion: Promotion) -> None:
    promotion.exported()
    promotion.production.fault("POST", IMPORT, redirect(promotion.production.url + IMPORT, 308))
    assert promotion.importing().run().colour == "success"
    sent = [each.body for each in promotion.production.requests if each.path == IMPORT]
    assert sent == [Path(promotion.path).read_bytes()] * 2


def test_a_bundle_is_not_sent_to_another_host(promotion: Promotion) -> None:
    promotion.exported()
    promotion.production.fault("POST", IMPORT, redirect(promotion.staging.url + IMPORT, 307))
    before = len(promotion.staging.requests)
    went = promotion.importing().run()
    assert went.colour == "failed for good"
    assert "Credentials are not sent there" in went.said
    assert len(promotion.staging.requests) == before


# --- From try to try ------------------------------------------------------------------------------------------------


class WorkerLostError(BaseException):
    """The worker's process is gone: nothing of ours catches this."""


def lose_worker(promotion: Promotion, monkeypatch: pytest.MonkeyPatch, task: Any, *, when: str) -> None:
    """Make one try whose worker is lost just before, or just after, the import is sent."""
    client = task.operator.hook.bundle_client
    send = type(client)._exchange

    def lost(self: Any, call: Any, *args: Any) -> Any:
        if not call.path.endswith("/import"):
            return send(self, call, *args)
        if when == "after":
            send(self, call, *args)
        raise WorkerLostError

    with monkeypatch.context() as patch:
        patch.setattr(type(client), "_exchange", lost)
        with pytest.raises(WorkerLostError):
            task.run()


def test_a_worker_lost_after_the_import_does_not_import_twice(
    promotion: Promotion, monkeypatch: pytest.MonkeyPatch
) -> None:
    promotion.exported()
    backup = f"{promotion.directory}/backup.json"
    task = promotion.importing(backup_path=backup)
    lose_worker(promotion, monkeypatch, task, when="after")
    before = sha256_of(backup)
    went = task.run()
    assert went.result is not None, went.said
    assert went.result["told_by"] == "target"
    assert promotion.imports() == 1
    # The backup of what was there before is not overwritten by what is there now.
    assert (went.result["backup_path"], went.result["backup_sha256"]) == (backup, before)
    assert sha256_of(backup) == before


@pytest.mark.parametrize("where", [Break.AFTER_RESPONSE, Break.INSIDE_RESPONSE])
def test_import_whose_answer_a_proxy_drops_is_not_repeated(promotion: Promotion, where: Break) -> None:
    promotion.exported()
    with Proxy() as proxy:
        extra = {"requests_per_minute": 0, "proxy": proxy.url}
        promotion.connect("production", promotion.production.url, extra=extra)
        task = promotion.importing()
        # The store is written just before the import is sent.
        task.context["task_state_store"].before_the_start = lambda: proxy.break_connections(where, times=1)
        went = task.run()

    assert went.result is not None, went.said
    assert went.result["told_by"] == "target"
    assert promotion.imports() == 1


def test_a_worker_lost_before_the_import_asks_a_person(promotion: Promotion, monkeypatch: pytest.MonkeyPatch) -> None:
    promotion.exported()
    task = promotion.importing()
    lose_worker(promotion, monkeypatch, task, when="before")
    went = task.run()
    assert went.colour == "failed for good"
    assert "the task ended before the answer came" in went.said
    assert promotion.imports() == 0
    task.clear()
    assert task.run().colour == "success"
    assert promotion.imports() == 1


def test_another_bundle_is_another_import(promotion: Promotion, monkeypatch: pytest.MonkeyPatch) -> None:
    promotion.exported(flow_ids=[1])
    task = promotion.importing()
    lose_worker(promotion, monkeypatch, task, when="before")
    promotion.exported(flow_ids=[1, 2])
    assert task.run().colour == "success"


def test_a_refused_bundle_leaves_an_earlier_one_in_doubt(promotion: Promotion, monkeypatch: pytest.MonkeyPatch) -> None:
    promotion.exported(flow_ids=[1])
    first = Path(promotion.path).read_bytes(), Path(promotion.path + ".meta.json").read_bytes()
    task = promotion.importing()
    lose_worker(promotion, monkeypatch, task, when="before")
    promotion.exported(flow_ids=[1, 2])
    promotion.production.fault("POST", IMPORT, status(400))
    assert task.run().colour == "failed"
    Path(promotion.path).write_bytes(first[0])
    Path(promotion.path + ".meta.json").write_bytes(first[1])
    went = task.run()
    assert went.colour == "failed for good"
    assert "the task ended before the answer came" in went.said
    assert promotion.imports() == 1


def test_a_result_that_cannot_be_stored_does_not_import_twice(promotion: Promotion) -> None:
    promotion.exported()
    task = promotion.importing()
    first = task.run()
    assert first.result is not None
    # Airflow could not store the result, and tries again; meanwhile somebody has edited a flow.
    promotion.production.add_flow(SandboxFlow(11, "Orders", description="edited"))
    again = task.run()
    assert again.result == {**first.result, "items": []}
    assert promotion.imports() == 1


def test_a_failure_that_cannot_be_stored_stays_a_failure(promotion: Promotion) -> None:
    promotion.exported()
    body = {"success": True, "results": [{"flowId": 1, "flowName": "Orders", "success": False, "error": "locked"}]}
    promotion.production.fault("POST", IMPORT, broken_body(json.dumps(body), content_type=JSON))
    task = promotion.importing()
    push = task.context["ti"].xcom_push

    def broken(**_: Any) -> None:
        raise OSError("the metadata database is away")

    task.context["ti"].xcom_push = broken
    with pytest.raises(OSError, match="away"):
        task.run()
    task.context["ti"].xcom_push = push
    # All flows changed, but Etlworks has answered that the import failed.
    went = task.run()
    assert went.colour == "failed for good"
    assert "'flow Orders (locked)'" in went.said
    assert task.context["ti"].xcoms["import_failed"]["flow_names"] == ["Orders", "Customers", "Invoices | €"]
    assert promotion.imports() == 1


def test_names_are_stored_without_control_characters(promotion: Promotion) -> None:
    promotion.exported()
    body = {"success": True, "flows": [{"id": 11, "name": "Or\x00d\ud83ders\x1b[31m", "action": "re\x00placed"}]}
    promotion.production.fault("POST", IMPORT, says(body))
    went = promotion.importing().run()
    assert went.result is not None
    assert went.result["items"] == [
        {"kind": "flow", "id": 11, "name": "Or\ufffdd\ufffders", "status": "re\ufffdplaced"}
    ]


@pytest.mark.parametrize("manifest", [True, False])
def test_lost_import_is_not_repeated_before_airflow_3_3(
    promotion: Promotion, monkeypatch: pytest.MonkeyPatch, manifest: bool
) -> None:
    promotion.exported()
    if not manifest:
        Path(promotion.path + ".meta.json").unlink()
    promotion.clock.sleep(1000)
    task = promotion.importing(store=False, allow_same_instance=not manifest)
    lose_worker(promotion, monkeypatch, task, when="after")
    went = task.run()
    assert went.colour == "failed for good"
    assert "An earlier try of this task may have imported the bundle, or not" in went.said
    assert "'Orders'" in went.said
    assert promotion.imports() == 1


def test_untouched_target_is_imported_into_before_airflow_3_3(
    promotion: Promotion, monkeypatch: pytest.MonkeyPatch
) -> None:
    promotion.exported()
    task = promotion.importing(store=False)
    lose_worker(promotion, monkeypatch, task, when="before")
    assert task.run().colour == "success"
    assert promotion.imports() == 1


# --- The older API --------------------------------------------------------------------------------------------------


def test_legacy_api_only(promotion: Promotion) -> None:
    for sandbox in (promotion.staging, promotion.production):
        sandbox.fault("*", NEWER, status(404), times=None)
    exported = promotion.exported()
    assert promotion.previewing(expected_sha256=exported["sha256"]).run().colour == "success"
    backup = f"{promotion.directory}/backup.json"
    went = promotion.importing(expected_sha256=exported["sha256"], backup_path=backup).run()
    assert went.result is not None, went.said
    assert (went.result["format"], went.result["flow_ids"]) == ("older", [11, 13, 14])
    assert json.loads(Path(backup + ".meta.json").read_text())["format"] == "older"
    (sent,) = (each for each in promotion.production.requests if each.path == OLDER_IMPORT)
    assert json.loads(sent.body) == {"dump": Path(promotion.path).read_text()}


def test_dump_is_sent_as_json_text(promotion: Promotion) -> None:
    dump = 'quotes " and \\ and \n lines \t and \x01 and €' * 5_000
    promotion.staging.fault("*", NEWER, status(404), times=None)
    promotion.staging.fault("GET", "/rest/v1/flows/export", broken_body(dump, content_type="text/plain"))
    promotion.exported()
    promotion.production.fault("POST", OLDER_IMPORT, says({"success": True}))
    assert promotion.importing().run().colour == "success"
    (sent,) = (each for each in promotion.production.requests if each.path == OLDER_IMPORT)
    assert json.loads(sent.body) == {"dump": dump}
    assert sent.headers["Content-Length"] == str(len(sent.body))


def test_target_without_the_newer_api_is_reported(promotion: Promotion) -> None:
    promotion.exported()
    promotion.production.fault("*", NEWER, status(404), times=None)
    for task in (promotion.importing(), promotion.previewing()):
        went = task.run()
        assert went.colour == "failed for good"
        assert "Source and target may be of different releases" in went.said
