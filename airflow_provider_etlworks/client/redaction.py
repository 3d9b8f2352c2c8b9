"""What must not be shown is taken out of a text before anybody sees it."""

from __future__ import annotations

import html
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


_EXCERPT_LENGTH = 300


_HIDDEN = re.compile(r"<!--.*?(?:-->|\Z)|<(script|style)\b.*?(?:</\1\s*>|\Z)", re.IGNORECASE | re.DOTALL)


_TAGS = re.compile(r"<[/!?a-z][^>]*(?:>|\Z)", re.IGNORECASE)


_JWT = re.compile(r"eyJ[\w-]+\.[\w-]+\.[\w-]*")


_CREDENTIALS_IN_URL = re.compile(r"(?<=://)[^/\s'\"]*(?=@)")


_BEARER = re.compile(r"(bearer\s+)\S+", re.IGNORECASE)


_SECRET_FIELD = re.compile(
    r"""((?:token|password|secret|api[_-]?key|authorization)\\*["']?\s*[:=]\s*)"""
    # In quotes that are escaped, in quotes, or bare.
    r"""(?:\\+(["']).*?(?:\\+\2|\Z)|(["'])(?:\\.|(?!\3)[^\\])*|[^"'\s,;&}]+)""",
    re.IGNORECASE | re.DOTALL,
)


def redact(text: str, secrets: Iterable[str] = ()) -> str:
    """Replace everything that is, or looks like, a secret by ``***``."""
    for secret in secrets:
        if secret:
            text = text.replace(secret, "***")
    text = _JWT.sub("***", text)
    text = _CREDENTIALS_IN_URL.sub("***", text)
    text = _BEARER.sub(r"\1***", text)
    return _SECRET_FIELD.sub(r"\1***", text)


def excerpt(body: bytes | str, secrets: Iterable[str] = (), length: int = _EXCERPT_LENGTH) -> str:
    """Return the beginning of an answer as plain, redacted text, fit for a log line. Markup is taken out."""
    # Far more than is shown, so that a page's text is found behind its head, and little enough to stay cheap.
    text = body[: 64 * length].decode("utf-8", "replace") if isinstance(body, bytes) else body[: 64 * length]
    if "<" in text:
        text = html.unescape(_TAGS.sub(" ", _HIDDEN.sub(" ", text)))
    text = redact(" ".join(text.split()), secrets)
    return text if len(text) <= length else text[: length - 1] + "…"
