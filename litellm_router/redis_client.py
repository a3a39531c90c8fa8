"""LiteLLM's own Redis, so that the score cache needs no second configuration.

The proxy makes one client from `cache_params`, `coordination_redis`, `router_settings` or the environment, at a moment
of its own, and may replace it; so it is looked for at each use. It belongs to LiteLLM: never closed here, never set up.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import litellm

from p2l_plugins.cache.settings import derive_secret

log = logging.getLogger("litellm_router")

_closing: set[asyncio.Task[None]] = set()


def litellm_redis(router: Any = None) -> Any:
    """LiteLLM's Redis cache: the proxy's, that of its router, that of the response cache, or None, in this order.

    Args:
        router: of the SDK, where there is no proxy.
    """
    proxy = sys.modules.get("litellm.proxy.proxy_server")
    routers = (router, getattr(proxy, "llm_router", None))
    candidates = (
        getattr(proxy, "redis_usage_cache", None),
        *(getattr(_store(one), "redis_cache", None) for one in routers if one is not None),
        getattr(litellm.cache, "cache", None),
    )
    return next((one for one in candidates if _is_redis(one)), None)


def litellm_client(router: Any = None) -> Any:
    """The redis-py asyncio client of the running event loop, or None; an argument of `CacheSettings.build`."""
    cache = litellm_redis(router)
    return None if cache is None else cache.init_async_client()


def master_secret() -> bytes:
    """A secret that an installation's proxies have in common, from their master key; empty where there is none."""
    proxy = sys.modules.get("litellm.proxy.proxy_server")
    key = getattr(proxy, "master_key", None)
    return derive_secret(f"conversations {key}") if isinstance(key, str) and key else b""


def close_soon(aclose: Callable[[], Awaitable[None]]) -> None:
    """Closes connections behind the requests of the running event loop; without one, they go with what holds them."""
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return

    async def close() -> None:
        try:
            await aclose()
        except Exception as error:  # whatever a client raises while a connection breaks
            log.debug("p2l: closing a connection to Redis: %s", type(error).__name__)

    task = loop.create_task(close())
    _closing.add(task)
    task.add_done_callback(_closing.discard)


def _store(router: Any) -> Any:
    """The router's cache: `health().store` since LiteLLM 1.109, `cache` before."""
    health = getattr(router, "health", None)
    return health().store if callable(health) else getattr(router, "cache", None)


def _is_redis(cache: Any) -> bool:
    """Whether it is a plain `RedisCache` or `RedisClusterCache`: a semantic cache has no client to share."""
    return cache is not None and hasattr(cache, "init_async_client") and hasattr(cache, "redis_kwargs")
