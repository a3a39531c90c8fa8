"""Memory before a shared store: a hit in this process costs no round trip, and what the store gave stays here."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from p2l_plugins.cache.entry import Entry
from p2l_plugins.cache.memory import MemoryCache
from p2l_plugins.cache.redis import RedisCache
from p2l_plugins.cache.stats import Stats


class TieredCache:
    """A `ScoreCache`: memory, then, where there is one, a shared store.

    Args:
        memory: the first tier.
        shared: the second tier, or None.
    """

    def __init__(self, memory: MemoryCache, shared: RedisCache | None = None) -> None:
        self.memory = memory
        self.shared = shared
        self.stats = shared.stats if shared is not None else Stats()

    async def get_many(
        self, keys: Sequence[str], models: int | None = None, timeout_s: float | None = None
    ) -> list[Entry | None]:
        """The entry of each key, or None; as `ScoreCache.get_many`. Does not wait where all are in memory."""
        found = self.in_memory(keys, models)
        missing = [key for key, entry in zip(keys, found, strict=True) if entry is None]
        if not missing:
            return found
        if self.shared is None:
            self.stats.count("misses", n=len(missing))
            return found
        given = dict(zip(missing, await self.shared.get_many(missing, models, timeout_s), strict=True))
        kept = {key: entry for key, entry in given.items() if entry is not None}
        self.memory.set_many(kept)
        return [entry if entry is not None else kept.get(key) for key, entry in zip(keys, found, strict=True)]

    def in_memory(self, keys: Sequence[str], models: int | None = None) -> list[Entry | None]:
        """As `get_many`, of this process only; for any thread."""
        found = self.memory.get_many(keys)
        if models is not None:
            found = [None if entry is not None and len(entry.coefs) != models else entry for entry in found]
        hits = sum(entry is not None for entry in found)
        if hits:
            self.stats.count("hits", "memory", hits)
        return found

    async def set_many(self, entries: Mapping[str, Entry]) -> None:
        """Keeps the entries in both tiers; returns when they are kept or lost."""
        self.memory.set_many(entries)
        if self.shared is not None:
            await self.shared.set_many(entries)

    def set_soon(self, entries: Mapping[str, Entry], loop: asyncio.AbstractEventLoop) -> None:
        """Keeps the entries in memory now, and writes them to the shared store in the background; for any thread.

        Args:
            entries: by key.
            loop: the event loop that writes; where it is closed, the entries stay in this process.
        """
        self.memory.set_many(entries)
        if self.shared is None:
            return
        try:
            loop.call_soon_threadsafe(self.shared.set_soon, dict(entries))
        except RuntimeError:  # the loop was closed while its request was scored
            self.stats.count("lost", n=len(entries))

    async def flush(self) -> None:
        """Waits until the writes of the running event loop are done."""
        if self.shared is not None:
            await self.shared.flush()

    async def aclose(self) -> None:
        """Ends what goes on in the shared store, on the running event loop."""
        if self.shared is not None:
            await self.shared.aclose()

    def snapshot(self) -> dict[str, Any]:
        """The counters, the state of the breakers, and the size of the memory tier."""
        counts = self.shared.snapshot() if self.shared is not None else self.stats.snapshot()
        return counts | {"memory": {"entries": len(self.memory), "bytes": self.memory.bytes}}
