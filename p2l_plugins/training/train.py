"""`p2l train`: votes and score matrices → checkpoint folder, on transformers' Trainer."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import transformers
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch.utils.data import Dataset
from transformers import ProgressCallback, Trainer, TrainingArguments

from p2l_plugins.errors import ConfigError, DataError
from p2l_plugins.files import replaced_folder
from p2l_plugins.outcomes import Array, Family, has_eta
from p2l_plugins.prompts import pad
from p2l_plugins.training.data import Votes, check_family, held_out, merge, read_votes, ungrounded
from p2l_plugins.training.marginal import fit_marginal
from p2l_plugins.training.model import Checkpoint, P2LModel, load_backbone, text_encoder


class Source(BaseModel):
    """One file of votes or scores.

    Attributes:
        path: Parquet, JSONL or CSV; relative to the data folder.
        usable: for a score matrix, the lowest score of a usable answer.
        margin: for a score matrix, the largest difference that is still a tie.
        prompt_weight: total weight of one prompt's votes; null keeps the votes' own weights.
        licence: noted in the manifest.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str
    usable: float = 0.5
    margin: float = 0.0
    prompt_weight: float | None = Field(default=1.0, gt=0)
    licence: str | None = None


class TrainConfig(BaseModel):
    """Everything that `p2l train` reads from its YAML file; README and docs/training.md explain it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    data: list[Source] = Field(min_length=1)
    aliases: dict[str, str] = {}
    backbone: str = "minilm"
    family: Family = "grk"
    ties: Literal["refuse", "drop"] = "refuse"
    max_length: int = Field(default=256, ge=8)
    held_out: float = Field(default=0.2, ge=0, lt=1)
    seed: int = 0
    epochs: float = Field(default=1.0, gt=0)
    batch_size: int = Field(default=32, ge=1)
    learning_rate: float = Field(default=5e-5, ge=0)
    head_learning_rate: float = Field(default=5e-4, ge=0)
    weight_decay: float = Field(default=0.01, ge=0)
    head_weight_decay: float = Field(default=0.01, ge=0)
    warmup: float = Field(default=0.1, ge=0, lt=1)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    bf16: bool = False
    schedule: Literal["linear", "cosine", "constant_with_warmup"] = "linear"


def read_config(path: Path) -> TrainConfig:
    """The configuration in a YAML file.

    Raises:
        ConfigError: no such file, not YAML, or the first wrong key or value with what is valid.
    """
    if not path.is_file():
        raise ConfigError(f"{path}: there is no such file")
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML ({str(error).splitlines()[0]})") from None
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: expected keys and values; valid keys: {', '.join(TrainConfig.model_fields)}")
    try:
        return TrainConfig.model_validate(value)
    except ValidationError as error:
        raise ConfigError(f"{path}: {explain(error, TrainConfig)}") from None


def explain(error: ValidationError, model: type[BaseModel]) -> str:
    """The first problem of a validation error in one sentence: key, value, and what is valid."""
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        fields = Source.model_fields if model is TrainConfig and len(first["loc"]) > 1 else model.model_fields
        return f"the key {key!r} is not known; valid keys: {', '.join(fields)}"
    if first["type"] == "missing":
        return f"the key {key!r} is missing"
    return f"{key} is {first['input']!r}: {first['msg'][0].lower()}{first['msg'][1:]}"


class _Prompts(Dataset[dict[str, Any]]):
    """One item per distinct prompt: its token ids and the slice of its votes."""

    def __init__(self, votes: Votes, ids: list[list[int]]) -> None:
        self.votes, self.ids = votes, ids
        self.bounds = np.searchsorted(votes.prompt, np.arange(len(votes.prompts) + 1))

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {"input_ids": self.ids[i], "votes": slice(int(self.bounds[i]), int(self.bounds[i + 1]))}


class _Collator:
    def __init__(self, votes: Votes, pad_id: int) -> None:
        self.votes, self.pad_id = votes, pad_id

    def __call__(self, items: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        ids, mask = pad([item["input_ids"] for item in items], self.pad_id)
        v = self.votes
        rows = np.concatenate([np.full(i["votes"].stop - i["votes"].start, n) for n, i in enumerate(items)])
        take = np.concatenate([np.arange(i["votes"].start, i["votes"].stop) for i in items])
        return {
            "input_ids": torch.from_numpy(ids),
            "attention_mask": torch.from_numpy(mask),
            "vote_prompt": torch.from_numpy(rows),
            "vote_a": torch.from_numpy(v.a[take]),
            "vote_b": torch.from_numpy(v.b[take]),
            "vote_outcome": torch.from_numpy(v.outcome[take]),
            "vote_weight": torch.from_numpy(v.weight[take].astype(np.float32)),
        }


NOT_A_NUMBER = "the training loss is not a number; lower the learning rates or look at the data"


class _Progress(ProgressCallback):
    """The progress bar with the loss in it, on stderr; stops at a loss that is not a number."""

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        loss = float((logs or {}).get("loss", 0.0))
        if not np.isfinite(loss):
            raise DataError(NOT_A_NUMBER)
        if self.training_bar is not None and logs and "loss" in logs:
            self.training_bar.set_postfix(loss=f"{loss:.4f}")


def load_sources(config: TrainConfig, data_dir: Path) -> list[tuple[Source, Votes]]:
    """Reads every source of a configuration.

    Raises:
        DataError: what is wrong with a file.
    """
    parts = []
    for source in config.data:
        path = data_dir / source.path
        votes = read_votes(path, config.aliases, source.usable, source.margin)
        parts.append((source, check_family(votes, config.family, config.ties, path)))
    return parts


def train(config: TrainConfig, data_dir: Path, output: Path) -> dict[str, Any]:
    """Trains and writes a checkpoint folder; returns the report, which the folder holds as `training_report.json`.

    The split is by prompt: no prompt stands on both sides, whatever file it comes from. The head starts from the
    sources' marginal leaderboards (zero weights, fitted biases), so that weight decay on the head shrinks towards them.

    Raises:
        DataError, ConfigError: bad data or settings; nothing is written then.
    """
    started = time.monotonic()
    transformers.set_seed(config.seed)
    parts = load_sources(config, data_dir)
    sides = [held_out(votes.prompts, config.held_out, config.seed) for _, votes in parts]
    weights = [source.prompt_weight for source, _ in parts]
    training = merge([v.select(~side) for (_, v), side in zip(parts, sides, strict=True)], weights)
    if not len(training):
        raise DataError("no votes are left for training; lower 'held_out' or add data")
    scale = len(training.prompts) / training.weight.sum()
    training.weight[:] *= scale
    backbone, tokenizer, pooling, form = load_backbone(config.backbone, config.max_length, config.dropout)
    encoder = text_encoder(tokenizer, form)
    model = P2LModel(backbone, len(training.models), config.family, pooling)
    coefs, raw_eta = _start([v.select(~side) for (_, v), side in zip(parts, sides, strict=True)], training, config)
    with torch.no_grad():
        model.head.head.weight.zero_()
        model.head.head.bias.copy_(torch.from_numpy(coefs))
        if model.head.eta_head is not None and raw_eta is not None:
            model.head.eta_head.weight.zero_()
            model.head.eta_head.bias.fill_(raw_eta)

    dataset = _Prompts(training, encoder.encode(training.prompts))
    with replaced_folder(output) as folder:
        arguments = TrainingArguments(
            output_dir=str(folder / ".trainer"),
            per_device_train_batch_size=config.batch_size,
            num_train_epochs=config.epochs,
            learning_rate=config.learning_rate,
            lr_scheduler_type=config.schedule,
            warmup_steps=config.warmup,
            seed=config.seed,
            bf16=config.bf16,
            save_strategy="no",
            train_sampling_strategy="group_by_length",
            report_to=[],
            logging_steps=10,
            logging_nan_inf_filter=False,
            remove_unused_columns=False,
            use_cpu=not torch.cuda.is_available(),
            dataloader_pin_memory=False,
        )
        trainer = Trainer(
            model=model,
            args=arguments,
            train_dataset=dataset,
            data_collator=_Collator(training, form.pad_id),
            optimizers=(_optimizer(model, config), None),
        )
        trainer.remove_callback(ProgressCallback)
        trainer.add_callback(_Progress())
        result = trainer.train()
        if not all(bool(torch.isfinite(parameter).all()) for parameter in model.parameters()):
            raise DataError(NOT_A_NUMBER)
        shutil.rmtree(folder / ".trainer", ignore_errors=True)
        settings = config.model_dump(mode="json")
        checkpoint = Checkpoint(
            model.eval(),
            tokenizer,
            training.models,
            form,
            {
                "head_type": config.family,
                "loss_type": config.family,
                "pooling": pooling,
                "max_length": form.max_length,
                "aliases": config.aliases,
                "ungrounded": ungrounded([votes for _, votes in parts], config.family),
                "config": settings,
            },
        )
        checkpoint.save(folder)
        report = {
            "name": config.name,
            "train_loss": result.training_loss,
            "steps": trainer.state.global_step,
            "seconds": round(time.monotonic() - started, 1),
            "models": len(training.models),
            "data": [
                {
                    "file": Path(source.path).name,
                    "licence": source.licence,
                    "models": len(votes.models),
                    "prompts": len(votes.prompts),
                    "held_out_prompts": int(side.sum()),
                    "votes": len(votes),
                }
                for (source, votes), side in zip(parts, sides, strict=True)
            ],
            "log": trainer.state.log_history,
        }
        text = json.dumps(report, indent=2) + "\n"
        (folder / "training_report.json").write_text(text, encoding="utf-8")
    return report


def _start(parts: list[Votes], training: Votes, config: TrainConfig) -> tuple[Array, float | None]:
    """Coefficients (M,) and raw_eta to start from: the marginal leaderboards of the sources.

    A model of several sources, and raw_eta, start at the mean over their prompts. One leaderboard fitted to all sources
    at once would have to explain every source's ties with a single raw_eta, and bend the coefficients for it.
    """
    total, count = np.zeros(len(training.models)), np.zeros(len(training.models))
    eta = 0.0
    for part in parts:
        if not len(part):
            continue
        coefs, raw_eta = fit_marginal(part, config.family)
        index = [training.models.index(name) for name in part.models]
        total[index] += len(part.prompts) * coefs
        count[index] += len(part.prompts)
        eta += len(part.prompts) * (raw_eta or 0.0)
    mean = total / np.maximum(count, 1)
    return mean, eta / len(training.prompts) if has_eta(config.family) else None


def _optimizer(model: P2LModel, config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW; the head learns faster, and biases and norms are not decayed."""
    groups: dict[tuple[bool, bool], list[torch.nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((name.startswith("head."), parameter.ndim > 1), []).append(parameter)
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "lr": config.head_learning_rate if head else config.learning_rate,
                "weight_decay": (config.head_weight_decay if head else config.weight_decay) if decayed else 0.0,
            }
            for (head, decayed), parameters in groups.items()
        ]
    )
