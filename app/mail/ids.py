"""Message ids: UUIDv7 (RFC 9562 §5.7), which sort by the time they were made."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID


def uuid7(now: datetime, random_bits: int) -> UUID:
    """Make an id of an instant (aware) and 74 random bits; further bits are dropped."""
    ms = int(now.timestamp() * 1000) & 0xFFFF_FFFF_FFFF
    rand_a = random_bits >> 62 & 0xFFF
    rand_b = random_bits & 0x3FFF_FFFF_FFFF_FFFF
    return UUID(int=ms << 80 | 0x7 << 76 | rand_a << 64 | 0b10 << 62 | rand_b)
