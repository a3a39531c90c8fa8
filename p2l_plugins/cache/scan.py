"""What is in a shared store, and removing it: by SCAN, a piece at a time, so that the server goes on answering."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any

from p2l_plugins.cache.lease import SUFFIX
from p2l_plugins.cache.redis import is_cluster

#: Keys that the server looks at in one SCAN, and that one round trip removes.
PIECE = 512

#: Keys of each bundle whose size and time to live are asked for.
SAMPLE = 64

#: Lines of INFO that `survey` shows.
SERVER = ("used_memory", "maxmemory", "maxmemory_policy", "evicted_keys", "keyspace_hits", "keyspace_misses")


async def survey(client: Any, namespace: str) -> dict[str, Any]:
    """Counts of entries by schema and fingerprint, with bytes and time to live of a sample, and the server's memory.

    Figures that the ACL user may not read are None or absent.
    """
    counts: Counter[tuple[str, str]] = Counter()
    samples: dict[tuple[str, str], list[str]] = {}
    async for piece in _pieces(client, namespace, ""):
        for key in piece:
            _, schema, fingerprint, digest = _parts(key)
            if digest.endswith(SUFFIX):
                continue
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
            found = piece
            if not dry_run:
                pipe = client.pipeline() if is_cluster(client) else client.pipeline(transaction=False)
                for key in piece:
                    pipe.execute_command("UNLINK", key)  # `pipe.unlink` would do nothing in a cluster's pipeline
                gone = await pipe.execute()
                found = [key for key, n in zip(piece, gone, strict=True) if n]
            counts.update(_parts(key)[2] for key in found)
            removed(len(found))
    return counts


async def _pieces(client: Any, namespace: str, rest: str) -> AsyncIterator[list[str]]:
    """Our keys under a namespace, in pieces; SCAN may give a key twice."""
    piece: list[str] = []
    async for raw in client.scan_iter(match=f"{namespace}:{rest}*", count=PIECE):
        key = raw.decode(errors="replace") if isinstance(raw, bytes) else raw
        if _parts(key)[0]:
            piece.append(key)
        if len(piece) >= PIECE:
            yield piece
            piece = []
    if piece:
        yield piece


def _parts(key: str) -> tuple[str, str, str, str]:
    """Namespace, schema, fingerprint, digest; empty for a key that is not ours."""
    parts = key.split(":", 3)
    return (parts[0], parts[1], parts[2], parts[3]) if len(parts) == 4 and parts[1].isdigit() else ("", "", "", "")


async def _ask(client: Any, commands: list[tuple[str, str]]) -> list[Any]:
    """Answers of commands in one round trip, without those that were refused or found nothing."""
    pipe = client.pipeline() if is_cluster(client) else client.pipeline(transaction=False)
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
