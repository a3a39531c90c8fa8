"""The one path from prompts to their scores: the cache, else one scoring per prompt, however many ask for it.

A prompt that is being scored is not scored again, whoever asks. Prompts that are asked for together are taken all or
none. What nobody waits for any more is dropped, unless the model is at it: that ends, and fills the cache.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from p2l_plugins.cache.entry import NAMESPACE, Entry, cache_key
from p2l_plugins.cache.lease import Leases
from p2l_plugins.cache.tiered import TieredCache
from p2l_plugins.errors import P2LError
from p2l_plugins.outcomes import has_eta
from p2l_plugins.prompts import Turns
from p2l_plugins.scoring.engine import Busy, Engine, Scorer
from p2l_plugins.scoring.scorer import Scores


class ScoringFailed(P2LError):
    """A prompt could not be scored. The message never holds the prompt; what the scorer raised is the cause."""


class Late(P2LError):
    """There were no scores by the deadline."""


class Scored(NamedTuple):
    """Scores of a prompt.

    Attributes:
        key: under which they are cached.
        entry: the scores.
        cached: whether they were there already.
    """

    key: str
    entry: Entry
    cached: bool


class Look(NamedTuple):
    """What a process has of some prompts.

    Attributes:
        keys: of the prompts, in their order.
        found: the scores that are there, by key.
    """

    keys: list[str]
    found: dict[str, Entry]


@dataclass(eq=False, slots=True)
class _Flight:
    """A prompt that waits or is being scored: what the engine was asked, and what those who wait are told."""

    asked: Future[Scores]
    landed: Future[Entry] = field(default_factory=Future)
    waiters: int = 0


class Flights:
    """A scorer behind its cache. Safe to use from several threads and event loops.

    Args:
        scorer: scores what is not in the cache.
        cache: of scores.
        namespace: first part of the cache's keys.
        secret: keys the hash of the prompts.
        max_pending: different prompts that may wait or be scored.
        leases: of prompts that other processes score; None scores them here.
        whole: takes only entries that say whether the prompt was cut, and how much of it is unknown.
        count: told, with a number, of prompts that were `cached`, are `scored` or `joined` one that is, and how many
            are `waiting` now.
        ran: as of `Engine`.
    """

    def __init__(
        self,
        scorer: Scorer,
        cache: TieredCache,
        namespace: str = NAMESPACE,
        secret: bytes = b"",
        max_pending: int = 64,
        leases: Leases | None = None,
        whole: bool = False,
        count: Callable[[str, int], None] = lambda what, n: None,
        ran: Callable[[int, float], None] = lambda prompts, seconds: None,
    ) -> None:
        self.scorer = scorer
        self.cache = cache
        self._namespace, self._secret = namespace, secret
        self._leases = leases
        self._whole = whole
        self._count = count
        self._engine = Engine(scorer, max_pending, ran)
        self._flights: dict[str, _Flight] = {}
        self._lock = threading.RLock()  # cancelling lands a flight at once, in the same thread

    @property
    def waiting(self) -> int:
        """Different prompts that wait or are being scored."""
        return len(self._flights)

    @property
    def works(self) -> bool:
        """Whether anything can be scored."""
        return self._engine.works

    async def score(
        self, prompts: Sequence[Turns], deadline: float | None = None, look: Look | None = None
    ) -> list[Scored]:
        """Scores of prompts, in their order.

        Args:
            prompts: as `as_turns` or `user_turns` made them.
            deadline: on the clock `time.monotonic`; None waits for as long as it takes.
            look: what `look` just gave for these prompts.

        Raises:
            Busy: more prompts would wait than may, or they would not be scored by the deadline; none of these is.
            Late: no scores by the deadline.
            ScoringFailed: the model failed on one of them.
        """
        keys, at_hand = self.look(prompts) if look is None else look
        missing = dict(zip(keys, prompts, strict=True))
        found = await self._cached(list(missing), at_hand, deadline)
        if len(found) == len(missing):
            self._count("cached", len(keys))
            return [Scored(key, found[key], True) for key in keys]
        flights = self._take_off({key: turns for key, turns in missing.items() if key not in found}, deadline)
        self._count("cached", sum(key in found for key in keys))
        try:
            await _landed(flights.values(), deadline)
            landed = {key: flight.landed.result() for key, flight in flights.items()}
        finally:
            self._leave(flights.values())
        return [Scored(key, landed[key], False) if key in landed else Scored(key, found[key], True) for key in keys]

    def look(self, prompts: Sequence[Turns]) -> Look:
        """What this process has of prompts; nothing is waited for. `at_hand` or `score` is to follow."""
        fingerprint = self.scorer.fingerprint
        keys = [cache_key(fingerprint, turns, self._namespace, self._secret) for turns in prompts]
        unique = list(dict.fromkeys(keys))
        return Look(keys, self._usable(unique, self.cache.in_memory(unique, len(self.scorer.models))))

    def at_hand(self, look: Look) -> list[Scored] | None:
        """Scores of prompts, where this process has all of them."""
        keys, found = look
        if not all(key in found for key in keys):
            return None
        self._count("cached", len(keys))
        return [Scored(key, found[key], True) for key in keys]

    async def _cached(self, unique: list[str], found: dict[str, Entry], deadline: float | None) -> dict[str, Entry]:
        """The entries that are there, also those of prompts that another process is scoring now.

        Args:
            unique: the keys.
            found: what is at hand.
        """
        models = len(self.scorer.models)
        asked = [key for key in unique if key not in found and key not in self._flights]
        joined = len(unique) - len(found) - len(asked)
        if joined:
            self.cache.stats.count("misses", n=joined)
        if not asked:
            return found
        got = await self.cache.get_many(asked, models, _left(deadline))
        found = found | self._usable(asked, got)
        useless = sum(entry is not None and key not in found for key, entry in zip(asked, got, strict=True))
        if useless:  # a hit of the cache, but not of whoever asked for it
            self.cache.stats.count("misses", n=useless)
        leases = self._leases
        if leases is None:
            return found

        async def from_another(key: str) -> Entry | None:
            if await leases.take(key) or key in self._flights:
                return None
            return await leases.wait(key, models, _left(deadline))

        asked = [key for key in asked if key not in found and key not in self._flights]
        return found | self._usable(asked, await asyncio.gather(*map(from_another, asked)))

    def _usable(self, keys: Sequence[str], entries: Sequence[Entry | None]) -> dict[str, Entry]:
        return {
            key: entry
            for key, entry in zip(keys, entries, strict=True)
            if entry is not None
            and self._possible(entry)
            and not (self._whole and (entry.truncated is None or entry.unknown is None))
        }

    def _possible(self, entry: Entry) -> bool:
        """Whether the scorer can have given an entry; what it can't have given is a miss."""
        if (entry.raw_eta is not None) == has_eta(self.scorer.family) and self.scorer.bounds.hold(entry):
            return True
        self.cache.stats.count("unreadable", "bounds")
        return False

    def _take_off(self, missing: Mapping[str, Turns], deadline: float | None) -> dict[str, _Flight]:
        """The flights of prompts, new ones for those that nobody has asked for."""
        loop = asyncio.get_running_loop()
        with self._lock:
            new = {key: turns for key, turns in missing.items() if key not in self._flights}
            # a scoring that ended after the look at the cache
            ended = self._usable(list(new), self.cache.memory.get_many(list(new)))
            new = {key: turns for key, turns in new.items() if key not in ended}
            started = dict(zip(new, map(_Flight, self._engine.submit_all(list(new.values()), deadline)), strict=True))
            self._flights |= started
            flights = {key: flight for key in missing if (flight := self._flights.get(key)) is not None}
            for flight in flights.values():
                flight.waiters += 1
            for key, entry in ended.items():
                flights[key] = _Flight(Future())
                flights[key].landed.set_result(entry)
            self._count("scored", len(started))
            self._count("joined", len(missing) - len(started))
            self._count("waiting", len(self._flights))
        for key, flight in started.items():
            flight.asked.add_done_callback(lambda _, key=key, flight=flight: self._land(key, flight, loop))  # type: ignore[misc]
        return flights

    def _land(self, key: str, flight: _Flight, loop: asyncio.AbstractEventLoop) -> None:
        """In the engine's thread, or in that of who cancelled."""
        error: Exception | None = None
        try:
            entry = _checked(flight.asked.result(), self.scorer)
            self.cache.set_soon({key: entry}, loop)
        except CancelledError:
            error = Busy("the scorer is closed")
        except ScoringFailed as failed:
            error = failed
        except Exception as raised:  # whatever a tokenizer or ONNX Runtime raises belongs to those who wait
            error = ScoringFailed(f"the model failed on a prompt ({type(raised).__name__})")
            error.__cause__ = raised
        with self._lock:  # first, so that whoever sees a failure can try again
            self._forget(key, flight)
        if error is not None:
            flight.landed.set_exception(error)
        else:
            flight.landed.set_result(entry)

    def _leave(self, flights: Iterable[_Flight]) -> None:
        with self._lock:
            for flight in flights:
                flight.waiters -= 1
                if flight.waiters == 0 and not flight.landed.done():
                    flight.asked.cancel()  # lands it, unless the model is at it

    def _forget(self, key: str, flight: _Flight) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]
            self._count("waiting", len(self._flights))

    def close(self, wait_s: float = 0.0) -> None:
        """Takes no more prompts; scores those that wait for up to `wait_s` seconds, then drops them."""
        self._engine.close(wait_s)


def _checked(scores: Scores, scorer: Scorer) -> Entry:
    coefs = np.asarray(scores.coefs)
    if coefs.shape != (1, len(scorer.models)):
        raise ScoringFailed(f"scores of shape {coefs.shape} for 1 prompt and {len(scorer.models)} models")
    raw_eta = None if scores.raw_eta is None else float(scores.raw_eta[0])
    if (raw_eta is None) == has_eta(scorer.family):
        raise ScoringFailed(f"scores of the family {scorer.family} {'without' if raw_eta is None else 'with'} raw_eta")
    if not np.isfinite(coefs).all() or (raw_eta is not None and not np.isfinite(raw_eta)):
        raise ScoringFailed("scores that are not finite numbers")
    truncated = None if scores.truncated is None else bool(scores.truncated[0])
    unknown = None if scores.unknown is None else float(scores.unknown[0])
    if unknown is not None and not 0.0 <= unknown <= 1.0:
        raise ScoringFailed(f"a share of unknown tokens of {unknown}")
    return Entry(coefs[0].copy(), raw_eta, truncated, unknown)


async def _landed(flights: Iterable[_Flight], deadline: float | None) -> None:
    """Waits until all have landed, without cancelling one there or when the waiter is cancelled."""
    waiting = [asyncio.wrap_future(flight.landed) for flight in flights if not flight.landed.done()]
    if not waiting:
        return
    for waiter in waiting:
        waiter.add_done_callback(_retrieve)
    await asyncio.wait(waiting, timeout=_left(deadline))
    if not all(flight.landed.done() for flight in flights):
        raise Late("there were no scores by the deadline")


def _left(deadline: float | None) -> float | None:
    return None if deadline is None else max(0.0, deadline - time.monotonic())


def _retrieve(waiter: asyncio.Future[Entry]) -> None:
    """Marks an error as seen, so that asyncio does not log it when nobody waits any more."""
    if not waiter.cancelled():
        waiter.exception()
