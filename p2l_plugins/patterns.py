"""A tokenizer that may be hostile: its panics become errors, and its patterns are tried before prompts are read."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tokenizers import Tokenizer

from p2l_plugins.errors import BundleError, PromptError

#: What is repeated in the texts that patterns are tried on, beside what stands in the patterns.
SIGNS = ("a", "A", "1", " ", "\n", "!", "é", "語")

#: Repetitions. Ways whose number doubles with each show at the first, those whose number is a square at the last.
LENGTHS = (64, 4096, 16_384, 65_536)

#: Processor seconds that each text may take: an ordinary tokenizer takes a tenth of it for the longest.
MOST_S = 0.5

#: Words and signs of patterns that are tried.
MOST_PIECES = 48


@contextmanager
def no_panic() -> Iterator[None]:
    """Makes a PromptError of a panic inside, which is of Rust and no Exception."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise PromptError("the tokenizer can't read the prompt") from None


def text_ids(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of texts, without special tokens.

    Raises:
        PromptError: the tokenizer gave up on one.
    """
    with no_panic():
        return [one.ids for one in tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]


def try_patterns(tokenizer: Tokenizer) -> None:
    """Reads texts that make a pattern try many ways: repetitions of a sign or a word, and an end that does not match.

    The end also holds the patterns' own words: a pattern is not begun with in a text that lacks what it needs.

    Raises:
        BundleError: one takes more than `MOST_S`, or the tokenizer gives up on it.
    """
    parts = (tokenizer.normalizer, tokenizer.pre_tokenizer)  # the model has no patterns, and is large
    patterns = [pattern for part in parts if part is not None for pattern in _patterns(json.loads(part.__getstate__()))]
    if not patterns:
        return
    needed = "!" + " ".join([*patterns, *(pattern.replace("\\", "") for pattern in patterns)])
    pieces = dict.fromkeys(piece for pattern in patterns for piece in re.findall(r"[^\W_]+|[^\w\s]", pattern))
    for length in LENGTHS:
        for sign in dict.fromkeys([*SIGNS, *list(pieces)[:MOST_PIECES]]):
            text = sign * (length // len(sign))
            for end in ("", "b", needed) if length == LENGTHS[0] else (needed,):
                if _takes_long(tokenizer, text + end):
                    raise BundleError(
                        f"the tokenizer can't read {length // len(sign)} times {sign!r} in {MOST_S} s: a pattern in "
                        "tokenizer.json tries too many ways; take one without repetitions inside repetitions"
                    )


def _patterns(settings: Any) -> Iterator[str]:
    """The regular expressions of a tokenizer's settings, wherever they stand."""
    inside = settings.values() if isinstance(settings, dict) else settings if isinstance(settings, list) else ()
    for value in inside:
        yield from _patterns(value)
    if isinstance(settings, dict) and isinstance(settings.get("Regex"), str):
        yield settings["Regex"]


def _takes_long(tokenizer: Tokenizer, text: str) -> bool:
    """Whether a text takes too long twice: the first time may pay for what is done once."""
    for _ in range(2):
        started = time.thread_time()  # of this thread, in which `encode` works: a busy machine is no bad pattern
        try:
            with no_panic():
                tokenizer.encode(text, add_special_tokens=False)
        except PromptError:
            return True
        if time.thread_time() - started <= MOST_S:
            return False
    return True
