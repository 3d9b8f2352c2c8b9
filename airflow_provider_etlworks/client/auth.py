"""
The credentials of a request: an API key, or a token from a log-in that is renewed before it expires.

Nothing is sent here: :meth:`Authenticator.renewal` is a procedure, so that both transports renew a token in the same
way. They bring the lock that lets one renewal serve everybody.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

import jwt

from airflow_provider_etlworks.client import endpoints
from airflow_provider_etlworks.client.errors import EtlworksBadRequest, EtlworksError, EtlworksNotFound
from airflow_provider_etlworks.client.procedure import RequestToken

if TYPE_CHECKING:
    from airflow_provider_etlworks.client.clock import Clock
    from airflow_provider_etlworks.client.procedure import Procedure
    from airflow_provider_etlworks.client.settings import ClientSettings

log = logging.getLogger(__name__)

RENEWAL_MARGIN = 60.0
"""Seconds before its expiry at which a token is renewed, at most; a tenth of its lifetime if that is shorter."""

# Seconds between two attempts to renew a token that still works.
_RENEWAL_RETRY_DELAY = 5.0


@dataclass
class _Token:
    bearer: str
    renew_at: float | None = None
    expires_at: float | None = None


class Authenticator:
    """
    Keeps the bearer of one connection.

    :param settings: login and password, or an API key; and the tenant to switch to.
    :param clock: reads the time.
    :ivar renewals: how many renewals have ended, well or badly.
    """

    def __init__(self, settings: ClientSettings, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock
        self._token: _Token | None = None
        self._api_key = settings.password if settings.login is None else None
        self._log_in = endpoints.log_in
        self._last_failure: EtlworksError | None = None
        self.renewals = 0

    @property
    def secrets(self) -> tuple[str, ...]:
        """Texts that must never appear in a log or a message."""
        # Another thread may remove the token at any time.
        token = self._token
        return (*self._settings.secrets, token.bearer) if token else tuple(self._settings.secrets)

    def bearer(self) -> str | None:
        """Return the present bearer; ``None`` if a renewal is needed first."""
        if self._api_key is not None and self._settings.tenant_id is None:
            return self._api_key
        token = self._token
        if token is None or (token.renew_at is not None and self._clock.monotonic() >= token.renew_at):
            return None
        return token.bearer

    def reject(self, bearer: str) -> bool:
        """
        Record that the server refused a bearer.

        :return: whether another attempt can help, because the next bearer is a new one.
        """
        if bearer == self._api_key and self._settings.tenant_id is None:
            return False
        token = self._token
        if token is not None and token.bearer == bearer:
            self._token = None
        return True

    def failure_since(self, renewals: int) -> EtlworksError | None:
        """Return why the last renewal failed, if it ended after ``renewals`` others: its waiters share the error."""
        return self._last_failure if self.renewals > renewals else None

    def renewal(self) -> Procedure[None]:
        """
        Get a new token: refresh the present one, or log in; then switch the tenant.

        :raises EtlworksUnauthorized: login or password is wrong, or the API key is.
        """
        self._last_failure = None
        present, self._token = self._token, None
        try:
            bearer = yield from self._new_bearer(present)
        except EtlworksError as error:
            if error.retryable and present and present.expires_at and self._clock.monotonic() < present.expires_at:
                log.warning("Could not renew the token yet; it is used until it expires. %s", error)
                retry_at = self._clock.monotonic() + _RENEWAL_RETRY_DELAY
                self._token = _Token(present.bearer, retry_at, present.expires_at)
                return
            # The call that waits for the log-in was certainly not sent.
            error.not_processed = True
            self._last_failure = error
            raise
        else:
            self._token = self._read_token(bearer)
        finally:
            self.renewals += 1

    def _new_bearer(self, present: _Token | None) -> Procedure[str]:
        # Whether a refreshed token keeps a switched tenant is not documented, so a tenant always needs a new log-in.
        if present is not None and self._settings.tenant_id is None:
            try:
                refreshed: str = yield RequestToken(endpoints.refresh_token(), present.bearer)
            except EtlworksError as error:
                if error.retryable:
                    raise
                log.info("Etlworks does not refresh the token; logging in. %s", error)
            else:
                return refreshed
        bearer: str = self._api_key if self._api_key is not None else (yield from self._bearer_from_log_in())
        if self._settings.tenant_id is not None:
            bearer = yield RequestToken(endpoints.switch_tenant(self._settings.tenant_id), bearer)
        return bearer

    def _bearer_from_log_in(self) -> Procedure[str]:
        login, password = self._settings.login or "", self._settings.password
        try:
            bearer: str = yield RequestToken(self._log_in(login, password))
        except (EtlworksNotFound, EtlworksBadRequest) as error:
            if self._log_in is endpoints.log_in_legacy or error.status not in (404, 405):
                raise
            bearer = yield RequestToken(endpoints.log_in_legacy(login, password))
            self._log_in = endpoints.log_in_legacy
        return bearer

    def _read_token(self, bearer: str) -> _Token:
        """Read the lifetime of a token from its claims. Its signature is the server's to check."""
        try:
            claims = jwt.decode(bearer, options={"verify_signature": False})
        except (jwt.InvalidTokenError, RecursionError):
            claims = {}
        expires, issued = claims.get("exp"), claims.get("iat")
        if not isinstance(expires, (int, float)):
            return _Token(bearer)
        # The two clocks may differ: the lifetime counts from now if the token says when it was issued.
        try:
            lifetime = float(expires) - float(issued if isinstance(issued, (int, float)) else self._clock.time())
        except OverflowError:
            return _Token(bearer)
        if not lifetime > 0:
            # Its lifetime is unknown, so it is used until the server refuses it.
            return _Token(bearer)
        received = self._clock.monotonic()
        return _Token(bearer, received + lifetime - min(RENEWAL_MARGIN, lifetime / 10), received + lifetime)
