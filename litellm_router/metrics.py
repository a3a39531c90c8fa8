"""Prometheus metrics in the default registry, which LiteLLM's own `/metrics` serves.

Without the package prometheus-client there are none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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
        "cache": Counter("p2l_cache_requests", "Lookups of a prompt's scores", ["result"]),
        "latency": Histogram("p2l_latency_seconds", "Time that routing added to a request", buckets=_BUCKETS),
        "multiplier": Gauge(
            "p2l_multiplier",
            "Multiplier of a paced budget, value per USD",
            ["group"],
            multiprocess_mode="mostrecent",
        ),
        "cost": Counter("p2l_expected_cost_usd", "Expected cost of the models ranked first", ["group"]),
    }


def observe(group: str, record: Mapping[str, Any], seconds: float) -> None:
    """Counts a decision, or why there was none."""
    if not _ALL:
        return
    _ALL["latency"].observe(seconds)
    if "error" in record:
        _ALL["not_routed"].labels(record["error"]).inc()
        return
    _ALL["decisions"].labels(group, record["model"], record["mode"]).inc()
    _ALL["cache"].labels(record["cache"]).inc()
    cost = record["costs"].get(record["model"])
    if cost is not None:
        _ALL["cost"].labels(group).inc(cost)
    if "multiplier" in record:
        _ALL["multiplier"].labels(group).set(record["multiplier"])
