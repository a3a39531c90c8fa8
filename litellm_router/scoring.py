"""The bundle of one configuration: loaded once, behind its cache, and asked within a deadline, never on the event loop.

It is loaded in a thread of its own, or an HTTP scorer is asked what it has. Whoever waits gives up at the deadline; a
scoring under way goes on and fills the cache, so that the next request finds it. Another bundle in the same folder is
loaded beside it, and takes its place between two requests.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, TypeVar

from litellm_router import metrics
from litellm_router.decision import OVERALL, Read, Values
from litellm_router.deployments import Groups
from litellm_router.personal import Personal
from litellm_router.reasons import NotRoutedError
from litellm_router.redis_client import close_soon
from litellm_router.settings import KEY, P2LSettings
from p2l_plugins.cache.lease import Leases
from p2l_plugins.errors import ConfigError, P2LError
from p2l_plugins.prompts import Turns
from p2l_plugins.scoring.bundle import find_bundle
from p2l_plugins.scoring.changes import LOOK_S, Changes, stand_back
from p2l_plugins.scoring.engine import Busy, Scorer
from p2l_plugins.scoring.flights import Flights, Late, Scored, ScoringFailed
from p2l_plugins.scoring.scorer import P2L

log = logging.getLogger("litellm_router")

#: Different prompts that may wait for their scores; more would only wait until their deadline.
MAX_PENDING = 64

#: Seconds until a bundle that could not be loaded is tried again: a hub may come back.
RELOAD_AFTER_S = 60.0

#: The same of an endpoint, which is asked in an instant.
ASK_AFTER_S = 2.0

#: Seconds until an endpoint that again has the bundle before, as one of several workers may, is tried again.
AGAIN_S = 0.1

#: Seconds that the end of the process waits for a bundle that is being read: a thread that is stopped inside ONNX
#: Runtime aborts the process.
EXIT_S = 10.0

#: Seconds past the deadline of the last request that began with a bundle until that one is closed.
RETIRE_S = 1.0

#: Held while ONNX Runtime reads a bundle.
_in_runtime = threading.Lock()

T = TypeVar("T")


def load_scorer(settings: P2LSettings) -> Scorer:
    """The bundle that the settings name, ready to score, or the HTTP scorer at their endpoint.

    Raises:
        P2LError: no such bundle, a damaged one, no ONNX Runtime, or an endpoint that does not answer as it should.
    """
    if settings.endpoint is not None:
        from litellm_router.endpoint import RemoteScorer

        return RemoteScorer(settings.endpoint, settings.endpoint_secret(), settings.timeout_ms / 1e3)
    folder = find_bundle(settings.bundle)  # a download that hangs holds no lock, and so not the end of the process
    with _in_runtime:
        p2l = P2L.load(folder, threads=settings.threads)
        p2l.warm_up()
    return p2l


@dataclass(frozen=True)
class Loaded:
    """A bundle and what is bound to it.

    Attributes:
        scorer: of prompts.
        flights: the way to its scores.
        users: their own boards; None where they are not told apart.
        groups: what was read of the model groups.
        values: of their models, for the prompts seen last.
    """

    scorer: Scorer
    flights: Flights
    users: Personal | None
    groups: Groups
    values: Values = field(default_factory=Values)

    def close(self) -> None:
        """Takes no more prompts; those that wait are dropped."""
        self.flights.close()
        self.scorer.close()


class Scoring:
    """A bundle, its cache and the threads that score. Safe to use from several threads and event loops.

    Args:
        settings: bundle, threads and cache.
        load: gives the scorer; called in a thread.
        max_pending: different prompts that may wait or be scored.
        client: gives the Redis client of the running event loop, or None, where the settings name no url.

    Attributes:
        cache: of scores.
    """

    def __init__(
        self,
        settings: P2LSettings,
        load: Callable[[P2LSettings], Scorer] = load_scorer,
        max_pending: int = MAX_PENDING,
        client: Callable[[], Any] | None = None,
    ) -> None:
        self.settings = settings
        self._load = load
        self._max_pending = max_pending
        cache = settings.cache
        try:
            self.cache, self._secret = cache.build(client), cache.key_secret()
        except ConfigError as error:
            log.error("p2l: p2l_settings.%s; scores are kept in this process only", error)
            self.cache, self._secret = cache.model_copy(update={"shared": False, "url": None}).build(), b""
        self._lock = threading.Lock()
        self._loading: Future[Loaded] | None = None
        self._told: Callable[[Future[Loaded]], None] | None = None
        self._asking: Future[Loaded] | None = None
        self._load_failed_at = self._ask_failed_at = 0.0
        self._closed = threading.Event()
        self._said = ""

    def start(self, told: Callable[[Future[Loaded]], None] | None = None) -> Future[Loaded]:
        """Begins to load the bundle, unless that was done; a failed load is tried again after a while.

        Args:
            told: called when this load is over, and when each is that follows a failed one.
        """
        with self._lock:
            self._told = told or self._told
            loading = self._loading
            if loading is None or self._is_over(loading):
                loading = self._loading = Future()
                told = self._told
                # a daemon thread, not the pool: a download that hangs must not hold up the process's exit
                threading.Thread(target=self._run_load, args=(loading,), name="p2l-load", daemon=True).start()
        if told is not None:
            loading.add_done_callback(told)
        return loading

    def _is_over(self, loading: Future[Loaded]) -> bool:
        if not loading.done() or loading.exception() is None:
            return False
        again = RELOAD_AFTER_S if self.settings.endpoint is None else ASK_AFTER_S
        return time.monotonic() - self._load_failed_at >= again

    def _run_load(self, loading: Future[Loaded]) -> None:
        changes = Changes(self.settings.bundle) if self.settings.endpoint is None else None
        try:
            loaded = self._load_one()
        except Exception as error:  # whatever a bundle, a hub or ONNX Runtime raises, requests go on
            self._load_failed_at = time.monotonic()
            loading.set_exception(error)
            return
        loading.set_result(loaded)
        if changes is not None and changes.possible:
            what = weakref.ref(self), changes, self._closed  # a scoring that nobody has any more need not be closed
            threading.Thread(target=_look, args=what, name="p2l-look", daemon=True).start()

    def _load_one(self) -> Loaded:
        settings, shared = self.settings, self.cache.shared
        scorer = self._load(settings)
        lease_s = settings.cache.lease_ms / 1e3
        leases = Leases(shared, lease_s) if lease_s and shared is not None else None
        names = settings.cache.namespace, self._secret
        flights = Flights(scorer, self.cache, *names, self._max_pending, leases)
        return Loaded(scorer, flights, self._users(scorer), Groups(scorer, min_support=settings.min_support))

    def swap(self, changes: Changes) -> list[tuple[float, Loaded]]:
        """Loads what is due and puts it in the place of the bundle in use; one that is bad is left alone.

        Returns:
            what was in use, and until when on the clock `time.monotonic` the requests that began with it need it.
        """
        try:
            changes.check()
            new = self._load_one()
        except Exception as error:  # as at the first load
            metrics.swapped("refused")
            if (sentence := sentence_of(error)) != self._said:
                where = self.settings.scored_by
                log.error("p2l: %s: what is there now is not taken, the one before it stays: %s", where, sentence)
            self._said = sentence
            return []
        taken, before = self._take(new)
        if not taken:
            return []
        changes.taken()
        self._said = ""
        return [] if before is None else [(time.monotonic() + self._still_s, before)]

    @property
    def _still_s(self) -> float:
        """Seconds for which requests that began with a bundle may still need it."""
        return self.settings.timeout_ms / 1e3 + RETIRE_S

    def _take(self, new: Loaded) -> tuple[bool, Loaded | None]:
        """Puts a bundle in the place of the one in use, unless all is closed: whether, and which one that was."""
        done: Future[Loaded] = Future()
        done.set_result(new)
        with self._lock:
            before, closed = self.now, self._closed.is_set()
            if not closed:
                self._loading = done
        if closed:
            new.close()
            return False, None
        if before is None or before.scorer.fingerprint != new.scorer.fingerprint:
            metrics.swapped("taken")
            log.info("p2l: %s: swapped, fingerprint %s", self.settings.scored_by, new.scorer.fingerprint)
        return True, before

    async def newer(self, loaded: Loaded, deadline: float) -> Loaded:
        """The bundle that an endpoint has in the place of one that it no longer has.

        The one before it serves what is cached of it, until the endpoint has said what it has now.

        Raises:
            NotRoutedError: `loading` at the deadline; `endpoint` where the endpoint can't say what it has.
        """
        asking = self._ask(loaded)
        if not asking.done() and not await _finished(asking, deadline):
            raise NotRoutedError("loading", f"{self.settings.scored_by} is being asked what it has")
        error = asking.exception()
        if error is not None:
            raise NotRoutedError("endpoint", f"{self.settings.scored_by}: {sentence_of(error)}")
        new = asking.result()
        if new.scorer.fingerprint == loaded.scorer.fingerprint:  # several workers, of which some have the other one
            await asyncio.sleep(max(0.0, min(AGAIN_S, deadline - time.monotonic())))
        if time.monotonic() >= deadline:
            raise NotRoutedError("loading", f"{self.settings.scored_by} takes another bundle")
        return new

    def _ask(self, loaded: Loaded) -> Future[Loaded]:
        """What the endpoint has instead of a bundle: who comes later joins the question, or finds its answer."""
        with self._lock:
            asking, now = self._asking, self._loading
            if now is not None and self.now is not loaded:
                return now
            if asking is not None and not (asking.done() and self._may_ask(asking)):
                return asking
            asking = self._asking = Future()
            threading.Thread(target=self._run_ask, args=(asking,), name="p2l-ask", daemon=True).start()
            return asking

    def _may_ask(self, asked: Future[Loaded]) -> bool:
        return asked.exception() is None or time.monotonic() - self._ask_failed_at >= ASK_AFTER_S

    def _run_ask(self, asking: Future[Loaded]) -> None:
        try:
            new = self._load_one()
        except Exception as error:  # whatever an endpoint answers, requests go on
            self._ask_failed_at = time.monotonic()
            asking.set_exception(error)
            return
        _, before = self._take(new)
        asking.set_result(new)
        if before is not None:
            self._closed.wait(self._still_s)
            before.close()

    def _users(self, scorer: Scorer) -> Personal | None:
        own, shared = self.settings.personal, self.cache.shared
        if own is None:
            return None
        try:
            return Personal(self.settings, own, scorer, None if shared is None else shared.client)
        except ConfigError as error:
            raise NotRoutedError("settings", f"{KEY}.{error}") from None

    @property
    def now(self) -> Loaded | None:
        """The bundle, where it is loaded."""
        loading = self._loading
        return loading.result() if loading is not None and loading.done() and loading.exception() is None else None

    async def loaded(self, deadline: float) -> Loaded:
        """The bundle.

        Args:
            deadline: on the clock `time.monotonic`.

        Raises:
            NotRoutedError: `loading` at the deadline; `bundle`, `endpoint` or `settings`, where it can't be loaded.
        """
        loading = self.start()
        if not loading.done() and not await _finished(loading, deadline):
            raise NotRoutedError("loading", "the bundle is being loaded")
        error = loading.exception()
        if error is None:
            return loading.result()
        if isinstance(error, NotRoutedError) and error.reason == "settings":
            raise NotRoutedError(error.reason, error.detail)
        reason = "bundle" if self.settings.endpoint is None else "endpoint"
        raise NotRoutedError(reason, f"{self.settings.scored_by}: {sentence_of(error)}")

    async def score(
        self, loaded: Loaded, turns: Turns, request: Mapping[str, Any], deadline: float
    ) -> tuple[Read, dict[str, float] | None]:
        """Scores of a request, and the evidence behind the user's own board, where that has a part in them.

        Raises:
            NotRoutedError: as `of_prompt`.
        """
        overall = loaded.scorer.overall
        if not turns:
            if overall is None:
                raise NotRoutedError("no_text")
            return Read(none := Scored(OVERALL, overall, True), none), None
        found = await self.of_prompt(loaded, turns, deadline)
        used, evidence = found, None
        if overall is not None and (found.entry.unknown or 0.0) > self.settings.unknown_limit:
            used = Scored(OVERALL, overall, found.cached)
        if loaded.users is not None:
            used, evidence = await loaded.users.scored(request, used, deadline)
        return Read(found, used), evidence

    async def of_prompt(self, loaded: Loaded, turns: Turns, deadline: float) -> Scored:
        """Scores of a prompt.

        Raises:
            NotRoutedError: `busy` when too many prompts wait, `deadline`, `scorer` where scoring failed, or what a
                scorer elsewhere gave as its reason.
        """
        try:
            (scored,) = await loaded.flights.score([turns], deadline)
        except Busy as busy:
            raise NotRoutedError("busy", str(busy)) from None
        except Late:
            raise NotRoutedError("deadline", f"no scores within {self.settings.timeout_ms:g} ms") from None
        except ScoringFailed as failed:
            why = failed.__cause__
            if not isinstance(why, NotRoutedError):
                raise NotRoutedError("scorer", f"scoring failed: {failed}") from None
            raise NotRoutedError(why.reason, f"scoring failed: {why.detail}") from None
        return scored

    def close(self) -> None:
        """Takes no more prompts; those that wait are dropped, and connections to Redis of our own are closed."""
        with self._lock:
            loading = self._loading
            self._closed.set()
        close_soon(self.cache.aclose)
        if loading is not None:
            loading.add_done_callback(lambda done: None if done.exception() else done.result().close())


def _look(scoring: weakref.ref[Scoring], changes: Changes, closed: threading.Event) -> None:
    """Swaps another bundle in where there is one, and closes those before it, until the scoring is closed or gone."""
    stand_back()
    retired: list[tuple[float, Loaded]] = []
    while not closed.wait(LOOK_S):
        if (one := scoring()) is None:
            break
        if changes.due():
            retired += one.swap(changes)
        del one
        while retired and retired[0][0] <= time.monotonic():
            retired.pop(0)[1].close()
    while retired:
        retired.pop()[1].close()


def sentence_of(error: BaseException) -> str:
    """What went wrong with a load, for the log."""
    if isinstance(error, NotRoutedError):
        return error.detail
    return str(error) if isinstance(error, P2LError) else f"{type(error).__name__}: {error}"


async def _finished(future: Future[T], deadline: float) -> bool:
    """Waits for a thread's future until the deadline, without cancelling it there or when the waiter is cancelled."""
    waiter = asyncio.wrap_future(future)
    waiter.add_done_callback(lambda done: done.cancelled() or done.exception())  # seen, so that asyncio logs nothing
    await asyncio.wait([waiter], timeout=max(0.0, deadline - time.monotonic()))
    return future.done()


@atexit.register
def _end() -> None:
    _in_runtime.acquire(timeout=EXIT_S)  # and never released: no thread enters ONNX Runtime from here on
