"""kill -9 at the three moments that matter: after the handover, before it, and between two tries.

RFC 1047: what was let go without a verdict must not be sent again behind the caller's back; RFC 5321 §4.2.5: what
was answered with 2xx must not be lost.
"""

import asyncio
import signal
from datetime import UTC, datetime

import pytest

from tests.support.relay import EXTENSIONS, Relay, Stall, Wait
from tests.support.service import Service

NO_PIPELINING = tuple(extension for extension in EXTENSIONS if extension != "PIPELINING")


def through(relay: Relay, **settings: str) -> dict[str, str]:
    """Give the settings that send through this relay."""
    return {"SMTP_HOST": relay.host, "SMTP_PORT": f"{relay.port}", **settings}


class TestAfterTheHandover:
    async def test_a_message_whose_verdict_was_lost_is_in_doubt_and_not_sent_again(self) -> None:
        async with Relay() as relay:
            relay.on("CONTENT", Stall(), times=1)
            async with Service(through(relay)) as service:
                accepted = await service.send(subject="once", prefer="respond-async")
                assert (accepted.status_code, accepted.json()["final"]) == (202, False)
                await relay.mail()
                await service.kill()
                async with Service(through(relay), folder=service.folder) as second:
                    found = await second.message(accepted.json()["id"])
                    assert (found["state"], found["final"], found["ok"]) == ("in_doubt", True, False)
                    assert (found["error_code"], found["reason"]) == ("EINDOUBT", "outcome_unknown")
                    assert found["class"] == "unknown"
                    assert f"look for {found['message_id']} in the log of {relay.host} from 2" in found["hint"]
                    assert found["next_attempt_at"] is None
                    assert [recipient["state"] for recipient in found["recipients"]] == ["in_doubt"]
                    (attempt,) = found["attempts"]
                    assert (attempt["handover"], attempt["reason"]) == (True, "outcome_unknown")
                    await second.logged("delivery.in_doubt", message_id=found["id"])

                    later = await second.send(subject="later")
                    assert later.json()["state"] == "sent"
                    assert relay.subjects == ["once", "later"]
                    assert "in_doubt" in (await second.http.get("/health")).text

    async def test_a_verdict_that_came_while_the_process_was_frozen_counts_though_its_time_was_over(self) -> None:
        """A machine that was asleep or overloaded finds the 250 and the end of its patience in the same moment."""
        verdict = asyncio.Event()
        async with Relay() as relay:
            relay.on("CONTENT", (Wait(verdict), "250 2.0.0 Ok: queued as R1"))
            async with Service(through(relay, MAILCHUTE_PROFILES__DEFAULT__TIMEOUTS__CONTENT="1")) as service:
                id_ = (await service.send(prefer="respond-async")).json()["id"]
                await relay.mail()
                service.process.send_signal(signal.SIGSTOP)
                verdict.set()
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(service.process.wait(), 1.5)
                service.process.send_signal(signal.SIGCONT)
                await service.logged("delivery.sent", message_id=id_)
        assert len(relay.mails) == 1


class TestBeforeTheHandover:
    async def test_a_message_that_was_not_let_go_is_sent_after_the_restart_and_once(self) -> None:
        """Without PIPELINING no mark is begun before the envelope is through."""
        async with Relay(extensions=NO_PIPELINING) as relay:
            relay.on("RCPT", Stall(), times=1)
            async with Service(through(relay)) as service:
                accepted = await service.send(subject="once", prefer="respond-async")
                assert accepted.status_code == 202
                id_ = accepted.json()["id"]
                await relay.seen("RCPT")
                await service.kill()
                async with Service(through(relay), folder=service.folder) as second:
                    restarted = datetime.now(UTC)
                    await second.logged("delivery.sent", message_id=id_)
                    found = await second.message(id_)
                    assert (found["state"], found["ok"], found["error_code"]) == ("sent", True, None)
                    first, last = found["attempts"]
                    assert (first["number"], first["reason"]) == (1, "worker_crashed")
                    assert (first["handover"], last["handover"]) == (False, True)
                    assert (last["number"], last["error_code"]) == (2, None)
                    again_after = datetime.fromisoformat(last["started_at"]) - restarted
                    assert again_after.total_seconds() < 5, "not when the schedule says, but at once"
        assert relay.subjects == ["once"]

    async def test_all_that_was_answered_with_202_is_sent(self) -> None:
        async with Relay(extensions=NO_PIPELINING) as relay:
            relay.on("MAIL", Stall(), times=10)
            async with Service(through(relay, MAILCHUTE_PROFILES__DEFAULT__MAX_CONNECTIONS="2")) as service:
                answers = [await service.send(subject=f"no. {n}", prefer="respond-async") for n in range(20)]
                assert {answer.status_code for answer in answers} == {202}
                await relay.seen("MAIL", 2)
                await service.kill()
                relay.on("MAIL", "250 2.1.0 Ok")
                async with Service(through(relay), folder=service.folder) as second:
                    for answer in answers:
                        await second.logged("delivery.sent", message_id=answer.json()["id"])
        assert sorted(relay.subjects) == sorted(f"no. {n}" for n in range(20))


class TestOneThatCrashesItsWorker:
    async def test_it_is_given_up_the_fifth_time_in_a_row_and_its_neighbour_goes_on(self) -> None:
        async with Relay(extensions=NO_PIPELINING) as relay:
            relay.on("MAIL", Stall(), match="poison@")
            folder, poison, neighbour = None, "", ""
            async with Service(through(relay)) as first:
                folder = first.folder
                poison = (await first.send(**{"from": "poison@ours.test"}, prefer="respond-async")).json()["id"]
                await relay.seen("MAIL")
                for crashes in range(1, 5):
                    await first.kill() if crashes == 1 else None
                    async with Service(through(relay), folder=folder) as again:
                        found = await again.message(poison)
                        assert [attempt["reason"] for attempt in found["attempts"][:crashes]] == [
                            "worker_crashed"
                        ] * crashes
                        neighbour = neighbour or (await again.send()).json()["state"]
                        await relay.seen("MAIL", crashes + 2)
                async with Service(through(relay), folder=folder) as last:
                    found = await last.message(poison)
            assert (found["state"], found["final"], found["class"]) == ("failed", True, "permanent")
            assert (found["error_code"], found["reason"], len(found["attempts"])) == ("EMESSAGE", "worker_crashed", 5)
            assert neighbour == "sent"
            assert relay.subjects == ["Order 4711"]


class TestBetweenTwoTries:
    async def test_a_deferred_message_is_tried_again_by_the_schedule(self) -> None:
        async with Relay() as relay:
            relay.on("RCPT", "451 4.2.0 Try later", times=1)
            settings = through(relay, MAILCHUTE_RETRY__SCHEDULE="1s")
            async with Service(settings) as service:
                answer = await service.send(subject="later")
                deferred = answer.json()
                assert (answer.status_code, deferred["state"]) == (202, "deferred")
                assert (deferred["will_retry"], deferred["smtp_code"]) == (True, 451)
                await service.kill()
                async with Service(settings, folder=service.folder) as second:
                    await second.logged("delivery.sent", message_id=deferred["id"])
                    found = await second.message(deferred["id"])
                    assert (found["state"], len(found["attempts"])) == ("sent", 2)
                    due = datetime.fromisoformat(deferred["next_attempt_at"])
                    assert datetime.fromisoformat(found["attempts"][1]["started_at"]) >= due
        assert relay.subjects == ["later"]

    async def test_what_failed_for_good_stays_failed(self) -> None:
        async with Relay() as relay:
            relay.on("RCPT", "550 5.1.1 User unknown")
            async with Service(through(relay)) as service:
                answer = await service.send()
                assert (answer.status_code, answer.json()["state"]) == (424, "failed")
                await service.kill()
                async with Service(through(relay), folder=service.folder) as second:
                    found = await second.message(answer.json()["id"])
                    assert (found["state"], len(found["attempts"])) == ("failed", 1)
        assert relay.connections == 1
