"""SCRAM as a client, held by the examples of its RFCs and by the relay's side in tests/support/scram.py."""

from __future__ import annotations

from base64 import b64decode, b64encode
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.mail.codes import Reason
from app.smtp.mechanisms import BrokenOff
from app.smtp.scram import MOST_ITERATIONS, Scram, saslprep
from tests.support.scram import HASHES, ScramServer


def encoded(text: str) -> str:
    return b64encode(text.encode()).decode()


@pytest.mark.parametrize(
    ("hash_name", "nonce", "server_first", "client_final", "server_final"),
    [
        pytest.param(
            "sha1",
            "fyko+d2lbbFgONRv9qkxdawL",
            "r=fyko+d2lbbFgONRv9qkxdawL3rfcNHYJY1ZVvWVs7j,s=QSXCR+Q6sek8bf92,i=4096",
            "c=biws,r=fyko+d2lbbFgONRv9qkxdawL3rfcNHYJY1ZVvWVs7j,p=v0X8v3Bz2T0CJGbJQyF0X+HI4Ts=",
            "v=rmF9pqV8S7suAoZWja4dJRkFsKQ=",
            id="rfc-5802-5",
        ),
        pytest.param(
            "sha256",
            "rOprNGfwEbeRWgbNEkqO",
            "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096",
            "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,"
            "p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=",
            "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=",
            id="rfc-7677-3",
        ),
    ],
)
def test_an_exchange_goes_as_the_rfcs_example(
    hash_name: str, nonce: str, server_first: str, client_final: str, server_final: str
) -> None:
    exchange = Scram("user", "pencil", hash_name=hash_name, nonce=nonce)
    assert exchange.first == f"n,,n=user,r={nonce}".encode()
    assert exchange.answer(encoded(server_first)) == client_final.encode()
    with pytest.raises(BrokenOff) as broken:
        exchange.accepted()
    assert broken.value.reason is Reason.AUTH_SERVER_UNVERIFIED
    assert exchange.answer(encoded(server_final)) == b""
    exchange.accepted()
    proof, signature = client_final.rpartition("p=")[2], server_final.removeprefix("v=")
    assert {proof, signature} <= set(exchange.secrets)


_texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)


@settings(deadline=None, max_examples=50)
@given(_texts, _texts, st.sampled_from(sorted(HASHES)), st.binary(min_size=1, max_size=40))
def test_any_user_name_and_password_prove_each_other(username: str, password: str, mechanism: str, salt: bytes) -> None:
    server = ScramServer(salt=salt, iterations="7")
    users = {saslprep(username): saslprep(password)}
    exchange = Scram(username, password, hash_name=HASHES[mechanism], nonce="abc")
    said = [exchange.first or b""]
    while (challenge := server.say(mechanism, users, said)) is not None:
        said.append(exchange.answer(b64encode(challenge).decode()))
    exchange.accepted()


@pytest.mark.parametrize(
    ("text", "prepared"),
    [
        ("I\u00adX", "IX"),  # the examples of RFC 4013 §3
        ("user", "user"),
        ("USER", "USER"),
        ("\u00aa", "a"),
        ("\u2168", "IX"),
        ("\u0007", "\u0007"),  # prohibited there, as is the next one: the relay decides
        ("\u0627\u0031", "\u0627\u0031"),
        ("a\u00a0b", "a b"),
        ("\u00adx", "x"),
        ("\u00ad", "\u00ad"),  # nothing would be left
        ("pässwörd€", "pässwörd€"),
        ("p\u0061\u0308ss", "päss"),
        ("\u05d0a", "\u05d0a"),
        ("\u05d0\u05d1", "\u05d0\u05d1"),
        ("a\ue000", "a\ue000"),
    ],
)
def test_names_and_passwords_are_prepared_where_that_is_allowed(text: str, prepared: str) -> None:
    assert saslprep(text) == prepared


@given(st.text(max_size=60))
def test_a_challenge_of_any_kind_ends_in_an_answer_or_is_refused(text: str) -> None:
    for challenge in (text, b64encode(text.encode("utf-8", "replace")).decode()):
        exchange = Scram("user", "pencil", hash_name="sha1", nonce="abc")
        with suppress(BrokenOff):
            assert exchange.answer(challenge) == b""  # the relay's error, acknowledged


def test_as_many_iterations_as_are_allowed_are_computed() -> None:
    exchange = Scram("user", "pencil", hash_name="sha256", nonce="abc")
    assert exchange.answer(encoded(f"r=abcd,s=eA==,i={MOST_ITERATIONS}")).startswith(b"c=biws,r=abcd,p=")


@pytest.mark.parametrize("iterations", [str(MOST_ITERATIONS + 1), str(2**32), "9" * 3000])
def test_more_iterations_than_are_allowed_are_not_computed(iterations: str) -> None:
    exchange = Scram("user", "pencil", hash_name="sha1", nonce="abc")
    with pytest.raises(BrokenOff, match=f"{MOST_ITERATIONS} at most") as broken:
        exchange.answer(encoded(f"r=abcd,s=eA==,i={iterations}"))
    assert broken.value.reason is Reason.AUTH_MECHANISM_UNSUPPORTED


def test_the_signature_of_another_password_is_not_believed() -> None:
    exchange = Scram("user", "pencil", hash_name="sha1", nonce="abc")
    exchange.answer(encoded("r=abcd,s=eA==,i=1"))
    with pytest.raises(BrokenOff) as broken:
        exchange.answer(encoded(f"v={b64encode(bytes(20)).decode()}"))
    assert broken.value.reason is Reason.AUTH_SERVER_UNVERIFIED
    assert b64decode(exchange.secrets[0])
