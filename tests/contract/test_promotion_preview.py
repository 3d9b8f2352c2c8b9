"""Previews: what they report, and what they never claim."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from support.promotion import NEWER, PREVIEW, SECRET_IN_BUNDLE, Promotion

from airflow_provider_etlworks.sandbox import SandboxFlow, broken_body, hang_up, status

if TYPE_CHECKING:
    from collections.abc import Iterator

JSON = "application/json"


@pytest.fixture
def promotion(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path) -> Iterator[Promotion]:
    with Promotion(monkeypatch, caplog, tmp_path) as promotion:
        yield promotion
    assert SECRET_IN_BUNDLE not in promotion.log_text()


def previewed(promotion: Promotion, answer: Any = None, **arguments: Any) -> dict[str, Any]:
    """Preview, and return the result; ``answer`` takes the place of the sandbox's own."""
    if answer is not None:
        body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        promotion.production.fault("POST", PREVIEW, broken_body(body, content_type=JSON))
    went = promotion.previewing(**arguments).run()
    assert went.result is not None, went.said
    return went.result


def raw(promotion: Promotion) -> Path:
    return Path(promotion.path + ".preview.json")


@pytest.mark.parametrize("api", ["newer", "older"])
def test_what_would_change(promotion: Promotion, api: str) -> None:
    if api == "older":
        for sandbox in (promotion.staging, promotion.production):
            sandbox.fault("*", NEWER, status(404), times=None)
    exported = promotion.exported()
    before = promotion.production.flows
    said = previewed(promotion, expected_sha256=exported["sha256"])
    markdown = said.pop("markdown")
    assert said == {
        "path": promotion.path,
        "sha256": exported["sha256"],
        "preview_path": str(raw(promotion)),
        "format": "io" if api == "newer" else "older",
        "new": [{"kind": "flow", "name": "Customers"}, {"kind": "flow", "name": "Invoices | €"}],
        "replaced": [{"kind": "flow", "name": "Orders"}, {"kind": "connection", "name": "orders-db"}],
        "kept": [],
        "failed": [],
        "unclear": [],
        "missing_connections": [],
        "missing_others": [],
        "counts": {
            "new": 2,
            "replaced": 2,
            "kept": 0,
            "failed": 0,
            "unclear": 0,
            "missing_connections": 0,
            "missing_others": 0,
        },
        "shape_known": True,
    }
    assert "| flow | Invoices \\| € | new |" in markdown
    assert markdown.endswith(f"\n\nSHA-256: {exported['sha256'][:12]}…")
    assert promotion.production.flows == before
    assert stat.S_IMODE(raw(promotion).stat().st_mode) == 0o600
    assert "flows" in json.loads(raw(promotion).read_bytes())


@pytest.mark.parametrize("api", ["newer", "older"])
def test_missing_connection_is_listed_first(promotion: Promotion, api: str) -> None:
    promotion.staging.add_flow(SandboxFlow(4, "Ledger", connections=("ledger-db", "orders-db")))
    if api == "older":
        graph = {"4": ["ledger-db", "orders-db"], "1": ["orders-db"]}
        flows = {"4": {"id": 4, "name": "Ledger"}, "1": {"id": 1, "name": "Orders"}}
        answer = {"graph": graph, "flows": flows, "connections": {}, "formats": {}, "schedules": {}}
    else:
        answer = None
    promotion.exported(flow_ids=[1, 4], include_connections=False)
    said = previewed(promotion, answer)
    assert said["missing_connections"] == ["ledger-db"]
    assert said["kept"] == [{"kind": "connection", "name": "orders-db"}]
    table = said["markdown"].partition("|---|")[2].splitlines()
    assert table[1] == "| connection | ledger-db | **missing** in the target |"
    assert "**1 connection is missing in the target.**" in said["markdown"]
    assert "The bundle brings no connections" in said["markdown"]
    assert "1 connections are missing" in promotion.log_text()


UNKNOWN = [{}, [], None, "ok", 5, {"message": "done"}, {"a": {"b": [1, 2, {"c": True}]}}, {"count": 3}]


@pytest.mark.parametrize("answer", UNKNOWN)
def test_unreadable_preview_is_not_no_change(promotion: Promotion, answer: Any) -> None:
    promotion.exported()
    said = previewed(promotion, json.dumps(answer).encode())
    assert said["shape_known"] is False
    assert "**What would change is not known:**" in said["markdown"]
    assert "bundle.json.preview.json" in said["markdown"].replace("\\", "")
    # What the target has is reported all the same.
    assert said["replaced"] == [{"kind": "flow", "name": "Orders"}]
    assert said["counts"]["new"] == 2
    assert json.loads(raw(promotion).read_bytes()) == answer


def test_answer_too_long_to_read_is_stored(promotion: Promotion) -> None:
    promotion.exported()
    answer = {"flows": [{"name": f"flow {number}", "script": "x" * 10_000} for number in range(500)]}
    said = previewed(promotion, answer)
    assert said["shape_known"] is False
    assert json.loads(raw(promotion).read_bytes()) == answer


def test_the_result_is_of_bounded_size(promotion: Promotion) -> None:
    promotion.exported()
    names = [f"{number} {'<b>|' * 200}" for number in range(1_000)]
    needs = [f"{number} db {'<b>|' * 200}" for number in range(1_000)]
    answer = {"flows": [{"name": name, "action": name} for name in names[1:]]}
    answer["flows"].append({"id": 0, "name": names[0], "connections": needs})
    said = previewed(promotion, answer)
    assert len(json.dumps(said)) < 48_000
    assert len(said["markdown"]) <= 8_000
    # Two more, which the answer leaves out, are known from the export.
    assert (said["counts"]["new"], said["counts"]["missing_connections"]) == (1_002, 1_000)
    assert len(said["new"]) == len(said["missing_connections"]) == 50
    assert "… and " in said["markdown"]
    assert "1000 connections are missing" in said["markdown"]


def test_remarks_are_shown(promotion: Promotion) -> None:
    promotion.exported()
    remarks = [f"remark {number} [x](http://evil)" for number in range(20)]
    said = previewed(promotion, {"flows": [{"name": "Orders"}], "warnings": remarks})
    assert "- “remark 0 \\[x\\]\\(http:" in said["markdown"]
    assert "- and 10 more" in said["markdown"]


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (broken_body(), "Expected JSON, got 89 bytes that are not JSON: 'Bad gateway The proxy has no answer.'"),
        (broken_body(b"", content_type=JSON), "The answer is empty"),
        (broken_body(b'{"flows":', content_type=JSON), "Expected JSON"),
        (status(503), "503"),
        (hang_up(), "No answer from"),
    ],
)
def test_broken_preview_is_requested_again(promotion: Promotion, fault: Any, said: str) -> None:
    promotion.exported()
    promotion.production.fault("POST", PREVIEW, fault)
    previewed(promotion)
    before = raw(promotion).read_bytes()
    promotion.production.fault("POST", PREVIEW, fault, times=None)
    went = promotion.previewing().run()
    assert went.colour == "failed"
    assert said in went.said
    assert raw(promotion).read_bytes() == before


def test_refused_preview_has_the_reason(promotion: Promotion) -> None:
    promotion.exported()
    body = b'{"success": false, "message": "not a bundle of this release"}'
    promotion.production.fault("POST", PREVIEW, broken_body(body, content_type=JSON), times=None)
    went = promotion.previewing().run()
    assert went.colour == "failed"
    assert "not a bundle of this release" in went.said
    assert promotion.asked(promotion.production, "POST", PREVIEW) == 1


def test_no_error_shows_what_is_in_the_answer(promotion: Promotion) -> None:
    promotion.exported()
    promotion.production.fault("POST", PREVIEW, broken_body(SECRET_IN_BUNDLE, content_type=JSON), times=None)
    went = promotion.previewing().run()
    assert went.colour == "failed"
    assert SECRET_IN_BUNDLE not in went.said


def test_bundle_of_unknown_origin_is_reported(promotion: Promotion) -> None:
    promotion.exported()
    Path(promotion.path + ".meta.json").unlink()
    assert "Where the bundle comes from is not known" in previewed(promotion)["markdown"]


def test_preview_on_the_source_is_reported(promotion: Promotion) -> None:
    promotion.exported()
    said = previewed(promotion, etlworks_conn_id="staging")
    assert "**That is the very instance that it is to be imported into.**" in said["markdown"]


def test_unreadable_target_flow_leaves_connection_unclear(promotion: Promotion) -> None:
    promotion.exported()
    promotion.production.fault("GET", "/rest/v1/flows/11", status(403))
    answer = {"flows": {"1": {"id": 1, "name": "Orders"}}, "connections": {"1": {"id": 1, "name": "orders-db"}}}
    said = previewed(promotion, answer)
    assert said["unclear"] == [{"kind": "connection", "name": "orders-db"}]
    assert "| connection | orders-db | not known; please check |" in said["markdown"]
