"""JSON and YAML objects from files, and files and folders written whole or not at all."""

from __future__ import annotations

import errno
import glob
import json
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

from p2l_plugins.errors import ConfigError, DataError

try:
    import fcntl
except ImportError:  # Windows: two processes that write one file are not noticed there
    fcntl = None  # type: ignore[assignment]

#: Beside what is being written, held by who writes; seconds after which one that nobody holds is left over.
_IN_USE, _OLD_S = ".in-use", 2.0

#: What a full disk, an exhausted quota and a limit on the size of files answer.
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def need_file(path: Path, name: str | None = None) -> None:
    """Raises a DataError where there is no such file; `name` is that of the message."""
    if not path.is_file():
        raise DataError(f"{name or path}: there is no such file")


def hold(file: int, otherwise: str) -> None:
    """Keeps other processes from writing an open file (its descriptor) until it is closed, where the system can.

    Raises:
        DataError: another process holds it; `otherwise` is the message.
    """
    if fcntl is None:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise DataError(otherwise) from None


def read_json_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        DataError: no such file, not JSON, or not an object.
    """
    try:
        value = json.loads(_text(path))
    except ValueError as error:
        raise DataError(f"{path}: not valid JSON ({error})") from None
    except RecursionError:
        raise DataError(f"{path}: lists or objects inside one another too deep") from None
    if not isinstance(value, dict):
        raise DataError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def read_yaml_object(path: Path) -> dict[str, Any]:
    """The keys and values in a YAML file.

    Raises:
        DataError: no such file, not YAML, or not keys with values.
    """
    try:
        value = yaml.safe_load(_text(path))
    except (yaml.YAMLError, ValueError, TypeError) as error:  # a date that is none is a ValueError
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise DataError(f"{path}: not valid YAML ({reason})") from None
    except RecursionError:
        raise DataError(f"{path}: lists or keys inside one another too deep") from None
    if not isinstance(value, dict):
        raise DataError(f"{path}: expected keys and values, found {type(value).__name__}")
    return value


def _text(path: Path) -> str:
    need_file(path)
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text (byte {error.start})") from None


def check_ending(path: Path, endings: Sequence[str]) -> None:
    """Refuses an output file before any work is done.

    Raises:
        ConfigError: another ending, or Parquet without pyarrow.
    """
    if path.suffix.lower() not in endings:
        raise ConfigError(f"{path}: the ending {path.suffix!r} is not one of {', '.join(endings)}")
    if path.suffix.lower() == ".parquet":
        try:
            import pyarrow  # noqa: F401
        except ImportError:
            raise ConfigError(f"{path}: writing Parquet needs pyarrow: pip install pyarrow") from None


def need_folder(target: Path) -> None:
    """Raises a ConfigError where the folder of a file to be written does not exist, or the file is a folder."""
    if target.is_dir():
        raise ConfigError(f"{target}: is a folder; name a file")
    if not target.absolute().parent.is_dir():
        raise ConfigError(f"{target}: there is no folder {target.parent}")


@contextmanager
def full_disk_named(target: Path) -> Iterator[None]:
    """Names what was being written where the disk is full or a limit on it is reached.

    Raises:
        DataError: it is.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _NO_ROOM:
            reason = os.strerror(error.errno)
            raise DataError(f"{target}: can't be written ({reason}); make room or name another place") from None
        raise


@contextmanager
def replaced_file(target: Path) -> Iterator[Path]:
    """A temporary file beside `target` that takes its place at the end; an error leaves what was there before.

    Raises:
        DataError: `target` is a folder, or its folder can't be written.
    """
    if target.is_dir():
        raise DataError(f"{target}: is a folder; name a file")
    with full_disk_named(target), _room_beside(target) as room:
        work = room / target.name
        yield work
        os.replace(work, target)


@contextmanager
def replaced_folder(target: Path) -> Iterator[Path]:
    """A temporary folder beside `target` that takes its place at the end, so that nothing is left half-written.

    The modes of what is in it are those that the umask gives. Folders on the way to `target` that were not there are
    gone again after an error.

    Raises:
        DataError: `target` exists, or does at the end, and is not an empty folder; or its folder can't be written.
    """
    target = target.absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise DataError(f"{target}: already exists; name a new folder")
    new = [folder for folder in target.parents if not folder.exists()]
    with _writable(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with full_disk_named(target), _room_beside(target) as room:
            work = room / target.name
            work.mkdir()
            yield work
            put_folder(work, target)
    except BaseException:
        for folder in new:
            with suppress(OSError):  # another process has put something there
                folder.rmdir()
        raise


def put_folder(work: Path, target: Path) -> None:
    """Moves a folder to where it belongs, in one step, with the modes that the umask gives.

    Raises:
        DataError: something is there by now.
    """
    folder_mode = work.stat().st_mode
    for path in work.rglob("*"):
        if not path.is_symlink():  # some writers of files with weights let nobody else read them
            path.chmod(stat.S_IMODE(folder_mode) & (0o777 if path.is_dir() else 0o666))
    try:
        if fcntl is None and target.is_dir():  # Windows puts no folder in the place of an empty one
            target.rmdir()
        os.rename(work, target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise
        raise DataError(f"{target}: another process wrote it meanwhile; name a new folder") from None


@contextmanager
def _writable(target: Path) -> Iterator[None]:
    """Names what can't be written, but for a full disk.

    Raises:
        DataError: nothing can be made beside `target`.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _NO_ROOM:
            raise
        raise DataError(f"{target}: can't be written ({error.strerror}); name another place") from None


@contextmanager
def _room_beside(target: Path) -> Iterator[Path]:
    """A hidden folder beside `target` for what becomes it; those that killed processes left there are removed.

    Raises:
        DataError: none can be made there.
    """
    parent, prefix = target.absolute().parent, f".{target.name}-"
    for left in _left_behind(parent, prefix):
        shutil.rmtree(left, ignore_errors=True)
    with _writable(target):
        temporary = tempfile.TemporaryDirectory(dir=parent, prefix=prefix)
    with temporary as room, (Path(room) / _IN_USE).open("wb") as mark:
        hold(mark.fileno(), f"{room}: is held by another process")
        yield Path(room)


def _left_behind(parent: Path, prefix: str) -> Iterator[Path]:
    """Folders of `_room_beside` whose process is gone: their mark is held by nobody."""
    if fcntl is None:
        return
    for mark in sorted(parent.glob(f"{glob.escape(prefix)}*/{_IN_USE}")):
        with suppress(OSError, DataError), _opened(mark) as file:
            if time.time() - os.fstat(file).st_mtime > _OLD_S:  # a younger one may be about to be held
                hold(file, "")
                yield mark.parent


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    """Descriptor of a file that anybody may have put there: no link is followed, no pipe waited for."""
    file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        yield file
    finally:
        os.close(file)
