"""What users thought of answers, added to their own boards in the shared cache."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

from p2l_plugins.cache.settings import CacheSettings
from p2l_plugins.leaderboards.personal import Blending, with_feedback
from p2l_plugins.leaderboards.user_store import CHANGE_S, UserBoards, user_key
from p2l_plugins.outcomes import Numbers
from p2l_plugins.scoring.scorer import P2L


class Users:
    """Boards of the users of one bundle, on one event loop.

    Args:
        p2l: the bundle.
        client: gives the client of the shared cache.
        cache: its settings, with a secret.
    """

    def __init__(self, p2l: P2L, client: Callable[[], Any], cache: CacheSettings) -> None:
        self._family = p2l.family
        self._secret, self._namespace = cache.key_secret(), cache.namespace
        self._boards = UserBoards(
            client, p2l.fingerprint, p2l.family, len(p2l.models), self._secret, cache.deadline_ms / 1e3
        )

    def voted(self, user: str, model: int, liked: bool, other: int | None, coefs: Numbers | None) -> None:
        """Moves a user's board, behind the request.

        Args:
            model: column of the model; other: column of the other one.
            coefs: (M,) of the prompt, or None.
        """
        vote = partial(with_feedback, family=self._family, model=model, liked=liked, blending=Blending())
        key = user_key(user, self._secret, self._namespace)
        self._boards.change_soon(key, partial(vote, coefs=coefs, other=other))

    async def aclose(self) -> None:
        """Waits until the votes so far are kept, a second at most."""
        await asyncio.wait({asyncio.ensure_future(self._boards.flush())}, timeout=CHANGE_S)
