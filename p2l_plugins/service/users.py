"""What users thought of answers, added to their own boards in the shared cache, within bounds for each and in all.

Whoever has the key may name any user. Bounds keep one such caller from filling the store with boards of users that it
made up, and from turning one board by many votes.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any

from p2l_plugins.cache.settings import CacheSettings
from p2l_plugins.leaderboards.personal import Blending, with_feedback
from p2l_plugins.leaderboards.user_store import CHANGE_S, UserBoards, user_key
from p2l_plugins.outcomes import Numbers
from p2l_plugins.scoring.engine import Busy
from p2l_plugins.scoring.scorer import P2L

#: Users whose votes are counted; of more, those that voted longest ago are forgotten.
MOST_COUNTED = 10_000

HOUR_S = 3600.0


class TooManyVotes(Busy):
    """More votes, or new users, than the service takes in an hour."""


class Allowance:
    """So many in an hour: all of them at once, or one after another as time passes.

    Args:
        most: per hour.
        clock: seconds that never go back.
    """

    def __init__(self, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._most, self._clock = most, clock
        self._left, self._at = float(most), clock()

    def take(self) -> bool:
        """Whether there was one left."""
        now = self._clock()
        self._left = min(self._most, self._left + (now - self._at) * self._most / HOUR_S)
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


class Users:
    """Boards of the users of one bundle, on one event loop.

    Args:
        p2l: the bundle.
        client: gives the client of the shared cache.
        cache: its settings, with a secret.
        votes: of one user that count, per hour.
        new_users: users without a board that may get one, per hour.
    """

    def __init__(
        self, p2l: P2L, client: Callable[[], Any], cache: CacheSettings, votes: int, new_users: Allowance
    ) -> None:
        self._family = p2l.family
        self._secret, self._namespace = cache.key_secret(), cache.namespace
        self._votes, self._new_users = votes, new_users
        self._left: OrderedDict[str, Allowance] = OrderedDict()
        self._boards = UserBoards(
            client, p2l.fingerprint, p2l.family, len(p2l.models), self._secret, cache.deadline_ms / 1e3
        )

    async def voted(self, user: str, model: int, liked: bool, other: int | None, coefs: Numbers | None) -> None:
        """Moves a user's board, behind the request.

        Args:
            model: column of the model; other: column of the other one.
            coefs: (M,) of the prompt, or None.

        Raises:
            TooManyVotes: of this user, or of users that are new.
        """
        vote = partial(with_feedback, family=self._family, model=model, liked=liked, blending=Blending())
        key = user_key(user, self._secret, self._namespace)
        await self._admit(key)
        self._boards.change_soon(key, partial(vote, coefs=coefs, other=other))

    async def _admit(self, key: str) -> None:
        left = self._left.get(key)
        if left is None:
            if await self._boards.get(key) is None and not self._new_users.take():
                raise TooManyVotes("too many new users sent feedback in this hour; nothing of this one is kept")
            left = self._left.setdefault(key, Allowance(self._votes))
            if len(self._left) > MOST_COUNTED:
                self._left.popitem(last=False)
        else:
            self._left.move_to_end(key)
        if not left.take():
            raise TooManyVotes(f"more than {self._votes} votes of this user in an hour; this one does not count")

    async def aclose(self) -> None:
        """Waits until the votes so far are kept, a second at most."""
        await asyncio.wait({asyncio.ensure_future(self._boards.flush())}, timeout=CHANGE_S)
