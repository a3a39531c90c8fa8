"""Processor time that `p2l serve` takes for a request, also beside other versions of the code, in turns.

    python benchmarks/service_cost.py                                # this tree
    git worktree add /tmp/before 6b60ad5 && python benchmarks/service_cost.py . /tmp/before

Processor time, not time: what else the machine does moves it little. Each round starts each tree's service, fills its
cache with one prompt, and asks it over `--connections` connections for hits (that prompt) and for misses (new prompts
of 17 words). Printed are medians over rounds, and medians of the rounds' ratios to the last tree.
"""

from __future__ import annotations

import argparse
import http.client
import itertools
import json
import os
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


def started(tree: Path, log: Path) -> tuple[subprocess.Popen[bytes], str]:
    """A service of a tree, once it is ready, and its address."""
    path = os.pathsep.join([str(tree), *sys.path[1:]])
    command = [sys.executable, "-m", "p2l_plugins.cli", "serve", "starter", "--port", "0"]
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


def costs(tree: Path, options: argparse.Namespace, numbers: random.Random) -> dict[str, float]:
    """Milliseconds per hit and per miss."""
    with tempfile.TemporaryDirectory() as folder:
        process, address = started(tree, Path(folder) / "log")
        try:
            connections = [http.client.HTTPConnection(address, timeout=60) for _ in range(options.connections)]

            def load(prompts: list[str]) -> int:
                each = [prompts[i :: len(connections)] for i in range(len(connections))]
                with ThreadPoolExecutor(len(connections)) as pool:
                    jobs = [
                        pool.submit(lambda one, own: [ask(one, "/v1/scores", prompt) for prompt in own], *pair)
                        for pair in zip(connections, each, strict=True)
                    ]
                assert set(itertools.chain.from_iterable(job.result() for job in jobs)) == {200}
                return len(prompts)

            new = [
                " ".join(numbers.choices(WORDS, k=16)) + f" {numbers.getrandbits(60)}" for _ in range(options.misses)
            ]
            load(["hello there"] * options.connections)
            watched = psutil.Process(process.pid)
            hits = spent(watched, lambda: load(["hello there"] * options.hits))
            return {"hit": hits, "miss": spent(watched, lambda: load(new))}
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
    options = parser.parse_args()
    trees = [tree.resolve() for tree in options.trees]
    numbers = random.Random(0)  # noqa: S311
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
