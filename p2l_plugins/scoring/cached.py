"""A cache for code without an event loop: commands, lm-eval, plain threads; and a scorer that looks there first.

A loop of its own runs in a daemon thread, so that connections stay open between calls and a caller that has a running
loop elsewhere is not in the way.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from p2l_plugins.cache.address import Clients
from p2l_plugins.cache.entry import NAMESPACE, Entry
from p2l_plugins.cache.memory import MemoryCache
from p2l_plugins.cache.redis import RedisCache
from p2l_plugins.cache.settings import derive_secret
from p2l_plugins.cache.tiered import TieredCache
from p2l_plugins.prompts import Turns
from p2l_plugins.scoring.flights import Flights, Scored
from p2l_plugins.scoring.scorer import P2L, Scores

T = TypeVar("T")

#: Seconds that a call to the cache may take whatever happens: its own deadline is much shorter.
LONGEST_S = 60.0

#: Environment variables of the cache's address and of the secret that keys it.
URL, SECRET = "P2L_CACHE_URL", "P2L_CACHE_SECRET"

#: A command waits for its server much longer than a request does.
PATIENT_S = 10.0

#: Prompts that are looked up, scored and written together.
ROWS = 256


class BlockingCache:
    """The same cache with plain methods. Safe to use from several threads; `close` it, or use it with `with`."""

    def __init__(self, cache: TieredCache | RedisCache) -> None:
        self.cache = cache if isinstance(cache, TieredCache) else TieredCache(MemoryCache(), cache)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="p2l-cache", daemon=True)
        self._thread.start()

    def run(self, call: Coroutine[Any, Any, T], longest_s: float | None = LONGEST_S) -> T:
        """The result of a coroutine on the cache's own loop."""
        return asyncio.run_coroutine_threadsafe(call, self._loop).result(longest_s)

    def get_many(self, keys: Sequence[str], models: int | None = None) -> list[Entry | None]:
        """As `TieredCache.get_many`."""
        return self.run(self.cache.get_many(keys, models))

    def set_many(self, entries: Mapping[str, Entry]) -> None:
        """As `TieredCache.set_many`."""
        self.run(self.cache.set_many(entries))

    def close(self) -> None:
        """Ends what goes on, and the loop."""
        self.run(self.cache.aclose())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(LONGEST_S)
        self._loop.close()

    def __enter__(self) -> BlockingCache:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class CachedScorer:
    """Scores as a `P2L` does, and looks in a cache first: one round trip for many prompts.

    Attributes:
        hits: prompts whose scores were in the cache, so far.

    Args:
        p2l: scores what is not in the cache.
        cache: with plain methods.
        namespace: of the keys.
        secret: keys the hash of the prompts.
    """

    def __init__(self, p2l: P2L, cache: BlockingCache, namespace: str = NAMESPACE, secret: bytes = b"") -> None:
        self.p2l = p2l
        self.hits = 0
        self._cache = cache
        self._flights = Flights(p2l, cache.cache, namespace, secret, max_pending=ROWS, whole=True)

    def score_turns(self, prompts: Sequence[Turns], progress: Callable[[int], None] | None = None) -> Scores:
        """As `P2L.score_turns`."""
        entries: list[Entry] = []
        for start in range(0, len(prompts), ROWS):
            scored = self._cache.run(self._score(prompts[start : start + ROWS]), None)
            self.hits += sum(one.cached for one in scored)
            entries += [one.entry for one in scored]
            if progress is not None:
                progress(len(scored))
        return self.p2l.from_entries(entries)

    async def _score(self, prompts: Sequence[Turns]) -> list[Scored]:
        scored = await self._flights.score(prompts)
        await self._cache.cache.flush()
        return scored


@contextmanager
def cached(p2l: P2L) -> Iterator[P2L | CachedScorer]:
    """The bundle, behind the cache that `P2L_CACHE_URL` names, where it is set; `P2L_CACHE_SECRET` keys it.

    Raises:
        ConfigError: not an address.
    """
    url, secret = os.environ.get(URL), os.environ.get(SECRET)
    if not url:
        yield p2l
        return
    own = derive_secret(secret) if secret else b""
    with BlockingCache(RedisCache(Clients(url, URL), deadline_s=PATIENT_S, secret=own)) as cache:
        yield CachedScorer(p2l, cache, secret=own)
