"""What is raised: the exception tree.

    MailError
    ├── Refused                    at the door: nothing was taken, the caller can mend it
    │   ├── InvalidMessage         422, with a pointer a fault
    │   ├── KeyReused              422: the key stands for another message
    │   ├── Conflict               409: the message's state forbids the act
    │   ├── TooLarge               413
    │   ├── NotFound               404
    │   ├── Unauthenticated        401
    │   ├── Forbidden              403
    │   ├── RateLimited            429, with the seconds to wait
    │   ├── NoRoom                 503: the disk or the queue is full
    │   └── Overloaded             503: more arrives at once than is held in memory
    ├── TransactionError(failure)  a relay gave no verdict: the phase and the cause say what that means
    ├── StoreUnavailable           503: nothing was taken
    │   ├── StoreBroken            nor will anything be, until the service is started again
    │   └── StoreNotOpened         start-up only, and a ConfigError: the file cannot be opened now
    └── LeaseLost                  somebody else holds the message now; what we know is dropped
    ConfigError                    start-up only: the settings contradict each other

HTTP statuses live in api/edge.py only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from app.mail.outcome import Failure


class MailError(Exception):
    """Any expected end that is not a value."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing wrong with a request.

    `pointer` is a JSON pointer into the body (RFC 6901; "" for the whole), `detail` names the value's fault
    and the cure in one sentence.
    """

    pointer: str
    detail: str


def escaped(name: str) -> str:
    """Write a field's name as a piece of a JSON pointer (RFC 6901 §3)."""
    return name.replace("~", "~0").replace("/", "~1")


class Refused(MailError):
    """Nothing was taken; the caller can mend it."""

    def __init__(self, detail: str, faults: Sequence[Fault] = ()) -> None:
        super().__init__(detail)
        self.detail = detail
        self.faults = tuple(faults)


class InvalidMessage(Refused):
    """The request is not a message that we can send."""

    @classmethod
    def of(cls, faults: Sequence[Fault], *, detail: str = "") -> InvalidMessage:
        """Refuse for these faults. The detail is by default the first one, and says how many more there are."""
        more = len(faults) - 1
        return cls(detail or (f"{faults[0].detail} ({more} more in errors)" if more else faults[0].detail), faults)


class KeyReused(Refused):
    """The idempotency key was used before, with another body."""


class Conflict(Refused):
    """The state that a message is in forbids the act."""


class TooLarge(Refused):
    """The body or the composed message is over the limit."""


class NotFound(Refused):
    """No such message, profile or page for this caller."""


class Unauthenticated(Refused):
    """Who is calling is not known."""


class Forbidden(Refused):
    """The caller is known and may not."""


class RateLimited(Refused):
    """Done too often; `retry_after` says how many seconds to wait."""

    def __init__(self, detail: str, retry_after: float) -> None:
        super().__init__(detail)
        self.retry_after = retry_after


class NoRoom(Refused):
    """The disk or the queue has no room for another message."""


class Overloaded(Refused):
    """More arrives at once than may be held in memory; the same request can be served a moment later."""


class TransactionError(MailError):
    """A relay gave no verdict, or could not be reached."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(f"{failure.code}/{failure.reason}: {failure.message}")
        self.failure = failure


class StoreUnavailable(MailError):
    """The store cannot take a write now; nothing was taken."""


class StoreBroken(StoreUnavailable):
    """The disk did not keep what was written; this process takes and writes nothing more."""


class LeaseLost(MailError):
    """The lease on this message is no longer ours."""


class ConfigError(Exception):
    """The settings cannot work as they stand. The text names the setting and the cure."""


class StoreNotOpened(StoreUnavailable, ConfigError):
    """The database file cannot be opened or written now; starting again later may help, without any change."""
