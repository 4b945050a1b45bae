"""Files that settings name are looked at for every new connection: renewed ones count, unreadable ones are told."""

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trustme

from app.mail.profile import Dialect, TlsMode
from tests.support.factories import Deliveries, Settings, Tried, attempt, make_profile, on_both_loops
from tests.support.relay import Relay
from tests.support.tls import ServerContext, certificates

STARTTLS, IMPLICIT = TlsMode.STARTTLS, TlsMode.IMPLICIT
BOTH = pytest.mark.parametrize("mode", [STARTTLS, IMPLICIT])
LOGGING_IN: Settings = {"username": "bot", "password": "secret"}


def over_tls(mode: TlsMode, tls: ServerContext) -> Relay:
    return Relay(tls=tls, implicit=mode is IMPLICIT, auth=("PLAIN",))


# --- certificates ----------------------------------------------------------------------------------------


@BOTH
@on_both_loops
async def test_a_renewed_ca_file_counts_from_the_next_connection_on(mode: TlsMode, tmp_path: Path) -> None:
    ca_file, (old, new) = tmp_path / "ca.pem", (trustme.CA(), trustme.CA())
    tls = ServerContext.showing(new.issue_cert("localhost").private_key_and_cert_chain_pem.bytes())
    async with over_tls(mode, tls) as relay, Deliveries() as deliveries:
        profile = make_profile(port=relay.port, tls=mode, ca_file=ca_file, idle_timeout=0)
        for authority, says in [(old, "ETLS/tls_cert_untrusted C"), (new, "sent"), (old, "ETLS/tls_cert_untrusted C")]:
            authority.cert_pem.write_to_path(str(ca_file))
            assert (await deliveries.send(profile)).in_words == says


@pytest.mark.parametrize("in_two_files", [False, True], ids=["in-one-file", "in-two-files"])
@pytest.mark.parametrize("demanding", [certificates().tls12_demanding, certificates().tls13_demanding])
@BOTH
@on_both_loops
async def test_a_renewed_client_certificate_counts_from_the_next_connection_on(
    mode: TlsMode, in_two_files: bool, demanding: Callable[[], ServerContext], tmp_path: Path
) -> None:
    def write(certificate: Path, key: Path) -> None:
        (tmp_path / "client.pem").write_bytes(certificate.read_bytes())
        (tmp_path / "client.key").write_bytes(key.read_bytes())

    said: dict[str, Any] = {"tls": mode, "client_cert": tmp_path / "client.pem", "idle_timeout": 0}
    if in_two_files:
        said["client_key"] = tmp_path / "client.key"
    known = certificates()
    async with over_tls(mode, demanding()) as relay, Deliveries() as deliveries:
        profile = make_profile(port=relay.port, **said)
        write(known.stranger_file, known.stranger_file)
        assert (await deliveries.send(profile)).in_words == "ETLS/tls_client_cert_required C"
        write(known.client_cert_file if in_two_files else known.client_file, known.client_key_file)
        assert (await deliveries.send(profile)).in_words == "sent"
        write(known.stranger_file, known.stranger_file)
        assert (await deliveries.send(profile)).in_words == "ETLS/tls_client_cert_required C"
        assert len(relay.mails) == 1


@BOTH
@on_both_loops
async def test_a_warm_connection_outlives_the_files_that_opened_it(mode: TlsMode, tmp_path: Path) -> None:
    ca_file = tmp_path / "ca.pem"
    ca_file.write_bytes(certificates().ca_file.read_bytes())
    async with over_tls(mode, certificates().server()) as relay, Deliveries() as deliveries:
        profile = make_profile(port=relay.port, tls=mode, ca_file=ca_file)
        assert (await deliveries.send(profile)).in_words == "sent"
        ca_file.unlink()
        assert (await deliveries.send(profile)).in_words == "sent"
        assert relay.connections == 1


# --- what cannot be read any more ------------------------------------------------------------------------


def gone(file: Path) -> None:
    file.unlink()


def a_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def empty(file: Path) -> None:
    file.write_bytes(b"\n")


def not_text(file: Path) -> None:
    file.write_bytes(b"\xff\xfe\x00secret")


Ruin = Callable[[Path], None]
RUINED = pytest.mark.parametrize("ruin", [gone, a_folder, empty, not_text])


FILES = {"ca_file": "ca_file", "client_cert": "client_cert_file", "client_key": "client_key_file"}


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Any]:
    """The files of a profile that shows a certificate of its own, by their settings."""
    for setting, known in FILES.items():
        (tmp_path / setting).write_bytes(getattr(certificates(), known).read_bytes())
    return {setting: tmp_path / setting for setting in FILES}


@RUINED
@pytest.mark.parametrize("setting", FILES)
@BOTH
@on_both_loops
async def test_a_certificates_file_that_cannot_be_read_any_more_is_named_and_nothing_sent(
    mode: TlsMode, setting: str, ruin: Ruin, files: dict[str, Any]
) -> None:
    async with over_tls(mode, certificates().server()) as relay, Deliveries() as deliveries:
        said: dict[str, Any] = {"port": relay.port, "tls": mode, "idle_timeout": 0, **LOGGING_IN}
        profile = make_profile(**said, **files)
        assert (await deliveries.send(profile)).in_words == "sent"
        ruin(files[setting])
        tried = await deliveries.send(profile)
        assert_named(tried, setting, files[setting])
        await relay.closed(2)
        assert [line for _, who, line in tried.attempt.transcript if who == "C"] == relay.sessions[1].commands
        assert relay.sessions[1].commands == ([] if mode is IMPLICIT else ["EHLO client.test"])


@RUINED
@on_both_loops
async def test_a_client_certificate_with_its_key_in_it_that_cannot_be_read_any_more_is_named(
    ruin: Ruin, tmp_path: Path
) -> None:
    file = tmp_path / "client.pem"
    file.write_bytes(certificates().client_file.read_bytes())
    async with over_tls(STARTTLS, certificates().tls13_demanding()) as relay, Deliveries() as deliveries:
        profile = make_profile(port=relay.port, tls=STARTTLS, client_cert=file, idle_timeout=0)
        assert (await deliveries.send(profile)).in_words == "sent"
        ruin(file)
        assert_named(await deliveries.send(profile), "client_cert", file)


@BOTH
@on_both_loops
async def test_a_key_that_does_not_fit_any_more_is_named(mode: TlsMode, files: dict[str, Any]) -> None:
    async with over_tls(mode, certificates().tls13_demanding()) as relay, Deliveries() as deliveries:
        profile = make_profile(port=relay.port, tls=mode, idle_timeout=0, **files)
        assert (await deliveries.send(profile)).in_words == "sent"
        files["client_key"].write_bytes(trustme.CA().issue_cert("client.test").private_key_pem.bytes())
        assert_named(await deliveries.send(profile), "client_key", files["client_key"])


@RUINED
@pytest.mark.parametrize("dialect", Dialect)
@on_both_loops
async def test_a_password_file_that_cannot_be_read_any_more_is_named_and_no_login_tried(
    dialect: Dialect, ruin: Ruin, tmp_path: Path
) -> None:
    file = tmp_path / "password"
    file.write_text("secret\n")
    async with Relay(auth=("PLAIN", "CRAM-MD5")) as relay, Deliveries() as deliveries:
        said: dict[str, Any] = {"dialect": dialect, "password_file": file, "idle_timeout": 0, **LOGGING_IN}
        profile = make_profile(port=relay.port, **said)
        assert (await deliveries.send(profile)).in_words == "sent"
        ruin(file)
        tried = await deliveries.send(profile)
        assert_named(tried, profile.setting("password_file"), file)
        assert tried.attempt.auth is None
        await relay.closed(2)
        assert relay.sessions[1].commands == ["EHLO client.test"]
        file.rmdir() if file.is_dir() else file.unlink(missing_ok=True)
        file.write_text("secret\n")
        assert (await deliveries.send(profile)).in_words == "sent"


def assert_named(tried: Tried, setting: str, file: Path) -> None:
    assert tried.in_words == "ECONFIG/file_unreadable C"
    failure = tried.attempt.failure
    assert failure is not None
    assert setting in failure.hint
    assert failure.message.startswith(f"{setting}: {file} cannot be used: ")
    assert failure.message.isprintable()
    assert "secret" not in failure.message.replace(str(file), "")


# --- passwords -------------------------------------------------------------------------------------------


def logins(relay: Relay) -> list[bytes]:
    """Give the passwords of all logins by PLAIN, in order."""
    lines = [command for command in relay.commands if command.startswith("AUTH PLAIN ")]
    return [base64.b64decode(line.rpartition(" ")[2]).rpartition(b"\0")[2] for line in lines]


@on_both_loops
async def test_a_rotated_password_is_used_by_the_next_new_connection_and_leaves_the_warm_one_alone(
    tmp_path: Path,
) -> None:
    file = tmp_path / "password"
    file.write_text("first\n")
    async with Relay(auth=("PLAIN",), users={"bot": "first"}, auth_required=True) as relay, Deliveries() as deliveries:
        profile = make_profile(
            port=relay.port,
            username="bot",
            password="first",
            password_file=file,
            max_connections=1,
            max_messages_per_connection=2,
        )
        assert (await deliveries.send(profile)).in_words == "sent"
        relay.users = {"bot": "second"}
        file.write_text("second\n")
        seen = [await deliveries.send(profile) for _ in range(3)]
        assert [tried.in_words for tried in seen] == ["sent"] * 3
        assert [len(session.mails) for session in relay.sessions] == [2, 2]
        assert logins(relay) == [b"first", b"second"]
        said = repr([tried.attempt.transcript for tried in seen])
        assert [secret for secret in ("second", base64.b64encode(b"\0bot\0second").decode()) if secret in said] == []


@on_both_loops
async def test_a_rotated_password_that_is_wrong_is_one_failed_login(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("wrong")
    async with Relay(auth=("PLAIN",)) as relay:
        tried = await attempt(relay, username="bot", password="secret", password_file=file)
        assert tried.in_words == "EAUTH/auth_rejected C"
        assert logins(relay) == [b"wrong"]


@on_both_loops
async def test_a_password_file_with_an_invisible_character_is_named_and_no_login_tried(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_bytes(b"\xef\xbb\xbfsecret\n")  # as Notepad saves it
    async with Relay(auth=("PLAIN",)) as relay:
        tried = await attempt(relay, username="bot", password="secret", password_file=file)
        assert_named(tried, "password_file", file)
        assert tried.attempt.failure is not None
        assert "U+FEFF ZERO WIDTH NO-BREAK SPACE" in tried.attempt.failure.message
        assert logins(relay) == []


@pytest.mark.parametrize(
    ("written", "password"),
    [
        (b"secret", b"secret"),
        (b"secret\n", b"secret"),
        (b"secret\r\n", b"secret"),
        (b" two words \n", b" two words "),
        ("pässwörd 𝄞\n".encode(), "pässwörd 𝄞".encode()),
    ],
)
async def test_a_rotated_password_is_what_its_file_says_without_the_line_break(
    written: bytes, password: bytes, tmp_path: Path
) -> None:
    file = tmp_path / "password"
    file.write_bytes(written)
    async with Relay(auth=("PLAIN",), users={"bot": password.decode()}, auth_required=True) as relay:
        tried = await attempt(relay, password_file=file, username="bot", password="of long ago")
        assert tried.in_words == "sent"
        assert logins(relay) == [password]
