"""The `p2l` command as a user runs it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.command import called, run
from typer.testing import CliRunner

from p2l_plugins import P2L
from p2l_plugins.cli import app

ROOT = Path(__file__).resolve().parent.parent


def p2l(*arguments, stdin="", status=0):
    result = run(*arguments, stdin=stdin, status=status)
    return result.stdout if status == 0 else result.stderr


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "Prove that 2 + 2 = 4."}\n{"prompt": ["hi", "and in French?"]}\n"write a haiku"\n')
    return path


@pytest.fixture
def costs(tmp_path):
    path = tmp_path / "costs.json"
    path.write_text(
        json.dumps(
            {
                "gpt-4o-2024-08-06": {"input_price": 2.5, "output_price": 10},
                "gpt-4o-mini-2024-07-18": {"input_price": 0.15, "output_price": 0.6},
                "claude-3-haiku-20240307": 0.0007,
            }
        )
    )
    return path


def test_help_lists_the_commands_of_the_adapters_too():
    text = p2l("--help")
    commands = ("train", "scaling", "evaluate", "export", "add-model", "remove-model", "rename-model")
    for command in (*commands, "score", "leaderboard", "route", "votes"):
        assert f"\n  {command} " in text
        shown = CliRunner().invoke(app, [command, "--help"])
        assert shown.exit_code == 0
        assert "Usage" in shown.output


def test_score_to_stdout_csv_and_parquet(prompts, tmp_path):
    rows = [json.loads(line) for line in p2l("score", "starter", prompts).splitlines()]
    assert len(rows) == 3
    assert rows[1]["prompt"] == ["hi", "and in French?"]
    assert len(rows[0]["coefs"]) > 100
    p2l("score", "starter", prompts, "-o", tmp_path / "s.csv")
    header, *lines = (tmp_path / "s.csv").read_text().splitlines()
    assert header.startswith(f"prompt,raw_eta,{P2L.load().models[0]},")
    assert len(lines) == 3
    assert json.loads(p2l("score", "starter", prompts, "-o", tmp_path / "s.parquet", "--json"))["prompts"] == 3
    assert json.loads(p2l("score", "starter", "-", stdin='"hello"\n'))["prompt"] == "hello"


def test_leaderboard(prompts):
    table = p2l("leaderboard", "starter", prompts, "--top", 3)
    assert table.count("\n| ") == 3
    assert "3 prompts" in table
    rows = json.loads(p2l("leaderboard", "starter", prompts, "--json"))["leaderboard"]
    assert [row["rank"] for row in rows] == list(range(1, len(rows) + 1))


def test_route_explains_and_keeps_to_the_budget(costs):
    result = json.loads(
        p2l("route", "starter", "Prove that 2 + 2 = 4.", "--costs", costs, "--rule", "lp", "--budget", 0.002, "--json")
    )
    assert result["expected_cost"] <= 0.002 + 1e-12
    assert sum(result["choice"].values()) == pytest.approx(1)
    assert {row["model"] for row in result["models"]} == set(json.loads(costs.read_text()))
    assert "best: " in p2l("route", "starter", "-", "--costs", costs, stdin="What is 2 + 2?")
    message = p2l("route", "starter", "x", "--costs", costs, "--rule", "cap", "--budget", 1e-9, status=1)
    assert "the budget 1e-09 is below the cheapest model's cost" in message


def test_train_export_evaluate(train_config, votes_file, tmp_path):
    summary = json.loads(p2l("train", train_config, "-o", tmp_path / "c", "--json"))
    assert summary["models"] == 3
    assert "gate passed" in p2l("export", tmp_path / "c", tmp_path / "b")
    report = json.loads(p2l("evaluate", tmp_path / "b", votes_file, "--json"))
    assert report["p2l"]["log_loss"] < report["marginal"]["log_loss"]


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["score", "starter", "none.jsonl"], 1, "none.jsonl: there is no such file"),
        (
            ["score", "starter", "-", "-o", "x.xlsx"],
            2,
            "x.xlsx: the ending '.xlsx' is not one of .jsonl, .csv, .parquet",
        ),
        (["leaderboard", "nowhere", "-"], 1, "nowhere: neither a folder nor a hub id"),
        (["train", "none.yaml", "-o", "x"], 2, "none.yaml: there is no such file"),
        (["export", "none", "x"], 1, "none: neither a folder nor a hub id"),
        (["score"], 2, "Missing argument"),
        (
            ["route", "starter", "x", "--costs", ROOT / "examples/prices.json", "--rule", "cheap"],
            2,
            "valid: best, cap, lp",
        ),
        (["fly"], 2, "No such command"),
    ],
)
def test_errors_are_one_line(tmp_path, monkeypatch, arguments, status, message):
    if arguments[0] in ("train", "export"):  # the others' errors need no extra
        pytest.importorskip("onnxscript")
        pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    error = called(*arguments, stdin='"x"\n', status=status).stderr
    assert message in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "the file names no models"),
        ('{"gpt-99": 1}', "model 'gpt-99' is not in the bundle; none of the 344 names is near; p2l add-model adds"),
        ('{"o1-mini-2024-09-12": -1}', "o1-mini-2024-09-12: -1 is not a cost; valid: a number (USD per request)"),
        ("[]", "expected a JSON object, found list"),
        ("{", "not valid JSON"),
    ],
)
def test_bad_costs_are_a_sentence(tmp_path, content, message):
    (tmp_path / "c.json").write_text(content)
    assert message in called("route", "starter", "x", "--costs", tmp_path / "c.json", status=1).stderr


def test_an_empty_prompt_is_named(tmp_path):
    (tmp_path / "p.jsonl").write_text('"x"\n{"prompt": " "}\n')
    assert "prompt 2: the prompt is empty" in called("score", "starter", tmp_path / "p.jsonl", status=1).stderr
    assert (
        "there is no such file" not in called("route", "starter", " ", "--costs", tmp_path / "p.jsonl", status=1).stderr
    )


def test_debug_shows_the_traceback(tmp_path):
    result = subprocess.run(
        [sys.executable, "-m", "p2l_plugins.cli", "--debug", "score", "nowhere", "-"],
        input="",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "Traceback" in result.stderr
