"""A user's own board in the router, through the callback inside LiteLLM's real router."""

import litellm
import pytest
from helpers.servers import server

from litellm_router import P2LRouter, P2LSettings
from p2l_plugins import ConfigError
from p2l_plugins.cache.address import Clients
from p2l_plugins.cache.settings import derive_secret
from p2l_plugins.leaderboards.personal import Blending, with_feedback
from p2l_plugins.leaderboards.user_store import UserBoards, user_key

SETTINGS = {"timeout_ms": 20_000, "personal": {"prompts": 2}, "cache": {"secret": "s3cret", "shared": False}}


@pytest.fixture
def p2l(tiny, monkeypatch):
    def make(**settings):
        router = P2LRouter(P2LSettings(**SETTINGS | settings), lambda _: tiny)
        monkeypatch.setattr(litellm, "callbacks", [router])
        return router

    return make


async def ask(callback, group, text, user="ada", field="user_api_key_user_id", **metadata):
    request = {"litellm_call_id": f"id {text}", "metadata": {field: user} | metadata}
    messages = [{"role": "user", "content": text}]
    ranked = await callback.async_filter_deployments("auto", group, messages, request)
    loaded = callback.state().scoring.now
    if loaded is not None and loaded.users is not None:
        await loaded.users.flush()
    return ranked[0]["model_info"]["p2l_model"], request["metadata"]["spend_logs_metadata"]["p2l"]


async def test_what_a_user_asks_decides_where_the_prompt_says_nothing(p2l, group):
    callback = p2l()
    for _ in range(4):
        await ask(callback, group, "math")
        await ask(callback, group, "code", user="bob")
    best, record = await ask(callback, group, "unknown")
    assert best == "alpha"
    assert record["personal"]["prompts"] == pytest.approx(4, abs=0.01)
    assert (await ask(callback, group, "unknown", user="bob"))[0] == "beta"
    assert (await ask(callback, group, "chat chat"))[0] == "gamma"  # what the prompt says strongly still counts


async def test_without_history_or_name_nothing_changes(p2l, group, tiny):
    callback = p2l()
    plain = P2LRouter(P2LSettings(timeout_ms=20_000), lambda _: tiny)
    for _ in range(3):
        await ask(callback, group, "math", user="other")
    for user in (None, "", 7, "new"):
        for text in ("code", "chat", "unknown"):
            found, record = await ask(callback, group, text, user=user)
            expected, without = await ask(plain, group, text, user=None)
            assert found == expected
            assert {**record, "ms": 0, "cache": ""} == {**without, "ms": 0, "cache": ""}
            assert "personal" not in record
            if user == "new":
                break


async def test_a_request_that_is_tried_again_counts_once(p2l, group):
    callback = p2l()
    await ask(callback, group, "math")
    await ask(callback, group, "math", attempted_retries=1)
    assert (await ask(callback, group, "unknown"))[1]["personal"]["prompts"] == pytest.approx(1, abs=0.01)


async def test_the_end_user_counts_where_it_is_asked_for(p2l, group):
    callback = p2l(personal={"user": "end_user", "prompts": 2})
    for _ in range(3):
        await ask(callback, group, "math")
    assert "personal" not in (await ask(callback, group, "unknown"))[1]
    for _ in range(3):
        await ask(callback, group, "code", field="user_api_key_end_user_id")
    assert (await ask(callback, group, "unknown", field="user_api_key_end_user_id"))[0] == "beta"


async def test_feedback_given_elsewhere_reaches_the_router_through_redis(p2l, group, tiny, tmp_path):
    with server(tmp_path) as store:
        callback = p2l(cache={"secret": "s3cret", "url": store.url, "deadline_ms": 5000})
        await ask(callback, group, "unknown", user="first")  # connects
        clients = Clients(store.url)
        boards = UserBoards(clients, tiny.fingerprint, "grk", len(tiny.models), derive_secret("s3cret"))

        def liked(board, now):
            return with_feedback(board, "grk", 2, True, now, Blending(step=3.0))

        boards.change_soon(user_key("ada", derive_secret("s3cret")), liked)
        await boards.flush()
        best, record = await ask(callback, group, "unknown")
        assert best == "gamma"
        assert record["personal"]["votes"] == pytest.approx(1, abs=0.01)
        await clients.aclose()
        await callback.state().scoring.cache.aclose()


def test_boards_need_a_secret():
    with pytest.raises(ConfigError, match=r"personal needs cache\.secret"):
        P2LSettings.read({"personal": {}})
    with pytest.raises(ConfigError, match=r"p2l_settings\.personal\.weigth .* valid: user, weight, prompts"):
        P2LSettings.read({"personal": {"weigth": 1}, "cache": {"secret": "s"}})
