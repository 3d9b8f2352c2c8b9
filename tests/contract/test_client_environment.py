"""Both transports treat proxies, certificates and ``.netrc`` alike."""

from __future__ import annotations

import base64
import ssl
from typing import TYPE_CHECKING

import pytest
from support.etlworks import ScriptedServer, reply
from support.tls import self_signed_certificate

from airflow_provider_etlworks.client import endpoints
from airflow_provider_etlworks.client.errors import EtlworksConfigError, EtlworksUnreachable
from airflow_provider_etlworks.sandbox import Sandbox

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from support.client import Drive

    Connect = Callable[..., Drive]

CALL = endpoints.list_flows().first()
# A name without an address: only a proxy can answer a request to it.
NOWHERE = "etlworks.invalid"
SECRET = "pr0xy-secret"


@pytest.fixture
def proxy() -> Iterator[ScriptedServer]:
    """Run a proxy that records its requests, refuses tunnels, and answers plain requests itself."""

    def answer(request) -> bytes:
        return reply(502, b"no way") if request.method == "CONNECT" else reply(body=b"[]")

    with ScriptedServer(answer) as server:
        yield server


def address(proxy: ScriptedServer) -> str:
    return proxy.url.removeprefix("http://")


@pytest.mark.parametrize("written", ["http://{}", "{}"])
@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy", "ALL_PROXY", None])
def test_http_request_goes_through_the_proxy(
    connect: Connect, proxy: ScriptedServer, monkeypatch: pytest.MonkeyPatch, variable: str | None, written: str
) -> None:
    url = written.format(address(proxy))
    if variable is not None:
        monkeypatch.setenv(variable, url)
    drive = connect(f"http://{NOWHERE}", proxy=None if variable else url)
    assert drive.send(CALL).items == []
    assert [request.target for request in proxy.received] == [f"http://{NOWHERE}/rest/v1/flows?limit=200&offset=0"]


@pytest.mark.parametrize("variable", ["HTTPS_PROXY", None])
def test_https_request_goes_through_a_tunnel(
    connect: Connect, proxy: ScriptedServer, monkeypatch: pytest.MonkeyPatch, variable: str | None
) -> None:
    url = f"http://alice:{SECRET}@{address(proxy)}"
    if variable is not None:
        monkeypatch.setenv(variable, url)
    drive = connect(f"https://{NOWHERE}", proxy=None if variable else url)
    with pytest.raises(EtlworksUnreachable) as raised:
        drive.send(CALL, attempts=1)
    (request,) = proxy.received
    assert (request.method, request.target) == ("CONNECT", f"{NOWHERE}:443")
    assert request.headers["Proxy-Authorization"] == "Basic " + base64.b64encode(f"alice:{SECRET}".encode()).decode()
    # The proxy must not receive the credentials of Etlworks.
    assert request.headers["Authorization"] is None
    # A refused tunnel carries no request.
    assert raised.value.not_processed
    assert SECRET not in "".join(map(str, drive.errors))


def test_proxy_of_the_connection_overrides_the_environment(
    connect: Connect, proxy: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://another.invalid:3128")
    monkeypatch.setenv("NO_PROXY", "*")
    connect(f"http://{NOWHERE}", proxy=proxy.url).send(CALL)
    assert len(proxy.received) == 1


@pytest.mark.parametrize("no_proxy", ["127.0.0.1", "127.0.0.0/8", "*", "example.com, 127.0.0.1"])
def test_no_proxy_is_honoured(
    connect: Connect, proxy: ScriptedServer, monkeypatch: pytest.MonkeyPatch, no_proxy: str
) -> None:
    with Sandbox() as sandbox:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        monkeypatch.setenv("NO_PROXY", no_proxy)
        assert connect(sandbox.url).send(CALL).items
    assert proxy.received == []


@pytest.mark.parametrize("no_proxy", ["example.com", "127.0.0.1:1", "10.0.0.0/8"])
def test_no_proxy_of_other_hosts_is_ignored(
    connect: Connect, proxy: ScriptedServer, monkeypatch: pytest.MonkeyPatch, no_proxy: str
) -> None:
    monkeypatch.setenv("HTTP_PROXY", proxy.url)
    monkeypatch.setenv("NO_PROXY", no_proxy)
    connect("http://127.0.0.1:9").send(CALL)
    assert len(proxy.received) == 1


def test_unreachable_proxy_is_not_processed(connect: Connect, closed_port: int) -> None:
    for scheme in ("http", "https"):
        drive = connect(f"{scheme}://{NOWHERE}", proxy=f"http://alice:{SECRET}@127.0.0.1:{closed_port}")
        with pytest.raises(EtlworksUnreachable) as raised:
            drive.send(CALL, attempts=1)
        assert raised.value.not_processed


@pytest.mark.parametrize("url", ["socks5://127.0.0.1:1080", "http://alice:pr0xy-secret@:3128"])
def test_invalid_proxy_of_the_environment_is_reported(
    connect: Connect, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", url)
    with pytest.raises(EtlworksConfigError, match="HTTPS_PROXY") as raised:
        connect(f"https://{NOWHERE}")
    assert SECRET not in str(raised.value)


def test_netrc_does_not_replace_our_credentials(
    connect: Connect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login mallory password elsewhere\ndefault login mallory password elsewhere\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    with Sandbox() as sandbox:
        connect(sandbox.url).send(CALL)
        connect(sandbox.url, login="sandbox", password="sandbox").send(CALL)
        by_key, log_in, by_token = sandbox.requests
    assert by_key.headers["Authorization"] == f"Bearer {Sandbox.api_key}"
    assert "Authorization" not in log_in.headers
    assert by_token.headers["Authorization"].startswith("Bearer eyJ")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a self-signed certificate for 127.0.0.1, with its key."""
    return self_signed_certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def secure(certificate: Path) -> Iterator[ScriptedServer]:
    """Run an https server with that certificate."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    with ScriptedServer(lambda _: reply(body=b"[]"), tls=context) as server:
        yield server


@pytest.fixture(autouse=True)
def no_bundle_from_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(variable, raising=False)


def test_untrusted_certificate_is_refused(connect: Connect, secure: ScriptedServer) -> None:
    with pytest.raises(EtlworksUnreachable, match=r"(?i)certificate") as raised:
        connect(secure.url).send(CALL, attempts=1)
    assert raised.value.not_processed
    assert secure.received == []


@pytest.mark.parametrize("variable", ["REQUESTS_CA_BUNDLE", "SSL_CERT_FILE", None])
def test_certificate_is_trusted_through_a_ca_bundle(
    connect: Connect, secure: ScriptedServer, certificate: Path, monkeypatch: pytest.MonkeyPatch, variable: str | None
) -> None:
    if variable is not None:
        monkeypatch.setenv(variable, str(certificate))
    drive = connect(secure.url, verify=True if variable else str(certificate))
    assert drive.send(CALL).items == []


@pytest.mark.parametrize("variable", ["SSL_CERT_FILE", None])
def test_certificate_is_trusted_through_a_directory(
    connect: Connect, secure: ScriptedServer, certificate: Path, monkeypatch: pytest.MonkeyPatch, variable: str | None
) -> None:
    directory = str(certificate.parent)
    if variable is not None:
        monkeypatch.setenv(variable, directory)
    assert connect(secure.url, verify=True if variable else directory).send(CALL).items == []


def test_directory_without_certificates_is_reported(connect: Connect, certificate: Path, tmp_path: Path) -> None:
    (tmp_path / "certificate.pem").write_bytes(certificate.read_bytes())
    with pytest.raises(EtlworksConfigError, match=r"^verify .*openssl rehash"):
        connect(f"https://{NOWHERE}", verify=str(tmp_path))


def test_certificate_of_another_directory_is_refused(
    connect: Connect, secure: ScriptedServer, certificate: Path, tmp_path: Path
) -> None:
    (tmp_path / "00000000.0").write_bytes(certificate.read_bytes())
    with pytest.raises(EtlworksUnreachable, match=r"(?i)certificate") as raised:
        connect(secure.url, verify=str(tmp_path)).send(CALL, attempts=1)
    assert raised.value.not_processed


@pytest.mark.filterwarnings("ignore:Unverified HTTPS request")
def test_verify_false_checks_nothing(connect: Connect, secure: ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "there/is/no/such.pem")
    assert connect(secure.url, verify=False).send(CALL).items == []


def test_certificate_of_another_name_is_refused(connect: Connect, secure: ScriptedServer, certificate: Path) -> None:
    url = secure.url.replace("127.0.0.1", "localhost")
    with pytest.raises(EtlworksUnreachable, match=r"(?i)certificate"):
        connect(url, verify=str(certificate)).send(CALL, attempts=1)
    assert secure.received == []


@pytest.mark.parametrize(("variable", "named"), [("REQUESTS_CA_BUNDLE",) * 2, ("SSL_CERT_FILE",) * 2, (None, "verify")])
def test_missing_ca_bundle_is_reported(
    connect: Connect, monkeypatch: pytest.MonkeyPatch, variable: str | None, named: str
) -> None:
    if variable is not None:
        monkeypatch.setenv(variable, "there/is/no/such.pem")
    with pytest.raises(EtlworksConfigError, match=rf"^{named} .*'there/is/no/such\.pem'"):
        connect(f"https://{NOWHERE}", verify=True if variable else "there/is/no/such.pem")


def test_invalid_ca_bundle_is_reported(connect: Connect, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle.pem"
    bundle.write_text("not a certificate")
    with pytest.raises(EtlworksConfigError, match=r"^verify "):
        connect(f"https://{NOWHERE}", verify=str(bundle))
