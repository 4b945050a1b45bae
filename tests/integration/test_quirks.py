"""Real relays of three makes: what arrives is what was sent, once, whatever stands in it; and what each does its way.

The road is the worker's, from `compose` to the relay's verdict, over one warm connection, so that a relay that saw
another number of mails than we sent answers the next one out of step. A mailbox is read once the queue in front of
it is empty: a mail too many is there by then. What is a quirk stands in docs/quirks.md.

Postfix here ends a mail at a dot between bare line feeds, as every Postfix before 3.9 does unless it is told
otherwise (SMTP smuggling): it is the victim that shows whether we can be made a smuggler's tool.
"""

import asyncio
import email
import email.policy
import re
import smtplib
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.header import decode_header
from email.message import EmailMessage
from email.utils import getaddresses
from itertools import product
from pathlib import Path
from typing import Self, TypeAlias

import pytest
import uvloop
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from app.compose.mime import compose
from app.mail.address import Address
from app.mail.attempt import Attempt
from app.mail.message import Claim, Draft
from app.mail.profile import AuthMode, Profile, TlsMode
from app.smtp import transaction
from app.smtp.session import Session
from tests.support.app import running
from tests.support.exim import PASSWORD, USER, Exim
from tests.support.factories import Deliveries, in_words, make_claim, make_profile, on_both_loops
from tests.support.jail import MAX_BYTES
from tests.support.opensmtpd import OpenSMTPD
from tests.support.postfix import MAX_BYTES as POSTFIX_MAX_BYTES
from tests.support.postfix import Postfix
from tests.support.server import Listener, until
from tests.support.tls import certificates
from tests.unit.strategies import addresses, bodies, header_texts, names

Server: TypeAlias = Postfix | Exim | OpenSMTPD

ANN, NOBODY, LATER, STRANGER = "ann@mailbox.test", "nobody@mailbox.test", "later@mailbox.test", "ann@example.com"
SMUGGLED = "stowaway@mailbox.test"
BOT = Address("bot", "example.org", "Bot")
DATE = datetime(2026, 3, 1, 12, 30, 15, tzinfo=UTC)
HEAD = b"Message-ID: <1@example.org>\r\nDate: Sun, 01 Mar 2026 12:30:15 +0000\r\nFrom: bot@example.org\r\n"

# The same examples every time, and the first that fails as it is: to shrink it over real servers takes minutes.
BOUNDED = settings(
    max_examples=10, deadline=None, derandomize=True, database=None, phases=(Phase.explicit, Phase.generate)
)
both_loops = pytest.mark.parametrize(
    "new_loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"]
)


@pytest.fixture(params=["postfix", "exim", "opensmtpd"])
def server(request: pytest.FixtureRequest) -> Server:
    """Give each of the relays in turn, its mailbox emptied."""
    found: Server = request.getfixturevalue(request.param)
    found.mailbox.take()
    return found


def skip_unless_recorded(opensmtpd: OpenSMTPD) -> None:
    """Skip what a newer OpenSMTPD does another way; 6.8 is Debian 12's."""
    if not opensmtpd.version.startswith("6.8."):
        pytest.skip(f"this is recorded of OpenSMTPD 6.8, not of {opensmtpd.version}")


def skip_unless_victim(server: Server) -> None:
    """Skip where this machine's Postfix takes no bare line feed for the end of a line, whatever its settings say."""
    if not isinstance(server, Postfix):
        return
    version = subprocess.run(
        ["postconf", "-d", "-h", "mail_version"], capture_output=True, text=True, check=True
    ).stdout
    if tuple(map(int, version.split(".")[:2])) >= (3, 10):
        pytest.skip(f"Postfix {version.strip()} cannot be made a victim of SMTP smuggling")


# --- the road there, and the mailbox ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Mail:
    """What is sent, and to whom."""

    content: bytes
    recipients: tuple[str, ...] = (ANN,)
    sender: str = BOT.addr_spec

    @property
    def claim(self) -> Claim:
        return make_claim(*self.recipients, sender=self.sender, content=self.content)


LAST = Mail(HEAD.replace(b"<1@", b"<last@") + b"\r\nthe last one\r\n")


class Road:
    """One warm connection to a relay, on an event loop of its own; its end closes both."""

    def __init__(self, server: Server, new_loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
        self._server = server
        self._new_loop = new_loop
        self.connections = 0

    def __enter__(self) -> Self:
        with ExitStack() as parts:
            self._loop = parts.enter_context(asyncio.Runner(loop_factory=self._new_loop))
            opened = Deliveries()
            self._deliveries = self._loop.run(opened.__aenter__())
            parts.callback(lambda: self._loop.run(opened.__aexit__(None, None, None)))
            self._parts = parts.pop_all()
        return self

    def __exit__(self, *_error: object) -> None:
        self._parts.close()

    def carries(self, *mails: Mail) -> list[bytes]:
        """Send them one after the other; check that they arrive, each as it was sent, and nothing else.

        Gives them as they lie in the mailbox, without what the relay put in front.
        """
        self._server.mailbox.take()  # what a failed example left behind
        profile = relay_at(self._server.plain)
        mails = (*mails, LAST)  # its verdict comes when the relay has dealt with all before it
        for mail in mails:
            outcomes, attempt = self._loop.run(self._deliveries.send(profile, mail.claim))
            assert {in_words(outcome) for outcome in outcomes.values()} == {"sent"}, attempt.transcript
            self.connections += "connect" in attempt.phases
        arrived = [delivered(mail) for mail in self._server.mailbox.take()]
        assert sorted(arrived) == sorted((to, one_way(mail.content)) for mail in mails for to in mail.recipients)
        return [content for _, content in arrived]


def relay_at(listener: Listener) -> Profile:
    """Give a profile that keeps one connection, whatever has gone over it."""
    return replace(make_profile(port=listener.port, max_connections=1), max_messages_per_connection=0)


TRACE = re.compile(
    rb"\A(?:(?:Return-Path|X-Original-To|Delivered-To|Envelope-To|Received): .*\n(?:[ \t].*\n)*)+", re.IGNORECASE
)
RECIPIENT = re.compile(rb"^(?:Delivered-To|Envelope-To): (.*)\n", re.IGNORECASE | re.MULTILINE)


def delivered(mail: bytes) -> tuple[str, bytes]:
    """Tell for whom a mail was put into the mailbox, and cut off what the relay put in front."""
    trace = TRACE.match(mail)
    assert trace is not None, mail
    (recipient,) = RECIPIENT.findall(trace[0])
    return recipient.decode(), mail[trace.end() :]


def one_way(content: bytes) -> bytes:
    """Write content as it lies in a mailbox: every line ends with LF, the last one too."""
    text = re.sub(rb"\r\n|\r", b"\n", content)
    return text if text.endswith(b"\n") else text + b"\n"


async def taken(server: Server) -> list[tuple[str, bytes]]:
    """Read what arrived, without blocking the loop."""
    return [delivered(mail) for mail in await asyncio.to_thread(server.mailbox.take)]


# --- any mail --------------------------------------------------------------------------------------------------

PEOPLE = st.lists(
    st.builds(Address, st.sampled_from(["ann", "Bob", "carl+x", "d.o'neil"]), st.just("mailbox.test"), names),
    min_size=1,
    max_size=3,
    unique_by=lambda address: address.local,
).map(tuple)
HIDDEN = (Address("hidden", "mailbox.test"),)
SENDERS = addresses.filter(lambda address: not address.local.startswith("-"))  # Postfix takes it for an option
FIELDS = st.lists(st.tuples(st.from_regex(r"\AX-[A-Z][a-z]{1,20}\Z"), header_texts), max_size=2).map(tuple)


@dataclass(frozen=True, slots=True)
class Asked:
    """A draft and its sender."""

    draft: Draft
    sender: Address

    def composed(self, number: int) -> Mail:
        content = compose(
            self.draft, sender=self.sender, message_id=f"<{number}@example.org>", date=DATE, boundary="=_quirks"
        )
        recipients = tuple(address.addr_spec for address in (*self.draft.to, *self.draft.bcc))
        return Mail(content, recipients, self.sender.addr_spec)


def asked(text: str | None, html: str | None = None) -> Asked:
    """Ask for a mail with this body."""
    return Asked(Draft(to=(Address("ann", "mailbox.test", "Ann"),), subject="Hello", text=text, html=html), BOT)


ANYTHING = st.builds(
    Asked,
    st.builds(
        lambda to, bcc, subject, headers, texts: Draft(
            to=to, bcc=bcc, subject=subject, headers=headers, text=texts[0], html=texts[1]
        ),
        PEOPLE,
        st.sampled_from([(), HIDDEN]),
        header_texts,
        FIELDS,
        st.one_of(st.tuples(bodies, st.none()), st.tuples(st.none(), bodies), st.tuples(bodies, bodies)),
    ),
    SENDERS,
)


@both_loops
def test_any_mails_arrive_once_each_and_are_read_back_as_they_were(
    server: Server, new_loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    with Road(server, new_loop) as road:

        @BOUNDED
        @given(st.lists(ANYTHING, min_size=1, max_size=4))
        def every_batch_arrives(batch: list[Asked]) -> None:
            found = {number_of(mail): mail for mail in road.carries(*map(Asked.composed, batch, range(len(batch))))}
            for number, one in enumerate(batch):
                assert read_back(found[f"<{number}@example.org>"]) == wanted(one)

        every_batch_arrives()
    assert road.connections == 1


def number_of(mail: bytes) -> str:
    return str(email.message_from_bytes(mail)["Message-ID"])


def wanted(one: Asked) -> dict[str, object]:
    """Tell what a reader should find."""
    draft = one.draft
    texts = {"text/plain": draft.text, "text/html": draft.html}
    return {
        "from": [(one.sender.name, one.sender.addr_spec)],
        "to": [(address.name, address.addr_spec) for address in draft.to],
        # Readers drop the blanks around an unstructured field (RFC 5322 §3.2.2); only encoded words keep them.
        "subject": draft.subject.strip(" \t"),
        **{kind: one_way(text.encode()).decode() for kind, text in texts.items() if text is not None},
    }


def read_back(mail: bytes) -> dict[str, object]:
    """Read a mail as its reader would; the fields by the simplest of parsers, for 3.11's own mends folded blanks."""
    head = email.message_from_bytes(mail)
    whole = email.message_from_bytes(mail, policy=email.policy.default)
    return {
        "from": people_in(head["From"]),
        "to": people_in(head["To"]),
        "subject": decoded(head["Subject"]).strip(" \t"),
        **{part.get_content_type(): content_of(part) for part in whole.walk() if not part.is_multipart()},
    }


def people_in(field: str) -> list[tuple[str, str]]:
    return [(decoded(name), address) for name, address in getaddresses([field.replace("\n", "")])]


def decoded(field: str) -> str:
    """Decode an unfolded field; blanks between encoded words are dropped (RFC 2047 §6.2)."""
    parts = decode_header(field.replace("\n", ""))
    return "".join(part if isinstance(part, str) else part.decode(charset or "ascii") for part, charset in parts)


def content_of(part: EmailMessage) -> str:
    return str(part.get_content()).replace("\r\n", "\n")


BODIES: dict[str, str] = {
    "nothing": "",
    "blank": " ",
    "line ends": "\r\n\n\r\r\n\n\r",
    "a dot": ".",
    "dots on lines of their own": ".\n..\n...\n.\n",
    "lines that begin with dots": ".a\n..b\n. c\n.\td\n",
    "blanks at line ends": "a \nb\t\n \n\t\n.\t\n. \n",
    "a long line": "x" * 5000,
    "long lines that begin with dots": "\n".join(["." + "x" * 996, "." + "x" * 997, "." + "x" * 998, "." * 3000]),
    "no end": "a\n.",
    "NUL and its like": "a\0b\0\n.\0\n\0.\n\x01\x1a\x1b\x7f\n",
    "an encoded dot": "=2E\n=2E=0A\n.=\n.",
    "unicode line ends": "a\u2028.\u2029.\x85.\x0b.\x0c.\x1c.\x1d.\x1e.",
    "From lines": "From me\n>From you\n.From\n",
    "commands": "\nQUIT\nRSET\n.\nRSET\nQUIT\n",
    "all planes": "ä€𝄞 e\u0301 \u202eevil\u202c 👩‍👩‍👧 שלום\n.\n" * 40,
}


def test_these_bodies_arrive_once_each_and_as_they_were(server: Server) -> None:
    mails = [asked(text, html) for body in BODIES.values() for text, html in ((body, None), (None, body), (body, body))]
    with Road(server, uvloop.new_event_loop) as road:
        arrived = road.carries(*map(Asked.composed, mails, range(len(mails))))
        found = {number_of(mail): mail for mail in arrived}
        for number, one in enumerate(mails):
            assert read_back(found[f"<{number}@example.org>"]) == wanted(one)
    assert road.connections == 1


# --- dots between line ends of every kind ----------------------------------------------------------------------

LINE_ENDS = ("", "\n", "\r", "\r\n")
DOTS = [
    *(f"{before}.{after}" for before, after in product(LINE_ENDS, LINE_ENDS)),
    *("\n..\n", "\r\n..\r\n", "\r..\r", "\r\n.\r\r\n", "\r\r\n.\r\n", "\n\r.\n\r", "\r\n. \r\n", "\r\n .\r\n"),
]


def smuggling(end: str, line_end: str = "\r\n") -> str:
    """Write a text with a second mail in it, for the relay that takes `end` for the end of the first."""
    second = "MAIL FROM:<bot@example.org>", f"RCPT TO:<{SMUGGLED}>", "DATA", "Subject: smuggled", ""
    return f"x{end}" + "".join(f"{line}{line_end}" for line in second) + f"{end}QUIT{line_end}"


SMUGGLERS = [
    *map(smuggling, DOTS),
    *(smuggling(f"{end}.{end}", end) for end in ("\n", "\r")),
    *(f"x{end}" for end in DOTS),  # ends with it
]


def test_no_line_ends_around_a_dot_make_two_mails_of_a_text(server: Server) -> None:
    with Road(server, uvloop.new_event_loop) as road:
        road.carries(*(asked(text).composed(number) for number, text in enumerate(SMUGGLERS)))
    assert road.connections == 1


@both_loops
def test_nor_do_they_where_content_comes_to_the_wire_with_its_line_ends_as_they_were(
    server: Server, new_loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    """The second lock: `compose` mends line ends, and so does the transaction, whoever wrote the content."""
    with Road(server, new_loop) as road:
        road.carries(
            *(Mail(HEAD + b"\r\n" + text.encode()) for text in SMUGGLERS),
            Mail(one_way(HEAD) + b"\n" + smuggling("\n.\n", "\n").encode()),  # the first line too: what Exim looks at
        )
    assert road.connections == 1


@both_loops
def test_no_mix_of_line_ends_and_dots_makes_two_mails(
    server: Server, new_loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    commands = [b"MAIL FROM:<bot@example.org>", f"RCPT TO:<{SMUGGLED}>".encode(), b"DATA", b"RSET", b"x"]
    pieces = st.sampled_from([b"\r", b"\n", b".", b"\r\n", b"\r\n.\r\n", b"\n.\n", b" ", *commands])
    with Road(server, new_loop) as road:

        @BOUNDED
        @given(st.lists(st.lists(pieces, max_size=20).map(b"".join), min_size=1, max_size=4))
        def every_batch_arrives(batch: list[bytes]) -> None:
            road.carries(*(Mail(HEAD + b"\r\n" + body) for body in batch))

        every_batch_arrives()
    assert road.connections == 1


# --- the victim ------------------------------------------------------------------------------------------------


@contextmanager
def in_the_middle_of_a_mail(listener: Listener) -> Iterator[smtplib.SMTP]:
    """Open a session by a client that knows nothing of ours, and begin a mail to ANN."""
    with smtplib.SMTP("127.0.0.1", listener.port, "client.test", timeout=10) as client:
        client.ehlo()
        begin_mail(client, ANN)
        client.send(HEAD + b"\r\n")
        yield client


def begin_mail(client: smtplib.SMTP, recipient: str) -> None:
    assert client.mail(BOT.addr_spec)[0] == 250
    assert client.rcpt(recipient)[0] == 250
    assert client.docmd("DATA")[0] == 354


SWALLOWED: dict[type[Server], set[str]] = {  # taken for the end of a mail, though it is not
    Postfix: {"\n.\n", "\n.\r\n", "\r\n.\n", "\r\n.\r\r\n"},
    Exim: set(),
    OpenSMTPD: {"\n.\n", "\n.\r\n", "\r\n.\n", "\r\n.\0\r\n"},
}
ENDS = (
    *("\n.\n", "\n.\r\n", "\r\n.\n", "\r.\r", "\r.\n", "\n.\r", "\r.\r\n", "\r\n.\r"),
    *("\r\n.\r\r\n", "\r\n.\0\r\n", "\r\n\0.\r\n", "\r\n. \r\n"),
)


@pytest.mark.parametrize("end", ENDS, ids=repr)
def test_sent_as_it_stands_it_would_end_a_mail_where_the_table_says_so(server: Server, end: str) -> None:
    """Its commands come one by one: OpenSMTPD may crash over such a second mail in one piece."""
    if isinstance(server, OpenSMTPD):
        skip_unless_recorded(server)
    skip_unless_victim(server)
    swallowed = end in SWALLOWED[type(server)]
    with in_the_middle_of_a_mail(server.plain) as client:
        client.send(f"one{end}".encode())
        if swallowed:
            assert client.getreply()[0] == 250
            begin_mail(client, SMUGGLED)
        client.send(b"Subject: two\r\n\r\n.\r\n")
        assert client.getreply()[0] == 250
    assert sorted(to for to, _ in map(delivered, server.mailbox.take())) == [ANN, SMUGGLED][: 1 + swallowed]


def test_exim_takes_bare_line_feeds_for_line_ends_in_a_mail_whose_first_line_ends_in_one(exim: Exim) -> None:
    exim.mailbox.take()
    with smtplib.SMTP("127.0.0.1", exim.plain.port, "client.test", timeout=10) as client:
        client.ehlo()
        begin_mail(client, ANN)
        client.send(one_way(HEAD) + b"\none\n.\n")
        assert client.getreply()[0] == 250
    assert len(exim.mailbox.take()) == 1


SMUGGLING = Mail(HEAD + b"\r\n" + smuggling("\n.\n").encode())


@on_both_loops
async def test_without_our_mending_of_line_ends_one_mail_would_become_two(
    postfix: Postfix, monkeypatch: pytest.MonkeyPatch
) -> None:
    skip_unless_victim(postfix)
    monkeypatch.setattr(transaction, "stuffed", lambda content: (content, b".\r\n"))
    await taken(postfix)
    async with Deliveries() as deliveries:
        assert (await deliveries.send(relay_at(postfix.plain), SMUGGLING.claim)).in_words == "sent"
    assert sorted(to for to, _ in await taken(postfix)) == [ANN, SMUGGLED]


@both_loops
def test_and_the_tests_above_would_find_it(
    postfix: Postfix, new_loop: Callable[[], asyncio.AbstractEventLoop], monkeypatch: pytest.MonkeyPatch
) -> None:
    skip_unless_victim(postfix)
    monkeypatch.setattr(transaction, "stuffed", lambda content: (content, b".\r\n"))
    with Road(postfix, new_loop) as road, pytest.raises(AssertionError):
        road.carries(SMUGGLING)


# --- NUL, by the front door ------------------------------------------------------------------------------------


async def test_a_nul_is_refused_in_a_field_and_arrives_in_a_text(server: Server, tmp_path: Path) -> None:
    port = {"MAILCHUTE_PROFILES__RELAY__PORT": str(server.plain.port)}
    async with running(tmp_path, environ=port) as service:
        refused = await service.send(to=ANN, subject="a\0b")
        answer = await service.send(to=ANN, subject="NUL", text="a\0b\n\0\n.\0\n")
    assert (refused.status_code, answer.status_code, answer.json()["state"]) == (422, 200, "sent")
    [(_, mail)] = await taken(server)
    assert b"\0" not in mail
    assert read_back(mail)["text/plain"] == "a\0b\n\0\n.\0\n"


# --- the dialogue ----------------------------------------------------------------------------------------------


def wire(attempt: Attempt) -> str:
    """Tell the order of who spoke from MAIL on: "CCCSSSCCS" is a pipelined mail."""
    speakers = [(who, line) for _, who, line in attempt.transcript]
    begin = next(at for at, (_, line) in enumerate(speakers) if line.startswith("MAIL"))
    return "".join(who for who, _ in speakers[begin:])


@on_both_loops
async def test_a_relay_that_offers_pipelining_gets_the_envelope_at_once_and_another_step_by_step(
    server: Server,
) -> None:
    order = "CSCSCSCSCCS" if isinstance(server, OpenSMTPD) else "CCCCSSSSCCS"
    async with Deliveries() as deliveries:
        for _ in range(2):
            mail = Mail(LAST.content, (ANN, "bob@mailbox.test"))
            outcomes, attempt = await deliveries.send(relay_at(server.plain), mail.claim)
            assert [in_words(outcome) for outcome in outcomes.values()] == ["sent", "sent"]
            assert wire(attempt) == order
    assert sorted(await taken(server)) == sorted([(to, one_way(LAST.content)) for to in mail.recipients] * 2)


REFUSALS: dict[str, tuple[str, dict[type[Server], str]]] = {
    "unknown": (NOBODY, dict.fromkeys((Postfix, Exim, OpenSMTPD), "EENVELOPE/mailbox_unknown P")),
    "later": (LATER, dict.fromkeys((Postfix, Exim, OpenSMTPD), "EENVELOPE/greylisted T")),
    "another domain": (
        STRANGER,
        {
            Postfix: "EENVELOPE/relay_denied C",
            Exim: "EENVELOPE/relay_denied C",
            OpenSMTPD: "EENVELOPE/mailbox_unknown P",  # a quirk: the reply has nothing to tell it by
        },
    ),
}


@pytest.mark.parametrize("refusal", REFUSALS)
@on_both_loops
async def test_after_a_refused_recipient_the_next_mail_goes_over_the_same_connection(
    server: Server, refusal: str
) -> None:
    recipient, says = REFUSALS[refusal]
    profile = relay_at(server.plain)
    async with Deliveries() as deliveries:
        for to, words in ((ANN, "sent"), (recipient, says[type(server)]), (ANN, "sent")):
            tried = await deliveries.send(profile, Mail(LAST.content, (to,)).claim)
            assert tried.in_words == words
        assert "connect" not in tried.attempt.phases
        outcomes, _ = await deliveries.send(profile, Mail(LAST.content, (recipient, ANN)).claim)
    # A refusal to relay is the profile's fault only where it met everybody, so the class may be another.
    assert in_words(outcomes[recipient])[:-1] == says[type(server)][:-1]
    assert in_words(outcomes[ANN]) == "sent"
    assert await taken(server) == [(ANN, one_way(LAST.content))] * 3


class Hushed(Deliveries):
    """Deliveries to a relay whose EHLO said another limit than it has: "" = no number, None = no SIZE at all."""

    def __init__(self, limit: str | None) -> None:
        super().__init__()
        self._limit = limit

    async def open(self, profile: Profile, attempt: Attempt) -> Session:
        session = await super().open(profile, attempt)
        del session.extensions["SIZE"]
        if self._limit is not None:
            session.extensions["SIZE"] = self._limit
        return session


def limited(server: Server) -> tuple[Listener, int]:
    return (server.limits, POSTFIX_MAX_BYTES) if isinstance(server, Postfix) else (server.plain, MAX_BYTES)


def large(limit: int) -> Mail:
    return Mail(LAST.content + (b"x" * 70 + b"\r\n") * (limit // 60))


@on_both_loops
async def test_a_mail_over_the_relays_limit_is_not_begun(server: Server) -> None:
    listener, limit = limited(server)
    async with Deliveries() as deliveries:
        for mail, words in ((LAST, "sent"), (large(limit), "ETOOLARGE/message_too_large P"), (LAST, "sent")):
            tried = await deliveries.send(relay_at(listener), mail.claim)
            assert tried.in_words == words
            assert tried.attempt.transcript or mail is not LAST
        assert "connect" not in tried.attempt.phases
    assert await taken(server) == [(ANN, one_way(LAST.content))] * 2


@pytest.mark.parametrize("server", ["postfix", "exim", "opensmtpd"], indirect=True)
@pytest.mark.parametrize("said", ["", None], ids=["SIZE without a number", "no SIZE"])
@on_both_loops
async def test_a_limit_that_was_not_told_is_learned_from_the_refusal_and_the_connection_kept(
    server: Server, said: str | None
) -> None:
    listener, limit = limited(server)
    async with Hushed(said) as deliveries:
        assert (await deliveries.send(relay_at(listener), LAST.claim)).in_words == "sent"
        words = (await deliveries.send(relay_at(listener), large(limit).claim)).in_words
        tried = await deliveries.send(relay_at(listener), LAST.claim)
    assert (tried.in_words, "connect" in tried.attempt.phases) == ("sent", False)
    assert await taken(server) == [(ANN, one_way(LAST.content))] * 2
    assert words == "ETOOLARGE/message_too_large P"


# --- connections that are used up ------------------------------------------------------------------------------


@on_both_loops
async def test_a_relay_that_tires_of_resets_is_connected_to_anew_and_every_verdict_stands(server: Server) -> None:
    """Exim closes after ten of them; Postfix counts errors instead, three a mail here, and OpenSMTPD nothing."""
    mail = Mail(LAST.content, (NOBODY, STRANGER))
    async with Deliveries() as deliveries:
        connections = 0
        for _ in range(25):
            outcomes, attempt = await deliveries.send(relay_at(server.plain), mail.claim)
            assert in_words(outcomes[NOBODY]) == "EENVELOPE/mailbox_unknown P"
            connections += "connect" in attempt.phases
        assert (await deliveries.send(relay_at(server.plain), LAST.claim)).in_words == "sent"
    assert connections == {Postfix: 4, Exim: 3, OpenSMTPD: 1}[type(server)]
    assert await taken(server) == [(ANN, one_way(LAST.content))]


@on_both_loops
async def test_a_refusal_stands_though_postfix_hangs_up_behind_it(postfix: Postfix) -> None:
    """With the 20th error of a session, which is here the answer to DATA, Postfix says 421 unasked."""
    async with Deliveries() as deliveries:
        words = [
            (await deliveries.send(relay_at(postfix.plain), Mail(LAST.content, (NOBODY,)).claim)).in_words
            for _ in range(12)
        ]
    assert words == ["EENVELOPE/mailbox_unknown P"] * 12


@on_both_loops
async def test_a_relay_that_takes_three_mails_a_connection_gets_the_fourth_on_another(exim_here: None) -> None:
    with Exim("smtp_accept_max_per_connection = 3") as exim:
        assert await five_mails(exim, relay_at(exim.plain)) == ["sent"] * 5


@on_both_loops
async def test_nor_does_one_that_leaves_the_connection_open_keep_the_mails_behind_it(opensmtpd_here: None) -> None:
    with OpenSMTPD("smtp limit max-mails 3") as opensmtpd:
        assert await five_mails(opensmtpd, relay_at(opensmtpd.plain)) == ["sent"] * 5


@on_both_loops
async def test_a_relay_that_takes_three_mails_a_connection_gets_no_more_where_that_is_said(exim_here: None) -> None:
    with Exim("smtp_accept_max_per_connection = 3") as exim:
        assert await five_mails(exim, replace(relay_at(exim.plain), max_messages_per_connection=3)) == ["sent"] * 5
        assert len(await taken(exim)) == 5


async def five_mails(server: Server, profile: Profile) -> list[str]:
    async with Deliveries() as deliveries:
        return [(await deliveries.send(profile, LAST.claim)).in_words for _ in range(5)]


@pytest.mark.parametrize(("most", "late"), [(0, 2), (10, 0)], ids=["any number", "ten"])
@on_both_loops
async def test_exim_lets_the_eleventh_mail_of_a_connection_lie_and_those_behind_it(
    exim_here: None, most: int, late: int
) -> None:
    """It delivers them at its next queue run, on Debian within half an hour; no reply tells."""
    with Exim() as exim:
        profile = replace(relay_at(exim.plain), max_messages_per_connection=most)
        async with Deliveries() as deliveries:
            assert {(await deliveries.send(profile, LAST.claim)).in_words for _ in range(12)} == {"sent"}
        assert await asyncio.to_thread(until, lambda: len(exim.mailbox.mails()) == 12 - late, timeout=5)
        assert await asyncio.to_thread(until, lambda: exim.log().count("no immediate delivery") == late, timeout=5)


# --- TLS and logins --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("server", ["postfix", "exim"], indirect=True)
@on_both_loops
async def test_starttls_is_verified_and_carries_mails_of_many_records(server: Server) -> None:
    mail = large(POSTFIX_MAX_BYTES * 10)
    profile = make_profile(port=server.starttls.port, tls=TlsMode.STARTTLS, ca_file=certificates().self_signed_file)
    async with Deliveries() as deliveries:
        for _ in range(2):
            tried = await deliveries.send(profile, mail.claim)
            assert (tried.in_words, tried.attempt.tls, tried.attempt.tls_verified) == ("sent", True, True)
        assert "connect" not in tried.attempt.phases
    assert await taken(server) == [(ANN, one_way(mail.content))] * 2


@on_both_loops
async def test_a_starttls_that_is_offered_and_fails_is_done_without_or_waited_for_as_the_profile_says(
    opensmtpd: OpenSMTPD,
) -> None:
    skip_unless_recorded(opensmtpd)
    await taken(opensmtpd)
    port = opensmtpd.starttls.port
    async with Deliveries() as deliveries:
        tried = await deliveries.send(make_profile(port=port, tls=TlsMode.OPPORTUNISTIC), LAST.claim)
        assert (tried.in_words, tried.attempt.tls) == ("sent", False)
        assert "TLSV1_ALERT_INTERNAL_ERROR" in (tried.attempt.tls_error or "")
    strict = make_profile(port=port, tls=TlsMode.STARTTLS, ca_file=certificates().self_signed_file)
    async with Deliveries() as deliveries:
        assert (await deliveries.send(strict, LAST.claim)).in_words == "ETLS/tls_handshake_failed C"
    assert await taken(opensmtpd) == [(ANN, one_way(LAST.content))]


MODES: dict[AuthMode, str] = {
    AuthMode.AUTO: "CRAM-MD5",
    AuthMode.REQUIRED: "CRAM-MD5",
    AuthMode.CRAM_MD5: "CRAM-MD5",
    AuthMode.PLAIN: "PLAIN",
    AuthMode.LOGIN: "LOGIN",
}


LINES = {  # of the transcript
    "PLAIN": ["AUTH PLAIN ***"],
    "LOGIN": ["AUTH LOGIN", "***", "***"],
    "CRAM-MD5": ["AUTH CRAM-MD5", "***"],
}


def login_at(exim: Exim, mode: AuthMode, password: str) -> Profile:
    return make_profile(
        port=exim.login.port,
        tls=TlsMode.STARTTLS,
        ca_file=certificates().self_signed_file,
        auth=mode,
        username=USER,
        password=password,
    )


@pytest.mark.parametrize("mode", MODES)
@on_both_loops
async def test_exim_takes_the_right_password_and_one_wrong_one_is_one_failed_login(exim: Exim, mode: AuthMode) -> None:
    await taken(exim)
    before = exim.failed_logins()
    for password, words in ((PASSWORD, "sent"), ("wrong", "EAUTH/auth_rejected C")):
        async with Deliveries() as deliveries:
            tried = await deliveries.send(login_at(exim, mode, password), LAST.claim)
        assert tried.in_words == words
        assert tried.attempt.auth == MODES[mode]
        said = [line for _, who, line in tried.attempt.transcript if who == "C"]
        lines = LINES[MODES[mode]]
        at = said.index(lines[0])
        assert said[at : at + len(lines)] == lines
    assert exim.failed_logins(at_least=before + 1) == before + 1
    assert await taken(exim) == [(ANN, one_way(LAST.content))]


@on_both_loops
async def test_exim_without_a_login_where_one_is_needed_asks_for_one(exim: Exim) -> None:
    profile = make_profile(port=exim.login.port, tls=TlsMode.STARTTLS, ca_file=certificates().self_signed_file)
    async with Deliveries() as deliveries:
        assert (await deliveries.send(profile, LAST.claim)).in_words == "EAUTH/auth_required C"


# --- addresses -------------------------------------------------------------------------------------------------

REFUSED_BY_POSTFIX = {
    "ann%example.com": "EENVELOPE/relay_denied C",  # allow_percent_hack: it would be sent on to example.com
    "ann%b": "EENVELOPE/relay_denied C",
    "example.com!ann": "EENVELOPE/relay_denied C",  # swap_bangpath
    "-ann": "EENVELOPE/recipient_refused P",  # allow_min_user: it might be an option of some delivery program
}
LOCALS = ["a+b", "o'neil", "a/b", "|a", "${a}", "`a`", "#a", "~a", "a=b", "{a}", "A.b", *REFUSED_BY_POSTFIX]


@pytest.mark.parametrize("local", LOCALS)
async def test_a_local_part_of_any_characters_is_one_mailbox_but_for_what_postfix_reads_into_it(
    server: Server, local: str
) -> None:
    recipient = f"{local}@mailbox.test"
    says = REFUSED_BY_POSTFIX.get(local, "sent") if isinstance(server, Postfix) else "sent"
    async with Deliveries() as deliveries:
        assert (await deliveries.send(relay_at(server.plain), Mail(LAST.content, (recipient,)).claim)).in_words == says
    assert [to for to, _ in await taken(server)] == ([recipient] if says == "sent" else [])


@on_both_loops
async def test_a_mailbox_that_is_not_ascii_gets_its_mail_where_the_relay_offers_smtputf8(server: Server) -> None:
    claim = make_claim("jürgen@mailbox.test", content=LAST.content, smtputf8=True)
    async with Deliveries() as deliveries:
        words = (await deliveries.send(relay_at(server.plain), claim)).in_words
    offers = not isinstance(server, OpenSMTPD)
    assert words == ("sent" if offers else "EENVELOPE/smtputf8_not_offered P")
    assert [to for to, _ in await taken(server)] == (["jürgen@mailbox.test"] if offers else [])
