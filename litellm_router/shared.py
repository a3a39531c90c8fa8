"""Budgets and lengths of answers that several proxies share through Redis: each adds its own moves to common numbers.

About once a second, behind the requests: a request never waits for Redis. Without it, or while it is away, each proxy
goes on with what it knows, keeps its own moves, and hands them over later.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
import re
import time
from collections.abc import Callable
from typing import Any

from litellm_router.traffic import NEWEST, PRIOR_ANSWERS, Traffic
from p2l_plugins.cache.address import Clients
from p2l_plugins.cache.breaker import REMEDIES
from p2l_plugins.cache.redis import kind_of
from p2l_plugins.routing.pacing import Pacer

log = logging.getLogger("litellm_router")

SCHEMA = 1

#: Seconds between two hand-overs, until one fails, and that Redis keeps what no proxy touches.
EVERY_S, TIMEOUT_S, KEEP_S = 1.0, 0.5, 7 * 24 * 3600

#: Adds (n, total) of new answers to (count, mean) of each model, as `traffic.weight` does; returns both.
_ADD_LENGTHS = """
local out = {}
for i = 1, #ARGV - 1, 4 do
  local have = redis.call('HMGET', KEYS[1], ARGV[i] .. ':count', ARGV[i] .. ':mean')
  local count, mean = tonumber(have[1] or '0'), tonumber(have[2] or ARGV[i + 3])
  if not (count and mean and count >= 0 and count < 1e15 and mean >= 0 and mean < 1e9) then
    count, mean = 0, tonumber(ARGV[i + 3])  -- damaged numbers
  end
  local n = tonumber(ARGV[i + 1])
  local left = 1
  for k = 1, math.min(n, 1000) do
    left = left * (1 - math.max(NEWEST, 1 / (PRIOR + count + k)))
  end
  if n > 0 then
    mean = mean + (1 - left) * (tonumber(ARGV[i + 2]) / n - mean)
    redis.call('HSET', KEYS[1], ARGV[i] .. ':count', count + n, ARGV[i] .. ':mean', tostring(mean))
  end
  out[#out + 1] = tostring(count + n)
  out[#out + 1] = tostring(mean)
end
redis.call('EXPIRE', KEYS[1], ARGV[#ARGV])
return out
""".replace("NEWEST", repr(NEWEST)).replace("PRIOR", repr(PRIOR_ANSWERS))


#: Budgets of one hand-over, those that were used last: with one for each API key there may be thousands.
MOST = 64


class SharedTraffic:
    """Hands a process's moves over, at most one hand-over at a time.

    Attributes:
        errors: hand-overs that failed.

    Args:
        client: gives the `redis.asyncio` client of the running event loop, or None where there is no Redis.
        namespace: first part of every key.
        clock: seconds, never going back.
    """

    def __init__(
        self,
        client: Callable[[], Any],
        namespace: str = "p2l",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.errors = 0
        self._client, self._namespace, self._clock = client, namespace, clock
        self._next = 0.0
        self._trouble: str | None = None
        self._task: asyncio.Task[None] | None = None

    def soon(self, traffic: Traffic) -> None:
        """Starts a hand-over in the background, where one is due."""
        now = self._clock()
        if now < self._next or (self._task is not None and not self._task.done()):
            return
        self._next = now + EVERY_S
        self._task = asyncio.get_running_loop().create_task(self.exchange(traffic))

    async def aclose(self) -> None:
        """Ends a hand-over that goes on, and closes a client of our own."""
        if self._task is not None:
            self._task.cancel()
        if isinstance(self._client, Clients):
            await self._client.aclose()

    async def exchange(self, traffic: Traffic) -> None:
        """Hands over what is new, and takes over what the others had."""
        try:
            client = self._client()
            if client is None:
                return
            async with asyncio.timeout(TIMEOUT_S):
                await self._lengths(client, traffic)
                for key, pacer in list(traffic.pacers.items())[-MOST:]:
                    await self._multiplier(client, key, pacer)
        except Exception as error:  # whatever a client raises, requests go on
            self.errors += 1
            self._say(error)
        else:
            if self._trouble is not None:
                log.info("p2l: shared budgets: Redis works again")
            self._trouble = None

    def _say(self, error: Exception) -> None:
        """One line for each kind of trouble, until an exchange ends well. No message of redis-py: it names the user."""
        kind = kind_of(error)
        refused = kind in REMEDIES
        trouble = kind if refused else "away"
        if trouble == self._trouble:
            return
        self._trouble = trouble
        if refused:
            what = f"Redis refuses ({kind}{_command_in(error)}): {REMEDIES[kind]}"
        else:
            what = f"Redis is away ({type(error).__name__})"
        log.warning("p2l: shared budgets: %s; this proxy goes on alone", what)

    async def _multiplier(self, client: Any, name: str, pacer: Pacer) -> None:
        if not pacer.started:
            return
        key = self._key("pace", name)
        first = pacer.shared
        pending = pacer.take_pending()
        try:
            await client.set(key, repr(first), nx=True, ex=KEEP_S)
            await client.expire(key, KEEP_S)
            shared = await _added(client, key, pending)
        except BaseException:
            pacer.give_back(pending)
            raise
        if not pacer.see(shared):  # it was damaged there: what this process knows takes its place
            await client.set(key, repr(pacer.shared), ex=KEEP_S)

    async def _lengths(self, client: Any, traffic: Traffic) -> None:
        lengths = traffic.lengths
        new = lengths.take_new()
        models = sorted({*new, *lengths.models()})
        if not models:
            return
        arguments: list[Any] = []
        for model in models:
            n, total = new.get(model, (0, 0.0))
            arguments += [model, n, total, lengths.configured(model)]
        try:
            found = await client.eval(_ADD_LENGTHS, 1, self._key("answers", ""), *arguments, KEEP_S)
        except BaseException:
            lengths.give_back(new)
            raise
        numbers = [float(value) for value in found]
        lengths.see({m: (int(numbers[2 * i]), numbers[2 * i + 1]) for i, m in enumerate(models)})

    def _key(self, kind: str, name: str) -> str:
        digest = hashlib.blake2b(name.encode(), digest_size=16).hexdigest()
        return f"{self._namespace}:{kind}:{SCHEMA}:{digest}"


async def _added(client: Any, key: str, move: float) -> float:
    """A number in Redis after a move; NaN where there is none."""
    try:
        return float(await client.incrbyfloat(key, move))
    except Exception as error:  # of redis-py, which need not be installed
        if any(words in str(error) for words in ("not a valid float", "NaN or Infinity")):
            return math.nan
        raise


def _command_in(error: Exception) -> str:
    """The command that an ACL refuses, as the end of a list, where the server names it."""
    found = re.search(r"permissions to run the '([a-z|]+)' command", str(error))
    return f", {found[1].upper()}" if found else ""
