"""Messages → turns → text → ids."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2l_plugins.errors import BundleError, PromptError
from p2l_plugins.prompts import TextEncoder, TextForm, as_turns, canonical_bytes, pad, user_turns


def test_user_turns_keeps_the_users_text_only():
    messages = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "hello"},
        {"role": "user", "content": [{"type": "text", "text": "what is"}, {"type": "image_url"}, {"text": "this?"}]},
        {"role": "user", "content": None},
        {"role": "user", "content": [{"type": "input_image"}]},
    ]
    assert user_turns(messages) == ("hi", "what is\nthis?")


@pytest.mark.parametrize("messages", [[], [{"role": "assistant", "content": "x"}], [{"role": "user", "content": " "}]])
def test_no_user_text_is_an_error(messages):
    with pytest.raises(PromptError, match="empty"):
        user_turns(messages)


@pytest.mark.parametrize("prompt", ["", " \n", [], ["", " "]])
def test_an_empty_prompt_is_an_error(prompt):
    with pytest.raises(PromptError, match="the prompt is empty"):
        as_turns(prompt)


@pytest.mark.parametrize("prompt", [3, None, [1], b"x", {"role": "user"}])
def test_a_prompt_is_text(prompt):
    with pytest.raises(PromptError, match="a string or a list of strings"):
        as_turns(prompt)


def test_lone_surrogates_are_replaced_and_pairs_joined():
    assert as_turns("a\ud800b") == ("a\ufffdb",)
    assert as_turns("\ud83d\ude00") == ("😀",)
    canonical_bytes(as_turns("\udfff\ud800"))


def test_canonical_bytes_keep_the_turns_apart():
    assert canonical_bytes(("ab", "c")) != canonical_bytes(("a", "bc"))
    assert canonical_bytes(("ab",)) != canonical_bytes(("ab", ""))


@settings(max_examples=300, deadline=None)
@given(st.lists(st.text(), min_size=1, max_size=4), st.lists(st.text(), min_size=1, max_size=4))
def test_canonical_bytes_are_injective(a, b):
    assert (canonical_bytes(tuple(a)) == canonical_bytes(tuple(b))) == (a == b)


def test_padding_is_on_the_right():
    ids, mask = pad([[5, 6, 7], [8]], 0)
    np.testing.assert_array_equal(ids, [[5, 6, 7], [8, 0, 0]])
    np.testing.assert_array_equal(mask, [[1, 1, 1], [1, 0, 0]])


@pytest.fixture(scope="module")
def published(public_checkpoint):
    pytest.importorskip("torch")
    from p2l_plugins.training.checkpoint import Checkpoint

    return Checkpoint.load(public_checkpoint)


def test_chat_text_equals_apply_chat_template(published, public_checkpoint):
    cases = json.loads((public_checkpoint / "expected.json").read_text())
    for prompt in [case["prompt"] for case in cases]:
        messages = [{"role": "user", "content": turn.replace("<|cls|>", "<cls>")} for turn in prompt]
        expected = published.tokenizer.apply_chat_template(messages, tokenize=False) + "<|cls|>"
        assert published.encoder.text(tuple(prompt)) == expected
        ids = published.tokenizer(expected, add_special_tokens=False)["input_ids"]
        assert published.encoder.encode([tuple(prompt)])[0] == ids
    assert [len(published.encoder.encode([tuple(case["prompt"])])[0]) for case in cases] == [
        case["n_tokens"] for case in cases
    ]


def test_truncation_keeps_the_cls_token(published):
    form = published.form.model_copy(update={"max_length": 10})
    encoder = TextEncoder(published.encoder.tokenizer, form, published.encoder.chat_template)
    ids = encoder.encode([("word " * 500,)])[0]
    assert len(ids) == 10
    assert ids[-1] == published.tokenizer.cls_token_id
    assert ids.count(published.tokenizer.cls_token_id) == 1


def test_a_template_that_refuses_is_an_error(published):
    encoder = TextEncoder(
        published.encoder.tokenizer, published.form, "{{ raise_exception('only one turn') if messages|length > 1 }}"
    )
    encoder.text(("a",))
    with pytest.raises(PromptError, match="only one turn"):
        encoder.text(("a", "b"))


def test_a_template_cannot_reach_python(published):
    encoder = TextEncoder(published.encoder.tokenizer, published.form, "{{ ''.__class__.__mro__[1].__subclasses__() }}")
    with pytest.raises(PromptError, match="refuses"):
        encoder.text(("a",))


def test_special_tokens_in_a_plain_prompt_stay_text(tiny_backbone):
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tiny_backbone / "tokenizer.json"))
    encoder = TextEncoder(tokenizer, TextForm(form="plain", max_length=16, pad_id=0))
    ids = encoder.encode([("apple [SEP] [CLS] pear",)])[0]
    assert ids.count(3) == 1
    assert ids.count(2) == 1


def test_a_chat_form_needs_a_template(tiny_backbone):
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tiny_backbone / "tokenizer.json"))
    with pytest.raises(BundleError, match="chat template"):
        TextEncoder(tokenizer, TextForm(form="chat", max_length=16, pad_id=0, cls_token="[CLS]"))
