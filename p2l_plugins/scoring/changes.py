"""Whether the folder that a bundle was loaded from holds another one by now: some looks at its files tell."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from pathlib import Path

from p2l_plugins.errors import BundleError
from p2l_plugins.scoring.bundle import BUNDLE_FILES, MANIFEST, STARTER

#: Seconds between two looks.
LOOK_S = 1.0

#: How far a thread that loads a bundle beside the one in use stands back behind others (`nice`). Threads that score do
#: not: on a machine with other work their prompts would miss their deadlines.
NICE = 5

#: The path behind the links, and name, inode, size and time of each file that is there.
Mark = tuple[object, ...]


def stand_back() -> None:
    """Has the running thread stand back behind others by `NICE`."""
    if sys.platform == "linux":  # where a thread has a priority of its own
        with contextlib.suppress(OSError):  # of a sandbox that forbids it
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)


class Changes:
    """Looks for another bundle where one is loaded from. Made before the load; used by one thread at a time.

    A folder, or the link that is one, can change; `starter` and hub ids never do. What is found changed is judged once:
    by its manifest, and then by whoever loads it.

    Args:
        source: as for `find_bundle`.
    """

    def __init__(self, source: str | Path) -> None:
        self._folder = Path(source) if str(source) != STARTER and Path(source).is_dir() else None
        self._last: Mark = self._mark()
        self._judged = self._last
        self._in_use = self._found = self._manifest()

    @property
    def possible(self) -> bool:
        """Whether there can be any."""
        return self._folder is not None

    def due(self, at_once: bool = False) -> bool:
        """Whether another manifest than that in use is there.

        Args:
            at_once: now, even if it was refused before; else once two looks have found the same files, so that a copy
                that goes on is not read, and only if none of it was judged yet.
        """
        if self._folder is None:
            return False
        mark = self._mark()
        settled, self._last = mark == self._last, mark
        if not at_once and (not settled or mark == self._judged):
            return False
        self._judged, self._found = mark, self._manifest()
        return self._found != self._in_use

    def taken(self) -> None:
        """What was due last is in use."""
        self._in_use = self._found

    def check(self) -> None:
        """Raises a BundleError where the folder is gone: what is due must not be looked for on a hub."""
        if self._folder is not None and not self._folder.is_dir():
            raise BundleError(f"{self._folder}: there is no such folder any more")

    def _mark(self) -> Mark:
        if self._folder is None:
            return ()
        try:
            folder = self._folder.resolve(strict=True)
        except (OSError, RuntimeError):  # gone, or a circle of links
            return ()
        found: list[object] = [str(folder)]
        for name in (MANIFEST, *BUNDLE_FILES):
            try:
                stat = (folder / name).stat()
            except OSError:
                continue
            found.append((name, stat.st_ino, stat.st_size, stat.st_mtime_ns))
        return tuple(found)

    def _manifest(self) -> bytes | None:
        try:
            return None if self._folder is None else (self._folder / MANIFEST).read_bytes()
        except OSError:
            return None
