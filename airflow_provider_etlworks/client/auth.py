"""
Who we are to Etlworks: an API key, or a token that a log-in gave and that is renewed before it ends.

Nothing is sent here: :meth:`Authenticator.renewal` is a conversation, so that both transports renew a token in the same
way. They bring the lock that makes one renewal of many.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from airflow_provider_etlworks.client import endpoints
from airflow_provider_etlworks.client.errors import EtlworksBadRequest, EtlworksError, EtlworksNotFound
from airflow_provider_etlworks.client.procedure import RequestToken

if TYPE_CHECKING:
    from airflow_provider_etlworks.client.clock import Clock
    from airflow_provider_etlworks.client.procedure import Procedure
    from airflow_provider_etlworks.client.settings import ClientSettings

log = logging.getLogger(__name__)

RENEW_BEFORE_END = 60.0
"""Seconds before its end at which a token is renewed, at most; a tenth of its life where that is shorter."""


@dataclass
class _Token:
    text: str
    renew_at: float | None
    ends_at: float | None


class Authenticator:
    """
    Keeps the bearer of one connection.

    :param settings: login and password, or an API key; and the tenant to switch to.
    :param clock: tells the time; tests bring their own.
    """

    def __init__(self, settings: ClientSettings, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock
        self._token: _Token | None = None
        self._key = settings.password if settings.login is None else None
        self._log_in = endpoints.log_in
        self._shared_failure: EtlworksError | None = None
        self.renewals = 0

    @property
    def secrets(self) -> tuple[str, ...]:
        """Texts that must never be seen in a log or a message."""
        # Another thread may take the token away at any moment.
        token = self._token
        return (*self._settings.secrets, token.text) if token else tuple(self._settings.secrets)

    def bearer(self) -> str | None:
        """Return what to authenticate with now; ``None`` asks for a renewal first."""
        if self._key is not None and self._settings.tenant_id is None:
            return self._key
        token = self._token
        if token is None or (token.renew_at is not None and self._clock.monotonic() >= token.renew_at):
            return None
        return token.text

    def reject(self, bearer: str) -> bool:
        """
        Note that the server refused a bearer.

        :return: whether another try can help, because the next bearer is a new one.
        """
        if bearer == self._key and self._settings.tenant_id is None:
            return False
        token = self._token
        if token is not None and token.text == bearer:
            self._token = None
        return True

    def failure_since(self, renewals: int) -> EtlworksError | None:
        """Return why the latest renewal failed, where it ended after ``renewals`` others: those who waited share it."""
        return self._shared_failure if self.renewals > renewals else None

    def renewal(self) -> Procedure[None]:
        """
        Get a new token: refresh the present one, or log in; then switch the tenant.

        :raises EtlworksUnauthorized: login or password is wrong, or the API key is.
        """
        self._shared_failure = None
        present, self._token = self._token, None
        try:
            text = yield from self._new_token(present)
        except EtlworksError as error:
            if error.retryable and present and present.ends_at and self._clock.monotonic() < present.ends_at:
                # It still works: the next call tries the renewal again.
                log.warning("Could not renew the token yet: %s", error)
                self._token = _Token(present.text, self._clock.monotonic() + 5.0, present.ends_at)
                return
            # Whatever happened to the log-in, the call that waits for it was not sent.
            error.not_processed = True
            self._shared_failure = error
            raise
        else:
            self._token = self._read(text)
        finally:
            self.renewals += 1

    def _new_token(self, present: _Token | None) -> Procedure[str]:
        # Whether a refreshed token keeps a switched tenant is not documented, so that case logs in anew.
        if present is not None and self._settings.tenant_id is None:
            try:
                refreshed: str = yield RequestToken(endpoints.refresh_token(), present.text)
            except EtlworksError as error:
                if error.retryable:
                    raise
                log.info("The token cannot be refreshed (%s); logging in.", error)
            else:
                return refreshed
        text: str = self._key if self._key is not None else (yield from self._logged_in())
        if self._settings.tenant_id is not None:
            text = yield RequestToken(endpoints.switch_tenant(self._settings.tenant_id), text)
        return text

    def _logged_in(self) -> Procedure[str]:
        login, password = self._settings.login or "", self._settings.password
        try:
            text: str = yield RequestToken(self._log_in(login, password))
        except (EtlworksNotFound, EtlworksBadRequest) as error:
            if self._log_in is endpoints.log_in_legacy or error.status not in (404, 405):
                raise
            text = yield RequestToken(endpoints.log_in_legacy(login, password))
            self._log_in = endpoints.log_in_legacy
        return text

    def _read(self, text: str) -> _Token:
        """Read a token's life out of it. Its signature is the server's business."""
        import jwt

        try:
            claims = jwt.decode(text, options={"verify_signature": False})
        except jwt.InvalidTokenError:
            claims = {}
        ends, issued, now = claims.get("exp"), claims.get("iat"), self._clock.time()
        life = 0.0
        if isinstance(ends, (int, float)):
            # The two clocks may differ: the life is counted from now, where the token says when it began.
            life = ends - (issued if isinstance(issued, (int, float)) else now)
        if not life > 0:
            # Its life cannot be told, so it is used until the server refuses it.
            return _Token(text, None, None)
        received = self._clock.monotonic()
        return _Token(text, received + life - min(RENEW_BEFORE_END, life / 10), received + life)
