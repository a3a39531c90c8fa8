"""The starter's held-out figures, measured again on the public data."""

from pathlib import Path

import pytest

from p2l_plugins import P2L
from p2l_plugins.evaluation.evaluate import evaluate_votes
from p2l_plugins.votes.read import read_votes
from p2l_plugins.votes.votes import held_out

pytest.importorskip("torch")

from p2l_plugins.training.config import read_config

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.mark.parametrize(
    "name",
    ["llmrouter_scores", "pandalm_human_battles", pytest.param("mmlupro_correctness", marks=pytest.mark.long)],
)
def test_the_manifest_states_what_the_starter_does_on_held_out_prompts(data_dir, name):
    """Routing is above the best single model, and the log loss below that of one marginal leaderboard for all sets."""
    config = read_config(ROOT / "examples" / "starter.yaml")
    source = next(source for source in config.data if Path(source.path).stem == name)
    votes = read_votes(data_dir / source.path, config.aliases, source.usable, source.margin)
    out = held_out(votes.prompts, config.held_out, config.seed)
    test = votes.select(out)
    p2l = P2L.load("starter", threads=1)  # more would wait in loops, which take the processor from other tests
    report = evaluate_votes(p2l.score_turns(test.prompts), test, votes.select(~out))
    stated = p2l.bundle.manifest.quality["held_out"][name]
    assert report.p2l.log_loss == pytest.approx(stated["p2l"]["log_loss"], abs=2e-3)
    assert report.p2l.log_loss < stated["one_marginal_log_loss"]
    if report.routed is not None:
        assert report.routed.p2l > report.routed.best_single > report.routed.random
        assert report.p2l.log_loss < report.marginal.log_loss < report.constant.log_loss
        assert report.p2l.decisive_log_loss < report.marginal.decisive_log_loss
