"""Scope, shadow mode, roll-out, sessions and learning, through the callback inside LiteLLM's real router."""

import asyncio

import litellm
import numpy as np
import pytest

from litellm_router import P2LRouter, P2LSettings


@pytest.fixture
def p2l(tiny, monkeypatch):
    def make(**settings):
        router = P2LRouter(P2LSettings(**{"timeout_ms": 20_000, **settings}), lambda _: tiny)
        monkeypatch.setattr(litellm, "callbacks", [router])
        return router

    return make


@pytest.fixture
def group(deployment):
    return [
        deployment("x", "alpha", price=4e-6),
        deployment("y", "beta", price=2e-6),
        deployment("z", "gamma", price=1e-6),
    ]


async def decide(callback, deployments, text, group="auto", **request):
    messages = text if isinstance(text, list) else [{"role": "user", "content": text}]
    request = {"litellm_call_id": f"id {np.random.default_rng().random()}", "metadata": {}} | request
    ranked = await callback.async_filter_deployments(group, deployments, messages, request)
    await callback.async_pre_call_deployment_hook(request | {"model_info": ranked[0]["model_info"]}, None)
    bucket = request["litellm_metadata" if "litellm_metadata" in request else "metadata"]
    return [d["model_info"]["id"] for d in ranked], bucket["spend_logs_metadata"]["p2l"]


async def test_shadow_records_the_decision_and_changes_nothing(p2l, group):
    callback = p2l(mode="shadow")
    ids, record = await decide(callback, group, "math")
    assert ids == ["x", "y", "z"]
    assert (record["model"], record["mode"]) == ("alpha", "shadow")
    assert all("order" not in d["litellm_params"] for d in group)


async def test_a_share_of_the_traffic_is_routed_and_the_rest_is_litellms(p2l, group):
    callback = p2l(traffic=0.3)
    records = [(await decide(callback, group, "math"))[1] for _ in range(300)]
    routed = sum("error" not in record for record in records)
    assert 50 < routed < 130
    assert {record["error"] for record in records if "error" in record} == {"traffic"}
    one = [(await decide(callback, group, "math", litellm_session_id="s"))[1].get("error") for _ in range(10)]
    assert len(set(one)) == 1


async def test_a_group_has_its_own_rule_or_is_left_alone(p2l, group):
    budget = 2.2e-6 * 500
    callback = p2l(groups={"cheap": {"rule": "cap", "budget": budget}, "own": {"mode": "off"}})
    assert (await decide(callback, group, "math"))[0] == ["x"]
    assert (await decide(callback, group, "math", group="cheap"))[0] == ["y"]
    ids, record = await decide(callback, group, "math", group="own")
    assert ids == ["x", "y", "z"]
    assert record["error"] == "off"


@pytest.mark.parametrize("where", ["metadata", "litellm_metadata"])
async def test_a_request_may_tighten_the_limit(p2l, group, where):
    callback = p2l()
    ask = {"p2l": {"budget": 2.2e-6 * 500}}
    request = {"metadata": ask} if where == "metadata" else {"litellm_metadata": {"requester_metadata": ask}}
    ids, record = await decide(callback, group, "math", **request)
    assert ids == ["y"]
    assert (record["client"], record["rule"]) == ("applied", "cap")


async def test_opponents_other_than_the_group_change_who_wins(p2l, group):
    # on code: beta 2, gamma 1, alpha 0; a win rate against gamma alone keeps the order and changes the values
    alone = (await decide(p2l(opponents={"gamma": 1.0}), group, "code"))[1]["values"]
    usual = (await decide(p2l(), group, "code"))[1]["values"]
    assert alone["beta"] > usual["beta"]
    assert alone["gamma"] < alone["beta"]


async def test_opponents_that_the_bundle_does_not_know_are_a_wrong_setting(p2l, group, caplog):
    callback = p2l(opponents={"nobody": 1.0})
    assert (await decide(callback, group, "code"))[1]["error"] == "settings"
    assert "p2l_settings.opponents" in caplog.text
    assert "'nobody'" in caplog.text


async def test_a_conversation_stays_with_its_model_within_the_margin(p2l, group):
    callback = p2l(sticky={"margin": 0.9})
    for text in ("math", "code", "chat"):
        assert (await decide(callback, group, text, litellm_session_id="s"))[0] == ["x"]
    assert (await decide(callback, group, "code", litellm_session_id="other"))[0] == ["y"]
    assert (await decide(callback, group, "code"))[0] == ["y"]


async def test_it_moves_when_the_gain_is_above_the_margin(p2l, group):
    callback = p2l(sticky={"margin": 0.05})
    for text, expected in (("math", "x"), ("code", "y"), ("chat", "z")):
        assert (await decide(callback, group, text, litellm_session_id="s"))[0] == [expected]


def with_reasoning(text):
    sealed = {"role": "assistant", "content": [{"type": "thinking", "thinking": "", "signature": "sig"}]}
    return [{"role": "user", "content": "math"}, sealed, {"role": "user", "content": text}]


async def test_a_conversation_with_one_providers_state_never_moves(p2l, group):
    callback = p2l(sticky={"margin": 0.0})
    await decide(callback, group, "math", litellm_session_id="s")
    ids, _ = await decide(callback, group, with_reasoning("code code code code"), litellm_session_id="s")
    assert ids == ["x"]


async def test_such_a_conversation_whose_signer_nobody_knows_is_ranked_and_stays_there(p2l, group):
    callback = p2l()
    ids, record = await decide(callback, group, with_reasoning("code"))
    assert (ids, record["answered"]) == (["y"], "beta")
    for _ in range(10):
        assert (await decide(callback, group, with_reasoning("code")))[0] == ids


async def test_state_of_a_known_form_goes_to_the_makers_model(p2l, group):
    group[2]["litellm_params"]["model"] = "anthropic/claude-sonnet-4-5"
    assert (await decide(p2l(), group, with_reasoning("code")))[0] == ["z"]


async def test_a_paced_budget_holds_through_the_router(p2l, group):
    budget = 1.4e-6 * 500
    callback = p2l(rule="paced", budget=budget, learn_output_tokens=False)
    rng = np.random.default_rng(0)
    spent = []
    for _ in range(1500):
        text = " ".join(rng.choice(["math", "code", "chat"], 3))
        _, record = await decide(callback, group, text)
        spent.append(record["costs"][record["model"]])
    assert np.mean(spent) == pytest.approx(budget, rel=0.02)
    assert record["multiplier"] > 0


async def test_answers_teach_their_length_and_correct_the_budget(p2l, group):
    callback = p2l(rule="paced", budget=1e-3)
    router = litellm.Router(model_list=group)
    traffic = callback.state().traffic
    for _ in range(5):
        await router.acompletion(model="auto", messages=[{"role": "user", "content": "math"}])
    for _ in range(600):
        if traffic.lengths.models() and min(map(traffic.lengths.expected, traffic.lengths.models())) < 480:
            break
        await asyncio.sleep(0.05)
    assert min(map(traffic.lengths.expected, traffic.lengths.models())) < 480
    (pacer,) = traffic.pacers.values()
    assert pacer.multiplier < 1.0 / 1e-3  # the answers are short: what was booked too much came back


async def test_metrics_count_decisions_and_reasons(p2l, group):
    from prometheus_client import REGISTRY

    def value(name, **labels):
        return REGISTRY.get_sample_value(name, labels) or 0.0

    callback = p2l(rule="paced", budget=1e-3, groups={"unlimited": {"rule": "best"}})
    before = value("p2l_decisions_total", group="metered", model="alpha", mode="route")
    none = value("p2l_not_routed_total", reason="no_text")
    seconds = value("p2l_latency_seconds_count")
    for text, name in (("math", "metered"), ("math", "metered"), ([{"role": "user", "content": None}], "unlimited")):
        await decide(callback, group, text, group=name)
    counted = sum(
        value("p2l_decisions_total", group="metered", model=m, mode="route") for m in ("alpha", "beta", "gamma")
    )
    assert counted - before == 2
    assert value("p2l_not_routed_total", reason="no_text") - none == 1
    assert value("p2l_latency_seconds_count") - seconds == 3
    assert value("p2l_multiplier", group="metered") > 0


@pytest.mark.parametrize(("scope", "budgets"), [("key", 2), ("team", 2), ("group", 1)])
async def test_each_key_or_team_has_its_own_budget_where_the_operator_says_so(p2l, group, scope, budgets):
    callback = p2l(rule="paced", budget=1.2e-6 * 500, scope=scope, learn_output_tokens=False)
    seen = {}
    for owner, texts in (("greedy", ["code"] * 300), ("modest", ["math"])):
        for text in texts:
            metadata = {"user_api_key_hash": owner, "user_api_key_team_id": owner}
            _, record = await decide(callback, group, text, metadata=metadata)
        seen[owner] = record["multiplier"]
    assert len(callback.state().traffic.pacers) == budgets
    assert (seen["modest"] != pytest.approx(seen["greedy"], rel=0.2)) is (budgets == 2)


async def test_where_litellm_has_left_one_model_it_is_said(p2l, group):
    callback = p2l()
    request = {"metadata": {}}
    assert await callback.async_filter_deployments("auto", group[:1], "math", request) == group[:1]
    assert request == {"metadata": {}}  # a group that never had a choice is not ours
    await decide(callback, group, "math")
    ids, record = await decide(callback, group[:1], "math")
    assert (ids, record["error"]) == (["x"], "one_left")


async def test_a_later_question_without_an_id_stays_where_conversations_are_sticky(p2l, group):
    callback = p2l(sticky={"margin": 0.9})
    answer = {"role": "assistant", "content": "2 + 2 = 4"}
    first = [{"role": "user", "content": "math"}]
    assert (await decide(callback, group, first))[0] == ["x"]
    chat = [*first, answer, {"role": "user", "content": "code code code"}]
    assert (await decide(callback, group, chat))[0] == ["x"]
    other = [{"role": "user", "content": "chat"}, answer, {"role": "user", "content": "code code code code"}]
    assert (await decide(callback, group, other))[0] == ["y"]
