"""The fit of one new row: gradients, convexity, the prior, and what cross-validation chooses."""

import itertools

import numpy as np
import pytest
from scipy.optimize import minimize

from onnx_export.new_model import (
    STRENGTHS,
    Row,
    RowProblem,
    Task,
    choose_strength,
    fit_new_model,
    row_prior,
)
from p2l_plugins import DataError
from p2l_plugins.outcomes import BAD, FAMILIES, TIE, A, B, log_probabilities, negative_log_likelihood
from p2l_plugins.votes.votes import Votes

H, M = 6, 12


def head(rng):
    """Rows that differ mostly in two directions, as trained heads do."""
    directions = 0.3 * rng.normal(size=(2, H))
    return 0.1 * rng.normal(size=H) + rng.normal(size=(M, 2)) @ directions, rng.normal(size=M)


def drawn_task(rng, family="grk", prompts=300, truth=None):
    """Votes of a new model drawn from the family at its true row, against opponents of a frozen head."""
    weight, bias = head(rng)
    truth = Row(weight[3] + 0.1 * rng.normal(size=H), 0.4) if truth is None else truth
    states = rng.normal(size=(prompts, H)) + 2.0
    prompt = np.repeat(np.arange(prompts), 3)
    opponent = (states @ weight.T + bias)[prompt, rng.integers(M, size=len(prompt))]
    raw_eta = np.full(prompts, {"rk": 22.0, "grk": 1.0}.get(family, 0.0)) + 0.3 * rng.normal(size=prompts)
    p = np.exp(log_probabilities(family, truth.coefs(states)[prompt], opponent, raw_eta[prompt]))
    outcome = (rng.random((len(prompt), 1)) > p.cumsum(axis=1)).sum(axis=1).clip(0, 3)
    eta = raw_eta if family in ("rk", "grk") else None
    votes = 1.0 + rng.random(len(prompt))
    return Task(family, states, eta, prompt, opponent, outcome, votes), weight, bias, truth


@pytest.mark.parametrize("family", FAMILIES)
def test_the_gradient_is_that_of_finite_differences(family):
    rng = np.random.default_rng(0)
    task, weight, bias, _ = drawn_task(rng, family, prompts=20)
    problem = RowProblem(task, row_prior(weight, bias, task.features.mean(axis=0)))
    theta = rng.normal(size=H + 1)
    step = 1e-6 * np.eye(H + 1)
    numeric = [(problem.value(theta + d, 0.7)[0] - problem.value(theta - d, 0.7)[0]) / 2e-6 for d in step]
    np.testing.assert_allclose(problem.value(theta, 0.7)[1], numeric, atol=1e-7)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_very_weak_prior_gives_the_maximum_likelihood_row(family):
    """The oracle knows nothing of priors and whitening: a generic solver on the likelihood itself."""
    task, weight, bias, _ = drawn_task(np.random.default_rng(1), family, prompts=600)
    centre = task.features.mean(axis=0)
    prior = row_prior(weight, bias, centre)
    row, _ = RowProblem(task, prior).solve(1e9)

    def likelihood(theta):
        beta = task.features @ theta[:-1] + theta[-1]
        eta = None if task.raw_eta is None else task.raw_eta[task.prompt]
        return task.weight @ negative_log_likelihood(family, beta[task.prompt], task.opponent, task.outcome, eta)

    best = minimize(likelihood, np.zeros(H + 1), method="BFGS", options={"gtol": 1e-4})
    oracle = Row(best.x[:-1], best.x[-1])
    # all that is left of the prior is the level's, which a posterior mode may trade for this much likelihood
    price = ((oracle.coefs(centre) - prior.level) / prior.level_deviation) ** 2 / 2
    assert likelihood(np.append(row.weight, row.bias)) <= best.fun + price + 1e-3
    np.testing.assert_allclose(row.coefs(task.features), oracle.coefs(task.features), atol=0.1)


def test_the_posterior_mode_is_that_of_the_prior_written_out():
    """Σ in full and its inverse, instead of the whitening by its factors."""
    task, weight, bias, _ = drawn_task(np.random.default_rng(2), "bt-tie", prompts=40)
    centre = task.features.mean(axis=0)
    prior = row_prior(weight, bias, centre)
    row, _ = RowProblem(task, prior).solve(0.5)
    sigma = prior.axes.T @ np.diag(prior.spread) @ prior.axes + prior.isotropic * np.eye(H)
    np.testing.assert_allclose(np.trace(sigma), np.trace(np.cov(weight.T)))

    def posterior(theta):
        w, level = theta[:-1], theta[-1]
        beta = (task.features - centre) @ w + level
        loss = negative_log_likelihood("bt-tie", beta[task.prompt], task.opponent, task.outcome)
        d = w - weight.mean(axis=0)
        away = (level - prior.level) / prior.level_deviation
        return task.weight @ loss + d @ np.linalg.solve(sigma, d) / (2 * 0.5) + away**2 / 2

    best = minimize(posterior, np.append(weight.mean(axis=0), 0.0), method="BFGS")
    np.testing.assert_allclose(row.weight, best.x[:-1], atol=2e-3)
    np.testing.assert_allclose(row.bias, best.x[-1] - best.x[:-1] @ centre, atol=5e-3)


def slopes(family, outcome, opponent, raw_eta, beta):
    """Slope of the loss of one vote along a grid of the new model's coefficient."""
    n = len(beta)
    task = Task(
        family,
        np.zeros((n, 1)),
        np.full(n, raw_eta),
        np.arange(n),
        np.full(n, opponent),
        np.full(n, outcome),
        np.ones(n),
    )
    return task.losses(beta)[1]


def test_the_loss_is_convex_where_the_module_says_so():
    """Its slope never falls: all outcomes of all families, grk's ties up to raw_eta 3.76 only."""
    beta = np.linspace(-12, 12, 4001)
    for family, outcome in itertools.product(FAMILIES, (A, B, TIE, BAD)):
        if family == "bt" and outcome in (TIE, BAD):
            continue
        for raw_eta, opponent in itertools.product((-3.0, 1.0, 3.76, 22.0), np.linspace(-6, 6, 61)):
            if family == "grk" and outcome == TIE and raw_eta > 3.76:
                continue
            assert np.diff(slopes(family, outcome, opponent, raw_eta, beta)).min() > -1e-9, (family, outcome, raw_eta)
    bend = np.diff(slopes("grk", TIE, -1.745, 4.2, beta)) / np.diff(beta)
    assert -0.25 < bend.min() < -0.001


def test_strength_zero_is_the_mean_row_with_a_level_of_its_own():
    task, weight, bias, _ = drawn_task(np.random.default_rng(3))
    fitted, level_only, mean = fit_new_model(task, weight, bias, 0.0)
    assert fitted == level_only
    np.testing.assert_allclose(level_only.weight, weight.mean(axis=0), atol=1e-12)
    np.testing.assert_allclose(mean.bias, bias.mean())
    shifts = np.linspace(-0.2, 0.2, 41)
    loss = [task.prompt_losses(level_only.coefs(task.features) + shift).sum() for shift in shifts]
    assert abs(shifts[np.argmin(loss)]) <= 0.011  # the level is the best one, but for a weak prior


def test_a_stronger_prior_stays_closer_to_the_mean_row():
    task, weight, bias, _ = drawn_task(np.random.default_rng(4))
    problem = RowProblem(task, row_prior(weight, bias, task.features.mean(axis=0)))
    away = [np.linalg.norm(problem.solve(s)[0].weight - weight.mean(axis=0)) for s in STRENGTHS]
    assert away == sorted(away)
    assert away[0] == 0


def test_many_votes_recover_the_row_that_drew_them():
    task, weight, bias, truth = drawn_task(np.random.default_rng(5), prompts=4000)
    fitted, _, _ = fit_new_model(task, weight, bias, choose_strength(task, weight, bias)[0])
    error = fitted.coefs(task.features) - truth.coefs(task.features)
    assert error.std() < 0.1
    assert abs(error.mean()) < 0.1


def test_few_votes_of_an_average_model_are_shrunk():
    """Nothing about it depends on the prompt but what the mean row says, so that freedom could only harm."""
    chosen, free = [], []
    for seed in range(4):
        weight, bias = head(np.random.default_rng(seed))
        average = Row(weight.mean(axis=0), float(bias.mean()))
        rng = np.random.default_rng(seed)  # so that the task's head is the same
        task, _, _, _ = drawn_task(rng, prompts=12, truth=average)
        strength, _ = choose_strength(task, weight, bias)
        states = rng.normal(size=(500, H)) + 2.0
        problem = RowProblem(task, row_prior(weight, bias, task.features.mean(axis=0)))
        for errors, s in ((chosen, strength), (free, 1e4)):
            errors.append(np.abs(problem.solve(s)[0].coefs(states) - average.coefs(states)).mean())
    assert np.mean(chosen) < 0.5 * np.mean(free)


def test_many_votes_of_a_model_unlike_the_others_loosen_the_prior():
    """Its row lies outside the span of the others, three times as long as they are."""
    rng = np.random.default_rng(12)
    task, weight, bias, _ = drawn_task(rng, prompts=2000, truth=Row(2.0 * rng.normal(size=H), -1.0))
    strength, losses = choose_strength(task, weight, bias)
    assert strength > 1.0
    assert losses[strength] < losses[0.0] - 0.1


def test_weights_count_like_repeated_votes():
    task, weight, bias, _ = drawn_task(np.random.default_rng(8), prompts=30)
    twice = np.repeat(np.arange(len(task.prompt)), 2)
    double = Task(
        task.family,
        task.features,
        task.raw_eta,
        task.prompt[twice],
        task.opponent[twice],
        task.outcome[twice],
        task.weight[twice] / 2,
    )
    one, other = fit_new_model(task, weight, bias, 1.0)[0], fit_new_model(double, weight, bias, 1.0)[0]
    np.testing.assert_allclose(one.weight, other.weight, atol=1e-4)


def test_a_model_that_always_wins_gets_a_finite_level():
    task, weight, bias, _ = drawn_task(np.random.default_rng(9), "bt", prompts=10)
    task.outcome[:] = A
    fitted, level_only, _ = fit_new_model(task, weight, bias, 1.0)
    assert np.isfinite(fitted.weight).all()
    assert level_only.coefs(task.features).mean() > task.opponent.mean()


def test_a_head_of_one_row_is_prior_enough():
    task, weight, bias, _ = drawn_task(np.random.default_rng(10))
    fitted, _, _ = fit_new_model(task, weight[:1], bias[:1], 1.0)
    assert np.isfinite(fitted.weight).all()
    assert not np.allclose(fitted.weight, weight[0])


def test_three_prompts_choose_no_strength():
    task, weight, bias, _ = drawn_task(np.random.default_rng(11), prompts=3)
    assert choose_strength(task, weight, bias) == (0.0, {})


def test_states_that_are_not_numbers_are_refused():
    votes = Votes(
        ("old", "new"),
        [("hi",)],
        [""],
        np.zeros(1, np.int64),
        np.ones(1, np.int64),
        np.zeros(1, np.int64),
        np.zeros(1, np.int64),
        np.ones(1),
    )
    with pytest.raises(DataError, match="not numbers"):
        Task.of("bt", votes, [[np.nan, 1.0]], [[0.5]], None)
