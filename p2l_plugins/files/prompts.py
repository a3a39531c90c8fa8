"""A file of prompts read in chunks, so that millions of prompts take no more memory than thousands.

It is read twice: a first pass counts and checks the prompts, so that a bad one is named before anything is scored; the
second gives them in chunks, which are the same in every run.
"""

from __future__ import annotations

import hashlib
import math
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from p2l_plugins.errors import DataError, PromptError
from p2l_plugins.files.tables import TABLE_FORMATS, Column, csv_rows, jsonl_rows
from p2l_plugins.prompts import as_turns

#: A chunk ends at so many prompts or characters.
CHUNK_PROMPTS = 4096
CHUNK_CHARACTERS = 2**24

_NAMES = 1000  # of columns, kept for messages


@dataclass
class Summary:
    """What the first pass found.

    Attributes:
        prompts: their number.
        conversations: whether a prompt is a list of turns.
        digest: sha256 of the file.
        values: of the columns asked for: how often each value occurs, as text; at most `distinct` + 1 values each.
    """

    prompts: int = 0
    conversations: bool = False
    digest: str = ""
    values: dict[str, dict[str, int]] = field(default_factory=dict)


@contextmanager
def local_file(path: Path) -> Iterator[Path]:
    """The file itself; standard input (`-`) as a temporary file, because it is read twice."""
    if str(path) != "-":
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="p2l-") as folder:
        copy = Path(folder) / "stdin.jsonl"
        with copy.open("wb") as stream:
            shutil.copyfileobj(sys.stdin.buffer, stream)
        yield copy


class PromptFile:
    """Prompts and columns of a .jsonl, .csv, .parquet or .txt file.

    Args:
        path: of the file.
        columns: further columns to read.
        name: of the file in messages.

    Raises:
        DataError: no such file, or an unknown ending.
    """

    def __init__(self, path: Path, columns: Sequence[str] = (), name: str | None = None) -> None:
        self.path = path
        self.name = name or str(path)
        self.columns = ("prompt", *dict.fromkeys(column for column in columns if column != "prompt"))
        if not path.is_file():
            raise DataError(f"{self.name}: there is no such file")
        kind = path.suffix.lower()
        readers = {".txt": self._txt, ".jsonl": self._jsonl, ".ndjson": self._jsonl, ".csv": self._csv}
        if kind not in (*readers, ".parquet"):
            raise DataError(f"{self.name}: the ending {path.suffix!r} is not one of {TABLE_FORMATS}")
        self._rows = readers.get(kind, self._parquet)

    def scan(self, count: Sequence[str] = (), distinct: int = 64) -> Summary:
        """Reads all rows once.

        Args:
            count: columns whose values are counted.
            distinct: stop counting a column's values where there are more.

        Raises:
            DataError: a row that can't be read, no rows, or a missing column.
            PromptError: an empty prompt or one that is not text; the message gives its position.
        """
        found = Summary(values={column: {} for column in count})
        names: dict[str, None] = {}
        problem: PromptError | None = None
        for row in self._rows():
            found.prompts += 1
            for name in row:
                if len(names) < _NAMES:
                    names.setdefault(name)
            prompt = row.get("prompt")
            found.conversations = found.conversations or not isinstance(prompt, str)
            for column in count:
                try:
                    value, seen = label(row.get(column)), found.values[column]
                except DataError as error:
                    raise DataError(f"{self.name}: prompt {found.prompts}, column {column!r}: {error}") from None
                if value is not None and (value in seen or len(seen) <= distinct):
                    seen[value] = seen.get(value, 0) + 1
            if problem is None:
                try:
                    as_turns(prompt)  # type: ignore[arg-type]
                except PromptError as error:
                    problem = PromptError(f"prompt {found.prompts}: {error}")
        if not found.prompts:
            raise DataError(f"{self.name}: the file holds no {'prompts' if self.path.suffix == '.txt' else 'rows'}")
        for column in self.columns:
            if column not in names:
                raise DataError(
                    f"{self.name}: column {column!r} is missing; the file has {', '.join(map(repr, names))}"
                )
        if problem is not None:
            raise problem
        with self.path.open("rb") as stream:
            found.digest = hashlib.file_digest(stream, "sha256").hexdigest()
        return found

    def chunks(self, prompts: int = CHUNK_PROMPTS) -> Iterator[dict[str, Column]]:
        """The rows in order, `columns` → values, in chunks of at most `prompts` rows.

        A value that a row does not have is None.
        """
        size = 0
        chunk: dict[str, Column] = {name: [] for name in self.columns}
        for row in self._rows():
            for name in self.columns:
                chunk[name].append(row.get(name))
            prompt = row.get("prompt")
            size += len(prompt) if isinstance(prompt, str) else sum(map(len, prompt or []))
            if len(chunk["prompt"]) >= prompts or size >= CHUNK_CHARACTERS:
                yield chunk
                size, chunk = 0, {name: [] for name in self.columns}
        if chunk["prompt"]:
            yield chunk

    def _lines(self) -> Iterator[str]:
        """Lines with their ends; only a newline ends one."""
        position = 0
        with self.path.open("rb") as stream:
            for line in stream:
                start = 3 if position == 0 and line.startswith(b"\xef\xbb\xbf") else 0
                try:
                    yield line[start:].decode("utf-8")
                except UnicodeDecodeError as error:
                    at = position + start + error.start
                    raise DataError(f"{self.name}: not UTF-8 text (byte {at})") from None
                position += len(line)

    def _txt(self) -> Iterator[dict[str, Any]]:
        for line in self._lines():
            for part in line.splitlines():
                if part.strip():
                    yield {"prompt": part}

    def _jsonl(self) -> Iterator[dict[str, Any]]:
        return jsonl_rows(self._lines(), self.name)

    def _csv(self) -> Iterator[dict[str, Any]]:
        return csv_rows(self._lines(), self.name)

    def _parquet(self) -> Iterator[dict[str, Any]]:
        try:
            import pyarrow.parquet as pq
            from pyarrow.lib import ArrowException
        except ImportError:
            raise DataError(f"{self.name}: reading Parquet needs pyarrow: pip install pyarrow") from None
        try:
            file = pq.ParquetFile(self.path)
            names = file.schema_arrow.names
            present = [name for name in self.columns if name in names]
            if len(present) < len(self.columns):
                missing = next(name for name in self.columns if name not in names)
                raise DataError(
                    f"{self.name}: column {missing!r} is missing; the file has {', '.join(map(repr, names))}"
                )
            for batch in file.iter_batches(batch_size=1024, columns=present):
                yield from batch.to_pylist()
        except (ArrowException, OSError) as error:
            raise DataError(f"{self.name}: not a readable Parquet file ({str(error).splitlines()[0]})") from None


def label(value: Any) -> str | None:
    """A cell as the name of a category or group; None for an empty one.

    Raises:
        DataError: a list or an object.
    """
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, list | dict):
        raise DataError(f"a category or group is text or a number, not {type(value).__name__}")
    return str(value)
