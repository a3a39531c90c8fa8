"""The data of a training: the votes of every source, split by prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from p2l_plugins.errors import DataError
from p2l_plugins.outcomes import Ids
from p2l_plugins.prompts import Turns
from p2l_plugins.training.config import Source, TrainConfig
from p2l_plugins.votes.columns import ModelColumns
from p2l_plugins.votes.read import read_votes
from p2l_plugins.votes.votes import Votes, check_family, held_out, merge


@dataclass(frozen=True)
class Split:
    """The votes of a training, by side; every side has all the models.

    Attributes:
        training: votes to learn from; validation: to watch the training on; held_out: not used in training.
        sources: training votes of each source, over its own models.
        sizes: per source, prompts in all, held out and in validation.
    """

    training: Votes
    validation: Votes
    held_out: Votes
    sources: list[Votes]
    sizes: list[tuple[int, int, int]]

    def rows(self, sources: Sequence[int]) -> Ids:
        """Where the prompts of some sources, by their numbers, stand in `training`: one source after the other."""
        starts = np.cumsum([0, *(len(source.prompts) for source in self.sources)])
        return np.concatenate([np.arange(starts[n], starts[n + 1]) for n in sources])

    def seen_prompts(self) -> list[Turns]:
        """The prompts that a model was made with: to learn from, or to watch the training on."""
        return [*self.training.prompts, *self.validation.prompts]


def load_sources(config: TrainConfig, data_dir: Path) -> list[tuple[Source, Votes]]:
    """Reads every source of a configuration.

    Raises:
        DataError: what is wrong with a file.
    """
    return [
        (
            source,
            check_family(read_source(source, config, data_dir), config.family, config.ties, data_dir / source.path),
        )
        for source in config.data
    ]


def read_source(source: Source, config: TrainConfig, data_dir: Path) -> Votes:
    """The votes of one source of a configuration.

    Raises:
        DataError: what is wrong with the file.
    """
    columns = ModelColumns(source.models, source.not_models)
    return read_votes(
        data_dir / source.path, config.aliases, source.usable, source.margin, columns, source.where, source.pairs
    )


def split(config: TrainConfig, parts: Sequence[tuple[Source, Votes]]) -> Split:
    """Splits by prompt: no prompt stands on two sides, whatever file it comes from.

    Raises:
        DataError: nothing is left for training, or a model has no votes there.
    """
    weights = [source.prompt_weight for source, _ in parts]
    sides: list[list[Votes]] = [[], [], []]
    sizes = []
    for _, votes in parts:
        out = held_out(votes.prompts, config.held_out, config.seed)
        check = ~out & held_out(votes.prompts, config.validation, config.seed + 1)
        # by prompt too, so that a smaller fraction is part of a larger one
        used = held_out(votes.prompts, config.train_fraction, config.seed + 2)
        for side, keep in zip(sides, (~out & ~check & used, check, out), strict=True):
            side.append(votes.select(keep))
        sizes.append((len(votes.prompts), int(out.sum()), int(check.sum())))
    if not sum(len(votes) for votes in sides[0]):
        raise DataError("no votes are left for training; lower 'held_out' or add data")
    merged = [merge(side, weights) for side in sides]
    training = merged[0]
    with_votes = np.bincount(np.concatenate([training.a, training.b]), minlength=len(training.models))
    if (with_votes == 0).any():
        name = training.models[int((with_votes == 0).argmax())]
        raise DataError(
            f"the model {name!r} has no votes in the training part; add votes on it, drop it, or lower 'held_out'"
        )
    scale = len(training.prompts) / training.weight.sum()
    for votes in merged:
        votes.weight[:] *= scale
    return Split(merged[0], merged[1], merged[2], sides[0], sizes)
