import asyncio
import threading
import time

import numpy as np
import pytest

from litellm_router import P2LSettings
from litellm_router.decision import Values
from litellm_router.reasons import NotRoutedError
from litellm_router.scoring import Scoring, load_scorer
from p2l_plugins import BundleError
from p2l_plugins.routing import policies
from p2l_plugins.scoring.scorer import Scores

MATH = ("math",)


def scoring_of(scorer, **options):
    return Scoring(P2LSettings(timeout_ms=50), lambda _: scorer, **options)


def soon(seconds=5.0):
    return time.monotonic() + seconds


async def score(scoring, turns, deadline):
    return await scoring.of_prompt(await scoring.loaded(soon()), turns, deadline)


async def reason_of(awaitable):
    with pytest.raises(NotRoutedError) as caught:
        await awaitable
    return caught.value.reason


async def test_scores_are_those_of_the_bundle_and_hit_the_cache_the_second_time(tiny, tiny_bundle):
    scoring = Scoring(P2LSettings(bundle=str(tiny_bundle)), load_scorer)
    first = await score(scoring, MATH, soon())
    again = await score(scoring, MATH, soon())
    assert (first.cached, again.cached) == (False, True)
    for scored in (first, again):
        np.testing.assert_array_equal(scored.entry.coefs, tiny.score_turns([MATH]).coefs[0])


async def test_the_opponents_of_a_win_rate_are_the_groups_own_models(tiny):
    scoring = scoring_of(tiny)
    scored = await score(scoring, MATH, soon())
    for _ in range(2):
        value = Values().of(tiny, scored, [2, 0], "win_rate")
        np.testing.assert_allclose(value, policies.values("win_rate", "grk", [0.0, 2.0], 0.0))
        usable = Values().of(tiny, scored, [2, 0], "usable")
        np.testing.assert_allclose(usable, 1 / (1 + np.exp([-0.0, -2.0])))


async def test_a_hundred_identical_prompts_are_scored_once_and_off_the_event_loop(slow):
    scorer = slow(0.1)
    scoring = scoring_of(scorer)
    scored = await asyncio.gather(*(score(scoring, MATH, soon()) for _ in range(100)))
    assert scorer.prompts == [MATH]
    assert {tuple(s.entry.coefs) for s in scored} == {(2.0, 1.0, 0.0)}
    assert threading.get_ident() not in scorer.threads


@pytest.mark.alone
async def test_at_the_deadline_the_request_gives_up_and_the_late_scores_serve_the_next_one(slow):
    scorer = slow(0.4)
    scoring = scoring_of(scorer)
    started = time.monotonic()
    assert await reason_of(score(scoring, MATH, soon(0.05))) == "deadline"
    assert time.monotonic() - started < 0.3
    assert scorer.done.wait(5)
    assert (await score(scoring, MATH, soon())).entry.coefs[0] == 2.0
    assert scorer.prompts == [MATH]


async def test_a_client_that_leaves_does_not_stop_the_scoring_for_others(slow):
    scorer = slow(0.2)
    scoring = scoring_of(scorer)
    leaving = asyncio.create_task(score(scoring, MATH, soon()))
    staying = asyncio.create_task(score(scoring, MATH, soon()))
    await asyncio.sleep(0.05)
    leaving.cancel()
    assert (await staying).entry.coefs[0] == 2.0
    assert scorer.prompts == [MATH]


@pytest.mark.alone
async def test_past_the_bound_of_waiting_prompts_a_request_is_refused_at_once(slow):
    scorer = slow(0.3)
    scoring = scoring_of(scorer, max_pending=2)
    waiting = [asyncio.create_task(score(scoring, (word,), soon())) for word in ("math", "code")]
    await asyncio.sleep(0.05)
    started = time.monotonic()
    assert await reason_of(score(scoring, ("chat",), soon())) == "busy"
    assert time.monotonic() - started < 0.1
    assert len(await asyncio.gather(*waiting)) == 2
    await score(scoring, ("chat",), soon())  # there is room again


@pytest.mark.parametrize(
    "scores",
    [
        Scores(("alpha", "beta", "gamma"), np.full((1, 3), np.nan, np.float32), np.zeros(1, np.float32), "grk"),
        Scores(("alpha", "beta", "gamma"), np.zeros((1, 3), np.float32), np.full(1, np.inf, np.float32), "grk"),
        Scores(("alpha", "beta", "gamma"), np.zeros((1, 2), np.float32), np.zeros(1, np.float32), "grk"),
        Scores(("alpha", "beta", "gamma"), np.zeros((1, 3), np.float32), None, "grk"),
        ValueError("math"),
    ],
)
async def test_scores_that_make_no_sense_are_refused_and_not_kept(slow, scores):
    scorer = slow(0)
    good = scorer.score_turns

    def bad(prompts):
        if isinstance(scores, Exception):
            raise scores
        return scores

    scorer.score_turns = bad
    scoring = scoring_of(scorer)
    with pytest.raises(NotRoutedError) as caught:
        await score(scoring, MATH, soon())
    assert caught.value.reason == "scorer"
    assert "math" not in caught.value.detail
    scorer.score_turns = good
    assert not (await score(scoring, MATH, soon())).cached


async def test_a_bundle_that_does_not_load_is_said_with_its_name_and_tried_again_later(monkeypatch, tiny):
    calls = []

    def load(settings):
        calls.append(settings.bundle)
        if len(calls) == 1:
            raise BundleError("there is no such folder")
        return tiny

    scoring = Scoring(P2LSettings(bundle="nowhere"), load)
    for _ in range(2):
        with pytest.raises(NotRoutedError) as caught:
            await scoring.loaded(soon())
        assert caught.value.reason == "bundle"
        assert "'nowhere': there is no such folder" in caught.value.detail
    assert len(calls) == 1
    monkeypatch.setattr("litellm_router.scoring.RELOAD_AFTER_S", 0.0)
    assert (await scoring.loaded(soon())).scorer is tiny


@pytest.mark.alone
async def test_a_bundle_that_loads_slowly_holds_a_request_up_to_its_deadline_only(tiny):
    def load(_):
        time.sleep(0.3)
        return tiny

    scoring = Scoring(P2LSettings(), load)
    started = time.monotonic()
    assert await reason_of(scoring.loaded(soon(0.05))) == "loading"
    assert time.monotonic() - started < 0.25
    assert (await scoring.loaded(soon())).scorer is tiny


async def test_the_engine_counts_no_more_tokens_of_a_prompt_than_the_bundle_reads(tiny, tiny_bundle):
    scoring = Scoring(P2LSettings(bundle=str(tiny_bundle)), load_scorer)
    loaded = await scoring.loaded(soon())
    await score(scoring, MATH, soon())
    assert loaded.scorer.max_length == tiny.bundle.manifest.text.max_length == 64
    assert loaded.flights._engine._scorer is loaded.scorer
