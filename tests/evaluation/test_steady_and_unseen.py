"""The benchmarks of steady decisions and of prompts unlike the training, on a bundle of three words."""

import importlib
import json
import random
import re
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from helpers.word_bundle import write_bundle

from p2l_plugins.outcomes import log_probabilities
from p2l_plugins.scoring.scorer import P2L
from p2l_plugins.training.phrases import TRAINING
from p2l_plugins.votes.read import read_votes

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
PRICES = {"alpha": (3.0, 15.0), "beta": (1.0, 5.0), "gamma": (0.1, 0.4)}


@pytest.fixture
def load(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("words") / "bundle")


def run(module, monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", [module.__name__, *map(str, arguments)])
    module.main()


def matrix(path: Path, scores: dict[str, dict[str, float]]) -> None:
    path.write_text("".join(json.dumps({"prompt": prompt, **row}) + "\n" for prompt, row in scores.items()))


def test_no_phrase_of_the_benchmark_is_one_of_the_training(load):
    held_out = load("robustness").HELD_OUT
    for field in fields(TRAINING):
        learnt, judged = getattr(TRAINING, field.name), getattr(held_out, field.name)
        pairs = [(learnt, judged)] if isinstance(judged, tuple) else [(learnt.get(k, ()), v) for k, v in judged.items()]
        for ours, theirs in pairs:
            assert {text.lower() for text in ours}.isdisjoint({text.lower() for text in theirs}), field.name
            assert len(theirs) == len(set(theirs)) > 0


def test_the_multiplier_holds_the_budget(load):
    robustness = load("robustness")
    rng = np.random.default_rng(0)
    value, cost = rng.random((500, 4)), np.tile([1.0, 2.0, 4.0, 8.0], (500, 1))
    rows = np.arange(500)
    for budget in (1.2, 2.0, 3.0):
        multiplier = robustness.multiplier_for(value, cost, budget)
        spent = cost[rows, robustness.chosen(value, cost, multiplier)].mean()
        assert budget - 0.05 < spent <= budget
    assert robustness.multiplier_for(value, cost, 9.0) == 0.0


def test_the_search_finds_words_that_move_choices(load, bundle):
    robustness = load("robustness")
    group = robustness.Group.of(P2L.load(bundle), PRICES)
    prompts = [("code",), ("code code",), ("chat", "code code code")]
    words, drawn = robustness.search(group, prompts, ["math", *(f"word{i}" for i in range(30))], random.Random(0))
    assert len(words) == 8
    assert words.count("math") >= 3
    assert drawn < 0.5
    moved = group.values(robustness.followed(prompts, words)).argmax(axis=1)
    assert (moved == group.dearest).all()


def test_the_benchmark_of_steady_choices_prints_and_writes_its_tables(load, bundle, monkeypatch, tmp_path, capsys):
    robustness = load("robustness")
    scored = {"alpha": 1, "beta": 0}
    names = {0: "chat", 1: "math", 2: "code"}
    matrix(tmp_path / "a.jsonl", {f"Some {names[i % 3]} in turn {i}, or not.": scored for i in range(100)})
    (tmp_path / "recipe.yaml").write_text("name: x\nheld_out: 0.5\ndata:\n  - {path: a.jsonl}\n")
    page = tmp_path / "results.md"
    page.write_text("# Page\n\n<!-- benchmarks/robustness.py -->\nold\n<!-- robustness ends -->\n\nafter\n")
    prices = [f"--model={name}={read},{written}" for name, (read, written) in PRICES.items()]
    shared = ("--data", tmp_path, "--recipe", tmp_path / "recipe.yaml", "--bundle", bundle, "--searched", 10, *prices)
    run(robustness, monkeypatch, *shared, "--prompts", 9, "--write", tmp_path)
    text = capsys.readouterr().out
    assert text.startswith("57 prompts; alpha, beta, gamma\n")
    rows = dict(re.findall(r"^\| ([a-z].*?) \| \d+ \| (\d\.\d{3}) ± .*\|$", text, re.M))
    assert set(rows) >= {"please", "greeting", "thanks", "typos, 1 in 40 characters", "upper case", "injected block"}
    assert rows["please"] == rows["greeting"] == rows["thanks"] == "1.000"  # the bundle knows no such word
    assert float(rows["upper case"]) < 1  # nor MATH
    assert page.read_text().endswith("<!-- robustness ends -->\n\nafter\n")
    assert "| please | 57 | 1.000" in page.read_text()
    assert "old" not in page.read_text()
    page.write_text("# Page\n")
    with pytest.raises(SystemExit, match=r"results\.md: has no lines"):
        robustness.write(tmp_path, text)


def test_a_bundle_without_any_of_the_groups_says_how_to_give_one(load, bundle):
    with pytest.raises(SystemExit, match="--model NAME=INPUT,OUTPUT"):
        load("robustness").priced([], P2L.load(bundle))


def test_the_starter_has_one_of_the_groups(load):
    robustness, starter = load("robustness"), P2L.load()
    assert robustness.Group.of(starter, robustness.priced([], starter)).columns.size == 6


def test_a_left_out_set_is_judged_beside_the_board_of_the_others(load, bundle, monkeypatch, tmp_path, capsys):
    # the others say that alpha is best; on the set left out, alpha is best at math and beta at code
    matrix(tmp_path / "a.jsonl", {f"chat {i}": {"alpha": 1, "beta": i % 2, "gamma": 0, "delta": 1} for i in range(60)})
    own = {f"math {i}": {"alpha": 1, "beta": 0, "epsilon": 1} for i in range(40)}
    own |= {f"code {i}": {"alpha": 0, "beta": 1, "epsilon": 1} for i in range(20)}
    matrix(tmp_path / "b.jsonl", own | {"chat 3": {"alpha": 0, "beta": 1, "epsilon": 1}})
    (tmp_path / "recipe.yaml").write_text("name: x\ndata:\n  - {path: a.jsonl}\n  - {path: b.jsonl}\n")
    unseen = load("unseen")
    run(
        unseen, monkeypatch, "--data", tmp_path, "--recipe", tmp_path / "recipe.yaml", "--left-out", f"b.jsonl={bundle}"
    )
    text = capsys.readouterr().out
    routed, loss = (line.split(" | ") for line in text.splitlines() if line.startswith("| b |"))
    assert routed[:5] == ["| b", "60", "2", "1.0000", "0.6667 (alpha)"]  # without the prompt that both sets have
    gain, error = map(float, routed[5].split(" ± "))
    assert gain == pytest.approx(1 / 3, abs=1e-4)
    assert error == pytest.approx(np.std([0] * 40 + [1] * 20, ddof=1) / np.sqrt(60), abs=1e-4)
    assert routed[6] == "0.6667 (alpha) |"
    p2l, board = float(loss[3]), float(loss[4])
    # the coefficients of the winner and the loser: 2 and 1 at math, 2 and 0 at code
    log_p = log_probabilities("grk", np.array([2.0, 2.0]), np.array([1.0, 0.0]), np.zeros(2))
    odds = log_p[:, 0] - log_p[:, 1]
    assert p2l == pytest.approx(np.average(np.logaddexp(0, -odds), weights=[40, 20]), abs=1e-4)
    assert p2l < board
    assert float(loss[5].split(" ± ")[0]) == pytest.approx(p2l - board, abs=2e-4)


def test_only_votes_between_known_models_are_judged(load, tmp_path):
    matrix(tmp_path / "b.jsonl", {"p": {"alpha": 1, "beta": 0, "new": 1}, "q": {"alpha": 1, "new": 0}})
    votes = load("unseen").among(read_votes(tmp_path / "b.jsonl"), ("beta", "alpha", "gamma"))
    assert set(votes.models) == {"alpha", "beta"}
    assert votes.prompts == [("p",)]
    assert len(votes) == 1
    assert votes.scores.shape == (1, 2)
