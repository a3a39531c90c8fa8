"""Export against torch in float64 and the published-form checkpoint's expected outputs."""

import json

import numpy as np
import pytest

from p2l_plugins import P2L, BundleError, ConfigError, DataError
from p2l_plugins.prompts import pad
from p2l_plugins.scoring.bundle import Bundle

torch = pytest.importorskip("torch")
ort = pytest.importorskip("onnxruntime")

from onnx_export.export import export  # noqa: E402
from onnx_export.gate import References, check  # noqa: E402
from onnx_export.graph import export_plain  # noqa: E402
from p2l_plugins.training.checkpoint import Checkpoint  # noqa: E402


@pytest.fixture(scope="module")
def short_checkpoint(public_checkpoint, tmp_path_factory):
    """The published checkpoint with a maximum of 64 tokens, for a short gate."""
    checkpoint = Checkpoint.load(public_checkpoint)
    checkpoint.training["max_length"] = 64
    folder = tmp_path_factory.mktemp("short")
    checkpoint.save(folder)
    return folder


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
    assert Bundle.open(published_bundle).manifest.route == "fused"
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
    assert manifest.route == "fused"
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


def test_int8_of_a_decoder_on_the_plain_route_is_refused(public_checkpoint, tmp_path):
    with pytest.raises(ConfigError, match="on the plain route suits encoders only, not 'llama'"):
        export(public_checkpoint, tmp_path / "b", precision="int8", route="plain")


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"precision": "int4"}, "precision 'int4' is not known; valid: fp32, fp16, bf16, int8"),
        ({"route": "fast"}, "route 'fast' is not known; valid: auto, fused, plain"),
        ({"device": "tpu"}, "device 'tpu' is not known; valid: cpu, cuda"),
    ],
)
def test_options_that_are_not_known(public_checkpoint, tmp_path, option, message):
    with pytest.raises(ConfigError, match=message):
        export(public_checkpoint, tmp_path / "b", **option)


def test_a_failed_gate_writes_nothing_but_with_force_a_warning(short_checkpoint, tmp_path):
    """The fixture's random decoder is far more sensitive to 8 bits than a trained model."""
    with pytest.raises(BundleError, match=r"does not pass the gate: .*; choose --precision fp32, or --force"):
        export(short_checkpoint, tmp_path / "b", precision="int8")
    assert not (tmp_path / "b").exists()
    lines = []
    manifest = export(short_checkpoint, tmp_path / "b", precision="int8", step=lines.append, force=True).manifest
    assert manifest.gate["warning"].startswith("written with --force although ")
    assert any(line.startswith("warning: ") for line in lines)


def test_the_plain_route_on_request(plain_bundle, tiny_bundle):
    plain = P2L.load(plain_bundle)
    assert plain.bundle.manifest.route == "plain"
    prompts = ["sum fig", "loop code sum", "x"]
    fused = P2L.load(tiny_bundle)
    np.testing.assert_allclose(plain.score(prompts).coefs, fused.score(prompts).coefs, atol=1e-5)
    session = ort.InferenceSession(str(plain_bundle / "model.onnx"), providers=["CPUExecutionProvider"])
    left = session.run(None, {"input_ids": np.full((2, 3), 5), "attention_mask": np.array([[1, 1, 0], [0, 1, 1]])})
    assert np.isnan(left[0]).any(axis=1).tolist() == [False, True]


def test_the_plain_route_where_the_fused_one_fails_the_gate(tiny_checkpoint, tmp_path):
    """Attention scores in the thousands get past what keeps padding out of the fused graph of an encoder."""
    checkpoint = Checkpoint.load(tiny_checkpoint)
    with torch.no_grad():
        for layer in checkpoint.model.model.encoder.layer:
            for part in (layer.attention.self.query, layer.attention.self.key):
                part.weight.mul_(300)
    (tmp_path / "checkpoint").mkdir()
    checkpoint.save(tmp_path / "checkpoint")
    with pytest.raises(BundleError, match="does not pass the gate"):
        export(tmp_path / "checkpoint", tmp_path / "fused", route="fused")
    lines = []
    assert export(tmp_path / "checkpoint", tmp_path / "b", step=lines.append).manifest.route == "plain"
    assert any(line.startswith("the fused route is not used: ") for line in lines)


def test_fp16_on_the_cpu(short_checkpoint, tmp_path):
    half = export(short_checkpoint, tmp_path / "half", precision="fp16").manifest
    assert (half.precision, half.route) == ("fp16", "fused")
    assert 0 < half.gate["max_error_in_std"] <= 0.05
    assert half.gate["batch_effect"] == 0


def test_bf16_needs_a_gpu(short_checkpoint, tmp_path):
    with pytest.raises(ConfigError, match=r"'bf16' needs a GPU, .*; export it where CUDA is, with --device cuda"):
        export(short_checkpoint, tmp_path / "b", precision="bf16")
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        with pytest.raises(ConfigError, match="'cuda' is not available: this ONNX Runtime has no CUDA"):
            export(short_checkpoint, tmp_path / "b", precision="bf16", device="cuda")


def test_weights_beside_the_graph(short_checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr("onnx_export.builder.EXTERNAL_DATA_BYTES", 10_000)
    large = export(short_checkpoint, tmp_path / "large")
    assert (large.folder / "model.onnx.data").stat().st_size > 10 * (large.folder / "model.onnx").stat().st_size
    assert "model.onnx.data" in large.manifest.files
    assert np.isfinite(P2L(large).score(["hi"]).coefs).all()
    (large.folder / "model.onnx.data").write_bytes(b"")
    with pytest.raises(BundleError, match=r"model.onnx.data: the content does not match its sha256"):
        P2L.load(large.folder)


def test_nothing_is_overwritten(tiny_checkpoint, tiny_bundle):
    before = (tiny_bundle / "p2l.json").read_bytes()
    with pytest.raises(DataError, match="already exists"):
        export(tiny_checkpoint, tiny_bundle)
    assert (tiny_bundle / "p2l.json").read_bytes() == before
