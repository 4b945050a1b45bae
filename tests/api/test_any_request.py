"""Whatever is sent, the status is one of the documented ones and the body a problem or the flat shape.

Above all never 400, 408, 500, 502 or 504, which mean something else to a bot, and never the 503 of a bug of ours.
"""

import json
import re
from base64 import urlsafe_b64encode
from typing import Any
from urllib.parse import quote

import httpx2
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.api.shapes import FLAT, JSON, OF_A_PROBLEM, PROBLEM, PROBLEM_JSON
from tests.support.app import MESSAGE, Application

TAKEN, REFUSED = {200, 202, 424}, {401, 413, 415, 422}
PATHS = ["/", "/send", "/messages", "/livez", "/readyz", "/health", "/metrics", "/docs", "/redoc", "/openapi.json"]
METHODS = ["GET", "GET", "GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"]

bounded = settings(
    derandomize=True,  # the same every time, so that what is red is red for everybody
    database=None,
    deadline=None,
    max_examples=300,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

# --- bodies ----------------------------------------------------------------------------------------------------

text = (
    st.text(max_size=20)
    | st.text("ab@.,;<>\"'\\()[]: \r\n\x00é ", max_size=20)
    | st.text("@.aü東\u202e＠。", max_size=8)
)
line = st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), max_size=100)
numbers = st.integers() | st.floats() | st.sampled_from([10**400, -(2**63), 2**64, 1e308])
anything = st.recursive(
    st.none() | st.booleans() | numbers | text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4),
    max_leaves=10,
)
mailboxes = (
    st.emails()
    | st.builds('"{}" <{}>'.format, st.text("Ann, ü-", max_size=9), st.emails())
    | st.fixed_dictionaries({"email": st.emails()}, optional={"name": line})
)
good = {
    "to": mailboxes | st.lists(mailboxes, min_size=1, max_size=4),
    "cc": mailboxes,
    "bcc": mailboxes,
    "reply_to": mailboxes,
    "from": mailboxes,
    "subject": line,
    "text": st.text(max_size=200) | st.text(".\r\n =", max_size=50),
    "html": st.text(max_size=200),
    "headers": st.dictionaries(st.from_regex(r"X-[!-9;-~]{1,70}", fullmatch=True), line, max_size=3),
    "tags": st.lists(line.filter(bool), max_size=10),
    "metadata": st.dictionaries(st.text(max_size=20), st.text(max_size=20), max_size=3),
    "expires_in": st.integers(1, 86400) | st.floats(1, 86400),
}
bad = {
    "to": text | st.lists(text, max_size=3) | st.builds("{}@{}".format, text, text),
    "headers": st.dictionaries(text | st.just("X-A"), text | anything, max_size=3),
    "tags": st.lists(text, max_size=12),
}


@st.composite
def messages(draw: st.DrawFn) -> dict[str, Any]:
    """Change a few fields of a good message, most of them so that it stays one."""
    message: dict[str, Any] = dict(MESSAGE)
    for name in draw(st.lists(st.sampled_from(list(good)), max_size=6)):
        message[name] = draw(good[name])
    if draw(st.integers(0, 2)) == 0:
        name = draw(st.sampled_from([*good, "profile", "attachments", "send_at", "dry_run"]) | text)
        message[name] = draw(bad.get(name, anything) | anything)
    return message


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    """Write a message; or anything else, or a message that was cut or overwritten somewhere."""
    kind = draw(st.sampled_from(["message"] * 5 + ["anything", "cut", "overwritten", "noise"]))
    if kind == "noise":
        return draw(st.binary(max_size=50))
    said = draw(anything if kind == "anything" else messages())
    whole = json.dumps(said, ensure_ascii=draw(st.booleans())).encode("utf-8", "surrogatepass")
    at = draw(st.integers(0, len(whole))) if kind in ("cut", "overwritten") else len(whole)
    return whole[:at] + (draw(st.binary(max_size=4)) + whole[at + 1 :] if kind == "overwritten" else b"")


@bounded
@given(body=bodies(), prefer=st.sampled_from(["", "handling=lenient", "respond-async"]))
async def test_any_body_gets_a_documented_answer(service: Application, body: bytes, prefer: str) -> None:
    script(service)
    headers = {"Content-Type": JSON, "Prefer": prefer}
    said = documented(await service.client.post("/send", content=body, headers=headers))
    if said["status"] in TAKEN:
        for path in (f"/messages/{said['id']}", f"/messages/{said['id']}/raw"):
            found = await service.client.get(path)
            assert found.status_code == 200, found.text


# --- headers, paths and parameters -----------------------------------------------------------------------------

value = st.binary(max_size=20).map(lambda raw: bytes(b for b in raw if b >= 0x20 and b != 0x7F))


def one_of(*known: str) -> st.SearchStrategy[bytes]:
    return st.sampled_from([name.encode() for name in known]) | value


of_the_body = {
    b"content-type": one_of(JSON, "application/json; charset=utf-8", "text/plain", "text/html", "a/b; charset="),
    b"content-encoding": one_of("identity", "gzip"),
    b"prefer": one_of("wait=0", "respond-async", "handling=lenient", "wait=5"),
    b"accept": one_of(JSON, PROBLEM_JSON, "*/*"),
    b"x-request-id": one_of("a.b:c-1"),
    b"idempotency-key": one_of("4711"),
}
of_the_caller = {
    b"host": one_of("localhost", "[::1]:8587", "[", "[]", "a:b:c", ""),
    b"origin": one_of("null", "http://localhost", "://", "http://[::1"),
    b"sec-fetch-site": one_of("same-origin", "cross-site"),
    b"authorization": one_of("Bearer", "Bearer ", "Basic YTpi"),
    b"x-api-key": value,
    b"x-forwarded-for": value,
}


@bounded
@given(
    sent=st.fixed_dictionaries({}, optional=of_the_body),
    caller=st.just({}) | st.fixed_dictionaries({}, optional=of_the_caller),
)
async def test_any_header_gets_a_documented_answer(
    service: Application, sent: dict[bytes, bytes], caller: dict[bytes, bytes]
) -> None:
    script(service)
    headers = {b"content-type": JSON.encode(), **sent, **caller}
    documented(await service.client.post("/send", json=MESSAGE, headers=list(headers.items())))


@bounded
@given(
    method=st.sampled_from(METHODS),
    path=st.sampled_from(PATHS) | text.map(lambda said: f"/messages/{said}") | text.map(lambda said: f"/{said}"),
    query=st.dictionaries(st.sampled_from(["limit", "cursor", "q"]), text | st.text("0123456789", max_size=30)),
    caller=st.fixed_dictionaries({}, optional=of_the_caller),
)
async def test_any_path_gets_a_documented_answer(
    service: Application, method: str, path: str, query: dict[str, str], caller: dict[bytes, bytes]
) -> None:
    answer = await service.client.request(method, quote(path), params=query, headers=list(caller.items()))
    assert answer.status_code in {200, 404, 405, *REFUSED}, answer.text
    if answer.status_code != 200 and method != "HEAD":
        assert_problem(answer, json.loads(answer.content))
    if answer.status_code == 405:
        assert re.fullmatch(r"[A-Z]+(, [A-Z]+)*", answer.headers["allow"])


@bounded
@given(
    cursor=st.binary(max_size=20) | st.binary(min_size=16, max_size=16),
    limit=st.integers(-5, 200).map(str) | st.text("0٣9", max_size=30),
)
async def test_any_cursor_and_limit_get_a_page_or_422(service: Application, cursor: bytes, limit: str) -> None:
    params = {"cursor": urlsafe_b64encode(cursor).decode().rstrip("="), "limit": limit}
    answer = await service.client.get("/messages", params=params)
    assert answer.status_code in {200, 422}, answer.text


def script(service: Application) -> None:
    """Refuse and defer some recipients, so that there are all kinds of ends."""
    if service.relay.connections == 0:
        service.relay.on("RCPT", "550 5.1.1 No such mailbox", match="a")
        service.relay.on("RCPT", "451 4.3.0 Later", match="0")
        service.relay.on("RCPT", "250 2.1.5 Ok", match="ann@")


def documented(answer: httpx2.Response) -> dict[str, Any]:
    """Check an answer of POST /send, and give its body with the status in it."""
    assert answer.status_code in TAKEN | REFUSED, (answer.status_code, answer.text)
    said: dict[str, Any] = json.loads(answer.content)
    if answer.status_code in REFUSED:
        assert_problem(answer, said)
    else:
        assert list(said) == [*(OF_A_PROBLEM if answer.status_code == 424 else []), *FLAT]
        assert answer.headers["content-type"] == JSON or answer.status_code == 424
    return {**said, "status": answer.status_code}


def assert_problem(answer: httpx2.Response, said: dict[str, Any]) -> None:
    assert list(said) == PROBLEM
    assert said["status"] == answer.status_code
    assert answer.headers["content-type"] in {JSON, PROBLEM_JSON}
