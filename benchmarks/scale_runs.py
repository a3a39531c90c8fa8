"""What `scale.py` measures on this machine: a LiteLLM proxy that routes by `p2l serve`, both with one Valkey.

Load, providers and all three processes share the machine, so what is measured is processor time of each process, in
turns, medians over rounds. Providers are an HTTP server in this process that answers at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import http.client
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")

import numpy as np
import psutil
import yaml
from engine import WORDS, mixed, tokens_of
from large_cache import fill
from router import MODELS
from scale import (
    MEMORY,
    REDIS,
    SCORED,
    Figures,
    House,
    Numbers,
    Popularity,
    Traffic,
    added,
    looks,
    poisson,
    scorer_seconds,
    shard_seconds,
)
from service import start
from service_cost import spent

from p2l_plugins import P2L
from p2l_plugins.cache.address import Clients
from p2l_plugins.cache.entry import Entry, cache_key
from p2l_plugins.cache.redis import RedisCache
from p2l_plugins.scoring.cached import URL

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "examples")]

#: Entries in the proxy's memory: few, so that some of the hits are in Redis.
FEW = 100

#: Rates of `check`, and its seconds at each.
RATES, SECONDS = (2.0, 4.0, 8.0), 25.0


@dataclass(frozen=True)
class Running:
    """A proxy, a scorer and a Valkey."""

    url: str
    headers: dict[str, str]
    store: str
    proxy: psutil.Process
    scorer: psutil.Process
    valkey: psutil.Process


@contextlib.contextmanager
def running() -> Iterator[Running]:
    """All three, ready."""
    from demo import running_proxy, warm_up
    from helpers.servers import server
    from helpers.upstream import upstream

    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        valkey, provider = stack.enter_context(server(folder)), stack.enter_context(upstream())
        os.environ[URL] = valkey.url
        scorer, endpoint = start(folder, "starter", 1)
        stack.callback(_stop, scorer)
        groups = [
            {
                "model_name": group,
                "litellm_params": {"model": f"openai/{model}", "api_key": "k", "api_base": provider.base(model)},
                "model_info": {"id": f"{group}/{model}", "p2l_model": model},
            }
            for group in ("auto", "plain")
            for model in MODELS
        ]
        settings = {
            "endpoint": endpoint,
            "timeout_ms": 5000,
            "cache": {"url": valkey.url, "entries": FEW, "deadline_ms": 1000},
            "groups": {"plain": {"mode": "off"}},
        }
        config = folder / "config.yaml"
        config.write_text(
            yaml.safe_dump(
                {
                    "model_list": groups,
                    "litellm_settings": {"callbacks": ["litellm_router.p2l_router"], "p2l_settings": settings},
                    "general_settings": {"master_key": "os.environ/LITELLM_MASTER_KEY"},
                }
            )
        )
        proxy = stack.enter_context(running_proxy(config, start_s=300))
        import httpx

        with httpx.Client(timeout=30) as client:
            warm_up(client, proxy, "auto")
        assert valkey.process is not None
        yield Running(
            proxy.url,
            proxy.headers,
            valkey.url,
            *(psutil.Process(one.pid) for one in (proxy.process, scorer, valkey.process)),
        )


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    process.wait(60)


class Client:
    """Asks a proxy, each thread over a connection of its own."""

    def __init__(self, run: Running) -> None:
        self._run = run
        self._own = threading.local()

    def ask(self, group: str, prompt: str) -> http.client.HTTPMessage:
        """The headers of an answer."""
        body = json.dumps({"model": group, "messages": [{"role": "user", "content": prompt}]})
        headers = self._run.headers | {"Content-Type": "application/json"}
        for last in (False, True):
            if not hasattr(self._own, "connection"):
                self._own.connection = http.client.HTTPConnection(urlsplit(self._run.url).netloc, timeout=60)
            try:
                self._own.connection.request("POST", "/v1/chat/completions", body, headers)
                answer = self._own.connection.getresponse()
                break
            except ConnectionError:  # it was idle for long, and the proxy has closed it
                del self._own.connection
                if last:
                    raise
        text = answer.read()
        assert answer.status == http.HTTPStatus.OK, text
        headers_back: http.client.HTTPMessage = answer.headers
        return headers_back

    def ask_all(self, group: str, prompts: Sequence[str]) -> int:
        """Asks four at a time; how many they were."""
        with ThreadPoolExecutor(4) as pool:
            got = list(pool.map(lambda prompt: self.ask(group, prompt), prompts))
        assert group == "plain" or not any(one.get("x-p2l-error") for one in got), "a request was not routed"
        return len(got)


def text_of(rank: int, mean_words: float = 40.0) -> str:
    """The prompt of a rank; their lengths are exponential."""
    rng = random.Random(rank)  # noqa: S311
    words = 1 + int(min(rng.expovariate(1 / mean_words), 350))
    return f"{rank} " + " ".join(rng.choice(WORDS) for _ in range(words))


def model_ms(p2l: P2L, rounds: int = 2) -> tuple[float, float]:
    """Milliseconds of the processor for a prompt, and for each of its tokens: a line through the least of rounds."""
    prompts, tokens = mixed(p2l, 40, "log-uniform")
    p2l.warm_up()
    ms = np.full(len(prompts), np.inf)
    for _ in range(rounds):
        for i, turns in enumerate(prompts):
            started = time.process_time()
            p2l.score_turns([turns])
            ms[i] = min(ms[i], 1e3 * (time.process_time() - started))
    slope, first = np.polyfit(tokens, ms, 1)
    return max(0.0, float(first)), float(slope)


async def redis_ms(url: str, models: int, runs: int = 1000) -> tuple[float, float, float]:
    """Milliseconds of this process, of the server, and from question to answer, of a look that hits."""
    clients = Clients(url)
    cache = RedisCache(clients, deadline_s=5.0)
    keys = [cache_key("c" * 32, (str(i),)) for i in range(64)]
    entries = {key: Entry(np.zeros(models, np.float32), 0.5, False, 0.0) for key in keys}
    for _ in range(20):  # a write may be lost on a busy machine
        await cache.set_many(entries)
        if None not in await cache.get_many(keys):
            break

    async def server_s() -> float:
        cpu = await clients().info("cpu")
        return float(cpu["used_cpu_user"] + cpu["used_cpu_sys"])

    wall, hits, server, own = [], 0, await server_s(), time.process_time()
    for i in range(runs):
        began = time.perf_counter()
        (found,) = await cache.get_many([keys[i % 64]], models)
        wall.append(1e3 * (time.perf_counter() - began))
        hits += found is not None
    own, server = time.process_time() - own, await server_s() - server
    assert hits > 0.95 * runs, "Valkey does not answer"
    await cache.aclose()
    ms = 1e3 * own / runs
    return ms, 1e3 * server / runs, max(0.0, statistics.median(wall) - ms)


async def bytes_of_entry(url: str, models: int, entries: int = 10_000) -> float:
    """Of the server's memory."""
    clients = Clients(url)
    before = (await clients().info("memory"))["used_memory"]
    await asyncio.to_thread(fill, url, entries, models)
    after = (await clients().info("memory"))["used_memory"]
    await clients.aclose()
    return float(after - before) / entries


def measure(path: Path, run: Running, rounds: int = 3, requests: int = 60) -> None:
    """Measures and writes the figures."""
    load = os.getloadavg()[0]
    p2l = P2L.load("starter", threads=1)
    prompt_ms, token_ms = model_ms(p2l)
    looked = [asyncio.run(redis_ms(run.store, len(p2l.models))) for _ in range(rounds)]
    own_ms, server_ms, trip_ms = (statistics.median(column) for column in zip(*looked, strict=True))
    entry_bytes = asyncio.run(bytes_of_entry(run.store, len(p2l.models)))
    taken: dict[str, list[float]] = {kind: [] for kind in ("plain", "hit", "miss", "scorer")}
    client, known = Client(run), text_of(1)
    client.ask_all("auto", [known] * 30)
    client.ask_all("plain", [known] * 30)
    for turn in range(rounds):
        new = [text_of(10_000 * (turn + 1) + i) for i in range(requests)]
        taken["plain"].append(spent(run.proxy, lambda: client.ask_all("plain", [known] * requests)))
        taken["hit"].append(spent(run.proxy, lambda: client.ask_all("auto", [known] * requests)))
        before = run.scorer.cpu_times()
        taken["miss"].append(spent(run.proxy, lambda new=new: client.ask_all("auto", new)))  # type: ignore[misc]
        after = run.scorer.cpu_times()
        scored = 1e3 * (after.user + after.system - before.user - before.system) / requests
        tokens = np.mean([tokens_of(p2l, (text,)) for text in new])
        taken["scorer"].append(scored - prompt_ms - token_ms * float(tokens))
    ms = {kind: statistics.median(column) for kind, column in taken.items()}
    figures = Figures(
        machine=f"{platform.machine()}, {os.cpu_count()} cores, load {load:.1f} before, Python "
        f"{platform.python_version()}, the starter ({len(p2l.models)} models)",
        proxy_ms=round(ms["plain"], 3),
        p2l_ms=round(max(0.0, ms["hit"] - ms["plain"]), 3),
        redis_ms=round(own_ms, 3),
        call_ms=round(max(0.0, ms["miss"] - ms["hit"] - own_ms), 3),
        server_ms=round(server_ms, 4),
        trip_ms=round(trip_ms, 3),
        service_ms=round(max(0.0, ms["scorer"]), 3),
        prompt_ms=round(prompt_ms, 3),
        token_ms=round(token_ms, 4),
        entry_bytes=round(entry_bytes),
    )
    path.write_text(json.dumps(dataclasses.asdict(figures), indent=2) + "\n", encoding="utf-8")
    print(path.read_text(encoding="utf-8"), end="")


@dataclass(frozen=True)
class Seen:
    """What a run, real or simulated, gave: share of hits, cores' time used, and milliseconds that P2L added."""

    hits: float
    proxy: float
    scorer: float
    valkey: float
    ms: Numbers


def real(run: Running, arrivals: Numbers, ranks: Sequence[int]) -> Seen:
    """Asks the running proxy at these times."""
    client = Client(run)
    processes = (run.proxy, run.scorer, run.valkey)

    def one(due: float, rank: int) -> http.client.HTTPMessage:
        time.sleep(max(0.0, due - time.monotonic()))
        return client.ask("auto", text_of(rank))

    before = [process.cpu_times() for process in processes]
    began = time.monotonic() + 0.1
    with ThreadPoolExecutor(64) as pool:
        got = list(pool.map(one, began + arrivals, ranks))
    lasted = time.monotonic() - began
    used = [
        (now.user + now.system - then.user - then.system) / lasted
        for now, then in zip((process.cpu_times() for process in processes), before, strict=True)
    ]
    lost = Counter(one["x-p2l-error"] for one in got if "x-p2l-error" in one)
    if lost:
        print(f"not routed, and left out of hits and times: {dict(lost)}", file=sys.stderr)
    routed = [one for one in got if "x-p2l-error" not in one]
    ms = np.array([float(one["x-p2l-ms"]) for one in routed])
    return Seen(sum(one["x-p2l-cache"] == "hit" for one in routed) / len(routed), *used, ms)


def simulated(figures: Figures, traffic: Traffic, arrivals: Numbers, ranks: Numbers, tokens: Numbers) -> Seen:
    """The same by `scale.py`: one proxy, an empty cache at the start, no network."""
    rng = np.random.default_rng(1)
    house = House(7 * 24 * 3600, FEW, network_ms=0.0)
    popularity = Popularity(traffic.exponent, traffic.prompts)
    repeated = np.where(ranks <= traffic.prompts, ranks, 0).astype(np.int64)
    found = looks(traffic, house, arrivals, repeated, popularity, 1, rng, cold=True)
    per_s = np.bincount(found, minlength=3) / arrivals[-1]
    asked = per_s[REDIS] + per_s[SCORED]
    own = figures.proxy_ms + figures.p2l_ms
    mean = figures.service_ms + figures.prompt_ms + figures.token_ms * tokens[found == SCORED].mean()
    commands = per_s[REDIS] + 4 * per_s[SCORED]
    ms = added(
        figures,
        house,
        arrivals,
        found,
        shard_seconds(figures, house, commands, rng),
        scorer_seconds(figures, traffic, house, per_s[SCORED], 2, rng, tokens[found == SCORED]),
        rng,
    )
    proxy = (per_s.sum() * own + asked * figures.redis_ms + per_s[SCORED] * figures.call_ms) / 1e3
    hits = float((found != SCORED).mean())
    assert (found == MEMORY).any()
    return Seen(hits, proxy, per_s[SCORED] * mean / 1e3, commands * figures.server_ms / 1e3, ms)


def check(figures: Figures, run: Running) -> None:
    """Prints real runs beside the simulation."""
    p2l = P2L.load("starter", threads=1)
    print("| requests/s | | hits | proxy, cores | scorer, cores | Valkey, cores | added ms p50 | p99 | load |")
    print("|---:|:---|---:|---:|---:|---:|---:|---:|---:|")
    for rate in RATES:
        rng = np.random.default_rng(int(rate))
        traffic = Traffic(rate, 1.0, 50.0, 1000.0)
        n, own = int(rate * SECONDS), int(rate * 1e8)  # no rate finds prompts of another
        arrivals = poisson(rate, n, rng)
        ranks = np.where(rng.random(n) < traffic.new, 10**6 + np.arange(n), Popularity(1.0, 1000).draw(n, rng))
        tokens = np.array([tokens_of(p2l, (text_of(rank),)) for rank in (ranks + own).tolist()], np.float64)
        seen = real(run, arrivals, (ranks + own).tolist())
        for name, one in (("real", seen), ("simulated", simulated(figures, traffic, arrivals, ranks, tokens))):
            p50, p99 = np.percentile(one.ms, [50, 99])
            print(
                f"| {rate:g} | {name} | {one.hits:.1%} | {one.proxy:.3f} | {one.scorer:.3f} | {one.valkey:.4f} "
                f"| {p50:.2f} | {p99:.1f} | {os.getloadavg()[0]:.1f} |",
                flush=True,
            )
