"""Shared budgets with the rights that docs/cache.md names, on a server and a cluster; what a refusal is called."""

import logging
import re
from pathlib import Path

import numpy as np
import pytest
from helpers.servers import cluster, server

from litellm_router.settings import P2LSettings
from litellm_router.shared import SharedTraffic
from litellm_router.traffic import Traffic
from p2l_plugins.cache.address import Clients

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "cache.md").read_text()
SERVICE = re.findall(r"^ACL SETUSER (p2l-service .*)$", PAGE, re.M)[0]
CLUSTER_RIGHTS = " ".join(re.findall(r"On a cluster both need `(.*)` as well", PAGE))

VALUES, COSTS = np.array([0.2, 0.9]), np.array([0.2e-3, 6e-3])


def busy():
    """What a proxy has to hand over: a move of λ and the length of an answer."""
    traffic = Traffic(P2LSettings(rule="paced", budget=1e-3))
    pacer = traffic.pacer("auto", traffic.rule_of("auto"), VALUES, COSTS)
    traffic.decided(None, pacer, 6e-3)
    traffic.answered(None, "m", 100, None)
    return traffic, pacer


@pytest.fixture(scope="module")
def valkey(tmp_path_factory):
    with server(tmp_path_factory.mktemp("rights")) as one:
        yield one


@pytest.fixture
async def shared():
    """Gives what shares by an address, and closes it."""
    made = []

    def make(url):
        made.append(SharedTraffic(Clients(url)))
        return made[-1]

    yield make
    for one in made:
        await one.aclose()


def as_service(valkey, *rights):
    valkey.client().flushall()
    valkey.client().execute_command("ACL", "SETUSER", "p2l-service", "reset", "on", *SERVICE.split()[2:], *rights)
    return f"redis://p2l-service:PASSWORD@127.0.0.1:{valkey.port}/0"


async def handed_over(shared, url):
    """Two proxies exchange; the second has what the first learnt."""
    (one, pacer), (two, other) = busy(), busy()
    for traffic in (one, two, one):
        exchange = shared(url)
        await exchange.exchange(traffic)
        assert exchange.errors == 0
    assert pacer.multiplier == pytest.approx(other.multiplier)
    assert pacer.multiplier > 0
    assert one.lengths.expected("m") == pytest.approx(two.lengths.expected("m")) == pytest.approx(500 - 400 * 2 / 22)


async def test_the_documented_rights_are_enough(valkey, shared, caplog):
    await handed_over(shared, as_service(valkey))
    assert caplog.messages == []
    assert {key.split(b":")[1] for key in valkey.client().keys("p2l:*")} == {b"pace", b"answers"}
    assert all(valkey.client().ttl(key) > 0 for key in valkey.client().keys("p2l:*"))


async def test_the_documented_rights_are_enough_on_a_cluster(shared, tmp_path, caplog):
    with cluster(tmp_path) as nodes:
        for one in nodes:
            one.client().execute_command("ACL", "SETUSER", *SERVICE.split(), *CLUSTER_RIGHTS.split())
        hosts = ",".join(f"127.0.0.1:{one.port}" for one in nodes)
        await handed_over(shared, f"redis+cluster://p2l-service:PASSWORD@{hosts}")
    assert caplog.messages == []


@pytest.mark.parametrize("right", ["set", "incrbyfloat", "expire", "eval", "hmget", "hset"])
async def test_each_of_them_is_needed_and_its_lack_is_called_what_it_is(valkey, shared, right, caplog):
    url = as_service(valkey, f"-{right}")
    exchange, (traffic, _) = shared(url), busy()
    for _ in range(3):
        await exchange.exchange(traffic)
    assert exchange.errors == 3
    (message,) = caplog.messages
    assert re.search(r"Redis refuses \(permission(, [A-Z]+)?\): the ACL user lacks a right, see docs/cache.md", message)
    assert "away" not in message
    assert "p2l-service" not in message
    if right in ("set", "eval", "incrbyfloat"):
        assert f"permission, {right.upper()}" in message
    caplog.set_level(logging.INFO, "litellm_router")
    as_service(valkey)
    await exchange.exchange(traffic)
    assert caplog.messages[1:] == ["p2l: shared budgets: Redis works again"]


async def test_a_wrong_password_is_not_called_away(valkey, shared, caplog):
    as_service(valkey)
    exchange, (traffic, _) = shared(f"redis://p2l-service:wrong@127.0.0.1:{valkey.port}/0"), busy()
    await exchange.exchange(traffic)
    assert "Redis refuses (auth): check the user name and password" in caplog.text
    assert "wrong" not in caplog.text
    assert "away" not in caplog.text
