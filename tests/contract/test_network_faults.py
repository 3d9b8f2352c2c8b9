"""Network faults in plain words, over both transports."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

import pytest
from support.etlworks import ScriptedServer, reply, silent_server
from support.tls import self_signed_certificate

from airflow_provider_etlworks.client import endpoints
from airflow_provider_etlworks.client.errors import EtlworksError, EtlworksUnreachable

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from support.client import Drive

CALL = endpoints.list_flows().first()


def fault(drive: Drive) -> str:
    """Return why no answer came, between the request and the conclusion."""
    with pytest.raises(EtlworksUnreachable) as raised:
        drive.send(CALL, attempts=1)
    text = str(raised.value)
    for library in ("Max retries", "urllib3", "aiohttp", "HTTPConnection", "object at 0x", "Errno", "Connector"):
        assert library not in text
    return text.partition("GET /v1/flows: ")[2]


def test_refused_connection(connect: Callable[..., Drive], closed_port: int) -> None:
    url = f"http://127.0.0.1:{closed_port}"
    words = "the connection was refused, so nothing listens at that host and port. It did not reach the server."
    assert fault(connect(url)) == words


def test_unknown_host_name(connect: Callable[..., Drive]) -> None:
    words = "the host name 'no-such-host.invalid' is not known. It did not reach the server."
    assert fault(connect("http://no-such-host.invalid")) == words


def test_tls_to_a_plain_port(connect: Callable[..., Drive]) -> None:
    with ScriptedServer(lambda _: reply(body=b"[]")) as server:
        said = fault(connect(f"https://127.0.0.1:{server.port}", verify=False))
    assert said.startswith("the port does not speak TLS. If that is meant, let Host begin with http://")


def test_untrusted_certificate(connect: Callable[..., Drive], tmp_path: Path) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(self_signed_certificate(tmp_path))
    with ScriptedServer(lambda _: reply(body=b"[]"), tls=context) as server:
        said = fault(connect(server.url))
    assert said.startswith("the server's certificate is not trusted here. If its authority is your own, let verify in")


def test_answer_that_does_not_come(connect: Callable[..., Drive]) -> None:
    with silent_server() as server, pytest.raises(EtlworksError) as raised:
        connect(server.url, read_timeout=0.3).send(CALL, attempts=1)
    assert "nothing came for 0.3 s" in str(raised.value) or "was not complete after" in str(raised.value)


def test_dropped_connection(connect: Callable[..., Drive]) -> None:
    with ScriptedServer(lambda _: b"") as server:
        said = fault(connect(server.url))
    assert said == "the connection was dropped. The server may have received it."


@pytest.mark.parametrize("answer", [b"SSH-2.0-OpenSSH_9.2\r\n\r\n", b"\x15\x03\x01\x00\x02\x02\x46\r\n\r\n"])
def test_port_of_something_else(connect: Callable[..., Drive], answer: bytes) -> None:
    with ScriptedServer(lambda _: answer) as server:
        said = fault(connect(server.url))
    assert said.startswith("what answers is not a web server. Perhaps it speaks TLS: let Host begin with https://")


def test_named_connection_is_named_once(connect: Callable[..., Drive], closed_port: int) -> None:
    drive = connect(f"http://127.0.0.1:{closed_port}", name="etlworks_eu")
    with pytest.raises(EtlworksUnreachable) as raised:
        drive.send(CALL, attempts=2)
    assert str(raised.value).startswith("Connection 'etlworks_eu': No answer from http://127.0.0.1:")
    assert str(raised.value).count("etlworks_eu") == 1
