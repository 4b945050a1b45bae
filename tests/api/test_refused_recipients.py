"""Recipients who are refused do not hold up the others: whoever can be sent to is sent to, once, and soon."""

import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.api.shapes import flat
from tests.support.app import running
from tests.support.relay import EXTENSIONS, Close, Relay
from tests.support.tls import Answer

SOON = {"MAILCHUTE_RETRY__SCHEDULE": "100ms"}
FULL, NOBODY, BYE = "452 4.2.2 Mailbox full", "550 5.1.1 Nobody", ("421 4.3.2 Bye", Close())
TOO_MANY_ERRORS = "421 4.7.0 Error: too many errors"


@dataclass(kw_only=True, eq=False)
class Impatient(Relay):
    """A relay that ends a session at its `most`th error, as Postfix does (smtpd_hard_error_limit)."""

    most: int = 20
    refusals: Mapping[str, Answer] = field(default_factory=dict)  # by what stands before the @
    ending: Answer = (TOO_MANY_ERRORS, Close())
    errors: Counter[int] = field(default_factory=Counter)

    def scripted(self, verb: str, text: str) -> Answer | None:
        session = len(self.sessions)
        if verb in ("MAIL", "RCPT", "DATA") and self.errors[session] >= self.most:
            return self.ending
        refusal = self.refusals.get(text.partition("<")[2].partition("@")[0]) if verb == "RCPT" else None
        if refusal is not None:
            self.errors[session] += 1
        return refusal or super().scripted(verb, text)

    @property
    def taken(self) -> Counter[str]:
        """Whom it took mail for, and how often."""
        return Counter(address for mail in self.mails if mail.taken for address in mail.rcpt_to)


def impatient(refusals: Mapping[str, Answer], *, pipelined: bool = True, **said: object) -> Impatient:
    return Impatient(refusals=refusals, extensions=EXTENSIONS[0 if pipelined else 1 :], **said)  # type: ignore[arg-type]


def at(*names: str) -> list[str]:
    return [f"{name}@theirs.test" for name in names]


pipelined_or_not = pytest.mark.parametrize("pipelined", [True, False], ids=["pipelined", "step-by-step"])


@pytest.mark.parametrize("place", ["first", "in the middle", "last"])
@pytest.mark.parametrize("ending", [(TOO_MANY_ERRORS, Close()), Close()], ids=["421", "closed"])
@pipelined_or_not
async def test_the_good_one_is_sent_to_in_the_first_attempt(
    place: str, ending: Answer, pipelined: bool, tmp_path: Path
) -> None:
    full = [f"full{n}" for n in range(25)]
    where = {"first": 0, "in the middle": 12, "last": 25}[place]
    everybody = at(*full[:where], "ok", *full[where:])
    relay = impatient(dict.fromkeys(full, FULL), pipelined=pipelined, ending=ending)
    async with running(tmp_path, relay) as service:
        answer = flat(await service.send(to=everybody), status=202)
        found = await service.look_up(answer["id"])
        assert (answer["state"], answer["accepted"], answer["attempts"]) == ("deferred", at("ok"), 1)
        assert (relay.taken, relay.connections <= 3) == (Counter(at("ok")), True)
        assert {one["smtp_code"] for one in found["recipients"] if one["state"] == "pending"} <= {452, 421, None}


@pipelined_or_not
async def test_who_answers_421_holds_the_others_up_for_one_attempt_at_most(pipelined: bool, tmp_path: Path) -> None:
    for everybody in (at("cursed", "ok", "fine"), at("ok", "cursed", "fine"), at("ok", "fine", "cursed")):
        relay = impatient({"cursed": BYE}, pipelined=pipelined)
        folder = tmp_path / everybody[0] / everybody[1]
        folder.mkdir(parents=True)
        async with running(folder, relay, environ=SOON) as service:
            answer = flat(await service.send(to=everybody), status=202)
            assert (answer["state"], answer["accepted"]) == ("deferred", [])
            await relay.mail(1)
            assert [sorted(mail.rcpt_to) for mail in relay.mails] == [sorted(at("ok", "fine"))]
            assert relay.connections == 2  # the second attempt
            await relay.connected(4)
            assert relay.taken == Counter(at("ok", "fine"))


async def test_several_who_answer_421_are_sorted_out_one_after_the_other(tmp_path: Path) -> None:
    relay = impatient({"c1": BYE, "c2": BYE, "c3": BYE})
    async with running(tmp_path, relay, environ=SOON) as service:
        flat(await service.send(to=at("c1", "c2", "c3", "ok")), status=202)
        await relay.mail(1)
        assert relay.taken == Counter(at("ok"))
        assert relay.connections <= 6


async def test_who_was_refused_is_asked_again_behind_the_others_and_taken_when_there_is_room(tmp_path: Path) -> None:
    refusals: dict[str, Answer] = {"full": FULL, "busy": "450 4.2.1 Busy"}
    relay = impatient(refusals)
    relay.on("DATA", "451 4.3.0 Later", times=1)
    async with running(tmp_path, relay, environ=SOON) as service:
        id_ = flat(await service.send(to=at("full", "ok", "busy")), status=202)["id"]
        await relay.seen("RCPT", 4)
        del refusals["full"], refusals["busy"]
        found = await service.settled(id_)
        assert (found["state"], found["attempts"][-1]["handover"]) == ("sent", True)
        assert relay.taken == Counter(at("full", "ok", "busy"))
        first = next(mail for mail in relay.mails if mail.taken)
        assert first.rcpt_to == at("ok")


async def test_while_the_relay_puts_the_others_off_nobody_else_is_asked(tmp_path: Path) -> None:
    relay = impatient({"full": FULL})
    relay.on("CONTENT", "451 4.3.0 Later", times=2)
    async with running(tmp_path, relay, environ=SOON) as service:
        flat(await service.send(to=at("full", "ok")), status=202)
        await relay.mail(3)
        await relay.seen("RCPT", 5)
        asked = [command for command in relay.commands if command.startswith("RCPT")]
        assert [("full" in command) for command in asked[:5]] == [True, False, False, False, True]
        assert relay.taken == Counter(at("ok"))


@pytest.mark.parametrize("seed", range(3))
@pipelined_or_not
async def test_of_a_thousand_every_good_one_is_sent_to_once_in_the_first_attempt(
    seed: int, pipelined: bool, tmp_path: Path
) -> None:
    chance = random.Random(seed)
    names = [f"r{n}" for n in range(1000)]
    bad = chance.sample(names, chance.choice((21, 60, 200)))
    relay = impatient({name: chance.choice((FULL, NOBODY)) for name in bad}, pipelined=pipelined)
    async with running(tmp_path, relay) as service:
        answer = flat(await service.send(to=at(*names)), status=202)
        good = at(*(name for name in names if name not in bad))
        assert (relay.taken, answer["attempts"]) == (Counter(good), 1)
        assert sorted(answer["accepted"]) == sorted(good)
        nobody = {name for name in bad if relay.refusals[name] == NOBODY}
        assert {one["address"] for one in answer["rejected"]} == set(at(*nobody))


@pytest.mark.parametrize("seed", range(4))
@pipelined_or_not
async def test_mixtures_of_refusals_keep_nobody_waiting(seed: int, pipelined: bool, tmp_path: Path) -> None:
    chance = random.Random(seed)
    names = [f"r{n}" for n in range(60)]
    bad = chance.sample(names, 45)
    relay = impatient(
        {name: chance.choice((FULL, "450 4.2.0 Busy", NOBODY, NOBODY, BYE if at_ < 4 else FULL)) for at_, name in enumerate(bad)},
        pipelined=pipelined,
        most=10,
    )  # fmt: skip
    async with running(tmp_path, relay, environ=SOON) as service:
        id_ = flat(await service.send(to=at(*names)), status=202)["id"]
        good = at(*(name for name in names if name not in bad))
        while set(relay.taken) < set(good):
            await relay.connected(relay.connections + 1)
        found = await service.look_up(id_)
        assert relay.taken == Counter(good)
        assert len(found["attempts"]) <= 6
        assert {one["address"] for one in found["recipients"] if one["state"] == "rejected"} <= set(at(*bad))
