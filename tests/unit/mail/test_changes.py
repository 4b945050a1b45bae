"""What a hint proposes can be done: its changes are accepted by the settings that caused it, in every dialect."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from app.mail.changes import Change
from app.mail.codes import Reason
from app.mail.errors import ConfigError
from app.mail.hints import changes, hint
from app.mail.profile import Dialect, Profile, setting
from app.settings import Settings, load
from tests.support.tls import certificates

Written = dict[str, Any]  # key → value, as in the file; what is upper-case is one of Typebot's switches

PIN, OTHER_PIN = "ab" * 32, "cd" * 32
HOST: Written = {"host": "relay.corp.example"}
LOGIN: Written = {"username": "bot", "password": "s3cret-canary"}
CA: Written = {"ca_file": str(certificates().ca_file)}
CLIENT: Written = {"client_cert": str(certificates().client_file)}
MODES: list[Written] = [
    {},
    {"port": 465},
    {"port": 25},
    {"port": 587},
    *({"port": port, "tls": tls} for port in (587, 465) for tls in ("none", "opportunistic", "starttls", "implicit")),
]
SWITCHES: list[Written] = [{"SMTP_SECURE": True}, {"SMTP_IGNORE_TLS": True}]
LOGINS: list[Written] = [
    {},
    LOGIN,
    LOGIN | {"auth": "none"},
    LOGIN | {"auth": "plain"},
    LOGIN | {"allow_cleartext_auth": True},
]
EXTRAS: list[Written] = [
    {},
    CA,
    {"verify": True},
    {"verify": False},
    {"server_name": "mx.corp.example"},
    CLIENT,
    {"min_tls": "1.3"},
    {"cert_sha256": PIN},
    {"tls_security_level": 1},
    CA | {"server_name": "mx.corp.example", "min_tls": "1.3"} | CLIENT,
    CA | {"verify": True},
    {"max_connections": 1},
    {"max_connections": 1, "rate": "1/m"},
]
FACTS: dict[str, str] = {
    "issuer": "Corp CA",
    "not_after": "2025-12-31",
    "names": "Corp Mail Server 1, *.corp.example",
    "offered": "PLAIN LOGIN",
    "our_address": "192.0.2.7",
    "limit": "10240000",
    "sha256": OTHER_PIN,
    "mechanism": "CRAM-MD5",
    "phase": "auth",
    "answers": "465 25",
    "setting": "password_file",
    "limited": "messages",
}
SEVERAL_FACTS: list[dict[str, str]] = [
    {},
    FACTS,
    FACTS | {"starttls": "offered", "answers": "587"},
    FACTS | {"answers": "25", "offered": "", "mechanism": ""},
    FACTS | {"names": "Corp Mail Server 1"},
    FACTS | {"sends_no_issuer": "yes", "authorities": "Corp CA", "level": "0", "version": "1.0", "plain": "starttls"},
    FACTS | {"level": "1", "version": "1.1", "plain": "none"},
    FACTS | {"plain": "none", "plain_auth": "yes", "tls_error": "handshake failure", "for_now": "yes"},
    FACTS | {"session": "known", "login": "yes", "offered": "NTLM GSSAPI", "helo_name": "[127.0.0.1]"},
    FACTS | {"session": "known", "offered": "NTLM GSSAPI", "starttls": "offered"},
]
PLACEHOLDERS = {"/path/to/ca.pem": CA["ca_file"], "/path/to/client.pem": CLIENT["client_cert"]}
# What comes only where the relay's certificate is judged, where TLS must be, and where a login is made.
OF_VERIFYING = {Reason.TLS_CERT_UNTRUSTED, Reason.TLS_CERT_EXPIRED, Reason.TLS_HOSTNAME_MISMATCH}
OF_TLS = {reason for reason in Reason if reason.startswith("tls_")} - {Reason.TLS_MODE_MISMATCH}
OF_LOGIN = {reason for reason in Reason if reason.startswith("auth_")} - {Reason.AUTH_REQUIRED, Reason.AUTH_NEEDS_TLS}


def can_come(reason: Reason, profile: Profile) -> bool:
    """Whether a profile with these settings can meet this reason."""
    if reason in OF_LOGIN:
        return profile.wants_login
    if reason is Reason.TLS_PIN_MISMATCH:
        return profile.cert_sha256 is not None
    if reason in OF_VERIFYING:
        return profile.requires_tls and profile.verify and profile.cert_sha256 is None
    return profile.requires_tls if reason in OF_TLS else True


def read(dialect: Dialect, folder: Path, written: Written) -> Settings:
    if dialect is Dialect.FILE:
        lines = (setting(dialect, "default", key, value) for key, value in written.items())
        (folder / "mailchute.toml").write_text("[profiles.default]\n" + "\n".join(map(str, lines)))
        return load({}, files=(folder / "mailchute.toml",))
    environ = {}
    for key, value in written.items():
        name, _, shown = (setting(dialect, "default", key, value) if key.islower() else f"{key}=true").partition("=")
        environ[name] = shown
    return load(environ, files=())


def causes(dialect: Dialect) -> Iterator[Written]:
    modes = [*MODES, *(SWITCHES if dialect is Dialect.ENVIRONMENT else [])]
    for mode, login in product(modes, LOGINS):
        yield {**HOST, **mode, **login}
    for mode, login, extra in product(modes, LOGINS[:2], EXTRAS):
        if "port" not in mode or mode["port"] == (465 if mode.get("tls") == "implicit" else 587):
            yield {**HOST, **mode, **login, **extra}


@cache
def caused(dialect: Dialect, folder: Path) -> list[tuple[Written, Settings]]:
    """Give all settings that start, as they are written and as they are read."""
    found = []
    for written in causes(dialect):
        try:
            found.append((written, read(dialect, folder, written)))
        except ConfigError:
            continue
    return found


def proposals(profile: Profile) -> dict[str, tuple[Reason, Change, str]]:
    """Give every change that any hint proposes to a profile, once."""
    found: dict[str, tuple[Reason, Change, str]] = {}
    for reason in (reason for reason in Reason if can_come(reason, profile)):
        for facts in SEVERAL_FACTS:
            if facts.get("mechanism") and not profile.wants_login:
                facts = {**facts, "mechanism": ""}  # noqa: PLW2901
            for change in changes(reason, profile, facts):
                found.setdefault(repr(change), (reason, change, hint(reason, profile, facts)))
    return found


def idle(settings: Settings) -> set[str]:
    """Name what has no effect; `verify = true` is the default, so a profile does not know whether it was written."""
    without_effect = (warning for warning in settings.warnings if "has no effect" in warning)
    return {name for warning in without_effect if "verify" not in (name := warning.split()[2].lower())}


def applied(written: Written, change: Change, *, removing: bool) -> Written:
    kept = {key: value for key, value in written.items() if not removing or key not in change.remove}
    return kept | {key: PLACEHOLDERS.get(str(value), value) for key, value in change.set.items()}


@pytest.mark.parametrize("dialect", Dialect)
@pytest.mark.parametrize("removing", [True, False], ids=["whole", "only-what-is-set"])
def test_every_change_is_accepted_by_the_settings_that_caused_it(
    dialect: Dialect, removing: bool, tmp_path: Path
) -> None:
    tried = set()
    for written, before in caused(dialect, tmp_path):
        for reason, change, sentence in proposals(before.profiles["default"]).values():
            then = applied(written, change, removing=removing)
            if repr(sorted(then.items())) in tried:
                continue
            tried.add(repr(sorted(then.items())))
            try:
                settings = read(dialect, tmp_path, then)
            except ConfigError as error:
                pytest.fail(f"{reason}: {dict(written)} and {change}: {error}\n{sentence}")
            assert not removing or idle(settings) <= idle(before), (change, sentence)
            for key, value in change.set.items():
                assert (
                    str(getattr(settings.profiles["default"], key)).lower()
                    == str(PLACEHOLDERS.get(str(value), value)).lower()
                )
    assert len(tried) > 300


@pytest.mark.parametrize("dialect", Dialect)
def test_the_sentence_has_every_line_of_its_changes_and_what_they_remove(dialect: Dialect, tmp_path: Path) -> None:
    for _, settings in caused(dialect, tmp_path)[::9]:
        profile = settings.profiles["default"]
        for reason in Reason:
            for facts in SEVERAL_FACTS:
                sentence, ways = hint(reason, profile, facts), changes(reason, profile, facts)
                for change in ways:
                    lines = " and ".join(profile.setting(key, value) for key, value in change.set.items())
                    assert lines in sentence
                    names = [key if key.isupper() else profile.setting(key) for key in change.remove]
                    assert not names or f"{lines} (and remove {' and '.join(names)})" in sentence
                assert "s3cret-canary" not in repr(ways)


def ways(
    reason: Reason, dialect: Dialect, folder: Path, written: Written, facts: Mapping[str, str]
) -> tuple[Change, ...]:
    return changes(reason, read(dialect, folder, HOST | written).profiles["default"], facts)


FOUNDING = CA | LOGIN | {"port": 587}


@pytest.mark.parametrize(
    ("reason", "written", "facts", "expected"),
    [
        pytest.param(Reason.AUTH_NOT_OFFERED, FOUNDING, {}, [Change({"auth": "none"})], id="the-founding-case"),
        pytest.param(
            Reason.CONNECTION_REFUSED,
            {"port": 25},
            {"answers": "465"},
            [Change({"port": 465, "tls": "implicit"})],
            id="two-lines-of-one-change",
        ),
        pytest.param(
            Reason.TLS_NOT_OFFERED,
            CA | {"port": 587},
            {},
            [Change({"tls": "implicit", "port": 465}), Change({"tls": "opportunistic"}, ("ca_file",))],
            id="two-ways-and-a-ca",
        ),
        pytest.param(
            Reason.TLS_CERT_EXPIRED,
            CA | {"port": 465},
            {"sha256": PIN},
            [Change({"cert_sha256": PIN}, ("ca_file",)), Change({"verify": False}, ("ca_file",))],
            id="a-pin-or-nothing-in-place-of-a-ca",
        ),
        pytest.param(Reason.AUTH_REQUIRED, {"port": 25}, {}, [], id="credentials-are-nobodys-to-propose"),
        pytest.param(
            Reason.AUTH_REQUIRED,
            LOGIN | {"tls": "opportunistic", "auth": "none"},
            {},
            [Change({"auth": "auto", "tls": "starttls"})],
            id="a-login-that-may-not-go-in-clear",
        ),
    ],
)
def test_a_change_is_what_the_sentence_says(
    reason: Reason, written: Written, facts: Mapping[str, str], expected: list[Change], tmp_path: Path
) -> None:
    assert ways(reason, Dialect.FILE, tmp_path, written, facts) == tuple(expected)


@pytest.mark.parametrize(("switch", "tls"), [("SMTP_SECURE", "starttls"), ("SMTP_IGNORE_TLS", "implicit")])
def test_a_switch_of_typebots_goes_with_the_mode_that_takes_its_place(switch: str, tls: str, tmp_path: Path) -> None:
    profile = read(Dialect.ENVIRONMENT, tmp_path, HOST | {switch: True}).profiles["default"]
    first, *_ = changes(Reason.TLS_MODE_MISMATCH, profile)
    assert first == Change({"tls": tls}, (switch,))
    assert f"SMTP_TLS={tls} (and remove {switch})" in hint(Reason.TLS_MODE_MISMATCH, profile)


def test_a_login_beside_a_mode_that_was_set_is_proposed_with_tls(tmp_path: Path) -> None:
    """Credentials alone would be refused at the start."""
    for written in ({"tls": "opportunistic"}, {"tls": "none"}):
        profile = read(Dialect.FILE, tmp_path, HOST | written).profiles["default"]
        assert re.search(r'username and password, and tls = "starttls"\.', hint(Reason.AUTH_REQUIRED, profile))
        read(Dialect.FILE, tmp_path, HOST | LOGIN | {"tls": "starttls"})
    profile = read(Dialect.FILE, tmp_path, HOST).profiles["default"]
    assert "tls" not in hint(Reason.AUTH_REQUIRED, profile)
