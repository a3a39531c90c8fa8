"""LiteLLM as it is installed: every way in which a best model can't answer, and what P2L sets up and remembers."""

import asyncio
import gc
import logging
import re
import time
from pathlib import Path

import litellm
import pytest
from helpers.scenarios import BEST, SCENARIOS, SECOND, THIRD, WAYS, Scenario, answered, deployments, p2l_router, problem
from helpers.upstream import upstream
from litellm.types.router import RetryPolicy

from litellm_router import P2LRouter, P2LRoutingStrategy, P2LSettings
from litellm_router.attempts import Requests
from litellm_router.routers import TESTED, is_tested, litellm_version, router_of

ROOT = Path(__file__).resolve().parents[2]
MESSAGES = [{"role": "user", "content": "code"}]


@pytest.fixture(scope="module")
def provider():
    with upstream() as one:
        yield one


@pytest.fixture
def p2l(tiny_bundle):
    with p2l_router(tiny_bundle) as one:
        yield one


@pytest.mark.parametrize(("kind", "stream"), WAYS)
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_who_answers(provider, p2l, scenario, kind, stream):
    text, taken = answered(scenario, provider, p2l, kind, stream)
    assert problem(scenario, kind, text, taken) is None
    assert p2l.health.counts["not_followed"] == 0


ALL_REFUSE = Scenario("all refuse", dict.fromkeys((BEST, SECOND, THIRD), "400"))
ALL_FAIL = Scenario("all fail", dict.fromkeys((BEST, SECOND, THIRD), "500"))


@pytest.mark.parametrize(("kind", "stream"), WAYS)
@pytest.mark.parametrize(("scenario", "error"), [(ALL_REFUSE, "BadRequestError"), (ALL_FAIL, "InternalServerError")])
def test_each_model_is_tried_once_and_the_client_gets_the_providers_own_error(
    provider, p2l, scenario, error, kind, stream
):
    assert answered(scenario, provider, p2l, kind, stream) == (error, [BEST, SECOND, THIRD])


@pytest.mark.parametrize("kind", ["async", "sync"])
def test_a_refused_body_costs_no_more_attempts_than_the_setting_says(provider, tiny_bundle, kind):
    with p2l_router(tiny_bundle, max_attempts=2) as p2l:
        assert answered(ALL_REFUSE, provider, p2l, kind, stream=False) == ("BadRequestError", [BEST, SECOND])


@pytest.mark.parametrize("kind", ["async", "sync"])
def test_with_failover_off_a_refused_body_is_not_tried_again(provider, tiny_bundle, kind):
    with p2l_router(tiny_bundle, failover="off") as p2l:
        assert answered(ALL_REFUSE, provider, p2l, kind, stream=False) == ("BadRequestError", [BEST])
        text, taken = answered(Scenario("one fails", {BEST: "500"}), provider, p2l, kind, stream=False)
        assert (text, taken) == (SECOND, [BEST, SECOND])


def test_failover_is_off_for_a_bare_off_in_yaml():
    assert P2LSettings(failover=False).failover == "off"
    assert P2LSettings(failover=True).failover == "on"


@pytest.mark.parametrize("strategy", ["least-busy", "latency-based-routing", "usage-based-routing-v2"])
@pytest.mark.parametrize("kind", ["async", "sync"])
def test_litellms_other_strategies_follow_too(provider, p2l, kind, strategy):
    for how, expected in (("400", SECOND), ("500", SECOND), (BEST, BEST)):
        scenario = Scenario("strategy", {BEST: how}, router={"routing_strategy": strategy}, answers=(expected,))
        assert problem(scenario, kind, *answered(scenario, provider, p2l, kind, stream=False)) is None


def test_deployments_that_were_weighted_failover_of_the_operators_are_tried_once(provider, p2l):
    scenario = Scenario(
        "weighted", dict.fromkeys((BEST, SECOND, THIRD), "500"), router={"enable_weighted_failover": True}
    )
    text, taken = answered(scenario, provider, p2l, "async", stream=False)
    assert (text, taken) == ("InternalServerError", [BEST, SECOND, THIRD])


@pytest.mark.parametrize("kind", ["async", "sync"])
def test_thirty_equal_requests_go_to_the_first_of_the_ranking(provider, p2l, kind):
    for _ in range(30):
        assert answered(Scenario("thirty"), provider, p2l, kind, stream=False) == (BEST, [BEST])


async def test_the_callback_alone_finds_the_router_that_calls_it(provider, p2l):
    """Without `install`, and with routers around that have deployments of the same ids."""
    small = next(one for one in SCENARIOS if one.name == "has too small a window")
    text = "code " * 20 + "x y " * 20  # fits into 50 tokens by its bytes, and does not by LiteLLM's own count
    routers = [
        litellm.Router(model_list=deployments(small, provider), enable_pre_call_checks=True),
        litellm.Router(model_list=deployments(small, provider)),
    ]
    litellm.callbacks = [p2l]
    long = [{"role": "user", "content": text}]
    for router, expected in ((routers[0], SECOND), (routers[1], BEST), (routers[0], SECOND)):
        response = await router.acompletion(model="auto", messages=long)
        assert response.choices[0].message.content == expected
    assert router_of("nobody's") is None


async def test_a_callers_own_metadata_serve_request_after_request(provider, p2l):
    router = litellm.Router(model_list=deployments(Scenario("reused", {BEST: "500"}), provider), disable_cooldowns=True)
    P2LRoutingStrategy.install(router, p2l)
    metadata = {"project": "x"}
    for _ in range(3):
        provider.taken.clear()
        response = await router.acompletion(model="auto", messages=MESSAGES, metadata=metadata)
        assert (response.choices[0].message.content, provider.taken) == (SECOND, [BEST, SECOND])


async def test_a_fallback_to_another_group_has_its_own_chances(provider, p2l):
    scenario = Scenario("fallback", dict.fromkeys((BEST, SECOND, THIRD), "500"))
    other = [
        one | {"model_name": "other"} for one in deployments(Scenario("other", ids=("beta-h", "gamma-h")), provider)
    ]
    router = litellm.Router(model_list=[*deployments(scenario, provider), *other], fallbacks=[{"auto": ["other"]}])
    P2LRoutingStrategy.install(router, p2l)
    provider.taken.clear()
    response = await router.acompletion(model="auto", messages=MESSAGES)
    assert response.choices[0].message.content == "beta-h"
    assert provider.taken == [BEST, SECOND, THIRD, "beta-h"]


async def test_groups_that_are_not_ours_keep_their_retries(provider, p2l):
    plain = deployments(Scenario("plain", dict.fromkeys(("a", "b"), "400"), ids=("a", "b")), provider)
    for one in plain:
        one["model_name"] = "plain"
        del one["model_info"]["p2l_model"]
    router = litellm.Router(model_list=[*deployments(Scenario("ours"), provider), *plain])
    P2LRoutingStrategy.install(router, p2l)
    provider.taken.clear()
    with pytest.raises(litellm.BadRequestError):
        await router.acompletion(model="plain", messages=MESSAGES)
    assert len(provider.taken) == 1
    assert set(router.model_group_retry_policy) == {"auto"}


def test_what_the_operator_set_stays(provider, p2l, caplog):
    caplog.set_level(logging.INFO, "litellm_router")
    own = RetryPolicy(BadRequestErrorRetries=0)
    model_list = deployments(Scenario("own"), provider)
    router = litellm.Router(model_list=model_list, model_group_retry_policy={"auto": own})
    P2LRoutingStrategy.install(router, p2l)
    assert router.model_group_retry_policy["auto"].BadRequestErrorRetries == 0
    assert router.model_group_retry_policy["auto"].InternalServerErrorRetries is None
    assert "goes on to the next" not in caplog.text
    aliases = {"short": "auto", "secret": {"model": "auto", "hidden": True}}
    router = litellm.Router(model_list=model_list, retry_policy=own, model_group_alias=aliases, num_retries=7)
    for _ in range(2):
        P2LRoutingStrategy.install(router, p2l)
    for name in ("auto", "short", "secret"):
        policy = router.model_group_retry_policy[name]
        assert (policy.BadRequestErrorRetries, policy.InternalServerErrorRetries) == (0, 2)  # of three models
    assert caplog.text.count("goes on to the next") == 1


async def test_a_choice_that_another_callback_undoes_is_noticed(provider, p2l, caplog):
    class Undoing(litellm.integrations.custom_logger.CustomLogger):
        async def async_filter_deployments(self, model, healthy_deployments, *_, **__):
            return router.get_model_list(model_name=model)

    router = litellm.Router(model_list=deployments(Scenario("undone"), provider))
    P2LRoutingStrategy.install(router, p2l)
    litellm.callbacks = [p2l, Undoing()]
    answers = [
        (await router.acompletion(model="auto", messages=MESSAGES)).choices[0].message.content for _ in range(30)
    ]
    elsewhere = sum(one != BEST for one in answers)
    assert elsewhere
    assert p2l.health.counts["not_followed"] == elsewhere
    said = [record for record in caplog.records if "does not follow the ranking" in record.getMessage()]
    assert [record.levelname for record in said] == ["ERROR"]
    assert litellm_version() in said[0].getMessage()
    assert f"offered id-{BEST} and took" in said[0].getMessage()


async def test_a_record_says_who_answered(provider, p2l):
    router = litellm.Router(model_list=deployments(Scenario("record", {BEST: "404"}), provider))
    P2LRoutingStrategy.install(router, p2l)
    metadata = {}
    await router.acompletion(model="auto", messages=MESSAGES, metadata=metadata)
    record = metadata["spend_logs_metadata"]["p2l"]
    assert (record["ranking"], record["offered"]) == ([BEST, SECOND, THIRD], [f"id-{SECOND}"])
    assert (record["answered"], record["deployment"]) == (SECOND, f"id-{SECOND}")


def test_requests_that_nobody_ends_are_forgotten():
    requests = Requests(most=3)
    tokens = [requests.begin({}).token for _ in range(5)]
    found = [requests.named_in({"metadata": {"p2l_request": token}}, {}) is not None for token in tokens]
    assert found == [False, False, True, True, True]


FAILING = Scenario("shared", {BEST: "500"})


async def test_requests_that_share_metadata_and_even_an_id_are_apart(provider, p2l):
    router = litellm.Router(model_list=deployments(FAILING, provider), disable_cooldowns=True)
    P2LRoutingStrategy.install(router, p2l)
    for options in ({"metadata": {"k": 1}}, {"metadata": {"k": 1}, "litellm_trace_id": "conversation"}):
        provider.taken.clear()
        together = await asyncio.gather(
            *(router.acompletion(model="auto", messages=MESSAGES, **options) for _ in range(20))
        )
        assert [one.choices[0].message.content for one in together] == [SECOND] * 20
        assert sorted(provider.taken) == [BEST] * 20 + [SECOND] * 20
        for _ in range(4):
            provider.taken.clear()
            await router.acompletion(model="auto", messages=MESSAGES, **options)
            assert provider.taken == [BEST, SECOND]


@pytest.mark.parametrize("shared", [False, True])
async def test_a_request_after_one_that_every_model_refused_is_a_new_one(provider, p2l, shared):
    router = litellm.Router(model_list=deployments(ALL_FAIL, provider), disable_cooldowns=True)
    P2LRoutingStrategy.install(router, p2l)
    metadata = {"k": 1}
    for _ in range(3):
        provider.taken.clear()
        options = {"metadata": metadata} if shared else {}
        with pytest.raises(litellm.InternalServerError):
            await router.acompletion(model="auto", messages=MESSAGES, litellm_trace_id="one", **options)
        assert provider.taken == [BEST, SECOND, THIRD]


@pytest.mark.parametrize("call", ["chat", "responses", "messages"])
async def test_a_group_to_fall_back_to_is_ranked_anew_also_after_a_refusal(provider, p2l, call):
    scenario = Scenario("refused", dict.fromkeys((BEST, SECOND, THIRD), "400"))
    other = deployments(Scenario("other", ids=("gamma-h", "beta-h")), provider)
    router = litellm.Router(
        model_list=[*deployments(scenario, provider), *(one | {"model_name": "other"} for one in other)],
        fallbacks=[{"auto": ["other"]}],
        content_policy_fallbacks=[{"auto": ["other"]}],
    )
    P2LRoutingStrategy.install(router, p2l)
    provider.taken.clear()
    if call == "chat":
        await router.acompletion(model="auto", messages=MESSAGES)
    elif call == "responses":
        await router.aresponses(model="auto", input="code")
    else:
        await router.aanthropic_messages(model="auto", messages=MESSAGES, max_tokens=20)
    assert provider.taken == [BEST, SECOND, THIRD, "beta-h"]


@pytest.mark.parametrize("kind", ["async", "sync"])
def test_unranked_deployments_and_then_other_ones_of_a_model_come_last(provider, p2l, kind):
    scenario = Scenario(
        "replicas fail",
        {f"{BEST}-1": "500", SECOND: "500", "other": "500"},
        ids=(f"{BEST}-1", f"{BEST}-2", SECOND, "other"),
        router={"num_retries": 5, "disable_cooldowns": True},
    )
    text, taken = answered(scenario, provider, p2l, kind, stream=False)
    assert text == f"{BEST}-2"
    assert taken in ([f"{BEST}-1", SECOND, "other", f"{BEST}-2"], [f"{BEST}-2"])


async def test_within_an_order_of_the_operators_all_its_deployments_come_first(provider, p2l):
    scenario = Scenario(
        "orders",
        {f"{BEST}-1": "500", f"{BEST}-2": "500"},
        ids=(f"{BEST}-1", f"{BEST}-2", SECOND),
        params={f"{BEST}-1": {"order": 1}, f"{BEST}-2": {"order": 1}, SECOND: {"order": 2}},
        router={"disable_cooldowns": True},
    )
    router = litellm.Router(model_list=deployments(scenario, provider), **scenario.router)
    P2LRoutingStrategy.install(router, p2l)
    provider.taken.clear()
    response = await router.acompletion(model="auto", messages=MESSAGES)
    assert response.choices[0].message.content == SECOND
    assert sorted(provider.taken[:2]) == [f"{BEST}-1", f"{BEST}-2"]


async def test_two_routers_have_a_callback_each(provider, tiny_bundle):
    def p2l_of(**settings):
        return P2LRouter(P2LSettings(bundle=str(tiny_bundle), timeout_ms=20_000, **settings))

    one, two = p2l_of(), p2l_of(mode="shadow")
    routers = [litellm.Router(model_list=deployments(Scenario("each"), provider)) for _ in range(2)]
    try:
        for router, callback in zip(routers, (one, two), strict=True):
            P2LRoutingStrategy.install(router, callback)
        for router in routers:
            await router.acompletion(model="auto", messages=MESSAGES)
        assert (one.health.counts["routed"], two.health.counts["routed"]) == (1, 1)
        P2LRoutingStrategy.install(routers[1], one)
        await routers[1].acompletion(model="auto", messages=MESSAGES)
        assert (one.health.counts["routed"], two.health.counts["routed"]) == (2, 1)
    finally:
        litellm.callbacks = []


@pytest.mark.parametrize("call", ["async", "sync", "responses"])
async def test_an_answer_ends_its_request_and_corrects_what_was_booked(provider, tiny_bundle, call):
    with p2l_router(tiny_bundle, rule="paced", budget=1e-3) as p2l:
        router = litellm.Router(model_list=deployments(Scenario("ends", {BEST: "400"}), provider))
        P2LRoutingStrategy.install(router, p2l)
        if call == "async":
            await router.acompletion(model="auto", messages=MESSAGES)
        elif call == "sync":
            router.completion(model="auto", messages=MESSAGES)
        else:
            await router.aresponses(model="auto", input="code")
        (attempts,) = p2l.requests._open.values()
        traffic = p2l.state().traffic
        end = time.monotonic() + 20  # LiteLLM logs in a thread or a task of its own
        while not attempts.done or any(pacer is not None for pacer, _ in traffic._open.values()):
            assert time.monotonic() < end, (attempts, traffic._open)
            await asyncio.sleep(0.05)
        assert attempts.record["answered"] in (BEST, SECOND)


async def test_what_a_provider_answered_is_not_kept_after_the_request(provider, p2l):
    router = litellm.Router(model_list=deployments(FAILING, provider), disable_cooldowns=True)
    P2LRoutingStrategy.install(router, p2l)
    for _ in range(3):
        await router.acompletion(model="auto", messages=MESSAGES)
    await asyncio.sleep(0.5)
    gc.collect()
    assert [one.error for one in p2l.requests._open.values()] == [None] * 3


@pytest.mark.parametrize(("kind", "stream"), WAYS)
def test_more_retries_of_the_operators_than_models_end_in_the_providers_own_error(provider, p2l, kind, stream):
    policy = RetryPolicy(BadRequestErrorRetries=5)
    scenario = Scenario(
        "many", dict.fromkeys((BEST, SECOND), "400"), ids=(BEST, SECOND), router={"retry_policy": policy}
    )
    text, taken = answered(scenario, provider, p2l, kind, stream)
    assert taken == [BEST, SECOND]
    assert text == "BadRequestError"


@pytest.mark.parametrize("odd", ["text", ["bare", {"type": "text", "text": "part"}], 3, None, [7], [{"text": 1}], {}])
async def test_a_message_of_any_form_is_routed_beside_pre_call_checks(provider, p2l, odd):
    group = deployments(Scenario("odd"), provider)
    router = litellm.Router(model_list=group, enable_pre_call_checks=True)
    P2LRoutingStrategy.install(router, p2l)
    messages = [{"role": "assistant", "content": odd}, *MESSAGES]
    found = await p2l.async_filter_deployments("auto", router.get_model_list(model_name="auto"), messages, {})
    assert [one["model_info"]["id"] for one in found] == [f"id-{BEST}"]
    assert p2l.health.counts["internal"] == 0


def test_the_tested_versions_have_lists_and_are_named():
    lists = {path.stem for path in (ROOT / "tests" / "versions").glob("*.*.*.txt")}
    assert set(TESTED) == lists
    assert is_tested(litellm_version())
    assert is_tested("1.110.99")
    assert not is_tested("1.111.0")
    lowest = ".".join(TESTED[0].split(".")[:2])
    pins = re.findall(r'"litellm(?:\[proxy\])?>=([\d.]+)"', (ROOT / "pyproject.toml").read_text())
    assert set(pins) == {lowest}


async def test_an_error_of_one_request_is_not_another_ones(provider, p2l):
    router = litellm.Router(model_list=deployments(Scenario("many", {BEST: "500"}), provider), disable_cooldowns=True)
    P2LRoutingStrategy.install(router, p2l)
    responses = await asyncio.gather(*(router.acompletion(model="auto", messages=MESSAGES) for _ in range(50)))
    assert {one.choices[0].message.content for one in responses} == {SECOND}


def test_installing_another_callback_takes_its_place(provider, p2l, tiny_bundle):
    router = litellm.Router(model_list=deployments(Scenario("twice"), provider))
    P2LRoutingStrategy.install(router, p2l)
    other = P2LRouter(P2LSettings(bundle=str(tiny_bundle), timeout_ms=20_000))
    P2LRoutingStrategy.install(router, other)
    router.completion(model="auto", messages=MESSAGES)
    assert (p2l.health.counts["routed"], other.health.counts["routed"]) == (0, 1)
