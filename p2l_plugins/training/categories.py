"""What the training knows of its prompts' categories: their labels, and the leaderboard of each category."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from p2l_plugins.evaluation.baselines import Parts, fit_forecasts
from p2l_plugins.outcomes import Array, Family
from p2l_plugins.training.marginal import align
from p2l_plugins.votes.votes import Votes


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
        unseen: (C, M) whether the file lacks the model, but other files tell how it compares with the file's models.
        unseen_coefs: (C, M) where `unseen`, the coefficient that they suggest, on the scale of `coefs`.
    """

    of_prompt: NDArray[np.int64]
    names: tuple[str, ...]
    coefs: Array
    raw_eta: Array
    known: NDArray[np.bool_]
    prior: Array
    unseen: NDArray[np.bool_]
    unseen_coefs: Array


def find_categories(
    sources: Sequence[Votes], priors: Sequence[float], models: Sequence[str], family: Family
) -> Categories:
    """The categories of the sources' prompts, in the order of `merge`, over the given models; `priors` per source."""
    names: list[str] = []
    of_prompt, coefs, raw_eta, known, prior = [], [], [], [], []
    columns, marginals, sizes = [], [], []
    for number, (part, kappa) in enumerate(zip(sources, priors, strict=True)):
        if not part.prompts:
            continue
        column = np.array([models.index(name) for name in part.models])
        fitted = fit_forecasts(Parts.of(part.groups, part.groups), part, family)
        beta, eta = fitted.category or fitted.marginal
        columns.append(column)
        marginals.append(fitted.marginal[0][0])
        sizes.append(float(len(part.prompts)))
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
    table, seen = np.concatenate(coefs), np.concatenate(known)
    unseen, unseen_coefs = _unseen(table, seen, columns, marginals, sizes)
    return Categories(
        np.concatenate(of_prompt),
        tuple(names),
        table,
        np.concatenate(raw_eta),
        seen,
        np.concatenate(prior),
        unseen,
        unseen_coefs,
    )


def _unseen(
    coefs: Array,
    known: NDArray[np.bool_],
    columns: Sequence[NDArray[np.int64]],
    marginals: Sequence[Array],
    sizes: Sequence[float],
) -> tuple[NDArray[np.bool_], Array]:
    """What other files say of the models that a category's file lacks: (C, M) whether they do, and (C, M) coefficients.

    A model stands as far from the mean of the file's models as on the files' common scale.
    """
    common, component = align(columns, marginals, sizes)
    aligned, group = np.zeros(known.shape[1]), np.full(known.shape[1], -1)
    aligned[: len(common)], group[: len(common)] = common, component
    own = group[known.argmax(axis=1)]
    unseen = ~known & (group == own[:, None])
    n = known.sum(axis=1, keepdims=True)
    shift = ((coefs - aligned) * known).sum(axis=1, keepdims=True) / n
    return unseen, np.where(unseen, aligned + shift, 0.0)
