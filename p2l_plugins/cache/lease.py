"""One scoring across processes: who takes a prompt's lease scores it, the others wait for the scores in the store.

Worth it where scoring takes much longer than a round trip (a large model on a CPU) and the same prompt reaches several
processes at once. A lease is a key beside the value, `SET … NX PX`, and ends by itself: a process that dies holds
nobody up for longer. Any failure of the store means "score it yourself".
"""

from __future__ import annotations

import asyncio
import time

from p2l_plugins.cache.entry import Entry
from p2l_plugins.cache.redis import RedisCache

SUFFIX = ":lease"

#: Seconds between two looks for another process's scores.
LOOK_S = 0.01


class Leases:
    """Leases in the store of a `RedisCache`.

    Args:
        cache: the shared store.
        lease_s: seconds for which the others wait; a little more than a scoring takes.
    """

    def __init__(self, cache: RedisCache, lease_s: float) -> None:
        self._cache = cache
        self._lease_s = lease_s

    async def take(self, key: str) -> bool:
        """Whether this process is to score the prompt: it took the lease, or the store did not answer."""
        if self._cache.writes.state != "closed" or not self._cache.reads.allows():
            return True
        try:
            client = self._cache.client()
            if client is None:
                return True
            taking = client.execute_command("SET", key + SUFFIX, b"1", "NX", "PX", max(1, round(1e3 * self._lease_s)))
            async with asyncio.timeout(self._cache.deadline_s):
                taken = await taking is not None
        except Exception as error:  # whatever redis-py raises
            self._cache.failed(self._cache.writes, error)
            return True
        self._cache.reads.succeeded()
        return taken

    async def wait(self, key: str, models: int | None = None, timeout_s: float | None = None) -> Entry | None:
        """The scores that another process wrote, or None: then score it here.

        Args:
            key: of the prompt.
            models: coefficients that an entry must have.
            timeout_s: longest wait, where that is shorter than the lease.
        """
        longest = self._lease_s if timeout_s is None else min(timeout_s, self._lease_s)
        end = time.monotonic() + longest
        while (left := end - time.monotonic()) > 0:
            await asyncio.sleep(min(LOOK_S, left))
            entry = (await self._cache.get_many([key], models, left))[0]
            if entry is not None or self._cache.reads.state != "closed":
                return entry
        return None
