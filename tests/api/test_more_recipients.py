"""More recipients than a relay takes in one transaction: the rest follow at once, in the same attempt."""

import asyncio
from pathlib import Path

import pytest

from tests.api.shapes import flat
from tests.support.app import running
from tests.support.relay import Close, Relay, Wait

EVERYBODY = [f"r{n}@theirs.test" for n in range(7)]


class Bounded(list[object]):
    """Takes so many recipients a transaction, and refuses the rest."""

    def __init__(self, relay: Relay, most: int, refusal: str) -> None:
        super().__init__()
        self.relay, self.most, self.refusal = relay, most, refusal

    def __iter__(self):  # type: ignore[no-untyped-def]
        taken = self.relay.dialogues[-1]._recipients
        return iter(["250 2.1.5 Ok"] if len(taken) < self.most else [self.refusal])


@pytest.mark.parametrize("refusal", ["452 4.5.3 Too many recipients", "552 Too many recipients", "452 4.5.3 Enough"])
async def test_the_rest_goes_at_once_in_the_same_attempt(tmp_path: Path, refusal: str) -> None:
    async with running(tmp_path) as service:
        service.relay.on("RCPT", Bounded(service.relay, 3, refusal))  # type: ignore[arg-type]
        sent = flat(await service.send(to=EVERYBODY), status=200)
        (attempt,) = (await service.look_up(sent["id"]))["attempts"]
        assert (sent["state"], sent["accepted"], sent["attempts"]) == ("sent", EVERYBODY, 1)
        assert [mail.rcpt_to for mail in service.relay.mails] == [EVERYBODY[:3], EVERYBODY[3:6], EVERYBODY[6:]]
        assert (service.relay.connections, attempt["handover"], attempt["error_code"]) == (1, True, None)


async def test_whoever_was_refused_otherwise_does_not_follow(tmp_path: Path) -> None:
    async with running(tmp_path) as service:
        service.relay.on("RCPT", Bounded(service.relay, 2, "452 4.5.3 Too many recipients"))  # type: ignore[arg-type]
        service.relay.on("RCPT", "450 4.2.0 Busy", match="r0@")
        service.relay.on("RCPT", "550 5.1.1 Nobody", match="r1@")
        answer = flat(await service.send(to=EVERYBODY[:5]), status=202)
        assert (answer["state"], answer["accepted"], answer["attempts"]) == ("deferred", EVERYBODY[2:5], 1)
        assert [one["address"] for one in answer["rejected"]] == ["r1@theirs.test"]
        assert [mail.rcpt_to for mail in service.relay.mails] == [EVERYBODY[2:4], EVERYBODY[4:5]]
        assert sum("r0@" in command for command in service.relay.commands) == 1


@pytest.mark.parametrize("refusal", ["452 4.3.1 Insufficient system storage", "450 4.7.1 Too many recipients from you"])
async def test_what_only_looks_like_it_waits_for_the_schedule(tmp_path: Path, refusal: str) -> None:
    async with running(tmp_path) as service:
        service.relay.on("RCPT", Bounded(service.relay, 3, refusal))  # type: ignore[arg-type]
        answer = flat(await service.send(to=EVERYBODY), status=202)
        assert (answer["state"], answer["accepted"], len(service.relay.mails)) == ("deferred", EVERYBODY[:3], 1)


async def test_a_break_in_the_second_transaction_says_nothing_of_the_first(tmp_path: Path) -> None:
    """Before its content ends the rest is deferred, behind it in doubt; whoever was sent to stays so."""
    for verb, state in (("DATA", "pending"), ("CONTENT", "in_doubt")):
        async with running(tmp_path) as service:
            service.relay.on("RCPT", Bounded(service.relay, 3, "452 4.5.3 Too many"))  # type: ignore[arg-type]
            service.relay.on(verb, (Close(),))
            service.relay.on(verb, "354 Go" if verb == "DATA" else "250 2.0.0 Ok", times=1)
            answer = flat(await service.send(to=EVERYBODY[:5]), status=202)
            found = await service.look_up(answer["id"])
            assert [one["state"] for one in found["recipients"]] == ["sent"] * 3 + [state] * 2


async def test_where_the_second_needs_a_connection_that_is_not_to_be_had_the_rest_waits(tmp_path: Path) -> None:
    environ = {"MAILCHUTE_PROFILES__RELAY__IDLE_TIMEOUT": "0"}  # each transaction on a connection of its own
    async with running(tmp_path, environ=environ) as service:
        service.relay.on("RCPT", Bounded(service.relay, 3, "452 4.5.3 Too many"))  # type: ignore[arg-type]
        service.relay.on("GREETING", "554 5.7.1 Not you")
        service.relay.on("GREETING", "220 relay.test ESMTP", times=1)
        answer = flat(await service.send(to=EVERYBODY[:5]), status=202)
        assert (answer["accepted"], answer["attempts"], answer["reason"]) == (EVERYBODY[:3], 1, "greeting_refused")


async def test_stopped_in_the_second_transaction_the_first_stays_sent(tmp_path: Path) -> None:
    never = asyncio.Event()
    async with running(tmp_path) as service:
        service.relay.on("RCPT", Bounded(service.relay, 3, "452 4.5.3 Too many"))  # type: ignore[arg-type]
        service.relay.on("MAIL", (Wait(never), "250 Ok"))
        service.relay.on("MAIL", "250 2.1.0 Ok", times=1)
        id_ = flat(await service.send(to=EVERYBODY[:5], prefer="respond-async"), status=202)["id"]
        await service.relay.seen("MAIL", 2)
    async with running(tmp_path, keep=True) as service:
        found = await service.settled(id_)
        assert (found["state"], found["accepted"]) == ("sent", EVERYBODY[:5])
        assert [mail.rcpt_to for mail in service.relay.mails] == [EVERYBODY[3:5]]
        assert [(one["handover"], one["reason"]) for one in found["attempts"]] == [
            (True, "connection_lost"),
            (True, None),
        ]
