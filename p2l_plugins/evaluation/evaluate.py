"""How good a P2L is on held-out votes, beside baselines that see no prompt text. NumPy only.

`quality` has the measures, `calibration` the calibration errors, `baselines` what P2L is compared with, `routed` the
judgement of choices; here they make one report.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from p2l_plugins.errors import DataError
from p2l_plugins.evaluation.baselines import FOLDS, Forecasts, Parts, fit_forecasts
from p2l_plugins.evaluation.calibration import BINS, Bins, Calibrations, calibrations
from p2l_plugins.evaluation.choices import Choices
from p2l_plugins.evaluation.quality import (
    CategoryLoss,
    Difference,
    VoteQuality,
    category_losses,
    difference,
    impossible,
    log_losses,
    targets,
    vote_log_probabilities,
    vote_quality,
)
from p2l_plugins.evaluation.routed import CostScore, Routed, cost_score_curve, routed
from p2l_plugins.outcomes import Array, Family, Mask, has_eta
from p2l_plugins.routing import policies
from p2l_plugins.scoring.scorer import Scores
from p2l_plugins.votes.votes import Votes


@dataclass(frozen=True)
class Evaluation:
    """The report of `evaluate_votes`.

    Attributes:
        n_prompts, n_votes, n_decisive: what was judged; decisive votes have a winner.
        n_baseline_prompts: prompts of the baseline votes; None where the baselines are cross-fitted.
        p2l, marginal, constant: quality of the forecasts; category_marginal: None with one category only.
        differences: p2l − each baseline, by name.
        calibration: calibration of each forecast, by name.
        categories: log loss per category; empty with one only.
        routed: routed score, of a score matrix.
        curve: score against cost, where costs were given.
        notes: what to know when reading the figures.
    """

    n_prompts: int
    n_votes: int
    n_decisive: int
    p2l: VoteQuality
    marginal: VoteQuality
    constant: VoteQuality
    n_baseline_prompts: int | None = None
    category_marginal: VoteQuality | None = None
    differences: dict[str, Difference] = field(default_factory=dict)
    calibration: dict[str, Calibrations] = field(default_factory=dict)
    categories: tuple[CategoryLoss, ...] = ()
    routed: Routed | None = None
    curve: CostScore | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def forecasts(self) -> dict[str, VoteQuality]:
        """The judged forecasts by name, P2L first."""
        named = {
            "p2l": self.p2l,
            "marginal": self.marginal,
            "category_marginal": self.category_marginal,
            "constant": self.constant,
        }
        return {name: quality for name, quality in named.items() if quality is not None}

    def to_dict(self, tables: bool = True) -> dict[str, Any]:
        """JSON-ready; a figure that is not a number is null. Without `tables` only what fits a manifest."""
        result = asdict(self)
        for name in ("category_marginal", "routed", "curve"):
            if result[name] is None:
                del result[name]
        if not tables:
            for name in ("calibration", "categories", "curve"):
                result.pop(name, None)
            for name in ("policies", "picks", "categories"):
                result.get("routed", {}).pop(name, None)
        rounded: dict[str, Any] = _plain(result)
        return rounded

    def to_markdown(self, bins: bool = False) -> str:
        """Tables for a terminal; `bins` adds the bins of P2L's calibration."""
        from p2l_plugins.evaluation.report import evaluation_tables

        return evaluation_tables(self, bins)


def _plain(value: Any) -> Any:
    """Floats rounded to 6 digits (small ones to 6 significant), NaN as None, tuples as lists."""
    if isinstance(value, dict):
        return {key: _plain(x) for key, x in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(x) for x in value]
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        return round(value, 6) if abs(value) >= 0.1 or value == 0 else float(f"{value:.6g}")
    return value


def evaluate_votes(
    scores: Scores,
    votes: Votes,
    baseline: Votes | None = None,
    bins: int = BINS,
    kind: Bins = "equal-mass",
    costs: Array | None = None,
    objective: str = "win_rate",
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
    parts = Parts.of(mine.groups, None if baseline is None else source.groups)
    fitted = fit_forecasts(parts, source, family)
    raw_eta = scores.raw_eta.astype(np.float64) if has_eta(family) and scores.raw_eta is not None else None
    log_p = {
        "p2l": vote_log_probabilities(mine, scores.coefs.astype(np.float64), raw_eta, family),
        "marginal": vote_log_probabilities(mine, *fitted.marginal, family),
        "constant": fitted.constant[mine.prompt],
    }
    if fitted.category is not None:
        log_p["category_marginal"] = vote_log_probabilities(mine, *fitted.category, family)
    target = targets(mine, family)
    losses, calibrated, quality = judge_forecasts(log_p, mine, family, bins, kind)
    notes = _notes(mine, baseline, family)
    for name, p in log_p.items():
        if n := impossible(p, target):
            notes.append(f"{name} held the outcome of {n} votes for impossible; each counts as −log 1e-300 = 691")
    routing_report, curve = None, None
    if mine.scores is not None:
        if costs is not None:
            curve = _curve(scores, mine, source, parts, fitted, costs, objective)
        try:
            routing_report = _routed(scores, mine, source, parts)
        except DataError as error:
            notes.append(str(error))
    return Evaluation(
        n_prompts=len(mine.prompts),
        n_votes=len(mine),
        n_decisive=int(mine.decisive().sum()),
        n_baseline_prompts=None if baseline is None else len(baseline.prompts),
        p2l=quality["p2l"],
        marginal=quality["marginal"],
        constant=quality["constant"],
        category_marginal=quality.get("category_marginal"),
        differences={name: difference(log_p, losses, name, mine) for name in quality if name != "p2l"},
        calibration=calibrated,
        categories=category_losses(losses, mine),
        routed=routing_report,
        curve=curve,
        notes=notes,
    )


def judge_forecasts(
    log_p: Mapping[str, Array], votes: Votes, family: Family, bins: int = BINS, kind: Bins = "equal-mass"
) -> tuple[dict[str, Array], dict[str, Calibrations], dict[str, VoteQuality]]:
    """Losses (V,) of each vote, calibration and quality of forecasts of the same votes.

    Args:
        log_p: by name, (V, 4) log-probabilities in the order of `OUTCOMES`.
    """
    target = targets(votes, family)
    losses = {name: log_losses(p, target) for name, p in log_p.items()}
    calibrated = {name: calibrations(p, votes, family, bins, kind) for name, p in log_p.items()}
    quality = {}
    for name, p in log_p.items():
        decisive = calibrated[name].classes.get("decisive")
        quality[name] = replace(
            vote_quality(p, votes, family),
            calibration_error=calibrated[name].error,
            decisive_calibration_error=math.nan if decisive is None else decisive.error,
        )
    return losses, calibrated, quality


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
    scores: Scores, votes: Votes, source: Votes, parts: Parts, fitted: Forecasts, costs: Array, objective: str
) -> CostScore:
    choices = _choices(votes, source, parts, np.asarray(np.isfinite(costs).all(axis=0)))

    def value(coefs: Array, raw_eta: Any) -> Array:
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
