"""The application: the interface, the page, what errors look like, and the middleware around them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.responses import Response

from p2l_plugins.errors import P2LError
from p2l_plugins.scoring.engine import Busy
from p2l_plugins.scoring.flights import ScoringFailed
from p2l_plugins.scoring.scorer import P2L
from p2l_plugins.service import metrics, models, routes, tracing
from p2l_plugins.service.guard import Guard
from p2l_plugins.service.hosts import Hosts
from p2l_plugins.service.service import NotReady, Service, load_bundle
from p2l_plugins.service.settings import ServiceSettings
from p2l_plugins.service.users import TooManyVotes
from p2l_plugins.service.watch import Watch

PAGE = Path(str(files("p2l_plugins.service"))) / "page"

#: What needs no key: the page asks its reader for one; whether a process lives is no secret; the rest describes.
OPEN = ("/", "/healthz", "/readyz", "/docs", "/redoc", "/openapi.json")

#: FastAPI's own spans and log records hold paths, queries and errors' messages as clients sent them; `Traced` has ours.
#: A FastAPI that has none takes this for a key of an extension.
NO_TELEMETRY: Any = {"tracing": False, "metrics": False, "logs": False}

DESCRIPTION = """Scores, leaderboards and routing of a Prompt-to-Leaderboard bundle.

A prompt is a string (one user turn) or a list of strings (the user turns of a conversation, oldest first).
Where the service has a key, send it as `Authorization: Bearer …` or as the header `api-key`."""


def create_app(
    settings: ServiceSettings,
    load: Callable[[ServiceSettings], P2L] = load_bundle,
    failed: Callable[[], None] = lambda: None,
) -> FastAPI:
    """The application of one process; its lifespan loads the bundle and ends what goes on.

    Args:
        settings: of the operator.
        load: gives the bundle.
        failed: called where it can't; the application then only says that it is not ready.
    """
    service = Service(settings, load, failed)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        metrics.forget_dead_processes()
        service.heed_signals()
        service.start()
        yield
        await service.aclose()

    app = FastAPI(
        title="P2L scorer",
        version=version("p2l-plugins"),
        description=DESCRIPTION,
        lifespan=lifespan,
        telemetry=NO_TELEMETRY,
    )
    app.state.service = service
    app.include_router(routes.api)
    app.include_router(routes.probes)
    _describe_keys(app)
    paths = frozenset(app.openapi()["paths"]) | frozenset(OPEN)

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return FileResponse(PAGE / "index.html", headers={"Cache-Control": "no-cache"})

    app.mount("/page", StaticFiles(directory=PAGE), name="page")
    assets = frozenset(f"/page/{path.name}" for path in PAGE.iterdir())
    app.exception_handler(RequestValidationError)(_wrong_request)
    app.exception_handler(HTTPException)(_http_error)
    app.exception_handler(routes.ClientLeft)(_client_left)
    app.exception_handler(P2LError)(_p2l_error)
    keys = [key.get_secret_value() for key in settings.keys]
    app.add_middleware(
        Guard,
        hosts=Hosts(settings.host, settings.allowed_hosts),
        keys=keys,
        feedback_keys=[key.get_secret_value() for key in settings.feedback_keys],
        open_paths=frozenset(OPEN) | assets,
        max_body_bytes=settings.max_body_bytes,
        posts=frozenset(path for path, methods in app.openapi()["paths"].items() if "post" in methods),
    )
    if tracing.is_configured():
        app.add_middleware(tracing.Traced, paths=paths | assets)
    # added last, so outermost
    app.add_middleware(Watch, paths=paths | assets, access_log=settings.access_log, ending=lambda: service.ending)
    return app


def _describe_keys(app: FastAPI) -> None:
    """Has the description say how a key is sent. FastAPI's own way to say it costs each request a tenth of its time."""
    describe = app.openapi

    def described() -> dict[str, Any]:
        schema = describe()
        schema["components"]["securitySchemes"] = {
            "api-key": {"type": "apiKey", "in": "header", "name": "api-key"},
            "bearer": {"type": "http", "scheme": "bearer"},
        }
        for path in schema["paths"].keys() - OPEN:
            for operation in schema["paths"][path].values():
                operation["security"] = [{"api-key": []}, {"bearer": []}]
        return schema

    app.openapi = described  # type: ignore[method-assign]


async def _wrong_request(_: Request, error: Exception) -> Response:
    """The first problem in one sentence, which never holds what was sent: pydantic's own would."""
    assert isinstance(error, RequestValidationError)  # noqa: S101 - for the type checker
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return _problem(422, f"the body is not valid JSON (at character {first['loc'][-1]})")
    if first["loc"] == ("body",):
        return _problem(422, "the body must be a JSON object, with Content-Type: application/json")
    # what we do not know is a key that the client made up, or pydantic's name for one form of several
    known = _known_keys()
    place = ".".join(str(part) for part in first["loc"][1:] if isinstance(part, int) or part in known)
    if first["type"] == "extra_forbidden":
        return _problem(422, f"{place or 'the body'}: a key is not known; the valid ones are at /docs")
    return _problem(422, f"{place or 'the body'}: {first['msg'][0].lower()}{first['msg'][1:]}")


def _known_keys() -> frozenset[str]:
    kinds = [kind for kind in vars(models).values() if isinstance(kind, type) and issubclass(kind, BaseModel)]
    return frozenset(name for kind in kinds for name in kind.model_fields)


async def _http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 - for the type checker
    return JSONResponse({"detail": error.detail}, error.status_code, error.headers)


async def _client_left(_: Request, __: Exception) -> Response:
    return Response(status_code=499)


async def _p2l_error(_: Request, error: Exception) -> Response:
    if isinstance(error, TooManyVotes):
        return _problem(429, str(error), {"Retry-After": "60"})
    if isinstance(error, Busy):
        return _problem(429, str(error), {"Retry-After": "1"})
    if isinstance(error, NotReady):
        return _problem(503, str(error), {"Retry-After": "1"})
    return _problem(500 if isinstance(error, ScoringFailed) else 422, str(error))


def _problem(status: int, detail: str, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse({"detail": detail}, status, headers)
