"""From nothing to a proxy that routes among your own models: ask, adopt, route, each as a user would."""

from __future__ import annotations

import json
import random

import httpx
import pytest
import yaml
from demo import warm_up
from helpers.answering import provider
from helpers.command import run
from helpers.proxies import running_proxy

from p2l_plugins import P2L

pytest.importorskip("onnx")
pytest.importorskip("scipy")

MODELS = ("minder", "coder", "poet")
TOPICS = {
    "minder": ["Solve {}x + {} = {}.", "What is {} times {} plus {}?", "Integrate x^{} from {} to {}."],
    "coder": ["Write a Python function that sorts {} lists of {} numbers in {} ms.", "Fix the C loop over {}, {}, {}."],
    "poet": ["Write a haiku number {} about the sea in {} words, mood {}.", "A sonnet, {} rhymes, {} lines, {} stars."],
}
PRICE = {"input_cost_per_token": 1e-6, "output_cost_per_token": 2e-6}


def topic_of(text):
    found = (model for model, forms in TOPICS.items() if text.startswith(tuple(form.split("{")[0] for form in forms)))
    return next(found, None)


def answer(model, messages):
    """A model is right on its own topic, and of the others' questions on every fourth."""
    text = messages[-1]["content"]
    right = topic_of(text) == model or sum(map(ord, text + model)) % 4 == 0
    return "right" if right else "wrong"


@pytest.fixture(scope="module")
def road(tmp_path_factory):
    """The folder after both commands, and the provider, which goes on."""
    folder = tmp_path_factory.mktemp("own")
    rng = random.Random(1)
    rows = []
    for i in range(300):
        topic = MODELS[i % 3]
        text = rng.choice(TOPICS[topic]).format(*(rng.randint(2, 99999) for _ in range(3)))
        rows.append({"prompt": text, "category": topic, "reference": "right"})
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with provider(answer) as server:
        deployments = [
            {
                "model_name": "auto",
                "litellm_params": {"model": f"openai/{name}", "api_base": server.url, "api_key": "k"} | PRICE,
            }
            for name in MODELS
        ]
        config = {
            "model_list": deployments,
            "router_settings": {"num_retries": 0},
            "general_settings": {"master_key": "os.environ/LITELLM_MASTER_KEY"},
        }
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        run("votes", "ask", folder / "config.yaml", folder / "prompts.jsonl", "--check", "exact", "--yes",
            "-o", folder / "votes.jsonl")  # fmt: skip
        asked = server.calls()
        run("adopt", folder / "config.yaml", folder / "votes.jsonl", "-o", folder / "bundle",
            "--write-config", folder / "routed.yaml")  # fmt: skip
        yield folder, server, asked


def test_each_model_is_asked_each_prompt_once(road):
    _, _, asked = road
    assert asked == 300 * len(MODELS)


def test_the_bundle_has_exactly_these_models_and_tells_their_topics_apart(road):
    folder, _, _ = road
    p2l = P2L.load(folder / "bundle")
    assert sorted(p2l.models) == sorted(MODELS)
    report = (folder / "bundle" / "report.md").read_text()
    assert "routes" in report
    assert "Solve " not in report


def test_the_proxy_sends_each_prompt_to_the_model_that_can(road):
    folder, _, _ = road
    rng = random.Random(2)
    with running_proxy(folder / "routed.yaml") as proxy, httpx.Client(timeout=30) as client:
        warm_up(client, proxy, "auto")
        right = []
        for topic, forms in TOPICS.items():
            for form in forms:
                text = form.format(*(rng.randint(2, 99999) for _ in range(3)))
                body = {"model": "auto", "messages": [{"role": "user", "content": text}]}
                response = client.post(f"{proxy.url}/v1/chat/completions", json=body, headers=proxy.headers)
                assert response.headers["x-p2l-model"] in MODELS
                right.append(response.headers["x-p2l-model"] == topic)
    assert sum(right) >= 6
