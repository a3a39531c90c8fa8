"""P2L in LiteLLM's SDK: `P2LRoutingStrategy.install(router)` routes its async and its sync methods.

The async methods call the callback of `router.py`, which `install` registers. The sync ones call no callback, so they
are joined where the version allows it: up to 1.109 by a custom strategy, that hands every choice back to LiteLLM's own
method with the deployments to leave out; since 1.110 at the step of the Rust core where the async methods ask the
callbacks. Both keep LiteLLM's own checks and its own strategy, whatever it is, and leave other groups alone.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import litellm
from litellm.types.router import CustomRoutingStrategyBase

from litellm_router import routers
from litellm_router.asking import ASKED, MAY_ASK, may_remove
from litellm_router.calls import IS_CHAT, called_is_chat
from litellm_router.deployments import id_of
from litellm_router.router import P2LRouter
from litellm_router.startup import p2l_router
from p2l_plugins.errors import ConfigError

EXCLUDED = "_excluded_deployment_ids"

#: The step of the Rust core's sync calls, and where what joins it stands.
_STEP, _JOINED = "_answer_select_sync", "_p2l_strategy"


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
        self._sync = getattr(kind, "_core_get_available_deployment", None) or kind.get_available_deployment
        self._async: Any = getattr(kind, "_core_async_get_available_deployment", None) or getattr(
            kind, "async_get_available_deployment", None
        )

    @classmethod
    def install(cls, router: Any, p2l: P2LRouter | None = None) -> P2LRoutingStrategy:
        """Turns P2L on for a router. Before LiteLLM 1.110, changing its `routing_strategy` turns the sync half off.

        Args:
            p2l: with settings of its own; None takes the callback that reads `litellm.p2l_settings`.

        Raises:
            ConfigError: a LiteLLM whose router P2L does not know.
        """
        strategy = cls(router, p2l or p2l_router)
        if hasattr(strategy._core, _STEP):
            strategy._join_core()
        elif strategy._async is not None:
            (getattr(router, "register_plugin", None) or router.set_custom_routing_strategy)(strategy)
        else:
            raise ConfigError(
                f"litellm {routers.litellm_version()} has a router that P2L does not know; valid: "
                f"{', '.join(routers.TESTED)}"
            )
        routers.install(router, strategy.p2l)
        strategy.p2l.set_up_failover(router)
        if not any(callback is strategy.p2l for callback in litellm.callbacks):
            litellm.callbacks.append(strategy.p2l)
        return strategy

    async def async_get_available_deployment(
        self,
        model: str,
        messages: Any = None,
        input: Any = None,
        specific_deployment: bool | None = False,
        request_kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """LiteLLM's own choice, among the deployments that the callback leaves."""
        return await self._async(
            self._core,
            model=model,
            messages=messages,
            input=input,
            specific_deployment=specific_deployment,
            request_kwargs={} if request_kwargs is None else request_kwargs,
        )

    def get_available_deployment(
        self,
        model: str,
        messages: Any = None,
        input: Any = None,
        specific_deployment: bool | None = False,
        request_kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """LiteLLM's own choice among the deployments of the best model that it has left."""
        request = {} if request_kwargs is None else request_kwargs

        def choose(excluded: Collection[str]) -> Any:
            own = request | ({EXCLUDED: sorted({*(request.get(EXCLUDED) or ()), *excluded})} if excluded else {})
            return self._sync(
                self._core,
                model=model,
                messages=messages,
                input=input,
                specific_deployment=specific_deployment,
                request_kwargs=own,
            )

        group = [] if specific_deployment else self._group(model)
        ids = {id_of(one) for one in group}
        for turn in self._turns(model, group, messages, input, request):
            try:
                return choose(ids.difference(turn))
            except Exception:  # noqa: S112  # LiteLLM's own checks refuse these: the next model
                continue
        attempts = self.p2l.requests.named_in(request, request)
        return choose(attempts.tried if attempts is not None and attempts.ranking else ())

    def _join_core(self) -> None:
        """Has the Rust core's sync calls ask P2L where its async ones ask the callbacks."""
        if getattr(self._core, _JOINED, None) is not None:
            getattr(self._core, _JOINED).p2l = self.p2l
            return
        own: Callable[..., Any] = getattr(self._core, _STEP)

        def answer(step: Mapping[str, Any], request: Any, messages: Any, input: Any) -> Any:
            candidates = own(step, request, messages, input)
            if step.get("stage") != "callback_filters" or not isinstance(request, dict):
                return candidates
            asked = ASKED.get()
            if asked is not None:
                return [name for name in candidates if name in asked]
            model = str(step.get("model_group") or step.get("model"))
            group = [one for one in self._group(model) if id_of(one) in set(candidates)]
            try:
                for turn in self._turns(model, group, messages, input, request):
                    if self._would_pick(model, group, turn, messages, input, request):
                        return turn
            except Exception:  # every model that may be tried was: the core takes no error at this step
                return []
            return candidates

        setattr(self._core, _STEP, answer)
        setattr(self._core, _JOINED, self)

    def _would_pick(
        self, model: str, group: Sequence[Any], ids: Sequence[str], messages: Any, input: Any, request: dict[str, Any]
    ) -> bool:
        """Whether LiteLLM's later checks leave one of some deployments."""
        if not may_remove(self.router, model, group, request, input if messages is None else messages):
            return True
        token = ASKED.set(frozenset(ids))
        try:
            self._sync(self._core, model=model, messages=messages, input=input, request_kwargs=dict(request))
        except Exception:
            return False
        finally:
            ASKED.reset(token)
        return True

    def _group(self, model: str) -> list[Any]:
        try:
            return self.router.get_model_list(model_name=model) or []
        except Exception:
            self.p2l.health.counts["internal"] += 1
            return []

    def _turns(
        self, model: str, group: list[Any], messages: Any, chat: Any, request: dict[str, Any]
    ) -> Iterator[list[str]]:
        """Ids of the deployments of each model in turn, the best first; none where P2L does not decide.

        Raises:
            Exception: what a provider answered last, once every model that may be tried was.
        """
        left = group
        while left:
            narrowed = self._narrowed(model, left, chat if messages is None else messages, request)
            if narrowed is left or not narrowed:
                return
            turn = [id_of(one) for one in narrowed]
            yield turn
            left = [one for one in left if id_of(one) not in turn]

    def _narrowed(self, model: str, group: list[Any], chat: Any, request: dict[str, Any]) -> list[Any]:
        token = MAY_ASK.set(False)  # LiteLLM's async checks belong to another event loop
        chat_token = IS_CHAT.set(called_is_chat())
        try:
            narrowed: list[Any] = _loop.run(self.p2l.async_filter_deployments(model, group, chat, request))
            return narrowed
        except Exception as error:
            attempts = self.p2l.requests.named_in(request, request)
            if attempts is not None and attempts.error is error:
                raise
            self.p2l.health.counts["internal"] += 1
            return group
        finally:
            MAY_ASK.reset(token)
            IS_CHAT.reset(chat_token)
            self.p2l.requests.carry_over(request)
