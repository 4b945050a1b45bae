"""Every code and every reason has a meaning, causes and a cure that people can read."""

from __future__ import annotations

import re

import pytest

from app.mail.codes import CODE_OF, ErrorCode, Reason
from app.mail.explain import CODES, EXPLANATIONS, NODEMAILER, cure, reasons_of
from tests.unit.mail.test_hints import _FILE_SETTING, _KEYS


def test_every_code_and_every_reason_is_explained_and_nothing_else() -> None:
    assert CODES.keys() == set(ErrorCode)
    assert EXPLANATIONS.keys() == set(Reason)
    assert NODEMAILER.keys() <= set(ErrorCode)


@pytest.mark.parametrize("reason", Reason)
def test_a_reason_has_a_meaning_causes_classes_and_a_cure(reason: Reason) -> None:
    said = EXPLANATIONS[reason]
    assert said.causes
    assert said.classes
    assert len(set(said.causes)) == len(said.causes)
    for sentence in (said.meaning, cure(reason)):
        assert sentence[0].isupper()
        assert sentence.endswith(".")
        assert len(sentence) < 300
    for cause in said.causes:
        assert cause.strip(" .") == cause, "they are joined by semicolons"
        assert ";" not in cause
    for text in (said.meaning, *said.causes, cure(reason)):
        assert text.isprintable()
        assert not re.search(r"[{}|]|None|  ", text), "docs/errors.md has them in a table"


@pytest.mark.parametrize("reason", Reason)
def test_a_cure_names_only_settings_that_exist(reason: Reason) -> None:
    assert {line.partition(" = ")[0] for line in _FILE_SETTING.findall(cure(reason))} <= _KEYS
    assert not re.search(r"\b(SMTP|MAILCHUTE)_", cure(reason)), "it is for a profile of mailchute.toml"


@pytest.mark.parametrize("code", ErrorCode)
def test_a_code_has_a_sentence_and_its_reasons_in_order(code: ErrorCode) -> None:
    assert CODES[code].endswith(".")
    assert list(reasons_of(code)) == [reason for reason in Reason if CODE_OF[reason] is code]


@pytest.mark.parametrize("code", NODEMAILER)
def test_what_nodemailer_says_ends_as_a_sentence(code: ErrorCode) -> None:
    assert NODEMAILER[code].endswith(".")
