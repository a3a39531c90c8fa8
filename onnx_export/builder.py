"""A graph written operator by operator: weights by reference, linear layers and embeddings in the export's precision.

The fused route needs no trace: an architecture is a page of operators. Weights are turned into the file's form one at
a time while it is written, so that an export holds the model once, not three times.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from onnx_ir.tensor_adapters import TorchTensor
from torch import Tensor, nn

from onnx_export.config import P2LExporterConfig
from p2l_plugins.training.model import Head

FUSED_OPSET = 21
IR_VERSION = 10
CONTRIB = "com.microsoft"
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
IR_DTYPES = {
    torch.float32: ir.DataType.FLOAT,
    torch.float16: ir.DataType.FLOAT16,
    torch.bfloat16: ir.DataType.BFLOAT16,
    torch.int64: ir.DataType.INT64,
    torch.int32: ir.DataType.INT32,
    torch.int8: ir.DataType.INT8,
    torch.uint8: ir.DataType.UINT8,
}
#: Above this many bytes of weights, they go to `model.onnx.data` (a protobuf ends at 2 GB).
EXTERNAL_DATA_BYTES = 1_500_000_000
EXTERNAL_DATA = "model.onnx.data"


class GraphBuilder:
    """Collects operators and weights, then saves the model.

    Args:
        config: inputs, outputs and axes.
        precision: `fp32`, `fp16`, `bf16` or `int8`; see `onnx_export.linear`.
        terms: of an activation in `int8`: 1 or 2.
    """

    def __init__(self, config: P2LExporterConfig, precision: str, terms: int = 1) -> None:
        self.config = config
        self.precision = precision
        self.terms = terms
        self.dtype = DTYPES[config.float_dtype]
        self.nodes: list[ir.Node] = []
        self.weights: dict[str, ir.Value] = {}
        self.outputs: list[ir.Value] = []
        self.inputs = {
            name: ir.Value(name=name, shape=ir.Shape(list(axes.values())), type=ir.TensorType(ir.DataType.INT64))
            for name, axes in config.inputs.items()
        }

    def op(self, kind: str, inputs: Sequence[ir.Value | None], domain: str = "", **attributes: Any) -> ir.Value:
        """Adds an operator with one output and returns that."""
        return self.op_outputs(kind, inputs, 1, (0,), domain, **attributes)[0]

    def op_outputs(
        self,
        kind: str,
        inputs: Sequence[ir.Value | None],
        count: int,
        used: Sequence[int],
        domain: str = "",
        **attributes: Any,
    ) -> list[ir.Value]:
        """Adds an operator with `count` outputs and returns those that are `used`; the others are left out."""
        name = f"{kind}_{len(self.nodes)}"
        node = ir.node(kind, inputs, attributes, domain=domain, num_outputs=count, name=name)
        for i, value in enumerate(node.outputs):
            value.name = f"{name}_out{i}" if i in used else ""
        self.nodes.append(node)
        return [node.outputs[i] for i in used]

    def weight(
        self, name: str, make: Callable[[], Tensor], shape: Sequence[int], dtype: torch.dtype | None = None
    ) -> ir.Value:
        """An initializer whose content is made when the file is written; the same name is the same tensor."""
        if name not in self.weights:
            kind = dtype or self.dtype

            def content() -> TorchTensor:
                return TorchTensor(make().detach().to(kind).contiguous(), name)

            tensor = ir.LazyTensor(content, IR_DTYPES[kind], ir.Shape(list(shape)), name=name)
            self.weights[name] = ir.Value(
                name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor
            )
        return self.weights[name]

    def parameter(self, name: str, value: Tensor) -> ir.Value:
        """A tensor as it is, in the graph's floating-point type."""
        return self.weight(name, lambda: value, value.shape)

    def constant(self, value: float | Sequence[int], dtype: torch.dtype) -> ir.Value:
        """A small constant; equal ones are shared."""
        tensor = torch.tensor(value, dtype=dtype)
        return self.weight(f"constant_{str(dtype)[6:]}_{value}".replace(" ", ""), lambda: tensor, tensor.shape, dtype)

    def cast(self, value: ir.Value, dtype: torch.dtype) -> ir.Value:
        """The value in another type."""
        return self.op("Cast", [value], to=int(IR_DTYPES[dtype]))

    def save(self, path: Path) -> None:
        """Writes the model, with its weights beside it above `EXTERNAL_DATA_BYTES`."""
        graph = ir.Graph(
            list(self.inputs.values()),
            self.outputs,
            nodes=self.nodes,
            initializers=list(self.weights.values()),
            opset_imports={"": FUSED_OPSET, CONTRIB: 1},
            name="p2l",
        )
        size = sum(value.const_value.nbytes for value in self.weights.values() if value.const_value is not None)
        external = {"external_data": EXTERNAL_DATA, "max_workers": 1} if size > EXTERNAL_DATA_BYTES else {}
        ir.save(ir.Model(graph, ir_version=IR_VERSION, producer_name="p2l-plugins"), path, **external)  # type: ignore[arg-type]


def lengths(graph: GraphBuilder) -> tuple[ir.Value, ir.Value]:
    """From the attention mask: the number of real tokens (N,) int64, and whether each row is padded on the right only.

    A row that is padded on the left, has a hole or no token at all is not: its last real position is not its count.
    """
    mask = graph.inputs["attention_mask"]
    axis = graph.constant([1], torch.int64)
    zero, one = graph.constant(0, torch.int64), graph.constant(1, torch.int64)
    count = graph.op("ReduceSum", [mask, axis], keepdims=0)
    width = graph.op("Gather", [graph.op("Shape", [mask]), one])
    positions = graph.op("Range", [one, graph.op("Add", [width, one]), one])
    last = graph.op("ReduceMax", [graph.op("Mul", [mask, positions]), axis], keepdims=0)
    valid = graph.op("And", [graph.op("Equal", [last, count]), graph.op("Greater", [count, zero])])
    return count, valid


def heads(graph: GraphBuilder, state: ir.Value, valid: ir.Value, head: Head) -> None:
    """The outputs from the pooled state (N, H), in fp32; of rows that are not valid NaN, never a plausible number."""
    if graph.dtype != torch.float32:
        state = graph.cast(state, torch.float32)
    rows = graph.op("Unsqueeze", [valid, graph.constant([1], torch.int64)])
    state = graph.op("Where", [rows, state, graph.constant(float("nan"), torch.float32)])
    full = head.merged()
    layers: dict[str, nn.Linear] = {"head.head": full.head}
    if full.eta_head is not None:
        layers["head.eta_head"] = full.eta_head
    results = []
    for name, layer in layers.items():
        tensors = [
            graph.weight(f"{name}.{part}", lambda value=value: value, value.shape, torch.float32)  # type: ignore[misc]
            for part, value in layer.named_parameters()
        ]
        results.append(graph.op("Gemm", [state, *tensors], transB=1))
    if full.eta_head is not None:
        results[1] = graph.op("Squeeze", [results[1], graph.constant([1], torch.int64)])
    widths: Mapping[str, list[int]] = {"coefs": [full.head.out_features]}
    for (name, axes), value in zip(graph.config.outputs.items(), results, strict=True):
        value.name = name
        value.shape = ir.Shape([*axes.values(), *widths.get(name, [])])
        value.type = ir.TensorType(ir.DataType.FLOAT)
        graph.outputs.append(value)
