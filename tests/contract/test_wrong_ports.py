"""What a failure says where the port is not a relay's, or not in this TLS mode: what answers there, and what to set.

As the service does it: an attempt, and then a look at what listens there.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from time import perf_counter

import pytest

from app.mail.outcome import Failure, Phase
from app.mail.profile import TlsMode
from app.smtp.banners import server_of
from app.smtp.ports import Ports
from tests.support.factories import (
    SHORT,
    Settings,
    as_hinted,
    attempt,
    leading_to,
    make_profile,
    on_both_loops,
    timeouts,
)
from tests.support.relay import Relay, Stall
from tests.support.tls import ServerContext, certificates

NONE, OPPORTUNISTIC, STARTTLS, IMPLICIT = TlsMode.NONE, TlsMode.OPPORTUNISTIC, TlsMode.STARTTLS, TlsMode.IMPLICIT
HURRIED: Settings = {"timeouts": timeouts(**dict.fromkeys(("tls", "starttls", "greeting"), SHORT))}
LOGGING_IN: Settings = {"username": "bot", "password": "secret"}
BANNERS = {
    "imap": (b"* OK [CAPABILITY IMAP4rev1] Dovecot ready.\r\n", "an IMAP server"),
    "pop3": (b"+OK Dovecot ready.\r\n", "a POP3 server"),
    "ssh": (b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n", "an SSH server"),
}


@asynccontextmanager
async def listening(banner: bytes = b"", *, web: bool = False, tls: ServerContext | None = None) -> AsyncIterator[int]:
    """Listen as a server that says its banner, or waits for a request and answers it as web servers do."""
    held: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        held.append(writer)
        writer.write(banner)
        while web and (said := await reader.read(1000)):
            writer.write(
                b"HTTP/1.1 200 OK\r\n\r\n" if said.startswith(b"HEAD") else b"HTTP/1.1 400 Bad Request\r\n\r\n"
            )
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    async with server:
        yield server.sockets[0].getsockname()[1]
        for writer in held:
            writer.transport.abort()


async def explained(port: int, settings: Settings, *, usual: tuple[int, ...] = ()) -> Failure:
    said: Settings = {"port": port, **HURRIED, **settings}
    failure = (await attempt(port, **said)).attempt.failure
    assert failure is not None

    ports = Ports(resolve=leading_to(port), clock=perf_counter, patience=SHORT)
    return await ports.explained(make_profile(**said), failure, usual_ports=usual)


@pytest.mark.parametrize("mode", TlsMode)
@pytest.mark.parametrize(("banner", "server"), BANNERS.values(), ids=BANNERS)
@on_both_loops
async def test_another_server_is_named_by_its_banner(banner: bytes, server: str, mode: TlsMode) -> None:
    async with listening(banner) as port, Relay() as relay:
        failure = await explained(port, {"tls": mode}, usual=(relay.port,))
        assert (failure.code, failure.reason, failure.cls) == ("EPROTOCOL", "not_smtp", "configuration")
        assert server in failure.hint
        assert f"port = {relay.port}" in failure.hint


@pytest.mark.parametrize("mode", TlsMode)
@pytest.mark.parametrize("hides", [False, True], ids=["http", "https"])
@on_both_loops
async def test_a_web_server_is_named_in_every_mode_and_no_mode_is_said_to_cure_it(mode: TlsMode, hides: bool) -> None:
    tls = certificates().server() if hides else None
    async with listening(web=True, tls=tls) as port, Relay() as relay:
        failure = await explained(port, {"tls": mode}, usual=(relay.port,))
        assert (failure.reason, failure.cls) == ("not_smtp", "configuration")
        assert "a web server" in failure.hint
        assert f"set port = {relay.port}" in failure.hint
        assert ("tls =" in failure.hint) == (mode is IMPLICIT)  # the other port's


@pytest.mark.parametrize("mode", [NONE, OPPORTUNISTIC, STARTTLS])
@on_both_loops
async def test_a_silent_port_is_not_said_to_expect_tls_where_it_does_not(mode: TlsMode) -> None:
    async with listening() as port, Relay() as relay:
        failure = await explained(port, {"tls": mode}, usual=(relay.port,))
        assert failure.reason == "greeting_timeout"
        assert "implicit" not in failure.hint
        assert f"port = {relay.port}" in failure.hint


@pytest.mark.parametrize("mode", [NONE, OPPORTUNISTIC, STARTTLS])
@on_both_loops
async def test_a_relay_that_expects_tls_is_told_from_a_silent_port(mode: TlsMode) -> None:
    async with Relay(tls=certificates().server(), implicit=True) as relay:
        failure = await explained(relay.port, {"tls": mode})
        assert failure.hint.endswith('set tls = "implicit".')


WAYS: Mapping[str, tuple[Relay, Settings]] = {
    "starttls": (Relay(tls=certificates().server()), {}),
    "starttls-and-login": (Relay(tls=certificates().server(), auth=("PLAIN",), auth_required=True), LOGGING_IN),
    "nothing": (Relay(), {}),
    "login-in-clear": (Relay(auth=("PLAIN",), auth_required=True), {"host": "mail.test", **LOGGING_IN}),
    "no-login-in-clear": (Relay(), LOGGING_IN),
}


@pytest.mark.parametrize("way", WAYS)
async def test_what_the_hint_says_of_a_port_without_tls_is_then_sent(way: str) -> None:
    relay, said = WAYS[way]
    async with relay:
        failure = await explained(relay.port, {"tls": IMPLICIT, **said})
        assert failure.reason == "tls_mode_mismatch"
        settings = as_hinted("tls auth allow_cleartext_auth", {"tls": IMPLICIT, **said}, failure)
        settings.pop("ca_file", None)
        assert (await attempt(relay, **settings)).in_words == "sent"


@pytest.mark.parametrize("mode", [NONE, STARTTLS, IMPLICIT])
async def test_a_relay_that_greets_slowly_is_told_from_a_silent_port(mode: TlsMode) -> None:
    async with Relay(tls=certificates().server(), implicit=mode is IMPLICIT) as relay:
        relay.on("GREETING", Stall(), times=1)
        failure = await explained(relay.port, {"tls": mode})
        assert failure.reason == "greeting_timeout"
        assert "timeouts.greeting" in failure.hint
        assert "tls =" not in failure.hint


@on_both_loops
async def test_a_silent_port_that_hangs_up_on_a_handshake_is_no_tls_port() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server, Relay() as relay:
        failure = await explained(server.sockets[0].getsockname()[1], {"tls": IMPLICIT}, usual=(relay.port,))
        assert failure.reason == "tls_connection_lost"


async def test_what_was_found_is_remembered_and_nothing_is_asked_where_a_relay_has_served() -> None:
    async with Relay() as relay:
        relay.on("GREETING", Stall())
        profile = make_profile(port=relay.port, timeouts=HURRIED["timeouts"])
        failure = (await attempt(relay, **HURRIED)).attempt.failure
        assert failure is not None
        ports = Ports(resolve=leading_to(relay.port), clock=perf_counter, patience=SHORT)
        first = await ports.explained(profile, failure, usual_ports=())
        asked = relay.connections
        assert await ports.explained(profile, failure, usual_ports=()) == first
        assert relay.connections == asked
        await ports.explained(profile, failure, anew=True, usual_ports=())
        assert relay.connections > asked
        ports.served(profile)
        assert await ports.explained(profile, failure, usual_ports=()) is failure


@pytest.mark.parametrize("after", [SHORT * 2, SHORT * 0.9, SHORT * 0.6])
@on_both_loops
async def test_a_relay_that_hangs_up_after_a_long_silence_has_timed_out(after: float) -> None:
    async with Relay() as relay:
        patient = asyncio.Event()
        asyncio.get_running_loop().call_later(after, patient.set)

        async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await patient.wait()
            writer.close()

        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            tried = await attempt(relay, resolve=leading_to(port), timeouts=timeouts(greeting=SHORT))
            patient.set()
        assert tried.in_words == "ETIMEDOUT/greeting_timeout T"
        assert tried.attempt.phase is Phase.GREETING


@pytest.mark.parametrize(
    ("line", "server"),
    [
        ("220 (vsFTPd 3.0.5)", "an FTP server"),
        ("220 ProFTPD Server (Debian) [::ffff:10.0.0.1]", "an FTP server"),
        ("220 Microsoft FTP Service", "an FTP server"),
        ("220-FileZilla Server 1.7.0", "an FTP server"),
        ("220 ftp.example.org ESMTP Postfix", ""),
        ("220 mail.example.org ESMTP", ""),
        ("200 news.example.org InterNetNews NNRP server INN 2.7 ready (posting ok)", "a news server"),
        ("500 5.5.1 Unknown command, use LHLO", "an LMTP server"),
        ('"IMPLEMENTATION" "Dovecot Pigeonhole"', "a ManageSieve server"),
        ("RFB 003.008", "a VNC server"),
        ("* BYE too many connections", "an IMAP server"),
        ("HTTP/1.0 408 Request Time-out", "a web server"),
        ("hello", ""),
        ("", ""),
    ],
)
def test_a_server_is_told_by_its_first_line(line: str, server: str) -> None:
    assert server_of(line) == server


@pytest.mark.parametrize(
    ("greeting", "ehlo", "server"),
    [
        ("220 (vsFTPd 3.0.5)", "530 Please login with USER and PASS.", "an FTP server"),
        ("220 mda.test LMTP ready", "500 5.5.1 Use LHLO", "an LMTP server"),
        ("200 news.test InterNetNews ready (posting ok)", "500 what?", "a news server"),
    ],
)
@on_both_loops
async def test_a_server_that_greets_like_a_relay_is_told_too(greeting: str, ehlo: str, server: str) -> None:
    async with Relay(greeting=greeting) as relay:
        relay.on("EHLO", ehlo)
        relay.on("HELO", ehlo)
        tried = await attempt(relay)
        assert tried.in_words == "EPROTOCOL/not_smtp C"
        assert tried.attempt.failure is not None
        assert server in tried.attempt.failure.hint
