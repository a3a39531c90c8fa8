"""The journal of `p2l votes ask`: what was paid for, one JSON line each, so that nothing is paid for twice.

A line is written before the next step begins, so that a kill loses none, and is on the disk half a second later
(`sync`), so that a power cut loses little. Keys are hashes; the text of an answer stands there until it is
judged and the run is complete, unless answers are to be kept. A last line that a crash has torn is left out.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from p2l_plugins.errors import DataError
from p2l_plugins.files.tables import hold, replaced_file
from p2l_plugins.prompts import canonical_bytes

Kind = Literal["plan", "answer", "verdict", "score", "failed"]
_KINDS = ("plan", "answer", "verdict", "score", "failed")
_HEAD = {"journal": "p2l votes ask", "version": 1}


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of the journal.

    Attributes:
        key: of what was asked: `key_of`.
        kind: `plan` is who answers a prompt; `failed` is a call without an answer, to be made again in the next run.
        model: that was called, or the check that was made.
        text: of an answer.
        value: a verdict, or why a call failed; of a plan a hash of the candidates.
        score: 0 to 1.
        models: of a plan.
        characters: of an answer.
        tokens: of the prompt and of the answer.
        cost: USD; None where the price is not known.
        refused: an answer that the provider marks as a refusal.
        called: whether it was a call that counts.
    """

    key: str
    kind: Kind
    model: str = ""
    text: str | None = None
    value: str | None = None
    score: float | None = None
    models: tuple[str, ...] = ()
    characters: int = 0
    tokens: tuple[int, int] = (0, 0)
    cost: float | None = None
    refused: bool = False
    called: bool = True


_DEFAULTS = {name: value for name, value in asdict(Entry("", "plan")).items() if name not in ("key", "kind")}
_NAMES = {field.name for field in fields(Entry)}


def key_of(*parts: str) -> str:
    """A hash of texts, 128 bits in hex; ("ab", "c") and ("a", "bc") differ."""
    return hashlib.blake2b(canonical_bytes(parts), digest_size=16).hexdigest()


class Journal:
    """An open journal, held by one process; a context.

    Attributes:
        path: of the file.
        entries: by key; of a `failed` one and a later success the later counts.
        plans: by key all that were made, oldest first.
        calls: that were made, failed ones too.
        spent: USD, as far as prices are known.
        unpriced: calls whose price is not known.

    Raises:
        DataError: another process holds it, or the file is no journal.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries: dict[str, Entry] = {}
        self.plans: dict[str, list[Entry]] = {}
        self.calls, self.spent, self.unpriced = 0, 0.0, 0
        self._dirty = False
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            hold(self._file, f"{self.path}: another run writes this journal; wait for it, or name another -o")
            self._end = self._read()
        except BaseException:
            os.close(self._file)
            raise

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            self.sync()
        finally:
            os.close(self._file)

    def __bool__(self) -> bool:
        return bool(self.entries)

    def known(self, key: str) -> Entry | None:
        """What is known of a key; None where a call is still to be made."""
        entry = self.entries.get(key)
        return None if entry is None or entry.kind == "failed" else entry

    def add(self, entry: Entry) -> Entry:
        """Writes an entry.

        Raises:
            OSError: the disk is full, say; the file is then as before.
        """
        self._append(_line({name: value for name, value in asdict(entry).items() if value != _DEFAULTS.get(name)}))
        self._take(entry)
        return entry

    def sync(self) -> None:
        """Waits until all entries are on the disk; may run in a thread of its own beside `add`.

        Raises:
            OSError: they can't be.
        """
        if self._dirty:
            self._dirty = False
            os.fsync(self._file)

    def failures(self) -> Counter[tuple[str, str]]:
        """By model and reason: what has failed and did not succeed later."""
        return Counter((one.model, one.value or "") for one in self.entries.values() if one.kind == "failed")

    def forget_answers(self, keep: Collection[str]) -> None:
        """Writes the journal anew without the texts of answers, but for those of some keys."""
        if not any(one.text is not None and key not in keep for key, one in self.entries.items()):
            return
        with replaced_file(self.path) as temporary:
            file = os.open(temporary, os.O_RDWR | os.O_CREAT, 0o600)
            with os.fdopen(file, "wb") as stream:
                for line in self._lines(keep):
                    stream.write(line)
                stream.flush()
                os.fsync(stream.fileno())
        self.entries = {
            key: one if key in keep or one.text is None else replace(one, text=None)
            for key, one in self.entries.items()
        }

    def _lines(self, keep: Collection[str]) -> Iterator[bytes]:
        """All lines as they are, failed calls too: they count; without the texts that are not kept."""
        for line in _whole_lines(_all(self._file)):
            value = json.loads(line)
            if "text" in value and value.get("key") not in keep:
                del value["text"]
            yield _line(value)

    def _read(self) -> int:
        """Reads the entries; where the good lines end. What a crash has torn is cut off."""
        data = _all(self._file)
        end = 0
        for number, line in enumerate(_whole_lines(data)):
            value = _parsed(line)
            if number == 0 and (value is None or value.get("journal") != _HEAD["journal"]):
                raise DataError(f"{self.path}: is no journal of p2l votes ask; name another -o, or move the file away")
            end += len(line)
            entry = None if value is None else _entry(value)
            if entry is not None:
                self._take(entry)
        if not end and data and not _line(_HEAD).startswith(data):
            raise DataError(f"{self.path}: is no journal of p2l votes ask; name another -o, or move the file away")
        os.ftruncate(self._file, end)
        self._end = end
        if not end:
            self._append(_line(_HEAD))
        return self._end

    def _append(self, line: bytes) -> None:
        try:
            os.lseek(self._file, self._end, os.SEEK_SET)
            rest = memoryview(line)
            while rest:
                rest = rest[os.write(self._file, rest) :]
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, self._end)
            raise
        self._end += len(line)
        self._dirty = True

    def _take(self, entry: Entry) -> None:
        self.entries[entry.key] = entry
        if entry.kind == "plan":
            self.plans.setdefault(entry.key, []).append(entry)
        if entry.kind == "plan" or not entry.called:
            return
        self.calls += 1
        self.spent += entry.cost or 0.0
        self.unpriced += entry.cost is None and entry.kind != "failed"


def _line(value: dict[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "replace") + b"\n"


def _all(file: int) -> bytes:
    parts = []
    os.lseek(file, 0, os.SEEK_SET)
    while part := os.read(file, 2**20):
        parts.append(part)
    return b"".join(parts)


def _whole_lines(data: bytes) -> list[bytes]:
    return [line for line in data.splitlines(keepends=True) if line.endswith(b"\n")]


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _entry(value: dict[str, Any]) -> Entry | None:
    """An entry of a line; None for the head and for what a later version may have written."""
    if value.get("kind") not in _KINDS or not isinstance(value.get("key"), str) or not value.keys() <= _NAMES:
        return None
    tokens = value.get("tokens", (0, 0))
    return Entry(**{**value, "models": tuple(value.get("models", ())), "tokens": (int(tokens[0]), int(tokens[1]))})
