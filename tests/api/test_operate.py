"""For whoever runs it: alive, ready, healthy, the figures; and what every answer has in common."""

import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import pytest
from prometheus_client.parser import text_string_to_metric_families

from app import __version__
from app.mail.codes import CODE_OF
from tests.api.shapes import JSON, PROBLEM_JSON, problem
from tests.support.app import MESSAGE, Application, running
from tests.support.relay import Close, Relay, Stall
from tests.support.tls import certificates

METRICS = {
    "mailchute_messages_total": {"profile", "state"},
    "mailchute_attempts_total": {"profile", "error_code", "reason"},
    "mailchute_queue_messages": {"profile", "state"},
    "mailchute_queue_oldest_seconds": set(),
    "mailchute_circuit_open": {"profile", "reason"},
    "mailchute_smtp_phase_seconds": {"profile", "phase"},
    "mailchute_in_doubt": set(),
    "mailchute_http_request_seconds": {"route", "status"},
    "mailchute_build_info": {"version"},
}
PROCESS = (
    "process_start_time_seconds",
    "process_cpu_seconds_total",
    "process_resident_memory_bytes",
    "process_open_fds",
    "process_max_fds",
)

# --- alive, ready, healthy -------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/livez", "/readyz"])
async def test_a_running_service_is_alive_and_ready(path: str, service: Application) -> None:
    answer = await service.client.get(path)
    assert (answer.status_code, answer.json()) == (200, {"status": "pass"})


async def test_a_relay_that_is_down_is_no_reason_to_be_unready(service: Application) -> None:
    service.relay.on("GREETING", "554 5.3.2 Closed")
    assert (await service.send()).json()["state"] == "deferred"
    answer = await service.client.get("/readyz")
    assert answer.status_code == 200
    assert service.relay.connections == 1  # readiness asked nobody


async def test_a_sandbox_is_a_warning(tmp_path: Path) -> None:
    async with running(tmp_path, sandbox=True) as service:
        said = await health(service)
    assert said["status"] == "warn"
    profile = said["checks"]["profiles"][0]
    assert (profile["componentId"], profile["status"]) == ("sandbox", "warn")
    assert "not sent" in profile["output"]


@pytest.mark.parametrize(
    ("tls", "verify", "status", "says"),
    [
        ("none", "", "warn", "not encrypted"),
        ("opportunistic", "", "warn", "in clear"),
        ("starttls", "", "pass", None),
        ("implicit", "", "pass", None),
        ("starttls", "false", "warn", "not verified"),
    ],
)
async def test_a_way_in_clear_or_unverified_is_a_warning(
    tls: str, verify: str, status: str, says: str | None, tmp_path: Path
) -> None:
    environ = {"MAILCHUTE_PROFILES__RELAY__TLS": tls, "MAILCHUTE_PROFILES__RELAY__VERIFY": verify}
    async with running(tmp_path, environ=environ) as service:
        said = await health(service)
    (profile,) = said["checks"]["profiles"]
    assert (profile["componentId"], profile["status"]) == ("relay", status)
    assert says is None or says in profile["output"]
    assert said["status"] == status


async def test_a_message_in_doubt_is_a_warning(tmp_path: Path) -> None:
    environ = {
        "MAILCHUTE_PROFILES__RELAY__TLS": "starttls",
        "MAILCHUTE_PROFILES__RELAY__HOST": "localhost",
        "MAILCHUTE_PROFILES__RELAY__CA_FILE": str(certificates().ca_file),
    }
    async with running(tmp_path, Relay(tls=certificates().server()), environ=environ) as service:
        before = await health(service)
        service.relay.on("CONTENT", Close())
        assert (await service.send()).json()["state"] == "in_doubt"
        after = await health(service)
    assert (before["status"], before["checks"]["in_doubt"][0]["observedValue"]) == ("pass", 0)
    assert (after["status"], after["checks"]["in_doubt"][0]["observedValue"]) == ("warn", 1)
    assert after["checks"]["in_doubt"][0]["status"] == "warn"


async def test_health_tells_the_version_the_store_and_the_queue(service: Application) -> None:
    service.relay.on("RCPT", "451 4.3.0 Later")
    await service.send()
    said = await health(service)
    assert said["version"] == __version__
    assert said["checks"]["store"] == [{"status": "pass"}]
    assert re.fullmatch(r"3\.\d+\.\d+", said["checks"]["sqlite"][0]["observedValue"])
    assert said["checks"]["queue"][0]["observedValue"] == 1


# --- figures ---------------------------------------------------------------------------------------------------


async def test_every_figure_is_there_with_its_labels(service: Application) -> None:
    await some_of_everything(service)
    families = await figures(service)
    told = set((await service.client.get("/metrics")).text.split())
    for name, labels in METRICS.items():
        assert name in told  # behind # TYPE, as the contract spells it
        samples = families[name]
        assert samples
        assert all(set(of) - {"le"} == labels for of, _ in samples)


async def test_figures_count_what_happened(service: Application) -> None:
    await some_of_everything(service)
    families = await figures(service)
    assert value(families, "mailchute_messages_total", profile="relay", state="sent") == 1
    assert value(families, "mailchute_messages_total", profile="relay", state="deferred") == 1
    assert value(families, "mailchute_messages_total", profile="relay", state="failed") == 1
    assert value(families, "mailchute_messages_total", profile="relay", state="in_doubt") == 1
    assert value(families, "mailchute_attempts_total", profile="relay", error_code="", reason="") == 1
    refused = {"profile": "relay", "error_code": "EENVELOPE", "reason": "mailbox_unknown"}
    assert value(families, "mailchute_attempts_total", **refused) == 1
    assert value(families, "mailchute_queue_messages", profile="relay", state="deferred") == 1
    assert value(families, "mailchute_queue_messages", profile="relay", state="sending") == 1
    assert value(families, "mailchute_queue_messages", profile="relay", state="queued") == 0
    assert 0 < value(families, "mailchute_queue_oldest_seconds") < 60
    assert value(families, "mailchute_in_doubt") == 1
    assert value(families, "mailchute_build_info", version=__version__) == 1


async def test_every_series_of_a_profile_is_there_from_the_start_at_0(service: Application) -> None:
    before = await figures(service)
    series = {name: {tuple(sorted(of.items())) for of, _ in samples} for name, samples in before.items()}
    assert all(n == 0 for name in ("mailchute_attempts_total", "mailchute_messages_total") for _, n in before[name])
    for reason, code in CODE_OF.items():
        assert value(before, "mailchute_attempts_total", profile="relay", error_code=code, reason=reason) == 0
    await some_of_everything(service)
    after = await figures(service)
    for name in METRICS:
        if name != "mailchute_http_request_seconds":  # whose labels are no profile's
            assert {tuple(sorted(of.items())) for of, _ in after[name]} == series[name], name


async def test_a_profile_that_comes_with_a_reload_has_its_series_too(service: Application) -> None:
    settings = service.runtime.settings
    other = replace(settings.profiles["relay"], name="other")
    service.runtime.reload(replace(settings, profiles={**settings.profiles, "other": other}))
    families = await figures(service)
    eauth = {"profile": "other", "error_code": "EAUTH", "reason": "auth_rejected"}
    assert value(families, "mailchute_attempts_total", **eauth) == 0
    assert value(families, "mailchute_queue_messages", profile="other", state="queued") == 0


async def test_the_process_is_measured(service: Application) -> None:
    families = await figures(service)
    began = datetime.fromtimestamp(value(families, "process_start_time_seconds"), UTC)
    assert timedelta(0) <= datetime.now(UTC) - began < timedelta(days=1)
    for name in PROCESS:
        assert value(families, name) > 0


async def test_an_empty_queue_has_no_age(service: Application) -> None:
    await service.send()
    families = await figures(service)
    assert value(families, "mailchute_queue_oldest_seconds") == 0
    assert value(families, "mailchute_in_doubt") == 0


async def test_no_address_and_no_id_is_in_a_figure(service: Application) -> None:
    sent = (await service.send()).json()
    for path in (f"/messages/{sent['id']}", "/messages/ann@theirs.test", "/ann@theirs.test", "/messages?q=ann@x.test"):
        await service.client.get(path)
    text = (await service.client.get("/metrics")).text
    assert "@" not in text
    assert ".test" not in text
    assert sent["id"] not in text


async def test_routes_are_counted_by_their_pattern(service: Application) -> None:
    sent = (await service.send()).json()
    for path in (f"/messages/{sent['id']}", f"/messages/{sent['id']}/raw", "/messages", "/nowhere", "/elsewhere"):
        await service.client.get(path)
    samples = (await figures(service))["mailchute_http_request_seconds"]
    routes = {of["route"]: of["status"] for of, count in samples if count}
    assert routes == {
        "/send": "200",
        "/messages": "200",
        "/messages/{id}": "200",
        "/messages/{id}/raw": "200",
        "other": "404",
    }


# --- what all answers have in common ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", ["/", "/nowhere", "/send/", "/messages/", "/docs/", "/livez/", "//send", "/Send", "/favicon.ico"]
)
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_an_unknown_path_is_404_as_a_problem_and_never_redirected(
    method: str, path: str, service: Application
) -> None:
    answer = await service.client.request(method, f"http://127.0.0.1:8587{path}")
    said = problem(answer, status=404)
    assert said["type"] == "/errors/not-found"
    assert answer.headers["content-type"] == PROBLEM_JSON
    assert "location" not in answer.headers


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("GET", "/send", "POST"),
        ("PUT", "/send", "POST"),
        ("HEAD", "/send", "POST"),
        ("POST", "/messages", "GET"),
        ("POST", "/messages", "HEAD"),
        ("DELETE", "/messages", "GET"),
        ("DELETE", "/messages/cancel", "POST"),
        ("OPTIONS", "/messages/retry", "POST"),
        ("DELETE", "/messages/01a20bf8-4943-7bad-bcb1-d9c2726ad315", "GET"),
        ("POST", "/livez", "GET"),
        ("POST", "/metrics", "GET"),
        ("PATCH", "/docs", "GET"),
    ],
)
async def test_another_method_is_405_and_says_which_are_allowed(
    method: str, path: str, allow: str, service: Application
) -> None:
    answer = await service.client.request(method, path)
    assert answer.status_code == 405
    assert allow in answer.headers["allow"].split(", ")
    assert method not in answer.headers["allow"].split(", ")
    if method != "HEAD":
        said = problem(answer, status=405)
        assert said["type"] == "/errors/method-not-allowed"
        assert allow in said["detail"]


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/livez", 200),
        ("/readyz", 200),
        ("/health", 200),
        ("/metrics", 200),
        ("/messages", 200),
        ("/messages?limit=0", 422),
        ("/messages/x", 404),
        ("/messages/{id}", 200),
        ("/messages/{id}/raw", 200),
        ("/errors", 200),
        ("/errors/EAUTH", 200),
        ("/openapi.json", 200),
        ("/docs", 200),
        ("/redoc", 200),
        ("/docs/static/docs.js", 200),
        ("/nowhere", 404),
        ("/send", 405),
        ("/profiles/relay/verify", 405),
    ],
)
async def test_head_answers_as_get_does_without_a_body(path: str, status: int, service: Application) -> None:
    path = path.format(id=(await service.send()).json()["id"])
    got = await service.client.get(path)
    headed = await service.client.head(path)
    assert (headed.status_code, headed.content) == (status, b"")
    assert int(headed.headers["content-length"]) > 0
    varying = {"x-request-id", *(["content-length"] if path == "/metrics" else [])}  # its figures go on
    assert [pair for pair in headed.headers.multi_items() if pair[0] not in varying] == [
        pair for pair in got.headers.multi_items() if pair[0] not in varying
    ]


async def test_head_needs_the_key_where_get_does(service: Application) -> None:
    stranger = service.visitor(peer="192.0.2.7")
    assert [(await stranger.head(path)).status_code for path in ("/livez", "/messages")] == [200, 401]


async def test_head_of_a_verify_tries_nothing(service: Application) -> None:
    await service.client.head("/profiles/relay/verify")
    assert service.relay.connections == 0


async def test_head_is_counted_by_its_route(service: Application) -> None:
    await service.client.head("/messages/x")
    samples = (await figures(service))["mailchute_http_request_seconds"]
    routes = {of["route"]: of["status"] for of, count in samples if count}
    assert routes == {"/messages/{id}": "404"}


@pytest.mark.parametrize(("path", "status"), [("/nowhere", 404), ("/send", 405)])
async def test_who_names_only_plain_json_gets_it(path: str, status: int, service: Application) -> None:
    answer = await service.client.get(path, headers={"Accept": JSON})
    assert (answer.status_code, answer.headers["content-type"]) == (status, JSON)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/send", 200),
        ("POST", "/send/", 404),
        ("GET", "/send", 405),
        ("GET", "/messages", 200),
        ("GET", "/messages/x", 404),
        ("GET", "/livez", 200),
        ("GET", "/health", 200),
        ("GET", "/metrics", 200),
        ("GET", "/openapi.json", 200),
        ("GET", "/docs", 200),
        ("GET", "/redoc", 200),
        ("GET", "/docs/static/docs.js", 200),
    ],
)
async def test_every_answer_has_the_security_headers(method: str, path: str, status: int, service: Application) -> None:
    answer = await service.client.request(method, path, json=MESSAGE if method == "POST" else None)
    assert answer.status_code == status
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert answer.headers["cache-control"] in ("no-store", "max-age=3600")
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
    assert "unsafe" not in answer.headers["content-security-policy"]
    assert "http" not in answer.headers["content-security-policy"]
    assert len(answer.headers.get_list("content-security-policy")) == 1
    assert "server" not in answer.headers


async def test_a_refusal_of_a_stranger_has_the_security_headers_too(service: Application) -> None:
    answer = await service.visitor(peer="192.0.2.7").get("/messages")
    assert answer.status_code == 401
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-security-policy"]
    assert answer.headers["x-request-id"]


@pytest.mark.parametrize("given", ["a", "4711", "a.b:c-d_e", "0123456789abcdef" * 8])
@pytest.mark.parametrize(("method", "path"), [("POST", "/send"), ("GET", "/livez"), ("GET", "/nowhere")])
async def test_a_request_id_is_given_back(method: str, path: str, given: str, service: Application) -> None:
    answer = await service.client.request(method, path, headers={"X-Request-Id": given})
    assert answer.headers.get_list("x-request-id") == [given]


@pytest.mark.parametrize("given", [None, "", "a b", "a" * 129, "<script>", "é", "a,b"])
async def test_a_request_id_is_made_where_there_is_none_that_can_be_used(
    given: str | None, service: Application
) -> None:
    headers = [] if given is None else [(b"x-request-id", given.encode())]
    ids = {(await service.client.get("/livez", headers=headers)).headers["x-request-id"] for _ in range(3)}
    assert len(ids) == 3
    assert all(re.fullmatch("[0-9a-f]{16}", made) for made in ids)


async def test_the_openapi_document_names_every_route_and_loads_nothing_else(service: Application) -> None:
    document = (await service.client.get("/openapi.json")).json()
    assert {"/send", "/messages", "/messages/{id}", "/messages/{id}/raw", "/health", "/metrics", "/errors"} <= set(
        document["paths"]
    )
    for page in ("/docs", "/redoc"):
        html = (await service.client.get(page)).text
        links = re.findall(r'(?:src|href)="([^"]*)"', html)
        assert links
        for link in links:
            assert not re.match(r"/|[a-z]+:", link), "it leads elsewhere, or not behind a prefix"
            assert (await service.client.get(urljoin(page, link))).status_code == 200, link


async def test_docs_can_be_closed(tmp_path: Path) -> None:
    async with running(tmp_path, environ={"MAILCHUTE_DOCS": "false"}) as service:
        for path in ("/docs", "/redoc", "/openapi.json", "/docs/static/docs.js"):
            problem(await service.client.get(path), status=404)
        assert (await service.send()).status_code == 200


@pytest.mark.parametrize(
    "name", ["", "nothing.js", "..%2f..%2fmain.py", "%2e%2e%2fdocs.py", "docs.html", "VERSIONS.md"]
)
async def test_only_the_pages_own_files_are_served(name: str, service: Application) -> None:
    problem(await service.client.get(f"/docs/static/{name}"), status=404)


async def health(service: Application) -> dict[str, Any]:
    answer = await service.client.get("/health")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/health+json"
    said: dict[str, Any] = answer.json()
    return said


async def some_of_everything(service: Application) -> None:
    for verb, answer in (
        ("CONTENT", "250 2.0.0 Ok"),
        ("RCPT", "451 4.3.0 Later"),
        ("RCPT", "550 5.1.1 No such mailbox"),
        ("CONTENT", Close()),
    ):
        service.relay.on(verb, answer, times=1)
        await service.send()
    service.relay.on("CONTENT", Stall())
    await service.send(prefer="respond-async")


Samples = list[tuple[dict[str, str], float]]


async def figures(service: Application) -> dict[str, Samples]:
    """Give the samples of every figure by its name, as the contract spells it."""
    answer = await service.client.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    families: dict[str, Samples] = {name: [] for name in (*METRICS, *PROCESS)}
    for family in text_string_to_metric_families(answer.text):
        name = f"{family.name}_total" if family.type == "counter" else family.name
        if name in families:
            families[name] = [(s.labels, s.value) for s in family.samples if not s.name.endswith("_created")]
    return families


def value(families: dict[str, Samples], name: str, **labels: str) -> float:
    (found,) = (number for of, number in families[name] if of == labels)
    return found


BROWSER = {"Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}


@pytest.mark.parametrize(
    ("sandbox", "environ", "leads_to"),
    [
        pytest.param(True, {}, "sandbox", id="sandbox"),
        pytest.param(False, {}, "docs", id="relay"),
        pytest.param(True, {"MAILCHUTE_DOCS": "false"}, "sandbox", id="sandbox without docs"),
        pytest.param(False, {"MAILCHUTE_DOCS": "false"}, None, id="relay without docs"),
        pytest.param(True, {"MAILCHUTE_API_KEY": "k" * 16}, "sandbox", id="sandbox with a key"),
    ],
)
async def test_the_root_leads_a_browser_on_and_is_404_to_all_others(
    sandbox: bool, environ: dict[str, str], leads_to: str | None, tmp_path: Path
) -> None:
    async with running(tmp_path, sandbox=sandbox, environ=environ) as found:
        for method in ("GET", "HEAD"):
            answer = await found.client.request(method, "/", headers=BROWSER)
            assert (answer.status_code, answer.headers.get("location")) == (302 if leads_to else 404, leads_to)
            assert leads_to is None or (answer.content, answer.headers["vary"]) == (b"", "Accept")
            for accept in ("*/*", "application/json", ""):
                other = await found.client.request(method, "/", headers={"Accept": accept})
                assert (other.status_code, other.headers["content-type"].partition("+")[0][:16]) == (
                    404,
                    "application/prob" if accept != "application/json" else "application/json",
                )
        assert (await found.client.post("/", headers=BROWSER)).status_code == 404
        assert (await found.client.get("/nowhere", headers=BROWSER)).status_code == 404


async def test_without_docs_no_page_of_the_sandbox_links_there(tmp_path: Path) -> None:
    async with running(tmp_path, sandbox=True, environ={"MAILCHUTE_DOCS": "false"}) as found:
        empty = (await found.client.get("/sandbox")).text
        id_ = (await found.send()).json()["id"]
        for page in (
            empty,
            (await found.client.get("/sandbox")).text,
            (await found.client.get(f"/sandbox/{id_}")).text,
        ):
            assert "docs" not in page.partition("<pre>")[0]
