"""The order of things at the kernel: what an answer promises is on the disk before the answer leaves.

A kill -9 cannot show this, since the kernel keeps what was written; only the order of system calls can. strace
runs as the service's grandchild (-D), so that the service is still our own child.
"""

import re
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.service import MAILCHUTE, Service
from tests.support.tracing import TRACED, cannot_trace

CALLS = "read,readv,recvfrom,recvmsg,write,writev,sendto,sendmsg,pwrite64,fsync,fdatasync"
STRACE = (*TRACED, "-y", "-s", "1000", "-e", f"trace={CALLS}")
SYNCS = ("fsync", "fdatasync")
SLOW_DISK = ("-e", "inject=fsync,fdatasync:delay_enter=100000")  # microseconds: whoever does not wait is seen

# What the service would be with one sync less: the assertions below must see the difference.
CARELESS = """
from app.store import database

connect = database.connect

def connect_carelessly(file, *, read_only):
    connection = connect(file, read_only=read_only)
    connection.execute("PRAGMA synchronous = NORMAL")
    return connection

database.connect = connect_carelessly

from app.cli import main

main()
"""


@pytest.fixture(scope="module", autouse=True)
def tracing() -> None:
    if reason := cannot_trace(*STRACE[3:], *SLOW_DISK):
        pytest.skip(reason)


@dataclass(slots=True)
class Call:
    """One system call. `began` and `ended` are places in the trace; what it read is known at its end."""

    name: str
    said: str
    began: int
    ended: int


class Trace:
    """What strace wrote, with the calls that another thread's interrupted put together again."""

    def __init__(self, text: str) -> None:
        self.calls: list[Call] = []
        open_: dict[str, Call] = {}
        for at, line in enumerate(text.splitlines()):
            thread, _, said = line.partition(" ")
            said = said.lstrip()
            if begun := re.match(r"(\w+)\(", said):
                call = Call(begun[1], said, at, at)
                self.calls.append(call)
                if said.endswith("<unfinished ...>"):
                    open_[thread] = call
            elif said.startswith("<... ") and thread in open_:
                call = open_.pop(thread)
                call.said, call.ended = call.said + said, at

    def last(self, *names: str, holding: str) -> Call:
        found = [call for call in self.calls if call.name in names and holding in call.said]
        assert found, f"no {names} with {holding!r} in the trace"
        return found[-1]

    def request(self) -> Call:
        return self.last("read", "readv", "recvfrom", "recvmsg", holding='"POST /send ')

    def answer(self, status: int) -> Call:
        return self.last("write", "writev", "sendto", "sendmsg", holding=f'"HTTP/1.1 {status} ')

    def content(self) -> Call:
        """Give the write that lets a content's end go: the final dot, perhaps with all that is before it."""
        return self.last("write", "writev", "sendto", "sendmsg", holding=r'\r\n.\r\n"')

    def syncs_between(self, first: Call, last: Call) -> int:
        """Count the syncs of the log that began after `first` had ended and had ended before `last` began."""
        return len(
            [
                call
                for call in self.calls
                if call.name in SYNCS
                and "-wal>" in call.said
                and re.search(r"= 0( \(DELAYED\))?\Z", call.said)
                and first.ended < call.began
                and call.ended < last.began
            ]
        )


async def traced(program: tuple[str, ...], folder: Path, *, prefer: str) -> Trace:
    """Trace a service that has sent one message while it takes another, on a disk that is slow to sync."""
    file = folder / "trace"
    command = (*STRACE, *SLOW_DISK, "-o", str(file), *program, "serve")
    async with Service(command=command) as service:
        for _ in range(2):
            answer = await service.send(prefer=prefer)
            await service.logged("delivery.sent", message_id=answer.json()["id"])
        assert await service.stop() == 0
    return Trace(file.read_text(errors="replace"))


def careless(folder: Path) -> tuple[str, ...]:
    script = folder / "careless.py"
    script.write_text(CARELESS)
    return sys.executable, str(script)


async def test_a_message_is_on_the_disk_before_the_202_that_promises_it(tmp_path: Path) -> None:
    trace = await traced((MAILCHUTE,), tmp_path, prefer="respond-async")
    assert trace.syncs_between(trace.request(), trace.answer(202)) >= 1


async def test_without_full_syncs_that_would_not_hold(tmp_path: Path) -> None:
    trace = await traced(careless(tmp_path), tmp_path, prefer="respond-async")
    assert trace.syncs_between(trace.request(), trace.answer(202)) == 0


async def test_message_mark_and_verdict_are_on_the_disk_each_before_what_follows_them(tmp_path: Path) -> None:
    trace = await traced((MAILCHUTE,), tmp_path, prefer="wait=10")
    request, content, answer = trace.request(), trace.content(), trace.answer(200)
    assert trace.syncs_between(request, content) == 2, "the message, then the mark before the content's end leaves"
    assert trace.syncs_between(content, answer) == 1, "the verdict before the answer that tells it"
