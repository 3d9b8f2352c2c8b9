"""Promotion tasks in processes of their own: how much memory they take, and what a killed one leaves."""

from __future__ import annotations

import hashlib
import json
import stat
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from support import promotion_process
from support.client import GENEROUS
from support.clock import FastClock, pass_clock_to_clients
from support.promotion import EXPORT, IMPORT, PREVIEW

from airflow_provider_etlworks.compat import AirflowFailException

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MEGABYTE = 1024 * 1024
BIG = 200 * MEGABYTE
# Far below a bundle's length, and far above what garbage collection and buffers vary by.
ROOM = 20 * MEGABYTE

_HEAD, _TAIL = b'{"flows":[', b"0]}"
_FLOW = b'{"name":"one of many","script":"' + b'if (a < \\"b\\") { return [1] } ' * 300 + b'"},'


@dataclass
class BigServer:
    """
    An Etlworks whose bundles are long. A context manager.

    :ivar sizes: how long a bundle with one of these flows is, in bytes.
    :ivar stalls_after: so many bytes of an export are sent, and then nothing more.
    :ivar answers: whether an import is answered.
    :ivar received: path, length and SHA-256 of each bundle that came whole.
    """

    sizes: dict[int, int] = field(default_factory=lambda: {1: MEGABYTE})
    stalls_after: int | None = None
    answers: bool = True
    received: list[tuple[str, int, str]] = field(default_factory=list)
    stalled: threading.Event = field(default_factory=threading.Event)
    closing: threading.Event = field(default_factory=threading.Event)

    @staticmethod
    def pieces(size: int) -> Iterator[bytes]:
        """Yield a bundle: many flows, then one long text."""
        yield _HEAD
        left = size - len(_HEAD) - len(_TAIL)
        while left > size // 2:
            yield _FLOW
            left -= len(_FLOW)
        yield b'"'
        left -= len(b'"",')
        while left:
            piece = b"x" * min(left, 65_536)
            yield piece
            left -= len(piece)
        yield b'",'
        yield _TAIL

    def __enter__(self) -> BigServer:
        script = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                modified = 1_800_000_000_000 + len(script.received)
                flows = [{"id": each, "name": f"Flow {each}", "modified": modified} for each in script.sizes]
                self.reply(json.dumps(flows).encode())

            def do_POST(self) -> None:
                length, hashed = int(self.headers["Content-Length"]), hashlib.sha256()
                if self.path == EXPORT:
                    self.export(script.sizes[json.loads(self.rfile.read(length))["flowIds"][0]])
                    return
                left = length
                while left and (piece := self.rfile.read(min(left, 65_536))):
                    hashed.update(piece)
                    left -= len(piece)
                if not left:
                    script.received.append((self.path, length, hashed.hexdigest()))
                    if not script.answers:
                        script.stalled.set()
                        script.closing.wait()
                    self.reply(b'{"success": true}')

            def export(self, size: int) -> None:
                self.send_response(200)
                self.send_header("Content-Length", str(size))
                self.end_headers()
                sent = 0
                for piece in script.pieces(size):
                    self.wfile.write(piece)
                    sent += len(piece)
                    if script.stalls_after is not None and sent > script.stalls_after:
                        script.stalled.set()
                        script.closing.wait()
                        return

            def reply(self, body: bytes) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                """Say nothing on the terminal."""

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            block_on_close = False

            def handle_error(self, *_: Any) -> None:
                """A client that is killed is no failure of the server."""

        self._server = Server(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[BigServer]:
    with BigServer() as server:
        connection = {"conn_type": "etlworks", "host": server.url, "password": "a long key"}
        monkeypatch.setenv("AIRFLOW_CONN_PRODUCTION", json.dumps(connection))
        # Another name of the same server, so that a bundle comes from elsewhere.
        elsewhere = server.url.replace("127.0.0.1", "localhost")
        monkeypatch.setenv("AIRFLOW_CONN_STAGING", json.dumps({**connection, "host": elsewhere}))
        yield server


def asked(*tasks: dict[str, Any], **asked: Any) -> dict[str, Any]:
    return {"tasks": tasks, "try_number": 1, "started": time.time(), **asked}


def here(*tasks: dict[str, Any], **more: Any) -> list[dict[str, Any]]:
    """Run tasks in this process."""
    results: list[dict[str, Any]] = promotion_process.carry_out(asked(*tasks, **more))["results"]
    return results


def begun(*tasks: dict[str, Any], **more: Any) -> subprocess.Popen[bytes]:
    """Run tasks in a process of their own."""
    process = subprocess.Popen(
        [sys.executable, "-m", "support.promotion_process"],
        cwd=Path(__file__).parents[1],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdin is not None
    process.stdin.write(json.dumps(asked(*tasks, **more)).encode())
    process.stdin.close()
    process.stdin = None
    return process


def task(operator: str, path: Path, **arguments: Any) -> dict[str, Any]:
    conn_id = "staging" if operator == "Export" else "production"
    given = {"path": str(path), "etlworks_conn_id": conn_id, **arguments}
    return {"operator": f"Etlworks{operator}Operator", "arguments": given}


def wait_for(condition: Callable[[], object]) -> None:
    limit = time.monotonic() + 4 * GENEROUS
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.02)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the memory of one process since its start")
def test_a_bundle_far_longer_than_the_memory_it_takes(server: BigServer, tmp_path: Path) -> None:
    server.sizes[2] = BIG
    small, big = tmp_path / "small.json", tmp_path / "big.json"
    backup = {"backup_path": str(tmp_path / "backup.json")}
    process = begun(
        # These load all that is needed; what the others take more is for the bundle.
        *(task("Export", small, flow_ids=[1]), task("ImportPreview", small), task("Import", small, **backup)),
        *(task("Export", big, flow_ids=[2]), task("ImportPreview", big), task("Import", big, **backup)),
    )
    out, err = process.communicate(timeout=4 * GENEROUS)
    assert process.returncode == 0, err.decode()[-4_000:]
    reported = json.loads(out.splitlines()[-1])
    exported, _, imported = reported["results"][3:]
    assert exported["bytes"] == BIG == big.stat().st_size
    assert server.received[-2:] == [(PREVIEW, BIG, exported["sha256"]), (IMPORT, BIG, exported["sha256"])]
    assert imported["backup_sha256"] == exported["sha256"]
    before, *after = reported["peaks"][3:]
    assert [number - before < ROOM for number in after] == [True] * 3, reported["peaks"]


def test_an_export_that_is_killed_leaves_the_old_bundle(server: BigServer, tmp_path: Path) -> None:
    path = tmp_path / "bundle.json"
    (exported,) = here(task("Export", path, flow_ids=[1]))
    server.sizes[2], server.stalls_after = 10 * MEGABYTE, 2 * MEGABYTE
    process = begun(task("Export", path, flow_ids=[2]))
    wait_for(lambda: [each for each in tmp_path.glob(".bundle.json.*.part") if each.stat().st_size > MEGABYTE])
    process.kill()
    process.communicate()
    (part,) = tmp_path.glob(".bundle.json.*.part")
    assert stat.S_IMODE(part.stat().st_mode) == 0o600
    assert hashlib.sha256(path.read_bytes()).hexdigest() == exported["sha256"]
    # What was there before can still be imported, and the next try goes well.
    assert here(task("ImportPreview", path))[0]["sha256"] == exported["sha256"]
    server.stalls_after = None
    (again,) = here(task("Export", path, flow_ids=[2]))
    assert again["bytes"] == path.stat().st_size == 10 * MEGABYTE


@pytest.mark.parametrize("store", [True, False])
def test_an_import_that_is_killed_is_not_repeated(
    server: BigServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: bool
) -> None:
    path = tmp_path / "bundle.json"
    kept = {"store": str(tmp_path / "store.json")} if store else {}
    here(task("Export", path, flow_ids=[1]))
    server.answers = False
    process = begun(task("Import", path), **kept)
    assert server.stalled.wait(4 * GENEROUS)
    process.kill()
    process.communicate()
    # The retry waits for minutes for what the target shows.
    pass_clock_to_clients(monkeypatch, FastClock())
    retry = asked(task("Import", path), try_number=2, **kept)
    # With an API key, and content that the server does not show, a changed flow proves nothing.
    doubt = "the task ended before the answer came" if store else "may have imported the bundle, or not"
    with pytest.raises(AirflowFailException, match=doubt):
        promotion_process.carry_out(retry)
    assert [path for path, _, _ in server.received] == [IMPORT]
