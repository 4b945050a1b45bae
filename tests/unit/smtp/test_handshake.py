"""What is read from a handshake's messages, whole and cut off."""

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from app.smtp.handshake import authorities_in, certificates_in, name_in
from tests.support.tls import certificates

TLS_1_0, TLS_1_2, TLS_1_3 = 0x0301, 0x0303, 0x0304
CORP = x509.Name(
    [
        x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, "Corp"),
        x509.NameAttribute(x509.NameOID.COMMON_NAME, "Corp Root CA – ü"),
    ]
)
OLD = x509.Name([x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, "Old Org " + "x" * 50)])


def vector(size: int, data: bytes) -> bytes:
    return len(data).to_bytes(size, "big") + data


def message(kind: int, body: bytes) -> bytes:
    return bytes([kind]) + vector(3, body)


NAMES = vector(2, b"".join(vector(2, name.public_bytes()) for name in (CORP, OLD)))
REQUESTS = {
    TLS_1_0: message(13, vector(1, b"\x01\x40") + NAMES),
    TLS_1_2: message(13, vector(1, b"\x01\x40") + vector(2, b"\x04\x03") + NAMES),
    TLS_1_3: message(
        13, vector(1, b"") + vector(2, b"\x00\x0d" + vector(2, b"\x00\x02\x04\x03") + b"\x00\x2f" + vector(2, NAMES))
    ),
}


@pytest.mark.parametrize("version", REQUESTS)
def test_the_authorities_are_named_in_every_version(version: int) -> None:
    assert list(authorities_in(REQUESTS[version], version)) == ["Corp Root CA – ü", "Old Org " + "x" * 50]


def test_a_request_of_tls_1_3_need_not_name_any() -> None:
    body = vector(1, b"") + vector(2, b"\x00\x0d" + vector(2, b"\x00\x02\x04\x03"))
    assert list(authorities_in(message(13, body), TLS_1_3)) == []


@pytest.mark.parametrize("version", [TLS_1_2, TLS_1_3])
def test_the_chain_is_read_in_order(version: int) -> None:
    chain = [
        certificate.public_bytes(Encoding.DER)
        for certificate in x509.load_pem_x509_certificates(certificates().whole_chain_file.read_bytes())
    ]
    extensions = vector(2, b"") if version == TLS_1_3 else b""
    listed = vector(3, b"".join(vector(3, certificate) + extensions for certificate in chain))
    body = (vector(1, b"") if version == TLS_1_3 else b"") + listed
    assert list(certificates_in(message(11, body), version)) == chain


@pytest.mark.parametrize("version", REQUESTS)
@given(st.data())
def test_what_is_cut_off_or_garbage_is_refused_and_nothing_worse(version: int, data: st.DataObject) -> None:
    whole = REQUESTS[version]
    cut = data.draw(st.one_of(st.binary(max_size=80), st.integers(0, len(whole) - 1).map(lambda end: whole[:end])))
    for read in (authorities_in, certificates_in):
        try:
            list(read(cut, version))
        except (IndexError, ValueError):
            continue
    try:
        assert name_in(cut).isprintable()
    except (IndexError, ValueError):
        return
