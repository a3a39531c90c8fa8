"""One Redis under several routers and processes: one scoring, no cross hits, and no text of a prompt anywhere."""

import asyncio
import base64
import json
import socket
import subprocess
import sys
import threading

from helpers.trouble import REQUESTS, CountingScorer, ask

CANARY = "canary prompt"


async def test_a_thousand_identical_misses_at_once_are_one_scoring(routed, deployments, valkey):
    one = routed(valkey.url, entries=10, scorer=CountingScorer(seconds=0.2))
    await asyncio.gather(*(one.request(f"{CANARY} of all", deployments) for _ in range(REQUESTS)))
    assert one.scorer.prompts == [(f"{CANARY} of all",)]
    assert one.failed == 0
    await one.scoring.cache.shared.flush()
    assert one.counts["written"] == 1


async def test_half_of_the_callers_leave_and_the_others_have_their_scores(routed, deployments, valkey):
    one = routed(valkey.url, entries=10, scorer=CountingScorer(seconds=0.2))
    callers = [asyncio.create_task(one.request(f"{CANARY} of all", deployments)) for _ in range(100)]
    await asyncio.sleep(0.05)
    for caller in callers[::2]:
        caller.cancel()
    await asyncio.gather(*callers, return_exceptions=True)
    assert len(one.ms) == 50
    assert one.failed == 0
    assert len(one.scorer.prompts) == 1


async def test_what_one_router_scored_the_next_one_finds(routed, deployments, valkey):
    texts = [f"{CANARY} {i}" for i in range(50)]
    first, second = routed(valkey.url), routed(valkey.url)
    await ask([first], deployments, texts)
    await first.scoring.cache.shared.flush()
    await ask([second], deployments, texts)
    assert len(first.scorer.prompts) == 50
    assert len(second.scorer.prompts) + second.counts["hits"]["redis"] == 50
    assert second.counts["hits"]["redis"] >= 1


async def test_with_leases_the_second_router_waits_for_the_firsts_scoring(routed, deployments, valkey):
    options = {"lease_ms": 3000.0, "deadline_ms": 1000.0, "entries": 10}
    routers = [routed(valkey.url, scorer=CountingScorer(seconds=0.3), **options) for _ in range(2)]
    await asyncio.gather(*(one.request(f"{CANARY} of both", deployments) for one in routers for _ in range(20)))
    assert sum(len(one.scorer.prompts) for one in routers) == 1
    assert [one.failed for one in routers] == [0, 0]


async def test_another_secret_shares_nothing(routed, deployments, valkey):
    texts = [f"{CANARY} {i}" for i in range(20)]
    for secret in ("one tenant", "another"):
        tenant = routed(valkey.url, secret=secret)
        await ask([tenant], deployments, texts)
        await tenant.scoring.cache.shared.flush()
        assert tenant.counts["hits"] == {}
    assert valkey.client().dbsize() == 40


#: A service with a cache; its bundle's scores hold the bundle's number, so that another one's would be seen.
PROCESS = """
import asyncio, json, sys
import numpy as np
from p2l_plugins.cache.entry import Entry, cache_key
from p2l_plugins.cache.settings import CacheSettings

url, bundle = sys.argv[1], int(sys.argv[2])

async def main():
    cache = CacheSettings(url=url, entries=1, deadline_ms=5000).build()
    keys = [cache_key(f"{bundle:032x}", (f"canary prompt number {i}",)) for i in range(500)]
    wrong = 0
    for turn in range(4):
        for i in range(0, 500, 10):
            found = await cache.get_many(keys[i : i + 10], models=130)
            wrong += sum(entry is not None and entry.coefs[0] != bundle for entry in found)
            coefs = np.full(130, bundle, np.float32)
            missing = [key for key, entry in zip(keys[i : i + 10], found) if entry is None]
            await cache.set_many({key: Entry(coefs, 0.5) for key in missing})
    print(json.dumps({"wrong": int(wrong), "hits": cache.snapshot()["hits"], "errors": cache.snapshot()["errors"]}))

asyncio.run(main())
"""


def test_two_processes_with_two_bundles_never_see_each_others_scores(valkey):
    command = [sys.executable, "-c", PROCESS, valkey.url]
    processes = [subprocess.Popen([*command, bundle], stdout=subprocess.PIPE, text=True) for bundle in "12"]
    for process in processes:
        out, _ = process.communicate(timeout=60)
        result = json.loads(out)
        assert result["wrong"] == 0
        assert result["errors"] == {}
        assert sum(result["hits"].values()) == 1500
    assert valkey.client().dbsize() == 1000


async def test_no_text_of_a_prompt_reaches_the_server(routed, deployments, valkey, caplog):
    caplog.set_level("DEBUG", logger="p2l_plugins")
    seen = bytearray()
    with socket.create_connection(("127.0.0.1", valkey.port), 5) as monitor:
        monitor.sendall(b"MONITOR\r\n")
        reading = threading.Thread(target=_read, args=(monitor, seen))
        reading.start()
        one = routed(valkey.url, lease_ms=100.0, deadline_ms=1000.0)
        await ask([one], deployments, [f"{CANARY} kumquat {i % 50}" for i in range(100)])
        await one.scoring.cache.shared.flush()
        await asyncio.sleep(0.2)
        monitor.shutdown(socket.SHUT_RDWR)
        reading.join(5)
    client = valkey.client()
    stored = list(client.scan_iter())
    assert len(stored) >= 50
    for key in stored:
        seen += key + (client.get(key) or b"")
    assert b'"SET"' in seen
    forms = [CANARY.encode(), CANARY.encode("utf-16-le"), CANARY.encode().hex().encode(), b"canary", b"kumquat"]
    forms += [base64.b64encode((" " * i + CANARY).encode())[4:-4] for i in range(3)]
    assert not [form for form in forms if form in seen]
    assert CANARY not in caplog.text


def _read(connection, into):
    while data := connection.recv(65536):
        into += data
