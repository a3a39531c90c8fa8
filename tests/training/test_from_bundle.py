"""A checkpoint read back from a bundle, to train on: exactly, but for what 8 bits lose."""

from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from helpers.word_bundle import write_bundle

from p2l_plugins.errors import BundleError
from p2l_plugins.scoring.bundle import Bundle

torch = pytest.importorskip("torch")
pytest.importorskip("onnx")

from onnx_export.export import export  # noqa: E402
from onnx_export.head import load_graph, scale_eta  # noqa: E402
from p2l_plugins.training.backbone import load_backbone  # noqa: E402
from p2l_plugins.training.checkpoint import Checkpoint  # noqa: E402
from p2l_plugins.training.config import read_config  # noqa: E402
from p2l_plugins.training.from_bundle import _Graph, checkpoint_of  # noqa: E402
from p2l_plugins.training.train import train  # noqa: E402


def test_a_bundle_in_fp32_comes_back_as_the_checkpoint_that_it_was_made_of(tiny_bundle, tiny_checkpoint):
    back, own = checkpoint_of(Bundle.open(tiny_bundle)), Checkpoint.load(tiny_checkpoint)
    assert back.models == own.models
    assert back.model.pooling == own.model.pooling
    assert back.form == own.form
    types = "model.embeddings.token_type_embeddings.weight"
    here, there = back.model.state_dict(), own.model.state_dict()
    for state in (here, there):  # the graph holds the positions' sum with the only type of token
        state["model.embeddings.position_embeddings.weight"] = (
            state["model.embeddings.position_embeddings.weight"] + state.pop(types)[0]
        )
    assert here.keys() == there.keys()
    for name, value in here.items():
        torch.testing.assert_close(value, there[name], rtol=0, atol=1e-6)


def test_a_bundle_in_int8_comes_back_as_what_it_multiplies_with(tiny_checkpoint, tmp_path):
    export(tiny_checkpoint, tmp_path / "int8", precision="int8", force=True)
    back, own = checkpoint_of(Bundle.open(tmp_path / "int8")), Checkpoint.load(tiny_checkpoint)
    name = "model.encoder.layer.0.intermediate.dense.weight"
    here, there = back.model.state_dict()[name], own.model.state_dict()[name]
    assert 0 < (here - there).abs().max() <= there.abs().max() / 127


def test_a_scale_that_an_edit_put_behind_raw_eta_is_read_too(tiny_bundle, tmp_path):
    import onnx

    model = load_graph(tiny_bundle)
    scale_eta(model, 2.0, 0.5)
    onnx.save(model, str(tmp_path / "model.onnx"))
    manifest = Bundle.open(tiny_bundle).manifest
    weight, bias = _Graph(Bundle.open(tiny_bundle)).eta()
    scaled = _Graph(SimpleNamespace(folder=tmp_path, manifest=manifest)).eta()
    np.testing.assert_allclose(scaled[0], 2 * weight)
    np.testing.assert_allclose(scaled[1], 2 * bias + 0.5)


def test_a_bundle_without_weights_by_name_is_refused_with_what_to_do(tmp_path):
    with pytest.raises(BundleError, match="name the checkpoint that it was exported from as backbone"):
        load_backbone(str(write_bundle(tmp_path / "words")), 32)


def test_training_on_a_bundle_is_training_on_its_checkpoint(tiny_bundle, tiny_checkpoint, train_config, tmp_path):
    losses = []
    for backbone in (tiny_bundle, tiny_checkpoint):
        settings = yaml.safe_load(train_config.read_text()) | {"backbone": str(backbone), "epochs": 1}
        path = tmp_path / f"{backbone.name}.yaml"
        path.write_text(yaml.safe_dump(settings))
        losses.append(train(read_config(path), train_config.parent, tmp_path / f"out-{len(losses)}")["train_loss"])
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


def test_the_starter_can_be_trained_on():
    starter = load_backbone("starter", 128)
    assert starter.checkpoint is not None
    assert len(starter.checkpoint.models) > 100
    assert starter.form.max_length == 128
