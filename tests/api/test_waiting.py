"""`Prefer`: how long the answer waits for a verdict, and what it says of that (RFC 7240)."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from time import monotonic

import pytest

from tests.api.shapes import flat
from tests.support.app import MESSAGE, PATIENCE, Application, running
from tests.support.relay import Stall, Wait


@pytest.mark.parametrize("prefer", ["wait=0", "respond-async", "WAIT=0", "Respond-Async", "foo=bar; x, respond-async"])
async def test_who_does_not_wait_is_told_that_it_is_being_sent(prefer: str, service: Application) -> None:
    service.relay.on("CONTENT", Stall())
    answer = await service.send(prefer=prefer)
    said = flat(answer, status=202)
    assert (said["state"], said["ok"], said["final"], said["will_retry"]) == ("sending", True, False, False)
    assert (said["error_code"], said["accepted"], said["attempts"]) == (None, [], 1)
    assert answer.headers["location"] == f"messages/{said['id']}"
    assert "retry-after" not in answer.headers
    assert answer.headers["preference-applied"] == ("wait=0" if "wait" in prefer.lower() else "respond-async")
    await service.relay.mail()


async def test_a_message_beyond_what_the_worker_takes_at_once_is_queued(tmp_path: Path) -> None:
    gate = asyncio.Event()
    async with running(tmp_path, environ={"MAILCHUTE_PROFILES__RELAY__MAX_CONNECTIONS": "1"}) as service:
        service.relay.on("MAIL", ("250 2.1.0 Ok", Wait(gate)))
        for _ in range(8):
            assert flat(await service.send(prefer="wait=0"), status=202)["state"] == "sending"
        answer = await service.send(prefer="wait=0")
        said = flat(answer, status=202)
        assert (said["state"], said["ok"], said["attempts"]) == ("queued", True, 0)
        assert said["message"] == "accepted, waiting to be sent"
        assert answer.headers["location"] == f"messages/{said['id']}"
        gate.set()
        assert (await service.settled(said["id"]))["state"] == "sent"


async def test_the_answer_comes_with_the_verdict(service: Application) -> None:
    verdict = asyncio.Event()
    service.relay.on("CONTENT", (Wait(verdict), "250 2.0.0 Ok"))
    waiting = asyncio.create_task(service.send(prefer="wait=30"))
    await service.relay.mail()
    (found,) = (await service.client.get("/messages")).json()["data"]
    assert found["state"] == "sending"
    assert not waiting.done()
    verdict.set()
    async with asyncio.timeout(PATIENCE):
        answer = await waiting
    assert flat(answer, status=200)["state"] == "sent"
    assert answer.headers["preference-applied"] == "wait=30"


async def test_the_answer_waits_no_longer_than_asked(service: Application) -> None:
    service.relay.on("CONTENT", Stall())
    began = monotonic()
    answer = await service.send(prefer="wait=1")
    took = monotonic() - began
    assert flat(answer, status=202)["state"] == "sending"
    assert answer.headers["preference-applied"] == "wait=1"
    assert 0.9 < took < 5


async def test_the_answer_waits_by_default_as_long_as_is_set(tmp_path: Path) -> None:
    async with running(tmp_path, environ={"MAILCHUTE_DEFAULT_WAIT": "300ms"}) as service:
        service.relay.on("CONTENT", Stall())
        began = monotonic()
        answer = await service.send()
        took = monotonic() - began
    assert flat(answer, status=202)["state"] == "sending"
    assert "preference-applied" not in answer.headers
    assert 0.25 < took < 5


async def test_the_wait_counts_from_the_first_byte_of_the_request(service: Application) -> None:
    """A slow upload uses the wait up: Typebot gives up ten seconds after it began, not after it ended."""
    service.relay.on("CONTENT", Stall())
    uploaded = asyncio.Event()
    asyncio.get_running_loop().call_later(1.4, uploaded.set)
    body = json.dumps(MESSAGE).encode()

    async def slowly() -> AsyncIterator[bytes]:
        yield body[:10]
        await uploaded.wait()
        yield body[10:]

    began = monotonic()
    headers = {"Content-Type": "application/json", "Prefer": "wait=1"}
    answer = await service.client.post("/send", content=slowly(), headers=headers)
    took = monotonic() - began
    assert answer.status_code == 202
    assert took < 2.2
    await service.relay.mail()


@pytest.mark.parametrize(
    ("prefer", "applied"),
    [
        ("wait=5", "wait=5"),
        ("Wait = 5", "wait=5"),
        ('wait="5"', "wait=5"),
        ("wait=30", "wait=30"),
        ("wait=31", "wait=30"),
        ("wait=999999", "wait=30"),
        ("wait=5, handling=lenient", "wait=5, handling=lenient"),
        ("handling=lenient; x=y, wait=7", "wait=7, handling=lenient"),
        ("wait=5, wait=9", "wait=5"),
        ("return=minimal", None),
        ("wait", None),
        ("wait=", None),
        ("wait=-1", None),
        ("wait=1.5", None),
        ("wait=soon", None),
        ("", None),
        (",;=,,", None),
    ],
)
async def test_what_was_applied_is_said_and_what_is_not_known_ignored(
    prefer: str, applied: str | None, service: Application
) -> None:
    answer = await service.send(prefer=prefer)
    assert flat(answer, status=200)["state"] == "sent"
    assert answer.headers.get("preference-applied") == applied


async def test_two_prefer_headers_are_one_list(service: Application) -> None:
    answer = await service.client.post(
        "/send", json={**MESSAGE, "colour": "red"}, headers=[("Prefer", "wait=5"), ("Prefer", "handling=lenient")]
    )
    flat(answer, status=200)
    assert answer.headers["preference-applied"] == "wait=5, handling=lenient"


async def test_a_caller_that_goes_away_leaves_its_message_with_us(service: Application) -> None:
    verdict = asyncio.Event()
    service.relay.on("CONTENT", (Wait(verdict), "250 2.0.0 Ok"))
    waiting = asyncio.create_task(service.send())
    await service.relay.mail()
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    verdict.set()
    (found,) = (await service.client.get("/messages")).json()["data"]
    assert (await service.settled(found["id"]))["state"] == "sent"


async def test_a_service_that_stops_answers_who_waits_with_what_is_known(service: Application) -> None:
    service.relay.on("CONTENT", Stall())
    waiting = asyncio.create_task(service.send(prefer="wait=30"))
    await service.relay.mail()
    service.runtime.verdicts.release()
    async with asyncio.timeout(PATIENCE):
        answer = await waiting
    assert flat(answer, status=202)["state"] == "sending"
