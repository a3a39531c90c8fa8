from __future__ import annotations

import hashlib
import json
import shutil

import numpy as np
import pytest
from lm_eval import evaluate
from lm_eval.models.dummy import DummyLM
from lm_eval.tasks import TaskManager
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from lmeval_task import load_p2l
from lmeval_task.benchmark import P2LBenchmark
from lmeval_task.derived import benchmark_yamls
from p2l_plugins.errors import BundleError, ConfigError, PromptError
from p2l_plugins.outcomes import sigmoid
from p2l_plugins.scoring.bundle import Bundle, sha256
from p2l_plugins.scoring.training_prompts import TRAINING_PROMPTS, TrainingPrompts

QUESTIONS = ["math", "law", "poem", "math law", "poem math", "a math of words", "law law", "poem", "nothing known"]
FILTERS = [
    {"name": "strict", "filter": [{"function": "take_first"}]},
    {"name": "yes", "filter": [{"function": "regex", "regex_pattern": "(yes)"}, {"function": "take_first"}]},
]


class AnsweringLM(DummyLM):
    """Answers that depend on the text alone: right on some questions, wrong on others, the same in every run."""

    def generate_until(self, requests, disable_tqdm=False):
        return [answer(request.args[0]) for request in requests]

    def loglikelihood(self, requests, disable_tqdm=False):
        return [(-(digest("".join(request.args)) % 1000) / 100, False) for request in requests]


def answer(text):
    return ("yes", "no", "well, yes")[digest(text.rsplit("Q: ", 1)[-1]) % 3]


def digest(text):
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "little")


@pytest.fixture
def run(bundles, tmp_path):
    """Runs tasks of a folder, wrapped ones made on the spot; returns lm-eval's results."""

    def run(folder, *names, family="grk", shots=0, predict_only=False, metadata=None, **options):
        metadata = {"p2l_bundle": str(bundles[family]), "p2l_model": "beta", **(metadata or {})}
        made = tmp_path / "made"
        made.mkdir(exist_ok=True)
        for name in names:
            if name.endswith("_p2l"):
                for file, text in benchmark_yamls(name.removesuffix("_p2l"), [folder]).items():
                    (made / file).write_text(text)
        manager = TaskManager(include_path=[folder, made], include_defaults=False, metadata=metadata)
        loaded = manager.load(list(names))
        for task in loaded["tasks"].values():  # as simple_evaluate does, which collects seconds of facts on the machine
            task.set_config("num_fewshot", shots)
            task.set_fewshot_seed(1234)
            if predict_only:
                task.override_metric("bypass")
        return evaluate(AnsweringLM(), loaded, **{"bootstrap_iters": 50} | options)

    return run


def numbers(row):
    return {key: value for key, value in row.items() if "p2l" not in key and key not in ("alias", "name")}


@pytest.mark.parametrize("shots", [0, 2])
def test_the_benchmarks_own_rows_are_the_same_to_the_last_digit(run, write_task, shots):
    folder = write_task("filters", QUESTIONS, doc_to_text="Q: {{question}}", filter_list=FILTERS)
    folder = write_task(
        "choices",
        QUESTIONS,
        output_type="multiple_choice",
        doc_to_choice=["yes", "no"],
        doc_to_target=0,
        metric_list=[{"metric": m, "aggregation": "mean", "higher_is_better": True} for m in ("acc", "acc_norm")],
    )
    names = ["filters", "filters_p2l", "choices", "choices_p2l"]
    result = run(folder, *names, shots=shots)
    rows = result["results"]
    for name in ("filters", "choices"):
        assert numbers(rows[name]) == numbers(rows[f"{name}_p2l"])
        plain, wrapped = (result["samples"][n] for n in (name, f"{name}_p2l"))
        for key in ("arguments", "resps", "filtered_resps", "target", "doc_hash", "prompt_hash"):
            assert [s[key] for s in plain] == [s[key] for s in wrapped]
        assert result["n-shot"][name] == result["n-shot"][f"{name}_p2l"] == shots
    assert rows["filters"]["exact_match,strict"] != rows["filters"]["exact_match,yes"]
    assert {"p2l_auc:acc,none", "p2l_auc:acc_norm,none"} <= set(rows["choices_p2l"])


def test_each_filter_has_its_own_agreement_with_what_p2l_predicts(run, write_task, bundles):
    folder = write_task("filters", QUESTIONS, doc_to_text="Q: {{question}}", filter_list=FILTERS)
    result = run(folder, "filters_p2l")
    row = result["results"]["filters_p2l"]
    p2l = load_p2l(str(bundles["grk"]))
    predicted = sigmoid(p2l.score([f"Q: {q}" for q in QUESTIONS]).coefs[:, 1])
    for name, right in (("strict", ("yes",)), ("yes", ("yes", "well, yes"))):
        solved = [answer(q) in right for q in QUESTIONS]
        assert row[f"p2l_auc:exact_match,{name}"] == pytest.approx(roc_auc_score(solved, predicted))
        assert row[f"p2l_predicted,{name}"] == pytest.approx(predicted.mean())
        low, high = (row[f"p2l_spearman:exact_match_{end},{name}"] for end in ("low", "high"))
        assert low < row[f"p2l_spearman:exact_match,{name}"] < high
    assert row["p2l_auc:exact_match_low,strict"] < row["p2l_auc:exact_match,strict"]
    assert row["p2l_auc:exact_match_stderr,strict"] > 0
    assert row["p2l_auc:exact_match,yes"] == 1.0  # a perfect order of nine prompts leaves no spread to see
    assert row["p2l_auc:exact_match_low,yes"] == "n/a"
    assert result["higher_is_better"]["filters_p2l"]["p2l_auc:exact_match"] is True
    assert result["configs"]["filters_p2l"]["p2l"] == {
        "kind": "benchmark",
        "source": "filters",
        "bundle": "tiny-grk",
        "fingerprint": p2l.fingerprint,
        "evaluated_model": "beta",
        "prediction": "usable",
        "n_truncated": 0,
    }


LIKELIHOODS = {
    "output_type": "loglikelihood",
    "metric_list": [{"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False}],
}


def test_the_perplexity_of_a_document_is_a_likelihood_of_which_more_is_better(run, write_task, bundles):
    folder = write_task("lines", QUESTIONS, **LIKELIHOODS)
    result = run(folder, "lines_p2l", bootstrap_iters=0)  # which forks processes for a likelihood
    predicted = sigmoid(load_p2l(str(bundles["grk"])).score(QUESTIONS).coefs[:, 1])
    likelihoods = [s["perplexity"] for s in sorted(result["samples"]["lines_p2l"], key=lambda s: s["doc_id"])]
    expected = spearmanr(predicted, likelihoods).statistic
    assert abs(expected) > 0.01
    assert result["results"]["lines_p2l"]["p2l_spearman:perplexity,none"] == pytest.approx(expected)


def test_a_metric_whose_aggregation_is_the_tasks_own_gets_rows_only_where_the_user_says_its_direction(
    run, write_task, caplog
):
    folder = write_task("own", QUESTIONS)
    (folder / "own_data.py").write_text(
        (folder / "own_data.py").read_text() + "\ndef worst(items):\n    return -min(items)\n"
    )
    yaml = folder / "own.yaml"
    lines = [line for line in yaml.read_text().splitlines() if not line.startswith("metric_list")]
    own = "  - metric: exact_match\n    aggregation: !function own_data.worst\n    higher_is_better: false"
    yaml.write_text("\n".join([*lines, "metric_list:", own]) + "\n")
    rows = run(folder, "own_p2l")["results"]["own_p2l"]
    assert not [row for row in rows if row.startswith("p2l_spearman")]
    assert "of one document is better is not known, so it gets no rows" in caplog.text
    up, down = (
        run(folder, "own_p2l", metadata={key: ["exact_match"]})["results"]["own_p2l"]["p2l_spearman:exact_match,none"]
        for key in ("p2l_higher_is_better", "p2l_lower_is_better")
    )
    assert up == pytest.approx(-down)


def test_prompts_that_were_seen_in_training_are_told_and_the_others_judged_apart(run, write_task, bundles, tmp_path):
    known = tmp_path / "known"
    shutil.copytree(bundles["grk"], known)
    TrainingPrompts.of([("math",), ("poem",)]).write(known / TRAINING_PROMPTS)
    manifest = Bundle.open(bundles["grk"]).manifest
    files = {**manifest.files, TRAINING_PROMPTS: sha256(known / TRAINING_PROMPTS)}
    manifest.model_copy(update={"files": files}).write(known)
    folder = write_task("filters", QUESTIONS, doc_to_text="{{question}}")
    result = run(folder, "filters_p2l", metadata={"p2l_bundle": str(known)})
    row = result["results"]["filters_p2l"]
    assert result["configs"]["filters_p2l"]["p2l"]["n_seen"] == 3
    assert row["p2l_seen_in_training,none"] == pytest.approx(3 / len(QUESTIONS))  # one comes twice
    rest = [q for q in QUESTIONS if q not in ("math", "poem")]
    predicted = sigmoid(load_p2l(str(known)).score(rest).coefs[:, 1])
    solved = [answer(q) == "yes" for q in rest]
    assert row["p2l_auc_unseen:exact_match,none"] == pytest.approx(roc_auc_score(solved, predicted))
    assert row["p2l_auc:exact_match,none"] != row["p2l_auc_unseen:exact_match,none"]
    plain = run(folder, "filters_p2l")["results"]["filters_p2l"]
    assert not [name for name in plain if "seen" in name]


def test_a_family_without_usability_predicts_by_win_rate(run, write_task, bundles):
    result = run(write_task("bench", QUESTIONS), "bench_p2l", family="bt")
    rates = load_p2l(str(bundles["bt"])).score(QUESTIONS).win_rates()[:, 1]
    assert result["results"]["bench_p2l"]["p2l_predicted,none"] == pytest.approx(rates.mean())
    assert result["configs"]["bench_p2l"]["p2l"]["prediction"] == "win_rate"


def test_equal_scores_are_said_to_have_no_agreement_and_nothing_is_nan(run, write_task):
    result = run(write_task("never", QUESTIONS, doc_to_target="something else"), "never_p2l")
    row = result["results"]["never_p2l"]
    assert row["p2l_auc:exact_match,none"] == row["p2l_spearman:exact_match_low,none"] == "n/a"
    assert row["p2l_auc:exact_match_stderr,none"] == "N/A"
    json.dumps(row, allow_nan=False)
    assert run(write_task("never", QUESTIONS), "never_p2l", limit=1)["results"]["never_p2l"]["sample_len"] == 1


def test_a_group_keeps_its_shape_and_its_aggregated_metric(run, write_task):
    write_task("a_bench", QUESTIONS[:5], tag="some_tag")
    write_task("b_bench", QUESTIONS[5:], tag="some_tag")
    folder = write_task("c_bench", ["law", "poem"])
    aggregate = "aggregate_metric_list:\n  - {metric: exact_match, weight_by_size: true}\n"
    inner = "  - group: inner\n    task: [some_tag]\n    aggregate_metric_list: [{metric: exact_match}]\n"
    task = "  - task: c_bench\n    task_alias: third\n    description: 'Think! '\n"
    (folder / "group.yaml").write_text(f"group: outer\n{aggregate}task:\n{inner}{task}metadata: {{version: 2}}\n")
    one, two = run(folder, "outer"), run(folder, "outer_p2l")
    for group in ("outer", "outer::inner"):
        wrapped = {"outer": "outer_p2l", "outer::inner": "outer_p2l::inner_p2l"}[group]
        assert numbers(one["groups"][group]) == numbers(two["groups"][wrapped])
    assert two["results"]["c_bench_p2l"]["alias"] == "third"
    first = two["samples"]["c_bench_p2l"][0]["arguments"][0][0]
    assert first == one["samples"]["c_bench"][0]["arguments"][0][0] == "Think! law"
    assert "p2l_auc:exact_match,none" in two["results"]["a_bench_p2l"]
    tagged = run(folder, "some_tag_p2l")["results"]
    assert {"a_bench_p2l", "b_bench_p2l"} <= set(tagged)


def test_samples_limits_and_the_examples_of_a_run_are_the_harness_own(run, write_task):
    folder = write_task("bench", QUESTIONS)
    chosen = run(folder, "bench_p2l", samples={"bench_p2l": [1, 6]})
    assert [s["arguments"][0][0] for s in chosen["samples"]["bench_p2l"]] == ["law", "law law"]
    assert len(run(folder, "bench_p2l", limit=3)["samples"]["bench_p2l"]) == 3


def test_predict_only_adds_nothing(run, write_task):
    result = run(write_task("bench", QUESTIONS), "bench_p2l", predict_only=True)
    assert not any("p2l_" in key for key in result["results"]["bench_p2l"])
    assert "p2l" not in result["configs"]["bench_p2l"]


def test_the_sample_log_can_become_votes_without_naming_a_metric(run, write_task):
    sample = run(write_task("bench", QUESTIONS), "bench_p2l")["samples"]["bench_p2l"][0]
    numeric = [name for name in sample["metrics"] if isinstance(sample[name], int | float)]
    assert numeric == ["exact_match"]
    assert sample["p2l_auc:exact_match"] == (sample["p2l_predicted"][0], sample["exact_match"], False)


def test_two_ranks_predict_what_one_does(write_task, bundles, tmp_path):
    folder = write_task("bench", QUESTIONS)

    def values(rank, world_size):
        metadata = {"p2l_bundle": str(bundles["grk"]), "p2l_model": "beta", "p2l_include_path": str(folder)}
        task = P2LBenchmark({"task": "bench_p2l", "p2l_source": "bench", "metadata": metadata})
        task.build_all_requests(rank=rank, world_size=world_size)
        for instance in task.instances:
            instance.resps = [answer(instance.args[0])]
        task.apply_filters()
        rows = [
            task.process_results(doc, [i.filtered_resps["none"] for i in task.instances if i.doc_id == doc_id])
            for doc_id, doc in task.doc_iterator(rank=rank, world_size=world_size)
        ]
        return rows, task

    one, task = values(0, 1)
    ranks = [row for rank in (0, 1) for row in values(rank, 2)[0]]
    assert all(list(row) == list(one[0]) for row in ranks)
    aggregate = task.aggregation()["p2l_spearman:exact_match_low"]
    name = "p2l_spearman:exact_match_low"
    assert sorted(map(str, ranks)) == sorted(map(str, one))
    assert isinstance(aggregate([row[name] for row in one]), float)


@pytest.mark.parametrize(
    ("metadata", "error", "message"),
    [
        ({"pretrained": "org/betta"}, ConfigError, "the evaluated model 'org/betta'; its models: beta, .*p2l_model"),
        ({}, ConfigError, "is not told which model is evaluated; its models: alpha/one, .*--metadata"),
        ({"p2l_model": "gpt2"}, BundleError, "'gpt2' is not in the bundle; it has alpha/one, beta"),
    ],
)
def test_an_unknown_evaluated_model_is_refused_with_the_known_ones(write_task, bundles, metadata, error, message):
    metadata = {"p2l_bundle": str(bundles["grk"]), "p2l_include_path": str(write_task("bench", ["math"])), **metadata}
    with pytest.raises(error, match=message):
        P2LBenchmark({"task": "bench_p2l", "p2l_source": "bench", "metadata": metadata})


def test_an_empty_prompt_is_refused(run, write_task):
    with pytest.raises(PromptError, match="bench_p2l: the prompt is empty"):
        run(write_task("bench", ["math", " "]), "bench_p2l")


def test_a_group_as_the_source_of_one_task_is_refused(write_task, bundles):
    write_task("bench_a", ["math"])
    folder = write_task("bench_b", ["law"])
    (folder / "group.yaml").write_text("group: both_benches\ntask: [bench_a, bench_b]\n")
    metadata = {"p2l_bundle": str(bundles["grk"]), "p2l_include_path": str(folder), "p2l_model": "beta"}
    with pytest.raises(ConfigError, match="'both_benches' is 2 tasks; p2l-lm-eval runs or adds both_benches_p2l"):
        P2LBenchmark({"task": "x", "p2l_source": "both_benches", "metadata": metadata})


def test_p2l_predictions_are_of_the_bundles_column(bundles):
    from lmeval_task.benchmark import predictions

    scores = load_p2l(str(bundles["grk"])).score(["math", "law"])
    assert predictions(scores, 0) == pytest.approx(sigmoid(np.array([2.0, -1.0])))
