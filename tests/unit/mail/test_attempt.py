"""An attempt notes what it saw, by a clock that is given to it."""

from __future__ import annotations

from itertools import count

from hypothesis import given
from hypothesis import strategies as st

from app.mail.attempt import LONGEST_LINE, MOST_LINES, Attempt
from app.mail.outcome import Phase
from app.mail.reply import Reply
from tests.unit.factories import NOW


def _attempt(*ticks: float) -> Attempt:
    return Attempt(1, "corp", NOW, iter(ticks).__next__)


def test_the_time_between_two_phases_belongs_to_the_first() -> None:
    attempt = _attempt(0.0, 0.0, 0.010, 0.035, 0.036)
    attempt.enter(Phase.RESOLVE)
    attempt.enter(Phase.CONNECT)
    attempt.enter(Phase.GREETING)
    attempt.end()
    assert attempt.phases == {"resolve": 10.0, "connect": 25.0, "greeting": 1.0}
    assert attempt.duration_ms == 36.0


def test_a_phase_entered_twice_is_one_sum() -> None:
    attempt = _attempt(0.0, 0.0, 0.010, 0.020, 0.040, 0.050)
    attempt.enter(Phase.RESOLVE)
    attempt.enter(Phase.CONNECT)
    attempt.enter(Phase.RESOLVE)
    attempt.enter(Phase.CONNECT)
    attempt.end()
    assert attempt.phases == {"resolve": 30.0, "connect": 20.0}


def test_an_attempt_that_runs_has_no_duration() -> None:
    assert _attempt(0.0).duration_ms is None


def test_a_transcript_has_one_wire_line_an_entry() -> None:
    attempt = _attempt(1.0, 1.5, 2.0)
    attempt.say("EHLO us.example")
    attempt.hear(Reply(250, ("relay.example", "SIZE 1000")))
    assert attempt.transcript == [
        (500.0, "C", "EHLO us.example"),
        (1000.0, "S", "250-relay.example"),
        (1000.0, "S", "250 SIZE 1000"),
    ]


def test_a_long_transcript_keeps_its_beginning_and_its_end() -> None:
    attempt = Attempt(1, "corp", NOW, count().__next__)
    for number in range(1000):
        attempt.say(f"RCPT TO:<{number}@theirs.test>")
    lines = [line for _, _, line in attempt.transcript]
    assert len(lines) == MOST_LINES
    left_out = next(at for at, line in enumerate(lines) if line.startswith("("))
    assert lines[left_out] == f"({1000 - MOST_LINES + 1} lines left out)"
    assert lines[:left_out] == [f"RCPT TO:<{number}@theirs.test>" for number in range(left_out)]
    assert lines[left_out + 1 :] == [
        f"RCPT TO:<{number}@theirs.test>" for number in range(1000 - MOST_LINES + 1 + left_out, 1000)
    ]


def test_a_transcript_one_line_too_long_loses_two_and_says_so() -> None:
    attempt = Attempt(1, "corp", NOW, count().__next__)
    attempt.hear(Reply(250, tuple(str(number) for number in range(MOST_LINES + 1))))
    assert len(attempt.transcript) == MOST_LINES
    assert "(2 lines left out)" in [line for _, _, line in attempt.transcript]


def test_a_long_line_is_shortened_and_says_how_long_it_was() -> None:
    attempt = _attempt(0.0, 0.0)
    attempt.hear(Reply(550, ("x" * 4000,)))
    ((_, _, line),) = attempt.transcript
    assert line == "550 " + "x" * (LONGEST_LINE - 4) + "… (4004 characters)"


def test_no_transcript_is_kept_where_none_is_wanted() -> None:
    attempt = Attempt(1, "corp", NOW, count().__next__, keeps_transcript=False)
    attempt.say("EHLO us.example")
    attempt.hear(Reply(250, ("relay.example",)))
    assert attempt.transcript == []


@given(st.lists(st.sampled_from(Phase), max_size=20))
def test_the_phases_add_up_to_the_whole(phases: list[Phase]) -> None:
    attempt = Attempt(1, "corp", NOW, count().__next__)
    for phase in phases:
        attempt.enter(phase)
    attempt.end()
    assert attempt.duration_ms is not None
    before_the_first = 1000.0 if phases else attempt.duration_ms  # no phase's: a warm session waits for its turn
    assert sum(attempt.phases.values()) == attempt.duration_ms - before_the_first
    assert attempt.phase is (phases[-1] if phases else Phase.RESOLVE)
