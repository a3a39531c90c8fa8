"""One service for all tests that only ask."""

from collections.abc import Iterator

import httpx
import pytest
from helpers.serving import PRICES, Served, served

from p2l_plugins import P2L


@pytest.fixture(scope="session")
def p2l() -> P2L:
    return P2L.load("starter", threads=1)


@pytest.fixture(scope="session")
def service(tmp_path_factory) -> Iterator[Served]:
    """The starter behind one process, with costs."""
    with served(tmp_path_factory.mktemp("service"), "starter", "--costs", str(PRICES), "--access-log") as running:
        yield running


@pytest.fixture
def client(service) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service.url, timeout=60) as client:
        yield client
