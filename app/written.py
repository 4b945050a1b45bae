"""Every setting as it may be written, with its bounds and what it is for; docs/configuration.md is made of this.

The names here are the names outside. What is absent is filled in, and contradictions are found, by `settings.py`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SecretStr

from app.mail.address import Address, mailbox, parse_address
from app.mail.profile import AuthMode, InDoubtPolicy, TlsMode, TlsVersion
from app.mail.schedule import DEFAULT_EXPIRES_AFTER, DEFAULT_SCHEDULE, Rate, parse_duration

DAY = 86400.0  # seconds
DEFAULT_KEEP_BODIES = "7d"
DEFAULT_KEEP_MESSAGES = "90d"


def _duration(value: object) -> object:
    return parse_duration(value) if isinstance(value, str) else value


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


def _written_address(value: object) -> object:
    if not isinstance(value, str):
        raise ValueError("write an address: Name <name@example.org>")  # noqa: TRY004 (pydantic wants it)
    # Typebot writes NEXT_PUBLIC_SMTP_FROM="'Name' <name@example.org>".
    quoted = re.fullmatch(r"\s*'([^']*)'\s*<([^<>]*)>\s*", value)
    return mailbox(quoted[2], quoted[1]) if quoted else parse_address(value)


def _fingerprint(value: object) -> object:
    hexadecimal = re.sub(r"[:\s]|^sha256:", "", value, flags=re.IGNORECASE).lower() if isinstance(value, str) else ""
    if not re.fullmatch(r"[0-9a-f]{64}", hexadecimal):
        raise ValueError("write the certificate's SHA-256 as 64 hexadecimal digits, with or without colons")
    return hexadecimal


def _version(value: object) -> object:
    return str(value) if isinstance(value, float) else value  # min_tls = 1.2, without quotes


def _base_path(value: object) -> object:
    path = "/" + value.strip().strip("/") if isinstance(value, str) else ""
    if path == "/":
        return ""
    if not re.fullmatch(r"(?:/[A-Za-z0-9._~-]+)+", path):
        raise ValueError("write a path, such as /mail")
    return path


Fingerprint = Annotated[str, BeforeValidator(_fingerprint)]
Seconds = Annotated[float, BeforeValidator(_duration), Field(ge=0, le=30 * 86400)]
Keeping = Annotated[float, BeforeValidator(_duration), Field(ge=0, le=3650 * DAY)]
PhaseSeconds = Annotated[float, BeforeValidator(_duration), Field(gt=0, le=3600)]
WrittenAddress = Annotated[Address, BeforeValidator(_written_address)]


def _reverse_path(value: object) -> object:
    """Read MAIL FROM: `local@domain`, or "" for the null sender (RFC 5321 §4.5.5)."""
    if isinstance(value, str) and re.fullmatch(r"\s*<\s*>\s*", value):
        return ""
    address = _written_address(value)
    return address.addr_spec if isinstance(address, Address) else address


ReversePath = Annotated[str, BeforeValidator(_reverse_path)]


def _domain(value: object) -> object:
    if not isinstance(value, str) or "@" in value:
        raise ValueError("write a domain, such as corp.example")
    return parse_address(f"x@{value}").domain


def _listed(value: object) -> object:
    """Read a list that the environment numbers: MAILCHUTE_ROUTES__0__PROFILE."""
    if isinstance(value, dict) and all(key.isdecimal() for key in value):
        return [value[key] for key in sorted(value, key=int)]
    return value


def _names(value: object) -> object:
    """Read a list, also as the environment has it: numbered, or `a, b` in one."""
    if isinstance(value, str):
        return [name for name in (part.strip() for part in value.split(",")) if name]
    return _listed(value)


def _rate(value: object) -> object:
    return Rate.parse(str(value))


Domain = Annotated[str, BeforeValidator(_domain)]


def _said(default: Any, what: str, *, shown: str | None = None, **more: Any) -> Any:
    """Describe a setting; `shown` stands in the documentation where the default is not a value."""
    return Field(default, description=what, json_schema_extra={"shown": shown} if shown else None, **more)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True, hide_input_in_errors=True)


class TimeoutSettings(_Strict):
    """`[profiles.NAME.timeouts]`: seconds a phase may take; None = the default in `mail.profile.Timeouts`."""

    resolve: PhaseSeconds | None = None
    connect: PhaseSeconds | None = None
    tls: PhaseSeconds | None = None
    greeting: PhaseSeconds | None = None
    ehlo: PhaseSeconds | None = None
    starttls: PhaseSeconds | None = None
    auth: PhaseSeconds | None = None
    mail: PhaseSeconds | None = None
    rcpt: PhaseSeconds | None = None
    data: PhaseSeconds | None = None
    block: PhaseSeconds | None = None
    content: PhaseSeconds | None = None
    reset: PhaseSeconds | None = None


class ProfileSettings(_Strict):
    """`[profiles.NAME]`: one relay."""

    host: str | None = _said(None, "the relay's name or address", shown="needed")
    port: Annotated[int, Field(ge=1, le=65535)] | None = _said(None, "", shown='587; 465 with `tls = "implicit"`')
    tls: Annotated[TlsMode, BeforeValidator(_lower)] | None = _said(
        None,
        "`none`, `opportunistic`, `starttls`, `implicit`",
        shown="port 465: `implicit`; with a login, `ca_file` or another setting that needs TLS: `starttls`; else "
        "`opportunistic`",
    )
    auth: Annotated[AuthMode, BeforeValidator(_lower)] | None = _said(
        None, "`auto`, `none`, `required`, `plain`, `login`, `cram-md5`, `scram-sha-1`, `scram-sha-256`", shown="`auto`"
    )
    username: str | None = _said(None, "with `password`: both or neither")
    password: SecretStr | None = _said(None, "")
    password_file: Path | None = _said(None, "a file that holds it; read anew for every connection")
    verify: bool | None = _said(None, "the certificate", shown="`true` for `starttls` and `implicit`")
    ca_file: str | None = _said(None, "PEM bundle", shown="the system's")
    cert_sha256: Fingerprint | None = _said(
        None, "trust this one certificate, whoever signed it, whatever its name and dates; 64 hexadecimal digits"
    )
    server_name: str | None = _said(None, "the name that the certificate must bear, and SNI", shown="`host`")
    client_cert: str | None = _said(None, "PEM file with our certificate")
    client_key: str | None = _said(None, "PEM file with its key, without a passphrase", shown="in `client_cert`")
    min_tls: Annotated[TlsVersion, BeforeValidator(_version)] | None = _said(
        None, "`1.0`, `1.1`, `1.2`, `1.3`", shown="`1.2`"
    )
    tls_security_level: Annotated[int, Field(ge=0, le=5)] | None = _said(
        None,
        "OpenSSL's security level, with all its ciphers: `1` also accepts keys of 1,024 bits, `0` anything",
        shown="Python's ciphers, at this machine's level",
    )
    allow_cleartext_auth: bool = _said(False, "let a password cross in clear")
    from_: WrittenAddress | None = _said(None, "sender where the request names none", alias="from")
    envelope_from: ReversePath | None = _said(
        None, "MAIL FROM; `<>` is the null sender, for mail that must never bounce", shown="the sender's address"
    )
    helo_name: str | None = _said(None, "", shown="this host's FQDN, else its address")
    max_connections: Annotated[int, Field(ge=1, le=1000)] = _said(10, "open at once")
    max_messages_per_connection: Annotated[int, Field(ge=0, le=1_000_000)] | None = _said(
        None, "then it is closed and another opened; 0 = no bound", shown="100; 10 with Exim"
    )
    idle_timeout: Seconds = _said(30.0, "seconds a warm connection is kept; 0 closes after each mail")
    rate: Annotated[Rate, BeforeValidator(_rate)] | None = _said(
        None, "messages at most, spread evenly, such as `30/m`; `s`, `m`, or as a quota `h`, `d`", shown="no bound"
    )
    max_message_bytes: Annotated[int, Field(ge=1024, le=200 * 1024 * 1024)] | None = _said(
        None, "composed; no more than the service's own", shown="the service's"
    )
    fallback: Annotated[list[str], BeforeValidator(_names)] = _said(
        [], "profiles that take over at once where this one's relay cannot be used", shown="none"
    )
    in_doubt: Annotated[InDoubtPolicy, BeforeValidator(_lower)] = _said(
        InDoubtPolicy.HOLD,
        "`hold`: what was handed over without a verdict waits for `resolve`; `retry`: it is sent again, perhaps twice",
        shown="`hold`",
    )
    timeouts: TimeoutSettings = _said(TimeoutSettings(), "seconds a phase may take", shown="see below")


class RouteSettings(_Strict):
    """`[[routes]]`: which profile a message goes through that names none. Where both are there, both must match."""

    profile: str = _said(..., "name of a profile", shown="needed")
    from_domain: Domain | None = _said(None, "the sender's domain")
    to_domain: Domain | None = _said(None, "the domain of every recipient")


class RetrySettings(_Strict):
    """`[retry]`: when to try again, and when to give up."""

    schedule: str = _said(DEFAULT_SCHEDULE, "jitter ±10 %; the last one repeats")
    expires_after: Annotated[Seconds, Field(gt=0)] = _said(
        parse_duration(DEFAULT_EXPIRES_AFTER), "given up then", shown=f"`{DEFAULT_EXPIRES_AFTER}`"
    )


def _not_too_short(value: float) -> float:
    if value < DAY:
        raise ValueError("write at least 1d: a repeated Idempotency-Key finds its message for 24 hours")
    return value


class RetentionSettings(_Strict):
    """`[retention]`: how long what has ended is kept."""

    bodies: Keeping = _said(
        parse_duration(DEFAULT_KEEP_BODIES),
        "content, after the message's end; 0 = dropped at the end. Without it there is no `retry`",
        shown=f"`{DEFAULT_KEEP_BODIES}`",
    )
    messages: Annotated[Keeping, AfterValidator(_not_too_short)] = _said(
        parse_duration(DEFAULT_KEEP_MESSAGES),
        "everything else of it, after its end; at least 1d",
        shown=f"`{DEFAULT_KEEP_MESSAGES}`",
    )


class Written(_Strict):
    """Every setting of the service."""

    listen: str = _said("127.0.0.1:8587", "host:port; port 0 takes a free one")
    database_url: str = _said("var/mailchute.db", "a path, `sqlite:///path` or `sqlite+aiosqlite:///path`")
    role: Literal["all", "api", "worker"] = _said("all", "the only one in this version")
    log: Literal["console", "json"] | None = _said(None, "", shown="`console` at a terminal, else `json`")
    log_level: Annotated[Literal["info", "warning", "error"], BeforeValidator(_lower)] = _said(
        "info", "the least that is logged: `info` (every attempt), `warning` (what needs a look), `error`"
    )
    sandbox: bool = _said(False, "keep all mail here although listening beyond loopback")
    hold: bool = _said(False, "pause every profile at start, as after a restore; `serve --hold` does it once")
    api_key: SecretStr | None = _said(None, "16 characters or more")
    api_key_file: Path | None = _said(None, "a file that holds it")
    base_path: Annotated[str, BeforeValidator(_base_path)] = _said(
        "", "everything is served below it, such as `/mail`, for a proxy that passes the path on as it is"
    )
    docs: bool = _said(True, "`false` closes /docs, /redoc and /openapi.json")
    transcripts: bool = _said(
        True, "keep what was said with the relay, without credentials and content, with each attempt"
    )
    default_profile: str | None = _said(None, "", shown="`default`, or the only one")
    default_from: WrittenAddress | None = _said(None, "the sender where neither request nor profile names one")
    default_wait: Annotated[float, BeforeValidator(_duration), Field(ge=0, le=30)] = _said(
        8.0, "seconds that `POST /send` waits for a verdict, 0 to 30"
    )
    max_message_bytes: Annotated[int, Field(ge=1024, le=200 * 1024 * 1024)] = _said(25 * 1024 * 1024, "composed")
    max_in_flight_bytes: Annotated[int, Field(ge=1024 * 1024)] = _said(
        48 * 1024 * 1024,
        "of request bodies in memory at once; over it a request is 503 before its body is read. Half as much again may "
        "be content on its way to relays. Each byte takes up to five of memory: 48 MiB fit under a limit of 512 MiB",
    )
    max_queued: Annotated[int, Field(ge=0)] = _said(
        100_000, "messages that may wait; over it `POST /send` is 503. 0 = no bound"
    )
    min_free_bytes: Annotated[int, Field(ge=0)] | None = _said(
        None,
        "kept free on the database's disk: under it `POST /send` is 503. 0 = no bound",
        shown="104857600, or 1 % of the disk if that is more",
    )
    drain_delay: Annotated[float, BeforeValidator(_duration), Field(ge=0, le=300)] = _said(
        5.0, "seconds after a SIGTERM in which requests are still served; Ctrl-C does not wait"
    )
    profiles: dict[str, ProfileSettings] = _said({}, "relays by name", shown="see below")
    routes: Annotated[list[RouteSettings], BeforeValidator(_listed)] = _said(
        [], "the first that matches names the profile", shown="see below"
    )
    retry: RetrySettings = _said(RetrySettings(), "when to try again", shown="see below")
    retention: RetentionSettings = _said(RetentionSettings(), "how long what has ended is kept", shown="see below")
