"""Bundles in pieces, files that are replaced as a whole, and notes of imports."""

from __future__ import annotations

import io
import json
import os
from typing import TYPE_CHECKING, Any

import pytest
from support.state import StateStore

from airflow_provider_etlworks.bundles.bundle import BundleBody, BundleInspector, JsonCompleteness
from airflow_provider_etlworks.bundles.manifest import Format, Manifest
from airflow_provider_etlworks.client.errors import EtlworksConfigError, EtlworksError
from airflow_provider_etlworks.client.streaming import CHUNK_SIZE, FileBody
from airflow_provider_etlworks.storage import stored_file
from airflow_provider_etlworks.worker.arguments import parse_names, parse_sha256
from airflow_provider_etlworks.worker.launch_record import ImportRecord, ImportRecordStore, LaunchRecordStore

if TYPE_CHECKING:
    from pathlib import Path

DOCUMENTS = [
    {"flows": [{"name": 'a "quoted" name', "script": "if (a) { b[0] = '\\\\'; }"}], "connections": []},
    [1, "}", "]", '"', "\\", '\\"', "\\\\", {"{": "["}],
    {"€": ["\u2028", "x" * 50], "": {}},
]


@pytest.mark.parametrize("document", DOCUMENTS)
@pytest.mark.parametrize("step", [1, 2, 3, 7, 1_000])
def test_json_document_is_whole_only_at_its_end(document: Any, step: int) -> None:
    text = json.dumps(document, ensure_ascii=False, indent=1).encode() + b" \n"
    end = len(text.rstrip())
    for cut in range(len(text) + 1):
        outline = JsonCompleteness()
        for start in range(0, cut, step):
            outline.feed(text[start : min(start + step, cut)])
        assert outline.is_whole is (cut >= end), text[:cut]


@pytest.mark.parametrize("text", [b'{"a":1}}', b"[1]]", b'{"a":1}x', b'{"a":1}"', b"{", b'"a"', b"1", b"", b"}{"])
def test_incomplete_documents(text: bytes) -> None:
    outline = JsonCompleteness()
    outline.feed(text)
    assert not outline.is_whole


@pytest.mark.parametrize("size", [1, CHUNK_SIZE - 1, CHUNK_SIZE, CHUNK_SIZE + 1, 2 * CHUNK_SIZE])
def test_bundle_is_sent_byte_for_byte(size: int) -> None:
    content = b'["' + os.urandom(size) + b'"]'
    inspected = BundleInspector(Format.IO)
    inspected.feed(content)
    body = BundleBody(io.BytesIO(content), inspected)
    for _ in range(2):
        assert b"".join(body) == content
    assert len(body) == len(content)


@pytest.mark.parametrize("size", [1, CHUNK_SIZE - 1, CHUNK_SIZE, CHUNK_SIZE + 1, 2 * CHUNK_SIZE])
def test_dump_is_sent_inside_a_document(size: int) -> None:
    dump = ('"\\\n€ ' * size)[:size]
    inspected = BundleInspector(Format.LEGACY)
    inspected.feed(dump.encode())
    body = BundleBody(io.BytesIO(dump.encode()), inspected)
    for _ in range(2):
        whole = b"".join(body)
        assert json.loads(whole) == {"dump": dump}
        assert len(body) == len(whole)


def test_end_of_a_changed_bundle_is_held_back() -> None:
    content = b"[" + b"1," * CHUNK_SIZE + b"1]"
    inspected = BundleInspector()
    inspected.feed(content)
    changed = b"[" + b"2," * CHUNK_SIZE + b"1]"
    given: list[bytes] = []
    with pytest.raises(EtlworksConfigError, match=f"after {2 * CHUNK_SIZE} bytes"):
        given.extend(BundleBody(io.BytesIO(changed), inspected))
    assert b"".join(given) == changed[: 2 * CHUNK_SIZE]


def test_unreadable_file_is_not_a_server_error() -> None:
    class Broken(io.BytesIO):
        def read(self, *_: Any) -> bytes:
            raise OSError("the disk is gone")

    with pytest.raises(EtlworksError, match="The file cannot be read: OSError: the disk is gone") as caught:
        list(FileBody(Broken(), 5))
    assert (caught.value.not_processed, caught.value.retryable) == (True, True)


@pytest.mark.parametrize("content", [b"1234", b"123456", b""])
def test_file_of_another_length_is_not_completed(content: bytes) -> None:
    with pytest.raises(EtlworksError, match="had 5 bytes"):
        list(FileBody(io.BytesIO(content), 5))
    assert list(FileBody(io.BytesIO(b"12345"), 5)) == [b"12345"]


def test_manifest_survives_its_file() -> None:
    manifest = Manifest("io", "etlworks.example.com", "7", "2026-05-09T00:00:00+00:00", "ab", 5, [1], ["Ö"], False)
    assert Manifest.from_json(manifest.to_json()) == manifest


@pytest.mark.parametrize("scheme", ["", "file://", "memory://"])
def test_file_is_replaced_as_a_whole(scheme: str, tmp_path: Path) -> None:
    file = stored_file("path", f"{scheme}{tmp_path}/some/file.json")
    assert file.read() is None
    file.write(b"old")

    def break_off() -> None:
        with file.atomic_write() as target:
            target.write(b"half of the new")
            target.flush()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        break_off()
    assert file.read() == b"old"
    file.write(b"new")
    assert file.read() == b"new"
    assert file.sibling(".meta.json").read() is None
    with file.open_read() as source:
        assert (source.read(1), source.seek(0), source.read(9)) == (b"n", 0, b"new")


@pytest.mark.parametrize(
    ("value", "read"),
    [
        ("a", ["a"]),
        ("a, b", ["a, b"]),
        ("['a', 'b']", ["a", "b"]),
        ('["a"]', ["a"]),
        ("[a]", ["[a]"]),
        (("b", "a", "b"), ["b", "a"]),
        (1, ["1"]),
        (["a", 1], ["a", "1"]),
        ("[1, 2]", ["1", "2"]),
        ([], []),
    ],
)
def test_names_are_read(value: Any, read: list[str]) -> None:
    assert parse_names("flow_names", value) == read


@pytest.mark.parametrize("value", [True, None, "", " ", "None", ["a", None], ["a", ""], {"a": 1}, b"a", "[None]"])
def test_invalid_names_are_refused(value: Any) -> None:
    with pytest.raises(EtlworksConfigError, match=r"flow_names is .*; it must be a list of texts"):
        parse_names("flow_names", value)


def test_hash_is_read() -> None:
    assert parse_sha256("expected_sha256", None) is None
    assert parse_sha256("expected_sha256", f" {'AB' * 32}\n") == "ab" * 32
    for value in ("", "None", "ab" * 31, "xy" * 32, 5, "ab" * 33):
        with pytest.raises(EtlworksConfigError, match="64 hexadecimal digits"):
            parse_sha256("expected_sha256", value)


def test_import_record_is_kept_beside_a_launch_record() -> None:
    store = StateStore()
    note = ImportRecord(sha256="ab", before={"Orders": [[1, 5]]}, max_tries=3, backup_path="b.json")
    ImportRecordStore(store).save(note)
    assert ImportRecordStore(store).load() == note
    assert LaunchRecordStore(store).load() is None
    ImportRecordStore(store).clear()
    assert ImportRecordStore(store).load() is None
