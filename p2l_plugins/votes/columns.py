"""Which columns of a score matrix are models: the user's word, and rules for columns that count, measure or name rows.

No list of names could hold all that people keep beside their scores. So columns without a name are left out, and one
whose numbers look like those of no model is refused until the user says what it is.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from p2l_plugins.errors import DataError
from p2l_plugins.files.rows import BadRow
from p2l_plugins.prompts import clean
from p2l_plugins.similar import hint
from p2l_plugins.votes.tally import Tally
from p2l_plugins.votes.values import finite

#: Columns of a score matrix that describe a row; every other numeric column is a model.
DESCRIPTIVE = frozenset(
    "prompt id question_id doc_id index benchmark category language subset source metric weight timestamp".split()
)
#: How pandas and Arrow name a column that has no name: the row's number, written out with the table.
_UNNAMED = re.compile(r"\s*|Unnamed: \d+(_level_\d+)?|__index_level_\d+__|level_\d+")
#: Scores are usually on one of these scales, from 0.
_SCALES = (1.0, 10.0, 100.0)
_BEYOND = 0.5  # of a scale: bonuses and corrected scores go a little beyond it
_LEAST_ROWS = 3  # fewer numbers show no pattern


@dataclass(frozen=True)
class ModelColumns:
    """What the user says of the columns.

    Attributes:
        models: only these are models; empty: all that no rule leaves out.
        not_models: these are none.
    """

    models: tuple[str, ...] = ()
    not_models: tuple[str, ...] = ()

    @property
    def named(self) -> tuple[str, ...]:
        """All names."""
        return (*self.models, *self.not_models)


@dataclass
class _Column:
    """What is known of the numbers of a column."""

    numbers: int = 0
    text: int = 0
    bad: int = 0
    first_text: tuple[str, BadRow] | None = None
    low: float = math.inf
    high: float = -math.inf
    last: float = math.nan
    counts: bool = True

    def add(self, score: float) -> None:
        self.counts = self.counts and (self.numbers == 0 or score == self.last + 1)
        self.numbers += 1
        self.last = score
        self.low, self.high = min(self.low, score), max(self.high, score)


def unnamed(column: str) -> bool:
    """Whether a column has no name of its own."""
    return _UNNAMED.fullmatch(column) is not None


class WideRows:
    """Rows with a column per model; only at the end it is known which columns are none.

    Attributes:
        seen: columns that may be models, by the name of the model.
    """

    def __init__(self, columns: ModelColumns) -> None:
        self._said = columns
        self._names: dict[str, str] = {}
        self._unnamed: dict[str, None] = {}
        self._all: dict[str, None] = {}
        self.seen: dict[str, _Column] = {}

    def scores(self, place: str, row: Mapping[str, object]) -> Iterator[tuple[str, float]]:
        """Model and score of each cell that holds one."""
        for column, value in row.items():
            name = self._names.get(column) or self._name(column)
            found = self.seen.get(name)
            if found is None:
                continue
            try:
                score = finite(value, f"the score of {name!r}")
            except BadRow as error:
                if isinstance(value, str):
                    found.text += 1
                else:
                    found.bad += 1
                found.first_text = found.first_text or (place, error)
                continue
            if not math.isnan(score):
                found.add(score)
                yield name, score

    def _name(self, column: str) -> str:
        """Takes a column in at its first row."""
        name = self._names[column] = clean(column)
        self._all[name] = None
        chosen = name in self._said.models if self._said.models else name not in DESCRIPTIVE
        if name in self._said.not_models or not chosen:
            return name
        if unnamed(name) and name not in self._said.models:
            self._unnamed[name] = None
            return name
        self.seen[name] = _Column()
        return name

    def models(self, tally: Tally) -> list[str]:
        """The columns that are models, in their order.

        Raises:
            DataError: a column that counts the rows or is on another scale than the others and of which the user says
                nothing; a name that no row has; a value that is no number, unless the tally drops it.
        """
        need_models(self._said.named, list(self._all))
        text = [] if self._said.models else [name for name, c in self.seen.items() if c.numbers < c.text]
        if self._unnamed:
            tally.note(f"columns without a name are no models: {', '.join(map(repr, self._unnamed))}")
        if text:
            tally.note(f"columns of text are no models: {', '.join(text)}")
        left = {name: column for name, column in self.seen.items() if name not in text}
        for column in left.values():
            if column.first_text is not None:
                place, error = column.first_text
                tally.bad(place, error)
                tally.drop("bad-score", column.text + column.bad - 1)
        if not self._said.models:
            _refuse_others(left)
            flat = [n for n, c in left.items() if c.numbers >= _LEAST_ROWS and c.low == c.high]
            if flat:
                tally.note(
                    f"columns with one score on all prompts: {', '.join(flat)}; --not-models NAME leaves one out"
                )
        return list(left)


def _refuse_others(columns: Mapping[str, _Column]) -> None:
    """Raises a DataError where a column counts the rows, or is on another scale than most."""
    many = {name: column for name, column in columns.items() if column.numbers >= _LEAST_ROWS}
    scale = _scale([column for column in many.values() if column.low < column.high])
    odd = {name: f"counts the rows from {column.low:g}" for name, column in many.items() if column.counts}
    for name, column in many.items():
        if (
            name not in odd
            and scale is not None
            and not (column.low >= -_BEYOND * scale and column.high <= (1 + _BEYOND) * scale)
        ):
            odd[name] = f"goes from {column.low:g} to {column.high:g}, while most columns keep to 0 to {scale:g}"
    if odd:
        name, reason = next(iter(odd.items()))
        options = " ".join(f"--not-models {_quoted(other)}" for other in odd)
        raise DataError(
            f"the column {name!r} {reason}, as no score of a model would: leave it out with {options}, or name the "
            "columns that are models with --models NAME, once for each (`models` and `not_models` of a file in a "
            "training configuration)"
        )


def _scale(columns: Sequence[_Column]) -> float | None:
    """The smallest scale that more than half of the columns keep to; None where there is none."""
    for scale in _SCALES:
        if 2 * sum(column.low >= 0 and column.high <= scale for column in columns) > len(columns):
            return scale
    return None


def _quoted(name: str) -> str:
    return name if re.fullmatch(r"[\w.:/+-]+", name) else repr(name)


def need_models(names: Iterable[str], known: Sequence[str]) -> None:
    """Raises a DataError for a name that no row has, with similar ones."""
    for name in names:
        if name not in known:
            raise DataError(f"the model {name!r} is not in the file; {hint(name, known, 'it has')}")
