"""Settings that name a place: a relay's host, what EHLO says, the database.

A slip is told with the right spelling, and no text repeats a user name or a password.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from app.mail.errors import ConfigError
from app.mail.host import HostSlip, host_of
from app.mail.profile import TlsMode, Value

# Of these the // was forgotten, or the scheme.
_OTHER_DATABASE = re.compile(r"(?:postgres\w*|mysql\w*|mariadb|mssql|oracle)(?:\+\w+)?:|.*:.*@")
_LITERAL = re.compile(r"\[(?:IPv6:)?[0-9A-Fa-f:.]{2,45}\]\Z")


# Writes a setting of a profile as its writer does: `SMTP_PORT=587` or `port = 587`.
Spelling: TypeAlias = Callable[[str, Value], str]


def host_setting(text: str | None, where: str, right: Spelling, key: str) -> str | None:
    """Read one host name or address; None where none is written.

    Raises:
        ConfigError: it is something else; the text has the right spelling.
    """
    try:
        return host_of(text or "") or None
    except HostSlip as slip:
        if not slip.host:
            cure = f"write one name or address, such as {right(key, 'smtp.example.org')}"
        else:
            lines = [right(key, slip.host)]
            if key == "host" and slip.port:
                lines.append(right("port", slip.port))
            if key == "host" and slip.has_login:
                lines += [right("username", "…"), right("password", "…")]
            if key == "host" and slip.is_implicit:
                lines.append(right("tls", TlsMode.IMPLICIT.value))
            cure = f"write {', '.join(lines)}"
        raise ConfigError(f"{where} {slip.what}; {cure}") from None


def helo_setting(text: str | None, where: str, right: Spelling) -> str | None:
    """Read what EHLO says: a host name, or an address literal in its brackets (RFC 5321 §4.1.3).

    Raises:
        ConfigError: it is something else.
    """
    if text and _LITERAL.match(text.strip()):
        return text.strip()
    return host_setting(text, where, right, "helo_name")


def database_path(url: str, name: str) -> Path:
    """Read the database's path, or its URL.

    Raises:
        ConfigError: another database, or none; the value is not repeated, since a URL may hold a password.
    """
    scheme, found, rest = url.partition("://")
    if "\0" in url:
        raise ConfigError(f"{name} holds a NUL, which no path has; name a file, such as var/mailchute.db")
    if not found and url != ":memory:" and not _OTHER_DATABASE.match(url):
        return Path(url)
    if scheme in ("sqlite", "sqlite+aiosqlite", ":memory:"):
        path = rest.removeprefix("/")
        if not path or path == ":memory:":
            raise ConfigError(f"{name} would lose all mail at the end; name a file, such as var/mailchute.db")
        return Path(path)
    if scheme.startswith("postgres"):
        raise ConfigError(
            f"{name}: PostgreSQL comes with a later version; name a SQLite file, such as var/mailchute.db"
        )
    known = re.match(r"[A-Za-z0-9+.-]{1,20}", scheme)
    raise ConfigError(
        f"{name}: {known[0] if known else ''}:// is not known; name a SQLite file, such as var/mailchute.db"
    )
