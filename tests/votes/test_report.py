"""The report on a votes file."""

import json

import pytest

from p2l_plugins.votes.read import read_votes
from p2l_plugins.votes.report import check, combined, to_text, wilson

scipy = pytest.importorskip("scipy")


def votes_of(tmp_path, *rows, name="v.jsonl"):
    keys = ("prompt", "model_a", "model_b", "winner")
    path = tmp_path / name
    path.write_text("\n".join(json.dumps(dict(zip(keys, row, strict=True))) for row in rows))
    return read_votes(path)


ROWS = [
    ("p", "x", "y", "model_a"),
    ("p", "x", "y", "model_a"),
    ("p", "y", "x", "model_b"),
    ("p", "y", "x", "model_a"),
    ("q", "y", "z", "tie"),
    (["q", "r"], "v", "w", "tie (bothbad)"),
]


def test_counts_duplicates_conflicts_and_coverage(tmp_path):
    report = check(votes_of(tmp_path, *ROWS), min_votes=2)
    assert (report["votes"], report["prompts"], report["models"]) == (6, 3, 5)
    assert report["outcomes"] == {"model_a": 3, "model_b": 1, "tie": 1, "tie (bothbad)": 1}
    assert report["tie_share"] == pytest.approx(1 / 3)
    assert report["duplicates"] == {"same_sides": 1, "either_side": 2}
    assert report["conflicts"] == {"pairs": 1, "votes": 4}
    assert report["few_votes"] == {"below": 2, "models": {"v": 1, "w": 1, "z": 1}}
    assert report["components"] == [["x", "y", "z"], ["v", "w"]]
    assert report["position"]["a_won"] == 3
    assert report["position"]["decisive"] == 4
    assert report["length"]["several_turns"] == 1
    assert report["length"]["characters"] == {"min": 1.0, "median": 1.0, "p95": pytest.approx(1.9), "max": 2.0}
    assert (report["never_lost"], report["never_won"]) == ([], [])
    assert "held_out" not in report


def test_models_that_always_win_or_lose_are_named(tmp_path):
    report = check(votes_of(tmp_path, ("p", "x", "y", "model_a"), ("q", "x", "y", "tie")))
    assert (report["never_lost"], report["never_won"]) == (["x"], ["y"])


def test_the_interval_is_wilsons():
    for k, n in [(0, 5), (3, 4), (480, 1000), (7, 7)]:
        expected = scipy.stats.binomtest(k, n).proportion_ci(0.95, "wilson")
        assert wilson(k, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_a_split_says_which_models_and_prompts_it_parts(tmp_path):
    rows = [(f"prompt {i}", "x", "y", "model_a") for i in range(200)]
    votes = votes_of(tmp_path, *rows, *((row[0].upper(), *row[1:]) for row in rows), ("rare", "x", "z", "tie"))
    split = check(votes, fraction=0.25, seed=1)["held_out"]
    assert split["train"]["prompts"] + split["test"]["prompts"] == 401
    assert split["test"]["prompts"] == pytest.approx(100, abs=30)
    assert split["shared_prompts"] == 0
    assert split["shared_but_for_case_and_space"] > 0
    assert check(votes, fraction=1.0)["held_out"]["models_only_in_test"] == ["x", "y", "z"]


def test_prompts_in_both_files_are_counted(tmp_path):
    other = votes_of(tmp_path, ("p", "x", "y", "tie"), (" Q ", "x", "y", "tie"), name="o.jsonl")
    report = check(votes_of(tmp_path, *ROWS), against=other)
    assert report["against"] == {"prompts": 2, "shared_prompts": 1, "shared_but_for_case_and_space": 2}


def test_several_files_count_as_one(tmp_path):
    one, two = votes_of(tmp_path, *ROWS[:3]), votes_of(tmp_path, *ROWS[3:], name="b.jsonl")
    assert check(combined([one, two])) == check(votes_of(tmp_path, *ROWS, name="c.jsonl"))


def test_a_score_matrix_has_no_position(tmp_path):
    (tmp_path / "m.jsonl").write_text('{"prompt": "p", "x": 1, "y": 0}\n')
    report = check(read_votes(tmp_path / "m.jsonl"))
    assert report["position"] is None
    assert report["votes"] == 1


def test_the_text_names_what_wants_a_look(tmp_path):
    votes = votes_of(tmp_path, *ROWS)
    entry = {"file": "v.jsonl", "votes": 6, "prompts": 3}
    text = to_text({"files": [entry], **check(votes, min_votes=2, fraction=0.5, against=votes)})
    assert "| v.jsonl | 6 votes, 3 prompts |" in text
    assert "fewer than 2 votes: v (1), w (1), z (1)" in text
    assert "fall into 2 groups that were never compared:\n- x, y, z\n- v, w" in text
    assert "| also in the other file | 3 prompts" in text


def test_public_human_votes_pass(data_dir):
    report = check(read_votes(data_dir / "pandalm_human_battles.parquet"), fraction=0.2)
    assert (report["votes"], report["models"], report["components"].__len__()) == (2376, 5, 1)
    assert report["few_votes"]["models"] == {}
    assert report["position"]["low"] < 0.5 < report["position"]["high"]
    assert report["held_out"]["shared_prompts"] == 0
