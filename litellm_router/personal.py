"""A user's own board in the router: whose request it is, and what their board makes of a prompt's scores."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from litellm_router.request import bucket_of
from litellm_router.settings import P2LSettings, PersonalSettings
from p2l_plugins.leaderboards.personal import DAY_S, Blending, blended, with_prompt
from p2l_plugins.leaderboards.user_store import UserBoards, user_key
from p2l_plugins.scoring.engine import Scorer
from p2l_plugins.scoring.flights import Scored

#: Where LiteLLM puts the names, by the setting `personal.user`.
FIELDS = {"key_user": "user_api_key_user_id", "end_user": "user_api_key_end_user_id"}


class Personal:
    """Boards of the users of one bundle.

    Args:
        settings: with `personal` and a secret of the cache.
        own: `settings.personal`.
        scorer: the bundle.
        client: gives the Redis client of the running event loop, as the score cache has it; None: boards live in this
            process.

    Raises:
        ConfigError: the environment variable of the secret is not set.
    """

    def __init__(
        self, settings: P2LSettings, own: PersonalSettings, scorer: Scorer, client: Callable[[], Any] | None
    ) -> None:
        self.scorer = scorer
        self._field = FIELDS[own.user]
        self._blending = Blending(own.weight, own.prompts, own.half_life_days * DAY_S)
        self._secret, self._namespace = settings.cache.key_secret(), settings.cache.namespace
        self._boards = UserBoards(
            client,
            scorer.fingerprint,
            scorer.family,
            len(scorer.models),
            self._secret,
            settings.cache.deadline_ms / 1e3,
        )

    async def scored(
        self, request: Mapping[str, Any], scored: Scored, deadline: float
    ) -> tuple[Scored, dict[str, float] | None]:
        """A prompt's scores as the user's board has them, and the evidence behind it; unchanged without history.

        The prompt is added to the board behind the request, once, however often it is tried.

        Args:
            deadline: on the clock `time.monotonic`.
        """
        user = bucket_of(request).get(self._field)
        if not isinstance(user, str) or not user:
            return scored, None
        key = user_key(user, self._secret, self._namespace)
        board = await self._boards.get(key, deadline - time.monotonic())
        if not bucket_of(request).get("attempted_retries"):
            asked = partial(with_prompt, coefs=scored.entry.coefs, raw_eta=scored.entry.raw_eta)
            self._boards.change_soon(key, partial(asked, family=self.scorer.family, blending=self._blending))
        if board is None:
            return scored, None
        coefs = blended(board, self.scorer.family, scored.entry.coefs, time.time(), self._blending)
        entry = scored.entry._replace(coefs=np.asarray(coefs, np.float32))
        own = Scored(f"{scored.key}:{key}:{board.time}:{board.prompts}:{board.votes}", entry, scored.cached)
        return own, {"prompts": round(board.prompts, 2), "votes": round(board.votes, 2)}

    async def flush(self) -> None:
        """Waits until the prompts so far are in their boards."""
        await self._boards.flush()
