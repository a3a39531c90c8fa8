"""Routing judged on score matrices, with and without costs."""

import itertools

import numpy as np
import pytest

from p2l_plugins.errors import DataError
from p2l_plugins.evaluation.baselines import Parts
from p2l_plugins.evaluation.choices import Choices, candidates, model_values
from p2l_plugins.evaluation.pacing import HindsightPacer
from p2l_plugins.evaluation.routed import cost_score_curve, routed
from p2l_plugins.routing import policies

NAMES = ("x", "y", "z")


def test_a_small_example_by_hand():
    scores = np.array([[1.0, 0, 0.5], [0, 1, 0.5], [np.nan, 1, 0], [1, 0, 0]])
    value = np.array([[2.0, 1, 0], [0, 1, 2], [9, 1, 0], [0, 1, 2]])  # picks x, z, y (x was not run), z
    single = np.tile([3.0, 2, 1], (4, 1))  # x; y where x was not run
    category = np.tile([1.0, 3, 2], (4, 1))
    r = routed(NAMES, scores, value, single, category, ["p", "p", "q", "q"])
    assert (r.n, r.candidates, r.best_single_model) == (4, 3, "x")
    assert r.p2l == pytest.approx((1 + 0.5 + 1 + 0) / 4)
    assert r.best_single == pytest.approx((1 + 0 + 1 + 1) / 4)
    assert r.best_category == pytest.approx((0 + 1 + 1 + 0) / 4)
    assert r.oracle == 1
    assert r.random == pytest.approx((0.5 + 0.5 + 0.5 + 1 / 3) / 4)
    gaps = np.array([0, 0.5, 0, -1])
    assert r.gain == pytest.approx(gaps.mean())
    assert r.gain_stderr == pytest.approx(gaps.std(ddof=1) / 2)
    assert dict(r.picks) == {"z": 0.5, "x": 0.25, "y": 0.25}
    assert [(c.category, c.n, c.p2l, c.best_single) for c in r.categories] == [("p", 2, 0.75, 0.5), ("q", 2, 0.5, 1)]
    assert r.policies["p2l"].n == 4


def test_one_prompt_has_no_standard_error():
    r = routed(NAMES[:2], np.array([[1.0, 0]]), np.array([[0.0, 1]]), np.array([[1.0, 0]]), None, [""])
    assert (r.p2l, r.best_single, r.best_category, r.categories) == (0, 1, None, ())
    assert np.isnan(r.gain_stderr)


def test_the_best_single_model_is_never_chosen_on_the_prompts_that_are_judged():
    """On noise, the best in hindsight looks better than it is; cross-fitted it does not."""
    rng = np.random.default_rng(0)
    crossed, hindsight = [], []
    for _ in range(40):
        scores = (rng.random((60, 20)) < 0.5).astype(float)
        choices = Choices.of(scores, scores, Parts.of(["c"] * 60))
        crossed.append(scores[np.arange(60), choices.single.argmax(axis=1)].mean())
        hindsight.append(scores.mean(axis=0).max())
    assert np.mean(crossed) == pytest.approx(0.5, abs=0.03)
    assert np.mean(hindsight) > 0.6


def test_a_fold_is_judged_by_the_other_folds():
    rng = np.random.default_rng(1)
    scores = rng.random((23, 4))
    parts = Parts.of(["c", "d"] * 11 + ["c"])
    single, category = model_values(parts, scores, np.ones((23, 4), bool), prior=0.5)
    centred = scores - scores.mean(axis=1, keepdims=True)
    for k in range(5):
        rest = parts.source != k
        np.testing.assert_allclose(single[parts.judged == k], np.tile(centred[rest].mean(axis=0), (sum(~rest), 1)))
        here = rest & (parts.source_group == 0)
        expected = (centred[here].sum(axis=0) + 0.5 * centred[rest].mean(axis=0)) / (here.sum() + 0.5)
        rows = (parts.judged == k) & (parts.judged_group == 0)
        np.testing.assert_allclose(category[rows], np.tile(expected, (rows.sum(), 1)))


def test_a_model_gains_nothing_by_running_on_easy_prompts_only():
    easy, hard = np.array([1.0, 0.9, 1.0]), np.array([0.2, 0.1, np.nan])
    source = np.array([easy, easy, hard, hard])
    parts = Parts.of([""], [""] * 4)
    single, category = model_values(parts, source, np.ones((1, 3), bool))
    assert single[0].argmax() == 0
    assert np.nanmean(source, axis=0).argmax() == 2
    assert category is None


def test_an_unknown_category_gets_the_overall_best_and_an_unseen_model_comes_last():
    source = np.array([[1.0, 0, np.nan], [1, 0, np.nan], [0, 1, np.nan], [0, 1, np.nan]] * 20)
    parts = Parts.of(["law", "new"], ["maths", "maths", "law", "law"] * 20)
    single, category = model_values(parts, source, np.ones((2, 3), bool))
    assert category[0].argmax() == 1
    np.testing.assert_allclose(category[1], single[1])
    assert single.argmin(axis=1).tolist() == [2, 2]


def test_candidates_ran_on_nearly_all_prompts():
    scores = np.ones((10, 3))
    scores[:2, 1] = np.nan
    assert candidates(scores).tolist() == [0, 2]
    with pytest.raises(DataError, match="ran on 90% of the prompts of the score matrix; 1 did"):
        candidates(scores[:, :2])


@pytest.fixture
def market():
    """Values that are the expected scores of 300 prompts, and costs that rise with quality."""
    rng = np.random.default_rng(2)
    values = 1 / (1 + np.exp(-(rng.normal(0, 2, (300, 1)) + np.array([-1, 0, 1, 1.5]) + rng.normal(0, 1, (300, 4)))))
    costs = np.array([1, 2, 6, 10]) * rng.uniform(0.5, 1.5, (300, 1))
    return values, costs


def test_the_paced_budget_spends_exactly_what_it_is_given(market):
    values, costs = market
    pacer = HindsightPacer(values, costs)
    for budget in np.linspace(pacer.least, pacer.most, 17):
        pi = pacer.policy(float(budget))
        assert (pi * costs).sum(axis=1).mean() == pytest.approx(budget)
        np.testing.assert_allclose(pi.sum(axis=1), 1)
        assert (pi >= 0).all()
    assert (pacer.policy(1e9).argmax(axis=1) == values.argmax(axis=1)).all()


def test_the_paced_budget_is_the_linear_programme_over_all_prompts(market):
    """Theorem 1's problem with one budget for all traffic, solved by scipy."""
    scipy = pytest.importorskip("scipy.optimize")
    values, costs = market[0][:40], market[1][:40]
    budget = 3.3
    one = np.kron(np.eye(40), np.ones(4))
    answer = scipy.linprog(
        -values.ravel(), A_ub=costs.ravel()[None] / 40, b_ub=[budget], A_eq=one, b_eq=np.ones(40), bounds=(0, 1)
    )
    pi = HindsightPacer(values, costs).policy(budget)
    assert (pi * values).sum() == pytest.approx(-answer.fun, rel=1e-9)


def test_curves_are_what_each_rule_does_prompt_by_prompt(market):
    values, costs = market
    single = np.array([0, 1, 2, 3.0])
    budgets = [1.5, 3.0, 7.0]
    report = cost_score_curve("abcd", values, values, costs, single, single / 4, budgets)
    assert (report.n, report.best_single_model) == (300, "d")
    assert report.best_single.cost == pytest.approx(costs[:, 3].mean())
    for rule in ("lp", "cap"):
        for point in report.curves[rule].points:
            each = [policies.decide(rule, v, c, max(point.budget, c.min())) for v, c in zip(values, costs, strict=True)]
            assert point.score == pytest.approx(np.mean([m.value for m in each]))
            assert point.cost == pytest.approx(np.mean([m.cost for m in each]))
            assert point.stderr == pytest.approx(np.std([m.value for m in each], ddof=1) / np.sqrt(300))
    for point, over in itertools.zip_longest(report.curves["marginal"].points, report.paced_over_lp):
        mixture = policies.lp(single / 4, costs.mean(axis=0), point.budget)
        assert point.cost == pytest.approx(mixture.cost)
        assert over[1] >= -1e-9  # where the values are the truth, pacing is never worse at the same mean cost
    assert report.paced_over_lp[1][1] > 0.01


def test_a_curve_reaches_the_best_single_model_by_a_mix_of_two_budgets(market):
    values, costs = market
    report = cost_score_curve("abcd", values, values, costs, values.mean(axis=0))
    paced = report.curves["paced"]
    full, most, some = paced.reaches
    assert [r.share for r in paced.reaches] == [1.0, 0.99, 0.95]
    assert full.point.difference == pytest.approx(0, abs=1e-12)
    assert full.cost_fraction == pytest.approx(full.point.cost / report.best_single.cost)
    assert some.cost_fraction < most.cost_fraction < full.cost_fraction < 1
    assert report.curves["cap"].points[0].budget == pytest.approx(costs[:, 0].mean())
    plain = cost_score_curve("abcd", values, values, costs, values.mean(axis=0), values.mean(axis=0)).curves["marginal"]
    assert plain.reaches[0].cost_fraction == pytest.approx(1)
    poor = cost_score_curve("abcd", -values, values, costs, values.mean(axis=0)).curves["lp"]
    assert poor.reaches[0].point is None
    assert poor.reaches[0].cost_fraction is None


def test_models_that_were_not_run_are_not_chosen(market):
    values, costs = market
    scores = values.copy()
    scores[::2, 3] = np.nan
    report = cost_score_curve("abcd", values, scores, costs, np.arange(4.0), np.arange(4.0))
    for curve in report.curves.values():
        assert all(np.isfinite([p.score, p.cost, p.stderr]).all() for p in curve.points)
    assert report.best_single.score == pytest.approx(
        np.where(np.isnan(scores[:, 3]), scores[:, 2], scores[:, 3]).mean()
    )


def test_equal_costs_and_free_models_do_no_harm():
    values = np.random.default_rng(3).random((20, 3))
    same = cost_score_curve("abc", values, values, np.ones(3), np.arange(3.0))
    assert all(p.cost == pytest.approx(1) for p in same.curves["paced"].points)
    assert same.curves["paced"].points[-1].score == pytest.approx(values.max(axis=1).mean())
    free = cost_score_curve("abc", values, values, np.zeros(3), np.arange(3.0))
    assert free.curves["paced"].reaches[0].cost_fraction is None
    with pytest.raises(DataError, match="every model needs a cost"):
        cost_score_curve("abc", values, values, np.array([1, 2, np.nan]), np.arange(3.0))
