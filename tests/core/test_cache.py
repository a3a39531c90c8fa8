"""Keys and the in-process cache."""

import numpy as np

from p2l_plugins.cache.entry import Entry, cache_key
from p2l_plugins.cache.memory import MemoryCache


def entry(x: float) -> Entry:
    return Entry(np.array([x], np.float32), None)


def test_keys_have_the_contracts_form_and_hide_the_text():
    key = cache_key("f" * 32, ("my secret prompt",))
    namespace, schema, fingerprint, digest = key.split(":")
    assert (namespace, schema, fingerprint) == ("p2l", "1", "f" * 32)
    assert len(digest) == 32
    assert "secret" not in key


def test_keys_differ_by_turns_fingerprint_and_secret():
    keys = {
        cache_key("a", ("ab", "c")),
        cache_key("a", ("a", "bc")),
        cache_key("b", ("ab", "c")),
        cache_key("a", ("ab", "c"), secret=b"s"),
        cache_key("a", ("ab", "c"), namespace="q"),
    }
    assert len(keys) == 5


def test_the_least_recently_used_goes_first():
    cache = MemoryCache(max_entries=2)
    cache.set_many({"a": entry(1), "b": entry(2)})
    cache.get_many(["a"])
    cache.set_many({"c": entry(3)})
    found = cache.get_many(["a", "b", "c"])
    assert [x is not None for x in found] == [True, False, True]
    assert len(cache) == 2


def test_entries_expire_by_the_clock():
    now = [0.0]
    cache = MemoryCache(ttl_s=10, clock=lambda: now[0])
    cache.set_many({"a": entry(1)})
    now[0] = 9.9
    assert cache.get_many(["a"])[0] is not None
    now[0] = 10.0
    assert cache.get_many(["a"]) == [None]
    assert len(cache) == 0
