"""What the proxies of this folder share; they are started by the files that ask them."""

import pytest
from helpers.proxies import PROMPT, ranking_by_bundle
from helpers.upstream import upstream


@pytest.fixture(scope="module")
def ranking():
    """The models for `PROMPT`, the best first."""
    return ranking_by_bundle(PROMPT)[0]


@pytest.fixture(scope="module")
def provider():
    with upstream() as one:
        yield one


@pytest.fixture(scope="module")
def tap(tmp_path_factory):
    return tmp_path_factory.mktemp("tap") / "tap.jsonl"
