"""The source task, whose prompts are scored: finding it by name, loading it, and reading the prompt of a document.

lm-eval's own look-up parses all of its 14,000 YAML files, which takes seconds. Here the files are searched as text for
the one that defines the task, and only that one is loaded. Groups and tags are not defined in one file: they take
lm-eval's way.
"""

# mypy: disable-error-code="import-untyped"

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError

from p2l_plugins.errors import ConfigError, DataError, P2LError, PromptError
from p2l_plugins.prompts import Prompt, user_turns

if TYPE_CHECKING:
    from lm_eval.api.task import Task

_SKIP = {"__pycache__", ".ipynb_checkpoints"}  # lm-eval does not look there either


def harness_tasks() -> Path:
    """lm-eval's own task folder, without importing lm-eval.

    Raises:
        ConfigError: lm-eval is not installed.
    """
    spec = find_spec("lm_eval")
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError("lm-eval is not installed: pip install 'p2l-plugins[eval]'")
    return Path(spec.submodule_search_locations[0]) / "tasks"


def find_task(name: str, folders: Sequence[Path] = ()) -> Path | None:
    """The YAML file that defines a task, in lm-eval or under the folders; a later folder overrides an earlier one.

    Returns:
        The file; None when no file defines a task of this name but some mention it, as with a group or a tag.

    Raises:
        ConfigError: no file mentions the name; the message has similar ones.
    """
    word = name.encode()
    defines = re.compile(_definition(b"task", re.escape(word)), re.MULTILINE)
    mentions = re.compile(rb"(?<![\w-])" + re.escape(word) + rb"(?![\w-])")
    mentioned = False
    roots = [harness_tasks(), *folders]
    for root in reversed(roots):
        for path, data in _files(root):
            if word not in data:
                continue
            if defines.search(data):
                return Path(path)
            mentioned = mentioned or mentions.search(data) is not None
    if mentioned:
        return None
    similar = difflib.get_close_matches(name, _names(roots), n=3)
    places = " or under ".join(["in lm-eval", *map(str, folders)])
    hint = f"; similar: {', '.join(similar)}" if similar else ""
    raise ConfigError(f"there is no task {name!r} {places}{hint}")


def defines_task(name: str, folders: Sequence[Path]) -> bool:
    """Whether a YAML file under the folders defines a task or a group of this name."""
    defines = re.compile(_definition(b"(?:task|group)", re.escape(name.encode())), re.MULTILINE)
    return any(defines.search(data) for folder in folders for _, data in _files(folder))


def load_source(name: str, folders: Sequence[Path] = (), metadata: Mapping[str, Any] | None = None) -> list[Task]:
    """The task of this name; for a group or a tag, all of its tasks.

    Args:
        folders: searched besides lm-eval's own.
        metadata: what the command line hands to tasks.

    Raises:
        ConfigError: no such task.
        DataError: its data can't be loaded, or lm-eval refuses its YAML.
    """
    path = find_task(name, folders)
    from lm_eval.tasks import TaskManager

    try:
        if path is not None:
            loaded = TaskManager(include_defaults=False, metadata=dict(metadata or {})).load(str(path))
        else:
            manager = TaskManager(include_path=list(folders), metadata=dict(metadata or {}))
            if name not in manager.all_tasks:
                raise ConfigError(f"there is no task, group or tag {name!r} in lm-eval")
            loaded = manager.load(name)
    except P2LError:
        raise
    except Exception as error:  # a task runs code of its own, which may raise anything
        reason = str(error).strip().split("\n")[0]
        raise DataError(f"the source task {name!r} can't be loaded ({type(error).__name__}: {reason})") from error
    return list(loaded["tasks"].values())


def prompt_of(task: Task, doc: Any, template: str | None = None) -> Prompt:
    """What a user would ask: the document's text without examples or a description.

    Args:
        template: Jinja source over the document's fields, in place of the task's own text.

    Raises:
        ConfigError: the template does not fit the document.
        PromptError: the task gives something other than text, turns or messages.
    """
    if template is not None:
        from lm_eval.utils import apply_template

        try:
            return str(apply_template(template, doc))
        except TemplateError as error:
            fields = ", ".join(doc) if isinstance(doc, Mapping) else "none"
            raise ConfigError(f"p2l_prompt does not fit the documents ({error}); their fields: {fields}") from None
    text = task.doc_to_text(doc)
    if isinstance(text, str):
        return text
    if isinstance(text, int):  # the label of the right context, as in winogrande: the contexts are in the choices
        return "\n".join(task.doc_to_choice(doc))
    if isinstance(text, Sequence) and text:
        return user_turns(text) if isinstance(text[0], Mapping) else list(text)
    raise PromptError(f"doc_to_text gives {type(text).__name__}, not text; set p2l_prompt to a template")


def _definition(key: bytes, value: bytes) -> bytes:
    return rb"""^["']?""" + key + rb"""["']?[ \t]*:[ \t]*["']?(""" + value + rb""")["']?[ \t]*(?:\#.*)?\r?$"""


def _files(root: Path) -> Sequence[tuple[str, bytes]]:
    """Path and content of the YAML files under a folder, in lm-eval's order, in which the first definition counts."""
    return _harness_files() if root == harness_tasks() else _read_files(root)


@cache
def _harness_files() -> Sequence[tuple[str, bytes]]:
    """7 MB, read once: the installed harness does not change while it runs, as a user's folder may in a notebook."""
    return _read_files(harness_tasks())


def _read_files(root: Path) -> Sequence[tuple[str, bytes]]:
    found = []
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [name for name in subfolders if name not in _SKIP]
        found += [f"{folder}/{name}" for name in names if name.endswith(".yaml")]
    return [(path, _read(path)) for path in sorted(found)]


def _read(path: str) -> bytes:
    with open(path, "rb", buffering=0) as file:
        return file.read()


def _names(roots: Sequence[Path]) -> set[str]:
    defines = re.compile(_definition(b"(?:task|group)", rb"[\w.:+-]+"), re.MULTILINE)
    return {name.decode() for root in roots for _, data in _files(root) for name in defines.findall(data)}
