"""Whether the time of a refusal tells how much of a key is right: wrong keys against a real `p2l serve`.

    python benchmarks/key_timing.py [--rounds 2000]

Three wrong keys of the right length share none, half, and all but one of their first characters with the right one.
They are sent in turns, in an order that is drawn anew for each round, on one connection. A rank test (Kruskal-Wallis,
and Mann-Whitney of the nearest key against the furthest) says whether their times differ; a comparison that stops at
the first difference would make the nearest key the slowest.
"""

from __future__ import annotations

import argparse
import http.client
import os
import platform
import random
import secrets
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from scipy.stats import kruskal, mannwhitneyu
from service import start

#: Below it the times are said to differ.
LEAST_P = 0.01


def timed(port: int, keys: dict[str, str], rounds: int) -> dict[str, list[float]]:
    """Microseconds of each refusal, by key."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    us: dict[str, list[float]] = {name: [] for name in keys}
    order = list(keys)
    for _ in range(rounds):
        random.shuffle(order)
        for name in order:
            started = time.perf_counter_ns()
            connection.request("GET", "/v1/bundle", headers={"api-key": keys[name]})
            answer = connection.getresponse()
            answer.read()
            us[name].append((time.perf_counter_ns() - started) / 1e3)
            if answer.status != 401:
                raise SystemExit(f"a wrong key was answered with {answer.status}")
    return us


def main() -> None:
    """Measures and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2000)
    parser.add_argument("--length", type=int, default=32, help="characters of the key")
    options = parser.parse_args()
    right = secrets.token_hex(options.length)[: options.length]
    other = "z" * options.length
    keys = {
        "none": other,
        "half": right[: options.length // 2] + other[options.length // 2 :],
        "all but one": right[:-1] + "z",
    }
    with tempfile.TemporaryDirectory() as folder:
        process, url = start(Path(folder), "starter", 1, key=right)
        port = int(url.rpartition(":")[2])
        try:
            timed(port, keys, 100)
            us = timed(port, keys, options.rounds)
        finally:
            process.terminate()
            process.wait(60)
    print(f"{platform.machine()}, Python {platform.python_version()}, load {os.getloadavg()[0]:.1f}")
    print("| characters that are right | requests | median, µs | 5 % | 95 % |\n|:---|---:|---:|---:|---:|")
    for name, times in us.items():
        low, middle, high = np.percentile(times, [5, 50, 95])
        print(f"| {name} | {len(times)} | {middle:.1f} | {low:.1f} | {high:.1f} |")
    p = float(kruskal(*us.values()).pvalue)
    nearest = float(mannwhitneyu(us["all but one"], us["none"]).pvalue)
    print(f"Kruskal-Wallis p = {p:.3f}; all but one against none, Mann-Whitney p = {nearest:.3f}")
    sys.exit(int(p < LEAST_P))


if __name__ == "__main__":
    main()
