"""A real relay that wants a client's certificate: Postfix, which names the CAs it accepts in the handshake."""

from pathlib import Path

import pytest

from app.mail.profile import TlsMode
from tests.support.factories import Settings, attempt, on_both_loops
from tests.support.postfix import Postfix
from tests.support.tls import certificates

LISTENERS = {"mutual": TlsMode.STARTTLS, "mutual_tls12": TlsMode.IMPLICIT}
OURS: dict[str, Path | None] = {"none": None, "a-strangers": certificates().stranger_file}


@pytest.mark.parametrize("listener", LISTENERS)
@pytest.mark.parametrize("ours", OURS)
@on_both_loops
async def test_the_certificate_that_postfix_wants_is_named_with_its_authority(
    listener: str, ours: str, postfix: Postfix
) -> None:
    said: Settings = {"tls": LISTENERS[listener], "ca_file": postfix.ca_file}
    if (file := OURS[ours]) is not None:
        said["client_cert"] = file
    tried = await attempt(postfix.listeners[listener].port, **said)
    assert tried.in_words == "ETLS/tls_client_cert_required C"
    assert tried.attempt.failure is not None
    hint = tried.attempt.failure.hint
    assert 'client_cert = "' in hint
    assert "signed by trustme" in hint
    assert ("does not accept our certificate" in hint) == (file is not None)
