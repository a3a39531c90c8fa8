"""Files of different prompts on one scale, and what that does for models that a file lacks."""

import numpy as np
import pytest

from p2l_plugins.training.marginal import align
from p2l_plugins.votes.read import read_votes

torch = pytest.importorskip("torch")

from p2l_plugins.training.backbone import load_backbone  # noqa: E402
from p2l_plugins.training.batches import PromptDataset, VoteCollator  # noqa: E402
from p2l_plugins.training.categories import find_categories  # noqa: E402
from p2l_plugins.training.checkpoint import text_encoder  # noqa: E402
from p2l_plugins.training.learner import Learner  # noqa: E402
from p2l_plugins.training.model import P2LNetwork  # noqa: E402

TRUE = np.array([0.0, 1.0, 2.0, 3.0, -1.0])


def test_shared_models_tie_sources_of_different_difficulty():
    columns = [np.array([0, 1, 2]), np.array([2, 3, 4])]
    tables = [TRUE[columns[0]] + 5.0, TRUE[columns[1]] - 1.0]
    coefs, component = align(columns, tables, [1.0, 3.0])
    np.testing.assert_allclose(coefs, TRUE + 0.25 * 5.0 - 0.75 * 1.0)
    assert len(set(component)) == 1


def test_one_source_keeps_its_leaderboard():
    coefs, _ = align([np.array([0, 1, 2])], [TRUE[:3] - 7.0], [4.0])
    np.testing.assert_allclose(coefs, TRUE[:3] - 7.0)


def test_sources_without_a_shared_model_keep_theirs_and_are_not_compared():
    coefs, component = align([np.array([0, 1]), np.array([2, 3, 4])], [TRUE[:2], TRUE[2:] + 9.0], [1.0, 2.0])
    np.testing.assert_allclose(coefs, [*TRUE[:2], *(TRUE[2:] + 9.0)], atol=1e-12)
    assert component[0] == component[1] != component[2] == component[3] == component[4]


@pytest.fixture
def two_files(tmp_path):
    """Easy prompts with models a, b, c; hard ones with c, d; and x, y, which meet nobody else."""
    rng = np.random.default_rng(0)
    strength = {"a": 0.0, "b": 1.0, "c": 2.0, "d": 3.0, "x": 0.0, "y": 1.0}
    parts = []
    for name, models, level in (("easy", "abc", 1.0), ("hard", "cd", -2.0), ("apart", "xy", 0.0)):
        lines = ["prompt," + ",".join(models)]
        for i in range(400):
            p = [1 / (1 + np.exp(-strength[m] - level)) for m in models]
            lines.append(f"{name} {i}," + ",".join(str(int(rng.random() < q)) for q in p))
        path = tmp_path / f"{name}.csv"
        path.write_text("\n".join(lines))
        parts.append(read_votes(path))
    return parts


def test_a_model_that_a_file_lacks_stands_where_the_other_files_put_it(two_files):
    found = find_categories(two_files, [0.0] * 3, tuple("abcdxy"), "grk")
    assert found.unseen.tolist() == [
        [False, False, False, True, False, False],
        [True, True, False, False, False, False],
        [False, False, False, False, False, False],
    ]
    easy, hard = found.unseen_coefs[0], found.unseen_coefs[1]
    assert easy[3] - found.coefs[0, 2] == pytest.approx(found.coefs[1, 3] - found.coefs[1, 2], abs=1e-6)
    assert hard[0] - found.coefs[1, 2] == pytest.approx(found.coefs[0, 0] - found.coefs[0, 2], abs=1e-6)


def test_the_unseen_prior_is_the_mean_squared_distance_of_unseen_models(two_files, tiny_backbone):
    models = tuple("abcdxy")
    votes = two_files[1].renamed(models)
    start = load_backbone(str(tiny_backbone), 32)
    found = find_categories(two_files, [0.0] * 3, models, "grk")
    torch.manual_seed(0)
    p2l = P2LNetwork(start.model, len(models), "grk", start.pooling)
    category = np.full(len(votes.prompts), found.names.index("1/"))
    ids = text_encoder(start.tokenizer, start.form).encode(votes.prompts)
    batch = VoteCollator(votes, 0)([PromptDataset(votes, ids, category)[i] for i in (0, 3)])
    with torch.no_grad():
        without = float(Learner(p2l, found).train()(**batch)["loss"])
        learner = Learner(p2l, found, unseen_prior=0.7).train()
        with_prior = float(learner(**batch)["loss"])
        coefs = p2l.scores(batch["input_ids"], batch["attention_mask"])[0].numpy().astype(float)
        assert float(learner.eval()(**batch)["loss"]) == pytest.approx(without)
    centre = found.coefs[category[0], [2, 3]].mean()
    off = (coefs[:, :2] - coefs[:, 2:4].mean(axis=1, keepdims=True)) - (found.unseen_coefs[category[0], :2] - centre)
    assert with_prior - without == pytest.approx(0.5 * 0.7 * (off**2).mean(), rel=1e-4)
