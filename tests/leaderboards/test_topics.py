"""Topics found in prompts: they are the ones that the words tell apart, under names that say so."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from p2l_plugins.errors import ConfigError, DataError
from p2l_plugins.leaderboards.topics import Topics

WORDS = {
    "algebra": "matrix vector eigenvalue polynomial theorem equation".split(),
    "geometry": "triangle circle angle polygon theorem equation".split(),
    "cooking": "recipe oven garlic butter onion flour".split(),
    "travel": "flight hotel passport luggage itinerary museum".split(),
}


@pytest.fixture(scope="module")
def prompts():
    rng = np.random.default_rng(0)
    names = list(WORDS) * 40
    return names, [" ".join(rng.choice(WORDS[name], 5)) for name in names]


@pytest.fixture(scope="module")
def tree(prompts):
    return Topics(prompts[1], 4)


def test_the_topics_are_those_of_the_words(prompts, tree):
    found = tree.of(prompts[1])
    for name in WORDS:
        own = [topic for topic, real in zip(found, prompts[0], strict=True) if real == name]
        assert max(own.count(topic) for topic in set(own)) >= 0.95 * len(own)
    assert len(set(found)) == 4
    assert set(found) == set(tree.leaves)


def test_their_names_are_their_own_words(tree):
    for leaf in tree.leaves:
        assert any(set(leaf.split(", ")) <= set(words) for words in WORDS.values()), leaf


def test_the_tree_keeps_near_topics_together(tree):
    """Algebra and geometry share words, so that a wider topic holds both."""
    wide = [{word for leaf in leaves for word in leaf.split(", ")} for leaves in tree.parents.values()]
    mathematics = set(WORDS["algebra"]) | set(WORDS["geometry"])
    assert any(words <= mathematics for words in wide)


def test_new_prompts_get_the_topic_of_their_words(tree):
    names = tree.of(["butter and garlic in the oven", ["my flight", "and the hotel?"]])
    assert set(names[0].split(", ")) <= set(WORDS["cooking"])
    assert set(names[1].split(", ")) <= set(WORDS["travel"])


def test_the_same_seed_gives_the_same_topics(prompts, tree):
    assert Topics(prompts[1], 4).leaves == tree.leaves


def test_prompts_without_topics_are_refused():
    with pytest.raises(DataError, match="3 prompts are too few for 2 topics; at least 4"):
        Topics(["a b", "c d", "e f"], 2)
    with pytest.raises(DataError, match="no words"):
        Topics(["1 2", "3 4", "5", "6"], 2)
    with pytest.raises(DataError, match="too much alike"):
        Topics(["the same words"] * 10, 2)
    with pytest.raises(ConfigError, match="1 topics are none"):
        Topics(["a b"] * 10, 1)


def test_without_scikit_learn_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.cluster", None)
    with pytest.raises(ConfigError, match=r"p2l-plugins\[analysis\]"):
        Topics(["x y"] * 10, 2)


def test_real_prompts_divide_into_as_many_topics_as_were_asked_for():
    lines = (Path(__file__).resolve().parents[2] / "examples" / "prompts.jsonl").read_text().splitlines()
    real = [json.loads(line)["prompt"] for line in lines]
    tree = Topics(real, 6)
    assert len(set(tree.of(real))) == 6
    assert set().union(*tree.parents.values()) <= set(tree.leaves)
    assert len({*tree.leaves, *tree.parents}) == len(tree.leaves) + len(tree.parents)
