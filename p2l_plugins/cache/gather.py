"""Round trips that many callers share: keys gather while trips run, and no caller waits beyond its deadline.

The first key goes out at once. Keys that come while all trips are under way leave together with the next one, and a key
that is being asked for is not asked for again: a thousand identical requests are one key in one trip. A trip belongs to
no caller, so a caller that leaves takes nothing from the others. Past the deadline a trip's keys are given up, but the
trip is not cut at once: cutting it would close the connection, and a connection that takes longer to open than the
deadline could never be opened.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from itertools import islice
from typing import Any

#: Trips at the same time, of one event loop.
TRIPS = 4

#: Most keys of a trip.
KEYS = 256

#: Share of the deadline that a trip gets however long its keys waited: for other trips, or for a busy event loop.
LEAST = 1 / 3

#: Seconds after which a trip that nobody waits for is cut, and how many such may be under way.
PATIENCE_S = 1.0
LINGERING = 4

#: A deadline seen this late, in seconds, shows that this event loop was busy; then what has arrived is still read.
LATE_S = 0.002
GRACE_S = 0.005

#: Value of a key that was given up.
GIVEN_UP = object()


class BusyLoop(Exception):
    """A deadline that passed while this process was busy, so that it says nothing about the store."""


class Gathering:
    """Shared round trips on one event loop.

    Args:
        read: asks for the values of keys, in their order.
        deadline_s: from a key's first caller to giving it up; a third more where it had to wait for other trips.
        report: called once per trip with its seconds, and its exception or None; past the deadline TimeoutError or
            `BusyLoop`.
    """

    def __init__(
        self,
        read: Callable[[list[str]], Awaitable[Sequence[object]]],
        deadline_s: float,
        report: Callable[[float, BaseException | None], None],
    ) -> None:
        self._read = read
        self._deadline_s = deadline_s
        self._report = report
        self._loop = asyncio.get_running_loop()
        self._asked: dict[str, asyncio.Future[object]] = {}
        self._waiting: dict[str, float] = {}
        self._running = 0
        self._trips: set[asyncio.Task[None]] = set()
        self._lingering: set[asyncio.Future[Sequence[object]]] = set()

    async def ask(self, keys: Sequence[str], timeout_s: float | None = None) -> list[object]:
        """The value of each key, or `GIVEN_UP`.

        Args:
            keys: to ask for.
            timeout_s: longest wait, where that is shorter than the deadline.
        """
        deadline = self._loop.time() + self._deadline_s
        futures = []
        for key in keys:
            future = self._asked.get(key)
            if future is None:
                future = self._asked[key] = self._loop.create_future()
                self._waiting[key] = deadline
            futures.append(future)
        self._start()
        await asyncio.wait(futures, timeout=timeout_s)
        return [future.result() if future.done() else GIVEN_UP for future in futures]

    def _start(self) -> None:
        while self._waiting and self._running < TRIPS:
            keys = list(islice(self._waiting, KEYS))
            deadline = self._waiting[keys[0]]
            for key in keys:
                del self._waiting[key]
            self._running += 1
            trip = self._loop.create_task(self._trip(keys, deadline))
            self._trips.add(trip)
            trip.add_done_callback(self._trips.discard)

    async def _trip(self, keys: list[str], deadline: float) -> None:
        started = self._loop.time()
        deadline = max(deadline, started + LEAST * self._deadline_s)
        reading: asyncio.Future[Sequence[object]] | None = None
        values: Sequence[object] = []
        error: BaseException | None = TimeoutError()
        try:
            if len(self._lingering) < LINGERING:
                reading = asyncio.ensure_future(self._read(keys))
                await asyncio.wait({reading}, timeout=deadline - started)
                if not reading.done() and self._loop.time() > deadline + LATE_S:
                    error = BusyLoop()
                    await asyncio.wait({reading}, timeout=GRACE_S)
                if not reading.done():
                    self._linger(reading)
                elif not reading.cancelled():
                    error = reading.exception()
                    values = [] if error else reading.result()
        except asyncio.CancelledError:
            if reading is not None:
                reading.cancel()
            raise
        finally:
            self._running -= 1
            for i, key in enumerate(keys):
                self._resolve(key, values[i] if i < len(values) else GIVEN_UP)
            if error is not None:
                self._give_up(lambda deadline: deadline <= self._loop.time())
            self._report(self._loop.time() - started, error)
            self._start()

    def _give_up(self, which: Callable[[float], bool]) -> None:
        """Gives up the waiting keys whose deadline is such."""
        for key in [key for key, deadline in self._waiting.items() if which(deadline)]:
            del self._waiting[key]
            self._resolve(key, GIVEN_UP)

    def _resolve(self, key: str, value: object) -> None:
        future = self._asked.pop(key)
        if not future.done():
            future.set_result(value)

    def _linger(self, reading: asyncio.Future[Sequence[object]]) -> None:
        self._lingering.add(reading)
        self._loop.call_later(PATIENCE_S, reading.cancel)
        reading.add_done_callback(self._lingering.discard)
        reading.add_done_callback(lambda done: done.cancelled() or done.exception())  # seen, so asyncio logs nothing

    async def aclose(self) -> None:
        """Cuts the trips under way; those who wait for them find their keys given up."""
        self._give_up(lambda _: True)
        under_way: list[asyncio.Future[Any]] = [*self._trips, *self._lingering]
        for future in under_way:
            future.cancel()
        if under_way:
            await asyncio.wait(under_way)
