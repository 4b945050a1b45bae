"""A body becomes a draft, or faults that each point at a value, say what is wrong with it and what to do."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from email import policy
from email.parser import BytesParser
from typing import Any

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from app.api.body import SendRequest, asked_of, is_heavy, json_fault
from app.api.body import example as documented
from app.api.fields import LONGEST_EXPIRY, MAX_FAULTS
from app.compose.mime import compose
from app.mail.address import Address
from app.mail.errors import Fault, InvalidMessage
from app.mail.message import Draft
from tests.unit.factories import NOW
from tests.unit.strategies import bodies, header_texts, tricky

GOOD = {"to": "ann@example.org", "text": "Hello"}
ANN, BOB = Address("ann", "example.org"), Address("bob", "example.org")
RECIPIENTS = ("to", "cc", "bcc", "reply_to")
FIELDS = [
    *(*RECIPIENTS, "from", "subject", "text", "html", "headers", "attachments", "profile", "tags", "metadata"),
    *("send_at", "expires_in", "idempotency_key", "dry_run", "calendar"),
]


def _raw(said: Any) -> bytes:
    return said if isinstance(said, bytes) else json.dumps(said).encode()


def _draft(said: Any, *, lenient: bool = False) -> Draft:
    return asked_of(_raw(said), lenient=lenient).draft


def _faults(said: Any, *, lenient: bool = False) -> dict[str, str]:
    with pytest.raises(InvalidMessage) as refused:
        _draft(said, lenient=lenient)
    assert any(fault.detail in refused.value.detail for fault in refused.value.faults)
    return {fault.pointer: fault.detail for fault in refused.value.faults}


def _verdict(raw: bytes, *, lenient: bool = False) -> Draft | list[Fault]:
    """Give the draft, or the faults; any other exception is a bug."""
    try:
        return asked_of(raw, lenient=lenient).draft
    except InvalidMessage as refused:
        return list(refused.faults)


# Every written form.


@pytest.mark.parametrize("field", RECIPIENTS)
@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("ann@example.org", [ANN]),
        (" ann@example.org ", [ANN]),
        ("Ann <ann@example.org>", [Address("ann", "example.org", "Ann")]),
        ("ann@example.org, bob@example.org", [ANN, BOB]),
        ("ann@example.org;bob@example.org;", [ANN, BOB]),
        ("ann@example.org\nbob@example.org\r\n", [ANN, BOB]),
        ('"Miller, Ann" <ann@example.org>, bob@example.org', [Address("ann", "example.org", "Miller, Ann"), BOB]),
        ({"email": "ann@example.org"}, [ANN]),
        ({"email": "ann@example.org", "name": "Miller, Ann"}, [Address("ann", "example.org", "Miller, Ann")]),
        ({"email": "ann@example.org", "name": None}, [ANN]),
        ({"email": "ann@example.org", "name": ""}, [ANN]),
        (["ann@example.org", {"email": "bob@example.org"}], [ANN, BOB]),
        (["ann@example.org, bob@example.org"], [ANN, BOB]),
        ([], []),
        ([""], []),
        ("ann@bücher.example", [Address("ann", "xn--bcher-kva.example")]),
    ],
)
def test_recipients_are_read_in_every_written_form(field: str, written: Any, read: list[Address]) -> None:
    assert getattr(_draft({field: written}), field) == tuple(read)


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("empty", ["", None])
def test_an_empty_string_and_null_equal_absent(field: str, empty: str | None) -> None:
    assert _draft(GOOD | {field: empty}) == _draft({key: value for key, value in GOOD.items() if key != field})


def test_every_field_of_the_request_is_in_the_list_above() -> None:
    assert {field.alias or name for name, field in SendRequest.model_fields.items()} == set(FIELDS)


def test_everything_that_was_said_is_in_the_draft() -> None:
    draft = _draft(
        {
            "to": "ann@example.org",
            "cc": [{"email": "bob@example.org", "name": "Bob"}],
            "bcc": "carl@example.org",
            "reply_to": "desk@example.org",
            "from": "Bot <bot@example.org>",
            "subject": "Grüße 😀",
            "text": "a\r\nb",
            "html": "<p>",
            "headers": {"X-Ticket": "4711", "X-Empty": ""},
            "profile": "corp",
            "tags": ["a", "b", "a"],
            "metadata": {"order": "4711"},
            "expires_in": 600,
        }
    )
    assert draft == Draft(
        to=(ANN,),
        cc=(Address("bob", "example.org", "Bob"),),
        bcc=(Address("carl", "example.org"),),
        reply_to=(Address("desk", "example.org"),),
        sender=Address("bot", "example.org", "Bot"),
        subject="Grüße 😀",
        text="a\r\nb",
        html="<p>",
        headers=(("X-Ticket", "4711"), ("X-Empty", "")),
        profile="corp",
        tags=("a", "b"),
        metadata={"order": "4711"},
        expires_in=600.0,
    )


def test_the_example_of_the_documentation_is_taken() -> None:
    draft = _draft(dict(documented()))
    assert draft.to
    assert draft.text
    assert not draft.warnings


def test_an_empty_object_is_an_empty_draft() -> None:
    assert _draft({}) == Draft()


# Faults.

LONG = "x" * 100_000
_FAULTS: list[tuple[Any, str, str]] = [
    ({"to": "nobody"}, "/to", "quote the name"),
    ({"to": 5}, "/to", "not a number"),
    ({"to": True}, "/to", "not true or false"),
    ({"to": {}}, "/to", '"email"'),
    ({"to": {"email": 5}}, "/to", '"email"'),
    ({"to": {"email": "ann@example.org", "name": 5}}, "/to", '"name"'),
    ({"to": {"email": "ann@example.org", "nick": "Ann"}}, "/to", "'nick' is not a field"),
    ({"to": {"email": ""}}, "/to", "name@example.org"),
    ({"to": {"email": "Ann <ann@example.org>"}}, "/to", '"name"'),
    ({"to": {"email": "ann@example.org, bob@example.org"}}, "/to", '"email"'),
    ({"to": {"email": "ann@example.org", "name": "A\nnn"}}, "/to", "line breaks"),
    ({"to": ["ann@example.org", "nobody"]}, "/to/1", "quote the name"),
    ({"to": ["ann@example.org", True]}, "/to/1", "not true or false"),
    ({"to": ["ann@example.org", ["bob@example.org"]]}, "/to/1", "not an array"),
    ({"to": "Müller, Hans <h@example.org>"}, "/to", "quote the name"),
    ({"to": "Dr. Müller, Hans <h@example.org>"}, "/to", "quote the name"),
    ({"cc": "nobody"}, "/cc", "no @"),
    ({"bcc": "a@b@example.org"}, "/bcc", "more than one @"),
    ({"reply_to": "<>"}, "/reply_to", "name@example.org"),
    ({"from": "nobody"}, "/from", "no @"),
    ({"from": "ann@example.org, bob@example.org"}, "/from", "one address"),
    ({"from": ["ann@example.org", "bob@example.org"]}, "/from", "one address"),
    ({"subject": 5}, "/subject", "not a number"),
    ({"subject": ["x"]}, "/subject", "not an array"),
    ({"subject": "a\r\nBcc: evil@example.org"}, "/subject", "line breaks"),
    ({"subject": "a\x00b"}, "/subject", "control characters"),
    ({"subject": "a\u2028b"}, "/subject", "line breaks"),
    ({"subject": "x" * 2001}, "/subject", "at most 2000"),
    ({"text": 5}, "/text", "not a number"),
    ({"text": {}}, "/text", "not an object"),
    ({"html": False}, "/html", "not true or false"),
    ({"profile": 5}, "/profile", "not a number"),
    ({"headers": "X-A: b"}, "/headers", "object"),
    ({"headers": [["X-A", "b"]]}, "/headers", "not an array"),
    ({"headers": {"X-A": 5}}, "/headers/X-A", "not a number"),
    ({"headers": {"X-A": None}}, "/headers/X-A", "not null"),
    ({"headers": {"X-A": "a\r\nBcc: evil@example.org"}}, "/headers/X-A", "line breaks"),
    ({"headers": {"X-A": "a\nb"}}, "/headers/X-A", "remove them"),
    ({"headers": {"X-A": "x" * 4001}}, "/headers/X-A", "at most 4000"),
    ({"headers": {"X A": "b"}}, "/headers/X A", "without space and colon"),
    ({"headers": {"X-A:": "b"}}, "/headers/X-A:", "without space and colon"),
    ({"headers": {"": "b"}}, "/headers/", "printable ASCII"),
    ({"headers": {"X-\u00dc": "b"}}, "/headers/X-\u00dc", "printable ASCII"),
    ({"headers": {"X\r\nBcc": "b"}}, "/headers/X\r\nBcc", "printable ASCII"),
    ({"headers": {"X" * 77: "b"}}, f"/headers/{'X' * 77}", "at most 76"),
    ({"headers": {"X/~A b": "b"}}, "/headers/X~1~0A b", "printable ASCII"),
    ({"headers": {f"X-{at}": "b" for at in range(51)}}, "/headers", "at most 50"),
    ({"tags": 5}, "/tags", "array of strings"),
    ({"tags": {"a": "b"}}, "/tags", "array of strings"),
    ({"tags": ["a", 5]}, "/tags", "array of strings"),
    ({"tags": [str(at) for at in range(11)]}, "/tags", "at most 10"),
    ({"tags": ["a", ""]}, "/tags/1", "1 to 100"),
    ({"tags": ["a", "x" * 101]}, "/tags/1", "1 to 100"),
    ({"tags": ["a\nb"]}, "/tags/0", "control character"),
    ({"metadata": "x"}, "/metadata", "flat object"),
    ({"metadata": {"a": {"b": "c"}}}, "/metadata", "flat object"),
    ({"metadata": {"a": 5}}, "/metadata", "flat object"),
    ({"metadata": {"a": "x" * 4096}}, "/metadata", "at most 4096"),
    ({"metadata": {"ü": "x" * 4095}}, "/metadata", "at most 4096"),
    ({"expires_in": "soon"}, "/expires_in", "such as 600"),
    ({"expires_in": 0}, "/expires_in", "from 1 to"),
    ({"expires_in": -1}, "/expires_in", "from 1 to"),
    ({"expires_in": True}, "/expires_in", "number"),
    ({"expires_in": LONGEST_EXPIRY + 1}, "/expires_in", str(LONGEST_EXPIRY)),
    (b'{"expires_in": 1e400}', "/expires_in", "number"),
    (b'{"expires_in": NaN}', "/expires_in", "number"),
    (b'{"expires_in": -Infinity}', "/expires_in", "number"),
    (b'{"expires_in": ' + b"9" * 401 + b"}", "/expires_in", "number"),
    *[
        ({"send_at": instant}, "/send_at", "outside of the years 1 to 9999 in UTC")
        for instant in (
            "0001-01-01T00:00:00+01:00",
            "0001-01-01T23:58:59+23:59",
            "9999-12-31T23:59:59-23:59",
            "9999-12-31T23:59:59.999999-00:01",
        )
    ],
    ({"send_at": "0000-01-01T00:00:00Z"}, "/send_at", "is an instant"),
    ({"send_at": "2026-02-30T00:00:00Z"}, "/send_at", "is an instant"),
    ({"send_at": "2026-12-24T18:00:00+24:00"}, "/send_at", "is an instant"),
    # Separators count between whole addresses only.
    ({"to": "ann@example.org\r\nRCPT TO:<bob@example.org>"}, "/to", "quote the name"),
    ({"to": "ann@example.org\nBcc: <bob@example.org>"}, "/to", "quote the name"),
    ({"to": "ann@example.org\r\nDATA\r\nbob@example.org"}, "/to", "no @"),
    ({"to": "ann@example.org\n.\nbob@example.org"}, "/to", "no @"),
    ({"to": "ann@example.org, and, bob@example.org"}, "/to", "no @"),
    ({"to": "ann@example.org; and bob@example.org"}, "/to", "space"),
    ({"to": "ann@example.org\nMAIL FROM:<bob@example.org> SIZE=1"}, "/to", "angle brackets"),
    ({"to": "Team: Ann <ann@example.org>, Bob <bob@example.org>;"}, "/to", "quote the name"),
    ({"to": "Team: ann@example.org, bob@example.org;"}, "/to", "space"),
    # Counted before they are parsed.
    ({"to": [f"{at}" for at in range(1001)]}, "/to", "1001 recipients are too many; at most 1000 a message"),
    ({"cc": ",".join(f"{at}" for at in range(1001))}, "/cc", "1001 recipients are too many"),
    ({"bcc": [f"{at}\n;{at}x" for at in range(501)]}, "/bcc", "1002 recipients are too many"),
    ({"to": [{"email": f"{at}"} for at in range(1001)]}, "/to", "1001 recipients are too many"),
    ({"to": "a" * 999_000 + ";" * 1001}, "/to", "1000001 characters of addresses are too long"),
    ({"reply_to": [f"{at}" for at in range(101)]}, "/reply_to", "101 addresses are too many; at most 100 are taken"),
    ({"from": [f"a{at}@example.org" for at in range(1000)]}, "/from", "one address is taken here, not 1000"),
    ({"from": [f"a{at}@example.org" for at in range(1001)]}, "/from", "1001 addresses are too many; one is taken"),
    ({"tags": [1] * 11}, "/tags", "11 tags are too many"),
    ({"metadata": {f"{at}": "" for at in range(5000)}}, "/metadata", "5000 entries; at most 4096 bytes"),
    ({"headers": {f"X-{at}": 1 for at in range(51)}}, "/headers", "51 header fields are too many"),
    ({"attachments": [{}] * 101}, "/attachments", "101 attachments are too many"),
    ({"attachments": [{"filename": "/" * 256, "content": "QQ=="}]}, "/attachments/0/filename", "at most 255"),
]


@pytest.mark.parametrize(("said", "pointer", "why"), _FAULTS)
def test_a_fault_points_at_the_value_and_says_what_is_wrong_with_it(said: Any, pointer: str, why: str) -> None:
    faults = _faults(said)
    assert list(faults) == [pointer]
    assert why in faults[pointer]


@pytest.mark.parametrize(
    ("name", "cure"),
    [
        ("From", "'from'"),
        ("TO", "'to'"),
        ("cc", "'cc'"),
        ("Bcc", "'bcc'"),
        ("Reply-To", "'reply_to'"),
        ("Subject", "'subject'"),
        *[
            (name, "remove it")
            for name in (
                "Sender",
                "Date",
                "Message-ID",
                "message-id",
                "MIME-Version",
                "Content-Type",
                "content-transfer-encoding",
                "Received",
                "Return-Path",
                "DKIM-Signature",
                "Authentication-Results",
                "ARC-Seal",
                "Resent-To",
                "Resent-Bcc",
                "Delivered-To",
                "Content-Disposition",
                "Content-ID",
            )
        ],
    ],
)
def test_a_structural_field_is_refused_by_name(name: str, cure: str) -> None:
    faults = _faults({"headers": {name: "x"}})
    assert list(faults) == [f"/headers/{name}"]
    assert name in faults[f"/headers/{name}"]
    assert cure in faults[f"/headers/{name}"]


@pytest.mark.parametrize(
    "name",
    [
        "References",
        "In-Reply-To",
        "List-Unsubscribe",
        "X-Mailer",
        "Auto-Submitted",
        "Precedence",
        "Content-Language",
        "X.Y_Z~!",
    ],
)
def test_any_other_field_is_taken(name: str) -> None:
    assert _draft({"headers": {name: "x"}}).headers == ((name, "x"),)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("Sender", "'from'"),
        ("Return-Path", "envelope_from"),
        ("Date", "written by the service"),
        ("Received", "a server behind it"),
        ("Content-Description", "describes one part"),
        ("DKIM-Signature", "signs"),
    ],
)
def test_a_field_is_refused_for_its_own_reason(name: str, why: str) -> None:
    assert why in _faults({"headers": {name: "x"}})[f"/headers/{name}"]


@pytest.mark.parametrize(
    ("names", "pointer"),
    [
        (["References", "references"], "/headers/references"),
        (["X-A", "X-B", "x-a"], "/headers/x-a"),
        (["LIST-ID", "List-Id", "list-id"], "/headers/List-Id"),
    ],
)
def test_a_field_that_is_there_twice_in_other_cases_is_refused(names: list[str], pointer: str) -> None:
    faults = _faults({"headers": dict.fromkeys(names, "x")})
    assert next(iter(faults)) == pointer
    assert f"as {names[0]} too" in faults[pointer]


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("In-Reply-To", "<jörg@example.org>", "ASCII"),
        ("References", "<a b@example.org>", "blank"),
        ("List-Unsubscribe", "<https://example.org/ü>", "percent-encoded"),
        ("List-Unsubscribe", "<https://example.org/" + "u" * 1000 + ">", "shorten it"),
        ("Disposition-Notification-To", "Jörg", "name@example.org"),
        ("Disposition-Notification-To", "=?utf-8?q?a=0Ab?= <j@example.org>", "control characters"),
        ("In-Reply-To", "<a@b>\r\nBcc: evil@example.org", "line breaks"),
    ],
)
def test_what_a_structured_field_cannot_carry_is_refused_by_name(name: str, value: str, why: str) -> None:
    faults = _faults({"headers": {name: value}})
    assert list(faults) == [f"/headers/{name}"]
    assert why in faults[f"/headers/{name}"]
    assert name in faults[f"/headers/{name}"]


@pytest.mark.parametrize("field", ["to", "from", "cc", "reply_to"])
@pytest.mark.parametrize("name", ["ü" * 200, "x" * 400, "=?utf-8?q?" + "=C3=BC" * 110 + "?="])
def test_a_display_name_that_relays_would_drop_is_refused_by_name(field: str, name: str) -> None:
    for written in (f"{name} <ann@example.org>", {"email": "ann@example.org", "name": name}):
        faults = _faults({field: written})
        assert list(faults) == [f"/{field}"]
        assert "display name" in faults[f"/{field}"]
        assert "320" in faults[f"/{field}"]


def test_every_fault_of_a_body_is_told_at_once() -> None:
    faults = _faults({"to": ["nobody", "a@b@c.org"], "subject": 5, "tags": 5, "headers": {"To": "x", "X-A": 1}})
    assert set(faults) == {"/to/0", "/to/1", "/subject", "/tags", "/headers/To", "/headers/X-A"}


def test_the_number_of_faults_is_bounded() -> None:
    assert len(_faults({"to": ["nobody"] * 100_000, "cc": ["nobody"] * 100_000})) <= MAX_FAULTS
    assert len(_faults({"headers": {f"X {at}": "b" for at in range(50)}})) <= MAX_FAULTS
    assert len(_faults({f"x{at}": "b" for at in range(1000)})) <= MAX_FAULTS


@pytest.mark.parametrize(
    "said",
    [
        {LONG: "x"},
        {"to": LONG},
        {"to": f"{LONG}@example.org"},
        {"to": {"email": "ann@example.org", LONG: "x"}},
        {"to": {"email": "ann@example.org", "name": LONG}},
        {"subject": LONG},
        {"headers": {LONG: "x"}},
        {"headers": {f"Content-{LONG}": "x"}},
        {"headers": {"X-A": LONG}},
        {"tags": [LONG]},
        {"metadata": {LONG: "x"}},
        {"expires_in": LONG},
    ],
    ids=lambda said: str(said)[:40],
)
def test_a_refusal_is_short_however_long_the_input(said: Any) -> None:
    assert sum(len(pointer) + len(detail) for pointer, detail in _faults(said).items()) < 1000


# Not JSON.


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (b"", "empty"),
        (b" \n", "empty"),
        (b"{", "EOF"),
        (b"hello", "line 1 column 1"),
        (b"{'to': 'x'}", "line 1"),
        (b'{"to": "x",}', "line 1"),
        (b'{"text": "He said "hi""}', "column 20"),
        (b'{"text": "a\nb"}', "line 2 column 0"),
        (b'{"text": "a\tb"}', "line 1"),
        (b'{"text": "\\x"}', "line 1"),
        (b'{"text": "\\ud800"}', "line 1"),
        (b'{"text": "\xff"}', "line 1"),
        (b'{"text": "\xed\xa0\x80"}', "line 1"),
        ('{"to": "x"}'.encode("utf-16"), "line 1"),
        (b'{"text": "x"} trailing', "column 15"),
        (b"[" * 100_000, "recursion"),
        (b'{"a":' * 100_000, "recursion"),
        (b'{"x": ' + b"9" * 5000 + b"}", "number out of range"),
    ],
)
def test_what_is_not_json_is_told_with_the_place_where_it_stops(raw: bytes, why: str) -> None:
    faults = _faults(raw)
    assert list(faults) == [""]
    assert why in faults[""]


def test_broken_json_names_the_usual_cause() -> None:
    assert "unescaped quote or line break" in _faults(b'{"text": "He said "hi""}')[""]


@pytest.mark.parametrize("raw", [b"null", b"[]", b"[{}]", b"5", b'"x"', b"true", b"NaN"])
def test_json_that_is_no_object_is_told_what_to_send(raw: bytes) -> None:
    assert "JSON object" in _faults(raw)[""]


@pytest.mark.parametrize("raw", [b"", b"{", b'{"text": "a\nb"}'])
def test_text_that_is_not_json_is_told_apart_from_a_message(raw: bytes) -> None:
    fault = json_fault(raw)
    assert fault is not None
    assert fault.faults[0].pointer == ""


@pytest.mark.parametrize("said", [{}, GOOD, {"to": 5}, {"x": 1}, [], "x"])
def test_text_that_is_json_has_no_json_fault(said: Any) -> None:
    assert json_fault(_raw(said)) is None


# Unknown fields.


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("To", "'to'"),
        ("too", "'to'"),
        ("recipients", "'to'"),
        ("sbject", "'subject'"),
        ("body", "'text' or 'html'"),
        ("replyTo", "'reply_to'"),
        ("reply-to", "'reply_to'"),
        ("from_", "'from'"),
        ("HTML", "'html'"),
        ("expiresIn", "'expires_in'"),
        ("model_config", None),
        ("__class__", None),
    ],
)
def test_an_unknown_field_is_named_with_the_nearest_known_one(name: str, near: str | None) -> None:
    faults = _faults(GOOD | {name: "x"})
    assert list(faults) == [f"/{name}"]
    assert repr(name) in faults[f"/{name}"]
    assert f"do you mean {near}?" in faults[f"/{name}"] if near else "known are: to, cc" in faults[f"/{name}"]


def test_a_lenient_body_lists_unknown_fields_among_the_warnings() -> None:
    draft = _draft(GOOD | {"sbject": "x", "botId": 5}, lenient=True)
    assert draft.to == (ANN,)
    assert len(draft.warnings) == 2
    assert "'subject'" in draft.warnings[0]
    assert "'botId'" in draft.warnings[1]
    assert draft.subject == ""


def test_a_lenient_body_names_some_unknown_fields_and_counts_the_rest() -> None:
    draft = _draft(GOOD | {f"x{at}": "x" for at in range(MAX_FAULTS + 7)}, lenient=True)
    assert len(draft.warnings) == MAX_FAULTS + 1
    assert draft.warnings[-1] == "7 more fields are not known here"


def test_blanks_around_a_file_name_go_with_a_warning() -> None:
    files = [{"filename": name, "content": "QQ=="} for name in (" a.pdf ", "b c.pdf", "d.pdf\u00a0")]
    draft = _draft(GOOD | {"attachments": files})
    assert [file.filename for file in draft.attachments] == ["a.pdf", "b c.pdf", "d.pdf"]
    assert [file.content_type for file in draft.attachments] == ["application/pdf"] * 3
    assert draft.warnings == tuple(f"the blanks around the file name '{name}.pdf' are left out" for name in "ad")


@pytest.mark.parametrize("kind", ["message/rfc822", "multipart/mixed; boundary=x", "message/partial"])
def test_an_attached_message_is_taken(kind: str) -> None:
    draft = _draft(GOOD | {"attachments": {"filename": "a.eml", "content": "QQ==", "content_type": kind}})
    assert draft.attachments[0].content_type == kind


def test_equal_addresses_over_the_bound_count_once() -> None:
    said = ["ann@example.org", {"email": "bob@example.org", "name": "Bob"}, {"email": "bob@example.org"}]
    draft = _draft({"to": said * 500})
    assert draft.to == (ANN, Address("bob", "example.org", "Bob"), BOB)
    assert len(_draft({"to": ["ann@example.org"] * 1000}).to) == 1000


@pytest.mark.parametrize(
    ("raw", "heavy"),
    [
        (b'{"to": "ann@example.org"}', False),
        (b'{"to": "%b"}' % b",".join([b"a@b.c"] * 100), False),
        (b'{"to": "%b"}' % b",".join([b"a@b.c"] * 101), True),
        (b'{"to": "%b"}' % b",".join([b"a\\u0040b.c"] * 101), True),
        (b'{"text": "%b"}' % (b"x" * 60_000), False),
        (b'{"text": "%b"}' % (b"x" * 70_000), True),
    ],
)
def test_what_may_take_long_is_known_before_it_is_read(raw: bytes, heavy: bool) -> None:
    assert is_heavy(raw) is heavy


BLANKS = b" " * 70_000


@pytest.mark.parametrize("said", [GOOD, {"to": 5}, {"subject": ["x"], "sbject": 1}, [], "x", {}, {"x": 1}])
def test_a_large_body_is_read_as_a_small_one(said: Any) -> None:
    raw = _raw(said)
    assert repr(_verdict(raw + BLANKS)) == repr(_verdict(raw))


@pytest.mark.parametrize(
    ("rest", "why"),
    [(b"{", "EOF"), (b'{"text": "He said "hi""}', "column 70020"), (b"", "empty"), (b'{"a": 1} x', "column 70010")],
)
def test_a_large_body_that_is_not_json_is_told_with_the_place_where_it_stops(rest: bytes, why: str) -> None:
    assert why in _faults(BLANKS + rest)[""]


def test_a_lenient_body_is_still_refused_for_what_is_wrong() -> None:
    assert list(_faults({"to": "nobody", "x": 1}, lenient=True)) == ["/to"]


def test_the_last_of_two_equal_keys_counts_whole() -> None:
    draft = _draft(b'{"to": "ann@example.org", "subject": "a", "to": "bob@example.org", "subject": "b"}')
    assert draft.to == (BOB,)
    assert draft.subject == "b"


# Any JSON at all.

_keys = st.one_of(st.sampled_from([*FIELDS, "email", "name", "X-A", "Bcc", "attachments"]), st.text(max_size=10))
_leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.sampled_from([10**400, -(10**400), 2**64, 1e308]),
    st.text(max_size=30),
    st.emails(),
    tricky,
)
_json = st.recursive(
    _leaves,
    lambda below: st.one_of(st.lists(below, max_size=4), st.dictionaries(_keys, below, max_size=5)),
    max_leaves=12,
)
_POINTER = re.compile(r"(?:/(?:[^~/]|~0|~1)*)*", re.DOTALL)


def _assert_well_told(faults: list[Fault]) -> None:
    assert 1 <= len(faults) <= MAX_FAULTS
    for fault in faults:
        assert _POINTER.fullmatch(fault.pointer)
        assert len(fault.detail) > 10
        assert fault.detail.isprintable()


@given(st.one_of(_json, st.dictionaries(_keys, _json, max_size=8)), st.booleans(), st.booleans())
@example({"to": [{"email": "ann@example.org", "name": "\x00"}]}, False, True)
@example({"subject": "\ud800"}, False, True)
@example({"to": "\udfff@example.org"}, False, True)
def test_any_json_is_a_draft_or_an_invalid_message(said: Any, lenient: bool, ascii_only: bool) -> None:
    raw = json.dumps(said, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    verdict = _verdict(raw, lenient=lenient)
    if isinstance(verdict, Draft):
        assert isinstance(said, dict)
    else:
        _assert_well_told(verdict)


@given(st.binary(max_size=60), st.sampled_from([b"", b'{"to":', b'{"subject":"', b'{"headers":{"X":"', b"["]))
def test_any_bytes_are_a_draft_or_an_invalid_message(rest: bytes, start: bytes) -> None:
    verdict = _verdict(start + rest)
    if not isinstance(verdict, Draft):
        _assert_well_told(verdict)


@given(st.integers(1, 3000), st.sampled_from(["[", '{"to":', '{"email":']), st.booleans())
def test_any_depth_is_a_draft_or_an_invalid_message(depth: int, opening: str, closes: bool) -> None:
    closing = ("]" if opening == "[" else "}") * depth
    raw = f'{{"to": {opening * depth}1{closing if closes else ""}}}'.encode()
    verdict = _verdict(raw)
    assert not isinstance(verdict, Draft)
    _assert_well_told(verdict)


@given(st.dictionaries(_keys, _json, max_size=6))
def test_a_strict_body_and_a_lenient_one_differ_only_in_unknown_fields(said: dict[str, Any]) -> None:
    strict, lenient = _verdict(_raw(said)), _verdict(_raw(said), lenient=True)
    known = {key: value for key, value in said.items() if key in FIELDS}
    if known == said:
        assert repr(strict) == repr(lenient)
    elif isinstance(lenient, Draft):
        assert not isinstance(strict, Draft)
        assert lenient.warnings
        alone = _draft(known)
        assert all(getattr(alone, f.name) == getattr(lenient, f.name) for f in fields(Draft) if f.name != "warnings")


# Through the door and into the bytes.

_hostile = st.one_of(header_texts, tricky, st.text(max_size=40), st.sampled_from(["a\r\nBcc: evil@x", "a\nb", "\x00"]))
_hostile_address = st.one_of(
    st.emails(),
    st.builds("{} <ann@example.org>".format, _hostile),
    st.builds('"{}" <ann@example.org>'.format, _hostile),
    st.builds("ann@example.org{}".format, _hostile),
    st.builds("{}@example.org".format, _hostile),
)
_hostile_recipients = st.one_of(
    _hostile_address,
    st.fixed_dictionaries({"email": _hostile_address, "name": _hostile}),
    st.lists(st.one_of(_hostile_address, st.fixed_dictionaries({"email": st.emails(), "name": _hostile})), max_size=3),
)


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "to": _hostile_recipients,
            "cc": _hostile_recipients,
            "reply_to": _hostile_recipients,
            "subject": _hostile,
            "text": bodies,
            "html": bodies,
            "headers": st.dictionaries(st.one_of(_hostile, st.from_regex(r"\AX-[a-z]{1,9}\Z")), _hostile, max_size=3),
        },
    )
)
def test_no_body_that_is_taken_can_add_a_field_or_an_address(said: dict[str, Any]) -> None:
    verdict = _verdict(_raw(said))
    assume(isinstance(verdict, Draft))
    assert isinstance(verdict, Draft)
    assume(not any(a.needs_smtputf8 for a in (*verdict.to, *verdict.cc, *verdict.reply_to)))
    raw = compose(verdict, sender=ANN, message_id="<1@example.org>", date=NOW, boundary="=_1")
    message = BytesParser(policy=policy.SMTP).parsebytes(raw)
    names = ["Message-ID", "Date", "From", *(["Reply-To"] if verdict.reply_to else []), "To"]
    names += [*(["Cc"] if verdict.cc else []), "Subject", *said.get("headers", {}), "MIME-Version", "Content-Type"]
    assert [name for name in message.keys() if name != "Content-Transfer-Encoding"] == names  # noqa: SIM118
    for field, asked in (("To", verdict.to), ("Cc", verdict.cc), ("Reply-To", verdict.reply_to)):
        header = message[field]
        assert [a.addr_spec for a in (header.addresses if header else ())] == [a.addr_spec for a in asked]
