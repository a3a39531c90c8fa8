"""Scores of a file of prompts written as JSONL, CSV or Parquet, chunk by chunk, so that an interrupted run can go on.

Every chunk becomes a part in the folder `OUTPUT.partial`, complete or not there at all. At the end the parts are joined
in order, and the output takes its place in one step.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from p2l_plugins.cells import csv_cell
from p2l_plugins.errors import ConfigError, DataError
from p2l_plugins.files.prompts import CHUNK_CHARACTERS, CHUNK_PROMPTS, PromptFile, Summary
from p2l_plugins.files.tables import full_disk_named, need_folder
from p2l_plugins.prompts import Prompt
from p2l_plugins.scoring.scorer import P2L, Scores

#: Scores chunks of prompts, in their order.
ChunkScorer = Callable[[Iterator[list[Prompt]]], Iterator[Scores]]

FORMATS = (".jsonl", ".csv", ".parquet")
STATE = "state.json"


def check_output(path: Path) -> None:
    """Refuses what can't be written, before anything is scored.

    Raises:
        ConfigError: another ending than `FORMATS`, or no such folder.
        DataError: pyarrow is missing.
    """
    if path.suffix not in FORMATS:
        raise ConfigError(f"{path}: the ending {path.suffix!r} is not one of {', '.join(FORMATS)}")
    need_folder(path)
    if path.suffix == ".parquet":
        try:
            import pyarrow  # noqa: F401
        except ImportError:
            raise DataError(f"{path}: writing Parquet needs pyarrow: pip install pyarrow") from None


def score_to_file(
    p2l: P2L,
    prompts: PromptFile,
    found: Summary,
    output: Path,
    resume: bool = False,
    progress: Callable[[int], None] | None = None,
    chunk: int = CHUNK_PROMPTS,
    engine: ChunkScorer | None = None,
) -> None:
    """Scores all prompts into a file.

    Args:
        p2l: the bundle.
        prompts: the file.
        found: what its first pass found.
        output: a path that `check_output` accepts. An older file there is replaced at the end.
        resume: go on with the parts of an interrupted run, where there are any; the output is the same.
        progress: called with the number of prompts that were done since the last call.
        chunk: prompts of a part.
        engine: scores chunks of prompts, in their order; default: `p2l` itself.

    Raises:
        ConfigError: the parts are of another bundle, input or format.
    """
    folder = output.with_name(f"{output.name}.partial")
    state = {
        "fingerprint": p2l.fingerprint,
        "input_sha256": found.digest,
        "format": output.suffix,
        "chunk": [chunk, CHUNK_CHARACTERS],
        "prompt_field": prompts.field,
    }
    if resume and (folder / STATE).is_file():
        _check_state(folder, state)
    else:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        (folder / STATE).write_text(json.dumps(state), encoding="utf-8")
    done = sum(1 for _ in folder.glob("*.part"))  # they are written in order
    texts = (rows[prompts.field] for rows in prompts.chunks(chunk))
    for prompts_done in map(len, itertools.islice(texts, done)):
        if progress is not None:
            progress(prompts_done)
    left, again = itertools.tee(texts)
    if engine is None:
        scored: Iterator[Scores] = (p2l.score(part, progress) for part in left)
    else:
        scored = engine(left)
    with full_disk_named(output):
        for number, (part, scores) in enumerate(zip(again, scored, strict=True), start=done):
            temporary = folder / "new"
            _write(temporary, part, scores, output.suffix, found.conversations)
            os.replace(temporary, folder / f"{number:08d}.part")
            if engine is not None and progress is not None:
                progress(len(part))
        joined = folder / f"joined{output.suffix}"
        _join(folder, joined, p2l.models)
        os.replace(joined, output)
    shutil.rmtree(folder)


def json_lines(texts: Sequence[Prompt], scores: Scores) -> Iterator[str]:
    """One JSON object per prompt: prompt, coefs, raw_eta."""
    for text, row, eta in zip(texts, scores.coefs, _raw_eta(scores), strict=True):
        coefs = dict(zip(scores.models, map(float, row), strict=True))
        yield json.dumps({"prompt": text, "coefs": coefs, "raw_eta": eta}, ensure_ascii=False)


def _check_state(folder: Path, state: dict[str, Any]) -> None:
    try:
        before = json.loads((folder / STATE).read_text(encoding="utf-8"))
        other = next((key for key in state if before[key] != state[key]), None)
    except (ValueError, KeyError, TypeError):
        other = "state"
    if other is not None:
        raise ConfigError(f"{folder}: made with another {other}; leave --resume out to start over")


def _raw_eta(scores: Scores) -> list[float | None]:
    return [None] * len(scores) if scores.raw_eta is None else [float(x) for x in scores.raw_eta]


def _write(path: Path, texts: Sequence[Prompt], scores: Scores, kind: str, conversations: bool) -> None:
    """A part; without the header, for CSV."""
    if kind == ".jsonl":
        path.write_text("".join(line + "\n" for line in json_lines(texts, scores)), encoding="utf-8")
        return
    # a column has one type: conversations are JSON text in CSV, and make every prompt a list in Parquet
    if kind == ".csv":
        cells = [text if isinstance(text, str) else json.dumps(text, ensure_ascii=False) for text in texts]
        with path.open("w", newline="", encoding="utf-8") as stream:
            rows = zip(cells, _raw_eta(scores), scores.coefs.tolist(), strict=True)
            csv.writer(stream).writerows([csv_cell(cell), eta, *coefs] for cell, eta, coefs in rows)
        return
    import pyarrow as pa
    import pyarrow.parquet as pq

    prompts = [[text] if isinstance(text, str) else list(text) for text in texts] if conversations else list(texts)
    columns: dict[str, list[Any]] = {"prompt": prompts, "raw_eta": _raw_eta(scores)}
    columns.update({name: [float(x) for x in scores.coefs[:, i]] for i, name in enumerate(scores.models)})
    pq.write_table(pa.table(columns), path)


def _join(folder: Path, target: Path, models: tuple[str, ...]) -> None:
    parts = sorted(folder.glob("*.part"))
    if target.suffix == ".parquet":
        import pyarrow.parquet as pq

        with pq.ParquetWriter(target, pq.read_schema(parts[0])) as writer:
            for part in parts:
                writer.write_table(pq.read_table(part))
        return
    with target.open("wb") as stream:
        if target.suffix == ".csv":
            header = io.StringIO(newline="")
            csv.writer(header).writerow(["prompt", "raw_eta", *map(csv_cell, models)])
            stream.write(header.getvalue().encode())
        for part in parts:
            with part.open("rb") as source:
                shutil.copyfileobj(source, stream)
