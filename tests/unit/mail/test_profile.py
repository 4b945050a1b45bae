"""What was said about a relay becomes a whole profile, or an error that names the setting as its writer knows it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.mail.errors import ConfigError
from app.mail.profile import (
    AuthMode,
    Dialect,
    ProfileFacts,
    Timeouts,
    TlsMode,
    TlsVersion,
    is_loopback,
    resolve_profile,
    setting,
    stand_in,
)
from app.mail.schedule import Rate

NONE, OPPORTUNISTIC, STARTTLS, IMPLICIT = TlsMode
ENVIRONMENT, NESTED, FILE = Dialect
CANARY = "canary-s3cret"
LOGIN: dict[str, Any] = {"username": "bot", "password": CANARY}
PIN = "ab" * 32
CLIENT = {"client_cert": "/client.pem", "client_key": "/client.key"}
# What only a relay that must speak TLS can be asked for.
OF_TLS: dict[str, Any] = {
    "cert_sha256": PIN,
    "server_name": "mx.corp.example",
    "client_cert": "/client.pem",
    "min_tls": TlsVersion.V1_3,
}


def _said(dialect: Dialect = FILE, **said: Any) -> ProfileFacts:
    return ProfileFacts(**{"name": "default", "dialect": dialect, "host": "mail.corp.example"} | said)


def _error(said: ProfileFacts) -> str:
    with pytest.raises(ConfigError) as refused:
        resolve_profile(said)
    return str(refused.value)


@pytest.mark.parametrize(
    ("said", "port", "tls", "logs_in"),
    [
        ({}, None, OPPORTUNISTIC, False),
        ({"port": 25}, 25, OPPORTUNISTIC, False),
        ({"port": 587}, 587, OPPORTUNISTIC, False),
        ({"port": 2525}, 2525, OPPORTUNISTIC, False),
        ({"port": 465}, 465, IMPLICIT, False),
        ({**LOGIN}, None, STARTTLS, True),
        ({**LOGIN, "port": 25}, 25, STARTTLS, True),
        ({**LOGIN, "port": 587}, 587, STARTTLS, True),
        ({**LOGIN, "port": 465}, 465, IMPLICIT, True),
        ({**LOGIN, "port": 465, "tls": STARTTLS}, 465, STARTTLS, True),
        ({**LOGIN, "port": 587, "auth": AuthMode.REQUIRED}, 587, STARTTLS, True),
        ({**LOGIN, "port": 587, "auth": AuthMode.PLAIN}, 587, STARTTLS, True),
        ({**LOGIN, "port": 587, "auth": AuthMode.LOGIN}, 587, STARTTLS, True),
        ({**LOGIN, "port": 587, "auth": AuthMode.NONE}, 587, OPPORTUNISTIC, False),
        ({**LOGIN, "port": 465, "auth": AuthMode.NONE}, 465, IMPLICIT, False),
        ({"username": "", "password": "", "port": 587}, 587, OPPORTUNISTIC, False),
        ({"username": "", "password": None, "port": 465}, 465, IMPLICIT, False),
        ({"auth": AuthMode.NONE, "port": 587}, 587, OPPORTUNISTIC, False),
        ({"tls": IMPLICIT}, 465, IMPLICIT, False),
        ({"tls": IMPLICIT, "port": 8465}, 8465, IMPLICIT, False),
        ({"tls": STARTTLS}, None, STARTTLS, False),
        ({"tls": NONE}, None, NONE, False),
        ({"tls": NONE, "port": 465}, 465, NONE, False),
        ({"tls": OPPORTUNISTIC, "port": 465}, 465, OPPORTUNISTIC, False),
        ({**LOGIN, "tls": NONE, "host": "127.0.0.1", "port": 25}, 25, NONE, True),
        ({**LOGIN, "tls": NONE, "host": "localhost", "port": 25}, 25, NONE, True),
        ({**LOGIN, "tls": NONE, "host": "::1", "port": 25}, 25, NONE, True),
        ({**LOGIN, "tls": NONE, "allow_cleartext_auth": True, "port": 25}, 25, NONE, True),
        ({**LOGIN, "tls": NONE, "auth": AuthMode.NONE, "port": 25}, 25, NONE, False),
        ({**LOGIN, "tls": NONE, "auth": AuthMode.CRAM_MD5, "port": 25}, 25, NONE, True),
        ({**LOGIN, "port": 587, "auth": AuthMode.CRAM_MD5}, 587, STARTTLS, True),
        ({**LOGIN, **OF_TLS, **CLIENT}, None, STARTTLS, True),
        ({"port": 465, **OF_TLS, **CLIENT}, 465, IMPLICIT, False),
        (
            {"tls": STARTTLS, "ca_file": "/ca.pem", "server_name": "mx.corp.example", "verify": True},
            None,
            STARTTLS,
            False,
        ),
        ({**LOGIN, "tls": OPPORTUNISTIC, "auth": AuthMode.NONE, "port": 25}, 25, OPPORTUNISTIC, False),
    ],
)
@pytest.mark.parametrize("dialect", Dialect)
def test_what_is_not_said_is_filled_in(
    said: dict[str, Any], port: int | None, tls: TlsMode, logs_in: bool, dialect: Dialect
) -> None:
    profile, _ = resolve_profile(_said(dialect, **said))
    assert profile.port == (port or (25 if dialect is ENVIRONMENT else 587))  # 25 is Typebot's default
    assert profile.tls is tls
    assert profile.wants_login is logs_in
    assert (profile.username, profile.password) == (("bot", CANARY) if logs_in else ("", ""))
    assert profile.verify


# Each contradiction with the settings its text must name: as in SMTP_…, behind MAILCHUTE_PROFILES__…, in the file.
_CONTRADICTIONS: dict[str, tuple[dict[str, Any], list[tuple[str, str | None]]]] = {
    "no host": ({"host": None}, [("host", None)]),
    "an empty host": ({"host": ""}, [("host", None)]),
    "a user name without a password": ({"username": "bot"}, [("password", None)]),
    "an empty password": ({"username": "bot", "password": ""}, [("password", None)]),
    "a password without a user name": ({"password": CANARY}, [("username", None)]),
    "half a pair and auth required": ({"username": "bot", "auth": AuthMode.REQUIRED}, [("password", None)]),
    "auth required without credentials": (
        {"auth": AuthMode.REQUIRED},
        [("auth", "required"), ("username", None), ("password", None), ("auth", "none")],
    ),
    "auth plain without credentials": (
        {"auth": AuthMode.PLAIN},
        [("auth", "plain"), ("username", None), ("password", None)],
    ),
    "auth login without credentials": (
        {"auth": AuthMode.LOGIN},
        [("auth", "login"), ("username", None), ("password", None)],
    ),
    "auth cram-md5 without credentials": (
        {"auth": AuthMode.CRAM_MD5},
        [("auth", "cram-md5"), ("username", None), ("password", None)],
    ),
    "opportunistic with credentials": (
        {**LOGIN, "tls": OPPORTUNISTIC},
        [("tls", "opportunistic"), ("tls", "starttls")],
    ),
    "opportunistic with credentials on loopback": (
        {**LOGIN, "tls": OPPORTUNISTIC, "host": "127.0.0.1"},
        [("tls", "opportunistic"), ("tls", "starttls")],
    ),
    "opportunistic with credentials and leave to send them": (
        {**LOGIN, "tls": OPPORTUNISTIC, "allow_cleartext_auth": True},
        [("tls", "opportunistic"), ("tls", "starttls")],
    ),
    "a password in clear": (
        {**LOGIN, "tls": NONE},
        [("tls", "none"), ("tls", "starttls"), ("allow_cleartext_auth", "true")],
    ),
    "a password in clear to a name like loopback": (
        {**LOGIN, "tls": NONE, "host": "localhost.corp.example"},
        [("tls", "none"), ("allow_cleartext_auth", "true")],
    ),
    "a pin that is not asked": (
        {"tls": STARTTLS, "cert_sha256": PIN, "verify": False},
        [("cert_sha256", None), ("verify", "false")],
    ),
    "a key without its certificate": (
        {"tls": STARTTLS, "client_key": "/client.key"},
        [("client_key", None), ("client_cert", None)],
    ),
    "a key without its certificate in clear": (
        {"tls": NONE, "client_key": "/client.key"},
        [("client_key", None), ("client_cert", None)],
    ),
}
# Settings that another one leaves without effect, and the two that the warning names.
_IDLE: dict[str, tuple[dict[str, Any], str, tuple[str, str | None]]] = {
    "a CA that is not asked": (
        {"tls": STARTTLS, "ca_file": "/ca.pem", "verify": False},
        "ca_file",
        ("verify", "false"),
    ),
    "a pin and a CA": (
        {"tls": STARTTLS, "cert_sha256": PIN, "ca_file": "/ca.pem"},
        "ca_file",
        ("cert_sha256", None),
    ),
    **{
        f"{key} with {tls.value}": ({key: value, "port": 587, "tls": tls}, key, ("tls", tls.value))
        for key, value in (OF_TLS | {"ca_file": "/ca.pem", "verify": True}).items()
        for tls in (NONE, OPPORTUNISTIC)
    },
}
_SMTP_NAMES = ("host", "username", "password", "tls", "auth", "ca_file", "verify")


@pytest.mark.parametrize(("said", "named"), _CONTRADICTIONS.values(), ids=_CONTRADICTIONS.keys())
def test_a_contradiction_names_the_smtp_settings(said: dict[str, Any], named: list[tuple[str, str | None]]) -> None:
    text = _error(_said(ENVIRONMENT, **said))
    for key, value in named:
        name = f"SMTP_{key.upper()}" if key in _SMTP_NAMES else f"MAILCHUTE_PROFILES__DEFAULT__{key.upper()}"
        assert (name if value is None else f"{name}={value}") in text


@pytest.mark.parametrize(("said", "named"), _CONTRADICTIONS.values(), ids=_CONTRADICTIONS.keys())
def test_a_contradiction_names_the_nested_settings(said: dict[str, Any], named: list[tuple[str, str | None]]) -> None:
    text = _error(_said(NESTED, name="corp", **said))
    for key, value in named:
        name = f"MAILCHUTE_PROFILES__CORP__{key.upper()}"
        assert (name if value is None else f"{name}={value}") in text
    assert "SMTP_" not in text


@pytest.mark.parametrize(("said", "named"), _CONTRADICTIONS.values(), ids=_CONTRADICTIONS.keys())
def test_a_contradiction_names_the_keys_of_the_file(said: dict[str, Any], named: list[tuple[str, str | None]]) -> None:
    text = _error(_said(FILE, name="corp", **said))
    assert "profile corp" in text
    for key, value in named:
        shown = value if value in ("true", "false") else f'"{value}"'
        assert (key if value is None else f"{key} = {shown}") in text
    assert "SMTP_" not in text
    assert "MAILCHUTE_" not in text


@pytest.mark.parametrize(
    ("said", "warnings"),
    [
        ({}, []),
        ({**LOGIN}, []),
        ({"verify": False, "port": 25}, []),
        ({**LOGIN, "auth": AuthMode.NONE}, ["SMTP_AUTH=none"]),
        ({"username": "bot", "auth": AuthMode.NONE}, ["SMTP_AUTH=none"]),
        ({**LOGIN, "verify": False}, ["SMTP_VERIFY=false"]),
        ({"port": 465, "verify": False}, ["SMTP_VERIFY=false"]),
        ({**LOGIN, "auth": AuthMode.NONE, "port": 465, "verify": False}, ["SMTP_AUTH=none", "SMTP_VERIFY=false"]),
        ({"port": 465, "cert_sha256": PIN}, []),
        ({"port": 465, "min_tls": TlsVersion.V1_0}, ["MAILCHUTE_PROFILES__DEFAULT__MIN_TLS"]),
        ({"port": 465, "min_tls": TlsVersion.V1_1}, ["MAILCHUTE_PROFILES__DEFAULT__MIN_TLS"]),
        ({"port": 465, "min_tls": TlsVersion.V1_2}, []),
        ({"port": 465, "min_tls": TlsVersion.V1_0}, ["SMTP_TLS_SECURITY_LEVEL=0"]),
        ({"port": 465, "min_tls": TlsVersion.V1_0, "tls_security_level": 0}, ["MIN_TLS", "SMTP_TLS_SECURITY_LEVEL=0"]),
        ({"port": 465, "tls_security_level": 1}, ["SMTP_TLS_SECURITY_LEVEL=1"]),
        ({"port": 465, "tls_security_level": 2}, []),
        ({"port": 465, "min_tls": TlsVersion.V1_3}, []),
    ],
)
def test_what_is_unsafe_or_ignored_gives_a_warning(said: dict[str, Any], warnings: list[str]) -> None:
    _, given_ = resolve_profile(_said(ENVIRONMENT, **said))
    assert len(given_) == len(warnings)
    assert all(name in text for name, text in zip(warnings, given_, strict=True))
    assert CANARY not in "".join(given_)


@st.composite
def _any_facts(draw: st.DrawFn) -> ProfileFacts:
    return ProfileFacts(
        name=draw(st.sampled_from(["default", "corp"])),
        dialect=draw(st.sampled_from(Dialect)),
        host=draw(st.sampled_from([None, "", "mail.example", "localhost", "127.0.0.1"])),
        port=draw(st.sampled_from([None, 25, 465, 587])),
        tls=draw(st.sampled_from([None, *TlsMode])),
        auth=draw(st.sampled_from([None, *AuthMode])),
        username=draw(st.sampled_from([None, "", "bot"])),
        password=draw(st.sampled_from([None, "", CANARY])),
        verify=draw(st.sampled_from([None, True, False])),
        ca_file=draw(st.sampled_from([None, "", "/ca.pem"])),
        cert_sha256=draw(st.sampled_from([None, "", PIN])),
        server_name=draw(st.sampled_from([None, "", "mx.example"])),
        client_cert=draw(st.sampled_from([None, "", "/client.pem"])),
        client_key=draw(st.sampled_from([None, "", "/client.key"])),
        min_tls=draw(st.sampled_from([None, *TlsVersion])),
        allow_cleartext_auth=draw(st.booleans()),
    )


@given(_any_facts())
def test_no_profile_can_send_a_password_in_clear_unasked(said: ProfileFacts) -> None:
    try:
        profile = resolve_profile(said)[0]
    except ConfigError:
        return
    assert profile.wants_login is (bool(said.username and said.password) and said.auth is not AuthMode.NONE)
    if profile.wants_login:
        assert profile.tls is not OPPORTUNISTIC
        in_clear = profile.tls is NONE and profile.auth is not AuthMode.CRAM_MD5
        assert not in_clear or profile.allow_cleartext_auth or is_loopback(profile.host)
    else:
        assert not profile.username
        assert not profile.password
    if profile.auth not in (AuthMode.AUTO, AuthMode.NONE):
        assert profile.wants_login


@pytest.mark.parametrize(("said", "idle", "by"), _IDLE.values(), ids=_IDLE.keys())
@pytest.mark.parametrize("dialect", Dialect)
def test_what_has_no_effect_is_a_warning_and_dropped(
    said: dict[str, Any], idle: str, by: tuple[str, str | None], dialect: Dialect
) -> None:
    profile, (warning, *_) = resolve_profile(_said(dialect, **said))
    assert setting(dialect, "default", idle) in warning
    assert setting(dialect, "default", by[0]) in warning
    assert "remove it" in warning
    without = {key: value for key, value in said.items() if key != idle}
    assert profile == resolve_profile(_said(dialect, **without))[0]


@pytest.mark.parametrize("key", [*OF_TLS, "ca_file", "verify"])
@pytest.mark.parametrize(("port", "tls"), [(None, STARTTLS), (25, STARTTLS), (587, STARTTLS), (465, IMPLICIT)])
def test_who_asks_for_what_only_tls_has_gets_tls_without_naming_the_mode(
    key: str, port: int | None, tls: TlsMode
) -> None:
    said = {key: (OF_TLS | {"ca_file": "/ca.pem", "verify": True})[key]}
    for more in ({}, LOGIN, {**LOGIN, "auth": AuthMode.NONE}):
        assert resolve_profile(_said(port=port, **said, **more))[0].tls is tls


@given(_any_facts())
def test_what_is_asked_of_tls_can_be_had_or_there_is_a_warning(said: ProfileFacts) -> None:
    try:
        profile, warnings = resolve_profile(said)
    except ConfigError:
        return
    if said.verify or any(getattr(said, key) for key in ("ca_file", *OF_TLS)):
        assert profile.requires_tls or "has no effect" in " ".join(warnings)
    assert not (profile.cert_sha256 and profile.ca_file)
    assert profile.verify or not (profile.cert_sha256 or profile.ca_file)
    assert profile.client_cert or not profile.client_key


@given(_any_facts())
def test_no_secret_is_in_an_error_or_in_a_repr(said: ProfileFacts) -> None:
    assert CANARY not in repr(said)
    try:
        text = repr(resolve_profile(said))
    except ConfigError as error:
        text = str(error)
    assert CANARY not in text


@pytest.mark.parametrize(
    ("host", "is_it"),
    [
        ("localhost", True),
        ("LocalHost", True),
        ("localhost.", True),
        ("127.0.0.1", True),
        ("127.255.0.9", True),
        ("::1", True),
        ("[::1]", True),
        ("", False),
        ("0.0.0.0", False),
        ("::", False),
        ("127.0.0.1.evil.example", False),
        ("localhost.evil.example", False),
        ("127.1", False),
        ("2130706433", False),
        ("10.0.0.1", False),
        ("mail.example", False),
    ],
)
def test_loopback_is_told_by_its_spelling_alone(host: str, is_it: bool) -> None:
    assert is_loopback(host) is is_it


@pytest.mark.parametrize(
    ("dialect", "profile", "key", "value", "line"),
    [
        (FILE, "corp", "host", None, "host"),
        (FILE, "corp", "auth", "none", 'auth = "none"'),
        (FILE, "corp", "verify", False, "verify = false"),
        (FILE, "corp", "port", 465, "port = 465"),
        (ENVIRONMENT, "default", "host", None, "SMTP_HOST"),
        (ENVIRONMENT, "default", "auth", "none", "SMTP_AUTH=none"),
        (ENVIRONMENT, "default", "verify", False, "SMTP_VERIFY=false"),
        (ENVIRONMENT, "default", "port", 465, "SMTP_PORT=465"),
        (ENVIRONMENT, "default", "helo_name", None, "MAILCHUTE_PROFILES__DEFAULT__HELO_NAME"),
        (NESTED, "default", "host", None, "MAILCHUTE_PROFILES__DEFAULT__HOST"),
        (NESTED, "corp", "host", None, "MAILCHUTE_PROFILES__CORP__HOST"),
        (NESTED, "corp", "auth", "none", "MAILCHUTE_PROFILES__CORP__AUTH=none"),
    ],
)
def test_a_setting_is_named_in_the_words_of_its_writer(
    dialect: Dialect, profile: str, key: str, value: str | int | bool | None, line: str
) -> None:
    assert setting(dialect, profile, key, value) == line


def test_a_stand_in_reaches_nothing() -> None:
    profile = stand_in("gone")
    assert profile.name == "gone"
    assert not profile.host
    assert not profile.wants_login


@pytest.mark.parametrize(
    ("phase", "at_least"),
    [("auth", 60), ("mail", 300), ("rcpt", 300), ("data", 120), ("block", 180), ("content", 600)],
)
def test_the_time_limits_of_a_transaction_are_those_of_rfc_5321(phase: str, at_least: float) -> None:
    assert getattr(Timeouts(), phase) >= at_least


@pytest.mark.parametrize(
    ("changed", "alike"),
    [
        ({"max_connections": 2}, True),
        ({"rate": Rate(5, 60.0), "idle_timeout": 0.0, "max_messages_per_connection": 3}, True),
        ({"port": 2525}, False),
        ({"host": "other.test"}, False),
        ({"tls": TlsMode.NONE}, False),
        ({"username": "bot", "password": "x"}, False),
        ({"helo_name": "ours.test"}, False),
        ({"envelope_from": "a@ours.test"}, True),
        ({"fallback": ("other",)}, False),
        ({"timeouts": Timeouts(connect=1.0)}, False),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_profiles_send_alike_unless_they_differ_in_what_a_message_meets(changed: dict[str, Any], alike: bool) -> None:
    said: dict[str, Any] = {"name": "corp", "dialect": Dialect.FILE, "host": "relay.test", "port": 587}
    one, other = (resolve_profile(ProfileFacts(**facts))[0] for facts in (said, said | changed))
    assert one.sends_like(other) is other.sends_like(one) is alike
