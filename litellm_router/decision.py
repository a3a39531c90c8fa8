"""From values and costs to a ranking of a group's models: pure functions of arrays and settings.

Routing picks one model; the ranking says too who follows when that one fails. A model without a known price can't be
checked against a budget: `cap` and `lp` rank it after all that can.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from litellm_router.settings import P2LSettings
from p2l_plugins import routing
from p2l_plugins.outcomes import Array


@dataclass(frozen=True, slots=True)
class Decision:
    """A ranking of a group's models and the reasons for it.

    Attributes:
        models: names of the group's models.
        ranking: positions in `models`, the best first.
        values: value of each model: a win rate, or P(usable).
        costs: expected USD of the request at each model; NaN where its price is unknown.
        settings: rule, budget and objective.
        mixture: the probability of each model that the rule `lp` may draw, by position; None for the other rules.
    """

    models: Sequence[str]
    ranking: list[int]
    values: Array
    costs: Array
    settings: P2LSettings
    mixture: dict[int, float] | None = None

    def record(self) -> dict[str, Any]:
        """The decision for logs and headers, as plain JSON values; nothing in it comes from the prompt's text."""
        names = [self.models[i] for i in self.ranking]
        values, costs = self.values.round(6).tolist(), self.costs.tolist()
        record: dict[str, Any] = {
            "model": names[0],
            "ranking": names,
            "rule": self.settings.rule,
            "objective": self.settings.objective,
            "values": {name: values[i] for name, i in zip(names, self.ranking, strict=True)},
            # NaN is the one number that differs from itself, and JSON has none
            "costs": {name: c if (c := costs[i]) == c else None for name, i in zip(names, self.ranking, strict=True)},
        }
        if self.settings.rule != "best":
            record["budget"] = self.settings.budget
        if self.mixture is not None:
            record["mixture"] = {self.models[i]: round(weight, 6) for i, weight in self.mixture.items()}
        return record


def decide(models: Sequence[str], values: Array, costs: Array, settings: P2LSettings, uniform: float = 0.0) -> Decision:
    """Ranks the models of a group for one prompt.

    Args:
        models: different names.
        values: (M,) value of each.
        costs: (M,) expected USD of the request, NaN where unknown.
        settings: rule and budget.
        uniform: random number in [0, 1), for the rule `lp`.
    """
    mixture: dict[int, float] | None = None
    if settings.rule == "best" or settings.budget is None:
        order = _by_value(values, costs)
    elif settings.rule == "cap":
        order = _capped(values, costs, settings.budget)
    else:
        order, mixture = _drawn(values, costs, settings.budget, uniform)
    return Decision(models, order.tolist(), values, costs, settings, mixture)


def _by_value(value: Array, cost: Array) -> NDArray[np.intp]:
    """Highest value first; among equals the cheaper, then the earlier; an unknown price counts as dear."""
    return np.lexsort((np.nan_to_num(cost, nan=np.inf), -value))


def _capped(value: Array, cost: Array, budget: float) -> NDArray[np.intp]:
    """Models within the budget by value, then dearer ones from the cheapest, then those without a price by value."""
    price = np.nan_to_num(cost, nan=np.inf)
    dear = (price > budget) & np.isfinite(price)
    group = np.where(dear, 1, np.where(price <= budget, 0, 2))
    return np.lexsort((np.where(dear, -value, price), np.where(dear, price, -value), group))


def _drawn(value: Array, cost: Array, budget: float, uniform: float) -> tuple[NDArray[np.intp], dict[int, float]]:
    """The drawn model, then the others by value, those without a price last. No model fits: as `_capped`."""
    known = np.flatnonzero(~np.isnan(cost))
    if not known.size or cost[known].min() > budget:
        return _capped(value, cost, budget), {}
    mixture = routing.lp(value[known], cost[known], budget)
    drawn = int(known[mixture.draw(uniform)])
    last = np.where(np.isnan(cost), 2, 1)
    last[drawn] = 0
    price = np.nan_to_num(cost, nan=np.inf)
    weights = {int(known[i]): weight for i, weight in zip(mixture.models, mixture.weights, strict=True)}
    return np.lexsort((price, -value, last)), weights
