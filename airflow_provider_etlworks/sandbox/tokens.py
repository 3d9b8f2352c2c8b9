"""Authentication: the API key, and signed tokens that expire."""

from __future__ import annotations

import base64
import hmac
import math
import secrets
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING

import jwt

from airflow_provider_etlworks.sandbox.messages import ApiError

if TYPE_CHECKING:
    from collections.abc import Callable

API_KEY = "sandbox-key"
LOGIN = "sandbox"
PASSWORD = "sandbox"  # noqa: S105 - documented, and only good for the sandbox
_ALGORITHM = "HS256"


@dataclass(frozen=True)
class Identity:
    """The user of a request. ``by_key`` is true for the API key, and false for a token."""

    user: str
    tenant: str | None = None
    by_key: bool = False


class Tokens:
    """
    Issues and checks tokens.

    :param lifetime: Seconds until a token expires.
    :param clock: Returns the time in seconds.
    """

    def __init__(self, lifetime: float, clock: Callable[[], float]) -> None:
        self._lifetime = lifetime
        self._clock = clock
        self._secret = secrets.token_hex(32)
        self._generation = 0
        self.log_ins = 0
        self.refreshes = 0

    def log_in(self, login: object, password: object) -> str:
        """Return a token for the right login and password; 401 for any other."""
        if (login, password) != (LOGIN, PASSWORD):
            raise ApiError(401, "Wrong login or password")
        self.log_ins += 1
        return self.issue(Identity(LOGIN))

    def refresh(self, identity: Identity) -> str:
        """Return a new token in exchange for a valid one; 400 for the API key, which needs none."""
        if identity.by_key:
            raise ApiError(400, "Only a token can be refreshed, not an API key")
        self.refreshes += 1
        return self.issue(identity)

    def issue(self, identity: Identity) -> str:
        """Return a new token."""
        now = self._clock()
        claims = {
            "sub": identity.user,
            "iat": int(now),
            # Whole seconds, as most servers write them, rounded up.
            "exp": math.ceil(now + self._lifetime),
            "jti": uuid.uuid4().hex,
            "generation": self._generation,
        }
        if identity.tenant is not None:
            claims["tenant"] = identity.tenant
        return jwt.encode(claims, self._secret, algorithm=_ALGORITHM)

    def revoke_all(self) -> None:
        """Refuse every token issued so far."""
        self._generation += 1

    def identify_basic(self, authorization: str) -> Identity:
        """Read an ``Authorization`` header with login and password; 401 if it identifies nobody."""
        scheme, _, token = authorization.partition(" ")
        expected = base64.b64encode(f"{LOGIN}:{PASSWORD}".encode()).decode()
        if scheme != "Basic" or not hmac.compare_digest(token.encode(), expected.encode()):
            raise ApiError(401, "The Authorization header must be 'Basic <login and password in Base64>'")
        return Identity(LOGIN)

    def identify(self, authorization: str) -> Identity:
        """Read an ``Authorization`` header; 401 if it identifies nobody."""
        scheme, _, token = authorization.partition(" ")
        if scheme != "Bearer" or not token:
            raise ApiError(401, "The Authorization header must be 'Bearer <token or API key>'")
        if token == API_KEY:
            return Identity(LOGIN, by_key=True)
        try:
            # PyJWT would compare the times with the machine's clock; the sandbox may have another one.
            claims = jwt.decode(
                token, self._secret, algorithms=[_ALGORITHM], options={"verify_exp": False, "verify_iat": False}
            )
        except jwt.InvalidTokenError:
            raise ApiError(401, "The token or API key is not valid") from None
        if claims["generation"] != self._generation:
            raise ApiError(401, "The token was revoked")
        if self._clock() >= claims["exp"]:
            raise ApiError(401, "The token has expired")
        return Identity(claims["sub"], claims.get("tenant"))
