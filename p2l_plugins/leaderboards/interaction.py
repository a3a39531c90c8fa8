"""Who is better on some prompts than their peers: what is left of a board without levels and its own scale."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from p2l_plugins.leaderboards.intervals import Difference, difference, false_discovery, relative
from p2l_plugins.leaderboards.jackknife import Moves, root_sum
from p2l_plugins.outcomes import Array, Mask

#: Share of the marked interactions that may be false.
FALSE_DISCOVERIES = 0.05

#: Models from which on the line may bend.
CURVED = 30


def interaction(coefs: Array, overall: Array, apart: Mask) -> Array:
    """A model's coefficient on some prompts less what its overall coefficient predicts for these prompts.

    With x the overall coefficients and y those on the prompts, each less the mean of the comparable models, it is
    y − b x with b = Σ x y / Σ x²: the residual of the line that is fitted to all models (the column-linear model of a
    two-way table: Mandel 1961, JASA 56, 878–888). The mean takes out that prompts are easy or hard for all, the slope
    that they tell all models further apart, or less far, than others do. With 30 models or more the line may bend: the
    residual is taken from y = b x + c x², because prompts may tell strong models apart otherwise than weak ones, and
    all strong models would seem to do better or worse. So it is positive for who is better here than their peers, not
    for who is good.

    Args:
        coefs: (..., M) on the prompts.
        overall: (..., M) on all prompts.
        apart: (M,) models that compare among themselves only: they have their own means and share b and c.

    Returns:
        (..., M), in log-odds; 0 where all models are level, or where there are fewer than three.
    """
    x, y = relative(overall, apart), relative(coefs, apart)
    left = _without(y, x)
    return left if len(apart) < CURVED else _without(left, _without(relative(x * x, apart), x))


def _without(y: Array, x: Array) -> Array:
    """What y (..., M) has not in common with x (..., M), by least squares."""
    squares = (x * x).sum(axis=-1, keepdims=True)
    left: Array = y - (x * y).sum(axis=-1, keepdims=True) / np.where(squares > 0, squares, 1.0) * x
    return left


def with_error(
    reference: str, coefs: tuple[Array, Moves | None], overall: tuple[Array, Moves | None], apart: Mask
) -> Difference:
    """The interaction with its interval and p-value, as a `Difference`.

    Args:
        reference: name of the overall leaderboard.
        coefs: (M,) on the prompts, and how they move.
        overall: (M,) on all prompts, and how they move when the same blocks are left out; None: they are known.
        apart: (M,) models that compare among themselves only.
    """
    value = interaction(coefs[0], overall[0], apart)
    if coefs[1] is None:
        return difference(reference, value, None, 0)
    wide = 0.0 if overall[1] is None else overall[1].coefs
    moved = interaction(coefs[0] + coefs[1].coefs, overall[0] + wide, apart)
    return difference(reference, value, root_sum(moved - value), coefs[1].units)


def of_other_units(one: Moves | None, other: Moves | None) -> tuple[Moves | None, Moves | None]:
    """The moves of two leaderboards without a common unit, in rows of their own: where one moves, the other stays."""
    if one is None or other is None:
        return one, None
    still = np.zeros_like(one.coefs), np.zeros_like(other.coefs)
    first = replace(one, coefs=np.vstack([one.coefs, still[1]]), win_rate=np.vstack([one.win_rate, still[1]]))
    second = replace(other, coefs=np.vstack([still[0], other.coefs]), win_rate=np.vstack([still[0], other.win_rate]))
    return first, second


def marked(found: dict[str, Difference]) -> dict[str, Difference]:
    """The same, with which of them all are real at a false discovery rate of 5 % (Benjamini & Hochberg 1995)."""
    if not found:
        return {}
    tests = [one.p_value for one in found.values()]
    ends = np.cumsum([len(test) for test in tests])[:-1]
    holding = np.split(false_discovery(np.concatenate(tests), FALSE_DISCOVERIES), ends)
    return {name: replace(one, holds=holds) for (name, one), holds in zip(found.items(), holding, strict=True)}
