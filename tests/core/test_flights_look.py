"""A look at what is at hand: keys are made once per request, and counters say what one request did."""

import asyncio

from p2l_plugins import P2L
from p2l_plugins.cache.memory import MemoryCache
from p2l_plugins.cache.tiered import TieredCache
from p2l_plugins.scoring import flights as module
from p2l_plugins.scoring.flights import Flights


def test_a_request_that_is_partly_at_hand_makes_each_key_once_and_counts_its_hit_once(monkeypatch):
    made = []
    real = module.cache_key
    monkeypatch.setattr(module, "cache_key", lambda *args: made.append(args[1]) or real(*args))
    counted = []
    flights = Flights(
        P2L.load("starter"), TieredCache(MemoryCache()), count=lambda what, n: counted.append((what, n)), whole=True
    )
    old, new = ("hello",), ("hello, again",)
    asyncio.run(flights.score([old]))
    made.clear()
    counted.clear()
    look = flights.look([old, new])
    assert flights.at_hand(look) is None
    scored = asyncio.run(flights.score([old, new], look=look))
    assert [one.cached for one in scored] == [True, False]
    assert made == [old, new]
    assert ("cached", 1) in counted
    assert ("scored", 1) in counted
    assert flights.cache.stats.snapshot()["hits"] == {"memory": 1}
    assert flights.at_hand(flights.look([new, old, new])) is not None
    flights.close()
