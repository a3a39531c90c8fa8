"""The parts of the cache: memory's bounds, the breaker, settings, plain methods, LiteLLM's own client."""

import asyncio
import json
import logging
import subprocess
import sys
import threading
import tracemalloc

import numpy as np
import pytest
from pydantic import ValidationError
from typer.testing import CliRunner

from litellm_router.settings import RouterCacheSettings
from p2l_plugins import P2L
from p2l_plugins.cache.address import Clients
from p2l_plugins.cache.breaker import Breaker
from p2l_plugins.cache.entry import Entry, cache_key
from p2l_plugins.cache.memory import ENTRY_BYTES, MemoryCache
from p2l_plugins.cache.redis import RedisCache
from p2l_plugins.cache.settings import CacheSettings, derive_secret
from p2l_plugins.cache.tiered import TieredCache
from p2l_plugins.cli import app
from p2l_plugins.errors import ConfigError, P2LError
from p2l_plugins.scoring.cached import BlockingCache, CachedScorer, cached


def test_memory_is_bounded_by_bytes(entry, key):
    cache = MemoryCache(max_bytes=100 * (ENTRY_BYTES + 12))
    cache.set_many({key(str(i)): entry(float(i)) for i in range(250)})
    assert len(cache) == 100
    assert cache.get_many([key("149"), key("150")])[0] is None
    assert cache.get_many([key("150")])[0].coefs[0] == 150
    assert cache.bytes <= cache.max_bytes
    cache.set_many({key("150"): entry(models=130)})
    assert cache.bytes <= cache.max_bytes
    cache.set_many({key("large"): entry(models=40_000)})
    assert (len(cache), cache.bytes) == (0, 0)


def test_the_size_of_an_entry_is_about_what_it_takes():
    cache = MemoryCache()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for i in range(2000):
        cache.set_many({cache_key("f" * 32, (str(i),)): Entry(np.zeros(130, np.float32), 0.1 * i)})
    taken = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert cache.bytes == pytest.approx(taken, rel=0.15)


@pytest.fixture
def clock():
    class Clock:
        now = 0.0

        def __call__(self):
            return self.now

    return Clock()


def test_a_breaker_opens_after_failures_in_a_row_and_a_probe_closes_it(clock, caplog):
    caplog.set_level(logging.INFO)
    breaker = Breaker("Redis", clock=clock)
    for _ in range(5):
        breaker.failed("timeout")
        breaker.failed("timeout")
        breaker.succeeded()
    assert breaker.state == "closed"
    for _ in range(3):
        breaker.failed("auth")
    assert (breaker.state, breaker.allows()) == ("open", False)
    breaker.succeeded()  # a late answer does not close it
    assert breaker.state == "open"
    clock.now = 0.5
    assert [breaker.allows() for _ in range(3)] == [True, False, False]
    assert breaker.state == "half-open"
    breaker.succeeded()
    assert [breaker.allows() for _ in range(3)] == [True, True, True]
    assert [r.message for r in caplog.records] == [
        "p2l cache: Redis is paused after 3 failures in a row (auth); check the user name and password; "
        "requests go on without it",
        "p2l cache: Redis works again",
    ]


def test_a_stall_counts_once_however_many_it_struck(clock):
    breaker = Breaker("Redis", clock=clock)
    for clock.now in (1.0, 2.0):
        for _ in range(20):
            breaker.failed("timeout", 0.015)
        assert breaker.state == "closed"
    clock.now = 3.0
    breaker.failed("timeout", 0.015)
    assert breaker.state == "open"


def test_each_failed_probe_doubles_the_pause_up_to_a_bound(clock):
    breaker = Breaker("Redis", clock=clock)
    for _ in range(3):
        breaker.failed("timeout")
    pauses = []
    for _ in range(6):
        start = clock.now
        while not breaker.allows():
            clock.now += 0.25
        pauses.append(clock.now - start)
        breaker.failed("timeout")
    assert pauses == [0.5, 1, 2, 4, 5, 5]


def test_a_probe_that_never_reports_is_followed_by_another(clock):
    breaker = Breaker("Redis", clock=clock)
    for _ in range(3):
        breaker.failed("timeout")
    clock.now = 0.5
    assert breaker.allows()
    clock.now = 1.0
    assert breaker.allows()


def test_a_breaker_that_flips_is_quiet(clock, caplog):
    caplog.set_level(logging.INFO)
    breaker = Breaker("Redis", clock=clock)
    for _ in range(50):
        for _ in range(3):
            breaker.failed("timeout")
        clock.now += 0.6
        assert breaker.allows()
        breaker.succeeded()
    assert len(caplog.records) == 2


async def test_memory_answers_before_the_shared_store_and_keeps_what_that_gave(redis_cache, valkey, key, entry):
    shared = redis_cache(valkey.url)
    await shared.set_many({key("a"): entry(1.0)})
    cache = TieredCache(MemoryCache(), shared)
    for _ in range(3):
        assert (await cache.get_many([key("a"), key("none")]))[0].coefs[0] == 1.0
    assert cache.snapshot()["hits"] == {"memory": 2, "redis": 1}
    assert cache.snapshot()["misses"] == 3


async def test_entries_from_a_thread_are_in_memory_at_once_and_shared_soon(redis_cache, valkey, key, entry):
    valkey.client().flushall()
    cache = TieredCache(MemoryCache(), redis_cache(valkey.url))
    loop = asyncio.get_running_loop()
    thread = threading.Thread(target=cache.set_soon, args=({key("a"): entry()}, loop))
    thread.start()
    thread.join()
    assert cache.in_memory([key("a")])[0] is not None
    await asyncio.sleep(0)
    await cache.shared.flush()
    assert valkey.client().exists(key("a"))


def test_a_loop_that_closed_meanwhile_loses_the_shared_write_only(key, entry):
    loop = asyncio.new_event_loop()
    loop.close()
    cache = TieredCache(MemoryCache(), RedisCache(lambda: None))
    cache.set_soon({key("a"): entry()}, loop)
    assert cache.in_memory([key("a")])[0] is not None
    assert cache.stats["lost"] == 1


def test_a_cached_scorer_gives_what_the_bundle_gives_and_scores_each_prompt_once(valkey):
    valkey.client().flushall()
    p2l = P2L.load()
    prompts = [("Prove that 2 + 2 = 4",), ("hi 𓀀", "in it"), ("long " * 5000,), ("hi 𓀀", "in it")]
    expected = p2l.score_turns(prompts)
    for hits in (0, 4):
        with BlockingCache(RedisCache(Clients(valkey.url), deadline_s=5)) as cache:
            scorer = CachedScorer(p2l, cache, secret=b"s")
            scores = scorer.score_turns(prompts)
            assert scorer.hits == hits
        np.testing.assert_array_equal(scores.coefs, expected.coefs)
        np.testing.assert_array_equal(scores.raw_eta, expected.raw_eta)
        np.testing.assert_array_equal(scores.truncated, [False, False, True, False])
        np.testing.assert_array_equal(scores.unknown, [0, 0.25, 0, 0.25])
        assert scores.models == expected.models
    assert valkey.client().dbsize() == 3


def test_the_environment_names_the_cache_of_commands_and_tasks(valkey, monkeypatch):
    valkey.client().flushall()
    p2l = P2L.load()
    monkeypatch.delenv("P2L_CACHE_URL", raising=False)
    with cached(p2l) as scorer:
        assert scorer is p2l
    monkeypatch.setenv("P2L_CACHE_URL", valkey.url)
    for hits in (0, 1):
        with cached(p2l) as scorer:
            scorer.score_turns([("hi",)])
            assert scorer.hits == hits


async def test_plain_methods_work_beside_a_running_event_loop(key, entry):
    with BlockingCache(TieredCache(MemoryCache())) as cache:
        cache.set_many({key("a"): entry(2.0)})
        assert cache.get_many([key("a")])[0].coefs[0] == 2.0


def test_settings_build_memory_or_what_the_url_says_or_the_fallback(monkeypatch):
    assert CacheSettings().build().shared is None
    assert CacheSettings().build(lambda: None).shared is not None
    assert CacheSettings(shared=False, url="redis://h").build(lambda: None).shared is None
    assert isinstance(CacheSettings(url="redis://h").build(lambda: None).shared.client, Clients)
    monkeypatch.setenv("CACHE_URL", "redis://elsewhere")
    assert isinstance(RouterCacheSettings(url="os.environ/CACHE_URL").build().shared.client, Clients)
    monkeypatch.delenv("CACHE_URL")
    with pytest.raises(ConfigError, match="CACHE_URL is not set"):
        RouterCacheSettings(url="os.environ/CACHE_URL").build()


def test_settings_keep_their_secrets(monkeypatch):
    monkeypatch.setenv("CACHE_SECRET", "x" * 500)
    settings = RouterCacheSettings(url="redis://me:hidden@h", secret="os.environ/CACHE_SECRET")
    assert len(settings.key_secret()) == 32
    assert settings.key_secret() == derive_secret("x" * 500) != CacheSettings(secret="y").key_secret()
    assert CacheSettings().key_secret() == b""
    assert "hidden" not in f"{settings!r} {settings} {settings.model_dump()}"


@pytest.mark.parametrize(
    "bad", [{"namespace": "a:b"}, {"namespace": "{a}"}, {"namespace": "a*"}, {"deadline": 1}, {"secret": None}]
)
def test_wrong_settings_are_refused(bad):
    with pytest.raises(ValidationError):
        RouterCacheSettings(**bad)


def test_the_memory_cache_needs_no_redis():
    code = "import sys; sys.modules['redis'] = None; from p2l_plugins.cache.settings import CacheSettings as S; "
    code += "S().build()\ntry: S(url='redis://h').build().shared.client; import asyncio; "
    code += "from p2l_plugins.cache.address import connect; connect('redis://h')\nexcept Exception as e: print(e)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'p2l-plugins[cache]'" in out.stdout


def p2l(*arguments, status=0, **environment):
    """What the command prints, or its error; in this process, since each start of Python takes a second."""
    result = CliRunner().invoke(app, ["cache", *map(str, arguments)], env=environment)
    if status == 0:
        assert result.exception is None, result.output
        return result.stdout
    assert isinstance(result.exception, ConfigError if status == 2 else P2LError)
    return str(result.exception)


def test_warm_stats_and_purge(valkey, tmp_path):
    admin = valkey.client()
    admin.flushall()
    ours = cache_key("0" * 32, ("x",))
    others = dict.fromkeys(
        [
            *("p2l:pace:1:x", "p2l", "other:1:f:x", "p2lx:1:f:x", "p2l:2:someapp:counter", "p2l:1:f:x"),
            *(ours + ":lease", ours + "0", ours[:-1], ours.upper(), "other" + ours, ours.replace("p2l:1", "p2l:x")),
            *("p2l:1:" + "0" * 32 + ":counter", "p2l:1:" + "0" * 32, "p2l:user:1:" + "0" * 32),
        ],
        "1",
    )
    admin.mset(others)
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('"canary words of a prompt"\n{"prompt": ["hi", "there"]}\n"canary words of a prompt"\n')
    fingerprint = P2L.load().fingerprint
    where = {"P2L_CACHE_URL": valkey.url}
    first = json.loads(p2l("warm", prompts, "--json", **where))
    assert first == {"prompts": 3, "hits": 0, "written": 2, "fingerprint": fingerprint}
    assert json.loads(p2l("warm", prompts, "--json", "--url", valkey.url))["hits"] == 3
    assert json.loads(p2l("warm", prompts, "--json", P2L_CACHE_SECRET="s", **where))["written"] == 2
    for i in range(1200):
        admin.set(cache_key("0" * 32, (str(i),)), b"old")
    found = json.loads(p2l("stats", "--json", **where))
    assert [(row["fingerprint"], row["entries"]) for row in found["bundles"]] == sorted(
        [("0" * 32, 1200), (fingerprint, 4)]
    )
    assert found["server"]["maxmemory_policy"] == "noeviction"
    assert fingerprint in p2l("stats", **where)
    assert json.loads(p2l("purge", "--fingerprint", "0" * 32, "--dry-run", "--json", **where))["removed"] == 0
    gone = json.loads(p2l("purge", "--fingerprint", "0" * 32, "--json", **where))
    assert gone == {"removed": 1200, "found": 1200, "by_fingerprint": {"0" * 32: 1200}}
    assert p2l("purge", "--all", "--dry-run", **where) == "4 keys found\n"
    assert p2l("purge", "--all", **where) == "4 keys removed\n"
    assert set(admin.keys()) == {key.encode() for key in others}
    assert not {"flushdb", "flushall", "keys"} & {
        name.removeprefix("cmdstat_") for name in admin.info("commandstats")
    } - {"flushall", "keys"}  # these two are the test's own


def test_purge_says_what_goes_before_it_removes_anything(valkey):
    """Here by a user who may look, but not remove."""
    admin = valkey.client()
    admin.flushall()
    keys = [cache_key(one * 32, ("x",)) for one in "01"]
    admin.mset(dict.fromkeys(keys, b"x"))
    admin.execute_command("ACL", "SETUSER", "looks", "on", ">word", "~p2l:*", "-@all", "+scan", "+ping", "+client")
    address = f"redis://looks:word@127.0.0.1:{valkey.port}"
    result = CliRunner().invoke(app, ["cache", "purge", "--all", "--url", address])
    admin.execute_command("ACL", "DELUSER", "looks")
    assert result.exception is not None
    zeros, ones = "0" * 32, "1" * 32
    assert f"p2l: fingerprint {zeros}: 1 keys to remove\np2l: fingerprint {ones}: 1 keys to remove\n" in result.stderr
    assert admin.dbsize() == 2


def test_purge_on_a_cluster(nodes, cluster_url):
    for one in nodes:
        one.client().flushall()
    keys = {cache_key("0" * 32, (str(i),)): b"x" for i in range(300)}

    async def write():
        clients = Clients(cluster_url)
        pipe = clients().pipeline()
        for key, value in keys.items():
            pipe.set(key, value)
        await pipe.execute()
        await clients.aclose()

    asyncio.run(write())
    assert json.loads(p2l("stats", "--json", "--url", cluster_url))["entries"] == 300
    assert json.loads(p2l("purge", "--fingerprint", "0" * 32, "--json", "--url", cluster_url))["removed"] == 300
    assert sum(one.client().dbsize() for one in nodes) == 0


def test_commands_say_what_is_wrong_without_showing_credentials(valkey, tmp_path):
    assert "P2L_CACHE_URL" in p2l("stats", status=2, P2L_CACHE_URL="")
    assert "--fingerprint" in p2l("purge", "--url", valkey.url, status=2)
    assert "32 hex digits" in p2l("purge", "--fingerprint", "*", "--url", valkey.url, status=2)
    (tmp_path / "p.txt").write_text("hi\n")
    bad = f"redis://me:hidden@127.0.0.1:{valkey.port}"
    for arguments in (["stats"], ["purge", "--all"], ["warm", tmp_path / "p.txt"]):
        message = p2l(*arguments, "--url", bad, status=1)
        assert "auth" in message
        assert f"127.0.0.1:{valkey.port}" in message
        assert "hidden" not in message
