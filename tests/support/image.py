"""The image as the Dockerfile makes it, and a container of it, without a container engine.

buildah carries the Dockerfile's very steps out (chroot isolation, so it needs root and no daemon). What no engine
can fetch for us is the base: scripts/test-packages.sh lays a minimal Debian bookworm by debootstrap in its place,
with Debian's own python3 and python3-venv. Here it becomes what the steps see in the official image: `python` in
/usr/local/bin, and a standard library without bytecode. It is not that image: its Python is Debian's build.

The wheels are fetched by this machine's pip, however that is set up, and are all the index the build has.

`Container` runs what was built as an engine would: by the image's own user, environment, entry point and command,
as process 1, its root read-only, its capabilities gone, only the volume writable. The network is this machine's.
"""

import asyncio
import fcntl
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tests.support.jail import UNPACKED
from tests.support.service import PATIENCE, Ended, Service, run

ROOT = Path(__file__).parents[2]
BASE = UNPACKED / "debian-bookworm"
KEPT = UNPACKED / "image"  # buildah's store, wheels, and what was built
PROGRAMS = ("buildah", "unshare", "nsenter", "mount")
CONTEXT = (
    "Dockerfile",
    ".dockerignore",
    "requirements.lock",
    "pyproject.toml",
    "README.md",
    "LICENSE",
    "app",
    "alembic",
)
VOLUME = "/var/lib/mailchute"
STALE = 3600  # seconds after which what another checkout built is no longer kept

_BUILDAH = ("buildah", f"--root={KEPT}/store", "--runroot=/run/mailchute-test-image", "--storage-driver=overlay")


@dataclass(frozen=True, slots=True)
class Image:
    """What was built: its files, and its configuration in Docker's words."""

    root: Path
    base: Path
    config: Mapping[str, Any]

    @property
    def environment(self) -> dict[str, str]:
        return dict(line.split("=", 1) for line in self.config["Env"])

    @property
    def command(self) -> list[str]:
        return [*self.config["Entrypoint"], *self.config["Cmd"]]

    @property
    def user(self) -> tuple[int, int]:
        user, _, group = self.config["User"].partition(":")
        return int(user), int(group)


def missing() -> str | None:
    """Say why the image cannot be built here; None if it can."""
    if os.geteuid() != 0:
        return "the image's steps need root, to be given a root directory of their own"
    for program in PROGRAMS:
        if shutil.which(program) is None:
            return f"{program} is not installed (scripts/test-packages.sh brings it on Debian)"
    if not BASE.is_dir():
        return f"the image's base is not in {BASE} (scripts/test-packages.sh lays it on Debian)"
    for probe in (("unshare", "--mount", "--pid", "--fork", "true"), (*_BUILDAH, "images")):
        tried = subprocess.run(probe, capture_output=True, text=True, check=False)
        if tried.returncode != 0:
            return f"{probe[0]} does not work here: {tried.stderr.strip()[-300:]}"
    return None


def build() -> Image:
    """Build the image of this checkout, unless that was done already; one at a time on this machine."""
    KEPT.mkdir(exist_ok=True)
    with (KEPT / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        base = _base()
        done = KEPT / f"built-{_fingerprint()}"
        if not done.is_dir():
            _build(done)
        os.utime(done)
        for other in KEPT.glob("built-*"):
            if time.time() - other.stat().st_mtime > STALE:  # noqa: TID251 (the age of a file)
                shutil.rmtree(other)
        return Image(done / "root", base, json.loads((done / "config.json").read_text()))


def _fingerprint() -> str:
    found = hashlib.sha256(BASE.stat().st_mtime_ns.to_bytes(8))
    files = [
        file for name in CONTEXT for file in ([ROOT / name] if (ROOT / name).is_file() else (ROOT / name).rglob("*"))
    ]
    for file in sorted(file for file in files if file.is_file() and "__pycache__" not in file.parts):
        found.update(f"{file.relative_to(ROOT)}\0{file.stat().st_mode}\0".encode() + file.read_bytes())
    return found.hexdigest()[:16]


def _run(*command: str) -> str:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{shlex.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return done.stdout.strip()


def _name_of_base() -> str:
    (name,) = {line.split()[1] for line in (ROOT / "Dockerfile").read_text().splitlines() if line.startswith("FROM ")}
    return name


def _base() -> Path:
    """Give the stand-in for the official image, and buildah its image of that name."""
    base = KEPT / "base"
    if not base.is_dir():
        new = KEPT / ".base"
        shutil.rmtree(new, ignore_errors=True)
        _run("cp", "-a", str(BASE), str(new))
        (new / "usr/local/bin/python").symlink_to("/usr/bin/python3")
        for cache in (new / "usr/lib").rglob("__pycache__"):
            shutil.rmtree(cache)
        new.rename(base)
    name = f"docker.io/library/{_name_of_base()}"
    if not _run(*_BUILDAH, "images", "--quiet", "--filter", f"reference={name}"):
        container = _run(*_BUILDAH, "from", "scratch")
        _run(*_BUILDAH, "copy", "--quiet", container, str(base), "/")
        _run(*_BUILDAH, "commit", "--quiet", "--rm", container, name)
    return base


def _wheels() -> Path:
    lock = ROOT / "requirements.lock"
    wheels = KEPT / f"wheels-{hashlib.sha256(lock.read_bytes()).hexdigest()[:16]}"
    if not wheels.is_dir():
        for old in KEPT.glob("*wheels-*"):
            shutil.rmtree(old)
        new = KEPT / f".{wheels.name}"
        pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "download")
        for_base = ("--python-version", "3.11", "--implementation", "cp", "--only-binary", ":all:")
        _run(*pip, "--no-deps", "--require-hashes", *for_base, "--dest", str(new), "--requirement", str(lock))
        new.rename(wheels)
    return wheels


def _build(done: Path) -> None:
    wheels = _wheels()
    new = done.with_name(f".{done.name}")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir()
    (new / "pip.conf").write_text("[global]\nno-index = true\nfind-links = /wheels\n")
    lent = ("-v", f"{wheels}:/wheels:ro", "-v", f"{new}/pip.conf:/etc/pip.conf:ro")
    how = ("--isolation=chroot", "--pull-never", "--no-cache", "--format=docker")
    tag = f"mailchute:{done.name}"
    _run(*_BUILDAH, "bud", *how, *lent, "-t", tag, str(ROOT))
    told = json.loads(_run(*_BUILDAH, "inspect", "--type=image", tag))
    (new / "config.json").write_text(json.dumps(told["Docker"]["config"]))
    container = _run(*_BUILDAH, "from", "--pull-never", tag)
    _run("cp", "-a", _run(*_BUILDAH, "mount", container), str(new / "root"))
    _run(*_BUILDAH, "rm", container)
    _run(*_BUILDAH, "rmi", "--force", tag)
    new.rename(done)


class Container(Service):
    """One run of the image; what the folder's `var` is here is the volume there."""

    def __init__(
        self,
        image: Image,
        settings: Mapping[str, str] = MappingProxyType({}),
        *,
        folder: Path | None = None,
        through: Sequence[str] = (),
    ) -> None:
        self._image = image
        self._through = through  # a program that runs, and watches, the whole
        self._set = {"MAILCHUTE_LISTEN": "0.0.0.0:0", "MAILCHUTE_DRAIN_DELAY": "0", **settings}
        super().__init__(settings, folder=folder)

    async def _start(self) -> None:
        volume = self.folder / "var"
        if not volume.exists():
            volume_of(self._image, volume)
        self._command = (*self._through, *contained(self._image, self._set, volume=volume))
        await super()._start()

    @property
    def first(self) -> int:
        """The pid, as this machine counts, of the container's process 1."""
        return first_of(self.process.pid)

    async def stop(self, number: int = 15) -> int:
        """Send the signal to process 1, as an engine does, and give its exit code."""
        os.kill(self.first, number)
        async with asyncio.timeout(PATIENCE):
            return await self._end()

    async def execute(self, *command: str) -> Ended:
        """Run a command in the container, as `docker exec` and HEALTHCHECK do."""
        user, group = self._image.user
        enter = ("nsenter", f"--target={self.first}", "--mount", "--pid", "--root", "--wd")
        whose = (f"--setuid={user}", f"--setgid={group}")
        return await run(*enter, *whose, "env", "-i", *_assigned(self._image, self._set), *command, folder=self.folder)


def first_of(pid: int) -> int:
    """Give the process 1 of the namespace that the command of `contained` made, which `pid` runs."""
    while re.search(r"^NSpid:\t\d+$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE):
        (child,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        pid = int(child)
    return pid


def volume_of(image: Image, folder: Path) -> None:
    """Make a new volume: an engine gives it the owner and mode of the image's folder."""
    shutil.copytree(image.root / VOLUME.lstrip("/"), folder)
    os.chown(folder, *image.user)


def contained(
    image: Image, settings: Mapping[str, str], *, volume: Path, command: Sequence[str] | None = None
) -> list[str]:
    """Give the command that runs the image, or another command in it, in namespaces of its own."""
    user, group = image.user
    root = image.root
    inside = [*_assigned(image, settings), *(command or image.command)]
    script = f"""
        set -e
        mount --bind {root} {root}
        mount --bind {volume} {root}{VOLUME}
        mount -t proc proc {root}/proc
        mount --bind /dev {root}/dev
        mount -o remount,bind,ro {root}
        exec unshare --root={root} --wd={image.config["WorkingDir"] or "/"} \\
            setpriv --reuid={user} --regid={group} --clear-groups --no-new-privs --bounding-set=-all --inh-caps=-all \\
            --pdeathsig=KILL env -i {shlex.join(inside)}
    """
    return ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", script]


async def once(image: Image, settings: Mapping[str, str], *command: str, folder: Path | None = None) -> Ended:
    """Run the image, or another command in it, to its end; on a new volume unless `folder` holds one."""
    own = folder or Path(tempfile.mkdtemp(prefix="mailchute-"))
    try:
        if not (own / "var").exists():
            volume_of(image, own / "var")
        return await run(*contained(image, settings, volume=own / "var", command=command), folder=own)
    finally:
        if folder is None:
            shutil.rmtree(own)


def _assigned(image: Image, settings: Mapping[str, str]) -> list[str]:
    return [f"{name}={value}" for name, value in {**image.environment, **settings}.items()]
