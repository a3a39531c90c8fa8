"""How a leaderboard moves when prompts are left out: what its intervals are made of.

What is uncertain is which prompts were drawn. Each unit (a prompt, a group of prompts, or a block of them) is left out
once and the leaderboard is fitted to the others; what the fits differ by gives the variance (the jackknife: Tukey 1958;
Efron & Stein 1981, who show that it is not too small on average). As many fits as there are units take the place of
the hundreds of a bootstrap, each is a step or two of Newton's method from the optimum, and nothing is drawn at random.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np

from p2l_plugins.leaderboards.fit import cholesky_solve, fit, gradients, hessian, targets
from p2l_plugins.leaderboards.intervals import Errors, Intervals, intervals_of, logit, relative
from p2l_plugins.leaderboards.pair_means import PairMeans
from p2l_plugins.outcomes import Array, Family, Mask

_CELLS = 2**18  # pairs of models in the fits of one step: their matrices stay near the processor
_STEPS = 10  # of Newton's method with the Hessian of the optimum; what has not settled by then is fitted in full
_SETTLED = 0.05  # root mean square of a step, in that of the first ones, which is about the standard error
_MANY = 32  # units: the fit without one of so many is one step away, to some per cent of that step


@dataclass(frozen=True)
class Moves:
    """How a leaderboard moves when each of its units is left out.

    They are scaled by √((G − 1) / G) of G units, so that the squares over the units add up to a variance.

    Attributes:
        coefs: (B, M), a row for each block; 0 for a block without prompts.
        win_rate: (B, M), against the opponents.
        units: blocks with prompts.
    """

    coefs: Array
    win_rate: Array
    units: int

    def intervals(self, coefs: Array, win_rate: Array, apart: Mask) -> Intervals:
        """Of the leaderboard that moves.

        Args:
            coefs, win_rate: (M,) of it.
            apart: (M,) models that compare among themselves only, and stand after the others.
        """
        errors = Errors(
            coef=root_sum(self.coefs),
            centred=root_sum(relative(self.coefs, apart)),
            win_odds=root_sum(logit(win_rate + self.win_rate) - logit(win_rate)),
            win=root_sum(relative(self.win_rate, apart)),
        )
        return intervals_of(coefs, win_rate, errors, self.units, apart)


def root_sum(moves: Array) -> Array:
    """(M,) standard errors of moves (B, M)."""
    root: Array = np.sqrt((moves**2).sum(axis=0))
    return root


def left_out(means: PairMeans, coefs: Array, raw_eta: float | None, opponents: Array) -> Moves | None:
    """Leaves out each block with prompts.

    Args:
        means: with blocks.
        coefs, raw_eta: fitted to them.
        opponents: (M, M) weight of each opponent in each model's win rate.

    Returns:
        None where fewer than two blocks hold prompts.
    """
    used = np.flatnonzero(means.counts)
    if len(used) < 2:
        return None
    family, m = means.family, len(coefs)
    x = np.append(coefs, raw_eta) if raw_eta is not None else coefs
    factor = np.linalg.cholesky(hessian(family, x, *targets(family, means.win, means.tie, means.bad)))
    inverse = cholesky_solve(factor, np.eye(len(x)))
    solve = partial(_newton, family, x, inverse, 1 if len(used) >= _MANY else _STEPS)
    moved, rates = np.zeros((len(means.counts), m)), np.zeros((len(means.counts), m))
    scale = float(np.sqrt((len(used) - 1) / len(used)))
    win_rate = (means.win * opponents).sum(axis=1)
    step = max(1, _CELLS // (m * m))
    for start in range(0, len(used), step):
        rows = used[start : start + step]
        sums = means.without(rows)
        xs = solve(sums)[:, :m]
        if family != "grk":
            xs = xs - xs.mean(axis=1, keepdims=True)
        moved[rows] = scale * (xs - coefs)
        rates[rows] = scale * (np.einsum("rab,ab->ra", sums[0], opponents) - win_rate)
    return Moves(moved, rates, len(used))


def _newton(family: Family, x: Array, inverse: Array, steps: int, sums: tuple[Array, Array, Array]) -> Array:
    """Optima (R, P) of R fits to means `sums`, from x and the inverse of the Hessian there; one step is not checked."""
    m = sums[0].shape[1]
    aims = targets(family, *sums)
    xs = np.tile(x, (len(sums[0]), 1))
    left, settled = np.arange(len(xs)), np.inf
    for number in range(steps):
        own = aims if len(left) == len(xs) else [aim[left] for aim in aims]
        step = gradients(family, xs[left], *own) @ inverse
        if number == 0:
            settled = _SETTLED * float(np.sqrt((step[:, :m] ** 2).mean()))
        xs[left] -= np.clip(step, -10.0, 10.0)
        left = left[~(np.sqrt((step[:, :m] ** 2).mean(axis=1)) < settled)]  # NaN stays
        if not len(left) or steps == 1:
            break
    else:
        for i in left:
            near = xs[i] if np.isfinite(xs[i]).all() and np.abs(xs[i] - x).max() < 5.0 else x
            beta, raw = fit(family, sums[0][i], sums[1][i], sums[2][i], (near[:m], float(near[-1])))
            xs[i] = beta if raw is None else np.append(beta, raw)
    return xs
