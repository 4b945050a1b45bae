"""Secrets stay inside: canaries for the SMTP password and the API key, looked for in everything that comes out.

The service runs in a process of its own, so that its logs are the real ones. A canary may come out in no form
that leads back to it: as it is, in base64 at any alignment (AUTH PLAIN puts bytes before it), escaped or quoted.
"""

import base64
import hmac
import json
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import quote

import httpx2
import pytest

from app.mail.errors import ConfigError
from app.settings import load
from tests.support.app import MESSAGE
from tests.support.relay import CHALLENGES, Close, Relay
from tests.support.service import Service
from tests.support.tls import certificates

PASSWORD = 'canary-Pa55 "w0rd\\of<the>relay'
KEY = "canary-k3y-0f-the-api/+="
OPEN = ["/livez", "/readyz", "/docs", "/redoc", "/openapi.json"]


async def test_no_secret_comes_out_of_a_conversation_that_succeeds_and_fails(tmp_path: Path) -> None:
    relay = Relay(tls=certificates().server(), auth=["LOGIN", "PLAIN"], users={"bot": PASSWORD}, auth_required=True)
    async with relay, Service(settings(relay), folder=tmp_path) as service:
        answers = await converse(relay, service.base)
        assert await service.stop() == 0
        assert {"delivery.sent", "delivery.deferred", "delivery.in_doubt"} <= {line["event"] for line in service.log}
        assert [c for c in relay.commands if c.startswith("AUTH PLAIN")]  # it was used, so it could have come out
        in_files = [path.read_text("latin-1") for path in tmp_path.iterdir() if path.is_file()]
        assert_no_secret([*answers, service.text, *service.errors, *in_files])


@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN", "CRAM-MD5"])
async def test_a_relay_that_repeats_the_credentials_does_not_bring_them_out(mechanism: str, tmp_path: Path) -> None:
    """Relays that do not understand a line quote it in their refusal."""
    digest = hmac.new(PASSWORD.encode(), CHALLENGES["CRAM-MD5"][0], "md5").hexdigest()
    sent = {"PLAIN": f"\0bot\0{PASSWORD}", "LOGIN": PASSWORD, "CRAM-MD5": f"bot {digest}"}[mechanism]
    encoded = base64.b64encode(sent.encode()).decode()
    relay = Relay(tls=certificates().server(), auth=[mechanism])
    relay.on("AUTH" if mechanism == "PLAIN" else "AUTH2", f"500 5.5.1 Command unrecognized: {encoded}", match=encoded)
    async with relay, Service(settings(relay), folder=tmp_path) as service:
        answers = await look_around(service.base)
        assert await service.stop() == 0
        assert any("Command unrecognized" in answer for answer in answers)
        assert_no_secret([*answers, *service.errors])
        assert [form for form in (digest, encoded) for text in (*answers, *service.errors) if form in text] == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"MAILCHUTE_PROFILES__RELAY__TLS": "opportunistic"},
        {"MAILCHUTE_PROFILES__RELAY__USERNAME": ""},
        {"MAILCHUTE_PROFILES__RELAY__PASWORD": PASSWORD},
        {"MAILCHUTE_PROFILES__RELAY__PASSWORD__AGAIN": PASSWORD},
        {"MAILCHUTE_PROFILES__RELAY__PASSWORD_FILE": "/etc/passwd"},
        {"MAILCHUTE_API_KEY": KEY[:15]},
        {"MAILCHUTE_APIKEY": KEY},
        {"MAILCHUTE_PROFILES__RELAY__PORT": "many"},
    ],
    ids=str,
)
async def test_no_secret_is_in_a_refusal_to_start(wrong: dict[str, str]) -> None:
    async with Relay() as relay:
        with pytest.raises(ConfigError) as refusal:
            load({**settings(relay), **wrong}, files=())
    assert_no_secret([str(refusal.value), repr(refusal.value)])


async def test_no_secret_is_in_the_settings_as_they_are_shown() -> None:
    async with Relay() as relay:
        whole = load(settings(relay), files=())
    assert whole.profiles["relay"].password == PASSWORD
    assert_no_secret([repr(whole), str(whole.profiles)])


def settings(relay: Relay) -> dict[str, str]:
    return {
        "MAILCHUTE_API_KEY": KEY,
        "MAILCHUTE_DATABASE_URL": "mailchute.db",
        "MAILCHUTE_RETRY__SCHEDULE": "1h",
        "MAILCHUTE_PROFILES__RELAY__HOST": "localhost",
        "MAILCHUTE_PROFILES__RELAY__PORT": str(relay.port),
        "MAILCHUTE_PROFILES__RELAY__CA_FILE": str(certificates().ca_file),
        "MAILCHUTE_PROFILES__RELAY__USERNAME": "bot",
        "MAILCHUTE_PROFILES__RELAY__PASSWORD": PASSWORD,
        "MAILCHUTE_PROFILES__RELAY__HELO_NAME": "ours.test",
        "MAILCHUTE_PROFILES__RELAY__IDLE_TIMEOUT": "0",  # every message logs in anew
    }


async def converse(relay: Relay, url: str) -> list[str]:
    """Send with success, then meet one failure after the other, and look at all there is to see."""
    texts = await look_around(url)
    scripts: list[tuple[str, str | bytes | Close]] = [
        ("AUTH", "535 5.7.8 authentication failed"),
        ("AUTH", "454 4.7.0 Temporary authentication failure"),
        ("AUTH", "334 VGhpcyBpcyBub3QgYW4gZW5k"),
        ("AUTH", "250 2.0.0 What?"),
        ("AUTH", b"rubbish\r\n"),
        ("AUTH", Close()),
        ("MAIL", "530 5.7.0 Authentication required"),
        ("CONTENT", "550 5.7.1 Spam"),
        ("CONTENT", Close()),
    ]
    for verb, answer in scripts:
        relay.on(verb, answer, times=1)
        texts += await look_around(url)
    return texts


async def look_around(url: str) -> list[str]:
    """Send a message, and give every answer that can be had of it, and of who does not have the key."""
    async with httpx2.AsyncClient(base_url=url, headers={"X-API-Key": KEY}, trust_env=False) as client:
        await client.post("/profiles/relay/resume")  # or the circuit that the failure before opened would answer
        sent = await client.post("/send", json=MESSAGE)
        assert sent.status_code in (200, 202, 424), sent.text
        message = f"/messages/{sent.json()['id']}"
        mine = [
            await client.get(path) for path in (message, f"{message}/raw", "/messages", "/health", "/metrics", *OPEN)
        ]
        wrong = [
            await client.post("/send", json={**MESSAGE, "to": "ann"}),
            await client.get("/messages", headers={"X-API-Key": KEY[::-1]}),
            await client.get("/messages", headers={"X-API-Key": "", "Authorization": f"Basic {KEY}"}),
            await client.get("/nowhere", params={"api_key": "x"}),
        ]
    assert [answer.status_code for answer in mine] == [200] * len(mine)
    assert [answer.status_code for answer in wrong] == [422, 401, 401, 404]
    return [said(answer) for answer in (sent, *mine, *wrong)]


def said(answer: httpx2.Response) -> str:
    return f"{answer.status_code} {answer.headers.raw} {answer.text}"


def assert_no_secret(texts: Iterable[str]) -> None:
    forms = [form for secret in (PASSWORD, KEY) for form in forms_of(secret)]
    for text in texts:
        for form in forms:
            assert form not in text, (form, text[max(0, text.index(form) - 200) :][:600])


def forms_of(secret: str) -> set[str]:
    """Give every form in which a secret could be found; of base64 what does not depend on its neighbours."""
    inside = {
        base64.b64encode(b"x" * before + secret.encode()).decode().rstrip("=")[2 + before * 4 // 3 : -2]
        for before in range(3)
    }
    return {secret, json.dumps(secret)[1:-1], repr(secret)[1:-1], quote(secret), *inside}
