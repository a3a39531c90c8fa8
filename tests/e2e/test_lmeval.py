"""The real commands on local benchmarks, with the bundle that ships: one run with everything in it, and some others."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.forking import finished, lm_eval, script
from helpers.lmeval_files import write_task
from lm_eval.tasks import TaskManager

from lmeval_task import TASKS_DIR
from lmeval_task.cli import main
from p2l_plugins import P2L

EXAMPLES = Path(__file__).parents[2] / "examples" / "lmeval"
SCRIPTS = Path(sys.executable).parent

#: Runs commands in one process, as lm-eval's imports take longer than a run; prints the status and stderr of each.
RUNNER = """
import contextlib, io, json, sys
from lm_eval.__main__ import cli_evaluate
from lmeval_task.cli import main
done = []
for sys.argv in json.loads(sys.argv[1]):
    text = io.StringIO()
    with contextlib.redirect_stderr(text), contextlib.redirect_stdout(text):
        status = main() if sys.argv[0] == "p2l-lm-eval" else cli_evaluate()
    done.append([status, text.getvalue()])
print(json.dumps(done))
"""


def environment() -> dict[str, str]:
    return {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "COLUMNS": "200"}


def command(name: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(SCRIPTS / name), *arguments], cwd=cwd, env=environment(), capture_output=True, text=True, timeout=240,
        check=False,
    )  # fmt: skip


def ours(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return finished(lm_eval, *arguments, cwd=cwd, environment=environment())


def results_path(folder: Path) -> Path:
    [path] = folder.rglob("results_*.json")
    return path


def results_of(folder: Path) -> dict:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} in results.json")

    return json.loads(results_path(folder).read_text(encoding="utf-8"), parse_constant=refuse)


def samples_of(folder: Path, task: str) -> list[dict]:
    [path] = folder.rglob(f"samples_{task}_*.jsonl")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def tasks(tmp_path_factory) -> Path:
    """Benchmarks of a user; the model `dummy` answers "lol" to everything."""
    folder = tmp_path_factory.mktemp("tasks")
    sums = [{"question": f"What is {i} times {i + 3}?", "answer": "lol" if i % 3 else str(i)} for i in range(8)]
    filters = [
        {"name": "strict", "filter": [{"function": "take_first"}]},
        {"name": "never", "filter": [{"function": "regex", "regex_pattern": "(x)"}, {"function": "take_first"}]},
    ]
    write_task(folder, "sums", sums, filter_list=filters)
    for part, n in (("a", 6), ("b", 4)):
        cases = [{"question": f"Is case {part}{i} binding?", "answer": "lol" if i % 2 else "no"} for i in range(n)]
        write_task(folder, f"law_{part}", cases)
    metrics = "aggregate_metric_list:\n  - {metric: exact_match, weight_by_size: true}\n"
    (folder / "law.yaml").write_text(f"group: law\ntask: [law_a, law_b]\n{metrics}metadata: {{version: 3}}\n")
    write_task(folder, "chat", [{"question": ["Hello", f"And in language {i}?"], "answer": "x"} for i in range(3)])
    write_task(folder, "long", [{"question": "word " * 3000, "answer": "x"}, {"question": "short", "answer": "x"}])
    write_task(folder, "hollow", [])
    return folder


@pytest.fixture(scope="module")
def run(tasks, tmp_path_factory) -> tuple[subprocess.CompletedProcess[str], Path]:
    """One run of everything: what it printed, and its folder."""
    out = tmp_path_factory.mktemp("out")
    done = ours(
        "run", "--model", "dummy", "--include_path", str(tasks), "--output_path", "out", "--log_samples",
        "--tasks", "sums,sums_p2l,p2l_sums,law,law_p2l,p2l_law,p2l_chat,p2l_long", "--use_cache", str(out / "answers"),
        "--metadata", json.dumps({"p2l_model": P2L.load("starter").models[0], "p2l_top": 3}), cwd=out,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done, out


def test_the_table_has_the_score_the_leaderboard_and_the_evaluated_model(run):
    done, out = run
    models = P2L.load("starter").models
    report = results_of(out)["configs"]["p2l_sums"]["p2l"]
    line = " > ".join(row["model"] for row in report["leaderboard"][:5])
    table = [row for row in done.stdout.splitlines() if row.startswith("|")]
    assert any(row.startswith("|p2l_sums ") for row in table)
    assert any("|p2l_leaderboard" in row and line in row for row in table)
    assert sum("|p2l_evaluated_rank" in row for row in table) == 4
    assert sum("|p2l_win_rate:" in row for row in table) == 4 * 3
    assert report["evaluated_model"] == models[0]


def test_results_hold_the_whole_leaderboard_with_intervals(run):
    starter = P2L.load("starter")
    report = results_of(run[1])["configs"]["p2l_law"]["p2l"]
    board = report["leaderboard"]
    assert sorted(row["model"] for row in board) == sorted(starter.models)
    assert [row["rank"] for row in board] == list(range(1, len(board) + 1))
    order = [(row.get("grounded", True), row["coef"]) for row in board]  # ungrounded models come last
    assert order == sorted(order, reverse=True)
    for row in board:
        assert row["rank_low"] <= row["rank"] <= row["rank_high"]
        assert row["coef_low"] <= row["coef"] <= row["coef_high"]
        assert row["win_rate_low"] <= row["win_rate"] <= row["win_rate_high"]
    assert (report["n_prompts"], report["n_truncated"]) == (10, 0)
    assert report["fingerprint"] == starter.fingerprint


def test_a_prompt_that_is_too_long_is_counted(run):
    report = results_of(run[1])["configs"]["p2l_long"]["p2l"]
    assert (report["n_prompts"], report["n_truncated"]) == (2, 1)


def test_a_conversation_is_scored_as_its_turns(run):
    turns = [["Hello", f"And in language {i}?"] for i in range(3)]
    expected = P2L.load("starter").score(turns)
    samples = samples_of(run[1], "p2l_chat")
    for i, sample in enumerate(samples):
        coefs = list(sample["p2l_leaderboard"]["coefs"].values())
        assert coefs == pytest.approx(expected.coefs[i].tolist(), abs=1e-5)


def test_a_wrapped_benchmark_has_the_rows_of_the_benchmark_itself(run):
    results = results_of(run[1])["results"]
    for name in ("sums", "law", "law_a", "law_b"):
        own = {key: value for key, value in results[name].items() if key.startswith("exact_match")}
        assert own
        assert own.items() <= results[f"{name}_p2l"].items()
    assert 0 < results["sums_p2l"]["p2l_auc:exact_match,strict"] < 1
    assert results["sums_p2l"]["p2l_auc:exact_match,never"] == "n/a"
    assert {s["filter"] for s in samples_of(run[1], "sums_p2l")} == {"strict", "never"}
    assert "groups" in results_of(run[1])
    assert "law_p2l" in results_of(run[1])["groups"]


def test_the_models_answers_were_cached(run):
    assert list(run[1].glob("answers_rank0.db*"))


def test_the_run_is_reported(run, tmp_path):
    done = command("p2l-lm-eval", "report", str(results_path(run[1])), "--out", "report", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "report" / "report.md").read_text(encoding="utf-8")
    assert "## All benchmarks (23 prompts)" in text
    assert "| sums | " in text
    assert {path.name for path in (tmp_path / "report").iterdir()} == {"report.md", "report.html", "rank_changes.png"}


@pytest.fixture(scope="module")
def others(tasks, tmp_path_factory) -> tuple[dict[str, list], Path]:
    """Other commands, in one process: status and stderr of each, and their folder."""
    out = tmp_path_factory.mktemp("others")
    rows = [{"prompt": f"Is {i} prime?", "model_a": "gpt-4-0314", "model_b": "gpt-4o-2024-08-06", "winner": "tie"}
            for i in range(4)]  # fmt: skip
    (out / "votes.jsonl").write_text("\n".join(map(json.dumps, rows)))
    model = ["--model", "dummy"]
    ours, quiz = ["p2l-lm-eval", "run", *model], ["--include_path", str(EXAMPLES)]
    metadata = {"p2l_source": "pocket_quiz", "p2l_include_path": str(EXAMPLES), "p2l_votes": str(out / "votes.jsonl")}
    commands = {
        "unknown task": [*ours, "--tasks", "p2l_poket_quiz", *quiz],
        "unknown benchmark": [*ours, "--tasks", "poket_quiz_p2l", *quiz],
        "no prompts": [*ours, "--tasks", "p2l_hollow", "--include_path", str(tasks)],
        "plain": [
            "lm_eval", "run", *model, "--tasks", "p2l_leaderboard,p2l_preference", "--include_path", str(TASKS_DIR),
            "--limit", "3", "--output_path", str(out / "plain"), "--metadata", json.dumps(metadata),
        ],
    }  # fmt: skip
    done = finished(script, RUNNER, json.dumps(list(commands.values())), cwd=out, environment=environment())
    assert done.returncode == 0, done.stderr
    return dict(zip(commands, json.loads(done.stdout.splitlines()[-1]), strict=True)), out


def test_plain_lm_eval_takes_our_tasks_folder_and_limit_counts_prompts(others):
    found, out = others
    assert "|p2l_leaderboard" in found["plain"][1]
    configs = results_of(out / "plain")["configs"]
    assert configs["p2l_leaderboard"]["p2l"]["n_prompts"] == 3
    assert configs["p2l_preference"]["p2l"]["n_votes"] == 3


@pytest.mark.parametrize(
    ("run", "message"),
    [
        ("unknown task", f"there is no task 'poket_quiz' in lm-eval or under {EXAMPLES}; similar: pocket_quiz"),
        ("unknown benchmark", f"there is no task 'poket_quiz' in lm-eval or under {EXAMPLES}; similar: pocket_quiz"),
        ("no prompts", "the source task 'hollow' has no documents, so there are no prompts"),
    ],
)
def test_an_error_is_one_sentence_and_exit_status_1(others, run, message):
    status, text = others[0][run]
    assert status == 1
    assert "Traceback" not in text
    assert text.splitlines()[-1] == f"p2l-lm-eval: {message}"


def test_added_files_are_tasks_that_lm_eval_loads(tasks, tmp_path, monkeypatch, capsys):
    added = ours("add", "law", "sums", "--include-path", str(tasks), "--out", "mine", cwd=tmp_path)
    assert added.returncode == 0, added.stderr
    names = {path.stem for path in (tmp_path / "mine").iterdir()}
    assert names == {"p2l_law", "law_p2l", "law_a_p2l", "law_b_p2l", "p2l_sums", "sums_p2l"}
    metadata = {"p2l_model": P2L.load("starter").models[0]}
    manager = TaskManager(include_path=str(tmp_path / "mine"), include_defaults=False, metadata=metadata)
    assert set(manager.load(["law_p2l", "p2l_law"])["tasks"]) == {"law_a_p2l", "law_b_p2l", "p2l_law"}
    monkeypatch.chdir(tmp_path)

    def status(*arguments):
        monkeypatch.setattr(sys, "argv", ["p2l-lm-eval", "add", *arguments])
        try:
            return main()
        except SystemExit as usage:
            return usage.code

    assert status("law", "--include-path", str(tasks), "--out", "mine") == 1
    assert capsys.readouterr().err == "p2l-lm-eval: mine/p2l_law.yaml: already exists; --force replaces it\n"
    assert status("lwa", "--out", "mine") == 2
    assert capsys.readouterr().err.startswith("p2l-lm-eval: there is no task 'lwa' in lm-eval")
    assert status("law", "--out", "mine", "--include-path", "nowhere") == 2
    assert status() == 2
