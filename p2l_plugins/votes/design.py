"""Which models to compare next, so that the fewest comparisons tell the most about the board.

The comparisons so far give a Bradley-Terry fit and its covariance Σ. A further one of models a and b weighs
w = p(1 − p), where p is the chance that a wins, and lowers the summed variance of the coefficients by
w·|Σd|² / (1 + w·dᵀΣd) with d = e_a − e_b: sequential A-optimal design (Atkinson, Donev & Tobias 2007, chapter 10).
Close pairs weigh most, and uncertain models gain most. Nothing here reads or writes: two matrices of
counts are the state.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from p2l_plugins.outcomes import A, Array, B, Mask, sigmoid

_STEPS = 25  # of Newton's method, at most; from the last fit two or three are enough
_SETTLED = 1e-6


class PairDesign:
    """Comparisons of M models, and which to make next. Not safe for several threads.

    Attributes:
        wins: (M, M) comparisons that a row's model won against a column's; a tie is half of one for each.
        pending: (M, M) symmetric, comparisons that were chosen and are not known yet.
        prior: precision of the coefficients before the first comparison: they are normal around 0.
        explore: share of the choices that are made by chance, so that no pair is left out for ever.
    """

    def __init__(self, models: int, prior: float = 0.5, explore: float = 0.05) -> None:
        self.wins = np.zeros((models, models))
        self.pending = np.zeros((models, models))
        self.prior = prior
        self.explore = explore
        self._coefs = np.zeros(models)
        self._covariance: Array | None = None

    def add(self, a: int, b: int, outcome: int, weight: float = 1.0) -> None:
        """Counts a comparison; outcome: index into `outcomes.OUTCOMES`, of which both ties are half a win each."""
        share = 1.0 if outcome == A else 0.0 if outcome == B else 0.5
        self.wins[a, b] += weight * share
        self.wins[b, a] += weight * (1 - share)
        self._covariance = None

    def begin(self, models: Sequence[int]) -> None:
        """Says that every pair of some models is being compared: choices until `end` reckon with it."""
        self._begun(models, 1.0)

    def end(self, models: Sequence[int]) -> None:
        """Takes back `begin`, when the outcomes are added or will never be."""
        self._begun(models, -1.0)

    def _begun(self, models: Sequence[int], count: float) -> None:
        index = np.asarray(models, np.int64)
        self.pending[np.ix_(index, index)] += count * (1 - np.eye(len(index)))
        self._covariance = None

    @property
    def coefs(self) -> Array:
        """(M,) coefficients of mean 0 that the comparisons and the prior make most likely."""
        self._fit()
        centred: Array = self._coefs - self._coefs.mean()
        return centred

    @property
    def covariance(self) -> Array:
        """(M, M) of the coefficients, as if the pending comparisons were known."""
        return self._fit()

    @property
    def gains(self) -> Array:
        """(M, M) symmetric: by how much one more comparison of two models lowers the summed variance; diagonal 0."""
        sigma = self._fit()
        centred = sigma - sigma.mean(axis=0)
        moved = ((centred[:, :, None] - centred[:, None, :]) ** 2).sum(axis=0)
        spread = np.diag(sigma)[:, None] + np.diag(sigma)[None, :] - 2 * sigma
        # the coefficients are not known, so the chance is averaged over what they may be (MacKay 1992)
        chance = sigmoid((self._coefs[:, None] - self._coefs[None, :]) / np.sqrt(1 + np.pi * spread / 8))
        weight = chance * (1 - chance)
        gain: Array = weight * moved / (1 + weight * spread)
        np.fill_diagonal(gain, 0.0)
        return gain

    def next_pair(self, rng: np.random.Generator, without: Collection[int] = ()) -> tuple[int, int]:
        """The pair to compare next, in random order.

        Args:
            rng: of ties, of the order and of the choices by chance.
            without: models that can't be asked.

        Raises:
            ValueError: fewer than two models are left.
        """
        a, b = self.choose(2, rng, without=without)
        return a, b

    def choose(
        self, k: int, rng: np.random.Generator, *, must: Sequence[int] = (), without: Collection[int] = ()
    ) -> tuple[int, ...]:
        """The k models, or all that are left, that are to answer the next prompt, in random order.

        The best pair comes first, and then again and again the model whose pairs with the chosen ones gain most.

        Args:
            must: models that are among them.
            without: models that can't be asked.

        Raises:
            ValueError: fewer than two models are left.
        """
        left = np.array([i not in without for i in range(len(self.wins))])
        left[list(must)] = True
        if left.sum() < 2:
            raise ValueError("a comparison needs two models")
        chosen = list(must)
        by_chance = rng.random() < self.explore
        gains = np.zeros_like(self.wins) if by_chance else self.gains
        if not chosen:
            chosen += self._pair(gains, left, rng)
        while len(chosen) < min(k, int(left.sum())):
            free = left.copy()
            free[chosen] = False
            chosen.append(_best(np.where(free, gains[chosen].sum(axis=0), -1.0), rng))
        return tuple(int(i) for i in rng.permutation(chosen))

    @staticmethod
    def _pair(gains: Array, left: Mask, rng: np.random.Generator) -> list[int]:
        allowed = np.triu(left[:, None] & left[None, :], 1)
        return list(divmod(_best(np.where(allowed, gains, -1.0).ravel(), rng), len(gains)))

    def _fit(self) -> Array:
        """Covariance (M, M) at the fit of the comparisons, by Newton's method from the last one."""
        if self._covariance is not None:
            return self._covariance
        n = self.wins + self.wins.T
        x = self._coefs
        for _ in range(_STEPS):
            chance = sigmoid(x[:, None] - x[None, :])
            gradient = (n * chance - self.wins).sum(axis=1) + self.prior * x
            step = np.linalg.solve(self._precision(n, chance), gradient)
            x = x - np.clip(step, -2.0, 2.0)
            if np.abs(step).max() < _SETTLED:
                break
        self._coefs = x
        chance = sigmoid(x[:, None] - x[None, :])
        self._covariance = np.asarray(np.linalg.inv(self._precision(n + self.pending, chance)), np.float64)
        return self._covariance

    def _precision(self, n: Array, chance: Array) -> Array:
        weight = n * chance * (1 - chance)
        precision: Array = np.diag(weight.sum(axis=1) + self.prior) - weight
        return precision


def _best(values: Array, rng: np.random.Generator) -> int:
    """Index of the largest value; one of them, where several are as large."""
    top = np.flatnonzero(values >= values.max() - 1e-12)
    return int(rng.choice(top))
