"""From chat messages to user turns, from user turns to model text and token ids.

A prompt is a string (one user turn) or a list of strings (the user turns of a conversation, oldest first).
Training, export and inference all read text through this module, so that they can't disagree.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, model_serializer
from tokenizers import Tokenizer
from tokenizers.models import Unigram

from p2l_plugins.errors import BundleError, EmptyPrompt, PromptError
from p2l_plugins.patterns import text_ids, try_patterns
from p2l_plugins.templates import ChatTemplate

Prompt = str | Sequence[str]
Turns = tuple[str, ...]

CLS_REPLACEMENT = "<cls>"

#: Its name in checkpoints and bundles.
CHAT_TEMPLATE = "chat_template.jinja"

#: Characters per token that the first cut of a long text allows for; where they give too few tokens, it cuts less.
CHARS_PER_TOKEN = 8

#: Tokens after a cut that are not used: the first ones may be others than in the whole text.
CUT_SLACK = 64

#: A middle cut reads no more than so many times the text that its first look reads.
MOST_AGAIN = 16

#: Another cut reads so many characters of a text at most, or four times its first look where that is more.
MOST_CHARS = 2**18

#: Texts of which a tokenizer has to read one, so that the special tokens around it are known.
READABLE = ("a", "A", "1", ".", "the", "語", " a")

#: Which part of a long prompt is left out: its beginning, or its middle.
Cut = Literal["left", "middle"]

#: Every tokenizer that splits text into words first ends a word before a single space.
#: What unigram models put before a word.
WORD_MARK = "▁"

#: A code point that will never be a character (Unicode 23.7), so that no vocabulary has it.
NO_CHARACTER = "\U0010ffff"

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
        if isinstance(message, (dict, Mapping)) and message.get("role") == "user":
            text = content_text(message.get("content"))
            if text.strip():
                turns.append(text)
    return as_turns(turns)


def content_text(content: Any) -> str:
    """The text of a message's content: a string, or the text parts of a list; empty for anything else."""
    if isinstance(content, str):
        return content
    if not isinstance(content, (list, Sequence)):
        return ""
    texts = []
    for part in content:
        if isinstance(part, str):
            texts.append(part)
        elif isinstance(part, (dict, Mapping)) and isinstance(part.get("text"), str):
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

    `cut` says what a prompt of more than `max_length` tokens loses. `left`: its beginning; the published form.
    `middle`: what is between its first and its last tokens, half of the room each. `left` is not written out, so that
    manifests from before there was a choice keep their fingerprint.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    form: Literal["chat", "plain"]
    max_length: int
    pad_id: int
    cls_token: str | None = None
    special_tokens: dict[str, str] = {}
    cut: Cut = "left"

    @model_serializer(mode="wrap")
    def _written(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields: dict[str, Any] = handler(self)
        if self.cut == "left":
            del fields["cut"]
        return fields


class Tokens(NamedTuple):
    """Tokens of a prompt.

    Attributes:
        ids: at most the form's `max_length`.
        truncated: whether the prompt had more.
        unknown: share, 0 to 1, of the text's tokens in `ids` that stand for what the tokenizer does not know; bare
            marks of a word's beginning do not count. 1 where nothing of the text is left. Always 0 for byte-level
            tokenizers.
    """

    ids: list[int]
    truncated: bool
    unknown: float


class _Part(NamedTuple):
    """Token ids of the end or the beginning of a text, and how many characters were not read."""

    ids: list[int]
    unread: int


class TextEncoder:
    """Turns → token ids, without transformers. Safe to call from several threads.

    Of a prompt of megabytes only the end is tokenised, and with `cut="middle"` the beginning. The text is cut at a
    space between words, some tokens more than needed are read beyond the cut, and where that gives too few, a longer
    piece is read; so the ids are those of the whole text. The exception is a text without such a space for hundreds of
    characters around the cut, which is made where it falls: one run of the same letters or spaces for all that length
    may then be divided otherwise than in the whole. And longer pieces are read up to a bound only: where tens of
    thousands of characters (with another cut than the middle one, hundreds of thousands) make fewer tokens than there
    is room for, those few are kept.

    Args:
        tokenizer: a `tokenizers` tokenizer; its truncation, padding and special-token settings are replaced.
        form: the text form.
        chat_template: Jinja source, for `form="chat"`.

    Raises:
        BundleError: a chat form without a CLS token or a template in bounds, or a tokenizer whose patterns some texts
            halt.
    """

    def __init__(self, tokenizer: Tokenizer, form: TextForm, chat_template: str | None = None) -> None:
        self.form = form
        self.tokenizer = tokenizer
        self.chat_template = chat_template
        if form.form == "chat" and (chat_template is None or not form.cls_token):
            raise BundleError("the text form 'chat' needs a chat template and a CLS token")
        self._template = ChatTemplate(chat_template or "", form.special_tokens) if form.form == "chat" else None
        tokenizer.no_padding()
        tokenizer.no_truncation()
        tokenizer.encode_special_tokens = form.form == "plain"
        try_patterns(tokenizer)
        self._before, self._after = self._added() if form.form == "plain" else ([], [])
        self._kept = form.max_length - len(self._before) - len(self._after)
        if self._kept < 1:
            raise BundleError(f"max_length is {form.max_length}, which leaves no room for a prompt's tokens")
        self._unknown = _unknown_id(tokenizer)
        self._mark = tokenizer.token_to_id(WORD_MARK)

    def _added(self) -> tuple[list[int], list[int]]:
        """The special tokens that the tokenizer puts before and after a text."""
        for probe in READABLE:
            ids = self.tokenizer.encode(probe).ids
            text = self.tokenizer.encode(probe, add_special_tokens=False).ids
            before = next((i for i in range(len(ids)) if text and ids[i : i + len(text)] == text), None)
            if before is not None:
                return ids[:before], ids[before + len(text) :]
        raise BundleError(f"the tokenizer reads none of {', '.join(map(repr, READABLE))}, so no prompt either")

    @classmethod
    def from_folder(cls, folder: Path, form: TextForm) -> TextEncoder:
        """Reads `tokenizer.json` and, for the chat form, `chat_template.jinja`."""
        template = folder / CHAT_TEMPLATE
        return cls(
            Tokenizer.from_file(str(folder / "tokenizer.json")),
            form,
            template.read_text(encoding="utf-8") if template.exists() else None,
        )

    def text(self, turns: Turns) -> str:
        """Model text of the user turns, before tokenisation.

        Raises:
            PromptError: the chat template refuses the turns.
        """
        if self._template is None:
            return "\n\n".join(turns)
        cls_token = self.form.cls_token or ""
        return self._template.render([turn.replace(cls_token, CLS_REPLACEMENT) for turn in turns]) + cls_token

    def encode(self, prompts: Sequence[Turns]) -> list[list[int]]:
        """Token ids per prompt, unpadded, at most `max_length` of them.

        Raises:
            PromptError: the chat template refuses a prompt's turns.
        """
        return [tokens.ids for tokens in self.tokens(prompts)]

    def tokens(self, prompts: Sequence[Turns]) -> list[Tokens]:
        """As `encode`, and what is known of each prompt's tokens."""
        texts = [self.text(turns) for turns in prompts]
        ends = self._read(texts, self._kept, _end)
        kept = [end.ids[-self._kept :] for end in ends]
        cut = [i for i, end in enumerate(ends) if end.unread or len(end.ids) > self._kept]
        if self.form.cut == "middle":
            head = self._kept // 2
            # an end of too few tokens shares none of its text with the beginning
            rest = [texts[i] if len(kept[i]) == self._kept else texts[i][: ends[i].unread] for i in cut]
            for i, start in zip(cut, self._read(rest, head, _start), strict=True):
                first = start.ids[:head]
                kept[i] = [*first, *kept[i][len(first) - self._kept :]]
        truncated = set(cut)
        return [
            Tokens([*self._before, *ids, *self._after], i in truncated, self._share_unknown(ids))
            for i, ids in enumerate(kept)
        ]

    def _read(self, texts: Sequence[str], count: int, piece: Callable[[str, int], str]) -> list[_Part]:
        """Ids of a piece of each text: more than `count` of them, where the text has so many."""
        size = CHARS_PER_TOKEN * (count + CUT_SLACK)
        pieces = [piece(text, size) for text in texts]
        return [
            self._longer(text, _Part(ids, len(text) - len(part)), count, piece)
            for text, part, ids in zip(texts, pieces, text_ids(self.tokenizer, pieces), strict=True)
        ]

    def _longer(self, text: str, part: _Part, count: int, piece: Callable[[str, int], str]) -> _Part:
        """The part, or that of a piece which is longer while its tokens are too few."""
        first = size = CHARS_PER_TOKEN * (count + CUT_SLACK)
        most = MOST_AGAIN * first if self.form.cut == "middle" else max(4 * first, MOST_CHARS)
        while part.unread and len(part.ids) < count + CUT_SLACK and size < most:
            size = min(4 * size, most)
            longer = piece(text, size)
            (ids,) = text_ids(self.tokenizer, [longer])
            part = _Part(ids, len(text) - len(longer))
        return part

    def _share_unknown(self, ids: list[int]) -> float:
        """A word that is unknown whole is its mark and the unknown token: the mark says nothing of it."""
        if not ids:
            return 1.0
        unknown = 0 if self._unknown is None else ids.count(self._unknown)
        marks = 0 if self._mark is None else ids.count(self._mark)
        return unknown / (len(ids) - marks) if unknown else 0.0


def _end(text: str, size: int) -> str:
    """The last `size` characters, less up to a quarter so that they begin at a space between words; or all."""
    start = len(text) - size
    if start <= 0:
        return text
    found = _WORD_START.search(text, start, start + size // 4)
    return text[found.start() if found else start :]


def _start(text: str, size: int) -> str:
    """The first `size` characters, and up to a quarter more so that they end at a space between words; or all."""
    if len(text) <= size:
        return text
    found = _WORD_START.search(text, size, size + size // 4)
    return text[: found.start() if found else size]


def _unknown_id(tokenizer: Tokenizer) -> int | None:
    """Id of the token for what a tokenizer does not know; None where it has none."""
    if not isinstance(tokenizer.model, Unigram):
        token = tokenizer.model.unk_token
        return None if token is None else tokenizer.token_to_id(token)
    try:  # only the model's text has the number, and writing that takes as long as loading it
        found = tokenizer.model.tokenize(NO_CHARACTER)
    except Exception:  # it has none and can't read this
        return None
    return found[0].id if len(found) == 1 else None  # several are its bytes


def pad(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Right-padded `input_ids` and `attention_mask`, both (N, longest) int64."""
    length = max((len(row) for row in rows), default=0)
    ids = np.full((len(rows), length), pad_id, dtype=np.int64)
    mask = np.zeros((len(rows), length), dtype=np.int64)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
        mask[i, : len(row)] = 1
    return ids, mask
