"""Profiles, messages and claims for tests, and the road from a claim to a relay, as the worker takes it.

`attempt()` goes through everything between a claim and an outcome, over a real socket: one pool, real sessions,
nothing replaced but the resolver, which leads every name to the relay under test. `Deliveries` is the same for
several attempts over one pool. `on_both_loops` runs a test on asyncio's event loop and again on uvloop's.
"""

import asyncio
import functools
import inspect
import re
import socket
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import Any, NamedTuple, Self, TypedDict, Unpack, assert_never, cast
from uuid import UUID

import pytest
import uvloop

from app.delivery.attempt import carry_out
from app.delivery.contents import Contents
from app.delivery.plan import Ending
from app.mail.attempt import Attempt
from app.mail.ids import uuid7
from app.mail.message import Claim, Envelope, Lease, Message, Recipient, Snapshot
from app.mail.outcome import Deferred, Failure, InDoubt, MessageState, Outcome, Rejected, Sent
from app.mail.profile import AuthMode, Dialect, Profile, ProfileFacts, Timeouts, TlsMode, TlsVersion, resolve_profile
from app.smtp.network import Resolve, SocketAddress
from app.smtp.opening import open_session
from app.smtp.pool import Pool
from app.smtp.session import Session
from tests.support.relay import Relay
from tests.support.tls import certificates

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
HELO = "client.test"
SENDER = "ann@ours.test"
RECIPIENT = "bob@theirs.test"
BODY = b"A body that must not leak."
CONTENT = b"Subject: hello\r\nMessage-ID: <1@ours.test>\r\n\r\n" + BODY + b"\r\n"
LONG, SHORT = 1.9, 0.15  # seconds: a time-out that must not be met, and one that a test waits for


def timeouts(**short: float) -> Timeouts:
    """Give time-outs that no test should meet, except the ones named."""
    return replace(Timeouts(*[LONG] * len(Timeouts.__dataclass_fields__)), **short)


class Settings(TypedDict, total=False):
    """What a test may say about a profile."""

    name: str
    host: str
    port: int
    tls: TlsMode
    auth: AuthMode
    username: str
    password: str
    password_file: str | Path
    verify: bool
    ca_file: str | Path
    cert_sha256: str
    server_name: str
    client_cert: str | Path
    client_key: str | Path
    min_tls: TlsVersion
    tls_security_level: int
    allow_cleartext_auth: bool
    helo_name: str
    max_connections: int
    max_messages_per_connection: int
    idle_timeout: float
    timeouts: Timeouts
    dialect: Dialect


def make_profile(**said: Unpack[Settings]) -> Profile:
    """Resolve what was said as at start-up: contradictions are refused.

    Without more it is a relay in clear on localhost:25. Where it verifies, it trusts the tests' authority.
    """
    facts: dict[str, Any] = {
        "name": "relay",
        "host": "localhost",
        "port": 25,
        "tls": TlsMode.NONE,
        "dialect": Dialect.FILE,
        "timeouts": timeouts(),
        **said,
    }
    verifies = facts["tls"] in (TlsMode.STARTTLS, TlsMode.IMPLICIT) and facts.get("verify", True)
    if verifies and "cert_sha256" not in facts:
        facts.setdefault("ca_file", certificates().ca_file)
    facts = {key: str(value) if isinstance(value, Path) else value for key, value in facts.items()}
    profile, _ = resolve_profile(ProfileFacts(**facts))
    return profile


def make_message(
    *recipients: str,
    number: int = 1,
    sender: str = SENDER,
    content: bytes = CONTENT,
    profile: str = "relay",
    smtputf8: bool = False,
    created_at: datetime = NOW,
    lives: timedelta = timedelta(hours=24),
) -> Message:
    """Make a composed message; messages with another `number` have another id."""
    return Message(
        id=uuid7(created_at, number),
        message_id=f"<{number}@ours.test>",
        content=content,
        envelope=Envelope(sender, recipients or (RECIPIENT,), smtputf8),
        subject="hello",
        profile=profile,
        created_at=created_at,
        expires_at=created_at + lives,
    )


def make_claim(
    *recipients: str | Recipient,
    number: int = 1,
    sender: str = SENDER,
    content: bytes = CONTENT,
    smtputf8: bool = False,
    attempts: int = 1,
) -> Claim:
    """Make the hold on a message that is being sent for the `attempts`th time."""
    people = tuple(r if isinstance(r, Recipient) else Recipient(r) for r in recipients or (RECIPIENT,))
    message = make_message(*(r.address for r in people), number=number, sender=sender, content=content)
    snapshot = Snapshot(
        id=message.id,
        state=MessageState.SENDING,
        profile=message.profile,
        message_id=message.message_id,
        sender=sender,
        subject=message.subject,
        size=len(content),
        attempts=attempts,
        recipients=people,
        created_at=message.created_at,
        expires_at=message.expires_at,
    )
    return Claim(snapshot, Lease(number, NOW + timedelta(minutes=5)), smtputf8, content)


def next_claim(claim: Claim, ending: Ending) -> Claim:
    """Claim again what an attempt left pending."""
    snapshot = replace(claim.snapshot, recipients=ending.recipients, attempts=claim.snapshot.attempts + 1)
    return replace(claim, snapshot=snapshot)


# --- the road to the relay -------------------------------------------------------------------------------


class Tried(NamedTuple):
    """What came of an attempt, and what it saw."""

    outcomes: Mapping[str, Outcome]
    attempt: Attempt

    @property
    def in_words(self) -> str:
        """The outcome that all recipients share."""
        (words,) = {in_words(outcome) for outcome in self.outcomes.values()}
        return words


def in_words(outcome: Outcome) -> str:
    """Say an outcome as "sent" or "code/reason C", with the initial of its class."""
    match outcome:
        case Sent():
            return "sent"
        case Rejected(failure) | Deferred(failure) | InDoubt(failure):
            return f"{failure.code}/{failure.reason} {failure.cls.value[0].upper()}"
        case _:
            assert_never(outcome)


def leading_to(port: int, host: str = "127.0.0.1") -> Resolve:
    """Give a resolver that leads every name and port to one place on this machine."""

    async def resolve(_host: str, _port: int) -> list[SocketAddress]:
        return [address_of(port, host)]

    return resolve


def address_of(port: int, host: str = "127.0.0.1") -> SocketAddress:
    return (socket.AF_INET6, (host, port, 0, 0)) if ":" in host else (socket.AF_INET, (host, port))


async def on_loopback(_host: str, port: int) -> list[SocketAddress]:
    """Resolve every name to 127.0.0.1."""
    return [address_of(port)]


def marked() -> "asyncio.Future[None]":
    """Give a handover mark that is durable at once."""
    mark = asyncio.get_running_loop().create_future()
    mark.set_result(None)
    return mark


class Deliveries:
    """A pool and what is needed to send through it; its end closes the pool."""

    def __init__(self, resolve: Resolve = on_loopback, *, own_name: str | None = HELO) -> None:
        self._resolve = resolve
        self._own_name = own_name

    async def __aenter__(self) -> Self:
        self.pool = Pool(self.open)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.pool.close()

    async def open(self, profile: Profile, attempt: Attempt) -> Session:
        return await open_session(profile, attempt, resolve=self._resolve, own_name=self._name)

    async def send(
        self,
        profile: Profile,
        claim: Claim | None = None,
        *,
        attempt: Attempt | None = None,
        before_handover: Callable[[], Awaitable[None]] = marked,
    ) -> Tried:
        """Carry one attempt out; give `attempt` to look at it while it runs."""
        claim = claim or make_claim()
        attempt = attempt or make_attempt(profile, claim)
        contents = Contents(_nothing_stored, most=1 << 30)
        outcomes, _ = await carry_out(
            claim, contents, profile, attempt, pool=self.pool, before_handover=before_handover
        )
        return Tried(outcomes, attempt)

    async def _name(self) -> str | None:
        return self._own_name


async def _nothing_stored(_: UUID) -> None:
    return None


def make_attempt(profile: Profile, claim: Claim | None = None) -> Attempt:
    return Attempt(claim.snapshot.attempts if claim else 1, profile.name, NOW, perf_counter)


async def attempt(
    at: Relay | int,
    claim: Claim | None = None,
    *,
    resolve: Resolve | None = None,
    before_handover: Callable[[], Awaitable[None]] = marked,
    **said: Unpack[Settings],
) -> Tried:
    """Try once to send through the relay, or what listens on that port, and close everything.

    The profile may name any host and port; it is led there all the same, unless `resolve` says otherwise.
    """
    port, host = (at, "127.0.0.1") if isinstance(at, int) else (at.port, at.host)
    said.setdefault("port", port)
    async with Deliveries(resolve or leading_to(port, host)) as deliveries:
        return await deliveries.send(make_profile(**said), claim, before_handover=before_handover)


def refused_port() -> int:
    """Give a port on 127.0.0.1 where nobody listens."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return cast(int, sock.getsockname()[1])


async def turns(count: int = 30) -> None:
    """Let everything happen that needs no more than this machine: bytes on loopback, tasks, callbacks."""
    for _ in range(count):
        await asyncio.sleep(0)


def as_hinted(keys: str, settings: Settings, failure: Failure) -> Settings:
    """Change the settings to what the hint says of these keys, separated by blanks; it names one of them at least."""
    kinds: Mapping[str, Callable[[str], Any]] = {
        "tls": TlsMode,
        "auth": AuthMode,
        "min_tls": TlsVersion,
        "tls_security_level": int,
        "allow_cleartext_auth": lambda value: value == "true",
    }
    lines = {key: re.search(rf'\b{key} = (?:"([^"]+)"|(\w+))', failure.hint) for key in keys.split()}
    changes = {key: kinds.get(key, str)(line[1] or line[2]) for key, line in lines.items() if line is not None}
    assert changes, failure.hint
    return cast(Settings, {**settings, **changes})


# --- loops -----------------------------------------------------------------------------------------------

_LOOPS: Mapping[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.new_event_loop,
    "uvloop": uvloop.new_event_loop,
}


def on_both_loops(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Make two tests of an async one: on asyncio's event loop and on uvloop's, which the service runs on."""
    return _on(test, _LOOPS)


def on_uvloop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run an async test on the loop that the service runs on."""
    return _on(test, {"uvloop": _LOOPS["uvloop"]})


def _on(
    test: Callable[..., Coroutine[Any, Any, None]], loops: Mapping[str, Callable[[], asyncio.AbstractEventLoop]]
) -> Callable[..., None]:
    @pytest.mark.parametrize("new_loop", loops.values(), ids=loops.keys())
    @functools.wraps(test)
    def run(*args: Any, new_loop: Callable[[], asyncio.AbstractEventLoop], **fixtures: Any) -> None:
        with asyncio.Runner(loop_factory=new_loop) as runner:
            runner.run(test(*args, **fixtures))

    signature = inspect.signature(test)
    new_loop = inspect.Parameter("new_loop", inspect.Parameter.KEYWORD_ONLY)
    vars(run)["__signature__"] = signature.replace(parameters=[*signature.parameters.values(), new_loop])
    return cast("Callable[..., None]", run)
