"""Leaderboards as a page in HTML, from what `to_dict` gives: one file, no scripts, nothing fetched, text escaped."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np

from p2l_plugins.leaderboards.tables import (
    INTERACTION,
    INTERACTION_NOTE,
    Record,
    Row,
    by_category,
    interaction,
    interaction_span,
    notes,
    table_columns,
)

_STYLE = """
:root { color-scheme: light dark; --ink: #1c1e21; --soft: #5b616a; --line: #d9dce1; --page: #fff; --mark: #1f5fa8; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e8eb; --soft: #a3a9b2; --line: #3a3f47; --page: #15171a; --mark: #6fb0ff; }
}
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 72rem; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: 0 0 .25rem; } h2 { font-size: 1.15rem; margin: 2.25rem 0 .5rem; }
p { margin: .4rem 0; max-width: 50rem; } .soft { color: var(--soft); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .6rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th { color: var(--soft); font-weight: 600; vertical-align: bottom; }
th.name, td.name { text-align: left; } td.name { font-weight: 500; }
table.heat td { text-align: center; min-width: 3.4rem; padding: .2rem .3rem; }
table.heat th { white-space: normal; max-width: 9rem; padding: .2rem .3rem; text-align: center; }
table.heat th.name { text-align: left; } td.holds { font-weight: 700; }
table.heat td.name { text-align: left; padding-right: .8rem; }
svg.span { display: block; } svg.span line { stroke: var(--mark); stroke-width: 2; }
svg.span circle { fill: var(--mark); } svg.span .zero { stroke: var(--line); stroke-width: 1; }
blockquote { margin: .2rem 0 .6rem; padding: .1rem .8rem; border-left: 3px solid var(--line); max-width: 50rem;
  white-space: pre-wrap; overflow-wrap: anywhere; }
details summary { cursor: pointer; margin: .3rem 0; } a { color: var(--mark); }
"""

_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
_LONG, _SHORT = 60, 25  # models: a board of more than so many shows so many at first
_WIDTH = 170  # pixels of the drawing of an interval


def page(title: str, body: str) -> str:
    """A whole document around a body in HTML; the title is text."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{escape(title)}</h1>\n{body}\n</body>\n</html>\n"
    )


def leaderboard_page(board: Record, title: str, top: int | None) -> str:
    """The page of one leaderboard."""
    return page(title, f"{_about(board)}\n{board_table(board, top)}")


def category_page(boards: Record, title: str, top: int | None) -> str:
    """The page of all prompts' leaderboard, the heat map and a leaderboard per category."""
    parts = [
        _about(boards),
        f"<h2>{INTERACTION}</h2>",
        f'<p class="soft">{escape(INTERACTION_NOTE)}</p>',
        _heat(boards, top),
    ]
    if "parents" in boards:
        parts.append(_tree(boards["parents"]))
    parts += [f"<h2>All prompts ({boards['n_prompts']})</h2>", board_table(boards, top)]
    for name, board in boards["categories"].items():
        inside = f"<summary>{escape(name)} ({board['n_prompts']} prompts)</summary>"
        parts.append(f"<details>{inside}{board_table(board, top)}</details>")
    return page(title, "\n".join(parts))


def html_table(heads: Sequence[str], rows: Sequence[Sequence[str]], name: int = 0, kind: str = "") -> str:
    """A table. Headings are text; cells are HTML, or begin with `<td` themselves; column `name` stands on the left."""

    def cell(i: int, content: str) -> str:
        if content.startswith("<td"):
            return content
        return f'<td class="name">{content}</td>' if i == name else f"<td>{content}</td>"

    head = "".join(
        f'<th scope="col"{" class=name" if i == name else ""}>{escape(text)}</th>' for i, text in enumerate(heads)
    )
    body = "\n".join("<tr>" + "".join(cell(i, c) for i, c in enumerate(row)) + "</tr>" for row in rows)
    table = f"<thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody>"
    return f'<div class="scroll" tabindex="0"><table class="{kind}">{table}</table></div>'


def board_table(board: Record, top: int | None) -> str:
    """A leaderboard's table with its intervals drawn; of many models, the later ones are folded away."""
    rows = board["leaderboard"][:top]
    columns = table_columns(board)
    table = [[escape(cell(row)) for _, cell in columns] for row in rows]
    heads = [head for head, _ in columns]
    if "reference" in board:
        heads[-1] = f"points from {board['reference']}"
    if "intervals" in board:
        ends = [row[key] for row in rows for key in ("coef_low", "coef_high", "coef") if row[key] is not None]
        heads.insert(4, "")
        for row, cells in zip(rows, table, strict=True):
            cells.insert(4, _drawn(row, min(ends), max(ends)))
    note = "".join(f'<p class="soft">{escape(text)}</p>' for text in notes(rows))
    more = len(board["leaderboard"]) - len(rows)
    note += f'<p class="soft">and {more} more models</p>' if more else ""
    if len(rows) <= _LONG:
        return html_table(heads, table, name=1) + note
    rest = f"<summary>Show all {len(rows)} models</summary>{html_table(heads, table[_SHORT:], name=1)}"
    return f"{html_table(heads, table[:_SHORT], name=1)}<details>{rest}</details>{note}"


def _about(board: Record) -> str:
    models = len(board["leaderboard"])
    votes = f"{board['n_votes']:,} votes on " if "n_votes" in board else ""
    text = f"{votes}{board['n_prompts']:,} prompts, {models} models, outcome model {board['family']}."
    if "intervals" in board:
        text += (
            f" Intervals ({board['intervals']['level']:.0%}) say how the figures would vary with other prompts of the "
            f"same kind; they are from {board['intervals']['units']} units. Models whose intervals overlap share ranks."
        )
    return f'<p class="soft">{escape(text)}</p>'


def _drawn(row: Row, low: float, high: float) -> str:
    """A row's interval as a drawing; the numbers stand beside it, so that it is hidden from screen readers."""

    def x(value: float) -> float:
        return round(6 + (value - low) / max(high - low, 1e-9) * (_WIDTH - 12), 1)

    zero = f'<line class="zero" x1="{x(0)}" x2="{x(0)}" y1="0" y2="18"/>' if low < 0 < high else ""
    ends = ""
    if row["coef_low"] is not None and row["coef_high"] is not None:
        ends = f'<line x1="{x(row["coef_low"])}" x2="{x(row["coef_high"])}" y1="9" y2="9"/>'
    dot = f'<circle cx="{x(row["coef"])}" cy="9" r="3.5"/>'
    return f'<svg class="span" width="{_WIDTH}" height="18" aria-hidden="true">{zero}{ends}{dot}</svg>'


def _heat(boards: Record, top: int | None) -> str:
    shown = by_category(boards, top)
    sizes = [abs(row["interaction"] or 0.0) for _, rows in shown for row in rows]
    limit = float(np.quantile(sizes, 0.98)) if sizes else 0.0  # one cell that stands out must not pale all others
    names = list(boards["categories"])
    table = []
    for model, rows in shown:
        cells = [_heat_cell(row, limit, f"{model}, {name}") for name, row in zip(names, rows, strict=True)]
        table.append([escape(model), *cells])
    return html_table(["model", *names], table, kind="heat")


def _heat_cell(row: Row, limit: float, what: str) -> str:
    value = row["interaction"]
    if value is None:
        return "<td>–</td>"
    title = escape(f"{what}: {value:+.2f}{interaction_span(row)}", quote=True)
    return heat_cell(interaction(row, interval=False), value / max(limit, 1e-9), bool(row.get("holds")), title)


def heat_cell(text: str, strength: float, holds: bool, title: str = "") -> str:
    """A cell that is blue where `strength` is above 0 and orange below, darkest at ±1; bold where it holds."""
    colour = "31,95,168" if strength > 0 else "217,110,30"
    shade = min(abs(strength), 1.0) * 0.6  # text stays readable on it, light and dark
    extra = f' title="{title}"' if title else ""
    bold = ' class="holds"' if holds else ""
    return f'<td{bold} style="background:rgba({colour},{shade:.2f})"{extra}>{escape(text)}</td>'


def _tree(parents: dict[str, list[str]]) -> str:
    items = "".join(f"<li>{escape(name)}: {escape('; '.join(leaves))}</li>" for name, leaves in parents.items())
    return f"<h2>Wider topics</h2><ul>{items}</ul>"
