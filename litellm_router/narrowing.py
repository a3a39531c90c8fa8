"""From a ranking and what a request has tried to the deployments that LiteLLM may choose among next."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from litellm_router.asking import MAY_ASK, kept_by_litellm, may_remove
from litellm_router.attempts import Attempts
from litellm_router.deployments import Deployment, Group, id_of
from litellm_router.failover import most_attempts, same_everywhere
from litellm_router.request import bucket_of
from litellm_router.routers import router_of
from litellm_router.settings import P2LSettings


@dataclass(frozen=True, slots=True)
class Ranked:
    """A request at one of its attempts, with the ranking that was made at its first.

    Attributes:
        settings: of the router.
        name: of the model group.
        group: its deployments that are healthy now.
        deployments: the same, as LiteLLM handed them over.
        attempts: of the request so far.
        request: its keyword arguments.
        chat: messages, or the input of a response.
        messages: as LiteLLM handed them over.
    """

    settings: P2LSettings
    name: str
    group: Group
    deployments: Sequence[Deployment]
    attempts: Attempts
    request: dict[str, Any]
    chat: object
    messages: object

    def untried(self) -> list[str]:
        """Ids of the deployments whose turn may come at this attempt; none once the request has had its chances.

        Other deployments of a model that was tried are among them, unless the last error lies in the request. Without
        failover, LiteLLM's retries go on with those that failed.
        """
        tried = self.attempts
        failover = self.settings.failover == "on"
        retries = bucket_of(self.request).get("max_retries")
        if failover and len(tried.tried) - tried.before >= most_attempts(retries, self.settings.max_attempts):
            return []
        left = [one.id for one in self.group.members if one.id not in tried.tried]
        if same_everywhere(tried.error):
            left = self.group.of_models_other_than(tried.models, left)
        return left if left or failover else [one.id for one in self.group.members]

    async def next(self) -> list[str]:
        """Ids of the deployments of the best model that is left and that LiteLLM's later checks keep."""
        left = self.untried()
        if not left:
            return []
        router = router_of(left[0]) if MAY_ASK.get() else None
        if router is not None and may_remove(router, self.name, self.deployments, self.request, self.chat):
            kept: Collection[str] = await kept_by_litellm(router, self.name, self.request, self.messages, left)
        else:
            kept = self.group.of_first_order(left, self.request.get("_target_order"))
        # each model once, and only then the other deployments of those that were tried
        fresh = self.group.of_models_other_than(self.attempts.models, kept)
        return self.group.best(self.attempts.ranking, fresh or kept)

    def raise_last_error(self) -> None:
        """Raises what a provider answered last, where this request was tried and nobody is left to try."""
        if self.attempts.tried and self.attempts.error is not None:
            raise self.attempts.error

    def offer(self, ids: Sequence[str]) -> list[Deployment]:
        """The deployments of these ids, as they came, now that they are handed to LiteLLM."""
        self.attempts.offer(ids, self.group.model_of(ids[0]), self.request)
        return [one for one in self.deployments if id_of(one) in ids]
