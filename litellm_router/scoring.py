"""Scores of a prompt within a deadline, and never on the event loop.

The bundle is loaded once, in a thread of its own, or an HTTP scorer is asked what it has. A prompt's scores come from
the cache in this process, else from the one in Redis that services share, else from an engine, whose threads score in
batches. Identical prompts in flight are scored once. Whoever waits gives up at the deadline; the scoring goes on and
fills the cache, so that the next request finds it.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from typing import Any, TypeVar

import numpy as np

from litellm_router.loading import Scorer, load_scorer
from litellm_router.reasons import NotRoutedError
from litellm_router.redis_client import close_soon
from litellm_router.settings import P2LSettings
from litellm_router.values import Scored, Values
from p2l_plugins.cache.entry import Entry, cache_key
from p2l_plugins.cache.lease import Leases
from p2l_plugins.errors import ConfigError, P2LError
from p2l_plugins.outcomes import has_eta
from p2l_plugins.prompts import Turns
from p2l_plugins.scoring.engine import Busy, Engine
from p2l_plugins.scoring.scorer import Scores

log = logging.getLogger("litellm_router")

#: Different prompts that may wait for their scores; more would only wait until their deadline.
MAX_PENDING = 64

#: Seconds until a bundle that could not be loaded is tried again: a hub may come back.
RELOAD_AFTER_S = 60.0

#: The same of an endpoint, which is asked in an instant.
ASK_AFTER_S = 2.0

T = TypeVar("T")


class Scoring:
    """A bundle, its cache and the threads that score. Safe to use from several threads and event loops.

    Args:
        settings: bundle, threads and size of the cache.
        load: gives the scorer; called in a thread.
        workers: batches that are scored at the same time.
        max_pending: different prompts that may wait or be scored.
        client: gives the Redis client of the running event loop, or None, where the settings name no url.

    Attributes:
        cache: of scores.
        values: of a group's models for a prompt, see `Values.of`.
    """

    def __init__(
        self,
        settings: P2LSettings,
        load: Callable[[P2LSettings], Scorer] = load_scorer,
        workers: int = 2,
        max_pending: int = MAX_PENDING,
        client: Callable[[], Any] | None = None,
    ) -> None:
        self.settings = settings
        self._load = load
        self._workers, self._max_pending = workers, max_pending
        cache = settings.cache
        try:
            self.cache, self._secret = cache.build(client), cache.key_secret()
        except ConfigError as error:
            log.error("p2l: p2l_settings.%s; scores are kept in this process only", error)
            self.cache, self._secret = cache.model_copy(update={"shared": False, "url": None}).build(), b""
        self._namespace = cache.namespace
        shared = self.cache.shared
        self._leases = Leases(shared, cache.lease_ms / 1e3) if cache.lease_ms and shared is not None else None
        self._engine: tuple[Engine, Scorer] | None = None
        self._closed = False
        self._lock = threading.Lock()
        self._pending: dict[str, Future[Entry]] = {}
        self.values = Values().of
        self._loading: Future[Scorer] | None = None
        self._load_failed_at = 0.0

    def start(self) -> Future[Scorer]:
        """Begins to load the bundle, unless that was done; a failed load is tried again after a while.

        An endpoint that was found to have another bundle is asked anew.
        """
        with self._lock:
            loading = self._loading
            if loading is not None and loading.done():
                if loading.exception() is not None:
                    again = RELOAD_AFTER_S if self.settings.endpoint is None else ASK_AFTER_S
                    if time.monotonic() - self._load_failed_at < again:
                        return loading
                    loading = None
                elif getattr(loading.result(), "stale", False):
                    loading = None
            if loading is None:
                loading = self._loading = Future()
                # a daemon thread, not the pool: a download that hangs must not hold up the process's exit
                threading.Thread(target=self._run_load, args=(loading,), name="p2l-load", daemon=True).start()
            return loading

    def _run_load(self, loading: Future[Scorer]) -> None:
        try:
            loading.set_result(self._load(self.settings))
        except Exception as error:  # whatever a bundle, a hub or ONNX Runtime raises, requests go on
            self._load_failed_at = time.monotonic()
            loading.set_exception(error)

    async def scorer(self, deadline: float) -> Scorer:
        """The loaded scorer.

        Args:
            deadline: on the clock `time.monotonic`.

        Raises:
            NotRoutedError: `loading` at the deadline; `bundle`, or `endpoint`, where it can't be loaded.
        """
        loading = self.start()
        if not loading.done() and not await _finished(loading, deadline):
            raise NotRoutedError("loading", "the bundle is being loaded")
        error = loading.exception()
        if error is not None:
            reason = "bundle" if self.settings.endpoint is None else "endpoint"
            raise NotRoutedError(reason, f"{self.settings.scored_by}: {sentence_of(error)}")
        return loading.result()

    async def score(self, scorer: Scorer, turns: Turns, deadline: float) -> Scored:
        """Scores of a prompt.

        Raises:
            NotRoutedError: `busy` when too many prompts wait, `deadline`, `scorer` where scoring failed, or what a
                scorer elsewhere gave as its reason.
        """
        key = cache_key(scorer.fingerprint, turns, self._namespace, self._secret)
        cached = await self._cached(key, len(scorer.models), deadline)
        if cached is not None:
            return Scored(key, cached, hit=True)
        scoring = self._submit(scorer, key, turns)
        if not scoring.done() and not await _finished(scoring, deadline):
            raise NotRoutedError("deadline", f"no scores within {self.settings.timeout_ms:g} ms")
        error = scoring.exception()
        if error is not None:
            # the message of an unknown error could hold text of the prompt: its type has to do
            why = error if isinstance(error, NotRoutedError) else NotRoutedError("scorer", type(error).__name__)
            raise NotRoutedError(why.reason, f"scoring failed: {why.detail}")
        return Scored(key, scoring.result(), hit=False)

    async def _cached(self, key: str, models: int, deadline: float) -> Entry | None:
        """The entry of a key, also where another process is scoring it now; None for one that is to be scored here."""
        entry = self.cache.in_memory([key], models)[0]
        if entry is not None or key in self._pending:
            return entry
        entry = (await self.cache.get_many([key], models, deadline - time.monotonic()))[0]
        if entry is not None or self._leases is None or key in self._pending:
            return entry
        if await self._leases.take(key) or key in self._pending:
            return None
        return await self._leases.wait(key, models, deadline - time.monotonic())

    def _submit(self, scorer: Scorer, key: str, turns: Turns) -> Future[Entry]:
        loop = asyncio.get_running_loop()
        with self._lock:
            scoring = self._pending.get(key)
            if scoring is not None:
                return scoring
            scoring = Future()
            cached = self.cache.memory.get_many([key])[0]
            if cached is not None:  # a scoring that ended after the caller's look at the cache
                scoring.set_result(cached)
                return scoring
            if self._closed:
                raise NotRoutedError("busy", "the router is closed")
            engine, replaced = self._engine_of(scorer)
            try:
                asked = engine.submit(turns)
            except Busy as busy:
                raise NotRoutedError("busy", str(busy)) from None
            self._pending[key] = scoring
        # without the lock: a call-back of what is done already, or dropped, runs at once
        if replaced is not None:
            replaced[0].close()
            _close(replaced[1])
        asked.add_done_callback(lambda done: self._finish(scorer, key, scoring, done, loop))
        return scoring

    def _engine_of(self, scorer: Scorer) -> tuple[Engine, tuple[Engine, Scorer] | None]:
        """The engine of a scorer, and the one that it takes the place of, with its scorer."""
        found = self._engine
        if found is not None and found[1] is scorer:
            return found[0], None
        # a scorer that does not say how much it can take at once gets one prompt at a time
        tokens, workers = getattr(scorer, "batch_tokens", 1), getattr(scorer, "workers", self._workers)
        longest = getattr(scorer, "max_length", 2**31)
        engine = Engine(scorer, workers, self._max_pending, tokens, longest)
        self._engine = (engine, scorer)
        return engine, found

    def _finish(
        self,
        scorer: Scorer,
        key: str,
        scoring: Future[Entry],
        asked: Future[Scores],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        """Keeps what the engine gave, in the engine's thread."""
        entry: Entry | None = None
        error: Exception | None = None
        try:
            entry = _checked(asked.result(), len(scorer.models))
            self.cache.set_soon({key: entry}, loop)
        except CancelledError:
            error = NotRoutedError("scorer", "the router is closed")
        except Exception as raised:  # whatever scoring raised belongs to those who wait for it
            error = raised
        with self._lock:  # first, so that whoever sees a failure can try again
            self._pending.pop(key, None)
        if entry is None or error is not None:
            scoring.set_exception(error)
        else:
            scoring.set_result(entry)

    def close(self) -> None:
        """Takes no more prompts; those that wait are dropped, and connections to Redis of our own are closed."""
        with self._lock:
            self._closed = True
            engine, loading = self._engine, self._loading
        if engine is not None:
            engine[0].close()
        close_soon(self.cache.aclose)
        if loading is not None:
            loading.add_done_callback(lambda done: _close(None if done.exception() else done.result()))


def _close(scorer: Scorer | None) -> None:
    """Closes the connections of a scorer elsewhere."""
    close = getattr(scorer, "close", None)
    if close is not None:
        close()


def sentence_of(error: BaseException) -> str:
    """What went wrong with a load, for the log."""
    if isinstance(error, NotRoutedError):
        return error.detail
    return str(error) if isinstance(error, P2LError) else f"{type(error).__name__}: {error}"


def _checked(scores: Scores, n_models: int) -> Entry:
    coefs = np.asarray(scores.coefs)
    if coefs.shape != (1, n_models):
        raise NotRoutedError("scorer", f"scores of shape {coefs.shape} for 1 prompt and {n_models} models")
    raw_eta = None if scores.raw_eta is None else float(scores.raw_eta[0])
    if has_eta(scores.family) and raw_eta is None:
        raise NotRoutedError("scorer", f"scores of the family {scores.family} without raw_eta")
    if not np.isfinite(coefs).all() or (raw_eta is not None and not np.isfinite(raw_eta)):
        raise NotRoutedError("scorer", "scores that are not finite numbers")
    return Entry(coefs[0].copy(), raw_eta, None if scores.truncated is None else bool(scores.truncated[0]))


async def _finished(future: Future[T], deadline: float) -> bool:
    """Waits for a thread's future until the deadline, without cancelling it there or when the waiter is cancelled."""
    waiter = asyncio.wrap_future(future)
    waiter.add_done_callback(_retrieve)
    await asyncio.wait([waiter], timeout=max(0.0, deadline - time.monotonic()))
    return future.done()


def _retrieve(waiter: asyncio.Future[T]) -> None:
    """Marks an error as seen, so that asyncio does not log it when nobody waits any more."""
    if not waiter.cancelled():
        waiter.exception()
