"""What each mechanism sends, and what it refuses to send."""

from __future__ import annotations

from base64 import b64encode
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.mail.codes import Reason
from app.smtp.mechanisms import BrokenOff, CramMd5, Exchange, Login, Plain, readable


def encoded(text: str) -> str:
    return b64encode(text.encode()).decode()


def converse(exchange: Exchange, *challenges: str) -> list[bytes]:
    """Answer one challenge after the other, as far as the exchange goes."""
    said: list[bytes] = []
    with suppress(BrokenOff):
        said.extend(exchange.answer(challenge) for challenge in challenges)
    return said


_prompts = st.one_of(st.text(max_size=30), st.sampled_from(["Username:", "Password:", "", "User Name\0", "login"]))
_challenges = st.lists(st.one_of(_prompts, _prompts.map(encoded)), max_size=6)


@given(_challenges)
def test_login_sends_each_of_both_once_whatever_it_is_asked_for(challenges: list[str]) -> None:
    said = converse(Login("the-name", "the-password"), *challenges)
    assert len(said) == len(set(said))
    assert set(said) <= {b"the-name", b"the-password"}


FOR_THE_NAME = ["Username", "Username:", "username", "User Name\0", "USER:", "Login:", "logon name", "Account"]
FOR_THE_NAME += ["E-mail address", "Your name, please", "Benutzername:", "Nom d'utilisateur", "Usuario:", "Utente:"]


@pytest.mark.parametrize("asking", FOR_THE_NAME)
@given(before=_challenges, is_base64=st.booleans())
def test_the_password_never_goes_to_a_prompt_for_the_user_name(asking: str, before: list[str], is_base64: bool) -> None:
    exchange = Login("the-name", "the-password")
    converse(exchange, *before)
    assert converse(exchange, encoded(asking) if is_base64 else asking) in ([], [b"the-name"])


@pytest.mark.parametrize(
    ("prompts", "answers"),
    [
        (["Username:", "Password:"], ["name", "password"]),
        (["Password:", "Username:"], ["password", "name"]),
        (["Password:", ""], ["password", "name"]),
        (["", "Password:"], ["name", "password"]),
        (["1", "2"], ["name", "password"]),
        (["1", "1"], ["name"]),
        (["Username:", "Username:"], ["name"]),
        (["Password:", "Password again:"], ["password"]),
        (["", "Username:"], ["name"]),
        (["", "", ""], ["name", "password"]),
    ],
)
def test_login_answers_what_a_prompt_asks_for_and_else_in_order(prompts: list[str], answers: list[str]) -> None:
    said = converse(Login("name", "password"), *map(encoded, prompts))
    assert said == [answer.encode() for answer in answers]


@pytest.mark.parametrize("count", [0, 1])
def test_login_is_not_accepted_before_both_were_sent(count: int) -> None:
    exchange = Login("name", "password")
    converse(exchange, *[""] * count)
    with pytest.raises(BrokenOff) as broken:
        exchange.accepted()
    assert broken.value.reason is Reason.UNEXPECTED_REPLY


def test_cram_md5_answers_as_the_example_of_rfc_2195() -> None:
    exchange = CramMd5("tim", "tanstaaftanstaaf")
    assert exchange.answer(encoded("<1896.697170952@postoffice.reston.mci.net>")) == (
        b"tim b913a602c7eda7a495b4e6e7334d3890"
    )
    assert exchange.secrets == ("b913a602c7eda7a495b4e6e7334d3890",)
    exchange.accepted()


def test_plain_says_all_in_its_first_message_as_the_example_of_rfc_4616() -> None:
    exchange = Plain("tim", "tanstaaftanstaaf")
    assert exchange.first == b"\0tim\0tanstaaftanstaaf"
    assert converse(exchange, "") == []


@pytest.mark.parametrize(
    ("challenge", "text"),
    [
        ("VXNlcm5hbWU6", "Username:"),
        (" VXNlcm5hbWU6 ", "Username:"),
        ("VXNlciBOYW1lAA==", "User Name"),
        ("Username:", "Username:"),
        ("Username", "Username"),  # base64 too, but of nothing that can be read
        ("/////w==", "/////w=="),
        ("", ""),
    ],
)
def test_a_prompt_is_read_as_people_would(challenge: str, text: str) -> None:
    assert readable(challenge) == text
