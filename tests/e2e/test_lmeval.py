"""The real commands on a local benchmark, with the bundle that ships."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lmeval_task import TASKS_DIR
from p2l_plugins import P2L

EXAMPLES = Path(__file__).parents[2] / "examples" / "lmeval"
SCRIPTS = Path(sys.executable).parent
N_QUESTIONS = len((EXAMPLES / "pocket_quiz.jsonl").read_text(encoding="utf-8").splitlines())


def command(name: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "COLUMNS": "200"}
    return subprocess.run(
        [str(SCRIPTS / name), *arguments], cwd=cwd, env=env, capture_output=True, text=True, timeout=240, check=False
    )


def results_of(folder: Path) -> dict:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} in results.json")

    [path] = folder.rglob("results_*.json")
    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


def test_our_command_prints_the_score_and_the_leaderboard_in_one_table(tmp_path):
    models = P2L.load("starter").models
    run = command(
        "p2l-lm-eval", "run", "--model", "dummy", "--tasks", "pocket_quiz,p2l_pocket_quiz",
        "--include_path", str(EXAMPLES), "--metadata", json.dumps({"p2l_model": models[0]}),
        "--output_path", str(tmp_path), "--log_samples", cwd=tmp_path,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    results = results_of(tmp_path)
    report = results["configs"]["p2l_pocket_quiz"]["p2l"]
    board = report["leaderboard"]
    line = " > ".join(row["model"] for row in board[:5])
    table = [row for row in run.stdout.splitlines() if row.startswith("|")]
    assert any(row.startswith("|pocket_quiz ") and "|acc" in row for row in table)
    assert any("|p2l_leaderboard" in row and line in row for row in table)
    assert any("|p2l_evaluated_rank" in row for row in table)
    assert sorted(row["model"] for row in board) == sorted(models)
    assert [row["rank"] for row in board] == list(range(1, len(models) + 1))
    order = [(row.get("grounded", True), row["coef"]) for row in board]  # ungrounded models come last
    assert order == sorted(order, reverse=True)
    assert (report["n_prompts"], report["n_truncated"], report["evaluated_model"]) == (N_QUESTIONS, 0, models[0])
    assert report["fingerprint"] == P2L.load("starter").fingerprint
    [samples] = tmp_path.rglob("samples_p2l_pocket_quiz_*.jsonl")
    assert len(samples.read_text(encoding="utf-8").splitlines()) == N_QUESTIONS


def test_plain_lm_eval_takes_our_tasks_folder_and_limit_counts_prompts(tmp_path):
    folder = command("p2l-lm-eval", "--tasks-dir", cwd=tmp_path).stdout.strip()
    assert Path(folder) == TASKS_DIR
    metadata = {"p2l_source": "pocket_quiz", "p2l_include_path": str(EXAMPLES)}
    run = command(
        "lm_eval", "run", "--model", "dummy", "--tasks", "p2l_leaderboard", "--include_path", folder,
        "--metadata", json.dumps(metadata), "--limit", "3", "--output_path", str(tmp_path), cwd=tmp_path,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert "|p2l_leaderboard" in run.stdout
    assert results_of(tmp_path)["configs"]["p2l_leaderboard"]["p2l"]["n_prompts"] == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tasks", "p2l_poket_quiz"], "there is no task 'poket_quiz' in lm-eval or under {}; similar: pocket_quiz"),
        (["--tasks", "p2l_pocket_quiz", "--metadata", '{"p2l_bundle": "/nowhere"}'], "/nowhere: neither a folder nor"),
    ],
    ids=["unknown task", "missing bundle"],
)
def test_an_error_is_one_sentence_and_exit_status_1(tmp_path, arguments, message):
    run = command("p2l-lm-eval", "run", "--model", "dummy", "--include_path", str(EXAMPLES), *arguments, cwd=tmp_path)
    assert run.returncode == 1
    assert "Traceback" not in run.stderr
    assert run.stderr.splitlines()[-1].startswith("p2l-lm-eval: " + message.format(EXAMPLES))
