"""What the harness does around a task: W&B's tables, the shared cache, the model's entry point."""

from __future__ import annotations

import importlib.metadata
import json
import math

import pytest
from helpers.servers import server
from lm_eval import evaluate
from lm_eval.api.instance import Instance
from lm_eval.loggers.wandb_logger import WandbLogger
from lm_eval.models.dummy import DummyLM

from lmeval_task import load_p2l
from lmeval_task.benchmark import P2LBenchmark
from lmeval_task.model import P2LModel
from lmeval_task.preference import P2LPreference, P2LPreferenceChoice
from lmeval_task.task import P2LLeaderboard
from p2l_plugins.errors import PromptError
from p2l_plugins.outcomes import probabilities
from p2l_plugins.scoring.cached import URL

QUESTIONS = ["math", "law", "poem math"]


@pytest.fixture
def votes(tmp_path):
    rows = [{"prompt": q, "model_a": "beta", "model_b": "gamma, third", "winner": "model_a"} for q in QUESTIONS]
    path = tmp_path / "votes.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


@pytest.fixture
def make(bundles, write_task, votes):
    def make(task_class):
        folder = write_task("bench", QUESTIONS)
        metadata = {"p2l_bundle": str(bundles["grk"]), "p2l_include_path": str(folder), "p2l_model": "beta"}
        own = {"p2l_votes": votes} if issubclass(task_class, P2LPreference) else {}
        name = task_class.__name__.lower()
        task = task_class({"task": name, "p2l_source": "bench", "metadata": metadata | own})
        task.set_fewshot_seed(1)
        return task

    return make


@pytest.mark.parametrize("task_class", [P2LLeaderboard, P2LBenchmark, P2LPreference, P2LPreferenceChoice])
def test_wandb_takes_results_and_samples(make, task_class):
    """lm-eval's own W&B code on our results; what it hands to W&B must be one value per name."""
    task = make(task_class)
    lm = P2LModel(bundle=task.settings.p2l_bundle) if task_class is P2LPreferenceChoice else DummyLM()
    results = evaluate(lm, {"tasks": {task.task_name: task}, "groups": {}}, bootstrap_iters=5)
    logger = object.__new__(WandbLogger)  # its constructor needs W&B
    logger.post_init(results)
    logger._get_config()
    summary, values = logger._sanitize_results_dict()
    assert all(name.count("/") == 1 for name in [*summary, *values])
    assert all(isinstance(value, int | float) for value in values.values())
    table = logger._generate_dataset(results["samples"][task.task_name], results["configs"][task.task_name])
    assert list(table["data"]) == QUESTIONS


@pytest.fixture(scope="module")
def valkey(tmp_path_factory):
    with server(tmp_path_factory.mktemp("valkey")) as running:
        yield running


@pytest.mark.parametrize("task_class", [P2LLeaderboard, P2LBenchmark, P2LPreference])
def test_scores_come_from_the_shared_cache(make, monkeypatch, valkey, task_class):
    client = valkey.client()
    client.flushall()
    monkeypatch.setenv(URL, valkey.url)
    scored = []
    real = type(load_p2l("starter")).score_turns
    monkeypatch.setattr(
        "p2l_plugins.scoring.scorer.P2L.score_turns", lambda *a, **k: scored.append(a[1]) or real(*a, **k)
    )
    for _ in range(2):
        task = make(task_class)
        evaluate(DummyLM(), {"tasks": {task.task_name: task}, "groups": {}}, bootstrap_iters=0)
    assert len(client.keys()) == len(QUESTIONS)
    assert sum(map(len, scored)) == len(QUESTIONS)  # the second run found all


def test_our_command_makes_the_model_known_to_the_harness(bundles):
    from lm_eval.api.registry import get_model

    from lmeval_task.cli import _register_model

    _register_model()
    _register_model()
    model = get_model("p2l").create_from_arg_obj({"bundle": str(bundles["bt"])}, {"batch_size": 1, "device": None})
    assert model.get_model_info()["p2l_bundle"] == "tiny-bt"


def test_the_model_is_declared_for_newer_harnesses():
    [entry] = [e for e in importlib.metadata.entry_points(group="lm_eval.models") if e.name == "p2l"]
    assert entry.load() is P2LModel


def request(context, continuation):
    return Instance("loglikelihood", {}, (context, continuation), 0)


def test_the_model_answers_ties_and_conversations(bundles):
    model = P2LModel(bundle=str(bundles["grk"]))
    chat = model.apply_chat_template(
        [{"role": "system", "content": "poem"}, {"role": "user", "content": "law"}, {"role": "user", "content": "math"}]
    )
    texts = [" alpha/one > delta", " delta > alpha/one", " alpha/one = delta", " alpha/one = delta (both bad)"]
    for context, beta in ((chat, (1.0, 0.0)), ("[{not json", (0.0, 0.0))):
        answers = model.loglikelihood([request(context, text) for text in texts])
        expected = probabilities("grk", *beta, 0.0)
        assert [math.exp(log_p) for log_p, _ in answers] == pytest.approx(expected.tolist(), abs=1e-6)
        assert sum(likeliest for _, likeliest in answers) >= 1


def test_a_family_without_ties_gives_them_no_chance(bundles):
    [(log_p, likeliest)] = P2LModel(bundle=str(bundles["bt"])).loglikelihood([request("math", " beta = delta")])
    assert (log_p, likeliest) == (pytest.approx(math.log(1e-300)), False)
    json.dumps(log_p, allow_nan=False)


def test_an_empty_context_is_refused(bundles):
    with pytest.raises(PromptError, match="the prompt is empty"):
        P2LModel(bundle=str(bundles["bt"])).loglikelihood([request(" ", " beta > delta")])
