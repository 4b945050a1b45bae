"""What the program keeps and forgets: by age, in a backup and out of it again, and when somebody asks to be forgotten."""

from tests.support.relay import Relay
from tests.support.service import Service


def leading_to(relay: Relay, **more: str) -> dict[str, str]:
    return {"SMTP_HOST": relay.host, "SMTP_PORT": f"{relay.port}", "SMTP_TLS": "none", **more}


async def test_a_body_that_is_forgotten_is_said_to_be_and_nothing_is_sent_again_without_it() -> None:
    async with Relay() as relay:
        relay.on("RCPT", "550 5.1.1 no such user")
        async with Service(leading_to(relay)) as first:
            id_ = (await first.send()).json()["id"]
            assert (await first.http.get(f"/messages/{id_}/raw")).status_code == 200
            assert await first.stop() == 0
            async with Service(leading_to(relay, MAILCHUTE_RETENTION__BODIES="0"), folder=first.folder) as second:
                said = await second.logged("store.forgotten")
                assert (said["bodies"], said["messages"]) == (1, 0)
                raw, again = [
                    await second.http.get(f"/messages/{id_}/raw"),
                    await second.http.post(f"/messages/{id_}/retry"),
                ]
                assert (raw.status_code, again.status_code) == (404, 409)
                for answer in (raw, again):
                    assert "content is not kept any more" in answer.json()["detail"]
                assert (await second.message(id_))["state"] == "failed"
