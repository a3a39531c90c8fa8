"""What a process serves: loads the bundle in the background, swaps another one in, tells its state, stops in order."""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import FrameType
from typing import Any, TypeVar

from p2l_plugins.cache.tiered import TieredCache
from p2l_plugins.errors import P2LError
from p2l_plugins.leaderboards.leaderboard import Leaderboard
from p2l_plugins.prompts import Turns
from p2l_plugins.routing.explain import request_costs
from p2l_plugins.scoring.changes import LOOK_S, Changes, stand_back
from p2l_plugins.scoring.engine import Busy
from p2l_plugins.scoring.flights import Flights
from p2l_plugins.scoring.scorer import P2L
from p2l_plugins.service import metrics
from p2l_plugins.service.in_use import InUse
from p2l_plugins.service.settings import ServiceSettings
from p2l_plugins.service.users import Allowance, Users

log = logging.getLogger(__name__)

Result = TypeVar("Result")

#: Leaderboards that may be computed or wait for it; each takes a processor for milliseconds to seconds.
MAX_BOARDS = 16

#: Seconds for which prompts that wait are still scored at the end.
CLOSE_S = 5.0


class NotReady(P2LError):
    """The bundle is not there yet, or the service is stopping."""


def load_bundle(settings: ServiceSettings) -> P2L:
    """The bundle of the settings, checked against their costs and ready to score.

    Raises:
        P2LError: no such bundle, a damaged one, no ONNX Runtime, or costs of models that it does not have.
    """
    p2l = P2L.load(settings.bundle, settings.device, settings.threads, workers=settings.runs())
    for name in settings.costs or {}:
        p2l.index(name)
    request_costs(settings.costs or {"none": 0.0}, "--costs", 1, 1)
    p2l.warm_up()
    return p2l


class Service:
    """One process's bundle, scores and boards.

    Attributes:
        settings: of the operator.
        failure: why the bundle can't be served.
        ending: whether the server is about to take no more connections, so that clients should open none but elsewhere.

    Args:
        load: gives the bundle; called in a thread.
        failed: called in that thread where it can't give the first one.
    """

    def __init__(
        self,
        settings: ServiceSettings,
        load: Callable[[ServiceSettings], P2L] = load_bundle,
        failed: Callable[[], None] = lambda: None,
    ) -> None:
        self.settings = settings
        self.failure: Exception | None = None
        self.ending = False
        self._load, self._failed = load, failed
        self._new_users = Allowance(settings.feedback_new_users)  # of all bundles that come after each other
        self._now: InUse | None = None
        self._cache: TieredCache | None = None
        self._stopping = False
        self._look = threading.Event()
        self._swapping: threading.Thread | None = None
        self._said = ""
        self._before_hangup: Any = None
        self._boards = ThreadPoolExecutor(1, thread_name_prefix="p2l-board")
        self._boards_waiting = 0
        self._background: asyncio.Task[None] | None = None
        self._retiring: set[asyncio.Task[None]] = set()

    @property
    def ready(self) -> bool:
        """Whether requests are welcome."""
        return self._now is not None and self._now.flights.works and not self._stopping

    @property
    def now(self) -> InUse:
        """The bundle that new requests take.

        Raises:
            NotReady: it is being loaded.
        """
        if self._now is None:
            raise NotReady("the bundle is being loaded")
        return self._now

    def start(self) -> None:
        """Begins to load the bundle, and then to look for another one in its place, on the running event loop."""
        loop = asyncio.get_running_loop()
        # a daemon: a download that hangs must not hold up the process's exit
        threading.Thread(target=self._run, args=(loop,), name="p2l-load", daemon=True).start()

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        changes = Changes(self.settings.bundle)
        try:
            cache = self.settings.cache.build()
            first = self._in_use(cache)
        except Exception as error:  # whatever a bundle, a hub or ONNX Runtime raises
            self.failure = error
            log.error("the bundle %r can't be served: %s", self.settings.bundle, error)
            self._failed()
            return
        loop.call_soon_threadsafe(self._loaded, first, cache)
        del first
        stand_back()
        while not self._stopping:
            at_once = self._look.wait(LOOK_S)
            if at_once:
                self._look.clear()
            if not self._stopping and changes.due(at_once):
                self._swapping = threading.current_thread()
                self._swap(changes, cache, loop)
                self._swapping = None

    def _in_use(self, cache: TieredCache) -> InUse:
        settings = self.settings.cache
        p2l, secret = self._load(self.settings), settings.key_secret()
        flights = Flights(
            p2l,
            cache,
            settings.namespace,
            secret,
            self.settings.max_pending,
            whole=True,
            count=metrics.count_prompts,
            ran=metrics.ran,
        )
        users = None
        if cache.shared is not None and secret:
            users = Users(p2l, cache.shared.client, settings, self.settings.feedback_votes, self._new_users)
        return InUse(p2l, flights, users)

    def _swap(self, changes: Changes, cache: TieredCache, loop: asyncio.AbstractEventLoop) -> None:
        """Loads what is due beside the bundle in use, and has it take its place; one that is bad is left alone."""
        try:
            changes.check()
            new = self._in_use(cache)
            if self.settings.overall:  # whoever asks for it must not wait
                new.overall = new.p2l.score_turns(self.settings.overall).leaderboard()
        except Exception as error:  # as at the first load
            metrics.SWAPS.labels("refused").inc()
            if str(error) != self._said:
                log.error(
                    "the bundle that %r holds now is not taken, the one before it stays: %s",
                    self.settings.bundle,
                    error,
                )
            self._said = str(error)
            return
        changes.taken()
        self._said = ""
        if not self._stopping:
            loop.call_soon_threadsafe(self._swapped, new)

    def _loaded(self, first: InUse, cache: TieredCache) -> None:
        self._now, self._cache = first, cache
        metrics.READY.set(1)
        log.info("ready: bundle %s, fingerprint %s", first.p2l.bundle.manifest.name, first.p2l.fingerprint)
        self._background = asyncio.get_running_loop().create_task(self._make_overall(first))

    def _swapped(self, new: InUse) -> None:
        before, self._now = self._now, new
        metrics.SWAPS.labels("taken").inc()
        log.info("swapped: bundle %s, fingerprint %s", new.p2l.bundle.manifest.name, new.p2l.fingerprint)
        if before is not None:
            task = asyncio.get_running_loop().create_task(before.retire())
            self._retiring.add(task)
            task.add_done_callback(self._retiring.discard)

    async def _make_overall(self, first: InUse) -> None:
        try:
            if self.settings.overall:
                with first.held():
                    prompts, step = self.settings.overall, 8  # lets others between
                    first.overall = await self._of_board(first, prompts, step, lambda board: board)
        except P2LError as error:
            log.warning("there is no overall board to compare with: %s", error)

    async def leaderboard(self, in_use: InUse, prompts: Sequence[Turns], step: int) -> dict[str, Any]:
        """The leaderboard of prompts, with the interaction where there is an overall board, computed in a thread.

        Raises:
            Busy: too many boards wait, or as `Flights.score`.
        """

        def record(board: Leaderboard) -> dict[str, Any]:
            overall = in_use.overall
            return (board if overall is None else board.among_peers(overall, "overall board")).to_dict()

        return await self._of_board(in_use, prompts, step, record)

    async def _of_board(
        self, in_use: InUse, prompts: Sequence[Turns], step: int, made: Callable[[Leaderboard], Result]
    ) -> Result:
        if self._boards_waiting >= MAX_BOARDS:
            raise Busy(f"{MAX_BOARDS} leaderboards wait")
        self._boards_waiting += 1
        try:
            scores = await in_use.scores(prompts, step)
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._boards, lambda: made(scores.leaderboard()))
        finally:
            self._boards_waiting -= 1

    def heed_signals(self) -> None:
        """Looks for another bundle on SIGHUP, and from the first signal to stop on says no at `/readyz`.

        The server stops `drain_s` after that signal.
        """
        if threading.current_thread() is not threading.main_thread():
            return  # a server inside another program, which has the signals
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            previous = signal.getsignal(number)

            def stop(number: int, frame: FrameType | None, previous: Any = previous) -> None:
                def end() -> None:
                    self.ending = True
                    if callable(previous):
                        previous(number, frame)

                first, self._stopping = not self._stopping, True
                if first and self.settings.drain_s:
                    loop.call_soon_threadsafe(loop.call_later, self.settings.drain_s, end)
                else:
                    end()

            signal.signal(number, stop)
        if hasattr(signal, "SIGHUP"):
            look = self._look.set  # not in the handler, which may interrupt itself while it holds the event's lock
            hangup = signal.signal(signal.SIGHUP, lambda *_: loop.call_soon_threadsafe(look))
            self._before_hangup = hangup or signal.SIG_DFL
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})  # which the supervisor blocked for the start

    async def aclose(self) -> None:
        """Ends what goes on. The server has answered all requests by now."""
        self._stopping = True
        self._look.set()
        if self._before_hangup is not None:
            signal.signal(signal.SIGHUP, self._before_hangup)
        metrics.READY.set(0)
        if self._background is not None:
            self._background.cancel()
        self._boards.shutdown(wait=False, cancel_futures=True)
        if (swapping := self._swapping) is not None:  # a thread that is stopped inside ONNX Runtime aborts the process
            await asyncio.to_thread(swapping.join, CLOSE_S)
        if self._retiring:
            await asyncio.wait(self._retiring, timeout=CLOSE_S)
        if self._now is not None and self._cache is not None:
            await self._now.aclose(CLOSE_S)
            await self._cache.flush()
            await self._cache.aclose()
