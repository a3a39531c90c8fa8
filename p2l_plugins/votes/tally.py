"""What an import read, dropped and has to say: no row disappears without a rule and a count."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from p2l_plugins.errors import DataError
from p2l_plugins.files.rows import BadRow, Row, read_rows

OnError = Literal["refuse", "drop"]


class Skip(BadRow):
    """A row that a named rule leaves out, although nothing in it is wrong."""

    def __init__(self, rule: str, message: str = "") -> None:
        super().__init__(rule, message or rule)


@dataclass
class Tally:
    """Counts of one import.

    Attributes:
        on_error: whether a bad row ends the import or is dropped.
        progress: called with a number of rows read, now and then.
        strict: a row that a rule leaves out ends the import, too.
        rows: rows read.
        dropped: per rule, what it dropped: rows while reading, votes while cleaning.
        notes: sentences for the user, each once.
    """

    on_error: OnError = "refuse"
    progress: Callable[[int], object] | None = None
    strict: bool = False
    rows: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)

    def read(self, path: Path, columns: Collection[str] | None = None) -> Iterator[tuple[str, Row]]:
        """The rows of a file, counted; those that can't be read too. See `read_rows`."""

        def bad(place: str, error: BadRow) -> None:
            self.rows += 1
            self.bad(place, error)

        for row in read_rows(path, bad, columns=columns):
            self.rows += 1
            if self.progress is not None and self.rows % 1000 == 0:
                self.progress(1000)
            yield row

    def drop(self, rule: str, count: int = 1) -> None:
        """Counts what a rule dropped."""
        if count:
            self.dropped[rule] += count

    def bad(self, place: str, error: BadRow) -> None:
        """Drops a row or refuses the file.

        Args:
            place: the file and the row.
            error: what is wrong with the row, or the rule that leaves it out.

        Raises:
            DataError: unless `on_error` is "drop", or it is a `Skip` and the tally is not strict.
        """
        if self.strict if isinstance(error, Skip) else self.on_error == "refuse":
            raise DataError(f"{place}: {error}")
        self.drop(error.rule)

    def lines(self) -> list[str]:
        """A small table: the rows read, and per rule what it dropped; then the notes."""
        width = max(map(len, ["rows read", *self.dropped]))
        rules = [f"{rule:<{width}}  {-count:>9}" for rule, count in self.dropped.items()]
        return [f"{'rows read':<{width}}  {self.rows:>9}", *rules, *(f"note: {note}" for note in self.notes)]

    def dropped_text(self) -> str:
        """The same as part of a sentence."""
        return ", ".join(f"{rule} {count}" for rule, count in self.dropped.items()) or "none"

    def note(self, text: str) -> None:
        """Keeps a sentence for the user."""
        if text not in self.notes:
            self.notes.append(text)


def shown(value: Any) -> str:
    """A value for an error message, cut to 60 characters."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a number of thousands of digits, a list inside thousands of others
        text = f"a {type(value).__name__} too large to show"
    return text if len(text) <= 60 else f"{text[:57]}..."
