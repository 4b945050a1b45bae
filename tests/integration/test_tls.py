"""TLS over real sockets: what an attempt says of it, whom an internal authority vouches for, addresses of IPv6."""

import datetime
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from app.mail.attempt import Attempt
from app.mail.profile import TlsMode
from app.smtp.network import SocketAddress
from app.smtp.tls import MOST_NAMES
from tests.support.factories import Deliveries, Settings, address_of, attempt, make_profile, on_both_loops, refused_port
from tests.support.relay import Close, Relay
from tests.support.tls import FAR_AWAY, LOCAL, LONG_AGO, ServerContext, certificates

NONE, OPPORTUNISTIC, STARTTLS, IMPLICIT = TlsMode
BOTH = pytest.mark.parametrize("mode", [STARTTLS, IMPLICIT])


def facts(seen: Attempt) -> dict[str, Any]:
    names = ("tls", "tls_version", "tls_verified", "tls_names", "tls_not_after", "tls_sha256", "tls_error")
    return {name: getattr(seen, name) for name in names}


NOTHING = {
    "tls": False,
    "tls_version": None,
    "tls_verified": False,
    "tls_names": (),
    "tls_not_after": None,
    "tls_sha256": None,
}

# --- what an attempt says of TLS -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "verified", "more"),
    [
        pytest.param(OPPORTUNISTIC, False, Settings(), id="opportunistic"),
        pytest.param(STARTTLS, False, Settings(verify=False), id="starttls-unverified"),
        pytest.param(IMPLICIT, False, Settings(verify=False), id="implicit-unverified"),
        pytest.param(STARTTLS, True, Settings(server_name="a.test"), id="starttls-verified"),
        pytest.param(IMPLICIT, True, Settings(server_name="a.test"), id="implicit-verified"),
    ],
)
@pytest.mark.parametrize(("version", "suite"), [("TLSv1.2", "ECDHE-"), ("TLSv1.3", "TLS_")])
@on_both_loops
async def test_every_attempt_on_a_connection_says_what_its_tls_came_to(
    mode: TlsMode, verified: bool, more: Settings, version: str, suite: str
) -> None:
    tls = certificates().server("a.test", "*.b.test", "192.0.2.1", until=FAR_AWAY)
    tls.maximum_version = ssl.TLSVersion.TLSv1_2 if version == "TLSv1.2" else ssl.TLSVersion.TLSv1_3
    async with Relay(tls=tls, implicit=mode is IMPLICIT) as relay, Deliveries() as deliveries:
        said: Settings = {"port": relay.port, "tls": mode, **more}
        profile = make_profile(**said)
        for _ in range(2):  # the second is over the warm connection
            tried = await deliveries.send(profile)
            assert tried.in_words == "sent"
            assert facts(tried.attempt) == {
                "tls": True,
                "tls_version": version,
                "tls_verified": verified,
                "tls_names": ("a.test", "*.b.test", "192.0.2.1"),
                "tls_not_after": "2099-01-01",
                "tls_sha256": tls.sha256,
                "tls_error": None,
            }
            assert (tried.attempt.tls_cipher or "").startswith(suite)
        assert relay.connections == 1


@on_both_loops
async def test_the_facts_of_a_bad_certificate_are_those_of_that_certificate() -> None:
    tls = certificates().expired("gone.test")
    async with Relay(tls=tls) as relay:
        seen = (await attempt(relay, tls=OPPORTUNISTIC)).attempt
    assert (seen.tls_names, seen.tls_not_after, seen.tls_sha256) == (("gone.test",), "2024-01-31", tls.sha256)
    assert not seen.tls_verified


@pytest.mark.parametrize("mode", [NONE, OPPORTUNISTIC])
@on_both_loops
async def test_an_attempt_in_clear_knows_no_certificate(mode: TlsMode) -> None:
    async with Relay() as relay:
        seen = (await attempt(relay, tls=mode)).attempt
    assert facts(seen) == NOTHING | {"tls_error": None}
    assert seen.tls_cipher is None


@on_both_loops
async def test_what_went_on_in_clear_has_no_facts_but_the_error() -> None:
    async with Relay(tls=certificates().server()) as relay:
        relay.on("STARTTLS", ("220 go", Close()))
        tried = await attempt(relay, tls=OPPORTUNISTIC)
    assert tried.in_words == "sent"
    assert tried.attempt.tls_error
    assert facts(tried.attempt) == NOTHING | {"tls_error": tried.attempt.tls_error}


@on_both_loops
async def test_of_many_names_some_are_kept() -> None:
    names = [f"host{number}.test" for number in range(100)]
    async with Relay(tls=certificates().server(*names)) as relay:
        seen = (await attempt(relay, tls=OPPORTUNISTIC)).attempt
    assert seen.tls_names == tuple(names[:MOST_NAMES])


@on_both_loops
async def test_a_certificate_without_alternative_names_is_for_its_common_name() -> None:
    pem, _ = signed_plainly(alternatives=False)
    async with Relay(tls=ServerContext.showing(pem)) as relay:
        seen = (await attempt(relay, tls=OPPORTUNISTIC)).attempt
    assert seen.tls_names == ("relay.corp.test",)


@BOTH
@on_both_loops
async def test_a_refused_certificate_is_read_from_the_handshake_that_refused_it(mode: TlsMode) -> None:
    tls = certificates().untrusted()

    async def resolve(_host: str, _port: int) -> list[SocketAddress]:
        return [address_of(refused_port(), "::1"), address_of(relay.port)]

    async with Relay(tls=tls, implicit=mode is IMPLICIT) as relay:
        tried = await attempt(relay, tls=mode, resolve=resolve)
        assert tried.in_words == "ETLS/tls_cert_untrusted C"
        assert tried.attempt.failure is not None
        assert tls.sha256 in tried.attempt.failure.hint
        assert relay.connections == 1


# --- certificates that are none --------------------------------------------------------------------------

WHOLE, NO_NAMES = (("localhost",), "2099-01-01"), ((), "2099-01-01")
# Bytes of a good certificate, what stands there instead, and what of its names and date can still be read.
ODD: Mapping[str, tuple[bytes, bytes, tuple[tuple[str, ...], str | None]]] = {
    "of-a-version-that-there-is-not": (b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x07", ((), None)),
    "of-version-2": (b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x01", ((), None)),
    "whose-issuer-is-in-latin-1": (b"\x0c\x07Mueller", b"\x14\x07M\xfcller ", WHOLE),
    "with-an-extension-twice": (bytes.fromhex("06042a030402"), bytes.fromhex("06042a030401"), NO_NAMES),
    "for-an-x400-address": (b"\x82\x09localhost", b"\xa3\x09localhost", NO_NAMES),
    "for-an-address-of-nine-bytes": (b"\x82\x09localhost", b"\x87\x09localhost", NO_NAMES),
    "that-ends-in-a-thirteenth-month": (b"990101000000Z", b"991301000000Z", ((), None)),
}


def odd(good: bytes, instead: bytes) -> ServerContext:
    """Show a certificate, signed by itself, with other bytes in one place; OpenSSL takes it as it is."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, "Mueller")])
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(LONG_AGO).not_valid_after(FAR_AWAY)
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
    for number in "12":
        twin = x509.UnrecognizedExtension(x509.ObjectIdentifier(f"1.2.3.4.{number}"), b"\x05\x00")
        builder = builder.add_extension(twin, critical=False)
    der = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)
    assert good in der
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return ServerContext.showing(private + ssl.DER_cert_to_PEM_cert(der.replace(good, instead, 1)).encode())


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("way", ["opportunistic", "unverified", "pinned"])
@on_both_loops
async def test_an_odd_certificate_hinders_nobody_who_does_not_ask_for_a_good_one(way: str, kind: str) -> None:
    good, instead, (names, not_after) = ODD[kind]
    tls = odd(good, instead)
    said: Mapping[str, Settings] = {
        "opportunistic": Settings(tls=OPPORTUNISTIC),
        "unverified": Settings(tls=STARTTLS, verify=False),
        "pinned": Settings(tls=STARTTLS, cert_sha256=tls.sha256),
    }
    async with Relay(tls=tls) as relay:
        tried = await attempt(relay, **said[way])
    assert tried.in_words == "sent"
    seen = tried.attempt
    assert (seen.tls, seen.tls_verified, seen.tls_sha256) == (True, way == "pinned", tls.sha256)
    assert (seen.tls_names, seen.tls_not_after) == (names, not_after)


@pytest.mark.parametrize("kind", ODD)
@BOTH
@on_both_loops
async def test_an_odd_certificate_is_refused_where_a_good_one_is_asked_for(mode: TlsMode, kind: str) -> None:
    good, instead, _ = ODD[kind]
    tls = odd(good, instead)
    async with Relay(tls=tls, implicit=mode is IMPLICIT) as relay:
        tried = await attempt(relay, tls=mode)
        assert tried.in_words.startswith("ETLS/tls_cert_")
        assert tried.attempt.failure is not None
        assert tls.sha256 in tried.attempt.failure.hint
        assert relay.mails == []


# --- an internal authority, and interpreters that differ -------------------------------------------------


def signed_plainly(*, alternatives: bool = True) -> tuple[bytes, bytes]:
    """Make a server's key and certificate, and that of an authority which knows nothing of RFC 5280 §4.2.1.1–3."""
    now = datetime.datetime.now(datetime.UTC)

    def certificate(name: str, key: ec.EllipticCurvePrivateKey, *more: x509.ExtensionType) -> x509.Certificate:
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        issuer = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "Corp CA")])
        builder = x509.CertificateBuilder(issuer, subject, key.public_key(), x509.random_serial_number())
        builder = builder.not_valid_before(LONG_AGO).not_valid_after(now + datetime.timedelta(days=1))
        for extension in more:
            builder = builder.add_extension(extension, critical=False)
        return builder.sign(authority, hashes.SHA256())

    authority, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    pem = serialization.Encoding.PEM
    names = [x509.SubjectAlternativeName([x509.DNSName("localhost")])] if alternatives else []
    return (
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + certificate("relay.corp.test", key, *names).public_bytes(pem),
        certificate("Corp CA", authority, x509.BasicConstraints(ca=True, path_length=None)).public_bytes(pem),
    )


@pytest.mark.parametrize("strict", [False, True], ids=["this-python", "python-3.13"])
@BOTH
@on_both_loops
async def test_an_internal_authority_need_not_be_all_that_rfc_5280_wants(
    mode: TlsMode, strict: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pem, authority = signed_plainly()
    (tmp_path / "ca.pem").write_bytes(authority)
    relay = Relay(tls=ServerContext.showing(pem), implicit=mode is IMPLICIT)
    if strict:
        by_default = ssl.create_default_context

        def strict_by_default(*args: Any, **said: Any) -> ssl.SSLContext:
            context = by_default(*args, **said)
            context.verify_flags |= ssl.VERIFY_X509_STRICT
            return context

        monkeypatch.setattr(ssl, "create_default_context", strict_by_default)
        assert not trusts(ssl.create_default_context(cafile=tmp_path / "ca.pem"), relay)
    async with relay:
        tried = await attempt(relay, tls=mode, ca_file=tmp_path / "ca.pem")
    assert tried.in_words == "sent"
    assert tried.attempt.tls_verified


def trusts(context: ssl.SSLContext, relay: Relay) -> bool:
    """Whether a client of this context would take the relay's certificate for localhost's."""
    assert relay.tls is not None
    (from_client, from_server) = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(from_server, from_client, server_hostname="localhost")
    server = relay.tls.wrap_bio(from_client, from_server, server_side=True)
    for side in (client, server, client):
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            continue
        except ssl.SSLCertVerificationError:
            return False
    return True


@BOTH
@on_both_loops
async def test_an_interpreter_that_asks_for_no_version_gets_1_2_all_the_same(
    mode: TlsMode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Debian's leaves the version to OpenSSL's settings, and takes a stream that was cut for one that ended."""
    by_default = ssl.create_default_context

    def lenient_by_default(*args: Any, **said: Any) -> ssl.SSLContext:
        context = by_default(*args, **said)
        context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
        context.options |= getattr(ssl, "OP_IGNORE_UNEXPECTED_EOF", 0)
        context.set_ciphers("DEFAULT:@SECLEVEL=0")
        return context

    monkeypatch.setattr(ssl, "create_default_context", lenient_by_default)
    ca_file = tmp_path / "ca.pem"  # a file of its own, for which no context is kept
    ca_file.write_bytes(certificates().ca_file.read_bytes())
    async with Relay(tls=certificates().tls10_only(), implicit=mode is IMPLICIT) as relay:
        tried = await attempt(relay, tls=mode, ca_file=ca_file)
        assert tried.in_words == "ETLS/tls_version_unsupported C"


# --- IPv6 ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["::1", "localhost"])
@BOTH
@on_both_loops
async def test_a_relay_on_ipv6_is_verified_by_its_address_or_its_name(mode: TlsMode, host: str) -> None:
    async with Relay(host="::1", tls=certificates().server(), implicit=mode is IMPLICIT, auth=("PLAIN",)) as relay:
        said: Settings = {"tls": mode, "host": host, "username": "bot", "password": "secret"}
        tried = await attempt(relay, **said)
        assert tried.in_words == "sent"
        assert (tried.attempt.ip, tried.attempt.tls_verified) == ("::1", True)
        assert relay.tls is not None
        assert relay.tls.asked_for == ["localhost" if host == "localhost" else None]


@BOTH
@on_both_loops
async def test_a_certificate_for_another_address_is_refused_on_ipv6(mode: TlsMode) -> None:
    others = [name for name in LOCAL if name != "::1"]
    async with Relay(host="::1", tls=certificates().server(*others), implicit=mode is IMPLICIT) as relay:
        tried = await attempt(relay, tls=mode, host="::1")
        assert tried.in_words == "ETLS/tls_hostname_mismatch C"
        assert relay.mails == []
