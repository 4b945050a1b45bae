"""What the command line does to messages: send, show, list, tail, retry, cancel.

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
from app.operator import NoAnswer, Reply, Service, at_hand, following, no_service, require_database
from app.settings import Settings, load
from app.terminal import complain, note, write, write_json, write_source

AsJson = Annotated[bool, typer.Option("--json", help="Write the API's answers, one JSON object a line.")]
State = Annotated[str | None, typer.Option(help="queued, deferred, failed, in_doubt, …")]
ErrorCode = Annotated[str | None, typer.Option(help="Of the latest failure, such as EAUTH.")]
OfProfile = Annotated[str | None, typer.Option("--profile", help="Name of a profile.")]
Sender = Annotated[str | None, typer.Option("--from", help="MAIL FROM.")]
OfRecipient = Annotated[str | None, typer.Option("--to", help="One recipient.")]
Tag = Annotated[str | None, typer.Option(help="One tag.")]
Since = Annotated[str | None, typer.Option(help="An instant, a date, or how long ago (24h).")]
Until = Annotated[str | None, typer.Option(help="Accepted before this instant.")]
Words = Annotated[str | None, typer.Option("--search", "-q", help="Words of subject, recipients and tags.")]

STEP = 100  # messages a request of a bulk act
REFUSED = 2
FAILED = 1


messages = typer.Typer()


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


@messages.command()
def send(
    *,
    to: Annotated[list[str] | None, typer.Option(help="Whom it goes to; several are allowed.")] = None,
    cc: Annotated[list[str] | None, typer.Option()] = None,
    bcc: Annotated[list[str] | None, typer.Option()] = None,
    sender: Annotated[str | None, typer.Option("--from", help="Default: the profile's, or default_from.")] = None,
    reply_to: Annotated[list[str] | None, typer.Option()] = None,
    subject: Annotated[str | None, typer.Option()] = None,
    text: Annotated[str | None, typer.Option(help="Default: what comes on stdin, unless there is --html.")] = None,
    html: Annotated[str | None, typer.Option()] = None,
    attach: Annotated[list[Path] | None, typer.Option(help="A file; several are allowed.")] = None,
    profile: OfProfile = None,
    tag: Annotated[list[str] | None, typer.Option(help="Several are allowed.")] = None,
    idempotency_key: Annotated[str | None, typer.Option(help="The same key is the same message, once.")] = None,
    wait: Annotated[int | None, typer.Option(min=0, max=30, help="Seconds to wait for the verdict.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be sent; send nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Send a message, and say what came of it. Exit code 1: it is kept, but all is not well."""
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
        "idempotency_key": idempotency_key,
        "dry_run": dry_run,
    }
    headers = {} if wait is None else {"Prefer": f"wait={wait}"}
    with speaking(good_settings(), delivers=not dry_run, rehearses=dry_run) as service:
        reply = service.post("/send", {name: said for name, said in body.items() if said}, headers=headers)
    if dry_run and reply.status == 200 and not as_json:
        write_source(reply.body["raw"])
        return
    _tell_outcome(reply, as_json=as_json)


@messages.command()
def show(
    id: Annotated[str, typer.Argument(help="The message's id.")],
    *,
    raw: Annotated[bool, typer.Option("--raw", help="Write its source.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show a message: its state, its recipients, and every attempt with what was said."""
    with speaking(good_settings()) as service:
        reply = good(service.get(f"{_path(id)}/raw" if raw else _path(id)))
    if raw:
        write_source(reply.text)
    elif as_json:
        write_json(reply.body)
    else:
        write(*_details(reply.body))


@messages.command("list")
def list_(
    *,
    state: State = None,
    error_code: ErrorCode = None,
    profile: OfProfile = None,
    sender: Sender = None,
    recipient: OfRecipient = None,
    tag: Tag = None,
    since: Since = None,
    until: Until = None,
    words: Words = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="How many at most.")] = 20,
    as_json: AsJson = False,
) -> None:
    """List messages, newest first."""
    which = _filters(state, error_code, profile, sender, recipient, tag, since, until, words)
    with speaking(good_settings()) as service:
        for message in _newest(service, which, limit):
            _tell(message, as_json=as_json)


@messages.command()
def tail(*, as_json: AsJson = False) -> None:
    """Follow what the running service does: a line for every change of a message's state, until Ctrl-C."""
    database = good_settings().database
    with in_plain_words(), following(database) as changes:
        if changes is None:
            require_database(database)
            raise NoAnswer(f"{no_service(database)}: there is nothing to follow")
        note("Following; Ctrl-C ends it.")
        with suppress(KeyboardInterrupt):
            for message in changes:
                _tell(message, as_json=as_json)


@messages.command()
def retry(
    ids: Annotated[list[str] | None, typer.Argument(help="Messages; or name a filter.")] = None,
    *,
    state: State = None,
    error_code: ErrorCode = None,
    profile: OfProfile = None,
    sender: Sender = None,
    recipient: OfRecipient = None,
    tag: Tag = None,
    since: Since = None,
    until: Until = None,
    words: Words = None,
    as_json: AsJson = False,
) -> None:
    """Send messages again now: what waits, was refused or has expired; in doubt only by id or --state in_doubt."""
    which = _filters(state, error_code, profile, sender, recipient, tag, since, until, words)
    _act(good_settings(), "retry", ids or [], which, as_json=as_json)


@messages.command()
def cancel(
    ids: Annotated[list[str] | None, typer.Argument(help="Messages; or name a filter.")] = None,
    *,
    state: State = None,
    error_code: ErrorCode = None,
    profile: OfProfile = None,
    sender: Sender = None,
    recipient: OfRecipient = None,
    tag: Tag = None,
    since: Since = None,
    until: Until = None,
    words: Words = None,
    as_json: AsJson = False,
) -> None:
    """Cancel what is not sent yet."""
    which = _filters(state, error_code, profile, sender, recipient, tag, since, until, words)
    _act(good_settings(), "cancel", ids or [], which, as_json=as_json)


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


def _act(settings: Settings, act: str, ids: list[str], which: dict[str, str | None], *, as_json: bool) -> None:
    if bool(ids) == any(which.values()):
        complain(f"name messages to {act}, or a filter such as --state deferred, and not both")
        raise typer.Exit(REFUSED)
    with speaking(settings) as service:
        if ids:
            all_well = [_act_on_one(service, act, id_, as_json=as_json) for id_ in ids]
            if not all(all_well):
                raise typer.Exit(FAILED)
            return
        count = _act_on_all(service, act, which)
    if as_json:
        write_json({"count": count})
    else:
        write(f"{count} {'message' if count == 1 else 'messages'}")


def _act_on_one(service: Service, act: str, id_: str, *, as_json: bool) -> bool:
    wait = {"Prefer": "respond-async"} if not service.is_running else {}  # of our own, nobody sends
    reply = service.post(f"{_path(id_)}/{act}", headers=wait)
    is_message = isinstance(reply.body, dict) and "state" in reply.body
    if as_json or is_message:
        _tell(reply.body, as_json=as_json)
    else:
        complain(f"{id_}: {reply.body['detail']}")
    return is_message and (reply.body["ok"] or act == "cancel")


def _act_on_all(service: Service, act: str, which: dict[str, str | None]) -> int:
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    count, cursor = 0, None
    columns = (SpinnerColumn(), TextColumn("{task.description} {task.completed:,.0f}"), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task(act, total=None)  # how many there are nobody counts beforehand
        while True:
            try:
                reply = good(service.post(f"/messages/{act}", query={**which, "limit": str(STEP), "cursor": cursor}))
            except NoAnswer as error:
                raise NoAnswer(f"{error}; {count} were done before") from error
            count += int(reply.body["count"])
            progress.update(bar, completed=count)
            cursor = reply.body["next_cursor"]
            if cursor is None:
                return count


def _path(id: str) -> str:
    return f"/messages/{quote(id, safe='')}"


def _newest(service: Service, which: dict[str, str | None], at_most: int) -> Iterator[dict[str, Any]]:
    cursor = None
    while at_most > 0:
        page = good(service.get("/messages", {**which, "limit": str(min(at_most, STEP)), "cursor": cursor})).body
        yield from page["data"]
        at_most -= len(page["data"])
        cursor = page["next_cursor"]
        if cursor is None:
            return


def _filters(*said: str | None) -> dict[str, str | None]:
    names = ("state", "error_code", "profile", "sender", "recipient", "tag", "since", "until", "q")
    return dict(zip(names, said, strict=True))


def _attached(path: Path) -> dict[str, str]:
    try:
        content = path.read_bytes()
    except OSError as error:
        complain(f"{path} cannot be read: {error.strerror}")
        raise typer.Exit(REFUSED) from None
    return {"filename": path.name, "content": base64.b64encode(content).decode()}


def good(reply: Reply) -> Reply:
    """Give a reply that is one, or end the command with what it says."""
    if reply.status < 400:
        return reply
    for line in _faults(reply):
        complain(line)
    raise typer.Exit(FAILED if reply.status in (404, 409, 429, 503) else REFUSED)


def _faults(reply: Reply) -> list[str]:
    faults = reply.body.get("errors") or [{"pointer": "", "detail": reply.body["detail"]}]
    return [f"{fault['pointer']}: {fault['detail']}".removeprefix(": ") for fault in faults]


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
        write(_line(reply.body))
        if reply.body["hint"]:
            write(f"Cure: {reply.body['hint']}")
    if not reply.body["ok"]:
        raise typer.Exit(FAILED)


def _tell(message: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        write_json(message)
    else:
        write(_line(message))


def _line(message: dict[str, Any]) -> str:
    """A message in one line: when, state, id, profile, and a sentence."""
    code = f"{message['error_code']}/{message['reason']}: " if message["error_code"] else ""
    when = message["created_at"][:19].replace("T", " ")
    return f"{when}  {message['state']:<9}  {message['id']}  {message['profile']:<12}  {code}{message['message']}"


def _details(message: dict[str, Any]) -> Iterator[str]:
    yield _line(message)
    for name in ("subject", "sender", "message_id", "expires_at", "next_attempt_at", "hint"):
        if message.get(name):
            yield f"  {name}: {message[name]}"
    for recipient in message["recipients"]:
        code = f"  {recipient['error_code']}/{recipient['reason']}" if recipient["error_code"] else ""
        yield f"  {recipient['address']}: {recipient['state']}{code}"
    for attempt in message["attempts"]:
        end = f"{attempt['error_code']}/{attempt['reason']}" if attempt["error_code"] else "sent"
        ms = "under way" if attempt["duration_ms"] is None else f"{attempt['duration_ms']:.0f} ms, {end}"
        yield f"  attempt {attempt['number']}, {attempt['started_at'][:19]}, {attempt['profile']}: {ms}"
        for said in attempt["transcript"] or []:
            yield f"    {said['ms']:>8.1f} {said['dir']}: {said['line']}"
