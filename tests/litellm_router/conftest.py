"""A tiny real bundle, scorers that take their time, and deployments."""

from __future__ import annotations

import os

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # before the first import of litellm: no network

import threading
import time
from pathlib import Path

import pytest
import redis.asyncio
from helpers.servers import server
from helpers.word_bundle import write_bundle

from p2l_plugins import P2L


@pytest.fixture(autouse=True)
def no_callbacks_of_other_tests(monkeypatch):
    """LiteLLM keeps every callback that it has seen, up to 30, and takes no more."""
    import litellm

    for kind in ("input", "success", "failure", "_async_input", "_async_success", "_async_failure"):
        monkeypatch.setattr(litellm, f"{kind}_callback", [])


class SlowScorer:
    """A bundle that takes its time, and counts what it is asked."""

    def __init__(self, p2l: P2L, seconds: float) -> None:
        self._p2l = p2l
        self.seconds = seconds
        self.models, self.family, self.fingerprint, self.index = p2l.models, p2l.family, p2l.fingerprint, p2l.index
        self.overall, self.aliases, self.support = p2l.overall, p2l.aliases, p2l.support
        self.workers, self.batch_tokens, self.max_length, self.close = p2l.workers, 1, p2l.max_length, p2l.close
        self.bounds = p2l.bounds
        self.prompts: list[tuple[str, ...]] = []
        self.threads: set[int] = set()
        self.done = threading.Event()

    def score_turns(self, prompts):
        self.prompts += prompts
        self.threads.add(threading.get_ident())
        time.sleep(self.seconds)
        scores = self._p2l.score_turns(prompts)
        self.done.set()
        return scores


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("bundles") / "tiny")


@pytest.fixture(scope="session")
def bt_bundle(tmp_path_factory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("bundles") / "bt", family="bt")


@pytest.fixture(scope="session")
def tiny(tiny_bundle) -> P2L:
    return P2L.load(tiny_bundle)


@pytest.fixture
def slow(tiny):
    """Gives a scorer that takes so many seconds."""
    return lambda seconds: SlowScorer(tiny, seconds)


@pytest.fixture
def deployment():
    """Gives a deployment as LiteLLM's router holds it."""

    def make(id: str, p2l_model: str | None = None, price: float | None = 1e-6, **params) -> dict:
        if price is not None:
            params = {"input_cost_per_token": price, "output_cost_per_token": price} | params
        info = {"id": id} | ({"p2l_model": p2l_model} if p2l_model else {})
        params = {"model": f"openai/{id}", "api_key": "k", "mock_response": f"answer of {id}"} | params
        return {"model_name": "auto", "litellm_params": params, "model_info": info}

    return make


@pytest.fixture
def group(deployment):
    """A deployment of each model, all of one price."""
    return [deployment("x", "alpha"), deployment("y", "beta"), deployment("z", "gamma")]


@pytest.fixture(scope="module")
def valkey(tmp_path_factory):
    with server(tmp_path_factory.mktemp("shared")) as one:
        yield one


@pytest.fixture
async def client(valkey):
    made = redis.asyncio.Redis.from_url(valkey.url)
    await made.flushall()
    yield made
    await made.aclose()
