"""What a user would ask in a document of an lm-eval sample log: the question, without examples and chat templates."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jinja2 import StrictUndefined, Template, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from p2l_plugins.errors import ConfigError, DataError
from p2l_plugins.files.rows import BadRow, Row
from p2l_plugins.prompts import Turns, conversation_in
from p2l_plugins.votes.tally import Tally
from p2l_plugins.votes.values import turns_of

_REMEDY = "--prompt-field or --prompt-template names the question"


def _environment() -> ImmutableSandboxedEnvironment:
    env = ImmutableSandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)
    env.filters["regex_replace"] = _regex_replace
    return env


def _regex_replace(text: str, pattern: str, replacement: str, count: int = 0) -> str:
    return re.sub(pattern, replacement, text, count=count)


def compiled(template: str) -> Template:
    """A Jinja template over the fields of a document, in the sandbox; it knows lm-eval's filter `regex_replace`.

    Raises:
        ConfigError: it is no template.
    """
    try:
        return _environment().from_string(template)
    except TemplateError as error:
        raise ConfigError(f"the prompt template is wrong: {error}") from None


@dataclass(frozen=True)
class PromptRule:
    """Where the user says the prompt is.

    Attributes:
        field: a field of the document.
        template: rendered over the document; neither: see `RunPrompts`.
    """

    field: str | None = None
    template: Template | None = None


class RunPrompts:
    """The prompts of one run of a task.

    Without a rule of the user it is what the model was sent (the context of the first request). Where that holds
    more than the question (examples, a description, a system instruction, a chat template), the task's own
    `doc_to_text` is rendered instead, if results.json has it as a template or field. Else messages count as a chat,
    and plain text is taken as it was sent, with a note.

    Args:
        rule: of the user.
        task: its name.
        results: results.json of the run.
        tally: takes the note.
    """

    def __init__(self, rule: PromptRule, task: str, results: Mapping[str, Any], tally: Tally) -> None:
        self._rule, self._task, self._tally = rule, task, tally
        config = _entry(results, "configs", task)
        config = config if isinstance(config, Mapping) else {}
        shots = _entry(results, "n-shot", task) or config.get("num_fewshot")
        self._chat = bool(results.get("chat_template"))
        more = {
            "examples": isinstance(shots, int) and shots > 0,
            "a description": bool(config.get("description")),
            "a system instruction": bool(results.get("system_instruction")),
        }
        self._more = " and ".join(name for name, there in more.items() if there)
        self._own = _own_text(config.get("doc_to_text")) if self._chat or self._more else None

    def turns(self, row: Row) -> Turns:
        """The user turns of a sample.

        Raises:
            Skip: rule "empty-prompt".
            BadRow: rule "bad-prompt".
            DataError: the text is in the form of a chat template.
        """
        doc = row.get("doc")
        fields = doc if isinstance(doc, Mapping) else {}
        if self._rule.field is not None:
            if self._rule.field not in fields:
                raise BadRow(
                    "bad-prompt",
                    f"the document has no field {self._rule.field!r}; it has {', '.join(fields) or 'none'}",
                )
            return turns_of(fields[self._rule.field], self._rule.field)
        if self._rule.template is not None:
            try:
                return turns_of(self._rule.template.render(**fields), "the prompt template's text")
            except (TemplateError, TypeError, ValueError) as error:
                raise BadRow("bad-prompt", f"the prompt template does not fit the document ({error})") from None
        if self._own is not None and (text := _rendered(self._own, fields)) is not None:
            return turns_of(text, "doc_to_text")
        return turns_of(self._sent(row), "arguments")

    def _sent(self, row: Row) -> Any:
        sent = _messages(_context(row.get("arguments")))
        if self._chat and isinstance(sent, str):
            raise DataError(
                f"task {self._task!r}: the prompts are logged in the form of a chat template, and the task's own text "
                f"is not in results.json; {_REMEDY}"
            )
        if self._more:
            self._tally.note(f"task {self._task}: the prompts hold {self._more}; {_REMEDY}")
        return sent


def _entry(results: Mapping[str, Any], section: str, task: str) -> Any:
    value = results.get(section)
    return value.get(task) if isinstance(value, Mapping) else None


def _own_text(text: Any) -> str | Template | None:
    """`doc_to_text` as results.json has it: a field, a template, or the source of a function, which is of no use."""
    if not isinstance(text, str) or text.lstrip().startswith(("def ", "<function", "functools.partial")):
        return None
    if "{{" not in text and "{%" not in text:
        return text
    try:
        return _environment().from_string(text)
    except TemplateError:
        return None


def _rendered(own: str | Template, fields: Mapping[str, Any]) -> str | None:
    if isinstance(own, str):
        value = fields.get(own)
        return value if isinstance(value, str) else None
    try:
        return own.render(**fields)
    except (TemplateError, TypeError, ValueError):
        return None


def _context(arguments: Any) -> Any:
    """The first argument of the first request: {"gen_args_0": {"arg_0": …}}, or [[…]] in older logs."""
    if isinstance(arguments, Mapping):
        arguments = arguments.get("gen_args_0")
        if isinstance(arguments, Mapping):
            return arguments.get("arg_0")
        return arguments
    while isinstance(arguments, list) and arguments and isinstance(arguments[0], list):
        arguments = arguments[0]
    return arguments[0] if isinstance(arguments, list) and arguments else arguments


def _messages(context: Any) -> Any:
    """Chat messages, which models behind an API get as JSON text, alone or as the only item of a list."""
    text = context[0] if isinstance(context, list) and len(context) == 1 else context
    found = conversation_in(text) if isinstance(text, str) and text.startswith("[{") else text
    return found if isinstance(found, list) else context
