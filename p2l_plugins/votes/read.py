"""Votes files and score matrices, as training and evaluation read them: the first wrong row refuses the file."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from p2l_plugins.errors import DataError
from p2l_plugins.files.rows import Row, delimiter_hint, missing_column, read_rows
from p2l_plugins.prompts import clean
from p2l_plugins.votes.arena import arena_votes
from p2l_plugins.votes.columns import DESCRIPTIVE, ModelColumns, need_models, unnamed
from p2l_plugins.votes.scores import ScoreMatrix, read_matrix
from p2l_plugins.votes.tally import Tally
from p2l_plugins.votes.votes import Votes

_VOTE = ("model_a", "model_b", "winner")
#: What is read of a votes file.
_COLUMNS = ("prompt", *_VOTE, "weight", "language", "category", "timestamp")


def read_votes(
    path: Path,
    aliases: Mapping[str, str] | None = None,
    usable: float = 0.5,
    margin: float = 0.0,
    models: ModelColumns = ModelColumns(),  # noqa: B008  # frozen
    where: Mapping[str, str] | None = None,
    pairs: int | None = None,
) -> Votes:
    """A votes file or a score matrix, told apart by the column `winner`.

    Args:
        path: Parquet, JSONL, JSON or CSV.
        aliases: canonical name of each model name in the file; names that are not listed stay.
        usable: a score below this is not usable: two equal ones are "tie (bothbad)".
        margin: scores that differ by no more than this are a tie.
        models: which columns of a score matrix are models, by their names in the file; of votes, the models whose
            votes count.
        where: column → the text that a row must have in it; other rows are left out.
        pairs: most pairs of models that become votes of one prompt of a score matrix, drawn at random; None: all.

    Raises:
        DataError: what is wrong with the file: column, row, value, and what is valid.
    """
    rows = [row for _, row in read_rows(path, need=["prompt"])]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    if where:  # models of other rows are none of these
        rows = _chosen(rows, columns, path, where)
        columns = [name for name in columns if not all(_is_missing(row.get(name)) for row in rows)]
    if set(_VOTE) & set(columns):
        for name in _VOTE:
            if name not in columns:
                raise missing_column(path, name, columns)
        rows = _between(rows, path, models)
        return _from_votes(rows, columns, path, aliases or {})
    return _from_matrix(rows, columns, path, aliases or {}, models).votes(margin, usable, pairs=pairs)


def _between(rows: list[Row], path: Path, models: ModelColumns) -> list[Row]:
    """The votes whose two models the user wants."""
    if not models.named:
        return rows
    found = {name for row in rows for side in ("model_a", "model_b") if isinstance(name := row.get(side), str)}
    need_models(models.named, sorted(found))

    def wanted(name: object) -> bool:
        return name not in models.not_models and (not models.models or name in models.models)

    return [row for row in rows if wanted(row.get("model_a")) and wanted(row.get("model_b"))]


def _chosen(rows: list[Row], columns: list[str], path: Path, where: Mapping[str, str]) -> list[Row]:
    for name, value in where.items():
        if name not in columns:
            raise missing_column(path, name, columns)
        found = {str(row.get(name)) for row in rows}
        if value not in found:
            raise DataError(f"{path}: no row has {value!r} in the column {name!r}; it holds {', '.join(sorted(found))}")
    return [row for row in rows if all(str(row.get(name)) == value for name, value in where.items())]


def _placed(rows: Iterable[Row], path: Path) -> Iterable[tuple[str, Row]]:
    return ((f"{path}: row {number}", row) for number, row in enumerate(rows, start=1))


def _from_votes(rows: list[Row], columns: list[str], path: Path, aliases: Mapping[str, str]) -> Votes:
    def kept(row: Row) -> Row:
        own = {name: row.get(name) for name in _COLUMNS}
        for side in ("model_a", "model_b"):
            if isinstance(name := own[side], str):
                own[side] = aliases.get(name, name)
        if "category" not in columns:
            own["category"] = row.get("benchmark")
        return own

    votes = arena_votes(_placed(map(kept, rows), path), Tally(strict=True))
    return votes.renamed(sorted(votes.models)).by_prompt()


def _from_matrix(
    rows: list[Row], columns: list[str], path: Path, aliases: Mapping[str, str], chosen: ModelColumns
) -> ScoreMatrix:
    matrix = read_matrix(_placed(rows, path), Tally(strict=True), columns=chosen)
    for name in [] if chosen.models else columns:
        if name in DESCRIPTIVE or name in chosen.not_models or unnamed(name) or clean(name) in matrix.models:
            continue
        if all(_is_missing(r.get(name)) for r in rows):
            raise DataError(f"{path}: the model {name!r} has no votes: its column holds no score; drop the column")
    if len(matrix.models) < 2:
        raise DataError(
            f"{path}: neither a votes file (prompt, model_a, model_b, winner) nor a score matrix (prompt and one "
            f"numeric column per model, two at least); the file has {', '.join(map(repr, columns))}"
            f"{delimiter_hint(columns)}"
        )
    models = tuple(aliases.get(name, name) for name in matrix.models)
    if len(set(models)) < len(models):
        twice = next(name for name in models if models.count(name) > 1)
        raise DataError(f"{path}: two columns are both the model {twice!r}")
    return replace(matrix, models=models)


def _is_missing(value: object) -> bool:
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))
