"""`p2l refit-head`: the head of a bundle is fitted anew, all else stays."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from onnx_export.calibrate import fit_shift
from onnx_export.refit import refit_head
from p2l_plugins import P2L
from p2l_plugins.cli import app
from p2l_plugins.errors import ConfigError, DataError
from p2l_plugins.evaluation.quality import vote_log_probabilities, vote_quality
from p2l_plugins.outcomes import probabilities
from p2l_plugins.scoring.bundle import Bundle
from p2l_plugins.training.config import read_config
from p2l_plugins.training.split import load_sources, split
from p2l_plugins.votes.votes import Votes


@pytest.fixture
def config(train_config):
    return read_config(train_config)


def loss(bundle, config, folder):
    p2l = P2L(bundle)
    votes = split(config, load_sources(config, folder)).training.renamed(p2l.models)
    scores = p2l.score_turns(votes.prompts)
    return vote_quality(
        vote_log_probabilities(votes, scores.coefs, scores.raw_eta, p2l.family), votes, p2l.family
    ).log_loss


def test_the_votes_get_likelier_and_ties_stay(tiny_bundle, config, train_config, tmp_path):
    before = Bundle.open(tiny_bundle)
    after = refit_head(before, config, train_config.parent, tmp_path / "out", epochs=20, batch_size=8)
    assert loss(after, config, train_config.parent) < loss(before, config, train_config.parent)
    prompts = [("sum apple fig",), ("code loop",)]
    one, two = P2L(before).score_turns(prompts), P2L(after).score_turns(prompts)
    np.testing.assert_array_equal(one.raw_eta, two.raw_eta)
    assert np.abs(one.coefs - two.coefs).max() > 0.01
    assert after.manifest.fingerprint != before.manifest.fingerprint
    assert after.manifest.quality == {}
    change = after.manifest.training["changes"][-1]
    assert change["change"] == "refit-head"
    assert change["loss"][-1] < change["loss"][0]


def test_a_strong_prior_pulls_every_prompt_to_one_leaderboard(tiny_bundle, config, train_config, tmp_path):
    after = refit_head(
        Bundle.open(tiny_bundle), config, train_config.parent, tmp_path / "out", 60, 8, 0.02, category_prior=100.0
    )
    coefs = P2L(after).score_turns([("sum apple fig pear",), ("code loop stack array",)]).coefs
    centred = coefs - coefs.mean(axis=1, keepdims=True)
    assert np.abs(centred[0] - centred[1]).max() < 0.2


def test_the_command_says_what_it_did(tiny_bundle, train_config, tmp_path):
    arguments = [
        "refit-head",
        str(tiny_bundle),
        str(train_config),
        "-o",
        str(tmp_path / "out"),
        "--epochs",
        "2",
        "--json",
    ]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["fingerprint"] == Bundle.open(tmp_path / "out").manifest.fingerprint
    assert len(report["loss"]) == 2


def test_what_does_not_fit_is_refused_and_nothing_is_written(tiny_bundle, config, train_config, tmp_path):
    bundle = Bundle.open(tiny_bundle)
    with pytest.raises(ConfigError, match="family is 'bt-tie', but the bundle is of the family 'grk'"):
        refit_head(bundle, config.model_copy(update={"family": "bt-tie"}), train_config.parent, tmp_path / "out")
    renamed = config.model_copy(update={"aliases": {"coder": "someone-else"}})
    with pytest.raises(DataError, match="'someone-else' of the data is not in the bundle"):
        refit_head(bundle, renamed, train_config.parent, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_ties_are_fitted_where_they_are_asked_for(tiny_bundle, config, train_config, tmp_path):
    before = Bundle.open(tiny_bundle)
    fit = {"epochs": 20, "batch_size": 8, "learning_rate": 0.01}
    as_they_are = refit_head(before, config, train_config.parent, tmp_path / "as", **fit)
    fitted = refit_head(before, config, train_config.parent, tmp_path / "fitted", **fit, ties=True)
    assert loss(fitted, config, train_config.parent) < loss(as_they_are, config, train_config.parent)
    prompts = [("sum apple fig",), ("code loop",)]
    assert np.abs(P2L(fitted).score_turns(prompts).raw_eta - P2L(before).score_turns(prompts).raw_eta).max() > 0.01
    again = refit_head(fitted, config, train_config.parent, tmp_path / "again", **fit, ties=True)
    assert loss(again, config, train_config.parent) <= loss(fitted, config, train_config.parent) + 1e-3


def test_a_family_without_ties_has_none_to_fit(tiny_bundle, config, train_config, tmp_path):
    tiny = Bundle.open(tiny_bundle)
    bt = Bundle(tiny.folder, tiny.manifest.model_copy(update={"family": "bt"}))
    with pytest.raises(ConfigError, match="the family 'bt' has no raw_eta; leave --refit-ties out"):
        refit_head(bt, config.model_copy(update={"family": "bt"}), train_config.parent, tmp_path / "out", ties=True)


def test_calibrating_moves_all_models_alike_and_leaves_their_order(tiny_bundle, config, train_config, tmp_path):
    before = Bundle.open(tiny_bundle)
    after = refit_head(before, config, train_config.parent, tmp_path / "out", epochs=0, calibrate=True)
    assert loss(after, config, train_config.parent) < loss(before, config, train_config.parent) - 1e-3
    prompts = [("sum apple fig",), ("code loop",), ("pear code",)]
    one, two = P2L(before).score_turns(prompts), P2L(after).score_turns(prompts)
    moved = two.coefs - one.coefs
    np.testing.assert_allclose(moved, np.repeat(moved[:, :1], moved.shape[1], axis=1), atol=1e-5)
    assert np.abs(moved).max() > 0.01
    assert np.abs(two.raw_eta - one.raw_eta).max() > 0.01
    for kept in ("support", "levels"):
        assert after.manifest.training.get(kept) == before.manifest.training.get(kept)
    first, last = after.manifest.training["changes"][-1]["calibrated"]
    assert last < first
    with pytest.raises(ConfigError, match="the family 'bt' has no raw_eta; leave --calibrate out"):
        refit_head(
            Bundle(before.folder, before.manifest.model_copy(update={"family": "bt"})),
            config.model_copy(update={"family": "bt"}),
            train_config.parent,
            tmp_path / "bt",
            calibrate=True,
        )


def test_a_shift_of_all_models_is_found_from_votes():
    """Of votes drawn from coefficients that all lie higher or lower by a function of the state; ties by another one."""
    rng = np.random.default_rng(0)
    states = rng.normal(3.0, 2.0, (4000, 3))
    coefs, raw_eta = rng.normal(size=(4000, 5)), np.full(4000, 0.3)
    level, ties = np.array([0.5, -0.3, 0.0]), np.array([0.0, 0.2, 0.4])
    pairs = np.array([(a, b) for a in range(5) for b in range(a)])
    prompt, a, b = np.repeat(np.arange(4000), 10), np.tile(pairs[:, 0], 4000), np.tile(pairs[:, 1], 4000)
    true = coefs + (states @ level - 0.7)[:, None]
    p = probabilities("grk", true[prompt, a], true[prompt, b], (raw_eta + states @ ties - 1.0)[prompt])
    outcome = (rng.random(len(p))[:, None] > p.cumsum(axis=1)).sum(axis=1).clip(max=3)
    turns = [(str(i),) for i in range(4000)]
    votes = Votes(tuple("abcde"), turns, [""] * 4000, prompt, a, b, outcome, np.ones(len(a)))
    shift = fit_shift([votes], [np.arange(4000)], states, coefs, raw_eta, "grk", seed=0)
    np.testing.assert_allclose(shift.weight, level, atol=0.03)
    np.testing.assert_allclose(shift.eta_weight, ties, atol=0.05)
    assert shift.bias == pytest.approx(-0.7, abs=0.1)
    assert shift.losses[1] < shift.losses[0]


@pytest.mark.parametrize("options", [{}, {"calibrate": True, "ties": True}, {"calibrate": True, "shrink": True}])
def test_without_epochs_there_is_only_calibrating(tiny_bundle, config, train_config, tmp_path, options):
    with pytest.raises(ConfigError, match="with --epochs 0 no head is fitted: add --calibrate"):
        refit_head(Bundle.open(tiny_bundle), config, train_config.parent, tmp_path / "out", epochs=0, **options)
    assert not (tmp_path / "out").exists()
