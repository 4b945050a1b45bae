"""What every route shares, without a socket: who is calling, what is preferred, and how an answer looks."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Iterable
from datetime import timedelta
from time import perf_counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.api.edge import (
    Answer,
    Headers,
    Preference,
    Scope,
    answer_json,
    answer_to,
    answer_to_post,
    headers_of,
    preference_of,
    visit_of,
)
from app.api.problems import MethodNotAllowed, UnsupportedMedia
from app.intake.callers import Callers, Visit
from app.mail.errors import (
    Fault,
    Forbidden,
    InvalidMessage,
    LeaseLost,
    MailError,
    NotFound,
    StoreUnavailable,
    TooLarge,
    Unauthenticated,
)
from app.mail.outcome import FailureClass, MessageState
from app.runtime import Runtime
from app.settings import load
from tests.api.shapes import FLAT, OF_A_PROBLEM, PROBLEM
from tests.unit.factories import ID, failure, snapshot

PROBLEM_JSON, JSON = b"application/problem+json", b"application/json"
KEY = "a-key-of-some-length"
NEVER_USED = {400, 408, 500, 502, 504}  # Typebot invents them, proxies send them


def _scope(*headers: tuple[str, str], peer: str = "127.0.0.1", host: str = "127.0.0.1:8587") -> Scope:
    raw = [(name.lower().encode(), value.encode("utf-8", "surrogateescape")) for name, value in headers]
    return {
        "type": "http",
        "headers": [(b"host", host.encode()), *raw],
        "client": (peer, 50_000),
        "server": ("127.0.0.1", 8587),
        "path": "/send",
        "query_string": b"",
    }


def _visit(*headers: tuple[str, str], **where: str) -> Visit:
    scope = _scope(*headers, **where)
    return visit_of(scope, headers_of(scope))


def _may_come_in(callers: Callers, visit: Visit) -> bool:
    try:
        callers.identify(visit)
    except Unauthenticated:
        return False
    return True


# Headers.


def test_repeated_headers_are_one_list() -> None:
    scope = {"headers": [(b"prefer", b"wait=3"), (b"host", b"x"), (b"prefer", b"respond-async")]}
    assert headers_of(scope) == {b"prefer": b"wait=3, respond-async", b"host": b"x"}


def test_a_header_that_is_sent_twice_alike_is_one() -> None:
    scope = {"headers": [(b"authorization", b"Bearer a"), (b"host", b"x"), (b"authorization", b"Bearer a")]}
    assert headers_of(scope) == {b"authorization": b"Bearer a", b"host": b"x"}


# Who is calling.


def _basic(user: str, password: str) -> str:
    return f"Basic {b64encode(f'{user}:{password}'.encode()).decode()}"


@pytest.mark.parametrize(
    ("headers", "credential"),
    [
        ([], None),
        ([("Authorization", f"Bearer {KEY}")], KEY),
        ([("Authorization", f"bearer {KEY}")], KEY),
        ([("Authorization", f"BEARER  {KEY} ")], KEY),
        ([("X-API-Key", KEY)], KEY),
        ([("X-API-Key", f" {KEY} ")], KEY),
        ([("Authorization", _basic("bot", KEY))], KEY),
        ([("Authorization", _basic("", KEY).replace("Basic", "BASIC"))], KEY),
        ([("Authorization", _basic("a:b", KEY))], None),
        ([("Authorization", _basic(KEY, ""))], None),
        ([("Authorization", _basic("bot", "pass")), ("X-API-Key", KEY)], KEY),
        ([("Authorization", _basic("bot", KEY)), ("X-API-Key", "other")], KEY),
        ([("Authorization", f"Bearer {KEY}"), ("X-API-Key", "other")], KEY),
        ([("Authorization", "Bearer other"), ("X-API-Key", KEY)], KEY),
        ([("Authorization", "Basic Ym90OnBhc3M=")], None),
        ([("Authorization", "Basic =")], None),
        ([("Authorization", "Basic \u00e9")], None),
        ([("Authorization", f"Digest {KEY}")], None),
        ([("Authorization", KEY)], None),
        ([("Authorization", "Bearer")], None),
        ([("Authorization", "Bearer ")], None),
        ([("Authorization", f"Bearer{KEY}")], None),
        ([("X-API-Key", "")], None),
        ([("Cookie", f"api_key={KEY}")], None),
    ],
)
def test_a_key_comes_as_bearer_as_basic_or_as_x_api_key(headers: list[tuple[str, str]], credential: str | None) -> None:
    assert (credential is not None and credential.encode() in _visit(*headers).credentials) is (credential == KEY)
    assert _may_come_in(Callers(KEY), _visit(*headers)) is (credential == KEY)


@pytest.mark.parametrize("query", [b"api_key=", b"X-API-Key=", b"access_token=", b"key=", b"authorization=Bearer%20"])
def test_a_key_in_the_query_string_is_not_looked_at(query: bytes) -> None:
    scope = _scope()
    scope["query_string"] = query + KEY.encode()
    assert visit_of(scope, headers_of(scope)) == _visit()
    assert not _may_come_in(Callers(KEY), visit_of(scope, headers_of(scope)))


@pytest.mark.parametrize(
    "key",
    [
        KEY,
        "ein-schlüssel-mit-umlauten",
        "鍵鍵鍵鍵鍵鍵鍵鍵鍵鍵鍵鍵鍵鍵鍵鍵",
        "a key with blanks in it",
        "a,b;c=d\"e'f<g>h{i}",
    ],
)
def test_any_key_of_the_settings_opens(key: str) -> None:
    settings = load({"MAILCHUTE_API_KEY": key}, files=())
    callers = Callers(settings.api_key)
    assert _may_come_in(callers, _visit(("Authorization", f"Bearer {key}"), peer="192.0.2.9"))
    assert _may_come_in(callers, _visit(("X-API-Key", key), peer="192.0.2.9"))
    assert not _may_come_in(callers, _visit(("X-API-Key", key + "x"), peer="192.0.2.9"))


@pytest.mark.parametrize(
    "name",
    [
        "Forwarded",
        "X-Forwarded-For",
        "X-Forwarded-Host",
        "X-Forwarded-Proto",
        "X-Forwarded-Port",
        "X-Forwarded-Server",
        "X-Forwarded-Prefix",
        "X-Forwarded-Ssl",
        "X-Forwarded",
        "X-Real-IP",
        "Via",
        "CF-Connecting-IP",
        "CF-Ray",
        "CF-Visitor",
        "CF-IPCountry",
        "CDN-Loop",
        "True-Client-IP",
        "X-Client-IP",
        "X-ClientIP",
        "Client-IP",
        "X-Cluster-Client-IP",
        "X-Original-Forwarded-For",
        "X-Original-Host",
        "X-Original-URL",
        "X-Originating-IP",
        "X-Remote-IP",
        "X-Remote-Addr",
        "X-Source-IP",
        "X-ProxyUser-IP",
        "X-Envoy-External-Address",
        "X-Envoy-Expected-Rq-Timeout-Ms",
        "X-Azure-ClientIP",
        "X-Azure-SocketIP",
        "X-Appengine-User-IP",
        "X-Amzn-Trace-Id",
        "X-Cloud-Trace-Context",
        "X-ARR-SSL",
        "X-Host",
        "Proxy-Client-IP",
        "WL-Proxy-Client-IP",
        "Fastly-Client-IP",
        "Fly-Client-IP",
        "DO-Connecting-IP",
        "X-NF-Client-Connection-IP",
        "X-Vercel-Forwarded-For",
        "Ali-CDN-Real-IP",
        "Max-Forwards",
    ],
)
def test_without_a_key_nothing_that_a_proxy_sent_on_is_served(name: str) -> None:
    assert not _may_come_in(Callers(None), _visit((name, "")))
    assert not _may_come_in(Callers(None), _visit((name, "127.0.0.1")))
    assert _may_come_in(Callers(KEY), _visit((name, "127.0.0.1"), ("X-API-Key", KEY)))


def test_without_a_key_http_1_0_is_not_served_since_nginx_speaks_it_to_its_upstreams() -> None:
    scope = {**_scope(), "http_version": "1.0"}
    assert not _may_come_in(Callers(None), visit_of(scope, headers_of(scope)))
    scope = {**_scope(("X-API-Key", KEY)), "http_version": "1.0"}
    assert _may_come_in(Callers(KEY), visit_of(scope, headers_of(scope)))


@pytest.mark.parametrize(
    ("headers", "where", "served"),
    [
        ([], {}, True),
        ([], {"peer": "::1", "host": "[::1]:8587"}, True),
        ([], {"host": "localhost:8587"}, True),
        ([("Origin", "http://127.0.0.1:8587")], {}, True),
        ([("Sec-Fetch-Site", "same-origin")], {}, True),
        ([("Sec-Fetch-Site", "none")], {}, True),
        ([("User-Agent", "curl/8")], {}, True),
        ([("Idempotency-Key", "a"), ("X-Request-Id", "a"), ("Cookie", "a=b"), ("Priority", "u=1")], {}, True),
        ([("X-Description", "a"), ("X-Ship", "a"), ("Traceparent", "00-a-b-01"), ("If-Match", "a")], {}, True),
        ([], {"peer": "192.0.2.9"}, False),
        ([], {"peer": ""}, False),
        ([], {"host": "mail.example"}, False),
        ([], {"host": "127.0.0.1.evil.example"}, False),
        ([], {"host": ""}, False),
        ([("Host", "evil.example")], {}, False),
        ([("Host", "evil.example:80")], {"host": "localhost:8587"}, False),
        ([("Origin", "http://evil.example")], {}, False),
        ([("Origin", "null")], {}, False),
        ([("Origin", "http://127.0.0.1:3000")], {}, False),
        ([("Sec-Fetch-Site", "cross-site")], {}, False),
        ([("Sec-Fetch-Site", "same-site")], {}, False),
    ],
)
def test_without_a_key_only_direct_requests_of_this_machine_are_served(
    headers: list[tuple[str, str]], where: dict[str, str], served: bool
) -> None:
    assert _may_come_in(Callers(None), _visit(*headers, **where)) is served


def test_the_operator_socket_is_known_by_its_path() -> None:
    scope = _scope(("X-Forwarded-For", "192.0.2.9"))
    scope["server"], scope["client"] = ("/var/lib/mailchute/mailchute.db.sock", None), None
    assert Callers(KEY).identify(visit_of(scope, headers_of(scope))).is_operator


@pytest.mark.parametrize("server", [("127.0.0.1", 8587), ("::1", 0), None])
def test_a_request_over_tcp_is_never_the_operators(server: tuple[str, int] | None) -> None:
    scope = _scope()
    scope["server"], scope["client"] = server, None
    visit = visit_of(scope, headers_of(scope))
    assert visit.peer == ""
    assert not _may_come_in(Callers(None), visit)


@given(
    st.lists(st.tuples(st.sampled_from([b"host", b"origin", b"authorization", b"x-api-key"]), st.binary(max_size=20)))
)
def test_any_header_bytes_are_a_visit(headers: list[tuple[bytes, bytes]]) -> None:
    scope = _scope()
    scope["headers"] = headers
    visit = visit_of(scope, headers_of(scope))
    assert not _may_come_in(Callers(KEY), visit)


# Prefer.


@pytest.mark.parametrize(
    ("said", "preference"),
    [
        (None, Preference()),
        ("", Preference()),
        ("wait=3", Preference(wait=3)),
        ("wait=0", Preference(wait=0)),
        ("wait=30", Preference(wait=30)),
        ("wait=31", Preference(wait=30)),
        ("wait=999999", Preference(wait=30)),
        ("Wait=3", Preference(wait=3)),
        ("wait = 3", Preference(wait=3)),
        ('wait="3"', Preference(wait=3)),
        (" wait=3 ", Preference(wait=3)),
        ("wait=3, wait=5", Preference(wait=3)),
        ("wait=-1", Preference()),
        ("wait=1.5", Preference()),
        ("wait=", Preference()),
        ("wait", Preference()),
        ("wait=x", Preference()),
        ("wait=²", Preference()),
        ("waiting=3", Preference()),
        ("no-wait=3", Preference()),
        ("respond-async", Preference(respond_async=True)),
        ("Respond-Async", Preference(respond_async=True)),
        ("respond-async, wait=3", Preference(wait=3, respond_async=True)),
        ("respond-async=false-alarm", Preference()),
        ("handling=lenient", Preference(lenient=True)),
        ('handling="lenient"', Preference(lenient=True)),
        ("handling = lenient", Preference(lenient=True)),
        ("HANDLING=Lenient", Preference(lenient=True)),
        ("handling=strict", Preference()),
        ("handling=strict, handling=lenient", Preference()),
        ("return=minimal, handling=lenient; x=y, wait=2", Preference(wait=2, lenient=True)),
        ("foo; wait=3", Preference()),
        ('foo="a, wait=3"', Preference()),
    ],
)
def test_prefer_is_read_as_rfc_7240_writes_it(said: str | None, preference: Preference) -> None:
    headers = {} if said is None else {b"prefer": said.encode("latin-1")}
    assert preference_of(headers) == preference


@pytest.mark.parametrize("piece", [b"a", b'"', b'a"', b"=", b"a=", b";", b" ", b"\\", b'"\\', b',"', b'a="b";'])
def test_reading_a_long_prefer_takes_no_time(piece: bytes) -> None:
    for raw in (piece * 8000, (piece * 200)[:190] + b'"', (piece * 1000)[:999] + b'"', b'"' + piece * 8000):
        began = perf_counter()
        preference_of({b"prefer": raw})
        assert perf_counter() - began < 0.1


@given(st.binary(max_size=60))
def test_any_prefer_is_a_preference(raw: bytes) -> None:
    preference = preference_of({b"prefer": raw})
    assert preference.wait is None or 0 <= preference.wait <= 30


# Answers about a message.


@pytest.fixture(scope="module")
def runtime() -> Runtime:
    """A runtime that was never opened: all it gives here is the time."""
    return Runtime(load({}, files=()))


def _shape(answer: Answer) -> dict[str, Any]:
    shape: dict[str, Any] = json.loads(answer.body)
    return shape


def _named(answer: Answer) -> dict[bytes, bytes]:
    headers = dict(answer.headers)
    assert len(headers) == len(answer.headers)
    return headers


@pytest.mark.parametrize(
    ("state", "status"),
    [
        (MessageState.SENT, 200),
        (MessageState.PARTIAL, 200),
        (MessageState.CANCELLED, 200),
        (MessageState.QUEUED, 202),
        (MessageState.SCHEDULED, 202),
        (MessageState.SENDING, 202),
        (MessageState.DEFERRED, 202),
        (MessageState.IN_DOUBT, 202),
        (MessageState.FAILED, 424),
    ],
)
def test_the_status_says_whether_we_have_it(state: MessageState, status: int, runtime: Runtime) -> None:
    answer = answer_to_post(snapshot(state, failure=failure()), runtime, _scope())
    assert answer.status == status
    assert list(_shape(answer)) == [*(OF_A_PROBLEM if status == 424 else []), *FLAT]
    assert (_named(answer).get(b"location") == f"messages/{ID}".encode()) is (status == 202)


def test_every_state_has_a_status_that_nobody_else_uses(runtime: Runtime) -> None:
    statuses = {answer_to_post(snapshot(state, failure=failure()), runtime, _scope()).status for state in MessageState}
    assert statuses == {200, 202, 424}
    assert not statuses & NEVER_USED


def test_a_failed_message_is_the_flat_shape_and_a_problem(runtime: Runtime) -> None:
    why = failure(FailureClass.PERMANENT)
    answer = answer_to_post(snapshot(MessageState.FAILED, failure=why), runtime, _scope())
    shape = _shape(answer)
    assert shape["type"] == "/errors/EENVELOPE"
    assert shape["status"] == answer.status == 424
    assert shape["detail"] == shape["message"]
    assert shape["title"]
    assert shape["ok"] is False
    assert shape["id"] == str(ID)
    assert _named(answer)[b"content-type"] == PROBLEM_JSON


def test_a_deferred_message_says_when_to_look_again(runtime: Runtime) -> None:
    at = runtime.now() + timedelta(seconds=90)
    answer = answer_to_post(snapshot(MessageState.DEFERRED, failure=failure(), next_attempt_at=at), runtime, _scope())
    assert 85 <= int(_named(answer)[b"retry-after"]) <= 90


def test_retry_after_is_never_zero_or_in_the_past(runtime: Runtime) -> None:
    at = runtime.now() - timedelta(hours=1)
    answer = answer_to_post(snapshot(MessageState.DEFERRED, failure=failure(), next_attempt_at=at), runtime, _scope())
    assert _named(answer)[b"retry-after"] == b"1"


@pytest.mark.parametrize("state", set(MessageState) - {MessageState.DEFERRED})
def test_only_a_deferred_message_has_a_retry_after(state: MessageState, runtime: Runtime) -> None:
    at = runtime.now() + timedelta(seconds=90)
    answer = answer_to_post(snapshot(state, failure=failure(), next_attempt_at=at), runtime, _scope())
    assert b"retry-after" not in _named(answer)


def test_what_was_preferred_and_done_is_said(runtime: Runtime) -> None:
    answer = answer_to_post(snapshot(), runtime, _scope(), applied="wait=3")
    assert _named(answer)[b"preference-applied"] == b"wait=3"
    assert b"preference-applied" not in _named(answer_to_post(snapshot(), runtime, _scope()))


_ACCEPTS = [
    (None, PROBLEM_JSON),
    ("*/*", PROBLEM_JSON),
    ("text/html", PROBLEM_JSON),
    ("application/problem+json", PROBLEM_JSON),
    ("application/json", JSON),
    ("application/json, text/plain, */*", JSON),
    ("application/json,text/html,application/xhtml+xml,application/xml,text/*;q=0.9, image/*;q=0.8, */*;q=0.7", JSON),
    ("application/json; charset=utf-8", JSON),
    ("Application/JSON", JSON),
    ("application/json, application/problem+json", PROBLEM_JSON),
    ("application/problem+json, application/json;q=0.5", PROBLEM_JSON),
]


def _accepting(accept: str | None) -> Headers:
    return {} if accept is None else {b"accept": accept.encode()}


@pytest.mark.parametrize(("accept", "content_type"), _ACCEPTS)
def test_a_problem_is_plain_json_only_for_who_names_only_that(
    accept: str | None, content_type: bytes, runtime: Runtime
) -> None:
    refusal = answer_to(NotFound("There is no message x"), _accepting(accept))
    assert _named(refusal)[b"content-type"] == content_type
    failed = answer_to_post(
        snapshot(MessageState.FAILED, failure=failure()), runtime, _scope(*((("Accept", accept),) if accept else ()))
    )
    assert _named(failed)[b"content-type"] == content_type


@pytest.mark.parametrize(("accept", "_"), _ACCEPTS)
def test_what_is_no_problem_is_plain_json_for_all(accept: str | None, _: bytes, runtime: Runtime) -> None:
    assert (
        _named(
            answer_to_post(snapshot(MessageState.SENT), runtime, _scope(*((("Accept", accept),) if accept else ())))
        )[b"content-type"]
        == JSON
    )


# Refusals at the door.

_REFUSALS: list[tuple[MailError, int, str]] = [
    (Unauthenticated("Who are you?"), 401, "unauthenticated"),
    (Forbidden("You may not"), 403, "forbidden"),
    (NotFound("There is no message x"), 404, "not-found"),
    (MethodNotAllowed("/send does not take GET; it takes POST", "POST"), 405, "method-not-allowed"),
    (TooLarge("The body has 9 bytes; at most 8 are taken"), 413, "too-large"),
    (UnsupportedMedia("Send the body as JSON"), 415, "unsupported-media-type"),
    (InvalidMessage("nobody to send to", [Fault("/to", "nobody to send to")]), 422, "invalid-message"),
    (StoreUnavailable("disk full at /srv/mail.db"), 503, "store-unavailable"),
    (MailError("a bug"), 503, "unavailable"),
    (LeaseLost("gone"), 503, "unavailable"),
]


@pytest.mark.parametrize(("error", "status", "code"), _REFUSALS, ids=[code for _, _, code in _REFUSALS])
def test_a_refusal_is_a_problem_of_one_shape(error: MailError, status: int, code: str) -> None:
    answer = answer_to(error, {})
    shape = _shape(answer)
    assert answer.status == shape["status"] == status
    assert status not in NEVER_USED
    assert list(shape) == PROBLEM
    assert shape["type"] == f"/errors/{code}"
    assert shape["ok"] is False
    assert shape["title"]
    assert shape["detail"]
    assert (b"www-authenticate" in _named(answer)) is (status == 401)
    assert (b"retry-after" in _named(answer)) is (status == 503)
    assert _named(answer).get(b"allow") == (b"POST" if status == 405 else None)


def test_a_refusal_lists_every_fault_with_its_pointer() -> None:
    faults = [Fault("/to/1", "no @"), Fault("/headers/X~1A", "a line break")]
    shape = _shape(answer_to(InvalidMessage.of(faults), {}))
    assert shape["detail"] == "no @ (1 more in errors)"
    assert shape["errors"] == [
        {"detail": "no @", "pointer": "/to/1"},
        {"detail": "a line break", "pointer": "/headers/X~1A"},
    ]


@pytest.mark.parametrize(
    "error", [StoreUnavailable("disk full at /srv/mail.db"), MailError("a bug"), LeaseLost("gone")]
)
def test_what_goes_on_inside_is_not_told_outside(error: MailError) -> None:
    assert str(error) not in answer_to(error, {}).body.decode()
    assert "nothing was taken" in _shape(answer_to(error, {}))["detail"]


@given(st.text(), st.lists(st.builds(Fault, st.text(), st.text()), max_size=3))
def test_any_refusal_is_one_json_object(detail: str, faults: Iterable[Fault]) -> None:
    answer = answer_to(InvalidMessage(detail, list(faults)), {})
    assert list(_shape(answer)) == PROBLEM
    assert _shape(answer)["detail"] == detail


def test_an_answer_has_the_type_and_the_status_it_is_given() -> None:
    answer = answer_json({"status": "fail"}, status=503, content_type=b"application/health+json")
    assert (answer.status, answer.body) == (503, b'{"status":"fail"}')
    assert _named(answer) == {b"content-type": b"application/health+json"}
