"""Where settings are written: the environment, Typebot's names for one relay, and `mailchute.toml`.

Merges them into one tree and remembers for every value where it came from, so that a fault can be told in the name
that its writer used. Knows the names of Typebot and Kubernetes, and nothing of what a setting means.

Order: the environment (`MAILCHUTE_…`, nested by `__`) beats the `SMTP_…` names (the profile `default`), which beat the
file. Empty is not set.
"""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from app.mail.errors import ConfigError

PREFIX = "MAILCHUTE_"
DEFAULT_FILES = (Path("mailchute.toml"), Path("/etc/mailchute/mailchute.toml"))
_KUBERNETES = re.compile(r"_SERVICE_HOST\Z|_SERVICE_PORT(_|\Z)|_PORT_\d+_")


@dataclass(slots=True)
class Sources:
    """All that was written. `origin` names the place of every path in `tree`, as its writer would."""

    tree: dict[str, Any] = field(default_factory=dict)
    origin: dict[tuple[str, ...], str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    by_smtp_names: bool = False  # the profile `default` was set by SMTP_… names

    def name(self, *path: str) -> str:
        """Name a setting as its writer did: the place nearest to `path`; as the file would, where nobody wrote it."""
        at_or_below = (origin for at, origin in self.origin.items() if at[: len(path)] == path)
        above = (self.origin[path[:n]] for n in range(len(path) - 1, 0, -1) if path[:n] in self.origin)
        return self.origin.get(path) or next(at_or_below, None) or next(above, None) or ".".join(path)

    def is_in_file(self, *path: str) -> bool:
        """Whether the file says anything at or below `path`."""
        named = (origin for at, origin in self.origin.items() if at[: len(path)] == path)
        return any(not origin.startswith((PREFIX, "SMTP_")) for origin in named)


def read(environ: Mapping[str, str], *, files: tuple[Path, ...] = DEFAULT_FILES) -> Sources:
    """Read all sources. `files` are tried in order where MAILCHUTE_CONFIG names none; the first that exists is read.

    Raises:
        ConfigError: a file that cannot be read, or names that contradict each other.
    """
    sources = Sources()
    sources.tree = _from_file(environ, files, sources.origin)
    relay = _from_smtp_names(environ, sources.origin, sources.warnings)
    if relay:
        sources.by_smtp_names = True
        _merge(sources.tree, {"profiles": {"default": relay}})
    _merge(sources.tree, _from_environment(environ, sources.origin))
    return sources


def _from_file(
    environ: Mapping[str, str], files: tuple[Path, ...], origin: dict[tuple[str, ...], str]
) -> dict[str, Any]:
    named = _cleaned(f"{PREFIX}CONFIG", environ.get(f"{PREFIX}CONFIG", ""))
    path = Path(named) if named else next((file for file in files if file.is_file()), None)
    if path is None:
        return {}
    try:
        text = path.read_text("utf-8")
        tree = tomllib.loads(text)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    lines = _lines(text)
    for at in _paths(tree):
        line = f":{lines[at]}" if at in lines else ""
        origin[at] = f"{path}{line}: {'.'.join(at)}"
    return tree


def _paths(tree: Mapping[str, Any] | list[Any], above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for key, value in tree.items() if isinstance(tree, Mapping) else enumerate(tree):
        yield (*above, str(key))
        if isinstance(value, dict | list):
            yield from _paths(value, (*above, str(key)))


def _lines(text: str) -> dict[tuple[str, ...], int]:
    """Say on which line of a valid TOML document each key begins."""
    lines: dict[tuple[str, ...], int] = {}
    tables: Counter[tuple[str, ...]] = Counter()
    table: tuple[str, ...] = ()
    statement, begins = "", 0
    for number, line in enumerate(text.splitlines(keepends=True), 1):
        begins = begins or number
        statement += line
        try:
            said = tomllib.loads(statement)
        except tomllib.TOMLDecodeError:
            continue  # a value of several lines
        *_, at = [(), *_paths(said)]
        if statement.lstrip().startswith("["):
            table = at
            if statement.lstrip().startswith("[["):
                table = (*at[:-1], str(tables[at[:-1]]))
                tables[at[:-1]] += 1
            lines.setdefault(table, begins)
        else:
            lines |= {(*table, *at): begins for at in _paths(said)}
        statement, begins = "", 0
    return lines


def _from_environment(environ: Mapping[str, str], origin: dict[tuple[str, ...], str]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name, written in environ.items():
        if not name.startswith(PREFIX) or name == f"{PREFIX}CONFIG" or _is_injected(name, written):
            continue
        value = _cleaned(name, written)
        if not value:
            continue
        at = tuple(name.removeprefix(PREFIX).lower().split("__"))
        origin[at] = name
        place = tree
        for key in at[:-1]:
            place = place.setdefault(key, {})
            if not isinstance(place, dict):
                raise ConfigError(f"{name}: {PREFIX}{key.upper()} is set to a value of its own; remove one of them")
        place[at[-1]] = value
    return tree


def _is_injected(name: str, value: str) -> bool:
    """Whether Kubernetes made this variable for a Service that happens to bear our name."""
    return bool(_KUBERNETES.search(name)) or (name.endswith("_PORT") and value.startswith(("tcp://", "udp://")))


# Blanks and quotes may belong to these; what is done about them depends on which it is (`credentials`, `mail.host`).
_TAKEN_AS_THEY_ARE = ("PASSWORD", "USERNAME", "API_KEY", "HOST", "SERVER_NAME", "HELO_NAME")
_MAY_HOLD_A_SECRET = ("URL", "FILE", "KEY")


def _cleaned(name: str, value: str) -> str:
    """Take the blanks around a variable away, so that a blank one is empty, and refuse quotes around it.

    Raises:
        ConfigError: it is in quotes: a shell removes them, docker's --env-file and a Kubernetes manifest do not.
    """
    if name.endswith(_TAKEN_AS_THEY_ARE):
        return value
    value = value.strip()
    if len(value) > 1 and value[0] == value[-1] and value[0] in "\"'":
        bare = value[1:-1].strip()
        right = f"{name}={bare}" if bare.isprintable() and not name.endswith(_MAY_HOLD_A_SECRET) else "it without them"
        raise ConfigError(
            f"{name} is in quotes, which are part of the value (docker's --env-file keeps them); write {right}"
        )
    return value


_SMTP_KEYS = {
    "SMTP_HOST": "host",
    "SMTP_PORT": "port",
    "SMTP_USERNAME": "username",
    "SMTP_PASSWORD": "password",
    "SMTP_PASSWORD_FILE": "password_file",
    "SMTP_TLS": "tls",
    "SMTP_AUTH": "auth",
    "SMTP_CA_FILE": "ca_file",
    "SMTP_VERIFY": "verify",
    "SMTP_TLS_SECURITY_LEVEL": "tls_security_level",
    "SMTP_FROM": "from",
}
TLS_SWITCHES = {"SMTP_SECURE": "implicit", "SMTP_IGNORE_TLS": "none"}
_SMTP_SWITCHES = (*TLS_SWITCHES, "SMTP_AUTH_DISABLED")


def _from_smtp_names(
    environ: Mapping[str, str], origin: dict[tuple[str, ...], str], warnings: list[str]
) -> dict[str, Any]:
    """Read Typebot's names for one relay into the profile `default`; {} where there are none."""
    known = {*_SMTP_KEYS, *_SMTP_SWITCHES}
    said = {
        name: value
        for name, written in environ.items()
        if name.startswith("SMTP_") and not _is_injected(name, written)
        if (value := _cleaned(name, written) if name in known else written)
    }
    if "SMTP_PORT" in environ and _is_injected("SMTP_PORT", environ["SMTP_PORT"]):
        warnings.append("SMTP_PORT is what Kubernetes injects for a Service named smtp, not a port: ignored")
    for name in sorted(said.keys() - known):
        near = get_close_matches(name, sorted(known), n=1)
        if near:
            raise ConfigError(f"{name} is not a setting; do you mean {near[0]}?")
        warnings.append(f"{name} is not a setting of Mailchute: ignored")
        del said[name]
    if not said:
        return {}
    if "SMTP_HOST" not in said:
        raise ConfigError(f"{min(said)} is set, but SMTP_HOST is not: set SMTP_HOST to the relay's host name")
    relay: dict[str, Any] = {key: said[name] for name, key in _SMTP_KEYS.items() if name in said}
    public = _cleaned("NEXT_PUBLIC_SMTP_FROM", environ.get("NEXT_PUBLIC_SMTP_FROM", ""))
    if "from" not in relay and public:
        relay["from"] = public
        origin["profiles", "default", "from"] = "NEXT_PUBLIC_SMTP_FROM"
    origin.update({("profiles", "default", key): name for name, key in _SMTP_KEYS.items() if name in said})
    switch = _apply_switches(said, relay, warnings)
    if switch:
        origin["profiles", "default", "tls"] = switch
    return relay


def _apply_switches(said: Mapping[str, str], relay: dict[str, Any], warnings: list[str]) -> str:
    """Read Typebot's switches; return the name of the one that sets the TLS mode, "" where none does.

    SMTP_TLS, which hints name, takes precedence over them.
    """
    if _switch(said, "SMTP_AUTH_DISABLED"):
        warnings.append(
            "SMTP_AUTH_DISABLED turns off Typebot's own sign-in by e-mail; to send without a login set SMTP_AUTH=none"
        )
    wanted = {name: mode for name, mode in TLS_SWITCHES.items() if _switch(said, name)}
    if "tls" in relay:
        idle = (name for name, mode in wanted.items() if mode != relay["tls"].lower())
        warnings.extend(f"{n}={said[n]} has no effect beside SMTP_TLS={relay['tls'][:20]}: remove it" for n in idle)
        return ""
    if len(wanted) > 1:
        raise ConfigError(f"{' and '.join(f'{n}={said[n]}' for n in wanted)} contradict each other: keep one")
    for name, mode in wanted.items():
        relay["tls"] = mode
        return name
    return ""


def _switch(said: Mapping[str, str], name: str) -> bool:
    value = said.get(name, "false").strip().lower()
    if value not in ("true", "false", "1", "0", "yes", "no"):
        raise ConfigError(f"{name} is neither true nor false")
    return value in ("true", "1", "yes")


def _merge(tree: dict[str, Any], over: Mapping[str, Any]) -> None:
    for key, value in over.items():
        below = tree.get(key)
        if isinstance(below, dict) and isinstance(value, dict):
            _merge(below, value)
        else:
            tree[key] = value
