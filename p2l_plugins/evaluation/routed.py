"""Routing judged on a score matrix: what the chosen models score, and what the choice costs. NumPy only.

A policy is judged by the score of the model that it chooses for each prompt, in expectation where it draws. Every
difference between two policies is paired: its standard error is that of the differences on the same prompts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from p2l_plugins.errors import DataError
from p2l_plugins.evaluation.pacing import HindsightPacer, per_prompt_policy
from p2l_plugins.outcomes import Array, Ids

MARKS = (1.0, 0.99, 0.95)


@dataclass(frozen=True, slots=True)
class PolicyScore:
    """Mean score of a policy over `n` prompts and its standard error (NaN for one prompt)."""

    score: float
    stderr: float
    n: int


@dataclass(frozen=True, slots=True)
class Category:
    """Mean scores on the prompts of one category; `gain` is p2l − best_single, paired."""

    category: str
    n: int
    random: float
    best_single: float
    p2l: float
    oracle: float
    gain: float
    gain_stderr: float
    best_category: float | None = None


@dataclass(frozen=True)
class Routed:
    """Mean score when a policy chooses the model, among the models that ran on nearly all prompts.

    Attributes:
        n: prompts; candidates: models.
        p2l: the model that ranks first on the prompt answers.
        best_single: the model with the highest mean score elsewhere; where it was not run, the next that was.
        best_single_model: its name; of several, by fold, the most frequent.
        random: a candidate at random, in expectation; oracle: the highest score of the prompt.
        gain, gain_stderr: p2l − best_single, paired.
        best_category: the best model of the prompt's category; None without categories.
        category_gain, category_gain_stderr: p2l − best_category, paired.
        policies: score and standard error of each policy by name.
        picks: how often p2l chose each model, most frequent first: (model, share).
        categories: the same per category; empty where there is one only.
    """

    n: int
    candidates: int
    p2l: float
    best_single: float
    best_single_model: str
    random: float
    oracle: float
    gain: float
    gain_stderr: float
    best_category: float | None
    category_gain: float | None
    category_gain_stderr: float | None
    policies: dict[str, PolicyScore]
    picks: tuple[tuple[str, float], ...]
    categories: tuple[Category, ...]


def mean_stderr(x: Array) -> tuple[float, float]:
    """Mean of x (n,) and its standard error, NaN for n = 1."""
    return float(x.mean()), float(x.std(ddof=1) / np.sqrt(len(x))) if len(x) > 1 else float("nan")


def routed(
    models: Sequence[str],
    scores: Array,
    value: Array,
    single: Array,
    category: Array | None,
    groups: Sequence[str],
) -> Routed:
    """Routed scores.

    Args:
        models: (M,) names of the candidates.
        scores: (P, M), NaN where not run; each prompt has one score at least.
        value: (P, M) p2l's ranking: the highest that was run answers.
        single, category: (P, M) how good each model is overall and in the prompt's category, seen from other prompts
            (`choices.model_values`); `category` is None without categories.
        groups: (P,) category of each prompt.
    """
    known = ~np.isnan(scores)
    rows = np.arange(len(scores))

    def pick(v: Array) -> Ids:
        picks: Ids = np.where(known, v, -np.inf).argmax(axis=1)
        return picks

    mine, first = pick(value), pick(single)
    score = {
        "random": np.nanmean(scores, axis=1),
        "best_single": scores[rows, first],
        "p2l": scores[rows, mine],
        "oracle": np.nanmax(scores, axis=1),
    }
    if category is not None:
        score["best_category"] = scores[rows, pick(category)]
    gain = mean_stderr(score["p2l"] - score["best_single"])
    over = mean_stderr(score["p2l"] - score["best_category"]) if category is not None else (None, None)
    label = np.array(groups)
    table = []
    for name in np.unique(label) if len(set(groups)) > 1 else []:
        here = label == name
        means = {policy: float(s[here].mean()) for policy, s in score.items()}
        won, error = mean_stderr((score["p2l"] - score["best_single"])[here])
        table.append(Category(str(name), int(here.sum()), gain=won, gain_stderr=error, **means))
    return Routed(
        n=len(scores),
        candidates=len(models),
        p2l=float(score["p2l"].mean()),
        best_single=float(score["best_single"].mean()),
        best_single_model=Counter(models[i] for i in first).most_common(1)[0][0],
        random=float(score["random"].mean()),
        oracle=float(score["oracle"].mean()),
        gain=gain[0],
        gain_stderr=gain[1],
        best_category=float(score["best_category"].mean()) if category is not None else None,
        category_gain=over[0],
        category_gain_stderr=over[1],
        policies={name: PolicyScore(*mean_stderr(s), len(s)) for name, s in score.items()},
        picks=tuple((name, n / len(scores)) for name, n in Counter(models[i] for i in mine).most_common()),
        categories=tuple(table),
    )


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """What a policy gives for a budget.

    Attributes:
        budget: USD per request.
        cost: mean cost in USD per request; above the budget only where a prompt's cheapest model is.
        score, stderr: mean score and its standard error by prompt.
        difference, difference_stderr: score − the best single model's, paired.
    """

    budget: float
    cost: float
    score: float
    stderr: float
    difference: float
    difference_stderr: float


@dataclass(frozen=True, slots=True)
class Reach:
    """Where a curve first reaches a share of the best single model's score.

    Attributes:
        share: of the score.
        point: on the curve (between two budgets by drawing one of the two for each request); None where it stays below.
            The first of many points to reach a mark does so by luck too: look at its `difference_stderr`.
        cost_fraction: the point's cost over the best single model's.
    """

    share: float
    point: CurvePoint | None
    cost_fraction: float | None


@dataclass(frozen=True)
class Curve:
    """Scores of one policy over a grid of budgets.

    Attributes:
        points: one per budget.
        reaches: for each share in `MARKS`, where the curve first reaches that share of the best single model's score.
    """

    points: tuple[CurvePoint, ...]
    reaches: tuple[Reach, ...]


@dataclass(frozen=True)
class CostScore:
    """The report of `cost_score_curve`.

    Attributes:
        n: prompts; models: names of the candidates.
        best_single: the best single model: its name, and its point (budget = its mean cost, difference 0).
        curves: by policy: `paced`, `lp`, `cap` and, where given, `marginal`.
        paced_over_lp: for each budget, (mean cost, paced − lp at that same mean cost, standard error), paired.
    """

    n: int
    models: tuple[str, ...]
    best_single_model: str
    best_single: CurvePoint
    curves: dict[str, Curve]
    paced_over_lp: tuple[tuple[float, float, float], ...]


def cost_score_curve(
    models: Sequence[str],
    values: Array,
    scores: Array,
    costs: ArrayLike,
    single: ArrayLike,
    marginal: ArrayLike | None = None,
    budgets: int | Sequence[float] = 20,
) -> CostScore:
    """Score against cost of four ways to spend a budget on the same prompts.

    - `paced`: one multiplier λ for all traffic, `argmax_i v_i − λ c_i`; λ is found by bisection so that the mean cost
      is the budget. Where λ jumps over the budget, the two choices around the jump are drawn in the right proportion.
      λ depends on the values and costs of these prompts, not on their scores.
    - `lp`: for each prompt the mixture of highest value whose expected cost is at most the budget (`routing.lp`).
    - `cap`: for each prompt the model of highest value that costs at most the budget (`routing.cap`).
    - `marginal`: `lp` with values and mean costs that do not depend on the prompt.

    `lp` and `cap` take the cheapest model of a prompt where even that is above the budget.

    Args:
        models: (M,) names.
        values: (N, M) predicted value of each model on each prompt.
        scores: (N, M), NaN where not run: such a model is not chosen; each prompt has one score at least.
        costs: (N, M) or (M,) USD per request.
        single: (M,) or (N, M): how good each model is, seen from other prompts; the highest that was run is the best
            single model.
        marginal: (M,) or (N, M) values that do not depend on the prompt (in rows: one for each fold).
        budgets: USD per request, ascending; or how many, in equal ratios from the cheapest models' mean cost to the
            larger of the best single model's and that of the highest values.

    Raises:
        DataError: a cost that is negative or not a number.
    """
    shape = scores.shape
    known = ~np.isnan(scores)
    cost = np.broadcast_to(np.asarray(costs, np.float64), shape)
    if not (np.isfinite(cost) & (cost >= 0)).all():
        raise DataError("every model needs a cost for each prompt, a number of at least 0")
    value, score = np.where(known, values, -np.inf), np.where(known, scores, 0.0)
    first = np.where(known, np.broadcast_to(single, shape), -np.inf).argmax(axis=1)
    rows = np.arange(shape[0])
    target, target_cost = score[rows, first], float(cost[rows, first].mean())
    paced = HindsightPacer(value, cost)
    if isinstance(budgets, int):
        high = max(paced.most, target_cost)
        grid = np.geomspace(max(paced.least, 1e-9 * high), high, budgets) if high > 0 else np.zeros(1)
    else:
        grid = np.asarray(budgets, np.float64)

    def point(pi: Array, budget: float) -> CurvePoint:
        s = (pi * score).sum(axis=1)
        return CurvePoint(budget, float((pi * cost).sum(axis=1).mean()), *mean_stderr(s), *mean_stderr(s - target))

    def curve(policy: Callable[[float], Array]) -> tuple[Curve, list[Array]]:
        policies = [policy(float(c)) for c in grid]
        points = [point(pi, float(c)) for pi, c in zip(policies, grid, strict=True)]
        return Curve(tuple(points), tuple(reach(share, points, policies) for share in MARKS)), policies

    def reach(share: float, points: list[CurvePoint], policies: list[Array]) -> Reach:
        mark = share * float(target.mean())
        k = next((i for i, p in enumerate(points) if p.score >= mark), None)
        if k is None:
            return Reach(share, None, None)
        before = max(k - 1, 0)
        t = 1.0 if k == 0 else (mark - points[before].score) / (points[k].score - points[before].score)
        budget = t * points[k].budget + (1 - t) * points[before].budget
        there = point(t * policies[k] + (1 - t) * policies[before], budget)
        return Reach(share, there, there.cost / target_cost if target_cost > 0 else None)

    curves = {"paced": curve(paced.policy)[0]}
    curves["lp"], per_prompt = curve(lambda budget: per_prompt_policy("lp", value, cost, budget))
    curves["cap"] = curve(lambda budget: per_prompt_policy("cap", value, cost, budget))[0]
    if marginal is not None:
        plain = np.where(known, np.broadcast_to(marginal, shape), -np.inf)
        mean_cost = np.broadcast_to(cost.mean(axis=0), shape)
        curves["marginal"] = curve(lambda budget: per_prompt_policy("lp", plain, mean_cost, budget))[0]
    over = []
    for pi, p in zip(per_prompt, curves["lp"].points, strict=True):
        over.append((p.cost, *mean_stderr(((paced.policy(p.cost) - pi) * score).sum(axis=1))))
    best = CurvePoint(target_cost, target_cost, *mean_stderr(target), 0.0, 0.0)
    name = Counter(models[i] for i in first).most_common(1)[0][0]
    return CostScore(shape[0], tuple(models), name, best, curves, tuple(over))
