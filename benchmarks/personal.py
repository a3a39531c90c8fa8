"""What a user's own board is worth, on simulated users, and what one change of it costs.

    python benchmarks/personal.py [--users 20] [--models 8]

Thumbs: each user likes some models more than the bundle predicts (normal, standard deviation 1); a thumb is up with
the probability that the answer is usable for this user. Printed are the correlation of the learnt shift with the taste
and how much more often the answer of the chosen model is usable. Board: how near it is to the aggregate leaderboard of
the user's prompts, beside the mean of their coefficients.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from p2l_plugins.leaderboards.leaderboard import aggregate
from p2l_plugins.leaderboards.personal import Blending, UserBoard, blended, with_feedback, with_prompt
from p2l_plugins.outcomes import Family, sigmoid

THUMBS = (40, 400, 2000)
PROMPTS = 300
ETA: dict[Family, float | None] = {"bt": None, "rk": -7.0, "grk": 0.3}
FOREVER = Blending(half_life_s=1e15)


def thumbs(users: int, models: int) -> dict[int, tuple[float, float]]:
    """By number of thumbs: correlation of shift and taste, gain in P(usable)."""
    rng = np.random.default_rng(0)
    found: dict[int, list[tuple[float, float]]] = {n: [] for n in THUMBS}
    for _ in range(users):
        taste, tests = rng.normal(0, 1, models), rng.normal(0, 0.7, (200, models))
        usable, rows = sigmoid(tests + taste), np.arange(len(tests))
        board = UserBoard.empty("grk", models, 0.0)
        for n in range(1, max(THUMBS) + 1):
            coefs, model = rng.normal(0, 0.7, models), int(rng.integers(models))
            liked = bool(rng.random() < sigmoid(coefs[model] + taste[model]))
            board = with_feedback(board, "grk", model, liked, 0.0, FOREVER, coefs)
            if n in found:
                own = np.array([blended(board, "grk", row, 0.0, FOREVER) for row in tests])
                gain = usable[rows, own.argmax(1)] - usable[rows, tests.argmax(1)]
                found[n].append((float(np.corrcoef(board.shift, taste)[0, 1]), float(gain.mean())))
    return {n: tuple(np.mean(values, axis=0)) for n, values in found.items()}


def nearness(family: Family, models: int) -> tuple[float, float, float]:
    """Largest distance to the aggregate leaderboard of the board and of the mean, and ms of a change."""
    rng = np.random.default_rng(0)
    eta = ETA[family]
    coefs = rng.normal(size=models) + 0.8 * rng.normal(size=(PROMPTS, models))
    board, started = UserBoard.empty(family, models, 0.0), time.perf_counter()
    for row in coefs:
        board = with_prompt(board, family, row, eta, 0.0, FOREVER)
    ms = 1e3 * (time.perf_counter() - started) / PROMPTS
    raw_eta = None if eta is None else np.full(PROMPTS, eta)
    exact = aggregate(tuple(map(str, range(models))), family, coefs, raw_eta).coefs
    mean = coefs.mean(axis=0) - (0.0 if family == "grk" else coefs.mean())
    return float(np.abs(board.coefs - exact).max()), float(np.abs(mean - exact).max()), ms


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=20)
    parser.add_argument("--models", type=int, default=8)
    options = parser.parse_args()
    print("| thumbs | correlation of shift and taste | usable more often, points |\n|---:|---:|---:|")
    for n, (likeness, gain) in thumbs(options.users, options.models).items():
        print(f"| {n} | {likeness:.2f} | {100 * gain:.1f} |")
    print(f"\n| after {PROMPTS} prompts | models | board | mean of coefficients | ms of a change |")
    print("|:---|---:|---:|---:|---:|")
    for family in ETA:
        for models in (options.models, 106):
            board, mean, ms = nearness(family, models)
            print(f"| {family} | {models} | {board:.3f} | {mean:.3f} | {ms:.1f} |")


if __name__ == "__main__":
    main()
