"""Callers that send without end to a service that goes down again and again, and an account of all their mail.

Callers behave as the README tells them: after 5xx or no answer they repeat with the same Idempotency-Key. Each
message has its key for a subject, so that a mail that is sent twice shows under whatever id it went.
"""

import asyncio
import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import httpx2

from tests.support.postfix import Postfix
from tests.support.service import MAILCHUTE, PATIENCE, Service

CALLERS = 6
_MESSAGE_ID = re.compile(rb"^Message-ID: (<[^>]+>)", re.MULTILINE)
_KEY = re.compile(rb"^Subject: (crash-[0-9a-f]+-\d+)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Account:
    """What became of every message that was answered with 2xx."""

    states: Counter[str]
    arrived: int  # mails at the relay
    lost: list[str]  # keys of messages that the service does not know, or calls sent and the relay has not
    doubled: list[str]  # keys that arrived more than once, or under two Message-IDs
    sent_again: list[str]  # those of them that were in doubt before, and arrived under the one Message-ID
    unmarked: list[str]  # keys of messages in doubt whose attempt has no mark
    doubtful_and_arrived: int

    def __str__(self) -> str:
        return (
            f"{self.states.total()} accepted, {dict(self.states)}, {self.arrived} arrived; of those in doubt "
            f"{self.doubtful_and_arrived} had arrived; lost {len(self.lost)}, doubled {len(self.doubled)}"
            f"{f', of those once in doubt {len(self.sent_again)}' if self.sent_again else ''}"
        )


async def account(
    postfix: Postfix,
    folder: Path,
    *,
    crashes: int,
    seed: int,
    command: Sequence[str] = (MAILCHUTE, "serve"),
    after_kill: Callable[[], None] = lambda: None,
    more: Mapping[str, str] = MappingProxyType({}),
) -> Account:
    """Kill a service that many callers use at random moments; then let it run, and account for every message.

    The service is started in `folder` and sends through the Postfix. `after_kill` is what befalls the folder.
    """
    moments = random.Random(seed)
    settings = {"SMTP_HOST": "127.0.0.1", "SMTP_PORT": f"{postfix.plain.port}", "SMTP_TLS": "none", **more}
    callers = Callers(seed)
    for run in range(crashes):
        async with Service(settings, folder=folder, command=command) as service:
            callers.base = service.base
            callers.is_up.set()
            if run % 2 == 0:  # on a busy machine nothing might be accepted before the kill, ever
                await callers.have(len(callers.accepted) + CALLERS)
            await asyncio.sleep(moments.uniform(0, 0.5))  # the moment is what is random
            callers.is_up.clear()
            await service.kill()
        after_kill()
    async with Service(settings, folder=folder, command=command) as service:
        callers.base = service.base
        callers.is_up.set()
        await callers.end()
        found = await settled(service, callers.accepted)
    return _accounted(found, callers.accepted, await asyncio.to_thread(postfix.mailbox.take))


def _accounted(found: dict[str, dict[str, Any] | None], accepted: dict[str, str], mails: Iterable[bytes]) -> Account:
    ids: dict[str, list[bytes]] = defaultdict(list)
    for mail in mails:
        if match := _KEY.search(mail):
            ids[match[1].decode()] += _MESSAGE_ID.findall(mail)
    arrived = Counter({key: len(several) for key, several in ids.items()})
    states: Counter[str] = Counter()
    lost, unmarked, doubtful_and_arrived = [], [], 0
    for id_, message in found.items():
        key, state = accepted[id_], message["state"] if message else "unknown"
        states[state] += 1
        if message is None or (state == "sent" and not arrived[key]):
            lost.append(key)
        elif state == "in_doubt":
            doubtful_and_arrived += bool(arrived[key])
            if not message["attempts"][-1]["handover"]:
                unmarked.append(key)
    doubled = [key for key, times in arrived.items() if times > 1]
    marked = {accepted[id_] for id_, message in found.items() if message and _was_in_doubt(message)}
    again = [key for key in doubled if key in marked and len(set(ids[key])) == 1]
    return Account(states, arrived.total(), lost, doubled, again, unmarked, doubtful_and_arrived)


def _was_in_doubt(message: dict[str, Any]) -> bool:
    return any(each["handover"] and each["reason"] == "outcome_unknown" for each in message["attempts"])


async def settled(service: Service, ids: Iterable[str]) -> dict[str, dict[str, Any] | None]:
    """Look every message up once nothing more happens to it; None where the service does not know it."""
    found: dict[str, dict[str, Any] | None] = {}
    async with asyncio.timeout(4 * PATIENCE):
        while left := [id_ for id_ in ids if id_ not in found]:
            for id_ in left:
                answer = await service.http.get(f"/messages/{id_}")
                message = answer.json() if answer.status_code == 200 else None
                if message is None or message["final"]:
                    found[id_] = message
                else:
                    await service.http.post(f"/messages/{id_}/retry", headers={"Prefer": "wait=1"})
    return found


class Callers:
    """Callers that never give up on a message before they have a 2xx for it."""

    def __init__(self, seed: int) -> None:
        self.base = ""  # of the service that runs now
        self.is_up = asyncio.Event()
        self.accepted: dict[str, str] = {}  # id → key, which is the subject too
        self._seed = seed  # in every key: several accounts may share a mailbox
        self._random = random.Random(seed)
        self._one_more = asyncio.Event()
        self._over = False
        self._count = 0
        self._tasks = [asyncio.create_task(self._send_on()) for _ in range(CALLERS)]

    async def have(self, count: int) -> None:
        """Wait until so many messages have been accepted."""
        async with asyncio.timeout(PATIENCE):
            while len(self.accepted) < count:
                self._one_more.clear()
                await self._one_more.wait()

    async def end(self) -> None:
        """Let everybody bring their last message in."""
        self._over = True
        await asyncio.gather(*self._tasks)

    async def _send_on(self) -> None:
        async with httpx2.AsyncClient(timeout=PATIENCE, trust_env=False) as client:
            while not self._over:
                self._count += 1
                await self._send(client, f"crash-{self._seed:x}-{self._count}")

    async def _send(self, client: httpx2.AsyncClient, key: str) -> None:
        body = {"from": "bot@mailbox.test", "to": "ann@mailbox.test", "subject": key, "text": key * 50}
        headers = {"Idempotency-Key": key, "Prefer": self._random.choice(["respond-async", "wait=5"])}
        while True:
            await self.is_up.wait()
            try:
                answer = await client.post(f"{self.base}/send", json=body, headers=headers)
            except httpx2.TransportError:
                await asyncio.sleep(0)  # whoever kills it closes the gate
                continue
            if answer.status_code < 300:
                self.accepted[answer.json()["id"]] = key
                self._one_more.set()
                return
            assert answer.status_code == 503, answer.text
