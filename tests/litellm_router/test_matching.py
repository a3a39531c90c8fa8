"""Deployments that name no model of the bundle are matched by their names; little-known models are left alone."""

import dataclasses

import litellm
import pytest

from litellm_router import P2LRouter, P2LSettings
from litellm_router.called import called, setting_of, takes_part
from litellm_router.check import candidates, problems, routed_groups, unmatched
from litellm_router.deployments import Group, Groups
from litellm_router.failover import Failover
from litellm_router.matching import match
from p2l_plugins.naming import Match, ModelNames, key_of, plain_name
from p2l_plugins.scoring.scorer import P2L
from p2l_plugins.support import Support


def bare(model, info=None, **params):
    return {
        "model_name": "auto",
        "litellm_params": {"model": model, "input_cost_per_token": 1e-6, "output_cost_per_token": 1e-6, **params},
        "model_info": {"id": model, **(info or {})},
    }


class Known:
    """What is asked of a bundle here."""

    models = ("gpt-5-2025-08-07", "gpt-5-2025-08-07@high", "claude-sonnet-4-5-20250929", "gemini-2.5-pro")
    family = "grk"

    def __init__(self):
        self.aliases = {"sonnet": "claude-sonnet-4-5-20250929"}
        self.support = {"gemini-2.5-pro": Support(12, 1, 1, 12.0, 0.6)}

    def index(self, model):
        return self.models.index(self.aliases.get(model, model))


@pytest.mark.parametrize(
    ("params", "setting"),
    [
        ({"reasoning_effort": "High"}, "high"),
        ({"reasoning_effort": {"effort": "low", "summary": "auto"}}, "low"),
        ({"reasoning_effort": "disable"}, "none"),
        ({"reasoning_effort": "odd"}, None),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "thinking"),
        ({"thinking": {"type": "disabled"}}, "nothink"),
        ({"extra_body": {"chat_template_kwargs": {"enable_thinking": False}}}, "nothink"),
        ({"extra_body": {"enable_thinking": True}}, "thinking"),
        ({"thinking": "yes", "extra_body": "no"}, None),
        ({}, None),
    ],
)
def test_settings_of_reasoning_are_read_as_providers_write_them(params, setting):
    assert setting_of(params) == setting


@pytest.mark.parametrize(
    ("deployment", "expected"),
    [
        (bare("openai/gpt-5"), Match("gpt-5-2025-08-07", "only date")),
        (bare("openai/gpt-5", reasoning_effort="high"), Match("gpt-5-2025-08-07@high", "only date, setting high")),
        (bare("openai/gpt-5", {"p2l_model": "sonnet"}), Match("claude-sonnet-4-5-20250929", "p2l_model")),
        (bare("openai/gpt-5", {"p2l_model": "typo"}), None),
        (bare("openai/gpt-5", {"p2l_model": False}), None),
        (bare("azure/my-deployment"), None),
        (bare("azure/gpt-5"), None),
        (bare("azure/my-deployment", {"base_model": "azure/gpt-5"}), Match("gpt-5-2025-08-07", "only date")),
        (bare("azure/my-deployment", base_model="gpt-5-2025-08-07"), Match("gpt-5-2025-08-07", "name")),
        (bare("openai/gpt-5", {"mode": "embedding"}), None),
        (bare("openai/gpt-5", {"mode": "responses"}), Match("gpt-5-2025-08-07", "only date")),
        (bare("openai/*"), None),
        (bare("openai/gpt-5-chat"), None),
        ({"model_name": "x"}, None),
        ({"litellm_params": {"model": 3}, "model_info": None}, None),
    ],
)
def test_a_deployment_is_what_its_operator_says_or_else_what_its_name_says(deployment, expected):
    assert match(deployment, Known()) == expected


def test_what_is_matched_by_its_spelling_differs_in_nothing_but_what_the_rules_name():
    """Over all of LiteLLM's list, for a bundle of all of its names."""
    models = tuple({text: None for name in litellm.model_cost if (text := plain_name(name)[0])})
    names = ModelNames(models, {}, litellm.model_cost)
    for name in litellm.model_cost:
        found = names.find(name)
        if found is not None and found.rule == "spelling":
            assert key_of(plain_name(name)[0]) == key_of(found.model), (name, found)
        if found is not None and found.rule == "name":
            assert found.model in (name, name.rpartition("/")[2])


def test_deployments_take_part_where_they_are_called_differently():
    gpt, high = bare("openai/gpt-5"), bare("openai/gpt-5", reasoning_effort="high")
    assert takes_part([gpt, high])
    assert not takes_part([gpt, gpt, bare("openai/*")])
    assert called(bare("azure/x", {"base_model": "gpt-5"})) == ("gpt-5", "base_model", None)


def test_a_group_ranks_what_it_matches_and_leaves_little_known_models_alone():
    deployments = [bare("openai/gpt-5"), bare("anthropic/claude-sonnet-4-5"), bare("gemini/gemini-2.5-pro")]
    assert Group(deployments, Known()).models == Known.models[:1] + Known.models[2:]
    group = Group(deployments, Known(), min_support=20)
    assert group.models == ("gpt-5-2025-08-07", "claude-sonnet-4-5-20250929")
    assert group.little_known == ("gemini-2.5-pro",)
    assert [one.model for one in group.members][-1] is None
    assert Groups(Known(), min_support=20).models_of(deployments) == 2
    assert Groups(Known(), min_support=12).models_of(deployments) == 3


def test_a_changed_setting_is_another_group():
    groups = Groups(Known())
    first = [bare("openai/gpt-5"), bare("gemini/gemini-2.5-pro")]
    second = [bare("openai/gpt-5", thinking={"type": "enabled"}, reasoning_effort="high"), first[1]]
    assert groups.of(first) is groups.of(first)
    assert groups.of(second).models[0] == "gpt-5-2025-08-07@high"


def test_check_says_what_matched_by_which_rule_and_what_to_do_about_the_rest():
    deployments = [
        bare("openai/gpt-5"),
        bare("anthropic/claude-sonnet-4-5-20250929"),
        bare("gemini/gemini-2.5-pro"),
        bare("openai/gpt-5-nano"),
        bare("azure/mine"),
    ]
    settings = P2LSettings(min_support=20)
    rows = candidates(deployments, Known())
    assert [(one.model, one.rule, one.support) for one in rows] == [
        ("gpt-5-2025-08-07", "only date", None),
        ("claude-sonnet-4-5-20250929", "name", None),
        ("gemini-2.5-pro", "name", 12.0),
    ]
    left = {one.deployment: one.advice for one in unmatched(deployments, Known())}
    assert "valid: gpt-5-2025-08-07" in left["'openai/gpt-5-nano'"]
    assert "base_model" in left["'azure/mine'"]
    says = problems(settings, deployments, Known())
    assert len(says) == 1
    assert "min_support = 20 leaves 'gemini-2.5-pro' of group 'auto'" in says[0]
    (one,) = routed_groups(settings, deployments, Known())
    assert (one.routed, one.reason) == (True, "2 models of the bundle: gpt-5-2025-08-07, claude-sonnet-4-5-20250929")


def test_groups_that_are_none_of_p2ls_are_no_problem():
    assert problems(P2LSettings(), [bare("openai/gpt-5"), bare("openai/text-embedding-3")], Known()) == []


def say(text):
    return [{"role": "user", "content": text}]


async def test_the_router_ranks_deployments_by_their_names_and_leaves_other_groups_alone(tiny, monkeypatch):
    router = P2LRouter(P2LSettings(timeout_ms=5000), lambda _: tiny)
    monkeypatch.setattr(litellm, "callbacks", [router])
    matched = [bare("openai/alpha"), bare("groq/beta"), bare("openai/unknown")]
    request = {}
    ranked = await router.async_filter_deployments("auto", matched, say("code"), request)
    assert [one["model_info"]["id"] for one in ranked] == ["groq/beta"]
    record = request["metadata"]["spend_logs_metadata"]["p2l"]
    assert record["ranking"] == ["beta", "alpha"]
    others = [bare("openai/one"), bare("openai/two"), bare("openai/alpha")]
    request = {}
    assert await router.async_filter_deployments("other", others, say("code"), request) == others
    assert request == {}


async def test_a_record_says_which_models_are_too_little_known(tiny):
    support = {"gamma": Support(3, 1, 1, 3.0)}
    training = {"support": {name: one.record() for name, one in support.items()}}
    manifest = tiny.bundle.manifest.model_copy(update={"training": training})
    little = P2L(dataclasses.replace(tiny.bundle, manifest=manifest))
    router = P2LRouter(P2LSettings(timeout_ms=5000, min_support=10), lambda _: little)
    deployments = [bare(f"openai/{name}") for name in ("alpha", "beta", "gamma")]
    request = {}
    await router.async_filter_deployments("auto", deployments, say("chat"), request)
    record = request["metadata"]["spend_logs_metadata"]["p2l"]
    assert record["ranking"] == ["alpha", "beta"]  # gamma would be the first
    assert record["little_known"] == ["gamma"]


def test_groups_matched_by_name_get_a_retry_policy_once_the_bundle_is_known(tiny):
    made = litellm.Router(model_list=[bare("openai/alpha", mock_response="a"), bare("openai/beta", mock_response="b")])
    failover = Failover()
    assert failover.set_up(made, P2LSettings()) == []
    failover.models_of = Groups(tiny).models_of
    assert failover.set_up(made, P2LSettings()) == ["auto"]


async def test_litellms_own_router_answers_with_the_matched_model(tiny, monkeypatch):
    monkeypatch.setattr(litellm, "callbacks", [P2LRouter(P2LSettings(timeout_ms=5000), lambda _: tiny)])
    names = ("openai/alpha", "together_ai/org/Beta", "openai/Gamma")
    deployments = [bare(name, mock_response=f"answer of {name}", api_key="k") for name in names]
    router = litellm.Router(model_list=deployments)
    for text, name in (("math", names[0]), ("chat", names[2])):
        answer = await router.acompletion(model="auto", messages=say(text))
        assert answer.choices[0].message.content == f"answer of {name}"


@pytest.mark.parametrize(
    ("model", "info", "expected"),
    [
        ("openai/alpha", {}, "alpha"),
        ("together_ai/org/Beta", {}, "beta"),
        ("azure/ours", {"base_model": "gamma"}, "gamma"),
        ("openai/alpha", {"p2l_model": "beta"}, "beta"),
        ("openai/alpha", {"p2l_model": "a"}, "alpha"),
        ("openai/alpha", {"p2l_model": False}, None),
        ("openai/alpha", {"p2l_model": "delta"}, None),
        ("openai/unknown", {}, None),
    ],
)
def test_the_model_of_a_deployment_that_answered_is_found_by_the_rules_that_ranked_it(tiny, model, info, expected):
    own = bare(model, info | {"id": f"{model} {info}"}, mock_response="x", api_key="k")
    router = litellm.Router(model_list=[own, bare("openai/other", mock_response="y", api_key="k")])
    groups = Groups(tiny)
    assert groups.model_of(router.model_list[0]["model_info"]) == expected
    assert groups.model_of({"id": "of no router"}) is None
    assert groups.model_of({}) is None
