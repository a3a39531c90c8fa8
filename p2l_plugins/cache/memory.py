"""Scores in this process: the least recently used entries go first, and old ones expire."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence

from p2l_plugins.cache import Entry


class MemoryCache:
    """A bounded mapping of keys to scores. Safe to use from several threads.

    Args:
        max_entries: most entries kept.
        ttl_s: seconds until an entry expires.
        clock: seconds, never going back.
    """

    def __init__(
        self, max_entries: int = 10_000, ttl_s: float = 3600.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.max_entries = max_entries
        self.ttl_s = ttl_s
        self._clock = clock
        self._entries: OrderedDict[str, tuple[float, Entry]] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._entries)

    def get_many(self, keys: Sequence[str]) -> list[Entry | None]:
        """The entry of each key, or None."""
        now = self._clock()
        found: list[Entry | None] = []
        with self._lock:
            for key in keys:
                expires, entry = self._entries.get(key, (now, None))
                if entry is not None and expires <= now:
                    del self._entries[key]
                    entry = None
                if entry is not None:
                    self._entries.move_to_end(key)
                found.append(entry)
        return found

    def set_many(self, entries: Mapping[str, Entry]) -> None:
        """Keeps the entries; the least recently used ones make room."""
        expires = self._clock() + self.ttl_s
        with self._lock:
            for key, entry in entries.items():
                self._entries[key] = (expires, entry)
                self._entries.move_to_end(key)
            while len(self._entries) > self.max_entries:
                self._entries.popitem(last=False)
