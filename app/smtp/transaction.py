"""One mail transaction on an open session: MAIL, RCPT, DATA, content; and a verdict for every recipient.

Order of events, with PIPELINING (RFC 2920): MAIL, all RCPT and DATA leave in one write, and the handover mark is
begun; replies are read one by one; the content leaves after the 354 *and* the mark. Without PIPELINING the same,
a command at a time. Two facts are kept: was there a 354, and was the content's end written. After the second, a
break is in doubt (RFC 1047); before it, the message was certainly not taken.

RFC 5321 §3.3 and §4.5.2 (dot-stuffing), RFC 1870 (SIZE), RFC 6531 (SMTPUTF8), RFC 6152 (8BITMIME).
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeAlias

from app.mail.attempt import Attempt
from app.mail.message import Envelope
from app.mail.outcome import Failure, Phase
from app.mail.reply import Reply
from app.smtp import classify
from app.smtp.downgrade import without_smtputf8
from app.smtp.limits import limit
from app.smtp.session import Session
from app.smtp.transaction_replies import lost_its_place
from app.smtp.wire import BLOCK, Breach, Lost, TimedOut, Unexpected

BeforeHandover: TypeAlias = Callable[[], Awaitable[None]]

LARGE = 1024 * 1024  # bytes of content that is made ready in a thread
_ANY_LINE_END = re.compile(rb"\r\n|\r|\n")


class StaleSession(Exception):
    """A warm session turned out to be dead or used up at the first word: nothing was sent, take another."""


@dataclass(slots=True)
class Report:
    """What the relay said. Every recipient is in `verdicts`, or shares `failure`.

    `verdicts` maps a recipient to the phase and the reply that decide for it; a positive reply is the content's.
    `accepted` are those whose RCPT was accepted. `ended_at` is the recipient whose RCPT the relay answered by ending
    the session (421, a close, silence).
    """

    verdicts: dict[str, tuple[Phase, Reply]] = field(default_factory=dict)
    failure: Failure | None = None
    accepted: list[str] = field(default_factory=list)
    ended_at: str | None = None
    refused: dict[str, Failure] = field(default_factory=dict)  # who was not asked for, since the relay cannot take them


async def deliver(
    session: Session, envelope: Envelope, content: bytes, attempt: Attempt, *, before_handover: BeforeHandover
) -> Report:
    """Carry out one transaction.

    `before_handover()` is called when the envelope leaves, and its result awaited before the content's end does:
    it makes the handover mark durable, and what it raises (`LeaseLost`, `StoreUnavailable`) stops the content
    and comes out of here. The session is closed after anything that leaves its state unknown, and asks for a
    reset after a refusal.

    Raises:
        StaleSession: only on a warm session, and only if the relay said nothing at all, or refused MAIL for now.
    """
    session.describe(attempt)
    refusal = _known_refusal(session, envelope, len(content))
    if refusal is not None:
        attempt.phase = Phase.MAIL
        return Report(failure=refusal)
    refused: dict[str, Failure] = {}
    if envelope.smtputf8 and "SMTPUTF8" not in session.extensions:
        asked, content = without_smtputf8(envelope, content)
        failure = classify.smtputf8_not_offered(session.profile)
        refused = dict.fromkeys(set(envelope.recipients) - set(asked.recipients), failure)
        envelope = asked
    session.wire.heard = attempt.hear
    transaction = _Transaction(session, envelope, content, attempt, before_handover)
    try:
        report = await transaction.run()
        report.refused = refused
        return report
    except BaseException:
        session.wire.close()
        raise
    finally:
        session.wire.heard = None
        session.transactions += 1


def _known_refusal(session: Session, envelope: Envelope, size: int) -> Failure | None:
    """What EHLO already told: no content is sent that the relay said it will not take."""
    limit = session.extensions.get("SIZE", "")
    if limit.isdecimal() and len(limit) <= 20 and 0 < int(limit) < size:  # RFC 1870 §4: 0 or nothing = no limit
        return classify.too_large(session.profile, size, int(limit))
    if envelope.smtputf8 and "SMTPUTF8" not in session.extensions and not without_smtputf8(envelope, b"")[0].recipients:
        return classify.smtputf8_not_offered(session.profile)
    return None


def stuffed(content: bytes) -> tuple[bytes, bytes]:
    """Make content ready for DATA: CRLF line ends only, dots doubled; and what ends it, the final dot.

    RFC 5321 §4.5.2, §2.3.8: a bare CR or LF must not be sent; relays differ in what they take for a line end,
    which is how one mail becomes two (SMTP smuggling).
    """
    lines = content.count(b"\r\n")
    if content.count(b"\n") != lines or content.count(b"\r") != lines:
        content = _ANY_LINE_END.sub(b"\r\n", content)
    if b"\r\n." in content:
        content = content.replace(b"\r\n.", b"\r\n..")
    if content.startswith(b"."):
        content = b"." + content
    return content, b".\r\n" if content.endswith(b"\r\n") else b"\r\n.\r\n"


class _Transaction:
    """The state of one transaction while it runs."""

    def __init__(
        self,
        session: Session,
        envelope: Envelope,
        content: bytes,
        attempt: Attempt,
        before_handover: BeforeHandover,
    ) -> None:
        self._session = session
        self._wire = session.wire
        self._timeouts = session.profile.timeouts
        self._envelope = envelope
        self._content = content
        self._attempt = attempt
        self._before_handover = before_handover
        self._mark: Awaitable[None] | None = None
        self._report = Report()
        self._accepted = self._report.accepted
        self._heard_anything = False

    async def run(self) -> Report:
        try:
            if "PIPELINING" in self._session.extensions:
                await self._pipelined()
            else:
                await self._step_by_step()
            if self._wire.is_out_of_step and not self._attempt.handover:
                raise Unexpected("more replies than commands")
        except Breach as breach:
            if self._may_be_stale and isinstance(breach, Lost | TimedOut):
                raise StaleSession from breach
            self._broke(breach)
        finally:
            _ignore(self._mark)
        return self._report

    @property
    def _may_be_stale(self) -> bool:
        return self._session.is_warm and not self._heard_anything

    def _broke(self, breach: Breach) -> None:
        self._wire.close()
        profile, attempt = self._session.profile, self._attempt
        if isinstance(breach, Unexpected) and not attempt.handover:
            self._report.verdicts.clear()  # whose they were is not sure any more
            self._report.ended_at = None
        self._report.failure = classify.breach(profile, attempt.phase, breach, handed_over=attempt.handover)

    # envelope

    async def _pipelined(self) -> None:
        lines = [
            self._mail_line(),
            *(f"RCPT TO:<{address}>" for address in self._envelope.recipients),
            "DATA",
        ]
        self._attempt.enter(Phase.MAIL)
        for line in lines:
            self._attempt.say(line)
        self._mark = self._before_handover()
        self._wire.send(("\r\n".join(lines) + "\r\n").encode(), replies=len(lines))
        mail = self._not_used_up(await self._reply(self._timeouts.mail))
        if self._closes(mail, Phase.MAIL):
            return
        if not mail.is_positive:
            # Already now: many relays close behind it, and that takes nothing back.
            self._report.verdicts = dict.fromkeys(self._envelope.recipients, (Phase.MAIL, mail))
        # What came with a refused command is answered too, and no phase that was reached.
        if mail.is_positive:
            self._attempt.enter(Phase.RCPT)
        for address in self._envelope.recipients:
            self._report.ended_at = address if mail.is_positive else None
            reply = await self._reply(self._timeouts.rcpt)
            if self._closes(reply, self._attempt.phase):
                return
            self._note_recipient(address, mail, reply)
        if self._accepted:
            self._attempt.enter(Phase.DATA)
        await self._after_data(await self._reply(self._timeouts.data))

    async def _step_by_step(self) -> None:
        self._attempt.enter(Phase.MAIL)
        mail = self._not_used_up(await self._ask(self._mail_line(), self._timeouts.mail))
        if self._closes(mail, Phase.MAIL):
            return
        if mail.is_positive:
            self._attempt.enter(Phase.RCPT)
        for address in self._envelope.recipients:
            reply = mail
            if mail.is_positive:
                self._report.ended_at = address
                reply = await self._ask(f"RCPT TO:<{address}>", self._timeouts.rcpt)
                if self._closes(reply, Phase.RCPT):
                    return
            self._note_recipient(address, mail, reply)
        if not self._accepted:
            self._session.needs_reset = True
            return
        self._attempt.enter(Phase.DATA)
        self._mark = self._before_handover()
        await self._after_data(await self._ask("DATA", self._timeouts.data))

    def _not_used_up(self, mail: Reply) -> Reply:
        """Take a warm session for used up where MAIL is refused for now: a new one may do (docs/quirks.md)."""
        is_of_session = mail.is_transient or lost_its_place(Phase.MAIL, mail)
        if is_of_session and self._session.is_warm and limit(Phase.MAIL, mail) is None:
            raise StaleSession(str(mail))
        return mail

    def _mail_line(self) -> str:
        extensions = self._session.extensions
        line = f"MAIL FROM:<{self._envelope.sender}>"
        if "SIZE" in extensions:
            line += f" SIZE={len(self._content)}"
        if self._envelope.smtputf8:
            line += " SMTPUTF8"
            if "8BITMIME" in extensions:
                line += " BODY=8BITMIME"
        return line

    def _note_recipient(self, address: str, mail: Reply, reply: Reply) -> None:
        if 354 in (mail.code, reply.code):
            raise Unexpected(f"354 before DATA: {reply}")
        self._report.ended_at = None
        if not mail.is_positive:
            self._report.verdicts[address] = (Phase.MAIL, mail)
        elif reply.is_positive:
            self._accepted.append(address)
        else:
            self._report.verdicts[address] = (Phase.RCPT, reply)

    def _closes(self, reply: Reply, phase: Phase) -> bool:
        """RFC 5321 §3.8: after 421 the relay closes, whatever else was asked; who was refused by name stays so."""
        if reply.code != 421:
            return False
        self._attempt.phase = phase
        self._report.failure = classify.transaction(self._session.profile, self._attempt, phase, reply)
        self._wire.close()
        return True

    # content

    async def _after_data(self, data: Reply) -> None:
        if self._closes(data, self._attempt.phase):
            return
        if data.code != 354:
            if self._accepted and data.code < 400:
                raise Unexpected(f"{data} to DATA")
            self._settle(Phase.DATA, data)
            # After a refused MAIL too: Postfix holds a refused SIZE against every later MAIL until RSET.
            self._session.needs_reset = True
            return
        if not self._accepted and self._wire.is_content_refused:
            self._wire.close()  # it has ended the transaction by itself
            return
        if not self._accepted:
            # RFC 2920 §3.1: the relay takes content for nobody; an empty one gets us out of there.
            self._wire.send(b".\r\n", replies=1)
            await self._reply(self._timeouts.content)
            return
        await self._send_content()

    async def _send_content(self) -> None:
        if self._wire.is_content_refused:
            await self._early_verdict()
            return
        if self._mark is not None:
            mark, self._mark = self._mark, None
            await mark
        self._attempt.enter(Phase.CONTENT)
        self._attempt.say(f"({len(self._content)} bytes of content)")
        # Tens of megabytes of short lines take 100 ms; the event loop goes on meanwhile.
        is_large = len(self._content) >= LARGE
        content, end = await asyncio.to_thread(stuffed, self._content) if is_large else stuffed(self._content)
        if len(content) > BLOCK:
            if not await self._wire.send_content(content, timeout=self._timeouts.block):
                await self._early_verdict()
                return
            content = b""
        if self._wire.is_content_refused:
            await self._early_verdict()
            return
        if not self._wire.is_open:
            await self._reply(self._timeouts.content)  # raises what broke it, nothing was let go
        self._attempt.handover = True
        self._attempt.say(".")
        self._wire.send(content + end, replies=1)
        verdict = await self._reply(self._timeouts.content)
        if verdict.code == 421:
            self._wire.close()
        elif verdict.code == 354:
            raise Unexpected(f"{verdict} after the content")
        self._settle(Phase.CONTENT, verdict)

    async def _early_verdict(self) -> None:
        """Take the relay's refusal in the middle of the content, whose end it never saw: never in doubt."""
        self._attempt.enter(Phase.CONTENT)
        self._settle(Phase.CONTENT, await self._reply(self._timeouts.content))
        self._wire.close()

    def _settle(self, phase: Phase, reply: Reply) -> None:
        self._attempt.verdict = reply
        for address in self._accepted:
            self._report.verdicts[address] = (phase, reply)

    # replies

    async def _ask(self, line: str, timeout: float) -> Reply:
        self._attempt.say(line)
        self._wire.send(f"{line}\r\n".encode(), replies=1)
        return await self._reply(timeout)

    async def _reply(self, timeout: float) -> Reply:
        if self._may_be_stale:
            # A connection may die without a word (a NAT that forgot it): only a new one gets the relay's full time.
            timeout = min(timeout, self._timeouts.reset)
        reply = await self._wire.next_reply(timeout)
        self._heard_anything = True
        if 300 <= reply.code < 400 and reply.code != 354:
            raise Unexpected(str(reply))
        return reply


def _ignore(mark: Awaitable[None] | None) -> None:
    """The mark is of no more use; the journal writes it all the same, and nobody waits for it."""
    if isinstance(mark, asyncio.Future):
        mark.add_done_callback(lambda done: done.cancelled() or done.exception())
