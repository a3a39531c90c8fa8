from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from helpers.lmeval_files import write_task as write_local_task
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from p2l_plugins.prompts import TextForm
from p2l_plugins.scoring.bundle import Manifest, sha256

os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"

MODELS = ("alpha/one", "beta", "gamma, third", "delta")
MAX_LENGTH = 8

#: A prompt's coefficients are the sums of its words' rows; other words count nothing.
WORDS = {
    "[PAD]": [0.0, 0.0, 0.0, 0.0],
    "[UNK]": [0.0, 0.0, 0.0, 0.0],
    "math": [2.0, 0.5, -1.0, 0.0],
    "law": [-1.0, 2.0, 0.5, 0.0],
    "poem": [0.0, -1.0, 1.5, 0.2],
}


def write_bundle(folder: Path, family: str) -> Path:
    folder.mkdir()
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    onnx.save(word_sums(family == "grk"), str(folder / "model.onnx"))
    Manifest(
        name=f"tiny-{family}",
        family=family,
        models=MODELS,
        aliases={"the-beta": "beta"},
        text=TextForm(form="plain", max_length=MAX_LENGTH, pad_id=0),
        opset=20,
        files={name: sha256(folder / name) for name in ("model.onnx", "tokenizer.json")},
    ).write(folder)
    return folder


def word_sums(with_eta: bool) -> onnx.ModelProto:
    table = np.array(list(WORDS.values()), np.float32)
    constants = [
        numpy_helper.from_array(table, "table"),
        numpy_helper.from_array(np.array([1], np.int64), "tokens"),
        numpy_helper.from_array(np.array(0.0, np.float32), "zero"),
    ]
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["rows"]),
        helper.make_node("ReduceSum", ["rows", "tokens"], ["coefs"], keepdims=0),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
    ]
    outputs = [helper.make_tensor_value_info("coefs", TensorProto.FLOAT, ["n", len(MODELS)])]
    if with_eta:
        nodes.append(helper.make_node("Mul", ["mask", "zero"], ["zeros"]))
        nodes.append(helper.make_node("ReduceSum", ["zeros", "tokens"], ["raw_eta"], keepdims=0))
        outputs.append(helper.make_tensor_value_info("raw_eta", TensorProto.FLOAT, ["n"]))
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["n", "t"]) for name in ("input_ids", "attention_mask")
    ]
    graph = helper.make_graph(nodes, "word_sums", inputs, outputs, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.fixture(scope="session")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("bundles")
    return {family: write_bundle(root / family, family) for family in ("bt", "grk")}


@pytest.fixture
def write_task(tmp_path: Path) -> Callable[..., Path]:
    """Writes a local task that needs no network; returns the folder."""

    def write(name: str, questions: list[str], folder: Path = tmp_path, **config: Any) -> Path:
        folder.mkdir(exist_ok=True)
        rows = [{"question": question, "answer": "yes"} for question in questions]
        write_local_task(folder, name, rows, **{"doc_to_text": "{{question}}", "doc_to_target": "{{answer}}"} | config)
        return folder

    return write
