"""Another bundle in the place of the one that the router uses: every request is routed, by one bundle or the other."""

import asyncio
import collections
import gc
import logging
import time
import weakref

import litellm
import pytest
from helpers.word_bundle import point, write_choice

from litellm_router import P2LRouter, P2LSettings
from litellm_router.scoring import Scoring, load_scorer
from p2l_plugins.scoring.bundle import Bundle

#: coefficients of "math" of alpha, beta and gamma, and who answers it
MATH = {"one": (2.0, 1.0, 0.0), "other": (0.0, 1.0, 2.0)}
BEST = {"one": "answer of x", "other": "answer of z"}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr("litellm_router.scoring.LOOK_S", 0.1)
    monkeypatch.setattr("litellm_router.scoring.RETIRE_S", 0.0)


@pytest.fixture
def bundles(tmp_path):
    """Two bundles, a third that is damaged, and the link that is used."""
    return write_choice(tmp_path, MATH)


async def until(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come"
        await asyncio.sleep(0.02)


async def test_under_load_a_bundle_is_swapped_refused_and_rolled_back_with_every_request_routed(
    bundles, group, monkeypatch, caplog
):
    caplog.set_level(logging.INFO, "litellm_router")
    callback = P2LRouter(P2LSettings(bundle=str(bundles / "link"), timeout_ms=5000))
    monkeypatch.setattr(litellm, "callbacks", [callback])
    router = litellm.Router(model_list=group)
    names = {Bundle.open(bundles / name).manifest.fingerprint: name for name in MATH}
    outcomes, stop = collections.Counter(), asyncio.Event()

    async def ask(n):
        i = n * 10**6
        while not stop.is_set():
            i += 1
            metadata = {}
            messages = [{"role": "user", "content": f"math {i}"}]
            answer = await router.acompletion(model="auto", messages=messages, metadata=metadata)
            record = metadata["spend_logs_metadata"]["p2l"]
            name = names[record["fingerprint"]]
            whole = answer.choices[0].message.content == BEST[name] and record["values"][record["model"]] > 0.5
            outcomes[name if whole and "error" not in record else str(record)] += 1

    def said(sentence):
        return sum(sentence in record.getMessage() for record in caplog.records)

    asking = [asyncio.create_task(ask(n)) for n in range(10)]
    try:
        await until(lambda: outcomes["one"] > 50)
        point(bundles, "other")
        await until(lambda: said("swapped") == 1)
        await until(lambda: outcomes["other"] > 50)
        point(bundles, "bad")
        await until(lambda: said("is not taken"))
        before = collections.Counter(outcomes)
        await until(lambda: outcomes["other"] > before["other"] + 50)
        assert outcomes["one"] == before["one"]
        point(bundles, "one")
        await until(lambda: said("swapped") == 2)
        await until(lambda: outcomes["one"] > before["one"] + 50)
    finally:
        stop.set()
        await asyncio.gather(*asking)
    assert set(outcomes) == {"one", "other"}, outcomes
    assert callback.health.counts == {"routed": sum(outcomes.values())}
    assert said("is not taken") == said("does not match its sha256") == 1


async def test_a_request_goes_on_with_the_bundle_that_ranked_its_models(bundles, group, monkeypatch):
    """The best model fails after a swap that turned the ranking round: the second best of the first ranking answers."""
    callback = P2LRouter(P2LSettings(bundle=str(bundles / "link"), timeout_ms=5000))
    monkeypatch.setattr(litellm, "callbacks", [callback])
    scoring = callback.state().scoring
    await scoring.loaded(time.monotonic() + 10)
    request = {"metadata": {}, "litellm_trace_id": "t", "litellm_call_id": "c"}
    messages = [{"role": "user", "content": "math"}]

    async def next_of():
        offered = await callback.async_filter_deployments("auto", group, messages, request)
        return [one["model_info"]["id"] for one in offered]

    assert await next_of() == ["x"]
    await callback.async_pre_call_deployment_hook(request | {"model_info": group[0]["model_info"]}, None)
    before = scoring.now
    point(bundles, "other")
    await until(lambda: scoring.now is not before)
    request["metadata"]["previous_models"] = [{"model": "auto"}]
    callback.log_failure_event({**request, "litellm_params": request, "exception": ValueError()}, None, None, None)
    assert await next_of() == ["y"]
    other = await callback.async_filter_deployments("auto", group, messages, {"litellm_trace_id": "u"})
    assert [one["model_info"]["id"] for one in other] == ["z"]


async def test_the_bundle_before_is_closed_after_its_last_request_and_leaves_the_memory(bundles):
    scoring = Scoring(P2LSettings(bundle=str(bundles / "link"), timeout_ms=200), load_scorer)

    async def used():
        loaded = await scoring.loaded(time.monotonic() + 10)
        await scoring.of_prompt(loaded, ("math",), time.monotonic() + 10)
        return weakref.ref(loaded.flights), loaded.scorer.fingerprint, weakref.ref(loaded.scorer)

    flights, fingerprint, scorer = await used()
    point(bundles, "other")
    await until(lambda: scoring.now.scorer.fingerprint != fingerprint)
    assert flights().works
    await until(lambda: flights() is None or not flights().works)
    await until(lambda: gc.collect() >= 0 and scorer() is None)
    scoring.close()
    point(bundles, "one")
    await asyncio.sleep(0.5)
    assert scoring.now.scorer.fingerprint != fingerprint
