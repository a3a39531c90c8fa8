"""Score matrices: one score per prompt and model, and the votes that follow from them."""

from __future__ import annotations

import difflib
import math
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from p2l_plugins.errors import DataError
from p2l_plugins.files.rows import BadRow, Row
from p2l_plugins.outcomes import Array
from p2l_plugins.prompts import Turns, clean
from p2l_plugins.votes.tally import Tally, shown
from p2l_plugins.votes.values import clean_label, model_name, turns_of
from p2l_plugins.votes.votes import Votes, outcome_of_scores

#: Columns of a score matrix that describe a row; every other numeric column is a model.
DESCRIPTIVE = frozenset(
    "prompt id question_id doc_id index benchmark category language subset source metric weight timestamp".split()
)
#: Names that a reader of a score matrix does not take for a model.
_RESERVED = DESCRIPTIVE | {"model_a", "model_b", "winner"}


@dataclass(frozen=True)
class ScoreMatrix:
    """Scores of M models on P distinct prompts.

    Attributes:
        models: names of the columns.
        prompts: P prompts.
        category: P labels, None where there is none.
        scores: (P, M), NaN where a model was not run.
        lower: (P,) True where a lower score is better.
    """

    models: tuple[str, ...]
    prompts: list[Turns]
    category: list[str | None]
    scores: Array
    lower: NDArray[np.bool_]

    def summary(self) -> dict[str, int]:
        """Counts of prompts, models and scores."""
        scores = int((~np.isnan(self.scores)).sum())
        return {"prompts": len(self.prompts), "models": len(self.models), "scores": scores}

    def votes(self, margin: float = 0.0, usable: float = 0.5) -> Votes:
        """Every pair of models on every prompt where both were run: the better score wins.

        Args:
            margin: scores that differ by no more are a tie.
            usable: two equal scores are a tie where the better one reaches this, else "tie (bothbad)".
        """
        first, second = np.triu_indices(len(self.models), 1)
        sign = np.where(self.lower, -1.0, 1.0)
        scores = sign[:, None] * self.scores
        prompt, pair = np.nonzero(~np.isnan(scores[:, first] + scores[:, second]))
        a, b = first[pair], second[pair]
        category = np.array(self.category, np.object_)
        return Votes(
            models=self.models,
            prompts=self.prompts,
            groups=[name or "" for name in self.category],
            prompt=prompt,
            a=a,
            b=b,
            outcome=outcome_of_scores(scores[prompt, a], scores[prompt, b], margin, (sign * usable)[prompt]),
            weight=np.ones(len(prompt)),
            scores=scores,
            labels={"category": category[prompt]} if any(self.category) else {},
        )

    def only(self, keep: Sequence[str], drop: Sequence[str]) -> ScoreMatrix:
        """The matrix with only the models in `keep` (all, if empty) and without those in `drop`.

        Raises:
            DataError: a name that is not there.
        """
        need_models([*keep, *drop], self.models)
        columns = [i for i, m in enumerate(self.models) if (not keep or m in keep) and m not in drop]
        return replace(self, models=tuple(self.models[i] for i in columns), scores=self.scores[:, columns])


def need_models(names: Iterable[str], known: Sequence[str]) -> None:
    """Raises a DataError for a name that no row has, with similar ones."""
    for name in names:
        if name not in known:
            similar = difflib.get_close_matches(name, known, n=3)
            hint = f"similar: {', '.join(similar)}" if similar else f"{len(known)} models are"
            raise DataError(f"the model {name!r} is not in the file; {hint}")


class MatrixBuilder:
    """Collects scores; several of one model on one prompt become their mean."""

    def __init__(self) -> None:
        self._models: dict[str, int] = {}
        self._prompts: dict[Turns, int] = {}
        self._category: list[str | None] = []
        self._lower = array("b")
        self._row, self._column, self._score = array("i"), array("i"), array("d")

    def row(self, turns: Turns, category: str | None = None, lower: bool = False) -> int:
        """The row of a prompt; category and direction are those of its first occurrence."""
        row = self._prompts.setdefault(turns, len(self._prompts))
        if row == len(self._category):
            self._category.append(category)
            self._lower.append(lower)
        return row

    def model(self, name: str) -> int:
        """The column of a model; they keep the order in which they are first named."""
        return self._models.setdefault(name, len(self._models))

    def add(self, row: int, model: str, score: float) -> None:
        """Adds a finite score."""
        self._row.append(row)
        self._column.append(self.model(model))
        self._score.append(score)

    def matrix(self, tally: Tally, without: Iterable[str] = ()) -> ScoreMatrix:
        """The scores so far.

        Args:
            tally: is told how many scores were averaged.
            without: names of columns to leave out, besides those that hold no score.
        """
        shape = (len(self._prompts), len(self._models))
        cell = np.array(self._row, np.int64) * shape[1] + np.array(self._column, np.int64)
        count = np.bincount(cell, minlength=shape[0] * shape[1])
        total = np.bincount(cell, np.array(self._score), minlength=shape[0] * shape[1])
        with np.errstate(invalid="ignore"):
            scores = (total / count).reshape(shape)
        count = count.reshape(shape)
        columns = [i for name, i in self._models.items() if name not in set(without) and count[:, i].any()]
        count = count[:, columns]
        repeated = int((count - 1).clip(0).sum())
        if repeated:
            tally.note(f"{repeated} scores repeat a prompt and model: each such cell is the mean")
        names = list(self._models)
        return ScoreMatrix(
            models=tuple(names[i] for i in columns),
            prompts=list(self._prompts),
            category=self._category,
            scores=scores[:, columns],
            lower=np.array(self._lower, np.bool_),
        )


def read_matrix(rows: Iterable[tuple[str, Row]], tally: Tally, *, lower_is_better: bool = False) -> ScoreMatrix:
    """A matrix from long rows (`prompt`, `model`, `score`) or wide ones (`prompt`, a numeric column per model).

    The first row tells which. Wide: columns that mostly hold text are no models. A missing or NaN score is "not run".
    Rule that drops a row: "empty-prompt".

    Raises:
        DataError: the first score that is not a number, unless the tally drops them (rule "bad-score").
    """
    builder = MatrixBuilder()
    wide = _WideRows(builder)
    long: bool | None = None
    for place, row in rows:
        if long is None:
            long = "model" in row and "score" in row
        try:
            if "prompt" not in row:
                raise BadRow("bad-prompt", f"column 'prompt' is missing; the row has {shown(list(row))}")
            turns = turns_of(row["prompt"], "prompt")
            index = builder.row(turns, clean_label(row.get("category") or row.get("benchmark")), lower_is_better)
            if long:
                _add_long(builder, index, row)
            else:
                wide.add(index, place, row)
        except BadRow as error:
            tally.bad(place, error)
    return builder.matrix(tally, without=wide.columns_of_text(tally))


def _add_long(builder: MatrixBuilder, index: int, row: Row) -> None:
    model, value = model_name(row.get("model"), "model"), row.get("score")
    builder.model(model)
    score = _number(value)
    if score is None:
        raise BadRow("bad-score", f"score is {shown(value)}, but must be a number or empty")
    if not math.isnan(score):
        builder.add(index, model, score)


class _WideRows:
    """Rows with a column per model; only at the end it is known which columns are text."""

    def __init__(self, builder: MatrixBuilder) -> None:
        self._builder = builder
        self._names: dict[str, str] = {}
        self._numbers: Counter[str] = Counter()
        self._odd: Counter[str] = Counter()
        self._first: dict[str, tuple[str, Any]] = {}

    def add(self, index: int, place: str, row: Row) -> None:
        for column, value in row.items():
            if column in DESCRIPTIVE:
                continue
            if column not in self._names:
                self._names[column] = clean(column)
                self._builder.model(self._names[column])
            score = _number(value)
            if score is None:
                self._odd[column] += 1
                self._first.setdefault(column, (place, value))
            elif not math.isnan(score):
                self._numbers[column] += 1
                self._builder.add(index, self._names[column], score)

    def columns_of_text(self, tally: Tally) -> list[str]:
        """Columns that are no models; a value that is no number in the others is a bad row."""
        text = [name for name, odd in self._odd.items() if self._numbers[name] < odd]
        if text:
            tally.note(f"columns of text are no models: {', '.join(text)}")
        for name, odd in self._odd.items():
            if name not in text:
                place, value = self._first[name]
                problem = f"the score of {name!r} is {shown(value)}, but must be a number or empty"
                tally.bad(place, BadRow("bad-score", problem))
                tally.drop("bad-score", odd - 1)
        return text


def _number(value: Any) -> float | None:
    """A score; NaN is "not run"; None is no score (text, or infinite)."""
    if value is None or value == "":
        return math.nan
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return None if math.isinf(number) else number


def check_matrix(matrix: ScoreMatrix, source: str) -> None:
    """Refuses what no reader of a score matrix would understand.

    Raises:
        DataError: fewer than two models, no prompt, or a model named like a descriptive column.
    """
    if len(matrix.models) < 2:
        found = ", ".join(matrix.models) or "none"
        raise DataError(f"{source}: two models at least are needed to compare; found: {found}")
    reserved = [name for name in matrix.models if name in _RESERVED]
    if reserved:
        raise DataError(f"{source}: a model can't be named {reserved[0]!r}: the name stands for a column of its own")
