"""The alert rules and the scrape configuration of deploy/prometheus, with Debian's Prometheus."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support import prometheus
from tests.support.prometheus import DEPLOY, PATIENCE, Prometheus
from tests.support.server import until
from tests.support.service import MAIL, Service

pytestmark = pytest.mark.skipif(prometheus.missing() is not None, reason=prometheus.missing() or "")

RULES = DEPLOY / "mailchute.rules.yml"
KEY = "a-key-of-the-tests-0123456789"
RELAY = 'profile="relay"'
ALERTS: dict[str, tuple[str, str]] = {  # the series that makes each fire, and its values a minute apart
    "MailchuteDown": ('up{job="mailchute"}', "1 0x10"),
    "MailchuteLoginFailed": (
        f'mailchute_attempts_total{{{RELAY},error_code="EAUTH",reason="auth_rejected"}}',
        "0x5 1x10",
    ),
    "MailchuteCircuitOpen": (f'mailchute_circuit_open{{{RELAY},reason="auth_rejected"}}', "1x10"),
    "MailchuteMailLost": (f'mailchute_messages_total{{{RELAY},state="failed"}}', "0x5 1x10"),
    "MailchuteInDoubt": ("mailchute_in_doubt", "1x10"),
    "MailchuteQueueOld": ("mailchute_queue_oldest_seconds", "901x10"),
    "MailchuteQueueLong": (f'mailchute_queue_messages{{{RELAY},state="deferred"}}', "10001x10"),
    "MailchuteRefusesMail": ('mailchute_http_request_seconds_count{route="/send",status="503"}', "0x5 1x10"),
    "MailchuteDiskShort": ("mailchute_disk_free_bytes", "4e8x20"),
    "MailchuteStoreLogGrows": ("mailchute_store_log_bytes", "3e8x20"),
}
QUIET = {  # what must not: the same figures on a good day
    'up{job="mailchute"}': "1x20",
    f'mailchute_attempts_total{{{RELAY},error_code="",reason=""}}': "0+100x20",
    f'mailchute_attempts_total{{{RELAY},error_code="EAUTH",reason="auth_rejected"}}': "3x20",
    f'mailchute_circuit_open{{{RELAY},reason=""}}': "0x20",
    f'mailchute_messages_total{{{RELAY},state="sent"}}': "0+100x20",
    f'mailchute_messages_total{{{RELAY},state="failed"}}': "7x20",
    "mailchute_in_doubt": "0x20",
    "mailchute_queue_oldest_seconds": "20x20",
    f'mailchute_queue_messages{{{RELAY},state="scheduled"}}': "50000x20",
    'mailchute_http_request_seconds_count{route="/send",status="503"}': "2x20",
    "mailchute_disk_free_bytes": "5e9x20",
    "mailchute_store_log_bytes": "4e6x20",
}


def rules() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load(RULES.read_text())["groups"]
    found: list[dict[str, Any]] = group["rules"]
    return found


def firing(folder: Path, series: dict[str, str], expected: list[str]) -> str:
    """Have promtool evaluate the rules for 20 minutes; return what it complains about."""
    test = {
        "rule_files": [str(RULES)],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": [{"series": name, "values": values} for name, values in series.items()],
                "promql_expr_test": [
                    {
                        "expr": 'count by (alertname) (ALERTS{alertstate="firing"})',
                        "eval_time": "10m" if not expected or "x10" in "".join(series.values()) else "20m",
                        "exp_samples": [{"labels": f'{{alertname="{name}"}}', "value": 1} for name in expected],
                    }
                ],
            }
        ],
    }
    (folder / "test.yml").write_text(json.dumps(test))
    done = subprocess.run(
        ["promtool", "test", "rules", str(folder / "test.yml")], capture_output=True, text=True, check=False
    )
    return "" if done.returncode == 0 else done.stdout + done.stderr


def test_there_is_a_case_for_each_alert() -> None:
    assert [rule["alert"] for rule in rules()] == list(ALERTS)


@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_fires_for_its_cause_and_no_other_does(alert: str, tmp_path: Path) -> None:
    name, values = ALERTS[alert]
    assert firing(tmp_path, {name: values}, [alert]) == ""


def test_nothing_fires_on_a_good_day(tmp_path: Path) -> None:
    assert firing(tmp_path, QUIET, []) == ""


async def test_a_first_failed_login_fires_and_every_figure_of_the_rules_exists_from_the_start() -> None:
    async with Service({"MAILCHUTE_API_KEY": KEY}) as service:
        target = service.base.removeprefix("http://")
        with Prometheus(target, KEY) as running:
            for rule in rules():
                for name in sorted(set(rule["expr"].replace("(", " ").replace("{", " ").split())):
                    if name.startswith("mailchute_"):
                        assert running.query(name), name
            headers = {"X-API-Key": KEY}
            answer = await service.http.post("/send", json={**MAIL, "profile": "sandbox-eauth"}, headers=headers)
            assert answer.json()["error_code"] == "EAUTH"
            alerts = 'ALERTS{alertname="MailchuteLoginFailed",alertstate="firing"}'
            assert until(lambda: bool(running.query(alerts)), timeout=PATIENCE)
            (alert,) = running.query(alerts)
            assert alert["metric"]["profile"] == "sandbox-eauth"
            assert alert["metric"]["reason"] == "auth_rejected"
