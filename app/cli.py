"""The command: serve, health, doctor, profiles, errors, migrate, openapi, and those of `commands.py` and `upkeep.py`.

Exit codes: 0 done and all is well (for health: it can take mail); 1 failed, or kept and not well; 2 the settings or
the command cannot work as they stand.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from app import __version__
from app.acting import acting
from app.commands import faults_of, good, good_settings, in_plain_words, messages, refuse
from app.mail.errors import ConfigError, StoreUnavailable
from app.mail.profile import Profile
from app.options import examples
from app.rendering import local_with_zone
from app.settings import LogFormat, Settings, load
from app.terminal import complain, note, set_up_streams, write, write_json
from app.upkeep import upkeep

HEALTH_SECONDS = 4.0  # less than the Dockerfile's HEALTHCHECK gives, so that the reason is told

commands = typer.Typer(
    name="mailchute",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
commands.add_typer(messages)
commands.add_typer(acting)
commands.add_typer(upkeep)


def main() -> None:
    """Run the command line."""
    set_up_streams()
    commands()


def _version(*, asked: bool) -> None:
    if asked:
        write(f"mailchute {__version__}")
        raise typer.Exit


@commands.callback()
def options_of_all(
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Say which version this is.")
    ] = False,
) -> None:
    """Sends e-mail through your relay, and remembers every attempt and every error."""


@commands.command(epilog=examples("serve", "serve --check"))
def serve(
    *,
    check: Annotated[bool, typer.Option("--check", help="Validate the settings, then exit.")] = False,
    hold: Annotated[
        bool, typer.Option("--hold", help="Pause every profile first: nothing is sent till resumed.")
    ] = False,
) -> None:
    """Serve HTTP.

    Settings come from the environment and mailchute.toml.
    """
    settings = good_settings()
    if check:
        for warning in settings.warnings:
            note(f"warning: {warning}")
        write(f"The settings are good: {_summary(settings)}")
        return
    _serve(settings, hold=hold)


@commands.command(epilog=examples("health"))
def health() -> None:
    """Ask the running service whether it can take mail.

    The image's HEALTHCHECK does. Warnings do not count.
    """
    from app.operator import ask

    database = good_settings().database
    with in_plain_words():
        reply = ask(database, "GET", "/health", patience=HEALTH_SECONDS)
    if reply is None:
        _fail(f"no service is running on {database}")
    write(reply.body["status"])
    for name, found in reply.body["checks"].items():
        for check in found:
            if check["status"] != "pass":
                about = " ".join(str(check[key]) for key in ("componentId", "observedValue", "output") if key in check)
                write(f"  {check['status']} {name} {about}".rstrip())
    if reply.status != 200:
        raise typer.Exit(1)


@commands.command(epilog=examples("doctor", "doctor default --to somebody@elsewhere.example"))
def doctor(
    profiles: Annotated[list[str] | None, typer.Argument(help="Which profiles; default: all.")] = None,
    *,
    sender: Annotated[
        str | None, typer.Option("--from", help="Whom MAIL names; default: the profile's.", metavar="ADDRESS")
    ] = None,
    recipient: Annotated[
        str | None, typer.Option("--to", help="Whom RCPT names; default: the sender.", metavar="ADDRESS")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Write the diagnoses as JSON, one a line.")] = False,
) -> None:
    """Try profiles stage by stage, sending nothing.

    What works, what does not, and which setting mends it. The running service tries its own profiles; where none runs,
    this command tries those of its settings.
    """
    from app.operator import NoAnswer

    settings = good_settings()
    names = dict.fromkeys(profiles or _relays(settings))  # each once: that is one login a profile
    if not names:
        refuse(ConfigError("there is no relay to try: set SMTP_HOST to the relay's host name"))
    all_well = True
    for at, name in enumerate(names):
        try:
            found = _diagnose(settings, name, {"from": sender, "to": recipient})
        except NoAnswer as error:
            complain(str(error))
            all_well = False
            continue
        all_well = all_well and found["ok"]
        if as_json:
            write_json(found)
        else:
            write(*([""] if at else []), *_diagnosis_lines(found))
    if not all_well:
        raise typer.Exit(1)


@commands.command(epilog=examples("profiles", "profiles --json"))
def profiles(
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Write the API's answers, one JSON object a line.")] = False,
) -> None:
    """List the profiles and how they stand."""
    from app.operator import ask, no_service

    settings = good_settings()
    with in_plain_words():
        reply = ask(settings.database, "GET", "/profiles")
    if reply is None:
        note(f"{no_service(settings.database)}: these are the settings, not how the profiles stand")
    found = (
        [_as_set(settings, profile) for profile in settings.profiles.values()] if reply is None else reply.body["data"]
    )
    for profile in found:
        if as_json:
            write_json(profile)
        else:
            write(*_profile_lines(profile))
    if not found:
        write("There are none: it is the sandbox, where nothing leaves this machine.")


@commands.command(epilog=examples("errors", "errors EAUTH", "errors auth_rejected"))
def errors(
    code: Annotated[str | None, typer.Argument(help="A code (EAUTH) or a reason (auth_rejected).")] = None,
) -> None:
    """Explain error codes and reasons."""
    from app.mail.codes import CODE_OF, ErrorCode, Reason
    from app.mail.explain import CODES, EXPLANATIONS, NODEMAILER, cure, reasons_of

    if code is None:
        for each in ErrorCode:
            write(f"{each:<12}{CODES[each]}")
        write("", "mailchute errors CODE tells more.")
        return
    if code.upper() in ErrorCode.__members__:
        known = ErrorCode(code.upper())
        reasons = reasons_of(known)
    elif code.lower() in set(Reason):
        reasons = (Reason(code.lower()),)
        known = CODE_OF[reasons[0]]
    else:
        names = [*ErrorCode, *Reason]
        near = get_close_matches(code.upper(), names, n=1) or get_close_matches(code.lower(), names, n=1)
        cure_ = f"do you mean {near[0]}?" if near else "mailchute errors lists them"
        refuse(ConfigError(f"there is no error code or reason {code[:80]!r}; {cure_}"))
    write(f"{known}: {CODES[known]}")
    if known in NODEMAILER:
        write(f"nodemailer: {NODEMAILER[known]}")
    for reason in reasons:
        said = EXPLANATIONS[reason]
        write("", f"{reason} ({', '.join(said.classes)})", f"  {said.meaning}")
        write(f"  Usual causes: {'; '.join(said.causes)}.", f"  Cure: {cure(reason)}")


@commands.command(epilog=examples("migrate"))
def migrate() -> None:
    """Bring the database to this version's schema.

    `serve` does it by itself.
    """
    from app.store.database import SCHEMA, Lock, migrate

    settings = good_settings()
    try:
        lock = Lock(settings.database)
        try:
            migrate(settings.database)
        finally:
            lock.release()
    except StoreUnavailable as error:
        _fail(str(error))
    except ConfigError as error:
        refuse(error)
    write(f"{settings.database} is at schema {SCHEMA}")


@commands.command()
def openapi(
    *,
    check: Annotated[
        Path | None, typer.Option("--check", help="Compare with this file in place of writing.", metavar="FILE")
    ] = None,
) -> None:
    """Write the OpenAPI document to stdout."""
    from app.main import create_api
    from app.runtime import Runtime

    document = create_api(Runtime(load({}, files=()))).openapi()
    text = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
    if check is None:
        sys.stdout.write(text)
    elif not check.is_file() or check.read_text("utf-8") != text:
        note(f"{check} is not what the code serves: run make openapi")
        raise typer.Exit(1)


def _as_set(settings: Settings, profile: Profile) -> dict[str, Any]:
    return {
        "name": profile.name,
        "default": profile.name == settings.default_profile,
        "host": profile.host,
        "port": profile.port,
        "tls": profile.tls,
        "logs_in": profile.wants_login,
        "paused_at": None,
        "last_success_at": None,
    }


def _profile_lines(said: dict[str, Any]) -> list[str]:
    facts = [
        f"{said['host']}:{said['port']}",
        f"tls {said['tls']}",
        "with a login" if said["logs_in"] else "no AUTH",
        *(["default"] if said["default"] else []),
        *([f"paused since {local_with_zone(said['paused_at'])}"] if said["paused_at"] else []),
        *([f"last success {local_with_zone(said['last_success_at'])}"] if said["last_success_at"] else []),
    ]
    lines = [f"{said['name']}: {', '.join(facts)}"]
    if (circuit := said.get("circuit")) is not None:
        opened, trial = local_with_zone(circuit["opened_at"]), local_with_zone(circuit["next_trial_at"])
        by = f" by the attempt of message {circuit['message_id']}" if circuit["message_id"] else ""
        lines += [
            f"  circuit open since {opened}{by}, tried again at {trial}",
            f"  {circuit['error_code']}/{circuit['reason']}: {circuit['message']}",
            f"  Cure: {circuit['hint']}",
        ]
    return lines


def _fail(text: str) -> NoReturn:
    complain(text)
    raise typer.Exit(1)


def _summary(settings: Settings) -> str:
    names = ", ".join(
        f"{profile.name} ({profile.host}:{profile.port}, tls {profile.tls}, "
        f"{'AUTH as ' + profile.username if profile.wants_login else 'no AUTH'})"
        for profile in settings.profiles.values()
    )
    return f"profiles {names}" if names else "the sandbox, where nothing leaves this machine"


def _serve(settings: Settings, *, hold: bool) -> None:
    from app.serving import serve
    from app.telemetry import set_up_logs

    as_json = settings.log is LogFormat.JSON or (settings.log is None and not sys.stderr.isatty())
    set_up_logs(as_json=as_json, level=settings.log_level)
    try:
        serve(_held(settings, hold), say=_announce, read_again=lambda: _held(load(os.environ), hold))
    except StoreUnavailable as error:
        _fail(str(error))
    except ConfigError as error:
        refuse(error)


def _announce(text: str) -> None:
    write(*text.split("\n"))


def _held(settings: Settings, hold: bool) -> Settings:  # noqa: FBT001
    return replace(settings, hold=settings.hold or hold)


def _relays(settings: Settings) -> list[str]:
    """Name the running service's profiles, but for the sandbox's, which fail on purpose; ours, where none runs."""
    from app.operator import ask

    with in_plain_words():
        reply = ask(settings.database, "GET", "/profiles")
    if reply is None:
        return list(settings.profiles)
    return [profile["name"] for profile in good(reply).body["data"] if not profile["sandbox"]]


def _diagnose(settings: Settings, name: str, whom: dict[str, str | None]) -> dict[str, Any]:
    """Give a diagnosis as JSON has it; raises `NoAnswer` where there is none to be had now."""
    from urllib.parse import quote

    from app.operator import NoAnswer, ask

    try:
        reply = ask(settings.database, "POST", f"/profiles/{quote(name, safe='')}/verify", whom)
    except ConfigError as error:
        refuse(error)
    if reply is None:
        return _diagnose_here(settings, name, whom)
    if reply.status in (429, 503):
        raise NoAnswer(reply.body["detail"])
    if reply.status != 200:
        refuse(ConfigError("\n".join(faults_of(reply))))
    found: dict[str, Any] = reply.body
    return found


def _diagnose_here(settings: Settings, name: str, whom: dict[str, str | None]) -> dict[str, Any]:
    from app.api.diagnosis import shape_of
    from app.mail.address import InvalidAddress, parse_address
    from app.runtime import Runtime

    profile = settings.profiles.get(name)
    if profile is None:
        near = get_close_matches(name, settings.profiles, n=1)
        cure = f"do you mean {near[0]}?" if near else f"there are: {', '.join(settings.profiles) or 'none'}"
        refuse(ConfigError(f"there is no profile {name[:80]!r}; {cure}"))
    given: dict[str, str | None] = {}
    for option, text in whom.items():
        try:
            given[option] = parse_address(text).addr_spec if text else None
        except InvalidAddress as error:
            refuse(ConfigError(f"--{option}: {error}"))

    async def diagnose() -> dict[str, Any]:
        doctor = Runtime(settings).doctor
        return shape_of(await doctor.diagnose(profile, sender=given["from"], recipient=given["to"]))

    return asyncio.run(diagnose())


def _diagnosis_lines(found: dict[str, Any]) -> list[str]:
    lines = [f"{found['profile']} ({found['host']}:{found['port']})"]
    for stage in found["stages"]:
        ms = "" if stage["ms"] is None else f"{stage['ms']:.1f} ms"
        lines.append(f"  {stage['state']:<8}{stage['stage']:<9}{ms:>11}  {stage['message']}".rstrip())
    if found["ok"]:
        lines.append(f"All is well: {found['message']}.")
    else:
        lines.append(f"{found['error_code']}/{found['reason']} ({found['class']}): {found['message']}")
        lines.append(f"Cure: {found['hint']}")
    return lines
