"""Which mechanism a session logs in by, and that nothing secret stays in a text that is kept."""

from __future__ import annotations

import hmac
from base64 import b64encode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.mail.profile import AuthMode
from app.smtp.login import Credentials, choose_mechanism

_OURS = ("CRAM-MD5", "PLAIN", "LOGIN")  # strongest first
_MODES = [mode for mode in AuthMode if mode is not AuthMode.NONE]
_offers = st.lists(st.sampled_from([*_OURS, "XOAUTH2", "GSSAPI", "NTLM", "DIGEST-MD5", "PLAINTEXT"]), max_size=8)


@pytest.mark.parametrize(
    ("mode", "offered", "under_tls", "in_clear"),
    [
        (AuthMode.AUTO, "LOGIN PLAIN CRAM-MD5", "CRAM-MD5", "CRAM-MD5"),
        (AuthMode.REQUIRED, "LOGIN PLAIN CRAM-MD5", "CRAM-MD5", "CRAM-MD5"),
        (AuthMode.AUTO, "LOGIN PLAIN", "PLAIN", None),
        (AuthMode.AUTO, "LOGIN", "LOGIN", None),
        (AuthMode.AUTO, "GSSAPI NTLM", None, None),
        (AuthMode.AUTO, "", None, None),
        (AuthMode.PLAIN, "LOGIN PLAIN CRAM-MD5", "PLAIN", None),
        (AuthMode.LOGIN, "LOGIN PLAIN CRAM-MD5", "LOGIN", None),
        (AuthMode.CRAM_MD5, "LOGIN PLAIN CRAM-MD5", "CRAM-MD5", "CRAM-MD5"),
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
        may = [m for m in may if m == "CRAM-MD5"]
    assert chosen == (may[0] if may else None)


_secrets = st.text(st.characters(exclude_categories=["Cs"]), min_size=4, max_size=40)
_around = st.text(st.characters(codec="ascii"), max_size=20)


@given(_secrets, _secrets, st.binary(max_size=40), _around, _around)
def test_whatever_stands_around_a_secret_it_is_masked(
    username: str, password: str, challenge: bytes, before: str, behind: str
) -> None:
    digest = hmac.new(password.encode(), challenge, "md5").hexdigest()
    sent = [password, f"\0{username}\0{password}", f"{username} {digest}"]
    for secret in [password, digest, *(b64encode(text.encode()).decode() for text in sent)]:
        assert secret not in Credentials(username, password, digest).mask(f"{before}{secret}{behind}")


@given(_secrets, _secrets, st.binary(min_size=1, max_size=40), st.data())
def test_of_a_secret_that_is_quoted_in_part_the_part_is_masked(
    username: str, password: str, challenge: bytes, data: st.DataObject
) -> None:
    digest = hmac.new(password.encode(), challenge, "md5").hexdigest()
    sent = [f"\0{username}\0{password}", f"{username} {digest}"]
    for secret in [digest, *(b64encode(text.encode()).decode() for text in sent)]:
        at = data.draw(st.integers(0, len(secret) - 12))
        part = secret[at : data.draw(st.integers(at + 12, len(secret)))].rstrip("=")
        if len(part) >= 12:
            assert part not in Credentials(username, password, digest).mask(f"unrecognized: {part}...")


@pytest.mark.parametrize(
    "text",
    [
        "SmtpClientAuthentication is disabled for the Tenant",
        "https://support.google.com/accounts/answer/185833",
        "0123456789abcdef0123456789abcdef is the number of this session",
    ],
)
def test_words_that_were_not_sent_stay(text: str) -> None:
    assert Credentials("bot", "secret", "ab" * 16).mask(text) == text


@given(_secrets)
def test_no_password_is_in_the_repr_of_credentials(password: str) -> None:
    assert repr(Credentials("bot", "x" + password)) == repr(Credentials("bot", "y"))
