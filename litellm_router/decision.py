"""From a request and its scores to a ranking of a group's models: values, costs, and a rule.

Routing picks one model; the ranking says too who follows when that one fails. A model without a known price can't be
checked against a limit: all rules but `best` rank it after those that can.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from litellm_router.conversations import Turn
from litellm_router.deployments import Group
from litellm_router.reasons import NotRoutedError
from litellm_router.record import Record
from litellm_router.request import Wanted
from litellm_router.settings import KEY, Rule, Sticky
from litellm_router.traffic import Traffic
from p2l_plugins.errors import BundleError
from p2l_plugins.outcomes import Array
from p2l_plugins.routing import policies
from p2l_plugins.routing.pacing import Pacer
from p2l_plugins.scoring.engine import Scorer
from p2l_plugins.scoring.flights import Scored
from p2l_plugins.support import level_errors

#: Prompts whose values are kept for a group: in a large group they cost more than all else in a decision.
KEPT = 1024


@dataclass(frozen=True, slots=True)
class Decision:
    """A ranking of a group's models and the reasons for it.

    Attributes:
        models: names of the group's models.
        ranking: positions in `models`, the best first.
        values: value of each model: a win rate, or P(usable).
        costs: expected USD of the request at each model; NaN where its price is unknown.
        rule: with its limits and objective.
        mixture: the probability of each model that the rule `lp` may draw, by position; None for the other rules.
        multiplier: λ of the rule `paced`, in value per USD; None for the other rules.
    """

    models: Sequence[str]
    ranking: list[int]
    values: Array
    costs: Array
    rule: Rule
    mixture: dict[int, float] | None = None
    multiplier: float | None = None

    def record(self) -> Record:
        """What a request's record says of the decision."""
        names = [self.models[i] for i in self.ranking]
        values, costs = self.values.round(6).tolist(), self.costs.tolist()
        record: Record = {
            "model": names[0],
            "ranking": names,
            "rule": self.rule.rule,
            "objective": self.rule.objective,
            "values": {name: values[i] for name, i in zip(names, self.ranking, strict=True)},
            # NaN is the one number that differs from itself, and JSON has none
            "costs": {name: c if (c := costs[i]) == c else None for name, i in zip(names, self.ranking, strict=True)},
        }
        if self.rule.rule != "best":
            record["budget"] = self.rule.budget
        if self.rule.max_cost is not None:
            record["max_cost"] = self.rule.max_cost
        if self.mixture is not None:
            record["mixture"] = {self.models[i]: round(weight, 6) for i, weight in self.mixture.items()}
        if self.multiplier is not None:
            record["multiplier"] = self.multiplier
        return record


@dataclass(frozen=True, slots=True)
class Holder:
    """The model that has a conversation, by position, and by how much another one must be better to get it."""

    model: int
    margin: float


def decide(
    models: Sequence[str],
    values: Array,
    costs: Array,
    rule: Rule,
    uniform: float = 0.0,
    multiplier: float = 0.0,
    holder: Holder | None = None,
    unable: Collection[int] = (),
) -> Decision:
    """Ranks the models of a group for one prompt.

    Args:
        models: different names.
        values: (M,) value of each.
        costs: (M,) expected USD of the request, NaN where unknown.
        rule: and its limits.
        uniform: random number in [0, 1), for the rule `lp`.
        multiplier: λ, for the rule `paced`.
        holder: comes first unless another one is worth more by over its margin, it is above the limits that others
            keep, or it can't take the request; None: each prompt is on its own.
        unable: positions of models that can't take the request; they come after those that can.
    """
    decision = _ranked(models, values, costs, rule, uniform, multiplier)
    ranking = decision.ranking
    if unable:
        ranking = [*(i for i in ranking if i not in unable), *(i for i in ranking if i in unable)]
    if holder is not None and (holder.model not in unable or len(unable) == len(models)):
        within = [i for i in ranking if i not in unable and _within(costs[i], rule)]
        if holder.model in within or not within:
            # an unknown price counts for nothing here: the model has the conversation already
            worth = values - multiplier * np.nan_to_num(costs)
            ranking = kept(ranking, worth, holder.model, holder.margin)
    return replace(decision, ranking=ranking)


def _within(cost: float, rule: Rule) -> bool:
    """Whether a cost keeps the limits of a single request; an unknown one does where there are none."""
    limit = min(rule.max_cost or math.inf, (rule.budget or math.inf) if rule.rule == "cap" else math.inf)
    return limit == math.inf or cost <= limit


def _ranked(
    models: Sequence[str], values: Array, costs: Array, rule: Rule, uniform: float, multiplier: float
) -> Decision:
    limit = rule.max_cost if rule.max_cost is not None else np.inf
    if rule.rule == "lp" and rule.budget is not None:
        order, mixture = _drawn(values, costs, rule.budget, limit, uniform)
        return Decision(models, order, values, costs, rule, mixture)
    if rule.rule == "paced":
        worth = np.where(np.isnan(costs), values, values - multiplier * np.nan_to_num(costs))
        order = _capped(worth, costs, limit)
        return Decision(models, order, values, costs, rule, multiplier=multiplier)
    if rule.rule == "cap" and rule.budget is not None:
        limit = min(limit, rule.budget)
    order = _by_value(values, costs) if np.isinf(limit) else _capped(values, costs, limit)
    return Decision(models, order, values, costs, rule)


def opponents_of(rule: Rule, bundle: Scorer) -> tuple[tuple[int, float], ...]:
    """Columns and weights of the opponents that a rule names.

    Raises:
        NotRoutedError: `settings`, where the rule does not fit the bundle.
    """
    if rule.objective == "usable" and bundle.family != "grk":
        raise NotRoutedError(
            "settings", f"{KEY}.objective = 'usable' needs a bundle of the family grk, not {bundle.family}"
        )
    if rule.objective != "win_rate" or not rule.opponents:
        return ()
    try:
        found = tuple((bundle.index(name), weight) for name, weight in rule.opponents.items())
    except BundleError as error:
        raise NotRoutedError("settings", f"{KEY}.opponents: {error}") from None
    if not any(weight for _, weight in found):
        raise NotRoutedError("settings", f"{KEY}.opponents: all weights are 0; at least one must be above")
    return found


def kept(ranking: Sequence[int], values: Array, current: int, margin: float) -> list[int]:
    """The ranking with `current` in front, unless its first model is worth more by over `margin`.

    Args:
        ranking: positions, the best first.
        values: (M,) what each is worth.
        current: position of the model that has the conversation.
        margin: 1 keeps it in any case.
    """
    if margin < 1 and values[ranking[0]] - values[current] > margin:
        return list(ranking)
    return [current, *(i for i in ranking if i != current)]


class Values:
    """The values of the prompts seen last. Safe to use from several threads."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[object, ...], Array] = OrderedDict()
        self._lock = threading.Lock()

    def of(
        self,
        scorer: Scorer,
        scored: Scored,
        columns: Sequence[int],
        objective: policies.Objective,
        opponents: tuple[tuple[int, float], ...] = (),
    ) -> Array:
        """Value of each model of a group for a prompt.

        Args:
            columns: of the group's models.
            opponents: column and weight of each opponent of a win rate; none: the group's own models, all alike.
        """
        key = (scored.key, objective, tuple(columns), opponents)
        with self._lock:
            values = self._kept.get(key)
            if values is not None:
                self._kept.move_to_end(key)
                return values
        rows, weights = list(columns), None
        if opponents and objective == "win_rate":
            rows += [column for column, _ in opponents]
            weights = [0.0] * len(columns) + [weight for _, weight in opponents]
        entry, errors = scored.entry, level_errors(scorer.support, (scorer.models[row] for row in rows))
        values = policies.values(objective, scorer.family, entry.coefs[rows], entry.raw_eta, weights, errors)
        values = values[: len(columns)]
        with self._lock:
            self._kept[key] = values
            if len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        return values


#: In place of the key of a prompt, where the overall scores decide.
OVERALL = "overall"


class Read(NamedTuple):
    """Scores of a request.

    Attributes:
        found: of its prompt.
        used: that decide: the same, the user's own, or the overall ones where the prompt can't be read.
    """

    found: Scored
    used: Scored


@dataclass(frozen=True, slots=True)
class Case:
    """One request, ready to be decided.

    Attributes:
        name: of the model group; group: its models.
        wanted: what the request asks for.
        scored: its scores.
        turn: who has its conversation, or None.
        uniform: random number in [0, 1).
    """

    name: str
    group: Group
    wanted: Wanted
    scored: Read
    turn: Turn | None
    uniform: float

    @property
    def current(self) -> int | None:
        """Position of the model that has the conversation."""
        models = self.group.models
        return models.index(self.turn.model) if self.turn is not None and self.turn.model in models else None

    def decide(
        self, scorer: Scorer, values: Values, traffic: Traffic, sticky: Sticky | None
    ) -> tuple[Decision, Pacer | None]:
        """The decision, and the budget that it draws on, for the rule `paced`.

        Raises:
            NotRoutedError: `settings`, where the rule does not fit the bundle.
        """
        wanted, group, current = self.wanted, self.group, self.current
        opponents = opponents_of(wanted.rule, scorer)
        value = values.of(scorer, self.scored.used, group.columns, wanted.rule.objective, opponents)
        lengths = [wanted.answers * min(length, wanted.max_output) for length in traffic.answer_tokens(group.models)]
        known = None if current is None else (current, wanted.prompt_tokens - wanted.new_tokens)
        costs = group.costs(wanted.prompt_tokens, lengths, known)
        pacer = traffic.pacer(self.name, wanted.rule, value, costs, wanted.payer)
        multiplier = 0.0 if pacer is None else pacer.multiplier
        unable = group.unable(wanted.needs, wanted.prompt_tokens, wanted.maker if current is None else None)
        holder = self._holder(sticky)
        return decide(group.models, value, costs, wanted.rule, self.uniform, multiplier, holder, unable), pacer

    def _holder(self, sticky: Sticky | None) -> Holder | None:
        """The model that has the conversation, where it is to keep it."""
        current = self.current
        if current is not None and (self.wanted.sealed or self.wanted.goes_on):
            return Holder(current, 1.0)
        return None if current is None or sticky is None else Holder(current, sticky.margin)

    def record(self) -> Record:
        """What a request's record says beside the decision."""
        found = self.scored.found
        record: Record = {
            "mode": self.wanted.rule.mode,
            "cache": "hit" if found.cached else "miss",
            "prompt_tokens": self.wanted.prompt_tokens,
        }
        if found.entry.truncated is not None:
            record["truncated"] = found.entry.truncated
        if found.entry.unknown:
            record["unknown"] = round(float(found.entry.unknown), 4)
        if not self.wanted.turns:
            record["reason"] = "no_text"
        elif self.scored.used.key.startswith(OVERALL):
            record["reason"] = "unknown_text"
        if self.wanted.client is not None:
            record["client"] = self.wanted.client
        return record


# Sorted by Python: NumPy's sorts let go of the interpreter lock, and a busy proxy waits milliseconds to have it back.


def _by_value(value: Array, cost: Array) -> list[int]:
    """Highest value first; among equals the cheaper, then the earlier; an unknown price counts as dear."""
    v, c = value.tolist(), _prices(cost)
    return sorted(range(len(v)), key=lambda i: (-v[i], c[i]))


def _capped(value: Array, cost: Array, limit: float) -> list[int]:
    """Models within the limit by value, then dearer ones from the cheapest, then those without a price by value."""
    v, c = value.tolist(), _prices(cost)

    def key(i: int) -> tuple[int, float, float]:
        if c[i] == math.inf:
            return 2, -v[i], 0.0
        return (1, c[i], -v[i]) if c[i] > limit else (0, -v[i], c[i])

    return sorted(range(len(v)), key=key)


def _prices(cost: Array) -> list[float]:
    """Costs with an unknown one as infinite."""
    return [math.inf if math.isnan(c) else c for c in cost.tolist()]


def _drawn(
    value: Array, cost: Array, budget: float, limit: float, uniform: float
) -> tuple[list[int], dict[int, float]]:
    """The drawn model, then the others as `_capped`. No model fits: as `_capped` alone."""
    known = np.flatnonzero(cost <= limit)  # NaN compares false
    if not known.size or cost[known].min() > budget:
        return _capped(value, cost, min(budget, limit)), {}
    mixture = policies.lp(value[known], cost[known], budget)
    drawn = int(known[mixture.draw(uniform)])
    weights = {int(known[i]): weight for i, weight in zip(mixture.models, mixture.weights, strict=True)}
    return [drawn, *(i for i in _capped(value, cost, limit) if i != drawn)], weights
