"""Strengths and weaknesses of a model, on real scores of the starter and of made-up ones."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from p2l_plugins import P2L
from p2l_plugins.errors import BundleError, P2LError
from p2l_plugins.leaderboards.categories import CategoryMeans
from p2l_plugins.leaderboards.intervals import relative
from p2l_plugins.leaderboards.strengths import StrengthsOf
from p2l_plugins.outcomes import win_matrix

ROOT = Path(__file__).resolve().parents[2]
MODEL = "gpt-4o-mini-2024-07-18"


@pytest.fixture(scope="module")
def p2l():
    return P2L.load(threads=1)


@pytest.fixture(scope="module")
def scored(p2l):
    rows = [json.loads(line) for line in (ROOT / "examples" / "prompts.jsonl").read_text().splitlines()]
    prompts = [row["prompt"] for row in rows]
    return prompts, p2l.score(prompts), [row["category"] for row in rows]


def strengths_of(p2l, model, examples=5):
    return StrengthsOf(CategoryMeans(p2l.models, p2l.family, p2l.ungrounded), p2l.index(model), examples)


def report_of(p2l, scored, pieces=1, categories=True, model=MODEL):
    prompts, scores, labels = scored
    found = strengths_of(p2l, model, 3)
    for rows in np.array_split(np.arange(len(prompts)), pieces):
        part = dataclasses.replace(scores, coefs=scores.coefs[rows], raw_eta=scores.raw_eta[rows])
        found.add([prompts[i] for i in rows], part, [labels[i] for i in rows] if categories else None)
    return found.report()


@pytest.fixture(scope="module")
def report(p2l, scored):
    return report_of(p2l, scored).to_dict()


def test_the_prompts_are_those_with_the_largest_differences(p2l, scored, report):
    prompts, scores, _ = scored
    board = scores.leaderboard(intervals=False)
    i = p2l.index(MODEL)
    gap = relative(scores.win_rates(), board.apart)[:, i] - relative(board.win_rate, board.apart)[i]
    order = np.argsort(-gap)
    assert [e["prompt"] for e in report["prompts"]["gains"]] == [prompts[k] for k in order[:3]]
    assert [e["prompt"] for e in report["prompts"]["losses"]] == [prompts[k] for k in order[::-1][:3]]
    for example in [*report["prompts"]["gains"], *report["prompts"]["losses"]]:
        assert example["difference"] == pytest.approx(gap[prompts.index(example["prompt"])], abs=1e-5)


def test_the_best_alternative_is_the_best_other_model(p2l, scored, report):
    prompts, scores, labels = scored
    example = report["prompts"]["losses"][0]
    k, i = prompts.index(example["prompt"]), p2l.index(MODEL)
    apart = np.array([name in p2l.bundle.manifest.ungrounded for name in p2l.models])
    best = int(np.argmax(np.where(apart, -np.inf, scores.coefs[k])))
    assert example["best_alternative"]["model"] == p2l.models[best]
    win = win_matrix("grk", scores.coefs[k], scores.raw_eta[k])
    assert example["best_alternative"]["beats"] == pytest.approx(win[best, i], abs=1e-5)
    assert example["best_alternative"]["beaten"] == pytest.approx(win[i, best], abs=1e-5)
    law = next(row for row in report["categories"] if row["category"] == "law")
    rows = [n for n, name in enumerate(labels) if name == "law"]
    part = dataclasses.replace(scores, coefs=scores.coefs[rows], raw_eta=scores.raw_eta[rows])
    assert law["best_alternative"]["model"] == part.leaderboard().rows()[0]["model"]
    assert law["n_prompts"] == 6


def test_categories_stand_from_gain_to_loss_with_their_examples(report):
    gaps = [row["interaction"] for row in report["categories"]]
    assert gaps == sorted(gaps, reverse=True)
    assert len(gaps) == 8
    for row in report["categories"]:
        assert row["interaction_low"] < row["interaction"] < row["interaction_high"]
        for example in [*row["prompts"]["gains"], *row["prompts"]["losses"]]:
            assert example["category"] == row["category"]


def test_reading_in_pieces_changes_nothing(p2l, scored, report):
    pieces = report_of(p2l, scored, pieces=5).to_dict()
    assert pieces["prompts"] == report["prompts"]
    assert [row["category"] for row in pieces["categories"]] == [row["category"] for row in report["categories"]]


def test_without_categories_it_is_about_prompts(p2l, scored, report):
    plain = report_of(p2l, scored, categories=False).to_dict()
    assert plain["categories"] == []
    assert [e["prompt"] for e in plain["prompts"]["gains"]] == [e["prompt"] for e in report["prompts"]["gains"]]


def test_the_best_model_has_another_as_its_alternative(p2l, scored):
    best = scored[1].leaderboard(intervals=False).rows()[0]["model"]
    examples = report_of(p2l, scored, categories=False, model=best).to_dict()["prompts"]
    for example in [*examples["gains"], *examples["losses"]]:
        assert example["best_alternative"]["model"] != best


def test_an_ungrounded_model_is_compared_with_its_kind(p2l, scored):
    report = report_of(p2l, scored, categories=False, model="llama-7b").to_dict()
    assert report["prompts"]["gains"][0]["best_alternative"]["model"] in p2l.bundle.manifest.ungrounded


def test_the_reports_quote_the_prompts_and_escape_them(p2l, scored):
    prompts, scores, _ = scored
    found = strengths_of(p2l, MODEL)
    nasty = ["<img src=x onerror=alert(1)> | " + "long " * 1000, *prompts[1:]]
    found.add(nasty, scores, ["a", "b"] * 24)
    report = found.report()
    page = report.to_html()
    assert "<img" not in page
    assert max(map(len, report.to_markdown().splitlines())) < 600
    text = report.to_markdown()
    assert report.to_dict()["prompts"]["losses"][0]["prompt"][:40] in text
    assert "Over all 48 prompts: rank" in text


def test_unknown_models_and_no_prompts_are_a_sentence(p2l):
    with pytest.raises(BundleError, match="model 'gpt-99' is not in the bundle; none of the 344 names is near"):
        strengths_of(p2l, "gpt-99")
    with pytest.raises(P2LError, match="at least one prompt"):
        strengths_of(p2l, MODEL).report()
