"""What a cache counts: hits by tier, misses, unreadable values, errors by kind, writes, round trips."""

from __future__ import annotations

import bisect
import threading
from collections import Counter
from typing import Any

#: Upper bounds, in ms, of the buckets of round-trip times; the last bucket has none.
BUCKETS_MS = (0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 15.0, 25.0, 50.0, 100.0, 1000.0)

#: What is counted by a second name; the others are plain numbers.
BY_NAME = ("hits", "unreadable", "errors")


class Stats:
    """Counters of one cache. Safe to use from several threads."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, str]] = Counter()
        self._buckets = [0] * (len(BUCKETS_MS) + 1)
        self._total_ms = 0.0
        self._lock = threading.Lock()

    def count(self, what: str, name: str = "", n: int = 1) -> None:
        """Counts `n` more of what, by name where it has kinds."""
        with self._lock:
            self._counts[what, name] += n

    def took(self, seconds: float) -> None:
        """A round trip that was answered."""
        with self._lock:
            self._buckets[bisect.bisect_left(BUCKETS_MS, 1e3 * seconds)] += 1
            self._total_ms += 1e3 * seconds

    def __getitem__(self, what: str) -> int:
        """The count of what, over all names."""
        with self._lock:
            return sum(n for (key, _), n in self._counts.items() if key == what)

    def snapshot(self) -> dict[str, Any]:
        """All counts: `hits`, `unreadable` and `errors` by name, the others as numbers; round trips as a histogram."""
        with self._lock:
            result: dict[str, Any] = {what: {} for what in BY_NAME}
            result |= dict.fromkeys(("misses", "skipped", "written", "lost"), 0)
            for (what, name), n in sorted(self._counts.items()):
                if name:
                    result[what][name] = n
                else:
                    result[what] = n
            bounds = [*map(str, BUCKETS_MS), "+Inf"]
            result["round_trips"] = {
                "count": sum(self._buckets),
                "total_ms": round(self._total_ms, 3),
                "buckets_ms": dict(zip(bounds, self._buckets, strict=True)),
            }
            return result
