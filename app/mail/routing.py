"""Which profile a message goes through: the request's own, else the first route that matches, else the default.

Pure. A message is one transaction with one relay, so `to_domain` asks for every recipient: with one that is not in
it, the message takes another way as a whole.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from app.mail.address import Address


@dataclass(frozen=True, slots=True)
class Route:
    """One route. Domains are A-labels in lower case; None matches any; where both are there, both must match."""

    profile: str
    from_domain: str | None = None
    to_domain: str | None = None

    def matches(self, sender: Address | None, recipients: Collection[Address]) -> bool:
        """Whether a message of these goes this way."""
        if self.from_domain is not None and (sender is None or sender.domain != self.from_domain):
            return False
        return self.to_domain is None or all(recipient.domain == self.to_domain for recipient in recipients)


def route(routes: Sequence[Route], *, sender: Address | None, recipients: Collection[Address], default: str) -> str:
    """Name the profile. `sender` is the request's, or the one that stands in for it whatever the profile."""
    return next((one.profile for one in routes if one.matches(sender, recipients)), default)
