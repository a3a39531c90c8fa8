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
from p2l_plugins.votes.table import VoteTable, label, model_name, turns_of
from p2l_plugins.votes.tally import Skip, Tally, shown
from p2l_plugins.votes.votes import DESCRIPTIVE

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

    def summary(self) -> dict[str, Any]:
        """Counts of prompts, models and scores."""
        scores = int((~np.isnan(self.scores)).sum())
        return {"prompts": len(self.prompts), "models": len(self.models), "scores": scores}

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
    numbers: Counter[str] = Counter()
    odd: dict[str, tuple[str, Any]] = {}
    odd_count: Counter[str] = Counter()
    long: bool | None = None
    for place, row in rows:
        if long is None:
            long = "model" in row and "score" in row
        try:
            turns = turns_of(row.get("prompt"), "prompt") if "prompt" in row else _no_prompt(row)
            index = builder.row(turns, label(row.get("category") or row.get("benchmark")), lower_is_better)
            cells = {model_name(row.get("model"), "model"): row.get("score")} if long else row
            for name, value in cells.items():
                if name in DESCRIPTIVE and not long:
                    continue
                builder.model(clean(name))
                if value is None or value == "":
                    continue
                score = _number(value)
                if score is None and long:
                    raise BadRow("bad-score", f"score is {shown(value)}, but must be a number or empty")
                if score is None:
                    odd.setdefault(name, (place, value))
                    odd_count[name] += 1
                elif not math.isnan(score):
                    numbers[name] += 1
                    builder.add(index, clean(name), score)
        except Skip as skip:
            tally.drop(skip.rule)
        except BadRow as error:
            tally.bad(place, error)
    text = [name for name in odd if numbers[name] < odd_count[name]]
    if text:
        tally.note(f"columns of text are no models: {', '.join(text)}")
    for name, (place, value) in odd.items():
        if name not in text:
            problem = BadRow("bad-score", f"the score of {name!r} is {shown(value)}, but must be a number or empty")
            tally.bad(place, problem)
            tally.drop("bad-score", odd_count[name] - 1)
    return builder.matrix(tally, without=text)


def _no_prompt(row: Row) -> Turns:
    raise BadRow("bad-prompt", f"column 'prompt' is missing; the row has {shown(list(row))}")


def _number(value: Any) -> float | None:
    """A score; NaN is "not run"; None is no score (text, or infinite)."""
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


def votes_of(matrix: ScoreMatrix, margin: float = 0.0, usable: float = 0.5) -> VoteTable:
    """Every pair of models on every prompt where both were run: the better score wins.

    Args:
        matrix: the scores.
        margin: scores that differ by no more are a tie.
        usable: two equal scores are a tie where the better one reaches this, else "tie (bothbad)".
    """
    first, second = np.triu_indices(len(matrix.models), 1)
    sign = np.where(matrix.lower, -1.0, 1.0)[:, None]
    scores = sign * matrix.scores
    difference = scores[:, first] - scores[:, second]
    known = ~np.isnan(difference)
    prompt, pair = np.nonzero(known)
    best = np.fmax(scores[:, first], scores[:, second])[known]
    limit = (sign[:, 0] * usable)[prompt]
    d = difference[known]
    outcome = np.where(d > margin, 0, np.where(d < -margin, 1, np.where(best >= limit, 2, 3))).astype(np.int64)
    category = np.array(matrix.category, np.object_)
    return VoteTable(
        models=matrix.models,
        prompts=matrix.prompts,
        prompt=prompt,
        a=first[pair],
        b=second[pair],
        outcome=outcome,
        weight=np.ones(len(prompt)),
        labels={"category": category[prompt]} if any(matrix.category) else {},
    )
