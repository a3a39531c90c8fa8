"""The one reader of rows: JSONL, JSON, CSV and Parquet, one row at a time. Only one batch of rows is in memory."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, BinaryIO

from p2l_plugins.errors import DataError
from p2l_plugins.files.tables import need_file
from p2l_plugins.prompts import conversation_in

Row = dict[str, Any]
FORMATS = (".jsonl", ".ndjson", ".json", ".parquet", ".csv")
_BATCH = 1024  # rows of a Parquet file that are Python objects at one time; conversations are long
_NAMES = 1000  # of columns, kept for messages


class BadRow(Exception):
    """A row with a value that can't be used; the message names the column, the value and what is valid.

    Attributes:
        rule: the name under which such rows are counted where the user chose to drop them.
    """

    def __init__(self, rule: str, message: str) -> None:
        super().__init__(message)
        self.rule = rule


def refuse(place: str, error: BadRow) -> None:
    """Raises the DataError of a row that can't be read."""
    raise DataError(f"{place} is {error}")


def missing_column(name: object, column: str, there: Iterable[str]) -> DataError:
    """The error of a column that a file does not have."""
    return DataError(f"{name}: column {column!r} is missing; the file has {', '.join(map(repr, there))}")


def read_rows(
    path: Path,
    bad: Callable[[str, BadRow], None] = refuse,
    *,
    columns: Collection[str] | None = None,
    need: Collection[str] = (),
    name: str | None = None,
) -> Iterator[tuple[str, Row]]:
    """The rows of a file, each with its place ("FILE: line 7") for messages. A missing value is None or absent.

    A bare string in JSON is a prompt. A cell of the column `prompt` of a CSV file that is a JSON list of texts or of
    chat messages is that list.

    Args:
        path: `-` is JSONL on standard input; a `.json` file holds an array of objects, or JSON lines.
        bad: is told of a row that can't be read (rule "bad-line"): it raises, or lets the row go.
        columns: read only these columns of a Parquet file.
        need: columns that some row must have.
        name: of the file, for messages.

    Raises:
        DataError: no such file, an unknown ending, no rows, a missing column, or a file that can't be read.
    """
    name = name or str(path)
    if str(path) != "-":
        need_file(path, name)
    kind = ".jsonl" if str(path) == "-" else path.suffix.lower()
    if kind not in FORMATS:
        raise DataError(f"{name}: the ending {path.suffix!r} is not one of {', '.join(FORMATS)}")
    rows: Iterator[tuple[str, Row | BadRow]]
    if kind == ".parquet":
        rows = _parquet(path, name, columns, need)
    elif kind == ".csv":
        rows = _csv(path, name)
    else:
        rows = _json(path, name) if kind == ".json" else _jsonl(opened(path), name)
    return _checked(rows, bad, need, name)


def opened(path: Path) -> AbstractContextManager[BinaryIO]:
    """The bytes of a file, or of standard input (`-`)."""
    return nullcontext(sys.stdin.buffer) if str(path) == "-" else path.open("rb")


def _checked(
    rows: Iterator[tuple[str, Row | BadRow]], bad: Callable[[str, BadRow], None], need: Collection[str], name: str
) -> Iterator[tuple[str, Row]]:
    """The rows that could be read; at the end it is known whether there were any, and the columns in need."""
    empty, missing = True, dict.fromkeys(need)
    seen: dict[str, None] = {}
    for place, row in rows:
        empty = False
        if isinstance(row, BadRow):
            bad(place, row)
            continue
        if missing:
            seen.update(dict.fromkeys(row) if len(seen) < _NAMES else {})
            missing = {column: None for column in missing if column not in row}
        yield place, row
    if empty:
        raise DataError(f"{name}: the file holds no rows")
    if missing:
        raise missing_column(name, next(iter(missing)), seen)


def _object(value: Any) -> Row | BadRow:
    if isinstance(value, str):
        return {"prompt": value}
    return value if isinstance(value, dict) else BadRow("bad-line", "not a JSON object or string")


def _jsonl(source: AbstractContextManager[BinaryIO], name: str) -> Iterator[tuple[str, Row | BadRow]]:
    with source as stream:
        for number, line in enumerate(stream, start=1):
            if not line.strip():
                continue
            try:
                row = _object(json.loads(line.decode("utf-8-sig")))
            except UnicodeDecodeError as error:
                row = BadRow("bad-line", f"not UTF-8 text (byte {error.start})")
            except ValueError as error:
                row = BadRow("bad-line", f"not valid JSON ({error})")
            yield f"{name}: line {number}", row


def _json(path: Path, name: str) -> Iterator[tuple[str, Row | BadRow]]:
    data = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    if not data.lstrip().startswith(b"["):
        yield from _jsonl(nullcontext(io.BytesIO(data)), name)
        return
    try:
        values = json.loads(data.decode())
    except UnicodeDecodeError as error:
        raise DataError(f"{name}: not UTF-8 text (byte {error.start})") from None
    except ValueError as error:
        raise DataError(f"{name}: not valid JSON ({error})") from None
    for number, value in enumerate(values, start=1):
        yield f"{name}: row {number}", _object(value)


def _csv(path: Path, name: str) -> Iterator[tuple[str, Row | BadRow]]:
    csv.field_size_limit(2**31 - 1)  # the default of 128 KiB is less than a long conversation
    number = 0
    with path.open(encoding="utf-8-sig", newline="") as stream:
        try:
            for number, row in enumerate(csv.DictReader(stream), start=1):
                cells: Row = {column: cell or None for column, cell in row.items() if column is not None}
                if cells.get("prompt"):
                    cells["prompt"] = conversation_in(cells["prompt"])
                yield f"{name}: row {number}", cells
        except (csv.Error, UnicodeDecodeError) as error:
            reason = "not UTF-8 text" if isinstance(error, UnicodeDecodeError) else str(error)
            raise DataError(f"{name}: row {number + 1} can't be read ({reason})") from None


def _parquet(
    path: Path, name: str, columns: Collection[str] | None, need: Collection[str]
) -> Iterator[tuple[str, Row | BadRow]]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise DataError(f"{name}: reading Parquet needs pyarrow: pip install pyarrow") from None
    number = 0
    try:
        with pq.ParquetFile(path) as file:
            there = file.schema_arrow.names
            for column in need:
                if column not in there:
                    raise missing_column(name, column, there)
            names = [column for column in there if columns is None or column in columns]
            for batch in file.iter_batches(_BATCH, columns=names):
                values = []
                for column in batch.columns:
                    is_time = pa.types.is_timestamp(column.type)  # nanoseconds would need pandas
                    plain = column.cast(pa.timestamp("us", column.type.tz), safe=False) if is_time else column
                    values.append(plain.to_pylist())
                for row in zip(*values, strict=True):
                    number += 1
                    yield f"{name}: row {number}", dict(zip(names, row, strict=True))
    except (pa.lib.ArrowException, OSError) as error:
        raise DataError(f"{name}: not a readable Parquet file ({str(error).splitlines()[0]})") from None
