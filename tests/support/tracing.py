"""strace: around a child, to see its system calls in their order, or on one that runs, to let some of them fail."""

import asyncio
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

PATIENCE = 20.0  # seconds
TRACED = ("strace", "-D", "-f")  # as the child's own child, so that the child stays ours


def cannot_trace(*options: str) -> str:
    """Say why a child cannot be traced with these options; empty = it can."""
    if not shutil.which("strace"):
        return "strace is not installed"
    probe = subprocess.run([*TRACED, *options, "true"], capture_output=True, text=True, check=False)
    return "" if probe.returncode == 0 else f"strace is not permitted here: {probe.stderr.strip()[-200:]}"


def cannot_attach() -> str:
    """Say why a process that runs cannot be traced; empty = it can."""
    if not shutil.which("strace"):
        return "strace is not installed"
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        command = ["strace", "-o", "/dev/null", "-e", "inject=fsync:error=EIO", "-p", f"{process.pid}"]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as strace:
            assert strace.stderr is not None
            said = strace.stderr.readline()
            strace.terminate()
        process.communicate(b"\n")
    return "" if "attached" in said else f"strace is not permitted here: {said.strip()[-200:]}"


@asynccontextmanager
async def failing(pid: int, calls: str, how: str, *, file: Path, when: str = "1+") -> AsyncIterator[None]:
    """Let a process's `calls` on `file` fail as `how` says, such as `error=EIO`, until the block ends.

    `when=3` is the third call of every thread, `3+2` every second one from there on.
    """
    inject = f"inject={calls}:{how}:when={when}"
    options = ("-f", "-o", "/dev/null", "-P", str(file), "-e", f"trace={calls}", "-e", inject)
    strace = await asyncio.create_subprocess_exec("strace", *options, "-p", f"{pid}", stderr=asyncio.subprocess.PIPE)
    assert strace.stderr is not None
    try:
        async with asyncio.timeout(PATIENCE):
            said = await strace.stderr.readline()
        assert b"attached" in said, said
        yield
    finally:
        with suppress(ProcessLookupError):
            strace.terminate()
        await strace.communicate()  # and lets go
