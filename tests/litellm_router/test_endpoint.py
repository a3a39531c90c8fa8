"""Scores from an HTTP scorer: a real server on loopback, well and misbehaving."""

import asyncio
import collections
import itertools
import os
import re
import subprocess
import sys
import time

import numpy as np
import pytest
from helpers.http_scorer import http_scorer

from litellm_router import P2LRouter, P2LSettings
from litellm_router.endpoint import PAUSE_S, RemoteScorer
from litellm_router.reasons import NotRoutedError
from p2l_plugins import P2L
from p2l_plugins.cache.entry import WIDEST
from p2l_plugins.errors import ConfigError

KEY = "a key of the scorer"
SECRET = "xyzzy-plugh-my-secret"


@pytest.fixture
def scorer(tiny):
    with http_scorer(tiny, KEY) as server:
        yield server


@pytest.fixture
def group(deployment):
    return [deployment("x", "alpha"), deployment("y", "beta"), deployment("z", "gamma")]


@pytest.fixture
def router(scorer):
    return P2LRouter(P2LSettings(endpoint=scorer.url, endpoint_key=KEY, timeout_ms=5000))


async def decided(router, group, text):
    request = {}
    await router.async_filter_deployments("auto", group, [{"role": "user", "content": text}], request)
    return request["metadata"]["spend_logs_metadata"]["p2l"]


def test_scores_are_those_of_the_bundle(scorer, tiny):
    remote = RemoteScorer(f"{scorer.url}/", KEY)
    assert (remote.models, remote.family, remote.fingerprint) == (tiny.models, tiny.family, tiny.fingerprint)
    assert remote.index("a") == 0
    prompts = [("math",), ("code", "and chat"), ("häßlich \ufffd",)]
    ours, theirs = tiny.score_turns(prompts), remote.score_turns(prompts)
    np.testing.assert_array_equal(ours.coefs, theirs.coefs)
    np.testing.assert_array_equal(ours.raw_eta, theirs.raw_eta)
    np.testing.assert_array_equal(ours.truncated, theirs.truncated)
    np.testing.assert_array_equal(ours.unknown, theirs.unknown)
    assert theirs.unknown[2] == 1
    np.testing.assert_array_equal(remote.overall.coefs, tiny.overall.coefs)
    assert remote.overall.raw_eta == tiny.overall.raw_eta
    assert remote.bounds == (500.0, 9.0)
    remote.close()


async def test_a_router_without_a_bundle_decides_the_same_and_keeps_the_scores(scorer, router, group, tiny):
    local = P2LRouter(P2LSettings(timeout_ms=5000), lambda _: tiny)
    for text in ("math", "code please", "a chat"):
        remote = await decided(router, group, text)
        here = await decided(local, group, text)
        assert remote["values"] == here["values"]
        assert remote["fingerprint"] == tiny.fingerprint
    calls = len(scorer.asked)
    assert (await decided(router, group, "math"))["cache"] == "hit"
    assert len(scorer.asked) == calls


async def test_connections_stay_open_and_prompts_share_calls(scorer, router, group):
    records = await asyncio.gather(*(decided(router, group, f"math {i}") for i in range(60)))
    assert {record["model"] for record in records} == {"alpha"}
    assert sum(map(len, scorer.asked)) == 60
    assert len(scorer.asked) < 60
    assert scorer.connections <= 5


async def test_many_identical_prompts_are_one_question(scorer, router, group):
    await asyncio.gather(*(decided(router, group, "code") for _ in range(50)))
    assert scorer.asked == [[("code",)]]


@pytest.mark.parametrize(
    ("mode", "reason"),
    [
        ("busy", "busy"),
        ("raise", "endpoint"),
        ("nan", "scorer"),
        ("short", "scorer"),
        ("no_eta", "scorer"),
        ("odd", "scorer"),
        ("share", "scorer"),
        ("huge", "endpoint"),
    ],
)
async def test_a_scorer_that_misbehaves_is_named_and_used_again_when_it_is_well(
    scorer, router, group, mode, reason, caplog
):
    await decided(router, group, "math")
    scorer.mode = mode
    record = await decided(router, group, SECRET)
    assert record["error"] == reason
    assert (await decided(router, group, "math"))["cache"] == "hit"
    scorer.mode = "ok"
    await asyncio.sleep(PAUSE_S)
    assert (await decided(router, group, SECRET))["cache"] == "miss"
    assert SECRET not in caplog.text
    assert KEY not in caplog.text


async def test_a_busy_scorer_is_not_asked_for_each_prompt_again(scorer, router, group):
    await decided(router, group, "math")
    scorer.mode = "busy"
    before = len(scorer.asked)
    records = await asyncio.gather(*(decided(router, group, f"code {i}") for i in range(40)))
    assert {record["error"] for record in records} == {"busy"}
    assert len(scorer.asked) - before <= 8


@pytest.mark.alone
async def test_a_scorer_that_hangs_costs_the_deadline_and_is_left_alone_after_some_failures(scorer, group, tiny):
    router = P2LRouter(P2LSettings(endpoint=scorer.url, endpoint_key=KEY, timeout_ms=50))
    while "error" in await decided(router, group, "math"):
        await asyncio.sleep(0.02)
    scorer.mode = "hang"
    started = time.monotonic()
    assert (await decided(router, group, "code"))["error"] == "deadline"
    assert time.monotonic() - started < 0.5
    reasons = set()
    end = time.monotonic() + 10
    while "endpoint" not in reasons:
        reasons.add((await decided(router, group, f"chat {time.monotonic()}"))["error"])
        await asyncio.sleep(0.05)
        assert time.monotonic() < end, reasons
    scorer.mode = "ok"
    scorer.released.set()
    while "error" in await decided(router, group, f"chat {time.monotonic()}"):
        await asyncio.sleep(0.05)
        assert time.monotonic() < end + 10


async def test_another_bundle_at_the_endpoint_is_taken_up_and_never_mixed(scorer, router, group, tiny, bt_bundle):
    assert (await decided(router, group, "math"))["fingerprint"] == tiny.fingerprint
    scorer.p2l = other = P2L.load(bt_bundle)
    cached = await decided(router, group, "math")
    assert (cached["fingerprint"], cached["cache"]) == (tiny.fingerprint, "hit")
    record = await decided(router, group, "code")
    assert record["fingerprint"] == other.fingerprint != tiny.fingerprint
    assert record["cache"] == "miss"
    assert (await decided(router, group, "math"))["fingerprint"] == other.fingerprint


async def test_no_request_goes_unranked_while_the_endpoint_takes_another_bundle_and_back(
    scorer, router, group, tiny, bt_bundle
):
    other, outcomes, n = P2L.load(bt_bundle), collections.Counter(), itertools.count()

    async def ask(stop):
        while not stop.is_set():
            record = await decided(router, group, f"math {next(n)}")
            outcomes[record.get("error") or record["fingerprint"]] += 1

    stop = asyncio.Event()
    asking = [asyncio.create_task(ask(stop)) for _ in range(12)]
    try:
        for bundle in (other, tiny, other):
            scorer.p2l = bundle
            seen, end = outcomes[bundle.fingerprint], time.monotonic() + 30
            while outcomes[bundle.fingerprint] < seen + 40:
                assert time.monotonic() < end, outcomes
                await asyncio.sleep(0.01)
    finally:
        stop.set()
        await asyncio.gather(*asking)
    assert set(outcomes) <= {tiny.fingerprint, other.fingerprint}, outcomes
    assert router.health.counts == {"routed": sum(outcomes.values())}


async def test_workers_of_which_some_have_the_other_bundle_are_asked_until_both_agree(
    scorer, router, group, tiny, bt_bundle
):
    """The first answers what it has, the second scores with another bundle, for a while."""
    assert (await decided(router, group, "math"))["fingerprint"] == tiny.fingerprint
    other = P2L.load(bt_bundle)
    scorer.scoring = other
    waiting = asyncio.create_task(decided(router, group, "code"))
    await asyncio.sleep(0.2)
    assert not waiting.done()
    scorer.p2l = other
    assert (await waiting)["fingerprint"] == other.fingerprint


async def test_an_endpoint_that_cannot_say_what_it_has_now_costs_new_prompts_only(
    scorer, router, group, tiny, bt_bundle
):
    await decided(router, group, "math")
    scorer.mode = "silent"
    scorer.scoring = P2L.load(bt_bundle)
    assert (await decided(router, group, "code"))["error"] == "endpoint"
    cached = await decided(router, group, "math")
    assert (cached["fingerprint"], cached["cache"]) == (tiny.fingerprint, "hit")


async def test_an_endpoint_that_is_down_at_the_start_is_asked_again(tiny, group, monkeypatch, caplog):
    with http_scorer(tiny) as gone:
        url, port = gone.url, gone.server_port
    router = P2LRouter(P2LSettings(endpoint=url, timeout_ms=5000))
    monkeypatch.setattr("litellm_router.scoring.ASK_AFTER_S", 0.05)
    for _ in range(3):
        assert (await decided(router, group, "math"))["error"] == "endpoint"
        await asyncio.sleep(0.06)
    assert caplog.text.count(f"p2l_settings.endpoint = '{url}'") == 1
    with http_scorer(tiny, port=port):
        assert (await decided(router, group, "math"))["model"] == "alpha"


async def test_a_wrong_key_is_said(scorer, group, caplog):
    router = P2LRouter(P2LSettings(endpoint=scorer.url, endpoint_key="another", timeout_ms=5000))
    assert (await decided(router, group, "math"))["error"] == "endpoint"
    assert "p2l_settings.endpoint_key" in caplog.text
    assert "another" not in caplog.text


async def test_a_scorer_that_says_nothing_of_unknown_tokens_is_used(scorer, router, group):
    scorer.mode = "old"
    remote = RemoteScorer(scorer.url, KEY)
    assert remote.overall is None
    assert remote.bounds == WIDEST
    assert remote.score_turns([("math",)]).unknown is None
    remote.close()
    assert (await decided(router, group, "math"))["model"] == "alpha"


def test_overall_scores_of_another_number_of_models_are_refused(scorer):
    scorer.mode = "narrow"
    with pytest.raises(NotRoutedError) as caught:
        RemoteScorer(scorer.url, KEY)
    assert "not of the form of a P2L scorer" in caught.value.detail


def test_what_is_no_scorer_is_refused(scorer):
    scorer.key = None
    with pytest.raises(NotRoutedError) as caught:
        RemoteScorer(f"{scorer.url}/v1")
    assert "404" in caught.value.detail


def test_the_key_may_stand_in_the_environment(monkeypatch):
    settings = P2LSettings.read({"endpoint": "https://scorer:8000/", "endpoint_key": "os.environ/P2L_TEST_KEY"})
    with pytest.raises(ConfigError, match="P2L_TEST_KEY is not set"):
        settings.endpoint_secret()
    monkeypatch.setenv("P2L_TEST_KEY", KEY)
    assert settings.endpoint_secret() == KEY
    assert settings.endpoint == "https://scorer:8000"
    assert KEY not in repr(settings)


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        ({"endpoint": "scorer:8000"}, "p2l_settings.endpoint is not valid: must be http"),
        ({"endpoint": "http://user:pass@scorer"}, "without user and password"),
        ({"endpoint": None}, "p2l_settings.endpoint is not valid"),
        ({"endpoint": "http://s", "endpoint_key": None}, "p2l_settings.endpoint_key is not valid"),
        ({"endpoint": "http://s", "bundle": "starter"}, "bundle and endpoint are both set"),
        ({"endpoint_key": "k"}, "no endpoint"),
    ],
)
def test_wrong_settings_of_an_endpoint_are_a_sentence(raw, says):
    with pytest.raises(ConfigError) as caught:
        P2LSettings.read(raw)
    assert says in str(caught.value)
    assert "pass@" not in str(caught.value)


@pytest.fixture
def service(tiny_bundle, tmp_path):
    """The address of a real `p2l serve` of the tiny bundle."""
    log = tmp_path / "log"
    command = [sys.executable, "-m", "p2l_plugins.cli", "serve", str(tiny_bundle), "--port", "0"]
    command += ["--api-key-env", "P2L_TEST_SERVICE_KEY"]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, env=os.environ | {"P2L_TEST_SERVICE_KEY": KEY}
        )
    try:
        end = time.monotonic() + 90
        while not (found := re.search(r"p2l serve: (http://\S+)", log.read_text())):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.05)
        yield found[1]
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


async def test_the_real_service_is_such_a_scorer(service, group, tiny, monkeypatch):
    monkeypatch.setattr("litellm_router.scoring.ASK_AFTER_S", 0.1)
    remote = P2LRouter(P2LSettings(endpoint=service, endpoint_key=KEY, timeout_ms=20_000))
    local = P2LRouter(P2LSettings(timeout_ms=5000), lambda _: tiny)
    end = time.monotonic() + 60
    while "error" in await decided(remote, group, "are you there"):  # it answers before its bundle is loaded
        assert time.monotonic() < end
        await asyncio.sleep(0.1)
    texts = ["math", "code and math", "äöü 数学", "x " * 500]
    for text in texts:
        there, here = await decided(remote, group, text), await decided(local, group, text)
        assert {k: there[k] for k in ("values", "ranking", "fingerprint")} == {
            k: here[k] for k in ("values", "ranking", "fingerprint")
        }
    records = await asyncio.gather(*(decided(remote, group, f"chat {i}") for i in range(50)))
    assert {record.get("model") for record in records} == {"gamma"}
