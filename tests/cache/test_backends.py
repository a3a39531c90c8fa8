"""What every cache does: one suite over memory, Redis, a cluster, and memory before Redis."""

import asyncio

import numpy as np
import pytest


async def test_an_entry_comes_back_as_it_was(any_cache, key, entry):
    written = {key("a"): entry(1.5, 130), key("b"): entry(-2.0, 130, raw_eta=0.75)}
    await any_cache.set_many(written)
    found = await any_cache.get_many([key("b"), key("c"), key("a")])
    assert found[1] is None
    for name, one in (("b", found[0]), ("a", found[2])):
        np.testing.assert_array_equal(one.coefs, written[key(name)].coefs)
        assert one.coefs.dtype == np.float32
        assert one.raw_eta == written[key(name)].raw_eta


async def test_the_order_and_the_number_are_those_of_the_keys(any_cache, key, entry):
    keys = [key(str(i)) for i in range(200)]
    await any_cache.set_many({k: entry(float(i)) for i, k in enumerate(keys)})
    asked = [*reversed(keys), keys[7], keys[7]]
    assert [one.coefs[0] for one in await any_cache.get_many(asked)] == [*range(199, -1, -1), 7, 7]
    assert await any_cache.get_many([]) == []


async def test_a_later_entry_takes_the_place_of_an_earlier_one(any_cache, key, entry):
    await any_cache.set_many({key("a"): entry(1.0)})
    await any_cache.set_many({key("a"): entry(2.0)})
    assert (await any_cache.get_many([key("a")]))[0].coefs[0] == 2.0


async def test_another_number_of_models_than_asked_for_is_a_miss(any_cache, key, entry):
    await any_cache.set_many({key("a"): entry(models=3)})
    assert (await any_cache.get_many([key("a")], models=3))[0] is not None
    assert await any_cache.get_many([key("a")], models=4) == [None]


async def test_other_bundles_secrets_and_namespaces_see_nothing(any_cache, key, entry):
    await any_cache.set_many({key("a"): entry()})
    others = [key("a", fingerprint="0" * 32), key("a", secret=b"s"), key("a", namespace="q"), key("A")]
    assert await any_cache.get_many(others) == [None] * 4


async def test_hits_and_misses_are_counted(any_cache, key, entry):
    await any_cache.set_many({key("a"): entry()})
    await any_cache.get_many([key("a"), key("b")])
    counts = any_cache.snapshot()
    assert sum(counts["hits"].values()) == 1
    assert counts["misses"] == 1
    assert counts["errors"] == {}


async def test_many_callers_at_once_each_get_their_own(any_cache, key, entry):
    keys = [key(str(i)) for i in range(50)]
    await any_cache.set_many({k: entry(float(i)) for i, k in enumerate(keys)})
    found = await asyncio.gather(*(any_cache.get_many([keys[i % 50], key("none")]) for i in range(500)))
    assert [one.coefs[0] for one, _ in found] == [i % 50 for i in range(500)]
    assert {none for _, none in found} == {None}


async def test_a_caller_that_leaves_takes_nothing_from_the_others(any_cache, key, entry):
    await any_cache.set_many({key("a"): entry(3.0)})
    callers = [asyncio.create_task(any_cache.get_many([key("a")])) for _ in range(100)]
    await asyncio.sleep(0)
    for caller in callers[::2]:
        caller.cancel()
    for caller in callers[1::2]:
        assert (await caller)[0].coefs[0] == 3.0
    left = await asyncio.gather(*callers[::2], return_exceptions=True)
    assert all(isinstance(one, asyncio.CancelledError) or one[0].coefs[0] == 3.0 for one in left)
    assert (await any_cache.get_many([key("a")]))[0].coefs[0] == 3.0


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
async def test_scores_that_are_no_numbers_are_not_shared(redis_cache, valkey, key, entry, bad):
    cache = redis_cache(valkey.url)
    bad_coefs = entry()._replace(coefs=np.array([1.0, bad], np.float32))
    await cache.set_many({key("bad"): bad_coefs, key("eta"): entry(raw_eta=bad), key("good"): entry()})
    found = await cache.get_many([key("bad"), key("eta"), key("good")])
    assert [one is None for one in found] == [True, True, False]
    assert cache.stats["lost"] == 2
