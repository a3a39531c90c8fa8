"""Votes that the router collected from live traffic (`p2l_settings.collect`): from its file, or its stream in Redis.

A row is one comparison: `prompt`, `model_a`, `model_b`, `winner`, `timestamp`, and what it cost. One whose calls failed
has no winner. Reading takes nothing away, and goes on while a proxy writes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from p2l_plugins.errors import DataError
from p2l_plugins.files.rows import BadRow, Row, byte_lines, json_row, opened
from p2l_plugins.files.tables import need_file
from p2l_plugins.votes.arena import COLUMNS, arena_votes
from p2l_plugins.votes.tally import Skip, Tally
from p2l_plugins.votes.votes import Votes

#: The source that stands for the cache's Redis, as in `p2l_settings.collect.store`.
REDIS = "redis"
#: Rows of the stream that one round trip fetches.
BLOCK = 500

_ADDRESS = re.compile(r"rediss?(\+\w+)?://")

Placed = tuple[str, Row]


def stream_of(namespace: str) -> str:
    """Key of the stream of a namespace."""
    return f"{namespace}:collect:1"


def is_redis(source: str) -> bool:
    """Whether a source is a Redis, by its address or as `redis`; else it is a file."""
    return source == REDIS or _ADDRESS.match(source) is not None


def file_rows(path: Path, tally: Tally) -> Iterator[Placed]:
    """Comparisons of the file, with their places. A last line that is still being written is left for next time.

    Raises:
        DataError: no such file, or a line that can't be read, unless the tally drops them.
    """
    need_file(path)
    with opened(path) as stream:
        for number, line in enumerate(byte_lines(stream, str(path)), start=1):
            if not line.strip():
                continue
            row = json_row(line)
            if isinstance(row, BadRow) and not line.endswith(b"\n"):
                row = Skip("unfinished-line", "the line is still being written")
            yield from _kept(f"{path}: line {number}", row, tally)


async def stream_rows(client: Any, namespace: str, tally: Tally) -> list[Placed]:
    """Comparisons of the stream, with their places.

    Args:
        client: redis-py's, asyncio.
        namespace: first part of the stream's key.

    Raises:
        DataError: an entry that can't be read, unless the tally drops them.
    """
    key, first, rows = stream_of(namespace), "-", list[Placed]()
    while True:
        block = await client.xrange(key, min=first, max="+", count=BLOCK)
        for name, fields in block:
            place = f"{key}: entry {_text(name)}"
            rows += _kept(place, json_row(fields.get(b"row", fields.get("row", b""))), tally)
        if len(block) < BLOCK:
            return rows
        first = f"({_text(block[-1][0])}"


def collected_votes(rows: Iterable[Placed], tally: Tally, source: str) -> Votes:
    """One vote for each comparison.

    Args:
        source: that the rows come from, for the message.

    Raises:
        DataError: there is none yet, or a bad row, unless the tally drops them.
    """
    votes = arena_votes(rows, tally)
    if not len(votes):
        raise DataError(
            f"{source}: there is no vote yet ({tally.rows} rows, dropped: {tally.dropped_text()}); collect makes them "
            "while a proxy with p2l_settings.collect is asked"
        )
    return votes


def _kept(place: str, row: Row | BadRow, tally: Tally) -> Iterator[Placed]:
    """The row where it is a vote, with the columns that are read; counted in any case."""
    tally.rows += 1
    if tally.progress is not None and tally.rows % 1000 == 0:
        tally.progress(1000)
    if isinstance(row, BadRow):
        tally.bad(place, row)
    elif "winner" not in row:
        tally.bad(place, Skip("failed-comparison", "the calls of the comparison failed"))
    else:
        yield place, {name: value for name, value in row.items() if name in COLUMNS}


def _text(value: str | bytes) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value
