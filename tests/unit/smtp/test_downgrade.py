"""What a relay without SMTPUTF8 gets: ASCII fields that every reader understands, and a body as it was."""

from email import message_from_bytes
from email.policy import SMTP

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.mail.message import Envelope
from app.smtp.downgrade import downgraded, without_smtputf8

BODY = "\r\nThe body, in any bytes: ü\r\n".encode()


@pytest.mark.parametrize(
    ("field", "shown", "addresses"),
    [
        ("To: jörg@theirs.test", "jörg@theirs.test", []),
        ("To: jörg@theirs.test, bob@theirs.test", "jörg@theirs.test", ["bob@theirs.test"]),
        ("Cc: Jo <jörg@theirs.test>, Bob <bob@theirs.test>", "<jörg@theirs.test>", ["bob@theirs.test"]),
        ("To: bob@theirs.test,\r\n =?utf-8?B?SsO2cmc=?= <jörg@theirs.test>", "<jörg@theirs.test>", ["bob@theirs.test"]),
        (f"To: {'ü' * 32}@theirs.test", f"{'ü' * 32}@theirs.test", []),
        ("Reply-To: 用户@theirs.test", "用户@theirs.test", []),
    ],
)
def test_a_mailbox_that_is_not_ascii_becomes_an_empty_group_that_shows_it(
    field: str, shown: str, addresses: list[str]
) -> None:
    content = downgraded(f"Subject: x\r\n{field}\r\n".encode() + BODY)
    header, _, body = content.partition(b"\r\n\r\n")
    assert header.isascii()
    assert all(len(line) <= 78 for line in header.split(b"\r\n"))
    assert b"\r\n" + body == BODY
    read = message_from_bytes(content, policy=SMTP)[field.partition(":")[0]]
    assert [address.addr_spec for address in read.addresses] == addresses
    assert any(shown in (group.display_name or "").replace(" ", "") for group in read.groups)


@given(st.binary())
def test_what_is_ascii_in_its_header_stays_as_it_is(body: bytes) -> None:
    content = b"Subject: x\r\nTo: bob@theirs.test\r\n\r\n" + body
    assert downgraded(content) == content


@pytest.mark.parametrize(
    ("sender", "recipients", "asked"),
    [
        ("ann@ours.test", ("jörg@x.test", "bob@x.test"), ("bob@x.test",)),
        ("ann@ours.test", ("jörg@x.test",), ()),
        ("änn@ours.test", ("bob@x.test",), ()),
    ],
)
def test_only_ascii_mailboxes_are_asked_for(sender: str, recipients: tuple[str, ...], asked: tuple[str, ...]) -> None:
    envelope, _ = without_smtputf8(Envelope(sender, recipients, smtputf8=True), b"")
    assert (envelope.recipients, envelope.smtputf8) == (asked, False)
