"""A person at a browser: the pages of the real service, in Chromium, without internet.

Every page is watched: no request leaves the origin, no violation of its policy, nothing in the console. The
screenshots are in the test's folder, and in the one that MAILCHUTE_SCREENSHOTS names.
"""

import os
import shutil
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.support.service import Service, run

pytest.importorskip("playwright.async_api", reason="playwright is not installed")
from playwright.async_api import Browser, ConsoleMessage, Page, async_playwright, expect

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
    await expect(page.locator(".opblock")).to_have_count(21)
    await expect(page.locator(".errors-wrapper")).to_have_count(0)
    await watched.photograph("docs")
    await watched.assert_well_behaved()


async def test_try_it_out_sends_the_example_as_it_stands(watched: Watched) -> None:
    await watched.go("/docs")
    operation = watched.page.locator("#operations-messages-sendMessage")
    await operation.locator(".opblock-summary-control").click()
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
    sections = page.locator("pre")
    await expect(sections).to_have_count(3)
    await expect(sections.nth(0)).to_contain_text("Schöne Grüße")
    await expect(sections.nth(1)).to_contain_text("<p>Schöne Grüße")
    await expect(sections.nth(2)).to_contain_text("Message-ID: <")
    await expect(sections.nth(2)).to_contain_text("Content-Type: multipart/alternative")
    await watched.photograph("sandbox-message")
    await watched.assert_well_behaved()


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
