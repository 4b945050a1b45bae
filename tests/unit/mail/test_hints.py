"""Every reason has a hint, and a hint names only settings that there are, in words that can be pasted."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from app.mail.codes import CODE_OF, ErrorCode, Reason
from app.mail.errors import ConfigError
from app.mail.explain import cure
from app.mail.hints import at_the_end, hint
from app.mail.profile import Dialect, Profile, ProfileFacts, TlsMode, resolve_profile, stand_in
from app.mail.schedule import Rate
from app.settings import load
from app.smtp.relays import _KNOWN, Known
from app.written import ProfileSettings, TimeoutSettings

_ENVIRONMENT_SETTING = re.compile(r"\b(?:SMTP|MAILCHUTE)_[A-Z0-9_]+\b(?:=(?P<value>[^\s,;)]*[^\s,;).]))?")
_FILE_SETTING = re.compile(r"\b[a-z_]+ = (?:\"[^\"]*\"|true|false|[0-9]+)")
FACTS = {
    "issuer": "Corp CA",
    "not_after": "2025-12-31",
    "names": "mail.corp.example, smtp.corp.example",
    "offered": "PLAIN LOGIN",
    "our_address": "192.0.2.7",
    "limit": "10240000",
    "sha256": "ab" * 32,
    "mechanism": "CRAM-MD5",
    "phase": "auth",
    "answers": "465 25",
    "starttls": "offered",
}
_HOST = {"SMTP_HOST": "relay.corp.example"}
_KEYS = {field.alias or name for name, field in ProfileSettings.model_fields.items()}
_PROFILES: dict[str, dict[str, Any]] = {
    "port 25": {"port": 25},
    "port 465": {"port": 465},
    "port 587 with a login": {"port": 587, "username": "bot", "password": "s3cret-canary"},
    "port 465 with a login": {"port": 465, "username": "bot", "password": "s3cret-canary"},
    "in clear": {"port": 25, "tls": TlsMode.NONE},
}


def _profile(dialect: Dialect, name: str, said: dict[str, Any]) -> Profile:
    return resolve_profile(ProfileFacts(name=name, dialect=dialect, host="relay.corp.example", **said))[0]


def _hints(reason: Reason, dialect: Dialect, name: str = "default") -> set[str]:
    """Give the hint for every kind of profile, with and without facts, of whichever port answers."""
    profiles = [_profile(dialect, name, said) for said in _PROFILES.values()]
    several = [{}, FACTS, *(FACTS | {"answers": port, "starttls": ""} for port in ("587", "25", "2525"))]
    return {
        hint(reason, profile, {"setting": profile.setting("password_file"), **facts} if facts else {})
        for profile in profiles
        for facts in several
    }


def _said_against(environ: dict[str, str], *files: Path) -> str:
    """Load these settings; give what is said against them."""
    try:
        load(environ, files=files)
    except ConfigError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("reason", Reason)
@pytest.mark.parametrize("dialect", Dialect)
def test_every_reason_has_one_sentence_for_a_hint(reason: Reason, dialect: Dialect) -> None:
    for text in _hints(reason, dialect):
        assert text.endswith(".")
        assert text[0].isupper()
        assert len(text) < 400
        assert text.isprintable()
        assert not re.search(r"[{}]|None|\bTrue\b|\bFalse\b|  ", text)
        assert "s3cret-canary" not in text


@pytest.mark.parametrize("reason", Reason)
def test_a_hint_in_the_environments_dialect_names_settings_that_exist(reason: Reason) -> None:
    for text in _hints(reason, Dialect.ENVIRONMENT):
        for found in _ENVIRONMENT_SETTING.finditer(text):
            assert "is not a setting" not in _said_against(_HOST | {found[0].partition("=")[0]: found["value"] or "1"})
        assert not _FILE_SETTING.search(text)


@pytest.mark.parametrize("reason", Reason)
def test_a_line_of_a_hint_can_be_set_as_it_stands(reason: Reason) -> None:
    for text in _hints(reason, Dialect.ENVIRONMENT):
        for found in _ENVIRONMENT_SETTING.finditer(text):
            if found["value"]:
                assert "Input should be" not in _said_against(_HOST | {found[0].partition("=")[0]: found["value"]})


@pytest.mark.parametrize("reason", Reason)
def test_a_hint_for_a_nested_profile_names_it_and_its_keys(reason: Reason) -> None:
    for text in _hints(reason, Dialect.NESTED, "corp"):
        assert "SMTP_" not in text
        for found in _ENVIRONMENT_SETTING.finditer(text):
            name = found[0].partition("=")[0]
            key, _, phase = name.removeprefix("MAILCHUTE_PROFILES__CORP__").lower().partition("__")
            assert key in _KEYS
            assert not phase or phase in TimeoutSettings.model_fields


@pytest.mark.parametrize("reason", Reason)
def test_a_hint_in_the_files_dialect_names_keys_that_exist(reason: Reason, tmp_path: Path) -> None:
    for text in _hints(reason, Dialect.FILE, "corp"):
        assert not _ENVIRONMENT_SETTING.search(text)
        for line in _FILE_SETTING.findall(text):
            ((key, _),) = tomllib.loads(line).items()
            assert key in _KEYS
            host = "" if key == "host" else 'host = "relay.corp.example"\n'
            file = tmp_path / "mailchute.toml"
            file.write_text(f"[profiles.corp]\n{host}{line}\n")
            said = _said_against({}, file)
            assert "is not a setting" not in said
            assert "Input should be" not in said


@pytest.mark.parametrize(
    ("reason", "said", "lines"),
    [
        (Reason.AUTH_NOT_OFFERED, {"port": 587, "username": "bot", "password": "x"}, [("auth", "none")]),
        (Reason.GREETING_TIMEOUT, {"port": 2465}, [("tls", "implicit")]),
        (
            Reason.TLS_NOT_OFFERED,
            {"port": 587, "tls": TlsMode.STARTTLS},
            [("tls", "implicit"), ("tls", "opportunistic")],
        ),
        (Reason.TLS_NOT_OFFERED, {"port": 587, "username": "bot", "password": "x"}, [("tls", "implicit")]),
        (Reason.TLS_CERT_UNTRUSTED, {"port": 465}, [("ca_file", "/path/to/ca.pem"), ("verify", False)]),
        (Reason.TLS_CERT_EXPIRED, {"port": 465}, [("cert_sha256", "ab" * 32), ("verify", False)]),
        (Reason.TLS_CERT_UNTRUSTED, {"port": 465}, [("cert_sha256", "ab" * 32)]),
        (Reason.TLS_PIN_MISMATCH, {"port": 465, "cert_sha256": "cd" * 32}, [("cert_sha256", "ab" * 32)]),
        (Reason.TLS_VERSION_UNSUPPORTED, {"port": 465}, [("min_tls", "1.0")]),
        (Reason.TLS_CLIENT_CERT_REQUIRED, {"port": 465}, [("client_cert", "/path/to/client.pem")]),
        (Reason.RATE_LIMITED, {"port": 25}, [("max_connections", 5)]),
        (Reason.TLS_HOSTNAME_MISMATCH, {"port": 465}, [("server_name", "mail.corp.example"), ("verify", False)]),
        (Reason.TLS_MODE_MISMATCH, {"port": 465}, [("tls", "starttls"), ("tls", "none")]),
        (Reason.TLS_MODE_MISMATCH, {"port": 465, "username": "bot", "password": "x"}, [("tls", "starttls")]),
        (Reason.TLS_MODE_MISMATCH, {"port": 465, "tls": TlsMode.NONE}, [("tls", "implicit")]),
        (Reason.AUTH_REQUIRED, {"port": 587}, [("username", None), ("password", None)]),
        (Reason.AUTH_REJECTED, {"port": 587, "username": "bot", "password": "x"}, [("username", None)]),
        (Reason.AUTH_NEEDS_TLS, {"port": 25}, [("tls", "starttls")]),
        (Reason.HELO_REFUSED, {"port": 25}, [("helo_name", None)]),
        (Reason.REPLY_TIMEOUT, {"port": 25}, [("timeouts.auth", None)]),
        (Reason.CONNECTION_REFUSED, {"port": 25}, [("host", None), ("port", None)]),
        (Reason.CONNECTION_REFUSED, {"port": 25}, [("port", 465), ("tls", "implicit")]),
        (Reason.CONNECT_TIMEOUT, {"port": 25}, [("port", 465), ("tls", "implicit"), ("host", None)]),
        (Reason.GREETING_TIMEOUT, {"port": 2525}, [("port", 465), ("tls", "implicit")]),
        (Reason.NOT_SMTP, {"port": 80}, [("port", 465), ("tls", "implicit"), ("host", None)]),
        (Reason.MALFORMED_REPLY, {"port": 22}, [("port", 465), ("tls", "implicit"), ("host", None)]),
        (Reason.AUTH_NOT_OFFERED, {"port": 587, "username": "bot", "password": "x"}, [("tls", "starttls")]),
    ],
)
@pytest.mark.parametrize("dialect", Dialect)
def test_a_hint_names_the_setting_that_cures_it(
    reason: Reason, said: dict[str, Any], lines: list[tuple[str, str | bool | int | None]], dialect: Dialect
) -> None:
    profile = _profile(dialect, "default", said)
    text = hint(reason, profile, FACTS)
    assert all(profile.setting(key, value) in text for key, value in lines)


@pytest.mark.parametrize(
    ("said", "counts", "named", "not_named"),
    [
        ({}, "", ["max_connections = 5"], ["rate"]),
        ({"max_connections": 2}, "", ["max_connections = 1"], ["rate"]),
        ({"max_connections": 1}, "", ['rate = "30/m"'], ["max_connections"]),
        ({}, "messages", ['rate = "30/m"', "max_connections = 5"], []),
        ({"max_connections": 1, "rate": Rate(5, 60.0)}, "messages", ['rate = "2/m"'], ["max_connections"]),
        ({"max_connections": 1, "rate": Rate(1, 60.0)}, "messages", ['rate = "30/h"'], ["max_connections"]),
        ({"max_connections": 1, "rate": Rate(1, 1.0)}, "messages", ['rate = "30/m"'], ["max_connections"]),
        ({"max_connections": 1, "rate": Rate(1, 3600.0)}, "messages", ['rate = "12/d"'], ["max_connections"]),
        ({"max_connections": 1, "rate": Rate(1, 86400.0)}, "messages", ["its operator"], ["max_connections", "rate ="]),
    ],
)
def test_the_hint_for_a_limit_names_what_is_not_at_its_least_already(
    said: dict[str, Any], counts: str, named: list[str], not_named: list[str]
) -> None:
    text = hint(Reason.RATE_LIMITED, _profile(Dialect.FILE, "corp", said), {"limited": counts})
    assert [line for line in named if line not in text] == []
    assert [word for word in not_named if word in text] == []


@pytest.mark.parametrize(
    ("said", "answers", "lines"),
    [
        ({"port": 25}, "587", ["port = 587; or"]),
        ({"port": 25}, "587 465 2525", ["port = 587; or"]),
        ({"port": 25}, "465", ['port = 465 and tls = "implicit"; or']),
        ({"port": 465}, "587", ['port = 587 and tls = "starttls"; or']),
        ({"port": 2465, "tls": TlsMode.IMPLICIT}, "465", ["port = 465; or"]),
        ({"port": 2587, "username": "bot", "password": "x"}, "587", ["port = 587; or"]),
    ],
)
@pytest.mark.parametrize(
    "reason",
    [
        Reason.CONNECTION_REFUSED,
        Reason.CONNECT_TIMEOUT,
        Reason.GREETING_TIMEOUT,
        Reason.NOT_SMTP,
        Reason.MALFORMED_REPLY,
    ],
)
def test_a_port_that_answers_is_named_with_the_tls_mode_that_it_needs(
    reason: Reason, said: dict[str, Any], answers: str, lines: list[str]
) -> None:
    text = hint(reason, _profile(Dialect.FILE, "corp", said), {"answers": answers})
    assert f"port {answers.split(maxsplit=1)[0]} answers there, so set " in text
    assert all(line in text for line in lines)
    for other in answers.split()[1:]:
        assert f"port {other}" not in text
    assert "so set" not in hint(reason, _profile(Dialect.FILE, "corp", said))


@pytest.mark.parametrize("known", _KNOWN, ids=lambda known: known.says.pattern[:40])
def test_the_hint_for_a_relay_that_we_know_names_settings_that_exist(known: Known) -> None:
    in_the_file = known.hint_for(_profile(Dialect.FILE, "corp", {"port": 587}))
    assert not _ENVIRONMENT_SETTING.search(in_the_file)
    assert not re.search(r"[{}]|  ", in_the_file)
    for found in _ENVIRONMENT_SETTING.finditer(known.hint_for(_profile(Dialect.ENVIRONMENT, "default", {"port": 587}))):
        assert "is not a setting" not in _said_against(_HOST | {found[0]: "1"})


def test_the_hint_for_a_login_nobody_wants_says_that_it_is_not_wanted() -> None:
    profile = _profile(Dialect.ENVIRONMENT, "default", {"port": 587, "username": "bot", "password": "x"})
    assert "set SMTP_AUTH=none" in hint(Reason.AUTH_NOT_OFFERED, profile)


def test_a_password_is_not_advised_into_clear_without_saying_so() -> None:
    profile = _profile(Dialect.FILE, "corp", {"port": 587, "username": "bot", "password": "x"})
    for reason in Reason:
        for facts in ({}, FACTS):
            text = hint(reason, profile, facts)
            assert 'tls = "opportunistic"' not in text
            assert 'tls = "none"' not in text or "allow_cleartext_auth = true if it may be" in text


@pytest.mark.parametrize("reason", Reason)
def test_a_hint_can_be_given_for_a_profile_that_is_there_no_more(reason: Reason) -> None:
    assert hint(reason, stand_in("gone"), FACTS)


def test_every_reason_has_one_code_and_every_code_a_reason() -> None:
    assert CODE_OF.keys() == set(Reason)
    assert set(CODE_OF.values()) == set(ErrorCode)


def test_a_hint_keeps_its_cure_and_loses_its_promise_where_nothing_is_tried_again_any_more() -> None:
    slow = at_the_end("The relay was too slow: it is tried again; if it always is, raise timeouts.")
    assert slow == "The relay was too slow: if it always is, raise timeouts."
    assert at_the_end("The relay is busy: nothing to change; it is tried again.").endswith("and send it again.")
    assert at_the_end("The relay knows no such mailbox: check the address.").endswith("check the address.")


@pytest.mark.parametrize("reason", Reason)
def test_no_hint_promises_another_try_at_the_end(reason: Reason) -> None:
    assert "tried again" not in at_the_end(cure(reason))
