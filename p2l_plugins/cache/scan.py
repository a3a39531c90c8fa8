"""What is in a shared store, and removing it: by SCAN, a piece at a time, so that the server goes on answering.

Only keys of the whole form of `cache_key` are ours: namespace, schema, 32 hex digits, 32 hex digits. Others under the
same namespace are neither counted nor touched; leases end by themselves.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any

from p2l_plugins.cache.redis import is_cluster, pipeline

#: Keys that the server looks at in one SCAN, and that one round trip removes.
PIECE = 512

#: Keys of each bundle whose size and time to live are asked for.
SAMPLE = 64

#: A key without its namespace: schema, fingerprint, hash of the turns.
_OURS = re.compile(r":([0-9]{1,4}):([0-9a-f]{32}):[0-9a-f]{32}")

#: Lines of INFO that `survey` shows.
SERVER = ("used_memory", "maxmemory", "maxmemory_policy", "evicted_keys", "keyspace_hits", "keyspace_misses")


async def survey(client: Any, namespace: str) -> dict[str, Any]:
    """Counts of entries by schema and fingerprint, with bytes and time to live of a sample, and the server's memory.

    Figures that the ACL user may not read are None or absent.
    """
    counts: Counter[tuple[str, str]] = Counter()
    samples: dict[tuple[str, str], list[str]] = {}
    async for piece in _pieces(client, namespace, ""):
        for key, schema, fingerprint in piece:
            counts[schema, fingerprint] += 1
            sample = samples.setdefault((schema, fingerprint), [])
            if len(sample) < SAMPLE:
                sample.append(key)
    bundles = []
    for (schema, fingerprint), entries in sorted(counts.items()):
        sample = samples[schema, fingerprint]
        sizes = await _ask(client, [("MEMORY USAGE", key) for key in sample])
        ttls = await _ask(client, [("PTTL", key) for key in sample])
        ttls = [ttl for ttl in ttls if ttl >= 0]
        bundles.append(
            {
                "schema": schema,
                "fingerprint": fingerprint,
                "entries": entries,
                "bytes_each": sum(sizes) / len(sizes) if sizes else None,
                "hours_left": sum(ttls) / len(ttls) / 3.6e6 if ttls else None,
            }
        )
    return {"namespace": namespace, "entries": counts.total(), "bundles": bundles, "server": await _server(client)}


async def remove(
    client: Any,
    namespace: str,
    fingerprints: frozenset[str] | None,
    dry_run: bool = False,
    removed: Callable[[int], None] = lambda _: None,
) -> Counter[str]:
    """Removes the entries of bundles, with UNLINK, which frees memory in the background.

    Args:
        client: redis-py's.
        namespace: of the keys.
        fingerprints: of the bundles; None removes those of all.
        dry_run: count only.
        removed: called with the number of keys of each piece.

    Returns:
        keys by fingerprint.
    """
    counts: Counter[str] = Counter()
    patterns = [""] if fingerprints is None else [f"*:{fingerprint}:" for fingerprint in sorted(fingerprints)]
    for pattern in patterns:
        async for piece in _pieces(client, namespace, pattern):
            found = Counter(fingerprint for _, _, fingerprint in piece)
            if not dry_run:
                found = await _unlink(client, piece)
            counts.update(found)
            removed(found.total())
    return counts


async def _unlink(client: Any, piece: list[tuple[str, str, str]]) -> Counter[str]:
    """Removes keys in one round trip; how many of each bundle were there."""
    keys: dict[str, list[str]] = {}
    for key, _, fingerprint in piece:
        keys.setdefault(fingerprint, []).append(key)
    # one command for many keys, where all are on one server: in a cluster they would have to be of one slot
    commands = [
        (fingerprint, part)
        for fingerprint, own in keys.items()
        for part in ([[key] for key in own] if is_cluster(client) else [own])
    ]
    pipe = pipeline(client)
    for _, part in commands:
        pipe.execute_command("UNLINK", *part)  # `pipe.unlink` would do nothing in a cluster's pipeline
    gone: Counter[str] = Counter()
    for (fingerprint, _), n in zip(commands, await pipe.execute(), strict=True):
        gone[fingerprint] += n
    return +gone


async def _pieces(client: Any, namespace: str, rest: str) -> AsyncIterator[list[tuple[str, str, str]]]:
    """Our keys under a namespace, with their schema and fingerprint, in pieces; SCAN may give a key twice."""
    piece: list[tuple[str, str, str]] = []
    async for raw in client.scan_iter(match=f"{namespace}:{rest}*", count=PIECE):
        key = raw.decode(errors="replace") if isinstance(raw, bytes) else raw
        found = _OURS.fullmatch(key, len(namespace)) if key.startswith(namespace) else None
        if found is not None:
            piece.append((key, found[1], found[2]))
        if len(piece) >= PIECE:
            yield piece
            piece = []
    if piece:
        yield piece


async def _ask(client: Any, commands: list[tuple[str, str]]) -> list[Any]:
    """Answers of commands in one round trip, without those that were refused or found nothing."""
    pipe = pipeline(client)
    for command, key in commands:
        pipe.execute_command(command, key)
    answers = await pipe.execute(raise_on_error=False)
    return [answer for answer in answers if isinstance(answer, int)]


async def _server(client: Any) -> dict[str, Any]:
    from redis.exceptions import NoPermissionError

    try:
        info = await client.info()
    except NoPermissionError:
        return {}
    return {key: info[key] for key in SERVER if key in info}
