"""The interface: each function is one path. What it needs of the process is `Service`."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from functools import partial
from typing import Annotated, Any, TypeVar

import pydantic_core
from fastapi import APIRouter, Depends, HTTPException, Request, Response

from p2l_plugins.errors import ConfigError, PromptError
from p2l_plugins.outcomes import rk_eta
from p2l_plugins.prompts import Prompt, Turns, as_turns, text_bytes
from p2l_plugins.routing import explain
from p2l_plugins.scoring.flights import Scored
from p2l_plugins.service import metrics, models
from p2l_plugins.service.in_use import InUse
from p2l_plugins.service.service import NotReady, Service

#: Prompts of a leaderboard, in batches.
BOARD_BATCHES = 16

Result = TypeVar("Result")


class ClientLeft(Exception):
    """Nobody waits for the answer any more."""


async def service_of(request: Request) -> Service:
    """The process's service. Async, although it waits for nothing: FastAPI would call it in a thread."""
    service: Service = request.app.state.service
    return service


Serving = Annotated[Service, Depends(service_of)]


_PROBLEMS: dict[int | str, dict[str, Any]] = {
    400: {"model": models.Problem, "description": "the body is not JSON"},
    401: {"model": models.Problem, "description": "no valid key"},
    403: {"model": models.Problem, "description": "a page of another site, or a key that may not speak for users"},
    408: {"model": models.Problem, "description": "the body did not come in time"},
    413: {"model": models.Problem, "description": "the body is too large"},
    415: {"model": models.Problem, "description": "the body is not application/json"},
    421: {"model": models.Problem, "description": "Host is none of the service's names"},
    422: {"model": models.Problem, "description": "a wrong key or value, an empty prompt, or too many"},
    429: {"model": models.Problem, "description": "too many prompts wait, or votes came; see Retry-After"},
    503: {"model": models.Problem, "description": "the bundle is being loaded, or there are too many connections"},
}
api = APIRouter(responses=_PROBLEMS)
probes = APIRouter()


@api.post("/v1/scores", response_model=models.ScoresResponse)
async def scores(asked: models.ScoresRequest, request: Request, service: Serving) -> Response:
    """Coefficients of prompts, one row each."""
    with service.now.held() as in_use:
        p2l = in_use.p2l
        prompts = _turns(asked.prompts, service.settings.max_batch)
        scored = await _scored(request, in_use, prompts)
        entries = [one.entry for one in scored]
        return _json(
            {
                "bundle": p2l.bundle.manifest.name,
                "fingerprint": p2l.fingerprint,
                "family": p2l.family,
                "models": p2l.models,
                "coefs": [entry.coefs.tolist() for entry in entries],
                "raw_eta": None if entries[0].raw_eta is None else [entry.raw_eta for entry in entries],
                "truncated": [entry.truncated for entry in entries],
                "unknown": [entry.unknown for entry in entries],
                "cached": [one.cached for one in scored],
            }
        )


@api.get("/v1/bundle", response_model=models.BundleResponse)
async def bundle(service: Serving) -> Response:
    """The bundle that is served."""
    in_use = service.now
    manifest, everyday = in_use.p2l.bundle.manifest, in_use.p2l.overall
    return _json(
        {
            "name": manifest.name,
            "fingerprint": manifest.fingerprint,
            "family": manifest.family,
            "models": manifest.models,
            "aliases": manifest.aliases,
            "ungrounded": manifest.ungrounded,
            "support": {name: one.record() for name, one in in_use.p2l.support.items()},
            "max_length": manifest.text.max_length,
            "overall": {"coefs": everyday.coefs.tolist(), "raw_eta": everyday.raw_eta},
            "bounds": manifest.bounds._asdict(),
        }
    )


@api.post("/predict", response_model=models.PredictResponse)
async def predict(asked: models.PredictRequest, request: Request, service: Serving) -> Response:
    """Coefficients of one prompt, in the form of the research endpoint."""
    with service.now.held() as in_use:
        (scored,) = await _scored(request, in_use, _turns([asked.prompt], 1))
        entry = scored.entry
        eta = entry.raw_eta
        if eta is not None and in_use.p2l.family == "rk":
            eta = float(rk_eta(eta))
        return _json({"coefs": entry.coefs.tolist(), "eta": eta})


@api.get("/models", response_model=models.ModelsResponse)
async def names(service: Serving) -> Response:
    """The models in the order of the coefficients, in the form of the research endpoint."""
    return _json({"models": service.now.p2l.models})


@api.get("/v1/costs", response_model=models.CostsResponse)
async def costs(service: Serving) -> Response:
    """The costs that `/v1/route` uses where a request brings none."""
    return _json({"costs": service.settings.costs})


@api.post("/v1/route", response_model=models.RouteResponse)
async def route(asked: models.RouteRequest, request: Request, service: Serving) -> Response:
    """Which model answers a prompt under a rule, or which one answers all of several, and why."""
    with service.now.held() as in_use:
        step = service.settings.max_batch
        if (asked.prompt is None) == (asked.prompts is None):
            raise HTTPException(422, "give prompt, or prompts: one of the two")
        table = service.settings.costs
        if asked.costs is not None:
            table = {
                name: cost.model_dump(exclude_none=True) if isinstance(cost, models.Price) else cost
                for name, cost in asked.costs.items()
            }
        if table is None:
            raise ConfigError("there are no costs: give costs in the request, or start the service with --costs")
        prompts = _turns([asked.prompt] if asked.prompt is not None else asked.prompts or [], BOARD_BATCHES * step)
        tokens = [explain.estimated_input_tokens(sum(map(text_bytes, turns))) for turns in prompts]
        price = explain.request_costs(table, "costs", tokens, asked.output_tokens)
        scored = await _unless_left(request, in_use.scores(prompts, step))
        decided = partial(
            explain.explain,
            scored,
            list(table),
            price,
            asked.rule,
            asked.budget,
            asked.objective,
            asked.opponents,
            asked.multiplier,
            in_use.p2l.support,
        )
        decision = decided() if len(prompts) == 1 else await asyncio.to_thread(decided)
        return _json({"fingerprint": in_use.p2l.fingerprint, **decision})


@api.post("/v1/leaderboard", response_model=models.LeaderboardResponse)
async def leaderboard(asked: models.LeaderboardRequest, request: Request, service: Serving) -> Response:
    """The leaderboard of a set of prompts: up to 16 batches of them."""
    with service.now.held() as in_use:
        step = service.settings.max_batch
        prompts = _turns(asked.prompts, BOARD_BATCHES * step)
        board = await _unless_left(request, service.leaderboard(in_use, prompts, step))
        return _json(_named(in_use, board))


@api.get(
    "/v1/overall",
    response_model=models.LeaderboardResponse,
    responses={404: {"model": models.Problem, "description": "the service was started without prompts for it"}},
)
async def overall(service: Serving) -> Response:
    """The board that others are compared with: of everyday prompts, or of those that the service was started with."""
    in_use = service.now
    if not service.settings.overall:
        raise HTTPException(404, "there is no overall board: the service was started without prompts for it")
    if in_use.overall is None:
        raise NotReady("the overall board is being made")
    return _json(_named(in_use, in_use.overall.to_dict()))


@api.post(
    "/v1/feedback",
    response_model=models.StatusResponse,
    status_code=202,
    responses={
        409: {"model": models.Problem, "description": "the service keeps no boards of users, or has no key for it"}
    },
)
async def feedback(asked: models.FeedbackRequest, request: Request, service: Serving) -> Response:
    """Moves the user's own board by a thumb up or down, or by which of two answers was better.

    Needs a key that may speak for users.
    """
    with service.now.held() as in_use:
        p2l, users = in_use.p2l, in_use.users
        if not service.settings.feedback_keys:
            raise HTTPException(
                409, "feedback needs a key that may speak for users: start with --feedback-key-env VARIABLE"
            )
        if users is None:
            raise HTTPException(
                409, "feedback is kept in the shared cache: start the service with one, and with a secret"
            )
        model = p2l.index(asked.model)
        other = None if asked.other is None else p2l.index(asked.other)
        if other == model:
            raise HTTPException(422, "model and other are the same model")
        coefs = None
        if asked.prompt is not None:
            (scored,) = await _scored(request, in_use, _turns([asked.prompt], 1))
            coefs = scored.entry.coefs
        await users.voted(asked.user, model, asked.liked, other, coefs)
        return _json({"status": "accepted"}, 202)


@probes.head("/healthz", include_in_schema=False)
@probes.get("/healthz", response_model=models.StatusResponse)
async def healthz() -> Response:
    """Whether the process lives."""
    return _json({"status": "ok"})


@probes.head("/readyz", include_in_schema=False)
@probes.get(
    "/readyz",
    response_model=models.StatusResponse,
    responses={503: {"model": models.StatusResponse, "description": "loading or stopping"}},
)
async def readyz(service: Serving) -> Response:
    """Whether requests are welcome: the bundle is loaded and warm, and no signal to stop has come."""
    return _json({"status": "ready"}) if service.ready else _json({"status": "not ready"}, 503)


@api.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def metrics_text() -> Response:
    """Prometheus metrics of all processes."""
    content, media_type = metrics.exposition()
    return Response(content, media_type=media_type)


def _turns(prompts: Sequence[Prompt], most: int) -> list[Turns]:
    if len(prompts) > most:
        raise HTTPException(422, f"prompts: {len(prompts)} are more than {most}")
    metrics.REQUEST_PROMPTS.observe(len(prompts))
    turns = []
    for i, prompt in enumerate(prompts):
        try:
            turns.append(as_turns(prompt))
        except PromptError as error:
            raise HTTPException(422, f"prompt {i + 1}: {error}") from None
    return turns


async def _scored(request: Request, in_use: InUse, prompts: Sequence[Turns]) -> list[Scored]:
    """Scores of prompts: at once where they are at hand, else unless the client goes."""
    look = in_use.flights.look(prompts)
    at_hand = in_use.flights.at_hand(look)
    return await _unless_left(request, in_use.flights.score(prompts, look=look)) if at_hand is None else at_hand


async def _unless_left(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """The result of `work`, which is cancelled when the client goes: what nobody waits for need not be scored."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientLeft
    finally:
        working.cancel()
        leaving.cancel()


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _named(in_use: InUse, board: dict[str, Any]) -> dict[str, Any]:
    return {"bundle": in_use.p2l.bundle.manifest.name, "fingerprint": in_use.p2l.fingerprint, **board}


def _json(content: dict[str, Any], status: int = 200) -> Response:
    # pydantic's encoder: a batch is a hundred thousand numbers, which would hold up the event loop for long in json
    return Response(pydantic_core.to_json(content, inf_nan_mode="null"), status, media_type="application/json")
