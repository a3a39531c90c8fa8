"""What an adoption is worth, from its cross-validation: forecasts and policies beside baselines, and how many more
prompts would tell.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from onnx_export.adopt_votes import Evidence
from onnx_export.joint import JointTask, Known, Strength
from onnx_export.shrinkage import CERTAIN, DIFFER, Choice, CrossFit, Folds, Judge, standard_error
from p2l_plugins.evaluation.baselines import Forecasts, Parts, fit_forecasts
from p2l_plugins.evaluation.choices import COVERAGE, model_values
from p2l_plugins.evaluation.gains import Gain, gain_over
from p2l_plugins.evaluation.quality import loss_difference, vote_log_probabilities, vote_quality
from p2l_plugins.evaluation.routed import CostScore, cost_score_curve
from p2l_plugins.outcomes import Array, Family, Ids, Mask
from p2l_plugins.routing.policies import win_rates

#: Shares of the prompts of the learning curve.
SHARES = (0.25, 0.5, 1.0)
#: The learning curve is followed to so many times the prompts.
HORIZON = 64
#: A saving is worth a sentence where it is this share of the cost at least.
SAVING = 0.1
#: Budgets of the curve of score against cost.
BUDGETS = 8
#: Prompts of that curve at most, drawn at random: every budget is decided for each of them.
CURVE_PROMPTS = 800


@dataclass(frozen=True)
class Setting:
    """What an adoption is judged with.

    Attributes:
        parts: folds by prompt, and categories.
        forecasts: constant, marginal and marginal per category, each prompt's from the other folds.
        single, category: (P,) the best single model and the best of the category, seen from the other folds.
    """

    parts: Parts
    forecasts: Forecasts
    single: Ids
    category: Ids | None

    @classmethod
    def of(cls, evidence: Evidence, family: Family) -> Setting:
        """From the votes. Best models are those of the highest scores of a matrix, or of the marginal leaderboard."""
        votes = evidence.votes
        parts = Parts.of(votes.groups)
        forecasts = fit_forecasts(parts, votes, family)
        by_category = None if forecasts.category is None else forecasts.category[0]
        single = forecasts.marginal[0]
        if votes.scores is not None:
            may = np.broadcast_to(evidence.routed, votes.scores.shape)
            single, by_category = model_values(parts, votes.scores, may)
        top = _top(single, evidence)
        return cls(parts, forecasts, top, None if by_category is None else _top(by_category, evidence))


@dataclass(frozen=True)
class Forecast:
    """Log loss of a forecast and what it is less than the marginal's (negative: better), with standard errors."""

    name: str
    log_loss: float
    stderr: float
    difference: float
    difference_stderr: float


@dataclass(frozen=True)
class Policy:
    """Mean score of a policy (NaN where votes do not say), and its gain over the best single model."""

    name: str
    score: float
    gain: Gain


@dataclass(frozen=True)
class Point:
    """A point of the learning curve: prompts that were fitted to, gain in routing and in log loss per vote."""

    prompts: int
    gain: Gain
    told: float
    told_stderr: float


@dataclass(frozen=True)
class Tuned:
    """What a fine-tuned backbone is worth, on prompts that it was not trained on, beside the frozen one.

    Attributes:
        prompts: judged.
        log_loss, frozen_log_loss: per vote; less: what the first is less, with its standard error.
        gain, frozen_gain: in routing over the best single model; over: of the one over the other.
        taken: by the rule of `adopt_trained`.
        folds, seconds: judged ones, and what their trainings took.
    """

    prompts: int
    log_loss: float
    frozen_log_loss: float
    less: float
    less_stderr: float
    gain: Gain
    frozen_gain: Gain
    over: Gain
    taken: bool
    folds: int = 0
    seconds: float = 0.0

    def record(self) -> dict[str, Any]:
        """What the manifest keeps."""
        return {key: _plain(value) for key, value in asdict(self).items()}


@dataclass(frozen=True)
class Figures:
    """All figures of an adoption.

    Attributes:
        forecasts, policies: the adopted bundle's first.
        curve: the learning curve; more: how many more prompts would tell; None: not within `HORIZON` times as many.
        costs: score against cost of routing by prompt; None without prices or without a score matrix.
        saves: the budget at which `paced` keeps the best single model's score, and the share of its cost; else None.
    """

    prompts: int
    votes: int
    best_single: str
    forecasts: tuple[Forecast, ...]
    policies: tuple[Policy, ...]
    curve: tuple[Point, ...]
    more: int | None
    costs: CostScore | None = None
    saves: tuple[float, float] | None = None

    @property
    def followed(self) -> bool:
        """Whether there is a learning curve whose gain has an error, so that it can be followed."""
        return any(p.gain.known and p.gain.stderr > 0 for p in self.curve)

    def record(self) -> dict[str, Any]:
        """What the manifest keeps: no tables of costs."""
        kept = asdict(self)
        del kept["costs"]
        return {key: _plain(value) for key, value in kept.items()}


def judge(evidence: Evidence, task: JointTask, setting: Setting) -> Judge:
    """What strengths are chosen by."""
    inside = evidence.routed[task.a] & evidence.routed[task.b]
    counted = inside if inside.any() else np.ones_like(inside)
    return Judge(evidence.scores, setting.single, evidence.routed, counted)


def forecasts(evidence: Evidence, setting: Setting, fits: dict[str, CrossFit], family: Family) -> list[Forecast]:
    """Log losses of fits by name, and of the baselines."""
    votes = evidence.votes.take(evidence.counted)
    plain = setting.forecasts
    log_p = {name: vote_log_probabilities(votes, fit.coefs, fit.raw_eta, family) for name, fit in fits.items()}
    log_p["marginal (one leaderboard)"] = marginal = vote_log_probabilities(votes, *plain.marginal, family)
    if plain.category is not None:
        log_p["marginal per category"] = vote_log_probabilities(votes, *plain.category, family)
    log_p["constant"] = plain.constant[votes.prompt]
    rows = []
    for name, p in log_p.items():
        quality, gap = vote_quality(p, votes, family), loss_difference(p, marginal, votes, family)
        rows.append(Forecast(name, quality.log_loss, quality.log_loss_stderr, gap.log_loss, gap.log_loss_stderr))
    return rows


def policies(evidence: Evidence, setting: Setting, fits: dict[str, CrossFit]) -> list[Policy]:
    """Scores of what fits would choose, and of the baselines."""
    scores = evidence.scores
    full = evidence.votes.scores is not None
    base = np.arange(len(scores)), setting.single
    level = float(np.nanmean(scores[base])) if full and not np.isnan(scores[base]).all() else float("nan")
    rows = [Policy(name, level + fit.gain.mean, fit.gain) for name, fit in fits.items()]
    picks = {"best single": setting.single}
    if setting.category is not None:
        picks["best per category"] = setting.category
    picks["marginal (one leaderboard)"] = _top(setting.forecasts.marginal[0], evidence)
    for name, pick in picks.items():
        gain = gain_over(scores, pick, setting.single)
        rows.append(Policy(name, level + gain.mean, gain))
    return rows


def learning_curve(task: JointTask, known: Known, setting: Setting, by: Judge, choice: Choice) -> list[Point]:
    """Gains of fits to parts of the prompts, judged on all in the same folds; the last point is the choice's own."""
    strength = choice.promising.strength
    if not strength.differ:
        strength = Strength(strength.own, DIFFER[1], strength.common)
    order = np.random.default_rng(0).permutation(len(setting.single))
    votes = float(task.weight[by.counted].sum())
    points = []
    for share in SHARES:
        keep = order < share * len(order)
        if keep.sum() < 4 * setting.parts.count:
            continue
        folds = Folds(task, known, setting.parts.judged, keep)
        level = by.cross_fit(choice.level.strength, task, *folds.fit(choice.level.strength))
        fit = by.cross_fit(strength, task, *folds.fit(strength))
        saved = level.loss - fit.loss
        size = round(share * len(order) * (1 - 1 / setting.parts.count))
        points.append(Point(size, fit.gain, float(saved.sum()) / votes, standard_error(saved) / votes))
    return points


def prompts_to_tell(points: Sequence[Point], n: int) -> int | None:
    """How many more prompts would show a gain of two standard errors; None: not `HORIZON` times as many.

    The gain is followed as g(m) = a − b/m in the prompts m that a fit sees, by least squares with b ≥ 0; its standard
    error falls as 1/√m.
    """
    seen = [p for p in points if p.gain.known]
    if not seen or seen[-1].gain.stderr == 0:
        return None
    last = seen[-1]
    b, a = 0.0, last.gain.mean
    if len(seen) > 1:
        x = np.array([1.0 / p.prompts for p in seen])
        g = np.array([p.gain.mean for p in seen])
        b = max(0.0, -float(np.polyfit(x, g, 1)[0]))
        a = float((g + b * x).mean())
    for times in np.geomspace(1.0, HORIZON, 61):
        m = times * last.prompts
        if a - b / m >= CERTAIN * last.gain.stderr / np.sqrt(times):
            return int(np.ceil((times - 1.0) * n))
    return None


def cost_curve(
    evidence: Evidence, setting: Setting, fit: CrossFit, costs: Array, family: Family
) -> tuple[CostScore | None, tuple[float, float] | None]:
    """Score against cost of routing by a fit, and where `paced` keeps the best single model's score for less.

    Args:
        costs: (P, C) USD per request of the new bundle's models; NaN: no price.
    """
    scores = evidence.votes.scores
    if scores is None:
        return None, None
    n = evidence.candidates
    ran = (~np.isnan(scores[:, :n])).mean(axis=0) >= COVERAGE
    columns = np.flatnonzero(np.isfinite(costs).all(axis=0) & ran)
    if columns.size < 2:
        return None, None
    some = scores[:, columns]
    rows: Mask = np.asarray(~np.isnan(some).all(axis=1))
    rows[np.random.default_rng(0).permutation(len(rows))[CURVE_PROMPTS:]] = False
    single = model_values(setting.parts, scores[:, columns], ~np.isnan(some))[0]

    def values(coefs: Array, raw_eta: Array | None) -> Array:
        return win_rates(family, coefs[rows][:, columns], None if raw_eta is None else raw_eta[rows])

    plain = setting.forecasts.marginal
    names = [evidence.models[i] for i in columns]
    value, usual = values(fit.coefs, fit.raw_eta), values(*plain)
    curve = cost_score_curve(names, value, some[rows], costs[rows][:, columns], single[rows], usual, BUDGETS)
    reach = next(r for r in curve.curves["paced"].reaches if r.share == 1.0)
    if reach.point is None or reach.cost_fraction is None or reach.cost_fraction > 1 - SAVING:
        return curve, None
    plainly = next(r for r in curve.curves["marginal"].reaches if r.share == 1.0).cost_fraction
    if plainly is not None and plainly <= reach.cost_fraction:
        return curve, None
    return curve, (reach.point.cost, reach.cost_fraction)


def _top(values: Array, evidence: Evidence) -> Ids:
    chosen: Ids = np.where(evidence.routed, values, -np.inf).argmax(axis=1)
    return chosen


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(x) for key, x in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(x) for x in value]
    if isinstance(value, float):
        return round(value, 6) if np.isfinite(value) else None
    return value
