"""Moving due times: of what waited for a circuit, and of what the clock left behind.

Operations for the journal.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from sqlalchemy import bindparam, case, false, select, text, update

from app.mail.codes import CODE_OF, Reason
from app.mail.outcome import Failure
from app.store.database import messages
from app.store.journal import Operation
from app.store.records import failure_from
from app.store.values import text_from, to_ms

DUE_AT_ONCE = 500  # messages looked at in one transaction

_BRING_FORWARD = (
    update(messages)
    .where(
        messages.c.profile == bindparam("of_profile"),
        messages.c.due_at > case((messages.c.state == "queued", bindparam("now")), else_=bindparam("latest")),
        messages.c.due_at > bindparam("now"),  # the index's
        messages.c.lease_token.is_(None),
        messages.c.state != "scheduled",
    )
    .values(due_at=case((messages.c.state == "queued", bindparam("now")), else_=bindparam("latest")))
)
_DEFERRED = text("messages.state = 'deferred' AND messages.state NOT IN ('queued', 'sending', 'sent')")
_DEFERRED_BEHIND = (
    select(messages.c.id, messages.c.profile, messages.c.due_at, messages.c.failure)
    .where(_DEFERRED, messages.c.id > bindparam("behind"))
    .order_by(messages.c.id)
    .limit(bindparam("at_most"))
)
_FIRST_DEFERRED = (
    select(messages.c.id)
    .where(
        messages.c.profile == bindparam("of_profile"),
        messages.c.due_at.is_not(None),
        messages.c.lease_token.is_(None),
        messages.c.state == "deferred",
    )
    .order_by(messages.c.due_at)
    .limit(1)
)
_MAKE_DUE = update(messages).where(messages.c.id == bindparam("of_message")).values(due_at=bindparam("due"))


_MEND = (
    update(messages)
    .where(
        messages.c.due_at.is_(None),
        messages.c.lease_token.is_(None),
        text("messages.state IN ('queued', 'scheduled', 'sending', 'deferred')"),
        messages.c.handover == false(),
    )
    .values(due_at=bindparam("due"))
)


_FOUND_MISSING = (
    select(messages.c.profile)
    .where(
        messages.c.error_code == CODE_OF[Reason.PROFILE_UNKNOWN].value,
        messages.c.failure.contains(f'"reason":"{Reason.PROFILE_UNKNOWN}"'),
        messages.c.state == "deferred",
        messages.c.due_at.is_not(None),
    )
    .distinct()
)


def found_missing() -> Operation[set[str]]:
    """Name the profiles that deferred messages did not find in the settings when they were due."""
    return {text_from(name) for (name,) in (yield (_FOUND_MISSING, {})).rows}


def mend(now: datetime) -> Operation[int]:
    """Make due what waits and never would be, since its time is lost; return how many. Reads the whole table."""
    mended = yield (_MEND, {"due": to_ms(now)})
    return mended.count


def bring_forward(profile: str, now: datetime, latest: datetime) -> Operation[int]:
    """Let nothing of a profile wait behind `latest` but what was asked to; gives how many did."""
    brought = yield (_BRING_FORWARD, {"of_profile": profile, "now": to_ms(now), "latest": to_ms(latest)})
    return brought.count


def make_some_due(
    profile: str, which: Callable[[Failure], bool] | None, behind: bytes, now: datetime
) -> Operation[bytes | None]:
    """Make due what is a profile's among the next deferred messages; `which` asks for the failure, None = all.

    Returns where to go on, None = these were the last.
    """
    found = yield (_DEFERRED_BEHIND, {"behind": behind, "at_most": DUE_AT_ONCE})
    due = to_ms(now)
    later = [
        {"of_message": id_, "due": due}
        for id_, whose, at, failure in found.rows
        if whose == profile
        and not (isinstance(at, int) and at <= due)
        and (which is None or (why := failure_from(failure)) is None or which(why))
    ]
    if later:
        yield (_MAKE_DUE, later)
    return found.rows[-1][0] if len(found.rows) == DUE_AT_ONCE else None


def make_one_due(profile: str, now: datetime) -> Operation[None]:
    """Make due which of a profile's deferred ones would be next."""
    first = yield (_FIRST_DEFERRED, {"of_profile": profile})
    for (id_,) in first.rows:
        yield (_MAKE_DUE, {"of_message": id_, "due": to_ms(now)})
