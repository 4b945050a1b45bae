"""Behind a real nginx: what it makes of our answers, and what we make of its requests."""

import asyncio
import http.client

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
