"""The Postfix of tests/support does what it says; the client is smtplib, which knows nothing of ours."""

import base64
import re
import smtplib
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import uuid4

import pytest

from tests.support.postfix import MAX_BYTES, MAX_RECIPIENTS, USERS, Postfix
from tests.support.tls import certificates

SENDER = "sender@example.org"
OFFERS: dict[str, tuple[set[str] | None, set[str] | None]] = {  # in clear, over TLS; None: not to be had
    "plain": (set(), None),
    "starttls": ({"starttls"}, set()),
    "starttls_auth": ({"starttls"}, {"auth"}),
    "implicit_auth": (None, {"auth"}),
    "auth_optional": ({"auth"}, None),
    "auth_plain_only": ({"auth"}, None),
    "auth_scram": ({"auth"}, None),
    "limits": (set(), None),
}


@contextmanager
def connected(postfix: Postfix, name: str, *, tls: bool = True) -> Iterator[smtplib.SMTP]:
    """Open a greeted session with the listener `name`, over TLS if it offers that and `tls`."""
    trusted = certificates().self_signed_file if name == "starttls" else postfix.ca_file
    context = ssl.create_default_context(cafile=trusted)
    port = postfix.listeners[name].port
    client = (
        smtplib.SMTP_SSL("localhost", port, "client.test", timeout=10, context=context)
        if name == "implicit_auth"
        else smtplib.SMTP("localhost", port, "client.test", timeout=10)
    )
    with client:
        client.ehlo()
        if tls and client.has_extn("starttls"):
            client.starttls(context=context)
            client.ehlo()
        yield client


def log_in(client: smtplib.SMTP, user: str, password: str) -> int:
    """AUTH PLAIN with UTF-8 (RFC 4616 §2), which smtplib's login() cannot; returns the reply code."""
    response = base64.b64encode(f"\0{user}\0{password}".encode()).decode()
    return client.docmd("AUTH", f"PLAIN {response}")[0]


def offers(client: smtplib.SMTP) -> set[str]:
    assert client.has_extn("size")
    return {name for name in ("starttls", "auth") if client.has_extn(name)}


@pytest.mark.parametrize("name", OFFERS)
def test_a_listener_offers_what_it_says(postfix: Postfix, name: str) -> None:
    in_clear, over_tls = OFFERS[name]
    if in_clear is not None:
        with connected(postfix, name, tls=False) as client:
            assert offers(client) == in_clear
    if over_tls is not None:
        with connected(postfix, name) as client:
            assert offers(client) == over_tls


@pytest.mark.parametrize("name", ["plain", "starttls", "starttls_auth", "implicit_auth", "auth_optional", "limits"])
def test_mail_lands_in_the_mailbox_as_it_was_sent(postfix: Postfix, name: str) -> None:
    mark = f"{uuid4()}@client.test"
    content = f"Message-ID: <{mark}>\r\nSubject: hello\r\n\r\n.dots\r\n..stay\r\n".encode()
    with connected(postfix, name) as client:
        if name.endswith("_auth"):
            assert log_in(client, "bot", USERS["bot"]) == 235
        client.sendmail(SENDER, ["anyone@mailbox.test"], content)
    mail = postfix.wait_for_mail(mark)
    assert mail.endswith(content.replace(b"\r\n", b"\n"))
    assert mail.startswith(b"Return-Path: <sender@example.org>\nX-Original-To: anyone@mailbox.test\n")


def test_every_recipient_gets_a_copy(postfix: Postfix) -> None:
    mark = f"{uuid4()}@client.test"
    with connected(postfix, "plain") as client:
        client.sendmail(SENDER, ["a@mailbox.test", "b@mailbox.test"], f"Message-ID: <{mark}>\r\n\r\n")
    for recipient in (b"a", b"b"):
        wanted = re.compile(b"Delivered-To: %b@mailbox.test\n.*%b" % (recipient, mark.encode()), re.DOTALL)
        postfix.wait_for_mail(wanted.search)


@pytest.mark.parametrize("user", USERS)
@pytest.mark.parametrize("name", ["starttls_auth", "implicit_auth", "auth_optional", "auth_plain_only"])
def test_every_user_can_log_in(postfix: Postfix, name: str, user: str) -> None:
    with connected(postfix, name) as client:
        assert log_in(client, user, postfix.users[user]) == 235


@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN", "CRAM-MD5"])
def test_every_mechanism_works(postfix: Postfix, mechanism: str) -> None:
    with connected(postfix, "starttls_auth") as client:
        assert client.esmtp_features["auth"].split() == ["PLAIN", "LOGIN", "CRAM-MD5"]
        client.esmtp_features["auth"] = mechanism
        assert client.login("robot@mailbox.test", USERS["robot@mailbox.test"])[0] == 235


def test_a_wrong_password_is_refused_and_counted(postfix: Postfix) -> None:
    before = postfix.auth_attempts(postfix.auth_plain_only)
    with connected(postfix, "auth_plain_only") as client:
        assert log_in(client, "bot", "wrong") == 535
        assert log_in(client, "stranger", USERS["bot"]) == 535
        assert log_in(client, "bot", USERS["bot"]) == 235
    assert postfix.auth_attempts(postfix.auth_plain_only, at_least=before + 3) == before + 3


@pytest.mark.parametrize("name", ["starttls_auth", "implicit_auth", "auth_plain_only"])
def test_mail_without_auth_is_refused_where_auth_is_needed(postfix: Postfix, name: str) -> None:
    with connected(postfix, name) as client:
        client.mail(SENDER)
        code, text = client.rcpt("anyone@mailbox.test")
    assert (code, text[:5]) == (554, b"5.7.1")


def test_mail_before_starttls_is_refused_where_tls_is_needed(postfix: Postfix) -> None:
    with connected(postfix, "starttls_auth", tls=False) as client:
        assert client.mail(SENDER) == (530, b"5.7.0 Must issue a STARTTLS command first")


def test_the_certificates_are_good_and_self_signed(postfix: Postfix) -> None:
    with connected(postfix, "starttls_auth"), connected(postfix, "implicit_auth"):
        pass
    with connected(postfix, "starttls", tls=False) as client:
        with pytest.raises(ssl.SSLCertVerificationError, match="self-signed certificate"):
            client.starttls(context=ssl.create_default_context(cafile=postfix.ca_file))
        client.close()


@pytest.mark.parametrize(
    ("recipient", "code", "status"),
    [
        ("nobody@mailbox.test", 550, b"5.1.1"),
        ("later@mailbox.test", 450, b"4.2.0"),
        ("a@example.com", 454, b"4.7.1"),
    ],
)
@pytest.mark.parametrize("name", ["plain", "starttls", "auth_optional", "limits"])
def test_a_recipient_is_refused(postfix: Postfix, name: str, recipient: str, code: int, status: bytes) -> None:
    with connected(postfix, name) as client:
        client.mail(SENDER)
        reply = client.rcpt(recipient)
    assert (reply[0], reply[1][:5]) == (code, status)


@pytest.mark.parametrize(
    ("recipient", "code", "status"),
    [
        ("nobody@mailbox.test", 550, b"5.1.1"),
        ("later@mailbox.test", 450, b"4.2.0"),
        ("a@example.com", 554, b"5.7.1"),
    ],
)
@pytest.mark.parametrize("name", ["starttls_auth", "implicit_auth", "auth_plain_only"])
def test_a_recipient_is_refused_after_auth(
    postfix: Postfix, name: str, recipient: str, code: int, status: bytes
) -> None:
    with connected(postfix, name) as client:
        log_in(client, "bot", USERS["bot"])
        client.mail(SENDER)
        reply = client.rcpt(recipient)
    assert (reply[0], reply[1][:5]) == (code, status)


def test_the_limits_listener_limits_size_and_recipients(postfix: Postfix) -> None:
    with connected(postfix, "limits") as client:
        assert client.esmtp_features["size"] == str(MAX_BYTES)
        assert client.mail(SENDER, [f"SIZE={MAX_BYTES + 1}"])[0] == 552
        client.rset()
        client.mail(SENDER)
        codes = [client.rcpt(f"r{n}@mailbox.test")[0] for n in range(MAX_RECIPIENTS + 1)]
        assert codes == [250] * MAX_RECIPIENTS + [452]
        assert client.data(b"x" * 70 + b"\r\n" + (b"y" * 70 + b"\r\n") * (MAX_BYTES // 72))[0] == 552


def test_it_comes_back_on_the_same_ports(postfix: Postfix) -> None:
    postfix.stop()
    with pytest.raises(ConnectionRefusedError):
        smtplib.SMTP("localhost", postfix.plain.port)
    postfix.start()
    with connected(postfix, "plain") as client:
        assert client.noop()[0] == 250
