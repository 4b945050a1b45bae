"""Taking a message: check, route, compose once, append. Once `accept()` returns, the message is ours.

Order of events: profile → sender → recipients → compose → size → room → reserve a place → append (COMMIT) → hand off.
Nothing of this room knows HTTP, SQL or SMTP. RFC 5321 §6.1 (accepting means not losing).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from difflib import get_close_matches
from functools import partial
from hashlib import sha256
from typing import TypeVar
from uuid import UUID

from pydantic_core import to_json

from app.compose.mime import compose
from app.intake.callers import Caller
from app.intake.room import Room
from app.mail.address import Address
from app.mail.errors import Fault, InvalidMessage, NoRoom, TooLarge
from app.mail.message import Claim, Draft, Envelope, Lease, Message, Receipt, Repeat
from app.mail.profile import Profile
from app.mail.routing import Route, route
from app.store.outbox import Outbox

MAX_RECIPIENTS = 1000
LARGE = 256 * 1024  # characters of text, HTML and files; more of them is composed beside the event loop
LATEST = timedelta(days=366)  # that a message may be scheduled ahead

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class HandOff:
    """How an accepted message reaches the worker of this process, if it has room (`delivery.worker`)."""

    reserve: Callable[[str], Lease | None]
    hand_off: Callable[[Claim], None]
    give_up_place: Callable[[str], None]
    nudge: Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What the settings say about accepting. `expires_after` in seconds, `max_message_bytes` composed."""

    profiles: Mapping[str, Profile]
    default_profile: str
    routes: Sequence[Route] = ()
    default_from: Address | None
    max_message_bytes: int
    expires_after: float


class Intake:
    """The door for every kind of caller."""

    def __init__(self, policy: Policy, outbox: Outbox, worker: HandOff, room: Room) -> None:
        self.policy = policy  # replaced as a whole when the settings are read again
        self._outbox = outbox
        self._room = room
        self._worker = worker

    async def accept(self, draft: Draft, caller: Caller, *, id: UUID, now: datetime, key: str | None = None) -> Receipt:
        """Take `draft` under `id`; the receipt follows the COMMIT.

        `key` is the caller's idempotency key: with one that is known, the receipt is of the first request's message.

        Raises:
            InvalidMessage: with a pointer for each fault.
            KeyReused: the key stands for another message.
            TooLarge: composed it is over `max_message_bytes`.
            NoRoom: the disk or the queue is full.
            StoreUnavailable: nothing was taken.
        """
        repeat = Repeat(key, await _beside(draft, partial(fingerprint, draft))) if key is not None else None
        try:
            message = await _beside(draft, partial(self.prepare, draft, caller, id=id, now=now))
            self._room.take(len(message.content))
        except (InvalidMessage, TooLarge, NoRoom):
            # Whoever asks for what we have is not told that we have it not, whatever would be said of a new one.
            known = None if repeat is None else await self._outbox.known(caller.name, repeat, now)
            if known is None:
                raise
            return Receipt(known, is_replay=True)
        is_due = message.send_at is None or message.send_at <= now
        lease = self._worker.reserve(message.profile) if is_due else None
        claim = None
        try:
            receipt = await self._outbox.append(message, lease=lease, now=now, repeat=repeat)
            claim = receipt.claim
        finally:
            if lease is not None and claim is None:
                self._worker.give_up_place(message.profile)
        if claim is not None:
            self._worker.hand_off(claim)
        elif receipt.snapshot.next_attempt_at is not None:
            self._worker.nudge(receipt.snapshot.profile)
        return receipt

    def prepare(self, draft: Draft, caller: Caller, *, id: UUID, now: datetime) -> Message:
        """Make the message that `accept()` would append. Pure; raises the same refusals."""
        recipients = _distinct(draft.to + draft.cc + draft.bcc)
        name = draft.profile or self._route(draft, recipients)
        profile = self.policy.profiles.get(name)
        sender = draft.sender or (profile and profile.from_address) or self.policy.default_from
        too_late = draft.send_at is not None and draft.send_at > now + LATEST
        if profile is None or sender is None or too_late or _content_faults(draft, recipients):
            raise InvalidMessage.of(self._faults(draft, recipients, name, profile, sender=sender, too_late=too_late))
        message_id = f"<{id}@{sender.domain}>"
        begins = max(now, draft.send_at or now)
        content = compose(draft, sender=sender, message_id=message_id, date=begins, boundary=f"=_{id.hex}")
        limit = min(self.policy.max_message_bytes, profile.max_message_bytes or self.policy.max_message_bytes)
        if len(content) > limit:
            where = "" if limit == self.policy.max_message_bytes else f" through {profile.name}"
            raise TooLarge(f"The message has {len(content)} bytes when composed; at most {limit} are taken{where}")
        envelope_sender = profile.envelope_from or sender.addr_spec
        shown = (sender, *draft.to, *draft.cc, *draft.reply_to)
        return Message(
            id=id,
            message_id=message_id,
            content=content,
            envelope=Envelope(
                envelope_sender,
                tuple(address.addr_spec for address in recipients),
                smtputf8=not envelope_sender.isascii() or any(a.needs_smtputf8 for a in (*shown, *recipients)),
            ),
            subject=draft.subject,
            profile=profile.name,
            created_at=now,
            expires_at=begins + timedelta(seconds=draft.expires_in or self.policy.expires_after),
            send_at=draft.send_at,
            sandbox=profile.sandbox,
            caller=caller.name,
            tags=draft.tags,
            metadata=draft.metadata,
            warnings=draft.warnings,
        )

    def _route(self, draft: Draft, recipients: tuple[Address, ...]) -> str:
        policy = self.policy
        if not policy.routes:
            return policy.default_profile
        sender = draft.sender or policy.default_from
        return route(policy.routes, sender=sender, recipients=recipients, default=policy.default_profile)

    def _faults(
        self,
        draft: Draft,
        recipients: tuple[Address, ...],
        name: str,
        profile: Profile | None,
        *,
        sender: Address | None,
        too_late: bool,
    ) -> list[Fault]:
        """Name everything that is wrong, at once."""
        faults = _content_faults(draft, recipients)
        if too_late:
            faults.append(Fault("/send_at", f"send_at is more than {LATEST.days} days ahead; give a nearer instant"))
        if profile is None:
            near = get_close_matches(name, self.policy.profiles, n=1)
            cure = f"do you mean {near[0]}?" if near else f"there are: {', '.join(self.policy.profiles)}"
            faults.insert(0, Fault("/profile", f"there is no profile {name[:80]!r}; {cure}"))
        elif sender is None:
            cure = "give it, or set a default (SMTP_FROM, or default_from in the file)"
            faults.insert(0, Fault("/from", f"from is missing: {cure}"))
        return faults


async def _beside(draft: Draft, work: Callable[[], _T]) -> _T:
    """Do pure work on a draft; beside the event loop where it is large."""
    size = len(draft.text or "") + len(draft.html or "") + sum(len(file.base64) for file in draft.attachments)
    return await asyncio.to_thread(work) if size > LARGE else work()


def fingerprint(draft: Draft) -> bytes:
    """Tell two requests apart: SHA-256 over all that was asked for, however its JSON was written."""
    return sha256(to_json(replace(draft, warnings=()))).digest()


def _distinct(addresses: tuple[Address, ...]) -> tuple[Address, ...]:
    """Each mailbox once, in the order of their first mention."""
    if len(addresses) == 1:
        return addresses
    distinct: dict[str, Address] = {}
    for address in addresses:
        distinct.setdefault(address.key, address)
    return tuple(distinct.values())


def _content_faults(draft: Draft, recipients: tuple[Address, ...]) -> list[Fault]:
    faults = []
    if not recipients:
        faults.append(Fault("/to", "nobody to send to: give at least one address in to, cc or bcc"))
    if len(recipients) > MAX_RECIPIENTS:
        faults.append(Fault("/to", f"{len(recipients)} recipients are too many; at most {MAX_RECIPIENTS} a message"))
    if draft.text is None and draft.html is None:
        faults.append(Fault("/text", "there is nothing to send: give text, html or both"))
    return faults
