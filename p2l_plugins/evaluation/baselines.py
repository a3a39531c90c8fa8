"""Forecasts that see no prompt text: constant, marginal and per-category marginal. NumPy only.

All are fitted on other votes than those they are judged on: on baseline votes, or cross-fitted in five folds by prompt.

A category's fit is shrunk to the whole: the votes of all categories are added to its own with a small weight, worth 10
observations per model (a power prior, Ibrahim & Chen 2000: the likelihood of the whole, raised to a small power). A
category without votes gets the overall fit, a large one its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from p2l_plugins.leaderboards.fit import fit
from p2l_plugins.outcomes import BAD, OUTCOMES, TIE, A, Array, B, Family, Ids, has_eta
from p2l_plugins.votes.votes import Votes

FOLDS = 5
RIDGE = 0.1  # as in `fit_marginal`
#: Observations per model that the whole counts for in a category: votes of the marginal, prompts of a best model.
PRIOR = 10.0

Coefs = tuple[Array, Array | None]


@dataclass(frozen=True)
class Parts:
    """Which prompts are judged by a fit on which: part k is judged by a fit on the source without part k.

    Attributes:
        count: number of parts.
        judged: (P,) part of each judged prompt.
        source: (S,) part of each source prompt; −1 belongs to every fit.
        judged_group, source_group: (P,), (S,) index of each prompt's category among those of the source; −1: unknown.
        groups: number of categories in the source.
    """

    count: int
    judged: Ids
    source: Ids
    judged_group: Ids
    source_group: Ids
    groups: int

    @classmethod
    def of(cls, judged: Sequence[str], source: Sequence[str] | None = None) -> Parts:
        """From the categories of the judged prompts and of the baseline's; without a baseline five random folds."""
        index = {name: i for i, name in enumerate(sorted(set(judged if source is None else source)))}
        group = np.array([index.get(name, -1) for name in judged], np.int64)
        if source is None:
            fold = np.random.default_rng(0).permutation(len(judged)) % FOLDS
            return cls(min(FOLDS, len(judged)), fold, fold, group, group, len(index))
        other = np.array([index[name] for name in source], np.int64)
        return cls(1, np.zeros(len(judged), np.int64), np.full(len(other), -1), group, other, len(index))

    @property
    def crossed(self) -> bool:
        """Whether the source is what is judged, so that each part is left out of its own fit."""
        return bool((self.source >= 0).any())

    @property
    def categories(self) -> bool:
        """Whether there are two categories at least, so that fits per category differ from the overall one."""
        return self.groups > 1


@dataclass(frozen=True)
class Forecasts:
    """Forecasts that see no prompt text, one row per judged prompt.

    Attributes:
        constant: (P, 4) log-probabilities of the outcomes, both sides alike.
        marginal: coefficients (P, M), and raw_eta (P,) or None.
        category: the same per category; None where there is one category only.
    """

    constant: Array
    marginal: Coefs
    category: Coefs | None


def fit_forecasts(parts: Parts, source: Votes, family: Family) -> Forecasts:
    """Constant, marginal and per-category marginal.

    The marginal is that of `marginal.fit_marginal`. The constant gives each outcome its frequency, with half a vote
    more for each (Jeffreys' prior), so that none is impossible.

    Args:
        source: votes to fit on, with the bundle's models.
    """
    n, m = len(parts.judged), len(source.models)
    used = np.unique(np.concatenate([source.a, source.b]))  # fits among the models that have votes
    position = np.zeros(m, np.int64)
    position[used] = np.arange(used.size)
    seen = np.zeros((len(source.prompts), used.size), np.bool_)
    seen[source.prompt, position[source.a]] = seen[source.prompt, position[source.b]] = True
    # a prompt whose votes compare k models is worth k − 1 independent comparisons, however many pairs it has
    per_prompt = np.maximum(seen.sum(axis=1) - 1, 0)
    cell = position[source.a] * used.size + position[source.b]
    own = _counts(source, slice(None), cell, parts, used.size)
    start = (np.zeros(used.size), 20.0 if family == "rk" else 0.0)
    constant = np.empty((n, len(OUTCOMES)))
    beta, eta = np.zeros((n, m)), np.zeros(n)
    overall, factor, starts = [], [], []
    for k in range(parts.count):
        counts = own.sum(axis=0) - own[k] * parts.crossed
        fitted = _fit(counts, family, start)
        rows = parts.judged == k
        constant[rows] = _constant(counts, family)
        beta[np.ix_(rows, used)], eta[rows] = fitted
        information = float(per_prompt[parts.source != k].sum())
        overall.append(counts)
        starts.append(fitted)
        factor.append(min(1.0, PRIOR * max(used.size - 1, 1) / information) if information else 1.0)
    none = not has_eta(family)
    marginal = (beta, None if none else eta)
    if not parts.categories:
        return Forecasts(constant, marginal, None)
    category_beta, category_eta = beta.copy(), eta.copy()
    by_group = np.argsort(parts.source_group[source.prompt], kind="stable")
    ends = np.searchsorted(parts.source_group[source.prompt][by_group], np.arange(parts.groups + 1))
    for g in range(parts.groups):
        votes = by_group[ends[g] : ends[g + 1]]
        own = _counts(source, votes, cell, parts, used.size)
        for k in range(parts.count):
            rows = (parts.judged == k) & (parts.judged_group == g)
            if rows.any():
                counts = own.sum(axis=0) - own[k] * parts.crossed + factor[k] * overall[k]
                category_beta[np.ix_(rows, used)], category_eta[rows] = _fit(counts, family, starts[k])
    return Forecasts(constant, marginal, (category_beta, None if none else category_eta))


def _counts(votes: Votes, chosen: Ids | slice, cell: Ids, parts: Parts, m: int) -> Array:
    """(parts, outcomes, m, m) weight of the chosen votes by part of their prompt, outcome and pair (a, b)."""
    part = np.maximum(parts.source[votes.prompt[chosen]], 0)
    key = (part * len(OUTCOMES) + votes.outcome[chosen]) * (m * m) + cell[chosen]
    shape = (parts.count, len(OUTCOMES), m, m)
    counts = np.bincount(key, votes.weight[chosen], minlength=int(np.prod(shape)))
    return counts.astype(np.float64).reshape(shape)


def _fit(counts: Array, family: Family, start: tuple[Array, float | None]) -> tuple[Array, float]:
    """Coefficients and raw_eta (0 for families without) of counts (outcomes, m, m); `start` where there are none."""
    first = (start[0], start[1] or 0.0)
    if not counts.any():
        return first
    win = counts[A] + counts[B].T
    tie, bad = counts[TIE] + counts[TIE].T, counts[BAD] + counts[BAD].T
    coefs, raw_eta = fit(family, win, tie, bad, first, RIDGE)
    return coefs, raw_eta or 0.0


def _constant(counts: Array, family: Family) -> Array:
    """(4,) log frequencies of the outcomes, −∞ for those that the family does not have."""
    if not has_eta(family):
        return np.array([np.log(0.5), np.log(0.5), -np.inf, -np.inf])
    a, b, tie, bad = counts.sum(axis=(1, 2)) + 0.5
    rows = [a + b, a + b, 2 * tie, 2 * bad] if family == "grk" else [a + b, a + b, 2 * (tie + bad), 0.0]
    with np.errstate(divide="ignore"):
        logs: Array = np.log(np.array(rows) / (2 * (a + b + tie + bad)))
    return logs
