"""A `ScoreCache` for code without an event loop: commands, lm-eval, plain threads; and a scorer that looks there first.

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

import numpy as np

from p2l_plugins.cache.address import Clients
from p2l_plugins.cache.entry import NAMESPACE, Entry, ScoreCache, cache_key
from p2l_plugins.cache.redis import RedisCache
from p2l_plugins.cache.settings import derive_secret
from p2l_plugins.outcomes import has_eta
from p2l_plugins.prompts import Turns
from p2l_plugins.scoring.scorer import P2L, Scores

T = TypeVar("T")

#: Seconds that one call may take whatever happens: the cache's own deadline is much shorter.
LONGEST_S = 60.0

#: Environment variables of the cache's address and of the secret that keys the hash.
URL, SECRET = "P2L_CACHE_URL", "P2L_CACHE_SECRET"

#: A command waits for its server much longer than a request does.
PATIENT_S = 10.0

#: Prompts that are looked up, scored and written together.
ROWS = 256


class BlockingCache:
    """The same cache with plain methods. Safe to use from several threads; `close` it, or use it with `with`."""

    def __init__(self, cache: ScoreCache) -> None:
        self.cache = cache
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="p2l-cache", daemon=True)
        self._thread.start()

    def run(self, call: Coroutine[Any, Any, T]) -> T:
        """The result of a coroutine on the cache's own loop."""
        return asyncio.run_coroutine_threadsafe(call, self._loop).result(LONGEST_S)

    def get_many(self, keys: Sequence[str], models: int | None = None) -> list[Entry | None]:
        """As `ScoreCache.get_many`."""
        return self.run(self.cache.get_many(keys, models))

    def set_many(self, entries: Mapping[str, Entry]) -> None:
        """As `ScoreCache.set_many`."""
        self.run(self.cache.set_many(entries))

    def close(self) -> None:
        """Ends what goes on, and the loop."""
        aclose = getattr(self.cache, "aclose", None)
        if aclose is not None:
            self.run(aclose())
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
        self._namespace, self._secret = namespace, secret

    def score_turns(self, prompts: Sequence[Turns], progress: Callable[[int], None] | None = None) -> Scores:
        """As `P2L.score_turns`."""
        coefs = np.empty((len(prompts), len(self.p2l.models)), np.float32)
        raw_eta = np.empty(len(prompts), np.float32) if has_eta(self.p2l.family) else None
        truncated = np.zeros(len(prompts), np.bool_)
        for start in range(0, len(prompts), ROWS):
            rows = prompts[start : start + ROWS]
            for i, entry in enumerate(self._entries(rows), start):
                coefs[i], truncated[i] = entry.coefs, bool(entry.truncated)
                if raw_eta is not None:
                    raw_eta[i] = entry.raw_eta
            if progress is not None:
                progress(len(rows))
        bundle = self.p2l.bundle.manifest
        apart = frozenset(bundle.ungrounded)
        return Scores(self.p2l.models, coefs, raw_eta, self.p2l.family, bundle.aliases, apart, truncated)

    def _entries(self, prompts: Sequence[Turns]) -> list[Entry]:
        keys = [cache_key(self.p2l.fingerprint, turns, self._namespace, self._secret) for turns in prompts]
        found = dict(zip(keys, self._cache.get_many(keys, len(self.p2l.models)), strict=True))
        known = {key: entry for key, entry in found.items() if entry is not None and self._complete(entry)}
        self.hits += sum(key in known for key in keys)
        unknown = {key: turns for key, turns in zip(keys, prompts, strict=True) if key not in known}
        if unknown:
            scores = self.p2l.score_turns(list(unknown.values()))
            etas = [None] * len(unknown) if scores.raw_eta is None else [float(eta) for eta in scores.raw_eta]
            cut = [False] * len(unknown) if scores.truncated is None else scores.truncated.tolist()
            made = {key: Entry(scores.coefs[i], etas[i], cut[i]) for i, key in enumerate(unknown)}
            self._cache.set_many(made)
            known |= made
        return [known[key] for key in keys]

    def _complete(self, entry: Entry) -> bool:
        return (entry.raw_eta is not None) == has_eta(self.p2l.family) and entry.truncated is not None


@contextmanager
def cached(p2l: P2L) -> Iterator[P2L | CachedScorer]:
    """The bundle, behind the cache that `P2L_CACHE_URL` names, where it is set; `P2L_CACHE_SECRET` keys the hash.

    Raises:
        ConfigError: not an address.
    """
    url, secret = os.environ.get(URL), os.environ.get(SECRET)
    if not url:
        yield p2l
        return
    with BlockingCache(RedisCache(Clients(url), deadline_s=PATIENT_S)) as cache:
        yield CachedScorer(p2l, cache, secret=derive_secret(secret) if secret else b"")
