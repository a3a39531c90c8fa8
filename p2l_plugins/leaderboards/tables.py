"""Leaderboards as markdown, from what `to_dict` gives: one table per board, and the table of models by categories."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Any

from p2l_plugins.cells import escaped, pipe_table
from p2l_plugins.support import LITTLE

#: What `Leaderboard.to_dict` and `CategoryBoards.to_dict` give, and one of their rows.
Record = dict[str, Any]
Row = dict[str, Any]
Column = tuple[str, Callable[[Row], str]]

INTERACTION = "Better or worse than peers"
INTERACTION_NOTE = (
    "A model's coefficient (log-odds) on these prompts less what its overall coefficient predicts for them, by the "
    "line or curve that is fitted to all models: above 0 is better here than models of its overall strength. * holds "
    "at a false discovery rate of 5 % over all cells."
)
#: The row of a model in a category that says nothing of it.
_NOT_THERE: Row = {"interaction": None, "holds": False}
UNGROUNDED = (
    "trained on votes that never say 'both bad' and shared with no other data: comparable among themselves only"
)
LITTLE_KNOWN = f"known by fewer than {LITTLE:.0f} effective votes: its place may be chance"


def markdown_table(board: Record, top: int | None = None) -> str:
    """A board's table, best model first; `top` limits its rows."""
    rows = board["leaderboard"][:top]
    columns = table_columns(board)
    text = pipe_table([head for head, _ in columns], ([cell(row) for _, cell in columns] for row in rows), left=(1,))
    return "\n\n".join([text, *notes(rows)])


def table_columns(board: Record) -> list[Column]:
    """Headings of a board's columns, and what gives a row's cell."""
    columns: list[Column] = [
        ("rank", lambda row: str(row["rank"])),
        ("model", named),
        ("coefficient", lambda row: f"{row['coef']:+.3f}"),
    ]
    if "intervals" in board:
        columns += [(f"{board['intervals']['level']:.0%} interval", coef_span), ("ranks", rank_span)]
    columns.append(("win rate", lambda row: share(row["win_rate"]) + between(row, "win_rate")))
    if board["family"] == "grk":
        columns.append(("P(usable)", lambda row: share(row["usable"]) + between(row, "usable")))
    if "n_votes" in board:
        columns.append(("votes", lambda row: f"{row['votes']:,}"))
    elif any("support" in row for row in board["leaderboard"]):
        columns.append(("known by", lambda row: f"{row['support']:,.0f}" if "support" in row else "–"))
    if "reference" in board:
        columns.append((f"− {board['reference']}", difference))
    return columns


def notes(rows: Collection[Row]) -> list[str]:
    """What the marks in a board's rows mean."""
    marks = [f"† {UNGROUNDED}"] if any_ungrounded(rows) else []
    return [*marks, f"‡ {LITTLE_KNOWN}"] if any(row.get("little_known") for row in rows) else marks


def any_ungrounded(rows: Iterable[Row]) -> bool:
    """Whether a model among the rows compares with ungrounded ones only."""
    return any(not row.get("grounded", True) for row in rows)


def named(row: Row) -> str:
    """A row's model, with a mark where it is ungrounded, and one where little is known of it."""
    return f"{row['model']}{'' if row.get('grounded', True) else ' †'}{' ‡' if row.get('little_known') else ''}"


def share(value: float | None) -> str:
    """A share in per cent; a dash where there is none."""
    return "–" if value is None else f"{value:.1%}"


def rank_span(row: Row) -> str:
    """The range of a row's ranks."""
    low, high = row["rank_low"], row["rank_high"]
    return str(low) if low == high else f"{low}–{high}"


def coef_span(row: Row) -> str:
    """The interval of a row's coefficient."""
    low, high = row["coef_low"], row["coef_high"]
    return "–" if low is None or high is None else f"{low:+.2f} … {high:+.2f}"


def between(row: Row, key: str) -> str:
    """The interval of a row's share, in per cent."""
    low, high = row.get(f"{key}_low"), row.get(f"{key}_high")
    return "" if low is None or high is None else f" ({100 * low:.1f}–{100 * high:.1f})"


def difference(row: Row) -> str:
    """A row's difference of win rates in points, with its interval."""
    return "–" if row["difference"] is None else points(row["difference"]) + difference_span(row)


def difference_span(row: Row) -> str:
    """The interval of a row's difference, in points."""
    low, high = row["difference_low"], row["difference_high"]
    return "" if low is None else f" ({points(low)} … {points(high)})"


def interaction(row: Row, interval: bool = True) -> str:
    """A row's interaction in log-odds; a star where it holds among all that were tested."""
    if row["interaction"] is None:
        return "–"
    span = interaction_span(row) if interval else ""
    return f"{row['interaction']:+.2f}{span}" + (" *" if row.get("holds") else "")


def interaction_span(row: Row) -> str:
    """The interval of a row's interaction."""
    low, high = row["interaction_low"], row["interaction_high"]
    return "" if low is None else f" ({low:+.2f} … {high:+.2f})"


def points(difference: float) -> str:
    """A difference of two shares, in points."""
    return f"{100 * difference:+.1f}"


def category_tables(boards: Record, top: int | None) -> str:
    """The overall table, that of the interactions, and one table per category."""
    cells = ([model, *(interaction(row, interval=False) for row in rows)] for model, rows in by_category(boards, top))
    parts = [
        f"## All prompts ({boards['n_prompts']})",
        markdown_table(boards, top),
        f"## {INTERACTION}",
        INTERACTION_NOTE,
        pipe_table(["model", *boards["categories"]], cells),
    ]
    for name, board in boards["categories"].items():
        leaves = boards.get("parents", {}).get(name)
        inside = f": {'; '.join(leaves)}" if leaves else ""
        parts += ["## " + escaped(f"{name} ({board['n_prompts']}){inside}"), markdown_table(board, top)]
    return "\n\n".join(parts)


def by_category(boards: Record, top: int | None) -> list[tuple[str, list[Row]]]:
    """The models of the overall leaderboard, best first, and the row of each in every category."""
    categories = [{row["model"]: row for row in board["leaderboard"]} for board in boards["categories"].values()]
    models = [row["model"] for row in boards["leaderboard"][:top]]
    return [(model, [rows.get(model, _NOT_THERE) for rows in categories]) for model in models]
