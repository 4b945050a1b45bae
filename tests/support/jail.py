"""A mail server of Debian's that is not installed: unpacked, and run in a root directory of its own.

Debian lets one mail server be installed at a time: installing Exim or OpenSMTPD would remove Postfix, or whatever
its owner uses. So scripts/test-packages.sh only downloads their packages and unpacks them under UNPACKED. Here a
temporary folder becomes the server's root (chroot): the package's files, the libraries and the shell it needs,
copied from this machine, and users, configuration, spool and mailbox of its own. In there it is what Debian built,
down to the paths and user names that are compiled in; it needs no set-uid bit, and reads and writes nothing
outside. All its users are this machine's `nobody`.

Nothing is ever relayed, no name is looked up (there is no resolver in there). All listeners take mail for any
address at mailbox.test but nobody@, refused with 550, and later@, refused with 45x; for other domains with 550.
Every recipient gets a copy of its own, in one Maildir.
"""

import functools
import os
import pwd
import shutil
import subprocess
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import ClassVar, Self

from tests.support.server import Listener, Mailbox, Processes, greets, take_ports, until
from tests.support.tls import certificates

UNPACKED = Path("/var/cache/mailchute-test-packages")  # scripts/test-packages.sh fills it, a folder a mail server
ENV = {"PATH": f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin", "LC_ALL": "C"}
MAX_BYTES = 400_000  # content size that every listener takes

_SHELL = Path("/bin/sh")


def missing(package: str) -> str | None:
    """Say why the tests against this package's server cannot run here; None if they can."""
    if os.geteuid() != 0:
        return f"{package} needs root, to be given a root directory of its own"
    if not (UNPACKED / package).is_dir():
        return f"{package} is not in {UNPACKED} (scripts/test-packages.sh brings it on Debian)"
    if subprocess.run(["chroot", "/", "true"], env=ENV, capture_output=True, check=False).returncode != 0:
        return f"{package} needs a root directory of its own, and this root may not chroot"
    if os.statvfs(tempfile.gettempdir()).f_flag & os.ST_NOEXEC:
        return f"{package} would be run from {tempfile.gettempdir()}, which is mounted noexec"
    try:
        _libraries(package)
    except (OSError, LookupError) as error:
        return f"{package} lacks a library: {error}"
    return None


class Jailed(ABC):
    """Run one server: the context makes and removes its root, `start` and `stop` its processes."""

    package: ClassVar[str]
    listeners: ClassVar[Sequence[str]]
    accounts: ClassVar[Sequence[str]]  # names that are compiled in
    command: ClassVar[Sequence[str]]  # stays in the foreground
    log_file: ClassVar[str]
    queues: ClassVar[Sequence[str]]
    plain: Listener
    starttls: Listener  # offered

    def __init__(self) -> None:
        self.ca_file = certificates().self_signed_file  # vouches for the certificate of all listeners
        self._processes: Processes | None = None

    def __enter__(self) -> Self:
        self.root = Path(tempfile.mkdtemp(prefix=f"{self.package}-"))
        self.inbox = self.root / "inbox"
        self.mailbox = Mailbox(self.inbox, [self.root / name for name in self.queues])
        try:
            with ExitStack() as held:
                self.ports = take_ports(self.listeners, held)
                vars(self).update(self.ports)
                held.callback(os.umask, os.umask(0o022))  # the server's own users must get through
                self._build()
                self.furnish()
                self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_error: object) -> None:
        self.stop()
        shutil.rmtree(self.root)

    @abstractmethod
    def furnish(self) -> None:
        """Write what this server reads; its root stands."""

    def start(self) -> None:
        """Start the processes, always on the same ports; returns once all listeners take connections.

        Raises: RuntimeError with the server's log if that fails or takes longer than 10 s.
        """
        if self._processes is not None:
            return
        self._processes = Processes(["chroot", str(self.root), *self.command], env=ENV, log=self.root / "output")
        if not until(lambda: all(map(greets, self.ports.values())), timeout=10):
            raise RuntimeError(f"{self.package} did not start:\n{self.log()}")

    def stop(self) -> None:
        """End every process of the instance; mails and log stay readable until the context ends."""
        if self._processes is None:
            return
        processes, self._processes = self._processes, None
        processes.end()
        until(lambda: not self._is_inhabited(), timeout=5)  # a delivery may have left the group: it ends by itself

    def log(self) -> str:
        """Read what the server said and logged so far."""
        files = (self.root / "output", self.root / self.log_file)
        return "".join(file.read_text(errors="replace") for file in dict.fromkeys(files) if file.exists())

    def write(self, path: str, text: str, *, mode: int = 0o644) -> None:
        """Write a file of root's; `path` is as the server sees it."""
        file = self.root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        file.chmod(mode)

    def own(self, path: str) -> None:
        """Make a folder of `nobody`'s."""
        folder = self.root / path.lstrip("/")
        folder.mkdir(parents=True, exist_ok=True)
        shutil.chown(folder, "nobody")

    def _build(self) -> None:
        shutil.copytree(
            UNPACKED / self.package,
            self.root,
            symlinks=True,
            dirs_exist_ok=True,
            ignore=shutil.ignore_patterns("share"),
        )
        for library in _libraries(self.package):
            copy = self.root / library.relative_to("/")
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(library, copy)
        shell = self.root / "bin/sh"
        shell.parent.mkdir(exist_ok=True)
        shutil.copy(_SHELL, shell)
        nobody = pwd.getpwnam("nobody")
        ids = {"root": (0, 0)} | dict.fromkeys((*self.accounts, "inbox"), (nobody.pw_uid, nobody.pw_gid))
        self.write("/etc/passwd", "".join(f"{name}:x:{uid}:{gid}::/:/bin/sh\n" for name, (uid, gid) in ids.items()))
        self.write("/etc/group", "".join(f"{name}:x:{gid}:\n" for name, (_, gid) in ids.items()))
        self.write("/etc/hosts", "127.0.0.1 localhost\n")
        for folder in ("tmp", "inbox", "inbox/new", "inbox/cur", "inbox/tmp"):
            self.own(folder)
        self.root.chmod(0o711)

    def _is_inhabited(self) -> bool:
        """Look for a process that lives in this root, or in one below it."""
        for link in Path("/proc").glob("[0-9]*/root"):
            try:
                if link.readlink().is_relative_to(self.root):
                    return True
            except OSError:  # it has ended
                continue
        return False


@functools.cache
def _libraries(package: str) -> Sequence[Path]:
    """Find what the package's programs and the shell are linked with, as far as it is this machine's.

    Raises: LookupError with the name of one that is nowhere.
    """
    unpacked = UNPACKED / package
    programs = [_SHELL, *(file for file in unpacked.rglob("*") if _is_program(file))]
    own = {str(file.parent) for file in unpacked.rglob("*.so.*")}
    found: dict[Path, None] = {}
    for program in programs:
        env = ENV | {"LD_LIBRARY_PATH": ":".join(own)}
        told = subprocess.run(["ldd", program], env=env, capture_output=True, text=True, check=False).stdout
        for line in told.splitlines():
            name, _, place = line.partition("=>")
            path = (place or name).split("(")[0].strip()
            if path == "not found":
                raise LookupError(name.strip())
            if path.startswith("/") and not path.startswith(str(unpacked)):
                found[Path(path)] = None
    return tuple(found)


def _is_program(file: Path) -> bool:
    if not file.is_file() or file.is_symlink() or not os.access(file, os.X_OK):
        return False
    with file.open("rb") as opened:
        return opened.read(4) == b"\x7fELF"
