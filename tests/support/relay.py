"""A scripted SMTP relay on loopback: a well-behaved ESMTP server (RFC 5321), until a rule says otherwise.

It knows PIPELINING (2920), STARTTLS (3207), AUTH (4954) and CHUNKING (3030), and nothing of the code under
test; it lives in the test's event loop and never sleeps. A connection goes through TLS if implicit, the
greeting, then command after command: the newest rule that fits is played, else the default said. Replies to
commands that came together leave together, in one segment; an action in between first sends what was said.
What a reply means to the relay itself is read off its first digit: "250" accepts, scripted or not. Behind a
scripted "354 ..\\n552 .." the content is taken, and its dot not answered a second time.
"""

import asyncio
import base64
import hmac
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

from tests.support.scram import HASHES, ScramServer
from tests.support.tls import Answer, Close, Drip, Link, Over, Record, ServerContext

# isort: split
from tests.support.tls import GarbageInsteadOfTLS, Hear, Reset, Split, Stall, StartTLS, StopReading, Wait

__all__ = ["Close", "Conversation", "Drip", "GarbageInsteadOfTLS", "Hear", "Mail", "Relay", "Reset", "Split"]
__all__ += ["Stall", "StartTLS", "StopReading", "Wait"]

PATIENCE = 5.0  # seconds a test waits for a signal before it fails
EXTENSIONS = ("PIPELINING", "SIZE 10485760", "8BITMIME", "SMTPUTF8", "ENHANCEDSTATUSCODES")
VERBS = "GREETING EHLO HELO STARTTLS AUTH AUTH2 MAIL RCPT DATA BDAT CONTENT RSET NOOP QUIT"
BDAT = re.compile(r"BDAT (\d+)( LAST)?", re.IGNORECASE)
CHALLENGES = {"PLAIN": [b""], "LOGIN": [b"Username:", b"Password:"], "CRAM-MD5": [b"<1896@relay.test>"]}
BAD_SEQUENCE = "503 5.5.1 Bad sequence of commands"
NO_RECIPIENTS = "554 5.5.1 No valid recipients"


@dataclass(slots=True)
class Mail:
    """One content that arrived whole, whatever was answered to it."""

    mail_from: str
    rcpt_to: list[str]  # the accepted ones
    content: bytes  # without dot-stuffing and final dot
    reply: bytearray  # grows as it is said; empty when nothing was

    @property
    def taken(self) -> bool:
        return self.reply.startswith(b"2")


@dataclass(slots=True)
class Conversation(Record):
    """One connection as recorded, from the greeting on."""

    commands: list[str] = field(default_factory=list)  # without CRLF; AUTH continuation lines too
    mails: list[Mail] = field(default_factory=list)
    authenticated: bool = False


@dataclass(slots=True)
class _Rule:
    verb: str
    answer: Answer
    match: str
    left: int | None  # None: for ever


@dataclass(kw_only=True, eq=False)
class Relay:
    """Listen on a free port inside `async with`; its end cuts what is open and raises the relay's bugs."""

    host: str = "127.0.0.1"  # or "::1"
    extensions: Sequence[str] = EXTENSIONS  # "STARTTLS" here and no `tls` is a lie, answered 454
    greeting: Answer = "220 relay.test ESMTP"
    tls: ServerContext | None = None  # offers STARTTLS
    implicit: bool = False  # TLS at once
    offer_starttls: bool = True
    auth: Sequence[str] = ()  # mechanisms; PLAIN, LOGIN, CRAM-MD5 and SCRAM are checked, others need a rule
    scram: ScramServer = field(default_factory=ScramServer)
    users: Mapping[str, str] = field(default_factory=lambda: {"bot": "secret"})
    auth_only_under_tls: bool = False
    auth_required: bool = False  # 530 at MAIL
    port: int = field(init=False, default=0)
    sessions: list[Conversation] = field(init=False, default_factory=list)
    changed: asyncio.Event = field(init=False, default_factory=asyncio.Event)
    dialogues: "list[_Dialogue]" = field(init=False, default_factory=list)
    _rules: list[_Rule] = field(init=False, default_factory=list)

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Dialogue(self), self.host, 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._server.close()
        await asyncio.sleep(0)  # whatever was accepted this very moment comes in
        for dialogue in self.dialogues:
            dialogue.task.cancel()
            dialogue.transport.abort()
        async with asyncio.timeout(PATIENCE):
            ends = await asyncio.gather(*(d.task for d in self.dialogues), return_exceptions=True)
            await asyncio.gather(*(d.lost.wait() for d in self.dialogues))
        for end in ends:
            if isinstance(end, Exception) and error is None:
                raise end

    def on(self, verb: str, answer: Answer, *, match: str = "", times: int | None = None) -> None:
        """Script the answer to a verb; the newest rule that fits wins, older ones return when it is used up.

        `match` must occur in the command line, at CONTENT in the content. CONTENT is the final dot or the
        last BDAT, AUTH2 an AUTH continuation line. A 421 closes nothing unless `Close()` follows.
        """
        if verb not in VERBS.split():
            raise ValueError(f"no verb {verb!r} to script; known are {VERBS}")
        self._rules.insert(0, _Rule(verb, answer, match, times))

    def scripted(self, verb: str, text: str) -> Answer | None:
        """Find the rule for this command and count it as used."""
        for rule in self._rules:
            if rule.verb == verb and rule.match in text and rule.left != 0:
                rule.left = None if rule.left is None else rule.left - 1
                return rule.answer
        return None

    @property
    def connections(self) -> int:
        return len(self.sessions)

    @property
    def commands(self) -> list[str]:
        return [command for session in self.sessions for command in session.commands]

    @property
    def mails(self) -> list[Mail]:
        return [mail for session in self.sessions for mail in session.mails]

    @property
    def subjects(self) -> list[str]:
        """Name every content that came whole, whatever was answered."""
        lines = (line for mail in self.mails for line in mail.content.split(b"\r\n"))
        return [line.decode().removeprefix("Subject: ") for line in lines if line.startswith(b"Subject: ")]

    async def connected(self, count: int = 1) -> None:
        await self._until(f"{count} connections", lambda: self.connections >= count)

    async def seen(self, verb: str, count: int = 1) -> None:
        """Wait until so many commands with this verb were received, answered or not."""
        await self._until(f"{count} {verb}", lambda: [_verb(c) for c in self.commands].count(verb) >= count)

    async def mail(self, count: int = 1) -> Mail:
        """Wait until so many contents were received, answered or not, and return the last of them."""
        await self._until(f"{count} mails", lambda: len(self.mails) >= count)
        return self.mails[count - 1]

    async def closed(self, count: int = 1) -> None:
        """Wait until so many connections ended on both sides and all they sent was dealt with."""
        await self._until(f"{count} ends", lambda: sum(d.task.done() for d in self.dialogues) >= count)

    async def _until(self, wanted: str, holds: Callable[[], bool]) -> None:
        try:
            async with asyncio.timeout(PATIENCE):
                while not holds():
                    self.changed.clear()
                    await self.changed.wait()
        except TimeoutError:
            raise TimeoutError(f"waited {PATIENCE} s for {wanted}; commands: {self.commands}") from None


class _Dialogue(Link):
    """One connection's side of the script."""

    def __init__(self, relay: Relay) -> None:
        self.log = Conversation()
        super().__init__(self.log)
        self._relay = relay
        self._forget(greeted=False)

    def _forget(self, *, greeted: bool) -> None:
        self._greeted, self._chunks = greeted, bytearray()
        self._sender: str | None = None
        self._recipients: list[str] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.task = asyncio.get_running_loop().create_task(self._serve())
        self.task.add_done_callback(lambda _: self._relay.changed.set())
        self._relay.dialogues.append(self)
        self._relay.sessions.append(self.log)
        self._relay.changed.set()

    async def _serve(self) -> None:
        try:
            if self._relay.implicit:
                await self.start_tls(self._relay.tls)
            await self._answer("GREETING", "", self._relay.greeting)
            while True:
                await self._command(await self._line())
        except Over:
            await self.left()
        finally:
            self.transport.close()

    async def _command(self, line: str) -> None:
        verb = _verb(line)
        if verb == "AUTH":
            await self._authenticate(line)
        elif (bdat := BDAT.fullmatch(line)) and "CHUNKING" in self._relay.extensions:
            await self._take_chunk(line, int(bdat[1]), last=bdat[2] is not None)
        else:
            said = await self._answer(verb, line, self._default(verb))
            if said.startswith((b"2", b"3")):
                await self._follow(verb, line, said)

    def _default(self, verb: str) -> str:
        match verb:
            case "EHLO":
                return "\n".join(f"250-{line}" for line in self._offers()) + "\n250 HELP"
            case "MAIL" if self._relay.auth_required and not self.log.authenticated:
                return "530 5.7.0 Authentication required"
            case "MAIL" if not self._greeted or self._sender is not None:
                return BAD_SEQUENCE
            case "RCPT" | "DATA" if self._sender is None:
                return BAD_SEQUENCE
            case "DATA":
                return "354 End data with <CR><LF>.<CR><LF>" if self._recipients else NO_RECIPIENTS
            case "STARTTLS" if "STARTTLS" in self._offers():
                return "220 2.0.0 Ready" if self._relay.tls else "454 4.7.0 TLS not available"
            case "HELO" | "MAIL" | "RCPT" | "RSET" | "NOOP":
                return "250 2.0.0 Ok"
            case "QUIT":
                return "221 2.0.0 Bye"
        return "502 5.5.1 Command not implemented"

    def _offers(self) -> list[str]:
        relay, tls = self._relay, self.log.tls
        offers = ["relay.test", *(e for e in relay.extensions if e != "STARTTLS" or not tls)]
        if relay.tls and relay.offer_starttls and not tls and "STARTTLS" not in offers:
            offers.append("STARTTLS")
        if relay.auth and (tls or not relay.auth_only_under_tls):
            offers.append(f"AUTH {' '.join(relay.auth)}")
        return offers

    async def _follow(self, verb: str, line: str, said: bytes) -> None:
        match verb:
            case "EHLO" | "HELO":
                self._forget(greeted=True)
            case "RSET":
                self._forget(greeted=self._greeted)
            case "MAIL":
                self._sender = _path(line)
            case "RCPT":
                self._recipients.append(_path(line))
            case "DATA" if said.startswith(b"354"):
                await self._take_content(surplus=said.partition(b"\r\n")[2])
            case "STARTTLS":
                if not self.log.tls:
                    await self.start_tls(self._relay.tls)
                self._forget(greeted=False)  # RFC 3207 §4.2
            case "QUIT":
                await self.play(Close(), bytearray())

    async def _take_content(self, surplus: bytes) -> None:
        self.inbox[:0] = b"\r\n"  # so that a dot on the first line is found like any other
        at = 0
        while (end := self.inbox.find(b"\r\n.\r\n", at)) < 0:
            at = max(0, len(self.inbox) - 4)
            await self.more()
        content = bytes(self.inbox[: end + 2]).replace(b"\r\n.", b"\r\n")[2:]
        del self.inbox[: end + 5]
        await self._deliver(content, None, said=surplus)

    async def _take_chunk(self, line: str, size: int, *, last: bool) -> None:
        """Take the octets of a BDAT whatever the answer will be (RFC 3030 §2)."""
        while len(self.inbox) < size:
            await self.more()
        self._chunks += self.inbox[:size]
        del self.inbox[:size]
        scripted = self._relay.scripted("BDAT", line)
        default, said = f"250 2.0.0 {size} octets" if self._recipients else NO_RECIPIENTS, bytearray()
        if self._recipients and last:
            await self._deliver(bytes(self._chunks), scripted, said=b"")
        else:
            await self.play(default if scripted is None else scripted, said)
            if not said.startswith(b"2"):
                self._forget(greeted=self._greeted)

    async def _deliver(self, content: bytes, answer: Answer | None, *, said: bytes) -> None:
        """Keep the content and answer it, unless `said` did so ahead of time."""
        mail = Mail(self._sender or "", self._recipients, content, bytearray(said))
        self.log.mails.append(mail)
        self._relay.changed.set()
        if not said:
            if answer is None:
                answer = self._relay.scripted("CONTENT", content.decode(errors="replace"))
            default = f"250 2.0.0 Ok: queued as R{len(self._relay.mails)}" if mail.rcpt_to else NO_RECIPIENTS
            await self.play(default if answer is None else answer, mail.reply)
        self._forget(greeted=self._greeted)

    async def _authenticate(self, line: str) -> None:
        words = line.split()
        mechanism, responses = "".join(words[1:2]).upper(), words[2:]
        said = await self._answer("AUTH", line, self._challenge(mechanism, responses))
        while said.startswith(b"334"):
            responses.append(await self._line())
            said = await self._answer("AUTH2", responses[-1], self._challenge(mechanism, responses))
        self.log.authenticated |= said.startswith(b"235")

    def _challenge(self, mechanism: str, responses: Sequence[str]) -> str:
        relay, challenges = self._relay, CHALLENGES.get(mechanism, [])
        if relay.auth and relay.auth_only_under_tls and not self.log.tls:
            return "538 5.7.11 Encryption required"
        if mechanism not in relay.auth or not (challenges or mechanism in HASHES):
            return "504 5.5.4 Mechanism not supported" if relay.auth else "503 5.5.1 AUTH not enabled"
        if responses[-1:] == ["*"]:
            return "501 5.7.0 Cancelled"
        if len(responses) < len(challenges):
            return f"334 {base64.b64encode(challenges[len(responses)]).decode()}"
        if mechanism in HASHES:
            return self._scram(mechanism, responses)
        try:
            known = _knows(relay.users, mechanism, responses)
        except ValueError:
            return "501 5.5.2 Malformed response"
        return "235 2.7.0 Authentication successful" if known else "535 5.7.8 authentication failed"

    def _scram(self, mechanism: str, responses: Sequence[str]) -> str:
        decoded = [base64.b64decode(response) for response in dict.fromkeys(responses)]  # each once, if asked for twice
        try:
            said = self._relay.scram.say(mechanism, self._relay.users, decoded)
        except ValueError:
            return "535 5.7.8 authentication failed"
        return self._relay.scram.verdict if said is None else f"334 {base64.b64encode(said).decode()}"

    async def _line(self) -> str:
        while (end := self.inbox.find(b"\r\n")) < 0:
            await self.more()
        line = self.inbox[:end].decode(errors="surrogateescape")
        del self.inbox[: end + 2]
        self.log.commands.append(line)
        self._relay.changed.set()
        return line

    async def _answer(self, verb: str, line: str, default: Answer) -> bytes:
        scripted, said = self._relay.scripted(verb, line), bytearray()
        await self.play(default if scripted is None else scripted, said)
        return bytes(said)


def _verb(line: str) -> str:
    return line.partition(" ")[0].upper()


def _path(line: str) -> str:
    return line.partition("<")[2].rpartition(">")[0]


def _knows(users: Mapping[str, str], mechanism: str, responses: Sequence[str]) -> bool:
    """Check the credentials; raises ValueError where they are not what the mechanism says."""
    decoded = [base64.b64decode("" if r == "=" else r, validate=True) for r in responses]
    if mechanism == "CRAM-MD5":  # RFC 2195
        name, _, digest = decoded[0].rpartition(b" ")
        mac = hmac.new(users.get(name.decode(), "").encode(), CHALLENGES[mechanism][0], "md5")
        return name.decode() in users and mac.hexdigest().encode() == digest
    name, password = decoded[0].split(b"\0")[1:] if mechanism == "PLAIN" else decoded[:2]  # RFC 4616
    return users.get(name.decode()) == password.decode()
