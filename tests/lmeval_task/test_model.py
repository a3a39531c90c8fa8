from __future__ import annotations

import math
import tomllib
from importlib.metadata import metadata, version
from pathlib import Path

import pytest
from lm_eval import evaluate
from lm_eval.api.instance import Instance
from packaging.requirements import Requirement

from lmeval_task.model import P2LModel
from lmeval_task.source import load_source
from p2l_plugins.errors import BundleError, ConfigError, P2LError
from p2l_plugins.outcomes import win_probability

ROOT = Path(__file__).resolve().parents[2]


def request(prompt: str, continuation: str) -> Instance:
    return Instance("loglikelihood", {}, (prompt, continuation), 0)


@pytest.mark.parametrize(("family", "raw_eta"), [("bt", None), ("grk", 0.0)])
def test_the_likelihood_is_that_of_the_outcome_model(bundles, family, raw_eta):
    model = P2LModel(bundle=str(bundles[family]))
    requests = [
        request("math", " alpha/one > beta"),
        request("math", " beta > alpha/one"),
        request("law", " delta > the-beta"),
    ]
    answers = model.loglikelihood(requests)
    sides = [(2.0, 0.5), (0.5, 2.0), (0.0, 2.0)]
    for (log_p, _), (a, b) in zip(answers, sides, strict=True):
        assert log_p == pytest.approx(math.log(float(win_probability(family, a, b, raw_eta))), abs=1e-6)
    assert [greedy for _, greedy in answers] == [True, False, False]


def test_a_multiple_choice_task_over_pairs_measures_its_accuracy(bundles, write_task):
    folder = write_task(
        "pairs",
        ["math", "law", "poem"],
        output_type="multiple_choice",
        doc_to_choice=["alpha/one > beta", "beta > alpha/one"],
        doc_to_target=0,
        metric_list=[{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    )
    [task] = load_source("pairs", [folder])
    task.set_config("num_fewshot", 0)
    result = evaluate(P2LModel(bundle=str(bundles["bt"])), {"tasks": {"pairs": task}, "groups": {}}, bootstrap_iters=0)
    assert result["results"]["pairs"]["acc,none"] == pytest.approx(2 / 3)


def test_other_requests_are_refused_with_a_sentence(bundles):
    model = P2LModel(bundle=str(bundles["bt"]))
    with pytest.raises(P2LError, match="' a > b'"):
        model.loglikelihood([request("math", " yes")])
    with pytest.raises(BundleError, match="'gpt2' is not in the bundle"):
        model.loglikelihood([request("math", " gpt2 > beta")])
    with pytest.raises(ConfigError, match="can't write text"):
        model.generate_until([])
    with pytest.raises(ConfigError, match="no likelihood of a text"):
        model.loglikelihood_rolling([])


def test_the_extra_asks_for_what_lm_eval_needs_to_call_models_behind_an_api():
    """lm-eval's own extra `api` is asked for, whatever packages it means in the version that is installed."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    asked = next(one for one in map(Requirement, extras["eval"]) if one.name == "lm-eval")
    assert asked.extras == {"api"}
    assert metadata("lm_eval").get_all("Provides-Extra").count("api") == 1
    assert asked.specifier.contains(version("lm_eval"))
