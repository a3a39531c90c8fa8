"""The application of `p2l arena`: its interface, and the page."""

from __future__ import annotations

import json
import math
from collections.abc import AsyncIterator, Iterable
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from starlette.responses import Response

from litellm_router.arena.door import Door, Rate, client_of
from litellm_router.arena.state import Arena, Battle, Refused
from p2l_plugins.service.guard import Guard
from p2l_plugins.service.hosts import ANY, Hosts

PAGE = Path(str(files("litellm_router.arena"))) / "page"

#: Characters of a prompt, and bytes of a body: a character can be written in six.
MOST_CHARACTERS = 20_000
MOST_BYTES = 6 * MOST_CHARACTERS + 1000

#: What keeps nginx from holding a stream back.
_UNBUFFERED = {"X-Accel-Buffering": "no"}

Id = Annotated[str, StringConstraints(max_length=64)]


class Asked(BaseModel):
    """A prompt; `battle` is the one that it goes on with."""

    model_config = ConfigDict(extra="forbid")

    prompt: Annotated[str, Field(min_length=1, max_length=MOST_CHARACTERS)]
    battle: Id | None = None


class Voted(BaseModel):
    """A vote on a battle."""

    model_config = ConfigDict(extra="forbid")

    battle: Id
    vote: Literal["A", "B", "tie", "both bad"]


def create_app(arena: Arena, keys: Iterable[str], hosts: Iterable[str], per_minute: float = 10.0) -> FastAPI:
    """The application.

    Args:
        arena: of the process.
        keys: any one of them opens it; none: it is open.
        hosts: names and addresses by which browsers may call it.
        per_minute: prompts of one key and address.
    """
    app = FastAPI(title="P2L arena", docs_url=None, redoc_url=None, openapi_url=None)
    secrets = list(keys)
    rate = Rate(per_minute, burst=max(3, math.ceil(per_minute / 2)))

    @app.get("/")
    async def page() -> Response:
        return FileResponse(PAGE / "index.html", headers={"Cache-Control": "no-cache"})

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/api/board")
    async def board() -> dict[str, Any]:
        return arena.board()

    @app.post("/api/battle")
    async def battle(asked: Asked, request: Request) -> Response:
        client = client_of(request.scope, bool(secrets))
        if seconds := rate.wait(client):
            detail = f"too many prompts at once; try again in {math.ceil(seconds)} seconds"
            return JSONResponse({"detail": detail}, 429, {"Retry-After": str(math.ceil(seconds))})
        begun = arena.open(client, asked.prompt) if asked.battle is None else arena.follow(asked.battle, asked.prompt)
        return StreamingResponse(_events(arena, begun), media_type="text/event-stream", headers=_UNBUFFERED)

    @app.post("/api/vote")
    async def vote(voted: Voted) -> dict[str, Any]:
        return await arena.vote(voted.battle, voted.vote)

    app.mount("/page", StaticFiles(directory=PAGE), name="page")
    app.exception_handler(Refused)(_refused)
    app.exception_handler(RequestValidationError)(_wrong_request)
    opened = frozenset({"/", "/healthz", *(f"/page/{path.name}" for path in PAGE.iterdir())})
    any_name = Hosts("", [ANY])  # the door asks for names
    app.add_middleware(
        Guard, hosts=any_name, keys=secrets, feedback_keys=(), open_paths=opened, max_body_bytes=MOST_BYTES
    )
    app.add_middleware(Door, hosts=list(hosts))  # added last, so outermost
    return app


async def _events(arena: Arena, battle: Battle) -> AsyncIterator[str]:
    """The answers as server-sent events."""
    async for event in arena.answers(battle):
        yield f"data: {json.dumps(event)}\n\n"


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)  # noqa: S101 - for the type checker
    return JSONResponse({"detail": str(error)}, error.status)


async def _wrong_request(_: Request, error: Exception) -> Response:
    """The first problem, without what was sent."""
    assert isinstance(error, RequestValidationError)  # noqa: S101 - for the type checker
    first = error.errors()[0]
    key = first["loc"][1] if len(first["loc"]) > 1 else None
    place = key if key in (*Asked.model_fields, *Voted.model_fields) else "the body"
    return JSONResponse({"detail": f"{place}: {first['msg'][0].lower()}{first['msg'][1:]}"}, 422)
