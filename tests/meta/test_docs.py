"""What is public is documented, by the names that the code has; a name without a home in docs/ fails here.

A name counts where it stands as code, in backticks or in a fenced block: prose is full of words like "host".
"""

import json
import re
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from app.mail.codes import ErrorCode, Reason
from app.mail.outcome import FailureClass, MessageState, RecipientState
from app.mail.profile import AuthMode, TlsMode
from app.settings import LogFormat
from app.written import Written
from scripts.configuration_page import page

ROOT = Path(__file__).parents[2]
CONFIGURATION = ROOT / "docs" / "configuration.md"
CODE = re.compile(r"```.*?```|`[^`\n]+`", re.DOTALL)
PREFIX = "MAILCHUTE_"
SMTP_NAMES = [
    "SMTP_HOST",
    "SMTP_PORT",
    "SMTP_USERNAME",
    "SMTP_PASSWORD",
    "SMTP_PASSWORD_FILE",
    "SMTP_SECURE",
    "SMTP_IGNORE_TLS",
    "SMTP_FROM",
    "NEXT_PUBLIC_SMTP_FROM",
    "SMTP_TLS",
    "SMTP_AUTH",
    "SMTP_CA_FILE",
    "SMTP_VERIFY",
    "SMTP_TLS_SECURITY_LEVEL",
    "SMTP_AUTH_DISABLED",
]


def code_words(document: Path) -> set[str]:
    """Give every word that stands as code in a document."""
    return set(re.findall(r"[A-Za-z0-9_-]+", " ".join(CODE.findall(document.read_text("utf-8")))))


def model_within(annotation: Any) -> type[BaseModel] | None:
    """Find the section that a setting's type holds: itself, or the values of a table of them."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := model_within(part))), None)


def settings(model: type[BaseModel] = Written, above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Walk every setting as a path; `*` stands for a name that the user gives."""
    for name, field in model.model_fields.items():
        at = (*above, field.alias or name)
        yield at
        section = model_within(field.annotation)
        if section is not None:
            is_table = not (isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel))
            yield from settings(section, (*at, "*") if is_table else at)


SETTINGS = tuple(settings())


def test_the_walk_finds_settings_of_every_depth() -> None:
    assert {("listen",), ("retry", "schedule"), ("profiles", "*", "from"), ("profiles", "*", "timeouts", "tls")} <= set(
        SETTINGS
    )


@pytest.mark.parametrize("at", SETTINGS, ids=".".join)
def test_every_setting_is_documented(at: tuple[str, ...]) -> None:
    words = code_words(CONFIGURATION)
    if "*" in at or at[0] in ("profiles", "retention", "retry", "routes"):
        assert at[-1] in words, f"docs/configuration.md does not name {'.'.join(at)}"
    else:
        assert PREFIX + at[0].upper() in words, f"docs/configuration.md does not name {PREFIX}{at[0].upper()}"


@pytest.mark.parametrize("name", [f"{PREFIX}CONFIG", *SMTP_NAMES])
def test_every_further_variable_is_documented(name: str) -> None:
    assert name in code_words(CONFIGURATION)


@pytest.mark.parametrize("choice", [*TlsMode, *AuthMode, *LogFormat], ids=lambda c: f"{type(c).__name__}.{c}")
def test_every_choice_of_a_setting_is_documented(choice: StrEnum) -> None:
    assert choice.value in code_words(CONFIGURATION)


def variables_named() -> set[str]:
    documents = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    return {
        name
        for document in documents
        for name in re.findall(rf"\b{PREFIX}[A-Z0-9_]*[A-Z0-9]\b", document.read_text("utf-8"))
    }


def test_no_document_names_a_variable_that_is_no_setting() -> None:
    known = [re.compile("__".join("[A-Z0-9_-]+?" if part == "*" else part.upper() for part in at)) for at in SETTINGS]
    unknown = {
        name
        for name in variables_named() - {f"{PREFIX}CONFIG"}
        if not any(pattern.fullmatch(name.removeprefix(PREFIX)) for pattern in known)
    }
    assert not unknown


@pytest.mark.parametrize("name", [*ErrorCode, *Reason], ids=lambda name: f"{type(name).__name__}.{name}")
def test_every_error_code_and_reason_is_documented(name: StrEnum) -> None:
    assert name.value in code_words(ROOT / "docs" / "errors.md")


def test_no_document_names_an_error_code_that_is_none() -> None:
    named = {word for word in code_words(ROOT / "docs" / "errors.md") if re.fullmatch(r"E[A-Z0-9]{3,}", word)}
    assert named <= set(ErrorCode)


@pytest.mark.parametrize(
    "name", [*MessageState, *RecipientState, *FailureClass], ids=lambda name: f"{type(name).__name__}.{name}"
)
def test_every_state_and_class_is_documented(name: StrEnum) -> None:
    assert name.value in code_words(ROOT / "docs" / "states.md")


def test_the_tables_of_the_settings_are_what_the_settings_say() -> None:
    written = CONFIGURATION.read_text("utf-8")
    assert page(written) == written, "run python -m scripts.configuration_page"


# --- the rule for callers ---------------------------------------------------------------------------------------

RULE = (
    "2xx = we have it, never send it again (look at `ok`); 4xx = change something; 5xx = we do not have it, send it again; "
    "no answer = unknown: repeat with the same Idempotency-Key"
)
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
CODED = [
    *sorted((ROOT / "app").rglob("*.py")),
    ROOT / "openapi.json",
    *PAGES,
    *sorted((ROOT / "deploy").rglob("*.yaml")),
]


def said_in(text: str) -> str:
    """Return a text without what only lays it out: line breaks, quotes of Python, emphasis."""
    return re.sub(r"[\s\"*]+|\\n", " ", text)


def test_the_rule_for_callers_stands_where_callers_look() -> None:
    document = json.loads((ROOT / "openapi.json").read_text("utf-8"))
    for text in (
        (ROOT / "README.md").read_text("utf-8"),
        (ROOT / "docs" / "recipes" / "README.md").read_text("utf-8"),
        document["info"]["description"],
        document["paths"]["/send"]["post"]["description"],
    ):
        assert RULE in said_in(text)


@pytest.mark.parametrize("file", CODED, ids=lambda file: str(file.relative_to(ROOT)))
def test_nothing_says_that_no_answer_means_no_message(file: Path) -> None:
    text = said_in(file.read_text("utf-8"))
    for found in re.finditer(r"no answer = ", text, re.IGNORECASE):
        assert text[found.end() :].startswith("unknown: repeat with the same Idempotency-Key")
    assert not re.search(r"5xx,? (and|or) no answer", text, re.IGNORECASE)


# --- what is copied out of the documents -------------------------------------------------------------------------

FENCED = re.compile(r"^```\w*\n(.*?)^```", re.DOTALL | re.MULTILINE)
ADDRESS_FIELDS = r"(?:to|cc|bcc|reply_to|from)"
VARIABLE = r"(?:\{\{|\$\{|\$\w|<%|#\{|%\()"
PLAIN = [
    # "to": "{{Email}}", also within a string; to: `${email}`
    re.compile(rf"""\\?["']?\b{ADDRESS_FIELDS}\\?["']?\s*[:=]\s*\\?["'`][^"'`]*{VARIABLE}"""),
    # "to": {{Email}}; code that brings its own quotes may make objects
    re.compile(rf"""\b{ADDRESS_FIELDS}\\?["']?\s*:\s*\{{\{{(?!=)"""),
    # n8n: {"name": "to", "value": "={{ $json.email }}"}
    re.compile(rf""""name":\s*"{ADDRESS_FIELDS}",\s*"value":\s*"(?!=\{{\{{ \{{ email:)[^"]*{VARIABLE}"""),
]
REPEATS = re.compile(r"--retry|retryOnFail|\btries\b")


def plain_addresses(block: str) -> list[str]:
    return [found[0] for pattern in PLAIN for found in pattern.finditer(block)]


@pytest.mark.parametrize(
    "block",
    [
        '{"to": "{{Email}}"}',
        '{"to": "Ann <{{Email}}>"}',
        '{"cc": {{Recipients}}}',
        '{"name": "to", "value": "={{ $json.email }}"}',
        '"body": "{\\"to\\": \\"{{1.email}}\\"}"',
        "send({to: `${email}`})",
        "curl --json '{\"to\": \"'$email'\"}'",
    ],
)
def test_the_search_for_plain_addresses_finds_them(block: str) -> None:
    assert plain_addresses(block) or "'$" in block


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_block_has_a_visitors_address_as_a_plain_string(page: Path) -> None:
    for block in FENCED.findall(page.read_text("utf-8")):
        assert plain_addresses(block) == [], "as a plain string it may be up to 1,000 recipients"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_block_that_repeats_has_an_idempotency_key(page: Path) -> None:
    for block in FENCED.findall(page.read_text("utf-8")):
        if REPEATS.search(block):
            assert re.search("idempotency[-_]?key", block, re.IGNORECASE), block


FAULTS = (ROOT / "docs" / "faults.md").read_text("utf-8")
SHOWN_BY = re.findall(r"`(\w+/test_\w+\.py)(?:::(\w+))?`(?: ((?:\d+[a-z]?(?:, )?)+))?", FAULTS)


def test_the_faults_name_their_tests() -> None:
    rows = [row for row in FAULTS.splitlines() if row.startswith("| ") and not row.startswith("| fault ")]
    assert len(rows) > 60
    assert [row for row in rows if "/test_" not in row and "*not shown*" not in row] == []


@pytest.mark.parametrize(("file", "name", "situations"), SHOWN_BY)
def test_what_a_fault_is_shown_by_is_there(file: str, name: str, situations: str) -> None:
    text = (ROOT / "tests" / file).read_text("utf-8")
    if name:
        assert re.search(rf"(def |class |^){name}\b", text, re.MULTILINE), name
    for number in filter(None, situations.split(", ")):
        assert re.search(rf"\"{number}-|\b{number}\}}-|def test_{number}_", text), number
