"""Other forms of a prompt, and the term that holds their scores together."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from p2l_plugins.prompts import as_turns  # noqa: E402
from p2l_plugins.training.backbone import load_backbone  # noqa: E402
from p2l_plugins.training.batches import PromptDataset, VoteCollator  # noqa: E402
from p2l_plugins.training.checkpoint import text_encoder  # noqa: E402
from p2l_plugins.training.learner import Learner  # noqa: E402
from p2l_plugins.training.model import P2LNetwork  # noqa: E402
from p2l_plugins.training.variants import GREETINGS, PLEASE, THANKS, VARIANTS, rotated, typos, varied  # noqa: E402
from p2l_plugins.votes.read import read_votes  # noqa: E402

QUESTION = "Which is the largest? Say why it is so.\nA. red\nB. blue\nC. green"


@settings(max_examples=300, deadline=None)
@given(st.text(min_size=1).filter(str.strip), st.integers(0, 2**32), st.sampled_from(sorted(VARIANTS)))
def test_a_form_of_a_prompt_is_a_prompt_and_always_the_same_one(text, seed, name):
    text = as_turns(text)[0]
    form = VARIANTS[name](text, random.Random(seed))
    assert form == VARIANTS[name](text, random.Random(seed))
    if name != "typos":  # of one letter a slip may leave nothing
        assert as_turns(form)


def test_only_the_last_turn_of_a_conversation_changes():
    for seed in range(20):
        turns = varied(("first", "second", QUESTION), random.Random(seed))
        assert turns[:2] == ("first", "second")
        assert len(turns) == 3


def test_each_form_holds_what_was_asked():
    draw = random.Random(0)
    for name in ("greeting", "please", "thanks", "context", "suffix"):
        form = VARIANTS[name](QUESTION, draw)
        assert QUESTION in form
        assert form != QUESTION
    assert sorted(VARIANTS["options"](QUESTION, draw).split()) == sorted(QUESTION.split())
    assert rotated("One. Two? Three!", draw) in ("Two? Three! One.", "Three! One. Two?")
    assert VARIANTS["case"](QUESTION, draw).lower() == QUESTION.lower()


def test_one_letter_in_forty_slips():
    text = "several ordinary words " * 200
    slips = typos(text, random.Random(1))
    changed = abs(len(slips) - len(text)) + sum(a != b for a, b in zip(text.split(), slips.split(), strict=True))
    assert 0.4 * len(text) / 40 < changed < 2 * len(text) / 40


@pytest.mark.parametrize(
    ("text", "key"), [("Объясни это", "CYRILLIC"), ("解释一下", "CJK"), ("これを説明して", "HIRAGANA"), ("Erkläre", "")]
)
def test_phrases_are_of_the_prompts_script(text, key):
    for name, phrases in (("greeting", GREETINGS), ("please", PLEASE), ("thanks", THANKS)):
        form = VARIANTS[name](text, random.Random(3))
        assert any(phrase in form for phrase in phrases[key])


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
