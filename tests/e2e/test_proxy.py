"""A real LiteLLM proxy over HTTP with the starter bundle; the deployments answer with fixed texts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # before the first import of litellm: no network

import httpx
import pytest
import yaml

from litellm_router.demo import Proxy, running_proxy, warm_up

MODELS = ("gpt-4o-2024-08-06", "llama-3.1-8b-instruct", "qwen2.5-72b-instruct")
PROMPT = "Prove that the square root of 2 is irrational."
SECRET = "xyzzy-plugh-my-secret"
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}

#: Writes what LiteLLM hands to every logger.
TAP = """
import json, os
from litellm.integrations.custom_logger import CustomLogger

class Tap(CustomLogger):
    async def async_log_success_event(self, kwargs, response_obj, start_time, end_time):
        logged = kwargs["standard_logging_object"]["metadata"].get("spend_logs_metadata")
        with open(os.environ["TAP"], "a") as stream:
            stream.write(json.dumps([kwargs["litellm_call_id"], logged]) + "\\n")

tap = Tap()
"""


def deployment(group, model, **params):
    params = {
        "input_cost_per_token": 1e-6,
        "output_cost_per_token": 2e-6,
        "mock_response": f"answer of {model}",
    } | params
    return {
        "model_name": group,
        "litellm_params": {"model": f"openai/{model}", "api_key": "k"} | params,
        "model_info": {"id": f"{group}/{model}", "p2l_model": model},
    }


def config_of(callbacks, **p2l_settings):
    groups = [deployment("auto", model) for model in MODELS]
    for error in ("InternalServerError", "RateLimitError"):
        for failing in MODELS:
            group = f"{error}-{failing}"
            groups += [
                deployment(group, model, **({"mock_response": f"litellm.{error}"} if model == failing else {}))
                for model in MODELS
            ]
    plain = deployment("plain", MODELS[0]), deployment("plain", MODELS[1])
    for one in plain:
        del one["model_info"]["p2l_model"]
    return {
        "model_list": [*groups, *plain, deployment("one", MODELS[0])],
        "litellm_settings": {"callbacks": callbacks} | ({"p2l_settings": p2l_settings} if p2l_settings else {}),
        "general_settings": {"master_key": "os.environ/LITELLM_MASTER_KEY"},
    }


@pytest.fixture(scope="module")
def tap(tmp_path_factory):
    return tmp_path_factory.mktemp("tap") / "tap.jsonl"


@pytest.fixture(scope="module")
def proxy(tmp_path_factory, tap):
    folder = tmp_path_factory.mktemp("proxy")
    (folder / "tap.py").write_text(TAP)
    config = config_of(["litellm_router.p2l_router", "tap.tap"])  # the callback alone, no settings
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    with running_proxy(folder / "config.yaml", env={"TAP": str(tap)}) as running:
        with httpx.Client(timeout=30) as client:
            warm_up(client, running, "auto")
        yield running


def post(proxy: Proxy, path: str, **body) -> httpx.Response:
    return httpx.post(proxy.url + path, json=body, headers=proxy.headers, timeout=30)


def chat(proxy: Proxy, content, model="auto", **body) -> httpx.Response:
    messages = [{"role": "user", "content": content}]
    return post(proxy, "/v1/chat/completions", model=model, messages=messages, **body)


def ranking_of(response) -> list[str]:
    return response.headers["x-p2l-ranking"].split(",")


def test_the_best_model_answers_and_the_headers_tell_why(proxy):
    response = chat(proxy, "Which enzyme is rate-limiting in glycolysis?")
    assert response.status_code == 200
    ranking = ranking_of(response)
    assert sorted(ranking) == sorted(MODELS)
    assert response.headers["x-p2l-model"] == ranking[0]
    assert response.json()["choices"][0]["message"]["content"] == f"answer of {ranking[0]}"
    assert 0 < float(response.headers["x-p2l-win-rate"]) < 1
    # 11 tokens of prompt, and the length of answers that earlier ones have taught: from 500 down towards 20
    assert 20 * 2e-6 < float(response.headers["x-p2l-cost"]) - 11e-6 <= 500 * 2e-6 + 1e-12
    assert float(response.headers["x-p2l-ms"]) > 0


def test_the_ranking_is_the_one_that_the_bundle_gives(proxy):
    from p2l_plugins import P2L
    from p2l_plugins.routing import values

    p2l = P2L.load()
    columns = [p2l.index(model) for model in MODELS]
    for prompt in (PROMPT, "Hi! How was your day?", "Write a Python function that merges two sorted lists."):
        scores = p2l.score([prompt])
        eta = None if scores.raw_eta is None else scores.raw_eta[0]
        value = values("win_rate", p2l.family, scores.coefs[0, columns], eta)
        expected = [MODELS[i] for i in (-value).argsort()]
        response = chat(proxy, prompt)
        assert ranking_of(response) == expected
        assert float(response.headers["x-p2l-win-rate"]) == pytest.approx(value.max(), abs=1e-4)


def test_the_second_time_the_scores_come_from_the_cache_on_every_route(proxy):
    prompt = "Under English law, can a contract be enforced when one party signed it by mistake?"
    assert chat(proxy, prompt).headers["x-p2l-cache"] == "miss"
    again = [
        chat(proxy, prompt),
        chat(proxy, [{"type": "text", "text": prompt}, IMAGE]),
        post(proxy, "/v1/messages", model="auto", max_tokens=50, messages=[{"role": "user", "content": prompt}]),
        post(proxy, "/v1/responses", model="auto", input=prompt),
        post(proxy, "/v1/completions", model="auto", prompt=prompt),
    ]
    for response in again:
        assert response.status_code == 200
        assert response.headers["x-p2l-cache"] == "hit"
        assert f"answer of {response.headers['x-p2l-model']}" in response.text


def test_streaming_is_routed(proxy):
    body = {"model": "auto", "stream": True, "messages": [{"role": "user", "content": PROMPT}]}
    with httpx.stream(
        "POST", f"{proxy.url}/v1/chat/completions", json=body, headers=proxy.headers, timeout=30
    ) as response:
        chunks = [json.loads(line[6:]) for line in response.iter_lines() if line.startswith("data: {")]
    text = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks if chunk["choices"])
    assert text == f"answer of {response.headers['x-p2l-model']}"


@pytest.mark.parametrize("error", ["InternalServerError", "RateLimitError"])
def test_when_the_best_model_fails_the_second_answers_the_same_request(proxy, error):
    best, second, third = ranking_of(chat(proxy, PROMPT))
    response = chat(proxy, PROMPT, model=f"{error}-{best}")
    assert response.status_code == 200
    assert response.json()["choices"][0]["message"]["content"] == f"answer of {second}"
    assert response.headers["x-p2l-model"] == second
    assert third in response.headers["x-p2l-ranking"]


@pytest.mark.parametrize("content", ["", "   ", [IMAGE], [{"type": "text", "text": ""}]], ids=repr)
def test_a_prompt_without_text_is_left_to_litellm(proxy, content):
    response = chat(proxy, content)
    assert response.status_code == 200
    assert response.headers["x-p2l-error"] == "no_text"
    assert "x-p2l-model" not in response.headers


@pytest.mark.parametrize("group", ["plain", "one"])
def test_groups_without_a_choice_are_untouched(proxy, group):
    response = chat(proxy, PROMPT, model=group)
    assert response.status_code == 200
    assert not [name for name in response.headers if name.startswith("x-p2l")]


def test_loggers_get_the_decision_and_no_text_of_the_prompt(proxy, tap):
    response = chat(proxy, f"{PROMPT} {SECRET}")
    end = time.monotonic() + 20
    record = None
    while record is None:
        assert time.monotonic() < end, "the decision did not reach the logger"
        time.sleep(0.1)
        logged = dict(map(json.loads, tap.read_text().splitlines())) if tap.exists() else {}
        record = (logged.get(response.headers["x-litellm-call-id"]) or {}).get("p2l")
    assert record["model"] == response.headers["x-p2l-model"]
    assert set(record["values"]) == set(MODELS)
    assert SECRET not in tap.read_text() + proxy.log.read_text() + str(response.headers)


def test_broken_settings_fail_no_request_and_are_said_once(tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(config_of(["litellm_router.p2l_router"], rul="cap")))
    with running_proxy(config) as proxy:
        for _ in range(5):
            response = chat(proxy, PROMPT)
            assert response.status_code == 200
            assert response.headers["x-p2l-error"] == "settings"
        log = proxy.log.read_text()
    assert log.count("p2l_settings.rul = 'cap' is not a setting; valid: bundle, rule") == 1
    assert PROMPT not in log


def test_the_demo_shows_two_passes_and_stops_its_proxy():
    done = subprocess.run(
        [sys.executable, "-m", "litellm_router.demo"], capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr
    prompts = 15
    assert done.stdout.count(" miss ") == prompts
    assert done.stdout.count(" hit ") == prompts
    assert f"Chosen over {prompts} prompts" in done.stdout


def test_the_demo_says_what_is_wrong_and_fails(tmp_path):
    empty = tmp_path / "empty.yaml"
    empty.write_text("model_list: []")
    broken = tmp_path / "broken.yaml"
    broken.write_text(yaml.safe_dump(config_of(["litellm_router.no_such_name"])))
    for config, says in (
        (tmp_path / "none.yaml", "no such file"),
        (empty, "no model group"),
        (broken, "exit status"),
    ):
        command = [sys.executable, "-m", "litellm_router.demo", "--config", str(config)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
        assert done.returncode == 1
        assert says in done.stderr
        assert "Traceback (most recent call last)" not in done.stderr.split("The end of the proxy's output")[0]
