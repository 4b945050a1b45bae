"""The pool over real sockets: what is kept warm, what is replaced, who waits for whom, and how it all ends."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from app.mail.errors import TransactionError
from app.mail.outcome import Deferred, Rejected, Sent
from app.mail.profile import Profile, Timeouts, TlsMode
from app.smtp.session import Session
from tests.support.factories import (
    SHORT,
    Deliveries,
    Tried,
    make_attempt,
    make_claim,
    make_profile,
    marked,
    on_both_loops,
    timeouts,
    turns,
)
from tests.support.relay import Close, Conversation, Relay, Reset, Stall, StopReading, Wait
from tests.support.tls import Answer, ServerContext, certificates

SOON = 1.9  # seconds in which a connection that is to be closed must have been


def content(number: int) -> bytes:
    return b"Subject: %d\r\n\r\nthe mail with this number\r\n" % number


def verbs(session: Conversation) -> list[str]:
    return [command.split(" ")[0] for command in session.commands]


def is_sent(tried: Tried) -> bool:
    return all(isinstance(outcome, Sent) for outcome in tried.outcomes.values())


async def send(deliveries: Deliveries, profile: Profile, number: int = 1, **said: Any) -> Tried:
    return await deliveries.send(profile, make_claim(number=number, content=content(number)), **said)


async def lease(deliveries: Deliveries, profile: Profile) -> Session:
    return await deliveries.pool.lease(profile, make_attempt(profile))


# --- warm ------------------------------------------------------------------------------------------------


@on_both_loops
async def test_several_mails_go_over_one_connection_that_greets_once() -> None:
    async with Relay() as relay, Deliveries() as deliveries:
        profile = make_profile(port=relay.port)
        tried = [await send(deliveries, profile, number) for number in (1, 2, 3)]
        assert all(map(is_sent, tried))
        assert verbs(relay.sessions[0]) == ["EHLO", *["MAIL", "RCPT", "DATA"] * 3]
        assert [mail.content for mail in relay.mails] == [content(number) for number in (1, 2, 3)]
        assert "ehlo" in tried[0].attempt.phases
        assert "ehlo" not in tried[1].attempt.phases
        first, second = tried[0].attempt, tried[1].attempt
        assert (second.ip, second.port, second.extensions) == (first.ip, first.port, first.extensions)
    assert relay.connections == 1


@on_both_loops
async def test_a_warm_session_keeps_its_tls_and_its_login() -> None:
    async with Relay(tls=certificates().server(), auth=["PLAIN"]) as relay, Deliveries() as deliveries:
        profile = make_profile(port=relay.port, tls=TlsMode.STARTTLS, username="bot", password="secret")
        first, second = [(await send(deliveries, profile, number)).attempt for number in (1, 2)]
        assert (second.tls, second.tls_version, second.tls_verified, second.auth) == (
            True,
            first.tls_version,
            True,
            "PLAIN",
        )
        assert verbs(relay.sessions[0])[-6:] == ["MAIL", "RCPT", "DATA"] * 2
        assert relay.commands.count("STARTTLS") == 1


@pytest.mark.parametrize("extensions", [("PIPELINING",), ()], ids=["pipelined", "step-by-step"])
async def test_after_a_refusal_comes_rset_and_the_next_mail_on_the_same_connection(extensions: Sequence[str]) -> None:
    async with Relay(extensions=extensions) as relay, Deliveries() as deliveries:
        relay.on("RCPT", "550 5.1.1 unknown", times=1)
        profile = make_profile(port=relay.port, max_connections=1)
        refused = await send(deliveries, profile, 1)
        assert [type(outcome) for outcome in refused.outcomes.values()] == [Rejected]
        assert is_sent(await send(deliveries, profile, 2))
        asked = ["MAIL", "RCPT", "DATA"] if extensions else ["MAIL", "RCPT"]
        assert verbs(relay.sessions[0]) == ["EHLO", *asked, "RSET", "MAIL", "RCPT", "DATA"]
        assert [mail.content for mail in relay.mails] == [content(2)]


@pytest.mark.parametrize(
    "answer", ["451 4.3.0 no", "421 4.3.2 bye", Close(), Stall()], ids=["451", "421", "closed", "unanswered"]
)
async def test_a_session_that_cannot_be_reset_is_closed_and_its_place_given_on(answer: Answer) -> None:
    async with Relay() as relay, Deliveries() as deliveries:
        relay.on("DATA", "451 4.3.0 not now", times=1)
        relay.on("RSET", answer)
        profile = make_profile(port=relay.port, max_connections=1, timeouts=timeouts(reset=SHORT))
        await send(deliveries, profile, 1)
        assert is_sent(await send(deliveries, profile, 2))
        assert relay.connections == 2
        await relay.closed(1)


IDLE_ENDS: dict[str, Answer] = {
    "fin": Close(),
    "rst": Reset(),
    "421-and-fin": ("421 4.4.2 idle for too long", Close()),
    "421-and-no-more": ("421 4.4.2 idle for too long", Stall()),
}


@on_both_loops
@pytest.mark.parametrize("end", IDLE_ENDS.values(), ids=IDLE_ENDS)
async def test_a_connection_that_the_relay_closed_while_idle_is_replaced_silently(end: Answer) -> None:
    async with Relay() as relay, Deliveries() as deliveries:
        now = asyncio.Event()
        relay.on("CONTENT", ("250 2.0.0 fine", Wait(now), *(end if isinstance(end, tuple) else (end,))), times=1)
        profile = make_profile(port=relay.port, max_connections=1)
        await send(deliveries, profile, 1)
        now.set()
        await turns()
        second = await send(deliveries, profile, 2)
        assert is_sent(second)
        assert second.attempt.failure is None
        assert [mail.content for mail in relay.mails] == [content(1), content(2)]
        assert verbs(relay.sessions[1]) == ["EHLO", "MAIL", "RCPT", "DATA"]


@on_both_loops
@pytest.mark.parametrize("end", [Close(), Reset()], ids=["fin", "rst"])
async def test_a_warm_connection_that_dies_under_mail_is_replaced_in_the_same_attempt(end: Answer) -> None:
    async with Relay() as relay, Deliveries() as deliveries:
        profile = make_profile(port=relay.port, max_connections=1)
        await send(deliveries, profile, 1)
        relay.on("MAIL", end, times=1)
        second = await send(deliveries, profile, 2)
        assert is_sent(second)
        assert second.attempt.failure is None
        assert relay.connections == 2
        assert [mail.content for mail in relay.mails] == [content(1), content(2)]
        assert b"the mail" not in bytes(relay.sessions[0].wire).partition(content(1))[2]


async def test_a_replacement_that_dies_too_is_a_failure_and_no_third_try() -> None:
    async with Relay() as relay, Deliveries() as deliveries:
        profile = make_profile(port=relay.port)
        await send(deliveries, profile, 1)
        relay.on("MAIL", Close())
        second = await send(deliveries, profile, 2)
        assert [type(outcome) for outcome in second.outcomes.values()] == [Deferred]
        assert relay.connections == 2


async def test_changed_settings_do_not_get_the_old_settings_session() -> None:
    async with Relay() as relay, Deliveries() as deliveries:
        for name in ("one.test", "two.test"):
            assert is_sent(await send(deliveries, make_profile(port=relay.port, helo_name=name, max_connections=1)))
        await relay.closed(1)
        assert [session.commands[0] for session in relay.sessions] == ["EHLO one.test", "EHLO two.test"]


# --- idle ------------------------------------------------------------------------------------------------


@on_both_loops
async def test_the_idle_timeout_closes_with_quit() -> None:
    async with Relay() as relay, Deliveries() as deliveries, asyncio.timeout(SOON):
        profile = make_profile(port=relay.port, idle_timeout=SHORT)
        await send(deliveries, profile)
        await relay.closed(1)
        assert relay.commands[-1] == "QUIT"
        assert deliveries.pool.count(profile.name) == 0


async def test_an_idle_timeout_of_nothing_keeps_nothing() -> None:
    async with Relay() as relay, Deliveries() as deliveries:
        profile = make_profile(port=relay.port, idle_timeout=0)
        for number in (1, 2):
            await send(deliveries, profile, number)
            await relay.closed(number)
        assert [verbs(session)[-1] for session in relay.sessions] == ["QUIT", "QUIT"]


async def test_each_profile_has_its_own_idle_timeout() -> None:
    async with Relay() as relay, Deliveries() as deliveries, asyncio.timeout(SOON):
        await send(deliveries, make_profile(name="patient", port=relay.port, idle_timeout=30))
        await send(deliveries, make_profile(name="hasty", port=relay.port, idle_timeout=SHORT))
        await relay.closed(1)
        assert deliveries.pool.count("patient") == 1


# --- used up ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bound", [1, 2, 3])
@on_both_loops
async def test_a_connection_carries_as_many_mails_as_it_may_and_ends_with_quit(bound: int) -> None:
    async with Relay() as relay, Deliveries() as deliveries:
        profile = make_profile(port=relay.port, max_connections=1, max_messages_per_connection=bound)
        for number in range(2 * bound):
            assert is_sent(await send(deliveries, profile, number))
        await relay.closed(2)
        whole = ["EHLO", *["MAIL", "RCPT", "DATA"] * bound, "QUIT"]
        assert [verbs(session) for session in relay.sessions] == [whole, whole]
        assert [mail.content for mail in relay.mails] == [content(number) for number in range(2 * bound)]
        assert deliveries.pool.count(profile.name) == 0


async def test_without_a_bound_a_connection_carries_all() -> None:
    async with Relay() as relay, Deliveries() as deliveries:
        profile = make_profile(port=relay.port, max_messages_per_connection=0)
        for number in range(120):  # more than by default
            assert is_sent(await send(deliveries, profile, number))
        assert relay.connections == 1


async def test_what_was_refused_counts_and_needs_no_rset_before_quit() -> None:
    async with Relay() as relay, Deliveries() as deliveries:
        relay.on("RCPT", "550 5.1.1 unknown", times=2)
        profile = make_profile(port=relay.port, max_connections=1, max_messages_per_connection=2)
        for number in range(3):
            await send(deliveries, profile, number)
        transaction = ["MAIL", "RCPT", "DATA"]
        assert verbs(relay.sessions[0]) == ["EHLO", *transaction, "RSET", *transaction, "QUIT"]
        assert [mail.content for mail in relay.mails] == [content(2)]


@on_both_loops
async def test_many_at_once_use_connections_up_and_share_no_more_than_max_connections() -> None:
    async with Relay() as relay, Deliveries() as deliveries:
        profile = make_profile(port=relay.port, max_connections=3, max_messages_per_connection=2)
        counts: list[int] = []

        def counted() -> "asyncio.Future[None]":
            counts.append(deliveries.pool.count(profile.name))
            return marked()

        sending = [send(deliveries, profile, number, before_handover=counted) for number in range(20)]
        assert all(map(is_sent, await asyncio.gather(*sending)))
        assert max(counts) == 3
        assert max(len(session.mails) for session in relay.sessions) == 2
        assert sorted(mail.content for mail in relay.mails) == sorted(content(number) for number in range(20))


# --- many at once ----------------------------------------------------------------------------------------


@on_both_loops
async def test_twenty_deliveries_share_no_more_than_max_connections() -> None:
    async with Relay() as relay, Deliveries() as deliveries:
        go = asyncio.Event()
        relay.on("DATA", (Wait(go), "354 go on"))
        profile = make_profile(port=relay.port, max_connections=3)
        sending = [asyncio.ensure_future(send(deliveries, profile, number)) for number in range(20)]
        await relay.seen("DATA", 3)
        await turns()
        assert (relay.connections, deliveries.pool.count(profile.name)) == (3, 3)
        go.set()
        assert all(map(is_sent, await asyncio.gather(*sending)))
        assert relay.connections == 3
        assert sorted(mail.content for mail in relay.mails) == sorted(content(number) for number in range(20))
        for session in relay.sessions:  # one transaction at a time
            assert verbs(session)[1:] == ["MAIL", "RCPT", "DATA"] * len(session.mails)
            assert bytes(session.wire).count(b"\r\n.\r\n") == len(session.mails) == session.commands.count("DATA")


async def test_without_idle_sessions_too_max_connections_holds() -> None:
    async with Relay() as relay, Deliveries() as deliveries:
        profile = make_profile(port=relay.port, max_connections=3, idle_timeout=0)
        counts: list[int] = []

        def counted() -> "asyncio.Future[None]":
            counts.append(deliveries.pool.count(profile.name))
            mark = asyncio.get_running_loop().create_future()
            mark.set_result(None)
            return mark

        await asyncio.gather(*(send(deliveries, profile, number, before_handover=counted) for number in range(20)))
        assert len(counts) == 20
        assert max(counts) == 3
        assert relay.connections == 20


@pytest.mark.parametrize("idle_timeout", [30, 0], ids=["warm", "cold"])
async def test_who_waits_is_served_in_order(idle_timeout: float) -> None:
    async with Relay() as relay, Deliveries() as deliveries:
        profile = make_profile(port=relay.port, max_connections=1, idle_timeout=idle_timeout)
        await asyncio.gather(*(send(deliveries, profile, number) for number in range(20)))
        assert [mail.content for mail in relay.mails] == [content(number) for number in range(20)]


async def test_a_newcomer_does_not_overtake_who_waits() -> None:
    async with Relay() as relay, Deliveries() as deliveries:
        profile = make_profile(port=relay.port, max_connections=1)
        held = await lease(deliveries, profile)
        waiting = [asyncio.ensure_future(send(deliveries, profile, number)) for number in (1, 2)]
        await turns()
        newcomer = asyncio.ensure_future(send(deliveries, profile, 3))
        deliveries.pool.give_back(held)
        await asyncio.gather(*waiting, newcomer)
        assert [mail.content for mail in relay.mails] == [content(1), content(2), content(3)]


async def test_who_gives_back_and_asks_again_at_once_gets_to_the_end_of_the_line() -> None:
    async with Relay() as relay, Deliveries() as deliveries:
        profile = make_profile(port=relay.port, max_connections=1)
        served: list[str] = []

        async def visit(name: str) -> None:
            for _ in range(3):
                session = await lease(deliveries, profile)
                served.append(name)
                deliveries.pool.give_back(session)

        await asyncio.gather(*map(visit, "abc"))
        assert served == list("abcabcabc")
        assert relay.connections == 1


async def test_who_finds_its_session_stale_goes_to_the_end_of_the_line() -> None:
    async with Relay() as relay, Deliveries() as deliveries:
        profile = make_profile(port=relay.port, max_connections=1)
        await send(deliveries, profile, 0)
        relay.on("MAIL", Close(), times=1)
        await asyncio.gather(*(send(deliveries, profile, number) for number in (1, 2, 3)))
        assert [mail.content for mail in relay.mails] == [content(number) for number in (0, 2, 3, 1)]


async def test_who_is_cancelled_while_waiting_leaves_the_line_to_the_others() -> None:
    async with Relay() as relay, Deliveries() as deliveries:
        profile = make_profile(port=relay.port, max_connections=1)
        held = await lease(deliveries, profile)
        gone, next_one = [asyncio.ensure_future(lease(deliveries, profile)) for _ in range(2)]
        await turns()
        gone.cancel()
        deliveries.pool.give_back(held)  # in the same turn: the line still has whom nobody waits for
        with pytest.raises(asyncio.CancelledError):
            await gone
        deliveries.pool.give_back(await next_one)
        assert relay.connections == 1


async def test_who_is_cancelled_when_called_passes_the_turn_on() -> None:
    async with Relay() as relay, Deliveries() as deliveries:
        profile = make_profile(port=relay.port, max_connections=1)
        held = await lease(deliveries, profile)
        called, next_one = [asyncio.ensure_future(lease(deliveries, profile)) for _ in range(2)]
        await turns()
        deliveries.pool.give_back(held)
        called.cancel()
        with pytest.raises(asyncio.CancelledError):
            await called
        deliveries.pool.give_back(await next_one)
        assert relay.connections == 1


@on_both_loops
async def test_a_delivery_that_is_cancelled_gives_its_place_free_and_its_connection_up() -> None:
    async with Relay() as relay, Deliveries() as deliveries:
        relay.on("DATA", Stall(), times=1)
        profile = make_profile(port=relay.port, max_connections=1)
        stuck = asyncio.ensure_future(send(deliveries, profile, 1))
        await relay.seen("DATA")
        stuck.cancel()
        with pytest.raises(asyncio.CancelledError):
            await stuck
        await relay.closed(1)
        assert is_sent(await send(deliveries, profile, 2))
        assert [mail.content for mail in relay.mails] == [content(2)]


async def test_a_connection_that_does_not_come_about_takes_up_no_place() -> None:
    async with Relay() as relay, Deliveries() as deliveries:
        relay.on("GREETING", "554 5.3.2 no", times=2)
        profile = make_profile(port=relay.port, max_connections=1)
        with pytest.raises(TransactionError):
            await lease(deliveries, profile)
        tried = await asyncio.gather(*(send(deliveries, profile, number) for number in (1, 2)))
        assert [is_sent(each) for each in tried] == [False, True]
        assert deliveries.pool.count(profile.name) == 1


# --- the end ---------------------------------------------------------------------------------------------


@on_both_loops
@pytest.mark.parametrize("tls", [None, certificates().server()], ids=["clear", "tls"])
async def test_closing_says_quit_and_leaves_nothing_open(tls: ServerContext | None) -> None:
    async with Relay(tls=tls) as relay, Deliveries() as deliveries:
        profile = make_profile(port=relay.port, tls=TlsMode.STARTTLS if tls else TlsMode.NONE, max_connections=3)
        await asyncio.gather(*(send(deliveries, profile, number) for number in range(9)))
        for _ in range(2):  # twice is as good as once
            await deliveries.pool.close()
        await relay.closed(3)
        assert [verbs(session)[-1] for session in relay.sessions] == ["QUIT"] * 3
        assert deliveries.pool.count(profile.name) == 0


@pytest.mark.parametrize("answer", [Stall(), Close(), Reset(), StopReading(), b"\xff"], ids=type)
@pytest.mark.parametrize("tls", [None, certificates().server()], ids=["clear", "tls"])
@on_both_loops
async def test_the_answer_to_quit_is_not_waited_for(tls: ServerContext | None, answer: Answer) -> None:
    async with Relay(tls=tls) as relay, Deliveries() as deliveries:
        relay.on("QUIT", answer)
        mode = TlsMode.STARTTLS if tls else TlsMode.NONE
        profile = make_profile(port=relay.port, tls=mode, max_connections=2, max_messages_per_connection=2)
        async with asyncio.timeout(SOON):
            for number in range(3):  # the first connection is used up, and the second closed with the pool
                assert is_sent(await send(deliveries, profile, number))
            await deliveries.pool.close()
            await relay.seen("QUIT", 2)


@on_both_loops
async def test_quit_to_a_relay_that_is_gone_is_no_failure() -> None:
    async with Relay() as relay, Deliveries() as deliveries:
        profile = make_profile(port=relay.port)
        await send(deliveries, profile)
    await deliveries.pool.close()
    assert deliveries.pool.count(profile.name) == 0


@on_both_loops
async def test_closing_waits_for_no_delivery_and_its_connection_goes_with_it() -> None:
    async with Relay() as relay, Deliveries() as deliveries:
        go = asyncio.Event()
        relay.on("CONTENT", (Wait(go), "250 2.0.0 fine"))
        profile = make_profile(port=relay.port)
        sending = asyncio.ensure_future(send(deliveries, profile))
        await relay.mail()
        await deliveries.pool.close()
        go.set()
        assert is_sent(await sending)
        await relay.closed(1)
        assert verbs(relay.sessions[0])[-1] == "QUIT"


@on_both_loops
@pytest.mark.parametrize("turned", [0, 5], ids=["before-rset", "under-rset"])
async def test_closing_under_a_reset_leaves_nothing_open(turned: int) -> None:
    async with Relay() as relay, Deliveries() as deliveries:
        relay.on("RCPT", "550 5.1.1 unknown")
        relay.on("RSET", Stall())
        profile = make_profile(port=relay.port, timeouts=Timeouts())
        await send(deliveries, profile)
        await turns(turned)
        await deliveries.pool.close()
        async with asyncio.timeout(SOON):
            await relay.closed(1)
        assert deliveries.pool.count(profile.name) == 0


@on_both_loops
async def test_nothing_is_leased_from_a_closed_pool() -> None:
    async with Relay() as relay, Deliveries() as deliveries:
        profile = make_profile(port=relay.port)
        await deliveries.pool.close()
        with pytest.raises(TransactionError):
            await lease(deliveries, profile)
        assert relay.connections == 0


@on_both_loops
async def test_closing_sends_away_who_waits_in_line() -> None:
    async with Relay() as relay, Deliveries() as deliveries:
        profile = make_profile(port=relay.port, max_connections=1)
        held = await lease(deliveries, profile)
        waiting = [asyncio.ensure_future(send(deliveries, profile, number)) for number in (1, 2)]
        await turns()
        await deliveries.pool.close()
        async with asyncio.timeout(SOON):
            tried = await asyncio.gather(*waiting)
        assert [[type(outcome) for outcome in each.outcomes.values()] for each in tried] == [[Deferred], [Deferred]]
        deliveries.pool.give_back(held)
        await relay.closed(1)
        assert relay.connections == 1
        assert relay.mails == []


async def test_a_free_session_is_not_kept_from_who_waits() -> None:
    async with Relay() as relay, Deliveries() as deliveries:
        profile = make_profile(port=relay.port, max_connections=2)
        held = [await lease(deliveries, profile) for _ in range(2)]
        waiting = asyncio.ensure_future(lease(deliveries, profile))
        await turns()
        newcomer = asyncio.ensure_future(lease(deliveries, profile))
        for session in held:
            deliveries.pool.give_back(session)
        await turns()
        served = waiting.done(), newcomer.done()
        deliveries.pool.give_back(await waiting)
        deliveries.pool.give_back(await newcomer)
        assert served == (True, True)
