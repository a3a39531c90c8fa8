"""Other forms of the same prompt, as people write it: with small talk, slips of the keyboard, in another order.

A form asks the same, so it should get the same choice. `VARIANTS` has the forms with training's phrases; `forms` makes
them with others. Text is in, text is out; all chance comes from the `random.Random` that is given.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from random import Random

import numpy as np

from p2l_plugins.prompts import Turns
from p2l_plugins.training.options import LIST_OPTION, shuffle_options
from p2l_plugins.training.phrases import TRAINING, Phrases

Variant = Callable[[str, Random], str]

#: One slip in so many characters, of `typos`.
SLIPS = (25, 40, 60, 100)
#: Words that `appended` puts after a text.
WORDS = 8
#: Characters of a text that its language is guessed from.
LOOKED_AT = 400

_SCRIPTS = {
    "CJK": "zh",
    "HIRAGANA": "ja",
    "KATAKANA": "ja",
    "HANGUL": "ko",
    "CYRILLIC": "ru",
    "ARABIC": "ar",
    "HEBREW": "he",
    "DEVANAGARI": "hi",
    "THAI": "th",
    "GREEK": "el",
}
#: Frequent short words by language, for texts in Latin letters.
_FREQUENT = {
    language: frozenset(words.split())
    for language, words in {
        "en": "the of and is are to in what that for with how",
        "de": "der die das und nicht ist ein eine für mit wie auf den",
        "fr": "le les des est et une pour dans que qui du sur",
        "es": "el los las una para que por con del como es qué",
        "it": "il che di una per non sono della gli con è",
        "pt": "que uma para não com os dos em é um você",
        "nl": "het een niet van voor dat op zijn hoe wat de",
        "sv": "och att det som är för inte på med hur",
        "da": "og at det som er for ikke på med af hvordan",
        "pl": "nie że się na jest do jak z w oraz",
        "cs": "že se na je do jak v s nebo jsem",
        "hu": "hogy nem és az egy van mit is ez",
        "tr": "bir ve bu için ile nasıl mi ne çok",
        "vi": "là và của có không cho được trong những",
        "id": "yang dan di untuk dengan apa ini itu adalah",
    }.items()
}
_LETTERS = re.compile(r"[^\W\d_]+")
_LONG_WORD = re.compile(r"[^\W\d_]{4,}")
_ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
_SENTENCE_END = re.compile(r"((?<=[.!?؟])[ \t]+(?![a-z\s])|(?<=[。！？।])(?=.))")
_CLAUSE_END = re.compile(r"([,;] |[，；])")
_MARKS = re.compile(r"[.!?؟。！？।…]*\s*$")
_LIST_LINE = re.compile(r"\s*(?:[-*•>|#]|\(?\w{1,2}[.):])")
_FORMAL = re.compile(r"[()\[\]{}$\\`=<>]")


def script_of(letter: str) -> str:
    """The script of a letter: the first word of its Unicode name; empty for one without a name."""
    return unicodedata.name(letter, "").partition(" ")[0]


def language(text: str) -> str:
    """The code of a text's language, from its script and for Latin letters from its frequent words; `en` in doubt."""
    letters = [c for c in text[:LOOKED_AT] if c.isalpha()]
    scripts = Counter(_SCRIPTS.get(script_of(c), "") for c in letters if c > "\u024f")
    if scripts["ja"] and 10 * scripts["ja"] >= len(letters):
        return "ja"
    script, count = scripts.most_common(1)[0] if scripts else ("", 0)
    if script and 2 * count >= len(letters):
        return "uk" if script == "ru" and any(c in "іїєІЇЄ" for c in letters) else script
    words = _LETTERS.findall(text[:LOOKED_AT].lower())
    return max(_FREQUENT, key=lambda code: sum(word in _FREQUENT[code] for word in words))


def greeted(text: str, random: Random, phrases: Mapping[str, Sequence[str]]) -> str:
    """The text after a greeting in its language."""
    return _said(text, phrases, random) + random.choice((" ", "\n", "\n\n")) + text


def thanked(text: str, random: Random, phrases: Mapping[str, Sequence[str]]) -> str:
    """The text before thanks in its language."""
    return text + _gap(text, random) + _said(text, phrases, random)


def asked(text: str, random: Random, phrases: Mapping[str, Sequence[str]]) -> str:
    """The text with a please in its language."""
    start = text[:2]
    lower = text if start.isupper() or start == "I " else text[:1].lower() + text[1:]
    end = "\n" if _ends_in_option(text) else ""
    return _said(text, phrases, random).format(text=text + end, lower=lower + end).rstrip("\n")


def _said(text: str, phrases: Mapping[str, Sequence[str]], random: Random) -> str:
    return random.choice(phrases.get(language(text)) or phrases["en"])


def _gap(text: str, random: Random) -> str:
    """What parts a text from words after it, which do not become part of its last answer option."""
    return random.choice(("\n", "\n\n") if _ends_in_option(text) else (" ", "\n", "\n\n"))


def _ends_in_option(text: str) -> bool:
    return LIST_OPTION.match(text.rpartition("\n")[2]) is not None


def typos(text: str, random: Random, every: int | None = None) -> str:
    """The text with a slip in about one of `every` characters: two swapped, one dropped, doubled, or a neighbour key.

    Slips are inside words of four letters or more, so that numbers and the letters of answer options stay. Without
    `every`, it is drawn from `SLIPS`.
    """
    spots = [i for word in _LONG_WORD.finditer(text) for i in range(word.start() + 1, word.end() - 1)]
    wanted = max(1, round(len(text) / (every or random.choice(SLIPS))))
    signs = list(text)
    for i in random.sample(spots, min(wanted, len(spots))):
        _slip(signs, i, random)
    return "".join(signs)


def _slip(signs: list[str], i: int, random: Random) -> None:
    """Puts one slip at place i, of the letter there and the one after it."""
    near = _NEIGHBOURS.get(signs[i])
    kind = random.choice(("swap", "drop", "double", "key") if near else ("swap", "drop", "double"))
    if kind == "swap" and signs[i] != signs[i + 1]:
        signs[i], signs[i + 1] = signs[i + 1], signs[i]
    elif kind == "drop":
        signs[i] = ""
    elif kind == "key" and near:
        signs[i] = random.choice(near)
    else:
        signs[i] *= 2


def _neighbours() -> dict[str, str]:
    """The keys beside each letter of an English keyboard, small and capital."""
    found = {}
    for r, row in enumerate(_ROWS):
        for k, letter in enumerate(row):
            beside = row[max(k - 1, 0) : k] + row[k + 1 : k + 2]
            beside += "".join(_ROWS[other][k : k + 1] for other in (r - 1, r + 1) if 0 <= other < len(_ROWS))
            found[letter], found[letter.upper()] = beside, beside.upper()
    return found


_NEIGHBOURS = _neighbours()


def recased(text: str, random: Random) -> str:
    """The text in small or capital letters, or with a small first letter; the letters of answer options stay."""
    kind = random.choice(("lower", "upper", "first"))
    if kind == "first":
        return text[:1].lower() + text[1:] if not LIST_OPTION.match(text) else text
    lines = []
    for line in text.split("\n"):
        option = LIST_OPTION.match(line)
        head = option.group(1) if option else ""
        rest = line[len(head) :]
        lines.append(head + (rest.lower() if kind == "lower" else rest.upper()))
    return "\n".join(lines)


def respaced(text: str, random: Random) -> str:
    """The text with other white space around it, after its sentences or between its paragraphs."""
    kinds: tuple[Callable[[str], str], ...] = (
        lambda t: t + " ",
        lambda t: t + "\n\n",
        lambda t: "  " + t,
        lambda t: "\n" + t + "\n",
        lambda t: re.sub(r"(?<=[.!?,]) (?=\S)", "  ", t),
        lambda t: re.sub(r"\n\n+", "\n", t),
        lambda t: t.replace("\n", "\n\n"),
        lambda t: t.replace("\n", " \n"),
    )
    return random.choice(kinds)(text)


def repunctuated(text: str, random: Random) -> str:
    """The text with other marks at its end, or none."""
    bare = text.rstrip().rstrip(".!?。！？")
    return (bare if bare.strip() else text) + random.choice(("", "", "?", "??", ".", "...", "!"))


def rotated(text: str, random: Random) -> str:
    """The text with the sentences of its longest line, or else the clauses of one, in a rotated order.

    A sentence that asks keeps its place among the others. Lists, answer options and formulas stay as they are, and so
    does text with too few sentences and clauses.
    """
    lines = text.split("\n")
    free = [i for i, line in enumerate(lines) if line.strip() and not _LIST_LINE.match(line)]
    if not free or "```" in text:
        return text
    at = max(free, key=lambda i: len(lines[i]))
    parts = _SENTENCE_END.split(lines[at])
    movable = [i for i in range(0, len(parts), 2) if not _asks(parts[i])]
    if len(movable) > 1 and parts[-1].rstrip("\"'”’) \t").endswith(tuple(".!?؟。！？।…:")):
        parts = _moved(parts, movable, random)
    else:
        longest = max(range(0, len(parts), 2), key=lambda i: len(parts[i]))
        parts[longest] = _clauses_rotated(parts[longest], random)
    lines[at] = "".join(parts)
    return "\n".join(lines)


def _asks(sentence: str) -> bool:
    return sentence.rstrip("\"'”’) \t").endswith(("?", "？", "؟"))


def _clauses_rotated(sentence: str, random: Random) -> str:
    """A sentence with its clauses rotated; its end stays, and a capital letter begins it."""
    if _FORMAL.search(sentence):
        return sentence
    start = len(sentence) - len(sentence.lstrip())
    end = _MARKS.search(sentence)
    stop = end.start() if end else len(sentence)
    parts = _CLAUSE_END.split(sentence[start:stop])
    if len(parts) < 3:
        return sentence
    first = parts[0]
    if first[:1].isupper() and first[1:2].islower():
        parts[0] = first[:1].lower() + first[1:]
    turned = "".join(_moved(parts, range(0, len(parts), 2), random))
    return sentence[:start] + turned[:1].upper() + turned[1:] + sentence[stop:]


def _moved(parts: Sequence[str], movable: Sequence[int], random: Random) -> list[str]:
    """The parts, those at the places `movable` rotated among these places."""
    by = random.randrange(1, len(movable))
    turned = list(parts)
    for place, source in zip(movable, [*movable[by:], *movable[:by]], strict=True):
        turned[place] = parts[source]
    return turned


def reordered(text: str, random: Random) -> str:
    """The text with the contents of its answer options in another order; see `options.shuffle_options`."""
    return shuffle_options(text, np.random.default_rng(random.getrandbits(64)))


def injected(text: str, random: Random, tags: Sequence[str], lines: Sequence[str]) -> str:
    """The text before or after a block of context as programs put it into prompts."""
    tag = random.choice(tags)
    body = "\n".join(random.sample(lines, random.randint(1, min(4, len(lines)))))
    title = tag.replace("_", " ").replace("-", " ").capitalize()
    block = random.choice((f"<{tag}>\n{body}\n</{tag}>", f"<{tag}>{body}</{tag}>", f"## {title}\n{body}", f"[{body}]"))
    return random.choice((f"{block}\n\n{text}", f"{block}\n{text}", f"{text}\n\n{block}"))


def appended(text: str, random: Random, words: Sequence[str]) -> str:
    """The text before a string of ordinary words."""
    return text + _gap(text, random) + " ".join(random.choices(words, k=WORDS))


def forms(phrases: Phrases) -> dict[str, Variant]:
    """The forms by name, with some phrases."""
    return {
        "greeting": partial(greeted, phrases=phrases.greetings),
        "please": partial(asked, phrases=phrases.please),
        "thanks": partial(thanked, phrases=phrases.thanks),
        "typos": typos,
        "case": recased,
        "spacing": respaced,
        "marks": repunctuated,
        "clauses": rotated,
        "options": reordered,
        "injected": partial(injected, tags=phrases.tags, lines=phrases.lines),
        "words": partial(appended, words=phrases.words),
    }


VARIANTS = forms(TRAINING)


def varied(turns: Turns, random: Random) -> Turns:
    """The turns with one of them in another form, or in two forms at once, drawn from `VARIANTS`.

    A form that leaves the text as it is (options where there are none) is replaced by another one.
    """
    texts = list(turns)
    at = random.choice([i for i, text in enumerate(texts) if text.strip()])
    left = random.randint(1, 2)
    for name in random.sample(sorted(VARIANTS), len(VARIANTS)):
        form = VARIANTS[name](texts[at], random)
        if form != texts[at]:
            texts[at] = form
            left -= 1
        if not left:
            break
    return tuple(texts)
