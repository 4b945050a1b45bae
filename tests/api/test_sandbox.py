"""/sandbox: what was kept, shown as text; a mail is somebody else's document and nothing in it may come alive."""

import json
import re
from collections.abc import AsyncIterator
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given

from tests.api.shapes import JSON, problem
from tests.api.test_any_request import bounded, messages
from tests.support.app import Application, running

EVIL = '</pre><script>alert(1)</script><img src="http://theirs.test/x" onerror="alert(2)">'


@pytest.fixture
async def sandbox(tmp_path: Path) -> AsyncIterator[Application]:
    async with running(tmp_path, sandbox=True) as service:
        yield service


async def test_an_empty_sandbox_says_how_to_send(sandbox: Application) -> None:
    page = await show(sandbox, "/sandbox")
    assert "No message yet" in page
    assert "/docs" in page


async def test_the_list_shows_what_was_kept_newest_first(sandbox: Application) -> None:
    first = (await sandbox.send(subject="The first", to="ann@theirs.test, bob@theirs.test")).json()
    second = (await sandbox.send(subject="", text="x")).json()
    page = await show(sandbox, "/sandbox")
    assert re.findall(r'href="/sandbox/([0-9a-f-]+)"', page) == [second["id"], first["id"]]
    assert "ann@theirs.test and 1 more" in page
    assert "(no subject)" in page
    assert "kept" in page


async def test_older_messages_are_on_the_next_page(sandbox: Application) -> None:
    ids = [(await sandbox.send(prefer="respond-async")).json()["id"] for _ in range(51)]
    newest = await show(sandbox, "/sandbox")
    (older,) = re.findall(r'href="(/sandbox\?before=[^"]+)"', newest)
    oldest = await show(sandbox, older)
    shown = [re.findall(r'<td><a href="/sandbox/([0-9a-f-]+)"', page) for page in (newest, oldest)]
    assert [len(page) for page in shown] == [50, 1]
    assert [*shown[0], *shown[1]] == sorted(ids, reverse=True)
    assert "before=" not in oldest


async def test_a_message_shows_its_fields_text_and_source(sandbox: Application) -> None:
    sent = (
        await sandbox.send(
            subject="Grüße", text="Schöne Grüße\n.\n", html="<p>Schöne <b>Grüße</b></p>", bcc="eve@hidden.test"
        )
    ).json()
    page = unescape(await show(sandbox, f"/sandbox/{sent['id']}"))
    assert "<h1>Grüße</h1>" in page
    assert "Schöne Grüße" in page
    assert "<p>Schöne <b>Grüße</b></p>" in page
    assert f"Message-ID: {sent['message_id']}" in page
    assert "Content-Type: multipart/alternative" in page
    assert "ann@theirs.test, eve@hidden.test" in page  # of the envelope
    assert f"/messages/{sent['id']}" in page


async def test_nothing_in_a_message_comes_alive(sandbox: Application) -> None:
    sent = (
        await sandbox.send(
            {
                "from": {"email": "bot@ours.test", "name": EVIL},
                "to": {"email": "ann@theirs.test", "name": EVIL},
                "subject": EVIL,
                "text": EVIL,
                "html": EVIL,
                "headers": {"X-Evil": EVIL},
            }
        )
    ).json()
    for path in ("/sandbox", f"/sandbox/{sent['id']}"):
        page = await show(sandbox, path)
        assert "<script" not in page
        assert "<img" not in page
        assert "&lt;script&gt;" in page


@pytest.mark.parametrize(
    "path", ["/sandbox/x", "/sandbox/01a20bf8-4943-7bad-bcb1-d9c2726ad315", "/sandbox?before=x", "/sandbox/static/x"]
)
async def test_what_is_not_there_is_404(path: str, sandbox: Application) -> None:
    problem(await sandbox.client.get(path), status=404)


@pytest.mark.parametrize("path", ["/sandbox", "/sandbox/static/inspector.css"])
async def test_with_a_relay_there_is_no_sandbox(path: str, service: Application) -> None:
    problem(await service.client.get(path), status=404)


async def test_a_page_loads_only_what_we_serve(sandbox: Application) -> None:
    page = await show(sandbox, "/sandbox")
    links = re.findall(r'<link[^>]*href="([^"]+)"', page)
    assert len(links) == 2
    for link in links:
        assert (await sandbox.client.get(link)).status_code == 200


@bounded
@given(message=messages())
async def test_whatever_was_taken_can_be_shown(sandbox: Application, message: dict[str, Any]) -> None:
    headers = {"Content-Type": JSON, "Prefer": "respond-async"}
    answer = await sandbox.client.post("/send", content=json.dumps(message).encode(), headers=headers)
    if answer.status_code == 202:
        await show(sandbox, f"/sandbox/{answer.json()['id']}")
        await show(sandbox, "/sandbox")


async def show(service: Application, path: str) -> str:
    answer = await service.client.get(path)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["content-security-policy"].startswith("default-src 'none'; style-src 'self';")
    assert "script-src" not in answer.headers["content-security-policy"]
    return answer.text
