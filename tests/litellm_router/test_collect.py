"""Votes from live traffic: what may be compared, what it costs, where it is kept. The calls are LiteLLM's own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import stat
import time

import litellm
import pytest
import redis.asyncio
from pydantic import SecretStr

from litellm_router import P2LRouter, P2LSettings
from litellm_router.collect.sample import MOST_BYTES, plain_chat, refused
from litellm_router.collect.store import FileStore, RedisStore, day_of
from litellm_router.settings import RouterCacheSettings
from p2l_plugins.errors import ConfigError

USER = {"role": "user", "content": "code"}
PRICE = 1e-6


@pytest.fixture
def collecting(tiny_bundle, deployment, tmp_path, monkeypatch):
    """Gives a router whose answers are compared, the callback, and the rows of its file; `how` changes settings."""

    def make(judge="Verdict: A", price=PRICE, other="answer of alpha", name="", **how):
        path = tmp_path / "votes.jsonl"
        given = {"share": 1.0, "judge": "judge", "budget_per_day": 1.0, "store": str(path), "store_prompts": True} | how
        settings = P2LSettings.read({"bundle": str(tiny_bundle), "timeout_ms": 5000, "collect": given})
        callback = P2LRouter(settings)
        monkeypatch.setattr(litellm, "callbacks", [callback])
        for kind in ("success", "_async_success", "failure", "_async_failure"):
            monkeypatch.setattr(litellm, f"{kind}_callback", [])
        router = litellm.Router(
            model_list=[
                deployment(f"{name}a", "alpha", price=price, mock_response=other),
                deployment(f"{name}b", "beta", price=price, mock_response="answer of beta"),
                deployment(f"{name}j", price=price, mock_response=judge) | {"model_name": "judge"},
            ],
            num_retries=0,
        )
        return router, callback, lambda: [json.loads(line) for line in path.read_text().splitlines()]

    return make


async def counted(callback, count=1):
    """What became of so many comparisons."""
    for _ in range(200):
        collector = callback.state().collector
        if sum(collector.counts.values()) >= count and not collector._tasks:
            return dict(collector.counts)
        await asyncio.sleep(0.05)
    raise AssertionError(f"only {dict(collector.counts)}")


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_is_compared_after_it_went_out(collecting, stream):
    router, callback, rows = collecting(judge="I think so.\nVerdict: both bad")
    answer = await router.acompletion(model="auto", messages=[USER], stream=stream)
    if stream:
        assert "".join([one.choices[0].delta.content or "" async for one in answer]) == "answer of beta"
    assert await counted(callback) == {"vote": 1}
    (row,) = rows()
    assert row["prompt"] == ["code"]
    assert (row["model_a"], row["model_b"], row["winner"]) == ("beta", "alpha", "tie (bothbad)")
    assert row["judge"] == "judge"
    assert row["cost"] > 0
    assert abs(row["timestamp"] - time.time()) < 60


async def test_a_judge_that_prefers_a_position_gives_a_tie(collecting):
    router, callback, rows = collecting(judge="Verdict: A")
    await router.acompletion(model="auto", messages=[USER])
    await counted(callback)
    assert rows()[0]["winner"] == "tie"


@pytest.mark.parametrize(
    ("how", "outcome"),
    [
        ({"judge": "I can't say"}, "unreadable"),
        ({"judge": "litellm.InternalServerError"}, "failed"),
        ({"other": "litellm.RateLimitError"}, "failed"),
    ],
)
async def test_a_judge_or_model_in_trouble_costs_no_request(collecting, how, outcome):
    router, callback, rows = collecting(**how)
    response = await router.acompletion(model="auto", messages=[USER])
    assert response.choices[0].message.content == "answer of beta"
    assert await counted(callback) == {outcome: 1}
    assert not any("winner" in row for row in rows())
    assert "code" not in str(rows())


async def test_the_budget_of_a_day_holds_across_restarts(collecting, tmp_path):
    cost = 0.0
    for turn in range(2):
        router, callback, rows = collecting(budget_per_day=2.5e-3)
        for i in range(30):
            await router.acompletion(model="auto", messages=[{"role": "user", "content": f"code {i}"}])
            await counted(callback, i + 1)
        counts = await counted(callback, 30)
        cost = sum(row["cost"] for row in rows())
        assert cost <= 2.5e-3
        assert counts["budget"] > 0
        assert turn == 0 or counts["budget"] >= 25
    assert cost > 0


async def test_without_a_price_no_budget_would_hold(collecting):
    router, callback, rows = collecting(price=None, name="free-")
    await router.acompletion(model="auto", messages=[USER])
    assert await counted(callback) == {"no_price": 1}
    assert not rows()


@pytest.mark.parametrize(
    "options",
    [
        {"metadata": {"p2l": {"collect": False}}},
        {"metadata": {"user_api_key_metadata": {"p2l_collect": False}}},
        {"metadata": {"user_api_key_team_metadata": {"p2l_collect": False}}},
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}]},
        {"response_format": {"type": "json_object"}},
        {"messages": [{"role": "user", "content": "code " + "x" * MOST_BYTES}]},
        {"messages": [USER, {"role": "assistant", "content": "a", "thinking_blocks": [{"signature": "s"}]}, USER]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "code"}, {"type": "image_url"}]}]},
    ],
)
async def test_what_is_left_out(collecting, options):
    router, callback, rows = collecting()
    await router.acompletion(**{"model": "auto", "messages": [USER]} | options)
    await router.acompletion(model="auto", messages=[{"role": "user", "content": "sum"}])
    assert await counted(callback) == {"vote": 1}
    assert [row["prompt"] for row in rows()] == [["sum"]]


async def test_the_share_and_the_groups(collecting):
    router, callback, _ = collecting(share=0.3)
    for i in range(60):
        await router.acompletion(model="auto", messages=[{"role": "user", "content": f"code {i}"}])
        await asyncio.sleep(0)
    counts = await counted(callback, 5)
    assert 5 <= sum(counts.values()) <= 35
    router, callback, rows = collecting(groups=["another"])
    before = len(rows())
    await router.acompletion(model="auto", messages=[USER])
    await asyncio.sleep(0.3)
    assert len(rows()) == before


def test_prompts_are_stored_by_choice_only(tmp_path):
    given = {"share": 0.1, "judge": "j", "budget_per_day": 1, "store": str(tmp_path / "v.jsonl")}
    with pytest.raises(ConfigError, match=r"collect stores the prompts that it compares.*store_prompts: true"):
        P2LSettings.read({"collect": given})


def test_a_store_that_can_not_be_used_is_a_wrong_setting(tmp_path):
    for path, says in ((tmp_path / "no" / "v.jsonl", "make it first"), (tmp_path, "can't be written")):
        with pytest.raises(ConfigError, match=says):
            FileStore(path)


async def test_a_file_of_several_processes(tmp_path):
    path = tmp_path / "votes.jsonl"
    one, two = FileStore(path), FileStore(path)
    now = 1_780_000_000.0
    day = day_of(now)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    for _ in range(3):
        await one.add({"timestamp": now, "cost": 0.25})
    assert await two.spent(day) == pytest.approx(0.75)
    with path.open("ab") as stream:
        stream.write(b'not JSON\n{"timestamp": "x", "cost": 1}\n{"timestamp": ')  # the last one is being written
    assert await two.spent(day) == pytest.approx(0.75)
    assert await one.spent(day_of(now + 86_400)) == 0
    path.write_text("")
    await two.add({"timestamp": now, "cost": 0.5})
    assert await two.spent(day) == pytest.approx(1.25)  # an emptied file gives no money back


async def test_what_a_day_cost_outlives_midnight_odd_lines_a_line_cut_short_and_a_file_that_is_moved_away(tmp_path):
    path = tmp_path / "votes.jsonl"
    store, day = FileStore(path), 24 * 3600.0
    for timestamp, cost in ((day - 1, 0.5), (day + 1, 0.25), (day - 1, 0.5), (day + 2, 0.25)):
        await store.add({"timestamp": timestamp, "cost": cost})
    assert await store.spent(day_of(day - 1)) == 1.0
    assert await store.spent(day_of(day + 1)) == 0.5
    with path.open("a") as stream:
        stream.write(
            '{"timestamp": 86401, "cost": NaN}\n{"timestamp": 86401, "cost": -9}\n{"timestamp": 1e99, "cost": 1}\n'
        )
        stream.write('{"timestamp": 86401, "co')
    await store.add({"timestamp": day + 3, "cost": 0.25, "winner": "tie"})
    assert json.loads(path.read_text().splitlines()[-1])["winner"] == "tie"
    assert await store.spent(day_of(day + 1)) == 0.75
    path.rename(tmp_path / "old.jsonl")
    for _ in range(20):  # more than was read of the one before
        await store.add({"timestamp": day + 4, "cost": 0.01})
    assert await store.spent(day_of(day + 1)) == pytest.approx(0.95)


async def test_a_clock_that_jumped_ahead_gives_no_second_budget(tmp_path):
    """Lines of later days stay in the file when the clock is set right: today's cost must not be forgotten for them."""
    path, day = tmp_path / "votes.jsonl", 24 * 3600.0
    store = FileStore(path)
    for jump in (0, 1, 9, 10, 11, 12, 0, -1):
        await store.add({"timestamp": 50 * day + jump * day, "cost": 0.25})
    for reader in (store, FileStore(path)):
        assert await reader.spent(day_of(50 * day)) == 0.5
        assert await reader.spent(day_of(51 * day)) == 0.25
        assert await reader.spent(day_of(62 * day)) == 0.25


async def test_a_jump_of_the_clock_is_a_new_day_and_back_again_the_old_one(collecting):
    router, callback, rows = collecting(budget_per_day=2.5e-3)
    collector = callback.state().collector
    now, asked = time.time(), 0
    for jump in (0, 3600, 86_400, -86_400, 0, 86_400):
        collector._clock = lambda at=now + jump: at
        for _ in range(6):
            asked += 1
            await router.acompletion(model="auto", messages=[{"role": "user", "content": f"code {asked}"}])
            await counted(callback, asked)
    days = {day_of(row["timestamp"]) for row in rows()}
    for day in days:
        assert sum(row["cost"] for row in rows() if day_of(row["timestamp"]) == day) <= 2.5e-3
    assert len(days) in (3, 4)  # an hour later may be another day
    assert collector.counts["vote"] + collector.counts["budget"] == asked


async def test_a_damaged_cost_of_a_day_is_no_leave_to_spend(valkey):
    client = redis.asyncio.Redis.from_url(valkey.url)
    store, now = RedisStore(lambda: client, "damaged"), time.time()
    await store.add({"timestamp": now, "cost": 0.25})
    (key,) = await client.keys("damaged:*")
    good = await client.get(key)
    for bit in range(8 * len(good)):
        wrong = bytearray(good)
        wrong[bit // 8] ^= 1 << bit % 8
        await client.set(key, bytes(wrong))
        with contextlib.suppress(ValueError):  # which the collector takes for a store that fails
            assert 0 <= await store.spent(day_of(now)) < 1e9
    for wrong in (b"nan", b"inf", b"-inf", b"-1", b"x"):
        await client.set(key, wrong)
        with pytest.raises(ValueError, match=r"cost of the day|could not convert"):
            await store.spent(day_of(now))
    await client.aclose()


async def test_a_vote_that_cannot_be_kept_is_no_vote_and_costs_no_request(collecting, monkeypatch, caplog):
    def full(descriptor, line):
        raise OSError(28, "No space left on device")

    router, callback, rows = collecting()
    callback.state()
    monkeypatch.setattr("litellm_router.collect.store.os.write", full)
    response = await router.acompletion(model="auto", messages=[USER])
    assert response.choices[0].message.content == "answer of beta"
    assert await counted(callback) == {"store": 1}
    assert "the store fails (OSError)" in caplog.text
    assert callback.state().collector._reserved == 0
    assert not rows()


async def test_a_judge_that_hangs_costs_what_a_call_is_expected_to_cost(collecting, monkeypatch):
    monkeypatch.setattr("litellm_router.collect.collector.CALL_S", 0.2)
    router, callback, rows = collecting()
    next(one for one in router.model_list if one["model_name"] == "judge")["litellm_params"]["mock_delay"] = 5
    await router.acompletion(model="auto", messages=[USER])
    assert await counted(callback) == {"failed": 1}
    (row,) = rows()
    assert "winner" not in row
    assert row["cost"] > 0


async def test_a_stream_in_redis(valkey):
    client = redis.asyncio.Redis.from_url(valkey.url)
    store = RedisStore(lambda: client, "p2l")
    now = time.time()
    await store.add({"timestamp": now, "cost": 0.25, "winner": "tie", "prompt": ["a"]})
    await store.add({"timestamp": now, "cost": 0.5})
    assert await store.spent(day_of(now)) == pytest.approx(0.75)
    assert await client.xlen(store.stream) == 1
    await client.aclose()
    with pytest.raises(ConnectionError):
        await RedisStore(lambda: None, "p2l").spent("2026-01-01")


def test_a_chat_of_any_route_as_plain_texts():
    part = {"type": "input_text", "text": "hi"}
    assert plain_chat("hi", {"instructions": "short"}) == [
        {"role": "system", "content": "short"},
        {"role": "user", "content": "hi"},
    ]
    assert plain_chat([{"role": "user", "content": [part]}], {"system": [{"type": "text", "text": "s"}]}) == [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "hi"},
    ]
    for chat in ([], [{"role": "tool", "content": "x"}], [USER, {"role": "assistant", "content": "x"}], None, [3], {}):
        assert plain_chat(chat, {}) is None
    assert plain_chat([USER], {"n": 2}) is None


def test_only_a_plain_false_is_a_no():
    assert refused({"metadata": {"requester_metadata": {"p2l": {"collect": False}}}})
    for value in (True, None, 0, "no"):
        assert not refused({"metadata": {"p2l": {"collect": value}}})


def test_redis_as_a_store_needs_a_shared_cache(tiny_bundle):
    given = {"share": 1, "judge": "j", "budget_per_day": 1, "store": "redis", "store_prompts": True}
    settings = P2LSettings.read({"bundle": str(tiny_bundle), "collect": given, "cache": {"shared": False}})
    with pytest.raises(ConfigError, match=r"cache\.shared is false"):
        P2LRouter(settings).state()
    assert isinstance(RouterCacheSettings(url=SecretStr("redis://x")).url, SecretStr)
