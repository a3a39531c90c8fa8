"""One multiplier for all traffic: the mean cost that it holds, its gain over a limit per prompt, how it is shared."""

import math

import numpy as np
import pytest

from p2l_plugins.routing import policies
from p2l_plugins.routing.pacing import FALL, FIRST, RISE, Pacer


def traffic(rng, n, shift=0.0):
    """Values and costs of n prompts: dear models are better, by more on some prompts than on others."""
    cost = np.exp(rng.normal(0, 0.5, (n, 1))) * np.array([0.1, 0.5, 1.0, 5.0, 20.0]) * 1e-3
    gain = rng.gamma(1.0, 0.05, (n, 1)) * np.log(cost / cost[:, :1])
    return 0.3 + gain + shift * np.arange(5) * 0.02 + rng.normal(0, 0.02, cost.shape), cost


def spend(pacer, values, costs):
    taken = []
    for v, c in zip(values, costs, strict=True):
        if not pacer.started:
            pacer.start(policies.first_multiplier(v, c, pacer.budget))
        choice = policies.paced(v, c, pacer.multiplier)
        pacer.charge(choice.cost)
        taken.append(choice)
    return np.array([x.value for x in taken]), np.array([x.cost for x in taken])


@pytest.mark.parametrize("budget", [3e-4, 1e-3, 4e-3])
def test_the_mean_cost_ends_at_the_budget_though_the_mix_of_prompts_shifts(budget):
    rng = np.random.default_rng(0)
    parts = [traffic(rng, 1500), traffic(rng, 1500, shift=2.0), traffic(rng, 1500, shift=-0.5)]
    values, costs = (np.concatenate(x) for x in zip(*parts, strict=True))
    _, spent = spend(Pacer(budget), values, costs)
    assert spent.mean() == pytest.approx(budget, rel=0.02)


def test_it_is_worth_more_than_a_limit_on_each_prompt_at_equal_mean_cost():
    values, costs = traffic(np.random.default_rng(1), 4000)
    budget = 1e-3
    value, spent = spend(Pacer(budget), values, costs)
    each = [policies.lp(v, c, max(budget, c.min())) for v, c in zip(values, costs, strict=True)]
    assert spent.mean() <= 1.02 * np.mean([x.cost for x in each]) + 0.02 * budget
    assert value.mean() > np.mean([x.value for x in each])


def settled(budget, multiplier, gain=0.05):
    """A pacer that has seen enough requests to move at its own gain."""
    pacer = Pacer(budget, gain)
    pacer.start(multiplier)
    for _ in range(200):
        pacer.charge(budget)
    return pacer


def test_moves_add_up_to_what_was_spent():
    pacer = settled(2.0, 0.7, gain=0.1)
    costs = [1.0, 3.5, 2.0, 0.5, 4.0]
    for cost in costs:
        pacer.charge(cost)
    assert math.log(pacer.multiplier / 0.7) == pytest.approx(0.1 * sum(c / 2.0 - 1 for c in costs))


def test_the_difference_to_the_real_cost_is_booked_later():
    one, two = settled(1.0, 1.0), settled(1.0, 1.0)
    one.charge(3.0)
    two.charge(2.0)
    two.charge(1.0, requests=0)
    assert one.multiplier == pytest.approx(two.multiplier)


def test_the_multiplier_stays_within_limits_so_that_the_way_back_is_short():
    pacer = Pacer(1.0)
    pacer.start(0.6)
    for _ in range(10_000):
        pacer.charge(0.0)
    assert pacer.multiplier == pytest.approx(0.6 / FALL)
    pacer.charge(1e12)
    assert pacer.multiplier == pytest.approx(0.6 * RISE)


def test_nothing_is_charged_before_the_start():
    pacer = Pacer(1.0)
    pacer.charge(100.0)
    assert pacer.multiplier == 0.0
    pacer.start(2.0)
    assert pacer.multiplier == pytest.approx(2.0)


def test_the_first_multiplier_is_that_of_lp_or_where_the_best_model_begins_to_give_way():
    value, cost = np.array([0.1, 0.5, 0.7]), np.array([1.0, 2.0, 4.0])
    assert policies.first_multiplier(value, cost, 1.5) == pytest.approx(0.4)
    assert policies.first_multiplier(value, cost, 9.0) == pytest.approx(0.1)
    assert policies.paced(value, cost, 0.0999).models == (2,)
    assert policies.paced(value, cost, 0.1001).models == (1,)
    assert policies.first_multiplier(np.array([0.9, 0.5]), np.array([1.0, 2.0]), 0.5) is None


def test_two_processes_share_one_multiplier_by_adding_their_moves():
    one, two, whole = (settled(1.0, 1.0) for _ in range(3))
    shared = one.shared
    rng = np.random.default_rng(2)
    for cost in rng.exponential(1.0, 200):
        mine = one if rng.random() < 0.5 else two
        mine.charge(cost)
        whole.charge(cost)
        if rng.random() < 0.1:  # a hand-over
            shared += mine.take_pending()
            mine.see(shared)
    for mine in (one, two, one):
        shared += mine.take_pending()
        mine.see(shared)
    assert one.multiplier == pytest.approx(two.multiplier) == pytest.approx(whole.multiplier)


def test_a_poor_start_is_soon_left():
    values, costs = traffic(np.random.default_rng(3), 1500)
    for start in (5.0, 500.0):  # about 60 is right
        pacer = Pacer(1e-3)
        pacer.start(start)
        _, spent = spend(pacer, values, costs)
        assert spent.mean() == pytest.approx(1e-3, rel=0.03)


def test_moves_that_could_not_be_handed_over_are_kept():
    pacer = Pacer(1.0)
    pacer.start(1.0)
    pacer.charge(3.0)
    before = pacer.multiplier
    pacer.give_back(pacer.take_pending())
    assert pacer.multiplier == pytest.approx(before)
    pacer.see(pacer.shared)
    assert pacer.multiplier == pytest.approx(before)


def test_the_multiplier_of_lp_is_the_slope_of_its_edge():
    value, cost = np.array([0.1, 0.5, 0.7]), np.array([1.0, 2.0, 4.0])
    assert policies.lp_multiplier(value, cost, 1.5) == pytest.approx(0.4)
    assert policies.lp_multiplier(value, cost, 3.0) == pytest.approx(0.1)
    assert policies.lp_multiplier(value, cost, 4.0) == 0.0
    assert policies.lp_multiplier(value, cost, 0.5) == pytest.approx(0.4)


def test_paced_is_best_without_a_multiplier_and_cheapest_with_a_large_one():
    value, cost = np.array([0.1, 0.5, 0.7]), np.array([1.0, 2.0, 4.0])
    assert [policies.paced(value, cost, m).models for m in (0.0, 0.2, 1e9)] == [(2,), (1,), (0,)]


def test_how_far_it_may_go_is_settled_by_the_first_requests_alone():
    pacer = Pacer(1.0)
    value, cost = np.array([0.5, 0.9]), np.array([0.5, 2.0])
    for _ in range(FIRST):
        pacer.start_from(value, cost)
    settled_at = pacer._limits
    for _ in range(2 * FIRST):
        pacer.start_from(value, 100 * cost)
    assert pacer._limits == settled_at
    assert len(pacer._firsts) == FIRST


def test_what_is_shared_is_believed_as_far_as_other_proxies_limits_may_lie():
    pacer = Pacer(1.0)
    pacer.start(1.0)
    low, high = -math.log(FALL), math.log(RISE)
    for shared in (low, 0.0, high, 2 * low - high, 2 * high - low):
        assert pacer.see(shared)
        assert pacer.shared == shared
    pacer.see(0.5)
    for damaged in (2 * low - high - 0.01, 2 * high - low + 0.01, math.nan, math.inf, -math.inf, 1e300):
        assert not pacer.see(damaged)
        assert pacer.shared == 0.5
