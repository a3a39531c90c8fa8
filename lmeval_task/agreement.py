"""Measured against predicted, prompt by prompt: AUC and Spearman's correlation with bootstrap intervals over prompts.

AUC is P(a prompt that the model solved has the higher prediction than one that it failed), equal predictions counting
half (Hanley & McNeil 1982). A prompt is solved where its score is the higher one of two, or, where scores are graded,
at least 0.5, as elsewhere in this package. Spearman's correlation is Pearson's of the ranks, equal values sharing their
mean rank. A resample of prompts is a vector of counts, so both are computed for all resamples at once from one sorting.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from p2l_plugins.outcomes import Array, Mask

RESAMPLES = 1000
USABLE = 0.5
_CELLS = 1_000_000  # resamples × prompts in memory at once
_DEFINED = 0.8  # share of the resamples in which a figure must be defined for its interval to mean anything


@dataclass(frozen=True, slots=True)
class Figure:
    """A statistic with its bootstrap standard error and 95 % interval; None where it is not defined."""

    value: float | None
    stderr: float | None = None
    low: float | None = None
    high: float | None = None


UNDEFINED = Figure(None)


@dataclass(frozen=True, slots=True)
class Agreement:
    """How well predictions order the prompts by their scores.

    Attributes:
        n: prompts.
        predicted, measured: means.
        auc: undefined where all prompts are solved or none, and for graded scores outside of [0, 1].
        spearman: undefined where all predictions or all scores are equal.
    """

    n: int
    predicted: float
    measured: float
    auc: Figure
    spearman: Figure


def agreement(predicted: Array, score: Array, lower_is_better: bool = False) -> Agreement:
    """Agreement of N predictions with N scores.

    Args:
        predicted: (N,) a higher one says a better answer.
        score: (N,) what was measured.
        lower_is_better: of the score.
    """
    order = np.lexsort((score, predicted))  # several ranks bring the prompts in another order
    x, y = predicted[order].astype(np.float64), score[order].astype(np.float64)
    return _agreement(x.tobytes(), y.tobytes(), lower_is_better)


@lru_cache(maxsize=16)  # the rows of one metric ask for the same one after another
def _agreement(predicted: bytes, score: bytes, lower_is_better: bool) -> Agreement:
    x, y = np.frombuffer(predicted), np.frombuffer(score)
    better = -y if lower_is_better else y
    solved = solved_prompts(better)
    whole = np.ones((1, x.size))
    auc = None if solved is None else float(auc_of(x, solved, whole)[0])
    rho = float(spearman_of(x, better, whole)[0])
    aucs, rhos = [], []
    rng = np.random.default_rng(0)
    for _ in range(0, RESAMPLES, step := max(1, min(RESAMPLES, _CELLS // x.size))):
        counts = rng.multinomial(x.size, np.full(x.size, 1 / x.size), size=step).astype(np.float64)
        rhos.append(spearman_of(x, better, counts))
        if solved is not None:
            aucs.append(auc_of(x, solved, counts))
    return Agreement(
        x.size,
        float(x.mean()),
        float(y.mean()),
        UNDEFINED if auc is None else _figure(auc, np.concatenate(aucs)),
        _figure(rho, np.concatenate(rhos)),
    )


def _figure(value: float, resampled: Array) -> Figure:
    if np.isnan(value):
        return UNDEFINED
    defined = resampled[~np.isnan(resampled)]
    if defined.size < _DEFINED * resampled.size:
        return Figure(value)
    low, high = np.quantile(defined, [0.025, 0.975])
    if defined.min() == defined.max():  # as for a perfect order of few prompts: the resamples say nothing of the error
        return Figure(value)
    return Figure(value, float(defined.std(ddof=1)), float(low), float(high))


def solved_prompts(score: Array) -> Mask | None:
    """(N,) which prompts were solved; None where scores (higher is better) do not say, or all are alike."""
    values = np.unique(score)
    if values.size == 2:
        return np.asarray(score == values[1])
    if values.size < 2 or values[0] < 0 or values[-1] > 1:
        return None
    solved = score >= USABLE
    return None if solved.all() or not solved.any() else np.asarray(solved)


def auc_of(predicted: Array, solved: Mask, counts: Array) -> Array:
    """(B,) AUC of each resample; NaN where it holds solved or failed prompts only.

    Args:
        predicted: (N,).
        solved: (N,).
        counts: (B, N) how often each prompt is in the resample.
    """
    starts, order = _groups(predicted)
    sorted_counts = counts[:, order]
    good = np.add.reduceat(sorted_counts * solved[order], starts, axis=1)
    bad = np.add.reduceat(sorted_counts * ~solved[order], starts, axis=1)
    below = np.cumsum(bad, axis=1) - bad
    total = good.sum(axis=1) * bad.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        aucs: Array = np.where(total > 0, (good * (below + 0.5 * bad)).sum(axis=1) / total, np.nan)
    return aucs


def spearman_of(x: Array, y: Array, counts: Array) -> Array:
    """(B,) Spearman's correlation in each resample; NaN where one side is constant. Arguments as `auc_of`."""
    total = counts.sum(axis=1, keepdims=True)
    deviations = []
    for values in (x, y):
        ranks = _ranks(values, counts)
        deviations.append(ranks - (counts * ranks).sum(axis=1, keepdims=True) / total)
    dx, dy = deviations
    variance = (counts * dx * dx).sum(axis=1) * (counts * dy * dy).sum(axis=1)
    # equal values share a rank exactly, so that what is left of a constant side is rounding
    constant = variance <= (1e-12 * total[:, 0] ** 3) ** 2
    with np.errstate(invalid="ignore", divide="ignore"):
        rhos: Array = np.where(constant, np.nan, (counts * dx * dy).sum(axis=1) / np.sqrt(variance))
    return rhos


def _ranks(values: Array, counts: Array) -> Array:
    """(B, N) rank of each value in its resample, equal values sharing their mean rank."""
    starts, order = _groups(values)
    size = np.add.reduceat(counts[:, order], starts, axis=1)
    mean_rank = np.cumsum(size, axis=1) - 0.5 * (size - 1)
    group = np.repeat(np.arange(starts.size), np.diff(np.append(starts, values.size)))
    ranks = np.empty(counts.shape)
    ranks[:, order] = mean_rank[:, group]
    return ranks


def _groups(values: Array) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Starts of the groups of equal values in the sorted order, and that order."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    return np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1])), order
