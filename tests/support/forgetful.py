"""A file system in memory that loses, at a power cut, everything that was not synced.

It speaks the kernel's FUSE protocol (version 7.31, linux/fuse.h) over /dev/fuse by itself: the dozen requests that
SQLite needs are fewer lines than a binding would be to install. It wants root, which may mount; nothing else.

Every file and folder is kept twice: as it is, and as the disk would have it. A write, a truncation, a new or a
removed name changes only the first, and waits; fsync and fdatasync of a file bring that file's bytes to the disk,
fsync of a folder its names, as POSIX promises and no more (ext4 would bring a new file's name along). A power cut
drops what waits: all of it, or, with a seed, each waiting write by the toss of a coin, since a disk writes in any
order it likes. Modes and times are not remembered separately.

The file system runs in a process of its own (`python -m tests.support.forgetful FOLDER`), since whoever waits for a
file of his own process waits for ever. It obeys its stdin: "cut", perhaps with a seed, loses and mounts anew; the
end of stdin unmounts.
"""

import contextlib
import ctypes
import errno
import os
import select
import shutil
import stat
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Self

_LIBC = ctypes.CDLL(None, use_errno=True)
_DETACH = 2  # MNT_DETACH: whoever still has a file open there does not hold it
_ROOT = 1  # the root's node number, by the protocol
_LARGEST = 1 << 17  # bytes of one write
_FOR_LONG = 3600  # seconds that the kernel may remember names: nobody else changes them
_SIZE_SET, _MODE_SET = 8, 1  # FATTR_

_IN = struct.Struct("<IIQQIIIHH")  # length, what, unique, node, …
_OUT = struct.Struct("<IiQ")
_ATTR = struct.Struct("<6Q10I")
_OPENED = struct.Struct("<QII")


@dataclass(slots=True, eq=False)
class _Node:
    """A file, a folder or a socket: as it is now, what waits, and what the disk has."""

    number: int
    mode: int
    content: bytearray = field(default_factory=bytearray)
    names: dict[bytes, "_Node"] = field(default_factory=dict)
    waiting: list[Callable[["_Node"], None]] = field(default_factory=list)
    disk: "_Node | None" = None  # None = this is the disk's

    def change(self, act: Callable[["_Node"], None]) -> None:
        act(self)
        self.waiting.append(act)

    def sync(self) -> None:
        self.keep(self.waiting)

    def lose(self, survives: Callable[[], bool]) -> None:
        """Become what the disk has, with those of the waiting changes that survive."""
        assert self.disk is not None
        self.keep([act for act in self.waiting if survives()])
        self.content = self.disk.content[:]
        self.names = self.disk.names.copy()

    def keep(self, acts: Iterable[Callable[["_Node"], None]]) -> None:
        assert self.disk is not None
        for act in acts:
            act(self.disk)
        self.waiting = []


def _written(at: int, data: bytes) -> Callable[[_Node], None]:
    def write(node: _Node) -> None:
        node.content.extend(bytes(max(0, at - len(node.content))))
        node.content[at : at + len(data)] = data

    return write


def _resized(size: int) -> Callable[[_Node], None]:
    def resize(node: _Node) -> None:
        del node.content[size:]
        node.content.extend(bytes(size - len(node.content)))

    return resize


def _named(name: bytes, whom: _Node) -> Callable[[_Node], None]:
    return lambda folder: folder.names.update({name: whom})


def _removed(name: bytes) -> Callable[[_Node], None]:
    def remove(folder: _Node) -> None:
        folder.names.pop(name, None)  # its name may never have come to the disk

    return remove


class _Files:
    """The requests of the kernel and their answers."""

    def __init__(self) -> None:
        self._nodes: dict[int, _Node] = {}
        self._make(stat.S_IFDIR | 0o755)
        self._answers: dict[int, Callable[[_Node, bytes], bytes]] = {
            1: self._look_up,
            3: lambda node, _: struct.pack("<QII", _FOR_LONG, 0, 0) + self._attributes(node),
            4: self._set_attributes,
            8: lambda node, said: self._entry(self._new(node, said[16:], struct.unpack_from("<I", said)[0])),  # MKNOD
            9: lambda node, said: self._entry(
                self._new(node, said[8:], struct.unpack_from("<I", said)[0] | stat.S_IFDIR)
            ),
            10: self._remove,
            11: self._remove,
            12: self._rename,
            14: lambda *_: _OPENED.pack(0, 0, 0),  # OPEN
            15: self._read,
            16: self._write,
            17: lambda *_: struct.pack(
                "<5Q10I", 1 << 20, 1 << 19, 1 << 19, 1 << 20, 1 << 19, 4096, 255, 4096, *[0] * 7
            ),
            18: lambda *_: b"",  # RELEASE
            20: self._sync,
            25: lambda *_: b"",  # FLUSH: close() syncs nothing
            26: self._begin,
            27: lambda *_: _OPENED.pack(0, 0, 0),  # OPENDIR
            28: self._list,
            29: lambda *_: b"",  # RELEASEDIR
            30: self._sync,  # of a folder
            35: lambda node, said: (
                self._entry(self._new(node, said[16:], struct.unpack_from("<4I", said)[1])) + _OPENED.pack(0, 0, 0)
            ),
        }

    def answer(self, request: bytes) -> bytes | None:
        """Answer one request; None where the kernel waits for nothing (FORGET, INTERRUPT)."""
        length, what, unique, number, *_ = _IN.unpack_from(request)
        if what in (2, 36, 42):
            return None
        try:
            node = self._nodes.get(number) or self._nodes[_ROOT]
            said = self._answers[what](node, request[_IN.size : length]) if what in self._answers else None
            wrong = errno.ENOSYS if said is None else 0
        except OSError as error:
            said, wrong = b"", error.errno or errno.EIO
        said = said or b""
        return _OUT.pack(_OUT.size + len(said), -wrong, unique) + said

    def cut(self, seed: str) -> None:
        """Lose what was not synced."""
        toss = Random(seed)
        for node in self._nodes.values():
            node.lose((lambda: toss.random() < 0.5) if seed else (lambda: False))

    def _make(self, mode: int) -> _Node:
        node = _Node(len(self._nodes) + 1, mode)
        node.disk = _Node(node.number, mode)
        self._nodes[node.number] = node
        return node

    def _new(self, folder: _Node, name: bytes, mode: int) -> _Node:
        node = self._make(mode)
        folder.change(_named(name.partition(b"\0")[0], node))
        return node

    def _begin(self, _node: _Node, _said: bytes) -> bytes:
        return struct.pack("<4I2H2I2H8I", 7, 31, _LARGEST, 0, 12, 9, _LARGEST, 1, _LARGEST // 4096, 0, *[0] * 8)

    def _look_up(self, folder: _Node, said: bytes) -> bytes:
        node = folder.names.get(said.partition(b"\0")[0])
        if node is None:
            raise OSError(errno.ENOENT, "no such name")
        return self._entry(node)

    def _entry(self, node: _Node) -> bytes:
        return struct.pack("<4Q2I", node.number, 0, _FOR_LONG, _FOR_LONG, 0, 0) + self._attributes(node)

    def _attributes(self, node: _Node) -> bytes:
        size = len(node.content)
        return _ATTR.pack(
            node.number, size, -(-size // 512), 0, 0, 0, 0, 0, 0, node.mode, 1, os.getuid(), os.getgid(), 0, 4096, 0
        )

    def _set_attributes(self, node: _Node, said: bytes) -> bytes:
        (which,), (size,), (mode,) = (
            struct.unpack_from(form, said, at) for form, at in (("<I", 0), ("<Q", 16), ("<I", 68))
        )
        if which & _SIZE_SET:
            node.change(_resized(size))
        if which & _MODE_SET:
            node.mode = stat.S_IFMT(node.mode) | stat.S_IMODE(mode)
        return struct.pack("<QII", _FOR_LONG, 0, 0) + self._attributes(node)

    def _remove(self, folder: _Node, said: bytes) -> bytes:
        name = said.partition(b"\0")[0]
        if folder.names[name].names:
            raise OSError(errno.ENOTEMPTY, "not empty")
        folder.change(_removed(name))
        return b""

    def _rename(self, folder: _Node, said: bytes) -> bytes:
        (where,) = struct.unpack_from("<Q", said)
        old, new = said[8:].split(b"\0")[:2]
        node = folder.names[old]
        folder.change(_removed(old))
        self._nodes[where].change(_named(new, node))
        return b""

    def _read(self, node: _Node, said: bytes) -> bytes:
        _, at, size = struct.unpack_from("<QQI", said)
        return bytes(node.content[at : at + size])

    def _write(self, node: _Node, said: bytes) -> bytes:
        _, at, size = struct.unpack_from("<QQI", said)
        node.change(_written(at, said[40 : 40 + size]))
        return struct.pack("<II", size, 0)

    def _sync(self, node: _Node, _said: bytes) -> bytes:
        node.sync()
        return b""

    def _list(self, folder: _Node, said: bytes) -> bytes:
        _, at, size = struct.unpack_from("<QQI", said)
        listed = b""
        for place, (name, node) in enumerate(folder.names.items(), start=1):
            entry = struct.pack("<QQII", node.number, place, len(name), node.mode >> 12) + name
            entry += bytes(-len(entry) % 8)
            if place > at and len(listed) + len(entry) <= size:
                listed += entry
        return listed


def _mount(folder: str) -> int:
    """Mount over `folder`; gives the kernel's end."""
    kernel = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    options = f"fd={kernel},rootmode=40000,user_id={os.getuid()},group_id={os.getgid()}".encode()
    if _LIBC.mount(b"forgetful", folder.encode(), b"fuse", 0, options) != 0:
        wrong = ctypes.get_errno()
        os.close(kernel)
        raise OSError(wrong, os.strerror(wrong))
    return kernel


def _unmount(folder: str, kernel: int) -> None:
    os.close(kernel)  # first: what the kernel still holds back has nowhere to go
    _LIBC.umount2(folder.encode(), _DETACH)


def _serve(folder: str) -> None:
    files, kernel = _Files(), _mount(folder)
    try:
        os.write(1, b"mounted\n")
        while True:
            ready, _, _ = select.select([kernel, sys.stdin], [], [])
            if kernel in ready:
                answer = files.answer(os.read(kernel, _LARGEST + 4096))
                if answer is not None:
                    with contextlib.suppress(FileNotFoundError):  # who asked was killed meanwhile
                        os.write(kernel, answer)
                continue
            order = sys.stdin.readline()
            if not order:
                return
            _unmount(folder, kernel)
            files.cut(order.partition(" ")[2].strip())
            kernel = _mount(folder)
            os.write(1, b"mounted\n")
    finally:
        _unmount(folder, kernel)


class Forgetful:
    """Mount one inside `with`; `folder` is its root."""

    def __enter__(self) -> Self:
        self.folder = Path(tempfile.mkdtemp(prefix="forgetful-"))
        command = [sys.executable, "-m", "tests.support.forgetful", str(self.folder)]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, cwd=Path(__file__).parents[2])
        self._mounted()
        return self

    def __exit__(self, *_error: object) -> None:
        self._process.communicate()
        shutil.rmtree(self.folder)

    def cut(self, seed: int | None = None) -> None:
        """Cut the power: lose what was not synced; with a seed, some of it by chance. Nobody may use it meanwhile."""
        assert self._process.stdin is not None
        self._process.stdin.write("cut\n" if seed is None else f"cut {seed}\n")
        self._process.stdin.flush()
        self._mounted()

    def _mounted(self) -> None:
        assert self._process.stdout is not None
        if self._process.stdout.readline() != "mounted\n":
            raise RuntimeError("the file system ended; see its stderr")


def cannot_mount() -> str:
    """Say why there can be no such file system here; "" = there can."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            _unmount(folder, _mount(folder))
        except OSError as error:
            return f"no FUSE file system can be mounted here: {error}"
    return ""


if __name__ == "__main__":
    _serve(sys.argv[1])
