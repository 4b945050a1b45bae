"""A disk with no more room: nothing is taken that cannot be kept, nothing that was kept is lost, and it is said.

The child's files may not grow beyond a limit (`ulimit -f`), which to SQLite is a disk that takes no more.
"""

import shlex

from tests.support.service import MAILCHUTE, Service

BLOCKS = 400  # of 512 bytes: room for the tables and some small mails
LIMITED = ("sh", "-c", f"ulimit -f {BLOCKS}; exec {shlex.quote(MAILCHUTE)} serve")
LARGE = "x" * 100_000


async def test_a_message_that_finds_no_room_is_refused_whole_and_what_was_taken_stays() -> None:
    async with Service(command=LIMITED) as service:
        kept = await service.send(subject="kept")
        assert kept.json()["state"] == "sent"
        refused = await service.send(subject="no room", text=LARGE * 2)
        assert refused.status_code == 503
        assert refused.json()["type"] == "/errors/store-unavailable"
        assert "retry-after" in refused.headers
        listed = (await service.http.get("/messages")).json()["data"]
        assert [message["id"] for message in listed] == [kept.json()["id"]]
        assert (await service.message(kept.json()["id"]))["state"] == "sent"


async def test_a_service_that_can_take_nothing_is_not_ready() -> None:
    async with Service(command=LIMITED) as service:
        assert (await service.http.get("/readyz")).status_code == 200
        for n in range(100):
            answer = await service.send(subject=f"no. {n}", prefer="respond-async")
            if answer.status_code != 202:
                break
        assert answer.status_code == 503, "the disk is full now"
        # More than once: a look may find room for its own few bytes, or share its commit with one that fails.
        looks = [(await service.http.get("/readyz")).status_code for _ in range(15)]
        assert looks[-5:] == [503] * 5, looks
        assert (await service.http.get("/health")).status_code == 503
        assert (await service.http.get("/livez")).status_code == 200
