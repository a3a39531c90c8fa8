"""Score matrices: one score per prompt and model, and the votes that follow from them."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from p2l_plugins.errors import DataError
from p2l_plugins.files.rows import BadRow, Row
from p2l_plugins.outcomes import Array
from p2l_plugins.prompts import Turns
from p2l_plugins.votes.columns import DESCRIPTIVE, ModelColumns, WideRows, need_models
from p2l_plugins.votes.tally import Tally
from p2l_plugins.votes.values import absent, clean_label, finite, model_name, turns_of
from p2l_plugins.votes.votes import Votes, outcome_of_scores

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
        rows: (P,) how many rows of the file say something of the prompt.
    """

    models: tuple[str, ...]
    prompts: list[Turns]
    category: list[str | None]
    scores: Array
    lower: NDArray[np.bool_]
    rows: NDArray[np.int64]

    def summary(self) -> dict[str, int]:
        """Counts of prompts, models and scores."""
        scores = int((~np.isnan(self.scores)).sum())
        return {"prompts": len(self.prompts), "models": len(self.models), "scores": scores}

    def votes(
        self, margin: float = 0.0, usable: float = 0.5, tally: Tally | None = None, pairs: int | None = None
    ) -> Votes:
        """Every pair of models on every prompt where both were run: the better score wins.

        Args:
            margin: scores that differ by no more are a tie.
            usable: two equal scores are a tie where the better one reaches this, else "tie (bothbad)".
            tally: is told how many rows are on prompts with fewer than two scores (rule "no-pair").
            pairs: most pairs of one prompt, drawn at random, the same ones each time; None: all.
        """
        if tally is not None:
            tally.drop("no-pair", int(self.rows[(~np.isnan(self.scores)).sum(1) < 2].sum()))
        first, second = np.triu_indices(len(self.models), 1)
        sign = np.where(self.lower, -1.0, 1.0)
        scores = sign[:, None] * self.scores
        there = ~np.isnan(scores)
        both = there[:, first] & there[:, second]
        prompt, pair = np.nonzero(both if pairs is None else _some(both, pairs))
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


def _some(there: NDArray[np.bool_], most: int) -> NDArray[np.bool_]:
    """At most so many true values of each row, drawn at random."""
    rng = np.random.default_rng(0)
    kept = np.zeros_like(there)
    for row, own in zip(kept, there, strict=True):
        columns = np.flatnonzero(own)
        row[columns if len(columns) <= most else rng.choice(columns, most, replace=False)] = True
    return kept


class MatrixBuilder:
    """Collects scores; several of one model on one prompt become their mean."""

    def __init__(self) -> None:
        self._models: dict[str, int] = {}
        self._prompts: dict[Turns, int] = {}
        self._category: list[str | None] = []
        self._lower = array("b")
        self._rows = array("q")
        self._row, self._column, self._score = array("i"), array("i"), array("d")

    def row(self, turns: Turns, category: str | None = None, lower: bool = False, rows: int = 1) -> int:
        """The row of a prompt; category and direction are those of its first occurrence.

        Args:
            rows: of the file, that stand behind this call.

        Raises:
            BadRow: rule "mixed-direction": of the same prompt a higher score was better before, and now a lower one.
        """
        row = self._prompts.setdefault(turns, len(self._prompts))
        if row == len(self._category):
            self._category.append(category)
            self._lower.append(lower)
            self._rows.append(0)
        elif bool(self._lower[row]) != lower:
            raise BadRow("mixed-direction", "the prompt has scores of another direction: import the two metrics apart")
        self._rows[row] += rows
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
        # divided first, so that the sum of the largest numbers is finite, but for its last bit
        parts = np.array(self._score, np.float64) / count[cell]
        most = np.finfo(np.float64).max
        scores = np.bincount(cell, parts, minlength=shape[0] * shape[1]).astype(np.float64).reshape(shape)
        scores = scores.clip(-most, most)
        scores[count.reshape(shape) == 0] = np.nan
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
            rows=np.array(self._rows, np.int64),
        )


def read_matrix(
    rows: Iterable[tuple[str, Row]],
    tally: Tally,
    *,
    lower_is_better: bool = False,
    columns: ModelColumns = ModelColumns(),  # noqa: B008  # frozen
) -> ScoreMatrix:
    """A matrix from long rows (`prompt`, `model`, `score`) or wide ones (`prompt`, a numeric column per model).

    The first row tells which. Wide: which columns are models says `columns`. A missing or NaN score is "not run".
    Rule that drops a row: "empty-prompt".

    Raises:
        DataError: the first score that is not a number, unless the tally drops them (rule "bad-score"); a column that
            looks like no model's, or a model that `columns` names and the rows lack.
    """
    builder = MatrixBuilder()
    wide = WideRows(columns)
    long: bool | None = None
    for place, row in rows:
        if long is None:
            long = "model" in row and "score" in row
        try:
            if "prompt" not in row:
                raise BadRow("bad-prompt", absent("prompt", row))
            turns = turns_of(row["prompt"], "prompt")
            category = clean_label(row.get("category")) or clean_label(row.get("benchmark"))
            if long:
                _add_long(builder, turns, category, lower_is_better, row)
            else:
                index = builder.row(turns, category, lower_is_better)
                for model, score in wide.scores(place, row):
                    builder.add(index, model, score)
        except BadRow as error:
            tally.bad(place, error)
    if long:
        matrix = builder.matrix(tally)
        need_models(columns.named, matrix.models)
        return matrix.only(columns.models, columns.not_models)
    models = wide.models(tally)
    for model in models:
        builder.model(model)
    return builder.matrix(tally, without=set(wide.seen) - set(models))


def _add_long(builder: MatrixBuilder, turns: Turns, category: str | None, lower: bool, row: Row) -> None:
    model = model_name(row.get("model"), "model")
    builder.model(model)
    score = finite(row.get("score"), "score")
    index = builder.row(turns, category, lower)
    if not math.isnan(score):
        builder.add(index, model, score)


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
