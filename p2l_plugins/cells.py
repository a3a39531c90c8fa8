"""Names and prompts of others in texts for people: they must not act in a terminal, in Markdown or in a spreadsheet.

All tables in Markdown are made by `pipe_table` and `padded_table`, all cells of CSV by `csv_cell`. JSON and Parquet
hold texts as they are.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence

#: What moves a terminal's cursor, colours it or turns the direction of writing; line breaks and tabs are none of it.
_CONTROLS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]|\r(?!\n)")

#: What a spreadsheet takes for the beginning of a formula, in both widths, also behind signs that nobody sees.
_FORMULA = re.compile(r"[\s\u00ad\u180e\u200b-\u200f\u2060-\u2064\ufeff]*[=+\-@＝＋－＠]")

#: What begins a tag, a link, an image or a new cell in Markdown, or takes the sense from the backslash before it.
_MARKDOWN = {"\\": "\\\\", "|": "\\|", "<": "&lt;", "[": "\\["}
_TO_MARKDOWN = str.maketrans(_MARKDOWN)


def plain(text: str) -> str:
    """A text without control characters, each of which is U+FFFD; line breaks and tabs stay."""
    return _CONTROLS.sub("\ufffd", text)


def escaped(text: str) -> str:
    """Text in a line or a cell of Markdown: without tags, links and control characters."""
    return " ".join(plain(text).split()).translate(_TO_MARKDOWN)


def csv_cell(text: str) -> str:
    """Text in a cell of CSV: a `'` stands before what a spreadsheet would run, and control characters are gone."""
    text = plain(text)
    return f"'{text}" if _FORMULA.match(text) else text


def pipe_table(heads: Sequence[str], rows: Iterable[Sequence[str]], left: Collection[int] = (0,)) -> str:
    """A table; headings and cells are text, and columns stand on the right but those in `left`."""
    first, *rest = ["| " + " | ".join(map(escaped, cells)) + " |" for cells in (heads, *rows)]
    rule = "|" + "".join(":---|" if i in left else "---:|" for i in range(len(heads)))
    return "\n".join([first, rule, *rest])


def padded_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table with columns padded to one width, the first on the left, the others on the right."""
    cells = [[escaped(text) for text in row] for row in (heads, *rows)]
    width = [max(3, *(len(row[i]) for row in cells)) for i in range(len(heads))]
    lines = [
        "| " + " | ".join(x.ljust(w) if i == 0 else x.rjust(w) for i, (x, w) in enumerate(zip(row, width, strict=True)))
        for row in cells
    ]
    rule = "|" + "|".join(":" + "-" * (w + 1) if i == 0 else "-" * (w + 1) + ":" for i, w in enumerate(width)) + "|"
    return "\n".join([lines[0] + " |", rule, *(line + " |" for line in lines[1:])])
