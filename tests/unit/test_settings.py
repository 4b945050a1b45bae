"""What is written in the environment and the file becomes one whole, or errors that say what to set instead."""

from __future__ import annotations

import re
import traceback
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from hypothesis import given
from hypothesis import strategies as st

from app.mail.address import Address
from app.mail.errors import ConfigError
from app.mail.profile import SANDBOX_PROFILES, AuthMode, Dialect, InDoubtPolicy, Profile, TlsMode, TlsVersion, setting
from app.mail.routing import Route
from app.mail.schedule import Rate
from app.settings import LogFormat, Settings, load
from tests.support.tls import certificates

CANARY = "canary-s3cret-0123456789"
RELAY = {"SMTP_HOST": "mail.corp.example"}
LOGIN = {"SMTP_USERNAME": "bot", "SMTP_PASSWORD": CANARY}
KEY = {"MAILCHUTE_API_KEY": CANARY}
CERTIFICATE = "-----BEGIN CERTIFICATE-----\nMII\n-----END CERTIFICATE-----\n"


def _load(environ: Mapping[str, str], *files: Path) -> Settings:
    return load(environ, files=files)


def _error(environ: Mapping[str, str], *files: Path) -> str:
    with pytest.raises(ConfigError) as refused:
        load(environ, files=files)
    return str(refused.value)


def _default(environ: Mapping[str, str]) -> Profile:
    return _load(RELAY | dict(environ)).profiles["default"]


@pytest.fixture
def toml(tmp_path: Path) -> Path:
    """A place for a settings file."""
    return tmp_path / "mailchute.toml"


# Without anything, and the sandbox.


def test_without_any_setting_it_is_the_sandbox_on_loopback() -> None:
    settings = _load({})
    assert settings.sandbox
    assert settings.default_profile == "sandbox"
    assert not settings.profiles
    assert (settings.listen.host, settings.listen.port) == ("127.0.0.1", 8587)
    assert settings.database == Path("var/mailchute.db")
    assert settings.default_wait == 8
    assert settings.max_message_bytes == 25 * 1024 * 1024
    assert settings.expires_after == 86400
    assert (settings.keep_bodies, settings.keep_messages) == (7 * 86400, 90 * 86400)
    assert settings.docs
    assert settings.log is None
    assert settings.api_key is None
    assert not settings.warnings


def test_an_empty_variable_is_not_set() -> None:
    names = ("SMTP_HOST", "SMTP_PORT", "SMTP_TLS", "MAILCHUTE_LISTEN", "MAILCHUTE_API_KEY", "MAILCHUTE_ROLE")
    assert _load(dict.fromkeys(names, "")) == _load({})
    assert _default({"SMTP_USERNAME": "", "SMTP_PASSWORD": "", "SMTP_PORT": ""}) == _default({})


def test_with_a_relay_it_is_no_sandbox() -> None:
    settings = _load(RELAY)
    assert not settings.sandbox
    assert settings.default_profile == "default"


@pytest.mark.parametrize("listen", ["127.0.0.1:8587", "localhost:8587", "[::1]:8587", "127.0.0.2:0"])
def test_any_loopback_address_without_a_relay_is_the_sandbox(listen: str) -> None:
    assert _load({"MAILCHUTE_LISTEN": listen}).sandbox


def test_beyond_loopback_a_missing_relay_is_an_error_that_names_both_ways_out() -> None:
    text = _error(KEY | {"MAILCHUTE_LISTEN": "0.0.0.0:8587"})
    assert "SMTP_HOST" in text
    assert "MAILCHUTE_SANDBOX=true" in text


def test_the_sandbox_can_be_had_beyond_loopback_by_name() -> None:
    assert _load(KEY | {"MAILCHUTE_LISTEN": "0.0.0.0:8587", "MAILCHUTE_SANDBOX": "true"}).sandbox


def test_a_sandbox_beside_a_relay_is_a_contradiction() -> None:
    assert "MAILCHUTE_SANDBOX=true" in _error(RELAY | {"MAILCHUTE_SANDBOX": "true"})


@pytest.mark.parametrize("name", [*SANDBOX_PROFILES, "Corp", "co rp", "-corp", "a" * 64, "ü", "a.b"])
def test_a_profiles_name_is_short_and_plain_and_not_the_sandboxs(toml: Path, name: str) -> None:
    toml.write_text(f'[profiles."{name}"]\nhost = "mail.corp.example"\n')
    assert f"profiles.{name}" in _error({}, toml)


# Listening, keys.


@pytest.mark.parametrize("listen", ["0.0.0.0:8587", ":8587", "[::]:8587", "192.0.2.1:80", "mail.example:80"])
def test_beyond_loopback_without_a_key_the_error_prints_a_line_that_sets_one(listen: str) -> None:
    environ = RELAY | {"MAILCHUTE_LISTEN": listen}
    line = _error(environ).splitlines()[-1]
    found = re.fullmatch(r"export (MAILCHUTE_API_KEY)=([A-Za-z0-9_-]{16,})", line)
    assert found is not None
    assert _load(environ | {found[1]: found[2]}).api_key == found[2]


def test_every_line_that_sets_a_key_sets_another_one() -> None:
    environ = RELAY | {"MAILCHUTE_LISTEN": "0.0.0.0:8587"}
    assert _error(environ) != _error(environ)


@pytest.mark.parametrize(
    "listen", ["8587", "127.0.0.1", "127.0.0.1:", "::1:8587", "127.0.0.1:70000", "127.0.0.1:x", "-"]
)
def test_what_is_no_place_to_listen_is_told_with_an_example(listen: str) -> None:
    text = _error({"MAILCHUTE_LISTEN": listen})
    assert "MAILCHUTE_LISTEN" in text
    assert "127.0.0.1:8587" in text


def test_a_key_has_at_least_16_characters() -> None:
    text = _error({"MAILCHUTE_API_KEY": CANARY[:15]})
    assert "MAILCHUTE_API_KEY" in text
    assert "15 characters" in text
    assert CANARY[:15] not in text
    assert _load({"MAILCHUTE_API_KEY": CANARY[:16]}).api_key == CANARY[:16]


# The database.


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("var/other.db", "var/other.db"),
        ("/srv/mail.db", "/srv/mail.db"),
        ("sqlite:///var/other.db", "var/other.db"),
        ("sqlite:////srv/mail.db", "/srv/mail.db"),
        ("sqlite+aiosqlite:///var/other.db", "var/other.db"),
        ("sqlite+aiosqlite:////srv/mail.db", "/srv/mail.db"),
        ("mail box.db", "mail box.db"),
    ],
)
def test_a_database_is_a_path_in_any_of_its_forms(url: str, path: str) -> None:
    assert _load({"MAILCHUTE_DATABASE_URL": url}).database == Path(path)


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///", "sqlite:///:memory:", "sqlite+aiosqlite://", ":memory:"])
def test_a_database_that_would_lose_all_mail_at_the_end_is_refused(url: str) -> None:
    assert "MAILCHUTE_DATABASE_URL" in _error({"MAILCHUTE_DATABASE_URL": url})


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+asyncpg"])
def test_postgresql_is_refused_by_name_and_without_its_password(scheme: str) -> None:
    text = _error({"MAILCHUTE_DATABASE_URL": f"{scheme}://bot:{CANARY}@db.example/mail?sslmode=require"})
    assert "PostgreSQL" in text
    assert "MAILCHUTE_DATABASE_URL" in text
    assert CANARY not in text


def test_another_database_is_refused_without_its_password() -> None:
    text = _error({"MAILCHUTE_DATABASE_URL": f"mysql://bot:{CANARY}@db.example/mail"})
    assert "mysql" in text
    assert CANARY not in text


@pytest.mark.parametrize("role", ["api", "worker"])
def test_a_role_of_its_own_needs_postgresql(role: str) -> None:
    text = _error({"MAILCHUTE_ROLE": role})
    assert f"MAILCHUTE_ROLE={role}" in text
    assert "PostgreSQL" in text


def test_a_role_that_is_not_there_is_refused_with_those_that_are() -> None:
    text = _error({"MAILCHUTE_ROLE": "both"})
    assert "MAILCHUTE_ROLE" in text
    assert "'worker'" in text


# One relay by Typebot's names.


@pytest.mark.parametrize(
    ("environ", "port", "tls", "logs_in"),
    [
        ({}, 25, TlsMode.OPPORTUNISTIC, False),
        ({"SMTP_PORT": "587"}, 587, TlsMode.OPPORTUNISTIC, False),
        ({"SMTP_PORT": "465"}, 465, TlsMode.IMPLICIT, False),
        ({"SMTP_SECURE": "true"}, 465, TlsMode.IMPLICIT, False),
        ({"SMTP_SECURE": "true", "SMTP_PORT": "587"}, 587, TlsMode.IMPLICIT, False),
        ({"SMTP_SECURE": "false", "SMTP_PORT": "587"}, 587, TlsMode.OPPORTUNISTIC, False),
        ({"SMTP_SECURE": "false", "SMTP_PORT": "465"}, 465, TlsMode.IMPLICIT, False),
        ({"SMTP_SECURE": "TRUE"}, 465, TlsMode.IMPLICIT, False),
        ({"SMTP_SECURE": "true", "SMTP_TLS": "implicit"}, 465, TlsMode.IMPLICIT, False),
        ({"SMTP_SECURE": "false", "SMTP_TLS": "starttls"}, 25, TlsMode.STARTTLS, False),
        ({"SMTP_IGNORE_TLS": "true"}, 25, TlsMode.NONE, False),
        ({"SMTP_IGNORE_TLS": "false"}, 25, TlsMode.OPPORTUNISTIC, False),
        ({"SMTP_IGNORE_TLS": "true", "SMTP_TLS": "none"}, 25, TlsMode.NONE, False),
        ({**LOGIN, "SMTP_PORT": "587"}, 587, TlsMode.STARTTLS, True),
        ({**LOGIN, "SMTP_PORT": "465"}, 465, TlsMode.IMPLICIT, True),
        ({**LOGIN}, 25, TlsMode.STARTTLS, True),
        ({**LOGIN, "SMTP_PORT": "587", "SMTP_AUTH": "none"}, 587, TlsMode.OPPORTUNISTIC, False),
        ({**LOGIN, "SMTP_PORT": "587", "SMTP_AUTH": "required"}, 587, TlsMode.STARTTLS, True),
        ({**LOGIN, "SMTP_PORT": "587", "SMTP_AUTH": "auto"}, 587, TlsMode.STARTTLS, True),
        ({"SMTP_USERNAME": "", "SMTP_PASSWORD": "", "SMTP_PORT": "587"}, 587, TlsMode.OPPORTUNISTIC, False),
    ],
)
def test_typebots_names_make_the_profile_default(
    environ: dict[str, str], port: int, tls: TlsMode, logs_in: bool
) -> None:
    profile = _default(environ)
    assert (profile.name, profile.host, profile.dialect) == ("default", "mail.corp.example", Dialect.ENVIRONMENT)
    assert (profile.port, profile.tls, profile.wants_login) == (port, tls, logs_in)


@pytest.mark.parametrize(
    ("environ", "tls", "warned"),
    [
        ({"SMTP_SECURE": "true", "SMTP_TLS": "starttls"}, TlsMode.STARTTLS, "SMTP_SECURE=true"),
        ({"SMTP_SECURE": "true", "SMTP_TLS": "IMPLICIT"}, TlsMode.IMPLICIT, None),
        ({"SMTP_IGNORE_TLS": "true", "SMTP_TLS": "implicit"}, TlsMode.IMPLICIT, "SMTP_IGNORE_TLS=true"),
        ({"SMTP_IGNORE_TLS": "true", "SMTP_SECURE": "true", "SMTP_TLS": "none"}, TlsMode.NONE, "SMTP_SECURE=true"),
        ({"SMTP_SECURE": "false", "SMTP_TLS": "starttls"}, TlsMode.STARTTLS, None),
    ],
)
def test_smtp_tls_takes_precedence_over_typebots_switches(
    environ: dict[str, str], tls: TlsMode, warned: str | None
) -> None:
    settings = _load(RELAY | environ)
    assert settings.profiles["default"].tls is tls
    assert [str(warned) in warning for warning in settings.warnings] == ([True] if warned else [])


@pytest.mark.parametrize(
    ("environ", "named"),
    [
        ({"SMTP_USERNAME": "bot"}, ["SMTP_PASSWORD"]),
        ({"SMTP_PASSWORD": CANARY}, ["SMTP_USERNAME"]),
        ({"SMTP_AUTH": "required"}, ["SMTP_AUTH=required", "SMTP_USERNAME", "SMTP_PASSWORD", "SMTP_AUTH=none"]),
        ({"SMTP_AUTH": "plain"}, ["SMTP_AUTH=plain", "SMTP_USERNAME"]),
        ({"SMTP_AUTH": "maybe"}, ["SMTP_AUTH", "'required'"]),
        ({"SMTP_TLS": "ssl"}, ["SMTP_TLS", "'starttls'"]),
        ({"SMTP_PORT": "0"}, ["SMTP_PORT"]),
        ({"SMTP_PORT": "65536"}, ["SMTP_PORT"]),
        ({"SMTP_PORT": "smtp"}, ["SMTP_PORT"]),
        ({"SMTP_SECURE": "ssl"}, ["SMTP_SECURE"]),
        ({"SMTP_VERIFY": "ssl"}, ["SMTP_VERIFY"]),
        ({"SMTP_SECURE": "true", "SMTP_IGNORE_TLS": "true"}, ["SMTP_SECURE=true", "SMTP_IGNORE_TLS=true"]),
        (
            {**LOGIN, "SMTP_IGNORE_TLS": "true"},
            ["SMTP_TLS=none", "MAILCHUTE_PROFILES__DEFAULT__ALLOW_CLEARTEXT_AUTH=true"],
        ),
        ({**LOGIN, "SMTP_TLS": "opportunistic"}, ["SMTP_TLS=opportunistic", "SMTP_TLS=starttls"]),
        ({"SMTP_FROM": "Bots"}, ["SMTP_FROM"]),
        ({"NEXT_PUBLIC_SMTP_FROM": "Bots"}, ["NEXT_PUBLIC_SMTP_FROM"]),
        ({"SMTP_CA_FILE": "/no/such/ca.pem"}, ["SMTP_CA_FILE", "/no/such/ca.pem"]),
        ({"SMTP_USERNAME": "bot", "SMTP_PASSWORD_FILE": "/no/such/file"}, ["SMTP_PASSWORD", "/no/such/file"]),
        ({**LOGIN, "SMTP_PASSWORD_FILE": "/run/secrets/mail"}, ["SMTP_PASSWORD", "SMTP_PASSWORD_FILE"]),
        ({"MAILCHUTE_PROFILES__DEFAULT__HELO_NAME": "a b"}, ["MAILCHUTE_PROFILES__DEFAULT__HELO_NAME"]),
    ],
)
def test_an_error_names_the_variable_as_it_was_set(environ: dict[str, str], named: list[str]) -> None:
    text = _error(RELAY | environ)
    assert all(name in text for name in named)
    assert CANARY not in text


@pytest.mark.parametrize(
    "environ", [{"SMTP_PORT": "25"}, {**LOGIN}, {"SMTP_TLS": "none"}, {"SMTP_FROM": "a@b.example"}]
)
def test_smtp_names_without_smtp_host_are_an_error(environ: dict[str, str]) -> None:
    text = _error(environ)
    assert min(environ) in text
    assert "SMTP_HOST" in text


def test_typebots_switch_against_its_sign_in_gives_a_warning_and_changes_nothing() -> None:
    settings = _load(RELAY | LOGIN | {"SMTP_AUTH_DISABLED": "true"})
    assert settings.profiles == _load(RELAY | LOGIN).profiles
    (warning,) = settings.warnings
    assert "SMTP_AUTH_DISABLED" in warning
    assert "SMTP_AUTH=none" in warning
    assert not _load(RELAY | LOGIN | {"SMTP_AUTH_DISABLED": "false"}).warnings


@pytest.mark.parametrize(
    ("written", "address"),
    [
        ("bots@corp.example", Address("bots", "corp.example")),
        ("Bots <bots@corp.example>", Address("bots", "corp.example", "Bots")),
        ("'Bots' <bots@corp.example>", Address("bots", "corp.example", "Bots")),
        ("'Bots'<bots@corp.example>", Address("bots", "corp.example", "Bots")),
        (" 'Corp Bots' <bots@corp.example> ", Address("bots", "corp.example", "Corp Bots")),
        ("'Corp, Inc.' <bots@corp.example>", Address("bots", "corp.example", "Corp, Inc.")),
        ("'' <bots@corp.example>", Address("bots", "corp.example")),
        ('"Corp, Inc." <bots@corp.example>', Address("bots", "corp.example", "Corp, Inc.")),
        ("'Böts 🤖' <bots@bücher.example>", Address("bots", "xn--bcher-kva.example", "Böts 🤖")),
        ("O'Brien <bots@corp.example>", Address("bots", "corp.example", "O'Brien")),
    ],
)
@pytest.mark.parametrize("name", ["SMTP_FROM", "NEXT_PUBLIC_SMTP_FROM"])
def test_a_sender_is_read_in_typebots_form_too(name: str, written: str, address: Address) -> None:
    assert _default({name: written}).from_address == address


def test_smtp_from_beats_the_public_one() -> None:
    both = {"SMTP_FROM": "a@corp.example", "NEXT_PUBLIC_SMTP_FROM": "b@corp.example"}
    assert _default(both).from_address == Address("a", "corp.example")


def test_the_public_sender_alone_is_no_relay() -> None:
    assert _load({"NEXT_PUBLIC_SMTP_FROM": "b@corp.example"}).sandbox


# Kubernetes.


@pytest.mark.parametrize(
    "environ",
    [
        {"MAILCHUTE_SERVICE_HOST": "10.0.0.1", "MAILCHUTE_SERVICE_PORT": "8587", "MAILCHUTE_SERVICE_PORT_HTTP": "8587"},
        {"MAILCHUTE_PORT": "tcp://10.0.0.1:8587"},
        {"MAILCHUTE_PORT": "udp://10.0.0.1:8587"},
        {
            "MAILCHUTE_PORT_8587_TCP": "tcp://10.0.0.1:8587",
            "MAILCHUTE_PORT_8587_TCP_PROTO": "tcp",
            "MAILCHUTE_PORT_8587_TCP_PORT": "8587",
            "MAILCHUTE_PORT_8587_TCP_ADDR": "10.0.0.1",
        },
        {"MAILCHUTE_API_SERVICE_HOST": "10.0.0.1", "MAILCHUTE_API_PORT": "tcp://10.0.0.1:8587"},
        {
            "SMTP_SERVICE_HOST": "10.0.0.2",
            "SMTP_SERVICE_PORT": "25",
            "SMTP_SERVICE_PORT_SMTP": "25",
            "SMTP_PORT_25_TCP": "tcp://10.0.0.2:25",
            "SMTP_PORT_25_TCP_PROTO": "tcp",
            "SMTP_PORT_25_TCP_PORT": "25",
            "SMTP_PORT_25_TCP_ADDR": "10.0.0.2",
        },
        {"SMTP_RELAY_SERVICE_HOST": "10.0.0.2", "SMTP_RELAY_SERVICE_PORT": "25"},
        {"SMTP_RELAY_PORT": "tcp://10.0.0.2:25"},
    ],
)
def test_what_kubernetes_injects_for_a_service_is_ignored(environ: dict[str, str]) -> None:
    assert _load(environ) == _load({})
    assert _load(RELAY | environ).profiles == _load(RELAY).profiles


@pytest.mark.parametrize("value", ["tcp://10.0.0.2:25", "udp://10.0.0.2:25"])
def test_a_service_named_smtp_does_not_set_the_port(value: str) -> None:
    settings = _load(RELAY | {"SMTP_PORT": value})
    assert settings.profiles["default"].port == 25
    assert "SMTP_PORT" in settings.warnings[0]
    assert _load({"SMTP_PORT": value}).sandbox


# Unknown keys.


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("MAILCHUTE_LISTN", "LISTEN"),
        ("MAILCHUTE_API_KEYS", "API_KEY"),
        ("MAILCHUTE_DATABASE", "DATABASE_URL"),
        ("MAILCHUTE_PROFILES__CORP__HOTS", "HOST"),
        ("MAILCHUTE_PROFILES__CORP__PASSWORT", "PASSWORD"),
        ("MAILCHUTE_PROFILES__CORP__TIMEOUTS__CONNEKT", "CONNECT"),
        ("MAILCHUTE_RETRY__SHEDULE", "SCHEDULE"),
        ("SMTP_USER", "SMTP_USERNAME"),
        ("SMTP_PASS", "SMTP_PASSWORD"),
        ("SMTP_HOSTNAME", "SMTP_HOST"),
    ],
)
def test_an_unknown_variable_is_named_with_the_nearest_known_one(name: str, near: str) -> None:
    text = _error({name: CANARY})
    assert name in text
    assert f"do you mean {near}?" in text
    assert CANARY not in text


@pytest.mark.parametrize("name", ["MAILCHUTE_XYZZY", "MAILCHUTE_", "MAILCHUTE_LISTEN__X", "MAILCHUTE_RETRY__XYZZY"])
def test_an_unknown_variable_that_nothing_is_near_to_is_named_too(name: str) -> None:
    assert name in _error({name: "x"})


@pytest.mark.parametrize(
    ("text", "place", "near"),
    [
        ('listne = "x"', "1: listne", "listen"),
        ('[profiles.corp]\nhots = "x"', "2: profiles.corp.hots", "host"),
        ("[profiles.corp.timeouts]\nconnekt = 3", "2: profiles.corp.timeouts.connekt", "connect"),
        ('[retry]\n\nexpire_after = "1d"', "3: retry.expire_after", "expires_after"),
        ('[retention]\nbody = "1d"', "2: retention.body", "bodies"),
        ('[[routes]]\nprofile = "a"\n[[routes]]\nform_domain = "b.example"', "4: routes.1.form_domain", "from_domain"),
    ],
)
def test_an_unknown_key_of_the_file_is_named_with_its_place_and_the_nearest(
    toml: Path, text: str, place: str, near: str
) -> None:
    toml.write_text(text)
    said = _error({}, toml)
    assert f"{toml}:{place}" in said
    assert f"do you mean {near}?" in said


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('# why\n\n  [profiles.corp]  # the relay\n  hots = "x"\n', 4),
        ('[profiles]\ncorp = { host = "a.example", hots = "x" }\n', 2),
        ('profiles.corp.host = "a.example"\nprofiles.corp.hots = "x"\n', 2),
        ('[profiles."corp"]\n"host" = "a.example"\n"hots" = "x"\n', 3),
        ('default_from = """\nhots = 3\n"""\n[profiles.corp]\nhots = """\nx\n"""\n', 5),
        ('[profiles.corp]\r\nhost = "a.example"\r\nhots = "x"\r\n', 3),
        ('[[routes]]\nprofile = [\n  "a",\n  "b",\n]\n[profiles.corp]\nhots = [\n]\n', 7),
    ],
    ids=["comments", "inline", "dotted", "quoted", "several-lines", "crlf", "lists"],
)
def test_a_fault_is_told_with_its_line(toml: Path, text: str, line: int) -> None:
    toml.write_text(text, newline="")
    assert f"{toml}:{line}: profiles.corp.hots: hots is not a setting" in _error({}, toml)


def test_every_fault_is_told_at_once_a_line_each(toml: Path) -> None:
    toml.write_text('listne = "x"\ndefault_wait = 99\n[profiles.corp]\nport = 0\nhots = "x"\n')
    lines = _error({"MAILCHUTE_ROLE": "both"}, toml).splitlines()
    assert len(lines) == 5
    assert all(any(key in line for line in lines) for key in ("listne", "default_wait", "port", "hots", "ROLE"))


def test_other_programs_variables_are_nobodys_business() -> None:
    assert _load({"PATH": "/bin", "HOME": "/root", "NEXTAUTH_URL": "x", "mailchute_listen": "x"}) == _load({})


# The file, and both.


def test_the_file_of_the_documentation_is_read(toml: Path) -> None:
    toml.write_text(
        """
        default_profile = "intranet"
        default_from = "Bots <bots@corp.example>"
        default_wait = "5s"
        [profiles.intranet]
        host = "mail.corp.example"
        port = 587
        tls = "opportunistic"
        auth = "none"
        [profiles.cloud]
        host = "smtp.cloud.example"
        port = 465
        username = "bot"
        password = "canary-s3cret-0123456789"
        verify = true
        fallback = ["intranet"]
        rate = "30/m"
        in_doubt = "retry"
        max_connections = 5
        idle_timeout = "1m"
        helo_name = "bots.corp.example"
        envelope_from = "bounces@corp.example"
        max_message_bytes = 1000000
        [profiles.cloud.timeouts]
        connect = "3s"
        content = 900
        [retry]
        schedule = "30s, 1m*3"
        expires_after = "2h"

        [retention]
        bodies = 0
        messages = "52w"
        """
    )
    settings = _load({}, toml)
    assert settings.default_profile == "intranet"
    assert settings.default_from == Address("bots", "corp.example", "Bots")
    assert settings.default_wait == 5
    assert settings.schedule.waits == (30, 60, 60, 60)
    assert settings.expires_after == 7200
    assert (settings.keep_bodies, settings.keep_messages) == (0, 364 * 86400)
    intranet, cloud = settings.profiles["intranet"], settings.profiles["cloud"]
    assert (intranet.port, intranet.tls, intranet.auth) == (587, TlsMode.OPPORTUNISTIC, AuthMode.NONE)
    assert (cloud.port, cloud.tls, cloud.wants_login) == (465, TlsMode.IMPLICIT, True)
    assert (cloud.max_connections, cloud.idle_timeout) == (5, 60)
    assert (cloud.fallback, cloud.rate, cloud.in_doubt) == (("intranet",), Rate(30, 60), InDoubtPolicy.RETRY)
    assert (intranet.fallback, intranet.rate, intranet.in_doubt) == ((), None, InDoubtPolicy.HOLD)
    assert (cloud.helo_name, cloud.envelope_from) == ("bots.corp.example", "bounces@corp.example")
    assert (cloud.max_message_bytes, intranet.max_message_bytes) == (1_000_000, None)
    assert (cloud.timeouts.connect, cloud.timeouts.content, cloud.timeouts.mail) == (3, 900, 300)
    assert intranet.dialect is cloud.dialect is Dialect.FILE


@pytest.mark.parametrize(
    ("written", "sender"),
    [
        ("<>", ""),
        (" <> ", ""),
        ("< >", ""),
        ("bounces@corp.example", "bounces@corp.example"),
        ("<bounces@corp.example>", "bounces@corp.example"),
        ("Bounces <bounces@Corp.example>", "bounces@corp.example"),
    ],
)
def test_mail_from_is_an_address_or_the_null_sender(toml: Path, written: str, sender: str) -> None:
    toml.write_text(f'[profiles.corp]\nhost = "a.example"\nenvelope_from = "{written}"\n')
    assert _load({}, toml).profiles["corp"].envelope_from == sender
    environ = {"MAILCHUTE_PROFILES__CORP__HOST": "a.example", "MAILCHUTE_PROFILES__CORP__ENVELOPE_FROM": written}
    assert _load(environ).profiles["corp"].envelope_from == sender


def test_the_founding_case_is_two_lines(toml: Path) -> None:
    toml.write_text('[profiles.intranet]\nhost = "mail.corp.example"\n')
    settings = _load({}, toml)
    profile = settings.profiles["intranet"]
    assert settings.default_profile == "intranet"
    assert (profile.port, profile.tls, profile.wants_login) == (587, TlsMode.OPPORTUNISTIC, False)


def test_the_environment_beats_the_file(toml: Path) -> None:
    toml.write_text('default_wait = 3\n[profiles.corp]\nhost = "a.example"\nport = 25\n')
    environ = {"MAILCHUTE_PROFILES__CORP__PORT": "2525", "MAILCHUTE_DEFAULT_WAIT": "4"}
    settings = _load(environ, toml)
    assert settings.default_wait == 4
    assert (settings.profiles["corp"].host, settings.profiles["corp"].port) == ("a.example", 2525)


def test_nested_variables_beat_typebots_names() -> None:
    environ = {"SMTP_PORT": "25", "MAILCHUTE_PROFILES__DEFAULT__PORT": "2525"}
    assert _default(environ).port == 2525
    assert _default({"MAILCHUTE_PROFILES__DEFAULT__MAX_CONNECTIONS": "2"}).max_connections == 2


def test_the_relay_of_the_environment_is_the_default_beside_those_of_the_file(toml: Path) -> None:
    toml.write_text('[profiles.corp]\nhost = "a.example"\n')
    settings = _load(RELAY, toml)
    assert settings.default_profile == "default"
    assert set(settings.profiles) == {"default", "corp"}


@pytest.mark.parametrize(
    ("environ", "named"),
    [
        ({"MAILCHUTE_PROFILES__CORP__USERNAME": "bot"}, "MAILCHUTE_PROFILES__CORP__PASSWORD"),
        ({"MAILCHUTE_PROFILES__CORP__PASSWORD": CANARY}, "MAILCHUTE_PROFILES__CORP__USERNAME"),
        ({"MAILCHUTE_PROFILES__CORP__AUTH": "required"}, "MAILCHUTE_PROFILES__CORP__AUTH=none"),
        ({"MAILCHUTE_PROFILES__CORP__PORT": "x"}, "MAILCHUTE_PROFILES__CORP__PORT"),
        ({"MAILCHUTE_PROFILES__CORP__CA_FILE": "/no/such"}, "MAILCHUTE_PROFILES__CORP__CA_FILE"),
    ],
)
def test_an_error_in_a_nested_profile_names_its_variable(environ: dict[str, str], named: str) -> None:
    text = _error({"MAILCHUTE_PROFILES__CORP__HOST": "a.example"} | environ)
    assert named in text
    assert CANARY not in text


def test_a_profile_that_was_set_by_nested_variables_is_spoken_of_in_them() -> None:
    profile = _load({"MAILCHUTE_PROFILES__CORP__HOST": "a.example"}).profiles["corp"]
    assert profile.setting("auth", "none") == "MAILCHUTE_PROFILES__CORP__AUTH=none"
    assert profile.port == 587


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('username = "bot"', "password"),
        ('auth = "required"', 'auth = "none"'),
        ("port = 0", "profiles.corp.port"),
        ('ca_file = "/no/such"', "ca_file"),
        ('idle_timeout = "soon"', "profiles.corp.idle_timeout"),
        ("idle_timeout = nan", "profiles.corp.idle_timeout"),
        ("idle_timeout = inf", "profiles.corp.idle_timeout"),
        ("max_connections = 0", "profiles.corp.max_connections"),
        ("[profiles.corp.timeouts]\nconnect = 0", "profiles.corp.timeouts.connect"),
        ('envelope_from = "nobody"', "profiles.corp.envelope_from"),
        ("from = 3", "profiles.corp.from"),
        ("host = 3", "profiles.corp.host"),
        ("tls = true", "profiles.corp.tls"),
    ],
)
def test_an_error_in_the_file_names_its_key(toml: Path, text: str, named: str) -> None:
    host = "" if text.startswith("host") else 'host = "a.example"\n'
    toml.write_text(f"[profiles.corp]\n{host}{text}\n")
    said = _error({}, toml)
    assert named in said
    assert "SMTP_" not in said
    assert "MAILCHUTE_" not in said


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MAILCHUTE_RETRY__SCHEDULE", "sometimes"),
        ("MAILCHUTE_RETRY__SCHEDULE", "99999999999d"),
        ("MAILCHUTE_RETRY__EXPIRES_AFTER", "0s"),
        ("MAILCHUTE_RETRY__EXPIRES_AFTER", "never"),
        ("MAILCHUTE_DEFAULT_WAIT", "31"),
        ("MAILCHUTE_DEFAULT_WAIT", "nan"),
        ("MAILCHUTE_MAX_MESSAGE_BYTES", "12"),
        ("MAILCHUTE_DEFAULT_FROM", "Bots"),
        ("MAILCHUTE_LOG", "xml"),
        ("MAILCHUTE_DOCS", "perhaps"),
        ("MAILCHUTE_SANDBOX", "perhaps"),
        ("MAILCHUTE_DEFAULT_PROFILE", "corp"),
        ("MAILCHUTE_PROFILES", "corp"),
        ("MAILCHUTE_RETRY", "1m"),
    ],
)
def test_a_value_that_cannot_be_is_told_with_its_variable(name: str, value: str) -> None:
    assert name in _error({name: value})


def test_a_variable_and_those_below_it_contradict_each_other() -> None:
    environ = {"MAILCHUTE_RETRY": "1m", "MAILCHUTE_RETRY__SCHEDULE": "1m"}
    assert "MAILCHUTE_RETRY" in _error(environ)
    assert "MAILCHUTE_RETRY" in _error(dict(reversed(environ.items())))


ROUTED = """
default_profile = "cloud"
[profiles.cloud]
host = "c.example"
[profiles.intranet]
host = "i.example"
"""


def test_routes_are_read_in_their_order(toml: Path) -> None:
    toml.write_text(
        ROUTED
        + '[[routes]]\nfrom_domain = "Corp.Example"\nprofile = "intranet"\n'
        + '[[routes]]\nto_domain = "bücher.example"\nprofile = "cloud"\n'
    )
    assert _load({}, toml).routes == (
        Route("intranet", from_domain="corp.example"),
        Route("cloud", to_domain="xn--bcher-kva.example"),
    )


def test_routes_are_numbered_in_the_environment(toml: Path) -> None:
    toml.write_text(ROUTED)
    at = "MAILCHUTE_ROUTES__"
    said = {f"{at}10__PROFILE": "cloud", f"{at}10__TO_DOMAIN": "b.example"}
    said |= {f"{at}9__PROFILE": "intranet", f"{at}9__FROM_DOMAIN": "a.example"}
    assert [route.profile for route in _load(said, toml).routes] == ["intranet", "cloud"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            'profile = "intarnet"\nfrom_domain = "a.example"',
            "routes.0.profile: there is no profile intarnet; do you mean",
        ),
        ('profile = "intranet"', "routes.0: it matches nothing; give it from_domain, to_domain or both"),
        ('from_domain = "a.example"', "routes.0: profile is missing"),
        (
            'profile = "intranet"\nfrom_domain = "@a.example"',
            "routes.0.from_domain: write a domain, such as corp.example",
        ),
        ('profile = "intranet"\nto_domain = "a b"', "routes.0.to_domain: "),
        ('profile = "intranet"\nto_domain = 3', "routes.0.to_domain: write a domain"),
    ],
)
def test_a_route_that_leads_nowhere_is_refused(toml: Path, text: str, says: str) -> None:
    toml.write_text(f"{ROUTED}[[routes]]\n{text}\n")
    assert says in _error({}, toml)


def test_several_profiles_need_a_default(toml: Path) -> None:
    toml.write_text('[profiles.a]\nhost = "a.example"\n[profiles.b]\nhost = "b.example"\n')
    assert "default_profile" in _error({}, toml)
    assert _load({"MAILCHUTE_DEFAULT_PROFILE": "b"}, toml).default_profile == "b"


def test_a_default_profile_that_is_not_there_is_told_with_the_nearest(toml: Path) -> None:
    toml.write_text('default_profile = "intarnet"\n[profiles.intranet]\nhost = "a.example"\n')
    assert "do you mean intranet?" in _error({}, toml)


@pytest.mark.parametrize("log", LogFormat)
def test_the_form_of_the_log_is_read(log: LogFormat) -> None:
    assert _load({"MAILCHUTE_LOG": log.value}).log is log


def test_the_first_file_that_exists_is_read_unless_one_is_named(tmp_path: Path) -> None:
    first, second = tmp_path / "first.toml", tmp_path / "second.toml"
    second.write_text("default_wait = 2\n")
    assert _load({}, first, second).default_wait == 2
    first.write_text("default_wait = 1\n")
    assert _load({}, first, second).default_wait == 1
    assert _load({"MAILCHUTE_CONFIG": str(second)}, first).default_wait == 2


def test_a_named_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    missing = tmp_path / "missing.toml"
    assert str(missing) in _error({"MAILCHUTE_CONFIG": str(missing)})
    assert str(tmp_path) in _error({"MAILCHUTE_CONFIG": str(tmp_path)})


@pytest.mark.parametrize("content", [b"listen = ", b"[profiles", b"\xff\xfe", b"a = 1\na = 2\n", b"=\n"])
def test_a_file_that_is_not_toml_is_told_by_name(toml: Path, content: bytes) -> None:
    toml.write_bytes(content)
    assert f"{toml} is not valid TOML" in _error({}, toml)


# Secrets.


@pytest.mark.parametrize("content", [CANARY, CANARY + "\n", CANARY + "\r\n", CANARY + "\n\n"])
@pytest.mark.parametrize("name", ["SMTP_PASSWORD_FILE", "MAILCHUTE_PROFILES__DEFAULT__PASSWORD_FILE"])
def test_a_password_is_read_from_its_file_without_the_line_break(tmp_path: Path, content: str, name: str) -> None:
    (tmp_path / "secret").write_bytes(content.encode())
    assert _default({"SMTP_USERNAME": "bot", name: str(tmp_path / "secret")}).password == CANARY


def test_blanks_belong_to_a_password(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(" two words \n")
    assert _default({"SMTP_USERNAME": "bot", "SMTP_PASSWORD_FILE": str(tmp_path / "secret")}).password == " two words "
    assert _default({"SMTP_USERNAME": "bot", "SMTP_PASSWORD": " two words "}).password == " two words "


def test_a_key_is_read_from_its_file(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(CANARY + "\n")
    assert _load({"MAILCHUTE_API_KEY_FILE": str(tmp_path / "key")}).api_key == CANARY


@pytest.mark.parametrize("content", ["", "\n", "\r\n"])
@pytest.mark.parametrize("name", ["SMTP_PASSWORD_FILE", "MAILCHUTE_API_KEY_FILE"])
def test_an_empty_secret_file_is_never_taken_for_no_secret(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / "secret").write_text(content)
    text = _error(RELAY | {"SMTP_USERNAME": "bot", name: str(tmp_path / "secret")})
    assert f"{name}: the secret's file {tmp_path / 'secret'} is empty" in text


# A host is one name or address.

HOSTS = {
    "blanks": ("  mail.corp.example ", "mail.corp.example"),
    "a line break": ("mail.corp.example\n", "mail.corp.example"),
    "a Windows line break": ("mail.corp.example\r\n", "mail.corp.example"),
    "a no-break space": ("mail.corp.example\u00a0", "mail.corp.example"),
    "a trailing dot": ("mail.corp.example.", "mail.corp.example"),
    "a dot and blanks": (" mail.corp.example. \n", "mail.corp.example"),
    "one label": ("relay", "relay"),
    "an underscore": ("mail_1.corp.example", "mail_1.corp.example"),
    "IPv4": ("192.0.2.1", "192.0.2.1"),
    "IPv4, short": ("127.1", "127.1"),
    "IPv4, one number": ("2130706433", "2130706433"),
    "IPv6": ("2001:db8::1", "2001:db8::1"),
    "IPv6, short": ("::1", "::1"),
    "a non-ASCII name": ("bücher.example", "xn--bcher-kva.example"),
}


@pytest.mark.parametrize(("written", "host"), HOSTS.values(), ids=HOSTS)
@pytest.mark.parametrize("key", ["host", "server_name", "helo_name"])
@pytest.mark.parametrize("dialect", Dialect)
def test_a_host_is_read_without_what_surrounds_it(
    toml: Path, dialect: Dialect, key: str, written: str, host: str
) -> None:
    environ, files = _written(dialect, toml, {key: written})
    (profile,) = _load(environ, *files).profiles.values()
    assert getattr(profile, key) == host


SECRET = "hunter2"
SLIPS: dict[str, tuple[str, str, dict[str, object]]] = {
    "double quotes": ('"mail.corp.example"', "in quotes", {"host": "mail.corp.example"}),
    "single quotes": ("'mail.corp.example'", "in quotes", {"host": "mail.corp.example"}),
    "half a pair of quotes": ('"mail.corp.example', "in quotes", {"host": "mail.corp.example"}),
    "typographic quotes": ("“mail.corp.example”", "in quotes", {"host": "mail.corp.example"}),
    "quotes and blanks": (' " mail.corp.example " ', "in quotes", {"host": "mail.corp.example"}),
    "quotes and a port": ('"mail.corp.example:587"', "in quotes", {"host": "mail.corp.example", "port": 587}),
    "a URL": ("smtp://mail.corp.example", "a URL", {"host": "mail.corp.example"}),
    "a URL and its path": ("smtp://mail.corp.example/", "a URL", {"host": "mail.corp.example"}),
    "a URL of HTTP": ("https://mail.corp.example/x?y#z", "a URL", {"host": "mail.corp.example"}),
    "a URL without a scheme": ("//mail.corp.example", "a URL", {"host": "mail.corp.example"}),
    "a URL with a port": ("smtp://mail.corp.example:587", "a URL", {"host": "mail.corp.example", "port": 587}),
    "a URL of implicit TLS": (
        "smtps://mail.corp.example:465",
        "a URL",
        {"host": "mail.corp.example", "port": 465, "tls": "implicit"},
    ),
    "a URL with a login": (
        f"smtp://user:{SECRET}@mail.corp.example:587",
        "a URL",
        {"host": "mail.corp.example", "port": 587, "username": "…", "password": "…"},
    ),
    "a URL with a login of signs": (
        f"smtp://user:/{SECRET}@{SECRET}:?#@mail.corp.example:587",
        "a URL",
        {"host": "mail.corp.example", "port": 587, "username": "…", "password": "…"},
    ),
    "a URL in quotes": (
        f'"smtp://user:{SECRET}@mail.corp.example:587"',
        "in quotes",
        {"host": "mail.corp.example", "port": 587, "username": "…", "password": "…"},
    ),
    "a login": (
        f"user:{SECRET}@mail.corp.example",
        "a user name",
        {"host": "mail.corp.example", "username": "…", "password": "…"},
    ),
    "a port": ("mail.corp.example:587", "a port", {"host": "mail.corp.example", "port": 587}),
    "a port of IPv4": ("192.0.2.1:25", "a port", {"host": "192.0.2.1", "port": 25}),
    "a port that is none": ("mail.corp.example:", "a port", {"host": "mail.corp.example"}),
    "a port over the last": ("mail.corp.example:99999", "a port", {"host": "mail.corp.example"}),
    "brackets": ("[mail.corp.example]", "brackets", {"host": "mail.corp.example"}),
    "brackets of IPv6 and a port": ("[2001:db8::1]:587", "brackets", {"host": "2001:db8::1", "port": 587}),
    "angle brackets": ("<mail.corp.example>", "brackets", {"host": "mail.corp.example"}),
    "a path": ("mail.corp.example/587", "a path", {"host": "mail.corp.example"}),
    "a word for the port": (f"user:{SECRET}", "a colon", {}),
    "two names": ("mail.corp.example, mail2.corp.example", "more than one name", {}),
    "two names, a blank between": ("mail.corp.example mail2.corp.example", "more than one name", {}),
    "a number": ("587", "is a number", {}),
    "an address that goes on": ("192.0.2.1.5", "not a host name", {}),
    "two dots": ("mail..corp.example", "not a host name", {}),
    "a label of 64": ("a" * 64 + ".example", "not a host name", {}),
    "a zero-width space": ("mail.corp\u200b.example", "U+200B ZERO WIDTH SPACE", {"host": "mail.corp.example"}),
    "a byte order mark": ("\ufeffmail.corp.example", "U+FEFF", {"host": "mail.corp.example"}),
    "a soft hyphen": ("mail.co\u00adrp.example", "U+00AD SOFT HYPHEN", {"host": "mail.corp.example"}),
    "a line break within": ("mail.corp.example\nSMTP_PORT=587", "a line break", {"host": "mail.corp.example"}),
}


@pytest.mark.parametrize(("written", "what", "right"), SLIPS.values(), ids=SLIPS)
@pytest.mark.parametrize("dialect", Dialect)
def test_a_host_that_is_none_is_told_with_the_right_spelling(
    toml: Path, dialect: Dialect, written: str, what: str, right: Mapping[str, object]
) -> None:
    text = _refused(dialect, toml, "host", {"host": written})
    assert what in text
    assert SECRET not in text
    assert "user:" not in text
    profile = "default" if dialect is Dialect.ENVIRONMENT else "corp"
    spelled = [setting(dialect, profile, key, value) for key, value in (right or {"host": "smtp.example.org"}).items()]  # type: ignore[arg-type]
    assert text.endswith(", ".join(spelled))


@pytest.mark.parametrize(("written", "what"), [slip[:2] for slip in SLIPS.values()], ids=SLIPS)
@pytest.mark.parametrize("key", ["server_name", "helo_name"])
def test_another_name_of_a_host_that_is_none_is_told_too(toml: Path, key: str, written: str, what: str) -> None:
    if key == "helo_name" and written.startswith("[") and written.endswith("]"):
        written = "[[192.0.2.1]]"  # in single ones it is an address literal
    text = _refused(Dialect.FILE, toml, key, {key: written})
    assert what in text
    assert SECRET not in text
    assert not re.search(r"\b(?:port|username|password) = ", text)


@pytest.mark.parametrize("literal", ["[192.0.2.1]", "[IPv6:2001:db8::1]", " [192.0.2.1]\n"])
def test_a_helo_name_may_be_an_address_literal(toml: Path, literal: str) -> None:
    environ, files = _written(Dialect.FILE, toml, {"helo_name": literal})
    assert _load(environ, *files).profiles["corp"].helo_name == literal.strip()


@pytest.mark.parametrize("blank", [" ", "\n", ".", " . "])
def test_a_blank_host_is_missing(blank: str) -> None:
    assert "SMTP_HOST is missing" in _error({"SMTP_HOST": blank})


# What surrounds a value, and what nobody sees in it.


@pytest.mark.parametrize(
    "written", [f" {CANARY}", f"{CANARY} ", f"{CANARY}\n", f"\r\n{CANARY}\r\n", f"\t{CANARY}\u00a0"]
)
@pytest.mark.parametrize(
    "how", ["environment", "file of the environment", "settings file", "file of the settings file"]
)
def test_what_surrounds_a_key_is_removed_with_a_warning(tmp_path: Path, toml: Path, how: str, written: str) -> None:
    settings = _with_key(tmp_path, toml, how, written)
    assert settings.api_key == CANARY
    is_normal = how.startswith("file") and written == f"{CANARY}\n"  # as every editor ends a file
    assert [warning.endswith("removed") for warning in settings.warnings] == ([] if is_normal else [True])
    assert not any(CANARY in warning for warning in settings.warnings)


@pytest.mark.parametrize(
    ("written", "says"),
    [
        ("   ", "only blanks"),
        ("\n \n", "only blanks"),
        (f"  {CANARY[:15]}  ", "15 characters; use at least 16"),
        (f"{CANARY}\u200b", "U+200B ZERO WIDTH SPACE"),
        (f"\ufeff{CANARY}", "U+FEFF ZERO WIDTH NO-BREAK SPACE"),
        (f"{CANARY}\u00a0{CANARY}", "U+00A0 NO-BREAK SPACE"),
        (f"{CANARY}\n{CANARY}", "a line break"),
        (f"{CANARY}\t{CANARY}", "a tab"),
        (f"{CANARY}\x7f{CANARY}", "U+007F"),
        (f'"{CANARY}"', "in quotes"),
        (f"'{CANARY}'", "in quotes"),
    ],
)
@pytest.mark.parametrize(
    "how", ["environment", "file of the environment", "settings file", "file of the settings file"]
)
def test_a_key_that_no_caller_could_send_is_refused(
    tmp_path: Path, toml: Path, how: str, written: str, says: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        _with_key(tmp_path, toml, how, written)
    text = str(refused.value)
    assert says in text
    assert CANARY[:15] not in text
    name = "MAILCHUTE_API_KEY" if "environment" in how else f"{toml}:1: api_key"
    assert text.startswith(f"{name}{('_FILE' if 'environment' in how else '_file') if how.startswith('file') else ''}")


def _with_key(tmp_path: Path, toml: Path, how: str, written: str) -> Settings:
    (tmp_path / "key").write_bytes(written.encode())
    match how:
        case "environment":
            return _load({"MAILCHUTE_API_KEY": written})
        case "file of the environment":
            return _load({"MAILCHUTE_API_KEY_FILE": str(tmp_path / "key")})
        case "settings file":
            toml.write_text(_toml({"api_key": written}))
        case _:
            toml.write_text(_toml({"api_key_file": str(tmp_path / "key")}))
    return _load({}, toml)


@pytest.mark.parametrize("key", ["username", "password"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\n\n"])
@pytest.mark.parametrize("dialect", Dialect)
def test_a_line_break_at_the_end_of_a_login_is_removed_with_a_warning(
    toml: Path, dialect: Dialect, key: str, end: str
) -> None:
    environ, files = _written(dialect, toml, {key: f" {CANARY} {end}"})
    settings = _load(environ, *files)
    (profile,) = settings.profiles.values()
    assert getattr(profile, key) == f" {CANARY} "
    (warning,) = settings.warnings
    assert _named(dialect, key) in warning
    assert "line break" in warning
    assert CANARY not in warning


@pytest.mark.parametrize("key", ["username", "password"])
@pytest.mark.parametrize(
    ("written", "says"),
    [
        (f"{CANARY}\u200b", "U+200B ZERO WIDTH SPACE"),
        (f"{CANARY}\u00a0", "U+00A0 NO-BREAK SPACE"),
        (f"\u2028{CANARY}", "U+2028 LINE SEPARATOR"),
        (f"{CANARY}\n{CANARY}", "a line break"),
        (f"{CANARY}\x00", "U+0000"),
        ("   ", "only blanks"),
        (" \n", "only blanks"),
    ],
)
@pytest.mark.parametrize("dialect", Dialect)
def test_what_nobody_sees_in_a_login_is_named(toml: Path, dialect: Dialect, key: str, written: str, says: str) -> None:
    text = _refused(dialect, toml, key, {key: written})
    assert says in text


def test_an_invisible_character_in_a_password_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"\xef\xbb\xbf" + CANARY.encode())  # as Notepad saves it
    text = _error(RELAY | {"SMTP_USERNAME": "bot", "SMTP_PASSWORD_FILE": str(tmp_path / "secret")})
    assert text.startswith("SMTP_PASSWORD_FILE holds an invisible character (U+FEFF")
    assert CANARY not in text


@pytest.mark.parametrize("name", ["SMTP_PASSWORD", "MAILCHUTE_API_KEY", "SMTP_USERNAME", "SMTP_HOST"])
def test_bytes_that_are_not_utf_8_are_named(name: str) -> None:
    text = _error(RELAY | LOGIN | {name: f"{CANARY}\udcff"})  # as os.environ has them
    assert text.startswith(f"{name} holds a byte that is not UTF-8")
    assert CANARY not in text or name == "SMTP_HOST"


def test_a_user_name_in_quotes_is_refused_and_a_password_in_quotes_is_a_warning() -> None:
    assert _error(RELAY | LOGIN | {"SMTP_USERNAME": '"bot"'}).startswith("SMTP_USERNAME is in quotes")
    settings = _load(RELAY | LOGIN | {"SMTP_PASSWORD": f'"{CANARY}"'})
    assert settings.profiles["default"].password == f'"{CANARY}"'
    assert settings.warnings == (
        "SMTP_PASSWORD is in quotes, which are taken as part of it; remove them if they are not",
    )


QUOTED = {
    "SMTP_PORT": "587",
    "SMTP_TLS": "starttls",
    "SMTP_AUTH": "none",
    "SMTP_SECURE": "true",
    "SMTP_IGNORE_TLS": "false",
    "SMTP_VERIFY": "true",
    "SMTP_FROM": "Bots <bots@corp.example>",
    "NEXT_PUBLIC_SMTP_FROM": "'Bots' <bots@corp.example>",
    "MAILCHUTE_LISTEN": "127.0.0.1:8587",
    "MAILCHUTE_ROLE": "all",
    "MAILCHUTE_LOG": "json",
    "MAILCHUTE_SANDBOX": "false",
    "MAILCHUTE_DEFAULT_WAIT": "8",
    "MAILCHUTE_DEFAULT_FROM": "bots@corp.example",
    "MAILCHUTE_RETRY__SCHEDULE": "1m, 2m",
    "MAILCHUTE_PROFILES__DEFAULT__RATE": "30/m",
    "MAILCHUTE_CONFIG": "mailchute.toml",
}


@pytest.mark.parametrize(("name", "value"), QUOTED.items())
@pytest.mark.parametrize("quote", ['"', "'"])
def test_quotes_that_dockers_env_file_keeps_are_told_with_the_right_spelling(name: str, value: str, quote: str) -> None:
    text = _error(RELAY | {name: f"{quote}{value}{quote}"})
    assert text.startswith(f"{name} is in quotes")
    assert text.endswith(f"write {name}={value}")


@pytest.mark.parametrize(
    "name", ["MAILCHUTE_DATABASE_URL", "SMTP_PASSWORD_FILE", "MAILCHUTE_API_KEY_FILE", "SMTP_CA_FILE"]
)
def test_quotes_around_what_may_be_a_secret_are_told_without_it(name: str) -> None:
    text = _error(RELAY | {name: f'"{CANARY}"'})
    assert text.startswith(f"{name} is in quotes")
    assert CANARY not in text


@pytest.mark.parametrize(("name", "value"), [*QUOTED.items(), ("MAILCHUTE_DATABASE_URL", "var/other.db")])
def test_blanks_around_a_variable_do_not_count(name: str, value: str, tmp_path: Path) -> None:
    if name == "MAILCHUTE_CONFIG":
        (tmp_path / value).write_text("default_wait = 3\n")
        value = str(tmp_path / value)
    environ = RELAY | ({"SMTP_TLS": "starttls"} if name == "SMTP_VERIFY" else {})
    assert _load(environ | {name: f" {value}\n"}) == _load(environ | {name: value})
    assert _load(environ | {name: " \n"}) == _load(environ)


def test_quotes_in_a_variable_of_another_program_are_nobodys_business() -> None:
    assert _load(RELAY | {"SMTP_GREETING_BANNER": '"x"'}).profiles == _load(RELAY).profiles


# No error repeats what may be a secret.

SECRETIVE = [
    ("MAILCHUTE_DATABASE_URL", f"postgres://user:{SECRET}@db.example/mail"),
    ("MAILCHUTE_DATABASE_URL", f"postgresql:/user:{SECRET}@db.example/mail"),
    ("MAILCHUTE_DATABASE_URL", f"mysql:user:{SECRET}@db.example"),
    ("MAILCHUTE_DATABASE_URL", f"user:{SECRET}@db.example/mail"),
    ("MAILCHUTE_DATABASE_URL", f"{SECRET}://user:{SECRET}@db.example"[8:]),
    ("MAILCHUTE_LISTEN", f"http://user:{SECRET}@0.0.0.0:8587"),
    ("MAILCHUTE_LISTEN", f"{SECRET}@0.0.0.0:8587"),
    ("MAILCHUTE_LISTEN", SECRET),
    ("SMTP_PORT", SECRET),
    ("SMTP_PORT", f"smtp://user:{SECRET}@h:587"),
    ("SMTP_SECURE", SECRET),
    ("SMTP_VERIFY", SECRET),
    ("SMTP_TLS", SECRET),
    ("SMTP_AUTH", SECRET),
    ("SMTP_PASSWORD_FILE", SECRET),
    ("MAILCHUTE_API_KEY_FILE", SECRET),
    ("SMTP_FROM", f"smtp://user:{SECRET}@h:587"),
    ("MAILCHUTE_DEFAULT_WAIT", f"smtp://user:{SECRET}@h:587"),
    ("MAILCHUTE_DEFAULT_PROFILE", f"smtp://user:{SECRET}@h:587"),
    ("MAILCHUTE_RETRY__SCHEDULE", f"smtp://user:{SECRET}@h:587"),
    ("MAILCHUTE_PROFILES__DEFAULT__RATE", f"smtp://user:{SECRET}@h:587"),
    ("MAILCHUTE_PROFILES__DEFAULT__CERT_SHA256", SECRET),
    ("MAILCHUTE_PROFILES__DEFAULT__CLIENT_CERT", f"-----BEGIN PRIVATE KEY-----\n{SECRET}"),
    ("MAILCHUTE_PROFILES__DEFAULT__MAX_CONNECTIONS", SECRET),
]


@pytest.mark.parametrize(("name", "value"), SECRETIVE)
def test_no_error_repeats_a_value_that_may_be_a_secret(name: str, value: str) -> None:
    with pytest.raises(ConfigError) as refused:
        _load(RELAY | LOGIN | {"SMTP_TLS": "starttls", name: value})
    told = "".join(traceback.format_exception(refused.value))
    assert name in told
    assert SECRET not in told


@pytest.mark.parametrize(
    "key", ["ca_file", "client_cert", "client_key", "database_url", "password_file", "api_key_file"]
)
def test_a_nul_in_a_path_is_told(toml: Path, key: str) -> None:
    above = {key: "/a\0b"} if key in ("database_url", "api_key_file") else {}
    said = {
        "host": "a.example",
        "tls": "starttls",
        "username": "bot",
        "client_cert": str(certificates().client_cert_file),
    }
    toml.write_text(_toml(above or {"profiles": {"corp": {**said, key: "/a\0b"}}}))
    assert key in _error({}, toml)


@pytest.mark.parametrize("name", ["SMTP_PASSWORD", "MAILCHUTE_API_KEY", "MAILCHUTE_PROFILES__DEFAULT__PASSWORD"])
def test_a_secret_and_its_file_are_one_too_many(tmp_path: Path, name: str) -> None:
    (tmp_path / "secret").write_text(CANARY)
    text = _error(RELAY | {name: CANARY, f"{name}_FILE": str(tmp_path / "secret")})
    assert name in text
    assert CANARY not in text


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", None])
def test_a_secret_file_that_cannot_be_read_is_told_by_its_path(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "secret"
    if content is not None:
        file.write_bytes(content)
    assert str(file) in _error({"MAILCHUTE_API_KEY_FILE": str(file)})


def test_a_ca_file_must_hold_a_certificate(tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    file.write_text("-----BEGIN PRIVATE KEY-----\n")
    text = _error(RELAY | {"SMTP_TLS": "starttls", "SMTP_CA_FILE": str(file)})
    assert str(file) in text
    assert "certificate" in text
    file.write_text(CERTIFICATE)
    assert _default({"SMTP_TLS": "starttls", "SMTP_CA_FILE": str(file)}).ca_file == str(file)


# What is asked of TLS, and the bounds of a connection, in all three dialects.


_BY_SMTP_NAME = ("host", "port", "tls", "auth", "username", "password", "password_file", "ca_file", "verify")
_FINGERPRINT = "0123456789abcdef" * 4
_COLONS = ":".join(re.findall("..", _FINGERPRINT))


def _named(dialect: Dialect, key: str) -> str:
    """Name a key as whoever writes in this dialect does."""
    if dialect is Dialect.FILE:
        return key
    if dialect is Dialect.ENVIRONMENT and key in _BY_SMTP_NAME:
        return f"SMTP_{key}".upper()
    profile = "CORP" if dialect is Dialect.NESTED else "DEFAULT"
    return f"MAILCHUTE_PROFILES__{profile}__{key.replace('.', '__')}".upper()


def _written(dialect: Dialect, toml: Path, said: Mapping[str, Any]) -> tuple[dict[str, str], tuple[Path, ...]]:
    """Write a profile with a login in a dialect; give the environment and the files. None = leave the key out."""
    said = {"host": "a.example", "tls": "starttls", "username": "bot", "password": CANARY, **said}
    said = {key: value for key, value in said.items() if value is not None}
    if dialect is Dialect.FILE:
        toml.write_text(f"[profiles.corp]\n{_toml(said)}")
        return {}, (toml,)
    texts = {key: str(value).lower() if isinstance(value, bool) else str(value) for key, value in said.items()}
    return {_named(dialect, key): text for key, text in texts.items()}, ()


def _refused(dialect: Dialect, toml: Path, key: str, said: Mapping[str, Any]) -> str:
    """Load the profile, and check that the error names the key as its writer does, and no secret."""
    environ, files = _written(dialect, toml, said)
    text = _error(environ, *files)
    assert _named(dialect, key) in text
    foreign = {Dialect.FILE: ("SMTP_", "MAILCHUTE_"), Dialect.NESTED: ("SMTP_",), Dialect.ENVIRONMENT: ("profiles.",)}
    assert [word for word in (*foreign[dialect], CANARY) if word in text] == []
    return text


@pytest.fixture
def client(tmp_path: Path) -> Mapping[str, str]:
    """Files with a certificate and keys of ours: a whole set, and what is wrong with them."""
    known, pem = certificates(), serialization.Encoding.PEM
    key = serialization.load_pem_private_key(known.client_key_file.read_bytes(), None)
    locked = serialization.BestAvailableEncryption(CANARY.encode())
    contents = {
        "certificate": known.client_cert_file.read_bytes(),
        "key": known.client_key_file.read_bytes(),
        "both": known.client_file.read_bytes(),
        "another": known.stranger_file.read_bytes(),
        "locked": key.private_bytes(pem, serialization.PrivateFormat.PKCS8, locked),
        "locked in the old way": key.private_bytes(pem, serialization.PrivateFormat.TraditionalOpenSSL, locked),
        "words": b"no key",
        "not text": b"\xff\xfe",
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "folder").mkdir()
    return {name: str(tmp_path / name) for name in (*contents, "folder", "nothing")}


@pytest.mark.parametrize("written", [_FINGERPRINT, _FINGERPRINT.upper(), _COLONS, _COLONS.upper()])
@pytest.mark.parametrize("prefix", ["", "sha256:", "SHA256:", " "])
@pytest.mark.parametrize("dialect", Dialect)
def test_a_fingerprint_is_read_in_any_of_its_forms(toml: Path, dialect: Dialect, prefix: str, written: str) -> None:
    environ, files = _written(dialect, toml, {"cert_sha256": prefix + written})
    (profile,) = _load(environ, *files).profiles.values()
    assert profile.cert_sha256 == _FINGERPRINT


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("cert_sha256", "ab" * 20, "64 hexadecimal digits"),  # SHA-1
        ("cert_sha256", "ab" * 33, "64 hexadecimal digits"),
        ("cert_sha256", "ab" * 31 + "xy", "64 hexadecimal digits"),
        ("cert_sha256", "ab" * 31 + "ａｂ", "64 hexadecimal digits"),
        ("cert_sha256", f"sha1:{'ab' * 20}", "64 hexadecimal digits"),
        ("cert_sha256", f"sha512:{'ab' * 32}", "64 hexadecimal digits"),
        ("cert_sha256", "latest", "64 hexadecimal digits"),
        ("server_name", "a b", "more than one name"),
        ("server_name", "smtp://a.example/", "is a URL"),
        ("server_name", "-", "is not a host name"),
        ("min_tls", "1.4", "'1.2'"),
        ("min_tls", "TLSv1.2", "'1.2'"),
        ("min_tls", 1, "'1.2'"),
        ("min_tls", 1.25, "'1.2'"),
        ("min_tls", True, "'1.2'"),
        ("auth", "cram_md5", "'cram-md5'"),
        ("max_connections", 0, "1"),
        ("max_messages_per_connection", -1, "0"),
        ("max_messages_per_connection", 1.5, "a whole number"),
        ("max_messages_per_connection", "many", "a whole number"),
        ("idle_timeout", -1, "0"),
        ("rate", "30", "such as 30/m"),
        ("rate", 30, "such as 30/m"),
        ("rate", "0/m", "such as 30/m"),
        ("in_doubt", "resend", "'hold' or 'retry'"),
        ("client_cert", "/no/such", "/no/such cannot be read"),
        ("ca_file", "/no/such", "/no/such cannot be read"),
    ],
)
@pytest.mark.parametrize("dialect", Dialect)
def test_a_value_that_cannot_be_is_told_in_the_words_of_its_writer(
    toml: Path, dialect: Dialect, key: str, value: object, says: str
) -> None:
    assert says in _refused(dialect, toml, key, {key: value})


@pytest.mark.parametrize(
    ("fallback", "says"),
    [
        ('["clowd"]', "do you mean cloud?"),
        ('["cloud", "cloud"]', "cloud is there twice"),
        ('["corp"]', "corp cannot take over from itself"),
    ],
)
def test_a_fallback_that_cannot_be_is_told(toml: Path, fallback: str, says: str) -> None:
    toml.write_text(
        f"""
        default_profile = "corp"
        [profiles.corp]
        host = "mail.corp.example"
        fallback = {fallback}
        [profiles.cloud]
        host = "smtp.cloud.example"
        """
    )
    with pytest.raises(ConfigError, match=r"profiles\.corp\.fallback") as refusal:
        _load({}, toml)
    assert says in str(refusal.value)


@pytest.mark.parametrize(
    "written", [{"": "cloud, other"}, {"__0": "cloud", "__1": "other"}], ids=["in one", "numbered"]
)
def test_a_fallback_may_stand_in_the_environment(written: dict[str, str]) -> None:
    hosts = {f"MAILCHUTE_PROFILES__{name}__HOST": f"{name}.example" for name in ("CORP", "CLOUD", "OTHER")}
    fallback = {f"MAILCHUTE_PROFILES__CORP__FALLBACK{number}": name for number, name in written.items()}
    settings = _load({**hosts, **fallback, "MAILCHUTE_DEFAULT_PROFILE": "corp"})
    assert settings.profiles["corp"].fallback == ("cloud", "other")


@pytest.mark.parametrize("key", ["auth", "reset"])
@pytest.mark.parametrize("seconds", [0, -1, "soon", 3601])
@pytest.mark.parametrize("dialect", [Dialect.NESTED, Dialect.FILE])
def test_a_time_out_that_cannot_be_is_told(toml: Path, dialect: Dialect, key: str, seconds: object) -> None:
    said = {"timeouts": {key: seconds}} if dialect is Dialect.FILE else {f"timeouts.{key}": seconds}
    _refused(dialect, toml, f"timeouts.{key}", said)


@pytest.mark.parametrize("version", TlsVersion)
@pytest.mark.parametrize("quoted", [False, True], ids=["number", "text"])
@pytest.mark.parametrize("dialect", Dialect)
def test_the_oldest_tls_may_be_written_as_a_number(
    toml: Path, dialect: Dialect, quoted: bool, version: TlsVersion
) -> None:
    value = version.value if quoted else float(version.value)
    environ, files = _written(dialect, toml, {"min_tls": value})
    settings = _load(environ, *files)
    assert [profile.min_tls for profile in settings.profiles.values()] == [version]
    assert bool(settings.warnings) == (version in (TlsVersion.V1_0, TlsVersion.V1_1))


@pytest.mark.parametrize(
    ("key", "said", "names"),
    [
        ("cert_sha256", {"verify": False, "cert_sha256": _FINGERPRINT}, "verify"),
        ("client_key", {"client_key": "key"}, "client_cert"),
    ],
)
@pytest.mark.parametrize("dialect", Dialect)
def test_what_contradicts_itself_about_tls_is_refused_at_start(
    toml: Path, client: Mapping[str, str], dialect: Dialect, key: str, said: Mapping[str, Any], names: str
) -> None:
    with_files = {name: client.get(str(value), value) for name, value in said.items()}
    text = _refused(dialect, toml, key, {**with_files, "auth": "none"})
    assert _named(dialect, names) in text


@pytest.mark.parametrize(
    ("certificate", "key"), [("both", None), ("both", "key"), ("certificate", "key"), ("both", "both")]
)
@pytest.mark.parametrize("dialect", Dialect)
def test_a_client_certificate_may_hold_its_key_or_stand_beside_it(
    toml: Path, client: Mapping[str, str], dialect: Dialect, certificate: str, key: str | None
) -> None:
    said = {"client_cert": client[certificate], **({"client_key": client[key]} if key else {})}
    environ, files = _written(dialect, toml, said)
    (profile,) = _load(environ, *files).profiles.values()
    assert (profile.client_cert, profile.client_key) == (client[certificate], client[key] if key else None)


@pytest.mark.parametrize("certificate", ["nothing", "folder", "words", "not text", "key"])
@pytest.mark.parametrize("dialect", Dialect)
def test_a_client_certificate_that_is_none_is_told_by_its_path(
    toml: Path, client: Mapping[str, str], dialect: Dialect, certificate: str
) -> None:
    said = {"client_cert": client[certificate], "client_key": client["key"]}
    assert client[certificate] in _refused(dialect, toml, "client_cert", said)


@pytest.mark.parametrize(
    "key", ["another", "locked", "locked in the old way", "words", "not text", "certificate", "folder", "nothing"]
)
@pytest.mark.parametrize("dialect", Dialect)
def test_a_key_that_does_not_fit_or_is_locked_is_told_by_its_path(
    toml: Path, client: Mapping[str, str], dialect: Dialect, key: str
) -> None:
    said = {"client_cert": client["certificate"], "client_key": client[key]}
    assert client[key] in _refused(dialect, toml, "client_key", said)


@pytest.mark.parametrize("dialect", Dialect)
def test_a_client_certificate_without_its_key_is_told_with_the_setting_for_that(
    toml: Path, client: Mapping[str, str], dialect: Dialect
) -> None:
    text = _refused(dialect, toml, "client_cert", {"client_cert": client["certificate"]})
    assert client["certificate"] in text
    assert f"name its file with {_named(dialect, 'client_key')}" in text


@pytest.mark.parametrize("content", [None, b"\n", b"\xff\xfe"])
@pytest.mark.parametrize("dialect", Dialect)
def test_a_password_file_without_a_password_is_told_at_start(
    toml: Path, tmp_path: Path, dialect: Dialect, content: bytes | None
) -> None:
    if content is not None:
        (tmp_path / "secret").write_bytes(content)
    environ, files = _written(dialect, toml, {"password": None, "password_file": str(tmp_path / "secret")})
    assert "password" in _error(environ, *files).lower()


def test_no_secret_is_in_the_repr_of_the_settings() -> None:
    settings = _load(RELAY | LOGIN | KEY | {"MAILCHUTE_PROFILES__DEFAULT__PORT": "587"})
    assert settings.api_key == CANARY
    assert settings.profiles["default"].password == CANARY
    assert CANARY not in repr(settings)
    assert CANARY not in repr(settings.profiles["default"])
    assert CANARY not in str(settings.warnings)


_NAMES = [
    "SMTP_PORT",
    "SMTP_TLS",
    "SMTP_AUTH",
    "SMTP_SECURE",
    "SMTP_VERIFY",
    "SMTP_FROM",
    "MAILCHUTE_LISTEN",
    "MAILCHUTE_ROLE",
    "MAILCHUTE_DEFAULT_WAIT",
    "MAILCHUTE_RETRY__SCHEDULE",
    "MAILCHUTE_PROFILES",
    "MAILCHUTE_PROFILES__DEFAULT",
    "MAILCHUTE_PROFILES__DEFAULT__PASSWORD__X",
    "MAILCHUTE_PROFILES__DEFAULT__TIMEOUTS",
    "MAILCHUTE_API_KEY__X",
    "MAILCHUTE_XYZZY",
]
_secret_names = st.sampled_from(
    ["SMTP_PASSWORD", "MAILCHUTE_API_KEY", "MAILCHUTE_PROFILES__DEFAULT__PASSWORD", "MAILCHUTE_PROFILES__X__PASSWORD"]
)
_values = st.one_of(st.sampled_from(["", "true", "none", "0", "x", "25", "0.0.0.0:1", "api"]), st.text(max_size=10))


@given(
    st.dictionaries(_secret_names, st.sampled_from([CANARY, CANARY[:14]])),
    st.dictionaries(st.sampled_from(_NAMES), _values, max_size=4),
    st.booleans(),
)
def test_no_error_and_no_repr_holds_a_secret(secret: dict[str, str], others: dict[str, str], host: bool) -> None:
    try:
        text = repr(_load(secret | others | (RELAY if host else {})))
    except ConfigError as error:
        text = repr(error) + repr(error.__cause__) + repr(error.__context__ if not error.__suppress_context__ else "")
    assert CANARY[:14] not in text


@given(st.dictionaries(st.text(max_size=12).map("MAILCHUTE_".__add__), st.text(max_size=12), max_size=3))
def test_any_environment_is_settings_or_a_config_error(environ: dict[str, str]) -> None:
    try:
        settings = _load(environ)
    except ConfigError:
        return
    assert settings.listen.port >= 0


_KEYS = ["profiles", "default", "host", "port", "timeouts", "retry", "listen", "x", "tls", "database_url", "from"]
_toml_values = st.recursive(
    st.one_of(st.booleans(), st.integers(), st.floats(), st.text(max_size=8)),
    lambda below: st.one_of(st.lists(below, max_size=3), st.dictionaries(st.sampled_from(_KEYS), below, max_size=4)),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from(_KEYS), _toml_values, max_size=4))
def test_any_toml_is_settings_or_a_config_error(tree: dict[str, Any]) -> None:
    with TemporaryDirectory() as folder:
        file = Path(folder) / "mailchute.toml"
        file.write_text(_toml(tree), "utf-8")
        try:
            settings = _load({}, file)
        except ConfigError:
            return
    assert settings.default_profile


def _toml(value: Any) -> str:
    """Write a tree as TOML, one inline value a key."""
    return "".join(f"{key} = {_inline(below)}\n" for key, below in value.items())


def _inline(value: Any) -> str:
    match value:
        case bool():
            return str(value).lower()
        case int() | float():
            return str(value)
        case str():
            return '"' + "".join(f"\\U{ord(c):08x}" for c in value) + '"'
        case list():
            return f"[{', '.join(map(_inline, value))}]"
        case dict():
            return "{" + ", ".join(f"{key} = {_inline(below)}" for key, below in value.items()) + "}"
        case _:
            raise ValueError(value)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("MESSAGES", "23h", "write at least 1d: a repeated Idempotency-Key finds its message for 24 hours"),
        ("MESSAGES", "0", "write at least 1d"),
        ("MESSAGES", "20y", "is not a duration"),
        ("MESSAGES", "4000d", "less than or equal to 315360000"),
        ("BODIES", "-1d", "is not a duration"),
    ],
)
def test_what_cannot_be_kept_for_so_long_or_so_short_is_refused(name: str, value: str, says: str) -> None:
    said = _error({f"MAILCHUTE_RETENTION__{name}": value})
    assert said.startswith(f"MAILCHUTE_RETENTION__{name}: ")
    assert says in said
