"""The loss of the four outcome models in torch; the same formulas as `p2l_plugins.outcomes`, which tests compare."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from p2l_plugins.outcomes import BAD, TIE, A, B, Family


def vote_losses(family: Family, a: Tensor, b: Tensor, outcome: Tensor, raw_eta: Tensor | None) -> Tensor:
    """−log P(observed outcome) of each vote, (V,) float32.

    Args:
        a, b: (V,) coefficients of the two sides.
        outcome: (V,) indices into `OUTCOMES`.
        raw_eta: (V,), for `rk` and `grk`.
    """
    a, b = a.float(), b.float()
    delta = a - b
    if family in ("bt", "bt-tie"):
        target = torch.where(outcome == A, 1.0, torch.where(outcome == B, 0.0, 0.5))
        return -target * logsigmoid(delta) - (1 - target) * logsigmoid(-delta)
    assert raw_eta is not None
    raw = raw_eta.float()
    if family == "rk":
        eta = (softplus(0.1 * (raw - 22.5)) / 0.1).clamp_min(0.02)
        win, loss = logsigmoid(delta - eta), logsigmoid(-delta - eta)
        tie = 2 * eta + torch.log(-torch.expm1(-2 * eta)) + win + loss
        return -torch.where(outcome == A, win, torch.where(outcome == B, loss, tie))
    zero = torch.zeros_like(a)
    log_theta = torch.logaddexp(raw, torch.full_like(raw, math.log(1.000001)))
    log_theta_1 = torch.logaddexp(raw, torch.full_like(raw, math.log(1e-6)))
    norm_a = torch.logaddexp(torch.logaddexp(a, log_theta + b), zero)
    norm_b = torch.logaddexp(torch.logaddexp(b, log_theta + a), zero)
    norm_bad = torch.logaddexp(torch.logaddexp(a, b), zero)
    tie = log_theta_1 + a + b - norm_bad + torch.logaddexp(-norm_a, -norm_b)
    choices = [outcome == A, outcome == B, outcome == TIE, outcome == BAD]
    result = zero
    for chosen, value in zip(choices, [a - norm_a, b - norm_b, tie, -norm_bad], strict=True):
        result = torch.where(chosen, value, result)
    return -result
