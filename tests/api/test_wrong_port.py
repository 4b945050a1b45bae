"""Sending to a port that is no relay's: the first answer names what listens there, in every TLS mode."""

import asyncio
from pathlib import Path

import pytest

from tests.api.shapes import flat
from tests.support.app import running


async def as_a_web_server(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    said = await reader.read(1000)
    writer.write(b"HTTP/1.0 200 OK\r\n\r\n" if said.startswith(b"HEAD") else b"HTTP/1.1 400 Bad Request\r\n\r\n")
    writer.close()


@pytest.mark.parametrize("mode", ["none", "opportunistic", "starttls", "implicit"])
async def test_a_mail_to_a_web_server_says_so_at_once(mode: str, tmp_path: Path) -> None:
    async with await asyncio.start_server(as_a_web_server, "127.0.0.1", 0) as web:
        environ = {
            "MAILCHUTE_PROFILES__RELAY__PORT": str(web.sockets[0].getsockname()[1]),
            "MAILCHUTE_PROFILES__RELAY__TLS": mode,
            "MAILCHUTE_PROFILES__RELAY__TIMEOUTS__GREETING": "0.2",
        }
        async with running(tmp_path, environ=environ) as found:
            answer = flat(await found.send(prefer="wait=20"), status=202)
            assert (answer["error_code"], answer["reason"], answer["class"]) == (
                "EPROTOCOL",
                "not_smtp",
                "configuration",
            )
            assert "a web server" in answer["hint"]
            assert "MAILCHUTE_PROFILES__RELAY__PORT" in answer["hint"]
            assert "MAILCHUTE_PROFILES__RELAY__TLS" not in answer["hint"]


@pytest.mark.parametrize(("offers", "cure"), [(True, "starttls"), (False, "none")])
async def test_implicit_tls_at_a_port_without_it_is_told_what_works(offers: bool, cure: str, tmp_path: Path) -> None:
    environ = {"MAILCHUTE_PROFILES__RELAY__TLS": "implicit"}
    async with running(tmp_path, environ=environ) as found:
        if offers:
            found.relay.extensions = (*found.relay.extensions, "STARTTLS")
        answer = flat(await found.send(prefer="wait=20"), status=202)
        assert answer["reason"] == "tls_mode_mismatch"
        assert f"MAILCHUTE_PROFILES__RELAY__TLS={cure}" in answer["hint"]
        other = {"none", "starttls"} - {cure}
        assert f"MAILCHUTE_PROFILES__RELAY__TLS={other.pop()}" not in answer["hint"]
