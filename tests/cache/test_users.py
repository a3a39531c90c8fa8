"""Boards of users in the store: under a keyed hash, deletable, never in the way."""

import asyncio
import json
import re
import zlib

import numpy as np
import pytest
from helpers.command import called
from helpers.servers import server

from p2l_plugins import ConfigError
from p2l_plugins.cache.address import Clients
from p2l_plugins.cache.settings import derive_secret
from p2l_plugins.cache.value import Unreadable
from p2l_plugins.leaderboards.personal import Blending, UserBoard, with_feedback, with_prompt
from p2l_plugins.leaderboards.user_store import (
    MEMORY_S,
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
BOARD = ("leaderboard", "starter", "--user", "ada@example.org")


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


def sealed_board(board, key=KEY, fingerprint=FINGERPRINT, secret=SECRET):
    return encode_board(key, fingerprint, board, secret)


def read(value, key=KEY, fingerprint=FINGERPRINT, models=3, secret=SECRET):
    return decode_board(key, fingerprint, value, models, secret)


def test_a_value_comes_back_and_anything_else_is_unreadable():
    board = with_feedback(change(UserBoard.empty("grk", 3, 0.0)), "grk", 1, True, 3.0, Blending())
    value = sealed_board(board)
    again = read(value)
    assert again.coefs == pytest.approx(board.coefs, abs=1e-6)
    assert again.shift == pytest.approx(board.shift, abs=1e-6)
    assert (again.raw_eta, again.prompts, again.votes, again.time) == pytest.approx((0.5, board.prompts, 1.0, 3.0))
    assert read(sealed_board(UserBoard.empty("bt", 3, 0.0))).raw_eta is None
    flipped = value[:20] + bytes([value[20] ^ 1]) + value[21:]
    cases = [("type", "text"), ("format", b""), ("forged", flipped), ("length", value[:-1]), ("format", b"x" * 60)]
    for word, wrong in cases:
        with pytest.raises(Unreadable, match=word):
            read(wrong)
    with pytest.raises(Unreadable, match="models"):
        read(value, models=4)


@pytest.mark.parametrize("moved", [{"key": user_key("bob", SECRET)}, {"fingerprint": "e" * 32}, {"secret": b"other"}])
def test_a_board_is_valid_for_its_user_bundle_and_secret_only(moved):
    """Whoever writes to the store can neither make a board nor give one user's to another."""
    value = sealed_board(UserBoard.empty("grk", 3, 0.0))
    with pytest.raises(Unreadable, match="forged"):
        read(value, **moved)


def test_any_flipped_bit_of_a_board_is_noticed():
    value = sealed_board(change(UserBoard.empty("grk", 3, 0.0)))
    for bit in range(8 * len(value)):
        wrong = bytearray(value)
        wrong[bit // 8] ^= 1 << bit % 8
        with pytest.raises(Unreadable):
            read(bytes(wrong))


async def test_a_board_with_a_checksum_that_anybody_can_make_is_none(valkey):
    """As boards were before they had a MAC."""
    body = bytearray(sealed_board(UserBoard.empty("grk", 3, 0.0)))[:-16]
    body[2] = 1
    old = bytes(body) + zlib.crc32(body, zlib.crc32(KEY.encode())).to_bytes(4, "little")
    clients = Clients(valkey.url)
    await clients().hset(KEY, FINGERPRINT, old)
    boards = UserBoards(clients, FINGERPRINT, "grk", 3, SECRET, deadline_s=5)
    assert await boards.get(KEY) is None
    boards.change_soon(KEY, change)
    await boards.flush()
    assert (await read_board(clients(), KEY, FINGERPRINT, 3, SECRET)).prompts == pytest.approx(1.0)
    await clients().delete(KEY)
    await clients.aclose()


@pytest.mark.parametrize(
    ("prompts", "votes", "days"), [(0, 0, 7), (0, 1, 7), (1, 1, 14), (10, 0.5, 73.5), (300, 9, 180)]
)
def test_a_thin_board_is_kept_for_less_time(prompts, votes, days):
    board = UserBoard(np.zeros(3), 0.0, float(prompts), np.zeros(3), float(votes), 0.0)
    assert kept_s(board) == days * DAY_S


async def test_services_share_a_board_and_forget_it(valkey):
    clients = Clients(valkey.url)
    one, other = (UserBoards(clients, FINGERPRINT, "grk", 3, SECRET, deadline_s=5) for _ in range(2))
    assert await one.get(KEY) is None
    one.change_soon(KEY, change)
    one.change_soon(KEY, change)
    await one.flush()
    board = await other.get(KEY)
    assert board is not None
    assert board.prompts == pytest.approx(2.0)
    assert (await read_board(clients(), KEY, FINGERPRINT, 3, SECRET)).prompts == pytest.approx(2.0)
    assert (
        await UserBoards(clients, "e" * 32, "grk", 3, SECRET, deadline_s=5).get(KEY) is None
    )  # another bundle, another board
    assert 13 * DAY_S < await clients().ttl(KEY) <= 14 * DAY_S  # of two prompts
    assert await forget(clients(), KEY) is True
    assert await forget(clients(), KEY) is False
    assert await UserBoards(clients, FINGERPRINT, "grk", 3, SECRET, deadline_s=5).get(KEY) is None
    await clients.aclose()


@pytest.mark.parametrize("jump", [-DAY_S, -3600.0, 3600.0, DAY_S])
async def test_a_jump_of_the_clock_neither_keeps_an_old_board_nor_loses_one(valkey, jump):
    clients, now, steady = Clients(valkey.url), [1.8e9], [0.0]
    clocks = {"clock": lambda: now[0], "steady": lambda: steady[0], "deadline_s": 5}
    one, other = (UserBoards(clients, FINGERPRINT, "grk", 3, SECRET, **clocks) for _ in range(2))
    one.change_soon(KEY, change_now)
    await one.flush()
    assert (await other.get(KEY)).prompts == 1.0
    now[0] += jump
    one.change_soon(KEY, change_now)
    await one.flush()
    assert (await other.get(KEY)).prompts == 1.0  # of its memory, for a minute by the clock that does not jump
    steady[0] = MEMORY_S + 1
    board = await other.get(KEY)
    assert board.prompts == pytest.approx(2.0, abs=0.03)  # a day is a thirtieth of the half-life
    assert board.time == now[0]
    now[0] -= jump
    one.change_soon(KEY, change_now)
    await one.flush()
    assert (await read_board(clients(), KEY, FINGERPRINT, 3, SECRET)).prompts == pytest.approx(3.0, abs=0.1)
    await forget(clients(), KEY)
    await clients.aclose()


def change_now(board, now):
    return with_prompt(board, "grk", np.array([1.0, 0.0, -1.0]), 0.5, now, Blending())


def test_a_change_in_the_future_counts_as_one_of_now():
    """A clock that was ten years ahead once: the board fades from now on, not from then."""
    board = change_now(UserBoard.empty("grk", 3, 1.8e9), 1.8e9 + 3650 * DAY_S)
    back = change_now(board, 1.8e9)
    assert back.prompts == 2.0
    assert change_now(back, 1.8e9 + 30 * DAY_S).prompts == pytest.approx(2.0)  # half of two, and one


async def test_without_a_store_boards_live_in_the_process():
    boards = UserBoards(None, FINGERPRINT, "grk", 3, SECRET)
    boards.change_soon(KEY, change)
    await boards.flush()
    assert (await boards.get(KEY)).prompts == 1.0


@pytest.mark.alone
async def test_a_store_that_hangs_or_dies_costs_the_deadline_and_no_exception(tmp_path):
    with server(tmp_path) as store:
        clients = Clients(store.url)
        boards = UserBoards(clients, FINGERPRINT, "grk", 3, SECRET)
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
    boards = UserBoards(None, FINGERPRINT, "grk", 3, SECRET)
    for _ in range(MOST_WAITING + 5):
        boards.change_soon(KEY, lambda board, now: board)
    assert boards.stats["lost"] == 5
    await boards.flush()


async def test_a_garbage_value_is_no_board(valkey):
    clients = Clients(valkey.url)
    await clients().hset(KEY, FINGERPRINT, b"\x80garbage")
    boards = UserBoards(clients, FINGERPRINT, "grk", 3, SECRET, deadline_s=5)
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
        boards = UserBoards(clients, manifest.fingerprint, "grk", len(coefs), SECRET)
        boards.change_soon(KEY, sent)
        await boards.flush()
        await clients.aclose()

    asyncio.run(fill())
    monkeypatch.setenv("P2L_CACHE_URL", valkey.url)

    forget = ("cache", "forget-user", "ada@example.org")
    assert "P2L_CACHE_SECRET" in called(*forget, status=2).stderr
    monkeypatch.setenv("P2L_CACHE_SECRET", "s3cret")
    board = json.loads(called(*BOARD, "--json").stdout)
    assert board["n_prompts"] == 1
    best = next(name for name in reversed(manifest.models) if name not in manifest.ungrounded)
    assert next(row["model"] for row in board["leaderboard"] if row.get("grounded", True)) == best
    assert called(*forget).stdout == "forgotten\n"
    assert "nothing is kept of this user" in called(*BOARD, status=1).stderr
    assert called(*forget, "--json").stdout == '{"found": false}\n'
