"""What the command line does to messages that were accepted: retry, cancel, resolve; to those named, or all that match.

All that match are counted first, and nothing is changed before the operator confirms: at a terminal by answering,
elsewhere by --yes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from enum import StrEnum
from typing import Annotated
from urllib.parse import quote

import typer

from app.commands import FAILED, REFUSED, good, good_settings, speaking, tell
from app.operator import NoAnswer, Reply, Service
from app.options import (
    AsJson,
    ErrorCodeOption,
    OfProfile,
    OfRecipient,
    Sender,
    Since,
    State,
    Tag,
    Until,
    Words,
    examples,
    filters,
)
from app.settings import Settings
from app.terminal import agreed, complain, write, write_json

Ids = Annotated[list[str] | None, typer.Argument(help="Messages; or name a filter.", metavar="[ID]...")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do it to all that match, without asking.")]

STEP = 100  # messages a request of a bulk act

acting = typer.Typer(rich_markup_mode=None)


class Resolution(StrEnum):
    SENT = "sent"
    FAILED = "failed"


@acting.command(epilog=examples("retry 01a22c67-553b-7ffe-a0dc-fe1d893313ca", "retry --error-code EAUTH --since 24h"))
def retry(
    ids: Ids = None,
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
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Send messages again now.

    What waits, was refused or has expired; what is in doubt only by id or --state in_doubt.
    """
    which = filters(state, error_code, profile, sender, recipient, tag, since, until, words)
    _act(good_settings(), "retry", ids or [], which, yes=yes, as_json=as_json)


@acting.command(epilog=examples("cancel 01a22c67-553b-7ffe-a0dc-fe1d893313ca", "cancel --state deferred --tag news"))
def cancel(
    ids: Ids = None,
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
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Cancel what is not sent yet."""
    which = filters(state, error_code, profile, sender, recipient, tag, since, until, words)
    _act(good_settings(), "cancel", ids or [], which, yes=yes, as_json=as_json)


@acting.command(epilog=examples("list --state in_doubt", "resolve 01a22c67-553b-7ffe-a0dc-fe1d893313ca --as sent"))
def resolve(
    ids: Annotated[list[str], typer.Argument(help="Messages in doubt.", metavar="ID...")],
    *,
    outcome: Annotated[
        Resolution, typer.Option("--as", help="What the relay's log says became of them.", metavar="sent|failed")
    ],
    as_json: AsJson = False,
) -> None:
    """Settle messages in doubt.

    Look for their Message-ID in the relay's log first.
    """
    with speaking(good_settings()) as service:
        _each(ids, lambda id_: service.post(f"{_path(id_)}/resolve", {"as": outcome.value}), as_json=as_json)


def _act(
    settings: Settings, act: str, ids: list[str], which: dict[str, str | None], *, yes: bool, as_json: bool
) -> None:
    if bool(ids) == any(which.values()):
        complain(f"name messages to {act}, or a filter such as --state deferred, and not both")
        raise typer.Exit(REFUSED)
    with speaking(settings) as service:
        if ids:
            wait = {"Prefer": "respond-async"} if not service.is_running else {}  # our own process has no sender

            def do(id_: str) -> Reply:
                return service.post(f"{_path(id_)}/{act}", headers=wait)

            _each(ids, do, as_json=as_json, must_be_ok=act == "retry")
            return
        if not yes:
            _ask_before(service, act, which)
        count = _do_to_all(service, act, which)
    if as_json:
        write_json({"count": count})
    else:
        write(f"{_messages(count)} {_DONE[act]}")


_DONE = {"retry": "to be sent again", "cancel": "cancelled"}


def _each(ids: list[str], do: Callable[[str], Reply], *, as_json: bool, must_be_ok: bool = False) -> None:
    """Act on each message; exit code 1 where one of them would not have it."""
    is_well = True
    for id_ in ids:
        reply = do(id_)
        is_message = isinstance(reply.body, dict) and "state" in reply.body
        if as_json or is_message:
            tell(reply.body, as_json=as_json)
        else:
            complain(f"{id_}: {reply.body['detail']}")
        is_well &= is_message and (reply.body["ok"] or not must_be_ok)
    if not is_well:
        raise typer.Exit(FAILED)


def _ask_before(service: Service, act: str, which: dict[str, str | None]) -> None:
    """Show how many it would be; end the command unless the operator confirms."""
    count = _do_to_all(service, act, {**which, "dry_run": "true"})
    if count == 0:
        return
    if not sys.stdin.isatty():
        complain(
            f"{act} would act on {_messages(count)}: repeat it with --yes, since there is no terminal to confirm at"
        )
        raise typer.Exit(REFUSED)
    if not agreed(f"{act.capitalize()} {_messages(count)}?"):
        complain("nothing was done")
        raise typer.Exit(FAILED)


def _do_to_all(service: Service, act: str, which: dict[str, str | None]) -> int:
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    count, cursor = 0, None
    columns = (SpinnerColumn(), TextColumn("{task.description} {task.completed:,.0f}"), TimeElapsedColumn())
    console = Console(stderr=True)
    verb = "count" if "dry_run" in which else act
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task(verb, total=None)
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


def _path(id_: str) -> str:
    return f"/messages/{quote(id_, safe='')}"


def _messages(count: int) -> str:
    return "1 message" if count == 1 else f"{count:,} messages"
