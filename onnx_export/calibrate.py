"""How sure a fitted head is: the level of all models and their ties, as linear functions of the state, fitted anew.

A head that priors hold back also says too little about how hard a prompt is, so that ties and failures are forecast too
near to their means. With β_i(s) and r(s) what the head gives on a state s, the votes choose g, c, h and d in

    β_i(s) + g·s + c        for every model i,        r(s) + h·s + d        for raw_eta.

The same is added to all models, so that their order on each prompt stays. A level is seen only where answers may be
bad (`grk`); otherwise raw_eta alone moves. The optimum of a convex-like smooth loss is found with L-BFGS.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from p2l_plugins.errors import DataError
from p2l_plugins.outcomes import Array, Family, Ids, nll_gradients
from p2l_plugins.votes.votes import Votes

#: Votes of a prompt that are looked at, at most.
PER_PROMPT = 20
#: A file counts as the square root of its prompts, and one with fewer as if each were one of so many: the largest is
#: not to speak for all, nor the smallest as loud as it.
FEW_PROMPTS = 1000
#: Weight of |g|² + |h|² on standardised states, beside the mean loss of a vote.
RIDGE = 1e-3
STEPS = 60


@dataclass(frozen=True)
class Shift:
    """What is added to all coefficients, and to `raw_eta`.

    Attributes:
        weight, eta_weight: (H,), of the state; bias, eta_bias: numbers.
        losses: mean loss of the votes that were looked at, before and after.
    """

    weight: Array
    bias: float
    eta_weight: Array
    eta_bias: float
    losses: tuple[float, float]


@dataclass(frozen=True)
class _Sample:
    prompt: Ids
    a: Ids
    b: Ids
    outcome: Ids
    weight: Array


def fit_shift(
    sources: Sequence[Votes],
    rows: Sequence[Ids],
    states: Array,
    coefs: Array,
    raw_eta: Array,
    family: Family,
    seed: int,
) -> Shift:
    """The shift that makes votes likeliest.

    Args:
        sources: votes by file, over the models of `coefs`; rows: of each file's prompts, the rows of the arrays.
        states: (P, H); coefs: (P, M); raw_eta: (P,).
        family: `grk` or `rk`.
        seed: which votes are looked at, where a prompt has many.

    Raises:
        DataError: no votes, or the fit does not end in finite numbers.
    """
    from scipy.optimize import minimize

    votes = _sample(sources, rows, np.random.default_rng(seed))
    used, prompt = np.unique(votes.prompt, return_inverse=True)
    mean, scale = states[used].mean(axis=0), states[used].std(axis=0)
    scale = np.where(scale > 1e-8, scale, 1.0)
    x = (states[used] - mean) / scale
    a, b, eta = coefs[votes.prompt, votes.a], coefs[votes.prompt, votes.b], raw_eta[votes.prompt]
    size = x.shape[1]

    def loss(parameters: Array) -> tuple[float, Array]:
        g, c, h, d = parameters[:size], parameters[size], parameters[size + 1 : -1], parameters[-1]
        level, ties = (x @ g + c)[prompt], (x @ h + d)[prompt]
        each, by_a, by_b, by_eta = nll_gradients(family, a + level, b + level, votes.outcome, eta + ties)
        to_level, to_ties = (
            np.bincount(prompt, votes.weight * slope, minlength=len(used)) for slope in (by_a + by_b, by_eta)
        )
        gradient = np.concatenate(
            [to_level @ x + 2 * RIDGE * g, [to_level.sum()], to_ties @ x + 2 * RIDGE * h, [to_ties.sum()]]
        )
        return float(votes.weight @ each + RIDGE * (g @ g + h @ h)), gradient

    nothing = np.zeros(2 * size + 2)
    found = minimize(loss, nothing, jac=True, method="L-BFGS-B", options={"maxiter": STEPS}).x
    if not np.isfinite(found).all():
        raise DataError("the level and the ties could not be fitted: the result is not of finite numbers")
    g, h = found[:size] / scale, found[size + 1 : -1] / scale
    losses = (loss(nothing)[0], loss(found)[0])
    return Shift(g, float(found[size] - g @ mean), h, float(found[-1] - h @ mean), losses)


def _sample(sources: Sequence[Votes], rows: Sequence[NDArray[np.int64]], rng: np.random.Generator) -> _Sample:
    parts = []
    for votes, own in zip(sources, rows, strict=True):
        order = rng.permutation(len(votes))
        order = order[np.argsort(votes.prompt[order], kind="stable")]
        prompts = votes.prompt[order]
        kept = order[np.arange(len(order)) - np.searchsorted(prompts, prompts) < PER_PROMPT]
        count = np.bincount(votes.prompt[kept], minlength=len(own))
        weight = 1.0 / (np.sqrt(max(len(own), FEW_PROMPTS)) * count[votes.prompt[kept]])
        parts.append((own[votes.prompt[kept]], votes.a[kept], votes.b[kept], votes.outcome[kept], weight))
    prompt, a, b, outcome, weight = (np.concatenate(column) for column in zip(*parts, strict=True))
    if not len(prompt):
        raise DataError("there are no votes to fit the level and the ties to")
    return _Sample(prompt, a, b, outcome, weight / weight.sum())
