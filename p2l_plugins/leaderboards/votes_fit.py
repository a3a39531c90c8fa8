"""One outcome model fitted to votes by maximum likelihood, and how far it can be trusted.

Standard errors do not trust the model: the sandwich H⁻¹ S H⁻¹ (Huber 1967; White 1982), where S sums the outer products
of the scores. LMArena's arena-rank gives its intervals so, each vote for itself; here the votes on one prompt are added
up first (Liang & Zeger 1986), because they are not independent.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from p2l_plugins.leaderboards.fit import fit, hessian, targets
from p2l_plugins.leaderboards.intervals import REPLICATES, Errors, Replicates
from p2l_plugins.outcomes import BAD, TIE, A, Array, B, Family, Mask, has_eta, nll_gradients, win_matrix
from p2l_plugins.votes.votes import Votes

#: Weight of ½ ridge Σβ² where a model only won or only lost: its coefficient would be infinite.
RIDGE = 0.1

#: Prompts whose scores are in memory at once.
_STEP = 2**14


def pair_counts(votes: Votes, weight: Array | None = None) -> tuple[Array, Array, Array]:
    """(win, tie, bad), each (M, M): weights of "a beats b", and the symmetric ones of the two ties.

    Args:
        votes: of M models.
        weight: (V,) in place of their own.
    """
    m, own = len(votes.models), votes.weight if weight is None else weight

    def summed(first: Any, second: Any, rows: Mask) -> Array:
        flat = np.bincount(first[rows] * m + second[rows], own[rows], minlength=m * m)
        return flat.reshape(m, m).astype(np.float64)

    win = summed(votes.a, votes.b, votes.outcome == A) + summed(votes.b, votes.a, votes.outcome == B)
    tie, bad = (summed(votes.a, votes.b, votes.outcome == kind) for kind in (TIE, BAD))
    return win, tie + tie.T, bad + bad.T


def one_sided(family: Family, win: Array, tie: Array, bad: Array) -> Mask:
    """(M,) models whose coefficient has no finite maximum likelihood.

    It is finite where from every model a chain of wins leads to every other one, ties counting both ways (Ford 1957);
    the ground of `grk` is beaten by an answer that is better or as good as another, and beats those that are bad. Else
    these are all models but those of the largest set that has such chains.
    """
    m = len(win)
    above = (win + tie + (0.0 if family == "grk" else bad)) > 0
    if family == "grk":
        usable = (win.sum(axis=1) + tie.sum(axis=1)) > 0
        above = np.block([[above, usable[:, None]], [(bad.sum(axis=1) > 0)[None, :], np.zeros((1, 1), bool)]])
    reach = above | np.eye(len(above), dtype=bool)
    for _ in range(len(above).bit_length()):
        reach = (reach.astype(np.float32) @ reach.astype(np.float32)) > 0
    mutual = reach & reach.T
    anchor = mutual[m] if family == "grk" else mutual[int(mutual.sum(axis=1).argmax())]
    alone: Mask = ~anchor[:m]
    return alone


@dataclass(frozen=True)
class VotesFit:
    """An optimum: x (P,) are the coefficients and, for `rk` and `grk`, raw_eta."""

    family: Family
    x: Array
    ridge: float
    one_sided: Mask
    sums: tuple[Array, Array, Array]

    @property
    def coefs(self) -> Array:
        """(M,)."""
        return self.x[: len(self.one_sided)]

    @property
    def raw_eta(self) -> float | None:
        """None for families without one."""
        return float(self.x[-1]) if has_eta(self.family) else None

    def win_rate(self, x: Array, opponents: Array) -> Array:
        """(M,) at other parameters, too."""
        m = len(self.one_sided)
        raw = np.float64(x[m]) if has_eta(self.family) else None
        rate: Array = (win_matrix(self.family, x[:m], raw) * opponents).sum(axis=1)
        return rate

    def bread(self) -> Array:
        """H⁻¹ (P, P); nothing where the votes do not tell: without ties, `raw_eta` counts as known."""
        h = hessian(self.family, self.x, *targets(self.family, *self.sums))
        m = len(self.one_sided)
        h[np.arange(m), np.arange(m)] += self.ridge
        inverse = np.zeros_like(h)
        known = m if self.sums[1].sum() + (self.sums[2].sum() if self.family == "rk" else 0.0) <= 0 else len(h)
        inverse[:known, :known] = np.linalg.pinv(h[:known, :known], hermitian=True)
        if self.family != "grk":  # of coefficients whose mean is 0
            inverse[:m] -= inverse[:m].mean(axis=0)
            inverse[:, :m] -= inverse[:, :m].mean(axis=1, keepdims=True)
        return inverse

    def slopes(self, opponents: Array) -> Array:
        """(M, P) derivatives of the win rates, by central differences."""
        step = 1e-5
        up, down = (
            np.stack([self.win_rate(self.x + side * step * unit, opponents) for unit in np.eye(len(self.x))], axis=1)
            for side in (1, -1)
        )
        return (up - down) / (2 * step)


def fitted(family: Family, sums: tuple[Array, Array, Array], start: tuple[Array, float] | None = None) -> VotesFit:
    """The fit to the sums of `pair_counts`, from coefficients and a `raw_eta`, where given."""
    lone = one_sided(family, *sums)
    ridge = RIDGE if lone.any() else 0.0
    coefs, raw = fit(family, *sums, start or (np.zeros(len(lone)), 20.0 if family == "rk" else 0.0), ridge)
    return VotesFit(family, coefs if raw is None else np.append(coefs, raw), ridge, lone, sums)


def scores_of(votes: Votes, found: VotesFit, step: int = _STEP) -> Iterator[Array]:
    """Gradients of the loss, summed over the votes of each prompt: (n, P) for `step` prompts at a time."""
    m, size = len(votes.models), len(found.x)
    eta = None if found.raw_eta is None else np.full(len(votes), found.raw_eta)
    _, d_a, d_b, d_eta = nll_gradients(found.family, found.coefs[votes.a], found.coefs[votes.b], votes.outcome, eta)
    for start in range(0, len(votes.prompts), step):
        stop = min(start + step, len(votes.prompts))
        v = slice(*np.searchsorted(votes.prompt, [start, stop]))
        row = (votes.prompt[v] - start) * size
        sums = np.zeros((stop - start) * size)
        for column, slope in ((votes.a[v], d_a[v]), (votes.b[v], d_b[v])):
            sums += np.bincount(row + column, slope * votes.weight[v], minlength=len(sums))
        if size > m:
            sums += np.bincount(row + m, d_eta[v] * votes.weight[v], minlength=len(sums))
        yield sums.reshape(-1, size)


def covariance(votes: Votes, family: Family, clusters: bool = True) -> tuple[Array, Array]:
    """Maximum-likelihood parameters (P,) and their sandwich covariance (P, P), without a correction for small samples.

    Args:
        votes: in the order of their prompts; of connected models.
        family: outcome model.
        clusters: votes on one prompt count as one unit; else each vote is one, as in arena-rank.
    """
    found = fitted(family, pair_counts(votes))
    if not clusters:
        votes = replace(votes, prompt=np.arange(len(votes)), prompts=[("",)] * len(votes), groups=[""] * len(votes))
    return found.x, _spread(votes, found)


def _spread(votes: Votes, found: VotesFit) -> Array:
    bread = found.bread()
    meat = sum((s.T @ s for s in scores_of(votes, found)), np.zeros_like(bread))
    return bread @ meat @ bread


def sandwich(votes: Votes, found: VotesFit, opponents: Array, units: int) -> Errors:
    """Standard errors, with the factor G / (G − 1) of G units."""
    m = len(found.coefs)
    spread = _spread(votes, found) * (units / (units - 1))
    centre = np.eye(m) - 1.0 / m
    slopes = found.slopes(opponents)
    rate = found.win_rate(found.x, opponents)
    win, centred_win = slopes @ spread @ slopes.T, (centre @ slopes) @ spread @ (centre @ slopes).T
    with np.errstate(divide="ignore", invalid="ignore"):  # a rate of 0 or 1
        odds = np.sqrt(np.diag(win).clip(0)) / (rate * (1 - rate))
    return Errors(
        coef=np.sqrt(np.diag(spread)[:m].clip(0)),
        centred=np.sqrt(np.diag(centre @ spread[:m, :m] @ centre).clip(0)),
        win_odds=odds,
        win=np.sqrt(np.diag(centred_win).clip(0)),
    )


def bootstrap(votes: Votes, found: VotesFit, opponents: Array, used: Any, seed: int) -> Replicates:
    """The leaderboard of resampled prompts, each drawn with all its votes."""
    random, m = np.random.default_rng(seed), len(found.coefs)
    coefs, rates = np.empty((REPLICATES, m)), np.empty((REPLICATES, m))
    times = np.zeros(len(votes.prompts))
    for r in range(REPLICATES):
        times[used] = random.multinomial(len(used), np.full(len(used), 1.0 / len(used)))
        sums = pair_counts(votes, votes.weight * times[votes.prompt])
        drawn = fitted(found.family, sums, (found.coefs, found.raw_eta or 0.0))
        coefs[r], rates[r] = drawn.coefs, drawn.win_rate(drawn.x, opponents)
    return Replicates(coefs, rates, len(used))
