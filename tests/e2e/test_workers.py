"""A real LiteLLM proxy of two processes, each with P2L."""

from __future__ import annotations

import os

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # before the first import of litellm: no network

import httpx
import pytest
import yaml
from demo import ask, running_proxy
from helpers.proxies import MODELS, PROMPT, config_of, deployment, ranking_by_bundle
from helpers.serving import until


def asked(proxy):
    with httpx.Client(timeout=30) as client:
        return ask(client, proxy, "auto", PROMPT)


@pytest.mark.timeout(400)
def test_two_workers_come_up_and_route_where_their_health_check_waits_for_the_imports(tmp_path):
    config = tmp_path / "config.yaml"
    groups = [deployment("auto", model) for model in MODELS]
    config.write_text(yaml.safe_dump(config_of(["litellm_router.p2l_router"], groups, timeout_ms=5000)))
    workers = ["--num_workers", "2", "--timeout_worker_healthcheck", "120"]
    with running_proxy(config, more=workers, start_s=270) as proxy:
        until(lambda: proxy.log.read_text(errors="replace").count("p2l routes on LiteLLM") == 2, 60)
        # each request on a connection of its own, so that both processes are asked
        answers = [asked(proxy) for _ in range(10)]
        log = proxy.log.read_text(errors="replace")
    assert [answer.status_code for answer in answers] == [200] * 10
    assert {answer.headers["x-p2l-ranking"] for answer in answers} == {",".join(ranking_by_bundle(PROMPT)[0])}
    assert "died" not in log
