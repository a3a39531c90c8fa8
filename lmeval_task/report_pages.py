"""The report of a run as markdown and as one page of HTML; all text is escaped, nothing is fetched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from lmeval_task.run_report import Agreements, Board, RunReport
from p2l_plugins.cells import escaped, pipe_table
from p2l_plugins.leaderboards.html import heat_cell, html_table, page
from p2l_plugins.leaderboards.tables import Column, between, coef_span, named, rank_span, share

INTERVALS = "Intervals (95 %) are over prompts: how the figures would vary with other prompts of the same kind."
CHANGES = (
    "Rank over all prompts less the rank on the benchmark: +3 means three places better there. "
    "* where the overall rank lies outside of the interval of the rank on the benchmark."
)
AGREEMENT = (
    "How well the prediction from the prompt alone orders the prompts by the evaluated model's score; AUC 0.5 and "
    "Spearman 0 are chance."
)

Table = tuple[list[str], list[list[str]]]


def markdown(report: RunReport, top: int | None = 20) -> str:
    """The report in markdown; `top` limits the rows of each leaderboard."""
    parts = ["# P2L on benchmarks"]
    for title, notes, (heads, rows), left in _sections(report, top):
        parts += [f"## {escaped(title)}", *map(escaped, notes), pipe_table(heads, rows, (left,))]
    return "\n\n".join(parts) + "\n"


def html(report: RunReport, top: int | None = 20) -> str:
    """The report as a page."""
    parts = []
    largest = max((abs(change) for row in report.changes.values() for change in row), default=0)
    for heading, notes, (heads, rows), left in _sections(report, top):
        parts.append(f"<h2>{escape(heading)}</h2>")
        parts += [f'<p class="soft">{escape(note)}</p>' for note in notes]
        if notes[:1] == [CHANGES]:
            cells = [[escape(row[0]), *(_change_cell(text, largest) for text in row[1:])] for row in rows]
            parts.append(html_table(heads, cells, kind="heat"))
        else:
            parts.append(html_table(heads, [[escape(text) for text in row] for row in rows], name=left))
    return page("P2L on benchmarks", "\n".join(parts))


def _sections(report: RunReport, top: int | None) -> list[tuple[str, list[str], Table, int]]:
    """Heading, notes, table and the number of the column that stands on the left."""
    sections: list[tuple[str, list[str], Table, int]] = []
    if len(report.boards) > 1:
        title = f"All benchmarks ({report.n_prompts} prompts)"
        sections.append((title, [INTERVALS], _board_table(report.overall, top), 1))
        sections.append(("Rank changes", [CHANGES], _changes(report, top), 0))
    if report.agreements:
        sections.append(("Measured against predicted", [AGREEMENT], _agreement_table(report.agreements), 0))
    for name, record in report.preferences.items():
        sections.append((f"{name}: {record['votes']}", _preference_notes(record), _preference_table(record), 0))
    for board in report.boards:
        title = f"{board.name} ({board.n_prompts} prompts)"
        sections.append((title, _board_notes(board), _board_table(board.rows, top), 1))
    return sections


def _board_notes(board: Board) -> list[str]:
    record = board.record
    notes = [f"Bundle {record['bundle']}, fingerprint {record['fingerprint']}. {INTERVALS}"]
    if record.get("n_truncated"):
        notes.append(f"Longer than the bundle reads, so cut: {record['n_truncated']} prompts.")
    if (model := record.get("evaluated_model")) is not None:
        row = next(row for row in board.rows if row["model"] == model)
        place = rank_span(row) if "rank_low" in row else str(row["rank"])
        notes.append(f"Evaluated model {model}: rank {row['rank']} ({place}), win rate {share(row['win_rate'])}.")
    if board.scores:
        shown = [
            f"{name} {value:.4f}" + ("" if error is None else f" ± {error:.4f}")
            for name, (value, error) in board.scores.items()
        ]
        notes.append(f"Its score on {board.record['source']}: {'; '.join(shown)} (± one standard error).")
    return notes


def _board_table(rows: Sequence[dict[str, Any]], top: int | None) -> Table:
    shown = list(rows[:top])
    columns: list[Column] = [("rank", lambda row: str(row["rank"])), ("model", named)]
    spans = any(row.get("coef_low") is not None for row in shown)
    if spans:
        columns.append(("ranks", rank_span))
    columns.append(("coefficient", lambda row: f"{row['coef']:+.3f}"))
    if spans:
        columns.append(("interval", coef_span))
    columns.append(("win rate", lambda row: share(row["win_rate"]) + between(row, "win_rate")))
    if any(row.get("usable") is not None for row in shown):
        columns.append(("P(usable)", lambda row: share(row.get("usable"))))
    return [head for head, _ in columns], [[cell(row) for _, cell in columns] for row in shown]


def _changes(report: RunReport, top: int | None) -> Table:
    rows = []
    for row in report.overall[:top]:
        model = row["model"]
        pairs = zip(report.changes[model], report.holds[model], strict=True)
        rows.append([model, *(f"{change:+d}{' *' if holds else ''}" if change else "0" for change, holds in pairs)])
    return ["model", *(board.name for board in report.boards)], rows


def _agreement_table(agreements: Sequence[Agreements]) -> Table:
    def interval(figure: tuple[float | None, float | None, float | None]) -> str:
        value, low, high = figure
        if value is None:
            return "n/a"
        return f"{value:.3f}" + ("" if low is None or high is None else f" ({low:.3f} … {high:.3f})")

    rows = []
    for row in agreements:
        metric = row.metric if row.filter == "none" else f"{row.metric}, {row.filter}"
        predicted = "n/a" if row.predicted is None else f"{row.predicted:.3f}"
        measured = f"{row.measured:.3f}"
        rows.append([row.name, row.model, metric, measured, predicted, interval(row.auc), interval(row.spearman)])
    return ["benchmark", "model", "metric", "measured", "predicted", "AUC", "Spearman"], rows


def _preference_notes(record: Mapping[str, Any]) -> list[str]:
    notes = [
        f"Bundle {record['bundle']}, fingerprint {record['fingerprint']}; {record['n_prompts']} prompts, "
        f"{record['n_votes']} votes, {record['n_decisive']} decisive; ± is one standard error by prompt."
    ]
    return [*notes, *map(str, record.get("notes", []))]


def _preference_table(record: Mapping[str, Any]) -> Table:
    def number(value: float | None) -> str:
        return "n/a" if value is None else f"{value:.4f}"

    def plus(error: float | None) -> str:
        return "" if error is None else f" ± {error:.4f}"

    rows = []
    for name in ("p2l", "marginal", "constant"):
        quality, gap = record[name], record["differences"].get(name)
        figures = [number(quality[key]) for key in ("brier", "accuracy", "decisive_accuracy", "calibration_error")]
        difference = "" if gap is None else f"{gap['log_loss']:+.4f}" + plus(gap["log_loss_stderr"])
        rows.append([name, number(quality["log_loss"]) + plus(quality["log_loss_stderr"]), *figures, difference])
    heads = ["forecast", "log loss", "Brier", "accuracy", "decisive accuracy", "calibration error"]
    return [*heads, "p2l − it, log loss"], rows


def _change_cell(text: str, largest: int) -> str:
    return heat_cell(text, int(text.removesuffix(" *")) / max(largest, 1), text.endswith("*"))
