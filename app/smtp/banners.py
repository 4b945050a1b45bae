"""Which server speaks, told by its first line: people mistake one port for another. Pure."""

from __future__ import annotations

import re

# What it is called, and how it begins. A greeting that names SMTP is a relay's, whatever its host is called.
_SERVERS = (
    ("a web server", re.compile(r"HTTP/\d|<!doctype|<html", re.IGNORECASE)),
    ("an SSH server", re.compile(r"SSH-\d")),
    ("an IMAP server", re.compile(r"\* (OK|PREAUTH|BYE)\b", re.IGNORECASE)),
    ("a POP3 server", re.compile(r"\+OK\b|-ERR\b")),
    ("a ManageSieve server", re.compile(r'"IMPLEMENTATION"|OK "?[^"]*sieve', re.IGNORECASE)),
    (
        "an FTP server",
        re.compile(r"\d{3}[ -](?!.*SMTP).*\b(\w*ftpd|FTP serv(er|ice)|FileZilla)\b", re.IGNORECASE),
    ),
    ("a news server", re.compile(r"20[01] (?!.*SMTP).*\b(news|nntp|inn|posting)\b", re.IGNORECASE)),
    ("an LMTP server", re.compile(r"5\d\d[ -].*\bLHLO\b", re.IGNORECASE)),
    ("a VNC server", re.compile(r"RFB \d{3}\.\d{3}")),
    ("a database server", re.compile(r".{0,12}\b(mysql_native_password|caching_sha2_password|MariaDB)\b", re.DOTALL)),
    ("an rsync server", re.compile(r"@RSYNCD:")),
)


def server_of(line: str) -> str:
    """Return what speaks so, such as "a web server"; "" = nothing that is known, or a relay."""
    return next((name for name, begins in _SERVERS if begins.match(line)), "")


def named_in(text: str) -> str:
    """Return the server that a sentence of ours names, "" where it names none."""
    return next((name for name, _ in _SERVERS if name in text), "")
