"""Log-in: rare, in time, once for all callers that wait, and never again with refused credentials."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import jwt
import pytest
from support.client import GENEROUS, Drive
from support.clock import VirtualClock
from support.etlworks import Received, ScriptedServer, reply

from airflow_provider_etlworks.client import endpoints
from airflow_provider_etlworks.client.errors import (
    EtlworksApiError,
    EtlworksForbidden,
    EtlworksReplyError,
    EtlworksServerError,
    EtlworksUnauthorized,
    EtlworksUnreachable,
)
from airflow_provider_etlworks.client.settings import ClientSettings
from airflow_provider_etlworks.hooks import clients
from airflow_provider_etlworks.hooks.etlworks import EtlworksHook
from airflow_provider_etlworks.sandbox import Sandbox, SandboxFlow, hang_up, status

if TYPE_CHECKING:
    from collections.abc import Callable

    from airflow_provider_etlworks.client.sync import EtlworksClient

    Connect = Callable[..., Drive]

LOGIN = {"login": "sandbox", "password": "sandbox"}
CALL = endpoints.get_flow(7)
LOG_IN, OLDER, REFRESH = "/rest/v1/token-auth", "/rest/v1/token-auth/issue", "/rest/v1/token-auth/refresh"
CALLERS = 50
PASSWORD = 'hun"ter2 &co'


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
def etlworks(clock: VirtualClock):
    """Make sandboxes that share the client's clock."""
    made: list[Sandbox] = []

    def make(**options: Any) -> Sandbox:
        made.append(Sandbox([SandboxFlow(7, "Orders")], clock=clock.time, requests_per_minute=None, **options))
        return made[-1].start()

    yield make
    for sandbox in made:
        sandbox.stop()


def count_requests(sandbox: Sandbox, path: str) -> int:
    return sum(request.path == path for request in sandbox.requests)


def statuses(sandbox: Sandbox) -> list[int | None]:
    return [request.status for request in sandbox.requests]


def test_api_key_needs_no_log_in(connect: Connect, etlworks) -> None:
    sandbox = etlworks()
    connect(sandbox.url).send(CALL)
    (request,) = sandbox.requests
    assert request.headers["Authorization"] == f"Bearer {sandbox.api_key}"


def test_one_log_in_serves_many_calls(connect: Connect, etlworks, clock: VirtualClock) -> None:
    sandbox = etlworks()
    drive = connect(sandbox.url, clock=clock, **LOGIN)
    for _ in range(5):
        drive.send(CALL)
    assert (sandbox.log_ins, sandbox.refreshes, len(sandbox.requests)) == (1, 0, 6)
    assert json.loads(sandbox.requests[0].body) == LOGIN


def test_legacy_log_in_path_is_used_if_the_new_one_is_missing(connect: Connect, etlworks, clock: VirtualClock) -> None:
    sandbox = etlworks(issue_path_only=True)
    drive = connect(sandbox.url, clock=clock, **LOGIN)
    drive.send(CALL)
    sandbox.revoke_tokens()
    drive.send(CALL)
    # The newer path is not tried a second time.
    assert (count_requests(sandbox, LOG_IN), count_requests(sandbox, OLDER), sandbox.log_ins) == (1, 2, 2)


def test_legacy_log_in_path_is_used_if_the_new_one_answers_405(connect: Connect, etlworks, clock: VirtualClock) -> None:
    sandbox = etlworks()
    sandbox.fault("POST", LOG_IN, status(405), times=None)
    connect(sandbox.url, clock=clock, **LOGIN).send(CALL)
    assert count_requests(sandbox, OLDER) == 1


def test_short_lived_token_is_renewed_before_it_expires(connect: Connect, etlworks, clock: VirtualClock) -> None:
    sandbox = etlworks(token_lifetime=60)
    drive = connect(sandbox.url, clock=clock, **LOGIN)
    for _ in range(300):
        drive.send(CALL)
        clock.sleep(1)
    assert set(statuses(sandbox)) == {200}
    assert sandbox.log_ins == 1
    assert 5 <= sandbox.refreshes <= 6


@pytest.mark.parametrize("lifetime", [2, 60, 600, 86_400])
def test_token_is_not_renewed_early(connect: Connect, etlworks, clock: VirtualClock, lifetime: float) -> None:
    sandbox = etlworks(token_lifetime=lifetime)
    drive = connect(sandbox.url, clock=clock, **LOGIN)
    drive.send(CALL)
    clock.sleep(lifetime - min(60, lifetime / 10) - 0.01)
    drive.send(CALL)
    assert sandbox.refreshes == 0
    clock.sleep(0.02)
    drive.send(CALL)
    assert (sandbox.log_ins, sandbox.refreshes) == (1, 1)
    assert set(statuses(sandbox)) == {200}


def test_refused_refresh_leads_to_a_log_in(connect: Connect, etlworks, clock: VirtualClock) -> None:
    sandbox = etlworks(token_lifetime=60)
    drive = connect(sandbox.url, clock=clock, **LOGIN)
    drive.send(CALL)
    clock.sleep(55)
    sandbox.revoke_tokens()
    drive.send(CALL)
    assert (count_requests(sandbox, REFRESH), sandbox.log_ins) == (1, 2)
    assert sandbox.requests[-1].status == 200


@pytest.mark.parametrize("code", [404, 405])
def test_missing_refresh_path_leads_to_a_log_in(connect: Connect, etlworks, clock: VirtualClock, code: int) -> None:
    sandbox = etlworks(token_lifetime=60)
    sandbox.fault("POST", REFRESH, status(code), times=None)
    drive = connect(sandbox.url, clock=clock, **LOGIN)
    drive.send(CALL)
    clock.sleep(55)
    drive.send(CALL)
    assert sandbox.log_ins == 2


@pytest.mark.parametrize("fault", [status(503), hang_up(carried_out=False)], ids=["503", "hang up"])
def test_token_without_renewal_is_used_until_it_expires(connect: Connect, etlworks, clock: VirtualClock, fault) -> None:
    sandbox = etlworks(token_lifetime=600)
    sandbox.fault("POST", REFRESH, fault, times=2)
    drive = connect(sandbox.url, clock=clock, **LOGIN)
    drive.send(CALL)
    clock.sleep(545)
    for _ in range(5):
        drive.send(CALL)
    # Not every call tries a failed renewal again.
    assert count_requests(sandbox, REFRESH) == 1
    clock.sleep(5)
    drive.send(CALL)
    clock.sleep(5)
    drive.send(CALL)
    assert (count_requests(sandbox, REFRESH), sandbox.refreshes, sandbox.log_ins) == (3, 1, 1)


def test_expired_token_is_not_used(connect: Connect, etlworks, clock: VirtualClock) -> None:
    sandbox = etlworks(token_lifetime=60)
    drive = connect(sandbox.url, clock=clock, **LOGIN)
    drive.send(CALL)
    clock.sleep(61)
    drive.send(CALL)
    assert sandbox.log_ins == 2
    assert count_requests(sandbox, "/rest/v1/flows/7") == 2


def test_revoked_token_costs_one_log_in_for_all_callers(connect: Connect, etlworks, clock: VirtualClock) -> None:
    sandbox = etlworks()
    drive = connect(sandbox.url, clock=clock, **LOGIN)
    drive.send(CALL)
    sandbox.revoke_tokens()
    del sandbox.requests[:]
    assert [flow.id for flow in drive.send_at_once([CALL] * CALLERS)] == [7] * CALLERS
    flows = [request for request in sandbox.requests if request.path == "/rest/v1/flows/7"]
    assert sandbox.log_ins == 2
    assert sum(request.status == 200 for request in flows) == CALLERS
    assert 1 <= sum(request.status == 401 for request in flows) <= CALLERS
    assert len(flows) <= 2 * CALLERS


def test_all_callers_share_the_first_log_in(connect: Connect, etlworks, clock: VirtualClock) -> None:
    sandbox = etlworks()
    drive = connect(sandbox.url, clock=clock, **LOGIN)
    assert [flow.id for flow in drive.send_at_once([CALL] * CALLERS)] == [7] * CALLERS
    assert (sandbox.log_ins, len(sandbox.requests)) == (1, CALLERS + 1)


def test_threads_that_share_a_hook_share_one_log_in(etlworks, monkeypatch: pytest.MonkeyPatch) -> None:
    sandbox = etlworks()
    settings = ClientSettings(sandbox.url, requests_per_minute=0, **LOGIN)
    standard_client, hook = clients.standard_client, EtlworksHook()
    monkeypatch.setattr(EtlworksHook, "settings", settings)
    threads = 20
    together = threading.Barrier(threads)

    def slow_client(settings: ClientSettings) -> EtlworksClient:
        # Long enough for the others to arrive.
        time.sleep(0.05)
        return standard_client(settings)

    monkeypatch.setattr(clients, "standard_client", slow_client)

    def read(_: int) -> int:
        together.wait(GENEROUS)
        # Not through the property: it has a lock of its own before Python 3.12.
        return type(hook).client.func(hook).send(CALL).id

    with ThreadPoolExecutor(threads) as pool:
        assert list(pool.map(read, range(threads))) == [7] * threads
    assert (sandbox.log_ins, len(sandbox.requests)) == (1, threads + 1)
    hook.client.close()


def test_token_refused_twice_is_an_error(connect: Connect, etlworks, clock: VirtualClock) -> None:
    sandbox = etlworks()
    sandbox.fault("GET", "/rest/v1/flows/7", status(401), times=None)
    with pytest.raises(EtlworksUnauthorized):
        connect(sandbox.url, clock=clock, **LOGIN).send(CALL)
    assert (count_requests(sandbox, "/rest/v1/flows/7"), sandbox.log_ins) == (2, 2)


def test_start_is_sent_again_once_after_401(connect: Connect, etlworks, clock: VirtualClock) -> None:
    sandbox = etlworks()
    drive = connect(sandbox.url, clock=clock, **LOGIN)
    drive.send(CALL)
    sandbox.revoke_tokens()
    assert drive.send(endpoints.run_flow(7)).audit_id
    assert sandbox.runs_started() == 1


def test_rejected_api_key_is_an_error_at_once(connect: Connect, etlworks, clock: VirtualClock) -> None:
    sandbox = etlworks()
    drive = connect(sandbox.url, clock=clock, password="of-another-server")
    with pytest.raises(EtlworksUnauthorized, match=r"API key.* wrong or has expired"):
        drive.send(CALL)
    assert len(sandbox.requests) == 1
    assert clock.slept == []


REFUSALS = {"401": reply(401, b'{"message": "Wrong login or password"}'), "403": reply(403)}


@pytest.mark.parametrize("refusal", REFUSALS)
def test_wrong_password_costs_one_request_for_all_callers(
    connect: Connect, monkeypatch: pytest.MonkeyPatch, refusal: str
) -> None:
    all_callers_wait = threading.Event()

    def answer(_: Received) -> bytes:
        all_callers_wait.wait(GENEROUS)
        return REFUSALS[refusal]

    with ScriptedServer(answer) as server:
        drive = connect(server.url, login="alice", password=PASSWORD)
        auth, reads = drive.client._auth, iter(range(1, CALLERS * 10))
        bearer = auth.bearer

        def counted_bearer() -> str | None:
            if next(reads) > CALLERS:
                # The first caller asks twice; the last one is about to wait for the lock.
                threading.Timer(1, all_callers_wait.set).start()
            return bearer()

        monkeypatch.setattr(auth, "bearer", counted_bearer)
        outcomes = drive.send_at_once([CALL] * CALLERS)
    assert {type(error) for error in outcomes} <= {EtlworksUnauthorized, EtlworksForbidden}
    assert all(error.not_processed and not error.retryable for error in outcomes)
    assert len(server.received) == 1
    assert drive.clock.slept == []


def test_failed_log_in_is_not_remembered(connect: Connect, etlworks, clock: VirtualClock) -> None:
    sandbox = etlworks()
    sandbox.fault("POST", LOG_IN, status(401))
    drive = connect(sandbox.url, clock=clock, **LOGIN)
    with pytest.raises(EtlworksUnauthorized):
        drive.send(CALL)
    assert drive.send(CALL).id == 7


@pytest.mark.parametrize(
    ("fault", "kind"),
    [(status(503), EtlworksServerError), (hang_up(), EtlworksUnreachable)],
    ids=["503", "hang up"],
)
def test_start_is_not_sent_if_its_log_in_fails(connect: Connect, etlworks, clock: VirtualClock, fault, kind) -> None:
    sandbox = etlworks()
    sandbox.fault("POST", LOG_IN, fault, times=None)
    drive = connect(sandbox.url, clock=clock, **LOGIN)
    with pytest.raises(kind) as raised:
        drive.send(endpoints.run_flow(7), attempts=1)
    assert (raised.value.retryable, raised.value.not_processed) == (True, True)
    # So it may be sent again as it is.
    sandbox.clear_faults()
    sandbox.fault("POST", LOG_IN, fault, times=2)
    assert drive.send(endpoints.run_flow(7)).audit_id
    assert sandbox.runs_started() == 1


def test_log_in_switches_the_tenant(connect: Connect, etlworks, clock: VirtualClock) -> None:
    sandbox = etlworks(token_lifetime=60)
    drive = connect(sandbox.url, clock=clock, tenant_id="acme/eu", **LOGIN)
    drive.send(CALL)
    clock.sleep(55)
    drive.send(CALL)
    assert [request.tenant for request in sandbox.requests if request.path.endswith("/7")] == ["acme/eu"] * 2
    # Whether a refreshed token stays in the tenant is not documented.
    assert (sandbox.log_ins, sandbox.refreshes) == (2, 0)
    assert [request.path for request in sandbox.requests[:2]] == [LOG_IN, f"{LOG_IN}/tenants/acme%2Feu"]


def test_api_key_switches_the_tenant(connect: Connect, etlworks, clock: VirtualClock) -> None:
    sandbox = etlworks()
    drive = connect(sandbox.url, clock=clock, tenant_id="acme")
    drive.send(CALL)
    sandbox.revoke_tokens()
    drive.send(CALL)
    switch = f"{LOG_IN}/tenants/acme"
    assert [request.path for request in sandbox.requests] == [
        switch, "/rest/v1/flows/7", "/rest/v1/flows/7", switch, "/rest/v1/flows/7",
    ]  # fmt: skip
    assert sandbox.requests[-1].tenant == "acme"


class Issuer:
    """A server that issues tokens of any kind, and accepts only the newest."""

    def __init__(self, make: Callable[[int], str]) -> None:
        self.server = ScriptedServer(self.answer)
        self.log_ins = 0
        self._make = make
        self._token: str | None = None

    def answer(self, request: Received) -> bytes:
        if request.target == LOG_IN:
            self.log_ins += 1
            # A client that logs in without end would hang the test.
            if self.log_ins > 20:
                return reply(500)
            self._token = self._make(self.log_ins)
            return reply(body=json.dumps({"token": self._token}).encode())
        if request.target == REFRESH:
            return reply(404)
        known = request.headers["Authorization"] == f"Bearer {self._token}"
        return reply(body=b'{"id": 7}') if known else reply(401)

    def revoke(self) -> None:
        self._token = None


def token(**claims: object) -> str:
    return jwt.encode(claims, "a key that is long enough for HS256 to be happy with it")


NOW = int(VirtualClock().now)
HOUR = 3600


@pytest.mark.parametrize(
    ("claims", "renewed_after"),
    [
        pytest.param(None, None, id="no JWT"),
        pytest.param({"sub": "alice"}, None, id="no exp"),
        pytest.param({"exp": "soon"}, None, id="exp is no number"),
        pytest.param({"iat": NOW, "exp": NOW + 600}, 540, id="clocks agree"),
        pytest.param({"iat": NOW - HOUR, "exp": NOW - HOUR + 600}, 540, id="our clock is an hour ahead"),
        pytest.param({"iat": NOW + HOUR, "exp": NOW + HOUR + 600}, 540, id="our clock is an hour behind"),
        pytest.param({"exp": NOW + 600}, 540, id="no iat"),
        pytest.param({"exp": NOW - HOUR + 600}, None, id="no iat, and our clock is an hour ahead"),
        pytest.param({"iat": NOW, "exp": NOW}, None, id="no life at all"),
        pytest.param({"iat": NOW, "exp": NOW - 5}, None, id="over before it began"),
        pytest.param({"iat": NOW, "exp": 10**400}, None, id="exp beyond all numbers"),
    ],
)
def test_when_a_token_is_renewed(
    connect: Connect, clock: VirtualClock, claims: dict[str, Any] | None, renewed_after: float | None
) -> None:
    def make(number: int) -> str:
        return f"opaque-{number}" if claims is None else token(jti=number, **claims)

    issuer = Issuer(make)
    with issuer.server as server:
        drive = connect(server.url, clock=clock, login="alice", password=PASSWORD)
        drive.send(CALL)
        if renewed_after is not None:
            clock.sleep(renewed_after - 2)
            drive.send(CALL)
            assert issuer.log_ins == 1
            clock.sleep(4)
            drive.send(CALL)
            assert issuer.log_ins == 2
        else:
            # Its lifetime is unknown, so it is used until it is refused.
            clock.sleep(100 * HOUR)
            drive.send(CALL)
            assert issuer.log_ins == 1
            issuer.revoke()
            drive.send(CALL)
            assert issuer.log_ins == 2


@pytest.mark.parametrize("body", [b"{}", b'{"token": null}', b'{"token": ""}', b'{"token": 5}', b"[]", b"<html>"])
def test_response_without_a_token_is_an_error(connect: Connect, body: bytes) -> None:
    with ScriptedServer(lambda _: reply(body=body)) as server:
        drive = connect(server.url, login="alice", password=PASSWORD)
        with pytest.raises(EtlworksReplyError, match="token") as raised:
            drive.send(endpoints.run_flow(7), attempts=1)
    assert raised.value.not_processed
    assert [request.target for request in server.received] == [LOG_IN]


@pytest.mark.parametrize("text", ["two\\nlines", "spaß"])
def test_token_that_does_not_fit_a_header_is_an_error(connect: Connect, text: str) -> None:
    answer = reply(body=f'{{"token": "{text}"}}'.encode())
    with ScriptedServer(lambda _: answer) as server, pytest.raises(EtlworksReplyError, match="token"):
        connect(server.url, login="alice", password=PASSWORD).send(CALL, attempts=1)
    assert [request.target for request in server.received] == [LOG_IN]


def test_password_echoed_by_the_server_is_redacted(connect: Connect) -> None:
    def answer(request: Received) -> bytes:
        return reply(400, b"Cannot read " + request.body)

    with ScriptedServer(answer) as server, pytest.raises(EtlworksApiError) as raised:
        connect(server.url, login="alice", password=PASSWORD).send(CALL)
    assert "ter2" not in str(raised.value)
