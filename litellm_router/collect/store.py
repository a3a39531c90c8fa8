"""Where collected votes are kept, and what was spent on them: a file of JSON lines, or a stream in Redis.

Each line is one comparison that was paid for: with `winner` it is a vote, without it the calls failed. The budget of a
day is what all lines of that day cost, so that it holds across restarts, and across processes that share the store.
"""

from __future__ import annotations

import asyncio
import datetime
import errno
import json
import math
import os
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from p2l_plugins.errors import ConfigError
from p2l_plugins.votes.collected import stream_of

Row = Mapping[str, Any]

#: Largest file, and most votes in the stream; a file that is full takes no more, the stream drops its oldest.
MOST_FILE_BYTES, MOST_STREAM = 2**30, 100_000

#: Seconds after which the cost of a day is forgotten.
_KEEP_S = 3 * 24 * 3600


class Full(Exception):
    """The store takes no more."""


class Store(Protocol):
    """Keeps votes and the cost of each day."""

    async def spent(self, day: str) -> float:
        """USD of a day, as `2026-01-31` in UTC."""

    async def add(self, row: Row) -> None:
        """Appends a row; it has `timestamp` and `cost`.

        Raises:
            Full: there is no room.
        """


def day_of(timestamp: float) -> str:
    """The day of a moment, in UTC."""
    return datetime.datetime.fromtimestamp(timestamp, datetime.UTC).date().isoformat()


class FileStore:
    """Appends lines to a file that only its owner can read; several processes may share it.

    Raises:
        ConfigError: the file's folder is not there, or it can't be written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read, self._inode, self._costs = 0, -1, dict[str, float]()
        if not path.parent.is_dir():
            raise ConfigError(f"collect.store = {str(path)!r}: there is no folder {str(path.parent)!r}; make it first")
        try:
            os.close(self._open())
        except OSError as error:
            raise ConfigError(f"collect.store = {str(path)!r} can't be written ({error.strerror})") from None
        if not stat.S_ISREG(path.stat().st_mode):
            raise ConfigError(f"collect.store = {str(path)!r} is not a file")

    def _open(self) -> int:
        return os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)

    async def spent(self, day: str) -> float:
        """As `Store.spent`, of all lines that any process wrote."""
        return await asyncio.to_thread(self._spent, day)

    def _spent(self, day: str) -> float:
        if self._path.exists():
            with self._path.open("rb") as stream:
                found = os.fstat(stream.fileno())
                if found.st_ino != self._inode or found.st_size < self._read:  # moved away, and begun anew
                    self._read, self._inode = 0, found.st_ino  # what was spent stays spent
                stream.seek(self._read)
                for line in stream:
                    if not line.endswith(b"\n"):  # which another process is writing
                        break
                    self._read += len(line)
                    self._count(line)
        return self._costs.get(day, 0.0)

    def _count(self, line: bytes) -> None:
        try:
            row = json.loads(line)
            day = day_of(row["timestamp"])
            cost = float(row["cost"])
        except (ValueError, KeyError, TypeError, OverflowError, OSError):  # a line that another program wrote
            return
        if math.isfinite(cost) and cost > 0:
            # no day is forgotten: lines of two alternate around midnight, and a clock that went wrong writes later ones
            self._costs[day] = self._costs.get(day, 0.0) + cost

    async def add(self, row: Row) -> None:
        """As `Store.add`, in one write."""
        await asyncio.to_thread(self._add, json.dumps(row).encode() + b"\n")

    def _add(self, line: bytes) -> None:
        descriptor = self._open()
        try:
            size = os.fstat(descriptor).st_size
            if size + len(line) > MOST_FILE_BYTES:
                raise Full
            if size and os.pread(descriptor, 1, size - 1) != b"\n":  # a full disk or a kill cut a line short
                line = b"\n" + line
            if os.write(descriptor, line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        finally:
            os.close(descriptor)


class RedisStore:
    """Appends to a stream, `{namespace}:collect:1`, beside which the cost of each day is summed.

    Args:
        client: gives the `redis.asyncio` client of the running event loop, or None.
        namespace: first part of every key.
    """

    def __init__(self, client: Callable[[], Any], namespace: str) -> None:
        self._client = client
        self.stream = stream_of(namespace)

    def _now(self) -> Any:
        client = self._client()
        if client is None:
            raise ConnectionError("there is no Redis")
        return client

    async def spent(self, day: str) -> float:
        """As `Store.spent`, of all proxies.

        Raises:
            ValueError: what is kept there is no sum: nothing is spent on that day any more.
        """
        spent = float(await self._now().get(f"{self.stream}:spent:{day}") or 0.0)
        if not 0 <= spent < math.inf:
            raise ValueError("the cost of the day is none")
        return spent

    async def add(self, row: Row) -> None:
        """As `Store.add`."""
        client = self._now()
        key = f"{self.stream}:spent:{day_of(row['timestamp'])}"
        await client.incrbyfloat(key, float(row["cost"]))
        await client.expire(key, _KEEP_S)
        if "winner" in row:
            await client.xadd(self.stream, {"row": json.dumps(row)}, maxlen=MOST_STREAM, approximate=True)
