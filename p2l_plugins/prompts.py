"""From chat messages to user turns, from user turns to model text and token ids.

A prompt is a string (one user turn) or a list of strings (the user turns of a conversation, oldest first).
Training, export and inference all read text through this module, so that they can't disagree.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from jinja2 import TemplateError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from tokenizers import Tokenizer

from p2l_plugins.errors import BundleError, EmptyPrompt, PromptError

Prompt = str | Sequence[str]
Turns = tuple[str, ...]

CLS_REPLACEMENT = "<cls>"

#: Characters per token that the first cut of a long text allows for; where they give too few tokens, it cuts less.
CHARS_PER_TOKEN = 8

#: Tokens after a cut that are not used: the first ones may be others than in the whole text.
CUT_SLACK = 64

#: Every tokenizer that splits text into words first ends a word before a single space.
_WORD_START = re.compile(r"(?<=\S) (?=\S)")


def clean(text: str) -> str:
    """Text that can be encoded to UTF-8: surrogate pairs are joined, lone surrogates become U+FFFD."""
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def text_bytes(text: str) -> int:
    """Bytes of a text in UTF-8; a lone surrogate has three."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def as_turns(prompt: Prompt) -> Turns:
    """The user turns of a prompt, cleaned.

    Raises:
        PromptError: not a string or a list of strings; an EmptyPrompt: nothing but white space.
    """
    if isinstance(prompt, str):
        turns: Turns = (clean(prompt),)
    elif isinstance(prompt, Sequence) and all(isinstance(turn, str) for turn in prompt):
        turns = tuple(clean(turn) for turn in prompt)
    else:
        raise PromptError(f"a prompt is a string or a list of strings, not {type(prompt).__name__}")
    if not any(turn.strip() for turn in turns):
        raise EmptyPrompt("the prompt is empty: at least one turn must hold text")
    return turns


def prompt_in(value: Any) -> Prompt:
    """The prompt in a value of a file: text, the texts of the user's turns, or chat messages.

    Of messages only the user's count.

    Raises:
        PromptError: as `as_turns`; a turn that is None counts as none.
    """
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        value = [turn for turn in value if turn is not None]
        if any(isinstance(turn, Mapping) for turn in value):
            return list(user_turns(value))
    as_turns(value)
    return value  # type: ignore[no-any-return]  # as_turns has looked


def conversation_in(text: str) -> str | list[Any]:
    """The list in a text that is a JSON list of texts or of chat messages; any other text stays as it is.

    For text without a type: a cell of a CSV file, an argument of a command.
    """
    if not text.lstrip().startswith("["):
        return text
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    turns = [turn for turn in value if turn is not None]
    is_conversation = turns and (
        all(isinstance(turn, str) for turn in turns)
        or all(isinstance(turn, Mapping) and "role" in turn for turn in turns)
    )
    return value if is_conversation else text


def user_turns(messages: Iterable[Any]) -> Turns:
    """The text of the user's messages in a chat, oldest first (OpenAI, Anthropic and Responses forms).

    Parts that are not text (images, audio, tool results) are left out, and so is what holds no text at all.

    Raises:
        EmptyPrompt: no user message holds text.
    """
    turns = []
    for message in messages:
        if isinstance(message, Mapping) and message.get("role") == "user":
            text = _content_text(message.get("content"))
            if text.strip():
                turns.append(text)
    return as_turns(turns)


def _content_text(content: Any) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, Sequence):
        return ""
    texts = []
    for part in content:
        if isinstance(part, str):
            texts.append(part)
        elif isinstance(part, Mapping) and isinstance(part.get("text"), str):
            texts.append(part["text"])
    return "\n".join(texts)


def canonical_bytes(turns: Turns) -> bytes:
    """Length-prefixed UTF-8, so that `("ab", "c")` and `("a", "bc")` differ; the input of the cache key."""
    parts = [len(turns).to_bytes(8, "little")]
    for turn in turns:
        data = turn.encode()
        parts += [len(data).to_bytes(8, "little"), data]
    return b"".join(parts)


class TextForm(BaseModel):
    """How user turns become model text; part of a bundle's manifest.

    `chat`: the published form for decoders: the chat template over user turns, then the CLS token, and no other
    special tokens. `plain`: for encoders: turns joined by an empty line, with the tokenizer's own special tokens
    around them; special tokens written out in the text stay text.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    form: Literal["chat", "plain"]
    max_length: int
    pad_id: int
    cls_token: str | None = None
    special_tokens: dict[str, str] = {}


class Tokens(NamedTuple):
    """Token ids of a prompt, at most the form's `max_length`, and whether it had more."""

    ids: list[int]
    truncated: bool


class TextEncoder:
    """Turns → token ids, without transformers. Safe to call from several threads.

    Of a prompt of megabytes only the end is tokenised. The text is cut at a space between words, some tokens more than
    needed are read after the cut, and where that gives too few, a longer end is read; so the ids are those of the whole
    text. The exception is a text without such a space for hundreds of characters around the cut, which is made where it
    falls: one run of the same letters or spaces for all that length may then be divided otherwise than in the whole.

    Args:
        tokenizer: a `tokenizers` tokenizer; its truncation, padding and special-token settings are replaced.
        form: the text form.
        chat_template: Jinja source, for `form="chat"`.

    Raises:
        BundleError: a chat form without a template or CLS token.
    """

    def __init__(self, tokenizer: Tokenizer, form: TextForm, chat_template: str | None = None) -> None:
        self.form = form
        self.tokenizer = tokenizer
        self.chat_template = chat_template
        if form.form == "chat" and (chat_template is None or not form.cls_token):
            raise BundleError("the text form 'chat' needs a chat template and a CLS token")
        tokenizer.no_padding()
        tokenizer.no_truncation()
        tokenizer.encode_special_tokens = form.form == "plain"
        self._before, self._after = self._added() if form.form == "plain" else ([], [])
        self._kept = form.max_length - len(self._before) - len(self._after)
        if self._kept < 1:
            raise BundleError(f"max_length is {form.max_length}, which leaves no room for a prompt's tokens")

    def _added(self) -> tuple[list[int], list[int]]:
        """The special tokens that the tokenizer puts before and after a text."""
        ids = self.tokenizer.encode("a").ids
        text = self.tokenizer.encode("a", add_special_tokens=False).ids
        before = next(i for i in range(len(ids)) if ids[i : i + len(text)] == text)
        return ids[:before], ids[before + len(text) :]

    @classmethod
    def from_folder(cls, folder: Path, form: TextForm) -> TextEncoder:
        """Reads `tokenizer.json` and, for the chat form, `chat_template.jinja`."""
        template = folder / "chat_template.jinja"
        return cls(
            Tokenizer.from_file(str(folder / "tokenizer.json")),
            form,
            template.read_text(encoding="utf-8") if template.exists() else None,
        )

    @cached_property
    def _template(self) -> Any:
        env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
        env.filters["tojson"] = _tojson
        env.globals["raise_exception"] = _raise_exception
        env.globals["strftime_now"] = _strftime_now
        return env.from_string(self.chat_template or "")

    def text(self, turns: Turns) -> str:
        """Model text of the user turns, before tokenisation.

        Raises:
            PromptError: the chat template refuses the turns.
        """
        if self.form.form == "plain":
            return "\n\n".join(turns)
        cls_token = self.form.cls_token or ""
        messages = [{"role": "user", "content": turn.replace(cls_token, CLS_REPLACEMENT)} for turn in turns]
        try:
            text: str = self._template.render(
                messages=messages, add_generation_prompt=False, **self.form.special_tokens
            )
        except TemplateError as error:
            raise PromptError(f"the chat template refuses the prompt: {error}") from None
        return text + cls_token

    def encode(self, prompts: Sequence[Turns]) -> list[list[int]]:
        """Token ids per prompt, unpadded, at most `max_length` of them, cut on the left.

        Raises:
            PromptError: the chat template refuses a prompt's turns.
        """
        return [tokens.ids for tokens in self.tokens(prompts)]

    def tokens(self, prompts: Sequence[Turns]) -> list[Tokens]:
        """As `encode`, and whether each prompt was cut."""
        texts = [self.text(turns) for turns in prompts]
        size = CHARS_PER_TOKEN * (self._kept + CUT_SLACK)
        starts = [_cut(text, size) for text in texts]
        ends = [text[start:] for text, start in zip(texts, starts, strict=True)]
        encodings = self.tokenizer.encode_batch_fast(ends, add_special_tokens=False)
        return [
            self._tokens(text, start, encoding.ids, size)
            for text, start, encoding in zip(texts, starts, encodings, strict=True)
        ]

    def _tokens(self, text: str, start: int, ids: list[int], size: int) -> Tokens:
        """Tokens of a text from the ids of its end, which is read again, longer, while they are too few."""
        while start and len(ids) < self._kept + CUT_SLACK:
            size *= 4
            start = _cut(text, size)
            ids = self.tokenizer.encode_batch_fast([text[start:]], add_special_tokens=False)[0].ids
        truncated = len(ids) > self._kept
        return Tokens([*self._before, *ids[-self._kept :], *self._after], truncated)


def _cut(text: str, size: int) -> int:
    """Where the last `size` characters begin, moved to a space between words; 0 where the text is no longer."""
    start = len(text) - size
    if start <= 0:
        return 0
    found = _WORD_START.search(text, start, start + size // 4)
    return found.start() if found else start


def pad(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Right-padded `input_ids` and `attention_mask`, both (N, longest) int64."""
    length = max((len(row) for row in rows), default=0)
    ids = np.full((len(rows), length), pad_id, dtype=np.int64)
    mask = np.zeros((len(rows), length), dtype=np.int64)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
        mask[i, : len(row)] = 1
    return ids, mask


def _tojson(value: Any, indent: int | None = None, **_: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.datetime.now().strftime(form)
