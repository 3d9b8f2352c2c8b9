"""Secrets are removed from a text, or from decoded JSON, before anything else is done with it."""

from __future__ import annotations

import html
import json
import re
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, quote_plus

from airflow_provider_etlworks.client.text import cut, is_trace, map_json, shorten_trace, storable, visible

if TYPE_CHECKING:
    from collections.abc import Iterable

_EXCERPT_LENGTH = 300
_HIDDEN = re.compile(r"<!--.*?(?:-->|\Z)|<(script|style)\b.*?(?:</\1\s*>|\Z)", re.IGNORECASE | re.DOTALL)
_TAGS = re.compile(r"<[/!?a-z][^>]*(?:>|\Z)", re.IGNORECASE)
# Each takes a time that is proportional to the text, whatever a server sends: hence the condition before "eyJ".
_JWT = re.compile(r"(?<![\w-])eyJ[\w-]+\.[\w-]+\.[\w-]*")
# Also those of a URL that was cut before its "@".
_CREDENTIALS_IN_URL = re.compile(r"(?<=://)(?:[^/\s'\"]*(?=@)|[^/\s'\":…]*:[^/\s'\"…]*(?=…))")
_BEARER = re.compile(r"(bearer\s+)\S+", re.IGNORECASE)
# In data, "bearer" may also be a word of the flow's author.
_BEARER_TOKEN = re.compile(r"(bearer\s+)(?=\S*\d)\S{8,}", re.IGNORECASE)
_SECRET_FIELD = re.compile(
    r"""((?:token|password|secret|api[_-]?key|authorization)\\*["']?\s*[:=]\s*)"""
    # In quotes that are escaped, in quotes, or bare.
    r"""(?:\\+(["']).*?(?:\\\2|\Z)|(["'])(?:\\.|(?!\3)[^\\])*|[^"'\s,;&}]+)""",
    re.IGNORECASE | re.DOTALL,
)
# The header with login and password: in Base64, so not the words "basic settings".
_BASIC = re.compile(r"(basic\s+)(?=[a-z\d+/]*(?:\d|=|(?-i:[a-z][A-Z])))[a-z\d+/]{6,}=*", re.IGNORECASE)
_PERCENT = re.compile("%..")
# A shorter password is a part of too many words.
_SHORTEST_IN_DATA = 4
# As much of the end of a text that is cut may be a part of a token or of a URL's password.
_LONGEST_WORD = 4_000


@lru_cache(maxsize=64)
def _spellings(secret: str) -> tuple[str, ...]:
    """Return a secret as it is, and as it looks inside of JSON (also twice), HTML and a URL; the longest first."""
    in_json = {_in_json(secret, ascii_only) for ascii_only in (True, False)}
    twice = {_in_json(each, ascii_only) for each in in_json for ascii_only in (True, False)}
    in_url = {quoted(secret, safe, errors="replace") for quoted in (quote, quote_plus) for safe in ("", "/")}
    in_lower_case = {_PERCENT.sub(lambda code: code[0].lower(), each) for each in in_url}
    every = {secret, html.escape(secret), *in_json, *twice, *in_url, *in_lower_case}
    return tuple(sorted(every, key=len, reverse=True))


def _in_json(text: str, ascii_only: bool) -> str:
    return json.dumps(text, ensure_ascii=ascii_only)[1:-1]


def _without(text: str, secrets: Iterable[str]) -> str:
    for secret in secrets:
        for spelling in _spellings(secret) if secret else ():
            text = text.replace(spelling, "***")
    return text


def redact(text: str, secrets: Iterable[str] = ()) -> str:
    """
    Return a text for people, with ``***`` instead of everything that is, or looks like, a secret.

    :param text: the text, before it is cut: a part of a secret is not recognized.
    :param secrets: the secrets that are known.
    """
    text = _JWT.sub("***", _without(text, secrets))
    text = _CREDENTIALS_IN_URL.sub("***", text)
    text = _BASIC.sub(r"\1***", _BEARER.sub(r"\1***", text))
    return _SECRET_FIELD.sub(r"\1***", text)


def redact_json(value: Any, secrets: Iterable[str] = ()) -> Any:
    """
    Return decoded JSON with ``***`` instead of the known secrets, of JWTs, and of what follows "Bearer" or
    "Basic", in each text and name.

    What a server calls a password stays, unless it is one of ours: only the reader knows what it is.

    :param value: the JSON, before any text in it is cut. The result is also
        :func:`~airflow_provider_etlworks.client.text.harmless`.
    :param secrets: the secrets that are known.
    """
    secrets = tuple(secrets)
    # Names and most values occur many times.
    return map_json(value, cache(lambda text: storable(redact_data(text, secrets))))


def redact_data(text: str, secrets: Iterable[str] = ()) -> str:
    """Return a text of a server's data, such as a log, as :func:`redact_json` does."""
    text = _without(text, (secret for secret in secrets if len(secret) >= _SHORTEST_IN_DATA))
    return _BASIC.sub(r"\1***", _BEARER_TOKEN.sub(r"\1***", _JWT.sub("***", text)))


def may_need_redaction(json_text: str, secrets: Iterable[str]) -> bool:
    """Whether decoded JSON may differ from what :func:`redact_json` makes of it: a quick test of its source."""
    # An escape may hide a secret, a NUL or half a surrogate pair.
    if "\\" in json_text:
        return True
    lower = json_text.lower()
    return "eyj" in lower or "bearer" in lower or "basic" in lower or _without(json_text, secrets) != json_text


def excerpt(body: bytes | str, secrets: Iterable[str] = (), length: int = _EXCERPT_LENGTH) -> str:
    """
    Return the gist of an answer in one line of plain, redacted text, without markup and frames of a stack trace.

    :param secrets: the secrets that are known.
    :param length: the most characters of the result.
    """
    secrets = tuple(secrets)
    text = _without(body.decode("utf-8", "replace") if isinstance(body, bytes) else body, secrets)
    # Far more than is shown, so that a page's text is found behind its head, and little enough to stay cheap.
    most = _LONGEST_WORD + 64 * length
    if len(text) > most:
        if is_trace(text):
            text = shorten_trace(text, most)
        else:
            *words, _ = text[most - _LONGEST_WORD : most].rsplit(maxsplit=1) or [""]
            text = text[: most - _LONGEST_WORD] + "".join(words)
    if "<" in text:
        text = html.unescape(_TAGS.sub(" ", _HIDDEN.sub(" ", text)))
    text = redact(text, secrets)
    if is_trace(text):
        text = shorten_trace(text, length)
    return cut(visible(" ".join(text.split())), length)
