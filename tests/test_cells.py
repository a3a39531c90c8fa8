"""What people open: names and prompts of others act neither in a terminal, nor in Markdown, nor in a spreadsheet."""

import ast
import csv
import io
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.markdown import Markdown

from litellm_router.ask.report import to_markdown as ask_report
from litellm_router.replay import to_markdown as replay_report
from p2l_plugins.cells import csv_cell, escaped, padded_table, pipe_table, plain
from p2l_plugins.console import _Plain
from p2l_plugins.leaderboards.categories import CategoryMeans
from p2l_plugins.scoring.scorer import Scores
from p2l_plugins.votes.report import to_text

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("p2l_plugins", "litellm_router", "lmeval_task", "onnx_export")

HOSTILE = (
    '=HYPERLINK("http://x.test/?"&A1)',
    "+1|2",
    "-2+3",
    "@SUM(A1)",
    " =1+1",
    "\t=1+1",
    "\x1b]0;title\x07\x1b[2J\x1b[31mred",
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "![pixel](http://x.test/a.png)",
    "[link](javascript:alert(1))",
    "ends with \\",
    "two\nlines\r\nand | pipes \\| more",
    "\x9b31mc1",
    "\u202egpj.exe",
    "over\rwritten",
)
ACTS_IN_A_TERMINAL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
ORDINARY = ("gpt-4o-mini-2024-07-18", "llama-3_1-70b (q4)", "Qwen/Qwen2.5-72B", "模型", "a*b", "x > y & z", "مرحبا")


def cells_of(line):
    """The cells of a row of a pipe table, as GitHub's Markdown splits it."""
    return [cell.strip() for cell in re.split(r"(?<!\\)(?:\\\\)*\|", line.strip()[1:-1])]


def check_markdown(text):
    assert not ACTS_IN_A_TERMINAL.search(text.replace("\n", ""))
    kinds = {token.type for token in walk(Markdown(text).parsed)}
    assert not kinds & {"html_block", "html_inline", "image", "link_open"}


def walk(tokens):
    for token in tokens:
        yield token
        yield from walk(token.children or ())


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_keeps_to_its_cell(name):
    for table in (pipe_table(["model", "n"], [[name, "1"], ["x", "2"]]), padded_table(["a", "n"], [[name, "1"]])):
        check_markdown(table)
        rows = [line for line in table.splitlines() if line.strip()]
        assert {len(cells_of(row)) for row in rows} == {2}
        body = next(token for token in walk(Markdown(table).parsed) if token.type == "table_open")
        assert body is not None


@pytest.mark.parametrize("name", ORDINARY)
def test_an_ordinary_name_stays_as_it_is(name):
    assert escaped(name) == plain(name) == csv_cell(name) == name


@given(st.text())
def test_any_name_is_one_cell_and_moves_no_cursor(name):
    line = pipe_table(["model", "n"], [[name, "1"]]).splitlines()
    assert len(line) == 3
    assert len(cells_of(line[2])) == 2
    assert not ACTS_IN_A_TERMINAL.search(line[2])
    assert "<" not in line[2]


@given(st.text(max_size=40))
def test_no_cell_of_csv_begins_a_formula(text):
    cell = csv_cell(text)
    assert cell.strip()[:1] not in ("=", "+", "-", "@")
    stream = io.StringIO(newline="")
    csv.writer(stream).writerow([cell])
    assert next(csv.reader(io.StringIO(stream.getvalue(), newline="")), [""]) == [cell] or not cell


@pytest.mark.parametrize("text", HOSTILE)
def test_a_message_on_standard_error_moves_no_cursor(text):
    stream = io.StringIO()
    _Plain(file=stream).print(f"p2l: {text}", markup=False, soft_wrap=True)
    assert not ACTS_IN_A_TERMINAL.search(stream.getvalue().replace("\n", ""))


@pytest.mark.parametrize("sign", ["\ufeff", "\u200b", "\u2060", "\u00ad", "\u200e \ufeff", "\t\u200d"])
@pytest.mark.parametrize("formula", ["=1+1", "@SUM(A1)", "-2+cmd", "＝1"])
def test_a_formula_behind_signs_that_nobody_sees_is_text(sign, formula):
    assert csv_cell(sign + formula) == "'" + sign + formula
    assert csv_cell(sign + "model") == sign + "model"


# ---- the reports


def scores(n=8):
    rng = np.random.default_rng(0)
    models = HOSTILE[:12]
    return Scores(models, rng.normal(size=(n, len(models))).astype(np.float32), np.zeros(n, np.float32), "grk")


def test_a_leaderboard():
    check_markdown(scores().leaderboard().to_markdown())


def test_boards_of_categories():
    found = scores(40)
    means = CategoryMeans(found.models, "grk", frozenset())
    means.add(found.coefs, found.raw_eta, [HOSTILE[7 + i % 6] for i in range(40)])
    check_markdown(means.boards().to_markdown())


def test_the_report_on_votes():
    name = HOSTILE[7]
    empty = {"characters": {}, "mean_characters": 1.0, "several_turns": 0, "most_turns": 1}
    report = {"files": [{"file": name, "votes": 2, "prompts": 1}], "votes": 2, "models": 2, "prompts": 1}
    report |= {"outcomes": {name: 2}, "duplicates": {"same_sides": 0, "either_side": 0}, "length": empty}
    report |= {"conflicts": {"pairs": 0, "votes": 0}, "position": None}
    report |= {"few_votes": {"below": 9, "models": dict.fromkeys(HOSTILE, 1)}}
    report |= {"components": [[HOSTILE[8]], [HOSTILE[9]]], "never_lost": [HOSTILE[6]], "never_won": [HOSTILE[10]]}
    check_markdown(to_text(report))


def test_the_report_of_a_replay():
    row = {"cost": 1.0, "mean_cost": 1.0, "mean_value": 0.5, "requests_without_price": 0}
    rules = [row | {"rule": name, "share": {name: 1.0}} for name in HOSTILE]
    check_markdown(replay_report({"rules": rules, "requests": 1, "models": 1, "paid": None}))


def test_the_report_of_asking():
    one = {"answers": 1, "failures": {"timeout": 1}, "refusals": 0, "empty": 0, "mean_characters": 1.0, "cost_usd": 0.1}
    made = {"models": dict.fromkeys(HOSTILE, one), "mean_scores": dict.fromkeys(HOSTILE, 0.5), "forgotten": 0}
    made |= {"calls_without_a_price": 0, "scores": 1, "prompts_answered": 1, "prompts": 1, "calls": 1}
    check_markdown(ask_report(made | {"calls_of_this_run": 1, "cost_usd": 0.1}))


# ---- one place each


def strings_of(path):
    """Every text that a module holds, with what stands between the braces of its f-strings left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    documentation = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documentation:
            yield node.value


@pytest.mark.parametrize("package", PACKAGES)
def test_tables_and_csv_are_written_in_one_place(package):
    for path in (ROOT / package).rglob("*.py"):
        name = str(path.relative_to(ROOT))
        if name in ("p2l_plugins/cells.py", "onnx_export/sample.py"):  # the latter holds a prompt with a table
            continue
        for text in strings_of(path):
            assert ":---" not in text, f"{name} makes a table by hand: use cells.pipe_table"
            assert not text.startswith("| "), f"{name} makes a table by hand: use cells.pipe_table"
        for line in path.read_text(encoding="utf-8").splitlines():
            if re.search(r"csv\.(Dict)?[wW]riter", line):
                assert "csv_cell" in line, f"{name} writes CSV without cells.csv_cell: {line.strip()}"
