"""Counts why requests were or were not routed, and logs a change of that once instead of every request."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection

from litellm_router import metrics
from litellm_router.reasons import NotRoutedError
from litellm_router.routers import litellm_version

log = logging.getLogger("litellm_router")

ROUTED = "routed"

#: Reasons that lie in one request or one group and say nothing about the router's own state.
OF_THE_REQUEST = frozenset({"no_text", "models", "off", "traffic", "one_left"})

#: Reasons that an operator has to correct: each sentence is said once, as an error.
MISCONFIGURED = frozenset({"settings", "bundle"})

#: Seconds in which one reason is logged once, so that a state that flips with each request stays quiet.
QUIET_S = 60.0


class Health:
    """The router's state as its requests show it.

    Attributes:
        counts: requests by outcome: `routed`, or the reason of `NotRoutedError`.

    Args:
        clock: seconds, never going back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.counts: Counter[str] = Counter()
        self._clock = clock
        self._state = ROUTED
        self._logged_at: dict[str, float] = {}
        self._errors: set[str] = set()
        self._followed = True
        self._lock = threading.Lock()

    def routed(self) -> None:
        """A request was routed."""
        with self._lock:
            self.counts[ROUTED] += 1
            before, self._state = self._state, ROUTED
        if before != ROUTED:
            self._log(ROUTED, logging.INFO, "p2l: routing again")

    def not_routed(self, why: NotRoutedError) -> None:
        """A request was left to LiteLLM's own strategy."""
        with self._lock:
            self.counts[why.reason] += 1
            if why.reason in OF_THE_REQUEST:
                return
            before, self._state = self._state, why.reason
        if why.reason in MISCONFIGURED:
            self.misconfigured(f"{why.detail}; LiteLLM's own strategy decides")
        elif before != why.reason:
            self._log(why.reason, logging.WARNING, f"p2l: {why.detail}; LiteLLM's own strategy decides")

    def misconfigured(self, sentence: str) -> None:
        """Says once what an operator has to correct."""
        with self._lock:
            if sentence in self._errors or len(self._errors) >= 1000:
                return
            self._errors.add(sentence)
        metrics.misconfigured()
        log.error("p2l: %s", sentence)

    def not_followed(self, offered: Collection[str], taken: str) -> None:
        """LiteLLM sent a request to a deployment that it was not handed; said once."""
        with self._lock:
            self.counts["not_followed"] += 1
            first, self._followed = self._followed, False
        metrics.not_followed()
        if first:
            log.error(
                "p2l: LiteLLM %s does not follow the ranking: it was offered %s and took %s; another callback after "
                "litellm_router.p2l_router may have changed the choice, or this version has another router (p2l check "
                "--live URL tells whether routing works)",
                litellm_version(),
                ", ".join(offered),
                taken,
            )

    def _log(self, topic: str, level: int, sentence: str) -> None:
        now = self._clock()
        with self._lock:
            if now - self._logged_at.get(topic, -QUIET_S) < QUIET_S:
                return
            self._logged_at[topic] = now
        log.log(level, "%s", sentence)
