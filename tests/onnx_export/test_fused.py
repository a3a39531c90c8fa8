"""The fused route: its graphs against torch, what it leaves to the plain route, and what the gate makes of it."""

from types import SimpleNamespace

import numpy as np
import pytest

from p2l_plugins import BundleError, ConfigError
from p2l_plugins.prompts import TextForm, pad

torch = pytest.importorskip("torch")
ort = pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")
transformers = pytest.importorskip("transformers")

from onnx_export.config import P2LExporterConfig  # noqa: E402
from onnx_export.export import export  # noqa: E402
from onnx_export.fused import export_fused, unsupported  # noqa: E402
from onnx_export.gate import References, check  # noqa: E402
from p2l_plugins.training.checkpoint import Checkpoint  # noqa: E402
from p2l_plugins.training.model import P2LNetwork  # noqa: E402

SIZES = {
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
}
FORM = TextForm(form="plain", max_length=64, pad_id=0)
GROUPED = {**SIZES, "num_key_value_heads": 2}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
CONFIGS = {
    "llama": (transformers.LlamaConfig(**GROUPED), "cls"),
    "llama with biases": (transformers.LlamaConfig(**GROUPED, attention_bias=True, mlp_bias=True), "cls"),
    "llama 3": (
        transformers.LlamaConfig(**GROUPED, rope_parameters={**LLAMA3, "original_max_position_embeddings": 16}),
        "cls",
    ),
    "qwen2": (transformers.Qwen2Config(**GROUPED), "cls"),
    "qwen3": (transformers.Qwen3Config(**GROUPED, head_dim=32), "cls"),
    "bert, mean": (transformers.BertConfig(**SIZES), "mean"),
    "bert, cls": (transformers.BertConfig(**SIZES), "cls"),
}


def checkpoint(config, pooling="cls", family="grk"):
    """A random model of this configuration, with biases and norms that are not all 0 or 1."""
    torch.manual_seed(0)
    model = P2LNetwork(transformers.AutoModel.from_config(config), 5, family, pooling).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return Checkpoint(model, None, list("abcde"), FORM, {})


def session(path):
    return ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def torch_scores(model, ids, mask):
    with torch.inference_mode():
        scores = model.scores(torch.from_numpy(ids), torch.from_numpy(mask))
    return [part.numpy() for part in scores if part is not None]


def ragged(lengths=(7, 64, 1, 23, 2), seed=0):
    rng = np.random.default_rng(seed)
    return pad([rng.integers(1, 100, length).tolist() for length in lengths], 0)


def feed(ids, mask):
    return {"input_ids": ids, "attention_mask": mask}


@pytest.fixture(scope="module", params=CONFIGS)
def fused(request, tmp_path_factory):
    """One architecture: its torch model and its graph."""
    made = checkpoint(*CONFIGS[request.param])
    assert unsupported(made) is None
    path = tmp_path_factory.mktemp("fused") / "model.onnx"
    export_fused(made, path)
    return SimpleNamespace(model=made.model, session=session(path), path=path, name=request.param)


def test_the_graph_computes_what_torch_computes(fused):
    inputs = ragged()
    for got, expected in zip(fused.session.run(None, feed(*inputs)), torch_scores(fused.model, *inputs), strict=True):
        np.testing.assert_allclose(got, expected, atol=2e-4)


def test_names_and_axes_are_those_of_the_declaration(fused):
    config = P2LExporterConfig(SimpleNamespace(model=fused.model, form=TextForm(form="plain", max_length=64, pad_id=0)))
    assert (
        [value.name for value in fused.session.get_inputs()] == list(config.inputs) == ["input_ids", "attention_mask"]
    )
    outputs = {value.name: value.shape for value in fused.session.get_outputs()}
    assert outputs == {"coefs": ["batch", 5], "raw_eta": ["batch"]}
    assert list(config.outputs) == list(outputs)


def test_attention_is_a_fused_operator(fused):
    kinds = [node.op_type for node in onnx.load(str(fused.path)).graph.node]
    attention = "MultiHeadAttention" if fused.name.startswith("bert") else "GroupQueryAttention"
    assert kinds.count(attention) == 3
    assert "Softmax" not in kinds


def test_garbage_in_the_padding_changes_nothing(fused):
    ids, mask = ragged()
    clean = fused.session.run(None, feed(ids, mask))
    ids[mask == 0] = np.random.default_rng(1).integers(1, 100, (mask == 0).sum())
    for before, after in zip(clean, fused.session.run(None, feed(ids, mask)), strict=True):
        np.testing.assert_array_equal(after, before)


def test_the_batch_changes_nothing(fused):
    ids, mask = ragged()
    batch = fused.session.run(None, feed(ids, mask))
    for row, length in enumerate(mask.sum(axis=1)):
        alone = fused.session.run(None, feed(ids[[row], :length], mask[[row], :length]))
        for one, all_ in zip(alone, batch, strict=True):
            if fused.name.startswith("bert"):  # a softmax over more keys, all but some of weight 0, may round otherwise
                np.testing.assert_allclose(one[0], all_[row], atol=1e-5)
            else:
                np.testing.assert_array_equal(one[0], all_[row])


@pytest.mark.parametrize("mask", [[0, 1, 1, 1], [1, 0, 1, 1], [0, 0, 0, 0], [0, 1, 1, 0]])
def test_a_row_that_is_not_padded_on_the_right_is_no_number(fused, mask):
    masks = np.array([[1, 1, 1, 0], mask])
    coefs, raw_eta = fused.session.run(None, feed(np.full((2, 4), 7), masks))
    assert np.isnan(coefs[1]).all()
    assert np.isnan(raw_eta[1])
    assert np.isfinite(coefs[0]).all()


ELSEWHERE = {
    "rope_type 'dynamic'": transformers.LlamaConfig(
        **GROUPED, rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    ),
    "hidden_act 'gelu'": transformers.LlamaConfig(**GROUPED, hidden_act="gelu"),
    "hidden_act 'relu'": transformers.BertConfig(**SIZES, hidden_act="relu"),
    "sliding-window attention": transformers.Qwen2Config(
        **GROUPED, use_sliding_window=True, sliding_window=8, max_window_layers=1
    ),
    "the architecture 'modernbert'": transformers.ModernBertConfig(**SIZES, pad_token_id=0),
}


@pytest.mark.parametrize("reason", ELSEWHERE)
def test_what_the_fused_graph_cannot_express_is_named(reason):
    assert unsupported(checkpoint(ELSEWHERE[reason])) == reason


def save(config, tokenizer_folder, folder, **training):
    made = checkpoint(config, "mean")
    made.tokenizer = transformers.AutoTokenizer.from_pretrained(tokenizer_folder)
    made.training = {"head_type": "grk", "max_length": 32, **training}
    folder.mkdir()
    made.save(folder)
    return folder


@pytest.fixture(scope="module")
def modernbert(tiny_backbone, tmp_path_factory):
    config = transformers.ModernBertConfig(
        **SIZES, pad_token_id=0, bos_token_id=2, cls_token_id=2, eos_token_id=3, sep_token_id=3, local_attention=8
    )
    return save(config, tiny_backbone, tmp_path_factory.mktemp("modernbert") / "checkpoint")


def test_modernbert_takes_the_plain_route(modernbert, tmp_path):
    manifest = export(modernbert, tmp_path / "bundle").manifest
    assert (manifest.route, manifest.precision) == ("plain", "fp32")
    with pytest.raises(ConfigError, match="'fused' does not cover the architecture 'modernbert'; choose --route plain"):
        export(modernbert, tmp_path / "b", route="fused")


def test_a_cls_off_by_one_in_the_fused_graph_fails_the_gate(public_checkpoint, tmp_path):
    made = Checkpoint.load(public_checkpoint)
    made.form = made.form.model_copy(update={"max_length": 64})
    export_fused(made, tmp_path / "model.onnx")
    references = References(made)
    assert check(session(tmp_path / "model.onnx"), references, "fp32")["batch_effect"] == 0
    model = onnx.load(str(tmp_path / "model.onnx"))
    rows = next(node for node in model.graph.node if node.op_type == "Sub")  # the last position of each row
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(2), "two"))
    rows.input[1] = "two"
    onnx.save(model, str(tmp_path / "wrong.onnx"))
    with pytest.raises(BundleError, match="does not pass the gate: largest error against float64 is"):
        check(session(tmp_path / "wrong.onnx"), references, "fp32")
