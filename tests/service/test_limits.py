"""Keys, a full queue, clients that leave, and the cache that services share."""

import asyncio
import time

import httpx
import pytest
from helpers.servers import server
from helpers.serving import in_thread, until

from p2l_plugins import P2L
from p2l_plugins.cache.settings import CacheSettings
from p2l_plugins.service.app import create_app
from p2l_plugins.service.settings import ServiceSettings

LONG = "word " * 500


@pytest.fixture(scope="module")
def keyed():
    with in_thread(create_app(ServiceSettings(keys=("first-key", "zweiter-schlüssel")))) as url:
        yield url


@pytest.mark.parametrize(
    "headers",
    [
        {"api-key": "first-key"},
        {"Authorization": "Bearer first-key"},
        {"authorization": "bearer  first-key"},
        {"api-key": "zweiter-schlüssel".encode()},
    ],
)
def test_any_key_opens_in_either_header(keyed, headers):
    assert httpx.get(f"{keyed}/models", headers=headers).status_code == 200
    assert httpx.post(f"{keyed}/v1/scores", headers=headers, json={"prompts": ["hi"]}).status_code == 200
    assert "p2l_service" in httpx.get(f"{keyed}/metrics", headers=headers).text


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"api-key": ""},
        {"api-key": "first-ke"},
        {"api-key": "first-key2"},
        {"Authorization": "Basic first-key"},
        {"Authorization": "first-key"},
        {"api-key": b"\xff\xfe"},
    ],
)
def test_without_a_right_key_only_the_page_and_the_probes_answer(keyed, headers):
    for path in ("/models", "/v1/bundle", "/metrics", "/v1/overall", "/nothing"):
        answer = httpx.get(f"{keyed}{path}", headers=headers)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"
    # not even the body is looked at
    assert httpx.post(f"{keyed}/v1/scores", headers=headers, content=b"no json").status_code == 401
    for path in ("/", "/page/page.js", "/healthz", "/readyz", "/openapi.json"):
        assert httpx.get(f"{keyed}{path}", headers=headers).status_code == 200


async def _ask(client, prompts):
    return await client.post("/v1/scores", json={"prompts": prompts})


async def test_a_full_queue_refuses_at_once_and_whole_requests():
    settings = ServiceSettings(max_pending=8, max_batch=8)
    with in_thread(create_app(settings)) as url:
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:
            asked = [[f"{i} {j} {LONG}" for j in range(4)] for i in range(12)]
            answers = await asyncio.gather(*(_ask(client, prompts) for prompts in asked))
            statuses = sorted(answer.status_code for answer in answers)
            assert set(statuses) == {200, 429}
            refused = next(answer for answer in answers if answer.status_code == 429)
            assert int(refused.headers["retry-after"]) >= 1
            assert "prompts wait" in refused.json()["detail"]
            # the same prompt asked by many is one that waits, and room comes back
            same = await asyncio.gather(*(_ask(client, [f"same {LONG}"]) for _ in range(32)))
            assert {answer.status_code for answer in same} == {200}
            assert len({answer.text.replace("true", "false") for answer in same}) == 1


async def test_what_nobody_waits_for_is_dropped():
    with in_thread(create_app(ServiceSettings())) as url:
        async with httpx.AsyncClient(base_url=url) as client:
            before = _metric(url, "p2l_service_run_prompts_count")
            prompts = [f"{i} {LONG}" for i in range(256)]
            with pytest.raises(httpx.ReadTimeout):
                await client.post("/v1/scores", json={"prompts": prompts}, timeout=0.3)
        started = time.monotonic()
        until(lambda: _metric(url, "p2l_service_waiting_prompts") == 0, 20)
        assert time.monotonic() - started < 5
        assert _metric(url, "p2l_service_run_prompts_count") - before < 200


class Failing(P2L):
    """The starter, which fails on one prompt, with the prompt in the error."""

    def score_turns(self, prompts, progress=None):
        if any("xylophone" in turn for turns in prompts for turn in turns):
            raise ValueError(f"can't score {prompts}")
        return super().score_turns(prompts, progress)


def test_a_prompt_that_the_model_fails_on_fails_its_own_request_and_is_not_named(caplog):
    with in_thread(create_app(ServiceSettings(), lambda _: Failing.load("starter"))) as url:
        for _ in range(2):
            answer = httpx.post(f"{url}/v1/scores", json={"prompts": ["hi", "xylophone"]})
            assert answer.status_code == 500
            assert answer.json() == {"detail": "the model failed on a prompt (ValueError)"}
            assert httpx.post(f"{url}/v1/scores", json={"prompts": ["hi", "there"]}).status_code == 200
    assert "xylophone" not in caplog.text


def _metric(url, name):
    lines = httpx.get(f"{url}/metrics", timeout=20).text.splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(f"{name} "))


def test_services_share_scores_and_ask_for_a_batch_in_one_command(tmp_path):
    with server(tmp_path) as valkey:
        settings = ServiceSettings(cache=CacheSettings(url=valkey.url, secret="pepper", deadline_ms=5000))
        prompts = [f"shared {i}" for i in range(50)]
        with in_thread(create_app(settings)) as url:
            first = httpx.post(f"{url}/v1/scores", json={"prompts": prompts}).json()
        assert valkey.client().dbsize() == len(prompts)  # written before the service ended
        with in_thread(create_app(settings)) as url:
            valkey.client().config_resetstat()
            second = httpx.post(f"{url}/v1/scores", json={"prompts": [*prompts, "new"]}).json()
        assert first["cached"] == [False] * 50
        assert second["cached"] == [True] * 50 + [False]
        assert second["coefs"][:50] == first["coefs"]
        assert valkey.client().info("commandstats")["cmdstat_mget"]["calls"] == 1


def test_without_redis_it_serves_all_the_same(tmp_path):
    with server(tmp_path) as valkey:
        gone = valkey.url
    with in_thread(create_app(ServiceSettings(cache=CacheSettings(url=gone)))) as url:
        assert httpx.post(f"{url}/v1/scores", json={"prompts": ["hi"]}).status_code == 200
