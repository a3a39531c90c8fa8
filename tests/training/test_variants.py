"""Other forms of a prompt: always valid turns, with question and options still there, in the right language."""

import random
import re
from collections import Counter

import pytest

from p2l_plugins.prompts import as_turns
from p2l_plugins.training.options import LIST_OPTION
from p2l_plugins.training.variants import SLIPS, VARIANTS, language, rotated, script_of, typos, varied

QUESTION = (
    "A cart of 4.5 kg rolls down a hill. It starts at rest, the friction is small. How fast is it after 10 seconds?\n"
    "A. about 3 metres per second\nB. about 30 metres per second\nC. it does not move\nD. faster than light"
)
TEXTS = [
    QUESTION,
    "x",
    "7 + 5 = ?",
    "?!",
    "  \n leading and trailing \n ",
    "Write a Python function:\n```python\ndef f(x):\n    return x, 1\n```\nWhat does it do? Explain it briefly.",
    "Wie hoch ist der Eiffelturm, und wer hat ihn gebaut? Antworte mit einem Satz.",
    "什么是光合作用？请简单说明。植物需要它，动物也需要它。",
    "日本で一番高い山は何ですか。その高さも教えてください。",
    "ภูเขาที่สูงที่สุดในโลกคืออะไร",
    "😀😀😀",
    "{braces} and {0} and %s \\frac{1}{2}",
    "a\u0301b\u0301c\u0301 d\u200de",
    "İstanbul'un nüfusu nedir, straße",
    "word " * 1000,
]


@pytest.mark.parametrize("name", sorted(VARIANTS))
@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_every_form_of_every_text_is_a_prompt_and_repeats_with_its_seed(name, text):
    for seed in range(20):
        form = VARIANTS[name](text, random.Random(seed))
        assert as_turns(form) == (form,)
        assert form == VARIANTS[name](text, random.Random(seed))
        assert len(form) <= 2.5 * len(text) + 400


@pytest.mark.parametrize("name", sorted(VARIANTS))
def test_options_keep_their_letters_and_the_question_its_numbers(name):
    changed = 0
    for seed in range(60):
        form = VARIANTS[name](QUESTION, random.Random(seed))
        found = [match.group(2) for line in form.split("\n") if (match := LIST_OPTION.match(line))]
        assert found == ["A", "B", "C", "D"]
        assert "4.5" in form
        assert Counter(re.findall(r"\d+", QUESTION)) <= Counter(re.findall(r"\d+", form))
        changed += form != QUESTION
    assert changed >= 30


@pytest.mark.parametrize("name", ["greeting", "thanks", "injected", "words", "spacing"])
def test_what_is_put_around_a_text_leaves_it_whole(name):
    for text in TEXTS[:-1]:
        for seed in range(20):
            form = VARIANTS[name](text, random.Random(seed))
            assert "".join(text.split()) in "".join(form.split())


@pytest.mark.parametrize("name", ["greeting", "please", "thanks", "injected", "words"])
def test_what_is_put_around_a_text_is_not_part_of_an_option(name):
    for seed in range(60):
        lines = VARIANTS[name](QUESTION, random.Random(seed)).split("\n")
        assert set(QUESTION.split("\n")[1:]) <= set(lines)


def test_slips_are_as_many_as_told_and_only_inside_longer_words():
    text = "The 1234 big cats and 5678 dogs of Ghent; " * 40
    for seed in range(20):
        form = typos(text, random.Random(seed), 40)
        assert re.findall(r"\d+", form) == re.findall(r"\d+", text)
        wrong = sum(a != b for a, b in zip(text.split(), form.split(), strict=True))
        assert 0.6 * len(text) / 40 <= wrong <= len(text) / 40 + 1
        assert {b for a, b in zip(text.split(), form.split(), strict=True) if a != b}.isdisjoint({"big", "and", "of"})
    assert len({len(set(typos(text, random.Random(seed)))) for seed in range(20)}) > 1
    assert 40 in SLIPS


def test_sentences_are_rotated_around_the_question():
    text = "Ann has two apples. Ben has three. Who has more? Cid has none."
    seen = {rotated(text, random.Random(seed)) for seed in range(30)}
    assert seen == {
        "Ben has three. Cid has none. Who has more? Ann has two apples.",
        "Cid has none. Ann has two apples. Who has more? Ben has three.",
    }


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("If it rains, what do I need?", "What do I need, if it rains?"),
        ("First line.\nIn May, we went home.", "First line.\nWe went home, in May."),
        ("  In May, we went home. ", "  We went home, in May. "),
        ("他走了，我来了。", "我来了，他走了。"),
        ("One clause only.", "One clause only."),
        ("f(x), g(x)", "f(x), g(x)"),
        ("- a, b\n- c, d", "- a, b\n- c, d"),
        ("Run it, then stop.\n```\na, b\n```", "Run it, then stop.\n```\na, b\n```"),
    ],
)
def test_clauses_are_rotated_where_one_sentence_stands_alone(text, form):
    assert rotated(text, random.Random(0)) == form


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("en", "What is the capital of Australia?"),
        ("en", "123 + 456"),
        ("en", ""),
        ("de", "Was ist die Hauptstadt von Österreich und wie alt ist sie?"),
        ("fr", "Quelle est la capitale de la France et que faire dans les musées ?"),
        ("es", "¿Cuál es la capital de España y por qué los turistas van con una guía?"),
        ("ru", "Какая столица России?"),
        ("uk", "Яка столиця України?"),
        ("zh", "法国的首都是哪里？"),
        ("ja", "日本の首都はどこですか。"),
        ("ja", "東京都内の図書館の開館時間は？"),
        ("ko", "한국의 수도는 어디입니까?"),
        ("ar", "ما هي عاصمة مصر؟"),
        ("th", "เมืองหลวงของไทยคืออะไร"),
        ("hi", "भारत की राजधानी क्या है?"),
        ("he", "מהי בירת ישראל?"),
        ("en", "Translate 'Привет' for the people of the town."),
    ],
)
def test_the_language_is_known_by_script_and_short_words(code, text):
    assert language(text) == code


def test_small_talk_is_in_the_prompts_own_language():
    text = "Какая гора самая высокая?"
    for name in ("greeting", "please", "thanks"):
        for seed in range(20):
            assert not re.search(r"[A-Za-z]", VARIANTS[name](text, random.Random(seed)))


def test_varied_turns_differ_in_one_turn_by_one_or_two_forms():
    turns = ("Tell me of Rome, the old city.", " ", QUESTION)
    seen = set()
    for seed in range(200):
        form = varied(turns, random.Random(seed))
        assert as_turns(form) == form
        assert form[1] == " "
        assert sum(a != b for a, b in zip(turns, form, strict=True)) == 1
        assert form == varied(turns, random.Random(seed))
        seen.add(form)
    assert len(seen) > 150
    for text in TEXTS:
        assert as_turns(varied((text,), random.Random(1))) != (text,)


def test_a_form_that_changes_nothing_gives_way_to_another():
    assert all(varied(("x",), random.Random(seed)) != ("x",) for seed in range(100))


@pytest.mark.parametrize("text", ["\U00017000\U00017001", "\U00018b00 abc", "\U0001b170"])
def test_letters_that_python_has_no_name_for_have_no_script(text):
    """Tangut, Khitan and Nüshu: CPython 3.11 names none of them."""
    assert script_of(text[0]) in ("", "TANGUT", "KHITAN", "NUSHU")
    for name in VARIANTS:
        assert VARIANTS[name](text, random.Random(0))
    assert language(text) == "en"
