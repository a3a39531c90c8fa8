"""Routing policies against scipy's linear programming."""

from itertools import islice

import numpy as np
import pytest
from scipy.optimize import linprog

from p2l_plugins.errors import P2LError
from p2l_plugins.outcomes import win_matrix
from p2l_plugins.routing import policies
from tests.helpers import machine


def test_lp_is_optimal_on_1000_random_instances():
    """Ties, duplicates, free models, budgets on a model's cost and infeasible budgets are among them."""
    rng = np.random.default_rng(0)
    seen = {"optimal": 0, "infeasible": 0, "mixed": 0}
    for i in range(1000):
        n = int(rng.integers(1, 14))
        digits = i % 3 + 1
        value, cost = np.round(rng.random(n), digits), np.round(rng.random(n), digits)
        if i % 4 == 0:
            copies = rng.integers(0, n, n)
            value, cost = value[copies], cost[copies]
        budget = float(cost[rng.integers(n)]) if i % 5 == 0 else round(float(rng.random() * 1.2 - 0.1), 2)
        reference = linprog(-value, A_ub=[cost], b_ub=[budget], A_eq=[np.ones(n)], b_eq=[1])
        if reference.status == 2:
            seen["infeasible"] += 1
            with pytest.raises(policies.InfeasibleBudget, match="below the cheapest"):
                policies.lp(value, cost, budget)
            continue
        choice = policies.lp(value, cost, budget)
        assert choice.value == pytest.approx(-reference.fun, abs=1e-9)
        assert choice.cost <= budget + 1e-12
        pi = choice.probabilities(n)
        assert pi.sum() == pytest.approx(1)
        assert (pi >= 0).all()
        assert pi @ value == pytest.approx(choice.value)
        assert pi @ cost == pytest.approx(choice.cost)
        seen["optimal"] += 1
        seen["mixed"] += len(choice.models) == 2
    assert min(seen.values()) > 50


@pytest.mark.alone
def test_a_budgeted_choice_over_130_models_takes_at_most_40_microseconds():
    rng = np.random.default_rng(0)
    cost = rng.gamma(2, 1, (300, 130))
    value = np.sqrt(cost) * rng.random((300, 130))
    prompts = iter(list(zip(value, cost, strict=True)))

    def thirty():
        for v, c in islice(prompts, 30):
            policies.lp(v, c, 1.0)

    assert machine.seconds(thirty, rounds=10) / 30 <= 40e-6


def test_best_and_cap():
    value, cost = [0.5, 0.9, 0.9, 0.2], [1.0, 5.0, 4.0, 0.5]
    assert policies.best(value, cost).models == (2,)  # the cheaper of two equals
    assert policies.cap(value, cost, 1.5).models == (0,)
    assert policies.cap(value, cost, 4.0).models == (2,)
    with pytest.raises(policies.InfeasibleBudget, match=r"0\.1 is below the cheapest model's cost 0\.5"):
        policies.cap(value, cost, 0.1)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("bad", [[np.inf, -np.inf], [np.nan, 1.0], [-np.inf, 1.0], [1e308, np.inf]])
def test_numbers_that_are_not_finite_are_an_error_and_no_warning(bad):
    for value, cost in ((bad, [1.0, 2.0]), ([1.0, 2.0], bad)):
        with pytest.raises(P2LError, match="must be finite"):
            policies.best(value, cost)


@pytest.mark.filterwarnings("error")
def test_huge_numbers_whose_sum_is_not_finite_are_finite():
    assert policies.best([1e308, 1.1e308, 1e308], [1e308, 1e308, 1e308]).models == (1,)


def test_drawing_follows_the_weights():
    choice = policies.lp([0.0, 1.0], [0.0, 1.0], 0.25)
    assert choice.models == (0, 1)
    draws = [choice.draw(u) for u in np.linspace(0, 1, 1000, endpoint=False)]
    assert np.mean(draws) == pytest.approx(0.25, abs=0.002)


def test_the_routers_own_win_rate_and_coefficient():
    rng = np.random.default_rng(3)
    beta, q = rng.normal(size=6), rng.random(6)
    w = win_matrix("bt", beta)
    for i in range(6):  # a router that always picks model i is model i
        rate = policies.policy_win_rate(np.eye(6)[i], w, q)
        assert rate == pytest.approx(policies.win_rates("bt", beta, None, q)[i])
        assert policies.policy_coefficient(rate, beta, q) == pytest.approx(beta[i], abs=1e-9)
    assert policies.policy_coefficient(1.0, beta) == np.inf
    assert policies.policy_coefficient(0.0, beta) == -np.inf


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: policies.decide("cheapest", [1], [1]), "rule 'cheapest' is not known; valid: best, cap, lp"),
        (lambda: policies.decide("cap", [1], [1]), "needs a budget"),
        (lambda: policies.best([np.nan], [1]), "finite"),
        (lambda: policies.best([1, 2], [1]), "one number per model"),
        (lambda: policies.values("usable", "bt", [0.0]), "needs a bundle of the family grk"),
        (lambda: policies.values("fame", "bt", [0.0]), "valid: win_rate, usable"),
        (lambda: policies.win_rates("bt", [0.0, 1.0], None, [-1.0, 2.0]), "at least 0"),
        (lambda: policies.win_rates("bt", [0.0, 1.0], None, [1.0]), "there are 2 models"),
        (lambda: policies.policy_coefficient(1.5, [0.0]), "between 0 and 1"),
    ],
)
def test_bad_input_is_a_sentence(call, message):
    with pytest.raises(P2LError, match=message):
        call()


def test_the_frontier_is_the_upper_concave_hull_and_lp_lies_on_it():
    from scipy.spatial import ConvexHull

    rng = np.random.default_rng(7)
    for _ in range(50):
        value, cost = rng.uniform(size=12), rng.uniform(size=12)
        corners = policies.frontier(value, cost)
        steps = np.diff(value[corners]) / np.diff(cost[corners])
        assert (np.diff(steps) < 0).all()
        assert (steps > 0).all()
        assert set(corners) <= set(ConvexHull(np.column_stack([cost, value])).vertices)
        assert corners[0] == cost.argmin()
        assert corners[-1] == value.argmax()
        budget = rng.uniform(cost.min(), 1.0)
        expected = np.interp(budget, cost[corners], value[corners])
        assert policies.lp(value, cost, budget).value == pytest.approx(expected)


def test_of_models_that_cost_the_same_the_frontier_takes_the_best():
    assert policies.frontier([0.1, 0.4, 0.4, 0.7], [1.0, 1.0, 2.0, 3.0]) == [1, 3]
    assert policies.frontier([0.5], [1.0]) == [0]


def test_an_opponent_of_no_weight_does_not_move_the_routers_own_coefficient():
    beta, q = np.array([0.0, 1.0, 400.0]), np.array([1.0, 1.0, 0.0])
    assert policies.policy_coefficient(0.6, beta, q) == pytest.approx(policies.policy_coefficient(0.6, beta[:2]))


def test_the_rule_paced_takes_its_multiplier_and_no_other_rule_does():
    value, cost = [0.8, 0.6], [8.0, 2.0]
    assert policies.decide("paced", value, cost, multiplier=0.0).models == (0,)
    assert policies.decide("paced", value, cost, multiplier=0.1).models == (1,)
    with pytest.raises(P2LError, match="needs a budget, or a multiplier"):
        policies.decide("paced", value, cost)
    with pytest.raises(P2LError, match="belongs to the rule 'paced', not to 'lp'"):
        policies.decide("lp", value, cost, 3.0, multiplier=0.1)
    for rule in ("cap", "lp"):
        with pytest.raises(P2LError, match="needs a budget"):
            policies.decide(rule, value, cost)
