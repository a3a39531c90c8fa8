"""Times of the core's hot paths: a budgeted choice, an aggregate leaderboard, scoring one prompt.

    python benchmarks/core.py

Medians and 95th percentiles of repeated runs in this process.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable

import numpy as np

from p2l_plugins import P2L
from p2l_plugins.leaderboards.leaderboard import aggregate
from p2l_plugins.routing.policies import lp

MODELS = 130


def timed(call: Callable[[int], object], runs: int) -> str:
    """Median and 95th percentile of `call(run)`, in milliseconds."""
    call(0)
    seconds = []
    for run in range(runs):
        start = time.perf_counter()
        call(run)
        seconds.append(time.perf_counter() - start)
    return f"{1e3 * np.median(seconds):.3f} ms (p95 {1e3 * np.percentile(seconds, 95):.3f})"


def main() -> None:
    """Runs the benchmark."""
    rng = np.random.default_rng(0)
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, NumPy {np.__version__}")
    cost = rng.gamma(2, 1, (1000, MODELS))
    value = np.sqrt(cost) * rng.random((1000, MODELS))
    print(f"choice under a budget, {MODELS} models:", timed(lambda i: lp(value[i], cost[i], 1.0), 1000))
    coefs, raw_eta = rng.normal(size=(1000, MODELS)), rng.normal(size=1000)
    names = tuple(f"m{i}" for i in range(MODELS))
    for family in ("bt", "rk", "grk"):
        label = f"leaderboard of 1,000 prompts × {MODELS} models, {family}:"
        print(label, timed(lambda i, f=family: aggregate(names, f, coefs, raw_eta), 15))
    start = time.perf_counter()
    p2l = P2L.load()
    print(f"load the starter: {1e3 * (time.perf_counter() - start):.0f} ms")
    for words in (10, 60, 200):
        prompt = "Explain the theorem in simple terms. " * (words // 6)
        print(f"score a prompt of {words} words with the starter:", timed(lambda i, p=prompt: p2l.score([p]), 50))


if __name__ == "__main__":
    main()
