"""One multiplier for all traffic that holds the mean cost at a budget, while requests come in one by one.

Each request takes `argmax_i v_i − λ c_i` (`policies.paced`). After it, log λ moves by `gain · (c / budget − 1)`: dual
mirror descent with an entropic mirror map (Balseiro, Lu and Mirrokni, "The Best of Many Worlds: Dual Mirror Descent for
Online Allocation Problems", 2023). The moves add up, so that after T requests

    mean cost / budget − 1 = (log λ_T − log λ_0) / (gain · T)

exactly, however the prompts change: what was spent too much is saved later. (The first hundred requests move it faster,
so that a poor start is soon left.) And since moves only add up, several processes can share one multiplier by adding
theirs to one number.
"""

from __future__ import annotations

import math
import statistics
import threading

import numpy as np

from p2l_plugins.outcomes import Array
from p2l_plugins.routing import policies

#: How far λ may fall and rise from the median of what the first requests would begin with: near the lower end costs
#: hardly matter any more, and the way back, which is paid for with what is spent too much, stays short.
FALL, RISE = 30.0, 1e6

#: Requests of which that median is taken: a single one may be off by a factor of hundreds.
FIRST = 33

#: The gain of request n is at least FAST / (n + START).
FAST, START = 5.0, 10.0


class Pacer:
    """The multiplier of one budget. Safe to use from several threads.

    Args:
        budget: mean cost of a request to hold, in USD.
        gain: how far a request that costs twice the budget moves log λ.
    """

    def __init__(self, budget: float, gain: float = 0.05) -> None:
        self.budget = budget
        self.gain = gain
        self._log: float | None = None  # log(λ · budget), as far as other processes know it
        self._pending = 0.0  # moves that they do not know yet
        self._requests = 0
        self._firsts: list[float] = []
        self._limits = (-math.inf, math.inf)
        self._lock = threading.Lock()

    @property
    def started(self) -> bool:
        """Whether there is a multiplier yet."""
        return self._log is not None

    @property
    def multiplier(self) -> float:
        """λ, in value per USD; 0 before the start."""
        with self._lock:
            return 0.0 if self._log is None else math.exp(self._log + self._pending) / self.budget

    def start(self, multiplier: float) -> None:
        """Sets the first λ > 0, such as `policies.first_multiplier` of a request; later calls change nothing."""
        with self._lock:
            if self._log is None:
                self._log = math.log(multiplier * self.budget)
                self._set_limits(multiplier)

    def start_from(self, value: Array, cost: Array) -> None:
        """Sets the first λ from a request, and how far λ may go from the first ones; after those it does nothing.

        Args:
            value: (M,) of each choice; cost: (M,) expected USD, NaN where unknown.
        """
        if len(self._firsts) >= FIRST:
            return
        known = ~np.isnan(cost)
        first = policies.first_multiplier(value[known], cost[known], self.budget) if known.any() else None
        if not first:
            return
        self.start(first)
        with self._lock:
            self._firsts.append(first)
            self._set_limits(statistics.median_low(self._firsts))

    def _set_limits(self, multiplier: float) -> None:
        middle = math.log(multiplier * self.budget)
        self._limits = (middle - math.log(FALL), middle + math.log(RISE))

    def charge(self, cost: float, requests: int = 1) -> None:
        """Books the cost of requests, in USD; nothing before the start.

        An expected cost is booked with the decision; the difference to what the request really cost follows with
        `requests=0`.
        """
        with self._lock:
            if self._log is None:
                return
            gain = max(self.gain, FAST / (START + self._requests))
            self._requests += requests
            low, high = self._limits
            moved = self._log + self._pending + gain * (cost / self.budget - requests)
            self._pending = min(max(moved, low), high) - self._log

    def take_pending(self) -> float:
        """The moves that other processes do not know yet; they count as known from here on.

        Whoever hands them over calls `see` with the result, or `give_back`.
        """
        with self._lock:
            pending, self._pending = self._pending, 0.0
            if self._log is not None:
                self._log += pending
            return pending

    def give_back(self, pending: float) -> None:
        """Takes moves back that could not be handed over."""
        with self._lock:
            if self._log is not None:
                self._log -= pending
            self._pending += pending

    def see(self, shared: float) -> bool:
        """Takes over log(λ · budget) as the processes that share it have it; returns whether it can be that.

        Their limits lie elsewhere, as their first requests were others, but not further away than a limit is from the
        other one: then the number was damaged, and this process keeps its own.
        """
        with self._lock:
            low, high = self._limits
            if not 2 * low - high <= shared <= 2 * high - low:
                return False
            self._log = shared
            return True

    @property
    def shared(self) -> float:
        """log(λ · budget) as last known to be shared; −∞ before the start."""
        return -math.inf if self._log is None else self._log
