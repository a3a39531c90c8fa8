"""The head in a bundle's graph: the last linear layer before `coefs`. Finds it, reads its input, writes other rows.

Only the head's tensors are read into memory: weights in `model.onnx.data` stay where they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from onnx.external_data_helper import load_external_data_for_tensor, uses_external_data

from p2l_plugins.errors import BundleError
from p2l_plugins.outcomes import has_eta
from p2l_plugins.prompts import TextEncoder, Turns, pad
from p2l_plugins.scoring.bundle import Bundle
from p2l_plugins.scoring.scorer import BATCH_TOKENS, batches

#: Operators between the linear layer and `coefs` that change no value's place.
PASSING = ("Cast", "Identity")


@dataclass(frozen=True)
class Head:
    """The last linear layer, coefs = state · weightᵀ + bias. Of a low-rank head, that is the second factor.

    Attributes:
        state: name of its input in the graph, (N, H).
        weight: (M, H), in the graph's own precision.
        bias: (M,).
        weight_name, bias_name: of the tensors in the graph.
        transposed: whether the graph holds the weight as (M, H); else (H, M).
        chain: names of the values after it, up to `coefs`.
    """

    state: str
    weight: NDArray[Any]
    bias: NDArray[Any]
    weight_name: str
    bias_name: str
    transposed: bool
    chain: tuple[str, ...]


def load_graph(folder: Path) -> onnx.ModelProto:
    """The graph of a bundle, without the content of its `model.onnx.data`."""
    return onnx.load(str(folder / "model.onnx"), load_external_data=False)


def find_head(model: onnx.ModelProto, folder: Path) -> Head:
    """Walks back from `coefs`: casts, then Add(MatMul(state, weight), bias) or Gemm(state, weight, bias).

    Args:
        folder: of the bundle, for weights in external data.

    Raises:
        BundleError: the graph ends in something else.
    """
    producer = {name: node for node in model.graph.node for name in node.output}
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    chain = ["coefs"]
    node = producer.get("coefs")
    while node is not None and node.op_type in PASSING:
        chain.append(node.input[0])
        node = producer.get(node.input[0])
    bias_name = weight_name = state = ""
    transposed = False
    if node is not None and node.op_type == "Add":
        bias_name = next((name for name in node.input if name in tensors), "")
        inner = next((name for name in node.input if name != bias_name), "")
        chain.append(inner)
        node = producer.get(inner)
        if node is not None and node.op_type == "MatMul":
            state, weight_name = node.input
    elif node is not None and node.op_type == "Gemm" and len(node.input) == 3:
        options = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        if options.get("alpha", 1.0) == options.get("beta", 1.0) == 1.0 and not options.get("transA", 0):
            state, weight_name, bias_name = node.input
            transposed = bool(options.get("transB", 0))
    if weight_name not in tensors or bias_name not in tensors:
        raise BundleError(
            f"{folder}: the graph does not end in a linear layer with a weight and a bias of its own, so its head "
            "can't be changed; export the checkpoint again"
        )
    weight, bias = _array(tensors[weight_name], folder), _array(tensors[bias_name], folder)
    rows = weight if transposed else weight.T
    if rows.ndim != 2 or bias.shape != (len(rows),) or _uses(model, weight_name) > 1 or _uses(model, bias_name) > 1:
        raise BundleError(
            f"{folder}: the head has a weight {tuple(rows.shape)} and a bias {tuple(bias.shape)}, or shares them with "
            "another part of the graph, so it can't be changed; export the checkpoint again"
        )
    return Head(state, rows, bias, weight_name, bias_name, transposed, tuple(chain))


def replace_head(model: onnx.ModelProto, head: Head, weight: NDArray[Any], bias: NDArray[Any]) -> None:
    """Puts other rows into the graph, in place: weight (M', H) and bias (M',), rounded to the graph's precision."""
    stored = np.asarray(weight, head.weight.dtype)
    stored = np.ascontiguousarray(stored if head.transposed else stored.T)
    new = {head.weight_name: stored, head.bias_name: np.asarray(bias, head.bias.dtype)}
    for tensor in model.graph.initializer:
        if tensor.name in new:
            tensor.CopyFrom(numpy_helper.from_array(new[tensor.name], tensor.name))
    for info in list(model.graph.value_info):  # shapes that the graph states after the head are of the old rows
        if info.name in (*head.chain, head.weight_name, head.bias_name):
            model.graph.value_info.remove(info)
    for value in model.graph.output:
        if value.name == "coefs" and len(value.type.tensor_type.shape.dim):
            value.type.tensor_type.shape.dim[-1].dim_value = len(bias)


def scale_eta(model: onnx.ModelProto, slope: float, shift: float) -> None:
    """Makes `raw_eta` slope · itself + shift, in place: two nodes at the end of the graph, once."""
    names = {"raw_eta_slope": slope, "raw_eta_shift": shift}
    found = {tensor.name: tensor for tensor in model.graph.initializer if tensor.name in names}
    if found:  # of an earlier change: slope · (old slope · x + old shift) + shift
        before = {name: float(numpy_helper.to_array(tensor)) for name, tensor in found.items()}
        names = {
            "raw_eta_slope": slope * before["raw_eta_slope"],
            "raw_eta_shift": slope * before["raw_eta_shift"] + shift,
        }
        for name, tensor in found.items():
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).dtype.type(names[name]), name))
        return
    kind = next(value.type.tensor_type.elem_type for value in model.graph.output if value.name == "raw_eta")
    for node in model.graph.node:
        for side in (node.input, node.output):
            for i, name in enumerate(side):
                if name == "raw_eta":
                    side[i] = "raw_eta_before"
    model.graph.node.append(helper.make_node("Mul", ["raw_eta_before", "raw_eta_slope"], ["raw_eta_scaled"]))
    model.graph.node.append(helper.make_node("Add", ["raw_eta_scaled", "raw_eta_shift"], ["raw_eta"]))
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    model.graph.initializer.extend(numpy_helper.from_array(dtype.type(x), name) for name, x in names.items())


def move_eta(model: onnx.ModelProto, head: Head, weight: NDArray[Any], bias: float) -> None:
    """Adds `state · weight + bias` to `raw_eta`, in place, with weight (H,): its own linear layer takes it.

    Raises:
        BundleError: `raw_eta` does not come from a linear layer of the head's state with tensors of its own.
    """
    producer = {name: node for node in model.graph.node for name in node.output}
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    node = producer.get("raw_eta")
    while node is not None and node.op_type != "Gemm":
        node = producer.get(node.input[0])
    if node is None or node.input[0] != head.state or not {*node.input[1:]} <= set(tensors):
        raise BundleError("raw_eta does not come from a linear layer of its own, so its ties can't be fitted anew")
    slope = numpy_helper.to_array(tensors["raw_eta_slope"]) if "raw_eta_slope" in tensors else 1.0
    for name, more in zip(node.input[1:], (weight / slope, np.array(bias) / slope), strict=True):
        old = numpy_helper.to_array(tensors[name])
        tensors[name].CopyFrom(numpy_helper.from_array((old + more.reshape(old.shape)).astype(old.dtype), name))


def read_states(
    bundle: Bundle, prompts: Sequence[Turns], progress: Callable[[int], None] | None = None
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32] | None]:
    """What the head reads and gives on prompts, by the bundle's own text path and batches.

    Returns:
        states (N, H), coefs (N, M) and raw_eta (N,) or None.

    Raises:
        BundleError: as `find_head`, or the graph does not run on the CPU (bf16).
    """
    import onnxruntime as ort

    manifest = bundle.manifest
    model = load_graph(bundle.folder)
    head = find_head(model, bundle.folder)
    model.graph.output.append(onnx.ValueInfoProto(name=head.state))
    options = ort.SessionOptions()
    options.log_severity_level = 3
    # a graph from memory has no folder of its own to find model.onnx.data in
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(bundle.folder))
    try:
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's exceptions have no common base of their own
        first = str(error).partition("\n")[0]
        raise BundleError(
            f"{bundle.folder}: ONNX Runtime can't run this {manifest.precision} graph on the CPU ({first}); "
            "change the models of its fp32 bundle"
        ) from None
    names = [head.state, "coefs", *(["raw_eta"] if has_eta(manifest.family) else [])]
    widths = [(head.weight.shape[1],), (len(manifest.models),), ()]
    results = [np.empty((len(prompts), *width), np.float32) for width, _ in zip(widths, names, strict=False)]
    ids = TextEncoder.from_folder(bundle.folder, manifest.text).encode(prompts)
    for rows in batches([len(row) for row in ids], 1 if bundle.runs_alone else BATCH_TOKENS):
        input_ids, mask = pad([ids[i] for i in rows], manifest.text.pad_id)
        outputs = session.run(names, {"input_ids": input_ids, "attention_mask": mask})
        for result, output in zip(results, outputs, strict=True):
            result[rows] = output
        if progress is not None:
            progress(len(rows))
    return results[0], results[1], results[2] if len(results) > 2 else None


def _array(tensor: onnx.TensorProto, folder: Path) -> NDArray[Any]:
    if uses_external_data(tensor):
        copy = onnx.TensorProto()
        copy.CopyFrom(tensor)
        load_external_data_for_tensor(copy, str(folder))
        tensor = copy
    return np.asarray(numpy_helper.to_array(tensor))


def _uses(model: onnx.ModelProto, name: str) -> int:
    return sum(list(node.input).count(name) for node in model.graph.node)
