"""Who can be chosen on a score matrix, and what other prompts say about them. NumPy only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from p2l_plugins.errors import DataError
from p2l_plugins.evaluation.baselines import PRIOR, Parts
from p2l_plugins.outcomes import Array, Ids, Mask

COVERAGE = 0.9


@dataclass(frozen=True)
class Choices:
    """A score matrix cut to the models that ran on nearly all prompts, and to the prompts that one of them ran on.

    Attributes:
        columns: (C,) index of each candidate.
        rows: (P,) True for the prompts that are kept, p of them.
        scores: (p, C), NaN where not run.
        single, category: (p, C) how good each is overall and in the prompt's category, seen from other prompts.
    """

    columns: Ids
    rows: Mask
    scores: Array
    single: Array
    category: Array | None

    @classmethod
    def of(cls, scores: Array, source: Array, parts: Parts, allowed: Mask | None = None) -> Choices:
        """From scores (P, M) and those of the prompts that best single models are chosen on, (S, M).

        Args:
            allowed: (M,) models that can be candidates; all when None.

        Raises:
            DataError: fewer than two candidates.
        """
        columns = candidates(scores if allowed is None else np.where(allowed, scores, np.nan))
        some = scores[:, columns]
        known = ~np.isnan(some)
        rows = np.asarray(known.any(axis=1))
        single, category = model_values(parts, source[:, columns], known)
        return cls(columns, rows, some[rows], single[rows], None if category is None else category[rows])

    def cut(self, matrix: Array) -> Array:
        """(p, C) of (P, M)."""
        part: Array = matrix[np.ix_(self.rows, self.columns)]
        return part


def candidates(scores: Array, coverage: float = COVERAGE) -> Ids:
    """Columns of scores (P, M) that hold a number for at least the share `coverage` of the prompts.

    Raises:
        DataError: fewer than two.
    """
    ran = (~np.isnan(scores)).mean(axis=0)
    found = np.flatnonzero(ran >= coverage)
    if found.size < 2:
        raise DataError(
            f"routing needs two models at least that ran on {coverage:.0%} of the prompts of the score matrix; "
            f"{found.size} did"
        )
    return found


def model_values(parts: Parts, scores: Array, ran: Mask, prior: float = PRIOR) -> tuple[Array, Array | None]:
    """How good each model is overall and in the prompt's category, for each judged prompt: (P, M) each.

    A value is the mean of score − the prompt's mean score over the models, so that a model that ran on the easier
    prompts gains nothing. In a category, the overall value counts as `prior` prompts.

    Args:
        scores: (S, M) of the source, NaN where not run.
        ran: (P, M) models that can be chosen for each judged prompt; others get −∞.
    """
    known = ~np.isnan(scores)
    centred = np.where(known, scores, 0.0)
    centred = np.where(known, centred - centred.sum(1, keepdims=True) / np.maximum(known.sum(1, keepdims=True), 1), 0.0)
    single = np.full(ran.shape, -np.inf)
    category = np.full(ran.shape, -np.inf)
    for k in range(parts.count):
        use = parts.source != k
        total, count = centred[use].sum(axis=0), known[use].sum(axis=0)
        # nothing is known of a model without scores: after all others, in the order of the columns
        mean = np.where(count > 0, total / np.maximum(count, 1), -1e9)
        single[parts.judged == k] = mean
        for g in np.unique(parts.judged_group[parts.judged == k]):
            rows = (parts.judged == k) & (parts.judged_group == g)
            here = use & (parts.source_group == g)
            category[rows] = (centred[here].sum(axis=0) + prior * mean) / (known[here].sum(axis=0) + prior)
    single, category = np.where(ran, single, -np.inf), np.where(ran, category, -np.inf)
    return single, category if parts.categories else None
