"""Arena-style rows in the forms that people have them in."""

import csv
import json
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from p2l_plugins.errors import DataError
from p2l_plugins.outcomes import BAD, TIE, A, B
from p2l_plugins.votes.arena import arena_votes
from p2l_plugins.votes.tally import Tally

VOTE = {"prompt": "p", "model_a": "x", "model_b": "y", "winner": "model_a"}
PAIR = {"model_a": "x", "model_b": "y", "winner": "model_b"}


def user(content):
    return {"role": "user", "content": content}


def answer(text):
    return {"role": "assistant", "content": text}


def imported(*rows, on_error="refuse", **options):
    tally = Tally(on_error)
    return arena_votes([(f"row {i}", row) for i, row in enumerate(rows, 1)], tally, **options), tally


def read(path: Path, **options):
    tally = Tally()
    return arena_votes(tally.read(path), tally, **options), tally


def test_our_own_columns():
    votes, tally = imported(
        VOTE, {**VOTE, "prompt": ["a", "b"], "winner": "tie", "weight": 2, "language": "en", "category": "math"}
    )
    assert votes.prompts == [("p",), ("a", "b")]
    assert votes.outcome.tolist() == [A, TIE]
    assert votes.weight.tolist() == [1.0, 2.0]
    assert votes.labels["language"].tolist() == [None, "en"]
    assert votes.labels["category"].tolist() == [None, "math"]
    assert votes.timestamp is None
    assert not tally.dropped


@pytest.mark.parametrize(
    ("winner", "outcome"),
    [("model_a", A), ("model_b", B), ("tie", TIE), ("tie (bothbad)", BAD), ("both_bad", BAD), ("bothbad", BAD)],
)
def test_every_spelling_of_an_outcome(winner, outcome):
    votes, _ = imported({**VOTE, "winner": winner})
    assert votes.outcome.tolist() == [outcome]


def test_only_user_turns_of_a_conversation_count():
    conversation = [{"role": "system", "content": "be brief"}, user("one"), answer("1"), user("two"), answer("2")]
    other = [user("one"), answer("uno"), user("two"), answer("due")]
    votes, _ = imported(
        {**PAIR, "conversation_a": conversation, "conversation_b": other},
        {**PAIR, "messages": conversation},
        {**PAIR, "conversation": conversation},
        {**PAIR, "prompt": conversation},
        {**PAIR, "conversation_a": json.dumps(conversation), "conversation_b": json.dumps(other)},
    )
    assert votes.prompts == [("one", "two")]
    assert len(votes) == 5


def test_content_may_be_a_list_of_parts():
    parts = [{"type": "text", "text": "what is this?"}, {"type": "image", "image": "…"}]
    votes, _ = imported({**PAIR, "conversation_a": [user(parts)], "conversation_b": [user("what is this?")]})
    assert votes.prompts == [("what is this?",)]


def test_the_full_conversation_brings_the_turns_of_earlier_votes():
    sides = {"model_side_a": answer("a"), "model_side_b": answer("b")}
    row = {
        **PAIR,
        "winner": "both_bad",
        "evaluation_session_id": "s",
        "evaluation_order": 2,
        "conversation_a": [user([{"type": "text", "text": "second"}]), answer("x")],
        "conversation_b": [user([{"type": "text", "text": "second"}]), answer("y")],
        "full_conversation": [
            {"user": user([{"type": "text", "text": "first"}]), **sides},
            {"user": user([{"type": "text", "text": "second"}]), **sides},
        ],
        "conv_metadata": {"sum_assistant_a_tokens": 3},
    }
    votes, _ = imported(row)
    assert votes.prompts == [("first", "second")]
    assert votes.outcome.tolist() == [BAD]


def test_sides_with_different_user_turns_are_dropped_by_name():
    row = {**PAIR, "conversation_a": [user("one")], "conversation_b": [user("two")]}
    votes, tally = imported(row, VOTE)
    assert len(votes) == 1
    assert tally.dropped == {"sides-differ": 1}


def test_rows_without_text_and_rows_of_one_model_are_dropped_by_name():
    image = [user([{"type": "image", "image": "…"}])]
    votes, tally = imported(
        {**VOTE, "prompt": "  "},
        {**VOTE, "prompt": None},
        {**PAIR, "conversation_a": image, "conversation_b": image},
        {**VOTE, "model_b": "x"},
        VOTE,
    )
    assert len(votes) == 1
    assert tally.dropped == {"empty-prompt": 3, "same-model": 1}


def test_votes_that_are_not_anonymous_stay_unless_the_rule_says_drop():
    rows = [{**VOTE, "anony": value} for value in (True, False, "False", None)]
    assert len(imported(*rows)[0]) == 4
    votes, tally = imported(*rows, not_anonymous="drop")
    assert len(votes) == 2
    assert tally.dropped == {"not-anonymous": 2}


def test_categories_come_from_the_column_else_from_the_tags():
    tags = {
        "creative_writing_v0.1": {"creative_writing": False, "score": "no"},
        "criteria_v0.1": {"complexity": True},
        "if_v0.1": {"if": True, "score": 4},
        "math_v0.1": {"math": True},
    }
    no_math = {**tags, "math_v0.1": {"math": False}}
    votes, _ = imported(
        {**VOTE, "category": "law", "category_tag": tags},
        {**VOTE, "category_tag": tags},
        {**VOTE, "category_tag": no_math},
        {**VOTE, "category_tag": tags, "is_code": True},
        {**VOTE, "category_tag": {"criteria_v0.1": {"complexity": True}}, "is_code": False},
    )
    assert votes.labels["category"].tolist() == ["law", "math", "instruction_following", "coding", None]


def test_time_stamps_become_seconds():
    when = datetime(2025, 1, 2, 3, 4, 5, tzinfo=UTC)
    votes, _ = imported(
        {**VOTE, "tstamp": when.timestamp()},
        {**VOTE, "timestamp": when},
        {**VOTE, "timestamp": when.replace(tzinfo=None)},
        {**VOTE, "timestamp": "2025-01-02 03:04:05"},
        {**VOTE, "timestamp": "2025-01-02T04:04:05+01:00"},
        {**VOTE, "timestamp": str(when.timestamp())},
        {**VOTE, "timestamp": None},
    )
    assert votes.timestamp[:-1].tolist() == [when.timestamp()] * 6
    assert np.isnan(votes.timestamp[-1])


def test_kaggle_rows(tmp_path):
    header = ["id", "model_a", "model_b", "prompt", "winner_model_a", "winner_model_b", "winner_tie"]
    rows = [
        [1, "x", "y", json.dumps(["one", "two"]), 1, 0, 0],
        [2, "x", "y", json.dumps(["one", None]), 0, 1, 0],
        [3, "x", "z", json.dumps(["[not JSON"]), 0, 0, 1],
    ]
    with (tmp_path / "train.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([header, *rows])
    votes, _ = read(tmp_path / "train.csv")
    assert votes.prompts == [("one", "two"), ("one",), ("[not JSON",)]
    assert votes.outcome.tolist() == [A, B, TIE]
    dicts = [dict(zip(header, row, strict=True)) for row in rows]
    assert imported(*dicts)[0].prompts == votes.prompts


def test_jsonl_json_arrays_parquet_and_csv_read_the_same(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    rows = [{**VOTE, "weight": 2.0, "judge": "j"}, {**VOTE, "prompt": "größer\n", "weight": 1.0, "judge": "k"}]
    (tmp_path / "v.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    (tmp_path / "lines.json").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "array.json").write_text(json.dumps(rows, indent=1))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "v.parquet")
    with (tmp_path / "v.csv").open("w", newline="", encoding="utf-8-sig") as stream:
        writer = csv.DictWriter(stream, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    tables = [read(path)[0] for path in sorted(tmp_path.iterdir())]
    assert len(tables) == 5
    for table in tables:
        assert table.prompts == [("p",), ("größer\n",)]
        assert table.weight.tolist() == [2.0, 1.0]


def test_parquet_with_nested_conversations_and_nanosecond_times(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    part = [{"type": "text", "text": "hello", "image": None}]
    conversation = [{"role": "user", "content": part}, {"role": "assistant", "content": part}]
    table = pa.table(
        {
            "model_a": ["x"],
            "model_b": ["y"],
            "winner": ["both_bad"],
            "conversation_a": [conversation],
            "conversation_b": [conversation],
            "full_conversation": [[{"user": conversation[0], "model_side_a": conversation[1]}]],
            "timestamp": pa.array([1_700_000_000_123_456_789], pa.timestamp("ns")),
        }
    )
    pq.write_table(table, tmp_path / "v.parquet")
    votes, _ = read(tmp_path / "v.parquet")
    assert votes.prompts == [("hello",)]
    assert votes.timestamp[0] == pytest.approx(1_700_000_000.123456)


@pytest.mark.parametrize(
    ("change", "rule", "message"),
    [
        ({"winner": "draw"}, "unknown-winner", r"winner is 'draw'; valid: 'model_a', 'model_b', 'tie', 'tie \(both"),
        ({"winner": None}, "unknown-winner", "winner is None"),
        ({"model_a": None}, "bad-model", "model_a is None, but must be a model's name"),
        ({"model_b": 3}, "bad-model", "model_b is 3"),
        ({"weight": 0}, "bad-weight", "weight is 0, but must be a number above 0"),
        ({"weight": "heavy"}, "bad-weight", "weight is 'heavy'"),
        (
            {"timestamp": "yesterday"},
            "bad-timestamp",
            "timestamp is 'yesterday'; valid: seconds or milliseconds since 1970, or ISO",
        ),
        ({"tstamp": True}, "bad-timestamp", "tstamp is True"),
        ({"prompt": 7}, "bad-prompt", "prompt is int; valid: text, a list of texts, or a list of messages"),
        ({"prompt": None, "conversation": "hi"}, "bad-prompt", "conversation is text that is not JSON"),
    ],
)
def test_bad_values_are_refused_with_the_row_or_dropped_by_name(change, rule, message):
    with pytest.raises(DataError, match=f"^row 2: {message}"):
        imported(VOTE, {**VOTE, **change})
    votes, tally = imported(VOTE, {**VOTE, **change}, on_error="drop")
    assert len(votes) == 1
    assert tally.dropped == {rule: 1}


@pytest.mark.parametrize(
    ("flags", "message"), [([0, 0, 0], "0 of winner_model_a"), ([1, 1, 0], "2 of"), ([2, 0, 0], "winner_model_a is 2")]
)
def test_exactly_one_of_kaggles_columns_is_one(flags, message):
    names = ("winner_model_a", "winner_model_b", "winner_tie")
    row = {"prompt": '["p"]', "model_a": "x", "model_b": "y", **dict(zip(names, flags, strict=True))}
    with pytest.raises(DataError, match=message):
        imported(row)


def test_a_row_without_a_prompt_names_the_columns():
    with pytest.raises(DataError, match=r"row 1: there is no prompt; valid columns: prompt, messages, .* \['question'"):
        imported({"question": "p", **PAIR})


def test_no_message_holds_the_text_of_a_prompt():
    secret = "my secret question"
    for change in ({"winner": "draw"}, {"weight": -1}, {"model_a": ""}, {"timestamp": "never"}):
        with pytest.raises(DataError) as error:
            imported({**VOTE, "prompt": secret, **change})
        assert secret not in str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("v.jsonl", '{"a": 1}\n{"a": \n', "v.jsonl: line 2: not valid JSON"),
        ("v.jsonl", '{"a": 1}\n[1]\n', "v.jsonl: line 2: not a JSON object"),
        ("v.jsonl", "", "v.jsonl: the file holds no rows"),
        ("v.json", "[1]", "v.json: row 1: not a JSON object"),
        ("v.json", "[1", "v.json: not valid JSON"),
        ("v.parquet", "no", "v.parquet: not a readable Parquet file"),
        ("v.txt", "", "v.txt: the ending '.txt' is not one of .jsonl, .ndjson, .json, .parquet, .csv"),
        ("none.jsonl", None, "none.jsonl: there is no such file"),
    ],
)
def test_bad_files_are_a_sentence(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(DataError) as error:
        list(Tally().read(tmp_path / name))
    assert message in str(error.value)


def test_broken_lines_can_be_dropped(tmp_path):
    (tmp_path / "v.jsonl").write_bytes(json.dumps(VOTE).encode() + b'\n{"cut": "of\n\xff\n')
    tally = Tally("drop")
    assert len(arena_votes(tally.read(tmp_path / "v.jsonl"), tally)) == 1
    assert (tally.rows, tally.dropped) == (3, {"bad-line": 2})
