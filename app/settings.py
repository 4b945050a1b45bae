"""One `Settings`: what was written (`written.py`, from `sources.py`), validated, made whole and free of contradictions.

Read once, by main and cli, at start. An unknown key is an error and not a shrug, because a misspelt security setting
that is ignored is a hole. This room must not know what anything is for: it hands finished values to the composition
root.
"""

from __future__ import annotations

import re
import secrets
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import BaseModel, SecretStr, ValidationError

from app.credentials import WrittenSecret, key_of, password_of, username_of
from app.mail.address import Address
from app.mail.errors import ConfigError
from app.mail.host import HostSlip, host_of
from app.mail.profile import (
    SANDBOX_PROFILE,
    SANDBOX_PROFILES,
    Dialect,
    Profile,
    ProfileFacts,
    Timeouts,
    is_loopback,
    resolve_profile,
    setting,
)
from app.mail.routing import Route
from app.mail.schedule import Schedule
from app.places import database_path, helo_setting, host_setting
from app.sources import DEFAULT_FILES, PREFIX, TLS_SWITCHES, Sources, read
from app.written import ProfileSettings, RetentionSettings, RetrySettings, RouteSettings, TimeoutSettings, Written

_PROFILE_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}\Z")


class LogFormat(StrEnum):
    CONSOLE = "console"
    JSON = "json"


@dataclass(frozen=True, slots=True)
class Listen:
    """Where HTTP is served. Port 0 takes a free one."""

    host: str
    port: int

    @property
    def is_loopback(self) -> bool:
        return is_loopback(self.host)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the service runs by. `profiles` is empty only in the sandbox, whose profiles need ports first."""

    listen: Listen
    database: Path
    log: LogFormat | None  # None = console at a terminal, else JSON
    log_level: str  # info, warning or error
    sandbox: bool
    sandbox_was_chosen: bool  # by MAILCHUTE_SANDBOX=true; else it is one because no relay is configured
    hold: bool  # pause every profile at start
    profiles: Mapping[str, Profile]
    default_profile: str
    routes: tuple[Route, ...]
    default_from: Address | None
    default_wait: float  # seconds
    max_message_bytes: int
    max_in_flight_bytes: int
    max_queued: int  # messages; 0 = no bound
    min_free_bytes: int | None  # None = by the size of the disk; 0 = no bound
    drain_delay: float  # seconds
    schedule: Schedule
    expires_after: float  # seconds
    keep_bodies: float  # seconds after a message's end
    keep_messages: float  # seconds after its end
    base_path: str  # empty, or such as /mail
    docs: bool
    transcripts: bool  # keep the conversation with the relay with each attempt
    api_key: str | None = field(default=None, repr=False)
    warnings: tuple[str, ...] = ()


def database_of(environ: Mapping[str, str], *, files: tuple[Path, ...] = DEFAULT_FILES) -> Path:
    """Return where the database is by these settings, whatever is wrong with the others.

    Raises:
        ConfigError: the file of settings cannot be read, or the database's location is no good.
    """
    sources = read(environ, files=files)
    url = sources.tree.get("database_url") or Written.model_fields["database_url"].default
    return _followed(database_path(str(url), sources.name("database_url")))


def load(environ: Mapping[str, str], *, files: tuple[Path, ...] = DEFAULT_FILES) -> Settings:
    """Read all sources and make one whole of them.

    `files` are tried in order where MAILCHUTE_CONFIG names none; the first that exists is read.

    Raises:
        ConfigError: an unknown key, a value that cannot be, or a contradiction; every one found is in the text,
            a line each, and none holds a secret.
    """
    try:
        sources = read(environ, files=files)
        try:
            written = Written.model_validate(sources.tree)
        except ValidationError as error:
            raise ConfigError("\n".join(_fault(e, sources) for e in error.errors())) from None
        return _whole(written, sources)
    except ConfigError as error:
        raise ConfigError(_LOGIN.sub("…@", str(error))) from None


# What stands before the host of a URL, whichever setting it was put into. A text that holds one is never repeated.
_LOGIN = re.compile(r"[^\s'\"/=]+:[^\s'\"]*@")


_IN_WORDS = {
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "int_parsing": "a whole number",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_parsing": "a number",
    "float_type": "a number",
}
_ALSO_CALLED: dict[tuple[str, ...], list[str]] = {(name,): ["listen"] for name in ("port", "host", "bind", "address")}


def _fault(error: Any, sources: Sources) -> str:
    """Say in one line which setting is wrong, how, and what would be right."""
    at = tuple(str(part) for part in error["loc"])
    where = sources.name(*at)
    if error["type"] == "extra_forbidden":
        near = _ALSO_CALLED.get(at) or get_close_matches(at[-1], _known_keys(at[:-1]), n=1, cutoff=0.6)
        spelt = at[-1].upper() if where.startswith(PREFIX) else at[-1]
        cure = f"; do you mean {near[0].upper() if where.startswith(PREFIX) else near[0]}?" if near else ""
        return f"{where}: {spelt} is not a setting{cure}"
    if error["type"] == "missing":
        return f"{where}: {at[-1]} is missing"
    if error["type"] in _IN_WORDS:
        return f"{where}: write {_IN_WORDS[error['type']]}"  # the value may be a password, under the wrong name
    return f"{where}: {error['msg'].removeprefix('Value error, ')}"


def _known_keys(at: tuple[str, ...]) -> list[str]:
    model: type[BaseModel] = Written
    if at[:1] == ("profiles",) and len(at) >= 2:
        model = TimeoutSettings if at[2:] == ("timeouts",) else ProfileSettings
    elif at[:1] == ("routes",):
        model = RouteSettings
    elif at == ("retry",):
        model = RetrySettings
    elif at == ("retention",):
        model = RetentionSettings
    return [field.alias or name for name, field in model.model_fields.items()]


def _whole(written: Written, sources: Sources) -> Settings:
    name = sources.name
    listen = _parse_listen(written.listen, name("listen"))
    database = _followed(database_path(written.database_url, name("database_url")))
    if written.role != "all":
        raise ConfigError(
            f"{name('role')}={written.role} needs PostgreSQL, which this version does not have: set it to all"
        )
    warnings = list(sources.warnings)
    api_key = key_of(_secret(written.api_key, written.api_key_file, sources, "api_key"), warnings)
    if not listen.is_loopback and api_key is None:
        where = f"{name('listen')}={written.listen.strip()}"
        raise ConfigError(
            f"{where} is reachable from other machines, so a key is needed. Set one:\n"
            f"export {PREFIX}API_KEY={secrets.token_urlsafe(24)}"
        )
    profiles: dict[str, Profile] = {}
    for profile, said in written.profiles.items():
        profiles[profile], more = resolve_profile(_facts(profile, said, sources, warnings))
        warnings.extend(more)
        _check_fallback(profile, said, written, sources)
    try:
        schedule = Schedule.parse(written.retry.schedule)
    except ValueError as error:
        raise ConfigError(f"{name('retry', 'schedule')}: {error}") from error
    return Settings(
        listen=listen,
        database=database,
        log=LogFormat(written.log) if written.log else None,
        log_level=written.log_level,
        sandbox=_is_sandbox(written, listen),
        sandbox_was_chosen=written.sandbox,
        hold=written.hold,
        profiles=profiles,
        default_profile=_default_profile(written, sources),
        routes=tuple(_route(at, said, written, sources) for at, said in enumerate(written.routes)),
        default_from=written.default_from,
        default_wait=written.default_wait,
        max_message_bytes=written.max_message_bytes,
        max_in_flight_bytes=written.max_in_flight_bytes,
        max_queued=written.max_queued,
        min_free_bytes=written.min_free_bytes,
        drain_delay=written.drain_delay,
        schedule=schedule,
        expires_after=written.retry.expires_after,
        keep_bodies=written.retention.bodies,
        keep_messages=written.retention.messages,
        base_path=written.base_path,
        docs=written.docs,
        transcripts=written.transcripts,
        api_key=api_key,
        warnings=tuple(warnings),
    )


def _dialect(profile: str, sources: Sources) -> Dialect:
    if profile == "default" and sources.by_smtp_names:
        return Dialect.ENVIRONMENT
    return Dialect.FILE if sources.is_in_file("profiles", profile) else Dialect.NESTED


def _facts(name: str, said: ProfileSettings, sources: Sources, warnings: list[str]) -> ProfileFacts:
    if not _PROFILE_NAME.match(name):
        raise ConfigError(
            f"profiles.{name}: a profile's name is lower-case letters, digits, - and _, at most 63 of them"
        )
    if name in SANDBOX_PROFILES:
        raise ConfigError(f"profiles.{name}: this name is taken by the built-in sandbox; use another")
    where = partial(sources.name, "profiles", name)
    dialect = _dialect(name, sources)
    right = partial(setting, dialect, name)
    return ProfileFacts(
        name=name,
        dialect=dialect,
        host=host_setting(said.host, where("host"), right, "host"),
        port=said.port,
        tls=said.tls,
        tls_set_by=_tls_set_by(name, said, sources),
        auth=said.auth,
        username=username_of(said.username, where("username"), warnings),
        password=password_of(
            _secret(said.password, said.password_file, sources, "profiles", name, "password"), warnings
        ),
        password_file=str(said.password_file) if said.password_file else None,
        verify=said.verify,
        ca_file=_readable(said.ca_file, where("ca_file")),
        cert_sha256=said.cert_sha256,
        server_name=host_setting(said.server_name, where("server_name"), right, "server_name"),
        client_cert=_readable(said.client_cert, where("client_cert")),
        client_key=_key(name, said, sources),
        min_tls=said.min_tls,
        tls_security_level=said.tls_security_level,
        allow_cleartext_auth=said.allow_cleartext_auth,
        from_address=said.from_,
        envelope_from=said.envelope_from,
        helo_name=helo_setting(said.helo_name, where("helo_name"), right),
        max_connections=said.max_connections,
        max_messages_per_connection=said.max_messages_per_connection,
        idle_timeout=said.idle_timeout,
        rate=said.rate,
        max_message_bytes=said.max_message_bytes,
        fallback=tuple(said.fallback),
        in_doubt=said.in_doubt,
        timeouts=Timeouts(**said.timeouts.model_dump(exclude_none=True)),
    )


def _tls_set_by(name: str, said: ProfileSettings, sources: Sources) -> str:
    origin = sources.origin.get(("profiles", name, "tls"), "")
    return origin if origin in TLS_SWITCHES else "tls" if said.tls is not None else ""


def _check_fallback(profile: str, said: ProfileSettings, written: Written, sources: Sources) -> None:
    where = sources.name("profiles", profile, "fallback")
    for at, name in enumerate(said.fallback):
        _known(name, list(written.profiles), where)
        if name == profile:
            raise ConfigError(f"{where}: {name} cannot take over from itself; name another profile")
        if name in said.fallback[:at]:
            raise ConfigError(f"{where}: {name} is there twice; remove one")


def _secret(value: SecretStr | None, file: Path | None, sources: Sources, *path: str) -> WrittenSecret:
    in_file = sources.name(*path[:-1], f"{path[-1]}_file")
    return WrittenSecret(sources.name(*path), in_file, value.get_secret_value() if value else None, file)


def _readable(path: str | None, name: str) -> str | None:
    if not path:
        return None
    try:
        text = Path(path).read_text("utf-8")
    except (OSError, ValueError) as error:
        raise ConfigError(f"{name}: {_shown(path)} cannot be read: {_why(error)}") from None
    if "-----BEGIN CERTIFICATE-----" not in text:
        raise ConfigError(f"{name}: {_shown(path)} holds no certificate in PEM form (-----BEGIN CERTIFICATE-----)")
    return path


def _shown(path: str) -> str:
    """Show a path; a key that was pasted in its place is not shown."""
    return path if path.isprintable() and "-----" not in path else "this is no path: what it names"


def _why(error: OSError | ValueError) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or "it is not UTF-8 text"


def _key(profile: str, said: ProfileSettings, sources: Sources) -> str | None:
    certificate, key = said.client_cert, said.client_key
    if not certificate:
        return key or None
    try:
        # An encrypted key would ask at the terminal, if there is one, at every connection.
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(certificate, key or None, password="")
    except (OSError, ValueError) as error:  # an SSLError is an OSError
        name = sources.name("profiles", profile, "client_key" if key else "client_cert")
        held = f"{_shown(key or certificate)} holds no key that fits the certificate and has no passphrase"
        held += f" ({error.strerror})" if isinstance(error, OSError) and error.strerror else ""
        cure = "" if key else f"; name its file with {setting(_dialect(profile, sources), profile, 'client_key')}"
        raise ConfigError(f"{name}: {held}{cure}") from None
    return key or None


def _parse_listen(text: str, name: str) -> Listen:
    host, colon, port = text.strip().rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    try:
        if not colon or not port.isdecimal() or int(port[:6]) > 65535 or (":" in host and bare == host):
            raise HostSlip("is not host:port")
        return Listen(host_of(bare) or "0.0.0.0", int(port))  # noqa: S104 (":8587" says so)
    except HostSlip:
        raise ConfigError(f"{name} is not an address; write host:port, such as 127.0.0.1:8587 or [::1]:8587") from None


def _followed(path: Path) -> Path:
    """Follow a symbolic link: the lock, the log and the socket lie beside the file itself, whoever names it how."""
    try:
        return path.resolve() if path.is_symlink() else path
    except (OSError, RuntimeError):  # a loop, or a folder that is closed to us: opening it tells
        return path


def _is_sandbox(written: Written, listen: Listen) -> bool:
    if written.profiles:
        if written.sandbox:
            raise ConfigError(f"{PREFIX}SANDBOX=true and a relay are both set: keep one")
        return False
    if not written.sandbox and not listen.is_loopback:
        raise ConfigError(
            "no relay is configured: set SMTP_HOST to the relay's host name, or set MAILCHUTE_SANDBOX=true to keep "
            "all mail here"
        )
    return True


def _default_profile(written: Written, sources: Sources) -> str:
    names = list(written.profiles)
    if written.default_profile:
        return _known(written.default_profile, names, sources.name("default_profile"))
    if not names:
        return SANDBOX_PROFILE
    if sources.by_smtp_names or "default" in names:
        return "default"
    if len(names) == 1:
        return names[0]
    raise ConfigError(f"default_profile is not set, and there are several profiles: name one of {', '.join(names)}")


def _route(at: int, said: RouteSettings, written: Written, sources: Sources) -> Route:
    where = ("routes", str(at))
    if said.from_domain is None and said.to_domain is None:
        raise ConfigError(f"{sources.name(*where)}: it matches nothing; give it from_domain, to_domain or both")
    profile = _known(said.profile, list(written.profiles), sources.name(*where, "profile"))
    return Route(profile, from_domain=said.from_domain, to_domain=said.to_domain)


def _known(profile: str, names: list[str], where: str) -> str:
    if profile in names:
        return profile
    near = get_close_matches(profile, names, n=1)
    cure = f"do you mean {near[0]}?" if near else f"there are: {', '.join(names) or 'none'}"
    raise ConfigError(f"{where}: there is no profile {profile}; {cure}")
