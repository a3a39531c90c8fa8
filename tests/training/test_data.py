"""Votes files, score matrices and splits."""

import json

import numpy as np
import pytest

from p2l_plugins.errors import DataError
from p2l_plugins.prompts import as_turns
from p2l_plugins.training.config import Source, TrainConfig
from p2l_plugins.votes.read import read_votes
from p2l_plugins.votes.votes import check_family, held_out, merge, ungrounded

VOTE = {"prompt": "a", "model_a": "x", "model_b": "y", "winner": "model_a"}


def write(path, rows):
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    return path


def test_votes_are_grouped_by_prompt(tmp_path):
    rows = [VOTE, {**VOTE, "prompt": ["b", "c"], "winner": "tie"}, {**VOTE, "winner": "model_b", "weight": 2.5}]
    votes = read_votes(write(tmp_path / "v.jsonl", rows), {"x": "z"})
    assert votes.models == ("y", "z")
    assert votes.prompts == [("a",), ("b", "c")]
    assert votes.prompt.tolist() == [0, 0, 1]
    assert votes.outcome.tolist() == [0, 1, 2]
    assert votes.weight.tolist() == [1.0, 2.5, 1.0]
    assert votes.models[votes.a[0]] == "z"


def test_a_score_matrix_gives_every_pair(tmp_path):
    rows = [
        {"prompt": "p", "question_id": 7, "category": "law", "x": 1.0, "y": 0.0, "z": 1.0},
        {"prompt": "q", "question_id": 8, "category": "law", "x": 0.2, "y": 0.2, "z": None},
    ]
    votes = read_votes(write(tmp_path / "m.jsonl", rows))
    assert votes.models == ("x", "y", "z")
    assert votes.outcome.tolist() == [0, 2, 1, 3]  # x>y, x=z both right, y<z; x=y both wrong
    assert votes.groups == ["law", "law"]
    assert np.isnan(votes.scores[1, 2])
    wide = read_votes(tmp_path / "m.jsonl", margin=0.9)
    assert wide.outcome.tolist() == [0, 2, 1, 3]
    assert read_votes(tmp_path / "m.jsonl", margin=1.0).outcome.tolist() == [2, 2, 2, 3]
    assert read_votes(tmp_path / "m.jsonl", usable=0.1).outcome.tolist() == [0, 2, 1, 2]


def test_csv_and_parquet_read_the_same(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"prompt": ["p", "q"], "x": [1.0, 0.0], "y": [0.5, None]}), tmp_path / "m.parquet")
    (tmp_path / "m.csv").write_text("prompt,x,y\np,1.0,0.5\nq,0.0,\n")
    a, b = (read_votes(tmp_path / f"m.{kind}") for kind in ("parquet", "csv"))
    assert a.outcome.tolist() == b.outcome.tolist() == [0]
    np.testing.assert_array_equal(a.scores, b.scores)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"prompt": "a", "model_a": "x", "winner": "model_a"}], "column 'model_b' is missing; the file has 'prompt'"),
        ([{**VOTE, "winner": "draw"}], "row 1: winner is 'draw'; valid: 'model_a', 'model_b', 'tie', 'tie \\(bothbad"),
        ([VOTE, {**VOTE, "prompt": " "}], "row 2: the prompt is empty"),
        ([{**VOTE, "model_b": "x"}], "model_a and model_b are both 'x'"),
        ([{**VOTE, "model_b": None}], "model_b is None"),
        ([{**VOTE, "weight": -1}], "weight is -1, but must be a number above 0"),
        ([{**VOTE, "weight": "heavy"}], "weight is 'heavy', but must be a number"),
        ([{"question": "a"}], "column 'prompt' is missing"),
        ([{"prompt": "a", "x": 1.0}], "neither a votes file .* nor a score matrix"),
    ],
)
def test_bad_files_are_a_sentence(tmp_path, rows, message):
    with pytest.raises(DataError, match=message):
        read_votes(write(tmp_path / "v.jsonl", rows))


def test_bad_paths_are_a_sentence(tmp_path):
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "broken.jsonl").write_text('{"prompt": "a"\n')
    (tmp_path / "no.parquet").write_text("not parquet")
    (tmp_path / "v.xlsx").write_text("")
    for name, message in {
        "empty.jsonl": "the file holds no rows",
        "broken.jsonl": "line 1 is not valid JSON",
        "no.parquet": "not a readable Parquet file",
        "v.xlsx": "the ending '.xlsx' is not one of .jsonl, .ndjson, .json, .parquet, .csv",
        "none.jsonl": "there is no such file",
    }.items():
        with pytest.raises(DataError, match=message):
            read_votes(tmp_path / name)


def test_two_columns_of_one_model_are_refused(tmp_path):
    path = write(tmp_path / "m.jsonl", [{"prompt": "p", "x": 1.0, "X": 0.0}])
    with pytest.raises(DataError, match="two columns are both the model 'x'"):
        read_votes(path, {"X": "x"})


def test_the_split_is_by_prompt_and_stable():
    prompts = [as_turns(f"prompt {i}") for i in range(2000)]
    side = held_out(prompts, 0.2, seed=0)
    assert side.mean() == pytest.approx(0.2, abs=0.03)
    np.testing.assert_array_equal(held_out(prompts[::-1], 0.2, seed=0)[::-1], side)
    assert (held_out(prompts, 0.2, seed=1) != side).any()
    assert not held_out(prompts, 0.0).any()


def test_merging_shares_the_weight_of_a_prompt(tmp_path):
    one = read_votes(write(tmp_path / "a.jsonl", [VOTE, {**VOTE, "winner": "tie"}]))
    two = read_votes(write(tmp_path / "b.jsonl", [{"prompt": "p", "x": 1, "y": 0, "w": 0}]))
    both = merge([one, two], [4.0, None])
    assert both.models == ("w", "x", "y")
    assert both.weight.tolist() == [2.0, 2.0, 1.0, 1.0, 1.0]
    assert both.prompt.tolist() == [0, 0, 1, 1, 1]


def test_ties_need_a_family_that_has_them(tmp_path):
    votes = read_votes(write(tmp_path / "v.jsonl", [VOTE, {**VOTE, "prompt": "b", "winner": "tie"}]))
    with pytest.raises(DataError, match="1 of 2 votes are ties, which the family 'bt' does not allow"):
        check_family(votes, "bt", "refuse", tmp_path)
    dropped = check_family(votes, "bt", "drop", tmp_path)
    assert len(dropped) == 1
    assert dropped.prompts == [("a",)]
    assert check_family(votes, "rk", "refuse", tmp_path) is votes


def test_models_without_both_bad_are_ungrounded(tmp_path):
    free = read_votes(write(tmp_path / "a.jsonl", [VOTE]))
    tied = read_votes(write(tmp_path / "b.jsonl", [{**VOTE, "model_a": "w", "winner": "tie (bothbad)"}]))
    assert ungrounded([free, tied], "grk") == ["x"]
    assert ungrounded([free, tied], "bt") == []


@pytest.mark.parametrize(
    ("prompts", "batch", "epochs"),
    [(5, 8, 5), (100, 8, 5), (400, 8, 3), (1000, 8, 1), (1024, 16, 2), (2000, 16, 1), (2048, 32, 2), (3791, 32, 1)],
)
def test_few_prompts_make_small_batches_and_several_epochs_unless_both_are_set(prompts, batch, epochs):
    config = TrainConfig(name="x", data=[Source(path="x")])
    sized = config.sized(prompts)
    assert (sized.batch_size, sized.epochs) == (batch, epochs)
    steps = epochs * max(prompts // min(batch, prompts), 1)
    assert steps >= 118 or epochs == 5
    kept = TrainConfig(name="x", data=[Source(path="x")], epochs=0.5, batch_size=7).sized(prompts)
    assert (kept.batch_size, kept.epochs) == (7, 0.5)
    shared = TrainConfig(name="x", data=[Source(path="x")], gradient_accumulation=3).sized(prompts, processes=2)
    assert shared.batch_size % 6 == 0
    assert batch <= shared.batch_size < batch + 6
