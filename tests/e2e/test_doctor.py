"""`mailchute doctor`, as anybody calls it: through the running service and without one.

Who of the two goes to the relay shows in the name that it is greeted with: the service's settings and the command's
own name another. What the stages say is in tests/contract/test_doctor.py.
"""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.api.shapes import DIAGNOSIS
from tests.support.factories import refused_port
from tests.support.relay import Relay, Stall
from tests.support.service import MAILCHUTE, Ended, Service, run

KEY = "a-key-of-sixteen-characters-or-more"
PASSWORD = "canary-of-the-doctor"

in_one_loop = pytest.mark.asyncio(loop_scope="module")  # tests that look at one and the same service


def profile(name: str, relay: Relay | int, **said: str) -> dict[str, str]:
    """Give a profile in the environment's words; it names itself so that the relay knows whose it is."""
    port = relay if isinstance(relay, int) else relay.port
    facts = {"HOST": "127.0.0.1", "PORT": str(port), "TLS": "none", "FROM": "bot@ours.test", **said}
    return {f"MAILCHUTE_PROFILES__{name.upper()}__{key}": text for key, text in facts.items()}


def settings(open_to_all: Relay, guarded: Relay, *, helo: str) -> dict[str, str]:
    login = {"USERNAME": "bot", "PASSWORD": PASSWORD}
    return {
        "MAILCHUTE_DEFAULT_PROFILE": "intranet",
        "MAILCHUTE_API_KEY": KEY,
        **profile("intranet", open_to_all, HELO_NAME=helo),
        **profile("cloud", guarded, HELO_NAME=helo, **login),
    }


async def doctor(service: Service, own: dict[str, str], *words: str) -> Ended:
    return await run(MAILCHUTE, "doctor", *words, folder=service.folder, settings=own)


def assert_refused(ended: Ended, *words: str) -> None:
    """The command cannot work: exit code 2, plain sentences on stderr, nothing on stdout."""
    assert (ended.code, ended.out) == (2, ""), ended
    assert all(line.startswith("mailchute: ") for line in ended.err.splitlines()), ended.err
    assert all(word in ended.err for word in words), ended.err


# --- through the running service -------------------------------------------------------------------------------


class Scene:
    """A service with a key and two relays, one of which wants a login; and the settings of whoever calls the doctor."""

    def __init__(self, open_to_all: Relay, guarded: Relay, service: Service) -> None:
        self.open_to_all, self.guarded, self.service = open_to_all, guarded, service
        self.own = settings(open_to_all, guarded, helo="command.test")

    async def doctor(self, *words: str) -> Ended:
        return await doctor(self.service, self.own, *words)


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def scene() -> AsyncIterator[Scene]:
    async with (
        Relay() as open_to_all,
        Relay(auth=["PLAIN"], users={"bot": PASSWORD}) as guarded,
        Service(settings(open_to_all, guarded, helo="service.test")) as service,
    ):
        yield Scene(open_to_all, guarded, service)


class TestThroughTheService:
    pytestmark = in_one_loop

    async def test_the_service_goes_there_and_no_key_is_needed(self, scene: Scene) -> None:
        ended = await scene.doctor("intranet")
        assert (ended.code, ended.err) == (0, "")
        assert {c for c in scene.open_to_all.commands if c.startswith("EHLO")} == {"EHLO service.test"}

    async def test_the_text_says_every_stage_and_the_whole(self, scene: Scene) -> None:
        said = (await scene.doctor("intranet", "--to", "Ann <ann@theirs.test>")).out
        port = scene.open_to_all.port
        assert re.sub(r" +\d+\.\d ms", " N ms", said).splitlines() == [
            f"intranet (127.0.0.1:{port})",
            "  ok      resolve N ms",
            f"  ok      connect N ms  127.0.0.1:{port}",
            "  skipped tls                   tls is none",
            "  ok      greeting N ms",
            "  ok      ehlo N ms  PIPELINING, SIZE 10485760, 8BITMIME, SMTPUTF8, ENHANCEDSTATUSCODES, HELP",
            "  skipped starttls              tls is none",
            "  skipped auth                  no credentials: no AUTH",
            "  ok      mail N ms",
            "  ok      rcpt N ms",
            "All is well: the relay would take a message through intranet; nothing was sent.",
        ]
        assert len({line.index(" ms") for line in said.splitlines() if " ms" in line}) == 1, "they stand in a column"

    async def test_sender_and_recipient_may_be_named(self, scene: Scene) -> None:
        ended = await scene.doctor("intranet", "--from", "eve@ours.test", "--to", "bob@theirs.test")
        assert ended.code == 0
        assert {"MAIL FROM:<eve@ours.test>", "RCPT TO:<bob@theirs.test>"} <= set(scene.open_to_all.commands)

    async def test_a_profile_that_does_not_work_is_1_with_its_cure(self, scene: Scene) -> None:
        scene.open_to_all.on("MAIL", "550 5.7.1 not as him", times=1)
        ended = await scene.doctor("intranet")
        assert (ended.code, ended.err) == (1, "")
        assert re.search(r"^  failed  mail +\d+\.\d ms  The relay refused the sender: 550", ended.out, re.MULTILINE)
        assert ended.out.splitlines()[-2:] == [
            "EENVELOPE/sender_refused (permanent): The relay refused the sender: 550 5.7.1 not as him",
            "Cure: The relay does not take mail from this sender: use a From address it allows.",
        ]

    async def test_every_profile_is_tried_and_one_that_may_not_log_in_again_holds_up_no_other(
        self, scene: Scene
    ) -> None:
        first = await scene.doctor()
        assert (first.code, first.err) == (0, "")
        assert re.findall(r"^(\w+) \(127", first.out, re.MULTILINE) == ["intranet", "cloud"]
        assert PASSWORD not in first.out
        logins = scene.guarded.connections

        second = await scene.doctor("cloud", "intranet", "cloud", "--json")
        assert second.code == 1
        assert second.err.startswith("mailchute: The profile cloud has just logged in for a diagnosis")
        assert len(second.err.splitlines()) == 1, "a name that is given twice is tried once"
        (found,) = map(json.loads, second.out.splitlines())
        assert list(found) == DIAGNOSIS
        assert (found["profile"], found["ok"]) == ("intranet", True)
        assert scene.guarded.connections == logins

    async def test_an_unknown_profile_and_an_address_that_is_none_are_2(self, scene: Scene) -> None:
        assert_refused(await scene.doctor("intranett"), "There is no profile 'intranett'", "do you mean intranet?")
        assert_refused(await scene.doctor("intranet", "--to", "ann@"), "ann@")

    async def test_a_service_that_ends_meanwhile_is_1_in_plain_words(self) -> None:
        async with Relay(greeting=Stall()) as relay, Service(profile("slow", relay)) as service:
            asking = asyncio.create_task(doctor(service, profile("slow", relay)))
            await relay.connected()
            await service.kill()
            ended = await asking
        assert (ended.code, ended.out) == (1, "")
        assert ended.err.startswith("mailchute: the running service gave no answer")
        assert len(ended.err.splitlines()) == 1

    async def test_the_sandbox_can_be_tried_by_its_name_while_it_runs(self) -> None:
        async with Service() as service:
            ended = await doctor(service, {}, "sandbox", "--from", "bot@ours.test")
            assert (ended.code, ended.err) == (0, "")
            assert "through sandbox; nothing was sent" in ended.out
            assert_refused(await doctor(service, {}), "no relay to try", "SMTP_HOST")


# --- without one -----------------------------------------------------------------------------------------------


async def test_where_no_service_runs_the_command_goes_there_itself_and_makes_nothing(tmp_path: Path) -> None:
    async with Relay() as relay, Relay(auth=["PLAIN"], users={"bot": PASSWORD}) as guarded:
        own = settings(relay, guarded, helo="command.test")
        ended = await run(MAILCHUTE, "doctor", "cloud", "intranet", "cloud", folder=tmp_path, settings=own)
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.count("All is well: ") == 2, "a name that is given twice is tried once"
    assert PASSWORD not in ended.out
    assert relay.commands[0] == guarded.commands[0] == "EHLO command.test"
    assert len([command for command in guarded.commands if command.startswith("AUTH")]) == 1
    assert relay.commands[-1] == "QUIT"
    assert list(tmp_path.iterdir()) == []


async def test_a_socket_that_a_crash_left_is_no_service(tmp_path: Path) -> None:
    async with Relay() as relay, Service(profile("intranet", relay), folder=tmp_path) as service:
        await service.kill()
        assert service.operator_path.exists()
        ended = await doctor(service, profile("intranet", relay, HELO_NAME="command.test"))
    assert (ended.code, ended.err) == (0, "")
    assert relay.commands[0] == "EHLO command.test"


async def test_one_profile_that_does_not_work_makes_the_whole_1(tmp_path: Path) -> None:
    async with Relay() as relay:
        own = {**profile("down", refused_port()), **profile("intranet", relay), "MAILCHUTE_DEFAULT_PROFILE": "down"}
        ended = await run(MAILCHUTE, "doctor", "--json", folder=tmp_path, settings=own)
    assert (ended.code, ended.err) == (1, "")
    found = [json.loads(line) for line in ended.out.splitlines()]
    assert [list(one) for one in found] == [DIAGNOSIS, DIAGNOSIS]
    assert [(one["profile"], one["ok"], one["reason"]) for one in found] == [
        ("down", False, "connection_refused"),
        ("intranet", True, None),
    ]


@pytest.mark.parametrize(
    ("words", "own", "says"),
    [
        ([], {}, ["no relay to try", "SMTP_HOST"]),
        (["sandbox"], {}, ["no profile 'sandbox'", "there are: none"]),
        (["intranett"], profile("intranet", 25), ["do you mean intranet?"]),
        (["x"], profile("intranet", 25), ["there are: intranet"]),
        (["--from", "bot@"], profile("intranet", 25), ["bot@"]),
        ([], {"SMTP_HOST": "127.0.0.1", "SMTP_USERNAME": "bot"}, ["SMTP_PASSWORD is missing"]),
    ],
    ids=["no relay", "the sandbox", "unknown", "unknown and far", "no address", "bad settings"],
)
async def test_what_cannot_be_tried_is_2_in_plain_words(
    words: list[str], own: dict[str, str], says: list[str], tmp_path: Path
) -> None:
    assert_refused(await run(MAILCHUTE, "doctor", *words, folder=tmp_path, settings=own), *says)
    assert list(tmp_path.iterdir()) == []
