"""A person at a browser: the pages of the real service, in Chromium, without internet.

Every page is watched: no request leaves the origin, no violation of its policy, nothing in the console. The
screenshots are in the test's folder, and in the one that MAILCHUTE_SCREENSHOTS names.
"""

import asyncio
import os
import shutil
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Literal

import pytest
import pytest_asyncio

from tests.support.service import Service, run

pytest.importorskip("playwright.async_api", reason="playwright is not installed")
from playwright.async_api import Browser, ConsoleMessage, Error, Page, async_playwright, expect

CHROMIUM = Path("/usr/bin/chromium")
ARGUMENTS = [
    "--no-sandbox",
    "--disable-quic",
    "--disable-background-networking",
    "--no-first-run",
    "--disable-component-update",
    "--disable-sync",
]
VIOLATIONS = """
    window.violations = [];
    document.addEventListener('securitypolicyviolation', event => {
        window.violations.push(`${event.violatedDirective} ${event.blockedURI} ${event.sample}`);
    });
"""

pytestmark = [
    pytest.mark.skipif(not CHROMIUM.exists(), reason=f"{CHROMIUM} is missing: apt-get install chromium"),
    pytest.mark.asyncio(loop_scope="module"),
]


class Watched:
    """A page, and everything that it should not have done."""

    def __init__(self, page: Page, service: Service, folder: Path) -> None:
        self.page = page
        self.service = service
        self._folder = folder
        self._complaints: list[str] = []
        page.on("request", lambda request: self._asked_for(request.url))
        page.on("requestfailed", lambda request: self._complaints.append(f"failed: {request.url} {request.failure}"))
        page.on("response", lambda r: self._complaints.append(f"{r.status} {r.url}") if r.status >= 400 else None)
        page.on("console", self._heard)
        page.on("pageerror", lambda error: self._complaints.append(f"error: {error}"))

    async def go(self, path: str) -> None:
        await self.page.goto(f"{self.service.base}{path}", wait_until="networkidle")

    async def photograph(self, name: str) -> None:
        path = self._folder / f"{name}.png"
        await self.page.screenshot(path=path, full_page=True)
        if folder := os.environ.get("MAILCHUTE_SCREENSHOTS"):
            Path(folder).mkdir(parents=True, exist_ok=True)
            shutil.copy(path, folder)

    async def assert_well_behaved(self) -> None:
        assert self._complaints == []
        assert await self.page.evaluate("window.violations") == []

    def _asked_for(self, url: str) -> None:
        if not url.startswith((f"{self.service.base}/", "data:")):
            self._complaints.append(f"left the origin: {url}")

    def _heard(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self._complaints.append(f"{message.type}: {message.text}")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Browser]:
    driver = await run(sys.executable, "-m", "playwright", "--version", folder=tmp_path_factory.getbasetemp())
    if driver.code == 127:  # the loader's: a library is missing, which Playwright itself tells as a closed connection
        pytest.skip(f"playwright cannot start: {driver.err.strip()}")
    async with async_playwright() as started:
        browser = await started.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        await browser.close()


@pytest_asyncio.fixture(loop_scope="module")
async def watched(browser: Browser, tmp_path: Path) -> AsyncIterator[Watched]:
    """A page of a service in the sandbox."""
    async with Service() as service:
        page = await browser.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(10_000)
        await page.add_init_script(VIOLATIONS)
        yield Watched(page, service, tmp_path)
        await page.close()


async def test_the_api_page_lists_every_operation(watched: Watched) -> None:
    await watched.go("/docs")
    page = watched.page
    await expect(page.locator(".info .title")).to_contain_text("Mailchute")
    await expect(page.locator("#operations-messages-sendMessage")).to_be_visible()
    await expect(page.locator(".opblock")).to_have_count(22)
    await expect(page.locator(".errors-wrapper")).to_have_count(0)
    await watched.photograph("docs")
    await watched.assert_well_behaved()


async def test_try_it_out_sends_the_example_as_it_stands(watched: Watched) -> None:
    await watched.go("/docs")
    operation = watched.page.locator("#operations-messages-sendMessage")
    await operation.locator(".opblock-summary-control").click()
    await expect(
        operation.get_by_role("combobox").filter(has_text="A setting is wrong, and the hint names it")
    ).to_be_visible()
    await operation.locator("button.execute").click()
    answer = operation.locator(".live-responses-table .response")
    await expect(answer.locator(".response-col_status")).to_have_text("200")
    await expect(answer.locator(".response-col_description")).to_contain_text('"state": "sent"')
    await watched.photograph("docs-sent")
    await watched.assert_well_behaved()


async def test_try_it_out_sends_with_a_key_that_was_typed_in(browser: Browser) -> None:
    key = "a-key-of-the-tests-0123456789"
    async with Service({"MAILCHUTE_API_KEY": key}) as service:
        page = await browser.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(5_000)
        await page.goto(f"{service.base}/docs", wait_until="networkidle")
        await page.locator(".btn.authorize").click()
        await page.locator(".auth-container input").first.fill(key)
        await page.locator(".auth-container button.authorize").first.click()
        await page.locator(".auth-container button.btn-done").first.click()
        operation = page.locator("#operations-messages-sendMessage")
        await operation.locator(".opblock-summary-control").click()
        await operation.locator("button.execute").click()
        await expect(operation.locator(".live-responses-table .response .response-col_status")).to_have_text("200")
        await page.close()


async def test_try_it_out_sends_below_a_base_path(browser: Browser) -> None:
    async with Service({"MAILCHUTE_BASE_PATH": "/mail"}) as service:
        page = await browser.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(10_000)
        assert service.base.endswith("/mail")
        await page.goto(f"{service.base}/docs", wait_until="networkidle")
        operation = page.locator("#operations-messages-sendMessage")
        await operation.locator(".opblock-summary-control").click()
        async with page.expect_request(lambda request: request.method == "POST") as sent:
            await operation.locator("button.execute").click()
        assert (await sent.value).url == f"{service.base}/send"
        await expect(operation.locator(".live-responses-table .response .response-col_status")).to_have_text("200")
        await page.goto(f"{service.base}/redoc", wait_until="networkidle")
        await expect(page.get_by_text(service.base, exact=False).first).to_be_attached()
        await page.close()


async def test_the_reference_shows_the_send_operation(watched: Watched) -> None:
    await watched.go("/redoc")
    page = watched.page
    await expect(page.get_by_role("heading", name="Mailchute", exact=False).first).to_be_visible()
    await expect(page.get_by_role("heading", name="operation/sendMessage Send a message")).to_be_visible()
    await expect(page.locator("#redoc")).not_to_contain_text("Something went wrong")
    await watched.photograph("redoc")
    await watched.assert_well_behaved()


async def test_the_sandbox_shows_what_was_sent_its_text_and_its_source(watched: Watched) -> None:
    page = watched.page
    await watched.go("/sandbox")
    await expect(page.locator("main")).to_contain_text("No message yet")
    await watched.photograph("sandbox-empty")
    for subject, text in (("Ihre Bestellung 4711", "Schöne Grüße\naus Köln"), ("<b>Not bold</b>", "x" * 300)):
        sent = await page.request.post(
            f"{watched.service.base}/send",
            data={
                "from": "Bot <bot@example.org>",
                "to": ["ann@example.org", "Bob <bob@example.org>"],
                "subject": subject,
                "text": text,
                "html": f"<p>{text}</p>",
            },
        )
        assert sent.status == 200
    await watched.go("/sandbox")
    rows = page.locator("tbody tr")
    await expect(rows).to_have_count(2)
    await expect(rows.first).to_contain_text("<b>Not bold</b>")
    await expect(rows.last).to_contain_text("ann@example.org and 1 more")
    await watched.photograph("sandbox")
    await page.get_by_role("link", name="Ihre Bestellung 4711").click()
    await expect(page.locator("h1")).to_have_text("Ihre Bestellung 4711")
    await expect(page.frame_locator("iframe").locator("p")).to_have_text("Schöne Grüße aus Köln")
    await expect(page.get_by_role("region", name="Text")).to_contain_text("Schöne Grüße")
    await expect(page.get_by_role("region", name="Recipients").locator("tbody tr")).to_have_count(2)
    source = page.get_by_role("region", name="Source")
    await expect(source.get_by_text("Content-Type: multipart/alternative")).to_be_hidden()
    await source.get_by_text("The source as it is sent").click()
    await expect(source.locator("pre")).to_contain_text("Message-ID: <")
    await expect(source.locator("pre")).to_contain_text("Content-Type: multipart/alternative")
    await watched.photograph("sandbox-message")
    await watched.assert_well_behaved()


PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR4nGNgYPj/HwADAgH/eJ5Q5QAAAABJRU5ErkJggg=="


async def test_a_mails_own_look_and_images_are_shown_in_its_frame(watched: Watched) -> None:
    page = watched.page
    message = await sent(
        watched,
        html="<style>p { color: rgb(200, 0, 0) }</style><p style='font-size: 30px'>Hello</p><img src='cid:dot'>",
        attachments=[{"filename": "dot.png", "content": PNG, "content_id": "dot"}],
    )
    await watched.go(f"/sandbox/{message}")
    frame = page.frame_locator("iframe")
    look = await frame.locator("p").evaluate("p => [getComputedStyle(p).color, getComputedStyle(p).fontSize]")
    assert look == ["rgb(200, 0, 0)", "30px"]
    assert await frame.locator("img").evaluate("image => image.naturalWidth") == 1
    async with page.expect_download() as download:
        await page.get_by_role("link", name="dot.png").click()
    assert (await download.value).suggested_filename == "dot.png"
    await watched.assert_well_behaved()


# What a mail may try. {there} is a server that hears of every connection, {script} calls the function `attack`.
ATTACKS = {
    "script": "<script>{script}</script><script src='{there}/x.js'></script><script type=module>{script}</script>",
    "handlers": "<img src=x onerror='{script}'><body onload='{script}'><details open ontoggle='{script}'>",
    "javascript": "<a id=go href='javascript:{script}'>go</a><iframe src='javascript:{script}'></iframe>",
    "remote images": "<img src='{there}/a.png'><img srcset='{there}/b.png 2x'><picture><source srcset='{there}/c'><img></picture>",
    "remote media": "<video src='{there}/v' poster='{there}/p' autoplay></video><audio src='{there}/a' autoplay></audio>",
    "css": "<style>@import '{there}/i.css'; p {{ background: url({there}/u) }} @font-face {{ font-family: f; src: url({there}/f) }}"
    " p {{ font-family: f }}</style><p style='background: url({there}/s)'>x</p><table background='{there}/t'><tr><td>x</table>",
    "links in the head": "<link rel=stylesheet href='{there}/c.css'><link rel=preconnect href='{there}'>"
    "<link rel=prefetch href='{there}/p'><link rel=preload as=image href='{there}/l'><link rel=icon href='{there}/i'>",
    "meta refresh": "<meta http-equiv=refresh content='0; url={there}/r'>",
    "base": "<base href='{there}/'><img src='relative.png'>",
    "form": "<form action='{there}/f' method=post><input name=x><button id=go>go</button></form>",
    "frames": "<iframe src='{there}/f'></iframe><iframe srcdoc='<script>{script}</script><img src={there}/d>'></iframe>"
    "<object data='{there}/o'></object><embed src='{there}/e'>",
    "svg": "<svg onload='{script}'><image href='{there}/i'/><use href='{there}/u#x'/><script>{script}</script></svg>"
    "<math><maction actiontype=statusline href='javascript:{script}'>x</maction></math>",
    "link": "<a id=go href='{there}/a' ping='{there}/p'>go</a>",
    "link to the top": "<base target=_top><a id=go target=_top href='{there}/a'>go</a>",
    "link to a new window": "<a id=go target=_blank href='{there}/a'>go</a>",
    "animated link": "<svg><a id=go><text y=20>go</text><set attributeName=href to='{there}/a'/></a></svg>",
    "malformed": "<p title='</p><img src={there}/1><!-- --!><link rel=preconnect href='{there}'><svg><style><img src='{there}/2'>"
    "<noscript><p title='</noscript><img src={there}/3 onerror={script}>'>",
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def attacked() -> AsyncIterator[Service]:
    async with Service() as service:
        yield service


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
@pytest.mark.parametrize("alone", [False, True], ids=["in its frame", "alone"])
async def test_nothing_in_a_mail_runs_loads_or_leads_anywhere(
    attack: str, alone: bool, browser: Browser, attacked: Service, tmp_path: Path
) -> None:
    page = await browser.new_page(viewport={"width": 1280, "height": 900})
    watched = Watched(page, attacked, tmp_path)
    happened: list[str] = []

    async def connected(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        happened.append("a connection was made")
        writer.close()

    async with await asyncio.start_server(connected, "127.0.0.1", 0) as theirs:
        await page.expose_function("attack", lambda: happened.append("a script ran"))
        there = f"http://127.0.0.1:{theirs.sockets[0].getsockname()[1]}"
        html = attack.format(there=there, script="(top.attack||window.attack)()")
        message = await sent(watched, subject=html[:200], text=html, html=html)
        path = f"/sandbox/{message}{'/html' if alone else ''}"
        await watched.go(path)
        if "id=go" in attack:
            mail = page.locator("html") if alone else page.frame_locator("iframe").locator("html")
            await mail.locator("#go").click()
            await page.wait_for_load_state("networkidle")
        assert page.url.partition("#")[0] == f"{attacked.base}{path}"
        assert len(page.context.pages) == 1
        await page.close()
    assert happened == []


async def test_the_attacks_are_some_where_nothing_stops_them(browser: Browser) -> None:
    """Who would not be heard here could not be found missing above."""
    heard = asyncio.Event()

    async def connected(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.set()
        writer.close()

    page = await browser.new_page()
    ran: list[str] = []
    await page.expose_function("attack", lambda: ran.append("a script ran"))
    async with await asyncio.start_server(connected, "127.0.0.1", 0) as theirs:
        there = f"http://127.0.0.1:{theirs.sockets[0].getsockname()[1]}"
        for name in ("links in the head", "css", "remote images"):
            heard.clear()
            await page.set_content(ATTACKS[name].format(there=there, script=""))
            async with asyncio.timeout(10):
                await heard.wait()
        await page.set_content(ATTACKS["handlers"].format(there=there, script="attack()"))
        await page.wait_for_load_state("networkidle")
        await page.close()
    assert ran


async def test_the_pages_can_be_read_with_the_keyboard_and_by_their_names(watched: Watched) -> None:
    page = watched.page
    message = await sent(watched, html="<p>x</p>", attachments=[{"filename": "x.txt", "content": "eA=="}])
    await watched.go(f"/sandbox/{message}")
    assert await page.locator("html").get_attribute("lang") == "en"
    assert await page.locator("h1").count() == 1
    await page.keyboard.press("Tab")
    await expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    for name in ("HTML", "Text", "Attachments", "Recipients", "Attempts", "Source"):
        await expect(page.get_by_role("region", name=name, exact=True)).to_have_count(1)
    await expect(page.locator("iframe")).to_have_attribute("title", "The message's HTML")
    for table in await page.locator("table").all():
        assert await table.locator("th:not([scope])").count() == 0
    await page.get_by_role("link", name="Recipients").press("Enter")
    assert page.url.endswith("#recipients")
    await watched.assert_well_behaved()


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_all_text_stands_out_from_its_ground(scheme: Literal["light", "dark"], watched: Watched) -> None:
    """WCAG 2.1, 1.4.3: 4.5 to 1."""
    page = watched.page
    await page.emulate_media(color_scheme=scheme)
    message = ""
    for to in ("ann@example.org", "550@example.org", "451@example.org", "drop@example.org"):
        message = await sent(watched, to=["ann@example.org", to], html="<p>x</p>")
        await watched.go(f"/sandbox/{message}")
        assert await page.evaluate(LOW_CONTRAST) == []
    await watched.go("/sandbox")
    assert await page.evaluate(LOW_CONTRAST) == []


LOW_CONTRAST = """() => {
    const parts = colour => colour.match(/[\\d.]+/g).map(Number);
    const ground = element => {
        for (; element; element = element.parentElement) {
            const found = getComputedStyle(element).backgroundColor;
            if (parts(found)[3] !== 0) return parts(found);
        }
        return [255, 255, 255];
    };
    const light = colour => colour.slice(0, 3)
        .map(c => c / 255).map(c => c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
        .reduce((sum, c, at) => sum + c * [0.2126, 0.7152, 0.0722][at], 0);
    return [...document.querySelectorAll('body *')].filter(e => e.innerText && e.offsetParent).map(e => {
        const [low, high] = [light(parts(getComputedStyle(e).color)), light(ground(e))].sort((a, b) => a - b);
        return [e.outerHTML.slice(0, 100), (high + 0.05) / (low + 0.05)];
    }).filter(([, ratio]) => ratio < 4.5);
}"""


async def sent(watched: Watched, **fields: object) -> str:
    """Send one, and give its id."""
    body = {"from": "Bot <bot@example.org>", "to": ["ann@example.org"], "subject": "Hello", "text": "Hello", **fields}
    answer = await watched.page.request.post(f"{watched.service.base}/send", data=body)
    found: str = (await answer.json())["id"]
    return found


async def test_with_a_key_a_browser_signs_in_once_and_sees_the_whole_sandbox(browser: Browser, tmp_path: Path) -> None:
    key = "a-key-of-the-tests-0123456789"
    async with Service({"MAILCHUTE_API_KEY": key}) as service:
        answer = await service.http.post(
            "/send",
            headers={"X-API-Key": key},
            json={
                "from": "bot@example.org",
                "to": "ann@example.org",
                "subject": "Behind a key",
                "html": "<p>Signed in</p>",
                "attachments": [{"filename": "x.txt", "content": "eA=="}],
            },
        )
        assert answer.json()["state"] == "sent"
        stranger = await browser.new_page()
        # What Chromium without a window makes of being asked for a name and a password.
        with pytest.raises(Error, match="ERR_INVALID_AUTH_CREDENTIALS"):
            await stranger.goto(f"{service.base}/")
        await stranger.close()
        context = await browser.new_context(http_credentials={"username": "anybody", "password": key})
        page = await context.new_page()
        page.set_default_timeout(10_000)
        await page.add_init_script(VIOLATIONS)
        watched = Watched(page, service, tmp_path)
        await watched.go("/")
        assert page.url == f"{service.base}/sandbox"
        assert await page.locator("h1").evaluate("h1 => getComputedStyle(h1).fontSize") != "32px", "no style sheet"
        await page.get_by_role("link", name="Behind a key").click()
        await expect(page.frame_locator("iframe").locator("p")).to_have_text("Signed in")
        for name in ("x.txt", "Save it"):
            async with page.expect_download() as download:
                await page.get_by_role("link", name=name).click()
            assert await (await download.value).failure() is None
        await watched.assert_well_behaved()
        await context.close()


async def test_the_sandbox_fits_a_telephone_and_the_dark(watched: Watched) -> None:
    page = watched.page
    await page.emulate_media(color_scheme="dark")
    await page.set_viewport_size({"width": 390, "height": 800})
    long = "a-subject-without-any-blank-" * 8
    sent = await page.request.post(
        f"{watched.service.base}/send",
        data={
            "from": "bot@example.org",
            "to": "ann.with.a.long.name@department.example.org",
            "subject": long,
            "text": long * 3,
        },
    )
    assert sent.status == 200
    for path, name in (
        ("/sandbox", "sandbox-telephone"),
        (f"/sandbox/{(await sent.json())['id']}", "message-telephone"),
    ):
        await watched.go(path)
        await watched.photograph(name)
        assert await page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), "it scrolls sideways"
        dark = await page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert dark == "rgb(20, 24, 28)"
    await watched.assert_well_behaved()


LONG = {
    "words": ("Your order 4711 is on its way to you and will be there tomorrow " * 30).strip(),
    "no blank": "https://shop.example.org/orders/4711?token=" + "0123456789abcdef" * 100,
    "wide signs": "ＷＷＷ見積書" * 150,
}
LONG_ADDRESS = f"{'a-long-local-part.' * 3}{'x' * 9}@{'department.' * 16}example.org"


@pytest.mark.parametrize("width", [1280, 375])
async def test_long_subjects_and_addresses_leave_every_column_its_place(width: int, watched: Watched) -> None:
    page = watched.page
    await page.set_viewport_size({"width": width, "height": 800})
    message = ""
    for subject in ("Short", *LONG.values()):
        for to in (["ann@example.org"], [LONG_ADDRESS, "550@example.org"]):
            name = f"{subject[:100]}.pdf"
            attachments = [{"filename": name.replace("/", "-"), "content": "eA=="}]
            sender = LONG_ADDRESS if len(to) > 1 else "bot@example.org"
            fields = {"from": sender, "to": to, "subject": subject, "attachments": attachments}
            message = await sent(watched, **fields)
    await watched.go("/sandbox")
    await watched.photograph(f"sandbox-long-{width}")
    assert await page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), "it scrolls sideways"
    sizes = await page.evaluate(CELLS)
    assert len(sizes) == 8
    for cells in sizes:
        heights = [cell["height"] for cell in cells]
        if width > 720:
            assert max(heights) < 120, "a row fills the page"
            enough = (130, 150, 150, 250, 80)
            assert all(cell["width"] >= least for cell, least in zip(cells, enough, strict=True)), cells
        else:  # each cell is a line of its own
            assert sum(heights) < 320, "a row fills the page"
        assert all(cell["inner"] <= cell["width"] + 1 for cell in cells), "a text sticks out"
    first = page.locator(".subject a").first
    assert await first.get_attribute("title") == LONG["wide signs"]
    await watched.go(f"/sandbox/{message}")
    await watched.photograph(f"message-long-{width}")
    assert await page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), "it scrolls sideways"
    await watched.assert_well_behaved()


CELLS = """() => [...document.querySelectorAll('.list tbody tr')].map(row => [...row.cells].map(cell => ({
    width: cell.getBoundingClientRect().width, height: cell.getBoundingClientRect().height, inner: cell.scrollWidth,
})))"""
