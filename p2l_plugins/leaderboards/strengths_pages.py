"""The report on a model's strengths as markdown and as a page in HTML, from what `Strengths.to_dict` gives."""

from __future__ import annotations

import textwrap
from html import escape

from p2l_plugins.cells import escaped, pipe_table
from p2l_plugins.leaderboards.html import html_table, page
from p2l_plugins.leaderboards.tables import (
    INTERACTION,
    INTERACTION_NOTE,
    Record,
    between,
    interaction,
    points,
    rank_span,
    share,
)

_NOTE = (
    f"Of a category, {INTERACTION.lower()}: {INTERACTION_NOTE[0].lower()}{INTERACTION_NOTE[1:-1]} of all models and "
    "categories. Of a prompt: points of the win rate, less the mean of the comparable models, from that of all "
    "prompts; ties on hard prompts make no model look weak. A single prompt's figures are predictions without an "
    "interval."
)
_MARKDOWN_CHARACTERS, _HTML_CHARACTERS = 300, 2000


def markdown(report: Record) -> str:
    """The report as markdown."""
    parts = [f"# Strengths and weaknesses of {escaped(report['model'])}", escaped(_overall(report))]
    if report["categories"]:
        parts += ["## By category", pipe_table(*_table(report["categories"]), left=(0, 5))]
    for key, title in (("gains", "Gains most on"), ("losses", "Loses most on")):
        parts.append(f"## {title}")
        parts.append(_markdown_examples(report["prompts"][key]) or "No prompt.")
        named = [(row, row["prompts"][key]) for row in _extreme(report["categories"], key)]
        parts += [f"### {escaped(row['category'])}\n\n{_markdown_examples(found)}" for row, found in named if found]
    return "\n\n".join([*parts, _NOTE])


def html(report: Record) -> str:
    """The report as a page."""
    parts = [f"<p>{escape(_overall(report))}</p>"]
    if report["categories"]:
        heads, rows = _table(report["categories"])
        parts += ["<h2>By category</h2>", html_table(heads, [[escape(cell) for cell in row] for row in rows])]
    for key, title in (("gains", "Gains most on"), ("losses", "Loses most on")):
        parts.append(f"<h2>{title}</h2>")
        parts.append(_html_examples(report["prompts"][key]) or "<p>No prompt.</p>")
        for row in _extreme(report["categories"], key):
            if found := row["prompts"][key]:
                summary = f"<summary>{escape(row['category'])}</summary>"
                parts.append(f"<details>{summary}{_html_examples(found)}</details>")
    parts.append(f'<p class="soft">{escape(_NOTE)}</p>')
    return page(f"Strengths and weaknesses of {report['model']}", "\n".join(parts))


def _overall(report: Record) -> str:
    row = report["overall"]
    place = f" ({rank_span(row)})" if "rank_low" in row else ""
    usable = f", P(usable) {share(row['usable'])}" if "usable" in row else ""
    return (
        f"Over all {report['n_prompts']:,} prompts: rank {row['rank']}{place}, coefficient {row['coef']:+.3f}, "
        f"win rate {_rate(row)}{usable}."
    )


def _extreme(categories: list[Record], key: str) -> list[Record]:
    """The three categories where the model gains, or loses, most."""
    if key == "gains":
        return [row for row in categories[:3] if row["interaction"] > 0]
    return [row for row in categories[:-4:-1] if row["interaction"] < 0]


def _table(categories: list[Record]) -> tuple[list[str], list[list[str]]]:
    heads = ["category", "prompts", "than peers", "rank", "win rate", "best alternative", "it wins", "it loses"]
    rows = []
    for row in categories:
        best = row["best_alternative"]
        place = f" ({rank_span(row)})" if "rank_low" in row else ""
        cells = [row["category"], f"{row['n_prompts']:,}", interaction(row), f"{row['rank']}{place}", _rate(row)]
        duel = [best["model"], share(best["beats"]), share(best["beaten"])] if best else ["–"] * 3
        rows.append(cells + duel)
    return heads, rows


def _rate(row: Record) -> str:
    return share(row["win_rate"]) + between(row, "win_rate")


def _figures(example: Record) -> str:
    best = example["best_alternative"]
    text = f"{points(example['difference'])}, win rate {share(example['win_rate'])}"
    if example["category"] is not None:
        text += f", {example['category']}"
    if best is not None:
        text += f"; best alternative {best['model']}: it wins {share(best['beats'])}, loses {share(best['beaten'])}"
    return text


def _markdown_examples(examples: list[Record]) -> str:
    lines = []
    for example in examples:
        shown = textwrap.shorten(escaped(_text(example)), _MARKDOWN_CHARACTERS, placeholder=" …")
        lines.append(f"- {escaped(_figures(example))}\n  > {shown}")
    return "\n".join(lines)


def _html_examples(examples: list[Record]) -> str:
    parts = []
    for example in examples:
        text = _text(example)
        shown = text if len(text) <= _HTML_CHARACTERS else text[:_HTML_CHARACTERS] + " …"
        parts.append(f"<p>{escape(_figures(example))}</p>\n<blockquote>{escape(shown)}</blockquote>")
    return "\n".join(parts)


def _text(example: Record) -> str:
    prompt = example["prompt"]
    return prompt if isinstance(prompt, str) else "\n\n".join(prompt)
