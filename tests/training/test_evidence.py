"""Little-known models are shrunk towards their peers by their evidence."""

import json
import shutil

import numpy as np
import pytest

from onnx_export.edit import remove_models, rename_model
from onnx_export.export import export
from onnx_export.refit import refit_head
from p2l_plugins import P2L
from p2l_plugins.errors import BundleError
from p2l_plugins.outcomes import A, B, sigmoid
from p2l_plugins.scoring.bundle import Bundle
from p2l_plugins.training.config import read_config
from p2l_plugins.training.evidence import evidence
from p2l_plugins.training.marginal import fit_marginal
from p2l_plugins.training.split import load_sources, split
from p2l_plugins.training.train import train
from p2l_plugins.votes.votes import VoteBuilder


def records(support):
    return {name: one.record() for name, one in support.items()}


def games(rng, levels, prompts, name, shift=0.0):
    """A file of votes in which a model wins by its level: one vote a prompt, models with few prompts seldom."""
    builder = VoteBuilder()
    names = list(levels)
    share = np.array([levels[n][1] for n in names], float)
    for i in range(prompts):
        a, b = rng.choice(len(names), 2, replace=False, p=share / share.sum())
        wins = rng.random() < sigmoid(levels[names[a]][0] - levels[names[b]][0] + shift)
        builder.add((f"{name} {i}",), (names[a], names[b]), A if wins else B)
    return builder.votes()


def test_shrinking_makes_little_known_levels_better_on_average():
    """Against the truth that the votes were drawn from, over many draws."""
    before, after = [], []
    for seed in range(25):
        rng = np.random.default_rng(seed)
        levels = {f"m{i}": (rng.normal(0, 0.7), 1.0 if i < 8 else 0.03) for i in range(16)}
        part = games(rng, levels, 900, "a")
        found = evidence([part], "bt")
        models = found.models
        order = [part.models.index(m) for m in models]
        fitted = fit_marginal(part, "bt")[0][order]
        truth = np.array([levels[m][0] for m in models])
        rows, bias = found.shrunk(models, np.zeros((len(models), 2)), fitted)
        few = np.array([found.found[m].votes < 40 for m in models])
        for out, value in ((before, fitted), (after, bias)):
            out.append(float((((value - value.mean()) - (truth - truth.mean()))[few] ** 2).mean()))
        assert not rows.any()
    assert np.mean(after) < 0.8 * np.mean(before)


def test_well_known_models_hardly_move_and_unknown_ones_stay():
    rng = np.random.default_rng(0)
    found = evidence([games(rng, {n: (i / 2, 1.0) for i, n in enumerate("abcd")}, 4000, "a")], "bt")
    assert (found.keep() > 0.99).all()
    weight, bias = rng.normal(size=(5, 3)), rng.normal(size=5)
    rows, levels = found.shrunk(["a", "stranger", "b", "c", "d"], weight, bias)
    np.testing.assert_array_equal(rows[1], weight[1])
    assert levels[1] == bias[1]
    np.testing.assert_allclose(rows, weight, atol=0.05)


def test_peers_are_the_models_of_the_same_sets():
    rng = np.random.default_rng(1)
    one = games(rng, {"a": (0, 1), "b": (1, 1)}, 200, "one")
    two = games(rng, {"c": (0, 1), "d": (1, 1), "e": (2, 1)}, 200, "two")
    found = evidence([one, two], "bt")
    np.testing.assert_allclose(found.peers.sum(axis=1), 1)
    assert not found.peers[:2, 2:].any()
    assert not found.peers.diagonal().any()


def test_a_level_that_differs_between_sets_is_known_less_than_its_votes_say():
    rng = np.random.default_rng(2)
    names = [f"m{i}" for i in range(12)]
    level = dict(zip(names, rng.normal(0, 1, 12), strict=True))
    same = [games(rng, {n: (level[n], 1) for n in names}, 3000, str(k)) for k in range(4)]
    apart = [games(rng, {n: (level[n] + rng.normal(0, 0.8), 1) for n in names}, 3000, str(k)) for k in range(4)]
    alike, unlike = evidence(same, "bt"), evidence(apart, "bt")
    assert alike.between < 0.15
    assert 0.5 < unlike.between < 1.1
    one = unlike.found["m0"]
    assert one.stderr == pytest.approx(np.sqrt(4 / one.votes + unlike.between**2 / 4), abs=1e-4)
    assert one.sets == 4


def test_training_export_and_edits_carry_what_is_known(tiny_checkpoint, tiny_bundle, train_config, tmp_path):
    config = read_config(train_config)
    parts = split(config, load_sources(config, train_config.parent))
    known = evidence(parts.sources, config.family)
    manifest = Bundle.open(tiny_bundle).manifest
    assert records(manifest.support) == records(known.found)
    report = json.loads((tiny_checkpoint / "training_report.json").read_text())
    assert report["levels"]["shrunk"] is False
    renamed = rename_model(Bundle.open(tiny_bundle), "coder", "writer", tmp_path / "renamed")
    assert renamed.manifest.support["writer"] == manifest.support["coder"]
    assert "coder" not in renamed.manifest.support
    removed = remove_models(renamed, ["writer"], tmp_path / "removed")
    assert set(removed.manifest.support) == set(manifest.support) - {"coder"}


def test_training_and_refitting_can_shrink(train_config, tiny_bundle, tmp_path):
    config = read_config(train_config).model_copy(update={"shrink": True})
    train(config, train_config.parent, tmp_path / "checkpoint")
    shrunk = export(tmp_path / "checkpoint", tmp_path / "bundle")
    assert shrunk.manifest.training["levels"]["shrunk"] is True
    prompts = [("sum apple",), ("code loop",)]
    parts = split(config, load_sources(config, train_config.parent))
    known = evidence(parts.sources, config.family)
    assert (known.keep() < 1).any()
    before, after = P2L(Bundle.open(tiny_bundle)).score_turns(prompts), P2L(shrunk).score_turns(prompts)
    order = [before.models.index(m) for m in known.models]
    b = known.keep()[:, None]
    mine = before.coefs[:, order].T
    np.testing.assert_allclose(after.coefs[:, order].T, b * mine + (1 - b) * known.peers @ mine, atol=2e-4)
    refit = refit_head(Bundle.open(tiny_bundle), config, train_config.parent, tmp_path / "refit", 1, 8)
    assert refit.manifest.training["changes"][-1]["shrink"] is True
    assert records(refit.manifest.support) == records(known.after())


def test_a_bundle_without_support_is_as_before_and_a_broken_one_is_refused(tiny_bundle, tmp_path):
    bundle = Bundle.open(tiny_bundle)
    training = {key: value for key, value in bundle.manifest.training.items() if key != "support"}
    folder = shutil.copytree(tiny_bundle, tmp_path / "old")
    bundle.manifest.model_copy(update={"training": training}).write(folder)
    old = Bundle.open(folder)
    assert old.manifest.support == {}
    assert old.manifest.fingerprint == bundle.manifest.fingerprint
    bundle.manifest.model_copy(update={"training": {"support": {"coder": {"prompts": "many"}}}}).write(folder)
    with pytest.raises(
        BundleError, match=r"p2l.json: training: value error, support.coder.prompts: input should be a valid integer"
    ):
        Bundle.open(folder)
