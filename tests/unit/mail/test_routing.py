"""Which profile a message goes through, where it names none."""

from collections.abc import Sequence

import pytest

from app.mail.address import Address
from app.mail.routing import Route, route

CORP = Route("intranet", from_domain="corp.example")
PARTNER = Route("cloud", to_domain="partner.example")
BOTH = Route("vpn", from_domain="corp.example", to_domain="partner.example")
ANN, BOB, EVE = Address("ann", "corp.example"), Address("bob", "partner.example"), Address("eve", "sub.corp.example")


@pytest.mark.parametrize(
    ("routes", "sender", "recipients", "profile"),
    [
        ([], ANN, [BOB], "default"),
        ([CORP], ANN, [BOB], "intranet"),
        ([CORP], BOB, [ANN], "default"),
        ([CORP], EVE, [BOB], "default"),
        ([CORP], None, [BOB], "default"),
        ([PARTNER], None, [BOB], "cloud"),
        ([PARTNER], ANN, [BOB, ANN], "default"),
        ([PARTNER, CORP], ANN, [BOB], "cloud"),
        ([CORP, PARTNER], ANN, [BOB], "intranet"),
        ([BOTH, CORP], ANN, [BOB], "vpn"),
        ([BOTH, CORP], ANN, [EVE], "intranet"),
        ([BOTH], EVE, [BOB], "default"),
    ],
)
def test_the_first_route_that_matches_names_it(
    routes: Sequence[Route], sender: Address | None, recipients: Sequence[Address], profile: str
) -> None:
    assert route(routes, sender=sender, recipients=recipients, default="default") == profile
