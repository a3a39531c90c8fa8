"""A thousand requests through the router while the shared cache is in trouble: none fails, none waits for long."""

import asyncio
import itertools
import struct
import time

import numpy as np
import pytest
from helpers.servers import cluster, free_port, server, until
from helpers.trouble import DEADLINE_MS, MODELS, REQUESTS, CountingScorer, ask

from p2l_plugins.cache.entry import Entry, cache_key
from p2l_plugins.cache.value import VERSION, encode

pytestmark = pytest.mark.alone

FINGERPRINT = CountingScorer().fingerprint


def texts():
    """Each text is asked twice, half a run apart."""
    return [f"canary prompt number {i % (REQUESTS // 2)}" for i in range(REQUESTS)]


def keys():
    return [cache_key(FINGERPRINT, (text,)) for text in texts()[: REQUESTS // 2]]


@pytest.fixture
def check(routed, deployments):
    """Sends a thousand requests: none fails, and what the cache adds stays within its deadline and 10 ms.

    The same requests go, in turn, through a router without a shared cache: the difference is what the cache added.
    """

    async def check(one):
        plain = routed()
        await ask([plain, one], deployments, texts())
        assert len(one.ms) == len(plain.ms) == REQUESTS
        assert one.failed == plain.failed == 0
        p99, plain_p99 = np.percentile(one.ms, 99), np.percentile(plain.ms, 99)
        print(f"p50 {np.median(one.ms):.2f} ms, p99 {p99:.2f} ms, without {plain_p99:.2f} ms, {one.counts}")
        assert p99 - plain_p99 <= DEADLINE_MS + 10
        return one.counts

    return check


async def test_in_health_half_are_hits_and_all_are_written(routed, check, deployments, valkey):
    one = routed(valkey.url)
    counts = await check(one)
    assert counts["hits"]["redis"] + counts["skipped"] >= REQUESTS // 2
    assert counts["hits"]["redis"] >= 1
    await one.scoring.cache.shared.flush()
    assert valkey.client().dbsize() == REQUESTS // 2


async def test_down_at_the_start(routed, check, deployments):
    counts = await check(routed(f"redis://127.0.0.1:{free_port()}"))
    assert counts["errors"]["connection"] >= 3
    assert counts["hits"] == {}


async def test_killed_in_the_middle_and_back_hits_return_by_themselves(routed, check, deployments, valkey):
    one = routed(valkey.url)

    async def trouble():
        while len(one.ms) < 300:
            await asyncio.sleep(0.005)
        valkey.kill()
        while len(one.ms) < 700:
            await asyncio.sleep(0.005)
        valkey.start()

    await asyncio.gather(check(one), trouble())
    await hits_return(one, deployments)


async def hits_return(one, deployments, seconds=12):
    end = time.monotonic() + seconds
    hits = one.counts["hits"].get("redis", 0)
    for i in itertools.count():
        await one.request(f"canary after the trouble {i % 2}", deployments)
        await asyncio.sleep(0.02)
        if one.counts["hits"].get("redis", 0) > hits + 2:
            break
        assert time.monotonic() < end, one.counts
    assert one.counts["breakers"]["reads"] == "closed"
    assert one.failed == 0


async def test_paused_and_back(routed, check, deployments, valkey):
    one = routed(valkey.url)
    await one.request("canary before", deployments)
    one.ms.clear()
    valkey.pause()
    counts = await check(one)
    assert counts["errors"]["timeout"] >= 3
    valkey.resume()
    await hits_return(one, deployments)


@pytest.mark.parametrize("mode", ["slow", "half", "reset"])
async def test_slow_half_an_answer_and_reset(routed, check, deployments, proxy, mode):
    one = routed(f"redis://127.0.0.1:{proxy.port}")
    await one.request("canary before", deployments)
    one.ms.clear()
    proxy.mode = mode
    counts = await check(one)
    assert sum(counts["errors"].values()) >= 3
    assert counts["hits"].get("redis", 0) == 0
    proxy.mode = "pass"
    await hits_return(one, deployments)


def other_order(key):
    body = struct.pack(">2sBBHf", b"P2", VERSION, 1, len(MODELS), 0.5) + np.ones(len(MODELS), ">f4").tobytes()
    return body + struct.pack(">I", 1)


def old_schema(key):
    value = bytearray(encode(key, Entry(np.ones(len(MODELS), np.float32), 0.5)))
    value[2] = VERSION - 1
    return bytes(value)


def of_another_prompt(key):
    return encode(key + "x", Entry(np.ones(len(MODELS), np.float32), 0.5))


def of_fewer_models(key):
    return encode(key, Entry(np.ones(3, np.float32), 0.5))


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (lambda _: b"\x00garbage\xff" * 9, "format"),
        (old_schema, "version"),
        (other_order, "length"),
        (of_another_prompt, "checksum"),
        (of_fewer_models, "models"),
    ],
)
async def test_values_that_can_not_be_read_are_misses_and_written_anew(routed, check, deployments, valkey, value, why):
    valkey.client().mset({key: value(key) for key in keys()})
    one = routed(valkey.url)
    counts = await check(one)
    assert set(counts["unreadable"]) == {why}
    await one.scoring.cache.shared.flush()
    fresh = routed(valkey.url, deadline_ms=5000)
    await fresh.request(texts()[0], deployments)
    assert fresh.counts["hits"] == {"redis": 1}


async def test_a_key_of_another_type_is_a_miss(routed, check, deployments, valkey):
    client = valkey.client()
    for key in keys():
        client.lpush(key, "x")
    counts = await check(routed(valkey.url))
    assert counts["misses"] >= 1
    assert set(counts["errors"]) <= {"timeout", "busy"}


async def test_a_full_server_is_still_read(routed, check, deployments, valkey):
    before = routed(valkey.url)
    await before.request(texts()[0], deployments)
    await before.scoring.cache.shared.flush()
    valkey.client().config_set("maxmemory", "1mb")
    valkey.client().config_set("maxmemory-policy", "noeviction")
    one = routed(valkey.url)
    counts = await check(one)
    assert counts["errors"]["memory"] >= 3
    assert counts["lost"] >= 400
    assert counts["hits"]["redis"] >= 1
    assert counts["breakers"]["writes"] != "closed"


async def test_a_read_only_replica_is_still_read(routed, check, deployments, valkey, tmp_path):
    before = routed(valkey.url)
    await ask([before], deployments, texts()[:100])
    await before.scoring.cache.shared.flush()
    (tmp_path / "replica").mkdir()
    with server(tmp_path / "replica", "--repl-diskless-sync-delay", "0") as replica:
        replica.client().replicaof("127.0.0.1", valkey.port)
        until(lambda: replica.client().dbsize() == 100)
        counts = await check(routed(replica.url))
        assert counts["errors"]["readonly"] >= 3
        assert counts["hits"]["redis"] >= 1
        assert counts["breakers"]["writes"] != "closed"


async def test_a_wrong_password(routed, check, deployments, tmp_path, caplog):
    with server(tmp_path, "--requirepass", "right") as one_server:
        url = f"redis://:wrong-password@127.0.0.1:{one_server.port}"
        counts = await check(routed(url))
        assert counts["errors"]["auth"] >= 3
        assert counts["hits"] == {}
        assert sum("check the user name and password" in record.message for record in caplog.records) >= 1
        assert "wrong-password" not in caplog.text


async def test_a_cluster_whose_slots_move_and_one_that_was_not_named_as_such(routed, check, deployments, tmp_path):
    with cluster(tmp_path) as nodes:
        one = routed("redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in nodes))
        await one.request("canary before", deployments)
        one.ms.clear()
        move_half(nodes[0], nodes[1])
        counts = await check(one)
        assert counts["hits"]["redis"] >= 1
        await one.scoring.cache.shared.flush()
        assert sum(node.client().dbsize() for node in nodes) >= 400
        moved = await check(routed(nodes[1].url))
        assert moved["errors"]["moved"] >= 3


def move_half(source, target):
    """Gives half of a node's slots away, so that clients with the old map are redirected."""
    identity = target.client().execute_command("CLUSTER", "MYID").decode()
    for client in (target.client(), source.client()):
        client.flushall()
        pipe = client.pipeline(transaction=False)
        for slot in range(2700):
            pipe.execute_command("CLUSTER", "SETSLOT", slot, "NODE", identity)
        pipe.execute()
