"""What an operator or a caller may do to a message after it was taken: cancel, retry, resolve.

Pure: a snapshot in, the recipients as they are afterwards out; an act that the state forbids is a `Conflict`.
Whatever was sent stays sent.
"""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum

from app.mail.codes import ErrorCode
from app.mail.errors import Conflict
from app.mail.message import Recipient, Snapshot
from app.mail.outcome import Failure, MessageState, RecipientState


class Act(StrEnum):
    CANCEL = "cancel"
    RETRY = "retry"
    REVIVE = "revive"  # what expired only, when its request comes again
    RESOLVE_AS_SENT = "resolve as sent"
    RESOLVE_AS_FAILED = "resolve as failed"


_RETRIED = (RecipientState.REJECTED, RecipientState.EXPIRED, RecipientState.IN_DOUBT)


def after(act: Act, said: Snapshot) -> tuple[Recipient, ...]:
    """Give everybody's state after an act.

    Raises:
        Conflict: the message's state forbids it, or leaves nothing to do.
    """
    if said.state is MessageState.SENDING:
        raise Conflict("The message is being sent at this moment; look at it again when that has ended")
    match act:
        case Act.CANCEL:
            changed = _changed(said, (RecipientState.PENDING,), RecipientState.CANCELLED)
            why = f"The message is {said.state}: nothing of it waits to be sent"
        case Act.RETRY:
            is_waiting = said.state in (MessageState.QUEUED, MessageState.SCHEDULED, MessageState.DEFERRED)
            changed = said.recipients if is_waiting else _changed(said, _RETRIED, RecipientState.PENDING)
            if is_waiting:
                return changed
            why = f"The message is {said.state}: there is nobody left to send it to again"
        case Act.REVIVE:
            changed = _changed(said, (RecipientState.EXPIRED,), RecipientState.PENDING)
            why = f"The message is {said.state}: nothing of it expired"
        case Act.RESOLVE_AS_SENT:
            changed = _changed(said, (RecipientState.IN_DOUBT,), RecipientState.SENT)
            why = f"The message is {said.state}: only what is in doubt can be resolved"
        case Act.RESOLVE_AS_FAILED:
            changed = _changed(said, (RecipientState.IN_DOUBT,), RecipientState.REJECTED)
            why = f"The message is {said.state}: only what is in doubt can be resolved"
    if changed == said.recipients:
        raise Conflict(why)
    return changed


def is_possible(act: Act, said: Snapshot) -> bool:
    """Whether the message's state allows an act."""
    try:
        after(act, said)
    except Conflict:
        return False
    return True


def _changed(said: Snapshot, from_: tuple[RecipientState, ...], to: RecipientState) -> tuple[Recipient, ...]:
    return tuple(_moved(r, to) if r.state in from_ else r for r in said.recipients)


def _moved(recipient: Recipient, to: RecipientState) -> Recipient:
    may_have_it = recipient.failure is not None and recipient.failure.code is ErrorCode.EINDOUBT
    if to is RecipientState.CANCELLED and may_have_it:  # it was to be sent again; that is what is cancelled
        return replace(recipient, state=RecipientState.IN_DOUBT)
    return replace(recipient, state=to, failure=_kept(recipient, to))


def _kept(recipient: Recipient, to: RecipientState) -> Failure | None:
    """Keep why somebody is rejected; and that a relay may have the message of whoever is tried again."""
    is_doubtful = recipient.state is RecipientState.IN_DOUBT and to is RecipientState.PENDING
    return recipient.failure if is_doubtful or to is RecipientState.REJECTED else None
