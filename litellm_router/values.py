"""What each model of a group is worth for a prompt: values from scores, kept for prompts that come again."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

from litellm_router.decision import Predicting
from p2l_plugins.cache.entry import Entry
from p2l_plugins.outcomes import Array
from p2l_plugins.routing import policies

#: Prompts whose values are kept for a group: in a large group they cost more than all else in a decision.
KEPT = 1024


class Scored(NamedTuple):
    """Scores of a prompt, the key under which they are cached, and whether they were there."""

    key: str
    entry: Entry
    hit: bool


class Values:
    """The values of the prompts seen last. Safe to use from several threads."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[object, ...], Array] = OrderedDict()
        self._lock = threading.Lock()

    def of(
        self,
        scorer: Predicting,
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
        values = policies.values(objective, scorer.family, scored.entry.coefs[rows], scored.entry.raw_eta, weights)
        values = values[: len(columns)]
        with self._lock:
            self._kept[key] = values
            if len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        return values
