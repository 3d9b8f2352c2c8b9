"""The tail of a log, however it is cut into chunks, and without holding the whole log."""

from __future__ import annotations

import tracemalloc

import pytest

from airflow_provider_etlworks.client.streaming import LONGEST_LINE, tail_lines

LOG = "first\r\nzweite Zeile: Łódź\n\nfourth\r\nlast".encode()
LINES = ["first", "zweite Zeile: Łódź", "", "fourth", "last"]


@pytest.mark.parametrize("size", range(1, len(LOG) + 1))
def test_chunks_may_be_cut_anywhere(size: int) -> None:
    chunks = [LOG[start : start + size] for start in range(0, len(LOG), size)]
    assert tail_lines(chunks, 10) == LINES
    assert tail_lines(chunks, 2) == LINES[-2:]


@pytest.mark.parametrize(
    ("text", "lines"),
    [(b"", []), (b"a", ["a"]), (b"a\n", ["a"]), (b"a\r\n\r\n", ["a", ""]), (b"\xff\n", ["\N{REPLACEMENT CHARACTER}"])],
)
def test_end_of_the_text(text: bytes, lines: list[str]) -> None:
    assert tail_lines([text, b""], 10) == lines


def test_zero_lines() -> None:
    assert tail_lines([LOG], 0) == []


def test_long_line_is_cut() -> None:
    chunks = [b"x" * 50_000] * 100 + [b"\nnext\n"]
    assert tail_lines(chunks, 10) == ["x" * LONGEST_LINE, "next"]
    assert tail_lines([b"".join(chunks)], 10) == ["x" * LONGEST_LINE, "next"]


def test_memory_does_not_grow_with_the_text() -> None:
    def chunks(count: int):
        for number in range(count):
            yield b"one very long line " * 3_000 if number < 100 else b"line %d\n" % number * 100

    tracemalloc.start()
    try:
        assert len(tail_lines(chunks(3_000), 200)) == 200
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2_000_000
