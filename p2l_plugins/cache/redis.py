"""Scores in a Redis or Valkey that services share, always within a deadline and never in the way of a request.

Reads of many keys are one round trip: MGET, or on a cluster GETs in a pipeline per node. A write is `SET … EX` in one
command; writes gather in a bounded queue that the request never waits for. Reads and writes have a breaker each, so
that a server which is full or read-only is still read. Every error is a miss or a lost write, and is counted.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from p2l_plugins.cache.address import Clients
from p2l_plugins.cache.breaker import Breaker
from p2l_plugins.cache.entry import Entry
from p2l_plugins.cache.gather import GIVEN_UP, BusyLoop, Gathering
from p2l_plugins.cache.stats import Stats
from p2l_plugins.cache.value import Unreadable, decode, encode

DAY_S = 24 * 3600.0
DEADLINE_S = 0.015

#: Share of the time to live by which it is longer or shorter at random: what was written together expires apart.
JITTER = 0.1

#: Entries that may wait to be written, and most of them in one round trip.
WRITES_WAITING = 1024
WRITES = 64

#: Seconds that one round trip of writes may take.
WRITE_S = 1.0


@dataclass
class _OnLoop:
    """What belongs to one event loop."""

    gathering: Gathering
    waiting: dict[str, bytes] = field(default_factory=dict)
    writer: asyncio.Task[None] | None = None


class RedisCache:
    """A `ScoreCache` over a redis-py asyncio client. Safe to use from several event loops.

    Args:
        client: gives the client (`Redis` or `RedisCluster`) for the running event loop, or None while there is none.
        ttl_s: seconds until an entry expires, give or take a tenth.
        deadline_s: longest that a read may take.
        secret: of the values' seal (at most 64 bytes); values under another one, or none, are misses.
        stats: counters to share with other tiers.
        clock: seconds, never going back.
        uniform: random number in [0, 1).

    Attributes:
        client: as above.
        reads: the breaker of reads.
        writes: the breaker of writes.
    """

    def __init__(
        self,
        client: Callable[[], Any],
        ttl_s: float = 7 * DAY_S,
        deadline_s: float = DEADLINE_S,
        secret: bytes = b"",
        stats: Stats | None = None,
        clock: Callable[[], float] = time.monotonic,
        uniform: Callable[[], float] = random.random,
    ) -> None:
        self.stats = stats or Stats()
        self.reads = Breaker("reading from Redis", clock=clock)
        self.writes = Breaker("writing to Redis", clock=clock)
        self.ttl_s, self.deadline_s = ttl_s, deadline_s
        self.client = client
        self._secret = secret
        self._uniform = uniform
        self._loops: dict[asyncio.AbstractEventLoop, _OnLoop] = {}

    async def get_many(
        self, keys: Sequence[str], models: int | None = None, timeout_s: float | None = None
    ) -> list[Entry | None]:
        """The entry of each key, or None; as `ScoreCache.get_many`."""
        if not keys:
            return []
        if not self.reads.allows():
            self.stats.count("skipped", n=len(keys))
            self.stats.count("misses", n=len(keys))
            return [None] * len(keys)
        values = await self._on_loop().gathering.ask(keys, timeout_s)
        return [self._entry(key, value, models) for key, value in zip(keys, values, strict=True)]

    def _entry(self, key: str, value: object, models: int | None) -> Entry | None:
        if value is GIVEN_UP:
            self.stats.count("skipped")
        elif value is not None:
            try:
                entry = decode(key, value, models, self._secret)
            except Unreadable as why:
                self.stats.count("unreadable", str(why))
            else:
                self.stats.count("hits", "redis")
                return entry
        self.stats.count("misses")
        return None

    async def set_many(self, entries: Mapping[str, Entry]) -> None:
        """Writes the entries; returns when they are written or lost."""
        values = list(self._encoded(entries).items())
        for i in range(0, len(values), WRITES):
            await self._write(dict(values[i : i + WRITES]))

    def set_soon(self, entries: Mapping[str, Entry]) -> None:
        """Writes the entries in the background of the running event loop; more than may wait are lost."""
        on_loop = self._on_loop()
        for key, value in self._encoded(entries).items():
            if len(on_loop.waiting) < WRITES_WAITING:
                on_loop.waiting[key] = value
            else:
                self.stats.count("lost")
        if on_loop.waiting and (on_loop.writer is None or on_loop.writer.done()):
            on_loop.writer = asyncio.get_running_loop().create_task(self._write_waiting(on_loop.waiting))

    def _encoded(self, entries: Mapping[str, Entry]) -> dict[str, bytes]:
        values = {}
        for key, entry in entries.items():
            try:
                values[key] = encode(key, entry, self._secret)
            except ValueError:
                self.stats.count("lost")
        return values

    async def _write_waiting(self, waiting: dict[str, bytes]) -> None:
        while waiting:
            batch = dict(islice(waiting.items(), WRITES))
            for key in batch:
                del waiting[key]
            await self._write(batch)

    async def _write(self, values: Mapping[str, bytes]) -> None:
        if not self.writes.allows():
            self.stats.count("lost", n=len(values))
            return
        try:
            client = self.client()
            if client is None:
                self.stats.count("lost", n=len(values))
                return
            async with asyncio.timeout(WRITE_S):
                pipe = pipeline(client)
                for key, value in values.items():
                    ttl_s = max(1, round(self.ttl_s * (1 + JITTER * (2 * self._uniform() - 1))))
                    pipe.execute_command("SET", key, value, "EX", ttl_s)
                answers = await pipe.execute(raise_on_error=False)
        except Exception as error:  # whatever redis-py raises
            answers = [error] * len(values)
        errors = [answer for answer in answers if isinstance(answer, Exception)]
        self.stats.count("written", n=len(values) - len(errors))
        self.stats.count("lost", n=len(errors))
        if len(errors) < len(values):
            self.writes.succeeded()
        else:
            self.failed(self.writes, errors[0])

    async def _read(self, keys: list[str]) -> Sequence[object]:
        client = self.client()
        if client is None:
            return [None] * len(keys)
        values = await raw_values(client, keys)
        for error in values:  # one node of several: what the others hold is still found
            if isinstance(error, Exception):
                self.stats.count("errors", kind_of(error))
        return [GIVEN_UP if isinstance(value, Exception) else value for value in values]

    def _on_loop(self) -> _OnLoop:
        loop = asyncio.get_running_loop()
        on_loop = self._loops.get(loop)
        if on_loop is None:
            self._loops = {other: kept for other, kept in self._loops.items() if not other.is_closed()}
            on_loop = self._loops[loop] = _OnLoop(Gathering(self._read, self.deadline_s, self._report))
        return on_loop

    def _report(self, seconds: float, error: BaseException | None) -> None:
        if error is None:
            self.stats.took(seconds)
            self.reads.succeeded()
        elif isinstance(error, BusyLoop):
            self.stats.count("errors", "busy")
        else:
            self.failed(self.reads, error, seconds)

    def failed(self, breaker: Breaker, error: BaseException, seconds: float = 0.0) -> None:
        """Counts an error, and tells the breaker."""
        kind = kind_of(error)
        self.stats.count("errors", kind)
        breaker.failed(kind, seconds)

    async def flush(self) -> None:
        """Waits until the writes of the running event loop are done."""
        writer = self._on_loop().writer
        if writer is not None:
            await asyncio.wait({writer})

    async def aclose(self) -> None:
        """Ends reads and writes of the running event loop; a client of `Clients` is closed, another one stays open."""
        on_loop = self._loops.pop(asyncio.get_running_loop(), None)
        if on_loop is not None:
            if on_loop.writer is not None:
                on_loop.writer.cancel()
                await asyncio.wait({on_loop.writer})
            await on_loop.gathering.aclose()
        if isinstance(self.client, Clients):
            await self.client.aclose()

    def snapshot(self) -> dict[str, Any]:
        """The counters, and the state of the breakers."""
        return self.stats.snapshot() | {"breakers": {"reads": self.reads.state, "writes": self.writes.state}}


async def raw_values(client: Any, keys: Sequence[str]) -> Sequence[object]:
    """The bytes of each key, or None, in one round trip: MGET, on a cluster GETs in a pipeline per node.

    Where a node of a cluster gives no answer, its error stands in place of the value.

    Raises:
        Exception: whatever redis-py raises where no key could be read.
    """
    from redis.client import NEVER_DECODE

    # a client that decodes answers (LiteLLM's may be told to) would fail at bytes that are no text
    raw: dict[str, Any] = {NEVER_DECODE: True}
    if not is_cluster(client):
        values: Sequence[object] = await client.execute_command("MGET", *keys, **raw)
        return values
    pipe = pipeline(client)
    for key in keys:
        pipe.execute_command("GET", key, **raw)
    answers: Sequence[object] = await pipe.execute(raise_on_error=False)
    errors = [answer for answer in answers if isinstance(answer, Exception)]
    if len(errors) == len(keys):
        raise errors[0]
    return answers


def pipeline(client: Any) -> Any:
    """Commands that go out together, each on its own."""
    return client.pipeline() if is_cluster(client) else client.pipeline(transaction=False)


def is_cluster(client: Any) -> bool:
    """Whether a client is one of a cluster, where the keys of one command must lie on one node."""
    return hasattr(client, "get_nodes")


#: What an error only says in its message: Sentinels that refuse a password are a primary that is not found, and a right
#: that a script lacks is a failure of the script.
_TOLD = (
    ("auth", ("AuthenticationError", "AuthorizationError")),
    ("permission", ("NoPermissionError", "ACL failure in script", "can't run this command or subcommand")),
)


def _told(error: BaseException) -> str | None:
    from redis.asyncio.sentinel import MasterNotFoundError
    from redis.exceptions import ResponseError

    if not isinstance(error, MasterNotFoundError | ResponseError):
        return None
    message = str(error)
    return next((kind for kind, signs in _TOLD if any(sign in message for sign in signs)), None)


def kind_of(error: BaseException) -> str:
    """One word for an error of redis-py, for counters: its message could hold a key or an address."""
    from redis import exceptions as known

    if (told := _told(error)) is not None:
        return told

    by_kind: tuple[tuple[str, tuple[type[BaseException], ...]], ...] = (
        ("timeout", (TimeoutError, known.TimeoutError)),
        ("auth", (known.AuthenticationError, known.AuthorizationError)),
        ("permission", (known.NoPermissionError,)),
        ("readonly", (known.ReadOnlyError,)),
        ("memory", (known.OutOfMemoryError,)),
        ("moved", (known.AskError, known.ClusterCrossSlotError)),
        ("loading", (known.BusyLoadingError,)),
        ("cluster", (known.ClusterError, known.RedisClusterException)),
        ("connection", (known.ConnectionError, OSError, EOFError)),
        ("response", (known.ResponseError,)),
    )
    for kind, types in by_kind:
        if isinstance(error, types):
            return kind
    return "other"
