"""Answer options in another order: which text is changed, and that an epoch takes one order."""

import numpy as np
import pytest

from p2l_plugins.training.options import shuffle_options, shuffled_options

QUESTION = "Which metal is liquid at room temperature?\nA. iron\nB. mercury\nC. gold\nD. tin"


def test_letters_stay_and_contents_move():
    rng = np.random.default_rng(0)
    seen = {shuffle_options(QUESTION, rng) for _ in range(200)}
    assert len(seen) == 24
    for text in seen:
        head, *options = text.split("\n")
        assert head == QUESTION.split("\n", maxsplit=1)[0]
        assert [line[:3] for line in options] == ["A. ", "B. ", "C. ", "D. "]
        assert sorted(line[3:] for line in options) == ["gold", "iron", "mercury", "tin"]


@pytest.mark.parametrize(
    "text",
    [
        "no options here",
        "A. only\nB. two",
        "Pick.\nA. x\nB. y\nC. all of the above",
        "Pick.\nA. x\nB. y\nC. A and B",
        "Steps:\nA. one\n\nB. two\n\nC. three",
        "A. B. Carter and\nC. D. Ellis",
    ],
)
def test_text_without_a_list_of_independent_options_stays(text):
    assert shuffle_options(text, np.random.default_rng(1)) == text


def test_brackets_and_text_after_the_list_stay():
    text = "Q\n(A) one\n(B) two\n(C) three\nAnswer with a letter."
    changed = next(t for i in range(20) if (t := shuffle_options(text, np.random.default_rng(i))) != text)
    assert changed.startswith("Q\n(A) ")
    assert changed.endswith("\nAnswer with a letter.")


def test_every_turn_of_every_prompt_is_treated():
    prompts = [(QUESTION, "thanks"), (QUESTION,)]
    result = shuffled_options(prompts, np.random.default_rng(3))
    assert result[0][1] == "thanks"
    assert result[0][0] != QUESTION != result[1][0]


def test_each_epoch_takes_one_order_of_the_options():
    pytest.importorskip("torch")
    from p2l_plugins.training.batches import PromptDataset, PromptSampler
    from p2l_plugins.votes.votes import Votes

    none = np.zeros(0, np.int64)
    votes = Votes(("a", "b"), [("p",), ("q",), ("r",)], [""] * 3, none, none, none, none, np.zeros(0))
    forms = [[[10, 1], [11], [12]], [[20, 2], [21], [22]]]
    dataset = PromptDataset(votes, forms[0], others=forms[1:])
    sampler = PromptSampler([2, 1, 1], 3, seed=0, forms=len(dataset.forms))
    assert len(sampler) == len(dataset) == 3
    for epoch in range(4):
        sampler.set_epoch(epoch)
        got = sorted(dataset[i]["input_ids"][0] for i in sampler)
        assert got == [ids[0] for ids in forms[epoch % 2]]
