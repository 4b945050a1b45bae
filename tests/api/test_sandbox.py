"""/sandbox: what was kept, and what failed; a mail is somebody else's document and nothing in it may come alive."""

import json
import re
from base64 import b64encode
from collections.abc import AsyncIterator
from datetime import timedelta
from html import escape, unescape
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given

from app.inspector.views import LONGEST
from app.mail.message import Envelope, Message
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
    assert 'href="docs"' in page


async def test_the_list_shows_what_was_kept_newest_first(sandbox: Application) -> None:
    first = (await sandbox.send(subject="The first", to="ann@theirs.test, bob@theirs.test")).json()
    second = (await sandbox.send(subject="", text="x")).json()
    page = await show(sandbox, "/sandbox")
    assert re.findall(r'href="sandbox/([0-9a-f-]+)"', page) == [second["id"], first["id"]]
    assert ">ann@theirs.test</div> and 1 more" in page
    assert "(no subject)" in page
    assert "kept" in page


async def test_older_messages_are_on_the_next_page(sandbox: Application) -> None:
    ids = [(await sandbox.send(prefer="respond-async")).json()["id"] for _ in range(51)]
    newest = await show(sandbox, "/sandbox")
    (older,) = re.findall(r'href="(sandbox\?before=[^"]+)"', newest)
    oldest = await show(sandbox, older)
    shown = [
        re.findall(r'<td class="subject"><a class="brief" href="sandbox/([0-9a-f-]+)"', page)
        for page in (newest, oldest)
    ]
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
    assert f'src="../sandbox/{sent["id"]}/html"' in page
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
        assert 'onerror="' not in page
        assert "<img" not in page
        assert "&lt;script&gt;" in page


async def test_a_message_that_failed_is_listed_and_says_why_and_what_to_do(sandbox: Application) -> None:
    sent = (await sandbox.send(profile="sandbox-eauth", subject="Refused")).json()
    assert "EAUTH" in await show(sandbox, "/sandbox")
    page = unescape(await show(sandbox, f"/sandbox/{sent['id']}"))
    assert sent["message"] in page
    assert sent["hint"] in page
    assert "535 5.7.8" in page  # of the transcript
    assert "The next one: " in page


async def test_a_message_that_was_never_tried_links_to_the_attempt_that_holds_it_back(sandbox: Application) -> None:
    tried, held = [(await sandbox.send(profile="sandbox-eauth")).json()["id"] for _ in range(2)]
    attempts = (await show(sandbox, f"/sandbox/{held}")).partition('id="attempts"')[2]
    assert "None yet." in attempts
    assert f'href="../sandbox/{tried}">the attempt of another message</a> failed' in attempts
    assert "the attempt of another message" not in await show(sandbox, f"/sandbox/{tried}")


async def test_what_went_to_any_of_the_built_in_profiles_is_in_one_list_newest_first(sandbox: Application) -> None:
    names = ("sandbox-down", "sandbox", "sandbox-tls-expired", "sandbox-eauth", "sandbox")
    ids = [(await sandbox.send(profile=name)).json()["id"] for name in names]
    assert re.findall(r'href="sandbox/([0-9a-f-]+)"', await show(sandbox, "/sandbox")) == ids[::-1]


async def test_each_recipient_has_its_own_state(sandbox: Application) -> None:
    sent = (await sandbox.send(to="ann@theirs.test, 550@anywhere.test")).json()
    page = unescape(await show(sandbox, f"/sandbox/{sent['id']}"))
    rows = dict(re.findall(r"<tr><td>([^<]+)</td><td><span class=\"state (\w+)\">", page))
    assert rows == {"ann@theirs.test": "sent", "550@anywhere.test": "rejected"}
    assert "550 5.1.1 No such mailbox" in page


# --- its HTML --------------------------------------------------------------------------------------------------


async def test_the_html_is_a_document_of_its_own_that_may_do_nothing(sandbox: Application) -> None:
    sent = (await sandbox.send(html="<p>Grüße</p>")).json()
    page = await show(sandbox, f"/sandbox/{sent['id']}")
    (frame,) = re.findall("<iframe[^>]*>", page)
    assert 'sandbox=""' in frame
    answer = await sandbox.client.get(f"/sandbox/{sent['id']}/html")
    assert answer.status_code == 200
    assert answer.text.startswith("<p>Grüße</p>")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    policy = dict(part.strip().partition(" ")[::2] for part in answer.headers["content-security-policy"].split(";"))
    assert policy == {
        "sandbox": "",
        "default-src": "'none'",
        "style-src": "'unsafe-inline'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'self'",
    }
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["x-dns-prefetch-control"] == "off"


async def test_an_image_of_the_mails_own_is_shown_in_the_html(sandbox: Application) -> None:
    logo = {"filename": "logo.png", "content": b64encode(b"\x89PNG").decode(), "content_id": "logo"}
    sent = (await sandbox.send(html='<img src="cid:logo" alt="Logo">', attachments=[logo])).json()
    answer = await sandbox.client.get(f"/sandbox/{sent['id']}/html")
    assert answer.text.startswith('<img src="data:image/png;base64,iVBORw==" alt="Logo">')
    page = await show(sandbox, f"/sandbox/{sent['id']}")
    assert "cid:logo" in page
    assert "data:" not in page


async def test_a_message_without_html_has_no_frame(sandbox: Application) -> None:
    sent = (await sandbox.send()).json()
    assert "<iframe" not in await show(sandbox, f"/sandbox/{sent['id']}")
    problem(await sandbox.client.get(f"/sandbox/{sent['id']}/html"), status=404)


# --- its files -------------------------------------------------------------------------------------------------


async def test_attachments_are_listed_with_name_type_and_size_and_can_be_saved(sandbox: Application) -> None:
    content = bytes(range(256)) * 5
    file = {"filename": "Übersicht.pdf", "content": b64encode(content).decode()}
    sent = (await sandbox.send(html="<p>x</p>", attachments=[file])).json()
    page = await show(sandbox, f"/sandbox/{sent['id']}")
    for said in ("Übersicht.pdf", "application/pdf", "1,280 bytes", "Attachments (1)"):
        assert said in page
    answer = await sandbox.client.get(f"/sandbox/{sent['id']}/parts/1")
    assert (answer.status_code, answer.content) == (200, content)


@pytest.mark.parametrize("kind", ["text/html", "image/svg+xml", "application/javascript", "application/pdf"])
async def test_a_file_is_saved_and_never_shown_whatever_it_says_it_is(kind: str, sandbox: Application) -> None:
    file = {"filename": "x", "content": b64encode(b"<script>alert(1)</script>").decode(), "content_type": kind}
    sent = (await sandbox.send(attachments=[file])).json()
    answer = await sandbox.client.get(f"/sandbox/{sent['id']}/parts/1")
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["content-disposition"].startswith("attachment; ")
    assert answer.headers["content-security-policy"].startswith("sandbox; default-src 'none'")
    assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    "name", ['a"; filename="b.html', "a'b;c", "<img src=x onerror=alert(1)>.txt", "ü\u202egpj.exe", "%0d%0a"]
)
async def test_a_name_ends_neither_a_header_nor_the_page(name: str, sandbox: Application) -> None:
    sent = (await sandbox.send(attachments=[{"filename": name, "content": "eA=="}])).json()
    page = await show(sandbox, f"/sandbox/{sent['id']}")
    assert "<img" not in page
    assert f">{escape(name)}</a>" in page.replace("&#34;", "&quot;").replace("&#39;", "&#x27;")
    answer = await sandbox.client.get(f"/sandbox/{sent['id']}/parts/1")
    assert answer.headers["content-disposition"] == f"attachment; filename*=UTF-8''{quote(name, safe='')}"


async def test_a_line_break_in_a_name_reaches_no_header(sandbox: Application) -> None:
    """We would never write one; the mail is put in as it stands."""
    kept = await put_in(sandbox, b"Content-Disposition: attachment; filename*=utf-8''a%0D%0ASet-Cookie%3A%20x\r\n\r\nx")
    answer = await sandbox.client.get(f"/sandbox/{kept}/parts/1")
    assert "set-cookie" not in answer.headers
    assert answer.headers["content-disposition"] == "attachment; filename*=UTF-8''a%0D%0ASet-Cookie%3A%20x"


@pytest.mark.parametrize("number", ["0", "2", "-1", "x", "999999999999999999999"])
async def test_a_file_that_is_not_there_is_404(number: str, sandbox: Application) -> None:
    sent = (await sandbox.send(attachments=[{"filename": "x", "content": "eA=="}])).json()
    problem(await sandbox.client.get(f"/sandbox/{sent['id']}/parts/{number}"), status=404)


# --- what is no mail, and what is too much of it ---------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        b"\x00\xff no mail at all",
        b'Content-Type: multipart/mixed; boundary="b"\r\n\r\n--b\r\nnever ends',
        b"Content-Type: text/html; charset=no-such\r\n\r\n<script>alert(1)</script>",
        b"Content-Type: multipart/mixed\r\n\r\nno boundary",
        b"Subject: =?utf-8?q?=3Cscript=3E?=\r\nTo: <<<\r\n\r\n<script>",
    ],
)
async def test_what_is_no_mail_is_shown_by_its_source(content: bytes, sandbox: Application) -> None:
    page = await show(sandbox, f"/sandbox/{await put_in(sandbox, content)}")
    assert "<script" not in page
    assert "The source as it is sent" in page


async def test_of_a_long_text_the_beginning_is_shown_and_the_rest_can_be_saved(sandbox: Application) -> None:
    sent = (await sandbox.send(text="x" * (LONGEST + 10), html="y" * (LONGEST + 10))).json()
    page = await show(sandbox, f"/sandbox/{sent['id']}")
    assert page.count("Only the beginning is shown") == 3
    assert len(page) < 4 * LONGEST
    assert f'href="../messages/{sent["id"]}/raw"' in page
    assert len((await sandbox.client.get(f"/sandbox/{sent['id']}/html")).text) > LONGEST + 10


async def test_a_message_of_a_relay_is_not_the_sandboxs(tmp_path: Path) -> None:
    async with running(tmp_path) as service:
        sent = (await service.send(html="<p>x</p>")).json()
    async with running(tmp_path, sandbox=True, keep=True) as sandbox:
        assert sent["id"] not in await show(sandbox, "/sandbox")
        for path in ("", "/html", "/parts/1"):
            problem(await sandbox.client.get(f"/sandbox/{sent['id']}{path}"), status=404)


# --- what is not there -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        "/sandbox/x",
        "/sandbox/x/html",
        "/sandbox/01a20bf8-4943-7bad-bcb1-d9c2726ad315",
        "/sandbox/01a20bf8-4943-7bad-bcb1-d9c2726ad315/html",
        "/sandbox/01a20bf8-4943-7bad-bcb1-d9c2726ad315/parts/1",
        "/sandbox?before=x",
        "/sandbox/static/x",
    ],
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
        sent = answer.json()["id"]
        await show(sandbox, f"/sandbox/{sent}")
        await show(sandbox, "/sandbox")
        html = await sandbox.client.get(f"/sandbox/{sent}/html")
        assert html.status_code == (200 if message.get("html") else 404)


async def put_in(service: Application, content: bytes) -> str:
    """Keep a message that we would not have written."""
    runtime = service.runtime
    now = runtime.now()
    message = Message(
        id=runtime.new_id(),
        message_id="<1@ours.test>",
        content=content,
        envelope=Envelope("bot@ours.test", ("ann@theirs.test",)),
        subject="",
        profile="sandbox",
        created_at=now,
        expires_at=now + timedelta(hours=1),
        sandbox=True,
    )
    await runtime.outbox.append(message, lease=None, now=now)
    return str(message.id)


async def show(service: Application, path: str) -> str:
    answer = await service.client.get(path)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["content-security-policy"].startswith("default-src 'none'; style-src 'self';")
    assert "script-src" not in answer.headers["content-security-policy"]
    return answer.text


async def test_what_was_kept_stays_readable_under_a_relay_for_as_long_as_it_is_kept(tmp_path: Path) -> None:
    async with running(tmp_path, sandbox=True) as sandbox:
        sent = (await sandbox.send(subject="Kept", html="<b>Hello</b>")).json()
    async with running(tmp_path, keep=True) as service:
        page = await show(service, "/sandbox")
        assert "The sandbox is off" in page
        assert "Nothing leaves this machine" not in page
        assert "Kept" in await show(service, f"/sandbox/{sent['id']}")
        assert (await service.client.get(f"/sandbox/{sent['id']}/html")).status_code == 200
        assert (await service.client.get("/sandbox/static/inspector.css")).status_code == 200
        real = (await service.send()).json()
        problem(await service.client.get(f"/sandbox/{real['id']}"), status=404)
        assert real["id"] not in await show(service, "/sandbox")
