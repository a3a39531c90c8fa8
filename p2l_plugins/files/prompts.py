"""Files of prompts. `PromptFile` reads one in chunks, so that millions of prompts take no more memory than thousands.

It is read twice: a first pass counts and checks the prompts, so that a bad one is named before anything is scored; the
second gives them in chunks, which are the same in every run.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from p2l_plugins.errors import ConfigError, DataError, PromptError
from p2l_plugins.files.rows import STDIN, Row, byte_lines, ending, opened, read_rows
from p2l_plugins.files.tables import need_file
from p2l_plugins.prompts import Prompt, as_turns, prompt_in

Column = list[Any]
_LINE_END = re.compile(r"\r\n|\r|\n")

#: The column that holds the prompt, where no other is named.
FIELD = "prompt"

#: How tables write that a label is missing.
_NO_LABEL = ("", "nan", "NaN", "NaT", "<NA>")

#: A chunk ends at so many prompts or characters.
CHUNK_PROMPTS = 4096
CHUNK_CHARACTERS = 2**24


def read_prompts(path: Path) -> tuple[list[Prompt], dict[str, Column]]:
    """All prompts of a file, and its columns. A value that a row does not have is None.

    Raises:
        DataError: as `read_rows`.
        PromptError: a prompt that is none; the message gives its position.
    """
    rows = list(_prompt_rows(path, str(path), None))
    prompts = [_prompt(row, number, str(path), FIELD) for number, row in enumerate(rows, start=1)]
    names = dict.fromkeys(name for row in rows for name in row)
    return prompts, {**{name: [row.get(name) for row in rows] for name in names}, "prompt": prompts}


def _prompt_rows(path: Path, name: str, columns: Sequence[str] | None) -> Iterator[Row]:
    """Rows with these columns (None: all that there are); a line of a `.txt` file is a prompt."""
    if ending(path) != ".txt":
        rows = read_rows(path, columns=columns, need=columns or (FIELD,), name=name)
        yield from (row for _, row in rows)
        return
    need_file(path, name)
    position = 0
    empty = True
    with opened(path) as stream:
        for line in byte_lines(stream, name):
            try:
                text = line.decode("utf-8" if position else "utf-8-sig")
            except UnicodeDecodeError as error:
                raise DataError(f"{name}: not UTF-8 text (byte {position + error.start})") from None
            position += len(line)
            for part in _LINE_END.split(text):  # other characters that end a line for Python may stand in a prompt
                if part.strip():
                    empty = False
                    yield {FIELD: part}
    if empty:
        raise DataError(f"{name}: the file holds no prompts")


def _prompt(row: Row, number: int, name: str, field: str) -> Prompt:
    try:
        turns = as_turns(prompt := prompt_in(row.get(field)))
        return turns[0] if isinstance(prompt, str) else list(turns)
    except PromptError as error:
        raise PromptError(f"{name}: prompt {number}: {error}") from None


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
    """Prompts and columns of a file as `read_rows` takes it, or of a .txt file with a prompt on each line.

    Args:
        path: of the file.
        columns: further columns to read.
        name: of the file in messages.
        field: the column that holds the prompt.

    Raises:
        ConfigError: a .txt file, which has no columns, and another field than `prompt`.
    """

    def __init__(self, path: Path, columns: Sequence[str] = (), name: str | None = None, field: str = FIELD) -> None:
        self.path = path
        self.name = STDIN if name == "-" else name or str(path)
        self.field = field
        self.columns = (field, *dict.fromkeys(column for column in columns if column != field))
        if field != FIELD and ending(path) == ".txt":
            raise ConfigError(f"--prompt-field is {field!r}, but {self.name} has no columns: each line is a prompt")

    def scan(self, count: Sequence[str] = (), distinct: int = 64) -> Summary:
        """Reads all rows once.

        Args:
            count: columns whose values are counted.
            distinct: stop counting a column's values where there are more.

        Raises:
            DataError: no such file, an unknown ending, a row that can't be read, no rows, or a missing column.
            PromptError: an empty prompt or one that is not text; the message gives its position.
        """
        found = Summary(values={column: {} for column in count})
        problem: PromptError | None = None
        for row in _prompt_rows(self.path, self.name, self.columns):
            found.prompts += 1
            self._count(row, found, distinct)
            try:
                prompt = _prompt(row, found.prompts, self.name, self.field)
                found.conversations = found.conversations or not isinstance(prompt, str)
            except PromptError as error:
                problem = problem or error
        if problem is not None:
            raise problem
        with self.path.open("rb") as stream:
            found.digest = hashlib.file_digest(stream, "sha256").hexdigest()
        return found

    def _count(self, row: Row, found: Summary, distinct: int) -> None:
        for column, seen in found.values.items():
            try:
                value = label(row.get(column))
            except DataError as error:
                raise DataError(f"{self.name}: prompt {found.prompts}, column {column!r}: {error}") from None
            if value is not None and (value in seen or len(seen) <= distinct):
                seen[value] = seen.get(value, 0) + 1

    def chunks(self, prompts: int = CHUNK_PROMPTS) -> Iterator[dict[str, Column]]:
        """The rows in order, `columns` → values, in chunks of at most `prompts` rows.

        A value that a row does not have is None.
        """
        size = 0
        chunk: dict[str, Column] = {name: [] for name in self.columns}
        for number, row in enumerate(_prompt_rows(self.path, self.name, self.columns), start=1):
            prompt = _prompt(row, number, self.name, self.field)
            chunk[self.field].append(prompt)
            for name in self.columns[1:]:
                chunk[name].append(row.get(name))
            size += len(prompt) if isinstance(prompt, str) else sum(map(len, prompt))
            if len(chunk[self.field]) >= prompts or size >= CHUNK_CHARACTERS:
                yield chunk
                size, chunk = 0, {name: [] for name in self.columns}
        if chunk[self.field]:
            yield chunk


def label(value: Any) -> str | None:
    """A cell as the name of a category or group; None for an empty one.

    Raises:
        DataError: a list or an object.
    """
    if isinstance(value, list | dict):
        raise DataError(f"a category or group is text or a number, not {type(value).__name__}")
    text = "" if value is None else str(value)
    return None if text.strip() in _NO_LABEL else text
