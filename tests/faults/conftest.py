"""Fixtures of the tests that put the shared cache in trouble."""

import pytest
from helpers.servers import server
from helpers.trouble import DEADLINE_MS, MODELS, Proxy, Routed

from litellm_router.settings import RouterCacheSettings


@pytest.fixture
def deployments():
    return [
        {
            "model_name": "auto",
            "litellm_params": {"model": f"openai/{name}", "input_cost_per_token": 1e-6, "output_cost_per_token": 1e-6},
            "model_info": {"id": name, "p2l_model": name},
        }
        for name in MODELS[:3]
    ]


@pytest.fixture
async def routed():
    """Gives a router whose cache is at an address; one entry in memory, so that the shared tier is asked."""
    made = []

    def make(url=None, client=None, scorer=None, **settings):
        settings = {"entries": 1, "deadline_ms": DEADLINE_MS} | settings
        one = Routed(
            RouterCacheSettings(url=url, **settings) if url else RouterCacheSettings(**settings), client, scorer
        )
        made.append(one)
        return one

    yield make
    for one in made:
        await one.close()


@pytest.fixture
def valkey(tmp_path):
    with server(tmp_path) as one:
        yield one


@pytest.fixture
async def proxy(valkey):
    one = await Proxy(valkey.port).start()
    yield one
    await one.stop()
