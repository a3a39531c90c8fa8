"""The fused graph of llama, qwen2 and qwen3: attention, rotary embedding and norms as ONNX Runtime's own operators.

With right padding and causal attention, padding cannot reach the CLS token, so no attention mask is needed; after its
attention, the last layer is computed for the CLS rows only. States are (T, H), T = N · L tokens.
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, nn

from onnx_export.builder import CONTRIB, GraphBuilder, heads, lengths
from onnx_export.linear import embedding, linear, linears
from p2l_plugins.training.checkpoint import Checkpoint

TYPES = ("llama", "qwen2", "qwen3")
INT8_TERMS = 2
#: Rotary embeddings whose angles do not depend on the length of the input, so that one table holds them.
ROPE_TYPES = ("default", "linear", "llama3", "yarn")


def unsupported(checkpoint: Checkpoint) -> str | None:
    """What of this decoder the fused graph can't express, or None."""
    config: Any = checkpoint.model.model.config
    rope = config.rope_parameters
    if rope.get("rope_type", "default") not in ROPE_TYPES:
        return f"rope_type {rope['rope_type']!r}"
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        return f"partial_rotary_factor {rope['partial_rotary_factor']}"
    if config.hidden_act not in ("silu", "swish"):
        return f"hidden_act {config.hidden_act!r}"
    windows = {kind for kind in getattr(config, "layer_types", None) or () if kind != "full_attention"}
    if windows or getattr(config, "use_sliding_window", False):
        return "sliding-window attention"
    return None


def build(graph: GraphBuilder, checkpoint: Checkpoint) -> None:
    """Writes the decoder and its heads into the graph."""
    backbone: Any = checkpoint.model.model
    ids = graph.inputs["input_ids"]
    count, valid = lengths(graph)
    shape = graph.op("Shape", [ids])
    batch, length = (graph.op("Gather", [shape, graph.constant(axis, torch.int64)]) for axis in (0, 1))
    zero, one = graph.constant(0, torch.int64), graph.constant(1, torch.int64)
    last = graph.op("Max", [graph.op("Sub", [count, one]), zero])
    # on a GPU shapes are computed on the host: a Range of them is made on the device, anything else would copy them
    cls_rows = graph.op("Add", [graph.op("Range", [zero, graph.op("Mul", [batch, length]), length]), last])
    attention = _Attention(graph, checkpoint, shape, length, last)
    table = backbone.embed_tokens.weight
    flat = graph.constant([-1, table.shape[1]], torch.int64)
    residual = graph.op("Reshape", [embedding(graph, "model.embed_tokens.weight", table, ids), flat])
    layers = list(backbone.layers)
    norms = [*(layer.input_layernorm for layer in layers[1:]), backbone.norm]
    x = _norm(graph, "model.layers.0.input_layernorm", layers[0].input_layernorm, residual)
    for i, (layer, norm) in enumerate(zip(layers, norms, strict=True)):
        name = f"model.layers.{i}"
        state = attention(f"{name}.self_attn", layer.self_attn, x)
        if i == len(layers) - 1:
            state, residual = (graph.op("Gather", [value, cls_rows]) for value in (state, residual))
        state = _dense(graph, f"{name}.self_attn.o_proj", layer.self_attn.o_proj, state)
        x, residual = _skip_norm(graph, f"{name}.post_attention", layer.post_attention_layernorm, state, residual)
        state = _mlp(graph, f"{name}.mlp", layer.mlp, x)
        x, residual = _skip_norm(graph, f"{name}.output", norm, state, residual)
    heads(graph, x, valid, checkpoint.model.head)


class _Attention:
    """Adds the attention of one layer; holds what all layers share.

    Args:
        shape, length: of the ids: (2,) and a scalar.
        last: position of the last token of each row, (N,) int64.
    """

    def __init__(
        self, graph: GraphBuilder, checkpoint: Checkpoint, shape: ir.Value, length: ir.Value, last: ir.Value
    ) -> None:
        backbone: Any = checkpoint.model.model
        self.graph, self.config = graph, backbone.config
        positions = torch.arange(checkpoint.form.max_length)[None]
        with torch.no_grad():
            angles = backbone.rotary_emb(torch.zeros(1, 1, 1), positions)
        self.head_dim = angles[0].shape[-1]
        self.cos, self.sin = (
            graph.parameter(name, table[0, :, : self.head_dim // 2])
            for name, table in zip(("rotary.cos", "rotary.sin"), angles, strict=True)
        )
        self.last, self.length = graph.cast(last, torch.int32), graph.cast(length, torch.int32)
        self.by_prompt = graph.op("Concat", [shape, graph.constant([-1], torch.int64)], axis=0)

    def __call__(self, name: str, layer: Any, x: ir.Value) -> ir.Value:
        """(T, H) → (T, heads · head_dim)."""
        graph, config = self.graph, self.config
        projections = {"q_proj": layer.q_proj, "k_proj": layer.k_proj, "v_proj": layer.v_proj}
        if hasattr(layer, "q_norm"):
            parts = {f"{name}.{key}.weight": [linear_.weight] for key, linear_ in projections.items()}
            query, key, value = linears(graph, parts, x)
            query, key, value = (
                _add_bias(graph, f"{name}.{part}", [linear_.bias], result)
                for (part, linear_), result in zip(projections.items(), (query, key, value), strict=True)
            )
            query, key = (
                _norm(graph, f"{name}.{kind}", norm, graph.op("Reshape", [part, self._flat()]))
                for kind, norm, part in (("q_norm", layer.q_norm, query), ("k_norm", layer.k_norm, key))
            )
            inputs: list[ir.Value | None] = [
                graph.op("Reshape", [part, self.by_prompt]) for part in (query, key, value)
            ]
        else:
            packed = linear(graph, f"{name}.qkv.weight", [part.weight for part in projections.values()], x)
            packed = _add_bias(graph, f"{name}.qkv", [part.bias for part in projections.values()], packed)
            inputs = [graph.op("Reshape", [packed, self.by_prompt]), None, None]
        (state,) = graph.op_outputs(
            "GroupQueryAttention",
            [*inputs, None, None, self.last, self.length, self.cos, self.sin],
            3,
            (0,),
            CONTRIB,
            num_heads=config.num_attention_heads,
            kv_num_heads=config.num_key_value_heads,
            scale=float(layer.scaling),
            do_rotary=1,
        )
        width = config.num_attention_heads * self.head_dim
        return graph.op("Reshape", [state, graph.constant([-1, width], torch.int64)])

    def _flat(self) -> ir.Value:
        return self.graph.constant([-1, self.head_dim], torch.int64)


def _mlp(graph: GraphBuilder, name: str, mlp: Any, x: ir.Value) -> ir.Value:
    gate, up = linears(graph, {f"{name}.{part}.weight": [getattr(mlp, part).weight] for part in GATED}, x)
    gate, up = (
        _add_bias(graph, f"{name}.{part}", [getattr(mlp, part).bias], value)
        for part, value in zip(GATED, (gate, up), strict=True)
    )
    if graph.dtype == torch.float32:
        gate = graph.op("QuickGelu", [gate], CONTRIB, alpha=1.0)  # with alpha 1, this is SiLU
    else:
        gate = graph.op("Mul", [gate, graph.op("Sigmoid", [gate])])
    return _dense(graph, f"{name}.down_proj", mlp.down_proj, graph.op("Mul", [gate, up]))


GATED = ("gate_proj", "up_proj")


def _dense(graph: GraphBuilder, name: str, layer: nn.Linear, x: ir.Value) -> ir.Value:
    return _add_bias(graph, name, [layer.bias], linear(graph, f"{name}.weight", [layer.weight], x))


def _add_bias(graph: GraphBuilder, name: str, parts: list[Tensor | None], x: ir.Value) -> ir.Value:
    present = [part for part in parts if part is not None]
    if not present:
        return x
    bias = graph.weight(f"{name}.bias", lambda: torch.cat(present), (sum(map(len, present)),))
    return graph.op("Add", [x, bias])


def _norm(graph: GraphBuilder, name: str, norm: Any, x: ir.Value) -> ir.Value:
    scale, epsilon = graph.parameter(f"{name}.weight", norm.weight), float(norm.variance_epsilon)
    return graph.op("SimplifiedLayerNormalization", [x, scale], axis=-1, epsilon=epsilon, stash_type=1)


def _skip_norm(graph: GraphBuilder, name: str, norm: Any, x: ir.Value, residual: ir.Value) -> tuple[ir.Value, ir.Value]:
    """norm(x + residual) and x + residual."""
    scale, epsilon = graph.parameter(f"{name}.norm", norm.weight), float(norm.variance_epsilon)
    inputs = [x, residual, scale]
    normed, total = graph.op_outputs("SkipSimplifiedLayerNormalization", inputs, 4, (0, 3), CONTRIB, epsilon=epsilon)
    return normed, total
