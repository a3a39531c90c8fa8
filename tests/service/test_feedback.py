"""Feedback over HTTP moves the user's board that the router reads, and nothing else is kept."""

import asyncio

import httpx
import pytest
from helpers.servers import server
from helpers.serving import in_thread, served, until

from p2l_plugins.cache.address import Clients
from p2l_plugins.cache.settings import derive_secret
from p2l_plugins.leaderboards.user_store import read_board, user_key
from p2l_plugins.service.app import create_app
from p2l_plugins.service.settings import ServiceSettings
from p2l_plugins.service.users import Allowance

SECRET = derive_secret("s3cret")
KEY = user_key("ada@example.org", SECRET)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    with server(tmp_path_factory.mktemp("valkey")) as one:
        yield one


@pytest.fixture(scope="module")
def client(store, tmp_path_factory):
    options = ("starter", "--cache-url", store.url, "--access-log", "--feedback-key-env", "FEEDBACK_KEY")
    options += ("--feedback-votes", "8", "--feedback-new-users", "5")
    environment = {"P2L_CACHE_SECRET": "s3cret", "FEEDBACK_KEY": "may-speak"}
    with served(tmp_path_factory.mktemp("feedback"), *options, environment=environment) as running:
        with httpx.Client(base_url=running.url, timeout=60, headers={"api-key": "may-speak"}) as client:
            yield client
        assert "ada@example" not in running.text()
        assert "purple" not in running.text()


def in_store(store, work):
    async def run():
        clients = Clients(store.url)
        try:
            return await work(clients())
        finally:
            await clients.aclose()

    return asyncio.run(run())


def board(store, p2l):
    return in_store(store, lambda client: read_board(client, KEY, p2l.fingerprint, len(p2l.models), SECRET))


def test_thumbs_move_the_board_of_their_user(client, store, p2l):
    up = {"user": "ada@example.org", "model": "gpt-4o-2024-08-06", "liked": True, "prompt": "Why is it purple?"}
    answer = client.post("/v1/feedback", json=up)
    assert (answer.status_code, answer.json()) == (202, {"status": "accepted"})
    until(lambda: board(store, p2l) is not None)
    first = board(store, p2l)
    column = p2l.index("gpt-4o-2024-08-06")
    assert first.shift[column] > 0
    assert (first.votes, first.prompts) == (1.0, 0.0)
    assert (first.shift != 0).sum() == 1
    worse = {"user": "ada@example.org", "model": "gpt-4o-2024-08-06", "liked": False, "other": "gpt-4-0314"}
    assert client.post("/v1/feedback", json=worse).status_code == 202
    until(lambda: board(store, p2l).votes > 1.5)
    second = board(store, p2l)
    assert second.shift[column] < first.shift[column]
    assert second.shift[p2l.index("gpt-4-0314")] > 0


def test_neither_user_nor_prompt_is_in_the_store(client, store):
    async def everything(store_client):
        found = []
        async for key in store_client.scan_iter():
            kind = await store_client.type(key)
            value = await (store_client.hgetall(key) if kind == b"hash" else store_client.get(key))
            found += [key, repr(value).encode()]
        return b"".join(found)

    everything = in_store(store, everything)
    assert everything
    assert b"ada@example" not in everything
    assert b"purple" not in everything


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"model": "gpt-9"}, "gpt-9"),
        ({"other": "gpt-4o-2024-08-06"}, "same model"),
        ({"user": ""}, "user"),
        ({"liked": "perhaps"}, "liked"),
        ({"prompt": " "}, "prompt 1"),
    ],
)
def test_wrong_feedback_is_a_sentence(client, change, word):
    asked = {"user": "ada", "model": "gpt-4o-2024-08-06", "liked": True} | change
    answer = client.post("/v1/feedback", json=asked)
    assert answer.status_code == 422
    assert word in answer.json()["detail"]


def keys_of_users(store):
    async def keys(store_client):
        return [key async for key in store_client.scan_iter(match="p2l:user:*")]

    return in_store(store, keys)


def test_votes_of_one_user_and_new_users_are_bounded(client, store):
    """Ada has voted twice, in the first test."""
    thumb = {"model": "gpt-4o-2024-08-06", "liked": True}
    ada = [client.post("/v1/feedback", json={"user": "ada@example.org", **thumb}) for _ in range(8)]
    assert [answer.status_code for answer in ada] == [202] * 6 + [429] * 2
    assert "votes of this user" in ada[-1].json()["detail"]
    assert int(ada[-1].headers["retry-after"]) > 1
    invented = [client.post("/v1/feedback", json={"user": f"user {i}", **thumb}) for i in range(30)]
    statuses = [answer.status_code for answer in invented]
    assert statuses == [202] * 4 + [429] * 26  # and ada was the first of the five
    assert "new users" in invented[-1].json()["detail"]
    until(lambda: len(keys_of_users(store)) == 5)
    assert client.post("/v1/feedback", json={"user": "user 1", **thumb}).status_code == 202


def test_without_a_key_for_it_or_without_a_store_it_is_refused(service):
    thumb = {"user": "ada", "model": "gpt-4o-2024-08-06", "liked": True}
    answer = httpx.post(f"{service.url}/v1/feedback", json=thumb, timeout=60)
    assert answer.status_code == 409
    assert "--feedback-key-env" in answer.json()["detail"]
    settings = ServiceSettings(feedback_keys=("may-speak",))
    with in_thread(create_app(settings)) as url:
        answer = httpx.post(f"{url}/v1/feedback", json=thumb, timeout=60, headers={"api-key": "may-speak"})
        assert answer.status_code == 409
        assert "shared cache" in answer.json()["detail"]


def test_an_allowance_comes_back_with_time_and_no_further():
    now = [0.0]
    allowance = Allowance(4, lambda: now[0])
    assert [allowance.take() for _ in range(6)] == [True] * 4 + [False] * 2
    now[0] += 900  # a quarter of an hour
    assert [allowance.take() for _ in range(2)] == [True, False]
    now[0] += 10**6
    assert [allowance.take() for _ in range(6)] == [True] * 4 + [False] * 2
