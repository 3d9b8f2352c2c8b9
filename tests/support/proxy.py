"""An HTTP proxy that breaks connections: for plain requests, which it forwards, and for tunnels."""

from __future__ import annotations

import contextlib
import socket
import threading
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, BinaryIO
from urllib.parse import urlsplit

from support.client import GENEROUS

if TYPE_CHECKING:
    from collections.abc import Iterator

_APPLICATION_DATA = 23
_TLS_HEADER = 5


class Break(Enum):
    """
    Where a proxy breaks a connection.

    Inside a tunnel it recognizes requests and responses by TLS's records, for which the server must not speak TLS 1.3.
    """

    BEFORE_FORWARDING = "the request arrives at the proxy, and is not forwarded"
    AFTER_RESPONSE = "the server has processed the request and responded, and the response is not forwarded"
    INSIDE_RESPONSE = "a part of the response is forwarded"
    REFUSE = "the proxy refuses: with a status, or by hanging up if it is 0"


@dataclass
class Proxy:
    """
    Forwards requests, and breaks connections on demand. A context manager.

    :ivar received: method and target of each request, in order.
    """

    received: list[tuple[str, str]] = field(default_factory=list)
    _break: Break | None = None
    _times: int | None = None
    _status: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def break_connections(self, where: Break, *, times: int | None = None, status: int = 407) -> None:
        """
        Break the next connections.

        :param where: at which point.
        :param times: how many; ``None`` is all of them.
        :param status: what a refusal answers; 0 is nothing.
        """
        with self._lock:
            self._break, self._times, self._status = where, times, status

    def __enter__(self) -> Proxy:
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=128)
        self._open: set[socket.socket] = set()
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        # Only this ends `accept`.
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._thread.join(GENEROUS)
        for connection in list(self._open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listening.getsockname()[1]}"

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            self._open.add(client)
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        # A peer that hangs up first is no failure of the proxy.
        with contextlib.suppress(OSError), client, client.makefile("rb") as reader:
            head = _read_head(reader)
            if head:
                method, target, _ = head.split(b"\r\n", 1)[0].decode().split(" ")
                self.received.append((method, target))
                where = self._take_break(method, target)
                if where is Break.REFUSE:
                    if self._status:
                        client.sendall(f"HTTP/1.1 {self._status} No\r\nContent-Length: 0\r\n\r\n".encode())
                elif method == "CONNECT":
                    host, _, port = target.rpartition(":")
                    with socket.create_connection((host, int(port))) as server:
                        self._tunnel(client, server, where)
                else:
                    body = reader.read(_content_length(head))
                    self._forward(client, head, target, body, where)
        self._open.discard(client)

    def _take_break(self, method: str, target: str) -> Break | None:
        with self._lock:
            if self._times == 0:
                return None
            if self._times is not None:
                self._times -= 1
            return self._break

    def _forward(self, client: socket.socket, head: bytes, target: str, body: bytes, where: Break | None) -> None:
        if where is Break.BEFORE_FORWARDING:
            return
        parts = urlsplit(target)
        path = target.removeprefix(f"{parts.scheme}://{parts.netloc}")
        request_line, *lines = head.removesuffix(b"\r\n").split(b"\r\n")
        own = (b"connection:", b"proxy-")
        kept = [line for line in lines if not line.lower().startswith(own)]
        with socket.create_connection((parts.hostname, parts.port or 80)) as server:
            first = request_line.replace(target.encode(), path.encode())
            server.sendall(b"\r\n".join([first, *kept, b"Connection: close", b"", b""]) + body)
            response = b"".join(iter(lambda: server.recv(65_536), b""))
        if where is Break.AFTER_RESPONSE:
            return
        client.sendall(response[: len(response) // 2] if where is Break.INSIDE_RESPONSE else response)

    def _tunnel(self, client: socket.socket, server: socket.socket, where: Break | None) -> None:
        client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")

        def pass_requests() -> None:
            with contextlib.suppress(OSError):
                for kind, record in _records(client):
                    if kind == _APPLICATION_DATA and where is Break.BEFORE_FORWARDING:
                        break
                    server.sendall(record)
                server.shutdown(socket.SHUT_RDWR)

        requests = threading.Thread(target=pass_requests, daemon=True)
        requests.start()
        for kind, record in _records(server):
            if kind == _APPLICATION_DATA and where is Break.AFTER_RESPONSE:
                break
            if kind == _APPLICATION_DATA and where is Break.INSIDE_RESPONSE:
                client.sendall(record[: len(record) // 2])
                break
            client.sendall(record)
        client.shutdown(socket.SHUT_RDWR)
        requests.join(GENEROUS)


def _read_head(reader: BinaryIO) -> bytes:
    """Read the lines before an empty one, or until the peer hangs up."""
    lines: list[bytes] = []
    while (line := reader.readline()) not in (b"", b"\r\n"):
        lines.append(line)
    return b"".join(lines)


def _content_length(head: bytes) -> int:
    lines = (line.partition(b":") for line in head.lower().split(b"\r\n"))
    return next((int(value) for name, _, value in lines if name == b"content-length"), 0)


def _records(connection: socket.socket) -> Iterator[tuple[int, bytes]]:
    """Yield the records of TLS, each with its kind."""
    with connection.makefile("rb") as reader:
        while len(header := reader.read(_TLS_HEADER)) == _TLS_HEADER:
            yield header[0], header + reader.read(int.from_bytes(header[3:], "big"))
