"""Leaderboards as markdown: one table per board, and the table of models by categories."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from p2l_plugins.leaderboards.categories import CategoryBoards
    from p2l_plugins.leaderboards.leaderboard import Leaderboard

DIFFERENCES = (
    "Points of the win rate, less the mean of all models, so that ties on hard prompts make no model look weak. "
    "* holds at a false discovery rate of 5 % over all cells."
)


def markdown_table(board: Leaderboard, top: int | None = None) -> str:
    """A board's table, best model first; `top` limits its rows."""
    from p2l_plugins.leaderboards.leaderboard import UNGROUNDED

    rows = board.rows()[:top]
    columns = table_columns(board)
    lines = [
        "| " + " | ".join(head for head, _ in columns) + " |",
        "|" + "".join(":---|" if head == "model" else "---:|" for head, _ in columns),
    ]
    for row in rows:
        lines.append("| " + " | ".join(escaped(cell(row)) for _, cell in columns) + " |")
    if any(not row.get("grounded", True) for row in rows):
        lines.append(f"\n† {UNGROUNDED}")
    return "\n".join(lines)


def table_columns(board: Leaderboard) -> list[tuple[str, Any]]:
    """Headings of a board's columns, and what gives a row's cell."""
    columns: list[tuple[str, Any]] = [
        ("rank", lambda row: str(row["rank"])),
        ("model", lambda row: row["model"] + ("" if row.get("grounded", True) else " †")),
        ("coefficient", lambda row: f"{row['coef']:+.3f}"),
    ]
    if board.intervals is not None:
        columns += [
            (f"{board.intervals.level:.0%} interval", lambda row: span(row, "coef", "+.2f")),
            ("ranks", lambda row: ranks(row["rank_low"], row["rank_high"])),
        ]
    columns.append(("win rate", lambda row: share(row["win_rate"]) + between(row, "win_rate")))
    if board.family == "grk":
        columns.append(("P(usable)", lambda row: share(row["usable"]) + between(row, "usable")))
    if board.difference is not None:
        columns.append((f"− {board.difference.reference}", gap))
    return columns


def share(value: float | None) -> str:
    """A share in per cent; a dash where there is none."""
    return "–" if value is None else f"{value:.1%}"


def ranks(low: int, high: int) -> str:
    """A range of ranks."""
    return str(low) if low == high else f"{low}–{high}"


def span(row: dict[str, Any], key: str, form: str) -> str:
    """The interval of a row's figure."""
    low, high = row[f"{key}_low"], row[f"{key}_high"]
    return "–" if low is None or high is None else f"{low:{form}} … {high:{form}}"


def between(row: dict[str, Any], key: str) -> str:
    """The interval of a row's share, in per cent."""
    low, high = row.get(f"{key}_low"), row.get(f"{key}_high")
    return "" if low is None or high is None else f" ({100 * low:.1f}–{100 * high:.1f})"


def gap(row: dict[str, Any]) -> str:
    """A difference in points with its interval; a star where it holds among all that were tested."""
    if row["difference"] is None:
        return "–"
    text = points(row["difference"])
    if row["difference_low"] is not None:
        text += f" ({points(row['difference_low'])} … {points(row['difference_high'])})"
    return text + (" *" if row.get("holds") else "")


def points(difference: float) -> str:
    """A difference of two shares, in points."""
    return f"{100 * difference:+.1f}"


def category_tables(boards: CategoryBoards, top: int | None) -> str:
    """The overall table, that of the differences, and one table per category."""
    parts = [f"## All prompts ({boards.overall.n_prompts})", markdown_table(boards.overall, top)]
    names = list(boards.boards)
    parts += ["## Difference of the win rate from all prompts", DIFFERENCES]
    lines = ["| model | " + " | ".join(map(escaped, names)) + " |", "|:---|" + "---:|" * len(names)]
    for i in boards.overall.order[:top]:
        cells = [difference_cell(boards.boards[name], i) for name in names]
        lines.append(f"| {escaped(boards.overall.models[i])} | " + " | ".join(cells) + " |")
    parts.append("\n".join(lines))
    for name, board in boards.boards.items():
        inside = f": {'; '.join(boards.parents[name])}" if name in boards.parents else ""
        heading = " ".join(f"## {name} ({board.n_prompts}){inside}".split())  # a name may hold line breaks
        parts += [heading, markdown_table(board, top)]
    return "\n\n".join(parts)


def difference_cell(board: Leaderboard, i: int) -> str:
    """A model's difference from the overall board, with a star where it holds."""
    gap = board.difference
    if gap is None or not math.isfinite(gap.value[i]):
        return "–"
    return points(gap.value[i]) + (" *" if gap.holds is not None and gap.holds[i] else "")


def escaped(text: str) -> str:
    """Text in a cell of a markdown table."""
    return " ".join(text.replace("|", "\\|").split())
