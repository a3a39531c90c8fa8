"""Reads a model group's deployments, and which of them come first.

LiteLLM balances what the callback hands back, so a ranking narrows: the deployments of the best model that has not
been tried, as they came. LiteLLM asks again at every retry and hop; then the next model's turn has come.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from litellm_router.abilities import can_read, lacks, window_of
from litellm_router.called import GIVEN, setting_of
from litellm_router.chat import SUPPORTS
from litellm_router.matching import match, names_of
from litellm_router.prices import CACHED, INPUT, OUTPUT, price_of
from litellm_router.routers import deployment_of, router_of
from p2l_plugins.errors import BundleError
from p2l_plugins.outcomes import Array
from p2l_plugins.scoring.engine import Scorer

Deployment = dict[str, Any]

#: Seconds for which what was read of a group is kept: a change that LiteLLM makes in place shows after that.
KEEP_S = 10.0

#: Deployments whose models are remembered by their ids.
MOST_MODELS = 4096

_PARAMS = ("model", "base_model", "order", "rpm", INPUT, OUTPUT, CACHED)
_INFO = (
    "id",
    GIVEN,
    "base_model",
    "mode",
    "order",
    "max_input_tokens",
    "enable_tag_filtering",
    INPUT,
    OUTPUT,
    CACHED,
    *SUPPORTS,
)


def id_of(deployment: Mapping[str, Any]) -> str:
    """LiteLLM's id of a deployment."""
    return str((deployment.get("model_info") or {}).get("id"))


#: Kinds of requests for which a group remembers who can't take them.
MOST_KINDS = 256


class Member(NamedTuple):
    """A deployment of a group.

    Attributes:
        id: LiteLLM's.
        model: the bundle's name of its model, None where the bundle does not know it, or too little of it.
        order: the operator's own; deployments without one come after all that have one.
    """

    id: str
    model: str | None
    order: int | None


class Group:
    """The deployments of a model group and the models behind them.

    Attributes:
        models: bundle names of the group's different models, in the order of the config.
        columns: their columns in the coefficients.
        members: the deployments.
        little_known: models of the bundle that are not ranked, since too little is known of them.
        checked: whether what is wrong with these deployments was said.

    Args:
        deployments: as LiteLLM holds them.
        bundle: the models that they may name.
        min_support: least effective votes on a model that is ranked.
    """

    def __init__(self, deployments: Sequence[Deployment], bundle: Scorer, min_support: float = 0.0) -> None:
        self.deployments = tuple(deployments)
        self.checked = False
        candidates: dict[int, int] = {}
        little: dict[str, None] = {}
        members, prices = [], []
        for deployment in deployments:
            info, params = deployment.get("model_info") or {}, deployment["litellm_params"]
            found = match(deployment, bundle)
            if found is not None and is_little_known(bundle, found.model, min_support):
                little.setdefault(found.model)
                found = None
            index = None if found is None else bundle.models.index(found.model)
            order = params.get("order")
            order = info.get("order") if order is None else order
            model = None if index is None else bundle.models[index]
            members.append(Member(id_of(deployment), model, order if isinstance(order, int) else None))
            if index is not None:
                prices.append((candidates.setdefault(index, len(candidates)), price_of(deployment)))
        self.columns = list(candidates)
        self.models = tuple(bundle.models[index] for index in candidates)
        self.members = tuple(members)
        self.little_known = tuple(little)
        self._model_of = {member.id: member.model for member in members}
        self._prices = prices
        self._window = min(map(window_of, deployments), default=math.inf)
        self._unable: dict[tuple[frozenset[str], str | None, int], frozenset[int]] = {}

    def model_of(self, deployment: str) -> str | None:
        """The bundle's name of the model of a deployment, by id; None for one that is unranked or of another group."""
        return self._model_of.get(deployment)

    def unable(self, needs: Collection[str], tokens: int, maker: str | None = None) -> frozenset[int]:
        """Positions of the models none of whose deployments can take a request.

        Args:
            needs: what it takes, see `abilities.lacks`.
            tokens: of its prompt.
            maker: of the state that it carries, where that is known; it counts where the group has one of its models.
        """
        if not needs and maker is None and tokens <= self._window:
            return frozenset()
        key = (frozenset(needs), maker, tokens if tokens > self._window else 0)
        found = self._unable.get(key)
        if found is None:
            if len(self._unable) >= MOST_KINDS:
                self._unable.clear()
            found = self._unable[key] = self._who_is_unable(needs, tokens, maker)
        return found

    def _who_is_unable(self, needs: Collection[str], tokens: int, maker: str | None) -> frozenset[int]:
        able, readers = set(), set()
        for deployment, member in zip(self.deployments, self.members, strict=True):
            if member.model is None:
                continue
            if not lacks(deployment, needs, tokens):
                able.add(member.model)
            if maker is not None and can_read(deployment, maker):
                readers.add(member.model)
        kept = able & readers if readers else able
        return frozenset(i for i, model in enumerate(self.models) if model not in kept)

    def costs(self, prompt_tokens: int, output_tokens: Sequence[float], cached: tuple[int, int] | None = None) -> Array:
        """Expected USD of one request to each model, (M,); NaN where its price is unknown.

        A model with several deployments costs as much as its dearest one, since LiteLLM chooses among them; if one of
        them has no known price, the model has none.

        Args:
            output_tokens: (M,) expected tokens of each model's answer.
            cached: position of the model that has the conversation, and tokens of the prompt that it has read before.
        """
        cost = [0.0] * len(self.models)
        for candidate, price in self._prices:
            if price is None:
                cost[candidate] = math.nan
                continue
            known = cached[1] if cached is not None and cached[0] == candidate else 0
            if (dear := price.cost(prompt_tokens, output_tokens[candidate], known)) > cost[candidate]:
                cost[candidate] = dear  # which NaN is never below
        return np.array(cost)

    def of_models_other_than(self, models: Collection[str], among: Collection[str]) -> list[str]:
        """Ids, of some, of the deployments whose model is not one of these."""
        return [one.id for one in self.members if one.id in among and one.model not in models]

    def of_first_order(self, among: Collection[str], target: object = None) -> list[str]:
        """Ids, of some, that LiteLLM's own rule of the operator's `order` keeps.

        Args:
            target: the order that LiteLLM has fallen back to, if it has.
        """
        members = [one for one in self.members if one.id in among]
        orders = [one.order for one in members if one.order is not None]
        first = target if isinstance(target, int) else min(orders, default=None)
        return [one.id for one in members if first is None or one.order == first]

    def best(self, rank: Mapping[str, int], among: Collection[str]) -> list[str]:
        """Ids of the deployments of the best model among some; those that P2L does not rank come last, together.

        Args:
            rank: place of each model, by name, 0 the best.
            among: ids.
        """
        last = len(rank)
        places = [(rank.get(one.model or "", last), one.id) for one in self.members if one.id in among]
        first = min((place for place, _ in places), default=None)
        return [name for place, name in places if place == first]


def is_little_known(bundle: Scorer, model: str, min_support: float) -> bool:
    """Whether a bundle says that it knows a model by fewer effective votes."""
    said = bundle.support.get(model)
    return said is not None and said.votes < min_support


def column_of(bundle: Scorer, name: str) -> int | None:
    """Column of a model by name or alias; None for a name that the bundle does not know."""
    try:
        return bundle.index(name)
    except BundleError:
        return None


class Groups:
    """What was read of the groups seen last. LiteLLM passes the same deployments, or copies, with every request.

    Args:
        bundle: the models that deployments may name.
        clock: seconds, never going back.
        min_support: as of `Group`.
    """

    def __init__(self, bundle: Scorer, clock: Callable[[], float] = time.monotonic, min_support: float = 0.0) -> None:
        names_of(bundle)  # made here, where the bundle is loaded, and not at the first request
        self.bundle = bundle
        self.min_support = min_support
        self._clock = clock
        self._groups: dict[object, tuple[float, Group]] = {}
        self._models: dict[str, tuple[float, str | None]] = {}

    def model_of(self, info: Mapping[str, Any]) -> str | None:
        """The bundle's name of the model of the deployment whose `model_info` this is, in any router of the process.

        None for one that the bundle does not know, and for one that no router has any more.
        """
        given, deployment = info.get(GIVEN), info.get("id")
        if given is not None:
            return self.canonical(given) if isinstance(given, str) else None
        if not isinstance(deployment, str):
            return None
        now = self._clock()
        kept = self._models.get(deployment)
        if kept is None or now - kept[0] >= KEEP_S:
            found = deployment_of(router_of(deployment), deployment)
            one = None if found is None else match(found, self.bundle)
            if len(self._models) >= MOST_MODELS:
                self._models.clear()
            kept = self._models[deployment] = (now, None if one is None else one.model)
        return kept[1]

    def canonical(self, name: str) -> str | None:
        """The bundle's own name of a model; None for a name that it does not know."""
        index = column_of(self.bundle, name)
        return None if index is None else self.bundle.models[index]

    def models_of(self, deployments: Sequence[Mapping[str, Any]]) -> int:
        """How many models of the bundle these are that P2L ranks."""
        found = {one.model for deployment in deployments if (one := match(deployment, self.bundle)) is not None}
        return sum(not is_little_known(self.bundle, model, self.min_support) for model in found)

    def of(self, deployments: Sequence[Deployment]) -> Group:
        """The group of these deployments."""
        key = _content(deployments)
        now = self._clock()
        kept = self._groups.get(key)
        if kept is not None and now - kept[0] < KEEP_S:
            return kept[1]
        if len(self._groups) >= 256:
            self._groups.clear()
        group = Group(deployments, self.bundle, self.min_support)
        self._groups[key] = (now, group)
        return group


def _content(deployments: Sequence[Deployment]) -> object:
    """What a group is read from, as a key; a value that has no hash makes the deployments a group of their own."""
    key = tuple(
        (
            *map(deployment["litellm_params"].get, _PARAMS),
            *map((deployment.get("model_info") or {}).get, _INFO),
            setting_of(deployment["litellm_params"]),
        )
        for deployment in deployments
    )
    try:
        hash(key)
    except TypeError:
        return object()
    return key
