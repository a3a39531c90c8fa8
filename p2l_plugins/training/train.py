"""`p2l train`: votes and score matrices → checkpoint folder, on transformers' Trainer and accelerate."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
import transformers
from accelerate import PartialState
from transformers import EarlyStoppingCallback, PrinterCallback, TrainingArguments

from p2l_plugins.errors import ConfigError, DataError, P2LError
from p2l_plugins.files.tables import put_folder
from p2l_plugins.outcomes import Array, negative_log_likelihood
from p2l_plugins.prompts import TextEncoder, Turns
from p2l_plugins.scoring.training_prompts import TRAINING_PROMPTS, TrainingPrompts
from p2l_plugins.training.backbone import load_backbone
from p2l_plugins.training.batches import PromptDataset
from p2l_plugins.training.categories import Categories, find_categories
from p2l_plugins.training.checkpoint import Checkpoint, text_encoder
from p2l_plugins.training.config import SizedConfig, Source, TrainConfig
from p2l_plugins.training.evidence import Evidence, evidence
from p2l_plugins.training.learner import Learner, NotANumber, VoteTrainer, optimizer, start_head
from p2l_plugins.training.marginal import fit_marginal
from p2l_plugins.training.model import P2LNetwork
from p2l_plugins.training.options import shuffled_options
from p2l_plugins.training.report import draw_learning_curve
from p2l_plugins.training.split import Split, load_sources, split
from p2l_plugins.training.variants import varied
from p2l_plugins.votes.votes import Votes, ungrounded

#: Prompts of one evaluation during training; early stopping looks at all of them.
EVALUATION_PROMPTS = 512


def train(
    config: TrainConfig,
    data_dir: Path,
    output: Path,
    resume: bool = False,
    sources: Sequence[tuple[Source, Votes]] | None = None,
) -> dict[str, Any]:
    """Trains and writes a checkpoint folder; returns the report, which the folder holds as `training_report.json`.

    The head starts from the sources' marginal leaderboards (zero weights, fitted biases), so that weight decay on the
    head shrinks towards them; that of a P2L checkpoint starts from its own rows. The run's state is kept in
    `OUTPUT.partial` until the checkpoint is complete. Started by `torchrun` or `accelerate launch`, several processes
    share each batch.

    Args:
        data_dir: folder of the files that the configuration names.
        output: new checkpoint folder.
        sources: the configuration's files with their votes, where they are read already.
        resume: goes on with what `OUTPUT.partial` holds, to the same result as a run that was never stopped.

    Raises:
        DataError, ConfigError: bad data or settings; nothing is left behind then.
    """
    state = PartialState(cpu=not torch.cuda.is_available())
    partial = output.with_name(f"{output.name}.partial").absolute()
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise DataError(f"{output}: already exists; name a new folder")
    if partial.exists() and not resume:
        raise DataError(f"{partial}: holds an unfinished training; go on with --resume, or delete it")
    state.wait_for_everyone()
    try:
        report = _train(config, data_dir, partial, state, sources)
    except P2LError:
        state.wait_for_everyone()
        if state.is_main_process and not resume:
            shutil.rmtree(partial, ignore_errors=True)
        raise
    if state.is_main_process:
        put_folder(partial / "checkpoint", output)
        shutil.rmtree(partial)
    state.wait_for_everyone()
    return report


def _train(
    config: TrainConfig,
    data_dir: Path,
    partial: Path,
    state: PartialState,
    sources: Sequence[tuple[Source, Votes]] | None,
) -> dict[str, Any]:
    started = time.monotonic()
    transformers.set_seed(config.seed)
    if config.batch_size is not None and config.batch_size % (state.num_processes * config.gradient_accumulation):
        raise ConfigError(
            f"batch_size {config.batch_size} can't be shared by {state.num_processes} processes with "
            f"gradient_accumulation {config.gradient_accumulation}; choose a multiple of their product"
        )
    parts = load_sources(config, data_dir) if sources is None else sources
    votes = split(config, parts)
    return _trained(
        config.sized(len(votes.training.prompts), state.num_processes), parts, votes, partial, state, started
    )


def _trained(
    config: SizedConfig,
    parts: Sequence[tuple[Source, Votes]],
    votes: Split,
    partial: Path,
    state: PartialState,
    started: float,
) -> dict[str, Any]:
    start = load_backbone(config.backbone, config.max_length, config.dropout, config.pooling, config.cut)
    start = start.shortened(config.layers)
    start = start.with_vocabulary(config.vocabulary, votes.training.prompts, config.lowercase)
    if config.frozen_embeddings:
        cast(Any, start.model).get_input_embeddings().requires_grad_(False)
    model, models = start_head(start, votes.sources, votes.training.models, config)
    training = votes.training.renamed(models)
    categories = find_categories(votes.sources, config.category_priors, models, config.family)
    _claim(partial, config, training, state)

    datasets = _datasets(config, votes, models, categories, text_encoder(start.tokenizer, start.form))
    learner = Learner(model, categories, config.category_weight, config.unseen_prior, config.consistency)
    if config.gradient_checkpointing:
        start.model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})  # type: ignore[operator]
    order = _order(config, training)
    watch = bool(len(datasets.watched.votes))
    trainer = VoteTrainer(
        learner,
        arguments(config, partial, _steps(config, len(training.prompts)), state.num_processes, watch),
        train_dataset=datasets.training,
        eval_dataset=datasets.sample if watch else None,
        pad_id=start.form.pad_id,
        times=training.times if order == "chronological" else None,
        optimizers=(optimizer(learner, config), None),
        varied_share=config.consistency_share,
    )
    trainer.remove_callback(PrinterCallback)  # it stands in for the bar, and prints where the summary goes
    if config.early_stopping is not None:
        trainer.add_callback(EarlyStoppingCallback(early_stopping_patience=config.early_stopping))
    loss = _run(trainer, model, partial)
    known = evidence(votes.sources, config.family)
    if config.shrink:
        _shrink(model, models, known)
    report = {
        "name": config.name,
        "train_loss": loss,
        "steps": trainer.state.global_step,
        "epochs": config.epochs,
        "batch_size": config.batch_size,
        "seconds": round(time.monotonic() - started, 1),
        "processes": state.num_processes,
        "order": order,
        "models": len(models),
        "model_names": list(models),
        "prompts": len(training.prompts),
        "votes": len(training),
        "held_out": _held_out_losses(trainer, votes, datasets.watched, config) if watch else {},
        "split": {"held_out": config.held_out, "seed": config.seed},
        "data": _data(parts, votes),
        **known.record(config.shrink),
        "log": trainer.state.log_history,
    }
    if state.is_main_process:
        checkpoint = Checkpoint(model.eval(), start.tokenizer, models, start.form, {})
        _save(partial, config, checkpoint, parts, report, votes.seen_prompts())
    state.wait_for_everyone()
    return report


class _Datasets(NamedTuple):
    """What a training reads: the prompts to learn from, all that it is watched on, and a sample of these."""

    training: PromptDataset
    watched: PromptDataset
    sample: PromptDataset


def _datasets(
    config: SizedConfig, votes: Split, models: Sequence[str], categories: Categories, encoder: TextEncoder
) -> _Datasets:
    training = votes.training.renamed(models)
    watched = (votes.validation if config.validation else votes.held_out).renamed(models)
    everything = PromptDataset(watched, encoder.encode(watched.prompts), multiple=config.batch_size)
    some = everything
    if config.early_stopping is None and len(watched.prompts) > EVALUATION_PROMPTS:
        sample = _sample(watched, EVALUATION_PROMPTS, config.seed)
        some = PromptDataset(sample, encoder.encode(sample.prompts), multiple=config.batch_size)
    rng = np.random.default_rng(config.seed)
    orders = [shuffled_options(training.prompts, rng) for _ in range(config.option_orders - 1)]
    others = [encoder.encode(prompts) for prompts in orders]
    draw = random.Random(config.seed)  # noqa: S311
    written = [varied(turns, draw) for turns in training.prompts] if config.consistency else []
    learnt = PromptDataset(
        training, encoder.encode(training.prompts), categories.of_prompt, others=others, varied=encoder.encode(written)
    )
    return _Datasets(learnt, everything, some)


def _steps(config: SizedConfig, prompts: int) -> int:
    """Optimiser steps of a whole training."""
    batch = min(config.batch_size, prompts)
    return max(1, int(np.ceil(config.epochs * max(prompts // batch, 1))))


def _run(trainer: VoteTrainer, model: P2LNetwork, partial: Path) -> float:
    """Trains to the end; returns the mean training loss."""
    try:
        result = trainer.train(resume_from_checkpoint=_last_checkpoint(partial))
    except NotANumber as error:
        raise DataError(str(error)) from None
    if not all(bool(torch.isfinite(parameter).all()) for parameter in model.parameters()):
        raise DataError(str(NotANumber()))
    return result.training_loss


def _shrink(model: P2LNetwork, models: Sequence[str], known: Evidence) -> None:
    """Moves the head's rows towards those of the models' peers; a low-rank head is linear in its rows, too."""
    head = model.head.head
    rows = known.shrunk(models, *(part.detach().cpu().double().numpy() for part in (head.weight, head.bias)))
    with torch.no_grad():
        for part, new in zip((head.weight, head.bias), rows, strict=True):
            part.copy_(torch.from_numpy(new))


def _data(parts: Sequence[tuple[Source, Votes]], votes: Split) -> list[dict[str, Any]]:
    """What the report says of each file."""
    return [
        {
            "file": Path(source.path).name,
            "licence": source.licence,
            "models": len(part.models),
            "prompts": total,
            "held_out_prompts": out,
            "validation_prompts": check,
            "votes": len(part),
        }
        for (source, part), (total, out, check) in zip(parts, votes.sizes, strict=True)
    ]


def _save(
    partial: Path,
    config: TrainConfig,
    checkpoint: Checkpoint,
    parts: Sequence[tuple[Source, Votes]],
    report: dict[str, Any],
    seen: Sequence[Turns],
) -> None:
    """Writes the checkpoint folder with hashes of the prompts that it has seen, the report, its picture and the log."""
    checkpoint.training = {
        "head_type": config.family,
        "loss_type": config.family,
        "pooling": checkpoint.model.pooling,
        "head_rank": config.head_rank,
        "max_length": checkpoint.form.max_length,
        "cut": checkpoint.form.cut,
        "aliases": config.aliases,
        "ungrounded": ungrounded([part for _, part in parts], config.family),
        "config": config.model_dump(mode="json"),
    }
    folder = partial / "checkpoint"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    checkpoint.save(folder)
    TrainingPrompts.of(seen).write(folder / TRAINING_PROMPTS)
    (folder / "training_report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    draw_learning_curve(report, folder / "learning_curve.png")
    if (partial / "tensorboard").is_dir():
        shutil.copytree(partial / "tensorboard", folder / "tensorboard")


def arguments(config: SizedConfig, partial: Path, steps: int, processes: int, watch: bool) -> TrainingArguments:
    """transformers' settings for a configuration."""
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(partial / "tensorboard")
    every = max(1, steps // config.evaluations)
    stops = config.early_stopping is not None
    return TrainingArguments(
        output_dir=str(partial),
        per_device_train_batch_size=config.batch_size // (processes * config.gradient_accumulation),
        per_device_eval_batch_size=config.batch_size // processes,
        gradient_accumulation_steps=config.gradient_accumulation,
        num_train_epochs=config.epochs,
        learning_rate=config.learning_rate,
        lr_scheduler_type="constant_with_warmup" if config.schedule == "constant" else config.schedule,
        warmup_steps=config.warmup,
        max_grad_norm=config.max_grad_norm,
        seed=config.seed,
        bf16=config.bf16,
        save_strategy="steps",
        save_steps=every,
        save_total_limit=2,
        eval_strategy="steps" if watch else "no",
        eval_steps=every,
        load_best_model_at_end=stops,
        metric_for_best_model="loss" if stops else None,
        greater_is_better=False if stops else None,
        report_to=["tensorboard"],
        logging_steps=max(1, min(10, every)),
        logging_nan_inf_filter=False,
        remove_unused_columns=False,
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=torch.cuda.is_available(),
        ddp_find_unused_parameters=False,
        disable_tqdm=not sys.stderr.isatty(),
    )


def _order(config: TrainConfig, votes: Votes) -> str:
    if config.order == "chronological" and votes.times is None:
        raise DataError("order 'chronological' needs a column 'timestamp' in every file of votes")
    if config.order == "auto":
        return "shuffled" if votes.times is None else "chronological"
    return config.order


def _sample(votes: Votes, n: int, seed: int) -> Votes:
    keep = np.zeros(len(votes.prompts), np.bool_)
    keep[np.random.default_rng(seed).permutation(len(keep))[:n]] = True
    return votes.select(keep)


def _claim(partial: Path, config: TrainConfig, votes: Votes, state: PartialState) -> None:
    """Marks the folder as this run's; what it holds must come from the same settings and votes."""
    digest = hashlib.sha256()
    for column in (votes.prompt, votes.a, votes.b, votes.outcome, votes.weight):
        digest.update(column.tobytes())
    digest.update(repr((votes.models, votes.prompts)).encode())
    mine = {"config": config.model_dump(mode="json"), "votes": digest.hexdigest()}
    path = partial / "run.json"
    if path.is_file():
        theirs = json.loads(path.read_text(encoding="utf-8"))
        if theirs != mine:
            what = "other votes" if theirs.get("config") == mine["config"] else "another configuration"
            raise ConfigError(f"{partial}: is a training with {what}, which can't be resumed with these; delete it")
    state.wait_for_everyone()
    if state.is_main_process and not path.is_file():
        partial.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(mine), encoding="utf-8")
    state.wait_for_everyone()


def _last_checkpoint(partial: Path) -> str | None:
    """The newest complete checkpoint of a run; one that a kill cut short is not complete."""
    folders = sorted(partial.glob("checkpoint-*"), key=lambda f: int(f.name.rpartition("-")[2]), reverse=True)
    for folder in folders:
        try:
            json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))  # written last
        except (OSError, ValueError):
            continue
        return str(folder)
    return None


def _held_out_losses(trainer: VoteTrainer, votes: Split, dataset: PromptDataset, config: TrainConfig) -> dict[str, Any]:
    """Mean loss per prompt on all prompts that were not trained on, beside the marginal leaderboard's."""
    watched = dataset.votes
    coefs, raw_eta = fit_marginal(votes.training, config.family)
    eta = None if raw_eta is None else np.full(len(watched), raw_eta)
    renamed: Array = np.zeros(len(watched.models))
    renamed[[watched.models.index(name) for name in votes.training.models]] = coefs
    loss = negative_log_likelihood(config.family, renamed[watched.a], renamed[watched.b], watched.outcome, eta)
    trainer.eval_dataset = dataset
    return {
        "prompts": len(watched.prompts),
        "votes": len(watched),
        "side": "validation" if config.validation else "held_out",
        "loss": trainer.evaluate()["eval_loss"],
        "marginal_loss": float((loss * watched.weight).sum() / len(watched.prompts)),
    }
