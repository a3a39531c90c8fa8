"""YAML tasks made from another task: `p2l_X`, the leaderboard of X's prompts, and `X_p2l`, X with P2L's predictions.

Of a group the leaderboard is one task over all of its prompts, and the benchmark is a group of the same shape whose
tasks are wrapped; of a tag it is a tag.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmeval_task.index import BENCHMARK_OF, LEADERBOARD_OF, source_index
from lmeval_task.source import find_task
from p2l_plugins.errors import ConfigError

if TYPE_CHECKING:
    from lm_eval.tasks._index import Entry

#: Of a group's YAML, what is not a setting of its tasks.
_STRUCTURE = {"group", "group_alias", "task", "aggregate_metric_list", "metadata", "tag", "include"}


def leaderboard_yamls(source: str, folders: Sequence[Path] = ()) -> dict[str, str]:
    """File names and contents of the leaderboard of a source.

    Args:
        source: a task, group or tag.
        folders: in which it is searched besides lm-eval's own.

    Raises:
        ConfigError: there is no such source.
    """
    find_task(source, folders)
    return _file(LEADERBOARD_OF + source, "lmeval_task.task.P2LLeaderboard", source, folders)


def benchmark_yamls(source: str, folders: Sequence[Path] = ()) -> dict[str, str]:
    """File names and contents of a benchmark with P2L's predictions. Arguments and errors as `leaderboard_yamls`.

    Raises:
        ConfigError: also where a group changes a setting of its tasks to a function, or defines a task inside itself.
    """
    if find_task(source, folders) is not None:
        return _benchmark(source, folders)
    index = source_index(source, folders)
    if source not in index:
        raise ConfigError(f"there is no task, group or tag {source!r} in lm-eval")
    return _wrapped(index[source], index, folders, {})


def merged(files: dict[str, str], more: Mapping[str, str]) -> dict[str, str]:
    """Both together.

    Raises:
        ConfigError: two groups wrap the same task with different settings.
    """
    for name, text in more.items():
        if files.get(name, text) != text:
            raise ConfigError(
                f"{name.removesuffix('.yaml')} is asked for with different settings, which groups make of their tasks; "
                "run the groups one by one, or add them to different folders"
            )
    return {**files, **more}


def _benchmark(
    source: str, folders: Sequence[Path], overrides: Mapping[str, Any] | None = None, tag: str | None = None
) -> dict[str, str]:
    more: dict[str, Any] = {"p2l_overrides": dict(overrides)} if overrides else {}
    if tag:
        more["tag"] = tag
    return _file(source + BENCHMARK_OF, "lmeval_task.benchmark.P2LBenchmark", source, folders, more)


def _wrapped(
    entry: Entry, index: Mapping[str, Entry], folders: Sequence[Path], overrides: Mapping[str, Any]
) -> dict[str, str]:
    """Files of a task, tag or group of the index, whose tasks take `overrides`."""
    kind, name = entry.kind.name, entry.name
    if kind == "TAG":
        tasks = sorted(task for task in entry.tags if task in index)
        return {k: v for task in tasks for k, v in _benchmark(task, folders, overrides, name + BENCHMARK_OF).items()}
    if kind != "GROUP":
        return _benchmark(name, folders, overrides)
    files: dict[str, str] = {}
    config = _group(name, entry.cfg or {}, index, folders, overrides, files)
    files[_file_name(name + BENCHMARK_OF)] = _dump(config)
    return files


def _group(
    name: str,
    config: Mapping[str, Any],
    index: Mapping[str, Entry],
    folders: Sequence[Path],
    overrides: Mapping[str, Any],
    files: dict[str, str],
) -> dict[str, Any]:
    """A group's YAML with its members' names changed; the members' files are added to `files`."""
    overrides = {**_settings(name, config), **overrides}
    members: list[Any] = []
    for item in config.get("task") or []:
        if isinstance(item, dict) and "group" in item and item["group"] not in index:
            members.append(_group(item["group"], item, index, folders, overrides, files))  # a group inside this one
            continue
        member = item if isinstance(item, str) else item.get("task") or item.get("group")
        if not isinstance(member, str) or member not in index:
            raise ConfigError(f"the group {name!r} defines the task {member!r} inside itself; wrap single tasks")
        own = {} if isinstance(item, str) else {**overrides, **_settings(member, item)}
        files.update(merged(files, _wrapped(index[member], index, folders, own or overrides)))
        members.append(member + BENCHMARK_OF)
    kept = {key: config[key] for key in ("group_alias", "aggregate_metric_list", "metadata") if key in config}
    return {"group": name + BENCHMARK_OF, **kept, "task": members}


def _settings(name: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """What a group's YAML sets for its tasks."""
    settings = {key: value for key, value in config.items() if key not in _STRUCTURE}
    for key, value in settings.items():
        if isinstance(value, str) and value.startswith("/"):  # where lm-eval finds the function of `!function`
            raise ConfigError(f"{name!r} sets {key} to a function, which can't be carried over; wrap single tasks")
    return settings


def _file(
    name: str, task_class: str, source: str, folders: Sequence[Path], more: Mapping[str, Any] | None = None
) -> dict[str, str]:
    keys: dict[str, Any] = {"p2l_source": source}
    if folders:
        keys["p2l_include_path"] = [str(folder) for folder in folders]
    keys |= dict(more or {})
    text = f"task: {json.dumps(name)}\nclass: !function {task_class}\n{_dump(keys)}metadata:\n  version: 1.0\n"
    return {_file_name(name): text}


def _dump(config: Mapping[str, Any]) -> str:
    """YAML whose values are JSON, which is YAML."""
    return "".join(f"{key}: {json.dumps(value, ensure_ascii=False)}\n" for key, value in config.items())


def _file_name(name: str) -> str:
    return f"{name.replace('/', '_')}.yaml"
