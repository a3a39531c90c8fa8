"""The report of an evaluation: its figures, as JSON, and as markdown tables that read well in a terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from p2l_plugins.cells import padded_table
from p2l_plugins.evaluation.calibration import Calibrations
from p2l_plugins.evaluation.quality import CategoryLoss, LossDifference, VoteQuality
from p2l_plugins.evaluation.routed import CostScore, Routed

NAMES = {"category_marginal": "category marginal", "best_single": "best single", "best_category": "best per category"}
CLASSES = {"model_a": "a wins", "model_b": "b wins", "tie (bothbad)": "both bad", "decisive": "likelier side, decisive"}
CATEGORIES = 30  # rows of a table per category; JSON has all
PICKS = 5


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate_votes` found.

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
        n_seen: prompts that the bundle was trained on; None where it does not say.
        unseen: the report on the other prompts, where it was trained on some and not on all.
    """

    n_prompts: int
    n_votes: int
    n_decisive: int
    p2l: VoteQuality
    marginal: VoteQuality
    constant: VoteQuality
    n_baseline_prompts: int | None = None
    category_marginal: VoteQuality | None = None
    differences: dict[str, LossDifference] = field(default_factory=dict)
    calibration: dict[str, Calibrations] = field(default_factory=dict)
    categories: tuple[CategoryLoss, ...] = ()
    routed: Routed | None = None
    curve: CostScore | None = None
    notes: list[str] = field(default_factory=list)
    n_seen: int | None = None
    unseen: Evaluation | None = None

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
        result["unseen"] = None if self.unseen is None else self.unseen.to_dict(tables)
        for name in ("category_marginal", "routed", "curve", "unseen"):
            if result[name] is None:
                del result[name]
        if not tables:
            for name in ("calibration", "categories", "curve"):
                result.pop(name, None)
            for name in ("policies", "picks", "categories"):
                result.get("routed", {}).pop(name, None)
        return {key: _plain(value) for key, value in result.items()}

    def to_markdown(self, bins: bool = False) -> str:
        """Tables for a terminal; `bins` adds the bins of P2L's calibration."""
        return evaluation_tables(self, bins)


def _plain(value: object) -> object:
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


def number(x: float | None, sign: bool = False) -> str:
    """A figure, or a dash where there is none."""
    # + 0.0, so that nothing reads −0.0000
    return "–" if x is None or math.isnan(x) else f"{round(x, 4) + 0.0:{'+' if sign else ''}.4f}"


def with_error(x: float | None, stderr: float | None, sign: bool = True) -> str:
    """A figure ± its standard error."""
    return number(x, sign=sign) if stderr is None or math.isnan(stderr) else f"{number(x, sign=sign)} ± {stderr:.4f}"


def evaluation_tables(report: Evaluation, bins: bool = False) -> str:
    """All tables of a report; `bins` adds the bins of P2L's calibration."""
    fitted = (
        "baselines cross-fitted"
        if report.n_baseline_prompts is None
        else f"baselines fitted on {report.n_baseline_prompts} other prompts"
    )
    seen = f", {report.n_seen} seen in training" if report.n_seen else ""
    parts = [
        f"{report.n_prompts} prompts{seen}, {report.n_votes} votes, {report.n_decisive} decisive; {fitted}; ± is one "
        "standard error by prompt",
        _forecasts(report),
        _calibration(report),
    ]
    if bins:
        parts += _bins(report)
    if report.categories:
        parts.append(_categories(report))
    if report.routed is not None:
        parts += _routed(report.routed)
    if report.curve is not None:
        parts.append(curve_tables(report.curve))
    parts += [f"Note: {note}" for note in report.notes]
    if report.unseen is not None:
        parts += ["## Prompts that were not seen in training", evaluation_tables(report.unseen, bins)]
    return "\n\n".join(parts)


def _forecasts(report: Evaluation) -> str:
    head = ["forecast", "log loss", "Brier", "accuracy", "decisive: log loss", "accuracy", "p2l − it, log loss"]
    rows = []
    for name, q in report.forecasts.items():
        figures = (q.log_loss, q.brier, q.accuracy, q.decisive_log_loss, q.decisive_accuracy)
        gap = report.differences.get(name)
        error = "" if gap is None else with_error(gap.log_loss, gap.log_loss_stderr)
        rows.append([NAMES.get(name, name), *map(number, figures), error])
    return padded_table([*head], rows)


def _calibration(report: Evaluation) -> str:
    classes = report.calibration["p2l"].classes
    head = ["calibration error", "all outcomes", *(CLASSES.get(key, key) for key in classes)]
    rows = []
    for name in report.forecasts:
        c = report.calibration[name]
        rows.append([NAMES.get(name, name), number(c.error), *(number(c.classes[key].error) for key in classes)])
    c = report.calibration["p2l"]
    rows.append(["p2l, if it were calibrated", number(c.expected), *(number(x.expected) for x in classes.values())])
    rows.append(["p2l, debiased root mean square", "", *(number(x.debiased_rms) for x in classes.values())])
    rows.append(["forecasts", "", *(str(x.n) for x in classes.values())])
    return padded_table(head, rows)


def _bins(report: Evaluation) -> list[str]:
    parts = []
    for key, c in report.calibration["p2l"].classes.items():
        rows = [
            [number(b.predicted), number(b.observed), f"{b.low:.4f}–{b.high:.4f}", str(b.n), str(b.n_prompts)]
            for b in c.bins
        ]
        name = CLASSES.get(key, key)
        heads = [f"p2l, {name}: predicted", "observed", "95 % interval", "forecasts", "prompts"]
        parts.append(padded_table(heads, rows))
    return parts


def _categories(report: Evaluation) -> str:
    head = ["log loss by category", "prompts", "votes", "p2l", "marginal", "category marginal", "p2l − marginal"]
    rows = [
        [
            row.category or "(none)",
            str(row.n_prompts),
            str(row.n_votes),
            *map(number, (row.p2l, row.marginal, row.category_marginal)),
            with_error(row.difference, row.difference_stderr),
        ]
        for row in report.categories
    ]
    return _largest(head, rows)


def _largest(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The table of the largest categories; the second column counts prompts."""
    shown = sorted(rows, key=lambda row: -int(row[1]))[:CATEGORIES]
    more = len(rows) - len(shown)
    return padded_table(head, shown) + (f"\n\n({more} smaller categories are in --json only)" if more else "")


def _routed(r: Routed) -> list[str]:
    order = [name for name in ("random", "best_single", "best_category", "p2l", "oracle") if name in r.policies]
    gaps = {"best_single": (r.gain, r.gain_stderr), "best_category": (r.category_gain, r.category_gain_stderr)}
    rows = []
    for name in order:
        p, gap = r.policies[name], gaps.get(name)
        label = NAMES.get(name, name) + (f" ({r.best_single_model})" if name == "best_single" else "")
        rows.append([label, with_error(p.score, p.stderr, False), "" if gap is None else with_error(*gap), str(p.n)])
    picks = ", ".join(f"{name} {share:.0%}" for name, share in r.picks[:PICKS])
    more = f" and {len(r.picks) - PICKS} more" if len(r.picks) > PICKS else ""
    parts = [
        padded_table([f"routed score, {r.candidates} models", "score", "p2l − it", "prompts"], rows),
        f"p2l picks {picks}{more}",
    ]
    if r.categories:
        names = ("random", "best_single", "best_category", "p2l", "oracle")
        head = ["routed score by category", "prompts", *(NAMES.get(name, name) for name in names), "p2l − best single"]
        body = [
            [
                row.category or "(none)",
                str(row.n),
                *(number(getattr(row, name)) for name in names),
                with_error(row.gain, row.gain_stderr),
            ]
            for row in r.categories
        ]
        parts.append(_largest(head, body))
    return parts


def curve_tables(curve: CostScore) -> str:
    """Score against cost: the policies at each budget, and where each reaches the best single model's score."""
    names = list(curve.curves)
    head = ["budget, USD", *(f"{name}: {x}" for name in names for x in ("cost", "score")), "paced − lp at lp's cost"]
    rows = []
    for i, over in enumerate(curve.paced_over_lp):
        points = [curve.curves[name].points[i] for name in names]
        cells = [x for p in points for x in (f"{p.cost:.3g}", number(p.score))]
        rows.append([f"{points[0].budget:.3g}", *cells, with_error(over[1], over[2])])
    best = curve.best_single
    reach = []
    for name, c in curve.curves.items():
        top = max(c.points, key=lambda point: point.score)
        marks = [(f"{name} reaches {mark.share:.0%}", mark.point) for mark in c.reaches]
        for label, p in [*marks, (f"{name}, highest score", top)]:
            cells = ["–", "–", "–"]
            if p is not None:
                part = f"{p.cost / best.cost:.1%}" if best.cost else "–"
                cells = [f"{p.cost:.3g}", part, with_error(p.difference, p.difference_stderr)]
            reach.append([label, *cells])
    return "\n\n".join(
        [
            f"Score against cost, {curve.n} prompts, {len(curve.models)} models; best single: "
            f"{curve.best_single_model}, {with_error(best.score, best.stderr, False)} at {best.cost:.3g} USD a request",
            padded_table(head, rows),
            padded_table(["of the best single model's score", "cost, USD", "of its cost", "score − its score"], reach),
        ]
    )
