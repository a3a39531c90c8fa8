"""Mean outcome probabilities of every pair of models over prompts, read once: O(M²) numbers, whatever the prompts.

For intervals the prompts are also summed in blocks: a jackknife that leaves out blocks instead of prompts needs no
prompt again. A prompt's block does not depend on its place in the file, so that a sorted file gives the same intervals.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import ArrayLike

from p2l_plugins.errors import P2LError
from p2l_plugins.outcomes import Array, Family, Floats, Ids, grk_log_theta, has_eta, rk_eta

#: Blocks of a leaderboard: their number costs memory (M² float32 each, twice for ties) and bounds what a standard error
#: is worth: with 128 it is known to 6 %.
BLOCKS = 128

_CHUNK = 256  # prompts per step of the accumulation: the rows of one step stay in the processor's cache
_FEW = 4  # models per prompt of a step from which on pairs are not taken one row at a time
_LIMIT = 300.0  # exp(±300) and products of two are finite in float64


class Blocks:
    """Deals prompts to blocks. Up to `count` units each is a block of its own; later ones join a random one.

    A unit is a prompt or, where prompts have a group (a conversation, a user, a document), all prompts of the group.

    Attributes:
        count: blocks at most.
    """

    def __init__(self, count: int = BLOCKS, seed: int = 0) -> None:
        self.count = count
        self._seed = seed
        self._random = np.random.default_rng(seed)
        self._units = 0
        self._known: dict[str, int] = {}

    def deal(self, n: int, groups: Sequence[object] | None = None) -> Ids:
        """Blocks (N,) of the next N prompts; a prompt whose group is None is a unit of its own."""
        if groups is None:
            own = np.arange(self._units, self._units + n)
            self._units += n
            return np.where(own < self.count, own, self._random.integers(0, self.count, n))
        return np.array([self._group(group) for group in groups], np.int64)

    def _group(self, group: object) -> int:
        if group is None:
            return int(self.deal(1)[0])
        name = str(group)
        if name not in self._known:
            if self._units >= self.count:  # a hash, so that not every group has to be remembered
                digest = hashlib.blake2b(name.encode(errors="replace"), digest_size=8, salt=str(self._seed).encode())
                return int.from_bytes(digest.digest(), "little") % self.count
            self._known[name] = self._units
            self._units += 1
        return self._known[name]


class PairMeans:
    """Running means of the outcome probabilities of every pair of models, over prompts.

    Attributes:
        family: outcome model.
        n: prompts so far.
        counts: (B,) prompts in each block; empty without blocks.
    """

    def __init__(self, family: Family, n_models: int, blocks: int = 0) -> None:
        self.family = family
        self.n = 0
        self.counts = np.zeros(blocks, np.int64)
        self._win = np.zeros((n_models, n_models))
        self._bad = np.zeros((n_models, n_models))  # upper triangle
        # float32 is enough for what only intervals are made of; np.zeros costs no memory before it is written to
        self._block_win = np.zeros((blocks, n_models, n_models), np.float32)
        self._block_bad = np.zeros((blocks, n_models, n_models) if family == "grk" else (blocks, 0, 0), np.float32)
        self._coef_sum = np.zeros(n_models)
        self._raw_eta_sum = 0.0

    @classmethod
    def of(cls, family: Family, n: int, win: Array, bad: Array) -> PairMeans:
        """The means of n prompts whose coefficients are not known: win (M, M), bad (M, M) symmetric."""
        means = cls(family, len(win))
        means.n, means._win, means._bad = n, n * win, n * np.triu(bad)
        means._raw_eta_sum = 20.0 * n if family == "rk" else 0.0
        return means

    @classmethod
    def merged(cls, parts: Iterable[PairMeans]) -> PairMeans:
        """The means of the prompts of all parts, which share their blocks."""
        parts = list(parts)
        whole = cls(parts[0].family, len(parts[0]._win), len(parts[0].counts))
        for part in parts:
            whole.n += part.n
            whole._raw_eta_sum += part._raw_eta_sum
            for name in ("counts", "_win", "_bad", "_coef_sum"):
                getattr(whole, name).__iadd__(getattr(part, name))
            used = np.flatnonzero(part.counts)  # the others take no memory yet
            for name in ("_block_win", "_block_bad"):
                getattr(whole, name)[used] += getattr(part, name)[used]
        return whole

    def add(self, coefs: ArrayLike, raw_eta: ArrayLike | None = None, block: Ids | None = None) -> None:
        """Adds N prompts.

        Args:
            coefs: (N, M).
            raw_eta: (N,), for families that have it.
            block: (N,) from `Blocks.deal`, where there are blocks.

        Raises:
            P2LError: coefficients of another shape or that are not finite, or no raw_eta.
        """
        beta = np.asarray(coefs, np.float64)
        if beta.ndim != 2 or beta.shape[1] != len(self._win):
            raise P2LError(f"coefficients of shape {beta.shape} do not fit {len(self._win)} models")
        raw = np.zeros(len(beta))
        if has_eta(self.family):
            if raw_eta is None:
                raise P2LError(f"a leaderboard of the family {self.family!r} needs raw_eta")
            raw = np.asarray(raw_eta, np.float64)
        if not (np.isfinite(beta).all() and np.isfinite(raw).all()):
            raise P2LError("the coefficients hold values that are not numbers")
        beta = np.clip(beta, -_LIMIT, _LIMIT)
        if len(self.counts):
            if block is None or len(block) != len(beta):
                raise P2LError("means that keep blocks need the block of every prompt")
            order = np.argsort(block, kind="stable")
            beta, raw, block = beta[order], raw[order], block[order]
            self.counts += np.bincount(block, minlength=len(self.counts))
        else:
            block = None
        for start in range(0, len(beta), _CHUNK):
            rows = slice(start, start + _CHUNK)
            own = None if block is None else block[rows]
            if len(beta[rows]) * _FEW < len(self._win):
                self._add_few(beta[rows], raw[rows], own)
            else:
                self._add_chunk(np.ascontiguousarray(beta[rows].T), raw[rows], own)
        self._coef_sum += beta.sum(axis=0)
        self._raw_eta_sum += float(raw.sum())
        self.n += len(beta)

    def _add_few(self, beta: Array, raw: Array, block: Ids | None) -> None:
        """beta (n, M): prompt by prompt, all pairs at once; for few prompts and many models."""
        grk = self.family == "grk"
        phi = np.exp(beta) if grk else np.maximum(np.exp(beta - beta.max(axis=1, keepdims=True)), 1e-300)
        rest = phi + 1.0 if grk else phi
        other = np.ones(len(beta))
        if has_eta(self.family):
            other = np.exp(np.minimum(grk_log_theta(raw)[0], _LIMIT) if grk else rk_eta(raw))
        for i, (x, own, y) in enumerate(zip(phi, rest, phi * other[:, None], strict=True)):
            win = x[:, None] / (own[:, None] + y)
            np.fill_diagonal(win, 0.0)
            self._win += win
            bad = np.triu(1.0 / (own[:, None] + x), 1) if grk else None
            if bad is not None:
                self._bad += bad
            if block is not None:
                self._block_win[block[i]] += win
                if bad is not None:
                    self._block_bad[block[i]] += bad

    def _add_chunk(self, beta: Array, raw: Array, block: Ids | None) -> None:
        """beta (M, n): unordered pairs only; one division each for bt, two for rk, three for grk."""
        ids, starts = (None, np.array([0])) if block is None else np.unique(block, return_index=True)

        def put(total: Array, blocks: Floats, at: tuple[int | slice, int | slice], values: Array) -> None:
            sums = np.add.reduceat(values, starts, axis=1)
            total[at] += sums.sum(axis=1)
            if ids is not None:
                blocks[(ids, *at)] += sums.T

        if self.family != "grk":
            # φ relative to the prompt's largest, so that nothing overflows; σ(Δ − η) = φ_a / (φ_a + e^η φ_b)
            phi = np.maximum(np.exp(beta - beta.max(axis=0)), 1e-300)
            e_eta = np.exp(rk_eta(raw))
            for a in range(len(beta) - 1):
                x, y, after = phi[a], phi[a + 1 :], slice(a + 1, None)
                if self.family == "rk":
                    up, down = x / (x + e_eta * y), y / (y + e_eta * x)
                else:
                    down = x + y
                    np.reciprocal(down, out=down)
                    up = x * down
                    down *= y
                put(self._win, self._block_win, (a, after), up)
                put(self._win, self._block_win, (after, a), down)
            return
        phi = np.exp(beta)
        theta = np.exp(np.minimum(grk_log_theta(raw)[0], _LIMIT))
        one_phi, one_theta_phi = 1.0 + phi, 1.0 + theta * phi
        for a in range(len(beta) - 1):
            x, y, after = phi[a], phi[a + 1 :], slice(a + 1, None)
            put(self._win, self._block_win, (a, after), x / (x + one_theta_phi[a + 1 :]))
            put(self._win, self._block_win, (after, a), y / (y + one_theta_phi[a]))
            put(self._bad, self._block_bad, (a, after), 1.0 / (x + one_phi[a + 1 :]))

    @property
    def win(self) -> Array:
        """(M, M) mean P(a beats b), diagonal 0."""
        return self._win / max(self.n, 1)

    @property
    def bad(self) -> Array:
        """(M, M) mean P(both bad), symmetric, diagonal 0; zeros for families without it."""
        return (self._bad + self._bad.T) / max(self.n, 1)

    @property
    def tie(self) -> Array:
        """(M, M) mean P(tie), symmetric: the rest of each pair; zeros for families without ties."""
        return self._tie(self.win, self.bad)

    def start(self) -> tuple[Array, float]:
        """A starting point of the fit: means of coefficients and raw_eta."""
        return self._coef_sum / max(self.n, 1), self._raw_eta_sum / max(self.n, 1)

    def without(self, blocks: Ids) -> tuple[Array, Array, Array]:
        """(win, tie, bad), each (R, M, M): the means when one of R blocks is left out; some other one holds prompts."""
        prompts = (self.n - self.counts[blocks])[:, None, None]
        win = (self._win - self._block_win[blocks]) / prompts
        if self.family != "grk":
            nothing = np.zeros_like(win)
            return win, self._tie(win, nothing), nothing
        bad = (self._bad - self._block_bad[blocks]) / prompts
        bad += np.swapaxes(bad, 1, 2)
        return win, self._tie(win, bad), bad

    def _tie(self, win: Array, bad: Array) -> Array:
        if not has_eta(self.family):
            return np.zeros_like(win)
        off = 1.0 - np.eye(win.shape[-1])
        tie: Array = np.clip(1.0 - win - np.swapaxes(win, -1, -2) - bad, 0.0, 1.0) * off
        return tie
