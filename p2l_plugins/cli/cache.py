"""Commands on the shared score cache: stats, purge, warm."""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Annotated, Any, TypeVar

import typer

from p2l_plugins.console import JsonOption, PromptsArg, progress
from p2l_plugins.errors import ConfigError, DataError, P2LError
from p2l_plugins.scoring.cached import SECRET, URL

UrlOption = Annotated[
    str | None,
    typer.Option(help=f"redis://, rediss://, redis+sentinel:// or redis+cluster:// address. Default: ${URL}."),
]
NamespaceOption = Annotated[str, typer.Option(help="First part of the keys.")]

T = TypeVar("T")

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="The score cache that services share.")


@app.command()
def stats(url: UrlOption = None, namespace: NamespaceOption = "p2l", as_json: JsonOption = False) -> None:
    """Entries, bytes and age of each bundle's scores, and the server's memory."""
    from p2l_plugins.cache.scan import survey
    from p2l_plugins.cells import pipe_table

    found = in_cache(lambda client: survey(client, namespace), url, namespace)
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    rows = [
        [
            row["schema"],
            row["fingerprint"],
            str(row["entries"]),
            _shown(row["bytes_each"], ".0f"),
            _shown(row["hours_left"], ".1f"),
        ]
        for row in found["bundles"]
    ]
    typer.echo(pipe_table(["schema", "fingerprint", "entries", "bytes each", "hours left"], rows, left=(1,)))
    memory = ", ".join(f"{key} {value}" for key, value in found["server"].items())
    typer.echo(f"\n{found['entries']} entries under {namespace}:" + (f"; server: {memory}" if memory else ""))


@app.command()
def purge(
    fingerprint: Annotated[
        list[str] | None, typer.Option(help="Bundle whose scores go, as `stats` shows it; repeat for several.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="All scores of the namespace.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count only.")] = False,
    url: UrlOption = None,
    namespace: NamespaceOption = "p2l",
    as_json: JsonOption = False,
) -> None:
    """Say what goes, then remove the scores of a bundle, a piece at a time (SCAN, UNLINK); other keys stay."""
    from p2l_plugins.cache.scan import remove

    if bool(fingerprint) == everything:
        raise ConfigError("name what goes: --fingerprint, once or more, or --all")
    for one in fingerprint or ():
        if not re.fullmatch(r"[0-9a-f]{32}", one):
            raise ConfigError(f"--fingerprint is {one!r}, but must be 32 hex digits, as `p2l cache stats` shows them")
    chosen = None if everything else frozenset(fingerprint or ())

    def gone_through(what: str, only_count: bool) -> Counter[str]:
        with progress() as bar:
            step = bar.add_task(what, total=None)
            return in_cache(
                lambda client: remove(client, namespace, chosen, only_count, lambda n: bar.advance(step, n)),
                url,
                namespace,
            )

    found = gone_through("counting", True)
    for name, keys in sorted(found.items()):
        typer.echo(f"{namespace}: fingerprint {name}: {keys} keys {'found' if dry_run else 'to remove'}", err=True)
    removed: Counter[str] = Counter() if dry_run else gone_through("removing", False)
    counts = found if dry_run else removed
    result = {"removed": removed.total(), "found": found.total(), "by_fingerprint": dict(counts)}
    typer.echo(json.dumps(result) if as_json else f"{counts.total()} keys {'found' if dry_run else 'removed'}")


@app.command()
def warm(
    prompts: PromptsArg,
    bundle: Annotated[str, typer.Option(help="Bundle that scores: folder, hub id or 'starter'.")] = "starter",
    ttl_hours: Annotated[float, typer.Option(help="Hours until the entries expire.", min=0.001)] = 7 * 24.0,
    url: UrlOption = None,
    namespace: NamespaceOption = "p2l",
    as_json: JsonOption = False,
) -> None:
    """Score prompts into the cache, those that are not there yet. A secret that keys the cache: $P2L_CACHE_SECRET."""
    from p2l_plugins.cache.address import Clients, shown
    from p2l_plugins.cache.redis import RedisCache
    from p2l_plugins.cache.settings import derive_secret
    from p2l_plugins.files.prompts import read_prompts
    from p2l_plugins.prompts import as_turns
    from p2l_plugins.scoring.cached import PATIENT_S, BlockingCache, CachedScorer
    from p2l_plugins.scoring.scorer import P2L

    _check_namespace(namespace)
    address, key = cache_address(url)
    clients = Clients(address, key)
    secret = os.environ.get(SECRET)
    texts, _ = read_prompts(prompts)
    turns = [as_turns(text) for text in texts]
    p2l = P2L.load(bundle)
    cache = RedisCache(clients, 3600 * ttl_hours, PATIENT_S, derive_secret(secret) if secret else b"")
    with BlockingCache(cache) as blocking, progress() as bar:
        step = bar.add_task("scoring", total=len(turns))
        scorer = CachedScorer(p2l, blocking, namespace, derive_secret(secret) if secret else b"")
        scorer.score_turns(turns, lambda n: bar.advance(step, n))
    counts = cache.snapshot()
    if counts["lost"]:
        raise DataError(
            f"{shown(address)}: {counts['lost']} of {len(set(turns))} entries could not be written "
            f"({', '.join(counts['errors']) or 'breaker open'})"
        )
    result = {"prompts": len(turns), "hits": scorer.hits, "written": counts["written"], "fingerprint": p2l.fingerprint}
    line = f"{len(turns)} prompts: {scorer.hits} were there, {counts['written']} written, fingerprint {p2l.fingerprint}"
    typer.echo(json.dumps(result) if as_json else line)


@app.command("forget-user")
def forget_user(
    user: Annotated[str, typer.Argument(help="The user's name or id, as the router saw it.")],
    url: UrlOption = None,
    namespace: NamespaceOption = "p2l",
    as_json: JsonOption = False,
) -> None:
    """Remove all that is kept of a user. The secret that keys the hash of names: $P2L_CACHE_SECRET."""
    from p2l_plugins.leaderboards.user_store import forget, user_key

    key = user_key(user, own_secret(), namespace)
    found = in_cache(lambda client: forget(client, key), url, namespace)
    typer.echo(json.dumps({"found": found}) if as_json else "forgotten" if found else "nothing is kept of this user")


def own_secret() -> bytes:
    """The secret of users' boards, from the environment.

    Raises:
        ConfigError: there is none.
    """
    from p2l_plugins.cache.settings import derive_secret

    secret = os.environ.get(SECRET)
    if not secret:
        raise ConfigError(f"set {SECRET} to the secret of the services: names of users are kept as a keyed hash only")
    return derive_secret(secret)


def cache_address(url: str | None, option: str = "--url") -> tuple[str, str]:
    """The cache's address, of an option or the environment, and the name of what it comes from.

    Raises:
        ConfigError: neither has one, or it can't be used.
    """
    from p2l_plugins.cache.address import check

    address, key = (url, option) if url else (os.environ.get(URL), URL)
    if not address:
        raise ConfigError(f"no address of the cache: give {option}, or set {URL}")
    check(address, key)
    return address, key


def _check_namespace(namespace: str) -> None:
    from p2l_plugins.cache.settings import NAMESPACE_PATTERN

    if not re.fullmatch(NAMESPACE_PATTERN, namespace):
        raise ConfigError(f"--namespace is {namespace!r}, but may have letters, digits, '.', '_' and '-' only")


def in_cache(
    work: Callable[[Any], Coroutine[Any, Any, T]], url: str | None, namespace: str, option: str = "--url"
) -> T:
    """Runs `work(client)` on an event loop; errors of the server become one sentence without credentials.

    Args:
        option: that gives the address, for messages.
    """
    from p2l_plugins.cache.address import Clients, shown
    from p2l_plugins.cache.breaker import REMEDIES
    from p2l_plugins.cache.redis import kind_of

    _check_namespace(namespace)
    address, key = cache_address(url, option)
    clients = Clients(address, key)

    async def main() -> T:
        try:
            return await work(clients())
        finally:
            await clients.aclose()

    try:
        return asyncio.run(main())
    except P2LError:
        raise
    except Exception as error:  # whatever redis-py raises; its message may hold what the address holds
        kind = kind_of(error)
        if kind == "other" and type(error).__module__.partition(".")[0] != "redis":
            raise
        advice = f"; {REMEDIES[kind]}" if kind in REMEDIES else ""
        raise DataError(f"{shown(address)}: {kind} error ({type(error).__name__}){advice}") from None


def _shown(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
