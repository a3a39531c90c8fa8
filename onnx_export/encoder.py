"""The fused graph of BERT: attention and GELU as ONNX Runtime's own operators; mean or CLS pooling.

Attention gives padding a weight of exactly 0, and the mean leaves it out, so that padding changes nothing.
States are (T, H), T = N · L tokens.
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, nn

from onnx_export.builder import CONTRIB, GraphBuilder, heads, lengths
from onnx_export.linear import embedding, linear, linears
from p2l_plugins.training.checkpoint import Checkpoint

TYPES = ("bert",)
INT8_TERMS = 1
#: Added to the attention score of padding, times the scale of attention; its exponential is 0.
PENALTY = -1e4


def unsupported(checkpoint: Checkpoint) -> str | None:
    """What of this encoder the fused graph can't express, or None."""
    config: Any = checkpoint.model.model.config
    if config.hidden_act != "gelu":
        return f"hidden_act {config.hidden_act!r}"
    if config.is_decoder or config.add_cross_attention:
        return "causal or cross attention"
    return None


def build(graph: GraphBuilder, checkpoint: Checkpoint) -> None:
    """Writes the encoder and its heads into the graph."""
    model = checkpoint.model
    backbone: Any = model.model
    config = backbone.config
    ids, mask = graph.inputs["input_ids"], graph.inputs["attention_mask"]
    count, valid = lengths(graph)
    shape = graph.op("Shape", [ids])
    by_prompt = graph.op("Concat", [shape, graph.constant([-1], torch.int64)], axis=0)
    flat = graph.constant([-1, config.hidden_size], torch.int64)
    attention = _Attention(graph, config, mask, by_prompt)
    x = graph.op("Reshape", [_embeddings(graph, checkpoint, ids, shape), flat])
    for i, layer in enumerate(backbone.encoder.layer):
        name = f"model.encoder.layer.{i}"
        state = attention(f"{name}.attention.self", layer.attention.self, x)
        state = graph.op("Reshape", [state, flat])
        x = _output(graph, f"{name}.attention.output", layer.attention.output, state, x)
        inner = linear(graph, f"{name}.intermediate.dense.weight", [layer.intermediate.dense.weight], x)
        inner_bias = graph.parameter(f"{name}.intermediate.dense.bias", layer.intermediate.dense.bias)
        x = _output(graph, f"{name}.output", layer.output, graph.op("BiasGelu", [inner, inner_bias], CONTRIB), x)
    states = graph.op("Reshape", [x, by_prompt])
    heads(graph, _pooled(graph, states, mask, count, model.pooling), valid, model.head)


class _Attention:
    """Adds the attention of one layer; holds what all layers share.

    On the CPU, MultiHeadAttention has its fast kernel only without a mask. So the mask becomes a dimension of each
    head: 1 in every query, 0 in the keys of tokens and `PENALTY` in those of padding. On a GPU (fp16, bf16) the
    kernels want head sizes that are multiples of 8 and take the mask.
    """

    def __init__(self, graph: GraphBuilder, config: Any, mask: ir.Value, by_prompt: ir.Value) -> None:
        self.graph, self.heads, self.by_prompt = graph, config.num_attention_heads, by_prompt
        self.in_head = graph.dtype == torch.float32
        if self.in_head:
            padding = graph.op("Sub", [graph.constant(1.0, torch.float32), graph.cast(mask, torch.float32)])
            padding = graph.op("Unsqueeze", [padding, graph.constant([2], torch.int64)])
            last = torch.zeros(self.heads, config.hidden_size // self.heads + 1)
            last[:, -1] = PENALTY
            self.penalty = graph.op("Mul", [padding, graph.parameter("attention.penalty", last.flatten())])
        else:
            self.keys = graph.cast(mask, torch.int32)

    def __call__(self, name: str, layer: Any, x: ir.Value) -> ir.Value:
        """(T, H) → (N, L, H)."""
        graph = self.graph
        parts = {part: getattr(layer, part) for part in ("query", "key", "value")}
        weights = {part: linear_.weight.detach() for part, linear_ in parts.items()}
        biases = {part: linear_.bias.detach() for part, linear_ in parts.items()}
        if self.in_head:
            for part, constant in (("query", 1.0), ("key", 0.0)):
                weights[part] = self._extended(weights[part], 0.0)
                biases[part] = self._extended(biases[part], constant)
        bias = torch.cat(list(biases.values()))
        projected = linears(graph, {f"{name}.{part}.weight": [weight] for part, weight in weights.items()}, x)
        inputs: list[ir.Value | None] = [graph.op("Reshape", [value, self.by_prompt]) for value in projected]
        inputs.append(graph.parameter(f"{name}.bias", bias))
        if self.in_head:
            inputs[1] = graph.op("Add", [inputs[1], self.penalty])
        else:
            inputs.append(self.keys)
        return graph.op("MultiHeadAttention", inputs, CONTRIB, num_heads=self.heads, scale=float(layer.scaling))

    def _extended(self, rows: Tensor, constant: float) -> Tensor:
        """The rows of each head, and one more that is constant."""
        by_head = rows.reshape(self.heads, len(rows) // self.heads, -1)
        return nn.functional.pad(by_head, (0, 0, 0, 1), value=constant).reshape(-1, *rows.shape[1:])


def _embeddings(graph: GraphBuilder, checkpoint: Checkpoint, ids: ir.Value, shape: ir.Value) -> ir.Value:
    backbone: Any = checkpoint.model.model
    parts = backbone.embeddings
    words = embedding(graph, "model.embeddings.word_embeddings.weight", parts.word_embeddings.weight, ids)
    table = graph.weight(  # every token is of type 0
        "model.embeddings.position_and_type",
        lambda: parts.position_embeddings.weight + parts.token_type_embeddings.weight[0],
        parts.position_embeddings.weight.shape,
    )
    end = graph.op("Slice", [shape, *(graph.constant([n], torch.int64) for n in (1, 2))])
    positions = graph.op("Slice", [table, graph.constant([0], torch.int64), end, graph.constant([0], torch.int64)])
    return _layer_norm(graph, "model.embeddings.LayerNorm", parts.LayerNorm, graph.op("Add", [words, positions]))


def _output(graph: GraphBuilder, name: str, layer: Any, x: ir.Value, residual: ir.Value) -> ir.Value:
    """norm(dense(x) + residual).

    Not as SkipLayerNormalization, which takes eight times as long on the CPU; a Sum keeps ONNX Runtime from fusing it.
    """
    bias = graph.parameter(f"{name}.dense.bias", layer.dense.bias)
    total = graph.op("Sum", [linear(graph, f"{name}.dense.weight", [layer.dense.weight], x), residual, bias])
    return _layer_norm(graph, f"{name}.LayerNorm", layer.LayerNorm, total)


def _layer_norm(graph: GraphBuilder, name: str, norm: nn.LayerNorm, x: ir.Value) -> ir.Value:
    inputs = [x, *(graph.parameter(f"{name}.{part}", getattr(norm, part)) for part in ("weight", "bias"))]
    return graph.op("LayerNormalization", inputs, axis=-1, epsilon=float(norm.eps))


def _pooled(graph: GraphBuilder, states: ir.Value, mask: ir.Value, count: ir.Value, pooling: str) -> ir.Value:
    """(N, L, H) → (N, H)."""
    if pooling == "cls":
        return graph.op("Gather", [states, graph.constant(0, torch.int64)], axis=1)
    axis = graph.constant([1], torch.int64)
    real = graph.op("Unsqueeze", [graph.cast(mask, graph.dtype), axis])
    total = graph.op("Squeeze", [graph.op("MatMul", [real, states]), axis])
    return graph.op("Div", [total, graph.op("Unsqueeze", [graph.cast(count, graph.dtype), axis])])
