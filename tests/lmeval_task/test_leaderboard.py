from __future__ import annotations

import json

import numpy as np
import pytest
from lm_eval import evaluate
from lm_eval.models.dummy import DummyLM

from lmeval_task import load_p2l
from lmeval_task.task import P2LLeaderboard, metric_name
from p2l_plugins.errors import BundleError, ConfigError, DataError, PromptError
from p2l_plugins.prompts import as_turns

QUESTIONS = ["math", "law", "poem", "math law", "poem math", "a math of words", "law law", "poem", "nothing known"]


@pytest.fixture
def make(bundles, write_task):
    """Makes a leaderboard task over questions."""

    def make(questions=QUESTIONS, family="grk", **metadata):
        folder = write_task("bench", questions)
        metadata = {"p2l_bundle": str(bundles[family]), "p2l_include_path": str(folder), **metadata}
        return P2LLeaderboard({"task": "p2l_bench", "p2l_source": "bench", "metadata": metadata})

    return make


class SilentLM(DummyLM):
    """Fails when it is asked anything."""

    def loglikelihood(self, requests, disable_tqdm=False):
        raise AssertionError("the evaluated model was asked")

    generate_until = loglikelihood_rolling = loglikelihood


def run(task, **options):
    return evaluate(SilentLM(), {"tasks": {task.task_name: task}, "groups": {}}, bootstrap_iters=100, **options)


@pytest.mark.parametrize("family", ["bt", "grk"])
def test_the_leaderboard_is_the_one_of_the_core(make, bundles, family):
    result = run(make(family=family))
    report = result["configs"]["p2l_bench"]["p2l"]
    p2l = load_p2l(str(bundles[family]))
    board = p2l.score_turns([as_turns(question) for question in QUESTIONS]).leaderboard()
    assert report["leaderboard"] == board.rows()
    assert [row["rank"] for row in report["leaderboard"]] == [1, 2, 3, 4]
    assert ("usable" in report["leaderboard"][0]) == (family == "grk")
    assert (report["bundle"], report["fingerprint"]) == (f"tiny-{family}", p2l.fingerprint)
    assert (report["source"], report["n_prompts"], report["n_truncated"]) == ("bench", len(QUESTIONS), 0)
    json.dumps(report, allow_nan=False)


@pytest.mark.parametrize("family", ["bt", "grk"])
def test_the_table_has_the_line_and_a_win_rate_with_its_error_per_model(make, family):
    result = run(make(family=family))
    row = result["results"]["p2l_bench"]
    board = result["configs"]["p2l_bench"]["p2l"]["leaderboard"]
    assert row["p2l_leaderboard,p2l"] == " > ".join(entry["model"] for entry in board)
    for entry in board:
        name = metric_name(entry["model"])
        assert row[f"{name},p2l"] == pytest.approx(entry["win_rate"], abs=1e-5)
        assert row[f"{name}_stderr,p2l"] > 0
    assert not any("evaluated" in key for key in row)


def test_row_names_hold_no_comma_slash_or_bar():
    assert metric_name("org/model, v1 | x") == "p2l_win_rate:org_model_v1_x"


def test_the_evaluated_model_is_found_by_name_alias_or_path(make, caplog):
    assert make(p2l_model="the-beta").evaluated == 1
    assert make(pretrained="someone/DELTA").evaluated == 3
    assert make(model="alpha/one").evaluated == 0
    assert make(pretrained="gpt2").evaluated is None
    assert (
        "does not know the evaluated model 'gpt2'; its models: alpha/one, beta, gamma, third and 1 more" in caplog.text
    )
    assert "p2l_model" in caplog.text
    with pytest.raises(BundleError, match="'gpt2' is not in the bundle; it has alpha/one, beta"):
        make(p2l_model="gpt2")


def test_the_evaluated_model_gets_rank_and_win_rate(make):
    result = run(make(p2l_model="beta"))
    row = result["results"]["p2l_bench"]
    [entry] = [e for e in result["configs"]["p2l_bench"]["p2l"]["leaderboard"] if e["model"] == "beta"]
    assert row["p2l_evaluated_rank,p2l"] == entry["rank"]
    assert row["p2l_evaluated_win_rate,p2l"] == pytest.approx(entry["win_rate"], abs=1e-5)


def test_limit_and_samples_choose_the_prompts(make):
    limited = run(make(), limit=3)
    assert limited["configs"]["p2l_bench"]["p2l"]["n_prompts"] == 3
    chosen = run(make(), samples={"p2l_bench": [1, 6]})
    assert [s["arguments"][0][0] for s in chosen["samples"]["p2l_bench"]] == ["law", "law law"]
    assert chosen["configs"]["p2l_bench"]["p2l"]["leaderboard"][0]["model"] == "beta"


def test_samples_hold_the_coefficients_of_each_prompt(make):
    sample = run(make(), log_samples=True)["samples"]["p2l_bench"][0]
    assert sample["p2l_leaderboard"]["coefs"] == {
        "alpha/one": 2.0, "beta": 0.5, "gamma, third": -1.0, "delta": 0.0,
    }  # fmt: skip


def test_top_limits_the_rows_but_not_the_leaderboard(make):
    result = run(make(p2l_top=2))
    assert sum(key.startswith("p2l_win_rate:") for key in result["results"]["p2l_bench"]) == 4  # two and their errors
    assert len(result["configs"]["p2l_bench"]["p2l"]["leaderboard"]) == 4


def test_two_ranks_give_the_same_rows_and_leaderboard_as_one(make):
    def values(task, rank, world_size):
        task.build_all_requests(rank=rank, world_size=world_size)
        assert task.instances == []
        scored = [instance.filtered_resps["p2l"] for instance in task.apply_filters()]
        return [task.process_results(None, [item]) for item in scored]

    one = values(make(p2l_top=2), 0, 1)
    task = make(p2l_top=2)
    ranks = [values(task, rank, 2) for rank in (0, 1)]
    assert all(list(value) == list(one[0]) for value in flat(ranks))
    assert sorted(map(str, flat(ranks))) == sorted(map(str, one))


def flat(lists):
    return [value for values in lists for value in values]


def test_a_group_gives_the_prompts_of_its_tasks_in_turn(bundles, write_task):
    write_task("bench_a", ["math", "math of words"])
    folder = write_task("bench_b", ["law"])
    (folder / "group.yaml").write_text("group: both_benches\ntask: [bench_a, bench_b]\n")
    metadata = {"p2l_bundle": str(bundles["bt"]), "p2l_include_path": str(folder)}
    task = P2LLeaderboard({"task": "p2l_both", "p2l_source": "both_benches", "metadata": metadata})
    assert [doc["question"] for doc in task.test_docs()] == ["math", "law", "math of words"]
    assert run(task, limit=2)["configs"]["p2l_both"]["p2l"]["n_prompts"] == 2


def test_prompts_longer_than_the_bundle_reads_are_counted(make):
    report = run(make(["math", "law " * 8, "law " * 9]))["configs"]["p2l_bench"]["p2l"]
    assert report["n_truncated"] == 1


def test_a_template_replaces_the_prompt(make):
    result = run(make(p2l_prompt="law {{answer}}"))
    assert result["configs"]["p2l_bench"]["p2l"]["leaderboard"][0]["model"] == "beta"


def test_one_prompt_gives_no_error_of_the_mean_and_no_nan(make):
    result = run(make(), limit=1)["results"]["p2l_bench"]
    assert not any(isinstance(value, float) and np.isnan(value) for value in result.values())


def test_predict_only_keeps_the_leaderboard(make):
    task = make()
    task.override_metric("bypass")
    assert run(task)["results"]["p2l_bench"]["p2l_leaderboard,p2l"]


def test_an_empty_prompt_is_refused_with_its_document(make):
    with pytest.raises(PromptError, match="p2l_bench: document 1: the prompt is empty"):
        make(["math", " "]).build_all_requests()


def test_a_rank_without_prompts_is_refused(make):
    with pytest.raises(DataError, match="no prompts on rank 1: 1 prompts for 2 ranks"):
        make(["math"]).build_all_requests(rank=1, world_size=2)


def test_a_sample_that_does_not_exist_is_refused(make):
    with pytest.raises(DataError, match="names document 99; there are 0 to 8"):
        make().build_all_requests(samples=[1, 99])


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"p2l_bundel": "x"}, "p2l_bundel: there is no such key; valid keys: .*p2l_bundle"),
        ({"p2l_top": 0}, "p2l_top: "),
        ({"p2l_top": "many"}, "p2l_top: "),
    ],
)
def test_wrong_settings_are_refused_by_key(make, metadata, message):
    with pytest.raises(ConfigError, match=message):
        make(**metadata)


def test_a_missing_source_or_bundle_is_refused(tmp_path, make):
    with pytest.raises(ConfigError, match="p2l_source is missing"):
        P2LLeaderboard({"task": "p2l_leaderboard", "metadata": {}})
    with pytest.raises(BundleError, match=r"p2l\.json is missing"):
        make(p2l_bundle=str(tmp_path))


def test_metadata_does_not_change_the_source_that_a_yaml_names(make):
    assert make(p2l_source="gsm8k").settings.p2l_source == "bench"
