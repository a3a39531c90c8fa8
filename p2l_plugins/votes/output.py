"""Writing votes files and score matrices, whole or not at all."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from p2l_plugins.files.tables import replaced_file
from p2l_plugins.outcomes import OUTCOMES
from p2l_plugins.prompts import Turns
from p2l_plugins.votes.scores import ScoreMatrix
from p2l_plugins.votes.tally import Tally
from p2l_plugins.votes.votes import Votes

FORMATS = (".jsonl", ".parquet")
_CHUNK = 50_000  # rows of a Parquet row group


def write_votes(path: Path, votes: Votes, tally: Tally) -> None:
    """Writes a votes file; a weight only where one is not 1, and a time stamp only where all votes have one.

    Raises:
        DataError: the path is a folder.
    """
    prompts = _values(path, votes.prompts)
    columns: dict[str, Sequence[Any]] = {
        "prompt": [prompts[i] for i in votes.prompt.tolist()],
        "model_a": [votes.models[i] for i in votes.a.tolist()],
        "model_b": [votes.models[i] for i in votes.b.tolist()],
        "winner": [OUTCOMES[i] for i in votes.outcome.tolist()],
    }
    if (votes.weight != 1).any():
        columns["weight"] = votes.weight.tolist()
    columns.update({name: column.tolist() for name, column in votes.labels.items()})
    if votes.timestamp is not None:
        if missing := int(np.isnan(votes.timestamp).sum()):
            tally.note(f"{missing} of {len(votes)} votes have no time stamp: the column is left out")
        else:
            columns["timestamp"] = votes.timestamp.tolist()
    _write(path, columns)


def write_side(path: Path, votes: Votes) -> None:
    """Writes votes as they were read: a score matrix as one, with the category of each prompt.

    Raises:
        DataError: the path is a folder.
    """
    if votes.scores is None:
        write_votes(path, votes, Tally())
        return
    lower, rows = np.zeros(len(votes.prompts), np.bool_), np.ones(len(votes.prompts), np.int64)
    groups = [group or None for group in votes.groups]
    write_matrix(path, ScoreMatrix(votes.models, votes.prompts, groups, votes.scores, lower, rows))


def write_matrix(path: Path, matrix: ScoreMatrix) -> None:
    """Writes a score matrix, in which a higher score is better.

    Raises:
        DataError: the path is a folder.
    """
    scores = np.where(matrix.lower[:, None], -matrix.scores, matrix.scores)
    columns: dict[str, Sequence[Any]] = {"prompt": _values(path, matrix.prompts)}
    if any(matrix.category):
        columns["category"] = matrix.category
    for i, name in enumerate(matrix.models):
        columns[name] = [None if math.isnan(x) else x for x in scores[:, i].tolist()]
    _write(path, columns)


def _values(path: Path, prompts: Sequence[Turns]) -> list[str | list[str]]:
    """Prompts as text or lists; in Parquet a column has one type, so all are lists where one is a conversation."""
    lists = path.suffix.lower() == ".parquet" and any(len(turns) > 1 for turns in prompts)
    return [list(turns) if lists or len(turns) > 1 else turns[0] for turns in prompts]


def _write(path: Path, columns: Mapping[str, Sequence[Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replaced_file(path) as temporary:
        if path.suffix.lower() == ".parquet":
            _write_parquet(temporary, columns)
            return
        with temporary.open("w", encoding="utf-8", newline="\n") as stream:
            for row in zip(*columns.values(), strict=True):
                stream.write(json.dumps(dict(zip(columns, row, strict=True)), ensure_ascii=False) + "\n")


def _write_parquet(path: Path, columns: Mapping[str, Sequence[Any]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = {str: pa.string(), float: pa.float64(), list: pa.list_(pa.string())}
    found = {name: next((value for value in column if value is not None), "") for name, column in columns.items()}
    schema = pa.schema([(name, kinds[type(value)]) for name, value in found.items()])
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for start in range(0, len(columns["prompt"]), _CHUNK):
            part = {name: column[start : start + _CHUNK] for name, column in columns.items()}
            writer.write_table(pa.table(part, schema=schema))
