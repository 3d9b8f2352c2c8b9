"""Exports: what is selected, what is written, and what is refused."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from support.etlworks import Received, ScriptedServer, reply
from support.promotion import EXPORT, NEWER, SECRET_IN_BUNDLE, Promotion, sha256_of

from airflow_provider_etlworks import storage
from airflow_provider_etlworks.operators.promotion import EtlworksExportOperator
from airflow_provider_etlworks.sandbox import SandboxFlow, broken_body, hang_up, status, truncated

if TYPE_CHECKING:
    from collections.abc import Iterator

OLDER = "/rest/v1/flows/export"


@pytest.fixture
def promotion(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path) -> Iterator[Promotion]:
    with Promotion(monkeypatch, caplog, tmp_path) as promotion:
        yield promotion
    assert SECRET_IN_BUNDLE not in promotion.log_text()


def files_in(promotion: Promotion) -> list[str]:
    return sorted(each.name for each in promotion.directory.iterdir())


# --- What is selected -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("selection", "ids"),
    [
        ({"flow_ids": [3, 1]}, [1, 3]),
        ({"flow_ids": 2}, [2]),
        ({"flow_ids": "[1, 2]"}, [1, 2]),
        ({"flow_ids": "1, 3"}, [1, 3]),
        ({"flow_ids": (each for each in ["2", 2])}, [2]),
        ({"flow_names": "Orders"}, [1]),
        ({"flow_names": "['Orders', 'Invoices | €']"}, [1, 3]),
        ({"tags": ["nightly"]}, [1, 2]),
        ({"tags": "finance", "flow_ids": [3], "flow_names": ["Customers"]}, [2, 3]),
        ({"tags": ["finance", "no such tag"]}, [3]),
    ],
)
def test_selections_add_up(promotion: Promotion, selection: dict[str, Any], ids: list[int]) -> None:
    exported = promotion.exported(**selection)
    assert exported["flow_ids"] == ids
    assert [flow["id"] for flow in json.loads(Path(promotion.path).read_bytes())["flows"]] == ids
    assert exported["flow_names"] == [promotion.staging.flows[each].name for each in ids]


@pytest.mark.parametrize(
    ("selection", "said"),
    [
        ({"flow_ids": [1, 99]}, "No flow has the id 99 among the 3"),
        ({"flow_ids": ["x"]}, "flow_ids is 'x'"),
        ({"flow_ids": "None"}, "flow_ids is 'None'"),
        ({"flow_ids": []}, "No flow is selected"),
        ({"flow_names": ["orders"]}, "No flow is called 'orders' among the 3 that this user can see. Did you mean"),
        ({"flow_names": "None"}, "flow_names is 'None'"),
        ({"flow_names": [None]}, "flow_names is [None]"),
        ({"tags": ["daily"]}, "No flow with the tags 'daily' is selected"),
        ({"tags": ["daily"]}, "The tags that there are: finance, nightly, warehouse."),
        ({"path": "", "flow_ids": 1}, "path is ''"),
        ({"path": "None", "flow_ids": 1}, "path is 'None'"),
        ({"path": "bundles/", "flow_ids": 1}, "path is 'bundles/', a directory"),
        ({"path": "nowhere://bucket/bundle.json", "flow_ids": 1}, "is not in a store that Airflow can reach"),
    ],
)
def test_invalid_selection_fails_before_the_export(promotion: Promotion, selection: dict[str, Any], said: str) -> None:
    went = promotion.exporting(**selection).run()
    assert went.colour == "failed for good"
    assert said in went.said
    assert promotion.asked(promotion.staging, "POST", EXPORT) == 0
    assert files_in(promotion) == []


def test_a_name_that_two_flows_have_is_refused(promotion: Promotion) -> None:
    two = [{"id": 7, "name": "Twin"}, {"id": 8, "name": "Twin"}]
    promotion.staging.fault("GET", "/rest/v1/flows", broken_body(json.dumps(two), content_type="application/json"))
    went = promotion.exporting(flow_names=["Twin"]).run()
    assert went.colour == "failed for good"
    assert "2 flows are called 'Twin': 7, 8" in went.said


def test_one_selection_is_needed() -> None:
    with pytest.raises(ValueError, match="at least one of flow_ids, flow_names and tags"):
        EtlworksExportOperator(task_id="export", path="bundle.json")


# --- What is written ------------------------------------------------------------------------------------------------


def test_the_bundle_and_its_manifest(promotion: Promotion) -> None:
    exported = promotion.exported(flow_ids=[2, 1], include_connections=False)
    assert exported == {
        "path": promotion.path,
        "sha256": sha256_of(promotion.path),
        "bytes": Path(promotion.path).stat().st_size,
        "flow_ids": [1, 2],
        "flow_names": ["Orders", "Customers"],
        "format": "io",
    }
    manifest = json.loads(Path(promotion.path + ".meta.json").read_text())
    assert manifest == {
        "format": "io",
        "instance": {"host": promotion.staging.url.removeprefix("http://"), "tenant": None},
        "exported_at": "2027-01-15T08:16:40+00:00",
        "sha256": exported["sha256"],
        "bytes": exported["bytes"],
        "flow_ids": [1, 2],
        "flow_names": ["Orders", "Customers"],
        "include_connections": False,
    }
    assert files_in(promotion) == ["bundle.json", "bundle.json.meta.json"]
    assert json.loads(promotion.staging.requests[-1].body) == {"flowIds": [1, 2], "includeConnections": False}


def test_local_files_are_for_their_owner_only(promotion: Promotion, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    write = storage.os.fdopen

    def watched(descriptor: int, *arguments: Any) -> Any:
        seen.append(stat.S_IMODE(os.fstat(descriptor).st_mode))
        return write(descriptor, *arguments)

    monkeypatch.setattr(storage.os, "fdopen", watched)
    before = os.umask(0)
    try:
        promotion.exported(path=f"{promotion.directory}/new/bundle.json", flow_ids=[1])
    finally:
        os.umask(before)
    assert seen == [0o600, 0o600]
    made = Path(promotion.directory) / "new"
    assert stat.S_IMODE(made.stat().st_mode) == 0o700
    assert {stat.S_IMODE(each.stat().st_mode) for each in made.iterdir()} == {0o600}


@pytest.mark.parametrize("url", ["memory://bucket/etlworks/bundle.json", "memory://bundle.json"])
def test_an_object_store(promotion: Promotion, url: str) -> None:
    from fsspec.implementations.memory import MemoryFileSystem

    MemoryFileSystem.store.clear()
    exported = promotion.exported(path=url, flow_ids=[1])
    assert exported["path"] == url
    assert len(MemoryFileSystem.store) == 2
    previewed = promotion.previewing(path=url, expected_sha256=exported["sha256"]).run()
    assert previewed.result is not None
    assert previewed.result["preview_path"] == f"{url}.preview.json"
    backup = "memory://bucket/backups/production.json"
    imported = promotion.importing(path=url, expected_sha256=exported["sha256"], backup_path=backup).run()
    assert imported.result is not None
    assert imported.result["backup_path"] == backup
    names = {name.rpartition("/")[2] for name in MemoryFileSystem.store}
    ours = {"bundle.json", "bundle.json.meta.json", "bundle.json.preview.json"}
    assert names == ours | {"production.json", "production.json.meta.json"}


def test_an_object_store_keeps_the_old_bundle_too(promotion: Promotion) -> None:
    from fsspec.implementations.memory import MemoryFileSystem

    MemoryFileSystem.store.clear()
    url = "memory://bucket/bundle.json"
    exported = promotion.exported(path=url, flow_ids=[1])
    promotion.staging.fault("POST", EXPORT, truncated(), times=None)
    assert promotion.exporting(path=url, flow_ids=[1, 2]).run().colour == "failed"
    assert len(MemoryFileSystem.store) == 2
    assert promotion.previewing(path=url, expected_sha256=exported["sha256"]).run().colour == "success"


def test_a_file_url_is_a_local_path(promotion: Promotion) -> None:
    promotion.exported(path=f"file://{promotion.directory}/of%20orders.json", flow_ids=[1])
    assert files_in(promotion) == ["of orders.json", "of orders.json.meta.json"]


# --- What is refused ------------------------------------------------------------------------------------------------

JSON = "application/json"
BIG = b'{"flows":[' + b'{"name":"x","script":"a \\" b \\\\"},' * 20_000

NOT_A_BUNDLE = {
    "a page": (broken_body(), "a page of markup: 'Bad gateway The proxy has no answer.'"),
    "empty": (broken_body(b"", content_type=JSON), "it is empty"),
    "blank": (broken_body(b" \n", content_type=JSON), "it is empty"),
    "text": (broken_body(b"Service unavailable", content_type="text/plain"), "it is not a JSON object"),
    "nothing in it": (broken_body(b"{ }", content_type=JSON), "with nothing in it"),
    "no list in it": (broken_body(b"[]", content_type=JSON), "with nothing in it"),
    "half of it": (broken_body(b'{"flows":[{"name":"Orders"}', content_type=JSON), "it is cut off"),
    "cut in a text": (broken_body(b'{"flows":[{"name":"}]}', content_type=JSON), "it is cut off"),
    "cut in an escape": (broken_body(b'{"flows":[{"name":"}]}\\', content_type=JSON), "it is cut off"),
    "much of it": (broken_body(BIG, content_type=JSON), "it is cut off"),
    "followed by a page": (broken_body(b'{"flows":[1]}<html>', content_type=JSON), "it is cut off, or is not JSON"),
    "shorter than announced": (truncated(), "The server may have received it"),
}


@pytest.mark.parametrize("case", NOT_A_BUNDLE)
def test_invalid_bundle_leaves_the_old_one(promotion: Promotion, case: str) -> None:
    fault, said = NOT_A_BUNDLE[case]
    before = promotion.exported(flow_ids=[1])
    promotion.staging.fault("POST", EXPORT, fault, times=None)
    went = promotion.exporting(flow_ids=[1, 2]).run()
    assert went.colour == "failed"
    assert said in went.said
    assert sha256_of(promotion.path) == before["sha256"]
    assert json.loads(Path(promotion.path + ".meta.json").read_text())["sha256"] == before["sha256"]
    assert files_in(promotion) == ["bundle.json", "bundle.json.meta.json"]


@pytest.mark.parametrize("case", NOT_A_BUNDLE)
def test_broken_export_is_requested_again(promotion: Promotion, case: str) -> None:
    promotion.staging.fault("POST", EXPORT, NOT_A_BUNDLE[case][0])
    assert promotion.exported(flow_ids=[1])["sha256"] == sha256_of(promotion.path)


@pytest.mark.parametrize("fault", [status(503), status(429, headers={"Retry-After": "7"}), hang_up()])
def test_transient_fault_is_retried(promotion: Promotion, fault: Any) -> None:
    promotion.staging.fault("POST", EXPORT, fault, times=2)
    assert promotion.exported(flow_ids=[1])["flow_ids"] == [1]
    assert promotion.asked(promotion.staging, "POST", EXPORT) == 3


@pytest.mark.parametrize(
    "body", [b'{"success": false, "message": "Flow 1 is locked"}', b'{"status": 500, "error": "Flow 1 is locked"}']
)
def test_error_instead_of_a_bundle_is_reported(promotion: Promotion, body: bytes) -> None:
    promotion.staging.fault("POST", EXPORT, broken_body(body, content_type=JSON), times=None)
    went = promotion.exporting(flow_ids=[1]).run()
    assert went.colour == "failed"
    assert "Flow 1 is locked" in went.said
    assert promotion.asked(promotion.staging, "POST", EXPORT) == 1


@pytest.mark.parametrize(
    "body", [b'\xef\xbb\xbf{"flows":[1]}', b' \r\n[{"name":"}"}]\n', b'{"a":"\\\\"}', BIG + b"1]}"]
)
def test_any_complete_document_is_a_bundle(promotion: Promotion, body: bytes) -> None:
    promotion.staging.fault("POST", EXPORT, broken_body(body, content_type=JSON))
    promotion.exported(flow_ids=[1])
    assert Path(promotion.path).read_bytes() == body


def test_no_error_shows_what_is_in_the_bundle(promotion: Promotion) -> None:
    promotion.staging.fault("POST", EXPORT, truncated(), times=None)
    went = promotion.exporting(flow_ids=[1]).run()
    assert went.colour == "failed"
    body = b'{"flows":["' + SECRET_IN_BUNDLE.encode()
    promotion.staging.clear_faults()
    promotion.staging.fault("POST", EXPORT, broken_body(body, content_type=JSON), times=None)
    cut = promotion.exporting(flow_ids=[1]).run()
    assert cut.colour == "failed"
    assert SECRET_IN_BUNDLE not in went.said + cut.said


def test_a_disk_that_is_full_leaves_the_old_bundle(promotion: Promotion, monkeypatch: pytest.MonkeyPatch) -> None:
    before = promotion.exported(flow_ids=[1])

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(storage.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        promotion.exporting(flow_ids=[1, 2]).run()
    assert sha256_of(promotion.path) == before["sha256"]
    assert files_in(promotion) == ["bundle.json", "bundle.json.meta.json"]


def test_leftovers_of_a_killed_export_are_removed(promotion: Promotion) -> None:
    old, fresh = (Path(promotion.directory) / f".bundle.json.{each}.part" for each in ("old", "fresh"))
    for each in (old, fresh, Path(promotion.directory) / ".other.json.old.part"):
        each.write_text("half a bundle")
        os.utime(each, (1, 1) if each is not fresh else None)
    promotion.exported(flow_ids=[1])
    assert files_in(promotion) == [fresh.name, ".other.json.old.part", "bundle.json", "bundle.json.meta.json"]


# --- The older API --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [404, 405])
def test_legacy_api_is_used_if_the_newer_is_missing(promotion: Promotion, code: int) -> None:
    promotion.staging.fault("*", NEWER, status(code), times=None)
    exported = promotion.exported(flow_ids=[1, 3], include_connections=False)
    assert exported["format"] == "older"
    assert promotion.staging.requests[-1].query == {"flows": ["1,3"]}
    manifest = json.loads(Path(promotion.path + ".meta.json").read_text())
    assert (manifest["format"], manifest["include_connections"]) == ("older", True)
    assert promotion.log_text().count("Using the legacy export API") == 1


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"<html><body>Sign in</body></html>", "a page of markup: 'Sign in'"),
        (b"", "it is empty"),
        (b'{"success": false, "message": "no such flow"}', "no such flow"),
        (b'{"status": 403, "message": "not yours"}', "not yours"),
    ],
)
def test_invalid_dump_is_refused(promotion: Promotion, body: bytes, said: str) -> None:
    promotion.staging.fault("*", NEWER, status(404), times=None)
    promotion.staging.fault("GET", OLDER, broken_body(body, content_type="text/plain"), times=None)
    went = promotion.exporting(flow_ids=[1]).run()
    assert went.colour == "failed"
    assert said in went.said
    assert files_in(promotion) == []


def test_a_dump_that_is_shorter_than_announced_is_refused(promotion: Promotion) -> None:
    promotion.staging.fault("*", NEWER, status(404), times=None)
    promotion.staging.fault("GET", OLDER, truncated(), times=None)
    assert promotion.exporting(flow_ids=[1]).run().colour == "failed"
    assert files_in(promotion) == []


def test_missing_export_api_is_reported(promotion: Promotion) -> None:
    promotion.staging.fault("*", NEWER, status(404), times=None)
    promotion.staging.fault("GET", OLDER, status(404), times=None)
    went = promotion.exporting(flow_ids=[1]).run()
    assert went.colour == "failed"
    assert "404 to GET /v1/flows/export" in went.said


def test_other_refusals_do_not_select_the_legacy_api(promotion: Promotion) -> None:
    promotion.staging.fault("POST", EXPORT, status(403), times=None)
    went = promotion.exporting(flow_ids=[1]).run()
    assert "403" in went.said
    assert promotion.asked(promotion.staging, "GET", OLDER) == 0


def test_endless_error_is_not_read_to_its_end(promotion: Promotion) -> None:
    def answer(request: Received) -> bytes:
        if request.target.startswith("/rest/v1/flows"):
            return reply(body=json.dumps([{"id": 1, "name": "Orders"}]).encode())
        return reply(403, b"<p>no</p>" + b" " * 5_000_000, content_length="5000000000")

    with ScriptedServer(answer) as server:
        promotion.connect("staging", server.url)
        went = promotion.exporting(flow_ids=[1]).run()
    assert "403 to POST /v1/io/export: no" in went.said


def test_tags_are_filtered_by_the_client(promotion: Promotion) -> None:
    promotion.staging.add_flow(SandboxFlow(4, "Untagged"))
    assert promotion.exported(tags=["warehouse"])["flow_ids"] == [2]
