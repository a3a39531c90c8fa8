"""The rows of several models in a head, fitted together to votes while the backbone stays as it is. No torch here.

With `h(z)` the state that the head reads, c its mean and `x(z) = Σ^½ (h(z) − c)`, model m has

    β_m(z) = level_m + (h(z) − c)·(w_m + κ w̄) + x(z)·(v + u_m)

w̄ is the mean of the rows that the head has, w_m the prior mean of the model's own row: its row in the head, or w̄ where
the head does not know it. What all models share on a prompt, that it is hard, is (κ, v); how they differ is u_m. The
priors are normal (empirical Bayes over the head's rows, `new_model.row_prior`): κ ~ N(0, 1), v ~ N(0, s_v I),
u_m ~ N(0, s I). `raw_eta` becomes a linear function of itself, so that ties are as frequent as in the votes. The
posterior mode is found by L-BFGS. Directions in which the prompts hardly differ are left out of v and u_m.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from onnx_export.new_model import Prior, row_prior
from p2l_plugins.errors import DataError
from p2l_plugins.outcomes import Array, Family, Mask, has_eta, log_probabilities, nll_gradients
from p2l_plugins.votes.votes import Index, Votes, flipped

#: Share of the prior's variance on the prompts that may be lost to directions left out.
LOST = 0.002
#: Share of the prior's variance in every direction. The votes are of other prompts and models than the head's, so that
#: more of it lies outside the span of the head's rows than in `new_model`.
ISOTROPIC = 0.5
#: L-BFGS stops when a step gains less than this share: of the final fit, and of cross-validation's.
FINE, COARSE = 1e-10, 1e-7
#: About the second derivative of a vote's loss in a coefficient: it only sets the scale of L-BFGS's variables.
CURVATURE = 0.15
#: Standard deviations of the prior of raw_eta's slope, and of its shift: of grk, and of rk, whose unit is smaller.
SLOPE_DEVIATION = 0.3
SHIFT_DEVIATION = {"grk": 1.0, "rk": 10.0}


@dataclass(frozen=True)
class JointTask:
    """Votes among M models, and what the head reads on their prompts.

    Attributes:
        family: outcome model.
        models: M.
        features: (P, H) states; raw_eta: (P,) of the bundle, or None.
        prompt, a, b, outcome: (V,), each combination once; weight: (V,).
    """

    family: Family
    models: int
    features: Array
    raw_eta: Array | None
    prompt: Index
    a: Index
    b: Index
    outcome: Index
    weight: Array

    @classmethod
    def of(cls, family: Family, votes: Votes, features: ArrayLike, raw_eta: ArrayLike | None) -> JointTask:
        """From votes and the bundle's states (P, H) and raw_eta (P,) on their prompts.

        Raises:
            DataError: a state or raw_eta that is not a number.
        """
        wide = np.asarray(features, np.float64)
        eta = None if raw_eta is None or not has_eta(family) else np.asarray(raw_eta, np.float64)
        if not np.isfinite(wide).all() or (eta is not None and not np.isfinite(eta).all()):
            raise DataError("the bundle gives values that are not numbers on prompts of these votes")
        turn = votes.a > votes.b
        a, b = np.where(turn, votes.b, votes.a), np.where(turn, votes.a, votes.b)
        outcome = np.where(turn, flipped(votes.outcome), votes.outcome)
        m = len(votes.models)
        key = ((votes.prompt * m + a) * m + b) * 4 + outcome
        kept, first, group = np.unique(key, return_index=True, return_inverse=True)
        weight = np.bincount(group, votes.weight, minlength=len(kept)).astype(np.float64)
        return cls(family, m, wide, eta, votes.prompt[first], a[first], b[first], outcome[first], weight)

    def select(self, keep: Mask) -> JointTask:
        """The prompts where `keep` (P,) is true."""
        vote = keep[self.prompt]
        return replace(
            self,
            features=self.features[keep],
            raw_eta=None if self.raw_eta is None else self.raw_eta[keep],
            prompt=(np.cumsum(keep) - 1)[self.prompt[vote]],
            **{name: getattr(self, name)[vote] for name in ("a", "b", "outcome", "weight")},
        )

    def losses(self, beta: Array, raw_eta: Array | None) -> tuple[Array, Array, Array, Array]:
        """−log P of each vote with its slopes in β_a, β_b and raw_eta, (V,) each; beta (P, M), raw_eta (P,)."""
        eta = None if raw_eta is None else raw_eta[self.prompt]
        return nll_gradients(self.family, beta[self.prompt, self.a], beta[self.prompt, self.b], self.outcome, eta)

    def log_probabilities(self, beta: Array, raw_eta: Array | None) -> Array:
        """(V, 4) log P of every outcome."""
        eta = None if raw_eta is None else raw_eta[self.prompt]
        return log_probabilities(self.family, beta[self.prompt, self.a], beta[self.prompt, self.b], eta)


@dataclass(frozen=True)
class Known:
    """What the head knows of the models of a task.

    Attributes:
        rows: (K, H) weight, bias: (K,) of the head's rows.
        index: (M,) row of each model; −1: the head does not know it.
    """

    rows: Array
    bias: Array
    index: NDArray[np.int64]

    @classmethod
    def of(cls, rows: NDArray[np.floating], bias: NDArray[np.floating], index: NDArray[np.int64]) -> Known:
        """From the head's arrays in any precision."""
        return cls(np.asarray(rows, np.float64), np.asarray(bias, np.float64), index)


@dataclass(frozen=True, order=True)
class Strength:
    """How far the votes may move the rows.

    Attributes:
        own: models that the head knows start from their own rows; else all start from the mean row.
        differ: s of how the models differ from prompt to prompt; 0: they differ by a level only.
        common: s_v of what all models share; 0: nothing, and with `differ` 0 too it is one leaderboard for all prompts.
    """

    own: bool
    differ: float
    common: float


@dataclass(frozen=True)
class JointRows:
    """Fitted rows: β_m(z) = weight_m·h(z) + bias_m, and raw_eta(z) = slope · the bundle's + shift.

    Attributes:
        weight: (M, H); bias: (M,).
    """

    weight: Array
    bias: Array
    slope: float = 1.0
    shift: float = 0.0

    def coefs(self, features: ArrayLike) -> Array:
        """(P, M) at states (P, H)."""
        return np.asarray(np.asarray(features, np.float64) @ self.weight.T + self.bias)

    def raw_eta(self, raw_eta: ArrayLike | None) -> Array | None:
        """(P,) from the bundle's, or None."""
        return None if raw_eta is None else np.asarray(self.slope * np.asarray(raw_eta, np.float64) + self.shift)


class JointProblem:
    """The posterior mode of the rows, at any strength of the prior.

    Args:
        task: the votes.
        known: what the head knows of the models.
        frozen: (M,) models whose rows stay those of the head; None: none.
        ties: whether raw_eta is fitted too.
        prior: of the rows; None: that of `known`.
        moments: (H, H) Σ x xᵀ of further prompts whose directions are kept; None: none.

    theta is ((M, R) u, (R,) v, κ, (M,) standardised levels, standardised slope and shift of raw_eta).
    """

    def __init__(
        self,
        task: JointTask,
        known: Known,
        frozen: Mask | None = None,
        ties: bool = True,
        prior: Prior | None = None,
        moments: Array | None = None,
    ) -> None:
        self.task = task
        self.free: Array = np.ones(task.models) if frozen is None else np.where(frozen, 0.0, 1.0)
        self.ties = ties and task.raw_eta is not None
        self.prior = prior or row_prior(known.rows, known.bias, task.features.mean(axis=0), ISOTROPIC)
        centre = self.prior.centre
        moved = task.features - centre
        white = self.prior.whitened(task.features)
        values, vectors = np.linalg.eigh(white.T @ white + (0.0 if moments is None else moments))
        keep = np.cumsum(values) > LOST * max(values.sum(), 1e-300)
        self.turn: Array = vectors[:, keep][:, ::-1]
        self.x = np.ascontiguousarray(white @ self.turn)
        self.common = moved @ self.prior.mean
        mine = known.index >= 0
        self.means = np.where(mine[:, None], known.rows[known.index], self.prior.mean)
        self.own = moved @ self.means.T
        own_level = known.rows[known.index] @ centre + known.bias[known.index]
        self.level = np.where(mine, own_level, self.prior.level)
        self.eta = 0.0 if task.raw_eta is None else float(task.raw_eta.mean())
        self.scale = 1.0 / float(task.weight.sum())
        self.curvature = CURVATURE * 2 * float(task.weight.sum()) / (len(self.x) * task.models)

    @property
    def size(self) -> int:
        """Numbers in theta."""
        m, r = self.task.models, self.x.shape[1]
        return int(m * r + r + 1 + m + 2)

    def parts(self, theta: Array) -> tuple[Array, Array, float, Array, Array]:
        """u, v, κ, standardised levels, and those of raw_eta, as views of theta."""
        m, r = self.task.models, self.x.shape[1]
        u, rest = theta[: m * r].reshape(m, r), theta[m * r :]
        return u, rest[:r], float(rest[r]), rest[r + 1 : r + 1 + m], rest[-2:]

    def _eta_line(self, theta: Array) -> tuple[float, float]:
        """Slope and shift of raw_eta."""
        if not self.ties:
            return 1.0, 0.0
        slope = 1.0 + SLOPE_DEVIATION * float(theta[-2])
        return slope, self.eta * (1.0 - slope) + SHIFT_DEVIATION[self.task.family] * float(theta[-1])

    def _units(self, strength: Strength) -> Array:
        """About the posterior standard deviation of each number in theta: in these units L-BFGS needs few steps."""
        m = self.task.models
        per_model = self.curvature * np.append((self.x**2).sum(axis=0), float(self.common @ self.common))
        level = self.curvature * len(self.x) * self.prior.level_deviation**2
        eta = CURVATURE / self.scale
        precision: list[Array] = [
            np.tile(strength.differ * per_model[:-1], m),
            m * strength.common * per_model[:-1],
            m * per_model[-1:],
            np.full(m, level),
            np.array([eta * SLOPE_DEVIATION**2, eta]),
        ]
        return np.asarray(1.0 / np.sqrt(1.0 + np.concatenate(precision)))

    def _moved(self, before: Strength, theta: Array, strength: Strength) -> Array:
        """theta with the same rows at another strength."""
        start = theta.copy()
        u, v, _, _, _ = self.parts(start)
        u *= np.sqrt(before.differ / strength.differ) if strength.differ else 0.0
        v *= np.sqrt(before.common / strength.common) if strength.common else 0.0
        return start

    def value(self, theta: Array, strength: Strength) -> tuple[float, Array]:
        """Objective per vote and its gradient."""
        task, deviation = self.task, self.prior.level_deviation
        u, v, kappa, offset, _ = self.parts(theta)
        scale_u, scale_v = np.sqrt(strength.differ), np.sqrt(strength.common)
        hard = 1.0 if strength.common else 0.0
        own = self.own if strength.own else np.where(self.free > 0, hard * self.common[:, None], self.own)
        shared = hard * kappa * self.common + scale_v * (self.x @ v)
        moved = deviation * offset + shared[:, None]
        if strength.differ:
            moved += scale_u * (self.x @ u.T)
        beta = own + self.level + self.free * moved
        slope, shift = self._eta_line(theta)
        loss, in_a, in_b, in_eta = task.losses(beta, None if task.raw_eta is None else slope * task.raw_eta + shift)
        n, m = beta.shape
        cells = np.concatenate([task.prompt * m + task.a, task.prompt * m + task.b])
        slopes = np.concatenate([task.weight * in_a, task.weight * in_b])
        by_cell = np.bincount(cells, slopes, minlength=n * m).reshape(n, m) * self.free
        by_prompt = by_cell.sum(axis=1)
        gradient = theta.copy()
        g_u, g_v, _, g_offset, g_eta = self.parts(gradient)
        if strength.differ:
            g_u += scale_u * (by_cell.T @ self.x)
        g_v += scale_v * (by_prompt @ self.x)
        gradient[g_u.size + g_v.size] += hard * float(by_prompt @ self.common)
        g_offset += deviation * by_cell.sum(axis=0)
        if self.ties and task.raw_eta is not None:
            weighted = task.weight * in_eta
            g_eta += (
                SLOPE_DEVIATION * float(weighted @ (task.raw_eta[task.prompt] - self.eta)),
                SHIFT_DEVIATION[task.family] * float(weighted.sum()),
            )
        return self.scale * float(task.weight @ loss + 0.5 * theta @ theta), self.scale * gradient

    def solve(
        self, strength: Strength, before: tuple[Strength, Array] | None = None, tolerance: float = FINE
    ) -> tuple[JointRows, Array]:
        """The fitted rows and theta; `before` is a strength with its theta, to start from."""
        from scipy.optimize import minimize

        unit = self._units(strength)

        def scaled(phi: Array) -> tuple[float, Array]:
            loss, gradient = self.value(unit * phi, strength)
            return loss, unit * gradient

        first = np.zeros(self.size) if before is None else self._moved(*before, strength) / unit
        options = {"maxiter": 1000, "maxfun": 2000, "ftol": tolerance, "gtol": 1e-8, "maxcor": 20}
        theta = unit * minimize(scaled, first, jac=True, method="L-BFGS-B", options=options).x
        u, v, kappa, offset, _ = self.parts(theta)
        moves = np.sqrt(strength.common) * v + (np.sqrt(strength.differ) * u if strength.differ else 0.0 * u)
        free = self.free[:, None]
        hard = 1.0 if strength.common else 0.0
        means = self.means if strength.own else np.where(free > 0, hard * self.prior.mean, self.means)
        moved = np.stack([self.prior.weight(self.turn @ move) for move in moves])
        weight = means + free * (hard * kappa * self.prior.mean + moved)
        level = self.level + self.free * self.prior.level_deviation * offset
        return JointRows(weight, level - weight @ self.prior.centre, *self._eta_line(theta)), theta
