"""Boards of users in the store: under a keyed hash, deletable, never in the way."""

import asyncio
import json
import re
import subprocess
import sys

import numpy as np
import pytest
from helpers.servers import server

from p2l_plugins import ConfigError
from p2l_plugins.cache.address import Clients
from p2l_plugins.cache.settings import derive_secret
from p2l_plugins.cache.value import Unreadable
from p2l_plugins.leaderboards.personal import Blending, UserBoard, with_feedback, with_prompt
from p2l_plugins.leaderboards.user_store import (
    MOST_WAITING,
    UserBoards,
    decode_board,
    encode_board,
    forget,
    kept_s,
    read_board,
    user_key,
)
from p2l_plugins.scoring.bundle import Bundle, find_bundle

DAY_S = 24 * 3600
FINGERPRINT, SECRET = "f" * 32, derive_secret("s3cret")
KEY = user_key("ada@example.org", SECRET)
BOARD = [sys.executable, "-m", "p2l_plugins.cli", "leaderboard", "starter", "--user", "ada@example.org"]


def change(board, now=0.0):
    return with_prompt(board, "grk", np.array([1.0, 0.0, -1.0]), 0.5, 0.0, Blending())


def test_the_name_is_not_in_the_key_and_the_secret_keys_it():
    assert re.fullmatch(r"p2l:user:1:[0-9a-f]{32}", KEY)
    assert user_key("ada@example.org", derive_secret("other")) != KEY
    assert user_key("bob@example.org", SECRET) != KEY
    assert user_key("\ud800", SECRET)
    for user, secret, word in (("ada", b"", "secret"), ("", SECRET, "empty")):
        with pytest.raises(ConfigError, match=word):
            user_key(user, secret)


def test_a_value_comes_back_and_anything_else_is_unreadable():
    board = with_feedback(change(UserBoard.empty("grk", 3, 0.0)), "grk", 1, True, 3.0, Blending())
    value = encode_board(KEY, board)
    again = decode_board(KEY, value, 3)
    assert again.coefs == pytest.approx(board.coefs, abs=1e-6)
    assert again.shift == pytest.approx(board.shift, abs=1e-6)
    assert (again.raw_eta, again.prompts, again.votes, again.time) == pytest.approx((0.5, board.prompts, 1.0, 3.0))
    assert decode_board(KEY, encode_board(KEY, UserBoard.empty("bt", 3, 0.0)), 3).raw_eta is None
    flipped = value[:20] + bytes([value[20] ^ 1]) + value[21:]
    cases = [("type", "text"), ("format", b""), ("checksum", flipped), ("length", value[:-1]), ("format", b"x" * 60)]
    for word, wrong in cases:
        with pytest.raises(Unreadable, match=word):
            decode_board(KEY, wrong, 3)
    with pytest.raises(Unreadable, match="models"):
        decode_board(KEY, value, 4)
    with pytest.raises(Unreadable, match="checksum"):
        decode_board(user_key("bob", SECRET), value, 3)


@pytest.mark.parametrize(
    ("prompts", "votes", "days"), [(0, 0, 7), (0, 1, 7), (1, 1, 14), (10, 0.5, 73.5), (300, 9, 180)]
)
def test_a_thin_board_is_kept_for_less_time(prompts, votes, days):
    board = UserBoard(np.zeros(3), 0.0, float(prompts), np.zeros(3), float(votes), 0.0)
    assert kept_s(board) == days * DAY_S


async def test_services_share_a_board_and_forget_it(valkey):
    clients = Clients(valkey.url)
    one, other = (UserBoards(clients, FINGERPRINT, "grk", 3, deadline_s=5) for _ in range(2))
    assert await one.get(KEY) is None
    one.change_soon(KEY, change)
    one.change_soon(KEY, change)
    await one.flush()
    board = await other.get(KEY)
    assert board is not None
    assert board.prompts == pytest.approx(2.0)
    assert (await read_board(clients(), KEY, FINGERPRINT, 3)).prompts == pytest.approx(2.0)
    assert await UserBoards(clients, "e" * 32, "grk", 3, deadline_s=5).get(KEY) is None  # another bundle, another board
    assert 13 * DAY_S < await clients().ttl(KEY) <= 14 * DAY_S  # of two prompts
    assert await forget(clients(), KEY) is True
    assert await forget(clients(), KEY) is False
    assert await UserBoards(clients, FINGERPRINT, "grk", 3, deadline_s=5).get(KEY) is None
    await clients.aclose()


async def test_without_a_store_boards_live_in_the_process():
    boards = UserBoards(None, FINGERPRINT, "grk", 3)
    boards.change_soon(KEY, change)
    await boards.flush()
    assert (await boards.get(KEY)).prompts == 1.0


@pytest.mark.alone
async def test_a_store_that_hangs_or_dies_costs_the_deadline_and_no_exception(tmp_path):
    with server(tmp_path) as store:
        clients = Clients(store.url)
        boards = UserBoards(clients, FINGERPRINT, "grk", 3)
        store.pause()
        started = asyncio.get_running_loop().time()
        assert await boards.get(KEY) is None
        assert asyncio.get_running_loop().time() - started < 0.5
        boards.change_soon(KEY, change)
        await boards.flush()
        store.resume()
    assert await boards.get(KEY) is None
    assert boards.stats["errors"] >= 2
    await clients.aclose()


async def test_changes_that_can_not_wait_are_lost_and_counted():
    boards = UserBoards(None, FINGERPRINT, "grk", 3)
    for _ in range(MOST_WAITING + 5):
        boards.change_soon(KEY, lambda board, now: board)
    assert boards.stats["lost"] == 5
    await boards.flush()


async def test_a_garbage_value_is_no_board(valkey):
    clients = Clients(valkey.url)
    await clients().hset(KEY, FINGERPRINT, b"\x80garbage")
    boards = UserBoards(clients, FINGERPRINT, "grk", 3, deadline_s=5)
    assert await boards.get(KEY) is None
    assert boards.stats["unreadable"] == 1
    await clients().delete(KEY)
    await clients.aclose()


def test_the_commands_show_and_forget_a_user(valkey, monkeypatch):
    manifest = Bundle.open(find_bundle("starter")).manifest
    coefs = np.linspace(-1.0, 1.0, len(manifest.models))

    def sent(board, now):
        return with_prompt(board, "grk", coefs, 0.5, now, Blending())

    async def fill():
        clients = Clients(valkey.url)
        boards = UserBoards(clients, manifest.fingerprint, "grk", len(coefs))
        boards.change_soon(KEY, sent)
        await boards.flush()
        await clients.aclose()

    asyncio.run(fill())
    monkeypatch.setenv("P2L_CACHE_URL", valkey.url)

    def run(*arguments):
        command = [sys.executable, "-m", "p2l_plugins.cli", "cache", "forget-user", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    refused = run("ada@example.org")
    assert refused.returncode == 2
    assert "P2L_CACHE_SECRET" in refused.stderr
    monkeypatch.setenv("P2L_CACHE_SECRET", "s3cret")
    shown = subprocess.run([*BOARD, "--json"], capture_output=True, text=True, timeout=60, check=True)
    board = json.loads(shown.stdout)
    assert board["n_prompts"] == 1
    best = next(name for name in reversed(manifest.models) if name not in manifest.ungrounded)
    assert next(row["model"] for row in board["leaderboard"] if row.get("grounded", True)) == best
    assert run("ada@example.org").stdout == "forgotten\n"
    gone = subprocess.run(BOARD, capture_output=True, text=True, timeout=60, check=False)
    assert gone.returncode == 1
    assert "nothing is kept of this user" in gone.stderr
    assert run("ada@example.org", "--json").stdout == '{"found": false}\n'
