"""What an import read, dropped and has to say: no row disappears without a rule and a count."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from p2l_plugins.errors import DataError
from p2l_plugins.files.rows import BadRow

OnError = Literal["refuse", "drop"]


class Skip(Exception):
    """A row that a named rule leaves out, although nothing in it is wrong.

    Attributes:
        rule: the rule's name.
    """

    def __init__(self, rule: str) -> None:
        super().__init__(rule)
        self.rule = rule


@dataclass
class Tally:
    """Counts of one import.

    Attributes:
        on_error: whether a bad row ends the import or is dropped.
        progress: called with a number of rows read, now and then.
        rows: rows read.
        dropped: per rule, what it dropped: rows while reading, votes while cleaning.
        notes: sentences for the user, each once.
    """

    on_error: OnError = "refuse"
    progress: Callable[[int], object] | None = None
    rows: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)

    def read(self) -> None:
        """Counts a row."""
        self.rows += 1
        if self.progress is not None and self.rows % 1000 == 0:
            self.progress(1000)

    def drop(self, rule: str, count: int = 1) -> None:
        """Counts what a rule dropped."""
        if count:
            self.dropped[rule] += count

    def bad(self, place: str, error: BadRow) -> None:
        """Drops a bad row or refuses the file.

        Args:
            place: the file and the row.

        Raises:
            DataError: unless `on_error` is "drop".
        """
        if self.on_error == "refuse":
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
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
