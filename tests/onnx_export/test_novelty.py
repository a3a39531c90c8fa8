"""`p2l fit-novelty`: prompts unlike the training's get the overall board."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

pytest.importorskip("torch")

from onnx_export.head import find_head, load_graph
from onnx_export.novelty import Fold, Map, choose, fit_novelty, share
from onnx_export.refit import refit_head
from p2l_plugins import P2L
from p2l_plugins.cli import app
from p2l_plugins.errors import BundleError, DataError
from p2l_plugins.scoring.bundle import Bundle
from p2l_plugins.training.config import read_config
from p2l_plugins.votes.read import read_votes

KINDS = {"sums": "sum apple fig", "codes": "code loop stack", "mixed": "sum loop pear", "arrays": "code array plum"}


@pytest.fixture(scope="module")
def kinds(train_config, tmp_path_factory):
    """A configuration of four files, each of one kind of prompts, over the models of `tiny_bundle`."""
    folder = tmp_path_factory.mktemp("kinds")
    rng = np.random.default_rng(0)
    lines = []
    for number, (name, words) in enumerate(KINDS.items()):
        rows = ["prompt,counter,coder,weak"]
        for i in range(40):
            text = " ".join(rng.permutation(words.split() * 2)) + f" {i}"
            good = number % 2
            rows.append(f"{text},{int(rng.random() < 0.9 - 0.5 * good)},{int(rng.random() < 0.4 + 0.5 * good)},0")
        (folder / f"{name}.csv").write_text("\n".join(rows))
        lines.append(f"  - {{path: {name}.csv}}")
    path = folder / "kinds.yaml"
    path.write_text("name: kinds\nfamily: grk\nunseen_prior: 0.3\ndata:\n" + "\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def shrunk(tiny_bundle, kinds, tmp_path_factory):
    output = tmp_path_factory.mktemp("novelty") / "bundle"
    return fit_novelty(Bundle.open(tiny_bundle), read_config(kinds), kinds.parent, output, epochs=2)


def test_the_graph_gives_the_board_far_away_and_the_own_part_near_by(tiny_bundle, shrunk):
    """`fit_novelty` has compared the graph with its formula on the training's prompts."""
    change = shrunk.manifest.training["changes"][-1]
    assert change["change"] == "fit-novelty"
    assert set(change["left_out"]) == {"all of them seen", *KINDS}
    old, new = P2L(Bundle.open(tiny_bundle)), P2L(shrunk)
    prompts = [("sum apple fig",), ("code loop stack",), ("x",), ("plum",)]
    before, after = old.score_turns(prompts), new.score_turns(prompts)
    np.testing.assert_allclose(after.raw_eta, before.raw_eta, atol=1e-6)
    head = find_head(load_graph(shrunk.folder), shrunk.folder)
    board = head.bias.astype(float)
    parts = (after.coefs - board) / (before.coefs - board)
    np.testing.assert_allclose(parts, parts[:, :1].repeat(3, axis=1), rtol=1e-3)
    assert ((parts > -1e-6) & (parts < 1 + 1e-6)).all()


def test_rows_that_are_not_padded_on_the_right_stay_no_number(shrunk):
    import onnxruntime

    session = onnxruntime.InferenceSession(str(shrunk.folder / "model.onnx"))
    found = session.run(
        ["coefs"], {"input_ids": [[2, 5, 3, 0], [0, 2, 5, 3]], "attention_mask": [[1, 1, 1, 0], [0, 1, 1, 1]]}
    )
    assert np.isfinite(found[0][0]).all()
    assert np.isnan(found[0][1]).all()


def test_it_can_be_changed_further(shrunk, kinds, tmp_path):
    again = refit_head(shrunk, read_config(kinds), kinds.parent, tmp_path / "out", epochs=1)
    assert np.isfinite(P2L(again).score_turns([("sum apple",)]).coefs).all()
    with pytest.raises(BundleError, match="has the shrinkage already"):
        fit_novelty(again, read_config(kinds), kinds.parent, tmp_path / "twice")
    assert not (tmp_path / "twice").exists()


def test_fewer_than_three_kinds_are_refused(tiny_bundle, train_config, tmp_path):
    with pytest.raises(DataError, match="has 1 kinds of prompts, but a novelty is fitted to three at least"):
        fit_novelty(Bundle.open(tiny_bundle), read_config(train_config), train_config.parent, tmp_path / "out")


def test_the_command_says_what_it_gains(tiny_bundle, kinds, tmp_path):
    run = ["fit-novelty", str(tiny_bundle), str(kinds), "-o", str(tmp_path / "out"), "--epochs", "1", "--json"]
    result = CliRunner().invoke(app, run)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["fingerprint"] == Bundle.open(tmp_path / "out").manifest.fingerprint


def test_distances_are_those_to_the_nearest_centre_in_whitened_directions():
    rng = np.random.default_rng(0)
    states = np.concatenate([rng.normal(size=(300, 8)), rng.normal(size=(300, 8)) + 9]) * np.array([1, 5, *[2] * 6])
    found = Map.of(states)
    assert np.median(found.distance(states)) == pytest.approx(1.0)
    far = states[:50] + 40
    assert found.distance(far).min() > 3 * np.median(found.distance(states[:50]))
    whitened = (states - found.mean) @ found.directions
    np.testing.assert_allclose(np.cov(whitened.T, bias=True), np.eye(8), atol=1e-6)


def test_the_share_falls_where_what_is_left_out_is_better_told_by_the_board(tmp_path):
    path = tmp_path / "v.csv"
    path.write_text("prompt,a,b\n" + "".join(f"p{i},{i % 5 != 0:d},{i % 5 == 0:d}\n" for i in range(50)))
    votes = read_votes(path)
    right, wrong = np.tile([1.5, 0.0], (50, 1)), np.tile([0.0, 3.0], (50, 1))
    board, even = np.array([1.5, 0.0]), np.zeros(2)
    near = Fold("near", "grk", votes, np.full(50, 0.8), right, even, np.zeros(50))
    far = Fold("far", "grk", votes, np.full(50, 2.5), wrong, board, np.zeros(50))
    level, slope, figures = choose([near, far])
    assert share(np.array([0.8]), level, slope)[0] > 0.9
    assert share(np.array([2.5]), level, slope)[0] < 0.1
    assert figures["far"]["shrunk"] < figures["far"]["own"]
    assert figures["near"]["shrunk"] < figures["near"]["board"]
