"""/openapi.json is true: every answer has a documented status, media type and shape; a key can be said."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import httpx2
import pytest

from tests.support.app import MESSAGE, Application, running
from tests.support.relay import Close

KEY = "a-key-of-the-tests-0123456789"
KINDS: dict[str, type | tuple[type, ...]] = {
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "array": list,
    "object": dict,
    "null": type(None),
}


@pytest.mark.parametrize("end", ["sent", "partial", "deferred", "in_doubt", "failed", "sending", "refused", "stranger"])
async def test_answers_of_send_are_as_documented(end: str, service: Application) -> None:
    relay = service.relay
    match end:
        case "partial":
            relay.on("RCPT", "550 5.1.1 No such mailbox", match="bob@")
        case "failed":
            relay.on("RCPT", "550 5.1.1 No such mailbox")
        case "deferred":
            relay.on("RCPT", "451 4.3.0 Later")
        case "in_doubt":
            relay.on("CONTENT", Close())
    client = service.visitor(peer="192.0.2.7" if end == "stranger" else "127.0.0.1")
    answer = await client.post(
        "/send",
        json={**MESSAGE, "to": "ann" if end == "refused" else "ann@theirs.test, bob@theirs.test"},
        headers={"Prefer": "wait=0"} if end == "sending" else {},
    )
    assert_documented(await document(service), "/send", "post", answer)


@pytest.mark.parametrize("content_type", ["text/html", "application/json; charset=latin1"])
async def test_a_refusal_of_the_type_is_as_documented(content_type: str, service: Application) -> None:
    answer = await service.client.post("/send", json=MESSAGE, headers={"Content-Type": content_type})
    assert_documented(await document(service), "/send", "post", answer)


async def test_lookups_are_as_documented(service: Application) -> None:
    service.relay.on("RCPT", "550 5.1.1 No such mailbox", match="bob@")
    sent = (await service.send(to="ann@theirs.test, bob@theirs.test", tags=["a"], metadata={"b": "c"})).json()
    whole = await document(service)
    for url, path in (
        ("/messages", "/messages"),
        ("/messages?limit=0", "/messages"),
        (f"/messages/{sent['id']}", "/messages/{id}"),
        ("/messages/x", "/messages/{id}"),
        (f"/messages/{sent['id']}/raw", "/messages/{id}/raw"),
        ("/messages/x/raw", "/messages/{id}/raw"),
        ("/livez", "/livez"),
        ("/readyz", "/readyz"),
        ("/health", "/health"),
        ("/metrics", "/metrics"),
    ):
        assert_documented(whole, path, "get", await service.client.get(url))


async def test_a_stranger_is_told_what_is_documented(service: Application) -> None:
    whole, stranger = await document(service), service.visitor(peer="192.0.2.7")
    for path in ("/messages", "/messages/{id}", "/messages/{id}/raw", "/health", "/metrics"):
        assert_documented(whole, path, "get", await stranger.get(path))


async def test_no_status_and_no_shape_is_documented_that_never_comes(service: Application) -> None:
    whole = await document(service)
    statuses = {status for _, _, operation in operations(whole) for status in operation["responses"]}
    assert statuses <= {"200", "202", "401", "404", "409", "413", "415", "422", "424", "429", "503"}
    assert "HTTPValidationError" not in whole["components"]["schemas"]  # FastAPI's, which we never send


async def test_a_key_can_be_said_where_one_is_needed(service: Application) -> None:
    whole = await document(service)
    schemes = whole["components"].get("securitySchemes", {})
    assert {(scheme["type"], scheme.get("scheme"), scheme.get("name")) for scheme in schemes.values()} == {
        ("http", "bearer", None),
        ("http", "basic", None),
        ("apiKey", None, "X-API-Key"),
    }
    for path, _, operation in operations(whole):
        said = {name for way in operation.get("security", whole.get("security", [])) for name in way}
        assert said == (set() if path in ("/livez", "/readyz") else set(schemes)), path


@pytest.mark.parametrize("key", ["", KEY], ids=["no key", "key"])
async def test_a_key_is_optional_only_where_the_service_has_none(key: str, tmp_path: Path) -> None:
    async with running(tmp_path, environ={"MAILCHUTE_API_KEY": key}) as service:
        for path, _, operation in operations(await document(service)):
            is_open = path in ("/livez", "/readyz")
            assert operation["security"] == [] if is_open else ({} in operation["security"]) is (not key), path


async def test_the_servers_url_is_relative_to_the_document(service: Application) -> None:
    whole = await document(service)
    for base in ("http://127.0.0.1:8587", "https://example.org/mail", "https://example.org/a/b"):
        (server,) = whole["servers"]
        assert urljoin(f"{base}/openapi.json", server["url"]).rstrip("/") == base
    assert whole["info"]["license"] == {"name": "MIT", "identifier": "MIT"}


async def test_addresses_have_one_name_and_every_form_is_sent(service: Application) -> None:
    schemas = (await document(service))["components"]["schemas"]
    named = {f"#/components/schemas/{name}" for name in ("Addresses", "Address")}
    for name in ("to", "cc", "bcc", "reply_to", "from"):
        assert schemas["SendRequest"]["properties"][name]["$ref"] in named
    bare, mailbox = "ann@theirs.test", {"email": "ann@theirs.test"}
    for at, form in enumerate((bare, mailbox, [bare], [mailbox])):
        fits = [not list(wrong(form, way, schemas, "$")) for way in schemas["Addresses"]["oneOf"]]
        assert fits == [other == at for other in range(4)]
        assert (await service.send(to=form)).json()["accepted"] == [bare]


async def test_an_example_stands_only_where_its_shape_is_documented(service: Application) -> None:
    whole = await document(service)
    for _, _, operation in operations(whole):
        for media in (media for answer in operation["responses"].values() for media in answer["content"].values()):
            for example in media.get("examples", {}).values():
                value = whole["components"]["examples"][example["$ref"].rpartition("/")[2]]["value"]
                assert not list(wrong(value, media["schema"], whole["components"]["schemas"], "$"))


async def test_every_operation_says_what_it_does(service: Application) -> None:
    names = []
    for path, method, operation in operations(await document(service)):
        assert operation["summary"], path
        assert operation["description"], path
        assert operation["tags"], (method, path)
        names.append(operation["operationId"])
    assert len(set(names)) == len(names)
    assert all(re.fullmatch("[a-z][A-Za-z]+", name) for name in names)


async def test_every_tag_and_every_field_says_what_it_is(service: Application) -> None:
    whole = await document(service)
    tags = {tag["name"] for tag in whole["tags"] if tag["description"]}
    assert tags == {tag for _, _, operation in operations(whole) for tag in operation["tags"]}
    silent = {
        f"{model}.{name}"
        for model, schema in whole["components"]["schemas"].items()
        for name, field in schema.get("properties", {}).items()
        if not field.get("description")
    }
    assert silent == set()


async def test_what_a_body_may_hold_has_names_that_a_generated_client_takes_over(service: Application) -> None:
    whole = await document(service)
    bodies = [operation["requestBody"] for _, _, operation in operations(whole) if "requestBody" in operation]
    schemas = [media["schema"] for body in bodies for media in body["content"].values()]
    assert all(schema.keys() == {"$ref"} for schema in schemas)
    assert {"SendRequest", "VerifyRequest", "Resolution", "Mailbox", "Attachment"} <= whole["components"][
        "schemas"
    ].keys()


async def document(service: Application) -> dict[str, Any]:
    answer = await service.client.get("/openapi.json")
    assert answer.status_code == 200
    whole: dict[str, Any] = answer.json()
    return whole


def operations(whole: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in whole["paths"].items():
        for method, operation in methods.items():
            yield path, method, operation


def assert_documented(whole: dict[str, Any], path: str, method: str, answer: httpx2.Response) -> None:
    responses = whole["paths"][path][method]["responses"]
    assert str(answer.status_code) in responses, f"{method} {path} never gives {answer.status_code}"
    headers = responses[str(answer.status_code)].get("headers", {})
    assert all(name in answer.headers for name, said in headers.items() if said.get("required"))
    contents = responses[str(answer.status_code)]["content"]
    kind = answer.headers["content-type"].partition(";")[0]
    assert kind in contents, f"{method} {path} gives {answer.status_code} as {kind}, not as {list(contents)}"
    if kind.endswith("json"):
        assert "schema" in contents[kind], f"{method} {path} {answer.status_code} as {kind} has no shape"
        faults = list(wrong(answer.json(), contents[kind]["schema"], whole["components"]["schemas"], "$"))
        assert not faults, f"{method} {path} {answer.status_code}"


def wrong(value: Any, schema: dict[str, Any], schemas: dict[str, Any], at: str) -> Iterator[str]:
    """Say where a value is not as its schema says; stricter than JSON Schema: a key must be known."""
    if "$ref" in schema:
        schema = schemas[schema["$ref"].rpartition("/")[2]]
    if ways := schema.get("anyOf") or schema.get("oneOf"):
        attempts = [list(wrong(value, way, schemas, at)) for way in ways]
        yield from min(attempts, key=len)
        return
    kind = schema.get("type")
    if kind and (not isinstance(value, KINDS[kind]) or (isinstance(value, bool) and kind != "boolean")):
        yield f"{at} is {value!r}, not of type {kind}"
        return
    if "enum" in schema and value not in schema["enum"]:
        yield f"{at} is {value!r}, not of {schema['enum']}"
    if isinstance(value, dict):
        known, rest = schema.get("properties", {}), schema.get("additionalProperties", False)
        yield from (f"{at}.{name} is missing" for name in schema.get("required", ()) if name not in value)
        for name, below in value.items():
            if name in known or isinstance(rest, dict):
                yield from wrong(below, known.get(name, rest), schemas, f"{at}.{name}")
            elif rest is not True:
                yield f"{at}.{name} is not documented"
    if isinstance(value, list):
        for number, below in enumerate(value):
            yield from wrong(below, schema.get("items", {}), schemas, f"{at}[{number}]")
