"""Servers and caches of the cache's tests."""

import numpy as np
import pytest
from helpers.servers import cluster, server

from p2l_plugins.cache.address import Clients
from p2l_plugins.cache.entry import Entry, cache_key
from p2l_plugins.cache.memory import MemoryCache
from p2l_plugins.cache.redis import RedisCache
from p2l_plugins.cache.tiered import TieredCache

FINGERPRINT = "f" * 32

#: Long enough that a busy machine does not turn a hit into a miss: what deadlines do has tests of its own.
PATIENT_S = 5.0


@pytest.fixture(scope="session")
def valkey(tmp_path_factory):
    with server(tmp_path_factory.mktemp("valkey")) as one:
        yield one


@pytest.fixture(scope="session")
def nodes(tmp_path_factory):
    with cluster(tmp_path_factory.mktemp("cluster")) as servers:
        yield servers


@pytest.fixture
def cluster_url(nodes):
    return "redis+cluster://" + ",".join(f"127.0.0.1:{one.port}" for one in nodes)


@pytest.fixture
def key():
    return lambda text, fingerprint=FINGERPRINT, **options: cache_key(fingerprint, (text,), **options)


@pytest.fixture
def entry():
    """Gives an entry of so many models."""
    return lambda x=1.0, models=3, raw_eta=None: Entry(np.linspace(x, x + 1, models, dtype=np.float32), raw_eta)


@pytest.fixture
async def redis_cache():
    """Gives a cache for an address, and closes it."""
    made = []

    def make(url, **options):
        made.append(RedisCache(Clients(url), **{"deadline_s": PATIENT_S} | options))
        return made[-1]

    yield make
    for cache in made:
        await cache.aclose()


@pytest.fixture(params=["memory", "redis", "cluster", "tiered"])
def any_cache(request, redis_cache):
    """Each kind of cache in turn, empty."""
    if request.param == "memory":
        return TieredCache(MemoryCache())
    if request.param == "cluster":
        for one in request.getfixturevalue("nodes"):
            one.client().flushall()
        return redis_cache(request.getfixturevalue("cluster_url"))
    valkey = request.getfixturevalue("valkey")
    valkey.client().flushall()
    shared = redis_cache(valkey.url)
    return shared if request.param == "redis" else TieredCache(MemoryCache(), shared)
