"""P2L in LiteLLM's SDK: `P2LRoutingStrategy.install(router)` routes its async and its sync methods.

The async methods call the callback of `router.py`, which `install` registers. The sync ones call no callback of that
kind, only the router's custom strategy. That strategy is one for all groups, so it hands everything back to LiteLLM's
own method: with P2L's ranking, one rank after the other, by way of the deployments to leave out. LiteLLM keeps all its
checks (cooldown, context window, tags, health), and balances deployments of equal rank.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping
from typing import Any

import litellm
from litellm.types.router import CustomRoutingStrategyBase

from litellm_router.deployments import takes_part
from litellm_router.router import P2LRouter, p2l_router

EXCLUDED = "_excluded_deployment_ids"


class _Loop:
    """An event loop in a thread of its own, for callers that have none."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lock = threading.Lock()

    def run(self, coroutine: Any) -> Any:
        """The result of a coroutine that ends by itself."""
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                threading.Thread(target=self._loop.run_forever, name="p2l-sync", daemon=True).start()
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()


_loop = _Loop()


class P2LRoutingStrategy(CustomRoutingStrategyBase):
    """The strategy of one LiteLLM router.

    Args:
        router: `litellm.Router`.
        p2l: decides.
    """

    def __init__(self, router: Any, p2l: P2LRouter) -> None:
        self.router, self.p2l = router, p2l
        self._core = getattr(router, "_core", router)  # since 1.109 Router is a facade
        kind = type(self._core)  # the class's own methods, whatever strategy the instance had
        self._sync = kind.get_available_deployment
        self._async = getattr(kind, "_core_async_get_available_deployment", None) or kind.async_get_available_deployment

    @classmethod
    def install(cls, router: Any, p2l: P2LRouter | None = None) -> P2LRoutingStrategy:
        """Turns P2L on for a router. Changing the router's `routing_strategy` later turns its sync half off.

        Args:
            p2l: with settings of its own; None takes the callback that reads `litellm.p2l_settings`.
        """
        strategy = cls(router, p2l or p2l_router)
        if not any(callback is strategy.p2l for callback in litellm.callbacks):
            litellm.callbacks.append(strategy.p2l)
        (getattr(router, "register_plugin", None) or router.set_custom_routing_strategy)(strategy)
        return strategy

    async def async_get_available_deployment(  # type: ignore[override]
        self,
        model: str,
        messages: Any = None,
        input: Any = None,
        specific_deployment: bool | None = False,
        request_kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """LiteLLM's own choice, among deployments that the callback has ordered."""
        return await self._async(
            self._core,
            model=model,
            messages=messages,
            input=input,
            specific_deployment=specific_deployment,
            request_kwargs={} if request_kwargs is None else request_kwargs,
        )

    def get_available_deployment(  # type: ignore[override]
        self,
        model: str,
        messages: Any = None,
        input: Any = None,
        specific_deployment: bool | None = False,
        request_kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """LiteLLM's own choice among the deployments of the best rank that is alive."""
        request = {} if request_kwargs is None else request_kwargs

        def choose(excluded: set[str]) -> Any:
            own = request | ({EXCLUDED: sorted({*(request.get(EXCLUDED) or ()), *excluded})} if excluded else {})
            return self._sync(
                self._core,
                model=model,
                messages=messages,
                input=input,
                specific_deployment=specific_deployment,
                request_kwargs=own,
            )

        ranks = {} if specific_deployment else self._ranks(model, messages, input, request)
        for rank in sorted(set(ranks.values()))[:-1]:
            try:
                return choose({name for name, other in ranks.items() if other != rank})
            except Exception:  # noqa: S112  # nobody of this rank is alive: the next one
                continue
        return choose(set())

    def _ranks(self, model: str, messages: Any, chat: Any, request: dict[str, Any]) -> dict[str, int]:
        """Rank of each deployment of a group, by id; empty where P2L does not decide."""
        try:
            group = self.router.get_model_list(model_name=model) or []
            if not takes_part(group):
                return {}
            if messages is None and chat is not None:
                request = request | {"input": chat}
            ordered = _loop.run(self.p2l.async_filter_deployments(model, group, messages, request))
            if ordered is group:
                return {}
            return {_id(deployment): deployment["litellm_params"]["order"] for deployment in ordered}
        except Exception:
            self.p2l.health.counts["internal"] += 1
            return {}


def _id(deployment: Mapping[str, Any]) -> str:
    return str(deployment["model_info"]["id"])
