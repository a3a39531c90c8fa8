"""Leaderboards by category: real differences are found and marked, accidents are not."""

import json

import numpy as np
import pytest

from p2l_plugins.errors import DataError, P2LError
from p2l_plugins.leaderboards.categories import MAX_CATEGORIES, CategoryMeans
from p2l_plugins.leaderboards.interaction import CURVED, interaction
from p2l_plugins.leaderboards.intervals import relative
from p2l_plugins.leaderboards.leaderboard import aggregate

MODELS = tuple("abcdef")


def boards(coefs, labels, family="bt", raw_eta=None, groups=None, pieces=1, **options):
    means = CategoryMeans(MODELS, family)
    for rows in np.array_split(np.arange(len(coefs)), pieces):
        own = None if groups is None else [groups[i] for i in rows]
        means.add(coefs[rows], None if raw_eta is None else raw_eta[rows], [labels[i] for i in rows], own)
    return means.boards(**options)


def with_a_specialist(seed=0, n=400):
    """Model a, of a middling level, is better by 1 on mathematics, which is a quarter of the prompts."""
    rng = np.random.default_rng(seed)
    labels = [("maths", "law", "code", "chat")[i % 4] for i in range(n)]
    coefs = rng.normal([0.0, -2.0, -1.0, 0.2, 1.0, 2.0], size=(n, 6))
    coefs[::4, 0] += 1.0
    return coefs, labels


@pytest.fixture(scope="module")
def truth():
    """The interaction on mathematics over very many prompts."""
    return boards(*with_a_specialist(10**6, 200_000)).boards["maths"].interaction.value


def test_the_specialist_stands_out_in_its_category():
    found = boards(*with_a_specialist())
    assert list(found.boards) == ["chat", "code", "law", "maths"]
    gap = found.boards["maths"].interaction
    assert gap.holds[0]
    assert gap.value[0] == max(np.abs(board.interaction.value).max() for board in found.boards.values())


def test_prompts_that_tell_all_models_further_apart_make_no_model_stand_out():
    """The same order on a wider scale, and prompts that are easy or hard for all, are no interaction."""
    rng = np.random.default_rng(0)
    coefs = np.linspace(-1, 1, 6) + 0.01 * rng.normal(size=(400, 6))
    labels = ["near", "far"] * 200
    coefs[1::2] *= 3
    coefs[1::2] -= 2
    found = boards(coefs, labels, "grk", np.zeros(400))
    near, far = found.boards["near"], found.boards["far"]
    assert np.ptp(far.coefs) > 2.5 * np.ptp(near.coefs)
    assert far.coefs.mean() < near.coefs.mean() - 1.5
    for board in (near, far):
        assert np.abs(board.interaction.value).max() < 0.08 * np.ptp(board.coefs)
    coefs[1::2, 2] += 1.0
    better = boards(coefs, labels, "grk", np.zeros(400)).boards["far"].interaction
    assert better.value.argmax() == 2
    assert better.holds[2]


@pytest.mark.parametrize("shape", [(9,), (4, 9), (CURVED,), (4, 50)])
def test_the_interaction_is_what_a_line_or_a_curve_leaves_over(shape):
    """Against numpy's least squares: an intercept for either kind of models, one slope, and of many models one bend."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, *shape))
    apart = np.arange(shape[-1]) >= 6
    found = interaction(y, x, apart)
    for own, x_row, y_row in zip(np.atleast_2d(found), np.atleast_2d(x), np.atleast_2d(y), strict=True):
        level = relative(x_row, apart)
        columns = [apart, ~apart, level, *([level**2] if shape[-1] >= CURVED else [])]
        design = np.column_stack(columns).astype(float)
        fitted = design @ np.linalg.lstsq(design, y_row, rcond=None)[0]
        np.testing.assert_allclose(own, y_row - fitted, atol=1e-12)
    np.testing.assert_array_equal(interaction(np.ones(9), np.zeros(9), np.arange(9) >= 6), 0)


def test_where_no_category_differs_marks_are_rare():
    """Under no difference at all, any mark is false: at most 5 % of the runs may show one."""
    marked = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        found = boards(rng.normal(size=(160, 6)), list("abcd" * 40))
        marked += any(board.interaction.holds.any() for board in found.boards.values())
    assert marked <= 6  # 60 runs at 5 %: more than 6 have a probability of 3 %


def test_intervals_of_the_differences_cover(truth):
    hits = []
    for seed in range(120):
        found = boards(*with_a_specialist(seed, 200))
        gap = found.boards["maths"].interaction
        hits.append((gap.low <= truth) & (truth <= gap.high))
    assert np.mean(hits) >= 0.93


def test_a_category_s_board_is_that_of_its_prompts_and_the_overall_one_that_of_all():
    rng = np.random.default_rng(0)
    coefs, raw_eta = rng.normal(size=(90, 6)), rng.normal(size=90)
    labels = ["x", "y", None] * 30
    found = boards(coefs, labels, "grk", raw_eta)
    np.testing.assert_allclose(found.overall.coefs, aggregate(MODELS, "grk", coefs, raw_eta).coefs, atol=1e-6)
    own = aggregate(MODELS, "grk", coefs[::3], raw_eta[::3])
    np.testing.assert_allclose(found.boards["x"].coefs, own.coefs, atol=1e-6)
    assert found.overall.n_prompts == 90
    assert found.boards["x"].n_prompts == 30
    assert list(found.boards) == ["x", "y"]


def test_reading_in_pieces_changes_nothing():
    coefs, labels = with_a_specialist()
    whole, pieces = boards(coefs, labels), boards(coefs, labels, pieces=7)
    np.testing.assert_allclose(whole.boards["law"].coefs, pieces.boards["law"].coefs, atol=1e-9)


def test_groups_that_reach_into_several_categories_widen_the_intervals():
    rng = np.random.default_rng(0)
    user = np.repeat(rng.normal(size=(30, 6)), 20, axis=0)
    coefs, labels = user + 0.2 * rng.normal(size=(600, 6)), ["x", "y"] * 300
    groups = list(np.arange(600) // 20)
    alone, grouped = (boards(coefs, labels, groups=g).overall.intervals for g in (None, groups))
    assert grouped.units == 30
    assert (grouped.stderr > 2 * alone.stderr).all()


def test_wider_categories_are_unions():
    coefs, labels = with_a_specialist()
    found = boards(coefs, labels, parents={"exact": ["maths", "code"]})
    rows = [i for i, name in enumerate(labels) if name in ("maths", "code")]
    np.testing.assert_allclose(found.boards["exact"].coefs, aggregate(MODELS, "bt", coefs[rows]).coefs, atol=1e-6)
    assert found.leaves == ["chat", "code", "law", "maths"]
    assert json.loads(found.to_json())["parents"] == {"exact": ["maths", "code"]}


def test_a_category_of_one_prompt_has_no_interval_and_is_never_marked():
    rng = np.random.default_rng(0)
    found = boards(rng.normal(size=(41, 6)), ["many"] * 40 + ["one"])
    gap = found.boards["one"].interaction
    assert np.isnan(gap.low).all()
    assert not gap.holds.any()
    rows = json.loads(found.to_json())["categories"]["one"]["leaderboard"]
    assert rows[0]["interaction_low"] is None
    assert "coef_low" not in rows[0]


def test_categories_that_make_no_table_are_refused():
    coefs = np.zeros((MAX_CATEGORIES + 1, 6))
    with pytest.raises(DataError, match="only one category, 'x'"):
        boards(coefs, ["x"] * len(coefs))
    with pytest.raises(DataError, match="no category at all"):
        boards(coefs, [None] * len(coefs))
    with pytest.raises(DataError, match=f"more than {MAX_CATEGORIES} categories"):
        boards(coefs, [str(i) for i in range(len(coefs))])
    with pytest.raises(P2LError, match="at least one prompt"):
        CategoryMeans(MODELS, "bt").overall()
