"""`p2l leaderboard`, `p2l strengths` and `p2l score` as a user runs them, in this process."""

import json
import sys
from pathlib import Path

import pytest

from p2l_plugins.cli import main

ROOT = Path(__file__).resolve().parent.parent
PROMPTS = ROOT / "examples" / "prompts.jsonl"
MODEL = "gpt-4o-mini-2024-07-18"


@pytest.fixture
def p2l(monkeypatch, capsys):
    def run(*arguments, status=0):
        monkeypatch.setattr(sys, "argv", ["p2l", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        assert (ended.value.code or 0) == status, err
        return out if status == 0 else err

    return run


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """A dozen prompts of three categories, some without one, by four users."""
    rows = [json.loads(line) for line in PROMPTS.read_text().splitlines()]
    rows = [row for row in rows if row["category"] in ("law", "physics", "writing")][:12]
    rows[3]["category"] = None
    path = tmp_path_factory.mktemp("few") / "few.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_leaderboard_with_intervals(p2l, few):
    table = p2l("leaderboard", "starter", few, "--top", 4)
    assert table.startswith("| rank | model | coefficient | 95% interval | ranks | win rate | P(usable) |")
    assert table.endswith("\n12 prompts\n")
    board = json.loads(p2l("leaderboard", "starter", few, "--json"))
    assert board["intervals"] == {"level": 0.95, "units": 12}
    assert all(row["coef_low"] < row["coef"] < row["coef_high"] for row in board["leaderboard"])


def test_clusters_opponents_seed_and_another_board(p2l, few, tmp_path):
    other = tmp_path / "other.json"
    against = f"{MODEL}, gpt-4o-2024-08-06"
    p2l("leaderboard", "starter", PROMPTS, "--opponents", against, "-o", other)
    users = len({json.loads(line)["user"] for line in few.read_text().splitlines()})
    board = json.loads(
        p2l("leaderboard", "starter", few, "--clusters", "user", "--opponents", against,
            "--against", other, "--seed", 3, "--json")
    )  # fmt: skip
    assert board["intervals"]["units"] == users
    assert board["opponents"] == {MODEL: 1.0, "gpt-4o-2024-08-06": 1.0}
    assert board["reference"] == str(other)
    grounded = [row for row in board["leaderboard"] if row.get("grounded", True)]
    assert all(row["difference_low"] < row["difference"] < row["difference_high"] for row in grounded)
    assert board["leaderboard"][-1]["win_rate"] is None  # ungrounded models have no opponent among these
    table = p2l("leaderboard", "starter", few, "--opponents", against, "--against", other, "--top", 2)
    assert f"− {other}" in table
    message = "other.json: its win rates are against other opponents"
    assert message in p2l("leaderboard", "starter", few, "--against", other, status=1)


def test_by_category_everything_is_written(p2l, few, tmp_path):
    html, plot, table = tmp_path / "b.html", tmp_path / "b.png", tmp_path / "b.md"
    out = p2l(
        "leaderboard", "starter", few, "--by", "category", "--html", html, "--plot", plot, "-o", table, "--top", 5
    )
    assert out == ""
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert "Leaderboard by category: 12 prompts, bundle starter" in html.read_text()
    assert "## law (" in table.read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.html", "b.md", "b.png"]
    boards = json.loads(p2l("leaderboard", "starter", few, "--by", "category", "--json"))
    assert list(boards["categories"]) == ["law", "physics", "writing"]
    assert boards["n_prompts"] == 12
    assert sum(board["n_prompts"] for board in boards["categories"].values()) == 11


def test_the_prompt_may_stand_in_another_column(p2l, few, tmp_path):
    """The other one named prompt is then a column like others."""
    rows = [json.loads(line) for line in few.read_text().splitlines()]
    moved = [{"question": row["prompt"], "prompt": row["category"]} for row in rows]
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in moved))
    here = ("--prompt-field", "question")
    plain = p2l("leaderboard", "starter", few, "--by", "category", "--json")
    assert p2l("leaderboard", "starter", path, *here, "--by", "prompt", "--json") == plain
    assert p2l("score", "starter", path, *here) == p2l("score", "starter", few)
    report = json.loads(p2l("strengths", "starter", path, *here, "--model", MODEL, "--json"))
    assert report["prompts"]["gains"][0]["prompt"] in [row["prompt"] for row in rows]
    wrong = p2l("leaderboard", "starter", path, "--prompt-field", "text", status=1)
    assert "column 'text' is missing; the file has 'question', 'prompt'" in wrong
    lines = tmp_path / "lines.txt"
    lines.write_text("hi\n")
    assert "has no columns: each line is a prompt" in p2l("leaderboard", "starter", lines, *here, status=2)


def test_discovered_topics(p2l):
    boards = json.loads(p2l("leaderboard", "starter", PROMPTS, "--discover", 3, "--json"))
    assert 2 <= len([name for name in boards["categories"] if name not in boards.get("parents", {})]) <= 3
    assert boards["n_prompts"] == 48


def test_strengths(p2l, few, tmp_path):
    page = tmp_path / "s.html"
    text = p2l("strengths", "starter", few, "--model", MODEL, "--by", "category", "--html", page, "--examples", 2)
    assert text.startswith(f"# Strengths and weaknesses of {MODEL}")
    assert "## Loses most on" in text
    assert f"<title>Strengths and weaknesses of {MODEL}</title>" in page.read_text()
    report = json.loads(p2l("strengths", "starter", few, "--model", MODEL, "--json"))
    assert report["categories"] == []
    assert report["prompts"]["losses"]


def test_score_resumes(p2l, few, tmp_path):
    rows = [json.loads(line) for line in p2l("score", "starter", few).splitlines()]
    output = tmp_path / "s.jsonl"
    summary = json.loads(p2l("score", "starter", few, "-o", output, "--resume", "--json"))
    assert summary == {"prompts": 12, "models": 344, "output": str(output)}
    assert [json.loads(line) for line in output.read_text().splitlines()] == rows


BAD = {
    "one.jsonl": '{"prompt": "x", "c": "only"}\n{"prompt": "y", "c": "only"}\n',
    "none.jsonl": '{"prompt": "x", "c": null}\n{"prompt": "y", "c": NaN}\n',
    "many.jsonl": "".join(f'{{"prompt": "x", "c": {i}}}\n' for i in range(70)),
    "list.jsonl": '{"prompt": "x", "c": ["a"]}\n',
    "empty.jsonl": "",
}


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["leaderboard", "one.jsonl", "--by", "c"], 1, "one.jsonl: column 'c' holds one category only, 'only'"),
        (["leaderboard", "none.jsonl", "--by", "c"], 1, "column 'c' holds no category; --by needs at least two"),
        (["leaderboard", "many.jsonl", "--by", "c"], 1, "column 'c' holds more than 64 categories"),
        (
            ["leaderboard", "list.jsonl", "--by", "c"],
            1,
            "list.jsonl: prompt 1, column 'c': a category or group is text or a number, not list",
        ),
        (["leaderboard", "one.jsonl", "--by", "d"], 1, "column 'd' is missing; the file has 'prompt', 'c'"),
        (["leaderboard", "one.jsonl", "--clusters", "d"], 1, "column 'd' is missing"),
        (["leaderboard", "list.jsonl", "--clusters", "c"], 1, "column 'c': a category or group is text or a number"),
        (["leaderboard", "empty.jsonl"], 1, "empty.jsonl: the file holds no rows"),
        (["leaderboard", "one.jsonl", "--by", "c", "--discover", "2"], 2, "choose one"),
        (["leaderboard", "one.jsonl", "--discover", "2"], 1, "2 prompts are too few for 2 topics; at least 4"),
        (["leaderboard", "one.jsonl", "--opponents", "gpt-99"], 1, "model 'gpt-99' is not in the bundle"),
        (["leaderboard", "one.jsonl", "--opponents", ","], 2, "name at least one model"),
        (["leaderboard", "one.jsonl", "--plot", "x.gif"], 2, "x.gif: the ending '.gif' is not one of .png, .svg, .pdf"),
        (["leaderboard", "one.jsonl", "--html", "no/x.html"], 2, "there is no folder no"),
        (["leaderboard", "one.jsonl", "--against", "none.json"], 1, "none.json: there is no such file"),
        (["leaderboard", "one.jsonl", "--against", "x", "--by", "c"], 2, "--against compares one leaderboard"),
        (["strengths", "one.jsonl", "--model", "gpt-99"], 1, "model 'gpt-99' is not in the bundle"),
        (["strengths", "one.jsonl"], 2, "Missing option '--model'"),
        (["score", "one.jsonl", "--resume"], 2, "--resume needs --output"),
        (["score", "one.jsonl", "--engine", "ray"], 2, "--engine ray needs --output"),
        (["score", "one.jsonl", "--engine", "spark"], 2, "--engine is 'spark'; valid: local, ray"),
        (["score", "one.jsonl", "-o", "no/x.csv"], 2, "there is no folder no"),
    ],
)
def test_mistakes_are_one_sentence_and_write_nothing(p2l, tmp_path, monkeypatch, arguments, status, message):
    monkeypatch.chdir(tmp_path)
    for name, text in BAD.items():
        Path(name).write_text(text)
    command, file, *options = arguments
    error = p2l(command, "starter", file, *options, status=status)
    assert message in " ".join(error.split())
    assert "Traceback" not in error
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(BAD)
