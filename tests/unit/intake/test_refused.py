"""Which refusals of callers get a log line."""

from app.intake.refused import MOST_PEERS, PERIOD, RefusedCallers


def test_a_peer_gets_one_line_a_period_and_the_next_one_says_how_many_there_were() -> None:
    refused = RefusedCallers()
    assert [refused.note("192.0.2.1", now) for now in (0.0, 1.0, 59.9)] == [1, None, None]
    assert refused.note("192.0.2.2", 59.9) == 1
    assert refused.note("192.0.2.1", PERIOD) == 3
    assert refused.note("192.0.2.1", PERIOD + 1) is None
    assert refused.note("192.0.2.1", 10 * PERIOD) == 2


def test_however_many_peers_there_are_the_lines_and_the_memory_are_bounded() -> None:
    refused = RefusedCallers()
    for period in range(3):
        now = period * PERIOD
        lines = [refused.note(f"2001:db8::{n:x}", now) for n in range(1000)]
        assert sum(line is not None for line in lines) == MOST_PEERS
    assert len(refused._now) + len(refused._before) <= 2 * MOST_PEERS
