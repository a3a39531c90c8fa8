"""A tiny real bundle, built without torch: each word of a prompt adds its row of a table to the coefficients."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper, save
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from p2l_plugins.prompts import TextForm
from p2l_plugins.scoring.bundle import Manifest, sha256

MODELS = ("alpha", "beta", "gamma")
#: coefficients that one word adds to alpha, beta and gamma
WORDS = {"math": (2.0, 1.0, 0.0), "code": (0.0, 2.0, 1.0), "chat": (1.0, 0.0, 2.0)}


#: The chat form: what a text may hold of it must stay text.
TEMPLATE = "{% for message in messages %}<|user|> {{ message.content }} <|end|>\n{% endfor %}"
CLS = "[CLS]"


def write_bundle(folder: Path, family: str = "grk", form: str = "plain", words: dict = WORDS) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = {"[PAD]": 0, "[UNK]": 1} | {word: i for i, word in enumerate(words, start=2)}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    if form == "chat":
        tokenizer.add_special_tokens([CLS])
        (folder / "chat_template.jinja").write_text(TEMPLATE)
    tokenizer.save(str(folder / "tokenizer.json"))
    table = np.array([(0.0, 0.0, 0.0), (0.0, 0.0, 0.0), *words.values(), (0.0, 0.0, 0.0)], np.float32)
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["rows"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last"], ["weights"]),
        helper.make_node("Mul", ["rows", "weights"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "tokens"], ["coefs"], keepdims=0),
    ]
    outputs = [helper.make_tensor_value_info("coefs", TensorProto.FLOAT, ["n", len(MODELS)])]
    constants = [
        numpy_helper.from_array(table, "table"),
        numpy_helper.from_array(np.array([-1]), "last"),
        numpy_helper.from_array(np.array([1]), "tokens"),
    ]
    if family == "grk":
        nodes += [
            helper.make_node("Mul", ["mask", "zero"], ["nothing"]),
            helper.make_node("ReduceSum", ["nothing", "tokens"], ["raw_eta"], keepdims=0),
        ]
        outputs.append(helper.make_tensor_value_info("raw_eta", TensorProto.FLOAT, ["n"]))
        constants.append(numpy_helper.from_array(np.array(0.0, np.float32), "zero"))
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["n", "t"]) for name in ("input_ids", "attention_mask")
    ]
    graph = helper.make_graph(nodes, "tiny", inputs, outputs, constants)
    save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), str(folder / "model.onnx")
    )
    manifest = Manifest(
        name="tiny",
        family=family,
        models=MODELS,
        aliases={"a": "alpha"},
        text=TextForm(form=form, max_length=64, pad_id=0, cls_token=CLS if form == "chat" else None),
        opset=20,
        files={path.name: sha256(path) for path in folder.iterdir()},
    )
    manifest.write(folder)
    return folder


def write_choice(folder: Path, math: Mapping[str, Sequence[float]]) -> Path:
    """Bundles that differ in what "math" gives, one more that is damaged, and a link to the first; their folder."""
    for name, coefs in math.items():
        write_bundle(folder / name, words=WORDS | {"math": tuple(coefs)})
    bad = write_bundle(folder / "bad", words=WORDS | {"math": (9.0, 9.0, 9.0)})
    (bad / "model.onnx").write_bytes((bad / "model.onnx").read_bytes()[:-1])
    point(folder, next(iter(math)))
    return folder


def point(folder: Path, name: str) -> None:
    """Lets the link lead to another bundle, in one step."""
    (folder / "new").symlink_to(name)
    os.replace(folder / "new", folder / "link")
