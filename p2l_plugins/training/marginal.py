"""The marginal leaderboard: one coefficient vector for all prompts, fitted to votes. Baseline and starting point."""

from __future__ import annotations

import numpy as np

from p2l_plugins.leaderboard import fit
from p2l_plugins.outcomes import BAD, TIE, Array, Family
from p2l_plugins.training.data import Votes


def fit_marginal(votes: Votes, family: Family, ridge: float = 0.1) -> tuple[Array, float | None]:
    """Coefficients (M,) and raw_eta that maximise the votes' likelihood, with a small ridge on the coefficients."""
    m = len(votes.models)
    win, tie, bad = (np.zeros((m, m)) for _ in range(3))
    for matrix, rows in ((tie, votes.outcome == TIE), (bad, votes.outcome == BAD)):
        np.add.at(matrix, (votes.a[rows], votes.b[rows]), votes.weight[rows])
        np.add.at(matrix, (votes.b[rows], votes.a[rows]), votes.weight[rows])
    first = votes.outcome == 0
    np.add.at(win, (votes.a[first], votes.b[first]), votes.weight[first])
    second = votes.outcome == 1
    np.add.at(win, (votes.b[second], votes.a[second]), votes.weight[second])
    start = (np.zeros(m), 20.0 if family == "rk" else 0.0)
    return fit(family, win, tie, bad, start, ridge)
