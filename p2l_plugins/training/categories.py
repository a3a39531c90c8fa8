"""What the training knows of its prompts' categories: their labels, and the leaderboard of each category."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from p2l_plugins.evaluation.baselines import Parts, fit_forecasts
from p2l_plugins.outcomes import Array, Family
from p2l_plugins.training.data import Votes


@dataclass(frozen=True)
class Categories:
    """Categories of the training prompts, those of each file apart; a file without categories is one category.

    Attributes:
        of_prompt: (P,) index of each prompt's category.
        names: (C) category, with the number of its file.
        coefs: (C, M) the category's leaderboard, shrunk to that of its file.
        raw_eta: (C,) the category's ties, for `rk` and `grk`; else 0.
        known: (C, M) whether the file has the model.
        prior: (C,) weight κ of the pull towards the category's leaderboard.
    """

    of_prompt: NDArray[np.int64]
    names: tuple[str, ...]
    coefs: Array
    raw_eta: Array
    known: NDArray[np.bool_]
    prior: Array


def find_categories(
    sources: Sequence[Votes], priors: Sequence[float], models: Sequence[str], family: Family
) -> Categories:
    """The categories of the sources' prompts, in the order of `merge`, over the given models; `priors` per source."""
    names: list[str] = []
    of_prompt, coefs, raw_eta, known, prior = [], [], [], [], []
    for number, (part, kappa) in enumerate(zip(sources, priors, strict=True)):
        if not part.prompts:
            continue
        column = [models.index(name) for name in part.models]
        fitted = fit_forecasts(Parts.of(part.groups, part.groups), part, family)
        beta, eta = fitted.category or fitted.marginal
        groups, first, index = np.unique(part.groups, return_index=True, return_inverse=True)
        of_prompt.append(index + len(names))
        names += [f"{number}/{group}" for group in groups]
        rows = np.zeros((len(groups), len(models)))
        rows[:, column] = beta[first]
        coefs.append(rows)
        raw_eta.append(np.zeros(len(groups)) if eta is None else eta[first])
        mask = np.zeros((len(groups), len(models)), np.bool_)
        mask[:, column] = True
        known.append(mask)
        prior.append(np.full(len(groups), kappa))
    return Categories(
        np.concatenate(of_prompt),
        tuple(names),
        np.concatenate(coefs),
        np.concatenate(raw_eta),
        np.concatenate(known),
        np.concatenate(prior),
    )
