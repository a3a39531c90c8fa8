"""How long each model's answers are, learnt from the usage that answers report: an exponential average per model."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

#: Answers that the configured length counts for.
PRIOR_ANSWERS = 20

#: Share of the newest answer in the average once many were seen: about the last 200 count.
NEWEST = 0.005


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
