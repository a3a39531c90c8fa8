"""Intervals of a leaderboard from standard errors, and tests of differences with a false discovery rate.

What is uncertain is which prompts were drawn: the intervals say how the leaderboard would vary with other prompts of
the same kind. They do not say how good the bundle's predictions are. `jackknife` gives the standard errors of predicted
leaderboards.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from p2l_plugins.outcomes import Array, Ids, Mask, sigmoid

LEVEL = 0.95
REPLICATES = 200


@dataclass(frozen=True)
class Replicates:
    """The leaderboard refitted to R resamples of the units.

    Attributes:
        coefs: (R, M); NaN where a resample holds no prompt.
        win_rate: (R, M) against the opponents.
        units: prompts, groups of prompts, or blocks of them that were drawn.
    """

    coefs: Array
    win_rate: Array
    units: int


@dataclass(frozen=True)
class Intervals:
    """Intervals of a leaderboard's figures over prompts, each (M,).

    Attributes:
        level: 0.95.
        units: what was drawn: prompts, groups, or blocks of them.
        stderr, win_stderr: of the coefficient and of the win rate, less the mean of the comparable models: what moves
            all models alike is left out.
        coef_low, coef_high: of the coefficient.
        win_low, win_high: of the win rate.
        rank_low, rank_high: best and worst rank; models whose intervals overlap share ranks. They compare the
            coefficient less the mean of the comparable models: that prompts are hard for all changes no rank.
    """

    level: float
    units: int
    stderr: Array
    win_stderr: Array
    coef_low: Array
    coef_high: Array
    win_low: Array
    win_high: Array
    rank_low: Ids
    rank_high: Ids


@dataclass(frozen=True)
class Difference:
    """How a leaderboard differs from another one, each (M,).

    Attributes:
        reference: what it is compared with.
        value: of the win rates, which are means over prompts: their difference less the mean of the comparable models,
            so that many ties on hard prompts make no model look weak; NaN for a model without opponents. Of the
            coefficients: their `interaction`.
        low, high: its interval; NaN where there is none.
        p_value: two-sided, of no difference.
        holds: where differences of several leaderboards were tested together: which ones are real, at a false
            discovery rate; None else.
    """

    reference: str
    value: Array
    low: Array
    high: Array
    p_value: Array
    holds: Mask | None = None


def relative(values: Array, apart: Mask) -> Array:
    """Coefficients or win rates (..., M) less the mean of the models that each can be compared with; apart: (M,)."""
    out = np.empty_like(values)
    for side in (apart, ~apart):
        own = values[..., side]
        there = np.isfinite(own)
        mean = np.where(there, own, 0.0).sum(axis=-1, keepdims=True) / np.maximum(there.sum(axis=-1, keepdims=True), 1)
        out[..., side] = own - mean
    return out


def intervals(coefs: Array, win_rate: Array, replicates: Replicates, apart: Mask) -> Intervals:
    """Estimate ± t · standard error, with as many degrees of freedom as units less one.

    Args:
        coefs, win_rate: (M,) of the leaderboard.
        replicates: of it.
        apart: (M,) models that compare among themselves only, and stand after the others.
    """
    units = replicates.units
    return intervals_of(
        coefs,
        win_rate,
        Errors(
            coef=standard_error(replicates.coefs, units),
            centred=standard_error(relative(replicates.coefs, apart), units),
            win_odds=standard_error(logit(replicates.win_rate), units),
            win=standard_error(relative(replicates.win_rate, apart), units),
        ),
        units,
        apart,
    )


@dataclass(frozen=True)
class Errors:
    """Standard errors of a leaderboard's figures, each (M,).

    Attributes:
        coef: of the coefficient; centred: less the mean of the comparable models.
        win_odds: of the log odds of the win rate.
        win: of the win rate less the mean of the comparable models.
    """

    coef: Array
    centred: Array
    win_odds: Array
    win: Array


def intervals_of(coefs: Array, win_rate: Array, errors: Errors, units: int, apart: Mask) -> Intervals:
    """Estimate ± t · standard error, with as many degrees of freedom as units less one.

    Args:
        coefs, win_rate: (M,) of the leaderboard.
        errors: of them.
        units: independent ones; two at least.
        apart: (M,) models that compare among themselves only, and stand after the others.
    """
    t = student_t_quantile(0.5 + LEVEL / 2, units - 1)
    # on the scale of log odds, where a rate near 0 or 1 varies as much to either side
    odds, spread_win = logit(win_rate), t * errors.win_odds
    with np.errstate(invalid="ignore"):  # NaN for a model without opponents
        win_low, win_high = sigmoid(odds - spread_win), sigmoid(odds + spread_win)
    centre = relative(coefs, apart)
    low, high = centre - t * errors.centred, centre + t * errors.centred
    same = apart[:, None] == apart[None, :]
    behind = np.where(apart, (~apart).sum(), 0)  # all grounded models stand before the ungrounded ones
    better = (same & (low[None, :] > high[:, None])).sum(axis=1)
    worse = (same & (high[None, :] < low[:, None])).sum(axis=1)
    return Intervals(
        level=LEVEL,
        units=units,
        stderr=errors.centred,
        win_stderr=errors.win,
        coef_low=coefs - t * errors.coef,
        coef_high=coefs + t * errors.coef,
        win_low=win_low,
        win_high=win_high,
        rank_low=behind + 1 + better,
        rank_high=behind + same.sum(axis=1) - worse,
    )


def difference(reference: str, value: Array, stderr: Array | None, units: int) -> Difference:
    """A difference (M,) with its interval and p-value from its standard error (M,)."""
    if stderr is None:
        unknown = np.full_like(value, np.nan)
        return Difference(reference, value, unknown, unknown, unknown)
    spread = student_t_quantile(0.5 + LEVEL / 2, units - 1) * stderr
    ratio = np.abs(value) / np.maximum(stderr, 1e-12)
    p_value = np.where(np.isnan(value), np.nan, 2 * student_t_tail(ratio, units - 1))
    return Difference(reference, value, value - spread, value + spread, p_value)


def standard_error(replicates: Array, units: int) -> Array:
    """(M,) of replicates (R, M); a bootstrap of G units underestimates a variance by (G − 1) / G."""
    there = ~np.isnan(replicates)
    n = there.sum(axis=0)
    centre = np.where(there, replicates, 0.0).sum(axis=0) / np.maximum(n, 1)
    squares = np.where(there, (replicates - centre) ** 2, 0.0).sum(axis=0)
    variance = np.where(n > 1, squares / np.maximum(n - 1, 1), np.nan) * units / (units - 1)
    spread: Array = np.sqrt(variance)
    return spread


def false_discovery(p_values: ArrayLike, rate: float = 0.05) -> Mask:
    """Which of the tests hold when at most `rate` of those that do may be false (Benjamini & Hochberg 1995).

    Args:
        p_values: any shape; NaN is no test.
        rate: false discovery rate.
    """
    p = np.asarray(p_values, np.float64)
    ordered = np.sort(p[~np.isnan(p)])
    passing = ordered[ordered <= rate * np.arange(1, len(ordered) + 1) / max(len(ordered), 1)]
    return p <= passing[-1] if len(passing) else np.zeros(p.shape, np.bool_)


def logit(share: Array) -> Array:
    """Log odds of shares; those of 0 and 1 are finite."""
    odds: Array = np.log(np.clip(share, 1e-12, None)) - np.log(np.clip(1.0 - share, 1e-12, None))
    return odds


def student_t_tail(t: ArrayLike, df: int) -> Array:
    """P(T > t) of Student's t for t ≥ 0: with T = √df tan θ, the density of θ is cos(θ)^(df − 1) up to its norm."""
    angle, tail = _t_table(df)
    return np.interp(np.arctan(np.asarray(t, np.float64) / math.sqrt(df)), angle, tail)


def student_t_quantile(p: float, df: int) -> float:
    """The t that T stays below with probability p ≥ 0.5."""
    angle, tail = _t_table(df)
    return math.sqrt(df) * math.tan(float(np.interp(p - 1.0, -tail, angle)))


def _t_table(df: int) -> tuple[Array, Array]:
    """θ from 0 to π/2 and P(T > √df tan θ), by the trapezoid rule from the far end."""
    angle = np.linspace(0.0, math.pi / 2, 20001)
    density = np.cos(angle) ** (df - 1)
    steps = 0.5 * (density[1:] + density[:-1])
    tail = np.append(np.cumsum(steps[::-1])[::-1], 0.0)
    return angle, 0.5 * tail / tail[0]


def opponent_weights(
    models: tuple[str, ...], ungrounded: frozenset[str], opponents: Mapping[str, float] | None = None
) -> Array:
    """(M, M) weight of each opponent in each model's win rate: rows sum to 1, or hold NaN where there is no opponent.

    Args:
        models: names.
        ungrounded: compare among themselves only.
        opponents: weight of each; default: all models alike. A model is no opponent of itself.
    """
    apart = np.array([name in ungrounded for name in models])
    comparable = (apart[:, None] == apart[None, :]) & ~np.eye(len(models), dtype=bool)
    q = np.array([1.0 if opponents is None else opponents.get(name, 0.0) for name in models])
    weights = comparable * q
    total = weights.sum(axis=1, keepdims=True)
    # a model alone in its group has always had the win rate 0; one without a chosen opponent has none
    return np.where(total > 0, weights / np.maximum(total, 1e-300), 0.0 if opponents is None else np.nan)
