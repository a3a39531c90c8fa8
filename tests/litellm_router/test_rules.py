"""Which rule holds for a request: the settings, its group's, and what the client asks for."""

import numpy as np
import pytest

from litellm_router.decision import decide, kept
from litellm_router.settings import P2LSettings, Rule, tightened
from p2l_plugins.errors import ConfigError

NAMES = ("m0", "m1", "m2", "m3")
VALUES = np.array([0.8, 0.6, 0.5, 0.2])
COSTS = np.array([8.0, 2.0, 4.0, 1.0])


def ranked(values=VALUES, costs=COSTS, uniform=0.0, multiplier=0.0, **rule):
    return [NAMES[i] for i in decide(NAMES, values, costs, Rule(**rule), uniform, multiplier).ranking]


def test_a_group_has_the_settings_and_its_own_keys():
    settings = P2LSettings.read(
        {
            "rule": "cap",
            "budget": 0.01,
            "groups": {"cheap": {"budget": 0.001}, "free": {"rule": "best"}, "own": {"mode": "off"}},
        }
    )
    assert (settings.rule_of("other").rule, settings.rule_of("other").budget) == ("cap", 0.01)
    assert (settings.rule_of("cheap").rule, settings.rule_of("cheap").budget) == ("cap", 0.001)
    assert settings.rule_of("free").rule == "best"
    assert settings.rule_of("own") is None
    assert P2LSettings.read({"groups": {"own": {"mode": False}}}).rule_of("own") is None  # YAML's bare off


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        ({"groups": {"g": {"rule": "lp"}}}, ["groups.g", "'lp'", "budget"]),
        ({"groups": {"g": {"budgt": 1}}}, ["groups.g.budgt", "not a setting", "budget, max_cost"]),
        ({"groups": {"g": {"mode": "off", "budget": 1}}}, ["groups.g", "off"]),
        ({"sticky": {"margn": 1}}, ["sticky.margn", "margin, ttl_s, sessions"]),
        ({"traffic": 1.5}, ["traffic", "1.5", "less than or equal to 1"]),
        ({"opponents": {}}, ["opponents", "{}"]),
        ({"opponents": {"a": -1}}, ["opponents.a", "-1"]),
        ({"output_tokens": {"a": -1}}, ["output_tokens", "-1"]),
        ({"rule": "paced"}, ["'paced'", "budget"]),
    ],
)
def test_a_wrong_rule_is_one_sentence(raw, says):
    with pytest.raises(ConfigError) as caught:
        P2LSettings.read(raw)
    assert "\n" not in str(caught.value)
    for part in says:
        assert part in str(caught.value)


def test_answers_have_one_expected_length_or_one_per_model():
    assert P2LSettings(output_tokens=70).expected_tokens("a") == 70
    settings = P2LSettings(output_tokens={"a": 7})
    assert (settings.expected_tokens("a"), settings.expected_tokens("b")) == (7, 500)


CAP, PACED, BEST = Rule(rule="cap", budget=2.0), Rule(rule="paced", budget=2.0), Rule()


@pytest.mark.parametrize(
    ("rule", "asked", "word", "result"),
    [
        (CAP, None, None, CAP),
        (CAP, {"budget": 1.0}, "applied", Rule(rule="cap", budget=1.0)),
        (CAP, {"budget": 3.0}, "refused", CAP),
        (CAP, {"rule": "best"}, "refused", CAP),
        (CAP, {"rule": "lp", "budget": 1.0}, "refused", Rule(rule="cap", budget=1.0)),
        (CAP, {"max_cost": 0.5}, "applied", Rule(rule="cap", budget=2.0, max_cost=0.5)),
        (BEST, {"budget": 1.0}, "applied", Rule(rule="cap", budget=1.0)),
        (BEST, {"rule": "lp", "budget": 1.0}, "applied", Rule(rule="lp", budget=1.0)),
        (BEST, {"rule": "lp"}, "invalid", BEST),
        (PACED, {"budget": 1.0}, "applied", Rule(rule="paced", budget=2.0, max_cost=1.0)),
        (PACED, {"rule": "cap", "budget": 1.0}, "applied", Rule(rule="cap", budget=1.0)),
        (CAP, {"objective": "usable"}, "applied", Rule(rule="cap", budget=2.0, objective="usable")),
        (CAP, {"budget": -1}, "invalid", CAP),
        (CAP, {"mode": "shadow"}, "invalid", CAP),
        (CAP, "cheap please", "invalid", CAP),
        (CAP, {"budget": float("nan")}, "invalid", CAP),
    ],
)
def test_a_client_may_tighten_a_limit_and_not_loosen_it(rule, asked, word, result):
    assert tightened(rule, asked, "tighten") == (result, word)


def test_the_config_may_let_clients_do_anything_or_nothing():
    assert tightened(CAP, {"rule": "best"}, "any")[0].rule == "best"
    assert tightened(CAP, {"budget": 9.0}, "any")[0].budget == 9.0
    assert tightened(CAP, {"budget": 1.0}, "off") == (CAP, None)


def test_paced_ranks_by_value_less_the_price_of_its_cost():
    assert ranked(rule="paced", budget=1.0) == ["m0", "m1", "m2", "m3"]
    assert ranked(rule="paced", budget=1.0, multiplier=0.1) == ["m1", "m3", "m2", "m0"]
    assert ranked(rule="paced", budget=1.0, multiplier=0.1, costs=np.array([np.nan, 2.0, 4.0, 1.0]))[-1] == "m0"


def test_a_limit_per_request_holds_under_every_rule():
    for rule in ("best", "cap", "lp", "paced"):
        budget = {} if rule == "best" else {"budget": 3.0}
        for u in (0.0, 0.5, 0.999):
            order = ranked(rule=rule, **budget, max_cost=2.5, uniform=u)
            assert set(order[:2]) == {"m1", "m3"}, rule
            assert order[2:] == ["m2", "m0"]


def test_a_conversation_stays_unless_another_model_is_worth_more_by_the_margin():
    order = [0, 1, 2, 3]
    assert kept(order, VALUES, 1, margin=0.1) == order
    assert kept(order, VALUES, 1, margin=0.3) == [1, 0, 2, 3]
    assert kept(order, VALUES, 3, margin=1.0) == [3, 0, 1, 2]
    assert kept(order, VALUES, 0, margin=0.0) == order
