"""What the commands' options have in common: filters, instants as people write them, examples, completion, faults.

Knows the API's names for what the options say, so that a fault is told by the option's name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Annotated

import typer

from app.mail.codes import ErrorCode
from app.mail.outcome import MessageState

_SAME = (
    *("to", "cc", "bcc", "from", "reply_to", "subject", "text", "html", "profile", "idempotency_key", "send_at"),
    *("expires_in", "as", "state", "error_code", "tag", "since", "until", "limit"),
)
_OPTIONS = {  # of the fields of a body, and the parameters of a query
    "sender": "--from",
    "recipient": "--to",
    "attachments": "--attach",
    "tags": "--tag",
    "headers": "--header",
    "q": "--search",
    "address": "ADDRESS",
    "file": "FILE",
    **{name: f"--{name.replace('_', '-')}" for name in _SAME},
}
_BY_NAME = re.compile(rf"({'|'.join(sorted(_OPTIONS, key=len, reverse=True))})(?=[ :])")


def _completion(words: Sequence[str]) -> Callable[[str], list[str]]:
    def complete(incomplete: str) -> list[str]:  # by this name typer knows it
        return [word for word in words if word.startswith(incomplete)]

    return complete


AsJson = Annotated[bool, typer.Option("--json", help="Write the API's answers, one JSON object a line.")]
State = Annotated[
    str | None,
    typer.Option(
        help="queued, deferred, failed, in_doubt, …", metavar="STATE", autocompletion=_completion([*MessageState])
    ),
]
ErrorCodeOption = Annotated[
    str | None,
    typer.Option(
        "--error-code",
        help="Of the latest failure, such as EAUTH.",
        metavar="CODE",
        autocompletion=_completion([*ErrorCode]),
    ),
]
OfProfile = Annotated[str | None, typer.Option("--profile", help="Name of a profile.", metavar="NAME")]
Sender = Annotated[str | None, typer.Option("--from", help="MAIL FROM.", metavar="ADDRESS")]
OfRecipient = Annotated[str | None, typer.Option("--to", help="One recipient.", metavar="ADDRESS")]
Tag = Annotated[str | None, typer.Option(help="One tag.", metavar="TAG")]
Since = Annotated[
    str | None,
    typer.Option(
        help="Accepted at this time or later: 2026-12-24, 2026-12-24T18:00, or 24h for 24 hours ago.", metavar="TIME"
    ),
]
Until = Annotated[str | None, typer.Option(help="Accepted before this time.", metavar="TIME")]
Words = Annotated[
    str | None, typer.Option("--search", "-q", help="Words of subject, recipients and tags.", metavar="WORDS")
]
Limit = Annotated[int, typer.Option("--limit", "-n", min=1, help="How many at most.", metavar="N")]


def examples(*commands: str) -> str:
    """Write examples for the end of a command's help."""
    return "\n".join(["\b", "Examples:", *(f"  mailchute {command}" for command in commands)])


def filters(*given: str | None) -> dict[str, str | None]:
    """Return the query of a list, from the options in the order in which the commands have them."""
    names = ("state", "error_code", "profile", "sender", "recipient", "tag", "since", "until", "q")
    which = dict(zip(names, given, strict=True))
    return which | {name: instant(which[name]) for name in ("since", "until")}


def instant(text: str | None) -> str | None:
    """Give a date or a time without a zone this machine's; anything else is the API's to read."""
    try:
        written = datetime.fromisoformat(text or "")
        return text if written.tzinfo is not None else written.astimezone(UTC).isoformat()
    except (ValueError, OverflowError):
        return text


def fault_text(pointer: str, detail: str) -> str:
    """Tell a fault of a request by the option that caused it."""
    field, _, rest = pointer.removeprefix("/").partition("/")
    if field:
        option = _OPTIONS.get(field, field)
        return f"{option} {rest}: {detail}" if field == "headers" and rest else f"{option}: {detail}"
    return _BY_NAME.sub(lambda found: _OPTIONS[found[1]], detail, count=1) if _BY_NAME.match(detail) else detail
