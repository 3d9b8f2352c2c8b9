"""Answers of undocumented shapes, and names that are somebody else's text."""

from __future__ import annotations

from typing import Any

import pytest

from airflow_provider_etlworks.bundles.preview import LONGEST_MARKDOWN, escaped, preview_of
from airflow_provider_etlworks.bundles.report import parse_items, parse_remarks

SHAPES: dict[str, tuple[Any, list[tuple[str, str, str]]]] = {
    "the older preview": (
        {"graph": {"3": ["db"]}, "flows": {"3": {"id": 3, "name": "A", "type": "t"}}, "connections": {}, "formats": {}},
        [("flow", "A", "unclear")],
    ),
    "lists by kind": (
        {
            "flows": [{"name": "A", "action": "REPLACE"}, {"name": "B", "status": "created"}],
            "missingConnections": ["c"],
        },
        [("flow", "A", "replaced"), ("flow", "B", "new"), ("connection", "c", "missing")],
    ),
    "below another name": (
        {
            "changes": {
                "flows": [{"name": "A", "status": "UPDATED"}],
                "connections": [{"name": "c", "state": "not_found"}],
            }
        },
        [("flow", "A", "replaced"), ("connection", "c", "missing")],
    ),
    "one list of everything": (
        {
            "items": [
                {"type": "flow", "name": "A", "action": "ADD"},
                {"objectType": "CONNECTION", "name": "c", "exists": False},
            ]
        },
        [("flow", "A", "new"), ("connection", "c", "missing")],
    ),
    "by what happens": (
        {"new": {"flows": ["A"]}, "updated": {"flows": [{"id": 1, "name": "B"}]}, "missing": {"connections": ["c"]}},
        [("flow", "A", "new"), ("flow", "B", "replaced"), ("connection", "c", "missing")],
    ),
    "maps of names": (
        {"flows": {"A": "replace", "B": "no change"}, "connections": {"c": "missing", "d": "keep"}},
        [("flow", "A", "replaced"), ("flow", "B", "kept"), ("connection", "c", "missing"), ("connection", "d", "kept")],
    ),
    "maps of ids": (
        {"flows": {"3": "A", "4": {"name": "B", "isNew": True}}},
        [("flow", "A", "unclear"), ("flow", "B", "new")],
    ),
    "names that say both": (
        {"flowsToCreate": ["A"], "flows_to_update": ["B"], "connectionsToKeep": ["c"]},
        [("flow", "A", "new"), ("flow", "B", "replaced"), ("connection", "c", "kept")],
    ),
    "kinds, then what happens": (
        {"flows": {"new": ["A"], "existing": [{"name": "B"}]}, "connections": {"missing": [{"name": "c"}]}},
        [("flow", "A", "new"), ("flow", "B", "replaced"), ("connection", "c", "missing")],
    ),
    "results": (
        {
            "results": [
                {"flowId": 3, "flowName": "A", "success": True},
                {"flowName": "B", "success": False, "error": "no"},
            ]
        },
        [("flow", "A", "done"), ("flow", "B", "failed")],
    ),
    "flags": (
        {"flows": [{"name": "A", "changed": False}, {"name": "B", "conflict": True}, {"name": "C", "exists": False}]},
        [("flow", "A", "kept"), ("flow", "B", "replaced"), ("flow", "C", "new")],
    ),
    "twice": (
        {"flows": [{"id": 3, "name": "A"}], "failed": {"flows": ["A"]}},
        [("flow", "A", "failed")],
    ),
    "a name that sounds like a fate": (
        {"flows": [{"id": 1, "name": "Missing new error flow"}]},
        [("flow", "Missing new error flow", "unclear")],
    ),
    "numbers of things are no things": ({"summary": {"newFlows": 3, "missing": 1}, "flows": 7}, []),
    "nothing": ({}, []),
    "a text": ("ok", []),
    "too deep": ({"a": {"b": {"c": {"d": {"e": {"f": {"g": {"h": {"flows": ["A"]}}}}}}}}}, []),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_answers_are_read_tolerantly(shape: str) -> None:
    answer, expected = SHAPES[shape]
    assert [(item.kind, item.name, item.fate.value) for item in parse_items(answer)] == expected


def test_what_things_use_is_read() -> None:
    answer = {
        "graph": {"3": ["a", 17, "17"]},
        "flows": [{"id": 3, "name": "A", "connections": [{"id": 1, "name": "b"}]}],
    }
    (item,) = parse_items(answer)
    assert item.uses == ("b", "a")


def test_remarks_are_read() -> None:
    answer = {"warnings": ["one", {"message": "two"}, 3], "details": {"errors": "three"}, "flows": [{"name": "A"}]}
    assert parse_remarks(answer) == ["one", "two", "three"]


def test_what_the_answer_leaves_open_the_target_tells() -> None:
    answer = {"flows": [{"name": "A"}, {"name": "B"}], "connections": [{"name": "c"}, {"name": "d"}]}
    preview = preview_of(answer, flow_names=["A", "C"], target_flows=["A", "C"], target_connections=["c"])
    assert [(item.name, item.fate.value) for item in preview.items] == [
        ("A", "replaced"),
        ("B", "new"),
        ("c", "replaced"),
        ("d", "unclear"),
        ("C", "replaced"),
    ]


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
def test_names_are_shown_as_they_are(name: str, shown: str) -> None:
    assert escaped(name) == shown


@pytest.mark.parametrize("count", [0, 1, 100, 10_000])
@pytest.mark.parametrize("length", [1, 119])
def test_the_markdown_fits_and_counts_the_rest(count: int, length: int) -> None:
    names = [f"{number:05}{'|' * length}" for number in range(count)]
    preview = preview_of(
        {"flows": [{"name": name} for name in names], "warnings": ["[" * 500] * 100},
        flow_names=[],
        target_flows=[],
        target_connections=[],
    )
    markdown = preview.markdown("Import.", "/somewhere/bundle.json.preview.json")
    assert len(markdown) <= LONGEST_MARKDOWN
    shown = markdown.count("| flow |")
    left = f"… and {count - shown} more; they are counted above."
    assert (left in markdown) is (shown < count)
