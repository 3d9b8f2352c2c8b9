"""Answers whose shape is documented or not, and names that are somebody else's text."""

from __future__ import annotations

from typing import Any

import pytest

from airflow_provider_etlworks.bundles.flow_content import definitions_in, shows_definition
from airflow_provider_etlworks.bundles.preview import LONGEST_MARKDOWN, escaped, one_line, preview_of
from airflow_provider_etlworks.bundles.report import is_failure, parse_items, parse_remarks, unread_parts

OLDER_PREVIEW = {
    "graph": {"3": ["db"]},
    "flows": {"3": {"id": 3, "name": "A", "type": "t", "icon": "i", "listener": False}},
    "connections": {"7": {"id": 7, "name": "c"}},
    "formats": {"8": {"id": 8, "name": "f"}},
    "schedules": {"9": {"id": 9, "name": "s"}},
}

DOCUMENTED: dict[str, tuple[Any, list[tuple[str, str, str]]]] = {
    "the older preview": (
        OLDER_PREVIEW,
        [
            ("flow", "A", "unclear"),
            ("connection", "c", "unclear"),
            ("format", "f", "unclear"),
            ("schedule", "s", "unclear"),
        ],
    ),
    "lists instead of maps": ({"flows": [{"id": 3, "name": "A"}]}, [("flow", "A", "unclear")]),
    "only ids": ({"flows": {"3": {}}}, [("flow", "", "unclear")]),
    "a failed item": (
        {"flows": [{"name": "A", "success": False, "error": "no"}, {"name": "B", "success": True}]},
        [("flow", "A", "failed"), ("flow", "B", "unclear")],
    ),
    "a failure elsewhere": (
        {"results": [{"flowId": 3, "flowName": "A", "success": True}, {"flowName": "B", "success": False}]},
        [("flow", "B", "failed")],
    ),
    "a deep failure": ({"a": {"b": [{"c": {"status": "error", "id": 5}}]}}, [("object", "", "failed")]),
    "a failure without a name": ({"imports": {"orders": {"exception": "no"}}}, [("object", "orders", "failed")]),
    "a name that reads like an action": (
        {"flows": [{"id": 1, "name": "Missing new error flow"}]},
        [("flow", "Missing new error flow", "unclear")],
    ),
}

NOT_DOCUMENTED: dict[str, Any] = {
    "other parts": {"missingConnections": ["c"]},
    "below another name": {"changes": {"flows": [{"name": "A", "status": "UPDATED"}]}},
    "one list of everything": {"items": [{"type": "flow", "name": "A", "action": "ADD"}]},
    "by what happens": {"new": {"flows": ["A"]}, "updated": {"flows": [{"id": 1, "name": "B"}]}},
    "maps of names": {"flows": {"A": "replace", "B": "no change"}},
    "names that say both": {"flowsToCreate": ["A"], "flows_to_update": ["B"]},
    "counts": {"summary": {"newFlows": 3, "missing": 1}, "flows": 7},
    "nothing": {},
    "a text": "ok",
    "a list": [{"name": "A"}],
    "too deep": {"a": {"b": {"c": {"d": {"e": {"f": {"g": {"h": {"success": False}}}}}}}}},
}


@pytest.mark.parametrize("shape", DOCUMENTED)
def test_documented_answers_are_read(shape: str) -> None:
    answer, expected = DOCUMENTED[shape]
    assert [(item.kind, item.name, item.action.value) for item in parse_items(answer)] == expected


@pytest.mark.parametrize("shape", NOT_DOCUMENTED)
def test_undocumented_answers_are_not_interpreted(shape: str) -> None:
    answer = NOT_DOCUMENTED[shape]
    assert parse_items(answer) == []
    preview = preview_of(answer, flow_names=["A", "D"], target_flows=["A"])
    assert not preview.shape_known
    assert [(item.name, item.action.value) for item in preview.items] == [("A", "replaced"), ("D", "new")]
    assert "**What would change is not known:**" in preview.markdown("Import.", "/raw.json")


def test_undocumented_parts_are_named() -> None:
    answer = {**OLDER_PREVIEW, "deletions": {"12": {}}, "formats": {"8": "f"}, "empty": [], "success": True}
    assert unread_parts(answer) == ["formats", "deletions"]
    preview = preview_of(answer, flow_names=[], target_flows=[])
    assert not preview.shape_known
    assert "not read: formats, deletions." in preview.markdown("Import.", "/raw.json")
    assert preview_of(OLDER_PREVIEW, flow_names=[], target_flows=[]).shape_known


def test_word_of_the_answer_is_quoted() -> None:
    answer = {"flows": [{"name": "A", "action": "skip|it"}]}
    preview = preview_of(answer, flow_names=[], target_flows=["A"])
    assert "| flow | A | replaced (the target answers “skip\\|it”) |" in preview.markdown("Import.", "/raw.json")


@pytest.mark.parametrize(
    ("answer", "failed"),
    [
        ({"success": False}, True),
        ({"success": True, "status": "error"}, True),
        ({"status": 500, "error": "Internal Server Error"}, True),
        ({"exception": "java.lang.NullPointerException"}, True),
        ({"success": True, "error": None, "exception": ""}, False),
        ({"status": "ok"}, False),
        ("error", False),
    ],
)
def test_only_documented_failures_count(answer: Any, failed: bool) -> None:
    assert is_failure(answer) is failed


def test_needed_connections_are_read() -> None:
    answer = {
        "graph": {"3": ["a", 17, "17", "F"]},
        "flows": [{"id": 3, "name": "A", "connections": [{"id": 1, "name": "b"}]}],
        "formats": [{"name": "F"}],
    }
    assert parse_items(answer)[0].uses == ("b", "a")


def test_remarks_are_read() -> None:
    answer = {"warnings": ["one", {"message": "two"}, 3], "error": "three", "details": {"errors": "four"}}
    assert parse_remarks(answer) == ["three", "one", "two"]


def test_target_decides_what_is_new() -> None:
    answer = {"flows": [{"name": "A"}, {"name": "B"}], "connections": [{"name": "c"}, {"name": "d"}]}
    preview = preview_of(answer, flow_names=["A", "C"], target_flows=["A", "C"], target_connections=["c"])
    assert [(item.name, item.action.value) for item in preview.items] == [
        ("A", "replaced"),
        ("B", "new"),
        ("c", "replaced"),
        ("d", "unclear"),
        ("C", "replaced"),
    ]


@pytest.mark.parametrize(("all_known", "action"), [(True, "missing"), (False, "unclear")])
def test_unknown_target_hides_missing_connections(all_known: bool, action: str) -> None:
    preview = preview_of(
        OLDER_PREVIEW | {"graph": {"3": ["db", "c", "e"]}},
        flow_names=[],
        target_flows=[],
        target_connections=["e"],
        all_connections_known=all_known,
    )
    needed = {item.name: item.action.value for item in preview.items if item.kind == "connection"}
    assert needed == {"c": "unclear", "db": action, "e": "kept"}
    assert [item.name for item in preview.missing_connections] == (["db"] if all_known else [])


# --- The content of flows -------------------------------------------------------------------------------------------

FLOW = {"id": 1, "name": "A", "tags": ["x", "y"], "properties": {"sql": "select 1"}, "connections": ["db"]}


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"id": 9, "modified": 5, "tags": ["y", "x"], "connections": [{"id": 4, "name": "db"}]}, True),
        ({"properties": {"sql": "select 2"}}, False),
        ({"description": "only in the target"}, True),
        ({"name": "B"}, False),
        ({"tags": ["x"]}, False),
        ({"connections": [{"id": 4, "name": "other"}]}, False),
    ],
)
def test_flow_is_compared_by_content(change: dict[str, Any], same: bool) -> None:
    assert shows_definition({**FLOW, **change}, FLOW) is same


def test_unreadable_part_proves_nothing() -> None:
    assert not shows_definition({name: FLOW[name] for name in ("name", "tags", "connections")}, FLOW)
    without_content = {name: FLOW[name] for name in ("name", "tags", "connections")}
    assert not shows_definition(FLOW, without_content)


@pytest.mark.parametrize(
    ("bundle", "names"),
    [
        (b'{"flows": [{"name": "A"}, {"name": "B"}, {"name": "B"}, {"id": 3}, 5]}', ["A"]),
        (b'{"flows": {"3": {"name": "A"}}}', ["A"]),
        (b'{"flows": "A"}', []),
        (b'[{"name": "A"}]', []),
        (b"an encrypted dump", []),
        (b"[" * 100_000, []),
    ],
)
def test_definitions_are_read_from_a_bundle(bundle: bytes, names: list[str]) -> None:
    assert list(definitions_in(bundle)) == names


# --- Names of somebody else -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("plain name", "plain name"),
        ("a|b", r"a\|b"),
        ("two\nlines\r\n\tand\x0bmore\u2028", "two lines and more"),
        ("<script>alert(1)</script>", r"&lt;script&gt;alert\(1\)&lt;/script&gt;"),
        ("&lt;", "&amp;lt;"),
        ("[x](http://evil.com)", "\\[x\\]\\(http:\u2060//evil.com\\)"),
        ("![x](y)", r"\!\[x\]\(y\)"),
        ("www.evil.com", "www\u2060.evil.com"),
        ("me@evil.com", "me\u2060@evil.com"),
        ("`code` *b* _i_ ~s~ # h \\", r"\`code\` \*b\* \_i\_ \~s\~ \# h \\"),
        ("\u202eevil\u200b", "evil"),
        ("x" * 500, "x" * 119 + "…"),
    ],
)
def test_names_are_escaped(name: str, shown: str) -> None:
    assert escaped(name) == shown


def test_name_is_one_clean_line() -> None:
    assert one_line("a\x00b\x1b[31mc\r\nd\ud83de\u202ef") == "a b [31mc d e f"
    assert one_line("x" * 50, 10) == "x" * 9 + "…"


@pytest.mark.parametrize("count", [0, 1, 100, 10_000])
@pytest.mark.parametrize("length", [1, 119])
def test_markdown_is_bounded_and_counts_the_rest(count: int, length: int) -> None:
    names = [f"{number:05}{'|' * length}" for number in range(count)]
    preview = preview_of(
        {"flows": [{"name": name} for name in names], "warnings": ["[" * 500] * 100},
        flow_names=[],
        target_flows=[],
    )
    markdown = preview.markdown("Import.", "/somewhere/bundle.json.preview.json")
    assert len(markdown) <= LONGEST_MARKDOWN
    shown = markdown.count("| flow |")
    left = f"… and {count - shown} more; they are counted above."
    assert (left in markdown) is (shown < count)
