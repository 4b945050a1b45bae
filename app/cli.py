"""The command: serve, migrate, openapi. Exit codes: 0 done, 1 failed, 2 the settings cannot work as they stand."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from app.mail.errors import ConfigError
from app.settings import LogFormat, Settings, load

commands = typer.Typer(
    name="mailchute",
    help="Sends e-mail through your relay, and remembers every attempt and every error.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Run the command line."""
    commands()


@commands.command()
def serve(
    *,
    check: Annotated[bool, typer.Option("--check", help="Validate the settings, then exit.")] = False,
) -> None:
    """Serve HTTP; settings come from the environment and mailchute.toml."""
    settings = _settings()
    if check:
        typer.echo(f"The settings are good: {_summary(settings)}")
        return
    _serve(settings)


@commands.command()
def migrate() -> None:
    """Bring the database file to this version's schema (serve does it by itself)."""
    from app.store.database import SCHEMA, Lock, migrate

    settings = _settings()
    try:
        lock = Lock(settings.database)
        try:
            migrate(settings.database)
        finally:
            lock.release()
    except ConfigError as error:
        _refuse(error)
    typer.echo(f"{settings.database} is at schema {SCHEMA}")


@commands.command()
def openapi(
    *,
    check: Annotated[Path | None, typer.Option("--check", help="Compare with this file in place of writing.")] = None,
) -> None:
    """Write the OpenAPI document to stdout."""
    import json

    from app.main import create_api
    from app.runtime import Runtime

    document = create_api(Runtime(load({}, files=()))).openapi()
    text = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
    if check is None:
        sys.stdout.write(text)
    elif not check.is_file() or check.read_text("utf-8") != text:
        typer.echo(f"{check} is not what the code serves: run make openapi", err=True)
        raise typer.Exit(1)


def _settings() -> Settings:
    try:
        return load(os.environ)
    except ConfigError as error:
        _refuse(error)


def _refuse(error: Exception) -> NoReturn:
    for line in str(error).splitlines():
        typer.echo(f"mailchute: {line}", err=True)
    raise typer.Exit(2)


def _summary(settings: Settings) -> str:
    names = ", ".join(
        f"{profile.name} ({profile.host}:{profile.port}, tls {profile.tls}, "
        f"{'AUTH as ' + profile.username if profile.wants_login else 'no AUTH'})"
        for profile in settings.profiles.values()
    )
    return f"profiles {names}" if names else "the sandbox, where nothing leaves this machine"


def _serve(settings: Settings) -> None:
    from app.serving import serve
    from app.telemetry import set_up_logs

    as_json = settings.log is LogFormat.JSON or (settings.log is None and not sys.stderr.isatty())
    set_up_logs(as_json=as_json)
    try:
        serve(settings, say=typer.echo)
    except ConfigError as error:
        _refuse(error)
