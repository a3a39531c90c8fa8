"""Reads a model group's deployments and hands a ranking to LiteLLM through `litellm_params.order`.

LiteLLM answers with the lowest order that is alive after its own checks (context window, tags, exclusions), and
balances deployments of equal order by its own strategy. So a ranking takes nothing away: every deployment stays in the
list, as a copy, and a failing best model is followed by the next.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from litellm_router.prices import price_of
from p2l_plugins.errors import BundleError
from p2l_plugins.outcomes import Array

Deployment = dict[str, Any]

#: Seconds for which what was read of a group is kept: a change that LiteLLM makes in place shows after that.
KEEP_S = 10.0


def p2l_model(deployment: Mapping[str, Any]) -> str | None:
    """The name that a deployment gives in `model_info.p2l_model`, or None."""
    name = (deployment.get("model_info") or {}).get("p2l_model")
    return name if isinstance(name, str) and name else None


def takes_part(deployments: Iterable[Mapping[str, Any]]) -> bool:
    """Whether two deployments give different names."""
    first = None
    for deployment in deployments:
        name = p2l_model(deployment)
        if name is not None and first is not None and name != first:
            return True
        first = first or name
    return False


class _Member(NamedTuple):
    id: Any
    candidate: int | None  # position of its model in Group.models
    order: int | None  # the operator's own


class Group:
    """The deployments of a model group and the models behind them.

    Attributes:
        models: bundle names of the group's different models, in the order of the config.
        columns: their columns in the coefficients.
        checked: whether what is wrong with these deployments was said.

    Args:
        deployments: as LiteLLM holds them.
        bundle: the models that they may name.
    """

    def __init__(self, deployments: Sequence[Deployment], bundle: Models) -> None:
        self.deployments = tuple(deployments)
        self.checked = False
        candidates: dict[int, int] = {}
        members, prices = [], []
        for deployment in deployments:
            info, params = deployment.get("model_info") or {}, deployment["litellm_params"]
            name = p2l_model(deployment)
            index = None if name is None else column_of(bundle, name)
            candidate = None if index is None else candidates.setdefault(index, len(candidates))
            order = params.get("order")
            members.append(_Member(info.get("id"), candidate, info.get("order") if order is None else order))
            if candidate is not None:
                prices.append((candidate, price_of(deployment)))
        self.columns = list(candidates)
        self.models = tuple(bundle.models[index] for index in candidates)
        self._members = members
        self._prices = prices

    def costs(self, prompt_tokens: int, output_tokens: Sequence[float]) -> Array:
        """Expected USD of one request to each model, (M,); NaN where its price is unknown.

        A model with several deployments costs as much as its dearest one, since LiteLLM chooses among them; if one of
        them has no known price, the model has none.

        Args:
            output_tokens: (M,) expected tokens of each model's answer.
        """
        cost = [0.0] * len(self.models)
        for candidate, price in self._prices:
            if price is None:
                cost[candidate] = math.nan
            elif (dear := price.cost(prompt_tokens, output_tokens[candidate])) > cost[candidate]:
                cost[candidate] = dear  # which NaN is never below
        return np.array(cost)

    def ordered(
        self, ranking: Sequence[int], failed: Iterable[str] = (), target_order: int | None = None
    ) -> list[Deployment]:
        """Copies of all deployments with `litellm_params.order` set by, in this order of importance:

        whether the request has failed there; the operator's own `order` (as in LiteLLM, none comes after any); whether
        P2L ranks the deployment; its model's place in the ranking.

        Args:
            ranking: positions in `models`, the best first.
            failed: ids of deployments to put last.
            target_order: the operator's order that LiteLLM has fallen back to: lower ones have been tried already.
        """
        last = set(failed)
        rank = {candidate: i for i, candidate in enumerate(ranking)}
        unranked = len(rank)
        keys = [
            (
                member.id in last,
                target_order is not None and member.order is not None and member.order < target_order,
                member.order is None,
                member.order or 0,
                unranked if member.candidate is None else rank[member.candidate],
            )
            for member in self._members
        ]
        orders = {key: order for order, key in enumerate(sorted(set(keys)), start=1)}
        return [
            {**deployment, "litellm_params": {**deployment["litellm_params"], "order": orders[key]}}
            for deployment, key in zip(self.deployments, keys, strict=True)
        ]


class Models(Protocol):
    """The models of a bundle, by name."""

    @property
    def models(self) -> tuple[str, ...]:
        """Names in the order of the coefficients."""

    def index(self, model: str) -> int:
        """Column of a model, by its name or an alias."""


def column_of(bundle: Models, name: str) -> int | None:
    """Column of a model by name or alias; None for a name that the bundle does not know."""
    try:
        return bundle.index(name)
    except BundleError:
        return None


class Groups:
    """What was read of the groups seen last. LiteLLM passes the same deployments with every request.

    Args:
        bundle: the models that deployments may name.
        clock: seconds, never going back.
    """

    def __init__(self, bundle: Models, clock: Callable[[], float] = time.monotonic) -> None:
        self.bundle = bundle
        self._clock = clock
        self._groups: dict[tuple[int, ...], tuple[float, Group]] = {}

    def canonical(self, name: str) -> str | None:
        """The bundle's own name of a model; None for a name that it does not know."""
        index = column_of(self.bundle, name)
        return None if index is None else self.bundle.models[index]

    def of(self, deployments: Sequence[Deployment]) -> Group:
        """The group of these deployments."""
        # a kept group holds its deployments, so that no other object can have their ids meanwhile
        key = tuple(map(id, deployments))
        now = self._clock()
        kept = self._groups.get(key)
        if kept is not None and now - kept[0] < KEEP_S:
            return kept[1]
        if len(self._groups) >= 256:
            self._groups.clear()
        group = Group(deployments, self.bundle)
        self._groups[key] = (now, group)
        return group
