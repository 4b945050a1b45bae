"""Keys, user names and passwords as they were written, or as their files hold them.

What is never meant is removed, or refused before a login fails for it. No text in here repeats a value.

A line break comes of `echo` into a Kubernetes secret, quotes of docker's --env-file, an invisible character of a copy
from a web page. Blanks may belong to a password, and to nothing else.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from pathlib import Path

from app.mail.errors import ConfigError
from app.mail.host import invisible

SHORTEST_KEY = 16  # characters


@dataclass(frozen=True, slots=True)
class WrittenSecret:
    """A secret that stands in a setting or in a file, and the names of both settings as their writer knows them."""

    name: str
    file_name: str
    value: str | None = field(default=None, repr=False)
    file: Path | None = None

    @property
    def where(self) -> str:
        """The setting that counts."""
        return self.name if self.file is None else self.file_name

    def read(self) -> str | None:
        """Return the text as it stands; None where nothing was written. The last line break of a file is none of it.

        Raises:
            ConfigError: setting and file are both there, or the file cannot be read.
        """
        if self.file is None:
            return self.value or None
        if self.value is not None:
            raise ConfigError(f"{self.name} and {self.file_name} are both set: keep one")
        try:
            text = self.file.read_text("utf-8").rstrip("\r\n")
        except (OSError, ValueError) as error:
            why = (error.strerror if isinstance(error, OSError) else None) or "it is not UTF-8 text"
            raise ConfigError(f"{self.file_name}: the secret's file{_shown(self.file)} cannot be read: {why}") from None
        if not text:
            raise ConfigError(
                f"{self.file_name}: the secret's file{_shown(self.file)} is empty; write the secret into it"
            )
        return text


def _shown(path: Path) -> str:
    """Show a path that looks like one; another may be the secret itself, under the wrong name."""
    return f" {path}" if str(path).startswith(("/", "./", "../")) else ""


def key_of(written: WrittenSecret, warnings: list[str]) -> str | None:
    """Return the API key without what surrounds it; None where none is set.

    Raises:
        ConfigError: it is blank, in quotes, too short, or holds what nobody sees.
    """
    text = written.read()
    if text is None:
        return None
    key = text.strip()
    if not key:
        raise ConfigError(f"{written.where} holds only blanks; {_such_as()}")
    if key != text:
        warnings.append(f"{written.where}: the blanks or line breaks around the key are not part of it: removed")
    if strange := invisible(key):
        raise ConfigError(f"{written.where} holds {strange}, which no caller sends; remove it")
    if _is_quoted(key):
        raise ConfigError(
            f"{written.where} is in quotes, which are part of the value, and no caller sends; remove them"
        )
    if len(key) < SHORTEST_KEY:
        raise ConfigError(f"{written.where} has {len(key)} characters; {_such_as()}")
    return key


def _such_as() -> str:
    return f"use at least {SHORTEST_KEY}, such as {secrets.token_urlsafe(24)}"


def username_of(text: str | None, where: str, warnings: list[str]) -> str | None:
    """Return a user name without a line break at its end; None where none is set.

    Raises:
        ConfigError: it is in quotes, or holds what nobody sees.
    """
    name = _without_line_break(text, where, warnings)
    if name and _is_quoted(name):
        raise ConfigError(f"{where} is in quotes, which are part of the value; write it without them")
    return name


def password_of(written: WrittenSecret, warnings: list[str]) -> str | None:
    """Return a password without a line break at its end; None where none is set.

    Raises:
        ConfigError: it cannot be read, or holds what nobody sees.
    """
    password = _without_line_break(written.read(), written.where, warnings)
    if password and _is_quoted(password):
        warnings.append(f"{written.where} is in quotes, which are taken as part of it; remove them if they are not")
    return password


def _without_line_break(text: str | None, where: str, warnings: list[str]) -> str | None:
    if not text:
        return None
    bare = text.rstrip("\r\n")
    if bare != text:
        warnings.append(f"{where}: the line break at its end is not part of it: removed")
    if not bare.strip():
        raise ConfigError(f"{where} holds only blanks; set it, or remove it")
    if strange := invisible(bare):
        raise ConfigError(f"{where} holds {strange}; remove it")
    return bare


def _is_quoted(text: str) -> bool:
    return len(text) > 1 and text[0] == text[-1] and text[0] in "\"'"
