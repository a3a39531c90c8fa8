"""Hints for names of models that nobody knows."""

import pytest

from p2l_plugins.scoring.bundle import Bundle, find_bundle
from p2l_plugins.similar import ADD, hint, similar


@pytest.fixture(scope="module")
def models():
    return Bundle.open(find_bundle("starter")).manifest.models


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("openai/gpt-4o-mini", "gpt-4o-mini-2024-07-18"),
        ("gpt4o", "gpt-4o-2024-05-13"),
        ("gpt-4o-min", "gpt-4o-mini-2024-07-18"),
        ("anthropic/claude-3.5-sonnet", "claude-3-5-sonnet-20240620"),
        ("Qwen-2.5-72B", "qwen2.5-72b-instruct"),
        ("llama3.1-70b", "llama-3.1-70b"),
    ],
)
def test_the_nearest_name_is_first(models, name, first):
    found = similar(name, models)
    assert found[0] == first
    assert len(found) <= 3


@pytest.mark.parametrize(
    "name",
    ["gpt-7", "claude-sonnet-6-5", "gemini-9.5-pro", "llama-7-maverick", "gpt-9", "bert-6.7b", "xyz", "", "???"],
)
def test_another_version_is_no_hint(models, name):
    assert similar(name, models) == []


def test_a_hint_is_short(models):
    assert hint("gpt-7", models, then=ADD) == f"none of the {len(models)} names is near; {ADD}"
    for name in ("gpt-4o", "x" * 100, "llama"):
        assert len(hint(name, models, then=ADD)) < 300
    assert hint("c", ["a", "b"]) == "valid: a, b"
    assert hint("c", []) == "there are none"
