"""The heat map model × benchmark of the rank change against the overall leaderboard. matplotlib is an extra."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lmeval_task.run_report import RunReport
from p2l_plugins.errors import DataError
from p2l_plugins.leaderboards.figures import draw_heat


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
    if len(report.boards) < 2:
        raise DataError(f"rank changes need the leaderboards of two benchmarks; there are {len(report.boards)}")
    models = [row["model"] for row in report.overall[:top]]
    change = np.array([report.changes[model] for model in models], np.float64)
    holds = np.array([report.holds[model] for model in models])
    columns = {board.name: board.n_prompts for board in report.boards}
    label = "places better (+) or worse (−) there\n(dot: outside of the 95 % interval)"
    draw_heat(path, "Rank over all prompts less rank on the benchmark", change, holds, models, columns, label)
