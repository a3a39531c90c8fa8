"""The trainer: interrupted, on several processes, from checkpoints, with every option; what it leaves behind."""

import functools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from helpers.forking import Forked, command, finished

from p2l_plugins.errors import ConfigError, DataError
from p2l_plugins.votes.read import read_votes

torch = pytest.importorskip("torch")

from safetensors.torch import load_file  # noqa: E402

from p2l_plugins.training.backbone import load_backbone  # noqa: E402
from p2l_plugins.training.batches import PromptSampler  # noqa: E402
from p2l_plugins.training.checkpoint import Checkpoint  # noqa: E402
from p2l_plugins.training.config import TrainConfig, read_config  # noqa: E402
from p2l_plugins.training.model import Head  # noqa: E402
from p2l_plugins.training.split import load_sources, split  # noqa: E402
from p2l_plugins.training.train import train  # noqa: E402


def varied(train_config: Path, folder: Path, **changes) -> Path:
    """The tiny configuration with other values, in a folder with the votes."""
    settings = yaml.safe_load(train_config.read_text()) | changes
    path = folder / f"{len(list(folder.iterdir()))}.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in settings.items() if value is not None}))
    shutil.copy(train_config.parent / "votes.jsonl", folder)
    return path


@pytest.fixture
def variant(train_config, tmp_path):
    """Gives the tiny configuration with other values, in a folder of the test."""
    return functools.partial(varied, train_config, tmp_path)


def run(config: Path, output: Path, **options):
    return train(read_config(config), config.parent, output, **options)


def weights(folder: Path):
    return load_file(folder / "model.safetensors")


def assert_same(a: Path, b: Path, tolerance=0.0):
    first, second = weights(a), weights(b)
    assert first.keys() == second.keys()
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], rtol=0, atol=tolerance)


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


def train_of(config: Path, output: Path, *more: str) -> list[str]:
    return ["train", str(config), "-o", str(output), *more]


@pytest.fixture(scope="module")
def whole(train_config, tmp_path_factory):
    """A configuration, and the training by it that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    config = varied(train_config, folder, epochs=8, evaluations=8)
    run(config, folder / "out")
    return config, folder / "out"


@pytest.mark.parametrize("wait_for", ["run.json", "checkpoint-*/trainer_state.json", "checkpoint-*/model.safetensors"])
def test_a_killed_training_resumes_to_the_same_weights(whole, tmp_path, wait_for):
    """Killed before the first checkpoint, after one, and while one is being written."""
    config, expected = whole
    output = tmp_path / "out"
    with (tmp_path / "says.txt").open("wb") as says:
        process = Forked(command, train_of(config, output), says)
    deadline = time.monotonic() + 120
    partial = tmp_path / "out.partial"
    while not list(partial.glob(wait_for)) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=30)
    assert partial.is_dir()
    assert not output.exists()
    with pytest.raises(DataError, match="holds an unfinished training; go on with --resume"):
        run(config, output)
    result = finished(command, *train_of(config, output, "--resume"))
    assert result.returncode == 0, result.stderr
    assert_same(expected, output)
    assert not partial.exists()


def test_a_run_is_not_resumed_with_other_settings_or_votes(variant, tmp_path):
    config = variant()
    partial = tmp_path / "out.partial"
    partial.mkdir()
    (partial / "run.json").write_text('{"config": {}, "votes": ""}')
    with pytest.raises(ConfigError, match="is a training with another configuration, which can't be resumed"):
        run(config, tmp_path / "out", resume=True)


@pytest.fixture(scope="module")
def single(train_config, tmp_path_factory):
    """A configuration, the folder of a training by it in one process, and its report."""
    folder = tmp_path_factory.mktemp("single")
    config = varied(train_config, folder, epochs=3, category_weight=0.5)
    return config, folder / "out", run(config, folder / "out")


@pytest.mark.parametrize("launcher", ["torchrun", "accelerate"])
def test_two_processes_learn_what_one_does(single, tmp_path, launcher):
    config, expected, one = single
    tail = ["p2l_plugins.cli", *train_of(config, tmp_path / "two")]
    port = str(free_port())
    start = {
        "torchrun": ["torch.distributed.run", "--nproc-per-node=2", f"--master-port={port}"],
        # the flag's name notwithstanding, this is how accelerate starts several processes on processors, too
        "accelerate": [
            *("accelerate.commands.launch", "--multi_gpu", "--num_processes=2", "--num_machines=1"),
            *("--mixed_precision=no", "--dynamo_backend=no", f"--main_process_port={port}"),
        ],
    }[launcher]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, "-m", *start, "-m", *tail],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
        env=environment,
    )
    assert result.returncode == 0, result.stderr
    two = json.loads((tmp_path / "two" / "training_report.json").read_text())
    assert two["processes"] == 2
    assert two["steps"] == one["steps"]
    assert two["train_loss"] == pytest.approx(one["train_loss"], abs=1e-4)
    assert two["held_out"]["loss"] == pytest.approx(one["held_out"]["loss"], abs=1e-4)
    assert_same(expected, tmp_path / "two", tolerance=1e-4)


def test_a_batch_that_processes_cannot_share_is_refused(variant, tmp_path):
    with pytest.raises(ConfigError, match="batch_size 8 can't be split into gradient_accumulation 3 equal parts"):
        run(variant(gradient_accumulation=3), tmp_path / "out")


def test_accumulation_and_checkpointing_change_memory_not_the_result(variant, tmp_path):
    run(variant(epochs=2), tmp_path / "plain")
    run(variant(epochs=2, gradient_accumulation=4, gradient_checkpointing=True), tmp_path / "small")
    assert_same(tmp_path / "plain", tmp_path / "small", tolerance=1e-5)


def test_a_run_leaves_a_report_a_curve_and_a_tensorboard_log(tiny_checkpoint):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    report = json.loads((tiny_checkpoint / "training_report.json").read_text())
    assert report["held_out"]["loss"] < report["held_out"]["marginal_loss"]
    assert report["held_out"]["prompts"] == report["data"][0]["held_out_prompts"]
    watched = [row["eval_loss"] for row in report["log"] if "eval_loss" in row]
    assert len(watched) >= 8
    assert (tiny_checkpoint / "learning_curve.png").read_bytes().startswith(b"\x89PNG")
    events = EventAccumulator(str(tiny_checkpoint / "tensorboard")).Reload()
    assert {"train/loss", "eval/loss"} <= set(events.Tags()["scalars"])
    assert events.Scalars("eval/loss")[-1].value == pytest.approx(watched[-1], abs=1e-5)


def test_early_stopping_keeps_the_best_weights(variant, tmp_path):
    """At this learning rate the tiny model overshoots: the held-out loss has its least value before the end."""
    config = variant(epochs=60, evaluations=60, early_stopping=3, schedule="constant", head_learning_rate=0.1)
    report = run(config, tmp_path / "out")
    watched = [row["eval_loss"] for row in report["log"] if "eval_loss" in row]
    assert report["held_out"]["loss"] == pytest.approx(min(watched), abs=1e-4)
    assert watched[-1] == report["held_out"]["loss"] or min(watched) < watched[-2]
    assert report["steps"] < 60 * (report["prompts"] // 8)


def test_validation_prompts_are_apart_from_both_other_sides(train_config):
    config = read_config(train_config).model_copy(update={"validation": 0.3})
    sides = split(config, load_sources(config, train_config.parent))
    texts = [set(votes.prompts) for votes in (sides.training, sides.validation, sides.held_out)]
    assert all(texts)
    assert not texts[0] & texts[1]
    assert not (texts[0] | texts[1]) & texts[2]


@pytest.mark.parametrize("schedule", ["constant", "cosine", "linear"])
def test_schedules_warm_up_first(variant, tmp_path, schedule):
    report = run(variant(schedule=schedule, epochs=10, warmup=0.2, evaluations=20), tmp_path / "out")
    rates = [row["learning_rate"] for row in report["log"] if "learning_rate" in row]
    peak = int(np.argmax(rates))
    assert 0 < peak < len(rates) / 2
    assert np.all(np.diff(rates[: peak + 1]) > 0)
    assert rates[-1] == pytest.approx(rates[peak]) if schedule == "constant" else rates[-1] < 0.2 * rates[peak]


def test_votes_with_time_stamps_are_seen_oldest_first(variant, tmp_path):
    config = variant()
    rows = [json.loads(line) for line in (tmp_path / "votes.jsonl").read_text().splitlines()]
    for i, row in enumerate(rows):
        row["timestamp"] = f"2025-01-{28 - i % 28:02d}T00:00:{i % 60:02d}Z"
    (tmp_path / "votes.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert run(config, tmp_path / "out")["order"] == "chronological"
    votes = read_votes(tmp_path / "votes.jsonl")
    order = list(PromptSampler([1] * len(votes.prompts), 8, 0, votes.times))
    assert np.all(np.diff(votes.times[order]) >= 0)
    assert run(variant(order="shuffled"), tmp_path / "shuffled")["order"] == "shuffled"


def test_chronological_order_needs_time_stamps(variant, tmp_path):
    with pytest.raises(DataError, match="needs a column 'timestamp'"):
        run(variant(order="chronological"), tmp_path / "out")
    assert not list(tmp_path.glob("out*"))


def test_the_order_depends_on_seed_and_epoch_alone():
    sampler = PromptSampler(np.arange(1000) % 17, 8, seed=3)
    first = list(sampler)
    assert first == list(PromptSampler(np.arange(1000) % 17, 8, seed=3))
    sampler.set_epoch(1)
    assert sorted(sampler) == sorted(first) == list(range(1000))
    assert list(sampler) != first
    lengths = (np.arange(1000) % 17)[first].reshape(-1, 8)
    assert np.mean(lengths.max(axis=1) - lengths.min(axis=1)) < 2  # batches of similar lengths


def test_epochs_see_other_orders_through_the_trainer(variant, tmp_path, monkeypatch):
    """accelerate wraps the sampler, and must still tell it the epoch."""
    seen = []
    original = PromptSampler.__iter__

    def spy(self):
        seen.append(self.epoch)
        return original(self)

    monkeypatch.setattr(PromptSampler, "__iter__", spy)
    run(variant(epochs=3), tmp_path / "out")
    assert set(seen) == {0, 1, 2}


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_encoders_pool_at_cls_or_over_all_tokens(variant, tmp_path, pooling):
    run(variant(pooling=pooling, epochs=2), tmp_path / "out")
    checkpoint = Checkpoint.load(tmp_path / "out")
    ids = torch.tensor(checkpoint.encoder.encode([("sum apple fig",)]))
    mask = torch.ones_like(ids)
    with torch.inference_mode():
        states = checkpoint.model.model(input_ids=ids, attention_mask=mask).last_hidden_state
        expected = states[:, 0] if pooling == "cls" else states.mean(dim=1)
        torch.testing.assert_close(checkpoint.model.pooled(ids, mask), expected)


def test_a_decoder_is_read_at_its_cls_token(variant, tiny_decoder, tmp_path):
    with pytest.raises(ConfigError, match="pooling 'mean' is for encoders"):
        run(variant(pooling="mean", backbone=str(tiny_decoder)), tmp_path / "out")


def test_a_low_rank_head_has_that_rank_and_the_published_form(variant, tmp_path):
    run(variant(head_rank=1), tmp_path / "out")
    state = weights(tmp_path / "out")
    assert state["head.head.weight"].shape == (3, 32)
    assert torch.linalg.matrix_rank(state["head.head.weight"], rtol=1e-4) == 1
    assert not any("factor" in name for name in state)
    assert Checkpoint.load(tmp_path / "out").training["head_rank"] == 1


def test_a_low_rank_head_starts_at_the_best_approximation():
    weight = torch.randn(6, 10, generator=torch.Generator().manual_seed(0))
    u, s, v = torch.linalg.svd(weight, full_matrices=False)
    head = Head(10, 6, with_eta=False, rank=2)
    head.start(weight, torch.arange(6.0))
    torch.testing.assert_close(head.merged().head.weight, (u[:, :2] * s[:2]) @ v[:2])
    state = torch.randn(4, 10)
    torch.testing.assert_close(head(state)[0], head.merged()(state)[0])


def test_training_goes_on_from_a_checkpoint_and_adds_models(variant, tiny_checkpoint, tmp_path):
    rows = [
        {"prompt": f"sum {a} {b}", "model_a": "new", "model_b": "coder", "winner": "model_a"}
        for a in ("apple", "pear", "plum", "fig")
        for b in ("apple", "pear", "plum", "fig")
    ]
    config = variant(backbone=str(tiny_checkpoint), held_out=0.0, epochs=1, data=[{"path": "more.jsonl"}])
    (tmp_path / "more.jsonl").write_text("\n".join(map(json.dumps, rows)))
    run(config, tmp_path / "out")
    before, after = Checkpoint.load(tiny_checkpoint), Checkpoint.load(tmp_path / "out")
    assert after.models == (*before.models, "new")
    i = before.models.index("weak")  # no votes here: only weight decay moves its row
    torch.testing.assert_close(after.model.head.head.weight[i], before.model.head.head.weight[i], atol=1e-3, rtol=1e-2)


def test_training_at_rate_zero_returns_the_published_checkpoint(public_checkpoint, variant, tmp_path):
    """Loads it, trains on it (without moving), and gives the expected outputs still."""
    expected = json.loads((public_checkpoint / "expected.json").read_text())
    models = json.loads((public_checkpoint / "model_list.json").read_text())
    rows = [
        {"prompt": f"q {i}", "model_a": models[i % 7], "model_b": models[(i + 1) % 7], "winner": "model_a"}
        for i in range(14)
    ]
    config = variant(
        backbone=str(public_checkpoint),
        family="bt",
        max_length=8192,
        held_out=0.0,
        epochs=1,
        learning_rate=0.0,
        head_learning_rate=0.0,
        data=[{"path": "more.jsonl"}],
        aliases=None,
    )
    (tmp_path / "more.jsonl").write_text("\n".join(map(json.dumps, rows)))
    run(config, tmp_path / "out")
    a, b = weights(public_checkpoint), weights(tmp_path / "out")
    assert a.keys() == b.keys()
    for name, value in a.items():
        torch.testing.assert_close(value.float(), b[name], rtol=0, atol=0)
    assert Checkpoint.load(tmp_path / "out").form.max_length == 8192
    assert expected


def test_training_on_needs_the_same_family(variant, tiny_checkpoint, tmp_path):
    with pytest.raises(ConfigError, match="trained with 'grk'; training on needs the same"):
        run(variant(backbone=str(tiny_checkpoint), family="bt-tie"), tmp_path / "out")


def test_categories_help_as_an_auxiliary_task(variant, tmp_path):
    """The classifier is thrown away; the state it shaped is the model's."""
    config = variant(category_weight=1.0, epochs=3)
    rows = [json.loads(line) for line in (tmp_path / "votes.jsonl").read_text().splitlines()]
    for row in rows:
        row["category"] = row["prompt"].split()[0]
    (tmp_path / "votes.jsonl").write_text("\n".join(map(json.dumps, rows)))
    run(config, tmp_path / "with")
    run(variant(category_weight=0.0, epochs=3), tmp_path / "without")
    assert weights(tmp_path / "with").keys() == weights(tmp_path / "without").keys()
    assert not torch.equal(*(weights(tmp_path / n)["head.head.weight"] for n in ("with", "without")))


def test_a_model_with_no_votes_is_named(variant, tmp_path):
    config = variant(held_out=0.5)
    rows = [{"prompt": f"p {i}", "model_a": "a", "model_b": "b", "winner": "model_a"} for i in range(20)]
    votes = tmp_path / "votes.jsonl"
    votes.write_text("\n".join(map(json.dumps, rows)))
    from p2l_plugins.votes.votes import held_out

    out = held_out(read_votes(votes).prompts, 0.5, 0)
    rows[int(np.flatnonzero(out)[0])]["model_a"] = "rare"
    votes.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(DataError, match="the model 'rare' has no votes in the training part"):
        run(config, tmp_path / "out")
    assert not list(tmp_path.glob("out*"))


def test_a_tokenizer_without_a_pad_token_is_named(variant, tiny_decoder, tmp_path):
    folder = shutil.copytree(tiny_decoder, tmp_path / "decoder")
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    settings.pop("pad_token")
    path.write_text(json.dumps(settings))
    with pytest.raises(ConfigError, match="can't be used: its tokenizer has no pad token"):
        load_backbone(str(folder), 64)
    with pytest.raises(ConfigError, match="no pad token"):
        run(variant(backbone=str(folder)), tmp_path / "out")
    assert not list(tmp_path.glob("out*"))


def test_defaults_of_the_configuration_are_consistent():
    TrainConfig(name="x", data=[{"path": "y"}])
    with pytest.raises(ValueError, match="early_stopping needs prompts that are not trained on"):
        TrainConfig(name="x", data=[{"path": "y"}], held_out=0, early_stopping=2)
