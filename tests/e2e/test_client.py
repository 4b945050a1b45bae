"""A client that nobody wrote: generated from openapi.json, type-checked, and used against the real program.

The generator stands in an environment of its own (`.venv/client`), since its dependencies and ours exclude each other.
"""

import asyncio
import os
import sys
from pathlib import Path

import pytest

from tests.support.relay import Relay
from tests.support.service import Service

ROOT = Path(__file__).parents[2]
GENERATOR = Path(sys.prefix) / "client"
KEY = "a-key-of-sixteen-characters-or-more"

# It has no name for the type of a mail's source.
CONFIGURATION = "content_type_overrides:\n  message/rfc822: application/octet-stream\n"

PROGRAM = """
import sys

import attrs
from mailchute_client import AuthenticatedClient
from mailchute_client.api.messages import get_message, get_message_source, list_messages, send_message
from mailchute_client.models import (
    Attachment,
    DryRunAnswer,
    Mailbox,
    MessageAnswer,
    MessageDetails,
    MessageList,
    MessageNotSent,
    MessageState,
    Problem,
    SendRequest,
)

with AuthenticatedClient(base_url=sys.argv[1], token=sys.argv[2], raise_on_unexpected_status=True) as client:
    mail = SendRequest(
        from_=Mailbox(email="bot@example.org", name="Bot"),
        to=["ann@example.org", "Bob <bob@example.org>"],
        subject="Gr\\u00fc\\u00dfe",
        text="It is on its way.",
        attachments=[Attachment(filename="a.txt", content="SGVsbG8=")],
    )
    sent = send_message.sync(client=client, body=mail, idempotency_key="4711")
    assert isinstance(sent, MessageAnswer), sent
    assert sent.ok and sent.state is MessageState.SENT
    assert sent.accepted == ["ann@example.org", "bob@example.org"]

    again = send_message.sync(client=client, body=mail, idempotency_key="4711")
    assert isinstance(again, MessageAnswer) and again.id == sent.id

    found = get_message.sync(sent.id, client=client)
    assert isinstance(found, MessageDetails), found
    assert [attempt.number for attempt in found.attempts] == [1]
    assert found.created_at <= found.expires_at

    source = get_message_source.sync(sent.id, client=client)
    assert source is not None and not isinstance(source, Problem)
    assert b"Message-ID: " + sent.message_id.encode() in source.payload.read()

    listed = list_messages.sync(client=client, state=MessageState.SENT, limit=1)
    assert isinstance(listed, MessageList) and [message.id for message in listed.data] == [sent.id]

    dry = send_message.sync(client=client, body=attrs.evolve(mail, dry_run=True))
    assert isinstance(dry, DryRunAnswer) and dry.envelope.to == sent.accepted

    refused = send_message.sync(client=client, body=SendRequest(from_="bot@example.org", to="nobody@example.org", text="x"))
    assert isinstance(refused, MessageNotSent), refused
    assert (refused.smtp_code, refused.ok, refused.status) == (550, False, 424), refused

    wrong = send_message.sync(client=client, body=SendRequest(to="ann", text="x"))
    assert isinstance(wrong, Problem) and [fault.pointer for fault in wrong.errors] == ["/to"]

print(sent.message_id)
"""


async def run_in(folder: Path, *command: str) -> str:
    """Run a command that finds the generator, its libraries and what it wrote; gives what was printed."""
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=folder,
        env={"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": f"{folder}:{GENERATOR}"},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    out, _ = await process.communicate()
    assert process.returncode == 0, out.decode()
    return out.decode()


async def test_a_generated_client_sends_a_mail_and_looks_it_up(tmp_path: Path) -> None:
    if not GENERATOR.is_dir():
        pytest.skip(f"{GENERATOR} is missing: make .venv/.dev")
    (tmp_path / "configuration.yaml").write_text(CONFIGURATION)
    (tmp_path / "program.py").write_text(PROGRAM)
    generator = (sys.executable, "-m", "openapi_python_client", "generate", "--path", str(ROOT / "openapi.json"))
    where = ("--meta", "none", "--output-path", "mailchute_client", "--config", "configuration.yaml")
    await run_in(tmp_path, *generator, *where, "--fail-on-warning")
    await run_in(tmp_path, sys.executable, "-m", "mypy", "--strict", "--config-file", "", "program.py")
    async with Relay() as relay:
        relay.on("RCPT", "550 5.1.1 No such mailbox", match="nobody@")
        settings = {"SMTP_HOST": relay.host, "SMTP_PORT": str(relay.port), "MAILCHUTE_API_KEY": KEY}
        async with Service(settings) as service:
            said = await run_in(tmp_path, sys.executable, "program.py", service.base, KEY)
        (mail,) = relay.mails
        assert f"Message-ID: {said.strip()}".encode() in mail.content
