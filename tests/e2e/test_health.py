"""`mailchute health`, which the image's HEALTHCHECK runs: 0 while the service can take mail, 1 when it cannot."""

import shlex
import signal
from pathlib import Path

from tests.support.service import MAILCHUTE, Service, run

KEY = "a-key-of-sixteen-characters-or-more"
BLOCKS = 400  # of 512 bytes, as in test_disk
LIMITED = ("sh", "-c", f"ulimit -f {BLOCKS}; exec {shlex.quote(MAILCHUTE)} serve")


async def test_a_service_that_can_take_mail_is_0_without_a_key_and_its_warnings_are_told() -> None:
    async with Service({"MAILCHUTE_API_KEY": KEY}) as service:
        ended = await run(MAILCHUTE, "health", folder=service.folder)
    assert (ended.code, ended.err) == (0, "")
    status, *warnings = ended.out.splitlines()
    assert status == "warn"
    assert "  warn profiles sandbox sandbox: messages are kept here and not sent" in warnings


async def test_where_no_service_runs_it_is_1_and_nothing_is_made(tmp_path: Path) -> None:
    ended = await run(MAILCHUTE, "health", folder=tmp_path)
    assert (ended.code, ended.out) == (1, "")
    assert ended.err == "mailchute: no service is running on var/mailchute.db\n"
    assert list(tmp_path.iterdir()) == []


async def test_a_service_that_hangs_is_1() -> None:
    async with Service() as service:
        service.process.send_signal(signal.SIGSTOP)
        ended = await run(MAILCHUTE, "health", folder=service.folder)
    assert (ended.code, ended.out) == (1, "")
    assert ended.err.startswith("mailchute: the running service gave no answer")


async def test_a_store_that_takes_nothing_is_1_and_named() -> None:
    async with Service(command=LIMITED) as service:
        for n in range(100):
            if (await service.send(subject=f"no. {n}", prefer="respond-async")).status_code != 202:
                break
        for _ in range(15):  # as in test_disk: a look may still find room for its own few bytes
            await service.http.get("/health")
        for _ in range(10):
            ended = await run(MAILCHUTE, "health", folder=service.folder)
            if ended.code != 0:
                break
    assert (ended.code, ended.err) == (1, "")
    assert ended.out.startswith("fail\n  fail store ")
