"""The leaderboard of a set of prompts: the one coefficient vector closest to all of the prompts' own.

It minimises the cross-entropy to the predicted outcome probabilities, averaged over prompts and over all pairs of
models (arXiv 2502.14855, aggregated leaderboards); it is not the mean of the coefficients. The loss is linear in its
targets, so fitting to the mean probabilities of each pair is exact: the prompts are read once, O(M²) numbers are kept,
and one small problem is solved by Newton's method.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from p2l_plugins.errors import P2LError
from p2l_plugins.outcomes import (
    Array,
    Family,
    grk_log_theta,
    has_eta,
    rk_eta,
    rk_eta_slope,
    sigmoid,
    usable_probability,
)

_CHUNK = 256  # prompts per step of the accumulation: the rows of one step stay in the processor's cache
_LIMIT = 300.0  # exp(±300) and products of two are finite in float64


class PairMeans:
    """Running means of the outcome probabilities of every pair of models, over prompts.

    Attributes:
        n: prompts so far.
    """

    def __init__(self, family: Family, n_models: int) -> None:
        self.family = family
        self.n = 0
        self._win = np.zeros((n_models, n_models))
        self._bad = np.zeros((n_models, n_models))
        self._coef_sum = np.zeros(n_models)
        self._raw_eta_sum = 0.0

    def add(self, coefs: ArrayLike, raw_eta: ArrayLike | None = None) -> None:
        """Adds N prompts: coefs (N, M), raw_eta (N,) for families that have it."""
        beta = np.clip(np.asarray(coefs, np.float64), -_LIMIT, _LIMIT)
        if beta.ndim != 2 or beta.shape[1] != len(self._win):
            raise P2LError(f"coefficients of shape {beta.shape} do not fit {len(self._win)} models")
        if not np.isfinite(beta).all():
            raise P2LError("the coefficients hold values that are not numbers")
        if has_eta(self.family):
            if raw_eta is None:
                raise P2LError(f"a leaderboard of the family {self.family!r} needs raw_eta")
            raw = np.asarray(raw_eta, np.float64)
            self._raw_eta_sum += float(raw.sum())
        else:
            raw = np.zeros(len(beta))
        for start in range(0, len(beta), _CHUNK):
            self._add_chunk(np.ascontiguousarray(beta[start : start + _CHUNK].T), raw[start : start + _CHUNK])
        self._coef_sum += beta.sum(axis=0)
        self.n += len(beta)

    def _add_chunk(self, beta: Array, raw: Array) -> None:
        """beta (M, n): unordered pairs only; one division each for bt and rk's two sides, three for grk."""
        ones = np.ones(beta.shape[1])
        if self.family != "grk":
            # φ relative to the prompt's largest, so that nothing overflows; σ(Δ − η) = φ_a / (φ_a + e^η φ_b)
            phi = np.exp(beta - beta.max(axis=0))
            e_eta = np.exp(rk_eta(raw)) if self.family == "rk" else ones
            for a in range(len(beta) - 1):
                x, y = phi[a], phi[a + 1 :]
                self._win[a, a + 1 :] += np.divide(x, x + e_eta * y + 1e-300) @ ones
                self._win[a + 1 :, a] += np.divide(y, y + e_eta * x + 1e-300) @ ones
            return
        phi = np.exp(beta)
        theta = np.exp(np.minimum(grk_log_theta(raw)[0], _LIMIT))
        one_phi, one_theta_phi = 1.0 + phi, 1.0 + theta * phi
        for a in range(len(beta) - 1):
            x, y = phi[a], phi[a + 1 :]
            self._win[a, a + 1 :] += (x / (x + one_theta_phi[a + 1 :])) @ ones
            self._win[a + 1 :, a] += (y / (y + one_theta_phi[a])) @ ones
            self._bad[a, a + 1 :] += (1.0 / (x + one_phi[a + 1 :])) @ ones

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
        if not has_eta(self.family):
            return np.zeros_like(self._win)
        win = self.win
        return np.clip(1.0 - win - win.T - self.bad, 0.0, 1.0) * (1.0 - np.eye(len(win)))

    def start(self) -> tuple[Array, float]:
        """A starting point of the fit: means of coefficients and raw_eta."""
        return self._coef_sum / max(self.n, 1), self._raw_eta_sum / max(self.n, 1)


def fit(
    family: Family,
    win: Array,
    tie: Array,
    bad: Array,
    start: tuple[Array, float],
    ridge: float = 0.0,
    iterations: int = 100,
) -> tuple[Array, float | None]:
    """The maximum-likelihood coefficients (M,) and raw_eta of weighted outcomes of every pair.

    The weights are mean probabilities (a leaderboard) or counts of votes (the marginal leaderboard of a data set).
    Damped Newton with a line search. `bt`, `bt-tie` and `rk` identify differences only and are centred at mean 0;
    `grk` is grounded and never centred.

    Args:
        win: (M, M) weight of "a beats b"; tie, bad: (M, M) symmetric weights of the two ties; diagonals are ignored.
            `rk` does not tell the ties apart and adds them; `bt` and `bt-tie` count them half for each side.
        start: coefficients and raw_eta to start from.
        ridge: weight of ½ ridge Σβ², for models with one-sided or no votes.
    """
    m = len(win)
    beta, raw = start[0].copy(), start[1]
    if m == 1:
        return (beta if family == "grk" else np.zeros(1)), (raw if has_eta(family) else None)
    off = 1.0 - np.eye(m)
    win, tie, bad = win * off, tie * off, bad * off
    if family != "grk":
        beta, tie = beta - beta.mean(), tie + bad
    if not has_eta(family):
        win = win + 0.5 * tie
    terms = {"rk": _rk_terms, "grk": _grk_terms}.get(family, _bt_terms)
    x = np.append(beta, raw) if has_eta(family) else beta
    penalty = np.append(np.full(m, ridge), np.zeros(x.size - m))
    shift = np.diag(penalty)
    if family != "grk":  # the direction that moves all coefficients alike is not identified
        shift[:m, :m] += 1.0 / m
    scale = float(win.sum() + 0.5 * (tie + bad).sum())

    def step_of(x: Array) -> tuple[float, Array, Array]:
        loss, gradient, hessian = terms(x, win, tie, bad)
        return loss + 0.5 * float(penalty @ (x * x)), gradient + penalty * x, hessian

    loss, gradient, hessian = step_of(x)
    for _ in range(iterations):
        direction = _newton_direction(gradient, hessian + shift)
        size, slope = 1.0, float(gradient @ direction)
        while size > 1e-8:
            trial = x + size * direction
            new = step_of(trial)
            if new[0] <= loss + 1e-4 * size * slope + 1e-14 * scale:
                break
            size *= 0.5
        else:
            break
        x, (loss, gradient, hessian) = trial, new
        if np.abs(size * direction).max() < 1e-9:
            break
    beta = x[:m] - x[:m].mean() if family != "grk" else x[:m]
    return beta, (float(x[m]) if has_eta(family) else None)


def _newton_direction(gradient: Array, hessian: Array) -> Array:
    damping = 0.0
    for _ in range(60):
        try:
            factor = np.linalg.cholesky(hessian + damping * np.eye(len(hessian)))
        except np.linalg.LinAlgError:
            damping = max(10 * damping, 1e-12 * float(np.abs(np.diag(hessian)).max()), 1e-300)
            continue
        step: Array = -np.linalg.solve(factor.T, np.linalg.solve(factor, gradient))
        largest = float(np.abs(step).max())
        return step if largest <= 10.0 else step * (10.0 / largest)
    return -gradient


def _bt_terms(x: Array, win: Array, tie: Array, bad: Array) -> tuple[float, Array, Array]:
    """Loss, gradient and Hessian of −Σ_{a≠b} win_ab log σ(β_a − β_b)."""
    delta = x[:, None] - x[None, :]
    loss = float((win * np.logaddexp(0.0, -delta)).sum())
    p = sigmoid(delta)
    residual = (win + win.T) * p - win
    weight = (win + win.T) * p * (1 - p)
    return loss, residual.sum(axis=1), np.diag(weight.sum(axis=1)) - weight


def _rk_terms(x: Array, win: Array, tie: Array, bad: Array) -> tuple[float, Array, Array]:
    """As `_bt_terms` for Rao-Kupper; the last variable is raw_eta."""
    m = len(win)
    beta, raw = x[:m], x[m]
    eta, slope = float(rk_eta(raw)), float(rk_eta_slope(raw))
    delta = beta[:, None] - beta[None, :]
    log_p = -np.logaddexp(0.0, eta - delta)  # log P(a beats b)
    up = sigmoid(eta - delta)  # 1 − P(a beats b)
    count = win + tie  # how much each log σ(Δ_ab − η) weighs: its wins, and the ties of the pair
    ties = float(tie.sum()) / 2
    loss = -float((count * log_p).sum()) - ties * (2 * eta + float(np.log(-np.expm1(-2 * eta))))
    g = count * up
    h = count * up * (1 - up)
    d_eta = float(g.sum()) - ties * 2 / -float(np.expm1(-2 * eta))
    d2_eta = float(h.sum()) + ties * 4 * float(np.exp(-2 * eta)) / float(np.expm1(-2 * eta)) ** 2
    gradient = np.append(g.sum(axis=0) - g.sum(axis=1), d_eta * slope)
    hessian = np.zeros((m + 1, m + 1))
    both = h + h.T
    hessian[:m, :m] = np.diag(both.sum(axis=1)) - both
    cross = (h.sum(axis=0) - h.sum(axis=1)) * slope
    hessian[:m, m] = hessian[m, :m] = cross
    hessian[m, m] = d2_eta * slope**2 + d_eta * 0.1 * slope * (1 - slope)
    if slope == 0.0:
        hessian[m, m] = 1.0
    return loss, gradient, hessian


def _grk_terms(x: Array, win: Array, tie: Array, bad: Array) -> tuple[float, Array, Array]:
    """As `_bt_terms` for grounded Rao-Kupper; the last variable is raw_eta.

    Per ordered pair, the log denominators n_a (of P(a)) and n_bad are log-sum-exps of (β_a, log θ + β_b, 0) and
    (β_a, β_b, 0), so their Hessians are covariances of softmax weights. n_b is n_a transposed.
    """
    m = len(win)
    beta, raw = x[:m], float(x[m])
    log_theta, log_theta_1 = (float(v) for v in grk_log_theta(raw))
    a, b = beta[:, None], beta[None, :]
    n_a = np.logaddexp(np.logaddexp(a, log_theta + b), 0.0)
    n_bad = np.logaddexp(np.logaddexp(a, b), 0.0)
    wa, wb = np.exp(a - n_a), np.exp(log_theta + b - n_a)  # softmax weights in n_a
    ba = np.exp(a - n_bad)  # weight of β_a in n_bad; of β_b it is the transpose
    share = sigmoid(n_a.T - n_a)  # weight of 1/n_a in 1/n_a + 1/n_b
    log_tie = log_theta_1 + a + b - n_bad + np.logaddexp(-n_a, -n_a.T)
    loss = -float((win * (a - n_a)).sum() + 0.5 * (bad * -n_bad).sum() + 0.5 * (tie * log_tie).sum())

    # per ordered pair: how often n_a is paid for, with first derivatives (da, db, dl) of −log-likelihood
    pay = win + tie * share  # the tie's second half is the transposed pair's
    pay_bad = 0.5 * (bad + tie)
    da = pay * wa - win + pay_bad * ba - 0.5 * tie
    db = pay * wb + pay_bad * ba.T - 0.5 * tie
    dl = pay * wb
    k, k1 = float(np.exp(raw - log_theta)), float(np.exp(raw - log_theta_1))  # d log θ, d log(θ−1) / d raw_eta
    ties = 0.5 * float(tie.sum())
    sum_dl = float(dl.sum())
    gradient = np.append(da.sum(axis=1) + db.sum(axis=0), sum_dl * k - ties * k1)

    # second derivatives
    haa = pay * wa * (1 - wa) + pay_bad * ba * (1 - ba)
    hbb = pay * wb * (1 - wb) + pay_bad * ba.T * (1 - ba.T)
    hab = -pay * wa * wb - pay_bad * ba * ba.T
    hal, hbl, hll = -pay * wa * wb, pay * wb * (1 - wb), pay * wb * (1 - wb)
    # the tie's log(1/n_a + 1/n_b) adds −share(1−share) (∇n_a − ∇n_b)(∇n_a − ∇n_b)ᵀ, half of it per ordered pair
    mix = 0.5 * tie * share * (1 - share)
    ua, ub, ul = wa - wb.T, wb - wa.T, wb - wb.T
    haa, hbb, hab = haa - mix * ua * ua, hbb - mix * ub * ub, hab - mix * ua * ub
    hal, hbl, hll = hal - mix * ua * ul, hbl - mix * ub * ul, hll - mix * ul * ul
    hessian = np.zeros((m + 1, m + 1))
    hessian[:m, :m] = hab + hab.T
    diagonal = haa.sum(axis=1) + hbb.sum(axis=0)
    hessian[np.arange(m), np.arange(m)] += diagonal
    hessian[:m, m] = hessian[m, :m] = k * (hal.sum(axis=1) + hbl.sum(axis=0))
    hessian[m, m] = k * k * float(hll.sum()) + k * (1 - k) * sum_dl - ties * k1 * (1 - k1)
    return loss, gradient, hessian


@dataclass(frozen=True)
class Leaderboard:
    """The aggregate leaderboard of a set of prompts.

    Attributes:
        models: names, in the bundle's order.
        family: outcome model.
        coefs: (M,) fitted coefficients.
        raw_eta: fitted second output, for families that have it.
        win_rate: (M,) mean over prompts and over the other comparable models of P(beats the other); ties are not wins.
        n_prompts: prompts that went in.
        ungrounded: models of `grk` whose level nothing ties to the others: they come after them, whatever their
            coefficients, and compare among themselves only.
    """

    models: tuple[str, ...]
    family: Family
    coefs: Array
    raw_eta: float | None
    win_rate: Array
    n_prompts: int
    ungrounded: frozenset[str] = frozenset()

    @classmethod
    def from_means(
        cls, models: tuple[str, ...], means: PairMeans, ungrounded: frozenset[str] = frozenset()
    ) -> Leaderboard:
        """Fits the leaderboard of accumulated pair means.

        Raises:
            P2LError: no prompts.
        """
        if not means.n:
            raise P2LError("a leaderboard needs at least one prompt")
        win = means.win
        coefs, raw_eta = fit(means.family, win, means.tie, means.bad, means.start())
        win_rate = win_rate_over_others(win, models, ungrounded)
        return cls(models, means.family, coefs, raw_eta, win_rate, means.n, ungrounded)

    @property
    def order(self) -> list[int]:
        """Indices of the models, best first; ungrounded ones after all others."""
        apart = [name in self.ungrounded for name in self.models]
        return [int(i) for i in np.lexsort((-self.coefs, np.array(apart)))]

    def rows(self) -> list[dict[str, Any]]:
        """One record per model, best first: rank, model, coef, win_rate and, for grk, usable."""
        usable = usable_probability(self.coefs)
        rows = []
        for rank, i in enumerate(self.order, start=1):
            row = {
                "rank": rank,
                "model": self.models[i],
                "coef": round(float(self.coefs[i]), 6),
                "win_rate": round(float(self.win_rate[i]), 6),
            }
            if self.family == "grk":
                row["usable"] = round(float(usable[i]), 6)
            if self.models[i] in self.ungrounded:
                row["grounded"] = False
            rows.append(row)
        return rows

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: family, n_prompts, raw_eta and the rows."""
        raw_eta = None if self.raw_eta is None else round(self.raw_eta, 6)
        return {"family": self.family, "n_prompts": self.n_prompts, "raw_eta": raw_eta, "leaderboard": self.rows()}

    def to_json(self) -> str:
        """`to_dict` as indented JSON."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False)

    def to_markdown(self, top: int | None = None) -> str:
        """A table in markdown, best model first; `top` limits its rows."""
        rows = self.rows()[:top]
        grounded = self.family == "grk"
        lines = [
            "| rank | model | coefficient | win rate |" + (" P(usable) |" if grounded else ""),
            "|---:|:---|---:|---:|" + ("---:|" if grounded else ""),
        ]
        for row in rows:
            mark = "" if row.get("grounded", True) else " †"
            line = f"| {row['rank']} | {row['model']}{mark} | {row['coef']:+.3f} | {row['win_rate']:.1%} |"
            lines.append(line + (f" {row['usable']:.1%} |" if grounded else ""))
        if any(not row.get("grounded", True) for row in rows):
            lines.append(f"\n† {UNGROUNDED}")
        return "\n".join(lines)


def win_rate_over_others(win: Array, models: tuple[str, ...], ungrounded: frozenset[str]) -> Array:
    """(..., M) mean of win (..., M, M) over the other models that a model can be compared with."""
    apart = np.array([name in ungrounded for name in models])
    comparable = (apart[:, None] == apart[None, :]) & ~np.eye(len(models), dtype=bool)
    rates: Array = (win * comparable).sum(axis=-1) / np.maximum(comparable.sum(axis=-1), 1)
    return rates


UNGROUNDED = (
    "trained on votes that never say 'both bad' and shared with no other data: comparable among themselves only"
)


def aggregate(
    models: tuple[str, ...],
    family: Family,
    coefs: ArrayLike,
    raw_eta: ArrayLike | None = None,
    ungrounded: frozenset[str] = frozenset(),
) -> Leaderboard:
    """The leaderboard of N prompts at once: coefs (N, M), raw_eta (N,) for families that have it."""
    means = PairMeans(family, len(models))
    means.add(coefs, raw_eta)
    return Leaderboard.from_means(models, means, ungrounded)
