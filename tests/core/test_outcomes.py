"""The outcome models against finite differences and choix."""

import choix
import numpy as np
import pytest
from helpers.outcomes import votes

from p2l_plugins.errors import DataError
from p2l_plugins.outcomes import (
    FAMILIES,
    log_probabilities,
    negative_log_likelihood,
    nll_gradients,
    probabilities,
    rk_eta,
    win_matrix,
    win_probability,
)


@pytest.mark.parametrize("family", FAMILIES)
def test_probabilities_sum_to_one(family):
    a, b, _, raw_eta = votes(family, scale=5)
    np.testing.assert_allclose(probabilities(family, a, b, raw_eta).sum(axis=-1), 1, atol=1e-12)


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_match_finite_differences(family):
    a, b, y, raw_eta = votes(family)
    _, d_a, d_b, d_raw = nll_gradients(family, a, b, y, raw_eta)
    h = 1e-6

    def slope(da, db, de):
        up, down = (
            negative_log_likelihood(family, a + s * da, b + s * db, y, None if raw_eta is None else raw_eta + s * de)
            for s in (h, -h)
        )
        return (up - down) / (2 * h)

    np.testing.assert_allclose(d_a, slope(1, 0, 0), atol=1e-7)
    np.testing.assert_allclose(d_b, slope(0, 1, 0), atol=1e-7)
    np.testing.assert_allclose(d_raw, slope(0, 0, 1), atol=1e-7)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("a", "b"), [(80, -80), (-80, 80), (80, 80), (-80, -80), (0, 80), (80, 0)])
@pytest.mark.parametrize("raw_eta", [-30.0, 0.0, 30.0])
def test_nothing_overflows_at_80(family, a, b, raw_eta):
    outcomes = np.arange(2 if family == "bt" else 4)
    sides = np.full(len(outcomes), float(a)), np.full(len(outcomes), float(b))
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        results = nll_gradients(family, *sides, outcomes, np.full(len(outcomes), raw_eta))
    assert all(np.isfinite(r).all() for r in results)
    assert (results[0] >= -1e-12).all()


def test_bt_matches_choix():
    rng = np.random.default_rng(1)
    beta = rng.normal(size=6)
    pairs = [tuple(rng.permutation(6)[:2]) for _ in range(200)]
    winner, loser = np.array(pairs).T
    ours = negative_log_likelihood("bt", beta[winner], beta[loser], np.zeros(200, int)).sum()
    theirs = -sum(np.log(choix.probabilities([w, k], beta)[0]) for w, k in pairs)
    assert ours == pytest.approx(theirs, rel=1e-12)


def test_rao_kupper_is_the_textbook_form():
    """P(a) = π_a / (π_a + θ π_b), P(tie) = (θ² − 1) π_a π_b / ((π_a + θ π_b)(π_b + θ π_a)), θ = e^η."""
    raw = 21.0
    theta = np.exp(rk_eta(raw))
    x, y = np.exp(0.7), np.exp(-0.4)
    p = probabilities("rk", 0.7, -0.4, raw)
    assert p[0] == pytest.approx(x / (x + theta * y))
    assert p[2] == pytest.approx((theta**2 - 1) * x * y / ((x + theta * y) * (y + theta * x)))
    assert rk_eta(-1e6) == 0.02


def test_grounded_rao_kupper_is_the_paper_form():
    theta = np.exp(0.3) + 1.000001
    x, y = np.exp(0.7), np.exp(-0.4)
    p = probabilities("grk", 0.7, -0.4, 0.3)
    assert p[0] == pytest.approx(x / (x + theta * y + 1))
    assert p[1] == pytest.approx(y / (y + theta * x + 1))
    assert p[3] == pytest.approx(1 / (1 + x + y))
    assert p[2] == pytest.approx(1 - p[0] - p[1] - p[3])


def test_an_eta_of_zero_is_not_no_eta():
    assert probabilities("grk", 1.0, 0.0, 0.0)[2] != pytest.approx(probabilities("grk", 1.0, 0.0, -20.0)[2])
    with pytest.raises(DataError, match="raw_eta"):
        probabilities("grk", 1.0, 0.0, None)


def test_bt_refuses_ties_and_bt_tie_counts_them_half():
    with pytest.raises(DataError, match="no ties"):
        negative_log_likelihood("bt", [1.0], [0.0], [2])
    loss = negative_log_likelihood("bt-tie", [1.0], [0.0], [2])[0]
    assert loss == pytest.approx(-0.5 * (np.log(1 / (1 + np.e**-1)) + np.log(1 / (1 + np.e))))


@pytest.mark.parametrize("family", FAMILIES)
def test_win_probability_is_the_first_outcome(family):
    a, b, _, raw_eta = votes(family)
    np.testing.assert_allclose(
        win_probability(family, a, b, raw_eta), np.exp(log_probabilities(family, a, b, raw_eta))[:, 0], rtol=1e-10
    )
    eta = None if raw_eta is None else raw_eta[0]
    w = win_matrix(family, a[:3], eta)
    assert w[0, 1] == pytest.approx(win_probability(family, a[0], a[1], eta))
