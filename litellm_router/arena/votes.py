"""The votes of an arena: a JSONL file that grows by a line for each vote."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from p2l_plugins.errors import ConfigError, DataError
from p2l_plugins.files.tables import hold, need_folder
from p2l_plugins.votes.read import read_votes


class VotesFile:
    """An open votes file, held by one process; a context. A new one can be read by its owner only.

    Attributes:
        path: of the file.
        votes: that it held when it was opened; None where there were none.
        notes: what its owner should know, a sentence each.

    Raises:
        ConfigError: another ending than .jsonl, or no such folder.
        DataError: it can't be written or read, holds no votes, or another process has it.
    """

    def __init__(self, path: Path) -> None:
        if path.suffix.lower() != ".jsonl":
            raise ConfigError(f"--votes {path}: votes are appended one by one, which only a .jsonl file can take")
        need_folder(path)
        self.path = path
        self.notes: list[str] = []
        try:
            self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
        except OSError as error:
            raise DataError(f"{path}: can't be written ({error.strerror})") from None
        try:
            if not stat.S_ISREG(os.fstat(self._file).st_mode):
                raise DataError(f"{path}: is not a file; name one for --votes")
            hold(self._file, f"{self.path}: another arena writes this file; end it, or name another --votes")
            self._mend()
            self.votes = read_votes(path) if os.fstat(self._file).st_size else None
            if self.votes is not None and self.votes.scores is not None:
                raise DataError(f"{path}: is a score matrix; name a votes file, or one that is not there yet")
        except BaseException:
            os.close(self._file)
            raise
        if stat.S_IMODE(os.fstat(self._file).st_mode) & 0o077:
            self.notes.append(f"{path} can be read by other users: chmod 600 {path}")

    def __enter__(self) -> VotesFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        os.close(self._file)

    def append(self, row: Mapping[str, Any]) -> None:
        """Adds a row, and waits until it is on the disk.

        Raises:
            OSError: the disk is full, say; the file is then as before.
        """
        line = json.dumps(row, ensure_ascii=False).encode() + b"\n"
        end = os.fstat(self._file).st_size
        try:
            written = os.write(self._file, line)
            while written < len(line):
                written += os.write(self._file, line[written:])
            os.fsync(self._file)
        except OSError:
            os.ftruncate(self._file, end)
            raise

    def _mend(self) -> None:
        """Ends the last line, where it is whole, or cuts it off, where a crash has torn it."""
        data = self.path.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole == len(data):
            return
        try:
            json.loads(data[whole:])
        except ValueError:
            os.ftruncate(self._file, whole)
            self.notes.append(f"{self.path}: the last line was torn, and is left out")
        else:
            os.write(self._file, b"\n")
