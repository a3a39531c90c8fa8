"""What the router remembers of its traffic: the length of answers, what of a budget was spent, the conversations.

The length of answers is learnt from the usage that they report: a running mean per model that becomes exponential.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from litellm_router.conversations import Conversations
from litellm_router.settings import P2LSettings, Rule, Sticky
from p2l_plugins.outcomes import Array
from p2l_plugins.routing.pacing import Pacer

#: Requests whose cost is still expected and not known: an answer that never ends is forgotten.
MOST_OPEN = 10_000

#: What is remembered of a conversation, on average: how it began, its id, what its answers hold.
MARKS_OF_A_CONVERSATION = 8

#: Budgets that are kept: with one for each API key, the least used are forgotten.
MOST_PACERS = 10_000

#: Answers that the configured length counts for.
PRIOR_ANSWERS = 20

#: Share of the newest answer in the average once many were seen: about the last 200 count.
NEWEST = 0.005


class Traffic:
    """The memory of one configuration. Safe to use from several threads.

    Attributes:
        lengths: expected tokens of an answer, per model.
        pacers: the budgets of the rule `paced`, by group, budget and objective.

        conversations: who has them.

    Args:
        settings: of the router.
        secret: keys the hashes of conversations, where proxies share them.
        client: gives the Redis client of the running event loop, or None.
    """

    def __init__(self, settings: P2LSettings, secret: bytes = b"", client: Callable[[], Any] | None = None) -> None:
        self.settings = settings
        self.lengths = AnswerLengths(settings.expected_tokens)
        self.pacers: OrderedDict[str, Pacer] = OrderedDict()
        sticky = settings.sticky or Sticky()
        self.conversations = Conversations(
            sticky.ttl_s,
            MARKS_OF_A_CONVERSATION * sticky.sessions,
            secret,
            client,
            settings.cache.namespace,
            settings.cache.deadline_ms / 1e3,
        )
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

    def pacer(self, group: str, rule: Rule, values: Array, costs: Array, payer: str = "") -> Pacer | None:
        """The multiplier of a budget, for the rule `paced`; the first request gives it a start.

        Args:
            payer: whose budget it is, beside the group.
        """
        if rule.rule != "paced" or rule.budget is None:
            return None
        key = f"{group}:{rule.budget!r}:{rule.objective}{payer and ':'}{payer}"
        with self._lock:
            pacer = self.pacers.get(key)
            if pacer is None:
                pacer = self.pacers[key] = Pacer(rule.budget)
                if len(self.pacers) > MOST_PACERS:
                    self.pacers.popitem(last=False)
            self.pacers.move_to_end(key)
        pacer.start_from(values, costs)
        return pacer

    def decided(self, request: str | None, pacer: Pacer | None, cost: float) -> None:
        """Books a decision; further attempts of the same request are not booked again.

        Args:
            request: the router's own token of it; cost: expected USD of the model that was chosen, NaN where its price
                is unknown.
        """
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


class AnswerLengths:
    """Expected tokens of an answer, per model. Safe to use from several threads.

    Args:
        configured: expected tokens of a model's answer before any was seen.
        most: most models that are kept.
    """

    def __init__(self, configured: Callable[[str], float], most: int = 10_000) -> None:
        self._configured = configured
        self._most = most
        self._seen: dict[str, tuple[int, float]] = {}
        self._new: dict[str, tuple[int, float]] = {}
        self._lock = threading.Lock()

    def expected(self, model: str) -> float:
        """Expected tokens of an answer of a model."""
        seen = self._seen.get(model)
        if seen is None:
            seen = (0, float(self._configured(model)))
            if len(self._seen) < self._most:
                self._seen[model] = seen
        return seen[1]

    def observe(self, model: str, tokens: int) -> None:
        """An answer's length."""
        with self._lock:
            if model not in self._seen and len(self._seen) >= self._most:
                return
            count, mean = self._seen.get(model) or (0, float(self._configured(model)))
            self._seen[model] = (count + 1, mean + weight(count, 1) * (tokens - mean))
            n, total = self._new.get(model, (0, 0.0))
            self._new[model] = (n + 1, total + tokens)

    def take_new(self) -> dict[str, tuple[int, float]]:
        """Number and sum of the lengths that other processes do not know yet, per model."""
        with self._lock:
            new, self._new = self._new, {}
            return new

    def give_back(self, new: Mapping[str, tuple[int, float]]) -> None:
        """Takes lengths back that could not be handed over."""
        with self._lock:
            for model, (n, total) in new.items():
                count, have = self._new.get(model, (0, 0.0))
                self._new[model] = (count + n, have + total)

    def see(self, shared: Mapping[str, tuple[int, float]]) -> None:
        """Takes over the number of answers and the average that the processes share, per model."""
        with self._lock:
            for model, (count, mean) in shared.items():
                n, total = self._new.get(model, (0, 0.0))  # seen since the hand-over
                move = weight(count, n) * (total / n - mean) if n else 0.0
                self._seen[model] = (count + n, mean + move)

    def models(self) -> list[str]:
        """Models that were asked about or answered."""
        with self._lock:
            return list(self._seen)

    def configured(self, model: str) -> float:
        """Expected tokens before any answer was seen."""
        return float(self._configured(model))


def weight(count: int, new: int) -> float:
    """Share of `new` answers in the average after `count` earlier ones: a running mean that becomes exponential."""
    left = 1.0
    for i in range(min(new, 1000)):
        left *= 1.0 - max(NEWEST, 1.0 / (PRIOR_ANSWERS + count + i + 1))
    return 1.0 - left
