"""Which mechanism a session logs in by, and that nothing secret stays in a text that is kept."""

from __future__ import annotations

import hmac
from base64 import b64encode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.mail.profile import AuthMode
from app.mail.reply import printable
from app.smtp.login import Credentials, Mask, choose_mechanism, exchange_for

_OURS = ("SCRAM-SHA-256", "SCRAM-SHA-1", "CRAM-MD5", "PLAIN", "LOGIN")  # strongest first
_MODES = [mode for mode in AuthMode if mode is not AuthMode.NONE]
_OTHERS = ["XOAUTH2", "GSSAPI", "NTLM", "DIGEST-MD5", "PLAINTEXT", "SCRAM-SHA-256-PLUS", "SCRAM-SHA-512"]
_offers = st.lists(st.sampled_from([*_OURS, *_OTHERS]), max_size=8)


@pytest.mark.parametrize(
    ("mode", "offered", "under_tls", "in_clear"),
    [
        (AuthMode.AUTO, "LOGIN PLAIN CRAM-MD5 SCRAM-SHA-1 SCRAM-SHA-256", "SCRAM-SHA-256", "SCRAM-SHA-256"),
        (AuthMode.AUTO, "CRAM-MD5 SCRAM-SHA-1", "SCRAM-SHA-1", "SCRAM-SHA-1"),
        (AuthMode.AUTO, "SCRAM-SHA-256-PLUS", None, None),
        (AuthMode.AUTO, "LOGIN PLAIN CRAM-MD5", "CRAM-MD5", "CRAM-MD5"),
        (AuthMode.REQUIRED, "LOGIN PLAIN CRAM-MD5", "CRAM-MD5", "CRAM-MD5"),
        (AuthMode.AUTO, "LOGIN PLAIN", "PLAIN", None),
        (AuthMode.AUTO, "LOGIN", "LOGIN", None),
        (AuthMode.AUTO, "GSSAPI NTLM", None, None),
        (AuthMode.AUTO, "", None, None),
        (AuthMode.PLAIN, "LOGIN PLAIN CRAM-MD5", "PLAIN", None),
        (AuthMode.LOGIN, "LOGIN PLAIN CRAM-MD5", "LOGIN", None),
        (AuthMode.CRAM_MD5, "LOGIN PLAIN CRAM-MD5 SCRAM-SHA-1", "CRAM-MD5", "CRAM-MD5"),
        (AuthMode.SCRAM_SHA_1, "SCRAM-SHA-1 SCRAM-SHA-256", "SCRAM-SHA-1", "SCRAM-SHA-1"),
        (AuthMode.SCRAM_SHA_256, "SCRAM-SHA-1 SCRAM-SHA-256", "SCRAM-SHA-256", "SCRAM-SHA-256"),
        (AuthMode.SCRAM_SHA_256, "SCRAM-SHA-1 PLAIN", None, None),
        (AuthMode.PLAIN, "LOGIN CRAM-MD5", None, None),
        (AuthMode.LOGIN, "PLAIN CRAM-MD5", None, None),
        (AuthMode.CRAM_MD5, "LOGIN PLAIN", None, None),
    ],
)
def test_the_mechanism_is_the_pinned_one_or_the_strongest_in_common(
    mode: AuthMode, offered: str, under_tls: str | None, in_clear: str | None
) -> None:
    assert choose_mechanism(mode, offered.split()) == under_tls
    assert choose_mechanism(mode, offered.split(), in_clear=True) == in_clear


@given(st.sampled_from(_MODES), _offers, st.booleans())
def test_no_mechanism_is_chosen_that_is_not_offered_or_shows_the_password(
    mode: AuthMode, offered: list[str], in_clear: bool
) -> None:
    chosen = choose_mechanism(mode, offered, in_clear=in_clear)
    may = [m for m in _OURS if m in offered and (not mode.is_pinned or m == mode.value.upper())]
    if in_clear:
        may = [m for m in may if m not in ("PLAIN", "LOGIN")]
    assert chosen == (may[0] if may else None)


_secrets = st.text(st.characters(exclude_categories=["Cs"]), min_size=4, max_size=40)
_around = st.text(st.characters(codec="ascii"), max_size=20)


def _encoded(text: str) -> str:
    return b64encode(text.encode()).decode()


def _mask_of_a_login(username: str, password: str, challenge: bytes) -> tuple[Mask, list[str]]:
    """Log in by CRAM-MD5 and PLAIN; return the mask, and what must not come back."""
    mask = Mask(Credentials(username, password))
    digest = hmac.new(password.encode(), challenge, "md5").hexdigest()
    sent = [f"\0{username}\0{password}", f"{username} {digest}"]
    mask.add(digest, _encoded(sent[1]))
    return mask, [digest, *map(_encoded, sent)]


@given(_secrets, _secrets, st.binary(max_size=40), _around, _around)
def test_whatever_stands_around_a_secret_it_is_masked(
    username: str, password: str, challenge: bytes, before: str, behind: str
) -> None:
    mask, secrets = _mask_of_a_login(username, password, challenge)
    for secret in [password, printable(password.encode()), _encoded(password), *secrets]:
        assert secret not in mask(f"{before}{secret}{behind}")


@given(_secrets, _secrets, st.binary(min_size=1, max_size=40), st.data())
def test_of_a_secret_that_is_quoted_in_part_the_part_is_masked(
    username: str, password: str, challenge: bytes, data: st.DataObject
) -> None:
    mask, secrets = _mask_of_a_login(username, password, challenge)
    for secret in secrets:
        at = data.draw(st.integers(0, len(secret) - 12))
        part = secret[at : data.draw(st.integers(at + 12, len(secret)))].rstrip("=")
        if len(part) >= 12:
            assert part not in mask(f"unrecognized: {part}...")


@given(_secrets, st.data())
def test_of_a_password_that_was_cut_off_the_beginning_is_masked(password: str, data: st.DataObject) -> None:
    shown = printable(password.encode())
    if shown.endswith("*"):
        return
    part = shown[: data.draw(st.integers(4, len(shown)))]
    assert not Mask(Credentials("bot", password))(f"unrecognized: {part}").endswith(part)


@pytest.mark.parametrize(
    "text",
    [
        "SmtpClientAuthentication is disabled for the Tenant",
        "https://support.google.com/accounts/answer/185833",
        "0123456789abcdef0123456789abcdef is the number of this session",
    ],
)
def test_words_that_were_not_sent_stay(text: str) -> None:
    mask = Mask(Credentials("bot", "secret"))
    mask.add("ab" * 16, _encoded(f"bot {'ab' * 16}"))
    assert mask(text) == text


@pytest.mark.parametrize("mechanism", _OURS)
def test_there_is_an_exchange_for_every_mechanism(mechanism: str) -> None:
    exchange = exchange_for(mechanism, Credentials("bot", "secret"))
    assert (exchange.first is not None) == (mechanism not in ("CRAM-MD5", "LOGIN"))


@pytest.mark.parametrize("mechanism", _OURS)
def test_a_password_that_is_not_utf_8_goes_as_the_bytes_it_is(mechanism: str) -> None:
    credentials = Credentials("b\udcf6t", "p\udcff")  # as the environment hands on what it cannot decode
    exchange = exchange_for(mechanism, credentials)
    answers = [exchange.answer(challenge) for challenge in ("", "") if mechanism == "LOGIN"]
    if mechanism == "CRAM-MD5":
        answers.append(exchange.answer("PDE+"))
    sent = b"".join([exchange.first or b"", *answers])
    assert b"b\xf6t" in sent
    assert (b"p\xff" in sent) == (mechanism in ("PLAIN", "LOGIN"))
    assert Mask(credentials)("p\\xff is wrong") == "*** is wrong"


def test_every_login_by_scram_has_a_nonce_of_its_own() -> None:
    nonces = {exchange_for("SCRAM-SHA-1", Credentials("bot", "secret")).first for _ in range(100)}
    assert len(nonces) == 100
    assert all(nonce is not None and nonce.count(b",") == 3 and nonce.isascii() for nonce in nonces)


@given(_secrets)
def test_no_password_is_in_the_repr_of_credentials(password: str) -> None:
    assert repr(Credentials("bot", "x" + password)) == repr(Credentials("bot", "y"))
