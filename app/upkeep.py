"""What the command line does for upkeep: pause, resume, backup, erase, vacuum; with or without a running service."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated
from urllib.parse import quote

import typer

from app.commands import FAILED, good, good_settings, in_plain_words, speaking
from app.operator import NoAnswer, ask, no_service
from app.options import AsJson, examples
from app.rendering import local_with_zone
from app.settings import database_of
from app.terminal import complain, note, write, write_json

Names = Annotated[list[str], typer.Argument(help="Names of profiles.", metavar="PROFILE...")]

upkeep = typer.Typer(rich_markup_mode=None)


@upkeep.command(epilog=examples("pause default"))
def pause(profiles: Names) -> None:
    """Hold the mail of profiles back.

    Nothing more is begun through them until they are resumed, across restarts too.
    """
    _do_to_each("pause", profiles)


@upkeep.command(epilog=examples("resume default"))
def resume(profiles: Names) -> None:
    """Send again what waits for profiles."""
    _do_to_each("resume", profiles)


def _do_to_each(act: str, profiles: list[str]) -> None:
    with speaking(good_settings()) as service:
        for name in profiles:
            since = good(service.post(f"/profiles/{quote(name, safe='')}/{act}")).body["paused_at"]
            write(f"{name}: paused since {local_with_zone(since)}" if since else f"{name}: not paused")


@upkeep.command(epilog=examples("backup /var/backups/mailchute.db"))
def backup(
    file: Annotated[Path, typer.Argument(help="A new file; the service writes it, as its own user.")],
    *,
    as_json: AsJson = False,
) -> None:
    """Copy the database while it is in use.

    The copy is whole, and of one moment.
    """
    with speaking(good_settings(), saves=True) as service:
        reply = good(service.post("/backup", {"file": str(file.absolute())}))
    if as_json:
        write_json(reply.body)
    else:
        write(f"{reply.body['file']}: {reply.body['bytes']:,} bytes")


@upkeep.command(epilog=examples("erase ann@example.org"))
def erase(
    address: Annotated[str, typer.Argument(help="Whose.")],
    *,
    as_json: AsJson = False,
) -> None:
    """Forget an address.

    And the content of what was sent to it or from it and has ended. Exit code 1: not all has.
    """
    with speaking(good_settings()) as service:
        said = good(service.post("/erase", {"address": address})).body
    if as_json:
        write_json(said)
    else:
        write(f"{said['erased']} {_messages(said['erased'])} erased")
    if said["live"]:
        complain(
            f"{said['live']} {_messages(said['live'])} left as they are, since they have not ended: look at them "
            f"(mailchute list --to {address}; --from), cancel or resolve them, then erase again"
        )
        raise typer.Exit(FAILED)


@upkeep.command(epilog=examples("vacuum"))
def vacuum() -> None:
    """Give unused space back to the disk.

    Writes the database file anew, so that no trace of what was deleted stays. Whoever sends waits meanwhile.
    """
    with speaking(good_settings()) as service:
        said = good(service.post("/vacuum")).body
    write(f"{said['bytes_before']:,} bytes before, {said['bytes']:,} now")


@upkeep.command(epilog=examples("reload"))
def reload() -> None:
    """Have the running service read its settings again.

    As SIGHUP does. Exit code 2: they cannot work, and the old ones still apply.
    """
    with in_plain_words():
        # The other settings are the service's to judge; secrets may not be readable here (LoadCredential=).
        database = database_of(os.environ)
        reply = ask(database, "POST", "/reload")
        if reply is None:
            raise NoAnswer(f"{no_service(database)}: there is nothing to reload")
    for warning in good(reply).body["warnings"]:
        note(f"warning: {warning}")
    write(f"Reloaded: profiles {', '.join(reply.body['profiles'])}")


def _messages(count: int) -> str:
    return "message" if count == 1 else "messages"
