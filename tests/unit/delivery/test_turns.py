"""Whose turn it is in an attempt, and who may be asked again at once."""

from __future__ import annotations

import pytest

from app.delivery.attempt import outcomes_of
from app.delivery.turns import NOBODY, Following, may_go_on, of_all_turns, turns, who_follows, with_the_rest
from app.mail.message import Recipient
from app.mail.outcome import Deferred, Failure, Outcome, Phase, RecipientState, Rejected, Sent
from app.mail.reply import Reply
from app.smtp import classify
from app.smtp.transaction import Report
from app.smtp.wire import Lost, TimedOut
from tests.support.factories import make_attempt, make_profile

PROFILE = make_profile()
OK, FULL = (Phase.CONTENT, Reply(250, ("Ok",))), (Phase.RCPT, Reply(452, ("4.2.2 Mailbox full",)))
UNKNOWN = (Phase.RCPT, Reply(550, ("5.1.1 Nobody",)))
TOO_MANY = (Phase.RCPT, Reply(452, ("4.5.3 Too many recipients",)))
WORN_OUT = (Phase.RCPT, Reply(450, ("4.7.0 Error: too many errors",)))
CLOSING = Reply(421, ("4.7.0 Error: too many errors",))


def closing(phase: Phase = Phase.RCPT, reply: Reply = CLOSING) -> Failure:
    return classify.transaction(PROFILE, make_attempt(PROFILE), phase, reply)


def read(report: Report, *pending: str) -> dict[str, Outcome]:
    return dict(outcomes_of(report, pending, PROFILE, make_attempt(PROFILE)))


def after(report: Report, *pending: str) -> list[Recipient]:
    """Give the recipients as an attempt with this report leaves them."""
    states = {Sent: RecipientState.SENT, Rejected: RecipientState.REJECTED}
    return [
        Recipient(
            address,
            states.get(type(outcome), RecipientState.PENDING),
            None if isinstance(outcome, Sent) else outcome.failure,
        )
        for address, outcome in read(report, *pending).items()
    ]


def test_a_first_attempt_has_one_turn() -> None:
    assert turns([Recipient("a"), Recipient("b")]) == [{"a", "b"}]


def test_who_was_accepted_or_not_asked_comes_before_who_was_refused_and_who_ended_the_session() -> None:
    report = Report({"full": FULL, "unknown": UNKNOWN}, closing(), ended_at="cursed")
    assert turns(after(report, "full", "unknown", "cursed", "ok", "unasked")) == [
        {"ok", "unasked"},
        {"full"},
        {"cursed"},
    ]


def test_where_all_were_refused_they_have_one_turn() -> None:
    assert turns(after(Report({"a": FULL, "b": FULL}), "a", "b")) == [{"a", "b"}]


@pytest.mark.parametrize("verdict", [TOO_MANY, WORN_OUT, (Phase.DATA, Reply(451, ("later",)))])
def test_who_was_refused_for_the_sake_of_others_was_not_refused_by_name(verdict: tuple[Phase, Reply]) -> None:
    assert turns(after(Report({"full": FULL, "ok": verdict}), "full", "ok")) == [{"ok"}, {"full"}]


@pytest.mark.parametrize("breach", [Lost("closed"), TimedOut("silent")])
def test_who_the_session_broke_at_comes_last(breach: Lost | TimedOut) -> None:
    report = Report({"full": FULL}, classify.breach(PROFILE, Phase.RCPT, breach), ended_at="cursed")
    assert turns(after(report, "cursed", "full", "ok")) == [{"ok"}, {"full"}, {"cursed"}]


@pytest.mark.parametrize(
    ("report", "following"),
    [
        pytest.param(Report({"a": FULL, "b": FULL}, closing(), ended_at="c"), ("d", "c"), id="a-421-after-refusals"),
        pytest.param(Report({"a": FULL}, closing(Phase.DATA)), ("bcd", ""), id="a-421-to-data-after-refusals"),
        pytest.param(
            Report({"a": UNKNOWN}, classify.breach(PROFILE, Phase.RCPT, Lost("gone")), ended_at="b"),
            ("cd", "b"),
            id="a-close-after-refusals",
        ),
        pytest.param(Report({"a": OK, "b": TOO_MANY, "c": TOO_MANY, "d": FULL}), ("bc", ""), id="too-many"),
        pytest.param(Report({}, closing(), ended_at="a"), ("", ""), id="a-421-at-the-first"),
        pytest.param(Report({}, closing(), ended_at="c"), ("", ""), id="a-421-alone"),
        pytest.param(Report({}, closing(Phase.DATA)), ("", ""), id="a-421-to-data"),
        pytest.param(Report({"a": FULL}, closing(Phase.MAIL)), ("", ""), id="a-421-to-mail"),
        pytest.param(
            Report({"a": FULL}, closing(reply=Reply(421, ("4.7.0 too many connections",))), ended_at="b"),
            ("", ""),
            id="a-limit",
        ),
        pytest.param(
            Report({"a": FULL}, classify.breach(PROFILE, Phase.RCPT, TimedOut("silent")), ended_at="b"),
            ("", ""),
            id="silence",
        ),
        pytest.param(
            Report({"a": FULL}, classify.breach(PROFILE, Phase.CONTENT, Lost("gone"))),
            ("", ""),
            id="a-close-in-content",
        ),
        pytest.param(
            Report({"a": FULL}, classify.breach(PROFILE, Phase.CONTENT, Lost("gone"), handed_over=True)),
            ("", ""),
            id="in-doubt",
        ),
        pytest.param(Report(dict.fromkeys("abcd", FULL)), ("", ""), id="all-refused"),
        pytest.param(Report(dict.fromkeys("abcd", TOO_MANY)), ("", ""), id="too-many-and-nobody-sent-to"),
    ],
)
def test_who_may_follow_in_the_same_attempt(report: Report, following: tuple[str, str]) -> None:
    at_once, last = map(frozenset, following)
    assert who_follows(report, tuple("abcd")) == Following(at_once, last)


def test_nobody_follows_what_went_well() -> None:
    assert who_follows(Report(dict.fromkeys("abcd", OK)), tuple("abcd")) == NOBODY


@pytest.mark.parametrize(
    ("report", "goes_on"),
    [
        (Report({"a": OK, "b": OK}), True),
        (Report({"a": OK, "b": FULL}), True),
        (Report({"a": UNKNOWN, "b": (Phase.CONTENT, Reply(554, ("spam",)))}), True),
        (Report({"a": FULL}, closing(), ended_at="b"), True),
        (Report({"a": FULL}, closing()), False),
        (Report(dict.fromkeys("ab", (Phase.CONTENT, Reply(451, ("later",))))), False),
        (Report({}, classify.breach(PROFILE, Phase.CONTENT, Lost("gone"), handed_over=True)), False),
    ],
)
def test_the_next_turn_follows_unless_the_relay_put_somebody_off(report: Report, goes_on: bool) -> None:
    assert may_go_on(read(report, "a", "b")) is goes_on


def test_who_had_no_turn_keeps_their_failure_or_shares_that_of_the_opening_and_keeps_the_turn() -> None:
    recipients = after(Report({"full": FULL}, closing(), ended_at="cursed"), "full", "cursed", "ok")
    sent: dict[str, Outcome] = {"ok": Sent(Reply(250, ("Ok",)))}
    rest = with_the_rest(recipients, sent, None)
    assert [rest[r.address] for r in recipients[:2]] == [Deferred(r.failure) for r in recipients[:2] if r.failure]

    down = classify.connecting(PROFILE, ConnectionRefusedError())
    everybody = with_the_rest(recipients, {"ok": Deferred(down)}, down)
    failures = {whom: outcome.failure for whom, outcome in everybody.items() if isinstance(outcome, Deferred)}
    assert {failure.reason for failure in failures.values()} == {"connection_refused"}
    assert {whom for whom, failure in failures.items() if failure.by_name} == {"full", "cursed"}


def test_a_refusal_to_relay_is_the_recipients_where_another_turn_went_otherwise() -> None:
    denied = (Phase.RCPT, Reply(554, ("5.7.1 Relay access denied",)))
    for_now = (Phase.RCPT, Reply(454, ("4.7.1 Relay access denied",)))
    first = read(Report({"a": denied, "b": denied, "c": for_now}, closing(), ended_at="d"), *"abcde")
    assert {whom: o.failure.cls for whom, o in first.items() if isinstance(o, Deferred)} == {
        **dict.fromkeys("abc", "configuration"),
        **dict.fromkeys("de", "temporary"),
    }
    assert of_all_turns(first) == first
    for other in (OK, UNKNOWN, FULL):
        then = of_all_turns({**first, **read(Report({"e": other}), "e")})
        assert [type(then[whom]) for whom in "abcd"] == [Rejected, Rejected, Deferred, Deferred]
        assert {o.failure.cls for whom in "cd" if isinstance(o := then[whom], Deferred)} == {"temporary"}
