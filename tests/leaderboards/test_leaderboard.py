"""The aggregate leaderboard against a direct optimisation over all prompts and pairs, and choix."""

import json
import tracemalloc

import choix
import numpy as np
import pytest
from scipy.optimize import minimize

from p2l_plugins.errors import P2LError
from p2l_plugins.leaderboards.fit import fit
from p2l_plugins.leaderboards.leaderboard import Leaderboard, aggregate
from p2l_plugins.leaderboards.pair_means import PairMeans
from p2l_plugins.outcomes import FAMILIES, has_eta, log_probabilities, probabilities, win_matrix
from p2l_plugins.scoring.scorer import Scores
from tests.helpers import machine


def random_scores(family, n, m, seed=0, scale=2.0):
    rng = np.random.default_rng(seed)
    raw_eta = rng.normal(size=n) + (20 if family == "rk" else 0)
    return rng.normal(size=(n, m)) * scale, raw_eta if has_eta(family) else None


def names(m):
    return tuple(f"m{i}" for i in range(m))


def direct(family, coefs, raw_eta):
    """Minimises the cross-entropy over every prompt and pair at once, with a generic optimiser."""
    a, b = np.triu_indices(coefs.shape[1], 1)
    target = probabilities(family, coefs[:, a], coefs[:, b], None if raw_eta is None else raw_eta[:, None])

    def loss(x):
        logp = log_probabilities(family, x[a], x[b], x[-1] if has_eta(family) else None)
        return -(target * np.where(np.isfinite(logp), logp, 0.0)).sum(axis=-1).mean()

    start = coefs.mean(axis=0) if raw_eta is None else np.append(coefs.mean(axis=0), raw_eta.mean())
    result = minimize(loss, start, method="BFGS", options={"gtol": 1e-10, "maxiter": 5000})
    beta = result.x[: coefs.shape[1]]
    return beta if family == "grk" else beta - beta.mean(), result.x[-1] if has_eta(family) else None


@pytest.mark.parametrize("family", FAMILIES)
def test_the_aggregate_is_the_direct_optimum(family):
    coefs, raw_eta = random_scores(family, 30, 6)
    board = aggregate(names(6), family, coefs, raw_eta)
    beta, eta = direct(family, coefs, raw_eta)
    np.testing.assert_allclose(board.coefs, beta, atol=1e-5)
    if eta is None:
        assert board.raw_eta is None
    else:
        assert board.raw_eta == pytest.approx(eta, abs=1e-5)


def test_it_is_not_the_mean_of_the_coefficients():
    board = aggregate(("a", "b", "c"), "bt", [[8.0, 0.0, -8.0], [-1.0, 0.0, 1.0], [-1.0, 0.0, 1.0]])
    assert abs(board.coefs[0] - 2.0) > 0.5


def test_grk_is_not_centred_and_bt_is():
    coefs = np.array([[3.0, 4.0], [2.0, 3.0]])
    assert aggregate(("a", "b"), "grk", coefs, [0.0, 0.0]).coefs.mean() > 2
    assert aggregate(("a", "b"), "bt", coefs).coefs.mean() == pytest.approx(0)


@pytest.mark.parametrize("family", FAMILIES)
def test_one_prompt_gives_back_its_own_leaderboard(family):
    coefs, raw_eta = random_scores(family, 1, 5)
    board = aggregate(names(5), family, coefs, raw_eta)
    expected = coefs[0] if family == "grk" else coefs[0] - coefs[0].mean()
    np.testing.assert_allclose(board.coefs, expected, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_extreme_coefficients_stay_finite(family):
    coefs = np.array([[80.0, -80.0, 0.0], [-80.0, 80.0, 0.0], [80.0, 80.0, -80.0]])
    raw_eta = np.zeros(3) if has_eta(family) else None
    board = aggregate(("a", "b", "c"), family, coefs, raw_eta)
    assert np.isfinite(board.coefs).all()
    assert np.isfinite(board.win_rate).all()


def test_reading_in_pieces_changes_nothing():
    coefs, raw_eta = random_scores("grk", 700, 4)
    whole, pieces = PairMeans("grk", 4), PairMeans("grk", 4)
    whole.add(coefs, raw_eta)
    for start in range(0, 700, 91):
        pieces.add(coefs[start : start + 91], raw_eta[start : start + 91])
    np.testing.assert_allclose(whole.win, pieces.win, rtol=1e-12)
    np.testing.assert_allclose(whole.bad, pieces.bad, rtol=1e-12)
    assert Leaderboard.from_means(names(4), pieces).n_prompts == 700


def test_fitting_counts_matches_choix():
    rng = np.random.default_rng(0)
    beta = rng.normal(size=5)
    data = []
    for _ in range(800):
        i, j = rng.permutation(5)[:2]
        data.append((i, j) if rng.random() < 1 / (1 + np.exp(beta[j] - beta[i])) else (j, i))
    win = np.zeros((5, 5))
    for i, j in data:
        win[i, j] += 1
    zeros = np.zeros((5, 5))
    ours, _ = fit("bt", win, zeros, zeros, (np.zeros(5), 0.0))
    theirs = choix.opt_pairwise(5, [(int(i), int(j)) for i, j in data])
    np.testing.assert_allclose(ours, theirs - theirs.mean(), atol=1e-4)


#: American League East, 1987: games that the row's team won against the column's (Agresti, Categorical Data Analysis,
#: 2nd edition, table 10.10).
BASEBALL = {
    "Milwaukee": [0, 7, 9, 7, 7, 9, 11],
    "Detroit": [6, 0, 7, 5, 11, 9, 9],
    "Toronto": [4, 6, 0, 7, 7, 8, 12],
    "New York": [6, 8, 6, 0, 6, 7, 10],
    "Boston": [6, 2, 6, 7, 0, 7, 12],
    "Cleveland": [4, 4, 5, 6, 6, 0, 6],
    "Baltimore": [2, 4, 1, 3, 1, 7, 0],
}


def test_the_baseball_teams_of_agresti_get_the_published_abilities():
    """As Turner & Firth, Bradley-Terry Models in R (J. Statistical Software 48(9), 2012) print them; Baltimore is 0."""
    win = np.array(list(BASEBALL.values()), float)
    zeros = np.zeros_like(win)
    coefs, _ = fit("bt", win, zeros, zeros, (np.zeros(7), 0.0))
    published = [1.5814, 1.4364, 1.2945, 1.2476, 1.1077, 0.6839, 0.0]
    np.testing.assert_allclose(coefs - coefs[-1], published, atol=1e-4)


@pytest.mark.alone
def test_1000_prompts_of_130_models_in_grk_take_at_most_0_13_seconds():
    coefs, raw_eta = random_scores("grk", 1000, 130)
    assert machine.seconds(lambda: aggregate(names(130), "grk", coefs, raw_eta)) <= 0.13


@pytest.mark.parametrize("family", FAMILIES)
def test_win_rates_of_many_prompts_take_little_memory(family):
    coefs, raw_eta = random_scores(family, 4000, 100)  # P(a beats b) of all pairs would take 320 MB
    apart = frozenset({"m3", "m7"}) if family == "grk" else frozenset()
    scores = Scores(names(100), coefs.astype(np.float32), raw_eta, family, ungrounded=apart)
    tracemalloc.start()
    rates = scores.win_rates()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak - rates.nbytes < 25e6
    some = [0, 1, 2, 1000, 3999]
    side = np.isin(np.arange(100), [3, 7]) if apart else np.zeros(100, bool)
    others = (side[:, None] == side) & ~np.eye(100, dtype=bool)
    win = win_matrix(family, scores.coefs[some], None if raw_eta is None else raw_eta[some])
    np.testing.assert_allclose(rates[some], (win * others).sum(axis=2) / others.sum(axis=1), rtol=1e-12)


def test_tables():
    board = aggregate(("a", "b", "c"), "grk", [[0.0, 2.0, 5.0]], [0.0], frozenset({"c"}))
    rows = json.loads(board.to_json())["leaderboard"]
    assert [row["model"] for row in rows] == ["b", "a", "c"]  # an ungrounded model stands after the others
    assert rows[0]["usable"] == pytest.approx(1 / (1 + np.exp(-2)), abs=1e-5)
    assert rows[2]["grounded"] is False
    assert "| 1 | b | +2.000 |" in board.to_markdown()
    assert board.to_markdown(top=1).count("\n") == 2


def test_bad_input_is_a_sentence():
    with pytest.raises(P2LError, match="at least one prompt"):
        aggregate(("a", "b"), "bt", np.empty((0, 2)))
    with pytest.raises(P2LError, match="do not fit 3 models"):
        aggregate(("a", "b", "c"), "bt", [[0.0, 1.0]])
    with pytest.raises(P2LError, match="not numbers"):
        aggregate(("a", "b"), "bt", [[0.0, np.nan]])
    with pytest.raises(P2LError, match="needs raw_eta"):
        aggregate(("a", "b"), "grk", [[0.0, 1.0]])
