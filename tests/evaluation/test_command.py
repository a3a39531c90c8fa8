"""`p2l evaluate` as a user runs it, on the starter and files made on the spot."""

import json

import numpy as np
import pytest
from helpers.command import called

from p2l_plugins.evaluation import figures
from p2l_plugins.evaluation.calibration import Calibrations, calibration

NAMES = ("gpt-4o-2024-08-06", "gpt-4o-mini-2024-07-18", "claude-3-haiku-20240307")
PRICES = {
    NAMES[0]: {"input_price": 2.5, "output_price": 10, "output_tokens": 200},
    NAMES[1]: {"input_price": 0.15, "output_price": 0.6},
    NAMES[2]: 0.0004,
}


def evaluate(*arguments, status=0):
    result = called("evaluate", "starter", *arguments, status=status)
    return result.stdout if status == 0 else result.stderr


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluate")
    rng = np.random.default_rng(0)
    for name, n in (("test", 40), ("base", 60)):
        rows = [
            {"prompt": f"{name}: what is {i} + {i * i}?", "category": ("sum", "word")[i % 2]}
            | {model: float(rng.random() < p) for model, p in zip(NAMES, (0.8, 0.6, 0.3), strict=True)}
            for i in range(n)
        ]
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    vote = {"prompt": "hi", "model_a": NAMES[0], "model_b": NAMES[1], "winner": "model_a"}
    (folder / "votes.jsonl").write_text(json.dumps(vote) + "\n" + json.dumps({**vote, "winner": "tie"}))
    (folder / "costs.json").write_text(json.dumps(PRICES))
    return folder


def test_all_at_once(files, tmp_path):
    options = ("--baseline-votes", files / "base.jsonl", "--costs", files / "costs.json", "--bins", 5)
    text = evaluate(
        files / "test.jsonl", *options, "--bin-table", "--figure", tmp_path / "r.svg", "--curve", tmp_path / "c.png"
    )
    assert text.startswith("40 prompts, 120 votes, ")
    assert "baselines fitted on 60 other prompts" in text
    for row in ("category marginal", "calibration error", "both bad", "routed score, 3 models", "oracle", "cap: cost"):
        assert row in text
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
    drawn = (tmp_path / "r.svg").read_bytes()
    report = json.loads(evaluate(files / "test.jsonl", *options, "--json", "--figure", tmp_path / "again.svg"))
    assert (tmp_path / "again.svg").read_bytes() == drawn
    assert report["n_baseline_prompts"] == 60
    assert {"p2l", "marginal", "category_marginal", "constant", "differences", "calibration"} <= set(report)
    bins = report["calibration"]["p2l"]["classes"]["win"]["bins"]
    assert sum(b["n"] for b in bins) == 240
    assert len(bins) <= 5
    assert set(report["curve"]["curves"]) == {"paced", "lp", "cap", "marginal"}
    cost = report["curve"]["curves"]["lp"]["points"][-1]["cost"]
    assert 0.0003 < cost < 0.0022
    wide = json.loads(evaluate(files / "test.jsonl", *options[:2], "--equal-width", "--json"))
    assert wide["calibration"]["p2l"] != report["calibration"]["p2l"]
    assert "curve" not in wide


def test_votes_without_a_baseline(files):
    text = evaluate(files / "votes.jsonl")
    assert "1 prompts, 2 votes, 1 decisive; baselines cross-fitted" in text
    assert "Note: routing is judged on score matrices" in text


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["test.jsonl", "--curve", "c.png"], 2, "--curve needs --costs"),
        (["test.jsonl", "--figure", "c.gif"], 2, "c.gif: the ending '.gif' is not one of .png, .svg, .pdf"),
        (["votes.jsonl", "--costs", "costs.json"], 1, "--costs needs a score matrix; this is a votes file"),
        (["test.jsonl", "--costs", "twice.json"], 1, "is named twice"),
        (["test.jsonl", "--costs", "wrong.json"], 1, "optional: output_tokens), at least 0"),
        (["test.jsonl", "--costs", "costs.json", "--objective", "fame"], 2, "valid: win_rate, usable"),
        (["none.jsonl"], 1, "none.jsonl: there is no such file"),
    ],
)
def test_errors_are_one_line(files, monkeypatch, arguments, status, message):
    monkeypatch.chdir(files)
    (files / "twice.json").write_text('{"gpt-4o-2024-08-06": 1, "gpt-4o-2024-08-06 ": 1}')
    (files / "wrong.json").write_text(
        '{"gpt-4o-2024-08-06": {"input_price": 1, "output_price": 1, "output_tokens": "x"}}'
    )
    if arguments[-1] == "twice.json":
        from p2l_plugins import P2L

        p2l = P2L.load("starter")
        alias, name = next(iter(p2l.bundle.manifest.aliases.items()))
        (files / "twice.json").write_text(json.dumps({alias: 1, name: 2}))
        message = f"the model {name!r} {message}"
    assert message in evaluate(*arguments, status=status)


def test_a_panel_is_drawn_for_each_outcome_that_the_family_has(tmp_path):
    rng = np.random.default_rng(0)
    p = rng.random(300)
    c = calibration(p, (rng.random(300) < p).astype(float), np.ones(300), np.arange(300))
    for classes in ({"win": c}, {"win": c, "tie": c, "decisive": c}):
        both = Calibrations(c.error, c.expected, classes)
        figures.reliability_diagram({"p2l": both, "marginal": both}, tmp_path / "f.pdf", "title")
        assert (tmp_path / "f.pdf").read_bytes().startswith(b"%PDF")
