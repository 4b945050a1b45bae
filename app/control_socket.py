"""The control socket: the file `<database file>.sock`, through which a service obeys its operator.

Whoever may open it is the operator. Both ends are here: `ControlSocket` for the service, `reach` for a command. Knows
paths and sockets, not what goes through them.

One path belongs to one database file, by whatever name that is opened. A service holds the database's lock when it
comes here, so that no two of them look and replace at the same time. A socket on which somebody listens is not
replaced even so: the lock file may have been deleted, and the socket may be another program's.

Linux only: paths of any length are reached through /proc/self/fd (a `sun_path` holds 107 bytes, unix(7)), and bind()
gives the file the mode that fchmod() gave the socket.
"""

from __future__ import annotations

import errno
import os
import pwd
import secrets
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from app.mail.errors import ConfigError


def path_of(database: Path) -> Path:
    """Return where the service of this database listens: an absolute path, the same for all the database's names.

    Raises:
        ConfigError: the current folder, to which the database's path is relative, is gone.
    """
    try:
        return Path(os.path.realpath(database) + ".sock")
    except OSError as error:
        raise ConfigError(f"{database} cannot be found from the current folder: {error.strerror}") from error


class ControlSocket:
    """The service's end. `listener` accepts connections from the moment that `path` leads to it, with mode 0600."""

    def __init__(self, path: Path, *, backlog: int) -> None:
        """Listen, in place of the socket that a service left which was killed. The database's lock must be held.

        Raises:
            ConfigError: somebody listens there, it is no socket, or it cannot be made. What is there is untouched.
        """
        self.path = path
        _refuse_to_displace(path)
        folder = -1
        try:
            folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            self.listener, self._file = _listen(folder, path.name, backlog)
        except OSError as error:
            raise ConfigError(f"the control socket {path} cannot be made: {error.strerror or error}") from error
        finally:
            if folder >= 0:
                os.close(folder)

    def remove(self) -> None:
        """Take the file away, unless another one is in its place by now; idempotent."""
        if self._file < 0:
            return
        with suppress(OSError):  # gone already, with its folder perhaps
            if os.path.samestat(os.lstat(self.path), os.fstat(self._file)):
                self.path.unlink()
        os.close(self._file)
        self._file = -1


def _refuse_to_displace(path: Path) -> None:
    try:
        there = os.lstat(path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise ConfigError(f"the control socket {path} cannot be made: {error.strerror}") from error
    if not stat.S_ISSOCK(there.st_mode):
        raise _not_a_socket(path)
    with reach(path) as address:
        if address is not None:
            raise ConfigError(f"another process listens on the control socket {path}: stop it first; it was left alone")


def _listen(folder: int, name: str, backlog: int) -> tuple[socket.socket, int]:
    """Listen under another name, then rename: who connects to the path reaches a service, or a dead one's socket.

    Returns the listener, and a descriptor of its file, which keeps the inode's number from being used again.
    """
    draft = f".{secrets.token_hex(8)}.sock"
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        os.fchmod(listener.fileno(), 0o600)
        listener.bind(_through(folder, draft))
        listener.listen(backlog)
        file = os.open(draft, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
        try:
            os.rename(draft, name, src_dir_fd=folder, dst_dir_fd=folder)
        except BaseException:
            os.close(file)
            raise
    except BaseException:
        listener.close()
        with suppress(OSError):
            os.unlink(draft, dir_fd=folder)
        raise
    return listener, file


@contextmanager
def reach(path: Path) -> Iterator[str | None]:
    """Yield an address to connect to, None where nobody listens.

    The address leads to the one socket that was there at the beginning, whatever takes its place meanwhile.

    Raises:
        ConfigError: it is no socket, or this user may not open it.
    """
    try:
        file = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        yield None
        return
    except OSError as error:
        raise ConfigError(
            f"the control socket {path} cannot be reached: {error.strerror}; use the user that the service runs as"
        ) from error
    try:
        facts = os.fstat(file)
        if not stat.S_ISSOCK(facts.st_mode):
            raise _not_a_socket(path)
        yield _through(file) if _is_listening(file, path) else None
    finally:
        os.close(file)


def _is_listening(file: int, path: Path) -> bool:
    """Whether anybody listens, a program of another kind included.

    Raises:
        ConfigError: this user may not know.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)  # connect() to a Unix socket is done at once, or not at all
        wrong = probe.connect_ex(_through(file))
    if wrong in (0, errno.EAGAIN, errno.EPROTOTYPE):  # EAGAIN: too many wait to be accepted; EPROTOTYPE: datagrams
        return True
    if wrong == errno.ECONNREFUSED:
        return False
    owner = _user(os.fstat(file).st_uid)
    raise ConfigError(
        f"the control socket {path} belongs to the user {owner} and cannot be opened by this one "
        f"({os.strerror(wrong)}); use that user, or remove the file if no service of theirs runs"
    )


def _through(descriptor: int, name: str = "") -> str:
    return f"/proc/self/fd/{descriptor}/{name}" if name else f"/proc/self/fd/{descriptor}"


def _not_a_socket(path: Path) -> ConfigError:
    return ConfigError(f"{path} is in the control socket's place, and is no socket: move it away; it was left alone")


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
