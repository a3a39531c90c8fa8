"""Export against torch in float64 and the published-form checkpoint's expected outputs."""

import json

import numpy as np
import pytest

from p2l_plugins import P2L, BundleError, ConfigError, DataError
from p2l_plugins.bundle import Bundle
from p2l_plugins.prompts import pad

torch = pytest.importorskip("torch")
ort = pytest.importorskip("onnxruntime")

from onnx_export.export import export  # noqa: E402
from onnx_export.gate import References, check  # noqa: E402
from onnx_export.graph import export_plain  # noqa: E402
from p2l_plugins.training.checkpoint import Checkpoint  # noqa: E402


@pytest.fixture(scope="module")
def published_bundle(public_checkpoint, tmp_path_factory):
    checkpoint = Checkpoint.load(public_checkpoint)
    folder = tmp_path_factory.mktemp("published")
    short = folder / "checkpoint"
    short.mkdir()
    checkpoint.training["max_length"] = 1024  # the gate runs up to the maximum length: 8,192 would take a minute
    checkpoint.save(short)
    export(short, folder / "bundle")
    return folder / "bundle"


def test_the_published_checkpoint_gives_its_expected_outputs(public_checkpoint, published_bundle):
    cases = json.loads((public_checkpoint / "expected.json").read_text())
    scores = P2L.load(published_bundle).score([case["prompt"] for case in cases])
    np.testing.assert_allclose(scores.coefs, [case["coefs"] for case in cases], atol=1e-4)
    assert scores.raw_eta is None
    assert scores.models == tuple(json.loads((public_checkpoint / "model_list.json").read_text()))


def test_the_torch_model_gives_them_too(public_checkpoint):
    checkpoint = Checkpoint.load(public_checkpoint)
    cases = json.loads((public_checkpoint / "expected.json").read_text())
    ids, mask = pad(checkpoint.encoder.encode([tuple(case["prompt"]) for case in cases]), checkpoint.form.pad_id)
    with torch.inference_mode():
        coefs, _ = checkpoint.model.scores(torch.from_numpy(ids), torch.from_numpy(mask))
    np.testing.assert_allclose(coefs.numpy(), [case["coefs"] for case in cases], atol=1e-4)


def test_garbage_in_the_padding_changes_nothing(published_bundle):
    session = ort.InferenceSession(str(published_bundle / "model.onnx"), providers=["CPUExecutionProvider"])
    ids, mask = pad([[5, 6, 7, 4], [9, 4]], 3)
    clean = session.run(None, {"input_ids": ids, "attention_mask": mask})[0]
    ids[1, 2:] = [17, 99]
    np.testing.assert_array_equal(session.run(None, {"input_ids": ids, "attention_mask": mask})[0], clean)


def test_the_gate_passes_and_its_figures_are_in_the_manifest(tiny_bundle, tiny_checkpoint):
    manifest = Bundle.open(tiny_bundle).manifest
    assert manifest.gate["max_error"] <= 3 * manifest.gate["torch_fp32_max_error"] + 1e-6
    assert manifest.gate["longest_tokens"] == manifest.text.max_length
    assert manifest.route == "plain"
    assert manifest.name == "tiny"
    assert manifest.aliases == {"Coder-v1": "coder"}
    assert manifest.training["data"][0]["licence"] == "CC0"
    assert manifest.models == Checkpoint.load(tiny_checkpoint).models


def test_a_cls_off_by_one_fails_the_gate(public_checkpoint, tmp_path):
    checkpoint = Checkpoint.load(public_checkpoint)
    checkpoint.form = checkpoint.form.model_copy(update={"max_length": 256})
    references = References(checkpoint)

    def off_by_one(input_ids, attention_mask):
        states = checkpoint.model.model(
            input_ids=input_ids, attention_mask=attention_mask, use_cache=False
        ).last_hidden_state
        last = (attention_mask.sum(dim=1) - 2)[:, None, None].expand(-1, 1, states.shape[-1])
        return torch.gather(states, 1, last)[:, 0]

    checkpoint.model.pooled = off_by_one
    export_plain(checkpoint, tmp_path / "model.onnx")
    session = ort.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    with pytest.raises(BundleError, match="does not pass the gate: largest error against float64"):
        check(session, references, "fp32")


def test_the_starter_is_an_int8_encoder_that_passed_the_gate():
    manifest = P2L.load("starter").bundle.manifest
    assert manifest.precision == "int8"
    assert manifest.gate["prompt_specific_spearman"] >= 0.99
    assert manifest.gate["mean_win_probability_error"] <= 0.01


def test_int8_weights_are_int8(tiny_checkpoint, tmp_path):
    onnx = pytest.importorskip("onnx")
    from onnx_export.quantise import quantise_int8

    export_plain(Checkpoint.load(tiny_checkpoint), tmp_path / "full.onnx")
    quantise_int8(tmp_path / "full.onnx", tmp_path / "int8.onnx")
    nodes = [node.op_type for node in onnx.load(str(tmp_path / "int8.onnx")).graph.node]
    assert nodes.count("MatMulInteger") == 12  # two layers of six; the heads stay as they are
    assert sorted(file.name for file in tmp_path.iterdir()) == ["full.onnx", "int8.onnx"]


def test_the_gate_refuses_coefficients_in_another_order(tiny_checkpoint, tiny_bundle):
    """A global rank correlation would stay high: only the prompt-specific part is shuffled here."""
    references = References(Checkpoint.load(tiny_checkpoint))
    session = ort.InferenceSession(str(tiny_bundle / "model.onnx"), providers=["CPUExecutionProvider"])
    check(session, references, "int8")
    m = references.n_models
    mean = references.exact[:, :m].mean(axis=0)
    references.exact[:, :m] = mean + 0.05 * np.random.default_rng(0).normal(size=references.exact[:, :m].shape)
    with pytest.raises(BundleError, match="does not pass the gate"):
        check(session, references, "int8")


def test_int8_of_a_decoder_is_refused(public_checkpoint, tmp_path):
    with pytest.raises(ConfigError, match="suits encoders only"):
        export(public_checkpoint, tmp_path / "b", precision="int8")
    with pytest.raises(ConfigError, match="precision 'int4' is not known; valid: fp32, int8"):
        export(public_checkpoint, tmp_path / "b", precision="int4")


def test_nothing_is_overwritten(tiny_checkpoint, tiny_bundle):
    before = (tiny_bundle / "p2l.json").read_bytes()
    with pytest.raises(DataError, match="already exists"):
        export(tiny_checkpoint, tiny_bundle)
    assert (tiny_bundle / "p2l.json").read_bytes() == before
