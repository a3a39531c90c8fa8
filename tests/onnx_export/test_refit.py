"""`p2l refit-head`: the head of a bundle is fitted anew, all else stays."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from onnx_export.refit import refit_head
from p2l_plugins import P2L
from p2l_plugins.cli import app
from p2l_plugins.errors import ConfigError, DataError
from p2l_plugins.evaluation.quality import vote_log_probabilities, vote_quality
from p2l_plugins.scoring.bundle import Bundle
from p2l_plugins.training.config import read_config
from p2l_plugins.training.split import load_sources, split


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
