"""A conversation is the same prompt in every form that a file can hold it in, and in every command."""

import csv
import json

import pytest
from typer.testing import CliRunner

from p2l_plugins import P2L
from p2l_plugins.cli import app
from p2l_plugins.prompts import conversation_in

TURNS = ["Prove that 2 + 2 = 4.", "and now in French"]
MESSAGES = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": TURNS[0]},
    {"role": "assistant", "content": "It is so."},
    {"role": "user", "content": [{"type": "text", "text": TURNS[1]}]},
]
TEXT = "[1, 2] is a list of numbers"
FORMS = ["turns.jsonl", "messages.jsonl", "messages.json", "turns.csv", "messages.csv", "messages.parquet"]


def run(*arguments):
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == 0, (result.output, result.exception)
    return result.stdout


def write(path, columns):
    """Two rows: the conversation in the form that the file's name says, and a text."""
    first = TURNS if path.stem == "turns" else MESSAGES
    rows = [{"prompt": prompt, **columns} for prompt in (first, TEXT)]
    if path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    elif path.suffix == ".csv":
        with path.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, rows[0])
            writer.writeheader()
            writer.writerows([{**rows[0], "prompt": json.dumps(first)}, rows[1]])
    else:
        pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        plain = [{"role": m["role"], "content": m["content"]} for m in MESSAGES[:3]]
        plain.append({"role": "user", "content": TURNS[1]})
        second = [{"role": "user", "content": TEXT}]
        table = {"prompt": [plain, second], **{name: [value] * 2 for name, value in columns.items()}}
        pq.write_table(pa.table(table), path)
    return path


@pytest.fixture(scope="module")
def models():
    return P2L.load().models[:2]


def votes(models):
    return {"model_a": models[0], "model_b": models[1], "winner": "tie"}


def scored(path, models):
    rows = [json.loads(line) for line in run("score", "starter", write(path, {})).splitlines()]
    return [(list(row["coefs"].values()), row["raw_eta"]) for row in rows]


def board(path, models):
    return json.loads(run("leaderboard", "starter", write(path, {}), "--json"))


def evaluated(path, models):
    return json.loads(run("evaluate", "starter", write(path, votes(models)), "--json"))


def checked(path, models):
    return json.loads(run("votes", "check", write(path, votes(models)), "--json"))["length"]


def imported(path, models):
    out = path.with_name("out.jsonl")
    run("votes", "from-arena", write(path, votes(models)), "-o", out)
    return out.read_text()


def from_scores(path, models):
    out = path.with_name("out.jsonl")
    run("votes", "from-scores", write(path, {"x": 1.0, "y": 0.0}), "-o", out)
    return out.read_text()


@pytest.mark.parametrize("command", [scored, board, evaluated, checked, imported, from_scores])
def test_a_conversation_is_the_same_prompt_in_every_file(command, tmp_path, models):
    results = [command(tmp_path / name, models) for name in FORMS]
    for name, result in zip(FORMS, results, strict=True):
        assert result == results[0], name
    if command is imported:
        assert [json.loads(line)["prompt"] for line in results[0].splitlines()] == [TURNS, TEXT]


@pytest.mark.parametrize("prompt", [TURNS, MESSAGES])
def test_route_takes_it_as_json(prompt, tmp_path, models):
    costs = tmp_path / "costs.json"
    costs.write_text(json.dumps({name: {"input_price": 1.0, "output_price": 2.0} for name in models}))
    routed = json.loads(run("route", "starter", json.dumps(prompt), "--costs", costs, "--json"))
    expected = P2L.load().score([TURNS])
    found = {row["model"]: row["coef"] for row in routed["models"]}
    assert found == pytest.approx({m: round(float(expected.coefs[0, i]), 6) for i, m in enumerate(models)})
    tokens = -(-sum(map(len, TURNS)) // 4)
    assert routed["models"][0]["cost"] == pytest.approx((tokens * 1.0 + 500 * 2.0) / 1e6)


@pytest.mark.parametrize("text", ["[1, 2]", "[]", "[null]", '[{"a": 1}]', '["a", 1]', "[not JSON", "[" * 100_000])
def test_other_text_in_brackets_is_a_text(text):
    assert conversation_in(text) == text


def test_what_score_writes_is_read_back(tmp_path, models):
    out = tmp_path / "scores.csv"
    run("score", "starter", write(tmp_path / "messages.jsonl", {}), "-o", out)
    first = scored(tmp_path / "turns.jsonl", models)
    again = [json.loads(line) for line in run("score", "starter", out).splitlines()]
    assert [row["prompt"] for row in again] == [TURNS, TEXT]
    assert [(list(row["coefs"].values()), row["raw_eta"]) for row in again] == first
