"""Processor time that `p2l serve` takes for a request, also beside other versions of the code, in turns.

    python benchmarks/service_cost.py                                # this tree
    git worktree add /tmp/before 6b60ad5 && python benchmarks/service_cost.py . /tmp/before
    python benchmarks/service_cost.py --shares                       # and whose code the event loop's time goes to

Processor time, not time: what else the machine does moves it little. Each round starts each tree's service, fills its
cache with one prompt, and asks it over `--connections` connections for hits (that prompt) and for misses (new prompts
of 17 words). Printed are medians over rounds, and medians of the rounds' ratios to the last tree.
"""

from __future__ import annotations

import argparse
import functools
import http.client
import itertools
import json
import os
import pstats
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil

WORDS = "prove write explain compare translate solve plan summarise fix list why how what code poem law proof".split()
KINDS = ("hit", "miss")


def ask(connection: http.client.HTTPConnection, path: str, prompt: str | None = None) -> int:
    """Status of a request; with a prompt, for its scores."""
    body = None if prompt is None else json.dumps({"prompts": [prompt]})
    connection.request("GET" if body is None else "POST", path, body, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    answer.read()
    return answer.status


#: Whose code is whose, by a part of its path, for `--shares`.
OWNERS = {
    "HTTP (h11, uvicorn)": ("/h11/", "/uvicorn/"),
    "FastAPI, Starlette, pydantic": ("/fastapi/", "/starlette/", "/pydantic", "pydantic_core", "/anyio/"),
    "metrics (prometheus_client)": ("/prometheus_client/",),
    "ours": ("/p2l_plugins/",),
}


def seconds_of(profile: Path) -> dict[str, float]:
    """Seconds of the main thread by owner; what C and the standard library do counts for who called it."""
    taken: dict[str, float] = dict.fromkeys((*OWNERS, "rest"), 0.0)

    def owner(function: tuple[str, int, str]) -> str | None:
        where = f"{function[0]} {function[2]}"
        return next((name for name, parts in OWNERS.items() if any(part in where for part in parts)), None)

    for function, (_, _, own, _, callers) in pstats.Stats(str(profile)).stats.items():  # type: ignore[attr-defined]
        if "asyncio/runners.py" in function[0] or not callers:  # the loop itself, which also waits there
            continue
        if (name := owner(function)) is not None:
            taken[name] += own
        else:
            for caller, (_, _, part, _) in callers.items():
                taken[owner(caller) or "rest"] += part
    return taken


def started(tree: Path, log: Path, profile: Path | None = None) -> tuple[subprocess.Popen[bytes], str]:
    """A service of a tree, once it is ready, and its address."""
    path = os.pathsep.join([str(tree), *sys.path[1:]])
    profiler = [] if profile is None else ["-m", "cProfile", "-o", str(profile)]
    command = [sys.executable, *profiler, "-m", "p2l_plugins.cli", "serve", "starter", "--port", "0"]
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=tree, env=os.environ | {"PYTHONPATH": path}, stderr=output)
    while process.poll() is None:
        time.sleep(0.1)
        found = re.search(r"http://(\S+)", log.read_text())
        if found and "ready: bundle" in log.read_text():
            while ask(http.client.HTTPConnection(found[1]), "/v1/overall") != http.HTTPStatus.OK:
                time.sleep(0.1)
            return process, found[1]
    raise SystemExit(log.read_text())


def spent(process: psutil.Process, work: Callable[[], int]) -> float:
    """Milliseconds of the processor that a process takes for each of some requests."""
    before = process.cpu_times()
    n = work()
    after = process.cpu_times()
    return 1e3 * (after.user + after.system - before.user - before.system) / n


def load(address: str, connections: int, prompts: list[str]) -> int:
    """Asks for the scores of each prompt over some connections; how many there were."""
    each = [prompts[i::connections] for i in range(connections)]

    def client(own: list[str]) -> list[int]:
        connection = http.client.HTTPConnection(address, timeout=60)
        return [ask(connection, "/v1/scores", prompt) for prompt in own]

    with ThreadPoolExecutor(connections) as pool:
        assert set(itertools.chain.from_iterable(pool.map(client, each))) == {200}
    return len(prompts)


def new_prompts(count: int, numbers: random.Random) -> list[str]:
    """Prompts of 17 words that nobody has asked before."""
    return [" ".join(numbers.choices(WORDS, k=16)) + f" {numbers.getrandbits(60)}" for _ in range(count)]


def shares(tree: Path, connections: int, prompts: list[str]) -> dict[str, float]:
    """Of the main thread's time for some requests, the share of each owner."""
    taken = []
    with tempfile.TemporaryDirectory() as folder:
        for asked in ([prompts[0]] * connections, [*[prompts[0]] * connections, *prompts]):
            process, address = started(tree, Path(folder) / "log", Path(folder) / "profile")
            try:
                load(address, connections, asked)
            finally:
                process.terminate()
                process.wait(60)
            taken.append(seconds_of(Path(folder) / "profile"))
    gained = {name: seconds - taken[0][name] for name, seconds in taken[1].items()}
    return {name: seconds / sum(gained.values()) for name, seconds in gained.items()}


def costs(tree: Path, options: argparse.Namespace, numbers: random.Random) -> dict[str, float]:
    """Milliseconds per hit and per miss."""
    with tempfile.TemporaryDirectory() as folder:
        process, address = started(tree, Path(folder) / "log")
        try:
            ask_all = functools.partial(load, address, options.connections)
            ask_all(["hello there"] * options.connections)
            watched = psutil.Process(process.pid)
            hits = spent(watched, lambda: ask_all(["hello there"] * options.hits))
            new = new_prompts(options.misses, numbers)
            return {"hit": hits, "miss": spent(watched, lambda: ask_all(new))}
        finally:
            process.terminate()
            process.wait(30)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trees", nargs="*", type=Path, default=[Path()])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--connections", type=int, default=8)
    parser.add_argument("--hits", type=int, default=2000)
    parser.add_argument("--misses", type=int, default=300)
    parser.add_argument("--shares", action="store_true", help="print whose code the main thread runs, and nothing else")
    options = parser.parse_args()
    trees = [tree.resolve() for tree in options.trees]
    numbers = random.Random(0)  # noqa: S311
    if options.shares:
        asked = {"hit": ["hello there"] * options.hits, "miss": new_prompts(options.misses, numbers)}
        for kind, prompts in asked.items():
            found = shares(trees[0], options.connections, prompts)
            print(f"{kind}: " + ", ".join(f"{name} {share:.0%}" for name, share in found.items()))
        return
    rounds = [{tree: costs(tree, options, numbers) for tree in trees} for _ in range(options.rounds)]
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {options.connections} connections")
    for tree, kind in itertools.product(trees, KINDS):
        ms = statistics.median(one[tree][kind] for one in rounds)
        ratio = statistics.median(one[trees[-1]][kind] / one[tree][kind] for one in rounds)
        print(
            f"{tree}: {ms:.2f} ms of the processor per {kind}, {1e3 / ms:.0f}/s on one core, {ratio:.2f} times the last"
        )


if __name__ == "__main__":
    main()
