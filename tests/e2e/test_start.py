"""Starting and stopping the real program: with nothing said, with everything wrong, and what it prints."""

import asyncio
import json
import shlex
import shutil
import signal
import socket
import stat
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx2
import pytest
import pytest_asyncio

from app import __version__
from app.serving import SHUTDOWN_SECONDS
from app.store.database import SCHEMA
from tests.support.service import MAIL, MAILCHUTE, Ended, Service, run

ROOT = Path(__file__).parents[2]
HAS_IPV6 = socket.has_ipv6 and Path("/proc/net/if_inet6").exists()
KEY = "a-key-of-sixteen-characters-or-more"

in_one_loop = pytest.mark.asyncio(loop_scope="module")  # tests that look at one and the same service


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def sandbox() -> AsyncIterator[Service]:
    """One zero-config start, for all tests that change nothing another one looks at."""
    async with Service() as service:
        yield service


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def keyed() -> AsyncIterator[Service]:
    async with Service({"MAILCHUTE_API_KEY": KEY}) as service:
        yield service


def curl_line(service: Service) -> str:
    (line,) = (line for line in service.text.splitlines() if line.startswith("curl "))
    return line


async def answer_to_curl(line: str, folder: Path) -> object:
    """Run the printed line in a shell; where there is no curl, send what it says."""
    if shutil.which("curl"):
        said = await run("sh", "-c", line, folder=folder)
        assert said.code == 0, said.err
        return json.loads(said.out)
    _, url, *options = shlex.split(line)
    given = dict(zip(options[::2], options[1::2], strict=True))
    name, _, value = given["-H"].partition(": ")
    async with httpx2.AsyncClient(trust_env=False) as client:
        answer = await client.post(url, content=given["-d"], headers={name: value})
    return answer.json()


class TestZeroConfig:
    pytestmark = in_one_loop

    async def test_the_printed_curl_line_works_as_it_stands(self, sandbox: Service, tmp_path: Path) -> None:
        answer = await answer_to_curl(curl_line(sandbox), tmp_path)
        assert isinstance(answer, dict)
        assert (answer["state"], answer["ok"], answer["sandbox"]) == ("sent", True, True)
        assert "kept in the sandbox, not sent" in answer["message"]

    async def test_the_start_up_text_says_that_nothing_leaves_the_machine(self, sandbox: Service) -> None:
        assert "nothing leaves this machine" in sandbox.text
        assert f"{sandbox.base}/sandbox" in sandbox.text
        assert f"{sandbox.base}/docs" in sandbox.text
        port = sandbox.base.rpartition(":")[2]
        assert f"ssh -L {port}:127.0.0.1:{port} " in sandbox.text

    async def test_the_sandbox_lists_a_message_and_shows_its_text_and_source(self, sandbox: Service) -> None:
        answer = (await sandbox.send(subject="Für Änne", text="Liebe Änne,\n<b>auf bald</b>")).json()
        listed = await sandbox.http.get("/sandbox")
        assert listed.status_code == 200
        assert f'href="sandbox/{answer["id"]}"' in listed.text
        assert "Für Änne" in listed.text
        shown = (await sandbox.http.get(f"/sandbox/{answer['id']}")).text.replace("\r\n", "\n")
        assert "Liebe Änne,\n&lt;b&gt;auf bald&lt;/b&gt;" in shown
        assert f"Message-ID: {answer['message_id']}".replace("<", "&lt;").replace(">", "&gt;") in shown
        assert "Content-Transfer-Encoding: " in shown

    async def test_the_start_up_text_names_the_addresses_that_fail(self, sandbox: Service) -> None:
        (line,) = [line for line in sandbox.text.splitlines() if "550@" in line]
        for local in ("451", "421", "552", "slow", "drop"):
            assert f"{local}@" in line

    @pytest.mark.parametrize(
        ("wanted", "code", "reason"),
        [
            ({"to": "421@theirs.test"}, "ECONNECTION", "service_unavailable"),
            ({"to": "drop@theirs.test"}, "EINDOUBT", "outcome_unknown"),
            ({"profile": "sandbox-eauth"}, "EAUTH", "auth_rejected"),
            ({"profile": "sandbox-down"}, "ECONNECTION", "connection_refused"),
            ({"profile": "sandbox-tls-expired"}, "ETLS", "tls_cert_expired"),
        ],
        ids=lambda value: next(iter(value.values())) if isinstance(value, dict) else None,
    )
    async def test_failure_can_be_had_on_demand(
        self, wanted: dict[str, str], code: str, reason: str, sandbox: Service
    ) -> None:
        answer = await sandbox.send(**wanted)
        said = answer.json()
        assert (answer.status_code, said["ok"], said["sandbox"]) == (202, False, True)
        assert (said["error_code"], said["reason"]) == (code, reason)

    async def test_logs_are_json_lines_on_stderr(self, sandbox: Service) -> None:
        answer = (await sandbox.send()).json()
        line = await sandbox.logged("delivery.sent", message_id=answer["id"])
        assert {"event", "level", "timestamp", "message_id", "profile", "attempt"} <= line.keys()
        assert all("event" in line for line in sandbox.log)

    async def test_health_warns_of_the_sandbox(self, sandbox: Service) -> None:
        answer = await sandbox.http.get("/health")
        assert answer.status_code == 200
        assert answer.json()["status"] == "warn"
        assert "sandbox" in answer.text

    @pytest.mark.parametrize("path", ["/livez", "/docs", "/sandbox", "/nowhere"])
    async def test_a_monitor_that_asks_by_head_gets_the_head_alone(self, sandbox: Service, path: str) -> None:
        """What is behind the empty line would be taken for the next answer's beginning: the body must not be there."""
        host, _, port = sandbox.base.removeprefix("http://").partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        for method, connection in (("HEAD", "keep-alive"), ("GET", "close")):
            writer.write(f"{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: {connection}\r\n\r\n".encode())
        head, second, body = (await reader.read()).split(b"\r\n\r\n", 2)
        writer.close()
        await writer.wait_closed()
        assert head.startswith(b"HTTP/1.1 200 " if path != "/nowhere" else b"HTTP/1.1 404 ")
        assert f"content-length: {len(body)}".encode() in head.splitlines()
        assert second.splitlines()[0] == head.splitlines()[0]

    async def test_an_idle_connection_outlasts_the_callers_that_would_use_it_again(self, sandbox: Service) -> None:
        """Most servers close at 5 s, where httpx and Node may just be sending: a reset, and a bot does not try again."""
        host, _, port = sandbox.base.removeprefix("http://").partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        request = f"HEAD /livez HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()
        writer.write(request)
        await reader.readuntil(b"\r\n\r\n")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.read(1), 5.5)
        writer.write(request)
        assert await reader.readline() == b"HTTP/1.1 200 OK\r\n"
        writer.close()
        await writer.wait_closed()

    async def test_the_files_are_their_owners_alone(self, sandbox: Service) -> None:
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in sandbox.database.parent.iterdir()}
        assert modes.pop("mailchute.db.sock") == 0o600
        assert set(modes.values()) == {0o600}, modes
        assert "mailchute.db" in modes

    async def test_a_second_process_on_the_same_file_is_refused_and_harms_nothing(self, sandbox: Service) -> None:
        second = await run(MAILCHUTE, "serve", folder=sandbox.folder)
        assert_refused(second, "mailchute.db is in use by another Mailchute process")
        assert (await sandbox.operator.get("/livez")).status_code == 200, "its operator socket is still there"
        assert (await sandbox.send()).json()["state"] == "sent"

    async def test_a_migration_of_a_file_in_use_is_refused(self, sandbox: Service) -> None:
        second = await run(MAILCHUTE, "migrate", folder=sandbox.folder)
        assert_refused(second, "mailchute.db is in use by another Mailchute process")

    async def test_a_port_in_use_is_refused(self, sandbox: Service, tmp_path: Path) -> None:
        listen = sandbox.base.removeprefix("http://")
        second = await run(MAILCHUTE, "serve", folder=tmp_path, settings={"MAILCHUTE_LISTEN": listen})
        assert_refused(second, f"{listen} cannot be listened on", "MAILCHUTE_LISTEN")
        assert list(tmp_path.iterdir()) == [], "nothing was made for a service that never was"


class TestKey:
    pytestmark = in_one_loop

    async def test_the_operator_socket_is_the_owners_alone_and_needs_no_key(self, keyed: Service) -> None:
        mode = keyed.operator_path.stat().st_mode
        assert stat.S_ISSOCK(mode)
        assert stat.S_IMODE(mode) == 0o600
        answer = await keyed.operator.post("/send", json=dict(MAIL))
        assert (answer.status_code, answer.json()["state"]) == (200, "sent")
        assert (await keyed.operator.get("/messages")).status_code == 200

    @pytest.mark.parametrize("path", ["/messages", "/health", "/metrics", "/sandbox"])
    async def test_without_the_key_nothing_is_shown(self, keyed: Service, path: str) -> None:
        answer = await keyed.http.get(path)
        assert answer.status_code == 401
        assert answer.json()["type"] == "/errors/unauthenticated"

    async def test_without_the_key_nothing_is_taken(self, keyed: Service) -> None:
        assert (await keyed.send()).status_code == 401

    @pytest.mark.parametrize(
        "key", ["wrong", KEY + "x", KEY[:-1], KEY.upper()], ids=["wrong", "longer", "shorter", "shouted"]
    )
    async def test_another_key_is_no_key(self, keyed: Service, key: str) -> None:
        answer = await keyed.http.get("/messages", headers={"Authorization": f"Bearer {key}"})
        assert answer.status_code == 401

    @pytest.mark.parametrize("headers", [{"Authorization": f"Bearer {KEY}"}, {"X-API-Key": KEY}], ids=["bearer", "own"])
    async def test_with_the_key_all_is_open(self, keyed: Service, headers: dict[str, str]) -> None:
        answer = await keyed.http.post("/send", json=dict(MAIL), headers=headers)
        assert answer.status_code == 200
        assert (await keyed.http.get("/messages", headers=headers)).status_code == 200

    @pytest.mark.parametrize("written", [f"{KEY}\n", f"  {KEY}\r\n"])
    async def test_a_key_with_blanks_around_it_is_the_key_without_them(self, written: str) -> None:
        async with Service({"MAILCHUTE_API_KEY": written}) as service:
            answer = await service.http.get("/messages", headers={"Authorization": f"Bearer {KEY}"})
            assert answer.status_code == 200
            assert next(line["warning"] for line in service.log if "warning" in line).startswith("MAILCHUTE_API_KEY: ")

    async def test_a_key_in_the_query_string_is_no_key(self, keyed: Service) -> None:
        assert (await keyed.http.get("/messages", params={"api_key": KEY, "key": KEY})).status_code == 401

    @pytest.mark.parametrize("path", ["/livez", "/readyz", "/docs", "/redoc", "/openapi.json"])
    async def test_what_says_nothing_of_mail_is_open(self, keyed: Service, path: str) -> None:
        assert (await keyed.http.get(path)).status_code == 200

    async def test_the_printed_curl_line_takes_the_key_from_the_environment(
        self, keyed: Service, tmp_path: Path
    ) -> None:
        assert KEY not in keyed.text
        if not shutil.which("curl"):
            pytest.skip("there is no curl")
        said = await run("sh", "-c", curl_line(keyed), folder=tmp_path, settings={"MAILCHUTE_API_KEY": KEY})
        assert json.loads(said.out)["state"] == "sent"


def assert_refused(ended: Ended, *words: str) -> None:
    """A start-up error: exit code 2, plain sentences on stderr, nothing on stdout."""
    assert ended.code == 2, ended
    assert ended.out == ""
    assert ended.err
    for line in ended.err.splitlines():
        assert line.startswith("mailchute: "), ended.err
    assert "Traceback" not in ended.err
    for word in words:
        assert word in ended.err


RELAY = {"SMTP_HOST": "127.0.0.1", "SMTP_PORT": "2525"}


class TestRefusals:
    @pytest.mark.parametrize(
        ("settings", "words"),
        [
            pytest.param({"MAILCHUTE_LISTN": "127.0.0.1:0"}, ["MAILCHUTE_LISTN", "LISTEN?"], id="unknown key"),
            pytest.param({**RELAY, "SMTP_PASWORD": "x"}, ["SMTP_PASWORD", "SMTP_PASSWORD?"], id="unknown relay key"),
            pytest.param({**RELAY, "SMTP_USERNAME": "bot"}, ["SMTP_PASSWORD is missing"], id="no password"),
            pytest.param({**RELAY, "SMTP_PASSWORD": "secret"}, ["SMTP_USERNAME is missing"], id="no user name"),
            pytest.param({"SMTP_PORT": "25"}, ["SMTP_HOST"], id="no host"),
            pytest.param(
                {"MAILCHUTE_LISTEN": "0.0.0.0:0"}, ["export MAILCHUTE_API_KEY="], id="beyond loopback without a key"
            ),
            pytest.param(
                {"MAILCHUTE_LISTEN": "0.0.0.0:0", "MAILCHUTE_API_KEY": KEY},
                ["SMTP_HOST", "MAILCHUTE_SANDBOX=true"],
                id="beyond loopback without a relay",
            ),
            pytest.param({"MAILCHUTE_API_KEY": "short"}, ["MAILCHUTE_API_KEY", "16"], id="short key"),
            pytest.param(
                {"MAILCHUTE_DATABASE_URL": "postgresql://bot:secret@db/mail"}, ["PostgreSQL"], id="PostgreSQL URL"
            ),
            pytest.param(
                {"SMTP_HOST": "smtp://bot:secret@mail.example.org:587"},
                ["SMTP_HOST is a URL; write SMTP_HOST=mail.example.org, SMTP_PORT=587, SMTP_USERNAME=…"],
                id="a URL for the relay's host",
            ),
            pytest.param(
                {"SMTP_HOST": '"mail.example.org"'},
                ["SMTP_HOST is in quotes", "SMTP_HOST=mail.example.org"],
                id="quotes",
            ),
            pytest.param({"MAILCHUTE_API_KEY": f"{KEY}\u200b"}, ["MAILCHUTE_API_KEY", "U+200B"], id="invisible"),
            pytest.param({"MAILCHUTE_ROLE": "worker"}, ["MAILCHUTE_ROLE=worker", "PostgreSQL"], id="role worker"),
            pytest.param({"MAILCHUTE_CONFIG": "none.toml"}, ["none.toml cannot be read"], id="no such file"),
        ],
    )
    @pytest.mark.parametrize("command", [["serve"], ["serve", "--check"]], ids=["serve", "check"])
    async def test_settings_that_cannot_work_are_refused_in_plain_words(
        self, tmp_path: Path, command: list[str], settings: dict[str, str], words: list[str]
    ) -> None:
        ended = await run(MAILCHUTE, *command, folder=tmp_path, settings=settings)
        assert_refused(ended, *words)
        assert "secret" not in ended.err
        assert list(tmp_path.iterdir()) == [], "nothing was made for a service that never was"

    async def test_a_file_that_is_no_database_is_refused_untouched(self, tmp_path: Path) -> None:
        file = tmp_path / "letters.txt"
        file.write_text("Dear Ann,\n" * 500)
        ended = await run(MAILCHUTE, "serve", folder=tmp_path, settings={"MAILCHUTE_DATABASE_URL": "letters.txt"})
        assert_refused(ended, "letters.txt is not a SQLite database", "not touched")
        assert file.read_text() == "Dear Ann,\n" * 500


class TestCommands:
    async def test_a_check_of_good_settings_makes_nothing(self, tmp_path: Path) -> None:
        doubtful = {**RELAY, "SMTP_AUTH_DISABLED": "true"}
        warned = await run(MAILCHUTE, "serve", "--check", folder=tmp_path, settings=doubtful)
        assert (warned.code, "SMTP_AUTH=none" in warned.err) == (0, True)
        ended = await run(MAILCHUTE, "serve", "--check", folder=tmp_path, settings=RELAY)
        assert (ended.code, ended.err) == (0, "")
        assert "127.0.0.1:2525" in ended.out
        assert list(tmp_path.iterdir()) == []

    async def test_migrate_makes_the_file_and_names_its_schema(self, tmp_path: Path) -> None:
        for _ in range(2):
            ended = await run(MAILCHUTE, "migrate", folder=tmp_path)
            assert (ended.code, ended.out, ended.err) == (0, f"var/mailchute.db is at schema {SCHEMA}\n", "")
        assert stat.S_IMODE((tmp_path / "var" / "mailchute.db").stat().st_mode) == 0o600

    async def test_python_m_app_is_the_same_program(self) -> None:
        program = (sys.executable, "-m", "app", "serve")
        async with Service({"MAILCHUTE_DOCS": "false"}, command=program) as service:
            assert (await service.send()).json()["state"] == "sent"
            assert "docs = false" in service.text
            assert (await service.http.get("/docs")).status_code == 404

    @pytest.mark.parametrize("changed", [False, True], ids=["current", "changed"])
    async def test_openapi_check_says_whether_a_file_is_current(self, tmp_path: Path, changed: bool) -> None:
        text = (ROOT / "openapi.json").read_text("utf-8")
        (tmp_path / "openapi.json").write_text(text.replace("Send a message", "Send it") if changed else text, "utf-8")
        ended = await run(MAILCHUTE, "openapi", "--check", "openapi.json", folder=tmp_path)
        assert ended.code == int(changed)
        assert ("make openapi" in ended.err) == changed

    async def test_the_served_document_is_the_committed_file(self) -> None:
        async with Service() as service:
            served = await service.http.get("/openapi.json")
        assert served.json() == json.loads((ROOT / "openapi.json").read_text("utf-8"))


class TestSettings:
    @pytest.mark.parametrize(
        "url", ["mail.db", "sqlite:///mail.db", "sqlite+aiosqlite:///mail.db", "sqlite:///{folder}/mail.db"]
    )
    async def test_a_database_may_be_written_as_a_path_or_a_url(self, tmp_path: Path, url: str) -> None:
        settings = {"MAILCHUTE_DATABASE_URL": url.format(folder=tmp_path)}
        ended = await run(MAILCHUTE, "migrate", folder=tmp_path, settings=settings)
        assert (ended.code, ended.err) == (0, "")
        assert (tmp_path / "mail.db").is_file()

    async def test_a_console_log_leaves_the_start_up_text_alone(self) -> None:
        async with Service({"MAILCHUTE_LOG": "console"}) as service:
            assert "nothing leaves this machine" in service.text
            await service.send()
            await service.kill()
            assert not [line for line in service.errors if line.startswith("{")]
            assert "delivery.sent" in "\n".join(service.errors)

    async def test_what_kubernetes_injects_is_ignored(self, tmp_path: Path) -> None:
        injected = {
            "MAILCHUTE_SERVICE_HOST": "10.0.0.1",
            "MAILCHUTE_SERVICE_PORT": "8587",
            "MAILCHUTE_SERVICE_PORT_HTTP": "8587",
            "MAILCHUTE_PORT": "tcp://10.0.0.1:8587",
            "MAILCHUTE_PORT_8587_TCP_ADDR": "10.0.0.1",
        }
        assert (await run(MAILCHUTE, "serve", "--check", folder=tmp_path, settings=injected)).code == 0


class TestStop:
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
    async def test_with_nothing_under_way_it_ends_at_once_and_well(self, number: signal.Signals) -> None:
        async with Service() as service:
            assert (await service.send()).json()["state"] == "sent"
            async with asyncio.timeout(SHUTDOWN_SECONDS):  # the shorter grace; a busy machine needs seconds without any
                assert await service.stop(number) == 0
            assert [line for line in service.log if line["level"] not in ("info", "warning")] == []
            assert not service.operator_path.exists()
            assert service.text.count("listens on") == 1
            left = {path.name for path in service.database.parent.iterdir()}
            assert left == {"mailchute.db", "mailchute.db.lock"}, "the log was written back"

    async def test_what_was_sent_is_there_after_a_restart(self) -> None:
        async with Service() as service:
            id_ = (await service.send()).json()["id"]
            await service.stop()
            async with Service(folder=service.folder) as second:
                assert (await second.message(id_))["state"] == "sent"

    async def test_a_socket_that_a_crash_left_is_replaced(self) -> None:
        async with Service() as service:
            await service.kill()
            assert service.operator_path.exists()
            async with Service(folder=service.folder) as second:
                assert (await second.operator.get("/livez")).status_code == 200


class TestNames:
    """One file under several names has one lock, one log and one socket, or is refused."""

    @pytest.fixture
    def folder(self) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix="mailchute-") as name:  # short, for the operator socket's sake
            yield Path(name)

    @pytest.mark.parametrize(
        ("first", "second"), [("real", "link"), ("link", "real"), ("folder", "chain"), ("chain", "folder")]
    )
    async def test_a_second_process_that_comes_by_another_name_is_refused(
        self, folder: Path, first: str, second: str
    ) -> None:
        (folder / "data").mkdir()
        names = {"real": "data/m.db", "link": "link.db", "chain": "chain.db", "folder": "linked/m.db"}
        (folder / "link.db").symlink_to("data/m.db")
        (folder / "chain.db").symlink_to("link.db")
        (folder / "linked").symlink_to("data")
        async with Service({"MAILCHUTE_DATABASE_URL": names[first]}, folder=folder) as service:
            settings = {"MAILCHUTE_DATABASE_URL": names[second]}
            ended = await run(MAILCHUTE, "serve", folder=folder, settings=settings)
            assert_refused(ended, "m.db is in use by another Mailchute process")
            health = await run(MAILCHUTE, "health", folder=folder, settings=settings)
            assert (health.code, health.err) == (0, ""), "the operator's command finds it by any name"
            assert (await service.send()).json()["state"] == "sent"
            assert {"m.db", "m.db-wal", "m.db-shm", "m.db.lock"} <= {file.name for file in (folder / "data").iterdir()}
            assert {file.name for file in folder.iterdir()} == {"data", "link.db", "chain.db", "linked"}

    async def test_a_hard_link_is_refused_and_told(self, folder: Path) -> None:
        async with Service(folder=folder) as service:
            (folder / "second.db").hardlink_to(service.database)
            ended = await run(
                MAILCHUTE, "serve", folder=folder, settings={"MAILCHUTE_DATABASE_URL": str(folder / "second.db")}
            )
            assert_refused(ended, "second.db has 2 names (hard links)", "find / -xdev -samefile", "remove them")
            assert (await service.send()).json()["state"] == "sent", "the one that runs goes on"
            assert await service.stop() == 0
        assert_refused(await run(MAILCHUTE, "serve", folder=folder), "mailchute.db has 2 names (hard links)")
        (folder / "second.db").unlink()
        async with Service(folder=folder) as service:
            assert (await service.http.get("/readyz")).status_code == 200

    @pytest.mark.parametrize("target", ["link.db", "nowhere/m.db"], ids=["itself", "a folder that is missing"])
    async def test_a_link_that_leads_nowhere(self, folder: Path, target: str) -> None:
        (folder / "link.db").symlink_to(target)
        settings = {"MAILCHUTE_DATABASE_URL": "link.db"}
        ended = await run(MAILCHUTE, "migrate", folder=folder, settings=settings)
        if target == "link.db":
            assert_refused(ended, "link.db")
        else:
            assert (ended.code, (folder / "nowhere" / "m.db").is_file()) == (0, True)


class TestListen:
    @pytest.mark.parametrize(
        ("listen", "named", "here"),
        [
            pytest.param("127.0.0.1:0", None, "127.0.0.1", id="loopback"),
            pytest.param("localhost:0", None, "localhost", id="by name"),
            pytest.param("0.0.0.0:0", "0.0.0.0", "127.0.0.1", id="all of IPv4"),
            pytest.param("[::1]:0", None, "[::1]", id="loopback of IPv6"),
            pytest.param("[::]:0", "[::]", "[::1]", id="all of IPv6"),
        ],
    )
    async def test_the_start_up_text_names_what_is_listened_on_and_how_this_machine_reaches_it(
        self, listen: str, named: str | None, here: str
    ) -> None:
        if "::" in listen and not HAS_IPV6:
            pytest.skip("there is no IPv6 here")
        key = {"MAILCHUTE_API_KEY": KEY, "MAILCHUTE_SANDBOX": "true", "MAILCHUTE_LISTEN": listen}
        async with Service(key) as service:
            port = service.base.rpartition(":")[2]
            first, second = service.text.splitlines()[:2]
            assert service.base == f"http://{here}:{port}"
            if named is None:
                assert first == f"Mailchute {__version__} listens on {service.base}"
            else:
                assert first.endswith(f"listens on {named}:{port}, which is every address of this machine")
                assert second == f"From this machine: {service.base}"
            assert (await service.http.get("/livez")).status_code == 200

    @pytest.mark.skipif(not HAS_IPV6, reason="there is no IPv6 here")
    async def test_it_listens_on_ipv6(self) -> None:
        async with Service({"MAILCHUTE_LISTEN": "[::1]:0"}) as service:
            assert service.base.startswith("http://[::1]:")
            assert (await service.send()).json()["state"] == "sent"
