from __future__ import annotations

import json
import random
import shutil

import pytest
from lm_eval import evaluate
from lm_eval.models.dummy import DummyLM

from lmeval_task import load_p2l
from lmeval_task.model import P2LModel
from lmeval_task.preference import P2LPreference, P2LPreferenceChoice
from p2l_plugins.errors import ConfigError, DataError
from p2l_plugins.evaluation.evaluate import evaluate_votes
from p2l_plugins.outcomes import OUTCOMES
from p2l_plugins.scoring.bundle import Bundle, sha256
from p2l_plugins.scoring.training_prompts import TRAINING_PROMPTS, TrainingPrompts
from p2l_plugins.votes.read import read_votes

MODELS = ("alpha/one", "the-beta", "gamma, third", "delta")


def rows_of(n, seed, outcomes=OUTCOMES):
    rng = random.Random(seed)
    rows = []
    for i in range(n):
        words = rng.choices(["math", "law", "poem", "of", str(i)], k=3)
        prompt = " ".join(words) if i % 4 else [words[0], " ".join(words[1:])]  # some are conversations
        for _ in range(3):
            a, b = rng.sample(MODELS, 2)
            rows.append({"prompt": prompt, "model_a": a, "model_b": b, "winner": rng.choice(outcomes)})
    return rows


def write(path, rows):
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return str(path)


@pytest.fixture
def votes(tmp_path):
    return write(tmp_path / "votes.jsonl", rows_of(40, 0))


@pytest.fixture
def run(bundles):
    def run(task_class, lm, family="grk", **options):
        metadata = {"p2l_bundle": str(bundles[family]), **options.pop("metadata")}
        task = task_class({"metadata": metadata})
        task.set_fewshot_seed(1)
        result = evaluate(lm, {"tasks": {task.task_name: task}, "groups": {}}, bootstrap_iters=10, **options)
        json.dumps(result, allow_nan=False, default=str)
        return result["results"][task.task_name], result["configs"][task.task_name]["p2l"], result

    return run


class SilentLM(DummyLM):
    def loglikelihood(self, requests, disable_tqdm=False):
        raise AssertionError("the evaluated model was asked")

    generate_until = loglikelihood_rolling = loglikelihood


def test_prompts_that_were_seen_in_training_are_counted_and_the_others_judged_apart(run, votes, bundles, tmp_path):
    known = tmp_path / "known"
    shutil.copytree(bundles["grk"], known)
    held_out = read_votes(tmp_path / "votes.jsonl", {"the-beta": "beta"})
    TrainingPrompts.of(held_out.prompts[:15]).write(known / TRAINING_PROMPTS)
    manifest = Bundle.open(bundles["grk"]).manifest
    files = {**manifest.files, TRAINING_PROMPTS: sha256(known / TRAINING_PROMPTS)}
    manifest.model_copy(update={"files": files}).write(known)
    p2l = load_p2l(str(known))
    rest = held_out.select(~p2l.bundle.training_prompts.seen(held_out.prompts))
    expected = evaluate_votes(p2l.score_turns(rest.prompts), rest).differences["marginal"]
    metadata = {"p2l_votes": votes, "p2l_bundle": str(known)}
    row, report, _ = run(P2LPreference, SilentLM(), metadata=metadata)
    assert row["p2l_seen_in_training,p2l"] == 15
    assert row["p2l_unseen_minus_marginal,p2l"] == pytest.approx(expected.log_loss, abs=1e-5)
    assert row["p2l_unseen_minus_marginal_stderr,p2l"] == pytest.approx(expected.log_loss_stderr, abs=1e-5)
    assert report["unseen"]["n_prompts"] == len(rest.prompts)
    choice, report, _ = run(P2LPreferenceChoice, P2LModel(bundle=str(known)), metadata=metadata)
    assert choice["p2l_unseen_minus_marginal,p2l"] == pytest.approx(expected.log_loss, abs=1e-4)
    unknown, _, _ = run(P2LPreference, SilentLM(), metadata={"p2l_votes": votes})
    assert unknown["p2l_seen_in_training,p2l"] == "n/a"


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("family", ["grk", "bt"])
def test_the_figures_are_those_of_p2l_evaluate(run, votes, bundles, tmp_path, family, trained):
    metadata = {"p2l_votes": votes}
    baseline = None
    p2l = load_p2l(str(bundles[family]))
    if trained:
        metadata["p2l_training_votes"] = write(tmp_path / "train.jsonl", rows_of(60, 1))
        baseline = read_votes(tmp_path / "train.jsonl", p2l.bundle.manifest.aliases)
    row, report, _ = run(P2LPreference, SilentLM(), family, metadata=metadata)
    held_out = read_votes(tmp_path / "votes.jsonl", p2l.bundle.manifest.aliases)
    expected = evaluate_votes(p2l.score_turns(held_out.prompts), held_out, baseline)
    for name, quality in expected.forecasts.items():
        for key in ("log_loss", "brier", "accuracy", "decisive_log_loss", "calibration_error"):
            assert row[f"{name}_{key},p2l"] == pytest.approx(getattr(quality, key), abs=1e-5), (name, key)
    assert row["p2l_log_loss_stderr,p2l"] == pytest.approx(expected.p2l.log_loss_stderr, abs=1e-5)
    assert row["p2l_minus_marginal,p2l"] == pytest.approx(expected.differences["marginal"].log_loss, abs=1e-5)
    assert row["p2l_minus_marginal_stderr,p2l"] > 0
    assert (report["n_votes"], report["n_prompts"]) == (120, len(held_out.prompts))
    assert (report["kind"], report["fingerprint"]) == ("preference", p2l.fingerprint)
    assert row["p2l_preference,p2l"].startswith(f"log loss {expected.p2l.log_loss:.4f}; marginal ")


@pytest.mark.parametrize("family", ["grk", "bt"])
def test_the_model_p2l_gives_the_same_figures_by_log_likelihood(run, votes, bundles, family):
    one, report_one, _ = run(P2LPreference, SilentLM(), family, metadata={"p2l_votes": votes})
    metadata = {"p2l_votes": votes, "bundle": str(bundles[family]), "p2l_bundle": str(bundles[family])}
    two, report_two, result = run(P2LPreferenceChoice, P2LModel(str(bundles[family])), family, metadata=metadata)
    compared = [key for key, value in one.items() if isinstance(value, float)]
    assert len(compared) > 20
    for key in compared:
        assert two[key] == pytest.approx(one[key], abs=5e-5), key
    assert report_one["n_votes"] == report_two["n_votes"]
    sample = result["samples"]["p2l_preference_choice"][0]
    outcomes = {"grk": 4, "bt": 2}[family]
    assert len(sample["resps"]) == 3 * outcomes
    assert sample["arguments"][0][1] == " {model_a} > {model_b}".format(**sample["doc"]["votes"][0])


def test_another_model_is_judged_by_its_normalised_likelihoods(run, votes):
    row, _, _ = run(P2LPreferenceChoice, DummyLM(), metadata={"p2l_votes": votes})
    assert 1.0 < row["p2l_log_loss,p2l"] < 2.0  # random likelihoods: about log 4


def test_a_score_matrix_is_judged_too(run, tmp_path):
    rows = [
        {"prompt": f"math {i}", "alpha/one": i % 2, "beta": 1 - i % 2, "delta": 0.4 if i % 3 else None}
        for i in range(12)
    ]
    row, report, _ = run(P2LPreference, SilentLM(), metadata={"p2l_votes": write(tmp_path / "m.jsonl", rows)})
    assert report["n_votes"] == 12 + 2 * 8
    assert row["constant_log_loss,p2l"] > 0


def test_votes_without_a_winner_leave_the_decisive_rows_empty(run, tmp_path):
    file = write(tmp_path / "ties.jsonl", rows_of(9, 2, outcomes=("tie", "tie (bothbad)")))
    row, _, _ = run(P2LPreference, SilentLM(), metadata={"p2l_votes": file})
    assert row["p2l_decisive_accuracy,p2l"] == row["marginal_decisive_log_loss,p2l"] == "n/a"
    assert row["p2l_accuracy,p2l"] >= 0


def test_limit_and_samples_choose_prompts(run, votes):
    _, report, _ = run(P2LPreference, SilentLM(), metadata={"p2l_votes": votes}, limit=5)
    assert (report["n_prompts"], report["n_votes"]) == (5, 15)
    samples = {"p2l_preference": [2, 7, 9]}
    _, report, _ = run(P2LPreference, SilentLM(), metadata={"p2l_votes": votes}, samples=samples)
    assert report["n_prompts"] == 3


def test_one_prompt_has_no_standard_error(run, votes):
    row, _, _ = run(P2LPreference, SilentLM(), metadata={"p2l_votes": votes}, limit=1)
    assert row["p2l_log_loss_stderr,p2l"] == "N/A"


def test_two_ranks_are_judged_as_one(run, votes, bundles):
    metadata = {"p2l_bundle": str(bundles["grk"]), "p2l_votes": votes}
    tasks = [P2LPreference({"metadata": metadata}) for _ in range(2)]
    items = []
    for rank, task in enumerate(tasks):
        task.build_all_requests(rank=rank, world_size=2)
        items += [task.process_results(i.doc, [i.filtered_resps["p2l"]]) for i in task.apply_filters()]
    rows = {name: aggregate([item[name] for item in items]) for name, aggregate in tasks[0].aggregation().items()}
    one, _, _ = run(P2LPreference, SilentLM(), metadata={"p2l_votes": votes})
    assert {f"{name},p2l": value for name, value in rows.items()}.items() <= one.items()


@pytest.mark.parametrize(
    ("rows", "metadata", "error", "message"),
    [
        (None, {}, ConfigError, r"p2l_votes is missing; name held-out votes, as in --metadata"),
        (None, {"p2l_votes": "/nowhere.jsonl"}, DataError, r"/nowhere\.jsonl: there is no such file"),
        ([], {}, DataError, "the file holds no rows"),
        (
            [{"prompt": "x", "model_a": "gpt", "model_b": "delta", "winner": "tie"}],
            {},
            DataError,
            r"does not have the models gpt; it has alpha/one, beta, .*p2l_names.*\"gpt\"",
        ),
        (
            [{"prompt": "x", "model_a": "beta", "model_b": "delta", "winner": "b"}],
            {},
            DataError,
            "winner is 'b'; valid:",
        ),
    ],
)
def test_bad_votes_are_refused_with_a_sentence(bundles, tmp_path, rows, metadata, error, message):
    if rows is not None:
        metadata = {"p2l_votes": write(tmp_path / "v.jsonl", rows)}
    with pytest.raises(error, match=message):
        P2LPreference({"metadata": {"p2l_bundle": str(bundles["grk"]), **metadata}})


def test_names_in_the_votes_can_be_mapped(run, tmp_path):
    rows = [{"prompt": f"math {i}", "model_a": "gpt", "model_b": "delta", "winner": "model_a"} for i in range(4)]
    metadata = {"p2l_votes": write(tmp_path / "v.jsonl", rows), "p2l_names": {"gpt": "alpha/one"}}
    _, report, _ = run(P2LPreference, SilentLM(), metadata=metadata)
    assert report["n_votes"] == 4
