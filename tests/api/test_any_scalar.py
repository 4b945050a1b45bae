"""Whatever stands in any one place of a request, the answer is one that was designed: never a 5xx, nothing unforeseen.

An exception nobody foresaw is a fault even where it is caught: its answer is a 503, and says "send it again" for ever.
The application fixture fails where one was logged. `MAILCHUTE_SCALARS=20000` tries as many of each kind (`make soak`).
"""

import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import quote

import httpx2
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from app.api.body import SendRequest
from tests.api.shapes import JSON
from tests.support.app import MESSAGE, Application, running

EXAMPLES = int(os.environ.get("MAILCHUTE_SCALARS", "300"))
ID = "019caa00-0000-7000-8000-000000000001"

pytestmark = pytest.mark.timeout(60 + EXAMPLES / 10)

bounded = settings(
    derandomize="MAILCHUTE_SCALARS" not in os.environ,
    database=None,
    deadline=None,
    max_examples=EXAMPLES,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

# --- scalars ---------------------------------------------------------------------------------------------------

INSTANTS = [
    "0001-01-01T00:00:00+01:00",
    "0001-01-01T00:00:00Z",
    "0001-01-01T00:00:00-23:59",
    "0001-01-01",
    "0000-00-00T00:00:00Z",
    "9999-12-31T23:59:59-23:59",
    "9999-12-31T23:59:59.999999999-00:01",
    "9999-12-31T23:59:59+23:59",
    "9999-12-31",
    "10000-01-01T00:00:00Z",
    "-0001-01-01T00:00:00Z",
    "1969-12-31T23:59:59Z",
    "2026-02-29T00:00:00Z",
    "2026-12-31T23:59:60Z",
    "2026-12-31T24:00:00Z",
    "2026-12-31T23:59:59+24:00",
    "2026-12-31T23:59:59-99:99",
    "2026-W53-7T00:00:00Z",
    "2026-366",
    "20261231T235959Z",
    "2026-12-31t23:59:59z",
    "٢٠٢٦-12-31T23:59:59Z",
    "0",
    "now",
]
DURATIONS = [
    "0",
    "0s",
    "-1s",
    "1e400",
    "nan",
    "inf",
    "1e9d",
    "9" * 400 + "w",
    "999999999d",
    "106751991d",
    "1.5.5s",
    "1 d",
]
NUMBERS = ["0", "-1", "1", "99999999999999999999", "9" * 4301, "1e400", "-1e400", "1e-400", "NaN", "-Infinity", "0x10"]
STRINGS = [
    "",
    " ",
    "\x00",
    "a\x00b",
    "\r\nX: y",
    "\u2028",
    "\ufffd",
    "\U0010ffff",
    "\u202e",
    "'\"\\",
    "%00",
    "%",
    "../../etc/passwd",
    "*",
    '"',
    "()<>[]:;@,",
    "a@b",
    "ü@ü",
    "=?utf-8?q?a?=",
    "{{Email}}",
    "a" * 300,
    "@" * 1000,
    "ü" * 1000,
]
IDS = [ID, ID.upper(), f"{{{ID}}}", f"urn:uuid:{ID}", "0" * 32, "f" * 32, "٣" * 32, ID[:-1], "-" * 36, "null"]
CURSORS = ["AAAA", "A" * 22, "_" * 22, "A" * 27, "_" * 27, "A" * 3000, "====", "ü"]

scalar = st.sampled_from([*INSTANTS, *DURATIONS, *NUMBERS, *STRINGS, *IDS, *CURSORS]) | st.text(max_size=20)

# As JSON is written, so that it holds what Python's own writer never would.
RAW = [
    *(
        "null",
        "true",
        "false",
        "[]",
        "{}",
        "[[]]",
        '[""]',
        "[null]",
        "[0]",
        '[{"email": 1}]',
        '{"": ""}',
        '{"a": null}',
    ),
    *("0", "-0", "0.0", "1e400", "-1e400", "1e-400", "1E999999", "NaN", "Infinity", "-Infinity", "9" * 400, "9" * 5000),
    *("1" + "0" * 4300, "1.0000000000000000000000000000001", "9007199254740993", "-9223372036854775809"),
    *('"\\ud800"', '"\\udfff\\ud800"', '"\\u0000"', '"\\ud83d\\ude00"', '"\\u2028"', '"\\r\\nBcc: a@b"', '"\\/"'),
    *('{"email": "a@b", "name": "\\u0000"}', '{"email": true}', '{"filename": 1, "content": 2}'),
]
raw_json = st.sampled_from(RAW) | scalar.map(json.dumps) | scalar.map(lambda text: json.dumps(text, ensure_ascii=False))

# --- POST /send ------------------------------------------------------------------------------------------------

BELOW = [
    "email",
    "name",
    "filename",
    "content",
    "content_type",
    "content_id",
    "disposition",
    "X-A",
    "References",
    "List-Id",
    "a",
]
FIELDS = [field.alias or name for name, field in SendRequest.model_fields.items()]
SOMEBODY = '"a@b.test"'
GOOD_CALENDAR = {"method": '"PUBLISH"', "content": '"BEGIN:VCALENDAR\\nEND:VCALENDAR"'}
GOOD_FILE = {"filename": '"a.txt"', "content": '"QUJD"'}


def _object(fields: dict[str, str]) -> str:
    return "{" + ", ".join(f"{json.dumps(name)}: {value}" for name, value in fields.items()) + "}"


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """Write a good message with another value in one or two places."""
    fields = {name: json.dumps(value) for name, value in MESSAGE.items()}
    for _ in range(draw(st.integers(1, 2))):
        value = draw(raw_json)
        name = draw(st.sampled_from([*FIELDS, "unknown"]))
        match name:
            case "attachments":
                value = f"[{_object({**GOOD_FILE, draw(st.sampled_from(BELOW)): value})}]"
            case "calendar":
                value = _object({**GOOD_CALENDAR, draw(st.sampled_from(["method", "content", "a"])): value})
            case "headers" | "metadata":
                value = _object({draw(st.sampled_from(BELOW) | scalar): value})
            case "tags":
                value = f"[{value}]"
            case "to" | "from" | "reply_to" if draw(st.booleans()):
                value = f"[{_object({'email': SOMEBODY, draw(st.sampled_from(BELOW[:2])): value})}]"
            case _:
                pass
        fields[name] = value
    return _object(fields).encode("utf-8", "surrogatepass")


HEADERS = ["prefer", "accept", "idempotency-key", "content-type", "content-encoding", "x-request-id", "expect", "te"]
header_value = scalar.map(
    lambda text: bytes(b for b in text.encode()[:8000] if b >= 0x20 and b != 0x7F)
) | st.sampled_from(
    [
        b"wait=1e400",
        b"wait=-1",
        b"wait=" + b"9" * 5000,
        b'wait="0"',
        b"wait=nan",
        b"application/json; charset=" + b"x" * 5000,
    ]
)


@bounded
@given(body=requests(), name=st.sampled_from(HEADERS) | st.none(), value=header_value)
@example(_object({"to": '"a@b.test"', "text": '"x"', "send_at": '"0001-01-01T00:00:00+01:00"'}).encode(), None, b"")
@example(_object({"to": '"a@b.test"', "text": '"x"', "send_at": '"9999-12-31T23:59:59-23:59"'}).encode(), None, b"")
async def test_any_scalar_in_a_message_gets_a_designed_answer(
    service: Application, body: bytes, name: str | None, value: bytes
) -> None:
    headers = {b"content-type": JSON.encode(), b"prefer": b"respond-async"}
    if name is not None:
        headers[name.encode()] = value
    for app in (service.app, service.without_hot_route):
        async with service.visitor(app=app) as client:
            _assert_designed(await client.post("/send", content=body, headers=list(headers.items())))


# --- every other route -----------------------------------------------------------------------------------------

PARAMETERS = ["state", "error_code", "profile", "sender", "recipient", "tag", "q", "since", "until", "limit", "cursor"]
DOCUMENT = json.loads((Path(__file__).parents[2] / "openapi.json").read_text("utf-8"))
ROUTES = [(method.upper(), path) for path, methods in DOCUMENT["paths"].items() for method in methods]
ROUTES += [("GET", "/changes"), ("GET", "/docs/static/{name}"), ("GET", "/nothing/{id}"), ("POST", "/backup")]
SANDBOX = ["/sandbox", "/sandbox/{id}", "/sandbox/{id}/html", "/sandbox/{id}/parts/{number}"]
BODIES = {
    "/erase": ["address"],
    "/backup": ["file"],
    "/messages/{id}/resolve": ["as"],
    "/profiles/{name}/verify": ["from", "to"],
}


def test_every_route_is_tried() -> None:
    assert len(ROUTES) > 20
    assert set(BODIES) <= {path for _, path in ROUTES}


@bounded
@given(
    route=st.sampled_from([route for route in ROUTES if route != ("POST", "/send")]),
    place=scalar,
    query=st.dictionaries(st.sampled_from(PARAMETERS), scalar, max_size=3),
    twice=st.booleans(),
    value=raw_json,
    named=st.sampled_from(["from", "to", "as", "address", "file", "unknown"]),
    is_known=st.booleans(),
)
@example(("GET", "/messages"), "", {"since": "0001-01-01T00:00:00+01:00"}, False, "1", "to", False)
@example(("GET", "/messages"), "", {"until": "9999-12-31T23:59:59-23:59"}, False, "1", "to", False)
@example(("GET", "/attempts"), "", {"since": "9999-12-31T23:59:59-23:59"}, False, "1", "to", False)
@example(("POST", "/messages/cancel"), "", {"until": "0001-01-01T00:00:00+01:00"}, False, "1", "to", False)
async def test_any_scalar_anywhere_else_gets_a_designed_answer(
    service: Application,
    route: tuple[str, str],
    place: str,
    query: dict[str, str],
    twice: bool,
    value: str,
    named: str,
    is_known: bool,
) -> None:
    method, path = route
    known = {"{id}": ID, "{name}": "relay", "{code}": "EAUTH"}
    for part, real in known.items():
        path = path.replace(part, quote(real if is_known else place, safe=""))
    fields = dict.fromkeys(BODIES.get(route[1], ()), SOMEBODY) | {named: value}
    if route[1] == "/backup" and named == "file":
        fields["file"] = json.dumps(place)  # relative, or no path at all: what it writes is no matter of this test
    body = _object(fields).encode("utf-8", "surrogatepass") if method == "POST" else b""
    params = [*query.items(), *(query.items() if twice else ())]
    headers = {"content-type": JSON, "prefer": "respond-async"}
    answer = await service.client.request(method, path, params=params, content=body, headers=headers)
    _assert_designed(answer)
    if path != "/changes" and not place.startswith("/"):
        async with httpx2.AsyncClient(transport=httpx2.ASGITransport(service.app), base_url="http://localhost") as own:
            _assert_designed(await own.request(method, path, params=params, content=body, headers=headers))


@bounded
@given(path=st.sampled_from(SANDBOX), id_=scalar | st.just(""), number=scalar)
@example(SANDBOX[3], "", "9" * 5000)
async def test_any_scalar_on_the_sandboxs_pages_gets_a_designed_answer(
    sandbox: tuple[Application, str], path: str, id_: str, number: str
) -> None:
    service, kept = sandbox
    path = path.replace("{id}", quote(id_, safe="") or kept).replace("{number}", quote(number, safe=""))
    _assert_designed(await service.client.get(path, params={"before": number}))


@pytest.fixture
async def sandbox(tmp_path: Path) -> AsyncIterator[tuple[Application, str]]:
    """The sandbox, and the id of a message in it."""
    async with running(tmp_path, sandbox=True) as service:
        sent = await service.send(attachments=[{"filename": "a.txt", "content": "QUJD"}])
        yield service, sent.json()["id"]


def _assert_designed(answer: httpx2.Response) -> None:
    assert answer.status_code < 500, (answer.request.method, answer.request.url.path[:80], answer.text)
    assert answer.status_code not in (400, 408), answer.text
