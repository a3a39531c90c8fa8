"""Files in public forms whose votes were wrong without a word: each is right now, or refused with the remedy."""

import csv
import gzip
import json
import re

import numpy as np
import pytest
from helpers.command import called

from p2l_plugins.errors import DataError
from p2l_plugins.files.prompts import read_prompts
from p2l_plugins.votes.arena import COLUMNS, arena_votes
from p2l_plugins.votes.columns import ModelColumns
from p2l_plugins.votes.directions import item_is_lower_better
from p2l_plugins.votes.lmeval_logs import Selection, find_samples, lm_eval_matrix
from p2l_plugins.votes.lmeval_prompts import PromptRule
from p2l_plugins.votes.read import read_votes
from p2l_plugins.votes.scores import read_matrix
from p2l_plugins.votes.tally import Tally

VOTE = {"prompt": "p", "model_a": "x", "model_b": "y", "winner": "model_a"}
TIME = "2026-03-04T05-06-07.890123"


def lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return path


def cells(path, rows, delimiter=","):
    with path.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream, delimiter=delimiter).writerows(rows)
    return path


def sample(i, text, metric="acc", score=1.0, doc=None, **keys):
    return {
        "doc_id": i,
        "doc": doc or {"question": text},
        "arguments": {"gen_args_0": {"arg_0": text, "arg_1": " yes"}},
        "filter": "none",
        "metrics": [metric],
        "doc_hash": f"h{i}",
        metric: score,
        **keys,
    }


def logs(folder, model, rows, task="quiz", results=None, time=f"_{TIME}"):
    lines(folder / model / f"samples_{task}{time}.jsonl", rows)
    if results is not None:
        (folder / model / f"results{time}.json").write_text(json.dumps({"model_name": model, **results}))


def imported(folder, on_error="refuse", rule=None, **selection):
    tally = Tally(on_error)
    matrix = lm_eval_matrix(find_samples([(None, folder)], tally), rule or PromptRule(), Selection(**selection), tally)
    return matrix, tally


def matrix_of(path, on_error="refuse", **said):
    tally = Tally(on_error)
    return read_matrix(tally.read(path), tally, columns=ModelColumns(**said)), tally


def arena(path, on_error="refuse"):
    tally = Tally(on_error)
    return arena_votes(tally.read(path, COLUMNS), tally)


# 1 ---- direction


def perplexities(folder, metric_list):
    results = {"configs": {"lines": {"metric_list": metric_list}}, "higher_is_better": {"lines": {"perplexity": False}}}
    for model, likelihood in (("good", -1.0), ("poor", -9.0)):
        rows = [sample(0, "Once upon a", "perplexity", likelihood)]
        logs(folder, model, rows, "lines", results if metric_list is not None else None)


@pytest.mark.parametrize(
    "metric_list", [None, [{"metric": "perplexity"}], [{"metric": "perplexity", "aggregation": "perplexity"}]]
)
def test_the_perplexity_of_a_document_is_a_likelihood_of_which_more_is_better(tmp_path, metric_list):
    perplexities(tmp_path, metric_list)
    votes = imported(tmp_path)[0].votes()
    assert votes.models[votes.a[0] if votes.outcome[0] == 0 else votes.b[0]] == "good"


def test_an_aggregation_that_is_the_tasks_own_asks_for_the_direction(tmp_path):
    own = [
        {"metric": "perplexity", "aggregation": "def agg(items):\n    return -sum(items)", "higher_is_better": False}
    ]
    perplexities(tmp_path, own)
    with pytest.raises(DataError, match="--higher-is-better perplexity or --lower-is-better perplexity"):
        imported(tmp_path)
    assert imported(tmp_path, lower=("perplexity",))[0].lower.all()
    assert not imported(tmp_path, higher=("perplexity",))[0].lower.any()


@pytest.mark.parametrize(
    ("metric", "aggregation", "higher", "lower"),
    [
        ("acc", None, True, False),
        ("acc", None, None, False),
        ("edit_distance", "mean", False, True),
        ("edit_distance", "mean", None, None),
        ("judged", None, None, None),
        ("perplexity", None, False, False),
        ("nll", "weighted_perplexity", False, False),
        ("acc", "def f(x): ...", True, None),
    ],
)
def test_directions_are_known_or_asked_for(metric, aggregation, higher, lower):
    assert item_is_lower_better(metric, aggregation, higher) is lower


def test_directions_are_those_of_lm_evals_own_registry():
    registry = pytest.importorskip("lm_eval.api.registry")
    from p2l_plugins.votes.directions import KEEPING, OF_LIKELIHOODS, OWN

    for metric, aggregation in OWN.items():
        assert registry.get_metric_aggregation(metric) is registry.get_aggregation(aggregation)
        assert aggregation in KEEPING | OF_LIKELIHOODS
        assert item_is_lower_better(metric, None, registry.is_higher_better(metric)) is False


# 2 ---- columns that are no models


@pytest.mark.parametrize("index", ["", "Unnamed: 0", "__index_level_0__", "Unnamed: 0_level_1", "level_0"])
def test_a_column_without_a_name_is_no_model(tmp_path, index):
    path = cells(tmp_path / "s.csv", [[index, "prompt", "x", "y"], *([i, f"p{i}", i % 2, 0.5] for i in range(4))])
    matrix, tally = matrix_of(path)
    assert matrix.models == ("x", "y")
    assert "columns without a name are no models" in tally.notes[0]
    assert read_votes(path).models == ("x", "y")


@pytest.mark.parametrize(
    ("name", "values", "why"),
    [
        ("row", range(1, 6), "counts the rows from 1"),
        ("n_tokens", [120, 11, 52, 300, 9], "goes from 9 to 300, while most columns keep to 0 to 1"),
        ("difficulty", [1, 5, 2, 3, 4], "goes from 1 to 5"),
        ("max_points", [5, 5, 5, 5, 5], "goes from 5 to 5"),
    ],
)
def test_a_column_that_counts_or_is_on_another_scale_is_refused_until_the_user_says_what_it_is(
    tmp_path, name, values, why
):
    rows = [{"prompt": f"p{i}", "x": i % 2, "y": 1 - i % 2, name: value} for i, value in enumerate(values)]
    path = lines(tmp_path / "s.jsonl", rows)
    with pytest.raises(DataError, match=f"the column '{name}' {why}.*--not-models {name}, or .*--models NAME"):
        matrix_of(path)
    with pytest.raises(DataError, match=f"--not-models {name}"):
        read_votes(path)
    assert matrix_of(path, not_models=(name,))[0].models == ("x", "y")
    assert matrix_of(path, models=("x", name))[0].models == ("x", name)
    assert read_votes(path, models=ModelColumns(not_models=(name,))).models == ("x", "y")
    with pytest.raises(DataError, match="the model 'z' is not in the file"):
        matrix_of(path, models=("z",))


def test_a_model_that_solves_everything_stays_and_is_told(tmp_path):
    rows = [{"prompt": f"p{i}", "x": i % 2, "y": (i + 1) % 2, "best": 1} for i in range(5)]
    matrix, tally = matrix_of(lines(tmp_path / "s.jsonl", rows))
    assert matrix.models == ("x", "y", "best")
    assert tally.notes == ["columns with one score on all prompts: best; --not-models NAME leaves one out"]


def test_every_import_prints_the_models(tmp_path):
    path = lines(tmp_path / "v.jsonl", [VOTE, {**VOTE, "model_b": "z"}])
    assert "models: x, y, z" in called("votes", "from-arena", path, "-o", tmp_path / "o.jsonl").stderr
    rows = [{"prompt": f"p{i}", "x": 1, "y": 0, "n_tokens": 50 + i * i} for i in range(4)]
    path = lines(tmp_path / "s.jsonl", rows)
    done = called("votes", "from-scores", path, "-o", tmp_path / "o.jsonl", "--not-models", "n_tokens", "--json")
    assert json.loads(done.stdout)["model_names"] == ["x", "y"]


# 3 ---- chat forms and examples


FORMS = [
    "<|im_start|>user\n{q}<|im_end|>\n<|im_start|>assistant\n",
    "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n{q}<|eot_id|>",
    "<s>[INST] {q} [/INST]",
    "<bos><start_of_turn>user\n{q}<end_of_turn>\n<start_of_turn>model\n",
    "<|user|>\n{q}<|end|>\n<|assistant|>\n",
    "<｜User｜>{q}<｜Assistant｜>",
    "### Instruction:\n{q}\n\n### Response:\n",
    "USER: {q} ASSISTANT:",
]
EXAMPLES = [
    "Question: 1 + 1?\nAnswer: 2\n\nQuestion: 2 + 2?\nAnswer: 4\n\nQuestion: {q}\nAnswer:",
    "Q: 1 + 1?\nA: 2\n\nQ: {q}\nA:",
    "Problem: one\nSolution: two\n\nProblem: {q}\nSolution: \n",
]


@pytest.mark.parametrize("results", [None, {"chat_template": None, "configs": {"quiz": {"num_fewshot": 0}}}])
@pytest.mark.parametrize("form", [*FORMS, *EXAMPLES])
def test_what_a_template_or_examples_put_around_the_question_is_seen_in_the_text(tmp_path, form, results):
    rows = [sample(i, form.format(q=f"why {i}?"), doc={"question": f"why {i}?"}) for i in range(2)]
    for model in ("one", "two"):
        logs(tmp_path, model, rows, results=results)
    remedy = "--prompt-field or --prompt-template names the question"
    with pytest.raises(DataError, match=f"(form of a chat template|examples before the question), .*{remedy}"):
        imported(tmp_path)
    assert imported(tmp_path, rule=PromptRule(field="question"))[0].prompts == [("why 0?",), ("why 1?",)]
    bare = [sample(i, f"why {i}?", doc={"question": f"why {i}?"}) for i in range(2)]
    logs(tmp_path, "two", bare, results=results)
    assert imported(tmp_path)[0].prompts == [("why 0?",), ("why 1?",)]
    told = {"configs": {"quiz": {"doc_to_text": "{{question}}"}}}
    for model in ("one", "two"):
        logs(tmp_path, model, rows, results=told)
    assert imported(tmp_path)[0].prompts == [("why 0?",), ("why 1?",)]


def test_examples_as_messages_are_seen_too(tmp_path):
    shots = [{"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": "2"}]
    rows = [sample(0, "", doc={"question": "why?"})]
    rows[0]["arguments"] = {"gen_args_0": {"arg_0": json.dumps([*shots, {"role": "user", "content": "why?"}])}}
    for model in ("one", "two"):
        logs(tmp_path, model, rows)
    with pytest.raises(DataError, match="examples before the question"):
        imported(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "What does <|im_start|> mean?",
        "Passage: a: b\n\nQuestion: who?\nAnswer:",
        "Question: which?\nA. one\nB. two\nAnswer:",
        "Explain [INST] and <s>.",
    ],
)
def test_a_question_about_templates_is_a_question(tmp_path, text):
    for model in ("one", "two"):
        logs(tmp_path, model, [sample(0, text)])
    assert imported(tmp_path)[0].prompts == [(text,)]


# 4 ---- infinity


@pytest.mark.parametrize("value", ["inf", "-Infinity", "1e999", "1" + "0" * 400])
def test_infinity_is_refused_or_counted_everywhere(tmp_path, value):
    wide = cells(tmp_path / "w.csv", [["prompt", "x", "y"], ["p", value, 1], ["q", 1, 0]])
    long = cells(
        tmp_path / "l.csv",
        [["prompt", "model", "score"], ["p", "x", value], ["p", "y", 1], ["q", "x", 1], ["q", "y", 0]],
    )
    for path in (wide, long):
        with pytest.raises(DataError, match=r"row 1: .*, but must be a (finite )?number"):
            matrix_of(path)
    matrix, tally = matrix_of(long, "drop")
    assert len(matrix.votes(tally=tally)) == 1
    assert tally.dropped == {"bad-score": 1, "no-pair": 1}
    for model, score in (("x", float(value)), ("y", 1.0)):
        logs(tmp_path / "out", model, [sample(0, "p", score=score), sample(1, "q", score=score if model == "y" else 0)])
    with pytest.raises(DataError, match="document 0 of the model 'x': acc is infinite"):
        imported(tmp_path / "out")
    matrix, tally = imported(tmp_path / "out", "drop")
    assert len(matrix.votes()) == 1
    assert tally.dropped == {"bad-score": 1, "too-few-models": 1}


def test_means_of_the_largest_numbers_are_finite(tmp_path):
    row = {"prompt": "p", "x": 1.7e308, "y": 1.7e308}
    assert np.isfinite(matrix_of(lines(tmp_path / "s.jsonl", [row, row]))[0].scores).all()


@pytest.mark.parametrize("option", ["--margin", "--usable"])
def test_options_that_are_no_numbers_are_refused(tmp_path, option):
    path = lines(tmp_path / "s.jsonl", [{"prompt": "p", "x": 1, "y": 0}])
    done = called("votes", "from-scores", path, "-o", tmp_path / "o.jsonl", option, "nan", status=2)
    assert f"Invalid value for '{option}'" in done.stderr


# 5 ---- columns that come twice


def test_a_column_that_comes_twice_is_refused(tmp_path):
    path = cells(tmp_path / "s.csv", [["prompt", "x", "y", "x "], ["p", 1, 0, 0]])
    with pytest.raises(DataError, match="2 columns are named 'x'; rename or delete all but one"):
        matrix_of(path)


def test_a_row_of_too_many_cells_is_refused(tmp_path):
    path = tmp_path / "s.csv"
    path.write_text("prompt,x,y\nhello, world,1,0\nq,1,0\n")
    with pytest.raises(DataError, match="row 1: not a row of the 3 columns: it has 4 cells"):
        matrix_of(path)
    assert matrix_of(path, "drop")[1].dropped == {"bad-line": 1}


# 6 ---- samples without a time


@pytest.mark.parametrize("time", ["", f"_{TIME}"])
def test_tasks_are_told_apart_with_and_without_a_time(tmp_path, time):
    for model in ("one", "two"):
        for task in ("arc_easy", "arc_challenge"):
            logs(tmp_path, model, [sample(0, f"{task}?")], task, time=time, results={})
    matrix, tally = imported(tmp_path)
    assert sorted(matrix.category) == ["arc_challenge", "arc_easy"]
    assert tally.notes == []


def test_two_runs_without_a_time_are_not_called_older_and_newer(tmp_path):
    for folder in ("a/one", "b/one", "b/two"):
        logs(tmp_path, folder, [sample(0, "p")], time="")
    with pytest.raises(DataError, match=r"no time in the names says which are later; .*--model NAME=FOLDER"):
        imported(tmp_path)


# 7 ---- one form of prompts


@pytest.mark.parametrize(
    "text",
    ['["first", "second"]', '[{"role": "user", "content": "first"}, {"role": "user", "content": "second"}]'],
)
def test_a_conversation_in_a_cell_is_one_for_every_reader(tmp_path, text):
    path = cells(tmp_path / "v.csv", [[*VOTE], [text, "x", "y", "model_a"]])
    assert read_votes(path).prompts == [("first", "second")]
    assert arena(path).prompts == [("first", "second")]
    scores = cells(tmp_path / "s.csv", [["prompt", "x", "y"], [text, 1, 0]])
    assert matrix_of(scores)[0].prompts == [("first", "second")]
    assert read_prompts(scores)[0] == [["first", "second"]]


@pytest.mark.parametrize(
    "text", ["['first', 'second']", "['first' 'second']", "[{'role': 'user', 'content': 'first'}]", "array(['a', 'b'])"]
)
def test_a_list_that_python_printed_is_refused_with_the_form_that_is_read(tmp_path, text):
    path = cells(tmp_path / "v.csv", [[*VOTE], [text, "x", "y", "model_a"]])
    for read in (read_votes, read_prompts, matrix_of):
        with pytest.raises(DataError, match="a conversation that Python printed; write it as JSON"):
            read(path)


# 8 ---- labels, times, lines, options in the context


@pytest.mark.parametrize("label", ["nan", "NaN", "<NA>", float("nan"), None])
def test_a_label_that_is_missing_is_none(tmp_path, label):
    path = lines(tmp_path / "v.jsonl", [{**VOTE, "category": label}, {**VOTE, "prompt": "q", "category": "law"}])
    assert read_votes(path).groups == ["", "law"]


def test_milliseconds_and_seconds_are_the_same_time(tmp_path):
    stamps = [1714917384, 1714917384000, 1714917384000000, "2024-05-05T13:56:24Z"]
    rows = [{**VOTE, "prompt": f"p{i}", "timestamp": stamp} for i, stamp in enumerate(stamps)]
    assert read_votes(lines(tmp_path / "v.jsonl", rows)).timestamp.tolist() == [1714917384.0] * 4


def test_only_line_ends_end_a_prompt_of_a_text_file(tmp_path):
    path = tmp_path / "p.txt"
    path.write_bytes("one\u2028still one\x0cand \x85 on\r\ntwo\rthree\n".encode())
    assert read_prompts(path)[0] == ["one\u2028still one\x0cand \x85 on", "two", "three"]


def test_options_inside_the_context_are_told(tmp_path):
    row = sample(0, "")
    row["arguments"] = {
        f"gen_args_{i}": {"arg_0": f"The dog bit {who}", "arg_1": " because it was angry."}
        for i, who in enumerate(["Ann", "Bob"])
    }
    for model in ("one", "two"):
        logs(tmp_path, model, [row])
    notes = imported(tmp_path)[1].notes
    assert len(notes) == 1
    assert "its options stand inside the context" in notes[0]
    assert "--prompt-field" in notes[0]


# 9 ---- messages that name what is wrong


def test_a_missing_column_is_named_with_those_that_are_there(tmp_path):
    path = cells(tmp_path / "v.csv", [["prompt", "model_a", "model_b", "verdict"], ["p", "x", "y", "model_a"]])
    said = "column 'winner' is missing; the row has ['prompt', 'model_a', 'model_b', 'verdict']"
    with pytest.raises(DataError, match=re.escape(said)):
        arena(path)


@pytest.mark.parametrize("delimiter", [";", "\t", "|"])
def test_a_file_with_another_delimiter_says_so(tmp_path, delimiter):
    path = cells(tmp_path / "v.csv", [[*VOTE], ["p", "x", "y", "model_a"]], delimiter)
    said = f"its columns are divided by {delimiter!r}, but must be divided by ','"
    for read in (read_votes, matrix_of, arena):
        with pytest.raises(DataError, match=re.escape(said)):
            read(path)


def test_white_space_around_the_names_of_columns_is_no_part_of_them(tmp_path):
    path = cells(tmp_path / "v.csv", [[f" {name} " for name in VOTE], ["p", "x", "y", "model_a"]])
    assert read_votes(path).outcome.tolist() == [0]


@pytest.mark.parametrize(
    ("cell", "score"),
    [("True", 1), ("false", 0), ("85%", 0.85), ("12.5 %", 0.125), ("0,85", 0.85), ("3,5", 3.5), ("0,123", 0.123)],
)
def test_numbers_that_can_be_read_in_one_way_are_read(tmp_path, cell, score):
    path = cells(tmp_path / "s.csv", [["prompt", "x", "y"], ["p", cell, 0]])
    assert matrix_of(path)[0].scores[0, 0] == pytest.approx(score)


def test_a_comma_that_may_be_of_thousands_is_refused(tmp_path):
    path = cells(tmp_path / "s.csv", [["prompt", "x", "y"], ["p", "1,234", 0], ["q", "1", 0]])
    with pytest.raises(DataError, match=r"'1,234', whose comma may be a decimal one or one of thousands"):
        matrix_of(path)


@pytest.mark.parametrize("ending", [".jsonl.gz", ".csv.gz", ".json.gz", ".jsonl.zst"])
def test_compressed_files_are_read(tmp_path, ending):
    text = b"prompt,x,y\np,1,0\n" if "csv" in ending else b'{"prompt": "p", "x": 1, "y": 0}\n'
    path = tmp_path / f"s{ending}"
    if ending.endswith(".gz"):
        path.write_bytes(gzip.compress(text))
        cut = path.read_bytes()[:-12]
    else:
        pyarrow = pytest.importorskip("pyarrow")
        with pyarrow.output_stream(str(path), compression="zstd") as stream:
            stream.write(text)
        cut = path.read_bytes()[:-6]
    assert matrix_of(path)[0].models == ("x", "y")
    path.write_bytes(cut)
    with pytest.raises(DataError, match=r"s\.\w+"):
        matrix_of(path)


def test_compressed_sample_logs_are_read(tmp_path):
    for model in ("one", "two"):
        logs(tmp_path, model, [sample(0, "p")])
        (path,) = (tmp_path / model).glob("samples_*")
        path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    assert imported(tmp_path)[0].prompts == [("p",)]
