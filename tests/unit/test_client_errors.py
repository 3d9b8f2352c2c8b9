"""Each answer becomes the right error, in plain words and without a secret."""

from __future__ import annotations

import copy
import inspect
import json
import multiprocessing
import pickle
import re
from concurrent.futures import ProcessPoolExecutor
from typing import TYPE_CHECKING, Any

import jwt
import pytest
from support.client import whole_text_of

from airflow_provider_etlworks.client import endpoints, errors
from airflow_provider_etlworks.client.call import Call, Response
from airflow_provider_etlworks.client.errors import EtlworksApiError, EtlworksReplyError
from airflow_provider_etlworks.client.models import Execution
from airflow_provider_etlworks.client.redaction import excerpt, redact
from airflow_provider_etlworks.client.retry import is_retryable
from airflow_provider_etlworks.client.settings import root_url

if TYPE_CHECKING:
    from collections.abc import Callable

CALL = endpoints.get_flow(7)
PASSWORD = 'hunter2 "and, more"'
TOKEN = jwt.encode({"sub": "alice", "exp": 1}, "a key that is long enough for HS256 to be happy with it")
SECRETS = (PASSWORD,)
PAGE = b"""<!DOCTYPE html><html><head><title>502 Bad Gateway</title>
<style type="text/css">body { color: red }</style><script>if (a < b) { alert("stolen"); }</script></head>
<body><!-- built by > nginx --><h1>Bad&nbsp;Gateway</h1><p>The upstream &lt;etl&gt; is down.</p></body></html>"""


def answer(status: int, body: object = b"", **headers: str) -> Response:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Response(status, {name.replace("_", "-").title(): value for name, value in headers.items()}, raw)


def error_of(given: Response) -> EtlworksApiError:
    with pytest.raises(EtlworksApiError) as raised:
        CALL.result(given, SECRETS)
    return raised.value


@pytest.mark.parametrize(
    ("status", "kind", "retryable", "not_processed"),
    [
        (304, errors.EtlworksBadRequest, False, False),
        (400, errors.EtlworksBadRequest, False, True),
        (401, errors.EtlworksUnauthorized, False, True),
        (403, errors.EtlworksForbidden, False, True),
        (404, errors.EtlworksNotFound, False, True),
        (302, errors.EtlworksBadRequest, False, False),
        (405, errors.EtlworksBadRequest, False, True),
        (406, errors.EtlworksBadRequest, False, False),
        (408, errors.EtlworksServerError, True, False),
        (409, errors.EtlworksConflict, False, True),
        (410, errors.EtlworksBadRequest, False, False),
        (413, errors.EtlworksBadRequest, False, True),
        (415, errors.EtlworksBadRequest, False, True),
        (418, errors.EtlworksBadRequest, False, False),
        (422, errors.EtlworksBadRequest, False, True),
        (425, errors.EtlworksServerError, True, False),
        (429, errors.EtlworksRateLimited, True, True),
        (500, errors.EtlworksServerError, True, False),
        (502, errors.EtlworksServerError, True, False),
        (503, errors.EtlworksServerError, True, False),
        (504, errors.EtlworksServerError, True, False),
        (599, errors.EtlworksServerError, True, False),
    ],
)
def test_status_selects_the_error(status, kind, retryable, not_processed) -> None:
    error = error_of(answer(status, {"message": "What the server says"}))
    assert (type(error), error.status, error.retryable, error.not_processed) == (kind, status, retryable, not_processed)
    assert str(error).startswith(f"Etlworks answered {status} to GET /v1/flows/7: What the server says")


@pytest.mark.parametrize("status", [*range(300, 600), 102, 999])
def test_few_statuses_are_certain_refusals(status: int) -> None:
    assert error_of(answer(status)).not_processed == (status in {400, 401, 403, 404, 405, 409, 413, 415, 422, 429})


@pytest.mark.parametrize(
    "call",
    [
        endpoints.send_to_listener("orders"),
        endpoints.send_to_listener_legacy("orders"),
        endpoints.request("POST", "/v1/httplistener/orders", root_url="https://etl.example.com"),
    ],
)
@pytest.mark.parametrize("status", [302, 400, 401, 404, 409, 422, 429, 500])
def test_listener_status_is_never_a_certain_refusal(call: Call[object], status: int) -> None:
    error = call.error(answer(status, {"message": "no"}))
    assert not error.not_processed
    assert not is_retryable(error, idempotent=call.idempotent)


def test_refused_redirect_leaves_the_request_in_doubt() -> None:
    assert not errors.EtlworksRedirected("Etlworks redirects elsewhere.", status=302).not_processed
    assert not errors.EtlworksRefused("Etlworks refused.", status=200).not_processed


def every_error() -> list[errors.EtlworksError]:
    given = {
        "status": 429, "retry_after": 7.5, "retryable": True, "not_processed": True, "answer": {"a": [1]},
        "audit_id": 42, "candidates": [41, 42], "status_is_certain": True,
        "execution": Execution.from_json({"flowId": 7, "auditId": 42, "status": "error", "ended": 1}),
    }  # fmt: skip

    def below(kind: type[errors.EtlworksError]) -> list[type[errors.EtlworksError]]:
        return [kind, *(found for each in kind.__subclasses__() for found in below(each))]

    return [
        kind("What happened.", **{name: given[name] for name in inspect.signature(kind).parameters if name in given})
        for kind in below(errors.EtlworksError)
    ]


@pytest.mark.parametrize("error", every_error(), ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda error: pickle.loads(pickle.dumps(error))])  # noqa: S301
def test_error_survives_copying_and_pickling(error: errors.EtlworksError, copied: Callable[..., Any]) -> None:
    error.of_somebody_else = "kept"  # type: ignore[attr-defined]
    twin = copied(error)
    assert (type(twin), twin.args, str(twin), vars(twin)) == (type(error), error.args, str(error), vars(error))


def test_error_crosses_a_process_pool() -> None:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        error = pool.submit(errors.api_error, "GET /v1/flows", 429, "slow down", retry_after=3.0).result()
        with pytest.raises(errors.EtlworksConfigError, match="no Host"):
            pool.submit(root_url, None).result()
    assert (type(error), error.status, error.retry_after) == (errors.EtlworksRateLimited, 429, 3.0)


@pytest.mark.parametrize("text", ["a\nINFO - all is well", "\x1b[31mred", "a\0b\ud83d", "a\u2028b\u202e"])
def test_message_is_one_clean_line(text: str) -> None:
    for error in (
        errors.EtlworksError(text),
        error_of(answer(400, {"message": text})),
        errors.EtlworksConfigError(text),
    ):
        assert all(each.isprintable() for each in str(error))


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"status": 400, "error": "Bad Request", "message": "Flow is disabled", "path": "/x"}, "Flow is disabled"),
        ({"error": "Bad Request", "message": ""}, "Bad Request"),
        ({"message": None, "exception": "NullPointer"}, "NullPointer"),
        ({"message": {"nested": 1}, "error": "Bad Request"}, "Bad Request"),
        ({"code": 17}, '{"code": 17}'),
        (["a", "list"], '["a", "list"]'),
        (b"plain  words\n", "plain words"),
        (b"\xffx", "\N{REPLACEMENT CHARACTER}x"),
        (b"", ""),
    ],
)
def test_message_comes_from_the_body(body: object, said: str) -> None:
    assert str(error_of(answer(400, body))) == f"Etlworks answered 400 to GET /v1/flows/7{': ' if said else ''}{said}"


def test_html_page_becomes_plain_text() -> None:
    text = str(error_of(answer(502, PAGE, content_type="text/html")))
    assert "502 Bad Gateway" in text
    assert "The upstream <etl> is down." in text
    for noise in ("alert", "stolen", "color", "nginx", "<p>", "<h1>", "script"):
        assert noise not in text


@pytest.mark.parametrize("cut_after", [b'alert("', b"<scr", b"color:"])
def test_cut_html_page_loses_its_script(cut_after: bytes) -> None:
    cut = PAGE[: PAGE.index(cut_after) + len(cut_after)]
    text = str(error_of(answer(502, cut)))
    assert "502 Bad Gateway" in text
    for noise in ("alert", "color", "<scr"):
        assert noise not in text


def test_long_text_is_cut() -> None:
    assert len(str(error_of(answer(500, {"message": "x" * 100_000})))) < 500
    assert len(excerpt(b"<p>" * 10_000_000 + b"text")) < 500


def test_error_names_the_remedy() -> None:
    assert "role does not allow" in str(error_of(answer(403)))
    assert "cannot see it" in str(error_of(answer(404)))
    assert "API key" in str(error_of(answer(401)))
    assert "expired" in str(error_of(answer(401)))


def test_refusal_with_status_200() -> None:
    error = error_of(answer(200, {"success": False, "message": f"No disk left for {PASSWORD}"}))
    assert type(error) is errors.EtlworksRefused
    assert (error.status, error.retryable, error.not_processed) == (200, False, False)
    assert str(error) == "Etlworks refused GET /v1/flows/7: No disk left for ***"


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b' \n{"success": false, "error": "no"}', "no"),
        (b'{"success":false}', "no reason given"),
        (b'{"exception": "late", "success"\n: false}', "late"),
    ],
)
def test_refusal_in_every_spelling(body: bytes, reason: str) -> None:
    assert reason in str(error_of(answer(200, body)))


@pytest.mark.parametrize(
    "body", [{"id": 7, "success": True}, {"id": 7, "success": "false"}, {"id": 7, "status": "success"}]
)
def test_no_refusal(body: object) -> None:
    assert CALL.result(answer(200, body)).id == 7


@pytest.mark.parametrize("body", [PAGE, b'{"id": 7', b"[" * 100_000, b"\xff\xfe\xff", b"null", b"", b"[]", b'"text"'])
def test_unreadable_response(body: bytes) -> None:
    with pytest.raises(EtlworksReplyError) as raised:
        CALL.result(answer(200, body, content_type="text/html"))
    assert str(raised.value).startswith("Cannot read the answer to GET /v1/flows/7: ")
    assert (raised.value.retryable, raised.value.not_processed) == (True, False)


def test_non_json_is_described() -> None:
    with pytest.raises(EtlworksReplyError) as raised:
        CALL.result(answer(200, PAGE, content_type="text/html"))
    for part in ("text/html", f"{len(PAGE)} bytes", "502 Bad Gateway", "Is Host the address"):
        assert part in str(raised.value)
    assert "alert" not in str(raised.value)


LEAKS = {
    "the password": PASSWORD,
    "a token": f"the token {TOKEN} has expired",
    "a token in a URL": f"GET /v1/x?token={TOKEN}&a=b",
    "credentials in a URL": "see https://alice:abc.def-123@etl.example.com/x",
    "a bearer": "you sent Authorization: Bearer abc.def-123",
    "a login": "you sent Basic YWJjLmRlZi0xMjM=",
    "an API key": "apiKey=abc.def-123",
    "a quoted field": '{"password": "abc.def-123 and, more", "login": "alice"}',
    "another field": "{'client_secret': 'abc.def-123'}",
    "a header": "X-API-Key: abc.def-123",
}


@pytest.mark.parametrize("leak", LEAKS)
@pytest.mark.parametrize("status", [200, 400, 500])
@pytest.mark.parametrize("form", ["json", "page", "text"])
def test_no_secret_is_repeated(leak: str, status: int, form: str) -> None:
    text = LEAKS[leak]
    bodies = {
        "json": json.dumps({"success": False, "message": text}),
        "page": f"<html><body title='x'><p>{text}</p></body></html>",
        "text": text,
    }
    with pytest.raises(errors.EtlworksError) as raised:
        CALL.result(answer(status, bodies[form].encode()), SECRETS)
    seen = whole_text_of(raised.value)
    for secret in (PASSWORD, TOKEN, TOKEN.rpartition(".")[2], "abc.def-123", "and, more"):
        assert secret not in seen


def test_other_texts_are_kept() -> None:
    text = "The tokenizer failed at row 7: password column is empty; 3 bearers"
    assert redact(text, ["", "hunter2"]) == text


def test_documented_error_tree_is_the_real_one() -> None:
    def below(kind: type[Exception]) -> set[str]:
        # The hook has a kind of its own that Airflow does not retry.
        own = (each for each in kind.__subclasses__() if each.__module__ == errors.__name__)
        return {kind.__name__}.union(*map(below, own))

    documented = re.findall(r"^(?:[│ ]*[├└]── )?(Etlworks\w+)", errors.__doc__ or "", re.MULTILINE)
    assert sorted(documented) == sorted(below(errors.EtlworksError))
