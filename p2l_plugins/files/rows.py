"""Rows of a log, one at a time: JSONL, JSON, CSV and Parquet. Only one batch of rows is in memory."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Collection, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from p2l_plugins.errors import DataError

Row = dict[str, Any]
ROW_FORMATS = ".jsonl, .ndjson, .json, .parquet, .csv"
_BATCH = 1024  # rows of a Parquet file that are Python objects at one time; conversations are long


class BadRow(Exception):
    """A row with a value that can't be used; the message names the column, the value and what is valid.

    Attributes:
        rule: the name under which such rows are counted where the user chose to drop them.
    """

    def __init__(self, rule: str, message: str) -> None:
        super().__init__(message)
        self.rule = rule


class Reader(Protocol):
    """Whoever reads rows: counts them, and says what becomes of those that can't be read.

    Attributes:
        rows: so far.
    """

    rows: int

    def read(self) -> None:
        """A row was read."""

    def bad(self, place: str, error: BadRow) -> None:
        """Raises `DataError`, or lets the row go."""


def read_rows(path: Path, tally: Reader, columns: Collection[str] | None = None) -> Iterator[tuple[str, Row]]:
    """The rows of a file, each with its place ("FILE: line 7") for messages. A missing value is None or absent.

    Args:
        path: `-` is JSONL on standard input; a `.json` file holds an array of objects, or JSON lines.
        tally: counts the rows, and says whether a line that can't be read is dropped (rule "bad-line").
        columns: read only these columns of a Parquet file.

    Raises:
        DataError: no such file, an unknown ending, no rows, or a line that can't be read.
    """
    if str(path) != "-" and not path.is_file():
        raise DataError(f"{path}: there is no such file")
    suffix = path.suffix.lower()
    if str(path) == "-" or suffix in (".jsonl", ".ndjson"):
        rows = _jsonl(path, tally)
    elif suffix == ".json":
        rows = _json(path, tally)
    elif suffix == ".csv":
        rows = _csv(path)
    elif suffix == ".parquet":
        rows = _parquet(path, columns)
    else:
        raise DataError(f"{path}: the ending {suffix!r} is not one of {ROW_FORMATS}")
    return _counted(path, rows, tally)


def _counted(path: Path, rows: Iterator[tuple[str, Row]], tally: Reader) -> Iterator[tuple[str, Row]]:
    before = tally.rows
    for row in rows:
        tally.read()
        yield row
    if tally.rows == before:
        raise DataError(f"{path}: the file holds no rows")


def _jsonl(path: Path, tally: Reader) -> Iterator[tuple[str, Row]]:
    source: Any = nullcontext(sys.stdin.buffer) if str(path) == "-" else path.open("rb")
    with source as stream:
        yield from _lines(path, stream, tally)


def _lines(path: Path, stream: BinaryIO, tally: Reader) -> Iterator[tuple[str, Row]]:
    for number, line in enumerate(stream, start=1):
        if not line.strip():
            continue
        place = f"{path}: line {number}"
        try:
            row = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
        except UnicodeDecodeError as error:
            problem: BadRow | None = BadRow("bad-line", f"not UTF-8 text (byte {error.start})")
        except ValueError as error:
            problem = BadRow("bad-line", f"not valid JSON ({error})")
        else:
            problem = None if isinstance(row, dict) else BadRow("bad-line", "not a JSON object")
        if problem is not None:
            tally.bad(place, problem)
            tally.rows += 1
            continue
        yield place, row


def _json(path: Path, tally: Reader) -> Iterator[tuple[str, Row]]:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text (byte {error.start})") from None
    if not text.lstrip().startswith("["):
        yield from _lines(path, io.BytesIO(text.encode()), tally)
        return
    try:
        values = json.loads(text)
    except ValueError as error:
        raise DataError(f"{path}: not valid JSON ({error})") from None
    for number, row in enumerate(values, start=1):
        place = f"{path}: row {number}"
        if not isinstance(row, dict):
            tally.bad(place, BadRow("bad-line", "not a JSON object"))
            tally.rows += 1
            continue
        yield place, row


def _csv(path: Path) -> Iterator[tuple[str, Row]]:
    csv.field_size_limit(2**31 - 1)  # the default of 128 KiB is less than a long conversation
    number = 0
    with path.open(encoding="utf-8-sig", newline="") as stream:
        try:
            for number, row in enumerate(csv.DictReader(stream), start=1):
                yield f"{path}: row {number}", {name: value or None for name, value in row.items() if name is not None}
        except (csv.Error, UnicodeDecodeError) as error:
            reason = "not UTF-8 text" if isinstance(error, UnicodeDecodeError) else str(error)
            raise DataError(f"{path}: row {number + 1} can't be read ({reason})") from None


def _parquet(path: Path, columns: Collection[str] | None) -> Iterator[tuple[str, Row]]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise DataError(f"{path}: reading Parquet needs pyarrow: pip install pyarrow") from None
    number = 0
    try:
        with pq.ParquetFile(path) as file:
            names = [name for name in file.schema_arrow.names if columns is None or name in columns]
            for batch in file.iter_batches(_BATCH, columns=names):
                values = []
                for column in batch.columns:
                    is_time = pa.types.is_timestamp(column.type)  # nanoseconds would need pandas
                    plain = column.cast(pa.timestamp("us", column.type.tz), safe=False) if is_time else column
                    values.append(plain.to_pylist())
                for row in zip(*values, strict=True):
                    number += 1
                    yield f"{path}: row {number}", dict(zip(names, row, strict=True))
    except (pa.lib.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a readable Parquet file ({str(error).splitlines()[0]})") from None
