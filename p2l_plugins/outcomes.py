"""The four outcome models of a vote: probabilities, log-likelihoods and gradients, in NumPy.

With `Δ = β_a − β_b` and `φ = exp(β)`:

- `bt` (Bradley & Terry 1952): P(a) = σ(Δ); a tie is not allowed.
- `bt-tie`: as `bt`; a tie counts as half a win for each side.
- `rk` (Rao & Kupper 1967): P(a) = σ(Δ − η), P(b) = σ(−Δ − η), the rest is a tie (both kinds),
  with η = max(softplus₀.₁(raw_eta − 22.5), 0.02), softplus_b(x) = log(1 + e^{bx}) / b.
- `grk` (grounded Rao-Kupper, arXiv 2502.14855): θ = exp(raw_eta) + 1.000001, P(a) = φ_a / (φ_a + θφ_b + 1),
  P(both bad) = 1 / (1 + φ_a + φ_b), the rest is a tie. β = 0 is the threshold of a usable answer.

Everything is computed in float64 and log space, so nothing overflows for |β| up to hundreds.
"""

from __future__ import annotations

from typing import Any, Literal, Protocol, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from p2l_plugins.errors import DataError

Array = NDArray[np.float64]
Floats = NDArray[np.float32]
Numbers = NDArray[np.floating[Any]]
Ids = NDArray[np.int64]
Mask = NDArray[np.bool_]
Family = Literal["bt", "bt-tie", "rk", "grk"]
FAMILIES: tuple[str, ...] = get_args(Family)


class Coefficients(Protocol):
    """Scores of N prompts, such as `p2l_plugins.Scores`."""

    @property
    def family(self) -> Family:
        """The outcome model."""

    @property
    def coefs(self) -> Floats:
        """(N, M)."""

    @property
    def raw_eta(self) -> Floats | None:
        """(N,), or None for families without it."""

    def index(self, model: str) -> int:
        """Column of a model, by its name or an alias."""


#: The values of `winner` in a votes file; an outcome is an index into this tuple.
OUTCOMES = ("model_a", "model_b", "tie", "tie (bothbad)")
A, B, TIE, BAD = range(4)


def has_eta(family: Family) -> bool:
    """Whether the family has a second output, `raw_eta`."""
    return family in ("rk", "grk")


def log_sigmoid(x: ArrayLike) -> Array:
    """log σ(x) without overflow."""
    return -np.logaddexp(0.0, -np.asarray(x, np.float64))


def sigmoid(x: ArrayLike) -> Array:
    """σ(x) without overflow."""
    return np.exp(log_sigmoid(x))


def rk_eta(raw_eta: ArrayLike) -> Array:
    """The Rao-Kupper tie threshold η > 0, as the published checkpoints parameterise it."""
    return np.maximum(np.logaddexp(0.0, 0.1 * (np.asarray(raw_eta, np.float64) - 22.5)) / 0.1, 0.02)


def rk_eta_slope(raw_eta: ArrayLike) -> Array:
    """dη / d raw_eta; 0 where the floor of 0.02 holds."""
    return np.where(rk_eta(raw_eta) > 0.02, sigmoid(0.1 * (np.asarray(raw_eta, np.float64) - 22.5)), 0.0)


def grk_log_theta(raw_eta: ArrayLike) -> tuple[Array, Array]:
    """(log θ, log(θ − 1)) of the grounded Rao-Kupper model."""
    raw = np.asarray(raw_eta, np.float64)
    return np.logaddexp(raw, np.log(1.000001)), np.logaddexp(raw, np.log(1e-6))


def _need_eta(family: Family, raw_eta: ArrayLike | None) -> Array:
    if raw_eta is None:
        raise DataError(f"the outcome model {family!r} needs raw_eta")
    return np.asarray(raw_eta, np.float64)


def log_probabilities(family: Family, beta_a: ArrayLike, beta_b: ArrayLike, raw_eta: ArrayLike | None = None) -> Array:
    """log P of each outcome.

    Args:
        beta_a, beta_b: coefficients of the two sides, any shapes that broadcast.
        raw_eta: the second output of `rk` and `grk`, broadcast with them.

    Returns:
        (..., 4) in the order of `OUTCOMES`; −inf where the family has no such outcome.
    """
    a, b = np.broadcast_arrays(np.asarray(beta_a, np.float64), np.asarray(beta_b, np.float64))
    if family in ("bt", "bt-tie"):
        never = np.full(a.shape, -np.inf)
        return np.stack([log_sigmoid(a - b), log_sigmoid(b - a), never, never], axis=-1)
    raw = _need_eta(family, raw_eta)
    if family == "rk":
        eta = rk_eta(raw)
        win, loss = log_sigmoid(a - b - eta), log_sigmoid(b - a - eta)
        # 1 − P(a) − P(b) = (e^{2η} − 1) P(a) P(b); in logs, so that it is exact for small and large η
        tie = 2 * eta + np.log(-np.expm1(-2 * eta)) + win + loss
        return np.stack([win, loss, tie, np.full(tie.shape, -np.inf)], axis=-1)
    log_theta, log_theta_1 = grk_log_theta(raw)
    norm_a, norm_b, norm_bad = _grk_norms(a, b, log_theta)
    # the rest, 1 − P(a) − P(b) − P(bad), factors into (θ−1) φ_a φ_b (1/n_a + 1/n_b) / n_bad
    tie = log_theta_1 + a + b - norm_bad + np.logaddexp(-norm_a, -norm_b)
    return np.stack(np.broadcast_arrays(a - norm_a, b - norm_b, tie, -norm_bad), axis=-1)


def _grk_norms(a: Array, b: Array, log_theta: Array) -> tuple[Array, Array, Array]:
    """Logs of the three denominators: φ_a + θφ_b + 1, φ_b + θφ_a + 1, 1 + φ_a + φ_b."""
    norm_a = np.logaddexp(np.logaddexp(a, log_theta + b), 0.0)
    norm_b = np.logaddexp(np.logaddexp(b, log_theta + a), 0.0)
    return norm_a, norm_b, np.logaddexp(np.logaddexp(a, b), 0.0)


def probabilities(family: Family, beta_a: ArrayLike, beta_b: ArrayLike, raw_eta: ArrayLike | None = None) -> Array:
    """P of each outcome, (..., 4) in the order of `OUTCOMES`."""
    return np.exp(log_probabilities(family, beta_a, beta_b, raw_eta))


def win_probability(family: Family, beta_a: ArrayLike, beta_b: ArrayLike, raw_eta: ArrayLike | None = None) -> Array:
    """P(a beats b); ties are not wins."""
    a, b = np.asarray(beta_a, np.float64), np.asarray(beta_b, np.float64)
    if family in ("bt", "bt-tie"):
        return sigmoid(a - b)
    raw = _need_eta(family, raw_eta)
    if family == "rk":
        return sigmoid(a - b - rk_eta(raw))
    return np.exp(a - np.logaddexp(np.logaddexp(a, grk_log_theta(raw)[0] + b), 0.0))


def win_matrix(family: Family, coefs: ArrayLike, raw_eta: ArrayLike | None = None) -> Array:
    """W with `W[..., a, b]` = P(a beats b).

    Args:
        coefs: (..., M) coefficients.
        raw_eta: (...) second output, for `rk` and `grk`.
    """
    beta = np.asarray(coefs, np.float64)
    eta = None if raw_eta is None else np.asarray(raw_eta, np.float64)[..., None, None]
    return win_probability(family, beta[..., :, None], beta[..., None, :], eta)


def usable_probability(coefs: ArrayLike, stderr: ArrayLike = 0.0) -> Array:
    """P(the answer is usable) = σ(β); only the grounded family (`grk`) gives it this meaning.

    Args:
        coefs: β.
        stderr: standard errors of β, broadcast with it; the mean over what β may be is taken (MacKay 1992).
    """
    variance = np.square(np.asarray(stderr, np.float64))
    return sigmoid(np.asarray(coefs, np.float64) / np.sqrt(1 + np.pi / 8 * variance))


def negative_log_likelihood(
    family: Family, beta_a: ArrayLike, beta_b: ArrayLike, outcome: ArrayLike, raw_eta: ArrayLike | None = None
) -> Array:
    """−log P(observed outcome) per vote, (N,).

    Args:
        beta_a, beta_b: (N,) coefficients of the two sides.
        outcome: (N,) integers that index `OUTCOMES`.
        raw_eta: (N,), for `rk` and `grk`.

    Raises:
        DataError: a tie under `bt`.
    """
    return nll_gradients(family, beta_a, beta_b, outcome, raw_eta)[0]


def nll_gradients(
    family: Family, beta_a: ArrayLike, beta_b: ArrayLike, outcome: ArrayLike, raw_eta: ArrayLike | None = None
) -> tuple[Array, Array, Array, Array]:
    """(loss, d/dβ_a, d/dβ_b, d/draw_eta), each (N,); arguments and errors as `negative_log_likelihood`."""
    a, b = np.asarray(beta_a, np.float64), np.asarray(beta_b, np.float64)
    y = np.asarray(outcome)
    zero = np.zeros_like(a)
    if family in ("bt", "bt-tie"):
        if family == "bt" and (y >= TIE).any():
            raise DataError("the outcome model 'bt' allows no ties; use 'bt-tie', 'rk' or 'grk', or drop them")
        target = np.where(y == A, 1.0, np.where(y == B, 0.0, 0.5))
        loss = -target * log_sigmoid(a - b) - (1 - target) * log_sigmoid(b - a)
        slope = sigmoid(a - b) - target
        return loss, slope, -slope, zero
    raw = np.broadcast_to(_need_eta(family, raw_eta), a.shape)
    y = np.where((family == "rk") & (y == BAD), TIE, y)
    logp = log_probabilities(family, a, b, raw)
    loss = -np.take_along_axis(logp, y[..., None], axis=-1)[..., 0]
    if family == "rk":
        eta = rk_eta(raw)
        up, down = sigmoid(b - a + eta), sigmoid(a - b + eta)  # 1 − P(a), 1 − P(b)
        d_delta = np.select([y == A, y == B], [up, -down], up - down)
        d_eta = np.select([y == A, y == B], [-up, -down], 2 / -np.expm1(-2 * eta) - up - down)
        return loss, -d_delta, d_delta, -d_eta * rk_eta_slope(raw)
    log_theta, log_theta_1 = grk_log_theta(raw)
    n_a, n_b, n_bad = _grk_norms(a, b, log_theta)
    # gradients of the three log denominators with respect to (β_a, β_b, log θ)
    g_a = np.stack([np.exp(a - n_a), np.exp(log_theta + b - n_a), np.exp(log_theta + b - n_a)])
    g_b = np.stack([np.exp(log_theta + a - n_b), np.exp(b - n_b), np.exp(log_theta + a - n_b)])
    g_bad = np.stack([np.exp(a - n_bad), np.exp(b - n_bad), zero])
    share = sigmoid(n_b - n_a)  # weight of 1/n_a in (1/n_a + 1/n_b)
    unit_a, unit_b = np.array([1.0, 0.0, 0.0])[:, None], np.array([0.0, 1.0, 0.0])[:, None]
    gradient = np.select(
        [y == A, y == B, y == TIE],
        [unit_a - g_a, unit_b - g_b, unit_a + unit_b - g_bad - share * g_a - (1 - share) * g_b],
        -g_bad,
    )
    d_raw = gradient[2] * np.exp(raw - log_theta) + np.where(y == TIE, np.exp(raw - log_theta_1), 0.0)
    return loss, -gradient[0], -gradient[1], -d_raw
