"""POST /send: the status says whether we have it, `ok` whether all is well; one flat shape, whatever came of it."""

import email
import email.policy
from datetime import UTC, datetime, timedelta
from email.message import EmailMessage
from pathlib import Path
from uuid import UUID

import pytest

from tests.api.shapes import JSON, PROBLEM_JSON, flat
from tests.support.app import MESSAGE, Application, running
from tests.support.relay import Close, Relay


async def test_a_sent_message_is_200_and_ok(service: Application) -> None:
    said = flat(await service.send(), status=200)
    assert (said["state"], said["ok"], said["final"], said["will_retry"]) == ("sent", True, True, False)
    assert (said["error_code"], said["reason"], said["class"], said["hint"]) == (None, None, None, None)
    assert (said["smtp_code"], said["enhanced_code"], said["next_attempt_at"]) == (None, None, None)
    assert (said["accepted"], said["rejected"], said["warnings"]) == (["ann@theirs.test"], [], [])
    assert (said["profile"], said["attempts"], said["sandbox"]) == ("relay", 1, False)
    assert said["message"] == "sent to 1 recipient through relay"
    assert len(service.relay.mails) == 1


async def test_ids_and_instants_are_of_the_promised_form(service: Application) -> None:
    before = datetime.now(UTC)
    said = flat(await service.send(expires_in=600), status=200)
    created, expires = (datetime.fromisoformat(said[name]) for name in ("created_at", "expires_at"))
    assert UUID(said["id"]).version == 7
    assert said["message_id"] == f"<{said['id']}@ours.test>"
    assert before - timedelta(milliseconds=1) <= created <= datetime.now(UTC)
    assert expires - created == timedelta(seconds=600)
    assert said["created_at"].endswith("Z")


async def test_an_answer_about_a_sent_message_has_no_location(service: Application) -> None:
    answer = await service.send()
    assert not {"location", "retry-after", "preference-applied"} & set(answer.headers)
    assert answer.headers["content-type"] == JSON


async def test_a_deferred_message_is_202_and_says_when_it_is_tried_again(service: Application) -> None:
    service.relay.on("RCPT", "450 4.2.0 Mailbox busy")
    asked = datetime.now(UTC)
    answer = await service.send()
    said = flat(answer, status=202)
    assert (said["state"], said["ok"], said["final"], said["will_retry"]) == ("deferred", False, False, True)
    assert (said["error_code"], said["reason"], said["class"]) == ("EENVELOPE", "recipient_deferred", "temporary")
    assert (said["smtp_code"], said["enhanced_code"]) == (450, "4.2.0")
    assert said["hint"]
    assert "450 4.2.0 Mailbox busy" in said["message"]
    assert (said["accepted"], said["rejected"]) == ([], [])
    assert answer.headers["location"] == f"messages/{said['id']}"
    wait = datetime.fromisoformat(said["next_attempt_at"]) - asked
    assert timedelta(seconds=26) < wait < timedelta(seconds=36)  # 30 s, jitter 10 %
    assert abs(int(answer.headers["retry-after"]) - wait.total_seconds()) < 3


async def test_a_location_leads_to_the_message(service: Application) -> None:
    service.relay.on("RCPT", "450 4.2.0 Mailbox busy")
    answer = await service.send()
    found = await service.client.get(answer.headers["location"])
    assert found.status_code == 200
    assert found.json()["id"] == answer.json()["id"]


async def test_a_configuration_failure_is_202_and_names_the_setting(tmp_path: Path) -> None:
    credentials = {"MAILCHUTE_PROFILES__RELAY__USERNAME": "bot", "MAILCHUTE_PROFILES__RELAY__PASSWORD": "wrong"}
    async with running(tmp_path, Relay(auth=["PLAIN"]), environ=credentials) as service:
        answer = await service.send()
    said = flat(answer, status=202)
    assert (said["state"], said["ok"], said["class"]) == ("deferred", False, "configuration")
    assert (said["error_code"], said["reason"], said["smtp_code"]) == ("EAUTH", "auth_rejected", 535)
    assert "MAILCHUTE_PROFILES__RELAY__USERNAME" in said["hint"]  # in the words in which it was set
    assert "will be sent once the profile works, until " in said["message"]
    assert "location" in answer.headers


async def test_a_failed_message_is_424_with_the_flat_shape_and_a_problem(service: Application) -> None:
    service.relay.on("RCPT", "550 5.1.1 No such mailbox")
    answer = await service.send()
    said = flat(answer, status=424)
    assert (said["state"], said["ok"], said["final"], said["will_retry"]) == ("failed", False, True, False)
    assert (said["error_code"], said["reason"], said["class"]) == ("EENVELOPE", "mailbox_unknown", "permanent")
    assert (said["smtp_code"], said["enhanced_code"]) == (550, "5.1.1")
    assert said["type"] == "/errors/EENVELOPE"
    assert said["status"] == 424
    assert said["detail"] == said["message"]
    assert said["title"]
    assert said["hint"]
    assert "location" not in answer.headers
    assert said["rejected"] == [
        {
            "address": "ann@theirs.test",
            "error_code": "EENVELOPE",
            "reason": "mailbox_unknown",
            "smtp_code": 550,
            "enhanced_code": "5.1.1",
            "message": said["rejected"][0]["message"],
        }
    ]
    assert "550 5.1.1 No such mailbox" in said["rejected"][0]["message"]


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        (None, PROBLEM_JSON),
        ("*/*", PROBLEM_JSON),
        ("text/html", PROBLEM_JSON),
        (JSON, JSON),
        ("application/json, text/plain, */*", JSON),
        ("Application/JSON", JSON),
        ("application/json;q=0.9, text/html;q=0.1", JSON),
        (f"{JSON}, {PROBLEM_JSON}", PROBLEM_JSON),
        (PROBLEM_JSON, PROBLEM_JSON),
        ("application/json-seq", PROBLEM_JSON),
    ],
)
@pytest.mark.parametrize("status", [424, 422])
async def test_a_problem_is_plain_json_only_for_who_names_only_that(
    accept: str | None, expected: str, status: int, service: Application
) -> None:
    service.relay.on("RCPT", "550 5.1.1 No such mailbox")
    client = service.visitor()
    client.headers.pop("accept")
    headers = {} if accept is None else {"Accept": accept}
    answer = await client.post("/send", json=MESSAGE if status == 424 else {}, headers=headers)
    assert answer.status_code == status
    assert answer.headers["content-type"] == expected


async def test_a_partly_sent_message_is_200_and_not_ok(service: Application) -> None:
    service.relay.on("RCPT", "550 5.1.1 No such mailbox", match="bob@")
    said = flat(await service.send(to=["ann@theirs.test", "bob@theirs.test"]), status=200)
    assert (said["state"], said["ok"], said["final"]) == ("partial", False, True)
    assert said["accepted"] == ["ann@theirs.test"]
    assert [(r["address"], r["smtp_code"]) for r in said["rejected"]] == [("bob@theirs.test", 550)]
    assert said["message"].startswith("sent to 1 of 2 recipients; ")
    assert said["error_code"] == "EENVELOPE"


async def test_a_recipient_that_was_accepted_is_told_while_another_is_deferred(service: Application) -> None:
    service.relay.on("RCPT", "451 4.3.0 Later", match="bob@")
    said = flat(await service.send(to=["ann@theirs.test", "bob@theirs.test"]), status=202)
    assert (said["state"], said["ok"], said["accepted"]) == ("deferred", False, ["ann@theirs.test"])


async def test_a_lost_verdict_is_202_in_doubt_and_not_ok(service: Application) -> None:
    service.relay.on("CONTENT", Close())
    answer = await service.send()
    said = flat(answer, status=202)
    assert (said["state"], said["ok"], said["final"], said["will_retry"]) == ("in_doubt", False, True, False)
    assert (said["error_code"], said["reason"], said["class"]) == ("EINDOUBT", "outcome_unknown", "unknown")
    assert (said["accepted"], said["rejected"], said["next_attempt_at"]) == ([], [], None)
    since = (await service.look_up(said["id"]))["attempts"][0]["started_at"][:19]
    assert f"look for {said['message_id']} in the log of 127.0.0.1 from {since}Z on before you send" in said["hint"]
    assert answer.headers["location"] == f"messages/{said['id']}"
    assert "retry-after" not in answer.headers


async def test_each_recipient_gets_it_once_however_often_it_is_named(service: Application) -> None:
    said = flat(
        await service.send(
            to="ann@theirs.test, Ann <ANN@theirs.test>; bob@theirs.test",
            cc=["bob@Theirs.TEST", {"email": "carl@theirs.test", "name": "Carl"}],
            bcc=["carl@theirs.test", "ann@theirs.test"],
        ),
        status=200,
    )
    assert said["accepted"] == ["ann@theirs.test", "bob@theirs.test", "carl@theirs.test"]
    assert service.relay.mails[0].rcpt_to == said["accepted"]


async def test_bcc_is_in_the_envelope_and_not_in_the_bytes(service: Application) -> None:
    said = flat(await service.send(bcc="eve@hidden.test"), status=200)
    raw = (await service.client.get(f"/messages/{said['id']}/raw")).content
    assert service.relay.mails[0].rcpt_to == ["ann@theirs.test", "eve@hidden.test"]
    for source in (raw, service.relay.mails[0].content):
        assert b"hidden.test" not in source
        assert b"bcc" not in source.lower()


async def test_a_message_to_bcc_alone_names_nobody(service: Application) -> None:
    flat(await service.send(to=None, bcc="eve@hidden.test"), status=200)
    mail = service.relay.mails[0]
    assert mail.rcpt_to == ["eve@hidden.test"]
    assert b"hidden.test" not in mail.content


async def test_everything_asked_for_arrives(service: Application) -> None:
    flat(
        await service.send(
            {
                "from": {"email": "bot@ours.test", "name": "Zoë, the bot"},
                "to": [{"email": "ann@theirs.test", "name": "Ann"}],
                "cc": "Bob <bob@theirs.test>",
                "reply_to": "desk@ours.test",
                "subject": "Grüße aus Köln",
                "text": "Schöne Grüße\n.\n",
                "html": "<p>Schöne Grüße</p>",
                "headers": {"X-Ticket": "4711"},
            }
        ),
        status=200,
    )
    mail = parsed(service.relay.mails[0].content)
    assert str(mail["From"]) == '"Zoë, the bot" <bot@ours.test>'
    assert str(mail["To"]) == "Ann <ann@theirs.test>"
    assert str(mail["Cc"]) == "Bob <bob@theirs.test>"
    assert str(mail["Reply-To"]) == "desk@ours.test"
    assert str(mail["Subject"]) == "Grüße aus Köln"
    assert str(mail["X-Ticket"]) == "4711"
    assert body(mail, "plain") == ["Schöne Grüße", "."]
    assert body(mail, "html") == ["<p>Schöne Grüße</p>"]


@pytest.mark.parametrize("empty", ["", None])
async def test_empty_and_null_equal_absent_in_every_optional_field(empty: str | None, service: Application) -> None:
    names = ["cc", "bcc", "reply_to", "subject", "html", "headers", "profile", "tags", "metadata", "expires_in"]
    # Sent as it stands: `Application.send` leaves out what is None.
    answer = await service.client.post("/send", json={**MESSAGE, **dict.fromkeys(names, empty)})
    flat(answer, status=200)


@pytest.mark.parametrize(
    ("asked", "of_profile", "default", "expected"),
    [
        ("asked@ours.test", "profile@ours.test", "default@ours.test", "asked@ours.test"),
        (None, "profile@ours.test", "default@ours.test", "profile@ours.test"),
        ("", "profile@ours.test", "", "profile@ours.test"),
        (None, "", "default@ours.test", "default@ours.test"),
    ],
)
async def test_from_is_the_requests_then_the_profiles_then_the_default(
    asked: str | None, of_profile: str, default: str, expected: str, tmp_path: Path
) -> None:
    environ = {"MAILCHUTE_PROFILES__RELAY__FROM": of_profile, "MAILCHUTE_DEFAULT_FROM": default}
    async with running(tmp_path, environ=environ) as service:
        flat(await service.client.post("/send", json={**MESSAGE, "from": asked}), status=200)
        mail = service.relay.mails[0]
    assert mail.mail_from == expected
    assert f"\r\nFrom: {expected}\r\n".encode() in mail.content


async def test_the_envelope_may_be_of_another_sender_than_from(tmp_path: Path) -> None:
    async with running(tmp_path, environ={"MAILCHUTE_PROFILES__RELAY__ENVELOPE_FROM": "bounces@ours.test"}) as service:
        flat(await service.send(), status=200)
        mail = service.relay.mails[0]
    assert mail.mail_from == "bounces@ours.test"
    assert b"From: Bot <bot@ours.test>" in mail.content


async def test_a_profile_is_chosen_by_its_name(tmp_path: Path) -> None:
    async with Relay() as other:
        environ = {
            "MAILCHUTE_PROFILES__OTHER__HOST": other.host,
            "MAILCHUTE_PROFILES__OTHER__PORT": str(other.port),
            "MAILCHUTE_PROFILES__OTHER__HELO_NAME": "ours.test",
            "MAILCHUTE_DEFAULT_PROFILE": "relay",
        }
        async with running(tmp_path, environ=environ) as service:
            assert flat(await service.send(profile="other"), status=200)["profile"] == "other"
            assert len(other.mails) == 1
            assert service.relay.mails == []


async def test_the_sandbox_says_that_nothing_is_sent(tmp_path: Path) -> None:
    async with running(tmp_path, sandbox=True) as service:
        said = flat(await service.send(), status=200)
    assert (said["sandbox"], said["ok"], said["profile"]) == (True, True, "sandbox")
    assert said["message"].startswith("kept in the sandbox, not sent")


def parsed(content: bytes) -> EmailMessage:
    return email.message_from_bytes(content, policy=email.policy.default)


def body(mail: EmailMessage, kind: str) -> list[str]:
    part = mail.get_body((kind,))
    assert part is not None
    return str(part.get_content()).splitlines()


async def test_the_null_sender_is_mail_from_with_nothing_in_its_brackets(tmp_path: Path) -> None:
    environ = {"MAILCHUTE_PROFILES__RELAY__ENVELOPE_FROM": "<>"}
    async with running(tmp_path, Relay(), environ=environ) as service:
        said = flat(await service.send(), status=200)
        found = (await service.client.get(f"/messages/{said['id']}")).json()
        dry = (await service.send(dry_run=True)).json()
        [listed] = (await service.client.get("/messages", params={"sender": "<>"})).json()["data"]
        profile = (await service.client.get("/profiles/relay")).json()
    [mail] = service.relay.mails
    assert mail.mail_from == ""
    assert found["sender"] == dry["envelope"]["from"] == profile["envelope_from"] == "<>"
    assert listed["id"] == said["id"]
    assert b"From: Bot <bot@ours.test>\r\n" in mail.content


async def test_verify_asks_the_null_senders_profile_for_whom_the_settings_name(tmp_path: Path) -> None:
    environ = {
        "MAILCHUTE_PROFILES__RELAY__ENVELOPE_FROM": "<>",
        "MAILCHUTE_PROFILES__RELAY__FROM": "Bot <bot@ours.test>",
    }
    async with running(tmp_path, Relay(), environ=environ) as service:
        answer = (await service.client.post("/profiles/relay/verify")).json()
        commands = [line for session in service.relay.sessions for line in session.commands]
    assert answer["ok"], answer
    assert "MAIL FROM:<>" in commands
    assert "RCPT TO:<bot@ours.test>" in commands


async def test_an_attachment_or_an_invitation_alone_is_sent(service: Application) -> None:
    file = {"filename": "a.pdf", "content": "QUJD"}
    invitation = {"method": "REQUEST", "content": "BEGIN:VCALENDAR\nMETHOD:REQUEST\nEND:VCALENDAR\n"}
    for fields in ({"attachments": [file]}, {"calendar": invitation}):
        flat(await service.send(text=None, **fields), status=200)
    assert len(service.relay.mails) == 2
