"""With a key the key decides; without one only this machine is served, and nothing that was sent on."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.intake.callers import Callers, Visit
from app.mail.errors import Unauthenticated

KEY = "a-key-of-some-length"
LOCAL = Visit(peer="127.0.0.1", host="127.0.0.1:8587")
FAR = Visit(peer="192.0.2.9", host="mail.example:8587")


def _refusal(callers: Callers, visit: Visit) -> str:
    with pytest.raises(Unauthenticated) as refused:
        callers.identify(visit)
    return refused.value.detail


@pytest.mark.parametrize(
    "visit",
    [
        LOCAL,
        replace(LOCAL, peer="::1", host="[::1]:8587"),
        replace(LOCAL, peer="127.8.8.8", host="localhost"),
        replace(LOCAL, host="LocalHost:8587"),
        replace(LOCAL, host="localhost.:8587"),
        replace(LOCAL, host="localhost:8587", origin="http://localhost:8587"),
        replace(LOCAL, host="[::1]:8587", origin="http://[::1]:8587"),
        replace(LOCAL, fetch_site="same-origin"),
        replace(LOCAL, fetch_site="none"),
        replace(LOCAL, credentials=(b"any key at all",)),
    ],
)
def test_without_a_key_this_machine_is_served(visit: Visit) -> None:
    caller = Callers(None).identify(visit)
    assert not caller.is_operator
    assert caller.name == ""


@pytest.mark.parametrize(
    "visit",
    [
        replace(LOCAL, peer="192.0.2.9"),
        replace(LOCAL, peer="10.0.0.1"),
        replace(LOCAL, peer=""),
        replace(LOCAL, peer="0.0.0.0"),
        replace(LOCAL, peer="localhost.evil.example"),
        replace(LOCAL, forwarded=True),
        replace(LOCAL, host=""),
        replace(LOCAL, host="mail.example"),
        replace(LOCAL, host="evil.example:8587"),
        replace(LOCAL, host="localhost.evil.example"),
        replace(LOCAL, host="127.0.0.1.evil.example:8587"),
        replace(LOCAL, host="evil.example@127.0.0.1"),
        replace(LOCAL, host="[::2]:8587"),
        replace(LOCAL, host="0.0.0.0:8587"),
        replace(LOCAL, origin="null"),
        replace(LOCAL, origin=""),
        replace(LOCAL, origin="http://evil.example"),
        replace(LOCAL, origin="http://127.0.0.1"),
        replace(LOCAL, origin="http://127.0.0.1:3000"),
        replace(LOCAL, origin="http://localhost:8587"),
        replace(LOCAL, origin="http://127.0.0.1:8587.evil.example"),
        replace(LOCAL, origin="http://evil.example/?http://127.0.0.1:8587"),
        replace(LOCAL, fetch_site="cross-site"),
        replace(LOCAL, fetch_site="same-site"),
        replace(LOCAL, fetch_site=""),
        replace(LOCAL, fetch_site="cross-site", origin="http://127.0.0.1:8587"),
        FAR,
        replace(FAR, credentials=(b"any key at all",)),
    ],
)
def test_without_a_key_everybody_else_is_told_how_to_make_one(visit: Visit) -> None:
    text = _refusal(Callers(None), visit)
    assert "MAILCHUTE_API_KEY" in text
    assert "16 characters" in text
    assert "Bearer" in text


@pytest.mark.parametrize("visit", [LOCAL, FAR, replace(FAR, forwarded=True, origin="http://evil.example")])
def test_with_a_key_the_key_alone_decides(visit: Visit) -> None:
    callers = Callers(KEY)
    key = KEY.encode()
    assert not callers.identify(replace(visit, credentials=(key,))).is_operator
    for wrong in (None, b"", key[:-1], key + b"x", key.upper(), b" " + key, b"Bearer " + key):
        assert "Authorization: Bearer" in _refusal(
            callers, replace(visit, credentials=() if wrong is None else (wrong,))
        )


def test_a_missing_and_a_wrong_key_get_one_text() -> None:
    callers = Callers(KEY)
    assert _refusal(callers, LOCAL) == _refusal(callers, replace(FAR, credentials=(b"wrong",)))
    assert KEY not in _refusal(callers, LOCAL)


@given(st.text(min_size=1), st.binary())
def test_only_the_very_key_opens(key: str, other: bytes) -> None:
    callers = Callers(key)
    callers.identify(replace(FAR, credentials=(key.encode(),)))
    if other != key.encode():
        _refusal(callers, replace(FAR, credentials=(other,)))


@pytest.mark.parametrize("key", [None, KEY])
def test_who_can_open_the_operator_socket_is_the_operator(key: str | None) -> None:
    assert Callers(key).identify(Visit(peer=None)).is_operator
    assert Callers(key).identify(Visit(peer=None, forwarded=True, host="evil.example")).is_operator


@given(
    st.builds(
        Visit,
        peer=st.one_of(st.sampled_from(["127.0.0.1", "::1", "192.0.2.9", ""]), st.text(max_size=9)),
        host=st.one_of(
            st.sampled_from(["127.0.0.1:8587", "localhost", "[::1]:1", "evil.example"]), st.text(max_size=9)
        ),
        origin=st.one_of(st.none(), st.just("http://127.0.0.1:8587"), st.text(max_size=20)),
        fetch_site=st.one_of(st.none(), st.sampled_from(["same-origin", "same-site", "cross-site", "none"])),
        credentials=st.lists(st.binary(max_size=9), max_size=3).map(tuple),
        forwarded=st.booleans(),
    )
)
def test_nobody_is_served_without_a_key_who_was_forwarded_or_is_of_another_site(visit: Visit) -> None:
    try:
        Callers(None).identify(visit)
    except Unauthenticated:
        return
    assert visit.peer in ("127.0.0.1", "::1")
    assert not visit.forwarded
    assert visit.fetch_site in (None, "same-origin", "none")
    assert visit.origin is None or visit.origin.endswith(f"://{visit.host}")
