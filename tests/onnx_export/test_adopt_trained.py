"""Adopting with a fine-tuned backbone: the rule by which it is taken, and the bundle that it makes."""

from dataclasses import replace

import numpy as np
import pytest
from helpers.topics import topic_votes

from p2l_plugins import P2L
from p2l_plugins.outcomes import probabilities
from p2l_plugins.scoring.bundle import PAST_VOTES, Bundle
from p2l_plugins.votes.votes import VoteBuilder

pytest.importorskip("torch")
pytest.importorskip("onnx")
pytest.importorskip("scipy")

from onnx_export.adopt import adopt
from onnx_export.adopt_report import tables, verdict
from onnx_export.adopt_trained import FineTuning, compared, scores_of
from onnx_export.adopt_votes import gather
from onnx_export.joint import JointTask, Strength
from onnx_export.shrinkage import Judge, decide
from p2l_plugins.evaluation.gains import prompt_scores

OUTCOMES = {"model_a": 0, "model_b": 1, "tie": 2, "tie (bothbad)": 3}


def topic_evidence(source):
    """Votes with a model that the bundle knows, and two that are new."""
    builder = VoteBuilder()
    names = {"coder": "own-coder", "counter": "counter", "weak": "own-weak"}
    for row in topic_votes(120):
        builder.add((row["prompt"],), (names[row["model_a"]], names[row["model_b"]]), OUTCOMES[row["winner"]])
    return gather(builder.votes(), ["own-weak", "counter", "own-coder"], source.manifest)


class Taken(FineTuning):
    """One that is taken whatever it is worth."""

    def judge(self, task, choice, by, fold):
        return replace(super().judge(task, choice, by, fold), taken=True)


def test_what_is_taken_is_a_bundle_of_exactly_these_models_with_the_trained_backbone(tiny_bundle, tmp_path):
    source = Bundle.open(tiny_bundle)
    evidence, said = topic_evidence(source), []
    work = tmp_path / "work"
    work.mkdir()
    tuning = Taken(source, str(tiny_bundle), evidence, 1, work, said.append)
    new, found = adopt(source, evidence, tmp_path / "out", "mine", tuning=tuning)
    assert new.manifest.models == evidence.models == ("own-weak", "counter", "own-coder")
    assert new.manifest.name == "mine"
    assert found.kind == "routes"
    assert found.tuned.prompts == round(len(evidence.votes.prompts) / 5)
    assert found.tuned.log_loss > 0
    assert any("training without fold 1 of 5" in line for line in said)
    assert "fine-tuned backbone" in verdict(found)[0]
    assert tables(found)[0][2][0][0] == "fine-tuned"
    assert PAST_VOTES not in new.manifest.files
    assert new.training_prompts is not None
    assert new.manifest.training["changes"][-1]["tuned"]["taken"] is True
    prompts = evidence.votes.prompts[:20]
    scores = P2L(new).score_turns(prompts)
    assert np.isfinite(scores.coefs).all()
    before = P2L(source).score_turns(prompts).coefs[:, source.manifest.models.index("counter")]
    assert not np.allclose(scores.coefs[:, 1], before, atol=1e-3)
    assert not list(tmp_path.glob("out/*.safetensors"))


def test_the_trained_rows_are_those_of_the_checkpoint(tiny_bundle, tiny_checkpoint):
    from p2l_plugins.training.checkpoint import Checkpoint

    checkpoint, p2l = Checkpoint.load(tiny_checkpoint), P2L.load(tiny_bundle)
    prompts = [("sum apple",), ("code loop", "and stack"), ("code",)]
    names = list(reversed(p2l.models))
    coefs, raw_eta = scores_of(checkpoint, names, prompts)
    scores = p2l.score_turns(prompts)
    np.testing.assert_allclose(coefs[:, ::-1], scores.coefs, atol=1e-4)
    np.testing.assert_allclose(raw_eta, scores.raw_eta, atol=1e-4)


@pytest.mark.parametrize(("noise", "taken"), [(0.0, True), (6.0, False)])
def test_it_is_taken_where_it_is_better_for_certain(noise, taken):
    rng = np.random.default_rng(0)
    n, m = 600, 3
    true = np.where(rng.integers(m, size=n)[:, None] == np.arange(m), 2.0, -1.0)
    builder = VoteBuilder()
    for i in range(n):
        a, b = rng.choice(m, 2, replace=False)
        p = probabilities("grk", true[i, a], true[i, b], np.array(0.5))
        builder.add((f"p{i}",), (f"m{a}", f"m{b}"), int(rng.choice(4, p=p / p.sum())))
    votes = builder.votes().renamed([f"m{i}" for i in range(m)])
    order = [int(turns[0][1:]) for turns in votes.prompts]
    true, eta = true[order], np.full(n, 0.5)
    task = JointTask.of("grk", votes, rng.normal(size=(n, 4)), eta)
    by = Judge(prompt_scores(votes), np.zeros(n, np.int64), np.ones(m, np.bool_), np.ones(len(task.prompt), np.bool_))
    level = by.cross_fit(Strength(False, 0.0, 0.0), task, np.broadcast_to(true.mean(axis=0), true.shape), eta)
    choice = decide(level, [level], float(task.weight.sum()))
    found = compared(task, choice, by, np.arange(n) % 5 == 0, true + noise * rng.normal(size=true.shape), eta)
    assert found.taken is taken
    assert found.prompts == n // 5
    assert (found.less > 0) is taken
