"""What the router remembers of its traffic: conversations, the length of answers, what of a budget was spent."""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Sequence

from litellm_router.sessions import Sessions
from litellm_router.settings import P2LSettings, Rule
from litellm_router.usage import AnswerLengths
from p2l_plugins.outcomes import Array
from p2l_plugins.routing.pacing import Pacer

#: Requests whose cost is still expected and not known: an answer that never ends is forgotten.
MOST_OPEN = 10_000


class Traffic:
    """The memory of one configuration. Safe to use from several threads.

    Attributes:
        lengths: expected tokens of an answer, per model.
        pacers: the budgets of the rule `paced`, by group, budget and objective.

    Args:
        settings: of the router.
    """

    def __init__(self, settings: P2LSettings) -> None:
        self.settings = settings
        self.lengths = AnswerLengths(settings.expected_tokens)
        self.pacers: dict[str, Pacer] = {}
        sticky = settings.sticky
        self._sessions = None if sticky is None else Sessions(sticky.ttl_s, sticky.sessions)
        self._rules: dict[str, Rule | None] = {}
        self._open: OrderedDict[str, tuple[Pacer | None, float]] = OrderedDict()
        self._lock = threading.Lock()

    def rule_of(self, group: str) -> Rule | None:
        """The rule of a model group; None where P2L leaves it to LiteLLM."""
        key = group if group in self.settings.groups else ""
        if key not in self._rules:
            self._rules[key] = self.settings.rule_of(group)
        return self._rules[key]

    def answer_tokens(self, models: Sequence[str]) -> list[float]:
        """Expected tokens of the answer of each model."""
        return [self.lengths.expected(model) for model in models]

    def pacer(self, group: str, rule: Rule, values: Array, costs: Array) -> Pacer | None:
        """The multiplier of a group's budget, for the rule `paced`; the first request gives it a start."""
        if rule.rule != "paced" or rule.budget is None:
            return None
        key = f"{group}:{rule.budget!r}:{rule.objective}"
        with self._lock:
            pacer = self.pacers.get(key)
            if pacer is None:
                pacer = self.pacers[key] = Pacer(rule.budget)
        pacer.start_from(values, costs)
        return pacer

    def current(self, group: str, session: str | None) -> str | None:
        """The model that has a conversation, or None."""
        return self._sessions.get(group, session) if self._sessions is not None and session else None

    def decided(
        self, request: str | None, group: str, session: str | None, model: str, pacer: Pacer | None, cost: float
    ) -> None:
        """Books a decision; further attempts of the same request are not booked again.

        Args:
            request: its id; cost: expected USD of the model that was chosen, NaN where its price is unknown.
        """
        if self._sessions is not None and session:
            self._sessions.set(group, session, model)
        if pacer is None or math.isnan(cost):
            return
        if request is not None:
            with self._lock:
                if request in self._open:
                    return
                self._open[request] = (pacer, cost)
                if len(self._open) > MOST_OPEN:
                    self._open.popitem(last=False)
        pacer.charge(cost)

    def answered(self, request: str | None, model: str | None, tokens: int | None, cost: float | None) -> None:
        """An answer ended: learns its length, and books what it cost in place of what was expected.

        Args:
            model: the bundle's name of the model that answered; tokens: of the answer; cost: in USD.
        """
        if self.settings.learn_output_tokens and model is not None and tokens is not None:
            self.lengths.observe(model, tokens)
        with self._lock:
            pacer, expected = self._open.get(request or "", (None, 0.0))
            if pacer is not None and request is not None:
                self._open[request] = (None, 0.0)  # known still, so that a late attempt is not booked again
        if pacer is not None and cost is not None:
            pacer.charge(cost - expected, requests=0)
