"""Updating a bundle with new votes beside those that it keeps: the fit, the rule, the file and the command."""

import json
import random
import subprocess
import sys

import numpy as np
import pytest
import yaml
from helpers.command import called
from helpers.topics import MODELS as TOPIC_MODELS
from helpers.topics import TOPICS, topic_votes

from p2l_plugins.errors import BundleError, DataError
from p2l_plugins.outcomes import FAMILIES, probabilities
from p2l_plugins.scoring.bundle import PAST_VOTES, Bundle
from p2l_plugins.votes.votes import VoteBuilder, merge

pytest.importorskip("onnx")
pytest.importorskip("scipy")
pytest.importorskip("onnxruntime")

from onnx_export.anchored import AnchoredProblem, begun
from onnx_export.edit import remove_models, rename_model
from onnx_export.joint import JointProblem, JointRows, JointTask, Known, Strength
from onnx_export.past import Past, past_of
from onnx_export.update import fit
from onnx_export.update_votes import news_of

M, H, TIES = 5, 16, 0.3
NAMES = tuple(f"m{i}" for i in range(M))
STRENGTH = Strength(False, 3.0, 1.0)
rng = np.random.default_rng(0)
ROWS = 0.4 * rng.normal(size=(9, H))
WEIGHT, LEVELS = 0.4 * rng.normal(size=(M, H)), rng.normal(size=M)
KNOWN = Known(ROWS, rng.normal(size=9), np.full(M, -1))


def batch(n, seed, pairs=2, chance=False, family="grk", models=range(M)):
    """Votes on n new prompts, drawn from known rows, or by chance; with their states."""
    draw = np.random.default_rng(seed)
    states, builder = draw.normal(size=(n, H)), VoteBuilder()
    eta = 20.0 if family == "rk" else TIES
    for i, beta in enumerate(states @ WEIGHT.T + LEVELS):
        for _ in range(pairs):
            a, b = draw.choice(list(models), 2, replace=False)
            p = probabilities(family, beta[a], beta[b], eta)
            outcome = draw.integers(4) if chance else draw.choice(4, p=p / p.sum())
            builder.add((f"{seed} {i}",), (NAMES[a], NAMES[b]), int(outcome))
    return builder.votes().renamed(NAMES), states


def task_of(votes, states, line=(1.0, 0.0), family="grk"):
    eta = 20.0 if family == "rk" else 0.0
    return JointTask.of(family, votes, states, np.full(len(states), line[0] * eta + line[1]))


class Fitted:
    """A bundle's rows and what is kept of their votes, without the bundle."""

    def __init__(self, votes, states, known=KNOWN, strength=STRENGTH, family="grk"):
        self.family = family
        problem = JointProblem(task_of(votes, states, family=family), known)
        rows, theta = problem.solve(strength)
        self.line = (rows.slope, rows.shift)
        self.past = begun(problem, NAMES, strength, theta, self.line, 0.0)
        np.testing.assert_allclose(self.past.rows.weight, rows.weight, atol=1e-9)
        np.testing.assert_allclose(self.past.rows.bias, rows.bias, atol=1e-9)

    def update(self, votes, states, share=1.0):
        """An update as the command makes it; what was found."""
        past = self.past.forgotten(share)
        task = task_of(votes, states, self.line, self.family)
        found, (new, line) = fit(task, votes, past, past.rows.coefs(states))
        if found.objection(True) is None:
            self.past = new.with_votes(task, line, 1.0)
            self.line = (line[0] * self.line[0], line[0] * self.line[1] + line[1])
        return found

    def loss(self, votes, states):
        task = task_of(votes, states, self.line, self.family)
        return float(task.weight @ task.losses(self.past.rows.coefs(states), task.raw_eta)[0] / len(votes))

    def odds(self, states):
        """P of the outcomes of every pair."""
        beta, eta = self.past.rows.coefs(states), self.line[1]
        return np.stack([probabilities(self.family, beta[:, a], beta[:, b], eta) for a in range(M) for b in range(a)])


@pytest.mark.parametrize("family", FAMILIES)
def test_the_gradient_with_kept_votes_is_that_of_the_objective(family):
    drawn = "grk" if family == "rk" else family
    first = Fitted(*batch(60, 1, family="bt" if family == "bt" else drawn), family=family)
    votes, states = batch(30, 2, family="bt" if family == "bt" else drawn)
    problem = AnchoredProblem(task_of(votes, states, first.line, family), first.past.forgotten(0.7))
    theta = rng.normal(size=problem.size)
    strength = Strength(True, 2.0, 0.7)
    step = 1e-5 * np.eye(problem.size)
    numeric = [(problem.value(theta + s, strength)[0] - problem.value(theta - s, strength)[0]) / 2e-5 for s in step]
    np.testing.assert_allclose(problem.value(theta, strength)[1], numeric, atol=2e-6)


def test_the_present_rows_are_the_solution_where_nothing_is_new():
    first = Fitted(*batch(300, 1))
    votes, states = batch(10, 2)
    nothing = task_of(votes, states, first.line)
    nothing = JointTask(**{**vars(nothing), "weight": 1e-9 * nothing.weight})
    problem = AnchoredProblem(nothing, first.past)
    rows, _ = problem.solve(first.past.strength, problem.present(first.past.strength))
    np.testing.assert_allclose(rows.weight, first.past.rows.weight, atol=2e-3)
    np.testing.assert_allclose(rows.bias, first.past.rows.bias, atol=2e-3)


@pytest.mark.parametrize(("family", "n"), [("grk", 100), ("grk", 600), ("bt", 600), ("rk", 600)])
def test_two_halves_are_about_the_whole(family, n):
    """Within 0.02 in every probability's mean, and nearer to the whole than a third of what the second half changes."""
    one, two = batch(n, 1, family=family), batch(n, 2, family=family)
    whole = Fitted(merge([one[0], two[0]], [None, None]), np.concatenate([one[1], two[1]]), family=family)
    half = Fitted(*one, family=family)
    test = batch(1000, 3, family=family)
    before = half.odds(test[1])
    problem = AnchoredProblem(task_of(*two, half.line, family), half.past)
    rows, theta = problem.solve(half.past.strength, problem.present(half.past.strength))
    line = (rows.slope, rows.shift)
    half.past = problem.after(half.past.strength, theta, line).with_votes(problem.task, line, 1.0)
    half.line = (line[0] * half.line[0], line[0] * half.line[1] + line[1])
    apart, changed = (
        np.abs(half.odds(test[1]) - whole.odds(test[1])).mean(),
        np.abs(before - whole.odds(test[1])).mean(),
    )
    assert apart < min(0.02, changed / 3)
    assert half.loss(*test) < whole.loss(*test) + 0.01
    assert half.past.votes == whole.past.votes


def test_nights_of_the_same_kind_of_votes_learn_and_do_not_drift():
    first, test = Fitted(*batch(300, 1)), batch(1000, 2)
    start, written = first.loss(*test), 0
    for night in range(12):
        written += first.update(*batch(60, 100 + night)).objection(True) is None
    assert written >= 8
    assert first.loss(*test) < start - 0.03
    whole = [batch(300, 1), *(batch(60, 100 + night) for night in range(12))]
    at_once = Fitted(merge([v for v, _ in whole], [None] * 13), np.concatenate([s for _, s in whole]))
    assert first.loss(*test) < at_once.loss(*test) + 0.03
    assert np.abs(first.past.levels - LEVELS).max() < 0.7


def test_a_bundle_that_takes_one_model_routes_once_the_votes_tell():
    first = Fitted(*batch(200, 1), strength=Strength(False, 0.0, 1.0))
    assert first.update(*batch(15, 2)).strength.differ == 0.0
    assert len(set(first.past.rows.coefs(batch(50, 3)[1]).argmax(axis=1))) == 1
    assert first.update(*batch(400, 4)).strength.differ > 0.0
    assert len(set(first.past.rows.coefs(batch(50, 3)[1]).argmax(axis=1))) > 1


@pytest.mark.parametrize("n", [60, 1500])
def test_votes_by_chance_are_refused_however_many(n):
    first = Fitted(*batch(300, 1))
    said = first.update(*batch(n, 2, chance=True)).objection(True)
    assert "these votes contradict the 600 votes that it keeps" in said


def test_contrary_votes_move_a_model_that_is_known_well_less():
    often, seldom = batch(400, 1, models=(0, 1, 2, 3)), batch(40, 2, models=(1, 4))
    first = Fitted(merge([often[0], seldom[0]], [None, None]), np.concatenate([often[1], seldom[1]]))
    builder, states = VoteBuilder(), 0.1 * np.random.default_rng(3).normal(size=(40, H))
    for i in range(40):
        builder.add((f"new {i}",), (NAMES[(0, 4)[i % 2]], NAMES[1]), 0)
        builder.add((f"new {i}",), (NAMES[1], NAMES[(0, 4)[i % 2]]), 3)
    votes = builder.votes().renamed(NAMES)

    def moved(share):
        past = first.past.forgotten(share)
        problem = AnchoredProblem(task_of(votes, states, first.line), past)
        _, theta = problem.solve(past.strength, problem.present(past.strength))
        return np.abs(problem.after(past.strength, theta, (1.0, 0.0)).levels - past.levels)

    change = moved(1.0)
    assert change[0] < 0.5 * change[4]
    assert moved(0.1)[0] > 1.5 * change[0]  # and more where the votes of before are half forgotten


def test_the_file_holds_sums_of_numbers_and_names_of_models(tmp_path):
    first = Fitted(*batch(200, 1))
    path = tmp_path / PAST_VOTES
    path.write_bytes(first.past.to_bytes())
    back = Past.read(path)
    assert (back.models, back.votes, back.until, back.strength) == (NAMES, 400.0, 0.0, first.past.strength)
    np.testing.assert_allclose(back.rows.weight, first.past.rows.weight, atol=1e-5)
    np.testing.assert_allclose(back.moments.T @ back.moments, first.past.moments.T @ first.past.moments, atol=1e-5)
    with np.load(path) as file:
        assert [name for name in file.files if file[name].dtype.kind != "f"] == ["models"]
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(BundleError, match="is not a file of past votes"):
        Past.read(path)


def test_what_is_kept_goes_with_the_models_whose_rows_are_the_same():
    past = Fitted(*batch(200, 1)).past
    weight, bias = past.rows.weight.copy(), past.rows.bias.copy()
    weight[1] += 1.0  # as refit-head would
    order = [3, 1, 0]
    some = past.of(["m3", "m1", "m0"], weight[order], bias[order])
    assert some.known.tolist() == [True, False, True]
    np.testing.assert_allclose(some.rows.weight, weight[order], atol=1e-9)
    np.testing.assert_allclose(some.rows.bias, bias[order], atol=1e-9)
    new = past.of(["m2", "fresh"], np.stack([weight[2], weight[0]]), np.array([bias[2], 9.0]))
    assert new.known.tolist() == [True, False]
    assert new.rows.bias[1] == pytest.approx(9.0)


def rows_of(seed, n=160, wrong=False, start=0):
    """Topic votes on n prompts of their own."""
    draw, rows = random.Random(seed), topic_votes(n)
    for i, row in enumerate(rows):
        if i % 3 == 0:
            topic = row["prompt"].split()[0]
            prompt = " ".join([topic, *draw.choices(TOPICS[topic], k=draw.randint(1, 4)), f"x{seed}{i}"])
        row |= {"prompt": prompt, "timestamp": start + i}
        if wrong:
            row["winner"] = draw.choice(["model_a", "model_b", "tie", "tie (bothbad)"])
    return rows


def written(path, rows):
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.fixture(scope="module")
def adopted(tiny_bundle, tmp_path_factory):
    """A bundle that `adopt` made of the topics' models."""
    folder = tmp_path_factory.mktemp("adopted")
    models = [{"model_name": "g", "litellm_params": {"model": f"openai/{name}"}} for name in TOPIC_MODELS]
    (folder / "config.yaml").write_text(yaml.safe_dump({"model_list": models}))
    votes = written(folder / "votes.jsonl", rows_of(1))
    called("adopt", folder / "config.yaml", votes, "-o", folder / "bundle", "--bundle", tiny_bundle)
    return folder / "bundle"


def test_the_nightly_job_says_what_moved_and_takes_a_vote_once(adopted, tmp_path):
    rows = [{**row, "cost": 0.01, "judge": "j"} for row in rows_of(2, start=1000)]
    rows += [{"prompt": f"sum {i}", "model_a": "weak", "model_b": "stranger", "winner": "model_b"} for i in range(3)]
    rows[-3:] = [{**row, "timestamp": 1490.0} for row in rows[-3:]]
    rows += [{"timestamp": 1500, "cost": 0.01, "judge": "j"}]  # a comparison that failed
    votes = tmp_path / "new.jsonl"
    called("votes", "from-collected", written(tmp_path / "collected.jsonl", rows), "-o", votes)
    code = (
        "import sys\nfrom p2l_plugins.cli import main\ntry:\n    main()\nfinally:\n"
        "    assert not {'torch', 'transformers', 'litellm'} & set(sys.modules), 'heavy imports'"
    )
    command = [sys.executable, "-c", code, "update", adopted, votes, "-o", tmp_path / "new"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "3 votes are with 1 models that the bundle does not have" in done.stderr
    assert f"p2l add-model {adopted} --votes {votes} --model 'stranger'" in done.stderr
    for name in TOPIC_MODELS:
        assert f"| {name} |" in done.stdout
    assert "480 new votes on 160 prompts; 960 are kept with them." in done.stdout
    new = Bundle.open(tmp_path / "new")
    assert new.manifest.fingerprint != Bundle.open(adopted).manifest.fingerprint
    assert new.manifest.training["changes"][-1]["change"] == "update"
    content = (tmp_path / "new" / PAST_VOTES).read_bytes()
    assert Past.read(tmp_path / "new" / PAST_VOTES).until == 1479.0
    assert not any(word.encode() in content for words in TOPICS.values() for word in words)
    done = called("update", tmp_path / "new", votes, "-o", tmp_path / "newer", status=1)
    assert "480 are no newer than those that the bundle keeps (--again uses them)" in done.stderr
    assert not (tmp_path / "newer").exists()


def test_bad_votes_are_refused_unless_forced(adopted, tmp_path):
    votes = written(tmp_path / "bad.jsonl", rows_of(3, wrong=True, start=1000))
    done = called("update", adopted, votes, "-o", tmp_path / "new", status=1)
    assert "nothing was written: these votes contradict the 480 votes that it keeps" in done.stderr
    assert not list(tmp_path.glob("*new*"))
    record = json.loads(called("update", adopted, votes, "-o", tmp_path / "new", "--force", "--json").stdout)
    assert record["kept_votes"] == 960
    assert len(record["moves"]) == 3


def test_a_bundle_that_keeps_no_votes_begins_with_these(tiny_bundle, tmp_path):
    assert PAST_VOTES not in Bundle.open(tiny_bundle).manifest.files
    votes = written(tmp_path / "new.jsonl", [row for row in rows_of(4) if "weak" not in row.values()])
    record = json.loads(called("update", tiny_bundle, votes, "-o", tmp_path / "new", "--json").stdout)
    assert [move["model"] for move in record["moves"]] != []
    assert {move["model"] for move in record["moves"]} == {"coder", "counter"}
    before, after = (Bundle.open(folder).manifest for folder in (tiny_bundle, tmp_path / "new"))
    assert before.models == after.models
    assert Past.read(tmp_path / "new" / PAST_VOTES).votes == 160


def test_what_is_kept_follows_a_rename_and_a_removal(adopted, tmp_path):
    source = Bundle.open(adopted)
    renamed = rename_model(source, "coder", "coder-2", tmp_path / "renamed")
    fewer = remove_models(renamed, ["weak"], tmp_path / "fewer")

    def known(bundle):
        from onnx_export.head import find_head, load_graph

        head = find_head(load_graph(bundle.folder), bundle.folder)
        rows = JointRows(head.weight.astype(float), head.bias.astype(float))
        return past_of(
            bundle, bundle.manifest.models, rows.weight, rows.bias, np.zeros((1, rows.weight.shape[1]))
        ).known

    assert known(source).all()
    assert known(renamed).all()
    assert known(fewer).tolist() == [True, True]


def test_too_few_votes_that_can_be_used_are_counted(tiny_bundle):
    manifest = Bundle.open(tiny_bundle).manifest
    builder = VoteBuilder()
    for i in range(30):
        builder.add((f"p{i}",), ("coder", "counter" if i < 9 else "who"), 0, timestamp=float(i))
    with pytest.raises(
        DataError, match=r"9 of 30 votes can be used, on 9 prompts, but 10 .*21 are with models .*\(who\); it has coder"
    ):
        news_of(builder.votes(), manifest, float("nan"))
    with pytest.raises(DataError, match=r"4 of 30 votes .*: 5 are no newer"):
        news_of(builder.votes(), manifest, 4.0)
