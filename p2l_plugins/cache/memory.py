"""Scores in this process: the least recently used entries go first, and old ones expire."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence

from p2l_plugins.cache.entry import Entry

#: Bytes of an entry beside its coefficients: key, array, tuples and the place in the dictionary (measured: 470).
ENTRY_BYTES = 480


class MemoryCache:
    """A bounded mapping of keys to scores. Safe to use from several threads.

    Its methods are plain functions, for threads and for code without an event loop; `TieredCache` gives it the form of
    a `ScoreCache`.

    Args:
        max_entries: most entries kept.
        ttl_s: seconds until an entry expires.
        clock: seconds, never going back.
        max_bytes: most memory that the entries take, about; None sets no bound.
    """

    def __init__(
        self,
        max_entries: int = 10_000,
        ttl_s: float = 3600.0,
        clock: Callable[[], float] = time.monotonic,
        max_bytes: int | None = None,
    ) -> None:
        self.max_entries = max_entries
        self.ttl_s = ttl_s
        self.max_bytes = max_bytes
        self.bytes = 0
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
                    self._remove(key)
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
                self._remove(key)
                self._entries[key] = (expires, entry)
                self.bytes += _size(entry)
            while self._entries and self._is_full():
                self._remove(next(iter(self._entries)))

    def _is_full(self) -> bool:
        return len(self._entries) > self.max_entries or (self.max_bytes is not None and self.bytes > self.max_bytes)

    def _remove(self, key: str) -> None:
        removed = self._entries.pop(key, None)
        if removed is not None:
            self.bytes -= _size(removed[1])


def _size(entry: Entry) -> int:
    return ENTRY_BYTES + entry.coefs.nbytes
