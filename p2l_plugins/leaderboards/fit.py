"""Fits one coefficient vector to weighted outcomes of every pair of models: a small convex problem, by Newton's method.

The weights are mean probabilities (a leaderboard), resampled means (its intervals) or counts of votes (the marginal
leaderboard of a data set).
"""

from __future__ import annotations

import numpy as np

from p2l_plugins.outcomes import Array, Family, Numbers, grk_log_theta, has_eta, rk_eta, rk_eta_slope, sigmoid

_LIMIT = 300.0  # exp(±300) and products of two are finite in float64


def fit(
    family: Family,
    win: Array,
    tie: Array,
    bad: Array,
    start: tuple[Array, float],
    ridge: float = 0.0,
) -> tuple[Array, float | None]:
    """The maximum-likelihood coefficients (M,) and raw_eta of weighted outcomes of every pair.

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
    win, tie, bad = targets(family, win, tie, bad)
    if family != "grk":
        beta = beta - beta.mean()
    x = np.append(beta, raw) if has_eta(family) else beta
    penalty = np.append(np.full(m, ridge), np.zeros(x.size - m))
    shift = np.diag(penalty) + _gauge(family, m)
    terms = _TERMS[family]
    scale = float(win.sum() + 0.5 * (tie + bad).sum())

    def step_of(x: Array) -> tuple[float, Array, Array]:
        loss, gradient, hessian = terms(x, win, tie, bad)
        return loss + 0.5 * float(penalty @ (x * x)), gradient + penalty * x, hessian

    loss, gradient, hessian = step_of(x)
    for _ in range(100):
        direction = newton_direction(gradient, hessian + shift)
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


def targets(family: Family, win: Array, tie: Array, bad: Array) -> tuple[Array, Array, Array]:
    """The weights (..., M, M) as the family counts them: no diagonal, its own reading of ties."""
    off = 1.0 - np.eye(win.shape[-1])
    win, tie, bad = win * off, tie * off, bad * off
    if family != "grk":
        tie = tie + bad
    return (win if has_eta(family) else win + 0.5 * tie), tie, bad


def hessian(family: Family, x: Array, win: Array, tie: Array, bad: Array) -> Array:
    """Second derivatives of the loss at x, regular also where the family identifies differences only.

    Args:
        x: (P,) coefficients and, for `rk` and `grk`, raw_eta.
        win, tie, bad: (M, M) as `targets` gives them.
    """
    return _TERMS[family](x, win, tie, bad)[2] + _gauge(family, len(win))


def gradients(family: Family, x: Array, win: Array, tie: Array, bad: Array) -> Array:
    """First derivatives (R, P) of the losses of R fits at once, each at its own x.

    The same sums as in the terms of `fit`, with φ = exp(β) in place of logarithms and what is constant in a row or a
    column taken out of its sum: this is what intervals spend their time on.

    Args:
        x: (R, P) coefficients and, for `rk` and `grk`, raw_eta.
        win, tie, bad: (R, M, M) as `targets` gives them.
    """
    m = win.shape[-1]
    phi = np.exp(np.clip(x[:, :m], -_LIMIT, _LIMIT))
    a, b = phi[:, :, None], phi[:, None, :]
    if not has_eta(family):
        count = win + np.swapaxes(win, 1, 2)
        first: Array = (count * (a / (a + b)) - win).sum(axis=2)
        return first
    raw = x[:, m]
    if family == "rk":
        eta = rk_eta(raw)
        e_eta = np.exp(eta)[:, None, None]
        g = (win + tie) * (e_eta * b / (a + e_eta * b))  # count · (1 − P(a beats b))
        d_eta = g.sum(axis=(1, 2)) + tie.sum(axis=(1, 2)) / np.expm1(-2 * eta)
        return np.column_stack([g.sum(axis=1) - g.sum(axis=2), d_eta * rk_eta_slope(raw)])
    log_theta, log_theta_1 = grk_log_theta(raw)
    theta = np.exp(np.minimum(log_theta, _LIMIT))[:, None]
    n_a = (phi + 1.0)[:, :, None] + (theta * phi)[:, None, :]
    n_b = np.swapaxes(n_a, 1, 2)
    pay = n_b / (n_a + n_b)
    pay *= tie
    pay += win
    pay /= n_a
    ties = tie.sum(axis=2)
    bad_a = ((bad + tie) / ((phi + 1.0)[:, :, None] + b)).sum(axis=2)  # both halves: bad and tie are symmetric
    lost = theta * phi * pay.sum(axis=1)
    d_beta = phi * (pay.sum(axis=2) + bad_a) - win.sum(axis=2) - ties + lost
    k, k1 = np.exp(raw - log_theta), np.exp(raw - log_theta_1)
    d_raw = lost.sum(axis=1) * k - 0.5 * ties.sum(axis=1) * k1
    return np.column_stack([d_beta, d_raw])


def _gauge(family: Family, m: int) -> Array:
    """Curvature (P, P) along what is not identified: the direction that moves all coefficients alike."""
    size = m + has_eta(family)
    gauge = np.zeros((size, size))
    if family != "grk":
        gauge[:m, :m] = 1.0 / m
    return gauge


def newton_direction(gradient: Array, hessian: Array) -> Array:
    """The step (P,) to the minimum, with damping where the Hessian is not positive definite; no number above 10."""
    damping = 0.0
    for _ in range(60):
        try:
            factor = np.linalg.cholesky(hessian + damping * np.eye(len(hessian)))
        except np.linalg.LinAlgError:
            damping = max(10 * damping, 1e-12 * float(np.abs(np.diag(hessian)).max()), 1e-300)
            continue
        step = -cholesky_solve(factor, gradient)
        largest = float(np.abs(step).max())
        return step if largest <= 10.0 else step * (10.0 / largest)
    return -gradient


_BLOCK = 16


def cholesky_solve(factor: Numbers, right: Array) -> Array:
    """x with L Lᵀ x = right, (P,) or (P, K), from the lower factor L.

    By blocks of rows. NumPy has no solver for triangles, and its general one starts threads for a matrix of a hundred
    rows: where other processes keep the processor busy, their waiting for each other takes a hundred times as long.
    """
    x = right.copy()
    starts = range(0, len(factor), _BLOCK)
    inverses = [np.linalg.inv(factor[i : i + _BLOCK, i : i + _BLOCK]) for i in starts]
    for i, inverse in zip(starts, inverses, strict=True):
        rows = slice(i, i + _BLOCK)
        x[rows] = inverse @ (x[rows] - factor[rows, :i] @ x[:i])
    for i, inverse in reversed(list(zip(starts, inverses, strict=True))):
        rows, below = slice(i, i + _BLOCK), slice(i + _BLOCK, None)
        x[rows] = inverse.T @ (x[rows] - factor[below, rows].T @ x[below])
    return x


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

    Per ordered pair, the denominators n_a = φ_a + θ φ_b + 1 (of P(a)) and n_bad = φ_a + φ_b + 1 are sums of
    exponentials, so the Hessians of their logarithms are covariances of the terms' shares. n_b is n_a transposed.
    """
    m = len(win)
    beta, raw = np.clip(x[:m], -_LIMIT, _LIMIT), float(x[m])
    log_theta, log_theta_1 = (float(v) for v in grk_log_theta(raw))
    phi, theta = np.exp(beta), float(np.exp(min(log_theta, _LIMIT)))
    n_a = (phi + 1.0)[:, None] + theta * phi[None, :]
    n_bad = (phi + 1.0)[:, None] + phi[None, :]
    both = n_a + n_a.T
    wa, wb = phi[:, None] / n_a, theta * phi[None, :] / n_a  # shares in n_a
    ba = phi[:, None] / n_bad  # share of φ_a in n_bad; of φ_b it is the transpose
    share = n_a.T / both  # share of 1/n_a in 1/n_a + 1/n_b
    loss = (
        float(((win + tie) * np.log(n_a)).sum())
        + 0.5 * float(((bad + tie) * np.log(n_bad)).sum())
        - 0.5 * float((tie * np.log(both)).sum())
        - float(beta @ (win + tie).sum(axis=1))
        - 0.5 * log_theta_1 * float(tie.sum())
    )

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


_TERMS = {"bt": _bt_terms, "bt-tie": _bt_terms, "rk": _rk_terms, "grk": _grk_terms}
