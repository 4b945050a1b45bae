"""A relay that does anything at all: what no table lists.

Replies of any code and bytes, split anywhere, doubled, cut, stalled, at any command, in any combination. Nothing of
it may break what holds for every attempt: an outcome for everybody, nothing sent twice, in doubt only after the
content's end was let go, bounded memory, no secret in what is kept.
"""

import asyncio
from collections.abc import Mapping

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from app.mail.explain import EXPLANATIONS
from app.mail.outcome import InDoubt, Sent
from app.mail.profile import TlsMode
from tests.contract.test_situations import ALICE, BOB, LOGGING_IN, Seen, holds_always, people
from tests.support.factories import Settings, attempt, make_claim, timeouts
from tests.support.relay import EXTENSIONS, Close, Drip, Relay, Reset, Split, Stall
from tests.support.tls import Answer

SHORT = 0.08  # seconds that every phase has
HURRIED = timeouts(
    **dict.fromkeys(("greeting", "ehlo", "auth", "mail", "rcpt", "data", "content", "block", "reset"), SHORT)
)
VERBS = ("GREETING", "EHLO", "HELO", "AUTH", "AUTH2", "MAIL", "RCPT", "DATA", "CONTENT")

codes = st.one_of(
    st.sampled_from(
        [211, 220, 235, 250, 251, 334, 354, 421, 432, 450, 451, 452, 454, 500, 503, 530, 535, 550, 552, 554]
    ),
    st.integers(0, 999),
)
words = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n"), max_size=60)
lines = st.builds(lambda code, sep, text: f"{code:03}{sep}{text}\r\n".encode(), codes, st.sampled_from(" -"), words)
replies = st.one_of(
    st.builds(lambda code, text: f"{code:03} {text}\r\n".encode(), codes, words),
    st.lists(lines, min_size=1, max_size=4).map(b"".join),
    st.builds(lambda one, other: one + other, lines, lines),
    st.binary(max_size=200),
    st.binary(max_size=200).map(lambda raw: b"250 " + raw + b"\r\n"),
)
steps = st.one_of(
    replies,
    st.builds(lambda reply, at: Split(reply, at=at), replies, st.integers(0, 60)),
    st.builds(lambda reply, size: Drip(reply, size=size), st.builds(lambda r: r[:24], replies), st.integers(1, 9)),
    st.builds(lambda reply: (reply, Close()), replies),
    st.builds(lambda reply: (reply, Reset()), replies),
    st.builds(lambda reply: (reply, Stall()), replies),
    st.sampled_from([Close(), Reset(), Stall()]),
)
scripts = st.dictionaries(st.sampled_from(VERBS), steps, max_size=4)


@example(script={"GREETING": (b"220 \r\n", Close())}, pipelined=False, logs_in=False, two=False)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(script=scripts, pipelined=st.booleans(), logs_in=st.booleans(), two=st.booleans())
def test_whatever_a_relay_does_the_attempt_is_true(
    script: Mapping[str, Answer], *, pipelined: bool, logs_in: bool, two: bool
) -> None:
    said: Settings = {"tls": TlsMode.NONE, "timeouts": HURRIED}
    if logs_in:
        said |= LOGGING_IN
    claim = people(ALICE, BOB) if two else make_claim()

    async def send() -> None:
        extensions = EXTENSIONS if pipelined else [each for each in EXTENSIONS if each != "PIPELINING"]
        async with Relay(extensions=extensions, auth=("PLAIN", "LOGIN") if logs_in else ()) as relay:
            for verb, answer in script.items():
                relay.on(verb, answer)
            seen = Seen(relay, await attempt(relay, claim, **said))
        assert seen.outcomes.keys() == set(claim.pending)
        holds_always(claim, seen)
        assert sum(command.startswith("AUTH") for command in relay.commands) <= 1
        assert sum(verb == "DATA" for verb in seen.verbs) <= 1
        for outcome in seen.outcomes.values():
            if isinstance(outcome, Sent):
                assert seen.attempt.handover
                assert 200 <= outcome.reply.code < 300
            else:
                assert outcome.failure.cls in EXPLANATIONS[outcome.failure.reason].classes
            if isinstance(outcome, InDoubt):
                assert seen.attempt.handover

    asyncio.run(send())
