"""The one reader of rows: JSONL, JSON, CSV and Parquet, one row at a time. Only one batch of rows is in memory.

All but Parquet may be compressed: `.gz`, and `.zst` where pyarrow is there.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import sys
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, BinaryIO

from p2l_plugins.errors import DataError
from p2l_plugins.files.tables import need_file
from p2l_plugins.prompts import conversation_in

Row = dict[str, Any]
FORMATS = (".jsonl", ".ndjson", ".json", ".parquet", ".csv")
#: The name of standard input in messages; it has no ending, so they say its form.
STDIN = "standard input (JSONL)"
COMPRESSED = (".gz", ".zst")
_BATCH = 1024  # rows of a Parquet file that are Python objects at one time; conversations are long
#: A list of texts or messages as Python, NumPy or pandas print it.
_PYTHON_LIST = re.compile(r"""\s*(\[\s*'|\[\s*\{\s*'|array\(\[).*[])]\s*\Z""", re.DOTALL)
#: How a conversation is written into a cell.
JSON_FORM = 'write it as JSON, as json.dumps does: ["first turn", "second turn"], or a list of messages'
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
    there = list(there)
    return DataError(
        f"{name}: column {column!r} is missing; the file has {', '.join(map(repr, there))}{delimiter_hint(there)}"
    )


def delimiter_hint(columns: Iterable[str]) -> str:
    """What to say of the columns of a CSV file that was written with another delimiter; empty where it was not."""
    there = list(columns)
    found = next((mark for mark in ("\t", ";", "|") if len(there) == 1 and mark in there[0]), None)
    if found is None:
        return ""
    return f"; its columns are divided by {found!r}, but must be divided by ',': write the file again with commas"


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
    chat messages is that list; one that is a list as Python prints it is refused (rule "bad-prompt").

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
    kind = ".jsonl" if str(path) == "-" else ending(path)
    if kind not in FORMATS or (kind == ".parquet" and path.suffix.lower() != kind):
        raise DataError(
            f"{name}: the ending {path.suffix!r} is not one of {', '.join(FORMATS)} (also with {', '.join(COMPRESSED)})"
        )
    if str(path) == "-":
        name = STDIN
    rows: Iterator[tuple[str, Row | BadRow]]
    if kind == ".parquet":
        rows = _parquet(path, name, columns, need)
    elif kind == ".csv":
        rows = _csv(path, name)
    else:
        rows = _json(path, name) if kind == ".json" else _jsonl(opened(path), name)
    return _checked(rows, bad, need, name)


def ending(path: Path) -> str:
    """The ending of a file's name, in small letters and without that of its compression."""
    inner = path.with_suffix("") if path.suffix.lower() in COMPRESSED else path
    return inner.suffix.lower()


def opened(path: Path) -> AbstractContextManager[BinaryIO]:
    """The bytes of a file, uncompressed, or of standard input (`-`).

    Raises:
        DataError: a `.zst` file without pyarrow.
    """
    if str(path) == "-":
        return nullcontext(sys.stdin.buffer)
    if path.suffix.lower() == ".gz":
        return gzip.open(path, "rb")  # type: ignore[return-value]
    if path.suffix.lower() == ".zst":
        try:
            import pyarrow as pa
        except ImportError:
            raise DataError(f"{path}: reading .zst needs pyarrow: pip install pyarrow") from None
        return io.BufferedReader(pa.input_stream(str(path), compression="zstd"))
    return path.open("rb")


def unreadable(error: Exception) -> str:
    """Why the bytes or the text of a file can't be read."""
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8 text (byte {error.start})"
    if isinstance(error, RecursionError):
        return "lists or objects inside one another too deep"
    return f"not readable ({str(error) or type(error).__name__})"


#: What reading a compressed file may raise.
_BROKEN = (EOFError, zlib.error, OSError)


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
        for number, line in enumerate(byte_lines(stream, name), start=1):
            if line.strip():
                yield f"{name}: line {number}", json_row(line)


def json_row(line: str | bytes) -> Row | BadRow:
    """The row in a line of JSON, or what is wrong with it (rule "bad-line")."""
    try:
        return _object(json.loads(line if isinstance(line, str) else line.decode("utf-8-sig")))
    except (UnicodeDecodeError, RecursionError) as error:
        return BadRow("bad-line", unreadable(error))
    except ValueError as error:
        return BadRow("bad-line", f"not valid JSON ({error})")


def byte_lines(stream: BinaryIO, name: str) -> Iterator[bytes]:
    """The lines of a stream; a compressed file that is broken is refused where it breaks."""
    try:
        yield from stream
    except _BROKEN as error:
        raise DataError(f"{name}: {unreadable(error)}") from None


def _json(path: Path, name: str) -> Iterator[tuple[str, Row | BadRow]]:
    with opened(path) as stream:
        data = b"".join(byte_lines(stream, name)).removeprefix(b"\xef\xbb\xbf")
    if not data.lstrip().startswith(b"["):
        yield from _jsonl(nullcontext(io.BytesIO(data)), name)
        return
    try:
        values = json.loads(data.decode())
    except (UnicodeDecodeError, RecursionError) as error:
        raise DataError(f"{name}: {unreadable(error)}") from None
    except ValueError as error:
        raise DataError(f"{name}: not valid JSON ({error})") from None
    for number, value in enumerate(values, start=1):
        yield f"{name}: row {number}", _object(value)


def _csv(path: Path, name: str) -> Iterator[tuple[str, Row | BadRow]]:
    csv.field_size_limit(2**31 - 1)  # the default of 128 KiB is less than a long conversation
    number = 0
    with opened(path) as data, io.TextIOWrapper(data, encoding="utf-8-sig", newline="") as stream:
        try:
            rows = csv.reader(stream)
            columns = _header(next(rows, []), name)
            for number, cells in enumerate((cells for cells in rows if cells), start=1):
                yield f"{name}: row {number}", _cells(columns, cells)
        except (csv.Error, UnicodeDecodeError, *_BROKEN) as error:
            reason = "not UTF-8 text" if isinstance(error, UnicodeDecodeError) else str(error)
            raise DataError(f"{name}: row {number + 1} can't be read ({reason})") from None


def _header(cells: list[str], name: str) -> list[str]:
    """The columns that a CSV file's first line names, without white space around them."""
    columns = [cell.strip() for cell in cells]
    twice = next((column for column in columns if column and columns.count(column) > 1), None)
    if twice is not None:
        raise DataError(
            f"{name}: {columns.count(twice)} columns are named {twice!r}; rename or delete all but one of them"
        )
    return columns


def _cells(columns: list[str], cells: list[str]) -> Row | BadRow:
    """A row of a CSV file; a cell that is empty or not there is None."""
    if len(cells) > len(columns):
        return BadRow(
            "bad-line",
            f"not a row of the {len(columns)} columns: it has {len(cells)} cells; quote text with commas",
        )
    row: Row = dict.fromkeys(columns)
    row.update(zip(columns, (cell or None for cell in cells), strict=False))
    if row.get("prompt"):
        row["prompt"] = conversation_in(row["prompt"])
        if isinstance(row["prompt"], str) and _PYTHON_LIST.match(row["prompt"]):
            return BadRow("bad-prompt", f"a conversation that Python printed; {JSON_FORM}")
    return row


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
            twice = next((column for column in there if there.count(column) > 1), None)
            if twice is not None:
                raise DataError(f"{name}: several columns are named {twice!r}; rename or delete all but one of them")
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
    except (pa.lib.ArrowException, OSError, ValueError, OverflowError) as error:
        raise DataError(f"{name}: not a readable Parquet file ({next(iter(str(error).splitlines()), '')})") from None
