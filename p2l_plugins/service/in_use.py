"""A bundle in use: what one request takes once and works with, whatever is served by the time it ends."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from p2l_plugins.leaderboards.leaderboard import Leaderboard
from p2l_plugins.prompts import Turns
from p2l_plugins.scoring.flights import Flights, Scored
from p2l_plugins.scoring.scorer import P2L, Scores
from p2l_plugins.service.users import Users


class InUse:
    """A bundle and what is bound to it, on one event loop.

    Attributes:
        p2l: the bundle.
        flights: the way to its scores.
        users: their boards; None where there is no shared cache with a secret to keep them in.
        overall: the board that others are compared with; None until it is made.
    """

    def __init__(self, p2l: P2L, flights: Flights, users: Users | None, overall: Leaderboard | None = None) -> None:
        self.p2l, self.flights, self.users, self.overall = p2l, flights, users, overall
        self._requests = 0
        self._ended = asyncio.Event()

    @contextmanager
    def held(self) -> Iterator[InUse]:
        """Keeps it open for a request."""
        self._requests += 1
        try:
            yield self
        finally:
            self._requests -= 1
            self._ended.set()

    async def scores(self, prompts: Sequence[Turns], step: int) -> Scores:
        """Scores of prompts, asked for in pieces of `step`; errors as `Flights.score`."""
        scored: list[Scored] = []
        for i in range(0, len(prompts), step):
            scored += await self.flights.score(prompts[i : i + step])
        return self.p2l.from_entries([one.entry for one in scored])

    async def retire(self) -> None:
        """Closes it once the last request that took it has ended; no other one can come."""
        while self._requests:
            self._ended.clear()
            await self._ended.wait()
        await self.aclose()

    async def aclose(self, wait_s: float = 0.0) -> None:
        """Keeps the votes so far, and scores the prompts that wait, for up to `wait_s` seconds."""
        if self.users is not None:
            await self.users.aclose()
        await asyncio.to_thread(self.flights.close, wait_s)
