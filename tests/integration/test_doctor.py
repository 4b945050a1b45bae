"""The doctor before a real Postfix: what each listener is found to be, from an environment as a user would write it.

Nothing of the service is opened for it: so does `mailchute doctor` where none runs. The stages' signs are those of
tests/contract/test_doctor.py.
"""

import asyncio
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import pytest

from app.api.diagnosis import shape_of
from app.runtime import Runtime
from app.settings import load
from app.smtp import doctor
from app.smtp.doctor import Diagnosis
from tests.contract.test_doctor import in_words, signs
from tests.integration.test_postfix import (
    ANOTHER_SPELLING,
    CA,
    CLEARTEXT,
    IMPLICIT,
    LOGIN,
    NO_LOGIN,
    NONE,
    SELF_SIGNED,
    STARTTLS,
    UNVERIFIED,
    WRONG_LOGIN,
    Environment,
)
from tests.support.factories import refused_port
from tests.support.postfix import Postfix
from tests.support.server import Listener, until
from tests.support.tls import certificates

HERE, ELSEWHERE = "ann@mailbox.test", "ann@elsewhere.test"
MECHANISMS = ["PLAIN", "LOGIN", "CRAM-MD5"]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One listener, one environment, and what is found."""

    id: str
    at: str
    stages: str
    says: str = "well"
    settings: Environment = field(default_factory=dict)
    to: str = HERE
    hint: str = ""
    offers: list[str] = field(default_factory=list)  # AUTH, where EHLO was reached


def row(id: str, at: str, stages: str, says: str = "well", *settings: Environment, **more: object) -> Row:
    whole = {name: text for said in settings for name, text in said.items()}
    return Row(id=id, at=at, stages=stages, says=says, settings=whole, **more)  # type: ignore[arg-type]


TABLE = [
    row("in-clear", "plain", "++-++--++"),
    row("opportunistic", "starttls", "++-+++-++"),
    row("self-signed-and-named", "starttls", "++-+++-++", "well", STARTTLS, SELF_SIGNED),
    row("self-signed-and-not-verified", "starttls", "++-+++-++", "well", STARTTLS, UNVERIFIED),
    row(
        "self-signed",
        "starttls",
        "++-++!---",
        "ETLS/tls_cert_untrusted C",
        STARTTLS,
        hint="SMTP_CA_FILE=/path/to/ca.pem",
    ),
    row("no-starttls", "plain", "++-++!---", "ETLS/tls_not_offered C", STARTTLS, hint="SMTP_TLS=opportunistic"),
    row("submission", "starttls_auth", "++-++++++", "well", CA, LOGIN, offers=MECHANISMS),
    row("submissions", "implicit_auth", "+++++-+++", "well", IMPLICIT, CA, LOGIN, offers=MECHANISMS),
    row(
        "wrong-name",
        "implicit_auth",
        "++!------",
        "ETLS/tls_hostname_mismatch C",
        IMPLICIT,
        CA,
        LOGIN,
        ANOTHER_SPELLING,
        hint="MAILCHUTE_PROFILES__DEFAULT__SERVER_NAME=",
    ),
    row("implicit-tls-to-a-plain-port", "plain", "++!------", "ETLS/tls_mode_mismatch C", IMPLICIT, hint="SMTP_TLS="),
    row(
        "wrong-password",
        "starttls_auth",
        "++-+++!--",
        "EAUTH/auth_rejected C",
        CA,
        WRONG_LOGIN,
        hint="SMTP_PASSWORD",
        offers=MECHANISMS,
    ),
    row(
        "no-login-where-one-is-needed",
        "starttls_auth",
        "++-+++-+!",
        "EAUTH/auth_required C",
        STARTTLS,
        CA,
        offers=MECHANISMS,
    ),
    row(
        "in-clear-where-tls-is-needed",
        "starttls_auth",
        "++-++--!-",
        "EAUTH/auth_needs_tls C",
        NONE,
        hint="SMTP_TLS=starttls",
    ),
    row("login-offered-and-not-wanted", "auth_optional", "++-++--++", offers=MECHANISMS),
    row(
        "login-where-none-is-offered",
        "plain",
        "++-++-!--",
        "EAUTH/auth_not_offered C",
        NONE,
        CLEARTEXT,
        LOGIN,
        hint="SMTP_AUTH=none",
    ),
    row("login-told-not-to-be-used", "plain", "++-++--++", "well", LOGIN, NO_LOGIN),
    row("login-in-clear", "auth_plain_only", "++-++-+++", "well", NONE, CLEARTEXT, LOGIN, offers=MECHANISMS),
    row(
        "relay-denied",
        "plain",
        "++-++--+!",
        "EENVELOPE/relay_denied C",
        to=ELSEWHERE,
        hint="our address 127.0.0.1",
    ),
    row(
        "relay-denied-where-a-login-is-offered",
        "auth_optional",
        "++-++--+!",
        "EAUTH/auth_required C",
        to=ELSEWHERE,
        hint="SMTP_USERNAME",
        offers=MECHANISMS,
    ),
    row("no-such-mailbox", "plain", "++-++--+!", "EENVELOPE/mailbox_unknown P", to="nobody@mailbox.test"),
    row("greylisted", "plain", "++-++--+!", "EENVELOPE/greylisted T", to="later@mailbox.test"),
]


async def diagnose(
    postfix: Postfix, at: Listener | int, settings: Environment = MappingProxyType({}), *, to: str = HERE
) -> Diagnosis:
    known = {
        "user": "bot",
        "password": postfix.users["bot"],
        "ca_file": postfix.ca_file,
        "self_signed_file": certificates().self_signed_file,
    }
    said = {name: text.format(**known) for name, text in settings.items()}
    port = str(at.port if isinstance(at, Listener) else at)
    whole = load({"SMTP_HOST": "localhost", "SMTP_PORT": port, "SMTP_FROM": "bot@example.org", **said}, files=())
    return await Runtime(whole).doctor.diagnose(whole.profiles["default"], sender=None, recipient=to)


def counted(postfix: Postfix, at: Listener, sessions: int) -> list[Mapping[str, int]]:
    """Give how often each command came, by session at `at`; waits until so many, and all that began, have ended."""
    line = re.compile(rf"postfix/{at.name}/smtpd\[(\d+)\]: (disconnect|connect) from \S+ ?(.*)")

    def ended() -> list[str] | None:
        lines = line.findall(postfix.log())
        said = [said for _, what, said in lines if what == "disconnect"]
        latest = {pid: what for pid, what, _ in lines}
        # A session that was open when another test stopped Postfix has no end in the log.
        goes_on = any(what == "connect" and Path(f"/proc/{pid}").exists() for pid, what in latest.items())
        return said if len(said) >= sessions and not goes_on else None

    assert until(lambda: ended() is not None, timeout=5), "not as many, or one goes on"
    return [
        {word.partition("=")[0]: int(word.partition("=")[2].rpartition("/")[2]) for word in said.split()}
        for said in ended() or []
    ]


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.id)
async def test_the_doctor_finds_what_each_listener_is(row: Row, postfix: Postfix) -> None:
    at = postfix.listeners[row.at]
    before = len(counted(postfix, at, 0))
    found = await diagnose(postfix, at, row.settings, to=row.to)
    assert (signs(found), in_words(found)) == (row.stages, row.says)
    assert row.hint in (found.failure.hint if found.failure else "")
    shape = shape_of(found)
    assert shape["auth_offered"] == row.offers
    assert shape["size_limit"] in ((50_000_000, 20_000) if row.stages[4] == "+" else (None,))
    for session in (await asyncio.to_thread(counted, postfix, at, before + 1))[before:]:
        assert session.get("data", 0) == session.get("bdat", 0) == 0, "content was about to be sent"
        assert session.get("auth", 0) <= 1
        assert session.get("mail", 0) <= 1
        if found.is_ok:
            assert (session["mail"], session["rcpt"], session["rset"], session["quit"]) == (1, 1, 1, 1)
    assert row.says != "well" or shape["message"].endswith("nothing was sent")


async def test_a_port_that_answers_is_named(postfix: Postfix, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "USUAL_PORTS", (refused_port(), postfix.plain.port))
    found = await diagnose(postfix, refused_port())
    assert in_words(found) == "ECONNECTION/connection_refused T"
    assert found.failure is not None
    assert f"port {postfix.plain.port} answers there, so set SMTP_PORT={postfix.plain.port}; or" in found.failure.hint


async def test_the_size_limit_is_the_listeners_own(postfix: Postfix) -> None:
    shape = shape_of(await diagnose(postfix, postfix.limits))
    assert (shape["ok"], shape["size_limit"]) == (True, 20_000)
