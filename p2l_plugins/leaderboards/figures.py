"""The pictures of leaderboards, from what `to_dict` gives: intervals, and the heat map model × category.

matplotlib is the extra `analysis`.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from p2l_plugins.files.figures import check_figure, new_figure, plain_text, save_figure
from p2l_plugins.leaderboards.tables import Record, by_category
from p2l_plugins.outcomes import Array, Mask

COLOUR = "#1f5fa8"


def leaderboard_figure(board: Record, path: Path, title: str, top: int | None) -> None:
    """Draws coefficients with their intervals, best model first.

    Raises:
        ConfigError: as `check_figure`.
    """
    check_figure(path)
    shown = board["leaderboard"][:top]
    figure = new_figure(figsize=(7.2, 1.4 + 0.24 * len(shown)))
    axes = figure.subplots()
    y = np.arange(len(shown))
    spread, level = None, ""
    x, *ends = (np.array([row.get(key) for row in shown], np.float64) for key in ("coef", "coef_low", "coef_high"))
    if "intervals" in board:
        spread, level = [x - ends[0], ends[1] - x], f" with {board['intervals']['level']:.0%} interval over prompts"
    axes.errorbar(x, y, xerr=spread, fmt="o", color=COLOUR, markersize=4, capsize=2, linewidth=1.2)
    axes.set_yticks(y, [plain_text(row["model"]) for row in shown], fontsize=8)
    axes.invert_yaxis()
    axes.margins(y=0.02)
    axes.set(title=plain_text(title), xlabel=f"coefficient{level}")
    axes.title.set_fontsize(11)
    axes.grid(alpha=0.25)
    _save(figure, path)


def heat_map(boards: Record, leaves: Sequence[str], path: Path, title: str, top: int | None) -> None:
    """Draws models × the categories `leaves`: their interaction.

    A dot marks what holds at a false discovery rate of 5 % over all cells of the leaderboards.

    Raises:
        ConfigError: as `check_figure`.
    """
    categories = {name: boards["categories"][name] for name in leaves}
    shown = by_category({**boards, "categories": categories}, top)
    value = np.array([[row["interaction"] for row in rows] for _, rows in shown], np.float64)
    holds = np.array([[row["holds"] for row in rows] for _, rows in shown])
    columns = {name: board["n_prompts"] for name, board in categories.items()}
    label = "coefficient less what the overall one and the column predict,\nlog-odds (dot: FDR 5 %)"
    draw_heat(path, title, value, holds, [model for model, _ in shown], columns, label)


def draw_heat(
    path: Path, title: str, value: Array, holds: Mask, rows: Sequence[str], columns: Mapping[str, int], label: str
) -> None:
    """Draws values (R, C) as colours, with a dot where they hold.

    Args:
        path: .png, .svg or .pdf.
        title: of the figure.
        value, holds: (R, C).
        rows: models.
        columns: names, and the prompts of each.
        label: of the colours.

    Raises:
        ConfigError: as `check_figure`.
    """
    check_figure(path)
    figure = new_figure(figsize=(3.2 + 0.55 * len(columns), 2.2 + 0.22 * len(rows)))
    axes = figure.subplots()
    limit = max(float(np.nanquantile(np.abs(value), 0.98)), 1e-9)
    image = axes.imshow(value, cmap="PuOr", vmin=-limit, vmax=limit, aspect="auto")
    ys, xs = np.nonzero(holds)
    axes.scatter(xs, ys, s=11, color="white", edgecolors="black", linewidths=0.8)
    names = [f"{textwrap.shorten(plain_text(name), 40, placeholder='…')} ({n})" for name, n in columns.items()]
    axes.set_xticks(range(len(names)), names, rotation=40, ha="right", rotation_mode="anchor", fontsize=8)
    axes.set_yticks(range(len(rows)), [plain_text(model) for model in rows], fontsize=8)
    axes.set_title(plain_text(title), fontsize=11)
    bar = figure.colorbar(image, ax=axes, fraction=0.04, pad=0.02)
    bar.set_label(label, fontsize=8)
    bar.ax.tick_params(labelsize=8)
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    options = {"pil_kwargs": {"optimize": True}} if path.suffix.lower() == ".png" else {}
    save_figure(figure, path, dpi=90, **options)
