"""Calibration errors of forecasts of votes."""

import numpy as np
import pytest

from p2l_plugins.errors import DataError
from p2l_plugins.evaluation.calibration import calibration, calibrations
from p2l_plugins.outcomes import log_probabilities
from p2l_plugins.votes.votes import Votes


def alone(p, y, **options):
    """Calibration of forecasts on as many prompts, each of weight 1."""
    p, y = np.asarray(p, float), np.asarray(y, float)
    return calibration(p, y, np.ones(len(p)), np.arange(len(p)), **options)


def test_a_small_example_by_hand():
    """Two bins of equal width: 0.1 and 0.3 against 0 of 2, 0.6 and 0.8 against 1 of 2."""
    c = alone([0.1, 0.3, 0.6, 0.8], [0, 0, 1, 0], bins=2, kind="equal-width")
    assert [(b.predicted, b.observed, b.share, b.n, b.n_prompts) for b in c.bins] == [
        (pytest.approx(0.2), 0.0, 0.5, 2, 2),
        (pytest.approx(0.7), 0.5, 0.5, 2, 2),
    ]
    assert c.error == pytest.approx(0.5 * 0.2 + 0.5 * 0.2)
    assert sum(c.histogram) == pytest.approx(1)
    assert c.n == c.n_prompts == 4


@pytest.mark.parametrize(("kind", "strategy"), [("equal-mass", "quantile"), ("equal-width", "uniform")])
def test_the_bins_are_those_of_scikit_learn(kind, strategy):
    oracle = pytest.importorskip("sklearn.calibration")
    rng = np.random.default_rng(0)
    p = rng.beta(1, 3, 5000)
    y = rng.random(5000) < p**1.5
    c = alone(p, y, bins=15, kind=kind)
    observed, predicted = oracle.calibration_curve(y, p, n_bins=15, strategy=strategy)
    np.testing.assert_allclose([b.observed for b in c.bins], observed)
    np.testing.assert_allclose([b.predicted for b in c.bins], predicted)


@pytest.mark.parametrize("per_prompt", [1, 20])
def test_a_calibrated_forecast_shows_the_error_that_is_expected_by_chance(per_prompt):
    """And little else once that bias is gone; also where the votes of a prompt go together."""
    rng = np.random.default_rng(1)
    found = []
    for _ in range(60):
        p = np.repeat(rng.random(400), per_prompt)
        y = np.repeat(rng.random(400), per_prompt) < p  # all votes of a prompt have one outcome
        found.append(calibration(p, y.astype(float), np.ones(len(p)), np.repeat(np.arange(400), per_prompt)))
    error, expected = (np.mean([getattr(c, key) for c in found]) for key in ("error", "expected"))
    assert error == pytest.approx(expected, rel=0.06)
    assert error > 0.03
    squares = [(c.error / c.expected) for c in found]
    assert max(squares) < 2
    assert np.mean([c.debiased_rms for c in found]) < 0.6 * np.mean([c.error for c in found])


def test_the_error_vanishes_with_more_prompts_unless_the_forecast_is_wrong():
    rng = np.random.default_rng(2)
    p = rng.random(200_000)
    y = (rng.random(200_000) < p).astype(float)
    assert alone(p, y).error < 0.005
    wrong = alone(np.clip(p + 0.1, 0, 1), y)
    assert wrong.error == pytest.approx(0.095, abs=0.005)
    assert wrong.debiased_rms == pytest.approx(0.097, abs=0.005)
    assert wrong.expected < 0.005


def test_intervals_hold_the_truth_in_95_of_100_bins_when_votes_of_a_prompt_go_together():
    rng = np.random.default_rng(3)
    hits, naive, bins = 0, 0, 0
    for _ in range(100):
        p = np.repeat(np.round(rng.random(300), 1), 10)
        y = (np.repeat(rng.random(300), 10) < p).astype(float)
        for b in calibration(p, y, np.ones(3000), np.repeat(np.arange(300), 10), 11, "equal-width").bins:
            hits += b.low <= b.predicted <= b.high
            naive += abs(b.observed - b.predicted) <= 1.96 * np.sqrt(b.predicted * (1 - b.predicted) / b.n)
            bins += 1
    assert hits / bins == pytest.approx(0.95, abs=0.03)
    assert naive / bins < 0.7


def test_weights_count_like_repeated_votes():
    rng = np.random.default_rng(4)
    p, y, w = rng.random(500), (rng.random(500) < 0.5).astype(float), rng.integers(1, 4, 500)
    prompt = np.arange(500)
    a = calibration(p, y, w.astype(float), prompt, kind="equal-width")
    b = calibration(*(np.repeat(x, w) for x in (p, y, np.ones(500), prompt)), kind="equal-width")
    assert a.error == pytest.approx(b.error)
    assert a.expected == pytest.approx(b.expected, rel=0.05)
    for one, two in zip(a.bins, b.bins, strict=True):
        assert (one.predicted, one.observed) == pytest.approx((two.predicted, two.observed))
    assert [x.share for x in calibration(p, y, w.astype(float), prompt, 4).bins] == pytest.approx([0.25] * 4, abs=0.01)


def test_equal_forecasts_share_one_bin_and_one_prompt_has_a_wide_interval():
    (only,) = alone([0.5] * 8, [1, 0] * 4).bins
    assert (only.observed, only.n) == (0.5, 8)
    c = calibration(np.full(6, 0.3), np.ones(6), np.ones(6), np.zeros(6, int))
    assert (c.bins[0].n, c.bins[0].n_prompts) == (6, 1)
    assert c.bins[0].low < 0.3 < c.bins[0].high == 1.0
    assert np.isfinite([c.error, c.expected, c.debiased_rms]).all()
    with pytest.raises(DataError, match="there are 0 and 15"):
        alone([], [])


def votes_of(family, n=4000, seed=5, models=4):
    """Votes drawn from a model of the family on n prompts, and that model's log-probabilities."""
    rng = np.random.default_rng(seed)
    beta = rng.normal(0, 1.5, (n, models))
    a = rng.integers(0, models, n)
    b = (a + rng.integers(1, models, n)) % models
    eta = {"rk": np.full(n, 0.0), "grk": np.full(n, 0.5)}.get(family)
    log_p = log_probabilities(family, beta[np.arange(n), a], beta[np.arange(n), b], eta)
    outcome = (rng.random((n, 1)) > np.exp(log_p).cumsum(axis=1)[:, :3]).sum(axis=1)
    names = tuple(f"m{i}" for i in range(models))
    votes = Votes(names, [(str(i),) for i in range(n)], [""] * n, np.arange(n), a, b, outcome, np.ones(n))
    return votes, log_p


@pytest.mark.parametrize(
    ("family", "classes"),
    [
        ("bt", {"win", "model_a", "model_b", "decisive"}),
        ("bt-tie", {"win", "model_a", "model_b", "decisive"}),
        ("rk", {"win", "model_a", "model_b", "tie", "decisive"}),
        ("grk", {"win", "model_a", "model_b", "tie", "tie (bothbad)", "decisive"}),
    ],
)
def test_the_true_model_is_calibrated_in_each_outcome_of_its_family(family, classes):
    votes, log_p = votes_of(family)
    found = calibrations(log_p, votes, family)
    assert set(found.classes) == classes
    for c in found.classes.values():
        assert c.error < 1.7 * c.expected
    assert found.error < 1.5 * found.expected
    assert found.classes["win"].n == 2 * len(votes)


def test_pooled_wins_and_decisive_votes_do_not_depend_on_the_order_of_the_sides():
    votes, log_p = votes_of("grk")
    flip = np.random.default_rng(6).random(len(votes)) < 0.5
    outcome = np.where(flip & (votes.outcome < 2), 1 - votes.outcome, votes.outcome)
    other = Votes(
        votes.models,
        votes.prompts,
        votes.groups,
        votes.prompt,
        np.where(flip, votes.b, votes.a),
        np.where(flip, votes.a, votes.b),
        outcome,
        votes.weight,
    )
    swapped = np.where(flip[:, None], log_p[:, [1, 0, 2, 3]], log_p)
    one, two = calibrations(log_p, votes, "grk"), calibrations(swapped, other, "grk")
    assert one.error == pytest.approx(two.error)
    for key in ("win", "decisive"):
        assert one.classes[key].error == pytest.approx(two.classes[key].error)
    assert one.classes["model_a"].error != pytest.approx(two.classes["model_a"].error)
