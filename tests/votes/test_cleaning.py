"""The named rules that drop votes."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2l_plugins.errors import DataError
from p2l_plugins.outcomes import OUTCOMES
from p2l_plugins.votes.arena import arena_votes
from p2l_plugins.votes.cleaning import Cleaning, clean_votes
from p2l_plugins.votes.output import write_votes
from p2l_plugins.votes.read import read_votes
from p2l_plugins.votes.tally import Tally


def table(*rows):
    """Votes from tuples: prompt, model_a, model_b, winner, and further columns as a dict."""
    names = ("prompt", "model_a", "model_b", "winner")
    records = [{**dict(zip(names, row, strict=False)), **(row[4] if len(row) > 4 else {})} for row in rows]
    return arena_votes([("row", record) for record in records], Tally())


def cleaned(votes, **rules):
    tally = Tally()
    left = clean_votes(votes, Cleaning(**rules), tally)
    return list(zip(rows_of(left), strict=True)), dict(tally.dropped)


def rows_of(votes):
    return [
        (votes.prompts[p][0], votes.models[a], votes.models[b], OUTCOMES[o])
        for p, a, b, o in zip(votes.prompt, votes.a, votes.b, votes.outcome, strict=True)
    ]


def test_no_rule_keeps_every_vote():
    votes = table(("p", "x", "y", "model_a"), ("p", "x", "y", "model_a"), ("p", "y", "x", "model_a"))
    left, dropped = cleaned(votes)
    assert len(left) == 3
    assert dropped == {}


def test_duplicates_are_equal_either_way_round():
    votes = table(
        ("p", "x", "y", "model_a"),
        ("p", "y", "x", "model_b"),
        ("p", "x", "y", "model_b"),
        ("q", "x", "y", "model_a"),
        ("p", "x", "y", "tie"),
        ("p", "y", "x", "tie"),
        ("p", "x", "y", "tie (bothbad)"),
    )
    left, dropped = cleaned(votes, drop_duplicates=True)
    assert [row for (row,) in left] == [rows_of(votes)[i] for i in (0, 2, 3, 4, 6)]
    assert dropped == {"duplicates": 2}


def test_conflicts_dropped_or_decided_by_the_majority():
    votes = table(
        ("p", "x", "y", "model_a"),
        ("p", "y", "x", "model_b"),
        ("p", "x", "y", "model_b"),
        ("q", "x", "y", "model_a"),
        ("r", "x", "y", "model_a"),
        ("r", "x", "y", "tie"),
    )
    left, dropped = cleaned(votes, conflicts="drop")
    assert left == [(("q", "x", "y", "model_a"),)]
    assert dropped == {"conflicts": 5}
    left, dropped = cleaned(votes, conflicts="majority")
    assert [row[0] for (row,) in left] == ["p", "p", "q"]
    assert dropped == {"conflicts": 3}


def test_the_majority_is_of_weights_and_comes_before_duplicates():
    votes = table(("p", "x", "y", "model_a", {"weight": 3}), ("p", "x", "y", "model_b"), ("p", "x", "y", "model_b"))
    assert cleaned(votes, conflicts="majority") == ([(("p", "x", "y", "model_a"),)], {"conflicts": 2})
    even = table(("p", "x", "y", "model_a"), ("p", "x", "y", "model_b"), ("p", "x", "y", "model_b"))
    left, dropped = cleaned(even, conflicts="majority", drop_duplicates=True)
    assert left == [(("p", "x", "y", "model_b"),)]
    assert dropped == {"conflicts": 1, "duplicates": 1}


def test_models_with_few_votes_go_until_all_have_enough():
    votes = table(
        *[("p", "x", "y", "model_a")] * 2,
        ("p", "y", "z", "model_a"),
        ("p", "z", "w", "model_a"),
    )
    left, dropped = cleaned(votes, min_votes=2)  # without w, z has one vote only
    assert left == [(("p", "x", "y", "model_a"),)] * 2
    assert dropped == {"min-votes": 2}


def test_models_and_languages_are_chosen_by_name():
    votes = table(
        ("p", "x", "y", "model_a", {"language": "English"}),
        ("p", "y", "z", "model_a", {"language": "German"}),
        ("p", "x", "z", "model_a"),
    )
    assert cleaned(votes, keep_models=("x", "y")) == ([(("p", "x", "y", "model_a"),)], {"keep-model": 2})
    assert cleaned(votes, drop_models=("x",)) == ([(("p", "y", "z", "model_a"),)], {"drop-model": 2})
    assert cleaned(votes, languages=("english", "french")) == ([(("p", "x", "y", "model_a"),)], {"language": 2})


def test_names_that_are_not_there_are_refused():
    votes = table(("p", "gpt-4", "y", "model_a"))
    with pytest.raises(DataError, match="the model 'gpt-5' is not in the file; it has gpt-4"):
        cleaned(votes, drop_models=("gpt-5",))
    with pytest.raises(DataError, match="--language: no row has a language"):
        cleaned(votes, languages=("en",))


def test_nothing_left_is_an_error_that_says_which_rules():
    with pytest.raises(DataError, match="no votes are left of 0 rows; dropped: min-votes 1"):
        cleaned(table(("p", "x", "y", "tie")), min_votes=5)


votes_rows = st.lists(
    st.tuples(
        st.sampled_from(["p", "q", "größer\n"]),
        st.sampled_from([("x", "y"), ("y", "x"), ("x", "z"), ("z", "y"), ("z", "w")]),
        st.sampled_from(OUTCOMES),
        st.sampled_from([1.0, 2.5]),
    ),
    min_size=1,
    max_size=25,
)


@settings(max_examples=60, deadline=None)
@given(
    rows=votes_rows,
    duplicates=st.booleans(),
    conflicts=st.sampled_from(["keep", "drop", "majority"]),
    least=st.integers(0, 4),
)
def test_what_is_dropped_and_what_is_left_make_up_the_whole(tmp_path_factory, rows, duplicates, conflicts, least):
    votes = table(*[(p, a, b, w, {"weight": weight}) for p, (a, b), w, weight in rows])
    tally = Tally()
    try:
        left = clean_votes(votes, Cleaning(drop_duplicates=duplicates, conflicts=conflicts, min_votes=least), tally)
    except DataError:
        assert tally.dropped.total() == len(votes)
        return
    assert len(left) + tally.dropped.total() == len(votes)
    path = tmp_path_factory.mktemp("v") / "v.jsonl"
    write_votes(path, left, tally)
    assert [json.loads(line)["winner"] for line in path.read_text().splitlines()] == [OUTCOMES[o] for o in left.outcome]
    back = read_votes(path)
    assert len(back) == len(left)
    assert back.weight.sum() == pytest.approx(left.weight.sum())
    count = np.bincount(np.concatenate([back.a, back.b]))
    assert count.min() >= least
    if duplicates and conflicts != "keep":
        seen = {(p, *sorted((a, b))) for p, a, b in zip(back.prompt, back.a, back.b, strict=True)}
        assert len(seen) == len(back)
