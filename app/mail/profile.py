"""A profile: a named way to reach one relay, and the rules that make a whole of what was said about it.

Pure. `resolve_profile()` fills in what was left open and refuses what contradicts itself, before anything is
sent. The rules in short: empty credentials mean no AUTH, on every port; a password never crosses in clear
except to loopback or where that was said; `starttls` and `implicit` verify and never downgrade. RFC 8314 §3
(port 465 is implicit TLS), RFC 4954 §4 (no PLAIN without TLS), RFC 7435 (opportunistic security).
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import lru_cache
from typing import TypeAlias

from app.mail.address import Address
from app.mail.errors import ConfigError
from app.mail.schedule import Rate

Value: TypeAlias = str | int | bool | None
HOST_NAME = r"^[A-Za-z0-9._:-]{1,255}$"

SANDBOX_PROFILE = "sandbox"  # the built-in profile that keeps and never sends
SANDBOX_EAUTH = "sandbox-eauth"  # these three fail, as their names say
SANDBOX_DOWN = "sandbox-down"
SANDBOX_TLS_EXPIRED = "sandbox-tls-expired"
SANDBOX_PROFILES = (SANDBOX_PROFILE, SANDBOX_EAUTH, SANDBOX_DOWN, SANDBOX_TLS_EXPIRED)


class TlsMode(StrEnum):
    """How a connection to the relay is protected."""

    NONE = "none"
    OPPORTUNISTIC = "opportunistic"  # STARTTLS where it is offered and works, any certificate; else in clear
    STARTTLS = "starttls"  # required and verified
    IMPLICIT = "implicit"  # TLS from the first byte, verified


class AuthMode(StrEnum):
    """Whether, and how, we log in."""

    AUTO = "auto"  # if and only if user name and password are both there
    NONE = "none"  # never
    REQUIRED = "required"  # always, by the strongest mechanism in common
    PLAIN = "plain"
    LOGIN = "login"
    CRAM_MD5 = "cram-md5"
    SCRAM_SHA_1 = "scram-sha-1"
    SCRAM_SHA_256 = "scram-sha-256"

    @property
    def is_pinned(self) -> bool:
        """Whether it names the one mechanism to use."""
        return self.value.upper() in MECHANISMS

    @property
    def shows_password(self) -> bool:
        """Whether it may send the password itself, readable for whoever listens where there is no TLS."""
        return self.value.upper() not in MECHANISMS_IN_CLEAR


MECHANISMS_IN_CLEAR = ("SCRAM-SHA-256", "SCRAM-SHA-1", "CRAM-MD5")  # these never send the password
MECHANISMS = (*MECHANISMS_IN_CLEAR, "PLAIN", "LOGIN")  # all that Mailchute speaks, strongest first


class TlsVersion(StrEnum):
    """The oldest version of TLS that is good enough."""

    V1_0 = "1.0"
    V1_1 = "1.1"
    V1_2 = "1.2"
    V1_3 = "1.3"


class InDoubtPolicy(StrEnum):
    """What becomes of a message that was handed over and whose verdict was lost (RFC 1047)."""

    HOLD = "hold"  # nothing, until somebody resolves it: never sent twice
    RETRY = "retry"  # the same bytes again, with the same Message-ID: perhaps twice


class Dialect(StrEnum):
    """Where a profile was written down, and so the words in which a hint names a setting."""

    ENVIRONMENT = "environment"  # SMTP_AUTH=none
    NESTED = "nested"  # MAILCHUTE_PROFILES__NAME__AUTH=none
    FILE = "file"  # auth = "none"


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds for each phase; each is an absolute deadline for the reply, not an idle timer.

    RFC 5321 §4.5.3.2 asks for minutes from MAIL on, since a busy relay may need them; the opening phases are
    shorter than there, because a relay for transactional mail that takes minutes to greet is down.
    """

    resolve: float = 10.0
    connect: float = 10.0
    tls: float = 20.0
    greeting: float = 60.0
    ehlo: float = 60.0
    starttls: float = 60.0
    auth: float = 90.0  # relays hold back the answer to a wrong password
    mail: float = 300.0
    rcpt: float = 300.0
    data: float = 120.0
    block: float = 180.0  # for each 64 kB of content that the relay takes
    content: float = 600.0
    reset: float = 10.0  # for RSET, and for the first word on a connection that was kept warm


@dataclass(frozen=True, slots=True)
class Profile:
    """How to reach one relay. Made by `resolve_profile()`; whole and free of contradictions."""

    name: str
    host: str
    port: int
    tls: TlsMode
    auth: AuthMode
    username: str = ""
    password: str = field(default="", repr=False)
    password_file: str | None = None  # where the password came from; read anew for each session
    verify: bool = True  # of starttls and implicit; opportunistic never verifies
    ca_file: str | None = None  # PEM bundle in place of the system's; None = the system's
    cert_sha256: str | None = None  # lower-case hex; this certificate and no other, in place of CA and name
    server_name: str | None = None  # what the certificate must be for, and SNI; None = host
    client_cert: str | None = None  # PEM file with our certificate; None = we show none
    client_key: str | None = None  # PEM file with its key; None = it is in client_cert
    min_tls: TlsVersion = TlsVersion.V1_2
    tls_security_level: int | None = None  # OpenSSL's, 0 to 5; None = Python's ciphers at this machine's level
    allow_cleartext_auth: bool = False
    from_address: Address | None = None  # used where the request names none
    envelope_from: str | None = None  # MAIL FROM; None = the address of From, "" = the null sender
    helo_name: str | None = None  # None = this host's FQDN, or its address literal
    max_connections: int = 10
    max_messages_per_connection: int | None = None  # 0 = no bound; None = by the relay (smtp.session)
    idle_timeout: float = 30.0  # seconds; 0 closes after each transaction
    rate: Rate | None = None  # of messages; None = no bound
    max_message_bytes: int | None = None  # composed; None = what the service takes
    fallback: tuple[str, ...] = ()  # profiles that take over, in this order
    in_doubt: InDoubtPolicy = InDoubtPolicy.HOLD
    timeouts: Timeouts = Timeouts()
    dialect: Dialect = Dialect.FILE
    sandbox: bool = False  # keeps, never sends
    # The setting that names `tls`: "tls" or one of Typebot's switches; "" = it follows from the others.
    tls_set_by: str = field(default="", compare=False, repr=False)

    @property
    def wants_login(self) -> bool:
        """Whether a session of this profile sends AUTH."""
        if self.auth is AuthMode.NONE:
            return False
        return bool(self.username and self.password)

    @property
    def requires_tls(self) -> bool:
        """Whether no mail and no password goes over without TLS, whatever the relay offers."""
        return self.tls in (TlsMode.STARTTLS, TlsMode.IMPLICIT)

    def sends_like(self, other: Profile) -> bool:
        """Whether a message would fare the same through both: they differ at most in how many go at once."""
        return self == replace(other, **{key: getattr(self, key) for key in _OF_FLOW})

    def setting(self, key: str, value: Value = None) -> str:
        """Write a setting in the words in which this profile was set: `SMTP_AUTH=none` or `auth = "none"`."""
        return setting(self.dialect, self.name, key, value)


# What only a relay that must speak TLS can be asked for.
_ONLY_OF_TLS = ("ca_file", "cert_sha256", "server_name", "client_cert", "min_tls", "tls_security_level", "verify")
# What changes no message's fate: how many go at once, and whom to name as sender of those to come.
_OF_FLOW = (
    *("max_connections", "max_messages_per_connection", "idle_timeout", "rate"),
    *("max_message_bytes", "from_address", "envelope_from", "in_doubt", "dialect"),
)
_ENVIRONMENT_NAMES = frozenset(
    {"host", "port", "username", "password", "tls", "auth", "ca_file", "verify", "tls_security_level", "from"}
)


def setting(dialect: Dialect, profile: str, key: str, value: Value = None) -> str:
    """Name a profile's setting in a dialect; with `value` as a line that can be pasted."""
    if dialect is Dialect.FILE:
        if value is None:
            return key
        shown = f'"{value}"' if isinstance(value, str) else str(value).lower()
        return f"{key} = {shown}"
    if key in _ENVIRONMENT_NAMES and dialect is Dialect.ENVIRONMENT:
        name = f"SMTP_{key.upper()}"
    else:
        name = f"MAILCHUTE_PROFILES__{profile.upper()}__{key.upper().replace('.', '__')}"
    return name if value is None else f"{name}={str(value).lower() if isinstance(value, bool) else value}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileFacts:
    """What was said about a profile, before anything is filled in. None and "" mean: not said."""

    name: str
    dialect: Dialect
    host: str | None = None
    port: int | None = None
    tls: TlsMode | None = None
    tls_set_by: str = ""
    auth: AuthMode | None = None
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    password_file: str | None = None
    verify: bool | None = None
    ca_file: str | None = None
    cert_sha256: str | None = None
    server_name: str | None = None
    client_cert: str | None = None
    client_key: str | None = None
    min_tls: TlsVersion | None = None
    tls_security_level: int | None = None
    allow_cleartext_auth: bool = False
    from_address: Address | None = None
    envelope_from: str | None = None
    helo_name: str | None = None
    max_connections: int = 10
    max_messages_per_connection: int | None = None
    idle_timeout: float = 30.0
    rate: Rate | None = None
    max_message_bytes: int | None = None
    fallback: tuple[str, ...] = ()
    in_doubt: InDoubtPolicy = InDoubtPolicy.HOLD
    timeouts: Timeouts = Timeouts()
    sandbox: bool = False


def stand_in(name: str) -> Profile:
    """Give a profile that reaches nothing, for speaking about one that is in the settings no more."""
    return Profile(name=name, host="", port=0, tls=TlsMode.NONE, auth=AuthMode.NONE)


def resolve_profile(said: ProfileFacts) -> tuple[Profile, list[str]]:
    """Make a whole profile of what was said; give it with its warnings.

    Raises:
        ConfigError: a contradiction, or something that could only ever fail; the text names the settings and
            the cure in the dialect of `said`.
    """
    if not said.host:
        raise ConfigError(f"profile {said.name}: {_name(said, 'host')} is missing; give the relay's host name")
    auth = said.auth or AuthMode.AUTO
    warnings: list[str] = []
    if auth is AuthMode.NONE and (said.username or said.password):
        warnings.append(
            f"profile {said.name}: {_name(said, 'auth', 'none')} is set, so the user name and password beside it "
            "are ignored"
        )
    logs_in = _logs_in(said, auth)
    port, tls = _port_and_tls(said, logs_in=logs_in)
    profile = Profile(
        name=said.name,
        host=said.host,
        port=port,
        tls=tls,
        tls_set_by=said.tls_set_by or ("tls" if said.tls is not None else ""),
        auth=auth,
        username=(said.username or "") if logs_in else "",
        password=(said.password or "") if logs_in else "",
        password_file=said.password_file if logs_in else None,
        verify=said.verify is not False,
        ca_file=said.ca_file or None,
        cert_sha256=said.cert_sha256 or None,
        server_name=said.server_name or None,
        client_cert=said.client_cert or None,
        client_key=said.client_key or None,
        min_tls=said.min_tls or TlsVersion.V1_2,
        tls_security_level=said.tls_security_level,
        allow_cleartext_auth=said.allow_cleartext_auth,
        from_address=said.from_address,
        envelope_from=said.envelope_from,
        helo_name=said.helo_name,
        max_connections=said.max_connections,
        max_messages_per_connection=said.max_messages_per_connection,
        idle_timeout=said.idle_timeout,
        rate=said.rate,
        max_message_bytes=said.max_message_bytes,
        fallback=said.fallback,
        in_doubt=said.in_doubt,
        timeouts=said.timeouts,
        dialect=said.dialect,
        sandbox=said.sandbox,
    )
    _refuse_contradictions(said, profile)
    profile, more = _without_what_has_no_effect(said, profile)
    warnings.extend(more)
    if profile.requires_tls and not profile.verify:
        warnings.append(
            f"profile {said.name}: the relay's certificate is not verified ({_name(said, 'verify', False)})"
        )
    warnings += _of_weak_tls(said, profile)
    return profile, warnings


def is_host_name(text: str) -> bool:
    """Whether it can be written where a setting wants a host name."""
    return re.fullmatch(HOST_NAME, text) is not None


def _of_weak_tls(said: ProfileFacts, profile: Profile) -> list[str]:
    warnings, level = [], profile.tls_security_level
    if profile.min_tls in (TlsVersion.V1_0, TlsVersion.V1_1):
        too_high = "" if level == 0 else f" (OpenSSL 3 does it only with {_name(said, 'tls_security_level', 0)})"
        warnings.append(
            f"profile {said.name}: TLS {profile.min_tls} is broken (RFC 8996){too_high}; have the relay upgraded, then "
            f"remove {_name(said, 'min_tls')}"
        )
    if level is not None and level < 2:
        warnings.append(
            f"profile {said.name}: {_name(said, 'tls_security_level', level)} accepts short keys and old ciphers; have "
            "the relay upgraded, then remove it"
        )
    return warnings


@lru_cache(maxsize=64)
def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine by its very spelling."""
    if host.lower() in ("localhost", "localhost."):
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _name(said: ProfileFacts, key: str, value: Value = None) -> str:
    return setting(said.dialect, said.name, key, value)


def _logs_in(said: ProfileFacts, auth: AuthMode) -> bool:
    if auth is AuthMode.NONE:
        return False
    missing = [key for key, value in (("username", said.username), ("password", said.password)) if not value]
    if len(missing) == 1:
        raise ConfigError(
            f"profile {said.name}: {_name(said, missing[0])} is missing; give both a user name and a password, or "
            "neither (then no AUTH is sent)"
        )
    if missing and auth is not AuthMode.AUTO:
        raise ConfigError(
            f"profile {said.name}: {_name(said, 'auth', auth.value)} needs {_name(said, 'username')} and "
            f"{_name(said, 'password')}; set them, or set {_name(said, 'auth', 'none')}"
        )
    return not missing


def _port_and_tls(said: ProfileFacts, *, logs_in: bool) -> tuple[int, TlsMode]:
    tls = said.tls
    if said.port is not None:
        port = said.port
    elif tls is TlsMode.IMPLICIT:
        port = 465
    else:
        port = 25 if said.dialect is Dialect.ENVIRONMENT else 587
    if tls is not None:
        return port, tls
    if port == 465:
        return port, TlsMode.IMPLICIT
    return port, TlsMode.STARTTLS if logs_in or _asks_for_tls(said) else TlsMode.OPPORTUNISTIC


def _asks_for_tls(said: ProfileFacts) -> bool:
    """Whether something is set that only required TLS can honour: who names a CA wants it to vouch for the relay."""
    return any(_is_written(getattr(said, key)) for key in _ONLY_OF_TLS)


def _refuse_contradictions(said: ProfileFacts, profile: Profile) -> None:
    where = f"profile {said.name}: "
    if profile.wants_login and profile.tls is TlsMode.OPPORTUNISTIC:
        raise ConfigError(
            f"{where}{_name(said, 'tls', 'opportunistic')} could send the password in clear; "
            f"set {_name(said, 'tls', 'starttls')}, or remove the credentials"
        )
    in_clear = profile.wants_login and profile.tls is TlsMode.NONE and profile.auth.shows_password
    if in_clear and not (profile.allow_cleartext_auth or is_loopback(profile.host)):
        raise ConfigError(
            f"{where}{_name(said, 'tls', 'none')} would send the password in clear; set "
            f"{_name(said, 'tls', 'starttls')}, or say that you want that: "
            f"{_name(said, 'allow_cleartext_auth', True)}"
        )
    if said.cert_sha256 and said.verify is False and profile.requires_tls:
        raise ConfigError(
            f"{where}{_name(said, 'cert_sha256')} and {_name(said, 'verify', False)} contradict each other; remove one"
        )
    if said.client_key and not said.client_cert:
        raise ConfigError(
            f"{where}{_name(said, 'client_key')} is the key of no certificate; set {_name(said, 'client_cert')} too"
        )


def _without_what_has_no_effect(said: ProfileFacts, profile: Profile) -> tuple[Profile, list[str]]:
    """Drop settings that another one leaves without effect, with a warning for each.

    A hint may have advised that other one, and must not lead to settings that are refused.
    """
    if not profile.requires_tls:
        mode = f"{_name(said, 'tls', profile.tls.value)}, which asks for no valid certificate"
        idle = {key: mode for key in _ONLY_OF_TLS if _is_written(getattr(said, key))}
    elif said.verify is False and said.ca_file:
        idle = {"ca_file": _name(said, "verify", False)}
    elif said.cert_sha256 and said.ca_file:
        idle = {"ca_file": f"{_name(said, 'cert_sha256')}, which trusts one certificate, whoever signed it"}
    else:
        return profile, []
    warnings = [
        f"profile {said.name}: {_name(said, key)} has no effect beside {by}; remove it" for key, by in idle.items()
    ]
    if profile.requires_tls:
        return replace(profile, ca_file=None), warnings
    plain = replace(profile, ca_file=None, cert_sha256=None, server_name=None, min_tls=TlsVersion.V1_2)
    return replace(plain, client_cert=None, client_key=None, tls_security_level=None), warnings


def _is_written(value: object) -> bool:
    """Whether a setting asks for something; `verify = false` does not, the security level 0 does."""
    return value is not None and value is not False and value != ""
