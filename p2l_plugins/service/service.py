"""What a process serves: loads the bundle in the background, knows whether it may take requests, and stops in order."""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import FrameType
from typing import Any

from p2l_plugins.errors import P2LError
from p2l_plugins.prompts import Turns
from p2l_plugins.routing.explain import request_costs
from p2l_plugins.scoring.engine import Busy
from p2l_plugins.scoring.flights import Flights, Scored
from p2l_plugins.scoring.scorer import P2L, Scores
from p2l_plugins.service import metrics
from p2l_plugins.service.settings import ServiceSettings
from p2l_plugins.service.users import Users

log = logging.getLogger(__name__)

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
        overall: the board that others are compared with; None until it is made.
        failure: why the bundle can't be served.
        users: their boards; None where there is no shared cache with a secret to keep them in.

    Args:
        load: gives the bundle; called in a thread.
        failed: called in that thread where it can't.
    """

    def __init__(
        self,
        settings: ServiceSettings,
        load: Callable[[ServiceSettings], P2L] = load_bundle,
        failed: Callable[[], None] = lambda: None,
    ) -> None:
        self.settings = settings
        self.overall: dict[str, Any] | None = None
        self.failure: Exception | None = None
        self._load, self._failed = load, failed
        self._p2l: P2L | None = None
        self._flights: Flights | None = None
        self.users: Users | None = None
        self._stopping = False
        self._boards = ThreadPoolExecutor(1, thread_name_prefix="p2l-board")
        self._boards_waiting = 0
        self._background: asyncio.Task[None] | None = None

    @property
    def ready(self) -> bool:
        """Whether requests are welcome."""
        return self._flights is not None and self._flights.works and not self._stopping

    @property
    def p2l(self) -> P2L:
        """The bundle.

        Raises:
            NotReady: it is being loaded.
        """
        if self._p2l is None:
            raise NotReady("the bundle is being loaded")
        return self._p2l

    def start(self) -> None:
        """Begins to load the bundle, on the running event loop."""
        loop = asyncio.get_running_loop()
        # a daemon: a download that hangs must not hold up the process's exit
        threading.Thread(target=self._run_load, args=(loop,), name="p2l-load", daemon=True).start()

    def _run_load(self, loop: asyncio.AbstractEventLoop) -> None:
        cache = self.settings.cache
        try:
            p2l, store, secret = self._load(self.settings), cache.build(), cache.key_secret()
        except Exception as error:  # whatever a bundle, a hub or ONNX Runtime raises
            self.failure = error
            log.error("the bundle %r can't be served: %s", self.settings.bundle, error)
            self._failed()
        else:
            flights = Flights(
                p2l,
                store,
                cache.namespace,
                secret,
                self.settings.max_pending,
                whole=True,
                count=metrics.count_prompts,
                ran=metrics.ran,
            )
            users = None if store.shared is None or not secret else Users(p2l, store.shared.client, cache)
            loop.call_soon_threadsafe(self._loaded, p2l, flights, users)

    def _loaded(self, p2l: P2L, flights: Flights, users: Users | None) -> None:
        self._p2l, self._flights, self.users = p2l, flights, users
        metrics.READY.set(1)
        log.info("ready: bundle %s, fingerprint %s", p2l.bundle.manifest.name, p2l.fingerprint)
        self._background = asyncio.get_running_loop().create_task(self._make_overall())

    async def _make_overall(self) -> None:
        try:
            if self.settings.overall:
                self.overall = await self.leaderboard(self.settings.overall, step=8)  # lets others in between
        except P2LError as error:
            log.warning("there is no overall board to compare with: %s", error)

    async def score(self, prompts: Sequence[Turns]) -> list[Scored]:
        """Scores of prompts; errors as `Flights.score`, and `NotReady`."""
        if self._flights is None:
            raise NotReady("the bundle is being loaded")
        return await self._flights.score(prompts)

    async def scores(self, prompts: Sequence[Turns], step: int) -> Scores:
        """The same as `Scores`, asked for in pieces of `step` prompts."""
        p2l = self.p2l
        scored: list[Scored] = []
        for i in range(0, len(prompts), step):
            scored += await self.score(prompts[i : i + step])
        return p2l.from_entries([one.entry for one in scored])

    async def leaderboard(self, prompts: Sequence[Turns], step: int) -> dict[str, Any]:
        """The leaderboard of prompts, computed in a thread.

        Raises:
            Busy: too many boards wait, or as `Flights.score`.
        """
        if self._boards_waiting >= MAX_BOARDS:
            raise Busy(f"{MAX_BOARDS} leaderboards wait")
        self._boards_waiting += 1
        try:
            scores = await self.scores(prompts, step)
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._boards, lambda: scores.leaderboard().to_dict())
        finally:
            self._boards_waiting -= 1

    def stop_on_signals(self) -> None:
        """Says no at `/readyz` from the first signal to stop on, and lets the server stop `drain_s` later."""
        if threading.current_thread() is not threading.main_thread():
            return  # a server inside another program, which has the signals
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            previous = signal.getsignal(number)

            def stop(number: int, frame: FrameType | None, previous: Any = previous) -> None:
                first, self._stopping = not self._stopping, True
                if first and self.settings.drain_s:
                    loop.call_soon_threadsafe(loop.call_later, self.settings.drain_s, previous, number, None)
                elif callable(previous):
                    previous(number, frame)

            signal.signal(number, stop)

    async def aclose(self) -> None:
        """Ends what goes on. The server has answered all requests by now."""
        self._stopping = True
        metrics.READY.set(0)
        if self._background is not None:
            self._background.cancel()
        self._boards.shutdown(wait=False, cancel_futures=True)
        if self.users is not None:
            await self.users.aclose()
        if self._flights is not None:
            await asyncio.to_thread(self._flights.close, CLOSE_S)
            await self._flights.cache.flush()
            await self._flights.cache.aclose()
