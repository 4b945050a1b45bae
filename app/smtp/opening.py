"""Opening a session: resolve the relay's name, then try its addresses until one serves us.

One address after the other within the attempt (RFC 5321 §5.1), until a login was tried: a second one could lock the
account. `phases.py` walks through one connection; what is decided here is which address comes next, whether
opportunistic TLS goes on in clear (RFC 7435), and what a failed handshake was about.
"""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from dataclasses import replace

from app.mail.attempt import Attempt
from app.mail.codes import Reason
from app.mail.errors import TransactionError
from app.mail.hints import hint
from app.mail.outcome import Failure, Phase
from app.mail.profile import Profile, TlsMode
from app.smtp import classify, tls_errors
from app.smtp.handshake import OursRefused
from app.smtp.network import OwnName, Resolve, SocketAddress
from app.smtp.phases import ClosedBehindHandshake, HandshakeFailed, Opening
from app.smtp.session import Session
from app.smtp.tls import read_certificate, weakest
from app.smtp.tls_errors import Known

MOST_ADDRESSES = 5  # that one attempt goes to
ADDRESSES_WITHIN = 120.0  # seconds after which no further address is tried
_ORDER = {phase: number for number, phase in enumerate(Phase)}


async def open_session(profile: Profile, attempt: Attempt, *, resolve: Resolve, own_name: OwnName) -> Session:
    """Open a session; note in `attempt` how far it got and what was said.

    Raises:
        TransactionError: it did not come about; nothing was sent.
    """
    attempt.host, attempt.port = profile.host, profile.port
    addresses = await _look_up(profile, attempt, resolve)
    ends = attempt.clock() + ADDRESSES_WITHIN
    told: TransactionError | None = None  # the failure that got furthest stands for all
    for _ in range(MOST_ADDRESSES):
        opening = Opening(profile, attempt, addresses, own_name)
        try:
            return await _through(opening, profile, attempt, own_name)
        except TransactionError as error:
            if told is None or _ORDER[error.failure.phase] > _ORDER[told.failure.phase]:
                told, ip = error, attempt.ip
            addresses = [address for address in addresses if address != opening.address]
            may_go_on = bool(addresses) and opening.address is not None and attempt.clock() < ends
            if not may_go_on or attempt.auth is not None or error.failure.reason is Reason.FILE_UNREADABLE:
                break
            attempt.turn_to_next_address(error.failure)
    assert told is not None  # noqa: S101 (there was at least one address)
    attempt.ip, attempt.phase = ip, told.failure.phase
    raise told


async def _look_up(profile: Profile, attempt: Attempt, resolve: Resolve) -> list[SocketAddress]:
    attempt.enter(Phase.RESOLVE)
    try:
        async with asyncio.timeout(profile.timeouts.resolve):
            found = await resolve(profile.host, profile.port)
    except (OSError, UnicodeError) as error:  # TimeoutError and gaierror are OSErrors
        raise TransactionError(classify.lookup(profile, error)) from error
    if not found:
        raise TransactionError(classify.lookup(profile, socket.gaierror(socket.EAI_NONAME, "no address")))
    return list(dict.fromkeys(found))


async def _through(opening: Opening, profile: Profile, attempt: Attempt, own_name: OwnName) -> Session:
    try:
        return await opening.run()
    except HandshakeFailed as error:
        failure, is_tls = await _explained(error.cause, opening, profile)
        attempt.phase = failure.phase
        if is_tls:
            attempt.tls_error = failure.message
        if not is_tls or profile.tls is not TlsMode.OPPORTUNISTIC:
            raise TransactionError(failure) from error.cause
        attempt.forget_tls()
    except TransactionError as error:
        if error.failure.reason is not Reason.TLS_CLIENT_CERT_REQUIRED:
            raise
        facts = tls_errors.facts_of_request(opening.seen)
        raise TransactionError(replace(error.failure, hint=hint(error.failure.reason, profile, facts))) from error
    # RFC 7435: opportunistic goes on in clear, over a fresh connection since this one may be in any state.
    there = [opening.address] if opening.address is not None else []
    return await Opening(profile, attempt, there, own_name, in_clear=True).run()


async def _explained(cause: BaseException, opening: Opening, profile: Profile) -> tuple[Failure, bool]:
    """Say what a failed handshake was about, and whether it was about TLS at all."""
    if isinstance(cause, TransactionError):  # STARTTLS itself was refused
        return cause.failure, True
    seen = opening.seen
    if isinstance(cause, ClosedBehindHandshake):
        if not seen.asks_for_ours:
            return cause.failure, False
        cause = OursRefused(0, "the relay asked for a certificate of ours and closed")
    certificate = await read_certificate(seen.chain[0]) if seen.chain else None
    top = await read_certificate(seen.chain[-1]) if seen.chain else None
    weaker = None
    if profile.requires_tls and opening.address is not None and tls_errors.may_be_too_weak(cause, seen):
        with suppress(Exception):  # a hint's detail: whatever hinders it, the failure itself is known
            weaker = await weakest(profile, opening.address, opening.local_name)
    return classify.tls(profile, cause, Known(seen, certificate, top, weaker)), True
