"""The term that holds the scores of a prompt and of another form of it together."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from p2l_plugins.training.backbone import load_backbone  # noqa: E402
from p2l_plugins.training.batches import PromptDataset, VoteCollator  # noqa: E402
from p2l_plugins.training.checkpoint import text_encoder  # noqa: E402
from p2l_plugins.training.learner import Learner  # noqa: E402
from p2l_plugins.training.model import P2LNetwork  # noqa: E402
from p2l_plugins.votes.read import read_votes  # noqa: E402


@pytest.fixture
def votes(tmp_path):
    path = tmp_path / "votes.csv"
    path.write_text("prompt,a,b,c\n" + "".join(f"apple {i},1,0,{i % 2}\n" for i in range(8)))
    return read_votes(path)


def test_the_consistency_is_the_mean_squared_difference_of_both_forms(votes, tiny_backbone):
    start = load_backbone(str(tiny_backbone), 32)
    torch.manual_seed(0)
    p2l = P2LNetwork(start.model, 3, "grk", start.pooling)
    encoder = text_encoder(start.tokenizer, start.form)
    forms = encoder.encode([(f"pear {turns[0]} plum",) for turns in votes.prompts])
    dataset = PromptDataset(votes, encoder.encode(votes.prompts), varied=forms)
    items = [dataset[i] for i in range(4)]
    batch = VoteCollator(votes, 0, varied_share=0.5)(items)
    assert batch["varied_rows"].tolist() == [0, 2]
    with torch.no_grad():
        without = float(Learner(p2l).train()(**batch)["loss"])
        learner = Learner(p2l, consistency=3.0).train()
        found = float(learner(**batch)["loss"]) - without
        assert float(learner.eval()(**batch)["loss"]) == pytest.approx(without)
        coefs, eta = p2l.scores(batch["input_ids"], batch["attention_mask"])
        other, other_eta = p2l.scores(batch["varied_ids"], batch["varied_mask"])
    off = (coefs[[0, 2]] - other).numpy()
    off -= off.mean(axis=1, keepdims=True)
    expected = (off**2).mean(axis=1) + (eta[[0, 2]] - other_eta).numpy() ** 2
    assert found == pytest.approx(0.5 * 3.0 * expected.mean(), rel=1e-4)
    assert found > 0


def test_prompts_without_a_form_have_no_such_term(votes):
    dataset = PromptDataset(votes, [[1, 2]] * 8)
    batch = VoteCollator(votes, 0)([dataset[i] for i in range(4)])
    assert not {"varied_ids", "varied_mask", "varied_rows"} & set(batch)
    assert np.isfinite(batch["vote_weight"].numpy()).all()


@pytest.mark.parametrize(
    ("share", "rows"), [(0.25, [0, 4]), (0.4, [0, 2, 5, 7]), (0.75, [0, 1, 2, 4, 5, 6]), (1.0, None)]
)
def test_as_many_prompts_are_looked_at_as_the_share_says(votes, share, rows):
    dataset = PromptDataset(votes, [[1, 2]] * 8, varied=[[3]] * 8)
    batch = VoteCollator(votes, 0, varied_share=share)([dataset[i] for i in range(8)])
    assert batch["varied_rows"].tolist() == (list(range(8)) if rows is None else rows)
