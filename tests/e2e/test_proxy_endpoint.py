"""A real proxy that holds no model: an HTTP scorer has it, and misbehaves while requests go on."""

from __future__ import annotations

import os

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # before the first import of litellm: no network

import time

import httpx
import numpy as np
import pytest
import yaml
from demo import running_proxy, warm_up
from helpers.http_scorer import http_scorer

from p2l_plugins import P2L

MODELS = ("gpt-4o-2024-08-06", "llama-3.1-8b-instruct", "qwen2.5-72b-instruct")
KEY = "a key of the scorer"
DEADLINE_MS = 100
PROMPTS = 20


def deployment(group, name, **params):
    params = {"input_cost_per_token": 1e-6, "output_cost_per_token": 2e-6} | params
    params |= {"model": f"openai/{name}", "api_key": "k", "mock_response": f"answer of {name}"}
    return {"model_name": group, "litellm_params": params, "model_info": {"p2l_model": name}}


@pytest.fixture(scope="module")
def scorer():
    with http_scorer(P2L.load(threads=1), KEY) as server:
        yield server


@pytest.fixture(scope="module")
def proxy(scorer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("endpoint")
    settings = {"endpoint": scorer.url, "endpoint_key": "os.environ/P2L_TEST_SCORER_KEY", "timeout_ms": DEADLINE_MS}
    groups = [deployment("auto", name) for name in MODELS]
    groups += [deployment("wrong", MODELS[0]), deployment("wrong", "gpt-40"), deployment("wrong", MODELS[1])]
    groups[-1]["litellm_params"]["input_cost_per_token"] = -1e-6
    config = {
        "model_list": groups,
        "litellm_settings": {"callbacks": ["litellm_router.p2l_router", "prometheus"], "p2l_settings": settings},
        "general_settings": {"master_key": "os.environ/LITELLM_MASTER_KEY"},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    with running_proxy(folder / "config.yaml", env={"P2L_TEST_SCORER_KEY": KEY}) as running:
        with httpx.Client(timeout=30) as client:
            warm_up(client, running, "auto")
        yield running


def ask(client, proxy, text):
    """Milliseconds of a request, and its answer."""
    body = {"model": "auto", "messages": [{"role": "user", "content": text}]}
    started = time.perf_counter()
    response = client.post(f"{proxy.url}/v1/chat/completions", json=body, headers=proxy.headers)
    assert response.status_code == 200
    return 1e3 * (time.perf_counter() - started), response


def metrics_of(proxy):
    text = httpx.get(f"{proxy.url}/metrics/", headers=proxy.headers, timeout=30, follow_redirects=True).text
    lines = [line.rsplit(" ", 1) for line in text.splitlines() if line.startswith("p2l_")]
    return {name: float(value) for name, value in lines}


def test_what_is_wrong_with_the_deployments_was_said_before_the_first_request(proxy):
    log = proxy.log.read_text()
    assert log.count("model_info.p2l_model = 'gpt-40' is not in the bundle; ") == 1
    assert log.count("litellm_params.input_cost_per_token = -1e-06 is not a price; valid: USD per token") == 1
    said = [line for line in log.splitlines() if "p2l: model_list: " in line]
    assert metrics_of(proxy)["p2l_config_problems_total"] == len(said) == 2, said
    assert KEY not in log


def test_the_scores_of_the_endpoint_decide_and_are_kept(proxy, scorer):
    with httpx.Client(timeout=30) as client:
        text = "Which enzyme is rate-limiting in glycolysis?"
        for _ in range(5):  # a busy machine may miss the deadline: then the scores are there the next time
            _, response = ask(client, proxy, text)
            if "x-p2l-model" in response.headers:
                break
        scores = scorer.p2l.score([text])
        best = max(MODELS, key=lambda name: scores.coefs[0, scorer.p2l.index(name)])
        assert response.headers["x-p2l-model"] == best
        calls = len(scorer.asked)
        assert ask(client, proxy, text)[1].headers["x-p2l-cache"] == "hit"
        assert len(scorer.asked) == calls


@pytest.mark.parametrize(
    ("mode", "reasons"),
    [
        ("raise", {"endpoint"}),
        ("nan", {"scorer"}),
        ("short", {"scorer"}),
        ("busy", {"busy"}),
        ("hang", {"deadline", "endpoint"}),
    ],
)
def test_while_the_scorer_misbehaves_litellm_decides_and_no_request_fails(proxy, scorer, mode, reasons):
    known = "A prompt whose scores are kept."
    with httpx.Client(timeout=30) as client:
        end = time.monotonic() + 20
        while "x-p2l-model" not in ask(client, proxy, f"Are you well before {mode}?")[1].headers:
            assert time.monotonic() < end  # the scorer is left alone for some seconds after failures
            time.sleep(0.1)
        ask(client, proxy, known)
        scorer.mode = mode
        normal, troubled, said = [], [], set()
        try:
            for i in range(PROMPTS):
                ms, response = ask(client, proxy, f"Prompt {i} while the scorer has the trouble {mode}.")
                troubled.append(ms)
                said.add(response.headers["x-p2l-error"])
                ms, response = ask(client, proxy, known)
                assert response.headers["x-p2l-cache"] == "hit"
                normal.append(ms)
        finally:
            scorer.mode = "ok"
            scorer.released.set()
        scorer.released.clear()
    assert said <= reasons | {"deadline", "endpoint"}
    assert said & reasons
    assert np.median(troubled) <= np.median(normal) + DEADLINE_MS + 20


def test_the_metrics_tell_what_happened(proxy):
    metrics = metrics_of(proxy)
    for reason in ("endpoint", "scorer", "busy"):
        assert metrics[f'p2l_not_routed_total{{reason="{reason}"}}'] >= 1
    assert metrics['p2l_cache_hits_total{tier="memory"}'] >= PROMPTS
    assert "p2l_cache_misses_total" in metrics
