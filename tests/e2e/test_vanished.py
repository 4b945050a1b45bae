"""A caller that goes away before its answer: the message is kept, and the same key gets it later, sent once."""

import asyncio
import json

from tests.support.relay import Relay, Wait
from tests.support.service import MAIL, PATIENCE, Service


async def test_a_client_that_vanished_gets_the_same_message_later() -> None:
    goes_on = asyncio.Event()
    async with Relay() as relay:
        relay.on("CONTENT", (Wait(goes_on), "250 2.0.0 taken"))
        async with Service({"SMTP_HOST": relay.host, "SMTP_PORT": f"{relay.port}", "SMTP_TLS": "none"}) as service:
            body = json.dumps(dict(MAIL)).encode()
            host, _, port = service.base.removeprefix("http://").partition(":")
            _, writer = await asyncio.open_connection(host, int(port))
            writer.write(
                f"POST /send HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\n"
                f"Content-Length: {len(body)}\r\nIdempotency-Key: 4711\r\n\r\n".encode()
                + body
            )
            await relay.mail()
            writer.transport.abort()
            again = asyncio.create_task(
                service.http.post("/send", json=dict(MAIL), headers={"Idempotency-Key": '"4711"'}, timeout=PATIENCE)
            )
            goes_on.set()
            answer = await again
            assert (answer.status_code, answer.json()["state"]) == (200, "sent")
            assert answer.headers["Idempotent-Replayed"] == "true"
    assert len(relay.mails) == 1
