"""`p2l votes …` as a user runs it."""

import json
import subprocess
import sys

import pytest
from helpers.command import called, run

from p2l_plugins.votes.read import read_votes

VOTE = {"prompt": "p", "model_a": "x", "model_b": "y", "winner": "model_a"}


def votes(*arguments, status=0):
    return called("votes", *arguments, status=status)


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    more = [VOTE, {**VOTE, "prompt": ["a", "b"], "winner": "both_bad", "tstamp": 3.5}, {**VOTE, "prompt": ""}, VOTE]
    path.write_text("\n".join(map(json.dumps, more)))
    return path


def test_help_names_the_commands():
    text = votes("--help").stdout
    for command in ("from-arena", "from-scores", "from-lm-eval", "from-litellm", "from-collected", "check"):
        assert f"\n  {command} " in text


def test_an_import_writes_the_file_says_what_was_dropped_and_training_reads_it(rows, tmp_path):
    output = tmp_path / "new" / "votes.jsonl"
    result = votes("from-arena", rows, "-o", output, "--drop-duplicates")
    assert result.stdout == f"2 votes on 2 prompts, 2 models → {output}\n"
    lines = [line.split() for line in result.stderr.splitlines() if line]
    assert lines[:3] == [["rows", "read", "4"], ["empty-prompt", "-1"], ["duplicates", "-1"]]
    assert "note: 1 of 2 votes have no time stamp: the column is left out" in result.stderr
    assert [json.loads(line) for line in output.read_text().splitlines()] == [
        VOTE,
        {**VOTE, "prompt": ["a", "b"], "winner": "tie (bothbad)"},
    ]
    back = read_votes(output)
    assert back.prompts == [("p",), ("a", "b")]
    assert back.outcome.tolist() == [0, 3]


def test_json_holds_the_same(rows, tmp_path):
    summary = json.loads(votes("from-arena", rows, "-o", tmp_path / "v.jsonl", "--json").stdout)
    assert summary["rows"] == 4
    assert summary["votes"] == 3
    assert summary["outcomes"] == {"model_a": 2, "model_b": 0, "tie": 0, "tie (bothbad)": 1}
    assert summary["dropped"] == {"empty-prompt": 1}
    assert summary["output"] == str(tmp_path / "v.jsonl")


def test_rows_come_from_a_pipe_and_go_to_parquet(rows, tmp_path):
    pytest.importorskip("pyarrow")
    run("votes", "from-arena", "-", "-o", tmp_path / "v.parquet", stdin=rows.read_text())
    assert read_votes(tmp_path / "v.parquet").prompts == [("p",), ("a", "b")]


def test_scores_to_votes_and_matrix(tmp_path):
    path = tmp_path / "s.csv"
    path.write_text("prompt,model,score\np,x,3\np,y,5\nq,x,1\nq,y,1\n")
    output = tmp_path / "v.jsonl"
    result = votes("from-scores", path, "-o", output, "--lower-is-better", "--usable", 2)
    assert "2 votes on 2 prompts, 2 models" in result.stdout
    assert read_votes(output).outcome.tolist() == [0, 2]
    assert "2 prompts × 2 models, 4 scores" in votes("from-scores", path, "-o", output, "--matrix").stdout
    assert read_votes(output).scores.tolist() == [[3.0, 5.0], [1.0, 1.0]]


def test_litellm_logs(tmp_path):
    path, feedback = tmp_path / "log.jsonl", tmp_path / "feedback.jsonl"
    messages = [{"role": "user", "content": "hello"}]
    path.write_text("\n".join(json.dumps({"id": m, "model": m, "messages": messages}) for m in "xyz"))
    feedback.write_text('{"id": "x", "rating": "up"}\n{"id": "y", "rating": "down"}\n')
    result = votes("from-litellm", path, "--feedback", feedback, "-o", tmp_path / "v.jsonl")
    assert "1 votes on 1 prompts, 2 models" in result.stdout
    assert result.stderr.split()[-5:] == ["no-feedback", "-1", "models:", "x,", "y"]


def test_check_reports_and_writes_nothing(rows, tmp_path):
    good = tmp_path / "good.jsonl"
    votes("from-arena", rows, "-o", good)
    before = sorted(tmp_path.iterdir())
    assert f"| {good} | 3 votes, 2 prompts |" in votes("check", good).stdout
    report = json.loads(votes("check", good, "--held-out", 0.5, "--against", good, "--json").stdout)
    assert report["duplicates"]["same_sides"] == 1
    assert report["held_out"]["fraction"] == 0.5
    assert report["against"]["shared_prompts"] == 2
    assert report["few_votes"]["models"] == {"x": 3, "y": 3}
    assert sorted(tmp_path.iterdir()) == before


def test_public_human_votes_pass_the_check(data_dir):
    report = json.loads(votes("check", data_dir / "pandalm_human_battles.parquet", "--json").stdout)
    assert report["votes"] == 2376


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["from-arena", "none.jsonl", "-o", "v.jsonl"], 1, "none.jsonl: there is no such file"),
        (["from-arena", "bad.jsonl", "-o", "v.jsonl"], 1, "bad.jsonl: line 2: winner is 'draw'; valid: 'model_a'"),
        (["from-arena", "bad.jsonl", "-o", "v.csv"], 2, "v.csv: the ending '.csv' is not one of .jsonl, .parquet"),
        (["from-arena", "bad.jsonl", "-o", "v.jsonl", "--conflicts", "no"], 2, "'no' is not one of"),
        (["from-arena", "bad.jsonl"], 2, "Missing option"),
        (["from-scores", "bad.jsonl", "-o", "v.jsonl"], 1, "two models at least are needed to compare; found: none"),
        (["from-scores", "bad.jsonl", "-o", "v.jsonl", "--matrix", "--min-votes", "3"], 2, "rules for votes, not for"),
        (["from-lm-eval", "-o", "v.jsonl"], 2, "name at least one folder"),
        (["from-lm-eval", "--model", "x", "-o", "v.jsonl"], 2, "--model 'x' is not NAME=FOLDER"),
        (["from-lm-eval", "x", "-o", "v.jsonl"], 1, "x: there is no such folder"),
        (["from-litellm", "bad.jsonl", "-o", "v.jsonl"], 1, "no votes are left of 2 rows; dropped: no-feedback 2"),
        (["check", "bad.jsonl"], 1, "bad.jsonl: row 2: winner is 'draw'"),
        (["check"], 2, "Missing argument"),
    ],
)
def test_errors_are_one_line_and_leave_nothing_behind(tmp_path, monkeypatch, arguments, status, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.jsonl").write_text(json.dumps(VOTE) + "\n" + json.dumps({**VOTE, "winner": "draw"}) + "\n")
    error = votes(*arguments, status=status).stderr
    assert message in error
    assert [path.name for path in tmp_path.iterdir()] == ["bad.jsonl"]


def test_a_failed_import_leaves_the_old_file(rows, tmp_path):
    output = tmp_path / "v.jsonl"
    votes("from-arena", rows, "-o", output)
    before = output.read_bytes()
    rows.write_text(json.dumps({**VOTE, "winner": "draw"}))
    votes("from-arena", rows, "-o", output, status=1)
    assert output.read_bytes() == before
    votes("from-arena", rows, "-o", output, "--on-error", "drop", status=1)
    assert output.read_bytes() == before


def test_no_heavy_import():
    code = (
        "import sys, p2l_plugins.cli, p2l_plugins.votes.arena, p2l_plugins.votes.lmeval_logs, "
        "p2l_plugins.votes.litellm_logs, p2l_plugins.votes.report\n"
        "assert not {'torch', 'litellm', 'lm_eval', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
