"""Names of models that are like one that nobody knows, for messages.

A hint that is wrong is worse than none: gpt-3.5-turbo is no hint for gpt-5, and gpt-4o-2024-08-06 is one for gpt-4o.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence

#: Names that are hints, at most; lists of at most so many names and characters stand in a message whole.
MOST, FEW, SHORT = 3, 12, 200

#: Names of a list that a message cuts.
SOME = 8

#: Least likeness, 0 to 1, of difflib: of names, and of one word that both have. OPT is no hint for GPT.
LEAST, LEAST_WORD = 0.6, 0.75

_DATE = re.compile(r"(?<!\d)20\d\d-?\d\d-?\d\d(?!\d)|(?<!\d)\d{4,8}(?!\d)|v\d+:\d+$")
_SIZE = re.compile(r"(?<![a-z\d])(\d+x)?\d+(\.\d+)?[bm](?![a-z\d])")
_WORD = re.compile(r"[a-z]{2,}")
_PART = re.compile(r"[a-z]+|\d+(?:\.\d+)*")


def similar(name: str, known: Iterable[str], most: int = MOST) -> list[str]:
    """The known names nearest to one, the nearest first; none of another version.

    Providers before the last `/`, dates and the order of the parts don't count.
    """
    text, version = _read(name)
    found = []
    for one in known:
        other, its = _read(one)
        if version and its and version != its:
            continue
        likeness = _likeness(text, other)
        if likeness >= LEAST and _share_a_word(text, other):
            found.append((-likeness, one))
    return [one for _, one in sorted(found)[:most]]


#: What to do about a model that a bundle does not know.
ADD = "p2l add-model adds a model, and p2l adopt makes a bundle of your own"


def hint(name: str, known: Sequence[str], list_as: str = "valid:", then: str = "") -> str:
    """What a message says of known names: all of them where they are few, else the nearest, or that none is near.

    Args:
        list_as: words before a whole list.
        then: what to do next, where the name is none of many.
    """
    listed = ", ".join(known)
    if len(known) <= FEW and len(listed) <= SHORT:
        return f"{list_as} {listed}" if known else "there are none"
    near = similar(name, known)
    said = f"nearest of {len(known)}: {', '.join(near)}" if near else f"none of the {len(known)} names is near"
    return f"{said}; {then}" if then else said


def some(names: Sequence[str]) -> str:
    """The first names of a list, and how many more there are."""
    rest = len(names) - SOME
    return ", ".join(names[:SOME]) + (f" and {rest} more" if rest > 0 else "")


def alias_hint(strangers: Iterable[str], known: Sequence[str]) -> str:
    """What a command with `--alias OTHER=MODEL` says of names that it does not know: those that are like known ones."""
    pairs = [f"--alias {name!r}={near[0]!r}" for name in strangers if (near := similar(name, known, 1))]
    return f"if they are the same: {' '.join(pairs[:MOST])}" if pairs else "say which is which with --alias OTHER=MODEL"


def _share_a_word(text: str, other: str) -> bool:
    words, others = (_WORD.findall(one) for one in (text, other))
    return not (words and others) or any(_likeness(a, b) >= LEAST_WORD for a in words for b in others)


def _likeness(text: str, other: str) -> float:
    return difflib.SequenceMatcher(None, text, other, autojunk=False).ratio()


def _read(name: str) -> tuple[str, str]:
    """The parts of a name in order of the alphabet, and its version: its numbers but sizes and dates."""
    text = _DATE.sub("", name.lower().rpartition("/")[2])
    size = _SIZE.search(text)
    parts = _PART.findall(_SIZE.sub("", text))
    numbers = [part for part in parts if part[0].isdigit()]
    words = sorted(part for part in parts if not part[0].isdigit())
    return " ".join([*words, *numbers, *([size[0]] if size else [])]), ".".join(numbers)
