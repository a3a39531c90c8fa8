"""Tables and prompts from files: JSONL, JSON, CSV, Parquet and plain text."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from p2l_plugins.errors import ConfigError, DataError
from p2l_plugins.prompts import Prompt

Column = list[Any]
TABLE_FORMATS = ".parquet, .jsonl, .csv"


def read_table(path: Path) -> dict[str, Column]:
    """Columns of a Parquet, JSONL or CSV file (`-`: JSONL on standard input). A missing value is None.

    Raises:
        DataError: no such file, an unknown ending, no rows, or a line that can't be read.
    """
    if str(path) != "-" and not path.is_file():
        raise DataError(f"{path}: there is no such file")
    suffix = path.suffix.lower()
    if str(path) == "-" or suffix in (".jsonl", ".ndjson"):
        table = _columns(jsonl_rows(_text(path).split("\n"), path))
    elif suffix == ".parquet":
        table = _parquet(path)
    elif suffix == ".csv":
        table = _columns(csv_rows(io.StringIO(_text(path)), path))
    else:
        raise DataError(f"{path}: the ending {suffix!r} is not one of {TABLE_FORMATS}")
    if not table or not len(next(iter(table.values()))):
        raise DataError(f"{path}: the file holds no rows")
    return table


def read_prompts(path: Path, column: str = "prompt") -> tuple[list[Prompt], dict[str, Column]]:
    """Prompts and the table they came from; a `.txt` file holds one prompt per line.

    Raises:
        DataError: as `read_table`, or a missing column.
    """
    if path.suffix.lower() == ".txt":
        if not path.is_file():
            raise DataError(f"{path}: there is no such file")
        lines = [line for line in _text(path).splitlines() if line.strip()]
        if not lines:
            raise DataError(f"{path}: the file holds no prompts")
        return list(lines), {column: list(lines)}
    table = read_table(path)
    need_columns(table, [column], path)
    return table[column], table


def need_columns(table: dict[str, Column], names: list[str], path: Path) -> None:
    """Raises a DataError that names the missing columns and those that are there."""
    missing = [name for name in names if name not in table]
    if missing:
        raise DataError(f"{path}: column {missing[0]!r} is missing; the file has {', '.join(map(repr, table))}")


def read_json_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        DataError: no such file, not JSON, or not an object.
    """
    if not path.is_file():
        raise DataError(f"{path}: there is no such file")
    try:
        value = json.loads(_text(path))
    except ValueError as error:
        raise DataError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(value, dict):
        raise DataError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def read_yaml_object(path: Path) -> dict[str, Any]:
    """The keys and values in a YAML file.

    Raises:
        DataError: no such file, not YAML, or not keys with values.
    """
    if not path.is_file():
        raise DataError(f"{path}: there is no such file")
    try:
        value = yaml.safe_load(_text(path))
    except yaml.YAMLError as error:
        raise DataError(f"{path}: not valid YAML ({str(error).splitlines()[0]})") from None
    if not isinstance(value, dict):
        raise DataError(f"{path}: expected keys and values, found {type(value).__name__}")
    return value


@contextmanager
def replaced_folder(target: Path) -> Iterator[Path]:
    """A temporary folder beside `target` that takes its place at the end, so that nothing is left half-written.

    Raises:
        DataError: `target` exists and is not an empty folder.
    """
    target = target.absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise DataError(f"{target}: already exists; name a new folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as temporary:
        work = Path(temporary) / target.name
        work.mkdir()
        yield work
        if target.exists():
            target.rmdir()
        os.rename(work, target)


def need_folder(target: Path) -> None:
    """Raises a ConfigError where the folder of a file to be written does not exist."""
    if not target.absolute().parent.is_dir():
        raise ConfigError(f"{target}: there is no folder {target.parent}")


@contextmanager
def replaced_file(target: Path) -> Iterator[Path]:
    """A temporary file beside `target` that takes its place at the end; an error leaves what was there before."""
    with tempfile.TemporaryDirectory(dir=target.absolute().parent, prefix=f".{target.name}-") as temporary:
        work = Path(temporary) / target.name
        yield work
        os.replace(work, target)


def _text(path: Path) -> str:
    try:
        return (sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text (byte {error.start})") from None


def jsonl_rows(lines: Iterable[str], name: object) -> Iterator[dict[str, Any]]:
    """The objects of lines of JSONL; a bare string is a prompt.

    Args:
        lines: with or without their ends.
        name: of the file, for messages.

    Raises:
        DataError: a line that is neither.
    """
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f"{name}: line {number} is not valid JSON ({error})") from None
        if isinstance(row, str):
            row = {"prompt": row}
        if not isinstance(row, dict):
            raise DataError(f"{name}: line {number} is not a JSON object or string")
        yield row


def csv_rows(lines: Iterable[str], name: object) -> Iterator[dict[str, Any]]:
    """The rows of CSV with a heading; an empty cell is None.

    Args:
        lines: with their ends.
        name: of the file, for messages.

    Raises:
        DataError: a line that can't be read.
    """
    csv.field_size_limit(2**31 - 1)  # conversations are longer than the default of 128 KiB
    reader = csv.DictReader(lines)
    try:
        for row in reader:
            yield {column: row[column] or None for column in reader.fieldnames or []}
    except csv.Error as error:
        raise DataError(f"{name}: line {reader.line_num} is not valid CSV ({error})") from None


def _columns(rows: Iterable[dict[str, Any]]) -> dict[str, Column]:
    kept = list(rows)
    names = dict.fromkeys(name for row in kept for name in row)
    return {name: [row.get(name) for row in kept] for name in names}


def _parquet(path: Path) -> dict[str, Column]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
        from pyarrow.lib import ArrowException
    except ImportError:
        raise DataError(f"{path}: reading Parquet needs pyarrow: pip install pyarrow") from None
    try:
        table = pq.read_table(path)
    except (ArrowException, OSError) as error:
        raise DataError(f"{path}: not a readable Parquet file ({str(error).splitlines()[0]})") from None
    columns = {}
    for name in table.column_names:
        column = table[name]
        if pa.types.is_timestamp(column.type) and column.type.unit == "ns":
            column = column.cast(pa.timestamp("us", column.type.tz), safe=False)  # a datetime has no nanoseconds
        columns[name] = column.to_pylist()
    return columns
