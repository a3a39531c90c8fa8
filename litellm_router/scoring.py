"""Scores of a prompt within a deadline, and never on the event loop.

The bundle is loaded once, in a thread of its own. A prompt's scores come from the cache in this process, else from the
one in Redis that services share, else from an engine, whose threads score in batches. Identical prompts in flight are
scored once. Whoever waits gives up at the deadline; the scoring goes on and fills the cache, so that the next request
finds it.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np

from litellm_router.settings import P2LSettings
from p2l_plugins import routing
from p2l_plugins.cache import Entry, cache_key
from p2l_plugins.cache.lease import Leases
from p2l_plugins.engine import Busy, Engine
from p2l_plugins.errors import ConfigError, P2LError
from p2l_plugins.outcomes import Array, Family, has_eta
from p2l_plugins.prompts import Turns
from p2l_plugins.scorer import P2L, Scores

log = logging.getLogger("litellm_router")

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
    p2l = P2L.load(settings.bundle, threads=settings.threads)
    p2l.warm_up()
    return p2l


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
    """

    def __init__(
        self,
        settings: P2LSettings,
        load: Callable[[P2LSettings], Scorer] = load_bundle,
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
        self._engine: Engine | None = None
        self._closed = False
        self._lock = threading.Lock()
        self._pending: dict[str, Future[Entry]] = {}
        self._values: OrderedDict[tuple[object, ...], Array] = OrderedDict()
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

    def values(
        self,
        scorer: Scorer,
        scored: Scored,
        columns: Sequence[int],
        objective: str,
        opponents: tuple[tuple[int, float], ...] = (),
    ) -> Array:
        """Value of each model of a group for a prompt.

        Args:
            columns: of the group's models.
            opponents: column and weight of each opponent of a win rate; none: the group's own models, all alike.
        """
        key = (scored.key, objective, tuple(columns), opponents)
        with self._lock:
            values = self._values.get(key)
            if values is not None:
                self._values.move_to_end(key)
                return values
        rows, weights = list(columns), None
        if opponents and objective == "win_rate":
            rows += [column for column, _ in opponents]
            weights = [0.0] * len(columns) + [weight for _, weight in opponents]
        values = routing.values(objective, scorer.family, scored.entry.coefs[rows], scored.entry.raw_eta, weights)
        values = values[: len(columns)]
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
            detail = error.detail if isinstance(error, NotRoutedError) else type(error).__name__
            raise NotRoutedError("scorer", f"scoring failed: {detail}")
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
            if self._engine is None:
                # a scorer that does not say how much it can take at once gets one prompt at a time
                tokens = getattr(scorer, "batch_tokens", 1)
                self._engine = Engine(scorer, self._workers, self._max_pending, tokens)
            try:
                asked = self._engine.submit(turns)
            except Busy as busy:
                raise NotRoutedError("busy", str(busy)) from None
            self._pending[key] = scoring
        # without the lock: a call-back of what is done already runs at once
        asked.add_done_callback(lambda done: self._finish(scorer, key, scoring, done, loop))
        return scoring

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
        """Takes no more prompts; those that wait are dropped."""
        with self._lock:
            self._closed = True
            engine = self._engine
        if engine is not None:
            engine.close()


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
