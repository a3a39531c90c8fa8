"""Leaderboards by category: real differences are found and marked, accidents are not."""

import json

import numpy as np
import pytest

from p2l_plugins.errors import DataError, P2LError
from p2l_plugins.leaderboards.categories import MAX_CATEGORIES, CategoryMeans
from p2l_plugins.leaderboards.leaderboard import aggregate

MODELS = tuple("abcdef")


def boards(coefs, labels, family="bt", raw_eta=None, groups=None, pieces=1, **options):
    means = CategoryMeans(MODELS, family)
    for rows in np.array_split(np.arange(len(coefs)), pieces):
        own = None if groups is None else [groups[i] for i in rows]
        means.add(coefs[rows], None if raw_eta is None else raw_eta[rows], [labels[i] for i in rows], own)
    return means.boards(**options)


def with_a_specialist(seed=0, n=400):
    """Model a is better by 1 on mathematics, which is a quarter of the prompts."""
    rng = np.random.default_rng(seed)
    labels = [("maths", "law", "code", "chat")[i % 4] for i in range(n)]
    coefs = rng.normal(size=(n, 6))
    coefs[::4, 0] += 1.0
    return coefs, labels


@pytest.fixture(scope="module")
def truth():
    """The difference on mathematics over very many prompts."""
    return boards(*with_a_specialist(10**6, 200_000), replicates=2).boards["maths"].difference.value


def test_the_specialist_stands_out_in_its_category():
    found = boards(*with_a_specialist())
    assert list(found.boards) == ["chat", "code", "law", "maths"]
    gap = found.boards["maths"].difference
    assert gap.holds[0]
    assert gap.value[0] == max(np.abs(board.difference.value).max() for board in found.boards.values())


def test_differences_of_the_categories_cancel_over_all_prompts():
    """No category board stands out only because its prompts are more alike than all together."""
    coefs, labels = with_a_specialist()
    coefs[1::2] *= 3
    found = boards(coefs, labels)
    total = sum(board.n_prompts * board.difference.value for board in found.boards.values())
    np.testing.assert_allclose(total, 0, atol=1e-6)


def test_where_no_category_differs_marks_are_rare():
    """Under no difference at all, any mark is false: at most 5 % of the runs may show one."""
    marked = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        found = boards(rng.normal(size=(160, 6)), list("abcd" * 40), replicates=100)
        marked += any(board.difference.holds.any() for board in found.boards.values())
    assert marked <= 6  # 60 runs at 5 %: more than 6 have a probability of 3 %


def test_intervals_of_the_differences_cover(truth):
    hits = []
    for seed in range(120):
        found = boards(*with_a_specialist(seed, 200), replicates=100)
        gap = found.boards["maths"].difference
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
    gap = found.boards["one"].difference
    assert np.isnan(gap.low).all()
    assert not gap.holds.any()
    rows = json.loads(found.to_json())["categories"]["one"]["leaderboard"]
    assert rows[0]["difference_low"] is None
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
