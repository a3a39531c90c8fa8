"""A checkpoint read back from a bundle: the weights of a BERT-like encoder stand in its fused graph under their names.

Weights in 8 bits come back as what the graph multiplies with, so that the checkpoint differs from the bundle by the
rounding of the graph's activations only. Other graphs (decoders, the plain route) keep no weights by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import BertConfig, BertModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from p2l_plugins.errors import BundleError, ConfigError
from p2l_plugins.outcomes import has_eta
from p2l_plugins.scoring.bundle import Bundle
from p2l_plugins.scoring.scorer import P2L
from p2l_plugins.training.checkpoint import Checkpoint
from p2l_plugins.training.model import P2LNetwork

#: Largest difference between the checkpoint's coefficients and the bundle's, in their standard deviations.
FAR = 0.3
#: What both are compared on.
_TEXTS = (
    "What is the capital of Australia?",
    "Write a Python function that returns the n-th Fibonacci number in O(log n).",
    "Prove that the square root of 2 is irrational.",
    "Draft a polite e-mail that declines a job offer but keeps the door open.",
    "Schreibe ein Gedicht über das Meer.",
)
_TABLE = "model.embeddings.position_and_type"
_WORDS = "model.embeddings.word_embeddings.weight"


def checkpoint_of(bundle: Bundle) -> Checkpoint:
    """The checkpoint that a bundle of an encoder was exported from, up to the rounding of its precision.

    Raises:
        ConfigError: `onnx` is missing.
        BundleError: the graph keeps no weights that can be read back.
    """
    try:
        graph = _Graph(bundle)
        state = graph.backbone()
        model = P2LNetwork(_bert(graph, state), len(bundle.manifest.models), bundle.manifest.family, graph.pooling())
        with torch.no_grad():
            weight, bias = graph.head()
            model.head.head.weight.copy_(weight)
            model.head.head.bias.copy_(bias)
            if model.head.eta_head is not None:
                weight, bias = graph.eta()
                model.head.eta_head.weight.copy_(weight)
                model.head.eta_head.bias.copy_(bias)
    except (KeyError, RuntimeError, ValueError, StopIteration):
        raise _unreadable(bundle) from None
    manifest = bundle.manifest
    checkpoint = Checkpoint(model.eval(), _tokenizer(bundle), manifest.models, manifest.text, {})
    _compare(bundle, checkpoint, graph.shrunk)
    return checkpoint


def _unreadable(bundle: Bundle) -> BundleError:
    return BundleError(
        f"{bundle.folder}: its graph (route {bundle.manifest.route}) keeps no weights that can be trained on; name the "
        "checkpoint that it was exported from as backbone, or a backbone of its kind (minilm, smollm2-135m)"
    )


class _Graph:
    """The tensors of a bundle's graph."""

    def __init__(self, bundle: Bundle) -> None:
        try:
            import onnx
            from onnx import numpy_helper
        except ImportError:
            raise ConfigError(
                "training on a bundle needs the extra 'export': pip install 'p2l-plugins[export]'"
            ) from None
        model = onnx.load(str(bundle.folder / "model.onnx"))
        self.nodes = list(model.graph.node)
        self._read: Callable[[Any], NDArray[Any]] = numpy_helper.to_array
        self._tensors = {tensor.name: tensor for tensor in model.graph.initializer}
        self._family = bundle.manifest.family

    def attribute(self, operator: str, name: str) -> Any:
        """Of the first node of a kind."""
        node = next(node for node in self.nodes if node.op_type == operator)
        found = next(one for one in node.attribute if one.name == name)
        return found.i or found.f

    def array(self, name: str) -> NDArray[np.float32]:
        """A tensor, in whichever precision it is kept."""
        if name in self._tensors:
            return np.asarray(self._read(self._tensors[name]), np.float32)
        if f"{name}_int4" in self._tensors:
            return self._from_blocks(name)
        rows, scale = (self._read(self._tensors[f"{name}_{part}"]) for part in ("int8", "scale"))
        return np.asarray(rows.astype(np.float32) * scale, np.float32)

    def _from_blocks(self, name: str) -> NDArray[np.float32]:
        """A table in blocks of 32 values of 4 bits, (V, H / 2) bytes and (V, H / 32) scales."""
        packed, scale = (self._read(self._tensors[f"{name}_{part}"]) for part in ("int4", "scale"))
        halves = packed.reshape(len(packed), scale.shape[1], -1)
        steps = np.concatenate([halves & 15, halves >> 4], axis=2).astype(np.float32) - 8
        return np.asarray(steps * scale.astype(np.float32)[..., None]).reshape(len(packed), -1)

    @property
    def shrunk(self) -> bool:
        """Whether the head reads [w · state, w], as `p2l fit-novelty` writes it."""
        return "novelty_state_mean" in self._tensors

    def head(self) -> tuple[Tensor, Tensor]:
        """Weight and bias of the head of the coefficients, of a shrunk one those before it was."""
        weight, bias = self.tensor("head.head.weight"), self.tensor("head.head.bias")
        return (weight[:, :-1], bias + weight[:, -1]) if self.shrunk else (weight, bias)

    def tensor(self, name: str) -> Tensor:
        """As `array`."""
        return torch.from_numpy(self.array(name).copy())

    @property
    def hidden(self) -> int:
        """H."""
        return int(self.array(_TABLE).shape[1])

    @property
    def layers(self) -> int:
        """Number of layers."""
        part = ".attention.output.dense.bias"
        return sum(name.startswith("model.encoder.layer.") and name.endswith(part) for name in self._tensors)

    @property
    def heads(self) -> int:
        """Heads of each layer."""
        return int(self.attribute("MultiHeadAttention", "num_heads"))

    def pooling(self) -> Any:
        """`mean`, where the graph divides a sum over the tokens by their number, else `cls`."""
        return "mean" if any(node.op_type == "Div" for node in self.nodes) else "cls"

    def eta(self) -> tuple[Tensor, Tensor]:
        """Weight and bias of the head of raw_eta, with a scale and shift that an edit put behind it."""
        weight, bias = self.tensor("head.eta_head.weight"), self.tensor("head.eta_head.bias")
        if "raw_eta_slope" not in self._tensors:
            return weight, bias
        slope, shift = self.tensor("raw_eta_slope"), self.tensor("raw_eta_shift")
        return weight * slope, bias * slope + shift

    def backbone(self) -> dict[str, Tensor]:
        """The weights of the encoder by their names in transformers."""
        state = {
            "embeddings.word_embeddings.weight": self.tensor(_WORDS),
            "embeddings.position_embeddings.weight": self.tensor(_TABLE),
            "embeddings.token_type_embeddings.weight": torch.zeros(1, self.hidden),
        }
        names = ["embeddings.LayerNorm"]
        for i in range(self.layers):
            layer = f"encoder.layer.{i}"
            state |= self._attention(f"{layer}.attention.self")
            for part in ("attention.output.dense", "intermediate.dense", "output.dense"):
                state[f"{layer}.{part}.weight"] = self.tensor(f"model.{layer}.{part}.weight").T.contiguous()
                state[f"{layer}.{part}.bias"] = self.tensor(f"model.{layer}.{part}.bias")
            names += [f"{layer}.attention.output.LayerNorm", f"{layer}.output.LayerNorm"]
        for name in names:
            for part in ("weight", "bias"):
                state[f"{name}.{part}"] = self.tensor(f"model.{name}.{part}")
        return state

    def _attention(self, name: str) -> dict[str, Tensor]:
        """Query, key and value; a row of each head that the graph uses for padding is left out."""
        weights = {part: self.tensor(f"model.{name}.{part}.weight").T for part in ("query", "key", "value")}
        biases = torch.split(self.tensor(f"model.{name}.bias"), [len(weight) for weight in weights.values()])
        state = {}
        for (part, weight), bias in zip(weights.items(), biases, strict=True):
            state[f"{name}.{part}.weight"] = self._own(weight)
            state[f"{name}.{part}.bias"] = self._own(bias)
        return state

    def _own(self, rows: Tensor) -> Tensor:
        by_head = rows.reshape(self.heads, len(rows) // self.heads, *rows.shape[1:])
        return by_head[:, : self.hidden // self.heads].reshape(self.hidden, *rows.shape[1:]).contiguous()


def _bert(graph: _Graph, state: Mapping[str, Tensor]) -> BertModel:
    words, positions = state["embeddings.word_embeddings.weight"], state["embeddings.position_embeddings.weight"]
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=graph.hidden,
        num_hidden_layers=graph.layers,
        num_attention_heads=graph.heads,
        intermediate_size=len(state["encoder.layer.0.intermediate.dense.weight"]),
        max_position_embeddings=len(positions),
        type_vocab_size=1,
        layer_norm_eps=float(graph.attribute("LayerNormalization", "epsilon")),
        hidden_act="gelu",
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    model = BertModel(config, add_pooling_layer=False)
    missing, unexpected = model.load_state_dict(dict(state), strict=False)
    if unexpected or any("position_ids" not in name for name in missing):
        raise KeyError(*missing, *unexpected)
    return model


def _tokenizer(bundle: Bundle) -> PreTrainedTokenizerBase:
    from tokenizers import Tokenizer

    read = Tokenizer.from_file(str(bundle.folder / "tokenizer.json"))
    pad = read.id_to_token(bundle.manifest.text.pad_id)
    make = cast(Any, PreTrainedTokenizerFast)
    return cast(PreTrainedTokenizerBase, make(tokenizer_object=read, pad_token=pad))


def _compare(bundle: Bundle, checkpoint: Checkpoint, shrunk: bool) -> None:
    """Raises a BundleError where the checkpoint does not score as the bundle does; shrunk coefficients are left out."""
    there = P2L.load(Path(bundle.folder)).score(list(_TEXTS))
    rows = checkpoint.encoder.encode([(text,) for text in _TEXTS])
    with torch.no_grad():
        here = [
            checkpoint.model.scores(torch.tensor([ids]), torch.ones(1, len(ids), dtype=torch.int64)) for ids in rows
        ]
    coefs = torch.cat([coefs for coefs, _ in here]).numpy()
    off = 0.0 if shrunk else np.abs(coefs - there.coefs).max() / max(there.coefs.std(), 1e-6)
    if has_eta(there.family) and there.raw_eta is not None:
        etas = np.array([float(cast(Tensor, eta)[0]) for _, eta in here])
        off = max(off, np.abs(etas - there.raw_eta).max() / max(np.abs(there.raw_eta).max(), 1.0))
    if not off <= FAR:
        raise _unreadable(bundle)
