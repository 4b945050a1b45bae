"""One try to send a message through one profile: what it saw, how long it took, how it ended.

An attempt is filled in while it runs (by smtp/ and delivery/) and is a plain record once it has ended. Its row
is in the store before it starts, so that no crash can hide a try.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime

from app.mail.outcome import Failure, Phase
from app.mail.reply import Reply

MOST_LINES = 200  # of a transcript: its beginning and its end, what lies between is left out
LONGEST_LINE = 500  # characters of a transcript's line
_BEGINNING = 100  # lines


@dataclass(slots=True)
class Attempt:
    """What one try saw.

    `clock` is monotonic, in seconds. `phases` and the transcript's stamps are milliseconds; a phase that a warm
    session did long ago is not in `phases`. `transcript` has one wire line an entry, (ms, "C" | "S", line), with
    credentials and content left out by whoever writes it, and its middle where it would be longer than
    `MOST_LINES`; with `keeps_transcript` False it stays empty.
    """

    number: int
    profile: str
    started_at: datetime
    clock: Callable[[], float]
    keeps_transcript: bool = True
    message_id: str | None = None  # None = a probe or a diagnosis
    host: str = ""
    ip: str | None = None
    port: int = 0
    duration_ms: float | None = None  # None while it runs
    phases: dict[str, float] = field(default_factory=dict)
    tls: bool = False
    tls_version: str | None = None
    tls_cipher: str | None = None
    tls_verified: bool = False
    tls_names: tuple[str, ...] = ()  # whom the relay's certificate is for
    tls_not_after: str | None = None  # its last day, YYYY-MM-DD
    tls_sha256: str | None = None  # its fingerprint, lower-case hex
    tls_error: str | None = None  # why opportunistic went on in clear
    auth: str | None = None  # mechanism; None = no AUTH was sent
    extensions: list[str] = field(default_factory=list)
    phase: Phase = Phase.RESOLVE
    failure: Failure | None = None
    verdict: Reply | None = None  # the relay's last word on the message
    handover: bool = False  # the content's end was let go
    transcript: list[tuple[float, str, str]] = field(default_factory=list)
    _left_out: int = 0  # lines of the transcript's middle
    _start: float = 0.0
    _since: float | None = None  # when the running phase began; None = none has begun

    def __post_init__(self) -> None:
        self._start = self.clock()

    def enter(self, phase: Phase) -> None:
        """Begin `phase`; the time since the last one began belongs to that one."""
        now = self.clock()
        self._close_phase(now)
        self.phase = phase
        self._since = now

    def end(self) -> None:
        """Close the last phase and the whole."""
        now = self.clock()
        self._close_phase(now)
        self.duration_ms = round((now - self._start) * 1000, 1)

    def say(self, line: str) -> None:
        """Note a line of ours; the caller masks secrets."""
        self._note("C", (line,))

    def hear(self, reply: Reply) -> None:
        """Note a reply of the relay's, line by line."""
        self._note("S", reply.wire_lines())

    def _note(self, who: str, lines: Iterable[str]) -> None:
        if not self.keeps_transcript:
            return
        ms = round((self.clock() - self._start) * 1000, 1)
        transcript = self.transcript
        for line in lines:
            is_short = len(line) <= LONGEST_LINE
            shown = line if is_short else f"{line[:LONGEST_LINE]}… ({len(line)} characters)"
            transcript.append((ms, who, shown))
            if len(transcript) > MOST_LINES:
                del transcript[_BEGINNING + 1]
                self._left_out += 1
                at, whose, _ = transcript[_BEGINNING]
                transcript[_BEGINNING] = (at, whose, f"({self._left_out + 1} lines left out)")

    def forget_tls(self) -> None:
        """Drop what was noted of TLS on a connection that came to nothing, except the error."""
        self.tls, self.tls_version, self.tls_cipher, self.tls_verified = False, None, None, False
        self.tls_names, self.tls_not_after, self.tls_sha256 = (), None, None

    def turn_to_next_address(self, failure: Failure) -> None:
        """Drop what was noted of one of the relay's addresses, except that it was tried and why it did not do."""
        self.forget_tls()
        self.tls_error, self.extensions = None, []
        self.say(f"(trying the next address; {self.ip} did not serve: {failure.message})")

    def _close_phase(self, now: float) -> None:
        if self._since is None:
            return
        name = self.phase.value
        self.phases[name] = round(self.phases.get(name, 0.0) + (now - self._since) * 1000, 1)
