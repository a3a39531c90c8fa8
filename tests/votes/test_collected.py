"""Votes that the router collected: from its file while it writes, and from its stream in a real Valkey."""

import json
import re
from pathlib import Path

import pytest
from helpers.command import called
from helpers.servers import server

from litellm_router.collect.store import FileStore, RedisStore, day_of
from p2l_plugins.cache.address import Clients
from p2l_plugins.errors import DataError
from p2l_plugins.votes.collected import BLOCK, collected_votes, file_rows, is_redis, stream_rows
from p2l_plugins.votes.read import read_votes
from p2l_plugins.votes.tally import Tally

VOTE = {"timestamp": 1.75e9, "judge": "j", "cost": 0.01, "prompt": ["p"], "model_a": "x", "model_b": "y"}
VOTE["winner"] = "tie (bothbad)"
FAILED = {"timestamp": 1.75e9, "judge": "j", "cost": 0.01}


@pytest.fixture(scope="module")
def valkey(tmp_path_factory):
    with server(tmp_path_factory.mktemp("valkey")) as one:
        yield one


async def test_votes_of_the_file_keep_their_times_and_failed_comparisons_are_counted(tmp_path):
    path = tmp_path / "collected.jsonl"
    store = FileStore(path)
    for row in (VOTE, FAILED, VOTE | {"prompt": ["a", "b"], "winner": "model_a", "timestamp": 1.75e9 + 1}):
        await store.add(row)
    tally = Tally()
    votes = collected_votes(file_rows(path, tally), tally, str(path))
    assert votes.prompts == [("p",), ("a", "b")]
    assert votes.outcome.tolist() == [3, 0]
    assert votes.timestamp.tolist() == [1.75e9, 1.75e9 + 1]
    assert (tally.rows, dict(tally.dropped)) == (3, {"failed-comparison": 1})


async def test_a_line_that_is_being_written_is_left_for_next_time(tmp_path):
    path = tmp_path / "collected.jsonl"
    await FileStore(path).add(VOTE)
    line = json.dumps(VOTE | {"prompt": ["é"]}, ensure_ascii=False).encode() + b"\n"
    whole = path.read_bytes()
    for cut in (1, len(line) // 2, line.index("é".encode()) + 1):
        path.write_bytes(whole + line[:cut])
        tally = Tally()
        assert len(collected_votes(file_rows(path, tally), tally, str(path))) == 1
        assert dict(tally.dropped) == {"unfinished-line": 1}
    path.write_bytes(whole + line)
    assert len(collected_votes(file_rows(path, tally), tally, str(path))) == 2
    path.write_bytes(whole + line[:20] + b"\n" + whole)
    with pytest.raises(DataError, match="line 2: not valid JSON"):
        collected_votes(file_rows(path, Tally()), tally, str(path))


def test_without_a_vote_the_command_says_so_and_writes_nothing(tmp_path):
    path = tmp_path / "collected.jsonl"
    path.write_text(json.dumps(FAILED) + "\n")
    done = called("votes", "from-collected", path, "-o", tmp_path / "v.jsonl", status=1)
    assert "there is no vote yet (1 rows, dropped: failed-comparison 1)" in done.stderr
    assert not (tmp_path / "v.jsonl").exists()


async def test_the_stream_is_read_in_blocks_while_it_grows(valkey):
    client = valkey.client()
    client.flushall()
    clients = Clients(valkey.url)
    store = RedisStore(clients, "p2l")
    for i in range(2 * BLOCK):
        client.xadd(store.stream, {"row": json.dumps(VOTE | {"prompt": [f"p{i}"]})})
    await store.add(VOTE | {"prompt": ["last"]})
    await store.add(FAILED)  # which the stream does not keep
    tally = Tally()
    votes = collected_votes(await stream_rows(clients(), "p2l", tally), tally, store.stream)
    await clients.aclose()
    assert len(votes) == tally.rows == 2 * BLOCK + 1
    assert votes.prompts[-1] == ("last",)
    assert client.info("commandstats")["cmdstat_xrange"]["calls"] == 3


async def test_the_rights_that_the_docs_name_are_enough(valkey):
    page = (Path(__file__).parents[2] / "docs" / "own-models.md").read_text(encoding="utf-8")
    rights, keys = re.search(r"`(\+xadd [^`]+)` on `([^`]+)`", page).groups()
    client = valkey.client()
    client.flushall()
    client.execute_command("ACL", "SETUSER", "collector", "on", ">pw", keys, "-@all", *rights.split())
    clients = Clients(valkey.url.replace("redis://", "redis://collector:pw@"))
    store, tally = RedisStore(clients, "p2l"), Tally()
    await store.add(VOTE)
    assert await store.spent(day_of(VOTE["timestamp"])) == 0.01
    assert len(await stream_rows(clients(), "p2l", tally)) == 1
    await clients.aclose()


def test_the_command_reads_file_and_stream_alike(valkey, tmp_path):
    client = valkey.client()
    client.flushall()
    rows = [VOTE, VOTE, VOTE | {"model_b": "z", "winner": "model_b"}]
    for row in rows:
        client.xadd("mine:collect:1", {"row": json.dumps(row)})
    path = tmp_path / "collected.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, FAILED]))
    of_file, of_stream = tmp_path / "file.jsonl", tmp_path / "stream.jsonl"
    done = called("votes", "from-collected", path, "-o", of_file, "--drop-duplicates")
    assert "failed-comparison" in done.stderr
    called("votes", "from-collected", valkey.url, "-o", of_stream, "--namespace", "mine", "--drop-duplicates")
    assert of_file.read_text() == of_stream.read_text()
    assert read_votes(of_file).timestamp.tolist() == [1.75e9, 1.75e9]
    called("votes", "from-collected", "redis", "-o", of_stream, status=2)


def test_an_address_is_told_from_a_file():
    assert all(map(is_redis, ("redis", "rediss://h", "redis+cluster://a,b", "redis://u:p@h:1/0")))
    assert not any(map(is_redis, ("redis.jsonl", "./redis", "/var/lib/p2l/collected.jsonl")))
