"""int8 for encoders: dynamic int8 matrix products, and embeddings in int8 with one scale per row."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from onnx_export.linear import EMBEDDING_VALUES


def quantise_int8(source: Path, target: Path) -> None:
    """Writes the int8 form of an fp32 graph: MatMul with per-channel int8 weights, large embeddings by row."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model = onnx.load(str(source))
    del model.graph.value_info[:]  # the exporter's shapes contradict ONNX's own inference, which the quantiser runs
    prepared = target.with_name("prepared.onnx")
    onnx.save(model, str(prepared))
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # the quantiser advises on the root logger
    try:
        quantize_dynamic(
            str(prepared),
            str(target),
            weight_type=QuantType.QInt8,
            per_channel=True,
            op_types_to_quantize=["MatMul"],
            nodes_to_exclude=_head_nodes(model),
            extra_options={"DefaultTensorType": TensorProto.FLOAT, "MatMulConstBOnly": True},
        )
    finally:
        root.setLevel(level)
        prepared.unlink()
    model = onnx.load(str(target))
    _quantise_embeddings(model)
    onnx.save(model, str(target))


def _head_nodes(model: onnx.ModelProto) -> list[str]:
    """Names of the nodes that write the outputs: the heads stay in fp32, they cost nothing."""
    producer = {name: node for node in model.graph.node for name in node.output}
    heads = []
    for output in model.graph.output:
        node = producer[output.name]
        while node.op_type not in ("MatMul", "Gemm"):
            node = next(producer[name] for name in node.input if name in producer)
        heads += [node.name, f"{node.name}_MatMul"]  # the quantiser renames a Gemm that it splits
    return heads


def _quantise_embeddings(model: onnx.ModelProto) -> None:
    """Gather(W, ids) → Cast(Gather(W_int8, ids)) · Gather(scale, ids), with one scale per row of W."""
    graph = model.graph
    tables = {i.name: i for i in graph.initializer if np.prod(i.dims) >= EMBEDDING_VALUES and len(i.dims) == 2}
    nodes = []
    for node in graph.node:
        if node.op_type != "Gather" or node.input[0] not in tables:
            nodes.append(node)
            continue
        name = node.input[0]
        table = tables.pop(name)
        weight = numpy_helper.to_array(table)
        scale = np.maximum(np.abs(weight).max(axis=1, keepdims=True), 1e-12).astype(np.float32) / 127
        rows = np.clip(np.rint(weight / scale), -127, 127).astype(np.int8)
        graph.initializer.remove(table)
        graph.initializer.extend(
            [numpy_helper.from_array(rows, f"{name}_int8"), numpy_helper.from_array(scale, f"{name}_scale")]
        )
        ids, out = node.input[1], node.output[0]
        nodes += [
            helper.make_node("Gather", [f"{name}_int8", ids], [f"{out}_int8"], axis=0),
            helper.make_node("Cast", [f"{out}_int8"], [f"{out}_float"], to=TensorProto.FLOAT),
            helper.make_node("Gather", [f"{name}_scale", ids], [f"{out}_scale"], axis=0),
            helper.make_node("Mul", [f"{out}_float", f"{out}_scale"], [out]),
        ]
    del graph.node[:]
    graph.node.extend(nodes)
