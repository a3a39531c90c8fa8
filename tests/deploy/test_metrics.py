"""The dashboard and the alerts ask for what a real proxy and a real scorer export; all misses are counted."""

from __future__ import annotations

import os

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # before the first import of litellm: no network

import json
import re
from pathlib import Path

import httpx
import pytest
import yaml
from demo import ask, warm_up
from helpers.proxies import running_proxy
from helpers.servers import free_port
from helpers.serving import served, until

promql = pytest.importorskip("promql_parser", reason="the queries are read by promql-parser")

DEPLOY = Path(__file__).resolve().parent.parent.parent / "deploy"
KEY = "a key of the scorer"

#: Labels that Prometheus itself adds.
ADDED = {"instance", "job"}


def selectors(query):
    """Name and labels of every metric that a query asks for; labels that it is grouped by count for all of them."""
    text = query.replace("$__rate_interval", "5m").replace("$__range", "1h").replace("$proxy", ".*")
    promql.parse(text)
    grouped = {label.strip() for labels in re.findall(r"\bby\s*\(([^)]*)\)", text) for label in labels.split(",")}
    for name, matchers in re.findall(r"\b(p2l_\w+)(?:\{([^}]*)\})?", text):
        yield name, set(re.findall(r"(\w+)\s*[=!]", matchers)), grouped - {"le"}


def queries():
    """Every query of the dashboard and the alerts, by where it stands."""
    board = json.loads((DEPLOY / "grafana.json").read_text())
    for panel in board["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"]
    for group in yaml.safe_load((DEPLOY / "alerts.yaml").read_text())["groups"]:
        for rule in group["rules"]:
            yield rule["alert"], rule["expr"]


@pytest.fixture(scope="module")
def proxy_and_scorer(tmp_path_factory):
    """The proxy by deploy/litellm.yaml, but for the addresses: of Redis, where nobody listens."""
    folder = tmp_path_factory.mktemp("deploy")
    environment = {
        "P2L_KEY": KEY,
        "P2L_CACHE_SECRET": "a secret",
        "P2L_CACHE_URL": f"redis://127.0.0.1:{free_port()}/0",
    }
    environment_of_scorer = {name: value for name, value in environment.items() if name == "P2L_KEY"}
    with served(folder, "starter", "--api-key-env", "P2L_KEY", environment=environment_of_scorer) as scorer:
        config = (DEPLOY / "litellm.yaml").read_text().replace("http://scorer:8080", scorer.url)
        config = config.replace("    rule: paced", "    timeout_ms: 5000\n    rule: paced")
        (folder / "config.yaml").write_text(config)
        with running_proxy(folder / "config.yaml", env=environment) as proxy, httpx.Client(timeout=60) as client:
            warm_up(client, proxy, "p2l-auto")
            for i in (*range(6), 0):
                ask(client, proxy, "p2l-auto", f"Prove that {2 * i} is even")
            yield proxy, scorer


@pytest.fixture(scope="module")
def exported(proxy_and_scorer):
    """Labels of each metric's samples, by name; None where it has no samples yet."""
    proxy, scorer = proxy_and_scorer
    text = httpx.get(f"{proxy.url}/metrics/", headers=proxy.headers, timeout=30).text
    text += httpx.get(f"{scorer.url}/metrics", headers={"Authorization": f"Bearer {KEY}"}, timeout=30).text
    found = dict.fromkeys(re.findall(r"^# TYPE (p2l_\w+) ", text, flags=re.M))
    found |= {f"{name}_bucket": None for name in re.findall(r"^# TYPE (p2l_\w+) histogram", text, flags=re.M)}
    for name, labels in re.findall(r"^(p2l_\w+)(?:\{(.*)\})? ", text, flags=re.M):
        found[name] = (found.get(name) or set()) | set(re.findall(r'(\w+)="', labels))
    return found


def test_the_queries_ask_for_what_is_exported(exported):
    asked = set()
    for where, query in queries():
        for name, matched, grouped in selectors(query):
            asked.add(name)
            assert name in exported, f"{where}: {name}"
            if exported[name] is not None:
                assert matched - ADDED <= exported[name], f"{where}: {name} has the labels {exported[name]}"
                assert grouped - ADDED <= exported[name], f"{where}: {name} has the labels {exported[name]}"
    assert len(asked) >= 20


def test_the_queries_are_read_as_they_are():
    query = 'sum by (le, why) (rate(p2l_a_bucket{instance=~"$proxy", b!~"c|d"}[$__rate_interval])) / sum(p2l_e)'
    assert list(selectors(query)) == [
        ("p2l_a_bucket", {"instance", "b"}, {"why"}),
        ("p2l_e", set(), {"why"}),
    ]


def test_metrics_need_the_key(proxy_and_scorer):
    proxy, scorer = proxy_and_scorer
    assert httpx.get(f"{proxy.url}/metrics/").status_code == 401
    assert httpx.get(f"{scorer.url}/metrics").status_code == 401


def test_every_miss_of_a_decided_request_is_counted_within_seconds_also_without_redis(proxy_and_scorer):
    proxy, _ = proxy_and_scorer

    def counted():
        text = httpx.get(f"{proxy.url}/metrics/", headers=proxy.headers, timeout=30).text
        by_request = float(re.search(r'^p2l_cache_requests_total\{result="miss"\} (\S+)', text, re.M)[1])
        return by_request, float(re.search(r"^p2l_cache_misses_total (\S+)", text, re.M)[1])

    assert counted()[0] >= 6
    until(lambda: counted()[1] >= counted()[0], 10)
    by_request, by_lookup = counted()
    assert by_lookup == by_request  # no request was left to LiteLLM, after the scorer was asked what it has


def test_a_budget_is_compared_with_what_is_expected(exported):
    assert exported["p2l_budget_usd_total"] == {"group", "what"}
