"""Spending a budget on many prompts: one multiplier for all of them, or a rule for each alone. NumPy only."""

from __future__ import annotations

import numpy as np

from p2l_plugins.outcomes import Array, Ids
from p2l_plugins.routing import policies


class HindsightPacer:
    """The paced policy where all prompts are known: `argmax_i v_i − λ c_i`, whose mean cost never rises with λ.

    Attributes:
        least, most: mean cost of the cheapest models, and of those of highest value.
    """

    def __init__(self, value: Array, cost: Array) -> None:
        """
        Args:
            value: (N, M), −∞ for models that can't be chosen; cost: (N, M) in USD.
        """
        self._value, self._cost, self._rows = value, cost, np.arange(len(value))
        cheapest = np.where(np.isfinite(value), cost, np.inf)
        # among the cheapest models of a prompt, the one of highest value
        self._cheapest = np.where(cheapest == cheapest.min(axis=1, keepdims=True), value, -np.inf).argmax(axis=1)
        self.least, self.most = self._mean_cost(self._cheapest), self._mean_cost(self._choice(0.0))

    def _choice(self, multiplier: float) -> Ids:
        choice: Ids = (self._value - multiplier * self._cost).argmax(axis=1)
        return choice

    def _mean_cost(self, choice: Ids) -> float:
        return float(self._cost[self._rows, choice].mean())

    def policy(self, budget: float) -> Array:
        """π (N, M) whose mean cost is the budget, or less where more does not help."""
        pi = np.zeros(self._value.shape)
        if budget >= self.most or budget <= self.least:
            pi[self._rows, self._choice(0.0) if budget >= self.most else self._cheapest] = 1.0
            return pi
        low, high = 0.0, 1.0 / self.most  # λ: too dear, cheap enough
        dear, cheap = self._choice(low), self._choice(high)
        for _ in range(200):
            if self._mean_cost(cheap) <= budget:
                break
            low, dear, high = high, cheap, 2 * high
            cheap = self._choice(high)
        else:
            cheap = self._cheapest
        for _ in range(100):
            middle = 0.5 * (low + high)
            if not low < middle < high:
                break
            choice = self._choice(middle)
            if self._mean_cost(choice) > budget:
                low, dear = middle, choice
            else:
                high, cheap = middle, choice
        over, under = self._mean_cost(dear), self._mean_cost(cheap)
        share = (budget - under) / (over - under)
        pi[self._rows, dear] += share
        pi[self._rows, cheap] += 1.0 - share
        return pi


def per_prompt_policy(rule: policies.RuleName, value: Array, cost: Array, budget: float) -> Array:
    """π (N, M) of a rule of `routing` that is applied to each prompt alone; equal rows are decided once."""
    pi = np.zeros(value.shape)
    done: dict[bytes, Array] = {}
    for row, (v, c) in enumerate(zip(value, cost, strict=True)):
        key = v.tobytes() + c.tobytes()
        if key not in done:
            some = np.flatnonzero(np.isfinite(v))
            least = float(c[some].min())
            mixture = policies.decide(rule, v[some], c[some], max(budget, least))
            done[key] = np.zeros(len(v))
            done[key][some] = mixture.probabilities(some.size)
        pi[row] = done[key]
    return pi
