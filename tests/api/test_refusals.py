"""Refused at the door: nothing is taken, and the answer says which value is wrong, where it stands and what to do."""

import gzip
import json
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.api.shapes import flat, pointers, problem
from tests.support.app import MESSAGE, Application, running

LIMIT = 2048  # bytes composed
BODY_LIMIT = LIMIT * 9 // 4 + 64 * 1024


# --- 422 -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "at", "says"),
    [
        ({"to": None}, "/to", "at least one address"),
        ({"to": ""}, "/to", "at least one address"),
        ({"to": []}, "/to", "at least one address"),
        ({"to": " , ;\n"}, "/to", "at least one address"),
        ({"to": [""]}, "/to", "at least one address"),
        ({"to": "ann"}, "/to", "no @"),
        ({"to": 4711}, "/to", "a number"),
        ({"to": {"name": "Ann"}}, "/to", "email"),
        ({"to": {"email": "ann@theirs.test", "mail": "x"}}, "/to", "'mail'"),
        ({"to": {"email": "ann@theirs.test", "name": {}}}, "/to", "a string"),
        ({"to": {"email": "ann@theirs.test", "name": 0}}, "/to", "a string"),
        ({"attachments": {"filename": "a", "content": "", "disposition": False}}, "/attachments/disposition", "inline"),
        ({"to": ["ann@theirs.test", "bob@"]}, "/to/1", "'bob@'"),
        ({"to": [["ann@theirs.test"]]}, "/to/0", "an array"),
        ({"to": ["ann@theirs.test", 0]}, "/to/1", "a number"),
        ({"cc": "Müller, Hans <h@theirs.test>"}, "/cc", "quote"),
        ({"cc": '"ann b"@theirs.test'}, "/cc", "quoted local parts"),
        ({"cc": "ann@[127.0.0.1]"}, "/cc", "address literal"),
        ({"cc": "ann(comment)@theirs.test"}, "/cc", "comments"),
        ({"cc": "ann@bob@theirs.test"}, "/cc", "more than one @"),
        ({"cc": "ann@theirs.test bob@theirs.test"}, "/cc", "comma"),
        ({"bcc": "ann..b@theirs.test"}, "/bcc", "dot"),
        ({"bcc": "a" * 255 + "@theirs.test"}, "/bcc", "254"),
        ({"bcc": "a" * 2000}, "/bcc", "1000"),
        ({"bcc": {"email": "ann@theirs.test", "name": "a\nb"}}, "/bcc", "line breaks"),
        ({"reply_to": "desk@ours.test\x00"}, "/reply_to", ""),
        ({"to": [f"n{n}@theirs.test" for n in range(1001)]}, "/to", "1001"),
        ({"from": "bot"}, "/from", "no @"),
        ({"from": "a@ours.test, b@ours.test"}, "/from", "one address"),
        ({"from": ["a@ours.test", "b@ours.test"]}, "/from", "one address"),
        ({"from": None}, "/from", "default_from"),
        ({"from": ""}, "/from", "SMTP_FROM"),
        ({"text": None}, "/text", "text, html or both"),
        ({"text": "", "html": ""}, "/text", "text, html or both"),
        ({"text": 4711}, "/text", "a number"),
        ({"html": ["<p>"]}, "/html", "an array"),
        ({"subject": 4711}, "/subject", "a number"),
        ({"subject": "a\r\nBcc: eve@theirs.test"}, "/subject", "line breaks"),
        ({"subject": "a\x00b"}, "/subject", "control characters"),
        ({"subject": "a\u2028b"}, "/subject", "line breaks"),
        ({"subject": "a" * 2001}, "/subject", "2000"),
        ({"headers": []}, "/headers", "object"),
        ({"headers": {"X-A": 1}}, "/headers/X-A", "a number"),
        ({"headers": {"X-A": "a\nb"}}, "/headers/X-A", "line breaks"),
        ({"headers": {"X A": "b"}}, "/headers/X A", "printable ASCII"),
        ({"headers": {"X-A: b\r\nX": "c"}}, "/headers/X-A: b\r\nX", "printable ASCII"),
        ({"headers": {"X/~A:": "b"}}, "/headers/X~1~0A:", "printable ASCII"),
        ({"headers": {"": "b"}}, "/headers/", "printable ASCII"),
        ({"headers": {"Subject": "b"}}, "/headers/Subject", "'subject'"),
        ({"headers": {"bcc": "b@theirs.test"}}, "/headers/bcc", "'bcc'"),
        ({"headers": {"Date": "today"}}, "/headers/Date", "Date is written by the service"),
        ({"headers": {"MESSAGE-ID": "<a@b>"}}, "/headers/MESSAGE-ID", "written by the service"),
        ({"headers": {"Sender": "ann@ours.test"}}, "/headers/Sender", "'from'"),
        ({"headers": {"Return-Path": "<a@b>"}}, "/headers/Return-Path", "envelope_from"),
        ({"headers": {"References": "<a@b>", "references": "<c@d>"}}, "/headers/references", "twice"),
        ({"headers": {"In-Reply-To": "<jörg@ours.test>"}}, "/headers/In-Reply-To", "ASCII"),
        ({"calendar": {"method": "REQUEST", "content": "Lunch?"}}, "/calendar/content", "BEGIN:VCALENDAR"),
        ({"headers": {"Received": "from a"}}, "/headers/Received", "written by the service"),
        ({"headers": {"DKIM-Signature": "v=1"}}, "/headers/DKIM-Signature", "written by the service"),
        ({"headers": {"Content-Type": "text/html"}}, "/headers/Content-Type", "written by the service"),
        ({"headers": {"mime-version": "2"}}, "/headers/mime-version", "written by the service"),
        ({"headers": {f"X-{n}": "a" for n in range(51)}}, "/headers", "50"),
        ({"tags": {"a": 1}}, "/tags", "array of strings"),
        ({"tags": [1]}, "/tags", "array of strings"),
        ({"tags": [str(n) for n in range(11)]}, "/tags", "10"),
        ({"tags": ["good", "a" * 101]}, "/tags/1", "100"),
        ({"metadata": ["a"]}, "/metadata", "flat object of strings"),
        ({"metadata": {"a": {"b": "c"}}}, "/metadata", "flat object of strings"),
        ({"metadata": {"a": 1}}, "/metadata", "flat object of strings"),
        ({"metadata": {"a": "b" * 4096}}, "/metadata", "4096"),
        ({"expires_in": 0}, "/expires_in", "600"),
        ({"expires_in": -5}, "/expires_in", "600"),
        ({"expires_in": True}, "/expires_in", "number of seconds"),
        ({"expires_in": "600"}, "/expires_in", "number of seconds"),
        ({"expires_in": 10**400}, "/expires_in", "number of seconds"),
        ({"profile": 5}, "/profile", "a number"),
        ({"profile": "relya"}, "/profile", "do you mean relay?"),
        ({"profile": "xyz"}, "/profile", "there are: relay"),
    ],
)
async def test_a_field_that_cannot_be_is_named_with_its_cure(
    fields: Mapping[str, Any], at: str, says: str, service: Application
) -> None:
    body = {name: value for name, value in {**MESSAGE, **fields}.items() if value is not None}
    said = problem(await post(service, body), status=422, at=at)
    assert says in said["detail"]
    assert said["type"] == "/errors/invalid-message"
    await nothing_was_taken(service)


async def test_every_fault_is_told_at_once(service: Application) -> None:
    body = {"to": ["ann", "bob@theirs.test", "carl"], "from": "bot", "subject": 1, "expires_in": "soon"}
    said = problem(await post(service, body), status=422)
    assert pointers(said) == ["/to/0", "/to/2", "/from", "/subject", "/expires_in"]
    assert said["detail"] == f"{said['errors'][0]['detail']} (4 more in errors)"


async def test_at_most_twenty_faults_are_told(service: Application) -> None:
    said = problem(await post(service, {**MESSAGE, "to": ["ann"] * 500, "cc": ["bob"] * 500}), status=422)
    assert len(said["errors"]) == 20


@pytest.mark.parametrize(
    ("name", "cure"),
    [
        ("subjekt", "do you mean 'subject'?"),
        ("reply-to", "do you mean 'reply_to'?"),
        ("replyTo", "do you mean 'reply_to'?"),
        ("From", "do you mean 'from'?"),
        ("from_", "do you mean 'from'?"),
        ("zzz", "known are: to, cc, bcc, reply_to, from,"),
    ],
)
async def test_an_unknown_field_is_refused_with_the_nearest_known_name(
    name: str, cure: str, service: Application
) -> None:
    said = problem(await post(service, {**MESSAGE, name: "x"}), status=422, at=f"/{name}")
    assert repr(name) in said["detail"]
    assert cure in said["detail"]
    await nothing_was_taken(service)


async def test_a_misspelt_field_is_named_beside_what_it_leaves_missing(service: Application) -> None:
    said = problem(await service.send(subjekt="x", text=5), status=422)
    assert {fault["pointer"] for fault in said["errors"]} == {"/subjekt", "/text"}
    erasing = problem(await service.client.post("/erase", json={"addressx": "a@x.test"}), status=422)
    assert [fault["pointer"] for fault in erasing["errors"]] == ["/address", "/addressx"]
    assert "do you mean 'address'?" in erasing["errors"][1]["detail"]


@pytest.mark.parametrize(
    "attachment",
    [
        "https://x.test/a.pdf",
        {"filename": "a.pdf", "content": "HTTPS://x.test/a"},
        {"filename": "a.pdf", "content": "www.x.test/a.pdf"},
        {"filename": "a.pdf", "content": "/etc/passwd"},
        {"filename": "a.pdf", "content": "/mnt/files/invoice"},
        {"filename": "a.pdf", "content_url": "https://x.test/a.pdf"},
        {"filename": "a.pdf", "link": "https://x.test/a.pdf"},
    ],
    ids=str,
)
async def test_an_attachment_that_is_elsewhere_is_told_that_nothing_is_fetched(
    attachment: object, service: Application
) -> None:
    said = problem(await post(service, {**MESSAGE, "attachments": [attachment]}), status=422)
    assert any("nothing is fetched from elsewhere" in fault["detail"] for fault in said["errors"])


@pytest.mark.parametrize("content", ["/9j/4AAQSkZJRgABAQ==", "/9j/4AAQSkZJ\r\nRgABAQEA", "/9j/4AAQSkZJRgABAQEA"])
async def test_a_jpeg_is_not_taken_for_a_path(content: str, service: Application) -> None:
    flat(await service.send(attachments=[{"filename": "a.jpg", "content": content}]), status=200)


async def test_a_misspelt_field_of_an_attachment_is_named_with_the_known_one(service: Application) -> None:
    attachment = {"filename": "a.pdf", "content": "AAAA", "contentType": "application/pdf"}
    said = problem(await post(service, {**MESSAGE, "attachments": [attachment]}), status=422)
    assert "do you mean 'content_type'?" in said["detail"]


async def test_every_refusal_lists_what_is_wrong(service: Application) -> None:
    for answer in (await service.client.get("/nowhere"), await service.client.delete("/send")):
        said = problem(answer, status=answer.status_code)
        assert said["errors"] == [{"detail": said["detail"], "pointer": ""}]


async def test_every_unknown_field_is_named(service: Application) -> None:
    said = problem(await post(service, {**MESSAGE, "subjekt": "x", "a/b~c": 1, "": None}), status=422)
    assert pointers(said) == ["/subjekt", "/a~1b~0c", "/"]


async def test_lenient_lists_unknown_fields_in_the_warnings(service: Application) -> None:
    answer = await service.send(subjekt="x", colour="red", prefer="handling=lenient")
    said = flat(answer, status=200)
    assert len(said["warnings"]) == 2
    assert "'subjekt'" in said["warnings"][0]
    assert "'colour'" in said["warnings"][1]
    assert answer.headers["preference-applied"] == "handling=lenient"
    assert (await service.look_up(said["id"]))["warnings"] == said["warnings"]


async def test_lenient_does_not_let_a_wrong_value_pass(service: Application) -> None:
    problem(await service.send(to="ann", colour="red", prefer="handling=lenient"), status=422, at="/to")


@pytest.mark.parametrize("lenient", [True, False], ids=["lenient", "strict"])
async def test_strict_is_asked_for_too(lenient: bool, service: Application) -> None:
    answer = await service.send(colour="red", prefer=f"handling={'lenient' if lenient else 'strict'}")
    assert answer.status_code == (200 if lenient else 422)


# --- 422: not JSON ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content_type", ["application/json", "text/plain", "text/plain; charset=utf-8"])
@pytest.mark.parametrize(
    ("body", "line", "column"),
    [
        (b'{"to": "ann@theirs.test",\n "text": "say "hi""}', 2, 15),
        (b'{"to": "ann@theirs.test",\n "text": "a\nb"}', 3, 0),
        (b"to=ann@theirs.test", 1, 2),
    ],
)
async def test_broken_json_says_where_and_the_usual_cause(
    body: bytes, line: int, column: int, content_type: str, service: Application
) -> None:
    said = problem(await post(service, body, {"Content-Type": content_type}), status=422, at="")
    assert f"line {line} column" in said["detail"]
    at = int(said["detail"].partition(f"line {line} column ")[2].split(";")[0])
    assert abs(at - column) <= 1  # parsers count the column from 0 or from 1
    assert "unescaped quote or line break" in said["detail"]
    await nothing_was_taken(service)


@pytest.mark.parametrize("content_type", ["application/json", "text/plain"])
@pytest.mark.parametrize("body", [b"", b"  \r\n"], ids=["nothing", "blanks"])
async def test_an_empty_body_is_called_empty(body: bytes, content_type: str, service: Application) -> None:
    said = problem(await post(service, body, {"Content-Type": content_type}), status=422, at="")
    assert "empty" in said["detail"]


@pytest.mark.parametrize(
    "body",
    [
        b"[]",
        b"null",
        b"4711",
        b'"ann@theirs.test"',
        b'[{"to": "ann@theirs.test", "text": "x"}]',
    ],
)
async def test_a_body_that_is_no_object_says_what_is_wanted(body: bytes, service: Application) -> None:
    said = problem(await post(service, body), status=422, at="")
    assert "JSON object" in said["detail"]


@pytest.mark.parametrize(
    "body",
    [
        b"\xff\xfe" + '{"to": "ann@theirs.test"}'.encode("utf-16-le"),
        b'{"to": "ann@theirs.test", "text": "\xe9"}',
        b'{"to": "ann@theirs.test", "text": "\\ud800"}',
        b'{"to": ' + b"[" * 10_000,
        b'{"to": ' + b"[" * 10_000 + b"]" * 10_000 + b"}",
        b'{"expires_in": 1' + b"0" * 10_000 + b"}",
        b'{"expires_in": 1e999999999}',
        b'{"a": ' * 10_000 + b"1" + b"}" * 10_000,
    ],
    ids=[
        "UTF-16",
        "Latin-1",
        "lone surrogate",
        "deep and open",
        "deep",
        "long number",
        "big exponent",
        "deep objects",
    ],
)
async def test_what_a_parser_chokes_on_is_refused_and_not_choked_on(body: bytes, service: Application) -> None:
    problem(await post(service, body), status=422)
    await nothing_was_taken(service)


# --- 415 -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content_type", "named"),
    [
        ("text/plain", "text/plain"),
        ("text/plain;charset=UTF-8", "text/plain"),
        ("TEXT/PLAIN", "text/plain"),
        ("application/x-www-form-urlencoded", "application/x-www-form-urlencoded"),
        ("multipart/form-data; boundary=x", "multipart/form-data"),
        ("application/problem+json", "application/problem+json"),
        ("application/jsonlines", "application/jsonlines"),
        ("", "none"),
    ],
)
async def test_another_media_type_is_415_and_names_the_cure(
    content_type: str, named: str, service: Application
) -> None:
    said = problem(await post(service, MESSAGE, {"Content-Type": content_type}), status=415)
    assert "Content-Type: application/json" in said["detail"]
    assert named in said["detail"]
    assert said["type"] == "/errors/unsupported-media-type"
    await nothing_was_taken(service)


@pytest.mark.parametrize("body", [b"[]", b'"hello"', b"4711", b"null", b'{"to": 1}', b"{}"])
async def test_text_that_is_valid_json_of_any_kind_is_415(body: bytes, service: Application) -> None:
    problem(await post(service, body, {"Content-Type": "text/plain"}), status=415)


@pytest.mark.parametrize(
    "content_type",
    [
        "application/json; charset=utf-8",
        "application/json;charset=UTF-8",
        'application/json; charset="utf-8"',
        "application/json; Charset=utf8",
        "application/json; charset=us-ascii",
        "APPLICATION/JSON",
        "application/json;",
        "application/json; charset=utf-8; odata.metadata=minimal",
        "application/json; odata.metadata=minimal; charset=utf-8",
    ],
)
async def test_json_in_utf_8_is_taken_however_it_is_written(content_type: str, service: Application) -> None:
    flat(await post(service, MESSAGE, {"Content-Type": content_type}), status=200)


@pytest.mark.parametrize("charset", ["iso-8859-1", "UTF-16", "windows-1252"])
async def test_another_charset_is_415_and_names_utf_8(charset: str, service: Application) -> None:
    headers = {"Content-Type": f"application/json; charset={charset}"}
    said = problem(await post(service, MESSAGE, headers), status=415)
    assert "UTF-8" in said["detail"]
    assert charset.lower() in said["detail"]


@pytest.mark.parametrize("encoding", ["gzip", "GZIP", "br", "deflate, gzip", "x-unknown"])
async def test_a_compressed_body_is_415_and_never_unpacked(encoding: str, service: Application) -> None:
    bomb = gzip.compress(b" " * 1_000_000)
    said = problem(await post(service, bomb, {"Content-Encoding": encoding}), status=415)
    assert encoding.lower() in said["detail"]
    await nothing_was_taken(service)


# --- 413 -------------------------------------------------------------------------------------------------------


async def test_a_message_too_large_is_413_with_both_numbers(tmp_path: Path) -> None:
    async with running(tmp_path, environ={"MAILCHUTE_MAX_MESSAGE_BYTES": str(LIMIT)}) as service:
        sent = flat(await service.send(text=lines(1000)), status=200)
        fits = LIMIT - (await service.look_up(sent["id"]))["size"] + 1000
        said = problem(await service.send(text=lines(fits + 1)), status=413)
        assert str(LIMIT) in said["detail"]
        assert str(LIMIT + 1) in said["detail"]
        flat(await service.send(text=lines(fits)), status=200)


async def test_a_profile_may_take_less_than_the_service(tmp_path: Path) -> None:
    async with running(tmp_path, environ={"MAILCHUTE_PROFILES__RELAY__MAX_MESSAGE_BYTES": str(LIMIT)}) as service:
        said = problem(await service.send(text=lines(2 * LIMIT)), status=413)
        assert said["detail"].endswith(f"at most {LIMIT} are taken through relay")
        flat(await service.send(text=lines(1000)), status=200)


async def test_text_that_is_all_escapes_fits_where_it_fits_when_composed(tmp_path: Path) -> None:
    limit = 100_000
    async with running(tmp_path, environ={"MAILCHUTE_MAX_MESSAGE_BYTES": str(limit)}) as service:
        body = json.dumps({**MESSAGE, "text": "ж" * 36_000})
        assert len(body) > 2 * limit
        flat(await post(service, body.encode()), status=200)


@pytest.mark.parametrize("chunked", [True, False], ids=["chunked", "announced"])
async def test_a_body_too_large_is_413_with_the_limit(chunked: bool, tmp_path: Path) -> None:
    async with running(tmp_path, environ={"MAILCHUTE_MAX_MESSAGE_BYTES": str(LIMIT)}) as service:
        body = json.dumps({**MESSAGE, "text": "x" * BODY_LIMIT}).encode()
        said = problem(await post(service, in_pieces(body) if chunked else body), status=413)
        assert str(BODY_LIMIT) in said["detail"]
        assert said["type"] == "/errors/too-large"
        await nothing_was_taken(service)


async def test_a_body_without_end_is_refused_while_it_streams(tmp_path: Path) -> None:
    pulled = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal pulled
        yield b'{"text": "'
        while True:
            pulled += 1024
            yield b"x" * 1024

    async with running(tmp_path, environ={"MAILCHUTE_MAX_MESSAGE_BYTES": str(LIMIT)}) as service:
        problem(await post(service, endless()), status=413)
    assert pulled <= BODY_LIMIT + 1024


async def test_a_content_length_over_the_limit_is_refused_before_the_body_is_read(tmp_path: Path) -> None:
    async def never() -> AsyncIterator[bytes]:
        pytest.fail("the body was read")
        yield b""

    async with running(tmp_path, environ={"MAILCHUTE_MAX_MESSAGE_BYTES": str(LIMIT)}) as service:
        answer = await post(service, never(), {"Content-Length": "999999999"})
        assert "999999999" in problem(answer, status=413)["detail"]


async def test_a_content_length_that_lies_lets_nothing_more_in(tmp_path: Path) -> None:
    async with running(tmp_path, environ={"MAILCHUTE_MAX_MESSAGE_BYTES": str(LIMIT)}) as service:
        body = json.dumps({**MESSAGE, "text": "x" * BODY_LIMIT}).encode()
        problem(await post(service, in_pieces(body), {"Content-Length": "10"}), status=413)
        await nothing_was_taken(service)


async def test_a_body_at_the_limit_is_read(tmp_path: Path) -> None:
    async with running(tmp_path, environ={"MAILCHUTE_MAX_MESSAGE_BYTES": str(LIMIT)}) as service:
        body = json.dumps(MESSAGE).encode()
        flat(await post(service, body + b" " * (BODY_LIMIT - len(body))), status=200)
        problem(await post(service, body + b" " * (BODY_LIMIT - len(body) + 1)), status=413)


async def post(
    service: Application,
    body: Mapping[str, Any] | bytes | AsyncIterator[bytes],
    headers: Mapping[str, str] | None = None,
) -> httpx2.Response:
    content = json.dumps(body).encode() if isinstance(body, Mapping) else body
    return await service.client.post(
        "/send", content=content, headers={"Content-Type": "application/json", **(headers or {})}
    )


async def in_pieces(body: bytes) -> AsyncIterator[bytes]:
    for at in range(0, len(body), 4096):
        yield body[at : at + 4096]


async def nothing_was_taken(service: Application) -> None:
    assert (await service.client.get("/messages")).json()["data"] == []
    assert service.relay.connections == 0


def lines(size: int) -> str:
    """Write so many bytes of text as it is composed: full lines of 62 with their CRLF, and what is left."""
    full, rest = divmod(size - 31, 62)
    return ("x" * 60 + "\n") * full + "x" * (rest + 29)
