"""A relay's name with several addresses: where one does not serve us, the next one does within the same attempt.

RFC 5321 §5.1, RFC 8305. Never after a login was tried: a second one may lock the account.
"""

import asyncio
import socket
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from app.mail.profile import TlsMode
from app.smtp.network import Resolve, SocketAddress, connect_to_any
from app.smtp.opening import MOST_ADDRESSES
from tests.support.factories import SHORT, Settings, address_of, attempt, on_both_loops, timeouts
from tests.support.relay import Close, Relay, Stall
from tests.support.tls import Answer, certificates

NONE, OPPORTUNISTIC, STARTTLS, IMPLICIT = TlsMode.NONE, TlsMode.OPPORTUNISTIC, TlsMode.STARTTLS, TlsMode.IMPLICIT
FIRST, SECOND = "127.0.0.1", "127.0.0.2"
LOGGING_IN: Settings = {"username": "bot", "password": "secret"}
Script = list[tuple[str, Answer]]

# What the first address does, and how the profile is set.
FAULTS: Mapping[str, tuple[Script, Settings]] = {
    "greets-421": ([("GREETING", "421 4.3.2 busy")], {}),
    "greets-421-too-many": ([("GREETING", "421 4.7.0 too many connections")], {}),
    "greets-450": ([("GREETING", "450 4.3.2 later")], {}),
    "greets-554": ([("GREETING", "554 no")], {}),
    "greets-not-at-all": ([("GREETING", Stall())], {"timeouts": timeouts(greeting=SHORT)}),
    "closes": ([("GREETING", Close())], {}),
    "is-a-web-server": ([("GREETING", b"HTTP/1.1 400 Bad Request\r\n\r\n")], {}),
    "refuses-ehlo": ([("EHLO", "550 no"), ("HELO", "550 no")], {}),
    "refuses-ehlo-for-now": ([("EHLO", "421 4.3.0 no"), ("HELO", "421 4.3.0 no")], {}),
    "closes-at-ehlo": ([("EHLO", Close())], {}),
    "offers-no-starttls": ([("EHLO", "250 relay.test")], {"tls": STARTTLS}),
    "refuses-starttls": ([("STARTTLS", "454 4.7.0 not now")], {"tls": STARTTLS}),
    "closes-at-starttls": ([("STARTTLS", Close())], {"tls": STARTTLS}),
    "closes-in-the-handshake": ([("STARTTLS", ("220 go", Close()))], {"tls": STARTTLS}),
    "offers-no-auth": ([("EHLO", "250 relay.test")], {"tls": NONE, **LOGGING_IN}),
    "closes-opportunistically": ([("GREETING", Close())], {"tls": OPPORTUNISTIC}),
}


def one_after_the_other(*relays: Relay) -> Resolve:
    async def resolve(_host: str, _port: int) -> list[SocketAddress]:
        return [address_of(relay.port, relay.host) for relay in relays]

    return resolve


def pair(**said: Any) -> tuple[Relay, Relay]:
    return Relay(host=FIRST, tls=certificates().server(), **said), Relay(
        host=SECOND, tls=certificates().server(), **said
    )


@pytest.mark.parametrize(("script", "said"), FAULTS.values(), ids=FAULTS)
@on_both_loops
async def test_the_next_address_is_tried_where_one(script: Script, said: Settings) -> None:
    first, second = pair(auth=("PLAIN",))
    async with first, second:
        for verb, answer in script:
            first.on(verb, answer)
        tried = await attempt(second, resolve=one_after_the_other(first, second), **said)
        assert tried.in_words == "sent"
        assert tried.attempt.ip == SECOND
        assert (len(first.mails), len(second.mails)) == (0, 1)
        assert any(FIRST in line and who == "C" for _, who, line in tried.attempt.transcript)


@pytest.mark.parametrize("mode", [STARTTLS, IMPLICIT])
@pytest.mark.parametrize("certificate", ["untrusted", "expired", "wrong_name", "rsa_cipher_only", "tls13_demanding"])
@on_both_loops
async def test_the_next_address_is_tried_where_tls_fails(certificate: str, mode: TlsMode) -> None:
    bad: Callable[[], Any] = getattr(certificates(), certificate)
    first = Relay(host=FIRST, tls=bad(), implicit=mode is IMPLICIT)
    second = Relay(host=SECOND, tls=certificates().server(), implicit=mode is IMPLICIT)
    async with first, second:
        tried = await attempt(second, tls=mode, resolve=one_after_the_other(first, second))
        assert tried.in_words == "sent"
        seen = tried.attempt
        assert (seen.ip, seen.tls, seen.tls_verified, seen.tls_error) == (SECOND, True, True, None)


@pytest.mark.parametrize("reply", ["535 5.7.8 no", "454 4.7.0 later", "421 4.7.0 bye", "504 5.5.4 what?"])
@on_both_loops
async def test_no_other_address_is_tried_after_a_login(reply: str) -> None:
    first, second = pair(auth=("PLAIN",))
    async with first, second:
        first.on("AUTH", reply)
        tried = await attempt(second, resolve=one_after_the_other(first, second), **LOGGING_IN)
        assert tried.attempt.ip == FIRST
        assert second.connections == 0


@on_both_loops
async def test_where_none_serves_us_the_failure_is_that_of_the_one_that_got_furthest() -> None:
    first, second = pair()
    third = Relay(host="127.0.0.3")
    async with first, second, third:
        first.on("GREETING", "421 4.3.2 busy")
        second.on("EHLO", "550 5.7.1 bad name")
        second.on("HELO", "550 5.7.1 bad name")
        third.on("GREETING", Close())
        tried = await attempt(second, resolve=one_after_the_other(first, second, third))
        assert tried.in_words == "EPROTOCOL/helo_refused C"
        assert (tried.attempt.ip, tried.attempt.phase) == (SECOND, "ehlo")
        assert [relay.connections for relay in (first, second, third)] == [1, 1, 1]


@on_both_loops
async def test_so_many_addresses_are_tried_and_no_more() -> None:
    relays = [Relay(host=f"127.0.0.{number}") for number in range(1, MOST_ADDRESSES + 3)]
    for relay in relays:
        await relay.__aenter__()
        relay.on("GREETING", "421 4.3.2 busy")
    tried = await attempt(relays[0], resolve=one_after_the_other(*relays))
    assert tried.in_words == "ECONNECTION/service_unavailable T"
    assert [relay.connections for relay in relays] == [1] * MOST_ADDRESSES + [0, 0]
    for relay in relays:
        await relay.__aexit__(None, None, None)


@on_both_loops
async def test_an_address_that_is_silent_costs_a_moment_and_not_half_of_the_time() -> None:
    """The kernel drops every SYN to a listener whose backlog is full."""
    with socket.socket() as listener, socket.socket() as full:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        full.connect(listener.getsockname())
        async with Relay() as relay:
            there = [address_of(listener.getsockname()[1]), address_of(relay.port)]
            began = asyncio.get_running_loop().time()
            sock, (_, address) = await connect_to_any(there, within=60)
            sock.close()
            assert address[1] == relay.port
            assert asyncio.get_running_loop().time() - began < 30
