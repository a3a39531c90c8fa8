"""The leaderboard of votes: published examples, independent solvers, and what the votes can't say."""

import json

import choix
import numpy as np
import pytest
from scipy.optimize import minimize

from p2l_plugins.cli import main
from p2l_plugins.errors import DataError
from p2l_plugins.leaderboards.measured import category_boards, only_connected, votes_board
from p2l_plugins.leaderboards.votes_fit import covariance
from p2l_plugins.outcomes import BAD, TIE, A, B, negative_log_likelihood
from p2l_plugins.votes.votes import VoteBuilder

#: The games of arena-rank's worked example (and Wikipedia's): who beat whom, and how often.
GAMES = [("A", "B", 2), ("B", "A", 3), ("A", "D", 1), ("D", "A", 4), ("B", "C", 5), ("C", "B", 3), ("C", "D", 1)]
GAMES += [("D", "C", 3)]


def games(copies=1):
    builder = VoteBuilder()
    for k in range(copies):
        for i, (winner, loser, n) in enumerate(GAMES):
            for j in range(n):
                sides, outcome = ((winner, loser), A) if j % 2 else ((loser, winner), B)
                builder.add((f"{i} {j} {k}" if copies == 1 else f"{i} {j}",), sides, outcome)
    return builder.votes().by_prompt()


def random_votes(seed=0, n=1500, m=5, prompts=300):
    random, builder = np.random.default_rng(seed), VoteBuilder()
    strength = np.linspace(-1, 1, m)
    for _ in range(n):
        a, b = random.choice(m, 2, replace=False)
        p = 1 / (1 + np.exp(strength[b] - strength[a]))
        outcome = int(random.choice(4, p=[0.7 * p, 0.7 * (1 - p), 0.2, 0.1]))
        prompt = int(random.integers(prompts))
        builder.add((f"p{prompt}",), (f"m{a}", f"m{b}"), outcome, category="x" if prompt % 2 else "y")
    return builder.votes().by_prompt()


def test_the_worked_example_of_arena_rank():
    board = votes_board(games())
    powers = {name: float(np.exp(c)) for name, c in zip(board.models, board.coefs, strict=True)}
    assert powers == pytest.approx({"A": 0.640, "B": 1.043, "C": 0.660, "D": 2.270}, rel=1e-3)


def test_as_choix_fits():
    votes = games()
    index = {name: i for i, name in enumerate(votes.models)}
    pairs = [(index[w], index[loser]) for w, loser, n in GAMES for _ in range(n)]
    np.testing.assert_allclose(votes_board(votes, "bt").coefs, choix.opt_pairwise(len(index), pairs), atol=1e-5)


def test_the_sandwich_of_votes_one_by_one_is_that_of_arena_rank():
    votes = random_votes()
    beta, spread = covariance(votes, "bt-tie", clusters=False)
    rows = np.arange(len(votes))
    design = np.zeros((len(votes), len(votes.models)))
    design[rows, votes.a], design[rows, votes.b] = 1.0, -1.0
    p = 1 / (1 + np.exp(-design @ beta))
    y = np.select([votes.outcome == A, votes.outcome == B], [1.0, 0.0], 0.5)
    inverse = np.linalg.inv(design.T @ (design * (p * (1 - p))[:, None]) + 1e-5 * len(votes) * np.eye(len(beta)))
    expected = inverse @ (design.T @ (design * ((y - p) ** 2)[:, None])) @ inverse
    np.testing.assert_allclose(np.diag(spread), np.diag(expected), rtol=1e-3)


@pytest.mark.parametrize("family", ["bt-tie", "rk", "grk"])
def test_every_outcome_model_is_at_its_maximum(family):
    votes = random_votes()
    board, m = votes_board(votes, family, "none"), len(votes.models)

    def loss(x):
        raw = None if family == "bt-tie" else np.full(len(votes), x[m])
        return negative_log_likelihood(family, x[votes.a], x[votes.b], votes.outcome, raw).sum()

    own = np.append(board.coefs, [] if board.raw_eta is None else [board.raw_eta])
    assert loss(own) <= minimize(loss, own + 0.1).fun + 1e-4


@pytest.mark.parametrize("family", ["bt-tie", "rk", "grk"])
def test_sandwich_and_bootstrap_agree(family):
    sandwich, bootstrap = (
        votes_board(random_votes(), family, method).intervals for method in ("sandwich", "bootstrap")
    )
    np.testing.assert_allclose(sandwich.stderr, bootstrap.stderr, rtol=0.25)
    np.testing.assert_allclose(sandwich.win_stderr, bootstrap.win_stderr, rtol=0.25)


def test_votes_on_one_prompt_are_one_unit():
    once, often = votes_board(games()).intervals, votes_board(games(copies=5)).intervals
    np.testing.assert_allclose(often.stderr, once.stderr, rtol=1e-6)  # five copies of each vote say nothing new


def test_what_was_never_compared_is_not_ordered():
    builder = VoteBuilder()
    for i, (a, b) in enumerate([("a", "b"), ("b", "c"), ("c", "a"), ("x", "y"), ("y", "x")]):
        builder.add((f"{i}",), (a, b), A)
    votes = builder.votes()
    with pytest.raises(DataError, match=r"2 sets that were never compared \(1: a, b, c; 2: x, y\)"):
        only_connected(votes, "bt-tie", None, "votes")
    assert only_connected(votes, "bt-tie", 2, "votes").models == ("x", "y")
    with pytest.raises(DataError, match="no vote says 'tie"):
        only_connected(votes, "grk", None, "votes")


def test_a_model_that_never_lost_stays_finite_and_is_named():
    builder = VoteBuilder()
    for i in range(20):
        builder.add((f"{i}",), ("best", "a" if i % 2 else "b"), A)
        builder.add((f"{i}",), ("a", "b"), A if i % 3 else TIE)
        builder.add((f"{i}",), ("a", "b"), B)
    board = votes_board(builder.votes().by_prompt())
    assert board.one_sided == ("best",)
    assert np.isfinite(board.coefs).all()
    assert board.models[board.order[0]] == "best"


def test_categories_of_the_same_kind_do_not_differ():
    boards = category_boards(random_votes(), "category")
    assert set(boards.boards) == {"x", "y"}
    assert not any(row["holds"] for board in boards.boards.values() for row in board.rows())
    assert "| model | x | y |" in boards.to_markdown()


def test_the_command_writes_everything(tmp_path, monkeypatch, capsys):
    path, html, plot = tmp_path / "votes.jsonl", tmp_path / "b.html", tmp_path / "b.svg"
    votes = random_votes()
    names = ["model_a", "model_b", "tie", "tie (bothbad)"]
    with path.open("w") as file:
        for p, a, b, o in zip(votes.prompt, votes.a, votes.b, votes.outcome, strict=True):
            row = {"prompt": votes.prompts[p][0], "category": votes.groups[p], "winner": names[o]}
            file.write(json.dumps(row | {"model_a": votes.models[a], "model_b": votes.models[b]}) + "\n")

    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["p2l", "votes", "board", str(path), *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        assert not ended.value.code
        return capsys.readouterr().out

    assert "| rank | model | coefficient | 95% interval | ranks | win rate | P(usable) | votes |" in run(
        "--family", "grk"
    )
    record = json.loads(run("--html", html, "--plot", plot, "--by", "category", "--json"))
    assert record["n_votes"] == len(votes)
    assert record["intervals"]["method"] == "sandwich"
    assert set(record["categories"]) == {"x", "y"}
    assert "1,500 votes on" in html.read_text()
    assert plot.stat().st_size
    assert (votes.outcome == BAD).any()
