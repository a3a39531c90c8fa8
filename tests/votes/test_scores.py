"""Score matrices, wide and long, and the votes that follow from them."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2l_plugins.errors import DataError
from p2l_plugins.outcomes import BAD, TIE, A, B
from p2l_plugins.votes.output import write_matrix, write_votes
from p2l_plugins.votes.read import read_votes
from p2l_plugins.votes.scores import check_matrix, read_matrix
from p2l_plugins.votes.tally import Tally


def matrix_of(*rows, on_error="refuse", **options):
    tally = Tally(on_error)
    return read_matrix([(f"row {i}", row) for i, row in enumerate(rows, 1)], tally, **options), tally


def test_wide_and_long_rows_give_the_same_matrix():
    wide, _ = matrix_of(
        {"prompt": "p", "category": "law", "question_id": 3, "x": 1.0, "y": 0},
        {"prompt": ["q", "r"], "x": None, "y": "0.5"},
    )
    long, _ = matrix_of(
        {"prompt": "p", "model": "x", "score": 1, "category": "law"},
        {"prompt": "p", "model": "y", "score": False, "category": "law"},
        {"prompt": ["q", "r"], "model": "y", "score": "0.5"},
    )
    for matrix in (wide, long):
        assert matrix.models == ("x", "y")
        assert matrix.prompts == [("p",), ("q", "r")]
        assert matrix.category == ["law", None]
        np.testing.assert_array_equal(matrix.scores, [[1.0, 0.0], [np.nan, 0.5]])


def test_margin_and_usable():
    matrix, _ = matrix_of({"prompt": "p", "x": 0.9, "y": 0.8, "z": 0.1}, {"prompt": "q", "x": 0.2, "y": 0.2, "z": None})
    assert matrix.votes().outcome.tolist() == [A, A, A, BAD]
    assert matrix.votes(margin=0.2).outcome.tolist() == [TIE, A, A, BAD]
    assert matrix.votes(margin=0.2, usable=0.95).outcome.tolist() == [BAD, A, A, BAD]
    assert matrix.votes(usable=0.2).outcome.tolist() == [A, A, A, TIE]


def test_lower_is_better_turns_the_order_and_the_threshold():
    rows = [
        {"prompt": "p", "x": 2.0, "y": 3.0},
        {"prompt": "q", "x": 4.0, "y": 4.0},
        {"prompt": "r", "x": 1.0, "y": 1.0},
    ]
    matrix, _ = matrix_of(*rows, lower_is_better=True)
    assert matrix.votes(usable=2.0).outcome.tolist() == [A, BAD, TIE]
    higher, _ = matrix_of(*rows)
    assert higher.votes(usable=2.0).outcome.tolist() == [B, TIE, BAD]


def test_repeated_scores_become_their_mean_and_are_told():
    matrix, tally = matrix_of({"prompt": "p", "x": 1, "y": 0}, {"prompt": "p", "x": 0, "y": 0})
    assert matrix.scores.tolist() == [[0.5, 0.0]]
    assert tally.notes == ["2 scores repeat a prompt and model: each such cell is the mean"]


def test_columns_of_text_are_no_models_and_are_told():
    rows = [{"prompt": f"p{i}", "x": 1, "y": 0, "answer": text} for i, text in enumerate(["yes", "no", "7"])]
    matrix, tally = matrix_of(*rows)
    assert matrix.models == ("x", "y")
    assert tally.notes[0] == "columns of text are no models: answer"


def test_empty_prompts_are_dropped_by_name():
    matrix, tally = matrix_of({"prompt": " ", "x": 1, "y": 0}, {"prompt": "q", "x": 1, "y": 0})
    assert matrix.prompts == [("q",)]
    assert tally.dropped == {"empty-prompt": 1}


@pytest.mark.parametrize(
    ("row", "rule", "message"),
    [
        ({"prompt": "r", "x": "good", "y": 0}, "bad-score", "row 3: the score of 'x' is 'good', but must be a number"),
        ({"prompt": "r", "x": float("inf"), "y": 0}, "bad-score", "row 3: the score of 'x' is inf"),
        ({"question": "r", "x": 1, "y": 0}, "bad-prompt", "row 3: column 'prompt' is missing; the row has"),
        ({"prompt": 1.5, "x": 1, "y": 0}, "bad-prompt", "row 3: prompt is float"),
    ],
)
def test_bad_cells_are_refused_with_the_row_or_dropped_by_name(row, rule, message):
    good = [{"prompt": "p", "x": 1, "y": 0}, {"prompt": "q", "x": 1, "y": 0}]
    with pytest.raises(DataError) as error:
        matrix_of(*good, row)
    assert message in str(error.value)
    matrix, tally = matrix_of(*good, row, on_error="drop")
    assert tally.dropped == {rule: 1}
    assert matrix.models == ("x", "y")


def test_long_rows_need_a_model_and_a_number():
    good = {"prompt": "p", "model": "x", "score": 1}
    with pytest.raises(DataError, match="row 2: model is None"):
        matrix_of(good, {"prompt": "p", "score": 1})
    with pytest.raises(DataError, match="row 2: score is 'high', but must be a number"):
        matrix_of(good, {**good, "score": "high"})


def test_a_matrix_that_nobody_could_read_is_refused():
    with pytest.raises(DataError, match="s: two models at least are needed to compare; found: x"):
        check_matrix(matrix_of({"prompt": "p", "x": 1})[0], "s")
    rows = [{"prompt": "p", "model": name, "score": 1} for name in ("x", "source")]
    with pytest.raises(DataError, match="a model can't be named 'source'"):
        check_matrix(matrix_of(*rows)[0], "s")


def test_only_some_models():
    matrix, _ = matrix_of({"prompt": "p", "x": 1, "y": 0, "z": 0})
    assert matrix.only(["z", "x"], []).models == ("x", "z")
    assert matrix.only([], ["x"]).models == ("y", "z")
    with pytest.raises(DataError, match="the model 'xx' is not in the file; it has x"):
        matrix.only(["xx"], [])


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_what_is_written_is_what_training_reads(tmp_path, kind):
    if kind == "parquet":
        pytest.importorskip("pyarrow")
    rows = [
        {"prompt": "p", "category": "law", "x": 1.0, "y": 0.0, "z": 0.25},
        {"prompt": ["q", "r"], "category": "art", "x": 0.0, "y": 0.0, "z": None},
    ]
    matrix, tally = matrix_of(*rows)
    write_matrix(tmp_path / f"m.{kind}", matrix)
    write_votes(tmp_path / f"v.{kind}", matrix.votes(), tally)
    direct, through = read_votes(tmp_path / f"m.{kind}"), read_votes(tmp_path / f"v.{kind}")
    np.testing.assert_array_equal(direct.scores, matrix.scores)
    for votes in (direct, through):
        assert votes.prompts == [("p",), ("q", "r")]
        assert votes.groups == ["law", "art"]
        assert votes.outcome.tolist() == [A, A, B, BAD]
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"m.{kind}", f"v.{kind}"]


def test_a_written_matrix_has_the_higher_score_better(tmp_path):
    matrix, _ = matrix_of({"prompt": "p", "x": 2.0, "y": 3.0}, lower_is_better=True)
    write_matrix(tmp_path / "m.jsonl", matrix)
    assert json.loads((tmp_path / "m.jsonl").read_text()) == {"prompt": "p", "x": -2.0, "y": -3.0}
    assert read_votes(tmp_path / "m.jsonl").outcome.tolist() == matrix.votes().outcome.tolist() == [A]


scores = st.one_of(st.none(), st.sampled_from([0, 0.25, 0.5, 1]))


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.tuples(st.sampled_from("pqrs"), scores, scores, scores), min_size=1, max_size=12),
    margin=st.sampled_from([0.0, 0.25, 0.6]),
    usable=st.sampled_from([0.25, 0.5]),
)
def test_votes_equal_those_that_training_makes_of_the_matrix(tmp_path_factory, rows, margin, usable):
    names = ["x", "y", "z"]
    records = [{"prompt": row[0], **dict(zip(names, row[1:], strict=True))} for row in rows]
    if any(all(record[name] is None for record in records) for name in names):
        return  # training refuses an empty column
    path = tmp_path_factory.mktemp("m") / "m.jsonl"
    path.write_text("\n".join(map(json.dumps, records)))
    tally = Tally()
    ours = read_matrix(tally.read(path), tally).votes(margin, usable)
    theirs = read_votes(path, usable=usable, margin=margin)
    for name in ("prompt", "a", "b", "outcome"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))
    assert ours.prompts == theirs.prompts


@pytest.mark.parametrize("name", ["llmrouter_scores", "zeroeval_correctness", "arenabench_v1_scores"])
def test_public_matrices_give_the_votes_that_training_makes_of_them(data_dir, name):
    path = data_dir / f"{name}.parquet"
    tally = Tally()
    matrix = read_matrix(tally.read(path), tally)
    theirs = read_votes(path)
    assert matrix.models == theirs.models
    np.testing.assert_allclose(matrix.scores, theirs.scores)
    np.testing.assert_array_equal(matrix.votes().outcome, theirs.outcome)
