"""Load on `p2l serve`: many clients on loopback, statuses, times, and the memory of the service while it lasts.

    python benchmarks/service.py                       # 200 clients for 60 s, one process
    python benchmarks/service.py --workers 2 --batch 8

Each client sends one request after another: four in five prompts are among 500 that come again and again, the others
are new, so that cache and model both work. A client that is told 429 waits as long as Retry-After says. Anything else
but 200 is an error, and so is an answer that is not whole.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import os
import platform
import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
import numpy as np
import psutil

WORDS = "prove write explain compare translate solve plan summarise fix list why how what code poem law proof".split()


def prompt(rng: random.Random, repeated: int) -> str:
    """One of `repeated` prompts, or, one time in five, a new one."""
    number = rng.randrange(repeated) if rng.random() < 0.8 else rng.getrandbits(60)
    chosen = random.Random(number)  # noqa: S311
    return " ".join(chosen.choice(WORDS) for _ in range(chosen.randrange(5, 40))) + f" {number}"


async def client(
    url: str, seed: int, until: float, batch: int, counts: collections.Counter[str], ms: list[float]
) -> None:
    """Asks until the time is up."""
    rng = random.Random(seed)  # noqa: S311
    async with httpx.AsyncClient(base_url=url, timeout=60) as session:
        while time.monotonic() < until:
            prompts = [prompt(rng, 500) for _ in range(rng.randint(1, batch))]
            started = time.perf_counter()
            try:
                answer = await session.post("/v1/scores", json={"prompts": prompts})
            except httpx.HTTPError as error:
                counts[f"error {type(error).__name__}"] += 1
                continue
            if answer.status_code == 429:
                counts["429"] += 1
                await asyncio.sleep(float(answer.headers["retry-after"]))
            elif answer.status_code != 200 or len(answer.json()["coefs"]) != len(prompts):
                counts[f"error: status {answer.status_code}"] += 1
            else:
                counts["200"] += 1
                counts["prompts"] += len(prompts)
                ms.append(1e3 * (time.perf_counter() - started))


async def memory(pid: int, until: float, mib: list[tuple[float, float]]) -> None:
    """Samples the resident memory of a process and its children, once a second."""
    process, started = psutil.Process(pid), time.monotonic()
    while time.monotonic() < until:
        family = [process, *process.children(recursive=True)]
        mib.append((time.monotonic() - started, sum(one.memory_info().rss for one in family) / 2**20))
        await asyncio.sleep(1)


def start(
    folder: Path, bundle: str, workers: int, *options: str, key: str | None = None
) -> tuple[subprocess.Popen[bytes], str]:
    """A service on a free port, when it is ready, with its log in a folder; with a key, it asks for it."""
    log = folder / "log"
    command = [sys.executable, "-m", "p2l_plugins.cli", "serve", bundle, "--port", "0", "--workers", str(workers)]
    environment = dict(os.environ)
    if key is not None:
        command += ["--api-key-env", "P2L_BENCHMARK_KEY"]
        environment["P2L_BENCHMARK_KEY"] = key
    process = subprocess.Popen([*command, *options], stderr=log.open("wb"), env=environment)
    while process.poll() is None:
        found = re.search(r"p2l serve: (http://\S+)", log.read_text())
        try:
            if found and httpx.get(f"{found[1]}/readyz", timeout=5).status_code == 200:
                return process, found[1]
        except httpx.HTTPError:
            pass
        time.sleep(0.1)
    raise SystemExit(log.read_text())


async def load(options: argparse.Namespace, pid: int, url: str) -> bool:
    """Runs the clients and prints what came of it; whether there were no errors."""
    counts: collections.Counter[str] = collections.Counter()
    ms: list[float] = []
    mib: list[tuple[float, float]] = []
    until = time.monotonic() + options.seconds
    clients = [client(url, seed, until, options.batch, counts, ms) for seed in range(options.clients)]
    await asyncio.gather(memory(pid, until, mib), *clients)
    errors = sum(n for key, n in counts.items() if key.startswith("error"))
    half = [size for at, size in mib if at > options.seconds / 2]
    print(f"{options.clients} clients, {options.seconds:g} s, {options.workers} process(es), {os.cpu_count()} cores")
    print(f"{platform.machine()}, Python {platform.python_version()}, load {os.getloadavg()[0]:.1f}")
    print(f"requests: {counts['200']} answered ({counts['200'] / options.seconds:.0f}/s), {counts['429']} told 429")
    print(f"prompts: {counts['prompts']} ({counts['prompts'] / options.seconds:.0f}/s)")
    print(f"errors: {errors} { {k: n for k, n in counts.items() if k.startswith('error')} or '' }")
    p50, p95, p99 = np.percentile(ms, [50, 95, 99])
    print(f"ms: median {p50:.0f}, 95% {p95:.0f}, 99% {p99:.0f}, longest {max(ms):.0f}")
    print(f"MiB: {mib[0][1]:.0f} at the start, {half[0]:.0f} at half time, {half[-1]:.0f} at the end")
    return errors == 0


def main() -> None:
    """Starts the service, loads it, stops it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", default="starter")
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--batch", type=int, default=4, help="most prompts of a request")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        process, url = start(Path(folder), options.bundle, options.workers)
        try:
            fine = asyncio.run(load(options, process.pid, url))
        finally:
            process.terminate()
            status = process.wait(90)
    print(f"exit status of the service: {status}")
    sys.exit(0 if fine and status == 0 else 1)


if __name__ == "__main__":
    main()
