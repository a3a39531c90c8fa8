"""The terms on categories: what they are, and what they do to a training."""

import json

import numpy as np
import pytest

from p2l_plugins.training.marginal import fit_marginal
from p2l_plugins.votes.read import read_votes

torch = pytest.importorskip("torch")

from p2l_plugins.training.backbone import load_backbone  # noqa: E402
from p2l_plugins.training.batches import PromptDataset, VoteCollator  # noqa: E402
from p2l_plugins.training.categories import find_categories  # noqa: E402
from p2l_plugins.training.checkpoint import text_encoder  # noqa: E402
from p2l_plugins.training.config import Source, TrainConfig  # noqa: E402
from p2l_plugins.training.learner import Learner  # noqa: E402
from p2l_plugins.training.model import P2LNetwork  # noqa: E402
from p2l_plugins.training.split import load_sources, split  # noqa: E402
from p2l_plugins.training.train import train  # noqa: E402


@pytest.fixture
def labelled(votes_file, tmp_path):
    rows = [json.loads(line) for line in votes_file.read_text().splitlines()]
    for row in rows:
        row["category"] = row["prompt"].split()[0]
    path = tmp_path / "labelled.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_categories_of_two_files_stay_apart(labelled, votes_file):
    both = read_votes(labelled), read_votes(votes_file)
    models = (*both[0].models, "unknown")
    found = find_categories(both, [0.5, 2.0], models, "grk")
    assert found.names == ("0/code", "0/sum", "1/")
    assert [found.names[i] for i in found.of_prompt] == [f"0/{g}" for g in both[0].groups] + ["1/"] * len(
        both[1].prompts
    )
    assert found.known.tolist() == [[True] * 3 + [False]] * 3
    assert found.prior.tolist() == [0.5, 0.5, 2.0]
    best = [models[i] for i in np.where(found.known, found.coefs, -np.inf).argmax(axis=1)]
    assert best[:2] == ["coder", "counter"]
    np.testing.assert_allclose(found.coefs[2, :3], fit_marginal(both[1], "grk")[0], atol=1e-3)


def test_the_prior_is_the_weighted_squared_distance_of_differences(labelled, tiny_backbone):
    votes = read_votes(labelled)
    start = load_backbone(str(tiny_backbone), 32)
    found = find_categories([votes], [0.7], votes.models, "grk")
    torch.manual_seed(0)
    p2l = P2LNetwork(start.model, 3, "grk", start.pooling)
    ids = text_encoder(start.tokenizer, start.form).encode(votes.prompts)
    dataset = PromptDataset(votes, ids, found.of_prompt)
    batch = VoteCollator(votes, 0)([dataset[i] for i in (0, 5, 9)])
    with torch.no_grad():
        without = Learner(p2l).train()(**batch)["loss"]
        with_prior = Learner(p2l, found).train()(**batch)["loss"]
        scores = p2l.scores(batch["input_ids"], batch["attention_mask"])
    coefs, raw_eta = (part.numpy().astype(np.float64) for part in scores)
    ties = raw_eta - found.raw_eta[batch["category"].numpy()]
    assert (np.abs(ties) > 0.01).any()
    centre = found.coefs[batch["category"].numpy()]
    d = (coefs - coefs.mean(axis=1, keepdims=True)) - (centre - centre.mean(axis=1, keepdims=True))
    total = np.bincount(batch["vote_prompt"].numpy(), batch["vote_weight"].numpy(), minlength=3)
    expected = 0.5 * 0.7 * (total * ((d**2).mean(axis=1) + ties**2)).mean()
    assert float(with_prior - without) == pytest.approx(expected, rel=1e-4)
    learner = Learner(p2l, found).eval()
    with torch.no_grad():
        assert float(learner(**batch)["loss"]) == pytest.approx(float(without))  # held-out losses are of votes alone


def test_a_strong_prior_gives_each_prompt_its_category_s_leaderboard(labelled, tiny_backbone, tmp_path):
    settings = {"backbone": str(tiny_backbone), "max_length": 32, "epochs": 30, "batch_size": 8}
    config = TrainConfig(
        name="x",
        data=[Source(path=labelled.name)],
        learning_rate=1e-3,
        head_learning_rate=2e-2,
        category_weight=1.0,
        category_prior=100.0,
        **settings,
    )
    train(config, tmp_path, tmp_path / "out")
    from p2l_plugins.training.checkpoint import Checkpoint

    checkpoint = Checkpoint.load(tmp_path / "out")
    sides = split(config, load_sources(config, tmp_path))
    found = find_categories(sides.sources, [100.0], checkpoint.models, "grk")
    ids = torch.tensor(checkpoint.encoder.encode([("sum apple fig pear",), ("code loop stack array",)]))
    with torch.inference_mode():
        coefs = checkpoint.model.scores(ids, torch.ones_like(ids))[0].numpy()
    for row, name in zip(coefs, ("0/sum", "0/code"), strict=True):
        expected = found.coefs[found.names.index(name)]
        np.testing.assert_allclose(row - row.mean(), expected - expected.mean(), atol=0.1)
