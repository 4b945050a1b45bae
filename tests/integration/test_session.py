"""Sessions over real sockets: reuse, replacement, the handover mark, what is on the wire and what is noted."""

import asyncio
import base64
import gc
import hmac
import re
import socket
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from app.mail.attempt import Attempt
from app.mail.errors import LeaseLost, StoreUnavailable
from app.mail.outcome import Phase
from app.mail.profile import AuthMode, Profile, TlsMode
from app.smtp.network import SocketAddress, resolve
from app.smtp.session import Session
from tests.support.factories import (
    BODY,
    CONTENT,
    LONG,
    RECIPIENT,
    SHORT,
    Deliveries,
    Settings,
    address_of,
    attempt,
    in_words,
    leading_to,
    make_attempt,
    make_claim,
    make_profile,
    marked,
    on_both_loops,
    refused_port,
    timeouts,
    turns,
)
from tests.support.relay import CHALLENGES, EXTENSIONS, Close, Relay, Reset, Stall, StopReading, Wait
from tests.support.tls import Answer, certificates

ALICE, BOB = "alice@theirs.test", RECIPIENT
DOT = b"\r\n.\r\n"
WITHOUT_PIPELINING = EXTENSIONS[1:]
LOGGING_IN: Settings = {"username": "bot", "password": "secret"}

pipelined_or_not = pytest.mark.parametrize(
    "extensions", [EXTENSIONS, WITHOUT_PIPELINING], ids=["pipelined", "step-by-step"]
)


def verbs(commands: Sequence[str]) -> list[str]:
    return [command.partition(" ")[0] for command in commands]


def words(attempt: Attempt) -> list[str]:
    """The transcript without its times."""
    return [f"{who} {line}" for _, who, line in attempt.transcript]


# --- several mails over one connection -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "opening"),
    [
        (TlsMode.NONE, ["EHLO", "AUTH"]),
        (TlsMode.STARTTLS, ["EHLO", "STARTTLS", "EHLO", "AUTH"]),
        (TlsMode.IMPLICIT, ["EHLO", "AUTH"]),
    ],
)
@pipelined_or_not
@on_both_loops
async def test_several_mails_go_over_one_connection_that_was_opened_once(
    mode: TlsMode, opening: list[str], extensions: Sequence[str]
) -> None:
    tls = None if mode is TlsMode.NONE else certificates().server()
    async with Relay(tls=tls, implicit=mode is TlsMode.IMPLICIT, auth=("PLAIN",), extensions=extensions) as relay:
        profile = make_profile(port=relay.port, tls=mode, username="bot", password="secret")
        async with Deliveries() as deliveries:
            for _ in range(3):
                assert (await deliveries.send(profile)).in_words == "sent"
        await relay.closed()
        assert relay.connections == 1
        assert verbs(relay.commands) == [*opening, *["MAIL", "RCPT", "DATA"] * 3, "QUIT"]
        assert [mail.content for mail in relay.mails] == [CONTENT] * 3


@on_both_loops
async def test_an_attempt_over_a_warm_connection_knows_what_was_learned_at_its_opening() -> None:
    async with Relay(tls=certificates().server(), auth=("LOGIN",)) as relay, Deliveries() as deliveries:
        profile = make_profile(port=relay.port, tls=TlsMode.STARTTLS, username="bot", password="secret")
        _, first = await deliveries.send(profile)
        _, second = await deliveries.send(profile)
        of_tls = ("tls", "tls_version", "tls_cipher", "tls_verified", "tls_names", "tls_not_after", "tls_sha256")
        for name in ("host", "ip", "port", *of_tls, "auth", "extensions"):
            assert getattr(second, name) == getattr(first, name)
        assert (second.tls, second.tls_verified, second.auth, second.ip) == (True, True, "LOGIN", "127.0.0.1")
        assert words(second)[0].startswith("C MAIL FROM:")
        assert "C STARTTLS" in words(first)
        assert "C STARTTLS" not in words(second)


@on_both_loops
async def test_an_attempt_over_a_warm_connection_has_only_the_phases_that_it_went_through() -> None:
    async with Relay() as relay, Deliveries() as deliveries:
        profile = make_profile(port=relay.port)
        _, first = await deliveries.send(profile)
        _, second = await deliveries.send(profile)
        assert set(first.phases) == {"resolve", "connect", "greeting", "ehlo", "mail", "rcpt", "data", "content"}
        assert set(second.phases) == {"mail", "rcpt", "data", "content"}


# --- situation 50: a refusal, and the next mail ----------------------------------------------------------

REFUSALS: dict[str, tuple[str, Answer, str]] = {
    "mail": ("MAIL", "550 5.1.8 no", "EENVELOPE/sender_refused P"),
    "mail-for-now": ("MAIL", "451 4.3.0 later", "EENVELOPE/sender_deferred T"),
    "every-rcpt": ("RCPT", "550 5.1.1 no such user", "EENVELOPE/mailbox_unknown P"),
    "data": ("DATA", "554 5.5.1 no", "EMESSAGE/data_refused P"),
    "content": ("CONTENT", "550 5.7.1 spam", "EMESSAGE/content_rejected P"),
}


@pytest.mark.parametrize("refusal", REFUSALS)
@pipelined_or_not
@on_both_loops
async def test_50_after_a_refusal_the_next_mail_goes_over_the_same_connection(
    refusal: str, extensions: Sequence[str]
) -> None:
    verb, answer, says = REFUSALS[refusal]
    async with Relay(extensions=extensions) as relay:
        relay.on(verb, answer, times=1)
        profile = make_profile(port=relay.port, max_connections=1)
        async with Deliveries() as deliveries:
            assert (await deliveries.send(profile)).in_words == says
            assert (await deliveries.send(profile)).in_words == "sent"
        await relay.closed()
        assert relay.connections == 1
        assert [mail.taken for mail in relay.mails] == ([False, True] if verb == "CONTENT" else [True])
        resets = verbs(relay.commands).count("RSET")
        assert resets == (0 if verb == "CONTENT" else 1)


@on_both_loops
async def test_50_a_reset_is_in_nobodys_transcript() -> None:
    async with Relay() as relay, Deliveries() as deliveries:
        relay.on("RCPT", "550 5.1.1 no such user", times=1)
        relay.on("RSET", "250 2.0.0 flushed")
        profile = make_profile(port=relay.port, max_connections=1)
        for _ in range(2):
            _, seen = await deliveries.send(profile)
            assert not [line for line in words(seen) if "RSET" in line or "flushed" in line]
        assert words(seen)[0].startswith("C MAIL FROM:")


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param("502 5.5.1 what?", id="502"),
        pytest.param(("421 4.3.2 bye", Close()), id="421"),
        pytest.param("hello", id="garbage"),
        pytest.param("250 2.0.0 Ok\n250 2.0.0 Ok", id="two-replies"),
        pytest.param(Close(), id="closed"),
        pytest.param(Reset(), id="reset"),
        pytest.param(Stall(), id="no-answer"),
    ],
)
@on_both_loops
async def test_50_a_connection_that_cannot_be_reset_is_replaced(answer: Answer) -> None:
    async with Relay() as relay:
        relay.on("RCPT", "550 5.1.1 no such user", times=1)
        relay.on("RSET", answer)
        profile = make_profile(port=relay.port, max_connections=1, timeouts=timeouts(reset=SHORT))
        async with Deliveries() as deliveries:
            assert (await deliveries.send(profile)).in_words == "EENVELOPE/mailbox_unknown P"
            assert (await deliveries.send(profile)).in_words == "sent"
        await relay.closed(2)
        assert relay.connections == 2


@pytest.mark.parametrize(
    ("verb", "answer"),
    [
        pytest.param("DATA", "354 go\n554 5.5.1 no valid recipients", id="354-and-554-for-nobody"),
        pytest.param("DATA", "354 go", id="354-for-nobody"),
        pytest.param("CONTENT", "250 2.0.0 queued\n250 2.0.0 again", id="two-replies-to-the-content"),
    ],
)
@on_both_loops
async def test_50_no_reply_that_is_left_over_is_taken_for_the_next_mails(verb: str, answer: Answer) -> None:
    async with Relay() as relay:
        if verb == "DATA":
            relay.on("RCPT", "550 5.1.1 no such user", times=1)
        relay.on(verb, answer, times=1)
        profile = make_profile(port=relay.port, max_connections=1)
        async with Deliveries() as deliveries:
            await deliveries.send(profile)
            await turns()
            assert (await deliveries.send(profile)).in_words == "sent"
        assert [mail.content for mail in relay.mails][-1] == CONTENT


# --- situation 49: a warm connection that died -----------------------------------------------------------


@pytest.mark.parametrize(
    "farewell",
    [
        pytest.param((Close(),), id="closed"),
        pytest.param((Reset(),), id="reset"),
        pytest.param(("421 4.4.2 idle for too long", Close()), id="421-and-closed"),
        pytest.param(("250 2.0.0 what else?",), id="a-reply-too-many"),
    ],
)
@pipelined_or_not
@on_both_loops
async def test_49_a_warm_connection_that_ended_while_idle_is_replaced(
    farewell: tuple[Any, ...], extensions: Sequence[str]
) -> None:
    async with Relay(extensions=extensions) as relay, Deliveries() as deliveries:
        over = asyncio.Event()
        relay.on("CONTENT", ("250 2.0.0 Ok", Wait(over), *farewell), times=1)
        profile = make_profile(port=relay.port, max_connections=1)
        assert (await deliveries.send(profile)).in_words == "sent"
        over.set()
        await turns()
        _, seen = again = await deliveries.send(profile)
        assert again.in_words == "sent"
        assert relay.connections == 2
        assert [mail.taken for mail in relay.mails] == [True, True]
        assert seen.failure is None
        assert seen.number == 1


@pytest.mark.parametrize("said", ["503 5.5.1 nested MAIL command", "500 what?", "452 4.5.3 too many mails"])
@pipelined_or_not
@on_both_loops
async def test_49_a_warm_connection_that_lost_its_place_before_mail_is_replaced(
    said: str, extensions: Sequence[str]
) -> None:
    async with Relay(extensions=extensions) as relay, Deliveries() as deliveries:
        profile = make_profile(port=relay.port, max_connections=1)
        assert (await deliveries.send(profile)).in_words == "sent"
        relay.on("MAIL", said, times=1)
        again = await deliveries.send(profile)
        assert (again.in_words, again.attempt.failure, relay.connections) == ("sent", None, 2)
        assert [mail.taken for mail in relay.mails] == [True, True]


@pytest.mark.parametrize("death", [Close(), Reset()], ids=["closed", "reset"])
@pytest.mark.parametrize("verb", ["MAIL", "RCPT"])
@on_both_loops
async def test_49_a_warm_connection_that_died_unseen_is_replaced_and_nothing_is_sent_twice(
    death: Close | Reset, verb: str
) -> None:
    """Pipelined, no reply at all came before the end, however many commands the relay had read."""
    async with Relay() as relay, Deliveries() as deliveries:
        profile = make_profile(port=relay.port)
        assert (await deliveries.send(profile)).in_words == "sent"
        if verb == "RCPT":
            relay.on("MAIL", b"", times=1)
        relay.on(verb, death, times=1)
        _, seen = again = await deliveries.send(profile, make_claim(number=2, content=b"second\r\n"))
        assert again.in_words == "sent"
        assert relay.connections == 2
        assert [mail.content for mail in relay.mails] == [CONTENT, b"second\r\n"]
        assert b"second" not in relay.sessions[0].wire
        assert relay.sessions[1].wire.count(b"second") == 1
        assert seen.handover


@pytest.mark.parametrize(
    ("verb", "answer"),
    [
        pytest.param("MAIL", ("250 2.1.0 Ok", Close()), id="after-the-reply-to-mail"),
        pytest.param("DATA", Close(), id="at-data"),
        pytest.param("CONTENT", Close(), id="after-the-dot"),
    ],
)
@pipelined_or_not
@on_both_loops
async def test_49_a_warm_connection_that_breaks_after_a_word_is_not_replaced(
    verb: str, answer: Answer, extensions: Sequence[str]
) -> None:
    async with Relay(extensions=extensions) as relay, Deliveries() as deliveries:
        profile = make_profile(port=relay.port)
        assert (await deliveries.send(profile)).in_words == "sent"
        relay.on(verb, answer)
        doubtful = "EINDOUBT/outcome_unknown U" if verb == "CONTENT" else "ECONNECTION/connection_lost T"
        assert (await deliveries.send(profile)).in_words == doubtful
        assert relay.connections == 1


@pipelined_or_not
@on_both_loops
async def test_49_a_fresh_connection_that_breaks_is_not_replaced(extensions: Sequence[str]) -> None:
    async with Relay(extensions=extensions) as relay:
        relay.on("MAIL", Close())
        assert (await attempt(relay)).in_words == "ECONNECTION/connection_lost T"
        assert relay.connections == 1


@on_both_loops
async def test_49_the_replacement_of_a_dead_connection_may_break_too_and_is_not_replaced() -> None:
    async with Relay() as relay, Deliveries() as deliveries:
        profile = make_profile(port=relay.port)
        assert (await deliveries.send(profile)).in_words == "sent"
        relay.on("MAIL", Reset(), times=2)
        assert (await deliveries.send(profile)).in_words == "ECONNECTION/connection_lost T"
        assert relay.connections == 2
        assert deliveries.pool.count(profile.name) == 0


# --- situation 49b: a warm connection that went silent ---------------------------------------------------

SILENCES: dict[str, tuple[str, Answer]] = {
    "no-answer": ("MAIL", Stall()),
    "black-hole": ("CONTENT", ("250 2.0.0 Ok", StopReading())),
}
SECOND = make_claim(number=2, content=b"second\r\n")


@pytest.mark.parametrize("silence", SILENCES)
@pipelined_or_not
@on_both_loops
async def test_49b_a_warm_connection_that_went_silent_is_replaced_and_the_mail_sent_once(
    silence: str, extensions: Sequence[str]
) -> None:
    verb, answer = SILENCES[silence]
    async with Relay(extensions=extensions) as relay, Deliveries() as deliveries:
        profile = make_profile(port=relay.port, max_connections=1, timeouts=timeouts(reset=SHORT))
        if verb == "CONTENT":
            relay.on(verb, answer, times=1)
        assert (await deliveries.send(profile)).in_words == "sent"
        if verb == "MAIL":
            relay.on(verb, answer, times=1)
        _, seen = again = await deliveries.send(profile, SECOND)
        assert again.in_words == "sent"
        assert (seen.failure, seen.number) == (None, 1)
        assert [mail.content for mail in relay.mails] == [CONTENT, b"second\r\n"]
        assert b"second" not in relay.sessions[0].wire
        assert relay.connections == 2
        assert seen.duration_ms is not None
        assert SHORT * 1000 < seen.duration_ms < LONG * 1000


@pipelined_or_not
@on_both_loops
async def test_49b_where_the_replacement_is_silent_too_nothing_is_in_doubt(extensions: Sequence[str]) -> None:
    async with Relay(extensions=extensions) as relay, Deliveries() as deliveries:
        profile = make_profile(port=relay.port, timeouts=timeouts(reset=SHORT, mail=2 * SHORT))
        assert (await deliveries.send(profile)).in_words == "sent"
        relay.on("MAIL", Stall())
        _, seen = again = await deliveries.send(profile, SECOND)
        assert again.in_words == "ETIMEDOUT/reply_timeout T"
        assert not seen.handover
        assert relay.connections == 2
        assert deliveries.pool.count(profile.name) == 0


@pipelined_or_not
@on_both_loops
async def test_49b_a_relay_that_answers_after_it_was_given_up_takes_the_mail_once(extensions: Sequence[str]) -> None:
    async with Relay(extensions=extensions) as relay, Deliveries() as deliveries:
        late = asyncio.Event()
        profile = make_profile(port=relay.port, timeouts=timeouts(reset=SHORT))
        assert (await deliveries.send(profile)).in_words == "sent"
        relay.on("MAIL", (Wait(late), "250 2.1.0 Ok"), times=1)
        assert (await deliveries.send(profile, SECOND)).in_words == "sent"
        late.set()
        await relay.closed()
        assert [mail.content for mail in relay.mails] == [CONTENT, b"second\r\n"]


@on_both_loops
async def test_49b_of_several_silent_connections_one_is_waited_for() -> None:
    async with Relay() as relay, Deliveries() as deliveries:
        profile = make_profile(port=relay.port, max_connections=3, timeouts=timeouts(reset=SHORT))
        sending = (deliveries.send(profile, make_claim(number=number)) for number in range(3))
        assert [tried.in_words for tried in await asyncio.gather(*sending)] == ["sent"] * 3
        assert relay.connections == 3
        relay.on("MAIL", Stall(), times=1)
        assert (await deliveries.send(profile, SECOND)).in_words == "sent"
        assert relay.connections == 4


@pytest.mark.parametrize(("warm", "verb"), [(False, "MAIL"), (True, "RCPT"), (True, "DATA")])
@pipelined_or_not
@on_both_loops
async def test_49b_whoever_is_new_or_has_said_a_word_gets_its_full_time(
    warm: bool, verb: str, extensions: Sequence[str]
) -> None:
    async with Relay(extensions=extensions) as relay, Deliveries() as deliveries:
        profile = make_profile(port=relay.port, timeouts=timeouts(reset=SHORT))
        if warm:
            assert (await deliveries.send(profile)).in_words == "sent"
        slow = asyncio.Event()
        asyncio.get_running_loop().call_later(2 * SHORT, slow.set)
        relay.on(verb, (Wait(slow), "354 go" if verb == "DATA" else "250 2.0.0 Ok"), times=1)
        assert (await deliveries.send(profile, SECOND)).in_words == "sent"
        assert relay.connections == 1


# --- the handover mark -----------------------------------------------------------------------------------

SIZES = pytest.mark.parametrize("content", [CONTENT, CONTENT + b"more of it\r\n" * 30_000], ids=["small", "330-kB"])


@SIZES
@pipelined_or_not
@on_both_loops
async def test_the_final_dot_leaves_only_after_the_mark(content: bytes, extensions: Sequence[str]) -> None:
    async with Relay(extensions=extensions) as relay, Deliveries() as deliveries:
        profile, claim = make_profile(port=relay.port), make_claim(content=content)
        mark = asyncio.get_running_loop().create_future()
        seen = make_attempt(profile)
        sending = asyncio.create_task(deliveries.send(profile, claim, attempt=seen, before_handover=lambda: mark))
        await relay.seen("DATA")
        await turns(200)
        assert any(line.startswith("S 354") for line in words(seen))
        assert DOT not in relay.sessions[0].wire
        assert relay.mails == []
        assert (seen.handover, sending.done()) == (False, False)

        mark.set_result(None)
        mail = await relay.mail()
        assert mail.content == content
        assert (await sending).in_words == "sent"
        assert seen.handover


@pipelined_or_not
@on_both_loops
async def test_the_mark_is_begun_while_the_relay_thinks_about_data(extensions: Sequence[str]) -> None:
    async with Relay(extensions=extensions) as relay, Deliveries() as deliveries:
        go = asyncio.Event()
        relay.on("DATA", (Wait(go), "354 go"))
        begun: list[str] = []

        def mark() -> Awaitable[None]:
            begun.append("mark")
            return marked()

        sending = asyncio.create_task(deliveries.send(make_profile(port=relay.port), before_handover=mark))
        await relay.seen("DATA")
        assert begun == ["mark"]
        go.set()
        assert (await sending).in_words == "sent"
        assert begun == ["mark"]


@pytest.mark.parametrize("error", [LeaseLost("somebody else has it"), StoreUnavailable("the disk is full")])
@pytest.mark.parametrize("late", [False, True], ids=["before-the-354", "after-the-354"])
@pipelined_or_not
@on_both_loops
async def test_where_the_mark_fails_no_content_leaves(error: Exception, late: bool, extensions: Sequence[str]) -> None:
    async with Relay(extensions=extensions) as relay, Deliveries() as deliveries:
        profile = make_profile(port=relay.port, max_connections=1)
        mark = asyncio.get_running_loop().create_future()
        if not late:
            mark.set_exception(error)
        seen = make_attempt(profile)
        sending = asyncio.create_task(deliveries.send(profile, attempt=seen, before_handover=lambda: mark))
        await relay.seen("DATA")
        await turns()
        if late:
            mark.set_exception(error)
        with pytest.raises(type(error)):
            await sending
        await relay.closed()
        assert relay.sessions[0].wire.endswith(b"DATA\r\n")
        assert not seen.handover

        assert (await deliveries.send(profile)).in_words == "sent"
        assert relay.connections == 2
        assert len(relay.mails) == 1


@pytest.mark.parametrize("verb", ["MAIL", "RCPT", "DATA"])
@pytest.mark.parametrize("fails", [False, True], ids=["never-done", "fails-later"])
@pipelined_or_not
@on_both_loops
async def test_a_refused_envelope_waits_for_no_mark(verb: str, fails: bool, extensions: Sequence[str]) -> None:
    complaints: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: complaints.append(context))
    marks: list[asyncio.Future[None]] = []

    def mark() -> Awaitable[None]:
        marks.append(loop.create_future())
        return marks[-1]

    async with Relay(extensions=extensions) as relay:
        relay.on(verb, "550 5.5.0 no")
        outcomes, seen = await attempt(relay, before_handover=mark)
        assert [in_words(outcome)[-1] for outcome in outcomes.values()] == ["P"]
        assert not seen.handover
    if fails and marks:
        marks.pop().set_exception(LeaseLost("somebody else has it"))
    marks.clear()
    await turns()
    gc.collect()
    assert complaints == []


# --- content on the wire ---------------------------------------------------------------------------------


def after_data(wire: bytes) -> bytes:
    """Give what stands between DATA and QUIT."""
    return wire.partition(b"DATA\r\n")[2].removesuffix(b"QUIT\r\n")


@pytest.mark.parametrize(
    ("content", "on_the_wire"),
    [
        pytest.param(b"a\r\n", b"a\r\n.\r\n", id="plain"),
        pytest.param(b"a", b"a\r\n.\r\n", id="no-line-end"),
        pytest.param(b"", b"\r\n.\r\n", id="empty"),
        pytest.param(b".", b"..\r\n.\r\n", id="a-dot"),
        pytest.param(b".\r\n", b"..\r\n.\r\n", id="a-dot-and-its-line-end"),
        pytest.param(b"..\r\n.a\r\n", b"...\r\n..a\r\n.\r\n", id="dots-at-the-start"),
        pytest.param(b"a\r\n.\r\nQUIT\r\n", b"a\r\n..\r\nQUIT\r\n.\r\n", id="an-end-in-the-middle"),
        pytest.param(b"a\n.\nb\n", b"a\r\n..\r\nb\r\n.\r\n", id="bare-lf"),
        pytest.param(b"a\r.\rb\r", b"a\r\n..\r\nb\r\n.\r\n", id="bare-cr"),
        pytest.param(b"a\n.\r\nb", b"a\r\n..\r\nb\r\n.\r\n", id="lf-dot-crlf"),
        pytest.param(b"a\r\n.\nb", b"a\r\n..\r\nb\r\n.\r\n", id="crlf-dot-lf"),
        pytest.param(b"a\r\n.\rb", b"a\r\n..\r\nb\r\n.\r\n", id="crlf-dot-cr"),
        pytest.param(b"a\r\r\n.\r\nb", b"a\r\n\r\n..\r\nb\r\n.\r\n", id="cr-crlf"),
        pytest.param(b"a\r\n\r\n", b"a\r\n\r\n.\r\n", id="empty-line-at-the-end"),
        pytest.param(b"\xff\x00\r\n", b"\xff\x00\r\n.\r\n", id="binary"),
    ],
)
@on_both_loops
async def test_line_ends_are_crlf_and_dots_are_doubled(content: bytes, on_the_wire: bytes) -> None:
    async with Relay() as relay:
        assert (await attempt(relay, make_claim(content=content))).in_words == "sent"
        await relay.closed()
        assert after_data(bytes(relay.sessions[0].wire)) == on_the_wire
        assert len(relay.mails) == 1


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(
    content=st.text(alphabet="\r\n.a", max_size=40).map(str.encode),
    padding=st.sampled_from([0, 0, 0, 65_530, 65_535, 65_536, 131_070]),
)
@example(content=b"\r\n.\r\n", padding=65_534)
def test_no_content_ends_early_or_smuggles_a_line_end(content: bytes, padding: int) -> None:
    """Whatever stands in it, wherever the blocks end: one mail arrives, the same but for its line ends."""
    content = b"x" * padding + content

    async def send() -> None:
        async with Relay() as relay:
            assert (await attempt(relay, make_claim(content=content))).in_words == "sent"
            await relay.closed()
            wire = after_data(bytes(relay.sessions[0].wire))
            assert re.search(rb"(?<!\r)\n|\r(?!\n)", wire) is None
            normal = re.sub(rb"\r\n|\r|\n", b"\r\n", content)
            (mail,) = relay.mails
            assert mail.content == (normal if normal.endswith(b"\r\n") else normal + b"\r\n")

    asyncio.run(send())


class Narrow(Deliveries):
    """Through a socket that the kernel gives little room."""

    async def open(self, profile: Profile, attempt: Attempt) -> Session:
        session = await super().open(profile, attempt)
        sock = session.wire._transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        return session


@pytest.mark.parametrize("mode", [TlsMode.NONE, TlsMode.STARTTLS, TlsMode.IMPLICIT])
@pipelined_or_not
@on_both_loops
async def test_a_big_mail_goes_through_a_narrow_connection(mode: TlsMode, extensions: Sequence[str]) -> None:
    line = b".this line begins with a dot and is seventy characters long, end of it\r\n"
    content = CONTENT + line * (300_000 // len(line))
    tls = None if mode is TlsMode.NONE else certificates().server()
    async with (
        Relay(tls=tls, implicit=mode is TlsMode.IMPLICIT, extensions=extensions) as relay,
        Narrow() as deliveries,
    ):
        tried = await deliveries.send(make_profile(port=relay.port, tls=mode), make_claim(content=content))
        assert tried.in_words == "sent"
        assert relay.mails[0].content == content
        assert (await deliveries.send(make_profile(port=relay.port, tls=mode))).in_words == "sent"
        assert relay.connections == 1


@pipelined_or_not
@on_both_loops
async def test_a_thousand_recipients_keep_their_own_replies(extensions: Sequence[str]) -> None:
    people = [f"user{number}@theirs.test" for number in range(1000)]
    async with Relay(extensions=extensions) as relay:
        relay.on("RCPT", "550 5.1.1 no such user", match="7@")
        relay.on("RCPT", "452 4.2.2 over quota", match="3@")
        outcomes, _ = await attempt(relay, make_claim(*people))
        says = {"7": "EENVELOPE/mailbox_unknown P", "3": "EENVELOPE/recipient_deferred T"}
        assert {a: in_words(o) for a, o in outcomes.items()} == {
            a: says.get(a.split("@")[0][-1], "sent") for a in people
        }
        assert len(relay.mails[0].rcpt_to) == 800


REPLIES = st.sampled_from(
    [
        *["250 2.0.0 Ok"] * 6,
        "250-first\n250 2.0.0 second",
        "450 4.2.0 later",
        "451 4.7.1 greylisted",
        "452 4.3.1 full",
        "421 4.3.2 bye",
        "550 5.1.1 no such user",
        "550 5.7.1 access denied",
        "554 5.7.1 Relay access denied",
        "552 5.3.4 too big",
        "530 5.7.0 log in",
        "503 5.5.1 bad sequence",
    ]
)


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(mail=REPLIES, rcpt=st.lists(REPLIES, min_size=1, max_size=4), data=REPLIES, content=REPLIES, auth=st.booleans())
def test_pipelining_and_one_step_after_the_other_come_to_the_same(
    mail: str, rcpt: list[str], data: str, content: str, auth: bool
) -> None:
    people = [f"user{number}@theirs.test" for number in range(len(rcpt))]

    async def send(extensions: Sequence[str]) -> tuple[dict[str, str], list[str]]:
        async with Relay(extensions=extensions, auth=("PLAIN",) if auth else ()) as relay:
            relay.on("MAIL", mail)
            for address, reply in zip(people, rcpt, strict=True):
                relay.on("RCPT", reply, match=address)
            if not data.startswith("250"):
                relay.on("DATA", data)
            relay.on("CONTENT", content)
            outcomes, _ = await attempt(relay, make_claim(*people))
            return {a: in_words(o) for a, o in outcomes.items()}, [r for m in relay.mails if m.taken for r in m.rcpt_to]

    assert asyncio.run(send(EXTENSIONS)) == asyncio.run(send(WITHOUT_PIPELINING))


@on_both_loops
async def test_without_size_and_8bitmime_mail_has_no_parameters_that_need_them() -> None:
    async with Relay(extensions=("SMTPUTF8",)) as relay:
        await attempt(relay, make_claim("jürgen@theirs.test", smtputf8=True))
        assert relay.commands[1:3] == ["MAIL FROM:<ann@ours.test> SMTPUTF8", "RCPT TO:<jürgen@theirs.test>"]


# --- the opening -----------------------------------------------------------------------------------------


@on_both_loops
async def test_what_was_offered_before_starttls_is_forgotten() -> None:
    async with Relay(tls=certificates().server()) as relay:
        relay.on("EHLO", "502 5.5.1 what?")
        relay.on("EHLO", "250-relay.test\n250-STARTTLS\n250-SIZE 1\n250 PIPELINING", times=1)
        tried = await attempt(relay, tls=TlsMode.STARTTLS)
        assert tried.in_words == "sent"
        assert tried.attempt.extensions == []
        assert verbs(relay.commands)[:4] == ["EHLO", "STARTTLS", "EHLO", "HELO"]
        assert "MAIL FROM:<ann@ours.test>" in relay.commands


def leading_through(*addresses: SocketAddress) -> Callable[[str, int], Awaitable[list[SocketAddress]]]:
    async def resolve(_host: str, _port: int) -> list[SocketAddress]:
        return list(addresses)

    return resolve


@contextmanager
def dead(*kinds: str) -> Iterator[list[SocketAddress]]:
    """Give addresses that are dead, each in its own way."""
    with socket.socket() as deaf, socket.socket() as first:  # a full backlog: further SYNs are dropped
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        first.connect(deaf.getsockname())
        known: dict[str, SocketAddress] = {
            "refused": address_of(refused_port(), "::1"),
            "silent": (socket.AF_INET, deaf.getsockname()),
            "unheard-of": (socket.AddressFamily(socket.AF_IPX), ("127.0.0.1", 25)),
        }
        yield [known[kind] for kind in kinds]


@on_both_loops
async def test_the_next_address_is_tried_where_one_is_dead() -> None:
    async with Relay() as relay:
        with dead("refused", "unheard-of", "silent") as addresses:
            resolve = leading_through(*addresses, address_of(relay.port))
            outcomes, seen = await attempt(relay, resolve=resolve, timeouts=timeouts(connect=4 * SHORT))
        assert [in_words(outcome) for outcome in outcomes.values()] == ["sent"]
        assert seen.ip == "127.0.0.1"
        assert SHORT * 1000 < seen.phases["connect"] < LONG * 1000


DEATHS = {
    "refused": "ECONNECTION/connection_refused T",
    "silent": "ETIMEDOUT/connect_timeout T",
    "unheard-of": "ECONNECTION/host_unreachable T",
}


@pytest.mark.parametrize("last", DEATHS)
@pytest.mark.parametrize("first", DEATHS)
@on_both_loops
async def test_where_all_addresses_are_dead_the_last_one_says_why(first: str, last: str) -> None:
    with dead(first, last) as addresses:
        tried = await attempt(25, resolve=leading_through(*addresses), timeouts=timeouts(connect=2 * SHORT))
    assert tried.in_words == DEATHS[last]
    assert tried.attempt.failure is not None
    assert tried.attempt.failure.phase is Phase.CONNECT
    assert tried.attempt.phases["connect"] < LONG * 1000


@on_both_loops
async def test_the_whole_connect_phase_has_one_budget() -> None:
    with dead("silent") as (silent,):
        resolve = leading_through(*[silent] * 4)
        _, seen = tried = await attempt(25, resolve=resolve, timeouts=timeouts(connect=2 * SHORT))
    assert tried.in_words == "ETIMEDOUT/connect_timeout T"
    assert seen.phases["connect"] < 6 * SHORT * 1000  # each its own would be eight


@pytest.mark.parametrize(
    ("host", "own_name", "said", "helo"),
    [
        ("127.0.0.1", "client.test", Settings(), "client.test"),
        ("127.0.0.1", None, Settings(), "[127.0.0.1]"),
        ("::1", None, Settings(), "[IPv6:::1]"),
        ("::1", "client.test", Settings(helo_name="other.test"), "other.test"),
    ],
)
@on_both_loops
async def test_the_relay_is_greeted_with_our_name_or_our_address(
    host: str, own_name: str | None, said: Settings, helo: str
) -> None:
    async with Relay(host=host) as relay:
        async with Deliveries(leading_to(relay.port, host), own_name=own_name) as deliveries:
            tried = await deliveries.send(make_profile(**said))
        assert tried.in_words == "sent"
        assert tried.attempt.ip == host
        assert relay.commands[0] == f"EHLO {helo}"


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
@on_both_loops
async def test_the_real_resolver_reads_addresses_and_names(host: str) -> None:
    async with Relay(host="127.0.0.1" if host == "localhost" else host) as relay:
        tried = await attempt(relay, resolve=resolve, host=host)
        assert tried.in_words == "sent"


@on_both_loops
async def test_a_relay_that_shakes_hands_and_says_nothing_does_not_disturb_the_others() -> None:
    """Its socket must not be closed under a transport that still uses it: the next one gets the same number."""
    async with Relay(tls=certificates().server(), implicit=True) as mute, Relay() as relay:
        mute.on("GREETING", Stall())
        async with Deliveries() as deliveries:
            for _ in range(3):
                hurried = make_profile(
                    name="mute", port=mute.port, tls=TlsMode.IMPLICIT, timeouts=timeouts(tls=SHORT, greeting=SHORT)
                )
                assert (await deliveries.send(hurried)).in_words == "ETIMEDOUT/greeting_timeout T"
                assert (await deliveries.send(make_profile(port=relay.port))).in_words == "sent"
            await mute.closed(3)


def open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


@pytest.mark.parametrize(
    ("verb", "mode"), [("GREETING", TlsMode.IMPLICIT), ("EHLO", TlsMode.IMPLICIT), ("AUTH", TlsMode.STARTTLS)]
)
@on_both_loops
async def test_the_connection_of_an_attempt_that_timed_out_is_closed_though_the_relay_is_dead(
    verb: str, mode: TlsMode
) -> None:
    """A close_notify that never comes is not waited for: the connection would outlive its place in the pool."""
    async with Relay(tls=certificates().server(), implicit=mode is TlsMode.IMPLICIT, auth=("PLAIN",)) as relay:
        relay.on(verb, StopReading())
        gc.collect()
        open_before = open_files()
        dead = timeouts(tls=SHORT, greeting=SHORT, ehlo=SHORT, auth=SHORT)
        tried = await attempt(relay, tls=mode, timeouts=dead, username="bot", password="secret")
        await turns()
        assert tried.in_words.startswith("ETIMEDOUT/")
        assert open_files() == open_before + 1  # the relay's end


# --- credentials -----------------------------------------------------------------------------------------

PASSWORDS = ["correct horse", "100%", "a:b", "=", "ü€𝄞", 'quo"te\\', " leading", "x" * 200, "***", "\t"]


# What the transcript has of a login, both sides.
IN_THE_TRANSCRIPT = {
    "PLAIN": ["C AUTH PLAIN ***", "S 235"],
    "LOGIN": ["C AUTH LOGIN", "S 334 VXNlcm5hbWU6", "C ***", "S 334 UGFzc3dvcmQ6", "C ***", "S 235"],
    "CRAM-MD5": ["C AUTH CRAM-MD5", "S 334 PDE4OTZAcmVsYXkudGVzdD4=", "C ***", "S 235"],
    # With the relay's part in plain view, passwords could be tried on it.
    "SCRAM-SHA-256": ["C AUTH SCRAM-SHA-256 ***", "S 334 ***", "C ***", "S 334 ***", "C ", "S 235"],
    "SCRAM-SHA-1": ["C AUTH SCRAM-SHA-1 ***", "S 334 ***", "C ***", "S 334 ***", "C ", "S 235"],
}


@pytest.mark.parametrize("mechanism", IN_THE_TRANSCRIPT)
@pytest.mark.parametrize("username", ["bot", "b ot@corp.test", "jürgen:x", "a=b,c"])
@on_both_loops
async def test_credentials_go_through_as_they_are_and_into_no_transcript(mechanism: str, username: str) -> None:
    for password in PASSWORDS:
        async with Relay(auth=(mechanism,), users={username: password}, auth_required=True) as relay:
            outcomes, seen = await attempt(relay, username=username, password=password)
            assert [in_words(outcome) for outcome in outcomes.values()] == ["sent"]
            assert seen.auth == mechanism
            lines = words(seen)
            for secret in secrets(mechanism, username, password):
                assert secret not in "\n".join(lines) or secret in ("=", "***")
            begin = lines.index(IN_THE_TRANSCRIPT[mechanism][0])
            if password != "=":  # which is masked in the prompts too
                for line, wanted in zip(lines[begin:], IN_THE_TRANSCRIPT[mechanism], strict=False):
                    assert line.startswith(wanted) if "235" in wanted else line == wanted


def secrets(mechanism: str, username: str, password: str) -> list[str]:
    """Give the password in all its forms, and what was made of it for the relay."""
    digest = hmac.new(password.encode(), CHALLENGES["CRAM-MD5"][0], "md5").hexdigest()
    plain, lines = [password], [password, f"\0{username}\0{password}"]
    if mechanism == "CRAM-MD5":
        plain, lines = [*plain, digest], [*lines, f"{username} {digest}"]
    return [*plain, *(base64.b64encode(line.encode()).decode() for line in lines)]


@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN", "CRAM-MD5"])
@pytest.mark.parametrize("code", [235, 454, 501, 535])
@on_both_loops
async def test_a_relay_that_repeats_the_password_brings_it_nowhere(mechanism: str, code: int) -> None:
    password = "correct horse battery"
    async with Relay(auth=(mechanism,), users={"bot": password}) as relay:
        for secret in secrets(mechanism, "bot", password):
            relay.on("AUTH" if mechanism == "PLAIN" else "AUTH2", f"{code} x {secret} y", times=1)
            outcomes, seen = await attempt(relay, username="bot", password=password)
            everything = f"{words(seen)}{outcomes}{seen.failure}"
            assert [form for form in secrets(mechanism, "bot", password) if form in everything] == []


@pytest.mark.parametrize("tls", [TlsMode.STARTTLS, TlsMode.IMPLICIT])
@on_both_loops
async def test_a_pinned_mechanism_is_used_although_a_stronger_one_is_offered(tls: TlsMode) -> None:
    async with Relay(
        tls=certificates().server(), implicit=tls is TlsMode.IMPLICIT, auth=("PLAIN", "LOGIN"), auth_only_under_tls=True
    ) as relay:
        _, seen = tried = await attempt(relay, tls=tls, auth=AuthMode.LOGIN, username="bot", password="secret")
        assert tried.in_words == "sent"
        assert seen.auth == "LOGIN"
        assert verbs(relay.commands).count("AUTH") == 1


# --- being stopped ---------------------------------------------------------------------------------------

STALLS: dict[str, Settings] = {
    "GREETING": Settings(),
    "EHLO": Settings(),
    "STARTTLS": Settings(tls=TlsMode.STARTTLS),
    "AUTH": LOGGING_IN,
    "MAIL": Settings(),
    "RCPT": Settings(),
    "DATA": Settings(),
    "CONTENT": Settings(),
}


@pytest.mark.parametrize("handshake", [False, True], ids=["", "in-the-handshake"])
@pytest.mark.parametrize("verb", STALLS)
@on_both_loops
async def test_a_cancelled_attempt_leaves_no_connection_behind(verb: str, handshake: bool) -> None:
    async with Relay(tls=certificates().server(), auth=("PLAIN",)) as relay, Deliveries() as deliveries:
        relay.on(verb, ("220 go", Stall()) if handshake and verb == "STARTTLS" else Stall(), times=1)
        said: Settings = {**STALLS[verb], "port": relay.port, "max_connections": 1}
        if handshake and verb == "GREETING":
            said["tls"] = TlsMode.IMPLICIT
        profile = make_profile(**said)
        sending = asyncio.create_task(deliveries.send(profile))
        if verb == "CONTENT":
            await relay.mail()
        elif verb == "GREETING":
            await relay.connected()
        else:
            await relay.seen(verb)
        await turns()
        assert deliveries.pool.count(profile.name) == 1
        sending.cancel()
        with suppress(asyncio.CancelledError):
            await sending
        assert sending.cancelled()
        assert deliveries.pool.count(profile.name) == 0
        async with asyncio.timeout(LONG):
            await relay.closed()
        if not (handshake and verb == "GREETING"):
            assert (await deliveries.send(profile)).in_words == "sent"


@on_both_loops
async def test_an_attempt_cancelled_while_the_mark_is_under_way_lets_nothing_go() -> None:
    async with Relay() as relay, Deliveries() as deliveries:
        profile = make_profile(port=relay.port, max_connections=1)
        mark = asyncio.get_running_loop().create_future()
        sending = asyncio.create_task(deliveries.send(profile, before_handover=lambda: mark))
        await relay.seen("DATA")
        await turns()
        sending.cancel()
        with suppress(asyncio.CancelledError):
            await sending
        await relay.closed()
        assert BODY not in relay.sessions[0].wire
        assert relay.mails == []


@on_both_loops
async def test_an_attempt_whose_own_name_is_still_being_looked_up_can_be_cancelled() -> None:
    class Nameless(Deliveries):
        async def _name(self) -> str | None:
            await asyncio.Event().wait()
            return None

    async with Relay() as relay, Nameless() as deliveries:
        sending = asyncio.create_task(deliveries.send(make_profile(port=relay.port)))
        await relay.connected()
        await turns()
        sending.cancel()
        with suppress(asyncio.CancelledError):
            await sending
        del sending
        gc.collect()
        await relay.closed()


def test_a_profile_that_differs_in_its_secret_is_another_profile() -> None:
    profile = make_profile(**LOGGING_IN)
    assert profile != replace(profile, password="other")
    assert "secret" not in repr(profile)
