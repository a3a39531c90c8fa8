"""The report on held-out votes: figures, baselines, standard errors, and its edges."""

import json
from dataclasses import replace

import numpy as np
import pytest

from p2l_plugins.errors import ConfigError, DataError
from p2l_plugins.evaluation.baselines import Parts, fit_forecasts
from p2l_plugins.evaluation.evaluate import evaluate_votes
from p2l_plugins.evaluation.quality import clustered_mean, log_losses, targets, vote_log_probabilities, vote_quality
from p2l_plugins.outcomes import log_probabilities, negative_log_likelihood
from p2l_plugins.scoring.scorer import Scores
from p2l_plugins.training.marginal import fit_marginal
from p2l_plugins.votes.read import read_votes
from p2l_plugins.votes.votes import Votes

MODELS = ("w", "x", "y", "z")
FAMILIES = ["bt", "bt-tie", "rk", "grk"]
RAW_ETA = {"rk": 0.0, "grk": 0.3}


def simulated(family, prompts=240, per_prompt=5, seed=0):
    """Votes drawn from a model whose coefficients depend on the prompt and its category, and that model's scores."""
    rng = np.random.default_rng(seed)
    group = rng.integers(0, 3, prompts)
    level = np.random.default_rng(7).normal(0, 1.2, (3, 4))
    beta = (level[group] + rng.normal(0, 0.7, (prompts, 4))).astype(np.float32)
    prompt = np.repeat(np.arange(prompts), per_prompt)
    a = rng.integers(0, 4, prompt.size)
    b = (a + rng.integers(1, 4, prompt.size)) % 4
    raw_eta = np.full(prompts, RAW_ETA[family], np.float32) if family in RAW_ETA else None
    p = np.exp(
        log_probabilities(family, beta[prompt, a], beta[prompt, b], None if raw_eta is None else raw_eta[prompt])
    )
    outcome = (rng.random((prompt.size, 1)) > p.cumsum(axis=1)[:, :3]).sum(axis=1)
    names = [("law", "maths", "poems")[g] for g in group]
    texts = [(f"{seed} {i}",) for i in range(prompts)]
    votes = Votes(MODELS, texts, names, prompt, a, b, outcome, np.ones(prompt.size))
    return Scores(MODELS, beta, raw_eta, family), votes


def matrix(prompts=60, seed=0):
    """A score matrix as votes, and scores that know it a little."""
    rng = np.random.default_rng(seed)
    skill = rng.normal(0, 1, (prompts, 4)) + np.array([0, 0.3, 0.6, 0.9])
    table = (skill + rng.normal(0, 0.5, (prompts, 4)) > 0.5).astype(float)
    table[rng.random((prompts, 4)) < 0.03] = np.nan
    table[0] = [1, 0, 1, 0]
    first, second = np.triu_indices(4, 1)
    gap = table[:, first] - table[:, second]
    prompt, pair = np.nonzero(~np.isnan(gap))
    d, top = gap[prompt, pair], np.fmax(table[:, first], table[:, second])[prompt, pair]
    outcome = np.where(d > 0, 0, np.where(d < 0, 1, np.where(top > 0.5, 2, 3)))
    groups = [("law", "maths")[i % 2] for i in range(prompts)]
    texts = [(f"{seed} {i}",) for i in range(prompts)]
    votes = Votes(MODELS, texts, groups, prompt, first[pair], second[pair], outcome, np.ones(len(d)), table)
    return Scores(MODELS, skill.astype(np.float32), np.zeros(prompts, np.float32), "grk"), votes


def test_figures_are_those_of_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    scores, votes = simulated("grk")
    votes = replace(votes, weight=np.random.default_rng(1).uniform(0.5, 2, len(votes)))
    log_p = vote_log_probabilities(votes, scores.coefs, scores.raw_eta, "grk")
    p, q = np.exp(log_p), vote_quality(log_p, votes, "grk")
    options = {"sample_weight": votes.weight, "labels": [0, 1, 2, 3]}
    assert q.log_loss == pytest.approx(metrics.log_loss(votes.outcome, p, **options))
    assert q.accuracy == pytest.approx(
        metrics.accuracy_score(votes.outcome, p.argmax(axis=1), sample_weight=votes.weight)
    )
    assert q.brier == pytest.approx(np.average(((p - np.eye(4)[votes.outcome]) ** 2).sum(axis=1), weights=votes.weight))
    won = votes.decisive()
    share = p[won, 0] / p[won, :2].sum(axis=1)
    assert q.decisive_log_loss == pytest.approx(
        metrics.log_loss(votes.outcome[won] == 0, share, sample_weight=votes.weight[won])
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_log_loss_is_the_likelihood_of_the_outcome_model(family):
    scores, votes = simulated(family)
    log_p = vote_log_probabilities(votes, scores.coefs, scores.raw_eta, family)
    eta = None if scores.raw_eta is None else scores.raw_eta[votes.prompt]
    sides = scores.coefs[votes.prompt, votes.a], scores.coefs[votes.prompt, votes.b]
    expected = negative_log_likelihood(family, *sides, votes.outcome, eta)
    np.testing.assert_allclose(log_losses(log_p, targets(votes, family)), expected, atol=1e-9)


def test_standard_errors_are_by_prompt():
    rng = np.random.default_rng(2)
    x, w = rng.random(50), np.ones(50)
    one = clustered_mean(x, w, np.arange(50))
    assert one.stderr == pytest.approx(x.std(ddof=1) / np.sqrt(50))
    many = clustered_mean(np.repeat(x, 9), np.ones(450), np.repeat(np.arange(50), 9))
    assert (many.mean, many.stderr) == (pytest.approx(one.mean), pytest.approx(one.stderr))
    assert (many.n, many.n_prompts) == (450, 50)
    uneven = rng.integers(1, 6, 200)
    prompt = np.repeat(np.arange(200), uneven)
    draws = [clustered_mean(rng.normal(0, 1, 200)[prompt], np.ones(prompt.size), prompt) for _ in range(400)]
    assert np.mean([d.stderr for d in draws]) == pytest.approx(np.std([d.mean for d in draws]), rel=0.1)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_truth_beats_the_category_that_beats_the_marginal_that_beats_the_constant(family):
    scores, votes = simulated(family)
    _, other = simulated(family, prompts=600, seed=3)
    report = evaluate_votes(scores, votes, other)
    losses = [q.log_loss for q in report.forecasts.values()]
    assert list(report.forecasts) == ["p2l", "marginal", "category_marginal", "constant"]
    assert losses[0] < losses[2] < losses[1] < losses[3]
    gap = report.differences["marginal"]
    assert gap.log_loss == pytest.approx(losses[0] - losses[1])
    assert gap.log_loss < -3 * gap.log_loss_stderr < 0
    assert (gap.n_votes, gap.n_prompts, gap.n_decisive) == (len(votes), 240, int(votes.decisive().sum()))
    assert report.n_baseline_prompts == 600
    assert sum(row.n_votes for row in report.categories) == len(votes)
    mean = np.average([row.p2l for row in report.categories], weights=[row.n_votes for row in report.categories])
    assert mean == pytest.approx(report.p2l.log_loss)
    assert report.p2l.calibration_error < 2 * report.calibration["p2l"].expected
    json.dumps(report.to_dict(), allow_nan=False)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_marginal_is_that_of_fit_marginal(family):
    _, votes = simulated(family)
    _, other = simulated(family, seed=4)
    fitted = fit_forecasts(Parts.of(votes.groups, other.groups), other, family)
    coefs, raw_eta = fit_marginal(other, family)
    np.testing.assert_allclose(fitted.marginal[0], np.tile(coefs, (240, 1)), atol=1e-6)
    assert (fitted.marginal[1] is None) == (raw_eta is None)


def test_a_cross_fitted_baseline_never_sees_the_prompt_that_it_judges():
    _, votes = simulated("grk")
    parts = Parts.of(votes.groups)
    before = fit_forecasts(parts, votes, "grk")
    inside = (parts.judged == 2)[votes.prompt]
    changed = replace(votes, outcome=np.where(inside, 3, votes.outcome))
    after = fit_forecasts(parts, changed, "grk")
    same, rest = parts.judged == 2, parts.judged != 2
    for one, two in (
        (before.constant, after.constant),
        (before.marginal[0], after.marginal[0]),
        (before.category[0], after.category[0]),
    ):
        np.testing.assert_allclose(one[same], two[same])
        assert not np.allclose(one[rest], two[rest])


def test_a_category_is_shrunk_to_the_whole():
    """Without votes it is the overall marginal; the more votes, the nearer its own."""
    _, votes = simulated("bt", prompts=1500)
    law = np.array([g == "law" for g in votes.groups])
    own, _ = fit_marginal(votes.select(law), "bt")
    distances = []
    for keep in (0, 3, 30, 400):
        few = votes.select(~law | (np.cumsum(law) <= keep))
        whole, _ = fit_marginal(few, "bt")
        fitted = fit_forecasts(Parts.of(["law"], few.groups), few, "bt")
        distances.append(np.abs(fitted.category[0][0] - own).max())
        if keep == 0:
            np.testing.assert_allclose(fitted.category[0][0], whole, atol=1e-6)
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] < 0.2


def test_the_constant_gives_each_outcome_its_frequency():
    _, votes = simulated("grk", prompts=2000)
    fitted = fit_forecasts(Parts.of(votes.groups, votes.groups), votes, "grk")
    share = np.bincount(votes.outcome, minlength=4) / len(votes)
    sides = share[:2].mean()
    np.testing.assert_allclose(np.exp(fitted.constant[0]), [sides, sides, share[2], share[3]], atol=1e-3)
    np.testing.assert_allclose(np.exp(fitted.constant).sum(axis=1), 1)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "case", ["one prompt", "one vote", "all ties", "all wins", "all bad", "one category", "weights"]
)
def test_edges_give_a_report(family, case):
    scores, votes = simulated(family, prompts=40)
    if case in ("one prompt", "one vote"):
        keep = np.arange(40) == 3
        votes = votes.select(keep)
        scores = replace(
            scores, coefs=scores.coefs[keep], raw_eta=None if scores.raw_eta is None else scores.raw_eta[keep]
        )
        if case == "one vote":
            votes = replace(
                votes, **{key: getattr(votes, key)[:1] for key in ("prompt", "a", "b", "outcome", "weight")}
            )
    elif case.startswith("all"):
        code = {"all ties": 2, "all wins": 0, "all bad": 3}[case]
        votes = replace(votes, outcome=np.full(len(votes), code))
    elif case == "one category":
        votes = replace(votes, groups=[""] * 40)
    else:
        votes = replace(votes, weight=np.linspace(0.1, 9, len(votes)))
    report = evaluate_votes(scores, votes)
    assert np.isfinite([q.log_loss for q in report.forecasts.values()]).all()
    json.dumps(report.to_dict(), allow_nan=False)
    assert "| p2l " in report.to_markdown(bins=True)
    assert any("cross-fitted" in note for note in report.notes)
    if case == "one category":
        assert report.category_marginal is None
        assert report.categories == ()
    if case in ("all ties", "all bad"):
        assert report.n_decisive == 0
        assert report.to_dict()["p2l"]["decisive_log_loss"] is None
        assert any("has no ties" in note for note in report.notes) == (family in ("bt", "bt-tie"))
    if case == "one vote":
        assert report.to_dict()["p2l"]["log_loss_stderr"] is None


def test_an_outcome_held_for_impossible_pays_the_floor_and_is_counted():
    scores, votes = simulated("bt")
    sure = np.where(votes.outcome[::5] == 0, -2000.0, 0.0)
    coefs = scores.coefs.copy()
    coefs[:] = 0
    coefs[np.arange(240), votes.a[::5]] = sure
    report = evaluate_votes(replace(scores, coefs=coefs), votes)
    assert np.isfinite(report.p2l.log_loss)
    (note,) = [note for note in report.notes if "impossible" in note]
    assert note.startswith("p2l held the outcome of")


def test_prompts_of_the_baseline_that_are_judged_are_counted():
    scores, votes = simulated("grk")
    notes = evaluate_votes(scores, votes, votes.select(np.arange(240) < 50)).notes
    assert "50 of the 240 prompts are in the baseline votes too, which favours it" in notes


def test_a_score_matrix_is_routed_and_priced():
    scores, votes = matrix()
    costs = np.tile([1.0, 2, 3, np.nan], (60, 1))
    report = evaluate_votes(scores, votes, matrix(seed=1)[1], costs=costs, objective="usable")
    r = report.routed
    assert (r.n, r.candidates) == (60, 4)
    assert r.random < r.best_single < r.p2l < r.oracle
    assert r.gain == pytest.approx(r.p2l - r.best_single)
    assert {c.category: c.n for c in r.categories} == {"law": 30, "maths": 30}
    assert report.curve.models == ("w", "x", "y")
    assert set(report.curve.curves) == {"paced", "lp", "cap", "marginal"}
    text = report.to_markdown()
    assert "best single" in text
    assert "paced reaches 99%" in text
    small = report.to_dict(tables=False)
    assert "calibration" not in small
    assert small["routed"]["gain"] == pytest.approx(r.gain, abs=1e-6)
    assert json.dumps(report.to_dict(), allow_nan=False)


def test_baseline_votes_without_scores_leave_the_choice_to_the_other_folds():
    scores, votes = matrix()
    plain = replace(matrix(seed=1)[1], scores=None)
    report = evaluate_votes(scores, votes, plain)
    assert report.routed == evaluate_votes(scores, votes).routed
    assert any("the baseline votes hold no scores" in note for note in report.notes)


def test_what_cannot_be_judged_is_a_sentence():
    scores, votes = matrix()
    plain = replace(votes, scores=None)
    assert "routing is judged on score matrices; this is a votes file" in evaluate_votes(scores, plain).notes
    costs = np.ones((60, 4))
    with pytest.raises(DataError, match="needs a score matrix"):
        evaluate_votes(scores, plain, costs=costs)
    with pytest.raises(DataError, match="two models at least"):
        evaluate_votes(scores, votes, costs=np.where(np.arange(4) > 0, np.nan, costs))
    with pytest.raises(ConfigError, match="'fame' is not known; valid: win_rate, usable"):
        evaluate_votes(scores, votes, costs=costs, objective="fame")
    with pytest.raises(DataError, match="model 'w' is not known"):
        evaluate_votes(replace(scores, models=("a", "x", "y", "z")), votes)
    holes = votes.scores.copy()
    holes[:30, 1:] = np.nan
    sparse = evaluate_votes(scores, replace(votes, scores=holes))
    assert sparse.routed is None
    assert any("routing needs two models" in note for note in sparse.notes)


@pytest.fixture(scope="module")
def part_of_a_public_set(data_dir):
    """The starter on a slice of one held-out fifth."""
    from p2l_plugins import P2L
    from p2l_plugins.votes.votes import held_out

    p2l = P2L.load("starter", threads=1)
    votes = read_votes(data_dir / "llmrouter_scores.parquet", p2l.bundle.manifest.aliases)
    out = held_out(votes.prompts, 0.2, 0)
    test = votes.select(out & (np.cumsum(out) <= 250))
    return evaluate_votes(p2l.score_turns(test.prompts), test, votes.select(~out))


def test_the_starter_on_a_part_of_a_public_set(part_of_a_public_set):
    """P2L knows more than the marginal."""
    report = part_of_a_public_set
    assert report.n_prompts == 250
    assert report.differences["marginal"].log_loss < -5 * report.differences["marginal"].log_loss_stderr
    assert report.p2l.decisive_calibration_error < 0.05
    assert report.routed.best_category > report.routed.best_single


def test_the_starter_is_calibrated_on_a_part_of_a_public_set(part_of_a_public_set):
    assert part_of_a_public_set.p2l.calibration_error < 0.05
