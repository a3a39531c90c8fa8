"""The board of an arena: a Bradley-Terry fit of its votes, with intervals that hold from the first vote on."""

from __future__ import annotations

from typing import Any

import numpy as np

from p2l_plugins.leaderboards.fit import fit, hessian, targets
from p2l_plugins.leaderboards.intervals import Replicates, intervals, opponent_weights
from p2l_plugins.leaderboards.leaderboard import Leaderboard
from p2l_plugins.outcomes import Array, sigmoid

_DRAWS = 500


def board_of(models: tuple[str, ...], wins: Array, votes: int, prior: float) -> dict[str, Any]:
    """A leaderboard as `Leaderboard.to_dict` gives it, and how many comparisons each model had.

    Coefficients are most likely under the votes and a normal prior around 0, which keeps those of models with few or
    one-sided votes finite. Their intervals are of the normal distribution with the curvature there (Laplace), not of
    resamples: few votes that agree would give resamples that are all alike, and intervals of no width.

    Args:
        models: M names.
        wins: (M, M) comparisons that a row's model won against a column's; a tie is half of one for each.
        votes: comparisons; intervals need two.
        prior: precision of the coefficients.
    """
    nothing = np.zeros_like(wins)
    coefs, _ = fit("bt-tie", wins, nothing, nothing, (np.zeros(len(wins)), 0.0), ridge=prior)
    opponents = opponent_weights(models, frozenset())
    rates = _win_rates(coefs[None, :], opponents)
    span = None
    if votes > 1:
        curvature = hessian("bt-tie", coefs, *targets("bt-tie", wins, nothing, nothing))
        covariance = np.linalg.inv(curvature + prior * np.eye(len(wins)))
        rng = np.random.default_rng(0)
        draws = coefs + rng.standard_normal((_DRAWS, len(wins))) @ np.linalg.cholesky(covariance).T
        draws -= draws.mean(axis=1, keepdims=True)
        drawn = Replicates(draws, _win_rates(draws, opponents), votes)
        span = intervals(coefs, rates[0], drawn, np.zeros(len(wins), np.bool_))
    board = Leaderboard(models, "bt-tie", coefs, None, rates[0], votes, intervals=span).to_dict()
    played = dict(zip(models, (wins + wins.T).sum(axis=1).tolist(), strict=True))
    rows = [row | {"votes": round(played[row["model"]])} for row in board["leaderboard"]]
    return {"votes": votes, "leaderboard": rows, "intervals": board.get("intervals")}


def _win_rates(coefs: Array, opponents: Array) -> Array:
    """(R, M) mean chance to win against the others; coefs: (R, M)."""
    chance = sigmoid(coefs[:, :, None] - coefs[:, None, :])
    rates: Array = (chance * opponents).sum(axis=2)
    return rates
