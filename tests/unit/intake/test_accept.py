"""What is taken becomes a message: profile, sender, recipients and bytes are settled once, before anything is stored."""

from __future__ import annotations

import asyncio
from base64 import b64encode
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime, timedelta
from functools import cache
from hashlib import sha256
from pathlib import Path
from threading import Thread, current_thread
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.intake.accept import MAX_RECIPIENTS, MOST_BYTES_INLINE, HandOff, Intake, Policy, fingerprint, is_large
from app.intake.callers import Caller
from app.intake.offload import Offload
from app.intake.room import Room
from app.mail.address import Address
from app.mail.errors import InvalidMessage, TooLarge
from app.mail.message import Attachment, Calendar, Claim, Draft, Lease, Message
from app.mail.profile import Dialect, Profile, ProfileFacts
from app.mail.routing import Route
from app.store.census import Census
from app.store.journal import Journal
from app.store.outbox import Outbox
from app.store.reader import Reader
from tests.unit.factories import ID, NOW, profile
from tests.unit.strategies import addresses

ANN, BOB, CARL = (Address(name, "example.org") for name in ("ann", "bob", "carl"))
BOT, CORP_BOT, ANY_BOT = Address("bot", "ours.example"), Address("bot", "corp.example"), Address("bot", "any.example")
CORP = profile(ProfileFacts(name="corp", dialect=Dialect.FILE, host="mail.corp.example", from_address=CORP_BOT))
CLOUD = profile(ProfileFacts(name="cloud", dialect=Dialect.FILE, host="smtp.cloud.example"))
DRAFT = Draft(to=(ANN,), sender=BOT, subject="Hi", text="Hello")


def _no_place(_: str) -> Lease | None:
    pytest.fail("nothing is stored here")


def _no_claim(_: Claim) -> None:
    pytest.fail("nothing is sent here")


def _no_call(_: str) -> None:
    pytest.fail("nobody is woken here")


def _intake(offload: Offload | None = None, **policy: Any) -> Intake:
    known: dict[str, Any] = {
        "profiles": {"corp": CORP, "cloud": CLOUD},
        "default_profile": "corp",
        "default_from": ANY_BOT,
        "max_message_bytes": 10_000,
        "expires_after": 3600.0,
    }
    room = Room(Path("/"), waiting=lambda: 0, max_queued=0, min_free_bytes=0)
    hand_off = HandOff(_no_place, _no_claim, _no_call, _no_call)
    return Intake(Policy(**known | policy), _outbox(), hand_off, room, offload)


@cache
def _outbox() -> Outbox:
    """Make an outbox that is never opened."""

    async def make() -> Outbox:
        nowhere = Path("/nonexistent/mail.db")
        return Outbox(Journal(nowhere), Reader(nowhere), Census({}))

    return asyncio.run(make())  # a journal belongs to a loop


def _prepared(draft: Draft, **policy: Any) -> Message:
    return _intake(**policy).prepare(draft, Caller(name="shop"), id=ID, now=NOW)


def _faults(draft: Draft, **policy: Any) -> dict[str, str]:
    with pytest.raises(InvalidMessage) as refused:
        _prepared(draft, **policy)
    return {fault.pointer: fault.detail for fault in refused.value.faults}


def test_a_message_has_everything_that_was_settled() -> None:
    message = _prepared(replace(DRAFT, tags=("a",), metadata={"order": "1"}, warnings=("careful",)))
    assert message.id == ID
    assert message.message_id == f"<{ID}@ours.example>"
    assert f"Message-ID: {message.message_id}\r\n".encode() in message.content
    assert (message.profile, message.caller, message.sandbox) == ("corp", "shop", False)
    assert (message.created_at, message.expires_at) == (NOW, NOW + timedelta(hours=1))
    assert (message.tags, message.metadata, message.warnings) == (("a",), {"order": "1"}, ("careful",))


def test_the_same_draft_gives_the_same_bytes() -> None:
    assert _prepared(DRAFT) == _prepared(DRAFT)


@pytest.mark.parametrize(
    ("draft", "policy", "sender"),
    [
        (DRAFT, {}, "bot@ours.example"),
        (replace(DRAFT, sender=None), {}, "bot@corp.example"),
        (replace(DRAFT, sender=None, profile="cloud"), {}, "bot@any.example"),
        (replace(DRAFT, sender=None), {"default_from": None}, "bot@corp.example"),
    ],
)
def test_the_sender_is_the_requests_then_the_profiles_then_the_default(
    draft: Draft, policy: dict[str, Any], sender: str
) -> None:
    message = _prepared(draft, **policy)
    assert message.envelope.sender == sender
    assert f"From: {sender}\r\n".encode() in message.content


def test_mail_from_is_the_profiles_where_it_has_one() -> None:
    bounces = replace(CORP, envelope_from="bounces@corp.example")
    message = _prepared(DRAFT, profiles={"corp": bounces})
    assert message.envelope.sender == "bounces@corp.example"
    assert b"From: bot@ours.example\r\n" in message.content


def test_mail_from_is_null_where_the_profile_says_so() -> None:
    message = _prepared(DRAFT, profiles={"corp": replace(CORP, envelope_from="")})
    assert message.envelope.sender == ""
    assert not message.envelope.smtputf8
    assert b"From: bot@ours.example\r\n" in message.content


def test_a_missing_sender_is_told_with_its_settings() -> None:
    faults = _faults(replace(DRAFT, sender=None, profile="cloud"), default_from=None)
    assert list(faults) == ["/from"]
    assert "SMTP_FROM" in faults["/from"]


@pytest.mark.parametrize(("name", "said"), [("crop", "do you mean corp?"), ("xyzzy", "there are: corp, cloud")])
def test_an_unknown_profile_is_told_with_the_known_ones(name: str, said: str) -> None:
    faults = _faults(replace(DRAFT, profile=name))
    assert list(faults) == ["/profile"]
    assert said in faults["/profile"]


ROUTES = [Route("cloud", from_domain="ours.example"), Route("corp", to_domain="example.org")]


@pytest.mark.parametrize(
    ("draft", "policy", "profile"),
    [
        (DRAFT, {}, "cloud"),
        (replace(DRAFT, profile="corp"), {}, "corp"),
        (replace(DRAFT, sender=CORP_BOT), {"default_profile": "cloud"}, "corp"),
        (replace(DRAFT, sender=CORP_BOT, bcc=(BOT,)), {"default_profile": "cloud"}, "cloud"),
        (replace(DRAFT, sender=None), {"default_from": BOT}, "cloud"),
        (replace(DRAFT, sender=None), {"default_from": None}, "corp"),
    ],
)
def test_the_profile_is_the_requests_then_the_first_routes_then_the_default(
    draft: Draft, policy: dict[str, Any], profile: str
) -> None:
    assert _prepared(draft, routes=ROUTES, **policy).profile == profile


def test_every_fault_of_a_draft_is_told_at_once() -> None:
    assert set(_faults(Draft(profile="xyzzy"))) == {"/profile", "/to", "/text"}


def test_a_message_without_anybody_or_anything_is_refused() -> None:
    assert set(_faults(Draft(sender=BOT))) == {"/to", "/text"}
    assert _prepared(Draft(bcc=(ANN,), sender=BOT, html="<p>")).envelope.recipients == ("ann@example.org",)


@pytest.mark.parametrize(
    ("draft", "recipients"),
    [
        (Draft(to=(ANN, BOB), cc=(CARL,)), ["ann", "bob", "carl"]),
        (Draft(to=(ANN,), bcc=(BOB,)), ["ann", "bob"]),
        (Draft(to=(ANN, ANN)), ["ann"]),
        (Draft(to=(ANN, BOB, ANN)), ["ann", "bob"]),
        (Draft(to=(ANN, BOB), cc=(ANN,), bcc=(BOB, CARL)), ["ann", "bob", "carl"]),
        (Draft(to=(ANN, Address("ANN", "example.org", "Ann"))), ["ann"]),
        (Draft(to=(Address("ANN", "example.org"), BOB, ANN)), ["ANN", "bob"]),
    ],
)
def test_each_mailbox_is_once_in_the_envelope_in_the_order_of_first_mention(
    draft: Draft, recipients: list[str]
) -> None:
    envelope = _prepared(replace(draft, sender=BOT, text="x")).envelope
    assert list(envelope.recipients) == [f"{name}@example.org" for name in recipients]


@given(st.lists(addresses, min_size=1, max_size=30), st.integers(0, 5))
def test_everybody_is_in_the_envelope_exactly_once(people: list[Address], times: int) -> None:
    draft = Draft(to=tuple(people), cc=tuple(people * times), sender=BOT, text="x")
    envelope = _prepared(draft, max_message_bytes=10**9).envelope
    assert len(envelope.recipients) == len({a.lower() for a in envelope.recipients})
    assert {a.lower() for a in envelope.recipients} == {a.key for a in people}


def test_a_thousand_recipients_are_taken_and_no_more() -> None:
    people = tuple(Address(f"r{at}", "example.org") for at in range(MAX_RECIPIENTS + 1))
    taken = _prepared(Draft(bcc=people[:-1], sender=BOT, text="x"))
    assert len(taken.envelope.recipients) == MAX_RECIPIENTS
    faults = _faults(Draft(to=people, sender=BOT, text="x"))
    assert list(faults) == ["/to"]
    assert "1000" in faults["/to"]
    assert len(_prepared(Draft(bcc=people[:-1] * 10, sender=BOT, text="x")).envelope.recipients) == MAX_RECIPIENTS


def test_ten_thousand_recipients_are_refused() -> None:
    people = tuple(Address(f"r{at}", "example.org") for at in range(10_000))
    assert "10000 recipients" in _faults(Draft(bcc=people, sender=BOT, text="x"))["/to"]


def test_bcc_is_in_the_envelope_and_never_in_the_bytes() -> None:
    message = _prepared(replace(DRAFT, bcc=(Address("hidden", "secret.example", "Hidden"),)))
    assert "hidden@secret.example" in message.envelope.recipients
    assert b"hidden" not in message.content.lower()
    assert b"bcc" not in message.content.lower()


def test_the_limit_is_on_the_composed_message_and_both_numbers_are_told() -> None:
    size = len(_prepared(DRAFT).content)
    assert len(_prepared(DRAFT, max_message_bytes=size).content) == size
    with pytest.raises(TooLarge, match=rf"{size} bytes.*at most {size - 1}"):
        _prepared(DRAFT, max_message_bytes=size - 1)


LARGE = replace(DRAFT, text="x\n" * MOST_BYTES_INLINE, attachments=(Attachment("a", b"QUJD" * 1000, "a/b"),))


def test_a_large_message_over_the_limit_is_refused_before_it_is_composed() -> None:
    at_least = 2 * MOST_BYTES_INLINE + 4000
    with pytest.raises(TooLarge, match=f"at least {at_least} bytes when composed; at most 9999 are taken"):
        _prepared(LARGE, max_message_bytes=9999)


def test_a_mail_that_goes_as_it_is_counts_as_large_as_that() -> None:
    mail = b"Subject: x\n\n" + (b"x" * 79 + b"\n") * 5000
    draft = replace(DRAFT, attachments=(Attachment("a.eml", b64encode(mail), "message/rfc822"),))
    assert len(_prepared(draft, max_message_bytes=420_000).content) < 420_000 < len(b64encode(mail))


def test_an_attachment_alone_is_a_message() -> None:
    message = _prepared(replace(DRAFT, text=None, attachments=(Attachment("a.pdf", b"QQ==", "application/pdf"),)))
    assert b'filename="a.pdf"' in message.content
    assert "calendar" in _faults(replace(DRAFT, text=None))["/text"]


def test_an_invitation_alone_is_a_message_and_counts_in_the_fingerprint() -> None:
    draft = replace(DRAFT, text=None, calendar=Calendar("REQUEST", "BEGIN:VCALENDAR\nEND:VCALENDAR"))
    assert b"text/calendar; method=REQUEST" in _prepared(draft).content
    large = replace(draft, calendar=Calendar("REQUEST", "x" * MOST_BYTES_INLINE + "y"))
    assert is_large(large)
    others = [
        replace(large, calendar=Calendar(*said)) for said in (("CANCEL", "x"), ("REQUEST", "x" * MOST_BYTES_INLINE))
    ]
    assert len({fingerprint(each) for each in (DRAFT, draft, large, *others)}) == 5


CHANGES: list[dict[str, Any]] = [
    {"text": "y"},
    {"html": "x"},
    {"subject": "y"},
    {"to": (BOB,)},
    {"bcc": (BOB,)},
    {"attachments": ()},
]


@pytest.mark.parametrize("draft", [DRAFT, LARGE], ids=["small", "large"])
def test_two_requests_are_the_same_only_where_everything_is(draft: Draft) -> None:
    assert fingerprint(draft) == fingerprint(replace(draft, warnings=("careful",)))
    others = {fingerprint(replace(draft, **change)) for change in CHANGES}
    assert len(others | {fingerprint(draft)}) == len(CHANGES) + (1 if draft.attachments else 0)


RECORDED = Draft(
    to=(Address("ann", "example.org", "Ann"),),
    cc=(BOT,),
    bcc=(BOT,),
    reply_to=(Address("ann", "example.org", "Ann"),),
    sender=BOT,
    subject="Grüße",
    text="Hello",
    html="<p>Hello",
    headers=(("X-Ticket", "4711"),),
    attachments=(Attachment("a.csv", b"QQ==", "text/csv"), Attachment("l.gif", b"QQ==", "image/gif", "logo", True)),
    profile="corp",
    tags=("a",),
    metadata={"order": "1"},
    send_at=datetime(2026, 12, 24, 18, tzinfo=UTC),
    expires_in=600.0,
)


@dataclass(frozen=True, slots=True)
class _LaterDraft(Draft):
    """A draft of a release that knows more fields."""

    priority: str | None = None
    notes: tuple[str, ...] = ()
    options: dict[str, str] = field(default_factory=dict)


def _later(draft: Draft, **more: Any) -> _LaterDraft:
    return _LaterDraft(**{each.name: getattr(draft, each.name) for each in fields(Draft)}, **more)


@pytest.mark.parametrize(
    ("draft", "recorded"),
    [
        (Draft(), "940414e453e508e1c81a80792e6ff0e14022762d9b138ac0348300c528db9413"),
        (Draft(to=RECORDED.to, text="Hello"), "476506f014ea38c1f998becb4c1e7613540277fff7a144eb949cea7b158b6e04"),
        (RECORDED, "e4101e9daf47de045f44dbf31263885055970730cc49096cac21aaede2ca45b3"),
        (
            replace(RECORDED, text="x" * 300_000),
            "3f7e3da0e7d873fb987fb9fd07c6718415fa12be93a133e420611107377ef1e3",
        ),
    ],
    ids=["empty", "small", "full", "large"],
)
def test_a_release_knows_the_requests_that_an_earlier_one_took(draft: Draft, recorded: str) -> None:
    assert fingerprint(draft).hex() == recorded
    assert fingerprint(_later(draft)).hex() == recorded
    changes: list[dict[str, Any]] = [{"priority": "x"}, {"notes": ("x",)}, {"options": {"": ""}}]
    others = {fingerprint(_later(draft, **more)) for more in changes}
    assert len(others | {fingerprint(draft)}) == 4


def test_a_large_request_differs_in_its_last_character_and_in_its_files() -> None:
    file = LARGE.attachments[0]
    assert LARGE.text is not None
    for other in (
        replace(LARGE, text=LARGE.text[:-1] + "y"),
        replace(LARGE, attachments=(replace(file, base64=file.base64[:-1] + b"A"),)),
        replace(LARGE, attachments=(replace(file, filename="b"),)),
    ):
        assert fingerprint(other) != fingerprint(LARGE)
    digest = sha256(LARGE.text.encode()).hexdigest()
    assert fingerprint(replace(LARGE, text=digest)) != fingerprint(LARGE)


@pytest.mark.parametrize(
    ("draft", "large"),
    [
        (DRAFT, False),
        (LARGE, True),
        (replace(DRAFT, bcc=(BOB,) * 101), True),
        (replace(DRAFT, reply_to=(BOB,) * 101), True),
        (replace(DRAFT, html="x" * (MOST_BYTES_INLINE + 1)), True),
        (replace(DRAFT, attachments=(Attachment("a", b"A" * (MOST_BYTES_INLINE + 1), "a/b"),)), True),
    ],
)
def test_a_large_message_is_composed_beside_the_event_loop(draft: Draft, large: bool) -> None:
    threads: set[Thread] = set()

    class Seen(dict[str, Profile]):
        """Profiles that note in which thread they are asked for."""

        def get(self, *asked: Any) -> Any:
            threads.add(current_thread())
            return super().get(*asked)

    offload = Offload()
    intake = _intake(offload, profiles=Seen(corp=CORP), max_message_bytes=10**9)
    message = asyncio.run(intake.preview(draft, Caller(name="shop"), id=ID, now=NOW))
    asyncio.run(offload.close())
    assert message == _prepared(draft, max_message_bytes=10**9)
    assert is_large(draft) is large
    assert (current_thread() in threads) is not large


@pytest.mark.parametrize(
    ("draft", "needed"),
    [
        (DRAFT, False),
        (replace(DRAFT, to=(Address("ann", "xn--bcher-kva.example", "Änn"),)), False),
        (replace(DRAFT, to=(Address("jürgen", "example.org"),)), True),
        (replace(DRAFT, bcc=(Address("jürgen", "example.org"),)), True),
        (replace(DRAFT, sender=Address("jürgen", "example.org")), True),
        (replace(DRAFT, reply_to=(Address("jürgen", "example.org"),)), True),
        (replace(DRAFT, subject="Grüße", text="Grüße"), False),
    ],
)
def test_smtputf8_is_needed_only_where_a_local_part_is_not_ascii(draft: Draft, needed: bool) -> None:
    assert _prepared(draft).envelope.smtputf8 is needed


@pytest.mark.parametrize(("expires_in", "seconds"), [(None, 3600), (600, 600), (1, 1)])
def test_a_message_expires_when_it_was_asked_to_or_by_default(expires_in: float | None, seconds: float) -> None:
    message = _prepared(replace(DRAFT, expires_in=expires_in))
    assert message.expires_at - message.created_at == timedelta(seconds=seconds)
