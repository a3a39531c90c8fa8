"""Seconds as on the idle machine for which bounds of time were set, whatever this one's clock and neighbours do now."""

import statistics
import time
from collections.abc import Callable

import numpy as np

#: Seconds that `work` takes there.
WORK_S = 1.05e-3

_NUMBERS = np.linspace(0.0, 1.0, 130)


def work() -> int:
    """NumPy calls on short arrays and Python's own steps, about as many as one another."""
    total = 0
    for i in range(300):
        gain = _NUMBERS - 0.001 * i * _NUMBERS
        total += int(gain.argmax()) + len(str(i))
        total += int(np.count_nonzero(gain == gain[total % 130]) > 1)
    return total


def seconds(use: Callable[[], object], rounds: int = 5, clock: Callable[[], float] = time.perf_counter) -> float:
    """What `use` takes, less what this machine is slower now: the median over rounds, each beside `work`."""

    def took(what: Callable[[], object]) -> float:
        started = clock()
        what()
        return clock() - started

    found = []
    for _ in range(rounds):
        before, own, after = took(work), took(use), took(work)
        found.append(own / max(1.0, (before + after) / 2 / WORK_S))
    return statistics.median(found)
