"""What a user would ask in a document of an lm-eval sample log: the question, without examples and chat templates."""

from __future__ import annotations

import json
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

_CHAT = "in the form of a chat template"
_EXAMPLES = "with examples before the question"

#: What chat templates put around messages: ChatML, Llama 2 to 4, Gemma, Mistral, Phi, GPT-OSS, Command R, DeepSeek,
#: GLM, Zephyr, Granite, Kimi, Vicuna, Alpaca and others of their forms.
_CONTROL = re.compile(
    r"<\|[A-Za-z][A-Za-z0-9_]*\|>|<\|[a-z]+>|<[｜|][^<>｜|\n]{2,40}[｜|]>|</?(?:start|end)_of_turn>|\[/?INST\]|<</?SYS>>"
    r"|\[/?SYSTEM_PROMPT\]|\[gMASK\]|<sop>|<(?:reserved_10[67]|extra_id_1|bos|s)>|^### (?:Instruction|Response|Human|"
    r"Assistant|User):|^(?:ASSISTANT|Assistant|Human): ?\Z|(?:USER|ASSISTANT): ?\Z",
    re.MULTILINE,
)
_LABEL = re.compile(r"[^\W\d][\w ()'-]{0,30}[:：]")
_LINE_LABEL = re.compile(r"^\s*([^\W\d][\w ]{0,20}[:：])", re.MULTILINE)

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
    and plain text is taken as it was sent, with a note. results.json may be missing, so the text itself is looked at,
    too: one in the form of a chat template or with examples is refused.

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
        self._own = _own_text(config.get("doc_to_text"))

    def dressed(self, row: Row) -> bool:
        """Whether a sample shows more than the bare question."""
        return self._chat or dress_of(_messages(_context(row.get("arguments"))), row.get("doc")) is not None

    def turns(self, row: Row) -> Turns:
        """The user turns of a sample.

        Raises:
            Skip: rule "empty-prompt".
            BadRow: rule "bad-prompt".
            DataError: the text is in the form of a chat template, or holds examples.
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
            except Exception as error:  # a template computes what it likes
                raise BadRow("bad-prompt", f"the prompt template does not fit the document ({error})") from None
        sent = _messages(_context(row.get("arguments")))
        dress = _CHAT if self._chat and isinstance(sent, str) else dress_of(sent, doc)
        needs_own = self._chat or self._more or dress is not None
        if needs_own and self._own is not None and (text := _rendered(self._own, fields)) is not None:
            return turns_of(text, "doc_to_text")
        return turns_of(self._sent(row, sent, dress), "arguments")

    def _sent(self, row: Row, sent: Any, dress: str | None) -> Any:
        if dress is not None:
            raise DataError(
                f"task {self._task!r}: the prompts are logged {dress}, and the task's own text "
                f"is not in results.json; {_REMEDY}"
            )
        if _options_in_context(row.get("arguments")):
            self._tally.note(
                f"task {self._task}: its options stand inside the context, so that a prompt ends in the first one; "
                f"{_REMEDY}"
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
    except Exception:  # a template computes what it likes
        return None


def dress_of(sent: Any, doc: Any) -> str | None:
    """What a prompt holds beside the question, as part of a sentence; None where nothing is seen.

    Args:
        sent: text, or chat messages.
        doc: the document. What stands in it is no sign: a question may be about templates.
    """
    own = json.dumps(doc, ensure_ascii=False, default=str) if isinstance(doc, Mapping) else str(doc or "")
    if isinstance(sent, list):
        users = [m.get("content") for m in sent if isinstance(m, Mapping) and m.get("role") == "user"]
        answered = any(isinstance(m, Mapping) and m.get("role") == "assistant" for m in sent[:-1])
        earlier = [text.strip() for text in users[:-1] if isinstance(text, str)]
        return _EXAMPLES if answered and earlier and not any(_inside(text, own) for text in earlier) else None
    if not isinstance(sent, str):
        return None
    if any(not _inside(mark, own) for mark in _CONTROL.findall(sent)):
        return _CHAT
    return _EXAMPLES if _repeated_block(sent, own) else None


def _inside(text: str, own: str) -> bool:
    return text in own or json.dumps(text, ensure_ascii=False)[1:-1] in own


def _repeated_block(sent: str, own: str) -> bool:
    """Whether blocks of the same form come before the question's.

    The last line's label ("Answer:") has stood before an answer already, or blocks between empty lines begin with the
    labels that the last one begins with.
    """
    lines = [line.strip() for line in sent.strip().splitlines() if line.strip()]
    if not lines:
        return False
    last = lines[-1]
    if _LABEL.fullmatch(last) and any(line.startswith(last) and len(line) > len(last) for line in lines[:-1]):
        return not _inside(last, own)
    blocks = [block.strip() for block in re.split(r"\n\s*\n", sent.strip())]
    labels = [tuple(_LINE_LABEL.findall(block)) for block in blocks]
    same = [block for block, found in zip(blocks[:-1], labels[:-1], strict=True) if found and found == labels[-1]]
    return bool(same) and not any(_inside(block, own) for block in same)


def _options_in_context(arguments: Any) -> bool:
    """Whether requests of a document differ in their context and ask for the same continuation, as in winogrande."""
    if isinstance(arguments, Mapping):
        pairs = [(a.get("arg_0"), a.get("arg_1")) for a in arguments.values() if isinstance(a, Mapping)]
    else:
        pairs = [(a[0], a[1]) for a in arguments or [] if isinstance(a, list) and len(a) > 1]
    texts = [pair for pair in pairs if all(isinstance(text, str) and text for text in pair)]
    return len(texts) > 1 and len({a for a, _ in texts}) == len(texts) and len({b for _, b in texts}) == 1


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
