import json

import numpy as np
import pytest

from litellm_router import P2LSettings
from litellm_router.conversations import Conversations
from litellm_router.decision import OVERALL, Case, Holder, Read, decide
from litellm_router.request import read
from litellm_router.settings import Rule
from p2l_plugins.cache.entry import Entry
from p2l_plugins.routing.policies import lp
from p2l_plugins.scoring.flights import Scored

NAMES = ("m0", "m1", "m2", "m3")
VALUES = np.array([0.8, 0.6, 0.5, 0.2])
COSTS = (8.0, 2.0, 4.0, 1.0)


def decision(costs=COSTS, uniform=0.0, values=VALUES, **settings):
    cost = np.array([np.nan if c is None else c for c in costs])
    return decide(NAMES, values, cost, P2LSettings(**settings), uniform)


def ranked(*args, **options):
    return decision(*args, **options).record()["ranking"]


def test_best_ranks_by_value_and_ignores_costs():
    assert ranked() == ["m0", "m1", "m2", "m3"]
    assert ranked(costs=(None, None, 1.0, None)) == ["m0", "m1", "m2", "m3"]


def test_among_equal_values_the_cheaper_model_comes_first_and_an_unknown_price_last():
    assert ranked((None, 3.0, 2.0, 3.0), values=np.zeros(4)) == ["m2", "m1", "m3", "m0"]


def test_cap_ranks_what_fits_by_value_then_the_rest_from_the_cheapest():
    assert ranked(rule="cap", budget=4.0) == ["m1", "m2", "m3", "m0"]
    assert ranked(rule="cap", budget=0.5) == ["m3", "m1", "m2", "m0"]


def test_cap_ranks_an_unknown_price_after_all_others():
    assert ranked(costs=(None, 8.0, 4.0, None), rule="cap", budget=4.0) == ["m2", "m1", "m0", "m3"]
    assert ranked(costs=(None,) * 4, rule="cap", budget=4.0) == ["m0", "m1", "m2", "m3"]


def test_lp_draws_in_the_proportions_of_the_mixture():
    mixture = lp(VALUES, np.array(COSTS), 5.0)
    assert len(mixture.models) == 2
    draws = [ranked(rule="lp", budget=5.0, uniform=u)[0] for u in np.linspace(0, 1, 1000, endpoint=False)]
    for model, weight in zip(mixture.models, mixture.weights, strict=True):
        assert draws.count(f"m{model}") / 1000 == pytest.approx(weight, abs=0.002)
    drawn = decision(rule="lp", budget=5.0, uniform=0.999).mixture
    assert drawn == pytest.approx(dict(zip(mixture.models, mixture.weights, strict=True)))


def test_lp_ranks_the_others_by_value_and_unknown_prices_last():
    assert ranked(costs=(8.0, 2.0, 4.0, None), rule="lp", budget=2.0) == ["m1", "m0", "m2", "m3"]


def test_lp_without_a_model_that_fits_takes_the_cheapest():
    assert ranked(rule="lp", budget=0.5) == ["m3", "m1", "m2", "m0"]
    assert ranked(costs=(None,) * 4, rule="lp", budget=0.5) == ["m0", "m1", "m2", "m3"]


def test_the_record_is_plain_json():
    record = json.loads(json.dumps(decision(costs=(None, 2.0, 4.0, 1.0), rule="lp", budget=3.0).record()))
    assert record["model"] == record["ranking"][0]
    assert record["costs"]["m0"] is None
    assert set(record["values"]) == {"m0", "m1", "m2", "m3"}
    assert (record["rule"], record["budget"]) == ("lp", 3.0)


@pytest.mark.parametrize(
    ("rule", "holder", "first"),
    [
        ({"rule": "cap", "budget": 4.0}, 2, "m2"),  # at the limit is within it
        ({"rule": "cap", "budget": 3.9}, 2, "m1"),
        ({"rule": "cap", "budget": 10.0, "max_cost": 4.0}, 0, "m1"),
        ({"rule": "cap", "budget": 4.0, "max_cost": 10.0}, 0, "m1"),
        ({"max_cost": 4.0}, 0, "m1"),
        ({"max_cost": 8.0}, 3, "m3"),
        ({"rule": "lp", "budget": 2.0}, 0, "m0"),  # a budget of the mean is no limit of one request
        ({"rule": "cap", "budget": 0.5}, 0, "m0"),  # none is within
    ],
)
def test_who_has_a_conversation_keeps_it_within_the_limits_of_a_request(rule, holder, first):
    found = decide(NAMES, VALUES, np.array(COSTS), Rule(**rule), holder=Holder(holder, 1.0))
    assert found.record()["model"] == first


def test_who_has_a_conversation_without_a_price_keeps_it_where_nothing_limits_a_request():
    costs = np.array([np.nan, 2.0, 4.0, 1.0])
    assert decide(NAMES, VALUES, costs, Rule(), holder=Holder(0, 1.0)).ranking[0] == 0
    assert decide(NAMES, VALUES, costs, Rule(max_cost=9.0), holder=Holder(0, 1.0)).ranking[0] == 1


def case_of(text, key="k", cached=False, truncated=None, unknown=None, **metadata):
    wanted = read(
        "auto",
        [{"role": "user", "content": text}],
        {"metadata": metadata},
        Rule(rule="cap", budget=1.0, mode="shadow"),
        P2LSettings(client_rules="tighten"),
        Conversations(),
        0.0,
    )
    scored = Scored(key, Entry(np.ones(4, np.float32), None, truncated, unknown), cached)
    return Case("auto", None, wanted, Read(scored, scored), None, 0.0).record()


def test_the_record_says_what_the_scores_were_made_of():
    assert case_of("hi hello") == {"mode": "shadow", "cache": "miss", "prompt_tokens": 2}
    assert case_of("hi hello", cached=True)["cache"] == "hit"
    assert case_of("hi hello", truncated=True)["truncated"] is True
    assert case_of("hi hello", truncated=False)["truncated"] is False
    assert case_of("hi hello", unknown=0.123456)["unknown"] == 0.1235
    assert "unknown" not in case_of("hi hello", unknown=0.0)
    assert case_of("")["reason"] == "no_text"
    assert case_of("hi hello", key=f"{OVERALL}:x")["reason"] == "unknown_text"
    assert case_of("hi hello", p2l={"budget": 0.5})["client"] == "applied"
