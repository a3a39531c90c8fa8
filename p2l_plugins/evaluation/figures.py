"""The pictures of an evaluation: reliability diagram, and score against cost. matplotlib is the extra `train`.

The same report gives the same file: no dates, no random ids.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from p2l_plugins.evaluation.calibration import HISTOGRAM, Calibrations
from p2l_plugins.evaluation.routed import MARKS, CostScore
from p2l_plugins.files.figures import new_figure, save_figure

PANELS = {
    "win": "win (both sides pooled)",
    "tie": "tie",
    "tie (bothbad)": "tie, both bad",
    "decisive": "likelier side wins, given a winner",
}
COLOURS = {"p2l": "#1f5fa8", "marginal": "#d9822b"}
CURVES = {
    "paced": ("paced budget: one multiplier for all prompts", "#1f5fa8", "-"),
    "lp": ("lp: a budget for each prompt, in expectation", "#3a9a5b", "--"),
    "cap": ("cap: a hard limit for each prompt", "#8a5fb0", ":"),
    "marginal": ("lp on the marginal: the same for every prompt", "#d9822b", "-."),
}


def reliability_diagram(calibration: Mapping[str, Calibrations], path: Path, title: str) -> None:
    """Draws observed frequency against prediction: a panel per outcome, P2L and the marginal, 95 % intervals by prompt.

    Below each panel stands how the predictions are spread.

    Args:
        calibration: by forecast; `p2l` and `marginal` are drawn.
        path: .png, .svg or .pdf.
        title: of the figure.
    """
    shown = [key for key in PANELS if key in calibration["p2l"].classes]
    figure = new_figure(figsize=(4.4 * len(shown), 5.6))
    figure.suptitle(title)
    grid = figure.add_gridspec(2, len(shown), height_ratios=[4, 1])
    for column, key in enumerate(shown):
        axes = figure.add_subplot(grid[0, column])
        spread = figure.add_subplot(grid[1, column], sharex=axes)
        axes.plot([0, 1], [0, 1], color="grey", linewidth=1, linestyle="--", label="calibrated")
        for name, colour in COLOURS.items():
            c = calibration[name].classes[key]
            x, y = [b.predicted for b in c.bins], [b.observed for b in c.bins]
            below, above = (
                [max(0.0, b.observed - b.low) for b in c.bins],
                [max(0.0, b.high - b.observed) for b in c.bins],
            )
            label = f"{name}: ECE {c.error:.3f} ({c.expected:.3f} by chance)"
            axes.errorbar(
                x, y, [below, above], color=colour, marker="o", markersize=4, linewidth=1.2, capsize=2, label=label
            )
            edges = [i / HISTOGRAM for i in range(HISTOGRAM + 1)]
            spread.stairs(c.histogram, edges, color=colour, fill=name == "p2l", alpha=0.45 if name == "p2l" else 1.0)
        c = calibration["p2l"].classes[key]
        axes.set(
            title=f"{PANELS[key]}\n{c.n} forecasts, {c.n_prompts} prompts",
            ylabel="observed frequency" if column == 0 else "",
            ylim=(0, 1),
            xlim=(0.5, 1) if key == "decisive" else (0, 1),
        )
        axes.tick_params(labelbottom=False)
        axes.legend(fontsize=8, loc="lower right")
        axes.grid(alpha=0.25)
        spread.set(xlabel="predicted probability", ylabel="share" if column == 0 else "")
    save_figure(figure, path)


def cost_score_figure(curve: CostScore, path: Path, title: str) -> None:
    """Draws mean score against mean cost (logarithmic), a line per policy with a band of one standard error."""
    figure = new_figure(figsize=(8, 5.2))
    axes = figure.subplots()
    for name, c in curve.curves.items():
        label, colour, style = CURVES[name]
        x = [p.cost for p in c.points]
        axes.plot(x, [p.score for p in c.points], color=colour, linestyle=style, label=label)
        if name == "paced":
            low, high = ([p.score + sign * p.stderr for p in c.points] for sign in (-1, 1))
            axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
        for reach in c.reaches:
            if reach.point is not None:
                axes.plot(reach.point.cost, reach.point.score, color=colour, marker="o", markersize=5)
    best = curve.best_single
    axes.axhline(best.score, color="grey", linewidth=0.8, linestyle="--")
    label = f"best single: {curve.best_single_model}"
    axes.errorbar(best.cost, best.score, best.stderr, color="black", marker="*", markersize=11, capsize=3, label=label)
    marks = ", ".join(f"{share:.0%}" for share in MARKS)
    if min(p.cost for c in curve.curves.values() for p in c.points) > 0:
        axes.set_xscale("log")
    axes.set(
        title=f"{title}\n{curve.n} prompts, {len(curve.models)} models; dots: {marks} of the best single model's score",
        xlabel="mean cost, USD per request",
        ylabel="mean score",
    )
    axes.legend(fontsize=9, loc="lower right")
    axes.grid(alpha=0.25, which="both")
    save_figure(figure, path)
