"""Scores of many prompts at once: what the cache has in one round trip, the rest from the engine, none twice.

A prompt that is being scored is not asked for again, whoever sends it. A request is taken whole or refused whole. What
nobody waits for any more is dropped, unless the model is at it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from p2l_plugins.cache.entry import Entry, cache_key
from p2l_plugins.cache.tiered import TieredCache
from p2l_plugins.errors import P2LError
from p2l_plugins.outcomes import Family, has_eta
from p2l_plugins.prompts import Turns
from p2l_plugins.scoring.engine import Busy, Engine
from p2l_plugins.scoring.scorer import Scores
from p2l_plugins.service import metrics


class ScoringFailed(P2LError):
    """The model could not score a prompt. The message names the kind of error only: its own could hold the prompt."""


class Scorer(Protocol):
    """What the service needs of `P2L`."""

    @property
    def models(self) -> tuple[str, ...]:
        """Names in the order of the coefficients."""

    @property
    def family(self) -> Family:
        """The outcome model."""

    @property
    def fingerprint(self) -> str:
        """Hash over all that changes a score."""

    @property
    def batch_tokens(self) -> int:
        """Padded tokens of one run."""

    @property
    def max_length(self) -> int:
        """Most tokens of a prompt that count."""

    def score_turns(self, prompts: Sequence[Turns]) -> Scores:
        """Coefficients of prompts."""


class Scored(NamedTuple):
    """Scores of a prompt, and whether they were in the cache."""

    entry: Entry
    cached: bool


@dataclass(eq=False)
class _Flight:
    """A prompt that waits or is being scored: what the engine was asked, and what those who wait are told."""

    asked: Future[Scores]
    landed: asyncio.Future[Entry]
    waiters: int = 0


class Scoring:
    """A bundle's engine and its cache, on one event loop.

    Args:
        scorer: a `P2L`.
        cache: of scores.
        namespace: first part of the cache's keys.
        secret: keys the hash of the prompts.
        runs: batches that are scored at the same time.
        max_pending: different prompts that may wait or be scored.
    """

    def __init__(
        self, scorer: Scorer, cache: TieredCache, namespace: str, secret: bytes, runs: int, max_pending: int
    ) -> None:
        self._scorer = scorer
        self._cache = cache
        self._namespace, self._secret = namespace, secret
        self._max_pending = max_pending
        self._engine = Engine(_Timed(scorer), runs, max_pending, scorer.batch_tokens, scorer.max_length)
        self._flights: dict[str, _Flight] = {}

    async def score(self, prompts: Sequence[Turns]) -> list[Scored]:
        """Scores of prompts, in their order; cancelling drops what nobody else waits for.

        Raises:
            Busy: more prompts would wait than may; none of these is scored.
            ScoringFailed: the model failed on one of them.
        """
        keys = [cache_key(self._scorer.fingerprint, turns, self._namespace, self._secret) for turns in prompts]
        unique = list(dict.fromkeys(keys))
        given = await self._cache.get_many(unique, len(self._scorer.models))
        # an entry of a scorer that did not say whether it cut the prompt would be half an answer
        found = {
            key: entry
            for key, entry in zip(unique, given, strict=True)
            if entry is not None and entry.truncated is not None
        }
        missing = {key: turns for key, turns in zip(keys, prompts, strict=True) if key not in found}
        flights = self._take_off(missing)
        metrics.PROMPTS.labels("cached").inc(sum(key in found for key in keys))
        try:
            if flights:
                await asyncio.wait([flight.landed for flight in flights.values()])
            landed = {key: flight.landed.result() for key, flight in flights.items()}
        finally:
            self._leave(flights)
        return [Scored(found[key], True) if key in found else Scored(landed[key], False) for key in keys]

    def _take_off(self, missing: dict[str, Turns]) -> dict[str, _Flight]:
        new = {key: turns for key, turns in missing.items() if key not in self._flights}
        if len(self._flights) + len(new) > self._max_pending:
            raise Busy(f"{len(self._flights)} prompts wait for their scores, and no more than {self._max_pending} may")
        loop = asyncio.get_running_loop()
        started: list[Future[Scores]] = []
        try:
            for turns in new.values():
                started.append(self._engine.submit(turns))
        except Busy:  # the engine is closed
            for asked in started:
                asked.cancel()
            raise
        for (key, _), asked in zip(new.items(), started, strict=True):
            flight = self._flights[key] = _Flight(asked, loop.create_future())
            asked.add_done_callback(lambda done, key=key, flight=flight: self._report(loop, key, flight, done))  # type: ignore[misc]
        metrics.PROMPTS.labels("scored").inc(len(new))
        metrics.PROMPTS.labels("joined").inc(len(missing) - len(new))
        metrics.WAITING.set(len(self._flights))
        flights = {key: self._flights[key] for key in missing}
        for flight in flights.values():
            flight.waiters += 1
        return flights

    def _report(self, loop: asyncio.AbstractEventLoop, key: str, flight: _Flight, done: Future[Scores]) -> None:
        """In the engine's thread, or in that of who cancelled."""
        try:
            entry = _checked(done.result(), self._scorer)
        except CancelledError:
            self._tell(loop, key, flight, Busy("the service is stopping"))
        except Exception as error:  # whatever a tokenizer or ONNX Runtime raises belongs to those who wait
            self._tell(loop, key, flight, error)
        else:
            self._cache.set_soon({key: entry}, loop)
            self._tell(loop, key, flight, entry)

    def _tell(self, loop: asyncio.AbstractEventLoop, key: str, flight: _Flight, outcome: Entry | Exception) -> None:
        try:
            loop.call_soon_threadsafe(self._land, key, flight, outcome)
        except RuntimeError:  # the loop is closed: nobody waits
            return

    def _land(self, key: str, flight: _Flight, outcome: Entry | Exception) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]
            metrics.WAITING.set(len(self._flights))
        if isinstance(outcome, Busy | ScoringFailed):
            flight.landed.set_exception(outcome)
        elif isinstance(outcome, Exception):
            flight.landed.set_exception(ScoringFailed(f"the model failed on a prompt ({type(outcome).__name__})"))
        else:
            flight.landed.set_result(outcome)
        if not flight.landed.cancelled():
            flight.landed.exception()  # seen, so that asyncio does not log it where nobody waits any more

    def _leave(self, flights: dict[str, _Flight]) -> None:
        for key, flight in flights.items():
            flight.waiters -= 1
            if not flight.waiters and not flight.landed.done() and flight.asked.cancel():
                self._flights.pop(key, None)
        metrics.WAITING.set(len(self._flights))

    async def aclose(self, wait_s: float = 5.0) -> None:
        """Scores what waits, for up to `wait_s` seconds, and writes what the shared cache is still to get."""
        await asyncio.to_thread(self._engine.close, wait_s)
        if self._cache.shared is not None:
            await self._cache.shared.flush()
        await self._cache.aclose()


class _Timed:
    """The scorer, with its runs counted."""

    def __init__(self, scorer: Scorer) -> None:
        self._scorer = scorer

    def score_turns(self, prompts: Sequence[Turns]) -> Scores:
        started = time.perf_counter()
        scores = self._scorer.score_turns(prompts)
        metrics.RUN_SECONDS.observe(time.perf_counter() - started)
        metrics.RUN_PROMPTS.observe(len(prompts))
        return scores


def _checked(scores: Scores, scorer: Scorer) -> Entry:
    coefs = np.asarray(scores.coefs)
    raw_eta = None if scores.raw_eta is None else float(scores.raw_eta[0])
    if coefs.shape != (1, len(scorer.models)) or (raw_eta is None) == has_eta(scorer.family):
        raise ScoringFailed("the model gave scores of another form than its manifest says")
    if not np.isfinite(coefs).all() or (raw_eta is not None and not np.isfinite(raw_eta)):
        raise ScoringFailed("the model gave scores that are not finite numbers")
    return Entry(coefs[0].copy(), raw_eta, scores.truncated is not None and bool(scores.truncated[0]))
