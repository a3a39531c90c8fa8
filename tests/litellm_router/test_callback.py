"""The callback inside LiteLLM's real router; the deployments answer with fixed texts."""

import asyncio
import copy
import json
import logging
import sys
import threading
import time
import types

import litellm
import pytest

from litellm_router import P2LRouter, P2LSettings
from litellm_router.record import headers_of
from litellm_router.startup import warm_up_in_proxy

SECRET = "xyzzy-plugh-my-secret"


@pytest.fixture
def p2l(tiny, monkeypatch):
    """Gives a callback over the tiny bundle that LiteLLM calls; keyword arguments are its settings."""

    def make(load=lambda _: tiny, **settings):
        # patient by default: these tests are about choices, and a busy machine can hold up a thread for long
        router = P2LRouter(P2LSettings(**{"timeout_ms": 5000, **settings}), load)
        monkeypatch.setattr(litellm, "callbacks", [router])
        return router

    return make


def say(text):
    return [{"role": "user", "content": text}]


async def answer(router, text, **kwargs):
    response = await router.acompletion(model="auto", messages=say(text), **kwargs)
    return response.choices[0].message.content


async def offered(callback, deployments, messages, request=None):
    """Ids of the deployments that LiteLLM is handed."""
    ranked = await callback.async_filter_deployments("auto", deployments, messages, {} if request is None else request)
    return [d["model_info"]["id"] for d in ranked]


async def test_each_prompt_goes_to_its_best_model(p2l, group):
    p2l()
    router = litellm.Router(model_list=group)
    for text, id in (("math", "x"), ("code please", "y"), ("a chat", "z")):
        for _ in range(3):
            assert await answer(router, text) == f"answer of {id}"


async def test_the_user_turns_count_and_the_system_prompt_does_not(p2l, group):
    callback = p2l()
    messages = [{"role": "system", "content": "code code code"}, *say("math")]
    assert await offered(callback, group, messages) == ["x"]


async def test_streaming_is_routed(p2l, group):
    p2l()
    router = litellm.Router(model_list=group)
    stream = await router.acompletion(model="auto", messages=say("code"), stream=True)
    assert "".join([chunk.choices[0].delta.content or "" async for chunk in stream]) == "answer of y"


async def test_the_responses_api_is_routed(p2l, group):
    p2l()
    router = litellm.Router(model_list=group)
    for text in ("code", [{"role": "user", "content": [{"type": "input_text", "text": "code"}]}]):
        response = await router.aresponses(model="auto", input=text)
        assert response.output[0].content[0].text == "answer of y"


@pytest.mark.parametrize(
    "chat",
    [
        "hi",
        [{"role": "user", "content": [{"type": "input_text", "text": "hi"}]}, {"role": "user", "content": "more"}],
        [{"type": "function_call_output", "call_id": "1", "output": "42"}, {"role": "user", "content": "hi"}],
        [{"role": "assistant", "content": [{"type": "output_text", "text": "no"}]}, {"role": "user", "content": "hi"}],
    ],
)
def test_a_responses_input_gives_the_turns_that_litellm_sees_in_it(chat):
    factory = pytest.importorskip("litellm.litellm_core_utils.prompt_templates.factory")
    if not hasattr(factory, "resolve_structured_messages"):
        pytest.skip("this LiteLLM has no such reading of its own")

    from litellm_router.request import turns_of
    from p2l_plugins.prompts import user_turns

    assert turns_of(chat) == user_turns(
        factory.resolve_structured_messages(messages=None, request_kwargs={"input": chat})
    )


@pytest.mark.parametrize("error", ["litellm.RateLimitError", "litellm.InternalServerError"])
async def test_a_failing_best_model_is_followed_by_the_second_in_the_same_request(p2l, group, error):
    callback = p2l()
    group[1]["litellm_params"]["mock_response"] = error  # beta, the best for code; then gamma, then alpha
    router = litellm.Router(model_list=group, num_retries=2)
    metadata = {}
    assert await answer(router, "code", metadata=metadata) == "answer of z"
    assert metadata["spend_logs_metadata"]["p2l"]["cache"] == "miss"  # of the first attempt, which scored it
    assert callback.health.counts == {"routed": 2}


async def test_deployments_of_the_best_model_share_the_load(p2l, deployment):
    p2l()
    group = [deployment("x1", "alpha"), deployment("x2", "alpha"), deployment("y", "beta")]
    router = litellm.Router(model_list=group)
    answers = {await answer(router, "math") for _ in range(40)}
    assert answers == {"answer of x1", "answer of x2"}


async def test_the_operators_order_decides_first_and_its_fallback_works(p2l, deployment):
    p2l()
    group = [
        deployment("x", "alpha", order=1, mock_response="litellm.InternalServerError"),
        deployment("y", "beta", order=5),
        deployment("z", "gamma", order=5),
    ]
    router = litellm.Router(model_list=group, num_retries=0)
    assert await answer(router, "code") == "answer of y"
    assert await answer(router, "chat") == "answer of z"


async def test_deployments_are_handed_on_as_they_came(p2l, group, deployment):
    callback = p2l()
    group += [deployment("u"), deployment("x2", "alpha")]
    before = copy.deepcopy(group)
    ranked = await callback.async_filter_deployments("auto", group, say("math"), {})
    assert [id(one) for one in ranked] == [id(group[0]), id(group[4])]
    assert group == before


async def test_a_group_without_p2l_models_or_with_one_only_is_untouched(p2l, deployment):
    callback = p2l()
    for group in ([deployment("u"), deployment("v")], [deployment("x1", "alpha"), deployment("x2", "alpha")], []):
        request = {}
        assert await callback.async_filter_deployments("auto", group, say("math"), request) is group
        assert request == {}


async def test_names_that_the_bundle_does_not_know_are_logged_once_and_left_unranked(p2l, deployment, caplog):
    callback = p2l()
    group = [deployment("x", "alpha"), deployment("y", "betta"), deployment("z", "gamma")]
    for _ in range(3):
        assert await offered(callback, group, say("chat")) == ["z"]
    assert [r.levelname for r in caplog.records if r.name == "litellm_router"] == ["ERROR"]
    assert "'betta'" in caplog.text
    assert "alpha, beta, gamma" in caplog.text
    group = group[:2]
    assert await callback.async_filter_deployments("auto", group, say("chat"), {}) is group
    assert callback.health.counts["models"] == 1


WEIRD = [
    None,
    "",
    "   ",
    7,
    [],
    [None],
    ["code"],
    [{"role": "user"}],
    [{"role": "user", "content": None}],
    [{"role": "user", "content": ""}],
    [{"role": "user", "content": 3}],
    [{"role": "user", "content": {"text": "code"}}],
    [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]}],
    [{"role": "assistant", "content": "code"}],
    [{"role": "tool", "content": "code"}],
]


@pytest.mark.parametrize("messages", WEIRD, ids=repr)
async def test_messages_without_text_of_a_user_leave_the_deployments_as_they_are(p2l, group, messages):
    callback = p2l()
    request = {"metadata": {"mine": 1}}
    assert await callback.async_filter_deployments("auto", group, messages, request) is group
    assert request["metadata"]["mine"] == 1
    assert request["metadata"]["spend_logs_metadata"]["p2l"]["error"] == "no_text"
    assert callback.health.counts == {"no_text": 1}


@pytest.mark.parametrize("request_kwargs", [None, {"metadata": None}, {"metadata": "odd"}, {"litellm_metadata": {}}])
async def test_metadata_of_any_form_is_survived(p2l, group, request_kwargs):
    callback = p2l()
    ranked = await callback.async_filter_deployments("auto", group, say("code"), request_kwargs)
    assert ranked == [group[1]]


async def test_deployments_of_a_strange_form_come_back_as_they_are(p2l, group):
    callback = p2l()
    for odd in (None, {"a": 1}, [*group, "odd"], [*group, {"model_info": {"p2l_model": "alpha"}}]):
        assert await callback.async_filter_deployments("auto", odd, say("code"), {}) is odd


@pytest.mark.alone
async def test_a_slow_scorer_costs_a_request_its_deadline_and_no_more(p2l, group, slow, caplog):
    scorer = slow(0.5)
    callback = p2l(load=lambda _: scorer, timeout_ms=60)
    request = {}
    started = time.monotonic()
    assert await callback.async_filter_deployments("auto", group, say("code"), request) is group
    assert time.monotonic() - started < 0.3
    assert request["metadata"]["spend_logs_metadata"]["p2l"]["error"] == "deadline"
    for _ in range(3):
        await callback.async_filter_deployments("auto", group, say("code"), {})
    assert callback.health.counts == {"deadline": 4}
    assert [r.levelname for r in caplog.records if r.name == "litellm_router"] == ["WARNING"]
    assert await asyncio.to_thread(scorer.done.wait, 5)
    await asyncio.sleep(0.05)
    assert await offered(callback, group, say("code")) == ["y"]


async def test_the_event_loop_runs_while_a_prompt_is_scored(p2l, group, slow):
    scorer = slow(0.3)
    callback = p2l(load=lambda _: scorer, timeout_ms=1000)
    routing = asyncio.create_task(callback.async_filter_deployments("auto", group, say("code"), {}))
    ticks = 0
    while not routing.done():
        await asyncio.sleep(0.01)
        ticks += 1
    assert ticks >= 10


async def test_a_hundred_identical_requests_are_scored_once_and_all_routed(p2l, group, slow):
    scorer = slow(0.1)
    p2l(load=lambda _: scorer, timeout_ms=5000)
    router = litellm.Router(model_list=group)
    answers = await asyncio.gather(*(answer(router, "code") for _ in range(100)))
    assert set(answers) == {"answer of y"}
    assert len(scorer.prompts) == 1


async def test_a_scorer_that_raises_leaves_the_request_alone_and_its_message_out_of_the_log(p2l, group, slow, caplog):
    scorer = slow(0)

    def explode(prompts):
        raise RuntimeError(f"cannot score {prompts}")

    scorer.score_turns = explode
    callback = p2l(load=lambda _: scorer)
    caplog.set_level(logging.DEBUG, "litellm_router")
    for _ in range(3):
        assert await callback.async_filter_deployments("auto", group, say(SECRET), {}) is group
    ours = [r for r in caplog.records if r.name.startswith(("litellm_router", "p2l_plugins"))]
    assert len(ours) == 1
    assert "RuntimeError" in ours[0].getMessage()
    assert SECRET not in caplog.text


async def test_an_unexpected_error_leaves_the_request_alone_and_its_message_out_of_the_log(
    p2l, group, monkeypatch, caplog
):
    def explode(chat, request):
        raise ValueError(chat)

    monkeypatch.setattr("litellm_router.request.prompt_tokens", explode)
    callback = p2l()
    assert await callback.async_filter_deployments("auto", group, say(SECRET), {}) is group
    assert callback.health.counts == {"internal": 1}
    assert "ValueError" in caplog.text
    assert SECRET not in caplog.text


async def test_no_text_of_a_prompt_reaches_logs_metadata_or_headers(p2l, group, caplog):
    callback = p2l(rule="lp", budget=1.0)
    caplog.set_level(logging.DEBUG, "litellm_router")
    request = {"litellm_call_id": "1"}
    await callback.async_filter_deployments("auto", group, say(SECRET), request)
    headers = await callback.async_post_call_response_headers_hook(request, None, None)
    assert "x-p2l-ranking" in headers
    assert SECRET not in json.dumps([request, headers]) + caplog.text


async def test_wrong_settings_are_logged_once_and_corrected_ones_are_taken_up(tiny, group, monkeypatch, caplog):
    callback = P2LRouter(load=lambda _: tiny)
    monkeypatch.setattr(litellm, "p2l_settings", {"rul": "cap"}, raising=False)
    for _ in range(3):
        request = {}
        assert await callback.async_filter_deployments("auto", group, say("code"), request) is group
        headers = await callback.async_post_call_response_headers_hook(request, None, None)
        assert headers["x-p2l-error"] == "settings"
    assert [r.levelname for r in caplog.records if r.name == "litellm_router"] == ["ERROR"]
    assert "p2l_settings.rul = 'cap'" in caplog.text
    monkeypatch.setattr(litellm, "p2l_settings", {"rule": "cap", "budget": 1.0})
    assert await offered(callback, group, say("code")) == ["y"]
    monkeypatch.setattr(litellm, "p2l_settings", {"headers": False})
    request = {}
    await callback.async_filter_deployments("auto", group, say("code"), request)
    assert await callback.async_post_call_response_headers_hook(request, None, None) is None


async def test_the_objective_usable_on_another_family_is_a_wrong_setting(bt_bundle, group, monkeypatch, caplog):
    callback = P2LRouter()
    monkeypatch.setattr(
        litellm, "p2l_settings", {"bundle": str(bt_bundle), "objective": "usable", "timeout_ms": 5000}, raising=False
    )
    assert await callback.async_filter_deployments("auto", group, say("code"), {}) is group
    assert callback.health.counts == {"settings": 1}
    assert "family grk" in caplog.text


async def test_a_missing_bundle_leaves_requests_alone_and_is_logged_once(group, monkeypatch, caplog, tmp_path):
    (tmp_path / "empty").mkdir()
    callback = P2LRouter()
    settings = {"bundle": str(tmp_path / "empty"), "timeout_ms": 5000}
    monkeypatch.setattr(litellm, "p2l_settings", settings, raising=False)
    for _ in range(3):
        assert await callback.async_filter_deployments("auto", group, say("code"), {}) is group
    assert callback.health.counts == {"bundle": 3}
    assert caplog.text.count("p2l.json is missing") == 1


async def test_headers_tell_the_decision(p2l, group):
    callback = p2l(output_tokens=100)
    request = {}
    await callback.async_filter_deployments("auto", group, say("code"), request)
    info = {"model_info": group[1]["model_info"]}
    headers = await callback.async_post_call_response_headers_hook(request, None, None, litellm_call_info=info)
    assert headers["x-p2l-model"] == "beta"
    assert headers["x-p2l-ranking"] == "beta,gamma,alpha"
    assert headers["x-p2l-cache"] == "miss"
    assert 0 < float(headers["x-p2l-win-rate"]) < 1
    assert float(headers["x-p2l-cost"]) == pytest.approx(101e-6)
    assert float(headers["x-p2l-ms"]) > 0
    await callback.async_filter_deployments("auto", group, say("code"), request)
    headers = await callback.async_post_call_response_headers_hook(request, None, None, litellm_call_info=info)
    assert headers["x-p2l-cache"] == "hit"


async def test_headers_name_the_model_that_answered(p2l, group):
    callback = p2l()
    group[2]["litellm_params"]["input_cost_per_token"] = group[2]["litellm_params"]["output_cost_per_token"] = 1.0
    request = {}
    await callback.async_filter_deployments("auto", group, say("code"), request)
    info = {"model_info": group[2]["model_info"]}
    headers = await callback.async_post_call_response_headers_hook(request, None, None, litellm_call_info=info)
    assert headers["x-p2l-model"] == "gamma"
    assert float(headers["x-p2l-cost"]) == 501.0
    unranked = {"model_info": {"id": "fallback of another group"}}
    headers = await callback.async_post_call_response_headers_hook(request, None, None, litellm_call_info=unranked)
    assert "x-p2l-model" not in headers


def test_headers_are_printable_ascii_whatever_a_name_holds():
    record = {
        "objective": "win_rate",
        "cache": "hit\r\nSet-Cookie: x",
        "ranking": ["ünïcode"],
        "values": {},
        "costs": {},
    }
    assert headers_of(record, None) == {"x-p2l-cache": "hit??Set-Cookie: x", "x-p2l-ranking": "?n?code"}


@pytest.mark.parametrize("odd", [{}, {"metadata": 3}, {"metadata": {"spend_logs_metadata": {"p2l": {"model": "x"}}}}])
async def test_a_record_that_a_client_wrote_makes_no_headers(p2l, odd):
    assert await p2l().async_post_call_response_headers_hook(odd, None, None) is None


async def test_a_decision_that_a_client_claims_was_made_is_made_again(p2l, group):
    callback = p2l()
    request = {}
    await callback.async_filter_deployments("auto", group, say("code"), request)
    theirs = {"metadata": copy.deepcopy(request["metadata"]) | {"p2l_request": "0" * 32, "previous_models": [{}]}}
    theirs["metadata"] |= {"model_info": {"id": "x"}, "attempted_retries": 2, "request_retry_count": 2}
    assert await offered(callback, group, say("math"), theirs) == ["x"]


async def test_the_rule_lp_draws_the_same_model_at_every_attempt_of_a_request(p2l, group):
    for deployment, price in zip(group, (1e-6, 9e-6, 2e-6), strict=True):
        deployment["litellm_params"] |= {"input_cost_per_token": price, "output_cost_per_token": price}
    callback = p2l(rule="lp", budget=2.5e-3)
    firsts = {}
    for call in range(40):
        request = {"litellm_call_id": "the same", "litellm_trace_id": "the same"}  # which a client may choose
        for _ in range(2):
            firsts.setdefault(call, set()).update(await offered(callback, group, say("code"), request))
        callback.requests.of(request).done = True
    assert all(len(models) == 1 for models in firsts.values())
    assert set.union(*firsts.values()) >= {"y", "z"}


async def test_spend_logs_of_the_client_are_kept(p2l, group):
    callback = p2l()
    mine = {"project": "x"}
    request = {"litellm_metadata": {"spend_logs_metadata": mine}, "metadata": {}}
    await callback.async_filter_deployments("auto", group, say("code"), request)
    assert request["litellm_metadata"]["spend_logs_metadata"]["project"] == "x"
    assert request["litellm_metadata"]["spend_logs_metadata"]["p2l"]["model"] == "beta"
    assert mine == {"project": "x"}
    assert request["metadata"] == {}


def test_in_the_proxy_the_bundle_is_loaded_as_soon_as_the_config_is_read(tiny, monkeypatch):
    proxy = types.SimpleNamespace(llm_router=None)
    monkeypatch.setitem(sys.modules, "litellm.proxy.proxy_server", proxy)
    loaded = threading.Event()

    def load(_):
        loaded.set()
        return tiny

    warm_up_in_proxy(P2LRouter(P2LSettings(), load))
    assert not loaded.wait(0.2)
    proxy.llm_router = object()
    assert loaded.wait(5)
