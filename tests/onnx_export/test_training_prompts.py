"""Which prompts a bundle was trained on: from the training to the bundle, and what the commands make of it."""

import json
import shutil

import numpy as np
import pytest
from typer.testing import CliRunner

from onnx_export.edit import mark_training, rename_model
from onnx_export.export import export
from onnx_export.refit import refit_head
from p2l_plugins.cli import app
from p2l_plugins.errors import BundleError
from p2l_plugins.scoring.bundle import Bundle, find_bundle
from p2l_plugins.scoring.training_prompts import TRAINING_PROMPTS, TrainingPrompts
from p2l_plugins.training.config import read_config
from p2l_plugins.training.split import load_sources, split
from p2l_plugins.votes.read import read_votes
from p2l_plugins.votes.votes import held_out


def p2l(*arguments, status=0):
    result = CliRunner().invoke(app, [*map(str, arguments)])
    assert result.exit_code == status, (result.output, result.exception)
    return result


@pytest.fixture(scope="module")
def sides(train_config):
    config = read_config(train_config)
    return split(config, load_sources(config, train_config.parent))


def test_the_set_holds_hashes_only_and_no_text():
    prompts = [("first",), ("second", "turn")]
    known = TrainingPrompts.of(prompts)
    assert known.seen([*prompts, (" FIRST ",), ("second",), ("third",)]).tolist() == [True, True, True, False, False]
    assert known.with_prompts([("third",)]).seen([("third",), ("first",)]).all()
    assert len(known) == 2


def test_two_sets_of_the_same_prompts_have_nothing_in_common(tmp_path):
    prompts = [(f"prompt {i}",) for i in range(50)]
    for name in ("a", "b"):
        TrainingPrompts.of(prompts).write(tmp_path / name)
        assert b"prompt" not in (tmp_path / name).read_bytes()
        assert TrainingPrompts.read(tmp_path / name).seen(prompts).all()
        assert (tmp_path / name).stat().st_size == 24 + 4 * 50
    a, b = (np.frombuffer((tmp_path / name).read_bytes()[24:], "<u4") for name in ("a", "b"))
    assert len(np.intersect1d(a, b)) < 5
    (tmp_path / "a").write_bytes(b"other")
    with pytest.raises(BundleError, match="is not a file of training prompts"):
        TrainingPrompts.read(tmp_path / "a")


def test_a_trained_and_exported_bundle_knows_its_training_prompts(tiny_bundle, sides):
    bundle = Bundle.open(tiny_bundle)
    assert TRAINING_PROMPTS in bundle.manifest.files
    assert bundle.training_prompts.seen(sides.training.prompts).all()
    assert not bundle.training_prompts.seen(sides.held_out.prompts).any()
    assert bundle.manifest.training["split"] == {"held_out": 0.2, "seed": 0}


def test_edits_keep_the_set_and_another_fit_adds_to_it(tiny_bundle, train_config, sides, tmp_path):
    bundle = Bundle.open(tiny_bundle)
    renamed = rename_model(bundle, bundle.manifest.models[0], "other", tmp_path / "renamed")
    assert renamed.training_prompts.seen(sides.training.prompts).all()
    config = read_config(train_config).model_copy(update={"seed": 7})
    after = refit_head(renamed, config.model_copy(update={"aliases": {bundle.manifest.models[0]: "other"}}),
                       train_config.parent, tmp_path / "refit", epochs=1, batch_size=8)  # fmt: skip
    again = split(config, load_sources(config, train_config.parent))
    assert after.training_prompts.seen([*sides.training.prompts, *again.training.prompts]).all()


def test_an_older_bundle_gets_the_set_by_a_command_and_keeps_its_fingerprint(
    tiny_checkpoint, tiny_bundle, train_config, sides, tmp_path
):
    old = Bundle.open(tiny_bundle)
    training = {key: value for key, value in old.manifest.training.items() if key != "split"}
    files = {name: digest for name, digest in old.manifest.files.items() if name != TRAINING_PROMPTS}
    bare = mark_training(
        Bundle(old.folder, old.manifest.model_copy(update={"files": files})), [], {}, tmp_path / "bare"
    )
    (bare.folder / TRAINING_PROMPTS).unlink()
    old.manifest.model_copy(update={"files": files, "training": training}).write(bare.folder)
    assert Bundle.open(bare.folder).training_prompts is None
    p2l("mark-training", bare.folder, train_config, "-o", tmp_path / "marked")
    marked = Bundle.open(tmp_path / "marked")
    assert marked.training_prompts.seen(sides.training.prompts).all()
    assert not marked.training_prompts.seen(sides.held_out.prompts).any()
    assert marked.manifest.fingerprint == old.manifest.fingerprint
    (tmp_path / "other.yaml").write_text(train_config.read_text() + "held_out: 0.5\n")
    message = p2l(
        "mark-training", bare.folder, tmp_path / "other.yaml", "--data", train_config.parent, "-o", tmp_path / "no",
        status=1,
    ).exception  # fmt: skip
    assert "its files hold other prompts" in str(message)


def test_evaluate_judges_what_was_not_seen_apart(tiny_bundle, votes_file, sides):
    report = json.loads(p2l("evaluate", tiny_bundle, votes_file, "--json").stdout)
    assert report["n_seen"] == len(set(sides.training.prompts))
    assert report["unseen"]["n_prompts"] == len(set(sides.held_out.prompts))
    assert "the bundle was trained on" in report["notes"][0]
    alone = json.loads(p2l("evaluate", tiny_bundle, votes_file, "--held-out", "--json").stdout)
    assert alone["n_seen"] == 0
    assert "unseen" not in alone
    for name in ("n_votes", "p2l", "differences"):
        assert alone[name] == report["unseen"][name]
    text = p2l("evaluate", tiny_bundle, votes_file).stdout
    assert f"prompts, {report['n_seen']} seen in training" in text
    assert "## Prompts that were not seen in training" in text


def test_votes_split_writes_the_sides_of_the_training(tiny_bundle, votes_file, sides, tmp_path):
    train, test = tmp_path / "train.jsonl", tmp_path / "test.jsonl"
    p2l("votes", "split", votes_file, "--train", train, "--test", test)
    assert set(read_votes(train).prompts) == set(sides.training.prompts)
    assert set(read_votes(test).prompts) == set(sides.held_out.prompts)
    every, parts = read_votes(votes_file), [read_votes(train), read_votes(test)]
    assert len(every) == sum(map(len, parts))
    report = json.loads(p2l("evaluate", tiny_bundle, test, "--json").stdout)
    assert report["n_seen"] == 0


def test_votes_split_keeps_a_matrix_one(tmp_path):
    rows = [{"prompt": f"p{i}", "category": "c", "x": i % 2, "y": 0.5, "z": (i + 1) % 2} for i in range(30)]
    path = tmp_path / "m.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    train, test = tmp_path / "train.jsonl", tmp_path / "test.parquet"
    p2l("votes", "split", path, "--train", train, "--test", test, "--held-out", "0.4", "--seed", "3")
    parts = [read_votes(train), read_votes(test)]
    assert sum(len(part.scores) for part in parts) == 30
    assert parts[0].groups[0] == "c"
    assert not set(parts[0].prompts) & set(parts[1].prompts)


def test_a_bundle_that_does_not_say_its_split_is_refused_with_the_remedy(tiny_bundle, votes_file, tmp_path):
    bundle = Bundle.open(tiny_bundle)
    silent = mark_training(bundle, [], {}, tmp_path / "silent")
    training = {key: value for key, value in silent.manifest.training.items() if key != "split"}
    silent.manifest.model_copy(update={"training": training}).write(silent.folder)
    error = p2l("evaluate", silent.folder, votes_file, "--held-out", status=1).exception
    assert "p2l votes split" in str(error)
    assert "p2l mark-training" in str(error)


def test_the_shipped_starter_knows_its_training_prompts(data_dir):
    bundle = Bundle.open(find_bundle("starter"))
    votes = read_votes(data_dir / "pandalm_human_battles.parquet")
    assert bundle.manifest.training["split"] == {"held_out": 0.2, "seed": 0}
    out = held_out(votes.prompts, 0.2)
    seen = bundle.training_prompts.seen(votes.prompts)
    np.testing.assert_array_equal(seen, ~out)
    assert (bundle.folder / TRAINING_PROMPTS).stat().st_size < 100_000  # 4 bytes for each of 24,000


def test_export_of_a_checkpoint_without_the_set_makes_a_bundle_without_it(tiny_checkpoint, tmp_path):
    copy = tmp_path / "checkpoint"
    shutil.copytree(tiny_checkpoint, copy)
    (copy / TRAINING_PROMPTS).unlink()
    assert export(copy, tmp_path / "bundle").training_prompts is None
