"""How well forecasts fit votes: log loss, Brier score, accuracy, and means with standard errors by prompt. NumPy only.

A forecast is an array (V, 4) of log-probabilities in the order of `outcomes.OUTCOMES`. Votes on one prompt share the
prompt's difficulty, so they count as one cluster, not as independent observations.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from p2l_plugins.outcomes import OUTCOMES, TIE, Array, Family, Ids, has_eta, log_probabilities
from p2l_plugins.votes.votes import Votes

#: Where a forecast gives an outcome less than this, this is what it pays for: log 0 has no mean.
FLOOR = float(np.log(1e-300))


@dataclass(frozen=True, slots=True)
class Mean:
    """A weighted mean over votes.

    Attributes:
        mean: NaN where there are no votes.
        stderr: standard error by prompt; NaN for fewer than two prompts.
        n: votes.
        n_prompts: prompts with such votes.
    """

    mean: float
    stderr: float
    n: int
    n_prompts: int


def clustered_mean(x: Array, weight: Array, prompt: Ids) -> Mean:
    """The weighted mean of x (V,) and its standard error with votes clustered by `prompt` (V,).

    The linearised variance of a ratio estimator, G/(G−1) Σ_g (Σ_{i∈g} w_i (x_i − x̄))² / (Σw)², with G prompts
    (Liang & Zeger 1986; Miller 2024, arXiv 2411.00640, section 2.2). With one vote per prompt and equal weights it is
    the usual standard error of a mean.
    """
    if not len(x):
        return Mean(float("nan"), float("nan"), 0, 0)
    total = weight.sum()
    mean = float(weight @ x / total)
    clusters = np.bincount(prompt, weight * (x - mean))
    groups = int(np.count_nonzero(np.bincount(prompt)))
    error = float(np.sqrt(groups / (groups - 1) * (clusters @ clusters)) / total) if groups > 1 else float("nan")
    return Mean(mean, error, len(x), groups)


@dataclass(frozen=True)
class VoteQuality:
    """How well a forecast fits votes.

    Attributes:
        log_loss: weighted mean −log P(outcome); a family without the outcome counts a tie half for each side.
        log_loss_stderr: its standard error by prompt.
        brier: mean squared error summed over outcomes.
        accuracy: share of votes whose outcome was the likeliest; equal likeliest outcomes share the hit.
        decisive_log_loss: −log P(winner | there is a winner), over votes with a winner.
        decisive_accuracy: share of those votes whose winner was the likelier side; an even prediction counts half.
        calibration_error: see `calibration.Calibrations.error`.
        decisive_calibration_error: the same for P(the likelier side wins | there is a winner).
    """

    log_loss: float
    log_loss_stderr: float
    brier: float
    accuracy: float
    decisive_log_loss: float
    decisive_accuracy: float
    calibration_error: float = float("nan")
    decisive_calibration_error: float = float("nan")


def targets(votes: Votes, family: Family) -> Array:
    """(V, 4) what a forecast of the family should have said: one-hot over the outcomes that the family tells apart.

    `rk` has one kind of tie; for `bt` and `bt-tie` a tie is half a win for each side.
    """
    code = votes.outcome if family == "grk" else np.minimum(votes.outcome, TIE)
    rows = np.eye(len(OUTCOMES))
    if not has_eta(family):
        rows[TIE] = [0.5, 0.5, 0.0, 0.0]
    chosen: Array = rows[code]
    return chosen


def vote_log_probabilities(votes: Votes, coefs: Array, raw_eta: Array | None, family: Family) -> Array:
    """(V, 4) log P of each outcome, from coefficients per prompt: coefs (P, M), raw_eta (P,)."""
    eta = None if raw_eta is None else raw_eta[votes.prompt]
    return log_probabilities(family, coefs[votes.prompt, votes.a], coefs[votes.prompt, votes.b], eta)


def log_losses(log_p: Array, target: Array) -> Array:
    """(V,) −Σ target · log P, with log P at least `FLOOR`."""
    losses: Array = -(target * np.maximum(log_p, FLOOR)).sum(axis=1)
    return losses


def impossible(log_p: Array, target: Array) -> int:
    """Number of votes whose outcome the forecast held for impossible (P below e^FLOOR)."""
    return int(((target > 0) & (log_p < FLOOR)).any(axis=1).sum())


def decisive_log_odds(log_p: Array) -> Array:
    """(V,) log P(a) − log P(b): their shares given a winner are σ of it and of its negative."""
    odds: Array = np.maximum(log_p[:, 0], FLOOR) - np.maximum(log_p[:, 1], FLOOR)
    return odds


def _winner_odds(log_p: Array, votes: Votes) -> Array:
    """(decisive,) log P(winner) − log P(loser) of each vote with a winner; its loss is log(1 + exp(−that))."""
    decisive = votes.decisive()
    sign = np.where(votes.outcome[decisive] == 0, 1.0, -1.0)
    return sign * decisive_log_odds(log_p[decisive])


def vote_quality(log_p: Array, votes: Votes, family: Family) -> VoteQuality:
    """Quality of a forecast (V, 4), without its calibration."""
    target = targets(votes, family)
    probability = np.exp(log_p)
    weight = votes.weight / votes.weight.sum()
    likeliest = probability == probability.max(axis=1, keepdims=True)
    hit = (target * likeliest).sum(axis=1) / likeliest.sum(axis=1)
    decisive = votes.decisive()
    odds = _winner_odds(log_p, votes)
    w, prompt = votes.weight[decisive], votes.prompt[decisive]
    loss = clustered_mean(log_losses(log_p, target), votes.weight, votes.prompt)
    return VoteQuality(
        log_loss=loss.mean,
        log_loss_stderr=loss.stderr,
        brier=float(weight @ ((probability - target) ** 2).sum(axis=1)),
        accuracy=float(weight @ hit),
        decisive_log_loss=clustered_mean(np.logaddexp(0.0, -odds), w, prompt).mean,
        decisive_accuracy=clustered_mean((odds > 0) + 0.5 * (odds == 0), w, prompt).mean,
    )


@dataclass(frozen=True, slots=True)
class LossDifference:
    """P2L − baseline in log loss, negative where P2L is better; paired, standard errors by prompt.

    Attributes:
        log_loss, log_loss_stderr: over `n_votes` votes on `n_prompts` prompts.
        decisive_log_loss, decisive_log_loss_stderr: over the `n_decisive` votes with a winner.
    """

    log_loss: float
    log_loss_stderr: float
    n_votes: int
    n_prompts: int
    decisive_log_loss: float
    decisive_log_loss_stderr: float
    n_decisive: int


@dataclass(frozen=True, slots=True)
class CategoryLoss:
    """Log losses on the prompts of one category; `difference` is p2l − marginal, with its standard error by prompt.

    `category_marginal` is None where the votes that it would be fitted on have one category only.
    """

    category: str
    n_prompts: int
    n_votes: int
    p2l: float
    marginal: float
    constant: float
    category_marginal: float | None
    difference: float
    difference_stderr: float


def loss_difference(p2l: Array, other: Array, votes: Votes, family: Family) -> LossDifference:
    """P2L − a baseline, from their forecasts (V, 4)."""
    target = targets(votes, family)
    every = clustered_mean(log_losses(p2l, target) - log_losses(other, target), votes.weight, votes.prompt)
    keep = votes.decisive()
    gap = np.logaddexp(0.0, -_winner_odds(p2l, votes)) - np.logaddexp(0.0, -_winner_odds(other, votes))
    some = clustered_mean(gap, votes.weight[keep], votes.prompt[keep])
    return LossDifference(every.mean, every.stderr, every.n, every.n_prompts, some.mean, some.stderr, some.n)


def category_losses(log_p: Mapping[str, Array], votes: Votes, family: Family) -> tuple[CategoryLoss, ...]:
    """Log losses per category of forecasts by name, (V, 4) each; none with one category only."""
    target = targets(votes, family)
    losses = {name: log_losses(p, target) for name, p in log_p.items()}
    names, label = np.unique(np.array(votes.groups), return_inverse=True)
    rows = []
    for g, name in enumerate(names if len(names) > 1 else []):
        here = label[votes.prompt] == g
        if not here.any():
            continue  # a prompt of a score matrix on which one model ran has no votes
        w, prompt = votes.weight[here], votes.prompt[here]
        gap = clustered_mean((losses["p2l"] - losses["marginal"])[here], w, prompt)
        mean = {key: float(w @ x[here] / w.sum()) for key, x in losses.items()}
        rows.append(
            CategoryLoss(
                category=str(name),
                n_prompts=gap.n_prompts,
                n_votes=gap.n,
                p2l=mean["p2l"],
                marginal=mean["marginal"],
                constant=mean["constant"],
                category_marginal=mean.get("category_marginal"),
                difference=gap.mean,
                difference_stderr=gap.stderr,
            )
        )
    return tuple(rows)
