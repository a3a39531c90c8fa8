"""Two proxies share budgets and lengths of answers through a real Valkey; without it, each goes on alone."""

import math

import numpy as np
import pytest
import redis.asyncio
from helpers.servers import server

from litellm_router.settings import P2LSettings
from litellm_router.shared import SharedTraffic
from litellm_router.traffic import Traffic
from p2l_plugins.routing import policies

SETTINGS = P2LSettings(rule="paced", budget=1e-3)
COSTS = np.array([0.2e-3, 1e-3, 6e-3])


def request(traffic, rng, spent):
    values = np.array([0.2, 0.3, 0.3 + rng.exponential(0.2)])
    pacer = traffic.pacer("auto", traffic.rule_of("auto"), values, COSTS)
    choice = policies.paced(values, COSTS, pacer.multiplier)
    traffic.decided(None, pacer, choice.cost)
    spent.append(choice.cost)
    return pacer


async def test_two_proxies_hold_one_budget_together(client):
    proxies = [(Traffic(SETTINGS), SharedTraffic(lambda: client)) for _ in range(2)]
    rng, spent = np.random.default_rng(0), []
    for i in range(3000):
        traffic, _ = proxies[int(rng.random() < 0.8)]  # one has most of the traffic
        pacer = request(traffic, rng, spent)
        if i % 50 == 0:
            for both, exchange in proxies:
                await exchange.exchange(both)
    assert np.mean(spent) == pytest.approx(1e-3, rel=0.02)
    for both, exchange in (*proxies, *proxies):
        await exchange.exchange(both)
    one, two = (next(iter(traffic.pacers.values())).multiplier for traffic, _ in proxies)
    assert one == pytest.approx(two, rel=1e-9)
    assert pacer.shared == pytest.approx(math.log(one * 1e-3))
    for key in await client.keys("*"):
        assert await client.ttl(key) > 0


async def test_lengths_of_answers_are_one_average(client):
    proxies = [(Traffic(SETTINGS), SharedTraffic(lambda: client)) for _ in range(2)]
    (one, share_one), (two, share_two) = proxies
    alone = Traffic(SETTINGS)
    for tokens in (100, 300, 50):
        one.answered(None, "a", tokens, None)
        alone.answered(None, "a", tokens, None)
    two.answer_tokens(["a"])  # asked about, not seen
    await share_one.exchange(one)
    await share_two.exchange(two)
    assert two.lengths.expected("a") == pytest.approx(one.lengths.expected("a"))
    mean = 500 + (1 - (20 / 21) * (21 / 22) * (22 / 23)) * (150 - 500)
    assert one.lengths.expected("a") == pytest.approx(mean)
    assert alone.lengths.expected("a") == pytest.approx(mean, rel=0.02)
    two.answered(None, "a", 1000, None)
    await share_two.exchange(two)
    await share_one.exchange(one)
    assert (
        one.lengths.expected("a")
        == pytest.approx(two.lengths.expected("a"))
        == pytest.approx(mean + (1000 - mean) / 24)
    )


async def test_while_redis_is_away_moves_are_kept_and_handed_over_later(tmp_path, caplog):
    with server(tmp_path) as one:
        made = redis.asyncio.Redis.from_url(one.url, socket_connect_timeout=0.2, retry=None)
        shared, traffic = SharedTraffic(lambda: made), Traffic(SETTINGS)
        rng, spent = np.random.default_rng(0), []
        pacer = request(traffic, rng, spent)
        await shared.exchange(traffic)
        one.kill()
        for _ in range(20):
            request(traffic, rng, spent)
        traffic.answered(None, "a", 7, None)
        before = pacer.multiplier
        for _ in range(3):
            await shared.exchange(traffic)
        assert shared.errors == 3
        assert pacer.multiplier == pytest.approx(before)
        assert sum("goes on alone" in line for line in caplog.messages) == 1
        one.start()
        await shared.exchange(traffic)
        assert traffic.lengths.take_new() == {}
        assert pacer.multiplier == pytest.approx(before)
        keys = await made.keys("p2l:pace:*")
        assert float(await made.get(keys[0])) == pytest.approx(math.log(before * 1e-3))
        await made.aclose()


async def test_any_flipped_bit_of_a_shared_number_is_survived_and_mended(client):
    """They have no seal, as Redis itself adds to them: what can't be a budget's multiplier or a length is replaced."""
    shared, traffic = SharedTraffic(lambda: client), Traffic(SETTINGS)
    rng = np.random.default_rng(0)
    for _ in range(40):
        pacer = request(traffic, rng, [])
    traffic.answered(None, "a", 7, None)
    await shared.exchange(traffic)
    (key,), (lengths,) = await client.keys("p2l:pace:*"), await client.keys("p2l:answers:*")
    good, good_lengths, known = await client.get(key), await client.hgetall(lengths), pacer.shared
    low, high = pacer._limits
    for bit in range(8 * len(good)):
        await client.set(key, flipped(good, bit))
        await shared.exchange(traffic)
        request(traffic, rng, [])
        assert 2 * low - high <= pacer.shared <= 2 * high - low
        await shared.exchange(traffic)
        assert float(await client.get(key)) == pytest.approx(pacer.shared)
        pacer.take_pending()
        pacer.see(known)
    for field, value in good_lengths.items():
        for bit in range(8 * len(value)):
            await client.hset(lengths, mapping={**good_lengths, field: flipped(value, bit)})
            await shared.exchange(traffic)
            assert 0 <= traffic.lengths.expected("a") < 1e9
    for wrong in (b"nan", b"inf", b"1e300", b"-700", b"", b"9" * 400):
        await client.set(key, wrong)
        await client.hset(lengths, mapping={"a:count": wrong, "a:mean": wrong})
        await shared.exchange(traffic)
        traffic.answered(None, "a", 7, None)
        await shared.exchange(traffic)
        assert 0 <= traffic.lengths.expected("a") < 1e9
        assert float(await client.get(key)) == pytest.approx(known)
    assert shared.errors == 0


def flipped(value, bit):
    wrong = bytearray(value)
    wrong[bit // 8] ^= 1 << bit % 8
    return bytes(wrong)


async def test_without_redis_nothing_happens():
    shared, traffic = SharedTraffic(lambda: None), Traffic(SETTINGS)
    traffic.answered(None, "a", 7, None)
    await shared.exchange(traffic)
    assert shared.errors == 0
    assert traffic.lengths.take_new() == {"a": (1, 7.0)}


async def test_hand_overs_are_a_second_apart(client):
    now = [0.0]
    shared, traffic = SharedTraffic(lambda: client, clock=lambda: now[0]), Traffic(SETTINGS)
    traffic.answered(None, "a", 7, None)
    shared.soon(traffic)
    first = shared._task
    shared.soon(traffic)
    assert shared._task is first
    await first
    now[0] = 1.5
    shared.soon(traffic)
    assert shared._task is not first
    await shared._task
