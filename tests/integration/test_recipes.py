"""docs/recipes is true: every block of it runs against the real program, and the mail is read back behind a relay.

The relay is Postfix, as in the founding case: it offers AUTH in clear and wants none. Where it cannot run, a scripted
relay that offers the same stands in. What Typebot, n8n and Make do between their fields and the wire is written down
here as their sources have it (the pages say which); `example.org` is the Postfix's domain, and addresses of the
service are the running one's.
"""

import asyncio
import contextlib
import json
import os
import re
import shutil
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default
from pathlib import Path
from typing import Any, Self, cast

import httpx2
import pytest
import pytest_asyncio

from app.settings import load
from tests.support.postfix import Postfix, missing
from tests.support.relay import Relay
from tests.support.service import PATIENCE, Service

PAGES = Path(__file__).parents[2] / "docs" / "recipes"
KEY = "the-key-you-chose"
DOMAIN = "mailbox.test"  # the one that Postfix takes mail for
NOBODY = f"nobody@{DOMAIN}"  # refused with 550 5.1.1 there

pytestmark = pytest.mark.asyncio(loop_scope="module")


def blocks(page: str) -> dict[str, list[str]]:
    """Give the fenced blocks of a page by the heading they stand under."""
    found: dict[str, list[str]] = {}
    heading = ""
    block: list[str] | None = None
    for line in (PAGES / f"{page}.md").read_text("utf-8").splitlines():
        if line.startswith("```"):
            if block is None:
                block = []
            else:
                found.setdefault(heading, []).append("\n".join(block))
                block = None
        elif block is not None:
            block.append(line)
        elif line.startswith("## "):
            heading = line[3:]
    return found


def block(page: str, heading: str, at: int = 0) -> str:
    """Give one block, its domain the Postfix's."""
    assert (page, heading, at) in RUN, "name it in RUN, so that no block stays untried"
    return blocks(page)[heading][at].replace("example.org", DOMAIN)


RUN = {
    ("typebot", "Mailchute's settings", 0),
    ("typebot", "Typebot's settings", 0),
    ("typebot", "The block", 0),
    ("typebot", "The block", 1),
    ("typebot", "The block", 2),
    ("typebot", "Time-out", 0),
    ("typebot", "Quotes, line breaks and lists", 0),
    ("typebot", "Quotes, line breaks and lists", 1),
    ("typebot", "Quotes, line breaks and lists", 2),
    ("typebot", "Without a custom body", 0),
    ("n8n", "The node", 0),
    ("n8n", "The node", 1),
    ("n8n", "Attachments", 0),
    ("grafana", "The contact point", 0),
    ("grafana", "The contact point", 1),
    ("uptime-kuma", "The notification", 0),
    ("uptime-kuma", "The notification", 1),
    ("home-assistant", "configuration.yaml", 0),
    ("home-assistant", "In an automation", 0),
    ("alertmanager", "What it sends", 0),
    ("make", "The module", 0),
    ("make", "Quotes and line breaks", 0),
    ("curl", "", 0),
    ("curl", "Send", 0),
    ("curl", "An attachment", 0),
    ("curl", "Again until it is taken", 0),
    ("curl", "Try it without sending", 0),
    ("curl", "What became of it", 0),
    ("python", "A function", 0),
    ("python", "Its use", 0),
    ("node", "A function", 0),
    ("node", "Its use", 0),
}


async def test_no_block_of_a_recipe_is_left_untried() -> None:
    written = {
        (page.stem, heading, at)
        for page in PAGES.glob("*.md")
        for heading, found in blocks(page.stem).items()
        for at in range(len(found))
    }
    assert written == RUN


async def test_the_index_names_every_recipe() -> None:
    named = set(re.findall(r"\]\(([\w-]+)\.md\)", (PAGES / "README.md").read_text("utf-8")))
    assert named == {page.stem for page in PAGES.glob("*.md")} - {"README"}


@dataclass(frozen=True, slots=True)
class Scene:
    """The program with the settings of the Typebot page, and the relay behind it."""

    service: Service
    arrived: Callable[[str], Awaitable[bytes]]  # the mail with this Message-ID, once the relay has it
    count: Callable[[str], int]  # how many arrived with it

    async def mail(self, answer: Mapping[str, Any]) -> EmailMessage:
        return message_from_bytes(await self.arrived(answer["message_id"]), policy=default)


def settings_of(text: str, port: int) -> dict[str, str]:
    """Read a block of settings; where they lead is this machine."""
    said = dict(line.split("=", 1) for line in text.splitlines())
    assert set(said) == {"SMTP_HOST", "SMTP_PORT", "MAILCHUTE_LISTEN", "MAILCHUTE_API_KEY"}
    return {**said, "SMTP_HOST": "127.0.0.1", "SMTP_PORT": str(port), "MAILCHUTE_LISTEN": "127.0.0.1:0"}


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def scene(request: pytest.FixtureRequest) -> AsyncIterator[Scene]:
    page = block("typebot", "Mailchute's settings")
    if missing() is None:
        postfix: Postfix = request.getfixturevalue("postfix")
        async with Service(settings_of(page, postfix.auth_optional.port)) as service:
            yield Scene(
                service,
                lambda message_id: asyncio.to_thread(postfix.wait_for_mail, message_id),
                lambda message_id: sum(message_id.encode() in mail for mail in postfix.mails()),
            )
        return
    async with Relay(auth=["PLAIN", "LOGIN"]) as relay:
        relay.on("RCPT", "550 5.1.1 User unknown", match=NOBODY)

        def contents(message_id: str) -> list[bytes]:
            return [mail.content for mail in relay.mails if message_id.encode() in mail.content]

        async def arrived(message_id: str) -> bytes:
            return contents(message_id)[0]

        async with Service(settings_of(page, relay.port)) as service:
            yield Scene(service, arrived, lambda message_id: len(contents(message_id)))


def assert_like(answer: Mapping[str, Any], written: str) -> None:
    """Hold an answer against the one that a page shows, where `…` stands for anything."""
    for name, value in json.loads(written).items():
        pattern = ".*".join(map(re.escape, str(value).split("…")))
        assert re.fullmatch(pattern, str(answer[name])), f"{name} is {answer[name]}, the page shows {value}"


# --- Typebot ---------------------------------------------------------------------------------------------------

# What undici adds to ky's request, as ky 1.14 on Node 20 sent it (2026-11-24).
UNDICI = {
    "accept": "*/*",
    "accept-language": "*",
    "sec-fetch-mode": "cors",
    "user-agent": "node",
    "accept-encoding": "gzip, deflate",
}
TYPED = 'She said "yes",\nand: C:\\new {brace} – schöne Grüße'


def typebot_fills(template: str, variables: Mapping[str, Any], *, escapes: bool = True) -> str:
    """Replace variables in a custom body: text is escaped without its quotes, a list is written whole."""

    def value(found: re.Match[str]) -> str:
        held = variables.get(found[1])
        if held is None:
            return ""
        if not escapes:
            return held if isinstance(held, str) else json.dumps(held, ensure_ascii=False)
        written = json.dumps(held, ensure_ascii=False)
        return written[1:-1] if isinstance(held, str) else written

    def code(found: re.Match[str]) -> str:
        if said := re.fullmatch(r"JSON\.stringify\(String\(\{\{(\w+)\}\}\)\)", found[1]):
            return json.dumps(variables[said[1]], ensure_ascii=False)
        if said := re.fullmatch(r"JSON\.stringify\(\{\{(\w+)\}\}\.map\(\(email\) => \(\{email\}\)\)\)", found[1]):
            return json.dumps([{"email": email} for email in variables[said[1]]], ensure_ascii=False)
        named = re.fullmatch(r"\{\{(\w+)\}\}", found[1])
        assert named, f"not taught here: {found[1]}"
        return str(variables[named[1]])

    return re.sub(r"\{\{([^{}]+)\}\}", value, re.sub(r"\{\{=(.+?)=\}\}", code, template))


async def typebot_sends(
    scene: Scene, body: str, *, headers: Mapping[str, str] | None = None
) -> tuple[int, dict[str, Any]]:
    """Run the block; gives `statusCode` and `data`. A body that is JSON is written anew, another leaves as text."""
    url = httpx2.URL(block("typebot", "The block"))
    assert (url.scheme, url.host, url.port) == ("http", "mailchute", 8587)
    key = dict([block("typebot", "The block", 1).split(": ", 1)])
    try:
        content, kind = json.dumps(json.loads(body), separators=(",", ":"), ensure_ascii=False), "application/json"
    except ValueError:
        content, kind = body, "text/plain;charset=UTF-8"
    answer = await scene.service.http.post(
        url.path, content=content.encode(), headers={"content-type": kind, **key, **(headers or {}), **UNDICI}
    )
    return answer.status_code, answer.json()


class TestTypebot:
    body = block("typebot", "The block", 2)
    variables: Mapping[str, Any] = {"Email": f"ann@{DOMAIN}", "Name": 'Ann "A." Doe', "Message": TYPED}

    async def test_the_founding_case_sends_through_587_without_a_login(self, scene: Scene) -> None:
        status, data = await typebot_sends(scene, typebot_fills(self.body, {**self.variables, "Result": "r1"}))
        assert (status, data["ok"], data["state"], data["error_code"]) == (200, True, "sent", None)
        mail = await scene.mail(data)
        assert mail["Subject"] == 'Your enquiry, Ann "A." Doe'
        assert TYPED in mail.get_content().replace("\r\n", "\n")
        (attempt,) = (await looked_up(scene, data["id"]))["attempts"]
        assert attempt["auth"] is None
        assert any(keyword.startswith("AUTH ") for keyword in attempt["extensions"]), "the relay offers it"
        assert not [line for line in attempt["transcript"] if line["line"].startswith("AUTH")]

    async def test_whoever_goes_back_and_sends_again_gets_no_second_mail(self, scene: Scene) -> None:
        body = typebot_fills(self.body, {**self.variables, "Result": "r2"})
        (_, first), (_, second) = await typebot_sends(scene, body), await typebot_sends(scene, body)
        assert second == first
        await scene.mail(first)
        assert scene.count(first["message_id"]) == 1
        unset = [await typebot_sends(scene, typebot_fills(self.body, self.variables)) for _ in range(2)]
        assert unset[0][1]["id"] != unset[1][1]["id"], "a variable without a value is no key"
        changed = typebot_fills(self.body, {**self.variables, "Message": "another", "Result": "r2"})
        assert (await typebot_sends(scene, changed))[0] == 422

    async def test_a_refused_recipient_fills_what_is_mapped(self, scene: Scene) -> None:
        body = typebot_fills(self.body, {**self.variables, "Email": NOBODY, "Result": "r3"})
        status, data = await typebot_sends(scene, body)
        page = (PAGES / "typebot.md").read_text("utf-8")
        mapped = [name.removeprefix("data.") for name in re.findall(r"^\| `(data\.\w+)`", page, re.MULTILINE)]
        assert status == 424
        assert data["ok"] is False
        assert set(mapped) == {"ok", "message", "error_code", "hint", "id"}
        assert all(data[name] for name in mapped if name != "ok")

    async def test_a_refusal_at_the_door_has_a_detail_and_is_not_ok(self, scene: Scene) -> None:
        status, data = await typebot_sends(scene, typebot_fills(self.body, {"Name": "Ann", "Result": "r4"}))
        assert (status, data["ok"]) == (422, False)
        assert data["detail"].startswith('"email" is empty')
        assert data["errors"][0]["pointer"] == "/to"
        assert "error_code" not in data

    @pytest.mark.parametrize(
        "typed",
        [
            "{ann}, {bob}",
            "{ann};{bob}",
            "{ann}\n{bob}",
            "{ann}\r\nRCPT TO:<{bob}>",
            "Ann <{ann}>",
            '{ann}"}}, "bcc": {{"email": "{bob}',
        ],
    )
    async def test_what_a_visitor_types_is_one_address_or_none(self, scene: Scene, typed: str) -> None:
        typed = typed.format(ann=f"ann@{DOMAIN}", bob=f"bob@{DOMAIN}")
        for body in (self.body, block("typebot", "Quotes, line breaks and lists", 1)):
            status, data = await typebot_sends(scene, typebot_fills(body, {**self.variables, "Email": typed}))
            assert (status, data["errors"][0]["pointer"]) == (422, "/to")
        listed = typebot_fills(block("typebot", "Quotes, line breaks and lists"), {"Recipients": [typed]})
        status, data = await typebot_sends(scene, listed)
        assert (status, data["errors"][0]["pointer"]) == (422, "/to/0")

    async def test_inline_code_brings_its_quotes(self, scene: Scene) -> None:
        listed = block("typebot", "Quotes, line breaks and lists")
        both = [f"ann@{DOMAIN}", f"bob@{DOMAIN}"]
        status, data = await typebot_sends(scene, typebot_fills(listed, {"Recipients": both}))
        assert (status, data["accepted"]) == (200, both)
        coded = block("typebot", "Quotes, line breaks and lists", 1)
        status, data = await typebot_sends(scene, typebot_fills(coded, self.variables))
        assert status == 200
        assert TYPED in (await scene.mail(data)).get_content().replace("\r\n", "\n")

    @pytest.mark.parametrize(
        ("body", "escapes"),
        [
            pytest.param('{"to": "{{Recipients}}", "text": "Hello"}', True, id="a list in quotes"),
            pytest.param('{"to": "{{Email}}", "text": "{{={{Message}}=}}"}', True, id="code in quotes"),
            pytest.param("{{Body}}", False, id="one variable"),
            pytest.param('{"to": {{Nobody}}, "text": "Hello"}', True, id="an empty variable that stands bare"),
        ],
    )
    async def test_a_body_that_is_no_json_any_more_is_told_where_and_why(
        self, scene: Scene, body: str, escapes: bool
    ) -> None:
        variables = {**self.variables, "Recipients": ["a", "b"], "Body": f'{{"text": "{TYPED}"}}'}
        status, data = await typebot_sends(scene, typebot_fills(body, variables, escapes=escapes))
        assert status == 422
        assert_like(data, block("typebot", "Quotes, line breaks and lists", 2))

    async def test_the_default_body_passes_where_it_is_taken_leniently(self, scene: Scene) -> None:
        answers = {"Name": "Ann", "from": f"bot@{DOMAIN}", "to": f"ann@{DOMAIN}", "subject": "Hello", "text": TYPED}
        body = json.dumps({"submittedAt": "2026-11-24T12:00:00.000Z", **answers})
        status, refused = await typebot_sends(scene, body)
        assert status == 422
        assert {fault["pointer"] for fault in refused["errors"]} == {"/submittedAt", "/Name"}
        lenient = dict([block("typebot", "Without a custom body").split(": ", 1)])
        status, data = await typebot_sends(scene, body, headers=lenient)
        assert (status, data["ok"], len(data["warnings"])) == (200, True, 2)

    async def test_the_answer_comes_before_typebot_gives_up(self, scene: Scene) -> None:
        page = (PAGES / "typebot.md").read_text("utf-8")
        waits, gives_up = load({}, files=()).default_wait, 10.0
        assert f"waits {gives_up:g} seconds" in page
        assert f"within {waits:g}," in page
        assert waits < gives_up
        shorter = dict([block("typebot", "Time-out").split(": ", 1)])
        status, _ = await typebot_sends(
            scene, typebot_fills(self.body, {**self.variables, "Result": "r5"}), headers=shorter
        )
        assert status == 200

    async def test_the_allowed_host_is_the_one_of_the_url(self) -> None:
        name, _, hosts = block("typebot", "Typebot's settings").partition("=")
        assert (name, hosts) == ("SSRF_ALLOWED_HOSTS", httpx2.URL(block("typebot", "The block")).host)


async def looked_up(scene: Scene, id: str) -> dict[str, Any]:
    answer = await scene.service.http.get(f"/messages/{id}", headers={"Authorization": f"Bearer {KEY}"})
    assert answer.status_code == 200, answer.text
    return cast("dict[str, Any]", answer.json())


# --- n8n -------------------------------------------------------------------------------------------------------

N8N_ACCEPT = "application/json,text/html,application/xhtml+xml,application/xml,text/*;q=0.9, image/*;q=0.8, */*;q=0.7"


def n8n_resolves(written: str, item: Mapping[str, Any], execution: str, run: int = 0) -> Any:
    """Resolve a field: one that is an expression alone keeps its value's type."""
    if not written.startswith("="):
        return written
    known = {
        "$execution.id": execution,
        "$runIndex": run,
        "$itemIndex": 0,
        **{f"$json.{name}": held for name, held in item.items()},
    }
    if whole := re.fullmatch(r"=\{\{ (\S+) \}\}", written):
        return known[whole[1]]
    if pair := re.fullmatch(r"=\{\{ \{ (\w+): (\S+) \} \}\}", written):  # n8n-workflow 2.41 evaluated it to an object
        return {pair[1]: known[pair[2]]}
    return re.sub(r"\{\{ (\S+) \}\}", lambda found: str(known[found[1]]), written[1:])


async def n8n_sends(
    scene: Scene, item: Mapping[str, Any], *, execution: str, run: int = 0, **more: Any
) -> httpx2.Response:
    (node,) = json.loads(block("n8n", "The node"))["nodes"]
    said = node["parameters"]
    assert (said["method"], said["contentType"], said["specifyBody"]) == ("POST", "json", "keypair")
    assert said["genericAuthType"] == "httpBearerAuth"
    headers, fields = (
        {entry["name"]: n8n_resolves(entry["value"], item, execution, run) for entry in said[group]["parameters"]}
        for group in ("headerParameters", "bodyParameters")
    )
    sent = {name.lower(): str(value) for name, value in headers.items()}
    return await scene.service.http.post(
        httpx2.URL(said["url"]).path,
        json={**fields, **more},
        headers={**sent, "Authorization": f"Bearer {KEY}", "accept": N8N_ACCEPT},
    )


class TestN8n:
    async def test_the_node_sends(self, scene: Scene) -> None:
        item = {"email": f"ann@{DOMAIN}", "order": 4711, "text": TYPED}
        answer = await n8n_sends(scene, item, execution="231")
        assert (answer.status_code, answer.json()["ok"]) == (200, True)
        assert answer.json()["accepted"] == [f"ann@{DOMAIN}"]
        mail = await scene.mail(answer.json())
        assert mail["Subject"] == "Your order 4711"
        assert TYPED in mail.get_content().replace("\r\n", "\n")

    async def test_a_retry_of_the_node_is_the_same_message_and_a_new_execution_another(self, scene: Scene) -> None:
        item = {"email": f"ann@{DOMAIN}", "order": 4712, "text": "Hello"}
        first, retried, again = [await n8n_sends(scene, item, execution=number) for number in ("232", "232", "233")]
        assert retried.headers["idempotent-replayed"] == "true"
        assert retried.json()["id"] == first.json()["id"] != again.json()["id"]

    async def test_rounds_of_a_loop_are_messages_of_their_own(self, scene: Scene) -> None:
        item = {"email": f"ann@{DOMAIN}", "order": 4713, "text": "Hello"}
        answers = [await n8n_sends(scene, item, execution="237", run=run) for run in (0, 1, 0, 1)]
        ids = [answer.json()["id"] for answer in answers]
        assert ids[:2] == ids[2:]
        assert ids[0] != ids[1]

    async def test_an_expression_in_json_writes_its_own_quotes(self, scene: Scene) -> None:
        held = {"email": f"ann@{DOMAIN}", "text": TYPED}
        body = re.sub(
            r"\{\{ JSON\.stringify\(\$json\.(\w+)\) \}\}",
            lambda found: json.dumps(held[found[1]]),
            block("n8n", "The node", 1),
        )
        answer = await posted(scene, body)
        assert answer.status_code == 200
        assert TYPED in (await scene.mail(answer.json())).get_content().replace("\r\n", "\n")

    async def test_a_file_is_attached_and_a_note_of_it_is_refused(self, scene: Scene) -> None:
        expression = block("n8n", "Attachments")
        assert expression == "={{ [{ filename: $binary.data.fileName, content: $json.data }] }}"
        item = {"email": f"ann@{DOMAIN}", "order": 4714, "text": "Hello"}
        for content, status in (("SGVsbG8=", 200), ("filesystem-v2", 422), ("database", 422)):
            files = [{"filename": "a.txt", "content": content}]
            answer = await n8n_sends(scene, item, execution=f"238-{content}", attachments=files)
            assert answer.status_code == status, answer.text

    async def test_its_failures_are_plain_json_with_a_sentence_to_show(self, scene: Scene) -> None:
        refused = await n8n_sends(scene, {"email": NOBODY, "order": 1, "text": "Hello"}, execution="234")
        wrong = await n8n_sends(scene, {"email": "ann", "order": 1, "text": "Hello"}, execution="235")
        assert (refused.status_code, wrong.status_code) == (424, 422)
        assert {answer.headers["content-type"] for answer in (refused, wrong)} == {"application/json"}
        assert refused.json()["message"]
        assert wrong.json()["detail"]
        two = await n8n_sends(scene, {"email": f"ann@{DOMAIN}, bob@{DOMAIN}", "order": 1, "text": "x"}, execution="236")
        assert (two.status_code, two.json()["errors"][0]["pointer"]) == (422, "/to")
        again = await n8n_sends(scene, {"email": NOBODY, "order": 1, "text": "Hello"}, execution="234")
        assert (again.status_code, again.json()["id"]) == (424, refused.json()["id"]), (
            "Retry On Fail sends nothing twice"
        )


# --- Make ------------------------------------------------------------------------------------------------------


async def make_sends(scene: Scene, bundle: Mapping[str, str], *, execution: str) -> httpx2.Response:
    said = json.loads(block("make", "The module"))["mapper"]
    assert (said["method"], said["contentType"], said["inputMethod"]) == ("post", "json", "jsonString")
    known = {f"1.{name}": value for name, value in bundle.items()} | {"var.scenario.executionId": execution}

    def filled(text: str) -> str:
        return re.sub(r"\{\{([^{}]+)\}\}", lambda found: known[found[1]], text)

    headers = {entry["name"]: filled(entry["value"]) for entry in said["headers"]}
    assert f"`Bearer {KEY}`" in (PAGES / "make.md").read_text("utf-8")
    return await scene.service.http.post(
        httpx2.URL(said["url"]).path,
        content=filled(said["jsonStringBodyContent"]).encode(),
        headers={**headers, "Content-Type": "application/json", "Authorization": f"Bearer {KEY}"},
    )


class TestMake:
    async def test_the_module_sends_once_for_an_execution(self, scene: Scene) -> None:
        bundle = {"email": f"ann@{DOMAIN}", "order": "4711"}
        first, second = [await make_sends(scene, bundle, execution="e1") for _ in range(2)]
        assert (first.status_code, first.json()["ok"]) == (200, True)
        assert second.headers["idempotent-replayed"] == "true"
        assert (await scene.mail(first.json()))["Subject"] == "Your order 4711"

    async def test_two_addresses_in_one_value_are_refused(self, scene: Scene) -> None:
        answer = await make_sends(scene, {"email": f"ann@{DOMAIN}, bob@{DOMAIN}", "order": "4711"}, execution="e3")
        assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "/to")

    async def test_a_quote_in_a_value_is_told(self, scene: Scene) -> None:
        answer = await make_sends(scene, {"email": f"ann@{DOMAIN}", "order": '4711 "express"'}, execution="e2")
        assert answer.status_code == 422
        assert_like(answer.json(), block("make", "Quotes and line breaks"))


# --- monitors --------------------------------------------------------------------------------------------------


async def posted(scene: Scene, body: str, **headers: str) -> httpx2.Response:
    headers = headers or {"Authorization": f"Bearer {KEY}"}
    return await scene.service.http.post(
        "/send", content=body.encode(), headers={"Content-Type": "application/json", **headers}
    )


class TestMonitors:
    async def test_grafana_sends_what_its_template_makes(self, scene: Scene) -> None:
        template, payload = block("grafana", "The contact point"), block("grafana", "The contact point", 1)
        assert re.findall(r'^  "(\w+)"', template, re.MULTILINE) == ["from", "to", "subject", "text"]
        assert set(json.loads(payload)) == {"from", "to", "subject", "text"}
        answer = await posted(scene, payload)
        assert (answer.status_code, answer.json()["ok"]) == (200, True)
        assert (await scene.mail(answer.json()))["Subject"].startswith("[FIRING:1]")

    @pytest.mark.parametrize("name", ['The "shop"', None], ids=["a monitor", "a test without one"])
    async def test_uptime_kuma_sends_what_its_template_makes(self, scene: Scene, name: str | None) -> None:
        template = block("uptime-kuma", "The notification")
        body = template.replace(
            '{{ monitorJSON["name"] | default: "Uptime Kuma" | json }}', json.dumps(name or "Uptime Kuma")
        )
        body = body.replace("{{ msg | json }}", json.dumps(TYPED))
        assert "{{" not in body
        headers = json.loads(block("uptime-kuma", "The notification", 1))
        assert headers["Content-Type"] == "application/json", "axios sends text as a form"
        answer = await posted(scene, body, **headers)
        assert (answer.status_code, answer.json()["ok"]) == (200, True)
        mail = await scene.mail(answer.json())
        assert mail["Subject"] == (name or "Uptime Kuma")
        assert TYPED in mail.get_content().replace("\r\n", "\n")

    async def test_home_assistant_sends_what_its_template_makes(self, scene: Scene) -> None:
        command = block("home-assistant", "configuration.yaml")
        said = dict(re.findall(r"^ +(\w+): (.+)$", command, re.MULTILINE))
        assert (said["method"], said["content_type"], httpx2.URL(said["url"]).path) == (
            "post",
            "application/json",
            "/send",
        )
        written = re.search(r"\{\{ (\{.+\}) \| to_json \}\}", command)
        assert written
        data = dict(re.findall(r"^  (\w+): (.+)$", block("home-assistant", "In an automation"), re.MULTILINE))
        subject = json.loads(data["subject"])
        fields = re.sub(r": (to|subject|text)\b", r': "\1"', written[1])
        body = {**json.loads(fields), "to": data["to"], "subject": subject, "text": TYPED}
        answer = await posted(scene, json.dumps(body), Authorization=said["authorization"])
        assert (answer.status_code, answer.json()["ok"]) == (200, True)
        assert (await scene.mail(answer.json()))["Subject"] == subject

    async def test_alertmanager_is_asked_for_what_its_body_lacks(self, scene: Scene) -> None:
        answer = await posted(scene, block("alertmanager", "What it sends"))
        assert answer.status_code == 422
        assert "a recipient is missing" in answer.json()["detail"]
        assert "text or html?" in answer.json()["detail"]


# --- programs --------------------------------------------------------------------------------------------------


async def run_program(*command: str, folder: Path, environ: Mapping[str, str] | None = None) -> tuple[int, str, str]:
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=folder,
        env={"PATH": os.environ["PATH"], **(environ or {})},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=pipe,
        stderr=pipe,
    )
    try:
        async with asyncio.timeout(PATIENCE):
            out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


BAD_GATEWAY = b"HTTP/1.1 502 Bad Gateway\r\nContent-Type: text/html\r\nContent-Length: 13\r\n\r\n<p>Sorry.</p>"


class Between:
    """Stands before the service, as a proxy does, and spoils the first answers: `lost`, or another one, a `502`."""

    def __init__(self, port: int, *, spoils: Sequence[str]) -> None:
        self.connections = 0
        self._tasks: list[asyncio.Task[None]] = []
        self._port, self._spoils = port, list(spoils)

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._come, "127.0.0.1", 0)
        self.base = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        async with asyncio.timeout(PATIENCE):
            await asyncio.gather(*self._tasks)

    def _come(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._tasks.append(asyncio.create_task(self._pass_on(reader, writer)))

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        spoil = self._spoils.pop(0) if self._spoils else ""
        inner, outer = await asyncio.open_connection("127.0.0.1", self._port)
        onward = asyncio.create_task(self._copy(reader, outer))
        with contextlib.suppress(OSError):
            while piece := await inner.read(65536):
                if spoil:  # the service has answered, so it has the message; the caller does not learn of it
                    writer.write(BAD_GATEWAY if spoil == "502" else b"")
                    break
                writer.write(piece)
                await writer.drain()
        writer.close()
        await onward
        for side in (writer, outer):
            with contextlib.suppress(OSError):
                await side.wait_closed()

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while piece := await reader.read(65536):
                writer.write(piece)
                await writer.drain()
        writer.close()


class TestCurl:
    @pytest.fixture(autouse=True)
    def has_curl(self) -> None:
        if not shutil.which("curl"):
            pytest.skip("there is no curl")

    async def shell(
        self, scene: Scene, folder: Path, heading: str, *, lines: str = "", base: str = ""
    ) -> tuple[int, dict[str, Any]]:
        script = "\n".join([block("curl", ""), lines, block("curl", heading)])
        code, out, err = await run_program(
            "sh", "-c", script.replace("http://127.0.0.1:8587", base or scene.service.base), folder=folder
        )
        if "-o answer.json" in script:
            out = (folder / "answer.json").read_text("utf-8")
        assert out, err
        return code, json.loads(out)

    @pytest.mark.parametrize("heading", ["Send", "An attachment", "Again until it is taken"])
    async def test_the_lines_send(self, scene: Scene, tmp_path: Path, heading: str) -> None:
        file = b"%PDF-1.7 " + bytes(range(256)) * 40
        (tmp_path / "invoice.pdf").write_bytes(file)
        code, answer = await self.shell(scene, tmp_path, heading)
        assert (code, answer["ok"], answer["state"]) == (0, True, "sent")
        mail = await scene.mail(answer)
        attached = {part.get_filename(): part.get_payload(decode=True) for part in mail.iter_attachments()}
        assert attached == ({"invoice.pdf": file} if heading == "An attachment" else {})

    async def test_an_answer_that_was_lost_costs_no_second_mail(self, scene: Scene, tmp_path: Path) -> None:
        async with Between(int(scene.service.base.rpartition(":")[2]), spoils=["lost", "502"]) as between:
            code, answer = await self.shell(scene, tmp_path, "Again until it is taken", base=between.base)
        assert (code, answer["ok"], between.connections) == (0, True, 3)
        await scene.mail(answer)
        assert scene.count(answer["message_id"]) == 1

    async def test_a_dry_run_shows_the_source_and_sends_nothing(self, scene: Scene, tmp_path: Path) -> None:
        code, answer = await self.shell(scene, tmp_path, "Try it without sending")
        assert (code, answer["dry_run"], answer["envelope"]["to"]) == (0, True, [f"ann@{DOMAIN}"])
        mail = message_from_bytes(answer["raw"].encode(), policy=default)
        assert mail["Subject"] == "Grüße"
        assert scene.count(str(mail["Message-ID"])) == 0

    async def test_a_refusal_is_an_exit_code_and_still_an_answer(self, scene: Scene, tmp_path: Path) -> None:
        code, answer = await self.shell(scene, tmp_path, "Send", lines="MAILCHUTE_API_KEY=another-key-altogether")
        assert code == 22
        assert answer["type"] == "/errors/unauthenticated"

    async def test_a_message_is_looked_up(self, scene: Scene, tmp_path: Path) -> None:
        _, sent = await self.shell(scene, tmp_path, "Send")
        code, found = await self.shell(scene, tmp_path, "What became of it", lines=f"id={sent['id']}")
        assert (code, found["state"], len(found["attempts"])) == (0, "sent", 1)


class TestPrograms:
    """The functions of the Python and the Node page: one mail, however often it takes."""

    def program(self, language: str, base: str, *, to: str) -> str:
        if language == "node" and not shutil.which("node"):
            pytest.skip("there is no node")
        source = "\n".join([block(language, "A function"), block(language, "Its use")])
        source = source.replace("http://127.0.0.1:8587", base).replace(f"ann@{DOMAIN}", to)
        source = source.replace("order-4711-shipped", f"{language}-{to}")
        tell = "print(json.dumps(answer))" if language == "python" else "console.log(JSON.stringify(answer));"
        return f"{source}\n{tell}\n"

    async def run(
        self, language: str, scene: Scene, folder: Path, *, to: str, spoils: Sequence[str] = ()
    ) -> tuple[dict[str, Any], str]:
        async with Between(int(scene.service.base.rpartition(":")[2]), spoils=spoils) as between:
            file = folder / ("send.py" if language == "python" else "send.mjs")
            file.write_text(self.program(language, between.base, to=to), "utf-8")
            program = sys.executable if language == "python" else "node"
            code, out, err = await run_program(program, str(file), folder=folder)
            assert code == 0, err
            assert between.connections == len(spoils) + 1
        return json.loads(out.splitlines()[-1]), out + err

    @pytest.mark.parametrize("language", ["python", "node"])
    async def test_an_answer_that_was_lost_costs_no_second_mail(
        self, language: str, scene: Scene, tmp_path: Path
    ) -> None:
        answer, _ = await self.run(language, scene, tmp_path, to=f"ann@{DOMAIN}", spoils=["lost", "502"])
        assert (answer["ok"], answer["state"]) == (True, "sent")
        assert (await scene.mail(answer))["Subject"] == "Your order 4711"
        assert scene.count(answer["message_id"]) == 1

    @pytest.mark.parametrize("language", ["python", "node"])
    async def test_a_refusal_is_not_tried_again_and_its_cure_is_printed(
        self, language: str, scene: Scene, tmp_path: Path
    ) -> None:
        answer, printed = await self.run(language, scene, tmp_path, to=NOBODY)
        assert (answer["ok"], answer["status"]) == (False, 424)
        assert answer["error_code"] in printed.replace(json.dumps(answer), "")
        assert answer["hint"] in printed
