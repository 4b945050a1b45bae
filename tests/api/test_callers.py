"""Who is served: without a key this machine alone and directly, with a key whoever has it."""

from base64 import b64encode
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import httpx2
import pytest

from tests.api.shapes import problem
from tests.support.app import MESSAGE, Application, running

KEY = "a-key-of-the-tests-0123456789"
OPEN = ["/livez", "/readyz", "/docs", "/redoc", "/openapi.json", "/docs/static/docs.js"]
CLOSED = [
    ("POST", "/send"),
    ("GET", "/messages"),
    ("GET", "/messages/01a20bf8-4943-7bad-bcb1-d9c2726ad315"),
    ("GET", "/messages/01a20bf8-4943-7bad-bcb1-d9c2726ad315/raw"),
    ("GET", "/messages/x"),
    ("GET", "/messages?limit=0"),
    ("GET", "/health"),
    ("GET", "/metrics"),
]
OF_THE_SANDBOX = [
    ("GET", "/sandbox"),
    ("GET", "/sandbox/x"),
    ("GET", "/sandbox/01a20bf8-4943-7bad-bcb1-d9c2726ad315"),
    ("GET", "/sandbox/01a20bf8-4943-7bad-bcb1-d9c2726ad315/html"),
    ("GET", "/sandbox/01a20bf8-4943-7bad-bcb1-d9c2726ad315/parts/1"),
]
FOREIGN: dict[str, Mapping[str, str]] = {
    "another host": {"Host": "mail.theirs.test"},
    "another host with our port": {"Host": "mail.theirs.test:8587"},
    "a host that begins like ours": {"Host": "127.0.0.1.theirs.test"},
    "a host that ends like ours": {"Host": "theirs.localhost.test"},
    "our address in another form": {"Host": "0x7f000001"},
    "an address of the network": {"Host": "192.0.2.7:8587"},
    "any address": {"Host": "0.0.0.0:8587"},
    "no host": {"Host": ""},
    "a broken host": {"Host": "[::1"},
    "a host behind brackets": {"Host": "[::1].theirs.test"},
    "a user before the host": {"Host": "127.0.0.1@theirs.test"},
    "Forwarded": {"Forwarded": "for=127.0.0.1"},
    "X-Forwarded-For": {"X-Forwarded-For": "127.0.0.1"},
    "X-Forwarded-Host": {"X-Forwarded-Host": "localhost"},
    "X-Forwarded-Proto": {"X-Forwarded-Proto": "https"},
    "X-Forwarded-Port": {"X-Forwarded-Port": "443"},
    "X-Forwarded-Server": {"X-Forwarded-Server": "proxy"},
    "X-Forwarded-Prefix": {"X-Forwarded-Prefix": "/mail"},
    "X-Real-IP": {"X-Real-IP": "127.0.0.1"},
    "Via": {"Via": "1.1 proxy"},
    "another site's page": {"Origin": "http://theirs.test"},
    "another port's page": {"Origin": "http://127.0.0.1:8000"},
    "our name spelt otherwise": {"Origin": "http://localhost:8587"},
    "a page without an origin": {"Origin": "null"},
    "an empty origin": {"Origin": ""},
    "cross-site": {"Sec-Fetch-Site": "cross-site"},
    "same-site": {"Sec-Fetch-Site": "same-site"},
    "cross-site with our origin": {"Sec-Fetch-Site": "cross-site", "Origin": "http://127.0.0.1:8587"},
    "a key, though none is configured": {"Host": "mail.theirs.test", "Authorization": f"Bearer {KEY}"},
}


@pytest.fixture
async def guarded(tmp_path: Path) -> AsyncIterator[Application]:
    """A service with a key."""
    async with running(tmp_path, environ={"MAILCHUTE_API_KEY": KEY}) as service:
        yield service


# --- no key is configured --------------------------------------------------------------------------------------


@pytest.mark.parametrize("peer", ["127.0.0.1", "127.8.8.8", "::1"])
@pytest.mark.parametrize("host", ["127.0.0.1:8587", "localhost", "LOCALHOST:8587", "[::1]:8587", "[::1]", "127.8.8.8"])
async def test_this_machine_is_served_without_a_key(peer: str, host: str, service: Application) -> None:
    visitor = service.visitor(peer=peer, headers={"Host": host})
    assert (await visitor.post("/send", json=MESSAGE)).status_code == 200
    assert (await visitor.get("/messages")).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://127.0.0.1:8587"},
        {"Origin": "http://127.0.0.1:8587", "Sec-Fetch-Site": "same-origin"},
        {"Origin": "http://localhost:8587", "Host": "localhost:8587"},
        {"Sec-Fetch-Site": "none"},
        {"Authorization": "Bearer whatever"},
        {"X-API-Key": "whatever"},
    ],
    ids=str,
)
async def test_our_own_pages_and_useless_keys_are_served_too(headers: Mapping[str, str], service: Application) -> None:
    assert (await service.visitor(headers=headers).post("/send", json=MESSAGE)).status_code == 200


@pytest.mark.parametrize("headers", FOREIGN.values(), ids=FOREIGN)
@pytest.mark.parametrize(("method", "path"), [("POST", "/send"), ("GET", "/messages")])
async def test_what_did_not_come_straight_from_here_is_401(
    headers: Mapping[str, str], method: str, path: str, service: Application
) -> None:
    answer = await service.visitor(headers=headers).request(method, path, json=MESSAGE if method == "POST" else None)
    says_how_to_make_a_key(answer)
    assert service.relay.connections == 0


@pytest.mark.parametrize("peer", ["192.0.2.7", "10.0.0.1", "0.0.0.0", "::", "2001:db8::7", "localhost.theirs.test", ""])
@pytest.mark.parametrize(("method", "path"), CLOSED)
async def test_another_machine_is_401_everywhere(peer: str, method: str, path: str, service: Application) -> None:
    visitor = service.visitor(peer=peer, headers={"Host": "127.0.0.1:8587"})
    says_how_to_make_a_key(await visitor.request(method, path, json=MESSAGE if method == "POST" else None))


async def test_a_stranger_learns_nothing_of_what_is_wrong_with_the_request(service: Application) -> None:
    stranger = service.visitor(peer="192.0.2.7")
    answers = [
        await stranger.post("/send", json=MESSAGE),
        await stranger.post("/send", content=b"{"),
        await stranger.post("/send", content=b"", headers={"Content-Type": "text/plain"}),
        await stranger.get("/messages/x"),
        await stranger.get("/messages?cursor=x"),
    ]
    assert len({answer.content for answer in answers}) == 1
    says_how_to_make_a_key(answers[0])


# --- a key is configured ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": f"Bearer {KEY}"},
        {"Authorization": f"bearer {KEY}"},
        {"Authorization": f"BEARER   {KEY} "},
        {"X-API-Key": KEY},
        {"X-API-Key": f" {KEY} "},
        {"X-API-Key": KEY, "Authorization": "Basic Ym90OnNlY3JldA=="},
        {"Authorization": f"Basic {b64encode(f'webhook:{KEY}'.encode()).decode()}"},
    ],
    ids=str,
)
@pytest.mark.parametrize("path", ["/messages", "/health", "/metrics"])
async def test_who_has_the_key_is_served_from_anywhere(
    headers: Mapping[str, str], path: str, guarded: Application
) -> None:
    from_afar = {"Host": "mail.ours.test", "X-Forwarded-For": "192.0.2.7", "Origin": "http://theirs.test"}
    visitor = guarded.visitor(peer="192.0.2.7", headers={**from_afar, **headers})
    assert (await visitor.get(path)).status_code == 200
    assert (await visitor.post("/send", json=MESSAGE)).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": ""},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer "},
        {"Authorization": KEY},
        {"Authorization": f"Basic {KEY}"},
        {"Authorization": f"Bearer {KEY}x"},
        {"Authorization": f"Bearer {KEY[:-1]}"},
        {"Authorization": f"Bearer {KEY.upper()}"},
        {"Authorization": f"Bearer {KEY}, Bearer {KEY}"},
        {"Authorization": f"Bearer {KEY}\u00e9"},
        {"X-API-Key": "something-else-entirely"},
        {"X-API-Key": ""},
        {"Cookie": f"key={KEY}"},
    ],
    ids=str,
)
async def test_a_missing_and_a_wrong_key_get_the_same_text(headers: Mapping[str, str], guarded: Application) -> None:
    missing = await guarded.client.get("/messages")
    raw = [(name.encode(), text.encode("latin-1")) for name, text in headers.items()]
    for answer in (
        await guarded.client.get("/messages", headers=raw),
        await guarded.client.post("/send", json=MESSAGE, headers=raw),
    ):
        said = problem(answer, status=401)
        assert answer.content == missing.content
        assert "Authorization: Bearer" in said["detail"]
        assert KEY not in answer.text
        assert answer.headers["www-authenticate"].startswith("Bearer")


@pytest.mark.parametrize("name", ["key", "api_key", "apikey", "access_token", "token", "X-API-Key", "Authorization"])
async def test_a_key_in_the_query_string_is_ignored(name: str, guarded: Application) -> None:
    problem(await guarded.client.get("/messages", params={name: KEY}), status=401)
    problem(await guarded.client.post("/send", params={name: KEY}, json=MESSAGE), status=401)


@pytest.mark.parametrize(("method", "path"), CLOSED)
async def test_with_a_key_configured_this_machine_needs_it_too(method: str, path: str, guarded: Application) -> None:
    problem(await guarded.client.request(method, path, json=MESSAGE if method == "POST" else None), status=401)


@pytest.mark.parametrize("key", ["pässwörter-sind-länger", "ключ-от-почты-4711", "with a blank and ~!@#$%^&*()"])
async def test_a_key_may_be_any_string(key: str, tmp_path: Path) -> None:
    async with running(tmp_path, environ={"MAILCHUTE_API_KEY": key}) as service:
        for name, text in (("Authorization", f"Bearer {key}"), ("X-API-Key", key)):
            answer = await service.client.get("/messages", headers=[(name.encode(), text.encode())])
            assert answer.status_code == 200
        assert (await service.client.get("/messages")).status_code == 401


# --- open to all -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["", KEY], ids=["no key", "key"])
@pytest.mark.parametrize("path", OPEN)
async def test_what_is_open_stays_open_to_all(path: str, key: str, tmp_path: Path) -> None:
    async with running(tmp_path, environ={"MAILCHUTE_API_KEY": key}) as service:
        stranger = service.visitor(
            peer="192.0.2.7",
            headers={"Host": "mail.ours.test", "X-Forwarded-For": "192.0.2.8", "Sec-Fetch-Site": "cross-site"},
        )
        assert (await stranger.get(path)).status_code == 200


@pytest.mark.parametrize(("method", "path"), [*OF_THE_SANDBOX, *CLOSED])
@pytest.mark.parametrize("key", ["", KEY], ids=["no key", "key"])
async def test_the_sandbox_is_no_more_open_than_the_rest(method: str, path: str, key: str, tmp_path: Path) -> None:
    async with running(tmp_path, sandbox=True, environ={"MAILCHUTE_API_KEY": key}) as service:
        stranger = service.visitor(peer="192.0.2.7")
        answer = await stranger.request(method, path, json=MESSAGE if method == "POST" else None)
        problem(answer, status=401)


def says_how_to_make_a_key(answer: httpx2.Response) -> None:
    said = problem(answer, status=401)
    assert said["type"] == "/errors/unauthenticated"
    assert "MAILCHUTE_API_KEY" in said["detail"]
    assert "16 characters" in said["detail"]
    assert "Authorization: Bearer" in said["detail"]
    assert answer.headers["www-authenticate"].startswith("Bearer")
