"""Keys: two prompts, or two bundles, never share one."""

import itertools
import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2l_plugins.cache.entry import cache_key
from p2l_plugins.prompts import canonical_bytes

TURNS = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=12), min_size=1, max_size=5).map(tuple)


def turns_of(data: bytes) -> tuple[str, ...]:
    """Reads canonical bytes back: what can be read back can't be shared by two prompts."""
    count, at, turns = int.from_bytes(data[:8], "little"), 8, []
    for _ in range(count):
        length = int.from_bytes(data[at : at + 8], "little")
        turns.append(data[at + 8 : at + 8 + length].decode())
        at += 8 + length
    assert at == len(data)
    return tuple(turns)


@given(TURNS)
def test_canonical_bytes_hold_the_turns_and_nothing_else(turns):
    assert turns_of(canonical_bytes(turns)) == turns


@given(TURNS, TURNS)
def test_different_turns_have_different_keys(a, b):
    assert (cache_key("f", a) == cache_key("f", b)) == (a == b)


def near(i: int) -> tuple[tuple[str, ...], ...]:
    """Prompts that differ by one boundary, space, sign or form of a letter, all unlike those of another i."""
    n = str(i)
    return (
        (n,),
        (n, ""),
        ("", n),
        (n, "", ""),
        (n + " ",),
        (" " + n,),
        (n + "\n",),
        (n + "\0",),
        (n, "\0"),
        ("é" + n,),
        (unicodedata.normalize("NFD", "é") + n,),
        ("a" + n, "bc"),
        ("a" + n + "b", "c"),
        ("a" + n + "bc",),
        ("a", n + "bc"),
        ("a:" + n,),
    )


def test_of_a_million_near_identical_prompts_and_bundles_no_two_share_a_key():
    fingerprints = ["0" * 32, "0" * 31 + "1"]
    keys = bytearray()
    for i in range(32_768):
        for turns, fingerprint in itertools.product(near(i), fingerprints):
            key = cache_key(fingerprint, turns)  # p2l:1: fingerprint : digest
            keys += bytes.fromhex(key[-32:] + key[-35:-33])
    rows = np.frombuffer(bytes(keys), np.uint8).reshape(-1, 17)
    assert len(rows) == 2**20  # each is compared with each: 5e11 pairs
    halves = np.ascontiguousarray(rows[:, :16]).view(np.uint64)
    order = np.lexsort((rows[:, 16], halves[:, 1], halves[:, 0]))
    ordered = rows[order]
    assert not (ordered[1:] == ordered[:-1]).all(axis=1).any()
    # the hash alone tells prompts apart: each digest stands once per bundle
    assert len(np.unique(halves[:, 0])) == len(rows) // 2


def test_a_secret_changes_every_key_and_is_as_long_as_the_hash_allows():
    assert cache_key("f", ("a",), secret=b"1") != cache_key("f", ("a",), secret=b"2") != cache_key("f", ("a",))
    with pytest.raises(ValueError, match="64"):
        cache_key("f", ("a",), secret=b"s" * 65)
