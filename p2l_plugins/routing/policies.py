"""Which model answers: policies over values and costs. NumPy only, no I/O.

A value `v_i` is what a choice is worth: the win rate `(Wq)_i` against opponents `q`, or P(usable). A cost `c_i` is what
one request is expected to cost. Theorem numbers are those of Prompt-to-Leaderboard (arXiv 2502.14855).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast, get_args

import numpy as np
from numpy.typing import ArrayLike

from p2l_plugins.errors import ConfigError, P2LError
from p2l_plugins.outcomes import Array, Family, sigmoid, usable_probability, win_matrix

RuleName = Literal["best", "cap", "lp", "paced"]
Objective = Literal["win_rate", "usable"]


class InfeasibleBudget(P2LError):
    """No model costs as little as the budget allows."""


@dataclass(frozen=True, slots=True)
class Mixture:
    """A routing policy: at most two models and the probability of each.

    Attributes:
        models: indices of the models, the cheaper one first.
        weights: their probabilities, which sum to 1.
        value: expected value `π·v`.
        cost: expected cost `π·c`.
    """

    models: tuple[int, ...]
    weights: tuple[float, ...]
    value: float
    cost: float

    def probabilities(self, n_models: int) -> Array:
        """The policy as a vector π, (M,)."""
        pi = np.zeros(n_models)
        np.add.at(pi, list(self.models), self.weights)
        return pi

    def draw(self, uniform: float) -> int:
        """The model for one request, from a uniform random number in [0, 1)."""
        return self.models[0] if len(self.models) == 1 or uniform < self.weights[0] else self.models[1]


def opponents_or_uniform(opponents: ArrayLike | None, n_models: int) -> Array:
    """Opponent weights q, (M,), normalised to sum 1; uniform when None.

    Raises:
        P2LError: wrong length, a negative weight, or a sum that is not positive and finite.
    """
    if opponents is None:
        return np.full(n_models, 1.0 / n_models)
    q = np.asarray(opponents, np.float64)
    if q.shape != (n_models,):
        raise P2LError(f"opponents have shape {q.shape}, but there are {n_models} models")
    total = float(q.sum())
    if not np.isfinite(total) or total <= 0 or (q < 0).any():
        raise P2LError("opponent weights must be at least 0, with a positive and finite sum")
    return q / total


def win_rates(
    family: Family, coefs: ArrayLike, raw_eta: ArrayLike | None = None, opponents: ArrayLike | None = None
) -> Array:
    """Win rate `(Wq)_i` of each model, (..., M), with `W_ab` = P(a beats b).

    Args:
        coefs: (..., M); raw_eta: (...), for families that have it.
        opponents: (M,) weights q ≥ 0, normalised here; uniform over the models when None.
    """
    beta = np.asarray(coefs, np.float64)
    return np.asarray(win_matrix(family, beta, raw_eta) @ opponents_or_uniform(opponents, beta.shape[-1]), np.float64)


def rule_named(text: str) -> RuleName:
    """The rule of this name.

    Raises:
        ConfigError: there is none.
    """
    _check_name("rule", text, get_args(RuleName))
    return cast(RuleName, text)


def objective_named(text: str) -> Objective:
    """The objective of this name; errors as `rule_named`."""
    _check_name("objective", text, get_args(Objective))
    return cast(Objective, text)


def _check_name(kind: str, text: str, valid: tuple[str, ...]) -> None:
    if text not in valid:
        raise ConfigError(f"{kind} {text!r} is not known; valid: {', '.join(valid)}")


def values(
    objective: Objective,
    family: Family,
    coefs: ArrayLike,
    raw_eta: ArrayLike | None = None,
    opponents: ArrayLike | None = None,
    stderr: ArrayLike = 0.0,
) -> Array:
    """Value of each model under an objective: `win_rate`, or `usable` (grk only).

    Args:
        stderr: (M,) standard errors of the models' levels, which bring `usable` nearer to one half.

    Raises:
        ConfigError: an unknown objective, or `usable` for a family without a grounded scale.
    """
    if objective_named(objective) == "win_rate":
        return win_rates(family, coefs, raw_eta, opponents)
    if family != "grk":
        raise ConfigError(f"the objective 'usable' needs a bundle of the family grk; this one is {family}")
    return usable_probability(coefs, stderr)


def best(value: ArrayLike, cost: ArrayLike) -> Mixture:
    """The model of highest value; among equals the cheapest, then the first."""
    v, c = _checked(value, cost)
    return _single(v, c, _top(v, c))


def cap(value: ArrayLike, cost: ArrayLike, budget: float) -> Mixture:
    """The model of highest value among those that cost at most `budget` each.

    Raises:
        InfeasibleBudget: every model costs more.
    """
    v, c = _checked(value, cost)
    _check_budget(c, budget)
    return _single(v, c, _top(np.where(c <= budget, v, -np.inf), c))


def lp(value: ArrayLike, cost: ArrayLike, budget: float) -> Mixture:
    """Theorem 1: the policy π of highest `π·v` whose expected cost `π·c` is at most `budget`.

    With one budget the optimum lies on the upper concave hull of the points (c_i, v_i), on the edge over the budget, so
    it mixes at most two models. The edge is found by a cutting plane in the budget's multiplier λ: take the line
    through a model that fits and one that does not, look for the model furthest above it, and replace the end on its
    side.

    Raises:
        InfeasibleBudget: every model costs more.
    """
    v, c = _checked(value, cost)
    top = _top(v, c)
    if c[top] <= budget:
        return _single(v, c, top)
    _check_budget(c, budget)
    fits, dear = _edge(v, c, budget, top)
    share = float((budget - c[fits]) / (c[dear] - c[fits]))
    if share <= 0.0:
        return _single(v, c, fits)
    weights = (1.0 - share, share)
    return Mixture(
        models=(int(fits), int(dear)),
        weights=weights,
        value=float(weights[0] * v[fits] + share * v[dear]),
        cost=float(weights[0] * c[fits] + share * c[dear]),
    )


def _edge(v: Array, c: Array, budget: float, top: int) -> tuple[int, int]:
    """The ends of the upper concave hull's edge over the budget: one fits, the other is dearer."""
    fits, dear = int(c.argmin()), top
    for _ in range(v.size):
        v_fits, c_fits = v[fits], c[fits]
        slope = (v[dear] - v_fits) / (c[dear] - c_fits)
        gain = v - slope * c
        k = int(gain.argmax())
        if gain[k] <= max(gain[fits], gain[dear]) + 1e-15 * abs(v_fits):
            break
        if c[k] <= budget:
            fits = k
        else:
            dear = k
    return fits, dear


def frontier(value: ArrayLike, cost: ArrayLike) -> list[int]:
    """The corners of the upper concave hull of the points (c_i, v_i), from the cheapest model to the best one.

    `lp` mixes two neighbours among them at most, so that they are the curve of value over budget.
    """
    v, c = _checked(value, cost)
    corners = [_top(-c, -v)]
    while (ahead := np.flatnonzero((v > v[corners[-1]]) & (c > c[corners[-1]]))).size:
        slope = (v[ahead] - v[corners[-1]]) / (c[ahead] - c[corners[-1]])
        steepest = ahead[slope == slope.max()]
        corners.append(int(steepest[c[steepest].argmax()]))
    return corners


def lp_multiplier(value: ArrayLike, cost: ArrayLike, budget: float) -> float:
    """The multiplier λ of the budget in `lp`: what one more USD would add to the value. 0 where the budget is no limit.

    Where not even the cheapest model fits, the slope of the hull's first edge.
    """
    v, c = _checked(value, cost)
    top, least = _top(v, c), max(budget, float(c.min()))
    if c[top] <= least:
        return 0.0
    fits, dear = _edge(v, c, least, top)
    return float((v[dear] - v[fits]) / (c[dear] - c[fits]))


def first_multiplier(value: ArrayLike, cost: ArrayLike, budget: float) -> float | None:
    """A multiplier to begin with, from one prompt; None where the best model is the cheapest.

    It is that of `lp` or, where the budget is no limit on this prompt, the one at which its best model would begin to
    give way to a cheaper one.
    """
    v, c = _checked(value, cost)
    top = _top(v, c)
    cheaper = c < c[top]
    if not cheaper.any():
        return None
    return lp_multiplier(v, c, budget) or float(((v[top] - v[cheaper]) / (c[top] - c[cheaper])).min())


def paced(value: ArrayLike, cost: ArrayLike, multiplier: float) -> Mixture:
    """The model of highest `v − λ c`: one multiplier λ (value per USD) for all requests; `pacing.Pacer` follows it."""
    v, c = _checked(value, cost)
    return _single(v, c, _top(v - multiplier * c, c))


def decide(
    rule: RuleName, value: ArrayLike, cost: ArrayLike, budget: float | None = None, multiplier: float | None = None
) -> Mixture:
    """Applies a rule by name.

    Args:
        rule: its name.
        value, cost: (M,) of each model.
        budget: for `cap` and `lp`.
        multiplier: λ, for `paced`.

    Raises:
        ConfigError: an unknown rule, one without its budget or multiplier, or a multiplier for another than `paced`.
    """
    if rule_named(rule) == "paced":
        if multiplier is None:
            raise ConfigError("the rule 'paced' needs a budget, or a multiplier")
        return paced(value, cost, multiplier)
    if multiplier is not None:
        raise ConfigError(f"a multiplier belongs to the rule 'paced', not to {rule!r}")
    if rule == "best":
        return best(value, cost)
    if budget is None:
        raise ConfigError(f"the rule {rule!r} needs a budget")
    return cap(value, cost, budget) if rule == "cap" else lp(value, cost, budget)


def policy_win_rate(policy: ArrayLike, win: ArrayLike, opponents: ArrayLike | None = None) -> float:
    """R = πᵀ W q: the router's own win rate. policy (M,), win (M, M), opponents (M,)."""
    w = np.asarray(win, np.float64)
    return float(np.asarray(policy, np.float64) @ w @ opponents_or_uniform(opponents, w.shape[0]))


def policy_coefficient(win_rate: float, coefs: ArrayLike, opponents: ArrayLike | None = None) -> float:
    """The router's own coefficient: the root t of Σ_a q_a σ(t − β_a) = R, by bisection.

    Args:
        win_rate: R in [0, 1]; 0 and 1 give −inf and +inf.
        coefs: (M,) coefficients of the opponents.
    """
    if not 0.0 <= win_rate <= 1.0:
        raise P2LError(f"a win rate lies between 0 and 1, not at {win_rate}")
    beta = np.asarray(coefs, np.float64)
    q = opponents_or_uniform(opponents, beta.size)
    if win_rate in (0.0, 1.0):
        return float("inf") if win_rate else float("-inf")
    logit = float(np.log(win_rate) - np.log1p(-win_rate))
    against = beta[q > 0]
    low, high = float(against.min()) + logit, float(against.max()) + logit
    for _ in range(200):
        middle = 0.5 * (low + high)
        if not low < middle < high:
            break
        if float(q @ sigmoid(middle - beta)) < win_rate:
            low = middle
        else:
            high = middle
    return 0.5 * (low + high)


def _checked(value: ArrayLike, cost: ArrayLike) -> tuple[Array, Array]:
    v, c = np.asarray(value, np.float64), np.asarray(cost, np.float64)
    if v.ndim != 1 or v.shape != c.shape or not v.size:
        raise P2LError(f"values {v.shape} and costs {c.shape} must be one number per model each")
    if not np.count_nonzero(np.isfinite(v)) == np.count_nonzero(np.isfinite(c)) == v.size:  # half the time of `all`
        raise P2LError("values and costs must be finite numbers")
    return v, c


def _check_budget(cost: Array, budget: float) -> None:
    cheapest = float(cost[cost.argmin()])
    if not cheapest <= budget:
        raise InfeasibleBudget(f"the budget {budget:g} is below the cheapest model's cost {cheapest:g}")


def _top(value: Array, cost: Array) -> int:
    """Index of the highest value; among equals the lowest cost, then the first."""
    k = int(value.argmax())
    if np.count_nonzero(equal := value == value[k]) == 1:
        return k
    ties = np.flatnonzero(equal)
    return int(ties[cost[ties].argmin()])


def _single(value: Array, cost: Array, i: int) -> Mixture:
    return Mixture(models=(i,), weights=(1.0,), value=float(value[i]), cost=float(cost[i]))
