"""Groups and tags of the harness: an index of only the YAML files that one of them needs.

lm-eval's own index parses all of its 14,000 files, which takes 5 seconds. Here the files are searched as text, and
only those that define or mention the name, or a name that it leads to, are parsed.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from p2l_plugins.errors import ConfigError

if TYPE_CHECKING:
    from lm_eval.tasks._index import Entry

logger = logging.getLogger(__name__)

#: What the name of a derived task adds to the source's: `p2l_X` and `X_p2l`.
LEADERBOARD_OF, BENCHMARK_OF = "p2l_", "_p2l"

_SKIP = {"__pycache__", ".ipynb_checkpoints"}  # lm-eval does not look there either
_LONGEST = 2_000_000  # bytes of a YAML file
_NO_TEMPLATES = {".py", ".pyc", ".md", ".json", ".jsonl", ".txt", ".csv", ".parquet"}

Files = Sequence[tuple[str, bytes]]


def harness_tasks() -> Path:
    """lm-eval's own task folder, without importing lm-eval.

    Raises:
        ConfigError: lm-eval is not installed.
    """
    spec = find_spec("lm_eval")
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError("lm-eval is not installed: pip install 'p2l-plugins[eval]'")
    return Path(spec.submodule_search_locations[0]) / "tasks"


def yaml_files(root: Path) -> Files:
    """Path and content of the YAML files under a folder, in lm-eval's order, in which the first definition counts."""
    return [(path, data) for path, data in text_files(root) if path.endswith(".yaml")]


def text_files(root: Path) -> Files:
    """As `yaml_files`, with the files that they may include, which have other endings or none."""
    return _harness_files() if root == harness_tasks() else _read_files(root)


def source_index(name: str, folders: Sequence[Path] = ()) -> dict[str, Entry]:
    """What lm-eval's own index holds of a name and of all that a group of this name leads to.

    Args:
        folders: searched besides lm-eval's own; a later one overrides an earlier one. All of their files are parsed.

    Returns:
        Entries by name; without the name where it is neither a task, a group nor a tag.
    """
    from lm_eval.tasks._index import TaskIndex

    users: dict[str, Entry] = TaskIndex.build(folders)
    index: dict[str, Entry] = {}
    wanted, seen = [name], set()
    while wanted:
        word = wanted.pop()
        if word in seen:
            continue
        seen.add(word)
        entry = users.get(word)
        if entry is None:
            found: dict[str, Entry] = {}
            for path, config in _parsed(_definitions().get(word) or _mentioning(word)):
                if config.get("task") == word or config.get("group") == word or word in _tags(config):
                    TaskIndex.process_cfg(config, Path(path), found)
            entry = found.pop(word, None)
            if entry is not None:
                index[word] = entry
            index = found | index
        if entry is not None and entry.kind.name == "GROUP":
            wanted += list(_members((entry.cfg or {}).get("task")))
    return index | users


@cache
def _definitions() -> Mapping[str, Sequence[str]]:
    """YAML files of lm-eval by the tasks and groups that they define."""
    defines = re.compile(definition(b"(?:task|group)", rb"""[^"'#\s\[{]+"""), re.MULTILINE)
    paths: dict[str, list[str]] = {}
    for path, data in yaml_files(harness_tasks()):
        for name in defines.findall(data):
            paths.setdefault(name.decode(), []).append(path)
    return paths


def definition(key: bytes, value: bytes) -> bytes:
    """Regular expression of a line `key: value`."""
    return rb"""^["']?""" + key + rb"""["']?[ \t]*:[ \t]*["']?(""" + value + rb""")["']?[ \t]*(?:\#.*)?\r?$"""


def _parsed(paths: Iterable[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The files' content; their functions are not imported."""
    from lm_eval.tasks._yaml_loader import load_yaml

    for path in paths:
        try:
            yield path, load_yaml(path, resolve_func=False)
        except Exception as error:  # lm-eval skips such files, too
            logger.debug("skip %s (%s)", path, error)


def _mentioning(word: str) -> Iterator[str]:
    """YAML files of lm-eval with the word, or with an included file that has it."""
    whole = re.compile(rb"(?<![\w-])" + re.escape(word.encode()) + rb"(?![\w-])")
    found = {path for path, data in _harness_files() if word.encode() in data and whole.search(data)}
    fresh = found
    while fresh:  # a file may include one that includes the one with the word
        names = [os.path.basename(path).encode() for path in fresh]
        including = {path for path, data in _including() if any(name in data for name in names)}
        fresh = including - found
        found = found | fresh
    yield from (path for path, _ in yaml_files(harness_tasks()) if path in found)


@cache
def _including() -> Files:
    return [(path, data) for path, data in _harness_files() if b"include" in data]


def _tags(config: Mapping[str, Any]) -> Sequence[str]:
    tags = config.get("tag") or []
    return [tags] if isinstance(tags, str) else tags


def _members(members: object) -> Iterator[str]:
    """Names in a group's list of tasks."""
    for item in members if isinstance(members, list) else []:
        if isinstance(item, str):
            yield item
        elif isinstance(item, dict):
            for key in ("task", "group"):
                if isinstance(item.get(key), str):
                    yield item[key]
            yield from _members(item.get("task"))


@cache
def _harness_files() -> Files:
    """7 MB, read once: the installed harness does not change while it runs, as a user's folder may in a notebook."""
    return _read_files(harness_tasks())


def _read_files(root: Path) -> Files:
    paths = []
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [name for name in subfolders if name not in _SKIP]
        paths += [f"{folder}/{name}" for name in names if os.path.splitext(name)[1] not in _NO_TEMPLATES]
    return [(path, data) for path in sorted(paths) if (data := _read(path)) is not None]


def _read(path: str) -> bytes | None:
    """A file's content; None where it is no text, or too long for a task."""
    with open(path, "rb", buffering=0) as file:
        data = file.read(_LONGEST + 1)
    return None if len(data) > _LONGEST or b"\0" in data[:1024] else data
