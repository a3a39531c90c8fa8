"""The row of one new model in a trained head, fitted to its votes while everything else stays as it is. No torch here.

With the state `h(z)` that the head reads, the new model has `β(z) = w·h(z) + b`, and its opponents' coefficients and
`raw_eta` are numbers. The weighted negative log-likelihood of the votes is then convex in (w, b) for `bt`, `bt-tie` and
`rk`; for `grk` every outcome but a tie is convex, and a tie is wherever θ ≤ 43.98 (raw_eta ≤ 3.76; trained bundles have
about 1). Above that its curvature can fall below 0 (never below −¼) where a tie of two poor answers was seen.

The prior is empirical Bayes over the M rows that are there: `w ~ N(w̄, s·Σ)`, with w̄ their mean and Σ their covariance
plus an isotropic part, so that few votes borrow how models usually differ from prompt to prompt. The strength s is
chosen by cross-validation by prompt; at s = 0 the new model is the mean row with a level of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from p2l_plugins.errors import DataError
from p2l_plugins.outcomes import Array, Family, nll_gradients
from p2l_plugins.votes.votes import Votes

#: s of the prior, strongest shrinkage first: 0 leaves a level alone.
STRENGTHS = (0.0, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
#: Share of the prior's variance that is isotropic: rows are few, and the new one may lie outside their span.
ISOTROPIC = 0.1
FOLDS = 5
#: L-BFGS stops when a step gains less than this share: of the final fit, and of cross-validation's.
FINE, COARSE = 1e-10, 1e-6


@dataclass(frozen=True)
class Task:
    """The votes of a new model and all that is frozen.

    Attributes:
        family: outcome model.
        features: (P, H) the state that the head reads, on each prompt.
        raw_eta: (P,) or None.
        prompt: (V,) index into the P prompts.
        opponent: (V,) coefficient of the other side.
        outcome: (V,) index into `outcomes.OUTCOMES`, the new model being side a.
        weight: (V,).
    """

    family: Family
    features: Array
    raw_eta: Array | None
    prompt: NDArray[np.int64]
    opponent: Array
    outcome: NDArray[np.int64]
    weight: Array

    @classmethod
    def of(cls, family: Family, votes: Votes, features: ArrayLike, coefs: ArrayLike, raw_eta: ArrayLike | None) -> Task:
        """From votes as `votes_of` gives them and the bundle's outputs on their prompts, (P, H), (P, M), (P,)."""
        wide = np.asarray(features, np.float64)
        opponent = np.asarray(coefs, np.float64)[votes.prompt, votes.b]
        eta = None if raw_eta is None else np.asarray(raw_eta, np.float64)
        if not (np.isfinite(wide).all() and np.isfinite(opponent).all() and (eta is None or np.isfinite(eta).all())):
            raise DataError("the bundle gives values that are not numbers on prompts of these votes")
        return cls(family, wide, eta, votes.prompt, opponent, votes.outcome, votes.weight)

    def select(self, keep: NDArray[np.bool_]) -> Task:
        """The prompts where `keep` (P,) is true."""
        vote = keep[self.prompt]
        return replace(
            self,
            features=self.features[keep],
            raw_eta=None if self.raw_eta is None else self.raw_eta[keep],
            prompt=(np.cumsum(keep) - 1)[self.prompt[vote]],
            opponent=self.opponent[vote],
            outcome=self.outcome[vote],
            weight=self.weight[vote],
        )

    def losses(self, beta: Array) -> tuple[Array, Array]:
        """−log P(outcome) of each vote and its slope in the new model's coefficient, (V,) each; `beta` is (P,)."""
        eta = None if self.raw_eta is None else self.raw_eta[self.prompt]
        loss, slope, _, _ = nll_gradients(self.family, beta[self.prompt], self.opponent, self.outcome, eta)
        return loss, slope

    def prompt_losses(self, beta: Array) -> Array:
        """Weighted sum of the votes' losses per prompt, (P,)."""
        loss = self.weight * self.losses(beta)[0]
        return np.bincount(self.prompt, loss, minlength=len(self.features)).astype(np.float64)


@dataclass(frozen=True)
class Prior:
    """What is believed of a new row before its votes.

    Attributes:
        centre: (H,) mean state; levels are those at this state.
        mean: (H,) mean of the rows.
        axes: (R, H) orthonormal directions in which the rows differ; spread: (R,) their variances there.
        isotropic: variance in every direction.
        level, level_deviation: of the level, w·centre + b.
    """

    centre: Array
    mean: Array
    axes: Array
    spread: Array
    isotropic: float
    level: float
    level_deviation: float

    def whitened(self, features: Array) -> Array:
        """(features − centre) Σ^½, (P, H): in these coordinates the prior is a standard normal times √s."""
        x = features - self.centre
        root = np.sqrt(self.isotropic)
        more = (x @ self.axes.T) * (np.sqrt(self.spread + self.isotropic) - root)
        return np.asarray(root * x + more @ self.axes)

    def weight(self, u: Array) -> Array:
        """Σ^½ u, (H,)."""
        root = np.sqrt(self.isotropic)
        moved = (np.sqrt(self.spread + self.isotropic) - root) * (self.axes @ u)
        return np.asarray(root * u + moved @ self.axes)


def row_prior(
    rows: NDArray[np.floating], bias: NDArray[np.floating], centre: Array, isotropic: float = ISOTROPIC
) -> Prior:
    """Empirical Bayes over a head's rows (M, H) and bias (M,), for prompts with the mean state `centre` (H,).

    Args:
        isotropic: share of the rows' variance that is spread over all directions.
    """
    w, b = np.asarray(rows, np.float64), np.asarray(bias, np.float64)
    mean = w.mean(axis=0)
    _, singular, axes = np.linalg.svd(w - mean, full_matrices=False)
    spread = singular**2 / max(len(w) - 1, 1)
    total = spread.sum() or (w**2).sum() / len(w) or 1.0  # a single row, or equal ones: their size is the best guess
    level = w @ centre + b
    deviation = max(2.0 * float(level.std()), 1.0)
    return Prior(
        centre,
        mean,
        axes,
        (1 - isotropic) * spread,
        isotropic * total / w.shape[1],
        float(level.mean()),
        deviation,
    )


@dataclass(frozen=True)
class Row:
    """A fitted row: β(z) = weight·h(z) + bias."""

    weight: Array
    bias: float

    def coefs(self, features: ArrayLike) -> Array:
        """(P,) coefficients at states (P, H)."""
        return np.asarray(np.asarray(features, np.float64) @ self.weight + self.bias)


class RowProblem:
    """The posterior mode of the new row for a task and a prior, at any strength s of the prior.

    Minimises Σ weight·NLL + |u|²/2s + (level − prior level)²/2·deviation², where `w = w̄ + Σ^½ u`, over (u, level).
    """

    def __init__(self, task: Task, prior: Prior) -> None:
        self.task, self.prior = task, prior
        self.x = prior.whitened(task.features)
        self.base = (task.features - prior.centre) @ prior.mean
        self.scale = 1.0 / float(task.weight.sum())

    def value(self, theta: Array, strength: float) -> tuple[float, Array]:
        """Objective per vote and its gradient, at theta = (u, standardised level), (H + 1,)."""
        u, offset = theta[:-1], theta[-1]
        level = self.prior.level + self.prior.level_deviation * offset
        loss, slope = self.task.losses(self.base + level + (self.x @ u if strength else 0.0))
        by_prompt = np.bincount(self.task.prompt, self.task.weight * slope, minlength=len(self.x))
        gradient = np.zeros_like(theta)
        if strength:
            gradient[:-1] = by_prompt @ self.x + u / strength
        gradient[-1] = self.prior.level_deviation * by_prompt.sum() + offset
        penalty = (u @ u / (2 * strength) if strength else 0.0) + offset**2 / 2
        return self.scale * float(self.task.weight @ loss + penalty), self.scale * gradient

    def solve(self, strength: float, start: Array | None = None, tolerance: float = FINE) -> tuple[Row, Array]:
        """The fitted row and theta, which is a good start for the next strength. Strength 0 fits the level alone."""
        from scipy.optimize import minimize

        theta = np.zeros(self.x.shape[1] + 1) if start is None else start
        options = {"maxiter": 500, "ftol": tolerance, "gtol": 1e-7}
        theta = minimize(self.value, theta, args=(strength,), jac=True, method="L-BFGS-B", options=options).x
        weight = self.prior.mean + self.prior.weight(theta[:-1])
        level = self.prior.level + self.prior.level_deviation * theta[-1]
        return Row(weight, float(level - weight @ self.prior.centre)), theta


def choose_strength(
    task: Task, rows: NDArray[np.floating], bias: NDArray[np.floating], seed: int = 0
) -> tuple[float, dict[float, float]]:
    """The strength of the prior, and the cross-validated loss per vote of those tried, in five folds by prompt.

    Of the strengths whose loss is within one standard error (paired by prompt) of the lowest, the one nearest to 1, the
    prior as the rows give it, is taken: few prompts can't tell them apart. They are tried from the strongest shrinkage
    on, until two in a row are worse than the best. With fewer than four prompts nothing is tried: strength 0.
    """
    n = len(task.features)
    if n < 4:
        return 0.0, {}
    fold = np.random.default_rng(seed).permutation(n) % min(FOLDS, n // 2)
    parts = [(task.select(fold != k), task.select(fold == k)) for k in range(int(fold.max()) + 1)]
    problems = [RowProblem(rest, row_prior(rows, bias, rest.features.mean(axis=0))) for rest, _ in parts]
    starts: list[Array | None] = [None] * len(parts)
    tried: dict[float, Array] = {}
    for strength in STRENGTHS:
        tried[strength] = np.empty(n)
        for k, (_, left_out) in enumerate(parts):
            row, starts[k] = problems[k].solve(strength, starts[k], COARSE)
            tried[strength][fold == k] = left_out.prompt_losses(row.coefs(left_out.features))
        path = [loss.sum() for loss in tried.values()]
        if len(path) > 2 and min(path[-2:]) > min(path[:-2]):
            break
    lowest = min(tried.values(), key=lambda loss: float(loss.sum()))
    excess = {strength: loss - lowest for strength, loss in tried.items()}
    close = [s for s, more in excess.items() if more.sum() <= np.sqrt(n) * more.std(ddof=1)]
    chosen = min(close, key=lambda s: abs(np.log(s)) if s else np.inf)
    return chosen, {strength: float(loss.sum() / task.weight.sum()) for strength, loss in tried.items()}


def fit_new_model(
    task: Task, rows: NDArray[np.floating], bias: NDArray[np.floating], strength: float
) -> tuple[Row, Row, Row]:
    """(fitted row, mean row with a level of its own, mean row as it is), for the head's rows (M, H) and bias (M,)."""
    prior = row_prior(rows, bias, task.features.mean(axis=0))
    problem = RowProblem(task, prior)
    level_only, theta = problem.solve(0.0)
    fitted = problem.solve(strength, theta)[0] if strength else level_only
    return fitted, level_only, Row(prior.mean, float(np.mean(bias, dtype=np.float64)))
