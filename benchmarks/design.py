"""How many calls a board of your own models takes: what is compared is drawn at random, or chosen for information.

    python benchmarks/design.py [--boards 60]

The coefficients are known: models of the starter's overall leaderboard, or normal ones. Votes are drawn from them by
the Bradley-Terry model, and the board is fitted to them. A prompt with k models costs k answers and k(k − 1) verdicts,
as `p2l votes ask` makes them: every pair in both orders. The baseline is a random pair for each prompt, with 40
comparisons per model. Printed is the part of its calls after which another way has the same error: the root mean
square of the centred coefficients, and the share of pairs in the wrong order. `limit` is the part that the best fixed
design of pairs for these coefficients would need, by its information matrix: no way to choose pairs does much better
for the first error.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from itertools import combinations

import numpy as np

from p2l_plugins import P2L
from p2l_plugins.outcomes import A, Array, B, sigmoid
from p2l_plugins.votes.design import PairDesign

PER_MODEL = 40  # comparisons of the baseline, twice over
PARTS = np.array([0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0])

Errors = tuple[float, float]


def errors(true: Array, marks: Sequence[float], k: int, designed: bool, rng: np.random.Generator) -> list[Errors]:
    """After so many calls each: root mean square error of the coefficients, share of pairs in the wrong order."""
    design = PairDesign(len(true))
    upper = np.triu_indices(len(true), 1)
    calls, found = 0, []
    for mark in marks:
        while calls + k * k <= mark:
            chosen = design.choose(k, rng) if designed else tuple(rng.choice(len(true), k, replace=False).tolist())
            for a, b in combinations(chosen, 2):
                design.add(a, b, A if rng.random() < sigmoid(true[a] - true[b]) else B)
            calls += k * k
        coefs = design.coefs
        order = np.sign(coefs[upper[0]] - coefs[upper[1]]) != np.sign(true[upper[0]] - true[upper[1]])
        found.append((float(np.sqrt(((coefs - true) ** 2).mean())), float(order.mean())))
    return found


def parts(draw: Callable[[np.random.Generator], Array], models: int, k: int, designed: bool, boards: int) -> Errors:
    """The part of the baseline's calls that reaches its two errors, over so many boards; 1 where none does."""
    total = 4 * PER_MODEL * models
    base, other = [], []
    for seed in range(boards):
        true = draw(np.random.default_rng(seed))
        base.append(errors(true, [total], 2, False, np.random.default_rng([seed, 1]))[0])
        other.append(errors(true, list(total * PARTS), k, designed, np.random.default_rng([seed, 2])))
    aim, mean = np.mean(base, axis=0), np.mean(other, axis=0)
    found = [float(np.interp(-aim[i], -np.minimum.accumulate(mean[:, i]), PARTS)) for i in (0, 1)]
    return found[0], found[1]


def limit(true: Array, steps: int = 400) -> float:
    """Summed variance of the best fixed design of pairs, as a part of that of random pairs (multiplicative updates)."""
    m = len(true)
    chance = sigmoid(true[:, None] - true[None, :])
    weight = chance * (1 - chance)

    def variance(share: Array) -> tuple[float, Array]:
        pairs = share * weight
        inverse = np.linalg.pinv(np.diag(pairs.sum(axis=1)) - pairs)
        return float(np.trace(inverse)), weight * ((inverse[:, :, None] - inverse[:, None, :]) ** 2).sum(axis=0)

    share = (1.0 - np.eye(m)) / (m * (m - 1))
    at_random, gain = variance(share)
    for _ in range(steps):
        share = share * np.sqrt(gain)
        share /= share.sum()
        best, gain = variance(share)
    return best / at_random


def normal(models: int, spread: float) -> Callable[[np.random.Generator], Array]:
    """Draws coefficients of mean 0."""

    def draw(rng: np.random.Generator) -> Array:
        true = rng.normal(0, spread, models)
        return true - true.mean()

    return draw


def starters(models: int) -> Callable[[np.random.Generator], Array]:
    """Draws models of the starter's overall leaderboard."""
    overall = np.asarray(P2L.load().overall.coefs, np.float64)

    def draw(rng: np.random.Generator) -> Array:
        true = rng.choice(overall, models, replace=False)
        return true - true.mean()

    return draw


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--boards", type=int, default=60)
    boards = parser.parse_args().boards
    cases = [("the starter's", starters(m), m) for m in (5, 10, 20, 40)]
    cases += [(f"normal, sd {sd:g}", normal(m, sd), m) for m, sd in ((5, 1.0), (5, 2.0), (20, 2.0))]
    print("| board | models | limit, pairs | pairs chosen | k = 3 at random | k = 3 chosen | k = 4 chosen |")
    print("|:---|---:|---:|---:|---:|---:|---:|")
    for name, draw, models in cases:
        least = np.mean([limit(draw(np.random.default_rng(seed))) for seed in range(min(boards, 10))])
        ways = [
            parts(draw, models, k, designed, boards) for k, designed in ((2, True), (3, False), (3, True), (4, True))
        ]
        shown = " | ".join(f"{error:.2f}, {order:.2f}" for error, order in ways)
        print(f"| {name} | {models} | {least:.2f} | {shown} |", flush=True)


if __name__ == "__main__":
    main()
