"""Boards of users in the shared store: one hash per user under a keyed hash of their name, one field per bundle.

Forgetting a user removes one key. Reads have a deadline; changes are made behind the requests, one at a time, and what
a bounded queue can't hold is lost. Two proxies that change one user's board at the same moment keep the later change.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import struct
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from p2l_plugins.cache.breaker import Breaker
from p2l_plugins.cache.entry import NAMESPACE
from p2l_plugins.cache.redis import DEADLINE_S, kind_of
from p2l_plugins.cache.stats import Stats
from p2l_plugins.cache.value import Unreadable, check_sealed, framed, sealed
from p2l_plugins.errors import ConfigError
from p2l_plugins.leaderboards.personal import UserBoard
from p2l_plugins.outcomes import Family

SCHEMA = 1
MAGIC = b"PU"
#: 1 had a checksum that whoever writes to the store could make.
VERSION = 2

#: Seconds that a board is kept after its last change: for each prompt and vote that it is made of, and at most.
KEEP_EACH_S, KEEP_S = 7 * 24 * 3600, 180 * 24 * 3600

#: Seconds that a process reads a board from its own memory, and that one change may take.
MEMORY_S, CHANGE_S = 60.0, 1.0

#: Users in this process's memory, and changes that may wait.
MOST_USERS, MOST_WAITING = 10_000, 1_000

_HEAD = struct.Struct("<2sBBHfffxxxxd")


def user_key(user: str, secret: bytes, namespace: str = NAMESPACE) -> str:
    """Key of a user's boards: a hash that nobody without the secret can tie to the user.

    Raises:
        ConfigError: no secret, or an empty name.
    """
    if not secret:
        raise ConfigError("boards of users need a secret that keys the hash of their names: set cache.secret")
    if not user:
        raise ConfigError("the user's name is empty")
    digest = hashlib.blake2b(user.encode("utf-8", "surrogatepass"), digest_size=16, key=secret, person=b"p2l user")
    return f"{namespace}:user:{SCHEMA}:{digest.hexdigest()}"


def encode_board(key: str, fingerprint: str, board: UserBoard, secret: bytes) -> bytes:
    """The value of a board under its user's key and its bundle: little-endian, with a MAC over all three."""
    numbers = np.concatenate([board.coefs, board.shift]).astype("<f4")
    flags, eta = (0, 0.0) if board.raw_eta is None else (1, board.raw_eta)
    count = len(board.coefs)
    head = _HEAD.pack(MAGIC, VERSION, flags, count, eta, board.prompts, board.votes, board.time)
    return sealed(f"{key}:{fingerprint}", head + numbers.tobytes(), secret)


def decode_board(key: str, fingerprint: str, value: object, models: int, secret: bytes) -> UserBoard:
    """The board that `encode_board` wrote under this key, bundle and secret.

    Raises:
        Unreadable: `type`, `format`, `version`, `length`, `forged`, `models` or `numbers`.
    """
    body = framed(value, _HEAD, MAGIC)
    _, version, flags, count, eta, prompts, votes, changed = _HEAD.unpack_from(body)
    if version != VERSION or flags > 1:
        raise Unreadable("version")
    check_sealed(f"{key}:{fingerprint}", body, _HEAD.size + 8 * count, secret)
    if count != models:
        raise Unreadable("models")
    numbers = np.frombuffer(body, "<f4", 2 * count, _HEAD.size).astype(np.float64)
    if not (np.isfinite(numbers).all() and all(map(math.isfinite, (eta, prompts, votes, changed)))):
        raise Unreadable("numbers")
    return UserBoard(numbers[:count], eta if flags else None, prompts, numbers[count:], votes, changed)


def kept_s(board: UserBoard) -> int:
    """Seconds that a board is kept after a change: a thin one is forgotten sooner."""
    return int(min(KEEP_S, KEEP_EACH_S * max(1.0, board.prompts + board.votes)))


class Change(Protocol):
    """What happens to a board, such as `personal.with_prompt` with all else given."""

    def __call__(self, board: UserBoard, *, now: float) -> UserBoard:
        """The board afterwards; now: seconds since the epoch."""


class UserBoards:
    """Boards of users of one bundle. For one event loop at a time; nothing here raises into a request.

    Args:
        client: gives the redis-py client of the running event loop, or None; then boards live in this process only.
        fingerprint: of the bundle.
        family: of the bundle.
        models: coefficients of a board.
        secret: of the boards' seal, the one that keys the users' names.
        deadline_s: longest that a read may take.
        clock: seconds since the epoch, for the boards.
        steady: seconds, never going back, for this process's memory.

    Attributes:
        stats: counters.
    """

    def __init__(
        self,
        client: Callable[[], Any] | None,
        fingerprint: str,
        family: Family,
        models: int,
        secret: bytes,
        deadline_s: float = DEADLINE_S,
        clock: Callable[[], float] = time.time,
        steady: Callable[[], float] = time.monotonic,
    ) -> None:
        self.stats = Stats()
        self._client, self._fingerprint, self._family, self._models = client, fingerprint, family, models
        self._secret, self._deadline_s, self._clock, self._steady = secret, deadline_s, clock, steady
        self._breaker = Breaker("boards of users in Redis")
        self._memory: OrderedDict[str, tuple[float, UserBoard | None]] = OrderedDict()
        self._waiting: deque[tuple[str, Change]] = deque()
        self._worker: asyncio.Task[None] | None = None

    async def get(self, key: str, timeout_s: float | None = None) -> UserBoard | None:
        """The board of a user, or None where there is none or the store does not say in time."""
        expires, board = self._memory.get(key, (-math.inf, None))
        if expires > self._steady():
            return board
        client = self._client and self._client()
        if client is None or not self._breaker.allows():
            return board
        try:
            async with asyncio.timeout(self._deadline_s if timeout_s is None else min(timeout_s, self._deadline_s)):
                board = await self._read(client, key)
        except Exception as error:  # whatever redis-py raises
            self._failed(error)
            return board
        self._breaker.succeeded()
        self._keep(key, board)
        return board

    def change_soon(self, key: str, change: Change) -> None:
        """Changes a user's board behind the requests, on the running event loop; what can't wait is lost."""
        if len(self._waiting) >= MOST_WAITING:
            self.stats.count("lost")
            return
        self._waiting.append((key, change))
        if self._worker is None or self._worker.done():
            self._worker = asyncio.get_running_loop().create_task(self._change_waiting())

    async def flush(self) -> None:
        """Waits until the changes that wait are made."""
        while self._worker is not None and not self._worker.done():
            await asyncio.wait({self._worker})

    async def _change_waiting(self) -> None:
        while self._waiting:
            key, change = self._waiting.popleft()
            try:
                await self._change(key, change)
            except Exception as error:  # a change that fails is lost
                self.stats.count("lost")
                self._failed(error)

    async def _change(self, key: str, change: Change) -> None:
        client = self._client and self._client()
        before = self._memory.get(key, (0.0, None))[1]
        if client is not None and self._breaker.allows():
            async with asyncio.timeout(CHANGE_S):
                before = await self._read(client, key)
        now = self._clock()
        board = UserBoard.empty(self._family, self._models, now) if before is None else before
        after = await asyncio.to_thread(change, board, now=now)
        self._keep(key, after)
        if client is None or not self._breaker.allows():
            return
        async with asyncio.timeout(CHANGE_S):
            await client.execute_command("HSET", key, self._fingerprint, self._sealed(key, after))
            await client.execute_command("EXPIRE", key, kept_s(after))
        self._breaker.succeeded()
        self.stats.count("written")

    def _sealed(self, key: str, board: UserBoard) -> bytes:
        return encode_board(key, self._fingerprint, board, self._secret)

    async def _read(self, client: Any, key: str) -> UserBoard | None:
        try:
            board = await read_board(client, key, self._fingerprint, self._models, self._secret)
        except Unreadable as why:
            self.stats.count("unreadable", str(why))
            return None
        self.stats.count("misses" if board is None else "hits", "" if board is None else "redis")
        return board

    def _keep(self, key: str, board: UserBoard | None) -> None:
        self._memory[key] = (self._steady() + MEMORY_S, board)
        self._memory.move_to_end(key)
        if len(self._memory) > MOST_USERS:
            self._memory.popitem(last=False)

    def _failed(self, error: BaseException) -> None:
        kind = kind_of(error)
        self.stats.count("errors", kind)
        self._breaker.failed(kind, 0.0)


async def forget(client: Any, key: str) -> bool:
    """Removes all that is kept of a user; whether there was something."""
    return bool(await client.execute_command("UNLINK", key))


async def read_board(client: Any, key: str, fingerprint: str, models: int, secret: bytes) -> UserBoard | None:
    """The board of a user for a bundle, without memory and deadline; for commands.

    Raises:
        Unreadable: a value that is no board.
    """
    from redis.client import NEVER_DECODE

    raw: dict[str, Any] = {NEVER_DECODE: True}
    value = await client.execute_command("HGET", key, fingerprint, **raw)
    return None if value is None else decode_board(key, fingerprint, value, models, secret)
