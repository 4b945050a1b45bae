"""The application: routers, error handlers, and a lifespan that opens the runtime.

`create_app(settings)` gives the whole ASGI application, `app.main:app` the one that the environment describes:

    Gate (request id, bounds, time)  →  HotRoute (POST /send)  →  FastAPI (everything else)
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from app import __version__
from app.api import acts, docs, errors, keeping, live, messages, operate, profiles, send
from app.api.document import LICENSE, TAGS, document
from app.api.edge import Answer, App, Gate, answer_to
from app.api.problems import MethodNotAllowed
from app.api.routes import headers_in, to_response
from app.inspector import views
from app.mail.address import parse_address
from app.mail.errors import Fault, InvalidMessage, MailError, NotFound
from app.mail.profile import TlsMode
from app.runtime import Runtime
from app.settings import Settings
from app.smtp import tls

_ABOUT = (
    "Sends e-mail through your relay, and remembers every attempt and every error. "
    "**2xx = we have it, never send it again (look at `ok`); 4xx = change something; 5xx = we do not have it, send it "
    "again; no answer = unknown: repeat with the same Idempotency-Key.**"
)


def create_app(settings: Settings) -> App:
    """Build the whole application; its lifespan opens and closes everything."""
    return around(Runtime(settings))


def around(runtime: Runtime) -> App:
    """Build the whole application around a runtime; whoever runs it without a lifespan opens that first."""
    api = create_api(runtime)
    # Text that is all escapes (two bytes of UTF-8 as \uXXXX) is 2.2 times what it is when composed.
    body_limit = runtime.settings.max_message_bytes * 9 // 4 + 64 * 1024
    return Gate(
        send.HotRoute(api, runtime),
        max_body=body_limit,
        in_flight=runtime.in_flight,
        metrics=runtime.metrics,
        base_path=runtime.settings.base_path,
    )


async def prepare(runtime: Runtime) -> None:
    """Import and read now what a request may need later: a process without a free descriptor cannot any more.

    Raises:
        StoreUnavailable: the store cannot be read.
    """
    shows_sandbox = await views.has_something_to_show(runtime)
    # In a worker thread, so that what starts one is imported, too.
    await run_in_threadpool(_prepare, runtime, shows_sandbox=shows_sandbox)


def _prepare(runtime: Runtime, *, shows_sandbox: bool) -> None:
    parse_address("x@bücher.example")
    "relay.example".encode("idna")  # as getaddrinfo does with every name
    if any(profile.tls is not TlsMode.NONE for profile in runtime.profiles.values()):
        tls.prepare()
    if runtime.settings.docs:
        docs.prepare()
    if shows_sandbox:
        views.prepare()


def create_api(runtime: Runtime) -> FastAPI:
    """Build the FastAPI part, which serves every route, POST /send included."""
    settings = runtime.settings

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await runtime.open()
        try:
            yield
        finally:
            await runtime.close()

    api = FastAPI(
        title="Mailchute",
        version=__version__,
        description=_ABOUT,
        openapi_tags=TAGS,
        license_info=LICENSE,
        docs_url=None,
        redoc_url=None,
        openapi_url="/openapi.json" if settings.docs else None,
        redirect_slashes=False,
        lifespan=lifespan,
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    api.openapi = partial(document, api, needs_key=settings.api_key is not None)  # type: ignore[method-assign]
    api.state.runtime = runtime
    for router in (
        send.router,
        acts.router,  # before messages: a 405 tells the first path that fits, and /messages/{id} fits /messages/cancel
        messages.router,
        live.router,
        errors.router,
        profiles.router,
        operate.router,
        keeping.router,
        views.router,
        *([docs.router] if settings.docs else []),
    ):
        api.include_router(router)
    api.add_exception_handler(MailError, _refuse)
    api.add_exception_handler(HTTPException, _refuse_http)
    api.add_exception_handler(RequestValidationError, _refuse_parameters)
    api.add_exception_handler(Exception, _refuse_unforeseen)
    return api


async def _refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, MailError)  # noqa: S101 (registered for nothing else)
    return to_response(answer_to(error, headers_in(request)))


async def _refuse_http(request: Request, error: Exception) -> Response:
    """Starlette's own refusals: no such path, or not that method."""
    assert isinstance(error, HTTPException)  # noqa: S101
    path = request.url.path[:80]
    if error.status_code == 404 and (location := _start_page(request)) is not None:
        return to_response(Answer(302, b"", ((b"location", location), (b"vary", b"Accept"))))
    if error.status_code == 405:
        allow = (error.headers or {}).get("Allow", "").replace("GET", "GET, HEAD")  # the Gate makes one of the other
        refusal: MailError = MethodNotAllowed(f"{path} does not take {request.method[:20]}; it takes {allow}", allow)
    elif error.status_code == 404:
        refusal = NotFound(f"There is nothing at {path}; /docs lists what is")
    else:
        refusal = InvalidMessage(str(error.detail))
    return await _refuse(request, refusal)


def _start_page(request: Request) -> bytes | None:
    """Return where a browser that asks for / should go, relative to it; None = this is no browser, or not /."""
    settings: Settings = request.app.state.runtime.settings
    is_browser = request.method == "GET" and b"text/html" in headers_in(request).get(b"accept", b"")
    if not is_browser or request.scope["path"] != "/":
        return None
    return b"sandbox" if settings.sandbox else b"docs" if settings.docs else None


async def _refuse_parameters(request: Request, error: Exception) -> Response:
    """What FastAPI finds wrong with a path or query parameter."""
    assert isinstance(error, RequestValidationError)  # noqa: S101
    faults = [Fault("", f"{said['loc'][-1]}: {said['msg']}") for said in error.errors()]
    return await _refuse(request, InvalidMessage.of(faults))


async def _refuse_unforeseen(request: Request, _: Exception) -> Response:
    """A bug of ours; the Gate logs it when Starlette raises it again."""
    return to_response(answer_to(MailError(), headers_in(request)))


def __getattr__(name: str) -> App:
    """`app.main:app`, built of the environment when somebody asks for it."""
    if name != "app":
        raise AttributeError(name)
    import os

    from app.settings import load

    return create_app(load(os.environ))
