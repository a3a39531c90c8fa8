"""Scores of a prompt within a deadline, and never on the event loop.

The bundle is loaded once, in a thread of its own. A prompt's scores come from the cache in this process, else from a
small pool of threads. Identical prompts in flight are scored once. Whoever waits gives up at the deadline; the scoring
goes on and fills the cache, so that the next request finds it.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, Protocol, TypeVar

import numpy as np

from litellm_router.settings import P2LSettings
from p2l_plugins import routing
from p2l_plugins.cache import Entry, cache_key
from p2l_plugins.cache.memory import MemoryCache
from p2l_plugins.errors import P2LError
from p2l_plugins.outcomes import Array, Family, has_eta
from p2l_plugins.prompts import Turns
from p2l_plugins.scorer import P2L, Scores

#: Different prompts that may wait for their scores; more would only wait until their deadline.
MAX_PENDING = 64

#: Seconds until a bundle that could not be loaded is tried again: a hub may come back.
RELOAD_AFTER_S = 60.0

#: Prompts whose values are kept for a group: in a large group they cost more than all else in a decision.
KEPT_VALUES = 1024

T = TypeVar("T")


class NotRoutedError(P2LError):
    """P2L does not decide this request, for a reason that counters, logs and the header `x-p2l-error` name.

    Attributes:
        reason: one word.
        detail: a sentence for the log, without any text of the prompt.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.detail = detail


class Scored(NamedTuple):
    """Scores of a prompt, the key under which they are cached, and whether they were there."""

    key: str
    entry: Entry
    hit: bool


class Scorer(Protocol):
    """What the router needs of `p2l_plugins.P2L`."""

    @property
    def models(self) -> tuple[str, ...]:
        """Names in the order of the coefficients."""

    @property
    def family(self) -> Family:
        """The outcome model."""

    @property
    def fingerprint(self) -> str:
        """Hash over all that changes a score."""

    def index(self, model: str) -> int:
        """Column of a model, by its name or an alias."""

    def score_turns(self, prompts: Sequence[Turns]) -> Scores:
        """Coefficients of prompts."""


def load_bundle(settings: P2LSettings) -> Scorer:
    """The bundle that the settings name, ready to score.

    Raises:
        P2LError: no such bundle, a damaged one, or no ONNX Runtime.
    """
    return P2L.load(settings.bundle, threads=settings.threads)


class Scoring:
    """A bundle, its cache and the threads that score. Safe to use from several threads and event loops.

    Args:
        settings: bundle, threads and size of the cache.
        load: gives the scorer; called in a thread.
        workers: prompts that are scored at the same time.
        max_pending: different prompts that may wait.
    """

    def __init__(
        self,
        settings: P2LSettings,
        load: Callable[[P2LSettings], Scorer] = load_bundle,
        workers: int = 2,
        max_pending: int = MAX_PENDING,
    ) -> None:
        self.settings = settings
        self._load = load
        self._max_pending = max_pending
        self._cache = MemoryCache(settings.cache_entries, settings.cache_ttl_s)
        self._executor = ThreadPoolExecutor(workers, thread_name_prefix="p2l-score")
        self._lock = threading.Lock()
        self._pending: dict[str, Future[Entry]] = {}
        self._values: OrderedDict[tuple[str, str, tuple[int, ...]], Array] = OrderedDict()
        self._loading: Future[Scorer] | None = None
        self._load_failed_at = 0.0

    def start(self) -> Future[Scorer]:
        """Begins to load the bundle, unless that was done; a failed load is tried again after a while."""
        with self._lock:
            loading = self._loading
            if loading is not None and loading.done() and loading.exception() is not None:
                if time.monotonic() - self._load_failed_at < RELOAD_AFTER_S:
                    return loading
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
            NotRoutedError: `loading` at the deadline, `bundle` where it can't be loaded.
        """
        loading = self.start()
        if not loading.done() and not await _finished(loading, deadline):
            raise NotRoutedError("loading", "the bundle is being loaded")
        error = loading.exception()
        if error is not None:
            detail = str(error) if isinstance(error, P2LError) else f"{type(error).__name__}: {error}"
            raise NotRoutedError("bundle", f"p2l_settings.bundle = {self.settings.bundle!r}: {detail}")
        return loading.result()

    def values(self, scorer: Scorer, scored: Scored, columns: Sequence[int], objective: str) -> Array:
        """Value of each model of a group for a prompt; the opponents of a win rate are the group's own models."""
        key = (scored.key, objective, tuple(columns))
        with self._lock:
            values = self._values.get(key)
            if values is not None:
                self._values.move_to_end(key)
                return values
        values = routing.values(objective, scorer.family, scored.entry.coefs[list(columns)], scored.entry.raw_eta)
        with self._lock:
            self._values[key] = values
            if len(self._values) > KEPT_VALUES:
                self._values.popitem(last=False)
        return values

    async def score(self, scorer: Scorer, turns: Turns, deadline: float) -> Scored:
        """Scores of a prompt.

        Raises:
            NotRoutedError: `busy` when too many prompts wait, `deadline`, or `scorer` where scoring failed.
        """
        key = cache_key(scorer.fingerprint, turns)
        cached = self._cache.get_many([key])[0]
        if cached is not None:
            return Scored(key, cached, hit=True)
        scoring = self._submit(scorer, key, turns)
        if not scoring.done() and not await _finished(scoring, deadline):
            raise NotRoutedError("deadline", f"no scores within {self.settings.timeout_ms:g} ms")
        error = scoring.exception()
        if error is not None:
            # the message of an unknown error could hold text of the prompt: its type has to do
            detail = error.detail if isinstance(error, NotRoutedError) else type(error).__name__
            raise NotRoutedError("scorer", f"scoring failed: {detail}")
        return Scored(key, scoring.result(), hit=False)

    def _submit(self, scorer: Scorer, key: str, turns: Turns) -> Future[Entry]:
        with self._lock:
            scoring = self._pending.get(key)
            if scoring is not None:
                return scoring
            cached = self._cache.get_many([key])[0]
            if cached is not None:  # a scoring that ended after the caller's look at the cache
                scoring = Future()
                scoring.set_result(cached)
                return scoring
            if len(self._pending) >= self._max_pending:
                raise NotRoutedError("busy", f"{self._max_pending} prompts wait for their scores")
            scoring = self._pending[key] = self._executor.submit(self._score, scorer, key, turns)
            return scoring

    def _score(self, scorer: Scorer, key: str, turns: Turns) -> Entry:
        try:
            scores = scorer.score_turns([turns])
            entry = _checked(scores, len(scorer.models))
            self._cache.set_many({key: entry})
            return entry
        finally:
            with self._lock:
                self._pending.pop(key, None)

    def close(self) -> None:
        """Takes no more prompts; those that wait are dropped."""
        self._executor.shutdown(wait=False, cancel_futures=True)


def _checked(scores: Scores, n_models: int) -> Entry:
    coefs = np.asarray(scores.coefs)
    if coefs.shape != (1, n_models):
        raise NotRoutedError("scorer", f"scores of shape {coefs.shape} for 1 prompt and {n_models} models")
    raw_eta = None if scores.raw_eta is None else float(scores.raw_eta[0])
    if has_eta(scores.family) and raw_eta is None:
        raise NotRoutedError("scorer", f"scores of the family {scores.family} without raw_eta")
    if not np.isfinite(coefs).all() or (raw_eta is not None and not np.isfinite(raw_eta)):
        raise NotRoutedError("scorer", "scores that are not finite numbers")
    return Entry(coefs[0].copy(), raw_eta)


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
