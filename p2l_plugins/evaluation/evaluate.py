"""How good a P2L is on held-out votes, beside baselines that see no prompt text. NumPy only.

`quality` has the measures, `calibration` the calibration errors, `baselines` what P2L is compared with, `routed` the
judgement of choices; here they make one report.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from p2l_plugins.errors import DataError
from p2l_plugins.evaluation.baselines import FOLDS, Forecasts, Parts, fit_forecasts
from p2l_plugins.evaluation.calibration import BINS, Bins, calibrations
from p2l_plugins.evaluation.choices import Choices
from p2l_plugins.evaluation.quality import (
    category_losses,
    impossible,
    loss_difference,
    targets,
    vote_log_probabilities,
    vote_quality,
)
from p2l_plugins.evaluation.report import Evaluation
from p2l_plugins.evaluation.routed import CostScore, Routed, cost_score_curve, routed
from p2l_plugins.outcomes import Array, Family, Mask, Numbers, has_eta
from p2l_plugins.routing import policies
from p2l_plugins.scoring.scorer import Scores
from p2l_plugins.votes.votes import Votes


def evaluate_votes(
    scores: Scores,
    votes: Votes,
    baseline: Votes | None = None,
    bins: int = BINS,
    kind: Bins = "equal-mass",
    costs: Array | None = None,
    objective: policies.Objective = "win_rate",
    seen: Mask | None = None,
) -> Evaluation:
    """Judges scores of the prompts of held-out votes.

    Args:
        scores: of `votes.prompts`, in their order.
        votes: held-out votes; their models must be the bundle's.
        baseline: votes that the baselines are fitted on and best single models chosen on. None: cross-fitted on `votes`
            in five folds by prompt, which favours them, because they see the same source.
        bins, kind: of the calibration.
        costs: (P, M) USD per request for the bundle's models, NaN for models that can't be chosen: adds the curve of
            score against cost of a score matrix.
        seen: (P,) which of the votes' prompts were seen in training; where some were, the others are judged apart, too.
            None: not known.
        objective: what the curve's policies maximise: `win_rate` against the candidates, or `usable` (grk only).

    Raises:
        DataError: a model that the bundle does not have; no votes; with costs, fewer than two models to choose from.
        ConfigError: as `policies.values`.
    """
    if not len(votes):
        raise DataError("there are no votes to judge")
    if costs is not None and votes.scores is None:
        raise DataError("the curve of score against cost needs a score matrix; this is a votes file")
    family = scores.family
    mine = votes.renamed(scores.models)
    source = mine if baseline is None else baseline.renamed(scores.models)
    parts = _parts(votes, baseline)
    fitted = fit_forecasts(parts, source, family)
    raw_eta = scores.raw_eta.astype(np.float64) if has_eta(family) and scores.raw_eta is not None else None
    log_p = _forecasts(
        vote_log_probabilities(mine, scores.coefs.astype(np.float64), raw_eta, family), fitted, mine, family
    )
    if fitted.category is not None:
        log_p["category_marginal"] = vote_log_probabilities(mine, *fitted.category, family)
    notes = _notes(mine, baseline, family)
    for name, p in log_p.items():
        if n := impossible(p, targets(mine, family)):
            notes.append(f"{name} held the outcome of {n} votes for impossible; each counts as −log 1e-300 = 691")
    routing_report, curve = None, None
    if mine.scores is not None:
        if costs is not None:
            curve = _curve(scores, mine, source, parts, fitted, costs, objective)
        try:
            routing_report = _routed(scores, mine, source, parts)
        except DataError as error:
            notes.append(str(error))
    report = _judged(log_p, mine, baseline, family, bins, kind)
    categories = category_losses(log_p, mine, family)
    report = replace(report, categories=categories, routed=routing_report, curve=curve, notes=notes)

    def judge(kept: Votes, rows: Mask) -> Evaluation:
        prices = None if costs is None else costs[rows]
        nothing = np.zeros(len(kept.prompts), np.bool_)
        return evaluate_votes(scores.select(rows), kept, baseline, bins, kind, prices, objective, nothing)

    return with_unseen(report, votes, seen, judge)


def with_unseen(
    report: Evaluation, votes: Votes, seen: Mask | None, judge: Callable[[Votes, Mask], Evaluation]
) -> Evaluation:
    """The report, with how many prompts were seen in training, and the others judged apart where some were.

    Args:
        report: on all votes.
        votes: that it judges.
        seen: (P,) which prompts were seen; None: not known.
        judge: makes the report on some of the votes, given with the (P,) mask of their prompts.
    """
    if seen is None:
        note = "the bundle does not say which prompts it was trained on; on those, a forecast looks better than it is"
        return replace(report, notes=[*report.notes, note])
    if not (count := int(seen.sum())):
        return replace(report, n_seen=0)
    left = votes.select(~seen)
    told = "they are judged apart below" if len(left) else "none are left to judge"
    note = (
        f"the bundle was trained on {count} of these {len(seen)} prompts, so the figures on all of them are no measure "
        f"of how good it is; on the others: {told}"
    )
    unseen = judge(left, ~seen) if len(left) else None
    return replace(report, n_seen=count, unseen=unseen, notes=[note, *report.notes])


def evaluate_probabilities(
    log_p: Array, votes: Votes, baseline: Votes | None, family: Family, seen: Mask | None = None
) -> Evaluation:
    """Judges a forecast that is given as probabilities beside the marginal and the constant, as `evaluate_votes` does.

    Args:
        log_p: (V, 4) log-probabilities in the order of `OUTCOMES`, −inf for outcomes that the family does not have.
        votes: held-out votes.
        baseline: votes that the others are fitted on, with the same models; None: in folds of `votes` by prompt.
        family: which outcomes there are.
        seen: as of `evaluate_votes`.
    """
    fitted = fit_forecasts(_parts(votes, baseline), votes if baseline is None else baseline, family)
    report = _judged(_forecasts(log_p, fitted, votes, family), votes, baseline, family)

    def judge(kept: Votes, rows: Mask) -> Evaluation:
        nothing = np.zeros(len(kept.prompts), np.bool_)
        return evaluate_probabilities(log_p[rows[votes.prompt]], kept, baseline, family, nothing)

    return with_unseen(report, votes, seen, judge)


def _parts(votes: Votes, baseline: Votes | None) -> Parts:
    return Parts.of(votes.groups, None if baseline is None else baseline.groups)


def _forecasts(p2l: Array, fitted: Forecasts, votes: Votes, family: Family) -> dict[str, Array]:
    """The forecasts by name, (V, 4) each."""
    marginal = vote_log_probabilities(votes, *fitted.marginal, family)
    return {"p2l": p2l, "marginal": marginal, "constant": fitted.constant[votes.prompt]}


def _judged(
    log_p: Mapping[str, Array],
    votes: Votes,
    baseline: Votes | None,
    family: Family,
    bins: int = BINS,
    kind: Bins = "equal-mass",
) -> Evaluation:
    """The report on forecasts of the same votes by name, (V, 4) each: all but categories and routing."""
    calibrated = {name: calibrations(p, votes, family, bins, kind) for name, p in log_p.items()}
    quality = {}
    for name, p in log_p.items():
        decisive = calibrated[name].classes.get("decisive")
        quality[name] = replace(
            vote_quality(p, votes, family),
            calibration_error=calibrated[name].error,
            decisive_calibration_error=math.nan if decisive is None else decisive.error,
        )
    return Evaluation(
        n_prompts=len(votes.prompts),
        n_votes=len(votes),
        n_decisive=int(votes.decisive().sum()),
        n_baseline_prompts=None if baseline is None else len(baseline.prompts),
        p2l=quality["p2l"],
        marginal=quality["marginal"],
        constant=quality["constant"],
        category_marginal=quality.get("category_marginal"),
        differences={
            name: loss_difference(log_p["p2l"], p, votes, family) for name, p in log_p.items() if name != "p2l"
        },
        calibration=calibrated,
    )


def _notes(votes: Votes, baseline: Votes | None, family: Family) -> list[str]:
    notes = []
    if baseline is None:
        notes.append(
            f"the baselines are cross-fitted on the same file in {FOLDS} folds by prompt; best single models are "
            "chosen on the other folds, never on the prompts that are judged"
        )
    elif shared := len(set(votes.prompts) & set(baseline.prompts)):
        notes.append(f"{shared} of the {len(votes.prompts)} prompts are in the baseline votes too, which favours it")
    ties = int((~votes.decisive()).sum())
    if ties and not has_eta(family):
        notes.append(f"the family {family} has no ties: each of the {ties} counts half a win for each side")
    if votes.scores is None:
        notes.append("routing is judged on score matrices; this is a votes file")
    elif baseline is not None and baseline.scores is None:
        notes.append(
            "the baseline votes hold no scores: best single models are chosen on the other folds of the matrix"
        )
    return notes


def _choices(votes: Votes, source: Votes, parts: Parts, allowed: Mask | None = None) -> Choices:
    """Best single models are chosen on the baseline's scores, or where it has none on the matrix's other folds."""
    assert votes.scores is not None  # noqa: S101
    if source.scores is None:
        return Choices.of(votes.scores, votes.scores, Parts.of(votes.groups), allowed)
    return Choices.of(votes.scores, source.scores, parts, allowed)


def _routed(scores: Scores, votes: Votes, source: Votes, parts: Parts) -> Routed:
    choices = _choices(votes, source, parts)
    names = [scores.models[i] for i in choices.columns]
    groups = [g for g, keep in zip(votes.groups, choices.rows, strict=True) if keep]
    value = choices.cut(scores.coefs.astype(np.float64))
    return routed(names, choices.scores, value, choices.single, choices.category, groups)


def _curve(
    scores: Scores,
    votes: Votes,
    source: Votes,
    parts: Parts,
    fitted: Forecasts,
    costs: Array,
    objective: policies.Objective,
) -> CostScore:
    choices = _choices(votes, source, parts, np.asarray(np.isfinite(costs).all(axis=0)))

    def value(coefs: Array, raw_eta: Numbers | None) -> Array:
        eta = None if raw_eta is None else np.asarray(raw_eta, np.float64)[choices.rows]
        return policies.values(objective, scores.family, choices.cut(coefs), eta)

    return cost_score_curve(
        [scores.models[i] for i in choices.columns],
        value(scores.coefs.astype(np.float64), scores.raw_eta),
        choices.scores,
        choices.cut(costs),
        choices.single,
        value(*fitted.marginal),
    )
