"""The source task, whose prompts are scored: finding it by name, loading it, and reading the prompt of a document.

The YAML files are searched as text for the one that defines the task, and only that one is loaded; what a group or a
tag needs is found by `index`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError

from lmeval_task.index import definition, harness_tasks, source_index, text_files, yaml_files
from p2l_plugins.errors import ConfigError, DataError, P2LError, PromptError
from p2l_plugins.prompts import Prompt, user_turns

if TYPE_CHECKING:
    from lm_eval.api.task import Task


def find_task(name: str, folders: Sequence[Path] = ()) -> Path | None:
    """The YAML file that defines a task, in lm-eval or under the folders; a later folder overrides an earlier one.

    Returns:
        The file; None when no file defines a task of this name but some mention it, as with a group or a tag.

    Raises:
        ConfigError: no file mentions the name; the message has similar ones.
    """
    word = name.encode()
    defines = re.compile(definition(b"task", re.escape(word)), re.MULTILINE)
    mentions = re.compile(rb"(?<![\w-])" + re.escape(word) + rb"(?![\w-])")
    roots = [harness_tasks(), *folders]
    saying = [(path, data) for root in reversed(roots) for path, data in text_files(root) if word in data]
    for path, data in saying:
        if path.endswith(".yaml") and defines.search(data):
            return Path(path)
    if any(mentions.search(data) for _, data in saying):
        return None
    similar = difflib.get_close_matches(name, _names(roots), n=3)
    places = " or under ".join(["in lm-eval", *map(str, folders)])
    hint = f"; similar: {', '.join(similar)}" if similar else ""
    raise ConfigError(f"there is no task {name!r} {places}{hint}")


def defines_task(name: str, folders: Sequence[Path]) -> bool:
    """Whether a YAML file under the folders defines a task or a group of this name."""
    defines = re.compile(definition(b"(?:task|group)", re.escape(name.encode())), re.MULTILINE)
    return any(defines.search(data) for folder in folders for _, data in yaml_files(folder))


def load_source(
    name: str,
    folders: Sequence[Path] = (),
    metadata: Mapping[str, Any] | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> list[Task]:
    """The task of this name; for a group or a tag, all of its tasks.

    Args:
        folders: searched besides lm-eval's own.
        metadata: what the command line hands to tasks.
        overrides: settings that a group of the harness changes.

    Raises:
        ConfigError: no such task.
        DataError: its data can't be loaded, it has no documents, or lm-eval refuses its YAML.
    """
    path = find_task(name, folders)
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_defaults=False, metadata=dict(metadata or {}))
    try:
        if path is None or overrides:
            index = source_index(name, folders)
            if name not in index:
                raise ConfigError(f"there is no task, group or tag {name!r} in lm-eval")
            manager.task_index.update(index)
            spec = {"group": f"changed {name}", "task": [{"task": name, **overrides}]} if overrides else name
            loaded = manager.load(spec)
        else:
            loaded = manager.load(str(path))
    except P2LError:
        raise
    except Exception as error:  # a task runs code of its own, which may raise anything
        reason = str(error).strip().split("\n")[0]
        if isinstance(error, IndexError) and "out of bounds for size 0" in reason:  # lm-eval tries the first document
            raise DataError(f"the source task {name!r} has no documents, so there are no prompts") from error
        raise DataError(f"the source task {name!r} can't be loaded ({type(error).__name__}: {reason})") from error
    return list(loaded["tasks"].values())


def prompt_of(task: Task, doc: Any, template: str | None = None) -> Prompt:
    """What a user would ask: the document's text without examples or a description.

    Args:
        template: a field of the document, or Jinja source over its fields, in place of the task's own text.

    Raises:
        ConfigError: the template does not fit the document.
        PromptError: the task gives something other than text, turns or messages.
    """
    if template is not None:
        from lm_eval.utils import apply_template

        if isinstance(doc, Mapping) and template in doc:
            return _prompt(doc[template])
        try:
            return str(apply_template(template, doc))
        except TemplateError as error:
            fields = ", ".join(doc) if isinstance(doc, Mapping) else "none"
            raise ConfigError(f"p2l_prompt does not fit the documents ({error}); their fields: {fields}") from None
    text = task.doc_to_text(doc)
    if isinstance(text, int):  # the label of the right context, as in winogrande: the contexts are in the choices
        return "\n".join(task.doc_to_choice(doc))
    return _prompt(text)


def _prompt(text: object) -> Prompt:
    """Text, turns or chat messages."""
    if isinstance(text, str):
        return text
    if isinstance(text, Sequence) and text:
        return user_turns(text) if isinstance(text[0], Mapping) else list(text)
    raise PromptError(f"the prompt is {type(text).__name__}, not text; set p2l_prompt to a field or template")


def _names(roots: Sequence[Path]) -> set[str]:
    defines = re.compile(definition(b"(?:task|group)", rb"[\w.:+-]+"), re.MULTILINE)
    return {name.decode() for root in roots for _, data in yaml_files(root) for name in defines.findall(data)}
