"""What `p2l train` reads from its YAML file."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from p2l_plugins.errors import ConfigError, DataError, first_problem
from p2l_plugins.files.tables import read_yaml_object
from p2l_plugins.outcomes import Family
from p2l_plugins.prompts import Cut

#: Fewest steps of a training whose epochs are not set: those that learnt the 3,791 prompts of LLMRouter in an epoch.
STEPS = 118
#: Most epochs of such a training.
MOST_EPOCHS = 5

Schedule = Literal["linear", "cosine", "constant"]


class Source(BaseModel):
    """One file of votes or scores.

    Attributes:
        path: Parquet, JSONL or CSV; relative to the data folder.
        usable: for a score matrix, the lowest score of a usable answer.
        margin: for a score matrix, the largest difference that is still a tie.
        models, not_models: for a score matrix, the columns that alone are models; columns that are none.
        where: for a file with several scales or parts, column → the value that a row must have.
        pairs: for a score matrix, most pairs of models that become votes of one prompt, drawn at random; null: all.
        prompt_weight: total weight of one prompt's votes; null keeps the votes' own weights.
        category_prior: in place of the configuration's; a file of few prompts needs a stronger one.
        licence: noted in the manifest.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str
    usable: float = Field(default=0.5, allow_inf_nan=False)
    margin: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    models: tuple[str, ...] = ()
    not_models: tuple[str, ...] = ()
    where: dict[str, str] = {}
    pairs: int | None = Field(default=None, ge=1)
    prompt_weight: float | None = Field(default=1.0, gt=0)
    category_prior: float | None = Field(default=None, ge=0)
    licence: str | None = None

    @property
    def label(self) -> str:
        """The file's name without its ending, with the part of it that `where` names."""
        part = ", ".join(self.where.values())
        return Path(self.path).stem + (f" ({part})" if part else "")


class TrainConfig(BaseModel):
    """Everything that a training depends on; docs/training.md has a line on each key."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    data: list[Source] = Field(min_length=1)
    aliases: dict[str, str] = {}
    backbone: str = "minilm"
    layers: int | None = Field(default=None, ge=1)
    vocabulary: int | None = Field(default=None, ge=1000)
    lowercase: bool = False
    frozen_embeddings: bool = False
    family: Family = "grk"
    pooling: Literal["cls", "mean"] | None = None
    head_rank: int | None = Field(default=None, ge=1)
    ties: Literal["refuse", "drop"] = "refuse"
    max_length: int = Field(default=256, ge=8)
    cut: Cut | None = None
    held_out: float = Field(default=0.2, ge=0, lt=1)
    validation: float = Field(default=0.0, ge=0, lt=1)
    train_fraction: float = Field(default=1.0, gt=0, le=1)
    seed: int = 0
    order: Literal["auto", "shuffled", "chronological"] = "auto"
    epochs: float | None = Field(default=None, gt=0)
    batch_size: int | None = Field(default=None, ge=1)
    gradient_accumulation: int = Field(default=1, ge=1)
    gradient_checkpointing: bool = False
    learning_rate: float = Field(default=5e-5, ge=0)
    head_learning_rate: float = Field(default=5e-4, ge=0)
    weight_decay: float = Field(default=0.01, ge=0)
    head_weight_decay: float = Field(default=0.01, ge=0)
    category_weight: float = Field(default=0.0, ge=0)
    category_prior: float = Field(default=0.0, ge=0)
    unseen_prior: float = Field(default=0.0, ge=0)
    shrink: bool = False
    option_orders: int = Field(default=1, ge=1, le=100)
    consistency: float = Field(default=0.0, ge=0)
    consistency_share: float = Field(default=0.25, gt=0, le=1)
    max_grad_norm: float = Field(default=1.0, gt=0)
    warmup: float = Field(default=0.1, ge=0, lt=1)
    schedule: Schedule = "linear"
    dropout: float = Field(default=0.0, ge=0, lt=1)
    bf16: bool = False
    evaluations: int = Field(default=10, ge=1)
    early_stopping: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _consistent(self) -> TrainConfig:
        if self.lowercase and self.vocabulary is None:
            raise ValueError("lowercase: needs vocabulary, since pieces with capitals go")
        if self.batch_size is not None and self.batch_size % self.gradient_accumulation:
            raise ValueError(
                f"batch_size {self.batch_size} can't be split into gradient_accumulation {self.gradient_accumulation} "
                "equal parts"
            )
        if self.early_stopping is not None and not self.held_out and not self.validation:
            raise ValueError("early_stopping needs prompts that are not trained on: set held_out or validation")
        return self

    @property
    def category_priors(self) -> list[float]:
        """κ of the categories of each file."""
        return [self.category_prior if one.category_prior is None else one.category_prior for one in self.data]

    def sized(self, prompts: int, processes: int = 1) -> SizedConfig:
        """With the epochs and the batch size that suit a number of training prompts, where they are not set.

        A batch is a 64th of the prompts, from 8 to 32 (a power of two, or the next multiple of processes ×
        `gradient_accumulation`), and there are as many epochs, 1 to 5, as make `STEPS` steps.
        """
        batch, epochs = self.batch_size, self.epochs
        if batch is None:
            unit = processes * self.gradient_accumulation
            batch = unit * math.ceil(next((size for size in (32, 16) if prompts >= 64 * size), 8) / unit)
        if epochs is None:
            per_epoch = max(prompts // min(batch, max(prompts, 1)), 1)
            epochs = float(min(max(math.ceil(STEPS / per_epoch), 1), MOST_EPOCHS))
        return SizedConfig.model_validate(self.model_dump() | {"batch_size": batch, "epochs": epochs})


class SizedConfig(TrainConfig):
    """A configuration whose epochs and batch size are numbers."""

    epochs: float = Field(gt=0)
    batch_size: int = Field(ge=1)


def read_config(path: Path) -> TrainConfig:
    """The configuration in a YAML file.

    Raises:
        ConfigError: no such file, not YAML, or the first wrong key or value with what is valid.
    """
    try:
        return TrainConfig.model_validate(read_yaml_object(path))
    except DataError as error:
        raise ConfigError(str(error)) from None
    except ValidationError as error:
        raise ConfigError(f"{path}: {first_problem(error, TrainConfig)}") from None
