"""What the command line does with messages: send, show, list, attempts, tail.

Each sends HTTP requests to the running service through its control socket; where none runs, to one of its own on the
same database (`operator.at_hand`). Texts are for people, `--json` writes the API's own responses, a line each.
"""

from __future__ import annotations

import base64
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, NoReturn
from urllib.parse import quote

import typer

from app.mail.errors import ConfigError, StoreUnavailable
from app.mail.schedule import parse_duration
from app.operator import NoAnswer, Reply, Service, at_hand, following, no_service, require_database
from app.options import (
    AsJson,
    ErrorCodeOption,
    Limit,
    OfProfile,
    OfRecipient,
    Sender,
    Since,
    State,
    Tag,
    Until,
    Words,
    examples,
    fault_text,
    filters,
    instant,
)
from app.rendering import attempt_table, message_details, message_line, message_table
from app.settings import Settings, load
from app.terminal import complain, note, width, write, write_json, write_source

PAGE = 100  # entries a request of a list
REFUSED = 2
FAILED = 1


messages = typer.Typer(rich_markup_mode=None)


def good_settings() -> Settings:
    """Read the settings, or end the command with what is wrong with them."""
    try:
        return load(os.environ)
    except ConfigError as error:
        refuse(error)


def refuse(error: Exception) -> NoReturn:
    """End the command: it cannot work as things stand."""
    complain(*str(error).split("\n"))  # a line for each fault
    raise typer.Exit(REFUSED)


@messages.command(
    epilog=examples(
        "send --to ann@example.org --subject Report --text 'All is well.' --attach report.pdf",
        "send --to ann@example.org --subject Hello --send-at 2026-12-24T18:00 < letter.txt",
    )
)
def send(
    *,
    to: Annotated[list[str] | None, typer.Option(help="A recipient; repeat it for more.", metavar="ADDRESS")] = None,
    cc: Annotated[list[str] | None, typer.Option(help="The same, shown as Cc.", metavar="ADDRESS")] = None,
    bcc: Annotated[list[str] | None, typer.Option(help="The same, not shown.", metavar="ADDRESS")] = None,
    sender: Annotated[
        str | None, typer.Option("--from", help="Default: the profile's, or default_from.", metavar="ADDRESS")
    ] = None,
    reply_to: Annotated[list[str] | None, typer.Option(help="Where replies go.", metavar="ADDRESS")] = None,
    subject: Annotated[str | None, typer.Option(help="The Subject header field.", metavar="TEXT")] = None,
    text: Annotated[
        str | None, typer.Option(help="The text. Default: stdin, unless there is --html.", metavar="TEXT")
    ] = None,
    html: Annotated[str | None, typer.Option(help="The HTML.", metavar="HTML")] = None,
    attach: Annotated[list[Path] | None, typer.Option(help="A file; repeat it for more.", metavar="FILE")] = None,
    profile: OfProfile = None,
    tag: Annotated[list[str] | None, typer.Option(help="A label; repeat it for more.", metavar="TAG")] = None,
    header: Annotated[
        list[str] | None, typer.Option(help="A header field; repeat it for more.", metavar="'NAME: VALUE'")
    ] = None,
    send_at: Annotated[
        str | None, typer.Option(help="Not before this time, such as 2026-12-24T18:00.", metavar="TIME")
    ] = None,
    expires_in: Annotated[
        str | None, typer.Option(help="Give up after so long, such as 10m.", metavar="DURATION")
    ] = None,
    idempotency_key: Annotated[
        str | None, typer.Option(help="Repeating it within 24 hours sends nothing twice.", metavar="KEY")
    ] = None,
    wait: Annotated[
        int | None, typer.Option(min=0, max=30, help="Seconds to wait for the verdict, 0 to 30.", metavar="SECONDS")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be sent; send nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Send a message.

    Exit code 1: it is kept, but something is wrong; the text says what.
    """
    if text is None and html is None and not sys.stdin.isatty():
        text = sys.stdin.read()
    body = {
        "to": to,
        "cc": cc,
        "bcc": bcc,
        "from": sender,
        "reply_to": reply_to,
        "subject": subject,
        "text": text,
        "html": html,
        "attachments": [_attached(path) for path in attach or []],
        "profile": profile,
        "tags": tag,
        "headers": _headers(header or []),
        "send_at": instant(send_at),
        "expires_in": _seconds(expires_in),
        "idempotency_key": idempotency_key,
        "dry_run": dry_run,
    }
    prefer = {} if wait is None else {"Prefer": f"wait={wait}"}
    with speaking(good_settings(), delivers=not dry_run, rehearses=dry_run) as service:
        reply = service.post("/send", {name: given for name, given in body.items() if given}, headers=prefer)
    if not as_json and isinstance(reply.body, dict):
        for warning in reply.body.get("warnings", ()):
            note(f"warning: {warning}")
    if dry_run and reply.status == 200 and not as_json:
        write_source(reply.body["raw"])
        return
    _tell_outcome(reply, as_json=as_json)


@messages.command(epilog=examples("show 01a22c67-553b-7ffe-a0dc-fe1d893313ca", "show --raw ID > message.eml"))
def show(
    id: Annotated[str, typer.Argument(help="The message's id.")],
    *,
    raw: Annotated[bool, typer.Option("--raw", help="Write its source.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show a message with every attempt.

    Times are this machine's. With each attempt comes what was said to the relay, and what it said.
    """
    with speaking(good_settings()) as service:
        reply = good(service.get(f"{_path(id)}/raw" if raw else _path(id)))
    if raw:
        write_source(reply.text)
    elif as_json:
        write_json(reply.body)
    else:
        write(*message_details(reply.body))


@messages.command("list", epilog=examples("list --state deferred --since 24h", "list -q 'order 4711' --json"))
def list_(
    *,
    state: State = None,
    error_code: ErrorCodeOption = None,
    profile: OfProfile = None,
    sender: Sender = None,
    recipient: OfRecipient = None,
    tag: Tag = None,
    since: Since = None,
    until: Until = None,
    words: Words = None,
    limit: Limit = 20,
    as_json: AsJson = False,
) -> None:
    """List messages, newest first.

    Times are this machine's.
    """
    which = filters(state, error_code, profile, sender, recipient, tag, since, until, words)
    with speaking(good_settings()) as service:
        found = list(_newest(service, "/messages", which, limit))
    _show_list(found, message_table(found, width=width()), as_json=as_json)


@messages.command(epilog=examples("attempts --error-code EAUTH --since 24h", "attempts --profile default -n 100"))
def attempts(
    *,
    error_code: ErrorCodeOption = None,
    profile: OfProfile = None,
    since: Since = None,
    until: Until = None,
    limit: Limit = 20,
    as_json: AsJson = False,
) -> None:
    """List attempts, newest message first.

    Times are this machine's; --since and --until are of the messages. `mailchute show` has what was said.
    """
    which = {"error_code": error_code, "profile": profile, "since": instant(since), "until": instant(until)}
    with speaking(good_settings()) as service:
        found = list(_newest(service, "/attempts", which, limit))
    _show_list(found, attempt_table(found, width=width()), as_json=as_json)


def _show_list(found: list[dict[str, Any]], table: Iterator[str], *, as_json: bool) -> None:
    if as_json:
        for entry in found:
            write_json(entry)
    elif found:
        write(*table)
    else:
        note("none")


@messages.command(epilog=examples("tail", "tail --json | jq 'select(.ok | not)'"))
def tail(*, as_json: AsJson = False) -> None:
    """Follow what the running service does.

    A line for every change of a message's state, until Ctrl-C.
    """
    database = good_settings().database
    with in_plain_words(), following(database) as changes:
        if changes is None:
            require_database(database)
            raise NoAnswer(f"{no_service(database)}: there is nothing to follow")
        note("Following; Ctrl-C ends it.")
        with suppress(KeyboardInterrupt):
            for message in changes:
                tell(message, as_json=as_json)


@contextmanager
def speaking(
    settings: Settings, *, delivers: bool = False, rehearses: bool = False, saves: bool = False
) -> Iterator[Service]:
    """Yield a service to send requests to, or end the command."""
    with in_plain_words(), at_hand(settings, delivers=delivers, rehearses=rehearses, saves=saves) as service:
        yield service


@contextmanager
def in_plain_words() -> Iterator[None]:
    """End the command where a service cannot be reached or opened, and say why."""
    try:
        yield
    except (NoAnswer, StoreUnavailable) as error:
        complain(str(error))
        raise typer.Exit(FAILED) from None
    except ConfigError as error:
        refuse(error)


def _path(id: str) -> str:
    return f"/messages/{quote(id, safe='')}"


def _newest(service: Service, path: str, which: dict[str, str | None], at_most: int) -> Iterator[dict[str, Any]]:
    cursor = None
    while at_most > 0:
        page = good(service.get(path, {**which, "limit": str(min(at_most, PAGE)), "cursor": cursor})).body
        yield from page["data"]
        at_most -= len(page["data"])
        cursor = page["next_cursor"]
        if cursor is None:
            return


def _headers(given: list[str]) -> dict[str, str]:
    headers: dict[str, str] = {}
    for field in given:
        name, colon, value = field.partition(":")
        if not colon or not name.strip():
            refuse(ConfigError(f"--header: write Name: value, such as 'X-Order: 4711', not {field[:80]!r}"))
        if name.strip().lower() in map(str.lower, headers):
            refuse(ConfigError(f"--header: {name.strip()[:80]} is given twice; give it once"))
        headers[name.strip()] = value.strip()
    return headers


def _seconds(text: str | None) -> float | None:
    try:
        seconds = None if text is None else parse_duration(text)
        return int(seconds) if seconds is not None and seconds.is_integer() else seconds
    except ValueError as error:
        refuse(ConfigError(f"--expires-in: {error}"))


def _attached(path: Path) -> dict[str, str]:
    try:
        content = path.read_bytes()
    except OSError as error:
        complain(f"--attach: {path} cannot be read: {error.strerror}")
        raise typer.Exit(REFUSED) from None
    return {"filename": path.name, "content": base64.b64encode(content).decode()}


def good(reply: Reply) -> Reply:
    """Give a reply that is one, or end the command with what it says."""
    if reply.status < 400:
        return reply
    for fault in faults_of(reply):
        complain(fault)
    raise typer.Exit(FAILED if reply.status in (404, 409, 429, 503) else REFUSED)


def faults_of(reply: Reply) -> list[str]:
    faults = reply.body.get("errors") or [{"pointer": "", "detail": reply.body["detail"]}]
    return [fault_text(fault["pointer"], fault["detail"]) for fault in faults]


def _tell_outcome(reply: Reply, *, as_json: bool) -> None:
    if as_json:
        write_json(reply.body)
    if not isinstance(reply.body, dict) or not ("state" in reply.body or reply.status < 400):
        if as_json:
            raise typer.Exit(FAILED if reply.status == 503 else REFUSED)
        good(reply)
    if "state" not in reply.body:
        return
    if not as_json:
        write(message_line(reply.body))
        if reply.body["hint"]:
            write(f"Cure: {reply.body['hint']}")
    if not reply.body["ok"]:
        raise typer.Exit(FAILED)


def tell(message: dict[str, Any], *, as_json: bool) -> None:
    """Write a message in one line."""
    if as_json:
        write_json(message)
    else:
        write(message_line(message))
