"""A prompt as other users write it: the same question with a greeting, a typo, other case, other order.

The training holds the scores of both forms together (`consistency`): what a user wants does not change with them.
"""

from __future__ import annotations

import random
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from p2l_plugins.prompts import Turns
from p2l_plugins.training.options import shuffle_options

Draw = random.Random

#: By the first word of the Unicode name of a prompt's first letter; others are greeted in English.
GREETINGS: Mapping[str, Sequence[str]] = {
    "": ("Hi!", "Hello there,", "Hey,", "Good morning!", "Dear assistant,", "Hi, I hope you are well."),
    "CYRILLIC": ("Привет!", "Здравствуйте,", "Добрый день!"),
    "CJK": ("你好！", "您好，"),
    "HIRAGANA": ("こんにちは。", "お世話になります。"),
    "KATAKANA": ("こんにちは。",),
    "HANGUL": ("안녕하세요!",),
    "ARABIC": ("مرحبا،", "السلام عليكم،"),
    "DEVANAGARI": ("नमस्ते,",),
}
PLEASE: Mapping[str, Sequence[str]] = {
    "": ("Please help me with this:", "Could you please answer the following?", "please", "I need your help, please."),
    "CYRILLIC": ("Пожалуйста, помоги:", "Ответь, пожалуйста:"),
    "CJK": ("请帮我：", "麻烦回答："),
    "HIRAGANA": ("教えてください。", "お願いします。"),
    "KATAKANA": ("お願いします。",),
    "HANGUL": ("부탁드립니다.",),
    "ARABIC": ("من فضلك:",),
    "DEVANAGARI": ("कृपया बताइए:",),
}
THANKS: Mapping[str, Sequence[str]] = {
    "": ("Thanks!", "Thank you so much in advance.", "thx", "Many thanks for your help.", "Cheers!"),
    "CYRILLIC": ("Спасибо!", "Заранее благодарю."),
    "CJK": ("谢谢！", "非常感谢。"),
    "HIRAGANA": ("ありがとうございます。", "よろしくお願いします。"),
    "KATAKANA": ("よろしくお願いします。",),
    "HANGUL": ("감사합니다!",),
    "ARABIC": ("شكرا!",),
    "DEVANAGARI": ("धन्यवाद!",),
}
#: Ordinary words, none of them about a subject.
WORDS = tuple(
    "about after again also another because before between both each even first found great house just know large last "
    "left light like line little long made many might more most much name never number often only order other over "
    "part people place point right same school seem should show small sound still such take tell than that their them "
    "then there thing think those thought three through time together under until upon very water well went were what "
    "where which while white will with without word work world would write year young river garden window letter music "
    "morning color market friend simple quick story answer level engine planet winter summer bread silver table".split()
)
CONTEXTS = (
    "<context>\nToday is {word}. The user works at the {word} office and prefers short answers.\n</context>",
    "<system-reminder>\nKeep the {word} file open. Do not mention the {word} list.\n</system-reminder>",
    "[Workspace]\nbranch: main\nopen file: src/{word}_{word}.py\n[/Workspace]",
    "You are connected to the {word} assistant. Follow the rules of the {word} team.",
)
_NEAR = dict(zip("qwertyuiopasdfghjklzxcvbnm", "wqrewytuoisadfdgfhkjxzcvnb", strict=True))
_CLAUSE = re.compile(r"(?<=[.!?;。！？])\s+")


def varied(turns: Turns, draw: Draw) -> Turns:
    """The turns with the last one in another form; sometimes in two other forms at once."""
    text = turns[-1]
    for make in draw.sample(list(VARIANTS.values()), 2 if draw.random() < 0.25 else 1):
        text = make(text, draw)
    return (*turns[:-1], text)


def script(text: str) -> str:
    """Key of the phrases for a text: that of its script, or an empty one."""
    for sign in text:
        if sign.isalpha():
            name = unicodedata.name(sign, "").partition(" ")[0]
            if name == "CJK" and re.search("[\u3040-\u30ff]", text):
                name = "HIRAGANA"
            return name if name in GREETINGS else ""
    return ""


def _phrase(phrases: Mapping[str, Sequence[str]], text: str, draw: Draw) -> str:
    return draw.choice(phrases[script(text)])


def _greeted(text: str, draw: Draw) -> str:
    return _phrase(GREETINGS, text, draw) + draw.choice((" ", "\n", "\n\n")) + text


def _please(text: str, draw: Draw) -> str:
    phrase = _phrase(PLEASE, text, draw)
    return f"{phrase} {text}" if draw.random() < 0.5 else f"{text} {phrase}"


def _thanks(text: str, draw: Draw) -> str:
    return text + draw.choice((" ", "\n", "\n\n")) + _phrase(THANKS, text, draw)


def typos(text: str, draw: Draw, every: int = 40) -> str:
    """The text with a slip of the fingers in one of so many characters: swapped, left out, doubled or a neighbour."""
    signs = list(text)
    for i in range(len(signs) - 1):
        if not signs[i].isalpha() or draw.random() * every >= 1:
            continue
        kind = draw.randrange(4)
        if kind == 0 and signs[i + 1].isalpha():
            signs[i], signs[i + 1] = signs[i + 1], signs[i]
        elif kind == 1:
            signs[i] = ""
        elif kind == 2:
            signs[i] += signs[i]
        else:
            signs[i] = _NEAR.get(signs[i].lower(), signs[i])
    return "".join(signs)


def _typos(text: str, draw: Draw) -> str:
    return typos(text, draw, draw.choice((25, 40, 80)))


def _case(text: str, draw: Draw) -> str:
    return draw.choice((str.lower, str.upper, str.capitalize))(text)


def _spacing(text: str, draw: Draw) -> str:
    return re.sub(r"[ \t]", lambda _: draw.choice((" ", " ", "  ", "\n")), text) + draw.choice(("", " ", "\n"))


def rotated(text: str, draw: Draw) -> str:
    """The text with its sentences rotated."""
    clauses = _CLAUSE.split(text)
    if len(clauses) < 2:
        return text
    k = draw.randrange(1, len(clauses))
    return " ".join(clauses[k:] + clauses[:k])


def _options(text: str, draw: Draw) -> str:
    return shuffle_options(text, np.random.default_rng(draw.getrandbits(32)))


def _context(text: str, draw: Draw) -> str:
    block = re.sub(r"\{word\}", lambda _: draw.choice(WORDS), draw.choice(CONTEXTS))
    return f"{block}\n\n{text}" if draw.random() < 0.7 else f"{text}\n\n{block}"


def _suffix(text: str, draw: Draw) -> str:
    return text + " " + " ".join(draw.choices(WORDS, k=draw.randint(3, 10)))


#: Name → a text in another form.
VARIANTS: Mapping[str, Callable[[str, Draw], str]] = {
    "greeting": _greeted,
    "please": _please,
    "thanks": _thanks,
    "typos": _typos,
    "case": _case,
    "spacing": _spacing,
    "clauses": rotated,
    "options": _options,
    "context": _context,
    "suffix": _suffix,
}
