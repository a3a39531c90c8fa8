"""Intervals over prompts cover what they should, with and without clusters; the parts that they are made of."""

import numpy as np
import pytest
from scipy import stats

from p2l_plugins.errors import BundleError, P2LError
from p2l_plugins.leaderboards.fit import cholesky_solve, gradients, targets
from p2l_plugins.leaderboards.intervals import (
    false_discovery,
    opponent_weights,
    relative,
    student_t_quantile,
    student_t_tail,
)
from p2l_plugins.leaderboards.jackknife import left_out
from p2l_plugins.leaderboards.leaderboard import Leaderboard, aggregate
from p2l_plugins.leaderboards.pair_means import BLOCKS, Blocks, PairMeans
from p2l_plugins.outcomes import FAMILIES, has_eta, negative_log_likelihood
from p2l_plugins.scoring.scorer import Scores

MODELS = tuple("abcde")
LEVEL = np.linspace(-1.0, 1.0, len(MODELS))


def simulated(family, n, seed, cluster=1):
    """Prompts around a level; those of a cluster are nearly alike."""
    rng = np.random.default_rng(seed)
    own = rng.normal(size=(n // cluster, len(MODELS))) + (rng.normal(size=(n // cluster, 1)) if family == "grk" else 0)
    coefs = LEVEL + np.repeat(own, cluster, axis=0)
    if cluster > 1:
        coefs = coefs + 0.3 * rng.normal(size=coefs.shape)
    raw_eta = 0.5 * rng.normal(size=n) + (10 if family == "rk" else 0)
    return coefs, raw_eta if has_eta(family) else None


def board(family, n, seed, cluster=1, clustered=True):
    groups = np.arange(n) // cluster if cluster > 1 and clustered else None
    return aggregate(MODELS, family, *simulated(family, n, seed, cluster), groups=groups, blocks=BLOCKS, seed=seed)


def means_of(family, n=60, seed=0, blocks=BLOCKS):
    means = PairMeans(family, len(MODELS), blocks)
    means.add(*simulated(family, n, seed), Blocks(blocks).deal(n))
    return means


def coverage(family, n, cluster=1, clustered=True, runs=120):
    """Share of coefficients and of win rates whose interval holds the truth: the leaderboard of very many prompts."""
    truth = aggregate(MODELS, family, *simulated(family, 100_000, 10**6, cluster))
    hits, wins = [], []
    for seed in range(runs):
        found = board(family, n, seed, cluster, clustered)
        span = found.intervals
        hits.append((span.coef_low <= truth.coefs) & (truth.coefs <= span.coef_high))
        wins.append((span.win_low <= truth.win_rate) & (truth.win_rate <= span.win_high))
    return np.mean(hits), np.mean(wins)


@pytest.mark.parametrize(("family", "n"), [("bt", 30), ("bt", 400), ("rk", 100), ("grk", 60)])
def test_95_percent_intervals_cover_at_least_93_percent(family, n):
    coefficients, win_rates = coverage(family, n)
    assert coefficients >= 0.93
    assert win_rates >= 0.92


def test_clustered_prompts_need_their_clusters():
    clustered, _ = coverage("bt", 240, cluster=6)
    ignored, _ = coverage("bt", 240, cluster=6, clustered=False, runs=40)
    assert clustered >= 0.93
    assert ignored < 0.75


def test_many_clusters_are_dealt_to_blocks_and_covered_too():
    assert board("bt", 1200, 0, cluster=4).intervals.units == BLOCKS
    assert coverage("bt", 1200, cluster=4, runs=60)[0] >= 0.93


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_those_of_the_likelihood(family):
    """Against votes: every outcome of every pair with its own weight."""
    rng = np.random.default_rng(1)
    m = 4
    win, tie, bad = rng.random((3, m, m))
    tie, bad = tie + tie.T, bad + bad.T
    a, b = np.triu_indices(m, 1)

    def loss(x):
        raw = np.full(len(a), x[m]) if has_eta(family) else None
        total = 0.0
        for weight, first, second, outcome in (
            (win[a, b], a, b, 0), (win[b, a], b, a, 0), (tie[a, b], a, b, 2), (bad[a, b], a, b, 3),
        ):  # fmt: skip
            kind = "bt-tie" if family == "bt" else family
            total += weight @ negative_log_likelihood(kind, x[first], x[second], np.full(len(a), outcome), raw)
        return total

    x = rng.normal(size=m + has_eta(family))
    if family == "rk":
        x[m] += 20
    numeric = [(loss(x + step) - loss(x - step)) / 2e-5 for step in np.eye(len(x)) * 1e-5]
    ours = gradients(family, x[None], *(t[None] for t in targets(family, win, tie, bad)))
    np.testing.assert_allclose(ours[0], numeric, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("n", [2, 12, 60])
def test_the_quick_fits_without_a_prompt_are_the_full_ones(family, n):
    coefs, raw_eta = simulated(family, n, 0)
    whole = aggregate(MODELS, family, coefs, raw_eta)
    means = means_of(family, n)
    moves = left_out(means, whole.coefs, whole.raw_eta, opponent_weights(MODELS, frozenset()))
    others = [np.delete(np.arange(n), i) for i in range(n)]
    boards = [aggregate(MODELS, family, coefs[i], None if raw_eta is None else raw_eta[i]) for i in others]
    scale = np.sqrt((n - 1) / n)
    full = scale * np.array([board.coefs - whole.coefs for board in boards])
    assert moves.units == n
    assert not moves.coefs[n:].any()
    assert np.abs(moves.coefs[:n] - full).max() < 0.1 * np.abs(full).max()
    np.testing.assert_allclose((moves.coefs**2).sum(axis=0), (full**2).sum(axis=0), rtol=0.1)
    rates = scale * np.array([board.win_rate - whole.win_rate for board in boards])
    np.testing.assert_allclose(moves.win_rate[:n], rates, atol=1e-6)


def test_the_errors_of_means_are_those_of_students_t():
    """Where the fit is a mean, leaving out one prompt gives the usual standard error: here that of log odds of two."""
    level = 0.01 * np.random.default_rng(0).normal(size=40)
    found = aggregate(("a", "b"), "bt", np.stack([level, -level], axis=1), blocks=BLOCKS)
    t = stats.t.ppf(0.975, 39)
    spread = t * level.std(ddof=1) / np.sqrt(40)
    assert found.intervals.coef_high[0] - found.coefs[0] == pytest.approx(spread, rel=1e-3)


def test_solving_by_the_cholesky_factor():
    rng = np.random.default_rng(0)
    for size in (1, 15, 16, 17, 50):
        root = rng.normal(size=(size, size))
        matrix = root @ root.T + np.eye(size)
        right = rng.normal(size=(size, 3))
        factor = np.linalg.cholesky(matrix)
        np.testing.assert_allclose(cholesky_solve(factor, right), np.linalg.solve(matrix, right), atol=1e-9)
        np.testing.assert_allclose(cholesky_solve(factor, right[:, 0]), np.linalg.solve(matrix, right[:, 0]), atol=1e-9)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_means_without_a_block_are_those_of_the_other_prompts(family):
    coefs, raw_eta = simulated(family, 90, 0)
    blocks, means = np.arange(90) % 7, PairMeans(family, len(MODELS), 8)
    means.add(coefs, raw_eta, blocks)
    others, rest = blocks != 3, PairMeans(family, len(MODELS))
    rest.add(coefs[others], None if raw_eta is None else raw_eta[others])
    for left, own in zip(means.without(np.array([3])), (rest.win, rest.tie, rest.bad), strict=True):
        np.testing.assert_allclose(left[0], own, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_prompt_by_prompt_or_pair_by_pair_the_means_are_the_same(family):
    """A few prompts of many models are added prompt by prompt, many pair by pair."""
    names = [str(i) for i in range(40)]
    rng = np.random.default_rng(0)
    coefs, raw_eta = 3 * rng.normal(size=(60, 40)), rng.normal(size=60) + (10 if family == "rk" else 0)
    blocks = Blocks(16).deal(60)
    whole, pieces = PairMeans(family, len(names), 16), PairMeans(family, len(names), 16)
    whole.add(coefs, raw_eta, blocks)
    for start in range(0, 60, 5):
        rows = slice(start, start + 5)
        pieces.add(coefs[rows], raw_eta[rows], blocks[rows])
    for one, other in zip(whole.without(np.arange(16)), pieces.without(np.arange(16)), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)
    np.testing.assert_allclose(whole.win, pieces.win, atol=1e-12)


def test_a_sorted_file_has_the_intervals_of_a_shuffled_one():
    rng = np.random.default_rng(0)
    coefs = LEVEL + np.repeat(rng.normal(size=(5, 5)) * 2, 600, axis=0) + rng.normal(size=(3000, 5))
    widths = []
    for order in (np.arange(3000), rng.permutation(3000)):
        found = aggregate(MODELS, "bt", coefs[order], blocks=BLOCKS)
        widths.append(found.intervals.coef_high - found.intervals.coef_low)
    np.testing.assert_allclose(widths[0], widths[1], rtol=0.35)  # a standard error of 128 blocks is known to 6 %


def test_blocks_keep_groups_together_and_prompts_without_one_apart():
    blocks = Blocks(4, seed=1)
    dealt = blocks.deal(6, ["x", "y", "x", None, None, "y"])
    assert dealt[0] == dealt[2]
    assert dealt[1] == dealt[5]
    assert len(set(dealt)) == 4
    later = [blocks.deal(1, [f"later {i}"])[0] for i in range(40)]
    assert set(later) == set(range(4))
    assert later == [blocks.deal(1, [f"later {i}"])[0] for i in range(40)]
    assert blocks.deal(1, ["x"])[0] == dealt[0]


def test_overlapping_intervals_share_ranks():
    found = board("bt", 40, 3)
    span = found.intervals
    for i in range(len(MODELS)):
        better = sum(span.coef_low[j] > span.coef_high[i] for j in range(len(MODELS)))
        worse = sum(span.coef_high[j] < span.coef_low[i] for j in range(len(MODELS)))
        assert (span.rank_low[i], span.rank_high[i]) == (1 + better, len(MODELS) - worse)
    for row in found.rows():
        assert row["rank_low"] <= row["rank"] <= row["rank_high"]
        assert row["coef_low"] < row["coef"] < row["coef_high"]


def test_hard_prompts_for_all_models_widen_the_coefficients_but_not_the_ranks():
    rng = np.random.default_rng(0)
    coefs = LEVEL + 3 * rng.normal(size=(50, 1)) + 0.1 * rng.normal(size=(50, 5))
    found = aggregate(MODELS, "grk", coefs, np.zeros(50), blocks=BLOCKS)
    assert found.intervals.coef_low[4] < found.intervals.coef_high[3]
    assert [row["rank_low"] for row in found.rows()] == [1, 2, 3, 4, 5]


def test_ungrounded_models_rank_among_themselves_after_the_others():
    coefs, raw_eta = simulated("grk", 50, 0)
    found = aggregate(MODELS, "grk", coefs, raw_eta, frozenset("de"), blocks=BLOCKS)
    ranks = {row["model"]: (row["rank_low"], row["rank_high"]) for row in found.rows()}
    assert all(4 <= low <= high <= 5 for low, high in (ranks["d"], ranks["e"]))
    assert all(1 <= low <= high <= 3 for low, high in (ranks["a"], ranks["b"], ranks["c"]))


def test_one_prompt_or_one_cluster_has_no_intervals():
    assert aggregate(MODELS, "bt", [LEVEL], blocks=BLOCKS).intervals is None
    alone = aggregate(MODELS, "bt", simulated("bt", 9, 0)[0], groups=["one"] * 9, blocks=BLOCKS)
    assert alone.intervals is None
    assert "coef_low" not in alone.rows()[0]


def test_the_same_seed_gives_the_same_intervals():
    first, again, other = (board("grk", 300, seed=s).intervals for s in (1, 1, 2))
    np.testing.assert_array_equal(first.coef_low, again.coef_low)
    assert not np.array_equal(first.coef_low, other.coef_low)


def test_win_rates_against_chosen_opponents():
    found = aggregate(MODELS, "bt", [LEVEL, LEVEL], opponents={"a": 3.0, "e": 1.0}, blocks=BLOCKS)
    sigma = 1 / (1 + np.exp(LEVEL - LEVEL[:, None]))
    assert found.win_rate[2] == pytest.approx(0.75 * sigma[2, 0] + 0.25 * sigma[2, 4])
    assert found.win_rate[0] == pytest.approx(sigma[0, 4])  # nobody plays against itself
    only = aggregate(MODELS, "bt", [LEVEL], opponents={"a": 1.0})
    assert {row["model"]: row["win_rate"] for row in only.rows()}["a"] is None
    assert "| a | -1.000 | – |" in only.to_markdown()
    assert "NaN" not in only.to_json()


def test_scores_make_leaderboards_with_groups_and_opponents_by_any_name():
    coefs = simulated("bt", 40, 0)[0].astype(np.float32)
    scores = Scores(MODELS, coefs, None, "bt", {"first": "a"})
    found = scores.leaderboard(groups=list(range(20)) * 2, opponents={"first": 1.0}, seed=1)
    assert found.intervals.units == 20
    assert found.opponents == {"a": 1.0}
    assert scores.leaderboard(intervals=False).intervals is None
    with pytest.raises(BundleError, match="model 'z' is not in the bundle"):
        scores.leaderboard(opponents={"z": 1.0})


def test_the_difference_from_another_leaderboard():
    first, second = board("bt", 200, 0), board("bt", 200, 1)
    same = first.against(first.to_dict(), "itself")
    np.testing.assert_allclose(same.difference.value, 0, atol=1e-5)
    assert same.difference.p_value.min() > 0.9
    rows = [{**row, "win_rate": row["win_rate"] + 0.2 * (row["model"] == "a")} for row in second.rows()]
    gap = first.against({**second.to_dict(), "leaderboard": rows}, "shifted").difference
    assert gap.value[0] == pytest.approx(-0.16, abs=0.05)  # 0.2, less its share of the mean
    assert gap.p_value[0] < 1e-6
    assert gap.low[0] < gap.value[0] < gap.high[0]


def test_differences_from_another_leaderboard_cover():
    hits = []
    for seed in range(60):
        gap = board("grk", 80, seed).against(board("grk", 120, 1000 + seed).to_dict(), "other").difference
        hits.append((gap.low <= 0) & (gap.high >= 0))
    assert np.mean(hits) >= 0.93


def test_leaderboards_that_can_t_be_compared_are_refused():
    first = board("bt", 20, 0)
    fewer = {"leaderboard": [{"model": "a", "win_rate": 0.5}]}
    against_a = aggregate(MODELS, "bt", [LEVEL], opponents={"a": 1.0}).to_dict()
    for wrong in ({}, {"leaderboard": [1]}, fewer, against_a):
        with pytest.raises(P2LError, match=r"other\.json: (not a leaderboard|its models|its win rates)"):
            first.against(wrong, "other.json")


def test_relative_coefficients_have_mean_zero_on_either_side():
    apart = np.array([True, False, False, True, False])
    out = relative(np.arange(10.0).reshape(2, 5), apart)
    np.testing.assert_allclose(out[:, apart].mean(axis=1), 0, atol=1e-12)
    np.testing.assert_allclose(out[:, ~apart].mean(axis=1), 0, atol=1e-12)


@pytest.mark.parametrize("df", [1, 2, 5, 127])
def test_students_t_is_scipys(df):
    assert student_t_quantile(0.975, df) == pytest.approx(stats.t.ppf(0.975, df), rel=1e-5)
    t = np.array([0.0, 0.5, 2.0, 6.0])
    np.testing.assert_allclose(student_t_tail(t, df), stats.t.sf(t, df), rtol=1e-4)


def test_false_discovery_control_is_scipys():
    p = np.random.default_rng(0).random(200) ** 3
    expected = stats.false_discovery_control(p, method="bh") <= 0.05
    assert 0 < expected.sum() < 200
    np.testing.assert_array_equal(false_discovery(p), expected)
    np.testing.assert_array_equal(false_discovery(np.append(p, np.nan).reshape(3, 67)).ravel()[:-1], expected)
    assert not false_discovery([0.5, np.nan]).any()
    assert not false_discovery([np.nan]).any()


def test_means_with_blocks_say_what_they_miss():
    means = PairMeans("bt", 5, BLOCKS)
    with pytest.raises(P2LError, match="block of every prompt"):
        means.add(simulated("bt", 3, 0)[0])
    with pytest.raises(P2LError, match="not numbers"):
        PairMeans("grk", 2).add([[0.0, 1.0]], [np.nan])
    with pytest.raises(P2LError, match="at least one prompt"):
        Leaderboard.from_means(MODELS, means)
