"""Two real LiteLLM proxies share scores and a budget in the Redis that LiteLLM itself was given."""

from __future__ import annotations

import os

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # before the first import of litellm: no network

import contextlib
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
import yaml
from demo import warm_up
from helpers.proxies import entered, running_proxy
from helpers.servers import server
from helpers.upstream import upstream

from p2l_plugins import P2L

MODELS = ("gpt-4o-2024-08-06", "llama-3.1-8b-instruct")
#: USD per token of an answer: an answer of 100 tokens costs a hundred times that.
PRICES = (1e-5, 1e-6)
TOKENS = 100
BUDGET = 4e-4
PROMPT = "canary words: prove that the square root of 2 is irrational"


@pytest.fixture(scope="module")
def valkey(tmp_path_factory):
    with server(tmp_path_factory.mktemp("valkey")) as one:
        yield one


def config(path, provider, **settings):
    groups = [
        {
            "model_name": "auto",
            "litellm_params": {
                "model": f"openai/{model}",
                "api_key": "k",
                "api_base": provider.base(model),
                "input_cost_per_token": 0,
                "output_cost_per_token": price,
            },
            "model_info": {"id": model, "p2l_model": model},
        }
        for model, price in zip(MODELS, PRICES, strict=True)
    ]
    rule = {"rule": "paced", "budget": BUDGET, "output_tokens": TOKENS, "timeout_ms": 5000}
    litellm_settings = {"callbacks": ["litellm_router.p2l_router", "prometheus"], "p2l_settings": rule, **settings}
    general = {"master_key": "os.environ/LITELLM_MASTER_KEY"}
    path.write_text(
        yaml.safe_dump({"model_list": groups, "litellm_settings": litellm_settings, "general_settings": general})
    )
    return path


@pytest.fixture(scope="module")
def provider():
    with upstream() as one:
        one.tokens = TOKENS
        yield one


@pytest.fixture(scope="module")
def proxies(valkey, provider, tmp_path_factory):
    """One finds Redis in `cache_params`, the other in the environment."""
    folder = tmp_path_factory.mktemp("proxies")
    parameters = {"type": "redis", "host": "127.0.0.1", "port": valkey.port, "supported_call_types": []}
    first = config(folder / "first.yaml", provider, cache=True, cache_params=parameters)
    second = config(folder / "second.yaml", provider)
    environment = {"REDIS_HOST": "127.0.0.1", "REDIS_PORT": str(valkey.port)}
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(2) as pool, httpx.Client(timeout=30) as client:
        running = [running_proxy(first), running_proxy(second, env=environment)]
        both = [stack.enter_context(one) for one in pool.map(entered, running)]
        for proxy in both:
            warm_up(client, proxy, "auto")
        yield both


def ask(client, proxy, prompt):
    body = {"model": "auto", "messages": [{"role": "user", "content": prompt}]}
    response = client.post(f"{proxy.url}/v1/chat/completions", json=body, headers=proxy.headers)
    assert response.status_code == 200
    return response


def test_a_second_proxy_finds_what_the_first_one_scored(proxies, valkey):
    with httpx.Client(timeout=30) as client:
        said = [ask(client, proxy, PROMPT).headers["x-p2l-cache"] for proxy in (*proxies, *proxies)]
    assert said == ["miss", "hit", "hit", "hit"]
    keys = list(valkey.client().scan_iter(f"p2l:1:{P2L.load().fingerprint}:*"))
    assert len(keys) >= 1
    stored = b"".join(key + valkey.client().get(key) for key in keys)
    assert b"canary" not in stored


def test_two_proxies_hold_one_budget_together(proxies, valkey):
    """One of them gets three quarters of the requests; the budget is of all of them."""
    prompts = [f"{text} {i}" for i in range(60) for text in ("Prove a theorem about", "Hello! Tell me a joke about")]
    requests = [(proxies[min(i % 4, 1)], prompt) for i, prompt in enumerate(prompts * 4)]
    costs = {}

    def send(request):
        proxy, prompt = request
        response = ask(client, proxy, prompt)
        return dict(zip(MODELS, PRICES, strict=True))[response.headers["x-p2l-model"]] * TOKENS

    with httpx.Client(timeout=30) as client, ThreadPoolExecutor(4) as pool:
        spent = list(pool.map(send, requests))
    spent = np.array(spent)
    costs = {proxy.url: spent[[at is proxy for at, _ in requests]].mean() for proxy in proxies}
    print(f"mean cost / budget: {spent.mean() / BUDGET:.3f}, of each proxy {[c / BUDGET for c in costs.values()]}")
    assert spent.mean() == pytest.approx(BUDGET, rel=0.15)
    pace = list(valkey.client().scan_iter("p2l:pace:1:*"))
    assert len(pace) == 1
    end = time.monotonic() + 10
    multipliers = []
    while len(multipliers) < 2 or abs(np.diff(multipliers)[0]) > 0.3 * max(multipliers):
        assert time.monotonic() < end, multipliers
        time.sleep(1.1)  # hand-overs are a second apart
        with httpx.Client(timeout=30) as client:
            for proxy in proxies:
                ask(client, proxy, PROMPT)
        multipliers = [multiplier_of(proxy) for proxy in proxies]


def multiplier_of(proxy):
    text = httpx.get(f"{proxy.url}/metrics/", headers=proxy.headers, timeout=30, follow_redirects=True).text
    return next(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith("p2l_multiplier{"))
