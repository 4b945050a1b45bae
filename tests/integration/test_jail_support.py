"""Exim and OpenSMTPD of tests/support do what they say, and leave nothing behind; the client is smtplib."""

import os
import smtplib
import ssl
from pathlib import Path

import pytest

from tests.support import exim, opensmtpd
from tests.support.exim import PASSWORD, USER, Exim
from tests.support.jail import MAX_BYTES, UNPACKED, Jailed, missing
from tests.support.opensmtpd import OpenSMTPD
from tests.support.server import Listener

SENDER = "sender@example.org"
CONTENT = b"Message-ID: <1@client.test>\r\nDate: Sun, 01 Mar 2026 12:30:15 +0000\r\n\r\n.dots\r\n..stay\r\n"


@pytest.fixture(params=["exim", "opensmtpd"])
def server(request: pytest.FixtureRequest) -> Jailed:
    found: Jailed = request.getfixturevalue(request.param)
    found.mailbox.take()
    return found


def connected(listener: Listener) -> smtplib.SMTP:
    """Open a greeted session."""
    client = smtplib.SMTP("localhost", listener.port, "client.test", timeout=10)
    client.ehlo()
    return client


def test_a_listener_offers_what_it_says(server: Jailed) -> None:
    for name, listener in server.ports.items():
        with connected(listener) as client:
            assert client.has_extn("starttls") == (name != "plain")
            assert not client.has_extn("auth")
            assert client.esmtp_features["size"] == str(MAX_BYTES)


def test_every_recipient_gets_a_copy_of_the_mail_as_it_was_sent(server: Jailed) -> None:
    with connected(server.plain) as client:
        client.sendmail(SENDER, ["a@mailbox.test", "b@mailbox.test"], CONTENT)
    mails = server.mailbox.take()
    assert len(mails) == 2
    for mail in mails:
        assert mail.lower().startswith(b"return-path: <sender@example.org>\n")
        assert mail.endswith(CONTENT.replace(b"\r\n", b"\n"))
    assert server.mailbox.take() == []


@pytest.mark.parametrize(
    ("recipient", "code"), [("nobody@mailbox.test", 550), ("later@mailbox.test", 45), ("a@example.com", 550)]
)
def test_a_recipient_is_refused(server: Jailed, recipient: str, code: int) -> None:
    with connected(server.plain) as client:
        client.mail(SENDER)
        assert str(client.rcpt(recipient)[0]).startswith(str(code))


def test_exim_takes_logins_under_tls_and_counts_the_bad_ones(exim: Exim) -> None:
    before = exim.failed_logins()
    with connected(exim.login) as client:
        client.mail(SENDER)
        assert client.rcpt("a@mailbox.test")[0] == 550
        client.starttls(context=ssl.create_default_context(cafile=exim.ca_file))
        client.ehlo()
        assert client.esmtp_features["auth"].split() == ["CRAM-MD5", "PLAIN", "LOGIN"]
        client.esmtp_features["auth"] = "PLAIN"
        with pytest.raises(smtplib.SMTPAuthenticationError):
            client.login(USER, "wrong")
        assert client.login(USER, PASSWORD)[0] == 235
        client.mail(SENDER)
        assert client.rcpt("a@mailbox.test")[0] == 250
    assert exim.failed_logins(at_least=before + 1) == before + 1


@pytest.mark.parametrize("kind", [Exim, OpenSMTPD])
def test_it_comes_back_on_the_same_ports_and_leaves_no_file_and_no_process(kind: type[Exim | OpenSMTPD]) -> None:
    if reason := missing(kind.package):
        pytest.skip(reason)
    with kind() as server:
        root = server.root
        assert inhabitants(root)
        server.stop()
        assert not inhabitants(root)
        with pytest.raises(ConnectionRefusedError):
            connected(server.plain)
        server.start()
        with connected(server.plain) as client:
            assert client.noop()[0] == 250
    assert not root.exists()
    assert not inhabitants(root)


def inhabitants(root: Path) -> list[str]:
    """Name the processes that live in a root, by the names of their folders in /proc."""
    homes = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            homes[process.name] = (process / "root").readlink()
        except OSError:  # it has ended
            continue
    return [name for name, home in homes.items() if home.is_relative_to(root)]


def test_a_server_that_is_not_there_is_named_with_what_brings_it() -> None:
    if os.geteuid() != 0:
        pytest.skip("what is said first is that it needs root")
    assert missing("no-such-server") == (
        f"no-such-server is not in {UNPACKED} (scripts/test-packages.sh brings it on Debian)"
    )


@pytest.mark.parametrize("package", [exim.PACKAGE, opensmtpd.PACKAGE])
def test_nothing_that_was_unpacked_can_give_its_user_more_rights(package: str) -> None:
    if not (UNPACKED / package).is_dir():
        pytest.skip(f"there is no {UNPACKED / package}")
    files = (UNPACKED / package).rglob("*")
    assert [file for file in files if not file.is_symlink() and file.stat().st_mode & 0o6000] == []
