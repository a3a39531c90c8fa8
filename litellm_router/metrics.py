"""Prometheus metrics in the default registry, which LiteLLM's own `/metrics` serves.

Without the package prometheus-client there are none.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import Counter as Counts
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from litellm_router.record import Record

try:
    from prometheus_client import Counter, Gauge, Histogram
except ImportError:  # prometheus-client is optional
    _ALL: dict[str, Any] = {}
else:
    #: Upper ends in seconds: a cached decision takes a tenth of a millisecond, a scoring some, a deadline 200.
    _BUCKETS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0)
    _ALL = {
        "decisions": Counter("p2l_decisions", "Requests that P2L ranked, by first model", ["group", "model", "mode"]),
        "not_routed": Counter("p2l_not_routed", "Requests left to LiteLLM's own strategy, by reason", ["reason"]),
        "not_followed": Counter("p2l_not_followed", "Requests that went to a deployment other than those offered"),
        "problems": Counter("p2l_config_problems", "What an operator has to correct, each sentence of the log once"),
        "swaps": Counter("p2l_bundle_swaps", "Bundles found in place of the one in use: taken, refused", ["result"]),
        "cache": Counter("p2l_cache_requests", "Lookups of a prompt's scores", ["result"]),
        "latency": Histogram("p2l_latency_seconds", "Time that routing added to a request", buckets=_BUCKETS),
        "multiplier": Gauge(
            "p2l_multiplier",
            "Multiplier of a paced budget, value per USD",
            ["group"],
            multiprocess_mode="mostrecent",
        ),
        "truncated": Counter("p2l_truncated", "Prompts that were longer than the bundle reads"),
        "unknown": Counter("p2l_unknown_text", "Prompts decided by the overall scores: their text is unknown"),
        "cost": Counter("p2l_expected_cost_usd", "Expected cost of the models ranked first", ["group"]),
        "budget": Counter(
            "p2l_budget_usd",
            "Of the requests that had a budget: it (allowed), and the expected cost",
            ["group", "what"],
        ),
        "hits": Counter("p2l_cache_hits", "Scores that a tier of the cache had", ["tier"]),
        "misses": Counter("p2l_cache_misses", "Scores that no tier had, or none that could be read in time"),
        "skipped": Counter("p2l_cache_skipped", "Looks into Redis that were left out or given up at the deadline"),
        "unreadable": Counter("p2l_cache_unreadable", "Values in Redis that are no scores, by kind", ["kind"]),
        "errors": Counter("p2l_cache_errors", "Failures of Redis, by kind", ["kind"]),
        "writes": Counter("p2l_cache_writes", "Scores for Redis", ["result"]),
        "collected": Counter("p2l_collected", "Answers compared with another model's, by outcome", ["outcome"]),
        "trips": Counter("p2l_cache_round_trips", "Answered reads, by the least bound in ms that they kept", ["ms"]),
        "trip_seconds": Counter("p2l_cache_round_trip_seconds", "Time of all answered reads"),
        "breaker": Gauge(
            "p2l_cache_breaker",
            "Whether Redis is left alone: 0 no, 1 probing, 2 yes",
            ["direction"],
            multiprocess_mode="max",
        ),
    }

#: Seconds between two looks at the counters of the cache.
EVERY_S = 1.0

_BREAKER = {"closed": 0, "half-open": 1, "open": 2}


def observe(group: str, record: Record, seconds: float) -> None:
    """Counts a decision, or why there was none."""
    if not _ALL:
        return
    _ALL["latency"].observe(seconds)
    if "error" in record:
        _ALL["not_routed"].labels(record["error"]).inc()
        return
    _ALL["decisions"].labels(group, record["model"], record["mode"]).inc()
    _ALL["cache"].labels(record["cache"]).inc()
    if record.get("truncated"):
        _ALL["truncated"].inc()
    if record.get("reason") == "unknown_text":
        _ALL["unknown"].inc()
    cost = record["costs"].get(record["model"])
    if cost is not None:
        _ALL["cost"].labels(group).inc(cost)
        if record.get("budget") is not None:
            _ALL["budget"].labels(group, "allowed").inc(record["budget"])
            _ALL["budget"].labels(group, "expected").inc(cost)
    if "multiplier" in record:
        _ALL["multiplier"].labels(group).set(record["multiplier"])


def misconfigured() -> None:
    """Counts something that an operator has to correct."""
    if _ALL:
        _ALL["problems"].inc()


def swapped(result: str) -> None:
    """Counts a bundle that was found in the place of the one in use."""
    if _ALL:
        _ALL["swaps"].labels(result).inc()


def not_followed() -> None:
    """Counts a request that LiteLLM sent to a deployment that it was not handed."""
    if _ALL:
        _ALL["not_followed"].inc()


def collected(outcome: str) -> None:
    """Counts an answer that was to be compared with another model's."""
    if _ALL:
        _ALL["collected"].labels(outcome).inc()


class Counted(Protocol):
    """A cache that counts, such as `p2l_plugins.cache.tiered.TieredCache`."""

    def snapshot(self) -> dict[str, Any]:
        """The counters so far, and the state of the breakers."""


class CacheCounters:
    """Carries the counters of a cache over to Prometheus, behind the requests.

    Args:
        clock: seconds, never going back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._next = self._due = 0.0
        self._cache: Counted | None = None
        self._seen: Counts[tuple[str, str]] = Counts()
        self._lock = threading.Lock()

    def carry(self, cache: Counted) -> None:
        """Adds what the cache counted since the last time, at most once a second, and a second later what came then."""
        now = self._clock()
        if not _ALL:
            return
        if now < self._next:
            self._carry_later(cache, now)
            return
        if not self._lock.acquire(blocking=False):
            return
        try:
            self._next = now + EVERY_S
            if cache is not self._cache:  # another one counts from 0
                self._cache, self._seen = cache, Counts()
            snapshot = cache.snapshot()
            counts = _flat(snapshot)
            for (name, label), n in counts.items():
                new = n - self._seen[name, label]
                if new > 0:
                    (_ALL[name].labels(label) if label else _ALL[name]).inc(new)
            self._seen = counts
            for direction, state in (snapshot.get("breakers") or {}).items():
                _ALL["breaker"].labels(direction).set(_BREAKER[state])
        finally:
            self._lock.release()

    def _carry_later(self, cache: Counted, now: float) -> None:
        """Has the running event loop carry at the end of this second, where that is not due already."""
        if now < self._due:
            return
        self._due = self._next
        with contextlib.suppress(RuntimeError):  # without a loop, the next request does it
            asyncio.get_running_loop().call_later(self._next - now, self.carry, cache)


def _flat(snapshot: Mapping[str, Any]) -> Counts[tuple[str, str]]:
    """Each counter by the name of its metric and its label."""
    trips = snapshot["round_trips"]
    flat: dict[tuple[str, str], float] = {
        ("misses", ""): snapshot["misses"],
        ("skipped", ""): snapshot["skipped"],
        ("writes", "written"): snapshot["written"],
        ("writes", "lost"): snapshot["lost"],
        ("trip_seconds", ""): trips["total_ms"] / 1e3,
    }
    for name in ("hits", "unreadable", "errors"):
        flat |= {(name, label): n for label, n in snapshot[name].items()}
    flat |= {("trips", bound): n for bound, n in trips["buckets_ms"].items()}
    return Counts(flat)
