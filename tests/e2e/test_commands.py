"""The command line on messages: through the running service, and where none runs."""

import asyncio
import json
import os
import pty
import tempfile
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from tests.support.relay import Close, Relay
from tests.support.service import MAILCHUTE, PATIENCE, Ended, Service, environment, run

SEND = ("send", "--to", "ann@theirs.test", "--from", "bot@ours.test", "--subject", "Order 4711", "--text", "On its way")


class Scene:
    """A relay, a folder with settings that lead there, and commands in it."""

    def __init__(self, relay: Relay, folder: Path) -> None:
        self.relay = relay
        self.folder = folder
        self.settings = {"SMTP_HOST": relay.host, "SMTP_PORT": f"{relay.port}", "SMTP_TLS": "none"}

    async def do(self, *words: str) -> Ended:
        return await run(MAILCHUTE, *words, folder=self.folder, settings=self.settings)

    async def told(self, *words: str) -> list[Any]:
        """Give what a command that goes well writes as JSON."""
        said = await self.do(*words, "--json")
        assert said.code == 0, said
        return [json.loads(line) for line in said.out.splitlines()]


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="mailchute-") as name:
        yield Path(name)


@pytest.fixture(params=["running", "none"])
async def scene(request: pytest.FixtureRequest, folder: Path) -> AsyncIterator[Scene]:
    """Every command is the same whether or not a service runs."""
    async with Relay() as relay:
        scene = Scene(relay, folder)
        if request.param == "none":
            assert (await scene.do("migrate")).code == 0
            yield scene
            return
        async with Service(scene.settings, folder=folder):
            yield scene


@pytest.fixture
async def served(folder: Path) -> AsyncIterator[Scene]:
    """A service that runs."""
    async with Relay() as relay:
        scene = Scene(relay, folder)
        async with Service(scene.settings, folder=folder):
            yield scene


async def test_a_message_is_sent_looked_up_and_listed(scene: Scene) -> None:
    [sent] = await scene.told(*SEND, "--tag", "vip")
    assert (sent["state"], sent["accepted"]) == ("sent", ["ann@theirs.test"])
    assert [mail.taken for mail in scene.relay.mails] == [True]
    [found] = await scene.told("show", sent["id"])
    assert (found["subject"], len(found["attempts"])) == ("Order 4711", 1)
    shown = await scene.do("show", sent["id"])
    assert "subject: Order 4711" in shown.out
    assert "C: RCPT TO:<ann@theirs.test>" in shown.out
    source = await scene.do("show", sent["id"], "--raw")
    assert source.out.endswith("\r\n\r\nOn its way\r\n")
    [other] = await scene.told(*SEND, "--subject", "Another")
    assert [m["id"] for m in await scene.told("list")] == [other["id"], sent["id"]]
    assert [m["id"] for m in await scene.told("list", "-q", "order", "--tag", "vip")] == [sent["id"]]
    assert [m["id"] for m in await scene.told("list", "-n", "1")] == [other["id"]]
    listed = await scene.do("list", "--state", "sent")
    header, *lines = listed.out.splitlines()
    assert header.split() == ["ACCEPTED", "(UTC)", "STATE", "ID", "PROFILE", "ERROR", "TO", "SUBJECT"]
    assert [line.split()[2:4] for line in lines] == [["sent", m["id"]] for m in (other, sent)]
    assert lines[1].endswith("  ann@theirs.test  Order 4711")
    [attempt] = await scene.told("attempts", "-n", "1")
    assert (attempt["id"], attempt["number"]) == (other["id"], 1)
    tried = (await scene.do("attempts", "--profile", "default")).out.splitlines()
    assert tried[0].split() == ["STARTED", "(UTC)", "MESSAGE", "NO", "PROFILE", "PHASE", "RESULT", "REPLY"]
    assert [line.split()[2] for line in tried[1:]] == [other["id"], sent["id"]]


async def test_what_is_kept_and_not_well_is_1_with_its_cure(scene: Scene) -> None:
    scene.relay.on("RCPT", "550 5.1.1 no such user")
    said = await scene.do(*SEND)
    assert said.code == 1
    assert "failed" in said.out
    assert "EENVELOPE/mailbox_unknown" in said.out
    assert "\nCure: " in said.out


WRONG = [
    (("send", "--to", "nobody", "--text", "x"), 2, "mailchute: --to: "),
    (("send", "--to", "a@b.test", "--text", "x", "--attach", "none.pdf"), 2, "--attach: none.pdf cannot be read"),
    (("send", "--to", "a@b.test", "--text", "x", "--profile", "defaults"), 2, "do you mean default?"),
    (("show", "4711"), 1, "There is no message 4711"),
    (("show", "?state=sent"), 1, "There is no message ?state=sent"),
    (("list", "--state", "snet"), 2, "mailchute: --state is one of "),
    (("retry",), 2, "name messages to retry, or a filter"),
    (("cancel", "4711", "--state", "deferred"), 2, "and not both"),
    (("cancel", "4711"), 1, "There is no message 4711"),
    (("frobnicate",), 2, "No such command"),
]
WRONG_OPTIONS = [
    (("send", "--to", "a@b.test", "--text", "x", "--from", "a b"), 2, "mailchute: --from: "),
    (("send", "--to", "a@b.test", "--text", "x", "--reply-to", "@"), 2, "mailchute: --reply-to: "),
    (("send", "--text", "x"), 2, "mailchute: --to: "),
    (("send", "--to", "a@b.test", "--text", "x", "--header", "Subject: x"), 2, "mailchute: --header Subject: "),
    (("send", "--to", "a@b.test", "--text", "x", "--header", "X-A"), 2, "mailchute: --header: write Name: value"),
    (("send", "--to", "a@b.test", "--text", "x", "--header", "X-A: 1", "--header", "x-a: 2"), 2, "given twice"),
    (("send", "--to", "a@b.test", "--text", "x", "--send-at", "soon"), 2, "mailchute: --send-at: "),
    (("send", "--to", "a@b.test", "--text", "x", "--expires-in", "soon"), 2, "mailchute: --expires-in: 'soon' is not"),
    (("send", "--to", "a@b.test", "--text", "x", "--expires-in", "9000d"), 2, "mailchute: --expires-in: "),
    (("send", "--to", "a@b.test", "--text", "x", "--tag", "x" * 200), 2, "mailchute: --tag: "),
    (("list", "--error-code", "EAUHT"), 2, "mailchute: --error-code is one of "),
    (("list", "--since", "yesterday"), 2, "mailchute: --since is an instant"),
    (("list", "--from", "@"), 2, "mailchute: --from: "),
    (("list", "-q", "!"), 2, "mailchute: --search has no word in it"),
    (("attempts", "--until", "tomorrow"), 2, "mailchute: --until is an instant"),
    (("retry", "--to", "nobody"), 2, "mailchute: --to: "),
    (("erase", "nobody"), 2, "mailchute: ADDRESS: "),
    (("resolve", "4711", "--as", "sent"), 1, "There is no message 4711"),
    (("resolve", "4711", "--as", "lost"), 2, "--as"),
]


async def test_what_cannot_be_is_told_in_plain_words(scene: Scene) -> None:
    for words, code, says in WRONG:
        said = await scene.do(*words)
        assert (said.code, said.out) == (code, ""), words
        assert says in said.err
        assert "Traceback" not in said.err


async def test_a_fault_is_told_by_its_option(served: Scene) -> None:
    for some in (WRONG_OPTIONS[at : at + 4] for at in range(0, len(WRONG_OPTIONS), 4)):
        ended = await asyncio.gather(*[served.do(*words) for words, _, _ in some])
        for (words, code, says), said in zip(some, ended, strict=True):
            assert (said.code, said.out) == (code, ""), words
            assert says in said.err


async def test_all_that_match_are_cancelled_or_sent_again(scene: Scene) -> None:
    scene.relay.on("RCPT", "450 4.2.1 busy", times=3)
    ids = [json.loads((await scene.do(*SEND, "--json")).out)["id"] for _ in range(3)]
    [cancelled] = await scene.told("cancel", ids[0])
    assert cancelled["state"] == "cancelled"
    assert (await scene.do("cancel", "--state", "deferred", "--search", "nothing")).out == "0 messages cancelled\n"
    unasked = await scene.do("retry", "--state", "deferred")
    assert (unasked.code, unasked.out) == (2, "")
    assert "retry would act on 2 messages: repeat it with --yes" in unasked.err
    assert (await scene.do("retry", "--state", "deferred", "--yes")).out == "2 messages to be sent again\n"
    empty = await scene.do("list", "--state", "deferred")
    assert (empty.code, empty.out, empty.err) == (0, "", "none\n")
    assert await scene.told("list", "--state", "deferred") == []
    assert await scene.told("retry", "-y", "--state", "failed") == [{"count": 0}]


async def test_what_is_in_doubt_is_resolved_by_what_the_log_of_the_relay_says(scene: Scene) -> None:
    scene.relay.on("CONTENT", Close(), times=2)
    ids = [json.loads((await scene.do(*SEND, "--json")).out)["id"] for _ in range(2)]
    for id_, outcome in zip(ids, ("sent", "failed"), strict=True):
        [resolved] = await scene.told("resolve", id_, "--as", outcome)
        assert (resolved["id"], resolved["state"]) == (id_, outcome)
    again = await scene.do("resolve", ids[0], "--as", "sent")
    assert (again.code, again.out) == (1, "")
    assert "only what is in doubt can be resolved" in again.err


async def test_headers_times_and_expiry_go_along_and_warnings_are_told(served: Scene) -> None:
    tomorrow = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) + timedelta(days=1)
    there = tomorrow.astimezone(timezone(timedelta(hours=-5)))
    later = ("--header", "X-Order: 4711", "--header", "X-Kind:a b", "--send-at", f"{there:%Y-%m-%dT%H:%M}")
    said = await run(
        *(MAILCHUTE, *SEND, *later, "--expires-in", "2d", "--wait", "0", "--json"),
        folder=served.folder,
        settings={**served.settings, "TZ": "EST5"},
    )
    sent = json.loads(said.out)
    assert (sent["state"], sent["next_attempt_at"]) == ("scheduled", f"{tomorrow:%Y-%m-%dT%H:%M}:00.000Z")
    lasts = datetime.fromisoformat(sent["expires_at"]) - datetime.fromisoformat(sent["created_at"])
    assert timedelta(days=1) < lasts <= timedelta(days=3)
    source = (await served.do("show", sent["id"], "--raw")).out
    assert "\r\nX-Order: 4711\r\nX-Kind: a b\r\n" in source
    await served.do("pause", "default")
    warned = await served.do(*SEND, "--wait", "0")
    assert (warned.code, "warning: " in warned.out) == (0, False)
    assert warned.err == "warning: the profile default is paused: the message waits until somebody resumes it\n"


async def test_times_are_the_readers(served: Scene) -> None:
    [sent] = await served.told(*SEND)

    async def in_zone(zone: str, *words: str) -> str:
        settings = {**served.settings, "TZ": zone}
        return (await run(MAILCHUTE, *words, folder=served.folder, settings=settings)).out

    accepted = datetime.fromisoformat(sent["created_at"])
    east = accepted.astimezone(timezone(timedelta(hours=14)))
    header, line = (await in_zone("LINT-14", "list")).splitlines()
    assert header.startswith("ACCEPTED (LINT)")
    assert line.startswith(f"{east:%Y-%m-%d %H:%M:%S}  sent")
    assert f"attempt 1, {east:%Y-%m-%d %H:%M}" in await in_zone("LINT-14", "show", sent["id"])
    last = f"{east + timedelta(seconds=1):%Y-%m-%dT%H:%M:%S}"
    assert await in_zone("LINT-14", "list", "--until", last) != ""
    assert await in_zone("LINT-14", "list", "--since", last) == ""
    assert await in_zone("LINT-14", "list", "--since", f"{east:%Y-%m-%d}") != ""


async def test_what_comes_on_stdin_is_the_text_and_files_go_along(scene: Scene) -> None:
    (scene.folder / "order.txt").write_text("4711")
    process = await asyncio.create_subprocess_exec(
        MAILCHUTE,
        *("send", "--to", "ann@theirs.test", "--from", "bot@ours.test", "--attach", "order.txt"),
        cwd=scene.folder,
        env=environment(scene.settings),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    await asyncio.wait_for(process.communicate(b"piped in"), PATIENCE)
    assert process.returncode == 0
    [mail] = scene.relay.mails
    assert b"piped in" in mail.content
    assert b'filename="order.txt"' in mail.content


async def test_a_dry_run_shows_the_source_and_sends_nothing(scene: Scene) -> None:
    said = await scene.do(*SEND, "--dry-run")
    assert said.code == 0
    assert "Subject: Order 4711" in said.out
    assert scene.relay.connections == 0


async def test_profiles_are_listed(scene: Scene) -> None:
    [profile] = await scene.told("profiles")
    assert (profile["name"], profile["port"], profile["logs_in"]) == ("default", scene.relay.port, False)
    assert (await scene.do("profiles")).out.startswith(
        f"default: {scene.relay.host}:{scene.relay.port}, tls none, no AUTH"
    )


async def test_a_profile_in_trouble_is_listed_with_its_cure(scene: Scene) -> None:
    scene.relay.on("GREETING", "554 5.7.1 Not you, 127.0.0.1")
    await scene.do(*SEND)
    said = (await scene.do("profiles")).out
    if not (scene.folder / "var" / "mailchute.db.sock").exists():
        assert said.count("\n") == 1  # without a service nobody knows how they stand
        return
    assert "circuit open since" in said
    assert "EPROTOCOL/greeting_refused: The relay greeted with a refusal: 554 5.7.1 Not you" in said
    assert "Cure: The relay turns this machine away" in said


HOSTILE = "gone \x1b[2J\x1b]0;title\x07\u009b31m\u0085\u202egpj.exe\u2066\u200bpal\u2028\ufeff\U000e0041"


async def test_a_terminal_does_not_obey_what_callers_and_relays_wrote(folder: Path) -> None:
    raw = HOSTILE.encode() + b"\xff\x9b31m"
    async with Relay() as relay:
        scene = Scene(relay, folder)
        async with Service(scene.settings, folder=folder):
            relay.on("RCPT", b"550 5.1.1 " + raw + b"\r\n")
            sent = await scene.do(*SEND, "--subject", "invoice \u202egpj.exe\u200b", "--tag", "a\u2066b")
            assert "EENVELOPE/mailbox_unknown: " in sent.out
            assert r"550 5.1.1 gone \x1b[2J" in sent.out
            id_ = sent.out.split()[3]
            relay.on("GREETING", b"554 5.7.1 " + raw + b"\r\n")
            refused = await scene.do(*SEND, "--json")  # opens the circuit, which health and profiles show
            commands = [("show", id_), ("show", id_, "--json"), ("list",), ("list", "--json"), ("show", HOSTILE)]
            commands += [("profiles",), ("profiles", "--json"), ("doctor",), ("doctor", "--json"), ("health",)]
            rest = await asyncio.gather(*[scene.do(*words) for words in commands])
            [kept] = await scene.told("show", id_)
        own = await scene.do(*SEND, "--profile", HOSTILE)
    for said in (sent, refused, own, *rest):
        lines = (said.out + said.err).split("\n")
        assert all(line.isprintable() for line in lines), said
        assert "Traceback" not in said.err
    assert kept["subject"] == "invoice \u202egpj.exe\u200b"


@pytest.mark.parametrize(
    ("answer", "after"),
    [
        pytest.param(b"y\n", (0, b"2 messages cancelled\n", 0), id="yes"),
        pytest.param(b"\n", (1, b"", 2), id="no"),
        pytest.param(b"what?\n", (1, b"", 2), id="neither"),
    ],
)
async def test_at_a_terminal_bulk_work_asks_first_and_shows_how_far_it_is(
    answer: bytes, after: tuple[int, bytes, int], folder: Path
) -> None:
    async with Relay() as relay:
        scene = Scene(relay, folder)
        relay.on("RCPT", "450 4.2.1 busy", times=2)
        async with Service(scene.settings, folder=folder):
            for _ in range(2):
                assert (await scene.do(*SEND)).code == 1
            ours, its = pty.openpty()
            process = await asyncio.create_subprocess_exec(
                *(MAILCHUTE, "cancel", "--state", "deferred"),
                stdin=its,
                cwd=folder,
                env={**environment(scene.settings), "TERM": "xterm"},
                stdout=asyncio.subprocess.PIPE,
                stderr=its,
            )
            os.close(its)
            shown = b""
            async with asyncio.timeout(PATIENCE):
                while b"Cancel 2 messages? [y/N] " not in shown:
                    shown += await asyncio.to_thread(os.read, ours, 10_000)
            os.write(ours, answer)
            out, _ = await asyncio.wait_for(process.communicate(), PATIENCE)
            shown += await asyncio.to_thread(os.read, ours, 10_000)
            os.close(ours)
            left = await scene.told("list", "--state", "deferred")
    assert (process.returncode, out, len(left)) == after
    assert b"0:00:0" in shown


async def test_looking_makes_no_database(folder: Path) -> None:
    async with Relay() as relay:
        scene = Scene(relay, folder)
        said = await scene.do("list")
        assert (said.code, said.out) == (2, "")
        assert "there is no database var/mailchute.db" in said.err
    assert list(folder.iterdir()) == []


async def test_where_none_runs_what_waits_is_left_alone_by_whoever_only_looks(folder: Path) -> None:
    async with Relay() as relay:
        scene = Scene(relay, folder)
        relay.on("RCPT", "450 4.2.1 busy", times=1)
        [kept] = [json.loads((await scene.do(*SEND, "--json")).out)]
        connections = relay.connections
        [again] = await scene.told("retry", kept["id"])
        assert again["state"] == "queued"
        await scene.told("list")
        assert relay.connections == connections
        await scene.do(*SEND, "--wait", "5")
        assert (await scene.told("list", "--state", "queued")) == []


async def test_the_tail_shows_changes_as_they_happen(folder: Path) -> None:
    async with Relay() as relay:
        scene = Scene(relay, folder)
        assert "no service runs here" in (await scene.do("tail")).err
        async with Service(scene.settings, folder=folder) as service:
            process = await asyncio.create_subprocess_exec(
                *(MAILCHUTE, "tail", "--json"),
                cwd=folder,
                env=environment(scene.settings),
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )
            assert process.stdout is not None
            assert process.stderr is not None
            async with asyncio.timeout(PATIENCE):
                assert await process.stderr.readline() == b"Following; Ctrl-C ends it.\n"
                relay.on("RCPT", "450 4.2.1 busy", times=1)
                first = (await service.send()).json()["id"]
                assert json.loads(await process.stdout.readline())["state"] == "deferred"
                second = (await service.send()).json()["id"]
                assert json.loads(await process.stdout.readline())["id"] == second
                await service.http.post(f"/messages/{first}/cancel")
                assert json.loads(await process.stdout.readline())["state"] == "cancelled"
                assert await service.stop() == 0
                assert await process.wait() == 0


@pytest.mark.parametrize("path", ["/changes", "/service"])
async def test_only_the_operator_follows_and_sees_which_database_it_is(path: str) -> None:
    async with Service() as service:
        answer = await service.http.get(path)
        assert answer.status_code == 404
