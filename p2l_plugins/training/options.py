"""Augmentation of multiple-choice prompts: the same question with its answer options in another order."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from p2l_plugins.prompts import Turns

#: An answer option: its letter with the marks around it, the letter, its text.
LIST_OPTION = re.compile(r"^(\(?([A-Z])[.):]\)?[ \t]+)(\S.*)$")
#: Options that speak of others would change their meaning in another order.
_REFERS = re.compile(
    r"\b(?:above|below|former|latter|both|neither|all of|none of)\b|\b[A-Z] (?:and|or|&) [A-Z]\b", re.IGNORECASE
)


def shuffle_options(text: str, rng: np.random.Generator) -> str:
    """The text with the contents of its last list of options (A, B, C, …, a line each) in a random order.

    Text without three options at least, or with options that refer to each other, is returned as it is.
    """
    lines = text.split("\n")
    found = [LIST_OPTION.match(line) for line in lines]
    start, run = 0, 0
    for i, match in enumerate(found):
        letter = match.group(2) if match else ""
        if letter == "A":
            start, run = i, 1
        elif letter and i == start + run and letter == chr(ord("A") + run):
            run += 1
    options = [match for match in found[start : start + run] if match]
    if run < 3 or any(_REFERS.search(match.group(3)) for match in options):
        return text
    for i, j in enumerate(rng.permutation(run)):
        lines[start + i] = options[i].group(1) + options[j].group(3)
    return "\n".join(lines)


def shuffled_options(prompts: Sequence[Turns], rng: np.random.Generator) -> list[Turns]:
    """Every prompt with the options of each turn in another order."""
    return [tuple(shuffle_options(turn, rng) for turn in turns) for turns in prompts]
