"""Calibration of forecasts: among votes that were given 70 %, does it happen in 70 %? NumPy only.

The expected calibration error (ECE; Naeini et al. 2015, Guo et al. 2017) of one outcome is Σ_b w_b |p_b − y_b| over
bins of the prediction, with p_b the mean prediction, y_b the observed frequency and w_b the bin's share of the weight.
Over several outcomes it is their mean (class-wise ECE, Kull et al. 2019).

The ECE of a finite sample is above 0 even for a perfect forecast, because |p_b − y_b| can't cancel. So two figures
stand beside it, both from the standard error s_b of p_b − y_b with votes clustered by prompt: `expected` =
Σ_b w_b s_b √(2/π), the ECE that a perfectly calibrated forecast would show on this sample (the mean of a half-normal),
and the debiased root mean square error √max(0, Σ_b w_b ((p_b − y_b)² − s_b²)) (Bröcker 2012; Kumar et al. 2019).

Which side of a vote is `a` is arbitrary. So `win` pools both sides (each vote gives two forecasts), and `decisive`
names the likelier side: P(it wins | there is a winner).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from p2l_plugins.errors import DataError
from p2l_plugins.evaluation.quality import decisive_log_odds, targets
from p2l_plugins.outcomes import BAD, OUTCOMES, TIE, A, Array, B, Family, Ids, Mask, sigmoid
from p2l_plugins.votes.report import wilson
from p2l_plugins.votes.votes import Votes

Bins = Literal["equal-mass", "equal-width"]
BINS = 15
HISTOGRAM = 20


@dataclass(frozen=True, slots=True)
class Bin:
    """Forecasts of similar size.

    Attributes:
        predicted: their weighted mean.
        observed: weighted frequency of the outcome.
        low, high: 95 % interval of `observed`: Wilson's, for the number of independent observations that would give
            the standard error by prompt (Korn & Graubard 1998); where the outcome never or always happened, that number
            is the number of prompts.
        stderr: standard error by prompt of `observed − predicted`, at least that of independent votes.
        share: of the whole weight.
        n: forecasts.
        n_prompts: prompts they come from.
    """

    predicted: float
    observed: float
    low: float
    high: float
    stderr: float
    share: float
    n: int
    n_prompts: int


@dataclass(frozen=True)
class Calibration:
    """Calibration of the forecasts of one outcome.

    Attributes:
        error: ECE.
        expected: the ECE that a perfectly calibrated forecast would show on this sample.
        debiased_rms: root mean square calibration error without its sampling bias.
        n: forecasts; n_prompts: prompts they come from.
        bins: not empty, in the order of the prediction.
        histogram: share of the weight in each of 20 bins of width 0.05.
    """

    error: float
    expected: float
    debiased_rms: float
    n: int
    n_prompts: int
    bins: tuple[Bin, ...]
    histogram: tuple[float, ...]


@dataclass(frozen=True)
class Calibrations:
    """Calibration of a forecast of votes.

    Attributes:
        error: mean ECE over the family's outcomes, the two sides pooled: (2 win + tie + both bad) / 4 for `grk`.
        expected: the same mean of what a perfectly calibrated forecast would show.
        classes: `win` (both sides pooled), `model_a`, `model_b`, `tie`, `tie (bothbad)` as the family has them, and
            `decisive`: P(the likelier side wins | there is a winner), absent where no vote has one.
    """

    error: float
    expected: float
    classes: dict[str, Calibration]


def calibration(
    predicted: Array,
    observed: Array,
    weight: Array,
    prompt: Ids,
    bins: int = BINS,
    kind: Bins = "equal-mass",
) -> Calibration:
    """Calibration of forecasts of one event.

    Args:
        predicted: (n,) probabilities.
        observed: (n,) 1 where it happened, 0 where not; 0.5 for a tie of a family without ties.
        weight: (n,) positive.
        prompt: (n,) whole numbers ≥ 0; equal ones are one cluster.
        bins: at most so many. Equal predictions always share a bin.
        kind: `equal-mass` (each with about the same weight) or `equal-width`.

    Raises:
        DataError: no forecasts, or fewer than one bin.
    """
    if not len(predicted) or bins < 1:
        raise DataError(f"calibration needs forecasts and bins; there are {len(predicted)} and {bins}")
    inner = np.arange(1, bins) / bins
    if kind == "equal-mass" and bins > 1:
        equal = bool((weight == weight[0]).all())
        inner = (
            np.quantile(predicted, inner)
            if equal
            else np.quantile(predicted, inner, weights=weight, method="inverted_cdf")
        )
    label = np.searchsorted(inner, predicted)
    clusters = int(prompt.max()) + 1
    cell = label * clusters + prompt
    shape = (bins, clusters)

    def by_prompt(x: Array) -> Array:
        return np.bincount(cell, x, minlength=bins * clusters).astype(np.float64).reshape(shape)

    w, wp, wy = by_prompt(weight), by_prompt(weight * predicted), by_prompt(weight * observed)
    count = np.bincount(label, minlength=bins)
    chance = np.bincount(label, weight**2 * predicted * (1 - predicted), minlength=bins)
    present = np.bincount(cell, minlength=bins * clusters).reshape(shape) > 0
    rows = [
        _bin(w[b], wp[b], wy[b], float(chance[b]), int(count[b]), present[b], float(weight.sum()))
        for b in np.flatnonzero(count)
    ]
    share, gap, error = (
        np.array(x) for x in zip(*((r.share, r.observed - r.predicted, r.stderr) for r in rows), strict=True)
    )
    histogram = np.bincount(np.minimum((predicted * HISTOGRAM).astype(np.int64), HISTOGRAM - 1), weight, HISTOGRAM)
    return Calibration(
        error=float(share @ np.abs(gap)),
        expected=float(share @ error * np.sqrt(2 / np.pi)),
        debiased_rms=float(np.sqrt(max(0.0, share @ (gap**2 - error**2)))),
        n=len(predicted),
        n_prompts=int(present.any(axis=0).sum()),
        bins=tuple(rows),
        histogram=tuple((histogram / weight.sum()).tolist()),
    )


def _bin(w: Array, wp: Array, wy: Array, chance: float, n: int, present: Mask, whole: float) -> Bin:
    """One bin from its sums per prompt, each (G,): weight, weight · predicted, weight · observed.

    `chance` is the variance of the last sum if the forecasts were right and the votes independent.
    """
    total = float(w.sum())
    predicted, observed = float(wp.sum() / total), float(wy.sum() / total)
    groups = int(present.sum())
    # how many independent observations the bin is worth, at least one and at most n
    spread = _stderr(wy - observed * w, total, groups)
    worth = float(groups) if spread == 0.0 else observed * (1 - observed) / spread**2
    if groups == 1:
        worth = 1.0
    worth = min(max(worth, 1.0), float(n))
    # an outcome that never happened leaves no spread to see, so not below what independent votes would show
    stderr = max(_stderr(wy - wp - (observed - predicted) * w, total, groups), float(np.sqrt(chance)) / total)
    if groups == 1:
        stderr = float(np.sqrt(predicted * (1 - predicted)))
    low, high = wilson(observed * worth, worth)
    return Bin(
        predicted=predicted,
        observed=observed,
        low=low,
        high=high,
        stderr=stderr,
        share=total / whole,
        n=n,
        n_prompts=groups,
    )


def _stderr(residual: Array, total: float, groups: int) -> float:
    """Standard error by prompt of a ratio, from residuals summed per prompt; 0 for one prompt."""
    return float(np.sqrt(groups / (groups - 1) * (residual @ residual)) / total) if groups > 1 else 0.0


def calibrations(
    log_p: Array, votes: Votes, family: Family, bins: int = BINS, kind: Bins = "equal-mass"
) -> Calibrations:
    """Calibration of a forecast (V, 4), per outcome and overall."""
    p, y = np.exp(log_p), targets(votes, family)
    w, prompt = votes.weight, votes.prompt
    classes = {
        "win": calibration(
            np.concatenate([p[:, A], p[:, B]]),
            np.concatenate([y[:, A], y[:, B]]),
            np.concatenate([w, w]),
            np.concatenate([prompt, prompt]),
            bins,
            kind,
        )
    }
    outcomes = {"rk": (A, B, TIE), "grk": (A, B, TIE, BAD)}.get(family, (A, B))
    for k in outcomes:
        classes[OUTCOMES[k]] = calibration(p[:, k], y[:, k], w, prompt, bins, kind)
    decisive = votes.decisive()
    if decisive.any():
        odds = decisive_log_odds(log_p[decisive])
        a_won = votes.outcome[decisive] == A
        happened = np.where(odds == 0, 0.5, a_won == (odds > 0))
        classes["decisive"] = calibration(sigmoid(np.abs(odds)), happened, w[decisive], prompt[decisive], bins, kind)
    pooled = [classes["win"], classes["win"], *(classes[OUTCOMES[k]] for k in outcomes[2:])]
    return Calibrations(
        error=float(np.mean([c.error for c in pooled])),
        expected=float(np.mean([c.expected for c in pooled])),
        classes=classes,
    )
