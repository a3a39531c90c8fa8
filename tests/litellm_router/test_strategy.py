"""LiteLLM's SDK with `P2LRoutingStrategy`: sync and async methods of a real router, with mock answers."""

import asyncio
import contextlib
import time

import litellm
import pytest
from litellm import Router

from litellm_router import P2LRouter, P2LRoutingStrategy, P2LSettings

BEST = {"math": "alpha", "code": "beta", "chat": "gamma"}


@pytest.fixture
def p2l(tiny_bundle):
    router = P2LRouter(P2LSettings(bundle=str(tiny_bundle), timeout_ms=20_000))
    yield router
    litellm.callbacks = [callback for callback in litellm.callbacks if callback is not router]


@pytest.fixture
def router_of(p2l):
    def make(*deployments, **options):
        router = Router(model_list=list(deployments), **({"num_retries": 2} | options))
        P2LRoutingStrategy.install(router, p2l)
        return router

    return make


@pytest.fixture
def group(deployment):
    return [deployment(f"id-{name}", name) for name in ("alpha", "beta", "gamma")]


def ask(router, word, model="auto", **options):
    messages = [{"role": "user", "content": word}]
    return router.completion(model, messages=messages, **options).choices[0].message.content


@pytest.mark.parametrize("word", BEST)
def test_a_sync_call_goes_to_the_best_model(router_of, group, word):
    assert ask(router_of(*group), word) == f"answer of id-{BEST[word]}"


@pytest.mark.parametrize("word", BEST)
def test_an_async_call_goes_there_too(router_of, group, word):
    router = router_of(*group)
    messages = [{"role": "user", "content": word}]
    response = asyncio.run(router.acompletion("auto", messages=messages))
    assert response.choices[0].message.content == f"answer of id-{BEST[word]}"


async def test_a_sync_call_inside_an_event_loop_is_routed(router_of, group):
    assert ask(router_of(*group), "code") == "answer of id-beta"


def test_the_second_best_answers_when_the_best_fails(router_of, deployment):
    group = [
        deployment("s1", "alpha", mock_response="litellm.InternalServerError"),
        deployment("s2", "beta"),
        deployment("s3", "gamma"),
    ]
    assert ask(router_of(*group), "math") == "answer of s2"


def test_deployments_of_one_model_share_the_load(router_of, deployment):
    router = router_of(deployment("t1", "alpha"), deployment("t2", "alpha"), deployment("t3", "beta"))
    assert {ask(router, "math") for _ in range(40)} == {"answer of t1", "answer of t2"}


def test_groups_that_are_not_ours_are_left_alone(router_of, group, deployment, p2l):
    plain = deployment("plain-1") | {"model_name": "plain"}
    router = router_of(*group, plain)
    assert ask(router, "math", model="plain") == "answer of plain-1"
    assert not p2l.health.counts


def test_a_failure_of_ours_leaves_the_choice_to_litellm(router_of, group, p2l, monkeypatch):
    router = router_of(*group)

    async def explode(*args, **options):
        raise RuntimeError

    monkeypatch.setattr(p2l, "async_filter_deployments", explode)
    assert ask(router, "math").startswith("answer of id-")
    assert p2l.health.counts["internal"] == 1


def test_deployments_without_p2l_come_after_the_ranked_ones(router_of, deployment):
    router = router_of(deployment("u1"), deployment("u2", "alpha"), deployment("u3", "beta"))
    assert {ask(router, "math") for _ in range(20)} == {"answer of u2"}


def test_a_deployment_can_be_called_by_its_id(router_of, group):
    assert ask(router_of(*group), "math", model="id-gamma") == "answer of id-gamma"


def test_installing_twice_registers_one_callback(router_of, group, p2l):
    router = router_of(*group)
    P2LRoutingStrategy.install(router, p2l)
    assert sum(callback is p2l for callback in litellm.callbacks) == 1


def test_answers_of_sync_calls_teach_their_length(router_of, group, p2l):
    router = router_of(*group)
    lengths = p2l.state().traffic.lengths
    for _ in range(3):
        ask(router, "math")
    for _ in range(600):  # LiteLLM logs in a thread of its own, whose first record imports a lot
        if lengths.expected("alpha") < 500:
            break
        time.sleep(0.05)
    assert lengths.expected("alpha") < 500
    assert lengths.expected("gamma") == 500


@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_what_is_no_chat_is_litellms_and_the_next_chat_is_ranked(router_of, group, p2l, kind):
    router = router_of(*group)
    before = p2l.health.counts.total()
    calls = [("image_generation", {"prompt": "math"}), ("embedding", {"input": ["math"]})]
    for name, body in calls:
        with contextlib.suppress(Exception):  # of a mock that has no such answer
            if kind == "sync":
                getattr(router, name)(model="auto", **body)
            else:
                await getattr(router, f"a{name}")(model="auto", **body)
    assert p2l.health.counts.total() == before
    assert ask(router, "code") == "answer of id-beta"
    response = await router.acompletion("auto", messages=[{"role": "user", "content": "chat"}])
    assert response.choices[0].message.content == "answer of id-gamma"
