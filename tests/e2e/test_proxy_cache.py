"""Two real LiteLLM proxies, one after the other, share scores in the Redis that LiteLLM itself was given."""

from __future__ import annotations

import os

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # before the first import of litellm: no network

import httpx
import pytest
import yaml
from servers import server

from litellm_router.demo import running_proxy, warm_up
from p2l_plugins import P2L

MODELS = ("gpt-4o-2024-08-06", "llama-3.1-8b-instruct")
PROMPT = "canary words: prove that the square root of 2 is irrational"


@pytest.fixture(scope="module")
def valkey(tmp_path_factory):
    with server(tmp_path_factory.mktemp("valkey")) as one:
        yield one


def config(folder, **settings):
    groups = [
        {
            "model_name": "auto",
            "litellm_params": {"model": f"openai/{model}", "api_key": "k", "mock_response": f"answer of {model}"},
            "model_info": {"id": model, "p2l_model": model},
        }
        for model in MODELS
    ]
    litellm_settings = {"callbacks": ["litellm_router.p2l_router"], **settings}
    general = {"master_key": "os.environ/LITELLM_MASTER_KEY"}
    (folder / "config.yaml").write_text(
        yaml.safe_dump({"model_list": groups, "litellm_settings": litellm_settings, "general_settings": general})
    )
    return folder / "config.yaml"


def cached(path, env, prompt=PROMPT):
    """What a proxy says of the cache: on the first request for a prompt, and on the second."""
    with running_proxy(path, env=env) as proxy, httpx.Client(timeout=30) as client:
        warm_up(client, proxy, "auto")
        body = {"model": "auto", "messages": [{"role": "user", "content": prompt}]}
        answers = [client.post(f"{proxy.url}/v1/chat/completions", json=body, headers=proxy.headers) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 200]
    return [answer.headers["x-p2l-cache"] for answer in answers]


def test_a_second_proxy_finds_what_the_first_one_scored(valkey, tmp_path):
    parameters = {"type": "redis", "host": "127.0.0.1", "port": valkey.port, "supported_call_types": []}
    by_config = config(tmp_path, cache=True, cache_params=parameters)
    assert cached(by_config, {}) == ["miss", "hit"]
    by_environment = config(tmp_path)
    assert cached(by_environment, {"REDIS_HOST": "127.0.0.1", "REDIS_PORT": str(valkey.port)}) == ["hit", "hit"]
    keys = list(valkey.client().scan_iter(f"p2l:1:{P2L.load().fingerprint}:*"))
    assert len(keys) >= 1
    stored = b"".join(key + valkey.client().get(key) for key in keys)
    assert b"canary" not in stored
