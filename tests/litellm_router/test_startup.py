"""What a proxy says at its start, what /metrics shows, and what ends when settings change or the process does."""

import asyncio
import logging
import subprocess
import sys
import threading

import litellm
import pytest
from helpers.servers import server
from prometheus_client import REGISTRY

from litellm_router import P2LRouter, P2LSettings, scoring, startup
from litellm_router.metrics import CacheCounters
from litellm_router.startup import deployments_of, warm_up
from p2l_plugins.errors import P2LError


def metric(name, **labels):
    return REGISTRY.get_sample_value(name, labels) or 0.0


@pytest.fixture
def group(deployment):
    return [deployment("x", "alpha"), deployment("y", "beta"), deployment("z", "gamma")]


def said(caplog):
    return [record.getMessage() for record in caplog.records if record.name == "litellm_router"]


def started(tiny, deployments, **settings):
    router = P2LRouter(P2LSettings(timeout_ms=5000, **settings), lambda _: tiny)
    warm_up(router, deployments)
    ended()
    return router


def ended():
    """Waits for the threads that load, and check afterwards."""
    for thread in threading.enumerate():
        if thread.name == "p2l-load":
            thread.join(20)


async def test_what_is_wrong_with_the_deployments_is_said_at_the_start_and_once(tiny, deployment, group, caplog):
    group.append(deployment("typo", "delta"))
    group.append(deployment("negative", "alpha", input_cost_per_token=-1))
    group.append(deployment("free", "beta", price=None))
    before = metric("p2l_config_problems_total")
    router = started(tiny, group, rule="cap", budget=0.1, groups={"nowhere": {"rule": "best"}})
    expected = [
        "'openai/typo' of group 'auto': model_info.p2l_model = 'delta' is not in the bundle; valid: alpha, beta, gamma",
        "'openai/negative' of group 'auto': litellm_params.input_cost_per_token = -1 is not a price; valid: USD per",
        "'openai/negative' of group 'auto' has no known price, so the limit of p2l_settings.rule",
        "'openai/free' of group 'auto' has no known price",
        "p2l_settings.groups.nowhere is not a model group; valid: auto",
    ]
    messages = said(caplog)
    assert len(messages) == len(expected)
    for part in expected:
        assert sum(part in message for message in messages) == 1, part
    assert metric("p2l_config_problems_total") == before + len(expected)
    request = {}
    await router.async_filter_deployments("auto", group, [{"role": "user", "content": "math"}], request)
    assert request["metadata"]["spend_logs_metadata"]["p2l"]["model"] == "gamma"  # the only one with a price
    assert said(caplog) == messages


async def test_a_group_that_comes_later_is_checked_at_its_first_request(tiny, deployment, group, caplog):
    router = started(tiny, group, rule="cap", budget=0.1)
    assert said(caplog) == []
    later = [*group, deployment("free", "beta", price=None)]
    for _ in range(2):
        await router.async_filter_deployments("later", later, [{"role": "user", "content": "math"}], {})
    assert len(said(caplog)) == 1
    assert "'openai/free' of group 'later' has no known price" in said(caplog)[0]


def test_a_bundle_that_does_not_load_and_a_wrong_key_are_said_at_the_start(tmp_path, monkeypatch, caplog):
    broken = P2LRouter(P2LSettings(bundle=str(tmp_path)))
    warm_up(broken, [])
    ended()
    assert f"p2l_settings.bundle = '{tmp_path}'" in said(caplog)[0]
    assert "p2l.json is missing" in said(caplog)[0]
    monkeypatch.setattr(litellm, "p2l_settings", {"budgt": 1}, raising=False)
    warm_up(P2LRouter(), [])
    assert "p2l_settings.budgt = 1 is not a setting; valid: bundle" in said(caplog)[1]


async def test_deployments_are_checked_as_soon_as_a_bundle_loads_that_failed_at_first(
    tiny, deployment, group, caplog, monkeypatch
):
    monkeypatch.setattr(scoring, "RELOAD_AFTER_S", 0.0)
    results = iter([P2LError("the hub is away"), tiny])

    def load(_):
        if isinstance(found := next(results), Exception):
            raise found
        return found

    router = P2LRouter(P2LSettings(timeout_ms=5000), load)
    warm_up(router, [*group, deployment("typo", "delta")])
    ended()
    assert len(said(caplog)) == 1
    assert "the hub is away" in said(caplog)[0]
    for _ in range(2):  # the first of them loads it
        await router.async_filter_deployments("auto", group, [{"role": "user", "content": "math"}], {})
        ended()
    assert sum("model_info.p2l_model = 'delta' is not in the bundle" in line for line in said(caplog)) == 1


def test_the_deployments_of_a_litellm_router_are_found(group):
    assert {one["model_info"]["p2l_model"] for one in deployments_of(litellm.Router(model_list=group))} == {
        "alpha",
        "beta",
        "gamma",
    }
    assert deployments_of(object()) == []


async def test_the_caches_counters_are_on_metrics(tiny, group, tmp_path):
    with server(tmp_path) as valkey:
        router = P2LRouter(P2LSettings(timeout_ms=5000, cache={"url": valkey.url, "deadline_ms": 5000}), lambda _: tiny)
        router._cache_counters = CacheCounters(clock=iter(range(0, 1000, 2)).__next__)
        names = [("p2l_cache_hits_total", {"tier": "memory"}), ("p2l_cache_misses_total", {})]
        names += [("p2l_cache_writes_total", {"result": "written"}), ("p2l_cache_round_trip_seconds_total", {})]
        before = {name: metric(name, **labels) for name, labels in names}
        for text in ("math", "math", "math"):
            await router.async_filter_deployments("auto", group, [{"role": "user", "content": text}], {})
            await router.state().scoring.cache.shared.flush()
        router._cache_counters.carry(router.state().scoring.cache)
        gained = {name: metric(name, **labels) - before[name] for name, labels in names}
        assert gained["p2l_cache_hits_total"] == 2
        assert gained["p2l_cache_misses_total"] == 1
        assert gained["p2l_cache_writes_total"] == 1
        assert gained["p2l_cache_round_trip_seconds_total"] > 0
        assert metric("p2l_cache_breaker", direction="reads") == 0
        valkey.kill()
        for i in range(8):
            await router.async_filter_deployments("auto", group, [{"role": "user", "content": f"code {i}"}], {})
        assert metric("p2l_cache_breaker", direction="reads") == 2
        assert metric("p2l_cache_errors_total", kind="connection") >= 3
        await router.state().scoring.cache.aclose()


async def test_other_settings_close_the_connections_of_those_before(tiny, group, monkeypatch, tmp_path):
    with server(tmp_path) as valkey:
        client = valkey.client()

        def connections():
            return len(client.client_list()) - 1

        router = P2LRouter(load=lambda _: tiny)
        for i in range(3):
            raw = {"timeout_ms": 5000, "rule": "paced", "budget": 0.1, "cache": {"url": valkey.url, "ttl_s": 60 + i}}
            monkeypatch.setattr(litellm, "p2l_settings", raw, raising=False)
            await router.async_filter_deployments("auto", group, [{"role": "user", "content": f"math {i}"}], {})
            await router.state().scoring.cache.shared.flush()
            await router.state().shared._task
        monkeypatch.setattr(litellm, "p2l_settings", {"timeout_ms": 4000, "cache": {"shared": False}})
        await router.async_filter_deployments("auto", group, [{"role": "user", "content": "math"}], {})
        for _ in range(100):
            if not connections():
                break
            await asyncio.sleep(0.05)
        assert connections() == 0


#: A process that ends while a bundle is being read, and one that ends while a download hangs.
ENDING = """
import sys, threading, time
import litellm_router.scoring as loading
from litellm_router.settings import P2LSettings

def slowly(*_, **__):
    reading.set()
    time.sleep({seconds})
    print("read", flush=True)
    return type("Read", (), {{"warm_up": lambda self: None}})()

reading = threading.Event()
setattr(*{target}, slowly)
threading.Thread(target=loading.load_scorer, args=(P2LSettings(),), daemon=True).start()
assert reading.wait(30)
"""


@pytest.mark.parametrize(
    ("target", "seconds", "waits"),
    [('(loading.P2L, "load")', 1, True), ('(loading, "find_bundle")', 60, False)],
    ids=["reading", "downloading"],
)
def test_the_end_of_the_process_waits_for_onnx_runtime_and_not_for_a_download(target, seconds, waits):
    code = ENDING.format(target=target, seconds=seconds)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == ("read\n" if waits else "")


@pytest.mark.parametrize(("version", "level"), [("1.110.7", "INFO"), ("2.0.0", "WARNING"), ("unknown", "WARNING")])
def test_the_start_names_litellm_and_warns_of_one_that_no_test_covers(monkeypatch, caplog, version, level):
    caplog.set_level(logging.INFO, "litellm_router")
    monkeypatch.setattr("litellm_router.startup.litellm_version", lambda: version)
    startup._name_litellm()
    (record,) = caplog.records
    assert record.levelname == level
    assert f"LiteLLM {version}" in record.getMessage()
