"""Behind a real nginx: what it makes of our answers, and what we make of its requests."""

import asyncio
import http.client
import re
from urllib.parse import urljoin

import httpx2
import pytest

from tests.support import nginx
from tests.support.nginx import Nginx
from tests.support.service import MAIL, Service

pytestmark = pytest.mark.skipif(nginx.missing() is not None, reason=nginx.missing() or "")

KEY = "0123456789abcdef"
WITH_KEY = {"Authorization": f"Bearer {KEY}"}
PROXIES = {
    "buffering": "",
    "streaming": "proxy_request_buffering off; proxy_http_version 1.1;",
    "kept-alive": 'proxy_http_version 1.1; proxy_set_header Connection "";',
}


def _post(proxy: Nginx, body: bytes, headers: dict[str, str]) -> int:
    caller = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=20)
    try:
        caller.request("POST", "/send", body, {"Content-Type": "application/json", **headers})
        return caller.getresponse().status
    finally:
        caller.close()


@pytest.mark.parametrize("directives", PROXIES.values(), ids=PROXIES)
async def test_a_refusal_of_a_large_body_comes_through_as_it_is_and_never_as_502(directives: str) -> None:
    limited = {"MAILCHUTE_API_KEY": KEY, "MAILCHUTE_MAX_MESSAGE_BYTES": "100000"}
    async with Service(limited) as service:
        with Nginx(service.base, directives) as proxy:
            for size in (1_000_000, 40_000_000):
                body = b'"' + b"a" * size + b'"'
                for headers, status in ((WITH_KEY, 413), ({}, 401)):
                    statuses = [await asyncio.to_thread(_post, proxy, body, headers) for _ in range(4)]
                    assert statuses == [status] * 4


@pytest.mark.parametrize(
    "directives",
    [
        "",
        "proxy_set_header Host 127.0.0.1:8587;",
        "proxy_set_header Host localhost; proxy_set_header X-Real-IP $remote_addr; proxy_http_version 1.1;",
    ],
    ids=["bare", "host", "1.1-with-address"],
)
async def test_without_a_key_a_proxy_is_not_this_machine(directives: str) -> None:
    async with Service() as service:
        with Nginx(service.base, directives) as proxy:
            assert (await service.http.post("/send", json=MAIL)).status_code == 200
            refused = await service.http.post(f"{proxy.base}/send", json=MAIL)
            assert refused.status_code == 401
            assert "MAILCHUTE_API_KEY" in refused.json()["detail"]


async def test_with_a_key_all_goes_through_a_proxy() -> None:
    async with Service({"MAILCHUTE_API_KEY": KEY}) as service:
        with Nginx(service.base) as proxy:
            answer = await service.http.post(f"{proxy.base}/send", json=MAIL, headers=WITH_KEY)
            assert answer.json()["state"] == "sent"


@pytest.mark.parametrize("keeps_path", [False, True], ids=["stripped", "base-path"])
async def test_behind_a_prefix_every_link_leads_back_behind_it(keeps_path: bool) -> None:
    settings = {"MAILCHUTE_API_KEY": KEY, **({"MAILCHUTE_BASE_PATH": "/mail"} if keeps_path else {})}
    async with Service(settings) as service:
        upstream = service.base.removesuffix("/mail")
        with Nginx(upstream + ("" if keeps_path else "/"), location="/mail/") as proxy:
            caller = httpx2.AsyncClient(headers=WITH_KEY, trust_env=False, timeout=20)
            start = f"{proxy.base}/mail"
            answers = [
                await caller.post(f"{start}/send", json=MAIL, headers={"Prefer": "respond-async"}) for _ in range(2)
            ]
            there = urljoin(str(answers[0].url), answers[0].headers["location"])
            assert (await caller.get(there)).json()["id"] == answers[0].json()["id"]
            page = await caller.get(f"{start}/messages", params={"limit": 1})
            older = urljoin(str(page.url), page.headers["link"].partition(">")[0].removeprefix("<"))
            assert (await caller.get(older)).json()["data"][0]["id"] == answers[0].json()["id"]
            for path in ("/docs", "/redoc", "/sandbox", f"/sandbox/{answers[0].json()['id']}"):
                shown = await caller.get(f"{start}{path}")
                links = re.findall(r'(?:href|src)="([^"#]+)"', shown.text)
                assert len(links) > 4, path
                for link in links:
                    found = await caller.get(urljoin(str(shown.url), link))
                    assert found.status_code == 200, (path, link)
            assert (await caller.get(f"{proxy.base}/openapi.json")).status_code == 404
            await caller.aclose()


async def test_with_a_base_path_nothing_else_is_served_but_the_command_line_goes_on() -> None:
    async with Service({"MAILCHUTE_BASE_PATH": "mail/"}) as service:
        root = service.base.removesuffix("/mail")
        assert service.base.endswith("/mail")
        assert (await service.http.get(f"{root}/mail/livez")).status_code == 200
        for path in ("/livez", "/mail", "/mailx/livez", "/mail//livez"):
            refused = await service.http.get(root + path)
            assert refused.status_code == 404, path
        assert "/mail/" in (await service.http.get(f"{root}/livez")).json()["detail"]
        assert (await service.operator.get("/livez")).status_code == 200
