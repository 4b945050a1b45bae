"""What callers really send, and what they are told: the true cause and the cure. Nothing is taken of what is refused."""

import json
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.api.shapes import JSON, flat, problem
from tests.support.app import MESSAGE, Application, running

KEY = "a-key-of-the-tests-0123456789"
BODY = json.dumps(MESSAGE)
UMLAUT = json.dumps({**MESSAGE, "subject": "Grüße"}, ensure_ascii=False)
RAW_BREAK = '{"to": "ann@theirs.test", "text": "a\nb"}'
BYTES: dict[str, tuple[bytes, str]] = {
    "Latin-1": (UMLAUT.encode("latin-1"), "not UTF-8 (byte 0xFC at position"),
    "Latin-1 behind a megabyte": (
        json.dumps({**MESSAGE, "text": "ä" * 600_000}, ensure_ascii=False).encode()[:-2] + b'\xe9"}',
        "not UTF-8 (byte 0xE9",
    ),
    "Windows-1252": ('{"text": "“a”"}'.encode("cp1252"), "Windows-1252"),
    "UTF-16 with a mark": (BODY.encode("utf-16"), "UTF-16; send it in UTF-8"),
    "UTF-16 little-endian": (BODY.encode("utf-16-le"), "UTF-16; send it in UTF-8"),
    "UTF-16 big-endian": (BODY.encode("utf-16-be"), "UTF-16; send it in UTF-8"),
    "UTF-32": (BODY.encode("utf-32"), "UTF-32; send it in UTF-8"),
    "twice": (json.dumps(BODY).encode(), "encoded twice; pass the object itself"),
    "twice, an array": (json.dumps(f"[{BODY}]").encode(), "encoded twice"),
    "twice, as axios does behind a raw line break": (json.dumps(RAW_BREAK).encode(), "axios does this"),
    "three times": (json.dumps(json.dumps(BODY)).encode(), "JSON object"),
    "an array": (f"[{BODY}]".encode(), "not an array; send each message"),
    "half a surrogate pair, escaped": (b'{"text": "\\ud83d"}', "cut in the middle of an emoji"),
    "the other half, escaped": (b'{"text": "\\ude00"}', "cut in the middle of an emoji"),
    "half a surrogate pair before text": (b'{"text": "\\ud83d and more"}', "cut in the middle of an emoji"),
    "half a surrogate pair in bytes": (b'{"text": "\xed\xa0\xbd"}', "cut in the middle of an emoji"),
    "gzip without a header": (b"\x1f\x8b\x08\x00abc", "compressed with gzip"),
    "XML": (b"<mail><to>ann@theirs.test</to></mail>", "XML"),
    "a multipart form": (b"--x\r\nContent-Disposition: form-data", "form data"),
    "single quotes": (b"{'to': 'ann@theirs.test'}", "json.dumps()"),
    "a trailing comma": (BODY[:-1].encode() + b",}", "remove the comma"),
    "a raw line break": (RAW_BREAK.encode(), "unescaped quote or line break"),
}


async def post(
    service: Application, body: bytes | dict[str, Any], *more: tuple[str, str], kind: str = JSON
) -> httpx2.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return await service.client.post("/send", content=content, headers=[("Content-Type", kind), *more])


@pytest.mark.parametrize(("body", "says"), BYTES.values(), ids=BYTES)
async def test_a_body_that_cannot_be_read_is_told_why(body: bytes, says: str, service: Application) -> None:
    said = problem(await post(service, body), status=422)
    assert says in said["detail"]
    assert "\x00" not in said["detail"]


@pytest.mark.parametrize("size", [0, 100_000], ids=["small", "large"])
async def test_a_byte_order_mark_of_utf_8_is_passed_over(size: int, service: Application) -> None:
    body = json.dumps({**MESSAGE, "text": "a\n" * (size // 2) or "a"}).encode()
    flat(await post(service, b"\xef\xbb\xbf" + body), status=200)
    problem(await post(service, b"\xef\xbb\xbf"), status=422, at="")
    problem(await post(service, b"\xef\xbb\xbf" + body, kind="text/plain"), status=415)


# --- headers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("coding", ["", " ", "identity", "IDENTITY", "identity, identity", ","])
async def test_no_coding_is_none(coding: str, service: Application) -> None:
    flat(await post(service, MESSAGE, ("Content-Encoding", coding)), status=200)


@pytest.mark.parametrize(
    ("coding", "says"),
    [
        ("utf-8", "is a charset"),
        ("UTF-8", "is a charset"),
        ("utf8", "is a charset"),
        ("iso-8859-1", "is a charset"),
        ("chunked", "transfer coding"),
        ("8bit", "encoding of MIME"),
        ("base64", "encoding of MIME"),
        ("application/json", "media type"),
        ("gzip", "compressed"),
        ("identity, br", "compressed"),
    ],
)
async def test_another_coding_is_named_for_what_it_is(coding: str, says: str, service: Application) -> None:
    said = problem(await post(service, MESSAGE, ("Content-Encoding", coding)), status=415)
    assert says in said["detail"]
    assert "leave the header Content-Encoding out" in said["detail"] or "Content-Type" in said["detail"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("Content-Type", "application/json"),
        ("Content-Type", "application/json; charset=utf-8"),
        ("Content-Encoding", "identity"),
        ("Prefer", "wait=5"),
        ("Idempotency-Key", "4711"),
        ("Idempotency-Key", '"4711"'),
        ("Accept", "application/json"),
    ],
)
async def test_a_header_that_is_sent_twice_alike_is_one(name: str, value: str, service: Application) -> None:
    headers = {"Content-Type": JSON, name: value}
    lines = [*headers.items(), (name, value), (name, value)]
    first = flat(await service.client.post("/send", content=BODY, headers=lines), status=200)
    if name == "Idempotency-Key":
        again = await post(service, MESSAGE, (name, "4711"))
        assert flat(again, status=200)["id"] == first["id"]


@pytest.mark.parametrize("line", [("Authorization", f"Bearer {KEY}"), ("X-API-Key", KEY)], ids=["Bearer", "X-API-Key"])
async def test_a_key_that_is_sent_twice_alike_is_one(line: tuple[str, str], tmp_path: Path) -> None:
    async with running(tmp_path, environ={"MAILCHUTE_API_KEY": KEY}) as guarded:
        assert (await guarded.client.get("/messages", headers=[line, line])).status_code == 200
        problem(await guarded.client.get("/messages", headers=[line, (line[0], "Bearer another")]), status=401)


async def test_two_idempotency_keys_that_differ_are_refused(service: Application) -> None:
    said = problem(await post(service, MESSAGE, ("Idempotency-Key", "a"), ("Idempotency-Key", "b")), status=422, at="")
    assert "sent 2 times" in said["detail"]
    one = await post(service, MESSAGE, ("Idempotency-Key", ""), ("Idempotency-Key", "a"))
    flat(one, status=200)
    said = problem(await post(service, MESSAGE, ("Content-Type", "text/plain")), status=415)
    assert "more than once" in said["detail"]


# --- addresses -------------------------------------------------------------------------------------------------

ADDRESSES: dict[str, tuple[Any, str, str]] = {
    "a JSON array": ('["ann@theirs.test", "bob@theirs.test"]', "/to", "JSON array inside a string"),
    "a JSON array in quotes": ("'[\"ann@theirs.test\"]'", "/to", "JSON array inside a string"),
    "a Python list": ("['ann@theirs.test', 'bob@theirs.test']", "/to", "JSON array inside a string"),
    "a JSON object": ('{"email": "ann@theirs.test", "name": "Ann"}', "/to", "JSON object inside a string"),
    "a JSON array of objects": ('[{"email": "ann@theirs.test"}]', "/to", "JSON array inside a string"),
    "a JSON array in an array": (['["ann@theirs.test"]'], "/to/0", "JSON array inside a string"),
    "a JSON object as email": ({"email": '{"email": "ann@theirs.test"}'}, "/to", "JSON object inside a string"),
    "undefined": ("undefined", "/to", "a variable without a value"),
    "null": ("null", "/to", "a variable without a value"),
    "None": ("None", "/to", "a variable without a value"),
    "NaN": ("NaN", "/to", "a variable without a value"),
    "undefined as email": ({"email": "undefined"}, "/to", "a variable without a value"),
    "undefined in brackets": ("Ann <undefined>", "/to", "a variable without a value"),
    "an object as text": ("[object Object]", "/to", "turned into a string"),
    "mustaches": ("{{Email}}", "/to", "placeholder that was not filled"),
    "mustaches of n8n": ("{{ $json.email }}", "/to", "placeholder that was not filled"),
    "mustaches with a comma": ('{{ $json["a,b"] }}', "/to", "placeholder that was not filled"),
    "mustaches of a mailbox": ({"email": "{{Email}}"}, "/to", "placeholder that was not filled"),
    "a template literal": ("${email}", "/to", "placeholder that was not filled"),
    "percent signs": ("%email%", "/to", "placeholder that was not filled"),
    "ERB": ("<%= email %>", "/to", "placeholder that was not filled"),
    "single quotes": ("'ann@theirs.test'", "/to", "quotes around it; remove them"),
    "double quotes": ('"ann@theirs.test"', "/to", "quotes around it; remove them"),
    "typographic quotes": ("“ann@theirs.test”", "/to", "quotes around it; remove them"),
    "mailto": ("mailto:ann@theirs.test", "/to", "'mailto:', which is not part of an address; remove it"),
    "mailto in brackets": ("Ann <mailto:ann@theirs.test>", "/to", "'mailto:'"),
    "a Markdown link": ("[ann@theirs.test](mailto:ann@theirs.test)", "/to", "Markdown"),
    "an open bracket": ("<ann@theirs.test", "/to", "angle brackets do not match"),
    "a closing bracket": ("ann@theirs.test>", "/to", "angle brackets do not match"),
    "doubled brackets": ("<<ann@theirs.test>>", "/to", "angle brackets are doubled"),
    "a name behind": ("<ann@theirs.test> Ann", "/to", "write the name first"),
    "escaped for HTML": ({"email": "&lt;ann@theirs.test&gt;"}, "/to", "HTML"),
    "URL-encoded": ("ann%40theirs.test", "/to", "URL-encoded"),
    "a zero-width space before the @": ("ann\u200b@theirs.test", "/to", "an invisible character, U+200B, after 'ann'"),
    "a zero-width space behind": ("ann@theirs.test\u200b", "/to", "U+200B, after 'ann@theirs.test'"),
    "a zero-width space in front": ("\u200bann@theirs.test", "/to", "U+200B, at the beginning"),
    "a zero-width non-joiner": ("ann@the\u200cirs.test", "/to", "U+200C, after 'ann@the'"),
    "a soft hyphen": ("ann@their\u00ads.test", "/to", "U+00AD"),
    "a no-break space": ("ann\u00a0@theirs.test", "/to", "U+00A0"),
    "a mark of direction": ("\u202aann@theirs.test\u202c", "/to", "U+202A"),
    "a byte order mark": ("\ufeffann@theirs.test", "/to", "U+FEFF"),
    "a NUL": ("an\x00n@theirs.test", "/to", "a control character, U+0000, after 'an'"),
    "a full-width at": ("ann＠theirs.test", "/to", "U+FF20"),
}


@pytest.mark.parametrize("field", ["to", "reply_to", "from"])
@pytest.mark.parametrize(("value", "at", "says"), ADDRESSES.values(), ids=ADDRESSES)
async def test_an_address_is_told_its_slip(value: Any, at: str, says: str, field: str, service: Application) -> None:
    at = at if isinstance(value, list) else f"/{field}"
    said = problem(await post(service, {**MESSAGE, field: value}), status=422, at=at.replace("/to/", f"/{field}/"))
    assert says in said["detail"]
    assert service.relay.connections == 0


@pytest.mark.parametrize("nothing", [[None], [""], [None, "", None]], ids=str)
@pytest.mark.parametrize("field", ["cc", "bcc", "reply_to", "attachments"])
async def test_nothing_in_an_array_is_absent(field: str, nothing: Any, service: Application) -> None:
    said = flat(await post(service, {**MESSAGE, field: nothing}), status=200)
    assert said["accepted"] == ["ann@theirs.test"]


async def test_nothing_beside_an_address_is_passed_over(service: Application) -> None:
    said = flat(await post(service, {**MESSAGE, "to": [None, "ann@theirs.test", ""]}), status=200)
    assert said["accepted"] == ["ann@theirs.test"]
    for nobody in ([None], [""], {"email": None}):
        problem(await post(service, {**MESSAGE, "to": nobody}), status=422, at="/to")


# --- attachments -----------------------------------------------------------------------------------------------

CONTENTS: dict[str, tuple[Any, str]] = {
    "database": ("database", "n8n's note"),
    "s3": ("s3", "n8n's note"),
    "filesystem": ("filesystem", "n8n's note"),
    "filesystem-v2": ("filesystem-v2", "n8n's note"),
    "filesystem-v2 with a path": ("filesystem-v2:workflows/1/executions/2/binary_data/3", "n8n's note"),
    "s3 with a path": ("s3:workflows/1/executions/2/binary_data/3", "n8n's note"),
    "prose": ("Hello dear customer!", "a space"),
    "prose of a length like base64": ("Your invoice", "a space"),
    "prose in lines": ("Hello\nWorld12", "first line"),
    "a word": ("Hello", "multiple of 4"),
    "undefined": ("undefined", "a variable without a value"),
    "null": ("null", "a variable without a value"),
    "mustaches": ("{{File}}", "placeholder that was not filled"),
    "an object as text": ("[object Object]", "turned into a string"),
    "no padding": ("SGVsbG8", "padding"),
    "cut off": ("SGVsbG8=SGVsbG8=x", "several pieces"),
    "two pieces": ("SGVsbG8=SGVsbG8=", "several pieces"),
    "a plus that became a space": ("SGVs bG8=", "URL-decoded"),
    "URL-safe": ("SGVs_G8=", "URL-safe"),
    "n8n's whole description": ({"data": "SGVsbG8=", "mimeType": "text/plain"}, "Extract from File"),
    "bytes of Node's Buffer": ({"type": "Buffer", "data": [72]}, "an object or an array"),
}


@pytest.mark.parametrize(("content", "says"), CONTENTS.values(), ids=CONTENTS)
async def test_what_is_no_file_is_refused_by_name(content: Any, says: str, service: Application) -> None:
    body = {**MESSAGE, "attachments": [{"filename": "a.txt", "content": content}]}
    said = problem(await post(service, body), status=422, at="/attachments/0/content")
    assert says in said["detail"]
    assert service.relay.connections == 0


@pytest.mark.parametrize("content", ["", "SGVsbG8=", " SGVsbG8=\n", "SGVs\r\nbG8=\r\n", "SGVs\nbG8="], ids=repr)
async def test_base64_may_stand_in_lines(content: str, service: Application) -> None:
    flat(await post(service, {**MESSAGE, "attachments": {"filename": "a", "content": content}}), status=200)


@pytest.mark.parametrize(
    ("name", "ours"),
    [("data", "content"), ("mimeType", "content_type"), ("fileName", "filename"), ("cid", "content_id")],
)
async def test_the_names_of_others_lead_to_ours(name: str, ours: str, service: Application) -> None:
    body = {**MESSAGE, "attachments": [{"filename": "a", "content": "SGVsbG8=", name: "x"}]}
    assert f"do you mean {ours!r}?" in problem(await post(service, body), status=422)["detail"]


# --- a body that is no message ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "pointers"),
    [
        ({"event": "push", "repository": {}, "commits": []}, ["/event", "/repository", "/commits", "/to", "/text"]),
        ({"status": "firing", "alerts": []}, ["/status", "/alerts", "/to", "/text"]),
        ({"recipient": "ann@theirs.test", "message": "x"}, ["/recipient", "/message"]),
        ({"to": "ann@theirs.test", "colour": "red"}, ["/colour", "/text"]),
        ({"to": "ann@theirs.test", "message": "x"}, ["/message"]),
    ],
    ids=["a webhook", "an alert", "other names", "no content", "another name of the text"],
)
async def test_a_body_is_asked_for_what_is_missing(
    body: dict[str, Any], pointers: list[str], service: Application
) -> None:
    said = problem(await post(service, body), status=422)
    assert [fault["pointer"] for fault in said["errors"]] == pointers
    listed = [fault for fault in said["errors"] if "expires_in" in fault["detail"]]
    assert len(listed) == (1 if "colour" in body else 0)
    assert "message" not in body or "do you mean 'text' or 'html'?" in said["errors"][-1]["detail"]
    if "/text" in pointers:
        assert "text or html?" in said["errors"][-1]["detail"]
        assert "is missing" in said["detail"]


async def test_a_detail_says_how_many_more_faults_there_are_and_not_which(service: Application) -> None:
    said = problem(await post(service, {**MESSAGE, "to": "ann", "subject": 1, "cc": "bob"}), status=422)
    assert said["detail"] == f"{said['errors'][0]['detail']} (2 more in errors)"
