"""A real proxy whose best model can't answer, in every way and on every route: who answers, and what is said of it."""

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
from demo import warm_up
from helpers.proxies import PROMPT, TAP, at, config_of, delta_of, deployment, running_proxy

from litellm_router.routers import litellm_version

HOW = ("400", "404", "413", "422", "context", "policy", "401", "403", "429", "500", "503", "hang")
ROUTES = {
    "chat": ("/v1/chat/completions", {"messages": [{"role": "user", "content": PROMPT}]}),
    "messages": ("/v1/messages", {"messages": [{"role": "user", "content": PROMPT}], "max_tokens": 50}),
    "responses": ("/v1/responses", {"input": PROMPT}),
    "completions": ("/v1/completions", {"prompt": PROMPT}),
}

#: A callback after ours that puts all deployments back.
UNDOING = """
from litellm.integrations.custom_logger import CustomLogger

class Undoing(CustomLogger):
    async def async_filter_deployments(self, model, *_, **__):
        from litellm.proxy.proxy_server import llm_router
        return llm_router.get_model_list(model_name=model)[::-1]

undoing = Undoing()
"""


def group_of(provider, name, ranking, how):
    """A group whose models answer with their names, but for some."""
    return [
        deployment(
            name,
            model,
            **at(provider, how.get(model, model), name=model, timeout=0.5 if how.get(model) == "hang" else 30)
            | {"model": f"openai/{name}-{model}"},
        )
        for model in ranking
    ]


#: Who a request is from, by its key.
AUTH = """
import hashlib
from litellm.proxy._types import UserAPIKeyAuth

async def user(request, api_key):
    team = api_key.partition("-of-")[2] or None
    return UserAPIKeyAuth(api_key=hashlib.sha256(api_key.encode()).hexdigest(), team_id=team)
"""


def of_team(provider, team, ranking, how):
    """The models of a team, each with a name of LiteLLM's own and all with one for the team."""
    for one in group_of(provider, team, ranking, how):
        one["model_name"] = f"model_name_{team}_{one['model_info']['p2l_model']}"
        one["model_info"] |= {"team_id": team, "team_public_model_name": "own"}
        yield one


@pytest.fixture(scope="module")
def proxy_with_names(tmp_path_factory, provider, ranking):
    """A proxy whose groups are asked for by other names than their own."""
    folder = tmp_path_factory.mktemp("names")
    (folder / "auth.py").write_text(AUTH)
    refused = {ranking[0]: "400"}
    groups = [
        *group_of(provider, "group", ranking, refused),
        *of_team(provider, "several", ranking, refused),
        *of_team(provider, "one", ranking[1:2], {}),
        *group_of(provider, "wild-*", ranking, refused),
    ]
    config = config_of(["litellm_router.p2l_router"], groups, timeout_ms=5000)
    config["router_settings"] = {"disable_cooldowns": True, "model_group_alias": {"alias": "group", "led": "wild-7"}}
    config["general_settings"]["custom_auth"] = "auth.user"
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    with running_proxy(folder / "config.yaml") as running, httpx.Client(timeout=30) as client:
        warm_up(client, running, "group")
        yield running


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(
    ("name", "key"),
    [("group", "k"), ("alias", "k"), ("led", "k"), ("own", "k-of-several"), ("wild-1", "k"), ("wild-2", "k-of-one")],
)
def test_failover_holds_by_whatever_name_a_group_is_asked_for(proxy_with_names, ranking, route, name, key):
    path, body = ROUTES[route]
    headers = {"Authorization": f"Bearer {key}"}
    # a name of its own on each route, so that each is the first request for it
    asked = f"{name}-{route}" if name.startswith("wild") else name
    answer = httpx.post(proxy_with_names.url + path, json=body | {"model": asked}, headers=headers, timeout=60)
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-p2l-model"] == ranking[1]
    assert answer.headers["x-p2l-ranking"] == ",".join(ranking)


def test_a_team_with_one_model_under_a_name_that_has_several_for_others_is_left_alone(proxy_with_names):
    body = {"model": "own", "messages": [{"role": "user", "content": PROMPT}]}
    for key, seen in (("k-of-several", True), ("k-of-one", False)):
        headers = {"Authorization": f"Bearer {key}"}
        answer = httpx.post(f"{proxy_with_names.url}/v1/chat/completions", json=body, headers=headers, timeout=60)
        assert answer.status_code == 200
        assert any(name.startswith("x-p2l") for name in answer.headers) == seen


@pytest.fixture(scope="module")
def proxy(tmp_path_factory, tap, provider, ranking):
    folder = tmp_path_factory.mktemp("proxy")
    (folder / "tap.py").write_text(TAP)
    groups = [one for how in HOW for one in group_of(provider, how, ranking, {ranking[0]: how})]
    groups += group_of(provider, "ok", ranking, {})
    groups += group_of(provider, "refused", ranking, dict.fromkeys(ranking, "400"))
    config = config_of(["litellm_router.p2l_router", "tap.tap"], groups, timeout_ms=5000)
    config["router_settings"] = {"disable_cooldowns": True}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    with running_proxy(folder / "config.yaml", env={"TAP": str(tap)}) as running, httpx.Client(timeout=30) as client:
        warm_up(client, running, "ok")
        yield running


def ask(proxy, route, group, stream):
    """The text of an answer, its status and its headers."""
    path, body = ROUTES[route]
    body = body | {"model": group, "stream": stream}
    with httpx.stream("POST", proxy.url + path, json=body, headers=proxy.headers, timeout=60) as response:
        content = response.read().decode()
    if stream and response.status_code == 200:
        lines = [json.loads(line[6:]) for line in content.splitlines() if line.startswith("data: {")]
        content = "".join(map(delta_of, lines))
    return content, response.status_code, response.headers


WAYS = [(route, stream) for route in ROUTES for stream in (False, True) if (route, stream) != ("completions", True)]


@pytest.mark.parametrize(("route", "stream"), WAYS)
@pytest.mark.parametrize("how", HOW)
def test_the_second_best_answers_whatever_the_best_says(proxy, provider, ranking, how, route, stream):
    provider.taken.clear()
    content, status, headers = ask(proxy, route, how, stream)
    assert (status, provider.taken) == (200, ranking[:2]), content
    assert ranking[1] in content
    assert headers["x-p2l-model"] == ranking[1]
    assert headers["x-p2l-ranking"] == ",".join(ranking)
    assert "x-p2l-error" not in headers


def test_a_stream_of_a_text_completion_is_not_tried_again_by_any_litellm(proxy, provider, ranking):
    provider.taken.clear()
    _, status, _ = ask(proxy, "completions", "500", stream=True)
    assert (status, provider.taken) == (500, ranking[:1])


@pytest.mark.parametrize("route", ROUTES)
def test_thirty_equal_requests_go_to_the_first_of_the_ranking(proxy, provider, ranking, route):
    provider.taken.clear()
    answers = [ask(proxy, route, "ok", stream=False) for _ in range(30)]
    assert provider.taken == [ranking[0]] * 30
    assert {headers["x-p2l-model"] for _, _, headers in answers} == {ranking[0]}


def test_a_body_that_every_model_refuses_costs_three_attempts_and_is_the_providers_own_error(proxy, provider, ranking):
    provider.taken.clear()
    content, status, headers = ask(proxy, "chat", "refused", stream=False)
    assert (status, provider.taken) == (400, ranking)
    assert "BadRequestError: OpenAIException - no" in json.loads(content)["error"]["message"]
    assert "x-p2l-model" not in headers


def test_loggers_are_told_who_answered(proxy, tap, ranking):
    _, _, headers = ask(proxy, "chat", "400", stream=False)
    end = time.monotonic() + 20
    record = None
    while record is None:
        assert time.monotonic() < end, "the decision did not reach the logger"
        time.sleep(0.1)
        logged = dict(map(json.loads, tap.read_text().splitlines())) if tap.exists() else {}
        record = (logged.get(headers["x-litellm-call-id"]) or {}).get("p2l")
    assert (record["ranking"], record["answered"]) == (ranking, ranking[1])
    assert record["offered"] == [f"400/{ranking[1]}"]


def test_the_start_of_the_proxy_says_which_litellm_it_is_and_what_is_set_for_the_operator(proxy):
    log = proxy.log.read_text()
    assert f"LiteLLM {litellm_version()}" in log
    assert log.count("every error of a provider goes on to the next best model, 3 at most") == 1


def test_a_choice_that_is_undone_is_noticed(tmp_path, provider, ranking):
    (tmp_path / "undoing.py").write_text(UNDOING)
    groups = group_of(provider, "ok", ranking, {})
    config = config_of(["litellm_router.p2l_router", "undoing.undoing", "prometheus"], groups, timeout_ms=5000)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    with running_proxy(tmp_path / "config.yaml") as running, httpx.Client(timeout=30) as client:
        warm_up(client, running, "ok")
        elsewhere = 0
        for _ in range(30):
            content, _, headers = ask(running, "chat", "ok", stream=False)
            assert headers["x-p2l-model"] in content
            elsewhere += headers["x-p2l-model"] != ranking[0]
            assert headers.get("x-p2l-error") == (None if headers["x-p2l-model"] == ranking[0] else "not_followed")
        assert elsewhere
        assert running.log.read_text().count("does not follow the ranking") == 1
        text = httpx.get(f"{running.url}/metrics/", headers=running.headers, timeout=30, follow_redirects=True).text
        live = check_live(running, "--requests", "20")
        assert live.returncode == 1
        assert "does not follow the ranking" in live.stderr
        counted = next(line for line in text.splitlines() if line.startswith("p2l_not_followed_total"))
        assert elsewhere <= float(counted.split()[-1]) <= elsewhere + 1  # one more while the proxy warmed up


def check_live(proxy, *options):
    command = [sys.executable, "-m", "p2l_plugins.cli", "check", "--live", proxy.url, *options]
    env = os.environ | {"LITELLM_MASTER_KEY": proxy.key}
    return subprocess.run(command, capture_output=True, text=True, env=env, timeout=120, check=False)


def test_check_live_says_whether_routing_works(proxy, ranking):
    works = check_live(proxy, "--group", "ok")
    assert works.returncode == 0, works.stderr
    assert "| ok | 5 | 5 |" in works.stdout
    assert "routing works" in works.stdout
    every = check_live(proxy, "--json")
    found = {one["group"]: one for one in json.loads(every.stdout)["live"]}
    assert every.returncode == 1
    assert found.keys() == {*HOW, "ok", "refused"}
    assert not found["ok"]["problems"]
    assert "status 400" in found["refused"]["problems"][0]
    assert found["500"]["problems"][0].endswith("the first of the ranking failed")


def test_check_live_names_what_it_can_not_reach(proxy):
    nowhere = subprocess.run(
        [sys.executable, "-m", "p2l_plugins.cli", "check", "--live", "http://127.0.0.1:9"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert nowhere.returncode == 1
    assert "no answer" in nowhere.stderr
    wrong = check_live(proxy, "--key", "sk-wrong-key-of-somebody-else")
    assert wrong.returncode == 1
    assert "status 40" in wrong.stderr
