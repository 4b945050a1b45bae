"""Taking a message: check, route, compose once, append. Once `accept()` returns, the message is ours.

Order of events: profile → sender → recipients → compose → size → room → reserve a place → append (COMMIT) → hand off.
Nothing of this room knows HTTP, SQL or SMTP. RFC 5321 §6.1 (accepting means not losing).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass, replace
from datetime import datetime, timedelta
from difflib import get_close_matches
from functools import partial
from hashlib import sha256
from typing import TypeVar
from uuid import UUID

from pydantic_core import to_json

from app.compose.attachment import is_composite
from app.compose.mime import compose
from app.intake.callers import Caller
from app.intake.offload import Offload
from app.intake.room import Room
from app.mail.address import Address
from app.mail.errors import Fault, InvalidMessage, NoRoom, TooLarge
from app.mail.message import Claim, Draft, Envelope, Lease, Message, Receipt, Repeat
from app.mail.profile import Profile
from app.mail.routing import Route, route
from app.store.outbox import Outbox

T = TypeVar("T")

MAX_RECIPIENTS = 1000
LATEST = timedelta(days=366)  # that a message may be scheduled ahead
MOST_BYTES_INLINE = 256 * 1024  # of texts and attachments that are composed in the event loop
MOST_PEOPLE_INLINE = 100  # recipients and reply-to addresses that are


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

    def __init__(
        self, policy: Policy, outbox: Outbox, worker: HandOff, room: Room, offload: Offload | None = None
    ) -> None:
        self.policy = policy  # replaced as a whole when the settings are read again
        self._outbox = outbox
        self._room = room
        self._worker = worker
        self._offload = offload  # for large drafts; None = they are composed in the event loop

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
        repeat = None if key is None else Repeat(key, await self._computed(draft, partial(fingerprint, draft)))
        try:
            message = await self.preview(draft, caller, id=id, now=now)
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

    async def preview(self, draft: Draft, caller: Caller, *, id: UUID, now: datetime) -> Message:
        """Make the message that `accept()` would append, beside the event loop where that takes long."""
        return await self._computed(draft, partial(self.prepare, draft, caller, id=id, now=now))

    async def _computed(self, draft: Draft, work: Callable[[], T]) -> T:
        if self._offload is not None and is_large(draft):
            return await self._offload.run(work)
        return work()

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
        limit = min(self.policy.max_message_bytes, profile.max_message_bytes or self.policy.max_message_bytes)
        where = "" if limit == self.policy.max_message_bytes else f" through {profile.name}"
        least = _least_size(draft)
        if least > max(limit, MOST_BYTES_INLINE):  # a smaller one is composed, for the exact number
            raise TooLarge(f"The message has at least {least} bytes when composed; at most {limit} are taken{where}")
        content = compose(draft, sender=sender, message_id=message_id, date=begins, boundary=f"=_{id.hex}")
        if len(content) > limit:
            raise TooLarge(f"The message has {len(content)} bytes when composed; at most {limit} are taken{where}")
        envelope_sender = sender.addr_spec if profile.envelope_from is None else profile.envelope_from
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
            near = get_close_matches(name[:80], self.policy.profiles, n=1)
            cure = f"do you mean {near[0]}?" if near else f"there are: {', '.join(self.policy.profiles)}"
            faults.insert(0, Fault("/profile", f"there is no profile {name[:80]!r}; {cure}"))
        elif sender is None:
            cure = "give it, or set a default (SMTP_FROM, or default_from in the file)"
            faults.insert(0, Fault("/from", f"from is missing: {cure}"))
        return faults


def is_large(draft: Draft) -> bool:
    """Return whether composing it may take longer than the event loop should wait."""
    people = len(draft.to) + len(draft.cc) + len(draft.bcc) + len(draft.reply_to)
    return people > MOST_PEOPLE_INLINE or _least_size(draft) > MOST_BYTES_INLINE


def _least_size(draft: Draft) -> int:
    """Return a lower bound of the composed size, without composing."""
    texts = len(draft.text or "") + len(draft.html or "") + (len(draft.calendar.content) if draft.calendar else 0)
    return texts + sum(
        len(file.base64) // 4 * 3 - 2 if is_composite(file.content_type) else len(file.base64)
        for file in draft.attachments
    )


# Hashed whatever they hold, as the first stored fingerprints were. A field that is not named here counts only where it
# differs from its default, so a release that adds one still knows the requests that were taken before it.
_ALWAYS_HASHED = frozenset(
    {
        *("to", "cc", "bcc", "reply_to", "sender", "subject", "text", "html", "headers", "attachments", "profile"),
        *("tags", "metadata", "send_at", "expires_in", "warnings"),  # of Draft
        *("filename", "base64", "content_type", "content_id", "is_inline"),  # of Attachment
        *("local", "domain", "name"),  # of Address
    }
)


def fingerprint(draft: Draft) -> bytes:
    """Return the SHA-256 of a request, however its JSON was written; it outlives an upgrade of the service."""
    asked, how = replace(draft, warnings=()), b""
    if _least_size(draft) > MOST_BYTES_INLINE:
        # By their digests: one call over tens of megabytes would hold the event loop up, in whatever thread.
        how = b"by digest"
        asked = replace(
            asked,
            text=_digest(draft.text),
            html=_digest(draft.html),
            calendar=draft.calendar and replace(draft.calendar, content=_digest(draft.calendar.content) or ""),
            attachments=tuple(replace(a, base64=sha256(a.base64).hexdigest().encode()) for a in draft.attachments),
        )
    return sha256(how + to_json(_hashed(asked))).digest()


def _hashed(value: object) -> object:
    """Return a fact as the JSON value that is hashed."""
    if isinstance(value, tuple):
        return [_hashed(item) for item in value]
    if not is_dataclass(value):
        return value
    hashed: dict[str, object] = {}
    for each in fields(value):
        held = getattr(value, each.name)
        default = each.default if each.default_factory is MISSING else each.default_factory()
        if each.name in _ALWAYS_HASHED or held != default:
            hashed[each.name] = _hashed(held)
    return hashed


def _digest(text: str | None) -> str | None:
    if text is None:
        return None
    whole = sha256()
    for at in range(0, len(text), MOST_BYTES_INLINE):
        whole.update(text[at : at + MOST_BYTES_INLINE].encode())
    return whole.hexdigest()


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
    if draft.text is None and draft.html is None and draft.calendar is None and not draft.attachments:
        faults.append(Fault("/text", "there is nothing to send: give text, html or both, calendar, or an attachment"))
    return faults
