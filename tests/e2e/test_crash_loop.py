"""A crash loop through a real Postfix: kill -9 at random moments while callers send, and every mail is accounted for.

What was answered with 2xx is sent once, or in doubt with its mark set: never lost, never twice. Where the profile says
`in_doubt = "retry"` it may come twice, but only where it was in doubt, and then under the same Message-ID.

    MAILCHUTE_CRASHES=200 .venv/bin/python -m pytest tests/e2e/test_crash_loop.py -s
"""

import os
import tempfile
from pathlib import Path

import pytest

from tests.support.callers import account
from tests.support.postfix import Postfix

CRASHES = int(os.environ.get("MAILCHUTE_CRASHES", "12"))


@pytest.mark.timeout(60 + 10 * CRASHES)
async def test_what_was_answered_is_sent_once_or_in_doubt_however_often_it_crashes(postfix: Postfix) -> None:
    seed = int.from_bytes(os.urandom(4))
    with tempfile.TemporaryDirectory(prefix="mailchute-") as name:
        came_of = await account(postfix, Path(name), crashes=CRASHES, seed=seed)
    print(f"seed {seed}: {CRASHES} crashes, {came_of}")  # noqa: T201 (with -s: the figures of a long run)
    assert (came_of.lost, came_of.doubled, came_of.unmarked) == ([], [], []), seed
    assert set(came_of.states) <= {"sent", "in_doubt"}, seed
    assert came_of.states.total() > CRASHES


@pytest.mark.timeout(60 + 10 * CRASHES)
async def test_where_the_policy_is_to_send_again_only_what_was_in_doubt_may_come_twice(postfix: Postfix) -> None:
    seed = int.from_bytes(os.urandom(4))
    crashes = max(4, CRASHES // 3)
    policy = {"MAILCHUTE_PROFILES__DEFAULT__IN_DOUBT": "retry", "MAILCHUTE_RETRY__SCHEDULE": "100ms"}
    with tempfile.TemporaryDirectory(prefix="mailchute-") as name:
        came_of = await account(postfix, Path(name), crashes=crashes, seed=seed, more=policy)
    print(f"seed {seed}: {crashes} crashes, in_doubt = retry, {came_of}")  # noqa: T201
    assert came_of.lost == [], seed
    assert came_of.doubled == came_of.sent_again, seed
    assert set(came_of.states) == {"sent"}, seed
