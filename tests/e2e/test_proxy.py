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
from demo import Proxy, warm_up
from helpers.proxies import MODELS, PROMPT, TAP, at, config_of, delta_of, deployment, ranking_by_bundle, running_proxy

SECRET = "xyzzy-plugh-my-secret"
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}


def stream_of(provider, model):
    """LiteLLM's mock answers do not stream on every route."""
    return at(provider, f"answer of {model}".replace(" ", "%20")) | {"model": f"hosted_vllm/{model}"}


def groups_of(provider, ranking):
    """Groups whose best model for `PROMPT` can't answer, each in another way."""
    best = ranking[0]
    failing = {how: at(provider, how) for how in ("500", "401", "429")} | {"hang": at(provider, "hang", timeout=0.5)}
    plain = deployment("plain", MODELS[0]), deployment("plain", MODELS[1])
    for one in plain:
        one["model_info"]["p2l_model"] = False  # their names are those of two models of the bundle
    return [
        *(deployment("auto", model) for model in MODELS),
        *(
            deployment(how, model, **(params if model == best else {}))
            for how, params in failing.items()
            for model in MODELS
        ),
        *(deployment("window", model) for model in ranking[1:]),
        # by another name: LiteLLM shares what it knows of a window among all deployments of a name
        deployment("window", best, {"max_input_tokens": 4}, model="openai/small"),
        *(deployment("tags", model, tags=["gold" if model == best else "all"]) for model in MODELS),
        *(deployment("cooling", model, **at(provider, "429")) for model in MODELS),
        *(deployment("streams", model, **stream_of(provider, model)) for model in MODELS),
        *plain,
        deployment("one", MODELS[0]),
    ]


@pytest.fixture(scope="module")
def proxy(tmp_path_factory, tap, provider, ranking):
    folder = tmp_path_factory.mktemp("proxy")
    (folder / "tap.py").write_text(TAP)
    groups = groups_of(provider, ranking)
    config = config_of(["litellm_router.p2l_router", "tap.tap"], groups)  # the callback alone, no settings
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
    for prompt in (PROMPT, "Hi! How was your day?", "Write a Python function that merges two sorted lists."):
        expected, value = ranking_by_bundle(prompt)
        response = chat(proxy, prompt)
        assert ranking_of(response) == expected
        assert float(response.headers["x-p2l-win-rate"]) == pytest.approx(value, abs=1e-4)


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


@pytest.mark.parametrize(
    ("path", "group", "body"),
    [
        ("/v1/chat/completions", "auto", {"messages": [{"role": "user", "content": PROMPT}]}),
        ("/v1/messages", "streams", {"messages": [{"role": "user", "content": PROMPT}], "max_tokens": 50}),
        ("/v1/responses", "streams", {"input": PROMPT}),
        ("/v1/completions", "auto", {"prompt": PROMPT}),
    ],
)
def test_streams_are_routed_on_every_route(proxy, ranking, path, group, body):
    body = body | {"model": group, "stream": True}
    with httpx.stream("POST", proxy.url + path, json=body, headers=proxy.headers, timeout=30) as response:
        content = response.read().decode()
    assert response.status_code == 200, content
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["x-p2l-model"] == ranking[0]
    assert ranking_of(response) == ranking
    lines = [json.loads(line[6:]) for line in content.splitlines() if line.startswith("data: {")]
    assert "".join(map(delta_of, lines)) == f"answer of {ranking[0]}"


@pytest.mark.parametrize("how", ["500", "401", "429", "hang"])
def test_when_the_best_model_fails_the_second_answers_the_same_request(proxy, provider, ranking, how):
    before = provider.asked[how]
    response = chat(proxy, PROMPT, model=how)
    assert response.status_code == 200
    assert response.json()["choices"][0]["message"]["content"] == f"answer of {ranking[1]}"
    assert response.headers["x-p2l-model"] == ranking[1]
    assert ranking[2] in ranking_of(response)
    assert provider.asked[how] - before >= 1


def test_a_best_model_that_is_cooling_down_is_not_asked(proxy, provider, ranking):
    chat(proxy, PROMPT, model="429")
    before = provider.asked["429"]
    response = chat(proxy, PROMPT, model="429")
    assert response.headers["x-p2l-model"] == ranking[1]
    assert ranking_of(response) == ranking[1:]
    assert provider.asked["429"] == before


def test_when_all_are_cooling_down_the_answer_is_litellms_own_429(proxy, provider):
    for _ in range(10):  # LiteLLM's cooldown begins a moment after the failure
        before = provider.asked["429"]
        response = chat(proxy, PROMPT, model="cooling")
        assert response.status_code == 429
        if provider.asked["429"] == before:
            break
        time.sleep(0.1)
    assert provider.asked["429"] == before
    assert "No deployments available" in response.text
    assert "p2l" not in response.text


def test_a_best_model_with_too_small_a_window_is_passed_over(proxy, ranking):
    response = chat(proxy, PROMPT, model="window")
    assert response.headers["x-p2l-model"] == ranking[1]
    assert ranking_of(response) == [*ranking[1:], ranking[0]]  # what can't take a prompt comes after what can


@pytest.mark.parametrize(("tag", "place"), [("all", 1), ("gold", 0)])
def test_a_best_model_without_the_requests_tag_is_passed_over(proxy, ranking, tag, place):
    response = chat(proxy, PROMPT, model="tags", metadata={"tags": [tag]})
    assert response.headers["x-p2l-model"] == ranking[place]


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


@pytest.fixture(scope="module")
def broken(tmp_path_factory, provider, ranking):
    """A proxy whose settings have a wrong key."""
    config = tmp_path_factory.mktemp("broken") / "config.yaml"
    groups = groups_of(provider, ranking)
    config.write_text(yaml.safe_dump(config_of(["litellm_router.p2l_router", "prometheus"], groups, rul="cap")))
    with running_proxy(config) as running:
        yield running


def metrics_of(proxy):
    """The samples of a proxy's /metrics that are ours."""
    text = httpx.get(f"{proxy.url}/metrics/", headers=proxy.headers, timeout=30, follow_redirects=True).text
    lines = [line.rsplit(" ", 1) for line in text.splitlines() if line.startswith("p2l_")]
    return {name: float(value) for name, value in lines}


def test_broken_settings_are_said_at_the_start_and_fail_no_request(broken):
    sentence = "p2l_settings.rul = 'cap' is not a setting; valid: bundle, rule"
    end = time.monotonic() + 10
    while sentence not in broken.log.read_text():
        assert time.monotonic() < end, "nothing was said before the first request"
        time.sleep(0.1)
    for _ in range(5):
        response = chat(broken, PROMPT)
        assert response.status_code == 200
        assert response.headers["x-p2l-error"] == "settings"
    assert broken.log.read_text().count(sentence) == 1
    assert PROMPT not in broken.log.read_text()
    metrics = metrics_of(broken)
    assert metrics["p2l_config_problems_total"] == 1
    assert metrics['p2l_not_routed_total{reason="settings"}'] == 5


def test_the_demo_shows_two_passes_and_stops_its_proxy():
    done = subprocess.run(
        [sys.executable, "examples/demo.py"], capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr
    prompts = 15
    assert done.stdout.count(" miss ") == prompts
    assert done.stdout.count(" hit ") == prompts
    assert f"Chosen over {prompts} prompts" in done.stdout
    assert f"The chosen model answered {prompts} of {prompts}" in done.stdout


def test_the_demo_says_what_is_wrong_and_fails(tmp_path):
    empty = tmp_path / "empty.yaml"
    empty.write_text("model_list: []")
    broken = tmp_path / "broken.yaml"
    broken.write_text(yaml.safe_dump(config_of(["litellm_router.no_such_name"], [deployment("a", m) for m in MODELS])))
    for config, says in (
        (tmp_path / "none.yaml", "no such file"),
        (empty, "no model group"),
        (broken, "exit status"),
    ):
        command = [sys.executable, "examples/demo.py", "--config", str(config)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
        assert done.returncode == 1
        assert says in done.stderr
        assert "Traceback (most recent call last)" not in done.stderr.split("The end of the proxy's output")[0]
