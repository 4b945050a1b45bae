"""When to try again and how often to send: the retry schedule, a rate, and the durations they are written in.

Pure. RFC 5321 §4.5.4.1 asks for patience (half an hour between tries, days before giving up); transactional
mail is impatient, so the default begins with seconds and settles at two hours.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d|w)?\Z")
_SECONDS = {"ms": 0.001, "s": 1.0, None: 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}

LONGEST = 30 * 86400.0  # seconds; longer waits are slips of the pen, and no calendar holds them all
DEFAULT_SCHEDULE = "30s, 1m*3, 5m*3, 30m*4, 2h"
DEFAULT_EXPIRES_AFTER = "24h"


def parse_duration(text: str) -> float:
    """Read `30s`, `1.5m`, `24h`, `7d`, `500ms` or a bare number of seconds.

    Raises:
        ValueError: anything else; the text says what is taken.
    """
    found = _DURATION.match(text.strip())
    if found is None:
        raise ValueError(f"{text!r} is not a duration; write a number with ms, s, m, h, d or w, such as 30s")
    return float(found[1]) * _SECONDS[found[2]]


@dataclass(frozen=True, slots=True)
class Schedule:
    """The waits between attempts, in seconds; the last one repeats."""

    waits: tuple[float, ...]

    @classmethod
    def parse(cls, text: str) -> Schedule:
        """Read `30s, 1m*3, 5m*3, 2h`: durations, each perhaps with a count.

        Raises:
            ValueError: nothing in it, a wait of 0 or over 30 days, a count that is no number from 1 to 1000.
        """
        waits: list[float] = []
        for piece in filter(None, (piece.strip() for piece in text.split(","))):
            wait, star, count = piece.partition("*")
            if star and not (count.strip().isdecimal() and 1 <= int(count) <= 1000):
                raise ValueError(f"{piece!r}: behind the * stands how often, from 1 to 1000")
            waits.extend([parse_duration(wait)] * (int(count) if star else 1))
        if not waits or min(waits) <= 0:
            raise ValueError(f"{text!r} is not a schedule; write waits such as {DEFAULT_SCHEDULE!r}")
        if max(waits) > LONGEST:
            raise ValueError(f"{text!r} has a wait that is too long; at most 30d are taken")
        return cls(tuple(waits))

    def wait_after(self, attempt: int) -> float:
        """Seconds to wait after attempt `attempt` (1 is the first)."""
        return self.waits[min(attempt, len(self.waits)) - 1]


@dataclass(frozen=True, slots=True)
class Rate:
    """At most `count` in any `seconds`."""

    count: int
    seconds: float

    @classmethod
    def parse(cls, text: str) -> Rate:
        """Read `30/m`: how many in a second, minute, hour or day.

        Raises:
            ValueError: anything else, or a count that is no number from 1 to 1,000,000.
        """
        count, _, unit = (part.strip() for part in text.partition("/"))
        if not (count.isdecimal() and 1 <= int(count) <= 1_000_000 and unit in ("s", "m", "h", "d")):
            raise ValueError(f"{text!r} is not a rate; write how many in a second, minute, hour or day, such as 30/m")
        return cls(int(count), _SECONDS[unit])

    def __str__(self) -> str:
        """As it is written in the settings; by the second where no unit fits."""
        unit = next((unit for unit in "smhd" if _SECONDS[unit] == self.seconds), None)
        return f"{self.count}/{unit}" if unit else f"{self.count} in {self.seconds:g} s"

    @property
    def halved(self) -> Rate | None:
        """Half of it, at least one a day; None = there is no lower one."""
        if self.count > 1:
            return replace(self, count=self.count // 2)
        longer = next((unit for unit in "mhd" if _SECONDS[unit] > self.seconds), None)
        return None if longer is None else Rate(int(_SECONDS[longer] / self.seconds) // 2, _SECONDS[longer])
