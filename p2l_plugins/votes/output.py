"""Writing votes files and score matrices, whole or not at all."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
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
    codes: dict[str, tuple[Sequence[str], Any]] = {
        "model_a": (votes.models, votes.a),
        "model_b": (votes.models, votes.b),
        "winner": (OUTCOMES, votes.outcome),
    }
    values: dict[str, Any] = {}
    if (votes.weight != 1).any():
        values["weight"] = votes.weight
    values.update(votes.labels)
    if votes.timestamp is not None:
        if missing := int(np.isnan(votes.timestamp).sum()):
            tally.note(f"{missing} of {len(votes)} votes have no time stamp: the column is left out")
        else:
            values["timestamp"] = votes.timestamp
    path.parent.mkdir(parents=True, exist_ok=True)
    with replaced_file(path) as temporary:
        if path.suffix.lower() == ".parquet":
            _votes_parquet(temporary, votes, codes, values)
        else:
            _votes_jsonl(temporary, votes, codes, values)


def _votes_jsonl(path: Path, votes: Votes, codes: Any, values: Any) -> None:
    prompts = [_json(_plain(turns)) for turns in votes.prompts]
    texts = [[f', "{key}": {_json(name)}' for name in names] for key, (names, _) in codes.items()]
    columns = [votes.prompt.tolist(), *(column.tolist() for _, column in codes.values())]
    extra = list(zip(*(column.tolist() for column in values.values()), strict=True)) or [()] * len(votes)
    with path.open("w", encoding="utf-8", newline="\n") as stream:
        for prompt, a, b, winner, rest in zip(*columns, extra, strict=True):
            line = f'{{"prompt": {prompts[prompt]}{texts[0][a]}{texts[1][b]}{texts[2][winner]}'
            for key, value in zip(values, rest, strict=True):
                line += f', "{key}": {_json(value)}'
            stream.write(line + "}\n")


def _votes_parquet(path: Path, votes: Votes, codes: Any, values: Any) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    prompts, kind = _one_type(votes.prompts)
    types = {name: pa.float64() if name in ("weight", "timestamp") else pa.string() for name in values}
    schema = pa.schema([("prompt", kind), *((key, pa.string()) for key in codes), *types.items()])
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for start in range(0, len(votes), _CHUNK):
            part = slice(start, start + _CHUNK)
            columns = [pa.array([prompts[i] for i in votes.prompt[part].tolist()], kind)]
            columns += [pa.array(list(names), pa.string()).take(pa.array(c[part])) for names, c in codes.values()]
            columns += [pa.array(column[part].tolist(), types[name]) for name, column in values.items()]
            writer.write_batch(pa.record_batch(columns, schema=schema))


def write_matrix(path: Path, matrix: ScoreMatrix) -> None:
    """Writes a score matrix, in which a higher score is better."""
    scores = np.where(matrix.lower[:, None], -matrix.scores, matrix.scores)
    category = matrix.category if any(matrix.category) else None
    path.parent.mkdir(parents=True, exist_ok=True)
    with replaced_file(path) as temporary:
        if path.suffix.lower() == ".parquet":
            import pyarrow as pa
            import pyarrow.parquet as pq

            prompts, kind = _one_type(matrix.prompts)
            columns: dict[str, Any] = {"prompt": pa.array(prompts, kind)}
            if category is not None:
                columns["category"] = pa.array(category, pa.string())
            columns.update({m: pa.array(scores[:, i], from_pandas=True) for i, m in enumerate(matrix.models)})
            pq.write_table(pa.table(columns), temporary, compression="zstd")
            return
        with temporary.open("w", encoding="utf-8", newline="\n") as stream:
            for i, (turns, row) in enumerate(zip(matrix.prompts, scores.tolist(), strict=True)):
                record: dict[str, Any] = {"prompt": _plain(turns)}
                if category is not None:
                    record["category"] = category[i]
                record.update({m: None if math.isnan(x) else x for m, x in zip(matrix.models, row, strict=True)})
                stream.write(_json(record) + "\n")


def _plain(turns: Turns) -> str | list[str]:
    return turns[0] if len(turns) == 1 else list(turns)


def _one_type(prompts: list[Turns]) -> tuple[list[Any], Any]:
    """Prompts as values of one Arrow type: text, or lists where one prompt is a conversation."""
    import pyarrow as pa

    if all(len(turns) == 1 for turns in prompts):
        return [turns[0] for turns in prompts], pa.string()
    return [list(turns) for turns in prompts], pa.list_(pa.string())


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
