"""Linear layers and embedding tables of a fused graph, in the precision of the export.

`int8` quantises the activations of every token with a scale of its own, so that a token's result does not depend on the
other tokens of the run, and an outlier costs only its own row. Weights have one scale per output. With two terms, the
rounding error of the activations is quantised and multiplied too, 254 times finer: what is left is the error of the
weights. An encoder needs one term, a decoder two (docs/quantization.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir
import torch
from torch import Tensor

from onnx_export.builder import CONTRIB, GraphBuilder

#: Embedding tables above this many values are stored in int8; smaller ones are not worth the loss.
EMBEDDING_VALUES = 1_000_000
#: Values of a row that share a scale in 4 bits (Q4_0).
BLOCK = 32
#: MLAS is fast for uint8 activations and int8 weights, not for int8 on both sides.
ZERO_POINT = 128


def embedding(graph: GraphBuilder, name: str, table: Tensor, ids: ir.Value) -> ir.Value:
    """Rows of a table for ids (N, L): (N, L, H).

    In `int8` a large table is stored in 8 bits with one scale per row, or, where its values are those of 4-bit blocks,
    in those, without a loss.
    """
    if graph.precision != "int8" or table.numel() < EMBEDDING_VALUES:
        return graph.op("Gather", [graph.parameter(name, table), ids])
    if (blocks := Int4Blocks.of(table)) is not None:
        return _from_blocks(graph, name, blocks, ids)
    stored = Int8Rows([table])
    rows = graph.weight(f"{name}_int8", stored.rows, table.shape, torch.int8)
    scale = graph.weight(f"{name}_scale", lambda: stored.scale()[:, None], (len(table), 1), torch.float32)
    values = graph.cast(graph.op("Gather", [rows, ids]), torch.float32)
    return graph.op("Mul", [values, graph.op("Gather", [scale, ids])])


def _from_blocks(graph: GraphBuilder, name: str, blocks: Int4Blocks, ids: ir.Value) -> ir.Value:
    packed = graph.weight(f"{name}_int4", lambda: blocks.packed, blocks.packed.shape, torch.uint8)
    scale = graph.weight(f"{name}_scale", lambda: blocks.scale, blocks.scale.shape, torch.float16)
    split = graph.constant([0, 0, -1, BLOCK // 2], torch.int64)
    halves = graph.op("Reshape", [graph.op("Gather", [packed, ids]), split])
    low = graph.op("BitwiseAnd", [halves, graph.constant(15, torch.uint8)])
    high = graph.op("BitShift", [halves, graph.constant(4, torch.uint8)], direction="RIGHT")
    steps = graph.cast(graph.op("Concat", [low, high], axis=-1), torch.float32)
    steps = graph.op("Sub", [steps, graph.constant(8.0, torch.float32)])
    factor = graph.cast(graph.op("Gather", [scale, ids]), torch.float32)
    values = graph.op("Mul", [steps, graph.op("Unsqueeze", [factor, graph.constant([-1], torch.int64)])])
    return graph.op("Reshape", [values, graph.constant([0, 0, -1], torch.int64)])


def linear(graph: GraphBuilder, name: str, parts: Sequence[Tensor], x: ir.Value) -> ir.Value:
    """x (T, K) · weightᵀ; the weight (N, K) is the rows of `parts`, one below the other."""
    return linears(graph, {name: parts}, x)[0]


def linears(graph: GraphBuilder, layers: Mapping[str, Sequence[Tensor]], x: ir.Value) -> list[ir.Value]:
    """Several linear layers of the same input (T, K), which is quantised once."""
    if graph.precision == "int8":
        return _int8(graph, layers, x)
    results: list[ir.Value] = []
    for name, parts in layers.items():
        k, n = parts[0].shape[1], sum(map(len, parts))
        weight = graph.weight(name, lambda parts=parts: torch.cat(list(parts)).T, (k, n))  # type: ignore[misc]
        results.append(graph.op("MatMul", [x, weight]))
    return results


def _int8(graph: GraphBuilder, layers: Mapping[str, Sequence[Tensor]], x: ir.Value) -> list[ir.Value]:
    axis, zero = graph.constant([1], torch.int64), graph.constant(ZERO_POINT, torch.uint8)
    largest = graph.op("ReduceMax", [graph.op("Abs", [x]), axis], keepdims=0)
    scale = graph.op("Mul", [largest, graph.constant(1 / 127, torch.float32)])
    scale = graph.op("Max", [scale, graph.constant(1e-20, torch.float32)])  # a row of zeros
    zeros = graph.op("Expand", [zero, graph.op("Shape", [scale])])
    terms = [(graph.op("QuantizeLinear", [x, scale, zeros], axis=0), graph.constant(1.0, torch.float32))]
    if graph.terms == 2:
        finer = graph.constant(1 / 254, torch.float32)  # the error is at most half a step
        rounded = graph.op("DequantizeLinear", [terms[0][0], scale, zeros], axis=0)
        rest, step = graph.op("Sub", [x, rounded]), graph.op("Mul", [scale, finer])
        terms.append((graph.op("QuantizeLinear", [rest, step, zeros], axis=0), finer))
    by_row = graph.op("Unsqueeze", [scale, axis])
    results = []
    for name, parts in layers.items():
        k, n = parts[0].shape[1], sum(map(len, parts))
        stored = Int8Rows(parts)
        rows = graph.weight(f"{name}_int8", lambda stored=stored: stored.rows().T, (k, n), torch.int8)  # type: ignore[misc]
        scales = graph.weight(f"{name}_scale", stored.scale, (n,), torch.float32)
        products = [
            graph.op("MatMulIntegerToFloat", [values, rows, factor, scales, zero], CONTRIB) for values, factor in terms
        ]
        product = products[0] if len(products) == 1 else graph.op("Add", products)
        results.append(graph.op("Mul", [product, by_row]))
    return results


class Int8Rows:
    """The rows of `parts`, one below the other, in int8 with one scale per row, made when asked."""

    def __init__(self, parts: Sequence[Tensor]) -> None:
        self.parts = parts

    def scale(self) -> Tensor:
        """(rows,) float32."""
        largest = torch.cat([part.detach().abs().amax(dim=1) for part in self.parts])
        return largest.clamp(min=1e-12) / 127

    def rows(self) -> Tensor:
        """(rows, K) int8."""
        values = torch.cat([part.detach() for part in self.parts])
        return values.div_(self.scale()[:, None]).round_().clamp_(-127, 127).to(torch.int8)


@dataclass(frozen=True)
class Int4Blocks:
    """A table (V, H) in blocks of 32 values of a row: a value is scale · (step − 8), its step 0 to 15.

    Attributes:
        packed: (V, H / 2) uint8; byte j of a block's 16 holds step j in its low half and step j + 16 in its high half.
        scale: (V, H / 32) float16.
    """

    packed: Tensor
    scale: Tensor

    @classmethod
    def of(cls, table: Tensor) -> Int4Blocks | None:
        """The blocks whose values are exactly those of the table; None where there are none."""
        values = table.detach().float()
        if values.shape[1] % BLOCK:
            return None
        blocks = values.reshape(len(values), -1, BLOCK)
        # Q4_0 gives the value that is farthest from 0 the step 0
        farthest = blocks.gather(2, blocks.abs().argmax(dim=2, keepdim=True))
        scale = (farthest / -8).half()
        factor = scale.float()
        steps = torch.where(factor == 0, 8, (blocks / factor).round() + 8).clamp_(0, 15).to(torch.uint8)
        if not torch.equal((steps.float() - 8) * factor, blocks):
            return None
        low, high = steps[..., : BLOCK // 2], steps[..., BLOCK // 2 :]
        return cls((low | (high << 4)).reshape(len(values), -1), scale[..., 0])
