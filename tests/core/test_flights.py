"""The one path to scores: each prompt once, all of a request or none, and nobody waits past the deadline."""

import asyncio
import dataclasses
import threading
import time

import numpy as np
import pytest

from p2l_plugins import P2L
from p2l_plugins.cache.entry import WIDEST, Bounds, Entry, cache_key
from p2l_plugins.cache.memory import MemoryCache
from p2l_plugins.cache.tiered import TieredCache
from p2l_plugins.scoring.engine import Busy
from p2l_plugins.scoring.flights import Flights, Late, ScoringFailed
from p2l_plugins.scoring.scorer import Scores


class Gate:
    """A scorer whose runs wait until they are let through; a prompt's coefficient is its length."""

    fingerprint, models, family = "f" * 32, ("m",), "bt"
    workers, batch_tokens, max_length, bounds = 1, 1, 2**31, Bounds(100.0, 2.0)
    overall = None

    def __init__(self, allowed=1000):
        self.prompts = []
        self.started = threading.Semaphore(0)
        self.allowed = threading.Semaphore(allowed)

    def index(self, model):
        return self.models.index(model)

    def score_turns(self, prompts):
        self.prompts += prompts
        self.started.release()
        assert self.allowed.acquire(timeout=10)
        if any("bad" in turns for turns in prompts):
            raise ValueError(f"not {prompts}")
        coefs = np.array([[len(turns[0])] for turns in prompts], np.float32)
        return Scores(self.models, coefs, None, self.family, truncated=np.zeros(len(prompts), np.bool_))

    def close(self):
        pass


def flights_of(gate, **options):
    return Flights(gate, TieredCache(MemoryCache()), **options)


def turns(*texts):
    return [(text,) for text in texts]


async def begun(gate):
    assert await asyncio.to_thread(gate.started.acquire, True, 10)


async def test_each_prompt_is_scored_once_and_the_order_is_that_of_the_request():
    gate, counted = Gate(), []
    flights = flights_of(gate, count=lambda what, n: counted.append((what, n)))
    scored = await flights.score(turns("a", "bbb", "a", "cc"))
    assert [one.entry.coefs[0] for one in scored] == [1, 3, 1, 2]
    assert sorted(gate.prompts) == turns("a", "bbb", "cc")
    assert not any(one.cached for one in scored)
    again = await flights.score(turns("cc", "new"))
    assert [one.cached for one in again] == [True, False]
    totals = {what: sum(n for kind, n in counted if kind == what) for what in ("cached", "scored", "joined")}
    assert totals == {"cached": 1, "scored": 4, "joined": 0}
    assert flights.waiting == 0


async def test_two_event_loops_share_one_scoring():
    gate = Gate(0)
    flights = flights_of(gate)
    here = asyncio.create_task(flights.score(turns("same")))
    await begun(gate)
    there = asyncio.create_task(asyncio.to_thread(asyncio.run, flights.score(turns("same"))))
    await asyncio.sleep(0.05)
    gate.allowed.release()
    assert (await here)[0].entry.coefs[0] == (await there)[0].entry.coefs[0] == 4
    assert gate.prompts == turns("same")


async def test_a_request_is_taken_whole_or_not_at_all():
    gate = Gate(0)
    flights = flights_of(gate, max_pending=3)
    first = asyncio.create_task(flights.score(turns("a", "b")))
    await begun(gate)
    with pytest.raises(Busy):
        await flights.score(turns("c", "d"))
    assert flights.waiting == 2
    joining = asyncio.create_task(flights.score(turns("a", "c")))  # one of its prompts flies already
    await asyncio.sleep(0.05)
    gate.allowed.release(10)
    assert [len(await task) for task in (first, joining)] == [2, 2]
    assert sorted(gate.prompts) == turns("a", "b", "c")


async def test_what_nobody_waits_for_is_dropped_unless_the_model_is_at_it():
    gate = Gate(0)
    flights = flights_of(gate)
    first = asyncio.create_task(flights.score(turns("first")))
    await begun(gate)
    leaving = asyncio.create_task(flights.score(turns("first", "waits", "shared")))
    staying = asyncio.create_task(flights.score(turns("shared")))
    await asyncio.sleep(0.05)
    assert flights.waiting == 3
    leaving.cancel()
    first.cancel()
    await asyncio.sleep(0.05)
    assert flights.waiting == 2  # the one that runs, and the one that somebody still waits for
    gate.allowed.release(10)
    assert (await staying)[0].entry.coefs[0] == 6
    assert gate.prompts == turns("first", "shared")
    assert (await flights.score(turns("first")))[0].cached


async def test_at_the_deadline_it_is_late_and_the_run_still_fills_the_cache():
    gate = Gate(0)
    flights = flights_of(gate)
    with pytest.raises(Late):
        await flights.score(turns("late", "never"), time.monotonic() + 0.1)
    gate.allowed.release(10)
    for _ in range(100):
        if flights.waiting == 0:
            break
        await asyncio.sleep(0.02)
    assert (await flights.score(turns("late")))[0].cached
    assert turns("never")[0] not in gate.prompts


async def test_a_failure_is_that_of_its_prompt_names_no_text_and_may_be_tried_again():
    gate = Gate()
    flights = flights_of(gate)
    for _ in range(2):
        with pytest.raises(ScoringFailed, match=r"\(ValueError\)") as failed:
            await flights.score(turns("bad", "good"))
        assert "bad" not in str(failed.value)
        assert isinstance(failed.value.__cause__, ValueError)
    assert gate.prompts.count(("bad",)) == 2
    assert (await flights.score(turns("good")))[0].cached


async def test_closed_it_is_busy():
    flights = flights_of(Gate())
    flights.close()
    with pytest.raises(Busy):
        await flights.score(turns("a"))
    assert flights.waiting == 0


@pytest.mark.parametrize("said", [(), (False,), (None, 0.5), (False, 0.5)])
@pytest.mark.parametrize("whole", [False, True])
async def test_an_entry_that_does_not_say_what_of_the_prompt_was_read_is_half_an_answer(whole, said):
    flights = flights_of(Gate(), whole=whole)
    key = cache_key("f" * 32, ("a",))
    await flights.cache.set_many({key: Entry(np.ones(1, np.float32), None, *said)})
    (scored,) = await flights.score(turns("a"))
    assert (scored.key, scored.cached) == (key, not whole or said == (False, 0.5))


@pytest.mark.parametrize(("share", "expected"), [(None, None), (0.25, 0.25), (1.5, ScoringFailed)])
async def test_the_share_of_unknown_tokens_goes_into_the_entry(share, expected):
    class Sharing(Gate):
        def score_turns(self, prompts):
            unknown = None if share is None else np.full(len(prompts), share, np.float32)
            return dataclasses.replace(super().score_turns(prompts), unknown=unknown)

    flights = flights_of(Sharing())
    if expected is ScoringFailed:
        with pytest.raises(ScoringFailed, match="a share of unknown tokens"):
            await flights.score(turns("a"))
        return
    (scored,) = await flights.score(turns("a"))
    assert scored.entry.unknown == expected


async def test_an_entry_of_another_form_is_scored_anew():
    flights = flights_of(Gate())
    await flights.cache.set_many(
        {
            cache_key("f" * 32, ("a",)): Entry(np.ones(2, np.float32), None),
            cache_key("f" * 32, ("b",)): Entry(np.ones(1, np.float32), 0.5),
        }
    )
    assert [one.cached for one in await flights.score(turns("a", "b"))] == [False, False]


@pytest.mark.parametrize(("coef", "possible"), [(100.0, True), (-100.0, True), (100.1, False), (-3e38, False)])
async def test_an_entry_that_the_head_can_not_have_given_is_scored_anew(coef, possible):
    flights = flights_of(Gate())
    key = cache_key("f" * 32, ("a",))
    await flights.cache.set_many({key: Entry(np.array([coef], np.float32), None)})
    (scored,) = await flights.score(turns("a"))
    assert scored.cached == possible
    assert set(flights.cache.stats.snapshot()["unreadable"]) == (set() if possible else {"bounds"})
    (again,) = await flights.score(turns("a"))
    assert again.cached  # what was scored has taken its place
    assert again.entry.coefs.tolist() == ([coef] if possible else [1.0])


async def test_a_raw_eta_that_the_head_can_not_have_given_is_scored_anew():
    class WithEta(Gate):
        family = "rk"

        def score_turns(self, prompts):
            return dataclasses.replace(super().score_turns(prompts), raw_eta=np.ones(len(prompts), np.float32))

    flights = flights_of(WithEta())
    keys = [cache_key("f" * 32, (text,)) for text in "ab"]
    etas = zip(keys, (2.0, 2.1), strict=True)
    await flights.cache.set_many({key: Entry(np.ones(1, np.float32), eta) for key, eta in etas})
    assert [one.cached for one in await flights.score(turns("a", "b"))] == [True, False]


def test_the_bounds_of_a_bundle_hold_its_own_scores_and_are_of_its_size():
    p2l = P2L.load("starter")
    scores = p2l.score(["Prove that √2 is irrational", "hi", "!" * 3000, "x"])
    assert all(p2l.bounds.hold(entry) for entry in map(Entry, scores.coefs, scores.raw_eta))
    assert p2l.bounds.coefs < 40
    assert p2l.bounds.raw_eta < 40


@pytest.mark.parametrize("gate", [{}, {"largest_coef": "1"}, {"largest_coef": float("inf")}, {"largest_coef": None}])
def test_a_bundle_that_does_not_say_its_reach_has_the_widest_bounds(gate):
    manifest = P2L.load("starter").bundle.manifest
    assert manifest.model_copy(update={"gate": gate}).bounds == WIDEST
