from __future__ import annotations

import json
import re

import numpy as np
import pytest
from lm_eval import evaluate
from lm_eval.models.dummy import DummyLM
from typer.testing import CliRunner

from lmeval_task import load_p2l
from lmeval_task.commands import app
from lmeval_task.pairs import combined, pack, unpack
from lmeval_task.run_report import read_report
from lmeval_task.task import P2LLeaderboard
from p2l_plugins.errors import DataError

BENCHES = {"cases": ["law", "law law", "math law", "law of poem", "x"], "sums": ["math"] * 5 + ["math poem", "poem"]}


def run_tasks(bundle, folder):
    """lm-eval's results of the leaderboards of both benchmarks."""
    tasks = {}
    for name in BENCHES:
        metadata = {"p2l_bundle": str(bundle), "p2l_include_path": str(folder), "p2l_model": "beta"}
        tasks[f"p2l_{name}"] = P2LLeaderboard({"task": f"p2l_{name}", "p2l_source": name, "metadata": metadata})
    return evaluate(DummyLM(), {"tasks": tasks, "groups": {}}, bootstrap_iters=0, log_samples=False)


@pytest.fixture
def results(bundles, write_task, tmp_path):
    for name, questions in BENCHES.items():
        folder = write_task(name, questions)
    found = run_tasks(bundles["grk"], folder)
    found["results"]["sums"] = {"alias": "sums", "acc,none": 0.25, "acc_stderr,none": 0.125}
    return write(tmp_path / "results.json", found)


def write(path, found):
    path.write_text(json.dumps(found, allow_nan=False, default=str))
    return path


def changed(path, change, name="changed.json"):
    found = json.loads(path.read_text())
    change(found)
    return write(path.parent / name, found)


def call(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments], prog_name="p2l-lm-eval")


@pytest.mark.parametrize("family", ["bt", "grk"])
def test_the_overall_leaderboard_is_that_of_all_prompts_together(bundles, family):
    p2l = load_p2l(str(bundles[family]))
    sets = list(BENCHES.values())
    parts = [(len(prompts), pack(p2l.score(prompts))) for prompts in sets]
    board = combined(tuple(sorted(p2l.models)), family, parts)
    together = p2l.score([prompt for prompts in sets for prompt in prompts]).leaderboard()
    position = [board.models.index(name) for name in p2l.models]
    assert board.coefs[position] == pytest.approx(together.coefs, abs=1e-5)
    assert board.win_rate[position] == pytest.approx(together.win_rate, abs=1e-6)
    assert board.n_prompts == together.n_prompts
    assert (board.raw_eta is None) == (family == "bt")


def test_the_report_has_the_boards_with_intervals_and_the_rank_changes(results, bundles):
    report = read_report([results])
    p2l = load_p2l(str(bundles["grk"]))
    assert [board.name for board in report.boards] == list(BENCHES)
    for board in report.boards:
        assert board.rows == p2l.score(BENCHES[board.name]).leaderboard().rows()
        assert all(row["rank_low"] <= row["rank"] <= row["rank_high"] for row in board.rows)
    assert report.n_prompts == 12
    places = {row["model"]: row["rank"] for row in report.overall}
    assert sorted(places.values()) == [1, 2, 3, 4]
    for i, board in enumerate(report.boards):
        for row in board.rows:
            assert report.changes[row["model"]][i] == places[row["model"]] - row["rank"]
    assert any(change for row in report.changes.values() for change in row)
    for row in report.overall:
        assert row["win_rate_low"] < row["win_rate"] < row["win_rate_high"]


def test_the_overall_interval_of_the_win_rate_is_about_that_of_all_prompts(bundles, write_task, tmp_path):
    rng = np.random.default_rng(0)
    sets = {name: [" ".join(rng.choice(["math", "law", "poem"], 3)) for _ in range(60)] for name in BENCHES}
    for name, questions in sets.items():
        folder = write_task(name, questions)
    report = read_report([write(tmp_path / "r.json", run_tasks(bundles["grk"], folder))])
    together = load_p2l(str(bundles["grk"])).score([q for prompts in sets.values() for q in prompts]).leaderboard()
    widths = {row["model"]: row["win_rate_high"] - row["win_rate_low"] for row in together.rows()}
    for row in report.overall:
        assert row["win_rate_high"] - row["win_rate_low"] == pytest.approx(widths[row["model"]], rel=0.25)


def test_markdown_html_and_figure_are_written(results, tmp_path):
    done = call("report", results, "--out", tmp_path / "out", "--top", 3)
    assert done.exit_code == 0, done.output
    text = (tmp_path / "out" / "report.md").read_text()
    assert "## All benchmarks (12 prompts)" in text
    assert "Its score on sums: acc 0.2500 ± 0.1250" in text
    assert re.search(r"Evaluated model beta: rank \d \(\d(–\d)?\), win rate \d", text)
    assert text.count("| rank | model | ranks | coefficient | interval | win rate | P(usable) |") == 2
    assert "| model | cases | sums |" in text
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.startswith("<!doctype html>")
    assert not re.search(r"<script|src=|href=|@import|url\(", page)
    assert (tmp_path / "out" / "rank_changes.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in (tmp_path / "out").glob(".*")] == []


def test_names_are_escaped_in_the_page_and_in_markdown(results, tmp_path):
    def rename(found):
        record = found["configs"]["p2l_sums"]["p2l"]
        record["source"] = "<b>sums|x</b>"

    path = changed(results, rename)
    page, text = tmp_path / "page.html", tmp_path / "page.md"
    assert call("report", path, "--html", page, "--markdown", text).exit_code == 0
    assert "<b>" not in page.read_text()
    assert "&lt;b&gt;sums|x&lt;/b&gt;" in page.read_text()
    assert "## &lt;b>sums\\|x&lt;/b> (7 prompts)" in text.read_text()


def test_the_same_report_gives_the_same_files(results, tmp_path):
    for name in ("one", "two"):
        assert call("report", results, "--figure", tmp_path / f"{name}.svg", "--html", tmp_path / name).exit_code == 0
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_stdout_is_markdown_or_json(results):
    assert call("report", results).output.startswith("# P2L on benchmarks")
    record = json.loads(call("report", results, "--json").stdout)
    assert record["n_prompts"] == 12
    assert [b["name"] for b in record["benchmarks"]] == list(BENCHES)


def test_several_runs_are_put_together(results):
    def other_sums(found):
        record = found["configs"]["p2l_sums"]["p2l"]
        record["n_prompts"] = 70
        del found["configs"]["p2l_cases"]

    again = read_report([results, changed(results, lambda found: None, "same.json")])
    assert len(again.boards) == 2
    more = read_report([results, changed(results, other_sums, "later.json")])
    assert [board.name for board in more.boards] == ["cases", "sums", "sums (later.json)"]
    assert more.n_prompts == 82


def test_one_benchmark_alone_is_its_own_overall(results):
    path = changed(results, lambda found: found["configs"].pop("p2l_cases"))
    report = read_report([path])
    assert list(report.overall) == report.boards[0].rows
    assert "## Rank changes" not in call("report", path).output


def bad_pairs(found):
    found["configs"]["p2l_sums"]["p2l"]["pairs"] = "AAAA"


def other_bundle(found):
    found["configs"]["p2l_sums"]["p2l"]["fingerprint"] = "0" * 32


def no_rows(found):
    del found["configs"]["p2l_sums"]["p2l"]["leaderboard"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda found: found.pop("configs"), "not a results file of lm-eval"),
        (lambda found: found.update(configs={}), "no task of P2L in it"),
        (bad_pairs, "the pair probabilities of a leaderboard can't be used"),
        (other_bundle, "report on bundles one by one"),
        (no_rows, "what the task 'p2l_sums' says of P2L is incomplete"),
    ],
)
def test_files_that_say_nothing_of_p2l_are_refused(results, change, message):
    with pytest.raises(DataError, match=message):
        read_report([changed(results, change)])


def test_a_figure_needs_two_benchmarks_and_a_known_ending(results, tmp_path):
    alone = changed(results, lambda found: found["configs"].pop("p2l_cases"))
    assert "there are 1" in str(call("report", alone, "--figure", tmp_path / "x.png").exception)
    assert "'.gif' is not one of" in str(call("report", results, "--figure", tmp_path / "x.gif").exception)
    assert not list(tmp_path.glob("x.*"))


def test_pairs_that_unpack_to_more_than_they_should_are_refused(bundles):
    text = pack(load_p2l(str(bundles["grk"])).score(["math"]))
    win, bad = unpack(text, 4)
    assert np.allclose(np.diag(win), 0)
    assert np.allclose(bad, bad.T)
    with pytest.raises(DataError, match="not those of 3 models"):
        unpack(text, 3)
    with pytest.raises(DataError, match="can't be read"):
        unpack("no base64!", 4)
