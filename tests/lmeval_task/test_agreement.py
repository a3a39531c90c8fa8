from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from lmeval_task.agreement import agreement, auc_of, solved_prompts, spearman_of

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("n", [6, 60, 700])
def test_auc_and_spearman_are_those_of_scikit_learn_and_scipy(n):
    predicted = RNG.normal(size=n).round(1)  # with ties
    solved = (predicted + RNG.normal(size=n) > 0).astype(float)
    solved[:2] = [0, 1]
    found = agreement(predicted, solved)
    assert found.auc.value == pytest.approx(roc_auc_score(solved, predicted), abs=1e-12)
    assert found.spearman.value == pytest.approx(spearmanr(predicted, solved)[0], abs=1e-12)
    assert (found.n, found.measured) == (n, pytest.approx(solved.mean()))


def test_resamples_are_those_of_repeated_prompts():
    x, y = RNG.normal(size=40).round(1), (RNG.random(40) > 0.5).astype(float)
    counts = RNG.multinomial(40, np.full(40, 1 / 40), size=3).astype(float)
    for row, auc, rho in zip(counts, auc_of(x, y > 0, counts), spearman_of(x, y, counts), strict=True):
        repeated = np.repeat(np.arange(40), row.astype(int))
        assert auc == pytest.approx(roc_auc_score(y[repeated], x[repeated]), abs=1e-12)
        assert rho == pytest.approx(spearmanr(x[repeated], y[repeated])[0], abs=1e-12)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    covered = 0
    for _ in range(40):
        latent = RNG.normal(size=80)
        solved = (latent + RNG.normal(size=80) * np.sqrt(3) > 0).astype(float)
        found = agreement(latent, solved)
        covered += found.auc.low <= 0.7299 <= found.auc.high  # on 2,000,000 draws
    assert covered >= 33


def test_a_standard_error_is_the_spread_over_samples():
    def sample():
        latent = RNG.normal(size=200)
        return agreement(latent, (latent + RNG.normal(size=200) > 0).astype(float))

    found = [sample() for _ in range(40)]
    for name in ("auc", "spearman"):
        values, errors = zip(*((getattr(f, name).value, getattr(f, name).stderr) for f in found), strict=True)
        assert np.mean(errors) == pytest.approx(np.std(values, ddof=1), rel=0.3)


def test_graded_scores_count_as_solved_from_one_half():
    predicted, score = RNG.random(50), RNG.random(50)
    assert agreement(predicted, score).auc.value == pytest.approx(roc_auc_score(score >= 0.5, predicted), abs=1e-12)
    assert solved_prompts(np.array([1.0, 5.0, 9.0])) is None  # not a score from 0 to 1


def test_where_a_lower_score_is_better_the_sign_turns():
    predicted, loss = np.array([0.1, 0.2, 0.8, 0.9]), np.array([4.0, 3.0, 2.0, 1.0])
    assert agreement(predicted, loss, lower_is_better=True).spearman.value == pytest.approx(1.0)
    assert agreement(predicted, loss).spearman.value == pytest.approx(-1.0)


@pytest.mark.parametrize("score", [[1.0, 1.0, 1.0], [0.0, 0.0, 0.0], [1.0]])
def test_equal_scores_have_no_agreement(score):
    found = agreement(np.arange(len(score), dtype=float), np.array(score))
    assert found.auc.value is found.spearman.value is found.auc.stderr is found.auc.low is None


def test_equal_predictions_have_an_auc_of_one_half_and_no_correlation():
    found = agreement(np.full(20, 0.3), np.tile([0.0, 1.0], 10))
    assert (found.auc.value, found.spearman.value) == (0.5, None)


def test_a_perfect_order_has_no_interval():
    found = agreement(np.arange(20.0), (np.arange(20) > 9).astype(float))
    assert (found.auc.value, found.auc.stderr, found.auc.low) == (1.0, None, None)


def test_one_solved_prompt_among_many_gives_no_interval():
    score = np.zeros(10)
    score[3] = 1.0
    found = agreement(np.arange(10.0), score)
    assert found.auc.value == pytest.approx(3 / 9)
    assert found.auc.low is found.auc.stderr is None
