"""Sample logs of lm-evaluation-harness: as the real command writes them, and the cases that are rare."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from helpers.command import called
from helpers.forking import finished, script
from helpers.lmeval_files import OWN_TASKS

from p2l_plugins.errors import ConfigError, DataError
from p2l_plugins.votes.lmeval_logs import Selection, find_samples, lm_eval_matrix
from p2l_plugins.votes.lmeval_prompts import PromptRule, compiled
from p2l_plugins.votes.tally import Tally

EXAMPLES = Path(__file__).parents[2] / "examples" / "lmeval"
TIME = "2026-01-02T03-04-05.678901"


def sample(doc_id, text="question", score=1.0, **keys):
    return {
        "doc_id": doc_id,
        "doc": {"question": f"{text} {doc_id}", "hint": "?"},
        "target": "1",
        "arguments": {
            "gen_args_0": {"arg_0": f"Q: {text} {doc_id}\nA:", "arg_1": " yes"},
            "gen_args_1": {"arg_0": "n"},
        },
        "filter": "none",
        "metrics": ["acc"],
        "doc_hash": f"h{doc_id}",
        "acc": score,
        **keys,
    }


def write(folder, rows, task="quiz", time=TIME, results=None):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"samples_{task}_{time}.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    if results is not None:
        (folder / f"results_{time}.json").write_text(json.dumps(results))


def imported(*folders, rule=None, on_error="refuse", **selection):
    tally = Tally(on_error)
    named = [folder if isinstance(folder, tuple) else (None, folder) for folder in folders]
    chosen = Selection(**{k: tuple(v) if isinstance(v, list) else v for k, v in selection.items()})
    return lm_eval_matrix(find_samples(named, tally), rule or PromptRule(), chosen, tally), tally


@pytest.fixture
def two(tmp_path):
    write(tmp_path / "acme__one", [sample(0, score=1.0), sample(1, score=0.0)], results={"model_name": "acme/one"})
    write(tmp_path / "two", [sample(0, score=True), sample(1, score=True)])
    return tmp_path


def test_models_share_rows_by_document(two):
    matrix, tally = imported(two)
    assert matrix.models == ("acme/one", "two")
    assert matrix.prompts == [("Q: question 0\nA:",), ("Q: question 1\nA:",)]
    assert matrix.category == ["quiz", "quiz"]
    assert matrix.scores.tolist() == [[1.0, 1.0], [0.0, 1.0]]
    assert matrix.votes().outcome.tolist() == [2, 1]
    assert tally.rows == 4
    assert not tally.dropped


def test_names_come_from_the_user_the_results_or_the_folder(two):
    assert imported(("mine", two / "acme__one"), two / "two")[0].models == ("mine", "two")
    (results,) = (two / "acme__one").glob("results_*")
    for arguments in ("dtype=float16,pretrained=acme/uno", {"pretrained": "acme/uno"}):
        results.write_text(json.dumps({"config": {"model": "hf", "model_args": arguments}}))
        assert imported(two)[0].models == ("acme/uno", "two")


def test_only_the_latest_run_of_a_model_and_task_counts(two):
    write(two / "two", [sample(0, score=0.0), sample(1, score=0.0)], time="2027-01-01T00-00-00.000000")
    matrix, tally = imported(two)
    assert matrix.scores[:, 1].tolist() == [0.0, 0.0]
    assert tally.notes[0].startswith("1 older samples of the same model and task are left out")


def test_documents_that_not_all_models_ran_are_dropped(two):
    write(two / "three", [sample(1), sample(2)])
    matrix, tally = imported(two)
    assert matrix.prompts == [("Q: question 1\nA:",)]
    assert tally.dropped == {"too-few-models": 3}
    matrix, tally = imported(two, min_models=2)
    assert len(matrix.prompts) == 2
    assert np.isnan(matrix.scores).sum() == 1
    assert tally.dropped == {"too-few-models": 1}


def test_documents_that_differ_under_one_id_are_told(two):
    write(two / "two", [sample(0), sample(1, doc_hash="changed")])
    matrix, tally = imported(two)
    assert len(matrix.prompts) == 1
    assert tally.dropped == {"hash-mismatch": 2}
    assert tally.notes == ["task quiz: 1 documents differ between the models (doc_hash)"]


def test_a_task_with_several_metrics_or_filters_needs_a_choice(tmp_path):
    rows = [
        sample(0, filter=name, metrics=["acc", "acc_norm", "f1"], acc=0, acc_norm=score, f1=[1, 0])
        for name, score in (("strict", 0.0), ("loose", 1.0))
    ]
    for name in ("x", "y"):
        write(tmp_path / name, rows)
    with pytest.raises(DataError, match="task 'quiz' has several metrics: acc, acc_norm; choose with --metric"):
        imported(tmp_path)
    with pytest.raises(DataError, match="task 'quiz' has several filters: strict, loose; choose with --filter"):
        imported(tmp_path, metrics=["acc"])
    with pytest.raises(DataError, match="no metric 'f1'; there are: acc, acc_norm; f1 is a list per document"):
        imported(tmp_path, metrics=["f1"])
    matrix, tally = imported(tmp_path, metrics=["exact_match", "acc_norm"], filters=["loose"])
    assert matrix.scores.tolist() == [[1.0, 1.0]]
    assert tally.dropped == {"other-filter": 2}


def test_tasks_can_be_chosen(two):
    for name in ("acme__one", "two"):
        write(two / name, [sample(0, acc={"a": 1})], task="board")
    with pytest.raises(DataError, match="task 'board': no metric is a number per document; name the tasks to read"):
        imported(two)
    matrix, tally = imported(two, tasks=["quiz"])
    assert len(matrix.prompts) == 2
    assert tally.notes == ["tasks left out: board"]
    with pytest.raises(DataError, match="no samples of the task 'qiuz'; there are those of board, quiz"):
        imported(two, tasks=["qiuz"])


def test_lower_is_better_comes_from_the_results(tmp_path):
    for name, score in (("x", 2.0), ("y", 3.0)):
        results = {"model_name": name, "higher_is_better": {"quiz": {"acc": False}}}
        write(tmp_path / name, [sample(0, score=score)], results=results)
    matrix, tally = imported(tmp_path)
    assert matrix.lower.tolist() == [True]
    assert matrix.votes().outcome.tolist() == [0]
    assert tally.notes == ["task quiz: a lower acc is better"]


def test_scores_that_are_missing_are_not_zero(two):
    write(two / "two", [sample(0, score=None), sample(1, score=float("nan"))])
    matrix, tally = imported(two, min_models=1)
    assert matrix.models == ("acme/one",)
    assert tally.dropped == {"no-score": 2}


def test_the_prompt_can_be_a_field_or_a_template_of_the_document(two):
    assert imported(two, rule=PromptRule(field="question"))[0].prompts == [("question 0",), ("question 1",)]
    rule = PromptRule(template=compiled("{{ question | regex_replace('ques', 'Ques') }} ({{ hint }})"))
    assert imported(two, rule=rule)[0].prompts[0] == ("Question 0 (?)",)
    with pytest.raises(DataError, match="line 1: the document has no field 'query'; it has question, hint"):
        imported(two, rule=PromptRule(field="query"))
    with pytest.raises(DataError, match="line 1: the prompt template does not fit the document"):
        imported(two, rule=PromptRule(template=compiled("{{ query }}")))
    with pytest.raises(ConfigError, match="the prompt template is wrong"):
        compiled("{{ query")


def test_templates_cannot_reach_python(two):
    with pytest.raises(DataError, match="does not fit the document"):
        imported(two, rule=PromptRule(template=compiled("{{ ''.__class__.__mro__ }}")))


@pytest.mark.parametrize("doc_to_text", ["question", "{{question}}"])
@pytest.mark.parametrize(
    "more", [{"n-shot": {"quiz": 5}}, {"chat_template": "<s>"}, {"system_instruction": "Be good."}]
)
def test_examples_and_chat_templates_give_way_to_the_tasks_own_text(two, doc_to_text, more):
    results = {"configs": {"quiz": {"doc_to_text": doc_to_text}}, **more}
    for name in ("acme__one", "two"):
        write(two / name, [sample(0)], results={"model_name": name, **results})
    assert imported(two)[0].prompts == [("question 0",)]


def test_examples_in_the_prompt_are_told_where_the_task_does_not_help(two):
    config = {"doc_to_text": "def doc_to_text(doc):\n    return doc['question']"}
    for name in ("acme__one", "two"):
        write(two / name, [sample(0)], results={"n-shot": {"quiz": 5}, "configs": {"quiz": config}})
    matrix, tally = imported(two)
    assert matrix.prompts == [("Q: question 0\nA:",)]
    assert tally.notes == [
        "task quiz: the prompts hold examples; --prompt-field or --prompt-template names the question"
    ]


def test_the_form_of_a_chat_template_is_refused_unless_another_model_has_the_plain_text(two):
    write(two / "acme__one", [sample(0, "<|im_start|>")], results={"model_name": "one", "chat_template": "<s>"})
    write(two / "two", [sample(0)])
    assert imported(two)[0].prompts == [("Q: question 0\nA:",)]
    write(two / "two", [sample(0)], results={"model_name": "two", "chat_template": "<s>"})
    with pytest.raises(
        DataError, match=r"logged in the form of a chat template, .* --prompt-field or --prompt-template"
    ):
        imported(two)


@pytest.mark.parametrize("form", [lambda m: m, json.dumps, lambda m: [json.dumps(m)]])
def test_messages_sent_to_an_api_count_as_a_chat(two, form):
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "hi"}]
    rows = [sample(0, arguments={"gen_args_0": {"arg_0": form(messages)}})]
    for name in ("acme__one", "two"):
        write(two / name, rows, results={"model_name": name, "chat_template": "<s>"})
    assert imported(two)[0].prompts == [("hi",)]


def test_older_logs_have_lists_of_arguments_and_no_list_of_metrics(two):
    row = sample(0, arguments=[["Q: old", " yes"], ["Q: old", " no"]])
    del row["metrics"], row["filter"]
    for name in ("acme__one", "two"):
        write(two / name, [row])
    assert imported(two)[0].prompts == [("Q: old",)]


def test_folders_without_samples_are_refused(tmp_path):
    with pytest.raises(DataError, match="none: there is no such folder"):
        imported(tmp_path / "none")
    with pytest.raises(
        DataError, match=r"no samples_\*.jsonl under it; run lm_eval with --log_samples and --output_path"
    ):
        imported(tmp_path)


def test_what_lm_eval_itself_writes_becomes_a_votes_file(tmp_path, monkeypatch):
    pytest.importorskip("lm_eval")
    from p2l_plugins.votes.read import read_votes

    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    twice = (  # two models in one process: starting lm-eval takes longer than the task
        f"{OWN_TASKS}import sys\nfrom lm_eval.__main__ import cli_evaluate\n"
        "for name in ('acme/one', 'two'):\n"
        "    sys.argv = ['lm_eval', 'run', '--model', 'dummy', '--model_args', f'pretrained={name}', '--tasks', "
        f"'pocket_quiz', '--include_path', {str(EXAMPLES)!r}, '--log_samples', '--output_path', 'out']\n"
        "    cli_evaluate()\n"
    )
    run = finished(script, twice, cwd=tmp_path, environment=env)
    assert run.returncode == 0, run.stderr
    monkeypatch.chdir(tmp_path)
    for arguments in (["v.jsonl"], ["f.jsonl", "--prompt-field", "question"], ["m.jsonl", "--matrix"]):
        done = json.loads(called("votes", "from-lm-eval", "out", "--json", "-o", *arguments).stdout)
        assert (done["models"], done["dropped"]) == (2, {})
    votes = read_votes(tmp_path / "v.jsonl")
    questions = [json.loads(line) for line in (EXAMPLES / "pocket_quiz.jsonl").read_text("utf-8").splitlines()]
    assert votes.models == ("acme/one", "two")
    assert len(votes) == len(questions)
    assert votes.prompts[0][0].startswith(questions[0]["question"] + "\nA. ")
    assert votes.prompts[0][0].endswith("Answer:")
    assert set(votes.groups) == {"pocket_quiz"}
    assert read_votes(tmp_path / "f.jsonl").prompts == [(q["question"],) for q in questions]
    scores = read_votes(tmp_path / "m.jsonl").scores
    for column, folder in enumerate(("acme__one", "two")):
        (results,) = (tmp_path / "out" / folder).glob("results_*.json")
        accuracy = json.loads(results.read_text())["results"]["pocket_quiz"]["acc,none"]
        assert scores[:, column].mean() == pytest.approx(accuracy)
