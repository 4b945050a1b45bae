"""The whole service against a real Postfix: what a user sets, what POST /send answers, what lies in the mailbox.

The service runs in this process, built from an environment as a user would write it. TABLE is what the wrong
settings say and how their hints mend them; scripts/postfix_table.py prints it.
"""

import asyncio
import email
import email.policy
import re
from base64 import b64encode
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from email.message import EmailMessage
from pathlib import Path
from typing import Any, cast
from uuid import UUID

import httpx2
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from app.mail.errors import ConfigError
from app.main import around
from app.runtime import Runtime
from app.settings import load
from tests.support.postfix import MAX_BYTES, MAX_RECIPIENTS, USERS, Postfix
from tests.support.server import Listener, until
from tests.support.tls import certificates

Answer = dict[str, Any]  # the flat shape
Environment = Mapping[str, str]  # values may name what only a running Postfix knows: {port}, {ca_file} …

LOGIN = {"SMTP_USERNAME": "{user}", "SMTP_PASSWORD": "{password}"}
WRONG_LOGIN = {"SMTP_USERNAME": "{user}", "SMTP_PASSWORD": "wrong"}
CA = {"SMTP_CA_FILE": "{ca_file}"}
SELF_SIGNED = {"SMTP_CA_FILE": "{self_signed_file}"}
NONE, OPPORTUNISTIC, STARTTLS, IMPLICIT = (
    {"SMTP_TLS": mode} for mode in ("none", "opportunistic", "starttls", "implicit")
)
UNVERIFIED = {"SMTP_VERIFY": "false"}
NO_LOGIN = {"SMTP_AUTH": "none"}
CLEARTEXT = {"MAILCHUTE_PROFILES__DEFAULT__ALLOW_CLEARTEXT_AUTH": "true"}
SOON = {"MAILCHUTE_RETRY__SCHEDULE": "100ms"}
ANOTHER_SPELLING = {"SMTP_HOST": "127.1"}  # leads to 127.0.0.1; no certificate bears it, nor is it known as loopback
MAIL = {"from": "bot@example.org", "to": "ann@mailbox.test", "subject": "hello", "text": "hello"}


# --- the service, and what Postfix knows of it -----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Service:
    """One running service."""

    runtime: Runtime
    client: httpx2.AsyncClient

    async def send(self, **fields: object) -> tuple[int, Answer]:
        """POST a message, MAIL with `fields` over it; returns the status and the answer."""
        response = await self.client.post("/send", json=MAIL | fields)
        return response.status_code, cast("Answer", response.json())

    async def look_up(self, answer: Answer) -> Answer:
        """GET everything that is known of the message."""
        return cast("Answer", (await self.client.get(f"/messages/{answer['id']}")).json())

    async def attempt_at(self, answer: Answer) -> Answer:
        """GET the message's one attempt."""
        [attempt] = (await self.look_up(answer))["attempts"]
        return cast("Answer", attempt)

    async def raw(self, answer: Answer) -> bytes:
        return (await self.client.get(f"/messages/{answer['id']}/raw")).content

    async def end_of(self, answer: Answer) -> Answer:
        """Wait until the message is in its final state, at most 2 s, and look it up."""
        async with asyncio.timeout(2):
            while True:
                verdict = self.runtime.verdicts.expect(UUID(answer["id"]))
                found = await self.look_up(answer)
                if found["final"]:
                    verdict.cancel()
                    return found
                await verdict


@asynccontextmanager
async def running(postfix: Postfix, listener: Listener, folder: Path, *said: Environment) -> AsyncIterator[Service]:
    """Run the service with two settings, host and port of `listener`, and what else is said."""
    environ = environment(postfix, listener, merged(*said))
    runtime = Runtime(load(environ | {"MAILCHUTE_DATABASE_URL": f"{folder}/mailchute.db"}, files=()))
    await runtime.open()
    transport = httpx2.ASGITransport(app=around(runtime))
    try:
        async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1:8587") as client:
            yield Service(runtime, client)
    finally:
        await runtime.close()


def merged(*said: Mapping[str, str | None]) -> dict[str, str]:
    """Lay settings over host and port, the later ones above; None removes."""
    together: dict[str, str | None] = {"SMTP_HOST": "localhost", "SMTP_PORT": "{port}"}
    for more in said:
        together |= more
    return {name: value for name, value in together.items() if value is not None}


def environment(postfix: Postfix, listener: Listener, said: Environment) -> dict[str, str]:
    """Put the values of this Postfix into what was said."""
    known = {
        "{port}": str(listener.port),
        "{ca_file}": str(postfix.ca_file),
        "{self_signed_file}": str(certificates().self_signed_file),
        "{user}": "bot",
        "{password}": postfix.users["bot"],
    }
    return {name: known.get(value, value) for name, value in said.items()}


async def copy_for(postfix: Postfix, answer: Answer, address: str) -> bytes:
    """Wait for the copy of a message that lies in the mailbox for this recipient."""
    marks = f"Delivered-To: {address}\n".encode(), str(answer["message_id"]).encode()
    return await asyncio.to_thread(postfix.wait_for_mail, lambda mail: all(mark in mail for mark in marks))


def copies(postfix: Postfix, answer: Answer) -> int:
    """Count the mails in the mailbox that came of a message."""
    return sum(str(answer["message_id"]).encode() in mail for mail in postfix.mails())


def as_sent(mail: bytes) -> bytes:
    """Cut off what Postfix puts in front."""
    return re.sub(rb"\A(?:(?:Return-Path|X-Original-To|Delivered-To|Received): .*\n(?:[ \t].*\n)*)+", b"", mail)


def parsed(mail: bytes) -> EmailMessage:
    # As text: from bytes the parser would not read an address in UTF-8 (RFC 6532). All else is ASCII.
    return email.message_from_string(mail.decode(), policy=email.policy.default)


def said_in(attempt: Answer) -> list[str]:
    """What we said on the wire."""
    return [line["line"] for line in attempt["transcript"] if line["dir"] == "C"]


def session_of(postfix: Postfix, attempt: Answer) -> str:
    """Read Postfix's own count of the commands in the session that brought a mail; it logs that at the end."""
    queue_id = re.escape(attempt["reply"].rpartition(" ")[2])
    ended = re.compile(rf"smtpd\[(\d+)\]: {queue_id}: client=.*?smtpd\[\1\]: disconnect from \S+ ([^\n]*)", re.DOTALL)
    assert until(lambda: ended.search(postfix.log()) is not None, timeout=5), postfix.log()[-4000:]
    return str(ended.findall(postfix.log())[0][1])


# --- the right settings ----------------------------------------------------------------------------------------

RIGHT: dict[str, tuple[str, tuple[Environment, ...], dict[str, object]]] = {
    "a: plain": ("plain", (), {"tls": False, "auth": None}),
    "a: plain, by address": ("plain", ({"SMTP_HOST": "127.0.0.1"},), {"tls": False, "ip": "127.0.0.1"}),
    "a: plain, Typebot's switches": (
        "plain",
        ({"SMTP_SECURE": "false", "SMTP_IGNORE_TLS": "true", "SMTP_USERNAME": "", "SMTP_PASSWORD": ""},),
        {"tls": False, "auth": None},
    ),
    "a: plain, login switched off": ("plain", (LOGIN, NO_LOGIN), {"tls": False, "auth": None}),
    "b: starttls": ("starttls", (), {"tls": True, "tls_verified": False, "auth": None}),
    "b: starttls, verified": ("starttls", (STARTTLS, SELF_SIGNED), {"tls": True, "tls_verified": True, "auth": None}),
    "b: starttls, unverified": ("starttls", (STARTTLS, UNVERIFIED), {"tls": True, "tls_verified": False}),
    "b: starttls, not used": ("starttls", (NONE,), {"tls": False, "auth": None}),
    "c: starttls and login": ("starttls_auth", (LOGIN, CA), {"tls": True, "tls_verified": True, "auth": "CRAM-MD5"}),
    "c: starttls and login, by address": (
        "starttls_auth",
        (LOGIN, CA, {"SMTP_HOST": "127.0.0.1"}),
        {"tls": True, "tls_verified": True, "auth": "CRAM-MD5"},
    ),
    "d: implicit and login": (
        "implicit_auth",
        (LOGIN, CA, IMPLICIT),
        {"tls": True, "tls_verified": True, "auth": "CRAM-MD5"},
    ),
    "d: implicit and login, Typebot's switch": (
        "implicit_auth",
        (LOGIN, CA, {"SMTP_SECURE": "true"}),
        {"tls": True, "tls_verified": True, "auth": "CRAM-MD5"},
    ),
    "e: login offered, not used": ("auth_optional", (), {"tls": False, "auth": None}),
    "e: login offered and used": ("auth_optional", (LOGIN, NONE), {"tls": False, "auth": "CRAM-MD5"}),
    "e: login needed in clear": ("auth_plain_only", (LOGIN, NONE), {"tls": False, "auth": "CRAM-MD5"}),
    "e: login needed in clear, allowed": (
        "auth_plain_only",
        (LOGIN, NONE, ANOTHER_SPELLING, CLEARTEXT),
        {"tls": False, "auth": "CRAM-MD5"},
    ),
    "limits": ("limits", (), {"tls": False, "auth": None}),
}


@pytest.mark.parametrize(("name", "said", "facts"), RIGHT.values(), ids=RIGHT.keys())
async def test_the_right_settings_send_at_the_first_try(
    postfix: Postfix, tmp_path: Path, name: str, said: tuple[Environment, ...], facts: dict[str, object]
) -> None:
    async with running(postfix, postfix.listeners[name], tmp_path, *said) as service:
        status, answer = await service.send()
        attempt = await service.attempt_at(answer)
        raw = await service.raw(answer)
    assert (status, answer["state"], answer["ok"]) == (200, "sent", True)
    assert answer["accepted"] == ["ann@mailbox.test"]
    assert {key: attempt[key] for key in facts} == facts
    assert bool(attempt["tls_version"]) is attempt["tls"]
    assert as_sent(await copy_for(postfix, answer, "ann@mailbox.test")) == raw.replace(b"\r\n", b"\n")


async def test_the_mail_that_arrives_is_the_mail_that_was_asked_for(postfix: Postfix, tmp_path: Path) -> None:
    async with running(postfix, postfix.plain, tmp_path) as service:
        _, answer = await service.send(
            **{"from": '"Zoë, the Bot" <bot@example.org>'},
            to=["Ann Miller <ann@mailbox.test>", {"email": "bob@mailbox.test", "name": "Bob “b” O'Neil"}],
            cc="carl@mailbox.test",
            bcc="hidden@mailbox.test",
            reply_to="Desk <desk@example.org>",
            subject="Your order № 4711 is on its way: überraschend schnell, and with a subject that must be folded 🎉",
            text="Grüße,\n.\n..\nFrom us\n",
            html="<p>Grüße &amp; <b>bis bald</b> 🎉</p>\n",
            headers={"X-Ticket": "4711"},
        )
        raw = (await service.raw(answer)).replace(b"\r\n", b"\n")
    names = ("ann", "bob", "carl", "hidden")
    mails = [await copy_for(postfix, answer, f"{name}@mailbox.test") for name in names]
    assert [as_sent(mail) for mail in mails] == [raw] * 4
    mail = parsed(mails[0])
    assert mail["Return-Path"] == "<bot@example.org>"
    assert [(a.display_name, a.addr_spec) for a in mail["From"].addresses] == [("Zoë, the Bot", "bot@example.org")]
    assert [(a.display_name, a.addr_spec) for a in mail["To"].addresses] == [
        ("Ann Miller", "ann@mailbox.test"),
        ("Bob “b” O'Neil", "bob@mailbox.test"),
    ]
    assert [a.addr_spec for a in mail["Cc"].addresses] == ["carl@mailbox.test"]
    assert [a.addr_spec for a in mail["Reply-To"].addresses] == ["desk@example.org"]
    assert mail["Subject"] == (
        "Your order № 4711 is on its way: überraschend schnell, and with a subject that must be folded 🎉"
    )
    assert mail["X-Ticket"] == "4711"
    assert content(mail, "plain") == "Grüße,\n.\n..\nFrom us\n"
    assert content(mail, "html") == "<p>Grüße &amp; <b>bis bald</b> 🎉</p>\n"
    assert b"hidden" not in b"".join(mails[:3])
    assert b"hidden" not in as_sent(mails[3])
    assert not any(re.search(rb"^bcc", mail, re.IGNORECASE | re.MULTILINE) for mail in mails)


def content(mail: EmailMessage, kind: str) -> str:
    """Read one body, with LF line ends."""
    body = mail.get_body((kind,))
    assert body is not None
    return str(body.get_content()).replace("\r\n", "\n")


@pytest.mark.parametrize(
    ("name", "mechanism", "lines"),
    [
        ("starttls_auth", "plain", ["AUTH PLAIN ***"]),
        ("starttls_auth", "login", ["AUTH LOGIN", "***", "***"]),
        ("starttls_auth", "cram-md5", ["AUTH CRAM-MD5", "***"]),
        ("auth_scram", "scram-sha-256", ["AUTH SCRAM-SHA-256 ***", "***", ""]),
        ("auth_scram", "scram-sha-1", ["AUTH SCRAM-SHA-1 ***", "***", ""]),
    ],
    ids=lambda value: value if isinstance(value, str) and "_" not in value else "",
)
@pytest.mark.parametrize("user", USERS)
async def test_every_user_logs_in_and_sends(
    postfix: Postfix, tmp_path: Path, user: str, name: str, mechanism: str, lines: list[str]
) -> None:
    login = {"SMTP_USERNAME": user, "SMTP_PASSWORD": postfix.users[user], "SMTP_AUTH": mechanism}
    listener = postfix.listeners[name]
    where = CA if name == "starttls_auth" else NONE
    async with running(postfix, listener, tmp_path, login, where) as service:
        _, answer = await service.send()
        attempt = await service.attempt_at(answer)
    assert answer["state"] == "sent", answer
    assert attempt["auth"] == mechanism.upper()
    if (user, mechanism) == ("long", "plain"):  # does not fit into one command
        lines = ["AUTH PLAIN", "***"]
    said = said_in(attempt)
    at = said.index(lines[0])
    assert said[at : at + len(lines)] == lines
    assert " auth=1 " in session_of(postfix, attempt)
    queue_id = attempt["reply"].rpartition(" ")[2]
    name = f"client=unknown[127.0.0.1], sasl_method={mechanism.upper()}, sasl_username={user}\n"
    assert f"{queue_id}: {name}" in postfix.log()


async def test_a_password_from_a_file_keeps_its_blanks(postfix: Postfix, tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text(f"{postfix.users['space']}\n")
    login = {"SMTP_USERNAME": "space", "SMTP_PASSWORD_FILE": str(file)}
    async with running(postfix, postfix.starttls_auth, tmp_path, login, CA) as service:
        _, answer = await service.send()
    assert answer["state"] == "sent", answer


FOUNDING: dict[str, tuple[str, dict[str, object]]] = {
    "no login, no encryption": ("plain", {"tls": False, "tls_verified": False, "tls_error": None}),
    "no login, STARTTLS with a self-signed certificate": (
        "starttls",
        {"tls": True, "tls_verified": False, "tls_error": None},
    ),
    "login offered and not needed": ("auth_optional", {"tls": False, "tls_verified": False, "tls_error": None}),
}


@pytest.mark.parametrize(("name", "facts"), FOUNDING.values(), ids=FOUNDING.keys())
async def test_host_and_port_are_enough_for_a_relay_that_asks_for_no_login(
    postfix: Postfix, tmp_path: Path, name: str, facts: dict[str, object]
) -> None:
    async with running(postfix, postfix.listeners[name], tmp_path) as service:
        status, answer = await service.send()
        attempt = await service.attempt_at(answer)
    assert (status, answer["state"], answer["attempts"]) == (200, "sent", 1)
    assert {key: attempt[key] for key in facts} == facts
    assert attempt["auth"] is None
    assert not any("AUTH" in line for line in said_in(attempt))
    assert "auth" not in session_of(postfix, attempt)
    await copy_for(postfix, answer, "ann@mailbox.test")


# --- the wrong settings ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Fault:
    """What a wrong setting is answered with, and the change that the hint asks for (None = remove)."""

    code: str
    reason: str
    cls: str
    change: Mapping[str, str | None]
    state: str = "deferred"

    @property
    def outcome(self) -> tuple[str, str, str, str]:
        return self.state, self.code, self.reason, self.cls

    @property
    def words(self) -> list[str]:
        """What the hint must say: the setting, and its value unless only the user knows that."""
        return [
            name if value is None or value.startswith("{") else f"{name}={value}" for name, value in self.change.items()
        ]


@dataclass(frozen=True, slots=True)
class Case:
    """Wrong settings for a listener; each hint in turn is followed, and behind the last one the mail is sent."""

    listener: str
    said: Environment
    faults: tuple[Fault, ...]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one try with some settings came to; for a start-up error the hint is its text."""

    settings: Mapping[str, str] = field(repr=False)
    outcome: tuple[str, str, str, str]  # state, error_code, reason, class
    hint: str


SENT = ("sent", "", "", "")


def at_start(change: Mapping[str, str | None]) -> Fault:
    """The service does not start, and its error names the change."""
    return Fault("", "", "", change, state="does not start")


def untrusted(change: Mapping[str, str | None]) -> Fault:
    return Fault("ETLS", "tls_cert_untrusted", "configuration", change)


def mismatched(change: Mapping[str, str | None]) -> Fault:
    return Fault("ETLS", "tls_hostname_mismatch", "configuration", change)


def no_starttls(change: Mapping[str, str | None]) -> Fault:
    return Fault("ETLS", "tls_not_offered", "configuration", change)


def no_tls_port(change: Mapping[str, str | None]) -> Fault:
    return Fault("ETLS", "tls_mode_mismatch", "configuration", change)


def no_auth(change: Mapping[str, str | None]) -> Fault:
    return Fault("EAUTH", "auth_not_offered", "configuration", change)


def unsupported(change: Mapping[str, str | None]) -> Fault:
    return Fault("EAUTH", "auth_mechanism_unsupported", "configuration", change)


def login_needed(change: Mapping[str, str | None]) -> Fault:
    return Fault("EAUTH", "auth_required", "configuration", change)


def rejected(change: Mapping[str, str | None]) -> Fault:
    return Fault("EAUTH", "auth_rejected", "configuration", change)


def silent(change: Mapping[str, str | None]) -> Fault:
    return Fault("ETIMEDOUT", "greeting_timeout", "temporary", change)


SERVER_NAME = {"MAILCHUTE_PROFILES__DEFAULT__SERVER_NAME": "localhost"}
NO_CREDENTIALS = {"SMTP_USERNAME": None, "SMTP_PASSWORD": None}

TABLE: dict[str, Case] = {
    # a login where none is wanted
    "login on plain": Case("plain", LOGIN, (no_starttls(NO_LOGIN),)),
    "login in clear on plain": Case("plain", LOGIN | NONE, (no_auth(NO_LOGIN),)),
    "login in clear on plain, removed": Case("plain", LOGIN | NONE, (no_auth(NO_CREDENTIALS),)),
    "login on starttls": Case("starttls", LOGIN | STARTTLS | SELF_SIGNED, (no_auth(NO_LOGIN),)),
    "login on starttls, unverified": Case("starttls", LOGIN | UNVERIFIED, (no_auth(NO_LOGIN),)),
    "login on starttls, hint after hint": Case("starttls", LOGIN, (untrusted(SELF_SIGNED), no_auth(NO_LOGIN))),
    "login on limits": Case("limits", LOGIN | NONE, (no_auth(NO_LOGIN),)),
    # no login where one is needed
    "no login on starttls_auth": Case("starttls_auth", STARTTLS | CA, (login_needed(LOGIN),)),
    "no login on starttls_auth, hint after hint": Case("starttls_auth", {}, (login_needed(LOGIN), untrusted(CA))),
    "no login on implicit_auth": Case("implicit_auth", IMPLICIT | CA, (login_needed(LOGIN),)),
    "no login on implicit_auth, hint after hint": Case(
        "implicit_auth", {}, (silent(IMPLICIT), untrusted(CA), login_needed(LOGIN))
    ),
    "no login on auth_plain_only": Case("auth_plain_only", NONE, (login_needed(LOGIN),)),
    "no login on auth_plain_only, hint after hint": Case(
        "auth_plain_only", {}, (login_needed(LOGIN), no_starttls(NONE))
    ),
    "login switched off on starttls_auth": Case(
        "starttls_auth", LOGIN | STARTTLS | CA | NO_LOGIN, (login_needed({"SMTP_AUTH": "auto"}),)
    ),
    # a wrong login
    "wrong password on starttls_auth": Case("starttls_auth", WRONG_LOGIN | CA, (rejected(LOGIN),)),
    "wrong password on implicit_auth": Case("implicit_auth", WRONG_LOGIN | CA | IMPLICIT, (rejected(LOGIN),)),
    "wrong password on auth_plain_only": Case("auth_plain_only", WRONG_LOGIN | NONE, (rejected(LOGIN),)),
    "wrong password on auth_optional": Case("auth_optional", WRONG_LOGIN | NONE, (rejected(LOGIN),)),
    "wrong password on auth_scram": Case("auth_scram", WRONG_LOGIN | NONE, (rejected(LOGIN),)),
    "a mechanism that auth_scram does not offer": Case(
        "auth_scram", LOGIN | NONE | {"SMTP_AUTH": "plain"}, (unsupported({"SMTP_AUTH": "scram-sha-256"}),)
    ),
    "unknown user on starttls_auth": Case(
        "starttls_auth", LOGIN | CA | {"SMTP_USERNAME": "stranger"}, (rejected({"SMTP_USERNAME": "{user}"}),)
    ),
    # the wrong kind of TLS
    "tls=starttls on plain": Case("plain", STARTTLS, (no_starttls(OPPORTUNISTIC),)),
    "tls=starttls on auth_optional": Case("auth_optional", LOGIN, (no_starttls(NONE),)),
    "tls=starttls on auth_plain_only": Case("auth_plain_only", LOGIN | STARTTLS, (no_starttls(NONE),)),
    "tls=starttls on auth_plain_only, not loopback": Case(
        "auth_plain_only", LOGIN | ANOTHER_SPELLING, (no_starttls(NONE), at_start(CLEARTEXT))
    ),
    "tls=starttls on implicit_auth": Case("implicit_auth", LOGIN | CA | STARTTLS, (silent(IMPLICIT),)),
    "tls=implicit on plain": Case("plain", IMPLICIT, (no_tls_port(NONE),)),
    "tls=implicit on plain, Typebot's switch": Case("plain", {"SMTP_SECURE": "true"}, (no_tls_port(NONE),)),
    "tls=implicit on plain, with a login": Case("plain", LOGIN | IMPLICIT, (no_tls_port(NONE | NO_LOGIN),)),
    "tls=implicit on starttls": Case("starttls", IMPLICIT | SELF_SIGNED, (no_tls_port(STARTTLS),)),
    "tls=implicit on starttls, which is self-signed": Case(
        "starttls", IMPLICIT, (no_tls_port(STARTTLS), untrusted(SELF_SIGNED))
    ),
    "tls=implicit on starttls_auth": Case("starttls_auth", LOGIN | CA | IMPLICIT, (no_tls_port(STARTTLS),)),
    "tls=implicit on auth_plain_only": Case("auth_plain_only", LOGIN | IMPLICIT, (no_tls_port(NONE),)),
    "tls=none on implicit_auth": Case("implicit_auth", LOGIN | NONE, (silent(IMPLICIT), untrusted(CA))),
    "tls=none on starttls_auth": Case("starttls_auth", LOGIN | NONE, (no_auth(STARTTLS), untrusted(CA))),
    "tls=none on starttls_auth, no login": Case(
        "starttls_auth",
        NONE,
        (
            Fault("EAUTH", "auth_needs_tls", "configuration", STARTTLS),
            untrusted(CA),
            login_needed(LOGIN),
        ),
    ),
    "tls=opportunistic on implicit_auth": Case(
        "implicit_auth", OPPORTUNISTIC, (silent(IMPLICIT), untrusted(UNVERIFIED), login_needed(LOGIN))
    ),
    # certificates
    "unknown CA on starttls_auth": Case("starttls_auth", LOGIN, (untrusted(CA),)),
    "unknown CA on starttls_auth, not verified": Case("starttls_auth", LOGIN, (untrusted(UNVERIFIED),)),
    "unknown CA on implicit_auth": Case("implicit_auth", LOGIN | IMPLICIT, (untrusted(CA),)),
    "another CA on starttls_auth": Case("starttls_auth", LOGIN | SELF_SIGNED, (untrusted(CA),)),
    "self-signed on starttls": Case("starttls", STARTTLS, (untrusted(SELF_SIGNED),)),
    "another name on starttls_auth": Case("starttls_auth", LOGIN | CA | ANOTHER_SPELLING, (mismatched(SERVER_NAME),)),
    "another name on starttls_auth, not verified": Case(
        "starttls_auth",
        LOGIN | CA | ANOTHER_SPELLING,
        (mismatched(UNVERIFIED),),
    ),
    "another name on implicit_auth": Case(
        "implicit_auth", LOGIN | CA | IMPLICIT | ANOTHER_SPELLING, (mismatched(SERVER_NAME),)
    ),
    "another name on starttls": Case("starttls", STARTTLS | SELF_SIGNED | ANOTHER_SPELLING, (mismatched(SERVER_NAME),)),
    # host, port, and what contradicts itself
    "no such port": Case(
        "plain",
        {"SMTP_PORT": "1"},
        (Fault("ECONNECTION", "connection_refused", "temporary", {"SMTP_PORT": "{port}"}),),
    ),
    "half a login": Case(
        "auth_plain_only", NONE | {"SMTP_USERNAME": "bot"}, (at_start({"SMTP_PASSWORD": "{password}"}),)
    ),
    "opportunistic with a login": Case("starttls_auth", LOGIN | CA | OPPORTUNISTIC, (at_start(STARTTLS),)),
    "a mechanism without a login": Case("plain", {"SMTP_AUTH": "plain"}, (at_start(NO_LOGIN),)),
    "a login in clear, not loopback": Case("auth_plain_only", LOGIN | NONE | ANOTHER_SPELLING, (at_start(CLEARTEXT),)),
}


def settings_in_turn(case: Case) -> Iterator[dict[str, str]]:
    """Give the case's settings, then with each hint followed, host and port included."""
    said = merged(case.said)
    yield said
    for fault in case.faults:
        said = merged(said, fault.change)
        yield said


async def verdicts_of(postfix: Postfix, case: Case, folder: Path) -> list[Verdict]:
    """Try each of the case's settings in turn, on one database, as a user would who restarts the service."""
    return [
        await verdict_of(postfix, postfix.listeners[case.listener], folder, said) for said in settings_in_turn(case)
    ]


async def verdict_of(postfix: Postfix, listener: Listener, folder: Path, said: dict[str, str]) -> Verdict:
    # Only this listener waits in silence for a client that does not begin with TLS; under TLS the time is not used.
    waits = listener is postfix.implicit_auth
    impatient = {"MAILCHUTE_PROFILES__DEFAULT__TIMEOUTS__GREETING": "0.5"} if waits else {}
    try:
        async with running(postfix, listener, folder, said, impatient) as service:
            _, answer = await service.send()
    except ConfigError as error:
        return Verdict(said, ("does not start", "", "", ""), str(error))
    outcome = (answer["state"], answer["error_code"] or "", answer["reason"] or "", answer["class"] or "")
    return Verdict(said, outcome, answer["hint"] or "")


@pytest.mark.parametrize("case", TABLE.values(), ids=TABLE.keys())
async def test_a_wrong_setting_is_named_and_what_its_hint_says_mends_it(
    postfix: Postfix, tmp_path: Path, case: Case
) -> None:
    verdicts = await verdicts_of(postfix, case, tmp_path)
    assert [verdict.outcome for verdict in verdicts] == [*(fault.outcome for fault in case.faults), SENT], verdicts
    for fault, verdict in zip(case.faults, verdicts, strict=False):
        assert [word for word in fault.words if word not in verdict.hint] == [], verdict.hint


def test_the_table_has_wrong_settings_for_every_listener() -> None:
    elsewhere = {"mutual", "mutual_tls12"}  # test_client_certificate.py
    assert {case.listener for case in TABLE.values()} == {*Postfix.__annotations__} - {"ca_file"} - elsewhere


WRONG: dict[str, Environment] = {
    "starttls_auth": CA,
    "implicit_auth": CA | IMPLICIT,
    "auth_plain_only": NONE,
    "auth_optional": NONE,
    "auth_scram": NONE,
}
MODES = {
    **dict.fromkeys(WRONG, ("auto", "required", "plain", "login", "cram-md5")),
    "auth_scram": ("auto", "scram-sha-1", "scram-sha-256"),
}


@pytest.mark.parametrize(("name", "mode"), [(name, mode) for name, modes in MODES.items() for mode in modes])
async def test_one_wrong_password_is_one_failed_login(postfix: Postfix, tmp_path: Path, name: str, mode: str) -> None:
    listener, said = postfix.listeners[name], WRONG[name]
    before = logins(postfix, listener)
    async with running(postfix, listener, tmp_path, WRONG_LOGIN, said, {"SMTP_AUTH": mode}) as service:
        status, answer = await service.send()
        attempt = await service.attempt_at(answer)
    assert (status, answer["state"], answer["error_code"], answer["reason"]) == (
        202,
        "deferred",
        "EAUTH",
        "auth_rejected",
    )
    assert (answer["smtp_code"], answer["ok"], answer["final"], answer["will_retry"]) == (535, False, False, True)
    assert (attempt["phase"], attempt["handover"]) == ("auth", False)
    assert "wrong" not in str(attempt)
    assert postfix.auth_attempts(listener, at_least=before + 1) == before + 1


def logins(postfix: Postfix, listener: Listener) -> int:
    """Count the AUTH commands so far, the sessions of earlier tests having ended."""
    line = re.compile(rf"postfix/{listener.name}/smtpd\[\d+\]: (dis)?connect from")

    def is_quiet() -> bool:
        ends = [found == "dis" for found in line.findall(postfix.log())]
        return ends.count(True) == ends.count(False)

    assert until(is_quiet, timeout=5), postfix.log()[-4000:]
    return postfix.auth_attempts(listener)


# --- recipients ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Mixed:
    """Recipients, and what becomes of them. `failure` is code, reason, class, SMTP code."""

    to: tuple[str, ...]
    status: int
    state: str
    failure: tuple[str, str, str, int]
    accepted: tuple[str, ...] = ()
    rejected: tuple[str, ...] = ()
    listener: str = "plain"
    said: Environment = field(default_factory=dict)
    hint: str = ""


ANN, NOBODY, LATER, STRANGER = "ann@mailbox.test", "nobody@mailbox.test", "later@mailbox.test", "ann@example.com"
UNKNOWN = ("EENVELOPE", "mailbox_unknown", "permanent", 550)
DEFERRED = ("EENVELOPE", "greylisted", "temporary", 450)
IN_CLEAR = LOGIN | NONE

RECIPIENTS: dict[str, Mixed] = {
    "unknown": Mixed((NOBODY,), 424, "failed", UNKNOWN, rejected=(NOBODY,)),
    "later": Mixed((LATER,), 202, "deferred", DEFERRED),
    "one of them unknown": Mixed((ANN, NOBODY), 200, "partial", UNKNOWN, (ANN,), (NOBODY,)),
    "one of them later": Mixed((ANN, LATER), 202, "deferred", DEFERRED, (ANN,)),
    "one of each": Mixed((NOBODY, LATER, ANN), 202, "deferred", DEFERRED, (ANN,), (NOBODY,)),
    "unknown and later": Mixed((NOBODY, LATER), 202, "deferred", DEFERRED, (), (NOBODY,)),
    "another domain, no login to be had": Mixed(
        (STRANGER,),
        202,
        "deferred",
        ("EENVELOPE", "relay_denied", "configuration", 454),
        hint="our address 127.0.0.1: have it added there (Postfix: mynetworks",
    ),
    "another domain, a login to be had": Mixed(
        (STRANGER,),
        202,
        "deferred",
        ("EAUTH", "auth_required", "configuration", 454),
        listener="auth_optional",
        hint="set SMTP_USERNAME and SMTP_PASSWORD",
    ),
    "another domain, logged in": Mixed(
        (STRANGER,),
        202,
        "deferred",
        ("EENVELOPE", "relay_denied", "configuration", 554),
        listener="auth_plain_only",
        said=IN_CLEAR,
    ),
    "one of another domain": Mixed(
        (STRANGER, ANN), 202, "deferred", ("EENVELOPE", "relay_denied", "temporary", 454), (ANN,)
    ),
    "one of another domain, logged in": Mixed(
        (STRANGER, ANN),
        200,
        "partial",
        ("EENVELOPE", "relay_denied", "permanent", 554),
        (ANN,),
        (STRANGER,),
        listener="auth_plain_only",
        said=IN_CLEAR,
    ),
}


@pytest.mark.parametrize("case", RECIPIENTS.values(), ids=RECIPIENTS.keys())
async def test_each_recipient_meets_the_fate_that_postfix_gives_it(
    postfix: Postfix, tmp_path: Path, case: Mixed
) -> None:
    async with running(postfix, postfix.listeners[case.listener], tmp_path, case.said) as service:
        status, answer = await service.send(to=list(case.to))
    failure = tuple(answer[key] for key in ("error_code", "reason", "class", "smtp_code"))
    assert (status, answer["state"], failure) == (case.status, case.state, case.failure)
    assert (tuple(answer["accepted"]), tuple(r["address"] for r in answer["rejected"])) == (
        case.accepted,
        case.rejected,
    )
    assert answer["final"] is (case.state != "deferred")
    assert answer["ok"] is False
    assert case.hint in answer["hint"]
    for address in case.accepted:
        await copy_for(postfix, answer, address)
    assert copies(postfix, answer) == len(case.accepted)


async def test_a_refused_mail_leaves_the_connection_to_the_next_one(postfix: Postfix, tmp_path: Path) -> None:
    async with running(postfix, postfix.plain, tmp_path) as service:
        _, first = await service.send(to=NOBODY)
        _, second = await service.send()
        attempt = await service.attempt_at(second)
    assert (first["state"], second["state"]) == ("failed", "sent")
    assert session_of(postfix, attempt) == "ehlo=1 mail=2 rcpt=1/2 data=1/2 rset=1 quit=1 commands=7/9"


async def test_recipients_over_the_relays_limit_are_sent_to_in_the_same_attempt(
    postfix: Postfix, tmp_path: Path
) -> None:
    everybody = [f"r{n}@mailbox.test" for n in range(MAX_RECIPIENTS + 3)]
    async with running(postfix, postfix.limits, tmp_path) as service:
        status, answer = await service.send(to=everybody)
    assert (status, answer["state"], answer["accepted"], answer["attempts"]) == (200, "sent", everybody, 1)
    for address in everybody:
        await copy_for(postfix, answer, address)
    assert copies(postfix, answer) == len(everybody)


async def test_a_verdict_is_kept_though_postfix_then_hangs_up_for_too_many_errors(
    postfix: Postfix, tmp_path: Path
) -> None:
    # smtpd_hard_error_limit: with the 20th error of a session Postfix answers 421 to whatever comes next.
    async with running(postfix, postfix.auth_plain_only, tmp_path, IN_CLEAR) as service:
        answers = [await service.send(to=[NOBODY, STRANGER]) for _ in range(8)]
    assert [(status, answer["state"], answer["smtp_code"]) for status, answer in answers] == [(424, "failed", 550)] * 8


async def test_many_refused_recipients_do_not_keep_the_good_one_from_its_mail(postfix: Postfix, tmp_path: Path) -> None:
    bad = [f"r{n}@example.com" for n in range(25)]
    async with running(postfix, postfix.auth_plain_only, tmp_path, IN_CLEAR, SOON) as service:
        _, answer = await service.send(to=[*bad, ANN])
        end = await service.end_of(answer)
    assert (end["state"], end["accepted"]) == ("partial", [ANN])
    assert [recipient["address"] for recipient in end["rejected"]] == bad
    await copy_for(postfix, answer, ANN)


@pytest.mark.parametrize("place", [0, 12, 25])
async def test_full_mailboxes_do_not_keep_the_good_one_from_its_mail(
    place: int, postfix: Postfix, tmp_path: Path
) -> None:
    # Twenty times 452 4.2.2, then 421 4.7.0 too many errors (smtpd_hard_error_limit).
    full = [f"full{n}@mailbox.test" for n in range(25)]
    async with running(postfix, postfix.plain, tmp_path) as service:
        _, answer = await service.send(to=[*full[:place], ANN, *full[place:]])
        attempt = await service.attempt_at(answer)
    assert (answer["state"], answer["accepted"], answer["attempts"]) == ("deferred", [ANN], 1)
    assert any("421 4.7.0" in line["line"] for line in attempt["transcript"])
    await copy_for(postfix, answer, ANN)
    assert copies(postfix, answer) == 1


async def test_of_a_thousand_recipients_with_full_mailboxes_among_them_each_good_one_gets_one_mail(
    postfix: Postfix, tmp_path: Path
) -> None:
    everybody = [f"{'full' if n % 20 == 7 else 'r'}{n}@mailbox.test" for n in range(1000)]
    async with running(postfix, postfix.plain, tmp_path) as service:
        _, answer = await service.send(to=everybody)
        found = await service.look_up(answer)
    good = [address for address in everybody if address.startswith("r")]
    assert (found["state"], found["accepted"], len(found["attempts"])) == ("deferred", good, 1)
    assert {one["smtp_code"] for one in found["recipients"] if one["state"] == "pending"} == {452}
    await copy_for(postfix, answer, good[-1])


async def test_a_non_ascii_mailbox_gets_its_mail(postfix: Postfix, tmp_path: Path) -> None:
    async with running(postfix, postfix.plain, tmp_path) as service:
        _, answer = await service.send(to="Jürgen <jürgen@mailbox.test>")
        attempt = await service.attempt_at(answer)
        raw = await service.raw(answer)
    assert answer["state"] == "sent", answer
    assert " SMTPUTF8" in said_in(attempt)[1]
    mail = await copy_for(postfix, answer, "jürgen@mailbox.test")
    assert as_sent(mail) == raw.replace(b"\r\n", b"\n")
    assert [(a.display_name, a.addr_spec) for a in parsed(mail)["To"].addresses] == [("Jürgen", "jürgen@mailbox.test")]


# --- content ---------------------------------------------------------------------------------------------------


async def test_a_mail_over_the_relays_size_is_refused_before_a_byte_of_it_leaves(
    postfix: Postfix, tmp_path: Path
) -> None:
    async with running(postfix, postfix.limits, tmp_path) as service:
        status, answer = await service.send(text="0123456789\n" * (MAX_BYTES // 10))
        attempt = await service.attempt_at(answer)
        _, next_answer = await service.send()
    assert (status, answer["state"], answer["final"]) == (424, "failed", True)
    assert (answer["error_code"], answer["reason"], answer["class"]) == ("ETOOLARGE", "message_too_large", "permanent")
    assert f"{MAX_BYTES}" in answer["hint"]
    assert not any("MAIL FROM" in line or "content" in line for line in said_in(attempt))
    assert attempt["handover"] is False
    assert copies(postfix, answer) == 0
    assert next_answer["state"] == "sent"


async def test_a_mail_just_as_large_as_the_relay_takes_is_sent(postfix: Postfix, tmp_path: Path) -> None:
    async with running(postfix, postfix.limits, tmp_path) as service:
        _, small = await service.send(text="x")
        room = MAX_BYTES - len(await service.raw(small)) + len("x\r\n")
        whole = room // 100 - 1
        _, answer = await service.send(text=("x" * 98 + "\n") * whole + "x" * (room - 100 * whole - 2))
        size = len(await service.raw(answer))
    assert (answer["state"], size) == ("sent", MAX_BYTES)
    await copy_for(postfix, answer, ANN)


async def test_a_mail_of_megabytes_arrives_whole(postfix: Postfix, tmp_path: Path) -> None:
    text = "".join(f"{n}\n.{n}\n..\n" for n in range(200_000))
    async with running(postfix, postfix.starttls_auth, tmp_path, LOGIN, CA) as service:
        _, answer = await service.send(text=text)
    assert answer["state"] == "sent", answer
    assert content(parsed(await copy_for(postfix, answer, ANN)), "plain") == text


SMUGGLED = "smuggled@mailbox.test"
PIECES = [
    *(".", "..", "\n.\n", "\r\n.\r\n", "\r.\r", "\n.\r", "\r.\n", "\r\n.\n", "\n.\r\n", "\r\n.\r", "\n..\n", ".\r\n"),
    *("\r", "\n", "\r\n", "\r\r\n", "\n\r", "\n\n", " ", "\t", " \n", "\t\r\n", "=", "=20", "=\n", "--", "From me\n"),
    *("ä", "€", "𝄞", "\u2028", "\x85", "\x0b", "\x0c", "\x00", "\x1a", "\ufeff", "e\u0301", "<p>&amp;</p>"),
    f"\r\n.\r\nMAIL FROM:<bot@example.org>\r\nRCPT TO:<{SMUGGLED}>\r\nDATA\r\nSubject: smuggled\r\n\r\n.\r\n",
    f"\n.\nMAIL FROM:<bot@example.org>\nRCPT TO:<{SMUGGLED}>\nDATA\nSubject: smuggled\n\n.\n",
    f"\r.\rMAIL FROM:<bot@example.org>\rRCPT TO:<{SMUGGLED}>\rDATA\rSubject: smuggled\r\r.\r",
]
TEXTS = (
    st.lists(
        st.sampled_from(PIECES) | st.text(max_size=40) | st.integers(70, 3000).map("x".__mul__),
        min_size=1,
        max_size=24,
    )
    .map("".join)
    .filter(bool)
)


def test_a_body_arrives_as_one_mail_and_equal_but_for_its_line_ends(postfix: Postfix, tmp_path: Path) -> None:
    arrived: list[Answer] = []

    async def arrives(service: Service, text: str, fields: tuple[str, ...]) -> None:
        _, answer = await service.send(**{"text": None} | dict.fromkeys(fields, text))
        assert answer["state"] == "sent", answer
        arrived.append(answer)
        mail = parsed(await copy_for(postfix, answer, ANN))
        for name in fields:
            assert content(mail, "plain" if name == "text" else name) == one_way(text)
        assert copies(postfix, answer) == 1

    with asyncio.Runner() as loop, ExitStack() as closing:
        opened = running(postfix, postfix.plain, tmp_path)
        service = loop.run(opened.__aenter__())
        closing.callback(lambda: loop.run(opened.__aexit__(None, None, None)))

        @settings(max_examples=30, deadline=None, database=None)
        @given(TEXTS, st.sampled_from([("text",), ("html",), ("text", "html")]))
        @example("".join(PIECES), ("text", "html"))
        @example("".join(piece for piece in PIECES if piece.isascii() and "\x00" not in piece), ("text",))
        def every_text_arrives(text: str, fields: tuple[str, ...]) -> None:
            loop.run(arrives(service, text, fields))

        every_text_arrives()
        attempt = loop.run(service.attempt_at(arrived[-1]))
    count = len(arrived)
    commands = f"ehlo=1 mail={count} rcpt={count} data={count} quit=1 commands={3 * count + 2}"
    assert session_of(postfix, attempt) == commands
    assert not any(f"To: {SMUGGLED}\n".encode() in mail for mail in postfix.mails())


async def test_attached_mails_and_invitations_arrive_equal_and_as_parts_of_one_mail(
    postfix: Postfix, tmp_path: Path
) -> None:
    contents = [f"Subject: {number}\n\n{piece}".encode() for number, piece in enumerate(PIECES)]
    files = [{"filename": f"{n}.eml", "content": b64encode(each).decode()} for n, each in enumerate(contents)]
    calendar = "BEGIN:VCALENDAR\nMETHOD:REQUEST\nBEGIN:VEVENT\nSUMMARY:für Köln\nEND:VEVENT\nEND:VCALENDAR\n"
    async with running(postfix, postfix.plain, tmp_path) as service:
        _, answer = await service.send(attachments=files, calendar={"method": "request", "content": calendar})
    assert answer["state"] == "sent", answer
    mail = parsed(await copy_for(postfix, answer, ANN))
    alternatives, *parts, invitation = mail.iter_parts()
    shown = list(alternatives.iter_parts())[-1]
    assert shown.get_content_type() == "text/calendar"
    for part in (shown, invitation):
        read = part.get_payload(decode=True)
        assert isinstance(read, bytes)
        assert read.decode().replace("\r\n", "\n") == calendar
    assert len(parts) == len(contents)
    kinds = set()
    for part, each in zip(parts, contents, strict=True):
        kinds.add(part.get_content_type())
        if part.get_content_type() == "message/rfc822":
            (inner,) = part.iter_parts()
            alone = email.message_from_bytes(each.replace(b"\r\n", b"\n"), policy=email.policy.default)
            assert (inner["Subject"], inner.get_payload()) == (alone["Subject"], alone.get_payload())
        else:
            assert part.get_payload(decode=True) == each
    assert kinds == {"message/rfc822", "application/octet-stream"}
    assert copies(postfix, answer) == 1
    assert not any(f"To: {SMUGGLED}\n".encode() in found for found in postfix.mails())


async def test_mail_of_the_null_sender_arrives(postfix: Postfix, tmp_path: Path) -> None:
    null = {"MAILCHUTE_PROFILES__DEFAULT__ENVELOPE_FROM": "<>"}
    async with running(postfix, postfix.plain, tmp_path, null) as service:
        _, answer = await service.send()
        attempt = await service.attempt_at(answer)
    assert answer["state"] == "sent", answer
    assert any(line.startswith("MAIL FROM:<>") for line in said_in(attempt))
    mail = await copy_for(postfix, answer, ANN)
    assert b"Return-Path: <>\n" in mail
    assert b"From: bot@example.org\n" in mail


async def test_structured_fields_arrive_as_they_were_meant(postfix: Postfix, tmp_path: Path) -> None:
    ids = " ".join(f"<{at}.{'x' * 40}@example.org>" for at in range(60))
    asked = {
        "In-Reply-To": "<a@example.org> ",
        "References": ids.replace(" ", "  "),
        "List-Unsubscribe": f"<https://example.org/{'u' * 900}?next=?a>",
        "Disposition-Notification-To": "Jörg <j@example.org>",
    }
    async with running(postfix, postfix.plain, tmp_path) as service:
        _, answer = await service.send(headers=asked, subject="Order  4711")
    mail = await copy_for(postfix, answer, ANN)
    unfolded = re.sub(rb"\n(?=[ \t])", b"", mail.partition(b"\n\n")[0]).decode()
    read = dict(line.split(": ", 1) for line in unfolded.splitlines())
    assert (read["In-Reply-To"], read["References"]) == ("<a@example.org>", ids)
    assert read["List-Unsubscribe"] == asked["List-Unsubscribe"]
    assert read["Subject"] == "Order  4711"
    assert parsed(mail)["Disposition-Notification-To"] == asked["Disposition-Notification-To"]


def one_way(text: str) -> str:
    """End every line with LF, the last one too."""
    lines = re.sub(r"\r\n|\r", "\n", text)
    return lines if lines.endswith("\n") else f"{lines}\n"


# --- connections -----------------------------------------------------------------------------------------------


async def test_fifty_mails_at_once_all_arrive_once(postfix: Postfix, tmp_path: Path) -> None:
    async with running(postfix, postfix.starttls, tmp_path) as service:
        answers = [answer for _, answer in await asyncio.gather(*(service.send() for _ in range(50)))]
    assert [answer["state"] for answer in answers] == ["sent"] * 50
    for answer in answers:
        await copy_for(postfix, answer, ANN)
    assert [copies(postfix, answer) for answer in answers] == [1] * 50


async def test_a_relay_that_was_restarted_between_two_mails_is_no_failure(postfix: Postfix, tmp_path: Path) -> None:
    async with running(postfix, postfix.plain, tmp_path) as service:
        _, first = await service.send()
        await copy_for(postfix, first, ANN)
        postfix.stop()
        postfix.start()
        _, second = await service.send()
        attempt = await service.attempt_at(second)
    assert (first["state"], second["state"]) == ("sent", "sent")
    assert "connect" in attempt["phases"]
    await copy_for(postfix, second, ANN)
    assert copies(postfix, second) == 1


async def test_a_mail_that_finds_the_relay_down_is_sent_once_it_is_back(postfix: Postfix, tmp_path: Path) -> None:
    async with running(postfix, postfix.plain, tmp_path, SOON) as service:
        postfix.stop()
        try:
            status, answer = await service.send()
        finally:
            postfix.start()
        end = await service.end_of(answer)
    assert (status, answer["state"], answer["class"]) == (202, "deferred", "temporary")
    assert (answer["error_code"], answer["reason"]) == ("ECONNECTION", "connection_refused")
    assert end["state"] == "sent"
    await copy_for(postfix, answer, ANN)
    assert copies(postfix, answer) == 1
