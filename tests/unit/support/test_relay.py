"""The scripted relay does what its scripts say; shown with plain sockets, not with the code under test."""

import asyncio
import base64
import hashlib
import hmac
import re
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from tests.support.relay import (
    Close,
    Drip,
    GarbageInsteadOfTLS,
    Hear,
    Relay,
    Reset,
    Split,
    Stall,
    StartTLS,
    StopReading,
    Wait,
)
from tests.support.tls import ServerContext, certificates

GREETING = b"220 relay.test ESMTP\r\n"
ENVELOPE = b"MAIL FROM:<ann@ours.test>\r\nRCPT TO:<bob@theirs.test>\r\n"


class Peer:
    """A client that sends what it is told and reads reply by reply."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def reply(self) -> bytes:
        """Read one reply, all its lines."""
        async with asyncio.timeout(2):
            reply = await self.reader.readline()
            while reply.splitlines()[-1:] and reply.splitlines()[-1][3:4] == b"-":
                reply += await self.reader.readline()
        return reply

    async def ask(self, command: bytes) -> bytes:
        self.writer.write(command + b"\r\n")
        return await self.reply()

    async def greeted(self) -> "Peer":
        await self.reply()
        await self.ask(b"EHLO peer.test")
        return self

    async def rest(self) -> bytes:
        async with asyncio.timeout(2):
            return await self.reader.read()


class Segments(asyncio.Protocol):
    """A client that keeps apart what each segment brought."""

    def __init__(self, last: bytes) -> None:
        self.heard: list[bytes] = []
        self.done = asyncio.Event()
        self._last = last

    def data_received(self, data: bytes) -> None:
        self.heard.append(data)
        if b"".join(self.heard).endswith(self._last):
            self.done.set()


@asynccontextmanager
async def peer(relay: Relay, tls: ssl.SSLContext | None = None) -> AsyncIterator[Peer]:
    name = "localhost" if tls else None
    reader, writer = await asyncio.open_connection(relay.host, relay.port, ssl=tls, server_hostname=name)
    try:
        yield Peer(reader, writer)
    finally:
        writer.transport.abort()


async def segments(relay: Relay, sent: bytes, *, last: bytes) -> list[bytes]:
    """Send all at once and return, segment by segment, what came up to these last bytes."""
    loop = asyncio.get_running_loop()
    transport, heard = await loop.create_connection(lambda: Segments(last), relay.host, relay.port)
    transport.write(sent)
    async with asyncio.timeout(2):
        await heard.done.wait()
    transport.abort()
    return heard.heard


def trusting(file: Path | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=file or certificates().ca_file)
    # Debian's Python asks for less than python.org's: any version, and a cut stream passes for an end.
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options &= ~ssl.OP_IGNORE_UNEXPECTED_EOF
    return context


async def upgrade(client: Peer, context: ssl.SSLContext) -> None:
    assert (await client.ask(b"STARTTLS")).startswith(b"220")
    await client.writer.start_tls(context, server_hostname="localhost")


class TestDialogue:
    async def test_a_mail_goes_through_command_by_command(self) -> None:
        async with Relay() as relay, peer(relay) as client:
            assert await client.reply() == GREETING
            offers = await client.ask(b"EHLO peer.test")
            assert offers.splitlines()[1] == b"250-PIPELINING"
            assert b"STARTTLS" not in offers
            assert b"AUTH" not in offers
            assert (await client.ask(b"MAIL FROM:<ann@ours.test> BODY=8BITMIME")).startswith(b"250")
            assert (await client.ask(b"RCPT TO:<bob@theirs.test>")).startswith(b"250")
            assert (await client.ask(b"DATA")).startswith(b"354")
            assert await client.ask(b"Subject: x\r\n\r\nbody\r\n.") == b"250 2.0.0 Ok: queued as R1\r\n"
            assert (await client.ask(b"QUIT")).startswith(b"221")
            assert await client.rest() == b""

            mail = await relay.mail()
            assert (mail.mail_from, mail.rcpt_to) == ("ann@ours.test", ["bob@theirs.test"])
            assert mail.content == b"Subject: x\r\n\r\nbody\r\n"
            assert mail.taken
            verbs = [command.split()[0] for command in relay.commands]
            assert verbs == ["EHLO", "MAIL", "RCPT", "DATA", "QUIT"]

    async def test_the_wire_and_the_answers_are_kept_byte_for_byte(self) -> None:
        async with Relay() as relay, peer(relay) as client:
            said = await client.reply()
            for command in (b"HELO peer.test", b"nonsense\xff", b"NOOP"):
                said += await client.ask(command)
            assert relay.sessions[0].wire == b"HELO peer.test\r\nnonsense\xff\r\nNOOP\r\n"
            assert relay.sessions[0].sent == said

    async def test_pipelined_commands_are_answered_in_order_in_one_segment(self) -> None:
        async with Relay() as relay:
            sent = b"EHLO peer.test\r\n" + ENVELOPE + b"DATA\r\n"
            heard = await segments(relay, sent, last=b"<CR><LF>.<CR><LF>\r\n")
            codes = re.findall(rb"^(\d{3}) ", b"".join(heard), re.MULTILINE)
            assert codes == [b"220", b"250", b"250", b"250", b"354"]
            assert heard[-1].startswith(b"250-relay.test")

    async def test_it_listens_on_ipv6_too(self) -> None:
        async with Relay(host="::1") as relay, peer(relay) as client:
            assert await client.reply() == GREETING

    async def test_a_second_mail_goes_over_the_same_connection(self) -> None:
        async with Relay() as relay, peer(relay) as client:
            await client.greeted()
            for number in (1, 2):
                client.writer.write(ENVELOPE + b"DATA\r\n")
                assert [(await client.reply())[:3] for _ in range(3)] == [b"250", b"250", b"354"]
                assert (await client.ask(b"mail %d\r\n." % number)).startswith(b"250")
            assert [mail.content for mail in relay.mails] == [b"mail 1\r\n", b"mail 2\r\n"]
            assert relay.connections == 1

    @pytest.mark.parametrize(
        ("commands", "codes"),
        [
            pytest.param([b"MAIL FROM:<>"], [b"503"], id="mail before ehlo"),
            pytest.param([b"EHLO p", b"RCPT TO:<b@x>"], [b"250", b"503"], id="rcpt before mail"),
            pytest.param([b"EHLO p", b"MAIL FROM:<>", b"DATA"], [b"250", b"250", b"554"], id="no recipient"),
            pytest.param([b"EHLO p", b"MAIL FROM:<>", b"MAIL FROM:<>"], [b"250", b"250", b"503"], id="nested"),
            pytest.param([b"EHLO p", b"MAIL FROM:<>", b"RSET", b"MAIL FROM:<>"], [b"250"] * 4, id="rset begins anew"),
            pytest.param([b"STARTTLS"], [b"502"], id="starttls not offered"),
            pytest.param([b"AUTH PLAIN AGJvdABzZWNyZXQ="], [b"503"], id="auth not offered"),
            pytest.param([b"BDAT 3 LAST"], [b"502"], id="chunking not offered"),
            pytest.param([b"XYZZY"], [b"502"], id="unknown verb"),
        ],
    )
    async def test_what_is_out_of_order_is_refused(self, commands: list[bytes], codes: list[bytes]) -> None:
        async with Relay() as relay, peer(relay) as client:
            await client.reply()
            assert [(await client.ask(command))[:3] for command in commands] == codes

    @pytest.mark.parametrize(
        ("wire", "content"),
        [
            pytest.param(b"..\r\n..a\r\nb.\r\n...\r\n.\r\n", b".\r\n.a\r\nb.\r\n..\r\n", id="stuffed"),
            pytest.param(b".\r\n", b"", id="empty"),
            pytest.param(b"\r\n.\r\n", b"\r\n", id="one empty line"),
            pytest.param(b"a\n.\nb\r\n.\r\n", b"a\n.\nb\r\n", id="bare LF ends nothing"),
        ],
    )
    async def test_content_is_unstuffed(self, wire: bytes, content: bytes) -> None:
        async with Relay() as relay, peer(relay) as client:
            await client.greeted()
            client.writer.write(ENVELOPE + b"DATA\r\n" + wire)
            assert (await relay.mail()).content == content

    async def test_a_final_dot_in_pieces_is_found(self) -> None:
        async with Relay() as relay, peer(relay) as client:
            await client.greeted()
            client.writer.write(ENVELOPE)
            await client.reply()
            await client.reply()
            await client.ask(b"DATA")
            for byte in b"a\r\n.\r\n":
                client.writer.write(bytes([byte]))
                for _ in range(5):
                    await asyncio.sleep(0)
            assert (await client.reply()).startswith(b"250")
            assert relay.mails[0].content == b"a\r\n"

    async def test_chunks_make_one_mail(self) -> None:
        async with Relay(extensions=("CHUNKING",)) as relay, peer(relay) as client:
            await client.greeted()
            client.writer.write(ENVELOPE + b"BDAT 5\r\n.\r\nQU" + b"BDAT 4 LAST\r\nIT\r\n" + b"NOOP\r\n")
            codes = [(await client.reply())[:3] for _ in range(5)]
            assert codes == [b"250"] * 5
            assert relay.mails[0].content == b".\r\nQUIT\r\n"
            assert relay.commands[-3:] == ["BDAT 5", "BDAT 4 LAST", "NOOP"]

    @pytest.mark.parametrize("verb", ["BDAT", "CONTENT"])
    async def test_the_last_chunk_is_answered_by_either_rule(self, verb: str) -> None:
        async with Relay(extensions=("CHUNKING",)) as relay, peer(relay) as client:
            relay.on(verb, "552 5.3.4 too big")
            await client.greeted()
            client.writer.write(ENVELOPE + b"BDAT 2 LAST\r\nhi")
            assert [(await client.reply())[:3] for _ in range(3)] == [b"250", b"250", b"552"]
            assert not (await relay.mail()).taken

    async def test_a_refused_chunk_ends_the_transaction(self) -> None:
        async with Relay(extensions=("CHUNKING",)) as relay, peer(relay) as client:
            relay.on("BDAT", "452 4.3.1 full", times=1)
            await client.greeted()
            client.writer.write(ENVELOPE + b"BDAT 2\r\nhiBDAT 2 LAST\r\nhi")
            assert [(await client.reply())[:3] for _ in range(4)] == [b"250", b"250", b"452", b"554"]
            assert relay.mails == []


class TestRules:
    async def test_a_rule_answers_only_the_lines_that_match(self) -> None:
        async with Relay() as relay, peer(relay) as client:
            relay.on("RCPT", "550 5.1.1 no such user", match="bob@")
            await client.greeted()
            client.writer.write(b"MAIL FROM:<>\r\nRCPT TO:<bob@x.test>\r\nRCPT TO:<eve@x.test>\r\nDATA\r\nx\r\n.\r\n")
            codes = [(await client.reply())[:3] for _ in range(5)]
            assert codes == [b"250", b"550", b"250", b"354", b"250"]
            assert relay.mails[0].rcpt_to == ["eve@x.test"]

    async def test_a_used_up_rule_gives_way_to_the_earlier_one(self) -> None:
        async with Relay() as relay, peer(relay) as client:
            relay.on("NOOP", "250 always")
            relay.on("NOOP", "451 twice", times=2)
            relay.on("NOOP", "450 once", times=1)
            await client.reply()
            codes = [await client.ask(b"NOOP") for _ in range(4)]
            assert codes == [b"450 once\r\n", b"451 twice\r\n", b"451 twice\r\n", b"250 always\r\n"]

    async def test_a_refused_mail_is_no_transaction(self) -> None:
        async with Relay() as relay, peer(relay) as client:
            relay.on("MAIL", "450 4.1.0 later", times=1)
            await client.greeted()
            commands = (b"MAIL FROM:<a@x>", b"RCPT TO:<b@x>", b"MAIL FROM:<a@x>")
            assert [(await client.ask(command))[:3] for command in commands] == [b"450", b"503", b"250"]

    async def test_the_content_is_answered_by_what_is_in_it(self) -> None:
        async with Relay() as relay, peer(relay) as client:
            relay.on("CONTENT", "550 5.7.1 spam", match="pills")
            await client.greeted()
            client.writer.write(ENVELOPE + b"DATA\r\ncheap pills\r\n.\r\n" + ENVELOPE + b"DATA\r\nhello\r\n.\r\n")
            codes = [(await client.reply())[:3] for _ in range(8)]
            assert codes == [b"250", b"250", b"354", b"550", b"250", b"250", b"354", b"250"]
            assert [mail.taken for mail in relay.mails] == [False, True]
            assert relay.mails[0].reply == b"550 5.7.1 spam\r\n"

    async def test_a_reply_of_many_lines_is_written_as_the_test_wrote_it(self) -> None:
        async with Relay(greeting="220-relay.test\n220 ready") as relay, peer(relay) as client:
            relay.on("EHLO", b"250-relay.test\n250 bare LF\r\n")
            assert await client.reply() == b"220-relay.test\r\n220 ready\r\n"
            assert await client.ask(b"EHLO p") == b"250-relay.test\n250 bare LF\r\n"

    async def test_no_bytes_leave_the_command_unanswered(self) -> None:
        async with Relay() as relay, peer(relay) as client:
            relay.on("NOOP", b"")
            await client.reply()
            client.writer.write(b"NOOP\r\n")
            assert (await client.ask(b"RSET")).startswith(b"250")

    async def test_ehlo_refused_and_helo_accepted(self) -> None:
        async with Relay() as relay, peer(relay) as client:
            relay.on("EHLO", "502 5.5.1 what?")
            await client.reply()
            commands = (b"EHLO p", b"MAIL FROM:<>", b"HELO p", b"MAIL FROM:<>")
            assert [(await client.ask(c))[:3] for c in commands] == [b"502", b"503", b"250", b"250"]

    @pytest.mark.parametrize("together", [True, False], ids=["one segment", "in mid content"])
    async def test_a_552_behind_the_354_is_the_contents_reply(self, together: bool) -> None:
        async with Relay() as relay:
            first = "354 go"
            late: tuple[str, ...] | tuple[str, Hear, str] = (first, Hear(10), "552 5.3.4 too big")
            relay.on("DATA", f"{first}\n552 5.3.4 too big" if together else late)
            async with peer(relay) as client:
                await client.greeted()
                client.writer.write(ENVELOPE + b"DATA\r\n")
                assert [(await client.reply())[:3] for _ in range(3)] == [b"250", b"250", b"354"]
                client.writer.write(b"0123456789")
                assert (await client.reply()).startswith(b"552")
                client.writer.write(b"\r\n.\r\n")
                assert (await client.ask(b"NOOP")) == b"250 2.0.0 Ok\r\n"
                assert relay.mails[0].reply == b"552 5.3.4 too big\r\n"

    async def test_354_and_552_come_in_one_segment(self) -> None:
        async with Relay() as relay:
            relay.on("DATA", ("354 go\n552 5.3.4 too big", Close()))
            heard = await segments(relay, b"HELO p\r\n" + ENVELOPE + b"DATA\r\n", last=b"552 5.3.4 too big\r\n")
            assert heard[-1].endswith(b"354 go\r\n552 5.3.4 too big\r\n")

    async def test_a_250_to_data_takes_no_content(self) -> None:
        async with Relay() as relay, peer(relay) as client:
            relay.on("DATA", "250 2.0.0 what content?")
            await client.greeted()
            client.writer.write(ENVELOPE + b"DATA\r\nNOOP\r\n")
            assert [(await client.reply())[:3] for _ in range(4)] == [b"250"] * 4
            assert relay.mails == []

    async def test_a_lone_dot_behind_refused_recipients_is_refused(self) -> None:
        async with Relay() as relay, peer(relay) as client:
            relay.on("RCPT", "550 5.1.1 no")
            relay.on("DATA", "354 go on")
            await client.greeted()
            client.writer.write(ENVELOPE + b"DATA\r\n.\r\n")
            assert [(await client.reply())[:3] for _ in range(4)] == [b"250", b"550", b"354", b"554"]

    def test_an_unknown_verb_cannot_be_scripted(self) -> None:
        with pytest.raises(ValueError, match="RCTP"):
            Relay().on("RCTP", "550 no")

    async def test_a_mistake_in_the_script_fails_the_test(self) -> None:
        async def negotiate() -> None:
            async with Relay() as relay, peer(relay) as client:
                relay.on("STARTTLS", "220 but no context")
                await client.greeted()
                await client.ask(b"STARTTLS")
                assert await client.rest() == b""

        with pytest.raises(ValueError, match="context"):
            await negotiate()


class TestActions:
    @pytest.mark.parametrize(
        ("answer", "pieces"),
        [
            pytest.param(Split("250 split", at=2), [b"25", b"0 split\r\n"], id="split"),
            pytest.param(Drip("250 k"), [b"2", b"5", b"0", b" ", b"k", b"\r", b"\n"], id="drip"),
            pytest.param(Drip(b"250 k\r\n", size=3), [b"250", b" k\r", b"\n"], id="drip by three"),
            pytest.param((Split("250-a", at=1), "250 b"), [b"2", b"50-a\r\n", b"250 b\r\n"], id="sequence"),
        ],
    )
    async def test_pieces_arrive_as_segments(self, answer: Split | Drip, pieces: list[bytes]) -> None:
        async with Relay(greeting=answer) as relay:
            assert await segments(relay, b"", last=b"".join(pieces)) == pieces

    async def test_a_stalled_relay_goes_on_recording(self) -> None:
        async with Relay() as relay, peer(relay) as client:
            relay.on("MAIL", Stall())
            await client.greeted()
            client.writer.write(ENVELOPE + b"DATA\r\n")
            await relay.seen("MAIL")
            client.writer.write(b"QUIT\r\n")
            client.writer.write_eof()
            await relay.closed()
            assert relay.sessions[0].wire.endswith(ENVELOPE + b"DATA\r\nQUIT\r\n")
            assert relay.commands[-1] == "MAIL FROM:<ann@ours.test>"
            assert await client.rest() == b""

    @pytest.mark.parametrize(
        "answer",
        [
            pytest.param(Stall(), id="stalled"),
            pytest.param(Close(), id="half closed"),
            pytest.param(StopReading(), id="black hole"),
            pytest.param(Wait(asyncio.Event()), id="waiting"),
            pytest.param(Hear(), id="listening"),
            pytest.param("220 ready", id="idle"),
        ],
    )
    async def test_the_end_cuts_whatever_is_open(self, answer: Stall | Close | StopReading | Wait | Hear | str) -> None:
        async with asyncio.timeout(1), AsyncExitStack() as open_peers:
            async with Relay(greeting=answer) as relay:
                peers = [await open_peers.enter_async_context(peer(relay)) for _ in range(3)]
                await relay.connected(3)
            for client in peers:
                await client.rest()

    async def test_close_is_a_fin_behind_what_was_said(self) -> None:
        async with Relay() as relay, peer(relay) as client:
            relay.on("MAIL", ("421 4.3.2 bye", Close()))
            await client.greeted()
            client.writer.write(ENVELOPE)
            assert await client.rest() == b"421 4.3.2 bye\r\n"
            client.writer.write(b"still there?\r\n")
            client.writer.close()
            await relay.closed()
            assert relay.sessions[0].wire.endswith(ENVELOPE + b"still there?\r\n")

    async def test_reset_is_a_reset(self) -> None:
        async with Relay() as relay, peer(relay) as client:
            relay.on("CONTENT", Reset())
            await client.greeted()
            client.writer.write(ENVELOPE + b"DATA\r\nx\r\n.\r\n")
            with pytest.raises(ConnectionResetError):
                await client.rest()
            await relay.closed()
            assert relay.mails[0].content == b"x\r\n"
            assert relay.mails[0].reply == b""

    async def test_wait_holds_the_answer_until_the_test_says_so(self) -> None:
        go = asyncio.Event()
        async with Relay() as relay, peer(relay) as client:
            relay.on("CONTENT", (Wait(go), "250 2.0.0 at last"))
            await client.greeted()
            client.writer.write(ENVELOPE + b"DATA\r\nx\r\n.\r\n")
            mail = await relay.mail()
            assert mail.reply == b""
            go.set()
            assert [(await client.reply()) for _ in range(4)][-1] == b"250 2.0.0 at last\r\n"
            assert mail.taken

    async def test_a_peer_that_leaves_ends_the_wait(self) -> None:
        async with Relay(greeting=(Wait(asyncio.Event()), "220 too late")) as relay:
            async with peer(relay):
                await relay.connected()
            await relay.closed()
            assert relay.sessions[0].sent == b""

    async def test_an_idle_connection_is_closed_when_the_test_says_so(self) -> None:
        idle_is_over = asyncio.Event()
        async with Relay() as relay, peer(relay) as client:
            relay.on("RSET", ("250 2.0.0 Ok", Wait(idle_is_over), "421 4.4.2 idle", Close()))
            await client.greeted()
            await client.ask(b"RSET")
            idle_is_over.set()
            assert await client.rest() == b"421 4.4.2 idle\r\n"

    async def test_the_content_can_be_cut_in_the_middle(self) -> None:
        async with Relay() as relay, peer(relay) as client:
            relay.on("DATA", ("354 go", Hear(1000), Reset()))
            await client.greeted()
            client.writer.write(ENVELOPE + b"DATA\r\n")
            for _ in range(3):
                await client.reply()
            client.writer.write(b"x" * 1000)
            with pytest.raises(ConnectionResetError):
                await client.rest()
            assert relay.mails == []

    async def test_a_black_hole_blocks_the_writer(self) -> None:
        async with Relay() as relay, peer(relay) as client:
            relay.on("DATA", ("354 go", StopReading()))
            await client.greeted()
            client.writer.write(ENVELOPE + b"DATA\r\n")
            for _ in range(3):
                await client.reply()
            client.writer.write(b"x" * 20_000_000)
            transport = client.writer.transport
            left = transport.get_write_buffer_size() + 1
            while transport.get_write_buffer_size() < left:
                left = transport.get_write_buffer_size()
                for _ in range(100):
                    await asyncio.sleep(0)
            assert left > 1_000_000
            assert len(relay.sessions[0].wire) < 1000

    @pytest.mark.parametrize(
        ("greeting", "heard"),
        [
            pytest.param("554 5.3.2 no", b"554 5.3.2 no\r\n", id="refused"),
            pytest.param(b"HTTP/1.1 400 Bad Request\r\n\r\n", b"HTTP/1.1 400 Bad Request\r\n\r\n", id="http"),
            pytest.param(b"\x00\xff" * 3, b"\x00\xff" * 3, id="binary"),
            pytest.param("220 a\n220 b", b"220 a\r\n220 b\r\n", id="twice"),
            pytest.param((), b"", id="silent"),
            pytest.param(Stall(), b"", id="stalled"),
            pytest.param(Close(), b"", id="closed"),
            pytest.param(Hear(4), b"", id="deaf at first"),
            pytest.param(Drip("220 slow"), b"220 slow\r\n", id="drip"),
        ],
    )
    async def test_the_greeting_takes_every_answer(
        self, greeting: str | bytes | Stall | Close | Hear | Drip, heard: bytes
    ) -> None:
        async with Relay(greeting=greeting) as relay, peer(relay) as client:
            await relay.connected()
            client.writer.write_eof()
            assert await client.rest() == heard

    async def test_only_the_first_greeting_is_refused(self) -> None:
        async with Relay() as relay:
            relay.on("GREETING", ("421 4.3.2 busy", Close()), times=1)
            async with peer(relay) as first, peer(relay) as second:
                assert await first.rest() == b"421 4.3.2 busy\r\n"
                assert await second.reply() == GREETING
            assert relay.connections == 2


class TestTLS:
    async def test_starttls_begins_anew_and_the_wire_is_kept_in_clear(self) -> None:
        async with Relay(tls=certificates().server()) as relay, peer(relay) as client:
            await client.reply()
            assert b"250-STARTTLS\r\n" in await client.ask(b"EHLO peer.test")
            await upgrade(client, trusting())
            assert (await client.ask(b"MAIL FROM:<>")).startswith(b"503")
            assert b"STARTTLS" not in await client.ask(b"EHLO again.test")
            assert relay.sessions[0].tls
            client.writer.write(ENVELOPE + b"DATA\r\nx\r\n.\r\nQUIT\r\n")
            assert [(await client.reply())[:3] for _ in range(5)] == [b"250", b"250", b"354", b"250", b"221"]
            assert await client.rest() == b""
            assert bytes(relay.sessions[0].wire) == (
                b"EHLO peer.test\r\nSTARTTLS\r\nMAIL FROM:<>\r\nEHLO again.test\r\n"
                + ENVELOPE
                + b"DATA\r\nx\r\n.\r\nQUIT\r\n"
            )
            await relay.closed()

    async def test_implicit_tls_comes_before_the_greeting(self) -> None:
        async with Relay(tls=certificates().server(), implicit=True) as relay:
            async with peer(relay, trusting()) as client:
                assert await client.reply() == GREETING
                assert b"STARTTLS" not in await client.ask(b"EHLO p")
                assert (await client.ask(b"QUIT")).startswith(b"221")
            await relay.closed()
            assert relay.sessions[0].wire == b"EHLO p\r\nQUIT\r\n"

    async def test_large_content_goes_through_tls(self) -> None:
        tls, content = certificates().server(), (b"0123456789abcdef" * 60 + b"\r\n") * 1000
        async with Relay(tls=tls, implicit=True) as relay, peer(relay, trusting()) as client:
            await client.greeted()
            client.writer.write(ENVELOPE + b"DATA\r\n" + content + b".\r\n")
            assert (await relay.mail()).content == content

    async def test_starttls_is_taken_but_not_offered(self) -> None:
        async with Relay(tls=certificates().server(), offer_starttls=False) as relay, peer(relay) as client:
            await client.reply()
            assert b"STARTTLS" not in await client.ask(b"EHLO p")
            assert (await client.ask(b"STARTTLS")).startswith(b"502")

    async def test_starttls_is_offered_but_a_lie(self) -> None:
        async with Relay(extensions=("STARTTLS",)) as relay, peer(relay) as client:
            await client.reply()
            assert b"250-STARTTLS\r\n" in await client.ask(b"EHLO p")
            assert (await client.ask(b"STARTTLS")).startswith(b"454")

    async def test_starttls_with_another_certificate(self) -> None:
        async with Relay(tls=certificates().server()) as relay, peer(relay) as client:
            relay.on("STARTTLS", StartTLS(certificates().expired()))
            await client.greeted()
            with pytest.raises(ssl.SSLCertVerificationError, match="expired"):
                await upgrade(client, trusting())

    async def test_plain_text_is_injected_behind_the_220(self) -> None:
        async with Relay(tls=certificates().server()) as relay, peer(relay) as client:
            relay.on("STARTTLS", "220 go\n250 injected")
            await client.greeted()
            assert (await client.ask(b"STARTTLS")) == b"220 go\r\n"
            assert await client.reply() == b"250 injected\r\n"
            await client.writer.start_tls(trusting(), server_hostname="localhost")
            assert (await client.ask(b"NOOP")).startswith(b"250")

    async def test_garbage_answers_the_client_hello(self) -> None:
        async with Relay(tls=certificates().server()) as relay, peer(relay) as client:
            relay.on("STARTTLS", GarbageInsteadOfTLS())
            await client.greeted()
            with pytest.raises(ssl.SSLError, match="WRONG_VERSION_NUMBER"):
                await upgrade(client, trusting())
            assert not relay.sessions[0].tls
            assert b"STARTTLS\r\n\x16\x03" in relay.sessions[0].wire

    @pytest.mark.parametrize("cut", [Close(), Reset()], ids=["fin", "rst"])
    async def test_the_handshake_is_cut(self, cut: Close | Reset) -> None:
        async with Relay(tls=certificates().server()) as relay, peer(relay) as client:
            relay.on("STARTTLS", ("220 go", Hear(), cut))
            await client.greeted()
            with pytest.raises((ConnectionError, ssl.SSLEOFError)):
                await upgrade(client, trusting())

    @pytest.mark.parametrize("close", [Close(), Close(close_notify=False)], ids=["close_notify", "cut"])
    async def test_close_under_tls_keeps_recording(self, close: Close) -> None:
        async with Relay(tls=certificates().server(), implicit=True) as relay:
            relay.on("NOOP", ("421 4.3.2 bye", close))
            loop, answer = asyncio.get_running_loop(), bytearray()
            with socket.create_connection((relay.host, relay.port)) as plain:
                plain.setblocking(False)
                into, out = ssl.MemoryBIO(), ssl.MemoryBIO()
                tls = trusting().wrap_bio(into, out, server_hostname="localhost")

                async def until(done: Callable[[], object]) -> None:
                    while True:
                        try:
                            done()
                            break
                        except ssl.SSLWantReadError:
                            await loop.sock_sendall(plain, out.read())
                            if heard := await loop.sock_recv(plain, 65536):
                                into.write(heard)
                            else:
                                into.write_eof()
                    await loop.sock_sendall(plain, out.read())

                await until(tls.do_handshake)
                await until(lambda: answer.extend(tls.read(100)))
                await until(lambda: tls.write(b"NOOP\r\n"))
                await until(lambda: answer.extend(tls.read(100)))
                if close.close_notify:
                    await until(lambda: answer.extend(tls.read(100)))
                else:
                    with pytest.raises(ssl.SSLError, match=r"(?i)eof"):
                        await until(lambda: answer.extend(tls.read(100)))
            await relay.closed()
            assert answer == GREETING + b"421 4.3.2 bye\r\n"
            assert relay.sessions[0].wire == b"NOOP\r\n"

    @pytest.mark.parametrize(
        ("context", "says"),
        [
            pytest.param(certificates().self_signed, "self-signed", id="self-signed"),
            pytest.param(certificates().untrusted, "unable to get local issuer", id="unknown authority"),
            pytest.param(certificates().expired, "expired", id="expired"),
            pytest.param(certificates().wrong_name, "other.test|Hostname mismatch", id="wrong name"),
        ],
    )
    async def test_bad_certificates_are_bad(self, context: Callable[[], ServerContext], says: str) -> None:
        async with Relay(tls=context(), implicit=True) as relay:
            with pytest.raises(ssl.SSLCertVerificationError, match=says):
                async with peer(relay, trusting()):
                    pass
            await relay.closed()

    async def test_the_self_signed_certificate_can_be_trusted_by_itself(self) -> None:
        tls, trust = certificates().self_signed(), trusting(certificates().self_signed_file)
        async with Relay(tls=tls, implicit=True) as relay, peer(relay, trust) as client:
            assert await client.reply() == GREETING

    async def test_a_version_too_old_is_told_by_an_alert(self) -> None:
        async with Relay(tls=certificates().tls10_only(), implicit=True) as relay:
            with pytest.raises(ssl.SSLError, match="ALERT_PROTOCOL_VERSION"):
                async with peer(relay, trusting()):
                    pass

    async def test_a_relay_knows_its_certificate_and_by_what_name_it_was_asked_for(self) -> None:
        tls = certificates().server()
        async with Relay(tls=tls, implicit=True) as relay, peer(relay, trusting()) as client:
            shown = client.writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
            assert (hashlib.sha256(shown).hexdigest(), tls.asked_for) == (tls.sha256, ["localhost"])

    @pytest.mark.parametrize("file", ["client_file", "stranger_file", None])
    async def test_a_clients_certificate_is_demanded(self, file: str | None) -> None:
        """Under TLS 1.2 in the handshake; under TLS 1.3 the client's own is done before it hears of it."""
        client_side = trusting()
        if file is not None:
            client_side.load_cert_chain(getattr(certificates(), file))
        expected = {"client_file": GREETING, "stranger_file": b"ALERT_UNKNOWN_CA", None: b"CERTIFICATE_REQUIRED"}[file]
        async with Relay(tls=certificates().tls13_demanding(), implicit=True) as relay:
            async with peer(relay, client_side) as client:
                try:
                    heard = await client.reply()
                except ssl.SSLError as error:
                    heard = str(error).encode()
            assert expected in heard
        async with Relay(tls=certificates().tls12_demanding(), implicit=True) as relay:
            if file == "client_file":
                async with peer(relay, client_side) as client:
                    assert await client.reply() == GREETING
            else:
                with pytest.raises(ssl.SSLError, match="ALERT"):
                    async with peer(relay, client_side):
                        pass


def b64(text: str | bytes) -> bytes:
    return base64.b64encode(text.encode() if isinstance(text, str) else text)


USERS = {"bot": "secret", "jörg": "pass wörd:%" * 20}


class TestAuth:
    @pytest.mark.parametrize(("user", "password"), USERS.items(), ids=["ascii", "utf-8"])
    @pytest.mark.parametrize(("wrong", "code"), [("", b"235"), ("!", b"535")], ids=["right", "wrong"])
    @pytest.mark.parametrize("way", ["PLAIN", "PLAIN initial", "LOGIN", "LOGIN initial", "CRAM-MD5"])
    async def test_credentials_are_checked(self, way: str, user: str, password: str, wrong: str, code: bytes) -> None:
        password += wrong
        async with (
            Relay(auth=("PLAIN", "LOGIN", "CRAM-MD5"), users=USERS) as relay,
            peer(relay) as client,
        ):
            await client.reply()
            assert b"250-AUTH PLAIN LOGIN CRAM-MD5\r\n" in await client.ask(b"EHLO p")
            match way:
                case "PLAIN":
                    assert await client.ask(b"AUTH PLAIN") == b"334 \r\n"
                    verdict = await client.ask(b64(f"\0{user}\0{password}"))
                case "PLAIN initial":
                    verdict = await client.ask(b"AUTH PLAIN " + b64(f"\0{user}\0{password}"))
                case "LOGIN":
                    assert await client.ask(b"AUTH LOGIN") == b"334 VXNlcm5hbWU6\r\n"
                    assert await client.ask(b64(user)) == b"334 UGFzc3dvcmQ6\r\n"
                    verdict = await client.ask(b64(password))
                case "LOGIN initial":
                    assert await client.ask(b"AUTH LOGIN " + b64(user)) == b"334 UGFzc3dvcmQ6\r\n"
                    verdict = await client.ask(b64(password))
                case _:
                    challenge = base64.b64decode((await client.ask(b"AUTH CRAM-MD5"))[4:])
                    mac = hmac.new(password.encode(), challenge, "md5")
                    verdict = await client.ask(b64(f"{user} {mac.hexdigest()}"))
            assert verdict[:3] == code
            assert relay.sessions[0].authenticated == (code == b"235")

    @pytest.mark.parametrize(
        ("commands", "code"),
        [
            pytest.param([b"AUTH PLAIN !!"], b"501", id="not base64"),
            pytest.param([b"AUTH PLAIN " + b64("bot")], b"501", id="no separators"),
            pytest.param([b"AUTH PLAIN " + b64(b"\0\xff\0\xff")], b"501", id="not utf-8"),
            pytest.param([b"AUTH PLAIN", b"*"], b"501", id="cancelled"),
            pytest.param([b"AUTH LOGIN"], b"504", id="mechanism not offered"),
            pytest.param([b"AUTH"], b"504", id="no mechanism"),
            pytest.param([b"AUTH PLAIN " + b64("\0nobody\0")], b"535", id="unknown user"),
        ],
    )
    async def test_a_failed_auth_is_named(self, commands: list[bytes], code: bytes) -> None:
        async with Relay(auth=("PLAIN",)) as relay, peer(relay) as client:
            await client.greeted()
            for command in commands:
                verdict = await client.ask(command)
            assert verdict[:3] == code

    async def test_cram_md5_knows_no_unknown_user(self) -> None:
        async with Relay(auth=("CRAM-MD5",)) as relay, peer(relay) as client:
            await client.greeted()
            challenge = base64.b64decode((await client.ask(b"AUTH CRAM-MD5"))[4:])
            digest = hmac.new(b"", challenge, "md5").hexdigest()
            assert (await client.ask(b64(f"nobody {digest}"))).startswith(b"535")

    async def test_auth_and_its_continuation_are_scripted(self) -> None:
        async with Relay(auth=("XOAUTH2",)) as relay, peer(relay) as client:
            relay.on("AUTH", "334 eyJzdGF0dXMiOiI0MDEifQ==")
            relay.on("AUTH2", "535 5.7.8 token expired")
            await client.greeted()
            assert (await client.ask(b"AUTH XOAUTH2 dG9rZW4=")).startswith(b"334 ey")
            assert await client.ask(b"") == b"535 5.7.8 token expired\r\n"
            assert relay.commands[-2:] == ["AUTH XOAUTH2 dG9rZW4=", ""]
            assert (await client.ask(b"NOOP")).startswith(b"250")

    async def test_auth_is_offered_only_under_tls(self) -> None:
        tls = certificates().server()
        async with Relay(tls=tls, auth=("PLAIN",), auth_only_under_tls=True) as relay, peer(relay) as client:
            await client.reply()
            assert b"AUTH" not in await client.ask(b"EHLO p")
            login = b"AUTH PLAIN " + b64("\0bot\0secret")
            assert (await client.ask(login)).startswith(b"538")
            await upgrade(client, trusting())
            assert b"AUTH PLAIN" in await client.ask(b"EHLO p")
            assert (await client.ask(login)).startswith(b"235")

    async def test_mail_needs_auth_where_it_is_required(self) -> None:
        async with Relay(auth=("PLAIN",), auth_required=True) as relay, peer(relay) as client:
            await client.greeted()
            assert (await client.ask(b"MAIL FROM:<>")) == b"530 5.7.0 Authentication required\r\n"
            await client.ask(b"AUTH PLAIN " + b64("\0bot\0secret"))
            assert (await client.ask(b"MAIL FROM:<>")).startswith(b"250")


class TestSignals:
    async def test_seen_waits_for_commands_of_all_connections(self) -> None:
        async with Relay() as relay:
            waiting = asyncio.ensure_future(relay.seen("NOOP", count=3))
            async with peer(relay) as first, peer(relay) as second:
                await first.reply()
                await second.reply()
                first.writer.write(b"noop\r\nNOOP\r\n")
                await relay.seen("NOOP", count=2)
                assert not waiting.done()
                second.writer.write(b"NOOP x\r\n")
                await waiting
            await relay.closed(2)
            assert relay.commands == ["noop", "NOOP", "NOOP x"]

    async def test_what_came_with_the_fin_is_dealt_with_before_closed(self) -> None:
        async with Relay() as relay, peer(relay) as client:
            await client.reply()
            client.writer.write(b"HELO p\r\nQUIT\r\n")
            client.writer.close()
            await relay.closed()
            assert relay.commands == ["HELO p", "QUIT"]

    async def test_waiting_in_vain_says_what_was_seen(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("tests.support.relay.PATIENCE", 0.01)
        async with Relay() as relay, peer(relay) as client:
            await client.reply()
            await client.ask(b"NOOP")
            with pytest.raises(TimeoutError, match=r"1 DATA; commands: \['NOOP'\]"):
                await relay.seen("DATA")
