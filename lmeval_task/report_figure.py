"""The heat map model × benchmark of the rank change against the overall leaderboard. matplotlib is an extra."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lmeval_task.run_report import RunReport
from p2l_plugins.errors import DataError
from p2l_plugins.files.figures import check_figure, new_figure, plain_text, save_figure


def rank_change_figure(report: RunReport, path: Path, top: int | None = 30) -> None:
    """Draws the best models of all prompts, a column per benchmark; a dot where the change is outside of the interval.

    The same report gives the same file.

    Args:
        report: of two benchmarks at least.
        path: .png, .svg or .pdf.
        top: draw so many models.

    Raises:
        ConfigError: another ending, or matplotlib is missing.
        DataError: fewer than two benchmarks.
    """
    check_figure(path)
    if len(report.boards) < 2:
        raise DataError(f"rank changes need the leaderboards of two benchmarks; there are {len(report.boards)}")
    models = [row["model"] for row in report.overall[:top]]
    change = np.array([report.changes[model] for model in models])
    holds = np.array([report.holds[model] for model in models])
    figure = new_figure(figsize=(3.4 + 0.6 * len(report.boards), 2.2 + 0.24 * len(models)))
    axes = figure.subplots()
    limit = max(int(np.abs(change).max()), 1)
    image = axes.imshow(change, cmap="PuOr", vmin=-limit, vmax=limit, aspect="auto")
    rows, columns = np.nonzero(holds)
    axes.scatter(columns, rows, s=7, color="black", linewidths=0)
    names = [f"{plain_text(board.name)} ({board.n_prompts})" for board in report.boards]
    axes.set_xticks(range(len(names)), names, rotation=40, ha="right", rotation_mode="anchor", fontsize=8)
    axes.set_yticks(range(len(models)), [plain_text(model) for model in models], fontsize=8)
    axes.set_title("Rank over all prompts less rank on the benchmark", fontsize=11)
    bar = figure.colorbar(image, ax=axes, fraction=0.04, pad=0.02)
    bar.set_label("places better (+) or worse (−) there\n(dot: outside of the 95 % interval)", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    save_figure(figure, path, dpi=120)
