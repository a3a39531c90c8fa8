"""LiteLLM's own Redis is found where LiteLLM keeps it, and is what the cache then uses."""

import sys
import types

import litellm
import pytest
from litellm.caching.redis_cache import RedisCache as LiteLLMRedis

from litellm_router.redis_client import litellm_client, litellm_redis
from p2l_plugins.cache.entry import cache_key
from p2l_plugins.cache.settings import CacheSettings


@pytest.fixture
def proxy(monkeypatch):
    """A stand-in for the proxy's module: importing the real one starts half a proxy."""
    module = types.ModuleType("litellm.proxy.proxy_server")
    module.redis_usage_cache = module.llm_router = None
    monkeypatch.setitem(sys.modules, "litellm.proxy.proxy_server", module)
    monkeypatch.setattr(litellm, "cache", None)
    return module


def test_the_order_is_proxy_router_response_cache(proxy, valkey, monkeypatch):
    assert litellm_redis() is None
    of_proxy, of_responses = (LiteLLMRedis(host="127.0.0.1", port=valkey.port) for _ in range(2))
    monkeypatch.setattr(litellm, "cache", types.SimpleNamespace(cache=of_responses))
    assert litellm_redis() is of_responses
    router = litellm.Router(model_list=[], redis_host="127.0.0.1", redis_port=valkey.port)
    assert litellm_redis(router) is router.cache.redis_cache
    proxy.llm_router = router
    assert litellm_redis() is router.cache.redis_cache is not None
    proxy.redis_usage_cache = of_proxy
    assert litellm_redis() is of_proxy


def test_a_cache_that_is_not_redis_is_passed_over(proxy, monkeypatch):
    monkeypatch.setattr(litellm, "cache", litellm.Cache(type="local"))
    assert litellm_redis() is None
    proxy.llm_router = litellm.Router(model_list=[])
    assert litellm_redis() is None


async def test_scores_are_kept_in_litellms_redis_and_found_by_another_process_cache(proxy, valkey):
    import numpy as np

    from p2l_plugins.cache.entry import Entry

    cache = CacheSettings(deadline_ms=5000).build(litellm_client)
    key = cache_key("f" * 32, ("hi",))
    assert await cache.get_many([key]) == [None]  # no Redis yet
    proxy.redis_usage_cache = LiteLLMRedis(host="127.0.0.1", port=valkey.port, namespace="litellm.caching")
    await cache.set_many({key: Entry(np.ones(3, np.float32), None)})
    assert valkey.client().keys("p2l:*") == [key.encode()]
    other = CacheSettings(deadline_ms=5000).build(litellm_client)
    assert (await other.get_many([key], models=3))[0].coefs.sum() == 3
    assert other.snapshot()["hits"] == {"redis": 1}
