"""The doctor: walks through a profile stage by stage, and says where it stops and which setting mends that.

    resolve → connect → tls → greeting → ehlo → starttls → auth → mail → rcpt, then RSET and QUIT

The same session opens the way as for a message, so that what the doctor finds is what a message would meet. No
content is sent. At most one login a diagnosis, and one a minute a profile: relays lock accounts for less. Where
nothing answers as it should, the relay's other usual ports are tried, so that the hint can name one that does.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from math import ceil, inf
from typing import TypeAlias

from app.mail.address import Address
from app.mail.attempt import Attempt
from app.mail.errors import RateLimited, TransactionError
from app.mail.outcome import Failure, Phase
from app.mail.profile import Profile, TlsMode
from app.mail.reply import Reply
from app.smtp import classify
from app.smtp.network import Resolve
from app.smtp.ports import PATIENCE, USUAL_PORTS, Ports
from app.smtp.session import Session
from app.smtp.wire import Breach

OpenSession: TypeAlias = Callable[[Profile, Attempt], Awaitable[Session]]

STAGES = (
    Phase.RESOLVE,
    Phase.CONNECT,
    Phase.TLS,
    Phase.GREETING,
    Phase.EHLO,
    Phase.STARTTLS,
    Phase.AUTH,
    Phase.MAIL,
    Phase.RCPT,
)
BETWEEN_LOGINS = 60.0  # seconds
_PORT_SECONDS = PATIENCE


class StageState(StrEnum):
    OK = "ok"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage. `ms` is None where it did not take place; `said` is a few words for people."""

    phase: Phase
    state: StageState
    ms: float | None = None
    said: str = ""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What was found. `failure` None = a message would get as far as its content."""

    profile: Profile
    attempt: Attempt
    stages: tuple[Stage, ...]
    failure: Failure | None

    @property
    def is_ok(self) -> bool:
        return self.failure is None


class Doctor:
    """Diagnoses profiles; remembers when each last logged in, and which may be logging in now."""

    def __init__(
        self,
        *,
        open_session: OpenSession,
        resolve: Resolve,
        now: Callable[[], datetime],
        clock: Callable[[], float],
        default_from: Address | None = None,
    ) -> None:
        self._open_session = open_session
        self._ports = Ports(resolve=resolve, clock=clock, patience=_PORT_SECONDS)
        self._now = now
        self._clock = clock
        self.default_from = default_from
        self._logged_in: dict[str, float] = {}  # profile → when

    async def diagnose(self, profile: Profile, *, sender: str | None, recipient: str | None) -> Diagnosis:
        """Walk through the stages.

        `sender` None = whom the settings name, and where they name nobody, the last two stages are skipped;
        `recipient` None = the sender, and for the null sender whom the settings name.

        Raises:
            RateLimited: this profile logged in for a diagnosis less than a minute ago.
        """
        self._refuse_a_login_too_many(profile)
        default = profile.from_address or self.default_from
        named = default.addr_spec if default else None
        if sender is None:
            sender = named if profile.envelope_from is None else profile.envelope_from
        recipient = recipient or sender or named
        attempt = Attempt(1, profile.name, self._now(), self._clock)
        if profile.wants_login:
            self._logged_in[profile.name] = inf  # until it is known: two at once are one login too many
        failure: Failure | None = None
        session: Session | None = None
        try:
            session = await self._open_session(profile, attempt)
            failure = await _try_envelope(session, attempt, sender, recipient)
        except TransactionError as error:
            failure = error.failure
        finally:
            if session is not None:
                session.close()
            self._logged_in.pop(profile.name, None)
            if attempt.auth is not None:
                self._logged_in[profile.name] = self._clock()
        attempt.end()
        if failure is not None:
            failure = await self._ports.explained(profile, failure, anew=True, usual_ports=USUAL_PORTS)
        attempt.failure = failure
        return Diagnosis(profile, attempt, stages(profile, attempt, failure), failure)

    def _refuse_a_login_too_many(self, profile: Profile) -> None:
        last = self._logged_in.get(profile.name)
        if not profile.wants_login or last is None:
            return
        wait = min(BETWEEN_LOGINS, last + BETWEEN_LOGINS - self._clock())
        if wait > 0:
            raise RateLimited(
                f"The profile {profile.name} has just logged in for a diagnosis; relays lock accounts that log in too "
                f"often, so once a minute is enough: try again in {ceil(wait)} s",
                wait,
            )


async def _try_envelope(
    session: Session, attempt: Attempt, sender: str | None, recipient: str | None
) -> Failure | None:
    """Ask for a sender and a recipient, and take it back."""
    timeouts = session.profile.timeouts
    session.wire.heard = attempt.hear
    try:
        if sender is None:
            return None
        smtputf8 = "" if f"{sender}{recipient}".isascii() else " SMTPUTF8"
        if smtputf8 and "SMTPUTF8" not in session.extensions:
            attempt.enter(Phase.MAIL)
            return classify.smtputf8_not_offered(session.profile)
        reply = await _ask(session, attempt, Phase.MAIL, f"MAIL FROM:<{sender}>{smtputf8}", timeouts.mail)
        if reply.is_positive and recipient is not None:
            reply = await _ask(session, attempt, Phase.RCPT, f"RCPT TO:<{recipient}>", timeouts.rcpt)
        if reply.is_positive:
            attempt.say("RSET")
            await session.reset()
            return None
        return classify.transaction(session.profile, attempt, attempt.phase, reply, our_address=session.our_address)
    except Breach as breach:
        return classify.breach(session.profile, attempt.phase, breach)


async def _ask(session: Session, attempt: Attempt, phase: Phase, line: str, timeout: float) -> Reply:
    attempt.enter(phase)
    attempt.say(line)
    session.wire.send(f"{line}\r\n".encode(), replies=1)
    return await session.wire.next_reply(timeout)


def stages(profile: Profile, attempt: Attempt, failure: Failure | None) -> tuple[Stage, ...]:
    """Read an attempt into the stages it went through. Pure."""
    found = []
    for phase in STAGES:
        ms = attempt.phases.get(phase.value)
        if failure is not None and failure.phase is phase:
            found.append(Stage(phase, StageState.FAILED, ms, failure.message))
        elif phase is Phase.STARTTLS and attempt.tls_error is not None and profile.tls is TlsMode.OPPORTUNISTIC:
            found.append(Stage(phase, StageState.FAILED, ms, f"went on in clear: {attempt.tls_error}"))
        elif ms is None:
            found.append(Stage(phase, StageState.SKIPPED, None, _why_skipped(profile, phase, failure)))
        else:
            found.append(Stage(phase, StageState.OK, ms, _said(attempt, phase)))
    return tuple(found)


def _why_skipped(profile: Profile, phase: Phase, failure: Failure | None) -> str:
    if failure is not None and STAGES.index(phase) > STAGES.index(failure.phase):
        return ""
    match phase:
        case Phase.TLS:
            return f"tls is {profile.tls}"
        case Phase.STARTTLS if profile.tls is TlsMode.OPPORTUNISTIC:
            return "the relay does not offer it"
        case Phase.STARTTLS:
            return f"tls is {profile.tls}"
        case Phase.AUTH:
            return "no credentials: no AUTH"
        case Phase.MAIL | Phase.RCPT:
            return "no address to ask for"
        case _:
            return ""


def _said(attempt: Attempt, phase: Phase) -> str:
    match phase:
        case Phase.CONNECT:
            return f"{attempt.ip}:{attempt.port}"
        case Phase.TLS | Phase.STARTTLS if attempt.tls:
            verified = "verified" if attempt.tls_verified else "not verified"
            return f"{attempt.tls_version}, certificate for {', '.join(attempt.tls_names) or 'nobody'}, {verified}"
        case Phase.EHLO:
            return ", ".join(attempt.extensions)
        case Phase.AUTH:
            return attempt.auth or ""
        case _:
            return ""
