"""Adopting the models of a configuration: the joint fit, its shrinkage, the bundle, the report and the command."""

import json
import math
import random
import subprocess
import sys

import numpy as np
import pytest
import yaml

from p2l_plugins import P2L, DataError
from p2l_plugins.evaluation.baselines import Parts, fit_forecasts
from p2l_plugins.evaluation.gains import gain_over, prompt_scores
from p2l_plugins.outcomes import FAMILIES, probabilities
from p2l_plugins.scoring.bundle import Bundle, Manifest, find_bundle
from p2l_plugins.votes.read import read_votes
from p2l_plugins.votes.votes import VoteBuilder

pytest.importorskip("onnx")
pytest.importorskip("scipy")
pytest.importorskip("onnxruntime")

from onnx_export.adopt import adopt
from onnx_export.adopt_config import config_prices, write_config, yaml_lines
from onnx_export.adopt_figures import Point, prompts_to_tell
from onnx_export.adopt_report import verdict
from onnx_export.adopt_votes import gather
from onnx_export.head import load_graph, scale_eta
from onnx_export.joint import JointProblem, JointTask, Known, Strength
from p2l_plugins.evaluation.gains import Gain
from p2l_plugins.votes.litellm_config import config_models

TOPICS = {
    "math": ["Solve {}x + {} = {}.", "What is {} times {} plus {}?", "Integrate x^{} from {} to {}."],
    "code": ["Write a Python function that sorts {} lists of {} numbers in {} ms.", "Fix the C loop over {}, {}, {}."],
    "poem": ["Write a haiku number {} about the sea in {} words, mood {}.", "A sonnet, {} rhymes, {} lines, {} stars."],
}
MODELS = ("new-math", "new-code", "new-poem", "new-weak")


def score_rows(n, gap, seed=0):
    """A score matrix: each model is better by `gap` on its own topic; hard prompts are hard for all."""
    rng = random.Random(seed)
    rows = []
    for _ in range(n):
        topic = rng.choice(list(TOPICS))
        prompt = rng.choice(TOPICS[topic]).format(*(rng.randint(2, 99999) for _ in range(3)))
        hard = rng.gauss(0, 1)
        row = {"prompt": prompt, "category": topic}
        for model in MODELS:
            beta = 0.5 * hard + gap * (model == f"new-{topic}") - (model == "new-weak") + 0.3 * (model == "new-code")
            row[model] = int(rng.random() < 1 / (1 + math.exp(-beta)))
        rows.append(row)
    return rows


def write_rows(path, rows):
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


CONFIG = {
    "model_list": [
        {"model_name": "auto", "litellm_params": {"model": f"openai/{name}", "input_cost_per_token": price}}
        | {"model_info": {"output_cost_per_token": price}}
        for name, price in zip((*MODELS, "new-silent"), (1e-6, 9e-6, 1e-6, 1e-7, 1e-6), strict=True)
    ]
}


def adopted(folder, rows, *options):
    """Runs the command in a process of its own, which must not import torch and stay small: (printed, bundle)."""
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump(CONFIG))
    votes = write_rows(folder / "votes.jsonl", rows)
    code = (
        "import sys\nfrom p2l_plugins.cli import main\ntry:\n    main()\nfinally:\n"
        "    assert not {'torch', 'transformers', 'litellm'} & set(sys.modules), 'heavy imports'\n"
        "    import resource\n    used = resource.getrusage(resource.RUSAGE_SELF)\n"
        # ru_maxrss counts what the tests' own process held when it started this one
        "    peak = int(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])\n"
        "    assert used.ru_utime + used.ru_stime < 60 and peak < 1e6, (used, peak)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "adopt", str(config), str(votes), "-o", str(folder / "bundle"), *options],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done, folder / "bundle"


@pytest.fixture(scope="module")
def topical(tmp_path_factory):
    folder = tmp_path_factory.mktemp("topical")
    rows = score_rows(300, 3.0)
    done, bundle = adopted(folder, rows, "--write-config", str(folder / "new.yaml"), "--train")
    assert "not fine-tuning: votes on 300 prompts, where 500 are needed" in done.stderr
    return folder, rows, done, bundle


def test_models_that_differ_by_topic_are_routed_by_topic(topical):
    _, _, done, bundle = topical
    p2l = P2L.load(bundle)
    assert p2l.models == MODELS
    new = score_rows(60, 3.0, seed=1)
    best = p2l.score([row["prompt"] for row in new]).coefs.argmax(axis=1)
    right = [MODELS[i] == f"new-{row['category']}" for i, row in zip(best, new, strict=True)]
    assert np.mean(right) > 0.9
    assert "the bundle routes" in done.stderr
    assert "Without votes, so not in the bundle: new-silent" in done.stderr


def test_ties_and_both_bad_are_as_frequent_as_in_the_votes(topical):
    folder, rows, _, bundle = topical
    votes = read_votes(folder / "votes.jsonl").renamed(MODELS)
    scores = P2L.load(bundle).score_turns(votes.prompts)
    p = votes.prompt
    told = probabilities("grk", scores.coefs[p, votes.a], scores.coefs[p, votes.b], scores.raw_eta[p]).mean(axis=0)
    seen = np.bincount(votes.outcome, minlength=4) / len(votes)
    np.testing.assert_allclose(told[2:], seen[2:], atol=0.03)
    assert len(rows) == 300


def test_the_lines_and_the_copy_of_the_configuration_route_with_the_bundle(topical):
    folder, _, done, bundle = topical
    lines = yaml.safe_load(done.stdout)
    assert lines["litellm_settings"]["p2l_settings"]["bundle"] == str(bundle)
    assert "openai/new-math\n#     model_info: {p2l_model: new-math}" in done.stdout
    copy = yaml.safe_load((folder / "new.yaml").read_text())
    assert copy["litellm_settings"]["callbacks"] == ["litellm_router.p2l_router"]
    info = [deployment["model_info"].get("p2l_model") for deployment in copy["model_list"]]
    assert info == [*MODELS, None]
    report = (bundle / "report.md").read_text()
    for part in (
        "## Leaderboard",
        "## Routed score",
        "## Better or worse than peers",
        "## Learning curve",
        "## Score against",
    ):
        assert part in report
    page = (bundle / "report.html").read_text()
    assert "<script" not in page
    assert not any(row["prompt"] in page + report for row in topical[1])
    manifest = Manifest.model_validate_json((bundle / "p2l.json").read_bytes())
    assert manifest.training["changes"][-1]["does"] == "routes"


def test_without_anything_to_gain_the_bundle_takes_one_model(tmp_path):
    done, bundle = adopted(tmp_path, score_rows(200, 0.0, seed=2), "--json")
    record = json.loads(done.stdout)
    assert record["does"] == "single"
    assert record["verdict"][0].startswith("Routing by prompt gains nothing yet over always taking ")
    coefs = P2L.load(bundle).score([row["prompt"] for row in score_rows(40, 0.0, seed=3)]).coefs
    assert len(set(coefs.argmax(axis=1))) == 1


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("strength", [Strength(False, 0.0, 0.0), Strength(False, 0.0, 0.3), Strength(True, 2.0, 0.7)])
def test_the_gradient_is_that_of_the_objective(family, strength):
    rng = np.random.default_rng(0)
    builder = VoteBuilder()
    for i in range(60):
        a, b = rng.choice(4, 2, replace=False)
        builder.add((f"p{i % 20}",), (f"m{a}", f"m{b}"), int(rng.integers(2 if family == "bt" else 4)))
    votes = builder.votes()
    eta = rng.normal(20 if family == "rk" else 0, 1, len(votes.prompts))
    task = JointTask.of(family, votes, rng.normal(size=(len(votes.prompts), 6)), eta)
    known = Known.of(rng.normal(size=(5, 6)), rng.normal(size=5), np.array([2, -1, -1, 0]))
    problem = JointProblem(task, known)
    theta = rng.normal(size=problem.size)
    _, gradient = problem.value(theta, strength)
    step = 1e-5 * np.eye(problem.size)
    numeric = [(problem.value(theta + s, strength)[0] - problem.value(theta - s, strength)[0]) / 2e-5 for s in step]
    np.testing.assert_allclose(gradient, numeric, atol=1e-7)


def test_the_fitted_rows_are_the_solution_and_a_warm_start_changes_nothing():
    rng = np.random.default_rng(1)
    builder = VoteBuilder()
    for i in range(300):
        builder.add((f"p{i % 100}",), ("x", "y"), int(rng.integers(4)))
    votes = builder.votes()
    task = JointTask.of("grk", votes, rng.normal(size=(100, 5)), rng.normal(size=100))
    problem = JointProblem(task, Known.of(rng.normal(size=(4, 5)), rng.normal(size=4), np.array([-1, 1])))
    strength = Strength(True, 3.0, 1.0)
    rows, theta = problem.solve(strength)
    assert np.abs(problem.value(theta, strength)[1]).max() < 1e-5
    before = Strength(True, 30.0, 10.0)
    warm, _ = problem.solve(strength, (before, problem.solve(before)[1]))
    np.testing.assert_allclose(warm.weight, rows.weight, atol=2e-3)
    beta, raw = rows.coefs(task.features), rows.raw_eta(task.raw_eta)
    assert problem.value(theta, strength)[0] >= task.weight @ task.losses(beta, raw)[0] / task.weight.sum()


def test_with_nothing_in_common_and_levels_alone_it_is_one_leaderboard():
    rng = np.random.default_rng(2)
    builder = VoteBuilder()
    for i in range(900):
        a, b = rng.choice(3, 2, replace=False)
        builder.add((f"p{i % 300}",), (f"m{a}", f"m{b}"), int(rng.choice(4, p=[0.4, 0.2, 0.3, 0.1])))
    votes = builder.votes()
    task = JointTask.of("grk", votes, rng.normal(size=(300, 5)), np.full(300, 0.5))
    problem = JointProblem(task, Known.of(rng.normal(size=(4, 5)), np.zeros(4), np.full(3, -1)))
    rows, _ = problem.solve(Strength(False, 0.0, 0.0))
    assert not rows.weight.any()
    coefs, raw_eta = fit_forecasts(Parts.of([""] * 300, [""] * 300), votes, "grk").marginal
    np.testing.assert_allclose(rows.bias, coefs[0], atol=0.1)
    np.testing.assert_allclose(rows.raw_eta(task.raw_eta), raw_eta, atol=0.1)


def test_votes_are_sorted_by_what_they_are_to_the_adoption():
    builder = VoteBuilder()
    for pair in (("a", "b"), ("a", "gpt-4o-2024-08-06"), ("a", "stranger"), ("stranger", "nobody"), ("c", "nobody")):
        builder.add(("x",), pair, 0)
    manifest = Bundle.open(find_bundle("starter")).manifest
    evidence = gather(builder.votes(), ["c", "b", "a", "d"], manifest)
    assert evidence.models == ("b", "a")
    assert evidence.others == ("gpt-4o-2024-08-06",)
    assert evidence.without == ("c", "d")
    assert set(evidence.left_out) >= {"nobody", "stranger"}
    assert evidence.left_out_votes == 3
    assert evidence.index.tolist() == [-1, -1, manifest.models.index("gpt-4o-2024-08-06")]
    with pytest.raises(DataError, match="1 of the configuration's models a, z have votes, but two must"):
        gather(builder.votes(), ["a", "z"], manifest)


def test_names_that_do_not_meet_come_with_the_next_command():
    manifest = Bundle.open(find_bundle("starter")).manifest
    builder = VoteBuilder()
    for name in ("CODER", *(f"stranger-{i}" for i in range(60))):
        builder.add(("x",), (name, "minder"), 0)
    with pytest.raises(DataError, match=r"on CODER, .* and 54 more; .*--alias 'CODER'='coder'") as raised:
        gather(builder.votes(), ["coder", "minder"], manifest)
    assert len(str(raised.value)) < 500
    with pytest.raises(DataError, match="the configuration has one model, minder"):
        gather(builder.votes(), ["minder"], manifest)
    builder.add(("x",), ("coder", "CODER"), 0)
    with pytest.raises(DataError, match=r"62 are with models .*\(CODER, .* and 53 more\).*--alias 'CODER'='coder'"):
        gather(builder.votes(), ["coder", "minder"], manifest)


def test_votes_on_one_prompt_are_refused_and_too_few_for_a_curve_are_no_forecast(tmp_path):
    source = Bundle.open(find_bundle("starter"))
    builder = VoteBuilder()
    for _ in range(9):
        builder.add(("only one",), ("a", "b"), 0)
    with pytest.raises(DataError, match="all votes that can be used are on one prompt"):
        adopt(source, gather(builder.votes(), ["a", "b"], source.manifest), tmp_path / "one", "one")
    assert not list(tmp_path.iterdir())
    builder.add(("another",), ("a", "b"), 0)
    _, found = adopt(source, gather(builder.votes(), ["a", "b"], source.manifest), tmp_path / "two", "two")
    assert found.kind == "single"
    assert "do not say how many more" in verdict(found)[-1]


def test_gains_on_a_full_matrix_are_paired_means_and_on_votes_those_that_are_compared():
    rng = np.random.default_rng(0)
    scores = rng.random((500, 3))
    pick, base = rng.integers(3, size=500), np.zeros(500, np.int64)
    gap = scores[np.arange(500), pick] - scores[:, 0]
    gain = gain_over(scores, pick, base)
    np.testing.assert_allclose(gain.mean, gap.mean())
    np.testing.assert_allclose(gain.stderr, gap.std(ddof=1) / np.sqrt(500), rtol=0.02)
    hidden = np.where(rng.random(scores.shape) < 0.4, np.nan, scores)
    some = gain_over(hidden, pick, base)
    assert abs(some.mean - gain.mean) < 3 * some.stderr
    assert some.stderr > gain.stderr
    builder = VoteBuilder()
    builder.add(("x",), ("a", "b"), 0)
    builder.add(("x",), ("b", "c"), 2)
    builder.add(("y",), ("b", "c"), 3)
    np.testing.assert_array_equal(prompt_scores(builder.votes()), [[1, 0.25, 0.5], [np.nan, 0, 0]])


def test_more_prompts_are_counted_by_the_learning_curve():
    def points(*gains, error=0.01):
        return [Point(100 * 2**i, Gain(g, error, 0.5, 100, 500), 0.0, 0.0) for i, g in enumerate(gains)]

    assert prompts_to_tell(points(0.05, 0.05, 0.05), 500) == 0
    assert prompts_to_tell(points(-0.01, -0.01, -0.01), 500) is None
    once = prompts_to_tell(points(0.01, 0.01, 0.01), 500)
    assert once == pytest.approx(1500, rel=0.1)  # four times as many halve the standard error
    # 0.01 − 4/m against 2 standard errors of 0.01 · √(400/m): 1 − 1/t = 2/√t at t = (1 + √2)²
    assert prompts_to_tell(points(-0.03, 0.01 - 4 / 200, 0.0), 500) == pytest.approx(500 * 4.83, rel=0.1)


def test_prices_and_names_of_a_configuration(tmp_path):
    deployments = [
        {"model_name": "g", "litellm_params": {"model": "x/m", "input_cost_per_token": "2e-6"}},
        {"model_name": "g", "litellm_params": {"model": "x/free", "api_key": "k"}},
    ]
    deployments[0]["model_info"] = {"output_cost_per_token": 4e-6}
    models = config_models(deployments)
    assert config_prices(models) == {"m": {"input_price": pytest.approx(2.0), "output_price": pytest.approx(4.0)}}
    assert "x/free" not in yaml_lines(models, ("m",), {"bundle": "b"})
    source = tmp_path / "c.yaml"
    source.write_text(yaml.safe_dump({"model_list": deployments, "litellm_settings": {"callbacks": "other"}}))
    write_config(source, tmp_path / "out.yaml", ("m",), {"bundle": "b"})
    copy = yaml.safe_load((tmp_path / "out.yaml").read_text())
    assert copy["litellm_settings"]["callbacks"] == ["other", "litellm_router.p2l_router"]
    assert copy["model_list"][0]["model_info"] == {"output_cost_per_token": 4e-6, "p2l_model": "m"}
    assert copy["model_list"][1] == deployments[1]


WRITTEN = {
    "block": """# ours
model_list:
  - model_name: auto   # the group
    litellm_params:
      model: openai/m  # cheap
      api_key: os.environ/KEY
    # and the other
  - model_name: auto
    litellm_params: {model: openai/n}
    model_info:
      # of the contract
      mode: chat

litellm_settings:
  # both
  callbacks:
    - prometheus  # metrics
  drop_params: true
# end""",
    "flow": """model_list:   # two
- {model_name: auto, litellm_params: {model: openai/m}}
- {model_name: auto, litellm_params: {model: openai/n}, model_info: {mode: chat}}
litellm_settings: {callbacks: [prometheus], p2l_settings: {rule: "best",   # as before
    bundle: 'old'}}
""",
    "bare": """model_list:
- litellm_params:
    model: openai/m # one
  model_name: auto
- model_name: auto
  litellm_params:
    model: openai/n
  model_info:
litellm_settings:
general_settings:   {master_key: os.environ/KEY} # last
""",
    "one callback": """model_list:
- model_name: auto
  litellm_params: {model: openai/m} # one
- model_name: auto
  litellm_params: {model: openai/n}
litellm_settings:
  p2l_settings:
    bundle: old # the first
    budget: 1e-3
  callbacks: prometheus # metrics
""",
}


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("form", WRITTEN)
def test_the_copy_of_a_configuration_keeps_its_comments_and_all_that_is_not_of_the_bundle(form, ending, tmp_path):
    source, target = tmp_path / "c.yaml", tmp_path / "new.yaml"
    text = WRITTEN[form].replace("\n", ending)
    source.write_bytes(text.encode())
    note = write_config(source, target, ("m", "n"), {"bundle": "bundles/é", "rule": "paced"})
    written = target.read_bytes().decode()
    assert "could not be kept" not in note
    assert written.count("#") == text.count("#")
    for line in text.split(ending):  # each comment stands on the line on which it stood
        _, mark, comment = line.partition("#")
        assert not mark or any(new.endswith(mark + comment) for new in written.split(ending))
    assert written.count("\n") == written.count(ending)
    before, after = yaml.safe_load(text), yaml.safe_load(written)
    names = [deployment.setdefault("model_info", {}).pop("p2l_model") for deployment in after["model_list"]]
    assert names == ["m", "n"]
    for deployment in before["model_list"]:
        deployment["model_info"] = deployment.get("model_info") or {}
    assert after.pop("litellm_settings")["p2l_settings"]["bundle"] == "bundles/é"
    before.pop("litellm_settings", None)
    assert after == before


def test_a_form_that_lines_cannot_be_put_into_is_written_without_comments_and_said(tmp_path):
    source, target = tmp_path / "c.yaml", tmp_path / "new.yaml"
    source.write_text(
        "x: &one {model_name: auto, litellm_params: {model: openai/m}}  # shared\nmodel_list: [*one]\n...\n"
    )
    assert "could not be kept" in write_config(source, target, ("m",), {"bundle": "b"})
    copy = yaml.safe_load(target.read_text())
    assert copy["model_list"][0]["model_info"] == {"p2l_model": "m"}
    assert "model_info" not in copy["x"]
    source.write_text(
        "model_list: [{model_name: a, litellm_params: {model: openai/m}}]\nlitellm_settings: {callbacks: 5}\n"
    )
    with pytest.raises(DataError, match=r"litellm_settings\.callbacks must be a name or a list"):
        write_config(source, target, ("m",), {"bundle": "b"})


def test_raw_eta_is_scaled_twice_by_two_nodes(tmp_path):
    import onnx

    model = load_graph(find_bundle("starter"))
    nodes = len(model.graph.node)
    scale_eta(model, 2.0, 1.0)
    scale_eta(model, 3.0, -1.0)
    assert len(model.graph.node) == nodes + 2
    kept = {t.name: float(onnx.numpy_helper.to_array(t)) for t in model.graph.initializer if "raw_eta_s" in t.name}
    assert kept == {"raw_eta_slope": 6.0, "raw_eta_shift": 2.0}
