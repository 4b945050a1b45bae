"""How many bytes of requests are held in memory at once, over all callers. Pure bookkeeping.

What is taken is taken before it is read, so that a refusal costs nothing. A body that alone is larger than the bound
is served when nothing else is; small mail has a share that large bodies never take.
"""

from __future__ import annotations

from app.mail.errors import Overloaded

SMALL = 64 * 1024  # bytes; what is no larger may use the reserve
_RESERVE = 4  # one part in so many of the bound, on top of it


class BytesInFlight:
    """The bound and what is taken of it, in bytes."""

    def __init__(self, most: int) -> None:
        self._most = most
        self.taken = 0

    def bound(self, most: int) -> None:
        """Change the bound; what is taken stays."""
        self._most = most

    def hold(self) -> Hold:
        """Begin to hold nothing yet."""
        return Hold(self)

    def _take(self, more: int, size: int) -> None:
        most = self._most + (self._most // _RESERVE if size <= SMALL else 0)
        others = self.taken - (size - more)
        if others and self.taken + more > most:
            raise Overloaded(
                f"{self.taken / 1e6:.1f} MB of requests are being taken in; with this one's {size / 1e6:.1f} MB they "
                f"would be more than max_in_flight_bytes ({self._most / 1e6:.1f} MB) allows. Send it again in a moment"
            )
        self.taken += more


class Hold:
    """What one request holds. `release()` gives it back; idempotent."""

    __slots__ = ("_bytes", "_of")

    def __init__(self, of: BytesInFlight) -> None:
        self._of = of
        self._bytes = 0

    def grow_to(self, size: int) -> None:
        """Hold `size` bytes, at least.

        Raises:
            Overloaded: that is more than may be held now; what was held is held still.
        """
        if size > self._bytes:
            self._of._take(size - self._bytes, size)  # noqa: SLF001 (one mechanism in two classes)
            self._bytes = size

    def release(self) -> None:
        """Hold nothing any more."""
        self._of.taken -= self._bytes
        self._bytes = 0
