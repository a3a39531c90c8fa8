"""Time and memory of a leaderboard with intervals over a million prompts × 130 models, after scoring.

    python benchmarks/leaderboard.py [--prompts 1000000] [--models 130] [--by 0]

The coefficients are made up chunk by chunk, as `p2l leaderboard` reads them; making them is not counted. `--by N` gives
the prompts N categories. Every family runs in a process of its own; the memory is the whole process at its peak.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time

import numpy as np

from p2l_plugins.leaderboards.categories import CategoryMeans
from p2l_plugins.leaderboards.leaderboard import Leaderboard
from p2l_plugins.leaderboards.pair_means import BLOCKS, Blocks, PairMeans
from p2l_plugins.outcomes import Family, has_eta

CHUNK = 4096


def measure(family: Family, prompts: int, models: int, categories: int) -> str:
    """A row of the table."""
    rng = np.random.default_rng(0)
    names = tuple(f"model-{i}" for i in range(models))
    level = rng.normal(size=models)
    means, blocks = PairMeans(family, models, BLOCKS), Blocks(BLOCKS)
    by = CategoryMeans(names, family)
    added = 0.0
    for start in range(0, prompts, CHUNK):
        n = min(CHUNK, prompts - start)
        coefs = (level + rng.normal(size=(n, models))).astype(np.float32)
        raw_eta = rng.normal(size=n) + (10.0 if family == "rk" else 0.0) if has_eta(family) else None
        begin = time.perf_counter()
        if categories:
            by.add(coefs, raw_eta, [str(i % categories) for i in range(n)])
        else:
            means.add(coefs, raw_eta, blocks.deal(n))
        added += time.perf_counter() - begin
    begin = time.perf_counter()
    board = by.boards().overall if categories else Leaderboard.from_means(names, means)
    fitted = time.perf_counter() - begin
    assert board.intervals is not None
    assert board.n_prompts == prompts
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return f"| {family} | {prompts:,} × {models} | {added:.1f} | {fitted:.1f} | {added + fitted:.1f} | {peak:,.0f} |"


def main() -> None:
    """Prints a row per family."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=1_000_000)
    parser.add_argument("--models", type=int, default=130)
    parser.add_argument("--by", type=int, default=0, help="categories")
    parser.add_argument("--family", choices=("bt", "rk", "grk"))
    options = parser.parse_args()
    if options.family:
        print(measure(options.family, options.prompts, options.models, options.by), flush=True)
        return
    print("| family | prompts × models | add, s | fit and intervals, s | together, s | peak memory, MB |")
    print("|:---|---:|---:|---:|---:|---:|", flush=True)
    for family in ("bt", "rk", "grk"):
        subprocess.run([sys.executable, __file__, *sys.argv[1:], "--family", family], check=True)


if __name__ == "__main__":
    main()
