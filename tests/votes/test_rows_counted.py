"""All importers, on rows of any values: every row is part of a vote or counted, and only our own errors are raised."""

import itertools
import json
import math
import sys

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from p2l_plugins.errors import P2LError
from p2l_plugins.votes.arena import COLUMNS, arena_votes
from p2l_plugins.votes.litellm_logs import litellm_votes
from p2l_plugins.votes.lmeval_logs import Selection, find_samples, lm_eval_matrix
from p2l_plugins.votes.lmeval_prompts import PromptRule
from p2l_plugins.votes.output import write_matrix
from p2l_plugins.votes.read import read_votes
from p2l_plugins.votes.scores import read_matrix
from p2l_plugins.votes.tally import Tally

NAMES = ["x", "y", "z"]
some = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])

prompts = st.one_of(
    st.sampled_from(
        ["p", "q", "r", " ", "", "\ud800", ["p", "q"], [{"role": "user", "content": "p"}], None, 3, {}, [1]]
    ),
    st.text(max_size=4),
)
numbers = st.one_of(
    st.sampled_from([0, 1, 0.5, 0.5, 1, None, "", "1", "true", "50%", "0,5", "x", "1,234", 10**400, [], {}]),
    st.floats(),
    st.booleans(),
)
winners = st.sampled_from(["model_a", "model_b", "tie", "both_bad", "tie (bothbad)", "draw", "", None, 1, ["tie"]])
names = st.sampled_from(["x", "y", "z", "", None, 3, "\udfff"])
times = st.one_of(st.none(), st.floats(), st.sampled_from(["", "2024-01-01", "yesterday", 1714917384000, 10**400, [1]]))


def line(row):
    return json.dumps(row)  # NaN and Infinity as Python writes them, lone surrogates escaped


def written(folder, rows, name="rows.jsonl"):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text("".join(line(row) + "\n" for row in rows), encoding="utf-8")
    return path


def rows_of(**columns):
    row = st.fixed_dictionaries({}, optional=columns)
    return st.lists(row, min_size=1, max_size=12)


@some
@given(
    rows=rows_of(
        prompt=prompts, model_a=names, model_b=names, winner=winners, weight=numbers, category=numbers, timestamp=times
    )
)
def test_every_arena_row_is_a_vote_or_counted(tmp_path_factory, rows):
    path = written(tmp_path_factory.mktemp("a"), rows)
    tally = Tally("drop")
    votes = arena_votes(tally.read(path, COLUMNS), tally)
    assert tally.rows == len(rows) == len(votes) + tally.dropped.total()
    for read in (lambda: arena_votes(Tally().read(path, COLUMNS), Tally()), lambda: read_votes(path)):
        refused(read)


@some
@given(rows=rows_of(prompt=prompts, model=names, score=numbers))
@example(rows=[{"model": "y", "prompt": "0", "score": sys.float_info.max}] * 3)
def test_every_long_row_of_scores_is_part_of_votes_or_counted(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("l")
    path = written(folder, [{"prompt": "first", "model": "x", "score": 1}, *rows])
    tally = Tally("drop")
    matrix = read_matrix(tally.read(path), tally)
    votes = matrix.votes(tally=tally)
    assert tally.rows == len(rows) + 1
    paired = matrix.rows[pairs_of(matrix.scores) > 0].sum()
    assert tally.rows == paired + tally.dropped.total()
    assert len(votes) == pairs_of(matrix.scores).sum()
    assert not np_infinite(matrix.scores)
    if len(matrix.models) > 2:
        write_matrix(folder / "m.jsonl", matrix)
        refused(lambda: read_votes(folder / "m.jsonl"))


@some
@given(rows=rows_of(prompt=prompts, category=numbers, **dict.fromkeys(NAMES, numbers)))
def test_every_wide_row_of_scores_is_part_of_votes_or_counted(tmp_path_factory, rows):
    path = written(tmp_path_factory.mktemp("w"), rows)
    tally = Tally("drop")
    try:
        matrix = read_matrix(tally.read(path), tally)
    except P2LError as error:
        assert "--not-models" in str(error)  # noqa: PT017  # the only reason to refuse these
        return
    votes = matrix.votes(tally=tally)
    cells = tally.dropped.pop("bad-score", 0)  # of a row, whose other cells stay
    odd = sum(name in NAMES and bad(value) for row in rows for name, value in row.items())
    assert cells <= odd
    paired = matrix.rows[pairs_of(matrix.scores) > 0].sum()
    assert tally.rows == len(rows) == paired + tally.dropped.total()
    assert len(votes) == pairs_of(matrix.scores).sum()
    assert not np_infinite(matrix.scores)
    refused(lambda: read_votes(path))


samples = st.lists(
    st.tuples(st.sampled_from(NAMES[:2]), st.integers(0, 3), prompts, numbers, st.sampled_from(["h", "g"])),
    min_size=2,
    max_size=12,
)


@some
@given(rows=samples, least=st.sampled_from([None, 1, 2]))
def test_every_sample_of_lm_eval_is_part_of_votes_or_counted(tmp_path_factory, rows, least):
    folder = tmp_path_factory.mktemp("e")
    for model in NAMES[:2]:
        own = [
            {
                "doc_id": i,
                "doc": {"q": text},
                "arguments": [[text]],
                "doc_hash": digest,
                "metrics": ["acc"],
                "acc": score,
            }
            for name, i, text, score, digest in rows
            if name == model
        ]
        written(folder / model, own or [{"doc_id": 9, "arguments": [["p"]], "acc": 1}], "samples_quiz.jsonl")
    tally = Tally("drop")
    try:
        found = find_samples([(None, folder)], tally)
        matrix = lm_eval_matrix(found, PromptRule(), Selection(min_models=least), tally)
    except P2LError:
        return
    votes = matrix.votes(tally=tally)
    paired = matrix.rows[pairs_of(matrix.scores) > 0].sum()
    assert tally.rows == paired + tally.dropped.total()
    assert len(votes) == pairs_of(matrix.scores).sum()
    assert not np_infinite(matrix.scores)


feedback = st.one_of(
    numbers,
    st.fixed_dictionaries({}, optional={"rating": numbers, "winner": winners, "model_a": names, "model_b": names}),
)


@some
@given(
    rows=rows_of(
        model=names,
        messages=st.one_of(prompts, st.just([{"role": "user", "content": "p"}])),
        feedback=feedback,
        startTime=times,
        status=st.sampled_from(["success", "failure", None]),
    )
)
def test_every_row_of_litellm_is_part_of_a_vote_or_counted(tmp_path_factory, rows):
    rows = [row for row in rows if not isinstance(row.get("feedback"), list)]  # several judgements in one row
    path = written(tmp_path_factory.mktemp("g"), [*rows, {"model": "x"}])
    tally = Tally("drop")
    votes = litellm_votes(tally.read(path), tally)
    judged = tally.rows - tally.dropped.total()  # votes themselves, and ratings that became part of votes
    direct = sum(isinstance(row.get("feedback"), dict) and "winner" in row["feedback"] for row in rows)
    assert judged >= 0
    assert (judged == 0) == (len(votes) == 0)
    assert len(votes) <= direct + math.comb(len(NAMES) + 1, 2) * max(judged, 1)
    refused(lambda: litellm_votes(Tally().read(path), Tally()))


def pairs_of(scores):
    """(P,) pairs of models that both have a score, counted one by one."""
    import numpy as np

    return np.array(
        [sum(1 for a, b in itertools.combinations(row, 2) if not (math.isnan(a) or math.isnan(b))) for row in scores],
        np.int64,
    )


def np_infinite(scores):
    return any(math.isinf(value) for row in scores for value in row)


def bad(value):
    """Whether a cell holds something other than a score or nothing."""
    return not (value is None or value == "") and not (isinstance(value, float) and math.isnan(value))


def refused(read):
    """Reads, or raises one of our errors."""
    try:
        read()
    except P2LError as error:
        assert str(error)  # noqa: PT017
